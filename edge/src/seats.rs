//! Knows: how many connections each user has at this edge. Never: sockets, who somebody is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections of each user. Cheap to clone. Bounded by the connections themselves.
#[derive(Clone, Debug, Default)]
pub struct Seats(Arc<Mutex<HashMap<String, usize>>>);

/// One connection's place. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Seat {
    user: String,
    seats: Seats,
}

impl Seats {
    /// Takes a place for one more connection of a user, or gives `None` if it has `max` of them.
    pub(crate) fn take(&self, user: &str, max: usize) -> Option<Seat> {
        let mut counts = self.counts();
        let count = counts.get(user).copied().unwrap_or(0);
        if count >= max {
            return None;
        }
        counts.insert(user.to_owned(), count + 1);
        Some(Seat {
            user: user.to_owned(),
            seats: self.clone(),
        })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.seats.counts();
        if let Some(count) = counts.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_each_users_own_and_come_back() {
        let seats = Seats::default();
        let first = seats.take("ann", 2);
        let second = seats.take("ann", 2);
        assert!(first.is_some() && second.is_some());
        assert!(seats.take("ann", 2).is_none());
        assert!(seats.take("bob", 2).is_some());
        drop(first);
        assert!(seats.take("ann", 2).is_some());
        drop(second);
        assert!(seats.counts().is_empty(), "nobody is left");
    }
}
