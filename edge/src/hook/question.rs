//! Knows: what is asked of a service, as JSON, and which answers fit which question. Never: how it gets there.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use weir_authz::hook::{self, Answer, Broken, Connected, Published, Refreshed, Subscribed};
use weir_nats::RoomName;

use crate::door::check_format;
use crate::protocol::json::is_json;
use crate::protocol::{Connect, Subscribe};
use crate::settings::DataFormat;

/// A question of one connection, and the command that waits for it.
#[derive(Debug)]
pub(crate) struct Question {
    /// The command's.
    pub(crate) id: u32,
    pub(crate) client: String,
    /// Empty before there is one.
    pub(crate) user: String,
    /// What the connection's token or connect hook left for services.
    pub(crate) meta: Option<Arc<str>>,
    pub(crate) about: About,
}

/// What is asked.
#[derive(Debug)]
pub(crate) enum About {
    /// Who is this?
    Connect(Connect),
    /// Does the connection go on?
    Refresh,
    /// May it join?
    Subscribe {
        room: RoomName,
        subscribe: Subscribe,
    },
    /// May it publish this?
    Publish {
        room: RoomName,
        data: Bytes,
        format: DataFormat,
        stored: bool,
    },
}

/// An answer that fits the question.
#[derive(Debug)]
pub(crate) enum Heard {
    Connect(Answer<Connected>),
    Refresh(Answer<Refreshed>),
    Subscribe(Answer<Subscribed>),
    Publish(Answer<Published>),
}

/// The fields of Centrifugo's proxy requests.
#[derive(Serialize)]
struct Request<'q> {
    client: &'q str,
    transport: &'static str,
    protocol: &'static str,
    encoding: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'q str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'q str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'q str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'q str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'q RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<&'q RawValue>,
}

impl Question {
    /// The room of a publish: its publishes keep their order.
    pub(crate) fn publishes_in(&self) -> Option<&RoomName> {
        match &self.about {
            About::Publish { room, .. } => Some(room),
            About::Connect(_) | About::Refresh | About::Subscribe { .. } => None,
        }
    }

    /// As it is sent.
    pub(crate) fn to_json(&self, with_meta: bool) -> Bytes {
        let (mut name, mut version) = ("", "");
        let (user, channel, data) = match &self.about {
            About::Connect(connect) => {
                (name, version) = (&connect.name, &connect.version);
                (None, None, connect.data.as_ref())
            }
            About::Refresh => (Some(&self.user), None, None),
            About::Subscribe { room, subscribe } => {
                (Some(&self.user), Some(room), subscribe.data.as_ref())
            }
            About::Publish { room, data, .. } => (Some(&self.user), Some(room), Some(data)),
        };
        let raw = |bytes: &[u8]| serde_json::from_slice::<Box<RawValue>>(bytes).ok();
        let data = data.and_then(|data| raw(data));
        let meta = self.meta.as_ref().filter(|_| with_meta);
        let meta = meta.and_then(|meta| raw(meta.as_bytes()));
        let request = Request {
            client: &self.client,
            transport: "websocket",
            protocol: "json",
            encoding: "json",
            user: user.map(String::as_str),
            channel: channel.map(RoomName::channel),
            name,
            version,
            data: data.as_deref(),
            meta: meta.as_deref(),
        };
        serde_json::to_vec(&request)
            .expect("texts and JSON can be written into memory")
            .into()
    }

    /// Reads an answer to this question.
    pub(crate) fn read(&self, answer: &[u8], now_s: i64) -> Result<Heard, Broken> {
        match &self.about {
            About::Connect(_) => {
                let heard = hook::connect(answer, now_s)?;
                if let Answer::Allowed(found) = &heard {
                    shown([&found.claims.info, &found.data])?;
                }
                Ok(Heard::Connect(heard))
            }
            About::Refresh => {
                let heard = hook::refresh(answer, now_s)?;
                if let Answer::Allowed(found) = &heard {
                    shown([&found.info])?;
                }
                Ok(Heard::Refresh(heard))
            }
            About::Subscribe { room, .. } => {
                let heard = hook::subscribe(answer, &self.user, room, now_s)?;
                if let Answer::Allowed(found) = &heard {
                    shown([&found.options.info, &found.options.data])?;
                }
                Ok(Heard::Subscribe(heard))
            }
            About::Publish {
                room,
                format,
                stored,
                ..
            } => {
                let heard = hook::publish(answer, &self.user, room)?;
                if let Answer::Allowed(found) = &heard {
                    if found.skip_history && *stored {
                        return Err(Broken::new(
                            "skip_history: this namespace stores what is published",
                        ));
                    }
                    if let Some(data) = &found.data {
                        check_format(*format, data).map_err(Broken::new)?;
                    }
                }
                Ok(Heard::Publish(heard))
            }
        }
    }
}

/// What clients are shown is JSON that they can read.
fn shown<const N: usize>(texts: [&Option<String>; N]) -> Result<(), Broken> {
    let mut texts = texts.into_iter().flatten();
    if texts.all(|text| is_json(text.as_bytes())) {
        Ok(())
    } else {
        Err(Broken::new("its info or data nests too deep"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(about: About) -> Question {
        Question {
            id: 1,
            client: "c1".into(),
            user: "ann".into(),
            meta: Some("{\"m\":1}".into()),
            about,
        }
    }

    fn text(question: &Question, with_meta: bool) -> String {
        String::from_utf8(question.to_json(with_meta).to_vec()).unwrap()
    }

    #[test]
    fn questions_are_those_of_the_proxies() {
        let base = r#""client":"c1","transport":"websocket","protocol":"json","encoding":"json""#;
        let connect = About::Connect(Connect {
            data: Some(Bytes::from_static(b"{\"a\": 1}")),
            name: "js".into(),
            ..Connect::default()
        });
        assert_eq!(
            text(&question(connect), false),
            format!(r#"{{{base},"name":"js","data":{{"a": 1}}}}"#)
        );
        assert_eq!(
            text(&question(About::Refresh), true),
            format!(r#"{{{base},"user":"ann","meta":{{"m":1}}}}"#)
        );
        let room = RoomName::parse("chat:é").unwrap();
        let subscribe = About::Subscribe {
            room: room.clone(),
            subscribe: Subscribe::default(),
        };
        assert_eq!(
            text(&question(subscribe), false),
            format!(r#"{{{base},"user":"ann","channel":"chat:é"}}"#)
        );
        let publish = About::Publish {
            room,
            data: Bytes::from_static(b"[1]"),
            format: DataFormat::Json,
            stored: true,
        };
        assert_eq!(
            text(&question(publish), false),
            format!(r#"{{{base},"user":"ann","channel":"chat:é","data":[1]}}"#)
        );
    }

    #[test]
    fn what_would_be_published_or_shown_is_checked() {
        let publish = |format| {
            question(About::Publish {
                room: RoomName::parse("chat:a").unwrap(),
                data: Bytes::from_static(b"1"),
                format,
                stored: true,
            })
        };
        let deep = format!("{}{}", "[".repeat(101), "]".repeat(101));
        for (format, result, fits) in [
            (DataFormat::Json, r#"{"data":[1]}"#.to_owned(), true),
            (DataFormat::JsonObject, r#"{"data":[1]}"#.to_owned(), false),
            (DataFormat::Json, r#"{"b64data":"eA=="}"#.to_owned(), false),
            (DataFormat::Binary, r#"{"b64data":"eA=="}"#.to_owned(), true),
            (DataFormat::Json, format!(r#"{{"data":{deep}}}"#), false),
            (
                DataFormat::Json,
                r#"{"skip_history":true}"#.to_owned(),
                false,
            ),
        ] {
            let answer = format!(r#"{{"result":{result}}}"#);
            let found = publish(format).read(answer.as_bytes(), 0);
            assert_eq!(found.is_ok(), fits, "{format:?} {result}");
        }
        let answer = format!(r#"{{"result":{{"user":"ann","data":{deep}}}}}"#);
        let connect = question(About::Connect(Connect::default()));
        assert!(connect.read(answer.as_bytes(), 0).is_err());
    }
}
