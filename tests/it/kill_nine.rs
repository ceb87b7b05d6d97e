//! Knows: what may never happen when Weir or nats-server dies by `kill -9` under load.

use std::time::Duration;

use crate::checker::{Expect, Least, require_valid};
use crate::harness::rig::{Rig, Size};
use crate::harness::{Rng, either, heavy, seed};

/// A healed system takes publishes again well before this.
const FLOWS_AGAIN: Duration = Duration::from_secs(75);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_gone_when_weir_and_nats_server_are_killed() {
    let _turn = heavy().await;
    let seed = seed("kill_nine", 9);
    let mut rng = Rng::new(seed);
    let size = either(
        Size {
            rooms: 10,
            readers: 30,
            rooms_per_reader: 3,
            writers: 4,
            per_second: 25,
            bytes: 128,
        },
        Size {
            rooms: 10,
            readers: 100,
            rooms_per_reader: 3,
            writers: 6,
            per_second: 45,
            bytes: 128,
        },
    );
    let kills = either(2, 5);
    let between = either(150, 1_500);
    let mut rig = Rig::loaded(size, false, seed, |_| {}).await;
    rig.bot(either(20, 30), 128).await;
    for _ in 0..kills {
        rig.until_acked(between, FLOWS_AGAIN).await;
        rig.recorder.fault("kill weir", true);
        rig.weir.kill();
        rig.weir.spawn();
        rig.weir.until_ready().await;
        rig.recorder.fault("kill weir", false);
        rig.until_acked(between, FLOWS_AGAIN).await;
        // Some readers are away when the next fault comes, some in the middle of coming back.
        for reader in &rig.readers {
            if rng.below(4) == 0 {
                reader.kick();
            }
        }
        rig.recorder.fault("kill nats-server", true);
        rig.nats.kill();
        rig.nats.spawn().await;
        rig.weir.until_ready().await;
        rig.recorder.fault("kill nats-server", false);
    }
    rig.until_acked(between, FLOWS_AGAIN).await;
    assert!(
        rig.readers.iter().all(|reader| reader.connects() > kills),
        "a reader kept its socket"
    );
    rig.settle().await;
    rig.scan().await;
    rig.require_calm();
    let expect = Expect {
        scanned: true,
        archived: true,
        least: Least {
            acks: between * kills * 2,
            receipts: between * kills * 2,
            faults: kills * 2,
            recovered: size.readers * kills,
            declared_gaps: 0,
        },
        ..Expect::default()
    };
    let tally = require_valid(&rig.recorder.history(), &expect);
    // The log lost nothing, so no recovery had a reason to fail.
    assert_eq!(
        tally.declared_gaps, 0,
        "recoveries were refused though nothing was lost"
    );
}
