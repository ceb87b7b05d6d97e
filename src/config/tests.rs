//! Knows: what the shipped files hold, and a table of broken configurations with the errors they must give.
//! Never: NATS, a port.

use std::time::Duration;

use super::*;

mod hooks;
mod tokens;

const SHIPPED: &str = include_str!("../../deploy/weir.toml");

fn from(text: &str, env: &[(&str, &str)], sets: &[(&str, &str)]) -> Sources {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Sources {
        file: Some(("weir.toml".into(), text.into())),
        env: env.iter().map(pair).collect(),
        sets: sets.iter().map(pair).collect(),
    }
}

fn load(text: &str) -> Result<Loaded, ConfigErrors> {
    Config::load(from(text, &[], &[]))
}

#[test]
fn shipped_file_is_the_defaults_and_shows_every_key() {
    let shipped = load(SHIPPED).unwrap();
    let none = Config::load(Sources::default()).unwrap();
    assert_eq!(shipped.config, Config::default());
    assert_eq!(none.config, Config::default());
    for key in &shipped.keys {
        // Options of lists stand once, under the name that the file gives.
        assert!(
            shipped.given.contains_key(key) || key.ends_with(".*.name"),
            "deploy/weir.toml lacks {key}"
        );
    }
}

#[test]
fn demo_opens_chat_to_anonymous_users() {
    let demo = load(DEMO).unwrap();
    assert!(demo.warnings.is_empty(), "{:?}", demo.warnings);
    let chat = demo.config.namespace(Some("chat")).unwrap();
    assert_eq!(chat.history_size, -1);
    assert!(chat.force_recovery && chat.allow_publish_for_anonymous);
    assert!(chat.allow_subscribe_for_anonymous && chat.allow_history_for_anonymous);
    assert!(demo.config.client.allow_anonymous_connect_without_token);
    assert_eq!(demo.config.namespace(Some("other")), None);
}

#[test]
fn flags_win_over_variables_win_over_the_file() {
    let text =
        "[http_server]\nport = 1\n[[channel.namespaces]]\nname = \"chat\"\nhistory_size = 5\n";
    let env = [
        ("WEIR_HTTP_SERVER_PORT", "2"),
        (
            "WEIR_CLIENT_TOKEN_HMAC_SECRET_KEY",
            "0123456789abcdef0123456789abcdef",
        ),
        (
            "WEIR_CLIENT_ALLOWED_ORIGINS",
            "https://a.example https://b.example",
        ),
        ("WEIR_CHANNEL_NAMESPACES", "chat news"),
        ("WEIR_CHANNEL_NAMESPACES_CHAT_HISTORY_SIZE", "7"),
        ("WEIR_CHANNEL_NAMESPACES_NEWS_HISTORY_SIZE", "8"),
        ("WEIR_CLIENT_INSECURE", "true"),
        ("WEIR_CLIENT_PONG_TIMEOUT", "3s"),
        ("HOME", "/nowhere"),
    ];
    let sets = [
        ("http_server.port", "3"),
        ("channel.namespaces.news.history_size", "9"),
    ];
    let config = Config::load(from(text, &env, &sets)).unwrap().config;
    assert_eq!(config.http_server.port, 3);
    assert_eq!(config.namespace(Some("chat")).unwrap().history_size, 7);
    assert_eq!(config.namespace(Some("news")).unwrap().history_size, 9);
    assert_eq!(
        config.client.allowed_origins,
        ["https://a.example", "https://b.example"]
    );
    assert_eq!(config.client.pong_timeout, Duration::from_secs(3));
    assert!(config.client.insecure);
}

#[test]
fn secrets_do_not_print() {
    let text =
        "[client.token]\nhmac_secret_key = \"swordfish\"\n[nats.live]\npassword = \"swordfish\"\n";
    let loaded = load(text).unwrap();
    assert!(!format!("{loaded:?}").contains("swordfish"));
    let wrong = load("[nats.live]\npassword = 12345\n[client.token]\nhmac_secret_key = 12345\n");
    assert!(!wrong.unwrap_err().to_string().contains("12345"));
}

#[test]
fn unknown_variable_is_a_warning() {
    let loaded = Config::load(from(DEMO, &[("WEIR_SERVICE_HOST", "10.0.0.1")], &[])).unwrap();
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("WEIR_SERVICE_HOST"));
}

#[test]
fn all_problems_are_listed_in_the_order_of_the_file() {
    let text = "[http_server]\nprot = 1\n\n[client]\nchannel_limit = \"many\"\nping_interval = 25\n\n[rpc]\ntimeout = \"9s\"\n";
    let errors = load(text).unwrap_err();
    let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "weir.toml:2: http_server.prot: unknown key; did you mean `http_server.port`?",
            "weir.toml:5: client.channel_limit: \"many\" is not a value for it; write a number from 1 to 100000",
            "weir.toml:6: client.ping_interval: 25 is not a value for it; write a duration such as \"25s\", \"2m\", \"72h\" or \"0s\"",
            "weir.toml:9: rpc.timeout: 9s is too long; write less than 5s, when SDKs give up by themselves",
        ]
    );
}

/// Text, line (0: no line), key, a part of the message.
const BROKEN: &[(&str, usize, &str, &str)] = &[
    ("port =", 1, "", "not valid TOML"),
    ("[client]\nx = 1\nx = 2", 3, "", "not valid TOML"),
    ("nonsense = 1", 1, "nonsense", "every key"),
    (
        "[clinet]\ninsecure = true",
        2,
        "clinet.insecure",
        "did you mean `client.insecure`",
    ),
    (
        "[client]\nconcurrency = 8",
        2,
        "client.concurrency",
        "Centrifugo has this option",
    ),
    (
        "[channel.without_namespace]\nforce_recovery_mode = \"cache\"",
        2,
        "channel.without_namespace.force_recovery_mode",
        "Centrifugo has this option",
    ),
    (
        "[channel.without_namespace]\npresence = true",
        2,
        "channel.without_namespace.presence",
        "not in this version",
    ),
    (
        "[channel.without_namespace]\njoin_leave = true",
        2,
        "channel.without_namespace.join_leave",
        "not in this version",
    ),
    (
        "[http_server]\nport = 70000",
        2,
        "http_server.port",
        "0 to 65535",
    ),
    (
        "[http_server]\nport = \"eight\"",
        2,
        "http_server.port",
        "0 to 65535",
    ),
    (
        "[http_server]\nport = -1",
        2,
        "http_server.port",
        "0 to 65535",
    ),
    (
        "[http_server]\nport = 8001",
        0,
        "http_server.internal_port",
        "also `http_server.port`",
    ),
    (
        "[http_server]\naddress = \"localhost\"",
        2,
        "http_server.address",
        "IP address",
    ),
    (
        "[http_server]\naddress = \"0.0.0.0\"\nport = 4222",
        0,
        "nats_server.port",
        "also `http_server.port`",
    ),
    (
        "[client]\ninsecure = \"yes\"",
        2,
        "client.insecure",
        "true or false",
    ),
    (
        "[client]\nallowed_origins = \"*\"",
        2,
        "client.allowed_origins",
        "list of texts",
    ),
    (
        "[client]\nallowed_origins = [\"example.com\"]",
        2,
        "client.allowed_origins",
        "is no origin",
    ),
    (
        "[client]\nallowed_origins = [\"https://example.com/page\"]",
        2,
        "client.allowed_origins",
        "is no origin",
    ),
    (
        "[client]\nallowed_origins = [1]",
        2,
        "client.allowed_origins",
        "list of texts",
    ),
    (
        "[client]\nping_interval = \"2500ms\"",
        2,
        "client.ping_interval",
        "whole seconds",
    ),
    (
        "[client]\npong_timeout = \"30s\"",
        2,
        "client.pong_timeout",
        "shorter than client.ping_interval",
    ),
    (
        "[client]\npong_timeout = \"soon\"",
        2,
        "client.pong_timeout",
        "duration such as",
    ),
    (
        "[client]\nqueue_max_size = 1.5",
        2,
        "client.queue_max_size",
        "a fraction is not",
    ),
    (
        "[client]\ncommand_rate_limit = 11\ncommand_burst = 10",
        3,
        "client.command_burst",
        "smaller than",
    ),
    (
        "[websocket]\nmessage_size_limit = 1048576",
        2,
        "websocket.message_size_limit",
        "524288",
    ),
    (
        "[client]\nqueue_max_size = 70000\n[websocket]\nmessage_size_limit = 80000",
        2,
        "client.queue_max_size",
        "smaller than",
    ),
    (
        "[[channel.namespaces]]\nname = \"_\"",
        2,
        "channel.namespaces._.name",
        "stands for rooms without",
    ),
    (
        "[[channel.namespaces]]\nname = \"a\"",
        2,
        "channel.namespaces.a.name",
        "no name for a namespace",
    ),
    (
        "[[channel.namespaces]]\nname = \"a.b\"",
        2,
        "channel.namespaces.a.b.name",
        "no name for a namespace",
    ),
    (
        "[[channel.namespaces]]\nname = \"\"",
        2,
        "channel.namespaces..name",
        "no name for a namespace",
    ),
    (
        "[[channel.namespaces]]\nhistory_size = 1",
        0,
        "channel.namespaces[0].name",
        "needs a name",
    ),
    (
        "[[channel.namespaces]]\nname = \"ab\"\n[[channel.namespaces]]\nname = \"ab\"",
        4,
        "channel.namespaces.ab.name",
        "two namespaces",
    ),
    (
        "[[channel.namespaces]]\nname = \"ab\"\nlog = \"audit\"",
        3,
        "channel.namespaces.ab.log",
        "use one of: rooms",
    ),
    (
        "[[channel.namespaces]]\nname = \"ab\"\nforce_recovery = true",
        3,
        "channel.namespaces.ab.force_recovery",
        "needs history",
    ),
    (
        "[[channel.namespaces]]\nname = \"ab\"\nhistory_ttl = \"1h\"",
        3,
        "channel.namespaces.ab.history_ttl",
        "needs history",
    ),
    (
        "[archive]\nkind = \"cassandra\"\n[[channel.namespaces]]\nname = \"ab\"\nhistory_size = -1\narchive_ttl = \"1h\"",
        6,
        "channel.namespaces.ab.archive_ttl",
        "keeps rooms for ever",
    ),
    (
        "[[channel.namespaces]]\nname = \"ab\"\narchive_ttl = \"1h\"",
        3,
        "channel.namespaces.ab.archive_ttl",
        "needs history",
    ),
    (
        "[[channel.namespaces]]\nname = \"ab\"\nhistory_size = -2",
        3,
        "channel.namespaces.ab.history_size",
        "from -1",
    ),
    (
        "[[channel.namespaces]]\nname = \"ab\"\nhistory_size = 10001",
        3,
        "channel.namespaces.ab.history_size",
        "write at most 10000, as the messages of a window are counted, or -1",
    ),
    (
        "[channel.without_namespace]\nallow_presence_for_client = true",
        2,
        "channel.without_namespace.allow_presence_for_client",
        "not in this version",
    ),
    (
        "[client]\nallowed_origins = [\"https://a.*.com\"]",
        2,
        "client.allowed_origins",
        "is no origin",
    ),
    (
        "[publish]\nbatch_size = 1001",
        2,
        "publish.batch_size",
        "1 to 1000",
    ),
    (
        "[history]\npage_max_size = 393217",
        2,
        "history.page_max_size",
        "65536 to 393216",
    ),
    (
        "[[channel.namespaces]]\nname = \"ab\"\nhistory_sise = 2",
        3,
        "channel.namespaces.history_sise",
        "did you mean `channel.namespaces.history_size`",
    ),
    (
        "[[channel.namespaces]]\nname = \"ab\"\npublication_data_format = \"xml\"",
        3,
        "channel.namespaces.ab.publication_data_format",
        "\"json_object\"",
    ),
    ("logs = []", 0, "logs", "at least one"),
    (
        "[[logs]]\nname = \"Rooms\"",
        2,
        "logs.Rooms.name",
        "no name for a log",
    ),
    (
        "[[logs]]\nname = \"rooms\"\n[[logs]]\nname = \"kv\"",
        4,
        "logs.kv.name",
        "no name for a log",
    ),
    (
        "[[logs]]\nname = \"rooms\"\n[[logs]]\nname = \"rooms\"",
        4,
        "logs.rooms.name",
        "two logs",
    ),
    (
        "[[logs]]\nname = \"other\"",
        0,
        "channel.without_namespace.log",
        "use one of: other",
    ),
    (
        "[[logs]]\nname = \"rooms\"\nreplicas = 2",
        3,
        "logs.rooms.replicas",
        "1, 3 or 5",
    ),
    (
        "[[logs]]\nname = \"rooms\"\nmax_bytes = 0",
        3,
        "logs.rooms.max_bytes",
        "-1 for no limit",
    ),
    (
        "[[logs]]\nname = \"rooms\"\nmax_age = \"30m\"",
        3,
        "logs.rooms.max_age",
        "archive.allowed_lag",
    ),
    (
        "[[logs]]\nname = \"rooms\"\nduplicate_window = \"1s\"",
        3,
        "logs.rooms.duplicate_window",
        "too short",
    ),
    (
        "[[logs]]\nname = \"rooms\"\nmax_age = \"1h\"\nduplicate_window = \"2h\"",
        4,
        "logs.rooms.duplicate_window",
        "longer than max_age",
    ),
    (
        "[[logs]]\nname = \"rooms\"\nstorage = \"tape\"",
        3,
        "logs.rooms.storage",
        "\"memory\"",
    ),
    (
        "[archive]\nkind = \"tape\"",
        2,
        "archive.kind",
        "\"cassandra\"",
    ),
    (
        "[archive]\nkeyspace = \"Weir; DROP\"",
        2,
        "archive.keyspace",
        "a-z, 0-9 and _",
    ),
    (
        "[archive]\ndatacenter = \"a'b\"",
        2,
        "archive.datacenter",
        "letters",
    ),
    (
        "[archive]\nnodes = [\"localhost\"]",
        2,
        "archive.nodes",
        "host:9042",
    ),
    ("[archive]\nnodes = []", 2, "archive.nodes", "host:9042"),
    (
        "[archive]\nuser = \"weir\"",
        0,
        "archive.password_file",
        "archive.user",
    ),
    (
        "[archive]\ntls_ca_file = \"ca.pem\"",
        0,
        "archive.tls",
        "tls = true",
    ),
    (
        "[archive]\nallowed_lag = \"100h\"",
        0,
        "logs.rooms.max_age",
        "archive.allowed_lag",
    ),
    ("[archive]\npath = \"\"", 2, "archive.path", "empty"),
    (
        "[nats]\nurl = \"localhost:4222\"",
        2,
        "nats.url",
        "nats://host:4222",
    ),
    (
        "[nats]\nurl = \"nats://me:pw@localhost\"",
        2,
        "nats.url",
        "holds a user",
    ),
    (
        "[nats_server]\naddress = \"0.0.0.0\"",
        2,
        "nats_server.address",
        "demo_users = false",
    ),
    (
        "[nats_server]\nport = 0",
        2,
        "nats_server.port",
        "1 to 65535",
    ),
    (
        "[shutdown]\ntimeout = \"0s\"",
        2,
        "shutdown.timeout",
        "sent away",
    ),
    (
        "[publish]\nqueue_max_wait = \"4s\"",
        2,
        "publish.queue_max_wait",
        "less than 4s",
    ),
    ("[door]\nburst = 1", 2, "door.burst", "smaller than"),
    (
        "[client.rate_limit.user]\npublish = 5\npublish_burst = 4",
        3,
        "client.rate_limit.user.publish_burst",
        "smaller than publish",
    ),
    (
        "[client.rate_limit.user]\npublish_burst = 4",
        2,
        "client.rate_limit.user.publish_burst",
        "nothing is limited",
    ),
    (
        "[client.rate_limit.address]\nbytes = 1000\nbytes_burst = 65535",
        3,
        "client.rate_limit.address.bytes_burst",
        "could never be sent",
    ),
    (
        "[client.rate_limit.connection]\ncommand = 1",
        2,
        "client.rate_limit.connection.command",
        "unknown key",
    ),
    (
        "[http_server]\ntrusted_proxies = [\"10.0.0.0/40\"]",
        2,
        "http_server.trusted_proxies",
        "no network",
    ),
    (
        "[http_server.tls]\nenabled = true\ncert_pem_file = \"/nowhere/cert.pem\"",
        3,
        "http_server.tls.cert_pem_file",
        "/nowhere/cert.pem",
    ),
    (
        "[nats]\ntls_ca_file = \"ca.pem\"",
        0,
        "nats.tls",
        "it is false",
    ),
    (
        "[nats]\ntls = true\ntls_key_file = \"key.pem\"",
        0,
        "nats.tls_cert_file",
        "needs its key",
    ),
    (
        "[nats.live]\npassword = \"a\"\npassword_file = \"/nowhere\"",
        3,
        "nats.live.password_file",
        "is set, too",
    ),
    ("data_dir = \"\"", 1, "data_dir", "is empty"),
];

#[test]
fn every_broken_configuration_names_line_key_and_remedy() {
    for (text, line, key, part) in BROKEN {
        let errors = load(text).expect_err(text);
        let at = if *line == 0 {
            "weir.toml".to_owned()
        } else {
            format!("weir.toml:{line}")
        };
        let found = errors
            .0
            .iter()
            .any(|p| p.key == *key && p.at == at && p.to_string().contains(part));
        assert!(
            found,
            "{text}\n=> expected {at}: {key}: …{part}…, got:\n{errors}"
        );
        assert!(
            errors.0.iter().all(|p| !p.remedy.is_empty()),
            "{text}: {errors}"
        );
    }
}

#[test]
fn errors_of_variables_and_flags_name_them() {
    let sources = from(
        "",
        &[("WEIR_HTTP_SERVER_PORT", "tcp://1")],
        &[("client.nope", "1")],
    );
    let errors = Config::load(sources).unwrap_err().to_string();
    assert!(
        errors.contains("WEIR_HTTP_SERVER_PORT: http_server.port: "),
        "{errors}"
    );
    assert!(
        errors.contains("--set: client.nope: unknown key"),
        "{errors}"
    );
}
