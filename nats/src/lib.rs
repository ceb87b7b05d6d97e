//! The shared words of Weir (rooms, subjects, offsets, messages) and the only crate that speaks NATS.

pub mod ambient;
mod barrier;
mod bucket;
pub mod callout;
pub mod connect;
pub mod connections;
pub mod control;
pub mod erasure;
pub mod figures;
pub mod guard;
pub mod message;
pub mod partition;
pub mod placement;
pub mod position;
pub mod publish;
pub mod replay;
pub mod stream;
pub mod subject;

pub use control::Revocations;
pub use erasure::Orders;
pub use message::{Author, Delivery, Door, Message};
pub use placement::{Place, Placements};
pub use position::{Epoch, Position, Seq};
pub use subject::{NameError, RoomName};
