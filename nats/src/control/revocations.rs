//! Knows: which tokens are revoked, in one process; and that nobody is served between a reconnect and the read that
//! follows it. Never: how it learns of orders.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::{Order, Revoked, What};
use crate::ambient::now_ms;
use crate::connect::Links;
use crate::figures::{Counter, Figure};

/// The bucket was read on no connection yet.
const NEVER: u64 = u64::MAX;
/// Between looks whether the connection was lost again, for those who wait for the read after it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a token says that it can be revoked by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenFacts {
    /// Its id (`jti`).
    pub token_id: Option<String>,
    /// When it was issued (`iat`), in seconds since 1970.
    pub issued_at_s: Option<i64>,
}

/// All revocations by whom they are about. Pure.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    /// Issued before, in seconds since 1970.
    users: HashMap<String, i64>,
    tokens: HashMap<String, ()>,
    everybody: Option<i64>,
}

impl Matcher {
    /// Of these orders; those that are no revocation are ignored.
    pub fn new<'o>(orders: impl IntoIterator<Item = &'o Order>) -> Self {
        let mut matcher = Self::default();
        for order in orders {
            match &order.what {
                What::Revoke(Revoked::User {
                    user,
                    issued_before_s,
                }) => {
                    let before_s = matcher.users.entry(user.clone()).or_insert(i64::MIN);
                    *before_s = (*before_s).max(*issued_before_s);
                }
                What::Revoke(Revoked::Token { id }) => {
                    matcher.tokens.insert(id.clone(), ());
                }
                What::Revoke(Revoked::Issued { before_s }) => {
                    matcher.everybody = matcher.everybody.max(Some(*before_s));
                }
                What::Disconnect { .. } | What::Unsubscribe { .. } => {}
            }
        }
        matcher
    }

    /// True if a token is revoked. One that does not say when it was issued counts as issued before any time: it
    /// cannot prove that it is newer. One without an id is no token's that is revoked by its id.
    #[must_use]
    pub fn is_revoked(&self, user: &str, token: &TokenFacts) -> bool {
        let is_before = |before_s: i64| token.issued_at_s.is_none_or(|at_s| at_s < before_s);
        let by_id = |id: &String| self.tokens.contains_key(id);
        self.everybody.is_some_and(is_before)
            || self.users.get(user).copied().is_some_and(is_before)
            || token.token_id.as_ref().is_some_and(by_id)
    }
}

/// The revocations of a process. Cheap to clone; without a [`watch`](super::watch) there are none.
#[derive(Clone, Default)]
pub struct Revocations(Arc<Inner>);

#[derive(Default)]
struct Inner {
    matcher: ArcSwap<Matcher>,
    version: AtomicU64,
    /// By key.
    orders: Mutex<HashMap<String, Order>>,
    refused: Counter,
    gate: OnceLock<Gate>,
}

struct Gate {
    links: Links,
    /// The connection on which the bucket was read last.
    read_on: AtomicU64,
    read: Notify,
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Revocations")
    }
}

impl Revocations {
    /// True if a token is revoked.
    #[must_use]
    pub fn is_revoked(&self, user: &str, token: &TokenFacts) -> bool {
        self.0.matcher.load().is_revoked(user, token)
    }

    /// The same of a token that is shown, and counted.
    #[must_use]
    pub fn refuses(&self, user: &str, token: &TokenFacts) -> bool {
        let refuses = self.is_revoked(user, token);
        if refuses {
            self.0.refused.add_one();
        }
        refuses
    }

    /// Grows whenever there are others.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// While NATS is back and what was ordered meanwhile is not known yet: what to wait for before anybody is served.
    #[must_use]
    pub fn hold(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        self.wait_while(Self::is_held)
    }

    /// While this process may not know what was ordered, which it also may not while NATS is away: what to wait for
    /// before somebody is let in by another connection than the one that is watched.
    #[must_use]
    pub fn until_current(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        self.wait_while(Self::may_be_behind)
    }

    fn wait_while(
        &self,
        blocks: fn(&Self) -> bool,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        blocks(self).then(|| {
            let held = self.clone();
            async move {
                while blocks(&held) {
                    let Some(gate) = held.0.gate.get() else {
                        return;
                    };
                    let read = tokio::time::timeout(LOOK_AGAIN, gate.read.notified()).await;
                    tracing::trace!(is_read = read.is_ok(), "waits until orders are read");
                }
            }
        })
    }

    fn may_be_behind(&self) -> bool {
        self.0.gate.get().is_some_and(|gate| {
            gate.read_on.load(Ordering::Acquire) != gate.links.live_lost() || !gate.links.is_live()
        })
    }

    fn is_held(&self) -> bool {
        // In this order, as it is asked for each command and the second takes a lock.
        self.0.gate.get().is_some_and(|gate| {
            gate.read_on.load(Ordering::Acquire) != gate.links.live_lost() && gate.links.is_live()
        })
    }

    /// From now on nobody is served between a reconnect and [`Revocations::is_read`].
    pub(super) fn watches(&self, links: &Links) {
        self.0.gate.get_or_init(|| Gate {
            links: links.clone(),
            read_on: AtomicU64::new(NEVER),
            read: Notify::new(),
        });
    }

    /// All orders were read and carried out on that connection.
    pub(super) fn is_read(&self, connection: u64) {
        if let Some(gate) = self.0.gate.get() {
            gate.read_on.store(connection, Ordering::Release);
            gate.read.notify_waiters();
        }
    }

    /// Adds revocations; those that are over go. What was revoked stays so until then, also where the bucket lost it.
    pub fn add<'o>(&self, new: impl IntoIterator<Item = &'o Order>) {
        let mut orders = self.0.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_ms();
        orders.retain(|_, order| !order.is_over(now));
        for order in new {
            if matches!(order.what, What::Revoke(_)) && !order.is_over(now) {
                let key = order.key();
                let merged = match orders.get(&key) {
                    Some(before) => order.clone().with(before),
                    None => order.clone(),
                };
                orders.insert(key, merged);
            }
        }
        self.0
            .matcher
            .store(Arc::new(Matcher::new(orders.values())));
        self.0.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Every revocation that is kept.
    #[must_use]
    pub fn all(&self) -> Vec<Order> {
        let orders = self.0.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.values().cloned().collect()
    }

    /// Every figure.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let orders = self.0.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = vec![
            Figure::single(
                "weir_revocations",
                "Revocations of tokens that are kept.",
                "gauge",
                orders.len() as f64,
            ),
            Figure::single(
                "weir_revoked_tokens_refused_total",
                "Tokens that were shown and refused as revoked.",
                "counter",
                self.0.refused.value() as f64,
            ),
        ];
        if self.0.gate.get().is_some() {
            all.push(Figure::single(
                "weir_revocations_unread",
                "1 while NATS is back and nobody is served until what was ordered meanwhile is read.",
                "gauge",
                f64::from(u8::from(self.is_held())),
            ));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(what: Revoked, ttl_s: u64) -> Order {
        let ttl = Duration::from_secs(ttl_s);
        Order::new(What::Revoke(what), ttl, "", "").unwrap()
    }

    fn user(user: &str, issued_before_s: i64) -> Revoked {
        Revoked::User {
            user: user.to_owned(),
            issued_before_s,
        }
    }

    #[test]
    fn a_token_is_revoked_by_user_id_or_time() {
        let id = "j1".to_owned();
        let orders = [
            order(user("ann", 100), 60),
            order(user("ann", 80), 60),
            order(Revoked::Token { id }, 60),
            order(Revoked::Issued { before_s: 10 }, 60),
        ];
        let matcher = Matcher::new(&orders);
        let table = [
            ("ann", None, Some(99), true),
            ("ann", None, Some(100), false),
            ("ann", Some("j2"), Some(100), false),
            ("ann", Some("j1"), Some(100), true),
            // It does not say when it was issued.
            ("ann", Some("j2"), None, true),
            ("bob", None, None, true),
            ("bob", None, Some(9), true),
            ("bob", None, Some(10), false),
            ("bob", Some("j1"), Some(10), true),
            ("bob", Some("J1"), Some(10), false),
            ("", Some("j1"), Some(10), true),
            ("", None, Some(10), false),
        ];
        for (user, id, issued_at_s, revoked) in table {
            let token_id = id.map(str::to_owned);
            let facts = TokenFacts {
                token_id,
                issued_at_s,
            };
            let found = matcher.is_revoked(user, &facts);
            assert_eq!(found, revoked, "{user} {facts:?}");
        }
        // Without a time that counts for everybody, only who is named needs to say when.
        let matcher = Matcher::new(&orders[..3]);
        assert!(!matcher.is_revoked("bob", &TokenFacts::default()));
        assert!(matcher.is_revoked("ann", &TokenFacts::default()));
    }

    #[test]
    fn what_is_over_goes_and_what_was_lost_stays() {
        let revocations = Revocations::default();
        let token = TokenFacts {
            token_id: None,
            issued_at_s: Some(50),
        };
        let mut over = order(user("ann", 100), 60);
        over.until_ms = now_ms() - 1;
        revocations.add([&over]);
        assert!(!revocations.is_revoked("ann", &token) && revocations.all().is_empty());
        let version = revocations.version();
        revocations.add([&order(user("ann", 100), 60)]);
        assert!(revocations.version() > version);
        // The bucket was lost: what is read anew says less.
        revocations.add([&order(user("ann", 20), 60)]);
        assert!(revocations.is_revoked("ann", &token));
        assert_eq!(revocations.all().len(), 1);
    }
}
