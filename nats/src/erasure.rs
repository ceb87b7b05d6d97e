//! Knows: orders to erase a room or a user's messages: what each covers, and the matcher that every
//! part of a process asks before it shows or keeps a message. Never: how something is erased.
//!
//! An order is written into the KV bucket `weir` first, so nothing that it covers comes back by
//! re-delivery, from a restored stream or from a restored archive: whoever reads, appends or keeps
//! frames asks [`Orders`].

pub mod book;
pub mod streams;
pub mod watch;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch as tokio_watch;

use crate::ambient::{now_ms, random};
use crate::figures::Figure;
use crate::message::Message;
use crate::partition::slot_of;
use crate::position::Seq;
use crate::replay::ReplayError;
use crate::subject::RoomName;

/// Orders that a process keeps in memory and the bucket keeps at most; each is some 200 bytes and
/// 60 a slot.
pub const ORDERS_MAX: usize = 10_000;
/// By how much the clock of a stream's leader may be ahead of all that an order knows of it.
const CLOCK_AHEAD_MS: i64 = 2_000;

/// Why an order could not be read, written or carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ErasureError {
    /// The bucket `weir` could not be read or written.
    #[error("the KV bucket `weir`: {0}")]
    Kv(String),
    /// A stream could not be read.
    #[error(transparent)]
    Read(#[from] ReplayError),
    /// A stream did not erase a message.
    #[error("the stream {stream} did not erase message {seq}: {reason}")]
    Delete {
        /// The stream.
        stream: String,
        /// The message.
        seq: Seq,
        /// What the server said.
        reason: String,
    },
    /// There are as many orders as are kept, and none of them can go.
    #[error(
        "{ORDERS_MAX} orders are kept already, and the streams still have what each of them is about; \
         wait until a stream's retention (max_age) has passed them"
    )]
    TooMany,
}

/// What an order erases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A room, by its name as clients write it.
    Room(String),
    /// Everything that a user wrote, in every room.
    User(String),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Room(room) => write!(f, "room {room}"),
            Self::User(user) => write!(f, "user {user}"),
        }
    }
}

/// One slot of a log when the order was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotScope {
    /// Its streams, oldest generation first; the last one was current.
    pub streams: Vec<String>,
    /// The last sequence of the current one: what is stored after it is kept. As a later generation
    /// begins above every offset before it, this bounds the older ones too.
    pub up_to: Seq,
}

/// One log when the order was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogScope {
    /// Its name.
    pub log: String,
    /// By slot index.
    pub slots: Vec<SlotScope>,
}

/// An order: never changed once written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its id; ids sort by time.
    pub id: String,
    /// What is erased.
    pub what: What,
    /// Which messages of it: by log, those up to a sequence.
    pub logs: Vec<LogScope>,
    /// And stored no later than this, in milliseconds since 1970: sequences that a stream gives a
    /// second time, as it went back in time, are other messages.
    pub until_ms: i64,
    /// When it was given, in milliseconds since 1970.
    pub at_ms: i64,
    /// The operating system's user who gave it.
    pub by: String,
    /// Why, in the words of who gave it; may be empty.
    #[serde(default)]
    pub reason: String,
}

impl Order {
    /// A new order. `newest_ms` is when the newest message of those streams was stored.
    #[must_use]
    pub fn new(
        what: What,
        logs: Vec<LogScope>,
        newest_ms: i64,
        by: String,
        reason: String,
    ) -> Self {
        let at_ms = now_ms();
        let tail = data_encoding::BASE32_NOPAD.encode(&random::<5>());
        Self {
            id: format!("{at_ms:013}-{}", tail.to_ascii_lowercase()),
            what,
            logs,
            until_ms: at_ms.max(newest_ms).saturating_add(CLOCK_AHEAD_MS),
            at_ms,
            by,
            reason,
        }
    }

    /// True if the order covers a message of this room.
    #[must_use]
    pub fn covers(&self, log: &str, room: &RoomName, message: &Message) -> bool {
        let is_named = match &self.what {
            What::Room(name) => name == room.channel(),
            What::User(user) => message.author.as_ref().is_some_and(|a| a.user == *user),
        };
        is_named && self.reaches(log, room.partition(), message.seq, message.time_ms)
    }

    /// True if the order covers what lies at this place, if it is of the room or user at all.
    #[must_use]
    pub fn reaches(&self, log: &str, partition: u8, seq: Seq, time_ms: i64) -> bool {
        if time_ms > self.until_ms {
            return false;
        }
        match self.logs.iter().find(|scope| scope.log == log) {
            Some(scope) => seq <= scope.up_to(partition),
            // A log that had no stream any more: only an archive may still have it.
            None => true,
        }
    }
}

impl LogScope {
    /// What is stored after it in this partition is kept.
    #[must_use]
    pub fn up_to(&self, partition: u8) -> Seq {
        let slots = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        if slots == 0 {
            return Seq::ZERO;
        }
        let slot = slot_of(&self.log, partition, slots);
        let scope = self.slots.get(usize::from(slot));
        scope.map_or(Seq::ZERO, |scope| scope.up_to)
    }
}

/// Every order by what it names. Pure.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    rooms: HashMap<String, Vec<Arc<Order>>>,
    /// By [`author_key`].
    users: HashMap<u64, Vec<Arc<Order>>>,
}

/// A user's name as a number, for what keeps no names. Two users may share one.
#[must_use]
pub fn author_key(user: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    user.hash(&mut hasher);
    hasher.finish()
}

impl Matcher {
    /// Of these orders.
    #[must_use]
    pub fn new(orders: impl IntoIterator<Item = Arc<Order>>) -> Self {
        let mut matcher = Self::default();
        for order in orders {
            let orders = match &order.what {
                What::Room(name) => matcher.rooms.entry(name.clone()).or_default(),
                What::User(name) => matcher.users.entry(author_key(name)).or_default(),
            };
            orders.push(order);
        }
        matcher
    }

    /// True if nothing was ever ordered, which is the usual case.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty() && self.users.is_empty()
    }

    /// True if a message may be neither shown nor kept.
    #[must_use]
    pub fn is_erased(&self, log: &str, room: &RoomName, message: &Message) -> bool {
        if self.is_empty() {
            return false;
        }
        let key = message
            .author
            .as_ref()
            .map(|author| author_key(&author.user));
        self.orders(room, key)
            .any(|order| order.covers(log, room, message))
    }

    /// True if what is known of a message only by this may be one that is erased: the author's
    /// [`author_key`] stands for the author.
    #[must_use]
    pub fn may_be_erased(
        &self,
        log: &str,
        room: &RoomName,
        (seq, time_ms): (Seq, i64),
        author: u64,
    ) -> bool {
        self.orders(room, Some(author))
            .any(|order| order.reaches(log, room.partition(), seq, time_ms))
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Order>> {
        self.rooms.values().chain(self.users.values()).flatten()
    }

    /// The orders that name this room, or an author of this key.
    fn orders(&self, room: &RoomName, author: Option<u64>) -> impl Iterator<Item = &Arc<Order>> {
        let of_room = self.rooms.get(room.channel()).into_iter().flatten();
        let of_author = author.and_then(|key| self.users.get(&key));
        of_room.chain(of_author.into_iter().flatten())
    }
}

/// The orders of a process, shared by all its parts. Cheap to clone. The default has none.
#[derive(Clone, Debug)]
pub struct Orders(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    matcher: ArcSwap<Matcher>,
    all: Mutex<BTreeMap<String, Arc<Order>>>,
    version: tokio_watch::Sender<u64>,
}

impl Default for Orders {
    fn default() -> Self {
        Self(Arc::new(Shared {
            matcher: ArcSwap::default(),
            all: Mutex::default(),
            version: tokio_watch::Sender::new(0),
        }))
    }
}

impl Orders {
    fn map(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Order>>> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes orders in; returns those that are new. Beyond [`ORDERS_MAX`] the oldest go.
    pub fn add(&self, orders: impl IntoIterator<Item = Order>) -> Vec<Arc<Order>> {
        let mut all = self.map();
        let mut new = Vec::new();
        for order in orders {
            if !all.contains_key(&order.id) {
                let order = Arc::new(order);
                all.insert(order.id.clone(), Arc::clone(&order));
                new.push(order);
            }
        }
        if new.is_empty() {
            return new;
        }
        while all.len() > ORDERS_MAX {
            if let Some((id, _)) = all.pop_first() {
                tracing::warn!(
                    id,
                    "more orders of erasure than are kept; the oldest is dropped"
                );
            }
        }
        let matcher = Matcher::new(all.values().cloned());
        self.0.matcher.store(Arc::new(matcher));
        drop(all);
        self.0.version.send_modify(|version| *version += 1);
        new
    }

    /// All of them, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Order>> {
        self.map().values().cloned().collect()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.map().len()
    }

    /// The same, for a metrics page.
    #[must_use]
    pub fn figure(&self) -> Figure {
        Figure::single(
            "weir_erasure_orders",
            "Orders of erasure in force.",
            "gauge",
            self.count() as f64,
        )
    }

    /// The matcher as it is now.
    #[must_use]
    pub fn matcher(&self) -> Arc<Matcher> {
        self.0.matcher.load_full()
    }

    /// True if a message may be neither shown nor kept.
    #[must_use]
    pub fn is_erased(&self, log: &str, room: &RoomName, message: &Message) -> bool {
        self.0.matcher.load().is_erased(log, room, message)
    }

    /// A number that grows with every order.
    #[must_use]
    pub fn version(&self) -> u64 {
        *self.0.version.borrow()
    }

    /// Tells of every change of [`Orders::version`].
    #[must_use]
    pub fn changes(&self) -> tokio_watch::Receiver<u64> {
        self.0.version.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Author, Door};

    fn message(seq: u64, time_ms: i64, user: &str) -> Message {
        Message {
            seq: Seq::new(seq),
            time_ms,
            id: "id".into(),
            author: Some(Author {
                user: user.into(),
                client: String::new(),
                info: None,
                door: Door::Socket,
            }),
            tags: BTreeMap::new(),
            data: bytes::Bytes::new(),
        }
    }

    fn order(what: What, up_to: &[u64]) -> Order {
        let slots = up_to.iter().map(|up_to| SlotScope {
            streams: vec!["ROOMS_0".into()],
            up_to: Seq::new(*up_to),
        });
        let scope = LogScope {
            log: "rooms".into(),
            slots: slots.collect(),
        };
        let mut order = Order::new(what, vec![scope], 0, "op".into(), String::new());
        order.until_ms = 1_000;
        order
    }

    #[test]
    fn an_order_covers_what_it_names_up_to_where_it_was_given() {
        let lobby = RoomName::parse("chat:lobby").unwrap();
        let other = RoomName::parse("chat:other").unwrap();
        let room = order(What::Room("chat:lobby".into()), &[10]);
        let user = order(What::User("ann".into()), &[10]);
        // Order, log, room, message, whether it is covered.
        let table = [
            (&room, "rooms", &lobby, message(10, 900, "bob"), true),
            (&room, "rooms", &lobby, message(11, 900, "bob"), false),
            (&room, "rooms", &other, message(10, 900, "bob"), false),
            (&user, "rooms", &other, message(10, 900, "ann"), true),
            (&user, "rooms", &lobby, message(10, 900, "bob"), false),
            (&user, "rooms", &lobby, message(10, 900, ""), false),
            // A sequence that was given again, after the stream had gone back in time.
            (&room, "rooms", &lobby, message(10, 1_001, "bob"), false),
            // A log that has no stream any more.
            (&room, "old", &lobby, message(99, 900, "bob"), true),
        ];
        for (nth, (order, log, room, message, covered)) in table.into_iter().enumerate() {
            assert_eq!(order.covers(log, room, &message), covered, "row {nth}");
            let matcher = Matcher::new([Arc::new(order.clone())]);
            let erased = matcher.is_erased(log, room, &message);
            assert_eq!(erased, covered, "matcher, row {nth}");
            let author = author_key(&message.author.as_ref().unwrap().user);
            let at = (message.seq, message.time_ms);
            let may_be = matcher.may_be_erased(log, room, at, author);
            assert_eq!(may_be, covered, "by key, row {nth}");
        }
    }

    #[test]
    fn each_partition_has_the_bound_of_its_slot() {
        let room = RoomName::parse("chat:lobby").unwrap();
        let slot = slot_of("rooms", room.partition(), 2);
        let mut up_to = [5, 5];
        up_to[usize::from(slot)] = 50;
        let order = order(What::Room("chat:lobby".into()), &up_to);
        assert!(order.covers("rooms", &room, &message(50, 1, "bob")));
        assert!(!order.covers("rooms", &room, &message(51, 1, "bob")));
    }

    #[test]
    fn orders_are_told_of_once_and_bounded() {
        let orders = Orders::default();
        assert!(orders.matcher().is_empty());
        let mut changes = orders.changes();
        changes.mark_unchanged();
        let first = order(What::User("ann".into()), &[10]);
        assert_eq!(orders.add([first.clone()]).len(), 1);
        assert!(changes.has_changed().unwrap());
        assert!(orders.add([first]).is_empty());
        assert_eq!(orders.version(), 1);
        let many = (0..=ORDERS_MAX).map(|n| Order {
            id: format!("{n:013}-x"),
            ..order(What::User(format!("u{n}")), &[10])
        });
        orders.add(many);
        assert_eq!(orders.all().len(), ORDERS_MAX);
    }

    #[test]
    fn an_order_reads_back_as_it_was_written() {
        let order = order(What::Room("chat:é".into()), &[10, 20]);
        let text = serde_json::to_string(&order).unwrap();
        assert!(text.contains(r#""what":{"room":"chat:é"}"#), "{text}");
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), order);
    }
}
