//! Knows: what an application's services decide at a real socket, over NATS and over HTTP; and that a service that
//! hangs, lies, floods or is absent opens nothing and holds nobody else up. Never: how Weir asks.

mod backend;
mod failing;
mod refreshing;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json as value};

use crate::figures::figure;
use crate::harness::client::{Client, Failure};
use crate::harness::rig::Rig;
use crate::harness::until;
use crate::harness::weir::Config;
use backend::{Asked, Backend, Play, Reply, json};

const WITHIN: Duration = Duration::from_secs(20);

/// A way to the services.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    Nats,
    Http,
}

/// Namespaces whose rooms the application decides about: `ask` of both, `vip` by a service of its own name, `loose`
/// stores nothing.
fn configure(config: &mut Config, endpoint: impl Fn(&str) -> String, more: &str) {
    for event in ["client.proxy.connect", "client.proxy.refresh"] {
        let name = event.rsplit('.').next().unwrap();
        writeln!(
            config.more,
            "[{event}]\nenabled = true\nendpoint = {:?}\ntimeout = \"1s\"\ninclude_connection_meta = true\n\
             http_headers = [\"Cookie\"]\nemulated_headers = [\"X-Tab\", \"Cookie\"]",
            endpoint(name)
        )
        .unwrap();
    }
    for event in ["channel.proxy.subscribe", "channel.proxy.publish"] {
        let name = event.rsplit('.').next().unwrap();
        writeln!(
            config.more,
            "[{event}]\nendpoint = {:?}\ntimeout = \"1s\"\ninclude_connection_meta = true",
            endpoint(name)
        )
        .unwrap();
    }
    writeln!(
        config.more,
        "[[proxies]]\nname = \"vip\"\nendpoint = {:?}\ntimeout = \"1s\"",
        endpoint("vip")
    )
    .unwrap();
    for (name, history, proxy) in [("ask", -1, ""), ("vip", -1, "vip"), ("asked-loose", 0, "")] {
        writeln!(
            config.more,
            "[[channel.namespaces]]\nname = {name:?}\nhistory_size = {history}\n\
             subscribe_proxy_enabled = true\nsubscribe_proxy_name = {proxy:?}\n\
             publish_proxy_enabled = true\npublish_proxy_name = {proxy:?}\n\
             allow_history_for_client = true\nallow_subscribe_for_client = true\n\
             allow_publish_for_client = true\nallow_user_limited_channels = true"
        )
        .unwrap();
    }
    writeln!(config.more, "{more}").unwrap();
}

/// Servers, and services that do as told.
async fn rig(over: Over, play: &Play, more: &str, client: &str) -> (Rig, Backend) {
    let http = match over {
        Over::Nats => None,
        Over::Http => Some(Box::pin(Backend::over_http(play)).await),
    };
    let url = http.as_ref().map(|http| http.url.clone());
    let servers = Rig::servers(1, false, |config| {
        client.clone_into(&mut config.client);
        let endpoint = |event: &str| {
            url.as_ref()
                .map_or_else(|| "nats".to_owned(), |url| format!("{url}/{event}"))
        };
        configure(config, endpoint, more);
    });
    let rig = Box::pin(servers).await;
    let backend = match http {
        Some(http) => http,
        None => Box::pin(Backend::over_nats(&rig.nats, play)).await,
    };
    (rig, backend)
}

/// Connects without a token, with data for the application.
async fn connect(address: &str, data: Value) -> Result<(Client, Value), Failure> {
    let mut client = Client::open(address).await?;
    let hello = client.call("connect", value!({ "data": data })).await?;
    Ok((client, hello))
}

/// An application: who says a name is that one, and what it says of rooms and words.
fn application(asked: &Asked) -> Reply {
    let body = &asked.body;
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let error = |code: u32| json(&value!({ "error": { "code": code, "message": "no" } }));
    let yes = |result: Value| json(&value!({ "result": result }));
    let event = asked.event.split('.').next().unwrap();
    match event {
        "connect" => match text("/data/as") {
            "nobody" => error(401),
            "gone" => json(&value!({ "disconnect": { "code": 4501, "reason": "gone" } })),
            "late" => {
                json(&value!({ "error": { "code": 1999, "message": "", "temporary": true } }))
            }
            user => yes(value!({
                "user": user, "info": { "of": user }, "data": { "hello": user }, "meta": { "of": user },
                "caps": body.pointer("/data/caps").cloned().unwrap_or(value!([])),
            })),
        },
        "subscribe" | "vip" if text("/channel").ends_with(":in") => yes(value!({
            "info": { "in": "the room" }, "data": { "topic": 1 },
            "override": { "force_recovery": { "value": true } },
        })),
        "subscribe" if text("/channel").ends_with(":away") => {
            json(&value!({ "disconnect": { "code": 4000, "reason": "come back" } }))
        }
        "publish" | "vip" => match text("/data/text") {
            "word" => error(460),
            "rewrite" => yes(value!({ "data": { "text": "better" } })),
            "away" => json(&value!({ "disconnect": { "code": 4999 } })),
            _ => yes(value!({})),
        },
        _ => error(403),
    }
}

async fn p50_of_publishes(client: &mut Client, room: &str) -> Duration {
    let mut took = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        client.publish(room, r#"{"text":"x"}"#).await.unwrap();
        took.push(start.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

async fn decides(over: Over) {
    let play = Play::new(application);
    let (rig, _backend) = rig(over, &play, "", "").await;
    let address = rig.weir.address();

    let (mut ann, hello) = connect(&address, value!({ "as": "ann" })).await.unwrap();
    assert_eq!(hello["data"], value!({ "hello": "ann" }));
    assert_eq!(hello.get("expires"), None);
    for (who, code) in [("nobody", 401), ("late", 1_999), ("gone", 4_501)] {
        let failure = connect(&address, value!({ "as": who }))
            .await
            .err()
            .unwrap();
        assert_eq!(failure.code(), code, "{who}: {failure:?}");
        if let Failure::Error { temporary, .. } = failure {
            assert_eq!(temporary, who == "late");
        }
    }

    let joined = ann.subscribe("ask:in", None).await.unwrap();
    assert!(joined.recoverable && joined.positioned);
    assert_eq!(joined.data, value!({ "topic": 1 }));
    let refused = ann.subscribe("ask:out", None).await.unwrap_err();
    let expected = Failure::Error {
        code: 403,
        message: "no".to_owned(),
        temporary: false,
    };
    assert_eq!(refused, expected);
    // What it would not be asked about in Centrifugo either.
    assert_eq!(
        ann.subscribe("$ask:in", None).await.unwrap_err().code(),
        103
    );
    ann.subscribe("ask:x#ann,bob", None).await.unwrap();
    let limited = ann.subscribe("ask:x#bob", None).await.unwrap_err();
    assert_eq!(limited.code(), 103);
    ann.subscribe("vip:in", None).await.unwrap();

    ann.publish("ask:in", r#"{"text":"one"}"#).await.unwrap();
    assert_eq!(
        ann.publish("ask:in", r#"{"text":"word"}"#)
            .await
            .unwrap_err()
            .code(),
        460
    );
    ann.publish("ask:in", r#"{"text":"rewrite"}"#)
        .await
        .unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let (channel, publication) = ann.publication(WITHIN).await.unwrap();
        assert_eq!(channel, "ask:in");
        let info = publication.info.unwrap();
        assert_eq!(info.user, "ann");
        assert_eq!(info.conn_info, Some(value!({ "of": "ann" })));
        assert_eq!(info.chan_info, Some(value!({ "in": "the room" })));
        seen.push(publication.data.get().to_owned());
    }
    assert_eq!(seen, [r#"{"text":"one"}"#, r#"{"text":"better"}"#]);
    let page = ann.history("ask:in", None, 10, false).await.unwrap();
    assert_eq!(page.publications.len(), 2, "what was refused is not stored");
    ann.publish("asked-loose:in", r#"{"text":"one"}"#)
        .await
        .unwrap();

    for (method, body, code) in [
        ("subscribe", value!({ "channel": "ask:away" }), 4_000),
        (
            "publish",
            value!({ "channel": "ask:in", "data": { "text": "away" } }),
            4_999,
        ),
    ] {
        let (mut bob, _) = connect(&address, value!({ "as": "bob" })).await.unwrap();
        let failure = bob.call(method, body).await.unwrap_err();
        assert_eq!(failure.code(), code, "{method}: {failure:?}");
    }

    // A right of its own is not asked about; those of a namespace are no right here.
    let caps = value!([{ "channels": ["ask:own", "$ask:own"], "allow": ["sub", "pub"] }]);
    let own = connect(&address, value!({ "as": "eve", "caps": caps })).await;
    let (mut eve, _) = own.unwrap();
    let before = play.asked().len();
    for room in ["ask:own", "$ask:own"] {
        eve.subscribe(room, None).await.unwrap();
        eve.publish(room, "1").await.unwrap();
    }
    assert_eq!(play.asked().len(), before);

    let questions = play.asked();
    let first = |event: &str| questions.iter().find(|asked| asked.event == event).unwrap();
    assert_eq!(first("connect").body["data"], value!({ "as": "ann" }));
    assert_eq!(first("connect").body["transport"], "websocket");
    let subscribe = first("subscribe");
    assert_eq!(subscribe.body["user"], "ann");
    assert_eq!(subscribe.body["channel"], "ask:in");
    assert_eq!(subscribe.body["meta"], value!({ "of": "ann" }));
    assert_eq!(first("publish").body["data"], value!({ "text": "one" }));
    let named = if over == Over::Nats {
        "subscribe.vip"
    } else {
        "vip"
    };
    assert_eq!(first(named).body["channel"], "vip:in");
    let names = |channel: &str| {
        questions
            .iter()
            .any(|asked| asked.body["channel"] == channel)
    };
    assert!(!names("$ask:in") && !names("ask:x#bob") && !names("ask:x#ann,bob"));

    let plain = p50_of_publishes(&mut ann, "chat:r0").await;
    let asked = p50_of_publishes(&mut ann, "ask:in").await;
    figure!(
        "a publish takes {asked:.1?} (p50) where a service allows it over {over:?}, else {plain:.1?}"
    );

    // At the native door there is nobody to ask, so nothing opens there.
    if over == Over::Nats {
        let bot = rig.nats.client("bot").await;
        let answer = bot.request("say.bot.ask.in", "1".into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(answer["error"]["code"], 103, "{answer}");
    }
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_decide_over_nats() {
    Box::pin(decides(Over::Nats)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_decide_over_http() {
    Box::pin(decides(Over::Http)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_passed_on_as_configured() {
    for over in [Over::Nats, Over::Http] {
        let play = Play::new(application);
        let (rig, _backend) = rig(over, &play, "", "").await;
        let address = rig.weir.address();
        let sent = [("cookie", "session=1"), ("authorization", "Basic x")];
        let mut client = Client::open_with(&address, None, &sent).await.unwrap();
        let given = value!({ "X-Tab": "7", "Cookie": "session=2", "X-Other": "1", "Content-Type": "text/html" });
        let connect = value!({ "data": { "as": "ann" }, "headers": given });
        client.call("connect", connect).await.unwrap();
        let asked = play.asked();
        let header = |name: &str| {
            let mut headers = asked[0].headers.iter();
            let found = headers.find(|(header, _)| header == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(header("cookie"), Some("session=1"), "{over:?}");
        assert_eq!(header("x-tab"), Some("7"));
        assert_eq!(header("authorization"), None);
        assert_eq!(header("x-other"), None);
    }
}
