//! Knows: how rows leave an archive: by an order of erasure, or by age. Never: who orders it, SQL.

use std::sync::Arc;
use std::time::Duration;

use weir_nats::erasure::{Order, What};
use weir_nats::{RoomName, Seq};

use super::{Archive, ArchiveError, blocking, read};
use crate::sqlite::{EraseCursor, Sqlite};

/// Between the steps of an erasure, so that the worker gets its turn.
const STEP_PAUSE: Duration = Duration::from_millis(2);

/// The age limit of a room: rows stored before are too old; `None` keeps all.
pub type OldestMs = Arc<dyn Fn(&RoomName) -> Option<i64> + Send + Sync>;

/// An order of erasure that an archive has on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// The order.
    pub order: Order,
    /// Rows erased so far.
    pub erased: u64,
    /// When it was carried out, in milliseconds since 1970.
    pub done_ms: Option<i64>,
}

/// What one step of expiry came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Rows that left.
    pub rows: u64,
    /// Where the next step goes on; `None` at the end.
    pub next: Option<i64>,
}

impl Archive {
    /// The orders of erasure on record, oldest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn erasures(&self) -> Result<Vec<Erasure>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => read(sqlite, Sqlite::erasures).await,
            Self::Cassandra(cassandra) => cassandra.erasures().await,
        }
    }

    /// How many rows there are of a room or user now; `None` where counting is as much work as erasing.
    ///
    /// # Errors
    /// When they cannot be counted.
    pub async fn erasable(&self, what: What) -> Result<Option<u64>, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                let count = read(sqlite, move |sqlite| sqlite.erasable(&what)).await?;
                Ok(Some(count))
            }
            Self::Cassandra(_) => Ok(None),
        }
    }

    /// Takes orders of erasure down, from when on nothing that they cover is appended.
    ///
    /// # Errors
    /// When they were not written.
    pub async fn record_erasures(&self, orders: Vec<Order>) -> Result<(), ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                blocking(sqlite, move |sqlite| sqlite.record_erasures(&orders)).await
            }
            Self::Cassandra(cassandra) => cassandra.record_erasures(&orders).await,
        }
    }

    /// Takes an order down and carries it out, in small steps. `progress` is told of rows as they go.
    /// Done once more, it does the rest, or what came back.
    ///
    /// # Errors
    /// When it is not finished; what was erased stays erased.
    pub async fn erase(
        &self,
        order: &Order,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<(), ArchiveError> {
        self.record_erasures(vec![order.clone()]).await?;
        match self {
            Self::Sqlite(sqlite) => {
                let mut cursor = EraseCursor::default();
                while cursor != EraseCursor::Over {
                    let order = order.clone();
                    let step = blocking(sqlite, move |sqlite| {
                        let rows = sqlite.erase_step(&order, &mut cursor)?;
                        Ok((rows, cursor))
                    });
                    let (rows, next) = step.await?;
                    cursor = next;
                    progress(rows);
                    tokio::time::sleep(STEP_PAUSE).await;
                }
                let order = order.clone();
                blocking(sqlite, move |sqlite| sqlite.erase_finish(&order)).await
            }
            Self::Cassandra(cassandra) => cassandra.erase(order, &progress).await,
        }
    }

    /// What is left to whoever runs the archive before no file has an erased byte: lines, with each
    /// command on one of its own; empty if nothing.
    #[must_use]
    pub fn left_to_do(&self) -> String {
        match self {
            Self::Sqlite(_) => String::new(),
            Self::Cassandra(cassandra) => cassandra.left_to_do(),
        }
    }

    /// Deletes rows of some rooms that are older than `oldest_ms` says (milliseconds since 1970),
    /// behind where the last step ended (0 at first).
    ///
    /// # Errors
    /// When the step was not done.
    pub async fn expire_step(
        &self,
        after: i64,
        oldest_ms: OldestMs,
    ) -> Result<Expired, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => {
                blocking(sqlite, move |sqlite| sqlite.expire_step(after, &*oldest_ms)).await
            }
            // Rows are not deleted there: docs/erasure.md.
            Self::Cassandra(_) => Ok(Expired::default()),
        }
    }

    /// Up to which offset a room has lost rows by age; zero if none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn expired_to(&self, log: String, room: RoomName) -> Result<Seq, ArchiveError> {
        match self {
            // The usual case, without a turn at the file.
            Self::Sqlite(sqlite) if !sqlite.has_expired() => Ok(Seq::ZERO),
            Self::Sqlite(sqlite) => {
                read(sqlite, move |sqlite| sqlite.expired_to(&log, &room)).await
            }
            Self::Cassandra(_) => Ok(Seq::ZERO),
        }
    }

    /// Up to which offset any room of a log has lost rows by age; zero if none. Another archive that gets the rows may
    /// claim to hold a log whole only above it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn any_expired_to(&self, log: String) -> Result<Seq, ArchiveError> {
        match self {
            Self::Sqlite(sqlite) => read(sqlite, move |sqlite| sqlite.any_expired_to(&log)).await,
            Self::Cassandra(_) => Ok(Seq::ZERO),
        }
    }
}
