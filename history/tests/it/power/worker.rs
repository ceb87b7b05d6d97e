//! Knows: the worker, archiving the log of a real nats-server, loses and doubles nothing when the
//! power of its archive is cut under load. Never: the file's insides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use weir_history::held::Held;
use weir_nats::Seq;

use crate::figures::figure;
use crate::power::archived::{self, Archived};
use crate::power::below;
use crate::power::disk::{Cut, Disk};
use crate::power::process::Process;
use crate::rig::{Rig, STREAM, either, rooms};

const DISK_MIB: u64 = 512;
const CUT_WITHIN_MS: u64 = 700;
const ROOMS: usize = 20;
/// Messages published at a stretch, and the pause after it: about as fast as the worker can.
const STRETCH: usize = 100;
const PAUSE: Duration = Duration::from_millis(25);

/// Every message that JetStream acknowledged: its room and its data, by sequence.
type Record = BTreeMap<u64, (String, Bytes)>;

/// Publishes until it is told to stop.
async fn publish_on(rig: Arc<Rig>, stop: Arc<AtomicBool>, record: Arc<std::sync::Mutex<Record>>) {
    let rooms = rooms(ROOMS);
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(PAUSE).await;
        let stored = rig.publish(&rooms, STRETCH).await;
        let mut record = record.lock().unwrap();
        for (room, messages) in stored {
            for (seq, data) in messages {
                let twice = record.insert(seq.get(), (room.channel().to_owned(), data));
                assert!(twice.is_none(), "an offset names two messages");
            }
        }
    }
}

fn differ(record: &Record, held: &Held, archived: &Archived) -> Option<String> {
    for (from, to) in held.ranges() {
        for (seq, (room, data)) in record.range(from..=to) {
            let found = archived.rows.get(seq);
            if found.is_none_or(|row| row.room != *room || row.data != *data) {
                return Some(format!("{seq} of {room} is {found:?}"));
            }
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_loses_and_doubles_nothing_over_power_cuts() {
    let Some(disk) = Disk::new(DISK_MIB) else {
        return;
    };
    let start = Instant::now();
    let cuts = either(5, 20);
    let file = disk.path().join("archive.db");
    // Its own store is not on that disk: what was published stays the measure of what is archived.
    let rig = Arc::new(Rig::new().await);
    let (stop, record) = (Arc::<AtomicBool>::default(), Arc::default());
    let publisher = tokio::spawn(publish_on(
        Arc::clone(&rig),
        Arc::clone(&stop),
        Arc::clone(&record),
    ));
    let (mut commits, mut durable) = (0, Held::default());
    for nth in 0..cuts {
        let cut = if nth % 2 == 0 {
            Cut::Disk
        } else {
            Cut::Machine
        };
        let switch = disk.switch(cut);
        let process = Process::archiving(&file, &rig.url);
        let said = tokio::task::block_in_place(|| {
            process.until_held_beyond(STREAM, durable.end());
            // No condition to wait for: the point is that it may be anywhere.
            std::thread::sleep(Duration::from_millis(below(CUT_WITHIN_MS)));
            // Before the cut: see [`Process::said`].
            let said = process.said();
            switch.press();
            process.kill();
            disk.start(cut);
            said
        });
        commits += said.commits;
        for (from, to) in said.held[STREAM].ranges() {
            durable.add(Seq::new(*from), Seq::new(*to));
        }
        let found = archived::read(&file).remove(STREAM).unwrap_or_default();
        assert_eq!(found.missing(&durable), 0, "cut {nth}, {cut:?}");
        assert_eq!(found.ranges(), found.held, "cut {nth}, {cut:?}");
        assert_eq!(differ(&record.lock().unwrap(), &durable, &found), None);
    }
    stop.store(true, Ordering::Relaxed);
    publisher.await.unwrap();
    let process = Process::archiving(&file, &rig.url);
    let last = rig.last().await;
    tokio::task::block_in_place(|| process.until_held_beyond(STREAM, last.just_before()));
    process.kill();
    let found = archived::read(&file).remove(STREAM).unwrap();
    let record = record.lock().unwrap();
    figure!(
        "worker: {cuts} cuts, {commits} commits seen, {} rows acknowledged, {} published, in {:.1?}",
        durable.end(),
        record.len(),
        start.elapsed()
    );
    assert_eq!(differ(&record, &found.held, &found), None);
    assert_eq!(found.rows.len(), record.len());
    assert_eq!(found.held.ranges(), [(1, last.get())]);
}
