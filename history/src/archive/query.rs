//! Knows: what can be asked of an archive's rows, and what is answered. Never: how, SQL, NATS.

use std::sync::Arc;

use weir_nats::{Message, RoomName, Seq};

/// Which rows to read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PageQuery {
    /// The log.
    pub log: String,
    /// The room.
    pub room: RoomName,
    /// Exclusive lower end.
    pub after: Seq,
    /// Inclusive upper end.
    pub up_to: Seq,
    /// Newest first.
    pub reverse: bool,
    /// Messages at most.
    pub max_messages: u32,
    /// Bytes of payloads at most; one message is always returned.
    pub max_bytes: u32,
}

/// Rows that were read.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// In the order asked for.
    pub messages: Vec<Arc<Message>>,
    /// More rows lie between the last of these and the end of the query.
    pub more: bool,
}

/// Rows that were counted, not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many, at most what was asked for.
    pub messages: u64,
    /// The oldest offset of those that were counted.
    pub oldest: Option<Seq>,
}
