//! Knows: text frames of clients as commands. Never: what commands do, how replies look.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::protocol::{Command, CommandKind, Connect, History, Subscribe};

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
    #[serde(borrow)]
    subscribe: Option<Object<RawSubscribe<'a>>>,
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
    #[serde(deserialize_with = "nullable")]
    headers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSubscribe<'a> {
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
    #[serde(borrow)]
    data: Option<&'a RawValue>,
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
            .map_err(|error| DecodeError::Malformed(describe(&error)))?;
        commands.push(raw.into_command(frame));
    }
    Ok(commands)
}

/// What is wrong, for a log: without what the client wrote, which may be its token.
fn describe(error: &serde_json::Error) -> String {
    if error.is_data() {
        let column = error.column();
        format!("a field is twice there or has the wrong type (column {column})")
    } else {
        error.to_string()
    }
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
                headers: connect.headers,
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
                data: subscribe.data.map(|data| bytes(Some(data))),
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
