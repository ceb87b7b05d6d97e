//! Knows: how a range of one stream is compared with its rows, both ways. Never: which ranges, what is printed.

use std::collections::HashMap;

use weir_history::Archive;
use weir_history::archive::Erasure;
use weir_history::held::Held;
use weir_history::listing::{ListedRow, RowKey, StreamRecord};
use weir_nats::replay::{Replay, Scanned};
use weir_nats::{Delivery, Message, Placements, RoomName, Seq};

use super::Difference;
use super::words::compare;
use crate::archive_cli::progress::Progress;
use crate::archive_cli::{Failure, failed, patiently, walk};

/// Messages of one read of a stream; each read holds up its writers.
const SCAN_MAX_MESSAGES: u32 = 500;

pub(super) struct Verify<'a> {
    pub(super) archive: &'a Archive,
    pub(super) replay: &'a Replay,
    pub(super) placements: &'a Placements,
    pub(super) stream: &'a StreamRecord,
    pub(super) held: &'a Held,
    pub(super) erasures: &'a [Erasure],
    pub(super) progress: Progress,
}

impl Verify<'_> {
    pub(super) async fn range(
        &mut self,
        from: Seq,
        to: Seq,
    ) -> Result<Result<(), Difference>, Failure> {
        let (mut at, mut rows) = (from.just_before(), 0);
        let filter = format!("log.{}.>", self.stream.log);
        while at < to {
            let page = self.scan(&filter, at).await?;
            let Some(newest) = page.last() else {
                break;
            };
            let reached = newest.seq;
            let page: Vec<Scanned> = page.into_iter().filter(|one| one.seq <= to).collect();
            match self.page(page).await? {
                Ok(found) => rows += found,
                Err(difference) => return Ok(Err(difference)),
            }
            self.progress.add(reached.min(to).get() - at.get());
            at = reached;
        }
        self.nothing_more(from, to, rows).await
    }

    async fn scan(&self, filter: &str, after: Seq) -> Result<Vec<Scanned>, Failure> {
        let stream = &self.stream.generation.stream;
        let scanned = self.replay.scan(stream, filter, after, SCAN_MAX_MESSAGES);
        match scanned.await {
            Ok(page) => Ok(page),
            // Once again: a read that others held up.
            Err(first) => {
                tracing::debug!(%first, "a read is tried again");
                let again = self.replay.scan(stream, filter, after, SCAN_MAX_MESSAGES);
                again.await.map_err(failed)
            }
        }
    }

    /// Each message of the log has its row. How many rows these are.
    async fn page(&self, page: Vec<Scanned>) -> Result<Result<u64, Difference>, Failure> {
        let mut by_room: HashMap<RoomName, Vec<Delivery>> = HashMap::new();
        let mut differences: Vec<(Seq, Difference)> = Vec::new();
        for one in page {
            match one.delivery {
                Ok(delivery) => by_room
                    .entry(delivery.room.clone())
                    .or_default()
                    .push(delivery),
                Err(_) => {
                    let kept = self.quarantined(one.seq).await?;
                    if kept.as_ref().is_none_or(|data| **data != *one.payload) {
                        let what = if kept.is_some() {
                            "another payload"
                        } else {
                            "nothing"
                        };
                        let text = format!(
                            "sequence {}, subject {:?}: the log has a message that is no room's, the archive's \
                             quarantine has {what}",
                            one.seq, one.subject
                        );
                        differences.push((one.seq, Difference(text)));
                    }
                }
            }
        }
        let mut rows = 0;
        for (room, deliveries) in by_room {
            let (Some(first), Some(last)) = (deliveries.first(), deliveries.last()) else {
                continue;
            };
            let (first, last) = (first.message.seq, last.message.seq);
            let archived = self.rows(&room, first, last).await?;
            for delivery in &deliveries {
                let message = &delivery.message;
                match self.row(&room, message, &archived).await? {
                    Ok(true) => rows += 1,
                    Ok(false) => {}
                    Err(difference) => {
                        differences.push((message.seq, difference));
                        break;
                    }
                }
            }
        }
        // The first, whatever room it is in.
        differences.sort_by_key(|(seq, _)| *seq);
        Ok(match differences.into_iter().next() {
            Some((_, difference)) => Err(difference),
            None => Ok(rows),
        })
    }

    /// The rows of a room in this epoch, by sequence.
    async fn rows(
        &self,
        room: &RoomName,
        first: Seq,
        last: Seq,
    ) -> Result<HashMap<Seq, Vec<ListedRow>>, Failure> {
        let mut rows: HashMap<Seq, Vec<ListedRow>> = HashMap::new();
        let mut after = Some(RowKey::end_of(first.just_before()));
        loop {
            let page = walk::rows(self.archive, &self.stream.log, room, after.as_ref()).await?;
            after = page.rows.last().map(ListedRow::key);
            let is_past = page.rows.last().is_none_or(|row| row.message.seq > last);
            for row in page.rows {
                if row.message.seq <= last && row.epoch == self.stream.generation.epoch {
                    rows.entry(row.message.seq).or_default().push(row);
                }
            }
            if is_past || !page.more {
                return Ok(rows);
            }
        }
    }

    /// True if the message is a row, false if it is in quarantine.
    async fn row(
        &self,
        room: &RoomName,
        message: &Message,
        archived: &HashMap<Seq, Vec<ListedRow>>,
    ) -> Result<Result<bool, Difference>, Failure> {
        let seq = message.seq;
        let rows = archived.get(&seq).map(Vec::as_slice).unwrap_or_default();
        let same = rows.iter().find(|row| row.message.id == message.id);
        if let Some(row) = same.or_else(|| rows.first()) {
            return Ok(match compare(message, &row.message) {
                None => Ok(true),
                Some(text) => Err(self.difference(room, seq, &text)),
            });
        }
        if let Some(data) = self.quarantined(seq).await? {
            if data == message.data {
                return Ok(Ok(false));
            }
            let text = "the archive has it in quarantine, with another payload";
            return Ok(Err(self.difference(room, seq, text)));
        }
        let expired_to = patiently(async || {
            let (log, room) = (self.stream.log.clone(), room.clone());
            self.archive.expired_to(log, room).await
        });
        if seq <= expired_to.await? || self.is_erased(room, message) {
            return Ok(Ok(false));
        }
        let why = if self.held.has(seq) {
            "though it holds"
        } else {
            "and does not hold"
        };
        let text = format!(
            "the log has it (id {:?}), the archive has no row, {why} this sequence",
            message.id
        );
        Ok(Err(self.difference(room, seq, &text)))
    }

    /// What an order covers has left the archive, and is leaving the log.
    fn is_erased(&self, room: &RoomName, message: &Message) -> bool {
        let log = &self.stream.log;
        let mut orders = self.erasures.iter().map(|one| &one.order);
        orders.any(|order| order.covers(log, room, message))
    }

    async fn quarantined(&self, seq: Seq) -> Result<Option<bytes::Bytes>, Failure> {
        let stream = &self.stream.generation.stream;
        let after = Some((stream.clone(), seq.just_before()));
        let found = patiently(async || self.archive.quarantined(after.clone(), 1).await).await?;
        Ok(found
            .into_iter()
            .find(|(of, one)| of == stream && one.seq == seq)
            .map(|(_, one)| one.data))
    }

    /// The archive has no row that the log does not have: they are counted, and looked for one by one if the counts differ.
    async fn nothing_more(
        &self,
        from: Seq,
        to: Seq,
        rows: u64,
    ) -> Result<Result<(), Difference>, Failure> {
        let (mut counted, mut cursor) = (0, None);
        loop {
            let rooms = self.rooms(&mut cursor).await?;
            let Some(rooms) = rooms else { break };
            for room in rooms {
                let range = (from.just_before(), to);
                let count = async || {
                    let (log, room) = (self.stream.log.clone(), room.clone());
                    self.archive.count(log, room, range, u64::MAX).await
                };
                counted += patiently(count).await?.messages;
            }
        }
        if counted == rows {
            return Ok(Ok(()));
        }
        // It may be rows of another epoch, or what the log has dropped meanwhile.
        let mut cursor = None;
        loop {
            let rooms = self.rooms(&mut cursor).await?;
            let Some(rooms) = rooms else {
                return Ok(Ok(()));
            };
            for room in rooms {
                if let Some(difference) = self.only_archived(&room, from, to).await? {
                    return Ok(Err(difference));
                }
            }
        }
    }

    /// The next rooms of this stream's slot; `None` at the end.
    async fn rooms(&self, cursor: &mut Option<String>) -> Result<Option<Vec<RoomName>>, Failure> {
        let page = walk::rooms(self.archive, cursor.as_deref()).await?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        *cursor = Some(last.cursor.clone());
        let here = page.into_iter().filter(|one| one.log == self.stream.log);
        let here = here.map(|one| one.room).filter(|room| {
            let place = self.placements.place(&self.stream.log, room);
            place.is_none_or(|place| place.slot == self.stream.slot)
        });
        Ok(Some(here.collect()))
    }

    async fn only_archived(
        &self,
        room: &RoomName,
        from: Seq,
        to: Seq,
    ) -> Result<Option<Difference>, Failure> {
        let stream = &self.stream.generation.stream;
        let mut after = Some(RowKey::end_of(from.just_before()));
        loop {
            let page = walk::rows(self.archive, &self.stream.log, room, after.as_ref()).await?;
            after = page.rows.last().map(ListedRow::key);
            for row in &page.rows {
                let (seq, id) = (row.message.seq, &row.message.id);
                if seq > to {
                    return Ok(None);
                }
                if row.epoch != self.stream.generation.epoch {
                    continue;
                }
                let there = self.replay.at(stream, seq).await.map_err(failed)?;
                if there.is_some_and(|there| there.message.id == *id) {
                    continue;
                }
                // Read after it was looked for: what was trimmed meanwhile is no difference.
                let state = self.replay.state(stream).await.map_err(failed)?;
                if seq >= state.first {
                    let text =
                        format!("the archive has a row (id {id:?}), the log does not have it");
                    return Ok(Some(self.difference(room, seq, &text)));
                }
            }
            if !page.more {
                return Ok(None);
            }
        }
    }

    fn difference(&self, room: &RoomName, seq: Seq, text: &str) -> Difference {
        Difference(format!(
            "sequence {seq}, room {room:?}, epoch {}: {text}",
            self.stream.generation.epoch
        ))
    }
}
