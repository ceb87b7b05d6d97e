//! Knows: whether a stream still is what it was, and how a slot moves to its next generation when it
//! is not. Never: rooms, clients.
//!
//! Design §4, "Epoch guard". The gate is open only while every stream was compared since the last
//! connect, so that nothing is published into a stream that went back in time.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{Context, kv};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::connect::{Link, LinkEvent, Links};
use crate::message::Delivery;
use crate::placement::{Generation, Incident, PlacementRecord, Placements, SlotRecord};
use crate::position::{Epoch, Seq};
use crate::replay::{Replay, ReplayError, StreamState};
use crate::stream::{DeclareError, LogConfig, context, declare_bucket, declare_log};

/// Between comparisons while nothing happens.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Offsets left free between generations, above anything that could have been given meanwhile.
const GENERATION_STEP: u64 = 1_000_000;
/// Messages of one page while an old generation is read.
const PAGE_MAX_MESSAGES: u32 = 200;

/// The highest message known of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// When the stream was created, as the server spells it; empty if not known.
    #[serde(default)]
    pub created: String,
    /// Its highest sequence.
    pub seq: Seq,
    /// The id of the message there; empty if not known.
    #[serde(default)]
    pub id: String,
    /// When that message was stored, in milliseconds since 1970; 0 if not known.
    #[serde(default)]
    pub time_ms: i64,
}

impl Known {
    /// Takes what is higher, and fills in what is missing.
    fn raise(&mut self, other: &Self) {
        if other.seq > self.seq {
            let created = std::mem::take(&mut self.created);
            *self = other.clone();
            if self.created.is_empty() {
                self.created = created;
            }
        } else {
            if self.created.is_empty() {
                self.created.clone_from(&other.created);
            }
            if other.seq == self.seq {
                if self.id.is_empty() {
                    self.id.clone_from(&other.id);
                }
                self.time_ms = self.time_ms.max(other.time_ms);
            }
        }
    }
}

/// What a comparison found. Pure, so that each case has a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing speaks against continuity.
    Sound,
    /// The stream has fewer messages than were acknowledged.
    Lower,
    /// It was made anew.
    Recreated,
    /// Another message lies at a known sequence.
    OtherMessage,
}

/// Compares what is known of a stream with what it says. `at_known` is the id of the message that
/// lies at the known sequence; `None` (trimmed or erased) says nothing.
#[must_use]
pub fn compare(known: &Known, state: &StreamState, at_known: Option<&str>) -> Finding {
    if state.last < known.seq {
        Finding::Lower
    } else if !known.created.is_empty() && known.created != state.created {
        Finding::Recreated
    } else if !known.id.is_empty() && at_known.is_some_and(|id| id != known.id) {
        Finding::OtherMessage
    } else {
        Finding::Sound
    }
}

/// Why the guard could not start or finish.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// JetStream refused a stream or the bucket.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// A stream could not be read.
    #[error(transparent)]
    Read(#[from] ReplayError),
    /// The bucket `weir` could not be read or written.
    #[error("the KV bucket `weir`: {0}")]
    Kv(String),
    /// Someone else changed the placement meanwhile; the next comparison takes it up.
    #[error("another process changed the placement of the log {0}")]
    Raced(String),
}

/// Watches over every stream of every log. Cheap to clone.
#[derive(Clone)]
pub struct Guard(Arc<Inner>);

struct Inner {
    js: Context,
    replay: Replay,
    bucket: kv::Store,
    logs: Vec<LogConfig>,
    placements: Placements,
    known: Mutex<HashMap<String, Known>>,
    gate: watch::Sender<bool>,
    suspicion: Notify,
}

impl Guard {
    /// Declares the bucket and the streams, compares them with `seeds` (what the archive knows, by
    /// stream), and makes new generations where continuity cannot be proven. The gate is open when
    /// this returns.
    ///
    /// # Errors
    /// When JetStream is not there or refuses something; nothing was published then.
    pub async fn start(
        links: &Links,
        logs: Vec<LogConfig>,
        placements: Placements,
        seeds: Vec<(String, Known)>,
    ) -> Result<Self, GuardError> {
        let js = context(links.live.clone());
        let replicas = logs.iter().map(|log| log.replicas).max().unwrap_or(1);
        let bucket = declare_bucket(&js, replicas).await?;
        let guard = Self(Arc::new(Inner {
            replay: Replay::new(links.live.clone()),
            js,
            bucket,
            logs,
            placements,
            known: Mutex::new(seeds.into_iter().collect()),
            gate: watch::Sender::new(false),
            suspicion: Notify::new(),
        }));
        guard.compare_all().await?;
        guard.0.gate.send_replace(true);
        Ok(guard)
    }

    /// True while publishes may be handed over.
    #[must_use]
    pub fn gate(&self) -> watch::Receiver<bool> {
        self.0.gate.subscribe()
    }

    /// Feeds what was acknowledged or read of a stream.
    pub fn saw(&self, stream: &str, known: &Known) {
        let mut all = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(stream) {
            Some(mine) => mine.raise(known),
            None => {
                all.insert(stream.to_owned(), known.clone());
            }
        }
    }

    /// The highest known of a stream.
    #[must_use]
    pub fn known(&self, stream: &str) -> Known {
        let all = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(stream).cloned().unwrap_or_default()
    }

    /// Asks for a comparison now.
    pub fn suspect(&self, stream: &str) {
        tracing::warn!(stream, "stream is suspected to have lost something");
        self.0.suspicion.notify_one();
    }

    /// Compares after every reconnect, on suspicion, and every 10 s, until `stop`.
    pub async fn run(
        self,
        mut events: broadcast::Receiver<(Link, LinkEvent)>,
        stop: CancellationToken,
    ) {
        let mut timer = tokio::time::interval(COMPARE_EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        timer.tick().await;
        loop {
            let reconnected = tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => match event {
                    Ok((Link::Live, LinkEvent::Disconnected)) => {
                        self.0.gate.send_replace(false);
                        continue;
                    }
                    Ok((Link::Live, LinkEvent::Connected)) => true,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.0.gate.send_replace(false);
                        true
                    }
                    Ok(_) => continue,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = self.0.suspicion.notified() => false,
                _ = timer.tick() => false,
            };
            loop {
                match self.compare_all().await {
                    Ok(()) => break,
                    Err(error) => tracing::warn!(%error, "streams could not be compared"),
                }
                if !reconnected && *self.0.gate.borrow() {
                    // Still connected and compared before: the next tick tries again.
                    break;
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                }
            }
            // Lost again while it compared? Then the event that waits closes the gate at once.
            self.0.gate.send_replace(true);
        }
    }

    async fn compare_all(&self) -> Result<(), GuardError> {
        for log in &self.0.logs {
            self.compare_log(log).await?;
        }
        Ok(())
    }

    /// Brings one log's record, streams and placements in line.
    async fn compare_log(&self, log: &LogConfig) -> Result<(), GuardError> {
        let (mut record, mut revision) = self.load(log).await?;
        if record.slots.len() > usize::from(log.slots) {
            return Err(GuardError::Kv(format!(
                "the log {} has {} slots, the configuration says {}",
                log.name,
                record.slots.len(),
                log.slots
            )));
        }
        record
            .slots
            .resize(usize::from(log.slots), SlotRecord::default());
        for index in 0..log.slots {
            let slot = &mut record.slots[usize::from(index)];
            if slot.generations.is_empty() {
                self.first_generation(log, index, slot).await?;
                revision = self.store(log, &record, revision).await?;
            }
            let slot = &mut record.slots[usize::from(index)];
            if slot.incident.is_none()
                && let Some(incident) = self.look(log, index, slot).await?
            {
                self.next_generation(log, index, slot, incident);
                // From here on a crash is taken up again by whoever reads the record.
                revision = self.store(log, &record, revision).await?;
            }
            if record.slots[usize::from(index)].incident.is_some() {
                let slot = &mut record.slots[usize::from(index)];
                self.finish(log, index, slot).await?;
                slot.incident = None;
                revision = self.store(log, &record, revision).await?;
            }
            self.learn(&record.slots[usize::from(index)]).await?;
        }
        let has = self.0.placements.slots();
        let differs = record.slots.iter().zip(0_u16..).any(|(slot, index)| {
            !has.iter().any(|placed| {
                placed.log == log.name
                    && placed.index == index
                    && placed.generations.as_ref() == slot.generations
            })
        });
        if differs {
            self.0.placements.set(&log.name, &record);
        }
        Ok(())
    }

    /// The slot was never placed, or its record is gone. What is known of its streams, if anything,
    /// decides above which offset it may begin.
    async fn first_generation(
        &self,
        log: &LogConfig,
        index: u16,
        slot: &mut SlotRecord,
    ) -> Result<(), GuardError> {
        let known = {
            let all = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
            let mine = all
                .iter()
                .filter_map(|(stream, known)| Some((log.generation_of(index, stream)?, known.seq)));
            mine.fold(None, |highest: Option<(u32, Seq)>, (generation, seq)| {
                let (a, b) = highest.unwrap_or_default();
                Some((a.max(generation), b.max(seq)))
            })
        };
        let first = log.stream_name(index, 0);
        let (stream, from) = match (known, self.0.replay.state(&first).await) {
            // Its record is lost but the stream may be whole: keep it, with a new epoch, unless
            // something is known that it lacks.
            (None, Ok(_)) => (first, Seq::new(1)),
            (None, Err(ReplayError::NoStream(_))) => (first, Seq::new(1)),
            (None, Err(error)) => return Err(error.into()),
            (Some((generation, highest)), _) => {
                tracing::warn!(log = %log.name, slot = index, %highest, "log was lost; new epoch");
                let from = Seq::new(highest.get() + GENERATION_STEP);
                (log.stream_name(index, generation + 1), from)
            }
        };
        declare_log(&self.0.js, log.declaration(index, &stream, from)).await?;
        slot.generations.push(Generation {
            stream,
            epoch: random_epoch(),
            from,
        });
        Ok(())
    }

    /// Compares the current generation with what is known of it. `Some` only if the suspicion
    /// stands after the stream was fenced and looked at again.
    async fn look(
        &self,
        log: &LogConfig,
        index: u16,
        slot: &SlotRecord,
    ) -> Result<Option<Incident>, GuardError> {
        let Some(current) = slot.generations.last() else {
            return Ok(None);
        };
        let mut known = self.known(&current.stream);
        if let Some(stored) = self.load_known(&current.stream).await? {
            known.raise(&stored);
        }
        if let Some(known) = self.later_generation(log, index, &current.stream) {
            tracing::error!(stream = %current.stream, "the placement record went back in time");
            self.fence(log, index, &current.stream).await?;
            return Ok(Some(Incident {
                stream: current.stream.clone(),
                known,
            }));
        }
        let finding = self.examine(&current.stream, &known).await?;
        if finding == Some(Finding::Sound) {
            // Settings changed by hand or by a new configuration are brought in line here.
            declare_log(
                &self.0.js,
                log.declaration(index, &current.stream, current.from),
            )
            .await?;
            return Ok(None);
        }
        if finding.is_none() && known.seq.is_zero() && known.created.is_empty() {
            // Placed, never made: a crash between the two.
            declare_log(
                &self.0.js,
                log.declaration(index, &current.stream, current.from),
            )
            .await?;
            return Ok(None);
        }
        tracing::error!(stream = %current.stream, ?finding, known = %known.seq, "continuity is broken");
        if finding.is_some() {
            self.fence(log, index, &current.stream).await?;
            // A leader that was deposed may have answered from an old state.
            if self.examine(&current.stream, &known).await? == Some(Finding::Sound) {
                tracing::warn!(stream = %current.stream, "false alarm; stream is opened again");
                declare_log(
                    &self.0.js,
                    log.declaration(index, &current.stream, current.from),
                )
                .await?;
                return Ok(None);
            }
            if let Ok(state) = self.0.replay.state(&current.stream).await
                && state.last > known.seq
            {
                known.seq = state.last;
            }
        }
        known.seq = known.seq.max(current.from.just_before());
        Ok(Some(Incident {
            stream: current.stream.clone(),
            known,
        }))
    }

    /// The highest known of a generation that the record does not have: the bucket lost it.
    fn later_generation(&self, log: &LogConfig, index: u16, current: &str) -> Option<Known> {
        let mine = log.generation_of(index, current)?;
        let all = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let later = all.iter().filter(|(stream, _)| {
            log.generation_of(index, stream)
                .is_some_and(|generation| generation > mine)
        });
        later
            .map(|(_, known)| known.clone())
            .max_by_key(|known| known.seq)
    }

    /// `None`: there is no such stream.
    async fn examine(&self, stream: &str, known: &Known) -> Result<Option<Finding>, GuardError> {
        let state = match self.0.replay.state(stream).await {
            Ok(state) => state,
            Err(ReplayError::NoStream(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let at_known = if known.seq.is_zero() || known.id.is_empty() || state.last < known.seq {
            None
        } else {
            self.0
                .replay
                .at(stream, known.seq)
                .await?
                .map(|found| found.message.id)
        };
        Ok(Some(compare(known, &state, at_known.as_deref())))
    }

    /// No edge gets an acknowledgement from it any more: its subjects are taken away.
    async fn fence(&self, log: &LogConfig, index: u16, stream: &str) -> Result<(), GuardError> {
        let mut parked = log.declaration(index, stream, Seq::ZERO);
        parked.subjects = vec![format!("parked.{stream}")];
        parked.republish = None;
        declare_log(&self.0.js, parked).await?;
        Ok(())
    }

    fn next_generation(
        &self,
        log: &LogConfig,
        index: u16,
        slot: &mut SlotRecord,
        incident: Incident,
    ) {
        let all = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = slot.generations.iter().map(|g| &g.stream).chain(all.keys());
        let highest = streams
            .filter_map(|stream| log.generation_of(index, stream))
            .max();
        let from = Seq::new(incident.known.seq.get() + GENERATION_STEP);
        let stream = log.stream_name(index, highest.unwrap_or(0) + 1);
        slot.generations.push(Generation {
            stream,
            epoch: random_epoch(),
            from,
        });
        slot.incident = Some(incident);
    }

    /// Makes the new stream, and publishes into it what the old one took at reused sequences. Can be
    /// done again after a crash: what the new stream has already is left out.
    async fn finish(
        &self,
        log: &LogConfig,
        index: u16,
        slot: &mut SlotRecord,
    ) -> Result<(), GuardError> {
        let (Some(incident), Some(current)) = (&slot.incident, slot.generations.last()) else {
            return Ok(());
        };
        if self.0.replay.state(&incident.stream).await.is_ok() {
            self.fence(log, index, &incident.stream).await?;
        }
        declare_log(
            &self.0.js,
            log.declaration(index, &current.stream, current.from),
        )
        .await?;
        let filter = format!("log.{}.>", log.name);
        let mut has = HashSet::new();
        self.each(&current.stream, &filter, Seq::ZERO, |delivery| {
            has.insert(delivery.message.id);
        })
        .await?;
        let mut late = Vec::new();
        let known = &incident.known;
        if known.time_ms > 0 {
            self.each(&incident.stream, &filter, Seq::ZERO, |delivery| {
                // Stored after the newest that was known, at a sequence that was given before.
                if delivery.message.time_ms > known.time_ms {
                    late.push(delivery);
                }
            })
            .await?;
        }
        let count = late.len();
        for delivery in late {
            if has.contains(&delivery.message.id) {
                self.delete(&incident.stream, delivery.message.seq).await?;
                continue;
            }
            let mut headers = crate::message::stamp(
                &delivery.room,
                delivery.message.author.as_ref().unwrap_or(&NOBODY),
                &delivery.message.tags,
                &delivery.message.id,
            );
            headers.insert("Weir-Moved-From", incident.stream.as_str());
            let published = self
                .0
                .js
                .publish_with_headers(
                    delivery.stored_subject.clone(),
                    headers,
                    delivery.message.data.clone(),
                )
                .await
                .map_err(|error| GuardError::Kv(error.to_string()))?;
            published
                .await
                .map_err(|error| GuardError::Kv(error.to_string()))?;
        }
        tracing::warn!(old = %incident.stream, new = %current.stream, epoch = %current.epoch,
            republished = count, "log moved to its next generation");
        Ok(())
    }

    async fn delete(&self, stream: &str, seq: Seq) -> Result<(), GuardError> {
        let subject = format!("STREAM.MSG.DELETE.{stream}");
        let query = serde_json::json!({ "seq": seq.get(), "no_erase": true });
        let deleted: Result<serde_json::Value, _> = self.0.js.request(subject, &query).await;
        deleted
            .map(|_| ())
            .map_err(|error| GuardError::Kv(error.to_string()))
    }

    async fn each(
        &self,
        stream: &str,
        filter: &str,
        mut after: Seq,
        mut take: impl FnMut(Delivery),
    ) -> Result<(), GuardError> {
        loop {
            let page = match self
                .0
                .replay
                .all_after(stream, filter, after, PAGE_MAX_MESSAGES)
                .await
            {
                Ok(page) => page,
                Err(ReplayError::NoStream(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let Some(newest) = page.last() else {
                return Ok(());
            };
            after = newest.message.seq;
            page.into_iter().for_each(&mut take);
        }
    }

    /// Takes down what the current generation is now, for the next comparison.
    async fn learn(&self, slot: &SlotRecord) -> Result<(), GuardError> {
        let Some(current) = slot.generations.last() else {
            return Ok(());
        };
        let stream = &current.stream;
        let state = self.0.replay.state(stream).await?;
        let mut known = Known {
            created: state.created,
            seq: state.last,
            ..Known::default()
        };
        if let Some(last) = self.0.replay.at(stream, state.last).await? {
            known.id = last.message.id;
            known.time_ms = last.message.time_ms;
        }
        self.saw(stream, &known);
        let json = serde_json::to_vec(&known).map_err(|error| GuardError::Kv(error.to_string()))?;
        self.0
            .bucket
            .put(format!("guard.{stream}"), Bytes::from(json))
            .await
            .map_err(|error| GuardError::Kv(error.to_string()))?;
        Ok(())
    }

    async fn load_known(&self, stream: &str) -> Result<Option<Known>, GuardError> {
        let value = self.0.bucket.get(format!("guard.{stream}")).await;
        let value = value.map_err(|error| GuardError::Kv(error.to_string()))?;
        Ok(value.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// An old generation is wholly archived: takes it off the record and deletes its stream.
    ///
    /// # Errors
    /// When it is the current one, or the bucket or JetStream refuses.
    pub async fn retire(&self, log_name: &str, stream: &str) -> Result<(), GuardError> {
        let Some(log) = self.0.logs.iter().find(|log| log.name == log_name) else {
            return Ok(());
        };
        let (mut record, revision) = self.load(log).await?;
        for slot in &mut record.slots {
            let current = slot.generations.last().map(|g| g.stream.clone());
            if current.as_deref() != Some(stream) && slot.incident.is_none() {
                slot.generations
                    .retain(|generation| generation.stream != stream);
            }
        }
        self.store(log, &record, revision).await?;
        self.0.placements.set(&log.name, &record);
        if let Err(error) = self.0.js.delete_stream(stream).await {
            tracing::warn!(stream, %error, "old generation not deleted; delete it by hand");
        }
        Ok(())
    }

    async fn load(&self, log: &LogConfig) -> Result<(PlacementRecord, u64), GuardError> {
        let kv = |error: &dyn std::fmt::Display| GuardError::Kv(error.to_string());
        let entry = match self.0.bucket.entry(format!("placement.{}", log.name)).await {
            Ok(entry) => entry,
            Err(error) => {
                // The bucket may have gone with the rest of the store.
                declare_bucket(&self.0.js, log.replicas).await?;
                return Err(kv(&error));
            }
        };
        match entry {
            Some(entry) if entry.operation == kv::Operation::Put => {
                let record = serde_json::from_slice(&entry.value).map_err(|error| kv(&error))?;
                Ok((record, entry.revision))
            }
            Some(entry) => Ok((PlacementRecord::default(), entry.revision)),
            None => Ok((PlacementRecord::default(), 0)),
        }
    }

    /// Compare-and-set, so that two processes cannot both make a generation.
    async fn store(
        &self,
        log: &LogConfig,
        record: &PlacementRecord,
        revision: u64,
    ) -> Result<u64, GuardError> {
        let json = serde_json::to_vec(record).map_err(|error| GuardError::Kv(error.to_string()))?;
        let key = format!("placement.{}", log.name);
        self.0
            .bucket
            .update(key, Bytes::from(json), revision)
            .await
            .map_err(|_| GuardError::Raced(log.name.clone()))
    }

    /// The secret under which callers' idempotency keys become ids; made once, by whoever is first.
    ///
    /// # Errors
    /// When the bucket cannot be read or written.
    pub async fn idempotency_secret(&self) -> Result<[u8; 32], GuardError> {
        const KEY: &str = "keys.idempotency";
        let kv = |error: &dyn std::fmt::Display| GuardError::Kv(error.to_string());
        for _ in 0..3 {
            let stored = self.0.bucket.get(KEY).await.map_err(|error| kv(&error))?;
            if let Some(secret) = stored.and_then(|bytes| bytes.as_ref().try_into().ok()) {
                return Ok(secret);
            }
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).expect("the system's random source works");
            if self
                .0
                .bucket
                .create(KEY, Bytes::copy_from_slice(&secret))
                .await
                .is_ok()
            {
                return Ok(secret);
            }
        }
        Err(GuardError::Kv(
            "the key `keys.idempotency` is not 32 bytes".to_owned(),
        ))
    }
}

const NOBODY: crate::message::Author = crate::message::Author {
    user: String::new(),
    client: String::new(),
    info: None,
    door: crate::message::Door::Socket,
};

fn random_epoch() -> Epoch {
    let mut bytes = [0; 10];
    getrandom::fill(&mut bytes).expect("the system's random source works");
    Epoch::random(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(known: (&str, u64, &str), state: (&str, u64), at_known: Option<&str>) -> Finding {
        let known = Known {
            created: known.0.into(),
            seq: Seq::new(known.1),
            id: known.2.into(),
            time_ms: 0,
        };
        let state = StreamState {
            first: Seq::new(1),
            last: Seq::new(state.1),
            messages: 0,
            created: state.0.into(),
        };
        compare(&known, &state, at_known)
    }

    #[test]
    fn what_breaks_continuity() {
        assert_eq!(check(("t", 5, "a"), ("t", 5), Some("a")), Finding::Sound);
        assert_eq!(check(("t", 5, "a"), ("t", 9), None), Finding::Sound);
        assert_eq!(check(("", 0, ""), ("t", 9), None), Finding::Sound);
        assert_eq!(check(("t", 5, "a"), ("t", 4), None), Finding::Lower);
        assert_eq!(
            check(("t", 5, "a"), ("u", 9), Some("a")),
            Finding::Recreated
        );
        assert_eq!(
            check(("t", 5, "a"), ("t", 9), Some("b")),
            Finding::OtherMessage
        );
    }

    #[test]
    fn knowledge_only_grows() {
        let known = |seq, id: &str, created: &str| Known {
            created: created.into(),
            seq: Seq::new(seq),
            id: id.into(),
            time_ms: 0,
        };
        let mut mine = known(5, "a", "t");
        mine.raise(&known(3, "x", ""));
        assert_eq!(mine, known(5, "a", "t"));
        mine.raise(&known(7, "b", ""));
        assert_eq!(mine, known(7, "b", "t"));
    }
}
