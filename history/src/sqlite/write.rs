//! Knows: how a batch becomes durable in the SQLite file: rows, quarantine, held ranges, one transaction.
//! Never: what readers ask for.

use std::sync::PoisonError;

use rusqlite::{Connection, ErrorCode, params};
use weir_nats::{Message, Seq};

use super::{Sqlite, Writer, room_id_checked, to_i64, to_seq};
use crate::archive::{Appended, ArchiveError, Batch, Quarantined};
use crate::held::Held;

/// Ids of rooms remembered by the writer.
const ROOM_IDS_MAX: usize = 100_000;

impl Sqlite {
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
            for (from, to) in batch.held.without(&appended.conflicts).ranges() {
                held.add(Seq::new(*from), Seq::new(*to));
            }
        });
        Ok(appended)
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
        let erasures = self.erasures.refresh(&transaction)?;
        for (room, message) in &batch.rows {
            if erasures.is_erased(&batch.log, room, message) {
                appended.erased += 1;
                continue;
            }
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
                    let refused = Quarantined::of_row(&batch.log, room, message, &error);
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
                    let reason = "another message is archived at its offset";
                    let refused = Quarantined::of_row(&batch.log, room, message, &reason);
                    quarantine(&transaction, stream, &refused)?;
                    appended.refused += 1;
                }
            }
        }
        for refused in &batch.refused {
            if refused.is_erased(erasures) {
                appended.erased += 1;
                continue;
            }
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
        write_held(
            &transaction,
            stream,
            &batch.held.without(&appended.conflicts),
        )?;
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
