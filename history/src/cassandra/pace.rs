//! Knows: how many writes may be under way at once: a little more while the cluster is quick, half
//! as many when it is not. Never: what is written.
//!
//! An overloaded Cassandra does not say so; it gets slow. Additive increase and multiplicative
//! decrease, as in TCP (Chiu and Jain, 1989).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const WRITES_MIN: usize = 4;
const WRITES_FIRST: usize = 32;
const WRITES_MAX: usize = 128;
/// More after each set of writes that went well.
const WRITES_STEP: usize = 8;
/// A write that took longer says that there are too many.
const SLOW: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Pace {
    writes_at_once: AtomicUsize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            writes_at_once: AtomicUsize::new(WRITES_FIRST),
        }
    }
}

impl Pace {
    pub(super) fn writes_at_once(&self) -> usize {
        self.writes_at_once.load(Ordering::Relaxed)
    }

    /// A set of writes went well; the slowest took so long.
    pub(super) fn went_well(&self, slowest: Duration) {
        if slowest > SLOW {
            return self.went_badly();
        }
        let more = (self.writes_at_once() + WRITES_STEP).min(WRITES_MAX);
        self.writes_at_once.store(more, Ordering::Relaxed);
    }

    /// A write failed or was too slow.
    pub(super) fn went_badly(&self) {
        let fewer = (self.writes_at_once() / 2).max(WRITES_MIN);
        self.writes_at_once.store(fewer, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_way_quickly_and_comes_back_slowly() {
        let pace = Pace::default();
        for _ in 0..100 {
            pace.went_well(Duration::from_millis(3));
        }
        assert_eq!(pace.writes_at_once(), WRITES_MAX);
        pace.went_well(Duration::from_millis(501));
        assert_eq!(pace.writes_at_once(), WRITES_MAX / 2);
        for _ in 0..10 {
            pace.went_badly();
        }
        assert_eq!(pace.writes_at_once(), WRITES_MIN);
    }
}
