//! Knows: the public listener: accept, the WebSocket upgrade, origins, how many. Never: commands.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::connection::{self, Edge};
use crate::websocket;

/// For the request's headers, from when the socket is open.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of a request's headers.
const HEADERS_MAX_BYTES: usize = 16 << 10;
/// After an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
        let limit = edge.settings.client.connection_limit;
        if limit > 0 && edge.metrics.connections.value() >= i64::try_from(limit).unwrap_or(i64::MAX)
        {
            edge.metrics.connections_refused.add_one();
            edge.tasks.spawn(refuse(socket));
            continue;
        }
        let service = TowerToHyperService::new(router.clone());
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
        });
    }
}

/// Over the limit: HTTP 503, so that a load balancer or a client tries elsewhere or later.
async fn refuse(socket: TcpStream) {
    let answer =
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    if socket.writable().await.is_ok() && socket.try_write(answer).is_err() {
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
    let protocol = websocket::choose_protocol(request.headers());
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
        Box::pin(connection::run(edge, socket, parts.read_buf)).await;
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

/// Exact scheme, host and port, no suffixes, `null` only if listed. Without a list the origin's host
/// must be the one asked for. Without an `Origin` header it is no browser, and no cookie is read.
#[must_use]
pub fn origin_is_allowed(allowed: &[String], headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    if allowed
        .iter()
        .any(|one| one == "*" || one.eq_ignore_ascii_case(origin))
    {
        return true;
    }
    if !allowed.is_empty() {
        return false;
    }
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let of_origin = origin.split_once("://").map(|(_, rest)| rest);
    matches!((host, of_origin), (Some(host), Some(of)) if host.eq_ignore_ascii_case(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allowed: &[&str], origin: &str, host: &str) -> bool {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if !origin.is_empty() {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        origin_is_allowed(&allowed, &headers)
    }

    #[test]
    fn origins() {
        assert!(check(&[], "", "h:8000"));
        assert!(check(&[], "http://h:8000", "h:8000"));
        assert!(check(&[], "http://H:8000", "h:8000"));
        assert!(!check(&[], "http://h", "h:8000"));
        assert!(!check(&[], "null", "h:8000"));
        assert!(!check(&[], "https://h.evil.com", "h"));
        assert!(check(
            &["https://app.example.com"],
            "https://app.example.com",
            "h"
        ));
        assert!(!check(
            &["https://app.example.com"],
            "https://app.example.com.evil.com",
            "h"
        ));
        assert!(!check(
            &["https://app.example.com"],
            "http://app.example.com",
            "h"
        ));
        assert!(!check(
            &["https://app.example.com"],
            "https://app.example.com:444",
            "h"
        ));
        assert!(!check(&["https://app.example.com"], "http://h", "h"));
        assert!(check(&["*"], "null", "h"));
    }
}
