//! Knows: what the KV bucket `weir` holds of placements, knowledge and keys, and how it is changed by
//! one process at a time. Never: what a change means.

use async_nats::jetstream::{Context, kv};
use bytes::Bytes;

use super::{GuardError, Known};
use crate::ambient::random;
use crate::placement::PlacementRecord;
use crate::stream::{KV_BUCKET, LogConfig, declare_bucket};

const IDEMPOTENCY_KEY: &str = "keys.idempotency";
/// Processes that may make the key at once.
const KEY_TRIES_MAX: usize = 3;

/// The bucket.
pub(super) struct Record {
    js: Context,
    bucket: kv::Store,
    replicas: u8,
}

fn failed(error: &dyn std::fmt::Display) -> GuardError {
    GuardError::Kv(error.to_string())
}

/// A log's placement, without making the bucket where it is missing.
pub(super) async fn written_placement(
    js: &Context,
    log: &str,
) -> Result<PlacementRecord, GuardError> {
    let bucket = js
        .get_key_value(KV_BUCKET)
        .await
        .map_err(|error| failed(&error))?;
    let stored = bucket.get(format!("placement.{log}")).await;
    match stored.map_err(|error| failed(&error))? {
        Some(json) => serde_json::from_slice(&json).map_err(|error| failed(&error)),
        None => Ok(PlacementRecord::default()),
    }
}

fn known_key(stream: &str) -> String {
    format!("guard.{stream}")
}

impl Record {
    pub(super) async fn open(js: Context, replicas: u8) -> Result<Self, GuardError> {
        let bucket = declare_bucket(&js, replicas).await?;
        Ok(Self {
            js,
            bucket,
            replicas,
        })
    }

    /// Reads a key. A bucket that went with the rest of the store is made again.
    async fn entry(&self, key: &str) -> Result<Option<kv::Entry>, GuardError> {
        match self.bucket.entry(key).await {
            Ok(entry) => Ok(entry),
            Err(first) => {
                declare_bucket(&self.js, self.replicas)
                    .await
                    .map_err(|_| failed(&first))?;
                self.bucket.entry(key).await.map_err(|error| failed(&error))
            }
        }
    }

    /// A log's placement and its revision.
    pub(super) async fn placement(
        &self,
        log: &LogConfig,
    ) -> Result<(PlacementRecord, u64), GuardError> {
        let entry = self.entry(&format!("placement.{}", log.name)).await?;
        match entry {
            Some(entry) if entry.operation == kv::Operation::Put => {
                let record = serde_json::from_slice(&entry.value).map_err(|e| failed(&e))?;
                Ok((record, entry.revision))
            }
            Some(entry) => Ok((PlacementRecord::default(), entry.revision)),
            None => Ok((PlacementRecord::default(), 0)),
        }
    }

    /// Compare-and-set, so that two processes cannot both make a generation.
    pub(super) async fn set_placement(
        &self,
        log: &LogConfig,
        record: &PlacementRecord,
        revision: u64,
    ) -> Result<u64, GuardError> {
        let json = serde_json::to_vec(record).map_err(|error| failed(&error))?;
        let key = format!("placement.{}", log.name);
        let set = self.bucket.update(key, Bytes::from(json), revision).await;
        set.map_err(|error| match error.kind() {
            kv::UpdateErrorKind::WrongLastRevision => GuardError::Raced(log.name.clone()),
            _ => failed(&error),
        })
    }

    /// What was written down of a stream, and its revision.
    pub(super) async fn known(&self, stream: &str) -> Result<Option<(Known, u64)>, GuardError> {
        let entry = self.entry(&known_key(stream)).await?;
        Ok(entry
            .filter(|entry| entry.operation == kv::Operation::Put)
            .and_then(|entry| {
                let known = serde_json::from_slice(&entry.value).ok()?;
                Some((known, entry.revision))
            }))
    }

    /// Writes down what is known of a stream, unless more is written there.
    pub(super) async fn set_known(&self, stream: &str, known: &Known) -> Result<(), GuardError> {
        let (mut written, revision) = self.known(stream).await?.unwrap_or_default();
        let before = written.clone();
        written.raise(known);
        if written == before {
            return Ok(());
        }
        let json = serde_json::to_vec(&written).map_err(|error| failed(&error))?;
        let key = known_key(stream);
        let set = self.bucket.update(key, Bytes::from(json), revision).await;
        match set.map_err(|error| (error.kind(), error)) {
            // Another process wrote down what it knows, which is as new.
            Ok(_) | Err((kv::UpdateErrorKind::WrongLastRevision, _)) => Ok(()),
            Err((_, error)) => Err(failed(&error)),
        }
    }

    /// A stream that was retired will never be compared again.
    pub(super) async fn forget_known(&self, stream: &str) -> Result<(), GuardError> {
        let purged = self.bucket.purge(known_key(stream)).await;
        purged.map_err(|error| failed(&error))
    }

    /// The secret under which callers' keys become ids; made once, by whoever is first.
    pub(super) async fn idempotency_secret(&self) -> Result<[u8; 32], GuardError> {
        for _ in 0..KEY_TRIES_MAX {
            let stored = self.bucket.get(IDEMPOTENCY_KEY).await;
            let stored = stored.map_err(|error| failed(&error))?;
            if let Some(secret) = stored.and_then(|bytes| bytes.as_ref().try_into().ok()) {
                return Ok(secret);
            }
            let secret: [u8; 32] = random();
            let made = Bytes::copy_from_slice(&secret);
            if self.bucket.create(IDEMPOTENCY_KEY, made).await.is_ok() {
                return Ok(secret);
            }
        }
        Err(failed(&"the key `keys.idempotency` is not 32 bytes"))
    }
}
