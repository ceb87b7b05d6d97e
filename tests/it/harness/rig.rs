//! Knows: a whole run: nats-server, perhaps a proxy, Weir, readers, writers, one record, the end of it.
//! Never: which fault is injected.

use std::time::{Duration, Instant};

use super::client::Client;
use super::nats::Nats;
use super::reader::Reader;
use super::record::Recorder;
use super::weir::{Config, Weir, tail};
use super::writer::{Plan, Writer};
use super::{Rng, scan, until, within};
use crate::checker::event::What;
use crate::figures::figure;
use crate::proxy::Proxy;

/// After a heal every subscriber has everything within this.
pub(crate) const QUIET: Duration = Duration::from_secs(10);

/// Everything that a run needs.
pub(crate) struct Rig {
    pub(crate) recorder: Recorder,
    pub(crate) rooms: Vec<String>,
    pub(crate) readers: Vec<Reader>,
    pub(crate) writers: Vec<Writer>,
    pub(crate) weir: Weir,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) nats: Nats,
}

/// How large a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) rooms: usize,
    pub(crate) readers: usize,
    pub(crate) rooms_per_reader: usize,
    pub(crate) writers: usize,
    pub(crate) per_second: u32,
    pub(crate) bytes: usize,
}

impl Rig {
    /// Starts servers and nobody yet.
    pub(crate) async fn servers(
        rooms: usize,
        proxied: bool,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let nats = Box::pin(Nats::start()).await;
        let proxy = if proxied {
            Some(Proxy::start(nats.port).await)
        } else {
            None
        };
        let url = proxy.as_ref().map_or_else(|| nats.url(), Proxy::url);
        let mut config = Config::new(&url);
        change(&mut config);
        let weir = Box::pin(Weir::start(config)).await;
        Self {
            recorder: Recorder::new(),
            rooms: (0..rooms).map(|i| format!("chat:r{i}")).collect(),
            readers: Vec::new(),
            writers: Vec::new(),
            weir,
            proxy,
            nats,
        }
    }

    /// Starts servers, and readers and writers of that many.
    pub(crate) async fn loaded(
        size: Size,
        proxied: bool,
        seed: u64,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut rig = Box::pin(Self::servers(size.rooms, proxied, change)).await;
        let mut rng = Rng::new(seed);
        for number in 0..size.readers {
            let first = rng.below(size.rooms as u64) as usize;
            let rooms: Vec<_> = (0..size.rooms_per_reader)
                .map(|i| rig.rooms[(first + i) % size.rooms].clone())
                .collect();
            rig.read(&format!("reader{number}"), &rooms);
        }
        rig.until_joined().await;
        for number in 0..size.writers {
            rig.write(&format!("writer{number}"), size.per_second, size.bytes);
        }
        rig
    }

    /// One more reader.
    pub(crate) fn read(&mut self, name: &str, rooms: &[String]) {
        self.readers.push(Reader::start(
            &self.recorder,
            &self.weir.address(),
            name,
            rooms,
        ));
    }

    /// One more author over a socket, to all rooms in turn.
    pub(crate) fn write(&mut self, name: &str, per_second: u32, bytes: usize) {
        let plan = Plan {
            name: name.to_owned(),
            rooms: self.rooms.clone(),
            per_second,
            bytes,
        };
        self.writers.push(Writer::over_socket(
            &self.recorder,
            &self.weir.address(),
            plan,
        ));
    }

    /// The bot `bot`, over the native door.
    pub(crate) async fn bot(&mut self, per_second: u32, bytes: usize) {
        let rooms = self.rooms.clone();
        let plan = Plan {
            name: "bot".to_owned(),
            rooms,
            per_second,
            bytes,
        };
        let client = self.nats.client("bot").await;
        self.writers
            .push(Writer::over_nats(&self.recorder, client, plan));
    }

    /// Waits until every reader is a member of all its rooms.
    pub(crate) async fn until_joined(&self) {
        until(
            "every reader has joined",
            Duration::from_secs(60),
            async || self.readers.iter().all(Reader::joined),
        )
        .await;
    }

    /// Acknowledgements so far.
    pub(crate) fn acked(&self) -> usize {
        self.writers.iter().map(Writer::acked).sum()
    }

    /// Waits until so many more publishes were acknowledged: the load flows again.
    pub(crate) async fn until_acked(&self, more: usize, deadline: Duration) {
        let before = self.acked();
        until(
            &format!("{more} more acknowledgements"),
            deadline,
            async || self.acked() >= before + more,
        )
        .await;
    }

    /// Ends all writers, waits until every reader has the head of all its rooms, and says so in the
    /// record. What `QUIET` does not suffice for, the checker then shows.
    pub(crate) async fn settle(&mut self) {
        for writer in self.writers.drain(..) {
            writer.finish().await;
        }
        self.until_joined().await;
        let heads = self.heads().await;
        let start = Instant::now();
        while start.elapsed() < QUIET {
            let behind = self.readers.iter().any(|reader| {
                heads.iter().any(|(room, head)| {
                    reader.rooms().contains(room)
                        && reader
                            .held(room)
                            .position
                            .is_none_or(|at| at.offset < *head)
                })
            });
            if !behind {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        figure!("settled after {:.1?}", start.elapsed());
        self.recorder.push(What::Settled);
    }

    /// The newest offset of each room, by the log itself.
    async fn heads(&self) -> Vec<(String, u64)> {
        let mut heads = std::collections::BTreeMap::new();
        for row in scan::stream(&self.nats).await {
            heads.insert(row.room, row.offset);
        }
        heads.into_iter().collect()
    }

    /// Waits until the archive holds what the stream holds, then writes both into the record.
    pub(crate) async fn scan(&self) {
        let rows = scan::stream(&self.nats).await;
        let archive = self.weir.archive();
        let newest = rows.iter().map(|row| row.offset).max().unwrap_or(0);
        within(
            "the archive reaches the head",
            Duration::from_secs(60),
            async {
                while archive.up_to().await < newest {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        )
        .await;
        let streamed = scan::record_stream(&self.recorder, &self.nats).await;
        let archived = scan::record_archive(&self.recorder, &archive).await;
        figure!("scanned {streamed} rows of the stream and {archived} of the archive");
    }

    /// What no run may show, whatever was injected.
    pub(crate) fn require_calm(&self) {
        for reader in &self.readers {
            assert!(
                reader.fatal().is_empty(),
                "a reader was sent away: {:?}",
                reader.fatal()
            );
        }
        let log = self.weir.log();
        assert!(!log.contains("panicked"), "weir panicked:\n{}", tail(&log));
    }

    /// A socket for whatever else a test wants to ask.
    pub(crate) async fn client(&self, user: &str) -> Client {
        let address = self.weir.address();
        within("a client connects", Duration::from_secs(30), async {
            loop {
                if let Ok(client) = Client::connect(&address, Some(user)).await {
                    return client;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
    }
}
