//! Knows: how the SQLite file is walked whole, for tools: streams, rooms, rows of every epoch, totals, notes.
//! Never: writes rows.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use weir_nats::guard::Known;
use weir_nats::placement::Generation;
use weir_nats::{Epoch, RoomName};

use super::read::read_message;
use super::{SCHEMA_VERSION, Sqlite, explain, read_held, room_id, to_i64, to_seq};
use crate::archive::{ArchiveError, HeldByStream};
use crate::listing::{About, ListedRoom, ListedRow, ListedRows, RowKey, StreamRecord, Totals};

/// Beyond this size of its file rows are not counted, as all of it would have to be read.
const COUNT_MAX_BYTES: u64 = 4 << 30;

impl Sqlite {
    /// The schema version of the file at `path`; `None` if there is no file, or no archive in it yet. Changes nothing.
    ///
    /// # Errors
    /// When it cannot be read, or is no archive.
    pub fn version_at(path: &Path) -> Result<Option<String>, ArchiveError> {
        if !path.exists() {
            return Ok(None);
        }
        let found = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).and_then(
            |connection| {
                let there = connection.query_row(
                    "SELECT count(*) FROM sqlite_schema WHERE name = 'meta'",
                    [],
                    |row| row.get::<_, i64>(0),
                )?;
                if there == 0 {
                    return Ok(None);
                }
                connection
                    .query_row("SELECT value FROM meta WHERE key = 'version'", [], |row| {
                        row.get(0)
                    })
                    .optional()
            },
        );
        found.map_err(|error| explain(path, &error))
    }

    /// Which archive this is.
    #[must_use]
    pub fn about(&self) -> About {
        About {
            kind: "sqlite",
            place: self.path.display().to_string(),
            id: self.id.clone(),
            schema: SCHEMA_VERSION.to_owned(),
        }
    }

    /// Each stream that it knows.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn streams(&self) -> Result<Vec<StreamRecord>, ArchiveError> {
        let read = || -> rusqlite::Result<Vec<StreamRecord>> {
            let connection = self.reader();
            let mut statement = connection.prepare_cached(
                "SELECT log, slot, stream, epoch, from_seq, created, seq, msg_id, time_ms
                 FROM streams ORDER BY log, slot, from_seq",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(StreamRecord {
                    log: row.get(0)?,
                    slot: row.get(1)?,
                    generation: Generation {
                        stream: row.get(2)?,
                        epoch: epoch_at(row, 3)?,
                        from: to_seq(row.get(4)?),
                    },
                    known: Known {
                        created: row.get(5)?,
                        seq: to_seq(row.get(6)?),
                        id: row.get(7)?,
                        time_ms: row.get(8)?,
                    },
                })
            })?;
            rows.collect()
        };
        read().map_err(|error| self.explain(&error))
    }

    /// What it holds, read afresh.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn held_now(&self) -> Result<HeldByStream, ArchiveError> {
        read_held(&self.reader()).map_err(|error| self.explain(&error))
    }

    /// Rooms behind a cursor, in the order in which they were made.
    ///
    /// # Errors
    /// When the file cannot be read, or the cursor is none.
    pub fn rooms(
        &self,
        after: Option<&str>,
        max_rooms: u32,
    ) -> Result<Vec<ListedRoom>, ArchiveError> {
        let after: i64 = after.unwrap_or("0").parse().map_err(|_| ArchiveError {
            reason: format!(
                "{:?} is no place in the rooms of {}",
                after.unwrap_or_default(),
                self.path.display()
            ),
            temporary: false,
        })?;
        let read = || -> rusqlite::Result<Vec<ListedRoom>> {
            let connection = self.reader();
            let mut statement = connection.prepare_cached(
                "SELECT id, log, channel FROM rooms WHERE id > ?1 ORDER BY id LIMIT ?2",
            )?;
            let rows = statement.query_map(params![after, max_rooms], |row| {
                let id: i64 = row.get(0)?;
                let channel: String = row.get(2)?;
                Ok(ListedRoom {
                    log: row.get(1)?,
                    room: RoomName::parse(&channel).map_err(|error| corrupt(2, error))?,
                    cursor: id.to_string(),
                })
            })?;
            rows.collect()
        };
        read().map_err(|error| self.explain(&error))
    }

    /// Every row of a room behind `after`, by offset, epoch and id.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn rows_of(
        &self,
        log: &str,
        room: &RoomName,
        after: Option<&RowKey>,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<ListedRows, ArchiveError> {
        let read = || -> rusqlite::Result<ListedRows> {
            let connection = self.reader();
            let Some(room) = room_id(&connection, log, room)? else {
                return Ok(ListedRows::default());
            };
            // CROSS JOIN keeps this order of tables: rows by their key, and each one's stream by its id.
            let mut statement = connection.prepare_cached(
                "SELECT offset, m.time_ms, m.msg_id, door, user, client, info, tags, data, epoch
                 FROM messages AS m CROSS JOIN streams AS s ON s.id = m.stream
                 WHERE room = ?1 AND offset >= ?2 AND (offset > ?2 OR (epoch, m.msg_id) > (?3, ?4))
                 ORDER BY offset, epoch, m.msg_id LIMIT ?5",
            )?;
            let (seq, epoch, id) = after.map_or((0, "", ""), |key| {
                (to_i64(key.seq), key.epoch.as_str(), key.id.as_str())
            });
            let limit = i64::from(max_messages) + 1;
            let mut found = statement.query(params![room, seq, epoch, id, limit])?;
            let (mut listed, mut bytes) = (ListedRows::default(), 0);
            while let Some(row) = found.next()? {
                let message = read_message(row)?;
                bytes += message.data.len();
                let is_full = listed.rows.len() >= max_messages as usize
                    || (!listed.rows.is_empty() && bytes > max_bytes as usize);
                if is_full {
                    listed.more = true;
                    break;
                }
                listed.rows.push(ListedRow {
                    epoch: epoch_at(row, 9)?,
                    message: Arc::new(message),
                });
            }
            Ok(listed)
        };
        read().map_err(|error| self.explain(&error))
    }

    /// How much it has; its bytes are those of the file and of what is not in it yet.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn totals(&self) -> Result<Totals, ArchiveError> {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let disk_bytes = size(&self.path) + size(Path::new(&log));
        let connection = self.reader();
        let count = |table: &str| {
            let count: i64 =
                connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
                    row.get(0)
                })?;
            Ok::<u64, rusqlite::Error>(u64::try_from(count).unwrap_or(0))
        };
        let read = || -> rusqlite::Result<Totals> {
            Ok(Totals {
                rooms: Some(count("rooms")?),
                rows: (disk_bytes <= COUNT_MAX_BYTES)
                    .then(|| count("messages"))
                    .transpose()?,
                quarantined: Some(count("quarantine")?),
                disk_bytes: Some(disk_bytes),
            })
        };
        read().map_err(|error| self.explain(&error))
    }

    /// A note of a tool.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn note(&self, name: &str) -> Result<Option<String>, ArchiveError> {
        let found = self
            .reader()
            .query_row(
                "SELECT value FROM meta WHERE key = ?1",
                [note_key(name)],
                |row| row.get(0),
            )
            .optional();
        found.map_err(|error| self.explain(&error))
    }

    /// Leaves a note of a tool.
    ///
    /// # Errors
    /// When nothing was written.
    pub fn leave_note(&self, name: &str, text: &str) -> Result<(), ArchiveError> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let written = writer.connection.execute(
            "INSERT INTO meta (key, value) VALUES (?1, ?2)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            params![note_key(name), text],
        );
        written.map(|_| ()).map_err(|error| self.explain(&error))
    }
}

/// Notes are beside the archive's own keys.
fn note_key(name: &str) -> String {
    format!("note.{name}")
}

fn epoch_at(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Epoch> {
    let text: String = row.get(column)?;
    Epoch::new(&text).map_err(|error| corrupt(column, error))
}

fn corrupt(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
