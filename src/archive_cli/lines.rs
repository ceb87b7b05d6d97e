//! Knows: the file that `export` writes and `import` reads, one JSON object a line (docs/archive.md). Never: files, archives.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use weir_history::archive::Quarantined;
use weir_history::held::Held;
use weir_history::listing::StreamRecord;
use weir_nats::erasure::Order;
use weir_nats::guard::Known;
use weir_nats::placement::Generation;
use weir_nats::{Author, Door, Epoch, Message, Seq};

/// What this Weir writes, and all that it reads.
pub(super) const VERSION: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// The first.
    WeirArchive(Header),
    /// Each stream, before all rows.
    Stream(StreamLine),
    /// An order of erasure, which holds in the archive that reads it, too.
    Erasure(Order),
    /// A message, by room, offset and epoch.
    Row(RowLine),
    /// A message that is no row.
    Quarantine(QuarantineLine),
    /// What is held whole, once all the rows before it are there.
    Held(HeldLine),
    /// The last: without it the file is cut.
    End(EndLine),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) version: u32,
    /// The id of the archive that was exported.
    pub(super) archive: String,
    /// Only this log.
    pub(super) log: Option<String>,
    /// Only this room; such a file proves nothing of streams, so it has no `held`.
    pub(super) room: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamLine {
    pub(super) name: String,
    pub(super) log: String,
    pub(super) slot: u16,
    pub(super) epoch: Epoch,
    pub(super) from: Seq,
    pub(super) created: String,
    /// What it held when the export began.
    pub(super) held: Vec<(u64, u64)>,
}

impl StreamLine {
    pub(super) fn new(stream: &StreamRecord, held: &Held) -> Self {
        Self {
            name: stream.generation.stream.clone(),
            log: stream.log.clone(),
            slot: stream.slot,
            epoch: stream.generation.epoch.clone(),
            from: stream.generation.from,
            created: stream.known.created.clone(),
            held: held.ranges().to_vec(),
        }
    }

    /// What is known of its highest message follows from the rows.
    pub(super) fn record(&self) -> StreamRecord {
        StreamRecord {
            log: self.log.clone(),
            slot: self.slot,
            generation: Generation {
                stream: self.name.clone(),
                epoch: self.epoch.clone(),
                from: self.from,
            },
            known: Known {
                created: self.created.clone(),
                ..Known::default()
            },
        }
    }
}

/// Bytes: text where they are UTF-8, so that chat reads like a chat; base64 else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Data {
    Text(String),
    Binary { base64: String },
}

impl From<&[u8]> for Data {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Binary {
                base64: BASE64.encode(bytes),
            },
        }
    }
}

impl Data {
    pub(super) fn bytes(self) -> Result<Vec<u8>, String> {
        match self {
            Self::Text(text) => Ok(text.into_bytes()),
            Self::Binary { base64 } => BASE64
                .decode(base64.as_bytes())
                .map_err(|error| format!("base64: {error}")),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RowLine {
    pub(super) log: String,
    pub(super) room: String,
    pub(super) epoch: Epoch,
    pub(super) offset: Seq,
    pub(super) time_ms: i64,
    pub(super) id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) author: Option<AuthorLine>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) tags: BTreeMap<String, String>,
    pub(super) data: Data,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthorLine {
    pub(super) user: String,
    pub(super) client: String,
    pub(super) door: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) info: Option<Data>,
}

impl RowLine {
    pub(super) fn new(log: &str, room: &str, epoch: &Epoch, message: &Message) -> Self {
        Self {
            log: log.to_owned(),
            room: room.to_owned(),
            epoch: epoch.clone(),
            offset: message.seq,
            time_ms: message.time_ms,
            id: message.id.clone(),
            author: message.author.as_ref().map(|author| AuthorLine {
                user: author.user.clone(),
                client: author.client.clone(),
                door: author.door.as_str().to_owned(),
                info: author.info.as_deref().map(Data::from),
            }),
            tags: message.tags.clone(),
            data: Data::from(&message.data[..]),
        }
    }

    pub(super) fn message(self) -> Result<Message, String> {
        let author = self.author.map(|author| {
            Ok::<_, String>(Author {
                user: author.user,
                client: author.client,
                info: author.info.map(Data::bytes).transpose()?.map(Into::into),
                door: Door::from_text(&author.door),
            })
        });
        Ok(Message {
            seq: self.offset,
            time_ms: self.time_ms,
            id: self.id,
            author: author.transpose()?,
            tags: self.tags,
            data: self.data.bytes()?.into(),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuarantineLine {
    pub(super) stream: String,
    pub(super) offset: Seq,
    pub(super) subject: String,
    pub(super) reason: String,
    /// One `Name: value` a line.
    pub(super) headers: String,
    pub(super) data: Data,
}

impl QuarantineLine {
    pub(super) fn new(stream: &str, one: &Quarantined) -> Self {
        Self {
            stream: stream.to_owned(),
            offset: one.seq,
            subject: one.subject.clone(),
            reason: one.reason.clone(),
            headers: one.headers.clone(),
            data: Data::from(&one.data[..]),
        }
    }

    pub(super) fn quarantined(self) -> Result<Quarantined, String> {
        Ok(Quarantined {
            seq: self.offset,
            subject: self.subject,
            headers: self.headers,
            data: self.data.bytes()?.into(),
            reason: self.reason,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldLine {
    pub(super) stream: String,
    /// Both ends included.
    pub(super) ranges: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndLine {
    pub(super) rows: u64,
    pub(super) quarantined: u64,
}

impl Line {
    /// The line, with its end.
    pub(super) fn to_text(&self) -> String {
        let mut text = serde_json::to_string(self).expect("a line becomes JSON");
        text.push('\n');
        text
    }

    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| format!("it is no line of an export: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &Line, json: &str) {
        assert_eq!(line.to_text(), format!("{json}\n"));
        assert_eq!(&Line::parse(json.as_bytes()).unwrap(), line);
    }

    #[test]
    fn lines_are_as_documented() {
        let header = Header {
            version: 1,
            archive: "abc".into(),
            log: None,
            room: None,
        };
        check(
            &Line::WeirArchive(header),
            r#"{"weir_archive":{"version":1,"archive":"abc","log":null,"room":null}}"#,
        );
        let message = Message {
            seq: Seq::new(7),
            time_ms: 1_000,
            id: "id".into(),
            author: Some(Author {
                user: "ann".into(),
                client: String::new(),
                info: Some(bytes::Bytes::from_static(b"{\"a\":1}")),
                door: Door::Nats,
            }),
            tags: BTreeMap::from([("k".into(), "v".into())]),
            data: bytes::Bytes::from_static(b"{\"t\":\"\xc3\xa9\"}"),
        };
        let epoch = Epoch::new("e").unwrap();
        let row = RowLine::new("rooms", "chat:lobby", &epoch, &message);
        check(
            &Line::Row(row.clone()),
            r#"{"row":{"log":"rooms","room":"chat:lobby","epoch":"e","offset":7,"time_ms":1000,"id":"id","author":{"user":"ann","client":"","door":"nats","info":"{\"a\":1}"},"tags":{"k":"v"},"data":"{\"t\":\"é\"}"}}"#,
        );
        assert_eq!(row.message().unwrap(), message);
        let bare = Message {
            author: None,
            tags: BTreeMap::new(),
            data: bytes::Bytes::from_static(b"\x00\xff"),
            ..message
        };
        let row = RowLine::new("rooms", "a\u{0}b", &epoch, &bare);
        check(
            &Line::Row(row.clone()),
            r#"{"row":{"log":"rooms","room":"a\u0000b","epoch":"e","offset":7,"time_ms":1000,"id":"id","data":{"base64":"AP8="}}}"#,
        );
        assert_eq!(row.message().unwrap(), bare);
        let held = HeldLine {
            stream: "ROOMS_0".into(),
            ranges: vec![(1, 7), (9, 9)],
        };
        check(
            &Line::Held(held),
            r#"{"held":{"stream":"ROOMS_0","ranges":[[1,7],[9,9]]}}"#,
        );
    }

    #[test]
    fn every_payload_comes_back() {
        for bytes in [
            &b""[..],
            b"{}",
            b"\n",
            b"\"",
            b"\xff\xfe",
            b"\xc3\xa9",
            b"base64",
        ] {
            let text = serde_json::to_string(&Data::from(bytes)).unwrap();
            assert!(!text.contains('\n'));
            let back: Data = serde_json::from_str(&text).unwrap();
            assert_eq!(back.bytes().unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_not_known_is_not_skipped() {
        for wrong in [
            r#"{"later":{}}"#,
            r#"{"end":{"rows":1,"quarantined":0,"later":1}}"#,
            r#"{"end":{"rows":1}}"#,
            "{}",
            "",
        ] {
            assert!(Line::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
