//! Knows: what grants are in NATS' permissions: the subjects of deploy/nats.conf for one user. Never: NATS
//! itself, tokens, what is granted (`grants`).
//!
//! ```text
//! subscribe   room.<ns>.<id>, eph.<ns>.<id>           presence   who.<ns>.<id>
//! publish     say.<user>.<ns>.<id>                    history    history.<user>.<ns>.<id>
//! always      _INBOX.<user>.>, as answers go there
//! ```
//!
//! What holds in a whole namespace is `<ns>.*`. A `*` cannot say "names that match", "names that list
//! you" or "rooms that a hook allows", so such rooms are there only where a capability names them.

use std::collections::BTreeSet;

use weir_nats::RoomName;
use weir_nats::subject::user_token;

use crate::grants::{Action, Grants};
use crate::rules::NamespaceRules;

/// The one subject of a side without rights: an empty list would allow everything.
pub const NOTHING: &str = "_NONE_";

/// Lists of subjects that a user may publish on and subscribe to; everything else is refused. Sorted,
/// and never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Permissions {
    /// Subjects to publish on.
    #[must_use]
    pub fn publish(&self) -> &[String] {
        &self.publish
    }

    /// Subjects to subscribe to.
    #[must_use]
    pub fn subscribe(&self) -> &[String] {
        &self.subscribe
    }
}

#[derive(Default)]
struct Sides {
    publish: BTreeSet<String>,
    subscribe: BTreeSet<String>,
}

impl Sides {
    fn add(&mut self, action: Action, user: &str, place: &str) {
        match action {
            Action::Subscribe => {
                self.subscribe.insert(format!("room.{place}"));
                self.subscribe.insert(format!("eph.{place}"));
            }
            Action::Presence => {
                self.subscribe.insert(format!("who.{place}"));
            }
            Action::Publish => {
                self.publish.insert(format!("say.{user}.{place}"));
            }
            Action::History => {
                self.publish.insert(format!("history.{user}.{place}"));
            }
        }
    }
}

/// What a user with these grants may do at the native door, given the rules of every namespace (`None`
/// are rooms without one). The anonymous user may do nothing, as all of them would share one inbox.
#[must_use]
pub fn render<'r>(
    grants: &Grants,
    namespaces: impl IntoIterator<Item = (Option<&'r str>, &'r NamespaceRules)>,
) -> Permissions {
    let mut sides = Sides::default();
    if !grants.user().is_empty() {
        let user = user_token(grants.user());
        sides.subscribe.insert(format!("_INBOX.{user}.>"));
        for (namespace, rules) in namespaces {
            in_namespace(&mut sides, grants, &user, namespace, rules);
        }
    }
    let list = |side: BTreeSet<String>| {
        if side.is_empty() {
            vec![NOTHING.to_owned()]
        } else {
            side.into_iter().collect()
        }
    };
    Permissions {
        publish: list(sides.publish),
        subscribe: list(sides.subscribe),
    }
}

fn in_namespace(
    sides: &mut Sides,
    grants: &Grants,
    user: &str,
    namespace: Option<&str>,
    rules: &NamespaceRules,
) {
    const ALL: [Action; 4] = [
        Action::Subscribe,
        Action::Publish,
        Action::History,
        Action::Presence,
    ];
    let token = namespace.unwrap_or("_");
    let is_wide = ALL.map(|action| grants.wide(action, namespace, rules));
    for (action, is_wide) in ALL.into_iter().zip(is_wide) {
        if is_wide {
            sides.add(action, user, &format!("{token}.*"));
        }
    }
    // MQTT's room/<ns>/# is two subjects, and nothing is ever published on the shorter.
    if is_wide[0] {
        sides.add(Action::Subscribe, user, token);
    }
    let here = |room: &&RoomName| room.namespace() == namespace;
    for room in grants.named_rooms().filter(here) {
        let (ns, id) = room.tokens();
        for (action, is_wide) in ALL.into_iter().zip(is_wide) {
            let is_said = is_wide && ns == token;
            if !is_said && grants.check(action, room, rules, false).is_ok() {
                sides.add(action, user, &format!("{ns}.{id}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::{Actions, Capability, Scope};
    use crate::rules::ChannelRegex;
    use crate::token::Claims;

    fn claims(user: &str, capabilities: Vec<Capability>) -> Claims {
        let mut claims = Claims::anonymous();
        claims.user = user.to_owned();
        claims.capabilities = capabilities;
        claims
    }

    fn room(name: &str, actions: &[Action]) -> Capability {
        Capability {
            scope: Scope::Room(RoomName::parse(name).unwrap()),
            actions: set(actions),
        }
    }

    fn set(actions: &[Action]) -> Actions {
        actions
            .iter()
            .fold(Actions::NONE, |set, action| set.and(*action))
    }

    fn rendered(claims: &Claims, rules: &NamespaceRules) -> (String, String) {
        let found = render(&Grants::of_native(claims), [(Some("chat"), rules)]);
        (found.publish().join(" "), found.subscribe().join(" "))
    }

    fn open() -> NamespaceRules {
        NamespaceRules {
            allow_subscribe_for_client: true,
            allow_publish_for_subscriber: true,
            allow_history_for_subscriber: true,
            allow_presence_for_client: true,
            allow_user_limited_channels: true,
            ..NamespaceRules::default()
        }
    }

    #[test]
    fn rules_of_a_namespace_are_wildcards_in_it() {
        let (publish, subscribe) = rendered(&claims("ann", Vec::new()), &open());
        assert_eq!(publish, "history.ann.chat.* say.ann.chat.*");
        assert_eq!(
            subscribe,
            "_INBOX.ann.> eph.chat eph.chat.* room.chat room.chat.* who.chat.*"
        );
    }

    #[test]
    fn a_side_without_rights_is_one_subject() {
        let closed = NamespaceRules::default();
        let (publish, subscribe) = rendered(&claims("ann@x", Vec::new()), &closed);
        assert_eq!(
            (publish.as_str(), subscribe.as_str()),
            (NOTHING, "_INBOX.ann=40x.>")
        );
        let (publish, subscribe) = rendered(&claims("", Vec::new()), &open());
        assert_eq!((publish.as_str(), subscribe.as_str()), (NOTHING, NOTHING));
        let reads = claims("ann", vec![room("chat:a", &[Action::Subscribe])]);
        let (publish, subscribe) = rendered(&reads, &closed);
        assert_eq!(publish, NOTHING);
        assert_eq!(subscribe, "_INBOX.ann.> eph.chat.a room.chat.a");
        let writes = claims("ann", vec![room("chat:a", &[Action::Publish])]);
        let (publish, subscribe) = rendered(&writes, &closed);
        assert_eq!(
            (publish.as_str(), subscribe.as_str()),
            ("say.ann.chat.a", "_INBOX.ann.>")
        );
    }

    #[test]
    fn marked_names_and_patterns_are_there_only_by_name() {
        let all = [Action::Subscribe, Action::History];
        let named = claims("ann", vec![room("$chat:a", &all), room("chat:b#ann", &all)]);
        let (publish, subscribe) = rendered(&named, &open());
        assert!(publish.contains("say.ann.=24chat.a "), "{publish}");
        assert!(publish.contains("say.ann.=23chat.b=23ann"), "{publish}");
        assert!(subscribe.contains("room.=24chat.a"), "{subscribe}");
        assert!(!subscribe.contains("=24chat.*") && !subscribe.contains("=23chat.*"));
        let of_others = claims("ann", vec![room("chat:b#bob", &all)]);
        assert!(
            !rendered(&of_others, &NamespaceRules::default())
                .1
                .contains("room")
        );
        let pattern = NamespaceRules {
            channel_regex: Some(ChannelRegex::parse("^[0-9]+$").unwrap()),
            ..open()
        };
        let (publish, subscribe) = rendered(&claims("ann", Vec::new()), &pattern);
        assert_eq!(
            (publish.as_str(), subscribe.as_str()),
            (NOTHING, "_INBOX.ann.>")
        );
        let named = claims("ann", vec![room("chat:7", &all), room("chat:x", &all)]);
        let (_, subscribe) = rendered(&named, &pattern);
        assert_eq!(subscribe, "_INBOX.ann.> eph.chat.7 room.chat.7 who.chat.7");
    }

    #[test]
    fn a_room_of_a_namespace_that_is_not_there_is_not_rendered() {
        let other = claims("ann", vec![room("news:a", &[Action::Subscribe])]);
        assert_eq!(
            rendered(&other, &open()),
            rendered(&claims("ann", Vec::new()), &open())
        );
    }
}
