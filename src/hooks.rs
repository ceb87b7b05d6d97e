//! Knows: which hook of the edge each table of the configuration becomes. Never: which key has which name in a file
//! (`config/hooks.rs`), how a service is asked.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use weir_authz::token::{Address, AddressError};
use weir_edge::hook::{BreakerLimits, HookAt, HookBounds, HookSettings, Transport};

use crate::config::{Config, Proxy, Secret};

/// A header's name; `None` if it is none, or one of NATS' or Weir's own.
#[must_use]
pub fn header_name(text: &str) -> Option<HeaderName> {
    let name: HeaderName = text.parse().ok()?;
    let is_ours = ["nats-", "weir-", "sec-"]
        .iter()
        .any(|prefix| name.as_str().starts_with(prefix));
    (!is_ours).then_some(name)
}

/// A header that is sent with each request.
#[must_use]
pub fn header(name: &str, value: &Secret) -> Option<(HeaderName, HeaderValue)> {
    let mut value: HeaderValue = value.expose().parse().ok()?;
    value.set_sensitive(true);
    Some((header_name(name)?, value))
}

/// The address of an HTTP service.
///
/// # Errors
/// When it is none, as is that of a NATS service.
pub fn address(proxy: &Proxy) -> Result<Address, AddressError> {
    let ca_file = &proxy.tls_ca_file;
    let ca_file = (!ca_file.as_os_str().is_empty()).then_some(ca_file.as_path());
    Address::parse(&proxy.endpoint, ca_file)
}

/// Every hook of the configuration.
///
/// # Errors
/// When an address became none since the configuration was checked.
pub fn settings(config: &Config) -> Result<HookSettings, AddressError> {
    let server = |event: &str, proxy: &Option<Proxy>| {
        let proxy = proxy.as_ref();
        proxy.map(|proxy| hook(event, "", proxy)).transpose()
    };
    let client = &config.client.proxy;
    let mut settings = HookSettings {
        connect: server("connect", &client.connect)?,
        refresh: server("refresh", &client.refresh)?,
        bounds: HookBounds {
            calls_max: config.hooks.in_flight_limit as usize,
            connection_calls_max: config.hooks.connection_in_flight_limit as usize,
            answer_max_bytes: config.hooks.answer_max_size,
            breaker: BreakerLimits {
                failures_max: config.hooks.breaker_failures,
                open_for: config.hooks.breaker_open_time,
            },
        },
        ..HookSettings::default()
    };
    let channel = &config.channel;
    let named = channel.namespaces.iter();
    let named = named.map(|(name, options)| (name.as_str(), options));
    for (namespace, options) in named.chain([("", &channel.without_namespace)]) {
        let proxies = &options.proxies;
        if proxies.subscribe_proxy_enabled {
            let name = &proxies.subscribe_proxy_name;
            let proxy = named_or(config, name, &channel.proxy.subscribe);
            let at = hook("subscribe", name, proxy)?;
            settings.subscribe.insert(namespace.to_owned(), at);
        }
        if proxies.publish_proxy_enabled {
            let name = &proxies.publish_proxy_name;
            let proxy = named_or(config, name, &channel.proxy.publish);
            let at = hook("publish", name, proxy)?;
            settings.publish.insert(namespace.to_owned(), at);
        }
    }
    Ok(settings)
}

fn named_or<'c>(config: &'c Config, name: &str, default: &'c Proxy) -> &'c Proxy {
    let mut named = config.proxies.iter();
    let named = named.find(|(known, _)| known == name);
    named.map_or(default, |(_, proxy)| proxy)
}

fn hook(event: &str, name: &str, proxy: &Proxy) -> Result<HookAt, AddressError> {
    let transport = if proxy.endpoint == crate::config::NATS {
        let subject = if name.is_empty() {
            format!("hook.{event}")
        } else {
            format!("hook.{event}.{name}")
        };
        Transport::Nats { subject }
    } else {
        let headers = proxy.static_headers.iter();
        Transport::Http {
            address: Box::new(address(proxy)?),
            static_headers: headers
                .filter_map(|(name, value)| header(name, value))
                .collect::<HeaderMap>(),
        }
    };
    let names = |names: &[String]| {
        let names = names.iter();
        names.filter_map(|name| header_name(name)).collect()
    };
    Ok(HookAt {
        transport,
        timeout: proxy.timeout,
        http_headers: names(&proxy.http_headers),
        emulated_headers: names(&proxy.emulated_headers),
        include_connection_meta: proxy.include_connection_meta,
    })
}

/// What is asked where, a line each, for people.
#[must_use]
pub fn describe(settings: &HookSettings) -> Vec<String> {
    let line = |event: &str, namespace: Option<&str>, at: &HookAt| {
        let place = match namespace {
            None => String::new(),
            Some("") => " of rooms without a namespace".to_owned(),
            Some(name) => format!(" of {name}"),
        };
        match &at.transport {
            Transport::Nats { subject } => {
                format!("hook {event}{place}: a NATS service on {subject}")
            }
            Transport::Http { address, .. } => format!("hook {event}{place}: {address}"),
        }
    };
    let server = [
        ("connect", &settings.connect),
        ("refresh", &settings.refresh),
    ];
    let mut lines: Vec<String> = server
        .iter()
        .filter_map(|(event, at)| Some(line(event, None, at.as_ref()?)))
        .collect();
    for (event, all) in [
        ("subscribe", &settings.subscribe),
        ("publish", &settings.publish),
    ] {
        let all: BTreeMap<_, _> = all.iter().collect();
        lines.extend(
            all.into_iter()
                .map(|(namespace, at)| line(event, Some(namespace), at)),
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Sources;

    #[test]
    fn tables_become_hooks() {
        let text = r#"
            [client.proxy.connect]
            enabled = true
            endpoint = "https://app.example/connect"
            timeout = "250ms"
            http_headers = ["Cookie"]
            emulated_headers = ["Authorization"]
            [client.proxy.connect.http.static_headers]
            X-Key = "swordfish"
            [client.proxy.refresh]
            endpoint = "http://127.0.0.1:1/never"
            [channel.proxy.publish]
            include_connection_meta = true
            [[proxies]]
            name = "vip"
            [[channel.namespaces]]
            name = "chat"
            subscribe_proxy_enabled = true
            subscribe_proxy_name = "vip"
            publish_proxy_enabled = true
            [hooks]
            in_flight_limit = 11
            connection_in_flight_limit = 12
            answer_max_size = 1313
            breaker_failures = 14
            breaker_open_time = "15s"
        "#;
        let sources = Sources {
            file: Some(("weir.toml".to_owned(), text.to_owned())),
            ..Sources::default()
        };
        let config = Config::load(sources).unwrap().config;
        let settings = settings(&config).unwrap();
        let connect = settings.connect.as_ref().unwrap();
        assert_eq!(connect.timeout, Duration::from_millis(250));
        assert_eq!(connect.http_headers, ["cookie"]);
        assert_eq!(connect.emulated_headers, ["authorization"]);
        let Transport::Http {
            address,
            static_headers,
        } = &connect.transport
        else {
            panic!("{connect:?}");
        };
        assert_eq!(address.to_string(), "https://app.example/connect");
        assert_eq!(static_headers["x-key"], "swordfish");
        assert!(!format!("{settings:?}{config:?}").contains("swordfish"));
        assert!(settings.refresh.is_none(), "it is not enabled");
        let subject = |at: &HookAt| match &at.transport {
            Transport::Nats { subject } => subject.clone(),
            transport => panic!("{transport:?}"),
        };
        assert_eq!(settings.subscribe.len() + settings.publish.len(), 2);
        assert_eq!(subject(&settings.subscribe["chat"]), "hook.subscribe.vip");
        assert_eq!(subject(&settings.publish["chat"]), "hook.publish");
        assert!(settings.publish["chat"].include_connection_meta);
        let expected = [
            "hook connect: https://app.example/connect",
            "hook subscribe of chat: a NATS service on hook.subscribe.vip",
            "hook publish of chat: a NATS service on hook.publish",
        ];
        assert_eq!(describe(&settings), expected);
        let bounds = settings.bounds;
        let counts = (bounds.calls_max, bounds.connection_calls_max);
        assert_eq!((counts, bounds.answer_max_bytes), ((11, 12), 1_313));
        assert_eq!(bounds.breaker.failures_max, 14);
        assert_eq!(bounds.breaker.open_for, Duration::from_secs(15));
    }
}
