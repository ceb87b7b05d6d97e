//! Knows: how rows of `messages` are read: of one partition, of the partitions of a bucket together, and where a full
//! answer goes on. Never: which buckets there are (index.rs), what the rows are wanted for.

use bytes::Bytes;
use weir_nats::{Message, RoomName, Seq};

use super::{Link, envelope, to_i64, to_seq};
use crate::archive::ArchiveError;

/// Rows of a query that reads no payloads.
pub(super) const KEYS_MAX_ROWS: usize = 5_000;
/// Above the time of any message (µs): an envelope that was overwritten so late is erased for good.
pub(super) const ERASED_US: i64 = 1 << 60;

/// A room of a log.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogRoom<'a> {
    pub(super) log: &'a str,
    pub(super) room: &'a RoomName,
}

/// Offsets in (`after`, `up_to`], and which way they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) after: Seq,
    pub(super) up_to: Seq,
    pub(super) reverse: bool,
}

/// A partition: a room in one epoch, in the bucket that begins at a sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partition<'a> {
    pub(super) of: LogRoom<'a>,
    pub(super) epoch: &'a str,
    pub(super) bucket: u64,
}

/// What was read of a span, in its direction: offsets with all their rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<T> {
    pub(super) rows: Vec<T>,
    /// How far it was read; `None`: to the end.
    pub(super) read_to: Option<Seq>,
}

/// A row with its payload.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) seq: Seq,
    pub(super) id: String,
    /// Absent and empty where it was erased.
    envelope: Option<Bytes>,
}

/// A row without its payload.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) seq: Seq,
    pub(super) id: String,
    /// When the envelope was written (µs): the message's time.
    written_us: Option<i64>,
}

/// What stands at an offset.
pub(super) trait AtOffset {
    fn seq(&self) -> Seq;
}

impl AtOffset for Row {
    fn seq(&self) -> Seq {
        self.seq
    }
}

impl AtOffset for Key {
    fn seq(&self) -> Seq {
        self.seq
    }
}

impl AtOffset for Message {
    fn seq(&self) -> Seq {
        self.seq
    }
}

impl Row {
    /// The message; `None` if it was erased.
    ///
    /// # Errors
    /// When the envelope cannot be read.
    pub(super) fn message(self) -> Result<Option<Message>, ArchiveError> {
        match self.envelope {
            Some(blob) if !blob.is_empty() => envelope::decode(self.seq, self.id, &blob).map(Some),
            _ => Ok(None),
        }
    }
}

impl Key {
    /// When the message was stored, in milliseconds since 1970; `None` if it was erased.
    pub(super) fn time_ms(&self) -> Option<i64> {
        let written_us = self.written_us.filter(|written| *written < ERASED_US);
        written_us.map(|written| written / 1_000)
    }
}

impl Span {
    /// Everything, oldest first.
    pub(super) const ALL_FORWARD: Self = Self {
        after: Seq::ZERO,
        up_to: Seq::MAX,
        reverse: false,
    };
    /// Everything, newest first.
    pub(super) const ALL_BACKWARD: Self = Self {
        after: Seq::ZERO,
        up_to: Seq::MAX,
        reverse: true,
    };

    pub(super) fn is_empty(&self) -> bool {
        self.after >= self.up_to
    }

    /// What is left behind `seq`.
    pub(super) fn go_on(&mut self, seq: Seq) {
        if self.reverse {
            self.up_to = seq.just_before();
        } else {
            self.after = seq;
        }
    }

    /// True if `a` comes before `b` in this direction.
    fn is_before(&self, a: Seq, b: Seq) -> bool {
        if self.reverse { a > b } else { a < b }
    }
}

impl Partition<'_> {
    /// Reads at most `limit` rows of a span.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) async fn rows(
        &self,
        link: &Link,
        span: Span,
        limit: usize,
    ) -> Result<Part<Row>, ArchiveError> {
        let select = if span.reverse {
            &link.statements.select_backward
        } else {
            &link.statements.select_forward
        };
        let found: Vec<(i64, String, Option<Bytes>)> =
            link.driver.read(select, self.query(span, limit)).await?;
        let rows = found.into_iter().map(|(off, id, envelope)| Row {
            seq: to_seq(off),
            id,
            envelope,
        });
        Ok(Part::of_answer(rows.collect(), limit))
    }

    /// Reads at most `limit` keys of a span, newest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) async fn keys(
        &self,
        link: &Link,
        span: Span,
        limit: usize,
    ) -> Result<Part<Key>, ArchiveError> {
        let select = &link.statements.select_keys_backward;
        let found: Vec<(i64, String, Option<i64>)> =
            link.driver.read(select, self.query(span, limit)).await?;
        let rows = found.into_iter().map(|(off, id, written_us)| Key {
            seq: to_seq(off),
            id,
            written_us,
        });
        Ok(Part::of_answer(rows.collect(), limit))
    }

    fn query(&self, span: Span, limit: usize) -> (&str, &str, &str, i64, i64, i64, i32) {
        (
            self.of.log,
            self.of.room.channel(),
            self.epoch,
            to_i64(Seq::new(self.bucket)),
            to_i64(span.after),
            to_i64(span.up_to),
            i32::try_from(limit).unwrap_or(i32::MAX),
        )
    }
}

impl<T: AtOffset> Part<T> {
    /// If an answer is full, the rows of its last offset may be cut off: they are read with the next. (One offset has
    /// a few rows, never a whole answer.)
    fn of_answer(mut rows: Vec<T>, limit: usize) -> Self {
        if rows.len() < limit {
            return Self {
                rows,
                read_to: None,
            };
        }
        let last = rows.last().map(AtOffset::seq);
        let whole = rows.iter().filter(|row| Some(row.seq()) != last).count();
        if whole > 0 {
            rows.truncate(whole);
        }
        let read_to = rows.last().map(AtOffset::seq);
        Self { rows, read_to }
    }

    /// What was read of several partitions, as far as all of them were read. The index lists epochs in the span's
    /// direction, so that of one offset the same epoch's row comes first both ways.
    pub(super) fn merged(parts: Vec<Self>, span: Span) -> Self {
        let read_to = parts
            .iter()
            .filter_map(|part| part.read_to)
            .reduce(|a, b| if span.is_before(a, b) { a } else { b });
        let mut rows: Vec<T> = parts.into_iter().flat_map(|part| part.rows).collect();
        rows.retain(|row| read_to.is_none_or(|read_to| !span.is_before(read_to, row.seq())));
        rows.sort_by_key(AtOffset::seq);
        if span.reverse {
            rows.reverse();
        }
        Self { rows, read_to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl AtOffset for (u64, &str) {
        fn seq(&self) -> Seq {
            Seq::new(self.0)
        }
    }

    #[test]
    fn an_offset_is_read_whole_or_with_the_next() {
        let rows = vec![(1, "a"), (2, "b"), (2, "c")];
        let all = Part::of_answer(rows.clone(), 4);
        assert_eq!((all.rows.len(), all.read_to), (3, None));
        let cut = Part::of_answer(rows, 3);
        assert_eq!((cut.rows, cut.read_to), (vec![(1, "a")], Some(Seq::new(1))));
    }

    #[test]
    fn partitions_are_merged_as_far_as_all_were_read() {
        let forward = Part::merged(
            vec![
                Part {
                    rows: vec![(1, "a"), (5, "a")],
                    read_to: Some(Seq::new(5)),
                },
                Part {
                    rows: vec![(2, "b"), (5, "b"), (9, "b")],
                    read_to: None,
                },
            ],
            Span::ALL_FORWARD,
        );
        assert_eq!(forward.rows, [(1, "a"), (2, "b"), (5, "a"), (5, "b")]);
        assert_eq!(forward.read_to, Some(Seq::new(5)));
        let backward = Part::merged(
            vec![
                Part {
                    rows: vec![(9, "a"), (7, "a")],
                    read_to: Some(Seq::new(7)),
                },
                Part {
                    rows: vec![(8, "b"), (6, "b")],
                    read_to: Some(Seq::new(6)),
                },
            ],
            Span::ALL_BACKWARD,
        );
        assert_eq!(backward.rows, [(9, "a"), (8, "b"), (7, "a")]);
        assert_eq!(backward.read_to, Some(Seq::new(7)));
    }
}
