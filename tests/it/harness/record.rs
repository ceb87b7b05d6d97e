//! Knows: the record of a run, written by everyone who took part. Never: the system under test.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::checker::event::{At, Event, History, Id, Seen, What, hash_of};

/// The shared record. Cheap to clone; the order of events is the order of its lock.
#[derive(Clone)]
pub(crate) struct Recorder {
    start: Instant,
    history: Arc<Mutex<History>>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            history: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    /// The number that stands for a name.
    pub(crate) fn number(&self, name: &str) -> u32 {
        self.lock().names.number(name)
    }

    /// Nanoseconds since the start of the run.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap()
    }

    /// Writes an event down, now.
    pub(crate) fn push(&self, what: What) {
        let mut history = self.lock();
        // Taken under the lock, so that the record's order is the clock's.
        let t = self.now();
        history.events.push(Event { t, what });
    }

    /// A fault begins (`on`) or ends.
    pub(crate) fn fault(&self, name: &'static str, on: bool) {
        eprintln!(
            "{:>9.3}s {name} {}",
            self.now() as f64 / 1e9,
            if on { "begins" } else { "ends" }
        );
        self.push(What::Fault { name, on });
    }

    /// A position in numbers.
    pub(crate) fn at(&self, epoch: &str, offset: u64) -> At {
        At {
            epoch: self.number(epoch),
            offset,
        }
    }

    /// A message as it was seen; its id is in the payload.
    pub(crate) fn seen(&self, room: &str, at: At, author: &str, payload: &[u8]) -> Seen {
        let mut history = self.lock();
        let (room, author) = (history.names.number(room), history.names.number(author));
        Seen {
            room,
            at,
            id: id_of(payload),
            author,
            hash: hash_of(payload),
        }
    }

    /// What was recorded so far.
    pub(crate) fn history(&self) -> History {
        self.lock().clone()
    }

    /// Events so far.
    pub(crate) fn count(&self, wanted: impl Fn(&What) -> bool) -> usize {
        self.lock()
            .events
            .iter()
            .filter(|event| wanted(&event.what))
            .count()
    }
}

/// A payload that carries its id and is filled up to about `bytes`.
pub(crate) fn payload(id: Id, bytes: usize) -> String {
    let id = crate::checker::event::show_id(id);
    let fill = bytes.saturating_sub(id.len() + 18);
    format!("{{\"id\":\"{id}\",\"fill\":\"{}\"}}", "x".repeat(fill))
}

/// The id in a payload; `u64::MAX`, which nobody sends, if it holds none.
fn id_of(payload: &[u8]) -> Id {
    std::str::from_utf8(payload)
        .ok()
        .and_then(|text| text.strip_prefix("{\"id\":\""))
        .and_then(|text| text.split_once('"'))
        .and_then(|(id, _)| crate::checker::event::parse_id(id))
        .unwrap_or(u64::MAX)
}
