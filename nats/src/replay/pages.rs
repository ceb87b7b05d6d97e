//! Knows: how pages of one room are read from a stream, in both directions, and that nothing was passed
//! over. Never: archives.

use std::sync::Arc;

use serde_json::json;

use super::{BATCH_MAX_BYTES, BATCH_MAX_MESSAGES, Replay, ReplayError};
use crate::message::{Message, format_time_ms};
use crate::position::Seq;

/// Probes for where a backward page starts.
const PROBES_MAX: usize = 12;

/// Messages of one room.
#[derive(Clone, Debug, Default)]
pub struct ReplayPage {
    /// Oldest first from [`Replay::forward`], newest first from [`Replay::backward`].
    pub messages: Vec<Arc<Message>>,
    /// More follow in the same direction.
    pub more: bool,
    /// The stream's index counts messages among these that it did not send: it cannot read them, or
    /// they were deleted meanwhile. Said of pages of [`Replay::forward`] only.
    pub passed_over: bool,
}

/// The newest messages of a span.
struct Newest {
    /// Newest first.
    messages: Vec<Arc<Message>>,
    /// How many lie in the span.
    seen: usize,
}

impl Replay {
    /// Messages of one subject after `after`, oldest first. The server passes over what it cannot read
    /// as over what is deleted, but its index still counts it: a count that falls by more than was sent
    /// tells. (A message to the subject that is stored at that moment hides one that was passed over.)
    ///
    /// # Errors
    /// When the stream does not answer whole.
    pub async fn forward(
        &self,
        stream: &str,
        stored_subject: &str,
        after: Seq,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<ReplayPage, ReplayError> {
        let limits = (max_messages, max_bytes);
        let (mut page, left) = self
            .forward_counting(stream, stored_subject, after, limits)
            .await?;
        match page.messages.last() {
            // Cut: what follows has to be as many as were left.
            Some(newest) if page.more => {
                let follow = self.count_after(stream, stored_subject, newest.seq).await?;
                page.passed_over |= follow.map_or(0, |(count, _)| count) < left;
            }
            Some(_) => {}
            // Nothing follows, or the last that does cannot be read: then the subject has no last.
            None if max_messages > 0 && max_bytes > 0 => {
                page.passed_over = self.last(stream, stored_subject).await?.is_none()
                    && self.counted(stream, stored_subject).await? > 0;
            }
            None => {}
        }
        Ok(page)
    }

    /// The same without the last check, and how many more the index counted at its end.
    async fn forward_counting(
        &self,
        stream: &str,
        stored_subject: &str,
        after: Seq,
        (max_messages, max_bytes): (u32, u32),
    ) -> Result<(ReplayPage, u64), ReplayError> {
        let _permit = self
            .reads
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let mut page = ReplayPage::default();
        let mut from = after;
        let mut bytes = 0_usize;
        let mut expected = 0;
        loop {
            let wanted = max_messages.saturating_sub(to_u32(page.messages.len()));
            let left = max_bytes.saturating_sub(to_u32(bytes));
            if wanted == 0 || left == 0 {
                page.more = true;
                return Ok((page, expected));
            }
            let query = json!({
                "seq": from.read_from(),
                "next_by_subj": stored_subject,
                "batch": wanted.min(BATCH_MAX_MESSAGES),
                "max_bytes": left.min(BATCH_MAX_BYTES),
            });
            let (deliveries, pending) = self.batch(stream, &query).await?;
            let counted = deliveries.first().map_or(0, |first| first.pending + 1);
            page.passed_over |= counted < expected;
            let Some(newest) = deliveries.last() else {
                page.more = false;
                return Ok((page, 0));
            };
            from = newest.message.seq;
            for delivery in deliveries {
                if delivery.stored_subject != stored_subject {
                    return Err(ReplayError::Malformed(stream.to_owned()));
                }
                bytes += delivery.message.data.len();
                page.messages.push(Arc::new(delivery.message));
            }
            page.more = pending > 0;
            if !page.more {
                return Ok((page, 0));
            }
            expected = pending;
        }
    }

    /// How many messages of a subject lie after `after`, and the sequence of the first of them.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub async fn count_after(
        &self,
        stream: &str,
        stored_subject: &str,
        after: Seq,
    ) -> Result<Option<(u64, Seq)>, ReplayError> {
        let query = json!({ "seq": after.read_from(), "next_by_subj": stored_subject, "batch": 1 });
        let (deliveries, pending) = self.batch(stream, &query).await?;
        Ok(deliveries
            .first()
            .map(|first| (pending + 1, first.message.seq)))
    }

    /// The first message of a subject that was stored at `time_ms` (milliseconds since 1970) or later.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub async fn first_since(
        &self,
        stream: &str,
        stored_subject: &str,
        time_ms: i64,
    ) -> Result<Option<Seq>, ReplayError> {
        let time = format_time_ms(time_ms);
        let query = json!({ "start_time": time, "next_by_subj": stored_subject, "batch": 1 });
        let (deliveries, _) = self.batch(stream, &query).await?;
        Ok(deliveries.first().map(|first| first.message.seq))
    }
    /// The newest messages of one subject below `before` and above `above`, newest first. JetStream
    /// has no such request: the start is found by interpolating over the pending counts, then one
    /// forward read ends at `before`.
    ///
    /// # Errors
    /// When the stream does not answer whole.
    pub async fn backward(
        &self,
        stream: &str,
        stored_subject: &str,
        before: Option<Seq>,
        above: Seq,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<ReplayPage, ReplayError> {
        let state = self.state(stream).await?;
        let end = before.unwrap_or(Seq::new(state.last.read_from()));
        let low = above.max(state.first.just_before());
        if end.get() <= low.read_from() {
            return Ok(ReplayPage::default());
        }
        // How many lie at or after `end`: what a count from elsewhere has to leave out.
        let beyond = self
            .count_after(stream, stored_subject, end.just_before())
            .await?
            .map_or(0, |(count, _)| count);
        let Some((count, _)) = self.count_after(stream, stored_subject, low).await? else {
            return Ok(ReplayPage::default());
        };
        let total = count.saturating_sub(beyond);
        let wanted = u64::from(max_messages);
        let (mut start, mut held) = (low, total);
        let (mut top, mut lower) = (end.get(), low.get());
        for _ in 0..PROBES_MAX {
            if held <= wanted * 2 || top - lower < 2 {
                break;
            }
            // Where about one and a half pages would lie, if the room were evenly spread.
            let span = top - lower;
            let share = u128::from(span) * u128::from(wanted + wanted / 2) / u128::from(held);
            let back = u64::try_from(share).unwrap_or(span).clamp(1, span - 1);
            let probe = Seq::new(top - back);
            let found = self.count_after(stream, stored_subject, probe).await?;
            let count = found.map_or(0, |(count, _)| count).saturating_sub(beyond);
            if count >= wanted {
                (start, held, lower) = (probe, count, probe.get());
            } else {
                // Too far up: what is wanted begins below the probe.
                top = probe.get();
                if top - lower < 2 {
                    break;
                }
                let middle = Seq::new(lower + (top - lower) / 2);
                let found = self.count_after(stream, stored_subject, middle).await?;
                let count = found.map_or(0, |(count, _)| count).saturating_sub(beyond);
                if count >= wanted {
                    (start, held, lower) = (middle, count, middle.get());
                } else {
                    top = middle.get();
                }
            }
        }
        let wanted = max_messages as usize;
        loop {
            let read = self
                .newest_in(stream, stored_subject, (start, end), wanted, max_bytes)
                .await?;
            // What was written while it was counted may have hidden that too few lie here.
            let is_enough = read.seen >= wanted || read.seen > read.messages.len();
            if start > low && !is_enough {
                let span = end.get() - start.get();
                start = Seq::new(end.get().saturating_sub(span * 2)).max(low);
                continue;
            }
            return Ok(ReplayPage {
                more: read.seen > read.messages.len() || (start > low && total > read.seen as u64),
                messages: read.messages,
                passed_over: false,
            });
        }
    }

    /// The newest messages of a subject in (`after`, `end`), newest first, of all that lie there.
    async fn newest_in(
        &self,
        stream: &str,
        stored_subject: &str,
        (after, end): (Seq, Seq),
        max_messages: usize,
        max_bytes: u32,
    ) -> Result<Newest, ReplayError> {
        let mut messages: Vec<Arc<Message>> = Vec::new();
        let (mut from, mut seen) = (after, 0);
        loop {
            let limits = (BATCH_MAX_MESSAGES, BATCH_MAX_BYTES);
            let (page, _) = self
                .forward_counting(stream, stored_subject, from, limits)
                .await?;
            let reached_end = page.messages.iter().any(|message| message.seq >= end);
            if let Some(newest) = page.messages.last() {
                from = newest.seq;
            }
            let before = messages.len();
            let inside = page.messages.into_iter();
            messages.extend(inside.filter(|message| message.seq < end));
            seen += messages.len() - before;
            // Only the newest are wanted; a window as large as the page keeps memory bounded.
            let mut bytes = 0;
            let fitting = messages.iter().rev().take(max_messages);
            let fitting = fitting
                .take_while(|message| {
                    let fits = bytes == 0 || bytes + message.data.len() <= max_bytes as usize;
                    bytes += message.data.len();
                    fits
                })
                .count();
            messages.drain(..messages.len() - fitting);
            if reached_end || !page.more {
                break;
            }
        }
        messages.reverse();
        Ok(Newest { messages, seen })
    }
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
