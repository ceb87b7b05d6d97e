//! Knows: how a keyspace is walked whole, for tools: streams, rooms by token, rows of every epoch, quarantine, notes.
//! Never: writes rows.

use std::sync::Arc;

use weir_nats::placement::Generation;
use weir_nats::{Epoch, RoomName, Seq};

use super::index::{Bucket, buckets};
use super::partition::{AtOffset, LogRoom, Part, Span};
use super::streams::{read_held, read_streams};
use super::{Cassandra, Link, schema, to_i64, to_seq};
use crate::archive::{ArchiveError, HeldByStream, Quarantined};
use crate::listing::{About, ListedRoom, ListedRow, ListedRows, RowKey, StreamRecord, Totals};

/// Rows of the first query: their mean size is not known yet.
const FIRST_MAX_ROWS: usize = 64;
/// Rows of any query.
const CHUNK_MAX_ROWS: usize = 1_000;

impl Cassandra {
    /// Which archive this is; its id is empty while the cluster has never answered.
    #[must_use]
    pub fn about(&self) -> About {
        let nodes = self.config.nodes.join(", ");
        About {
            kind: "cassandra",
            place: format!("keyspace {} at {nodes}", self.config.keyspace),
            id: self.id().unwrap_or_default(),
            schema: schema::VERSION.to_owned(),
        }
    }

    /// Each stream that it knows, by log, slot and where it begins.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn streams(&self) -> Result<Vec<StreamRecord>, ArchiveError> {
        let read = |link: Arc<Link>| async move { read_streams(&link).await };
        let streams = self.reading(read).await?.into_iter();
        let mut streams: Vec<StreamRecord> = streams
            .map(|one| StreamRecord {
                log: one.log,
                slot: one.slot,
                generation: Generation {
                    stream: one.stream,
                    epoch: one.epoch,
                    from: one.from,
                },
                known: one.known,
            })
            .collect();
        streams.sort_by(|a, b| {
            let key = |one: &StreamRecord| (one.slot, one.generation.from);
            a.log.cmp(&b.log).then_with(|| key(a).cmp(&key(b)))
        });
        Ok(streams)
    }

    /// What it holds, read afresh.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn held_now(&self) -> Result<HeldByStream, ArchiveError> {
        self.reading(|link| async move { Ok(read_held(&link).await?.0) })
            .await
    }

    /// Rooms behind a cursor, by token.
    ///
    /// # Errors
    /// When they cannot be read, or the cursor is none.
    pub async fn rooms(
        &self,
        after: Option<&str>,
        max_rooms: u32,
    ) -> Result<Vec<ListedRoom>, ArchiveError> {
        let bad = |reason: String| ArchiveError {
            reason,
            temporary: false,
        };
        // No room has the lowest token.
        let after: i64 = match after {
            None => i64::MIN,
            Some(text) => text.parse().map_err(|_| {
                let place = self.about().place;
                bad(format!("{text:?} is no place in the rooms of {place}"))
            })?,
        };
        let limit = i32::try_from(max_rooms).unwrap_or(i32::MAX);
        let found: Vec<(String, String, i64)> = self
            .reading(|link| async move {
                let max_rows = max_rooms as usize;
                let select = &link.statements.select_rooms;
                link.driver.scan(select, (after, limit), max_rows).await
            })
            .await?;
        let rooms = found.into_iter().map(|(log, room, token)| {
            Ok(ListedRoom {
                log,
                room: RoomName::parse(&room)
                    .map_err(|error| bad(format!("the archived room {room:?}: {error}")))?,
                cursor: token.to_string(),
            })
        });
        rooms.collect()
    }

    /// Every row of a room behind `after`, by offset, epoch and id.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn rows_of(
        &self,
        log: &str,
        room: &RoomName,
        after: Option<&RowKey>,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<ListedRows, ArchiveError> {
        let of = LogRoom { log, room };
        let limits = (max_messages as usize, max_bytes as usize);
        self.reading(|link| async move { rows_of(&link, of, after, limits).await })
            .await
    }

    /// How much it has, as far as that is known without reading all of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn totals(&self) -> Result<Totals, ArchiveError> {
        let quarantined = self
            .reading(|link| async move {
                let mut all = 0;
                for stream in read_streams(&link).await? {
                    let count = &link.statements.count_quarantine;
                    let found: Vec<(i64,)> = link.driver.read(count, (&stream.stream,)).await?;
                    all += found.first().map_or(0, |(count,)| *count);
                }
                Ok(all)
            })
            .await?;
        Ok(Totals {
            quarantined: u64::try_from(quarantined).ok(),
            ..Totals::default()
        })
    }

    /// What is in quarantine behind a stream and sequence, by stream and sequence.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn quarantined(
        &self,
        after: Option<&(String, Seq)>,
        max_messages: u32,
    ) -> Result<Vec<(String, Quarantined)>, ArchiveError> {
        self.reading(|link| async move { quarantined(&link, after, max_messages as usize).await })
            .await
    }

    /// A note of a tool.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn note(&self, name: &str) -> Result<Option<String>, ArchiveError> {
        let found: Vec<(Option<String>,)> = self
            .reading(|link| async move {
                let select = &link.statements.select_note;
                link.driver.read(select, (note_key(name),)).await
            })
            .await?;
        Ok(found.into_iter().next().and_then(|(text,)| text))
    }

    /// Leaves a note of a tool.
    ///
    /// # Errors
    /// When it is not known to have been written.
    pub async fn leave_note(&self, name: &str, text: &str) -> Result<(), ArchiveError> {
        let link = self.link()?;
        let insert = &link.statements.insert_note;
        link.driver.write(insert, (note_key(name), text)).await
    }
}

/// Notes are beside the archive's own keys.
fn note_key(name: &str) -> String {
    format!("note.{name}")
}

async fn quarantined(
    link: &Link,
    after: Option<&(String, Seq)>,
    max_messages: usize,
) -> Result<Vec<(String, Quarantined)>, ArchiveError> {
    type Row = (
        i64,
        Option<String>,
        Option<String>,
        Option<bytes::Bytes>,
        Option<String>,
    );
    let mut streams = read_streams(link).await?;
    streams.sort_by(|a, b| a.stream.cmp(&b.stream));
    let mut all = Vec::new();
    for stream in streams {
        let behind = match after {
            Some((name, _)) if stream.stream < *name => continue,
            Some((name, seq)) if stream.stream == *name => to_i64(*seq),
            _ => -1,
        };
        let left = max_messages.saturating_sub(all.len());
        if left == 0 {
            break;
        }
        let limit = i32::try_from(left).unwrap_or(i32::MAX);
        let key = (&stream.stream, behind, limit);
        let select = &link.statements.select_quarantine;
        let rows: Vec<Row> = link.driver.scan(select, key, left).await?;
        let rows = rows.into_iter();
        all.extend(rows.map(|(seq, subject, headers, data, reason)| {
            let refused = Quarantined {
                seq: to_seq(seq),
                subject: subject.unwrap_or_default(),
                headers: headers.unwrap_or_default(),
                data: data.unwrap_or_default(),
                reason: reason.unwrap_or_default(),
            };
            (stream.stream.clone(), refused)
        }));
    }
    Ok(all)
}

async fn rows_of(
    link: &Link,
    of: LogRoom<'_>,
    after: Option<&RowKey>,
    (max_messages, max_bytes): (usize, usize),
) -> Result<ListedRows, ArchiveError> {
    let mut span = Span {
        // Others may have the same offset.
        after: after.map_or(Seq::ZERO, |key| key.seq.just_before()),
        ..Span::ALL_FORWARD
    };
    let (mut listed, mut bytes) = (ListedRows::default(), 0_usize);
    while !span.is_empty() {
        let found = buckets(link, of, span).await?;
        for bucket in &found.rows {
            loop {
                // One more than is asked for says whether there are more.
                let missing = max_messages + 1 - listed.rows.len();
                let mean = bytes / listed.rows.len().max(1);
                let fitting = match listed.rows.len() {
                    0 => FIRST_MAX_ROWS,
                    _ => max_bytes.saturating_sub(bytes) / mean.max(1) + 1,
                };
                let limit = missing.min(fitting).clamp(FIRST_MAX_ROWS, CHUNK_MAX_ROWS);
                let part = read_bucket(link, of, span, bucket, limit).await?;
                for row in part.rows {
                    if after.is_some_and(|after| row.key() <= *after) {
                        continue;
                    }
                    bytes += row.message.data.len();
                    let is_full = listed.rows.len() >= max_messages
                        || (!listed.rows.is_empty() && bytes > max_bytes);
                    if is_full {
                        listed.more = true;
                        return Ok(listed);
                    }
                    listed.rows.push(row);
                }
                let Some(read_to) = part.read_to else {
                    break;
                };
                span.go_on(read_to);
            }
        }
        let Some(read_to) = found.read_to else {
            break;
        };
        span.go_on(read_to);
    }
    Ok(listed)
}

impl AtOffset for ListedRow {
    fn seq(&self) -> Seq {
        self.message.seq
    }
}

/// A bucket's rows of all its epochs, by offset, epoch and id. What is erased is no row.
async fn read_bucket(
    link: &Link,
    of: LogRoom<'_>,
    span: Span,
    bucket: &Bucket,
    limit: usize,
) -> Result<Part<ListedRow>, ArchiveError> {
    let mut parts = Vec::with_capacity(bucket.epochs.len());
    for partition in bucket.partitions(of) {
        let epoch = Epoch::new(partition.epoch).map_err(|error| ArchiveError {
            reason: format!("the room {:?}: {error}", of.room),
            temporary: false,
        })?;
        let part = partition.rows(link, span, limit).await?;
        let mut rows = Vec::with_capacity(part.rows.len());
        for row in part.rows {
            if let Some(message) = row.message()? {
                let message = Arc::new(message);
                let epoch = epoch.clone();
                rows.push(ListedRow { epoch, message });
            }
        }
        let read_to = part.read_to;
        parts.push(Part { rows, read_to });
    }
    Ok(Part::merged(parts, span))
}
