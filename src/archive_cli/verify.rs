//! Knows: `weir archive verify`: what the log and the archive both should have is compared message by message, both ways.
//! Never: repairs anything.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use weir_history::Archive;
use weir_history::held::Held;
use weir_history::listing::{ListedRow, RowKey, StreamRecord};
use weir_nats::replay::{Replay, Scanned, StreamState};
use weir_nats::{Delivery, Message, Placements, RoomName, Seq};

use super::progress::Progress;
use super::{Failure, Nats, existing_archive, failed, patiently, walk};
use crate::cli::{Common, complain, say};
use crate::config::Loaded;

/// Messages of one read of a stream; each read holds up its writers.
const SCAN_MAX_MESSAGES: u32 = 500;
/// Bytes of a payload that are shown around its first difference.
const SHOWN_BYTES: usize = 40;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Only this log
    #[arg(long)]
    log: Option<String>,
    /// The first sequence; else the first that the log has
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// The last sequence; else the last that the archive holds. With --from or --to, holes count as differences
    #[arg(long, value_name = "SEQ")]
    to: Option<u64>,
}

/// Where log and archive first differ.
struct Difference(String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) async fn run(loaded: &Loaded, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let archive = existing_archive(&loaded.config).await?;
    let nats = Box::pin(Nats::connect(loaded)).await.map_err(|error| {
        failed(format!(
            "{error}; verify needs the log: start NATS, or correct nats.url"
        ))
    })?;
    let replay = Replay::new(nats.links.reads.clone());
    let placements = Placements::default();
    for (log, record) in &nats.placements {
        // A log that was never started has no slots.
        if !record.slots.is_empty() {
            placements.set(log, record);
        }
    }
    let held = patiently(async || archive.held_now().await).await?;
    let streams = patiently(async || archive.streams().await).await?;
    let nothing = Held::default();
    let (mut compared, mut ranges_compared) = (0, 0);
    for stream in &streams {
        let name = &stream.generation.stream;
        if arguments.log.as_ref().is_some_and(|log| *log != stream.log) {
            continue;
        }
        let state = match replay.state(name).await {
            Ok(state) => state,
            Err(weir_nats::replay::ReplayError::NoStream(_)) => {
                complain(&format!("{name}: the log does not have it any more"));
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        let held = held.get(name).unwrap_or(&nothing);
        for (from, to) in ranges(arguments, stream, &state, held) {
            let mut verify = Verify {
                archive: &archive,
                replay: &replay,
                placements: &placements,
                stream,
                held,
                progress: Progress::new("messages", Some(to.get() - from.get() + 1)),
            };
            if let Err(difference) = verify.range(from, to).await? {
                drop(verify);
                say(&format!("{name}: {difference}\n"));
                return Ok(ExitCode::FAILURE);
            }
            compared += verify.progress.done();
            ranges_compared += 1;
            drop(verify);
            say(&format!("{name}: {from} to {to} are the same\n"));
        }
    }
    if ranges_compared == 0 {
        return Err(failed(
            "there is nothing to compare: the archive holds nothing that the log still has in this range; weir archive \
             status shows both",
        ));
    }
    say(&format!(
        "{compared} messages were compared, no difference\n"
    ));
    Ok(ExitCode::SUCCESS)
}

/// What both should have; or all of what was asked for that the stream has.
fn ranges(
    arguments: &Arguments,
    stream: &StreamRecord,
    state: &StreamState,
    held: &Held,
) -> Vec<(Seq, Seq)> {
    let first = state.first.max(stream.generation.from);
    let first = first.max(Seq::new(arguments.from.unwrap_or(0)));
    let last = state.last.min(Seq::new(arguments.to.unwrap_or(u64::MAX)));
    let all = if arguments.from.is_some() || arguments.to.is_some() {
        // What the worker has not come to yet is no difference, unless it was asked for by name.
        let end = if arguments.to.is_some() {
            last
        } else {
            held.end().min(last)
        };
        vec![(first.get(), end.get())]
    } else {
        let both = held.ranges().iter();
        both.map(|(from, to)| (first.get().max(*from), last.get().min(*to)))
            .collect()
    };
    all.into_iter()
        .filter(|(from, to)| from <= to)
        .map(|(from, to)| (Seq::new(from), Seq::new(to)))
        .collect()
}

struct Verify<'a> {
    archive: &'a Archive,
    replay: &'a Replay,
    placements: &'a Placements,
    stream: &'a StreamRecord,
    held: &'a Held,
    progress: Progress,
}

impl Verify<'_> {
    async fn range(&mut self, from: Seq, to: Seq) -> Result<Result<(), Difference>, Failure> {
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

/// The first difference of two messages in words.
fn compare(log: &Message, archive: &Message) -> Option<String> {
    let shown = |what: &str, log: &dyn fmt::Debug, archive: &dyn fmt::Debug| {
        Some(format!(
            "{what}: the log has {log:?}, the archive has {archive:?}"
        ))
    };
    if log.id != archive.id {
        return shown("id", &log.id, &archive.id);
    }
    if log.time_ms != archive.time_ms {
        return shown("time (ms since 1970)", &log.time_ms, &archive.time_ms);
    }
    if log.author != archive.author {
        return shown("author", &log.author, &archive.author);
    }
    if log.tags != archive.tags {
        return shown("tags", &log.tags, &archive.tags);
    }
    if log.data == archive.data {
        return None;
    }
    let same = log.data.iter().zip(archive.data.iter());
    let at = same.take_while(|(a, b)| a == b).count();
    let mut text = format!("payload: differs from byte {at} on");
    for (name, data) in [
        ("the log has", &log.data),
        ("the archive has", &archive.data),
    ] {
        let around = &data[at.saturating_sub(SHOWN_BYTES / 2).min(data.len())..];
        let around = &around[..around.len().min(SHOWN_BYTES)];
        write!(
            text,
            ", {name} {} bytes, there b\"{}\"",
            data.len(),
            around.escape_ascii()
        )
        .expect("a string takes all");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_first_difference_is_said() {
        let message = |id: &str, time_ms, data: &'static [u8]| Message {
            seq: Seq::new(1),
            time_ms,
            id: id.into(),
            author: None,
            tags: BTreeMap::new(),
            data: bytes::Bytes::from_static(data),
        };
        let one = message("a", 1, b"{\"text\":\"hello\"}");
        assert_eq!(compare(&one, &one), None);
        let table = [
            (
                message("b", 1, b"{}"),
                "id: the log has \"a\", the archive has \"b\"",
            ),
            (
                message("a", 2, b"{}"),
                "time (ms since 1970): the log has 1, the archive has 2",
            ),
            (
                message("a", 1, b"{\"text\":\"hullo\"}"),
                "payload: differs from byte 10 on, the log has 16 bytes, there b\"{\\\"text\\\":\\\"hello\\\"}\", \
                 the archive has 16 bytes, there b\"{\\\"text\\\":\\\"hullo\\\"}\"",
            ),
            (
                message("a", 1, b""),
                "payload: differs from byte 0 on, the log has 16 bytes, there b\"{\\\"text\\\":\\\"hello\\\"}\", \
                 the archive has 0 bytes, there b\"\"",
            ),
        ];
        for (other, text) in table {
            assert_eq!(compare(&one, &other).unwrap(), text);
        }
    }
}
