//! The archive, the worker that fills it, and the one read path over archive and stream.

pub mod archive;
mod by_time;
pub mod cassandra;
pub mod erase;
mod gaps;
pub mod held;
pub mod listing;
pub mod read;
pub mod service;
pub mod share;
pub mod sqlite;
pub mod worker;
mod worker_metrics;

pub use archive::Archive;
pub use cassandra::{CassandraConfig, CassandraTls, Password};
pub use read::{Ask, Page, ReadError, Reader, ReaderMetrics, Recovery, Window};
pub use worker::Worker;
pub use worker_metrics::{WorkerCounts, WorkerMetrics};
