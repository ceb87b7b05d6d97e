//! The history against a real nats-server: what is read back equals what was published, and what
//! cannot be proven is never called whole.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive;
mod erase;
mod holes;
mod pages;
mod rig;
mod service;
mod window;
