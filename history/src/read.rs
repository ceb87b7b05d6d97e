//! Knows: THE read path: one order over archive and stream, and what it proves. Never: SQL, frames.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use weir_nats::ambient::now_ms;
use weir_nats::placement::{Generation, Place};
use weir_nats::replay::{Replay, ReplayError, StreamState};
use weir_nats::{Message, Orders, Position, RoomName, Seq};

use crate::archive::{Archive, ArchiveError, PageQuery, Rows};
use crate::held::Held;

mod ask;
mod cache;
mod flights;
mod metrics;
mod window;

pub use ask::Ask;
use ask::Question;
use cache::ArchiveReads;
use flights::Flights;
pub use metrics::ReaderMetrics;
pub use window::{WINDOW_MAX_MESSAGES, Window};

/// Bytes of archive pages kept, unless told otherwise.
const CACHE_MAX_BYTES: u64 = 64 << 20;
/// Tries of a page whose tail was trimmed while it was read.
const TRIES_MAX: usize = 5;
/// Reads that fill up one page whose messages are erased and not gone yet.
const REFILLS_MAX: usize = 50;
/// Pages being read for clients at a time in this process, so that many clients do not multiply the
/// memory of a page; the others wait their turn.
const PAGES_AT_ONCE_MAX: usize = 32;
/// Times from which is read are rounded down to this, before the archive is asked for an offset.
const TIME_STEP_MS: i64 = 1_000;
static PAGES_AT_ONCE: Semaphore = Semaphore::const_new(PAGES_AT_ONCE_MAX);

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

/// The answer to a recovery.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// The verdict. False comes with an empty page.
    pub recovered: bool,
    /// The first missed messages; `more` says that others follow.
    pub page: Page,
}

/// A read that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream did not answer.
    #[error(transparent)]
    Stream(#[from] ReplayError),
    /// The archive did not answer.
    #[error(transparent)]
    Archive(#[from] Arc<ArchiveError>),
    /// The stream was trimmed faster than it was archived, again and again.
    #[error("the stream {0} is trimmed faster than it can be read")]
    Trimmed(String),
}

/// Reads rooms. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    archive: Option<ArchiveReads>,
    replay: Replay,
    orders: Orders,
    flights: Flights<Question, Result<Recovery, ReadError>>,
    metrics: Arc<ReaderMetrics>,
}

impl Reader {
    /// Reads the archive, if there is one, and streams over `replay`.
    #[must_use]
    pub fn new(archive: Option<Archive>, replay: Replay) -> Self {
        let metrics = Arc::<ReaderMetrics>::default();
        let reads = |archive| ArchiveReads::new(archive, CACHE_MAX_BYTES, Arc::clone(&metrics));
        Self {
            archive: archive.map(reads),
            replay,
            orders: Orders::default(),
            flights: Flights::default(),
            metrics,
        }
    }

    /// The same without what these orders erase, whatever archive and streams still have of it.
    #[must_use]
    pub fn with_orders(self, orders: Orders) -> Self {
        Self { orders, ..self }
    }

    /// The same with another bound on the bytes of archive pages kept; 0 keeps none.
    #[must_use]
    pub fn with_cache(self, cache_max_bytes: u64) -> Self {
        let reads = |reads: ArchiveReads| reads.with_cache(cache_max_bytes);
        Self {
            archive: self.archive.map(reads),
            ..self
        }
    }

    /// Counters of its reads.
    #[must_use]
    pub fn metrics(&self) -> &Arc<ReaderMetrics> {
        &self.metrics
    }

    /// Forgets the pages that it keeps: rows of the archive were changed.
    pub fn forget(&self) {
        if let Some(archive) = &self.archive {
            archive.forget();
        }
    }

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

    /// True if something was erased.
    fn drop_erased(
        &self,
        place: &Place,
        room: &RoomName,
        messages: &mut Vec<Arc<Message>>,
    ) -> bool {
        let matcher = self.orders.matcher();
        if matcher.is_empty() {
            return false;
        }
        let before = messages.len();
        messages.retain(|message| !matcher.is_erased(&place.log, room, message));
        messages.len() < before
    }

    /// Up to where the archive has let a room's rows go by age.
    async fn expired_to(&self, place: &Place, room: &RoomName) -> Result<Seq, ReadError> {
        match &self.archive {
            Some(archive) => {
                let archive = archive.archive();
                let expired = archive.expired_to(place.log.clone(), room.clone());
                Ok(expired.await.map_err(Arc::new)?)
            }
            None => Ok(Seq::ZERO),
        }
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

    /// True if the archive holds in (after, up_to] all that generations gave whose streams are gone.
    fn holds_retired(&self, place: &Place, (after, up_to): (Seq, Seq)) -> bool {
        let low = lowest(place);
        let retired = place.ended.iter().filter(|one| one.generation.from <= low);
        retired
            .map(|one| {
                let after = after.max(one.generation.from.just_before());
                (&one.generation.stream, after, up_to.min(one.to))
            })
            .filter(|(_, after, up_to)| after < up_to)
            .all(|(stream, after, up_to)| self.view(stream).covers(after, up_to))
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
        for _ in 0..TRIES_MAX {
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

    /// The stream begins above what was read and the archive is not there yet: waits a moment for
    /// it. True if the archive then holds what the stream no longer has.
    async fn nothing_was_lost(&self, stream: &str, reached: Seq, first: Seq) -> bool {
        let Some(archive) = &self.archive else {
            return false;
        };
        let mut held = archive.archive().held();
        let has_it = |all: &crate::archive::HeldByStream| {
            all.get(stream)
                .is_some_and(|held| held.end() >= first.just_before())
        };
        let waited = tokio::time::timeout(Duration::from_secs(2), held.wait_for(has_it)).await;
        let is_held = matches!(waited, Ok(Ok(_)));
        is_held && self.held(stream).covers(reached, first.just_before())
    }

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

    /// # Errors
    /// Temporary, while the archive has never answered and nobody knows what it holds.
    fn archive_is_known(&self) -> Result<(), ReadError> {
        match &self.archive {
            Some(archive) if !archive.archive().is_connected() => {
                Err(ReadError::Archive(Arc::new(ArchiveError {
                    reason: "it has not answered yet, so what it holds is not known".to_owned(),
                    temporary: true,
                })))
            }
            _ => Ok(()),
        }
    }

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
                return Ok(held.covers(after, watermark));
            }
            if state.first.get() <= after.read_from() {
                return Ok(true);
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

    /// Where a room stands: the last message of it, or the stream's last sequence, which is asked
    /// *first*.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub async fn head(&self, place: &Place) -> Result<Position, ReadError> {
        let current = place.current();
        let state = self.replay.state(&current.stream).await?;
        let last = self
            .replay
            .last(&current.stream, &place.stored_subject)
            .await?;
        let offset = last.map_or(state.last, |last| last.message.seq);
        Ok(Position {
            epoch: current.epoch.clone(),
            offset,
        })
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

    /// The answer to a question: shared with equal questions that are asked while this one waits.
    async fn ask(&self, question: Question, place: &Place) -> Result<Recovery, ReadError> {
        let answer = || {
            let (reader, place, question) = (self.clone(), place.clone(), question.clone());
            async move { question.answer(&reader, &place).await }.boxed()
        };
        let (answer, joined) = self.flights.ask(question.clone(), answer).await;
        if joined {
            self.metrics.joined.add_one();
        }
        answer
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "each is one part of the question"
    )]
    async fn recover_now(
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

    async fn history_now(
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
        match archive.older_than(&place.log, room, time_ms, at).await {
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
            match archive.last_before(&place.log, room, time_ms, at).await {
                Ok(last) => top = last.or(top),
                // Messages above are left out when they were read.
                Err(error) if error.temporary => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(top)
    }

    /// The archive's id for publishes whose fate is looked up.
    ///
    /// # Errors
    /// When the archive does not answer.
    pub async fn find(
        &self,
        room: RoomName,
        id: String,
        after: Seq,
    ) -> Result<Option<Seq>, ReadError> {
        match &self.archive {
            Some(reads) => {
                let found = reads.archive().find(room, id, after);
                Ok(found.await.map_err(Arc::new)?)
            }
            None => Ok(None),
        }
    }

    /// What the archive holds at this moment; later views are not older.
    fn held(&self, stream: &str) -> Held {
        let archive = self.archive.as_ref();
        archive.map_or_else(Held::default, |archive| archive.held(stream))
    }

    /// What the archive held a moment ago, which is the same for all who ask at once. Whoever finds
    /// that the stream no longer reaches down to it asks for [`Reader::held`] and tries again.
    fn view(&self, stream: &str) -> Held {
        let archive = self.archive.as_ref();
        archive.map_or_else(Held::default, |archive| archive.view(stream))
    }

    /// `None` for an old generation that is gone since the placement was read: what it had is
    /// archived. The current one must be there.
    async fn state_of(
        &self,
        place: &Place,
        stream: &str,
    ) -> Result<Option<StreamState>, ReadError> {
        match self.replay.state(stream).await {
            Ok(state) => Ok(Some(state)),
            Err(ReplayError::NoStream(_)) if place.current().stream != stream => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn rows(&self, query: PageQuery) -> Result<Arc<Rows>, ReadError> {
        match &self.archive {
            Some(archive) => Ok(archive.rows(query).await?),
            None => Ok(Arc::default()),
        }
    }
}

/// From when (included) until when (excluded) messages are asked for, milliseconds since 1970.
struct Times {
    from_ms: i64,
    until_ms: i64,
}

/// What a page may still take.
struct Left {
    messages: u32,
    bytes: u32,
    /// What it could take when it was empty. The archive is asked for that much, whatever came
    /// before, so that equal questions are equal queries.
    page: (u32, u32),
}

impl Left {
    fn new(max_messages: u32, max_bytes: u32) -> Self {
        Self {
            messages: max_messages,
            bytes: max_bytes,
            page: (max_messages, max_bytes),
        }
    }

    /// Takes those rows that fit, at least one into a page that `is_empty`. True if others follow.
    fn take_rows<'a>(&mut self, rows: &'a Rows, is_empty: bool) -> (&'a [Arc<Message>], bool) {
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

    fn take(&mut self, messages: &[Arc<Message>]) {
        let bytes: usize = messages.iter().map(|message| message.data.len()).sum();
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        self.messages = self.messages.saturating_sub(count);
        self.bytes = self
            .bytes
            .saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    fn is_used_up(&self) -> bool {
        self.messages == 0 || self.bytes == 0
    }

    /// A query for as much as a page takes, of the rows in (after, up_to].
    fn query(
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

impl Page {
    /// Keeps what fits into a reply; the rest is `more`.
    fn cut(&mut self, max_messages: u32, max_bytes: u32) {
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

/// A turn to read a page, kept while it is read.
async fn turn() -> SemaphorePermit<'static> {
    let turn = PAGES_AT_ONCE.acquire().await;
    turn.expect("the semaphore is never closed")
}

fn with_next(
    generations: &[Generation],
) -> impl DoubleEndedIterator<Item = (&Generation, Option<&Generation>)> {
    generations
        .iter()
        .enumerate()
        .map(|(nth, generation)| (generation, generations.get(nth + 1)))
}

/// The offset below which no placed stream reaches.
fn lowest(place: &Place) -> Seq {
    place
        .generations
        .first()
        .map_or(Seq::ZERO, |oldest| oldest.from.just_before())
}
