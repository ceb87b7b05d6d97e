//! Knows: the client protocol v2 as types (shared/`client.proto` of centrifugal/protocol names the
//! fields). Never: bytes on a wire, sessions, rooms.

pub mod code;
pub mod json;

use std::collections::BTreeMap;

use bytes::Bytes;
use weir_nats::{Epoch, Seq};

/// One command of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Chosen by the client; the reply has it. 0 for `send` and pongs.
    pub id: u32,
    /// What is asked.
    pub kind: CommandKind,
}

/// What a client asks. Payloads are raw JSON, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// The first command of a connection.
    Connect(Connect),
    /// Join a channel.
    Subscribe(Subscribe),
    /// Leave a channel.
    Unsubscribe {
        /// The channel.
        channel: String,
    },
    /// Publish into a channel.
    Publish {
        /// The channel.
        channel: String,
        /// The payload.
        data: Bytes,
    },
    /// Who is in a channel.
    Presence {
        /// The channel.
        channel: String,
    },
    /// How many are in a channel.
    PresenceStats {
        /// The channel.
        channel: String,
    },
    /// Read a channel back.
    History(History),
    /// A method of the application.
    Rpc {
        /// The method; may be empty.
        method: String,
        /// The payload.
        data: Bytes,
    },
    /// A message to the application that wants no answer.
    Send {
        /// The payload.
        data: Bytes,
    },
    /// A new connection token.
    Refresh {
        /// The token.
        token: String,
    },
    /// A new subscription token.
    SubRefresh {
        /// The channel.
        channel: String,
        /// The token.
        token: String,
    },
    /// An empty command: the answer to a ping.
    Empty,
    /// A `ping` command, which clients do not send.
    Ping,
}

/// `ConnectRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// The connection token; empty without one.
    pub token: String,
    /// For the application.
    pub data: Option<Bytes>,
    /// The client library's name.
    pub name: String,
    /// The client library's version.
    pub version: String,
    /// Headers that the client could not give in its HTTP request.
    pub headers: BTreeMap<String, String>,
}

/// `SubscribeRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscribe {
    /// The channel.
    pub channel: String,
    /// The subscription token; empty without one.
    pub token: String,
    /// Recover from the position that follows.
    pub recover: bool,
    /// The epoch of the position; empty matches any.
    pub epoch: String,
    /// The last offset seen.
    pub offset: u64,
    /// The client asks for a position.
    pub positioned: bool,
    /// The client asks to be able to recover.
    pub recoverable: bool,
    /// The client asks for joins and leaves.
    pub join_leave: bool,
    /// Bit 1: compaction; bit 2: error 112 instead of `recovered: false`.
    pub flag: i64,
    /// 0 is a stream subscription; others are not offered.
    pub kind: i32,
    /// The delta format asked for; empty for none.
    pub delta: String,
    /// A tags filter was given.
    pub has_tags_filter: bool,
    /// For the application.
    pub data: Option<Bytes>,
}

/// `HistoryRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The channel.
    pub channel: String,
    /// 0 asks for the position only, -1 for all (up to the server's limit).
    pub limit: i32,
    /// Exclusive.
    pub since: Option<(u64, String)>,
    /// Newest first.
    pub reverse: bool,
}

/// `SubscribeResult`.
#[derive(Clone, Debug, Default)]
pub struct SubscribeResult {
    /// The client may recover.
    pub recoverable: bool,
    /// The server tracks the position.
    pub positioned: bool,
    /// Epoch and offset, for positioned subscriptions.
    pub position: Option<(Epoch, Seq)>,
    /// Encoded publications, oldest first.
    pub publications: Vec<Bytes>,
    /// Everything missed is here or follows.
    pub recovered: bool,
    /// Recovery was asked for.
    pub was_recovering: bool,
    /// Seconds until the subscription expires; `None` if it does not.
    pub ttl_s: Option<u32>,
    /// For the client, JSON, from its token.
    pub data: Option<String>,
}

/// `ConnectResult`.
#[derive(Clone, Debug, Default)]
pub struct ConnectResult {
    /// The connection's id, a UUID.
    pub client: String,
    /// The server's name and version.
    pub version: String,
    /// Seconds until a refresh is expected; `None` if the connection does not expire.
    pub ttl_s: Option<u32>,
    /// Seconds between pings; 0 for none.
    pub ping_s: u32,
    /// For the client, JSON, from the application.
    pub data: Option<String>,
}
