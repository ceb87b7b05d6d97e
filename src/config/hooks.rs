//! Knows: the keys about what the application is asked: where each hook is, and what bounds it. Names are those of
//! Centrifugo's proxies. Never: how it is asked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::read::Section;
use super::rules::{Rules, SDK_TIMEOUT};
use super::{Config, Secret};
use crate::hooks;

/// What `endpoint` says of a NATS service.
pub const NATS: &str = "nats";
/// Shorter is no time for anybody.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
/// Headers of a request that are the request's own.
const NOT_PASSED_ON: [&str; 12] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authorization",
    "proxy-connection",
];

/// How one hook is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// `nats`, or the URL of an HTTP service.
    pub endpoint: String,
    /// For one answer.
    pub timeout: Duration,
    /// Headers of the client's HTTP request that are passed on.
    pub http_headers: Vec<String>,
    /// Headers of the client's connect command that are passed on. Anybody can give any.
    pub emulated_headers: Vec<String>,
    /// The connection's `meta` is passed on.
    pub include_connection_meta: bool,
    /// Certificate authorities (PEM) of an HTTPS endpoint; empty: those of this machine.
    pub tls_ca_file: PathBuf,
    /// `http.static_headers`: headers of each request to an HTTP endpoint.
    pub static_headers: Vec<(String, Secret)>,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            endpoint: NATS.to_owned(),
            timeout: Duration::from_secs(1),
            http_headers: Vec::new(),
            emulated_headers: Vec::new(),
            include_connection_meta: false,
            tls_ca_file: PathBuf::new(),
            static_headers: Vec::new(),
        }
    }
}

/// `[client.proxy]`: hooks of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientProxies {
    /// `[client.proxy.connect]`, where it is enabled.
    pub connect: Option<Proxy>,
    /// `[client.proxy.refresh]`, where it is enabled.
    pub refresh: Option<Proxy>,
}

/// `[channel.proxy]`: hooks of namespaces that name no other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelProxies {
    /// `[channel.proxy.subscribe]`
    pub subscribe: Proxy,
    /// `[channel.proxy.publish]`
    pub publish: Proxy,
}

/// Whether a namespace has a hook, and which of `[[proxies]]`; an empty name is that of `[channel.proxy]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceProxies {
    /// The application is asked who may subscribe.
    pub subscribe_proxy_enabled: bool,
    /// Where.
    pub subscribe_proxy_name: String,
    /// The application is asked who may publish what.
    pub publish_proxy_enabled: bool,
    /// Where.
    pub publish_proxy_name: String,
}

/// `[hooks]`: what bounds each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Questions of one hook that wait at this process.
    pub in_flight_limit: u32,
    /// Questions of one connection that wait.
    pub connection_in_flight_limit: u32,
    /// Bytes of an answer.
    pub answer_max_size: usize,
    /// Failures in a row after which a hook is left alone.
    pub breaker_failures: u32,
    /// For how long.
    pub breaker_open_time: Duration,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            in_flight_limit: 1_024,
            connection_in_flight_limit: 32,
            answer_max_size: 65_536,
            breaker_failures: 10,
            breaker_open_time: Duration::from_secs(2),
        }
    }
}

pub(super) fn read_hooks(s: &mut Section<'_>) -> Hooks {
    let d = Hooks::default();
    Hooks {
        in_flight_limit: s.int("in_flight_limit", d.in_flight_limit, 1..=1_000_000),
        connection_in_flight_limit: s.int(
            "connection_in_flight_limit",
            d.connection_in_flight_limit,
            1..=10_000,
        ),
        answer_max_size: s.int("answer_max_size", d.answer_max_size, 1_024..=524_288),
        breaker_failures: s.int("breaker_failures", d.breaker_failures, 1..=1_000_000),
        breaker_open_time: s.duration("breaker_open_time", d.breaker_open_time),
    }
}

pub(super) fn read_client_proxies(s: &mut Section<'_>) -> ClientProxies {
    let mut switched = |name: &str| {
        let mut s = s.section(name);
        let enabled = s.bool("enabled", false);
        let proxy = read_proxy(&mut s);
        enabled.then_some(proxy)
    };
    ClientProxies {
        connect: switched("connect"),
        refresh: switched("refresh"),
    }
}

pub(super) fn read_channel_proxies(s: &mut Section<'_>) -> ChannelProxies {
    ChannelProxies {
        subscribe: read_proxy(&mut s.section("subscribe")),
        publish: read_proxy(&mut s.section("publish")),
    }
}

pub(super) fn read_namespace_proxies(s: &mut Section<'_>) -> NamespaceProxies {
    NamespaceProxies {
        subscribe_proxy_enabled: s.bool("subscribe_proxy_enabled", false),
        subscribe_proxy_name: s.string("subscribe_proxy_name", ""),
        publish_proxy_enabled: s.bool("publish_proxy_enabled", false),
        publish_proxy_name: s.string("publish_proxy_name", ""),
    }
}

pub(super) fn read_proxy(s: &mut Section<'_>) -> Proxy {
    let d = Proxy::default();
    let proxy = Proxy {
        endpoint: s.string("endpoint", &d.endpoint),
        timeout: s.duration("timeout", d.timeout),
        http_headers: s.strings("http_headers", &d.http_headers),
        emulated_headers: s.strings("emulated_headers", &d.emulated_headers),
        include_connection_meta: s.bool("include_connection_meta", d.include_connection_meta),
        tls_ca_file: PathBuf::from(s.string("tls_ca_file", "")),
        static_headers: static_headers(s.section("http").texts("static_headers")),
    };
    check(s, &proxy);
    proxy
}

fn static_headers(found: BTreeMap<String, String>) -> Vec<(String, Secret)> {
    let found = found.into_iter();
    found
        .map(|(name, value)| (name, Secret::new(value)))
        .collect()
}

fn check(s: &mut Section<'_>, proxy: &Proxy) {
    if proxy.timeout < TIMEOUT_MIN || proxy.timeout >= SDK_TIMEOUT {
        let what = format!("{:?} is no time for an answer", proxy.timeout);
        s.refuse(
            "timeout",
            what,
            "write 10ms or more, and less than 5s, when SDKs give up by themselves",
        );
    }
    for (name, headers) in [
        ("http_headers", &proxy.http_headers),
        ("emulated_headers", &proxy.emulated_headers),
    ] {
        for header in headers {
            let is_own = NOT_PASSED_ON.contains(&header.to_ascii_lowercase().as_str());
            if is_own || hooks::header_name(header).is_none() {
                let what = format!("{header:?} is no header to pass on");
                s.refuse(name, what, "write names such as \"Cookie\"");
            }
        }
    }
    let is_nats = proxy.endpoint == NATS;
    for (name, value) in &proxy.static_headers {
        let mut from_clients = proxy.http_headers.iter().chain(&proxy.emulated_headers);
        if from_clients.any(|header| header.eq_ignore_ascii_case(name)) {
            let what = format!("{name:?} is passed on from clients, too, which would replace it");
            s.refuse("http.static_headers", what, "remove it from one of them");
        }
        let is_own = NOT_PASSED_ON.contains(&name.to_ascii_lowercase().as_str());
        if is_own || hooks::header(name, value).is_none() {
            let what = format!("{name:?} is no header, or its value is none");
            s.refuse(
                "http.static_headers",
                what,
                "write { \"X-Key\" = \"value\" }",
            );
        }
    }
    if is_nats {
        let http_only = [
            ("tls_ca_file", !proxy.tls_ca_file.as_os_str().is_empty()),
            ("http.static_headers", !proxy.static_headers.is_empty()),
        ];
        for (name, is_set) in http_only {
            if is_set {
                s.refuse(
                    name,
                    "endpoint is a NATS service",
                    "remove it, or write a URL as endpoint",
                );
            }
        }
    } else if let Err(error) = hooks::address(proxy) {
        let what = match proxy.endpoint.split_once("://") {
            Some(("grpc", _)) => "GRPC is not in this version of Weir".to_owned(),
            _ => error.to_string(),
        };
        s.refuse(
            "endpoint",
            what,
            "write \"nats\", or a URL such as \"https://host/path\"",
        );
    }
}

/// What of it contradicts the rest.
pub(super) fn check_all(config: &Config, rules: &mut Rules<'_>, warnings: &mut Vec<String>) {
    rules.at_least(
        "hooks.breaker_open_time",
        config.hooks.breaker_open_time,
        Duration::from_millis(100),
    );
    let is_token = |name: &str| {
        (2..=64).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    for (nth, (name, _)) in config.proxies.iter().enumerate() {
        let key = format!("proxies.{name}.name");
        if !is_token(name) {
            let what = format!("{name:?} is no name for a proxy");
            rules.bad(&key, what, "write 2 to 64 of A-Z, a-z, 0-9, - and _");
        }
        if config.proxies[..nth].iter().any(|(other, _)| other == name) {
            rules.bad(&key, "two proxies have this name", "give each its own");
        }
    }
    let client = &config.client;
    let channel = &config.channel;
    let namespaces = channel.namespaces.iter();
    let namespaces =
        namespaces.map(|(name, options)| (format!("channel.namespaces.{name}"), options));
    let without = (
        "channel.without_namespace".to_owned(),
        &channel.without_namespace,
    );
    for (table, options) in std::iter::once(without).chain(namespaces) {
        let proxies = &options.proxies;
        for (event, enabled, name) in [
            (
                "subscribe",
                proxies.subscribe_proxy_enabled,
                &proxies.subscribe_proxy_name,
            ),
            (
                "publish",
                proxies.publish_proxy_enabled,
                &proxies.publish_proxy_name,
            ),
        ] {
            let key = format!("{table}.{event}_proxy_name");
            if !name.is_empty() && !config.proxies.iter().any(|(known, _)| known == name) {
                let what = format!("there is no proxy {name:?}");
                rules.bad(&key, what, "add it as [[proxies]], or remove it");
            }
            if !name.is_empty() && !enabled {
                warnings.push(format!(
                    "{key}: it has no effect without {event}_proxy_enabled = true"
                ));
            }
        }
        if proxies.subscribe_proxy_enabled && options.allow_subscribe_for_client {
            warnings.push(format!(
                "{table}.allow_subscribe_for_client: it has no effect, as subscribe_proxy_enabled asks the application"
            ));
        }
        if proxies.publish_proxy_enabled
            && (options.allow_publish_for_client || options.allow_publish_for_subscriber)
        {
            warnings.push(format!(
                "{table}.allow_publish_…: they have no effect, as publish_proxy_enabled asks the application"
            ));
        }
    }
    if client.proxy.connect.is_some() && client.allow_anonymous_connect_without_token {
        warnings.push(
            "client.allow_anonymous_connect_without_token: it has no effect, as client.proxy.connect is asked".into(),
        );
    }
    for (key, proxy) in config.all_proxies() {
        if hooks::address(proxy).is_ok_and(|address| address.is_open_to_others()) {
            warnings.push(format!(
                "{key}.endpoint: over plain HTTP, whoever is between can let anybody in"
            ));
        }
    }
}

impl Config {
    /// Every table of a hook, and where it is.
    fn all_proxies(&self) -> Vec<(String, &Proxy)> {
        let client = &self.client.proxy;
        let mut all = vec![
            (
                "channel.proxy.subscribe".to_owned(),
                &self.channel.proxy.subscribe,
            ),
            (
                "channel.proxy.publish".to_owned(),
                &self.channel.proxy.publish,
            ),
        ];
        for (event, proxy) in [("connect", &client.connect), ("refresh", &client.refresh)] {
            all.extend(
                proxy
                    .iter()
                    .map(|proxy| (format!("client.proxy.{event}"), proxy)),
            );
        }
        let named = self.proxies.iter();
        all.extend(named.map(|(name, proxy)| (format!("proxies.{name}"), proxy)));
        all
    }
}
