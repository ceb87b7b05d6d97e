//! Knows: what a configuration limits is limited, and a stop sends clients away one by one.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;

use crate::harness::client::{Client, Failure};
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
