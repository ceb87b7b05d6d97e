//! Knows: which key of the sources fills which field, and within what bounds.
//! Never: relations between keys (`rules.rs`), where the text came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use weir_authz::ChannelRegex;

use super::read::{Reader, Section};
use super::{
    Archive, ArchiveKind, Channels, Client, Config, ConfigFile, DEMO, DataFormat, Door, History,
    HttpServer, Log, LogFormat, LogOptions, Namespace, Nats, NatsServer, NatsUser, Problem,
    Publish, Room, Rpc, Secret, ServerTls, Shutdown, Sources, Storage, WebSocket, limits, rules,
    tokens,
};
use crate::tls::Certificate;

/// Everything that is wrong with a configuration. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A configuration that passed every check.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Allowed, but probably not meant.
    pub warnings: Vec<String>,
    /// The file's name, for messages.
    pub file_name: String,
    /// Keys that were given (not left at their default) → where.
    pub given: BTreeMap<String, String>,
    /// Every key that exists.
    pub keys: Vec<String>,
}

impl Sources {
    /// The sources of this process: a file, the environment, and flags.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_process(
        file: &ConfigFile<'_>,
        sets: Vec<(String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let file = match file {
            ConfigFile::None => None,
            ConfigFile::Demo => Some(("weir-demo.toml (built in)".to_owned(), DEMO.to_owned())),
            ConfigFile::At(path) => match std::fs::read_to_string(path) {
                Ok(text) => Some((path.display().to_string(), text)),
                Err(error) => {
                    return Err(ConfigErrors(vec![Problem {
                        at: path.display().to_string(),
                        key: String::new(),
                        what: format!("cannot be read: {error}"),
                        remedy: "give an existing file with --config".into(),
                    }]));
                }
            },
        };
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(Self { file, env, sets })
    }
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Every problem found, each with its place and its remedy.
    pub fn load(sources: Sources) -> Result<Loaded, ConfigErrors> {
        let mut reader = Reader::new(sources);
        let config = read_config(&mut reader.root());
        let finished = reader.finish();
        let mut problems = finished.problems;
        let mut warnings = finished.warnings;
        rules::check(
            &config,
            &finished.origins,
            &finished.file_name,
            &mut problems,
            &mut warnings,
        );
        if !problems.is_empty() {
            problems.sort_by(|a, b| place(&a.at).cmp(&place(&b.at)));
            return Err(ConfigErrors(problems));
        }
        Ok(Loaded {
            config,
            warnings,
            file_name: finished.file_name,
            given: finished.origins,
            keys: finished.asked.into_iter().collect(),
        })
    }
}

/// Sorts `weir.toml:9` before `weir.toml:12`.
fn place(at: &str) -> (&str, usize) {
    match at.rsplit_once(':').map(|(file, line)| (file, line.parse())) {
        Some((file, Ok(line))) => (file, line),
        _ => (at, 0),
    }
}

/// Payloads and pages must fit into NATS' `max_payload` of 1 MiB with their headers.
pub(super) const MESSAGE_SIZE_MAX: usize = 524_288;
/// A page has more beside its payloads than a message.
const PAGE_SIZE_MAX: usize = weir_history::service::PAGE_MAX_BYTES as usize;

fn read_config(root: &mut Section<'_>) -> Config {
    let d = Config::default();
    Config {
        data_dir: PathBuf::from(root.string("data_dir", &d.data_dir.to_string_lossy())),
        log: read_log(&mut root.section("log")),
        http_server: read_http_server(&mut root.section("http_server")),
        websocket: WebSocket {
            message_size_limit: root.section("websocket").int(
                "message_size_limit",
                d.websocket.message_size_limit,
                1_024..=MESSAGE_SIZE_MAX,
            ),
        },
        client: read_client(&mut root.section("client")),
        channel: read_channels(&mut root.section("channel")),
        logs: root.list("logs", read_log_options).unwrap_or(d.logs),
        room: read_room(&mut root.section("room")),
        publish: read_publish(&mut root.section("publish")),
        history: read_history(&mut root.section("history")),
        archive: read_archive(&mut root.section("archive")),
        rpc: read_rpc(&mut root.section("rpc")),
        door: read_door(&mut root.section("door")),
        nats: read_nats(&mut root.section("nats")),
        auth_callout: tokens::read_callout(&mut root.section("auth_callout")),
        nats_server: read_nats_server(&mut root.section("nats_server")),
        shutdown: read_shutdown(&mut root.section("shutdown")),
    }
}

fn read_log(s: &mut Section<'_>) -> Log {
    let d = Log::default();
    let formats = [
        ("auto", LogFormat::Auto),
        ("pretty", LogFormat::Pretty),
        ("json", LogFormat::Json),
    ];
    Log {
        level: s.string("level", &d.level),
        format: s.choice("format", d.format, &formats),
    }
}

fn read_http_server(s: &mut Section<'_>) -> HttpServer {
    let d = HttpServer::default();
    HttpServer {
        address: s.ip("address", d.address),
        port: s.int("port", d.port, 0..=u16::MAX),
        tls: read_server_tls(&mut s.section("tls")),
        trusted_proxies: read_trusted_proxies(s),
        internal_address: s.ip("internal_address", d.internal_address),
        internal_port: s.int("internal_port", d.internal_port, 0..=u16::MAX),
    }
}

fn read_client(s: &mut Section<'_>) -> Client {
    let d = Client::default();
    Client {
        allowed_origins: s.strings("allowed_origins", &d.allowed_origins),
        insecure: s.bool("insecure", d.insecure),
        allow_anonymous_connect_without_token: s.bool(
            "allow_anonymous_connect_without_token",
            d.allow_anonymous_connect_without_token,
        ),
        disallow_anonymous_connection_tokens: s.bool(
            "disallow_anonymous_connection_tokens",
            d.disallow_anonymous_connection_tokens,
        ),
        channel_limit: s.int("channel_limit", d.channel_limit, 1..=100_000),
        connection_limit: s.int("connection_limit", d.connection_limit, 0..=10_000_000),
        connection_rate_limit: s.int(
            "connection_rate_limit",
            d.connection_rate_limit,
            0..=1_000_000,
        ),
        user_connection_limit: s.int(
            "user_connection_limit",
            d.user_connection_limit,
            0..=1_000_000,
        ),
        user_channel_limit: s.int("user_channel_limit", d.user_channel_limit, 0..=100_000_000),
        address_connection_limit: s.int(
            "address_connection_limit",
            d.address_connection_limit,
            0..=10_000_000,
        ),
        address_half_open_limit: s.int(
            "address_half_open_limit",
            d.address_half_open_limit,
            0..=10_000_000,
        ),
        command_rate_limit: s.int("command_rate_limit", d.command_rate_limit, 0..=1_000_000),
        command_burst: s.int("command_burst", d.command_burst, 0..=1_000_000),
        queue_max_size: s.int("queue_max_size", d.queue_max_size, 65_536..=1_073_741_824),
        ping_interval: s.duration("ping_interval", d.ping_interval),
        pong_timeout: s.duration("pong_timeout", d.pong_timeout),
        stale_close_delay: s.duration("stale_close_delay", d.stale_close_delay),
        expired_close_delay: s.duration("expired_close_delay", d.expired_close_delay),
        expired_sub_close_delay: s.duration("expired_sub_close_delay", d.expired_sub_close_delay),
        history_max_publication_limit: s.int(
            "history_max_publication_limit",
            d.history_max_publication_limit,
            1..=10_000,
        ),
        recovery_max_publication_limit: s.int(
            "recovery_max_publication_limit",
            d.recovery_max_publication_limit,
            1..=10_000,
        ),
        rate_limit: limits::read_rate_limits(&mut s.section("rate_limit")),
        token: tokens::read_token(&mut s.section("token")),
        subscription_token: tokens::read_subscription_token(&mut s.section("subscription_token")),
    }
}

fn read_channels(s: &mut Section<'_>) -> Channels {
    Channels {
        without_namespace: read_namespace(&mut s.section("without_namespace")),
        namespaces: s
            .list("namespaces", |name, table| (name, read_namespace(table)))
            .unwrap_or_default(),
    }
}

fn read_namespace(s: &mut Section<'_>) -> Namespace {
    let d = Namespace::default();
    let formats = [
        ("json", DataFormat::Json),
        ("json_object", DataFormat::JsonObject),
        ("binary", DataFormat::Binary),
    ];
    let later = [
        "presence",
        "allow_presence_for_subscriber",
        "allow_presence_for_client",
        "allow_presence_for_anonymous",
        "join_leave",
        "force_push_join_leave",
    ];
    for later in later {
        s.not_yet(later);
    }
    Namespace {
        log: s.string("log", &d.log),
        history_size: s.int("history_size", d.history_size, -1..=1_000_000_000),
        history_ttl: s.duration("history_ttl", d.history_ttl),
        archive_ttl: s.duration("archive_ttl", d.archive_ttl),
        force_positioning: s.bool("force_positioning", d.force_positioning),
        force_recovery: s.bool("force_recovery", d.force_recovery),
        allow_positioning: s.bool("allow_positioning", d.allow_positioning),
        allow_recovery: s.bool("allow_recovery", d.allow_recovery),
        allow_subscribe_for_client: s
            .bool("allow_subscribe_for_client", d.allow_subscribe_for_client),
        allow_subscribe_for_anonymous: s.bool(
            "allow_subscribe_for_anonymous",
            d.allow_subscribe_for_anonymous,
        ),
        allow_publish_for_subscriber: s.bool(
            "allow_publish_for_subscriber",
            d.allow_publish_for_subscriber,
        ),
        allow_publish_for_client: s.bool("allow_publish_for_client", d.allow_publish_for_client),
        allow_publish_for_anonymous: s
            .bool("allow_publish_for_anonymous", d.allow_publish_for_anonymous),
        allow_history_for_subscriber: s.bool(
            "allow_history_for_subscriber",
            d.allow_history_for_subscriber,
        ),
        allow_history_for_client: s.bool("allow_history_for_client", d.allow_history_for_client),
        allow_history_for_anonymous: s
            .bool("allow_history_for_anonymous", d.allow_history_for_anonymous),
        allow_user_limited_channels: s
            .bool("allow_user_limited_channels", d.allow_user_limited_channels),
        channel_regex: read_channel_regex(s),
        publication_data_format: s.choice(
            "publication_data_format",
            d.publication_data_format,
            &formats,
        ),
        room_limit: s.int("room_limit", d.room_limit, 0..=1_000_000),
        rate_limit: limits::read_rate_limit(&mut s.section("rate_limit"), limits::Of::Namespace),
    }
}

fn read_server_tls(s: &mut Section<'_>) -> ServerTls {
    let tls = ServerTls {
        enabled: s.bool("enabled", false),
        cert_pem_file: PathBuf::from(s.string("cert_pem_file", "")),
        key_pem_file: PathBuf::from(s.string("key_pem_file", "")),
    };
    if tls.enabled
        && let Err(error) = Certificate::open(&tls.cert_pem_file, &tls.key_pem_file)
    {
        s.refuse(
            "cert_pem_file",
            error.to_string(),
            "name the certificate chain and the key in PEM, which this user may read",
        );
    }
    tls
}

fn read_trusted_proxies(s: &mut Section<'_>) -> Vec<String> {
    let networks = s.strings("trusted_proxies", &[]);
    for network in &networks {
        if weir_edge::address::parse_network(network).is_none() {
            s.refuse(
                "trusted_proxies",
                format!("{network:?} is no address and no network"),
                "write \"10.0.0.7\" or \"10.0.0.0/8\"",
            );
        }
    }
    networks
}

fn read_channel_regex(s: &mut Section<'_>) -> String {
    let text = s.string("channel_regex", "");
    if let Err(error) = ChannelRegex::parse(&text) {
        let what = format!("it is no regular expression: {error}");
        s.refuse("channel_regex", what, "write one such as \"^[0-9]+$\"");
        return String::new();
    }
    text
}

fn read_log_options(name: String, s: &mut Section<'_>) -> LogOptions {
    let d = LogOptions::default();
    let storages = [("file", Storage::File), ("memory", Storage::Memory)];
    LogOptions {
        name,
        slots: s.int("slots", d.slots, 1..=64),
        max_age: s.duration("max_age", d.max_age),
        max_bytes: s.int("max_bytes", d.max_bytes, -1..=i64::MAX),
        max_messages: s.int("max_messages", d.max_messages, -1..=i64::MAX),
        storage: s.choice("storage", d.storage, &storages),
        replicas: s.int("replicas", d.replicas, 1..=5),
        duplicate_window: s.duration("duplicate_window", d.duplicate_window),
    }
}

fn read_room(s: &mut Section<'_>) -> Room {
    let d = Room::default();
    Room {
        limit: s.int("limit", d.limit, 1..=1_000_000),
        ring_size: s.int("ring_size", d.ring_size, 0..=10_000),
        ring_max_size: s.int("ring_max_size", d.ring_max_size, 0..=1_073_741_824),
        idle_timeout: s.duration("idle_timeout", d.idle_timeout),
        sweep_interval: s.duration("sweep_interval", d.sweep_interval),
    }
}

fn read_publish(s: &mut Section<'_>) -> Publish {
    let d = Publish::default();
    Publish {
        queue_max_size: s.int(
            "queue_max_size",
            d.queue_max_size,
            1_048_576..=1_073_741_824,
        ),
        queue_max_wait: s.duration("queue_max_wait", d.queue_max_wait),
        batch_size: s.int("batch_size", d.batch_size, 1..=1_000),
    }
}

fn read_history(s: &mut Section<'_>) -> History {
    let d = History::default();
    History {
        page_max_size: s.int("page_max_size", d.page_max_size, 65_536..=PAGE_SIZE_MAX),
        cache_max_size: s.int("cache_max_size", d.cache_max_size, 0..=68_719_476_736),
        stream_reads: s.int("stream_reads", d.stream_reads, 1..=64),
    }
}

fn read_archive(s: &mut Section<'_>) -> Archive {
    let d = Archive::default();
    Archive {
        kind: s.choice(
            "kind",
            d.kind,
            &[
                ("sqlite", ArchiveKind::Sqlite),
                ("cassandra", ArchiveKind::Cassandra),
            ],
        ),
        path: PathBuf::from(s.string("path", &d.path.to_string_lossy())),
        nodes: s.strings("nodes", &d.nodes),
        keyspace: s.string("keyspace", &d.keyspace),
        replication_factor: s.int("replication_factor", d.replication_factor, 1..=16),
        datacenter: s.string("datacenter", &d.datacenter),
        user: s.string("user", &d.user),
        password_file: PathBuf::from(s.string("password_file", "")),
        tls: s.bool("tls", d.tls),
        tls_ca_file: PathBuf::from(s.string("tls_ca_file", "")),
        tls_cert_file: PathBuf::from(s.string("tls_cert_file", "")),
        tls_key_file: PathBuf::from(s.string("tls_key_file", "")),
        allowed_lag: s.duration("allowed_lag", d.allowed_lag),
    }
}

fn read_rpc(s: &mut Section<'_>) -> Rpc {
    let d = Rpc::default();
    Rpc {
        timeout: s.duration("timeout", d.timeout),
        in_flight_limit: s.int("in_flight_limit", d.in_flight_limit, 1..=10_000),
    }
}

fn read_door(s: &mut Section<'_>) -> Door {
    let d = Door::default();
    Door {
        message_size_limit: s.int(
            "message_size_limit",
            d.message_size_limit,
            1..=MESSAGE_SIZE_MAX,
        ),
        rate_limit: s.int("rate_limit", d.rate_limit, 0..=1_000_000),
        burst: s.int("burst", d.burst, 1..=1_000_000),
        in_flight_limit: s.int("in_flight_limit", d.in_flight_limit, 1..=1_000_000),
        users_limit: s.int("users_limit", d.users_limit, 1..=10_000_000),
    }
}

fn read_nats(s: &mut Section<'_>) -> Nats {
    let d = Nats::default();
    Nats {
        url: s.string("url", &d.url),
        request_timeout: s.duration("request_timeout", d.request_timeout),
        ping_interval: s.duration("ping_interval", d.ping_interval),
        tls: s.bool("tls", d.tls),
        tls_ca_file: PathBuf::from(s.string("tls_ca_file", "")),
        tls_cert_file: PathBuf::from(s.string("tls_cert_file", "")),
        tls_key_file: PathBuf::from(s.string("tls_key_file", "")),
        live: read_nats_user(&mut s.section("live"), &d.live),
        reads: read_nats_user(&mut s.section("reads"), &d.reads),
        door: read_nats_user(&mut s.section("door"), &d.door),
        system: read_nats_user(&mut s.section("system"), &d.system),
        auth: read_nats_user(&mut s.section("auth"), &d.auth),
        kick: read_nats_user(&mut s.section("kick"), &d.kick),
    }
}

fn read_nats_user(s: &mut Section<'_>, d: &NatsUser) -> NatsUser {
    NatsUser {
        user: s.string("user", &d.user),
        password: Secret::new(tokens::text_or_file(s, "password")),
    }
}

fn read_nats_server(s: &mut Section<'_>) -> NatsServer {
    let d = NatsServer::default();
    NatsServer {
        path: PathBuf::from(s.string("path", &d.path.to_string_lossy())),
        address: s.ip("address", d.address),
        port: s.int("port", d.port, 1..=u16::MAX),
        mqtt_port: s.int("mqtt_port", d.mqtt_port, 1..=u16::MAX),
        demo_users: s.bool("demo_users", d.demo_users),
    }
}

fn read_shutdown(s: &mut Section<'_>) -> Shutdown {
    let d = Shutdown::default();
    Shutdown {
        timeout: s.duration("timeout", d.timeout),
        spread: s.duration("spread", d.spread),
    }
}
