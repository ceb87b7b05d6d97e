//! Knows: black-box tests of the built `weir` with the real nats-server, and their checker.
//! Never: Weir's own modules, so that a mistake there cannot hide itself.
//!
//! Each module holds one promise. Short versions run in `make test`; `WEIR_TEST_LONG=1` runs them
//! whole. Tests wait on conditions with deadlines, print their seeds, and use free ports.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::let_underscore_must_use,
    reason = "a test may panic, print and tear down without asking"
)]

mod absent;
mod archive;
mod at_risk;
mod bot_recovers;
mod callout;
mod checker;
mod deploy;
mod erase;
mod far_behind;
#[path = "../support/figures.rs"]
mod figures;
mod forged;
mod frozen;
mod handshakes;
mod harness;
mod hostile;
#[path = "../support/jwks.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod jwks;
mod kill_nine;
mod limits;
mod lost_ack;
mod lost_tail;
#[path = "../support/mqtt.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod mqtt;
mod origins;
mod oversize;
mod proxy;
mod put_back;
mod rates;
#[path = "../support/raw_nats.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod raw_nats;
mod rollback;
mod secrets;
mod slow_reader;
mod tls;
#[path = "../support/token_cases.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod token_cases;
mod tokens;
mod trimmed;
mod two_doors;
