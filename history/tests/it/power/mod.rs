//! Knows: the archive file when the power goes, and when its disk is full. Never: other archives.
//!
//! A real ext4 on a loop device is cut off under load, 5 times in `make test` and 20 times in
//! `make test-long`. That takes root, loop devices, mkfs.ext4 and perl; where they cannot be had,
//! `WEIR_TEST_NO_LOOP=1` leaves these tests out.

#![allow(
    clippy::print_stderr,
    reason = "figures of a run, and what it left out"
)]

mod archived;
mod cuts;
mod disk;
mod full;
mod process;
mod worker;

use std::time::{Duration, Instant};

/// Longest wait for anything that a process or the kernel does.
const WITHIN: Duration = Duration::from_secs(30);

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
