//! Knows: how an archive is walked whole: its streams, rooms, rows, quarantine, totals, and the notes that tools keep in it.
//! Never: SQL, NATS, what the worker or a reader asks for.

use std::sync::Arc;

use weir_nats::guard::Known;
use weir_nats::placement::Generation;
use weir_nats::{Epoch, Message, RoomName, Seq};

use crate::archive::{Archive, ArchiveError, HeldByStream, Quarantined, read};

/// Which archive this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// As in the configuration.
    pub kind: &'static str,
    /// Where it is: a file, or nodes and a keyspace.
    pub place: String,
    /// Made when it was created.
    pub id: String,
    /// The version of its schema.
    pub schema: String,
}

/// One generation of a slot, as an archive knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRecord {
    /// The log.
    pub log: String,
    /// The slot.
    pub slot: u16,
    /// The stream, its epoch and where it begins.
    pub generation: Generation,
    /// The highest message that is archived, and when the stream was created.
    pub known: Known,
}

/// A room that has, or had, rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRoom {
    /// The log.
    pub log: String,
    /// The room.
    pub room: RoomName,
    /// Go on behind this one. It means something to the same archive only.
    pub cursor: String,
}

/// Where a row stands among those of its room. Two messages may have one offset: the same sequence was used in two epochs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    /// The offset.
    pub seq: Seq,
    /// The epoch's text.
    pub epoch: String,
    /// The message's id.
    pub id: String,
}

impl RowKey {
    /// Behind everything at `seq`: the next row has a higher offset.
    #[must_use]
    pub fn end_of(seq: Seq) -> Self {
        Self {
            seq,
            // Above every text.
            epoch: char::MAX.to_string(),
            id: String::new(),
        }
    }
}

/// A row and its epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRow {
    /// Its epoch.
    pub epoch: Epoch,
    /// The message.
    pub message: Arc<Message>,
}

impl ListedRow {
    /// Where it stands in its room.
    #[must_use]
    pub fn key(&self) -> RowKey {
        RowKey {
            seq: self.message.seq,
            epoch: self.epoch.as_str().to_owned(),
            id: self.message.id.clone(),
        }
    }
}

/// Rows of a room, by offset, epoch and id.
#[derive(Clone, Debug, Default)]
pub struct ListedRows {
    /// Oldest first.
    pub rows: Vec<ListedRow>,
    /// More follow.
    pub more: bool,
}

/// How much an archive has. `None`: it would have to be counted row by row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rooms.
    pub rooms: Option<u64>,
    /// Rows.
    pub rows: Option<u64>,
    /// Messages in quarantine.
    pub quarantined: Option<u64>,
    /// Bytes on the disk.
    pub disk_bytes: Option<u64>,
}

impl Archive {
    /// Which archive this is.
    #[must_use]
    pub fn about(&self) -> About {
        match self {
            Self::Sqlite(sqlite) => sqlite.about(),
            Self::Cassandra(cassandra) => cassandra.about(),
        }
    }

    /// Each stream that it knows, by log, slot and where it begins.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn streams(&self) -> Result<Vec<StreamRecord>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => read(sqlite, |sqlite| sqlite.streams()).await,
            Self::Cassandra(cassandra) => cassandra.streams().await,
        }
    }

    /// What it holds, read afresh: another process may have written since this one opened it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn held_now(&self) -> Result<HeldByStream, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => read(sqlite, |sqlite| sqlite.held_now()).await,
            Self::Cassandra(cassandra) => cassandra.held_now().await,
        }
    }

    /// Rooms behind the cursor `after`, at most `max_rooms`, in an order that stays. An empty answer is the end.
    ///
    /// # Errors
    /// When it cannot be read, or the cursor is none of this archive.
    pub async fn rooms(
        &self,
        after: Option<String>,
        max_rooms: u32,
    ) -> Result<Vec<ListedRoom>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                read(sqlite, move |sqlite| {
                    sqlite.rooms(after.as_deref(), max_rooms)
                })
                .await
            }
            Self::Cassandra(cassandra) => cassandra.rooms(after.as_deref(), max_rooms).await,
        }
    }

    /// Every row of a room behind `after`, of all epochs, oldest first; at most `max_messages` and `max_bytes` of
    /// payloads, but one row is always returned.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn rows_of(
        &self,
        log: String,
        room: RoomName,
        after: Option<RowKey>,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<ListedRows, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                read(sqlite, move |sqlite| {
                    sqlite.rows_of(&log, &room, after.as_ref(), max_messages, max_bytes)
                })
                .await
            }
            Self::Cassandra(cassandra) => {
                let after = after.as_ref();
                cassandra
                    .rows_of(&log, &room, after, max_messages, max_bytes)
                    .await
            }
        }
    }

    /// How much it has.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn totals(&self) -> Result<Totals, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => read(sqlite, |sqlite| sqlite.totals()).await,
            Self::Cassandra(cassandra) => cassandra.totals().await,
        }
    }

    /// What is in quarantine behind the stream and sequence `after`, by stream and sequence, at most `max_messages`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn quarantined(
        &self,
        after: Option<(String, Seq)>,
        max_messages: u32,
    ) -> Result<Vec<(String, Quarantined)>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                read(sqlite, move |sqlite| {
                    sqlite.quarantined(after.as_ref(), max_messages)
                })
                .await
            }
            Self::Cassandra(cassandra) => cassandra.quarantined(after.as_ref(), max_messages).await,
        }
    }

    /// A note that a tool left under `name`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn note(&self, name: String) -> Result<Option<String>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => read(sqlite, move |sqlite| sqlite.note(&name)).await,
            Self::Cassandra(cassandra) => cassandra.note(&name).await,
        }
    }

    /// Leaves a note under `name`, in place of the one that is there. It is durable when this returns.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn leave_note(&self, name: String, text: String) -> Result<(), ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                read(sqlite, move |sqlite| sqlite.leave_note(&name, &text)).await
            }
            Self::Cassandra(cassandra) => cassandra.leave_note(&name, &text).await,
        }
    }
}
