//! Knows: how a process learns of orders and when it may serve again after it was cut off from NATS. Never: what
//! carrying an order out is (it is told when that is done).
//!
//! The bucket is read on from where the last read ended: at once when an order was written, at once when NATS is back,
//! and every second. There is no consumer that could be lost with a server. From the moment that NATS is back until
//! that read, and what it found, are done, nobody is served ([`Revocations::hold`]).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::book::{Book, BookError};
use super::kick::Kicker;
use super::{ENDS_KEPT, Order, Revocations, What};
use crate::connect::{Link, LinkEvent, Links};

/// Published by whoever wrote an order, so that it is read at once; with a reply subject, each process answers there
/// what it did.
pub const NUDGE_SUBJECT: &str = "weir.ordered";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between tries while the bucket does not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Between looks for what is over.
const CLEAN_EVERY: Duration = Duration::from_secs(600);
/// For the answer about connections at nats-servers.
const KICKED_WITHIN: Duration = Duration::from_secs(2);
/// An order may be read a moment before its nudge comes.
const UNSAID_FOR: Duration = Duration::from_secs(1);
/// Nudges that wait for the same look.
const NUDGES_MAX: usize = 256;

/// What carrying orders out did in one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Which process, as [`Process`](crate::erasure::book::Process) has it.
    pub process: String,
    /// Sockets that it closed.
    pub closed: u64,
    /// Subscriptions of other sockets that it ended.
    pub unsubscribed: u64,
    /// Connections at nats-servers that it ended.
    pub native: u64,
}

/// How many connections at nats-servers were ended, once that is known.
type Kicked = Option<oneshot::Receiver<u64>>;

/// Carries new orders out among the sockets of this process; returns when no socket that they are about is served any
/// more. `true`: so much was missed that all clients have to connect again.
pub type Apply =
    Arc<dyn Fn(Vec<Order>, bool) -> Pin<Box<dyn Future<Output = Done> + Send>> + Send + Sync>;

/// Keeps a process's [`Revocations`] as the bucket has them, and carries orders out.
pub struct Watch {
    links: Links,
    book: Book,
    revocations: Revocations,
    process: String,
    kicker: Option<Kicker>,
    /// The bucket's stream, as it was made: another one is read from its beginning.
    created: String,
    /// The bucket was read up to here.
    seen: u64,
    /// Read and not carried out yet.
    pending: Vec<Order>,
    /// Revocations of before the start: nobody is connected here yet, but at nats-servers somebody may be.
    of_before: Vec<Order>,
    /// What was done and nobody asked about: who asks a moment later is told.
    unsaid: Option<(Instant, Done, Kicked)>,
    has_failed: bool,
    /// The bucket was another one or behind itself: what it lost is to be written down again.
    is_reset: bool,
    read_at: Instant,
    cleaned_at: Instant,
}

impl Watch {
    /// Reads all orders, so that no token that is revoked opens anything from now on.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn start(
        links: &Links,
        revocations: Revocations,
        process: String,
    ) -> Result<Self, BookError> {
        let connection = links.live_lost();
        let mut watch = Self {
            links: links.clone(),
            book: Book::open(links.live.clone()).await?,
            revocations,
            process,
            kicker: None,
            created: String::new(),
            seen: 0,
            pending: Vec::new(),
            of_before: Vec::new(),
            unsaid: None,
            has_failed: false,
            is_reset: false,
            read_at: Instant::now(),
            cleaned_at: Instant::now(),
        };
        watch.revocations.watches(links);
        watch.read().await?;
        watch.revocations.is_read(connection);
        Ok(watch)
    }

    /// The same, that also ends connections at nats-servers.
    #[must_use]
    pub fn with_kicker(self, kicker: Kicker) -> Self {
        Self {
            kicker: Some(kicker),
            ..self
        }
    }

    /// The bucket, for who gives orders.
    #[must_use]
    pub fn book(&self) -> Book {
        self.book.clone()
    }

    /// Runs until `stop`. `events` began before [`Watch::start`].
    pub async fn run(
        mut self,
        mut events: broadcast::Receiver<(Link, LinkEvent)>,
        apply: Apply,
        stop: CancellationToken,
    ) {
        let mut nudges = match self.links.live.subscribe(NUDGE_SUBJECT).await {
            Ok(nudges) => nudges.boxed(),
            Err(error) => {
                tracing::warn!(%error, "orders are seen up to a second late");
                futures_util::stream::pending().boxed()
            }
        };
        let mut asked: Vec<Message> = Vec::new();
        let mut pause = Duration::ZERO;
        loop {
            let is_due = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = events.recv() => match event {
                    Ok((Link::Live, LinkEvent::Connected)) | Err(RecvError::Lagged(_)) => true,
                    Ok(_) => false,
                    Err(RecvError::Closed) => return,
                },
                Some(nudge) = nudges.next() => {
                    if asked.len() < NUDGES_MAX {
                        asked.push(nudge);
                    }
                    true
                }
                () = tokio::time::sleep(pause) => true,
            };
            if !is_due {
                continue;
            }
            // A read that hangs on a connection that was lost is given up as soon as there is another one.
            let looked = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = reconnected(&mut events) => {
                    pause = Duration::ZERO;
                    continue;
                }
                looked = self.look(&apply) => looked,
            };
            pause = match looked {
                Ok((done, kicked)) => {
                    self.has_failed = false;
                    self.answer(std::mem::take(&mut asked), done, kicked);
                    LOOK_EVERY
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.has_failed, true) {
                        tracing::warn!(%error, "orders about who is connected cannot be read; trying again");
                    }
                    RETRY_PAUSE
                }
            };
        }
    }

    /// Reads and carries out. Given up in the middle, it is done again from there.
    async fn look(&mut self, apply: &Apply) -> Result<(Done, Kicked), BookError> {
        let connection = self.links.live_lost();
        let is_live = self.links.is_live();
        let away = self.read_at.elapsed();
        self.read().await?;
        let has_missed = away > ENDS_KEPT;
        let mut done = Done {
            process: self.process.clone(),
            ..Done::default()
        };
        let mut kicked = None;
        if !self.pending.is_empty() || has_missed {
            if has_missed {
                tracing::warn!(
                    ?away,
                    "cut off for so long that clients have to connect again"
                );
            }
            let orders = self.pending.clone();
            done = Done {
                process: self.process.clone(),
                ..apply(orders.clone(), has_missed).await
            };
            kicked = self.kicker.as_ref().and_then(|kicker| kicker.take(&orders));
            for order in &orders {
                tracing::info!(
                    target: "audit",
                    what = %order.what,
                    by = order.by,
                    reason = order.reason,
                    given_at_ms = order.at_ms,
                    closed = done.closed,
                    unsubscribed = done.unsubscribed,
                    "order is carried out"
                );
            }
            self.pending.clear();
        }
        let of_before = std::mem::take(&mut self.of_before);
        if let Some(kicker) = &self.kicker
            && kicker.take(&of_before).is_some()
        {
            tracing::debug!(
                orders = of_before.len(),
                "looking for who is connected at nats-servers"
            );
        }
        self.read_at = Instant::now();
        if is_live {
            self.revocations.is_read(connection);
        }
        self.write_again().await?;
        if self.cleaned_at.elapsed() > CLEAN_EVERY {
            self.cleaned_at = Instant::now();
            self.revocations.add([]);
            let gone = self.book.clean().await?;
            tracing::debug!(gone, "orders that are over were taken out");
        }
        Ok((done, kicked))
    }

    /// Takes in what the bucket has new.
    async fn read(&mut self) -> Result<(), BookError> {
        let state = self.book.state().await?;
        let is_first = self.created.is_empty();
        if state.created != self.created || state.last.get() < self.seen {
            if !is_first {
                tracing::warn!("the bucket weir is another one, or went back in time");
                self.is_reset = true;
            }
            self.created = state.created;
            self.seen = 0;
        }
        let (written, newest) = self.book.after(self.seen).await?;
        self.seen = self.seen.max(newest);
        if written.is_empty() {
            return Ok(());
        }
        let now = crate::ambient::now_ms();
        let orders = written.into_iter().map(|written| written.order);
        let new: Vec<Order> = orders.filter(|order| !order.is_over(now)).collect();
        self.revocations.add(&new);
        if is_first {
            let is_kept = |order: &Order| matches!(order.what, What::Revoke(_));
            self.of_before.extend(new.into_iter().filter(is_kept));
        } else {
            self.pending.extend(new);
        }
        Ok(())
    }

    /// What a bucket that was lost had, and this process still knows.
    async fn write_again(&mut self) -> Result<(), BookError> {
        if self.is_reset {
            for order in self.revocations.all() {
                self.book.write(order).await?;
            }
            self.is_reset = false;
        }
        Ok(())
    }

    /// Tells who asked, as the user that may do nothing but answer.
    fn answer(&mut self, asked: Vec<Message>, mut done: Done, mut kicked: Kicked) {
        if let Some((at, before, of_before)) = self.unsaid.take()
            && at.elapsed() < UNSAID_FOR
        {
            done.closed += before.closed;
            done.unsubscribed += before.unsubscribed;
            kicked = kicked.or(of_before);
        }
        let replies = asked.into_iter().filter_map(|asked| asked.reply);
        let replies: Vec<_> = replies
            .filter(|reply| reply.starts_with("_INBOX.") && !reply.contains(['*', '>']))
            .collect();
        if replies.is_empty() {
            if done.closed + done.unsubscribed > 0 || kicked.is_some() {
                self.unsaid = Some((Instant::now(), done, kicked));
            }
            return;
        }
        let door = self.links.door.clone();
        // It ends by itself, in seconds.
        tokio::spawn(async move {
            if let Some(kicked) = kicked
                && let Ok(Ok(native)) = tokio::time::timeout(KICKED_WITHIN, kicked).await
            {
                done.native = native;
            }
            let answer = crate::bucket::json(&done);
            for reply in replies {
                if let Err(error) = door.publish(reply, answer.clone()).await {
                    tracing::debug!(%error, "what was done is not told");
                }
            }
        });
    }
}

/// Waits for the next connection.
async fn reconnected(events: &mut broadcast::Receiver<(Link, LinkEvent)>) {
    loop {
        match events.recv().await {
            Ok((Link::Live, LinkEvent::Connected)) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
