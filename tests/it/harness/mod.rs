//! Knows: what every test needs: seeds, free ports, conditions with deadlines, turns for the heavy.
//! Never: what is tested.

pub(crate) mod archive;
#[path = "../../support/cassandra.rs"]
pub(crate) mod cassandra;
pub(crate) mod client;
#[path = "../../support/length.rs"]
mod length;
#[path = "../../support/names.rs"]
pub(crate) mod names;
pub(crate) mod nats;
#[path = "../../support/ports.rs"]
mod ports;
pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod rig;
#[path = "../../support/rng.rs"]
mod rng;
pub(crate) mod scan;
pub(crate) mod weir;
pub(crate) mod writer;

pub(crate) use length::{either, long};
pub(crate) use ports::free_port;
pub(crate) use rng::Rng;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

/// The seed of a run: `WEIR_TEST_SEED`, else the given one. Printed, so that a red run can be had again.
pub(crate) fn seed(name: &str, default: u64) -> u64 {
    let seed = std::env::var("WEIR_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(default);
    eprintln!("{name}: WEIR_TEST_SEED={seed}");
    seed
}

/// Two cores: tests that load the machine take turns.
pub(crate) async fn heavy() -> SemaphorePermit<'static> {
    static TURN: Semaphore = Semaphore::const_new(1);
    TURN.acquire().await.unwrap()
}

/// Asks until it is so; fails with `what` after `deadline`.
pub(crate) async fn until(what: &str, deadline: Duration, mut ask: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !ask().await {
        assert!(
            start.elapsed() < deadline,
            "after {deadline:?} still not: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A loop that must happen within `deadline`, or the test says `what` did not.
pub(crate) async fn within<T>(what: &str, deadline: Duration, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(deadline, work).await {
        Ok(value) => value,
        Err(_) => panic!("not within {deadline:?}: {what}"),
    }
}
