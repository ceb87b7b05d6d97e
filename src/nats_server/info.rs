//! Knows: the first line that a NATS server says, and so who answers on a port.
//! Never: logs in; other talk with NATS is weir-nats'.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Info {
    /// Its configured name.
    #[serde(default)]
    pub server_name: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// JetStream is on.
    #[serde(default)]
    pub jetstream: bool,
}

/// Who answers on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nobody.
    Nobody,
    /// A NATS server.
    Nats(Info),
    /// Something else: the start of what it said, escaped; empty if it said nothing.
    Other(String),
}

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const INFO_TIMEOUT: Duration = Duration::from_secs(1);
const INFO_MAX_BYTES: usize = 65_536;
const SHOWN_MAX_CHARS: usize = 60;

/// Where to reach a listener that is bound to `address`.
#[must_use]
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Asks who answers.
pub async fn who_answers(address: SocketAddr) -> Answer {
    let Ok(Ok(mut stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(reachable(address))).await
    else {
        return Answer::Nobody;
    };
    let mut line = Vec::new();
    let read = async {
        let mut part = [0_u8; 4_096];
        while line.len() < INFO_MAX_BYTES && !line.contains(&b'\n') {
            match stream.read(&mut part).await {
                Ok(0) | Err(_) => break,
                Ok(n) => line.extend_from_slice(part.get(..n).unwrap_or_default()),
            }
        }
    };
    // Silence until then is an answer too: of something that waits for us to speak.
    let silent = timeout(INFO_TIMEOUT, read).await.is_err();
    let text = String::from_utf8_lossy(&line);
    let first = text.lines().next().unwrap_or_default();
    match first.strip_prefix("INFO ").map(serde_json::from_str) {
        Some(Ok(info)) => Answer::Nats(info),
        _ if silent && line.is_empty() => Answer::Other(String::new()),
        _ => Answer::Other(
            first
                .chars()
                .take(SHOWN_MAX_CHARS)
                .flat_map(char::escape_debug)
                .collect(),
        ),
    }
}
