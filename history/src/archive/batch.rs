//! Knows: what is written into an archive: messages, and what could not become a row. Never: how, SQL, NATS.

use weir_nats::erasure::Matcher;
use weir_nats::erasure::streams::covers_stranger;
use weir_nats::message::header;
use weir_nats::placement::Generation;
use weir_nats::{Author, Door, Message, RoomName, Seq};

use crate::held::Held;

/// Rows of one stream that become durable together with what they prove.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The log.
    pub log: String,
    /// The slot.
    pub slot: u16,
    /// The stream, its epoch and where it begins.
    pub generation: Generation,
    /// Messages and their rooms, by offset.
    pub rows: Vec<(RoomName, Message)>,
    /// What could not become a row.
    pub refused: Vec<Quarantined>,
    /// Ranges that are held whole once this is durable.
    pub held: Held,
    /// When the stream was created, as the server spells it.
    pub created: String,
}

/// A message that is no room's.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// Its sequence.
    pub seq: Seq,
    /// Its subject.
    pub subject: String,
    /// Its headers, one `Name: value` a line.
    pub headers: String,
    /// Its payload.
    pub data: bytes::Bytes,
    /// Why it is here.
    pub reason: String,
}

/// What an append came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Rows that were not there before.
    pub rows: u64,
    /// Messages that could not become a row and went into quarantine instead.
    pub refused: u64,
    /// Messages that an order of erasure covers, so they are not kept.
    pub erased: u64,
    /// Offsets at which another message was archived before: the log went back in time.
    pub conflicts: Vec<Seq>,
}

impl Quarantined {
    /// True if an order covers it.
    pub(crate) fn is_erased(&self, matcher: &Matcher) -> bool {
        let user = user_of(&self.headers);
        matcher
            .all()
            .any(|order| covers_stranger(order, &self.subject, user, self.seq, i64::MIN))
    }

    /// A message that is a room's and that the archive does not take as a row.
    #[must_use]
    pub fn of_row(
        log: &str,
        room: &RoomName,
        message: &Message,
        error: &dyn std::fmt::Display,
    ) -> Self {
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

/// The author in headers as quarantine keeps them, escaped as there.
pub(crate) fn user_of(headers: &str) -> &str {
    let mut lines = headers.lines().rev();
    let found = lines.find_map(|line| line.strip_prefix(header::USER)?.strip_prefix(": "));
    found.unwrap_or_default()
}

/// Headers as quarantine keeps them.
pub(crate) fn headers_text(headers: &async_nats::HeaderMap) -> String {
    let lines = headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}\n")));
    lines.collect()
}
