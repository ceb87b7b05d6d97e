//! Knows: every key of Weir, its type, its unit and its default. Names and meanings are Centrifugo's where it has them.
//! Never: the types of other crates (`node.rs` builds those), a port, a socket.

mod load;
mod read;
mod rules;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use load::{ConfigErrors, Loaded};
pub use read::{Problem, Sources, parse_duration};
pub use tokens::{Issuer, SubscriptionToken, Token};

/// A secret: it prints as `***` and never reaches a log.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// No secret was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "***" })
    }
}

/// Everything that can be configured, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `data_dir`: where the archive, and with `weir up` the NATS store and its passwords, are kept.
    pub data_dir: PathBuf,
    /// `[log]`
    pub log: Log,
    /// `[http_server]`
    pub http_server: HttpServer,
    /// `[websocket]`
    pub websocket: WebSocket,
    /// `[client]`
    pub client: Client,
    /// `[channel]`
    pub channel: Channels,
    /// `[[logs]]`: where rooms are kept. Never empty.
    pub logs: Vec<LogOptions>,
    /// `[room]`
    pub room: Room,
    /// `[publish]`
    pub publish: Publish,
    /// `[history]`
    pub history: History,
    /// `[archive]`
    pub archive: Archive,
    /// `[rpc]`
    pub rpc: Rpc,
    /// `[door]`
    pub door: Door,
    /// `[nats]`
    pub nats: Nats,
    /// `[nats_server]`, of `weir up` only
    pub nats_server: NatsServer,
    /// `[shutdown]`
    pub shutdown: Shutdown,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            log: Log::default(),
            http_server: HttpServer::default(),
            websocket: WebSocket::default(),
            client: Client::default(),
            channel: Channels::default(),
            logs: vec![LogOptions::default()],
            room: Room::default(),
            publish: Publish::default(),
            history: History::default(),
            archive: Archive::default(),
            rpc: Rpc::default(),
            door: Door::default(),
            nats: Nats::default(),
            nats_server: NatsServer::default(),
            shutdown: Shutdown::default(),
        }
    }
}

impl Config {
    /// The archive's file; a relative path is inside the data folder.
    #[must_use]
    pub fn archive_path(&self) -> PathBuf {
        self.data_dir.join(&self.archive.path)
    }

    /// The options of a namespace; `None` asks for rooms without one. An unknown name has none.
    #[must_use]
    pub fn namespace(&self, name: Option<&str>) -> Option<&Namespace> {
        match name {
            None => Some(&self.channel.without_namespace),
            Some(name) => self
                .channel
                .namespaces
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, options)| options),
        }
    }
}

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

/// `[http_server]`: the two listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpServer {
    /// Address for clients.
    pub address: IpAddr,
    /// Port for clients; 0 takes a free one and prints it.
    pub port: u16,
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
            internal_address: LOOPBACK,
            internal_port: 8001,
        }
    }
}

/// `[websocket]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSocket {
    /// Largest frame a client may send, bytes.
    pub message_size_limit: usize,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            message_size_limit: 65_536,
        }
    }
}

/// `[client]`: what one connection may do and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Values of `Origin` that may connect: `*`, `https://example.com`, or `https://*.example.com` for
    /// every host below it. The page's own host always may.
    pub allowed_origins: Vec<String>,
    /// Everything is allowed to everyone. For trying things out.
    pub insecure: bool,
    /// A connect without a token makes an anonymous user.
    pub allow_anonymous_connect_without_token: bool,
    /// A token without a user is refused.
    pub disallow_anonymous_connection_tokens: bool,
    /// Subscriptions of one connection.
    pub channel_limit: u32,
    /// Connections of this process; 0 has no limit.
    pub connection_limit: u32,
    /// New sockets a second of this process; 0 has no limit. Beyond it: HTTP 503.
    pub connection_rate_limit: u32,
    /// Connections of one user with an id at this process; 0 has no limit. Beyond it: 3504.
    pub user_connection_limit: u32,
    /// Commands a second of one connection, on average; 0 has no limit.
    pub command_rate_limit: u32,
    /// Commands that one connection may send at once.
    pub command_burst: u32,
    /// Unsent bytes of one connection, beyond which it is slow: stored rooms wait, the rest is 3008.
    pub queue_max_size: usize,
    /// Between pings; whole seconds, 0 sends none.
    pub ping_interval: Duration,
    /// How long a pong may take, from when the ping was due.
    pub pong_timeout: Duration,
    /// How long a socket may stay without a successful connect.
    pub stale_close_delay: Duration,
    /// How long an expired connection has to refresh.
    pub expired_close_delay: Duration,
    /// How long an expired subscription has to refresh.
    pub expired_sub_close_delay: Duration,
    /// Publications of one history reply.
    pub history_max_publication_limit: u32,
    /// Publications of one recovery reply; a longer recovery goes on as pushes.
    pub recovery_max_publication_limit: u32,
    /// `[client.token]`
    pub token: Token,
    /// `[client.subscription_token]`
    pub subscription_token: SubscriptionToken,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            allowed_origins: Vec::new(),
            insecure: false,
            allow_anonymous_connect_without_token: false,
            disallow_anonymous_connection_tokens: false,
            channel_limit: 128,
            connection_limit: 0,
            connection_rate_limit: 0,
            user_connection_limit: 0,
            command_rate_limit: 500,
            command_burst: 1_000,
            queue_max_size: 1_048_576,
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(8),
            stale_close_delay: Duration::from_secs(10),
            expired_close_delay: Duration::from_secs(25),
            expired_sub_close_delay: Duration::from_secs(25),
            history_max_publication_limit: 300,
            recovery_max_publication_limit: 300,
            token: Token::default(),
            subscription_token: SubscriptionToken::default(),
        }
    }
}

/// `[channel]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Channels {
    /// `[channel.without_namespace]`: rooms whose name has no `ns:`.
    pub without_namespace: Namespace,
    /// `[[channel.namespaces]]`: name and options, in the order of the file.
    pub namespaces: Vec<(String, Namespace)>,
}

/// What a payload must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataFormat {
    /// Any JSON value.
    Json,
    /// A JSON object.
    JsonObject,
    /// Anything.
    Binary,
}

/// Options of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// The log (`[[logs]]`) that keeps its rooms.
    pub log: String,
    /// Newest messages of a room that history and recovery see: 0 stores none, -1 sees all that is kept.
    pub history_size: i64,
    /// Age beyond which history and recovery see no message; 0 sees all.
    pub history_ttl: Duration,
    /// Age at which the archive lets messages go; 0 keeps them for ever.
    pub archive_ttl: Duration,
    /// Every subscription is positioned.
    pub force_positioning: bool,
    /// Every subscription is recoverable.
    pub force_recovery: bool,
    /// A client may ask for positioning.
    pub allow_positioning: bool,
    /// A client may ask for recovery.
    pub allow_recovery: bool,
    /// Users with an id may subscribe without a grant of their own.
    pub allow_subscribe_for_client: bool,
    /// The right above holds for anonymous users too.
    pub allow_subscribe_for_anonymous: bool,
    /// Subscribers may publish.
    pub allow_publish_for_subscriber: bool,
    /// Users with an id may publish.
    pub allow_publish_for_client: bool,
    /// The rights above hold for anonymous users too.
    pub allow_publish_for_anonymous: bool,
    /// Subscribers may read history.
    pub allow_history_for_subscriber: bool,
    /// Users with an id may read history.
    pub allow_history_for_client: bool,
    /// The rights above hold for anonymous users too.
    pub allow_history_for_anonymous: bool,
    /// `room#user1,user2` is open to these users.
    pub allow_user_limited_channels: bool,
    /// What a payload must be.
    pub publication_data_format: DataFormat,
}

impl Default for Namespace {
    fn default() -> Self {
        Self {
            log: "rooms".into(),
            history_size: 0,
            history_ttl: Duration::ZERO,
            archive_ttl: Duration::ZERO,
            force_positioning: false,
            force_recovery: false,
            allow_positioning: false,
            allow_recovery: false,
            allow_subscribe_for_client: false,
            allow_subscribe_for_anonymous: false,
            allow_publish_for_subscriber: false,
            allow_publish_for_client: false,
            allow_publish_for_anonymous: false,
            allow_history_for_subscriber: false,
            allow_history_for_client: false,
            allow_history_for_anonymous: false,
            allow_user_limited_channels: false,
            publication_data_format: DataFormat::Json,
        }
    }
}

/// Where a stream keeps its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory: gone with the nats-server.
    Memory,
}

/// One of `[[logs]]`: retention, storage and replicas of many rooms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Its name; its streams are `<NAME>_<slot>`.
    pub name: String,
    /// Streams that share its 64 partitions.
    pub slots: u16,
    /// Age beyond which a stream drops messages; 0 keeps them.
    pub max_age: Duration,
    /// Bytes beyond which a stream drops its oldest; -1 has no limit.
    pub max_bytes: i64,
    /// Messages beyond which a stream drops its oldest; -1 has no limit.
    pub max_messages: i64,
    /// Disk or memory.
    pub storage: Storage,
    /// Copies in a NATS cluster: 1, 3 or 5.
    pub replicas: u8,
    /// How long a message id is remembered.
    pub duplicate_window: Duration,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            name: "rooms".into(),
            slots: 1,
            max_age: Duration::from_secs(72 * 3_600),
            max_bytes: -1,
            max_messages: -1,
            storage: Storage::File,
            replicas: 1,
            duplicate_window: Duration::from_secs(120),
        }
    }
}

/// `[room]`: rooms that this process serves now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Rooms with a subscriber here.
    pub limit: u32,
    /// Newest messages of a room kept in memory, so that a reconnect storm reads nothing.
    pub ring_size: u32,
    /// Bytes of that ring, of one room.
    pub ring_max_size: usize,
    /// How long a room without subscribers keeps its ring.
    pub idle_timeout: Duration,
    /// Between looks for live messages that never came.
    pub sweep_interval: Duration,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            limit: 100_000,
            ring_size: 128,
            ring_max_size: 262_144,
            idle_timeout: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(4),
        }
    }
}

/// `[publish]`: what waits for a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Bytes that wait for one stream; beyond it error 111.
    pub queue_max_size: usize,
    /// Expected wait beyond which a publish is refused with error 111.
    pub queue_max_wait: Duration,
    /// Messages of one atomic batch.
    pub batch_size: u16,
}

impl Default for Publish {
    fn default() -> Self {
        Self {
            queue_max_size: 33_554_432,
            queue_max_wait: Duration::from_secs(3),
            batch_size: 1_000,
        }
    }
}

/// `[history]`: reading back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Payload bytes of one page, and of one reply to a socket.
    pub page_max_size: usize,
    /// Bytes of the page cache.
    pub cache_max_size: u64,
    /// Deep reads of streams at a time; each holds up the writers of its stream.
    pub stream_reads: u16,
}

impl Default for History {
    fn default() -> Self {
        Self {
            page_max_size: 262_144,
            cache_max_size: 67_108_864,
            stream_reads: 4,
        }
    }
}

/// Which archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// One file on this machine.
    Sqlite,
    /// A keyspace in a Cassandra cluster.
    Cassandra,
}

/// `[archive]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Which archive.
    pub kind: ArchiveKind,
    /// SQLite: its file; relative to the data folder.
    pub path: PathBuf,
    /// Cassandra: `host:port` of some nodes.
    pub nodes: Vec<String>,
    /// Cassandra: the keyspace.
    pub keyspace: String,
    /// Cassandra: copies of each row, where the keyspace is created.
    pub replication_factor: u8,
    /// Cassandra: the data centre to talk to; empty: any.
    pub datacenter: String,
    /// Cassandra: the user; empty: none.
    pub user: String,
    /// Cassandra: a file with its password.
    pub password_file: PathBuf,
    /// Cassandra: speak TLS.
    pub tls: bool,
    /// Cassandra: certificate authorities (PEM); empty: those of this machine.
    pub tls_ca_file: PathBuf,
    /// Cassandra: our certificate chain and key (PEM), where nodes ask for one.
    pub tls_cert_file: PathBuf,
    /// See `tls_cert_file`.
    pub tls_key_file: PathBuf,
    /// How far the archive may be behind the log. A log that keeps messages for less is refused.
    pub allowed_lag: Duration,
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            kind: ArchiveKind::Sqlite,
            path: PathBuf::from("archive.db"),
            nodes: vec!["127.0.0.1:9042".to_owned()],
            keyspace: "weir".to_owned(),
            replication_factor: 3,
            datacenter: String::new(),
            user: String::new(),
            password_file: PathBuf::new(),
            tls: false,
            tls_ca_file: PathBuf::new(),
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
            allowed_lag: Duration::from_secs(3_600),
        }
    }
}

/// `[rpc]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rpc {
    /// How long a service may take; SDKs give up at 5 s.
    pub timeout: Duration,
    /// Calls, and reads of history, of one connection that wait for their answer.
    pub in_flight_limit: u32,
}

impl Default for Rpc {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(4),
            in_flight_limit: 32,
        }
    }
}

/// `[door]`: requests of bots and devices on `say.…` and `history.…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// Largest payload of a publish, bytes.
    pub message_size_limit: usize,
    /// Requests a second of one user, on average; 0 has no limit.
    pub rate_limit: u32,
    /// Requests that one user may send at once.
    pub burst: u32,
    /// Publishes of all users that wait for their answer.
    pub in_flight_limit: u32,
    /// Users whose rate is remembered.
    pub users_limit: u32,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            message_size_limit: 65_536,
            rate_limit: 1_000,
            burst: 2_000,
            in_flight_limit: 4_096,
            users_limit: 100_000,
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
    /// `[nats.live]`: publishes, subscribes to rooms, administers streams.
    pub live: NatsUser,
    /// `[nats.reads]`: reads streams.
    pub reads: NatsUser,
    /// `[nats.door]`: answers bots, and may publish nothing but answers.
    pub door: NatsUser,
    /// `[nats.system]`: a user of the system account, for `weir check` only.
    pub system: NatsUser,
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
            live: user("weir"),
            reads: user("weir_read"),
            door: user("weir_door"),
            system: user("sys"),
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

/// The demo configuration of `weir up` without `--config`: an open namespace `chat`.
pub const DEMO: &str = include_str!("../../deploy/weir-demo.toml");

/// Where a process looks for its configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigFile<'a> {
    /// This file.
    At(&'a Path),
    /// The embedded demo.
    Demo,
    /// No file: defaults, environment and flags.
    None,
}
