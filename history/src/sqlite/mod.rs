//! Knows: the archive as one SQLite file: WAL, `synchronous = FULL`, one writer, a few readers.
//! Never: NATS, frames. Only this folder names rusqlite: write.rs appends, read.rs reads, list.rs walks all of it, erase.rs and
//! expire.rs delete.

mod erase;
mod expire;
mod list;
mod read;
mod write;

pub use erase::EraseCursor;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{Semaphore, watch};
use weir_nats::ambient::random;
use weir_nats::guard::Known;
use weir_nats::{RoomName, Seq};

use crate::archive::{ArchiveError, HeldByStream};

const SCHEMA: &str = include_str!("schema.sql");
const SCHEMA_VERSION: &str = "2";
/// What a file of version 1 needs before the schema is applied to it.
const FROM_VERSION_1: &str = "ALTER TABLE rooms ADD COLUMN expired_to INTEGER NOT NULL DEFAULT 0;";
/// How long a statement waits for another process's lock.
const BUSY_MS: u64 = 2_000;
const READERS: usize = 4;

/// One SQLite archive. All methods block.
#[derive(Debug)]
pub struct Sqlite {
    id: String,
    path: PathBuf,
    writer: Mutex<Writer>,
    readers: Vec<Mutex<Connection>>,
    next_reader: AtomicUsize,
    reads: Arc<Semaphore>,
    pages_read: AtomicU64,
    held: watch::Sender<HeldByStream>,
    /// A room has lost rows by age: reads ask up to where.
    has_expired: AtomicBool,
}

/// When a commit is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronous {
    /// Before the append returns. What Weir runs with.
    Full,
    /// At a checkpoint, some time later: a power cut takes rows that an append said were durable.
    /// Only for the test that cuts the power, which must be able to see a loss.
    Normal,
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    room_ids: HashMap<(String, RoomName), i64>,
    erasures: erase::OnRecord,
}

impl Sqlite {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// When it cannot be opened, is locked, is no archive, or is of a newer version.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        Self::open_with(path, Synchronous::Full)
    }

    /// As [`Self::open`], but not necessarily durable.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: &Path, synchronous: Synchronous) -> Result<Self, ArchiveError> {
        let error = |error: rusqlite::Error| explain(path, &error);
        let connection = connect(path, synchronous).map_err(error)?;
        let version = upgrade(&connection).map_err(error)?;
        if version != SCHEMA_VERSION {
            return Err(ArchiveError {
                reason: format!(
                    "{} has schema version {version}, this Weir knows {SCHEMA_VERSION}: \
                     run a newer Weir, or name another file in [archive] path",
                    path.display()
                ),
                temporary: false,
            });
        }
        let id = meta(&connection, "id", random_id).map_err(error)?;
        let held = read_held(&connection).map_err(error)?;
        let has_expired = Self::read_has_expired(&connection).map_err(error)?;
        let readers = (0..READERS).map(|_| connect(path, synchronous).map(Mutex::new));
        let readers = readers.collect::<Result<Vec<_>, _>>().map_err(error)?;
        Ok(Self {
            id,
            path: path.to_owned(),
            writer: Mutex::new(Writer {
                connection,
                room_ids: HashMap::new(),
                erasures: erase::OnRecord::default(),
            }),
            readers,
            next_reader: AtomicUsize::new(0),
            reads: Arc::new(Semaphore::new(READERS)),
            pages_read: AtomicU64::new(0),
            held: watch::Sender::new(held),
            has_expired: AtomicBool::new(has_expired),
        })
    }

    /// The archive's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it holds, now and from now on.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<HeldByStream> {
        self.held.subscribe()
    }

    /// The highest message known of each stream.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn known(&self) -> Result<Vec<(String, Known)>, ArchiveError> {
        let connection = self.reader();
        let mut statement = connection
            .prepare_cached("SELECT stream, seq, msg_id, time_ms, created FROM streams")
            .map_err(|error| self.explain(&error))?;
        let rows = statement.query_map([], |row| {
            let known = Known {
                created: row.get(4)?,
                seq: to_seq(row.get(1)?),
                id: row.get(2)?,
                time_ms: row.get(3)?,
            };
            Ok((row.get(0)?, known))
        });
        rows.and_then(Iterator::collect)
            .map_err(|error| self.explain(&error))
    }

    /// One permit a reader connection.
    pub(crate) fn reads(&self) -> &Arc<Semaphore> {
        &self.reads
    }

    /// Pages read since it was opened.
    #[must_use]
    pub fn pages_read(&self) -> u64 {
        self.pages_read.load(Ordering::Relaxed)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        let nth = self.next_reader.fetch_add(1, Ordering::Relaxed) % READERS;
        self.readers[nth]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn explain(&self, error: &rusqlite::Error) -> ArchiveError {
        explain(&self.path, error)
    }
}

fn read_held(connection: &Connection) -> rusqlite::Result<HeldByStream> {
    let mut all = HeldByStream::new();
    let mut statement = connection.prepare("SELECT stream, from_seq, to_seq FROM held")?;
    let rows = statement.query_map([], |row| {
        Ok((
            row.get::<_, String>(0)?,
            to_seq(row.get(1)?),
            to_seq(row.get(2)?),
        ))
    })?;
    for row in rows {
        let (stream, from, to) = row?;
        all.entry(stream).or_default().add(from, to);
    }
    Ok(all)
}

fn connect(path: &Path, synchronous: Synchronous) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_millis(BUSY_MS))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Lost no committed row in a power cut; NORMAL did (tests/it/power).
    let synchronous = match synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    // What is deleted is written over with zeros.
    connection.pragma_update(None, "secure_delete", "ON")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Makes the schema, or brings that of an older file up to it in place. Returns the file's version,
/// which is another one only if it is newer than this code: then nothing was changed. A file that
/// needs nothing is only read.
fn upgrade(connection: &Connection) -> rusqlite::Result<String> {
    if let Some(version) = version(connection)?
        && version != "1"
    {
        return Ok(version);
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let upgraded = upgrade_within(connection);
    connection.execute_batch(if upgraded.is_ok() {
        "COMMIT"
    } else {
        "ROLLBACK"
    })?;
    upgraded
}

fn upgrade_within(connection: &Connection) -> rusqlite::Result<String> {
    match version(connection)?.as_deref() {
        None => {}
        Some("1") => {
            tracing::info!("the archive gets its schema version {SCHEMA_VERSION}");
            connection.execute_batch(FROM_VERSION_1)?;
        }
        // Another process was quicker.
        Some(other) => return Ok(other.to_owned()),
    }
    connection.execute_batch(SCHEMA)?;
    connection.execute(
        "INSERT INTO meta (key, value) VALUES ('version', ?1)
         ON CONFLICT (key) DO UPDATE SET value = ?1",
        [SCHEMA_VERSION],
    )?;
    Ok(SCHEMA_VERSION.to_owned())
}

/// `None` for a file without a schema.
fn version(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let has_meta: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'meta')",
        [],
        |row| row.get(0),
    )?;
    if !has_meta {
        return Ok(None);
    }
    let found = connection.query_row("SELECT value FROM meta WHERE key = 'version'", [], |row| {
        row.get(0)
    });
    found.optional()
}

/// A key of `meta`, made if it is missing. One that is there is only read, so that an archive that another process writes to
/// is opened without waiting for it.
fn meta(
    connection: &Connection,
    key: &str,
    first: impl FnOnce() -> String,
) -> rusqlite::Result<String> {
    let read = || {
        connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
                row.get(0)
            })
            .optional()
    };
    if let Some(there) = read()? {
        return Ok(there);
    }
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO NOTHING",
        params![key, first()],
    )?;
    read()?.ok_or(rusqlite::Error::QueryReturnedNoRows)
}

fn room_id(connection: &Connection, log: &str, room: &RoomName) -> rusqlite::Result<Option<i64>> {
    room_id_checked(connection, log, room).optional()
}

fn room_id_checked(connection: &Connection, log: &str, room: &RoomName) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT id FROM rooms WHERE log = ?1 AND channel = ?2")?
        .query_row(params![log, room.channel()], |row| row.get(0))
}

fn explain(path: &Path, error: &rusqlite::Error) -> ArchiveError {
    let code = error.sqlite_error_code();
    let (temporary, hint) = match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (true, "; another process holds a lock on it")
        }
        Some(ErrorCode::DiskFull) => (true, "; free some space on its disk"),
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => (true, ""),
        // SQLite also calls it malformed when the disk fails to read.
        Some(ErrorCode::DatabaseCorrupt) => (
            false,
            "; the file is damaged or its disk cannot be read: see the kernel's log first",
        ),
        _ => (false, ""),
    };
    ArchiveError {
        reason: format!("{}: {error}{hint}", path.display()),
        temporary,
    }
}

fn to_i64(seq: Seq) -> i64 {
    i64::try_from(seq.get()).unwrap_or(i64::MAX)
}

fn to_seq(value: i64) -> Seq {
    Seq::new(u64::try_from(value).unwrap_or(0))
}

fn random_id() -> String {
    data_encoding::BASE32_NOPAD
        .encode(&random::<10>())
        .to_ascii_lowercase()
}
