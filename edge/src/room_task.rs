//! Knows: how one room lives: subscribe, take the position, deliver, repair, serve those behind.
//! Never: sockets, commands of the client protocol. The decisions are `room.rs`'s.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_history::Window;
use weir_nats::ambient::now_ms;
use weir_nats::erasure::author_key;
use weir_nats::placement::Place;
use weir_nats::{Delivery, Epoch, Message, RoomName, Seq};

use crate::hub::{Membership, Shared, Since};
use crate::limits::RoomSeat;
use crate::link::{Link, Signal};
use crate::outbox::Pushed;
use crate::protocol::code::UnsubscribeCode;
use crate::ring_fill::{RingFill, Source};
use crate::room::{Entry, MemberId, Paged, Past, Room, Step, Turn};

/// Messages and bytes of one repair read.
const REPAIR_PAGE_MAX_MESSAGES: u32 = 200;
const REPAIR_PAGE_MAX_BYTES: u32 = 256 << 10;
/// Between tries of a read that failed or lagged.
const RETRY_FIRST: Duration = Duration::from_millis(30);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Live messages taken before commands are looked at, so that neither starves.
const LIVE_PER_TURN_MAX: usize = 64;

/// A client that is ahead of this edge holds up its room for this long at most.
const ASK_WITHIN: Duration = Duration::from_millis(1_500);
/// Between looks whether a room without members may go early.
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// Idle time of a room while the edge is crowded with rooms.
const IDLE_CROWDED: Duration = Duration::from_secs(1);
/// Commands taken after a full turn of live messages.
const COMMANDS_PER_TURN_MAX: usize = 64;

/// What a room task is told.
pub(crate) enum Command {
    Join {
        link: Arc<Link>,
        since: Option<Since>,
        reply: oneshot::Sender<JoinAnswer>,
    },
    Release {
        id: MemberId,
        cursor: Seq,
    },
    Turn {
        id: MemberId,
        reply: oneshot::Sender<Turn>,
    },
    /// Asks again for what the ring has, for a member that has joined.
    Ask {
        since: Since,
        reply: oneshot::Sender<FromRing>,
    },
    /// The ring's past was read.
    Past(Past),
    /// A page of the log for a member that is behind, from the entry `from` on.
    Page {
        id: MemberId,
        entries: Arc<[(Seq, Bytes)]>,
        from: usize,
        reached: Seq,
        reply: oneshot::Sender<Paged>,
    },
    /// The log has lost what the member's cursor needs.
    Lost {
        id: MemberId,
    },
    Leave {
        id: MemberId,
    },
    Head {
        head: Seq,
    },
    Position {
        reply: oneshot::Sender<Option<(Epoch, Seq)>>,
    },
    /// The room is kept in another stream now.
    Moved,
    /// There are new orders of erasure: keep nothing that they cover, then drop `done`.
    Forget {
        done: mpsc::Sender<()>,
    },
}

/// The room's side of a join.
pub(crate) struct JoinAnswer {
    /// Owned by the answer, so that one that nobody takes leaves the room by itself.
    pub(crate) membership: Membership,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) have: Seq,
    pub(crate) from_ring: FromRing,
}

/// What the ring says about a recovery.
pub(crate) enum FromRing {
    NotAsked,
    /// Another epoch, or a position that the stream never reached.
    Unproven,
    /// The stream could not be asked in time.
    Unavailable,
    Entries {
        publications: Vec<Bytes>,
        cursor: Seq,
    },
    /// The ring does not reach back that far, and what it may get of the past is being read: ask
    /// again when this has ended.
    Filling(CancellationToken),
    /// The ring does not reach back that far.
    ReadLog(Place),
}

/// The room is no longer kept where this task reads.
struct Moved;

pub(crate) struct RoomTask {
    pub(crate) name: RoomName,
    /// `None`: nothing stores this room.
    pub(crate) place: Option<Place>,
    pub(crate) window: Window,
    pub(crate) shared: Arc<Shared>,
    pub(crate) own: mpsc::WeakSender<Command>,
    pub(crate) ring_fill: RingFill,
    /// Its place among the open rooms of its namespace.
    pub(crate) _seat: RoomSeat,
}

/// Encodes a message for all JSON members at once. What is not JSON gives an empty frame.
pub(crate) fn encode(room: &RoomName, message: &Message) -> Entry {
    let (frame, publication) =
        crate::protocol::json::publication_push(room.channel(), message).unwrap_or_default();
    Entry {
        seq: message.seq,
        time_ms: message.time_ms,
        author: message
            .author
            .as_ref()
            .map_or(0, |author| author_key(&author.user)),
        frame,
        publication,
    }
}

impl RoomTask {
    pub(crate) async fn run(self, mut queue: mpsc::Receiver<Command>, recovering: bool) {
        // What a room rarely does is boxed, here and below, or every quiet room would carry its future.
        match Box::pin(self.open(recovering)).await {
            Ok((subscriber, room)) => self.serve(subscriber, room, &mut queue).await,
            // Joins that wait find their answer dropped, and open the room again or give up.
            Err(error) => tracing::warn!(room = %self.name, %error, "room cannot be opened"),
        }
        self.shared.close_room(&self.name, &self.own, || true);
        self.shared.metrics.rooms.add(-1);
    }

    /// Subscribes, then takes the position by requests on the same connection, so the interest is
    /// there before the position is read (a join is a cut).
    async fn open(&self, recovering: bool) -> Result<(Subscriber, Room<Arc<Link>>), String> {
        let shared = &self.shared;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let limits = shared.settings.bounds.ring;
        let Some(place) = &self.place else {
            let subject = self.name.ephemeral_subject();
            let subscriber = shared.live.subscribe(subject).await.map_err(|e| text(&e))?;
            let none = Epoch::new("none").expect("a constant epoch");
            return Ok((subscriber, Room::new(none, Seq::ZERO, limits)));
        };
        let subject = self.name.live_subject();
        let subscriber = shared.live.subscribe(subject).await.map_err(|e| text(&e))?;
        let current = place.current();
        let state = shared
            .live_replay
            .state(&current.stream)
            .await
            .map_err(|e| text(&e))?;
        let last = shared
            .live_replay
            .last(&current.stream, &place.stored_subject)
            .await
            .map_err(|e| text(&e))?;
        let have = last.map_or(state.last, |delivery| delivery.message.seq);
        let mut room = Room::new(current.epoch.clone(), have, limits);
        if recovering {
            let source = self.source(place);
            if let Some(past) = source.read(have, limits.ring_max_messages).await {
                self.take_past(&mut room, past);
            }
            self.ring_fill.is_done();
        }
        Ok((subscriber, room))
    }

    /// Takes what was read of the past, and keeps the count of all rings.
    fn take_past(&self, room: &mut Room<Arc<Link>>, past: Past) {
        let before = room.ring_bytes();
        room.fill(past);
        let delta = to_i64(room.ring_bytes()) - to_i64(before);
        self.shared.metrics.ring_bytes.add(delta);
    }

    fn source(&self, place: &Place) -> Source {
        Source {
            shared: Arc::clone(&self.shared),
            name: self.name.clone(),
            place: place.clone(),
        }
    }

    async fn serve(
        &self,
        mut subscriber: Subscriber,
        mut room: Room<Arc<Link>>,
        queue: &mut mpsc::Receiver<Command>,
    ) {
        let mut idle_since: Option<Instant> = None;
        loop {
            let ring_before = room.ring_bytes();
            if room.member_count() > 0 {
                idle_since = None;
            } else if idle_since.is_none() {
                idle_since = Some(Instant::now());
            }
            let idle_for = if self.shared.is_crowded() {
                IDLE_CROWDED
            } else {
                self.shared.settings.bounds.room_idle
            };
            let idle_at = idle_since.unwrap_or_else(Instant::now) + idle_for;
            let look_at = idle_at.min(Instant::now() + IDLE_LOOK);
            let step = tokio::select! {
                biased;
                live = subscriber.next() => match live {
                    Some(message) => {
                        self.until_orders_are_read().await;
                        self.take_live(&mut room, &mut subscriber, queue, message).await
                    }
                    None => Err(Moved),
                },
                command = queue.recv() => match command {
                    Some(command) => {
                        self.until_orders_are_read().await;
                        self.command(&mut room, command).await
                    }
                    None => Err(Moved),
                },
                () = tokio::time::sleep_until(look_at), if idle_since.is_some() => {
                    if Instant::now() < idle_at {
                        continue;
                    }
                    if self.shared.close_room(&self.name, &self.own, || queue.is_empty()) {
                        self.shared.metrics.ring_bytes.add(-to_i64(room.ring_bytes()));
                        return;
                    }
                    Ok(())
                }
            };
            let metrics = &self.shared.metrics;
            let delta = to_i64(room.ring_bytes()) - to_i64(ring_before);
            if delta != 0
                && metrics.ring_bytes.add(delta) > self.shared.settings.bounds.rings_max_bytes
            {
                let before = room.ring_bytes();
                room.trim(before / 4);
                metrics
                    .ring_bytes
                    .add(to_i64(room.ring_bytes()) - to_i64(before));
            }
            if step.is_err() {
                metrics.ring_bytes.add(-to_i64(room.ring_bytes()));
                self.dismiss_all(&mut room);
                return;
            }
        }
    }

    /// After NATS was away nobody is shown anything before it is known whom that may still reach.
    async fn until_orders_are_read(&self) {
        if let Some(read) = self.shared.revocations.hold() {
            Box::pin(read).await;
        }
    }

    /// Takes one live message and those that are ready behind it, then the commands that wait, so
    /// that neither starves the other.
    async fn take_live(
        &self,
        room: &mut Room<Arc<Link>>,
        subscriber: &mut Subscriber,
        queue: &mut mpsc::Receiver<Command>,
        first: async_nats::Message,
    ) -> Result<(), Moved> {
        self.live(room, first).await?;
        for _ in 1..LIVE_PER_TURN_MAX {
            let ready = futures_util::FutureExt::now_or_never(subscriber.next());
            match ready {
                Some(Some(message)) => self.live(room, message).await?,
                Some(None) => return Err(Moved),
                None => return Ok(()),
            }
        }
        for _ in 0..COMMANDS_PER_TURN_MAX {
            match queue.try_recv() {
                Ok(command) => self.command(room, command).await?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    async fn live(
        &self,
        room: &mut Room<Arc<Link>>,
        message: async_nats::Message,
    ) -> Result<(), Moved> {
        let metrics = &self.shared.metrics;
        metrics.live_messages.add_one();
        let Some(place) = &self.place else {
            self.ephemeral(room, &message);
            return Ok(());
        };
        let delivery = message
            .headers
            .as_ref()
            .and_then(|headers| Delivery::from_headers(headers, message.payload.clone()).ok());
        let Some(delivery) = delivery else {
            metrics.live_refused.add_one();
            return Ok(());
        };
        if delivery.stream != place.current().stream
            || delivery.stored_subject != place.stored_subject
        {
            if self.has_moved() {
                return Err(Moved);
            }
            metrics.live_refused.add_one();
            return Ok(());
        }
        let seq = delivery.message.seq;
        match room.step(delivery.previous, seq) {
            Step::Known => metrics.live_known.add_one(),
            Step::Next => self.deliver(room, &delivery.message),
            Step::Gap(up_to) => {
                metrics.gaps.add_one();
                Box::pin(self.repair(room, up_to)).await?;
                if seq > room.have() {
                    self.deliver(room, &delivery.message);
                }
            }
            Step::Unproven => {
                if Box::pin(self.nothing_was_trimmed(room)).await? {
                    self.deliver(room, &delivery.message);
                } else {
                    Box::pin(self.repair(room, seq)).await?;
                }
            }
        }
        Ok(())
    }

    /// A publication of a room that nothing stores: no offset, no ring, no second chance.
    fn ephemeral(&self, room: &mut Room<Arc<Link>>, message: &async_nats::Message) {
        let headers = message.headers.clone().unwrap_or_default();
        let message = Message::from_parts(Seq::ZERO, now_ms(), &headers, message.payload.clone());
        let mut entry = encode(&self.name, &message);
        entry.seq = Seq::new(room.have().read_from());
        let mut delivered = 0;
        room.append(entry, |link, frame| {
            delivered += 1;
            link.push_unstored(frame)
        });
        room.trim(0);
        self.shared.metrics.ephemeral_deliveries.add(delivered);
    }

    fn deliver(&self, room: &mut Room<Arc<Link>>, message: &Message) {
        let orders = &self.shared.orders;
        let log = self.place.as_ref().map_or("", |place| place.log.as_str());
        if orders.is_erased(log, &self.name, message) {
            room.skip_to(message.seq);
            return;
        }
        let mut delivered = 0;
        let fell_behind = room.append(encode(&self.name, message), |link, frame| {
            let pushed = link.push(frame);
            delivered += u64::from(pushed == Pushed::Taken);
            pushed
        });
        self.shared.metrics.deliveries.add(delivered);
        for id in fell_behind {
            self.catch_up(room, id);
        }
    }

    /// True if the stream still has everything after the room's position. Its first sequence is read
    /// after the message came, so nothing between was trimmed unseen.
    async fn nothing_was_trimmed(&self, room: &Room<Arc<Link>>) -> Result<bool, Moved> {
        let stream = self.stream();
        let mut pause = RETRY_FIRST;
        loop {
            match self.shared.live_replay.state(&stream).await {
                Ok(state) => return Ok(state.first.get() <= room.have().read_from()),
                Err(error) => self.pause(&mut pause, &error).await?,
            }
        }
    }

    /// Reads what the room lacks up to `to`, by the one read path, until it was reached.
    async fn repair(&self, room: &mut Room<Arc<Link>>, to: Seq) -> Result<(), Moved> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        let mut pause = RETRY_FIRST;
        while room.have() < to {
            let read = self.shared.reader.forward(
                place,
                &self.name,
                room.have(),
                Some(to),
                REPAIR_PAGE_MAX_MESSAGES,
                REPAIR_PAGE_MAX_BYTES,
            );
            match read.await {
                Ok(page) if !page.whole => {
                    tracing::warn!(room = %self.name, have = %room.have(), %to, "messages are lost");
                    self.shared.metrics.rooms_lost.add_one();
                    self.dismiss_all(room);
                    room.lose_to(to);
                }
                Ok(page) => {
                    let before = room.have();
                    for message in &page.messages {
                        if message.seq > room.have() {
                            self.deliver(room, message);
                            self.shared.metrics.repaired.add_one();
                        }
                    }
                    room.skip_to(page.reached.min(to));
                    if room.have() == before {
                        // Another replica may lag behind the one that told of the message.
                        self.pause(&mut pause, &"the log does not show it yet")
                            .await?;
                    }
                }
                Err(error) => self.pause(&mut pause, &error).await?,
            }
        }
        Ok(())
    }

    async fn pause(
        &self,
        pause: &mut Duration,
        error: &(dyn std::fmt::Display + Sync),
    ) -> Result<(), Moved> {
        tracing::debug!(room = %self.name, %error, "read is tried again");
        tokio::time::sleep(*pause).await;
        *pause = (*pause * 2).min(RETRY_MAX);
        if self.has_moved() { Err(Moved) } else { Ok(()) }
    }

    async fn command(&self, room: &mut Room<Arc<Link>>, command: Command) -> Result<(), Moved> {
        match command {
            Command::Join { link, since, reply } => {
                let from_ring = match &since {
                    None => FromRing::NotAsked,
                    Some(since) => Box::pin(self.ask_ring(room, since)).await?,
                };
                let epoch = self.place.as_ref().map(|_| room.epoch().clone());
                // A connection has one place in a room; a leave may still be on its way.
                let before = room.members().find(|(_, other)| Arc::ptr_eq(other, &link));
                if let Some((id, _)) = before {
                    room.leave(id);
                }
                let Some(own) = self.own.upgrade() else {
                    return Ok(());
                };
                let membership = Membership::new(
                    room.join(link),
                    own,
                    &self.shared.metrics,
                    &self.shared.tasks,
                );
                let have = if epoch.is_some() {
                    room.have()
                } else {
                    Seq::ZERO
                };
                let answer = JoinAnswer {
                    membership,
                    epoch,
                    have,
                    from_ring,
                };
                if reply.send(answer).is_err() {
                    tracing::trace!(room = %self.name, "the joiner left meanwhile");
                }
            }
            Command::Release { id, cursor } => {
                // A room without offsets has no cursors of clients; its own counter is the cursor.
                let cursor = if self.place.is_some() {
                    cursor
                } else {
                    room.have()
                };
                match room.release(id, cursor, |link, frame| link.push(frame)) {
                    Turn::Live | Turn::Gone => {}
                    Turn::Full | Turn::Log(_) => self.catch_up(room, id),
                }
            }
            Command::Ask { since, reply } => {
                let from_ring = Box::pin(self.ask_ring(room, &since)).await?;
                if reply.send(from_ring).is_err() {
                    tracing::trace!(room = %self.name, "the joiner left meanwhile");
                }
            }
            Command::Past(past) => {
                room.fill(past);
                // An order may have come while it was read.
                self.forget_erased(room);
            }
            Command::Turn { id, reply } => {
                let turn = room.turn(id, |link, frame| link.push(frame));
                if reply.send(turn).is_err() {
                    tracing::trace!(room = %self.name, "the reader left meanwhile");
                }
            }
            Command::Page {
                id,
                entries,
                from,
                reached,
                reply,
            } => {
                let page = entries.get(from..).unwrap_or_default();
                let paged = room.page(id, page, reached, |link, frame| link.push(frame));
                if reply.send(paged).is_err() {
                    tracing::trace!(room = %self.name, "the reader left meanwhile");
                }
            }
            Command::Lost { id } => {
                if let Some(link) = room.leave(id) {
                    self.dismiss(&link);
                }
            }
            Command::Leave { id } => {
                room.leave(id);
            }
            Command::Head { head } => {
                if head > room.have() {
                    self.shared.metrics.lost_tails.add_one();
                    Box::pin(self.repair(room, head)).await?;
                }
            }
            Command::Position { reply } => {
                let position = self
                    .place
                    .as_ref()
                    .map(|_| (room.epoch().clone(), room.have()));
                if reply.send(position).is_err() {
                    tracing::trace!(room = %self.name, "nobody waits for the position");
                }
            }
            Command::Forget { done } => {
                self.forget_erased(room);
                drop(done);
            }
            Command::Moved => {
                if self.has_moved() {
                    return Err(Moved);
                }
            }
        }
        Ok(())
    }

    fn forget_erased(&self, room: &mut Room<Arc<Link>>) {
        let matcher = self.shared.orders.matcher();
        if let Some(place) = &self.place {
            room.forget(|entry| {
                let at = (entry.seq, entry.time_ms);
                matcher.may_be_erased(&place.log, &self.name, at, entry.author)
            });
        }
    }

    /// The verdict as far as the ring and the stream's last sequence go.
    async fn ask_ring(&self, room: &mut Room<Arc<Link>>, since: &Since) -> Result<FromRing, Moved> {
        let Some(place) = &self.place else {
            return Ok(FromRing::Unproven);
        };
        if since
            .epoch
            .as_deref()
            .is_some_and(|epoch| epoch != room.epoch().as_str())
        {
            return Ok(FromRing::Unproven);
        }
        if since.offset > room.have() {
            // The client is ahead of this edge: is that possible? Ask the stream.
            let stream = self.stream();
            let mut pause = RETRY_FIRST;
            let until = Instant::now() + ASK_WITHIN;
            loop {
                if Instant::now() > until {
                    return Ok(FromRing::Unavailable);
                }
                let read = async {
                    let state = self.shared.live_replay.state(&stream).await?;
                    let last = self
                        .shared
                        .live_replay
                        .last(&stream, &place.stored_subject)
                        .await?;
                    Ok::<_, weir_nats::replay::ReplayError>((state.last, last))
                };
                match read.await {
                    Ok((last_of_all, _)) if since.offset > last_of_all => {
                        (self.shared.suspect)(&stream);
                        return Ok(FromRing::Unproven);
                    }
                    Ok((_, last)) => {
                        let head = last.map_or(Seq::ZERO, |delivery| delivery.message.seq);
                        self.repair(room, head).await?;
                        break;
                    }
                    Err(error) => self.pause(&mut pause, &error).await?,
                }
            }
        }
        let client = &self.shared.settings.client;
        let max_messages = client.recovery_max_publication_limit as usize;
        let max_bytes = self.shared.settings.bounds.reply_max_bytes as usize;
        let Some(entries) = room.since(since.offset) else {
            let missing = room.ring_space();
            let filling = if missing == 0 {
                None
            } else {
                let source = self.source(place);
                self.ring_fill
                    .start(&source, room.floor(), missing, &self.own)
            };
            return Ok(filling.map_or_else(|| FromRing::ReadLog(place.clone()), FromRing::Filling));
        };
        let oldest_ms = self
            .window
            .ttl
            .map(|ttl| now_ms() - i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        let too_many = self
            .window
            .size
            .is_some_and(|size| entries.len() as u64 > size);
        let (mut publications, mut bytes) = (Vec::new(), 0);
        let mut cursor = since.offset;
        let mut entries = entries.peekable();
        let too_old = entries
            .peek()
            .is_some_and(|first| oldest_ms.is_some_and(|oldest| first.time_ms < oldest));
        if too_many || too_old {
            return Ok(FromRing::Unproven);
        }
        for entry in entries {
            // What does not fit follows as ordinary pushes once the member is released.
            if publications.len() >= max_messages || bytes + entry.publication.len() > max_bytes {
                return Ok(FromRing::Entries {
                    publications,
                    cursor,
                });
            }
            bytes += entry.publication.len();
            publications.push(entry.publication.clone());
            cursor = entry.seq;
        }
        Ok(FromRing::Entries {
            publications,
            cursor: cursor.max(room.have()),
        })
    }

    /// Starts to serve a member that is behind. It ends when the member is live or gone.
    fn catch_up(&self, room: &Room<Arc<Link>>, id: MemberId) {
        let (Some(link), Some(place)) = (room.sink(id), self.place.clone()) else {
            return;
        };
        let Some(commands) = self.own.upgrade() else {
            return;
        };
        self.shared.metrics.fell_behind.add_one();
        let reader = crate::catch_up::Reader {
            id,
            name: self.name.clone(),
            place,
            link: Arc::clone(link),
            commands: commands.downgrade(),
            shared: Arc::clone(&self.shared),
        };
        self.shared.tasks.spawn(reader.run());
    }

    fn dismiss_all(&self, room: &mut Room<Arc<Link>>) {
        let members: Vec<_> = room
            .members()
            .map(|(id, link)| (id, Arc::clone(link)))
            .collect();
        for (id, link) in members {
            room.leave(id);
            self.dismiss(&link);
        }
    }

    fn dismiss(&self, link: &Link) {
        link.signal(Signal::Unsubscribed {
            room: self.name.clone(),
            code: UnsubscribeCode::INSUFFICIENT_STATE,
        });
    }

    fn stream(&self) -> String {
        self.place
            .as_ref()
            .map(|place| place.current().stream.clone())
            .unwrap_or_default()
    }

    fn has_moved(&self) -> bool {
        let Some(mine) = &self.place else {
            return false;
        };
        let now = self.shared.placements.place(&mine.log, &self.name);
        now.is_some_and(|now| now.current().stream != mine.current().stream)
    }
}

fn to_i64(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_a_quiet_room_carries_stays_small() {
        let bytes = future_bytes(RoomTask::run);
        assert!(bytes <= 3_072, "{bytes}");
    }
}
