//! A bit flips in the files of a stream: what was archived stays as it was and what comes next stands
//! above it; what was not archived yet is a hole, however the server takes it.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use weir_history::{Reader, Window};
use weir_nats::erasure::What;
use weir_nats::placement::Place;
use weir_nats::replay::Replay;
use weir_nats::{Orders, RoomName, Seq};

use crate::erase::order;
use crate::rig::{Kind, Rig, STREAM, all_backward, all_forward, room};

for_each_archive! {
    a_stream_cut_by_a_flipped_bit_goes_on_in_a_new_epoch_above_it,
    a_message_that_cannot_be_read_before_it_is_archived_is_a_hole,
    a_block_cut_by_a_flipped_bit_before_it_is_archived_is_a_hole,
}

/// The blocks of the stream in a store, oldest first.
fn blocks(store: &Path) -> Vec<PathBuf> {
    let folder = store.join("jetstream/$G/streams").join(STREAM).join("msgs");
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_block = |path: &PathBuf| path.extension().is_some_and(|ext| ext == "blk");
    let mut blocks: Vec<PathBuf> = paths.filter(is_block).collect();
    let number = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<u32>();
    blocks.sort_by_key(|path| number(path).unwrap());
    blocks
}

fn flip_at(block: &Path, at: usize) {
    let mut bytes = std::fs::read(block).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(block, bytes).unwrap();
}

/// Flips a bit in the `nth` message (from 0) whose payload begins with this number.
fn flip(store: &Path, number: usize, nth: usize) {
    let text = format!("{{\"n\":{number},");
    let mut left = nth;
    for block in blocks(store) {
        let bytes = std::fs::read(&block).unwrap();
        for (at, part) in bytes.windows(text.len()).enumerate() {
            if part == text.as_bytes() {
                if left == 0 {
                    return flip_at(&block, at + text.len() + 2);
                }
                left -= 1;
            }
        }
    }
    panic!("{text} is not there");
}

async fn recovered(reader: &Reader, place: &Place, room: &RoomName, after: u64) -> bool {
    let window = Window::default();
    let epoch = Some(place.current().epoch.as_str());
    let recovery = reader.recover(place, room, epoch, Seq::new(after), &window, 300, 1 << 20);
    recovery.await.unwrap().recovered
}

async fn verdicts(reader: &Reader, place: &Place, room: &RoomName, lost: &[u64], whole: &[u64]) {
    for (after, expected) in [(lost, false), (whole, true)]
        .into_iter()
        .flat_map(|(list, expected)| list.iter().map(move |after| (*after, expected)))
    {
        let recovered = recovered(reader, place, room, after).await;
        assert_eq!(recovered, expected, "after {after}");
    }
}

async fn a_stream_cut_by_a_flipped_bit_goes_on_in_a_new_epoch_above_it(kind: Kind) {
    // The message that is hit, and how many are stored in the cut stream before anybody looks: their
    // sequences were given before, in the last case all of them and more.
    for (hit, reused) in [(299, 0), (150, 40), (150, 200)] {
        let what = format!("{hit} is hit, {reused} follow");
        let mut rig = Rig::on(kind).await;
        let archive = rig.archive().await;
        let room = room("chat:lobby");
        let one = std::slice::from_ref(&room);
        let worker = rig.work(&archive);
        let mut published = rig.publish(one, 300).await[&room].clone();
        rig.archived(&archive).await;
        let old_epoch = rig.place(&room).current().epoch.clone();
        drop(worker);
        rig.restart_nats(true, |store| flip(store, hit, 0)).await;
        assert_eq!(
            rig.last().await,
            Seq::new(hit as u64),
            "{what}: the rest is cut"
        );
        let reused = match reused {
            0 => Vec::new(),
            count => rig.publish(one, count).await[&room].clone(),
        };
        // A Weir starts, with what its archive knows.
        let known = archive.known().await.unwrap();
        let anew = Rig::beside(rig.url.clone(), known).await;
        let place = anew.place(&room);
        assert_ne!(place.current().epoch, old_epoch, "{what}");
        assert!(
            place.current().from > Seq::new(500),
            "{what}: above every offset"
        );
        let _worker = anew.work(&archive);
        let late = anew.publish(one, 20).await[&room].clone();
        let mut held = archive.held();
        let (stream, last) = (&place.current().stream, late[19].0);
        let reached = held.wait_for(|all| all.get(stream).is_some_and(|held| held.end() >= last));
        tokio::time::timeout(crate::rig::NODE_WITHIN, reached)
            .await
            .expect("the new stream is archived")
            .unwrap();
        let reader = anew.reader(Some(&archive));
        let place = anew.place(&room);
        let (found, whole) = all_forward(&reader, &place, &room, Seq::ZERO, 70).await;
        assert!(whole, "{what}");
        assert!(
            found.is_sorted_by(|a, b| a.0 < b.0),
            "{what}: no offset twice"
        );
        assert_eq!(
            found[..300],
            published,
            "{what}: every old row is as it was"
        );
        let moved: Vec<&Bytes> = found[300..].iter().map(|(_, data)| data).collect();
        published.truncate(0);
        let expected = reused.iter().chain(&late).map(|(_, data)| data);
        assert_eq!(moved, expected.collect::<Vec<_>>(), "{what}: each once");
        let (backward, _) = all_backward(&reader, &place, &room, 70).await;
        assert_eq!(backward, found, "{what}");
        assert_eq!(rig.row_count().await, found.len() as u64, "{what}");
        assert!(!recovered(&reader, &place, &room, 200).await, "{what}");
        let since = Some(old_epoch.as_str());
        let window = Window::default();
        let old = reader.recover(&place, &room, since, Seq::new(300), &window, 300, 1 << 20);
        assert!(!old.await.unwrap().recovered, "{what}");
        let start = place.current().from.just_before().get();
        assert!(recovered(&reader, &place, &room, start).await, "{what}");
    }
}

async fn a_message_that_cannot_be_read_before_it_is_archived_is_a_hole(kind: Kind) {
    let mut rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    let one = std::slice::from_ref(&room);
    let worker = rig.work(&archive);
    rig.publish(one, 100).await;
    rig.archived(&archive).await;
    drop(worker);
    rig.publish(one, 100).await;
    // After an orderly stop the server believes its index, and passes over what it cannot read.
    rig.restart_nats(false, |store| flip(store, 50, 1)).await;
    let (reader, place) = (rig.reader(Some(&archive)), rig.place(&room));
    verdicts(&reader, &place, &room, &[100, 150], &[151, 199, 200]).await;
    // Page by page, wherever a page is cut.
    for page_size in [1, 7, 49, 50, 51, 99] {
        let (found, whole) = all_forward(&reader, &place, &room, Seq::new(100), page_size).await;
        assert_eq!((found.len(), whole), (99, false), "by {page_size}");
        let (found, whole) = all_forward(&reader, &place, &room, Seq::new(151), page_size).await;
        assert_eq!((found.len(), whole), (49, true), "by {page_size}");
    }
    let worker = rig.work(&archive);
    rig.held(&archive, &[(1, 150), (152, 200)]).await;
    verdicts(&reader, &place, &room, &[100, 150], &[151]).await;
    assert_eq!(rig.row_count().await, 199);
    // The last message: nothing comes after it that shows the gap.
    drop(worker);
    rig.publish(one, 1).await;
    rig.restart_nats(false, |store| flip(store, 0, 2)).await;
    if rig.last().await < Seq::new(201) {
        // The server noticed by itself; that is another test's.
        return;
    }
    verdicts(&reader, &place, &room, &[200], &[201]).await;
    let worker = rig.work(&archive);
    let deadline = tokio::time::Instant::now() + crate::rig::WITHIN;
    while worker.metrics.lost_messages() != 2 {
        assert!(tokio::time::Instant::now() < deadline, "it is reported");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(
        archive.held().borrow()[STREAM].ranges(),
        [(1, 150), (152, 200)]
    );
    rig.publish(one, 1).await;
    rig.held(&archive, &[(1, 150), (152, 200), (202, 202)])
        .await;
    assert!(!recovered(&reader, &place, &room, 180).await);
    assert!(recovered(&reader, &place, &room, 201).await);
}

async fn a_block_cut_by_a_flipped_bit_before_it_is_archived_is_a_hole(kind: Kind) {
    const EACH_BYTES: usize = 512 << 10;
    let mut rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    rig.publish_big(&room, 36, EACH_BYTES).await;
    let cut = std::sync::atomic::AtomicUsize::new(0);
    rig.restart_nats(true, |store| {
        let blocks = blocks(store);
        cut.store(blocks.len(), std::sync::atomic::Ordering::Relaxed);
        flip_at(&blocks[0], EACH_BYTES * 5 / 2);
    })
    .await;
    assert!(cut.into_inner() > 1, "the stream has several blocks");
    assert_eq!(rig.last().await, Seq::new(36), "its end is not cut");
    let missing = Replay::new(rig.links.reads.clone()).missing(STREAM).await;
    let missing = missing.unwrap();
    let (first, last) = (missing[0].get(), missing[missing.len() - 1].get());
    assert!(first == 3 && last < 36, "{missing:?}");
    let place = rig.place(&room);
    for reader in [rig.reader(None), rig.reader(Some(&archive))] {
        verdicts(&reader, &place, &room, &[0, 2, last - 1], &[last, 36]).await;
        let orders = Orders::default();
        let reader = reader.with_orders(orders.clone());
        // An order may have deleted some of them, or all.
        orders.add([order(What::User("bob".into()), last - 1)]);
        verdicts(&reader, &place, &room, &[0, 2, last - 1], &[last]).await;
        orders.add([order(What::User("eve".into()), last)]);
        verdicts(&reader, &place, &room, &[], &[0, 2, last]).await;
    }
    let _worker = rig.work(&archive);
    let mut held = archive.held();
    let reached = held.wait_for(|all| {
        all.get(STREAM)
            .is_some_and(|held| held.end() == Seq::new(36))
    });
    // Eighteen megabytes.
    tokio::time::timeout(crate::rig::NODE_WITHIN, reached)
        .await
        .expect("it is archived")
        .unwrap();
    let ranges = archive.held().borrow()[STREAM].ranges().to_vec();
    assert!(
        matches!(ranges[..], [(1, 2), (from, 36)] if from > 3),
        "{ranges:?}"
    );
    assert_eq!(ranges[1].0, last + 1);
    let reader = rig.reader(Some(&archive));
    verdicts(&reader, &place, &room, &[0, 2], &[last]).await;
}
