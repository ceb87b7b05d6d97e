//! Knows: every setting and bound of an edge, unit in the name, and its default. Never: where they
//! were read from.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use weir_authz::{Grants, NamespaceRules};
use weir_history::Window;

use crate::hook::HookSettings;
use crate::limits::LimitSettings;
use crate::outbox::OutboxLimits;
use crate::rate::{Rate, Rates};
use crate::room::RingLimits;

/// What an edge is told by the configuration. `client.…` keys have Centrifugo's names there.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    /// `client.*`: limits and delays of one connection.
    pub client: ClientSettings,
    /// Options of rooms without a namespace; `None` if there are no such rooms.
    pub without_namespace: Option<Namespace>,
    /// Options by namespace name.
    pub namespaces: HashMap<String, Namespace>,
    /// Time-out of one rpc request to a NATS service. Below the 5 s at which SDKs give up.
    pub rpc_timeout: Duration,
    /// Bounds of the native door.
    pub door: DoorSettings,
    /// Over how long connections are closed when the edge goes away.
    pub shutdown_spread: Duration,
    /// What the application's services are asked.
    pub hooks: HookSettings,
    /// How much users and others may do.
    pub limits: LimitSettings,
    /// Bounds that have no key of Centrifugo's.
    pub bounds: Bounds,
}

/// Limits and delays of one connection.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Origins that may connect beside the host that was asked for; `*` for all. See
    /// [`crate::origin`].
    pub allowed_origins: Vec<String>,
    /// Everything is allowed, nothing expires. For development.
    pub insecure: bool,
    /// A connect without a token is the anonymous user.
    pub allow_anonymous_connect_without_token: bool,
    /// A valid token without a user is refused with 3507.
    pub disallow_anonymous_connection_tokens: bool,
    /// Subscriptions of one connection.
    pub channel_limit: usize,
    /// Sockets of this edge; 0 is no limit. Beyond it HTTP 503.
    pub connection_limit: usize,
    /// Sockets a second that this edge accepts; 0 is no limit. Beyond it HTTP 503.
    pub connection_rate_limit_per_s: u32,
    /// Connections of one user at this edge, the anonymous one excepted; 0 is no limit. Beyond it
    /// 3504.
    pub user_connection_limit: usize,
    /// Bytes that may wait for one socket besides stored publications; beyond it 3008.
    pub queue_max_size_bytes: usize,
    /// Bytes of one inbound WebSocket message; beyond it close 1009.
    pub message_size_limit_bytes: usize,
    /// Between pings; 0 sends none.
    pub ping_interval: Duration,
    /// For the answer to a ping, from when the ping was due; then 3012.
    pub pong_timeout: Duration,
    /// For the connect command; then 3502.
    pub stale_close_delay: Duration,
    /// For a refresh after the connection's expiry; then 3005.
    pub expired_close_delay: Duration,
    /// For a refresh after a subscription's expiry; then it ends with 2501.
    pub expired_sub_close_delay: Duration,
    /// Publications in one history answer.
    pub history_max_publication_limit: u32,
    /// Publications in one subscribe answer; what is missing follows as ordinary pushes.
    pub recovery_max_publication_limit: u32,
}

/// The options of one namespace that the edge acts on.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Who may do what.
    pub rules: NamespaceRules,
    /// The log that keeps its rooms.
    pub log: String,
    /// Not stored at all (`history_size = 0`): publications go to `eph.` and have no offset.
    pub stored: bool,
    /// The logical window of `history_size` and `history_ttl`.
    pub window: Window,
    /// Clients get positions and may recover, whether they ask or not.
    pub force_recovery: bool,
    /// Clients that ask may recover.
    pub allow_recovery: bool,
    /// Clients get positions, whether they ask or not.
    pub force_positioning: bool,
    /// Clients that ask get positions.
    pub allow_positioning: bool,
    /// What a payload must be.
    pub data_format: DataFormat,
    /// How much all its rooms together take at this edge, from every door.
    pub rates: Rates,
    /// Its rooms that are open at this edge; 0 is no limit of its own. Beyond it 111.
    pub rooms_max: usize,
}

/// `publication_data_format`: what a payload must be to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFormat {
    /// Any JSON value.
    Json,
    /// A JSON object.
    JsonObject,
    /// Any bytes; a JSON client that would be shown what is not JSON is closed with 3506.
    Binary,
}

/// Bounds of the native door.
#[derive(Clone, Debug)]
pub struct DoorSettings {
    /// Bytes of one payload.
    pub message_size_limit_bytes: usize,
    /// Requests that one user may send; beyond it 111.
    pub rate: Rate,
    /// Users whose rate is remembered.
    pub users_max: usize,
    /// Publishes worked on at once; beyond it 111.
    pub in_flight_max: usize,
    /// Users whose replies may go to any `_INBOX.`, such as `ops`.
    pub operators: Vec<String>,
    /// The users of nats-server's configuration, where all others log in with tokens; `None` where there
    /// are no others.
    pub static_users: Option<HashSet<String>>,
}

impl DoorSettings {
    /// What a native user may do. The permissions of one who logged in with a token are its grants, and
    /// nats-server has compared the subject of the request with them; the others have the rules of
    /// namespaces.
    #[must_use]
    pub fn grants(&self, user: &str) -> Grants {
        let users = self.static_users.as_ref();
        if users.is_some_and(|users| !users.contains(user)) {
            Grants::rendered(user)
        } else {
            Grants::native(user)
        }
    }
}

/// Bounds without a key of Centrifugo's.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Rooms open on this edge.
    pub rooms_max: usize,
    /// A room's ring.
    pub ring: RingLimits,
    /// Bytes of all rings together; beyond it rooms keep less.
    pub rings_max_bytes: i64,
    /// Bytes of stored publications that may wait for one socket before it is moved to the log.
    pub pushes_max_bytes: usize,
    /// Bytes of one page that a reader behind is served with.
    pub page_max_bytes: u32,
    /// Bytes of publications in one reply.
    pub reply_max_bytes: u32,
    /// Commands in one inbound message.
    pub commands_per_frame_max: usize,
    /// History and rpc commands of one connection that run at once, and those that wait for their
    /// token's key; beyond it 111.
    pub slow_commands_max: usize,
    /// Bytes unsent in the kernel for one socket (`TCP_NOTSENT_LOWAT`).
    pub kernel_unsent_max_bytes: u32,
    /// How long a room without members stays open.
    pub room_idle: Duration,
    /// Between sweeps for lost tails.
    pub sweep_interval: Duration,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            allowed_origins: Vec::new(),
            insecure: false,
            allow_anonymous_connect_without_token: false,
            disallow_anonymous_connection_tokens: false,
            channel_limit: 128,
            connection_limit: 0,
            connection_rate_limit_per_s: 0,
            user_connection_limit: 0,
            queue_max_size_bytes: 1 << 20,
            message_size_limit_bytes: 64 << 10,
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(8),
            stale_close_delay: Duration::from_secs(10),
            expired_close_delay: Duration::from_secs(25),
            expired_sub_close_delay: Duration::from_secs(25),
            history_max_publication_limit: 300,
            recovery_max_publication_limit: 300,
        }
    }
}

impl Default for DoorSettings {
    fn default() -> Self {
        Self {
            message_size_limit_bytes: 64 << 10,
            rate: Rate {
                per_s: 1_000,
                burst: 2_000,
            },
            users_max: 100_000,
            in_flight_max: 4_096,
            operators: Vec::new(),
            static_users: None,
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            rooms_max: 100_000,
            ring: RingLimits {
                ring_max_messages: 512,
                ring_max_bytes: 256 << 10,
            },
            rings_max_bytes: 256 << 20,
            pushes_max_bytes: 64 << 10,
            page_max_bytes: 64 << 10,
            reply_max_bytes: 384 << 10,
            commands_per_frame_max: 1_024,
            slow_commands_max: 32,
            kernel_unsent_max_bytes: 128 << 10,
            room_idle: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(4),
        }
    }
}

impl EdgeSettings {
    /// The options that a room's name selects; `None` is an unknown namespace (error 102).
    #[must_use]
    pub fn namespace(&self, room: &weir_nats::RoomName) -> Option<&Namespace> {
        match room.namespace() {
            Some(name) => self.namespaces.get(name),
            None => self.without_namespace.as_ref(),
        }
    }

    /// The bounds of one socket's outgoing side.
    #[must_use]
    pub fn outbox(&self) -> OutboxLimits {
        OutboxLimits {
            pushes_max_bytes: self.bounds.pushes_max_bytes,
            queue_max_bytes: self.client.queue_max_size_bytes,
        }
    }
}
