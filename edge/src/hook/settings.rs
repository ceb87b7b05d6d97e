//! Knows: which hooks there are, where each is asked, and what bounds them, unit in the name. Never: how they
//! are asked, where this was read from.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use weir_authz::token::Address;

use super::breaker::BreakerLimits;

/// Every hook of an edge.
#[derive(Clone, Debug, Default)]
pub struct HookSettings {
    /// Decides about connects without a token.
    pub connect: Option<HookAt>,
    /// Decides whether a connection whose time is over goes on.
    pub refresh: Option<HookAt>,
    /// By the name of a namespace; rooms without one are the empty one.
    pub subscribe: HashMap<String, HookAt>,
    /// The same.
    pub publish: HashMap<String, HookAt>,
    /// Of each hook.
    pub bounds: HookBounds,
}

impl HookSettings {
    /// Every hook there is.
    pub(crate) fn all(&self) -> impl Iterator<Item = &HookAt> {
        let of_server = [&self.connect, &self.refresh].into_iter().flatten();
        of_server
            .chain(self.subscribe.values())
            .chain(self.publish.values())
    }
}

/// One hook: where it is asked, and how.
#[derive(Clone, Debug)]
pub struct HookAt {
    /// Where.
    pub transport: Transport,
    /// Of one call.
    pub timeout: Duration,
    /// Headers of the client's HTTP request that are passed on.
    pub http_headers: Vec<HeaderName>,
    /// Headers that the client gives in its connect command and that are passed on. Anybody can give any.
    pub emulated_headers: Vec<HeaderName>,
    /// The connection's `meta` is passed on.
    pub include_connection_meta: bool,
}

/// How a service is reached.
#[derive(Clone, Debug)]
pub enum Transport {
    /// A NATS service.
    Nats {
        /// The subject that it listens to.
        subject: String,
    },
    /// An HTTP POST.
    Http {
        /// Where, as the configuration names it.
        address: Box<Address>,
        /// Headers of each request; their values are secrets.
        static_headers: HeaderMap,
    },
}

/// What bounds hooks.
#[derive(Clone, Copy, Debug)]
pub struct HookBounds {
    /// Calls of one hook (an event of a namespace) that wait at this edge.
    pub calls_max: usize,
    /// Calls of one connection that wait.
    pub connection_calls_max: usize,
    /// Bytes of an answer.
    pub answer_max_bytes: usize,
    /// When a hook is left alone.
    pub breaker: BreakerLimits,
}

impl Default for HookBounds {
    fn default() -> Self {
        Self {
            calls_max: 1_024,
            connection_calls_max: 32,
            answer_max_bytes: 64 << 10,
            breaker: BreakerLimits {
                failures_max: 10,
                open_for: Duration::from_secs(2),
            },
        }
    }
}
