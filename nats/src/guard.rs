//! Knows: when streams are compared with what is known of them, and when publishes may be handed
//! over. Never: rooms, clients.
//!
//! The gate is open only while every stream was compared since the last
//! connect, so that nothing is published into a stream that went back in time.

mod fence;
mod known;
mod record;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::context::DeleteStreamErrorKind;
use async_nats::jetstream::{Context, ErrorCode};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use self::known::Knowledge;
pub use self::known::{Finding, Known, compare};
use self::record::Record;
use crate::connect::{Link, LinkEvent, Links};
use crate::erasure::Orders;
use crate::placement::{PlacementRecord, Placements};
use crate::position::Seq;
use crate::replay::{Replay, ReplayError};
use crate::stream::{DeclareError, LogConfig, context};

/// Between comparisons while nothing happens.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Nothing was compared yet, on no connection.
const NEVER: u64 = u64::MAX;

/// Why the guard could not start or finish.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// JetStream refused a stream or the bucket.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// A stream could not be read.
    #[error(transparent)]
    Read(#[from] ReplayError),
    /// The bucket `weir` could not be read or written.
    #[error("the KV bucket `weir`: {0}")]
    Kv(String),
    /// A message could not be moved into the next generation.
    #[error("moving messages of {stream}: {reason}")]
    Move {
        /// The stream that lost something.
        stream: String,
        /// What NATS said.
        reason: String,
    },
    /// Someone else changed the placement meanwhile; the next comparison takes it up.
    #[error("another process changed the placement of the log {0}")]
    Raced(String),
}

/// The placement of a log as it is written down, for those who only look; empty if there is none. Changes nothing.
///
/// # Errors
/// When the bucket `weir` cannot be read.
pub async fn written_placement(js: &Context, log: &str) -> Result<PlacementRecord, GuardError> {
    record::written_placement(js, log).await
}

/// Watches over every stream of every log. Cheap to clone.
#[derive(Clone)]
pub struct Guard(Arc<Inner>);

struct Inner {
    links: Links,
    js: Context,
    replay: Replay,
    record: Record,
    logs: Vec<LogConfig>,
    placements: Placements,
    known: Knowledge,
    /// What archives say of streams and the streams contradict.
    claims: Mutex<HashMap<String, Known>>,
    orders: Orders,
    gate: watch::Sender<bool>,
    /// The connection on which everything was compared last.
    compared_on: AtomicU64,
    suspicion: Notify,
    suspicions: AtomicU64,
}

impl Guard {
    /// Declares the bucket and the streams, compares them with `seeds` (what the archive knows, by
    /// stream), and makes new generations where continuity cannot be proven; what `orders` cover is
    /// not taken into one. The gate is open when this returns.
    ///
    /// # Errors
    /// When JetStream is not there or refuses something; nothing was published then.
    pub async fn start(
        links: &Links,
        logs: Vec<LogConfig>,
        placements: Placements,
        seeds: Vec<(String, Known)>,
        orders: Orders,
    ) -> Result<Self, GuardError> {
        let js = context(links.live.clone());
        let replicas = logs.iter().map(|log| log.replicas).max().unwrap_or(1);
        let guard = Self(Arc::new(Inner {
            record: Record::open(js.clone(), replicas).await?,
            replay: Replay::new(links.live.clone()),
            links: links.clone(),
            js,
            logs,
            placements,
            known: Knowledge::new(seeds),
            claims: Mutex::default(),
            orders,
            gate: watch::Sender::new(false),
            compared_on: AtomicU64::new(NEVER),
            suspicion: Notify::new(),
            suspicions: AtomicU64::new(0),
        }));
        let connection = links.live_lost();
        // Several processes that start at once compare-and-set each other's placements.
        let mut races_left = 20;
        loop {
            match guard.0.compare_all().await {
                Ok(()) => break,
                Err(GuardError::Raced(_)) if races_left > 0 => races_left -= 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        guard.0.open(connection);
        Ok(guard)
    }

    /// True while publishes may be handed over.
    #[must_use]
    pub fn gate(&self) -> watch::Receiver<bool> {
        self.0.gate.subscribe()
    }

    /// True if publishes may be handed over at this moment. Unlike [`Guard::gate`] it does not lag
    /// behind a lost connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let inner = &self.0;
        *inner.gate.borrow()
            && inner.links.is_live()
            && inner.compared_on.load(Ordering::Acquire) == inner.links.live_lost()
    }

    /// Feeds what was acknowledged or read of a stream.
    pub fn saw(&self, stream: &str, known: &Known) {
        self.0.known.raise(stream, known);
    }

    /// The highest known of a stream.
    #[must_use]
    pub fn known(&self, stream: &str) -> Known {
        self.0.known.of(stream)
    }

    /// The highest sequence known of a stream.
    #[must_use]
    pub fn highest(&self, stream: &str) -> Seq {
        self.0.known.highest(stream)
    }

    /// An archive has another message at a sequence than the stream, or one above its end, so the
    /// stream went back in time. It is compared with just that, now.
    pub fn contradict(&self, stream: &str, archived: Known) {
        let claims = &self.0.claims;
        let mut claims = claims.lock().unwrap_or_else(PoisonError::into_inner);
        // The lowest says the most about what has to move.
        let is_lower = |there: &Known| archived.seq < there.seq;
        if claims.get(stream).is_none_or(is_lower) {
            claims.insert(stream.to_owned(), archived);
        }
        drop(claims);
        self.suspect(stream);
    }

    /// Closes the gate and asks for a comparison now.
    pub fn suspect(&self, stream: &str) {
        tracing::warn!(stream, "stream is suspected to have lost something");
        self.0.suspicions.fetch_add(1, Ordering::AcqRel);
        self.0.gate.send_replace(false);
        self.0.suspicion.notify_one();
    }

    /// Compares after every reconnect, on suspicion, and every 10 s, until `stop`.
    pub async fn run(
        self,
        mut events: broadcast::Receiver<(Link, LinkEvent)>,
        stop: CancellationToken,
    ) {
        let mut timer = tokio::time::interval(COMPARE_EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        timer.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => match event {
                    Ok((Link::Live, LinkEvent::Disconnected)) => {
                        self.0.gate.send_replace(false);
                    }
                    Ok((Link::Live, LinkEvent::Connected))
                    | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Ok(_) => continue,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = self.0.suspicion.notified() => {}
                _ = timer.tick() => {}
            }
            let compared = self.compare_until_open();
            tokio::select! {
                () = stop.cancelled() => return,
                () = compared => {}
            }
        }
    }

    /// Compares until it succeeds on one unbroken connection. While the gate is open already, a
    /// failure waits for the next time: it is no news about the streams.
    async fn compare_until_open(&self) {
        let inner = &self.0;
        loop {
            let connection = inner.links.live_lost();
            let suspicions = inner.suspicions.load(Ordering::Acquire);
            if inner.links.is_live() {
                match inner.compare_all().await {
                    Ok(()) => {
                        let is_unbroken = inner.links.live_lost() == connection;
                        let is_new = inner.suspicions.load(Ordering::Acquire) != suspicions;
                        if is_unbroken && !is_new {
                            return inner.open(connection);
                        }
                    }
                    Err(error) => tracing::warn!(%error, "streams could not be compared"),
                }
                if self.is_open() {
                    return;
                }
            } else {
                inner.gate.send_replace(false);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// An old generation is wholly archived: takes it off the record and deletes its stream.
    ///
    /// False if it cannot go yet: a change of generation is under way.
    ///
    /// # Errors
    /// When the bucket refuses. One that is current, or in a move that is not finished, stays.
    pub async fn retire(&self, log_name: &str, stream: &str) -> Result<bool, GuardError> {
        let inner = &self.0;
        let Some(log) = inner.logs.iter().find(|log| log.name == log_name) else {
            return Ok(false);
        };
        let (mut record, revision) = inner.record.placement(log).await?;
        let mut is_retired = false;
        for slot in &mut record.slots {
            let current = slot.generations.last().map(|g| g.stream.clone());
            if current.as_deref() != Some(stream) && slot.incident.is_none() {
                let before = slot.generations.len();
                slot.generations.retain(|g| g.stream != stream);
                is_retired |= slot.generations.len() < before;
            }
        }
        if !is_retired {
            return Ok(false);
        }
        inner.record.set_placement(log, &record, revision).await?;
        inner.placements.set(&log.name, &record);
        inner.record.forget_known(stream).await?;
        if let Err(error) = inner.js.delete_stream(stream).await
            && !matches!(error.kind(), DeleteStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
        {
            tracing::warn!(stream, %error, "old generation not deleted; delete it by hand");
        }
        Ok(true)
    }

    /// The secret under which callers' idempotency keys become ids; made once, by whoever is first.
    ///
    /// # Errors
    /// When the bucket cannot be read or written.
    pub async fn idempotency_secret(&self) -> Result<[u8; 32], GuardError> {
        self.0.record.idempotency_secret().await
    }
}

impl Inner {
    /// Everything was compared on `connection`.
    fn open(&self, connection: u64) {
        self.compared_on.store(connection, Ordering::Release);
        self.gate.send_replace(true);
    }

    async fn compare_all(&self) -> Result<(), GuardError> {
        for log in &self.logs {
            self.compare_log(log).await?;
        }
        Ok(())
    }
}
