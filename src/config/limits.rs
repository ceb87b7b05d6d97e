//! Knows: `[client.rate_limit]` and the `rate_limit` of a namespace: how much others may do. Never: what becomes of who
//! does more.

use super::read::Section;

/// So much a second, and so much at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// On average; 0 has no limit.
    pub per_second: u32,
    /// At once; 0 is as much as in a second.
    pub burst: u32,
}

/// How much of each thing one holder may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// New sockets of an address; connect commands of a user.
    pub connect: Limit,
    /// Commands of every kind.
    pub command: Limit,
    /// Messages.
    pub publish: Limit,
    /// Bytes of what is published or asked of a service.
    pub bytes: Limit,
    /// Reads of history and presence.
    pub read: Limit,
}

/// `[client.rate_limit]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// `[client.rate_limit.connection]`; its commands are `client.command_rate_limit`.
    pub connection: RateLimit,
    /// `[client.rate_limit.user]`
    pub user: RateLimit,
    /// `[client.rate_limit.address]`
    pub address: RateLimit,
    /// Users whose rates are remembered.
    pub users_limit: u32,
    /// Addresses whose rates are remembered.
    pub addresses_limit: u32,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            connection: RateLimit::default(),
            user: RateLimit::default(),
            address: RateLimit::default(),
            users_limit: 100_000,
            addresses_limit: 100_000,
        }
    }
}

/// Which of the keys a table has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Connection,
    Namespace,
    Holder,
}

pub(super) fn read_rate_limits(s: &mut Section<'_>) -> RateLimits {
    let d = RateLimits::default();
    RateLimits {
        connection: read_rate_limit(&mut s.section("connection"), Of::Connection),
        user: read_rate_limit(&mut s.section("user"), Of::Holder),
        address: read_rate_limit(&mut s.section("address"), Of::Holder),
        users_limit: s.int("users_limit", d.users_limit, 2..=10_000_000),
        addresses_limit: s.int("addresses_limit", d.addresses_limit, 2..=10_000_000),
    }
}

pub(super) fn read_rate_limit(s: &mut Section<'_>, of: Of) -> RateLimit {
    let mut limit = |name: &str, max: u32| {
        let burst = format!("{name}_burst");
        let limit = Limit {
            per_second: s.int(name, 0, 0..=max),
            burst: s.int(&burst, 0, 0..=max),
        };
        if limit.burst > 0 && limit.burst < limit.per_second {
            let what = format!("it is smaller than {name}");
            s.refuse(
                &burst,
                what,
                "allow at least one second's worth at once, or write 0",
            );
        }
        if limit.burst > 0 && limit.per_second == 0 {
            let what = format!("{name} is 0, so nothing is limited");
            s.refuse(&burst, what, "write how many a second, or remove it");
        }
        limit
    };
    RateLimit {
        connect: match of {
            Of::Holder => limit("connect", 1_000_000),
            Of::Connection | Of::Namespace => Limit::default(),
        },
        command: match of {
            Of::Connection => Limit::default(),
            Of::Holder | Of::Namespace => limit("command", 1_000_000),
        },
        publish: limit("publish", 1_000_000),
        bytes: limit("bytes", 1_073_741_824),
        read: limit("read", 1_000_000),
    }
}

impl Limit {
    /// What is there at once.
    pub(super) fn at_once(self) -> u32 {
        self.burst.max(self.per_second)
    }
}
