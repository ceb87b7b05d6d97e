//! A stream that drops messages under a worker that had not archived them: each is a row or lies in a
//! hole, and nothing between.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;
use tokio::time::Instant;
use weir_history::Archive;
use weir_nats::{RoomName, Seq};

use crate::node::Node;
use crate::rig::{Kind, NODE_WITHIN, Rig, Rng, STREAM, either, pairs, room, rooms};

for_each_archive! {
    a_stream_that_is_trimmed_while_it_is_archived_has_rows_or_holes,
    what_is_dropped_while_the_archive_takes_nothing_is_a_hole,
}

type Published = BTreeMap<RoomName, Vec<(Seq, Bytes)>>;

/// True if clients get something of it.
async fn answers(archive: &Archive, published: &Published) -> bool {
    let room = published.keys().next().unwrap().clone();
    let all = (Seq::ZERO, Seq::MAX);
    archive.count("rooms".into(), room, all, 1).await.is_ok()
}

/// What was published lies in a row, as it was, or in no held range; and every verdict says so. Returns
/// how many messages are rows.
async fn check(rig: &Rig, archive: &Archive, published: &Published) -> usize {
    let deadline = Instant::now() + NODE_WITHIN;
    // One that was away is looked at again before it is read.
    while archive.held_now().await.is_err() || !answers(archive, published).await {
        assert!(Instant::now() < deadline, "it answers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let held = archive.held_now().await.unwrap()[STREAM].clone();
    assert_eq!(archive.held().borrow()[STREAM], held);
    let reader = rig.reader(Some(archive));
    let mut rows = 0;
    for (room, messages) in published {
        let place = rig.place(room);
        let mut found: HashMap<Seq, Bytes> = HashMap::new();
        let mut at = Seq::ZERO;
        loop {
            let page = reader
                .forward(&place, room, at, None, 500, 1 << 20)
                .await
                .unwrap();
            assert_eq!(page.whole, held.covers(at, page.reached), "after {at}");
            found.extend(pairs(&page.messages));
            at = page.reached;
            if !page.more {
                break;
            }
        }
        rows += found.len();
        for (seq, data) in messages {
            let row = found.remove(seq);
            assert!(
                row.as_ref().is_some_and(|row| row == data) || (row.is_none() && !held.has(*seq)),
                "{room} {seq}: {row:?}, held: {}",
                held.has(*seq)
            );
        }
        assert!(found.is_empty(), "nobody published {found:?}");
    }
    let last = rig.last().await;
    for (from, to) in held.ranges() {
        let place = rig.place(published.keys().next().unwrap());
        // From the start of the last range on all is there, and from just below it is not.
        let is_whole = *to >= last.get();
        let covers = reader
            .covers(&place, Seq::new(*from).just_before())
            .await
            .unwrap();
        assert_eq!(covers, is_whole);
        if *from > 1 {
            let below = Seq::new(from - 2);
            assert!(!reader.covers(&place, below).await.unwrap());
        }
    }
    rows
}

async fn set_max(rig: &Rig, max_messages: i64) {
    let stream = rig.js.get_stream(STREAM).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.max_messages = max_messages;
    rig.js.update_stream(config).await.unwrap();
}

fn extend(all: &mut Published, more: Published) {
    for (room, messages) in more {
        all.entry(room).or_default().extend(messages);
    }
}

async fn a_stream_that_is_trimmed_while_it_is_archived_has_rows_or_holes(kind: Kind) {
    let rig = Rig::on(kind).await;
    let rooms = rooms(3);
    let archive = rig.archive().await;
    let mut rng = Rng::new(either(78, 77));
    let mut published = Published::new();
    set_max(&rig, 250).await;
    let mut worker = Some(rig.work(&archive));
    for _ in 0..either(20, 200) {
        let burst = usize::try_from(20 + rng.below(500)).unwrap();
        extend(&mut published, rig.publish(&rooms, burst).await);
        match rng.below(4) {
            // Killed wherever it is; what came meanwhile may be dropped before there is another.
            0 => worker = None,
            1 if worker.is_none() => worker = Some(rig.work(&archive)),
            // No condition to wait for: the point is that it may be anywhere.
            _ => tokio::time::sleep(Duration::from_millis(rng.below(300))).await,
        }
    }
    drop(worker);
    let _worker = rig.work(&archive);
    extend(&mut published, rig.publish(&rooms, 10).await);
    rig.archived(&archive).await;
    let rows = check(&rig, &archive, &published).await;
    assert_eq!(rig.row_count().await, rows as u64);
    let count: usize = published.values().map(Vec::len).sum();
    assert!(
        rows > 500 && rows < count,
        "{rows} of {count}: both happened"
    );
}

/// Takes nothing until it is dropped.
enum Closed<'a> {
    Locked(Connection),
    Frozen(&'a mut Node),
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        match self {
            Self::Locked(db) => db.execute_batch("ROLLBACK").unwrap(),
            Self::Frozen(node) => node.thaw(),
        }
    }
}

async fn what_is_dropped_while_the_archive_takes_nothing_is_a_hole(kind: Kind) {
    let mut rig = Rig::on_its_own(kind).await;
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let room = room("chat:lobby");
    let one = std::slice::from_ref(&room);
    let mut published = rig.publish(one, 50).await;
    rig.archived(&archive).await;
    let mut node = rig.node.take();
    let closed = match &mut node {
        Some(node) => {
            node.freeze();
            Closed::Frozen(node)
        }
        None => {
            let db = Connection::open(rig.archive_path()).unwrap();
            db.execute_batch("BEGIN IMMEDIATE").unwrap();
            Closed::Locked(db)
        }
    };
    extend(&mut published, rig.publish(one, 250).await);
    // It has them in hand, could not write them, and has them in hand again.
    let deadline = Instant::now() + NODE_WITHIN;
    while worker.metrics.counts.retries.value() < 2 {
        assert!(Instant::now() < deadline, "it tries");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.trim(30).await;
    // Until it has looked at the stream as it is now.
    let retries = worker.metrics.counts.retries.value();
    while worker.metrics.counts.retries.value() < retries + 2 {
        assert!(Instant::now() < deadline, "it tries again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(closed);
    rig.node = node;
    extend(&mut published, rig.publish(one, 20).await);
    // A frozen node may have taken rows that nobody was told of: they are no reason to claim anything.
    rig.held(&archive, &[(1, 50), (271, 320)]).await;
    let rows = check(&rig, &archive, &published).await;
    assert!(rows >= 100, "{rows}");
    while worker.metrics.lost_messages() != 220 {
        assert!(Instant::now() < deadline, "it is reported");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
