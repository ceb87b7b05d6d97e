//! Knows: how many of something each holder has at this edge: connections of a user or of an address, rooms of a
//! user or of a namespace. Never: sockets, who somebody is.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places of each holder. Cheap to clone. Bounded by what takes places.
#[derive(Debug)]
pub struct Seats<K>(Arc<Mutex<HashMap<K, usize>>>);

/// One place. Dropping it gives it back.
#[derive(Debug)]
pub struct Seat<K: Eq + Hash> {
    holder: K,
    seats: Seats<K>,
}

impl<K> Default for Seats<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Clone for Seats<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash> Seats<K> {
    /// Takes one more place for a holder, or gives `None` if it has `max` of them.
    pub fn take<Q>(&self, holder: &Q, max: usize) -> Option<Seat<K>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        let mut counts = self.counts();
        match counts.get_mut(holder) {
            Some(count) if *count >= max => return None,
            Some(count) => *count += 1,
            None if max == 0 => return None,
            None => {
                counts.insert(holder.to_owned(), 1);
            }
        }
        Some(Seat {
            holder: holder.to_owned(),
            seats: self.clone(),
        })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut counts = self.seats.counts();
        if let Some(count) = counts.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_each_holders_own_and_come_back() {
        let seats = Seats::<String>::default();
        let first = seats.take("ann", 2);
        let second = seats.take("ann", 2);
        assert!(first.is_some() && second.is_some());
        assert!(seats.take("ann", 2).is_none());
        assert!(seats.take("bob", 2).is_some());
        drop(first);
        assert!(seats.take("ann", 2).is_some());
        drop(second);
        assert!(seats.counts().is_empty(), "nobody is left");
        assert!(seats.take("ann", 0).is_none());
    }
}
