//! Knows: what an archive can do, whichever it is. Never: SQL, NATS.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weir_nats::erasure::streams::covers_stranger;
use weir_nats::erasure::{Matcher, Order, What};
use weir_nats::guard::Known;
use weir_nats::message::header;
use weir_nats::placement::Generation;
use weir_nats::{Author, Door, Message, RoomName, Seq};

use crate::cassandra::{Cassandra, CassandraConfig};
use crate::held::Held;
use crate::sqlite::{EraseCursor, Sqlite};

/// Between the steps of an erasure, so that the worker gets its turn.
const STEP_PAUSE: Duration = Duration::from_millis(2);

/// The age limit of a room: rows stored before are too old; `None` keeps all.
pub type OldestMs = Arc<dyn Fn(&RoomName) -> Option<i64> + Send + Sync>;

/// What the archive holds of each stream.
pub type HeldByStream = HashMap<String, Held>;

/// The archive did not do it. Nothing of what was asked happened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("archive: {reason}")]
pub struct ArchiveError {
    /// What went wrong and, where known, what to do.
    pub reason: String,
    /// It may work later: locked, full, gone for a moment.
    pub temporary: bool,
}

/// Rows of one stream that become durable together with what they prove.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The log.
    pub log: String,
    /// The slot.
    pub slot: u16,
    /// The stream, its epoch and where it begins.
    pub generation: Generation,
    /// Messages and their rooms, by offset.
    pub rows: Vec<(RoomName, Message)>,
    /// What could not become a row.
    pub refused: Vec<Quarantined>,
    /// Ranges that are held whole once this is durable.
    pub held: Held,
    /// When the stream was created, as the server spells it.
    pub created: String,
}

/// A message that is no room's.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// Its sequence.
    pub seq: Seq,
    /// Its subject.
    pub subject: String,
    /// Its headers, one `Name: value` a line.
    pub headers: String,
    /// Its payload.
    pub data: bytes::Bytes,
    /// Why it is here.
    pub reason: String,
}

/// What an append came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Rows that were not there before.
    pub rows: u64,
    /// Messages that could not become a row and went into quarantine instead.
    pub refused: u64,
    /// Messages that an order of erasure covers, so they are not kept.
    pub erased: u64,
    /// Offsets at which another message was archived before: the log went back in time.
    pub conflicts: Vec<Seq>,
}

/// Which rows to read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PageQuery {
    /// The log.
    pub log: String,
    /// The room.
    pub room: RoomName,
    /// Exclusive lower end.
    pub after: Seq,
    /// Inclusive upper end.
    pub up_to: Seq,
    /// Newest first.
    pub reverse: bool,
    /// Messages at most.
    pub max_messages: u32,
    /// Bytes of payloads at most; one message is always returned.
    pub max_bytes: u32,
}

/// Rows that were read.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// In the order asked for.
    pub messages: Vec<Arc<Message>>,
    /// More rows lie between the last of these and the end of the query.
    pub more: bool,
}

/// Rows that were counted, not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many, at most what was asked for.
    pub messages: u64,
    /// The oldest offset of those that were counted.
    pub oldest: Option<Seq>,
}

/// An order of erasure that an archive has on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// The order.
    pub order: Order,
    /// Rows erased so far.
    pub erased: u64,
    /// When it was carried out, in milliseconds since 1970.
    pub done_ms: Option<i64>,
}

/// What one step of expiry came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Rows that left.
    pub rows: u64,
    /// Where the next step goes on; `None` at the end.
    pub next: Option<i64>,
}

/// A place that keeps rooms for ever. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Archive {
    /// One file on this machine.
    Sqlite(Arc<Sqlite>),
    /// A keyspace in a cluster.
    Cassandra(Arc<Cassandra>),
}

impl Archive {
    /// Opens or creates an SQLite archive.
    ///
    /// # Errors
    /// When the file cannot be opened, is locked, or is of a newer version.
    pub async fn sqlite(path: &Path) -> Result<Self, ArchiveError> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || Sqlite::open(&path)).await;
        Ok(Self::Sqlite(Arc::new(opened.map_err(panicked)??)))
    }

    /// Opens an archive in Cassandra, and creates what is missing of its keyspace. If the cluster does
    /// not answer within seconds, the archive is there as soon as it does.
    ///
    /// # Errors
    /// When it can never work: credentials, files, or a keyspace of another version.
    pub async fn cassandra(config: CassandraConfig) -> Result<Self, ArchiveError> {
        Ok(Self::Cassandra(Cassandra::open(config).await?))
    }

    /// Its id, made when it was created; `None` while a cluster has never answered.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        match self {
            Self::Sqlite(sqlite) => Some(sqlite.id().to_owned()),
            Self::Cassandra(cassandra) => cassandra.id(),
        }
    }

    /// False while it has never answered, so that nobody knows what it holds.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match self {
            Self::Sqlite(_) => true,
            Self::Cassandra(cassandra) => cassandra.is_connected(),
        }
    }

    /// False if it did not answer for a while, so that another process may do better.
    #[must_use]
    pub fn is_well(&self) -> bool {
        match self {
            Self::Sqlite(_) => true,
            Self::Cassandra(cassandra) => cassandra.is_well(),
        }
    }

    /// Grows whenever it was found emptied or put back to an older state, while it was open.
    #[must_use]
    pub fn put_backs(&self) -> u64 {
        match self {
            // A file that is open cannot be another one.
            Self::Sqlite(_) => 0,
            Self::Cassandra(cassandra) => cassandra.put_backs(),
        }
    }

    /// Why it is not connected.
    #[must_use]
    pub fn trouble(&self) -> String {
        match self {
            Self::Sqlite(_) => String::new(),
            Self::Cassandra(cassandra) => cassandra.trouble(),
        }
    }

    /// Waits until it has answered.
    pub async fn connected(&self) {
        if let Self::Cassandra(cassandra) = self {
            cassandra.connected().await;
        }
    }

    /// What it holds, now and from now on.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<HeldByStream> {
        match self {
            Self::Sqlite(sqlite) => sqlite.held(),
            Self::Cassandra(cassandra) => cassandra.held(),
        }
    }

    /// The highest message known of each stream, for the epoch guard.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn known(&self) -> Result<Vec<(String, Known)>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                let sqlite = Arc::clone(sqlite);
                tokio::task::spawn_blocking(move || sqlite.known())
                    .await
                    .map_err(panicked)?
            }
            Self::Cassandra(cassandra) => cassandra.known().await,
        }
    }

    /// Makes a batch durable.
    ///
    /// # Errors
    /// When nothing of it was written.
    pub async fn append(&self, batch: Batch) -> Result<Appended, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                let sqlite = Arc::clone(sqlite);
                tokio::task::spawn_blocking(move || sqlite.append(&batch))
                    .await
                    .map_err(panicked)?
            }
            Self::Cassandra(cassandra) => cassandra.append(&batch).await,
        }
    }

    /// Reads rows of a room.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn page(&self, query: PageQuery) -> Result<Rows, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => read(sqlite, move |sqlite| sqlite.page(&query)).await,
            Self::Cassandra(cassandra) => cassandra.page(&query).await,
        }
    }

    /// The newest offset of a room that was stored before `time_ms` (milliseconds since 1970).
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn older_than(
        &self,
        log: String,
        room: RoomName,
        time_ms: i64,
    ) -> Result<Option<Seq>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                read(sqlite, move |sqlite| {
                    sqlite.older_than(&log, &room, time_ms)
                })
                .await
            }
            Self::Cassandra(cassandra) => cassandra.older_than(&log, &room, time_ms).await,
        }
    }

    /// Counts the newest rows of a room in (`after`, `up_to`], at most `max_messages`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn count(
        &self,
        log: String,
        room: RoomName,
        (after, up_to): (Seq, Seq),
        max_messages: u64,
    ) -> Result<Counted, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                read(sqlite, move |sqlite| {
                    sqlite.count(&log, &room, (after, up_to), max_messages)
                })
                .await
            }
            Self::Cassandra(cassandra) => {
                let range = (after, up_to);
                cassandra.count(&log, &room, range, max_messages).await
            }
        }
    }

    /// How many pages were read from it since it was opened.
    #[must_use]
    pub fn pages_read(&self) -> u64 {
        match self {
            Self::Sqlite(sqlite) => sqlite.pages_read(),
            Self::Cassandra(cassandra) => cassandra.pages_read(),
        }
    }

    /// The orders of erasure on record, oldest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn erasures(&self) -> Result<Vec<Erasure>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => read(sqlite, Sqlite::erasures).await,
            Self::Cassandra(cassandra) => cassandra.erasures().await,
        }
    }

    /// How many rows there are of a room or user now; `None` where counting is as much work as erasing.
    ///
    /// # Errors
    /// When they cannot be counted.
    pub async fn erasable(&self, what: What) -> Result<Option<u64>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                let count = read(sqlite, move |sqlite| sqlite.erasable(&what)).await?;
                Ok(Some(count))
            }
            Self::Cassandra(_) => Ok(None),
        }
    }

    /// Takes orders of erasure down, from when on nothing that they cover is appended.
    ///
    /// # Errors
    /// When they were not written.
    pub async fn record_erasures(&self, orders: Vec<Order>) -> Result<(), ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                blocking(sqlite, move |sqlite| sqlite.record_erasures(&orders)).await
            }
            Self::Cassandra(cassandra) => cassandra.record_erasures(&orders).await,
        }
    }

    /// Takes an order down and carries it out, in small steps. `progress` is told of rows as they go.
    /// Done once more, it does the rest, or what came back.
    ///
    /// # Errors
    /// When it is not finished; what was erased stays erased.
    pub async fn erase(
        &self,
        order: &Order,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<(), ArchiveError> {
        self.record_erasures(vec![order.clone()]).await?;
        match self {
            Self::Sqlite(sqlite) => {
                let mut cursor = EraseCursor::default();
                while cursor != EraseCursor::Over {
                    let order = order.clone();
                    let step = blocking(sqlite, move |sqlite| {
                        let rows = sqlite.erase_step(&order, &mut cursor)?;
                        Ok((rows, cursor))
                    });
                    let (rows, next) = step.await?;
                    cursor = next;
                    progress(rows);
                    tokio::time::sleep(STEP_PAUSE).await;
                }
                let order = order.clone();
                blocking(sqlite, move |sqlite| sqlite.erase_finish(&order)).await
            }
            Self::Cassandra(cassandra) => cassandra.erase(order, &progress).await,
        }
    }

    /// What is left to whoever runs the archive before no file has an erased byte; empty if nothing.
    #[must_use]
    pub const fn left_to_do(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "",
            Self::Cassandra(_) => {
                "on every node: nodetool flush, nodetool garbagecollect or compact, and a turned-over commit log; \
                 until then its files have what was erased (docs/erasure.md)"
            }
        }
    }

    /// True if rows and what the archive holds become durable together, so that whoever has seen the
    /// one has seen the other.
    #[must_use]
    pub const fn is_transactional(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    /// Deletes rows of some rooms that are older than `oldest_ms` says (milliseconds since 1970),
    /// behind where the last step ended (0 at first).
    ///
    /// # Errors
    /// When the step was not done.
    pub async fn expire_step(
        &self,
        after: i64,
        oldest_ms: OldestMs,
    ) -> Result<Expired, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                blocking(sqlite, move |sqlite| sqlite.expire_step(after, &*oldest_ms)).await
            }
            // Rows are not deleted there: docs/erasure.md.
            Self::Cassandra(_) => Ok(Expired::default()),
        }
    }

    /// Up to which offset a room has lost rows by age; zero if none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn expired_to(&self, log: String, room: RoomName) -> Result<Seq, ArchiveError> {
        match self {
            // The usual case, without a turn at the file.
            Self::Sqlite(sqlite) if !sqlite.has_expired() => Ok(Seq::ZERO),
            Self::Sqlite(sqlite) => {
                read(sqlite, move |sqlite| sqlite.expired_to(&log, &room)).await
            }
            Self::Cassandra(_) => Ok(Seq::ZERO),
        }
    }

    /// Up to which offset any room of a log has lost rows by age; zero if none. Another archive that gets the rows may
    /// claim to hold a log whole only above it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn any_expired_to(&self, log: String) -> Result<Seq, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => read(sqlite, move |sqlite| sqlite.any_expired_to(&log)).await,
            Self::Cassandra(_) => Ok(Seq::ZERO),
        }
    }

    /// The offset under which a message id was archived in a room.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn find(
        &self,
        room: RoomName,
        id: String,
        after: Seq,
    ) -> Result<Option<Seq>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                let sqlite = Arc::clone(sqlite);
                tokio::task::spawn_blocking(move || sqlite.find(&room, &id, after))
                    .await
                    .map_err(panicked)?
            }
            Self::Cassandra(cassandra) => cassandra.find(&room, &id, after).await,
        }
    }
}

impl Quarantined {
    /// True if an order covers it.
    pub(crate) fn is_erased(&self, matcher: &Matcher) -> bool {
        let user = user_of(&self.headers);
        matcher
            .all()
            .any(|order| covers_stranger(order, &self.subject, user, self.seq, i64::MIN))
    }

    /// A message that is a room's and that the archive does not take as a row.
    #[must_use]
    pub fn of_row(
        log: &str,
        room: &RoomName,
        message: &Message,
        error: &dyn std::fmt::Display,
    ) -> Self {
        let nobody = Author {
            user: String::new(),
            client: String::new(),
            info: None,
            door: Door::Socket,
        };
        let author = message.author.as_ref().unwrap_or(&nobody);
        let headers = weir_nats::message::stamp(room, author, &message.tags, &message.id);
        Self {
            seq: message.seq,
            subject: room.stored_subject(log),
            headers: headers_text(&headers),
            data: message.data.clone(),
            reason: error.to_string(),
        }
    }
}

/// The author in headers as quarantine keeps them, escaped as there.
pub(crate) fn user_of(headers: &str) -> &str {
    let mut lines = headers.lines().rev();
    let found = lines.find_map(|line| line.strip_prefix(header::USER)?.strip_prefix(": "));
    found.unwrap_or_default()
}

/// Headers as quarantine keeps them.
pub(crate) fn headers_text(headers: &async_nats::HeaderMap) -> String {
    let lines = headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}\n")));
    lines.collect()
}

fn panicked(error: tokio::task::JoinError) -> ArchiveError {
    ArchiveError {
        reason: format!("its task failed: {error}"),
        temporary: true,
    }
}

/// Writes on a blocking thread.
async fn blocking<T: Send + 'static>(
    sqlite: &Arc<Sqlite>,
    work: impl FnOnce(&Sqlite) -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    let sqlite = Arc::clone(sqlite);
    let written = tokio::task::spawn_blocking(move || work(&sqlite));
    written.await.map_err(panicked)?
}

/// Reads on a blocking thread. Turns are waited for here and not there, as the writer needs one.
pub(crate) async fn read<T: Send + 'static>(
    sqlite: &Arc<Sqlite>,
    work: impl FnOnce(&Sqlite) -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    let turn = Arc::clone(sqlite.reads()).acquire_owned().await;
    let sqlite = Arc::clone(sqlite);
    let read = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(&sqlite)
    });
    read.await.map_err(panicked)?
}
