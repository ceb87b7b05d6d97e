//! Knows: the edge's counters. Never: how they are served, labels with names of rooms or users.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:expr])+ $name:ident: $kind:ident),+ $(,)?) => {
        /// Every figure of one edge. Read at any time; no lock.
        #[derive(Debug, Default)]
        pub struct Metrics { $($(#[doc = $doc])+ pub $name: $kind),+ }

        impl Metrics {
            /// Name, help, kind (`counter` or `gauge`) and value of each figure.
            #[must_use]
            pub fn read(&self) -> Vec<(&'static str, &'static str, &'static str, i64)> {
                vec![$((
                    concat!("weir_edge_", stringify!($name)),
                    [$($doc.trim_ascii()),+][0],
                    $kind::KIND,
                    self.$name.value(),
                )),+]
            }
        }
    };
}

/// Only ever grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Counter {
    const KIND: &'static str = "counter";

    /// One more.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The figure now.
    #[must_use]
    pub fn value(&self) -> i64 {
        i64::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(i64::MAX)
    }
}

impl Gauge {
    const KIND: &'static str = "gauge";

    /// Changes it by `delta`, and returns the new value.
    pub fn add(&self, delta: i64) -> i64 {
        self.0.fetch_add(delta, Ordering::Relaxed) + delta
    }

    /// The figure now.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

counters! {
    /// Sockets open now.
    connections: Gauge,
    /// Sockets accepted since the start.
    connections_accepted: Counter,
    /// Sockets refused: over the limit, wrong origin, or no proper upgrade.
    connections_refused: Counter,
    /// Commands received.
    commands: Counter,
    /// Replies that were errors.
    error_replies: Counter,
    /// Sockets closed by the edge with a code of 3500 or above.
    closed_terminal: Counter,
    /// Sockets closed by the edge with a code below 3500.
    closed_reconnect: Counter,
    /// Sockets closed for a missing pong (3012).
    closed_no_pong: Counter,
    /// Sockets closed as too slow for what nothing stores (3008).
    closed_slow: Counter,
    /// Rooms open on this edge.
    rooms: Gauge,
    /// Memberships of sockets in rooms.
    memberships: Gauge,
    /// Bytes of encoded frames in the rings of all rooms.
    ring_bytes: Gauge,
    /// Live messages taken from NATS.
    live_messages: Counter,
    /// Publications handed to sockets live.
    deliveries: Counter,
    /// Live messages dropped: not from the stream and subject that the room has.
    live_refused: Counter,
    /// Live messages dropped as already delivered.
    live_known: Counter,
    /// Gaps found by the header of a later message.
    gaps: Counter,
    /// Lost tails found by a sweep.
    lost_tails: Counter,
    /// Messages delivered by a repair from the log.
    repaired: Counter,
    /// Rooms in which something was lost for good.
    rooms_lost: Counter,
    /// Sweeps over the rooms of a stream.
    sweeps: Counter,
    /// Times a reader fell behind and was moved to the log.
    fell_behind: Counter,
    /// Readers that are behind now.
    behind: Gauge,
    /// Publications served from the log to readers that were behind.
    caught_up: Counter,
    /// Recoveries answered `recovered: true`.
    recovered_true: Counter,
    /// Recoveries answered `recovered: false`.
    recovered_false: Counter,
    /// Recoveries served from a ring alone.
    recovered_from_ring: Counter,
    /// Publishes acknowledged.
    publishes_stored: Counter,
    /// Publishes refused.
    publishes_refused: Counter,
    /// Publishes whose outcome was told as unknown.
    publishes_unknown: Counter,
    /// Requests at the native door.
    door_requests: Counter,
    /// Requests at the native door dropped for their reply subject.
    door_reply_refused: Counter,
    /// Publishes at the native door refused as they came too fast.
    door_limited: Counter,
    /// Publications of rooms that nothing stores, delivered to sockets.
    ephemeral_deliveries: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_name_and_a_help() {
        let metrics = Metrics::default();
        metrics.rooms.add(2);
        let read = metrics.read();
        assert!(
            read.iter()
                .all(|(name, help, ..)| name.starts_with("weir_edge_") && help.len() > 5)
        );
        assert!(read.contains(&("weir_edge_rooms", "Rooms open on this edge.", "gauge", 2)));
    }
}
