//! The shared words of Weir (rooms, subjects, offsets, messages) and the only crate that speaks NATS.

pub mod message;
pub mod partition;
pub mod position;
pub mod subject;

pub use message::{Author, Delivery, Door, Message};
pub use position::{Epoch, Position, Seq};
pub use subject::{NameError, RoomName};
