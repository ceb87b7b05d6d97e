//! Tokens against the real verifier, and the keys of issuers over real HTTP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "figures are for people")]

#[path = "../../../tests/support/figures.rs"]
mod figures;
#[path = "../../../tests/support/jwks.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod jwks;
#[path = "../../../tests/support/token_cases.rs"]
mod token_cases;

mod claims;
mod fetching;
mod keys;
mod matrix;

/// A time all tokens of these tests are made for.
const NOW: i64 = 1_800_000_000;
