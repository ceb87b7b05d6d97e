//! The archive file when the power goes, and when its disk is full.
//!
//! A real ext4 on a loop device is cut off under load, 5 times in `make test` and 20 times in
//! `make test-long`. That takes root, loop devices, mkfs.ext4 and perl; where they cannot be had,
//! `WEIR_TEST_NO_LOOP=1` leaves these tests out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::print_stderr,
    reason = "figures of a run, and what it left out"
)]

mod archived;
mod cuts;
mod disk;
mod full;
mod process;
#[allow(dead_code, reason = "the tests of it/ use the rest")]
#[path = "../it/rig.rs"]
mod rig;
mod worker;

use std::time::{Duration, Instant};

/// Longest wait for anything that a process or the kernel does.
const WITHIN: Duration = Duration::from_secs(30);

/// `short` in `make test`, `whole` in `make test-long`.
fn either<T>(short: T, whole: T) -> T {
    let long = std::env::var("WEIR_TEST_LONG").is_ok_and(|value| value == "1");
    if long { whole } else { short }
}

/// Asks until it is so; fails with `what` when it takes too long.
fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !ask() {
        assert!(
            Instant::now() < deadline,
            "after {WITHIN:?} still not: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A random number below `end`.
fn below(end: u64) -> u64 {
    u64::from_le_bytes(weir_nats::ambient::random()) % end
}
