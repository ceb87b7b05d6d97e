//! Knows: what the KV bucket `weir` holds of orders about who is connected. Never: whom an order is about, how it is
//! carried out.
//!
//! `control.<key>` is an order, see [`Order::key`]: one that covers another replaces it, so the bucket grows with the
//! users and tokens that are revoked and not with how often that is said.

use async_nats::jetstream::kv;

use super::Order;
use crate::ambient::now_ms;
use crate::bucket::{Bucket, BucketError, Entry, json};
use crate::replay::{ReplayError, StreamState};

/// All orders.
const KEYS: &str = "control.>";
/// Keys of the bucket, whatever they are, beyond which no new order is taken; each is some 200 bytes in memory and on
/// disk.
pub const KEYS_MAX: u64 = 100_000;
/// Who writes the same key at the same time tries again so often.
const TRIES_MAX: usize = 10;

/// Why an order was not written down, and so is not in force.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BookError {
    /// The bucket.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// There are too many.
    #[error(
        "the bucket weir has {KEYS_MAX} keys, so no more orders are kept; wait until some are over, or revoke by issued_before"
    )]
    TooMany,
    /// The replica that answered is behind the leader.
    #[error("a replica of the bucket weir lags")]
    Lags,
    /// Somebody else wrote it, again and again.
    #[error("others write the same order at the same time; try again")]
    Raced,
}

impl From<ReplayError> for BookError {
    fn from(error: ReplayError) -> Self {
        Self::Bucket(error.into())
    }
}

/// An order as the bucket has it.
#[derive(Clone, Debug)]
pub struct Written {
    /// The order.
    pub order: Order,
    /// Its revision.
    pub revision: u64,
}

/// The part of the bucket with orders. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Book(Bucket);

impl Book {
    /// Opens it over a connection of Weir's own user.
    ///
    /// # Errors
    /// When the bucket is not there: no Weir has started on this NATS yet.
    pub async fn open(client: async_nats::Client) -> Result<Self, BookError> {
        Ok(Self(Bucket::open(client).await?))
    }

    /// Orders that were written after a revision, oldest first, and the newest revision that was looked at. Nothing is
    /// missing that was written before this was asked.
    ///
    /// # Errors
    /// When the bucket does not answer, or a replica of it that lags.
    pub async fn after(&self, revision: u64) -> Result<(Vec<Written>, u64), BookError> {
        let (mut entries, mut newest) = (Vec::new(), revision);
        let mut tries_left = TRIES_MAX;
        loop {
            let (more, reached) = self.0.scan(KEYS, newest).await?;
            (newest, tries_left) = (reached, tries_left - 1);
            entries.extend(more);
            if !self.0.has_after(KEYS, newest).await? {
                break;
            }
            if tries_left == 0 {
                return Err(BookError::Lags);
            }
        }
        let orders = entries.into_iter().filter_map(|entry| {
            let revision = entry.revision;
            let order = entry.read()?;
            Some(Written { order, revision })
        });
        Ok((orders.collect(), newest))
    }

    /// Writes an order down, from when on it is in force, merged with what its key says already. Returns what is
    /// written, and its revision.
    ///
    /// # Errors
    /// When the bucket refuses, or there are too many.
    pub async fn write(&self, order: Order) -> Result<Written, BookError> {
        let key = format!("control.{}", order.key());
        for _ in 0..TRIES_MAX {
            let found = self.0.kv.entry(key.clone()).await;
            let found = found.map_err(BucketError::kv)?;
            let (merged, revision) = match &found {
                Some(entry) if entry.operation == kv::Operation::Put => {
                    let before: Option<Order> = serde_json::from_slice(&entry.value).ok();
                    let before = before.filter(|before| !before.is_over(now_ms()));
                    let merged = match before {
                        Some(before) => order.clone().with(&before),
                        None => order.clone(),
                    };
                    (merged, entry.revision)
                }
                found => {
                    if self.0.state().await?.messages >= KEYS_MAX {
                        return Err(BookError::TooMany);
                    }
                    (
                        order.clone(),
                        found.as_ref().map_or(0, |entry| entry.revision),
                    )
                }
            };
            let written = self.0.kv.update(key.clone(), json(&merged), revision).await;
            match written.map_err(|error| (error.kind(), error)) {
                Ok(revision) => {
                    let order = merged;
                    return Ok(Written { order, revision });
                }
                Err((kv::UpdateErrorKind::WrongLastRevision, _)) => {}
                Err((_, error)) => return Err(BucketError::kv(error).into()),
            }
        }
        Err(BookError::Raced)
    }

    /// Takes out what is over. Returns how many that were.
    ///
    /// # Errors
    /// When the bucket does not answer.
    pub async fn clean(&self) -> Result<usize, BookError> {
        let now = now_ms();
        let entries = self.0.entries(KEYS, 0).await?;
        let is_over = |entry: &&Entry| entry.read::<Order>().is_some_and(|o| o.is_over(now));
        let mut gone = 0;
        for entry in entries.iter().filter(is_over) {
            self.0.purge_entry(entry).await?;
            gone += 1;
        }
        Ok(gone)
    }

    /// The stream below the bucket, as its leader has it.
    pub(super) async fn state(&self) -> Result<StreamState, ReplayError> {
        self.0.state().await
    }
}
