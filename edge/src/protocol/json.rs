//! Knows: the client protocol as JSON lines in WebSocket text frames. Never: what commands do.
//!
//! A frame holds one or more commands or replies, separated by one `\n`. Payloads are embedded raw.

mod decode;
mod encode;

pub use decode::{DecodeError, decode};
pub use encode::{
    connect, empty, error, error_text, history, ping, publication_push, refresh, rpc, sub_refresh,
    subscribe, unsubscribe_push,
};

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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weir_nats::{Author, Door, Epoch, Message, Seq};

    use super::*;
    use crate::protocol::code::ErrorCode;
    use crate::protocol::{Command, CommandKind, Subscribe, SubscribeResult};

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
            data: Some("[1,\n2]".to_owned()),
        };
        assert_eq!(
            text(&subscribe(2, &result)),
            "{\"id\":2,\"subscribe\":{\"recoverable\":true,\"positioned\":true,\"epoch\":\"e\",\"offset\":9,\
             \"publications\":[{\"data\":1}],\"recovered\":true,\"was_recovering\":true,\"data\":[1,2]}}"
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
