//! Knows: how a batch becomes rows, and in which order, so that nothing is claimed before it is
//! durable. Never: reads for clients.
//!
//! Intent, index, rows, then the range that they make whole. Whatever stops in between, the range is
//! not there, and the same batch is written again into the same places.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;
use weir_nats::ambient::now_ms;
use weir_nats::{Message, RoomName, Seq};

use super::{Cassandra, Link, envelope, lock, to_i64, to_seq};
use crate::archive::{Appended, ArchiveError, Batch, Quarantined};
use crate::held::Held;

/// Rows of one partition that are written as one mutation.
const MUTATION_MAX_ROWS: usize = 100;
/// Bytes of their envelopes, beyond the first row.
const MUTATION_MAX_BYTES: usize = 64 << 10;
/// Index rows that are remembered as written; beyond it they are all written once more.
const INDEXED_MAX_ROWS: usize = 200_000;
/// How far ahead of the rows an intent reaches, in sequences.
const INTENT_AHEAD: u64 = 16_384;
const MS_PER_DAY: i64 = 86_400_000;
/// The lowest offset of a second must win, whoever writes last.
const LOWEST_WINS: i64 = 1 << 60;

/// What was written before and need not be again.
#[derive(Debug, Default)]
pub(super) struct Writer {
    streams: HashSet<String>,
    rooms: HashSet<Indexed>,
    users: HashSet<(String, Indexed)>,
    /// Of each stream: the second that was written last, and its lowest offset.
    seconds: HashMap<String, (i64, Seq)>,
    /// Of each stream: rows up to here may be there that no range tells of, from before this
    /// process; and up to where it has said that it may write.
    intents: HashMap<String, (Seq, Seq)>,
}

/// Log, room, epoch, bucket.
type Indexed = (String, RoomName, String, u64);
type Write<'a> = BoxFuture<'a, Result<(), ArchiveError>>;

/// A row: its message and its envelope.
struct Row<'a> {
    room: &'a RoomName,
    message: &'a Message,
    blob: Vec<u8>,
}

impl Cassandra {
    /// Writes rows, quarantine and the highest known, then the held ranges. May be repeated after
    /// an error: what was written already is written over by itself.
    ///
    /// # Errors
    /// When it is not known that all of it was written.
    pub async fn append(&self, batch: &Batch) -> Result<Appended, ArchiveError> {
        let appended = match self.without_erased(batch) {
            None => self.write_batch(batch).await,
            Some((kept, erased)) => {
                let appended = self.write_batch(&kept).await;
                appended.map(|appended| Appended { erased, ..appended })
            }
        };
        if appended.is_err() {
            self.pace.went_badly();
        }
        appended
    }

    async fn write_batch(&self, batch: &Batch) -> Result<Appended, ArchiveError> {
        let link = self.link()?;
        let stream = &batch.generation.stream;
        self.declare(&link, batch).await?;
        let mut appended = Appended::default();
        let mut there = 0;
        if let (Some(first), Some(last)) = (
            batch.rows.iter().map(|(_, message)| message.seq).min(),
            batch.rows.iter().map(|(_, message)| message.seq).max(),
        ) {
            let before = self.intend(&link, batch, last).await?;
            let held = self.held.borrow().get(stream).map_or(Seq::ZERO, Held::end);
            if first <= before.max(held) {
                let found = self.compare(&link, batch).await?;
                there = found.same;
                appended.conflicts = found.other;
            }
        }
        let rest;
        let batch = if appended.conflicts.is_empty() {
            batch
        } else {
            // Another message stays what it is; this one is published again by the guard.
            let mut others = batch.clone();
            others.held = others.held.without(&appended.conflicts);
            let reason: &dyn std::fmt::Display = &"another message is archived at its offset";
            for (room, message) in &batch.rows {
                if appended.conflicts.contains(&message.seq) {
                    let refused = Quarantined::of_row(&batch.log, room, message, reason);
                    others.refused.push(refused);
                }
            }
            others
                .rows
                .retain(|(_, message)| !appended.conflicts.contains(&message.seq));
            rest = others;
            &rest
        };
        let started = Instant::now();
        let mut slowest = Duration::ZERO;
        self.index(&link, batch, &mut slowest).await?;
        let refused = self.rows(&link, batch, &mut slowest).await?;
        appended.refused = (refused.len() + batch.refused.len()) as u64;
        appended.rows = ((batch.rows.len() - refused.len()) as u64).saturating_sub(there);
        for refused in refused.iter().chain(&batch.refused) {
            link.driver
                .write(
                    &link.statements.insert_quarantine,
                    (
                        stream,
                        to_i64(refused.seq),
                        &refused.subject,
                        &refused.headers,
                        &refused.data,
                        &refused.reason,
                        now_us(),
                    ),
                )
                .await?;
        }
        if let Some((_, newest)) = batch.rows.iter().max_by_key(|(_, message)| message.seq) {
            let seq = to_i64(newest.seq);
            let known = (&batch.log, stream, seq, &newest.id, newest.time_ms, seq);
            link.driver
                .write(&link.statements.insert_known, known)
                .await?;
        }
        self.record_held(&link, batch).await?;
        tracing::trace!(%stream, rows = appended.rows, elapsed = ?started.elapsed(), "archived");
        self.pace.went_well(slowest);
        Ok(appended)
    }

    /// Says once in a process that a stream is there.
    async fn declare(&self, link: &Link, batch: &Batch) -> Result<(), ArchiveError> {
        let generation = &batch.generation;
        let declared = format!("{} {}", generation.stream, batch.created);
        if lock(&self.writer).streams.contains(&declared) {
            return Ok(());
        }
        let row = (
            &batch.log,
            &generation.stream,
            i32::from(batch.slot),
            generation.epoch.as_str(),
            to_i64(generation.from),
            &batch.created,
            now_us(),
        );
        link.driver
            .write(&link.statements.insert_stream, row)
            .await?;
        lock(&self.writer).streams.insert(declared);
        Ok(())
    }

    /// Says that rows up to `last` may come, and returns up to where others may have written some
    /// before this process did.
    async fn intend(&self, link: &Link, batch: &Batch, last: Seq) -> Result<Seq, ArchiveError> {
        let stream = &batch.generation.stream;
        let known = lock(&self.writer).intents.get(stream).copied();
        let (before, mut intended) = match known {
            Some(known) => known,
            None => {
                let found: Vec<(i64,)> = link
                    .driver
                    .read(&link.statements.select_intent, (&batch.log, stream))
                    .await?;
                let before = found.first().map_or(Seq::ZERO, |(up_to,)| to_seq(*up_to));
                (before, before)
            }
        };
        if last > intended {
            intended = Seq::new(last.get().saturating_add(INTENT_AHEAD));
            let up_to = to_i64(intended);
            link.driver
                .write(
                    &link.statements.insert_intent,
                    (&batch.log, stream, up_to, up_to),
                )
                .await?;
        }
        let mut writer = lock(&self.writer);
        writer.intents.insert(stream.clone(), (before, intended));
        Ok(before)
    }

    /// Looks what is there at the offsets of a batch. Another message says that the log went back in
    /// time.
    async fn compare(&self, link: &Link, batch: &Batch) -> Result<There, ArchiveError> {
        let mut rooms: BTreeMap<(&RoomName, u64), Vec<&Message>> = BTreeMap::new();
        for (room, message) in &batch.rows {
            let bucket = bucket_of(link, message.seq);
            rooms.entry((room, bucket)).or_default().push(message);
        }
        let mut looks: Vec<BoxFuture<'_, Result<There, ArchiveError>>> = Vec::new();
        for ((room, bucket), messages) in rooms {
            looks.push(Box::pin(compare_rows(link, batch, room, bucket, messages)));
        }
        let found: Vec<There> = futures_util::stream::iter(looks)
            .buffer_unordered(self.pace.writes_at_once())
            .try_collect()
            .await?;
        let mut all = There::default();
        for there in found {
            all.same += there.same;
            all.other.extend(there.other);
        }
        all.other.sort();
        all.other.dedup();
        Ok(all)
    }

    /// Index rows that are not known to be there. Before the rows: a row that no index leads to would
    /// never be found.
    async fn index(
        &self,
        link: &Link,
        batch: &Batch,
        slowest: &mut Duration,
    ) -> Result<(), ArchiveError> {
        let epoch = batch.generation.epoch.as_str();
        let (mut rooms, mut users) = (HashMap::new(), HashMap::new());
        let mut seconds: BTreeMap<i64, Seq> = BTreeMap::new();
        {
            let writer = lock(&self.writer);
            let newest = writer.seconds.get(&batch.generation.stream).copied();
            for (room, message) in &batch.rows {
                let bucket = bucket_of(link, message.seq);
                let key = (batch.log.clone(), room.clone(), epoch.to_owned(), bucket);
                if let Some(author) = &message.author {
                    let by = (author.user.clone(), key.clone());
                    if !writer.users.contains(&by) {
                        users.entry(by).or_insert(message.time_ms);
                    }
                }
                if !writer.rooms.contains(&key) {
                    rooms.entry(key).or_insert(message.time_ms);
                }
                let second = message.time_ms.div_euclid(1_000);
                // Tools bring rows room by room, so a second may come after later ones.
                let is_there = newest
                    .is_some_and(|(newest, lowest)| second == newest && message.seq >= lowest);
                if !is_there {
                    let lowest = seconds.entry(second).or_insert(message.seq);
                    *lowest = (*lowest).min(message.seq);
                }
            }
        }
        let statements = &link.statements;
        let mut writes: Vec<Write<'_>> = Vec::new();
        for ((log, room, epoch, bucket), time_ms) in &rooms {
            writes.push(Box::pin(link.driver.write(
                &statements.insert_room_bucket,
                (
                    log,
                    room.channel(),
                    to_i64(Seq::new(*bucket)),
                    epoch,
                    to_us(*time_ms),
                ),
            )));
        }
        for ((user, (log, room, epoch, bucket)), time_ms) in &users {
            writes.push(Box::pin(link.driver.write(
                &statements.insert_user_bucket,
                (
                    log,
                    user,
                    room.channel(),
                    to_i64(Seq::new(*bucket)),
                    epoch,
                    to_us(*time_ms),
                ),
            )));
        }
        for (second, seq) in &seconds {
            let off = to_i64(*seq);
            writes.push(Box::pin(link.driver.write(
                &statements.insert_second,
                (
                    &batch.generation.stream,
                    day_of(second * 1_000),
                    *second,
                    off,
                    LOWEST_WINS - off,
                ),
            )));
        }
        self.run(writes, slowest).await?;
        let mut writer = lock(&self.writer);
        if writer.rooms.len() + rooms.len() > INDEXED_MAX_ROWS {
            writer.rooms.clear();
        }
        if writer.users.len() + users.len() > INDEXED_MAX_ROWS {
            writer.users.clear();
        }
        writer.rooms.extend(rooms.into_keys());
        writer.users.extend(users.into_keys());
        if let Some((second, lowest)) = seconds.last_key_value() {
            let stream = batch.generation.stream.clone();
            writer.seconds.insert(stream, (*second, *lowest));
        }
        Ok(())
    }

    /// The rows, those of one partition together. Returns what the database refuses for its own
    /// sake and not for the cluster's.
    async fn rows(
        &self,
        link: &Link,
        batch: &Batch,
        slowest: &mut Duration,
    ) -> Result<Vec<Quarantined>, ArchiveError> {
        let mut partitions: HashMap<(&RoomName, u64), Vec<Row<'_>>> = HashMap::new();
        for (room, message) in &batch.rows {
            let key = (room, bucket_of(link, message.seq));
            partitions.entry(key).or_default().push(Row {
                room,
                message,
                blob: envelope::encode(message),
            });
        }
        let refused = std::sync::Mutex::new(Vec::new());
        let mut writes: Vec<Write<'_>> = Vec::new();
        for ((_, bucket), rows) in partitions {
            for rows in mutations(rows) {
                let refused = &refused;
                writes.push(Box::pin(async move {
                    let bad = write_rows(link, batch, bucket, rows).await?;
                    lock(refused).extend(bad);
                    Ok(())
                }));
            }
        }
        self.run(writes, slowest).await?;
        Ok(refused
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Runs writes, so many at once as the pace says.
    async fn run(
        &self,
        writes: Vec<Write<'_>>,
        slowest: &mut Duration,
    ) -> Result<(), ArchiveError> {
        let mut timed: Vec<BoxFuture<'_, Result<Duration, ArchiveError>>> =
            Vec::with_capacity(writes.len());
        for write in writes {
            timed.push(Box::pin(async move {
                let started = Instant::now();
                write.await.map(|()| started.elapsed())
            }));
        }
        let mut done =
            futures_util::stream::iter(timed).buffer_unordered(self.pace.writes_at_once());
        while let Some(took) = done.try_next().await? {
            *slowest = took.max(*slowest);
        }
        Ok(())
    }

    /// Records what is whole now. The range that grows must still be there as this process knows
    /// it: in a keyspace that was emptied meanwhile it would be a lie.
    async fn record_held(&self, link: &Link, batch: &Batch) -> Result<(), ArchiveError> {
        let stream = &batch.generation.stream;
        let own = lock(&link.meta).id.clone();
        let mine = self.held.borrow().get(stream).cloned().unwrap_or_default();
        let mut whole = mine.clone();
        for (from, to) in batch.held.ranges() {
            whole.add(Seq::new(*from), Seq::new(*to));
        }
        for (from, to) in whole.ranges() {
            if mine.ranges().contains(&(*from, *to)) {
                continue;
            }
            self.still_holds(link, batch, &mine, (*from, *to)).await?;
            let (from, to) = (to_i64(Seq::new(*from)), to_i64(Seq::new(*to)));
            link.driver
                .write(
                    &link.statements.insert_held,
                    (&batch.log, &own, stream, from, to, to),
                )
                .await?;
        }
        self.held_version.fetch_add(1, Ordering::AcqRel);
        self.held.send_modify(|all| {
            let held = all.entry(stream.clone()).or_default();
            for (from, to) in batch.held.ranges() {
                held.add(Seq::new(*from), Seq::new(*to));
            }
        });
        Ok(())
    }

    async fn still_holds(
        &self,
        link: &Link,
        batch: &Batch,
        mine: &Held,
        (from, to): (u64, u64),
    ) -> Result<(), ArchiveError> {
        let stream = &batch.generation.stream;
        for (start, end) in mine.ranges() {
            if *start < from || *end > to {
                continue;
            }
            let own = lock(&link.meta).id.clone();
            let key = (&batch.log, &own, stream, to_i64(Seq::new(*start)));
            let found: Vec<(i64,)> = link
                .driver
                .read(&link.statements.select_held_end, key)
                .await?;
            let there = found.first().map_or(Seq::ZERO, |(to,)| to_seq(*to));
            if there.get() < *end {
                self.refresh(link).await?;
                return Err(ArchiveError {
                    reason: format!(
                        "{stream}: the range from {start} to {end} is no longer recorded; the keyspace \
                         was emptied or restored, and what it holds is read again"
                    ),
                    temporary: true,
                });
            }
        }
        Ok(())
    }
}

/// What was there before a batch.
#[derive(Default)]
struct There {
    /// Rows of it.
    same: u64,
    /// Offsets at which another message is.
    other: Vec<Seq>,
}

/// What is there in one partition at the offsets of a batch.
async fn compare_rows(
    link: &Link,
    batch: &Batch,
    room: &RoomName,
    bucket: u64,
    messages: Vec<&Message>,
) -> Result<There, ArchiveError> {
    let first = messages.iter().map(|one| one.seq).min().unwrap_or_default();
    let last = messages.iter().map(|one| one.seq).max().unwrap_or_default();
    let query = (
        &batch.log,
        room.channel(),
        batch.generation.epoch.as_str(),
        to_i64(Seq::new(bucket)),
        to_i64(first.just_before()),
        to_i64(last),
        i32::MAX,
    );
    let there: Vec<(i64, String, Option<i64>)> = link
        .driver
        .read(&link.statements.select_keys_backward, query)
        .await?;
    let ids: HashMap<Seq, &str> = messages
        .iter()
        .map(|message| (message.seq, message.id.as_str()))
        .collect();
    let mut found = There::default();
    for (off, id, _) in &there {
        match ids.get(&to_seq(*off)) {
            Some(mine) if mine == id => found.same += 1,
            Some(_) => found.other.push(to_seq(*off)),
            None => {}
        }
    }
    Ok(found)
}

/// Rows of one partition in mutations of bounded size.
fn mutations(rows: Vec<Row<'_>>) -> Vec<Vec<Row<'_>>> {
    let mut all: Vec<Vec<Row<'_>>> = Vec::new();
    let mut bytes = 0;
    for row in rows {
        bytes += row.blob.len();
        match all.last_mut() {
            Some(last) if last.len() < MUTATION_MAX_ROWS && bytes <= MUTATION_MAX_BYTES => {
                last.push(row);
            }
            _ => {
                bytes = row.blob.len();
                all.push(vec![row]);
            }
        }
    }
    all
}

/// Writes rows of one partition; those that are refused for their own sake are returned.
async fn write_rows(
    link: &Link,
    batch: &Batch,
    bucket: u64,
    rows: Vec<Row<'_>>,
) -> Result<Vec<Quarantined>, ArchiveError> {
    let values = |row: &Row<'_>| {
        (
            batch.log.clone(),
            row.room.channel().to_owned(),
            batch.generation.epoch.as_str().to_owned(),
            to_i64(Seq::new(bucket)),
            to_i64(row.message.seq),
            row.message.id.clone(),
            row.blob.clone(),
            to_us(row.message.time_ms),
        )
    };
    let statement = &link.statements.insert_message;
    let written = match &rows[..] {
        [row] => link.driver.write(statement, values(row)).await,
        rows => {
            let rows = rows.iter().map(values).collect();
            link.driver.write_all(statement, rows).await
        }
    };
    let error = match written {
        Ok(()) => return Ok(Vec::new()),
        Err(error) if error.temporary => return Err(error),
        Err(error) => error,
    };
    let [row] = &rows[..] else {
        let mut refused = Vec::new();
        for row in rows {
            refused.extend(Box::pin(write_rows(link, batch, bucket, vec![row])).await?);
        }
        return Ok(refused);
    };
    // If not even reading works, the table is to blame, or our rights, and not the row.
    let key = (
        &batch.log,
        row.room.channel(),
        batch.generation.epoch.as_str(),
        to_i64(Seq::new(bucket)),
        0_i64,
        0_i64,
        1_i32,
    );
    let table: Result<Vec<(i64, String, Option<i64>)>, _> = link
        .driver
        .read(&link.statements.select_keys_backward, key)
        .await;
    table?;
    Ok(vec![Quarantined::of_row(
        &batch.log,
        row.room,
        row.message,
        &error,
    )])
}

/// The first sequence of the bucket that a sequence is in.
pub(super) fn bucket_of(link: &Link, seq: Seq) -> u64 {
    seq.get() / link.bucket_width * link.bucket_width
}

/// The day (UTC) of a time, counted from 1970.
pub(super) fn day_of(time_ms: i64) -> i32 {
    i32::try_from(time_ms.div_euclid(MS_PER_DAY)).unwrap_or(i32::MAX)
}

fn to_us(time_ms: i64) -> i64 {
    time_ms.saturating_mul(1_000)
}

fn now_us() -> i64 {
    to_us(now_ms())
}
