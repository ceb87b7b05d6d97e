//! Knows: replies and pushes as ready WebSocket frames. Never: commands, sockets.

use bytes::Bytes;
use weir_nats::message::split_info;
use weir_nats::{Epoch, Message, Seq};

use super::is_json;
use crate::protocol::code::{ErrorCode, UnsubscribeCode};
use crate::protocol::{ConnectResult, SubscribeResult};
use crate::websocket::{HEADER_MAX_BYTES, Opcode, write_header};

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
        let info = author.info.as_deref().map_or((None, None), split_info);
        for (name, info) in [(",\"conn_info\":", info.0), (",\"chan_info\":", info.1)] {
            if let Some(info) = info.filter(|info| is_json(info)) {
                buffer.extend_from_slice(name.as_bytes());
                write_json(buffer, info);
            }
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
    if let Some(data) = &result.data {
        frame.raw(",\"data\":").json(data.as_bytes());
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
    if let Some(data) = &result.data {
        field(&mut frame, "\"data\":");
        frame.json(data.as_bytes());
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
