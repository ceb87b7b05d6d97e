//! Knows: what is said of a stream beside its rows: that it is there, how far rows may have been written, which ranges
//! are whole. Never: rows.

use std::sync::atomic::Ordering;

use weir_nats::Seq;

use super::now_us;
use crate::archive::{ArchiveError, Batch};
use crate::cassandra::{Cassandra, Link, lock, to_i64, to_seq};
use crate::held::Held;

/// How far ahead of the rows an intent reaches, in sequences.
const INTENT_AHEAD: u64 = 16_384;

impl Cassandra {
    /// Forgets how far others may have written rows of a stream: one of them may have, since it was asked.
    pub fn take_over(&self, stream: &str) {
        lock(&self.writer).intents.remove(stream);
    }

    /// Says once in a process that a stream is there.
    pub(super) async fn declare(&self, link: &Link, batch: &Batch) -> Result<(), ArchiveError> {
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
    pub(super) async fn intend(
        &self,
        link: &Link,
        batch: &Batch,
        last: Seq,
    ) -> Result<Seq, ArchiveError> {
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

    /// Records what is whole now. The range that grows must still be there as this process knows
    /// it: in a keyspace that was emptied meanwhile it would be a lie.
    pub(super) async fn record_held(&self, link: &Link, batch: &Batch) -> Result<(), ArchiveError> {
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
        lock(&self.logs).insert(batch.log.clone());
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
