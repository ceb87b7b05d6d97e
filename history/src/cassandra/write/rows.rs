//! Knows: how messages become rows, in mutations of bounded size, and which of them are refused for their own sake.
//! Never: indexes, what is claimed.

use std::collections::HashMap;
use std::time::Duration;

use weir_nats::{Message, RoomName, Seq};

use super::{Write, to_us};
use crate::archive::{ArchiveError, Batch, Quarantined};
use crate::cassandra::index::bucket_of;
use crate::cassandra::partition::{LogRoom, Partition, Span};
use crate::cassandra::{Cassandra, Link, envelope, lock, to_i64};

/// Rows of one partition that are written as one mutation.
const MUTATION_MAX_ROWS: usize = 100;
/// Bytes of their envelopes, beyond the first row.
const MUTATION_MAX_BYTES: usize = 64 << 10;

/// A row: its message and its envelope.
struct Row<'a> {
    room: &'a RoomName,
    message: &'a Message,
    blob: Vec<u8>,
}

impl Cassandra {
    /// The rows, those of one partition together. Returns what the database refuses for its own
    /// sake and not for the cluster's.
    pub(super) async fn rows(
        &self,
        link: &Link,
        batch: &Batch,
        slowest: &mut Duration,
    ) -> Result<Vec<Quarantined>, ArchiveError> {
        let mut partitions: HashMap<(&RoomName, u64), Vec<Row<'_>>> = HashMap::new();
        for (room, message) in &batch.rows {
            let key = (room, bucket_of(link, message.seq));
            partitions.entry(key).or_default().push(Row {
                room,
                message,
                blob: envelope::encode(message),
            });
        }
        let refused = std::sync::Mutex::new(Vec::new());
        let mut writes: Vec<Write<'_>> = Vec::new();
        for ((_, bucket), rows) in partitions {
            for rows in mutations(rows) {
                let refused = &refused;
                writes.push(Box::pin(async move {
                    let bad = write_rows(link, batch, bucket, rows).await?;
                    lock(refused).extend(bad);
                    Ok(())
                }));
            }
        }
        self.run(writes, slowest).await?;
        Ok(refused
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Rows of one partition in mutations of bounded size.
fn mutations(rows: Vec<Row<'_>>) -> Vec<Vec<Row<'_>>> {
    let mut all: Vec<Vec<Row<'_>>> = Vec::new();
    let mut bytes = 0;
    for row in rows {
        bytes += row.blob.len();
        match all.last_mut() {
            Some(last) if last.len() < MUTATION_MAX_ROWS && bytes <= MUTATION_MAX_BYTES => {
                last.push(row);
            }
            _ => {
                bytes = row.blob.len();
                all.push(vec![row]);
            }
        }
    }
    all
}

/// Writes rows of one partition; those that are refused for their own sake are returned.
async fn write_rows(
    link: &Link,
    batch: &Batch,
    bucket: u64,
    rows: Vec<Row<'_>>,
) -> Result<Vec<Quarantined>, ArchiveError> {
    let values = |row: &Row<'_>| {
        (
            batch.log.clone(),
            row.room.channel().to_owned(),
            batch.generation.epoch.as_str().to_owned(),
            to_i64(Seq::new(bucket)),
            to_i64(row.message.seq),
            row.message.id.clone(),
            row.blob.clone(),
            to_us(row.message.time_ms),
        )
    };
    let statement = &link.statements.insert_message;
    let written = match &rows[..] {
        [row] => link.driver.write(statement, values(row)).await,
        rows => {
            let rows = rows.iter().map(values).collect();
            link.driver.write_all(statement, rows).await
        }
    };
    let error = match written {
        Ok(()) => return Ok(Vec::new()),
        Err(error) if error.temporary => return Err(error),
        Err(error) => error,
    };
    let [row] = &rows[..] else {
        let mut refused = Vec::new();
        for row in rows {
            refused.extend(Box::pin(write_rows(link, batch, bucket, vec![row])).await?);
        }
        return Ok(refused);
    };
    // If not even reading works, the table is to blame, or our rights, and not the row.
    let partition = Partition {
        of: LogRoom {
            log: &batch.log,
            room: row.room,
        },
        epoch: batch.generation.epoch.as_str(),
        bucket,
    };
    let nothing = Span {
        up_to: Seq::ZERO,
        ..Span::ALL_BACKWARD
    };
    partition.keys(link, nothing, 1).await?;
    Ok(vec![Quarantined::of_row(
        &batch.log,
        row.room,
        row.message,
        &error,
    )])
}
