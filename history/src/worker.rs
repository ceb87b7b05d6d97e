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
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_nats::ambient::random;
use weir_nats::guard::{self, Finding, Guard, Known};
use weir_nats::message::{header, last};
use weir_nats::placement::{Generation, Slot};
use weir_nats::replay::{Replay, ReplayError, Scanned, StreamState};
use weir_nats::{Delivery, Orders, Placements, Seq};

use crate::archive::{Archive, Batch, PageQuery, Quarantined, headers_text};
use crate::gaps::{Gaps, Next, Proof, explained_to, proven};
use crate::held::Held;
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
/// Between looks at whether everything is followed that should be.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
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
    /// What may have been deleted from a stream.
    orders: Orders,
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
            orders: Orders::default(),
            among: None,
        }
    }

    /// The same, for streams from which these orders may have deleted messages. What a stream has not for
    /// any other reason is a hole.
    #[must_use]
    pub fn with_orders(self, orders: Orders) -> Self {
        Self { orders, ..self }
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
        // A file has one process.
        let is_shared = worker.among.is_some() && matches!(worker.archive, Archive::Cassandra(_));
        // Until the archive says which one it is, every stream is looked after, for its figures.
        let mut share: Option<Share> = None;
        let mut running: HashMap<String, (CancellationToken, JoinHandle<()>)> = HashMap::new();
        let mut look_again = tokio::time::interval(LOOK_AGAIN);
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
            running.retain(|stream, (own, task)| {
                let stays = placed.contains_key(stream);
                if !stays {
                    own.cancel();
                }
                // One that ended and is still placed begins again.
                stays && !task.is_finished()
            });
            for (stream, (slot, generation)) in placed {
                running.entry(stream).or_insert_with(|| {
                    let own = stop.child_token();
                    let follow = Arc::clone(&worker).follow(slot, generation, own.clone());
                    (own, tasks.spawn(follow))
                });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                joined = worker.join(&stop), if is_shared && share.is_none() => share = Some(joined),
                () = async {
                    match &mut share {
                        Some(share) => share.changed().await,
                        None => std::future::pending().await,
                    }
                } => {}
                _ = look_again.tick() => {}
            }
        }
    }

    /// Finds the other workers of the archive, as soon as it says which one it is.
    async fn join(&self, stop: &CancellationToken) -> Share {
        loop {
            self.archive.connected().await;
            if let (Some(client), Some(id)) = (&self.among, self.archive.id()) {
                let archive = self.archive.clone();
                let is_well = Box::new(move || archive.is_well());
                match Share::join(client.clone(), &id, is_well, stop.clone()).await {
                    Ok(share) => return share,
                    Err(error) => tracing::warn!(%error, "other workers are not heard yet"),
                }
            }
            tokio::time::sleep(RETRY_FIRST).await;
        }
    }

    /// Archives one generation until `stop`; an old one until it is drained.
    async fn follow(self: Arc<Self>, slot: Slot, generation: Generation, stop: CancellationToken) {
        let mut gate = self.guard.gate();
        let followed = self.metrics.follow(&generation.stream);
        let mut pause = RETRY_FIRST;
        let mut is_compared = false;
        let mut gaps = Gaps::default();
        loop {
            let step = async {
                // A stream that went back in time must not be archived before it was compared.
                if gate.wait_for(|open| *open).await.is_err() {
                    return Ok(Step::Ended);
                }
                if !is_compared && self.archive.is_connected() {
                    // Another worker may have had it since this process wrote into it last.
                    self.archive.take_over(&generation.stream);
                    // One that has ended may well lack what the archive knows of it.
                    if self.is_current(&slot, &generation) {
                        self.compare(&generation).await?;
                    }
                    is_compared = true;
                }
                self.step(&slot, &generation, &gate, (&followed, &mut gaps))
                    .await
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
        (followed, gaps): (&Followed, &mut Gaps),
    ) -> Result<Step, String> {
        let stream = &generation.stream;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        // Asked before the stream is: what is moved out of a generation is so after it has ended.
        let has_ended = !self.is_current(slot, generation);
        gaps.refresh(self.orders.version(), has_ended);
        let held = self.archive.held().borrow().get(stream).cloned();
        let held = held.unwrap_or_default();
        let before = match self.replay.state(stream).await {
            Ok(before) => before,
            // Somebody deleted it, and nothing more can come.
            Err(ReplayError::NoStream(_)) if has_ended => {
                return self.drained(slot, generation).await;
            }
            Err(error) => return Err(text(&error)),
        };
        let next = gaps.next(generation, &before, &held);
        let left = next.map_or(0, |next| next.left);
        if !self.archive.is_connected() {
            followed.looked(&before, left, None);
            return Err(format!(
                "the archive is not there: {}",
                self.archive.trouble()
            ));
        }
        // What is moved out of a generation that has ended is not lost.
        let lost = (!has_ended).then(|| gaps.lost(generation, &before, &held));
        followed.looked(&before, left, lost.as_ref());
        let Some(next) = next else {
            return self.drained(slot, generation).await;
        };
        let page = self.gather(slot, stream, next).await?;
        followed.read(&page);
        let batched = Batched::new(&page, next);
        // Read after the page: only what the stream still reached down to is proven.
        let after = self.replay.state(stream).await.map_err(|e| text(&e))?;
        if !*gate.borrow() || after.created != before.created {
            return Ok(Step::Nothing);
        }
        if page.is_empty() {
            // Nothing is said because a replica that lags had nothing.
            let filter = format!("log.{}.>", slot.log);
            let leader = self.replay.leader_has_after(stream, &filter, next.after);
            if leader
                .await
                .map_err(|e| text(&e))?
                .is_some_and(|seq| seq <= next.up_to)
            {
                return Ok(Step::Nothing);
            }
        }
        let seqs: Vec<Seq> = page.iter().map(|one| one.seq).collect();
        let explained_to = explained_to(&self.orders, &slot.log, stream);
        let is_explained = |last| has_ended || last <= explained_to;
        let proof = proven(next, &seqs, after.first, is_explained);
        let is_whole = seqs.last().is_some_and(|last| *last >= before.last);
        let batch = make_batch(slot, generation, page, &proof, &after);
        let start = Instant::now();
        let appended = self.archive.append(batch).await.map_err(|e| text(&e))?;
        followed.wrote(batched, &appended, start.elapsed());
        if !proof.absent.ranges().is_empty() {
            tracing::error!(%stream, sequences = ?proof.absent.ranges(), "the stream has lost messages");
            gaps.add(&proof.absent);
        }
        if !appended.conflicts.is_empty() {
            tracing::error!(%stream, offsets = ?appended.conflicts, "other messages were archived at these offsets");
            let first = appended.conflicts.iter().min().copied().unwrap_or_default();
            self.contradict(slot, stream, first).await?;
            let conflicts = appended.conflicts.iter();
            // They hold up nobody; the guard moves them into the next generation.
            gaps.add(&Held::from_ranges(
                conflicts.map(|seq| (seq.get(), seq.get())),
            ));
        }
        Ok(if is_whole {
            Step::WroteAll
        } else {
            Step::WroteSome
        })
    }

    /// Compares a stream with the newest message that the archive knows of it, whose id and place the
    /// guard may never have heard of: the archive may have answered only now.
    async fn compare(&self, generation: &Generation) -> Result<(), String> {
        let stream = &generation.stream;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let all = self.archive.known().await.map_err(|e| text(&e))?;
        let Some((_, known)) = all.into_iter().find(|(name, _)| name == stream) else {
            return Ok(());
        };
        let state = match self.replay.state(stream).await {
            Ok(state) => state,
            Err(ReplayError::NoStream(_)) => return Ok(()),
            Err(error) => return Err(text(&error)),
        };
        let at_known = if known.seq.is_zero() || state.last < known.seq {
            None
        } else {
            let found = self.replay.scan_at(stream, known.seq).await;
            found.map_err(|e| text(&e))?.map(|one| {
                last(&one.headers, header::MSG_ID)
                    .unwrap_or_default()
                    .to_owned()
            })
        };
        if guard::compare(&known, &state, at_known.as_deref()) == Finding::Sound {
            self.guard.saw(stream, &known);
        } else {
            self.guard.contradict(stream, known);
        }
        Ok(())
    }

    /// Tells the guard which message the archive has where the stream has another.
    async fn contradict(&self, slot: &Slot, stream: &str, at: Seq) -> Result<(), String> {
        let found = self.replay.scan_at(stream, at).await;
        let found = found.map_err(|error| error.to_string())?;
        let Some(Delivery { room, .. }) = found.and_then(|one| one.delivery.ok()) else {
            self.guard.suspect(stream);
            return Ok(());
        };
        let query = PageQuery {
            log: slot.log.clone(),
            room,
            after: at.just_before(),
            up_to: at,
            reverse: false,
            max_messages: 1,
            max_bytes: u32::MAX,
        };
        let rows = self.archive.page(query).await;
        let rows = rows.map_err(|error| error.to_string())?;
        match rows.messages.first() {
            Some(archived) => self.guard.contradict(
                stream,
                Known {
                    created: String::new(),
                    seq: at,
                    id: archived.id.clone(),
                    time_ms: archived.time_ms,
                },
            ),
            None => self.guard.suspect(stream),
        }
        Ok(())
    }

    /// Reads what is next, or as much of it as a batch may have.
    async fn gather(&self, slot: &Slot, stream: &str, next: Next) -> Result<Vec<Scanned>, String> {
        let filter = format!("log.{}.>", slot.log);
        let (mut page, mut bytes) = (Vec::new(), 0);
        let mut at = next.after;
        while at < next.up_to && page.len() < BATCH_MAX_MESSAGES && bytes < BATCH_MAX_BYTES {
            let read = self.replay.scan(stream, &filter, at, READ_MAX_MESSAGES);
            let read = read.await.map_err(|error| error.to_string())?;
            let Some(last) = read.last() else {
                break;
            };
            at = last.seq;
            bytes += read.iter().map(|one| one.payload.len()).sum::<usize>();
            page.extend(read.into_iter().filter(|one| one.seq <= next.up_to));
        }
        Ok(page)
    }

    /// True if the archive, asked now and not remembered, holds all that a stream still has.
    async fn holds_all_of(&self, generation: &Generation) -> Result<bool, String> {
        let stream = &generation.stream;
        let held = self.archive.held_now().await;
        let held = held.map_err(|error| error.to_string())?;
        let state = match self.replay.state(stream).await {
            Ok(state) => state,
            Err(ReplayError::NoStream(_)) => return Ok(true),
            Err(error) => return Err(error.to_string()),
        };
        let after = state.first.just_before().max(generation.from.just_before());
        let held = held.get(stream).cloned().unwrap_or_default();
        let rest = Held::from_ranges([(after.read_from(), state.last.get())]).minus(&held);
        // What is not held may be empty by now: moved, or erased.
        for (from, to) in rest.ranges() {
            let found = self
                .replay
                .leader_has_after(stream, ">", Seq::new(*from).just_before());
            let found = found.await.map_err(|error| error.to_string())?;
            if found.is_some_and(|seq| seq.get() <= *to) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// True if a generation is the one that takes new messages.
    fn is_current(&self, slot: &Slot, generation: &Generation) -> bool {
        let now = self.placements.slot(&slot.log, slot.index);
        now.is_none_or(|slot| {
            slot.generations
                .last()
                .is_some_and(|g| g.stream == generation.stream)
        })
    }

    /// Everything is archived. An old generation is then taken off the placement.
    async fn drained(&self, slot: &Slot, generation: &Generation) -> Result<Step, String> {
        if self.is_current(slot, generation) {
            return Ok(Step::Nothing);
        }
        if !self.holds_all_of(generation).await? {
            return Err(
                "an old generation has messages that are not archived, so it stays".to_owned(),
            );
        }
        match self.guard.retire(&slot.log, &generation.stream).await {
            Ok(false) => Ok(Step::Nothing),
            Ok(true) => {
                tracing::info!(stream = %generation.stream, "old generation archived and retired");
                Ok(Step::Ended)
            }
            Err(error) => Err(format!("old generation not retired yet: {error}")),
        }
    }
}

enum Step {
    /// All that there was.
    WroteAll,
    /// A part: there is more.
    WroteSome,
    Nothing,
    Ended,
}

fn make_batch(
    slot: &Slot,
    generation: &Generation,
    page: Vec<Scanned>,
    proof: &Proof,
    after: &StreamState,
) -> Batch {
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
        held: proof.held.clone(),
        created: after.created.clone(),
    }
}
