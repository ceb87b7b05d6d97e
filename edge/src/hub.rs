//! Knows: which rooms are open on this edge, and how to join one. Never: sockets, commands, frames.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use weir_authz::{Action, Permit};
use weir_history::Reader;
use weir_nats::replay::Replay;
use weir_nats::{Epoch, Orders, Placements, Revocations, RoomName, Seq};

use crate::limits::Limits;
use crate::link::Link;
use crate::metrics::Metrics;
use crate::ring_fill::RingFill;
use crate::room::MemberId;
use crate::room_task::{self, Command, FromRing, RoomTask};
use crate::settings::{EdgeSettings, Namespace};

/// Commands that may wait for one room.
const ROOM_COMMANDS_MAX: usize = 256;
/// A join answers within this, below the 5 s at which SDKs give up and reconnect.
const JOIN_WITHIN: Duration = Duration::from_secs(4);

/// The rooms of this edge. Cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<Shared>);

/// Rooms forget what was erased within this, or are told again.
const FORGET_WITHIN: Duration = Duration::from_secs(5);
/// A room tells its position within this, or the log is asked.
const POSITION_WITHIN: Duration = Duration::from_millis(500);

/// What every room task uses.
pub(crate) struct Shared {
    rooms: Mutex<HashMap<RoomName, RoomHandle>>,
    pub(crate) live: async_nats::Client,
    /// Reads on the *live* connection: a join's position must follow its subscription.
    pub(crate) live_replay: Replay,
    pub(crate) reader: Reader,
    pub(crate) placements: Placements,
    pub(crate) orders: Orders,
    pub(crate) revocations: Revocations,
    pub(crate) settings: Arc<EdgeSettings>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) tasks: TaskTracker,
    /// Tells the epoch guard that a client knows more of a stream than the stream does.
    pub(crate) suspect: Box<dyn Fn(&str) + Send + Sync>,
}

/// What a hub needs from the node.
pub struct HubParts {
    /// The connection that carries live messages.
    pub live: async_nats::Client,
    /// The one read path.
    pub reader: Reader,
    /// Where rooms are kept.
    pub placements: Placements,
    /// What may not be shown any more. [`Hub::forget_erased`] is to be called after each change.
    pub orders: Orders,
    /// Nobody is served before they are read.
    pub revocations: Revocations,
    /// The edge's settings.
    pub settings: Arc<EdgeSettings>,
    /// The edge's counters.
    pub metrics: Arc<Metrics>,
    /// How many rooms a namespace may have open.
    pub limits: Arc<Limits>,
    /// The node's tasks, so that drain waits for them.
    pub tasks: TaskTracker,
    /// Called with a stream's name when a client knows more of it than the stream does.
    pub suspect: Box<dyn Fn(&str) + Send + Sync>,
}

/// A room that is open here.
#[derive(Clone)]
pub(crate) struct RoomHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    /// The stream and stored subject, for sweeps; `None` for a room that nothing stores.
    pub(crate) stored: Option<(String, String)>,
}

/// Where a client says it stands.
#[derive(Clone, Debug)]
pub struct Since {
    /// Its epoch; `None` matches any.
    pub epoch: Option<String>,
    /// The last offset it has.
    pub offset: Seq,
}

/// Why a join did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// NATS or the archive did not answer in time: error 100, try again.
    #[error("the room cannot be opened now")]
    Unavailable,
    /// This edge, or the namespace here, has as many rooms open as it may, which is not the client's fault: error 111.
    #[error("this edge has its limit of open rooms")]
    TooManyRooms,
}

/// A membership that stands, and what its reply says.
#[derive(Debug)]
pub struct Joined {
    /// Dropping it leaves the room.
    pub membership: Membership,
    /// The room's epoch; `None` for a room that nothing stores.
    pub epoch: Option<Epoch>,
    /// The offset for the reply.
    pub offset: Seq,
    /// For a join with `since`: the verdict.
    pub recovered: Option<bool>,
    /// Encoded publications, oldest first; empty unless recovered.
    pub publications: Vec<Bytes>,
    /// What [`Membership::release`] is told once the reply is written.
    pub cursor: Seq,
}

/// One member's place in a room. Dropping it leaves the room.
pub struct Membership {
    id: MemberId,
    commands: mpsc::Sender<Command>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Membership").field(&self.id).finish()
    }
}

impl Membership {
    pub(crate) fn new(
        id: MemberId,
        commands: mpsc::Sender<Command>,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
    ) -> Self {
        metrics.memberships.add(1);
        Self {
            id,
            commands,
            metrics: Arc::clone(metrics),
            tasks: tasks.clone(),
        }
    }

    /// In a room that does nothing.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let (commands, _) = mpsc::channel(1);
        let tasks = TaskTracker::new();
        Self::new(MemberId::default(), commands, &Arc::default(), &tasks)
    }

    /// The reply is on its way and ends at `cursor`: pushes after it may follow.
    pub fn release(&self, cursor: Seq) {
        self.send(Command::Release {
            id: self.id,
            cursor,
        });
    }

    /// Sends without waiting; a full queue is waited for elsewhere, in order per membership, as the
    /// only two commands that a membership sends are far apart.
    fn send(&self, command: Command) {
        match self.commands.try_send(command) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(command)) => {
                let commands = self.commands.clone();
                self.tasks.spawn(async move {
                    if commands.send(command).await.is_err() {
                        tracing::trace!("room closed before it took a command");
                    }
                });
            }
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.metrics.memberships.add(-1);
        self.send(Command::Leave { id: self.id });
    }
}

impl Hub {
    /// Makes an empty hub. [`crate::sweep::run`] has to run beside it.
    #[must_use]
    pub fn new(parts: HubParts) -> Self {
        Self(Arc::new(Shared {
            rooms: Mutex::default(),
            live_replay: Replay::new(parts.live.clone()),
            live: parts.live,
            reader: parts.reader,
            placements: parts.placements,
            orders: parts.orders,
            revocations: parts.revocations,
            settings: parts.settings,
            metrics: parts.metrics,
            limits: parts.limits,
            tasks: parts.tasks,
            suspect: parts.suspect,
        }))
    }

    /// Joins a room: the cut is taken where pushes are ordered, and what the client missed is read
    /// from the ring or the log. Nothing is pushed to the member before [`Membership::release`].
    ///
    /// ```compile_fail,E0308
    /// # async fn f(
    /// #     hub: &weir_edge::hub::Hub,
    /// #     namespace: &weir_edge::settings::Namespace,
    /// #     link: &std::sync::Arc<weir_edge::link::Link>,
    /// # ) {
    /// let room = weir_nats::RoomName::parse("chat:lobby").unwrap();
    /// hub.join(&room, namespace, link, None).await;
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the room cannot be opened or read in time, or there are too many rooms.
    pub async fn join(
        &self,
        permit: &Permit,
        namespace: &Namespace,
        link: &Arc<Link>,
        since: Option<Since>,
    ) -> Result<Joined, JoinError> {
        if permit.action() != Action::Subscribe {
            return Err(JoinError::Unavailable);
        }
        let joining = self.join_within(permit.room(), namespace, link, since);
        tokio::time::timeout(JOIN_WITHIN, joining)
            .await
            .unwrap_or(Err(JoinError::Unavailable))
    }

    async fn join_within(
        &self,
        room: &RoomName,
        namespace: &Namespace,
        link: &Arc<Link>,
        since: Option<Since>,
    ) -> Result<Joined, JoinError> {
        // A room may close between the look-up and the command; then the next one is opened.
        for _ in 0..3 {
            let handle = self.open(room, namespace, since.is_some())?;
            let (reply, answer) = oneshot::channel();
            let command = Command::Join {
                link: Arc::clone(link),
                since: since.clone(),
                reply,
            };
            if handle.commands.send(command).await.is_err() {
                continue;
            }
            let Ok(join) = answer.await else { continue };
            return self.verdict(room, namespace, join, since).await;
        }
        Err(JoinError::Unavailable)
    }

    /// Turns the room's answer into a verdict; reads the log where the ring does not reach.
    async fn verdict(
        &self,
        room: &RoomName,
        namespace: &Namespace,
        join: room_task::JoinAnswer,
        since: Option<Since>,
    ) -> Result<Joined, JoinError> {
        let metrics = &self.0.metrics;
        let mut joined = Joined {
            membership: join.membership,
            epoch: join.epoch,
            offset: join.have,
            recovered: None,
            publications: Vec::new(),
            cursor: join.have,
        };
        let Some(since) = since else {
            return Ok(joined);
        };
        let mut from_ring = join.from_ring;
        if let FromRing::Filling(done) = &from_ring {
            done.cancelled().await;
            let (reply, answer) = oneshot::channel();
            let again = Command::Ask {
                since: since.clone(),
                reply,
            };
            let asked = joined.membership.commands.send(again).await;
            asked.map_err(|_| JoinError::Unavailable)?;
            from_ring = answer.await.map_err(|_| JoinError::Unavailable)?;
        }
        match from_ring {
            FromRing::NotAsked => {}
            FromRing::Filling(_) => return Err(JoinError::Unavailable),
            FromRing::Unproven => joined.recovered = Some(false),
            FromRing::Unavailable => return Err(JoinError::Unavailable),
            FromRing::Entries {
                publications,
                cursor,
            } => {
                metrics.recovered_from_ring.add_one();
                joined.recovered = Some(true);
                joined.offset = since.offset;
                joined.publications = publications;
                joined.cursor = cursor;
            }
            FromRing::ReadLog(place) => {
                let client = &self.0.settings.client;
                let recovery = self
                    .0
                    .reader
                    .recover(
                        &place,
                        room,
                        since.epoch.as_deref(),
                        since.offset,
                        &namespace.window,
                        client.recovery_max_publication_limit,
                        self.0.settings.bounds.reply_max_bytes,
                    )
                    .await
                    .map_err(|error| {
                        tracing::warn!(%room, %error, "recovery read failed");
                        JoinError::Unavailable
                    })?;
                joined.recovered = Some(recovery.recovered);
                if recovery.recovered {
                    joined.offset = since.offset;
                    joined.cursor = recovery.page.reached.max(since.offset);
                    joined.publications = recovery
                        .page
                        .messages
                        .iter()
                        .map(|message| room_task::encode(room, message).publication)
                        .collect();
                }
            }
        }
        match joined.recovered {
            Some(true) => metrics.recovered_true.add_one(),
            Some(false) => metrics.recovered_false.add_one(),
            None => {}
        }
        Ok(joined)
    }

    fn open(
        &self,
        room: &RoomName,
        namespace: &Namespace,
        recovering: bool,
    ) -> Result<RoomHandle, JoinError> {
        let mut rooms = self.0.rooms();
        if let Some(handle) = rooms.get(room)
            && !handle.commands.is_closed()
        {
            return Ok(handle.clone());
        }
        if rooms.len() >= self.0.settings.bounds.rooms_max {
            return Err(JoinError::TooManyRooms);
        }
        let seat = self.0.limits.open_room(room, namespace.rooms_max);
        let seat = seat.map_err(|_| JoinError::TooManyRooms)?;
        let place = if namespace.stored {
            // The config guarantees the log; its placement is made before sockets are accepted.
            Some(
                self.0
                    .placements
                    .place(&namespace.log, room)
                    .ok_or(JoinError::Unavailable)?,
            )
        } else {
            None
        };
        let (commands, queue) = mpsc::channel(ROOM_COMMANDS_MAX);
        let stored = place
            .as_ref()
            .map(|place| (place.current().stream.clone(), place.stored_subject.clone()));
        let handle = RoomHandle { commands, stored };
        rooms.insert(room.clone(), handle.clone());
        drop(rooms);
        let task = RoomTask {
            name: room.clone(),
            place,
            window: namespace.window,
            shared: Arc::clone(&self.0),
            own: handle.commands.downgrade(),
            ring_fill: RingFill::default(),
            _seat: seat,
        };
        self.0.metrics.rooms.add(1);
        self.0.tasks.spawn(task.run(queue, recovering));
        Ok(handle)
    }

    /// The position of a room, if it is open here.
    pub async fn position(&self, room: &RoomName) -> Option<(Epoch, Seq)> {
        let commands = self.0.rooms().get(room)?.commands.clone();
        let (reply, answer) = oneshot::channel();
        let asking = async {
            commands.send(Command::Position { reply }).await.ok()?;
            answer.await.ok().flatten()
        };
        // A room that is busy with a repair is not waited for: the log knows its position, too.
        tokio::time::timeout(POSITION_WITHIN, asking)
            .await
            .ok()
            .flatten()
    }

    /// Tells one room the last offset that the log has for it; it repairs itself if it has less.
    /// False if the room is too busy to be told now.
    pub(crate) fn tell_head(&self, room: &RoomName, head: Seq) -> bool {
        let commands = self
            .0
            .rooms()
            .get(room)
            .map(|handle| handle.commands.clone());
        let told = commands.map(|commands| commands.try_send(Command::Head { head }));
        !matches!(told, Some(Err(mpsc::error::TrySendError::Full(_))))
    }

    /// The stream and stored subject of a room, if it is open here.
    pub(crate) fn stored_room(&self, room: &RoomName) -> Option<(String, String)> {
        self.0.rooms().get(room)?.stored.clone()
    }

    /// Every stored room that is open here, with its stream and stored subject.
    pub(crate) fn stored_rooms(&self) -> Vec<(RoomName, String, String)> {
        let rooms = self.0.rooms();
        let stored = rooms.iter().filter_map(|(name, handle)| {
            let (stream, subject) = handle.stored.clone()?;
            Some((name.clone(), stream, subject))
        });
        stored.collect()
    }

    /// Ends the rooms that are no longer where they were opened; members are told 2500.
    pub(crate) async fn check_placements(&self) {
        let moved: Vec<_> = {
            let rooms = self.0.rooms();
            let moved = rooms.iter().filter_map(|(name, handle)| {
                let (stream, subject) = handle.stored.as_ref()?;
                let log = subject.split('.').nth(1)?;
                let place = self.0.placements.place(log, name)?;
                (place.current().stream != *stream).then(|| handle.commands.clone())
            });
            moved.collect()
        };
        for commands in moved {
            if commands.send(Command::Moved).await.is_err() {
                tracing::trace!("room closed before it was moved");
            }
        }
    }

    /// Has every room let go of what the orders of erasure cover. True when all have; a room that is
    /// busy with a repair may not have yet.
    pub async fn forget_erased(&self) -> bool {
        let rooms: Vec<_> = {
            let rooms = self.0.rooms();
            let stored = rooms.values().filter(|handle| handle.stored.is_some());
            stored.map(|handle| handle.commands.clone()).collect()
        };
        let (done, mut all_done) = mpsc::channel(1);
        let telling = async {
            for commands in rooms {
                let done = done.clone();
                if commands.send(Command::Forget { done }).await.is_err() {
                    tracing::trace!("room closed before it forgot");
                }
            }
            drop(done);
            // Nothing is ever sent: it ends when the last room has dropped its end.
            all_done.recv().await;
        };
        tokio::time::timeout(FORGET_WITHIN, telling).await.is_ok()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0
    }
}

impl Shared {
    fn rooms(&self) -> MutexGuard<'_, HashMap<RoomName, RoomHandle>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True above four fifths of the rooms that may be open.
    pub(crate) fn is_crowded(&self) -> bool {
        let rooms = usize::try_from(self.metrics.rooms.value()).unwrap_or(0);
        rooms > self.settings.bounds.rooms_max / 5 * 4
    }

    /// Takes a room off the table. `is_idle` is asked under the lock, so that no join can get the
    /// handle of a room that decided to close.
    pub(crate) fn close_room(
        &self,
        room: &RoomName,
        own: &mpsc::WeakSender<Command>,
        is_idle: impl FnOnce() -> bool,
    ) -> bool {
        let mut rooms = self.rooms();
        let is_mine = rooms.get(room).is_some_and(|handle| {
            own.upgrade()
                .is_none_or(|own| own.same_channel(&handle.commands))
        });
        if !is_idle() {
            return false;
        }
        if is_mine {
            rooms.remove(room);
        }
        true
    }
}
