//! Knows: a POST of JSON to one configured address, on connections that are kept: no redirects, no proxies, no
//! cookies, within a bound of bytes. Never: what is asked, how long it may take.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;
use weir_authz::token::Address;

use super::Failure;

/// Connections that are kept open for the next call.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// How long. Most servers keep theirs for longer.
const IDLE_FOR: Duration = Duration::from_secs(4);
/// Of the head of an answer.
const HEAD_MAX_BYTES: usize = 16 << 10;

/// A service behind one address.
pub(super) struct HttpService {
    client: Connections,
    uri: Uri,
    headers: HeaderMap,
    answer_max_bytes: usize,
}

enum Connections {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Connections {
    async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        match self {
            Self::Plain(client) => client.request(request).await,
            Self::Tls(client) => client.request(request).await,
        }
    }
}

impl HttpService {
    pub(super) fn new(
        address: &Address,
        static_headers: &HeaderMap,
        answer_max_bytes: usize,
    ) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_FOR)
            .http1_max_buf_size(HEAD_MAX_BYTES);
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = match address.tls() {
            None => Connections::Plain(builder.build(connector)),
            Some(config) => {
                connector.enforce_http(false);
                let connector = HttpsConnectorBuilder::new()
                    .with_tls_config(config.as_ref().clone())
                    .https_only()
                    .enable_http1()
                    .wrap_connector(connector);
                Connections::Tls(builder.build(connector))
            }
        };
        let mut headers = static_headers.clone();
        let json = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, json);
        headers.entry(USER_AGENT).or_insert_with(|| {
            HeaderValue::from_static(concat!("weir/", env!("CARGO_PKG_VERSION")))
        });
        Self {
            client,
            uri: address.uri().clone(),
            headers,
            answer_max_bytes,
        }
    }

    /// Asks once. Any status but 200 is no answer. What is passed on wins over what is configured.
    pub(super) async fn ask(
        &self,
        question: Bytes,
        passed_on: HeaderMap,
    ) -> Result<Bytes, Failure> {
        let mut request = Request::post(self.uri.clone())
            .body(Full::new(question))
            .map_err(|_| Failure::broken("the request cannot be made"))?;
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        headers.extend(passed_on);
        let answer = self.client.request(request).await.map_err(|error| {
            if error.is_connect() {
                Failure::Absent
            } else {
                Failure::broken("the connection broke")
            }
        })?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => {
                return Err(Failure::broken("it redirects, which is not followed"));
            }
            status => return Err(Failure::Broken(format!("it answers {status}"))),
        }
        let body = Limited::new(answer.into_body(), self.answer_max_bytes);
        let body = body.collect().await;
        // Of the two, only the bound can be told from outside.
        let body = body.map_err(|_| Failure::broken("its answer is too long, or broke off"))?;
        Ok(body.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn keys() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../authz/tests/keys")
    }

    /// Answers a request a connection, as a host named localhost.
    async fn tls_server() -> u16 {
        let certificate = CertificateDer::from_pem_file(keys().join("tls.cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(keys().join("tls.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A handshake that is refused is what this test wants, too.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut head = [0; 4_096];
                if stream.read(&mut head).await.is_ok() {
                    let answer =
                        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
                    stream.write_all(answer).await.unwrap();
                }
            }
        });
        port
    }

    #[tokio::test]
    async fn tls_is_checked() {
        let port = tls_server().await;
        let ca = keys().join("tls.cert.pem");
        let ask = async |host: &str, ca: Option<&Path>| {
            let address = Address::parse(&format!("https://{host}:{port}/hook"), ca).unwrap();
            let service = HttpService::new(&address, &HeaderMap::new(), 1_024);
            let asked = service.ask(Bytes::from_static(b"{}"), HeaderMap::new());
            tokio::time::timeout(Duration::from_secs(20), asked)
                .await
                .unwrap()
        };
        assert_eq!(ask("localhost", Some(&ca)).await.unwrap(), "{}");
        // Another name than the certificate's, and an authority that is not trusted.
        assert_eq!(ask("127.0.0.1", Some(&ca)).await, Err(Failure::Absent));
        assert_eq!(ask("localhost", None).await, Err(Failure::Absent));
    }
}
