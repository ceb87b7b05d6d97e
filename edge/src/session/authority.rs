//! Knows: what is taken away from a session while it lives: by a refresh that narrows, by a revoked token, by an order
//! of operators. Never: how orders come here, a socket, a clock.

use std::collections::HashMap;

use bytes::Bytes;
use weir_authz::Action;
use weir_nats::RoomName;
use weir_nats::control::{Order, TokenFacts, What, Whose};

use super::{Connected, Effect, Now, Phase, Place, Session};
use crate::hub::Membership;
use crate::protocol::code::{DisconnectCode, UnsubscribeCode};
use crate::protocol::json;

/// What a connection's rights come from, as far as they can be revoked.
#[derive(Debug)]
pub(super) struct Authority {
    /// Of the connection token; `None` without one: there is nothing to revoke.
    token: Option<TokenFacts>,
    /// What opened rooms; most are opened by the connection's own rights and are not here.
    rooms: HashMap<RoomName, OpenedBy>,
    /// The revocations that the connection token was compared with last.
    version: u64,
    /// When the connection began, in milliseconds since 1970.
    began_ms: i64,
}

/// What opened a room where the connection's own rights did not.
#[derive(Clone, Debug)]
pub(super) enum OpenedBy {
    /// A subscription token.
    Token(TokenFacts),
    /// The application, asked by a hook.
    Application,
}

impl OpenedBy {
    /// The token, as far as it can be revoked.
    pub(super) fn token(&self) -> Option<&TokenFacts> {
        match self {
            Self::Token(token) => Some(token),
            Self::Application => None,
        }
    }
}

/// What an order does to a session.
#[derive(Debug, Default)]
pub(crate) struct Obeyed {
    /// The connection ends.
    pub(crate) close: Option<DisconnectCode>,
    /// Rooms that it leaves, with what the client is told.
    pub(crate) left: Vec<(Membership, Bytes)>,
}

impl Authority {
    pub(super) fn new(token: Option<TokenFacts>, now: Now) -> Self {
        Self {
            token,
            rooms: HashMap::new(),
            version: 0,
            began_ms: now.unix_s.saturating_mul(1_000),
        }
    }

    /// Another connection token.
    pub(super) fn renew(&mut self, token: TokenFacts) {
        self.token = Some(token);
    }

    /// A room was opened by this, or by the connection's own rights.
    pub(super) fn opened(&mut self, room: &RoomName, by: Option<OpenedBy>) {
        match by {
            Some(by) => drop(self.rooms.insert(room.clone(), by)),
            None => drop(self.rooms.remove(room)),
        }
    }

    /// A subscription ended.
    pub(super) fn left(&mut self, room: &RoomName) {
        self.rooms.remove(room);
    }
}

impl Session {
    /// Asks: whether the connection token was revoked. Costs next to nothing while there is no new revocation.
    pub(crate) fn is_revoked(&mut self) -> bool {
        let Phase::Connected(connected) = &mut self.phase else {
            return false;
        };
        let revocations = self.verifier.revocations();
        let version = revocations.version();
        if connected.authority.version == version {
            return false;
        }
        let user = connected.grants.user();
        let token = &connected.authority.token;
        let is_revoked = |token| revocations.is_revoked(user, token);
        if token.as_ref().is_some_and(is_revoked) {
            return true;
        }
        connected.authority.version = version;
        false
    }

    /// Asks: whether the subscription token that opened a room was revoked.
    pub(super) fn is_room_revoked(&self, connected: &Connected, room: &RoomName) -> bool {
        let rooms = &connected.authority.rooms;
        let by_token = rooms.get(room).and_then(OpenedBy::token);
        by_token.is_some_and(|token| {
            let revocations = self.verifier.revocations();
            revocations.is_revoked(connected.grants.user(), token)
        })
    }

    /// Feeds an order of operators. What it ends is ended once it is obeyed.
    pub(crate) fn obey(&mut self, order: &Order) -> Obeyed {
        match &order.what {
            What::Revoke(_) if self.is_revoked() => Obeyed {
                close: Some(DisconnectCode::TOKEN_REVOKED),
                left: Vec::new(),
            },
            What::Revoke(_) => {
                let Phase::Connected(connected) = &self.phase else {
                    return Obeyed::default();
                };
                let rooms = connected.authority.rooms.keys();
                let rooms = rooms.filter(|room| self.is_room_revoked(connected, room));
                self.leave(rooms.cloned().collect())
            }
            What::Disconnect { whose, reconnect } => {
                let is_meant = self.is_meant(order, whose);
                let code = if *reconnect {
                    DisconnectCode::FORCE_RECONNECT
                } else {
                    DisconnectCode::FORCE_DISCONNECT
                };
                Obeyed {
                    close: is_meant.then_some(code),
                    left: Vec::new(),
                }
            }
            What::Unsubscribe { whose } => {
                let Phase::Connected(connected) = &self.phase else {
                    return Obeyed::default();
                };
                if !self.is_meant(order, whose) {
                    return Obeyed::default();
                }
                let rooms = connected.subscriptions.keys();
                let is_named = |room: &&RoomName| {
                    whose
                        .room
                        .as_ref()
                        .is_none_or(|name| name == room.channel())
                };
                self.leave(rooms.filter(is_named).cloned().collect())
            }
        }
    }

    fn is_meant(&self, order: &Order, whose: &Whose) -> bool {
        let Phase::Connected(connected) = &self.phase else {
            return false;
        };
        let is_in = |name: &String| {
            let mut rooms = connected.subscriptions.keys();
            rooms.any(|room| room.channel() == name)
        };
        order.reaches(connected.authority.began_ms)
            && whose
                .user
                .as_ref()
                .is_none_or(|user| user == connected.grants.user())
            && whose
                .client
                .as_ref()
                .is_none_or(|client| *client == self.client)
            && whose.room.as_ref().is_none_or(is_in)
    }

    /// After a refresh: the rooms end that the new token does not allow. Those that a subscription token opened are
    /// that token's; those that the application opened stay as it decided.
    pub(super) fn narrowed(&mut self, reply: Bytes) -> Effect {
        let Phase::Connected(connected) = &self.phase else {
            return Effect::Reply(reply);
        };
        let is_lost = |room: &RoomName| {
            !connected.authority.rooms.contains_key(room)
                && self.settings.namespace(room).is_none_or(|namespace| {
                    let rules = &namespace.rules;
                    let checked = connected
                        .grants
                        .check(Action::Subscribe, room, rules, false);
                    checked.is_err()
                })
        };
        // One that is not in yet is looked at when it gets there: by its own token, or by the new rights.
        let rooms = connected.subscriptions.iter();
        let members = rooms.filter(|(_, place)| matches!(place, Place::Member(..)));
        let lost = members.map(|(room, _)| room).filter(|room| is_lost(room));
        let lost: Vec<RoomName> = lost.cloned().collect();
        if lost.is_empty() {
            return Effect::Reply(reply);
        }
        tracing::info!(
            client = self.client,
            rooms = lost.len(),
            "a refresh has taken rooms away"
        );
        let (memberships, pushes): (Vec<_>, Vec<_>) = self.leave(lost).left.into_iter().unzip();
        let frames = std::iter::once(reply).chain(pushes).collect();
        Effect::LeaveAll(memberships, frames)
    }

    /// Ends one subscription by order.
    pub(super) fn end(&mut self, room: &RoomName) -> Effect {
        match self.leave(vec![room.clone()]).left.pop() {
            Some((membership, frame)) => Effect::Leave(membership, frame),
            None => Effect::None,
        }
    }

    fn leave(&mut self, rooms: Vec<RoomName>) -> Obeyed {
        let Phase::Connected(connected) = &mut self.phase else {
            return Obeyed::default();
        };
        let mut left = Vec::new();
        for room in rooms {
            connected.expiring.remove(&room);
            connected.authority.left(&room);
            // A join that is on its way fails, as its place is gone.
            if let Some(Place::Member(membership, _)) = connected.subscriptions.remove(&room) {
                let frame = json::unsubscribe_push(room.channel(), UnsubscribeCode::SERVER);
                left.push((membership, frame));
            }
        }
        Obeyed { close: None, left }
    }
}
