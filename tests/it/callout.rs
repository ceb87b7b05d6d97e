//! Knows: a bot, a device and a browser with tokens in one closed room: each does its own, is stamped with its name, and
//! is refused the rest. Never: every right and every subject (authz/tests/callout).

use std::time::Duration;

use async_nats::{ConnectOptions, HeaderMap};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::harness::client::{Client, Failure, Position};
use crate::harness::nats::Nats;
use crate::harness::weir::{Config, Weir};
use crate::harness::within;
use crate::mqtt::Mqtt;
use crate::raw_nats::Raw;

const ROOM: &str = "closed:plant";
const WITHIN: Duration = Duration::from_secs(20);

fn token(weir: &Weir, user: &str, allow: &str) -> String {
    let caps = format!("[{{\"channels\":[\"{ROOM}\"],\"allow\":[{allow}]}}]");
    let made = weir
        .command("token", &["--user", user, "--caps", &caps])
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

async fn native(nats: &Nats, user: &str, token: &str) -> async_nats::Client {
    ConnectOptions::with_token(token.to_owned())
        .custom_inbox_prefix(format!("_INBOX.{user}"))
        .connect(nats.url())
        .await
        .unwrap()
}

async fn browser(weir: &Weir, token: &str) -> Client {
    let mut client = Client::open(&weir.address()).await.unwrap();
    client
        .call("connect", json!({ "token": token }))
        .await
        .unwrap();
    client
}

fn author(headers: Option<&HeaderMap>) -> String {
    let author = headers.and_then(|headers| headers.get_last("Weir-User"));
    author.map(ToString::to_string).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bot_a_device_and_a_browser_share_a_room_with_least_rights() {
    let nats = Nats::start().await;
    let mut config = Config::new(&nats.url());
    config.more = nats.auth_callout();
    let weir = Weir::start(config).await;
    let writes = token(&weir, "dev7", "\"pub\"");
    let reads = token(&weir, "bot7", "\"sub\",\"hst\"");
    let both = token(&weir, "ann", "\"sub\",\"pub\",\"hst\"");

    let (device, bot) = (
        native(&nats, "dev7", &writes).await,
        native(&nats, "bot7", &reads).await,
    );
    let mut ann = browser(&weir, &both).await;
    let joined = ann.subscribe(ROOM, None).await.unwrap();
    let since = Position {
        epoch: joined.epoch,
        offset: joined.offset,
    };
    let mut live = bot.subscribe("room.closed.plant").await.unwrap();
    bot.flush().await.unwrap();

    // The device over MQTT: what is forbidden is acknowledged, and nobody hears of it.
    let port = nats.mqtt_port;
    let sensor = Mqtt::connect(port, "dev7:1", "dev7", &writes).await;
    let mut sensor = sensor.ok().unwrap();
    assert_eq!(sensor.subscribe("room/closed/plant").await, 128);
    for topic in [
        "say/dev7/closed/other",
        "say/ann/closed/plant",
        "history/dev7/closed/plant",
        "room/closed/plant",
    ] {
        sensor.publish(topic, "{\"n\":-1}", 1, false).await;
    }
    sensor
        .publish("say/dev7/closed/plant", "{\"n\":0}", 1, false)
        .await;
    // Natively each is refused by nats-server what the others may.
    let mut raw = Raw::login(nats.port, &writes).await.unwrap();
    assert!(!raw.may_hear("room.closed.plant").await);
    assert!(!raw.may_publish("history.dev7.closed.plant").await);
    let mut raw = Raw::login(nats.port, &reads).await.unwrap();
    assert!(!raw.may_publish("say.bot7.closed.plant").await);
    assert!(!raw.may_publish("history.dev7.closed.plant").await);

    let (_, first) = ann.publication(WITHIN).await.unwrap();
    assert_eq!(
        (first.data.get(), first.info.unwrap().user.as_str()),
        ("{\"n\":0}", "dev7")
    );
    // A device says who it is by its subject alone.
    let mut forged = HeaderMap::new();
    for name in ["Weir-User", "Nats-Sequence", "Weir-Client"] {
        forged.insert(name, "root");
    }
    let said = device.request_with_headers("say.dev7.closed.plant", forged, "{\"n\":1}".into());
    let said: Value = serde_json::from_slice(&said.await.unwrap().payload).unwrap();
    assert!(said["offset"].as_u64().is_some(), "{said}");
    ann.publish(ROOM, "{\"n\":2}").await.unwrap();

    let (_, first) = ann.publication(WITHIN).await.unwrap();
    assert_eq!(
        (first.data.get(), first.info.unwrap().user.as_str()),
        ("{\"n\":1}", "dev7")
    );
    for (payload, user) in [
        ("{\"n\":0}", "dev7"),
        ("{\"n\":1}", "dev7"),
        ("{\"n\":2}", "ann"),
    ] {
        let message = within("a live message", WITHIN, live.next()).await.unwrap();
        assert_eq!(
            (&message.payload[..], author(message.headers.as_ref())),
            (payload.as_bytes(), user.to_owned())
        );
    }
    // Read back and recovered, they have the same authors.
    let page = bot
        .request("history.bot7.closed.plant", "{\"limit\":10}".into())
        .await
        .unwrap();
    let page: Value = serde_json::from_slice(&page.payload).unwrap();
    let users: Vec<_> = page["publications"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["user"].clone())
        .collect();
    assert_eq!(users, ["dev7", "dev7", "ann"], "{page}");
    let mut again = browser(&weir, &both).await;
    let recovered = again.subscribe(ROOM, Some(&since)).await.unwrap();
    let users: Vec<_> = recovered
        .publications
        .iter()
        .map(|one| one.info.as_ref().unwrap().user.clone())
        .collect();
    assert!(recovered.recovered);
    assert_eq!(users, ["dev7", "dev7", "ann"]);

    // The same tokens at a socket: each has its own rights and no others.
    let denied = |found: Result<(), Failure>| assert_eq!(found.unwrap_err().code(), 103);
    let mut device = browser(&weir, &writes).await;
    device.publish(ROOM, "{\"n\":3}").await.unwrap();
    denied(device.subscribe(ROOM, None).await.map(drop));
    denied(device.history(ROOM, None, 1, false).await.map(drop));
    denied(device.publish("closed:other", "{}").await);
    let mut reader = browser(&weir, &reads).await;
    reader.subscribe(ROOM, None).await.unwrap();
    denied(reader.publish(ROOM, "{}").await);
    denied(reader.subscribe("closed:other", None).await.map(drop));

    // What operators look at.
    let shown = weir
        .command("auth", &["permissions", "--token", &reads])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for line in [
        "room.closed.plant",
        "history.bot7.closed.plant",
        "closed:plant: subscribe, history\n",
    ] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
    assert!(!shown.contains("say.bot7.closed"), "{shown}");
    let checked = weir.command("check", &[]).output().unwrap();
    let checked = String::from_utf8(checked.stdout).unwrap();
    assert!(
        checked.contains("auth callout: a token is let in"),
        "{checked}"
    );
    let log = weir.log();
    for part in [&writes, &reads, &both]
        .iter()
        .flat_map(|token| token.split('.').skip(1))
    {
        assert!(!log.contains(part), "a token is in the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_weir_is_dead_those_who_are_in_stay_and_nobody_gets_in() {
    let nats = Nats::start().await;
    let mut config = Config::new(&nats.url());
    config.more = nats.auth_callout();
    let mut weir = Weir::start(config).await;
    let reads = token(&weir, "bot7", "\"sub\"");
    let mut inside = Raw::login(nats.port, &reads).await.unwrap();
    weir.kill();
    let refused = Raw::login(nats.port, &reads).await.err().unwrap();
    let texts = ["Authorization Violation", "Authentication Timeout"];
    assert!(texts.iter().any(|text| refused.contains(text)), "{refused}");
    assert!(inside.may_hear("room.closed.plant").await);
    assert!(!inside.may_hear("room.closed.other").await && !inside.may_publish("log.x").await);
    // Users of nats-server's configuration are not asked about.
    nats.client("bot").await.flush().await.unwrap();
    weir.spawn();
    weir.until_ready().await;
    assert!(Raw::login(nats.port, &reads).await.is_ok());
    assert_eq!(inside.after("").await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_as_many_native_connections_as_is_configured() {
    let nats = Nats::start().await;
    let mut config = Config::new(&nats.url());
    config.more =
        nats.auth_callout() + "user_connection_limit = 2\n[nats.kick]\npassword = \"weir_kick\"\n";
    let weir = Weir::start(config).await;
    let reads = token(&weir, "bot7", "\"sub\"");
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(Raw::login(nats.port, &reads).await.unwrap());
    }
    all.pop().unwrap().until_closed().await;
    for connection in &mut all {
        assert_eq!(connection.after("").await, Ok(Vec::new()));
    }
    weir.until_metric("weir_native_connections_kicked_total", WITHIN, |kicked| {
        kicked == 1.0
    })
    .await;
    let checked = weir.command("check", &[]).output().unwrap();
    let checked = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.contains("a token is let in"), "{checked}");
}
