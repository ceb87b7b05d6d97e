//! Knows: rights that a token itself carries: one room or one whole namespace × actions. Never: rules of
//! namespaces, which grants add to them.

use serde::Deserialize;
use weir_nats::RoomName;
use weir_nats::subject::is_namespace;

use crate::grants::Action;
use crate::token::TokenError;

/// Rooms and namespaces that the capabilities of one token may name, together.
pub const CAPABILITY_PLACES_MAX: usize = 256;

/// Some of the four actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions(u8);

impl Actions {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// With one more.
    #[must_use]
    pub const fn and(self, action: Action) -> Self {
        Self(self.0 | Self::bit(action))
    }

    /// True if it is one of them.
    #[must_use]
    pub const fn has(self, action: Action) -> bool {
        self.0 & Self::bit(action) != 0
    }

    const fn bit(action: Action) -> u8 {
        1 << action as u8
    }

    fn parse(words: &[String]) -> Result<Self, TokenError> {
        let mut actions = Self::NONE;
        for word in words {
            actions = actions.and(match word.as_str() {
                "sub" => Action::Subscribe,
                "pub" => Action::Publish,
                "hst" => Action::History,
                "prs" => Action::Presence,
                _ => {
                    return Err(TokenError::Invalid(
                        "caps: allow may hold sub, pub, hst and prs only".to_owned(),
                    ));
                }
            });
        }
        Ok(actions)
    }
}

/// Where a capability holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In this one room, whatever marks its name has.
    Room(RoomName),
    /// In every room of a namespace whose name has no marks (`$`, `#`); `None` are rooms without one.
    Namespace(Option<String>),
}

/// What may be done where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Where.
    pub scope: Scope,
    /// What.
    pub actions: Actions,
}

/// One of `caps` as it is in a token. A field that is not known could be meant to narrow it, so a token
/// with one is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCapability {
    #[serde(default)]
    channels: Vec<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    allow: Vec<String>,
}

/// Reads `caps`.
pub(crate) fn read(raw: Vec<RawCapability>) -> Result<Vec<Capability>, TokenError> {
    let invalid = |why: &str| TokenError::Invalid(format!("caps: {why}"));
    let mut capabilities = Vec::new();
    for raw in raw {
        let actions = Actions::parse(&raw.allow)?;
        let places = raw.channels.len() + raw.namespaces.len();
        if capabilities.len() + places > CAPABILITY_PLACES_MAX {
            return Err(invalid("more than 256 rooms and namespaces"));
        }
        for channel in &raw.channels {
            let room = RoomName::parse(channel).map_err(|error| invalid(&error.to_string()))?;
            let scope = Scope::Room(room);
            capabilities.push(Capability { scope, actions });
        }
        for namespace in raw.namespaces {
            let scope = match namespace.as_str() {
                "" => Scope::Namespace(None),
                name if is_namespace(name) => Scope::Namespace(Some(namespace)),
                _ => return Err(invalid("a namespace is 2 to 64 of A-Z a-z 0-9 - _")),
            };
            capabilities.push(Capability { scope, actions });
        }
    }
    Ok(capabilities)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Vec<Capability>, TokenError> {
        let raw: Vec<RawCapability> =
            serde_json::from_str(json).map_err(|error| TokenError::Invalid(error.to_string()))?;
        read(raw)
    }

    #[test]
    fn rooms_and_namespaces() {
        let found = parse(
            r#"[{"channels":["chat:a","$x"],"allow":["sub","hst"]},{"namespaces":["","chat"],"allow":["pub"]}]"#,
        );
        let found = found.unwrap();
        let reads = Actions::NONE.and(Action::Subscribe).and(Action::History);
        let room = |name| Scope::Room(RoomName::parse(name).unwrap());
        let scopes: Vec<_> = found.iter().map(|found| found.scope.clone()).collect();
        let expected = [
            room("chat:a"),
            room("$x"),
            Scope::Namespace(None),
            Scope::Namespace(Some("chat".to_owned())),
        ];
        assert_eq!(scopes, expected);
        assert_eq!(found[1].actions, reads);
        assert!(found[2].actions.has(Action::Publish) && !found[2].actions.has(Action::Subscribe));
    }

    #[test]
    fn what_is_none() {
        let long = format!(
            r#"[{{"channels":[{}"a"],"allow":["sub"]}}]"#,
            r#""a","#.repeat(256)
        );
        for bad in [
            r#"[{"channels":["a"],"allow":["subscribe"]}]"#,
            r#"[{"channels":["a"]}]"#,
            r#"[{"channels":["news:*"],"match":"wildcard","allow":["sub"]}]"#,
            r#"[{"channels":[""],"allow":["sub"]}]"#,
            r#"[{"namespaces":["a.b"],"allow":["sub"]}]"#,
            r#"[{"namespaces":["$chat"],"allow":["sub"]}]"#,
            r#"[{"namespaces":["_"],"allow":["sub"]}]"#,
            r#"[{"namespaces":["*"],"allow":["sub"]}]"#,
            &long,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("[]").unwrap(), []);
    }
}
