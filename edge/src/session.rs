//! Knows: one connection's side of the client protocol: (command, now) → effect. Never: a socket, a
//! clock, NATS, a room's members.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use weir_authz::hook::{Closing, Refusal};
use weir_authz::token::{SubscribeOptions, Wanted};
use weir_authz::{Action, Denied, Grants, Permit, Verifier};
use weir_nats::ambient::random;
use weir_nats::{RoomName, Seq};

use crate::door::check_format;
use crate::hook::Question;
use crate::hub::{Joined, Membership, Since};
use crate::limits::Gate;
use crate::protocol::code::{DisconnectCode, ErrorCode, UnsubscribeCode};
use crate::protocol::{Command, CommandKind, History, Subscribe, SubscribeResult, json};
use crate::settings::{EdgeSettings, Namespace};

/// Bytes of an rpc method.
const METHOD_MAX_BYTES: usize = 128;
/// `flag` bit of a subscribe: error 112 instead of `recovered: false`.
const FLAG_FAIL_UNRECOVERED: i64 = 2;
/// Replies of error 111 after which the connection is closed (3013).
const LIMITED_MAX: u32 = 1_000;

mod authority;
mod hooks;
mod places;
#[cfg(test)]
mod tests;
mod tokens;

pub(crate) use authority::Obeyed;
use authority::{Authority, OpenedBy};
use places::Places;

/// What the driver has to do for a command. At most one each.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// Send this frame.
    Reply(Bytes),
    /// The connection has a user now: see whether it may have one more connection, and send this
    /// frame.
    Connected(Bytes),
    /// The command's token needs a key that is not here: wait for it, beside the other commands, then
    /// call [`Session::again`]. Nothing follows a connect until then.
    Fetch(Wanted, Command),
    /// The application decides: ask it, beside the other commands, then call [`Session::heard`]. Nothing
    /// follows a connect until then, and publishes in one room are heard in the order they were asked.
    Ask(Question),
    /// Join a room, then call [`Session::joined`].
    Join(Join),
    /// Leave the room and send this frame.
    Leave(Membership, Bytes),
    /// Leave these rooms and send these frames.
    LeaveAll(Vec<Membership>, Vec<Bytes>),
    /// Publish, and answer with the outcome.
    Publish {
        id: u32,
        permit: Permit,
        log: Option<String>,
        /// Public info of the author in this room.
        info: Option<String>,
        data: Bytes,
        /// The application's idempotency key.
        key: Option<String>,
    },
    /// Read back, and answer.
    History {
        id: u32,
        permit: Permit,
        request: History,
    },
    /// Ask a service, and answer.
    Rpc {
        id: u32,
        method: String,
        data: Bytes,
    },
    /// Send the frame if there is one, then close.
    Close(DisconnectCode),
    /// Close as the application says.
    CloseAs(Closing),
}

/// A join on its way.
#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) id: u32,
    pub(crate) permit: Permit,
    pub(crate) since: Option<Since>,
    recoverable: bool,
    positioned: bool,
    fail_unrecovered: bool,
    /// Seconds until the subscription expires, for the reply, and when that is.
    ttl_s: Option<u32>,
    expires: Option<Instant>,
    /// Public info in this room, and what the reply holds for the client, where a token said so.
    info: Option<String>,
    data: Option<String>,
    /// See [`Allowed`].
    opened_by: Option<OpenedBy>,
}

/// Now, as the driver sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// For delays.
    pub(crate) instant: Instant,
    /// Seconds since 1970, for tokens.
    pub(crate) unix_s: i64,
}

#[derive(Debug)]
enum Phase {
    /// No connect command yet.
    New,
    Connected(Box<Connected>),
    /// A connect that was answered with an error: any other command closes.
    Unusable,
}

#[derive(Debug)]
struct Connected {
    grants: Grants,
    info: Option<String>,
    /// For the application's services only.
    meta: Option<Arc<str>>,
    /// When the connection expires, for the timer and for the wire.
    expires: Option<Instant>,
    /// When the application is asked whether it goes on; `None` while it is asked, and where it never is.
    refresh_at: Option<Instant>,
    subscriptions: Places,
    /// When subscriptions by token expire; most have no end and are not here.
    expiring: HashMap<RoomName, Instant>,
    /// Rarely looked at, so apart.
    authority: Box<Authority>,
}

/// A subscription that may be made.
struct Allowed {
    permit: Permit,
    expires_at_s: Option<i64>,
    /// The client is told so, as it has a token to refresh. Else it subscribes again when it ends.
    tells: bool,
    options: SubscribeOptions,
    /// What opened it, if the connection's own rights did not.
    opened_by: Option<OpenedBy>,
}

/// How far a subscription is. Each counts against the limit of channels.
#[derive(Debug)]
enum Place {
    /// The command of this id waits for its token's key, or for a hook.
    Waiting(u32),
    /// The join is on its way.
    Joining,
    /// Subscribed, with the public info that a token gave for this room.
    Member(Membership, Option<String>),
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    settings: Arc<EdgeSettings>,
    verifier: Arc<Verifier>,
    client: String,
    phase: Phase,
    /// The command in hand has waited for its token's key once.
    has_waited: bool,
    opened: Instant,
    /// When the next ping is due.
    ping_due: Option<Instant>,
    /// When the answer to the ping that is out has to be here.
    pong_due: Option<Instant>,
    gate: Gate,
    limited: u32,
}

impl Session {
    pub(crate) fn new(
        settings: Arc<EdgeSettings>,
        verifier: Arc<Verifier>,
        client: String,
        gate: Gate,
        now: Instant,
    ) -> Self {
        Self {
            settings,
            verifier,
            client,
            phase: Phase::New,
            has_waited: false,
            opened: now,
            ping_due: None,
            pong_due: None,
            gate,
            limited: 0,
        }
    }

    /// Asks: the connection's id.
    pub(crate) fn client(&self) -> &str {
        &self.client
    }

    /// Asks: the user and public info, once connected.
    pub(crate) fn user(&self) -> Option<(&str, Option<&str>)> {
        match &self.phase {
            Phase::Connected(connected) => {
                Some((connected.grants.user(), connected.info.as_deref()))
            }
            Phase::New | Phase::Unusable => None,
        }
    }

    /// Feeds that the user has as many connections as it may.
    pub(crate) fn connections_full(&self) {
        self.gate.connections_full();
    }

    /// Feeds a command.
    pub(crate) fn command(&mut self, command: Command, now: Now) -> Effect {
        let Command { id, kind } = command;
        if let Phase::Connected(_) = self.phase
            && id == 0
            && !matches!(kind, CommandKind::Send { .. })
        {
            return self.pong();
        }
        // What wants no answer cannot be told to slow down.
        let is_counted = !matches!(kind, CommandKind::Connect(_) | CommandKind::Send { .. });
        let user = match &self.phase {
            Phase::Connected(connected) => connected.grants.user(),
            Phase::New | Phase::Unusable => "",
        };
        if is_counted
            && (self.gate.command(&kind, user, now.instant).is_err()
                || self.is_namespace_used_up(&kind, now.instant))
        {
            self.limited += 1;
            if self.limited > LIMITED_MAX {
                return Effect::Close(DisconnectCode::TOO_MANY_REQUESTS);
            }
            return Effect::Reply(json::error(id, ErrorCode::TOO_MANY_REQUESTS));
        }
        self.dispatch(id, kind, now)
    }

    /// Takes what a command costs its namespace, if the client may do it there, or somebody else decides that.
    fn is_namespace_used_up(&self, kind: &CommandKind, now: Instant) -> bool {
        if !self.gate.counts_namespaces() {
            return false;
        }
        let (channel, action, has_token) = match kind {
            CommandKind::Publish { channel, .. } => (channel, Action::Publish, false),
            CommandKind::History(history) => (&history.channel, Action::History, false),
            CommandKind::Subscribe(subscribe) => {
                let has_token = !subscribe.token.is_empty();
                (&subscribe.channel, Action::Subscribe, has_token)
            }
            _ => return false,
        };
        let Ok((room, namespace)) = self.room(channel) else {
            return false;
        };
        let may = has_token
            || self.permit(action, &room, namespace).is_ok()
            || self.may_ask(action, &room);
        may && self.gate.namespace(kind, &room, now).is_err()
    }

    /// Feeds a command of [`Effect::Fetch`] once more. If its key is still missing, it fails.
    pub(crate) fn again(&mut self, command: Command, now: Now) -> Effect {
        self.has_waited = true;
        let effect = self.dispatch(command.id, command.kind, now);
        self.has_waited = false;
        effect
    }

    fn dispatch(&mut self, id: u32, kind: CommandKind, now: Now) -> Effect {
        if self.is_revoked() {
            return Effect::Close(DisconnectCode::TOKEN_REVOKED);
        }
        match (&self.phase, kind) {
            (Phase::New, CommandKind::Connect(connect)) if id > 0 => self.connect(id, connect, now),
            (Phase::New | Phase::Unusable, _)
            | (
                Phase::Connected(_),
                CommandKind::Connect(_) | CommandKind::Empty | CommandKind::Ping,
            ) => Effect::Close(DisconnectCode::BAD_REQUEST),
            (Phase::Connected(_), kind) => self.connected(id, kind, now),
        }
    }

    fn connected(&mut self, id: u32, kind: CommandKind, now: Now) -> Effect {
        match kind {
            CommandKind::Subscribe(subscribe) => self.subscribe(id, subscribe, now),
            CommandKind::Unsubscribe { channel } => self.unsubscribe(id, &channel),
            CommandKind::Publish { channel, data } => self.publish(id, &channel, data),
            CommandKind::History(history) => self.history(id, history),
            CommandKind::Presence { channel } | CommandKind::PresenceStats { channel } => {
                match self.room(&channel) {
                    // Presence is off in every namespace of this version.
                    Ok(_) => Effect::Reply(json::error(id, ErrorCode::NOT_AVAILABLE)),
                    Err(refused) => refused.effect(id),
                }
            }
            CommandKind::Rpc { method, data } => rpc(id, method, data),
            CommandKind::Refresh { token } => self.refresh(id, token, now),
            CommandKind::SubRefresh { channel, token } => self.sub_refresh(id, channel, token, now),
            // Nothing takes what is sent this way, as in Centrifugo without a handler.
            CommandKind::Send { .. } => Effect::Close(DisconnectCode::NOT_AVAILABLE),
            CommandKind::Connect(_) | CommandKind::Empty | CommandKind::Ping => {
                Effect::Close(DisconnectCode::BAD_REQUEST)
            }
        }
    }

    fn subscribe(&mut self, id: u32, subscribe: Subscribe, now: Now) -> Effect {
        let room = match self.may_begin(id, &subscribe) {
            Ok(room) => room,
            Err(refused) => return refused.effect(id),
        };
        let checked = self.check_subscribe(id, &room, &subscribe, now);
        let Phase::Connected(connected) = &mut self.phase else {
            return Effect::Close(DisconnectCode::BAD_REQUEST);
        };
        // Held meanwhile, so that a second subscribe is refused.
        match checked {
            Ok(join) => {
                connected.subscriptions.insert(room, Place::Joining);
                Effect::Join(join)
            }
            Err(Refused::Ask) => self.ask_subscribe(id, room, subscribe),
            Err(Refused::Wanted(wanted)) => {
                connected.subscriptions.insert(room, Place::Waiting(id));
                let kind = CommandKind::Subscribe(subscribe);
                Effect::Fetch(wanted, Command { id, kind })
            }
            Err(refused) => {
                connected.subscriptions.remove(&room);
                refused.effect(id)
            }
        }
    }

    /// Whether there is a place for a subscription. One that waited has it, unless it was given up.
    fn may_begin(&mut self, id: u32, subscribe: &Subscribe) -> Result<RoomName, Refused> {
        let (room, _) = self.room(&subscribe.channel)?;
        let Phase::Connected(connected) = &mut self.phase else {
            return Err(Refused::bad());
        };
        match connected.subscriptions.get(&room) {
            Some(Place::Waiting(of)) if self.has_waited && *of == id => Ok(room),
            _ if self.has_waited => Err(Refused::Error(ErrorCode::INTERNAL)),
            Some(_) => Err(Refused::Error(ErrorCode::ALREADY_SUBSCRIBED)),
            None if connected.subscriptions.len() >= self.settings.client.channel_limit => {
                self.gate.channels_full();
                Err(Refused::Error(ErrorCode::LIMIT_EXCEEDED))
            }
            None => {
                let user = connected.grants.user();
                let reserved = connected.subscriptions.reserve(&self.gate, user);
                reserved.map_err(|_| Refused::Error(ErrorCode::LIMIT_EXCEEDED))?;
                Ok(room)
            }
        }
    }

    fn check_subscribe(
        &self,
        id: u32,
        room: &RoomName,
        subscribe: &Subscribe,
        now: Now,
    ) -> Result<Join, Refused> {
        let Phase::Connected(connected) = &self.phase else {
            return Err(Refused::bad());
        };
        let namespace = self.settings.namespace(room);
        let namespace = namespace.ok_or(Refused::Error(ErrorCode::UNKNOWN_CHANNEL))?;
        if subscribe.kind != 0 {
            return Err(Refused::Error(ErrorCode::NOT_AVAILABLE));
        }
        if subscribe.has_tags_filter {
            return Err(Refused::bad());
        }
        if !matches!(subscribe.delta.as_str(), "" | "fossil") {
            return Err(Refused::Close(DisconnectCode::BAD_REQUEST));
        }
        let rules = &namespace.rules;
        let allowed = if subscribe.token.is_empty() {
            let permit = connected
                .grants
                .check(Action::Subscribe, room, rules, false);
            match permit {
                Err(Denied) if self.may_ask(Action::Subscribe, room) => return Err(Refused::Ask),
                permit => Allowed {
                    permit: permit?,
                    expires_at_s: None,
                    tells: false,
                    options: SubscribeOptions::default(),
                    opened_by: None,
                },
            }
        } else {
            let claims = self.subscription_claims(Some(room), &subscribe.token, now);
            let claims = claims.map_err(|error| self.refused_subscribe(error))?;
            Allowed {
                permit: connected.grants.check_with_token(&claims, room, rules)?,
                expires_at_s: claims.expires_at_s,
                tells: true,
                opened_by: Some(OpenedBy::Token(claims.facts())),
                options: claims.options,
            }
        };
        Ok(Self::plan(id, namespace, subscribe, allowed, now))
    }

    /// The join of a subscription that may be made.
    fn plan(
        id: u32,
        namespace: &Namespace,
        subscribe: &Subscribe,
        allowed: Allowed,
        now: Now,
    ) -> Join {
        let ttl_s = allowed.expires_at_s.map(|at| ttl(at, now.unix_s));
        let options = allowed.options;
        let overrides = options.overrides;
        let force_recovery = overrides.force_recovery.unwrap_or(namespace.force_recovery);
        let force_positioning = overrides
            .force_positioning
            .unwrap_or(namespace.force_positioning);
        let stored = namespace.stored;
        let recoverable =
            stored && (force_recovery || (namespace.allow_recovery && subscribe.recoverable));
        let positioned = stored
            && (recoverable
                || force_positioning
                || (namespace.allow_positioning && subscribe.positioned));
        let since = (subscribe.recover && recoverable).then(|| Since {
            epoch: (!subscribe.epoch.is_empty()).then(|| subscribe.epoch.clone()),
            offset: Seq::new(subscribe.offset.min(Seq::MAX.get())),
        });
        Join {
            id,
            permit: allowed.permit,
            since,
            recoverable,
            positioned,
            fail_unrecovered: subscribe.flag & FLAG_FAIL_UNRECOVERED != 0,
            ttl_s: ttl_s.filter(|_| allowed.tells),
            expires: after(ttl_s, now),
            info: options.info,
            data: options.data,
            opened_by: allowed.opened_by,
        }
    }

    /// Feeds what became of a join; the frame to send. The membership is released afterwards by
    /// [`Session::release`], so that its pushes follow the reply.
    pub(crate) fn joined(
        &mut self,
        join: &Join,
        result: Result<Joined, crate::hub::JoinError>,
    ) -> (Effect, Option<Seq>) {
        if self.is_revoked() {
            return (Effect::Close(DisconnectCode::TOKEN_REVOKED), None);
        }
        let room = join.permit.room().clone();
        let Phase::Connected(connected) = &mut self.phase else {
            return (Effect::None, None);
        };
        if !connected.subscriptions.contains_key(&room) {
            // The room ended while the join was on its way: the client tries again.
            let frame = json::error(join.id, ErrorCode::INTERNAL);
            return (Effect::Reply(frame), None);
        }
        // Its token may have been revoked meanwhile.
        let revocations = self.verifier.revocations();
        let user = connected.grants.user();
        let is_revoked = |token| revocations.is_revoked(user, token);
        let by_token = join.opened_by.as_ref().and_then(OpenedBy::token);
        if by_token.is_some_and(is_revoked) {
            connected.subscriptions.remove(&room);
            let frame = json::error(join.id, ErrorCode::PERMISSION_DENIED);
            return (Effect::Reply(frame), None);
        }
        let joined = match result {
            Ok(joined) => joined,
            Err(error) => {
                connected.subscriptions.remove(&room);
                let code = match error {
                    crate::hub::JoinError::Unavailable => ErrorCode::INTERNAL,
                    crate::hub::JoinError::TooManyRooms => ErrorCode::TOO_MANY_REQUESTS,
                };
                return (Effect::Reply(json::error(join.id, code)), None);
            }
        };
        if joined.recovered == Some(false) && join.fail_unrecovered {
            connected.subscriptions.remove(&room);
            let frame = json::error(join.id, ErrorCode::UNRECOVERABLE_POSITION);
            return (Effect::Reply(frame), None);
        }
        if joined.publications.iter().any(Bytes::is_empty) {
            connected.subscriptions.remove(&room);
            return (Effect::Close(DisconnectCode::INAPPROPRIATE_PROTOCOL), None);
        }
        let result = SubscribeResult {
            recoverable: join.recoverable,
            positioned: join.positioned,
            position: joined
                .epoch
                .filter(|_| join.positioned)
                .map(|epoch| (epoch, joined.offset)),
            publications: joined.publications,
            recovered: joined.recovered == Some(true),
            was_recovering: joined.recovered.is_some(),
            ttl_s: join.ttl_s,
            data: join.data.clone(),
        };
        if let Some(expires) = join.expires {
            connected.expiring.insert(room.clone(), expires);
        }
        connected.authority.opened(&room, join.opened_by.clone());
        let place = Place::Member(joined.membership, join.info.clone());
        connected.subscriptions.insert(room, place);
        (
            Effect::Reply(json::subscribe(join.id, &result)),
            Some(joined.cursor),
        )
    }

    /// Lets pushes follow the reply of a join.
    pub(crate) fn release(&self, room: &RoomName, cursor: Seq) {
        if let Phase::Connected(connected) = &self.phase
            && let Some(Place::Member(membership, _)) = connected.subscriptions.get(room)
        {
            membership.release(cursor);
        }
    }

    fn unsubscribe(&mut self, id: u32, channel: &str) -> Effect {
        if channel.is_empty() {
            return Effect::Close(DisconnectCode::BAD_REQUEST);
        }
        let frame = json::empty(id, "unsubscribe");
        let Phase::Connected(connected) = &mut self.phase else {
            return Effect::None;
        };
        let place = RoomName::parse(channel).ok().and_then(|room| {
            connected.expiring.remove(&room);
            connected.authority.left(&room);
            connected.subscriptions.remove(&room)
        });
        match place {
            Some(Place::Member(membership, _)) => Effect::Leave(membership, frame),
            // Not subscribed: an empty result, no error.
            Some(Place::Waiting(_) | Place::Joining) | None => Effect::Reply(frame),
        }
    }

    /// Feeds that a room ended the membership; the frame to send if the client did not leave first.
    pub(crate) fn unsubscribed(&mut self, room: &RoomName, code: UnsubscribeCode) -> Option<Bytes> {
        let Phase::Connected(connected) = &mut self.phase else {
            return None;
        };
        // Without a membership the join is still on its way; its reply will say that it failed.
        connected.expiring.remove(room);
        connected.authority.left(room);
        match connected.subscriptions.remove(room)? {
            Place::Member(..) => Some(json::unsubscribe_push(room.channel(), code)),
            Place::Waiting(_) | Place::Joining => None,
        }
    }

    fn publish(&self, id: u32, channel: &str, data: Bytes) -> Effect {
        let checked = self.room(channel).and_then(|(room, namespace)| {
            let permit = match self.permit(Action::Publish, &room, namespace) {
                Err(_) if self.may_ask(Action::Publish, &room) => None,
                permit => Some(permit?),
            };
            if data.is_empty() {
                return Err(Refused::bad());
            }
            check_format(namespace.data_format, &data).map_err(|_| Refused::bad())?;
            let log = namespace.stored.then(|| namespace.log.clone());
            Ok((permit, log, room))
        });
        match checked {
            Ok((Some(permit), log, room)) => Effect::Publish {
                id,
                permit,
                log,
                info: self.info_in(&room),
                data,
                key: None,
            },
            Ok((None, _, room)) => self.ask_publish(id, room, data),
            Err(refused) => refused.effect(id),
        }
    }

    fn history(&self, id: u32, request: History) -> Effect {
        let checked = self.room(&request.channel).and_then(|(room, namespace)| {
            if !namespace.stored {
                return Err(Refused::Error(ErrorCode::NOT_AVAILABLE));
            }
            if request.limit < -1 {
                return Err(Refused::bad());
            }
            self.permit(Action::History, &room, namespace)
        });
        match checked {
            Ok(permit) => Effect::History {
                id,
                permit,
                request,
            },
            Err(refused) => refused.effect(id),
        }
    }

    fn permit(
        &self,
        action: Action,
        room: &RoomName,
        namespace: &Namespace,
    ) -> Result<Permit, Refused> {
        let Phase::Connected(connected) = &self.phase else {
            return Err(Refused::bad());
        };
        let subscribed = self.is_subscribed(room);
        Ok(connected
            .grants
            .check(action, room, &namespace.rules, subscribed)?)
    }

    fn is_subscribed(&self, room: &RoomName) -> bool {
        self.member(room).is_some()
    }

    /// The public info that a token gave for a room.
    fn info_in(&self, room: &RoomName) -> Option<String> {
        self.member(room)?.clone()
    }

    fn member(&self, room: &RoomName) -> Option<&Option<String>> {
        match &self.phase {
            Phase::Connected(connected) => match connected.subscriptions.get(room) {
                Some(Place::Member(_, info)) if !self.is_room_revoked(connected, room) => {
                    Some(info)
                }
                Some(_) | None => None,
            },
            Phase::New | Phase::Unusable => None,
        }
    }

    fn room(&self, channel: &str) -> Result<(RoomName, &Namespace), Refused> {
        if channel.is_empty() {
            return Err(Refused::Close(DisconnectCode::BAD_REQUEST));
        }
        let room = RoomName::parse(channel).map_err(|_| Refused::bad())?;
        let namespace = self.settings.namespace(&room);
        let namespace = namespace.ok_or(Refused::Error(ErrorCode::UNKNOWN_CHANNEL))?;
        if !namespace.rules.takes(&room) {
            return Err(Refused::bad());
        }
        Ok((room, namespace))
    }

    fn pong(&mut self) -> Effect {
        match self.pong_due.take() {
            Some(_) => Effect::None,
            // A pong that nobody asked for.
            None => Effect::Close(DisconnectCode::BAD_REQUEST),
        }
    }

    /// Asks: when [`Session::timer`] has to be called.
    pub(crate) fn deadline(&self) -> Instant {
        let client = &self.settings.client;
        match &self.phase {
            Phase::New | Phase::Unusable => self.opened + client.stale_close_delay,
            Phase::Connected(connected) => {
                let expires = connected.expires.map(|at| at + client.expired_close_delay);
                let subscription = connected.expiring.values().min();
                let subscription = subscription.map(|at| *at + client.expired_sub_close_delay);
                let refresh = connected.refresh_at;
                let all = [self.ping_due, self.pong_due, expires, subscription, refresh];
                let far = self.opened + Duration::from_secs(365 * 24 * 3_600);
                all.into_iter().flatten().min().unwrap_or(far)
            }
        }
    }

    /// Feeds that no pong could be read until now.
    pub(crate) fn excuse_pong(&mut self, now: Instant) {
        if self.pong_due.is_some_and(|due| now >= due) {
            self.pong_due = Some(now + self.settings.client.pong_timeout);
        }
    }

    /// Polls the timers.
    pub(crate) fn timer(&mut self, now: Instant) -> Effect {
        let client = &self.settings.client;
        match &mut self.phase {
            Phase::New | Phase::Unusable => {
                if now >= self.opened + client.stale_close_delay {
                    return Effect::Close(DisconnectCode::STALE);
                }
            }
            Phase::Connected(connected) => {
                if connected
                    .expires
                    .is_some_and(|at| now >= at + client.expired_close_delay)
                {
                    return Effect::Close(DisconnectCode::EXPIRED);
                }
                if connected.refresh_at.take_if(|at| now >= *at).is_some() {
                    return self.ask_refresh();
                }
                let delay = client.expired_sub_close_delay;
                let mut expiring = connected.expiring.iter();
                if let Some((room, _)) = expiring.find(|(_, at)| now >= **at + delay) {
                    let room = room.clone();
                    return self.expire(&room);
                }
                if self.pong_due.is_some_and(|due| now >= due) {
                    return Effect::Close(DisconnectCode::NO_PONG);
                }
                if let Some(due) = self.ping_due.filter(|due| now >= *due) {
                    self.ping_due =
                        Some(due.max(now - client.ping_interval) + client.ping_interval);
                    // From when the ping was *due*: a reader that takes nothing gets no extra time.
                    self.pong_due.get_or_insert(due + client.pong_timeout);
                    return Effect::Reply(json::ping());
                }
            }
        }
        Effect::None
    }
}

fn rpc(id: u32, method: String, data: Bytes) -> Effect {
    let is_token = |token: &str| {
        !token.is_empty()
            && token
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    if method.len() > METHOD_MAX_BYTES || !method.split('.').all(is_token) {
        return Effect::Reply(json::error(id, ErrorCode::BAD_REQUEST));
    }
    Effect::Rpc { id, method, data }
}

/// A command that is not carried out.
#[derive(Debug)]
enum Refused {
    Error(ErrorCode),
    Close(DisconnectCode),
    /// Not yet: its key has to be fetched.
    Wanted(Wanted),
    /// Not yet: the application decides.
    Ask,
    /// By the application.
    ByHook(Refusal),
    CloseAs(Closing),
}

impl Refused {
    fn bad() -> Self {
        Self::Error(ErrorCode::BAD_REQUEST)
    }

    fn effect(self, id: u32) -> Effect {
        match self {
            Self::Error(code) => Effect::Reply(json::error(id, code)),
            // Whoever can wait has taken it out before.
            Self::Wanted(_) | Self::Ask => Effect::Reply(json::error(id, ErrorCode::INTERNAL)),
            Self::ByHook(refusal) => {
                let code = ErrorCode {
                    code: refusal.code,
                    message: "",
                    temporary: refusal.temporary,
                };
                Effect::Reply(json::error_text(id, code, &refusal.message))
            }
            Self::Close(code) => Effect::Close(code),
            Self::CloseAs(closing) => Effect::CloseAs(closing),
        }
    }
}

impl From<Denied> for Refused {
    fn from(_: Denied) -> Self {
        Self::Error(ErrorCode::PERMISSION_DENIED)
    }
}

/// Seconds until a time, at least 1 and at most a year.
fn ttl(at_s: i64, now_s: i64) -> u32 {
    u32::try_from((at_s - now_s).clamp(1, 365 * 24 * 3_600)).unwrap_or(1)
}

/// When that is.
fn after(ttl_s: Option<u32>, now: Now) -> Option<Instant> {
    ttl_s.map(|ttl| now.instant + Duration::from_secs(u64::from(ttl)))
}

fn version() -> String {
    concat!("weir ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Evenly at random, up to a duration.
pub(crate) fn random_part(up_to: Duration) -> Duration {
    up_to.mul_f64(f64::from(u32::from_be_bytes(random())) / f64::from(u32::MAX))
}
