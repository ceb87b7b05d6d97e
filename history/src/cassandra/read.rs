//! Knows: how rows of a room are found and read, bucket by bucket. Never: writes, the cache of pages.
//!
//! Only buckets that have rows are touched. The first is read alone; how many rows it had says how
//! many of the next are read side by side.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;
use weir_nats::{Message, RoomName, Seq};

use super::write::{bucket_of, day_of};
use super::{Cassandra, Link, READS_REST, envelope, lock, read_streams, to_i64, to_seq};
use crate::archive::{ArchiveError, Counted, PageQuery, Rows};

/// Index rows that are read at a time.
pub(super) const BUCKETS_AT_ONCE: i32 = 64;
/// Buckets that are read side by side.
const WAVE_MAX_BUCKETS: usize = 16;
/// Rows of the first query of a bucket: their mean size is not known yet.
const FIRST_MAX_ROWS: usize = 16;
/// Rows of any query.
const CHUNK_MAX_ROWS: usize = 1_000;
/// Rows of a query that reads no payloads.
const KEYS_MAX_ROWS: usize = 5_000;
/// Days without a message that a search by time steps over: a hundred years.
const DAYS_MAX: i32 = 36_525;
/// Above the time of any message: an envelope that was overwritten so late is erased for good.
pub(super) const ERASED_US: i64 = 1 << 60;

/// Rows in (`after`, `up_to`] of one room.
#[derive(Clone, Copy)]
pub(super) struct Range<'a> {
    pub(super) log: &'a str,
    pub(super) room: &'a RoomName,
    pub(super) after: Seq,
    pub(super) up_to: Seq,
    pub(super) reverse: bool,
}

impl Range<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.after >= self.up_to
    }

    /// What is left behind `seq`.
    pub(super) fn go_on(&mut self, seq: Seq) {
        if self.reverse {
            self.up_to = seq.just_before();
        } else {
            self.after = seq;
        }
    }

    /// True if `a` comes before `b` in this direction.
    fn is_before(&self, a: Seq, b: Seq) -> bool {
        if self.reverse { a > b } else { a < b }
    }
}

/// A bucket of a room that has rows, and the epochs in which it has some.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) first: u64,
    pub(super) epochs: Vec<String>,
}

/// What was read of a bucket.
struct Part {
    messages: Vec<Message>,
    /// How far it was read; `None`: to the end.
    read_to: Option<Seq>,
}

impl Cassandra {
    /// Reads rows of a room.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn page(&self, query: &PageQuery) -> Result<Rows, ArchiveError> {
        self.pages_read.fetch_add(1, Ordering::Relaxed);
        let range = Range {
            log: &query.log,
            room: &query.room,
            after: query.after,
            up_to: query.up_to,
            reverse: query.reverse,
        };
        let limits = (query.max_messages as usize, query.max_bytes as usize);
        self.reading(|link| async move { read_page(&link, range, limits).await })
            .await
    }

    /// The newest offset of a room that was stored before `time_ms` (milliseconds since 1970).
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn older_than(
        &self,
        log: &str,
        room: &RoomName,
        time_ms: i64,
    ) -> Result<Option<Seq>, ArchiveError> {
        self.reading(|link| async move { older_than(&link, log, room, time_ms).await })
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
        let range = Range {
            log,
            room,
            after,
            up_to,
            reverse: true,
        };
        self.reading(|link| async move {
            let mut counted = Counted::default();
            keys_backward(&link, range, |seq, _, is_erased| {
                if !is_erased && counted.oldest != Some(seq) {
                    counted.messages += 1;
                    counted.oldest = Some(seq);
                }
                counted.messages < max_messages
            })
            .await?;
            Ok(counted)
        })
        .await
    }

    /// The offset under which a message id is archived in a room, in any log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn find(
        &self,
        room: &RoomName,
        id: &str,
        after: Seq,
    ) -> Result<Option<Seq>, ArchiveError> {
        self.reading(|link| async move {
            let mut logs: Vec<String> = read_streams(&link)
                .await?
                .into_iter()
                .map(|stream| stream.log)
                .collect();
            logs.sort();
            logs.dedup();
            let mut found = None;
            for log in &logs {
                let range = Range {
                    log,
                    room,
                    after,
                    up_to: Seq::MAX,
                    reverse: true,
                };
                keys_backward(&link, range, |seq, there, _| {
                    if there == id {
                        found = Some(seq);
                    }
                    found.is_none()
                })
                .await?;
                if found.is_some() {
                    break;
                }
            }
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
    mut range: Range<'_>,
    (max_messages, max_bytes): (usize, usize),
) -> Result<Rows, ArchiveError> {
    let mut page = Rows::default();
    let mut bytes = 0;
    let mut width = 1;
    while !range.is_empty() {
        let (buckets, is_cut) = list(link, range).await?;
        let mut nth = 0;
        while nth < buckets.len() {
            // One more than is asked for says whether there are more.
            let missing = max_messages + 1 - page.messages.len();
            let wave = &buckets[nth..buckets.len().min(nth + width)];
            let left_bytes = max_bytes.saturating_sub(bytes) / wave.len();
            let parts = wave
                .iter()
                .map(|bucket| read_bucket(link, range, bucket, missing, left_bytes));
            let mut rows = 0;
            for part in try_join_all(parts).await? {
                rows += part.messages.len();
                for message in part.messages {
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
                    range.go_on(read_to);
                    break;
                }
                nth += 1;
            }
            let per_bucket = (rows / wave.len()).max(1);
            width = missing.div_ceil(per_bucket).clamp(1, WAVE_MAX_BUCKETS);
        }
        let Some(last) = buckets.last().filter(|_| is_cut) else {
            break;
        };
        range.go_on(behind(link, last, range.reverse));
    }
    Ok(page)
}

/// The last sequence of a bucket, or in reverse its first.
pub(super) fn behind(link: &Link, bucket: &Bucket, reverse: bool) -> Seq {
    if reverse {
        Seq::new(bucket.first)
    } else {
        Seq::new(bucket.first + link.bucket_width).just_before()
    }
}

/// The next buckets of a room that have rows, and whether there may be others behind them. An index
/// row may be there without rows.
pub(super) async fn list(
    link: &Link,
    range: Range<'_>,
) -> Result<(Vec<Bucket>, bool), ArchiveError> {
    let statement = if range.reverse {
        &link.statements.select_buckets_backward
    } else {
        &link.statements.select_buckets_forward
    };
    let first = bucket_of(link, Seq::new(range.after.read_from()));
    let last = bucket_of(link, range.up_to);
    let bounds = (to_i64(Seq::new(first)), to_i64(Seq::new(last)));
    let key = (
        range.log,
        range.room.channel(),
        bounds.0,
        bounds.1,
        BUCKETS_AT_ONCE,
    );
    let found: Vec<(i64, String)> = link.driver.read(statement, key).await?;
    let is_cut = found.len() == BUCKETS_AT_ONCE as usize;
    let mut buckets: Vec<Bucket> = Vec::new();
    for (bucket, epoch) in found {
        let first = to_seq(bucket).get();
        match buckets.last_mut().filter(|last| last.first == first) {
            Some(last) => last.epochs.push(epoch),
            None => buckets.push(Bucket {
                first,
                epochs: vec![epoch],
            }),
        }
    }
    if is_cut && buckets.len() > 1 {
        // Its epochs may be cut off.
        buckets.pop();
    }
    Ok((buckets, is_cut))
}

/// Reads a bucket's rows, of all its epochs, in order.
async fn read_bucket(
    link: &Link,
    range: Range<'_>,
    bucket: &Bucket,
    max_rows: usize,
    max_bytes: usize,
) -> Result<Part, ArchiveError> {
    let mut parts = Vec::with_capacity(bucket.epochs.len());
    for epoch in &bucket.epochs {
        parts.push(read_epoch(link, range, (bucket.first, epoch), max_rows, max_bytes).await?);
    }
    let read_to = parts
        .iter()
        .filter_map(|part| part.read_to)
        .reduce(|a, b| if range.is_before(a, b) { a } else { b });
    let mut messages: Vec<Message> = parts.into_iter().flat_map(|part| part.messages).collect();
    messages.retain(|one| read_to.is_none_or(|read_to| !range.is_before(read_to, one.seq)));
    messages.sort_by_key(|one| one.seq);
    if range.reverse {
        messages.reverse();
    }
    Ok(Part { messages, read_to })
}

/// Reads rows of one partition. Of two messages at one offset (the log went back in time before
/// anybody looked) the one that was stored first is the room's; the other was published again.
async fn read_epoch(
    link: &Link,
    mut range: Range<'_>,
    (bucket, epoch): (u64, &str),
    max_rows: usize,
    max_bytes: usize,
) -> Result<Part, ArchiveError> {
    let statement = if range.reverse {
        &link.statements.select_backward
    } else {
        &link.statements.select_forward
    };
    let (mut messages, mut bytes) = (Vec::<Message>::new(), 0_usize);
    let mut is_first = true;
    loop {
        let mean = bytes / messages.len().max(1);
        let fits = max_bytes.saturating_sub(bytes).checked_div(mean);
        // After rows that are all erased there is nothing to go by but their number.
        let unknown = if is_first {
            FIRST_MAX_ROWS
        } else {
            CHUNK_MAX_ROWS
        };
        let limit = fits.map_or(unknown, |fits| (fits + 1).min(CHUNK_MAX_ROWS));
        // Two more: one that tells whether its offset has another row, and that one.
        let limit = limit.min(max_rows.saturating_sub(messages.len())).max(1) + 2;
        let key = (
            range.log,
            range.room.channel(),
            epoch,
            to_i64(Seq::new(bucket)),
            to_i64(range.after),
            to_i64(range.up_to),
            to_limit(limit),
        );
        let mut rows: Vec<(i64, String, Option<bytes::Bytes>)> =
            link.driver.read(statement, key).await?;
        is_first = false;
        let is_cut = rows.len() == limit;
        if is_cut {
            // The last offset's rows may be cut off: they are read with the next.
            let last = rows.last().map(|(off, ..)| *off);
            let whole = rows.iter().filter(|(off, ..)| Some(*off) != last).count();
            if whole > 0 {
                rows.truncate(whole);
            }
        }
        let reached = rows.last().map(|(off, ..)| to_seq(*off));
        for (off, id, blob) in rows {
            let blob = blob.filter(|blob| !blob.is_empty());
            let Some(blob) = blob else {
                continue;
            };
            let message = envelope::decode(to_seq(off), id, &blob)?;
            match messages.last_mut().filter(|last| last.seq == message.seq) {
                Some(last) if message.time_ms < last.time_ms => *last = message,
                Some(_) => {}
                None => {
                    bytes += message.data.len();
                    messages.push(message);
                }
            }
        }
        let Some(reached) = reached.filter(|_| is_cut) else {
            return Ok(Part {
                messages,
                read_to: None,
            });
        };
        range.go_on(reached);
        if messages.len() >= max_rows || bytes > max_bytes {
            return Ok(Part {
                messages,
                read_to: Some(reached),
            });
        }
    }
}

/// Shows offsets, ids and whether they are erased, newest first, while `see` says true.
async fn keys_backward(
    link: &Link,
    mut range: Range<'_>,
    mut see: impl FnMut(Seq, &str, bool) -> bool,
) -> Result<(), ArchiveError> {
    while !range.is_empty() {
        let (buckets, is_cut) = list(link, range).await?;
        for bucket in &buckets {
            loop {
                let (rows, read_to) = read_keys(link, range, bucket).await?;
                for (off, id, written_us) in rows {
                    let is_erased = written_us.is_none_or(|written| written >= ERASED_US);
                    if !see(to_seq(off), &id, is_erased) {
                        return Ok(());
                    }
                }
                let Some(read_to) = read_to else {
                    break;
                };
                range.go_on(read_to);
            }
        }
        let Some(last) = buckets.last().filter(|_| is_cut) else {
            break;
        };
        range.go_on(behind(link, last, true));
    }
    Ok(())
}

/// Offset, id, and when the envelope was written (µs).
type Key = (i64, String, Option<i64>);

/// A bucket's newest keys, of all its epochs, newest first, and how far they were read if there are
/// more. (Rows at the last offset of a full answer may be cut off: two of them are rare, and the
/// first that is seen counts.)
async fn read_keys(
    link: &Link,
    range: Range<'_>,
    bucket: &Bucket,
) -> Result<(Vec<Key>, Option<Seq>), ArchiveError> {
    let (mut all, mut read_to) = (Vec::new(), None);
    for epoch in &bucket.epochs {
        let key = (
            range.log,
            range.room.channel(),
            epoch,
            to_i64(Seq::new(bucket.first)),
            to_i64(range.after),
            to_i64(range.up_to),
            to_limit(KEYS_MAX_ROWS),
        );
        let keys = &link.statements.select_keys_backward;
        let rows: Vec<Key> = link.driver.read(keys, key).await?;
        if rows.len() == KEYS_MAX_ROWS {
            read_to = read_to.max(rows.last().map(|(off, ..)| *off));
        }
        all.extend(rows);
    }
    all.retain(|(off, ..)| read_to.is_none_or(|read_to| *off >= read_to));
    all.sort_by_key(|(off, ..)| std::cmp::Reverse(*off));
    Ok((all, read_to.map(to_seq)))
}

/// By the index of seconds: a room's message before a time lies below the first offset of the
/// second behind it, so only that second's messages are looked at in vain.
async fn older_than(
    link: &Link,
    log: &str,
    room: &RoomName,
    time_ms: i64,
) -> Result<Option<Seq>, ArchiveError> {
    let mut streams = read_streams(link).await?;
    streams.retain(|stream| stream.log == log);
    let mut up_to = Seq::ZERO;
    for stream in &streams {
        let end = match first_after(link, stream, time_ms).await? {
            Some(seq) => seq.just_before(),
            None => stream.known.seq,
        };
        up_to = up_to.max(end);
    }
    let mut range = Range {
        log,
        room,
        after: Seq::ZERO,
        up_to,
        reverse: true,
    };
    loop {
        let rows = read_page(link, range, (FIRST_MAX_ROWS, usize::MAX)).await?;
        let older = rows.messages.iter().find(|one| one.time_ms < time_ms);
        if let Some(older) = older {
            return Ok(Some(older.seq));
        }
        match rows.messages.last() {
            Some(last) if rows.more => range.go_on(last.seq),
            _ => return Ok(None),
        }
    }
}

/// The first offset of a stream in a second that begins after `time_ms`.
async fn first_after(
    link: &Link,
    stream: &super::KnownStream,
    time_ms: i64,
) -> Result<Option<Seq>, ArchiveError> {
    let second = time_ms.div_euclid(1_000) + 1;
    if stream.known.time_ms < second.saturating_mul(1_000) {
        return Ok(None);
    }
    let last = day_of(stream.known.time_ms);
    let first = day_of(second.saturating_mul(1_000)).max(last - DAYS_MAX);
    for day in first..=last {
        let key = (&stream.stream, day, second);
        let found: Vec<(Option<i64>,)> = link
            .driver
            .read(&link.statements.select_second, key)
            .await?;
        if let Some((Some(off),)) = found.first() {
            return Ok(Some(to_seq(*off)));
        }
    }
    Ok(None)
}

fn to_limit(rows: usize) -> i32 {
    i32::try_from(rows.min(KEYS_MAX_ROWS)).unwrap_or(i32::MAX)
}
