//! Knows: a connection's subscriptions, and that each takes one of its user's places where those are counted. Never:
//! what a subscription is, who may have one.

use std::collections::HashMap;
use std::ops::Deref;

use weir_nats::RoomName;

use super::Place;
use crate::limits::{Gate, Limited};
use crate::seats::Seat;

/// Subscriptions by room; read as the map that they are.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: HashMap<RoomName, Place>,
    /// As many as there are subscriptions, where they are counted; for a moment one more.
    seats: Vec<Seat<String>>,
}

impl Places {
    /// Takes the place of a subscription that is inserted next, or was refused after all.
    pub(super) fn reserve(&mut self, gate: &Gate, user: &str) -> Result<(), Limited> {
        self.seats.truncate(self.places.len());
        self.seats.extend(gate.channel(user)?);
        Ok(())
    }

    pub(super) fn insert(&mut self, room: RoomName, place: Place) {
        self.places.insert(room, place);
    }

    pub(super) fn get_mut(&mut self, room: &RoomName) -> Option<&mut Place> {
        self.places.get_mut(room)
    }

    pub(super) fn remove(&mut self, room: &RoomName) -> Option<Place> {
        let removed = self.places.remove(room);
        self.seats.truncate(self.places.len());
        removed
    }
}

impl Deref for Places {
    type Target = HashMap<RoomName, Place>;

    fn deref(&self) -> &Self::Target {
        &self.places
    }
}
