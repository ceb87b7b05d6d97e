//! Weir: the edge messaging layer on NATS, as one process with every role.
//!
//! `cli` reads the command, `config` reads and checks every setting, `node` runs the roles, `nats_server` keeps a nats-server
//! of our own, `admin` shows the inside, `check` says what is wrong before anything starts, `tokens` makes
//! verifiers of the configured issuers, `hooks` what the application is asked, `archive_cli` looks after the archive,
//! `control_cli` gives orders about who is connected.

pub mod admin;
pub mod archive;
mod archive_cli;
mod auth_cli;
pub mod check;
pub mod cli;
pub mod config;
mod control_cli;
pub mod data_dir;
pub mod hooks;
pub mod nats_server;
pub mod node;
pub mod roles;
pub mod telemetry;
pub mod tls;
pub mod tokens;
