//! Knows: how a room's past is read: pages, counts, an id, a time. Never: writes, the cache of pages.
//!
//! Only buckets that have rows are touched. The first is read alone; how many rows it had says how
//! many of the next are read side by side.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;
use weir_nats::{Message, RoomName, Seq};

use super::index::{Bucket, buckets, first_after};
use super::partition::{KEYS_MAX_ROWS, Key, LogRoom, Part, Partition, Span};
use super::streams::read_streams_of;
use super::{Cassandra, Link, READS_REST, lock};
use crate::archive::{ArchiveError, Counted, PageQuery, Rows};

/// Buckets that are read side by side.
const WAVE_MAX_BUCKETS: usize = 16;
/// Rows of the first query of a bucket: their mean size is not known yet.
const FIRST_MAX_ROWS: usize = 16;
/// Rows of any query.
const CHUNK_MAX_ROWS: usize = 1_000;

impl Cassandra {
    /// Reads rows of a room.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn page(&self, query: &PageQuery) -> Result<Rows, ArchiveError> {
        self.pages_read.fetch_add(1, Ordering::Relaxed);
        let (log, room) = (query.log.as_str(), &query.room);
        let span = Span {
            after: query.after,
            up_to: query.up_to,
            reverse: query.reverse,
        };
        let limits = (query.max_messages as usize, query.max_bytes as usize);
        self.reading(
            |link| async move { read_page(&link, LogRoom { log, room }, span, limits).await },
        )
        .await
    }

    /// The newest offset of a room that was stored before `time_ms` (milliseconds since 1970); the room
    /// is in this slot of its log, so that it costs the same however many there are.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn older_than(
        &self,
        (log, slot): (&str, u16),
        room: &RoomName,
        time_ms: i64,
    ) -> Result<Option<Seq>, ArchiveError> {
        let of = LogRoom { log, room };
        self.reading(|link| async move { older_than(&link, (of, slot), time_ms).await })
            .await
    }

    /// How many rows of a room lie in (`after`, `up_to`], and the oldest offset of the newest
    /// `max_messages` of them. Payloads are not read.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn count(
        &self,
        log: &str,
        room: &RoomName,
        (after, up_to): (Seq, Seq),
        max_messages: u64,
    ) -> Result<Counted, ArchiveError> {
        let of = LogRoom { log, room };
        let span = Span {
            after,
            up_to,
            reverse: true,
        };
        self.reading(|link| async move {
            let mut counted = Counted::default();
            keys_backward(&link, of, span, |key| {
                if key.time_ms().is_some() && counted.oldest != Some(key.seq) {
                    counted.messages += 1;
                    counted.oldest = Some(key.seq);
                }
                counted.messages < max_messages
            })
            .await?;
            Ok(counted)
        })
        .await
    }

    /// The offset under which a message id is archived in a room.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn find(
        &self,
        log: &str,
        room: &RoomName,
        id: &str,
        after: Seq,
    ) -> Result<Option<Seq>, ArchiveError> {
        let of = LogRoom { log, room };
        let span = Span {
            after,
            ..Span::ALL_BACKWARD
        };
        self.reading(|link| async move {
            let mut found = None;
            keys_backward(&link, of, span, |key| {
                if key.id == id {
                    found = Some(key.seq);
                }
                found.is_none()
            })
            .await?;
            Ok(found)
        })
        .await
    }

    /// Reads, twice if need be. While the cluster is known not to answer, nobody waits for it.
    pub(super) async fn reading<T, F: Future<Output = Result<T, ArchiveError>>>(
        &self,
        read: impl Fn(Arc<Link>) -> F,
    ) -> Result<T, ArchiveError> {
        let link = self.link()?;
        let is_resting = lock(&self.resting_until).is_some_and(|until| Instant::now() < until);
        if is_resting || self.is_doubtful() {
            return Err(ArchiveError {
                reason: "Cassandra did not answer a moment ago; try again".to_owned(),
                temporary: true,
            });
        }
        let started = Instant::now();
        let mut answer = read(Arc::clone(&link)).await;
        let is_quick = started.elapsed() < Duration::from_secs(1);
        if is_quick && answer.as_ref().is_err_and(|error| error.temporary) {
            answer = read(link).await;
        }
        if answer.as_ref().is_err_and(|error| error.temporary) {
            *lock(&self.resting_until) = Some(Instant::now() + READS_REST);
        }
        answer
    }
}

async fn read_page(
    link: &Link,
    of: LogRoom<'_>,
    mut span: Span,
    (max_messages, max_bytes): (usize, usize),
) -> Result<Rows, ArchiveError> {
    let mut page = Rows::default();
    let mut bytes = 0;
    let mut width = 1;
    while !span.is_empty() {
        let listed = buckets(link, of, span).await?;
        let mut nth = 0;
        while nth < listed.rows.len() {
            // One more than is asked for says whether there are more.
            let missing = max_messages + 1 - page.messages.len();
            let wave = &listed.rows[nth..listed.rows.len().min(nth + width)];
            let limits = (missing, max_bytes.saturating_sub(bytes) / wave.len());
            let parts = wave
                .iter()
                .map(|bucket| read_bucket(link, of, span, bucket, limits));
            let mut rows = 0;
            for part in try_join_all(parts).await? {
                rows += part.rows.len();
                for message in part.rows {
                    bytes += message.data.len();
                    let is_full = page.messages.len() >= max_messages
                        || (!page.messages.is_empty() && bytes > max_bytes);
                    if is_full {
                        page.more = true;
                        return Ok(page);
                    }
                    page.messages.push(Arc::new(message));
                }
                if let Some(read_to) = part.read_to {
                    // The bucket has more; what was read of those behind it is read again.
                    span.go_on(read_to);
                    break;
                }
                nth += 1;
            }
            let per_bucket = (rows / wave.len()).max(1);
            width = missing.div_ceil(per_bucket).clamp(1, WAVE_MAX_BUCKETS);
        }
        let Some(read_to) = listed.read_to else {
            break;
        };
        span.go_on(read_to);
    }
    Ok(page)
}

/// Reads a bucket's messages, of all its epochs, in order.
async fn read_bucket(
    link: &Link,
    of: LogRoom<'_>,
    span: Span,
    bucket: &Bucket,
    limits: (usize, usize),
) -> Result<Part<Message>, ArchiveError> {
    let mut parts = Vec::with_capacity(bucket.epochs.len());
    for partition in bucket.partitions(of) {
        parts.push(read_epoch(link, partition, span, limits).await?);
    }
    Ok(Part::merged(parts, span))
}

/// Reads messages of one partition, of rows and bytes as many as are asked for, if it has them. Of two
/// messages at one offset (the log went back in time before anybody looked) the one that was stored first
/// is the room's; the other was published again.
async fn read_epoch(
    link: &Link,
    partition: Partition<'_>,
    mut span: Span,
    (max_rows, max_bytes): (usize, usize),
) -> Result<Part<Message>, ArchiveError> {
    let (mut messages, mut bytes) = (Vec::<Message>::new(), 0_usize);
    let mut unknown = FIRST_MAX_ROWS;
    loop {
        let mean = bytes / messages.len().max(1);
        let fits = max_bytes.saturating_sub(bytes).checked_div(mean);
        let limit = fits.map_or(unknown, |fits| (fits + 1).min(CHUNK_MAX_ROWS));
        // Two more: one that tells whether its offset has another row, and that one.
        let limit = limit.min(max_rows.saturating_sub(messages.len())).max(1) + 2;
        // After rows that are all erased there is nothing to go by but their number.
        unknown = CHUNK_MAX_ROWS;
        let part = partition.rows(link, span, limit).await?;
        for row in part.rows {
            let Some(message) = row.message()? else {
                continue;
            };
            match messages.last_mut().filter(|last| last.seq == message.seq) {
                Some(last) if message.time_ms < last.time_ms => *last = message,
                Some(_) => {}
                None => {
                    bytes += message.data.len();
                    messages.push(message);
                }
            }
        }
        let is_enough = messages.len() >= max_rows || bytes > max_bytes;
        match part.read_to {
            Some(read_to) if !is_enough => span.go_on(read_to),
            read_to => {
                return Ok(Part {
                    rows: messages,
                    read_to,
                });
            }
        }
    }
}

/// Shows keys, newest first, while `see` says true.
async fn keys_backward(
    link: &Link,
    of: LogRoom<'_>,
    mut span: Span,
    mut see: impl FnMut(&Key) -> bool,
) -> Result<(), ArchiveError> {
    while !span.is_empty() {
        let listed = buckets(link, of, span).await?;
        for bucket in &listed.rows {
            loop {
                let mut parts = Vec::with_capacity(bucket.epochs.len());
                for partition in bucket.partitions(of) {
                    parts.push(partition.keys(link, span, KEYS_MAX_ROWS).await?);
                }
                let part = Part::merged(parts, span);
                for key in &part.rows {
                    if !see(key) {
                        return Ok(());
                    }
                }
                let Some(read_to) = part.read_to else {
                    break;
                };
                span.go_on(read_to);
            }
        }
        let Some(read_to) = listed.read_to else {
            break;
        };
        span.go_on(read_to);
    }
    Ok(())
}

/// By the index of seconds: a room's message before a time lies below the first offset of the
/// second behind it, so only that second's messages are looked at in vain.
async fn older_than(
    link: &Link,
    (of, slot): (LogRoom<'_>, u16),
    time_ms: i64,
) -> Result<Option<Seq>, ArchiveError> {
    let mut streams = read_streams_of(link, of.log).await?;
    streams.retain(|stream| stream.slot == slot);
    let mut span = Span {
        up_to: Seq::ZERO,
        ..Span::ALL_BACKWARD
    };
    for stream in &streams {
        let end = match first_after(link, stream, time_ms).await? {
            Some(seq) => seq.just_before(),
            None => stream.known.seq,
        };
        span.up_to = span.up_to.max(end);
    }
    loop {
        let rows = read_page(link, of, span, (FIRST_MAX_ROWS, usize::MAX)).await?;
        let older = rows.messages.iter().find(|one| one.time_ms < time_ms);
        if let Some(older) = older {
            return Ok(Some(older.seq));
        }
        match rows.messages.last() {
            Some(last) if rows.more => span.go_on(last.seq),
            _ => return Ok(None),
        }
    }
}
