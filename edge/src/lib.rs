//! Sockets, sessions, rooms and fan-out: what a browser meets; and the native door.

pub mod address;
mod answers;
mod catch_up;
pub mod connection;
pub mod door;
pub mod hook;
pub mod hub;
pub mod limits;
pub mod link;
pub mod metrics;
pub mod origin;
pub mod outbox;
pub mod protocol;
pub mod rate;
mod ring_fill;
pub mod room;
mod room_task;
pub mod roster;
pub mod seats;
pub mod server;
mod session;
pub mod settings;
pub mod socket;
pub mod sweep;
pub mod websocket;
pub mod writer;
