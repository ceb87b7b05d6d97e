//! Knows: how far a logical window reaches, by counting. Never: payloads of a whole window.

use std::time::Duration;

use weir_nats::placement::{Generation, Place};
use weir_nats::{RoomName, Seq};

use super::{ReadError, Reader, TRIES_MAX, lowest};
use crate::archive::Counted;

/// Messages of the largest logical window (`history_size`) that is counted.
pub const WINDOW_MAX_MESSAGES: u64 = 10_000;
/// Counts asked for to find one message of a stream: every second halves what is left of it.
const PROBES_MAX: u32 = 2 * u64::BITS;

/// The logical window of a namespace: the newest `size` messages of a room that are not older than
/// `ttl`. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// `history_size`; at most [`WINDOW_MAX_MESSAGES`].
    pub size: Option<u64>,
    /// `history_ttl`.
    pub ttl: Option<Duration>,
}

impl Window {
    /// Messages stored before this are outside.
    pub(super) fn oldest_ms(&self, now_ms: i64) -> i64 {
        let ttl = self
            .ttl
            .map(|ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        ttl.map_or(i64::MIN, |ttl| now_ms.saturating_sub(ttl))
    }
}

/// What a stream has of a room and the archive does not, counted.
struct Tail {
    /// The archive has everything up to here that it ever will.
    watermark: Seq,
    messages: u64,
    /// The first of them.
    first: Seq,
    /// Nothing that was counted lay above, when it was.
    end: Seq,
    /// Messages that a count finds and that are not part of it.
    beyond: u64,
    /// False: what lies between the watermark and the stream is lost.
    whole: bool,
}

impl Tail {
    fn empty(above: Seq) -> Self {
        Self {
            watermark: above,
            messages: 0,
            first: above,
            end: above,
            beyond: 0,
            whole: true,
        }
    }
}

/// Where a search for the floor of a window has come to.
enum Below {
    /// It is there. `None`: the stream was trimmed meanwhile.
    Floor(Option<Seq>),
    /// So many messages are still to be found further down.
    Wanted(u64),
}

impl Reader {
    /// True if more than `size` messages follow `after`, which lies in the current generation, or
    /// if that cannot be known because some of them are lost.
    pub(super) async fn is_exceeded(
        &self,
        place: &Place,
        room: &RoomName,
        after: Seq,
        size: u64,
    ) -> Result<bool, ReadError> {
        match self
            .is_exceeded_with_archive(place, room, after, size)
            .await
        {
            Err(error @ ReadError::Archive(_)) => {
                // What is not older than the stream does not need the archive.
                let tail = self
                    .tail_in_stream(place, place.current(), after, None)
                    .await?;
                if tail.messages > size || tail.whole {
                    Ok(tail.messages > size)
                } else {
                    Err(error)
                }
            }
            answer => answer,
        }
    }

    async fn is_exceeded_with_archive(
        &self,
        place: &Place,
        room: &RoomName,
        after: Seq,
        size: u64,
    ) -> Result<bool, ReadError> {
        let tail = self.tail(place, place.current(), after, None).await?;
        if !tail.whole || tail.messages > size {
            return Ok(true);
        }
        let rest = size - tail.messages;
        let range = (after, tail.watermark);
        // Counted up to the whole size, so that it is one query while the tail grows.
        let archived = self.count(place, room, range, size.saturating_add(1));
        Ok(archived.await?.messages > rest)
    }

    /// The offset just below the window.
    pub(super) async fn window_floor(
        &self,
        place: &Place,
        room: &RoomName,
        window: &Window,
    ) -> Result<Seq, ReadError> {
        match window.size {
            None => return Ok(Seq::ZERO),
            Some(0) => return Ok(Seq::MAX),
            Some(size) => {
                for _ in 0..TRIES_MAX {
                    if let Some(floor) = self.floor_below(place, room, size).await? {
                        return Ok(floor);
                    }
                }
            }
        }
        Err(ReadError::Trimmed(place.current().stream.clone()))
    }

    /// The offset just below the newest `size` messages. `None`: the stream was trimmed meanwhile.
    async fn floor_below(
        &self,
        place: &Place,
        room: &RoomName,
        size: u64,
    ) -> Result<Option<Seq>, ReadError> {
        let mut wanted = size;
        // Everything at or below `top` is still to be counted.
        let mut top = None;
        for generation in place.generations.iter().rev() {
            let low = generation.from.just_before();
            if top.is_some_and(|top| top <= low) {
                continue;
            }
            let below = match self.below(place, room, generation, top, wanted).await {
                Err(error @ ReadError::Archive(_)) => {
                    let tail = self.tail_in_stream(place, generation, low, top).await?;
                    if tail.messages >= wanted {
                        Below::Floor(self.floor_in_tail(place, generation, &tail, wanted).await?)
                    } else if tail.whole {
                        Below::Wanted(wanted - tail.messages)
                    } else {
                        return Err(error);
                    }
                }
                below => below?,
            };
            match below {
                Below::Floor(floor) => return Ok(floor),
                Below::Wanted(left) => wanted = left,
            }
            top = Some(low);
        }
        let up_to = top.unwrap_or(Seq::ZERO).min(lowest(place));
        let retired = self.count(place, room, (Seq::ZERO, up_to), wanted).await?;
        let oldest = retired.oldest.filter(|_| retired.messages >= wanted);
        Ok(Some(oldest.map_or(Seq::ZERO, Seq::just_before)))
    }

    /// Looks for the floor in one generation: its stream above the archive, then the archive.
    async fn below(
        &self,
        place: &Place,
        room: &RoomName,
        generation: &Generation,
        top: Option<Seq>,
        wanted: u64,
    ) -> Result<Below, ReadError> {
        let low = generation.from.just_before();
        let tail = self.tail(place, generation, low, top).await?;
        if tail.messages >= wanted {
            let floor = self.floor_in_tail(place, generation, &tail, wanted);
            return Ok(Below::Floor(floor.await?));
        }
        let wanted = wanted - tail.messages;
        let up_to = top.map_or(tail.watermark, |top| top.min(tail.watermark));
        let archived = self.count(place, room, (low, up_to), wanted).await?;
        if let Some(oldest) = archived.oldest
            && archived.messages >= wanted
        {
            return Ok(Below::Floor(Some(oldest.just_before())));
        }
        Ok(Below::Wanted(wanted - archived.messages))
    }

    /// Counts what a generation's stream alone has of a room in (`after`, `top`]; not whole if it
    /// begins later, or is gone.
    async fn tail_in_stream(
        &self,
        place: &Place,
        generation: &Generation,
        after: Seq,
        top: Option<Seq>,
    ) -> Result<Tail, ReadError> {
        let counted = self.count_tail(place, generation, after, top).await?;
        let gone = Tail {
            whole: false,
            ..Tail::empty(after)
        };
        Ok(counted.map_or(gone, |(tail, _)| tail))
    }

    /// Counts what a generation's stream has of a room in (`after`, `top`] above the archive.
    async fn tail(
        &self,
        place: &Place,
        generation: &Generation,
        after: Seq,
        top: Option<Seq>,
    ) -> Result<Tail, ReadError> {
        let stream = &generation.stream;
        for _ in 0..TRIES_MAX {
            let watermark = self.view(stream).end();
            let above = watermark.max(after);
            let empty = Tail {
                watermark,
                ..Tail::empty(above)
            };
            if top.is_some_and(|top| top <= above) {
                return Ok(empty);
            }
            let counted = self.count_tail(place, generation, above, top).await?;
            let Some((tail, first)) = counted else {
                if self.held(stream).end() > watermark {
                    continue;
                }
                return Ok(empty);
            };
            if !tail.whole {
                self.archive_is_known()?;
                if self.held(stream).end() > above
                    || self.nothing_was_lost(stream, above, first).await
                {
                    continue;
                }
            }
            return Ok(Tail { watermark, ..tail });
        }
        Err(ReadError::Trimmed(stream.clone()))
    }

    /// Counts what a generation's stream has of a room in (`above`, `top`], and says where the stream
    /// begins. `None`: it is gone.
    async fn count_tail(
        &self,
        place: &Place,
        generation: &Generation,
        above: Seq,
        top: Option<Seq>,
    ) -> Result<Option<(Tail, Seq)>, ReadError> {
        let stream = &generation.stream;
        if self.state_of(place, stream).await?.is_none() {
            return Ok(None);
        }
        let beyond = match top {
            Some(top) => self.count_in(place, stream, top).await?.0,
            None => 0,
        };
        let (count, first) = self.count_in(place, stream, above).await?;
        // Read after the count: above it nothing was trimmed unseen.
        let state = self.state_of(place, stream).await?;
        Ok(state.map(|state| {
            let tail = Tail {
                watermark: above,
                messages: count.saturating_sub(beyond),
                first,
                end: top.map_or(state.last, |top| top.min(state.last)),
                beyond,
                whole: state.first.get() <= above.read_from(),
            };
            (tail, state.first)
        }))
    }

    /// The offset just below the newest `wanted` messages of a tail that has as many. While
    /// messages arrive, it was so at one moment of the search. `None`: trimmed meanwhile.
    async fn floor_in_tail(
        &self,
        place: &Place,
        generation: &Generation,
        tail: &Tail,
        wanted: u64,
    ) -> Result<Option<Seq>, ReadError> {
        let stream = &generation.stream;
        if tail.messages == wanted {
            return Ok(Some(tail.first.just_before()));
        }
        // More than `wanted`, or as many, lie above `lower`, and fewer above `upper`.
        let (mut lower, mut most) = (tail.first.get(), tail.messages - 1);
        let (mut upper, mut fewest) = (tail.end.get(), 0);
        for nth in 0..PROBES_MAX {
            let span = upper.saturating_sub(lower);
            if most == wanted || span < 2 {
                break;
            }
            let share = if nth % 2 == 0 {
                // Where it would lie, if the room were evenly spread.
                let share = u128::from(span) * u128::from(most - wanted);
                u64::try_from(share / u128::from(most - fewest)).unwrap_or(span)
            } else {
                span / 2
            };
            let probe = lower + share.clamp(1, span - 1);
            let (count, first) = self.count_in(place, stream, Seq::new(probe)).await?;
            let count = count.saturating_sub(tail.beyond);
            if count == wanted {
                (lower, most) = (probe, count);
            } else if count > wanted {
                (lower, most) = (first.get(), count - 1);
            } else {
                (upper, fewest) = (probe, count);
            }
        }
        let floor = Seq::new(lower);
        let state = self.state_of(place, stream).await?;
        let is_there = state.is_some_and(|state| state.first.get() <= floor.read_from());
        Ok(is_there.then_some(floor))
    }

    /// How many messages of a room a stream has above `above`, and the first of them.
    async fn count_in(
        &self,
        place: &Place,
        stream: &str,
        above: Seq,
    ) -> Result<(u64, Seq), ReadError> {
        let found = self
            .replay
            .count_after(stream, &place.stored_subject, above)
            .await?;
        Ok(found.unwrap_or((0, above)))
    }

    /// How many messages of a room the archive has in a range, at most `max_messages`.
    async fn count(
        &self,
        place: &Place,
        room: &RoomName,
        (after, up_to): (Seq, Seq),
        max_messages: u64,
    ) -> Result<Counted, ReadError> {
        match &self.archive {
            Some(archive) if after < up_to => {
                let range = (after, up_to);
                Ok(archive.count(&place.log, room, range, max_messages).await?)
            }
            _ => Ok(Counted::default()),
        }
    }
}
