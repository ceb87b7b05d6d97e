//! Knows: what tokens do to a session: connect, refresh, sub_refresh, expiry, and the code of each
//! refusal. Never: how a token is verified, a socket, a clock.

use std::collections::HashMap;

use weir_authz::{Claims, Grants, SubscriptionClaims, TokenError};
use weir_nats::RoomName;
use weir_nats::control::TokenFacts;

use super::{Authority, Connected, Effect, Now, OpenedBy, Phase, Place, Places, Refused, Session};
use super::{after, random_part, ttl, version};
use crate::protocol::code::{DisconnectCode, ErrorCode, UnsubscribeCode};
use crate::protocol::{Command, CommandKind, Connect, ConnectResult, json};

/// Who said who somebody is.
pub(super) enum SaidBy {
    /// A token, as far as it can be revoked; or nobody, where none is needed.
    Token(Option<TokenFacts>),
    /// The application, with data for the client.
    Hook(Option<String>),
}

impl Session {
    pub(super) fn connect(&mut self, id: u32, connect: Connect, now: Now) -> Effect {
        let client = &self.settings.client;
        let claims = if connect.token.is_empty() {
            if self.settings.hooks.connect.is_some() {
                return self.ask_connect(id, connect);
            }
            if !client.insecure && !client.allow_anonymous_connect_without_token {
                return Effect::Close(DisconnectCode::BAD_REQUEST);
            }
            Claims::anonymous()
        } else {
            match self.verifier.connection(&connect.token, now.unix_s) {
                Ok(claims)
                    if claims.user.is_empty() && client.disallow_anonymous_connection_tokens =>
                {
                    tracing::info!("connect refused: the token has no user");
                    return Effect::Close(DisconnectCode::PERMISSION_DENIED);
                }
                Ok(claims) => claims,
                Err(error) => match self.refused(error, "connect") {
                    Refused::Wanted(wanted) => {
                        let kind = CommandKind::Connect(connect);
                        return Effect::Fetch(wanted, Command { id, kind });
                    }
                    refused => {
                        self.phase = Phase::Unusable;
                        return refused.effect(id);
                    }
                },
            }
        };
        let token = (!connect.token.is_empty()).then(|| claims.facts());
        self.accept(id, claims, SaidBy::Token(token), now)
    }

    /// Takes somebody in.
    pub(super) fn accept(&mut self, id: u32, claims: Claims, said: SaidBy, now: Now) -> Effect {
        if self.gate.connect(&claims.user, now.instant).is_err() {
            self.phase = Phase::Unusable;
            return Effect::Reply(json::error(id, ErrorCode::TOO_MANY_REQUESTS));
        }
        let ttl_s = self.ttl_s(&claims, now);
        let ping = self.settings.client.ping_interval;
        let asks = self.settings.hooks.refresh.is_some();
        // A client refreshes with a token. One without connects again, and the application is asked again.
        let (tells, data, token) = match said {
            SaidBy::Token(token) => (!asks, None, token),
            SaidBy::Hook(data) => (false, data, None),
        };
        let authority = Box::new(Authority::new(token, now));
        let result = ConnectResult {
            client: self.client.clone(),
            version: version(),
            ttl_s: ttl_s.filter(|_| tells),
            ping_s: u32::try_from(ping.as_secs()).unwrap_or(u32::MAX),
            data,
        };
        if !ping.is_zero() {
            // The first at random between half and the whole, so that pings do not come in waves.
            self.ping_due = Some(now.instant + ping / 2 + random_part(ping / 2));
        }
        self.phase = Phase::Connected(Box::new(Connected {
            grants: Grants::of(&claims, self.settings.client.insecure),
            info: claims.info,
            meta: claims.meta.map(Into::into),
            expires: after(ttl_s, now),
            refresh_at: after(ttl_s, now).filter(|_| asks),
            subscriptions: Places::default(),
            expiring: HashMap::new(),
            authority,
        }));
        Effect::Connected(json::connect(id, &result))
    }

    /// A new token for a connection that expires.
    pub(super) fn refresh(&mut self, id: u32, token: String, now: Now) -> Effect {
        // The application says how long a connection lasts, where it is asked.
        if token.is_empty() || self.settings.hooks.refresh.is_some() {
            return Effect::Close(DisconnectCode::BAD_REQUEST);
        }
        match self.verifier.connection(&token, now.unix_s) {
            Ok(claims) => {
                let ttl_s = self.ttl_s(&claims, now);
                match &mut self.phase {
                    Phase::Connected(connected) if connected.grants.user() == claims.user => {
                        connected.expires = after(ttl_s, now);
                        connected.grants = Grants::of(&claims, self.settings.client.insecure);
                        connected.authority.renew(claims.facts());
                        connected.info = claims.info;
                        connected.meta = claims.meta.map(Into::into);
                        self.narrowed(json::refresh(id, &self.client, &version(), ttl_s))
                    }
                    _ => Effect::Close(DisconnectCode::INVALID_TOKEN),
                }
            }
            // The client comes back, is told 109, and gets another.
            Err(TokenError::Expired) => Effect::Close(DisconnectCode::EXPIRED),
            Err(error) => match self.refused(error, "refresh") {
                Refused::Wanted(wanted) => {
                    let kind = CommandKind::Refresh { token };
                    Effect::Fetch(wanted, Command { id, kind })
                }
                refused => refused.effect(id),
            },
        }
    }

    /// A new token for a subscription that expires. One that has expired ends it (2501), as the
    /// client then subscribes again with a new one. The Python SDK names no channel: the token does.
    pub(super) fn sub_refresh(
        &mut self,
        id: u32,
        channel: String,
        token: String,
        now: Now,
    ) -> Effect {
        let mut room = None;
        if !channel.is_empty() {
            match self.room(&channel) {
                Ok((found, _)) => room = Some(found),
                Err(refused) => return refused.effect(id),
            }
        }
        let is_member = |room: &RoomName| self.is_subscribed(room);
        if room.as_ref().is_some_and(|room| !is_member(room)) {
            return Effect::Reply(json::error(id, ErrorCode::PERMISSION_DENIED));
        }
        if token.is_empty() {
            return Effect::Reply(json::error(id, ErrorCode::BAD_REQUEST));
        }
        let claims = match (self.subscription_claims(room.as_ref(), &token, now), &room) {
            (Ok(claims), _) => claims,
            (Err(TokenError::Expired), Some(room)) => return self.expire(room),
            (Err(error), _) => {
                return match self.refused(error, "sub_refresh") {
                    Refused::Wanted(wanted) => {
                        let kind = CommandKind::SubRefresh { channel, token };
                        Effect::Fetch(wanted, Command { id, kind })
                    }
                    refused => refused.effect(id),
                };
            }
        };
        let room = match room.map_or_else(|| RoomName::parse(&claims.channel), Ok) {
            Ok(room) if is_member(&room) => room,
            Ok(_) => return Effect::Reply(json::error(id, ErrorCode::PERMISSION_DENIED)),
            Err(_) => return Refused::bad().effect(id),
        };
        if !self.is_opened_by(&claims, &room) {
            return self.end(&room);
        }
        let Phase::Connected(connected) = &mut self.phase else {
            return Effect::Close(DisconnectCode::BAD_REQUEST);
        };
        connected
            .authority
            .opened(&room, Some(OpenedBy::Token(claims.facts())));
        let ttl_s = claims.expires_at_s.map(|at| ttl(at, now.unix_s));
        if let Some(Place::Member(_, info)) = connected.subscriptions.get_mut(&room) {
            *info = claims.options.info;
        }
        match after(ttl_s, now) {
            Some(expires) => {
                connected.expiring.insert(room, expires);
            }
            None => {
                connected.expiring.remove(&room);
            }
        }
        Effect::Reply(json::sub_refresh(id, ttl_s))
    }

    /// True if a subscription token is enough for a room by what the connection may do now.
    fn is_opened_by(&self, claims: &SubscriptionClaims, room: &RoomName) -> bool {
        let Phase::Connected(connected) = &self.phase else {
            return false;
        };
        self.settings.namespace(room).is_some_and(|namespace| {
            let rules = &namespace.rules;
            let permit = connected.grants.check_with_token(claims, room, rules);
            permit.is_ok()
        })
    }

    /// Verifies a subscription token of this connection's.
    pub(super) fn subscription_claims(
        &self,
        room: Option<&RoomName>,
        token: &str,
        now: Now,
    ) -> Result<SubscriptionClaims, TokenError> {
        let user = self.user().map(|(user, _)| user).unwrap_or_default();
        let channel = room.map(RoomName::channel);
        let found = self
            .verifier
            .subscription(token, channel, user, &self.client, now.unix_s);
        match found {
            Err(TokenError::Wanted(_)) if self.has_waited => Err(TokenError::Unavailable),
            found => found,
        }
    }

    /// Ends a subscription whose time is over.
    pub(super) fn expire(&mut self, room: &RoomName) -> Effect {
        let Phase::Connected(connected) = &mut self.phase else {
            return Effect::None;
        };
        connected.expiring.remove(room);
        connected.authority.left(room);
        match connected.subscriptions.remove(room) {
            Some(Place::Member(membership, _)) => {
                let frame = json::unsubscribe_push(room.channel(), UnsubscribeCode::EXPIRED);
                Effect::Leave(membership, frame)
            }
            // On its way: its reply will say that it failed.
            Some(Place::Waiting(_) | Place::Joining) | None => Effect::None,
        }
    }

    /// Seconds until a connection expires. Where everything is allowed, it never does.
    fn ttl_s(&self, claims: &Claims, now: Now) -> Option<u32> {
        let at_s = claims
            .expires_at_s
            .filter(|_| !self.settings.client.insecure);
        at_s.map(|at| ttl(at, now.unix_s))
    }

    /// What a connection is told of a token that was not accepted.
    fn refused(&self, error: TokenError, command: &'static str) -> Refused {
        let error = match error {
            TokenError::Wanted(wanted) if !self.has_waited => return Refused::Wanted(wanted),
            error => error,
        };
        tracing::info!(client = self.client, command, %error, "token refused");
        match error {
            TokenError::Expired => Refused::Error(ErrorCode::TOKEN_EXPIRED),
            TokenError::ConnectionExpired => Refused::Error(ErrorCode::EXPIRED),
            TokenError::Unavailable | TokenError::Wanted(_) => Refused::Error(ErrorCode::INTERNAL),
            TokenError::Invalid(_) | TokenError::Mismatch(_) | TokenError::Revoked => {
                Refused::Close(DisconnectCode::INVALID_TOKEN)
            }
        }
    }

    /// The same of a subscribe: a token that is no good costs the subscription, one for somebody else
    /// the connection.
    pub(super) fn refused_subscribe(&self, error: TokenError) -> Refused {
        let is_no_good = matches!(error, TokenError::Invalid(_) | TokenError::Revoked);
        match self.refused(error, "subscribe") {
            Refused::Close(_) if is_no_good => Refused::Error(ErrorCode::PERMISSION_DENIED),
            refused => refused,
        }
    }
}
