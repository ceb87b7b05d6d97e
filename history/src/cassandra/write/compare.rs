//! Knows: what is there at the offsets of a batch, before it is written. Never: writes.

use std::collections::{BTreeMap, HashMap};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use weir_nats::{Message, RoomName, Seq};

use crate::archive::{ArchiveError, Batch};
use crate::cassandra::index::bucket_of;
use crate::cassandra::partition::{KEYS_MAX_ROWS, LogRoom, Partition, Span};
use crate::cassandra::{Cassandra, Link};

/// What was there before a batch.
#[derive(Default)]
pub(super) struct There {
    /// Rows of it.
    pub(super) same: u64,
    /// Offsets at which another message is.
    pub(super) other: Vec<Seq>,
}

impl Cassandra {
    /// Looks what is there at the offsets of a batch. Another message says that the log went back in
    /// time.
    pub(super) async fn compare(&self, link: &Link, batch: &Batch) -> Result<There, ArchiveError> {
        let mut rooms: BTreeMap<(&RoomName, u64), Vec<&Message>> = BTreeMap::new();
        for (room, message) in &batch.rows {
            let bucket = bucket_of(link, message.seq);
            rooms.entry((room, bucket)).or_default().push(message);
        }
        let mut looks: Vec<BoxFuture<'_, Result<There, ArchiveError>>> = Vec::new();
        for ((room, bucket), messages) in rooms {
            looks.push(Box::pin(compare_rows(link, batch, room, bucket, messages)));
        }
        let found: Vec<There> = futures_util::stream::iter(looks)
            .buffer_unordered(self.pace.writes_at_once())
            .try_collect()
            .await?;
        let mut all = There::default();
        for there in found {
            all.same += there.same;
            all.other.extend(there.other);
        }
        all.other.sort();
        all.other.dedup();
        Ok(all)
    }
}

/// What is there in one partition at the offsets of a batch.
async fn compare_rows(
    link: &Link,
    batch: &Batch,
    room: &RoomName,
    bucket: u64,
    messages: Vec<&Message>,
) -> Result<There, ArchiveError> {
    let first = messages.iter().map(|one| one.seq).min().unwrap_or_default();
    let last = messages.iter().map(|one| one.seq).max().unwrap_or_default();
    let partition = Partition {
        of: LogRoom {
            log: &batch.log,
            room,
        },
        epoch: batch.generation.epoch.as_str(),
        bucket,
    };
    let mut span = Span {
        after: first.just_before(),
        up_to: last,
        reverse: true,
    };
    let ids: HashMap<Seq, &str> = messages
        .iter()
        .map(|message| (message.seq, message.id.as_str()))
        .collect();
    let mut found = There::default();
    loop {
        let part = partition.keys(link, span, KEYS_MAX_ROWS).await?;
        for key in &part.rows {
            match ids.get(&key.seq) {
                Some(mine) if *mine == key.id => found.same += 1,
                Some(_) => found.other.push(key.seq),
                None => {}
            }
        }
        match part.read_to {
            Some(read_to) => span.go_on(read_to),
            None => return Ok(found),
        }
    }
}
