//! Knows: every code of the client protocol and what a client does with it. Never: when one is used.
//!
//! Numbers and texts are those of centrifugal/centrifuge (`errors.go`, `disconnect.go`,
//! `unsubscribe.go`), as SDKs act on the numbers.

/// An error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode {
    /// The number.
    pub code: u32,
    /// The text.
    pub message: &'static str,
    /// The client may try again.
    pub temporary: bool,
}

/// A close of the connection. Below 3500 (and 4000–4499) the client comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DisconnectCode {
    /// The WebSocket close code.
    pub code: u16,
    /// The close reason, at most 123 bytes.
    pub reason: &'static str,
}

/// The end of one subscription. From 2500 on the client subscribes again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsubscribeCode {
    /// The number.
    pub code: u32,
    /// The text.
    pub reason: &'static str,
}

macro_rules! errors {
    ($($(#[doc = $doc:expr])+ $name:ident = $code:literal $message:literal $temporary:literal),+ $(,)?) => {
        impl ErrorCode { $($(#[doc = $doc])+ pub const $name: Self =
            Self { code: $code, message: $message, temporary: $temporary };)+ }
    };
}
macro_rules! disconnects {
    ($($(#[doc = $doc:expr])+ $name:ident = $code:literal $reason:literal),+ $(,)?) => {
        impl DisconnectCode { $($(#[doc = $doc])+ pub const $name: Self =
            Self { code: $code, reason: $reason };)+ }
    };
}
macro_rules! unsubscribes {
    ($($(#[doc = $doc:expr])+ $name:ident = $code:literal $reason:literal),+ $(,)?) => {
        impl UnsubscribeCode { $($(#[doc = $doc])+ pub const $name: Self =
            Self { code: $code, reason: $reason };)+ }
    };
}

errors! {
    /// Something here failed: try again.
    INTERNAL = 100 "internal server error" true,
    /// No or no valid identity.
    UNAUTHORIZED = 101 "unauthorized" false,
    /// The namespace does not exist.
    UNKNOWN_CHANNEL = 102 "unknown channel" false,
    /// No right to do this here.
    PERMISSION_DENIED = 103 "permission denied" false,
    /// There is no such method.
    METHOD_NOT_FOUND = 104 "method not found" false,
    /// The connection has this channel.
    ALREADY_SUBSCRIBED = 105 "already subscribed" false,
    /// Too many channels or rooms.
    LIMIT_EXCEEDED = 106 "limit exceeded" false,
    /// The request makes no sense.
    BAD_REQUEST = 107 "bad request" false,
    /// Not offered here.
    NOT_AVAILABLE = 108 "not available" false,
    /// The token has expired: get a new one.
    TOKEN_EXPIRED = 109 "token expired" false,
    /// The connection or subscription has expired.
    EXPIRED = 110 "expired" false,
    /// Slow down, then try again.
    TOO_MANY_REQUESTS = 111 "too many requests" true,
    /// Recovery is impossible, and the client wanted to be told so.
    UNRECOVERABLE_POSITION = 112 "unrecoverable position" false,
}

disconnects! {
    /// The peer closed.
    CONNECTION_CLOSED = 3000 "connection closed",
    /// The server goes away.
    SHUTDOWN = 3001 "shutdown",
    /// Something here failed.
    INTERNAL = 3004 "internal server error",
    /// The connection's time is over.
    EXPIRED = 3005 "connection expired",
    /// A subscription's time is over.
    SUBSCRIPTION_EXPIRED = 3006 "subscription expired",
    /// Too slow for what nothing stores.
    SLOW = 3008 "slow",
    /// The socket cannot be written.
    WRITE_ERROR = 3009 "write error",
    /// A server-side subscription cannot go on.
    INSUFFICIENT_STATE = 3010 "insufficient state",
    /// The server wants the client to come back.
    FORCE_RECONNECT = 3011 "force reconnect",
    /// No answer to a ping.
    NO_PONG = 3012 "no pong",
    /// Far too many requests.
    TOO_MANY_REQUESTS = 3013 "too many requests",
    /// Tokens and positions have to be dropped.
    STATE_INVALIDATED = 3014 "state invalidated",
    /// The token is not valid.
    INVALID_TOKEN = 3500 "invalid token",
    /// The token was valid and no longer is: as an invalid one.
    TOKEN_REVOKED = 3500 "token revoked",
    /// The client broke the protocol.
    BAD_REQUEST = 3501 "bad request",
    /// No connect command in time.
    STALE = 3502 "stale",
    /// By order of the application.
    FORCE_DISCONNECT = 3503 "force disconnect",
    /// Too many connections.
    CONNECTION_LIMIT = 3504 "connection limit",
    /// Too many channels.
    CHANNEL_LIMIT = 3505 "channel limit",
    /// A JSON client would have to be shown what is not JSON.
    INAPPROPRIATE_PROTOCOL = 3506 "inappropriate protocol",
    /// No right to connect.
    PERMISSION_DENIED = 3507 "permission denied",
    /// Not offered here.
    NOT_AVAILABLE = 3508 "not available",
    /// Too many errors.
    TOO_MANY_ERRORS = 3509 "too many errors",
}

unsubscribes! {
    /// By order of the application.
    SERVER = 2000 "server unsubscribe",
    /// Continuity broke: subscribe again and recover.
    INSUFFICIENT_STATE = 2500 "insufficient state",
    /// The subscription's time is over.
    EXPIRED = 2501 "subscription expired",
    /// Token and position have to be dropped.
    STATE_INVALIDATED = 2502 "state invalidated",
}

impl DisconnectCode {
    /// True if the client comes back by itself.
    #[must_use]
    pub const fn reconnects(self) -> bool {
        matches!(self.code, 3000..=3499 | 4000..=4499 | 5000..)
    }
}
