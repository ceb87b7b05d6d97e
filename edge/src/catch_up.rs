//! Knows: how one member that is behind is served from the log, under back pressure, until it is
//! live. Never: the room's own state (it asks the room task), commands of the client protocol.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use weir_nats::placement::Place;
use weir_nats::{RoomName, Seq};

use crate::hub::Shared;
use crate::link::Link;
use crate::outbox::Pushed;
use crate::room::{MemberId, Turn};
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
                Turn::Log(cursor) => match self.page(cursor).await {
                    Some(command) => {
                        let is_end = matches!(command, Command::Lost { .. });
                        if !self.tell(command).await || is_end {
                            return;
                        }
                    }
                    None => return,
                },
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

    /// Reads one page after `cursor` and pushes it. `None` when the socket or the room is gone.
    async fn page(&self, cursor: Seq) -> Option<Command> {
        let max_bytes = self.shared.settings.bounds.page_max_bytes;
        let mut pause = Duration::from_millis(30);
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
                        return None;
                    }
                }
            }
        };
        if !page.whole {
            return Some(Command::Lost { id: self.id });
        }
        for message in &page.messages {
            let frame = encode(&self.name, message).frame;
            loop {
                match self.link.push(&frame) {
                    Pushed::Taken => break,
                    Pushed::Gone => return None,
                    Pushed::Full => {
                        if !self.link.outbox.has_room().await {
                            return None;
                        }
                    }
                }
            }
            self.shared.metrics.caught_up.add_one();
        }
        if page.reached <= cursor && !page.more {
            // The ring begins above the cursor but the log shows nothing yet: look again soon.
            tokio::time::sleep(pause).await;
        }
        Some(Command::Advance {
            id: self.id,
            cursor: page.reached.max(cursor),
        })
    }

    async fn tell(&self, command: Command) -> bool {
        let Some(commands) = self.commands.upgrade() else {
            return false;
        };
        commands.send(command).await.is_ok()
    }
}
