//! Knows: the keys about the process: its log lines, its listeners, its NATS, its end. Never: rooms, clients.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::Secret;

/// The NATS user of whoever operates Weir: the one that may ask for answers outside of its own inboxes.
pub const OPERATOR: &str = "ops";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Readable on a terminal, JSON otherwise.
    Auto,
    /// One readable line an event.
    Pretty,
    /// One JSON object an event.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level or a filter such as `info,weir_edge=debug`; the variable `WEIR_LOG` wins.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Auto,
        }
    }
}

/// `[http_server.tls]`: of the listener for clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerTls {
    /// Clients are spoken to under TLS only.
    pub enabled: bool,
    /// Certificate chain (PEM).
    pub cert_pem_file: PathBuf,
    /// Its key (PEM).
    pub key_pem_file: PathBuf,
}

/// `[http_server]`: the two listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpServer {
    /// Address for clients.
    pub address: IpAddr,
    /// Port for clients; 0 takes a free one and prints it.
    pub port: u16,
    /// `[http_server.tls]`
    pub tls: ServerTls,
    /// Addresses and networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<String>,
    /// Address of health, readiness and metrics.
    pub internal_address: IpAddr,
    /// Port of health, readiness and metrics; 0 takes a free one.
    pub internal_port: u16,
}

impl HttpServer {
    /// Where clients connect.
    #[must_use]
    pub const fn public(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Where operators look.
    #[must_use]
    pub const fn internal(&self) -> SocketAddr {
        SocketAddr::new(self.internal_address, self.internal_port)
    }
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Default for HttpServer {
    fn default() -> Self {
        Self {
            address: LOOPBACK,
            port: 8000,
            tls: ServerTls::default(),
            trusted_proxies: Vec::new(),
            internal_address: LOOPBACK,
            internal_port: 8001,
        }
    }
}

/// A NATS user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsUser {
    /// Its name.
    pub user: String,
    /// Its password; `weir up` makes and keeps them itself.
    pub password: Secret,
}

/// `[nats]`: the NATS to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nats {
    /// Servers, separated by commas; `weir up` uses its own.
    pub url: String,
    /// How long a read of a stream or another request may take.
    pub request_timeout: Duration,
    /// Between pings of a connection.
    pub ping_interval: Duration,
    /// TLS is asked for, whatever the address says.
    pub tls: bool,
    /// Certificate authorities (PEM); empty: those of this machine.
    pub tls_ca_file: PathBuf,
    /// Our own certificate and key (PEM), where servers ask for one.
    pub tls_cert_file: PathBuf,
    /// Its key.
    pub tls_key_file: PathBuf,
    /// `[nats.live]`: publishes, subscribes to rooms, administers streams.
    pub live: NatsUser,
    /// `[nats.reads]`: reads streams.
    pub reads: NatsUser,
    /// `[nats.door]`: answers bots, and may publish nothing but answers.
    pub door: NatsUser,
    /// `[nats.system]`: a user of the system account, for `weir check` only.
    pub system: NatsUser,
    /// `[nats.auth]`: answers the auth callout, in an account of its own.
    pub auth: NatsUser,
    /// `[nats.kick]`: lists and ends connections, in the system account, and nothing else there.
    pub kick: NatsUser,
}

impl Default for Nats {
    fn default() -> Self {
        let user = |name: &str| NatsUser {
            user: name.to_owned(),
            password: Secret::default(),
        };
        Self {
            url: "nats://127.0.0.1:4222".into(),
            request_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(5),
            tls: false,
            tls_ca_file: PathBuf::new(),
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
            live: user("weir"),
            reads: user("weir_read"),
            door: user("weir_door"),
            system: user("sys"),
            auth: user("weir_auth"),
            kick: user("weir_kick"),
        }
    }
}

/// `[nats_server]`: the nats-server that `weir up` starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsServer {
    /// The program; empty looks at `WEIR_NATS_SERVER`, `PATH` and `.tools/bin`.
    pub path: PathBuf,
    /// Address of NATS and MQTT.
    pub address: IpAddr,
    /// Port of NATS.
    pub port: u16,
    /// Port of MQTT.
    pub mqtt_port: u16,
    /// The users `ops`, `bot` and `dev1` have their name as password; else a random one, kept in the data folder.
    pub demo_users: bool,
}

impl Default for NatsServer {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            address: LOOPBACK,
            port: 4222,
            mqtt_port: 1883,
            demo_users: true,
        }
    }
}

/// `[shutdown]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// How long closing may take before it is cut short.
    pub timeout: Duration,
    /// Over how long clients are sent away, so that they do not come back all at once.
    pub spread: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            spread: Duration::from_secs(1),
        }
    }
}
