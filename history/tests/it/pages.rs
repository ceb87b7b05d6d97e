//! What is read equals what was published, wherever it lies.

use std::time::Duration;

use weir_history::archive::Batch;
use weir_history::held::Held;
use weir_history::{Ask, Window};
use weir_nats::placement::{Generation, Place};
use weir_nats::{Epoch, Message, Seq};

use crate::rig::{Kind, Rig, all_backward, all_forward, pairs, room, rooms};

for_each_archive! {
    a_trimmed_stream_reads_whole_forward_backward_and_by_page,
    a_watermark_that_lags_leaves_no_gap,
    while_the_stream_is_trimmed_and_archived_every_whole_page_is_whole,
    a_thousand_equal_requests_are_one_query,
    an_old_generation_that_is_not_archived_yet_is_read_below_a_new_one_that_is,
}

async fn a_trimmed_stream_reads_whole_forward_backward_and_by_page(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let rooms = rooms(20);
    let stored = rig.publish(&rooms, 4_000).await;
    rig.archived(&archive).await;
    rig.trim(500).await;
    let reader = rig.reader(Some(&archive));
    for (room, published) in &stored {
        let place = rig.place(room);
        for size in [7, 50, 300] {
            let forward = all_forward(&reader, &place, room, Seq::ZERO, size).await;
            assert_eq!(
                (&forward.0, forward.1),
                (published, true),
                "{room} by {size}"
            );
            let backward = all_backward(&reader, &place, room, size).await;
            assert_eq!(
                (&backward.0, backward.1),
                (published, true),
                "{room} by {size}"
            );
        }
        assert!(reader.covers(&place, Seq::ZERO).await.unwrap());
        let middle = published[published.len() / 2].0;
        let (rest, whole) = all_forward(&reader, &place, room, middle, 50).await;
        assert!(whole);
        assert_eq!(rest, published[published.len() / 2 + 1..]);
    }
    assert_eq!(worker.metrics.counts.conflicts.value(), 0);
    assert_eq!(worker.metrics.counts.rows.value(), 4_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_without_an_archive_reads_the_stream_and_knows_its_end() {
    let rig = Rig::new().await;
    let rooms = rooms(3);
    let stored = rig.publish(&rooms, 900).await;
    let reader = rig.reader(None);
    for (room, published) in &stored {
        let place = rig.place(room);
        let (found, whole) = all_forward(&reader, &place, room, Seq::ZERO, 70).await;
        assert_eq!((&found, whole), (published, true));
        let (found, whole) = all_backward(&reader, &place, room, 70).await;
        assert_eq!((&found, whole), (published, true));
    }
    rig.trim(100).await;
    let (room, published) = stored.first_key_value().unwrap();
    let place = rig.place(room);
    let (found, whole) = all_forward(&reader, &place, room, Seq::ZERO, 70).await;
    assert!(!whole, "what was trimmed is missing");
    assert!(published.ends_with(&found));
    assert!(!all_backward(&reader, &place, room, 70).await.1);
    assert!(!reader.covers(&place, Seq::ZERO).await.unwrap());
    assert!(reader.covers(&place, Seq::new(800)).await.unwrap());
}

async fn a_watermark_that_lags_leaves_no_gap(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    let worker = rig.work(&archive);
    let mut published = rig.publish(std::slice::from_ref(&room), 300).await;
    rig.archived(&archive).await;
    drop(worker);
    let late = rig.publish(std::slice::from_ref(&room), 300).await;
    let published = published.get_mut(&room).unwrap();
    published.extend(late[&room].clone());
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&room);
    for size in [1, 64, 700] {
        let forward = all_forward(&reader, &place, &room, Seq::new(290), size).await;
        assert_eq!((&forward.0[..], forward.1), (&published[290..], true));
    }
    let (found, whole) = all_backward(&reader, &place, &room, 64).await;
    assert_eq!((&found, whole), (&*published, true));
    let head = reader.head(&place).await.unwrap();
    assert_eq!(head.offset, published.last().unwrap().0);
}

async fn while_the_stream_is_trimmed_and_archived_every_whole_page_is_whole(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let _worker = rig.work(&archive);
    let room = room("chat:busy");
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&room);
    let mut published = Vec::new();
    for _ in 0..12 {
        let more = rig.publish(std::slice::from_ref(&room), 150).await;
        published.extend(more[&room].clone());
        let (trimmed, newest) = tokio::join!(
            rig.trim(40),
            reader.backward(&place, &room, None, 120, 1 << 20)
        );
        let () = trimmed;
        let newest = newest.unwrap();
        if newest.whole {
            let mut found = pairs(&newest.messages);
            found.reverse();
            assert!(published.ends_with(&found));
            assert!(found.len() == 120.min(published.len()) || newest.more);
        }
        let page = reader
            .forward(&place, &room, Seq::ZERO, None, 5_000, 8 << 20)
            .await
            .unwrap();
        if page.whole && !page.more {
            assert_eq!(pairs(&page.messages), published);
        }
        rig.archived(&archive).await;
    }
}

async fn a_thousand_equal_requests_are_one_query(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let _worker = rig.work(&archive);
    let room = room("chat:lobby");
    let published = rig.publish(std::slice::from_ref(&room), 500).await;
    rig.archived(&archive).await;
    let reader = rig.reader(Some(&archive));
    let before = archive.pages_read();
    let asks = (0..1_000).map(|_| {
        let (reader, place, room) = (reader.clone(), rig.place(&room), room.clone());
        tokio::spawn(async move {
            reader
                .forward(&place, &room, Seq::new(100), None, 50, 1 << 20)
                .await
                .unwrap()
        })
    });
    for ask in asks.collect::<Vec<_>>() {
        let page = ask.await.unwrap();
        assert_eq!(pairs(&page.messages), published[&room][100..150]);
    }
    assert!(archive.pages_read() - before <= 2);
    // The watermark moves on; a page that was full still answers.
    rig.publish(std::slice::from_ref(&room), 10).await;
    rig.archived(&archive).await;
    let before = archive.pages_read();
    let place = rig.place(&room);
    let again = reader.forward(&place, &room, Seq::new(100), None, 50, 1 << 20);
    assert_eq!(again.await.unwrap().messages.len(), 50);
    assert_eq!(archive.pages_read(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_is_true_only_when_it_is() {
    let rig = Rig::new().await;
    let room = room("chat:lobby");
    let published = rig.publish(std::slice::from_ref(&room), 100).await;
    let reader = rig.reader(None);
    let place = rig.place(&room);
    let epoch = place.current().epoch.clone();
    let all = Window::default();
    let ask = async |epoch: Option<&str>, since: u64, window: &Window| {
        let since = Seq::new(since);
        reader
            .recover(&place, &room, epoch, since, window, 300, 1 << 20)
            .await
            .unwrap()
    };
    let recovery = ask(Some(epoch.as_str()), 40, &all).await;
    assert!(recovery.recovered);
    assert_eq!(pairs(&recovery.page.messages), published[&room][40..]);
    assert!(ask(None, 0, &all).await.recovered);
    assert!(ask(Some(epoch.as_str()), 100, &all).await.recovered);
    assert!(
        !ask(Some(epoch.as_str()), 101, &all).await.recovered,
        "ahead of the log"
    );
    let other = Epoch::new("other").unwrap();
    assert!(!ask(Some(other.as_str()), 40, &all).await.recovered);
    let small = Window {
        size: Some(10),
        ttl: None,
    };
    assert!(ask(Some(epoch.as_str()), 90, &small).await.recovered);
    assert!(!ask(Some(epoch.as_str()), 89, &small).await.recovered);
    let old = Window {
        size: None,
        ttl: Some(Duration::ZERO),
    };
    let history = reader
        .history(&place, &room, Ask::default(), &small, 50, 1 << 20)
        .await
        .unwrap();
    assert_eq!(pairs(&history.messages), published[&room][90..]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(!ask(Some(epoch.as_str()), 40, &old).await.recovered);
}

async fn an_old_generation_that_is_not_archived_yet_is_read_below_a_new_one_that_is(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    let worker = rig.work(&archive);
    let mut published = rig.publish(std::slice::from_ref(&room), 60).await[&room].clone();
    rig.archived(&archive).await;
    drop(worker);
    published.extend(rig.publish(std::slice::from_ref(&room), 40).await[&room].clone());
    // A move to the next stream, of which the archive has the first half.
    let stream = rig.js.get_stream(crate::rig::STREAM).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    let subjects = std::mem::replace(&mut config.subjects, vec!["parked.ROOMS_0".into()]);
    config.republish = None;
    rig.js.update_stream(config.clone()).await.unwrap();
    config.name = "ROOMS_0_1".into();
    config.subjects = subjects;
    config.first_sequence = Some(1_000_101);
    rig.js.create_stream(config).await.unwrap();
    let old = rig.place(&room).current().clone();
    let new = Generation {
        stream: "ROOMS_0_1".into(),
        epoch: old.epoch.clone(),
        from: Seq::new(1_000_101),
    };
    published.extend(rig.publish(std::slice::from_ref(&room), 50).await[&room].clone());
    let rows = published[100..125].iter().map(|(seq, data)| {
        let message = Message {
            seq: *seq,
            time_ms: 1,
            id: seq.to_string(),
            author: None,
            tags: Default::default(),
            data: data.clone(),
        };
        (room.clone(), message)
    });
    let batch = Batch {
        log: "rooms".into(),
        slot: 0,
        generation: new.clone(),
        rows: rows.collect(),
        refused: Vec::new(),
        held: Held::from_ranges([(1_000_101, 1_000_125)]),
        created: String::new(),
    };
    archive.append(batch).await.unwrap();
    let place = Place {
        generations: [old, new].into(),
        ..rig.place(&room)
    };
    let reader = rig.reader(Some(&archive));
    for size in [1, 25, 50, 100, 500] {
        let (found, whole) = all_forward(&reader, &place, &room, Seq::ZERO, size).await;
        assert_eq!((&found, whole), (&published, true), "by {size}");
        let (found, whole) = all_backward(&reader, &place, &room, size).await;
        assert_eq!((&found, whole), (&published, true), "by {size}");
    }
}
