//! Knows: what is read from the SQLite file: pages, counts, one id, quarantine.
//! Never: writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::{OptionalExtension as _, params};
use weir_nats::{Author, Door, Message, RoomName, Seq};

use super::{Sqlite, room_id, to_i64, to_seq};
use crate::archive::{ArchiveError, Counted, PageQuery, Quarantined, Rows};
use crate::by_time::newest_before;

/// Offset and time of a room's newest row.
const NEWEST_TIME: &str =
    "SELECT offset, time_ms FROM messages WHERE room = ?1 ORDER BY offset DESC LIMIT 1";
/// Offset and time of a room's first row at or above an offset.
const FIRST_TIME: &str =
    "SELECT offset, time_ms FROM messages WHERE room = ?1 AND offset >= ?2 ORDER BY offset LIMIT 1";

impl Sqlite {
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
    pub fn find(
        &self,
        log: &str,
        room: &RoomName,
        id: &str,
        after: Seq,
    ) -> Result<Option<Seq>, ArchiveError> {
        let connection = self.reader();
        let found = connection
            .query_row(
                "SELECT offset FROM messages JOIN rooms ON rooms.id = messages.room
                 WHERE log = ?1 AND channel = ?2 AND offset > ?3 AND msg_id = ?4 LIMIT 1",
                params![log, room.channel(), to_i64(after), id],
                |row| row.get(0),
            )
            .optional();
        found
            .map(|offset| offset.map(to_seq))
            .map_err(|error| self.explain(&error))
    }

    /// The newest offset of a room that was stored before `time_ms`. It takes as many look-ups in the
    /// key as an offset has bits, however many rows there are.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn older_than(
        &self,
        log: &str,
        room: &RoomName,
        time_ms: i64,
    ) -> Result<Option<Seq>, ArchiveError> {
        self.search_time(log, room, time_ms)
            .map_err(|error| self.explain(&error))
    }

    fn search_time(
        &self,
        log: &str,
        room: &RoomName,
        time_ms: i64,
    ) -> rusqlite::Result<Option<Seq>> {
        let connection = self.reader();
        let Some(room) = room_id(&connection, log, room)? else {
            return Ok(None);
        };
        let row = |row: &rusqlite::Row<'_>| Ok((to_seq(row.get(0)?), row.get(1)?));
        let newest = connection
            .prepare_cached(NEWEST_TIME)?
            .query_row([room], row)
            .optional()?;
        let mut first_at = connection.prepare_cached(FIRST_TIME)?;
        newest_before(newest, time_ms, |seq| {
            first_at
                .query_row(params![room, to_i64(seq)], row)
                .optional()
        })
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

    /// What is in quarantine behind a stream and sequence.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn quarantined(
        &self,
        after: Option<&(String, Seq)>,
        max_messages: u32,
    ) -> Result<Vec<(String, Quarantined)>, ArchiveError> {
        let connection = self.reader();
        let mut statement = connection
            .prepare_cached(
                "SELECT stream, seq, subject, headers, data, reason FROM quarantine
                 WHERE (stream, seq) > (?1, ?2) ORDER BY stream, seq LIMIT ?3",
            )
            .map_err(|error| self.explain(&error))?;
        let (stream, seq) = after.map_or(("", -1), |(stream, seq)| (stream.as_str(), to_i64(*seq)));
        let rows = statement.query_map(params![stream, seq, max_messages], |row| {
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
}

pub(super) fn read_message(row: &rusqlite::Row<'_>) -> rusqlite::Result<Message> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_by_time_look_into_the_key_and_sort_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::open(&folder.path().join("archive.db")).unwrap();
        let connection = sqlite.reader();
        for (query, key) in [
            (NEWEST_TIME, "(room=?)"),
            (FIRST_TIME, "(room=? AND offset>?)"),
        ] {
            let plan: String = connection
                .query_row(
                    &format!("EXPLAIN QUERY PLAN {query}"),
                    rusqlite::params_from_iter([1, 2].iter().take(query.matches('?').count())),
                    |row| row.get(3),
                )
                .unwrap();
            assert_eq!(plan, format!("SEARCH messages USING PRIMARY KEY {key}"));
        }
    }
}
