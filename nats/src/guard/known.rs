//! Knows: what is known of a stream, and when that speaks against continuity. Never: NATS, clocks.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::position::Seq;
use crate::replay::StreamState;

/// The highest message known of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// When the stream was created, as the server spells it; empty if not known.
    #[serde(default)]
    pub created: String,
    /// Its highest sequence.
    pub seq: Seq,
    /// The id of the message there; empty if not known.
    #[serde(default)]
    pub id: String,
    /// When that message was stored, in milliseconds since 1970; 0 if not known.
    #[serde(default)]
    pub time_ms: i64,
}

impl Known {
    /// Takes what is higher, and fills in what is missing.
    pub(super) fn raise(&mut self, other: &Self) {
        if other.seq > self.seq {
            let created = std::mem::take(&mut self.created);
            *self = other.clone();
            if self.created.is_empty() {
                self.created = created;
            }
        } else {
            if self.created.is_empty() {
                self.created.clone_from(&other.created);
            }
            if other.seq == self.seq {
                if self.id.is_empty() {
                    self.id.clone_from(&other.id);
                }
                self.time_ms = self.time_ms.max(other.time_ms);
            }
        }
    }
}

/// What a comparison found. Pure, so that each case has a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing speaks against continuity.
    Sound,
    /// The stream has fewer messages than were acknowledged.
    Lower,
    /// It was made anew.
    Recreated,
    /// Another message lies at a known sequence.
    OtherMessage,
}

/// Compares what is known of a stream with what it says. `at_known` is the id of the message that
/// lies at the known sequence; `None` (trimmed or erased) says nothing.
#[must_use]
pub fn compare(known: &Known, state: &StreamState, at_known: Option<&str>) -> Finding {
    if state.last < known.seq {
        Finding::Lower
    } else if !known.created.is_empty() && known.created != state.created {
        Finding::Recreated
    } else if !known.id.is_empty() && at_known.is_some_and(|id| id != known.id) {
        Finding::OtherMessage
    } else {
        Finding::Sound
    }
}

/// The highest known of every stream, of this process.
#[derive(Debug, Default)]
pub(super) struct Knowledge(Mutex<HashMap<String, Known>>);

impl Knowledge {
    pub(super) fn new(seeds: Vec<(String, Known)>) -> Self {
        let knowledge = Self::default();
        for (stream, known) in seeds {
            knowledge.raise(&stream, &known);
        }
        knowledge
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn raise(&self, stream: &str, known: &Known) {
        let mut all = self.all();
        match all.get_mut(stream) {
            Some(mine) => mine.raise(known),
            None => {
                all.insert(stream.to_owned(), known.clone());
            }
        }
    }

    pub(super) fn of(&self, stream: &str) -> Known {
        self.all().get(stream).cloned().unwrap_or_default()
    }

    pub(super) fn highest(&self, stream: &str) -> Seq {
        self.all().get(stream).map_or(Seq::ZERO, |known| known.seq)
    }

    /// The streams of a slot, by generation.
    pub(super) fn of_slot(&self, generation: impl Fn(&str) -> Option<u32>) -> Vec<(u32, Known)> {
        let all = self.all();
        let mine = all
            .iter()
            .filter_map(|(stream, known)| Some((generation(stream)?, known.clone())));
        mine.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(known: (&str, u64, &str), state: (&str, u64), at_known: Option<&str>) -> Finding {
        let known = Known {
            created: known.0.into(),
            seq: Seq::new(known.1),
            id: known.2.into(),
            time_ms: 0,
        };
        let state = StreamState {
            first: Seq::new(1),
            last: Seq::new(state.1),
            messages: 0,
            bytes: 0,
            limits: Default::default(),
            created: state.0.into(),
        };
        compare(&known, &state, at_known)
    }

    #[test]
    fn what_breaks_continuity() {
        assert_eq!(check(("t", 5, "a"), ("t", 5), Some("a")), Finding::Sound);
        assert_eq!(check(("t", 5, "a"), ("t", 9), None), Finding::Sound);
        assert_eq!(check(("", 0, ""), ("t", 9), None), Finding::Sound);
        assert_eq!(check(("t", 5, "a"), ("t", 4), None), Finding::Lower);
        assert_eq!(
            check(("t", 5, "a"), ("u", 9), Some("a")),
            Finding::Recreated
        );
        assert_eq!(
            check(("t", 5, "a"), ("t", 9), Some("b")),
            Finding::OtherMessage
        );
    }

    #[test]
    fn knowledge_only_grows() {
        let known = |seq, id: &str, created: &str| Known {
            created: created.into(),
            seq: Seq::new(seq),
            id: id.into(),
            time_ms: 0,
        };
        let mut mine = known(5, "a", "t");
        mine.raise(&known(3, "x", ""));
        assert_eq!(mine, known(5, "a", "t"));
        mine.raise(&known(7, "b", ""));
        assert_eq!(mine, known(7, "b", "t"));
    }
}
