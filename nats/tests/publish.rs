//! Publishing into a real nats-server: order, the three ends, and every message once.

#![allow(
    clippy::unwrap_used,
    clippy::large_futures,
    reason = "a test fails by panicking, and runs alone"
)]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::proxy::Proxy;
use common::{PATIENCE, Process, Server, eventually, rooms, stored, text};
use tokio::sync::broadcast;
use tokio::time::Instant;
use weir_nats::RoomName;
use weir_nats::connect::Links;
use weir_nats::publish::{ANSWER_WITHIN, Outcome, Refusal};
use weir_nats::stream::LogConfig;

async fn next(resync: &mut broadcast::Receiver<RoomName>) -> String {
    let room = tokio::time::timeout(PATIENCE, resync.recv()).await;
    room.expect("a room is resynced").unwrap().to_string()
}

/// Publishes in flight of fifty callers become batches; each gets the offset of its own message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_publishers_are_stored_once_in_the_order_of_their_calls() {
    let server = Server::start();
    let process = Process::start(&server).await;
    let mut outcomes = Vec::new();
    for round in 0..40 {
        for caller in 0..50 {
            let room = format!("chat:{}", caller % 7);
            let text = format!("{round}-{caller}");
            outcomes.push((text.clone(), process.submit(&room, &text)));
        }
    }
    let mut offsets = HashMap::new();
    let mut called = Vec::new();
    for (text, outcome) in outcomes {
        offsets.insert(text.clone(), stored(&outcome.await.unwrap()));
        called.push(text);
    }
    let all = process.all().await;
    assert_eq!(all.iter().map(text).collect::<Vec<_>>(), called);
    for delivery in &all {
        assert_eq!(offsets[&text(delivery)], delivery.message.seq.get());
        assert_eq!(delivery.message.author.as_ref().unwrap().user, "ann");
    }
}

#[tokio::test]
async fn an_idle_publisher_sends_at_once_and_live_copies_follow() {
    let server = Server::start();
    let process = Process::start(&server).await;
    let mut live = process.links.live.subscribe("room.chat.*").await.unwrap();
    process.links.live.flush().await.unwrap();
    let outcome = process.submit("chat:lobby", "hi").await.unwrap();
    let copy = futures_util::StreamExt::next(&mut live).await.unwrap();
    assert_eq!(copy.subject.as_str(), "room.chat.lobby");
    assert_eq!(copy.payload, "hi");
    assert_eq!(stored(&outcome), 1);
}

#[tokio::test]
async fn a_callers_key_is_stored_once_and_belongs_to_room_and_author() {
    let server = Server::start();
    let process = Process::start(&server).await;
    let mut resync = process.publisher.resync();
    let publish = async |user: &str, room: &str, key: &str| {
        let outcome = process.submit_as(user, room, "x", Some(key)).await.unwrap();
        let Outcome::Stored { duplicate, .. } = outcome else {
            panic!("{outcome:?}")
        };
        (stored(&outcome), duplicate)
    };
    assert_eq!(publish("ann", "chat:a", "k").await, (1, false));
    assert_eq!(publish("ann", "chat:a", "k").await, (1, true));
    assert_eq!(next(&mut resync).await, "chat:a");
    assert_eq!(publish("bob", "chat:a", "k").await, (2, false));
    assert_eq!(publish("ann", "chat:b", "k").await, (3, false));
    // Amid others, whose batch a duplicate would refuse.
    let before = process.submit("chat:a", "before");
    let again = process.submit_as("ann", "chat:a", "x", Some("k"));
    let after = process.submit("chat:a", "after");
    assert_eq!(stored(&before.await.unwrap()), 4);
    assert_eq!(stored(&again.await.unwrap()), 1);
    assert_eq!(stored(&after.await.unwrap()), 5);
    assert_eq!(process.texts().await, ["x", "x", "x", "before", "after"]);
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let server = Server::start();
    let process = Process::start(&server).await;
    let outcome = process
        .submit("chat:a", &"x".repeat(1 << 20))
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::Refused(Refusal::TooLarge));
}

/// Stopped with messages in its socket, a server stores them when it goes on: each once.
async fn freeze(log: LogConfig, frozen_for: Duration) {
    let server = Server::start();
    let process = Process::start_with(&server, log, vec![]).await;
    let mut resync = process.publisher.resync();
    stored(&process.submit("chat:a", "before").await.unwrap());
    server.signal("STOP");
    let started = Instant::now();
    let first = process.submit("chat:a", "first");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let second = process.submit("chat:a", "second");
    let outcome = first.await.unwrap();
    assert!(started.elapsed() <= ANSWER_WITHIN);
    assert_eq!(outcome, Outcome::Unknown);
    let outcome = second.await.unwrap();
    assert!(
        matches!(outcome, Outcome::Refused(Refusal::NotSent(_))),
        "{outcome:?}"
    );
    tokio::time::sleep(frozen_for.saturating_sub(started.elapsed())).await;
    server.signal("CONT");
    assert_eq!(next(&mut resync).await, "chat:a");
    let after = eventually("a publish is stored", async || {
        match process.submit("chat:a", "after").await.unwrap() {
            Outcome::Stored { position, .. } => Some(position.offset.get()),
            _ => None,
        }
    });
    assert_eq!(after.await, 3);
    assert_eq!(process.texts().await, ["before", "first", "after"]);
}

#[tokio::test]
async fn a_frozen_server_stores_once() {
    freeze(rooms(), Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_server_frozen_for_longer_than_the_duplicate_window_stores_once() {
    let log = LogConfig {
        duplicate_window: Duration::from_secs(2),
        ..rooms()
    };
    freeze(log, Duration::from_secs(7)).await;
}

/// The acknowledgement is lost with the connection: the message is found by its id, not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_under_load_loses_no_acknowledged_message_and_doubles_none() {
    let mut server = Server::start();
    let process = Process::start(&server).await;
    let mut outcomes = Vec::new();
    for tick in 0..300 {
        for nth in 0..4 {
            let text = format!("{tick}-{nth}");
            outcomes.push((text.clone(), process.submit("chat:a", &text)));
        }
        if tick % 75 == 40 {
            server.kill();
            server.run();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    check_against(&process, outcomes).await;
}

/// The same with the window that is shipped.
#[tokio::test]
#[ignore = "takes three minutes"]
async fn a_server_frozen_for_three_minutes_stores_once() {
    freeze(rooms(), Duration::from_secs(185)).await;
}

/// A process whose connections go through a proxy.
async fn behind_proxy(server: &Server, log: LogConfig) -> (Process, Proxy) {
    let proxy = Proxy::start(server.port).await;
    let mut config = server.connect_config();
    config.url = format!("nats://127.0.0.1:{}", proxy.port);
    let links = Links::connect(&config).await.unwrap();
    (Process::start_on(links, log, vec![]).await, proxy)
}

/// Stored, but the acknowledgement is lost: found again, and its author is told the truth.
#[tokio::test]
async fn a_lost_acknowledgement_is_made_up_for() {
    let server = Server::start();
    let (process, proxy) = behind_proxy(&server, rooms()).await;
    let mut resync = process.publisher.resync();
    for round in 0..5 {
        proxy.swallow_answers();
        let many: Vec<_> = (0..=round)
            .map(|nth| process.submit("chat:a", &format!("{round}-{nth}")))
            .collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        proxy.cut();
        for outcome in many {
            stored(&outcome.await.unwrap());
        }
        assert_eq!(next(&mut resync).await, "chat:a");
    }
    let texts = process.texts().await;
    let called: Vec<_> = (0..5)
        .flat_map(|round| (0..=round).map(move |nth| format!("{round}-{nth}")))
        .collect();
    assert_eq!(texts, called);
}

/// Never stored: surely absent, so sent again while its author waits.
#[tokio::test]
async fn a_lost_message_is_sent_again() {
    let server = Server::start();
    let (process, proxy) = behind_proxy(&server, rooms()).await;
    proxy.swallow_requests();
    let many: Vec<_> = (0..3)
        .map(|nth| process.submit("chat:a", &format!("{nth}")))
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.cut();
    for outcome in many {
        stored(&outcome.await.unwrap());
    }
    assert_eq!(process.texts().await, ["0", "1", "2"]);
}

/// Stored and its acknowledgement lost, and what is said then reaches the server only after it has
/// forgotten the id: a copy among it would be stored as another message.
#[tokio::test]
async fn an_id_that_the_server_forgot_is_not_sent_again() {
    let server = Server::start();
    let log = LogConfig {
        duplicate_window: Duration::from_secs(1),
        ..rooms()
    };
    let (process, proxy) = behind_proxy(&server, log).await;
    proxy.swallow_answers();
    let outcome = process.submit("chat:a", "once");
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.hold_requests(true);
    assert_eq!(outcome.await.unwrap(), Outcome::Unknown);
    proxy.hold_requests(false);
    // Not waited for by the test, only given to a copy that should not be there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.cut();
    let next = eventually("a publish is stored", async || {
        match process.submit("chat:a", "next").await.unwrap() {
            Outcome::Stored { position, .. } => Some(position.offset.get()),
            _ => None,
        }
    });
    assert_eq!(next.await, 2);
    assert_eq!(process.texts().await, ["once", "next"]);
}

#[tokio::test]
async fn without_a_server_nothing_is_sent_and_everyone_is_told() {
    let mut server = Server::start();
    let process = Process::start(&server).await;
    server.kill();
    eventually("the loss is noticed", async || {
        (!process.guard.is_open()).then_some(())
    })
    .await;
    let started = Instant::now();
    let outcome = process.submit("chat:a", "lost").await.unwrap();
    assert!(started.elapsed() <= ANSWER_WITHIN);
    assert!(
        matches!(outcome, Outcome::Refused(Refusal::NotSent(_))),
        "{outcome:?}"
    );
    server.run();
    let offset = eventually("a publish is stored", async || {
        match process.submit("chat:a", "found").await.unwrap() {
            Outcome::Stored { position, .. } => Some(position.offset.get()),
            _ => None,
        }
    });
    assert_eq!(offset.await, 1);
    assert_eq!(process.texts().await, ["found"]);
}

/// Every acknowledged message lies where it was said, none lies twice, in the order of calls.
async fn check_against(
    process: &Process,
    outcomes: Vec<(String, tokio::sync::oneshot::Receiver<Outcome>)>,
) {
    let mut told = Vec::new();
    for (text, outcome) in outcomes {
        told.push((text, outcome.await.unwrap()));
    }
    let all = process.all().await;
    let mut at = HashMap::new();
    for delivery in &all {
        let was = at.insert(text(delivery), delivery.message.seq.get());
        assert_eq!(was, None, "{} is stored twice", text(delivery));
    }
    let mut last = 0;
    let mut acknowledged = 0;
    for (text, outcome) in &told {
        match outcome {
            Outcome::Stored { .. } => {
                assert_eq!(at.get(text), Some(&stored(outcome)), "{text}");
                assert!(stored(outcome) > last, "{text} overtook another");
                last = stored(outcome);
                acknowledged += 1;
            }
            Outcome::Refused(_) => assert_eq!(at.get(text), None, "{text} was refused"),
            Outcome::Unknown => {}
        }
    }
    assert!(
        acknowledged > told.len() / 2,
        "{acknowledged} of {}",
        told.len()
    );
}
