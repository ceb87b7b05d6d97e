//! Knows: how a message gets into its log: group commit, three ends, one in flight per stream.
//! Never: who may publish, what a payload means.
//!
//! Per stream slot one task sends; while a publish or a batch is in flight, the next ones gather and
//! go together as an atomic batch (nats-server ADR-50), which costs one fsync. Nothing waits for a
//! timer. The next is sent only when the fate of the last is known, so a retry never overtakes.

mod queue;
mod sender;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use self::queue::PublishLimits;
use self::queue::{SlotQueue, Ticket, not_sent};
use self::sender::Sender;
use crate::ambient::random;
use crate::connect::Links;
use crate::figures::Figure;
use crate::guard::{Guard, Known};
use crate::message::{Author, stamp};
use crate::partition::slot_of;
use crate::placement::Placements;
use crate::position::{Position, Seq};
use crate::replay::Replay;
use crate::subject::RoomName;

/// Every publish is answered within this; SDKs give up at 5 s.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// Left for a busy process to give the answer.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);
/// Room for headers that a payload leaves below the server's `max_payload`.
const HEADERS_MAX_BYTES: usize = 4_096;
/// Between looks at whether all is answered.
const SETTLED_POLL: Duration = Duration::from_millis(10);
/// Rooms named for a resync that a slow listener may be behind.
const RESYNC_MAX: usize = 1_024;

/// Tells a publisher's caller how it ended. Called exactly once.
pub type Done = Box<dyn FnOnce(Outcome) + Send>;
/// Told of a stream's acknowledged message.
pub type Saw = Arc<dyn Fn(&str, Known) + Send + Sync>;
/// Looks an id up in the archive: log, room, id, after.
pub type ArchiveLookup = Arc<
    dyn Fn(String, RoomName, String, Seq) -> futures_util::future::BoxFuture<'static, Option<Seq>>
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
    links: Links,
    replay: Replay,
    placements: Placements,
    guard: Guard,
    key: [u8; 32],
    saw: Saw,
    lookup: Option<ArchiveLookup>,
    resync: broadcast::Sender<RoomName>,
    slots: HashMap<String, Vec<Arc<SlotQueue>>>,
}

/// What a publisher needs.
pub struct PublisherParts {
    /// The connections; it publishes on the live one.
    pub links: Links,
    /// Where rooms are kept.
    pub placements: Placements,
    /// Whose gate says when publishes may be handed over, and who is told of suspicions.
    pub guard: Guard,
    /// The secret under which callers' keys become ids.
    pub key: [u8; 32],
    /// The duplicate window of each log.
    pub duplicate_windows: HashMap<String, Duration>,
    /// Told of acknowledged messages: of a batch its last.
    pub saw: Saw,
    /// Where to look for an id that the stream no longer has.
    pub lookup: Option<ArchiveLookup>,
    /// What may wait for one stream, and how much goes together.
    pub limits: PublishLimits,
}

impl Publisher {
    /// Starts two tasks per slot on `tasks`; they run as long as the process.
    #[must_use]
    pub fn start(parts: PublisherParts, tasks: &TaskTracker) -> Self {
        let mut slots: HashMap<String, Vec<Arc<SlotQueue>>> = HashMap::new();
        for slot in parts.placements.slots() {
            let queue = Arc::new(SlotQueue::new(parts.limits));
            slots.entry(slot.log).or_default().push(queue);
        }
        let publisher = Self(Arc::new(Inner {
            replay: Replay::new(parts.links.live.clone()),
            links: parts.links,
            placements: parts.placements,
            guard: parts.guard,
            key: parts.key,
            saw: parts.saw,
            lookup: parts.lookup,
            resync: broadcast::channel(RESYNC_MAX).0,
            slots,
        }));
        for (log, queues) in &publisher.0.slots {
            let window = parts.duplicate_windows.get(log).copied();
            for (queue, index) in queues.iter().zip(0..) {
                let sender = Sender::new(
                    Arc::clone(&publisher.0),
                    log.clone(),
                    index,
                    Arc::clone(queue),
                    window.unwrap_or_default(),
                );
                tasks.spawn(sender.run());
                let queue = Arc::clone(queue);
                tasks.spawn(async move { queue.answer_late().await });
            }
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
        let queues = self.0.slots.values().flatten();
        queues.map(|queue| queue.waiting_bytes()).sum()
    }

    /// The same, for a metrics page.
    #[must_use]
    pub fn figure(&self) -> Figure {
        Figure::single(
            "weir_publish_waiting_bytes",
            "Bytes that wait to be published.",
            "gauge",
            self.waiting_bytes() as f64,
        )
    }

    /// Waits until every message that was taken before this call is answered, which is within
    /// [`ANSWER_WITHIN`]. Those taken later are not waited for.
    pub async fn settled(&self) {
        let queues = self.0.slots.values().flatten();
        let mut open: Vec<_> = queues.flat_map(|queue| queue.held()).collect();
        loop {
            open.retain(|ticket| ticket.upgrade().is_some_and(|ticket| !ticket.is_told()));
            if open.is_empty() {
                return;
            }
            tokio::time::sleep(SETTLED_POLL).await;
        }
    }

    /// Takes a message. Never waits; keeps the order of calls within a stream; `done` is called
    /// exactly once within [`ANSWER_WITHIN`].
    pub fn submit(&self, outgoing: Outgoing) {
        let inner = &self.0;
        let Some(queues) = inner.slots.get(&outgoing.log) else {
            return (outgoing.done)(not_sent("the log is not placed"));
        };
        let slots = u16::try_from(queues.len()).expect("slots are numbered by u16");
        let index = slot_of(&outgoing.log, outgoing.room.partition(), slots);
        let id = match &outgoing.key {
            Some(key) => keyed_id(&inner.key, &outgoing.room, &outgoing.author, key),
            None => random_id(),
        };
        let headers = stamp(&outgoing.room, &outgoing.author, &outgoing.tags, &id);
        if outgoing.data.len() + HEADERS_MAX_BYTES > inner.links.live.max_payload() {
            return (outgoing.done)(Outcome::Refused(Refusal::TooLarge));
        }
        let now = Instant::now();
        let ticket = Ticket::new(
            outgoing.room.stored_subject(&outgoing.log),
            headers,
            id,
            now + ANSWER_WITHIN.saturating_sub(ANSWER_MARGIN),
            outgoing,
        );
        if let Err(ticket) = queues[usize::from(index)].push(Arc::new(ticket), now) {
            ticket.answer(if inner.guard.is_open() {
                Outcome::Refused(Refusal::Busy)
            } else {
                not_sent("the log is not available")
            });
        }
    }
}

/// 160 random bits: unguessable, so that nobody can take an id before its message.
fn random_id() -> String {
    data_encoding::BASE32_NOPAD
        .encode(&random::<20>())
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
