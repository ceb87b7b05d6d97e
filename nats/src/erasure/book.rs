//! Knows: what the KV bucket `weir` holds of erasure: orders, how far each is carried out, and which
//! processes have taken them in. Never: what an order covers, when one is carried out.
//!
//! `erase.<id>` is an order and never changes. `erased.<id>.stream.<stream>` and
//! `erased.<id>.archive.<archive>` say how far it is. `process.<id>` is a running Weir.

use std::collections::HashSet;

use async_nats::jetstream::{Context, kv};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ErasureError, ORDERS_MAX, Order};
use crate::ambient::now_ms;
use crate::message::last;
use crate::position::Seq;
use crate::replay::{Replay, ReplayError, StreamState};
use crate::stream::{KV_BUCKET, context};

/// The stream below the bucket.
const KV_STREAM: &str = "KV_weir";
/// Entries of one read.
const PAGE_MAX_ENTRIES: u32 = 1_000;
/// On a KV entry that is none any more.
const OPERATION: &str = "KV-Operation";
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
pub struct Book {
    js: Context,
    bucket: kv::Store,
    replay: Replay,
}

fn failed(error: impl std::fmt::Display) -> ErasureError {
    ErasureError::Kv(error.to_string())
}

impl Book {
    /// Opens it over a connection of Weir's own user.
    ///
    /// # Errors
    /// When the bucket is not there: no Weir has started on this NATS yet.
    pub async fn open(client: async_nats::Client) -> Result<Self, ErasureError> {
        let js = context(client.clone());
        let bucket = js.get_key_value(KV_BUCKET).await.map_err(failed)?;
        Ok(Self {
            js,
            bucket,
            replay: Replay::new(client),
        })
    }

    /// Orders that were written after a revision, oldest first.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn orders_after(&self, revision: u64) -> Result<Vec<Written>, ErasureError> {
        let entries = self.entries("erase.>", revision).await?;
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
        let created = self.bucket.create(key, json(order)).await;
        created.map_err(failed)
    }

    /// Writes an order down again that the bucket has lost (restored from a copy, or made anew).
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn restore(&self, order: &Order) -> Result<(), ErasureError> {
        let key = format!("erase.{}", order.id);
        let found = self.bucket.entry(key.clone()).await.map_err(failed)?;
        if found.is_some() {
            return Ok(());
        }
        let put = self.bucket.put(key, json(order)).await;
        put.map(|_| ()).map_err(failed)
    }

    /// Takes an order and what is said of it out of the bucket.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn remove(&self, id: &str) -> Result<(), ErasureError> {
        self.purge(&format!("erased.{id}.>")).await?;
        self.purge(&format!("erase.{id}")).await
    }

    /// How far an order is, by stream and by archive.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn progress(&self, id: &str) -> Result<Progress, ErasureError> {
        let mut progress = Progress::default();
        for entry in self.entries(&format!("erased.{id}.>"), 0).await? {
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
        let put = self.bucket.put(key, json(progress)).await;
        put.map(|_| ()).map_err(failed)
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
        let put = self.bucket.put(key, json(progress)).await;
        put.map(|_| ()).map_err(failed)
    }

    /// The processes that run. One that was not heard of for an hour is taken off the list.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn processes(&self) -> Result<Vec<Process>, ErasureError> {
        let entries = self.entries("process.*", 0).await?;
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
        let put = self.bucket.put(key, json(process)).await;
        put.map(|_| ()).map_err(failed)
    }

    /// Says that a process has ended.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn forget(&self, process: &str) -> Result<(), ErasureError> {
        self.purge(&format!("process.{process}")).await
    }

    /// The stream below the bucket, as its leader has it.
    pub(super) async fn state(&self) -> Result<StreamState, ReplayError> {
        self.replay.state(KV_STREAM).await
    }

    /// Unlike a KV purge it leaves no mark behind, of which there would be more and more.
    async fn purge(&self, keys: &str) -> Result<(), ErasureError> {
        let stream = self.js.get_stream_no_info(KV_STREAM).await;
        let stream = stream.map_err(failed)?;
        let purged = stream.purge().filter(subject(keys)).await;
        purged.map(|_| ()).map_err(failed)
    }

    async fn entries(&self, keys: &str, after: u64) -> Result<Vec<Entry>, ErasureError> {
        let (filter, mut after) = (subject(keys), Seq::new(after));
        let mut entries = Vec::new();
        loop {
            let page = self
                .replay
                .scan(KV_STREAM, &filter, after, PAGE_MAX_ENTRIES);
            let page = page.await?;
            let Some(newest) = page.last() else {
                return Ok(entries);
            };
            after = newest.seq;
            entries.extend(page.into_iter().filter_map(|one| {
                let key = one.subject.strip_prefix("$KV.weir.")?.to_owned();
                let is_there = last(&one.headers, OPERATION).is_none();
                is_there.then_some(Entry {
                    key,
                    revision: one.seq.get(),
                    value: one.payload,
                })
            }));
        }
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

#[derive(Debug)]
struct Entry {
    key: String,
    revision: u64,
    value: Bytes,
}

impl Entry {
    /// `None`, with a warning, for what cannot be understood: one bad entry stops no other.
    fn read<T: DeserializeOwned>(&self) -> Option<T> {
        match serde_json::from_slice(&self.value) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(key = self.key, %error, "entry of the bucket weir not understood");
                None
            }
        }
    }
}

fn subject(keys: &str) -> String {
    format!("$KV.{KV_BUCKET}.{keys}")
}

fn json(value: &impl Serialize) -> Bytes {
    let json = serde_json::to_vec(value).expect("plain fields become JSON");
    json.into()
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
