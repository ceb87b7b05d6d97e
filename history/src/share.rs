//! Knows: which workers live and which of them follows a stream. Never: what following means.
//!
//! Each worker says once a second that it lives; a stream belongs to the living worker that
//! rendezvous hashing gives it to. Nothing depends on all of them seeing the same: two that follow
//! one stream write the same rows into the same places, and one that nobody follows waits a moment
//! in JetStream. So there is no lease, and no state to repair after a crash.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use weir_nats::ambient::random;
use weir_nats::partition::owner_of;

/// Between signs of life.
const EVERY: Duration = Duration::from_secs(1);
/// A worker that was not heard for so long is taken to be gone.
const GONE_AFTER: Duration = Duration::from_secs(5);
/// Workers of one archive that are known at a time.
const WORKERS_MAX: usize = 1_000;

/// The workers of one archive, as this one hears of them.
#[derive(Clone, Debug)]
pub struct Share {
    own: String,
    living: watch::Receiver<Vec<String>>,
}

impl Share {
    /// Joins the workers of an archive; leaves them at `stop`, and while `is_well` says false, so that
    /// one that cannot archive leaves its streams to the others.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn join(
        client: Client,
        archive: &str,
        is_well: Box<dyn Fn() -> bool + Send + Sync>,
        stop: CancellationToken,
    ) -> Result<Self, async_nats::SubscribeError> {
        let own = data_encoding::HEXLOWER.encode(&random::<8>());
        let subject = format!("weir.workers.{archive}");
        let heard = client.subscribe(subject.clone()).await?;
        // Whoever else lives is heard before this one takes anything from it.
        let (living, receiver) = watch::channel(Vec::new());
        let announcing = Announcing {
            client,
            subject,
            own: own.clone(),
            is_well,
        };
        tokio::spawn(keep(announcing, heard, living, stop));
        Ok(Self {
            own,
            living: receiver,
        })
    }

    /// True if this worker is the one to follow a stream.
    #[must_use]
    pub fn is_mine(&self, stream: &str) -> bool {
        let living = self.living.borrow();
        owner_of(stream, living.iter().map(String::as_str)) == Some(self.own.as_str())
    }

    /// Waits until the workers are others than before.
    pub async fn changed(&mut self) {
        if self.living.changed().await.is_err() {
            // Stopping: whoever waits is stopped as well.
            std::future::pending::<()>().await;
        }
    }
}

/// What a worker says of itself.
struct Announcing {
    client: Client,
    subject: String,
    own: String,
    is_well: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Announcing {
    async fn say(&self, word: &str) {
        let text = format!("{word} {}", self.own).into();
        if let Err(error) = self.client.publish(self.subject.clone(), text).await {
            tracing::debug!(%error, "worker not announced");
        }
    }
}

async fn keep(
    announcing: Announcing,
    mut heard: async_nats::Subscriber,
    living: watch::Sender<Vec<String>>,
    stop: CancellationToken,
) {
    let started = Instant::now();
    let mut last_heard: BTreeMap<String, Instant> = BTreeMap::new();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let own = announcing.own.clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                announcing.say("gone").await;
                return;
            }
            _ = tick.tick() => {
                let word = if (announcing.is_well)() { "here" } else { "gone" };
                announcing.say(word).await;
            }
            message = heard.next() => {
                let Some(message) = message else {
                    return;
                };
                let text = std::str::from_utf8(&message.payload).unwrap_or_default();
                match text.split_once(' ') {
                    Some(("here", worker)) if worker.len() <= 64 => {
                        if last_heard.len() < WORKERS_MAX || last_heard.contains_key(worker) {
                            last_heard.insert(worker.to_owned(), Instant::now());
                        }
                    }
                    Some(("gone", worker)) => {
                        last_heard.remove(worker);
                    }
                    _ => tracing::debug!("not a worker's sign of life"),
                }
            }
        }
        last_heard.retain(|_, at| at.elapsed() < GONE_AFTER);
        let mut now: Vec<String> = last_heard.keys().cloned().collect();
        if !now.contains(&own) {
            now.push(own.clone());
        }
        // One sign of life of everybody fits into this.
        if started.elapsed() > EVERY + EVERY / 2 || now.len() > 1 {
            living.send_if_modified(|living| {
                let changed = *living != now;
                *living = now;
                changed
            });
        }
    }
}
