//! Knows: how rows are erased from the SQLite file so that no byte of them is left in it.
//! Never: who ordered it, streams.
//!
//! Deleting with `secure_delete` writes zeros over a row where it lies. When pages were split or merged
//! before, SQLite left copies of rows in the unused part of other pages, and no statement reaches
//! those; so the file is written anew (`VACUUM`) once the rows are gone, and the log is cut to nothing.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior, params};
use weir_nats::RoomName;
use weir_nats::ambient::now_ms;
use weir_nats::erasure::streams::covers_stranger;
use weir_nats::erasure::{Matcher, Order, What};

use super::{Sqlite, Writer, to_seq};
use crate::archive::{ArchiveError, Erasure, user_of};

/// Rows looked at in one transaction; the worker's appends wait for it.
const STEP_MAX_ROWS: i64 = 500;
/// For readers to let go of the write-ahead log, so that it can be cut.
const TRUNCATE_WITHIN: Duration = Duration::from_secs(60);
/// In `meta` while the file has to be written anew.
const REWRITE_DUE: &str = "rewrite_due";

/// Where an erasure goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EraseCursor {
    /// Behind this row: room, offset, stream.
    Rows(i64, i64, i64),
    /// Behind this message in quarantine: stream, sequence.
    Quarantine(String, i64),
    /// Nothing is left.
    Over,
}

impl Default for EraseCursor {
    fn default() -> Self {
        Self::Rows(-1, -1, -1)
    }
}

/// Every order on record, as `append` asks it.
#[derive(Debug, Default)]
pub(super) struct OnRecord {
    matcher: Matcher,
    /// The newest row of `erasures` in it.
    newest: i64,
}

impl OnRecord {
    /// The orders on record now. Another process may have written one, so this is asked inside of
    /// each transaction; while there is none, it costs one look into an empty table.
    pub(super) fn refresh(&mut self, connection: &Connection) -> rusqlite::Result<&Matcher> {
        let newest: i64 = connection
            .prepare_cached("SELECT coalesce(max(nth), 0) FROM erasures")?
            .query_row([], |row| row.get(0))?;
        if newest != self.newest {
            let erasures = read(connection)?;
            let orders = erasures.into_iter().map(|erasure| erasure.order.into());
            self.matcher = Matcher::new(orders);
            self.newest = newest;
        }
        Ok(&self.matcher)
    }
}

impl Sqlite {
    /// The orders on record, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn erasures(&self) -> Result<Vec<Erasure>, ArchiveError> {
        read(&self.reader()).map_err(|error| self.explain(&error))
    }

    /// How many rows there are of a room or user.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn erasable(&self, what: &What) -> Result<u64, ArchiveError> {
        let (sql, name) = match what {
            What::Room(room) => (
                "SELECT count(*) FROM rooms r CROSS JOIN messages m ON m.room = r.id
                 WHERE r.log IN (SELECT DISTINCT log FROM streams) AND r.channel = ?1",
                room,
            ),
            What::User(user) => (
                "SELECT count(*) FROM messages INDEXED BY messages_by_user
                 WHERE user = ?1 AND user <> ''",
                user,
            ),
        };
        let connection = self.reader();
        let counted = connection.query_row(sql, [name], |row| row.get::<_, i64>(0));
        counted
            .map(|count| u64::try_from(count).unwrap_or(0))
            .map_err(|error| self.explain(&error))
    }

    /// Takes orders down: from now on no append takes what they cover. One that is on record stays
    /// as it is.
    ///
    /// # Errors
    /// When nothing was written.
    pub fn record_erasures(&self, orders: &[Order]) -> Result<(), ArchiveError> {
        self.write(|writer| {
            let transaction = writer.immediate()?;
            for order in orders {
                let json = serde_json::to_string(order).expect("plain fields become JSON");
                transaction
                    .prepare_cached(
                        "INSERT INTO erasures (id, ordered, erased) VALUES (?1, ?2, 0)
                         ON CONFLICT (id) DO NOTHING",
                    )?
                    .execute(params![order.id, json])?;
            }
            transaction.commit()
        })
    }

    /// Looks at some hundred rows of what an order on record names, and erases those that it covers.
    /// Returns how many those were.
    ///
    /// # Errors
    /// When nothing was written; the same step can be tried again.
    pub fn erase_step(&self, order: &Order, cursor: &mut EraseCursor) -> Result<u64, ArchiveError> {
        let (next, erased) = self.write(|writer| writer.erase_step(order, cursor))?;
        *cursor = next;
        Ok(erased)
    }

    /// Takes what is left of erased rows out of the file and its log, and notes that the order is
    /// carried out.
    ///
    /// # Errors
    /// When the file cannot be written anew (the disk needs as much room again), or readers do not
    /// let go of the log. It can be tried again.
    pub fn erase_finish(&self, order: &Order) -> Result<(), ArchiveError> {
        self.write(|writer| {
            let connection = &writer.connection;
            let due: i64 = connection.query_row(
                "SELECT count(*) FROM meta WHERE key = ?1",
                [REWRITE_DUE],
                |row| row.get(0),
            )?;
            if due > 0 {
                connection.execute_batch("VACUUM")?;
            }
            Ok(())
        })?;
        self.truncate_log()?;
        self.write(|writer| {
            let transaction = writer.immediate()?;
            transaction.execute("DELETE FROM meta WHERE key = ?1", [REWRITE_DUE])?;
            transaction.execute(
                "UPDATE erasures SET done_ms = ?2 WHERE id = ?1",
                params![order.id, now_ms()],
            )?;
            transaction.commit()
        })
    }

    /// Moves the write-ahead log into the file and cuts it to nothing.
    fn truncate_log(&self) -> Result<(), ArchiveError> {
        let deadline = Instant::now() + TRUNCATE_WITHIN;
        loop {
            let busy = self.write(|writer| {
                let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
                let busy = writer
                    .connection
                    .query_row(checkpoint, [], |row| row.get(0));
                busy.map(|busy: i64| busy != 0)
            })?;
            if !busy {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ArchiveError {
                    reason: format!(
                        "{}: a reader does not let go of its write-ahead log",
                        self.path.display()
                    ),
                    temporary: true,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&mut Writer) -> rusqlite::Result<T>,
    ) -> Result<T, ArchiveError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut writer).map_err(|error| self.explain(&error))
    }
}

/// A row that an order may cover.
struct Found {
    key: (i64, i64, i64),
    time_ms: i64,
    log: String,
    channel: String,
}

impl Writer {
    pub(super) fn immediate(&mut self) -> rusqlite::Result<rusqlite::Transaction<'_>> {
        self.connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
    }

    fn erase_step(
        &mut self,
        order: &Order,
        cursor: &EraseCursor,
    ) -> rusqlite::Result<(EraseCursor, u64)> {
        let transaction = self.immediate()?;
        let (next, erased) = match cursor {
            EraseCursor::Rows(room, offset, stream) => {
                erase_rows(&transaction, order, (*room, *offset, *stream))?
            }
            EraseCursor::Quarantine(stream, seq) => {
                erase_quarantine(&transaction, order, (stream, *seq))?
            }
            EraseCursor::Over => (EraseCursor::Over, 0),
        };
        if erased > 0 {
            transaction
                .prepare_cached("UPDATE erasures SET erased = erased + ?2 WHERE id = ?1")?
                .execute(params![order.id, erased])?;
            transaction
                .prepare_cached(
                    "INSERT INTO meta (key, value) VALUES (?1, '1') ON CONFLICT DO NOTHING",
                )?
                .execute([REWRITE_DUE])?;
        }
        transaction.commit()?;
        Ok((next, u64::try_from(erased).unwrap_or(0)))
    }
}

fn erase_rows(
    connection: &Connection,
    order: &Order,
    (room, offset, stream): (i64, i64, i64),
) -> rusqlite::Result<(EraseCursor, i64)> {
    let (sql, name) = match &order.what {
        What::Room(room) => (
            "SELECT m.room, m.offset, m.stream, m.time_ms, r.log, r.channel
             FROM rooms r CROSS JOIN messages m ON m.room = r.id
             WHERE r.log IN (SELECT DISTINCT log FROM streams) AND r.channel = ?1
               AND (m.room, m.offset, m.stream) > (?2, ?3, ?4)
             ORDER BY m.room, m.offset, m.stream LIMIT ?5",
            room,
        ),
        What::User(user) => (
            "SELECT m.room, m.offset, m.stream, m.time_ms, r.log, r.channel
             FROM messages m INDEXED BY messages_by_user CROSS JOIN rooms r ON r.id = m.room
             WHERE m.user = ?1 AND m.user <> '' AND (m.room, m.offset, m.stream) > (?2, ?3, ?4)
             ORDER BY m.room, m.offset, m.stream LIMIT ?5",
            user,
        ),
    };
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_map(params![name, room, offset, stream, STEP_MAX_ROWS], |row| {
        Ok(Found {
            key: (row.get(0)?, row.get(1)?, row.get(2)?),
            time_ms: row.get(3)?,
            log: row.get(4)?,
            channel: row.get(5)?,
        })
    })?;
    let found = found.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut erased = 0;
    for row in &found {
        let seq = to_seq(row.key.1);
        let is_covered = RoomName::parse(&row.channel)
            .is_ok_and(|room| order.reaches(&row.log, room.partition(), seq, row.time_ms));
        if is_covered {
            connection
                .prepare_cached(
                    "DELETE FROM messages WHERE room = ?1 AND offset = ?2 AND stream = ?3",
                )?
                .execute(params![row.key.0, row.key.1, row.key.2])?;
            erased += 1;
        }
    }
    let next = match found.last() {
        Some(last) => EraseCursor::Rows(last.key.0, last.key.1, last.key.2),
        None => EraseCursor::Quarantine(String::new(), -1),
    };
    Ok((next, erased))
}

fn erase_quarantine(
    connection: &Connection,
    order: &Order,
    (stream, seq): (&str, i64),
) -> rusqlite::Result<(EraseCursor, i64)> {
    let mut statement = connection.prepare_cached(
        "SELECT stream, seq, subject, headers FROM quarantine
         WHERE (stream, seq) > (?1, ?2) ORDER BY stream, seq LIMIT ?3",
    )?;
    let found = statement.query_map(params![stream, seq, STEP_MAX_ROWS], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, i64>(1)?,
            row.get::<_, String>(2)?,
            row.get::<_, String>(3)?,
        ))
    })?;
    let found = found.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut erased = 0;
    for (stream, seq, subject, headers) in &found {
        if covers_stranger(order, subject, user_of(headers), to_seq(*seq), i64::MIN) {
            connection
                .prepare_cached("DELETE FROM quarantine WHERE stream = ?1 AND seq = ?2")?
                .execute(params![stream, seq])?;
            erased += 1;
        }
    }
    let next = match found.into_iter().next_back() {
        Some((stream, seq, ..)) => EraseCursor::Quarantine(stream, seq),
        None => EraseCursor::Over,
    };
    Ok((next, erased))
}

/// An order that cannot be read is an error: what it covers must not come back.
fn read(connection: &Connection) -> rusqlite::Result<Vec<Erasure>> {
    let mut statement =
        connection.prepare_cached("SELECT ordered, erased, done_ms FROM erasures ORDER BY nth")?;
    let rows = statement.query_map([], |row| {
        let json: String = row.get(0)?;
        let order: Order = serde_json::from_str(&json).map_err(|error| {
            let text = rusqlite::types::Type::Text;
            rusqlite::Error::FromSqlConversionFailure(0, text, Box::new(error))
        })?;
        let erased: i64 = row.get(1)?;
        Ok(Erasure {
            order,
            erased: u64::try_from(erased).unwrap_or(0),
            done_ms: row.get(2)?,
        })
    })?;
    rows.collect()
}
