//! The epoch guard against a real nats-server that lost something.

#![allow(
    clippy::unwrap_used,
    clippy::large_futures,
    reason = "a test fails by panicking, and runs alone"
)]

mod common;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_nats::HeaderMap;
use common::{Process, Server, eventually, rooms, stored, text};
use weir_nats::guard::{Guard, Known};
use weir_nats::publish::Outcome;
use weir_nats::{Orders, Placements, Seq};

async fn fill(process: &Process, name: &str, count: usize) -> Vec<u64> {
    let outcomes: Vec<_> = (0..count)
        .map(|nth| process.submit("chat:a", &format!("{name}{nth}")))
        .collect();
    let mut offsets = Vec::new();
    for outcome in outcomes {
        offsets.push(stored(&outcome.await.unwrap()));
    }
    offsets
}

/// Writes into the log as an edge would that does not know what happened.
async fn write_unaware(process_links: &weir_nats::connect::Links, text: &str) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("id-{text}").as_str());
    headers.insert("Weir-Door", "socket");
    let room = weir_nats::RoomName::parse("chat:a").unwrap();
    let reply = process_links
        .live
        .request_with_headers(
            room.stored_subject("rooms"),
            headers,
            text.to_owned().into(),
        )
        .await
        .unwrap();
    assert!(
        !reply.payload.windows(5).any(|w| w == b"error"),
        "{reply:?}"
    );
}

#[tokio::test]
async fn a_restart_that_lost_nothing_changes_nothing() {
    let mut server = Server::start();
    let process = Process::start(&server).await;
    fill(&process, "a", 5).await;
    let epoch = process.placements.slots()[0].generations[0].epoch.clone();
    server.kill();
    server.run();
    let offset = eventually("a publish is stored", async || {
        match process.submit("chat:a", "after").await.unwrap() {
            Outcome::Stored { position, .. } => Some(position),
            _ => None,
        }
    });
    let position = offset.await;
    assert_eq!(
        (position.offset, position.epoch),
        (Seq::new(6), epoch.clone())
    );
    let again = Process::start(&server).await;
    assert_eq!(again.placements.slots()[0].generations[0].epoch, epoch);
}

/// The store is put back to an older copy under load: no offset names two messages, and what was
/// acknowledged afterwards is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_went_back_in_time_gets_a_new_generation() {
    let mut server = Server::start();
    let process = Process::start(&server).await;
    fill(&process, "old", 20).await;
    server.kill();
    server.copy_store("copy");
    server.run();
    let mut outcomes = Vec::new();
    for tick in 0..300 {
        for nth in 0..2 {
            let text = format!("{tick}-{nth}");
            outcomes.push((text.clone(), process.submit("chat:a", &text)));
        }
        if tick == 150 {
            server.kill();
            server.put_store_back("copy");
            server.run();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut offsets, mut after) = (HashMap::new(), Vec::new());
    for (text, outcome) in outcomes {
        if let Outcome::Stored { position, .. } = outcome.await.unwrap() {
            let was = offsets.insert(position.offset.get(), text.clone());
            assert_eq!(was, None, "an offset names two messages");
            if position.offset.get() > 1_000_000 {
                after.push(text);
            }
        }
    }
    assert_eq!(process.current(), "ROOMS_0_1");
    assert!(!after.is_empty(), "nothing was acknowledged afterwards");
    let texts = process.texts().await;
    let distinct: HashSet<_> = texts.iter().collect();
    assert_eq!(distinct.len(), texts.len(), "a message is stored twice");
    assert!(after.iter().all(|text| distinct.contains(text)));
    for delivery in process.all().await {
        let acknowledged = offsets.get(&delivery.message.seq.get());
        assert!(acknowledged.is_none_or(|is| *is == text(&delivery)));
    }
}

#[tokio::test]
async fn a_deleted_stream_gets_a_new_generation() {
    let server = Server::start();
    let process = Process::start(&server).await;
    fill(&process, "old", 20).await;
    let js = weir_nats::stream::context(process.links.live.clone());
    js.delete_stream("ROOMS_0").await.unwrap();
    let offsets = fill(&process, "new", 10).await;
    assert_eq!(process.current(), "ROOMS_0_1");
    assert_eq!(offsets[0], 1_000_020);
    assert_eq!(process.texts().await.len(), 10);
}

/// Nothing is left but what the archive knows.
#[tokio::test]
async fn a_wiped_store_begins_above_what_the_archive_knows() {
    let mut server = Server::start();
    server.kill();
    std::fs::remove_dir_all(server.store()).ok();
    server.run();
    let known = |seq| Known {
        seq: Seq::new(seq),
        id: "x".into(),
        ..Known::default()
    };
    let seeds = vec![
        ("ROOMS_0".to_owned(), known(70)),
        ("ROOMS_0_1".to_owned(), known(1_000_090)),
    ];
    let process = Process::start_with(&server, rooms(), seeds).await;
    assert_eq!(process.current(), "ROOMS_0_2");
    assert_eq!(fill(&process, "new", 1).await, [2_000_090]);
}

/// The store is emptied under a process that lives: its own memory knows how far it was.
#[tokio::test]
async fn a_store_wiped_under_a_process_begins_above_what_it_saw() {
    let mut server = Server::start();
    let process = Process::start(&server).await;
    fill(&process, "old", 20).await;
    server.kill();
    std::fs::remove_dir_all(server.store()).unwrap();
    server.run();
    let offset = eventually("a publish is stored", async || {
        match process.submit("chat:a", "new").await.unwrap() {
            Outcome::Stored { position, .. } => Some(position.offset.get()),
            _ => None,
        }
    });
    assert!(offset.await > 1_000_000);
    assert_eq!(process.current(), "ROOMS_0_1");
}

/// What an unaware edge had acknowledged at reused offsets is moved, in order, once, also when the
/// guard dies at any moment of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_was_cut_short_is_taken_up_again() {
    let mut server = Server::start();
    let process = Process::start(&server).await;
    fill(&process, "kept", 300).await;
    server.kill();
    server.copy_store("copy");
    server.run();
    let offsets = eventually("publishes go on", async || {
        process.guard.is_open().then_some(())
    });
    offsets.await;
    fill(&process, "lost", 30).await;
    let stream = process.current();
    let known = process.guard.known(&stream);
    assert_eq!(known.seq, Seq::new(330));
    drop(process);
    server.kill();
    server.put_store_back("copy");
    server.run();
    let links = server.links().await;
    for nth in 0..50 {
        write_unaware(&links, &format!("late{nth}")).await;
    }
    let seeds = vec![(stream, known)];
    let mut cut_short = 0;
    for pause in (2..).step_by(3) {
        let start = Guard::start(
            &links,
            vec![rooms()],
            Placements::default(),
            seeds.clone(),
            Orders::default(),
        );
        match tokio::time::timeout(Duration::from_millis(pause), start).await {
            Ok(started) => {
                drop(started.unwrap());
                break;
            }
            Err(_) => cut_short += 1,
        }
    }
    assert!(cut_short > 3, "only {cut_short} guards were cut short");
    let process = Process::start_with(&server, rooms(), seeds).await;
    assert_eq!(process.current(), "ROOMS_0_1");
    let all = process.all().await;
    let (old, new): (Vec<_>, Vec<_>) = all.iter().partition(|d| d.stream == "ROOMS_0");
    assert_eq!(old.len(), 300);
    let late: Vec<String> = (0..50).map(|nth| format!("late{nth}")).collect();
    assert_eq!(new.iter().map(|d| text(d)).collect::<Vec<_>>(), late);
    assert_eq!(new[0].message.seq, Seq::new(1_000_350));
    assert_eq!(fill(&process, "next", 1).await, [1_000_400]);
}

/// The record went with the bucket; the streams and what they hold are there.
#[tokio::test]
async fn a_lost_record_ends_the_epoch_and_keeps_what_was_stored() {
    let server = Server::start();
    let process = Process::start(&server).await;
    fill(&process, "old", 20).await;
    drop(process);
    let links = server.links().await;
    let js = weir_nats::stream::context(links.live.clone());
    js.delete_key_value("weir").await.unwrap();
    let process = Process::start(&server).await;
    assert_eq!(process.current(), "ROOMS_0_1");
    assert_eq!(fill(&process, "new", 1).await, [1_000_020]);
    assert_eq!(process.texts().await.len(), 21);
    assert!(process.guard.retire("rooms", "ROOMS_0").await.unwrap());
    assert_eq!(process.texts().await, ["new0"]);
    assert!(js.get_stream("ROOMS_0").await.is_err());
    let again = Process::start(&server).await;
    assert_eq!(again.current(), "ROOMS_0_1");
}

/// One process fences; another, which saw nothing, follows it and loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_follows_into_the_next_generation() {
    let server = Server::start();
    let (one, other) = tokio::join!(Process::start(&server), Process::start(&server));
    fill(&one, "a", 5).await;
    fill(&other, "b", 5).await;
    // Knowledge that the stream cannot match.
    let impossible = Known {
        seq: Seq::new(99),
        ..Known::default()
    };
    one.guard.saw("ROOMS_0", &impossible);
    one.guard.suspect("ROOMS_0");
    let outcomes: Vec<_> = (0..50)
        .map(|nth| {
            let process = if nth % 2 == 0 { &one } else { &other };
            process.submit("chat:a", &format!("c{nth}"))
        })
        .collect();
    for outcome in outcomes {
        stored(&outcome.await.unwrap());
    }
    assert_eq!(one.current(), "ROOMS_0_1");
    let follows = eventually("the other follows", async || {
        fill(&other, "d", 1).await;
        (other.current() == "ROOMS_0_1").then_some(())
    });
    follows.await;
    let texts = one.texts().await;
    let distinct: HashSet<_> = texts.iter().collect();
    assert_eq!(distinct.len(), texts.len());
    assert!((0..50).all(|nth| distinct.contains(&format!("c{nth}"))));
}
