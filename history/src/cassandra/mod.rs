//! Knows: the archive in a Cassandra cluster: its connection, its identity, what it holds. Never: CQL
//! drivers (driver.rs), NATS, frames.
//!
//! A process may start while the cluster is away: until it answers, everything asked of the archive
//! is a temporary error, and messages wait in their streams.

mod driver;
mod envelope;
mod erase;
mod list;
mod pace;
mod read;
mod schema;
mod statements;
mod write;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use weir_nats::ambient::random;
use weir_nats::erasure::Matcher;
use weir_nats::guard::Known;
use weir_nats::{Epoch, Seq};

use crate::archive::{ArchiveError, HeldByStream};
use crate::held::Held;
use driver::Driver;
use schema::Meta;
use statements::Statements;
use write::Writer;

/// How long a start waits for the cluster before it goes on without.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// Between tries to reach a cluster that never answered yet.
const CONNECT_RETRY: Duration = Duration::from_secs(1);
/// Between looks at what other processes archived.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// A cluster that has not answered for so long is not well.
const WELL_WITHIN: Duration = Duration::from_secs(10);
/// Between warnings that it still is not there, or does not answer.
const WARN_EVERY: Duration = Duration::from_secs(30);
/// After so many looks in a row without an answer the keyspace may come back as another one.
const MISSED_LOOKS_MAX: u32 = 2;
/// After a read that failed, others fail at once for so long instead of waiting as well.
const READS_REST: Duration = Duration::from_secs(1);
/// Streams that a keyspace is read to have: generations of all slots of all logs.
const STREAMS_MAX: usize = 100_000;
/// Ranges that it is read to hold.
const RANGES_MAX: usize = 1_000_000;

/// Where the cluster is and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CassandraConfig {
    /// `host:port` of some nodes; the others are found through them.
    pub nodes: Vec<String>,
    /// The keyspace: letters, digits and `_`.
    pub keyspace: String,
    /// Copies of each row in a data centre, for a keyspace that is created.
    pub replication_factor: u8,
    /// The data centre to talk to and to keep rows in; `None`: any, and the nodes' own.
    pub datacenter: Option<String>,
    /// User and password.
    pub credentials: Option<(String, Password)>,
    /// TLS to the nodes.
    pub tls: Option<CassandraTls>,
}

/// How to trust the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CassandraTls {
    /// Certificate authorities (PEM); `None`: those of this machine.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate chain and key (PEM), where nodes ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A password that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps one.
    #[must_use]
    pub fn new(password: String) -> Self {
        Self(password)
    }

    fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

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

    /// Reads again what the keyspace holds. If it is another one than before, or holds less (it was
    /// emptied or restored), then what this process remembers of it is forgotten.
    async fn refresh(&self, link: &Link) -> Result<(), ArchiveError> {
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
            self.put_backs.fetch_add(1, Ordering::AcqRel);
        }
        self.held.send_if_modified(|held| {
            let changed = *held != there;
            *held = there;
            changed
        });
        self.missed_looks.store(0, Ordering::Release);
        Ok(())
    }
}

/// Connects in the end, and looks what others archived, as long as somebody uses the archive. Tells
/// `first` how the first try ended.
async fn follow(
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
        if looked.is_err() {
            cassandra.missed_looks.fetch_add(1, Ordering::AcqRel);
        }
        match looked {
            Ok(()) => {
                *lock(&cassandra.last_answer) = Some(Instant::now());
                cassandra.missed_looks.store(0, Ordering::Release);
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

/// A stream as the keyspace knows it.
struct KnownStream {
    log: String,
    stream: String,
    slot: u16,
    epoch: Epoch,
    from: Seq,
    known: Known,
}

async fn read_streams(link: &Link) -> Result<Vec<KnownStream>, ArchiveError> {
    type Row = (
        (String, String, Option<i32>, Option<String>, Option<i64>),
        (Option<String>, Option<i64>, Option<String>, Option<i64>),
    );
    let rows = link.statements.streams(&link.driver, STREAMS_MAX).await?;
    let read = |((log, stream, slot, epoch, from), (created, seq, id, time_ms)): Row| {
        // A row whose first half is not there yet is of another process, this very moment.
        let epoch = Epoch::new(&epoch?).ok()?;
        Some(KnownStream {
            log,
            stream,
            slot: u16::try_from(slot?).ok()?,
            epoch,
            from: to_seq(from?),
            known: Known {
                created: created.unwrap_or_default(),
                seq: to_seq(seq.unwrap_or(0)),
                id: id.unwrap_or_default(),
                time_ms: time_ms.unwrap_or(0),
            },
        })
    };
    Ok(rows
        .into_iter()
        .filter_map(|(a, b, c, d, e, f, g, h, i)| read(((a, b, c, d, e), (f, g, h, i))))
        .collect())
}

async fn read_held(link: &Link) -> Result<HeldByStream, ArchiveError> {
    let rows = link.statements.held(&link.driver, RANGES_MAX).await?;
    let own = lock(&link.meta).id.clone();
    let mut held: HashMap<String, Held> = HashMap::new();
    for (archive, stream, from, to) in rows {
        if archive != own {
            continue;
        }
        held.entry(stream)
            .or_default()
            .add(to_seq(from), to_seq(to));
    }
    Ok(held)
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
