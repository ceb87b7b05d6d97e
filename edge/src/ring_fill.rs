//! Knows: how a room that is new to this edge gets the newest of its past, read once for everyone
//! who comes back to it. Never: verdicts, live messages.

use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_nats::placement::Place;
use weir_nats::{RoomName, Seq};

use crate::hub::Shared;
use crate::room::Past;
use crate::room_task::{Command, encode};

/// Whether a room's ring was filled: once in its life, or not at all.
#[derive(Default)]
pub(crate) struct RingFill(OnceLock<CancellationToken>);

/// What is read, and for whom.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) shared: Arc<Shared>,
    pub(crate) name: RoomName,
    pub(crate) place: Place,
}

impl RingFill {
    /// It was done while the room was opened.
    pub(crate) fn is_done(&self) {
        let done = CancellationToken::new();
        done.cancel();
        self.0.get_or_init(|| done);
    }

    /// Starts to read what lies at or below `top`, unless that was done before, and has the room
    /// told of it. `Some` ends when that is so; `None`: the ring has all that it will have.
    ///
    /// The room goes on meanwhile, as the archive may take its time.
    pub(crate) fn start(
        &self,
        source: &Source,
        top: Seq,
        max_messages: usize,
        room: &mpsc::WeakSender<Command>,
    ) -> Option<CancellationToken> {
        let done = self.0.get_or_init(|| {
            let done = CancellationToken::new();
            let ends = done.clone().drop_guard();
            let (source, room) = (source.clone(), room.clone());
            source.shared.tasks.clone().spawn(async move {
                let past = source.read(top, max_messages).await;
                if let (Some(past), Some(room)) = (past, room.upgrade())
                    && room.send(Command::Past(past)).await.is_err()
                {
                    tracing::trace!("the room closed before its ring was filled");
                }
                drop(ends);
            });
            done
        });
        (!done.is_cancelled()).then(|| done.clone())
    }
}

impl Source {
    /// Reads the newest messages at or below `top`. A failure costs only that: whoever comes back
    /// then reads for itself.
    pub(crate) async fn read(&self, top: Seq, max_messages: usize) -> Option<Past> {
        let limits = self.shared.settings.bounds.ring;
        let max_messages = u32::try_from(max_messages).unwrap_or(u32::MAX);
        let max_bytes = u32::try_from(limits.ring_max_bytes / 2).unwrap_or(u32::MAX);
        let before = Some(Seq::new(top.read_from()));
        let read =
            self.shared
                .reader
                .backward(&self.place, &self.name, before, max_messages, max_bytes);
        let page = match read.await {
            Ok(page) if page.whole => page,
            Ok(_) => return None,
            Err(error) => {
                tracing::debug!(room = %self.name, %error, "ring not filled");
                return None;
            }
        };
        // Offsets of an older epoch are none of this one.
        let begin = self.place.current().from;
        let oldest = page.messages.last().map(|oldest| oldest.seq);
        let after = match oldest {
            Some(oldest) if page.more && oldest >= begin => oldest.just_before(),
            _ => begin.just_before(),
        };
        let entries = page.messages.iter().rev();
        let entries = entries.filter(|message| message.seq >= begin);
        Some(Past {
            entries: entries.map(|m| encode(&self.name, m)).collect(),
            after,
            up_to: top,
        })
    }
}
