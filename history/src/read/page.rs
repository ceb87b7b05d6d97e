//! Knows: what fits into a page, and how much of one is left. Never: where messages come from.

use std::sync::Arc;

use weir_nats::placement::Place;
use weir_nats::{Message, RoomName, Seq};

use crate::archive::{PageQuery, Rows};

/// Messages and what they prove.
#[derive(Clone, Debug)]
pub struct Page {
    /// In the order asked for.
    pub messages: Vec<Arc<Message>>,
    /// Of a forward page: everything of the room in (after, reached] is in `messages`.
    pub reached: Seq,
    /// More lie in the same direction.
    pub more: bool,
    /// False: what was read touches a hole.
    pub whole: bool,
}

impl Page {
    /// Keeps what fits into a reply; the rest is `more`.
    pub(super) fn cut(&mut self, max_messages: u32, max_bytes: u32) {
        let mut bytes = 0;
        let fits = self
            .messages
            .iter()
            .take(max_messages as usize)
            .take_while(|message| {
                bytes += message.data.len();
                bytes <= max_bytes as usize || bytes == message.data.len()
            })
            .count();
        if fits < self.messages.len() {
            let cut = self.messages[fits].seq;
            self.messages.truncate(fits);
            self.more = true;
            let last = self.messages.last();
            self.reached = last.map_or(cut.just_before(), |last| last.seq);
        }
    }
}

/// What a page may still take.
pub(super) struct Left {
    pub(super) messages: u32,
    pub(super) bytes: u32,
    /// What it could take when it was empty. The archive is asked for that much, whatever came
    /// before, so that equal questions are equal queries.
    page: (u32, u32),
}

impl Left {
    pub(super) fn new(max_messages: u32, max_bytes: u32) -> Self {
        Self {
            messages: max_messages,
            bytes: max_bytes,
            page: (max_messages, max_bytes),
        }
    }

    /// Takes those rows that fit, at least one into a page that `is_empty`. True if others follow.
    pub(super) fn take_rows<'a>(
        &mut self,
        rows: &'a Rows,
        is_empty: bool,
    ) -> (&'a [Arc<Message>], bool) {
        let mut bytes = 0;
        let fits = rows
            .messages
            .iter()
            .take(self.messages as usize)
            .enumerate()
            .take_while(|(nth, message)| {
                bytes += message.data.len();
                bytes <= self.bytes as usize || (is_empty && *nth == 0)
            })
            .count();
        let taken = &rows.messages[..fits];
        self.take(taken);
        (taken, rows.more || fits < rows.messages.len())
    }

    pub(super) fn take(&mut self, messages: &[Arc<Message>]) {
        let bytes: usize = messages.iter().map(|message| message.data.len()).sum();
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        self.messages = self.messages.saturating_sub(count);
        self.bytes = self
            .bytes
            .saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.messages == 0 || self.bytes == 0
    }

    /// A query for as much as a page takes, of the rows in (after, up_to].
    pub(super) fn query(
        &self,
        place: &Place,
        room: &RoomName,
        (after, up_to): (Seq, Seq),
        reverse: bool,
    ) -> PageQuery {
        PageQuery {
            log: place.log.clone(),
            room: room.clone(),
            after,
            up_to,
            reverse,
            max_messages: self.page.0,
            max_bytes: self.page.1,
        }
    }
}
