//! Knows: what every test needs: seeds, free ports, conditions with deadlines, turns for the heavy.
//! Never: what is tested.

pub(crate) mod archive;
#[path = "../../support/cassandra.rs"]
pub(crate) mod cassandra;
pub(crate) mod client;
pub(crate) mod nats;
#[path = "../../support/ports.rs"]
mod ports;
pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod rig;
pub(crate) mod scan;
pub(crate) mod weir;
pub(crate) mod writer;

pub(crate) use ports::free_port;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One of them, if there is one.
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize].clone())
    }
}

/// The seed of a run: `WEIR_TEST_SEED`, else the given one. Printed, so that a red run can be had again.
pub(crate) fn seed(name: &str, default: u64) -> u64 {
    let seed = std::env::var("WEIR_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(default);
    eprintln!("{name}: WEIR_TEST_SEED={seed}");
    seed
}

/// True in `make test-long`.
pub(crate) fn long() -> bool {
    std::env::var("WEIR_TEST_LONG").is_ok_and(|value| value == "1")
}

/// `short` in `make test`, `whole` in `make test-long`.
pub(crate) fn either<T>(short: T, whole: T) -> T {
    if long() { whole } else { short }
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
