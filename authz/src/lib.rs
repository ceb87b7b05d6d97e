//! One policy for every door: tokens become claims, claims become grants, and only grants make the
//! permits without which nobody joins or publishes.

pub mod callout;
pub mod capability;
pub mod grants;
pub mod hook;
pub mod render;
mod rules;
pub mod token;

pub use grants::{Action, Denied, Grants, Permit};
pub use render::Permissions;
pub use rules::{ChannelRegex, NamespaceRules};
pub use token::{Claims, SubscriptionClaims, TokenError, Verifier};
