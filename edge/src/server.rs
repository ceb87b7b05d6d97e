//! Knows: the public listener: accept, TLS, the WebSocket upgrade, origins, how many. Never: commands, where certificates
//! come from.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::address::{is_trusted, of_request};
use crate::connection::{self, Edge};
use crate::limits::SocketSeats;
use crate::origin::origin_is_allowed;
use crate::rate::{Bucket, Rate};
use crate::socket::Socket;
use crate::websocket;

/// For TLS and the request's headers, from when the socket is open.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of a request's headers.
const HEADERS_MAX_BYTES: usize = 16 << 10;
/// After an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Sockets at a time that have not upgraded, whatever the limit of connections; more are refused.
const HTTP_SOCKETS_MAX: usize = 10_000;
/// Refused sockets that are told so at a time; more are dropped.
const REFUSED_MAX: usize = 64;
/// For a refused peer to read why.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// A socket's places, from accept to its end. Each request of the socket carries them, so that the upgraded
/// socket keeps them.
#[derive(Clone)]
struct Admitted {
    peer: IpAddr,
    /// Among `client.connection_limit`; `None` where places are not counted.
    _place: Option<Arc<OwnedSemaphorePermit>>,
    /// Among its address's; `None` behind a trusted proxy until a request says whose it is.
    seats: Option<Arc<SocketSeats>>,
}

/// Why a socket is refused.
#[derive(Clone, Copy, Debug)]
enum Full {
    /// This edge has enough: another one, or later.
    Edge,
    /// The address has enough.
    Address,
}

/// `/connection/websocket` of an edge; merge it into the public router.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/connection/websocket", any(upgrade))
        .with_state(edge)
}

/// Accepts sockets until `stop`, which does not end those that are open. With `tls`, nothing else is spoken.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    edge: Arc<Edge>,
    stop: CancellationToken,
) {
    let per_s = edge.settings.client.connection_rate_limit_per_s;
    let rate = Rate {
        per_s,
        burst: per_s,
    };
    let mut arrivals = Bucket::full(rate, Instant::now());
    let refused = Arc::new(Semaphore::new(REFUSED_MAX));
    let before_upgrade = Arc::new(Semaphore::new(HTTP_SOCKETS_MAX));
    let limit = edge.settings.client.connection_limit;
    let places = (limit > 0).then(|| Arc::new(Semaphore::new(limit)));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok((socket, peer)) => (socket, peer.ip()),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let permit = Arc::clone(&before_upgrade).try_acquire_owned();
        let admitted = match permit {
            // Its own limit first: who comes too often costs the others none of theirs.
            Ok(permit) => admit(&edge, peer, places.as_ref()).and_then(|admitted| {
                let is_in_time = arrivals.take(rate, Instant::now());
                is_in_time.then_some((permit, admitted)).ok_or(Full::Edge)
            }),
            Err(_) => Err(Full::Edge),
        };
        let (permit, admitted) = match admitted {
            Ok(admitted) => admitted,
            Err(full) => {
                edge.metrics.connections_refused.add_one();
                // In the middle of a TLS handshake an answer would not be understood: it is only closed.
                if tls.is_none()
                    && let Ok(permit) = Arc::clone(&refused).try_acquire_owned()
                {
                    edge.tasks.spawn(refuse(socket, full, permit));
                }
                continue;
            }
        };
        let (router, tls) = (router.clone(), tls.clone());
        let metrics = Arc::clone(&edge.metrics);
        edge.tasks.spawn(async move {
            match tls {
                None => requests(socket, router, admitted, HEADERS_WITHIN).await,
                Some(tls) => {
                    let deadline = Instant::now() + HEADERS_WITHIN;
                    match timeout_at(deadline, Box::pin(tls.accept(socket))).await {
                        Ok(Ok(stream)) => {
                            let left = deadline.saturating_duration_since(Instant::now());
                            Box::pin(requests(stream, router, admitted, left)).await;
                        }
                        Ok(Err(error)) => {
                            metrics.tls_handshakes_failed.add_one();
                            tracing::debug!(%error, "tls handshake failed");
                        }
                        Err(_) => {
                            metrics.tls_handshakes_failed.add_one();
                            tracing::debug!("tls handshake took too long");
                        }
                    }
                }
            }
            drop(permit);
        });
    }
}

/// Answers the requests of one socket, until the last or the one that becomes a WebSocket.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    admitted: Admitted,
    headers_within: Duration,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(admitted.clone());
        router.call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(headers_within)
        .max_buf_size(HEADERS_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "http connection ended");
    }
}

/// The places for one more socket, if there are any.
fn admit(edge: &Edge, peer: IpAddr, places: Option<&Arc<Semaphore>>) -> Result<Admitted, Full> {
    let seats = if is_trusted(&edge.settings.limits.trusted_proxies, peer) {
        None
    } else {
        let seats = edge.limits.socket(peer, Instant::now());
        Some(Arc::new(seats.map_err(|_| Full::Address)?))
    };
    let place = match places.map(|places| Arc::clone(places).try_acquire_owned()) {
        None => None,
        Some(Ok(place)) => Some(Arc::new(place)),
        Some(Err(_)) => return Err(Full::Edge),
    };
    Ok(Admitted {
        peer,
        _place: place,
        seats,
    })
}

/// HTTP 503 over a limit of the edge, so that a load balancer or a client tries elsewhere or later; 429 over one of the
/// address. What the peer sends meanwhile is read and dropped, as a reset would overtake the answer.
async fn refuse(socket: TcpStream, full: Full, _permit: OwnedSemaphorePermit) {
    let answer: &[u8] = match full {
        Full::Edge => {
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        }
        Full::Address => {
            b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        }
    };
    let told = async {
        socket.writable().await?;
        socket.try_write(answer)?;
        SockRef::from(&socket).shutdown(std::net::Shutdown::Write)?;
        let mut sink = [0; 512];
        loop {
            socket.readable().await?;
            match socket.try_read(&mut sink) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err::<(), std::io::Error>(error),
            }
        }
    };
    if !matches!(tokio::time::timeout(REFUSED_WITHIN, told).await, Ok(Ok(()))) {
        tracing::debug!("refused socket went away");
    }
}

async fn upgrade(State(edge): State<Arc<Edge>>, mut request: Request) -> Response {
    let key = match websocket::check_upgrade(request.method(), request.headers()) {
        Ok(key) => key,
        Err(error) => {
            edge.metrics.connections_refused.add_one();
            let mut response = (StatusCode::BAD_REQUEST, error.to_string()).into_response();
            if !request.headers().contains_key(header::UPGRADE) {
                *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
                let headers = response.headers_mut();
                headers.insert(
                    header::UPGRADE,
                    header::HeaderValue::from_static("websocket"),
                );
            }
            return response;
        }
    };
    if !origin_is_allowed(&edge.settings.client.allowed_origins, request.headers()) {
        edge.metrics.connections_refused.add_one();
        let text = "origin not allowed; see client.allowed_origins";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    if edge.draining.is_cancelled() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let Some(mut admitted) = request.extensions_mut().remove::<Admitted>() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if admitted.seats.is_none() {
        let trusted = &edge.settings.limits.trusted_proxies;
        let address = of_request(trusted, admitted.peer, request.headers());
        match edge.limits.socket(address, Instant::now()) {
            Ok(seats) => admitted.seats = Some(Arc::new(seats)),
            Err(_) => {
                edge.metrics.connections_refused.add_one();
                return StatusCode::TOO_MANY_REQUESTS.into_response();
            }
        }
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let protocol = websocket::choose_protocol(request.headers());
    let passed_on = edge.hooks.of_request(request.headers()).map(Arc::new);
    let task_edge = Arc::clone(&edge);
    edge.tasks.spawn(async move {
        let edge = task_edge;
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "upgrade failed"),
        };
        let Some((socket, first)) = socket_of(upgraded) else {
            return tracing::error!("upgraded socket is neither TCP nor TLS");
        };
        prepare(socket.tcp(), edge.settings.bounds.kernel_unsent_max_bytes);
        let seats = admitted.seats.clone();
        Box::pin(connection::run(edge, socket, first, passed_on, seats)).await;
        drop(admitted);
    });
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_ACCEPT, websocket::accept_key(&key));
    if let Some(protocol) = protocol {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response
        .body(Body::empty())
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// The socket below HTTP, and what was read of it beyond the request.
fn socket_of(upgraded: Upgraded) -> Option<(Socket, Bytes)> {
    let upgraded = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => return Some((parts.io.into_inner().into(), parts.read_buf)),
        Err(upgraded) => upgraded,
    };
    let parts = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>().ok()?;
    let (tcp, session) = parts.io.into_inner().into_inner();
    Some((Socket::tls(tcp, session), parts.read_buf))
}

/// No delay for small frames, and a bound on what may lie unsent in the kernel.
fn prepare(socket: &TcpStream, unsent_max_bytes: u32) {
    let done = socket
        .set_nodelay(true)
        .and_then(|()| SockRef::from(socket).set_tcp_notsent_lowat(unsent_max_bytes));
    if let Err(error) = done {
        tracing::debug!(%error, "socket options not set");
    }
}
