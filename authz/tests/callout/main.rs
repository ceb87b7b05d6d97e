//! The auth callout on a real nats-server with the shipped configuration: what is let in, and what it may then do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/support/doors.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod doors;
#[path = "../../../tests/support/figures.rs"]
mod figures;
#[path = "../../../tests/support/length.rs"]
mod length;
#[path = "../../../tests/support/mqtt.rs"]
mod mqtt;
#[path = "../../../tests/support/ports.rs"]
mod ports;
#[path = "../../../tests/support/raw_nats.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod raw;
#[path = "../../../tests/support/rng.rs"]
mod rng;

mod cells;
mod crowd;
mod devices;
mod logins;
mod roles;
mod server;
