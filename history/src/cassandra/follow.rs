//! Knows: how a cluster is reached in the end, and what it holds looked at again and again. Never: rows.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use weir_nats::Seq;

use super::driver::Driver;
use super::statements::Statements;
use super::streams::read_held;
use super::write::Writer;
use super::{Cassandra, Link, lock, new_id, schema};
use crate::archive::{ArchiveError, HeldByStream};

/// Between tries to reach a cluster that never answered yet.
const CONNECT_RETRY: Duration = Duration::from_secs(1);
/// Between looks at what other processes archived.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Between warnings that it still is not there, or does not answer.
const WARN_EVERY: Duration = Duration::from_secs(30);

impl Cassandra {
    async fn connect(&self) -> Result<Arc<Link>, ArchiveError> {
        let driver = Driver::connect(&self.config).await?;
        let (meta, created) = schema::ensure(&driver, &self.config, new_id).await?;
        let statements = Statements::prepare(&driver, &self.config.keyspace);
        let statements = Box::pin(statements).await?;
        let link = Arc::new(Link {
            driver,
            statements,
            bucket_width: meta.bucket_width,
            meta: Mutex::new(meta),
        });
        let held = read_held(&link).await?;
        Box::pin(self.refresh_erasures(&link)).await?;
        self.held.send_replace(held);
        self.link.send_replace(Some(Arc::clone(&link)));
        let keyspace = &self.config.keyspace;
        tracing::info!(keyspace, created, "archive connected");
        Ok(link)
    }

    /// Reads again what the keyspace holds. If it is another one than before, or holds less (it was
    /// emptied or restored), then what this process remembers of it is forgotten.
    pub(super) async fn refresh(&self, link: &Link) -> Result<(), ArchiveError> {
        let version = self.held_version.load(Ordering::Acquire);
        let (meta, _) = schema::ensure(&link.driver, &self.config, new_id).await?;
        let is_other = {
            let mut known = lock(&link.meta);
            let is_other = known.id != meta.id;
            *known = meta.clone();
            is_other
        };
        let there = read_held(link).await?;
        Box::pin(self.refresh_erasures(link)).await?;
        let is_less = |mine: &HeldByStream| {
            mine.iter().any(|(stream, held)| {
                let has = |from, to| {
                    there
                        .get(stream)
                        .is_some_and(|there| there.covers(Seq::new(from).just_before(), to))
                };
                !held
                    .ranges()
                    .iter()
                    .all(|(from, to)| has(*from, Seq::new(*to)))
            })
        };
        // A write of this process may have come between; the next look sees both.
        if self.held_version.load(Ordering::Acquire) != version && !is_other {
            return Ok(());
        }
        if is_other || is_less(&self.held.borrow()) {
            tracing::error!(
                keyspace = self.config.keyspace,
                archive = meta.id,
                "the keyspace was emptied or restored: filling it again from what the streams have"
            );
            *lock(&self.writer) = Writer::default();
        }
        self.held.send_if_modified(|held| {
            let changed = *held != there;
            *held = there;
            changed
        });
        Ok(())
    }
}

/// Connects in the end, and looks what others archived, as long as somebody uses the archive. Tells
/// `first` how the first try ended.
pub(super) async fn follow(
    cassandra: std::sync::Weak<Cassandra>,
    first: oneshot::Sender<Result<(), ArchiveError>>,
) {
    let mut first = Some(first);
    let mut warned = None::<Instant>;
    loop {
        let Some(cassandra) = cassandra.upgrade() else {
            return;
        };
        let (pause, looked) = match cassandra.link() {
            Err(_) => {
                let connected = cassandra.connect().await.map(drop);
                if let Err(error) = &connected {
                    lock(&cassandra.trouble).clone_from(&error.reason);
                }
                if let Some(first) = first.take()
                    && first.send(connected.clone()).is_err()
                {
                    tracing::debug!("nobody waits for the archive any more");
                }
                (CONNECT_RETRY, connected)
            }
            Ok(link) => (POLL_EVERY, cassandra.refresh(&link).await),
        };
        match looked {
            Ok(()) => {
                *lock(&cassandra.last_answer) = Some(Instant::now());
                warned = None;
            }
            Err(error) if warned.is_some_and(|at| at.elapsed() < WARN_EVERY) => {
                tracing::debug!(%error, "the archive does not answer");
            }
            Err(error) => {
                warned = Some(Instant::now());
                if error.temporary {
                    tracing::warn!(%error, "the archive does not answer; messages wait in their streams");
                } else {
                    tracing::error!(%error, "the archive cannot be used; messages wait in their streams");
                }
            }
        }
        drop(cassandra);
        tokio::time::sleep(pause).await;
    }
}
