//! Knows: what an offset, an epoch and a position are. Never: arithmetic on offsets, NATS, clocks.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A JetStream stream sequence, which is the *offset* of a message in its room.
///
/// Strictly increasing in a room, never contiguous, never used twice. The next message's sequence
/// cannot be computed, so there is no addition here; [`Seq::ZERO`] means "before everything".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(u64);

impl Seq {
    /// Before the first message; no message has it.
    pub const ZERO: Self = Self(0);
    /// The largest sequence a JavaScript client can hold exactly (2^53 - 1).
    pub const MAX: Self = Self((1 << 53) - 1);

    /// Wraps a sequence as NATS or a client gave it.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number for the wire, a row or a log line.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// True for [`Seq::ZERO`].
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sequence at which a read "after this one" has to start. It need not exist.
    #[must_use]
    pub const fn read_from(self) -> u64 {
        self.0.saturating_add(1)
    }

    /// The position just before this one: everything at or above `self` is "after" it.
    #[must_use]
    pub const fn just_before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a span of a partition's log in which continuity can be proven.
///
/// Never empty and never `_`, which clients use for "no position". Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch(Arc<str>);

/// A string that cannot be an epoch: empty, `_`, or longer than 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no epoch: it must be 1 to 64 bytes and not `_`")]
pub struct EpochError(String);

impl Epoch {
    /// Takes an epoch as stored.
    ///
    /// # Errors
    /// When it is empty, `_`, or longer than 64 bytes.
    pub fn new(text: &str) -> Result<Self, EpochError> {
        if text.is_empty() || text == "_" || text.len() > 64 {
            return Err(EpochError(text.chars().take(80).collect()));
        }
        Ok(Self(Arc::from(text)))
    }

    /// Makes an epoch that was never used before, out of 10 random bytes.
    #[must_use]
    pub fn random(bytes: [u8; 10]) -> Self {
        Self(Arc::from(
            data_encoding::BASE32_NOPAD
                .encode(&bytes)
                .to_ascii_lowercase()
                .as_str(),
        ))
    }

    /// The text, as clients see it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Epoch {
    type Error = EpochError;
    fn try_from(text: String) -> Result<Self, EpochError> {
        Self::new(&text)
    }
}

impl From<Epoch> for String {
    fn from(epoch: Epoch) -> Self {
        epoch.0.as_ref().to_owned()
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in a room: everything at or below `offset` in `epoch` has been seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch that the offset belongs to.
    pub epoch: Epoch,
    /// The last offset seen; [`Seq::ZERO`] is "nothing yet".
    pub offset: Seq,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_never_empty_nor_the_invalid_mark() {
        assert!(Epoch::new("").is_err());
        assert!(Epoch::new("_").is_err());
        assert!(Epoch::new(&"x".repeat(65)).is_err());
        assert_eq!(Epoch::random([7; 10]).as_str().len(), 16);
    }
}
