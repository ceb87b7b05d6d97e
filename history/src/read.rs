//! Knows: THE read path: one order over archive and stream, and what it proves. Never: SQL, frames.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moka::future::Cache;
use weir_nats::placement::{Generation, Place};
use weir_nats::replay::{Replay, ReplayError};
use weir_nats::{Message, Position, RoomName, Seq};

use crate::archive::{Archive, ArchiveError, PageQuery, Rows};
use crate::held::Held;

/// Bytes of archive pages kept.
const CACHE_MAX_BYTES: u64 = 64 << 20;
/// A page that may still grow is shared by equal requests for this long at most.
const CACHE_OPEN_PAGE: Duration = Duration::from_millis(200);
/// Tries of a page whose tail was trimmed while it was read.
const TRIES_MAX: usize = 5;
/// Messages of the largest logical window (`history_size`) that is walked.
pub const WINDOW_MAX_MESSAGES: u64 = 10_000;

/// The logical window of a namespace: the newest `size` messages of a room that are not older than
/// `ttl`. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// `history_size`; at most [`WINDOW_MAX_MESSAGES`].
    pub size: Option<u64>,
    /// `history_ttl`.
    pub ttl: Option<Duration>,
}

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
    archive: Option<Archive>,
    replay: Replay,
    pages: Cache<PageQuery, Arc<Rows>>,
    open_pages: Cache<PageQuery, Arc<Rows>>,
}

impl Reader {
    /// Reads the archive, if there is one, and streams over `replay`.
    #[must_use]
    pub fn new(archive: Option<Archive>, replay: Replay) -> Self {
        let weigh = |_: &PageQuery, rows: &Arc<Rows>| {
            let bytes: usize = rows.messages.iter().map(|m| m.data.len() + 256).sum();
            u32::try_from(bytes + 256).unwrap_or(u32::MAX)
        };
        let pages = Cache::builder()
            .max_capacity(CACHE_MAX_BYTES)
            .weigher(weigh);
        let open_pages = Cache::builder()
            .max_capacity(CACHE_MAX_BYTES / 4)
            .weigher(weigh);
        Self {
            archive,
            replay,
            pages: pages.build(),
            open_pages: open_pages.time_to_live(CACHE_OPEN_PAGE).build(),
        }
    }

    /// Messages after `after`, oldest first, across generations.
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
        let up_to = up_to.unwrap_or(Seq::MAX);
        let mut page = Page {
            messages: Vec::new(),
            reached: after,
            more: false,
            whole: true,
        };
        let mut left = Left {
            messages: max_messages,
            bytes: max_bytes,
        };
        for (generation, next) in with_next(&place.generations) {
            let end = next
                .map_or(Seq::MAX, |next| next.from.just_before())
                .min(up_to);
            if page.reached >= end {
                continue;
            }
            self.forward_in(place, room, generation, end, &mut page, &mut left)
                .await?;
            if page.more || page.reached >= up_to {
                break;
            }
        }
        Ok(page)
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
            let held = self.held(stream);
            let watermark = held.end().min(end);
            if page.reached < watermark {
                let query = PageQuery {
                    log: place.log.clone(),
                    room: room.clone(),
                    after: page.reached,
                    up_to: watermark,
                    reverse: false,
                    max_messages: left.messages,
                    max_bytes: left.bytes,
                };
                let rows = self.rows(query).await?;
                let reached = match rows.messages.last() {
                    Some(last) if rows.more => last.seq,
                    _ => watermark,
                };
                // What lies before this generation was proven when its own was held.
                let from = page.reached.max(generation.from.just_before());
                page.whole &= held.covers(from, reached);
                page.reached = reached;
                left.take(&rows.messages);
                page.messages.extend(rows.messages.iter().cloned());
                if rows.more || left.is_used_up() {
                    page.more = rows.more || page.reached < end;
                    return Ok(());
                }
            }
            if page.reached >= end {
                return Ok(());
            }
            let Some(before) = self.state(stream).await? else {
                // Gone since the placement was read; what it had is archived.
                return Ok(());
            };
            let tail = self
                .replay
                .forward(
                    stream,
                    &place.stored_subject,
                    page.reached,
                    left.messages,
                    left.bytes,
                )
                .await;
            let tail = match tail {
                Ok(tail) => tail,
                Err(ReplayError::NoStream(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            // Read after the tail: below it nothing was trimmed unseen.
            let Some(after) = self.state(stream).await? else {
                return Ok(());
            };
            if after.first.get() > page.reached.read_from() {
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
        let mut held = archive.held();
        let has_it = |all: &crate::archive::HeldByStream| {
            all.get(stream)
                .is_some_and(|held| held.end() >= first.just_before())
        };
        let waited = tokio::time::timeout(Duration::from_secs(2), held.wait_for(has_it)).await;
        matches!(waited, Ok(Ok(all)) if all.get(stream).is_some_and(|held| {
            held.covers(reached, first.just_before())
        }))
    }

    /// Messages below `before` (or the newest), newest first, across generations.
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
        let mut page = Page {
            messages: Vec::new(),
            reached: Seq::ZERO,
            more: false,
            whole: true,
        };
        let mut left = Left {
            messages: max_messages,
            bytes: max_bytes,
        };
        let mut before = before;
        let mut archived_up_to = Seq::ZERO;
        for (generation, _) in with_next(&place.generations).rev() {
            let low = generation.from.just_before();
            if before.is_some_and(|before| before.just_before() <= low) {
                continue;
            }
            let watermark = self.held(&generation.stream).end();
            archived_up_to = archived_up_to.max(watermark);
            let above = watermark.max(low);
            if before.is_none_or(|before| before.just_before() > above) {
                let tail = self
                    .replay
                    .backward(
                        &generation.stream,
                        &place.stored_subject,
                        before,
                        above,
                        left.messages,
                        left.bytes,
                    )
                    .await;
                let tail = match tail {
                    Ok(tail) => tail,
                    Err(ReplayError::NoStream(_)) => weir_nats::replay::ReplayPage::default(),
                    Err(error) => return Err(error.into()),
                };
                left.take(&tail.messages);
                page.messages.extend(tail.messages);
                if tail.more || left.is_used_up() {
                    page.more = true;
                    return Ok(page);
                }
                before = Some(Seq::new(above.read_from()));
            }
            if archived_up_to > low && watermark > Seq::ZERO {
                // The rest of this generation, and all before it, is one walk through the archive.
                break;
            }
        }
        if self.archive.is_some() {
            let up_to = before.map_or(Seq::MAX, Seq::just_before);
            let query = PageQuery {
                log: place.log.clone(),
                room: room.clone(),
                after: Seq::ZERO,
                up_to,
                reverse: true,
                max_messages: left.messages,
                max_bytes: left.bytes,
            };
            let rows = self.rows(query).await?;
            page.messages.extend(rows.messages.iter().cloned());
            page.more = rows.more;
        }
        if let (Some(oldest), Some(newest)) = (page.messages.last(), page.messages.first()) {
            page.whole = self.is_whole(place, oldest.seq, newest.seq);
        }
        Ok(page)
    }

    /// True if no hole of the current generation lies between two offsets. Older generations end in
    /// a loss by definition, and are read as far as they are held.
    fn is_whole(&self, place: &Place, oldest: Seq, newest: Seq) -> bool {
        let current = place.current();
        let held = self.held(&current.stream);
        let from = oldest.max(current.from.just_before());
        let up_to = newest.min(held.end());
        held.covers(from, up_to)
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
            let held = self.held(&current.stream);
            let watermark = held.end();
            let state = self.replay.state(&current.stream).await?;
            let from = after.max(watermark);
            if state.first.get() <= from.read_from() {
                return Ok(held.covers(after, watermark));
            }
            if state.first.get() <= after.read_from() {
                return Ok(true);
            }
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
    /// *first* (design §1).
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

    /// Design §4, "Recovery": true only if everything after the position is proven to be in the
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
        let refused = || Recovery {
            recovered: false,
            page: Page {
                messages: Vec::new(),
                reached: since,
                more: false,
                whole: false,
            },
        };
        if epoch.is_some_and(|epoch| epoch != place.current().epoch.as_str()) {
            return Ok(refused());
        }
        if !self.covers(place, since).await? {
            return Ok(refused());
        }
        let size = window.size.unwrap_or(u64::MAX);
        // One more than the window shows whether the window is exceeded.
        let wanted = max_messages.max(u32::try_from(size.saturating_add(1)).unwrap_or(0));
        let window_bytes = if window.size.is_some() {
            16 << 20
        } else {
            max_bytes
        };
        let mut page = self
            .forward(
                place,
                room,
                since,
                None,
                wanted,
                max_bytes.max(window_bytes),
            )
            .await?;
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

    /// `history` of the client protocol within a window: after `since` oldest first, or before it
    /// newest first.
    ///
    /// # Errors
    /// When a tier does not answer.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one part of the question"
    )]
    pub async fn history(
        &self,
        place: &Place,
        room: &RoomName,
        since: Option<Seq>,
        reverse: bool,
        window: &Window,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<Page, ReadError> {
        let oldest_ms = window.oldest_ms(now_ms());
        let floor = self.window_floor(place, room, window).await?;
        let mut page = if reverse {
            let mut page = self
                .backward(place, room, since, max_messages, max_bytes)
                .await?;
            let inside = page
                .messages
                .iter()
                .take_while(|m| m.seq > floor && m.time_ms >= oldest_ms)
                .count();
            page.more &= inside == page.messages.len();
            page.messages.truncate(inside);
            page
        } else {
            let after = since.unwrap_or(Seq::ZERO).max(floor);
            self.forward(place, room, after, None, max_messages, max_bytes)
                .await?
        };
        while !reverse && page.messages.first().is_some_and(|m| m.time_ms < oldest_ms) {
            page.messages.retain(|message| message.time_ms >= oldest_ms);
            if page.messages.is_empty() && page.more {
                let reached = page.reached;
                page = self
                    .forward(place, room, reached, None, max_messages, max_bytes)
                    .await?;
            }
        }
        Ok(page)
    }

    /// The offset just below a window of `size` messages.
    async fn window_floor(
        &self,
        place: &Place,
        room: &RoomName,
        window: &Window,
    ) -> Result<Seq, ReadError> {
        let Some(size) = window.size else {
            return Ok(Seq::ZERO);
        };
        let wanted = u32::try_from(size.min(WINDOW_MAX_MESSAGES)).unwrap_or(u32::MAX);
        if wanted == 0 {
            return Ok(Seq::MAX);
        }
        let page = self.backward(place, room, None, wanted, u32::MAX).await?;
        let is_full = page.messages.len() as u64 >= size;
        Ok(if is_full {
            page.messages
                .last()
                .map_or(Seq::ZERO, |m| m.seq.just_before())
        } else {
            Seq::ZERO
        })
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
            Some(archive) => Ok(archive.find(room, id, after).await.map_err(Arc::new)?),
            None => Ok(None),
        }
    }

    fn held(&self, stream: &str) -> Held {
        let Some(archive) = &self.archive else {
            return Held::default();
        };
        archive
            .held()
            .borrow()
            .get(stream)
            .cloned()
            .unwrap_or_default()
    }

    async fn state(
        &self,
        stream: &str,
    ) -> Result<Option<weir_nats::replay::StreamState>, ReadError> {
        match self.replay.state(stream).await {
            Ok(state) => Ok(Some(state)),
            Err(ReplayError::NoStream(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Equal requests are one query. A full page never changes and is kept; one that may still grow
    /// is shared only for a moment.
    async fn rows(&self, query: PageQuery) -> Result<Arc<Rows>, ReadError> {
        let Some(archive) = self.archive.clone() else {
            return Ok(Arc::default());
        };
        if let Some(rows) = self.pages.get(&query).await {
            return Ok(rows);
        }
        let read = {
            let query = query.clone();
            async move { archive.page(query).await.map(Arc::new) }
        };
        let rows = self.open_pages.try_get_with(query.clone(), read).await?;
        if rows.more && !query.reverse {
            self.pages.insert(query, Arc::clone(&rows)).await;
        }
        Ok(rows)
    }
}

/// What a page may still take.
struct Left {
    messages: u32,
    bytes: u32,
}

impl Left {
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
            self.messages.truncate(fits);
            self.more = true;
            self.reached = self.messages.last().map_or(self.reached, |last| last.seq);
        }
    }
}

impl Window {
    /// Messages stored before this are outside.
    fn oldest_ms(&self, now_ms: i64) -> i64 {
        let ttl = self
            .ttl
            .map(|ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        ttl.map_or(i64::MIN, |ttl| now_ms.saturating_sub(ttl))
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

fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
