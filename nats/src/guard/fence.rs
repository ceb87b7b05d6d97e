//! Knows: how a slot gets its first generation, and its next when the current one lost something.
//! Never: when to look.
//!
//! Every step can be done again: a crash between two is taken up by whoever compares next, from the
//! record in the bucket.

use std::collections::HashSet;
use std::sync::PoisonError;

use async_nats::HeaderMap;
use async_nats::jetstream::context::GetStreamErrorKind;
use futures_util::TryStreamExt as _;

use super::known::{Finding, Known, compare};
use super::{GuardError, Inner};
use crate::ambient::random;
use crate::barrier::{Barrier, EXPECTED_STREAM, barrier};
use crate::message::{header, last};
use crate::placement::{ENDED_MAX, Ended, Generation, Incident, SlotRecord};
use crate::position::{Epoch, Seq};
use crate::replay::{ReplayError, Scanned, StreamState};
use crate::stream::{DeclareError, LogConfig, declare_log};

/// Offsets left free between generations, above anything that could have been given meanwhile.
const GENERATION_STEP: u64 = 1_000_000;
/// Messages of one page while an old generation is read.
const PAGE_MAX_MESSAGES: u32 = 200;
/// Halvings until a time is found in a stream.
const PROBES_MAX: usize = 64;
const NOT_FOUND: u64 = 10_059;

impl Inner {
    /// Brings one log's record, streams and placements in line.
    pub(super) async fn compare_log(&self, log: &LogConfig) -> Result<(), GuardError> {
        let (mut record, mut revision) = self.record.placement(log).await?;
        if record.slots.len() > usize::from(log.slots) {
            return Err(GuardError::Kv(format!(
                "the log {} has {} slots, the configuration says {}",
                log.name,
                record.slots.len(),
                log.slots
            )));
        }
        let unplaced = SlotRecord::default();
        record.slots.resize(usize::from(log.slots), unplaced);
        for index in 0..log.slots {
            let nth = usize::from(index);
            if record.slots[nth].incident.is_none() {
                let next = if record.slots[nth].generations.is_empty() {
                    Some(self.place(log, index).await?)
                } else {
                    self.look(log, index, &record.slots[nth]).await?
                };
                if let Some(next) = next {
                    record.slots[nth] = next;
                    // From here on a crash is taken up again by whoever reads the record.
                    revision = self.record.set_placement(log, &record, revision).await?;
                }
            }
            self.finish(log, index, &record.slots[nth]).await?;
            if record.slots[nth].incident.take().is_some() {
                revision = self.record.set_placement(log, &record, revision).await?;
            }
            self.learn(&record.slots[nth]).await?;
        }
        let placed = self.placements.slots();
        let differs = record.slots.iter().zip(0_u16..).any(|(slot, index)| {
            !placed.iter().any(|placed| {
                placed.log == log.name
                    && placed.index == index
                    && placed.generations.as_ref() == slot.generations
            })
        });
        if differs {
            self.placements.set(&log.name, &record);
        }
        Ok(())
    }

    /// The slot was never placed, or its record is gone. With nothing known and no stream there it
    /// begins; else what was before can be read but not continued.
    async fn place(&self, log: &LogConfig, index: u16) -> Result<SlotRecord, GuardError> {
        let mut known = self
            .known
            .of_slot(|stream| log.generation_of(index, stream));
        known.sort_by_key(|(generation, _)| *generation);
        let existing = self.existing(log, index).await?;
        let mut slot = SlotRecord::default();
        for stream in &existing {
            let state = self.replay.state(stream).await?;
            slot.generations.push(Generation {
                stream: stream.clone(),
                epoch: random_epoch(),
                from: state.first.min(Seq::new(state.last.read_from())),
            });
        }
        let first = log.stream_name(index, 0);
        if known.is_empty() {
            let fresh = match slot.generations.as_slice() {
                [] => true,
                // Made, and not written down before a crash.
                [only] if only.stream == first => self.replay.state(&first).await?.last.is_zero(),
                _ => false,
            };
            if fresh {
                slot.generations = vec![Generation {
                    stream: first,
                    epoch: random_epoch(),
                    from: Seq::new(1),
                }];
                return Ok(slot);
            }
        }
        tracing::error!(log = %log.name, slot = index, "the placement record is lost; new epoch");
        let incident = match (existing.last(), known.last()) {
            (Some(stream), _) => self.as_it_is(stream).await?,
            (None, Some((generation, known))) => Incident {
                stream: log.stream_name(index, *generation),
                known: known.clone(),
            },
            (None, None) => Incident {
                stream: first,
                known: Known::default(),
            },
        };
        self.next(log, index, slot, incident).await
    }

    /// Compares the current generation with what is known of it. `Some` only if the suspicion
    /// stands after the stream was fenced and looked at again.
    async fn look(
        &self,
        log: &LogConfig,
        index: u16,
        slot: &SlotRecord,
    ) -> Result<Option<SlotRecord>, GuardError> {
        let Some(current) = slot.generations.last() else {
            return Ok(None);
        };
        let stream = &current.stream;
        if let Some((stored, _)) = self.record.known(stream).await? {
            self.known.raise(stream, &stored);
        }
        let mine = log.generation_of(index, stream);
        let of_slot = self
            .known
            .of_slot(|stream| log.generation_of(index, stream));
        if of_slot
            .iter()
            .any(|(generation, _)| Some(*generation) > mine)
        {
            tracing::error!(stream, "the placement record went back in time");
            self.fence(stream).await?;
            let incident = match self.as_it_is(stream).await {
                Ok(incident) => incident,
                Err(GuardError::Read(ReplayError::NoStream(_))) => Incident {
                    stream: stream.clone(),
                    known: self.known.of(stream),
                },
                Err(error) => return Err(error),
            };
            return Ok(Some(self.next(log, index, slot.clone(), incident).await?));
        }
        let claim = {
            let claims = self.claims.lock();
            claims
                .unwrap_or_else(PoisonError::into_inner)
                .remove(stream)
        };
        let mut known = self.known.of(stream);
        let mut finding = self.examine(stream, &known).await?;
        let mut is_claim = false;
        if finding == Some(Finding::Sound)
            && let Some(claim) = claim
        {
            match self.examine(stream, &claim).await {
                Ok(Some(Finding::Sound)) => {}
                Ok(found) => (finding, known, is_claim) = (found, claim, true),
                Err(error) => {
                    let claims = self.claims.lock();
                    let mut claims = claims.unwrap_or_else(PoisonError::into_inner);
                    claims.entry(stream.clone()).or_insert(claim);
                    return Err(error);
                }
            }
        }
        let was_never_made = finding.is_none() && known == Known::default();
        if finding == Some(Finding::Sound) || was_never_made {
            return Ok(None);
        }
        tracing::error!(stream, ?finding, known = %known.seq, "continuity is broken");
        if self.fence(stream).await? {
            // A leader that was deposed may have answered from an old state.
            let newest = if is_claim {
                known.clone()
            } else {
                self.known.of(stream)
            };
            if self.examine(stream, &newest).await? == Some(Finding::Sound) {
                tracing::warn!(stream, "false alarm; the stream takes messages again");
                return Ok(None);
            }
        }
        let incident = Incident {
            stream: stream.clone(),
            known,
        };
        Ok(Some(self.next(log, index, slot.clone(), incident).await?))
    }

    /// `None`: there is no such stream.
    async fn examine(&self, stream: &str, known: &Known) -> Result<Option<Finding>, GuardError> {
        let state = match self.replay.state(stream).await {
            Ok(state) => state,
            Err(ReplayError::NoStream(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let at_known = if known.seq.is_zero() || known.id.is_empty() || state.last < known.seq {
            None
        } else {
            let found = self.replay.scan_at(stream, known.seq).await?;
            found.map(|scanned| id_of(&scanned).to_owned())
        };
        Ok(Some(compare(known, &state, at_known.as_deref())))
    }

    /// The slot's streams that are there, by generation.
    async fn existing(&self, log: &LogConfig, index: u16) -> Result<Vec<String>, GuardError> {
        let names: Result<Vec<String>, _> = self.js.stream_names().try_collect().await;
        let names = names.map_err(|error| GuardError::Kv(error.to_string()))?;
        let mut mine: Vec<(u32, String)> = names
            .into_iter()
            .filter_map(|name| Some((log.generation_of(index, &name)?, name)))
            .collect();
        mine.sort_unstable();
        Ok(mine.into_iter().map(|(_, name)| name).collect())
    }

    /// An incident after which nothing that a stream holds is moved.
    async fn as_it_is(&self, stream: &str) -> Result<Incident, GuardError> {
        let state = self.replay.state(stream).await?;
        let known = self.newest(stream, &state).await?;
        Ok(Incident {
            stream: stream.to_owned(),
            known,
        })
    }

    async fn newest(&self, stream: &str, state: &StreamState) -> Result<Known, GuardError> {
        let newest = self.replay.scan_at(stream, state.last).await?;
        Ok(Known {
            created: state.created.clone(),
            seq: state.last,
            id: newest.as_ref().map(id_of).unwrap_or_default().to_owned(),
            time_ms: newest.as_ref().map(time_of).unwrap_or_default(),
        })
    }

    /// No edge gets an acknowledgement from it any more: its subjects are taken away. False if
    /// there is no such stream.
    async fn fence(&self, stream: &str) -> Result<bool, GuardError> {
        let refused = |reason: &dyn std::fmt::Display| DeclareError {
            what: format!("the fence of {stream}"),
            reason: reason.to_string(),
        };
        let found = match self.js.get_stream(stream).await {
            Ok(found) => found,
            Err(error) => {
                return match error.kind() {
                    GetStreamErrorKind::JetStream(error) if error.error_code().0 == NOT_FOUND => {
                        Ok(false)
                    }
                    _ => Err(refused(&error).into()),
                };
            }
        };
        let parked = parked(stream);
        let mut config = found.cached_info().config.clone();
        if config.subjects != [parked.as_str()] {
            config.subjects = vec![parked.clone()];
            config.republish = None;
            let updated = self.js.update_stream(config).await;
            updated.map_err(|error| refused(&error))?;
            tracing::warn!(stream, "stream is fenced");
        }
        // What it took in before the fence is stored before this is answered. Without the right to
        // publish there the answer stays out; the fence stands all the same.
        if barrier(&self.links.live, &parked).await != Barrier::Passed {
            tracing::warn!(stream, "fenced stream does not answer on {parked}");
        }
        Ok(true)
    }

    /// Adds the next generation to a slot: a name that nobody knows, above every offset.
    async fn next(
        &self,
        log: &LogConfig,
        index: u16,
        mut slot: SlotRecord,
        incident: Incident,
    ) -> Result<SlotRecord, GuardError> {
        let number = |stream: &str| log.generation_of(index, stream);
        let known = self.known.of_slot(number);
        let mut names: Vec<u32> = known.iter().map(|(generation, _)| *generation).collect();
        let mut highest = incident.known.seq;
        highest = known
            .iter()
            .fold(highest, |seq, (_, known)| seq.max(known.seq));
        let existing = self.existing(log, index).await?;
        for stream in &existing {
            highest = highest.max(self.replay.state(stream).await?.last);
        }
        for generation in &slot.generations {
            highest = highest.max(generation.from);
        }
        let listed = slot.generations.iter().map(|g| &g.stream);
        let all = existing.iter().chain(listed).chain([&incident.stream]);
        names.extend(all.filter_map(|stream| number(stream)));
        let free = names.into_iter().max().map_or(0, |newest| newest + 1);
        if let Some(over) = slot.generations.last() {
            slot.ended.push(Ended {
                generation: over.clone(),
                // What it gave beyond this was given before: it is moved.
                to: incident.known.seq,
            });
            let too_many = slot.ended.len().saturating_sub(ENDED_MAX);
            slot.ended.drain(..too_many);
        }
        slot.generations.push(Generation {
            stream: log.stream_name(index, free),
            epoch: random_epoch(),
            from: Seq::new(highest.get() + GENERATION_STEP),
        });
        slot.incident = Some(incident);
        Ok(slot)
    }

    /// Makes the current stream if it is not there, with the configured settings. After an incident
    /// the others are fenced first, and what the old one took at reused offsets is moved.
    async fn finish(
        &self,
        log: &LogConfig,
        index: u16,
        slot: &SlotRecord,
    ) -> Result<(), GuardError> {
        let Some(current) = slot.generations.last() else {
            return Ok(());
        };
        if slot.incident.is_some() {
            for stream in self.existing(log, index).await? {
                if stream != current.stream {
                    self.fence(&stream).await?;
                }
            }
        }
        let declaration = log.declaration(index, &current.stream, current.from);
        declare_log(&self.js, declaration).await?;
        let Some(incident) = &slot.incident else {
            return Ok(());
        };
        let moved = match self.replay.state(&incident.stream).await {
            Ok(state) => self.move_reused(log, incident, &state, current).await?,
            Err(ReplayError::NoStream(_)) => 0,
            Err(error) => return Err(error.into()),
        };
        tracing::warn!(old = %incident.stream, new = %current.stream, epoch = %current.epoch,
            from = %current.from, moved, "log moved to its next generation");
        Ok(())
    }

    /// Publishes into the new stream, with the same ids, what the old one stored after it lost
    /// something, and then takes it out of the old one, where it would lie at offsets that were
    /// given before. No edge publishes into the new stream yet, as none knows its name.
    async fn move_reused(
        &self,
        log: &LogConfig,
        incident: &Incident,
        state: &StreamState,
        current: &Generation,
    ) -> Result<usize, GuardError> {
        let (old, known) = (&incident.stream, &incident.known);
        let filter = format!("log.{}.>", log.name);
        let is_another = !known.created.is_empty() && known.created != state.created;
        let is_reused = |scanned: &Scanned| {
            let is_later = known.time_ms > 0 && time_of(scanned) > known.time_ms;
            is_another || is_later || scanned.seq > known.seq
        };
        let mut after = if is_another {
            Seq::ZERO
        } else {
            let later = self.before_time(old, &filter, state, known.time_ms);
            later.await?.min(known.seq)
        };
        let failed = |error: &dyn std::fmt::Display| GuardError::Move {
            stream: old.clone(),
            reason: error.to_string(),
        };
        let has = self.ids(&current.stream, &filter).await?;
        let handle = self.js.get_stream_no_info(old).await;
        let handle = handle.map_err(|error| failed(&error))?;
        let mut moved = 0;
        loop {
            let page = self
                .replay
                .scan(old, &filter, after, PAGE_MAX_MESSAGES)
                .await?;
            let Some(newest) = page.last() else {
                return Ok(moved);
            };
            after = newest.seq;
            for scanned in page.iter().filter(|scanned| is_reused(scanned)) {
                let id = id_of(scanned);
                // A stream that was restored from a copy may have again what was erased.
                let is_erased = scanned.delivery.as_ref().is_ok_and(|delivery| {
                    let (room, message) = (&delivery.room, &delivery.message);
                    self.orders.is_erased(&log.name, room, message)
                });
                if !is_erased && (id.is_empty() || !has.contains(id)) {
                    let headers = moved_headers(&scanned.headers, &current.stream);
                    let subject = scanned.subject.clone();
                    let payload = scanned.payload.clone();
                    let sent = self
                        .js
                        .publish_with_headers(subject, headers, payload)
                        .await;
                    let acked = sent.map_err(|error| failed(&error))?.await;
                    acked.map_err(|error| failed(&error))?;
                    moved += 1;
                }
            }
            for scanned in page.iter().filter(|scanned| is_reused(scanned)) {
                let deleted = handle.delete_message(scanned.seq.get()).await;
                deleted.map_err(|error| failed(&error))?;
            }
        }
    }

    /// A sequence at or before which everything was stored at or before a time, by halving.
    async fn before_time(
        &self,
        stream: &str,
        filter: &str,
        state: &StreamState,
        time_ms: i64,
    ) -> Result<Seq, GuardError> {
        if time_ms == 0 {
            return Ok(Seq::MAX);
        }
        let (mut low, mut high) = (state.first.just_before().get(), state.last.get());
        for _ in 0..PROBES_MAX {
            if low >= high {
                break;
            }
            let middle = low + (high - low) / 2;
            let next = self
                .replay
                .scan(stream, filter, Seq::new(middle), 1)
                .await?;
            match next.first() {
                Some(next) if time_of(next) <= time_ms => low = next.seq.get(),
                _ => high = middle,
            }
        }
        Ok(Seq::new(low))
    }

    async fn ids(&self, stream: &str, filter: &str) -> Result<HashSet<String>, GuardError> {
        let (mut ids, mut after) = (HashSet::new(), Seq::ZERO);
        loop {
            let page = self.replay.scan(stream, filter, after, PAGE_MAX_MESSAGES);
            let page = page.await?;
            let Some(newest) = page.last() else {
                return Ok(ids);
            };
            after = newest.seq;
            ids.extend(page.iter().map(|scanned| id_of(scanned).to_owned()));
        }
    }

    /// Takes down what the current generation is now, for the next comparison.
    async fn learn(&self, slot: &SlotRecord) -> Result<(), GuardError> {
        let Some(current) = slot.generations.last() else {
            return Ok(());
        };
        let state = self.replay.state(&current.stream).await?;
        let known = self.newest(&current.stream, &state).await?;
        self.known.raise(&current.stream, &known);
        self.record.set_known(&current.stream, &known).await
    }
}

fn parked(stream: &str) -> String {
    format!("parked.{stream}")
}

fn id_of(scanned: &Scanned) -> &str {
    last(&scanned.headers, header::MSG_ID).unwrap_or_default()
}

fn time_of(scanned: &Scanned) -> i64 {
    last(&scanned.headers, header::TIME)
        .and_then(crate::message::parse_time_ms)
        .unwrap_or_default()
}

/// A stored message's headers without those of the server, for the stream that takes it next.
fn moved_headers(stored: &HeaderMap, to: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in stored.iter() {
        let text: &str = name.as_ref();
        if let Some(value) = values.last()
            && (text == header::MSG_ID || !text.starts_with("Nats-"))
        {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers.insert(EXPECTED_STREAM, to);
    headers
}

fn random_epoch() -> Epoch {
    Epoch::random(random())
}
