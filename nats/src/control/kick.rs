//! Knows: whose connections at nats-servers orders end, and that they are looked for until no login that was under way
//! can have escaped. Never: sockets, how connections are listed and ended.
//!
//! A server shows the user and the token's id of a connection, and not when the token was issued. So whose user is
//! revoked is sent away with any token, if the connection began before the order; with one that is still valid it
//! comes back at once.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{CLOCK_AHEAD_MS, Order, Revoked, What, token_key};
use crate::connections::{Connection, Connections, ConnectionsError};
use crate::figures::{Counter, Figure};
use crate::subject::user_token;

/// Orders are looked after for so long: longer than a login can be under way.
const LOOK_FOR: Duration = Duration::from_secs(6);
/// Between looks.
const LOOK_EVERY: Duration = Duration::from_millis(1_500);
/// Batches of orders that wait.
const JOBS_MAX: usize = 64;
/// Orders that are looked after at once; beyond it the oldest are not looked after again.
const RECENT_MAX: usize = 100_000;

struct Job {
    orders: Vec<Order>,
    done: oneshot::Sender<u64>,
}

/// Hands orders to the task that carries them out. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kicker(mpsc::Sender<Job>);

/// The task.
pub struct KickerTask {
    connections: Connections,
    account: String,
    jobs: mpsc::Receiver<Job>,
    recent: Vec<(Instant, Order)>,
}

/// Connections that were ended, by all kickers of the process.
#[derive(Debug, Default)]
pub struct KickMetrics {
    kicked: Counter,
    failed: Counter,
}

impl KickMetrics {
    /// Every figure.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        vec![
            Figure::single(
                "weir_native_ordered_kicked_total",
                "Connections at nats-servers ended by order.",
                "counter",
                self.kicked.value() as f64,
            ),
            Figure::single(
                "weir_native_kick_failures_total",
                "Times that nats-servers did not say who is connected, or did not end a connection.",
                "counter",
                self.failed.value() as f64,
            ),
        ]
    }
}

/// For the connections of an account.
#[must_use]
pub fn kicker(connections: Connections, account: String) -> (Kicker, KickerTask) {
    let (sender, jobs) = mpsc::channel(JOBS_MAX);
    let task = KickerTask {
        connections,
        account,
        jobs,
        recent: Vec::new(),
    };
    (Kicker(sender), task)
}

impl Kicker {
    /// Has the connections ended that orders are about; how many those were at the first look. `None` if orders are
    /// about none.
    #[must_use]
    pub fn take(&self, orders: &[Order]) -> Option<oneshot::Receiver<u64>> {
        let orders: Vec<Order> = orders.iter().filter(|o| is_native(o)).cloned().collect();
        if orders.is_empty() {
            return None;
        }
        let (done, counted) = oneshot::channel();
        if self.0.try_send(Job { orders, done }).is_err() {
            tracing::error!("too many orders at once: connections at nats-servers stay");
            return None;
        }
        Some(counted)
    }
}

/// A subscription, a room or one socket are nothing that a nats-server could end.
fn is_native(order: &Order) -> bool {
    match &order.what {
        What::Revoke(_) => true,
        What::Disconnect { whose, .. } => {
            whose.user.is_some() && whose.room.is_none() && whose.client.is_none()
        }
        What::Unsubscribe { .. } => false,
    }
}

impl KickerTask {
    /// Runs until `stop`.
    pub async fn run(mut self, metrics: std::sync::Arc<KickMetrics>, stop: CancellationToken) {
        let mut look_at: Option<Instant> = None;
        loop {
            let due = async {
                match look_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let mut told = Vec::new();
            tokio::select! {
                () = stop.cancelled() => return,
                () = due => {}
                job = self.jobs.recv() => {
                    let Some(job) = job else { return };
                    self.begin(job, &mut told);
                    while let Ok(job) = self.jobs.try_recv() {
                        self.begin(job, &mut told);
                    }
                }
            }
            let looked_at = Instant::now();
            match self.look(&metrics).await {
                Ok(kicked) => {
                    for (nth, done) in told.into_iter().enumerate() {
                        // Several orders at once cannot be told apart: the first is told all.
                        if done.send(if nth == 0 { kicked } else { 0 }).is_err() {
                            tracing::trace!("nobody asks how many were ended");
                        }
                    }
                    self.recent
                        .retain(|(since, _)| looked_at.duration_since(*since) < LOOK_FOR);
                }
                Err(error) => {
                    metrics.failed.add_one();
                    tracing::warn!(%error, "who is connected at nats-servers cannot be seen; trying again");
                }
            }
            look_at = (!self.recent.is_empty()).then(|| Instant::now() + LOOK_EVERY);
        }
    }

    fn begin(&mut self, job: Job, told: &mut Vec<oneshot::Sender<u64>>) {
        told.push(job.done);
        let now = Instant::now();
        self.recent
            .extend(job.orders.into_iter().map(|order| (now, order)));
        let too_many = self.recent.len().saturating_sub(RECENT_MAX);
        self.recent.drain(..too_many);
    }

    async fn look(&self, metrics: &KickMetrics) -> Result<u64, ConnectionsError> {
        let wanted = Wanted::new(self.recent.iter().map(|(_, order)| order));
        let mut kicked = 0;
        for connection in self.connections.list(&self.account).await? {
            if !wanted.is_meant(&connection) {
                continue;
            }
            match self.connections.kick(&connection).await {
                Ok(true) => {
                    kicked += 1;
                    metrics.kicked.add_one();
                    tracing::info!(target: "audit", user = connection.user, "native connection ended by order");
                }
                Ok(false) => {}
                Err(error) => {
                    metrics.failed.add_one();
                    tracing::warn!(%error, user = connection.user, "native connection not ended");
                }
            }
        }
        Ok(kicked)
    }
}

/// Orders by what a server shows of a connection.
#[derive(Debug, Default)]
struct Wanted {
    /// Began before, in milliseconds since 1970, by the user's token.
    users: HashMap<String, i64>,
    tokens: HashSet<String>,
    everybody: Option<i64>,
}

impl Wanted {
    fn new<'o>(orders: impl IntoIterator<Item = &'o Order>) -> Self {
        let mut wanted = Self::default();
        for order in orders {
            let until_ms = order.at_ms.saturating_add(CLOCK_AHEAD_MS);
            match &order.what {
                What::Revoke(Revoked::Token { id }) => {
                    wanted.tokens.insert(token_key(id));
                }
                What::Revoke(Revoked::Issued { .. }) => {
                    wanted.everybody = wanted.everybody.max(Some(until_ms));
                }
                What::Revoke(Revoked::User { .. })
                | What::Disconnect { .. }
                | What::Unsubscribe { .. } => {
                    if let Some(user) = order.user() {
                        let latest_ms = wanted.users.entry(user_token(user)).or_insert(i64::MIN);
                        *latest_ms = (*latest_ms).max(until_ms);
                    }
                }
            }
        }
        wanted
    }

    fn is_meant(&self, connection: &Connection) -> bool {
        // Users of a server's configuration have no token.
        let Some((user, token)) = connection.of_token() else {
            return false;
        };
        let began_before =
            |until_ms: i64| connection.start_ns <= i128::from(until_ms).saturating_mul(1_000_000);
        self.tokens.contains(token)
            || self.everybody.is_some_and(began_before)
            || self.users.get(user).copied().is_some_and(began_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Whose;

    #[test]
    fn a_connection_is_meant_by_user_token_or_time() {
        let order = |what| Order::new(what, Duration::from_secs(60), "", "").unwrap();
        let revoke =
            |user, id, before| order(What::Revoke(Revoked::new(user, id, before).unwrap()));
        let now_ms = crate::ambient::now_ms();
        let at = |user: &str, start_ms: i64| Connection {
            start_ns: i128::from(start_ms) * 1_000_000,
            server: "S".to_owned(),
            cid: 1,
            user: user.to_owned(),
        };
        let (before, after) = (now_ms - 1_000, now_ms + 60_000);
        let by_user = Wanted::new(&[revoke(Some("a b"), None, None)]);
        assert!(by_user.is_meant(&at("a=20b:j1", before)));
        assert!(
            !by_user.is_meant(&at("a=20b:j2", after)),
            "it came with a new one"
        );
        assert!(!by_user.is_meant(&at("bob:j1", before)));
        let by_id = Wanted::new(&[revoke(None, Some("j 1"), None)]);
        assert!(by_id.is_meant(&at("bob:j=201", after)));
        assert!(!by_id.is_meant(&at("bob:j2", before)));
        assert!(!by_id.is_meant(&at("bob:", before)), "it has no id");
        let by_time = Wanted::new(&[revoke(None, None, Some(5))]);
        assert!(by_time.is_meant(&at("bob:", before)) && !by_time.is_meant(&at("bob:", after)));
        for wanted in [&by_user, &by_id, &by_time] {
            assert!(!wanted.is_meant(&at("weir", before)), "a static user");
        }
        let end = |user, room, client| {
            let whose = Whose::new(user, room, client).unwrap();
            order(What::Disconnect {
                whose,
                reconnect: false,
            })
        };
        assert!(is_native(&end(Some("ann"), None, None)));
        assert!(!is_native(&end(Some("ann"), Some("a"), None)));
        assert!(!is_native(&end(None, None, Some("c"))));
    }
}
