//! Knows: how one socket is driven: bytes in, the session's effects, bytes out, timers. Never: what
//! a command means.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::header::HeaderValue;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_authz::hook::Closing;
use weir_authz::token::Wanted;
use weir_authz::{Permit, Verifier};
use weir_history::Reader;
use weir_nats::ambient::{random, since_1970};
use weir_nats::message::join_info;
use weir_nats::publish::{ANSWER_WITHIN, Outcome};
use weir_nats::{Author, Door, Placements, RoomName};

use crate::answers::{publish_reply, read_history, rpc_reply};
use crate::hook::{Failure, Heard, Hooks, PassedOn, Question};
use crate::hub::{Hub, JoinError, Joined};
use crate::limits::{Gate, Limits, SocketSeats};
use crate::link::{Link, Signal};
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::protocol::code::{DisconnectCode, ErrorCode};
use crate::protocol::{Command, CommandKind, History, json};
use crate::roster::{Listed, Roster};
use crate::seats::{Seat, Seats};
use crate::session::{Effect, Join, Now, Session, random_part};
use crate::settings::{ClientSettings, EdgeSettings};
use crate::socket::Socket;
use crate::websocket::{self, Decoder, Event, Opcode};
use crate::writer::{Writer, Written};

mod authority;

use authority::{Held, released};

/// Bytes read at once, into a buffer on the stack that no idle connection keeps.
const READ_MAX_BYTES: usize = 8 << 10;
/// For a Close frame to leave.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// After a room was unavailable, joins of the same connection fail at once for this long.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(1);
/// Between looks whether a connection that is let go has its answers.
const LEAVE_LOOK: Duration = Duration::from_millis(20);
/// A Close frame is sent if no more than this waits before it.
const CLOSE_BEHIND_MAX_BYTES: usize = 4_096;

mod hooks;

/// What every connection of an edge shares.
pub struct Edge {
    /// Settings.
    pub settings: Arc<EdgeSettings>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Rooms.
    pub hub: Hub,
    /// Into rooms.
    pub writer: Writer,
    /// Out of them.
    pub reader: Reader,
    /// Where rooms are kept.
    pub placements: Placements,
    /// For connection and subscription tokens.
    pub verifier: Arc<Verifier>,
    /// For rpc.
    pub nats: Client,
    /// The application's services that decide.
    pub hooks: Hooks,
    /// Connections of each user.
    pub seats: Seats<String>,
    /// What connections, users, addresses and namespaces may do.
    pub limits: Arc<Limits>,
    /// Who is connected, for orders of operators.
    pub roster: Roster,
    /// The node's tasks.
    pub tasks: TaskTracker,
    /// Set when the edge accepts no more and lets its connections go.
    pub draining: CancellationToken,
}

type Joining = Pin<Box<dyn Future<Output = (Join, Result<Joined, JoinError>)> + Send>>;

struct Connection {
    edge: Arc<Edge>,
    link: Arc<Link>,
    session: Session,
    /// The user's place, where places are counted.
    seat: Option<Seat<String>>,
    /// How orders reach it, once it has a user.
    listed: Option<Listed>,
    /// What has to be read before it is served.
    held: Option<Held>,
    decoder: Decoder,
    /// Headers that hooks are told, where they want some.
    passed_on: Option<Arc<PassedOn>>,
    /// Commands that came in a frame and are not carried out yet.
    commands: VecDeque<Command>,
    /// The connect command waits for its token's key or for a hook, and all others for it.
    connecting: bool,
    /// A join that is on its way; commands behind it wait.
    joining: Option<Joining>,
    /// History and rpc commands on their way.
    slow: Arc<Slow>,
    /// When a join last found a room unavailable: those behind it do not wait as long again.
    unavailable_at: Option<Instant>,
    /// Where no pong is expected: the bytes taken, and until when more have to be.
    stuck: Option<(u64, Instant)>,
}

/// Commands of one connection that wait for something beside the others.
#[derive(Default)]
struct Slow {
    running: AtomicUsize,
    /// Publishes that are not answered yet.
    publishing: AtomicUsize,
    /// One page of history at a time is in memory for a connection.
    history: tokio::sync::Mutex<()>,
    /// Questions to the application that wait for their answer.
    asking: AtomicUsize,
    /// Commands that have waited. At most as many as may run.
    waited: Mutex<Waited>,
}

#[derive(Default)]
struct Waited {
    back: VecDeque<Back>,
    /// The last publish in each room that waits for a hook.
    last_in: Vec<(RoomName, CancellationToken)>,
}

/// A command that has waited for something beside the others.
enum Back {
    /// Its token's key was looked for.
    Fetched(Command),
    /// A hook answered, or did not.
    Heard(Box<(Question, Result<Heard, Failure>)>),
}

impl Slow {
    fn waited(&self) -> MutexGuard<'_, Waited> {
        self.waited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a connection is over.
enum End {
    /// The peer is gone.
    Gone,
    /// The edge closes it.
    Close(DisconnectCode),
    /// The application closes it.
    CloseAs(Closing),
    /// The peer closed properly.
    Closed(u16),
    /// The peer broke WebSocket.
    Protocol(u16),
}

/// Drives one upgraded socket to its end. `first` is what was read beyond the handshake, `passed_on` what
/// hooks are told of its request.
pub(crate) async fn run(
    edge: Arc<Edge>,
    socket: Socket,
    first: Bytes,
    passed_on: Option<Arc<PassedOn>>,
    seats: Option<Arc<SocketSeats>>,
) {
    let metrics = Arc::clone(&edge.metrics);
    metrics.connections_accepted.add_one();
    metrics.connections.add(1);
    let link = Arc::new(Link::new(Outbox::new(socket, edge.settings.outbox())));
    let session = Session::new(
        Arc::clone(&edge.settings),
        Arc::clone(&edge.verifier),
        random_uuid(),
        Gate::new(Arc::clone(&edge.limits), seats, Instant::now()),
        Instant::now(),
    );
    let decoder = Decoder::new(edge.settings.client.message_size_limit_bytes);
    let mut connection = Connection {
        edge,
        link: Arc::clone(&link),
        session,
        seat: None,
        listed: None,
        held: None,
        decoder,
        passed_on,
        commands: VecDeque::new(),
        connecting: false,
        joining: None,
        slow: Arc::default(),
        unavailable_at: None,
        stuck: None,
    };
    connection.decoder.feed(&first);
    // Even when empty it holds the 8 KiB that the handshake was read into.
    drop(first);
    let end = connection.drive().await;
    // Memberships are dropped before the close lingers: rooms must not wait for it.
    let client = connection.session.client().to_owned();
    drop(connection);
    // Boxed, as it would make the future of every open connection larger.
    Box::pin(finish(&link, &metrics, &client, end)).await;
    metrics.connections.add(-1);
}

async fn finish(link: &Link, metrics: &Metrics, client: &str, end: End) {
    let frame = match end {
        End::Gone => {
            tracing::debug!(client, "connection gone");
            return link.outbox.end();
        }
        End::Closed(code) => {
            tracing::debug!(client, code, "connection closed by the peer");
            // The peer has said its last and waits for this answer; nothing is waited for here.
            link.reply(&websocket::close_frame(code, ""));
            link.outbox.linger(Instant::now() + CLOSE_WITHIN).await;
            return link.outbox.end();
        }
        End::Protocol(code) => {
            tracing::debug!(client, code, "connection closed");
            websocket::close_frame(code, "")
        }
        End::CloseAs(Closing { code, reason }) => {
            if code < 4_500 {
                metrics.closed_reconnect.add_one();
            } else {
                metrics.closed_terminal.add_one();
            }
            tracing::info!(client, code, reason, "connection closed by the application");
            websocket::close_frame(code, &reason)
        }
        End::Close(code) => {
            if code.reconnects() {
                metrics.closed_reconnect.add_one();
            } else {
                metrics.closed_terminal.add_one();
            }
            if code == DisconnectCode::NO_PONG {
                metrics.closed_no_pong.add_one();
            }
            if code == DisconnectCode::SLOW {
                metrics.closed_slow.add_one();
            }
            if code == DisconnectCode::TOKEN_REVOKED {
                metrics.closed_revoked.add_one();
            }
            if code == DisconnectCode::FORCE_DISCONNECT || code == DisconnectCode::FORCE_RECONNECT {
                metrics.closed_ordered.add_one();
            }
            tracing::info!(
                client,
                code = code.code,
                reason = code.reason,
                "connection closed"
            );
            websocket::close_frame(code.code, code.reason)
        }
    };
    // Behind a queue that does not move the frame would only wait, and a second Close is an error.
    if link.outbox.queued_bytes() < CLOSE_BEHIND_MAX_BYTES {
        link.reply(&frame);
        link.outbox.linger(Instant::now() + CLOSE_WITHIN).await;
        wait_for_peer(link).await;
    }
    link.outbox.end();
}

/// Gives the peer a moment to answer the Close frame, so that no reset overtakes it.
async fn wait_for_peer(link: &Link) {
    let drained = async {
        let mut sink = [0; 512];
        while link.outbox.socket().readable().await.is_ok() {
            match link.outbox.socket().try_read(&mut sink) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    if tokio::time::timeout(CLOSE_WITHIN, drained).await.is_err() {
        tracing::trace!("peer did not answer the close");
    }
}

impl Connection {
    async fn drive(&mut self) -> End {
        let draining = self.edge.draining.clone();
        // When this connection is let go, once the edge goes away.
        let mut leave_at = None;
        loop {
            if let Err(end) = self.turn() {
                return end;
            }
            let is_held = self.is_held();
            let link = Arc::clone(&self.link);
            // On its way out it takes no more, but answers what it has taken.
            let is_leaving = leave_at.is_some_and(|at| Instant::now() >= at);
            let can_read = !is_leaving
                && self.joining.is_none()
                && !is_held
                && !self.connecting
                && self.commands.is_empty()
                && link.outbox.has_reply_room();
            let deadline = self.session.deadline();
            let deadline = self.stuck_at().map_or(deadline, |at| deadline.min(at));
            let deadline = match leave_at {
                Some(_) if is_leaving => deadline.min(Instant::now() + LEAVE_LOOK),
                Some(at) => deadline.min(at),
                None => deadline,
            };
            tokio::select! {
                biased;
                joined = join_of(&mut self.joining), if self.joining.is_some() && !is_held => {
                    self.joining = None;
                    let (join, result) = joined;
                    if let Err(end) = self.joined(&join, result) {
                        return end;
                    }
                }
                () = released(&mut self.held), if self.held.is_some() => self.held = None,
                () = link.outbox.woken() => {
                    if link.outbox.is_gone() {
                        return End::Gone;
                    }
                }
                ready = link.outbox.socket().writable(), if link.outbox.has_waiting() => {
                    if ready.is_err() || link.outbox.flush().is_err() {
                        return End::Gone;
                    }
                }
                ready = link.outbox.socket().readable(), if can_read => {
                    if ready.is_err() {
                        return End::Gone;
                    }
                    if let Err(end) = self.read() {
                        return end;
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    let now = Instant::now();
                    if let Some(at) = leave_at.filter(|at| now >= *at)
                        && (self.slow.publishing.load(Ordering::Acquire) == 0
                            || now >= at + ANSWER_WITHIN)
                    {
                        return End::Close(DisconnectCode::SHUTDOWN);
                    }
                    if self.stuck.is_some_and(|(_, at)| now >= at) {
                        return End::Close(DisconnectCode::WRITE_ERROR);
                    }
                    if is_held {
                        self.session.excuse_pong(now);
                    }
                    let effect = self.session.timer(now);
                    if let Err(end) = self.perform(effect) {
                        return end;
                    }
                }
                () = draining.cancelled(), if leave_at.is_none() => {
                    // Each at a time of its own, so that they do not all come back at once.
                    let spread = self.edge.settings.shutdown_spread;
                    leave_at = Some(Instant::now() + random_part(spread));
                }
            }
        }
    }

    /// What can be done without waiting: signals, frames that are here, commands in order.
    fn turn(&mut self) -> Result<(), End> {
        while let Some(signal) = self.link.take_signal() {
            match signal {
                Signal::Close(code) => return Err(End::Close(code)),
                Signal::Unsubscribed { room, code } => {
                    if let Some(frame) = self.session.unsubscribed(&room, code) {
                        self.link.reply(&frame);
                    }
                }
                Signal::Told(notice) => self.obey(&notice)?,
            }
        }
        // Large replies to a slow reader wait for each other instead of making it too slow (3008).
        while self.joining.is_none() && self.link.outbox.has_reply_room() && !self.is_held() {
            let back = self.slow.waited().back.pop_front();
            if let Some(back) = back {
                let effect = self.again(back);
                self.perform(effect)?;
                continue;
            }
            if self.connecting {
                break;
            }
            if let Some(command) = self.commands.pop_front() {
                self.edge.metrics.commands.add_one();
                self.keep_headers(&command);
                let effect = self.session.command(command, now());
                self.perform(effect)?;
                continue;
            }
            // The memory of a burst is not kept.
            self.commands = VecDeque::new();
            if !self.decode()? {
                break;
            }
        }
        Ok(())
    }

    /// Where no pong is expected, a socket that takes nothing for as long is closed (3009).
    fn stuck_at(&mut self) -> Option<Instant> {
        let outbox = &self.link.outbox;
        let client = &self.edge.settings.client;
        if !client.ping_interval.is_zero() || !outbox.has_waiting() {
            self.stuck = None;
            return None;
        }
        let taken = outbox.taken_bytes();
        if self.stuck.is_none_or(|(before, _)| before != taken) {
            let patience = ClientSettings::default().ping_interval + client.pong_timeout;
            self.stuck = Some((taken, Instant::now() + patience));
        }
        self.stuck.map(|(_, at)| at)
    }

    fn read(&mut self) -> Result<(), End> {
        let mut buffer = [0; READ_MAX_BYTES];
        match self.link.outbox.socket().try_read(&mut buffer) {
            Ok(0) => Err(End::Gone),
            Ok(read) => {
                self.decoder.feed(&buffer[..read]);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(End::Gone),
        }
    }

    /// Takes the next whole WebSocket message. False when more bytes are needed.
    fn decode(&mut self) -> Result<bool, End> {
        let event = self
            .decoder
            .next_event()
            .map_err(|error| End::Protocol(error.close_code()))?;
        match event {
            None => return Ok(false),
            Some(Event::Text(text)) => {
                let max = self.edge.settings.bounds.commands_per_frame_max;
                match json::decode(&text, max) {
                    Ok(commands) => self.commands = commands.into(),
                    Err(error) => {
                        tracing::debug!(%error, "frame refused");
                        return Err(End::Close(DisconnectCode::BAD_REQUEST));
                    }
                }
            }
            Some(Event::Binary(_)) => return Err(End::Close(DisconnectCode::BAD_REQUEST)),
            Some(Event::Ping(payload)) => {
                self.link
                    .reply(&websocket::encode_frame(Opcode::Pong, &payload));
            }
            Some(Event::Pong) => {}
            Some(Event::Close(code)) => return Err(End::Closed(code.unwrap_or(1000))),
        }
        Ok(true)
    }

    fn perform(&mut self, effect: Effect) -> Result<(), End> {
        match effect {
            Effect::None => {}
            Effect::Reply(frame) => self.reply(&frame),
            Effect::Connected(frame) => {
                self.sit_down()?;
                self.enter()?;
                self.reply(&frame);
            }
            Effect::Fetch(wanted, command) => self.fetch(wanted, command),
            Effect::Ask(question) => self.ask(question),
            Effect::Join(join) => return self.join(join),
            Effect::Leave(membership, frame) => {
                drop(membership);
                self.reply(&frame);
            }
            Effect::LeaveAll(memberships, frames) => {
                self.edge
                    .metrics
                    .rooms_taken_away
                    .add(memberships.len() as u64);
                drop(memberships);
                for frame in &frames {
                    self.reply(frame);
                }
            }
            Effect::Publish {
                id,
                permit,
                log,
                info,
                data,
                key,
            } => {
                let written = Written {
                    author: self.author(info.as_deref()),
                    data,
                    key,
                };
                match log {
                    Some(log) => self.publish(id, &permit, log, written),
                    None if self.edge.writer.pass_on(&permit, written, &random_uuid()) => {
                        self.reply(&json::empty(id, "publish"));
                    }
                    None => self.reply(&json::error(id, ErrorCode::INTERNAL)),
                }
            }
            Effect::History {
                id,
                permit,
                request,
            } => self.history(id, permit, request),
            Effect::Rpc { id, method, data } => self.rpc(id, &method, data),
            Effect::Close(code) => return Err(End::Close(code)),
            Effect::CloseAs(closing) => return Err(End::CloseAs(closing)),
        }
        Ok(())
    }

    /// Feeds a command that has waited once more.
    fn again(&mut self, back: Back) -> Effect {
        match back {
            Back::Fetched(command) => {
                self.connecting = false;
                self.session.again(command, now())
            }
            Back::Heard(heard) => self.heard(heard.0, heard.1),
        }
    }

    /// Takes a place among the user's connections. The anonymous user is many people.
    fn sit_down(&mut self) -> Result<(), End> {
        let max = self.edge.settings.client.user_connection_limit;
        let (user, _) = self.session.user().unwrap_or_default();
        if max == 0 || user.is_empty() {
            return Ok(());
        }
        self.seat = self.edge.seats.take(user, max);
        if self.seat.is_none() {
            self.session.connections_full();
            return Err(End::Close(DisconnectCode::CONNECTION_LIMIT));
        }
        Ok(())
    }

    fn reply(&self, frame: &Bytes) {
        // Every error reply has this shape, whoever made it.
        if frame.windows(9).take(40).any(|part| part == b"\"error\":{") {
            self.edge.metrics.error_replies.add_one();
        }
        self.link.reply(frame);
    }

    /// Waits for the key of a command's token, beside the others, and feeds the command again.
    fn fetch(&mut self, wanted: Wanted, command: Command) {
        let (link, slow) = (Arc::clone(&self.link), Arc::clone(&self.slow));
        if slow.running.fetch_add(1, Ordering::AcqRel)
            >= self.edge.settings.bounds.slow_commands_max
        {
            slow.running.fetch_sub(1, Ordering::AcqRel);
            // Fed again, it fails: what it holds of the session is given back there.
            slow.waited().back.push_back(Back::Fetched(command));
            return;
        }
        self.connecting = matches!(command.kind, CommandKind::Connect(_));
        self.edge.metrics.key_waits.add_one();
        self.edge.tasks.spawn(async move {
            wanted.wait().await;
            slow.running.fetch_sub(1, Ordering::AcqRel);
            slow.waited().back.push_back(Back::Fetched(command));
            link.outbox.wake();
        });
    }

    fn join(&mut self, join: Join) -> Result<(), End> {
        if self
            .unavailable_at
            .is_some_and(|at| at.elapsed() < UNAVAILABLE_FOR)
        {
            return self.joined(&join, Err(JoinError::Unavailable));
        }
        let (edge, link) = (Arc::clone(&self.edge), Arc::clone(&self.link));
        self.joining = Some(Box::pin(async move {
            let result = match edge.settings.namespace(join.permit.room()) {
                Some(namespace) => {
                    edge.hub
                        .join(&join.permit, namespace, &link, join.since.clone())
                        .await
                }
                None => Err(JoinError::Unavailable),
            };
            (join, result)
        }));
        Ok(())
    }

    fn joined(&mut self, join: &Join, result: Result<Joined, JoinError>) -> Result<(), End> {
        self.unavailable_at = match &result {
            Err(JoinError::Unavailable) => Some(self.unavailable_at.unwrap_or_else(Instant::now)),
            Err(JoinError::TooManyRooms) | Ok(_) => None,
        };
        let (effect, cursor) = self.session.joined(join, result);
        self.perform(effect)?;
        if let Some(cursor) = cursor {
            self.session.release(join.permit.room(), cursor);
        }
        Ok(())
    }

    /// The client as an author, with its public info in a room if it has some.
    fn author(&self, info_in_room: Option<&str>) -> Author {
        let (user, info) = self.session.user().unwrap_or_default();
        Author {
            user: user.to_owned(),
            client: self.session.client().to_owned(),
            info: join_info(info, info_in_room),
            door: Door::Socket,
        }
    }

    fn publish(&self, id: u32, permit: &Permit, log: String, written: Written) {
        let (link, metrics) = (Arc::clone(&self.link), Arc::clone(&self.edge.metrics));
        let slow = Arc::clone(&self.slow);
        slow.publishing.fetch_add(1, Ordering::AcqRel);
        let done = Box::new(move |outcome: Outcome| {
            link.reply(&publish_reply(id, &outcome, &metrics));
            slow.publishing.fetch_sub(1, Ordering::AcqRel);
        });
        self.edge.writer.store(permit, log, written, done);
    }

    /// Runs a command that waits for something, beside the others, within the bound.
    fn spawn_slow(&self, id: u32, work: impl Future<Output = Bytes> + Send + 'static) {
        let (link, slow) = (Arc::clone(&self.link), Arc::clone(&self.slow));
        if slow.running.fetch_add(1, Ordering::AcqRel)
            >= self.edge.settings.bounds.slow_commands_max
        {
            slow.running.fetch_sub(1, Ordering::AcqRel);
            return self.reply(&json::error(id, ErrorCode::TOO_MANY_REQUESTS));
        }
        self.edge.tasks.spawn(async move {
            let frame = work.await;
            slow.running.fetch_sub(1, Ordering::AcqRel);
            link.reply(&frame);
        });
    }

    fn history(&self, id: u32, permit: Permit, request: History) {
        let edge = Arc::clone(&self.edge);
        let (link, slow) = (Arc::clone(&self.link), Arc::clone(&self.slow));
        self.spawn_slow(id, async move {
            let _turn = slow.history.lock().await;
            if !link.outbox.reply_room().await {
                return Bytes::new();
            }
            let read = read_history(&edge, permit.room(), &request).await;
            // Who lost the right while it was read is gone by then.
            if let Some(orders) = edge.verifier.revocations().hold() {
                orders.await;
            }
            match read {
                Ok((publications, _, _)) if publications.iter().any(Bytes::is_empty) => {
                    // A JSON client must not be shown what is not JSON, and may not miss it either.
                    json::error(id, ErrorCode::NOT_AVAILABLE)
                }
                Ok((publications, epoch, offset)) => {
                    json::history(id, &publications, &epoch, offset)
                }
                Err(error) => {
                    tracing::warn!(room = %permit.room(), %error, "history failed");
                    json::error(id, ErrorCode::INTERNAL)
                }
            }
        });
    }

    fn rpc(&self, id: u32, method: &str, data: Bytes) {
        let author = self.author(None);
        let subject = format!("rpc.{method}");
        let (nats, timeout) = (self.edge.nats.clone(), self.edge.settings.rpc_timeout);
        self.spawn_slow(id, async move {
            let mut headers = HeaderMap::new();
            headers.insert("Weir-Client", author.client.as_str());
            // Escaped as in subjects, so that no name can break a header.
            headers.insert(
                "Weir-User",
                weir_nats::subject::escape(&author.user).as_str(),
            );
            if let Some(info) = author
                .info
                .as_deref()
                .and_then(|i| std::str::from_utf8(i).ok())
                && let Ok(info) = info.parse::<HeaderValue>()
            {
                headers.insert("Weir-Info", info);
            }
            let request = async_nats::Request::new()
                .payload(data)
                .headers(headers)
                .timeout(Some(timeout));
            rpc_reply(id, nats.send_request(subject, request).await)
        });
    }
}

/// Awaits the join that is there.
async fn join_of(joining: &mut Option<Joining>) -> (Join, Result<Joined, JoinError>) {
    match joining {
        Some(joining) => joining.await,
        None => std::future::pending().await,
    }
}

fn now() -> Now {
    let unix_s = i64::try_from(since_1970().as_secs()).unwrap_or(i64::MAX);
    Now {
        instant: Instant::now(),
        unix_s,
    }
}

/// A random (version 4) UUID.
fn random_uuid() -> String {
    let mut bytes: [u8; 16] = random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<A, B, C, D, E, F>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_an_idle_connection_carries_stays_small() {
        assert!(future_bytes(run) <= 1_664, "{}", future_bytes(run));
        assert!(size_of::<Link>() <= 256, "{}", size_of::<Link>());
    }
}
