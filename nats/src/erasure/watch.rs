//! Knows: how a process learns of orders, and how it says that they are in force in it.
//! Never: what being in force means to rooms and archives (it is told when that is done).
//!
//! The bucket is read on from where the last read ended, every 2 s, and at once when an order was
//! written. There is no consumer that could be lost with a server.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::book::{Book, Process};
use super::{ErasureError, Order, Orders};
use crate::ambient::now_ms;

/// Published by whoever wrote an order, so that it is read at once.
pub const NUDGE_SUBJECT: &str = "weir.erase";
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between looks that others cause.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Between words that the process runs, while there is no order.
const SAY_EVERY: Duration = Duration::from_secs(20);
/// A process that stops says so for this long at most.
const FORGET_WITHIN: Duration = Duration::from_secs(1);

/// Puts the orders of a process in force: rings, caches. True when nothing that they cover is
/// kept any more; else it is called again.
pub type Apply = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// Which process this is.
#[derive(Clone)]
pub struct Identity {
    /// The same each time that it runs; a KV key's token.
    pub id: String,
    /// Its machine.
    pub host: String,
    /// The archive that it fills, if it has one, and if that has answered.
    pub archive: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

/// Keeps a process's [`Orders`] as the bucket has them.
pub struct Watch {
    client: Client,
    book: Book,
    orders: Orders,
    process: Process,
    archive: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    /// The bucket's stream, as it was made: another one is read from its beginning.
    created: String,
    /// The bucket was read up to here.
    seen: u64,
    /// Orders that are not in force yet.
    has_new: bool,
    said: Option<Instant>,
    /// Times that the bucket was found to be another, or behind itself.
    resets: Arc<AtomicU64>,
}

impl Watch {
    /// Reads all orders, so that none is missed by who is served from now on.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn start(
        client: Client,
        orders: Orders,
        identity: Identity,
    ) -> Result<Self, ErasureError> {
        let book = Book::open(client.clone()).await?;
        let mut watch = Self {
            client,
            book,
            orders,
            process: Process {
                id: identity.id,
                host: identity.host,
                pid: std::process::id(),
                archive: None,
                revision: 0,
                at_ms: 0,
            },
            archive: identity.archive,
            created: String::new(),
            seen: 0,
            has_new: false,
            said: None,
            resets: Arc::default(),
        };
        watch.read().await?;
        // Nobody was served yet, so nothing is kept that they cover.
        watch.process.revision = watch.seen;
        watch.has_new = false;
        Ok(watch)
    }

    /// The bucket, for who carries orders out.
    #[must_use]
    pub fn book(&self) -> Book {
        self.book.clone()
    }

    /// Grows when the bucket was found to be another one, or to have gone back in time: orders that
    /// only an archive still has are to be written down again.
    #[must_use]
    pub fn resets(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.resets)
    }

    /// Runs until `stop`.
    pub async fn run(mut self, apply: Apply, stop: CancellationToken) {
        let mut nudges = match self.client.subscribe(NUDGE_SUBJECT).await {
            Ok(nudges) => nudges.boxed(),
            Err(error) => {
                tracing::warn!(%error, "orders of erasure are seen up to 2 s late");
                futures_util::stream::pending().boxed()
            }
        };
        loop {
            if let Err(error) = self.look(&apply).await {
                tracing::warn!(%error, "orders of erasure cannot be read; trying again");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                Some(_) = nudges.next() => tokio::time::sleep(LOOK_PAUSE).await,
            }
        }
        let forget = self.book.forget(&self.process.id);
        match tokio::time::timeout(FORGET_WITHIN, forget).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "process not taken off the list"),
            Err(_) => tracing::debug!("process not taken off the list in time"),
        }
    }

    async fn look(&mut self, apply: &Apply) -> Result<(), ErasureError> {
        for order in self.read().await? {
            tracing::info!(
                target: "audit",
                id = order.id,
                what = %order.what,
                by = order.by,
                reason = order.reason,
                "erasure is in force"
            );
        }
        if self.has_new && apply().await {
            self.has_new = false;
        }
        let is_new = !self.has_new && self.process.revision != self.seen;
        if is_new || self.said.is_none_or(|said| said.elapsed() > SAY_EVERY) {
            if !self.has_new {
                self.process.revision = self.seen;
            }
            self.process.archive = (self.archive)();
            self.process.at_ms = now_ms();
            self.book.say(&self.process).await?;
            self.said = Some(Instant::now());
        }
        Ok(())
    }

    /// Takes in what the bucket has new; returns the orders that this process did not know.
    async fn read(&mut self) -> Result<Vec<Arc<Order>>, ErasureError> {
        let state = self.book.state().await?;
        if state.created != self.created || state.last.get() < self.seen {
            if !self.created.is_empty() {
                tracing::warn!("the bucket weir is another one, or went back in time");
            }
            self.created = state.created;
            self.seen = 0;
            self.resets.fetch_add(1, Ordering::AcqRel);
        }
        let written = self.book.orders_after(self.seen).await?;
        let newest = written.iter().map(|written| written.revision).max();
        let new = self
            .orders
            .add(written.into_iter().map(|written| written.order));
        self.seen = self.seen.max(newest.unwrap_or(0));
        self.has_new |= !new.is_empty();
        Ok(new)
    }
}
