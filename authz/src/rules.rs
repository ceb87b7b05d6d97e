//! Knows: what a namespace's options say of who may do what, and which names it has. Never: users, tokens.

use regex::{Regex, RegexBuilder};
use weir_nats::RoomName;

use crate::grants::Action;

/// Bytes that a `channel_regex` may take compiled.
const PATTERN_MAX_BYTES: usize = 1 << 20;

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
    /// The application is asked who may subscribe. Of the rules above, that of subscribing then counts
    /// for nobody.
    pub subscribe_proxy_enabled: bool,
    /// The application is asked who may publish what; the same.
    pub publish_proxy_enabled: bool,
    /// What names of rooms must match; `None` takes all.
    pub channel_regex: Option<ChannelRegex>,
}

impl NamespaceRules {
    /// True if the application is asked about an action.
    pub(crate) fn asks(&self, action: Action) -> bool {
        match action {
            Action::Subscribe => self.subscribe_proxy_enabled,
            Action::Publish => self.publish_proxy_enabled,
            Action::History | Action::Presence => false,
        }
    }

    /// True if the namespace has a room of this name: else error 107.
    #[must_use]
    pub fn takes(&self, room: &RoomName) -> bool {
        self.channel_regex
            .as_ref()
            .is_none_or(|regex| regex.matches(room))
    }
}

/// `channel_regex`: what a room's name must match after its namespace.
#[derive(Clone, Debug)]
pub struct ChannelRegex(Regex);

impl ChannelRegex {
    /// Reads one. RE2's syntax; matching takes time linear in the name's length.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(text)
            .size_limit(PATTERN_MAX_BYTES)
            .build();
        regex.map(Self).map_err(|error| error.to_string())
    }

    /// As in Centrifugo, the namespace and the mark before it are not looked at.
    fn matches(&self, room: &RoomName) -> bool {
        self.0.is_match(room.id())
    }
}

impl PartialEq for ChannelRegex {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for ChannelRegex {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_takes_what_its_pattern_matches() {
        let rules = NamespaceRules {
            channel_regex: Some(ChannelRegex::parse("^[0-9]+$").unwrap()),
            ..NamespaceRules::default()
        };
        for (name, takes) in [("chat:12", true), ("$chat:12", true), ("chat:1a", false)] {
            assert_eq!(rules.takes(&RoomName::parse(name).unwrap()), takes);
        }
        assert!(NamespaceRules::default().takes(&RoomName::parse("x").unwrap()));
        assert!(ChannelRegex::parse("(").is_err());
        assert!(ChannelRegex::parse("(a{1000}){1000}").is_err());
    }
}
