//! Many who ask the same are few queries, also while what they ask for changes, and nobody gets an
//! answer that is older than their question.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use weir_history::{Ask, Reader, Window};
use weir_nats::{RoomName, Seq};

use crate::figures::figure;
use crate::rig::{Kind, Rig, room};

for_each_archive! {
    a_thousand_who_ask_at_once_are_two_queries_while_the_room_is_written,
    who_asks_over_seconds_is_a_query_a_second_while_the_room_is_written,
}

const ASKS: u64 = 1_000;
const MAX_BYTES: u32 = 1 << 20;

/// Runs `work` while `room` is written; it gets the newest offset that was acknowledged.
async fn while_written<T>(
    rig: &Rig,
    room: &RoomName,
    work: impl AsyncFnOnce(Arc<AtomicU64>) -> T,
) -> T {
    let (newest, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let write = async {
        while !stop.is_cancelled() {
            let stored = rig.publish(std::slice::from_ref(room), 10).await;
            let last = stored[room].last().unwrap().0;
            newest.store(last.get(), Ordering::SeqCst);
            // Slowly enough that a page reaches down into the archive.
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    };
    let work = async {
        let done = work(Arc::clone(&newest)).await;
        stop.cancel();
        done
    };
    tokio::join!(write, work).1
}

/// Messages of a page: more than are written in a second.
const PAGE: u32 = 450;

/// Asks for the newest page, and checks that it is as new as the question.
async fn ask_newest(
    reader: &Reader,
    rig_place: &weir_nats::Place,
    room: &RoomName,
    window: Window,
    newest: &AtomicU64,
) {
    let ask = Ask {
        reverse: true,
        ..Ask::default()
    };
    let before = newest.load(Ordering::SeqCst);
    let page = reader
        .history(rig_place, room, ask, &window, PAGE, MAX_BYTES)
        .await
        .unwrap();
    let seqs: Vec<u64> = page.messages.iter().map(|m| m.seq.get()).collect();
    assert_eq!(seqs.len(), PAGE as usize);
    assert!(
        seqs[0] >= before,
        "{} was stored before it was asked",
        before
    );
    // The room is alone in its stream, so that no offset may be missing.
    assert!(seqs.windows(2).all(|pair| pair[0] == pair[1] + 1));
}

async fn a_thousand_who_ask_at_once_are_two_queries_while_the_room_is_written(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let _worker = rig.work(&archive);
    let room = room("chat:lobby");
    rig.publish(std::slice::from_ref(&room), 500).await;
    rig.archived(&archive).await;
    let all = Window::default();
    let small = Window {
        size: Some(480),
        ttl: Some(Duration::from_secs(3_600)),
    };
    // A window costs a count, and a search by its age, beside the page.
    for (window, most) in [(all, 2), (small, 6)] {
        let reader = rig.reader(Some(&archive));
        let place = rig.place(&room);
        while_written(&rig, &room, async |newest| {
            let asks = (0..ASKS).map(|_| {
                let (reader, place, room) = (reader.clone(), place.clone(), room.clone());
                let newest = Arc::clone(&newest);
                tokio::spawn(async move {
                    ask_newest(&reader, &place, &room, window, &newest).await;
                })
            });
            for ask in asks.collect::<Vec<_>>() {
                ask.await.unwrap();
            }
        })
        .await;
        let queries = reader.metrics().queries.value();
        assert!(
            (1..=most).contains(&queries),
            "{queries} queries, {window:?}"
        );
        assert!(reader.metrics().joined.value() > 500);
    }

    // A recovery of all, by all.
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&room);
    let asks = (0..ASKS).map(|_| {
        let (reader, place, room) = (reader.clone(), place.clone(), room.clone());
        tokio::spawn(async move {
            let window = Window::default();
            let since = Seq::new(100);
            let recovery = reader.recover(&place, &room, None, since, &window, 300, MAX_BYTES);
            let recovery = recovery.await.unwrap();
            assert!(recovery.recovered && recovery.page.messages.len() == 300);
            assert_eq!(recovery.page.messages[0].seq, Seq::new(101));
        })
    });
    for ask in asks.collect::<Vec<_>>() {
        ask.await.unwrap();
    }
    let queries = reader.metrics().queries.value();
    figure!("{ASKS} ask at once: {queries} queries");
    assert!((1..=2).contains(&queries), "{queries} queries");
}

async fn who_asks_over_seconds_is_a_query_a_second_while_the_room_is_written(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let _worker = rig.work(&archive);
    let room = room("chat:lobby");
    rig.publish(std::slice::from_ref(&room), 500).await;
    rig.archived(&archive).await;
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&room);
    let start = Instant::now();
    let held_before = archive.held().borrow()[crate::rig::STREAM].end();
    while_written(&rig, &room, async |newest| {
        let asks = (0..ASKS).map(|nth| {
            let (reader, place, room) = (reader.clone(), place.clone(), room.clone());
            let newest = Arc::clone(&newest);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(nth * 2_500)).await;
                ask_newest(&reader, &place, &room, Window::default(), &newest).await;
            })
        });
        for ask in asks.collect::<Vec<_>>() {
            ask.await.unwrap();
        }
    })
    .await;
    let held_after = archive.held().borrow()[crate::rig::STREAM].end();
    assert!(held_after > held_before, "the watermark moved");
    let seconds = i64::try_from(start.elapsed().as_secs()).unwrap();
    let queries = reader.metrics().queries.value();
    figure!("{ASKS} ask over {seconds} s: {queries} queries");
    assert!(queries <= seconds + 2, "{queries} queries in {seconds} s");
}
