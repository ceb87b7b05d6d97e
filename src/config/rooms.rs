//! Knows: the keys about rooms and what is kept of them: namespaces, logs, publishing, history, the archive. Never: who
//! connects.

use std::path::PathBuf;
use std::time::Duration;

use super::hooks::{ChannelProxies, NamespaceProxies};
use super::limits::RateLimit;

/// `[channel]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Channels {
    /// `[channel.proxy]`
    pub proxy: ChannelProxies,
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
    /// What names of rooms must match after the namespace; empty takes all.
    pub channel_regex: String,
    /// What a payload must be.
    pub publication_data_format: DataFormat,
    /// What the application is asked about.
    pub proxies: NamespaceProxies,
    /// Its rooms open at this process; 0 has no limit of its own. Beyond it: 111.
    pub room_limit: u32,
    /// How much all its rooms together take. Beyond it: 111.
    pub rate_limit: RateLimit,
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
            channel_regex: String::new(),
            publication_data_format: DataFormat::Json,
            proxies: NamespaceProxies::default(),
            room_limit: 0,
            rate_limit: RateLimit::default(),
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
