//! Knows: the public listener: accept, the WebSocket upgrade, origins, how many. Never: commands.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connection::{self, Edge};
use crate::origin::origin_is_allowed;
use crate::rate::{Bucket, Rate};
use crate::websocket;

/// For the request's headers, from when the socket is open.
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

/// The place of a socket among `client.connection_limit`, from accept to its end. Each request of the
/// socket carries it, so that the upgraded socket keeps it.
#[derive(Clone)]
struct Admitted {
    /// `None` where places are not counted.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

/// `/connection/websocket` of an edge; merge it into the public router.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/connection/websocket", any(upgrade))
        .with_state(edge)
}

/// Accepts sockets until `stop`, which does not end those that are open.
pub async fn serve(
    listener: TcpListener,
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
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let http = Arc::clone(&before_upgrade).try_acquire_owned().ok();
        let admitted = http
            .and_then(|http| Some((http, admit(places.as_ref())?)))
            .filter(|_| arrivals.take(rate, Instant::now()));
        let Some((http, admitted)) = admitted else {
            edge.metrics.connections_refused.add_one();
            if let Ok(permit) = Arc::clone(&refused).try_acquire_owned() {
                edge.tasks.spawn(refuse(socket, permit));
            }
            continue;
        };
        let router = TowerToHyperService::new(router.clone());
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(admitted.clone());
            router.call(request)
        });
        edge.tasks.spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .max_buf_size(HEADERS_MAX_BYTES)
                .serve_connection(TokioIo::new(socket), service)
                .with_upgrades()
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "http connection ended");
            }
            drop(http);
        });
    }
}

/// A place for one more socket, if there is one.
fn admit(places: Option<&Arc<Semaphore>>) -> Option<Admitted> {
    let place = match places {
        None => None,
        Some(places) => Some(Arc::new(Arc::clone(places).try_acquire_owned().ok()?)),
    };
    Some(Admitted { _place: place })
}

/// Over a limit: HTTP 503, so that a load balancer or a client tries elsewhere or later. What the peer
/// sends meanwhile is read and dropped, as a reset would overtake the answer.
async fn refuse(socket: TcpStream, _permit: OwnedSemaphorePermit) {
    let answer =
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
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
    let upgrade = hyper::upgrade::on(&mut request);
    let admitted = request.extensions_mut().remove::<Admitted>();
    let protocol = websocket::choose_protocol(request.headers());
    let passed_on = edge.hooks.of_request(request.headers()).map(Arc::new);
    let task_edge = Arc::clone(&edge);
    edge.tasks.spawn(async move {
        let edge = task_edge;
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "upgrade failed"),
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
            return tracing::error!("upgraded socket is not a TCP socket");
        };
        let socket = parts.io.into_inner();
        prepare(&socket, edge.settings.bounds.kernel_unsent_max_bytes);
        Box::pin(connection::run(edge, socket, parts.read_buf, passed_on)).await;
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

/// No delay for small frames, and a bound on what may lie unsent in the kernel.
fn prepare(socket: &TcpStream, unsent_max_bytes: u32) {
    let done = socket
        .set_nodelay(true)
        .and_then(|()| SockRef::from(socket).set_tcp_notsent_lowat(unsent_max_bytes));
    if let Err(error) = done {
        tracing::debug!(%error, "socket options not set");
    }
}
