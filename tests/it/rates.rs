//! Knows: each limit of docs/limits.md bites at its figure and not below, with its code, and nobody else notices.
//! Never: how allowances are counted (edge/src/rate.rs).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::client::{Client, Failure};
use crate::harness::nats::Nats;
use crate::harness::until;
use crate::harness::weir::{Config, Weir};

const WITHIN: Duration = Duration::from_secs(20);

/// Sends commands as one frame; how many had a result, and how many each error. A rate of one a second earns `whole
/// seconds` more meanwhile, which are returned, too.
async fn burst(client: &mut Client, commands: &[(&str, Value)]) -> Outcome {
    let lines: Vec<String> = commands
        .iter()
        .enumerate()
        .map(|(n, (method, body))| format!("{{\"id\":{},\"{method}\":{body}}}", 10_000 + n))
        .collect();
    let start = Instant::now();
    client.raw(Message::text(lines.join("\n"))).await.unwrap();
    let mut outcome = Outcome::default();
    for n in 0..commands.len() {
        match client.reply(10_000 + u32::try_from(n).unwrap()).await {
            Ok(_) => outcome.good += 1,
            Err(Failure::Error { code, .. }) => *outcome.errors.entry(code).or_default() += 1,
            Err(failure) => panic!("{failure:?}"),
        }
    }
    outcome.seconds = usize::try_from(start.elapsed().as_secs()).unwrap();
    outcome
}

#[derive(Debug, Default)]
struct Outcome {
    good: usize,
    errors: BTreeMap<u32, usize>,
    seconds: usize,
}

impl Outcome {
    /// So many were let through, and all others refused with one code. On a machine that stands still for seconds,
    /// as many more.
    fn require(&self, what: &str, allowed: usize, code: u32) {
        let most = allowed + self.seconds;
        assert!((allowed..=most).contains(&self.good), "{what}: {self:?}");
        assert!(
            self.errors.keys().all(|got| *got == code),
            "{what}: {self:?}"
        );
        assert!(!self.errors.is_empty(), "{what}: never limited: {self:?}");
    }

    fn require_all(&self, what: &str) {
        assert!(self.errors.is_empty(), "{what}: {self:?}");
    }
}

fn publishes(room: &str, count: usize) -> Vec<(&'static str, Value)> {
    vec![("publish", json!({ "channel": room, "data": 1 })); count]
}

fn histories(room: &str, count: usize) -> Vec<(&'static str, Value)> {
    vec![("history", json!({ "channel": room, "limit": 1 })); count]
}

fn presences(room: &str, count: usize) -> Vec<(&'static str, Value)> {
    vec![("presence", json!({ "channel": room })); count]
}

fn nothings(room: &str, count: usize) -> Vec<(&'static str, Value)> {
    vec![("unsubscribe", json!({ "channel": room })); count]
}

/// A publish whose payload has so many bytes.
fn of_bytes(room: &str, bytes: usize) -> (&'static str, Value) {
    let data = "b".repeat(bytes - 2);
    ("publish", json!({ "channel": room, "data": data }))
}

async fn weir(nats: &Nats, client: &str, more: &str) -> Weir {
    let mut config = Config::new(&nats.url());
    config.client = client.to_owned();
    config.more = more.to_owned();
    Weir::start(config).await
}

async fn connected(weir: &Weir, user: &str) -> Client {
    Client::connect(&weir.address(), Some(user)).await.unwrap()
}

/// What `/metrics` says was refused by a limit.
async fn refused(weir: &Weir, holder: &str, limit: &str) -> usize {
    let (_, text) = weir.get("/metrics").await.unwrap();
    let name = format!("weir_edge_limited{{holder=\"{holder}\",limit=\"{limit}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
        .parse()
        .unwrap()
}

const SIXTY_FIVE: usize = 65_536;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_a_connection() {
    let nats = Nats::start().await;
    let weir = weir(
        &nats,
        "command_rate_limit = 1\ncommand_burst = 12\n",
        "[client.rate_limit.connection]\npublish = 1\npublish_burst = 5\nread = 1\nread_burst = 3\nbytes = 1\nbytes_burst = 65536\n",
    )
    .await;
    let mut ann = connected(&weir, "ann").await;
    let outcome = burst(&mut ann, &publishes("chat:a", 8)).await;
    outcome.require("publishes", 5, 111);
    let outcome = burst(&mut ann, &histories("chat:a", 5)).await;
    outcome.require("reads", 3, 111);
    // Where a rate has something left again, presence is not there.
    let outcome = burst(&mut ann, &presences("chat:a", 4)).await;
    assert!(outcome.errors.contains_key(&111), "{outcome:?}");
    // Of 12 commands 5 + 3 were carried out; what was refused has cost nothing.
    let outcome = burst(&mut ann, &nothings("chat:a", 7)).await;
    outcome.require("commands", 4, 111);
    assert!(refused(&weir, "connection", "messages").await >= 3);
    assert!(refused(&weir, "connection", "reads").await >= 2);
    assert!(refused(&weir, "connection", "commands").await >= 3);

    // Another connection of hers has its own. The figure itself is let through, a byte more is not.
    let mut again = connected(&weir, "ann").await;
    let frames = [30_000, SIXTY_FIVE - 30_000, 100];
    for (n, bytes) in frames.into_iter().enumerate() {
        let outcome = burst(&mut again, &[of_bytes("chat:a", bytes)]).await;
        let wanted = usize::from(n < 2);
        assert_eq!(outcome.good, wanted, "{bytes} bytes: {outcome:?}");
    }
    assert_eq!(refused(&weir, "connection", "bytes").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_a_user_hold_over_connections() {
    let nats = Nats::start().await;
    let weir = weir(
        &nats,
        "user_channel_limit = 4\n",
        "[client.rate_limit.user]\nconnect = 1\nconnect_burst = 3\ncommand = 1\ncommand_burst = 80\npublish = 1\npublish_burst = 5\nread = 1\nread_burst = 3\nbytes = 1\nbytes_burst = 65536\n",
    )
    .await;
    let start = Instant::now();
    let mut first = connected(&weir, "ann").await;
    let mut second = connected(&weir, "ann").await;
    let _third = connected(&weir, "ann").await;
    let fourth = Client::connect(&weir.address(), Some("ann"))
        .await
        .map(drop);
    if start.elapsed() < Duration::from_secs(1) {
        assert_eq!(fourth.unwrap_err().code(), 111);
        assert_eq!(refused(&weir, "user", "connects").await, 1);
    }
    let mut bob = connected(&weir, "bob").await;
    let mut nobody = Client::connect(&weir.address(), None).await.unwrap();

    burst(&mut first, &publishes("chat:a", 3))
        .await
        .require_all("below");
    let outcome = burst(&mut second, &publishes("chat:a", 5)).await;
    assert!(outcome.good >= 2, "{outcome:?}");
    if start.elapsed() < Duration::from_secs(1) {
        outcome.require("publishes of both", 2, 111);
    }
    // Others, and whoever has no name, notice nothing.
    burst(&mut bob, &publishes("chat:a", 5))
        .await
        .require_all("bob");
    burst(&mut nobody, &publishes("chat:a", 30))
        .await
        .require_all("nobody");

    for number in 0..4 {
        let client = if number % 3 == 0 {
            &mut first
        } else {
            &mut second
        };
        let room = format!("chat:r{number}");
        client.subscribe(&room, None).await.unwrap();
    }
    let fifth = second.subscribe("chat:r4", None).await.unwrap_err();
    assert_eq!(fifth.code(), 106, "{fifth:?}");
    assert_eq!(refused(&weir, "user", "rooms").await, 1);
    // Refused for another reason, it takes no place; and each that is left comes back.
    let closed = second.subscribe("closed:a", None).await.unwrap_err();
    assert_eq!(closed.code(), 106, "{closed:?}");
    bob.subscribe("chat:r4", None).await.unwrap();
    first
        .call("unsubscribe", json!({ "channel": "chat:r0" }))
        .await
        .unwrap();
    let closed = second.subscribe("closed:a", None).await.unwrap_err();
    assert_eq!(closed.code(), 103, "{closed:?}");
    second.subscribe("chat:r4", None).await.unwrap();
    drop(first);
    until(
        "places of a closed connection come back",
        WITHIN,
        async || second.subscribe("chat:r5", None).await.is_ok(),
    )
    .await;

    let mut bobs = connected(&weir, "bob").await;
    burst(&mut bob, &histories("chat:a", 2))
        .await
        .require_all("below");
    let outcome = burst(&mut bobs, &histories("chat:a", 4)).await;
    assert!(outcome.good >= 1 && outcome.good <= 1 + 3, "{outcome:?}");
    assert!(
        outcome.errors.keys().all(|code| *code == 111),
        "{outcome:?}"
    );

    let mut eve = connected(&weir, "eve").await;
    burst(&mut eve, &nothings("chat:a", 90))
        .await
        .require("commands", 80, 111);
    let mut dan = connected(&weir, "dan").await;
    burst(&mut dan, &[of_bytes("chat:a", SIXTY_FIVE - 1_000)])
        .await
        .require_all("bytes");
    let mut dans = connected(&weir, "dan").await;
    burst(&mut dans, &[of_bytes("chat:a", 1_000)])
        .await
        .require_all("bytes");
    let outcome = burst(&mut dans, &[of_bytes("chat:a", 100)]).await;
    assert_eq!(outcome.errors.get(&111), Some(&1), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_an_address_and_whose_address_it_is() {
    let nats = Nats::start().await;
    let mut config = Config::new(&nats.url());
    config.http_server = "trusted_proxies = [\"127.0.0.9\"]".into();
    config.client = "address_connection_limit = 6\naddress_half_open_limit = 3\n".into();
    config.more =
        "[client.rate_limit.address]\nconnect = 1\nconnect_burst = 12\ncommand = 1\ncommand_burst = 60\npublish = 1\npublish_burst = 5\nread = 1\nread_burst = 3\nbytes = 1\nbytes_burst = 65536\n".into();
    let weir = Weir::start(config).await;
    let at = weir.address();
    let is_429 = |opened: Result<Client, Failure>| match opened {
        Ok(_) => false,
        Err(failure) => {
            assert!(format!("{failure:?}").contains("429"), "{failure:?}");
            true
        }
    };
    // Three that say nothing, and no fourth; another address has its own three.
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(Client::open_from(&at, "127.0.0.2", &[]).await.unwrap());
    }
    assert!(is_429(Client::open_from(&at, "127.0.0.2", &[]).await));
    assert_eq!(refused(&weir, "address", "half_open").await, 1);
    drop(Client::open_from(&at, "127.0.0.3", &[]).await.unwrap());
    // Connected, they are not half open; then six are the limit.
    for (n, client) in silent.iter_mut().enumerate() {
        client.hello(Some(&format!("user{n}"))).await.unwrap();
    }
    for _ in 0..3 {
        let mut client = Client::open_from(&at, "127.0.0.2", &[]).await.unwrap();
        client.hello(None).await.unwrap();
        silent.push(client);
    }
    assert!(is_429(Client::open_from(&at, "127.0.0.2", &[]).await));
    assert_eq!(refused(&weir, "address", "connections").await, 1);

    // All users of the address share what it may.
    burst(&mut silent[0], &publishes("chat:a", 3))
        .await
        .require_all("below");
    let outcome = burst(&mut silent[1], &publishes("chat:a", 9)).await;
    assert!((2..=2 + 6).contains(&outcome.good), "{outcome:?}");
    assert!(
        outcome.errors.keys().all(|code| *code == 111),
        "{outcome:?}"
    );
    let reads = burst(&mut silent[2], &histories("chat:a", 9)).await;
    reads.require("reads", 3, 111);
    let mut other = Client::open_from(&at, "127.0.0.3", &[]).await.unwrap();
    other.hello(Some("other")).await.unwrap();
    burst(&mut other, &publishes("chat:a", 5))
        .await
        .require_all("another address");

    // Nobody but a proxy of ours is believed, and of it only its own word.
    let forwarded =
        async |from: &str, by: &str| Client::open_from(&at, from, &[("x-forwarded-for", by)]).await;
    drop(forwarded("127.0.0.4", "127.0.0.2").await.unwrap());
    assert!(is_429(forwarded("127.0.0.9", "127.0.0.2").await));
    assert!(is_429(forwarded("127.0.0.9", "192.0.2.7, 127.0.0.2").await));
    drop(
        forwarded("127.0.0.9", "127.0.0.2, 192.0.2.7")
            .await
            .unwrap(),
    );
    // A /64 is one address.
    let mut held = Vec::new();
    for n in 1..=3 {
        let by = format!("2001:db8:0:1::{n}");
        held.push(forwarded("127.0.0.9", &by).await.unwrap());
    }
    assert!(is_429(forwarded("127.0.0.9", "2001:db8:0:1:ffff::1").await));
    held.push(forwarded("127.0.0.9", "2001:db8:0:2::1").await.unwrap());

    // Sockets that come too often, one after the other.
    let (mut opened, start) = (0, Instant::now());
    for _ in 0..40 {
        match Client::open_from(&at, "127.0.0.5", &[]).await {
            Ok(mut client) => {
                opened += 1;
                client.hello(None).await.unwrap();
            }
            refused => assert!(is_429(refused)),
        }
    }
    let earned = usize::try_from(start.elapsed().as_secs()).unwrap();
    assert!(opened <= 12 + earned, "{opened} in {earned} s");
    assert!(opened >= 6, "{opened}");
    assert!(
        refused(&weir, "address", "connects").await
            + refused(&weir, "address", "connections").await
            > 1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_a_namespace_hold_at_every_door() {
    let nats = Nats::start().await;
    let namespace = |name: &str, more: &str| {
        format!(
            "[[channel.namespaces]]\nname = \"{name}\"\nhistory_size = -1\nallow_subscribe_for_client = true\n\
             allow_publish_for_client = true\nallow_history_for_client = true\n{more}\n"
        )
    };
    let tables = [
        namespace(
            "small",
            "room_limit = 3\n[channel.namespaces.rate_limit]\npublish = 1\npublish_burst = 5\nread = 1\nread_burst = 4",
        ),
        namespace(
            "few",
            "[channel.namespaces.rate_limit]\ncommand = 1\ncommand_burst = 6",
        ),
        namespace(
            "thin",
            "[channel.namespaces.rate_limit]\nbytes = 1\nbytes_burst = 65536",
        ),
    ];
    let weir = weir(&nats, "", &tables.concat()).await;
    let mut ann = connected(&weir, "ann").await;
    let mut bob = connected(&weir, "bob").await;
    let bot = nats.client("bot").await;
    let start = Instant::now();
    // Who may not speak there costs those who may nothing.
    let mut eve = Client::connect(&weir.address(), None).await.unwrap();
    let outcome = burst(&mut eve, &publishes("small:a", 9)).await;
    assert_eq!(outcome.errors, [(103, 9)].into(), "{outcome:?}");
    burst(&mut ann, &publishes("small:a", 3))
        .await
        .require_all("below");
    let outcome = burst(&mut bob, &publishes("small:b", 9)).await;
    assert!(outcome.good >= 2, "{outcome:?}");
    assert!(
        outcome.errors.keys().all(|code| *code == 111),
        "{outcome:?}"
    );
    let say = async |subject: &'static str| {
        let answer = bot.request(subject, "1".into()).await.unwrap();
        serde_json::from_slice::<Value>(&answer.payload).unwrap()["error"]["code"].clone()
    };
    let limited = say("say.bot.small.c").await;
    let read = burst(&mut ann, &histories("small:a", 4)).await;
    read.require_all("reads below");
    let limited_read = say("history.bot.small.c").await;
    if start.elapsed() < Duration::from_secs(1) {
        assert_eq!(outcome.good, 2, "{outcome:?}");
        assert_eq!((limited, limited_read), (json!(111), json!(111)));
    }
    assert_eq!(
        say("say.bot.chat.c").await,
        Value::Null,
        "another namespace"
    );
    burst(&mut ann, &publishes("chat:a", 30))
        .await
        .require_all("another namespace");

    burst(&mut ann, &nothings("few:a", 9))
        .await
        .require_all("leaving is free");
    let outcome = burst(&mut ann, &publishes("few:a", 9)).await;
    outcome.require("commands", 6, 111);
    let outcome = burst(&mut ann, &[of_bytes("thin:a", SIXTY_FIVE - 100)]).await;
    outcome.require_all("bytes");
    burst(&mut bob, &[of_bytes("thin:a", 100)])
        .await
        .require_all("bytes");
    let outcome = burst(&mut bob, &[of_bytes("thin:b", 100)]).await;
    assert_eq!(outcome.errors.get(&111), Some(&1), "{outcome:?}");

    // Rooms that are open, whoever is in them.
    for room in ["small:a", "small:b", "small:c"] {
        ann.subscribe(room, None).await.unwrap();
    }
    let fourth = ann.subscribe("small:d", None).await.unwrap_err();
    assert_eq!(fourth.code(), 111, "{fourth:?}");
    bob.subscribe("small:c", None).await.unwrap();
    bob.subscribe("chat:d", None).await.unwrap();
    assert_eq!(refused(&weir, "namespace", "rooms").await, 1);
    assert!(refused(&weir, "namespace", "messages").await >= 5);
}

/// The shipped profile, as flags over the configuration of these tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hardened_profile_takes_effect() {
    let nats = Nats::start().await;
    let hardened: toml::Table = include_str!("../../deploy/hardened.toml").parse().unwrap();
    let mut config = Config::new(&nats.url());
    flatten("", &hardened, &mut config.sets);
    let weir = Weir::start(config).await;
    let at = weir.address();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(Client::open_from(&at, "127.0.0.2", &[]).await.unwrap());
    }
    let more = Client::open_from(&at, "127.0.0.2", &[]).await.map(drop);
    assert!(format!("{more:?}").contains("429"), "{more:?}");
    let end = silent[0].until_closed(WITHIN).await;
    assert_eq!(end.code(), 3502, "{end:?}");

    // Rates of fifty a second earn something while a machine is slow.
    let mut nobody = Client::connect(&at, None).await.unwrap();
    let start = Instant::now();
    let outcome = burst(&mut nobody, &nothings("chat:a", 400)).await;
    let earned = 50.0 * start.elapsed().as_secs_f64();
    assert!(outcome.good >= 100, "{outcome:?}");
    assert!(outcome.good as f64 <= 100.0 + earned + 1.0, "{outcome:?}");
}

fn flatten(path: &str, table: &toml::Table, into: &mut Vec<String>) {
    for (name, value) in table {
        let key = format!("{path}{name}");
        match value {
            toml::Value::Table(inner) => flatten(&format!("{key}."), inner, into),
            // The tests' own tokens are good for longer.
            _ if key == "client.token.exp_max_ahead" => {}
            toml::Value::Array(items) => assert!(items.is_empty(), "{key}"),
            toml::Value::String(text) => into.push(format!("{key}={text}")),
            other => into.push(format!("{key}={other}")),
        }
    }
}
