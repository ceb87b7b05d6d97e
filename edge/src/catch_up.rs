//! Knows: how one member that is behind is served from the log, under back pressure, until it is
//! live. Never: the room's own state (it asks the room task), commands of the client protocol.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use weir_nats::placement::Place;
use weir_nats::{RoomName, Seq};

use crate::hub::Shared;
use crate::link::Link;
use crate::room::{MemberId, Paged, Turn};
use crate::room_task::{Command, encode};

/// Messages of one page.
const PAGE_MAX_MESSAGES: u32 = 200;
/// Between tries of a page that could not be read.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Serves one member that is behind. It holds one page at most.
pub(crate) struct Reader {
    pub(crate) id: MemberId,
    pub(crate) name: RoomName,
    pub(crate) place: Place,
    pub(crate) link: Arc<Link>,
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) shared: Arc<Shared>,
}

impl Reader {
    pub(crate) async fn run(self) {
        self.shared.metrics.behind.add(1);
        self.serve().await;
        self.shared.metrics.behind.add(-1);
    }

    async fn serve(&self) {
        while self.link.outbox.has_room().await {
            match self.turn().await {
                Turn::Live | Turn::Gone => return,
                Turn::Full => {}
                Turn::Log(cursor) => {
                    if !self.page(cursor).await {
                        return;
                    }
                }
            }
        }
    }

    /// Asks the room to serve the member from its ring, or where to read on.
    async fn turn(&self) -> Turn {
        let (reply, answer) = oneshot::channel();
        if !self.tell(Command::Turn { id: self.id, reply }).await {
            return Turn::Gone;
        }
        answer.await.unwrap_or(Turn::Gone)
    }

    /// Reads one page after `cursor` and has the room push it, which keeps it in order with joins and
    /// leaves. False when the member is gone.
    async fn page(&self, cursor: Seq) -> bool {
        let max_bytes = self.shared.settings.bounds.page_max_bytes;
        let mut pause = Duration::from_millis(30);
        let version = self.shared.orders.version();
        let page = loop {
            let read = self.shared.reader.forward(
                &self.place,
                &self.name,
                cursor,
                None,
                PAGE_MAX_MESSAGES,
                max_bytes,
            );
            match read.await {
                Ok(page) => break page,
                Err(error) => {
                    tracing::debug!(room = %self.name, %error, "page is tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    if self.link.outbox.is_gone() || self.commands.upgrade().is_none() {
                        return false;
                    }
                }
            }
        };
        if !page.whole {
            self.tell(Command::Lost { id: self.id }).await;
            return false;
        }
        let count = page.messages.len() as u64;
        let entries: Vec<(Seq, Bytes)> = page
            .messages
            .iter()
            .map(|m| (m.seq, encode(&self.name, m).frame))
            .collect();
        let reached = page.reached.max(cursor);
        if !self.push(entries.into(), reached, version).await {
            return false;
        }
        self.shared.metrics.caught_up.add(count);
        if page.reached <= cursor && !page.more {
            // The ring begins above the cursor but the log shows nothing yet: look again soon.
            tokio::time::sleep(pause).await;
        }
        true
    }

    /// True when all is pushed, or when the page has to be read again, as something was erased since
    /// the orders were of this `version`.
    async fn push(&self, entries: Arc<[(Seq, Bytes)]>, reached: Seq, version: u64) -> bool {
        let mut from = 0;
        while self.shared.orders.version() == version {
            let (reply, answer) = oneshot::channel();
            let entries = Arc::clone(&entries);
            let command = Command::Page {
                id: self.id,
                entries,
                from,
                reached,
                reply,
            };
            if !self.tell(command).await {
                return false;
            }
            match answer.await {
                Ok(Paged::Taken) => return true,
                Ok(Paged::Full(taken)) => from += taken,
                Ok(Paged::Gone) | Err(_) => return false,
            }
            if !self.link.outbox.has_room().await {
                return false;
            }
        }
        true
    }

    async fn tell(&self, command: Command) -> bool {
        let Some(commands) = self.commands.upgrade() else {
            return false;
        };
        commands.send(command).await.is_ok()
    }
}
