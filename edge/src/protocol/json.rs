//! Knows: the client protocol as JSON lines in WebSocket text frames. Never: what commands do.
//!
//! A frame holds one or more commands or replies, separated by one `\n`. Payloads are embedded raw.

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use weir_nats::{Epoch, Message, Seq};

use super::code::{ErrorCode, UnsubscribeCode};
use super::{Command, CommandKind, Connect, ConnectResult, History, Subscribe, SubscribeResult};
use crate::websocket::{HEADER_MAX_BYTES, Opcode, write_header};

/// A frame that is not what the protocol allows; the connection is closed (3501).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing in it.
    #[error("an empty frame")]
    Empty,
    /// Not JSON, or a field of another type than the protocol's.
    #[error("not a command: {0}")]
    Malformed(String),
    /// More commands than one frame may hold.
    #[error("more than {0} commands in a frame")]
    TooMany(usize),
}

/// `null` counts as absent, as in the protocol's other implementations.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A payload may be `null`, which is not the same as none.
fn payload<'de, D>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error>
where
    D: Deserializer<'de>,
{
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// serde reads a struct from a list, too; the protocol knows objects only.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let raw = <&RawValue>::deserialize(deserializer)?;
        if !raw.get().starts_with('{') {
            return Err(D::Error::custom("an object is wanted"));
        }
        serde_json::from_str(raw.get())
            .map(Self)
            .map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
struct RawCommand<'a> {
    #[serde(default, deserialize_with = "nullable")]
    id: u32,
    #[serde(borrow)]
    connect: Option<Object<RawConnect<'a>>>,
    subscribe: Option<Object<RawSubscribe>>,
    unsubscribe: Option<Object<RawChannel>>,
    #[serde(borrow)]
    publish: Option<Object<RawPublish<'a>>>,
    presence: Option<Object<RawChannel>>,
    presence_stats: Option<Object<RawChannel>>,
    history: Option<Object<RawHistory>>,
    ping: Option<serde::de::IgnoredAny>,
    #[serde(borrow)]
    send: Option<Object<RawData<'a>>>,
    #[serde(borrow)]
    rpc: Option<Object<RawRpc<'a>>>,
    refresh: Option<Object<RawToken>>,
    sub_refresh: Option<Object<RawToken>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConnect<'a> {
    #[serde(deserialize_with = "nullable")]
    token: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    version: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSubscribe {
    #[serde(deserialize_with = "nullable")]
    channel: String,
    #[serde(deserialize_with = "nullable")]
    token: String,
    #[serde(deserialize_with = "nullable")]
    recover: bool,
    #[serde(deserialize_with = "nullable")]
    epoch: String,
    #[serde(deserialize_with = "nullable")]
    offset: u64,
    #[serde(deserialize_with = "nullable")]
    positioned: bool,
    #[serde(deserialize_with = "nullable")]
    recoverable: bool,
    #[serde(deserialize_with = "nullable")]
    join_leave: bool,
    #[serde(deserialize_with = "nullable")]
    flag: i64,
    #[serde(rename = "type", deserialize_with = "nullable")]
    kind: i32,
    #[serde(deserialize_with = "nullable")]
    delta: String,
    tf: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawChannel {
    #[serde(deserialize_with = "nullable")]
    channel: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawPublish<'a> {
    #[serde(deserialize_with = "nullable")]
    channel: String,
    #[serde(borrow, deserialize_with = "payload")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawHistory {
    #[serde(deserialize_with = "nullable")]
    channel: String,
    #[serde(deserialize_with = "nullable")]
    limit: i32,
    since: Option<Object<RawPosition>>,
    #[serde(deserialize_with = "nullable")]
    reverse: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawPosition {
    #[serde(deserialize_with = "nullable")]
    offset: u64,
    #[serde(deserialize_with = "nullable")]
    epoch: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawData<'a> {
    #[serde(borrow, deserialize_with = "payload")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRpc<'a> {
    #[serde(deserialize_with = "nullable")]
    method: String,
    #[serde(borrow, deserialize_with = "payload")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawToken {
    #[serde(deserialize_with = "nullable")]
    channel: String,
    #[serde(deserialize_with = "nullable")]
    token: String,
}

/// Reads a text frame. One trailing line break is tolerated.
///
/// # Errors
/// When the frame is empty, has a line that is no command, or has more than `commands_max`.
pub fn decode(frame: &Bytes, commands_max: usize) -> Result<Vec<Command>, DecodeError> {
    let bytes: &[u8] = frame.strip_suffix(b"\n").unwrap_or(frame);
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let mut commands = Vec::with_capacity(1);
    for line in bytes.split(|byte| *byte == b'\n') {
        if commands.len() == commands_max {
            return Err(DecodeError::TooMany(commands_max));
        }
        let Object(raw): Object<RawCommand<'_>> = serde_json::from_slice(line)
            .map_err(|error| DecodeError::Malformed(error.to_string()))?;
        commands.push(raw.into_command(frame));
    }
    Ok(commands)
}

impl RawCommand<'_> {
    /// The first that is there, in the order of the reference server.
    fn into_command(self, frame: &Bytes) -> Command {
        let bytes = |raw: Option<&RawValue>| match raw {
            Some(raw) => frame.slice_ref(raw.get().as_bytes()),
            None => Bytes::new(),
        };
        let kind = if let Some(Object(connect)) = self.connect {
            CommandKind::Connect(Connect {
                token: connect.token,
                data: connect.data.map(|data| bytes(Some(data))),
                name: connect.name,
                version: connect.version,
            })
        } else if let Some(Object(subscribe)) = self.subscribe {
            CommandKind::Subscribe(Subscribe {
                channel: subscribe.channel,
                token: subscribe.token,
                recover: subscribe.recover,
                epoch: subscribe.epoch,
                offset: subscribe.offset,
                positioned: subscribe.positioned,
                recoverable: subscribe.recoverable,
                join_leave: subscribe.join_leave,
                flag: subscribe.flag,
                kind: subscribe.kind,
                delta: subscribe.delta,
                has_tags_filter: subscribe.tf.is_some(),
            })
        } else if let Some(Object(unsubscribe)) = self.unsubscribe {
            CommandKind::Unsubscribe {
                channel: unsubscribe.channel,
            }
        } else if let Some(Object(publish)) = self.publish {
            let data = bytes(publish.data);
            CommandKind::Publish {
                channel: publish.channel,
                data,
            }
        } else if let Some(Object(presence)) = self.presence {
            CommandKind::Presence {
                channel: presence.channel,
            }
        } else if let Some(Object(stats)) = self.presence_stats {
            CommandKind::PresenceStats {
                channel: stats.channel,
            }
        } else if let Some(Object(history)) = self.history {
            CommandKind::History(History {
                channel: history.channel,
                limit: history.limit,
                since: history
                    .since
                    .map(|Object(since)| (since.offset, since.epoch)),
                reverse: history.reverse,
            })
        } else if self.ping.is_some() {
            CommandKind::Ping
        } else if let Some(Object(send)) = self.send {
            CommandKind::Send {
                data: bytes(send.data),
            }
        } else if let Some(Object(rpc)) = self.rpc {
            CommandKind::Rpc {
                method: rpc.method,
                data: bytes(rpc.data),
            }
        } else if let Some(Object(refresh)) = self.refresh {
            CommandKind::Refresh {
                token: refresh.token,
            }
        } else if let Some(Object(refresh)) = self.sub_refresh {
            CommandKind::SubRefresh {
                channel: refresh.channel,
                token: refresh.token,
            }
        } else {
            CommandKind::Empty
        };
        Command { id: self.id, kind }
    }
}

/// How deep arrays and objects of a payload may nest, in levels. Many parsers stop at 128; this
/// leaves room for the frames and pages that payloads are put into.
pub const PAYLOAD_DEPTH_MAX_LEVELS: u32 = 100;

/// True if the bytes are one JSON value in UTF-8, nested at most [`PAYLOAD_DEPTH_MAX_LEVELS`] deep.
///
/// UTF-8 is checked on its own: serde_json does not look into strings that it skips, and a text
/// frame that is not UTF-8 makes every browser in the room close.
#[must_use]
pub fn is_json(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok_and(|text| {
        serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() && !is_too_deep(bytes)
    })
}

/// Whether valid JSON nests deeper than allowed. Values are skipped without recursion, so depth is
/// no danger here, but it is to those who read the payload later.
fn is_too_deep(json: &[u8]) -> bool {
    let (mut depth, mut rest) = (0_u32, json);
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => rest = after_string(after),
            _ => {}
        }
        if depth > PAYLOAD_DEPTH_MAX_LEVELS {
            return true;
        }
    }
    false
}

/// What follows a string whose opening quote was taken.
fn after_string(mut rest: &[u8]) -> &[u8] {
    while let Some(found) = memchr::memchr2(b'"', b'\\', rest) {
        if rest[found] == b'"' {
            return &rest[found + 1..];
        }
        rest = rest.get(found + 2..).unwrap_or_default();
    }
    &[]
}

/// True if the bytes are one JSON object.
#[must_use]
pub fn is_json_object(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first() == Some(&b'{') && is_json(bytes)
}

/// A frame under construction: room for the WebSocket header comes first.
struct Frame(Vec<u8>);

impl Frame {
    fn new(capacity: usize) -> Self {
        let mut buffer = Vec::with_capacity(HEADER_MAX_BYTES + capacity);
        buffer.resize(HEADER_MAX_BYTES, 0);
        Self(buffer)
    }

    fn raw(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn string(&mut self, text: &str) -> &mut Self {
        write_string(&mut self.0, text);
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.raw(&number.to_string())
    }

    /// Raw JSON without CR and LF: frames are split on them, and in valid JSON they are white space.
    fn json(&mut self, json: &[u8]) -> &mut Self {
        write_json(&mut self.0, json);
        self
    }

    fn finish(mut self) -> Bytes {
        let length = self.0.len() - HEADER_MAX_BYTES;
        let start = write_header(&mut self.0[..HEADER_MAX_BYTES], Opcode::Text, length);
        Bytes::from(self.0).slice(start..)
    }
}

fn write_string(buffer: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(buffer, text).expect("a string can be written into memory");
}

fn write_json(buffer: &mut Vec<u8>, json: &[u8]) {
    if memchr::memchr2(b'\r', b'\n', json).is_none() {
        buffer.extend_from_slice(json);
    } else {
        buffer.extend(json.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')));
    }
}

/// `{}`: the server's ping.
#[must_use]
pub fn ping() -> Bytes {
    let mut frame = Frame::new(2);
    frame.raw("{}");
    frame.finish()
}

/// The whole frame of a push and, as a slice of it, the publication alone. `None` if the payload is
/// not JSON, which a JSON client must never be shown.
#[must_use]
pub fn publication_push(channel: &str, message: &Message) -> Option<(Bytes, Bytes)> {
    if !is_json(&message.data) {
        return None;
    }
    let mut frame = Frame::new(message.data.len() + channel.len() + 256);
    frame
        .raw("{\"push\":{\"channel\":")
        .string(channel)
        .raw(",\"pub\":");
    let start = frame.0.len();
    write_publication(&mut frame.0, message);
    let end = frame.0.len();
    frame.raw("}}");
    let whole = frame.finish();
    // `finish` cut the front; count from the back, which it left alone.
    let from_end = (end + 2) - start;
    let publication = whole.slice(whole.len() - from_end..whole.len() - 2);
    Some((whole, publication))
}

fn write_publication(buffer: &mut Vec<u8>, message: &Message) {
    buffer.extend_from_slice(b"{\"data\":");
    write_json(buffer, &message.data);
    if let Some(author) = &message.author {
        buffer.extend_from_slice(b",\"info\":{\"user\":");
        write_string(buffer, &author.user);
        buffer.extend_from_slice(b",\"client\":");
        write_string(buffer, &author.client);
        if let Some(info) = author.info.as_ref().filter(|info| is_json(info)) {
            buffer.extend_from_slice(b",\"conn_info\":");
            write_json(buffer, info);
        }
        buffer.push(b'}');
    }
    if !message.seq.is_zero() {
        buffer.extend_from_slice(b",\"offset\":");
        buffer.extend_from_slice(message.seq.to_string().as_bytes());
    }
    if !message.tags.is_empty() {
        buffer.extend_from_slice(b",\"tags\":");
        serde_json::to_writer(&mut *buffer, &message.tags).expect("strings can be written");
    }
    if message.time_ms > 0 {
        buffer.extend_from_slice(b",\"time\":");
        buffer.extend_from_slice(message.time_ms.to_string().as_bytes());
    }
    buffer.push(b'}');
}

/// An error reply.
#[must_use]
pub fn error(id: u32, code: ErrorCode) -> Bytes {
    error_text(id, code, code.message)
}

/// An error reply with a text of its own.
#[must_use]
pub fn error_text(id: u32, code: ErrorCode, text: &str) -> Bytes {
    let mut frame = Frame::new(96 + text.len());
    frame
        .raw("{\"id\":")
        .number(u64::from(id))
        .raw(",\"error\":{\"code\":");
    frame
        .number(u64::from(code.code))
        .raw(",\"message\":")
        .string(text);
    frame.raw(if code.temporary {
        ",\"temporary\":true}}"
    } else {
        "}}"
    });
    frame.finish()
}

/// A reply whose result is empty: `publish`, `unsubscribe`.
#[must_use]
pub fn empty(id: u32, method: &str) -> Bytes {
    let mut frame = Frame::new(48);
    frame
        .raw("{\"id\":")
        .number(u64::from(id))
        .raw(",\"")
        .raw(method)
        .raw("\":{}}");
    frame.finish()
}

/// The reply to `connect`.
#[must_use]
pub fn connect(id: u32, result: &ConnectResult) -> Bytes {
    let mut frame = Frame::new(192);
    frame
        .raw("{\"id\":")
        .number(u64::from(id))
        .raw(",\"connect\":{\"client\":");
    frame
        .string(&result.client)
        .raw(",\"version\":")
        .string(&result.version);
    if let Some(ttl) = result.ttl_s {
        frame
            .raw(",\"expires\":true,\"ttl\":")
            .number(u64::from(ttl));
    }
    if result.ping_s > 0 {
        frame
            .raw(",\"ping\":")
            .number(u64::from(result.ping_s))
            .raw(",\"pong\":true");
    }
    frame.raw("}}");
    frame.finish()
}

/// The reply to `refresh`.
#[must_use]
pub fn refresh(id: u32, client: &str, version: &str, ttl_s: Option<u32>) -> Bytes {
    let mut frame = Frame::new(160);
    frame
        .raw("{\"id\":")
        .number(u64::from(id))
        .raw(",\"refresh\":{\"client\":");
    frame.string(client).raw(",\"version\":").string(version);
    if let Some(ttl) = ttl_s {
        frame
            .raw(",\"expires\":true,\"ttl\":")
            .number(u64::from(ttl));
    }
    frame.raw("}}");
    frame.finish()
}

/// The reply to `sub_refresh`.
#[must_use]
pub fn sub_refresh(id: u32, ttl_s: Option<u32>) -> Bytes {
    let mut frame = Frame::new(96);
    frame
        .raw("{\"id\":")
        .number(u64::from(id))
        .raw(",\"sub_refresh\":{");
    if let Some(ttl) = ttl_s {
        frame
            .raw("\"expires\":true,\"ttl\":")
            .number(u64::from(ttl));
    }
    frame.raw("}}");
    frame.finish()
}

/// The reply to `subscribe`.
#[must_use]
pub fn subscribe(id: u32, result: &SubscribeResult) -> Bytes {
    let bytes: usize = result.publications.iter().map(|one| one.len() + 1).sum();
    let mut frame = Frame::new(192 + bytes);
    frame
        .raw("{\"id\":")
        .number(u64::from(id))
        .raw(",\"subscribe\":{");
    let start = frame.0.len();
    let field = |frame: &mut Frame, text: &str| {
        if frame.0.len() > start {
            frame.raw(",");
        }
        frame.raw(text);
    };
    if let Some(ttl) = result.ttl_s {
        field(&mut frame, "\"expires\":true,\"ttl\":");
        frame.number(u64::from(ttl));
    }
    if result.recoverable {
        field(&mut frame, "\"recoverable\":true");
    }
    if result.positioned {
        field(&mut frame, "\"positioned\":true");
    }
    if let Some((epoch, offset)) = &result.position {
        field(&mut frame, "\"epoch\":");
        frame.string(epoch.as_str());
        if !offset.is_zero() {
            field(&mut frame, "\"offset\":");
            frame.number(offset.get());
        }
    }
    if !result.publications.is_empty() {
        field(&mut frame, "\"publications\":");
        write_list(&mut frame, &result.publications);
    }
    if result.recovered {
        field(&mut frame, "\"recovered\":true");
    }
    if result.was_recovering {
        field(&mut frame, "\"was_recovering\":true");
    }
    frame.raw("}}");
    frame.finish()
}

/// The reply to `history`.
#[must_use]
pub fn history(id: u32, publications: &[Bytes], epoch: &Epoch, offset: Seq) -> Bytes {
    let bytes: usize = publications.iter().map(|one| one.len() + 1).sum();
    let mut frame = Frame::new(128 + bytes);
    frame
        .raw("{\"id\":")
        .number(u64::from(id))
        .raw(",\"history\":{\"publications\":");
    write_list(&mut frame, publications);
    frame
        .raw(",\"epoch\":")
        .string(epoch.as_str())
        .raw(",\"offset\":")
        .number(offset.get());
    frame.raw("}}");
    frame.finish()
}

fn write_list(frame: &mut Frame, publications: &[Bytes]) {
    frame.raw("[");
    for (publication, nth) in publications.iter().zip(0..) {
        if nth > 0 {
            frame.raw(",");
        }
        frame.0.extend_from_slice(publication);
    }
    frame.raw("]");
}

/// The reply to `rpc`. `data` is JSON.
#[must_use]
pub fn rpc(id: u32, data: &[u8]) -> Bytes {
    let mut frame = Frame::new(48 + data.len());
    frame
        .raw("{\"id\":")
        .number(u64::from(id))
        .raw(",\"rpc\":{");
    if !data.is_empty() {
        frame.raw("\"data\":").json(data);
    }
    frame.raw("}}");
    frame.finish()
}

/// The push that ends a subscription.
#[must_use]
pub fn unsubscribe_push(channel: &str, code: UnsubscribeCode) -> Bytes {
    let mut frame = Frame::new(96 + channel.len());
    frame
        .raw("{\"push\":{\"channel\":")
        .string(channel)
        .raw(",\"unsubscribe\":{\"code\":");
    frame
        .number(u64::from(code.code))
        .raw(",\"reason\":")
        .string(code.reason)
        .raw("}}}");
    frame.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_nats::{Author, Door};

    fn decode_text(text: &str) -> Result<Vec<Command>, DecodeError> {
        decode(&Bytes::copy_from_slice(text.as_bytes()), 4)
    }

    /// The text of a frame that this module made.
    fn text(frame: &Bytes) -> &str {
        let header = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        std::str::from_utf8(&frame[header..]).unwrap()
    }

    #[test]
    fn several_commands_in_one_frame_keep_their_order_and_bytes() {
        let frame = "{\"id\":1,\"connect\":{\"token\":\"t\",\"name\":\"js\"}}\n{\"id\":2,\"publish\":{\"channel\":\"a\\u00e9\",\"data\":{\"x\" : 1}}}\n{}";
        let commands = decode_text(frame).unwrap();
        assert_eq!(commands.len(), 3);
        assert!(matches!(&commands[0].kind, CommandKind::Connect(c) if c.token == "t"));
        assert!(
            matches!(&commands[1].kind, CommandKind::Publish { channel, data }
            if channel == "aé" && data.as_ref() == b"{\"x\" : 1}")
        );
        assert_eq!(
            commands[2],
            Command {
                id: 0,
                kind: CommandKind::Empty
            }
        );
    }

    #[test]
    fn what_is_no_command() {
        for bad in [
            "",
            "\n",
            "x",
            "[]",
            "1",
            "null",
            "{\"id\":-1}",
            "{\"id\":4294967296}",
            "{\"id\":\"1\"}",
            "{\"id\":1,\"publish\":[1]}",
            "{\"id\":1,\"subscribe\":{\"offset\":-1}}",
            "{\"id\":1}\n\n{\"id\":2}",
            "{\"id\":1,\"connect\":[]}",
            "{\"id\":1,\"subscribe\":[\"a\"]}",
            "{\"id\":1,\"id\":2}",
            "{\"id\":1",
            "{}\n{}\n{}\n{}\n{}",
            "{\"id\":1,\"publish\":{\"data\":}}",
        ] {
            assert!(decode_text(bad).is_err(), "{bad:?}");
        }
        assert!(
            decode(
                &Bytes::from_static(b"{\"id\":1,\"rpc\":{\"method\":\"\xff\"}}"),
                4
            )
            .is_err()
        );
    }

    #[test]
    fn a_push_frame_holds_its_publication() {
        let message = Message {
            seq: Seq::new(7),
            time_ms: 5,
            id: "i".into(),
            author: Some(Author {
                user: "u\"".into(),
                client: "c".into(),
                info: None,
                door: Door::Socket,
            }),
            tags: std::collections::BTreeMap::new(),
            data: Bytes::from_static(b"{\"a\":\r\n1}"),
        };
        let (frame, publication) = publication_push("ch", &message).unwrap();
        let expected = "{\"data\":{\"a\":1},\"info\":{\"user\":\"u\\\"\",\"client\":\"c\"},\"offset\":7,\"time\":5}";
        assert_eq!(publication, expected.as_bytes());
        assert_eq!(
            text(&frame),
            format!("{{\"push\":{{\"channel\":\"ch\",\"pub\":{expected}}}}}")
        );
        let binary = Message {
            data: Bytes::from_static(b"\x00"),
            ..message
        };
        assert!(publication_push("ch", &binary).is_none());
    }

    #[test]
    fn replies() {
        assert_eq!(text(&ping()), "{}");
        assert_eq!(text(&empty(3, "publish")), "{\"id\":3,\"publish\":{}}");
        assert_eq!(
            text(&error(4, ErrorCode::INTERNAL)),
            "{\"id\":4,\"error\":{\"code\":100,\"message\":\"internal server error\",\"temporary\":true}}"
        );
        let result = SubscribeResult {
            recoverable: true,
            positioned: true,
            position: Some((Epoch::new("e").unwrap(), Seq::new(9))),
            publications: vec![Bytes::from_static(b"{\"data\":1}")],
            recovered: true,
            was_recovering: true,
            ttl_s: None,
        };
        assert_eq!(
            text(&subscribe(2, &result)),
            "{\"id\":2,\"subscribe\":{\"recoverable\":true,\"positioned\":true,\"epoch\":\"e\",\"offset\":9,\
             \"publications\":[{\"data\":1}],\"recovered\":true,\"was_recovering\":true}}"
        );
        assert_eq!(
            text(&subscribe(2, &SubscribeResult::default())),
            "{\"id\":2,\"subscribe\":{}}"
        );
        let epoch = Epoch::new("e").unwrap();
        assert_eq!(
            text(&history(2, &[], &epoch, Seq::ZERO)),
            "{\"id\":2,\"history\":{\"publications\":[],\"epoch\":\"e\",\"offset\":0}}"
        );
        assert_eq!(text(&rpc(2, b"{\n}")), "{\"id\":2,\"rpc\":{\"data\":{}}}");
    }

    #[test]
    fn what_is_json() {
        for text in [
            "null",
            " true\r\n",
            "0",
            "-1.5e-7",
            "1e999",
            "\"a\\u00e9\\ud800\"",
            "[]",
            "{\"a\":[1,{}]}",
            "{\"a\":1,\"a\":2}",
            "\"[[[[\\\"{{{{\"",
            "[1\n,\r\n2]",
        ] {
            assert!(is_json(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            " ",
            "nul",
            "01",
            "1.",
            ".5",
            "+1",
            "'a'",
            "[1,]",
            "{a:1}",
            "{\"a\"}",
            "[",
            "]",
            "1 2",
            "\"a\nb\"",
            "\"\u{1}\"",
            "\"\\x\"",
            "NaN",
            "\u{feff}1",
            "\"\\u12\"",
            "{\"a\":1}}",
            "//x\n1",
        ] {
            assert!(!is_json(text.as_bytes()), "{text}");
        }
        for bytes in [
            &b"\"\xff\""[..],
            b"\"\xc0\xaf\"",
            b"{\"a\":\"\xed\xa0\x80\"}",
            b"\"\xe2\x82\"",
        ] {
            assert!(!is_json(bytes), "{bytes:?}");
        }
        assert!(is_json_object(b" {\"a\":1}"));
        assert!(!is_json_object(b"[1]"));
        assert!(!is_json_object(b"{"));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels| [vec![b'['; levels], vec![b']'; levels]].concat();
        assert!(is_json(&nested(100)));
        assert!(!is_json(&nested(101)));
        assert!(!is_json(&nested(60_000)));
        let wide = format!("[{}1]", "[],".repeat(1_000));
        assert!(is_json(wide.as_bytes()));
        // However deep, a frame can be read; only publishing it is refused.
        let deep = String::from_utf8(nested(30_000)).unwrap();
        let frame = format!("{{\"id\":1,\"x\":{deep},\"rpc\":{{\"data\":1}}}}");
        assert_eq!(decode_text(&frame).unwrap().len(), 1);
    }

    #[test]
    fn null_is_absent_but_for_payloads() {
        let one = |text: &str| decode_text(text).unwrap().remove(0).kind;
        assert_eq!(
            one(
                "{\"id\":1,\"connect\":null,\"subscribe\":{\"channel\":\"a\",\"token\":null,\
                 \"recover\":null,\"offset\":null,\"flag\":null,\"type\":null,\"tf\":null}}"
            ),
            CommandKind::Subscribe(Subscribe {
                channel: "a".into(),
                ..Subscribe::default()
            })
        );
        for (data, expected) in [
            (",\"data\":null", "null"),
            ("", ""),
            (",\"data\":\"\"", "\"\""),
        ] {
            let frame = format!("{{\"id\":1,\"publish\":{{\"channel\":\"a\"{data}}}}}");
            let CommandKind::Publish { data, .. } = one(&frame) else {
                panic!("not a publish: {frame}");
            };
            assert_eq!(data, expected.as_bytes());
        }
    }
}
