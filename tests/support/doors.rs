//! Knows: made-up tokens, namespaces and rooms, what a socket may do with them, and how nats-server compares a
//! subject with a list. Never: how permissions are rendered.

use weir_authz::capability::{Actions, Capability, Scope};
use weir_authz::{Action, ChannelRegex, Claims, Grants, NamespaceRules, Permissions};
use weir_nats::RoomName;
use weir_nats::subject::user_token;

use crate::rng::Rng;

/// What can be done in a room.
pub(crate) const ACTIONS: [Action; 4] = [
    Action::Subscribe,
    Action::Publish,
    Action::History,
    Action::Presence,
];
const NAMESPACES: [Option<&str>; 4] = [None, Some("chat"), Some("a-_9"), Some("numbers")];
const USERS: [&str; 8] = ["ann", "bob", "ann@x.org", "_", "ü", "a.b", "*", ">"];
const IDS: [&str; 28] = [
    "a",
    "lobby",
    "42",
    "7",
    "é",
    "日本語",
    "مرحبا",
    "हिन्दी",
    "ไทย",
    "한국어",
    "עברית",
    "Ελλάδα",
    "Привет",
    "አማርኛ",
    "a$b",
    "🙂",
    "a.b",
    "a b",
    "*",
    ">",
    "x=2Ey",
    "=24a",
    "_",
    "a#ann",
    "b#bob,ann",
    "#ann",
    "c#",
    "#ü",
];

/// One token, the namespaces of a configuration, and rooms.
pub(crate) struct World {
    pub(crate) claims: Claims,
    pub(crate) namespaces: Vec<(Option<&'static str>, NamespaceRules)>,
    pub(crate) rooms: Vec<RoomName>,
}

impl World {
    /// Made of a seed. Users that cannot log in natively are left out.
    pub(crate) fn new(
        rng: &mut Rng,
        namespaces: Vec<(Option<&'static str>, NamespaceRules)>,
    ) -> Self {
        let mut rooms = Vec::new();
        for _ in 0..12 {
            rooms.push(room(rng));
        }
        let mut claims = Claims::anonymous();
        claims.user = rng.pick(&USERS).unwrap().to_owned();
        for _ in 0..rng.below(5) {
            let mut actions = Actions::NONE;
            for action in ACTIONS {
                if rng.below(2) == 0 {
                    actions = actions.and(action);
                }
            }
            let scope = if rng.below(3) == 0 {
                Scope::Namespace(rng.pick(&NAMESPACES).unwrap().map(str::to_owned))
            } else {
                Scope::Room(rng.pick(&rooms).unwrap())
            };
            claims.capabilities.push(Capability { scope, actions });
        }
        Self {
            claims,
            namespaces,
            rooms,
        }
    }

    /// The configuration's part.
    pub(crate) fn namespaces(rng: &mut Rng) -> Vec<(Option<&'static str>, NamespaceRules)> {
        NAMESPACES.map(|name| (name, rules(rng, name))).to_vec()
    }

    /// What a namespace's options say.
    pub(crate) fn rules(&self, room: &RoomName) -> &NamespaceRules {
        let mut all = self.namespaces.iter();
        &all.find(|(name, _)| *name == room.namespace()).unwrap().1
    }

    /// What a socket with this token may do; who may subscribe has.
    pub(crate) fn socket_may(&self, action: Action, room: &RoomName) -> bool {
        let (rules, grants) = (self.rules(room), Grants::of(&self.claims, false));
        let may = |action, subscribed| grants.check(action, room, rules, subscribed).is_ok();
        rules.takes(room) && may(action, may(Action::Subscribe, false))
    }

    /// True where only a socket can tell: rights that come from a name or a pattern, in a room that the
    /// token does not name.
    pub(crate) fn is_for_sockets(&self, room: &RoomName) -> bool {
        let by_name = room.is_private() || room.limited_to().is_some();
        let is_named = |capability: &Capability| capability.scope == Scope::Room(room.clone());
        (by_name || self.rules(room).channel_regex.is_some())
            && !self.claims.capabilities.iter().any(is_named)
    }
}

/// The subject of an action in a room, and whether it is published on.
pub(crate) fn subjects(user: &str, action: Action, room: &RoomName) -> Vec<(bool, String)> {
    let user = user_token(user);
    match action {
        Action::Subscribe => vec![
            (false, room.live_subject()),
            (false, room.ephemeral_subject()),
        ],
        Action::Presence => vec![(false, room.subject("who"))],
        Action::Publish => vec![(true, room.subject(&format!("say.{user}")))],
        Action::History => vec![(true, room.subject(&format!("history.{user}")))],
    }
}

/// True if a list holds a subject, as nats-server compares them: token by token, where `*` in the list is any
/// one token and `>` the rest.
pub(crate) fn allows(permissions: &Permissions, publish: bool, subject: &str) -> bool {
    let list = if publish {
        permissions.publish()
    } else {
        permissions.subscribe()
    };
    list.iter().any(|allowed| matches(allowed, subject))
}

fn matches(allowed: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for allowed in allowed.split('.') {
        match (allowed, tokens.next()) {
            (">", found) => return found.is_some(),
            ("*", Some(_)) => {}
            (allowed, Some(token)) if allowed == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

fn room(rng: &mut Rng) -> RoomName {
    let mark = if rng.below(4) == 0 { "$" } else { "" };
    let namespace = rng.pick(&NAMESPACES).unwrap();
    let namespace = namespace.map(|name| format!("{name}:")).unwrap_or_default();
    let nth = usize::try_from(rng.below(IDS.len() as u64 + 1)).unwrap();
    // The last is one whose token is a hash.
    let id = IDS
        .get(nth)
        .map_or_else(|| "é".repeat(80), ToString::to_string);
    RoomName::parse(&format!("{mark}{namespace}{id}")).unwrap()
}

fn rules(rng: &mut Rng, name: Option<&str>) -> NamespaceRules {
    let mut coin = || rng.below(3) == 0;
    NamespaceRules {
        allow_subscribe_for_client: coin(),
        allow_subscribe_for_anonymous: coin(),
        allow_publish_for_subscriber: coin(),
        allow_publish_for_client: coin(),
        allow_publish_for_anonymous: coin(),
        allow_history_for_subscriber: coin(),
        allow_history_for_client: coin(),
        allow_history_for_anonymous: coin(),
        allow_presence_for_subscriber: coin(),
        allow_presence_for_client: coin(),
        allow_presence_for_anonymous: coin(),
        allow_user_limited_channels: coin(),
        channel_regex: (name == Some("numbers")).then(|| ChannelRegex::parse("^[0-9]+$").unwrap()),
    }
}
