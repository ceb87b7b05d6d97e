//! Knows: room names and every subject string, both ways. Never: NATS, clocks, rights.

use std::fmt;
use std::sync::Arc;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};
use unicode_normalization::{UnicodeNormalization as _, is_nfc};

use crate::partition::partition_of;

/// Longest room name, in bytes, as in Centrifugo (`channel.max_length`).
pub const ROOM_NAME_MAX_BYTES: usize = 255;
/// Longest escaped id token, in bytes; beyond it the token is a hash and the true name a header.
pub const ID_TOKEN_MAX_BYTES: usize = 200;
/// Longest user name, in bytes.
pub const USER_NAME_MAX_BYTES: usize = 128;

/// Why a text is no name. Every case is the client protocol's error 107.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all, or an empty id after the namespace.
    #[error("a name must not be empty")]
    Empty,
    /// More than the allowed number of bytes.
    #[error("a name must not be longer than 255 bytes")]
    TooLong,
    /// Not in Unicode normalization form C.
    #[error("a name must be in Unicode normalization form C (NFC)")]
    NotNfc,
    /// The namespace has a character that namespaces cannot have.
    #[error("a namespace is 2 to 64 of A-Z a-z 0-9 - _")]
    BadNamespace,
    /// A subject token that this crate's escape would not have made.
    #[error("a subject token must be the strict escape of a name")]
    NotEscaped,
    /// The token is a hash and the header with the true name is missing or does not match.
    #[error("a hashed name needs the Room-Name header with the matching true name")]
    HashedName,
    /// Names whose token is a hash travel in a header, which cannot hold this one.
    #[error("a name this long must not hold line breaks or begin or end with a space")]
    NotHeaderSafe,
}

/// Escapes a name into one subject token: `[A-Za-z0-9_-]` stay, every other byte is `=XX`.
///
/// Injective; the empty text gives the empty token, which no subject can hold.
#[must_use]
pub fn escape(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut token = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            token.push(byte as char);
        } else {
            token.push('=');
            token.push(HEX[usize::from(byte >> 4)] as char);
            token.push(HEX[usize::from(byte & 15)] as char);
        }
    }
    token
}

/// Undoes [`escape`], strictly: a token that [`escape`] would not make is refused.
///
/// # Errors
/// [`NameError::NotEscaped`] for foreign bytes, lower-case hex, escapes of bytes that need none,
/// and bytes that are not UTF-8; [`NameError::NotNfc`] when the name is not in NFC.
pub fn unescape(token: &str) -> Result<String, NameError> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'=' => {
                let (Some(high), Some(low)) = (rest.next(), rest.next()) else {
                    return Err(NameError::NotEscaped);
                };
                let value = (hex(high)? << 4) | hex(low)?;
                if value.is_ascii_alphanumeric() || value == b'_' || value == b'-' {
                    return Err(NameError::NotEscaped);
                }
                bytes.push(value);
            }
            b'_' | b'-' => bytes.push(byte),
            _ if byte.is_ascii_alphanumeric() => bytes.push(byte),
            _ => return Err(NameError::NotEscaped),
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| NameError::NotEscaped)?;
    if is_nfc(&text) {
        Ok(text)
    } else {
        Err(NameError::NotNfc)
    }
}

fn hex(byte: u8) -> Result<u8, NameError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(NameError::NotEscaped),
    }
}

/// The token of a user: `_` for the anonymous (empty) user, `=5F` for a user named `_`.
#[must_use]
pub fn user_token(user: &str) -> String {
    match user {
        "" => "_".to_owned(),
        "_" => "=5F".to_owned(),
        _ => escape(user),
    }
}

/// Undoes [`user_token`].
///
/// # Errors
/// When the token is not the strict escape of a user name.
pub fn user_from_token(token: &str) -> Result<String, NameError> {
    match token {
        "" => Err(NameError::Empty),
        "_" => Ok(String::new()),
        "=5F" => Ok("_".to_owned()),
        _ => unescape(token),
    }
}

/// A room's name, checked: `ns:id`, or `id` in the default namespace, with Centrifugo's marks
/// (`$` before the name is private, `#` in the id is limited to users). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomName {
    channel: Arc<str>,
    /// Where the namespace begins and ends in `channel`; equal when there is none.
    namespace: (u16, u16),
}

impl RoomName {
    /// Checks a channel name as a client sends it.
    ///
    /// # Errors
    /// When it is empty, longer than 255 bytes, not NFC, has an impossible namespace, or is so
    /// long that it travels in a header and has line breaks or outer spaces.
    pub fn parse(channel: &str) -> Result<Self, NameError> {
        if channel.is_empty() {
            return Err(NameError::Empty);
        }
        if channel.len() > ROOM_NAME_MAX_BYTES {
            return Err(NameError::TooLong);
        }
        if !is_nfc(channel) {
            return Err(NameError::NotNfc);
        }
        let start = usize::from(channel.starts_with('$'));
        let rest = &channel[start..];
        let (namespace, id) = match rest.split_once(':') {
            Some((namespace, id)) => {
                if !is_namespace(namespace) {
                    return Err(NameError::BadNamespace);
                }
                ((start, start + namespace.len()), id)
            }
            None => ((start, start), rest),
        };
        if id.is_empty() {
            return Err(NameError::Empty);
        }
        let name = Self {
            channel: Arc::from(channel),
            namespace: (to_u16(namespace.0), to_u16(namespace.1)),
        };
        let header_safe = !channel.contains(['\r', '\n', '\0']) && channel.trim() == channel;
        if name.has_hashed_token() && !header_safe {
            return Err(NameError::NotHeaderSafe);
        }
        Ok(name)
    }

    /// Rebuilds a name from the last two tokens of a subject, and the `Room-Name` header which a
    /// hashed id needs.
    ///
    /// # Errors
    /// When a token is not a strict escape, or the header is needed and does not match.
    pub fn from_tokens(ns: &str, id: &str, header: Option<&str>) -> Result<Self, NameError> {
        if let Some(hash) = id.strip_prefix("=h") {
            let name = Self::parse(header.ok_or(NameError::HashedName)?)?;
            let matches =
                name.has_hashed_token() && name.tokens() == (ns.to_owned(), format!("=h{hash}"));
            return if matches {
                Ok(name)
            } else {
                Err(NameError::HashedName)
            };
        }
        let (mut marks, mut plain) = ("", ns);
        if let Some(rest) = plain.strip_prefix("=24") {
            (marks, plain) = ("$", rest);
        }
        if let Some(rest) = plain.strip_prefix("=23") {
            plain = rest;
        }
        let id = unescape(id)?;
        let channel = match plain {
            "_" => format!("{marks}{id}"),
            _ => format!("{marks}{plain}:{id}"),
        };
        let name = Self::parse(&channel)?;
        // One name, one subject: anything that would not come out again the same is refused, so is an
        // id in full that is long enough for a hash.
        if name.namespace_token() == ns && !name.has_hashed_token() {
            Ok(name)
        } else {
            Err(NameError::NotEscaped)
        }
    }

    /// The whole name, as clients spell it.
    #[must_use]
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// The namespace, or `None` for the default one.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        let (start, end) = (usize::from(self.namespace.0), usize::from(self.namespace.1));
        (start != end).then(|| &self.channel[start..end])
    }

    /// What follows the namespace.
    #[must_use]
    pub fn id(&self) -> &str {
        let end = usize::from(self.namespace.1);
        if self.namespace.0 == self.namespace.1 {
            &self.channel[end..]
        } else {
            &self.channel[end + 1..]
        }
    }

    /// Marked with `$`: subscribing needs a subscription token.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.channel.starts_with('$')
    }

    /// The part after the last `#`, a comma-separated list of users, if there is one.
    #[must_use]
    pub fn limited_to(&self) -> Option<&str> {
        self.id().rsplit_once('#').map(|(_, users)| users)
    }

    /// True when the id's token is a hash, so that messages carry the name in a header.
    #[must_use]
    pub fn has_hashed_token(&self) -> bool {
        self.id().len() * 3 > ID_TOKEN_MAX_BYTES && escape(self.id()).len() > ID_TOKEN_MAX_BYTES
    }

    /// The namespace token: marks, then the namespace, or `_` for the default one.
    #[must_use]
    pub fn namespace_token(&self) -> String {
        let mut token = String::new();
        if self.is_private() {
            token.push_str("=24");
        }
        if self.limited_to().is_some() {
            token.push_str("=23");
        }
        token.push_str(self.namespace().unwrap_or("_"));
        token
    }

    /// The id token: the escape, or `=h` and the base32 of its SHA-256 when that is too long.
    #[must_use]
    pub fn id_token(&self) -> String {
        let token = escape(self.id());
        if token.len() <= ID_TOKEN_MAX_BYTES {
            return token;
        }
        format!(
            "=h{}",
            BASE32_NOPAD.encode(&Sha256::digest(token.as_bytes()))
        )
    }

    /// Both tokens, as they end every subject of this room.
    #[must_use]
    pub fn tokens(&self) -> (String, String) {
        (self.namespace_token(), self.id_token())
    }

    /// `<kind>.<ns>.<id>`: `room` for live copies, `eph` for what is not stored, `who` for joins.
    #[must_use]
    pub fn subject(&self, kind: &str) -> String {
        format!("{kind}.{}.{}", self.namespace_token(), self.id_token())
    }

    /// `room.<ns>.<id>`, where every stored message appears live.
    #[must_use]
    pub fn live_subject(&self) -> String {
        self.subject("room")
    }

    /// `eph.<ns>.<id>`, for what is not stored.
    #[must_use]
    pub fn ephemeral_subject(&self) -> String {
        self.subject("eph")
    }

    /// `log.<log>.<p>.<ns>.<id>`, the subject that the stream stores.
    #[must_use]
    pub fn stored_subject(&self, log: &str) -> String {
        let (ns, id) = self.tokens();
        format!("log.{log}.{}.{ns}.{id}", partition_of(&ns, &id))
    }

    /// The room's partition, stable for ever.
    #[must_use]
    pub fn partition(&self) -> u8 {
        let (ns, id) = self.tokens();
        partition_of(&ns, &id)
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.channel())
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.channel())
    }
}

/// True for a text that can name a namespace: `[-a-zA-Z0-9_]{2,64}`, as in Centrifugo.
#[must_use]
pub fn is_namespace(text: &str) -> bool {
    (2..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Brings a text to the normalization form that names need.
#[must_use]
pub fn to_nfc(text: &str) -> String {
    text.nfc().collect()
}

fn to_u16(index: usize) -> u16 {
    u16::try_from(index).expect("a name has at most 255 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(channel: &str, ns: &str, id: &str) {
        let name = RoomName::parse(channel).unwrap();
        assert_eq!(name.tokens(), (ns.to_owned(), id.to_owned()), "{channel}");
        assert_eq!(RoomName::from_tokens(ns, id, Some(channel)).unwrap(), name);
    }

    #[test]
    fn names_become_tokens_and_back() {
        check("chat:lobby", "chat", "lobby");
        check("lobby", "_", "lobby");
        check("$lobby", "=24_", "lobby");
        check("$chat:x", "=24chat", "x");
        check("chat:a#u1,u2", "=23chat", "a=23u1=2Cu2");
        check("$chat:a#1", "=24=23chat", "a=231");
        check("#42", "=23_", "=2342");
        check("chat:a.b*>", "chat", "a=2Eb=2A=3E");
        check("chat:é😀 \0", "chat", "=C3=A9=F0=9F=98=80=20=00");
        check("chat:a:b", "chat", "a=3Ab");
        let long = format!("chat:{}", "é".repeat(100));
        let name = RoomName::parse(&long).unwrap();
        assert!(name.has_hashed_token());
        check(&long, "chat", &name.id_token());
        assert!(name.id_token().len() < 64);
    }

    #[test]
    fn what_is_no_name() {
        let cases = [
            ("", NameError::Empty),
            ("chat:", NameError::Empty),
            ("$", NameError::Empty),
            (":x", NameError::BadNamespace),
            ("a b:x", NameError::BadNamespace),
            ("e\u{301}", NameError::NotNfc),
        ];
        for (text, error) in cases {
            assert_eq!(RoomName::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(RoomName::parse(&"x".repeat(256)), Err(NameError::TooLong));
        assert!(RoomName::parse(&"x".repeat(255)).is_ok());
    }

    #[test]
    fn a_token_that_is_no_strict_escape_is_refused() {
        for token in [
            "*", ">", "a.b", "=2e", "=61", "=", "=2", "a b", "=FF", "=5F",
        ] {
            assert!(unescape(token).is_err(), "{token}");
        }
        assert!(RoomName::from_tokens("chat", "=hABC", None).is_err());
        assert!(RoomName::from_tokens("=23chat", "plain", None).is_err());
        assert!(RoomName::from_tokens("chat", "a=23b", None).is_err());
        assert!(RoomName::from_tokens("*", "x", None).is_err());
        // Long enough for a hash: in full it would be a second subject of the same room.
        let long = "x".repeat(201);
        let room = RoomName::parse(&format!("chat:{long}")).unwrap();
        assert!(room.tokens().1.starts_with("=h"));
        assert!(RoomName::from_tokens("chat", &long, None).is_err());
        assert!(RoomName::from_tokens("chat", &"x".repeat(200), None).is_ok());
    }

    #[test]
    fn users_have_tokens() {
        for user in ["", "_", "dev1", "ann@example.org", "ü"] {
            assert_eq!(user_from_token(&user_token(user)).unwrap(), user);
        }
        assert_eq!(user_token(""), "_");
        assert_eq!(user_token("_"), "=5F");
    }

    #[test]
    fn subjects() {
        let name = RoomName::parse("chat:lobby").unwrap();
        assert_eq!(name.live_subject(), "room.chat.lobby");
        assert!(name.stored_subject("rooms").starts_with("log.rooms."));
        assert!(name.stored_subject("rooms").ends_with(".chat.lobby"));
    }
}
