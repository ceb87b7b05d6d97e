//! Knows: which reads of the archive are equal, so that many askers are one query, and how far a
//! reader believes the archive to be. Never: streams, verdicts.
//!
//! What the archive holds up to a watermark never changes, so everything that is asked of it here
//! ends at one: pages, counts and searches by time are kept under that. The watermark itself moves
//! many times a second while a stream is written, and reads under each value of it would be queries
//! of their own. So readers share a *view* of it, which may be old and is never ahead; what lies
//! after it is read from the stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use tokio::time::Instant;
use weir_nats::{RoomName, Seq};

use super::metrics::ReaderMetrics;
use crate::archive::{Archive, ArchiveError, Counted, PageQuery, Rows};
use crate::held::Held;

/// A view is taken anew when it is older than this, so that an unbroken flow of equal questions is
/// a query a second.
const VIEW_MAX_AGE: Duration = Duration::from_secs(1);
/// A view is taken anew when the archive is farther ahead of it than this, so that the tail that is
/// read from the stream stays cheap.
const VIEW_MAX_BEHIND_MESSAGES: u64 = 20_000;
/// Counts and searches by time that are kept.
const FIGURES_MAX: u64 = 10_000;

/// The archive as readers ask it.
#[derive(Clone, Debug)]
pub(super) struct ArchiveReads {
    archive: Archive,
    pages: Cache<PageQuery, Arc<Rows>>,
    counts: Cache<CountQuery, Counted>,
    times: Cache<TimeQuery, Option<Seq>>,
    views: Arc<Mutex<HashMap<String, View>>>,
    metrics: Arc<ReaderMetrics>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CountQuery {
    log: String,
    room: RoomName,
    after: Seq,
    up_to: Seq,
    max_messages: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TimeQuery {
    log: String,
    room: RoomName,
    time_ms: i64,
    /// The watermark of the view under which it was asked.
    at: Seq,
}

/// What readers take the archive to hold of a stream.
#[derive(Debug)]
struct View {
    held: Held,
    taken: Instant,
}

impl ArchiveReads {
    /// Keeps at most so many bytes of pages; 0 keeps none.
    pub(super) fn new(archive: Archive, cache_max_bytes: u64, metrics: Arc<ReaderMetrics>) -> Self {
        Self {
            archive,
            pages: page_cache(cache_max_bytes),
            counts: Cache::new(FIGURES_MAX),
            times: Cache::new(FIGURES_MAX),
            views: Arc::default(),
            metrics,
        }
    }

    /// The same with another bound on pages.
    pub(super) fn with_cache(self, cache_max_bytes: u64) -> Self {
        Self {
            pages: page_cache(cache_max_bytes),
            ..self
        }
    }

    /// The archive, for what is never kept.
    pub(super) fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Drops everything that is kept: rows changed, as by an erasure.
    pub(super) fn forget(&self) {
        self.pages.invalidate_all();
        self.counts.invalidate_all();
        self.times.invalidate_all();
    }

    /// What the archive holds of a stream at this moment. Readers go on from it.
    pub(super) fn held(&self, stream: &str) -> Held {
        let held = self.held_now(stream);
        self.take_view(stream, held.clone());
        held
    }

    /// What the archive held of a stream a moment ago: the same for all who ask within that moment.
    pub(super) fn view(&self, stream: &str) -> Held {
        let held = self.held_now(stream);
        {
            let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(view) = views.get(stream)
                && view.taken.elapsed() < VIEW_MAX_AGE
                // An archive that holds less than before was put back or emptied.
                && view.held.end() <= held.end()
                // What the stream has lost above the view, only the archive knows.
                && held.covers(view.held.end(), held.end())
                && held.end().get() - view.held.end().get() <= VIEW_MAX_BEHIND_MESSAGES
            {
                return view.held.clone();
            }
        }
        self.take_view(stream, held.clone());
        held
    }

    fn held_now(&self, stream: &str) -> Held {
        let all = self.archive.held();
        let held = all.borrow().get(stream).cloned();
        held.unwrap_or_default()
    }

    fn take_view(&self, stream: &str, held: Held) {
        let taken = Instant::now();
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = views
            .get(stream)
            .is_none_or(|view| is_extended(&view.held, &held));
        views.insert(stream.to_owned(), View { held, taken });
        drop(views);
        if !grown {
            // A hole was filled, or the archive put back: pages that were read over it are not these.
            self.forget();
        }
    }

    /// Rows up to a watermark. A full forward page also answers when the watermark has moved on.
    pub(super) async fn rows(&self, query: PageQuery) -> Result<Arc<Rows>, Arc<ArchiveError>> {
        let open_ended = PageQuery {
            up_to: Seq::MAX,
            ..query.clone()
        };
        if !query.reverse
            && let Some(rows) = self.pages.get(&open_ended).await
            && rows.messages.last().is_some_and(|m| m.seq <= query.up_to)
        {
            self.metrics.cache.add_one();
            return Ok(rows);
        }
        let is_forward = !query.reverse;
        let mut is_read = false;
        let read = {
            let (query, is_read) = (query.clone(), &mut is_read);
            async move {
                *is_read = true;
                self.metrics.archive.add_one();
                self.metrics.queries.add_one();
                self.archive.page(query).await.map(Arc::new)
            }
        };
        let rows = self.pages.try_get_with(query, read).await?;
        if !is_read {
            self.metrics.cache.add_one();
        }
        if rows.more && is_forward {
            self.pages.insert(open_ended, Arc::clone(&rows)).await;
        }
        Ok(rows)
    }

    /// Counts rows up to a watermark, at most `max_messages`.
    pub(super) async fn count(
        &self,
        log: &str,
        room: &RoomName,
        (after, up_to): (Seq, Seq),
        max_messages: u64,
    ) -> Result<Counted, Arc<ArchiveError>> {
        let query = CountQuery {
            log: log.to_owned(),
            room: room.clone(),
            after,
            up_to,
            max_messages,
        };
        let count = {
            let (log, room) = (query.log.clone(), query.room.clone());
            async move {
                self.metrics.queries.add_one();
                let count = self.archive.count(log, room, (after, up_to), max_messages);
                count.await
            }
        };
        self.counts.try_get_with(query, count).await
    }

    /// The newest archived offset of a room that was stored before `time_ms`, asked under the
    /// watermark `at`.
    pub(super) async fn older_than(
        &self,
        (log, slot): (&str, u16),
        room: &RoomName,
        time_ms: i64,
        at: Seq,
    ) -> Result<Option<Seq>, Arc<ArchiveError>> {
        let query = TimeQuery {
            log: log.to_owned(),
            room: room.clone(),
            time_ms,
            at,
        };
        let search = {
            let (log, room) = (query.log.clone(), query.room.clone());
            async move {
                self.metrics.queries.add_one();
                self.archive.older_than((log, slot), room, time_ms).await
            }
        };
        self.times.try_get_with(query, search).await
    }

    /// The newest archived offset that was stored before `time_ms`, if the archive has one at or below
    /// `at` that was stored later, so that what is not archived yet was stored later, too.
    pub(super) async fn last_before(
        &self,
        (log, slot): (&str, u16),
        room: &RoomName,
        time_ms: i64,
        at: Seq,
    ) -> Result<Option<Seq>, Arc<ArchiveError>> {
        let found = self.older_than((log, slot), room, time_ms, at).await?;
        let found = found.unwrap_or_default();
        if found >= at {
            return Ok(None);
        }
        let later = self.count(log, room, (found, at), 1).await?;
        Ok((later.messages > 0).then_some(found))
    }
}

fn page_cache(max_bytes: u64) -> Cache<PageQuery, Arc<Rows>> {
    let weigh = |_: &PageQuery, rows: &Arc<Rows>| {
        let bytes: usize = rows.messages.iter().map(|m| m.data.len() + 256).sum();
        u32::try_from(bytes + 256).unwrap_or(u32::MAX)
    };
    let pages = Cache::builder().max_capacity(max_bytes).weigher(weigh);
    pages.build()
}

/// True if nothing changed but that the last range is longer, or a later one was begun.
fn is_extended(before: &Held, now: &Held) -> bool {
    let Some(((from, to), rest)) = before.ranges().split_last() else {
        return now.ranges().len() < 2;
    };
    let Some((first, last)) = now.ranges().split_at_checked(rest.len()) else {
        return false;
    };
    first == rest && last.first().is_some_and(|(a, b)| a == from && b >= to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_that_is_filled_is_no_extension() {
        let held = |ranges: &[(u64, u64)]| Held::from_ranges(ranges.iter().copied());
        let before = held(&[(1, 10), (20, 30)]);
        assert!(is_extended(&before, &held(&[(1, 10), (20, 40)])));
        assert!(is_extended(&before, &held(&[(1, 10), (20, 40), (50, 60)])));
        assert!(!is_extended(&before, &held(&[(1, 30)])));
        assert!(!is_extended(&before, &held(&[(1, 10), (15, 30)])));
        assert!(!is_extended(&before, &held(&[(1, 10), (20, 25)])));
        assert!(!is_extended(&before, &held(&[])));
        assert!(is_extended(&held(&[]), &held(&[(5, 9)])));
    }
}
