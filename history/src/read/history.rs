//! Knows: which part of a room's past lies inside a window and between two times. Never: verdicts, how pages are read.

use weir_nats::ambient::now_ms;
use weir_nats::placement::Place;
use weir_nats::replay::ReplayError;
use weir_nats::{RoomName, Seq};

use super::ask::{Ask, Question};
use super::{Page, ReadError, Reader, Window, turn};

/// Times from which is read are rounded down to this, before the archive is asked for an offset.
const TIME_STEP_MS: i64 = 1_000;

/// From when (included) until when (excluded) messages are asked for, milliseconds since 1970.
struct Times {
    from_ms: i64,
    until_ms: i64,
}

impl Reader {
    /// `history` within a window: what is asked for, and of that the part inside.
    ///
    /// # Errors
    /// When a tier does not answer.
    pub async fn history(
        &self,
        place: &Place,
        room: &RoomName,
        ask: Ask,
        window: &Window,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Page, ReadError> {
        let limits = (max_messages, max_bytes);
        let question = Question::history(place, room, ask, *window, limits);
        Ok(self.ask(question, place).await?.page)
    }

    pub(super) async fn history_now(
        &self,
        place: &Place,
        room: &RoomName,
        ask: &Ask,
        window: &Window,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Page, ReadError> {
        let _turn = turn().await;
        let times = Times {
            from_ms: window
                .oldest_ms(now_ms())
                .max(ask.since_ms.unwrap_or(i64::MIN)),
            until_ms: ask.until_ms.unwrap_or(i64::MAX),
        };
        let mut floor = self.window_floor(place, room, window).await?;
        if times.from_ms > i64::MIN {
            // So that an old room is not walked from its beginning.
            floor = floor.max(self.before(place, room, times.from_ms).await?);
        }
        floor = floor.max(self.expired_to(place, room).await?);
        let top = match ask.until_ms {
            Some(until_ms) => self.last_before(place, room, until_ms).await?,
            None => None,
        };
        if ask.reverse {
            let before = match (ask.since, top) {
                (Some(since), Some(top)) => Some(since.min(Seq::new(top.read_from()))),
                (since, top) => since.or(top.map(|top| Seq::new(top.read_from()))),
            };
            self.history_backward(
                place,
                room,
                (before, floor),
                &times,
                max_messages,
                max_bytes,
            )
            .await
        } else {
            let after = ask.since.unwrap_or(Seq::ZERO).max(floor);
            self.history_forward(place, room, (after, top), &times, max_messages, max_bytes)
                .await
        }
    }

    async fn history_backward(
        &self,
        place: &Place,
        room: &RoomName,
        (mut before, floor): (Option<Seq>, Seq),
        times: &Times,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Page, ReadError> {
        loop {
            let mut page = self
                .backward(place, room, before, max_messages, max_bytes)
                .await?;
            let oldest = page.messages.last().map(|oldest| oldest.seq);
            let inside = page
                .messages
                .iter()
                .take_while(|m| m.seq > floor && m.time_ms >= times.from_ms)
                .count();
            page.more &= inside == page.messages.len();
            page.messages.truncate(inside);
            page.messages.retain(|m| m.time_ms < times.until_ms);
            if !page.messages.is_empty() || !page.more || oldest.is_none() {
                return Ok(page);
            }
            before = oldest;
        }
    }

    async fn history_forward(
        &self,
        place: &Place,
        room: &RoomName,
        (mut after, top): (Seq, Option<Seq>),
        times: &Times,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Page, ReadError> {
        loop {
            let mut page = self
                .forward(place, room, after, top, max_messages, max_bytes)
                .await?;
            let inside = page
                .messages
                .iter()
                .take_while(|m| m.time_ms < times.until_ms)
                .count();
            page.more &= inside == page.messages.len();
            page.messages.truncate(inside);
            page.messages.retain(|m| m.time_ms >= times.from_ms);
            if !page.messages.is_empty() || !page.more || page.reached <= after {
                return Ok(page);
            }
            after = page.reached;
        }
    }

    /// An offset that is not above any message of a room that was stored at `time_ms` or later.
    async fn before(&self, place: &Place, room: &RoomName, time_ms: i64) -> Result<Seq, ReadError> {
        let Some(archive) = &self.archive else {
            return Ok(Seq::ZERO);
        };
        // A little earlier, so that those who ask within a second ask the same.
        let time_ms = time_ms - time_ms.rem_euclid(TIME_STEP_MS);
        let at = self.view(&place.current().stream).end();
        let at_slot = (place.log.as_str(), place.slot);
        match archive.older_than(at_slot, room, time_ms, at).await {
            Ok(found) => Ok(found.unwrap_or_default()),
            // It is only a short cut: what the stream has does not need the archive.
            Err(error) if error.temporary => Ok(Seq::ZERO),
            Err(error) => Err(error.into()),
        }
    }

    /// An offset that is not below any message of a room that was stored before `time_ms`; `None`
    /// is the end.
    async fn last_before(
        &self,
        place: &Place,
        room: &RoomName,
        time_ms: i64,
    ) -> Result<Option<Seq>, ReadError> {
        let mut top = None;
        for generation in place.generations.iter() {
            let (stream, subject) = (&generation.stream, &place.stored_subject);
            match self.replay.first_since(stream, subject, time_ms).await {
                Ok(None) => {}
                Ok(Some(first)) => {
                    top = Some(first.just_before());
                    break;
                }
                Err(ReplayError::NoStream(_)) if place.current().stream != *stream => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The stream may begin long after that time. An old generation that is still placed may have
        // what the archive does not, below what the archive has.
        if let Some(archive) = &self.archive
            && place.generations.len() == 1
        {
            let at = self.view(&place.current().stream).end();
            let at_slot = (place.log.as_str(), place.slot);
            match archive.last_before(at_slot, room, time_ms, at).await {
                Ok(last) => top = last.or(top),
                // Messages above are left out when they were read.
                Err(error) if error.temporary => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(top)
    }
}
