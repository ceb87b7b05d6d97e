//! Knows: which streams a keyspace knows, and which of their ranges it holds. Never: rows.

use std::collections::{BTreeSet, HashMap};

use weir_nats::guard::Known;
use weir_nats::{Epoch, Seq};

use super::{Link, lock, to_seq};
use crate::archive::{ArchiveError, HeldByStream};
use crate::held::Held;

/// Streams that a keyspace is read to have: generations of all slots of all logs.
const STREAMS_MAX: usize = 100_000;
/// Streams of one log that are read at a time; should it have more, all of them are scanned.
const LOG_STREAMS_MAX: usize = 10_000;
/// Ranges that it is read to hold.
const RANGES_MAX: usize = 1_000_000;
/// Ranges of one log that are read at a time; should it hold more, all of them are scanned.
const LOG_RANGES_MAX: usize = 10_000;

/// Log, stream, slot, epoch, from, created; then the highest message known: sequence, id, time (ms).
type StreamRow = (
    String,
    String,
    Option<i32>,
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<i64>,
);
/// Log, archive, stream, from, to.
type HeldRow = (String, String, String, i64, i64);

/// A stream as the keyspace knows it.
pub(super) struct KnownStream {
    pub(super) log: String,
    pub(super) stream: String,
    pub(super) slot: u16,
    pub(super) epoch: Epoch,
    pub(super) from: Seq,
    pub(super) known: Known,
}

/// All streams.
pub(super) async fn read_streams(link: &Link) -> Result<Vec<KnownStream>, ArchiveError> {
    let select = &link.statements.select_streams;
    let rows = link.driver.scan(select, (), STREAMS_MAX).await?;
    Ok(rows.into_iter().filter_map(known_stream).collect())
}

/// The streams of one log. It is one partition, so it is answered as long as a quorum of its
/// replicas lives, which a scan of all partitions is not: that waits for a node that stands still.
pub(super) async fn read_streams_of(
    link: &Link,
    log: &str,
) -> Result<Vec<KnownStream>, ArchiveError> {
    let select = &link.statements.select_streams_of;
    let limit = i32::try_from(LOG_STREAMS_MAX).unwrap_or(i32::MAX);
    let rows: Vec<StreamRow> = link.driver.read(select, (log, limit)).await?;
    if rows.len() < LOG_STREAMS_MAX {
        return Ok(rows.into_iter().filter_map(known_stream).collect());
    }
    let mut streams = read_streams(link).await?;
    streams.retain(|stream| stream.log == log);
    Ok(streams)
}

/// `None`: a row whose first half is not there yet is of another process, this very moment.
fn known_stream(row: StreamRow) -> Option<KnownStream> {
    let (log, stream, slot, epoch, from, created, seq, id, time_ms) = row;
    Some(KnownStream {
        log,
        stream,
        slot: u16::try_from(slot?).ok()?,
        epoch: Epoch::new(&epoch?).ok()?,
        from: to_seq(from?),
        known: Known {
            created: created.unwrap_or_default(),
            seq: to_seq(seq.unwrap_or(0)),
            id: id.unwrap_or_default(),
            time_ms: time_ms.unwrap_or(0),
        },
    })
}

/// What all streams hold, and of which logs they are.
pub(super) async fn read_held(
    link: &Link,
) -> Result<(HeldByStream, BTreeSet<String>), ArchiveError> {
    let select = &link.statements.select_held;
    let rows: Vec<HeldRow> = link.driver.scan(select, (), RANGES_MAX).await?;
    let logs = rows.iter().map(|(log, ..)| log.clone()).collect();
    Ok((held_by_stream(link, rows), logs))
}

/// What streams of these logs hold: a partition for each log, as with [`read_streams_of`].
pub(super) async fn read_held_of(
    link: &Link,
    logs: &BTreeSet<String>,
) -> Result<HeldByStream, ArchiveError> {
    let select = &link.statements.select_held_of;
    let own = lock(&link.meta).id.clone();
    let mut all = Vec::new();
    for log in logs {
        let limit = i32::try_from(LOG_RANGES_MAX).unwrap_or(i32::MAX);
        let rows: Vec<HeldRow> = link.driver.read(select, (log, &own, limit)).await?;
        if rows.len() == LOG_RANGES_MAX {
            return Ok(read_held(link).await?.0);
        }
        all.extend(rows);
    }
    Ok(held_by_stream(link, all))
}

fn held_by_stream(link: &Link, rows: Vec<HeldRow>) -> HeldByStream {
    let own = lock(&link.meta).id.clone();
    let mut held: HashMap<String, Held> = HashMap::new();
    for (_, archive, stream, from, to) in rows {
        if archive != own {
            continue;
        }
        held.entry(stream)
            .or_default()
            .add(to_seq(from), to_seq(to));
    }
    held
}
