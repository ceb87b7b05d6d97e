//! Knows: what a configuration limits is limited, and a stop answers what is under way and sends clients away one by one.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::client::{Client, Failure, publish_body};
use crate::harness::rig::Rig;
use crate::harness::until;
use crate::harness::weir::http_get;

const WITHIN: Duration = Duration::from_secs(20);
/// `shutdown.spread`.
const SPREAD: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_a_user_requests_at_the_door_and_the_way_out() {
    let mut rig = Rig::servers(1, false, |config| {
        config.client = "user_connection_limit = 2\n".into();
        config.more = "[door]\nrate_limit = 1\nburst = 5\n[shutdown]\nspread = \"3s\"\n".into();
    })
    .await;
    let address = rig.weir.address();

    let first = rig.client("ann").await;
    let _second = rig.client("ann").await;
    let third = Client::connect(&address, Some("ann")).await.map(drop);
    assert_eq!(third.unwrap_err().code(), 3504);
    drop(first);
    until("a place is given back", WITHIN, async || {
        Client::connect(&address, Some("ann")).await.is_ok()
    })
    .await;

    let bot = rig.nats.client("bot").await;
    let mut answers: Vec<Value> = Vec::new();
    for subject in ["say.bot.chat.r0", "history.bot.chat.r0"].repeat(6) {
        let answer = bot.request(subject, "{}".into()).await.unwrap();
        answers.push(serde_json::from_slice(&answer.payload).unwrap());
    }
    let is_limited = |answer: &Value| answer["error"]["code"] == 111;
    assert!(!answers[..5].iter().any(is_limited), "{answers:?}");
    assert!(answers[5..].iter().any(is_limited), "{answers:?}");

    let mut clients = Vec::new();
    for number in 0..30 {
        clients.push(rig.client(&format!("user{number}")).await);
    }
    let ready = format!("127.0.0.1:{}", rig.weir.config.internal_port);
    let stopped = tokio::task::spawn_blocking(move || {
        rig.weir.stop();
        rig
    });
    until("not ready", SPREAD, async || {
        matches!(http_get(&ready, "/ready").await, Some((503, _)))
    })
    .await;
    let begun = Instant::now();
    let ends = join_all(clients.into_iter().map(async |mut client: Client| {
        let end = client.until_closed(WITHIN).await;
        (end, begun.elapsed())
    }))
    .await;
    for (end, _) in &ends {
        assert!(matches!(end, Failure::Closed { code: 3001, .. }), "{end:?}");
    }
    let times = ends.iter().map(|(_, at)| *at);
    let apart = times.clone().max().unwrap() - times.min().unwrap();
    assert!(apart > SPREAD / 4, "all went within {apart:?}");
    drop(stopped.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_sockets_a_second() {
    let rig = Rig::servers(1, false, |config| {
        config.client = "connection_rate_limit = 3\n".into();
    })
    .await;
    let address = rig.weir.address();
    let answers = join_all((0..40).map(|_| http_get(&address, "/"))).await;
    let of = |wanted: u16| {
        let status = answers.iter().flatten().map(|(status, _)| *status);
        status.filter(|status| *status == wanted).count()
    };
    let (served, refused) = (of(200), of(503));
    assert_eq!(served + refused, 40, "{answers:?}");
    assert!(served >= 3 && refused > 0, "{served} and {refused}");
    until("allowed again", WITHIN, async || {
        matches!(http_get(&address, "/").await, Some((200, _)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_say_nothing_yet_count_as_connections() {
    let rig = Rig::servers(1, false, |config| {
        config.client = "connection_limit = 3\n".into();
    })
    .await;
    let address = rig.weir.address();
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    // Sockets are accepted in the order in which they came.
    let mut fourth = TcpStream::connect(&address).await.unwrap();
    let mut answer = String::new();
    fourth.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

    // An upgraded socket keeps its place, and gives it back when it ends.
    let upgrade = format!(
        "GET /connection/websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    for socket in &mut idle {
        socket.write_all(upgrade.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        socket.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 101");
    }
    let connected = async || Client::connect(&address, None).await.is_ok();
    assert!(!connected().await);
    drop(idle.pop());
    until("a place is given back", WITHIN, connected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_answers_the_publishes_that_are_under_way() {
    let mut rig = Rig::servers(1, true, |config| {
        config.more = "[shutdown]\nspread = \"0s\"\n".into();
    })
    .await;
    let room = rig.rooms[0].clone();
    let mut author = rig.client("author").await;
    author.publish(&room, "{\"n\":0}").await.unwrap();
    // Without an acknowledgement they stay under way for a while.
    let proxy = rig.proxy.as_ref().unwrap();
    let lost = proxy.lose_answers(1, |frame| frame.subject.starts_with("log."));
    let body = publish_body(&room, "{\"n\":1}");
    let id = author.send("publish", &body).await.unwrap();
    until("an acknowledgement is lost", WITHIN, async || {
        lost.count() == 1
    })
    .await;
    let bot = rig.nats.client("bot").await;
    let said =
        tokio::spawn(async move { bot.request("say.bot.chat.r0", "{\"n\":2}".into()).await });
    rig.weir
        .until_metric("weir_edge_door_requests", WITHIN, |count| count >= 1.0)
        .await;
    // Nothing is answered between here and the thaw.
    rig.proxy.as_ref().unwrap().freeze();
    let pid = Pid::from_raw(rig.weir.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    until("it stops", WITHIN, async || {
        rig.weir.log().contains("stopping")
    })
    .await;
    rig.proxy.as_ref().unwrap().thaw();
    author.reply(id).await.unwrap();
    let end = author.until_closed(WITHIN).await;
    assert!(matches!(end, Failure::Closed { code: 3001, .. }), "{end:?}");
    let said = said.await.unwrap().unwrap();
    let answer: Value = serde_json::from_slice(&said.payload).unwrap();
    assert!(answer["offset"].as_u64().is_some(), "{answer}");
    until("the end", WITHIN, async || rig.weir.ended().is_some()).await;
    let log = rig.weir.log();
    assert!(log.contains("weir stopped"), "{log}");
    assert!(!log.contains("nats disconnected"), "{log}");
}
