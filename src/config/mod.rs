//! Knows: every key of Weir, its type, its unit and its default: about clients (clients.rs), rooms and what is kept of
//! them (rooms.rs), what the application is asked (hooks.rs), the process (process.rs). Names and meanings are Centrifugo's where it has them.
//! Never: the types of other crates (`node.rs` builds those), a port, a socket.

mod clients;
mod hooks;
mod limits;
mod load;
mod process;
mod read;
mod rooms;
mod rules;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq as _;

pub use clients::{Client, Door, Room, Rpc, WebSocket};
pub use hooks::{ChannelProxies, ClientProxies, Hooks, NATS, NamespaceProxies, Proxy};
pub use limits::{Limit, RateLimit, RateLimits};
pub use load::{ConfigErrors, Loaded};
pub use process::{
    HttpServer, Log, LogFormat, Nats, NatsServer, NatsUser, OPERATOR, ServerTls, Shutdown,
};
pub use read::{Problem, Sources, parse_duration};
pub use rooms::{
    Archive, ArchiveKind, Channels, DataFormat, History, LogOptions, Namespace, Publish, Storage,
};
pub use tokens::{AuthCallout, Issuer, Revocation, SubscriptionToken, Token};

/// A secret: it prints as `***` and never reaches a log, and comparing two of one length takes as long whatever they are.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// No secret was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "***" })
    }
}

/// Everything that can be configured, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `data_dir`: where the archive, and with `weir up` the NATS store and its passwords, are kept.
    pub data_dir: PathBuf,
    /// `[log]`
    pub log: Log,
    /// `[http_server]`
    pub http_server: HttpServer,
    /// `[websocket]`
    pub websocket: WebSocket,
    /// `[client]`
    pub client: Client,
    /// `[channel]`
    pub channel: Channels,
    /// `[[logs]]`: where rooms are kept. Never empty.
    pub logs: Vec<LogOptions>,
    /// `[room]`
    pub room: Room,
    /// `[publish]`
    pub publish: Publish,
    /// `[history]`
    pub history: History,
    /// `[archive]`
    pub archive: Archive,
    /// `[rpc]`
    pub rpc: Rpc,
    /// `[door]`
    pub door: Door,
    /// `[hooks]`
    pub hooks: Hooks,
    /// `[[proxies]]`: hooks that namespaces name.
    pub proxies: Vec<(String, Proxy)>,
    /// `[nats]`
    pub nats: Nats,
    /// `[auth_callout]`
    pub auth_callout: AuthCallout,
    /// `[revocation]`
    pub revocation: Revocation,
    /// `[nats_server]`, of `weir up` only
    pub nats_server: NatsServer,
    /// `[shutdown]`
    pub shutdown: Shutdown,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            log: Log::default(),
            http_server: HttpServer::default(),
            websocket: WebSocket::default(),
            client: Client::default(),
            channel: Channels::default(),
            logs: vec![LogOptions::default()],
            room: Room::default(),
            publish: Publish::default(),
            history: History::default(),
            archive: Archive::default(),
            rpc: Rpc::default(),
            door: Door::default(),
            hooks: Hooks::default(),
            proxies: Vec::new(),
            nats: Nats::default(),
            auth_callout: AuthCallout::default(),
            revocation: Revocation::default(),
            nats_server: NatsServer::default(),
            shutdown: Shutdown::default(),
        }
    }
}

impl Config {
    /// The archive's file; a relative path is inside the data folder.
    #[must_use]
    pub fn archive_path(&self) -> PathBuf {
        self.data_dir.join(&self.archive.path)
    }

    /// The options of a namespace; `None` asks for rooms without one. An unknown name has none.
    #[must_use]
    pub fn namespace(&self, name: Option<&str>) -> Option<&Namespace> {
        match name {
            None => Some(&self.channel.without_namespace),
            Some(name) => self
                .channel
                .namespaces
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, options)| options),
        }
    }
}

/// The demo configuration of `weir up` without `--config`: an open namespace `chat`.
pub const DEMO: &str = include_str!("../../deploy/weir-demo.toml");

/// Where a process looks for its configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigFile<'a> {
    /// This file.
    At(&'a Path),
    /// The embedded demo.
    Demo,
    /// No file: defaults, environment and flags.
    None,
}
