//! The history against a real nats-server: what is read back equals what was published, and what
//! cannot be proven is never called whole.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod rig;

mod archive;
mod cassandra;
mod erase;
#[path = "../../../tests/support/figures.rs"]
mod figures;
mod flipped;
mod holes;
mod listing;
mod names;
#[path = "../../../tests/support/names.rs"]
mod names_support;
#[path = "../../../tests/support/cassandra.rs"]
mod node;
mod pages;
mod power;
mod put_back;
mod service;
mod storm;
mod times;
mod trims;
mod window;
