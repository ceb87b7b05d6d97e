//! Knows: the wall clock and the system's random source, for the drivers of every crate. Never: what
//! they are used for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since 1970; zero for a clock that stands before it.
#[must_use]
pub fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    i64::try_from(since_1970().as_millis()).unwrap_or(i64::MAX)
}

/// `N` random bytes.
///
/// # Panics
/// When the system has no random source, without which nothing here is safe.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source works");
    bytes
}
