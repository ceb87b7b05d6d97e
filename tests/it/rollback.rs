//! Knows: the log goes back in time, or away, under load: fence, new epoch, new offsets, no `true`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::checker::event::What;
use crate::checker::{Expect, Least, require_valid};
use crate::harness::rig::{Rig, Size};
use crate::harness::scan::{self, Stored};
use crate::harness::{either, heavy, seed, until};

const SIZE: Size = Size {
    rooms: 5,
    readers: 10,
    rooms_per_reader: 2,
    writers: 3,
    per_second: 25,
    bytes: 100,
};

/// The room's epoch as a newcomer is told it.
async fn epochs(rig: &Rig) -> BTreeSet<String> {
    let held = rig.readers.iter().flat_map(|reader| {
        reader
            .rooms()
            .into_iter()
            .map(|room| reader.held(&room))
            .collect::<Vec<_>>()
    });
    held.map(|held| {
        if held.member {
            held.position.unwrap().epoch
        } else {
            String::new()
        }
    })
    .collect()
}

/// Waits until every reader is a member again, all in one epoch that is not `old`.
async fn until_new_epoch(rig: &Rig, old: &str) {
    until(
        "every reader is in the new epoch",
        Duration::from_secs(60),
        async || {
            let now = epochs(rig).await;
            now.len() == 1 && !now.contains(old) && !now.contains("")
        },
    )
    .await;
}

/// What the two tests share after the log was changed.
async fn finish(mut rig: Rig, old_epoch: &str, before: &[Stored], lost: (u64, u64)) {
    until_new_epoch(&rig, old_epoch).await;
    rig.until_acked(either(150, 1_000), Duration::from_secs(75))
        .await;
    rig.settle().await;
    rig.scan().await;
    rig.require_calm();
    let after = rig.weir.archive().rows().await;
    let kept: BTreeSet<_> = after
        .iter()
        .map(|row| (&row.room, &row.epoch, row.offset, &row.data))
        .collect();
    for row in before {
        assert!(
            kept.contains(&(&row.room, &row.epoch, row.offset, &row.data)),
            "the archive forgot {}@{} of {}",
            row.offset,
            row.epoch,
            row.room
        );
    }
    let newest_old = before.iter().map(|row| row.offset).max().unwrap();
    let generation = scan::generations(&rig.nats).await.pop().unwrap();
    assert!(
        generation.epoch != old_epoch && generation.from > newest_old,
        "{generation:?}"
    );
    let expect = Expect {
        scanned: true,
        archived: true,
        may_lose: vec![lost],
        may_move: true,
        least: Least {
            acks: 300,
            receipts: 300,
            faults: 1,
            recovered: 0,
            declared_gaps: 10,
        },
    };
    require_valid(&rig.recorder.history(), &expect);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_put_back_to_an_older_copy_is_a_new_epoch() {
    let _turn = heavy().await;
    let mut rig = Rig::loaded(SIZE, false, seed("rollback", 31), |_| {}).await;
    rig.bot(10, 100).await;
    rig.until_acked(150, Duration::from_secs(60)).await;
    let old_epoch = scan::generations(&rig.nats).await.pop().unwrap().epoch;
    let copied = rig.recorder.now();
    let copy = rig.nats.copy_store();
    // The copy gets ten seconds old (short: as many messages as come in about four).
    rig.until_acked(either(300, 800), Duration::from_secs(60))
        .await;
    rig.recorder.fault("store put back", true);
    rig.nats.stop();
    let before = rig.weir.archive().rows().await;
    rig.nats.put_back(&copy);
    let back = rig.recorder.now();
    rig.recorder.push(What::Regress);
    rig.nats.spawn().await;
    rig.recorder.fault("store put back", false);
    Box::pin(finish(rig, &old_epoch, &before, (copied, back))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_is_a_new_epoch() {
    let _turn = heavy().await;
    let rig = Rig::loaded(SIZE, false, seed("deleted", 32), |_| {}).await;
    rig.until_acked(300, Duration::from_secs(60)).await;
    let generation = scan::generations(&rig.nats).await.pop().unwrap();
    let js = rig.nats.jetstream().await;
    rig.recorder.fault("stream deleted", true);
    let before = rig.weir.archive().rows().await;
    rig.recorder.push(What::Regress);
    js.delete_stream(&generation.stream).await.unwrap();
    let gone = rig.recorder.now();
    rig.recorder.fault("stream deleted", false);
    Box::pin(finish(rig, &generation.epoch, &before, (0, gone))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_put_back_while_weir_is_down_is_seen_at_start() {
    let _turn = heavy().await;
    let mut rig = Rig::loaded(SIZE, false, seed("rollback_down", 33), |_| {}).await;
    rig.until_acked(150, Duration::from_secs(60)).await;
    let old_epoch = scan::generations(&rig.nats).await.pop().unwrap().epoch;
    let copied = rig.recorder.now();
    let copy = rig.nats.copy_store();
    rig.until_acked(150, Duration::from_secs(60)).await;
    // What the archive has is what a Weir that starts can know; wait until it is ahead of the copy.
    let newest = scan::stream(&rig.nats)
        .await
        .iter()
        .map(|row| row.offset)
        .max()
        .unwrap();
    until(
        "the archive is ahead of the copy",
        Duration::from_secs(30),
        async || rig.weir.archive().up_to().await >= newest,
    )
    .await;
    rig.recorder.fault("store put back", true);
    rig.weir.kill();
    rig.nats.stop();
    let before = rig.weir.archive().rows().await;
    rig.nats.put_back(&copy);
    let back = rig.recorder.now();
    rig.recorder.push(What::Regress);
    rig.nats.spawn().await;
    rig.weir.spawn();
    rig.weir.until_ready().await;
    rig.recorder.fault("store put back", false);
    Box::pin(finish(rig, &old_epoch, &before, (copied, back))).await;
}

/// A bit of the log's file flips while nats-server is down, after it was killed: on its way up it drops that
/// message and all behind it, and gives their sequences again.
async fn flipped(name: &str, default: u64, part: f64) {
    let _turn = heavy().await;
    let mut rig = Rig::loaded(SIZE, false, seed(name, default), |_| {}).await;
    rig.until_acked(400, Duration::from_secs(60)).await;
    let generation = scan::generations(&rig.nats).await.pop().unwrap();
    rig.recorder.fault("bit flipped", true);
    rig.nats.kill();
    let before = rig.weir.archive().rows().await;
    rig.nats.flip(&generation.stream, part);
    let back = rig.recorder.now();
    rig.recorder.push(What::Regress);
    rig.nats.spawn().await;
    rig.recorder.fault("bit flipped", false);
    Box::pin(finish(rig, &generation.epoch, &before, (0, back))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_flipped_in_the_middle_of_the_log_is_a_new_epoch() {
    Box::pin(flipped("flipped_middle", 34, 0.5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_flipped_near_the_end_of_the_log_is_a_new_epoch() {
    Box::pin(flipped("flipped_end", 35, 0.9)).await;
}
