//! Knows: what an archive can do, whichever it is: open, write, read. What leaves it is in leave.rs, how it is walked
//! whole in listing.rs. Never: SQL, NATS.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use weir_nats::guard::Known;
use weir_nats::{RoomName, Seq};

use crate::cassandra::{Cassandra, CassandraConfig};
use crate::held::Held;
use crate::sqlite::Sqlite;

mod batch;
mod leave;
mod query;

pub use batch::{Appended, Batch, Quarantined};
pub(crate) use batch::{headers_text, user_of};
pub use leave::{Erasure, Expired, OldestMs};
pub use query::{Counted, PageQuery, Rows};

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

    /// Says that a stream is archived from here on, after another process may have: what it wrote and did not
    /// claim is looked for before anything is written.
    pub fn take_over(&self, stream: &str) {
        if let Self::Cassandra(cassandra) = self {
            cassandra.take_over(stream);
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

    /// The newest offset of a room that was stored before `time_ms` (milliseconds since 1970); the room
    /// is in this slot of its log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn older_than(
        &self,
        (log, slot): (String, u16),
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
            Self::Cassandra(cassandra) => cassandra.older_than((&log, slot), &room, time_ms).await,
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

    /// True if rows and what the archive holds become durable together, so that whoever has seen the
    /// one has seen the other.
    #[must_use]
    pub const fn is_transactional(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    /// The offset under which a message id was archived in a room.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn find(
        &self,
        log: String,
        room: RoomName,
        id: String,
        after: Seq,
    ) -> Result<Option<Seq>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                let sqlite = Arc::clone(sqlite);
                tokio::task::spawn_blocking(move || sqlite.find(&log, &room, &id, after))
                    .await
                    .map_err(panicked)?
            }
            Self::Cassandra(cassandra) => cassandra.find(&log, &room, &id, after).await,
        }
    }
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
