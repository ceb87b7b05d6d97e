//! Knows: what operators order about those who are connected: tokens that are no longer valid, connections and
//! subscriptions that end. Whom an order is about, and how long it is kept. Never: sockets, how it is carried out.
//!
//! An order is written into the KV bucket `weir` first and read by every process ([`watch`]), so that one that was
//! cut off learns of it before it serves anything else.

pub mod book;
pub mod give;
pub mod kick;
mod revocations;
pub mod service;
pub mod watch;

use std::time::Duration;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ambient::now_ms;
use crate::subject::{RoomName, USER_NAME_MAX_BYTES, escape, to_nfc, user_token};

pub use revocations::{Matcher, Revocations, TokenFacts};

/// How long an end of connections or subscriptions is kept for processes that are cut off. One that was cut off for
/// longer sends all its clients to connect again.
pub const ENDS_KEPT: Duration = Duration::from_secs(600);
/// How long a revocation is kept where nothing else is said: tokens that live longer are valid again then.
pub const REVOCATIONS_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// The longest that a revocation can be kept.
pub const KEPT_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Bytes of a token's id (`jti`).
pub const TOKEN_ID_MAX_BYTES: usize = 1_024;
/// Bytes of a reason, and of who ordered.
pub const TEXT_MAX_BYTES: usize = 512;
/// Bytes of a token's id as CONNZ and keys of the bucket show it; longer ones are shown by a hash.
const SHOWN_ID_MAX_BYTES: usize = 128;
/// How far in the future `issued_before` may be: beyond it, it would refuse tokens that nobody has made yet.
const AHEAD_MAX_S: i64 = 60;
/// By how much clocks may differ of who orders and of who has the connection.
pub const CLOCK_AHEAD_MS: i64 = 2_000;

/// Why an order is not given. Each text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Nothing or nobody is named.
    #[error("name whom it is about: {0}")]
    Nobody(&'static str),
    /// The anonymous user has no tokens of its own.
    #[error(
        "user: it is empty, and people without a name have no tokens in common; name token_id or issued_before, or use disconnect"
    )]
    Anonymous,
    /// No user, token or room can be called so.
    #[error("{what}: {why}")]
    Name {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Not yet come.
    #[error(
        "issued_before: it is {0} s from now, so it would refuse tokens that are still to be made; name a time that has come"
    )]
    Future(i64),
    /// Both at once.
    #[error(
        "token_id names one token; leave out user and issued_before, or revoke them by an order of their own"
    )]
    Both,
    /// Too short or too long.
    #[error("ttl: write a time from 1 s to 10 years, as long as the tokens are valid")]
    Ttl,
}

/// Tokens that are no longer valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revoked {
    /// A user's tokens that were issued before a time, in seconds since 1970, and those that do not say when.
    User {
        /// The user.
        user: String,
        /// Not those of this second and later.
        issued_before_s: i64,
    },
    /// The one with this id (`jti`).
    Token {
        /// Its id.
        id: String,
    },
    /// Everybody's that were issued before a time, in seconds since 1970, and those that do not say when.
    Issued {
        /// Not those of this second and later.
        before_s: i64,
    },
}

/// Whose connections, or subscriptions. All that is given must be so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whose {
    /// This user's; empty is the anonymous one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// In this room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// Of the connection with this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// What is ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Tokens are no longer valid, and what they opened ends.
    Revoke(Revoked),
    /// Connections end.
    Disconnect {
        /// Whose.
        whose: Whose,
        /// Clients come back by themselves (3011); else they do not (3503).
        #[serde(default)]
        reconnect: bool,
    },
    /// Subscriptions end (2000).
    Unsubscribe {
        /// Whose; without a room, all of a connection.
        whose: Whose,
    },
}

/// An order: never changed once written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What is ordered.
    pub what: What,
    /// When it was given, in milliseconds since 1970.
    pub at_ms: i64,
    /// Until when it is kept, in milliseconds since 1970.
    pub until_ms: i64,
    /// Who gave it, as far as that is known.
    pub by: String,
    /// Why, in the words of who gave it; may be empty.
    #[serde(default)]
    pub reason: String,
}

impl Revoked {
    /// By what operators name.
    ///
    /// # Errors
    /// When nothing is named, or it is none.
    pub fn new(
        user: Option<&str>,
        token_id: Option<&str>,
        issued_before_s: Option<i64>,
    ) -> Result<Self, OrderError> {
        let now_s = now_ms() / 1_000;
        if let Some(before_s) = issued_before_s
            && before_s > now_s + AHEAD_MAX_S
        {
            return Err(OrderError::Future(before_s - now_s));
        }
        match (user, token_id, issued_before_s) {
            (None, Some(id), None) => {
                let why = match id.len() {
                    0 => Some("it is empty".to_owned()),
                    bytes if bytes > TOKEN_ID_MAX_BYTES => {
                        Some(format!("it is longer than {TOKEN_ID_MAX_BYTES} bytes"))
                    }
                    _ => None,
                };
                let what = "token_id";
                match why {
                    Some(why) => Err(OrderError::Name { what, why }),
                    None => Ok(Self::Token { id: id.to_owned() }),
                }
            }
            (_, Some(_), _) => Err(OrderError::Both),
            (Some(""), None, _) => Err(OrderError::Anonymous),
            (Some(user), None, before_s) => Ok(Self::User {
                user: checked_user(user)?,
                // A token of this very second may be of before the order or of after it.
                issued_before_s: before_s.unwrap_or(now_s + 1),
            }),
            (None, None, Some(before_s)) => Ok(Self::Issued { before_s }),
            (None, None, None) => Err(OrderError::Nobody("user, token_id or issued_before")),
        }
    }
}

fn checked_user(user: &str) -> Result<String, OrderError> {
    let why = if user.len() > USER_NAME_MAX_BYTES {
        format!("it is longer than {USER_NAME_MAX_BYTES} bytes")
    } else if user.chars().any(char::is_control) {
        "it has control characters".to_owned()
    } else {
        return Ok(to_nfc(user));
    };
    Err(OrderError::Name { what: "user", why })
}

impl Whose {
    /// By what operators name.
    ///
    /// # Errors
    /// When nothing is named, or it is none.
    pub fn new(
        user: Option<&str>,
        room: Option<&str>,
        client: Option<&str>,
    ) -> Result<Self, OrderError> {
        if user.is_none() && room.is_none() && client.is_none() {
            return Err(OrderError::Nobody("user, channel or client"));
        }
        let name = |what, why: String| OrderError::Name { what, why };
        let room = room.map(|room| {
            let name = RoomName::parse(room).map_err(|error| name("channel", error.to_string()));
            name.map(|room| room.channel().to_owned())
        });
        if client.is_some_and(|client| client.is_empty() || client.len() > 64) {
            return Err(name(
                "client",
                "it is no id of a connection, which is 36 characters".to_owned(),
            ));
        }
        Ok(Self {
            user: user.map(checked_user).transpose()?,
            room: room.transpose()?,
            client: client.map(str::to_owned),
        })
    }
}

impl Order {
    /// A new order, kept for `ttl`; see [`REVOCATIONS_KEPT`] and [`ENDS_KEPT`].
    ///
    /// # Errors
    /// When it would be kept for nothing or too long.
    pub fn new(what: What, ttl: Duration, by: &str, reason: &str) -> Result<Self, OrderError> {
        if ttl < Duration::from_secs(1) || ttl > KEPT_MAX {
            return Err(OrderError::Ttl);
        }
        let at_ms = now_ms();
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        Ok(Self {
            what,
            at_ms,
            until_ms: at_ms.saturating_add(ttl_ms),
            by: shortened(by),
            reason: shortened(reason),
        })
    }

    /// The key of the bucket below `control.`. An order that covers another of the same kind has the same.
    #[must_use]
    pub fn key(&self) -> String {
        match &self.what {
            What::Revoke(Revoked::User { user, .. }) => format!("revoke.user.{}", user_token(user)),
            What::Revoke(Revoked::Token { id }) => format!("revoke.token.{}", token_key(id)),
            What::Revoke(Revoked::Issued { .. }) => "revoke.issued".to_owned(),
            What::Disconnect { .. } | What::Unsubscribe { .. } => {
                let json = serde_json::to_vec(&self.what).expect("plain fields become JSON");
                format!("end.{}", HEXLOWER.encode(&Sha256::digest(json)[..16]))
            }
        }
    }

    /// This one, and what one before it under the same key still forbids.
    #[must_use]
    pub fn with(mut self, before: &Self) -> Self {
        self.until_ms = self.until_ms.max(before.until_ms);
        match (&mut self.what, &before.what) {
            (
                What::Revoke(Revoked::User {
                    issued_before_s, ..
                }),
                What::Revoke(Revoked::User {
                    issued_before_s: earlier_s,
                    ..
                }),
            )
            | (
                What::Revoke(Revoked::Issued {
                    before_s: issued_before_s,
                }),
                What::Revoke(Revoked::Issued {
                    before_s: earlier_s,
                }),
            ) => *issued_before_s = (*issued_before_s).max(*earlier_s),
            _ => {}
        }
        self
    }

    /// True once nobody needs it any more.
    #[must_use]
    pub fn is_over(&self, now_ms: i64) -> bool {
        now_ms > self.until_ms
    }

    /// The user whom it is about, if it is about one only.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        match &self.what {
            What::Revoke(Revoked::User { user, .. }) => Some(user),
            What::Revoke(Revoked::Token { .. } | Revoked::Issued { .. }) => None,
            What::Disconnect { whose, .. } | What::Unsubscribe { whose } => whose.user.as_deref(),
        }
    }

    /// True if a connection that began then is meant: one that came after an end was ordered is not.
    #[must_use]
    pub fn reaches(&self, began_ms: i64) -> bool {
        began_ms <= self.at_ms.saturating_add(CLOCK_AHEAD_MS)
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Revoke(Revoked::User {
                user,
                issued_before_s,
            }) => write!(
                f,
                "revoke the tokens of user {user:?} issued before {issued_before_s}"
            ),
            Self::Revoke(Revoked::Token { id }) => write!(f, "revoke the token {id:?}"),
            Self::Revoke(Revoked::Issued { before_s }) => {
                write!(f, "revoke all tokens issued before {before_s}")
            }
            Self::Disconnect { whose, reconnect } => {
                let how = if *reconnect {
                    "send to reconnect"
                } else {
                    "disconnect"
                };
                write!(f, "{how} {whose}")
            }
            Self::Unsubscribe { whose } => write!(f, "unsubscribe {whose}"),
        }
    }
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            ("user", &self.user),
            ("channel", &self.room),
            ("client", &self.client),
        ];
        let mut first = true;
        for (name, value) in parts {
            if let Some(value) = value {
                let space = if first { "" } else { " " };
                write!(f, "{space}{name} {value:?}")?;
                first = false;
            }
        }
        Ok(())
    }
}

/// A token's id (`jti`) as CONNZ and keys of the bucket show it: escaped as in subjects, or by a hash.
#[must_use]
pub fn token_key(id: &str) -> String {
    let key = escape(id);
    if key.len() <= SHOWN_ID_MAX_BYTES {
        return key;
    }
    format!("=h{}", BASE32_NOPAD.encode(&Sha256::digest(key.as_bytes())))
}

/// At most [`TEXT_MAX_BYTES`], at a character's end.
fn shortened(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(what: What, ttl_s: u64) -> Order {
        Order::new(what, Duration::from_secs(ttl_s), "ops", "").unwrap()
    }

    #[test]
    fn what_is_named_is_one_kind_of_order() {
        let now_s = now_ms() / 1_000;
        let long = "x".repeat(129);
        let cases = [
            ((Some("ann"), None, None), true),
            ((Some("ann"), None, Some(5)), true),
            ((None, Some("j1"), None), true),
            ((None, None, Some(5)), true),
            ((None, None, Some(now_s + 30)), true),
            ((None, None, None), false),
            ((None, None, Some(now_s + 100)), false),
            ((Some(""), None, None), false),
            ((Some("a\nb"), None, None), false),
            ((Some(long.as_str()), None, None), false),
            ((None, Some(""), None), false),
            ((Some("ann"), Some("j1"), None), false),
            ((None, Some("j1"), Some(5)), false),
        ];
        for ((user, id, before), good) in cases {
            let found = Revoked::new(user, id, before);
            assert_eq!(found.is_ok(), good, "{user:?} {id:?} {before:?}: {found:?}");
        }
        assert!(Whose::new(None, None, None).is_err());
        assert!(
            Whose::new(Some(""), None, None).is_ok(),
            "nobody in particular"
        );
        assert!(Whose::new(None, Some("chat:a"), None).is_ok());
        assert!(Whose::new(None, Some(""), None).is_err());
        assert!(Whose::new(None, None, Some("")).is_err());
        let what = || What::Revoke(Revoked::new(Some("ann"), None, None).unwrap());
        for ttl in [Duration::ZERO, KEPT_MAX * 2] {
            assert_eq!(Order::new(what(), ttl, "", "").err(), Some(OrderError::Ttl));
        }
    }

    #[test]
    fn a_user_revoked_now_can_have_a_token_of_the_next_second() {
        let before = now_ms() / 1_000;
        let Revoked::User {
            issued_before_s, ..
        } = Revoked::new(Some("ann"), None, None).unwrap()
        else {
            panic!("another kind");
        };
        let after = now_ms() / 1_000;
        assert!((before + 1..=after + 1).contains(&issued_before_s));
    }

    #[test]
    fn a_later_order_never_forgives_what_an_earlier_one_forbids() {
        let of = |before_s, ttl_s| {
            let user = "a b".to_owned();
            let what = What::Revoke(Revoked::User {
                user,
                issued_before_s: before_s,
            });
            order(what, ttl_s)
        };
        let (long, short) = (of(100, 9_000), of(50, 10));
        assert_eq!(
            (long.key(), short.key()),
            ("revoke.user.a=20b".into(), long.key())
        );
        let both = short.with(&long);
        assert_eq!(both.until_ms, long.until_ms);
        assert_eq!(both.what, long.what);
        let end = |user: &str, reconnect| {
            let whose = Whose::new(Some(user), None, None).unwrap();
            order(What::Disconnect { whose, reconnect }, 10).key()
        };
        assert_eq!(end("ann", false), end("ann", false));
        assert_ne!(end("ann", false), end("ann", true));
        assert_ne!(end("ann", false), end("bob", false));
    }

    #[test]
    fn ids_of_tokens_are_short() {
        assert_eq!(token_key("a:b c"), "a=3Ab=20c");
        assert_eq!(token_key(""), "");
        assert!(token_key(&"é".repeat(100)).len() < 64);
    }
}
