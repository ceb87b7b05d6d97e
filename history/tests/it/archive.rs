//! The worker and its archive survive what happens to them.

use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;
use weir_history::archive::Batch;
use weir_history::held::Held;
use weir_nats::{Message, Seq};

use crate::rig::{Kind, Rig, STREAM, WITHIN, all_forward, author, room, rooms, unique_id};

for_each_archive! {
    a_worker_killed_at_random_loses_and_doubles_nothing,
    a_delivery_again_is_the_same_row_and_another_message_is_a_conflict,
}

async fn a_worker_killed_at_random_loses_and_doubles_nothing(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let rooms = rooms(10);
    let mut stored = rig.publish(&rooms, 2_000).await;
    for kill in 0..15_u64 {
        let worker = rig.work(&archive);
        let more = rig.publish(&rooms, 60).await;
        for (room, messages) in more {
            stored.entry(room).or_default().extend(messages);
        }
        // No condition to wait for: the point is that it may be anywhere.
        tokio::time::sleep(Duration::from_millis(kill * 3)).await;
        drop(worker);
    }
    // Opened again, as after kill -9.
    drop(archive);
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    rig.archived(&archive).await;
    rig.trim(1).await;
    let reader = rig.reader(Some(&archive));
    for (room, published) in &stored {
        let found = all_forward(&reader, &rig.place(room), room, Seq::ZERO, 200).await;
        assert_eq!((&found.0, found.1), (published, true), "{room}");
    }
    let rows = rig.row_count().await;
    assert_eq!(rows, 2_000 + 15 * 60);
    assert_eq!(worker.metrics.counts.conflicts.value(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_archive_is_waited_for() {
    let rig = Rig::on(Kind::Sqlite).await;
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let room = room("chat:lobby");
    rig.publish(std::slice::from_ref(&room), 50).await;
    rig.archived(&archive).await;
    let other = Connection::open(rig.archive_path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let late = rig.publish(std::slice::from_ref(&room), 50).await;
    let deadline = tokio::time::Instant::now() + WITHIN;
    while worker.metrics.counts.retries.value() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "a retry is counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Reads go on beside the lock: the archive's part and the stream's.
    let reader = rig.reader(Some(&archive));
    let (found, whole) = all_forward(&reader, &rig.place(&room), &room, Seq::ZERO, 70).await;
    assert!(whole && found.len() == 100 && found.ends_with(&late[&room]));
    other.execute_batch("ROLLBACK").unwrap();
    rig.archived(&archive).await;
    assert_eq!(archive.held().borrow()[STREAM].ranges(), [(1, 100)]);
}

async fn a_delivery_again_is_the_same_row_and_another_message_is_a_conflict(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    let generation = rig.place(&room).current().clone();
    let message = |id: &str, text: &'static str| Message {
        seq: Seq::new(5),
        time_ms: 1_000,
        id: id.into(),
        author: Some(author()),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        data: Bytes::from_static(text.as_bytes()),
    };
    let batch = |message: Message| Batch {
        log: "rooms".into(),
        slot: 0,
        generation: generation.clone(),
        rows: vec![(room.clone(), message)],
        refused: Vec::new(),
        held: Held::from_ranges([(1, 5)]),
        created: "then".into(),
    };
    let first = archive.append(batch(message("a", "one"))).await.unwrap();
    assert_eq!((first.rows, first.conflicts.len()), (1, 0));
    let again = archive.append(batch(message("a", "one"))).await.unwrap();
    assert_eq!((again.rows, again.conflicts.len()), (0, 0));
    let other = archive.append(batch(message("b", "two"))).await.unwrap();
    assert_eq!((other.rows, other.conflicts), (0, vec![Seq::new(5)]));
    let reader = rig.reader(Some(&archive));
    let up_to = Some(Seq::new(5));
    let page = reader
        .forward(&rig.place(&room), &room, Seq::ZERO, up_to, 10, 1 << 20)
        .await
        .unwrap();
    assert_eq!(*page.messages[0], message("a", "one"));
    let known = archive.known().await.unwrap();
    assert_eq!(known[0].1.id, "a");
    assert_eq!(known[0].1.created, "then");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_become_a_row_is_kept_whole_and_holds_up_nobody() {
    let rig = Rig::on(Kind::Sqlite).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    let bad = unique_id();
    Connection::open(rig.archive_path())
        .unwrap()
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON messages WHEN NEW.msg_id = 'refused'
             BEGIN SELECT RAISE(ABORT, 'not this one'); END",
        )
        .unwrap();
    let headers = weir_nats::message::stamp(&room, &author(), &Default::default(), "refused");
    let subject = room.stored_subject("rooms");
    let ack = rig.js.publish_with_headers(subject, headers, "kept".into());
    ack.await.unwrap().await.unwrap();
    // A stranger wrote into the log past the edges.
    let foreign = format!("log.rooms.20.chat.=h{bad}");
    let ack = rig.js.publish(foreign.clone(), "foreign".into());
    ack.await.unwrap().await.unwrap();
    rig.publish(std::slice::from_ref(&room), 10).await;
    let worker = rig.work(&archive);
    rig.archived(&archive).await;
    let deadline = tokio::time::Instant::now() + WITHIN;
    while worker.metrics.counts.quarantined.value() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "both are counted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(archive.held().borrow()[STREAM].ranges(), [(1, 12)]);
    let kept = archive.quarantined(None, 10).await.unwrap();
    assert_eq!(kept.len(), 2);
    assert_eq!(
        (&kept[0].1.data[..], kept[0].1.seq),
        (&b"kept"[..], Seq::new(1))
    );
    assert!(kept[0].1.headers.contains("Nats-Msg-Id: refused"));
    assert_eq!(kept[1].1.subject, foreign);
    let reader = rig.reader(Some(&archive));
    let (found, _) = all_forward(&reader, &rig.place(&room), &room, Seq::ZERO, 50).await;
    assert_eq!(found.len(), 10);
}
