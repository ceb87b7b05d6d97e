//! Knows: addresses that the configuration names, and one GET of one, within bounds: no redirects, no proxies, no cookies, 64
//! KiB, 2 s. Never: tokens, keys, how often it is asked.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Of the whole answer.
const WITHIN: Duration = Duration::from_secs(2);
/// Of its body.
const BODY_MAX_BYTES: usize = 64 << 10;

/// An address that keys are fetched from, as the configuration names it. Nothing else makes one.
#[derive(Clone)]
pub struct Address {
    uri: Uri,
    host: String,
    port: u16,
    host_header: HeaderValue,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// Why a text is no address for keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not `https://…` or `http://…`.
    #[error("it is no URL of the form https://host/path")]
    Url,
    /// `https://user:password@…`.
    #[error("it holds a user or a password")]
    Credentials,
    /// `{{…}}` of Centrifugo's templates: an address that a claim would complete.
    #[error("it has a placeholder: a claim must never complete the address")]
    Template,
    /// The certificate authorities cannot be read.
    #[error("the certificate authorities cannot be read: {0}")]
    Authorities(String),
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.uri)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.uri)
    }
}

impl Address {
    /// Reads an address. `ca_file` (PEM) names the authorities to trust instead of this machine's.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse(url: &str, ca_file: Option<&Path>) -> Result<Self, AddressError> {
        if url.contains("{{") {
            return Err(AddressError::Template);
        }
        let uri: Uri = url.parse().map_err(|_| AddressError::Url)?;
        let (Some(authority), Some(host)) = (uri.authority(), uri.host()) else {
            return Err(AddressError::Url);
        };
        if authority.as_str().contains('@') {
            return Err(AddressError::Credentials);
        }
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(AddressError::Url),
        };
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let tls = if is_tls {
            let name = ServerName::try_from(host.clone()).map_err(|_| AddressError::Url)?;
            Some((client_config(ca_file)?, name))
        } else {
            None
        };
        Ok(Self {
            host_header: HeaderValue::from_str(authority.as_str())
                .map_err(|_| AddressError::Url)?,
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            host,
            uri,
            tls,
        })
    }

    /// The address itself.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// How its certificate is verified; `None` for plain HTTP.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref().map(|(config, _)| config)
    }

    /// Whether others on the way could read and change what comes: plain HTTP to another machine.
    #[must_use]
    pub fn is_open_to_others(&self) -> bool {
        let is_local = self.host == "localhost"
            || self
                .host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback());
        self.tls.is_none() && !is_local
    }

    /// Asks once. A redirect is a failure like any other answer that is not 200.
    ///
    /// # Errors
    /// A sentence for people, without anything that was answered.
    pub(super) async fn get(&self) -> Result<Bytes, String> {
        match tokio::time::timeout(WITHIN, self.ask()).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer within 2 s".to_owned()),
        }
    }

    async fn ask(&self) -> Result<Bytes, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| format!("no connection: {error}"))?;
        match &self.tls {
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(name.clone(), stream).await;
                let stream = stream.map_err(|error| format!("TLS: {error}"))?;
                Box::pin(self.exchange(stream)).await
            }
            None => Box::pin(self.exchange(stream)).await,
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Bytes, String> {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(HOST, &self.host_header)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("weir/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = async {
            let answer = sender.send_request(request).await;
            let answer = answer.map_err(|error| error.to_string())?;
            match answer.status() {
                StatusCode::OK => {}
                status if status.is_redirection() => {
                    return Err(format!(
                        "it answers {status}, and redirects are not followed"
                    ));
                }
                status => return Err(format!("it answers {status}")),
            }
            let body = Limited::new(answer.into_body(), BODY_MAX_BYTES)
                .collect()
                .await;
            let body = body.map_err(|error| format!("its answer (at most 64 KiB): {error}"))?;
            Ok(body.to_bytes())
        };
        // Both in this task, so that nothing of it outlives the time-out.
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        let mut is_open = true;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                ended = &mut connection, if is_open => {
                    is_open = false;
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection to the issuer's keys ended");
                    }
                }
            }
        }
    }
}

fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, AddressError> {
    let failed = |error: String| AddressError::Authorities(error);
    let mut roots = RootCertStore::empty();
    if let Some(file) = ca_file {
        let all = CertificateDer::pem_file_iter(file).map_err(|error| failed(error.to_string()))?;
        for one in all {
            let one = one.map_err(|error| failed(error.to_string()))?;
            roots.add(one).map_err(|error| failed(error.to_string()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err(failed("there is none".to_owned()));
    }
    // Named, as a program may have linked several.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?;
    Ok(Arc::new(
        builder.with_root_certificates(roots).with_no_client_auth(),
    ))
}
