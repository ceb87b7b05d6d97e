//! The archive, the worker that fills it, and the one read path over archive and stream.

pub mod archive;
pub mod cassandra;
pub mod erase;
pub mod held;
pub mod read;
pub mod service;
pub mod share;
pub mod sqlite;
pub mod worker;

pub use archive::Archive;
pub use cassandra::{CassandraConfig, CassandraTls, Password};
pub use read::{Page, ReadError, Reader, Recovery, Window};
pub use worker::{Worker, WorkerMetrics};
