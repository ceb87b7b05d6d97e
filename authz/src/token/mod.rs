//! Knows: what a token is checked for, and in which order. Never: rooms' rules, sockets.
//!
//! ```text
//! text → parts (three parts, a header of three fields)      nothing of it is believed yet
//!      → verifier (which issuer is configured for its iss)  a look-up, never a request
//!      → keys or endpoint (a key whose kind has this alg)   endpoint: the one configured address
//!      → claims (times, audience, issuer, user)             only what a signature covers
//! ```

pub(crate) mod claims;
mod endpoint;
mod http;
mod jwks;
mod keys;
mod mint;
mod parts;
mod verifier;

pub use claims::{Claims, Overrides, SubscribeOptions, SubscriptionClaims, check_user};
pub use endpoint::{Endpoint, Fetcher, Wanted};
pub use http::{Address, AddressError};
pub use jwks::{KeySet, Skipped};
pub use keys::{Key, KeyError, Kind};
pub use mint::{Mint, MintError, Signer};
pub use verifier::{Check, Issuer, Keys, Verifier};

/// Bytes of a token; longer ones are refused unread.
pub const TOKEN_MAX_BYTES: usize = 12 << 10;

/// Why a token is not accepted. No text holds any of the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Its time is over, or not yet come: error 109, the client gets another.
    #[error("token expired")]
    Expired,
    /// `expire_at` has passed: error 110.
    #[error("connection expired")]
    ConnectionExpired,
    /// Wrong signature, algorithm, form or claim: 3500 at connect, 103 at subscribe.
    #[error("invalid token: {0}")]
    Invalid(String),
    /// The claims contradict the connection: 3500.
    #[error("token is for another {0}")]
    Mismatch(&'static str),
    /// It was revoked: as an invalid one.
    #[error("the token is revoked")]
    Revoked,
    /// Its key is not here yet: wait for it, then verify again.
    #[error("its key has to be fetched first")]
    Wanted(Wanted),
    /// Its key cannot be fetched now: error 100, the client tries again.
    #[error("the issuer's keys cannot be fetched now")]
    Unavailable,
}

impl TokenError {
    fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }
}
