//! Knows: a nats-server of the test's own, an archive in a temporary folder, a worker that can be
//! started and killed. Never: what is asserted.

#[path = "../../../tests/support/length.rs"]
mod length;
#[path = "../../../tests/support/logs.rs"]
mod logs;
#[path = "../../../tests/support/ports.rs"]
pub(crate) mod ports;
#[path = "../../../tests/support/rng.rs"]
mod rng;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_history::{Archive, CassandraConfig, Page, Reader, Worker, WorkerMetrics};
use weir_nats::connect::{ConnectConfig, Credentials, LinkTimes, Links};
use weir_nats::guard::{Guard, Known};
use weir_nats::message::stamp;
use weir_nats::placement::Place;
use weir_nats::replay::Replay;
use weir_nats::stream::context;
use weir_nats::{Author, Door, Message, Orders, Placements, RoomName, Seq};

use crate::cassandra::config_at;
use crate::node::{Keyspace, Node, cql, shared_node};
pub(crate) use length::either;
pub(crate) use rng::Rng;

/// Longest wait for anything.
pub(crate) const WITHIN: Duration = Duration::from_secs(12);
/// For a node to make a keyspace, on a machine that does other things.
pub(crate) const NODE_WITHIN: Duration = Duration::from_secs(60);
pub(crate) const STREAM: &str = "ROOMS_0";
/// Acknowledgements in flight while a test publishes.
const IN_FLIGHT_MAX: usize = 200;

/// Makes a test of each function, once for each kind of archive. One that is not named here is dead
/// code, which is an error.
macro_rules! for_each_archive {
    ($($name:ident),+ $(,)?) => { $(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                Box::pin(super::$name(crate::rig::Kind::Sqlite)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn cassandra() {
                Box::pin(super::$name(crate::rig::Kind::Cassandra)).await;
            }
        }
    )+ };
}

/// The archives that every test of history and recovery runs against, with the same assertions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Cassandra,
}

pub(crate) struct Rig {
    pub(crate) kind: Kind,
    pub(crate) links: Links,
    pub(crate) js: Context,
    pub(crate) guard: Guard,
    pub(crate) placements: Placements,
    pub(crate) folder: TempDir,
    pub(crate) url: String,
    /// What may be deleted from streams.
    pub(crate) orders: Orders,
    keyspace: Option<Keyspace>,
    /// A node that no other test has.
    pub(crate) node: Option<Node>,
    server: Option<Server>,
}

struct Server(Child);

impl Server {
    fn start(port: &str, folder: &Path) -> Self {
        let child = Command::new(nats_server())
            .args(["-a", "127.0.0.1", "-p", port, "-js", "-sd"])
            .arg(folder.join("nats"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is on PATH, in .tools/bin or named by WEIR_NATS_SERVER");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A worker that runs; dropping it kills it wherever it is.
pub(crate) struct Running {
    tasks: Vec<JoinHandle<()>>,
    stop: CancellationToken,
    pub(crate) metrics: Arc<WorkerMetrics>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn nats_server() -> PathBuf {
    if let Some(path) = std::env::var_os("WEIR_NATS_SERVER") {
        return path.into();
    }
    let local = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../.tools/bin/nats-server"
    ));
    if local.exists() {
        return local;
    }
    "nats-server".into()
}

impl Rig {
    /// For what needs no archive.
    pub(crate) async fn new() -> Self {
        Self::on(Kind::Sqlite).await
    }

    /// One whose archive is of this kind.
    pub(crate) async fn on(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = ports::free_port();
        let server = Server::start(&port.to_string(), folder.path());
        let url = format!("nats://127.0.0.1:{port}");
        Self::join(kind, url, folder, Some(server), Vec::new()).await
    }

    /// One whose archive, if it is in Cassandra, is on a node that the test may kill.
    pub(crate) async fn on_its_own(kind: Kind) -> Self {
        let mut rig = Self::on(kind).await;
        if kind == Kind::Cassandra {
            let node = Node::start(&[]);
            rig.keyspace = Some(Keyspace::new(&node.address()));
            rig.node = Some(node);
        }
        rig
    }

    /// A copy of the archive as it is now. Nothing may be written meanwhile.
    pub(crate) fn copy_archive(&mut self) -> TempDir {
        if let Some(node) = &mut self.node {
            return node.copy_data();
        }
        assert_eq!(self.kind, Kind::Sqlite, "take one that is on its own");
        let copy = tempfile::tempdir().unwrap();
        let file = copy.path().join("archive.db");
        let db = rusqlite::Connection::open(self.archive_path()).unwrap();
        db.execute("VACUUM INTO ?1", [file.to_str().unwrap()])
            .unwrap();
        copy
    }

    /// The archive is again as it was when it was copied. In SQLite it must not be open.
    pub(crate) async fn put_archive_back(&mut self, copy: &TempDir) {
        if let Some(node) = &mut self.node {
            node.kill();
            node.put_back(copy);
            node.restart();
            return;
        }
        self.lose_archive().await;
        std::fs::copy(copy.path().join("archive.db"), self.archive_path()).unwrap();
    }

    /// Ends nats-server, by `kill -9` or in order, and starts it again on the same store after `change` was
    /// made there. Returns when the connections are back.
    pub(crate) async fn restart_nats(&mut self, killed: bool, change: impl FnOnce(&Path)) {
        let mut server = self.server.take().expect("a nats-server of its own");
        let signal = if killed { Signal::KILL } else { Signal::TERM };
        kill_process(Pid::from_child(&server.0), signal).unwrap();
        server.0.wait().unwrap();
        change(&self.folder.path().join("nats"));
        let port = self.url.rsplit(':').next().unwrap();
        self.server = Some(Server::start(port, self.folder.path()));
        let replay = Replay::new(self.links.reads.clone());
        let deadline = Instant::now() + WITHIN;
        while !self.links.is_live() || replay.state(STREAM).await.is_err() {
            assert!(Instant::now() < deadline, "nats-server is back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// One more Weir at a nats-server that another process started. `known` is what its archive
    /// knows.
    pub(crate) async fn beside(url: String, known: Vec<(String, Known)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::join(Kind::Sqlite, url, folder, None, known).await
    }

    async fn join(
        kind: Kind,
        url: String,
        folder: TempDir,
        server: Option<Server>,
        known: Vec<(String, Known)>,
    ) -> Self {
        let nobody = Credentials {
            user: "test".into(),
            password: "test".into(),
        };
        let config = ConnectConfig {
            url,
            live: nobody.clone(),
            reads: nobody.clone(),
            door: nobody,
            tls: None,
            times: LinkTimes::default(),
        };
        let deadline = Instant::now() + WITHIN;
        let links = loop {
            match Links::connect(&config).await {
                Ok(links) => break links,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let placements = Placements::default();
        let orders = Orders::default();
        let guard = Guard::start(
            &links,
            vec![logs::rooms()],
            placements.clone(),
            known,
            orders.clone(),
        );
        let guard = Box::pin(guard).await.unwrap();
        Self {
            kind,
            js: context(links.live.clone()),
            links,
            guard,
            placements,
            folder,
            url: config.url,
            orders,
            keyspace: (kind == Kind::Cassandra).then(|| Keyspace::new(shared_node())),
            node: None,
            server,
        }
    }

    pub(crate) fn archive_path(&self) -> PathBuf {
        self.folder.path().join("archive.db")
    }

    /// Opens the archive, as a process does at its start.
    pub(crate) async fn archive(&self) -> Archive {
        match self.kind {
            Kind::Sqlite => Archive::sqlite(&self.archive_path()).await.unwrap(),
            Kind::Cassandra => {
                let archive = Archive::cassandra(self.cassandra()).await.unwrap();
                let connected = tokio::time::timeout(NODE_WITHIN, archive.connected());
                connected.await.expect("the node answers");
                archive
            }
        }
    }

    fn node_address(&self) -> String {
        let own = self.node.as_ref().map(Node::address);
        own.unwrap_or_else(|| shared_node().to_owned())
    }

    /// The keyspace of this rig.
    pub(crate) fn cassandra(&self) -> CassandraConfig {
        let keyspace = self.keyspace.as_ref().expect("an archive in Cassandra");
        config_at(vec![self.node_address()], keyspace.name(), 1)
    }

    /// Everything in the archive is gone. It must not be open.
    pub(crate) async fn lose_archive(&self) {
        match self.kind {
            Kind::Sqlite => {
                for suffix in ["", "-wal", "-shm"] {
                    let file = format!("{}{suffix}", self.archive_path().display());
                    if std::fs::exists(&file).unwrap() {
                        std::fs::remove_file(file).unwrap();
                    }
                }
            }
            Kind::Cassandra => {
                let keyspace = self.cassandra().keyspace;
                let statement = format!("DROP KEYSPACE {keyspace}");
                cql::query(&self.node_address(), &statement, cql::ONE).unwrap();
            }
        }
    }

    /// How many rows the archive has, counted past Weir.
    pub(crate) async fn row_count(&self) -> u64 {
        match self.kind {
            Kind::Sqlite => rusqlite::Connection::open(self.archive_path())
                .unwrap()
                .query_row("SELECT count(*) FROM messages", [], |row| {
                    row.get::<_, i64>(0)
                })
                .map(|rows| u64::try_from(rows).unwrap())
                .unwrap(),
            Kind::Cassandra => {
                let session = scylla::client::session_builder::SessionBuilder::new()
                    .known_node(self.node_address())
                    .build()
                    .await
                    .unwrap();
                let keyspace = self.cassandra().keyspace;
                let count = format!("SELECT count(*) FROM {keyspace}.messages");
                let counted = session.query_unpaged(count, ()).await.unwrap();
                let rows = counted.into_rows_result().unwrap();
                let (rows,): (i64,) = rows.single_row().unwrap();
                u64::try_from(rows).unwrap()
            }
        }
    }

    pub(crate) fn reader(&self, archive: Option<&Archive>) -> Reader {
        Reader::new(archive.cloned(), Replay::new(self.links.reads.clone()))
    }

    pub(crate) fn place(&self, room: &RoomName) -> Place {
        self.placements.place("rooms", room).unwrap()
    }

    pub(crate) fn work(&self, archive: &Archive) -> Running {
        self.start(archive, |worker| worker)
    }

    /// The same, for one of several workers.
    pub(crate) fn work_among(&self, archive: &Archive) -> Running {
        self.start(archive, |worker| {
            worker.among_others(self.links.live.clone())
        })
    }

    fn start(&self, archive: &Archive, with: impl FnOnce(Worker) -> Worker) -> Running {
        let metrics = Arc::<WorkerMetrics>::default();
        let worker = Worker::new(
            archive.clone(),
            Replay::new(self.links.reads.clone()),
            self.guard.clone(),
            self.placements.clone(),
            Arc::new(Notify::new()),
            Arc::clone(&metrics),
        )
        .with_orders(self.orders.clone());
        let stop = CancellationToken::new();
        let run = tokio::spawn(with(worker).run(TaskTracker::new(), stop.clone()));
        Running {
            tasks: vec![run],
            stop,
            metrics,
        }
    }

    /// Publishes `count` messages of `rooms` in turn and returns them as stored, room by room.
    pub(crate) async fn publish(
        &self,
        rooms: &[RoomName],
        count: usize,
    ) -> BTreeMap<RoomName, Vec<(Seq, Bytes)>> {
        let mut stored: BTreeMap<RoomName, Vec<(Seq, Bytes)>> = BTreeMap::new();
        let mut pending = Vec::new();
        for n in 0..count {
            let room = &rooms[(n * 7) % rooms.len()];
            let data = Bytes::from(format!("{{\"n\":{n},\"text\":\"é \\u0000 {room}\"}}"));
            let headers = stamp(room, &author(), &BTreeMap::new(), &unique_id());
            let ack = self
                .js
                .publish_with_headers(room.stored_subject("rooms"), headers, data.clone())
                .await
                .unwrap();
            pending.push((room.clone(), data, ack));
            if pending.len() >= IN_FLIGHT_MAX || n + 1 == count {
                for (room, data, ack) in pending.drain(..) {
                    let seq = Seq::new(ack.await.unwrap().sequence);
                    stored.entry(room).or_default().push((seq, data));
                }
            }
        }
        stored
    }

    /// Publishes `count` messages of `bytes` each.
    pub(crate) async fn publish_big(&self, room: &RoomName, count: usize, bytes: usize) {
        let data = Bytes::from(vec![b'x'; bytes]);
        for _ in 0..count {
            let headers = stamp(room, &author(), &BTreeMap::new(), &unique_id());
            let subject = room.stored_subject("rooms");
            let ack = self.js.publish_with_headers(subject, headers, data.clone());
            ack.await.unwrap().await.unwrap();
        }
    }

    /// Cuts the stream down to its last `keep` messages, as a limit does.
    pub(crate) async fn trim(&self, keep: i64) {
        let stream = self.js.get_stream(STREAM).await.unwrap();
        let mut config = stream.cached_info().config.clone();
        config.max_messages = keep;
        self.js.update_stream(config.clone()).await.unwrap();
        config.max_messages = -1;
        self.js.update_stream(config).await.unwrap();
    }

    pub(crate) async fn last(&self) -> Seq {
        let replay = Replay::new(self.links.reads.clone());
        replay.state(STREAM).await.unwrap().last
    }

    /// Waits until the archive holds just this of the stream.
    pub(crate) async fn held(&self, archive: &Archive, ranges: &[(u64, u64)]) {
        let mut held = archive.held();
        let reached =
            held.wait_for(|all| all.get(STREAM).is_some_and(|held| held.ranges() == ranges));
        let reached = tokio::time::timeout(NODE_WITHIN, reached).await.is_ok();
        let now = archive.held().borrow().get(STREAM).cloned();
        assert!(reached, "{ranges:?} is held in the end: {now:?}");
    }

    /// Waits until the archive holds the stream up to its last sequence.
    pub(crate) async fn archived(&self, archive: &Archive) {
        let last = self.last().await;
        let mut held = archive.held();
        let reached = held.wait_for(|all| all.get(STREAM).is_some_and(|held| held.end() >= last));
        let within = match self.kind {
            Kind::Sqlite => WITHIN,
            Kind::Cassandra => NODE_WITHIN,
        };
        tokio::time::timeout(within, reached)
            .await
            .expect("archived in time")
            .unwrap();
    }
}

pub(crate) fn room(name: &str) -> RoomName {
    RoomName::parse(name).unwrap()
}

pub(crate) fn rooms(count: usize) -> Vec<RoomName> {
    (0..count)
        .map(|n| room(&format!("chat:room {n}")))
        .collect()
}

pub(crate) fn author() -> Author {
    Author {
        user: "ann".into(),
        client: "c1".into(),
        info: Some(Bytes::from_static(b"{\"name\":\"Ann\"}")),
        door: Door::Socket,
    }
}

pub(crate) fn unique_id() -> String {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).unwrap();
    data_encoding::HEXLOWER.encode(&bytes)
}

pub(crate) fn pairs(messages: &[Arc<Message>]) -> Vec<(Seq, Bytes)> {
    messages.iter().map(|m| (m.seq, m.data.clone())).collect()
}

/// Reads a room from `after` to its end, page by page.
pub(crate) async fn all_forward(
    reader: &Reader,
    place: &Place,
    room: &RoomName,
    after: Seq,
    page_size: u32,
) -> (Vec<(Seq, Bytes)>, bool) {
    let (mut found, mut whole, mut at) = (Vec::new(), true, after);
    loop {
        let page = reader
            .forward(place, room, at, None, page_size, 1 << 20)
            .await
            .unwrap();
        found.extend(pairs(&page.messages));
        whole &= page.whole;
        assert!(page.reached >= at);
        at = page.reached;
        if !page.more {
            return (found, whole);
        }
    }
}

/// Reads a room from its end to its beginning, page by page; oldest first in the result.
pub(crate) async fn all_backward(
    reader: &Reader,
    place: &Place,
    room: &RoomName,
    page_size: u32,
) -> (Vec<(Seq, Bytes)>, bool) {
    let (mut found, mut whole, mut before) = (Vec::new(), true, None);
    loop {
        let page: Page = reader
            .backward(place, room, before, page_size, 1 << 20)
            .await
            .unwrap();
        found.extend(pairs(&page.messages));
        whole &= page.whole;
        before = page.messages.last().map(|m| m.seq).or(before);
        if !page.more {
            found.reverse();
            return (found, whole);
        }
    }
}
