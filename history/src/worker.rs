//! Knows: how a stream gets into the archive: read on from what is held, prove, write, repeat.
//! Never: SQL, rooms' readers.
//!
//! There is no JetStream consumer: the held range *is* the cursor (docs/decisions/0005). So a killed
//! worker, an emptied or a restored archive go on from what they hold, and no acknowledgement can
//! be ahead of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_nats::ambient::random;
use weir_nats::guard::Guard;
use weir_nats::placement::{Generation, Slot};
use weir_nats::replay::{Replay, Scanned, StreamState};
use weir_nats::{Placements, Seq};

use crate::archive::{Archive, Batch, Quarantined, headers_text};
use crate::held::{Held, proven};
use crate::share::Share;
use crate::worker_metrics::{Batched, Followed, WorkerMetrics};

/// Messages that are read from a stream at a time.
const READ_MAX_MESSAGES: u32 = 1_000;
/// Messages of one batch: with a backlog, rows of one room then come together.
const BATCH_MAX_MESSAGES: usize = 16_384;
/// Bytes of their payloads, beyond the last read.
const BATCH_MAX_BYTES: usize = 8 << 20;
/// Between looks at a stream that had nothing new; a publish of this process wakes it sooner.
const IDLE_PAUSE: Duration = Duration::from_millis(250);
/// After a wake-up, so that messages of the same moment share a transaction.
const GATHER: Duration = Duration::from_millis(50);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Archives every stream of every log.
pub struct Worker {
    archive: Archive,
    replay: Replay,
    guard: Guard,
    placements: Placements,
    metrics: Arc<WorkerMetrics>,
    /// Something was published: look now.
    wake: Arc<Notify>,
    /// Over what workers of one archive hear of each other; `None`: there is no other.
    among: Option<Client>,
}

impl Worker {
    /// A worker that reads over `replay`. Notify `wake` when something was published.
    #[must_use]
    pub fn new(
        archive: Archive,
        replay: Replay,
        guard: Guard,
        placements: Placements,
        wake: Arc<Notify>,
        metrics: Arc<WorkerMetrics>,
    ) -> Self {
        Self {
            archive,
            replay,
            guard,
            placements,
            metrics,
            wake,
            among: None,
        }
    }

    /// The same, sharing the streams with the other workers of its archive.
    #[must_use]
    pub fn among_others(self, client: Client) -> Self {
        Self {
            among: Some(client),
            ..self
        }
    }

    /// Runs one task per generation of every slot that is this worker's, until `stop`.
    pub async fn run(self, tasks: TaskTracker, stop: CancellationToken) {
        let worker = Arc::new(self);
        let mut changes = worker.placements.changes();
        let Some(mut share) = worker.join(&stop).await else {
            return;
        };
        let mut running: HashMap<String, CancellationToken> = HashMap::new();
        loop {
            let mut placed = HashMap::new();
            for slot in worker.placements.slots() {
                for generation in slot.generations.iter() {
                    let is_mine = |share: &Share| share.is_mine(&generation.stream);
                    if !share.as_ref().is_none_or(is_mine) {
                        continue;
                    }
                    placed.insert(
                        generation.stream.clone(),
                        (slot.clone(), generation.clone()),
                    );
                }
            }
            running.retain(|stream, own| {
                let stays = placed.contains_key(stream);
                if !stays {
                    own.cancel();
                }
                stays
            });
            for (stream, (slot, generation)) in placed {
                running.entry(stream).or_insert_with(|| {
                    let own = stop.child_token();
                    tasks.spawn(Arc::clone(&worker).follow(slot, generation, own.clone()));
                    own
                });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = async {
                    match &mut share {
                        Some(share) => share.changed().await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    /// Finds the other workers of the archive, as soon as it says which one it is. `None`: stopped.
    async fn join(&self, stop: &CancellationToken) -> Option<Option<Share>> {
        // A file has one process.
        let (Some(client), Archive::Cassandra(_)) = (&self.among, &self.archive) else {
            return Some(None);
        };
        loop {
            if let Some(archive) = self.archive.id() {
                match Share::join(client.clone(), &archive, stop.clone()).await {
                    Ok(share) => return Some(Some(share)),
                    Err(error) => tracing::warn!(%error, "other workers are not heard yet"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(RETRY_FIRST) => {}
            }
        }
    }

    /// Archives one generation until `stop`; an old one until it is drained.
    async fn follow(self: Arc<Self>, slot: Slot, generation: Generation, stop: CancellationToken) {
        let mut gate = self.guard.gate();
        let followed = self.metrics.follow(&generation.stream);
        let mut pause = RETRY_FIRST;
        loop {
            let step = async {
                // A stream that went back in time must not be archived before it was compared.
                if gate.wait_for(|open| *open).await.is_err() {
                    return Ok(Step::Ended);
                }
                self.step(&slot, &generation, &gate, &followed).await
            };
            let step = tokio::select! {
                () = stop.cancelled() => return,
                step = step => step,
            };
            let wait = match step {
                Ok(Step::WroteAll) => {
                    pause = RETRY_FIRST;
                    GATHER
                }
                Ok(Step::WroteSome) => {
                    pause = RETRY_FIRST;
                    continue;
                }
                Ok(Step::Ended) => return,
                Ok(Step::Nothing) => {
                    pause = RETRY_FIRST;
                    let woken = tokio::time::timeout(IDLE_PAUSE, self.wake.notified())
                        .await
                        .is_ok();
                    if woken { GATHER } else { Duration::ZERO }
                }
                Err(error) => {
                    self.metrics.counts.retries.add_one();
                    tracing::warn!(stream = %generation.stream, %error, "archiving is tried again");
                    // Anywhere in the pause, so that workers that failed together do not come back together.
                    let share = f64::from(u16::from_be_bytes(random())) / f64::from(u16::MAX);
                    let wait = pause.mul_f64(share);
                    pause = (pause * 2).min(RETRY_MAX);
                    wait
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn step(
        &self,
        slot: &Slot,
        generation: &Generation,
        gate: &watch::Receiver<bool>,
        followed: &Followed,
    ) -> Result<Step, String> {
        let stream = &generation.stream;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        if !self.archive.is_connected() {
            return Err("the archive has not answered yet".to_owned());
        }
        let held_end = self
            .archive
            .held()
            .borrow()
            .get(stream)
            .map_or(Seq::ZERO, Held::end)
            .max(generation.from.just_before());
        let before = self.replay.state(stream).await.map_err(|e| text(&e))?;
        followed.looked(&before, held_end);
        if before.last <= held_end {
            return Ok(self.drained(slot, generation).await);
        }
        let page = self.gather(slot, stream, held_end, before.last).await?;
        followed.read(&page);
        let batched = Batched::new(&page, before.last);
        // Read after the page: only what the stream still reached down to is proven.
        let after = self.replay.state(stream).await.map_err(|e| text(&e))?;
        if !*gate.borrow() || after.created != before.created {
            return Ok(Step::Nothing);
        }
        let is_whole = page.last().is_none_or(|one| one.seq >= before.last);
        let batch = make_batch(slot, generation, held_end, page, &before, &after);
        let has_rows = !batch.rows.is_empty() || !batch.refused.is_empty();
        let start = Instant::now();
        let appended = self.archive.append(batch).await.map_err(|e| text(&e))?;
        followed.wrote(batched, &appended, start.elapsed());
        if !appended.conflicts.is_empty() {
            tracing::error!(%stream, offsets = ?appended.conflicts, "other messages were archived at these offsets");
            self.guard.suspect(stream);
        }
        Ok(match (has_rows, is_whole) {
            (false, _) => Step::Nothing,
            (true, true) => Step::WroteAll,
            (true, false) => Step::WroteSome,
        })
    }

    /// Reads on from `after`: to the end, or as much as a batch may have.
    async fn gather(
        &self,
        slot: &Slot,
        stream: &str,
        after: Seq,
        end: Seq,
    ) -> Result<Vec<Scanned>, String> {
        let filter = format!("log.{}.>", slot.log);
        let (mut page, mut bytes) = (Vec::new(), 0);
        let mut at = after;
        while at < end && page.len() < BATCH_MAX_MESSAGES && bytes < BATCH_MAX_BYTES {
            let read = self.replay.scan(stream, &filter, at, READ_MAX_MESSAGES);
            let read = read.await.map_err(|error| error.to_string())?;
            let Some(last) = read.last() else {
                break;
            };
            at = last.seq;
            bytes += read.iter().map(|one| one.payload.len()).sum::<usize>();
            page.extend(read);
        }
        Ok(page)
    }

    /// Everything is archived. An old generation is then taken off the placement.
    async fn drained(&self, slot: &Slot, generation: &Generation) -> Step {
        let now = self.placements.slot(&slot.log, slot.index);
        let is_current = now.is_none_or(|slot| {
            slot.generations
                .last()
                .is_some_and(|g| g.stream == generation.stream)
        });
        if is_current {
            return Step::Nothing;
        }
        match self.guard.retire(&slot.log, &generation.stream).await {
            Ok(false) => Step::Nothing,
            Ok(true) => {
                tracing::info!(stream = %generation.stream, "old generation archived and retired");
                Step::Ended
            }
            Err(error) => {
                tracing::warn!(stream = %generation.stream, %error, "old generation not retired yet");
                Step::Nothing
            }
        }
    }
}

enum Step {
    /// All that there was.
    WroteAll,
    /// A batch: there is more.
    WroteSome,
    Nothing,
    Ended,
}

fn make_batch(
    slot: &Slot,
    generation: &Generation,
    held_end: Seq,
    page: Vec<Scanned>,
    before: &StreamState,
    after: &StreamState,
) -> Batch {
    let seqs: Vec<Seq> = page.iter().map(|one| one.seq).collect();
    let mut held = proven(held_end, &seqs, after.first);
    if page.is_empty() {
        // Nothing of a room lies up to what was the end before the page was read.
        let from = held_end
            .read_from()
            .max(after.first.get().min(before.last.read_from()));
        held.add(Seq::new(from), before.last);
    }
    let (mut rows, mut refused) = (Vec::with_capacity(page.len()), Vec::new());
    for one in page {
        match one.delivery {
            Ok(delivery) => rows.push((delivery.room, delivery.message)),
            Err(error) => refused.push(Quarantined {
                seq: one.seq,
                subject: one.subject,
                headers: headers_text(&one.headers),
                data: one.payload,
                reason: error.to_string(),
            }),
        }
    }
    Batch {
        log: slot.log.clone(),
        slot: slot.index,
        generation: generation.clone(),
        rows,
        refused,
        held,
        created: after.created.clone(),
    }
}
