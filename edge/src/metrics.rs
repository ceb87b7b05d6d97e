//! Knows: the edge's counters. Never: how they are served, labels with names of rooms or users.

weir_nats::figures! {
    /// Every figure of one edge. Read at any time; no lock.
    pub struct Metrics: "weir_edge_" {
        /// Sockets open now.
        connections: Gauge,
        /// Sockets accepted since the start.
        connections_accepted: Counter,
        /// Sockets refused: over the limit, wrong origin, or no proper upgrade.
        connections_refused: Counter,
        /// TLS handshakes that failed or took too long.
        tls_handshakes_failed: Counter,
        /// Commands received.
        commands: Counter,
        /// Commands that waited for their token's key.
        key_waits: Counter,
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
        /// Sockets closed as their token was revoked (3500).
        closed_revoked: Counter,
        /// Sockets closed by an order to disconnect (3503, 3011).
        closed_ordered: Counter,
        /// Subscriptions ended by order, by a revoked token or by a refresh that narrows (2000).
        rooms_taken_away: Counter,
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
}

#[cfg(test)]
mod tests {
    use weir_nats::figures::Figure;

    use super::*;

    #[test]
    fn every_figure_has_a_name_and_a_help() {
        let metrics = Metrics::default();
        metrics.rooms.add(2);
        let figures = metrics.figures();
        assert!(
            figures
                .iter()
                .all(|figure| figure.name.starts_with("weir_edge_") && figure.help.len() > 5)
        );
        let rooms = Figure::single("weir_edge_rooms", "Rooms open on this edge.", "gauge", 2.0);
        assert!(figures.contains(&rooms));
    }
}
