//! Knows: how often something may happen: a bucket of allowances that time fills again, one bucket or
//! one a user. Never: what is counted, what a refusal looks like, a clock.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// So often on average, and so often at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// On average; 0 is no limit.
    pub per_s: u32,
    /// At once.
    pub burst: u32,
}

impl Rate {
    fn burst_milli(self) -> u64 {
        u64::from(self.burst.max(1)) * 1_000
    }
}

/// What is left of a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Thousandths, so that a slow rate earns something each millisecond.
    milli: u64,
    /// Until when what was earned is counted.
    at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self {
            milli: rate.burst_milli(),
            at: now,
        }
    }

    /// Takes one allowance. False if there is none.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        if rate.per_s == 0 {
            return true;
        }
        let passed = now.saturating_duration_since(self.at);
        let passed_ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let earned = passed_ms.saturating_mul(u64::from(rate.per_s));
        self.milli = self.milli.saturating_add(earned).min(rate.burst_milli());
        // What is left of a millisecond counts next time.
        self.at = (now - passed) + std::time::Duration::from_millis(passed_ms);
        let has_one = self.milli >= 1_000;
        if has_one {
            self.milli -= 1_000;
        }
        has_one
    }
}

/// A bucket for each user, of as many users as are remembered.
#[derive(Debug)]
pub struct UserRates {
    rate: Rate,
    users_max: usize,
    users: Mutex<Users>,
}

/// Two halves: when the one is full it becomes the other, and what was not used meanwhile is
/// forgotten. So forgetting costs nothing, however many come.
#[derive(Debug, Default)]
struct Users {
    recent: HashMap<String, Bucket>,
    older: HashMap<String, Bucket>,
}

impl UserRates {
    /// Remembers `users_max` users. One that was forgotten begins with all its burst.
    #[must_use]
    pub fn new(rate: Rate, users_max: usize) -> Self {
        Self {
            rate,
            users_max,
            users: Mutex::default(),
        }
    }

    /// Takes one allowance of a user. False if it has none.
    pub fn take(&self, user: &str, now: Instant) -> bool {
        if self.rate.per_s == 0 {
            return true;
        }
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = users.recent.get_mut(user) {
            return bucket.take(self.rate, now);
        }
        let older = users.older.remove(user);
        let mut bucket = older.unwrap_or_else(|| Bucket::full(self.rate, now));
        let taken = bucket.take(self.rate, now);
        if users.recent.len() >= (self.users_max / 2).max(1) {
            users.older = std::mem::take(&mut users.recent);
        }
        users.recent.insert(user.to_owned(), bucket);
        taken
    }

    #[cfg(test)]
    fn remembered(&self) -> usize {
        let users = self.users.lock().unwrap();
        users.recent.len() + users.older.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RATE: Rate = Rate {
        per_s: 10,
        burst: 3,
    };

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(RATE, start);
        let taken = |bucket: &mut Bucket, after_ms: u64| {
            let now = start + Duration::from_millis(after_ms);
            (0..20).filter(|_| bucket.take(RATE, now)).count()
        };
        assert_eq!(taken(&mut bucket, 0), 3);
        assert_eq!(taken(&mut bucket, 99), 0);
        assert_eq!(taken(&mut bucket, 100), 1);
        assert_eq!(taken(&mut bucket, 60_000), 3, "no more than the burst");
    }

    #[test]
    fn parts_of_a_millisecond_are_not_lost() {
        let start = Instant::now();
        let rate = Rate {
            per_s: 1_000,
            burst: 1,
        };
        let mut bucket = Bucket::full(rate, start);
        assert!(bucket.take(rate, start));
        let tries = (1..=1_000).map(|n| start + Duration::from_micros(n * 1_500));
        assert_eq!(tries.filter(|now| bucket.take(rate, *now)).count(), 1_000);
    }

    #[test]
    fn users_have_their_own_and_are_forgotten_in_time() {
        let now = Instant::now();
        let rates = UserRates::new(RATE, 10);
        assert_eq!((0..9).filter(|_| rates.take("ann", now)).count(), 3);
        assert!(rates.take("bob", now));
        for other in 0..1_000 {
            assert!(rates.take(&format!("user{other}"), now));
            assert!(!rates.take("ann", now), "who comes often is remembered");
            assert!(rates.remembered() <= 10);
        }
        let without = UserRates::new(Rate { per_s: 0, ..RATE }, 10);
        assert!((0..99).all(|_| without.take("ann", now)));
        assert_eq!(without.remembered(), 0);
    }
}
