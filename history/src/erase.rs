//! Knows: how the process that fills an archive carries orders of erasure out in it, and how rows leave it by
//! age. Never: SQL, what an order covers, the streams' own erasure (that is done where the order is given).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_nats::ambient::now_ms;
use weir_nats::erasure::book::{ArchiveProgress, Book};
use weir_nats::erasure::streams::{end, is_passed};
use weir_nats::erasure::{ErasureError, Order};
use weir_nats::replay::Replay;
use weir_nats::{Orders, Seq};

use crate::archive::{Archive, ArchiveError, OldestMs};
use crate::held::Held;

/// Between looks for orders that are not carried out; a new one is seen at once.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between words on how far an order is.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// Between looks whether the archive has what the streams had at an order.
const HELD_EVERY: Duration = Duration::from_millis(100);
/// Between walks through all rooms for rows that are too old.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// Between the steps of such a walk.
const EXPIRE_PAUSE: Duration = Duration::from_millis(20);

/// Why an order is not carried out yet.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The bucket or a stream.
    #[error(transparent)]
    Nats(#[from] ErasureError),
}

/// Carries every order out in one archive.
pub struct Eraser {
    archive: Archive,
    book: Book,
    orders: Orders,
    replay: Replay,
    /// Grows when the bucket was another one, or had gone back in time.
    resets: Arc<AtomicU64>,
}

impl Eraser {
    /// Carries `orders` out in `archive`. Until [`Eraser::prepare`] has returned, nothing may be
    /// appended.
    #[must_use]
    pub fn new(
        archive: Archive,
        book: Book,
        orders: Orders,
        replay: Replay,
        resets: Arc<AtomicU64>,
    ) -> Self {
        Self {
            archive,
            book,
            orders,
            replay,
            resets,
        }
    }

    /// Brings the archive's record and the process's orders together: an archive that was emptied or
    /// restored learns what it may not take, and orders that the bucket has lost are in force. Done
    /// later for a cluster that does not answer yet, into which nothing is appended before either.
    ///
    /// # Errors
    /// When the archive does not answer.
    pub async fn prepare(&self) -> Result<(), ArchiveError> {
        if !self.archive.is_connected() {
            return Ok(());
        }
        let recorded = self.archive.erasures().await?;
        let known: HashSet<&str> = recorded.iter().map(|one| one.order.id.as_str()).collect();
        let orders = self.orders.all();
        let missing: Vec<Order> = orders
            .iter()
            .filter(|order| !known.contains(order.id.as_str()))
            .map(|order| Order::clone(order))
            .collect();
        if !missing.is_empty() {
            self.archive.record_erasures(missing).await?;
        }
        self.orders.add(recorded.into_iter().map(|one| one.order));
        Ok(())
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut changes = self.orders.changes();
        let mut settled = Settled::default();
        loop {
            let work = async {
                if let Err(error) = self.work(&mut settled).await {
                    tracing::warn!(%error, "erasure in the archive is tried again");
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = work => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn work(&self, settled: &mut Settled) -> Result<(), EraseError> {
        let Some(archive) = self.archive.id() else {
            return Ok(());
        };
        let put_backs = self.archive.put_backs();
        let resets = Some((
            self.resets.load(Ordering::Acquire),
            put_backs,
            archive.clone(),
        ));
        if settled.resets != resets {
            self.prepare().await?;
            self.restore_orders().await?;
            settled.orders = self.book.archived(&archive).await?;
            settled.resets = resets;
            settled.version = None;
        }
        let version = self.orders.version();
        if settled.version == Some(version) {
            return Ok(());
        }
        let recorded = self.archive.erasures().await?;
        let is_done = |order: &Order| {
            let mut recorded = recorded.iter();
            recorded.any(|one| one.order.id == order.id && one.done_ms.is_some())
        };
        let orders = self.orders.all();
        let open: Vec<_> = orders
            .iter()
            .filter(|order| !is_done(order) || !settled.orders.contains(&order.id))
            .collect();
        for order in &open {
            if !is_done(order) {
                self.erase(order, &archive).await?;
            }
        }
        for order in open {
            self.until_held(order).await?;
            if !self.archive.is_transactional() {
                // Another process may have appended what it took before it knew of the order.
                self.erase(order, &archive).await?;
            }
            let erased = self.erased(order).await?;
            let progress = ArchiveProgress {
                erased,
                done_ms: Some(now_ms()),
                left_to_do: self.archive.left_to_do(),
            };
            self.book
                .set_archive(&order.id, &archive, &progress)
                .await?;
            settled.orders.insert(order.id.clone());
            tracing::info!(target: "audit", id = order.id, rows = erased, "erased from the archive");
        }
        settled.version = Some(version);
        Ok(())
    }

    async fn erase(&self, order: &Order, archive: &str) -> Result<(), EraseError> {
        let erasing = self.archive.erase(order, |_| {});
        tokio::pin!(erasing);
        let mut say = tokio::time::interval(SAY_EVERY);
        loop {
            tokio::select! {
                done = &mut erasing => return Ok(done?),
                _ = say.tick() => {
                    let progress = ArchiveProgress {
                        erased: self.erased(order).await?,
                        ..ArchiveProgress::default()
                    };
                    self.book.set_archive(&order.id, archive, &progress).await?;
                }
            }
        }
    }

    async fn erased(&self, order: &Order) -> Result<u64, ArchiveError> {
        let recorded = self.archive.erasures().await?;
        let here = recorded.iter().find(|one| one.order.id == order.id);
        Ok(here.map_or(0, |one| one.erased))
    }

    /// The streams may erase only what the archive has passed: a stream that begins later, as its first
    /// messages were erased, would look trimmed, and what is missing like a hole.
    async fn until_held(&self, order: &Order) -> Result<(), EraseError> {
        for slot in order.logs.iter().flat_map(|log| &log.slots) {
            for stream in &slot.streams {
                loop {
                    let held = self.archive.held().borrow().get(stream).map(Held::end);
                    let held = held.unwrap_or(Seq::ZERO);
                    if held >= slot.up_to || held >= end(&self.replay, stream, slot.up_to).await? {
                        break;
                    }
                    // The stream may have lost its last messages.
                    let rest = self.replay.leader_has_after(stream, ">", held).await;
                    if rest.map_err(ErasureError::from)?.is_none() {
                        break;
                    }
                    tokio::time::sleep(HELD_EVERY).await;
                }
            }
        }
        Ok(())
    }

    /// Orders that the archive has on record and the bucket has lost are written there again, for
    /// processes without an archive; except those that no stream has anything left of.
    async fn restore_orders(&self) -> Result<(), EraseError> {
        let written = self.book.orders().await?;
        let known: HashSet<&str> = written.iter().map(|one| one.order.id.as_str()).collect();
        for lost in self.archive.erasures().await? {
            if !known.contains(lost.order.id.as_str())
                && !is_passed(&self.replay, &lost.order).await?
            {
                tracing::warn!(
                    id = lost.order.id,
                    "an order of erasure that the bucket weir has lost"
                );
                self.book.restore(&lost.order).await?;
            }
        }
        Ok(())
    }
}

/// What needs no second look.
#[derive(Default)]
struct Settled {
    /// Orders that the bucket says are carried out in this archive.
    orders: HashSet<String>,
    /// Of the bucket and of the archive, and which archive it is.
    resets: Option<(u64, u64, String)>,
    /// Of the orders, when all were carried out.
    version: Option<u64>,
}

/// Lets rows that are too old leave the archive, until `stop`. `oldest_ms` says what is too old.
pub async fn expire(archive: Archive, oldest_ms: OldestMs, stop: CancellationToken) {
    loop {
        let walk = async {
            let mut after = 0;
            let mut rows = 0;
            loop {
                let step = archive.expire_step(after, Arc::clone(&oldest_ms)).await?;
                rows += step.rows;
                let Some(next) = step.next else { break };
                after = next;
                tokio::time::sleep(EXPIRE_PAUSE).await;
            }
            if rows > 0 {
                tracing::info!(rows, "rows left the archive by age");
            }
            Ok::<_, ArchiveError>(())
        };
        let walked = tokio::select! {
            () = stop.cancelled() => return,
            walked = walk => walked,
        };
        if let Err(error) = walked {
            tracing::warn!(%error, "rows that are too old are looked for again later");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EXPIRE_EVERY) => {}
        }
    }
}
