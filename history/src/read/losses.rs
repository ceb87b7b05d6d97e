//! Knows: whether a stream has lost messages that no archive has passed yet. Never: pages.
//!
//! A stream counts what it lost to a bad disk among what was deleted. Weir deletes from a generation
//! that is written to only by an order of erasure, so what is missing above all orders was lost.

use moka::sync::Cache;
use weir_nats::Seq;
use weir_nats::placement::Place;
use weir_nats::replay::StreamState;

use super::{ReadError, Reader};
use crate::gaps::explained_to;

/// Missing sequences of one stream that are looked at, some eight bytes each on their way. Of a stream
/// that misses more nothing is called whole before the archive has passed it.
const MISSING_MAX_SEQUENCES: u64 = 1_000_000;
/// Streams of which is remembered what they miss.
const STREAMS_MAX: u64 = 4_096;

/// The last that streams miss, by stream.
#[derive(Clone, Debug)]
pub(super) struct Losses(Cache<String, (Key, Seq)>);

/// While this is the same a stream misses the same: a sequence never comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    created: String,
    first: Seq,
    missing: u64,
}

impl Default for Losses {
    fn default() -> Self {
        Self(Cache::new(STREAMS_MAX))
    }
}

impl Reader {
    /// True if the stream of the current generation, whose state this is, lost something after `after`
    /// that it was given, or may have.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub(super) async fn has_lost(
        &self,
        place: &Place,
        state: &StreamState,
        after: Seq,
    ) -> Result<bool, ReadError> {
        let stream = &place.current().stream;
        let missing = state.missing();
        let after = after.max(explained_to(&self.orders, &place.log, stream));
        if missing == 0 || after >= state.last {
            return Ok(false);
        }
        if missing > MISSING_MAX_SEQUENCES {
            return Ok(true);
        }
        let key = Key {
            created: state.created.clone(),
            first: state.first,
            missing,
        };
        let last = match self.losses.0.get(stream) {
            Some((known, last)) if known == key => last,
            _ => {
                let seqs = self.replay.missing(stream).await?;
                let last = seqs.iter().max().copied().unwrap_or_default();
                // The stream may have changed since its state was read.
                if seqs.len() as u64 == missing {
                    self.losses.0.insert(stream.clone(), (key, last));
                }
                last
            }
        };
        Ok(last > after)
    }
}
