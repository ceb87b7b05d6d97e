//! Knows: how rows older than their namespace keeps them leave the SQLite file, and up to where each room
//! has lost some that way. Never: which namespace keeps what.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension as _, params};
use weir_nats::{RoomName, Seq};

use super::{Sqlite, to_seq};
use crate::archive::{ArchiveError, Expired};

/// Rooms looked at in one step.
const STEP_MAX_ROOMS: i64 = 500;
/// Rows deleted in one transaction; the worker's appends wait for it.
const STEP_MAX_ROWS: i64 = 500;

impl Sqlite {
    /// Up to which offset a room has lost rows by age; zero if none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn expired_to(&self, log: &str, room: &RoomName) -> Result<Seq, ArchiveError> {
        let connection = self.reader();
        let found = connection
            .prepare_cached("SELECT expired_to FROM rooms WHERE log = ?1 AND channel = ?2")
            .and_then(|mut statement| {
                let offset = statement.query_row(params![log, room.channel()], |row| row.get(0));
                offset.optional()
            });
        found
            .map(|offset| offset.map_or(Seq::ZERO, to_seq))
            .map_err(|error| self.explain(&error))
    }

    /// Up to which offset rooms of a log have lost rows by age, over all of them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn any_expired_to(&self, log: &str) -> Result<Seq, ArchiveError> {
        let highest = self.reader().query_row(
            "SELECT coalesce(max(expired_to), 0) FROM rooms WHERE log = ?1",
            [log],
            |row| row.get(0),
        );
        highest.map(to_seq).map_err(|error| self.explain(&error))
    }

    /// False if no room has lost rows by age.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.has_expired.load(Ordering::Acquire)
    }

    /// What [`Sqlite::has_expired`] begins with.
    pub(super) fn read_has_expired(connection: &Connection) -> rusqlite::Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM rooms WHERE expired_to > 0)";
        connection.query_row(sql, [], |row| row.get(0))
    }

    /// Deletes rows of some rooms behind the room `after` that were stored before what `oldest_ms`
    /// says (milliseconds since 1970; `None` keeps all). Oldest first, so what is lost of a room is
    /// always all up to an offset.
    ///
    /// # Errors
    /// When a step was not written; it can be tried again.
    pub fn expire_step(
        &self,
        after: i64,
        oldest_ms: &dyn Fn(&RoomName) -> Option<i64>,
    ) -> Result<Expired, ArchiveError> {
        let rooms = self
            .rooms_after(after)
            .map_err(|error| self.explain(&error))?;
        let mut expired = Expired::default();
        for (id, channel) in rooms {
            let oldest_ms = RoomName::parse(&channel)
                .ok()
                .and_then(|room| oldest_ms(&room));
            if let Some(oldest_ms) = oldest_ms {
                let rows = self.expire_room(id, oldest_ms)?;
                expired.rows += rows;
                if rows > 0 {
                    // It may have more, and others wait for the file: the next step goes on here.
                    expired.next = Some(id - 1);
                    return Ok(expired);
                }
            }
            expired.next = Some(id);
        }
        Ok(expired)
    }

    fn rooms_after(&self, after: i64) -> rusqlite::Result<Vec<(i64, String)>> {
        let connection = self.reader();
        let mut statement = connection
            .prepare_cached("SELECT id, channel FROM rooms WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let rooms = statement.query_map([after, STEP_MAX_ROOMS], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        rooms.collect()
    }

    /// Deletes the oldest rows of a room that are too old, some hundred at most.
    fn expire_room(&self, room: i64, oldest_ms: i64) -> Result<u64, ArchiveError> {
        const OLDEST: &str = "SELECT offset, time_ms FROM messages WHERE room = ?1
             ORDER BY offset LIMIT ?2";
        let read = |connection: &Connection, max: i64| {
            let mut statement = connection.prepare_cached(OLDEST)?;
            let rows = statement.query_map([room, max], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let oldest = read(&self.reader(), 1).map_err(|error| self.explain(&error))?;
        if oldest
            .first()
            .is_none_or(|(_, time_ms)| *time_ms >= oldest_ms)
        {
            return Ok(0);
        }
        let rows = self.write(|writer| {
            let transaction = writer.immediate()?;
            let old = read(&transaction, STEP_MAX_ROWS)?;
            let old = old.iter().take_while(|(_, time_ms)| *time_ms < oldest_ms);
            let Some((last, _)) = old.last() else {
                return Ok(0);
            };
            let rows = transaction
                .prepare_cached("DELETE FROM messages WHERE room = ?1 AND offset <= ?2")?
                .execute([room, *last])?;
            transaction
                .prepare_cached("UPDATE rooms SET expired_to = max(expired_to, ?2) WHERE id = ?1")?
                .execute([room, *last])?;
            // Before the commit: a reader that misses a row must know that one may be missing.
            self.has_expired.store(true, Ordering::Release);
            transaction.commit()?;
            Ok(rows)
        })?;
        Ok(rows as u64)
    }
}
