//! Knows: which index rows a batch needs, and which of them are there already. Never: messages' rows.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use weir_nats::Seq;

use super::{Write, to_us};
use crate::archive::{ArchiveError, Batch};
use crate::cassandra::index::{bucket_of, day_of};
use crate::cassandra::{Cassandra, Link, lock, to_i64};

/// Index rows that are remembered as written; beyond it they are all written once more.
const INDEXED_MAX_ROWS: usize = 200_000;
/// The lowest offset of a second must win, whoever writes last.
const LOWEST_WINS: i64 = 1 << 60;

impl Cassandra {
    /// Index rows that are not known to be there. Before the rows: a row that no index leads to would
    /// never be found.
    pub(super) async fn index(
        &self,
        link: &Link,
        batch: &Batch,
        slowest: &mut Duration,
    ) -> Result<(), ArchiveError> {
        let epoch = batch.generation.epoch.as_str();
        let (mut rooms, mut users) = (HashMap::new(), HashMap::new());
        let mut seconds: BTreeMap<i64, Seq> = BTreeMap::new();
        {
            let writer = lock(&self.writer);
            let newest = writer.seconds.get(&batch.generation.stream).copied();
            for (room, message) in &batch.rows {
                let bucket = bucket_of(link, message.seq);
                let key = (batch.log.clone(), room.clone(), epoch.to_owned(), bucket);
                if let Some(author) = &message.author {
                    let by = (author.user.clone(), key.clone());
                    if !writer.users.contains(&by) {
                        users.entry(by).or_insert(message.time_ms);
                    }
                }
                if !writer.rooms.contains(&key) {
                    rooms.entry(key).or_insert(message.time_ms);
                }
                let second = message.time_ms.div_euclid(1_000);
                // Tools bring rows room by room, so a second may come after later ones.
                let is_there = newest
                    .is_some_and(|(newest, lowest)| second == newest && message.seq >= lowest);
                if !is_there {
                    let lowest = seconds.entry(second).or_insert(message.seq);
                    *lowest = (*lowest).min(message.seq);
                }
            }
        }
        let statements = &link.statements;
        let mut writes: Vec<Write<'_>> = Vec::new();
        for ((log, room, epoch, bucket), time_ms) in &rooms {
            writes.push(Box::pin(link.driver.write(
                &statements.insert_room_bucket,
                (
                    log,
                    room.channel(),
                    to_i64(Seq::new(*bucket)),
                    epoch,
                    to_us(*time_ms),
                ),
            )));
        }
        for ((user, (log, room, epoch, bucket)), time_ms) in &users {
            writes.push(Box::pin(link.driver.write(
                &statements.insert_user_bucket,
                (
                    log,
                    user,
                    room.channel(),
                    to_i64(Seq::new(*bucket)),
                    epoch,
                    to_us(*time_ms),
                ),
            )));
        }
        for (second, seq) in &seconds {
            let off = to_i64(*seq);
            writes.push(Box::pin(link.driver.write(
                &statements.insert_second,
                (
                    &batch.generation.stream,
                    day_of(second * 1_000),
                    *second,
                    off,
                    LOWEST_WINS - off,
                ),
            )));
        }
        self.run(writes, slowest).await?;
        let mut writer = lock(&self.writer);
        if writer.rooms.len() + rooms.len() > INDEXED_MAX_ROWS {
            writer.rooms.clear();
        }
        if writer.users.len() + users.len() > INDEXED_MAX_ROWS {
            writer.users.clear();
        }
        writer.rooms.extend(rooms.into_keys());
        writer.users.extend(users.into_keys());
        if let Some((second, lowest)) = seconds.last_key_value() {
            let stream = batch.generation.stream.clone();
            writer.seconds.insert(stream, (*second, *lowest));
        }
        Ok(())
    }
}
