//! Knows: when a service that keeps failing is left alone, and when it is tried again. Never: calls, a clock
//! (now is an argument).
//!
//! ```text
//! closed ── so many failures in a row ──▶ open ── after a while ──▶ trying: one call is let through
//!    ▲                                     ▲                          │
//!    └──────────── it succeeds ────────────┼──────────────────────────┤
//!                                          └──── it fails ────────────┘
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerLimits {
    /// Failures in a row that open it.
    pub failures_max: u32,
    /// From then until one call is tried.
    pub open_for: Duration,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    /// One call is out; it decides.
    Trying,
}

/// Of one service.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    state: State,
    failures: u32,
}

/// How a call was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// Among others.
    Usual,
    /// As the one that decides.
    Trial,
}

impl Breaker {
    /// Whether a call may be made now.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<Admitted> {
        match self.state {
            State::Closed => Some(Admitted::Usual),
            State::Open { until } if now >= until => {
                self.state = State::Trying;
                Some(Admitted::Trial)
            }
            State::Open { .. } | State::Trying => None,
        }
    }

    /// A call ended. True if that opened the breaker. What was let through before it opened decides
    /// nothing any more.
    pub(crate) fn ended(
        &mut self,
        admitted: Admitted,
        succeeded: bool,
        limits: BreakerLimits,
        now: Instant,
    ) -> bool {
        let counts = match admitted {
            Admitted::Usual => self.state == State::Closed,
            Admitted::Trial => true,
        };
        if !counts {
            return false;
        }
        if succeeded {
            *self = Self::default();
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        if admitted == Admitted::Usual && self.failures < limits.failures_max {
            return false;
        }
        let until = now + limits.open_for;
        self.state = State::Open { until };
        true
    }

    /// Asks: calls are not let through as usual.
    pub(crate) fn is_open(&self) -> bool {
        self.state != State::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BreakerLimits = BreakerLimits {
        failures_max: 3,
        open_for: Duration::from_secs(2),
    };

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_one_that_succeeds() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        let end = |breaker: &mut Breaker, succeeded| {
            breaker.ended(Admitted::Usual, succeeded, LIMITS, start)
        };
        for succeeded in [false, false, true, false, false] {
            assert!(!end(&mut breaker, succeeded));
            assert_eq!(breaker.admit(start), Some(Admitted::Usual));
        }
        assert!(end(&mut breaker, false), "the third in a row");
        assert!(breaker.is_open());
        assert_eq!(breaker.admit(start), None);
        let later = start + LIMITS.open_for;
        assert_eq!(breaker.admit(later), Some(Admitted::Trial));
        assert_eq!(breaker.admit(later), None, "one at a time");
        assert!(breaker.ended(Admitted::Trial, false, LIMITS, later));
        assert_eq!(breaker.admit(later), None);
        let last = later + LIMITS.open_for;
        assert_eq!(breaker.admit(last), Some(Admitted::Trial));
        assert!(!breaker.ended(Admitted::Trial, true, LIMITS, last));
        assert!(!breaker.is_open());
        assert_eq!(breaker.admit(last), Some(Admitted::Usual));
    }

    #[test]
    fn calls_of_before_decide_nothing() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker.ended(Admitted::Usual, false, LIMITS, start);
        }
        breaker.ended(Admitted::Usual, true, LIMITS, start);
        assert!(breaker.is_open(), "a late success is of before");
        let later = start + LIMITS.open_for;
        assert_eq!(breaker.admit(later), Some(Admitted::Trial));
        breaker.ended(Admitted::Usual, false, LIMITS, later);
        breaker.ended(Admitted::Trial, true, LIMITS, later);
        assert!(!breaker.is_open());
    }
}
