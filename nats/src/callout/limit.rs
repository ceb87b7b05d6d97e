//! Knows: that a user who logged in with a token has so many connections at most: which are too many, and when to look.
//! Never: tokens, who may log in.
//!
//! nats-server has no such limit, and a callout hears of logins only. So a while after a login everybody is counted, and
//! of whoever has too many the newest are sent away. Every instance finds the same ones.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::connections::{Connection, Connections, ConnectionsError};
use crate::figures::{Counter, Figure};

/// From a login to a look: it has to be on the list by then, and many logins are one look.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Between looks without a login, as one of another instance may not have been looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Connections that are being sent away at once.
const KICKS_IN_FLIGHT_MAX: usize = 16;

/// Counts connections of users with a token, and sends away the newest of those who have too many.
pub struct UserLimit {
    connections: Connections,
    account: Arc<str>,
    /// Connections of one user, of all servers together.
    max_connections: usize,
    logins: Arc<Notify>,
    kicked: Arc<Counter>,
}

impl UserLimit {
    /// A limit in an account; `logins` is told of each login, see [`Callout::with_logins`](super::Callout::with_logins),
    /// and `kicked` counts who was sent away.
    #[must_use]
    pub fn new(
        connections: Connections,
        account: &str,
        max_connections: usize,
        logins: Arc<Notify>,
        kicked: Arc<Counter>,
    ) -> Self {
        Self {
            connections,
            account: Arc::from(account),
            max_connections,
            logins,
            kicked,
        }
    }

    /// What is counted.
    #[must_use]
    pub fn figure(kicked: &Counter) -> Figure {
        Figure::single(
            "weir_native_connections_kicked_total",
            "Connections to NATS and MQTT that were ended, as their user had too many.",
            "counter",
            kicked.value() as f64,
        )
    }

    /// Looks after logins until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let looks = async {
            loop {
                tokio::select! {
                    () = self.logins.notified() => tokio::time::sleep(LOOK_PAUSE).await,
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
                if let Err(error) = self.look().await {
                    tracing::warn!(%error, "connections of users are not counted");
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = looks => {}
        }
    }

    async fn look(&self) -> Result<(), ConnectionsError> {
        let all = self.connections.list(&self.account).await?;
        let kicks = surplus(all, self.max_connections).into_iter();
        let kicks = kicks.map(|connection| self.kick(connection));
        let kicks = futures_util::stream::iter(kicks).buffer_unordered(KICKS_IN_FLIGHT_MAX);
        let kicked: Vec<_> = kicks.collect().await;
        kicked.into_iter().collect()
    }

    async fn kick(&self, connection: Connection) -> Result<(), ConnectionsError> {
        // False: it had gone, or another instance was first; at the same moment both are true.
        if self.connections.kick(&connection).await? {
            self.kicked.add_one();
            tracing::info!(
                user = connection.user,
                "a user had too many native connections, the newest is ended"
            );
        }
        Ok(())
    }
}

/// All but the oldest `max_connections` of each user with a token; `all` is sorted by age.
fn surplus(mut all: Vec<Connection>, max_connections: usize) -> Vec<Connection> {
    let mut counts = HashMap::new();
    all.retain(|connection| {
        let Some((user, _)) = connection.of_token() else {
            return false;
        };
        let count = counts.entry(user.to_owned()).or_insert(0);
        *count += 1;
        *count > max_connections
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_user_are_too_many() {
        let names = [
            "ann:1", "weir", "ann:2", "bob:", "weir", "ann:1", "weir", "ann2:1",
        ];
        let all: Vec<_> = (0_u64..)
            .zip(names)
            .map(|(cid, user)| Connection {
                start_ns: i128::from(cid),
                server: "N1".to_owned(),
                cid,
                user: user.to_owned(),
            })
            .collect();
        let cids = |max| -> Vec<u64> {
            surplus(all.clone(), max)
                .iter()
                .map(|one| one.cid)
                .collect()
        };
        assert_eq!(cids(2), [5]);
        assert_eq!(cids(1), [2, 5]);
        assert_eq!(cids(3), Vec::<u64>::new());
    }
}
