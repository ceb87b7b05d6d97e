//! Knows: how much each connection, user, address and namespace may do at this edge, what is left of it, and what was
//! refused. Never: what a refusal looks like to a client, a socket, a clock.
//!
//! The narrowest is asked first, so that what one connection may not do costs its user, its address and its
//! namespace nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use tokio::time::Instant;
use weir_nats::RoomName;
use weir_nats::figures::{Counter, Figure};

use crate::address::AddressKey;
use crate::protocol::CommandKind;
use crate::rate::{Allowance, Cost, Counted, Rate, Rates, RatesByKey};
use crate::seats::{Seat, Seats};
use crate::settings::EdgeSettings;

/// How much is allowed. Everything is off by default but the memory for it.
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// Of one connection.
    pub connection: Rates,
    /// Of one user, over all its connections. The anonymous one has no such limits: it is many people.
    pub user: Rates,
    /// Of one address (IPv6: one /64), over all its connections.
    pub address: Rates,
    /// Subscriptions of one user, over all its connections; 0 is no limit. Beyond it 106.
    pub user_channels_max: usize,
    /// Sockets of one address; 0 is no limit. Beyond it HTTP 429.
    pub address_connections_max: usize,
    /// Sockets of one address that have not connected yet; 0 is no limit. Beyond it HTTP 429.
    pub address_half_open_max: usize,
    /// Users whose rates are remembered.
    pub users_max: usize,
    /// Addresses whose rates are remembered.
    pub addresses_max: usize,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            connection: Rates::default(),
            user: Rates::default(),
            address: Rates::default(),
            user_channels_max: 0,
            address_connections_max: 0,
            address_half_open_max: 0,
            users_max: 100_000,
            addresses_max: 100_000,
            trusted_proxies: Vec::new(),
        }
    }
}

/// Whose limit it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// One connection.
    Connection,
    /// One user.
    User,
    /// One address.
    Address,
    /// One namespace.
    Namespace,
    /// One user at the native door.
    Door,
}

impl Holder {
    const ALL: [Self; 5] = [
        Self::Connection,
        Self::User,
        Self::Address,
        Self::Namespace,
        Self::Door,
    ];
}

/// What there was too much of, as the label of the metric: rates, then counts.
const KINDS: [&str; 8] = [
    "connects",
    "commands",
    "messages",
    "bytes",
    "reads",
    "connections",
    "half_open",
    "rooms",
];
const CONNECTIONS: usize = 5;
const HALF_OPEN: usize = 6;
const ROOMS: usize = 7;

type NamespaceRates = HashMap<Option<String>, (Rates, Mutex<Allowance>)>;

/// What is left of every limit of an edge.
#[derive(Debug)]
pub struct Limits {
    settings: Arc<EdgeSettings>,
    users: RatesByKey<String>,
    addresses: RatesByKey<AddressKey>,
    /// The native door's, of each of its users.
    door: RatesByKey<String>,
    namespaces: NamespaceRates,
    user_channels: Seats<String>,
    address_connections: Seats<AddressKey>,
    address_half_open: Seats<AddressKey>,
    namespace_rooms: Seats<String>,
    refused: [[Counter; KINDS.len()]; Holder::ALL.len()],
}

impl Limits {
    /// Nothing is used up yet.
    #[must_use]
    pub fn new(settings: Arc<EdgeSettings>, now: Instant) -> Self {
        let limits = &settings.limits;
        let named = settings.namespaces.iter();
        let named = named.map(|(name, namespace)| (Some(name.clone()), namespace));
        let without = settings.without_namespace.iter();
        let all = without.map(|namespace| (None, namespace)).chain(named);
        let namespaces = all
            .filter(|(_, namespace)| !namespace.rates.are_off())
            .map(|(name, namespace)| {
                let full = Allowance::full(&namespace.rates, now);
                (name, (namespace.rates, Mutex::new(full)))
            })
            .collect();
        let door = Rates::only(Counted::Commands, settings.door.rate);
        Self {
            users: RatesByKey::new(limits.user, limits.users_max),
            addresses: RatesByKey::new(limits.address, limits.addresses_max),
            door: RatesByKey::new(door, settings.door.users_max),
            namespaces,
            user_channels: Seats::default(),
            address_connections: Seats::default(),
            address_half_open: Seats::default(),
            namespace_rooms: Seats::default(),
            refused: Default::default(),
            settings,
        }
    }

    /// Takes a request of a user at the native door. False if they come too fast.
    pub fn request(&self, user: &str, now: Instant) -> bool {
        let taken = self.door.take(user, Cost::one(Counted::Commands), now);
        self.count(Holder::Door, taken)
    }

    /// Takes what something costs the namespace of a room. False if there is too much of it.
    pub fn namespace(&self, room: &RoomName, cost: Cost, now: Instant) -> bool {
        if self.namespaces.is_empty() {
            return true;
        }
        let name = room.namespace().map(str::to_owned);
        let Some((rates, allowance)) = self.namespaces.get(&name) else {
            return true;
        };
        let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = allowance.take(rates, cost, now);
        drop(allowance);
        self.count(Holder::Namespace, taken)
    }

    /// A place among the open rooms of a namespace; `Ok(None)` where they are not counted.
    pub(crate) fn open_room(&self, name: &RoomName, max: usize) -> Result<RoomSeat, Limited> {
        if max == 0 {
            return Ok(None);
        }
        let namespace = name.namespace().unwrap_or_default();
        let seat = self.namespace_rooms.take(namespace, max);
        if seat.is_none() {
            self.refuse(Holder::Namespace, ROOMS);
        }
        seat.map(Some).ok_or(Limited)
    }

    /// Takes a socket of an address.
    pub(crate) fn socket(&self, address: IpAddr, now: Instant) -> Result<SocketSeats, Limited> {
        let limits = &self.settings.limits;
        let address = AddressKey::from(address);
        let seat = |seats: &Seats<AddressKey>, max, kind| {
            if max == 0 {
                return Ok(None);
            }
            let seat = seats.take(&address, max);
            if seat.is_none() {
                self.refuse(Holder::Address, kind);
            }
            seat.map(Some).ok_or(Limited)
        };
        let connection = seat(
            &self.address_connections,
            limits.address_connections_max,
            CONNECTIONS,
        )?;
        let half_open = seat(
            &self.address_half_open,
            limits.address_half_open_max,
            HALF_OPEN,
        )?;
        // Last, as it cannot be given back.
        let taken = self
            .addresses
            .take(&address, Cost::one(Counted::Connects), now);
        if !self.count(Holder::Address, taken) {
            return Err(Limited);
        }
        Ok(SocketSeats {
            address,
            _connection: connection,
            half_open: Mutex::new(half_open),
        })
    }

    fn count(&self, holder: Holder, taken: Result<(), Counted>) -> bool {
        if let Err(counted) = taken {
            self.refuse(holder, counted as usize);
        }
        taken.is_ok()
    }

    fn refuse(&self, holder: Holder, kind: usize) {
        self.refused[holder as usize][kind].add_one();
    }

    /// What was refused so far, by whose limit it was and of what.
    #[must_use]
    pub fn figure(&self) -> Figure {
        let mut figure = Figure::new(
            "weir_edge_limited",
            "Sockets, commands and requests refused by a limit of client.rate_limit, a namespace or door.rate_limit.",
            "counter",
        );
        for holder in Holder::ALL {
            for (kind, counter) in KINDS.iter().zip(&self.refused[holder as usize]) {
                let labels = vec![
                    ("holder", format!("{holder:?}").to_lowercase()),
                    ("limit", (*kind).to_owned()),
                ];
                figure.sample("", labels, counter.value() as f64);
            }
        }
        figure
    }
}

/// A limit is reached. Which one is in the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limited;

/// A place among the open rooms of a namespace, where they are counted.
pub(crate) type RoomSeat = Option<Seat<String>>;

/// The places of one socket, given back with it.
#[derive(Debug)]
pub(crate) struct SocketSeats {
    address: AddressKey,
    _connection: Option<Seat<AddressKey>>,
    half_open: Mutex<Option<Seat<AddressKey>>>,
}

impl SocketSeats {
    /// It is not half open any more.
    fn connected(&self) {
        drop(
            self.half_open
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }
}

/// What one connection has to pass with each of its commands.
#[derive(Debug)]
pub(crate) struct Gate {
    limits: Arc<Limits>,
    /// `None` in tests without a socket.
    socket: Option<Arc<SocketSeats>>,
    /// `None` where a connection has no limits of its own: an idle one then carries none.
    own: Option<Box<Allowance>>,
}

impl Gate {
    pub(crate) fn new(limits: Arc<Limits>, socket: Option<Arc<SocketSeats>>, now: Instant) -> Self {
        let rates = &limits.settings.limits.connection;
        let own = (!rates.are_off()).then(|| Box::new(Allowance::full(rates, now)));
        Self {
            limits,
            socket,
            own,
        }
    }

    /// Takes the connect of a user, which ends the time in which the socket is half open.
    pub(crate) fn connect(&self, user: &str, now: Instant) -> Result<(), Limited> {
        self.user(user, Cost::one(Counted::Connects), now)?;
        if let Some(socket) = &self.socket {
            socket.connected();
        }
        Ok(())
    }

    /// Takes a command.
    pub(crate) fn command(
        &mut self,
        kind: &CommandKind,
        user: &str,
        now: Instant,
    ) -> Result<(), Limited> {
        let cost = cost_of(kind);
        let limits = &self.limits;
        let of = |taken: bool| if taken { Ok(()) } else { Err(Limited) };
        if let Some(own) = &mut self.own {
            let taken = own.take(&limits.settings.limits.connection, cost, now);
            of(limits.count(Holder::Connection, taken))?;
        }
        self.user(user, cost, now)?;
        match &self.socket {
            Some(socket) => {
                let taken = limits.addresses.take(&socket.address, cost, now);
                of(limits.count(Holder::Address, taken))
            }
            None => Ok(()),
        }
    }

    /// True if namespaces have limits.
    pub(crate) fn counts_namespaces(&self) -> bool {
        !self.limits.namespaces.is_empty()
    }

    /// Takes a command's cost from the namespace of a room in which the client may do it: who may not costs others
    /// nothing.
    ///
    /// # Errors
    /// When it is used up.
    pub(crate) fn namespace(
        &self,
        kind: &CommandKind,
        room: &RoomName,
        now: Instant,
    ) -> Result<(), Limited> {
        if self.limits.namespace(room, cost_of(kind), now) {
            Ok(())
        } else {
            Err(Limited)
        }
    }

    fn user(&self, user: &str, cost: Cost, now: Instant) -> Result<(), Limited> {
        if user.is_empty() {
            return Ok(());
        }
        let taken = self.limits.users.take(user, cost, now);
        if self.limits.count(Holder::User, taken) {
            Ok(())
        } else {
            Err(Limited)
        }
    }

    /// A place for one more subscription of a user; `Ok(None)` where they are not counted.
    pub(crate) fn channel(&self, user: &str) -> Result<Option<Seat<String>>, Limited> {
        let max = self.limits.settings.limits.user_channels_max;
        if max == 0 || user.is_empty() {
            return Ok(None);
        }
        let seat = self.limits.user_channels.take(user, max);
        if seat.is_none() {
            self.limits.refuse(Holder::User, ROOMS);
        }
        seat.map(Some).ok_or(Limited)
    }

    /// A connection has as many subscriptions as it may.
    pub(crate) fn channels_full(&self) {
        self.limits.refuse(Holder::Connection, ROOMS);
    }

    /// A user has as many connections as it may.
    pub(crate) fn connections_full(&self) {
        self.limits.refuse(Holder::User, CONNECTIONS);
    }
}

fn cost_of(kind: &CommandKind) -> Cost {
    let one = Cost::one(Counted::Commands);
    let bytes = |data: &[u8]| u32::try_from(data.len()).unwrap_or(u32::MAX);
    match kind {
        CommandKind::Publish { data, .. } => one
            .and(Counted::Messages, 1)
            .and(Counted::Bytes, bytes(data)),
        CommandKind::Rpc { data, .. } => one.and(Counted::Bytes, bytes(data)),
        CommandKind::History(_)
        | CommandKind::Presence { .. }
        | CommandKind::PresenceStats { .. } => one.and(Counted::Reads, 1),
        _ => one,
    }
}

/// So many a second, and as many at once unless it says otherwise.
#[must_use]
pub fn rate(per_s: u32, burst: u32) -> Rate {
    let burst = if burst == 0 { per_s } else { burst };
    Rate { per_s, burst }
}
