//! Knows: THE read path: one order over archive and stream, and what it proves. Never: SQL, frames.
//!
//! | what | where |
//! |---|---|
//! | a question: a part of a room's history, or a recovery | ask.rs |
//! | equal questions at once share an answer | flights.rs |
//! | the verdict of a recovery | verdict.rs |
//! | history between two times, inside a window | history.rs |
//! | how far a window of so many messages reaches | window.rs |
//! | a page oldest first; newest first | forward.rs; backward.rs |
//! | what fits into a page | page.rs |
//! | what archive and stream hold and had | tiers.rs |
//! | what a stream has lost | losses.rs |
//! | which reads of the archive are equal, and kept | cache.rs |

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};
use weir_nats::Orders;
use weir_nats::Seq;
use weir_nats::placement::Place;
use weir_nats::replay::{Replay, ReplayError};

use crate::archive::{Archive, ArchiveError};

mod ask;
mod backward;
mod cache;
mod flights;
mod forward;
mod history;
mod losses;
mod metrics;
mod page;
mod tiers;
mod verdict;
mod window;

pub use ask::Ask;
use ask::Question;
use cache::ArchiveReads;
use flights::Flights;
use losses::Losses;
pub use metrics::ReaderMetrics;
pub use page::Page;
pub use window::{WINDOW_MAX_MESSAGES, Window};

/// Bytes of archive pages kept, unless told otherwise.
const CACHE_MAX_BYTES: u64 = 64 << 20;
/// Tries of a page whose tail was trimmed while it was read.
const TRIES_MAX: usize = 5;
/// Reads that fill up one page whose messages are erased and not gone yet.
const REFILLS_MAX: usize = 50;
/// Pages being read for clients at a time in this process, so that many clients do not multiply the
/// memory of a page; the others wait their turn.
const PAGES_AT_ONCE_MAX: usize = 32;
static PAGES_AT_ONCE: Semaphore = Semaphore::const_new(PAGES_AT_ONCE_MAX);

/// The answer to a recovery.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// The verdict. False comes with an empty page.
    pub recovered: bool,
    /// The first missed messages; `more` says that others follow.
    pub page: Page,
}

/// A read that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream did not answer.
    #[error(transparent)]
    Stream(#[from] ReplayError),
    /// The archive did not answer.
    #[error(transparent)]
    Archive(#[from] Arc<ArchiveError>),
    /// The stream was trimmed faster than it was archived, again and again.
    #[error("the stream {0} is trimmed faster than it can be read")]
    Trimmed(String),
}

/// Reads rooms. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    archive: Option<ArchiveReads>,
    replay: Replay,
    orders: Orders,
    flights: Flights<Question, Result<Recovery, ReadError>>,
    losses: Losses,
    metrics: Arc<ReaderMetrics>,
}

impl Reader {
    /// Reads the archive, if there is one, and streams over `replay`.
    #[must_use]
    pub fn new(archive: Option<Archive>, replay: Replay) -> Self {
        let metrics = Arc::<ReaderMetrics>::default();
        let reads = |archive| ArchiveReads::new(archive, CACHE_MAX_BYTES, Arc::clone(&metrics));
        Self {
            archive: archive.map(reads),
            replay,
            orders: Orders::default(),
            flights: Flights::default(),
            losses: Losses::default(),
            metrics,
        }
    }

    /// The same without what these orders erase, whatever archive and streams still have of it.
    #[must_use]
    pub fn with_orders(self, orders: Orders) -> Self {
        Self { orders, ..self }
    }

    /// The same with another bound on the bytes of archive pages kept; 0 keeps none.
    #[must_use]
    pub fn with_cache(self, cache_max_bytes: u64) -> Self {
        let reads = |reads: ArchiveReads| reads.with_cache(cache_max_bytes);
        Self {
            archive: self.archive.map(reads),
            ..self
        }
    }

    /// Counters of its reads.
    #[must_use]
    pub fn metrics(&self) -> &Arc<ReaderMetrics> {
        &self.metrics
    }

    /// Forgets the pages that it keeps: rows of the archive were changed.
    pub fn forget(&self) {
        if let Some(archive) = &self.archive {
            archive.forget();
        }
    }
}

/// A turn to read a page, kept while it is read.
async fn turn() -> SemaphorePermit<'static> {
    let turn = PAGES_AT_ONCE.acquire().await;
    turn.expect("the semaphore is never closed")
}

/// The offset below which no placed stream reaches.
fn lowest(place: &Place) -> Seq {
    place
        .generations
        .first()
        .map_or(Seq::ZERO, |oldest| oldest.from.just_before())
}
