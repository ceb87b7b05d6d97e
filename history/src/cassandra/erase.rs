//! Knows: how rows are erased in Cassandra: their envelopes are overwritten with nothing, so late that no
//! message written again can win. Never: who ordered it; files of nodes.
//!
//! The old envelopes are in the nodes' files until these are written anew and the commit log is turned
//! over, which only who runs the nodes can do; [`Cassandra::left_to_do`] names the steps.

use std::sync::Arc;

use weir_nats::ambient::now_ms;
use weir_nats::erasure::streams::covers_stranger;
use weir_nats::erasure::{Matcher, Order, What};
use weir_nats::{RoomName, Seq};

use super::index::buckets;
use super::partition::{ERASED_US, KEYS_MAX_ROWS, LogRoom, Partition, Span};
use super::streams::read_streams;
use super::{Cassandra, Link, lock, to_i64, to_seq};
use crate::archive::{ArchiveError, Batch, Erasure, user_of};

/// Orders that are read.
const ORDERS_MAX_ROWS: usize = 100_000;
/// Rows with payloads of one read.
const READ_MAX_ROWS: usize = 200;
/// Rows overwritten as one mutation.
const MUTATION_MAX_ROWS: usize = 100;
/// Buckets in which a user has written, of one log.
const USER_BUCKETS_MAX_ROWS: usize = 1_000_000;
/// Messages in quarantine, of one stream.
const QUARANTINE_MAX_ROWS: usize = 1_000_000;

impl Cassandra {
    /// The orders on record, oldest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn erasures(&self) -> Result<Vec<Erasure>, ArchiveError> {
        read(&*self.link()?).await
    }

    /// Takes orders down. One that is on record stays as it is.
    ///
    /// # Errors
    /// When it is not known that all were written.
    pub async fn record_erasures(&self, orders: &[Order]) -> Result<(), ArchiveError> {
        let link = self.link()?;
        for order in orders {
            let json = serde_json::to_string(order).expect("plain fields become JSON");
            link.driver
                .write(&link.statements.insert_erasure, (&order.id, json))
                .await?;
        }
        self.refresh_erasures(&link).await
    }

    /// Reads what appends may not take.
    pub(super) async fn refresh_erasures(&self, link: &Link) -> Result<(), ArchiveError> {
        let orders = read(link).await?.into_iter().map(|one| one.order.into());
        *lock(&self.erasures) = Arc::new(Matcher::new(orders));
        Ok(())
    }

    /// The batch without what may not be kept; `None`: all of it may.
    pub(super) fn without_erased(&self, batch: &Batch) -> Option<(Batch, u64)> {
        let matcher = Arc::clone(&*lock(&self.erasures));
        batch.without_erased(&matcher)
    }

    /// Erases what an order on record covers. `progress` is told of rows as they go.
    ///
    /// # Errors
    /// When it is not finished; it can be done again.
    pub async fn erase(
        &self,
        order: &Order,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ArchiveError> {
        let link = self.link()?;
        let before = read(&link).await?;
        let before = before.iter().find(|one| one.order.id == order.id);
        let mut erased = before.map_or(0, |one| one.erased);
        let streams = read_streams(&link).await?;
        let mut logs: Vec<&str> = streams.iter().map(|stream| stream.log.as_str()).collect();
        logs.sort_unstable();
        logs.dedup();
        for log in logs {
            match &order.what {
                What::Room(name) => {
                    let Ok(room) = RoomName::parse(name) else {
                        continue;
                    };
                    let (of, mut span) = (LogRoom { log, room: &room }, Span::ALL_FORWARD);
                    loop {
                        let listed = buckets(&link, of, span).await?;
                        for partition in listed.rows.iter().flat_map(|one| one.partitions(of)) {
                            let rows = erase_all(&link, order, partition).await?;
                            erased += rows;
                            progress(rows);
                            say(&link, order, erased, None).await?;
                        }
                        let Some(read_to) = listed.read_to else {
                            break;
                        };
                        span.go_on(read_to);
                    }
                }
                What::User(user) => {
                    let buckets: Vec<(String, i64, String)> = link
                        .driver
                        .scan(
                            &link.statements.select_user_buckets,
                            (log, user),
                            USER_BUCKETS_MAX_ROWS,
                        )
                        .await?;
                    for (room, bucket, epoch) in buckets {
                        let Ok(room) = RoomName::parse(&room) else {
                            continue;
                        };
                        let partition = Partition {
                            of: LogRoom { log, room: &room },
                            epoch: &epoch,
                            bucket: to_seq(bucket).get(),
                        };
                        let rows = erase_user(&link, order, partition, user).await?;
                        erased += rows;
                        progress(rows);
                        say(&link, order, erased, None).await?;
                    }
                }
            }
        }
        for stream in &streams {
            let rows = erase_quarantine(&link, order, &stream.stream).await?;
            erased += rows;
            progress(rows);
        }
        say(&link, order, erased, Some(now_ms())).await
    }

    /// The steps after which no file of a node has an erased byte (docs/erasure.md says what each is
    /// for). An envelope that was overwritten is no deletion: `garbagecollect` takes it out cell by
    /// cell only.
    #[must_use]
    pub fn left_to_do(&self) -> String {
        let keyspace = &self.config.keyspace;
        format!(
            "Cassandra's files have it still. Each step on every node before the next, the last one node by node:\n\
             nodetool repair --full --partitioner-range {keyspace}\n\
             nodetool flush {keyspace}\n\
             nodetool garbagecollect --granularity CELL {keyspace} messages quarantine\n\
             nodetool clearsnapshot --all {keyspace}\n\
             nodetool drain\n\
             and stop the node and start it again (docs/erasure.md has another way)"
        )
    }
}

impl Batch {
    /// The batch without what these orders cover, and how many messages that was; `None` if nothing.
    pub(super) fn without_erased(&self, matcher: &Matcher) -> Option<(Self, u64)> {
        if matcher.is_empty() {
            return None;
        }
        let is_row = |(room, message): &(RoomName, _)| matcher.is_erased(&self.log, room, message);
        let is_refused = |refused: &crate::archive::Quarantined| refused.is_erased(matcher);
        if !self.rows.iter().any(is_row) && !self.refused.iter().any(is_refused) {
            return None;
        }
        let mut kept = self.clone();
        kept.rows.retain(|row| !is_row(row));
        kept.refused.retain(|refused| !is_refused(refused));
        let before = self.rows.len() + self.refused.len();
        let erased = before - kept.rows.len() - kept.refused.len();
        Some((kept, erased as u64))
    }
}

async fn read(link: &Link) -> Result<Vec<Erasure>, ArchiveError> {
    type Row = (String, Option<String>, Option<i64>, Option<i64>);
    let rows: Vec<Row> = link
        .driver
        .scan(&link.statements.select_erasures, (), ORDERS_MAX_ROWS)
        .await?;
    let mut erasures = Vec::with_capacity(rows.len());
    for (id, json, erased, done_ms) in rows {
        // Without its order it is half of a row, of another process, this very moment.
        let Some(json) = json else { continue };
        let order = serde_json::from_str(&json).map_err(|error| ArchiveError {
            reason: format!("the order of erasure {id} cannot be read: {error}"),
            temporary: false,
        })?;
        erasures.push(Erasure {
            order,
            erased: u64::try_from(erased.unwrap_or(0)).unwrap_or(0),
            done_ms,
        });
    }
    erasures.sort_by(|a, b| a.order.id.cmp(&b.order.id));
    Ok(erasures)
}

/// Writes down how far an order is.
async fn say(
    link: &Link,
    order: &Order,
    erased: u64,
    done_ms: Option<i64>,
) -> Result<(), ArchiveError> {
    let erased = i64::try_from(erased).unwrap_or(i64::MAX);
    link.driver
        .write(&link.statements.set_erased, (erased, &order.id))
        .await?;
    match done_ms {
        None => Ok(()),
        Some(done_ms) => {
            let done = (done_ms, &order.id);
            link.driver
                .write(&link.statements.set_erasure_done, done)
                .await
        }
    }
}

/// Erases what an order covers of a room's partition. Payloads are not read.
async fn erase_all(
    link: &Link,
    order: &Order,
    partition: Partition<'_>,
) -> Result<u64, ArchiveError> {
    let (mut erased, mut span) = (0, Span::ALL_BACKWARD);
    loop {
        let part = partition.keys(link, span, KEYS_MAX_ROWS).await?;
        let is_covered = |seq, time_ms| is_covered(order, partition.of, seq, time_ms);
        let covered: Vec<_> = part
            .rows
            .into_iter()
            .filter(|key| key.time_ms().is_some_and(|time| is_covered(key.seq, time)))
            .map(|key| (key.seq, key.id))
            .collect();
        erased += covered.len() as u64;
        overwrite(link, partition, &covered).await?;
        match part.read_to {
            Some(read_to) => span.go_on(read_to),
            None => return Ok(erased),
        }
    }
}

/// Erases what an order covers of one author in a partition.
async fn erase_user(
    link: &Link,
    order: &Order,
    partition: Partition<'_>,
    user: &str,
) -> Result<u64, ArchiveError> {
    let (mut erased, mut span) = (0, Span::ALL_BACKWARD);
    loop {
        let part = partition.rows(link, span, READ_MAX_ROWS).await?;
        let mut covered = Vec::new();
        for row in part.rows {
            let Some(message) = row.message()? else {
                continue;
            };
            let is_theirs = message.author.is_some_and(|author| author.user == user);
            if is_theirs && is_covered(order, partition.of, message.seq, message.time_ms) {
                covered.push((message.seq, message.id));
            }
        }
        erased += covered.len() as u64;
        overwrite(link, partition, &covered).await?;
        match part.read_to {
            Some(read_to) => span.go_on(read_to),
            None => return Ok(erased),
        }
    }
}

fn is_covered(order: &Order, of: LogRoom<'_>, seq: Seq, time_ms: i64) -> bool {
    order.reaches(of.log, of.room.partition(), seq, time_ms)
}

async fn overwrite(
    link: &Link,
    partition: Partition<'_>,
    keys: &[(Seq, String)],
) -> Result<(), ArchiveError> {
    let (of, bucket) = (partition.of, to_i64(Seq::new(partition.bucket)));
    for keys in keys.chunks(MUTATION_MAX_ROWS) {
        let nothing: Vec<u8> = Vec::new();
        let rows = keys.iter().map(|(seq, id)| {
            let (log, room, epoch) = (of.log, of.room.channel(), partition.epoch);
            let off = to_i64(*seq);
            (log, room, epoch, bucket, off, id, &nothing, ERASED_US)
        });
        link.driver
            .write_all(&link.statements.insert_message, rows.collect::<Vec<_>>())
            .await?;
    }
    Ok(())
}

async fn erase_quarantine(link: &Link, order: &Order, stream: &str) -> Result<u64, ArchiveError> {
    type Row = (i64, Option<String>, Option<String>);
    let rows: Vec<Row> = link
        .driver
        .scan(
            &link.statements.select_quarantine_keys,
            (stream,),
            QUARANTINE_MAX_ROWS,
        )
        .await?;
    let mut erased = 0;
    for (seq, subject, headers) in rows {
        let (subject, headers) = (subject.unwrap_or_default(), headers.unwrap_or_default());
        let at: Seq = to_seq(seq);
        if covers_stranger(order, &subject, user_of(&headers), at, i64::MIN) {
            let key = (ERASED_US, stream, to_i64(at));
            link.driver
                .write(&link.statements.delete_quarantine, key)
                .await?;
            erased += 1;
        }
    }
    Ok(erased)
}
