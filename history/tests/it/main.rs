//! The history against a real nats-server: what is read back equals what was published, and what
//! cannot be proven is never called whole.

mod archive;
mod holes;
mod pages;
mod rig;
