//! Knows: nats-server stands still for longer than message ids are remembered: nothing is stored twice.

use std::time::{Duration, Instant};

use crate::checker::{Expect, Least, require_valid};
use crate::figures::figure;
use crate::harness::rig::{Rig, Size};
use crate::harness::{either, heavy, seed, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_for_longer_than_the_duplicate_window_is_never_stored_twice() {
    let _turn = heavy().await;
    let size = Size {
        rooms: 4,
        readers: 8,
        rooms_per_reader: 2,
        writers: 3,
        per_second: 20,
        bytes: 100,
    };
    // Short: the window shrinks with the freeze.
    let window = either("duplicate_window = \"10s\"", "duplicate_window = \"2m\"");
    let freeze = either(Duration::from_secs(13), Duration::from_secs(180));
    let mut rig = Rig::loaded(size, false, seed("frozen", 41), |config| {
        config.log.push_str(window);
    })
    .await;
    rig.bot(10, 100).await;
    rig.until_acked(100, Duration::from_secs(60)).await;
    rig.recorder.fault("nats-server frozen", true);
    rig.nats.freeze();
    let start = Instant::now();
    // The freeze is the fault itself, so its length is a time and no condition.
    let mut unready_after = None;
    while start.elapsed() < freeze {
        if unready_after.is_none() && !rig.weir.ready().await {
            unready_after = Some(start.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rig.nats.thaw();
    rig.recorder.fault("nats-server frozen", false);
    let unready_after = unready_after.expect("weir called itself ready beside a frozen NATS");
    assert!(
        unready_after < Duration::from_secs(15),
        "not ready only after {unready_after:?}"
    );
    figure!("frozen for {freeze:?}; not ready after {unready_after:.1?}");
    let unanswered: usize = rig.writers.iter().map(|writer| writer.unanswered()).sum();
    assert_eq!(unanswered, 0, "publishes that had no answer within 5 s");
    until("weir is ready again", Duration::from_secs(60), async || {
        rig.weir.ready().await
    })
    .await;
    rig.until_acked(100, Duration::from_secs(75)).await;
    rig.settle().await;
    rig.scan().await;
    rig.require_calm();
    let least = Least {
        acks: 200,
        receipts: 400,
        faults: 1,
        ..Least::default()
    };
    let expect = Expect {
        scanned: true,
        archived: true,
        least,
        ..Expect::default()
    };
    let tally = require_valid(&rig.recorder.history(), &expect);
    assert!(
        tally.unknown + tally.refused > 0,
        "the freeze reached nobody"
    );
}
