//! Knows: who may do what in which room; the one place that makes a [`Permit`]. Never: tokens'
//! bytes, sockets, NATS.

use weir_nats::RoomName;

use crate::capability::{Capability, Scope};
use crate::hook::Vouched;
use crate::rules::NamespaceRules;
use crate::token::{Claims, SubscriptionClaims};

/// What somebody wants to do in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Get its messages live, and recover.
    Subscribe,
    /// Write into it.
    Publish,
    /// Read it back.
    History,
    /// See who is in it.
    Presence,
}

/// Proof that an action in a room was allowed. Only [`Grants`] make one, and joining and publishing
/// need one. There is no other way to get one:
///
/// ```compile_fail,E0451
/// use weir_authz::{Action, Permit};
/// let room = weir_nats::RoomName::parse("chat:lobby").unwrap();
/// let permit = Permit { room, action: Action::Publish };
/// ```
///
/// Claims, from which grants are made, come from a verified token or are nobody's:
///
/// ```compile_fail,E0639
/// use weir_authz::Claims;
/// let claims = Claims { user: "root".to_owned(), ..Claims::anonymous() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    room: RoomName,
    action: Action,
}

impl Permit {
    /// The room it is for.
    #[must_use]
    pub fn room(&self) -> &RoomName {
        &self.room
    }

    /// What it allows.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }
}

/// It is not allowed: error 103.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("permission denied")]
pub struct Denied;

/// What one connection, or one native user, may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    user: String,
    capabilities: Vec<Capability>,
    /// `client.insecure`: everything.
    insecure: bool,
    at: At,
}

/// Where somebody came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// A socket.
    Socket,
    /// NATS. Nobody is subscribed there: who may subscribe counts as a subscriber.
    Native,
    /// NATS, with a token: nats-server lets only through what its grants were rendered to.
    Rendered,
}

impl Grants {
    /// For a socket, by what its token says.
    #[must_use]
    pub fn of(claims: &Claims, insecure: bool) -> Self {
        Self {
            user: claims.user.clone(),
            capabilities: claims.capabilities.clone(),
            insecure,
            at: At::Socket,
        }
    }

    /// The same token shown to NATS: what [`render`](crate::render::render) makes permissions of.
    #[must_use]
    pub fn of_native(claims: &Claims) -> Self {
        Self {
            at: At::Native,
            ..Self::of(claims, false)
        }
    }

    /// For a user of nats-server's configuration: by the rules of namespaces alone.
    #[must_use]
    pub fn native(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            capabilities: Vec::new(),
            insecure: false,
            at: At::Native,
        }
    }

    /// For a request of a user who logged in to NATS with a token. nats-server has compared the
    /// request's subject with the permissions that were rendered from that token, and what a
    /// permission says is one action in one room.
    #[must_use]
    pub fn rendered(user: &str) -> Self {
        Self {
            at: At::Rendered,
            ..Self::native(user)
        }
    }

    /// The user; empty is anonymous.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Rooms that a capability names one by one.
    pub(crate) fn named_rooms(&self) -> impl Iterator<Item = &RoomName> {
        let rooms = self.capabilities.iter();
        rooms.filter_map(|capability| match &capability.scope {
            Scope::Room(room) => Some(room),
            Scope::Namespace(_) => None,
        })
    }

    /// Checks an action. `subscribed` says whether the connection is subscribed to the room.
    ///
    /// # Errors
    /// [`Denied`] if no rule and no capability allows it.
    pub fn check(
        &self,
        action: Action,
        room: &RoomName,
        rules: &NamespaceRules,
        subscribed: bool,
    ) -> Result<Permit, Denied> {
        let allowed = match self.at {
            At::Socket => {
                (self.insecure && !rules.asks(action))
                    || self.allows(action, room, rules, subscribed)
            }
            At::Native => {
                self.covers(action, room, rules)
                    && rules.takes(room)
                    && self.allows(action, room, rules, self.may_subscribe(room, rules, false))
            }
            At::Rendered => rules.takes(room),
        };
        self.permit(allowed, action, room)
    }

    /// Checks a subscription for which a subscription token was shown.
    ///
    /// # Errors
    /// [`Denied`] if the token is for another room or user, or the name is limited to other users.
    pub fn check_with_token(
        &self,
        claims: &SubscriptionClaims,
        room: &RoomName,
        rules: &NamespaceRules,
    ) -> Result<Permit, Denied> {
        let is_for_this = claims.channel == room.channel() && claims.user == self.user;
        let allowed = is_for_this && (self.insecure || self.may_subscribe(room, rules, true));
        self.permit(allowed, Action::Subscribe, room)
    }

    /// True if the application decides what [`check`](Self::check) denied. A private room's and a limited
    /// room's rights come from a token and a name alone, as in Centrifugo.
    #[must_use]
    pub fn may_ask(&self, action: Action, room: &RoomName, rules: &NamespaceRules) -> bool {
        let has_own = action == Action::Subscribe && is_marked(room);
        self.at == At::Socket && rules.asks(action) && rules.takes(room) && !has_own
    }

    /// Checks an action that the application was asked about.
    ///
    /// # Errors
    /// [`Denied`] if it answered about another user, or is not the one to ask.
    pub fn check_with_hook(
        &self,
        vouched: &Vouched,
        rules: &NamespaceRules,
    ) -> Result<Permit, Denied> {
        let (action, room) = (vouched.action, &vouched.room);
        let allowed = vouched.user == self.user && self.may_ask(action, room, rules);
        self.permit(allowed, action, room)
    }

    /// What holds in every room of a namespace at the native door, and so is a wildcard there: rooms
    /// whose names have marks are not among them, and where names must match a pattern or the application
    /// is asked there is none.
    pub(crate) fn wide(
        &self,
        action: Action,
        namespace: Option<&str>,
        rules: &NamespaceRules,
    ) -> bool {
        let subscribes = self.everywhere(Action::Subscribe, namespace, rules, false);
        rules.channel_regex.is_none()
            && !rules.asks(action)
            && self.everywhere(action, namespace, rules, subscribes)
    }

    fn permit(&self, allowed: bool, action: Action, room: &RoomName) -> Result<Permit, Denied> {
        if allowed {
            Ok(Permit {
                room: room.clone(),
                action,
            })
        } else {
            Err(Denied)
        }
    }

    fn allows(
        &self,
        action: Action,
        room: &RoomName,
        rules: &NamespaceRules,
        subscribed: bool,
    ) -> bool {
        match action {
            Action::Subscribe => self.may_subscribe(room, rules, false),
            Action::Publish | Action::History | Action::Presence => {
                self.by_rule(action, rules, subscribed) || self.has(action, room)
            }
        }
    }

    /// A native client's rights are those of a whole namespace or of rooms that its token names, as
    /// that is what its permissions in NATS can say. Rooms marked `$` or `#`, names that match a pattern
    /// and rooms that the application is asked about have rights from elsewhere, and are closed to it
    /// otherwise.
    fn covers(&self, action: Action, room: &RoomName, rules: &NamespaceRules) -> bool {
        (!is_marked(room) && rules.channel_regex.is_none() && !rules.asks(action))
            || self.named_rooms().any(|named| named == room)
    }

    fn may_subscribe(&self, room: &RoomName, rules: &NamespaceRules, has_token: bool) -> bool {
        let vouched = has_token || self.has(Action::Subscribe, room);
        if room.is_private() && !vouched {
            return false;
        }
        if room.limited_to().is_some() {
            return rules.allow_user_limited_channels && self.is_among(room);
        }
        vouched || self.by_rule(Action::Subscribe, rules, false)
    }

    /// True unless the name is limited to other users.
    fn is_among(&self, room: &RoomName) -> bool {
        room.limited_to().is_none_or(|users| {
            !self.user.is_empty() && users.split(',').any(|user| user == self.user)
        })
    }

    /// True if a capability allows it. It never widens the list of users that a name holds.
    fn has(&self, action: Action, room: &RoomName) -> bool {
        let is_here = |scope: &Scope| match scope {
            Scope::Room(named) => named == room,
            Scope::Namespace(namespace) => {
                !is_marked(room) && namespace.as_deref() == room.namespace()
            }
        };
        self.is_among(room)
            && self
                .capabilities
                .iter()
                .any(|capability| capability.actions.has(action) && is_here(&capability.scope))
    }

    /// The same of every room of a namespace whose name has no marks.
    fn everywhere(
        &self,
        action: Action,
        namespace: Option<&str>,
        rules: &NamespaceRules,
        subscribed: bool,
    ) -> bool {
        let is_here = |scope: &Scope| match scope {
            Scope::Room(_) => false,
            Scope::Namespace(named) => named.as_deref() == namespace,
        };
        let mut capabilities = self.capabilities.iter();
        self.by_rule(action, rules, subscribed)
            || capabilities.any(|found| found.actions.has(action) && is_here(&found.scope))
    }

    fn by_rule(&self, action: Action, rules: &NamespaceRules, subscribed: bool) -> bool {
        match action {
            _ if rules.asks(action) => false,
            Action::Subscribe => self.may(
                rules.allow_subscribe_for_client,
                rules.allow_subscribe_for_anonymous,
            ),
            Action::Publish => self.may(
                (subscribed && rules.allow_publish_for_subscriber)
                    || rules.allow_publish_for_client,
                rules.allow_publish_for_anonymous,
            ),
            Action::History => self.may(
                (subscribed && rules.allow_history_for_subscriber)
                    || rules.allow_history_for_client,
                rules.allow_history_for_anonymous,
            ),
            Action::Presence => self.may(
                (subscribed && rules.allow_presence_for_subscriber)
                    || rules.allow_presence_for_client,
                rules.allow_presence_for_anonymous,
            ),
        }
    }

    /// As in Centrifugo, `_for_anonymous` widens what is allowed to the anonymous user, too.
    fn may(&self, allowed: bool, for_anonymous: bool) -> bool {
        allowed && (!self.user.is_empty() || for_anonymous)
    }
}

fn is_marked(room: &RoomName) -> bool {
    room.is_private() || room.limited_to().is_some()
}

#[cfg(test)]
mod tests;
