//! Knows: an archive whose disk is full says so, loses nothing, and goes on when there is room again.
//! Never: power cuts.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use weir_history::Archive;
use weir_history::archive::Batch;
use weir_history::held::Held;
use weir_nats::placement::Generation;
use weir_nats::{Message, Seq};

use crate::power::WITHIN;
use crate::power::archived;
use crate::power::disk::Disk;
use crate::rig::{Rig, STREAM, all_forward, author, room};

const DISK_MIB: u64 = 64;
/// More than SQLite's log has room for where it need not grow.
const BIG_BYTES: usize = 100_000;
const BIG_MESSAGES: usize = 100;

/// Takes all the room there is.
fn fill(path: &Path) {
    let mut ballast = File::create(path).unwrap();
    for bytes in [1 << 16, 1 << 10] {
        while ballast.write_all(&vec![1; bytes]).is_ok() {}
    }
    ballast.sync_all().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for() {
    let Some(disk) = Disk::new(DISK_MIB) else {
        return;
    };
    let rig = Rig::new().await;
    let file = disk.path().join("archive.db");
    let archive = Archive::sqlite(&file).await.unwrap();
    let worker = rig.work(&archive);
    let room = room("chat:lobby");
    let early = rig.publish(std::slice::from_ref(&room), 300).await;
    rig.archived(&archive).await;

    let ballast = disk.path().join("ballast");
    fill(&ballast);
    rig.publish_big(&room, BIG_MESSAGES, BIG_BYTES).await;
    let deadline = Instant::now() + WITHIN;
    while worker.metrics.counts.retries.value() < 2 {
        assert!(Instant::now() < deadline, "retries are counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // An append says what is wrong and what to do.
    let big = Message {
        seq: Seq::new(1),
        time_ms: 1_000,
        id: "big".into(),
        author: Some(author()),
        tags: Default::default(),
        data: Bytes::from(vec![b'x'; 20 * BIG_BYTES]),
    };
    let other = Batch {
        log: "rooms".into(),
        slot: 0,
        generation: Generation {
            stream: "OTHER_0".into(),
            ..rig.place(&room).current().clone()
        },
        rows: vec![(room.clone(), big)],
        refused: Vec::new(),
        held: Held::from_ranges([(1, 1)]),
        created: "then".into(),
    };
    let error = archive.append(other.clone()).await.unwrap_err();
    assert!(error.temporary, "{error}");
    assert!(error.reason.contains("disk is full"), "{error}");
    assert!(error.reason.contains("free some space"), "{error}");
    assert!(!archive.held().borrow().contains_key("OTHER_0"));
    // Meanwhile all can be read: from the archive what it has, from the stream the rest.
    let reader = rig.reader(Some(&archive));
    let (found, whole) = all_forward(&reader, &rig.place(&room), &room, Seq::ZERO, 100).await;
    assert!(whole && found.starts_with(&early[&room]));
    assert_eq!(found.len(), 300 + BIG_MESSAGES);

    std::fs::remove_file(&ballast).unwrap();
    rig.archived(&archive).await;
    assert_eq!(archive.append(other).await.unwrap().rows, 1);
    let rows = archived::read(&file);
    assert_eq!(rows["OTHER_0"].rows.len(), 1);
    assert_eq!(rows[STREAM].rows.len(), 300 + BIG_MESSAGES);
    assert_eq!(rows[STREAM].held, rows[STREAM].ranges());
    assert_eq!(rows[STREAM].held.ranges(), [(1, 300 + BIG_MESSAGES as u64)]);
    assert_eq!(worker.metrics.counts.conflicts.value(), 0);
}
