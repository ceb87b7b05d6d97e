//! Knows: how to run a real nats-server for a test, and how to publish and read back. Never: what
//! must hold (the tests say so).
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate of its own, uses a part of this, and is public to nobody"
)]

#[path = "../../../tests/support/logs.rs"]
mod logs;
#[path = "../../../tests/support/ports.rs"]
mod ports;
pub mod proxy;

pub(crate) use logs::rooms;
use ports::free_port;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_nats::connect::{ConnectConfig, Credentials, LinkTimes, Links};
use weir_nats::guard::{Guard, Known};
use weir_nats::publish::{Outcome, Outgoing, PublishLimits, Publisher, PublisherParts};
use weir_nats::replay::Replay;
use weir_nats::stream::LogConfig;
use weir_nats::{Author, Delivery, Door, Orders, Placements, RoomName, Seq};

/// Nothing in these tests takes longer than this on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(12);

/// The rights of the three users, as in `deploy/nats.conf`.
const LIVE: &str = r#"{
    publish: ["log.>", "parked.>", "eph.>", "who.>", "weir.>", "$JS.API.>", "$KV.weir.>"]
    subscribe: ["room.>", "eph.>", "who.>", "weir.>", "_INBOX.weir.>"] }"#;
const READS: &str = r#"{
    publish: ["$JS.API.DIRECT.GET.>", "$JS.API.STREAM.INFO.*"]
    subscribe: ["_INBOX.weir_read.>"] }"#;
const DOOR: &str = r#"{ publish: ["_INBOX.>"], subscribe: ["say.*.*.*"] }"#;

/// A nats-server of one test, ended with it.
pub struct Server {
    child: Option<Child>,
    pub port: u16,
    pub dir: tempfile::TempDir,
}

fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("WEIR_NATS_SERVER") {
        return path.into();
    }
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    if local.exists() {
        local
    } else {
        "nats-server".into()
    }
}

impl Server {
    /// Starts one with JetStream, every write synced, and Weir's three users.
    pub fn start() -> Self {
        let mut server = Self {
            child: None,
            port: free_port(),
            dir: tempfile::tempdir().unwrap(),
        };
        let config = format!(
            "listen: 127.0.0.1:{}\nserver_name: test\n\
             jetstream {{ store_dir: {:?}, sync_interval: always }}\n\
             authorization {{ users: [\n\
             {{user: weir, password: w, permissions: {LIVE}}},\n\
             {{user: weir_read, password: r, permissions: {READS}}},\n\
             {{user: weir_door, password: d, permissions: {DOOR}}}] }}\n",
            server.port,
            server.store(),
        );
        std::fs::write(server.dir.path().join("nats.conf"), config).unwrap();
        server.run();
        server
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Starts the process; returns once it answers.
    pub fn run(&mut self) {
        let child = Command::new(binary())
            .arg("-c")
            .arg(self.dir.path().join("nats.conf"))
            .arg("-l")
            .arg(self.dir.path().join("nats.log"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server runs");
        self.child = Some(child);
        let until = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Copies its store aside; it may be running, as a backup program would find it.
    pub fn copy_store(&self, to: &str) {
        copy(&self.store(), &self.dir.path().join(to));
    }

    /// Puts a copy in the place of the store. It must not be running.
    pub fn put_store_back(&self, from: &str) {
        std::fs::remove_dir_all(self.store()).unwrap();
        copy(&self.dir.path().join(from), &self.store());
    }

    pub fn connect_config(&self) -> ConnectConfig {
        let user = |user: &str, password: &str| Credentials {
            user: user.into(),
            password: password.into(),
        };
        ConnectConfig {
            url: format!("nats://127.0.0.1:{}", self.port),
            live: user("weir", "w"),
            reads: user("weir_read", "r"),
            door: user("weir_door", "d"),
            tls: None,
            times: LinkTimes::default(),
        }
    }

    pub async fn links(&self) -> Links {
        Links::connect(&self.connect_config()).await.unwrap()
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("nats.log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            // A stopped process takes SIGKILL as well; nothing else is needed.
            let pid = child.id();
            tracing::debug!(pid, "ending nats-server");
        }
        self.kill();
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.unwrap().success());
}

/// What a process of Weir has of this crate.
pub struct Process {
    pub links: Links,
    pub placements: Placements,
    pub guard: Guard,
    pub publisher: Publisher,
    pub replay: Replay,
    pub stop: CancellationToken,
}

impl Process {
    pub async fn start(server: &Server) -> Self {
        Self::start_with(server, rooms(), vec![]).await
    }

    pub async fn start_with(server: &Server, log: LogConfig, seeds: Vec<(String, Known)>) -> Self {
        Self::start_on(server.links().await, log, seeds).await
    }

    /// Over connections that go another way.
    pub async fn start_on(links: Links, log: LogConfig, seeds: Vec<(String, Known)>) -> Self {
        let placements = Placements::default();
        let windows = HashMap::from([(log.name.clone(), log.duplicate_window)]);
        let events = links.events();
        let start = Guard::start(
            &links,
            vec![log],
            placements.clone(),
            seeds,
            Orders::default(),
        );
        let guard = start.await.unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(guard.clone().run(events, stop.clone()));
        let parts = PublisherParts {
            links: links.clone(),
            placements: placements.clone(),
            guard: guard.clone(),
            key: guard.idempotency_secret().await.unwrap(),
            duplicate_windows: windows,
            saw: {
                let guard = guard.clone();
                Arc::new(move |stream, known| guard.saw(stream, &known))
            },
            lookup: None,
            limits: PublishLimits::default(),
        };
        Self {
            publisher: Publisher::start(parts, &TaskTracker::new()),
            replay: Replay::new(links.reads.clone()),
            links,
            placements,
            guard,
            stop,
        }
    }

    /// Hands a message over and gives what its outcome will arrive on.
    pub fn submit(&self, room: &str, text: &str) -> oneshot::Receiver<Outcome> {
        self.submit_as("ann", room, text, None)
    }

    pub fn submit_as(
        &self,
        user: &str,
        room: &str,
        text: &str,
        key: Option<&str>,
    ) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        self.publisher.submit(Outgoing {
            room: RoomName::parse(room).unwrap(),
            log: "rooms".into(),
            author: Author {
                user: user.into(),
                client: "c".into(),
                info: None,
                door: Door::Socket,
            },
            tags: BTreeMap::new(),
            data: text.to_owned().into(),
            key: key.map(str::to_owned),
            done: Box::new(move |outcome| {
                drop(done.send(outcome));
            }),
        });
        outcome
    }

    /// Everything that the log holds, generation by generation.
    pub async fn all(&self) -> Vec<Delivery> {
        let mut all = Vec::new();
        for slot in self.placements.slots() {
            for generation in slot.generations.iter() {
                let mut after = Seq::ZERO;
                loop {
                    let page = self
                        .replay
                        .all_after(&generation.stream, "log.rooms.>", after, 200)
                        .await;
                    let Ok(page) = page else { break };
                    let Some(newest) = page.last() else { break };
                    after = newest.message.seq;
                    all.extend(page);
                }
            }
        }
        all
    }

    pub async fn texts(&self) -> Vec<String> {
        let all = self.all().await;
        all.iter().map(text).collect()
    }

    pub fn current(&self) -> String {
        let slots = self.placements.slots();
        slots[0].generations.last().unwrap().stream.clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.data.to_vec()).unwrap()
}

pub fn stored(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Stored { position, .. } => position.offset.get(),
        other => panic!("{other:?}"),
    }
}

/// Waits until `holds` gives something.
pub async fn eventually<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = holds().await {
            return value;
        }
        assert!(Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
