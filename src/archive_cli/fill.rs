//! Knows: how rows from elsewhere become durable in an archive: in batches, and what they prove only after them.
//! Never: where they come from.

use std::collections::HashMap;

use weir_history::Archive;
use weir_history::archive::{Appended, Batch, Quarantined};
use weir_history::held::Held;
use weir_history::listing::StreamRecord;
use weir_nats::erasure::Order;
use weir_nats::{Epoch, Message, RoomName};

use super::walk::StreamsByEpoch;
use super::{Failure, failed, patiently};

/// Rows of one write, of all streams together.
const WRITE_MAX_MESSAGES: usize = 2_000;
const WRITE_MAX_BYTES: usize = 4 << 20;

/// Rows on their way into an archive.
pub(super) struct Fill {
    target: Archive,
    streams: StreamsByEpoch,
    by_name: HashMap<String, StreamRecord>,
    /// By stream.
    waiting: HashMap<String, Batch>,
    waiting_messages: usize,
    waiting_bytes: usize,
    /// Rows that were not there before, where the archive says so.
    pub(super) new_rows: u64,
    /// Messages that had to go into quarantine, as another has their offset.
    pub(super) conflicts: u64,
}

impl Fill {
    /// Begins to fill `target` with rows of `streams`, which must not contradict what it knows.
    pub(super) async fn new(target: Archive, streams: Vec<StreamRecord>) -> Result<Self, Failure> {
        let known = patiently(async || target.streams().await).await?;
        for stream in &streams {
            let name = &stream.generation.stream;
            let other = known.iter().find(|one| {
                one.generation.stream == *name
                    && (one.generation.epoch != stream.generation.epoch || one.log != stream.log)
            });
            if let Some(other) = other {
                return Err(failed(format!(
                    "the archive {} has the stream {name} in the epoch {} of the log {}, and these rows are of the \
                     epoch {} of the log {}: they are two histories. Give an empty archive",
                    target.about().place,
                    other.generation.epoch,
                    other.log,
                    stream.generation.epoch,
                    stream.log
                )));
            }
        }
        Ok(Self {
            target,
            by_name: streams
                .iter()
                .map(|stream| (stream.generation.stream.clone(), stream.clone()))
                .collect(),
            streams: StreamsByEpoch::new(streams),
            waiting: HashMap::new(),
            waiting_messages: 0,
            waiting_bytes: 0,
            new_rows: 0,
            conflicts: 0,
        })
    }

    /// Takes an order of erasure down and carries it out, unless the archive has done so. What it covers is not taken from
    /// then on.
    pub(super) async fn erase(&self, order: &Order) -> Result<(), Failure> {
        let known = patiently(async || self.target.erasures().await).await?;
        let is_done = known
            .iter()
            .any(|one| one.order.id == order.id && one.done_ms.is_some());
        if is_done {
            return Ok(());
        }
        patiently(async || self.target.erase(order, |_| {}).await).await
    }

    /// Takes a row. True if a write is due.
    pub(super) fn row(
        &mut self,
        log: &str,
        room: RoomName,
        epoch: &Epoch,
        message: Message,
    ) -> Result<bool, Failure> {
        let stream = self.streams.of(log, epoch, message.seq)?.clone();
        self.waiting_messages += 1;
        self.waiting_bytes += message.data.len();
        self.batch(&stream).rows.push((room, message));
        Ok(self.is_due())
    }

    /// Takes a message into quarantine. True if a write is due.
    pub(super) fn quarantined(&mut self, stream: &str, one: Quarantined) -> Result<bool, Failure> {
        let stream = self.stream(stream)?;
        self.waiting_messages += 1;
        self.waiting_bytes += one.data.len();
        self.batch(&stream).refused.push(one);
        Ok(self.is_due())
    }

    /// `, 7 of them were not there before`, where that is known.
    pub(super) fn news(&self) -> String {
        match self.target {
            Archive::Sqlite(_) => format!(", {} of them were not there before", self.new_rows),
            Archive::Cassandra(_) => String::new(),
        }
    }

    /// Writes what waits. It is durable when this returns.
    pub(super) async fn write(&mut self) -> Result<(), Failure> {
        for (_, batch) in self.waiting.drain() {
            let appended = append(&self.target, &batch).await?;
            self.new_rows += appended.rows;
            if appended.conflicts.is_empty() {
                continue;
            }
            // Nothing is written over another message, and nothing is dropped.
            self.conflicts += appended.conflicts.len() as u64;
            let refused = batch.rows.iter().filter_map(|(room, message)| {
                let reason = "another message of this stream is archived at its offset";
                appended
                    .conflicts
                    .contains(&message.seq)
                    .then(|| Quarantined::of_row(&batch.log, room, message, &reason))
            });
            let kept = Batch {
                refused: refused.collect(),
                rows: Vec::new(),
                ..batch.clone()
            };
            append(&self.target, &kept).await?;
        }
        self.waiting_messages = 0;
        self.waiting_bytes = 0;
        Ok(())
    }

    /// Records what the archive holds whole from now on. Everything that was taken is written before.
    pub(super) async fn held(&mut self, stream: &str, held: Held) -> Result<(), Failure> {
        self.write().await?;
        let stream = self.stream(stream)?;
        let batch = Batch {
            held,
            ..empty(&stream)
        };
        append(&self.target, &batch).await.map(|_| ())
    }

    fn stream(&self, name: &str) -> Result<StreamRecord, Failure> {
        self.by_name.get(name).cloned().ok_or_else(|| {
            failed(format!(
                "the stream {name} is named, but not described before"
            ))
        })
    }

    fn batch(&mut self, stream: &StreamRecord) -> &mut Batch {
        let name = stream.generation.stream.clone();
        self.waiting.entry(name).or_insert_with(|| empty(stream))
    }

    const fn is_due(&self) -> bool {
        self.waiting_messages >= WRITE_MAX_MESSAGES || self.waiting_bytes >= WRITE_MAX_BYTES
    }
}

async fn append(target: &Archive, batch: &Batch) -> Result<Appended, Failure> {
    patiently(async || target.append(batch.clone()).await).await
}

fn empty(stream: &StreamRecord) -> Batch {
    Batch {
        log: stream.log.clone(),
        slot: stream.slot,
        generation: stream.generation.clone(),
        rows: Vec::new(),
        refused: Vec::new(),
        held: Held::default(),
        created: stream.known.created.clone(),
    }
}
