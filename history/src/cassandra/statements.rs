//! Knows: every statement that reads or writes rows, prepared. Never: what the rows mean.
//!
//! Values are always bound, never written into a statement.

use super::driver::{Driver, Statement};
use crate::archive::ArchiveError;

macro_rules! statements {
    ($($(#[doc = $doc:expr])+ $name:ident: $cql:expr,)+) => {
        /// Prepared statements; `{}` is the keyspace.
        #[derive(Debug)]
        pub(super) struct Statements {
            $($(#[doc = $doc])+ pub(super) $name: Statement,)+
        }

        impl Statements {
            /// # Errors
            /// When the cluster does not answer, or the tables are not there.
            pub(super) async fn prepare(driver: &Driver, keyspace: &str) -> Result<Self, ArchiveError> {
                Ok(Self {
                    $($name: driver.prepare(&$cql.replacen("{}", keyspace, 1)).await?,)+
                })
            }
        }
    };
}

statements! {
    /// log, stream, slot, epoch, from, created, timestamp (µs).
    insert_stream: "INSERT INTO {}.streams (log, stream, slot, epoch, from_seq, created)
        VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
    /// log, stream, sequence, id, time (ms), timestamp: the sequence.
    insert_known: "INSERT INTO {}.streams (log, stream, seq, msg_id, time_ms)
        VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?",
    /// All streams.
    select_streams: "SELECT log, stream, slot, epoch, from_seq, created, seq, msg_id, time_ms FROM {}.streams",
    /// log, limit: its streams.
    select_streams_of: "SELECT log, stream, slot, epoch, from_seq, created, seq, msg_id, time_ms FROM {}.streams
        WHERE log = ? LIMIT ?",
    /// log, archive, stream, from, to, timestamp: `to`.
    insert_held: "INSERT INTO {}.held (log, archive, stream, from_seq, to_seq)
        VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?",
    /// All ranges.
    select_held: "SELECT log, archive, stream, from_seq, to_seq FROM {}.held",
    /// log, archive, limit: the ranges of its streams.
    select_held_of: "SELECT log, archive, stream, from_seq, to_seq FROM {}.held
        WHERE log = ? AND archive = ? LIMIT ?",
    /// log, archive, stream, from: one range's end.
    select_held_end: "SELECT to_seq FROM {}.held WHERE log = ? AND archive = ? AND stream = ? AND from_seq = ?",
    /// log, stream, up to, timestamp: `up to`.
    insert_intent: "INSERT INTO {}.intents (log, stream, up_to) VALUES (?, ?, ?) USING TIMESTAMP ?",
    /// log, stream.
    select_intent: "SELECT up_to FROM {}.intents WHERE log = ? AND stream = ?",
    /// log, room, epoch, bucket, offset, id, envelope, timestamp: the message's time (µs).
    insert_message: "INSERT INTO {}.messages (log, room, epoch, bucket, off, id, msg)
        VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
    /// log, room, epoch, bucket, after, up to, limit.
    select_forward: "SELECT off, id, msg FROM {}.messages
        WHERE log = ? AND room = ? AND epoch = ? AND bucket = ? AND off > ? AND off <= ?
        ORDER BY off ASC, id ASC LIMIT ?",
    /// log, room, epoch, bucket, after, up to, limit.
    select_backward: "SELECT off, id, msg FROM {}.messages
        WHERE log = ? AND room = ? AND epoch = ? AND bucket = ? AND off > ? AND off <= ?
        ORDER BY off DESC, id DESC LIMIT ?",
    /// The same without payloads: offset, id, and the timestamp (µs) of the envelope.
    select_keys_backward: "SELECT off, id, writetime(msg) FROM {}.messages
        WHERE log = ? AND room = ? AND epoch = ? AND bucket = ? AND off > ? AND off <= ?
        ORDER BY off DESC, id DESC LIMIT ?",
    /// log, room, bucket, epoch, timestamp (µs).
    insert_room_bucket: "INSERT INTO {}.room_buckets (log, room, bucket, epoch) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
    /// log, room, from, to, limit.
    select_buckets_forward: "SELECT bucket, epoch FROM {}.room_buckets
        WHERE log = ? AND room = ? AND bucket >= ? AND bucket <= ? ORDER BY bucket ASC, epoch ASC LIMIT ?",
    /// log, room, from, to, limit.
    select_buckets_backward: "SELECT bucket, epoch FROM {}.room_buckets
        WHERE log = ? AND room = ? AND bucket >= ? AND bucket <= ? ORDER BY bucket DESC, epoch DESC LIMIT ?",
    /// log, user, room, bucket, epoch, timestamp (µs).
    insert_user_bucket: "INSERT INTO {}.user_buckets (log, user, room, bucket, epoch)
        VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?",
    /// stream, day, second, offset, timestamp: higher for lower offsets.
    insert_second: "INSERT INTO {}.stream_seconds (stream, day, sec, off) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
    /// stream, day, from second.
    select_second: "SELECT off FROM {}.stream_seconds WHERE stream = ? AND day = ? AND sec >= ? LIMIT 1",
    /// stream, sequence, subject, headers, payload, reason, timestamp (µs).
    insert_quarantine: "INSERT INTO {}.quarantine (stream, seq, subject, headers, data, reason)
        VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
    /// id, order (JSON).
    insert_erasure: "INSERT INTO {}.erasures (id, ordered) VALUES (?, ?)",
    /// All orders.
    select_erasures: "SELECT id, ordered, erased, done_ms FROM {}.erasures",
    /// rows erased, id.
    set_erased: "UPDATE {}.erasures SET erased = ? WHERE id = ?",
    /// when (ms), id.
    set_erasure_done: "UPDATE {}.erasures SET done_ms = ? WHERE id = ?",
    /// log, user.
    select_user_buckets: "SELECT room, bucket, epoch FROM {}.user_buckets WHERE log = ? AND user = ?",
    /// stream.
    select_quarantine_keys: "SELECT seq, subject, headers FROM {}.quarantine WHERE stream = ?",
    /// timestamp (µs), stream, sequence.
    delete_quarantine: "DELETE FROM {}.quarantine USING TIMESTAMP ? WHERE stream = ? AND seq = ?",
    /// stream, after, limit.
    select_quarantine: "SELECT seq, subject, headers, data, reason FROM {}.quarantine
        WHERE stream = ? AND seq > ? LIMIT ?",
    /// stream.
    count_quarantine: "SELECT count(*) FROM {}.quarantine WHERE stream = ?",
    /// after the token, limit: rooms, in the order of their tokens.
    select_rooms: "SELECT DISTINCT log, room, token(log, room) FROM {}.room_buckets
        WHERE token(log, room) > ? LIMIT ?",
    /// key, value.
    insert_note: "INSERT INTO {}.meta (key, value) VALUES (?, ?)",
    /// key.
    select_note: "SELECT value FROM {}.meta WHERE key = ?",
}
