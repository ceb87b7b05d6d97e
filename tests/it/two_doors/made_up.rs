//! Knows: rooms, namespaces and tokens that are made up, and how subjects spell a name. Never: who may do what.

use serde_json::{Value, json};

use crate::harness::Rng;

/// `""` are rooms without one; the last takes names of digits only.
const NAMESPACES: [&str; 6] = ["", "open", "a-_9", "half", "Most", "digits"];
pub(super) const USERS: [&str; 8] = ["ann", "bob", "ann@x.org", "_", "ü", "a.b", "*", ">"];
const IDS: [&str; 24] = [
    "a",
    "42",
    "7",
    "é",
    "日本語",
    "مرحبا",
    "हिन्दी",
    "ไทย",
    "한국어",
    "Привет",
    "🙂",
    "a.b",
    "a b",
    "*",
    ">",
    "x=2Ey",
    "=24a",
    "_",
    "a$b",
    "a#ann",
    "b#bob,ann",
    "#ann",
    "c#",
    "#ü",
];

/// A room, or a name that the namespace does not take.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Room {
    pub(super) channel: String,
    namespace: &'static str,
    id: &'static str,
    is_private: bool,
}

impl Room {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let is_private = rng.below(4) == 0;
        let (namespace, id) = (rng.pick(&NAMESPACES).unwrap(), rng.pick(&IDS).unwrap());
        let mark = if is_private { "$" } else { "" };
        let colon = if namespace.is_empty() { "" } else { ":" };
        Self {
            channel: format!("{mark}{namespace}{colon}{id}"),
            namespace,
            id,
            is_private,
        }
    }

    /// Who is named after `#`.
    fn limited_to(&self) -> Option<&'static str> {
        self.id.rsplit_once('#').map(|(_, users)| users)
    }

    /// How subjects end.
    pub(super) fn place(&self) -> String {
        let marks = [
            (self.is_private, "=24"),
            (self.limited_to().is_some(), "=23"),
        ];
        let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark);
        let namespace = if self.namespace.is_empty() {
            "_"
        } else {
            self.namespace
        };
        format!(
            "{}{namespace}.{}",
            marks.collect::<String>(),
            escape(self.id)
        )
    }

    /// A name or a pattern gives rights in it that no subject can say, unless the token names it.
    pub(super) fn is_for_sockets(&self, caps: &Value) -> bool {
        let is_named = caps.as_array().unwrap().iter().any(|one| {
            let channels = one["channels"].as_array();
            channels.is_some_and(|channels| channels.contains(&json!(self.channel)))
        });
        let by_name = self.is_private || self.limited_to().is_some();
        (by_name || self.namespace == "digits") && !is_named
    }

    /// Somebody who may be given the right to write there.
    pub(super) fn writer(&self) -> Option<&'static str> {
        let users = self.limited_to().unwrap_or("root");
        users.split(',').next().filter(|user| !user.is_empty())
    }
}

/// As subjects spell a name.
pub(super) fn escape(name: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => char::from(byte).to_string(),
        _ => format!("={byte:02X}"),
    };
    name.bytes().map(byte).collect()
}

pub(super) fn options(rng: &mut Rng) -> String {
    let mut text = String::new();
    for namespace in NAMESPACES {
        if namespace.is_empty() {
            text.push_str("[channel.without_namespace]\n");
        } else {
            text.push_str(&format!("[[channel.namespaces]]\nname = \"{namespace}\"\n"));
        }
        text.push_str("history_size = -1\nforce_recovery = true\n");
        if namespace == "digits" {
            text.push_str("channel_regex = \"^[0-9]+$\"\n");
        }
        for option in [
            "allow_subscribe_for_client",
            "allow_publish_for_subscriber",
            "allow_publish_for_client",
            "allow_history_for_subscriber",
            "allow_history_for_client",
            "allow_user_limited_channels",
        ] {
            text.push_str(&format!("{option} = {}\n", rng.below(3) == 0));
        }
    }
    text
}

pub(super) fn caps(rng: &mut Rng, rooms: &[Room]) -> Value {
    let mut caps = vec![json!({"channels": [super::END], "allow": ["sub"]})];
    for _ in 0..rng.below(6) {
        let words = ["sub", "pub", "hst"].into_iter();
        let allow: Vec<_> = words.filter(|_| rng.below(2) == 0).collect();
        caps.push(if rng.below(3) == 0 {
            json!({"namespaces": [rng.pick(&NAMESPACES).unwrap()], "allow": allow})
        } else {
            json!({"channels": [rng.pick(rooms).unwrap().channel], "allow": allow})
        });
    }
    Value::Array(caps)
}
