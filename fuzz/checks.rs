//! Knows: what has to hold for any bytes at all. Never: where the bytes come from: the fuzz targets
//! and `edge/tests/corpus.rs`, which replays the corpus on a stable compiler, share this file.

use std::collections::BTreeMap;

use bytes::Bytes;
use weir_edge::protocol::json::{decode, is_json, is_json_object, publication_push};
use weir_edge::protocol::{Command, CommandKind};
use weir_edge::websocket::{Decoder, Event, ProtocolError};
use weir_nats::subject::{escape, to_nfc, unescape, user_from_token, user_token};
use weir_nats::{Author, Door, Message, RoomName, Seq};

/// Any bytes as a text frame, as a payload, and as a room's name in a push.
pub(crate) fn json(data: &[u8]) {
    if let Ok(commands) = decode(&Bytes::copy_from_slice(data), 1_024) {
        assert!(!commands.is_empty() && commands.len() <= 1_024);
        for command in commands {
            let again = decode(&Bytes::from(encode(&command)), 1).expect("an encoded command");
            assert_eq!(again, [command]);
        }
    }
    assert!(is_json(data) || !is_json_object(data));
    payload(data);
}

/// A payload either is refused or stands in the push as what it is, and as nothing more.
fn payload(data: &[u8]) {
    let text = std::str::from_utf8(data);
    let value: Option<serde_json::Value> =
        text.ok().and_then(|text| serde_json::from_str(text).ok());
    assert!(!is_json(data) || text.is_ok(), "JSON is UTF-8");
    let message = Message {
        seq: Seq::new(7),
        time_ms: 5,
        id: "id".to_owned(),
        author: Some(Author {
            user: String::from_utf8_lossy(data).into_owned(),
            client: "c".to_owned(),
            info: Some(Bytes::copy_from_slice(data)),
            door: Door::Socket,
        }),
        tags: BTreeMap::from([(String::from_utf8_lossy(data).into_owned(), "t".to_owned())]),
        data: Bytes::copy_from_slice(data),
    };
    let channel = String::from_utf8_lossy(data);
    let Some((frame, publication)) = publication_push(&channel, &message) else {
        assert!(!is_json(data));
        return;
    };
    assert!(is_json(data));
    // The server's frame: two bytes, then up to eight of length, none of mask.
    let header = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let text = std::str::from_utf8(&frame[header..]).expect("a text frame is UTF-8");
    assert!(!text.contains(['\n', '\r']), "frames are split there");
    let Ok(push) = serde_json::from_str::<serde_json::Value>(text) else {
        // Numbers out of range and lone surrogates are JSON, but not to serde_json's values.
        assert!(value.is_none(), "a good payload broke the push");
        return;
    };
    assert_eq!(push["push"]["channel"], *channel);
    let shown = &push["push"]["pub"];
    assert_eq!(shown["offset"], 7);
    assert_eq!(shown["time"], 5);
    assert_eq!(shown["data"], value.expect("a payload that could be shown"));
    assert_eq!(shown["info"]["user"], *channel);
    let alone: serde_json::Value = serde_json::from_slice(&publication).expect("a publication");
    assert_eq!(&alone, shown);
}

/// A command as a client could have written it.
fn encode(command: &Command) -> String {
    let text = |text: &str| serde_json::to_string(text).expect("a string");
    let payload = |data: &Bytes| match std::str::from_utf8(data).expect("UTF-8") {
        "" => String::new(),
        data => format!(",\"data\":{data}"),
    };
    let one = |name: &str, channel: &str| format!("\"{name}\":{{\"channel\":{}}}", text(channel));
    let method = match &command.kind {
        CommandKind::Connect(connect) => format!(
            "\"connect\":{{\"token\":{},\"name\":{},\"version\":{}{}}}",
            text(&connect.token),
            text(&connect.name),
            text(&connect.version),
            connect.data.as_ref().map(payload).unwrap_or_default(),
        ),
        CommandKind::Subscribe(subscribe) => format!(
            "\"subscribe\":{{\"channel\":{},\"token\":{},\"recover\":{},\"epoch\":{},\"offset\":{},\
             \"positioned\":{},\"recoverable\":{},\"join_leave\":{},\"flag\":{},\"type\":{},\
             \"delta\":{}{}}}",
            text(&subscribe.channel),
            text(&subscribe.token),
            subscribe.recover,
            text(&subscribe.epoch),
            subscribe.offset,
            subscribe.positioned,
            subscribe.recoverable,
            subscribe.join_leave,
            subscribe.flag,
            subscribe.kind,
            text(&subscribe.delta),
            if subscribe.has_tags_filter {
                ",\"tf\":{}"
            } else {
                ""
            },
        ),
        CommandKind::Unsubscribe { channel } => one("unsubscribe", channel),
        CommandKind::Presence { channel } => one("presence", channel),
        CommandKind::PresenceStats { channel } => one("presence_stats", channel),
        CommandKind::Publish { channel, data } => {
            format!(
                "\"publish\":{{\"channel\":{}{}}}",
                text(channel),
                payload(data)
            )
        }
        CommandKind::History(history) => format!(
            "\"history\":{{\"channel\":{},\"limit\":{},\"reverse\":{}{}}}",
            text(&history.channel),
            history.limit,
            history.reverse,
            history
                .since
                .as_ref()
                .map_or(String::new(), |(offset, epoch)| {
                    format!(
                        ",\"since\":{{\"offset\":{offset},\"epoch\":{}}}",
                        text(epoch)
                    )
                }),
        ),
        CommandKind::Rpc { method, data } => {
            format!("\"rpc\":{{\"method\":{}{}}}", text(method), payload(data))
        }
        CommandKind::Send { data } => format!("\"send\":{{\"x\":0{}}}", payload(data)),
        CommandKind::Refresh { token } => format!("\"refresh\":{{\"token\":{}}}", text(token)),
        CommandKind::SubRefresh { channel, token } => format!(
            "\"sub_refresh\":{{\"channel\":{},\"token\":{}}}",
            text(channel),
            text(token)
        ),
        CommandKind::Ping => "\"ping\":{}".to_owned(),
        CommandKind::Empty => "\"unknown\":[]".to_owned(),
    };
    format!("{{\"id\":{},{method}}}", command.id)
}

/// Any bytes as a room's name, a user's name, a token, and, split at line breaks, as the last two
/// tokens of a subject and the `Room-Name` header.
pub(crate) fn subject(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let token = escape(&text);
    assert!(token.bytes().all(is_token_byte), "{token}");
    if to_nfc(&text) == text {
        assert_eq!(unescape(&token).as_deref(), Ok(&*text));
        assert_eq!(user_from_token(&user_token(&text)).as_deref(), Ok(&*text));
    } else {
        assert!(unescape(&token).is_err(), "only NFC comes back");
    }
    if let Ok(name) = unescape(&text) {
        assert_eq!(escape(&name), text, "one name has one token");
    }
    if let Ok(user) = user_from_token(&text) {
        assert_eq!(user_token(&user), text, "one user has one token");
    }
    if let Ok(room) = RoomName::parse(&text) {
        assert_eq!(room.channel(), text);
        round_trip(&room);
    }
    let mut parts = text.split('\n');
    let (ns, id, header) = (parts.next(), parts.next(), parts.next());
    let (ns, id) = (ns.unwrap_or_default(), id.unwrap_or_default());
    if let Ok(room) = RoomName::from_tokens(ns, id, header) {
        assert_eq!(
            room.tokens(),
            (ns.to_owned(), id.to_owned()),
            "one room has one subject"
        );
        round_trip(&room);
    }
}

fn round_trip(room: &RoomName) {
    let (ns, id) = room.tokens();
    assert!(!ns.is_empty() && !id.is_empty() && ns.len() + id.len() <= 280);
    for token in [&ns, &id] {
        assert!(token.bytes().all(is_token_byte), "{token}");
    }
    let back = RoomName::from_tokens(&ns, &id, Some(room.channel()));
    assert_eq!(back.as_ref(), Ok(room));
    if !room.has_hashed_token() {
        // Without a need for it the header is not even looked at.
        assert_eq!(
            RoomName::from_tokens(&ns, &id, Some("other")).as_ref(),
            Ok(room)
        );
    }
    assert_eq!(ns.contains("=24"), room.is_private());
    assert_eq!(ns.contains("=23"), room.limited_to().is_some());
    assert!(room.partition() < 64);
    let stored = room.stored_subject("rooms");
    assert_eq!(
        weir_nats::message::room_of(&stored, Some(room.channel())).as_ref(),
        Ok(room)
    );
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'=')
}

/// Any bytes as what a client sends after the upgrade: how they are cut must not matter.
pub(crate) fn websocket(data: &[u8]) {
    const MAX_BYTES: usize = 1_024;
    let whole = events(data, data.len().max(1), MAX_BYTES);
    for step in [1, 3, 64] {
        assert_eq!(events(data, step, MAX_BYTES), whole, "in steps of {step}");
    }
    for event in &whole.0 {
        match event {
            Event::Text(text) => {
                assert!(text.len() <= MAX_BYTES && std::str::from_utf8(text).is_ok());
            }
            Event::Binary(bytes) => assert!(bytes.len() <= MAX_BYTES),
            Event::Ping(bytes) => assert!(bytes.len() <= 125),
            Event::Pong => {}
            Event::Close(code) => {
                assert!(code.is_none_or(|code| (1_000..5_000).contains(&code)));
            }
        }
    }
    if let Some(error) = whole.1 {
        assert!(matches!(error.close_code(), 1002 | 1007 | 1009));
    }
}

/// Everything up to the first close frame or error.
fn events(data: &[u8], step: usize, max_bytes: usize) -> (Vec<Event>, Option<ProtocolError>) {
    let mut decoder = Decoder::new(max_bytes);
    let mut events = Vec::new();
    for some in data.chunks(step) {
        decoder.feed(some);
        loop {
            match decoder.next_event() {
                Ok(None) => break,
                Ok(Some(event)) => {
                    let is_end = matches!(event, Event::Close(_));
                    events.push(event);
                    if is_end {
                        return (events, None);
                    }
                }
                Err(error) => return (events, Some(error)),
            }
        }
        // A frame that is not whole, and the fragments before it.
        assert!(decoder.held_bytes() <= 2 * max_bytes + 14 + 125);
    }
    (events, None)
}
