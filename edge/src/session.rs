//! Knows: one connection's side of the client protocol: (command, now) → effect. Never: a socket, a
//! clock, NATS, a room's members.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use weir_authz::{Action, Denied, Grants, Permit, TokenError, Verifier};
use weir_nats::ambient::random;
use weir_nats::{RoomName, Seq};

use crate::door::check_format;
use crate::hub::{Joined, Membership, Since};
use crate::protocol::code::{DisconnectCode, ErrorCode, UnsubscribeCode};
use crate::protocol::{
    Command, CommandKind, Connect, ConnectResult, History, Subscribe, SubscribeResult, json,
};
use crate::rate::Bucket;
use crate::settings::{EdgeSettings, Namespace};

/// Bytes of an rpc method.
const METHOD_MAX_BYTES: usize = 128;
/// `flag` bit of a subscribe: error 112 instead of `recovered: false`.
const FLAG_FAIL_UNRECOVERED: i64 = 2;
/// Replies of error 111 after which the connection is closed (3013).
const LIMITED_MAX: u32 = 1_000;

#[cfg(test)]
mod tests;

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
    /// Join a room, then call [`Session::joined`].
    Join(Join),
    /// Leave the room and send this frame.
    Leave(Membership, Bytes),
    /// Publish, and answer with the outcome.
    Publish {
        id: u32,
        permit: Permit,
        log: Option<String>,
        data: Bytes,
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
    Connected(Connected),
    /// A connect that was answered with an error: any other command closes.
    Unusable,
}

#[derive(Debug)]
struct Connected {
    grants: Grants,
    info: Option<String>,
    /// When the connection expires, for the timer and for the wire.
    expires: Option<Instant>,
    subscriptions: HashMap<RoomName, Option<Membership>>,
    /// When subscriptions by token expire; most have no end and are not here.
    expiring: HashMap<RoomName, Instant>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    settings: Arc<EdgeSettings>,
    verifier: Option<Arc<Verifier>>,
    client: String,
    phase: Phase,
    opened: Instant,
    /// When the next ping is due.
    ping_due: Option<Instant>,
    /// When the answer to the ping that is out has to be here.
    pong_due: Option<Instant>,
    allowance: Bucket,
    limited: u32,
}

impl Session {
    pub(crate) fn new(
        settings: Arc<EdgeSettings>,
        verifier: Option<Arc<Verifier>>,
        client: String,
        now: Instant,
    ) -> Self {
        let allowance = Bucket::full(settings.client.command_rate, now);
        Self {
            settings,
            verifier,
            client,
            phase: Phase::New,
            opened: now,
            ping_due: None,
            pong_due: None,
            allowance,
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
        let rate = self.settings.client.command_rate;
        if is_counted && !self.allowance.take(rate, now.instant) {
            self.limited += 1;
            if self.limited > LIMITED_MAX {
                return Effect::Close(DisconnectCode::TOO_MANY_REQUESTS);
            }
            return Effect::Reply(json::error(id, ErrorCode::TOO_MANY_REQUESTS));
        }
        match (&self.phase, kind) {
            (Phase::New, CommandKind::Connect(connect)) if id > 0 => {
                self.connect(id, &connect, now)
            }
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
            CommandKind::Refresh { token } => self.refresh(id, &token, now),
            CommandKind::SubRefresh { channel, token } => {
                self.sub_refresh(id, &channel, &token, now)
            }
            // Nothing takes what is sent this way, as in Centrifugo without a handler.
            CommandKind::Send { .. } => Effect::Close(DisconnectCode::NOT_AVAILABLE),
            CommandKind::Connect(_) | CommandKind::Empty | CommandKind::Ping => {
                Effect::Close(DisconnectCode::BAD_REQUEST)
            }
        }
    }

    fn connect(&mut self, id: u32, connect: &Connect, now: Now) -> Effect {
        let client = &self.settings.client;
        let claims = if connect.token.is_empty() {
            let anonymous = client.insecure || client.allow_anonymous_connect_without_token;
            if !anonymous {
                return Effect::Close(DisconnectCode::BAD_REQUEST);
            }
            weir_authz::Claims::default()
        } else {
            let Some(verifier) = &self.verifier else {
                tracing::info!("a token came, but client.token.hmac_secret_key is not set");
                return Effect::Close(DisconnectCode::INVALID_TOKEN);
            };
            match verifier.connection(&connect.token, now.unix_s) {
                Ok(claims)
                    if claims.user.is_empty() && client.disallow_anonymous_connection_tokens =>
                {
                    tracing::info!("connect refused: the token has no user");
                    return Effect::Close(DisconnectCode::PERMISSION_DENIED);
                }
                Ok(claims) => claims,
                Err(error) => {
                    tracing::info!(%error, "connect refused");
                    let code = match error {
                        TokenError::Expired => ErrorCode::TOKEN_EXPIRED,
                        TokenError::ConnectionExpired => ErrorCode::EXPIRED,
                        TokenError::Invalid(_) | TokenError::Mismatch(_) => {
                            return Effect::Close(DisconnectCode::INVALID_TOKEN);
                        }
                    };
                    self.phase = Phase::Unusable;
                    return Effect::Reply(json::error(id, code));
                }
            }
        };
        let expires_at_s = if client.insecure {
            None
        } else {
            claims.expires_at_s
        };
        let ttl_s = expires_at_s.map(|at| ttl(at, now.unix_s));
        let ping = client.ping_interval;
        let result = ConnectResult {
            client: self.client.clone(),
            version: version(),
            ttl_s,
            ping_s: u32::try_from(ping.as_secs()).unwrap_or(u32::MAX),
        };
        if !ping.is_zero() {
            // The first at random between half and the whole, so that pings do not come in waves.
            self.ping_due = Some(now.instant + ping / 2 + random_part(ping / 2));
        }
        self.phase = Phase::Connected(Connected {
            grants: Grants::client(&claims.user, client.insecure),
            info: claims.info,
            expires: ttl_s.map(|ttl| now.instant + Duration::from_secs(u64::from(ttl))),
            subscriptions: HashMap::new(),
            expiring: HashMap::new(),
        });
        Effect::Connected(json::connect(id, &result))
    }

    fn refresh(&mut self, id: u32, token: &str, now: Now) -> Effect {
        let (Some(verifier), Phase::Connected(connected)) = (&self.verifier, &mut self.phase)
        else {
            return Effect::Close(DisconnectCode::BAD_REQUEST);
        };
        if token.is_empty() {
            return Effect::Close(DisconnectCode::BAD_REQUEST);
        }
        match verifier.connection(token, now.unix_s) {
            Ok(claims) if claims.user == connected.grants.user() => {
                let ttl_s = claims.expires_at_s.map(|at| ttl(at, now.unix_s));
                connected.expires =
                    ttl_s.map(|ttl| now.instant + Duration::from_secs(u64::from(ttl)));
                connected.info = claims.info;
                Effect::Reply(json::refresh(id, &self.client, &version(), ttl_s))
            }
            Ok(_) | Err(TokenError::Invalid(_) | TokenError::Mismatch(_)) => {
                Effect::Close(DisconnectCode::INVALID_TOKEN)
            }
            Err(TokenError::Expired) => Effect::Close(DisconnectCode::EXPIRED),
            Err(TokenError::ConnectionExpired) => {
                Effect::Reply(json::error(id, ErrorCode::EXPIRED))
            }
        }
    }

    /// A new token for a subscription that expires. One that has expired ends it (2501), as the
    /// client then subscribes again with a new one.
    fn sub_refresh(&mut self, id: u32, channel: &str, token: &str, now: Now) -> Effect {
        let room = match self.room(channel) {
            Ok((room, _)) => room,
            Err(refused) => return refused.effect(id),
        };
        if !self.is_subscribed(&room) {
            return Effect::Reply(json::error(id, ErrorCode::PERMISSION_DENIED));
        }
        let (Some(verifier), Phase::Connected(connected)) = (&self.verifier, &mut self.phase)
        else {
            return Effect::Reply(json::error(id, ErrorCode::NOT_AVAILABLE));
        };
        if token.is_empty() {
            return Effect::Reply(json::error(id, ErrorCode::BAD_REQUEST));
        }
        let user = connected.grants.user();
        match verifier.subscription(token, room.channel(), user, &self.client, now.unix_s) {
            Ok(claims) => {
                let ttl_s = claims.expires_at_s.map(|at| ttl(at, now.unix_s));
                match ttl_s {
                    Some(ttl) => {
                        let expires = now.instant + Duration::from_secs(u64::from(ttl));
                        connected.expiring.insert(room, expires);
                    }
                    None => {
                        connected.expiring.remove(&room);
                    }
                }
                Effect::Reply(json::sub_refresh(id, ttl_s))
            }
            Err(TokenError::Expired) => self.expire(&room),
            Err(TokenError::ConnectionExpired) => {
                Effect::Reply(json::error(id, ErrorCode::EXPIRED))
            }
            Err(TokenError::Invalid(_) | TokenError::Mismatch(_)) => {
                Effect::Close(DisconnectCode::INVALID_TOKEN)
            }
        }
    }

    /// Ends a subscription whose time is over.
    fn expire(&mut self, room: &RoomName) -> Effect {
        let Phase::Connected(connected) = &mut self.phase else {
            return Effect::None;
        };
        connected.expiring.remove(room);
        match connected.subscriptions.remove(room) {
            Some(Some(membership)) => {
                let frame = json::unsubscribe_push(room.channel(), UnsubscribeCode::EXPIRED);
                Effect::Leave(membership, frame)
            }
            // On its way: its reply will say that it failed.
            Some(None) | None => Effect::None,
        }
    }

    fn subscribe(&mut self, id: u32, subscribe: Subscribe, now: Now) -> Effect {
        match self.check_subscribe(id, subscribe, now) {
            Ok(join) => {
                if let Phase::Connected(connected) = &mut self.phase {
                    // Held for the join, so that a second subscribe is refused meanwhile.
                    connected
                        .subscriptions
                        .insert(join.permit.room().clone(), None);
                }
                Effect::Join(join)
            }
            Err(refused) => refused.effect(id),
        }
    }

    fn check_subscribe(&self, id: u32, subscribe: Subscribe, now: Now) -> Result<Join, Refused> {
        let Phase::Connected(connected) = &self.phase else {
            return Err(Refused::bad());
        };
        let (room, namespace) = self.room(&subscribe.channel)?;
        if connected.subscriptions.contains_key(&room) {
            return Err(Refused::Error(ErrorCode::ALREADY_SUBSCRIBED));
        }
        if connected.subscriptions.len() >= self.settings.client.channel_limit {
            return Err(Refused::Error(ErrorCode::LIMIT_EXCEEDED));
        }
        if subscribe.kind != 0 {
            return Err(Refused::Error(ErrorCode::NOT_AVAILABLE));
        }
        if subscribe.has_tags_filter {
            return Err(Refused::bad());
        }
        if !matches!(subscribe.delta.as_str(), "" | "fossil") {
            return Err(Refused::Close(DisconnectCode::BAD_REQUEST));
        }
        let mut ttl_s = None;
        let permit = if subscribe.token.is_empty() {
            connected
                .grants
                .check(Action::Subscribe, &room, &namespace.rules, false)?
        } else {
            let verifier = self.verifier.as_ref().ok_or(Denied)?;
            let user = connected.grants.user();
            let claims = verifier
                .subscription(
                    &subscribe.token,
                    room.channel(),
                    user,
                    &self.client,
                    now.unix_s,
                )
                .map_err(|error| match error {
                    TokenError::Expired => Refused::Error(ErrorCode::TOKEN_EXPIRED),
                    TokenError::ConnectionExpired => Refused::Error(ErrorCode::EXPIRED),
                    TokenError::Invalid(_) => Refused::Error(ErrorCode::PERMISSION_DENIED),
                    TokenError::Mismatch(_) => Refused::Close(DisconnectCode::INVALID_TOKEN),
                })?;
            ttl_s = claims.expires_at_s.map(|at| ttl(at, now.unix_s));
            connected.grants.check_with_token(&room, &namespace.rules)?
        };
        let stored = namespace.stored;
        let recoverable = stored
            && (namespace.force_recovery || (namespace.allow_recovery && subscribe.recoverable));
        let positioned = stored
            && (recoverable
                || namespace.force_positioning
                || (namespace.allow_positioning && subscribe.positioned));
        let since = (subscribe.recover && recoverable).then(|| Since {
            epoch: (!subscribe.epoch.is_empty()).then(|| subscribe.epoch.clone()),
            offset: Seq::new(subscribe.offset.min(Seq::MAX.get())),
        });
        Ok(Join {
            id,
            permit,
            since,
            recoverable,
            positioned,
            fail_unrecovered: subscribe.flag & FLAG_FAIL_UNRECOVERED != 0,
            ttl_s,
            expires: ttl_s.map(|ttl| now.instant + Duration::from_secs(u64::from(ttl))),
        })
    }

    /// Feeds what became of a join; the frame to send. The membership is released afterwards by
    /// [`Session::release`], so that its pushes follow the reply.
    pub(crate) fn joined(
        &mut self,
        join: &Join,
        result: Result<Joined, crate::hub::JoinError>,
    ) -> (Effect, Option<Seq>) {
        let room = join.permit.room().clone();
        let Phase::Connected(connected) = &mut self.phase else {
            return (Effect::None, None);
        };
        if !connected.subscriptions.contains_key(&room) {
            // The room ended while the join was on its way: the client tries again.
            let frame = json::error(join.id, ErrorCode::INTERNAL);
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
        };
        if let Some(expires) = join.expires {
            connected.expiring.insert(room.clone(), expires);
        }
        connected
            .subscriptions
            .insert(room, Some(joined.membership));
        (
            Effect::Reply(json::subscribe(join.id, &result)),
            Some(joined.cursor),
        )
    }

    /// Lets pushes follow the reply of a join.
    pub(crate) fn release(&self, room: &RoomName, cursor: Seq) {
        if let Phase::Connected(connected) = &self.phase
            && let Some(Some(membership)) = connected.subscriptions.get(room)
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
        let membership = RoomName::parse(channel).ok().and_then(|room| {
            connected.expiring.remove(&room);
            connected.subscriptions.remove(&room)
        });
        match membership {
            Some(Some(membership)) => Effect::Leave(membership, frame),
            // Not subscribed: an empty result, no error.
            Some(None) | None => Effect::Reply(frame),
        }
    }

    /// Feeds that a room ended the membership; the frame to send if the client did not leave first.
    pub(crate) fn unsubscribed(&mut self, room: &RoomName, code: UnsubscribeCode) -> Option<Bytes> {
        let Phase::Connected(connected) = &mut self.phase else {
            return None;
        };
        // Without a membership the join is still on its way; its reply will say that it failed.
        connected.expiring.remove(room);
        connected.subscriptions.remove(room)??;
        Some(json::unsubscribe_push(room.channel(), code))
    }

    fn publish(&self, id: u32, channel: &str, data: Bytes) -> Effect {
        let checked = self.room(channel).and_then(|(room, namespace)| {
            let permit = self.permit(Action::Publish, &room, namespace)?;
            if data.is_empty() {
                return Err(Refused::bad());
            }
            check_format(namespace.data_format, &data).map_err(|_| Refused::bad())?;
            Ok((permit, namespace.stored.then(|| namespace.log.clone())))
        });
        match checked {
            Ok((permit, log)) => Effect::Publish {
                id,
                permit,
                log,
                data,
            },
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
        match &self.phase {
            Phase::Connected(connected) => {
                matches!(connected.subscriptions.get(room), Some(Some(_)))
            }
            Phase::New | Phase::Unusable => false,
        }
    }

    fn room(&self, channel: &str) -> Result<(RoomName, &Namespace), Refused> {
        if channel.is_empty() {
            return Err(Refused::Close(DisconnectCode::BAD_REQUEST));
        }
        let room = RoomName::parse(channel).map_err(|_| Refused::bad())?;
        let namespace = self.settings.namespace(&room);
        let namespace = namespace.ok_or(Refused::Error(ErrorCode::UNKNOWN_CHANNEL))?;
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
                let subscription = subscription.map(|at| *at + client.expired_close_delay);
                let all = [self.ping_due, self.pong_due, expires, subscription];
                let far = self.opened + Duration::from_secs(365 * 24 * 3_600);
                all.into_iter().flatten().min().unwrap_or(far)
            }
        }
    }

    /// Polls the timers.
    pub(crate) fn timer(&mut self, now: Instant) -> Effect {
        let client = &self.settings.client;
        match &self.phase {
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
                let delay = client.expired_close_delay;
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
}

impl Refused {
    fn bad() -> Self {
        Self::Error(ErrorCode::BAD_REQUEST)
    }

    fn effect(self, id: u32) -> Effect {
        match self {
            Self::Error(code) => Effect::Reply(json::error(id, code)),
            Self::Close(code) => Effect::Close(code),
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

fn version() -> String {
    concat!("weir ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Evenly at random, up to a duration.
pub(crate) fn random_part(up_to: Duration) -> Duration {
    up_to.mul_f64(f64::from(u32::from_be_bytes(random())) / f64::from(u32::MAX))
}
