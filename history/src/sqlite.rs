//! Knows: the archive as one SQLite file: WAL, `synchronous = FULL`, one writer, a few readers.
//! Never: NATS, frames. The only file that names rusqlite.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{Semaphore, watch};
use weir_nats::ambient::random;
use weir_nats::guard::Known;
use weir_nats::{Author, Door, Message, RoomName, Seq};

use crate::archive::headers_text;
use crate::archive::{
    Appended, ArchiveError, Batch, Counted, HeldByStream, PageQuery, Quarantined, Rows,
};
use crate::held::Held;

const SCHEMA: &str = include_str!("schema.sql");
const SCHEMA_VERSION: &str = "1";
/// How long a statement waits for another process's lock.
const BUSY_MS: u64 = 2_000;
const READERS: usize = 4;
/// Ids of rooms remembered by the writer.
const ROOM_IDS_MAX: usize = 100_000;

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
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    room_ids: HashMap<(String, RoomName), i64>,
}

impl Sqlite {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// When it cannot be opened, is locked, is no archive, or is of a newer version.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let error = |error: rusqlite::Error| explain(path, &error);
        let connection = connect(path).map_err(error)?;
        connection.execute_batch(SCHEMA).map_err(error)?;
        let version = meta(&connection, "version", || SCHEMA_VERSION.to_owned()).map_err(error)?;
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
        let readers = (0..READERS).map(|_| connect(path).map(Mutex::new));
        let readers = readers.collect::<Result<Vec<_>, _>>().map_err(error)?;
        Ok(Self {
            id,
            path: path.to_owned(),
            writer: Mutex::new(Writer {
                connection,
                room_ids: HashMap::new(),
            }),
            readers,
            next_reader: AtomicUsize::new(0),
            reads: Arc::new(Semaphore::new(READERS)),
            pages_read: AtomicU64::new(0),
            held: watch::Sender::new(held),
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

    /// Writes rows, quarantine, held ranges and the highest known, all or nothing.
    ///
    /// # Errors
    /// When nothing was written.
    pub fn append(&self, batch: &Batch) -> Result<Appended, ArchiveError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let appended = writer.append(batch).map_err(|error| {
            // Ids made in a transaction that was rolled back are not there.
            writer.room_ids.clear();
            self.explain(&error)
        })?;
        drop(writer);
        self.held.send_modify(|all| {
            let held = all.entry(batch.generation.stream.clone()).or_default();
            for (from, to) in batch.held.ranges() {
                held.add(Seq::new(*from), Seq::new(*to));
            }
        });
        Ok(appended)
    }

    /// Reads rows of a room.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn page(&self, query: &PageQuery) -> Result<Rows, ArchiveError> {
        self.pages_read.fetch_add(1, Ordering::Relaxed);
        self.read_page(query).map_err(|error| self.explain(&error))
    }

    fn read_page(&self, query: &PageQuery) -> rusqlite::Result<Rows> {
        const COLUMNS: &str = "SELECT offset, time_ms, msg_id, door, user, client, info, tags, data
             FROM messages WHERE room = ?1 AND offset > ?2 AND offset <= ?3 ORDER BY offset";
        let connection = self.reader();
        let Some(room) = room_id(&connection, &query.log, &query.room)? else {
            return Ok(Rows::default());
        };
        let order = if query.reverse { "DESC" } else { "ASC" };
        let mut statement = connection.prepare_cached(&format!("{COLUMNS} {order} LIMIT ?4"))?;
        let limit = i64::from(query.max_messages) + 1;
        let mut found = statement.query(params![
            room,
            to_i64(query.after),
            to_i64(query.up_to),
            limit
        ])?;
        let (mut rows, mut bytes) = (Rows::default(), 0);
        while let Some(row) = found.next()? {
            let message = read_message(row)?;
            bytes += message.data.len();
            let is_full = rows.messages.len() >= query.max_messages as usize
                || (!rows.messages.is_empty() && bytes > query.max_bytes as usize);
            if is_full {
                rows.more = true;
                break;
            }
            rows.messages.push(Arc::new(message));
        }
        Ok(rows)
    }

    /// The offset under which a message id is archived in a room.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn find(&self, room: &RoomName, id: &str, after: Seq) -> Result<Option<Seq>, ArchiveError> {
        let connection = self.reader();
        let found = connection
            .query_row(
                "SELECT offset FROM messages JOIN rooms ON rooms.id = messages.room
                 WHERE channel = ?1 AND offset > ?2 AND msg_id = ?3 LIMIT 1",
                params![room.channel(), to_i64(after), id],
                |row| row.get(0),
            )
            .optional();
        found
            .map(|offset| offset.map(to_seq))
            .map_err(|error| self.explain(&error))
    }

    /// The newest offset of a room that was stored before `time_ms`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn older_than(
        &self,
        log: &str,
        room: &RoomName,
        time_ms: i64,
    ) -> Result<Option<Seq>, ArchiveError> {
        let connection = self.reader();
        let found = room_id(&connection, log, room).and_then(|room| {
            connection
                .prepare_cached(
                    "SELECT offset FROM messages WHERE room = ?1 AND time_ms < ?2
                     ORDER BY offset DESC LIMIT 1",
                )?
                .query_row(params![room, time_ms], |row| row.get(0))
                .optional()
        });
        found
            .map(|offset| offset.map(to_seq))
            .map_err(|error| self.explain(&error))
    }

    /// How many rows of a room lie in (`after`, `up_to`], and the oldest offset of the newest
    /// `max_messages` of them. Payloads are not read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn count(
        &self,
        log: &str,
        room: &RoomName,
        (after, up_to): (Seq, Seq),
        max_messages: u64,
    ) -> Result<Counted, ArchiveError> {
        let connection = self.reader();
        let limit = i64::try_from(max_messages).unwrap_or(i64::MAX);
        let found = room_id(&connection, log, room).and_then(|room| {
            connection
                .prepare_cached(
                    "SELECT count(*), min(offset) FROM (
                         SELECT offset FROM messages
                         WHERE room = ?1 AND offset > ?2 AND offset <= ?3
                         ORDER BY offset DESC LIMIT ?4)",
                )?
                .query_row(params![room, to_i64(after), to_i64(up_to), limit], |row| {
                    let messages: i64 = row.get(0)?;
                    Ok(Counted {
                        messages: u64::try_from(messages).unwrap_or(0),
                        oldest: row.get::<_, Option<i64>>(1)?.map(to_seq),
                    })
                })
        });
        found.map_err(|error| self.explain(&error))
    }

    /// What is in quarantine.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn quarantined(
        &self,
        max_messages: u32,
    ) -> Result<Vec<(String, Quarantined)>, ArchiveError> {
        let connection = self.reader();
        let mut statement = connection
            .prepare_cached(
                "SELECT stream, seq, subject, headers, data, reason FROM quarantine
                 ORDER BY stream, seq LIMIT ?1",
            )
            .map_err(|error| self.explain(&error))?;
        let rows = statement.query_map([max_messages], |row| {
            let refused = Quarantined {
                seq: to_seq(row.get(1)?),
                subject: row.get(2)?,
                headers: row.get(3)?,
                data: row.get::<_, Vec<u8>>(4)?.into(),
                reason: row.get(5)?,
            };
            Ok((row.get(0)?, refused))
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

impl Writer {
    fn append(&mut self, batch: &Batch) -> rusqlite::Result<Appended> {
        let transaction = self.connection.transaction()?;
        let stream = &batch.generation.stream;
        transaction
            .prepare_cached(
                "INSERT INTO streams (stream, log, slot, epoch, from_seq, created, seq, msg_id, time_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, '', 0)
                 ON CONFLICT (stream) DO UPDATE SET created = ?6 WHERE created <> ?6",
            )?
            .execute(params![
                stream,
                batch.log,
                batch.slot,
                batch.generation.epoch.as_str(),
                to_i64(batch.generation.from),
                batch.created
            ])?;
        let stream_id: i64 = transaction
            .prepare_cached("SELECT id FROM streams WHERE stream = ?1")?
            .query_row([stream], |row| row.get(0))?;
        let mut appended = Appended::default();
        for (room, message) in &batch.rows {
            let key = (batch.log.clone(), room.clone());
            let room_id = match self.room_ids.get(&key) {
                Some(id) => *id,
                None => {
                    transaction
                        .prepare_cached(
                            "INSERT INTO rooms (log, channel) VALUES (?1, ?2)
                             ON CONFLICT (log, channel) DO NOTHING",
                        )?
                        .execute(params![batch.log, room.channel()])?;
                    let id = room_id_checked(&transaction, &batch.log, room)?;
                    if self.room_ids.len() >= ROOM_IDS_MAX {
                        self.room_ids.clear();
                    }
                    self.room_ids.insert(key, id);
                    id
                }
            };
            let inserted = match insert(&transaction, room_id, stream_id, message) {
                Ok(inserted) => inserted,
                Err(error) if is_of_the_row(&error) => {
                    let refused = Quarantined::from_row(&batch.log, room, message, &error);
                    quarantine(&transaction, stream, &refused)?;
                    appended.refused += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            appended.rows += inserted;
            if inserted == 0 {
                let there: String = transaction
                    .prepare_cached(
                        "SELECT msg_id FROM messages WHERE room = ?1 AND offset = ?2 AND stream = ?3",
                    )?
                    .query_row(params![room_id, to_i64(message.seq), stream_id], |row| row.get(0))?;
                if there != message.id {
                    appended.conflicts.push(message.seq);
                }
            }
        }
        for refused in &batch.refused {
            quarantine(&transaction, stream, refused)?;
            appended.refused += 1;
        }
        if let Some((_, newest)) = batch.rows.iter().max_by_key(|(_, message)| message.seq) {
            transaction
                .prepare_cached(
                    "UPDATE streams SET seq = ?2, msg_id = ?3, time_ms = ?4
                     WHERE stream = ?1 AND seq < ?2",
                )?
                .execute(params![
                    stream,
                    to_i64(newest.seq),
                    newest.id,
                    newest.time_ms
                ])?;
        }
        write_held(&transaction, stream, &batch.held)?;
        transaction.commit()?;
        Ok(appended)
    }
}

fn quarantine(
    connection: &Connection,
    stream: &str,
    refused: &Quarantined,
) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "INSERT INTO quarantine (stream, seq, subject, headers, data, reason)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            stream,
            to_i64(refused.seq),
            refused.subject,
            refused.headers,
            &refused.data[..],
            refused.reason
        ])
}

/// True if the error is about this row and would come again with every try.
fn is_of_the_row(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch)
    )
}

fn insert(
    connection: &Connection,
    room: i64,
    stream: i64,
    message: &Message,
) -> rusqlite::Result<u64> {
    let author = message.author.as_ref();
    let tags = if message.tags.is_empty() {
        None
    } else {
        Some(serde_json::to_string(&message.tags).expect("strings become JSON"))
    };
    let inserted = connection
        .prepare_cached(
            "INSERT INTO messages
             (room, offset, stream, time_ms, msg_id, door, user, client, info, tags, data)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            room,
            to_i64(message.seq),
            stream,
            message.time_ms,
            message.id,
            author.map(|author| author.door.as_str()),
            author.map_or("", |author| &author.user),
            author.map_or("", |author| &author.client),
            author.and_then(|author| author.info.as_deref()),
            tags,
            &message.data[..],
        ])?;
    Ok(inserted as u64)
}

/// Joins the new ranges with those that are there.
fn write_held(connection: &Connection, stream: &str, new: &Held) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare_cached("SELECT from_seq, to_seq FROM held WHERE stream = ?1")?;
    let rows = statement.query_map([stream], |row| {
        Ok((to_seq(row.get(0)?).get(), to_seq(row.get(1)?).get()))
    })?;
    let ranges = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let held = Held::from_ranges(ranges.into_iter().chain(new.ranges().iter().copied()));
    connection
        .prepare_cached("DELETE FROM held WHERE stream = ?1")?
        .execute([stream])?;
    for (from, to) in held.ranges() {
        connection
            .prepare_cached("INSERT INTO held (stream, from_seq, to_seq) VALUES (?1, ?2, ?3)")?
            .execute(params![
                stream,
                to_i64(Seq::new(*from)),
                to_i64(Seq::new(*to))
            ])?;
    }
    Ok(())
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

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_millis(BUSY_MS))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Lost no committed row in a power cut; NORMAL did.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn meta(
    connection: &Connection,
    key: &str,
    first: impl FnOnce() -> String,
) -> rusqlite::Result<String> {
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO NOTHING",
        params![key, first()],
    )?;
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
        row.get(0)
    })
}

fn room_id(connection: &Connection, log: &str, room: &RoomName) -> rusqlite::Result<Option<i64>> {
    room_id_checked(connection, log, room).optional()
}

fn room_id_checked(connection: &Connection, log: &str, room: &RoomName) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT id FROM rooms WHERE log = ?1 AND channel = ?2")?
        .query_row(params![log, room.channel()], |row| row.get(0))
}

fn read_message(row: &rusqlite::Row<'_>) -> rusqlite::Result<Message> {
    let door: Option<String> = row.get(3)?;
    let author = match door {
        Some(door) => Some(Author {
            door: Door::from_text(&door),
            user: row.get(4)?,
            client: row.get(5)?,
            info: row.get::<_, Option<Vec<u8>>>(6)?.map(Into::into),
        }),
        None => None,
    };
    let tags: Option<String> = row.get(7)?;
    let tags: BTreeMap<String, String> = tags
        .and_then(|tags| serde_json::from_str(&tags).ok())
        .unwrap_or_default();
    Ok(Message {
        seq: to_seq(row.get(0)?),
        time_ms: row.get(1)?,
        id: row.get(2)?,
        author,
        tags,
        data: row.get::<_, Vec<u8>>(8)?.into(),
    })
}

impl Quarantined {
    /// A message that SQLite does not take as a row.
    fn from_row(log: &str, room: &RoomName, message: &Message, error: &rusqlite::Error) -> Self {
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

fn explain(path: &Path, error: &rusqlite::Error) -> ArchiveError {
    let code = error.sqlite_error_code();
    let (temporary, hint) = match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (true, "; another process holds a lock on it")
        }
        Some(ErrorCode::DiskFull) => (true, "; free some space on its disk"),
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => (true, ""),
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
