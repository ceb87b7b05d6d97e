//! Knows: the indexes over rows, as they are read: which buckets of a room have rows, which offset a second began with.
//! Never: rows, writes.

use weir_nats::Seq;

use super::partition::{LogRoom, Part, Partition, Span};
use super::streams::KnownStream;
use super::{Link, to_i64, to_seq};
use crate::archive::ArchiveError;

/// Index rows that are read at a time.
const ROWS_AT_ONCE: i32 = 64;
/// Days without a message that a search by time steps over: a hundred years.
const DAYS_MAX: i32 = 36_525;
const MS_PER_DAY: i64 = 86_400_000;

/// A bucket of a room that has rows, and the epochs in which it has some.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) first: u64,
    pub(super) epochs: Vec<String>,
}

impl Bucket {
    /// Its partitions, one an epoch.
    pub(super) fn partitions<'a>(&'a self, of: LogRoom<'a>) -> impl Iterator<Item = Partition<'a>> {
        self.epochs.iter().map(move |epoch| Partition {
            of,
            epoch,
            bucket: self.first,
        })
    }
}

/// The next buckets of a room in a span that have rows. An index row may be there without rows.
pub(super) async fn buckets(
    link: &Link,
    of: LogRoom<'_>,
    span: Span,
) -> Result<Part<Bucket>, ArchiveError> {
    let statement = if span.reverse {
        &link.statements.select_buckets_backward
    } else {
        &link.statements.select_buckets_forward
    };
    let first = bucket_of(link, Seq::new(span.after.read_from()));
    let last = bucket_of(link, span.up_to);
    let bounds = (to_i64(Seq::new(first)), to_i64(Seq::new(last)));
    let key = (of.log, of.room.channel(), bounds.0, bounds.1, ROWS_AT_ONCE);
    let found: Vec<(i64, String)> = link.driver.read(statement, key).await?;
    let is_cut = found.len() == ROWS_AT_ONCE as usize;
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
    let read_to = buckets.last().filter(|_| is_cut).map(|last| {
        if span.reverse {
            Seq::new(last.first)
        } else {
            Seq::new(last.first + link.bucket_width).just_before()
        }
    });
    Ok(Part {
        rows: buckets,
        read_to,
    })
}

/// The first offset of a stream in a second that begins after `time_ms`.
pub(super) async fn first_after(
    link: &Link,
    stream: &KnownStream,
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

/// The first sequence of the bucket that a sequence is in.
pub(super) fn bucket_of(link: &Link, seq: Seq) -> u64 {
    seq.get() / link.bucket_width * link.bucket_width
}

/// The day (UTC) of a time, counted from 1970.
pub(super) fn day_of(time_ms: i64) -> i32 {
    i32::try_from(time_ms.div_euclid(MS_PER_DAY)).unwrap_or(i32::MAX)
}
