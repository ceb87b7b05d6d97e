//! Knows: what the KV bucket `weir` holds of erasure: orders, how far each is carried out, and which
//! processes have taken them in. Never: what an order covers, when one is carried out.
//!
//! `erase.<id>` is an order and never changes. `erased.<id>.stream.<stream>` and
//! `erased.<id>.archive.<archive>` say how far it is. `process.<id>` is a running Weir.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{ErasureError, ORDERS_MAX, Order};
use crate::ambient::now_ms;
use crate::bucket::{Bucket, BucketError, Entry, json};
use crate::position::Seq;
use crate::replay::{ReplayError, StreamState};

/// A process that did not say for so long that it runs is taken off the list by whoever looks.
const FORGOTTEN_AFTER_MS: i64 = 3_600_000;

/// How far a stream is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamProgress {
    /// Up to here nothing that the order covers is left.
    pub reached: Seq,
    /// Messages erased so far.
    pub erased: u64,
    /// When the end was reached, in milliseconds since 1970.
    #[serde(default)]
    pub done_ms: Option<i64>,
}

/// How far an archive is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveProgress {
    /// Rows erased so far.
    pub erased: u64,
    /// When no row was left, and no byte of one in its files but for `left_to_do`, in milliseconds since
    /// 1970.
    #[serde(default)]
    pub done_ms: Option<i64>,
    /// Steps that are left to whoever runs the archive, in lines; empty for one that needs none.
    #[serde(default)]
    pub left_to_do: String,
}

/// A running Weir.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The same each time that it runs.
    pub id: String,
    /// Its machine.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// The archive that it fills, if it has one.
    #[serde(default)]
    pub archive: Option<String>,
    /// Every order up to this revision of the bucket is in force in it.
    pub revision: u64,
    /// When it last said so, in milliseconds since 1970.
    pub at_ms: i64,
}

/// An order as the bucket has it.
#[derive(Clone, Debug)]
pub struct Written {
    /// The order.
    pub order: Order,
    /// Its revision.
    pub revision: u64,
}

/// The erasure part of the bucket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Book(Bucket);

fn failed(error: impl std::fmt::Display) -> ErasureError {
    ErasureError::Kv(error.to_string())
}

impl From<BucketError> for ErasureError {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::Kv(reason) => Self::Kv(reason),
            BucketError::Read(error) => Self::Read(error),
        }
    }
}

impl Book {
    /// Opens it over a connection of Weir's own user.
    ///
    /// # Errors
    /// When the bucket is not there: no Weir has started on this NATS yet.
    pub async fn open(client: async_nats::Client) -> Result<Self, ErasureError> {
        Ok(Self(Bucket::open(client).await?))
    }

    /// Orders that were written after a revision, oldest first.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn orders_after(&self, revision: u64) -> Result<Vec<Written>, ErasureError> {
        let entries = self.0.entries("erase.>", revision).await?;
        let orders = entries.into_iter().filter_map(|entry| {
            let revision = entry.revision;
            let order = entry.read()?;
            Some(Written { order, revision })
        });
        Ok(orders.collect())
    }

    /// All orders, by age.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn orders(&self) -> Result<Vec<Written>, ErasureError> {
        let mut orders = self.orders_after(0).await?;
        orders.sort_by(|a, b| a.order.id.cmp(&b.order.id));
        Ok(orders)
    }

    /// Writes a new order down, from when on it is in force. Returns its revision.
    ///
    /// # Errors
    /// When the bucket refuses, or there are too many.
    pub async fn write(&self, order: &Order) -> Result<u64, ErasureError> {
        if self.orders_after(0).await?.len() >= ORDERS_MAX {
            return Err(ErasureError::TooMany);
        }
        let key = format!("erase.{}", order.id);
        let created = self.0.kv.create(key, json(order)).await;
        created.map_err(failed)
    }

    /// Writes an order down again that the bucket has lost (restored from a copy, or made anew).
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn restore(&self, order: &Order) -> Result<(), ErasureError> {
        let key = format!("erase.{}", order.id);
        let found = self.0.kv.entry(key.clone()).await.map_err(failed)?;
        if found.is_some() {
            return Ok(());
        }
        Ok(self.0.put(key, order).await?)
    }

    /// Takes an order and what is said of it out of the bucket.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn remove(&self, id: &str) -> Result<(), ErasureError> {
        self.0.purge(&format!("erased.{id}.>")).await?;
        Ok(self.0.purge(&format!("erase.{id}")).await?)
    }

    /// How far an order is, by stream and by archive.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn progress(&self, id: &str) -> Result<Progress, ErasureError> {
        let mut progress = Progress::default();
        for entry in self.0.entries(&format!("erased.{id}.>"), 0).await? {
            let mut tokens = entry.key.split('.').skip(2);
            match (tokens.next(), tokens.next()) {
                (Some("stream"), Some(stream)) => {
                    let stream = stream.to_owned();
                    progress.streams.extend(entry.read().map(|p| (stream, p)));
                }
                (Some("archive"), Some(archive)) => {
                    let archive = archive.to_owned();
                    progress.archives.extend(entry.read().map(|p| (archive, p)));
                }
                _ => {}
            }
        }
        Ok(progress)
    }

    /// The orders that are carried out in an archive.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn archived(&self, archive: &str) -> Result<HashSet<String>, ErasureError> {
        let entries = self
            .0
            .entries(&format!("erased.*.archive.{archive}"), 0)
            .await?;
        let done = entries.iter().filter_map(|entry| {
            let progress: ArchiveProgress = entry.read()?;
            let id = entry.key.split('.').nth(1)?;
            progress.done_ms.map(|_| id.to_owned())
        });
        Ok(done.collect())
    }

    /// Writes down how far a stream is.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn set_stream(
        &self,
        id: &str,
        stream: &str,
        progress: &StreamProgress,
    ) -> Result<(), ErasureError> {
        let key = format!("erased.{id}.stream.{stream}");
        Ok(self.0.put(key, progress).await?)
    }

    /// Writes down how far an archive is.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn set_archive(
        &self,
        id: &str,
        archive: &str,
        progress: &ArchiveProgress,
    ) -> Result<(), ErasureError> {
        let key = format!("erased.{id}.archive.{archive}");
        Ok(self.0.put(key, progress).await?)
    }

    /// The processes that run. One that was not heard of for an hour is taken off the list.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn processes(&self) -> Result<Vec<Process>, ErasureError> {
        let entries = self.0.entries("process.*", 0).await?;
        let mut running = Vec::new();
        for process in entries.iter().filter_map(Entry::read::<Process>) {
            if now_ms().saturating_sub(process.at_ms) > FORGOTTEN_AFTER_MS {
                self.forget(&process.id).await?;
            } else {
                running.push(process);
            }
        }
        Ok(running)
    }

    /// Says that a process runs, and what it has taken in.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn say(&self, process: &Process) -> Result<(), ErasureError> {
        let key = format!("process.{}", process.id);
        Ok(self.0.put(key, process).await?)
    }

    /// Says that a process has ended.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn forget(&self, process: &str) -> Result<(), ErasureError> {
        Ok(self.0.purge(&format!("process.{process}")).await?)
    }

    /// The stream below the bucket, as its leader has it.
    pub(super) async fn state(&self) -> Result<StreamState, ReplayError> {
        self.0.state().await
    }
}

/// How far an order is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// By stream.
    pub streams: Vec<(String, StreamProgress)>,
    /// By archive.
    pub archives: Vec<(String, ArchiveProgress)>,
}

impl Progress {
    /// Of one stream.
    #[must_use]
    pub fn stream(&self, stream: &str) -> StreamProgress {
        let found = self.streams.iter().find(|(name, _)| name == stream);
        found
            .map(|(_, progress)| progress.clone())
            .unwrap_or_default()
    }

    /// True if nothing of the order is left to do in these streams, and an archive is done.
    #[must_use]
    pub fn is_done(&self, order: &Order) -> bool {
        let mut streams = order.logs.iter().flat_map(|log| &log.slots);
        let all = streams.all(|slot| {
            let mut streams = slot.streams.iter();
            streams.all(|stream| self.stream(stream).done_ms.is_some())
        });
        all && self.is_archived()
    }

    /// True if there is an archive that is done, and none that is not.
    #[must_use]
    pub fn is_archived(&self) -> bool {
        let is_done = |(_, archive): &(String, ArchiveProgress)| archive.done_ms.is_some();
        !self.archives.is_empty() && self.archives.iter().all(is_done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erasure::{LogScope, SlotScope, What};

    #[test]
    fn an_order_is_done_when_every_stream_and_archive_is() {
        let slot = SlotScope {
            streams: vec!["ROOMS_0".into(), "ROOMS_0_1".into()],
            up_to: Seq::new(9),
        };
        let scope = LogScope {
            log: "rooms".into(),
            slots: vec![slot],
        };
        let order = Order::new(
            What::User("ann".into()),
            vec![scope],
            0,
            String::new(),
            String::new(),
        );
        let stream = |name: &str, done_ms| {
            let progress = StreamProgress {
                done_ms,
                ..StreamProgress::default()
            };
            (name.to_owned(), progress)
        };
        let archive = |done_ms| {
            let progress = ArchiveProgress {
                done_ms,
                ..ArchiveProgress::default()
            };
            ("a".to_owned(), progress)
        };
        let both = vec![stream("ROOMS_0", Some(1)), stream("ROOMS_0_1", Some(1))];
        let table = [
            (both.clone(), vec![archive(Some(1))], true),
            (both.clone(), vec![archive(None)], false),
            (both.clone(), vec![archive(Some(1)), archive(None)], false),
            (both[..1].to_vec(), vec![archive(Some(1))], false),
            (both, vec![], false),
        ];
        for (nth, (streams, archives, done)) in table.into_iter().enumerate() {
            let progress = Progress { streams, archives };
            assert_eq!(progress.is_done(&order), done, "row {nth}");
        }
    }
}
