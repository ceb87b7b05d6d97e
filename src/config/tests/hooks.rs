//! Knows: broken tables of hooks and the errors they must give, and what is only warned of. Never: services.

use super::*;

/// Text, line, key, a part of the message.
const BROKEN: &[(&str, usize, &str, &str)] = &[
    (
        "[client.proxy.connect]\nendpoint = \"app.example/connect\"",
        2,
        "client.proxy.connect.endpoint",
        "write \"nats\", or a URL",
    ),
    (
        "[client.proxy.connect]\nendpoint = \"grpc://app.example:9000\"",
        2,
        "client.proxy.connect.endpoint",
        "GRPC is not in this version",
    ),
    (
        "[client.proxy.refresh]\nendpoint = \"https://user:swordfish@app.example/\"",
        2,
        "client.proxy.refresh.endpoint",
        "a user or a password",
    ),
    (
        "[channel.proxy.subscribe]\nendpoint = \"https://{{tenant}}.example/\"",
        2,
        "channel.proxy.subscribe.endpoint",
        "placeholder",
    ),
    (
        "[channel.proxy.publish]\nendpoint = \"https://app.example/\"\ntls_ca_file = \"/nowhere/ca.pem\"",
        2,
        "channel.proxy.publish.endpoint",
        "cannot be read",
    ),
    (
        "[channel.proxy.publish]\ntls_ca_file = \"/nowhere/ca.pem\"",
        2,
        "channel.proxy.publish.tls_ca_file",
        "is a NATS service",
    ),
    (
        "[channel.proxy.publish.http.static_headers]\nX-Key = \"swordfish\"",
        2,
        "channel.proxy.publish.http.static_headers",
        "is a NATS service",
    ),
    (
        "[channel.proxy.publish]\nendpoint = \"https://app.example/\"\n[channel.proxy.publish.http.static_headers]\nX-Key = 7",
        4,
        "channel.proxy.publish.http.static_headers.X-Key",
        "a table of texts",
    ),
    (
        "[channel.proxy.publish]\nendpoint = \"https://app.example/\"\n[channel.proxy.publish.http.static_headers]\nHost = \"x\"",
        4,
        "channel.proxy.publish.http.static_headers",
        "\"Host\" is no header",
    ),
    (
        "[client.proxy.connect]\nendpoint = \"https://app.example/\"\nemulated_headers = [\"x-key\"]\n[client.proxy.connect.http.static_headers]\nX-Key = \"swordfish\"",
        5,
        "client.proxy.connect.http.static_headers",
        "passed on from clients",
    ),
    (
        "[client.proxy.connect]\ntimeout = \"5s\"",
        2,
        "client.proxy.connect.timeout",
        "SDKs give up",
    ),
    (
        "[client.proxy.connect]\nhttp_headers = [\"Cookie\", \"Content-Length\"]",
        2,
        "client.proxy.connect.http_headers",
        "\"Content-Length\" is no header to pass on",
    ),
    (
        "[client.proxy.connect]\nemulated_headers = [\"Nats-Msg-Id\"]",
        2,
        "client.proxy.connect.emulated_headers",
        "no header to pass on",
    ),
    (
        "[client.proxy.connect]\nemulated_headers = [\"a b\"]",
        2,
        "client.proxy.connect.emulated_headers",
        "no header to pass on",
    ),
    (
        "[client.proxy.connect]\nbinary_encoding = true",
        2,
        "client.proxy.connect.binary_encoding",
        "Centrifugo has this option",
    ),
    (
        "[channel.without_namespace]\nsub_refresh_proxy_enabled = true",
        2,
        "channel.without_namespace.sub_refresh_proxy_enabled",
        "Centrifugo has this option",
    ),
    (
        "[[channel.namespaces]]\nname = \"chat\"\npublish_proxy_enabled = true\npublish_proxy_name = \"vip\"",
        4,
        "channel.namespaces.chat.publish_proxy_name",
        "there is no proxy \"vip\"",
    ),
    (
        "[[proxies]]\nname = \"a.b\"",
        2,
        "proxies.a.b.name",
        "no name for a proxy",
    ),
    (
        "[[proxies]]\nname = \"vip\"\n[[proxies]]\nname = \"vip\"",
        4,
        "proxies.vip.name",
        "two proxies",
    ),
    (
        "[hooks]\nanswer_max_size = 10",
        2,
        "hooks.answer_max_size",
        "from 1024",
    ),
    (
        "[hooks]\nbreaker_open_time = \"1ms\"",
        2,
        "hooks.breaker_open_time",
        "too short",
    ),
];

#[test]
fn every_broken_hook_names_line_key_and_remedy() {
    for (text, line, key, part) in BROKEN {
        let errors = load(text).expect_err(text);
        let at = format!("weir.toml:{line}");
        let mut all = errors.0.iter();
        assert!(
            all.any(|p| p.key == *key && p.at == at && p.to_string().contains(part)),
            "{text}\n=> expected {at}: {key}: …{part}…, got:\n{errors}"
        );
        assert!(!errors.to_string().contains("swordfish"), "{errors}");
    }
}

#[test]
fn headers_of_requests_come_from_a_table_or_a_variable() {
    let text = "[client.proxy.connect]\nenabled = true\nendpoint = \"https://app.example/\"\n\
                [client.proxy.connect.http.static_headers]\nX-A = \"1\"\n";
    let name = "WEIR_CLIENT_PROXY_CONNECT_HTTP_STATIC_HEADERS";
    let env = [(name, r#"{"X-B": "swordfish"}"#)];
    let loaded = Config::load(from(text, &env, &[])).unwrap();
    assert!(!format!("{loaded:?}").contains("swordfish"));
    let connect = loaded.config.client.proxy.connect.unwrap();
    let headers: Vec<(&str, &str)> = connect
        .static_headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.expose()))
        .collect();
    assert_eq!(headers, [("X-A", "1"), ("X-B", "swordfish")]);
    let wrong = Config::load(from(text, &[(name, "swordfish")], &[]));
    let wrong = wrong.unwrap_err().to_string();
    assert!(
        wrong.contains(name) && !wrong.contains("swordfish"),
        "{wrong}"
    );
}

#[test]
fn what_has_no_effect_or_is_in_the_open_is_a_warning() {
    let text = r#"
        [client]
        allow_anonymous_connect_without_token = true
        [client.proxy.connect]
        enabled = true
        endpoint = "http://app.example/connect"
        [[proxies]]
        name = "near"
        endpoint = "http://127.0.0.1:3000/"
        [[channel.namespaces]]
        name = "chat"
        subscribe_proxy_name = "near"
        publish_proxy_enabled = true
        allow_publish_for_subscriber = true
        [[channel.namespaces]]
        name = "news"
        subscribe_proxy_enabled = true
        allow_subscribe_for_client = true
    "#;
    let warnings = load(text).unwrap().warnings;
    for part in [
        "client.allow_anonymous_connect_without_token: it has no effect",
        "client.proxy.connect.endpoint: over plain HTTP",
        "channel.namespaces.chat.subscribe_proxy_name: it has no effect",
        "channel.namespaces.chat.allow_publish_",
        "channel.namespaces.news.allow_subscribe_for_client",
    ] {
        let found = warnings.iter().any(|warning| warning.contains(part));
        assert!(found, "{part}: {warnings:?}");
    }
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    // Where the application decides about connects, no key is needed.
    let none = load("[client.proxy.connect]\nenabled = true\n").unwrap();
    assert!(none.warnings.is_empty(), "{:?}", none.warnings);
}
