//! Knows: how a cluster is reached in the end, and what it holds looked at again and again. Never: rows.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use weir_nats::Seq;

use super::driver::Driver;
use super::statements::Statements;
use super::streams::{read_held, read_held_of};
use super::write::Writer;
use super::{Cassandra, Link, lock, new_id, schema};
use crate::archive::{ArchiveError, HeldByStream};

/// Between tries to reach a cluster that never answered yet.
const CONNECT_RETRY: Duration = Duration::from_secs(1);
/// Between looks at what other processes archived.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Between questions who the keyspace is while it holds what it held.
const IDENTIFY_EVERY: Duration = Duration::from_secs(5);
/// Between looks for logs that another process has begun.
const SCAN_EVERY: Duration = Duration::from_secs(5);
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
        let held = self.scan_held(&link).await?;
        Box::pin(self.refresh_erasures(&link)).await?;
        self.held.send_replace(held);
        *lock(&self.last_answer) = Some(Instant::now());
        self.link.send_replace(Some(Arc::clone(&link)));
        let keyspace = &self.config.keyspace;
        tracing::info!(keyspace, created, "archive connected");
        Ok(link)
    }

    /// Reads all ranges, and from them of which logs there are any.
    async fn scan_held(&self, link: &Link) -> Result<HeldByStream, ArchiveError> {
        *lock(&self.scanned) = Instant::now();
        let (held, logs) = read_held(link).await?;
        // One that a claim of this process has just begun may not be among them.
        lock(&self.logs).extend(logs);
        Ok(held)
    }

    /// Reads the ranges of the logs that are known to have any. Of others now and then, if they can be
    /// had: a scan waits for a node that stands still, and the rest must not.
    async fn look_held(&self, link: &Link) -> Result<HeldByStream, ArchiveError> {
        let logs = lock(&self.logs).clone();
        if logs.is_empty() {
            return self.scan_held(link).await;
        }
        let held = read_held_of(link, &logs).await?;
        if lock(&self.scanned).elapsed() < SCAN_EVERY {
            return Ok(held);
        }
        match self.scan_held(link).await {
            Ok(held) => Ok(held),
            Err(error) => {
                tracing::debug!(%error, "whether there are other logs is asked again");
                Ok(held)
            }
        }
    }

    /// Reads again what the keyspace holds, and the orders of erasure. If it is another one than before, or
    /// holds less (it was emptied or restored), then what this process remembers of it is forgotten.
    pub(super) async fn refresh(&self, link: &Link) -> Result<(), ArchiveError> {
        let looked = self.refresh_held(link).await;
        // Only what it holds says whether it may be read from.
        match &looked {
            Ok(()) => {
                self.missed_looks.store(0, Ordering::Release);
                *lock(&self.last_answer) = Some(Instant::now());
            }
            Err(_) => {
                self.missed_looks.fetch_add(1, Ordering::AcqRel);
            }
        }
        looked?;
        Box::pin(self.refresh_erasures(link)).await
    }

    async fn refresh_held(&self, link: &Link) -> Result<(), ArchiveError> {
        let version = self.held_version.load(Ordering::Acquire);
        let mut there = self.look_held(link).await;
        // An emptied keyspace holds less, and a dropped one has no tables: asked who it is then, and now and again.
        let is_suspect = match &there {
            Ok(there) => {
                let mine = self.held.borrow();
                mine.is_empty() || !has_all(there, &mine)
            }
            Err(error) if error.temporary => return Err(error.clone()),
            Err(_) => true,
        };
        let mut is_other = false;
        if is_suspect || lock(&self.identified).elapsed() >= IDENTIFY_EVERY {
            is_other = self.identify(link).await?;
            if is_other || there.is_err() {
                // Ranges are claimed for an identity.
                there = self.scan_held(link).await;
            }
        }
        let there = there?;
        // A write of this process may have come between; the next look sees both.
        if self.held_version.load(Ordering::Acquire) != version && !is_other {
            return Ok(());
        }
        if is_other || !has_all(&there, &self.held.borrow()) {
            tracing::error!(
                keyspace = self.config.keyspace,
                archive = lock(&link.meta).id,
                "the keyspace was emptied or restored: filling it again from what the streams have"
            );
            *lock(&self.writer) = Writer::default();
            self.put_backs.fetch_add(1, Ordering::AcqRel);
        }
        self.held.send_if_modified(|held| {
            let changed = *held != there;
            *held = there;
            changed
        });
        Ok(())
    }

    /// Asks the keyspace who it is, and makes what is missing of it. True if it is another one than before.
    async fn identify(&self, link: &Link) -> Result<bool, ArchiveError> {
        let keyspace = &self.config.keyspace;
        let meta = match schema::read_identity(&link.driver, keyspace).await {
            Ok(Some(meta)) => meta,
            Err(error) if error.temporary => return Err(error),
            // Emptied, or without tables.
            Ok(None) | Err(_) => {
                let ensured = schema::ensure(&link.driver, &self.config, new_id).await?;
                ensured.0
            }
        };
        *lock(&self.identified) = Instant::now();
        let mut known = lock(&link.meta);
        let is_other = known.id != meta.id;
        *known = meta;
        Ok(is_other)
    }
}

/// True if `there` covers all that is held by `mine`.
fn has_all(there: &HeldByStream, mine: &HeldByStream) -> bool {
    mine.iter().all(|(stream, held)| {
        held.ranges().iter().all(|(from, to)| {
            there
                .get(stream)
                .is_some_and(|there| there.covers(Seq::new(*from).just_before(), Seq::new(*to)))
        })
    })
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
            Ok(()) => warned = None,
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
