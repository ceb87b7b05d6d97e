//! Knows: the archive in a Cassandra cluster: its connection, its identity, what it holds. Never: CQL
//! drivers (driver.rs), NATS, frames.
//!
//! A process may start while the cluster is away: until it answers, everything asked of the archive
//! is a temporary error, and messages wait in their streams.

mod config;
mod driver;
mod envelope;
mod erase;
mod follow;
mod index;
mod list;
mod pace;
mod partition;
mod read;
mod schema;
mod statements;
mod streams;
mod write;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use weir_nats::Seq;
use weir_nats::ambient::random;
use weir_nats::erasure::Matcher;
use weir_nats::guard::Known;

use crate::archive::{ArchiveError, HeldByStream};
pub use config::{CassandraConfig, CassandraTls, Password};
use driver::Driver;
use follow::follow;
use schema::Meta;
use statements::Statements;
use streams::read_streams;
use write::Writer;

/// How long a start waits for the cluster before it goes on without.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// A cluster that has not answered for so long is not well.
const WELL_WITHIN: Duration = Duration::from_secs(10);
/// After so many looks in a row without an answer the keyspace may come back as another one.
const MISSED_LOOKS_MAX: u32 = 2;
/// After a read that failed, others fail at once for so long instead of waiting as well.
const READS_REST: Duration = Duration::from_secs(1);
/// The archive in a cluster.
#[derive(Debug)]
pub struct Cassandra {
    config: CassandraConfig,
    link: watch::Sender<Option<Arc<Link>>>,
    /// Why there is no link yet.
    trouble: Mutex<String>,
    /// When the cluster answered a look last.
    last_answer: Mutex<Option<Instant>>,
    /// What became durable through here, and what others say.
    held: watch::Sender<HeldByStream>,
    /// How often `held` was changed by a write of this process.
    held_version: AtomicU64,
    writer: Mutex<Writer>,
    pace: pace::Pace,
    pages_read: AtomicU64,
    /// What no append may take.
    erasures: Mutex<Arc<Matcher>>,
    /// When the keyspace said last who it is.
    identified: Mutex<Instant>,
    /// Logs that it holds ranges of; those of the configurations that use it, so they are few.
    logs: Mutex<BTreeSet<String>>,
    /// When they were looked for last.
    scanned: Mutex<Instant>,
    /// Reads fail at once until then.
    resting_until: Mutex<Option<Instant>>,
    /// Looks in a row that found no answer.
    missed_looks: AtomicU32,
    /// How often the keyspace was found emptied or put back to an older state.
    put_backs: AtomicU64,
}

/// What there is once the cluster has answered.
#[derive(Debug)]
struct Link {
    driver: Driver,
    statements: Statements,
    meta: Mutex<Meta>,
    bucket_width: u64,
}

impl Cassandra {
    /// Connects and creates what is missing of the keyspace. If the cluster does not answer in 5 s
    /// it goes on trying by itself, and the archive is not there until then.
    ///
    /// # Errors
    /// When it can never work: wrong credentials or files, a keyspace of another version.
    pub async fn open(config: CassandraConfig) -> Result<Arc<Self>, ArchiveError> {
        let cassandra = Arc::new(Self {
            config,
            link: watch::Sender::new(None),
            trouble: Mutex::new("it was not asked yet".to_owned()),
            last_answer: Mutex::new(None),
            held: watch::Sender::new(HeldByStream::new()),
            held_version: AtomicU64::new(0),
            writer: Mutex::default(),
            pace: pace::Pace::default(),
            pages_read: AtomicU64::new(0),
            erasures: Mutex::default(),
            identified: Mutex::new(Instant::now()),
            logs: Mutex::default(),
            scanned: Mutex::new(Instant::now()),
            resting_until: Mutex::new(None),
            missed_looks: AtomicU32::new(0),
            put_backs: AtomicU64::new(0),
        });
        let (first, connected) = oneshot::channel();
        tokio::spawn(follow(Arc::downgrade(&cassandra), first));
        match tokio::time::timeout(OPEN_WITHIN, connected).await {
            Ok(Ok(Err(error))) if !error.temporary => return Err(error),
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "the archive is not there yet; messages wait in their streams");
            }
            Ok(Ok(Ok(()))) => {}
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("the archive is not there yet; messages wait in their streams");
            }
        }
        Ok(cassandra)
    }

    /// Connects once, creates what is missing, and says what it found or made.
    ///
    /// # Errors
    /// When the cluster does not answer or refuses.
    pub async fn migrate(config: CassandraConfig) -> Result<String, ArchiveError> {
        let driver = Driver::connect(&config).await?;
        let (meta, created) = schema::ensure(&driver, &config, new_id).await?;
        let done = if created { "created" } else { "is up to date" };
        Ok(format!(
            "keyspace {} {done}: schema version {}, archive {}, {} sequences a bucket",
            config.keyspace,
            schema::VERSION,
            meta.id,
            meta.bucket_width
        ))
    }

    /// The schema version of a keyspace; `None` if there is no archive in it. Changes nothing.
    ///
    /// # Errors
    /// When the cluster does not answer or refuses, or the keyspace is of another version.
    pub async fn version_at(config: &CassandraConfig) -> Result<Option<String>, ArchiveError> {
        let driver = Driver::connect(config).await?;
        let meta = schema::read_meta(&driver, &config.keyspace).await?;
        Ok(meta.map(|_| schema::VERSION.to_owned()))
    }

    /// # Errors
    /// Temporary, while the cluster has never answered.
    fn link(&self) -> Result<Arc<Link>, ArchiveError> {
        self.link.borrow().clone().ok_or_else(|| ArchiveError {
            reason: format!("not there yet: {}", lock(&self.trouble)),
            temporary: true,
        })
    }

    /// True once the cluster has answered. Before, what it holds is not known.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Why it is not connected, or was not until it was.
    #[must_use]
    pub fn trouble(&self) -> String {
        lock(&self.trouble).clone()
    }

    /// True if the cluster answered a moment ago.
    #[must_use]
    pub fn is_well(&self) -> bool {
        lock(&self.last_answer).is_some_and(|at| at.elapsed() < WELL_WITHIN)
    }

    /// Waits until the cluster has answered.
    pub async fn connected(&self) {
        // Cannot fail: the sender is here.
        drop(self.link.subscribe().wait_for(Option::is_some).await);
    }

    /// Its id; `None` while the cluster has never answered.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        let link = self.link().ok()?;
        let meta = lock(&link.meta);
        Some(meta.id.clone())
    }

    /// What it holds, now and from now on.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<HeldByStream> {
        self.held.subscribe()
    }

    /// The highest message known of each stream; nothing while the cluster has never answered.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn known(&self) -> Result<Vec<(String, Known)>, ArchiveError> {
        let Ok(link) = self.link() else {
            return Ok(Vec::new());
        };
        let streams = read_streams(&link).await?;
        Ok(streams
            .into_iter()
            .map(|stream| (stream.stream, stream.known))
            .collect())
    }

    /// Grows whenever the keyspace was found emptied or put back to an older state.
    #[must_use]
    pub fn put_backs(&self) -> u64 {
        self.put_backs.load(Ordering::Acquire)
    }

    /// True if it did not answer for so long that it may come back with less than it is known to hold:
    /// until it was looked at again, nothing that is read may be taken for whole.
    fn is_doubtful(&self) -> bool {
        self.missed_looks.load(Ordering::Acquire) >= MISSED_LOOKS_MAX
    }

    /// How many pages were read from it since it was opened.
    #[must_use]
    pub fn pages_read(&self) -> u64 {
        self.pages_read.load(Ordering::Relaxed)
    }
}

fn to_i64(seq: Seq) -> i64 {
    i64::try_from(seq.get()).unwrap_or(i64::MAX)
}

fn to_seq(value: i64) -> Seq {
    Seq::new(u64::try_from(value).unwrap_or(0))
}

fn new_id() -> String {
    data_encoding::BASE32_NOPAD
        .encode(&random::<10>())
        .to_ascii_lowercase()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
