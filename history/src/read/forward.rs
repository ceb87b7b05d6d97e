//! Knows: how a page is read oldest first, over generations, archive and stream. Never: windows, verdicts.

use weir_nats::placement::{Generation, Place};
use weir_nats::{RoomName, Seq};

use super::page::{Left, Page};
use super::{REFILLS_MAX, ReadError, Reader, TRIES_MAX, lowest};

impl Reader {
    /// Messages after `after`, oldest first, across generations. Those that are erased were there and
    /// are left out: they are reached.
    ///
    /// # Errors
    /// When a tier does not answer.
    pub async fn forward(
        &self,
        place: &Place,
        room: &RoomName,
        after: Seq,
        up_to: Option<Seq>,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Page, ReadError> {
        let mut page = self
            .forward_with_erased(place, room, after, up_to, max_messages, max_bytes)
            .await?;
        let mut dropped = self.drop_erased(place, room, &mut page.messages);
        for _ in 0..REFILLS_MAX {
            let mut left = Left::new(max_messages, max_bytes);
            left.take(&page.messages);
            if !dropped || !page.more || left.is_used_up() {
                break;
            }
            let from = page.reached;
            let mut next = self
                .forward_with_erased(place, room, from, up_to, left.messages, left.bytes)
                .await?;
            dropped = self.drop_erased(place, room, &mut next.messages);
            page.messages.append(&mut next.messages);
            page.reached = next.reached;
            page.more = next.more;
            page.whole &= next.whole;
        }
        // Asked after the page: a row that had left before it was read is known of now.
        page.whole &= after >= self.expired_to(place, room).await?;
        Ok(page)
    }

    async fn forward_with_erased(
        &self,
        place: &Place,
        room: &RoomName,
        after: Seq,
        up_to: Option<Seq>,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Page, ReadError> {
        let up_to = up_to.unwrap_or(Seq::MAX);
        let mut page = Page {
            messages: Vec::new(),
            reached: after,
            more: false,
            whole: true,
        };
        let mut left = Left::new(max_messages, max_bytes);
        let retired = lowest(place).min(up_to);
        if page.reached < retired && self.archive.is_some() {
            self.forward_retired(place, room, retired, &mut page, &mut left)
                .await?;
            if page.more {
                return Ok(page);
            }
        }
        for (generation, next) in with_next(&place.generations) {
            let end = next
                .map_or(Seq::MAX, |next| next.from.just_before())
                .min(up_to);
            if page.reached >= end {
                continue;
            }
            if left.is_used_up() {
                page.more = true;
                break;
            }
            self.forward_in(place, room, generation, end, &mut page, &mut left)
                .await?;
            if page.more || page.reached >= up_to {
                break;
            }
        }
        Ok(page)
    }

    /// What lies below the oldest generation that is placed: the streams are gone, and only the
    /// archive has it.
    async fn forward_retired(
        &self,
        place: &Place,
        room: &RoomName,
        end: Seq,
        page: &mut Page,
        left: &mut Left,
    ) -> Result<(), ReadError> {
        let range = (page.reached, end);
        let rows = self.rows(left.query(place, room, range, false)).await?;
        let (rows, more) = left.take_rows(&rows, page.messages.is_empty());
        page.reached = match rows.last() {
            _ if !more => end,
            Some(last) => last.seq,
            None => page.reached,
        };
        page.whole &= self.holds_retired(place, (range.0, page.reached));
        page.messages.extend(rows.iter().cloned());
        page.more = more || left.is_used_up();
        Ok(())
    }

    /// One generation: the archive up to its watermark, then the stream.
    async fn forward_in(
        &self,
        place: &Place,
        room: &RoomName,
        generation: &Generation,
        end: Seq,
        page: &mut Page,
        left: &mut Left,
    ) -> Result<(), ReadError> {
        let stream = &generation.stream;
        for attempt in 1..=TRIES_MAX {
            let mut away = None;
            let held = self.view(stream);
            let watermark = held.end().min(end);
            if page.reached < watermark {
                let range = (page.reached, watermark);
                match self.rows(left.query(place, room, range, false)).await {
                    Ok(rows) => {
                        let (rows, more) = left.take_rows(&rows, page.messages.is_empty());
                        let reached = match rows.last() {
                            _ if !more => watermark,
                            Some(last) => last.seq,
                            None => page.reached,
                        };
                        // What lies before this generation was proven when its own was held.
                        let from = page.reached.max(generation.from.just_before());
                        page.whole &= held.covers(from, reached);
                        page.reached = reached;
                        page.messages.extend(rows.iter().cloned());
                        if more || left.is_used_up() {
                            page.more = more || page.reached < end;
                            return Ok(());
                        }
                    }
                    // What is not older than the stream does not need the archive.
                    Err(error) => away = Some(error),
                }
            }
            if page.reached >= end {
                return Ok(());
            }
            let Some(before) = self.state_of(place, stream).await? else {
                return Ok(());
            };
            self.metrics.stream.add_one();
            let tail = self
                .replay
                .forward(
                    stream,
                    &place.stored_subject,
                    page.reached,
                    left.messages,
                    left.bytes,
                )
                .await?;
            // Read after the tail: below it nothing was trimmed unseen.
            let Some(after) = self.state_of(place, stream).await? else {
                return Ok(());
            };
            if after.first.get() > page.reached.read_from() {
                if let Some(error) = away {
                    return Err(error);
                }
                self.archive_is_known()?;
                if self.held(stream).end() > page.reached {
                    continue;
                }
                if self.archive.is_some() && before.last > page.reached {
                    // The archive may be about to have it, or it is a hole that no one fills.
                    page.whole &= self
                        .nothing_was_lost(stream, page.reached, after.first)
                        .await;
                    if self.held(stream).end() > page.reached {
                        continue;
                    }
                } else {
                    page.whole = false;
                }
            }
            if tail.passed_over && before.last > page.reached {
                // Deleted meanwhile, or a replica lagged: then another try is in order.
                if attempt < TRIES_MAX {
                    continue;
                }
                page.whole = false;
            }
            let messages: Vec<_> = tail
                .messages
                .into_iter()
                .take_while(|message| message.seq <= end)
                .collect();
            left.take(&messages);
            page.more = tail.more && messages.last().is_some_and(|last| last.seq < end);
            let last = messages.last().map_or(page.reached, |last| last.seq);
            page.reached = if page.more {
                last
            } else {
                last.max(before.last).min(end)
            };
            page.messages.extend(messages);
            return Ok(());
        }
        Err(ReadError::Trimmed(stream.clone()))
    }
}

fn with_next(
    generations: &[Generation],
) -> impl DoubleEndedIterator<Item = (&Generation, Option<&Generation>)> {
    generations
        .iter()
        .enumerate()
        .map(|(nth, generation)| (generation, generations.get(nth + 1)))
}
