//! Knows: how often something may happen: buckets of allowances that time fills again, one set of them or
//! one for each key. Never: who is limited, what a refusal looks like, a clock.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So much on average, and so much at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// What a rate is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Connects: sockets of an address, connect commands of a user.
    Connects,
    /// Commands, or requests at the native door.
    Commands,
    /// Messages that are published.
    Messages,
    /// Bytes of what is published or asked of a service.
    Bytes,
    /// Reads of history and of presence.
    Reads,
}

impl Counted {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Connects,
        Self::Commands,
        Self::Messages,
        Self::Bytes,
        Self::Reads,
    ];
    const COUNT: usize = Self::ALL.len();
}

/// What something uses up of each rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost([u32; Counted::COUNT]);

impl Cost {
    /// One of something.
    #[must_use]
    pub fn one(counted: Counted) -> Self {
        Self::default().and(counted, 1)
    }

    /// So many of something as well.
    #[must_use]
    pub fn and(mut self, counted: Counted, count: u32) -> Self {
        self.0[counted as usize] = count;
        self
    }
}

/// A rate for each thing that is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates([Rate; Counted::COUNT]);

impl Rates {
    /// Nothing is limited but this.
    #[must_use]
    pub fn only(counted: Counted, rate: Rate) -> Self {
        Self::default().and(counted, rate)
    }

    /// This is limited as well.
    #[must_use]
    pub fn and(mut self, counted: Counted, rate: Rate) -> Self {
        self.0[counted as usize] = rate;
        self
    }

    /// The rate of something.
    #[must_use]
    pub fn of(&self, counted: Counted) -> Rate {
        self.0[counted as usize]
    }

    /// Nothing is limited.
    #[must_use]
    pub fn are_off(&self) -> bool {
        self.0.iter().all(|rate| rate.per_s == 0)
    }
}

/// What is left of one rate.
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
        self.earn(rate, now);
        let has = self.has(rate, 1);
        if has {
            self.spend(rate, 1);
        }
        has
    }

    fn earn(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let passed_ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let earned = passed_ms.saturating_mul(u64::from(rate.per_s));
        self.milli = self.milli.saturating_add(earned).min(rate.burst_milli());
        // What is left of a millisecond counts next time.
        self.at = (now - passed) + Duration::from_millis(passed_ms);
    }

    fn has(&self, rate: Rate, count: u32) -> bool {
        rate.per_s == 0 || self.milli >= u64::from(count) * 1_000
    }

    fn spend(&mut self, rate: Rate, count: u32) {
        if rate.per_s > 0 {
            self.milli -= u64::from(count) * 1_000;
        }
    }
}

/// What is left of a set of rates.
#[derive(Clone, Copy, Debug)]
pub struct Allowance([Bucket; Counted::COUNT]);

impl Allowance {
    /// All of it.
    #[must_use]
    pub fn full(rates: &Rates, now: Instant) -> Self {
        Self(rates.0.map(|rate| Bucket::full(rate, now)))
    }

    /// Takes all that something costs, or nothing of it.
    ///
    /// # Errors
    /// What there is too little of.
    pub fn take(&mut self, rates: &Rates, cost: Cost, now: Instant) -> Result<(), Counted> {
        let wanted = || Counted::ALL.into_iter().filter(|c| cost.0[*c as usize] > 0);
        for counted in wanted() {
            let (bucket, rate) = (&mut self.0[counted as usize], rates.of(counted));
            bucket.earn(rate, now);
            if !bucket.has(rate, cost.0[counted as usize]) {
                return Err(counted);
            }
        }
        for counted in wanted() {
            self.0[counted as usize].spend(rates.of(counted), cost.0[counted as usize]);
        }
        Ok(())
    }
}

/// A set of rates for each key, such as a user or an address, of as many keys as are remembered.
#[derive(Debug)]
pub struct RatesByKey<K> {
    rates: Rates,
    keys_max: usize,
    keys: Mutex<Keys<K>>,
}

/// Two halves: when the one is full it becomes the other, and what was not used meanwhile is
/// forgotten. So forgetting costs nothing, however many come.
#[derive(Debug)]
struct Keys<K> {
    recent: HashMap<K, Allowance>,
    older: HashMap<K, Allowance>,
}

impl<K: Eq + Hash> RatesByKey<K> {
    /// Remembers `keys_max` keys. One that was forgotten begins with all its bursts.
    #[must_use]
    pub fn new(rates: Rates, keys_max: usize) -> Self {
        let keys = Keys {
            recent: HashMap::new(),
            older: HashMap::new(),
        };
        Self {
            rates,
            keys_max,
            keys: Mutex::new(keys),
        }
    }

    /// Takes all that something costs a key, or nothing of it.
    ///
    /// # Errors
    /// What it has too little of.
    pub fn take<Q>(&self, key: &Q, cost: Cost, now: Instant) -> Result<(), Counted>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        if self.rates.are_off() {
            return Ok(());
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(allowance) = keys.recent.get_mut(key) {
            return allowance.take(&self.rates, cost, now);
        }
        let older = keys.older.remove(key);
        let mut allowance = older.unwrap_or_else(|| Allowance::full(&self.rates, now));
        let taken = allowance.take(&self.rates, cost, now);
        if keys.recent.len() >= (self.keys_max / 2).max(1) {
            keys.older = std::mem::take(&mut keys.recent);
        }
        keys.recent.insert(key.to_owned(), allowance);
        taken
    }

    #[cfg(test)]
    fn remembered(&self) -> usize {
        let keys = self.keys.lock().unwrap();
        keys.recent.len() + keys.older.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_s: 10,
        burst: 3,
    };

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(RATE, start);
        assert_eq!((0..9).filter(|_| bucket.take(RATE, start)).count(), 3);
        let later = start + Duration::from_millis(100);
        assert_eq!((0..9).filter(|_| bucket.take(RATE, later)).count(), 1);
        let much_later = start + Duration::from_secs(100);
        assert_eq!((0..9).filter(|_| bucket.take(RATE, much_later)).count(), 3);
    }

    #[test]
    fn asking_often_loses_no_part_of_a_millisecond() {
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
    fn what_is_refused_costs_nothing() {
        let start = Instant::now();
        let rate = |burst| Rate { per_s: 1, burst };
        let rates = Rates::only(Counted::Messages, rate(2)).and(Counted::Bytes, rate(100));
        let mut allowance = Allowance::full(&rates, start);
        let of = |bytes| Cost::one(Counted::Messages).and(Counted::Bytes, bytes);
        assert_eq!(
            allowance.take(&rates, of(101), start),
            Err(Counted::Bytes),
            "more at once than ever is there"
        );
        assert_eq!(allowance.take(&rates, of(60), start), Ok(()));
        assert_eq!(allowance.take(&rates, of(41), start), Err(Counted::Bytes));
        assert_eq!(allowance.take(&rates, of(40), start), Ok(()));
        assert_eq!(allowance.take(&rates, of(0), start), Err(Counted::Messages));
        let reads = Cost::one(Counted::Reads);
        assert_eq!(allowance.take(&rates, reads, start), Ok(()), "no limit");
    }

    #[test]
    fn keys_have_their_own_and_are_forgotten_in_time() {
        let now = Instant::now();
        let one = Cost::one(Counted::Commands);
        let rates = Rates::only(Counted::Commands, RATE);
        let users = RatesByKey::<String>::new(rates, 10);
        assert_eq!(
            (0..9)
                .filter(|_| users.take("ann", one, now).is_ok())
                .count(),
            3
        );
        assert!(users.take("bob", one, now).is_ok());
        for other in 0..1_000 {
            assert!(users.take(&format!("user{other}"), one, now).is_ok());
            assert!(
                users.take("ann", one, now).is_err(),
                "who comes often is remembered"
            );
            assert!(users.remembered() <= 10);
        }
        let without = RatesByKey::<String>::new(Rates::default(), 10);
        assert!((0..99).all(|_| without.take("ann", one, now).is_ok()));
        assert_eq!(without.remembered(), 0);
    }
}
