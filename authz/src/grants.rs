//! Knows: who may do what in which room; the one place that makes a [`Permit`]. Never: tokens'
//! bytes, sockets, NATS.

use weir_nats::RoomName;

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

/// A namespace's `allow_…` options, with Centrifugo's names and meanings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of the configuration"
)]
pub struct NamespaceRules {
    /// Any user with a name may subscribe.
    pub allow_subscribe_for_client: bool,
    /// What is above holds for the anonymous user, too.
    pub allow_subscribe_for_anonymous: bool,
    /// Whoever is subscribed may publish.
    pub allow_publish_for_subscriber: bool,
    /// Any user with a name may publish.
    pub allow_publish_for_client: bool,
    /// What is above holds for the anonymous user, too.
    pub allow_publish_for_anonymous: bool,
    /// Whoever is subscribed may read back.
    pub allow_history_for_subscriber: bool,
    /// Any user with a name may read back.
    pub allow_history_for_client: bool,
    /// What is above holds for the anonymous user, too.
    pub allow_history_for_anonymous: bool,
    /// Whoever is subscribed may see who is there.
    pub allow_presence_for_subscriber: bool,
    /// Any user with a name may see who is there.
    pub allow_presence_for_client: bool,
    /// What is above holds for the anonymous user, too.
    pub allow_presence_for_anonymous: bool,
    /// Names with `#user1,user2` are for those users.
    pub allow_user_limited_channels: bool,
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
    /// `client.insecure`: everything.
    insecure: bool,
    /// At the native door nobody is subscribed: who may subscribe counts as a subscriber.
    is_native: bool,
}

impl Grants {
    /// For a socket, by what its token says.
    #[must_use]
    pub fn of(claims: &Claims, insecure: bool) -> Self {
        Self {
            user: claims.user.clone(),
            insecure,
            is_native: false,
        }
    }

    /// For a user that NATS has authenticated.
    #[must_use]
    pub fn native(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            insecure: false,
            is_native: true,
        }
    }

    /// The user; empty is anonymous.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Checks an action. `subscribed` says whether the connection is subscribed to the room.
    ///
    /// # Errors
    /// [`Denied`] if no rule allows it.
    pub fn check(
        &self,
        action: Action,
        room: &RoomName,
        rules: &NamespaceRules,
        subscribed: bool,
    ) -> Result<Permit, Denied> {
        if !self.covers(room) {
            return Err(Denied);
        }
        let subscribed = subscribed || (self.is_native && self.may_subscribe(room, rules, false));
        let allowed = self.insecure
            || match action {
                Action::Subscribe => self.may_subscribe(room, rules, false),
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
            };
        if allowed {
            Ok(Permit {
                room: room.clone(),
                action,
            })
        } else {
            Err(Denied)
        }
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
        let action = Action::Subscribe;
        if allowed {
            Ok(Permit {
                room: room.clone(),
                action,
            })
        } else {
            Err(Denied)
        }
    }

    /// A native client's rights are those of a whole namespace, as that is what its permissions in
    /// NATS can say. Rooms marked `$` or `#` have rights from a token or a name, and are closed to it.
    fn covers(&self, room: &RoomName) -> bool {
        !(self.is_native && (room.is_private() || room.limited_to().is_some()))
    }

    fn may_subscribe(&self, room: &RoomName, rules: &NamespaceRules, has_token: bool) -> bool {
        if room.is_private() && !has_token {
            return false;
        }
        if let Some(users) = room.limited_to() {
            return rules.allow_user_limited_channels
                && !self.user.is_empty()
                && users.split(',').any(|user| user == self.user);
        }
        has_token
            || self.may(
                rules.allow_subscribe_for_client,
                rules.allow_subscribe_for_anonymous,
            )
    }

    /// As in Centrifugo, `_for_anonymous` widens what is allowed to the anonymous user, too.
    fn may(&self, allowed: bool, for_anonymous: bool) -> bool {
        allowed && (!self.user.is_empty() || for_anonymous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomName {
        RoomName::parse(name).unwrap()
    }

    fn socket(user: &str, insecure: bool) -> Grants {
        let mut claims = Claims::anonymous();
        claims.user = user.to_owned();
        Grants::of(&claims, insecure)
    }

    fn shown(grants: &Grants, user: &str, of: &str, name: &str, rules: &NamespaceRules) -> bool {
        let claims = SubscriptionClaims {
            channel: of.to_owned(),
            user: user.to_owned(),
            client: None,
            expires_at_s: None,
            options: crate::token::SubscribeOptions::default(),
            token_id: None,
            issued_at_s: None,
        };
        grants.check_with_token(&claims, &room(name), rules).is_ok()
    }

    fn check(grants: &Grants, action: Action, name: &str, rules: &NamespaceRules) -> bool {
        grants.check(action, &room(name), rules, false).is_ok()
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let rules = NamespaceRules::default();
        for user in ["", "ann"] {
            for action in [
                Action::Subscribe,
                Action::Publish,
                Action::History,
                Action::Presence,
            ] {
                let grants = socket(user, false);
                assert!(grants.check(action, &room("a"), &rules, true).is_err());
            }
        }
        assert!(check(&socket("", true), Action::Publish, "a", &rules));
    }

    #[test]
    fn users_and_the_anonymous_user_have_rules_of_their_own() {
        let rules = NamespaceRules {
            allow_subscribe_for_client: true,
            allow_publish_for_client: true,
            allow_publish_for_anonymous: true,
            allow_history_for_anonymous: true,
            ..NamespaceRules::default()
        };
        let (ann, nobody) = (socket("ann", false), socket("", false));
        assert!(check(&ann, Action::Subscribe, "a", &rules));
        assert!(!check(&nobody, Action::Subscribe, "a", &rules));
        assert!(check(&ann, Action::Publish, "a", &rules));
        assert!(check(&nobody, Action::Publish, "a", &rules));
        assert!(!check(&nobody, Action::History, "a", &rules));
    }

    #[test]
    fn marks_limit_who_may_join() {
        let rules = NamespaceRules {
            allow_subscribe_for_client: true,
            allow_user_limited_channels: true,
            ..NamespaceRules::default()
        };
        let ann = socket("ann", false);
        assert!(!check(&ann, Action::Subscribe, "$x", &rules));
        assert!(shown(&ann, "ann", "$x", "$x", &rules));
        assert!(!shown(&ann, "ann", "$y", "$x", &rules));
        assert!(!shown(&ann, "bob", "$x", "$x", &rules));
        assert!(check(&ann, Action::Subscribe, "x#ann,bob", &rules));
        assert!(!check(&ann, Action::Subscribe, "x#bob", &rules));
        assert!(!shown(&ann, "ann", "x#bob", "x#bob", &rules));
        assert!(!check(&socket("", false), Action::Subscribe, "x#", &rules));
        let off = NamespaceRules {
            allow_user_limited_channels: false,
            ..rules
        };
        assert!(!check(&ann, Action::Subscribe, "x#ann", &off));
    }

    #[test]
    fn at_the_native_door_a_right_to_subscribe_counts_as_being_subscribed() {
        let rules = NamespaceRules {
            allow_subscribe_for_client: true,
            allow_publish_for_subscriber: true,
            ..NamespaceRules::default()
        };
        assert!(check(&Grants::native("bot"), Action::Publish, "a", &rules));
        assert!(!check(
            &Grants::native("bot"),
            Action::Publish,
            "$a",
            &rules
        ));
        assert!(!check(&socket("bot", false), Action::Publish, "a", &rules));
        let subscribed = socket("bot", false).check(Action::Publish, &room("a"), &rules, true);
        assert_eq!(subscribed.unwrap().action(), Action::Publish);
    }

    /// Sets the three options of an action.
    fn allow(action: Action, client: bool, subscriber: bool, anonymous: bool) -> NamespaceRules {
        let mut rules = NamespaceRules::default();
        match action {
            Action::Subscribe => {
                rules.allow_subscribe_for_client = client;
                rules.allow_subscribe_for_anonymous = anonymous;
            }
            Action::Publish => {
                rules.allow_publish_for_client = client;
                rules.allow_publish_for_subscriber = subscriber;
                rules.allow_publish_for_anonymous = anonymous;
            }
            Action::History => {
                rules.allow_history_for_client = client;
                rules.allow_history_for_subscriber = subscriber;
                rules.allow_history_for_anonymous = anonymous;
            }
            Action::Presence => {
                rules.allow_presence_for_client = client;
                rules.allow_presence_for_subscriber = subscriber;
                rules.allow_presence_for_anonymous = anonymous;
            }
        }
        rules
    }

    #[test]
    fn every_action_follows_one_table() {
        let bits = [false, true];
        for action in [
            Action::Subscribe,
            Action::Publish,
            Action::History,
            Action::Presence,
        ] {
            for case in 0..32_u8 {
                let bit = |nth: u8| bits[usize::from(case >> nth & 1)];
                let (client, subscriber, anonymous) = (bit(0), bit(1), bit(2));
                let (has_name, subscribed) = (bit(3), bit(4));
                let rules = allow(action, client, subscriber, anonymous);
                let user = if has_name { "ann" } else { "" };
                let counts = subscriber && subscribed && action != Action::Subscribe;
                let expected = (client || counts) && (has_name || anonymous);
                let found = socket(user, false).check(action, &room("a"), &rules, subscribed);
                assert_eq!(found.is_ok(), expected, "{action:?} {case:05b}");
                if let Ok(permit) = found {
                    assert_eq!((permit.room().channel(), permit.action()), ("a", action));
                }
            }
        }
    }

    #[test]
    fn marked_names_do_not_slip_under_a_namespace_at_the_native_door() {
        for action in [
            Action::Subscribe,
            Action::Publish,
            Action::History,
            Action::Presence,
        ] {
            let rules = NamespaceRules {
                allow_user_limited_channels: true,
                ..allow(action, true, true, true)
            };
            let ann = Grants::native("ann");
            assert!(check(&ann, action, "chat:a", &rules));
            for name in [
                "$chat:a",
                "chat:a#ann",
                "$chat:a#ann",
                "#ann",
                "$a",
                "chat:a#",
            ] {
                assert!(!check(&ann, action, name, &rules), "{action:?} {name}");
            }
        }
    }
}
