//! Knows: who is connected here, and how each connection is told of an order. Never: what an order does to a
//! connection (its session says), where orders come from.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use weir_nats::control::watch::Done;
use weir_nats::control::{Order, What};

use crate::link::{Link, Signal};

/// A connection's task is never busy for as long: it is told at its next turn.
const CARRIED_OUT_WITHIN: Duration = Duration::from_secs(1);

/// Everyone who is connected. Cheap to clone. Bounded by the connections themselves.
#[derive(Clone, Debug, Default)]
pub struct Roster(Arc<Mutex<Listing>>);

#[derive(Debug, Default)]
struct Listing {
    next: u64,
    /// By user; the number tells a user's connections apart.
    links: BTreeMap<(Arc<str>, u64), Arc<Link>>,
}

/// A connection's place. Dropping it takes the connection off.
#[derive(Debug)]
pub(crate) struct Listed {
    roster: Roster,
    key: (Arc<str>, u64),
    link: Arc<Link>,
}

/// What a connection is told.
#[derive(Debug)]
pub enum Told {
    /// An order.
    Order(Order),
    /// Orders may have been missed: the client has to come back with its token.
    Missed,
}

/// Something told, until all have obeyed: the last one to drop it says so.
#[derive(Debug)]
pub struct Notice {
    pub(crate) told: Told,
    pub(crate) closed: Arc<AtomicU64>,
    pub(crate) unsubscribed: Arc<AtomicU64>,
    /// Never sent on: the other end learns that all have dropped it.
    _obeyed: mpsc::Sender<()>,
}

impl Roster {
    /// Lists a connection of a user.
    pub(crate) fn enter(&self, user: &str, link: &Arc<Link>) -> Listed {
        let mut listing = self.listing();
        let key = (Arc::from(user), listing.next);
        listing.next += 1;
        listing.links.insert(key.clone(), Arc::clone(link));
        drop(listing);
        Listed {
            roster: self.clone(),
            key,
            link: Arc::clone(link),
        }
    }

    /// Has every connection obey these orders; returns once all have, and how many sockets were closed and how many
    /// subscriptions ended.
    pub async fn carry_out(&self, orders: Vec<Order>, has_missed: bool) -> Done {
        let (obeyed, mut all_obeyed) = mpsc::channel(1);
        let (closed, unsubscribed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let mut told: Vec<Told> = Vec::new();
        if has_missed {
            told.push(Told::Missed);
        }
        let mut is_everybody_checked = false;
        for order in orders {
            // A connection that is told of one revocation looks at all of them.
            let is_for_all = matches!(order.what, What::Revoke(_)) && order.user().is_none();
            if !(is_for_all && is_everybody_checked) {
                told.push(Told::Order(order));
            }
            is_everybody_checked |= is_for_all;
        }
        for told in told {
            let links = match &told {
                Told::Order(order) => self.links(order.user()),
                Told::Missed => self.links(None),
            };
            let notice = Arc::new(Notice {
                told,
                closed: Arc::clone(&closed),
                unsubscribed: Arc::clone(&unsubscribed),
                _obeyed: obeyed.clone(),
            });
            for link in links {
                link.signal(Signal::Told(Arc::clone(&notice)));
            }
        }
        drop(obeyed);
        if tokio::time::timeout(CARRIED_OUT_WITHIN, all_obeyed.recv())
            .await
            .is_err()
        {
            tracing::warn!("some connections have not obeyed an order yet");
        }
        Done {
            closed: closed.load(Ordering::Acquire),
            unsubscribed: unsubscribed.load(Ordering::Acquire),
            ..Done::default()
        }
    }

    /// The connections of a user, or of everybody.
    fn links(&self, user: Option<&str>) -> Vec<Arc<Link>> {
        let listing = self.listing();
        match user {
            Some(user) => {
                let of_user = listing.links.range(all_of(user));
                of_user.map(|(_, link)| Arc::clone(link)).collect()
            }
            None => listing.links.values().cloned().collect(),
        }
    }

    fn listing(&self) -> MutexGuard<'_, Listing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all_of(user: &str) -> RangeInclusive<(Arc<str>, u64)> {
    let user: Arc<str> = Arc::from(user);
    (Arc::clone(&user), 0)..=(user, u64::MAX)
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.roster.listing().links.remove(&self.key);
        // Nobody takes them any more, and who gave an order waits for them.
        while self.link.take_signal().is_some() {}
    }
}
