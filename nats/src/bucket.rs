//! Knows: how keys of the KV bucket `weir` are read on from a revision, and taken out without a trace. Never: what a
//! key means.

use async_nats::jetstream::{Context, kv};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

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

/// Why the bucket could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BucketError {
    /// The bucket refused, or does not answer.
    #[error("the KV bucket `weir`: {0}")]
    Kv(String),
    /// The stream below it could not be read.
    #[error(transparent)]
    Read(#[from] ReplayError),
}

impl BucketError {
    pub(crate) fn kv(error: impl std::fmt::Display) -> Self {
        Self::Kv(error.to_string())
    }
}

/// The bucket, over a connection of Weir's own user. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    js: Context,
    pub(crate) kv: kv::Store,
    replay: Replay,
}

impl Bucket {
    /// # Errors
    /// When the bucket is not there: no Weir has started on this NATS yet.
    pub(crate) async fn open(client: async_nats::Client) -> Result<Self, BucketError> {
        let js = context(client.clone());
        let kv = js.get_key_value(KV_BUCKET).await.map_err(BucketError::kv)?;
        let replay = Replay::new(client);
        Ok(Self { js, kv, replay })
    }

    /// The stream below the bucket, as its leader has it.
    pub(crate) async fn state(&self) -> Result<StreamState, ReplayError> {
        self.replay.state(KV_STREAM).await
    }

    /// Entries under `keys` (with wildcards of subjects) that were written after a revision, oldest first.
    pub(crate) async fn entries(&self, keys: &str, after: u64) -> Result<Vec<Entry>, BucketError> {
        self.scan(keys, after).await.map(|(entries, _)| entries)
    }

    /// The same, with the newest revision that was looked at, marks of keys that were taken out included.
    pub(crate) async fn scan(
        &self,
        keys: &str,
        after: u64,
    ) -> Result<(Vec<Entry>, u64), BucketError> {
        let (filter, mut after) = (subject(keys), Seq::new(after));
        let mut entries = Vec::new();
        loop {
            let page = self
                .replay
                .scan(KV_STREAM, &filter, after, PAGE_MAX_ENTRIES);
            let page = page.await?;
            let Some(newest) = page.last() else {
                return Ok((entries, after.get()));
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

    /// Whether there is more after a revision, as the leader has it: a replica that lags may have said that there is
    /// not.
    pub(crate) async fn has_after(&self, keys: &str, after: u64) -> Result<bool, ReplayError> {
        let (filter, after) = (subject(keys), Seq::new(after));
        let found = self.replay.leader_has_after(KV_STREAM, &filter, after);
        found.await.map(|found| found.is_some())
    }

    /// Writes a key, whatever it held.
    pub(crate) async fn put(&self, key: String, value: &impl Serialize) -> Result<(), BucketError> {
        let put = self.kv.put(key, json(value)).await;
        put.map(|_| ()).map_err(BucketError::kv)
    }

    /// Takes keys out. Unlike a KV purge it leaves no mark behind, of which there would be more and more.
    pub(crate) async fn purge(&self, keys: &str) -> Result<(), BucketError> {
        let stream = self.js.get_stream_no_info(KV_STREAM).await;
        let stream = stream.map_err(BucketError::kv)?;
        let purged = stream.purge().filter(subject(keys)).await;
        purged.map(|_| ()).map_err(BucketError::kv)
    }

    /// Takes one entry out, unless the key was written again meanwhile.
    pub(crate) async fn purge_entry(&self, entry: &Entry) -> Result<(), BucketError> {
        let stream = self.js.get_stream_no_info(KV_STREAM).await;
        let stream = stream.map_err(BucketError::kv)?;
        let purge = stream.purge().sequence(entry.revision + 1);
        let purged = purge.filter(subject(&entry.key)).await;
        purged.map(|_| ()).map_err(BucketError::kv)
    }
}

/// One key's value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) revision: u64,
    pub(crate) value: Bytes,
}

impl Entry {
    /// `None`, with a warning, for what cannot be understood: one bad entry stops no other.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Option<T> {
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

pub(crate) fn json(value: &impl Serialize) -> Bytes {
    let json = serde_json::to_vec(value).expect("plain fields become JSON");
    json.into()
}
