//! Knows: which stream keeps a room, now and before, and how that is written down. Never: why it
//! changes (the guard's), how it is read (replay's).

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::guard::Known;
use crate::partition::slot_of;
use crate::position::{Epoch, Seq};
use crate::subject::RoomName;

/// One life of a slot: a stream with an epoch. A later one begins above every offset before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// The stream's name: `<LOG>_<slot>`, later `<LOG>_<slot>_<generation>`.
    pub stream: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// The first sequence that can belong to it.
    pub from: Seq,
}

/// Lives of a slot that are remembered after they ended: one an incident.
pub(crate) const ENDED_MAX: usize = 1_000;

/// A life that is over. Its stream goes once it is archived, and this stays, so that an archive that
/// lost it since is noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The stream, its epoch and where it began.
    #[serde(flatten)]
    pub generation: Generation,
    /// The highest sequence that it is known to have given.
    pub to: Seq,
}

/// Where one room is kept.
#[derive(Clone, Debug)]
pub struct Place {
    /// The log's name.
    pub log: String,
    /// The slot of the log.
    pub slot: u16,
    /// The room's partition.
    pub partition: u8,
    /// The subject under which its messages are stored, in every generation.
    pub stored_subject: String,
    /// Oldest first; the last is the current one; never empty.
    pub generations: Arc<[Generation]>,
    /// Those that ended, oldest first; some of them may still be among the generations.
    pub ended: Arc<[Ended]>,
}

impl Place {
    /// The generation that takes new messages.
    #[must_use]
    pub fn current(&self) -> &Generation {
        self.generations
            .last()
            .expect("a slot has at least one generation")
    }
}

/// One slot of a log and its lives.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The log's name.
    pub log: String,
    /// Which of the log's slots.
    pub index: u16,
    /// Oldest first; the last is the current one; never empty.
    pub generations: Arc<[Generation]>,
}

/// A log's placements as the KV bucket `weir` holds them under `placement.<log>` (JSON).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRecord {
    /// By slot index.
    pub slots: Vec<SlotRecord>,
}

/// One slot in a [`PlacementRecord`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// Oldest first; the last is the current one.
    pub generations: Vec<Generation>,
    /// Those that ended, oldest first, also when their streams are gone; the newest 1,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<Ended>,
    /// A change of generation that is not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<Incident>,
}

/// Why a slot is between two generations; kept until members may be let in again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// The stream that lost something.
    pub stream: String,
    /// The highest that was known of it.
    pub known: Known,
}

/// The placements of all logs, shared by every part of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Placements {
    logs: Arc<ArcSwap<Logs>>,
    version: Arc<watch::Sender<u64>>,
}

type Logs = HashMap<String, Vec<Lives>>;

/// The lives of one slot.
#[derive(Clone, Debug)]
struct Lives {
    generations: Arc<[Generation]>,
    ended: Arc<[Ended]>,
}

impl Default for Placements {
    fn default() -> Self {
        Self {
            logs: Arc::new(ArcSwap::from_pointee(HashMap::new())),
            version: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Placements {
    /// Where a room is kept; `None` for a log that is not placed.
    #[must_use]
    pub fn place(&self, log: &str, room: &RoomName) -> Option<Place> {
        let logs = self.logs.load();
        let slots = logs.get(log)?;
        let stored_subject = room.stored_subject(log);
        let partition = room.partition();
        let slot = slot_of(log, partition, u16::try_from(slots.len()).ok()?);
        let lives = slots.get(usize::from(slot))?.clone();
        Some(Place {
            log: log.to_owned(),
            slot,
            partition,
            stored_subject,
            generations: lives.generations,
            ended: lives.ended,
        })
    }

    /// The slot of a partition in a log.
    #[must_use]
    pub fn slot(&self, log: &str, index: u16) -> Option<Slot> {
        let logs = self.logs.load();
        let generations = Arc::clone(&logs.get(log)?.get(usize::from(index))?.generations);
        Some(Slot {
            log: log.to_owned(),
            index,
            generations,
        })
    }

    /// Every slot of every log.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        let logs = self.logs.load();
        let mut slots: Vec<Slot> = logs
            .iter()
            .flat_map(|(log, slots)| {
                slots.iter().zip(0..).map(|(lives, index)| Slot {
                    log: log.clone(),
                    index,
                    generations: Arc::clone(&lives.generations),
                })
            })
            .collect();
        slots.sort_by(|a, b| (&a.log, a.index).cmp(&(&b.log, b.index)));
        slots
    }

    /// A number that grows with every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Sets a log's placements and announces it.
    pub fn set(&self, log: &str, record: &PlacementRecord) {
        let lives = |slot: &SlotRecord| Lives {
            generations: Arc::from(slot.generations.as_slice()),
            ended: Arc::from(slot.ended.as_slice()),
        };
        let slots: Vec<Lives> = record.slots.iter().map(lives).collect();
        self.logs.rcu(|logs| {
            let mut logs: Logs = logs.as_ref().clone();
            logs.insert(log.to_owned(), slots.clone());
            logs
        });
        self.version.send_modify(|version| *version += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_finds_its_place_and_a_change_is_announced() {
        let placements = Placements::default();
        let room = RoomName::parse("chat:lobby").unwrap();
        assert!(placements.place("rooms", &room).is_none());
        let mut changes = placements.changes();
        changes.mark_unchanged();
        let generation = Generation {
            stream: "ROOMS_0".into(),
            epoch: Epoch::new("e").unwrap(),
            from: Seq::new(1),
        };
        let slot = SlotRecord {
            generations: vec![generation.clone()],
            ended: vec![Ended {
                generation,
                to: Seq::new(7),
            }],
            incident: None,
        };
        let json = serde_json::to_string(&slot).unwrap();
        assert!(json.contains(r#""ended":[{"stream":"ROOMS_0","epoch":"e","from":1,"to":7}]"#));
        assert_eq!(serde_json::from_str::<SlotRecord>(&json).unwrap(), slot);
        // As an earlier version wrote it.
        let before = r#"{"generations":[]}"#;
        assert_eq!(
            serde_json::from_str::<SlotRecord>(before).unwrap(),
            SlotRecord::default()
        );
        placements.set("rooms", &PlacementRecord { slots: vec![slot] });
        assert!(changes.has_changed().unwrap());
        let place = placements.place("rooms", &room).unwrap();
        assert_eq!(place.current().stream, "ROOMS_0");
        assert_eq!(place.ended[0].to, Seq::new(7));
        assert_eq!(place.stored_subject, "log.rooms.20.chat.lobby");
    }
}
