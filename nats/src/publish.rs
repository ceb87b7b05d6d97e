//! Knows: how a message gets into its log: group commit, three ends, one in flight per stream.
//! Never: who may publish, what a payload means.
//!
//! Per stream slot one task sends; while a publish or a batch is in flight, the next ones gather and
//! go together as an atomic batch (nats-server ADR-50), which costs one fsync. Nothing waits for a
//! timer. The next is sent only when the fate of the last is known, so a retry never overtakes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::client::RequestErrorKind;
use async_nats::header::HeaderValue;
use async_nats::{Client, HeaderMap, Request};
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::Sha256;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::guard::Known;
use crate::message::{Author, stamp};
use crate::partition::slot_of;
use crate::placement::Placements;
use crate::position::{Position, Seq};
use crate::replay::{Replay, ReplayError};
use crate::subject::RoomName;

/// Every publish is answered within this; SDKs give up at 5 s.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// Without an acknowledgement for this long the outcome of a send is unknown.
const ACK_WITHIN: Duration = Duration::from_secs(2);
/// Messages of one atomic batch (the server's own limit).
const BATCH_MAX_MESSAGES: usize = 1_000;
/// Bytes of one atomic batch.
const BATCH_MAX_BYTES: usize = 1 << 20;
/// Bytes that may wait for one stream.
const QUEUE_MAX_BYTES: usize = 32 << 20;
/// Expected wait beyond which a publish is refused as busy.
const EXPECTED_WAIT_MAX_MS: u64 = 3_000;
/// Messages looked through for an id whose fate is unknown.
const SCAN_MAX_MESSAGES: usize = 1_000_000;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_millis(100);
/// Rooms named for a resync that a slow listener may be behind.
const RESYNC_MAX: usize = 1_024;

/// Tells a publisher's caller how it ended. Called exactly once.
pub type Done = Box<dyn FnOnce(Outcome) + Send>;
/// Told of a stream's acknowledged message.
pub type Saw = Arc<dyn Fn(&str, Known) + Send + Sync>;
/// Looks an id up in the archive: room, id, after.
pub type ArchiveLookup = Arc<
    dyn Fn(RoomName, String, Seq) -> futures_util::future::BoxFuture<'static, Option<Seq>>
        + Send
        + Sync,
>;

/// A message on its way into a log.
pub struct Outgoing {
    /// Its room.
    pub room: RoomName,
    /// The log that the room's namespace names.
    pub log: String,
    /// Its author, as verified.
    pub author: Author,
    /// Tags; usually empty.
    pub tags: BTreeMap<String, String>,
    /// The payload.
    pub data: Bytes,
    /// The caller's own idempotency key.
    pub key: Option<String>,
    /// Told the outcome within [`ANSWER_WITHIN`].
    pub done: Done,
}

/// The three ends of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the stream, synced as the server is set.
    Stored {
        /// Its position.
        position: Position,
        /// An earlier publish with the same key had stored it.
        duplicate: bool,
    },
    /// It is surely not stored.
    Refused(Refusal),
    /// It may or may not be stored; nobody could tell in time.
    Unknown,
}

/// Why a publish was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too much waits already (error 111).
    Busy,
    /// Larger than the server takes (error 107).
    TooLarge,
    /// It could not be sent, or the log took nothing (error 100): try again.
    NotSent(String),
    /// The key was used before, for another room or by another author (error 107).
    Conflict,
}

/// Publishes into logs. Cheap to clone.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    client: Client,
    replay: Replay,
    placements: Placements,
    gate: watch::Receiver<bool>,
    key: [u8; 32],
    saw: Saw,
    lookup: Option<ArchiveLookup>,
    resync: broadcast::Sender<RoomName>,
    slots: HashMap<(String, u16), Arc<SlotQueue>>,
    slot_counts: HashMap<String, u16>,
    half_window: HashMap<String, Duration>,
    /// The highest sequence acknowledged here, by stream: where a look-up has to start.
    acked: Mutex<HashMap<String, Seq>>,
}

/// What a publisher needs.
pub struct PublisherParts {
    /// The connection that publishes.
    pub client: Client,
    /// Where rooms are kept.
    pub placements: Placements,
    /// True while publishes may be handed over (the epoch guard's gate).
    pub gate: watch::Receiver<bool>,
    /// The secret under which callers' keys become ids.
    pub key: [u8; 32],
    /// The duplicate window of each log.
    pub duplicate_windows: HashMap<String, Duration>,
    /// Told of every acknowledged message.
    pub saw: Saw,
    /// Where to look for an id that the stream no longer has.
    pub lookup: Option<ArchiveLookup>,
}

#[derive(Default)]
struct SlotQueue {
    waiting: Mutex<VecDeque<Arc<Ticket>>>,
    waiting_bytes: AtomicUsize,
    /// Sent, and not answered for good.
    in_flight: Mutex<Vec<Arc<Ticket>>>,
    added: Notify,
    /// How long the last round took, smoothed, in milliseconds.
    round_ms: AtomicU64,
}

/// One message in the publisher.
struct Ticket {
    room: RoomName,
    subject: String,
    headers: HeaderMap,
    author_user: String,
    data: Bytes,
    id: String,
    keyed: bool,
    deadline: Instant,
    done: Mutex<Option<Done>>,
    /// Set before the first byte of it may have been sent.
    sent: AtomicBool,
}

impl Ticket {
    fn answer(&self, outcome: Outcome) {
        let done = self
            .done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(done) = done {
            done(outcome);
        }
    }

    fn len(&self) -> usize {
        // Headers are about this long; the server counts them against its limits, too.
        self.data.len() + self.subject.len() + 200
    }
}

impl Publisher {
    /// Starts a task per slot on `tasks`.
    #[must_use]
    pub fn start(parts: PublisherParts, tasks: &TaskTracker) -> Self {
        let mut slots = HashMap::new();
        let mut slot_counts: HashMap<String, u16> = HashMap::new();
        for slot in parts.placements.slots() {
            *slot_counts.entry(slot.log.clone()).or_default() += 1;
            slots.insert((slot.log, slot.index), Arc::new(SlotQueue::default()));
        }
        let half_window = parts
            .duplicate_windows
            .into_iter()
            .map(|(log, window)| (log, window / 2))
            .collect();
        let publisher = Self(Arc::new(Inner {
            replay: Replay::new(parts.client.clone()),
            client: parts.client,
            placements: parts.placements,
            gate: parts.gate,
            key: parts.key,
            saw: parts.saw,
            lookup: parts.lookup,
            resync: broadcast::channel(RESYNC_MAX).0,
            slots,
            slot_counts,
            half_window,
            acked: Mutex::default(),
        }));
        for ((log, index), queue) in &publisher.0.slots {
            let sender = Sender {
                inner: Arc::clone(&publisher.0),
                log: log.clone(),
                index: *index,
                queue: Arc::clone(queue),
            };
            tasks.spawn(sender.run());
            let queue = Arc::clone(queue);
            tasks.spawn(async move {
                loop {
                    tokio::time::sleep(TICK).await;
                    queue.answer_late(Instant::now());
                }
            });
        }
        publisher
    }

    /// Rooms whose live copy may be missing: a duplicate acknowledgement or an unknown outcome.
    #[must_use]
    pub fn resync(&self) -> broadcast::Receiver<RoomName> {
        self.0.resync.subscribe()
    }

    /// Bytes that wait to be sent, over all streams.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.0
            .slots
            .values()
            .map(|queue| queue.waiting_bytes.load(Ordering::Relaxed))
            .sum()
    }

    /// Takes a message. Never waits; keeps the order of calls within a stream; `done` is called
    /// exactly once within [`ANSWER_WITHIN`].
    pub fn submit(&self, outgoing: Outgoing) {
        let inner = &self.0;
        let slots = inner.slot_counts.get(&outgoing.log).copied().unwrap_or(0);
        if slots == 0 {
            let text = format!("the log {} is not placed", outgoing.log);
            return (outgoing.done)(Outcome::Refused(Refusal::NotSent(text)));
        }
        let index = slot_of(&outgoing.log, outgoing.room.partition(), slots);
        let queue = &inner.slots[&(outgoing.log.clone(), index)];
        if outgoing.data.len() + 4_096 > inner.client.max_payload() {
            return (outgoing.done)(Outcome::Refused(Refusal::TooLarge));
        }
        let id = match &outgoing.key {
            Some(key) => keyed_id(&inner.key, &outgoing.room, &outgoing.author, key),
            None => random_id(),
        };
        let ticket = Ticket {
            subject: outgoing.room.stored_subject(&outgoing.log),
            headers: stamp(&outgoing.room, &outgoing.author, &outgoing.tags, &id),
            room: outgoing.room,
            author_user: outgoing.author.user,
            data: outgoing.data,
            id,
            keyed: outgoing.key.is_some(),
            deadline: Instant::now() + ANSWER_WITHIN,
            done: Mutex::new(Some(outgoing.done)),
            sent: AtomicBool::new(false),
        };
        let bytes = ticket.len();
        let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let rounds = waiting.len() / BATCH_MAX_MESSAGES + 1;
        let expected_ms = queue.round_ms.load(Ordering::Relaxed) * rounds as u64;
        let is_busy = queue.waiting_bytes.load(Ordering::Relaxed) + bytes > QUEUE_MAX_BYTES
            || (rounds > 1 && expected_ms > EXPECTED_WAIT_MAX_MS);
        if is_busy {
            drop(waiting);
            return ticket.answer(Outcome::Refused(Refusal::Busy));
        }
        queue.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        waiting.push_back(Arc::new(ticket));
        drop(waiting);
        queue.added.notify_one();
    }
}

impl SlotQueue {
    /// Answers those whose time is up: what was not sent is refused, what was sent is unknown.
    fn answer_late(&self, now: Instant) {
        let mut late = Vec::new();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            while waiting.front().is_some_and(|ticket| ticket.deadline <= now) {
                if let Some(ticket) = waiting.pop_front() {
                    self.waiting_bytes
                        .fetch_sub(ticket.len(), Ordering::Relaxed);
                    late.push(ticket);
                }
            }
        }
        for ticket in late {
            let text = "it could not be sent in time".to_owned();
            ticket.answer(Outcome::Refused(Refusal::NotSent(text)));
        }
        let in_flight = self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for ticket in in_flight {
            if ticket.deadline <= now && ticket.sent.load(Ordering::Acquire) {
                ticket.answer(Outcome::Unknown);
            }
        }
    }

    /// Takes what goes together: up to a batch; a message with a caller's key goes alone.
    fn take(&self) -> Vec<Arc<Ticket>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(next) = waiting.front() {
            let alone = next.keyed || taken.first().is_some_and(|first: &Arc<Ticket>| first.keyed);
            let full = taken.len() >= BATCH_MAX_MESSAGES || bytes + next.len() > BATCH_MAX_BYTES;
            if !taken.is_empty() && (alone || full) {
                break;
            }
            bytes += next.len();
            taken.extend(waiting.pop_front());
        }
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        taken
    }
}

/// The one who sends for a slot.
struct Sender {
    inner: Arc<Inner>,
    log: String,
    index: u16,
    queue: Arc<SlotQueue>,
}

/// What a send came to.
enum Sent {
    Stored {
        stream: String,
        seq: Seq,
        duplicate: bool,
    },
    /// Surely not stored by this send; worth another try.
    Absent(String),
    /// Surely not stored, and another try would not help.
    Refused(String),
    Unknown,
}

#[derive(Deserialize)]
struct Ack {
    error: Option<AckError>,
    stream: Option<String>,
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct AckError {
    err_code: Option<u32>,
    description: Option<String>,
}

impl Sender {
    async fn run(self) {
        let mut gate = self.inner.gate.clone();
        loop {
            let tickets = self.queue.take();
            if tickets.is_empty() {
                self.queue.added.notified().await;
                continue;
            }
            *self
                .queue
                .in_flight
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = tickets.clone();
            let started = Instant::now();
            if tickets.len() > 1 {
                self.send_many(&tickets, &mut gate).await;
            } else {
                self.send_until_known(&tickets[0], &mut gate, None, None)
                    .await;
            }
            self.queue
                .in_flight
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clear();
            let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let before = self.queue.round_ms.load(Ordering::Relaxed);
            self.queue
                .round_ms
                .store((before * 3 + took) / 4, Ordering::Relaxed);
        }
    }

    /// Many as one atomic batch; if that is refused or its fate unknown, one by one with the same
    /// ids, which the stream drops if it has them.
    async fn send_many(&self, tickets: &[Arc<Ticket>], gate: &mut watch::Receiver<bool>) {
        if !open(gate, tickets.last().expect("not empty").deadline).await {
            return self.give_up(tickets, "the log is not available");
        }
        let before = self.last_seq().await;
        let first_send = Instant::now();
        let sent = self.batch(tickets).await;
        match sent {
            Sent::Stored { stream, seq, .. } => {
                let count = tickets.len() as u64;
                for (ticket, nth) in tickets.iter().zip(1_u64..) {
                    // A batch's messages lie side by side and its acknowledgement has the last.
                    let seq = Seq::new(seq.get() + nth - count);
                    self.stored(ticket, &stream, seq, false);
                }
            }
            Sent::Absent(_) | Sent::Refused(_) => {
                for ticket in tickets {
                    ticket.sent.store(false, Ordering::Release);
                }
                for ticket in tickets {
                    self.send_until_known(ticket, gate, None, None).await;
                }
            }
            Sent::Unknown => {
                tracing::warn!(log = %self.log, count = tickets.len(), "batch outcome unknown");
                for ticket in tickets {
                    self.send_until_known(ticket, gate, Some(first_send), before.clone())
                        .await;
                }
            }
        }
    }

    fn give_up(&self, tickets: &[Arc<Ticket>], why: &str) {
        for ticket in tickets {
            ticket.answer(Outcome::Refused(Refusal::NotSent(why.to_owned())));
        }
    }

    /// Sends one until its fate is known. `unknown_since` is set if an earlier send may have stored
    /// it, and `before` is the last sequence known before that send.
    async fn send_until_known(
        &self,
        ticket: &Ticket,
        gate: &mut watch::Receiver<bool>,
        mut unknown_since: Option<Instant>,
        mut before: Option<(String, Seq)>,
    ) {
        let half_window = self
            .inner
            .half_window
            .get(&self.log)
            .copied()
            .unwrap_or(Duration::from_secs(60));
        loop {
            let wait_until = match unknown_since {
                // Nothing was sent: the caller can be told so when its time is up.
                None => ticket.deadline,
                // It may be stored: wait as long as it takes to find out.
                Some(_) => Instant::now() + Duration::from_secs(24 * 3_600),
            };
            if !open(gate, wait_until).await {
                let why = "the log is not available".to_owned();
                return ticket.answer(Outcome::Refused(Refusal::NotSent(why)));
            }
            if let Some(since) = unknown_since {
                let may_resend = since.elapsed() < half_window && self.is_untrimmed(&before).await;
                if !may_resend {
                    return self.look_up(ticket, before).await;
                }
            } else if ticket.deadline <= Instant::now() {
                let why = "it could not be sent in time".to_owned();
                return ticket.answer(Outcome::Refused(Refusal::NotSent(why)));
            } else {
                before = self.last_seq().await;
            }
            let first_send = unknown_since.unwrap_or_else(Instant::now);
            match self.single(ticket).await {
                Sent::Stored {
                    stream,
                    seq,
                    duplicate,
                } => {
                    return self
                        .check_stored(ticket, &stream, seq, duplicate, unknown_since)
                        .await;
                }
                Sent::Refused(why) if unknown_since.is_none() => {
                    return ticket.answer(Outcome::Refused(Refusal::NotSent(why)));
                }
                Sent::Absent(why) if unknown_since.is_none() => {
                    ticket.sent.store(false, Ordering::Release);
                    if ticket.deadline <= Instant::now() {
                        return ticket.answer(Outcome::Refused(Refusal::NotSent(why)));
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Sent::Absent(_) | Sent::Refused(_) => tokio::time::sleep(RETRY_PAUSE).await,
                Sent::Unknown => {
                    unknown_since = Some(first_send);
                    tracing::warn!(log = %self.log, room = %ticket.room, "publish outcome unknown");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// The last sequence the stream has given before a send, if it can be asked cheaply.
    async fn last_seq(&self) -> Option<(String, Seq)> {
        let slot = self.inner.placements.slot(&self.log, self.index)?;
        let stream = slot.generations.last()?.stream.clone();
        let acked = self
            .inner
            .acked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&stream)
            .copied();
        if let Some(acked) = acked {
            return Some((stream, acked));
        }
        // The first send of this process: ask once, so that a look-up need not read everything.
        let state = self.inner.replay.state(&stream).await.ok()?;
        Some((stream, state.last))
    }

    /// True if the stream still has everything after the last sequence known before the send: else
    /// the first copy may have been stored and trimmed, and its id forgotten with it.
    async fn is_untrimmed(&self, before: &Option<(String, Seq)>) -> bool {
        let Some((stream, before)) = before else {
            return false;
        };
        match self.inner.replay.state(stream).await {
            Ok(state) => state.first.get() <= before.read_from() || before.is_zero(),
            // Fenced, deleted or silent: the loop comes back here.
            Err(ReplayError::NoStream(_)) => false,
            Err(_) => true,
        }
    }

    /// Too late to send again: finds the message, or leaves its fate unknown for ever.
    async fn look_up(&self, ticket: &Ticket, before: Option<(String, Seq)>) {
        let (stream, mut after) = before.unwrap_or_default();
        if !stream.is_empty() {
            let mut scanned = 0;
            while scanned < SCAN_MAX_MESSAGES {
                match self
                    .inner
                    .replay
                    .all_after(&stream, &ticket.subject, after, 200)
                    .await
                {
                    Ok(page) => {
                        if let Some(found) = page.iter().find(|d| d.message.id == ticket.id) {
                            return self.stored(ticket, &stream, found.message.seq, true);
                        }
                        let Some(newest) = page.last() else { break };
                        after = newest.message.seq;
                        scanned += page.len();
                    }
                    Err(ReplayError::TimedOut(_)) => tokio::time::sleep(RETRY_PAUSE).await,
                    Err(_) => break,
                }
            }
        }
        if let Some(lookup) = &self.inner.lookup
            && let Some(seq) = lookup(ticket.room.clone(), ticket.id.clone(), Seq::ZERO).await
        {
            return self.stored(ticket, &stream, seq, true);
        }
        tracing::warn!(log = %self.log, room = %ticket.room, "publish outcome stays unknown");
        ticket.answer(Outcome::Unknown);
        self.resync(&ticket.room);
    }

    /// A duplicate acknowledgement of a caller's key says only that *something* had the id.
    async fn check_stored(
        &self,
        ticket: &Ticket,
        stream: &str,
        seq: Seq,
        duplicate: bool,
        unknown_since: Option<Instant>,
    ) {
        if !duplicate || !ticket.keyed {
            // A random id is nobody else's: a duplicate is our own earlier send.
            return self.stored(ticket, stream, seq, duplicate || unknown_since.is_some());
        }
        let found = loop {
            match self.inner.replay.at(stream, seq).await {
                Ok(found) => break found,
                Err(ReplayError::TimedOut(_)) if ticket.deadline > Instant::now() => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(_) => return ticket.answer(Outcome::Unknown),
            }
        };
        let same = found.as_ref().is_some_and(|found| {
            let user = found
                .message
                .author
                .as_ref()
                .map(|author| author.user.as_str());
            found.room == ticket.room && user == Some(ticket.author_user.as_str())
        });
        match found {
            // Trimmed or erased since: it was stored, under an HMAC of this very room and author.
            None => self.stored(ticket, stream, seq, true),
            Some(_) if same => self.stored(ticket, stream, seq, true),
            Some(_) => ticket.answer(Outcome::Refused(Refusal::Conflict)),
        }
    }

    fn stored(&self, ticket: &Ticket, stream: &str, seq: Seq, resync: bool) {
        {
            let mut acked = self
                .inner
                .acked
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let highest = acked.entry(stream.to_owned()).or_default();
            *highest = (*highest).max(seq);
        }
        if resync {
            self.resync(&ticket.room);
        }
        let slot = self.inner.placements.slot(&self.log, self.index);
        let epoch = slot.and_then(|slot| {
            slot.generations
                .iter()
                .find(|g| g.stream == stream)
                .map(|g| g.epoch.clone())
        });
        let Some(epoch) = epoch else {
            tracing::warn!(%stream, "acknowledged by a stream that is not placed");
            return ticket.answer(Outcome::Unknown);
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        // The stream gave it an earlier time; what is stored after this moment has a later one.
        let time_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        let known = Known {
            created: String::new(),
            seq,
            id: ticket.id.clone(),
            time_ms,
        };
        (self.inner.saw)(stream, known);
        let position = Position { epoch, offset: seq };
        ticket.answer(Outcome::Stored {
            position,
            duplicate: resync && ticket.keyed,
        });
    }

    fn resync(&self, room: &RoomName) {
        // Without listeners there are no rooms to resync.
        drop(self.inner.resync.send(room.clone()));
    }

    async fn single(&self, ticket: &Ticket) -> Sent {
        ticket.sent.store(true, Ordering::Release);
        let request = Request::new()
            .headers(ticket.headers.clone())
            .payload(ticket.data.clone())
            .timeout(Some(ACK_WITHIN));
        answer(
            self.inner
                .client
                .send_request(ticket.subject.clone(), request)
                .await,
        )
    }

    /// Nats-Batch-Id on all, Nats-Batch-Sequence from 1, Nats-Batch-Commit on the last, whose
    /// acknowledgement is that of all.
    async fn batch(&self, tickets: &[Arc<Ticket>]) -> Sent {
        let batch_id = random_id();
        let (last, others) = tickets.split_last().expect("a batch is not empty");
        let headers = |ticket: &Ticket, nth: usize| {
            let mut headers = ticket.headers.clone();
            headers.insert("Nats-Batch-Id", batch_id.as_str());
            headers.insert("Nats-Batch-Sequence", HeaderValue::from(nth as u64));
            headers
        };
        for ticket in tickets {
            ticket.sent.store(true, Ordering::Release);
        }
        for (ticket, nth) in others.iter().zip(1..) {
            let published = self
                .inner
                .client
                .publish_with_headers(
                    ticket.subject.clone(),
                    headers(ticket, nth),
                    ticket.data.clone(),
                )
                .await;
            if let Err(error) = published {
                // Without the commit the server drops the batch, so nothing of it is stored.
                return Sent::Absent(error.to_string());
            }
        }
        let mut commit = headers(last, tickets.len());
        commit.insert("Nats-Batch-Commit", "1");
        let request = Request::new()
            .headers(commit)
            .payload(last.data.clone())
            .timeout(Some(ACK_WITHIN));
        answer(
            self.inner
                .client
                .send_request(last.subject.clone(), request)
                .await,
        )
    }
}

fn answer(result: Result<async_nats::Message, async_nats::client::RequestError>) -> Sent {
    let reply = match result {
        Ok(reply) => reply,
        Err(error) => {
            return match error.kind() {
                RequestErrorKind::NoResponders => {
                    Sent::Absent("no stream takes this room now".to_owned())
                }
                RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                    Sent::Refused(error.to_string())
                }
                RequestErrorKind::TimedOut | RequestErrorKind::Other => Sent::Unknown,
            };
        }
    };
    let Ok(ack) = serde_json::from_slice::<Ack>(&reply.payload) else {
        return Sent::Unknown;
    };
    if let Some(error) = ack.error {
        let code = error.err_code.unwrap_or_default();
        let text = format!("{} ({code})", error.description.unwrap_or_default());
        return Sent::Refused(text);
    }
    match (ack.stream, ack.seq) {
        (Some(stream), Some(seq)) => Sent::Stored {
            stream,
            seq: Seq::new(seq),
            duplicate: ack.duplicate,
        },
        _ => Sent::Unknown,
    }
}

/// Waits until the gate is open. False if `until` came first.
async fn open(gate: &mut watch::Receiver<bool>, until: Instant) -> bool {
    let opened = gate.wait_for(|open| *open);
    matches!(tokio::time::timeout_at(until, opened).await, Ok(Ok(_)))
}

/// 160 random bits: unguessable, so that nobody can take an id before its message (nats.md §1.4).
fn random_id() -> String {
    let mut bytes = [0; 20];
    getrandom::fill(&mut bytes).expect("the system's random source works");
    data_encoding::BASE32_NOPAD
        .encode(&bytes)
        .to_ascii_lowercase()
}

/// A caller's key becomes an id of its own room and author, which nobody else can meet.
fn keyed_id(secret: &[u8; 32], room: &RoomName, author: &Author, key: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any key length is taken");
    for part in [room.channel(), author.user.as_str(), key] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part.as_bytes());
    }
    let id = mac.finalize().into_bytes();
    format!(
        "k{}",
        data_encoding::BASE32_NOPAD.encode(&id).to_ascii_lowercase()
    )
}
