//! One policy for every door: tokens become claims, claims become grants, and only grants make the
//! permits without which nobody joins or publishes.

pub mod grants;
pub mod token;

pub use grants::{Action, Denied, Grants, NamespaceRules, Permit};
pub use token::{Claims, SubscriptionClaims, TokenError, Verifier};
