//! Knows: THE verdict: whether everything after a position is proven to be there. Never: how pages are read.

use weir_nats::ambient::now_ms;
use weir_nats::placement::Place;
use weir_nats::{RoomName, Seq};

use super::ask::Question;
use super::{Page, ReadError, Reader, Recovery, TRIES_MAX, Window, turn};

impl Reader {
    /// True if everything after `after` in the current epoch is still somewhere, no hole between.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub async fn covers(&self, place: &Place, after: Seq) -> Result<bool, ReadError> {
        let current = place.current();
        if after < current.from.just_before() {
            return Ok(false);
        }
        for _ in 0..TRIES_MAX {
            let held = self.view(&current.stream);
            let watermark = held.end();
            let state = self.replay.state(&current.stream).await?;
            if after > state.last.max(watermark) {
                // Ahead of the log: whoever saw that offset saw something that is gone.
                return Ok(false);
            }
            let from = after.max(watermark);
            if state.first.get() <= from.read_from() {
                return Ok(
                    held.covers(after, watermark) && !self.has_lost(place, &state, from).await?
                );
            }
            self.archive_is_known()?;
            if self.held(&current.stream).end() == watermark
                && !self
                    .nothing_was_lost(&current.stream, from, state.first)
                    .await
            {
                return Ok(false);
            }
        }
        Err(ReadError::Trimmed(current.stream.clone()))
    }

    /// The verdict: true only if everything after the position is proven to be in the
    /// page or to follow it.
    ///
    /// # Errors
    /// When a tier does not answer.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one part of the question"
    )]
    pub async fn recover(
        &self,
        place: &Place,
        room: &RoomName,
        epoch: Option<&str>,
        since: Seq,
        window: &Window,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Recovery, ReadError> {
        let limits = (max_messages, max_bytes);
        let question = Question::recovery(place, room, (epoch, since), *window, limits);
        self.ask(question, place).await
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "each is one part of the question"
    )]
    pub(super) async fn recover_now(
        &self,
        place: &Place,
        room: &RoomName,
        epoch: Option<&str>,
        since: Seq,
        window: &Window,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Recovery, ReadError> {
        let refused = || Recovery {
            recovered: false,
            page: Page {
                messages: Vec::new(),
                reached: since,
                more: false,
                whole: false,
            },
        };
        let _turn = turn().await;
        if epoch.is_some_and(|epoch| epoch != place.current().epoch.as_str()) {
            return Ok(refused());
        }
        if !self.covers(place, since).await? {
            return Ok(refused());
        }
        if let Some(size) = window.size
            && self.is_exceeded(place, room, since, size).await?
        {
            return Ok(refused());
        }
        // The first message tells whether all are young enough, also if none may be returned.
        let wanted = max_messages.max(1);
        let mut page = self
            .forward(place, room, since, None, wanted, max_bytes)
            .await?;
        let size = window.size.unwrap_or(u64::MAX);
        if !page.whole || page.messages.len() as u64 > size {
            return Ok(refused());
        }
        let oldest_ms = window.oldest_ms(now_ms());
        if page
            .messages
            .first()
            .is_some_and(|first| first.time_ms < oldest_ms)
        {
            return Ok(refused());
        }
        page.cut(max_messages, max_bytes);
        Ok(Recovery {
            recovered: true,
            page,
        })
    }
}
