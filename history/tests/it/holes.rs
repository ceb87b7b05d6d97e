//! What was lost is a hole, and a hole is never called whole.

use std::time::Duration;

use tokio::time::Instant;
use weir_history::Window;
use weir_history::archive::Batch;
use weir_history::held::Held;
use weir_nats::erasure::{LogScope, Order, SlotScope, What};
use weir_nats::placement::{Generation, Place};
use weir_nats::replay::Replay;
use weir_nats::{Epoch, Seq};

use crate::rig::{Kind, Rig, STREAM, WITHIN, all_backward, all_forward, pairs, room, rooms};

for_each_archive! {
    an_archive_that_was_deleted_holds_what_the_stream_still_had,
    what_was_trimmed_before_it_was_archived_is_a_hole,
    what_was_erased_is_no_hole,
    what_nobody_erased_is_a_hole,
    a_hole_that_the_stream_still_has_is_filled,
    an_older_epoch_is_paged_from_the_archive_after_its_stream_is_gone,
}

async fn an_archive_that_was_deleted_holds_what_the_stream_still_had(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let rooms = rooms(5);
    let stored = rig.publish(&rooms, 1_000).await;
    rig.archived(&archive).await;
    rig.trim(400).await;
    drop(worker);
    let old_id = archive.id().to_owned();
    drop(archive);
    rig.lose_archive().await;
    let archive = rig.archive().await;
    assert_ne!(archive.id(), old_id);
    let _worker = rig.work(&archive);
    rig.archived(&archive).await;
    assert_eq!(archive.held().borrow()[STREAM].ranges(), [(601, 1_000)]);
    let reader = rig.reader(Some(&archive));
    for (room, published) in &stored {
        let place = rig.place(room);
        assert!(!reader.covers(&place, Seq::ZERO).await.unwrap());
        assert!(!reader.covers(&place, Seq::new(599)).await.unwrap());
        assert!(reader.covers(&place, Seq::new(600)).await.unwrap());
        let (found, whole) = all_forward(&reader, &place, room, Seq::ZERO, 50).await;
        assert!(!whole);
        assert!(published.ends_with(&found) && found.len() == 80);
        let (found, whole) = all_backward(&reader, &place, room, 50).await;
        assert!(!whole);
        assert_eq!(found.len(), 80);
    }
}

async fn what_was_trimmed_before_it_was_archived_is_a_hole(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    let worker = rig.work(&archive);
    rig.publish(std::slice::from_ref(&room), 100).await;
    rig.archived(&archive).await;
    drop(worker);
    rig.publish(std::slice::from_ref(&room), 200).await;
    rig.trim(50).await;
    let _worker = rig.work(&archive);
    rig.archived(&archive).await;
    assert_eq!(
        archive.held().borrow()[STREAM].ranges(),
        [(1, 100), (251, 300)]
    );
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&room);
    for (after, covered) in [
        (0, false),
        (99, false),
        (249, false),
        (250, true),
        (300, true),
    ] {
        let covers = reader.covers(&place, Seq::new(after)).await.unwrap();
        assert_eq!(covers, covered, "after {after}");
    }
    let page = reader
        .forward(
            &place,
            &room,
            Seq::new(10),
            Some(Seq::new(100)),
            500,
            1 << 20,
        )
        .await
        .unwrap();
    assert!(page.whole && page.messages.len() == 90 && page.reached == Seq::new(100));
    let page = reader
        .forward(&place, &room, Seq::new(10), None, 500, 1 << 20)
        .await
        .unwrap();
    assert!(!page.whole && page.messages.len() == 140);
    let above = reader
        .backward(&place, &room, None, 50, 1 << 20)
        .await
        .unwrap();
    assert!(above.whole && above.messages.len() == 50);
    let across = reader
        .backward(&place, &room, None, 60, 1 << 20)
        .await
        .unwrap();
    assert!(!across.whole && across.messages.len() == 60);
}

/// One that was given when the stream ended at `up_to`.
fn order(up_to: u64) -> Order {
    let slot = SlotScope {
        streams: vec![STREAM.into()],
        up_to: Seq::new(up_to),
    };
    let scope = LogScope {
        log: "rooms".into(),
        slots: vec![slot],
    };
    let what = What::User("somebody".into());
    Order::new(what, vec![scope], 0, "tester".into(), String::new())
}

async fn what_was_erased_is_no_hole(kind: Kind) {
    let rig = Rig::on(kind).await;
    rig.orders.add([order(100)]);
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    rig.publish(std::slice::from_ref(&room), 100).await;
    let stream = rig.js.get_stream(STREAM).await.unwrap();
    for seq in [40, 41, 100] {
        stream.delete_message(seq).await.unwrap();
    }
    let _worker = rig.work(&archive);
    rig.archived(&archive).await;
    assert_eq!(archive.held().borrow()[STREAM].ranges(), [(1, 100)]);
    let reader = rig.reader(Some(&archive));
    let (found, whole) = all_forward(&reader, &rig.place(&room), &room, Seq::ZERO, 30).await;
    assert!(whole && found.len() == 97);
}

async fn what_nobody_erased_is_a_hole(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    rig.publish(std::slice::from_ref(&room), 100).await;
    let stream = rig.js.get_stream(STREAM).await.unwrap();
    for seq in [40, 41, 100] {
        stream.delete_message(seq).await.unwrap();
    }
    let worker = rig.work(&archive);
    rig.held(&archive, &[(1, 39), (42, 99)]).await;
    let place = rig.place(&room);
    let reader = rig.reader(Some(&archive));
    let recovered = async |after| {
        let window = Window::default();
        let recovery = reader.recover(&place, &room, None, Seq::new(after), &window, 500, 1 << 20);
        recovery.await.unwrap().recovered
    };
    assert!(!recovered(0).await && !recovered(40).await);
    // What comes next is archived, and shows that the last one is lost, too.
    rig.publish(std::slice::from_ref(&room), 10).await;
    rig.held(&archive, &[(1, 39), (42, 99), (101, 110)]).await;
    assert!(!recovered(39).await && !recovered(50).await && recovered(100).await);
    let (found, whole) = all_forward(&reader, &place, &room, Seq::ZERO, 30).await;
    assert!(!whole && found.len() == 107);
    let deadline = Instant::now() + WITHIN;
    while worker.metrics.lost_messages() != 3 {
        assert!(Instant::now() < deadline, "it is reported");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // An order that explains it all.
    rig.orders.add([order(105)]);
    rig.held(&archive, &[(1, 110)]).await;
    while worker.metrics.lost_messages() != 0 {
        assert!(Instant::now() < deadline, "it is over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_hole_that_the_stream_still_has_is_filled(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    let stored = rig.publish(std::slice::from_ref(&room), 300).await;
    let worker = rig.work(&archive);
    rig.archived(&archive).await;
    drop(worker);
    drop(archive);
    rig.lose_archive().await;
    rig.trim(200).await;
    // An import, of another archive's part.
    let archive = rig.archive().await;
    let replay = Replay::new(rig.links.reads.clone());
    let created = replay.state(STREAM).await.unwrap().created;
    let imported = Batch {
        log: "rooms".into(),
        slot: 0,
        generation: rig.place(&room).current().clone(),
        rows: Vec::new(),
        refused: Vec::new(),
        held: Held::from_ranges([(1, 20), (201, 250)]),
        created,
    };
    archive.append(imported).await.unwrap();
    let _worker = rig.work(&archive);
    rig.held(&archive, &[(1, 20), (101, 300)]).await;
    let rows = rig.row_count().await;
    assert_eq!(rows, 150, "101 to 200 and 251 to 300");
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&room);
    let page = reader.forward(
        &place,
        &room,
        Seq::new(100),
        Some(Seq::new(200)),
        500,
        1 << 20,
    );
    let page = page.await.unwrap();
    assert!(page.whole);
    assert_eq!(pairs(&page.messages), stored[&room][100..200]);
}

async fn an_older_epoch_is_paged_from_the_archive_after_its_stream_is_gone(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    let worker = rig.work(&archive);
    let stored = rig.publish(std::slice::from_ref(&room), 120).await;
    rig.archived(&archive).await;
    drop(worker);
    // As the guard places it after a loss, when the old stream was archived and retired.
    let mut config = rig
        .js
        .get_stream(STREAM)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    rig.js.delete_stream(STREAM).await.unwrap();
    config.name = "ROOMS_0_1".into();
    config.first_sequence = Some(1_000_120);
    rig.js.create_stream(config).await.unwrap();
    let place = Place {
        generations: [Generation {
            stream: "ROOMS_0_1".into(),
            epoch: Epoch::new("second").unwrap(),
            from: Seq::new(1_000_120),
        }]
        .into(),
        ..rig.place(&room)
    };
    let reader = rig.reader(Some(&archive));
    let mut published = stored[&room].clone();
    assert_eq!(
        all_forward(&reader, &place, &room, Seq::ZERO, 50).await.0,
        published
    );
    assert_eq!(all_backward(&reader, &place, &room, 50).await.0, published);
    let late = rig.publish(std::slice::from_ref(&room), 30).await;
    published.extend(late[&room].clone());
    for size in [1, 60, 120, 500] {
        let forward = all_forward(&reader, &place, &room, Seq::ZERO, size).await.0;
        assert_eq!(forward, published, "by {size}");
        let backward = all_backward(&reader, &place, &room, size).await.0;
        assert_eq!(backward, published, "by {size}");
    }
    assert!(!reader.covers(&place, Seq::new(120)).await.unwrap());
    assert!(reader.covers(&place, Seq::new(1_000_119)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_current_stream_that_is_missing_is_an_error_and_no_empty_page() {
    let rig = Rig::new().await;
    let room = room("chat:lobby");
    rig.publish(std::slice::from_ref(&room), 10).await;
    rig.js.delete_stream(STREAM).await.unwrap();
    let reader = rig.reader(None);
    let place = rig.place(&room);
    let forward = reader.forward(&place, &room, Seq::ZERO, None, 10, 1 << 20);
    let within = Duration::from_secs(10);
    assert!(
        tokio::time::timeout(within, forward)
            .await
            .unwrap()
            .is_err()
    );
    assert!(
        reader
            .backward(&place, &room, None, 10, 1 << 20)
            .await
            .is_err()
    );
    assert!(reader.covers(&place, Seq::ZERO).await.is_err());
}
