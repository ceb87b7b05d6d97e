//! Knows: which values contradict each other, and which are allowed but probably not meant.
//! Never: where a value is read from, or what is reachable (`check.rs` asks NATS).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weir_history::read::WINDOW_MAX_MESSAGES;

use super::{Archive, ArchiveKind, Config, Namespace, Problem};

/// Names of streams and buckets that are not logs.
const RESERVED_LOGS: [&str; 4] = ["weir", "kv", "obj", "mqtt"];
/// SDKs give up on a command after this long.
const SDK_TIMEOUT: Duration = Duration::from_secs(5);

struct Rules<'a> {
    origins: &'a BTreeMap<String, String>,
    file_name: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl Rules<'_> {
    fn bad(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        // A key that was not given itself is blamed where its table begins.
        let at = self
            .origins
            .get(key)
            .or_else(|| {
                key.rsplit_once('.')
                    .and_then(|(table, _)| self.origins.get(table))
            })
            .map_or_else(|| self.file_name.to_owned(), Clone::clone);
        let problem = Problem {
            at,
            key: key.to_owned(),
            what: what.into(),
            remedy: remedy.into(),
        };
        self.problems.push(problem);
    }

    fn at_least(&mut self, key: &str, value: Duration, least: Duration) {
        if value < least {
            self.bad(
                key,
                format!("{value:?} is too short"),
                format!("write at least {least:?}"),
            );
        }
    }
}

/// Finds contradictions.
pub(super) fn check(
    config: &Config,
    origins: &BTreeMap<String, String>,
    file_name: &str,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) {
    let mut rules = Rules {
        origins,
        file_name,
        problems,
    };
    listeners(config, &mut rules);
    client(config, &mut rules, warnings);
    native(config, &mut rules);
    logs(config, &mut rules);
    namespaces(config, &mut rules);
    sizes_and_times(config, &mut rules);
}

fn listeners(config: &Config, rules: &mut Rules<'_>) {
    let http = &config.http_server;
    let server = &config.nats_server;
    let all = [
        ("http_server.port", http.public()),
        ("http_server.internal_port", http.internal()),
        ("nats_server.port", (server.address, server.port).into()),
        (
            "nats_server.mqtt_port",
            (server.address, server.mqtt_port).into(),
        ),
    ];
    for (index, (key, address)) in all.iter().enumerate() {
        for (earlier, other) in all.iter().take(index) {
            let overlap = address.ip() == other.ip()
                || address.ip().is_unspecified()
                || other.ip().is_unspecified();
            if address.port() == other.port() && address.port() != 0 && overlap {
                rules.bad(
                    key,
                    format!("port {} is also `{earlier}`", address.port()),
                    "give each listener a port of its own",
                );
            }
        }
    }
    if server.demo_users && !server.address.is_loopback() {
        rules.bad(
            "nats_server.address",
            format!(
                "{} is not loopback, and the demo users' passwords are their names",
                server.address
            ),
            "set nats_server.demo_users = false, or keep the address at 127.0.0.1",
        );
    }
}

fn native(config: &Config, rules: &mut Rules<'_>) {
    let callout = &config.auth_callout;
    let is_counted = callout.enabled && callout.user_connection_limit > 0;
    if is_counted && config.nats.kick.password.is_empty() {
        rules.bad(
            "auth_callout.user_connection_limit",
            "only a user of the system account can count connections and end them",
            "give nats.kick.password (WEIR_NATS_KICK_PASSWORD), or write 0",
        );
    }
}

fn client(config: &Config, rules: &mut Rules<'_>, warnings: &mut Vec<String>) {
    let client = &config.client;
    for origin in &client.allowed_origins {
        if !weir_edge::origin::is_pattern(origin) {
            rules.bad(
                "client.allowed_origins",
                format!("{origin:?} is no origin"),
                "write \"https://example.com\" or \"https://*.example.com\", without a path, or \"*\"",
            );
        }
    }
    if client.ping_interval.subsec_nanos() != 0 {
        rules.bad(
            "client.ping_interval",
            format!("{:?} is not in whole seconds", client.ping_interval),
            "write whole seconds, as the protocol announces it so",
        );
    }
    if !client.ping_interval.is_zero() {
        rules.at_least(
            "client.pong_timeout",
            client.pong_timeout,
            Duration::from_secs(1),
        );
        if client.pong_timeout >= client.ping_interval {
            rules.bad(
                "client.pong_timeout",
                format!(
                    "{:?} is not shorter than client.ping_interval",
                    client.pong_timeout
                ),
                "a pong must be due before the next ping",
            );
        }
    }
    rules.at_least(
        "client.stale_close_delay",
        client.stale_close_delay,
        Duration::from_secs(1),
    );
    if client.queue_max_size < config.websocket.message_size_limit {
        rules.bad(
            "client.queue_max_size",
            "it is smaller than websocket.message_size_limit",
            "a connection must be able to receive what another may send",
        );
    }
    if client.command_burst > 0 && client.command_rate_limit > client.command_burst {
        rules.bad(
            "client.command_burst",
            "it is smaller than client.command_rate_limit",
            "allow at least one second's commands at once, or write 0",
        );
    }
    bytes_at_once(config, rules);
    super::tokens::warn(client, warnings);
    if client.token.all("").is_empty()
        && !client.allow_anonymous_connect_without_token
        && !client.insecure
    {
        warnings.push(
            "no browser can connect: set client.token.hmac_secret_key or another key, or \
             client.allow_anonymous_connect_without_token = true"
                .into(),
        );
    }
    if client.insecure && !config.http_server.address.is_loopback() {
        warnings.push("client.insecure: everyone who reaches this port may do everything".into());
    }
    if client.allowed_origins.iter().any(|origin| origin == "*")
        && !config.http_server.address.is_loopback()
    {
        warnings
            .push("client.allowed_origins: \"*\" lets any web page connect as its visitor".into());
    }
}

/// What is larger than all bytes that there are at once could never be sent.
fn bytes_at_once(config: &Config, rules: &mut Rules<'_>) {
    let limits = &config.client.rate_limit;
    let without = &config.channel.without_namespace;
    let mut all = vec![
        (
            "client.rate_limit.connection".to_owned(),
            &limits.connection,
        ),
        ("client.rate_limit.user".to_owned(), &limits.user),
        ("client.rate_limit.address".to_owned(), &limits.address),
        (
            "channel.without_namespace.rate_limit".to_owned(),
            &without.rate_limit,
        ),
    ];
    for (name, namespace) in &config.channel.namespaces {
        let table = format!("channel.namespaces.{name}.rate_limit");
        all.push((table, &namespace.rate_limit));
    }
    let largest = config.websocket.message_size_limit;
    let largest = largest.max(config.door.message_size_limit);
    for (table, limit) in all {
        if limit.bytes.per_second > 0 && (limit.bytes.at_once() as usize) < largest {
            rules.bad(
                &format!("{table}.bytes_burst"),
                format!("a message of {largest} bytes could never be sent"),
                format!("write at least {largest}, or lower websocket.message_size_limit and door.message_size_limit"),
            );
        }
    }
}

fn logs(config: &Config, rules: &mut Rules<'_>) {
    if config.logs.is_empty() {
        rules.bad(
            "logs",
            "there is none",
            "write at least one [[logs]] with a name",
        );
    }
    let mut seen = BTreeSet::new();
    for log in &config.logs {
        let key = |option: &str| format!("logs.{}.{option}", log.name);
        let shape = log.name.starts_with(|c: char| c.is_ascii_lowercase())
            && log.name.len() <= 32
            && log
                .name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !shape || RESERVED_LOGS.contains(&log.name.as_str()) {
            rules.bad(
                &key("name"),
                format!("{:?} is no name for a log", log.name),
                "write 1 to 32 of a-z, 0-9 and -, a letter first, and not weir, kv, obj or mqtt",
            );
        }
        if !seen.insert(&log.name) {
            rules.bad(&key("name"), "two logs have this name", "give each its own");
        }
        if ![1, 3, 5].contains(&log.replicas) {
            rules.bad(
                &key("replicas"),
                format!("{} is no number of replicas", log.replicas),
                "write 1, 3 or 5",
            );
        }
        for (option, value) in [
            ("max_bytes", log.max_bytes),
            ("max_messages", log.max_messages),
        ] {
            if value == 0 {
                rules.bad(
                    &key(option),
                    "0 would keep nothing",
                    "write -1 for no limit",
                );
            }
        }
        if !log.max_age.is_zero() && log.max_age < config.archive.allowed_lag {
            rules.bad(
                &key("max_age"),
                format!(
                    "messages would expire after {:?}, before the archive must have them ({:?})",
                    log.max_age, config.archive.allowed_lag
                ),
                "make it longer than archive.allowed_lag",
            );
        }
        rules.at_least(
            &key("duplicate_window"),
            log.duplicate_window,
            Duration::from_secs(10),
        );
        if !log.max_age.is_zero() && log.duplicate_window > log.max_age {
            rules.bad(
                &key("duplicate_window"),
                "it is longer than max_age",
                "nats-server refuses this; make it shorter",
            );
        }
    }
}

fn namespaces(config: &Config, rules: &mut Rules<'_>) {
    namespace(
        config,
        rules,
        "channel.without_namespace",
        &config.channel.without_namespace,
    );
    let mut seen = BTreeSet::new();
    for (name, options) in &config.channel.namespaces {
        let table = format!("channel.namespaces.{name}");
        let shape = name.len() >= 2
            && name.len() <= 64
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if !shape {
            let what = if name == "_" {
                "`_` stands for rooms without a namespace".to_owned()
            } else {
                format!("{name:?} is no name for a namespace")
            };
            let remedy = "write 2 to 64 of A-Z, a-z, 0-9, - and _";
            rules.bad(&format!("{table}.name"), what, remedy);
        }
        if !seen.insert(name) {
            rules.bad(
                &format!("{table}.name"),
                "two namespaces have this name",
                "give each its own",
            );
        }
        namespace(config, rules, &table, options);
    }
}

fn namespace(config: &Config, rules: &mut Rules<'_>, table: &str, options: &Namespace) {
    if !config.logs.iter().any(|log| log.name == options.log) {
        let names: Vec<&str> = config.logs.iter().map(|log| log.name.as_str()).collect();
        rules.bad(
            &format!("{table}.log"),
            format!("there is no log {:?}", options.log),
            format!("add it as [[logs]], or use one of: {}", names.join(", ")),
        );
    }
    if u64::try_from(options.history_size).is_ok_and(|size| size > WINDOW_MAX_MESSAGES) {
        rules.bad(
            &format!("{table}.history_size"),
            format!("{} is too large a window", options.history_size),
            format!(
                "write at most {WINDOW_MAX_MESSAGES}, as the messages of a window are counted, or -1 for all that \
                 is kept, which costs nothing"
            ),
        );
    }
    if !options.archive_ttl.is_zero() && config.archive.kind == ArchiveKind::Cassandra {
        rules.bad(
            &format!("{table}.archive_ttl"),
            "an archive in Cassandra keeps rooms for ever",
            "remove it, or set archive.kind = \"sqlite\"",
        );
    }
    if options.history_size == 0 {
        let need_history = [
            ("force_recovery", options.force_recovery),
            ("force_positioning", options.force_positioning),
            ("allow_recovery", options.allow_recovery),
            ("allow_positioning", options.allow_positioning),
            ("history_ttl", !options.history_ttl.is_zero()),
            ("archive_ttl", !options.archive_ttl.is_zero()),
        ];
        for (option, on) in need_history {
            if on {
                rules.bad(
                    &format!("{table}.{option}"),
                    "it needs history, and history_size is 0",
                    "set history_size = -1 (all) or a number, or remove it",
                );
            }
        }
    }
}

fn sizes_and_times(config: &Config, rules: &mut Rules<'_>) {
    let ms = Duration::from_millis;
    if config.rpc.timeout >= SDK_TIMEOUT {
        rules.bad(
            "rpc.timeout",
            format!("{:?} is too long", config.rpc.timeout),
            "write less than 5s, when SDKs give up by themselves",
        );
    }
    rules.at_least("rpc.timeout", config.rpc.timeout, ms(10));
    rules.at_least("nats.request_timeout", config.nats.request_timeout, ms(100));
    rules.at_least("nats.ping_interval", config.nats.ping_interval, ms(1_000));
    rules.at_least("room.sweep_interval", config.room.sweep_interval, ms(250));
    rules.at_least(
        "publish.queue_max_wait",
        config.publish.queue_max_wait,
        ms(10),
    );
    if config.publish.queue_max_wait >= Duration::from_secs(4) {
        rules.bad(
            "publish.queue_max_wait",
            format!("{:?} is too long", config.publish.queue_max_wait),
            "write less than 4s, when a publish must be answered",
        );
    }
    if config.shutdown.timeout < config.shutdown.spread {
        rules.bad(
            "shutdown.timeout",
            format!(
                "it is shorter than shutdown.spread ({:?})",
                config.shutdown.spread
            ),
            "leave time for clients to be sent away",
        );
    }
    if config.door.rate_limit > config.door.burst {
        rules.bad(
            "door.burst",
            "it is smaller than door.rate_limit",
            "allow at least one second's requests at once",
        );
    }
    let url_good = config.nats.url.split(',').all(|url| {
        ["nats://", "tls://", "ws://", "wss://"]
            .iter()
            .any(|scheme| {
                url.trim()
                    .strip_prefix(scheme)
                    .is_some_and(|host| !host.is_empty())
            })
    });
    if !url_good {
        rules.bad(
            "nats.url",
            "it is no NATS address",
            "write nats://host:4222 or tls://host:4222, several with commas",
        );
    } else if config.nats.url.contains('@') {
        rules.bad(
            "nats.url",
            "it holds a user",
            "put users and passwords into [nats.live], [nats.reads] and [nats.door]",
        );
    }
    let nats = &config.nats;
    if nats.tls_cert_file.as_os_str().is_empty() != nats.tls_key_file.as_os_str().is_empty() {
        rules.bad(
            "nats.tls_cert_file",
            "a certificate needs its key, and a key its certificate",
            "set nats.tls_cert_file and nats.tls_key_file, or neither",
        );
    }
    let files = [&nats.tls_ca_file, &nats.tls_cert_file];
    if !nats.tls && files.iter().any(|file| !file.as_os_str().is_empty()) {
        rules.bad(
            "nats.tls",
            "its files are set, and it is false",
            "write nats.tls = true, or remove the files",
        );
    }
    if config.data_dir.as_os_str().is_empty() {
        rules.bad(
            "data_dir",
            "it is empty",
            "write a folder, such as \"data\"",
        );
    }
    archive(&config.archive, rules);
}

fn archive(archive: &Archive, rules: &mut Rules<'_>) {
    if archive.path.as_os_str().is_empty() {
        rules.bad(
            "archive.path",
            "it is empty",
            "write a file, such as \"archive.db\"",
        );
    }
    if archive.nodes.is_empty() {
        rules.bad("archive.nodes", "there is none", "write [\"host:9042\"]");
    }
    for node in &archive.nodes {
        let port = node.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(port)) if port != 0) {
            rules.bad(
                "archive.nodes",
                format!("{node:?} has no port"),
                "write \"host:9042\"",
            );
        }
    }
    // These two stand in statements, where nothing can be bound.
    let is_name = |text: &str, others: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
        text.chars().all(plain)
    };
    let keyspace = &archive.keyspace;
    let begins = keyspace.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins
        || keyspace.len() > 48
        || !is_name(keyspace, "_")
        || keyspace.contains(|c: char| c.is_ascii_uppercase())
    {
        rules.bad(
            "archive.keyspace",
            format!("{keyspace:?} is no keyspace's name"),
            "write 1 to 48 of a-z, 0-9 and _, beginning with a letter",
        );
    }
    if !is_name(&archive.datacenter, "_-.") {
        rules.bad(
            "archive.datacenter",
            format!("{:?} is no data centre's name", archive.datacenter),
            "write letters, digits, _, - and .",
        );
    }
    if archive.user.is_empty() != archive.password_file.as_os_str().is_empty() {
        rules.bad(
            "archive.password_file",
            "a user without a password, or a password without a user",
            "set both archive.user and archive.password_file, or neither",
        );
    }
    if archive.tls_cert_file.as_os_str().is_empty() != archive.tls_key_file.as_os_str().is_empty() {
        rules.bad(
            "archive.tls_key_file",
            "a certificate without its key, or a key without its certificate",
            "set both archive.tls_cert_file and archive.tls_key_file, or neither",
        );
    }
    let files = [&archive.tls_ca_file, &archive.tls_cert_file];
    if !archive.tls && files.iter().any(|file| !file.as_os_str().is_empty()) {
        rules.bad(
            "archive.tls",
            "certificates are named, and TLS is off",
            "set archive.tls = true, or remove the tls_… files",
        );
    }
}
