//! Knows: the keys about clients and bots: sockets, the native door, rooms that are served. Never: what is stored.

use std::time::Duration;

use super::hooks::ClientProxies;
use super::limits::RateLimits;
use super::tokens::{SubscriptionToken, Token};

/// `[websocket]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSocket {
    /// Largest frame a client may send, bytes.
    pub message_size_limit: usize,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            message_size_limit: 65_536,
        }
    }
}

/// `[client]`: what one connection may do and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Values of `Origin` that may connect: `*`, `https://example.com`, or `https://*.example.com` for
    /// every host below it. The page's own host always may.
    pub allowed_origins: Vec<String>,
    /// Everything is allowed to everyone. For trying things out.
    pub insecure: bool,
    /// A connect without a token makes an anonymous user.
    pub allow_anonymous_connect_without_token: bool,
    /// A token without a user is refused.
    pub disallow_anonymous_connection_tokens: bool,
    /// Subscriptions of one connection.
    pub channel_limit: u32,
    /// Connections of this process; 0 has no limit.
    pub connection_limit: u32,
    /// New sockets a second of this process; 0 has no limit. Beyond it: HTTP 503.
    pub connection_rate_limit: u32,
    /// Connections of one user with an id at this process; 0 has no limit. Beyond it: 3504.
    pub user_connection_limit: u32,
    /// Subscriptions of one user with an id at this process; 0 has no limit. Beyond it: 106.
    pub user_channel_limit: u32,
    /// Sockets of one address (IPv6: one /64); 0 has no limit. Beyond it: HTTP 429.
    pub address_connection_limit: u32,
    /// Of these, sockets that have not connected yet; 0 has no limit. Beyond it: HTTP 429.
    pub address_half_open_limit: u32,
    /// Commands a second of one connection, on average; 0 has no limit.
    pub command_rate_limit: u32,
    /// Commands that one connection may send at once; 0 is as many as in a second.
    pub command_burst: u32,
    /// Unsent bytes of one connection, beyond which it is slow: stored rooms wait, the rest is 3008.
    pub queue_max_size: usize,
    /// Between pings; whole seconds, 0 sends none.
    pub ping_interval: Duration,
    /// How long a pong may take, from when the ping was due.
    pub pong_timeout: Duration,
    /// How long a socket may stay without a successful connect.
    pub stale_close_delay: Duration,
    /// How long an expired connection has to refresh.
    pub expired_close_delay: Duration,
    /// How long an expired subscription has to refresh.
    pub expired_sub_close_delay: Duration,
    /// Publications of one history reply.
    pub history_max_publication_limit: u32,
    /// Publications of one recovery reply; a longer recovery goes on as pushes.
    pub recovery_max_publication_limit: u32,
    /// `[client.proxy]`
    pub proxy: ClientProxies,
    /// `[client.rate_limit]`
    pub rate_limit: RateLimits,
    /// `[client.token]`
    pub token: Token,
    /// `[client.subscription_token]`
    pub subscription_token: SubscriptionToken,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            allowed_origins: Vec::new(),
            insecure: false,
            allow_anonymous_connect_without_token: false,
            disallow_anonymous_connection_tokens: false,
            channel_limit: 128,
            connection_limit: 0,
            connection_rate_limit: 0,
            user_connection_limit: 0,
            user_channel_limit: 0,
            address_connection_limit: 0,
            address_half_open_limit: 0,
            command_rate_limit: 0,
            command_burst: 0,
            queue_max_size: 1_048_576,
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(8),
            stale_close_delay: Duration::from_secs(10),
            expired_close_delay: Duration::from_secs(25),
            expired_sub_close_delay: Duration::from_secs(25),
            history_max_publication_limit: 300,
            recovery_max_publication_limit: 300,
            proxy: ClientProxies::default(),
            rate_limit: RateLimits::default(),
            token: Token::default(),
            subscription_token: SubscriptionToken::default(),
        }
    }
}

/// `[room]`: rooms that this process serves now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Rooms with a subscriber here.
    pub limit: u32,
    /// Newest messages of a room kept in memory, so that a reconnect storm reads nothing.
    pub ring_size: u32,
    /// Bytes of that ring, of one room.
    pub ring_max_size: usize,
    /// How long a room without subscribers keeps its ring.
    pub idle_timeout: Duration,
    /// Between looks for live messages that never came.
    pub sweep_interval: Duration,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            limit: 100_000,
            ring_size: 128,
            ring_max_size: 262_144,
            idle_timeout: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(4),
        }
    }
}

/// `[rpc]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rpc {
    /// How long a service may take; SDKs give up at 5 s.
    pub timeout: Duration,
    /// Calls, and reads of history, of one connection that wait for their answer.
    pub in_flight_limit: u32,
}

impl Default for Rpc {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(4),
            in_flight_limit: 32,
        }
    }
}

/// `[door]`: requests of bots and devices on `say.…` and `history.…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// Largest payload of a publish, bytes.
    pub message_size_limit: usize,
    /// Requests a second of one user, on average; 0 has no limit.
    pub rate_limit: u32,
    /// Requests that one user may send at once.
    pub burst: u32,
    /// Publishes of all users that wait for their answer.
    pub in_flight_limit: u32,
    /// Users whose rate is remembered.
    pub users_limit: u32,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            message_size_limit: 65_536,
            rate_limit: 1_000,
            burst: 2_000,
            in_flight_limit: 4_096,
            users_limit: 100_000,
        }
    }
}
