//! Knows: how a batch becomes rows, and in which order, so that nothing is claimed before it is
//! durable. Never: reads for clients.
//!
//! Intent, index, rows, then the range that they make whole. Whatever stops in between, the range is
//! not there, and the same batch is written again into the same places.

mod claims;
mod compare;
mod index;
mod rows;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;
use weir_nats::ambient::now_ms;
use weir_nats::{RoomName, Seq};

use super::{Cassandra, to_i64};
use crate::archive::{Appended, ArchiveError, Batch, Quarantined};
use crate::held::Held;

/// What was written before and need not be again.
#[derive(Debug, Default)]
pub(super) struct Writer {
    streams: HashSet<String>,
    rooms: HashSet<Indexed>,
    users: HashSet<(String, Indexed)>,
    /// Of each stream: the second that was written last, and its lowest offset.
    seconds: HashMap<String, (i64, Seq)>,
    /// Of each stream: rows up to here may be there that no range tells of, from before this process
    /// took it over; and up to where it has said that it may write.
    intents: HashMap<String, (Seq, Seq)>,
}

/// Log, room, epoch, bucket.
type Indexed = (String, RoomName, String, u64);
type Write<'a> = BoxFuture<'a, Result<(), ArchiveError>>;

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
}

fn to_us(time_ms: i64) -> i64 {
    time_ms.saturating_mul(1_000)
}

fn now_us() -> i64 {
    to_us(now_ms())
}
