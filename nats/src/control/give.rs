//! Knows: how an order is given: written down, told to all processes at once, and what each says that it did. Never:
//! who may give one.

use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::Order;
use super::book::{Book, BookError, Written};
use super::watch::{Done, NUDGE_SUBJECT};
use crate::ambient::now_ms;
use crate::bucket::BucketError;
use crate::erasure::book::{Book as Processes, Process};

/// Processes say that they run every 20 s; one that did not for so long is not waited for.
const SILENT_AFTER_MS: i64 = 65_000;
/// How long the answers of processes are waited for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// What became of an order.
#[derive(Clone, Debug)]
pub struct Given {
    /// As it is written down.
    pub written: Written,
    /// What each process that answered did.
    pub done: Vec<Done>,
    /// Processes that are said to run and did not answer: what they have stays open until they are back.
    pub silent: Vec<Process>,
}

impl Given {
    /// Sockets closed, subscriptions ended, connections at nats-servers ended; of all processes.
    #[must_use]
    pub fn sums(&self) -> (u64, u64, u64) {
        self.done.iter().fold((0, 0, 0), |sum, done| {
            let (closed, unsubscribed, native) = sum;
            (
                closed + done.closed,
                unsubscribed + done.unsubscribed,
                native + done.native,
            )
        })
    }
}

/// Gives orders over a connection of Weir's own user. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Giver {
    client: Client,
    book: Book,
    processes: Processes,
}

impl Giver {
    /// # Errors
    /// When the bucket is not there: no Weir has started on this NATS yet.
    pub async fn open(client: Client) -> Result<Self, BookError> {
        Ok(Self {
            book: Book::open(client.clone()).await?,
            processes: Processes::open(client.clone())
                .await
                .map_err(BucketError::kv)?,
            client,
        })
    }

    /// The bucket.
    #[must_use]
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Gives one: from when this has written it, it is in force. Then waits for what processes say, within 3 s.
    ///
    /// # Errors
    /// When it is not written down.
    pub async fn give(&self, order: Order) -> Result<Given, BookError> {
        let written = self.book.write(order).await?;
        tracing::info!(
            target: "audit",
            what = %written.order.what,
            by = written.order.by,
            reason = written.order.reason,
            "order is given"
        );
        let deadline = Instant::now() + ANSWERS_WITHIN;
        let asked = timeout_at(deadline, self.ask(deadline)).await;
        let (done, silent) = asked.unwrap_or_default();
        Ok(Given {
            written,
            done,
            silent,
        })
    }

    /// Whatever fails here, the order is in force: processes look every second.
    async fn ask(&self, deadline: Instant) -> (Vec<Done>, Vec<Process>) {
        let inbox = self.client.new_inbox();
        let answers = self.client.subscribe(inbox.clone()).await;
        let nudged = self
            .client
            .publish_with_reply(NUDGE_SUBJECT, inbox, "".into())
            .await;
        let mut answers = match (answers, nudged) {
            (Ok(answers), Ok(())) => answers,
            (Err(error), _) => {
                tracing::warn!(%error, "processes are not asked what they did");
                return (Vec::new(), Vec::new());
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "processes are not told at once");
                return (Vec::new(), Vec::new());
            }
        };
        let mut silent = match self.processes.processes().await {
            Ok(processes) => processes,
            Err(error) => {
                tracing::warn!(%error, "which processes run is not known");
                return (Vec::new(), Vec::new());
            }
        };
        silent.retain(|process| now_ms().saturating_sub(process.at_ms) < SILENT_AFTER_MS);
        let mut all = Vec::new();
        // A moment less than the caller waits, so that what has come is not lost.
        let deadline = deadline - Duration::from_millis(200);
        while !silent.is_empty() {
            let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await else {
                break;
            };
            match serde_json::from_slice::<Done>(&answer.payload) {
                Ok(done) => {
                    silent.retain(|process| process.id != done.process);
                    all.push(done);
                }
                Err(error) => tracing::debug!(%error, "no answer of a process"),
            }
        }
        (all, silent)
    }
}
