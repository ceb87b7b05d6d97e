//! Knows: what can be asked of a room's past, as values that are equal when the questions are.
//! Never: how it is read.

use futures_util::FutureExt as _;
use weir_nats::placement::Place;
use weir_nats::{RoomName, Seq};

use super::{Page, ReadError, Reader, Recovery, Window};

/// Which part of a room's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ask {
    /// After this offset oldest first, or before it newest first; neither includes it.
    pub since: Option<Seq>,
    /// Newest first.
    pub reverse: bool,
    /// Only what was stored at this time or later, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Only what was stored before this time, in milliseconds since 1970.
    pub until_ms: Option<i64>,
}

/// A question with all that its answer depends on, apart from the moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    log: String,
    room: RoomName,
    /// The stream of the current generation: a room that has moved is asked anew.
    stream: String,
    kind: Kind,
    window: Window,
    max_messages: u32,
    max_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    History(Ask),
    Recovery { epoch: Option<String>, since: Seq },
}

impl Question {
    pub(super) fn history(
        place: &Place,
        room: &RoomName,
        ask: Ask,
        window: Window,
        limits: (u32, u32),
    ) -> Self {
        Self::new(place, room, Kind::History(ask), window, limits)
    }

    pub(super) fn recovery(
        place: &Place,
        room: &RoomName,
        (epoch, since): (Option<&str>, Seq),
        window: Window,
        limits: (u32, u32),
    ) -> Self {
        let epoch = epoch.map(str::to_owned);
        let kind = Kind::Recovery { epoch, since };
        Self::new(place, room, kind, window, limits)
    }

    fn new(
        place: &Place,
        room: &RoomName,
        kind: Kind,
        window: Window,
        (max_messages, max_bytes): (u32, u32),
    ) -> Self {
        Self {
            log: place.log.clone(),
            room: room.clone(),
            stream: place.current().stream.clone(),
            kind,
            window,
            max_messages,
            max_bytes,
        }
    }

    /// Reads the answer. A history is no recovery, so its verdict says nothing.
    pub(super) async fn answer(
        &self,
        reader: &Reader,
        place: &Place,
    ) -> Result<Recovery, ReadError> {
        let (max_messages, max_bytes) = (self.max_messages, self.max_bytes);
        match &self.kind {
            Kind::Recovery { epoch, since } => {
                let epoch = epoch.as_deref();
                reader
                    .recover_now(
                        place,
                        &self.room,
                        epoch,
                        *since,
                        &self.window,
                        max_messages,
                        max_bytes,
                    )
                    .await
            }
            Kind::History(ask) => {
                let page: Page = reader
                    .history_now(
                        place,
                        &self.room,
                        ask,
                        &self.window,
                        max_messages,
                        max_bytes,
                    )
                    .await?;
                Ok(Recovery {
                    recovered: false,
                    page,
                })
            }
        }
    }
}

impl Reader {
    /// The answer to a question: shared with equal questions that are asked while this one waits.
    pub(super) async fn ask(
        &self,
        question: Question,
        place: &Place,
    ) -> Result<Recovery, ReadError> {
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
}
