//! Knows: the log that tests of the crates keep their rooms in. Never: streams.

use std::time::Duration;

use weir_nats::stream::{LogConfig, Storage};

/// A log of one stream, without limits.
pub(crate) fn rooms() -> LogConfig {
    LogConfig {
        name: "rooms".into(),
        slots: 1,
        max_age: Duration::ZERO,
        max_bytes: -1,
        max_messages: -1,
        storage: Storage::File,
        replicas: 1,
        duplicate_window: Duration::from_secs(120),
    }
}
