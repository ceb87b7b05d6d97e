//! Knows: how one slot's messages are sent in order, each until its fate is known. Never: who waits
//! for the answers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::queue::{SlotQueue, Ticket, not_sent};
use super::wire::{Sent, batch, single};
use super::{Inner, Outcome, Refusal};
use crate::ambient::now_ms;
use crate::barrier::{Barrier, barrier};
use crate::guard::Known;
use crate::message::Delivery;
use crate::placement::Generation;
use crate::position::{Position, Seq};
use crate::replay::ReplayError;

const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Between two words to the guard about a stream that takes nothing.
const SUSPECT_EVERY: Duration = Duration::from_millis(500);
/// For the server to read what a lost connection had delivered, before a message counts as absent.
const OLD_CONNECTION_GRACE: Duration = Duration::from_millis(250);
/// Messages of one page while an id is looked for.
const SCAN_PAGE_MESSAGES: u32 = 200;
/// Pages looked through for an id; beyond it the outcome stays unknown.
const SCAN_MAX_PAGES: usize = 5_000;
/// Newest messages of a room in the previous generation among which a caller's key is looked for.
const KEY_SCAN_MAX_MESSAGES: u32 = 200;

/// The one who sends for a slot.
pub(super) struct Sender {
    inner: Arc<Inner>,
    log: String,
    index: u16,
    queue: Arc<SlotQueue>,
    duplicate_window: Duration,
    suspected_at: Option<Instant>,
}

/// A send, as far as it matters for finding out what became of it.
struct Attempt {
    generation: Generation,
    /// The highest sequence that was known of the stream: what is new gets one above.
    before: Seq,
    /// Names the connection.
    connection: u64,
    at: Instant,
}

/// What looking for ids found.
struct Search {
    found: HashMap<String, (Generation, Seq)>,
    /// What was not found is nowhere: the stream answered for everything since the send.
    is_whole: bool,
}

/// Nothing could be found out now.
struct Again;

/// True if an acknowledgement can be what it says: `count` new messages end at `seq`, above all that
/// was known before they were sent. Else the stream went back in time and gives offsets again.
fn is_above(seq: Seq, count: usize, before: Seq) -> bool {
    seq.get()
        .checked_sub(count as u64)
        .is_some_and(|preceding| preceding >= before.get())
}

impl Sender {
    pub(super) fn new(
        inner: Arc<Inner>,
        log: String,
        index: u16,
        queue: Arc<SlotQueue>,
        duplicate_window: Duration,
    ) -> Self {
        Self {
            inner,
            log,
            index,
            queue,
            duplicate_window,
            suspected_at: None,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let round = self.queue.next_round().await;
            self.settle(round).await;
            self.queue.landed();
        }
    }

    /// Sends a round, in order, until the fate of each of its messages is known.
    async fn settle(&mut self, mut todo: VecDeque<Arc<Ticket>>) {
        let mut one_by_one = false;
        loop {
            // What was answered is stored, or refused, or unknown for good: never sent again.
            todo.retain(|ticket| !ticket.is_answered());
            let Some(first) = todo.front() else { return };
            let generation = self.open_generation().await;
            if first.keyed && self.was_stored_before_a_fence(first).await {
                continue;
            }
            let attempt = Attempt {
                before: self.inner.guard.highest(&generation.stream),
                connection: self.inner.links.live_lost(),
                at: Instant::now(),
                generation,
            };
            let count = if one_by_one { 1 } else { todo.len() };
            let mut group: Vec<Arc<Ticket>> = todo.iter().take(count).map(Arc::clone).collect();
            group.retain(|ticket| ticket.claim());
            let stream = attempt.generation.stream.as_str();
            let sent = match group.as_slice() {
                [] => continue,
                [ticket] => single(&self.inner.links, ticket, stream).await,
                many => batch(&self.inner.links, many.iter().map(Arc::as_ref), stream).await,
            };
            match sent {
                Sent::Acked {
                    seq,
                    duplicate: true,
                } => {
                    self.check_duplicate(&group, &attempt, seq).await;
                }
                Sent::Acked { seq, .. } if is_above(seq, group.len(), attempt.before) => {
                    self.stored_all(&group, &attempt.generation, seq);
                }
                Sent::Acked { seq, .. } => {
                    tracing::error!(stream, %seq, before = %attempt.before, "offset given again");
                    self.inner.guard.suspect(stream);
                    self.resolve(&group, &attempt).await;
                }
                Sent::NoStream => {
                    group.iter().for_each(|ticket| ticket.unclaim());
                    self.suspect(&attempt.generation.stream);
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Sent::Refused(why) => {
                    group.iter().for_each(|ticket| ticket.unclaim());
                    // One bad message, such as a duplicate id, refuses a whole batch.
                    one_by_one = true;
                    if let [ticket] = group.as_slice() {
                        tracing::warn!(stream = %attempt.generation.stream, why, "publish refused");
                        ticket.answer(not_sent(&why));
                    }
                }
                Sent::Unknown => {
                    tracing::warn!(stream, count = group.len(), "publish outcome unknown");
                    self.resolve(&group, &attempt).await;
                }
            }
        }
    }

    /// Waits until something may be handed over, and gives the generation that takes it.
    async fn open_generation(&self) -> Generation {
        let mut gate = self.inner.guard.gate();
        loop {
            if self.inner.guard.is_open()
                && let Some(slot) = self.inner.placements.slot(&self.log, self.index)
                && let Some(current) = slot.generations.last()
            {
                return current.clone();
            }
            // The gate's flag may lag behind a lost connection, so it is not enough to wait for it.
            let changed = tokio::time::timeout(RETRY_PAUSE, gate.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Tells the guard of a stream that takes nothing, but not with every retry.
    fn suspect(&mut self, stream: &str) {
        let now = Instant::now();
        let is_new = self
            .suspected_at
            .is_none_or(|at| now.duration_since(at) >= SUSPECT_EVERY);
        if is_new {
            self.suspected_at = Some(now);
            self.inner.guard.suspect(stream);
        }
    }

    /// Finds out what became of a send, however long it takes. A message that is surely not stored
    /// may be sent again while its caller still waits; every other is answered.
    async fn resolve(&mut self, group: &[Arc<Ticket>], attempt: &Attempt) {
        let mut waited_for_old = false;
        let search = loop {
            self.open_generation().await;
            if !waited_for_old && self.inner.links.live_lost() != attempt.connection {
                waited_for_old = true;
                tokio::time::sleep(OLD_CONNECTION_GRACE).await;
                continue;
            }
            match self.search(group, attempt).await {
                Ok(search) => break search,
                Err(Again) => tokio::time::sleep(RETRY_PAUSE).await,
            }
        };
        let may_resend = search.is_whole && attempt.at.elapsed() < self.duplicate_window / 2;
        for ticket in group {
            // Its author's other readers may have missed the live copy, if there was one.
            self.resync(ticket);
            if let Some((generation, seq)) = search.found.get(&ticket.id) {
                self.stored(ticket, generation, *seq, false);
            } else if may_resend {
                ticket.unclaim();
            } else if let Some(seq) = self.archived(ticket, attempt.before).await {
                self.stored(ticket, &attempt.generation, seq, false);
            } else {
                ticket.answer(Outcome::Unknown);
            }
        }
    }

    /// Looks for the ids where they can be: in the stream after what was known before the send, and
    /// in later generations, into which the guard moves what it found at reused offsets.
    async fn search(&mut self, group: &[Arc<Ticket>], attempt: &Attempt) -> Result<Search, Again> {
        let sent_to = &attempt.generation;
        let slot = self.inner.placements.slot(&self.log, self.index);
        let slot = slot.ok_or(Again)?;
        let is_current = slot.generations.last() == Some(sent_to);
        if is_current {
            match barrier(&self.inner.links.live, &group[0].subject).await {
                Barrier::Passed => {}
                Barrier::NoStream => {
                    self.suspect(&sent_to.stream);
                    return Err(Again);
                }
                Barrier::Silent => return Err(Again),
            }
        }
        let mut search = Search {
            found: HashMap::new(),
            is_whole: is_current,
        };
        let mut wanted: HashMap<&str, HashSet<&str>> = HashMap::new();
        for ticket in group {
            let ids = wanted.entry(&ticket.subject).or_default();
            ids.insert(&ticket.id);
        }
        for generation in slot.generations.iter() {
            let after = if generation == sent_to {
                attempt.before
            } else if generation.from > sent_to.from {
                generation.from.just_before()
            } else {
                continue;
            };
            for (subject, ids) in &wanted {
                let is_whole = self
                    .scan(generation, subject, after, ids, &mut search.found)
                    .await?;
                search.is_whole &= is_whole;
            }
        }
        if search.is_whole {
            // Read after the scan: what was trimmed meanwhile could not be found.
            let state = self.inner.replay.state(&sent_to.stream).await;
            let state = state.map_err(|_| Again)?;
            search.is_whole = state.first.get() <= attempt.before.read_from();
        }
        Ok(search)
    }

    /// Adds what is there of `ids`. False if not all of the stream could be looked through.
    async fn scan(
        &self,
        generation: &Generation,
        subject: &str,
        mut after: Seq,
        ids: &HashSet<&str>,
        found: &mut HashMap<String, (Generation, Seq)>,
    ) -> Result<bool, Again> {
        for _ in 0..SCAN_MAX_PAGES {
            let page = self
                .inner
                .replay
                .all_after(&generation.stream, subject, after, SCAN_PAGE_MESSAGES)
                .await;
            let page = match page {
                Ok(page) => page,
                Err(ReplayError::NoStream(_)) => return Ok(false),
                Err(error) => {
                    tracing::warn!(%error, "a publish could not be looked for yet");
                    return Err(Again);
                }
            };
            let Some(newest) = page.last() else {
                return Ok(true);
            };
            after = newest.message.seq;
            let mine = page
                .into_iter()
                .filter(|delivery| ids.contains(delivery.message.id.as_str()));
            found.extend(mine.map(|d| (d.message.id, (generation.clone(), d.message.seq))));
        }
        Ok(false)
    }

    async fn archived(&self, ticket: &Ticket, after: Seq) -> Option<Seq> {
        let lookup = self.inner.lookup.as_ref()?;
        let (log, room) = (self.log.clone(), ticket.room.clone());
        lookup(log, room, ticket.id.clone(), after).await
    }

    /// The stream had the id. A random one can only be our own earlier send; under a caller's key
    /// the author and the room of what is stored must be the same.
    async fn check_duplicate(&mut self, group: &[Arc<Ticket>], attempt: &Attempt, seq: Seq) {
        // Only a message that goes alone is acknowledged as a duplicate: it refuses a batch.
        let [ticket] = group else {
            return self.resolve(group, attempt).await;
        };
        let generation = &attempt.generation;
        let found = match self.inner.replay.at(&generation.stream, seq).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "a duplicate could not be compared");
                // It stays claimed and is sent again: the next acknowledgement says the same.
                return tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        self.resync(ticket);
        match found {
            Some(found) if !is_same(&found, ticket) => {
                ticket.answer(Outcome::Refused(Refusal::Conflict));
            }
            // Trimmed or erased since: its id is bound to this very room and author.
            _ => self.stored(ticket, generation, seq, ticket.keyed),
        }
    }

    /// De-duplication does not reach across a fence: a caller's key that was used shortly before one
    /// is looked for in the generation before. True if it was found and answered.
    async fn was_stored_before_a_fence(&self, ticket: &Ticket) -> bool {
        let Some(slot) = self.inner.placements.slot(&self.log, self.index) else {
            return false;
        };
        let [.., previous, _] = slot.generations.as_ref() else {
            return false;
        };
        let page = self
            .inner
            .replay
            .backward(
                &previous.stream,
                &ticket.subject,
                None,
                Seq::ZERO,
                KEY_SCAN_MAX_MESSAGES,
                u32::MAX,
            )
            .await;
        let Ok(page) = page else { return false };
        let found = page.messages.iter().find(|m| m.id == ticket.id);
        if let Some(found) = found {
            self.resync(ticket);
            self.stored(ticket, previous, found.seq, true);
        }
        found.is_some()
    }

    /// An acknowledgement's messages lie side by side, and it says the last.
    fn stored_all(&self, group: &[Arc<Ticket>], generation: &Generation, last: Seq) {
        let preceding = last.get() - group.len() as u64;
        if let Some(newest) = group.last() {
            self.tell(generation, last, &newest.id);
        }
        for (ticket, nth) in group.iter().zip(1_u64..) {
            self.answer_stored(ticket, generation, Seq::new(preceding + nth), false);
        }
    }

    fn stored(&self, ticket: &Ticket, generation: &Generation, seq: Seq, duplicate: bool) {
        self.tell(generation, seq, &ticket.id);
        self.answer_stored(ticket, generation, seq, duplicate);
    }

    fn answer_stored(&self, ticket: &Ticket, generation: &Generation, seq: Seq, duplicate: bool) {
        ticket.answer(Outcome::Stored {
            position: Position {
                epoch: generation.epoch.clone(),
                offset: seq,
            },
            duplicate,
        });
    }

    fn tell(&self, generation: &Generation, seq: Seq, id: &str) {
        let known = Known {
            created: String::new(),
            seq,
            id: id.to_owned(),
            // The stream gave it an earlier time; what a rolled-back one stores, a later.
            time_ms: now_ms(),
        };
        (self.inner.saw)(&generation.stream, known);
    }

    fn resync(&self, ticket: &Ticket) {
        // Without listeners there are no rooms to resync.
        drop(self.inner.resync.send(ticket.room.clone()));
    }
}

fn is_same(found: &Delivery, ticket: &Ticket) -> bool {
    let author = found.message.author.as_ref();
    found.message.id == ticket.id
        && found.room == ticket.room
        && author.is_some_and(|author| author.user == ticket.author_user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_must_be_above_what_was_known() {
        assert!(is_above(Seq::new(8), 1, Seq::new(7)));
        assert!(!is_above(Seq::new(7), 1, Seq::new(7)));
        assert!(is_above(Seq::new(10), 3, Seq::new(7)));
        assert!(!is_above(Seq::new(9), 3, Seq::new(7)));
        assert!(is_above(Seq::new(1), 1, Seq::ZERO));
    }
}
