//! Knows: a stream that waits to be archived, and the worker that archives it. Never: which archive.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_history::held::Held;
use weir_history::{Archive, Reader, Worker, WorkerMetrics};
use weir_nats::ambient::random;
use weir_nats::connect::{ConnectConfig, Credentials, LinkTimes, Links};
use weir_nats::guard::Guard;
use weir_nats::message::stamp;
use weir_nats::replay::Replay;
use weir_nats::stream::{LogConfig, Storage, context};
use weir_nats::{Orders, Placements, Seq};

use crate::rows::{LOG, author, payload, room_of};
use crate::usage::{Others, Usage};

const STREAM: &str = "ROOMS_0";
const IN_FLIGHT_MAX: usize = 2_000;
/// For the whole backlog to be archived.
const ARCHIVED_WITHIN: Duration = Duration::from_secs(600);

/// A NATS with one log of rooms.
pub(crate) struct Backlog {
    links: Links,
    guard: Guard,
    pub(crate) placements: Placements,
}

impl Backlog {
    /// At a nats-server of the bench's own.
    pub(crate) async fn at(url: &str) -> Self {
        let nobody = Credentials {
            user: "bench".into(),
            password: "bench".into(),
        };
        let config = ConnectConfig {
            url: url.to_owned(),
            live: nobody.clone(),
            reads: nobody.clone(),
            door: nobody,
            tls: None,
            times: LinkTimes::default(),
        };
        let links = Links::connect(&config).await.unwrap();
        let log = LogConfig {
            name: LOG.into(),
            slots: 1,
            max_age: Duration::ZERO,
            max_bytes: -1,
            max_messages: -1,
            storage: Storage::File,
            replicas: 1,
            duplicate_window: Duration::from_secs(120),
        };
        let placements = Placements::default();
        let (known, orders) = (Vec::new(), Orders::default());
        let guard = Guard::start(&links, vec![log], placements.clone(), known, orders);
        Self {
            guard: Box::pin(guard).await.unwrap(),
            links,
            placements,
        }
    }

    fn replay(&self) -> Replay {
        Replay::new(self.links.reads.clone())
    }

    /// Publishes what is missing of `rows` messages.
    pub(crate) async fn fill(&self, rows: u64) {
        let js: Context = context(self.links.live.clone());
        let last = self.replay().state(STREAM).await.unwrap().last.get();
        let mut waiting = VecDeque::with_capacity(IN_FLIGHT_MAX);
        for seq in last + 1..=rows {
            let room = room_of(seq);
            let id = data_encoding::BASE64URL_NOPAD.encode(&random::<16>());
            let headers = stamp(&room, &author(seq), &BTreeMap::new(), &id);
            let subject = room.stored_subject(LOG);
            let publish = js.publish_with_headers(subject, headers, payload(seq).into());
            waiting.push_back(publish.await.unwrap());
            if waiting.len() == IN_FLIGHT_MAX {
                let oldest = waiting.pop_front().expect("it is full");
                oldest.await.unwrap();
            }
        }
        for acknowledgement in waiting {
            acknowledgement.await.unwrap();
        }
    }

    /// Archives the stream, which has `rows` messages, and says what that cost.
    pub(crate) async fn archive(&self, archive: &Archive, rows: u64, others: &Others) -> String {
        let metrics = Arc::<WorkerMetrics>::default();
        let worker = Worker::new(
            archive.clone(),
            self.replay(),
            self.guard.clone(),
            self.placements.clone(),
            Arc::new(Notify::new()),
            Arc::clone(&metrics),
        );
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let usage = Usage::start(others);
        let run: JoinHandle<()> = tokio::spawn(worker.run(tasks.clone(), stop.clone()));
        let mut held = archive.held();
        let end = Seq::new(rows);
        let is_whole = |held: &Held| held.covers(Seq::ZERO, end);
        let whole = held.wait_for(|all| all.get(STREAM).is_some_and(is_whole));
        let whole = tokio::time::timeout(ARCHIVED_WITHIN, whole).await;
        whole.expect("archived in time").unwrap();
        let cost = usage.per_row(rows);
        let retries = metrics.counts.retries.value();
        assert_eq!(retries, 0, "the figure would be of retries");
        stop.cancel();
        run.await.unwrap();
        tasks.close();
        tasks.wait().await;
        cost
    }

    pub(crate) fn reader(&self, archive: &Archive) -> Reader {
        Reader::new(Some(archive.clone()), self.replay())
    }
}
