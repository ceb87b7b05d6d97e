//! Knows: a message, and its NATS headers both ways. Never: sockets, frames, rows.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use async_nats::header::HeaderValue;
use bytes::Bytes;

use crate::position::Seq;
use crate::subject::{NameError, RoomName};

/// Header names that Weir stamps. Everything a client controls is the body.
pub mod header {
    /// The author's user name; absent for the anonymous user.
    pub const USER: &str = "Weir-User";
    /// The author's connection id; absent for a native client.
    pub const CLIENT: &str = "Weir-Client";
    /// The author's public info (JSON), from the token; behind a space that of this room, if a
    /// subscription token gave one ([`super::join_info`]).
    pub const INFO: &str = "Weir-Info";
    /// Tags, a JSON object of strings.
    pub const TAGS: &str = "Weir-Tags";
    /// Through which door it came: `socket`, `nats` or `api`.
    pub const DOOR: &str = "Weir-Door";
    /// The true room name where the id token is a hash.
    pub const ROOM_NAME: &str = "Room-Name";
    /// The id under which the stream drops a second copy.
    pub const MSG_ID: &str = "Nats-Msg-Id";
    /// Set by the server on live copies and on direct reads.
    pub const STREAM: &str = "Nats-Stream";
    /// The stored subject, set by the server.
    pub const SUBJECT: &str = "Nats-Subject";
    /// The message's sequence, set by the server.
    pub const SEQUENCE: &str = "Nats-Sequence";
    /// The stored time, set by the server.
    pub const TIME: &str = "Nats-Time-Stamp";
    /// The subject's sequence before this one, set by the server.
    pub const LAST_SEQUENCE: &str = "Nats-Last-Sequence";
    /// How many messages of the subject follow, set by the server on direct reads.
    pub const NUM_PENDING: &str = "Nats-Num-Pending";
}

/// Through which door a message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// A browser's or an SDK's socket.
    Socket,
    /// A `say` request over NATS or MQTT.
    Nats,
    /// The server API.
    Api,
}

impl Door {
    /// As written in the header and in rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Nats => "nats",
            Self::Api => "api",
        }
    }

    /// Undoes [`Door::as_str`]; an unknown text is the socket.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        match text {
            "nats" => Self::Nats,
            "api" => Self::Api,
            _ => Self::Socket,
        }
    }
}

/// Who wrote a message, as Weir stamped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// User name; empty for the anonymous user.
    pub user: String,
    /// Connection id (a UUID); empty for a native client.
    pub client: String,
    /// Public info where a token has some: one JSON value, or two ([`join_info`]).
    pub info: Option<Bytes>,
    /// Through which door.
    pub door: Door,
}

/// A stored message: the only shape between headers, frames and rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its offset.
    pub seq: Seq,
    /// When it was stored, by the stream's clock, in milliseconds since 1970.
    pub time_ms: i64,
    /// Its `Nats-Msg-Id`; empty only if something else wrote into the stream.
    pub id: String,
    /// Its author; `None` only if something else wrote into the stream.
    pub author: Option<Author>,
    /// Tags; usually empty.
    pub tags: BTreeMap<String, String>,
    /// The payload, byte for byte what the author sent.
    pub data: Bytes,
}

/// A message as a live copy or a direct read shows it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// The room that the stored subject names.
    pub room: RoomName,
    /// The stream that holds it.
    pub stream: String,
    /// The stored subject.
    pub stored_subject: String,
    /// The last sequence of the same subject when this one was stored (0: none is there).
    /// On a direct batch read it is the previous of the batch instead.
    pub previous: Seq,
    /// On a direct read: how many messages of the request follow.
    pub pending: u64,
}

/// Why a NATS message is no delivery of a room. It is dropped and counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// A header that the server sets is missing or not a number or time.
    #[error("header {0} is missing or malformed")]
    Header(&'static str),
    /// The stored subject is not `log.<log>.<p>.<ns>.<id>`.
    #[error("`{0}` is no stored subject")]
    Subject(String),
    /// The tokens of the stored subject name no room.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The **last** value of a header: a client's forged value comes first, the server's last.
#[must_use]
pub fn last<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_last(name).map(HeaderValue::as_str)
}

impl Delivery {
    /// Reads a republished copy or the answer of a Direct Get.
    ///
    /// # Errors
    /// When a header of the server's is missing or malformed, or the subject names no room.
    pub fn from_headers(headers: &HeaderMap, payload: Bytes) -> Result<Self, DeliveryError> {
        let text = |name: &'static str| last(headers, name).ok_or(DeliveryError::Header(name));
        let number = |name: &'static str| {
            text(name)?
                .parse::<u64>()
                .map_err(|_| DeliveryError::Header(name))
        };
        let stored_subject = text(header::SUBJECT)?.to_owned();
        let room = room_of(&stored_subject, last(headers, header::ROOM_NAME))?;
        let message = Message::from_parts(
            Seq::new(number(header::SEQUENCE)?),
            parse_time_ms(text(header::TIME)?).ok_or(DeliveryError::Header(header::TIME))?,
            headers,
            payload,
        );
        Ok(Self {
            message,
            room,
            stream: text(header::STREAM)?.to_owned(),
            previous: Seq::new(number(header::LAST_SEQUENCE).unwrap_or(0)),
            pending: number(header::NUM_PENDING).unwrap_or(0),
            stored_subject,
        })
    }
}

impl Message {
    /// Builds a message from what a stream, a consumer or a direct read gives.
    #[must_use]
    pub fn from_parts(seq: Seq, time_ms: i64, headers: &HeaderMap, data: Bytes) -> Self {
        let author = last(headers, header::DOOR).map(|door| Author {
            user: last(headers, header::USER)
                .map(decode_text)
                .unwrap_or_default(),
            client: last(headers, header::CLIENT).unwrap_or_default().to_owned(),
            info: last(headers, header::INFO).map(|info| Bytes::copy_from_slice(info.as_bytes())),
            door: Door::from_text(door),
        });
        let tags = last(headers, header::TAGS)
            .and_then(|tags| serde_json::from_str(tags).ok())
            .unwrap_or_default();
        Self {
            seq,
            time_ms,
            id: last(headers, header::MSG_ID).unwrap_or_default().to_owned(),
            author,
            tags,
            data,
        }
    }
}

/// The public info of a connection and of its subscription as one text: the first, or both with a
/// space between them, as a JSON value never ends in one. Headers and rows hold it as it is.
#[must_use]
pub fn join_info(connection: Option<&str>, room: Option<&str>) -> Option<Bytes> {
    match (connection, room) {
        (connection, None) => connection.map(|info| Bytes::copy_from_slice(info.as_bytes())),
        (connection, Some(room)) => {
            let both = format!("{} {room}", connection.unwrap_or("null"));
            Some(Bytes::from(both))
        }
    }
}

/// Undoes [`join_info`]: the info of the connection and of the room. What is no JSON is neither.
#[must_use]
pub fn split_info(info: &[u8]) -> (Option<&[u8]>, Option<&[u8]>) {
    let mut values =
        serde_json::Deserializer::from_slice(info).into_iter::<serde::de::IgnoredAny>();
    let first = values.next();
    let end = values.byte_offset();
    let (Some(Ok(_)), Some((connection, rest))) = (first, info.split_at_checked(end)) else {
        return (None, None);
    };
    let room = rest.trim_ascii();
    if room.is_empty() {
        return (Some(connection), None);
    }
    let is_one = serde_json::from_slice::<serde::de::IgnoredAny>(room).is_ok();
    let connection = Some(connection).filter(|connection| connection.trim_ascii() != b"null");
    (connection, is_one.then_some(room))
}

/// The headers with which an edge publishes into a log. Values never hold a line break: the user
/// is escaped as in a subject, JSON is compacted, the rest is made by Weir.
#[must_use]
pub fn stamp(
    room: &RoomName,
    author: &Author,
    tags: &BTreeMap<String, String>,
    id: &str,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = value.parse::<HeaderValue>() {
            headers.insert(name, value);
        } else {
            debug_assert!(false, "header {name} holds a line break");
        }
    };
    put(header::MSG_ID, id);
    put(header::DOOR, author.door.as_str());
    if !author.user.is_empty() {
        put(header::USER, &crate::subject::escape(&author.user));
    }
    if !author.client.is_empty() {
        put(header::CLIENT, &author.client);
    }
    if let Some(info) = author.info.as_deref().and_then(compact_json) {
        put(header::INFO, &info);
    }
    if !tags.is_empty() {
        put(
            header::TAGS,
            &serde_json::to_string(tags).expect("strings become JSON"),
        );
    }
    if room.has_hashed_token() {
        put(header::ROOM_NAME, room.channel());
    }
    headers
}

/// JSON without raw line breaks, which are only white space in valid JSON.
fn compact_json(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(text.replace(['\r', '\n'], " ").trim().to_owned())
}

/// A user as the header holds it; a text that is no escape is shown as it is.
fn decode_text(token: &str) -> String {
    crate::subject::unescape(token).unwrap_or_else(|_| token.to_owned())
}

/// The room of a stored subject `log.<log>.<p>.<ns>.<id>`.
///
/// # Errors
/// When the subject has another shape or its tokens name no room.
pub fn room_of(stored_subject: &str, room_name: Option<&str>) -> Result<RoomName, DeliveryError> {
    let mut tokens = stored_subject.split('.');
    let shape = (
        tokens.next(),
        tokens.next(),
        tokens.next(),
        tokens.next(),
        tokens.next(),
        tokens.next(),
    );
    match shape {
        (Some("log"), Some(_), Some(_), Some(ns), Some(id), None) => {
            Ok(RoomName::from_tokens(ns, id, room_name)?)
        }
        _ => Err(DeliveryError::Subject(stored_subject.to_owned())),
    }
}

/// RFC 3339 to milliseconds since 1970.
#[must_use]
pub fn parse_time_ms(text: &str) -> Option<i64> {
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::parse(text, format).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// Milliseconds since 1970 as RFC 3339, in UTC. What lies outside of the years 1970 to 9999 is its
/// nearest end.
#[must_use]
pub fn format_time_ms(time_ms: i64) -> String {
    const LAST_MS: i64 = 253_402_300_799_999;
    let ns = i128::from(time_ms.clamp(0, LAST_MS)) * 1_000_000;
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(ns);
    let text = time.ok().and_then(|time| time.format(format).ok());
    text.expect("a time of these years has a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, *value);
        }
        map
    }

    #[test]
    fn a_forged_header_comes_first_and_loses() {
        let map = headers(&[
            ("Nats-Sequence", "999"),
            ("Nats-Stream", "ROOMS_0"),
            ("Nats-Subject", "log.rooms.20.chat.lobby"),
            ("Nats-Sequence", "7"),
            ("Nats-Time-Stamp", "2026-01-02T03:04:05.678901234Z"),
            ("Nats-Last-Sequence", "3"),
        ]);
        let delivery = Delivery::from_headers(&map, Bytes::from_static(b"{}")).unwrap();
        assert_eq!(delivery.message.seq, Seq::new(7));
        assert_eq!(delivery.previous, Seq::new(3));
        assert_eq!(delivery.message.time_ms % 1000, 678);
        assert_eq!(delivery.room.channel(), "chat:lobby");
    }

    #[test]
    fn info_of_a_connection_and_of_a_room_are_one_text_and_two_again() {
        let text =
            |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        let values = [
            None,
            Some("{\"a\":1}"),
            Some("7"),
            Some("\"x y\""),
            Some("[1, 2]"),
            Some("\"\""),
        ];
        for connection in values {
            for room in values {
                let joined = join_info(connection, room);
                let found = joined.as_deref().map_or((None, None), split_info);
                let found = (text(found.0), text(found.1));
                assert_eq!(
                    found,
                    (connection.map(str::to_owned), room.map(str::to_owned))
                );
            }
        }
        for none in ["", " ", "{", "x", "1x"] {
            assert_eq!(split_info(none.as_bytes()).1, None, "{none}");
        }
        assert_eq!(split_info(b"{\"a\":1} {"), (Some(&b"{\"a\":1}"[..]), None));
        assert_eq!(split_info(b"1 2 3"), (Some(&b"1"[..]), None));
    }

    #[test]
    fn a_time_comes_back() {
        for time_ms in [0, 1, 1_732_440_000_123, 253_402_300_799_999] {
            assert_eq!(parse_time_ms(&format_time_ms(time_ms)), Some(time_ms));
        }
        assert_eq!(format_time_ms(i64::MIN), format_time_ms(0));
        assert_eq!(format_time_ms(1_000), "1970-01-01T00:00:01Z");
    }

    #[test]
    fn a_stamp_comes_back() {
        let room = RoomName::parse("chat:lobby").unwrap();
        let author = Author {
            user: "ann é".into(),
            client: "c1".into(),
            info: Some(Bytes::from_static(b"{\"a\":\n1}")),
            door: Door::Socket,
        };
        let tags = BTreeMap::from([("k".to_owned(), "v\n".to_owned())]);
        let map = stamp(&room, &author, &tags, "id1");
        let message = Message::from_parts(Seq::new(1), 5, &map, Bytes::new());
        let back = message.author.unwrap();
        assert_eq!((back.user.as_str(), back.client.as_str()), ("ann é", "c1"));
        assert_eq!(message.tags, tags);
        assert_eq!(message.id, "id1");
    }
}
