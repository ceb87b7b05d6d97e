//! Knows: how a page is read newest first, over generations, stream and archive. Never: windows, verdicts.

use weir_nats::placement::{Generation, Place};
use weir_nats::{RoomName, Seq};

use super::page::{Left, Page};
use super::{REFILLS_MAX, ReadError, Reader, TRIES_MAX, lowest};

impl Reader {
    /// Messages below `before` (or the newest), newest first, across generations, without those that
    /// are erased.
    ///
    /// # Errors
    /// When a tier does not answer.
    pub async fn backward(
        &self,
        place: &Place,
        room: &RoomName,
        before: Option<Seq>,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Page, ReadError> {
        let mut page = self
            .backward_with_erased(place, room, before, max_messages, max_bytes)
            .await?;
        let mut oldest = page.messages.last().map(|oldest| oldest.seq);
        let mut dropped = self.drop_erased(place, room, &mut page.messages);
        for _ in 0..REFILLS_MAX {
            let mut left = Left::new(max_messages, max_bytes);
            left.take(&page.messages);
            if !dropped || !page.more || left.is_used_up() {
                break;
            }
            let mut next = self
                .backward_with_erased(place, room, oldest, left.messages, left.bytes)
                .await?;
            oldest = next.messages.last().map(|oldest| oldest.seq);
            dropped = self.drop_erased(place, room, &mut next.messages);
            page.messages.append(&mut next.messages);
            page.more = next.more;
            page.whole &= next.whole;
        }
        Ok(page)
    }

    async fn backward_with_erased(
        &self,
        place: &Place,
        room: &RoomName,
        before: Option<Seq>,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Page, ReadError> {
        let mut page = Page {
            messages: Vec::new(),
            reached: Seq::ZERO,
            more: false,
            whole: true,
        };
        let mut left = Left::new(max_messages, max_bytes);
        // Everything at or below `top` is still to be read.
        let mut top = before.map(Seq::just_before);
        for generation in place.generations.iter().rev() {
            let low = generation.from.just_before();
            if top.is_some_and(|top| top <= low) {
                continue;
            }
            self.backward_in(place, room, generation, top, &mut page, &mut left)
                .await?;
            if page.more {
                return Ok(page);
            }
            top = Some(low);
        }
        let rest = (Seq::ZERO, top.unwrap_or(Seq::ZERO).min(lowest(place)));
        if rest.0 < rest.1 && self.archive.is_some() {
            let rows = self.rows(left.query(place, room, rest, true)).await?;
            let (rows, more) = left.take_rows(&rows, page.messages.is_empty());
            let oldest = rows.last().filter(|_| more);
            let down_to = oldest.map_or(Seq::ZERO, |oldest| oldest.seq.just_before());
            page.whole &= self.holds_retired(place, (down_to, rest.1));
            page.messages.extend(rows.iter().cloned());
            page.more = more;
        }
        Ok(page)
    }

    /// One generation, newest first: the stream above the archive's watermark, then the archive.
    async fn backward_in(
        &self,
        place: &Place,
        room: &RoomName,
        generation: &Generation,
        top: Option<Seq>,
        page: &mut Page,
        left: &mut Left,
    ) -> Result<(), ReadError> {
        let stream = &generation.stream;
        let low = generation.from.just_before();
        for _ in 0..TRIES_MAX {
            let held = self.view(stream);
            let above = held.end().max(low);
            if top.is_none_or(|top| top > above)
                && let Some(before) = self.state_of(place, stream).await?
            {
                let end = top
                    .map_or(before.last, |top| top.min(before.last))
                    .read_from();
                self.metrics.stream.add_one();
                let tail = self
                    .replay
                    .backward(
                        stream,
                        &place.stored_subject,
                        Some(Seq::new(end)),
                        above,
                        left.messages,
                        left.bytes,
                    )
                    .await?;
                let Some(after) = self.state_of(place, stream).await? else {
                    continue;
                };
                // The lowest offset that this tail speaks for.
                let oldest = tail.messages.last().map(|oldest| oldest.seq);
                let down_to = oldest.filter(|_| tail.more).unwrap_or(above);
                if after.first.get() > down_to.read_from() {
                    self.archive_is_known()?;
                    // Trimmed below the tail, after the watermark was read: the archive has it, or
                    // is about to, or it is a hole.
                    if self.held(stream).end() > above
                        || self.nothing_was_lost(stream, above, after.first).await
                    {
                        continue;
                    }
                    page.whole = false;
                }
                left.take(&tail.messages);
                page.messages.extend(tail.messages);
                if tail.more || left.is_used_up() {
                    page.more = true;
                    return Ok(());
                }
            }
            let up_to = top.map_or(held.end(), |top| top.min(held.end()));
            if low < up_to {
                let rows = self.rows(left.query(place, room, (low, up_to), true)).await;
                let rows = match rows {
                    Ok(rows) => rows,
                    Err(error) => {
                        return self
                            .backward_without_archive(place, stream, (low, up_to), page, left)
                            .await?
                            .ok_or(error);
                    }
                };
                let (rows, more) = left.take_rows(&rows, page.messages.is_empty());
                let down_to = match rows.last() {
                    _ if !more => low,
                    Some(oldest) => oldest.seq.just_before(),
                    None => up_to,
                };
                page.whole &= held.covers(down_to, up_to);
                page.messages.extend(rows.iter().cloned());
                page.more = more || left.is_used_up();
            }
            return Ok(());
        }
        Err(ReadError::Trimmed(stream.clone()))
    }

    /// The archive did not answer: what is not older than the stream is read there. `None`: the page
    /// needs what only the archive has.
    async fn backward_without_archive(
        &self,
        place: &Place,
        stream: &str,
        (low, up_to): (Seq, Seq),
        page: &mut Page,
        left: &mut Left,
    ) -> Result<Option<()>, ReadError> {
        let end = Some(Seq::new(up_to.read_from()));
        let tail = self
            .replay
            .backward(
                stream,
                &place.stored_subject,
                end,
                low,
                left.messages,
                left.bytes,
            )
            .await?;
        let Some(after) = self.state_of(place, stream).await? else {
            return Ok(None);
        };
        let oldest = tail.messages.last().filter(|_| tail.more);
        let down_to = oldest.map_or(low, |oldest| oldest.seq.just_before());
        if after.first.get() > down_to.read_from() {
            return Ok(None);
        }
        left.take(&tail.messages);
        page.more = tail.more || left.is_used_up();
        page.messages.extend(tail.messages);
        Ok(Some(()))
    }
}
