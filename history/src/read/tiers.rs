//! Knows: what archive and stream say for themselves: what is held, what is lost, what is erased. Never: pages, verdicts.

use std::sync::Arc;
use std::time::Duration;

use weir_nats::placement::Place;
use weir_nats::replay::{ReplayError, StreamState};
use weir_nats::{Message, Position, RoomName, Seq};

use super::{ReadError, Reader, lowest};
use crate::archive::{ArchiveError, PageQuery, Rows};
use crate::held::Held;

impl Reader {
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

    /// The archive's id for publishes whose fate is looked up.
    ///
    /// # Errors
    /// When the archive does not answer.
    pub async fn find(
        &self,
        log: String,
        room: RoomName,
        id: String,
        after: Seq,
    ) -> Result<Option<Seq>, ReadError> {
        match &self.archive {
            Some(reads) => {
                let found = reads.archive().find(log, room, id, after);
                Ok(found.await.map_err(Arc::new)?)
            }
            None => Ok(None),
        }
    }

    /// What the archive holds at this moment; later views are not older.
    pub(super) fn held(&self, stream: &str) -> Held {
        let archive = self.archive.as_ref();
        archive.map_or_else(Held::default, |archive| archive.held(stream))
    }

    /// What the archive held a moment ago, which is the same for all who ask at once. Whoever finds
    /// that the stream no longer reaches down to it asks for [`Reader::held`] and tries again.
    pub(super) fn view(&self, stream: &str) -> Held {
        let archive = self.archive.as_ref();
        archive.map_or_else(Held::default, |archive| archive.view(stream))
    }

    /// True if the archive holds in (after, up_to] all that generations gave whose streams are gone.
    pub(super) fn holds_retired(&self, place: &Place, (after, up_to): (Seq, Seq)) -> bool {
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

    /// The stream begins above what was read and the archive is not there yet: waits a moment for
    /// it. True if the archive then holds what the stream no longer has.
    pub(super) async fn nothing_was_lost(&self, stream: &str, reached: Seq, first: Seq) -> bool {
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

    /// # Errors
    /// Temporary, while the archive has never answered and nobody knows what it holds.
    pub(super) fn archive_is_known(&self) -> Result<(), ReadError> {
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

    /// `None` for an old generation that is gone since the placement was read: what it had is
    /// archived. The current one must be there.
    pub(super) async fn state_of(
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

    pub(super) async fn rows(&self, query: PageQuery) -> Result<Arc<Rows>, ReadError> {
        match &self.archive {
            Some(archive) => Ok(archive.rows(query).await?),
            None => Ok(Arc::default()),
        }
    }

    /// Up to where the archive has let a room's rows go by age.
    pub(super) async fn expired_to(
        &self,
        place: &Place,
        room: &RoomName,
    ) -> Result<Seq, ReadError> {
        match &self.archive {
            Some(archive) => {
                let archive = archive.archive();
                let expired = archive.expired_to(place.log.clone(), room.clone());
                Ok(expired.await.map_err(Arc::new)?)
            }
            None => Ok(Seq::ZERO),
        }
    }

    /// True if something was erased.
    pub(super) fn drop_erased(
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
}
