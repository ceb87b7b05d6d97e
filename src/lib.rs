//! Weir: the edge messaging layer on NATS, as one process with every role.
//!
//! `config` reads and checks every setting, `node` runs the roles, `nats_server` keeps a nats-server of our own.

pub mod config;
pub mod roles;
