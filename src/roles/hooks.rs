//! Knows: what the crates ask of each other through the process: told by function, as they do not know one another.
//! Never: when they ask.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use weir_authz::Action;
use weir_edge::limits::Limits;
use weir_edge::rate::{Cost, Counted};
use weir_edge::settings::EdgeSettings;
use weir_history::Reader;
use weir_history::service::{Access, Policy};
use weir_nats::RoomName;
use weir_nats::guard::Guard;
use weir_nats::publish::{ArchiveLookup, Saw};

/// Between comparisons of streams that clients cause.
const SUSPICION_EVERY: Duration = Duration::from_secs(10);

pub(super) fn saw(guard: Guard, wake: Arc<Notify>) -> Saw {
    Arc::new(move |stream, known| {
        guard.saw(stream, &known);
        wake.notify_one();
    })
}

/// A client's position above the stream's end closes the gate for a comparison, so clients may cause
/// that only so often.
pub(super) fn suspect(guard: Guard) -> Box<dyn Fn(&str) + Send + Sync> {
    let last = Mutex::new(None::<Instant>);
    Box::new(move |stream| {
        let now = Instant::now();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| now.duration_since(last) > SUSPICION_EVERY) {
            *last = Some(now);
            guard.suspect(stream);
        }
    })
}

pub(super) fn lookup(reader: Reader) -> ArchiveLookup {
    Arc::new(move |log, room, id, after| {
        let reader = reader.clone();
        Box::pin(async move {
            match reader.find(log, room, id, after).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "archive could not be asked for a publish");
                    None
                }
            }
        })
    })
}

pub(super) fn history_policy(settings: Arc<EdgeSettings>, limits: Arc<Limits>) -> Policy {
    Arc::new(move |user: &str, room: &RoomName| {
        if !limits.request(user, Instant::now()) {
            return Err((111, "requests come too fast (door.rate_limit)"));
        }
        let namespace = settings.namespace(room).ok_or((102, "unknown channel"))?;
        if !namespace.stored {
            return Err((108, "rooms of this namespace are not stored"));
        }
        if !namespace.rules.takes(room) {
            return Err((107, "no room of the namespace has such a name"));
        }
        settings
            .door
            .grants(user)
            .check(Action::History, room, &namespace.rules, false)
            .map_err(|_| (103, "permission denied"))?;
        let cost = Cost::one(Counted::Commands).and(Counted::Reads, 1);
        if !limits.namespace(room, cost, Instant::now()) {
            return Err((111, "too much is asked of this namespace (rate_limit)"));
        }
        Ok(Access {
            log: namespace.log.clone(),
            window: namespace.window,
        })
    })
}
