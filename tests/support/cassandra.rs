//! Knows: real Cassandra nodes for tests: one that all tests of a run share, nodes and rings that a test may freeze and kill, and
//! enough of CQL's frames to see that they work.
//! Never: Weir, a driver, what is asserted.
//!
//! Each node is run by `scripts/cassandra.sh`, which reads a pipe from this process: when this process ends, however it ends, so
//! does the pipe, and with it the node. Everything here blocks; no test has anything else to do meanwhile.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper of tests, outside of #[test]")]

#[allow(
    clippy::duplicate_mod,
    reason = "a test program may have it for its other servers too"
)]
#[path = "ports.rs"]
mod ports;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// `host:port` of a node that runs already; `scripts/test.sh` sets it.
const SHARED_VARIABLE: &str = "WEIR_TEST_CASSANDRA";
/// For a node, or a ring, to come up on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(240);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Where a node keeps what it knows, in its folder.
const DATA: [&str; 4] = ["data", "commitlog", "hints", "saved_caches"];

/// `host:port` of the node that tests share, which nobody may freeze or kill. Take a [`Keyspace`] on it.
///
/// Panics, with the end of the node's log, if there is none and none can be started.
pub(crate) fn shared_node() -> &'static str {
    // A static is never dropped, but its pipe ends with the process.
    static OWN: LazyLock<Node> = LazyLock::new(|| Node::start(&[]));
    static ADDRESS: LazyLock<String> = LazyLock::new(|| {
        let given = std::env::var(SHARED_VARIABLE).unwrap_or_default();
        if given.is_empty() {
            return OWN.address();
        }
        let answered = within(Duration::from_secs(30), || cql::answers(&given));
        assert!(
            answered,
            "{SHARED_VARIABLE}={given}, and no Cassandra answers there; unset it and tests start their own"
        );
        given
    });
    &ADDRESS
}

/// A name for a keyspace that no other test has; the keyspace is dropped with this value if the test created it.
pub(crate) struct Keyspace {
    name: String,
    address: String,
}

impl Keyspace {
    /// On the node at `address`, `host:port`.
    pub(crate) fn new(address: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self {
            name: format!(
                "t{}_{}_{}",
                now.as_millis(),
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed)
            ),
            address: address.to_owned(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Keyspace {
    fn drop(&mut self) {
        let statement = format!("DROP KEYSPACE IF EXISTS {}", self.name);
        // A node that was killed has nothing to tidy up.
        drop(cql::query(&self.address, &statement, cql::ONE));
    }
}

/// A node of a test's own. Its data survives `kill` and `restart`, and goes when it is dropped.
pub(crate) struct Node {
    script: Child,
    /// The process of Cassandra itself.
    jvm: Pid,
    options: Vec<String>,
    root: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
    _root: Option<TempDir>,
}

impl Node {
    /// One node, which syncs its commit log before it acknowledges. `options` are those of `scripts/cassandra.sh`; a test that
    /// needs throughput takes `["--jvm", "-XX:TieredStopAtLevel=4"]`.
    pub(crate) fn start(options: &[&str]) -> Self {
        let root = TempDir::new().unwrap();
        let mut node = Self::start_in(root.path(), options);
        node._root = Some(root);
        node
    }

    /// The same with its data in a folder that the caller removes.
    pub(crate) fn start_in(root: &Path, options: &[&str]) -> Self {
        prepare();
        let (port, storage) = (ports::free_port(), ports::free_port());
        let mut all = own_ports(port, storage);
        all.extend(options.iter().map(|&option| option.to_owned()));
        let mut node = Self::spawn(root, 1, port, all);
        node.wait_until_ready();
        node
    }

    fn spawn(root: &Path, ordinal: u8, port: u16, options: Vec<String>) -> Self {
        let script = run_script(root, ordinal, &options);
        Self {
            // Known for certain once it is ready.
            jvm: Pid::from_child(&script),
            script,
            options,
            root: root.to_owned(),
            folder: root.join(format!("node{ordinal}")),
            address: SocketAddr::from(([127, 0, 0, ordinal], port)),
            _root: None,
        }
    }

    fn ordinal(&self) -> u8 {
        match self.address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 1,
        }
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_LIMIT;
        while !self.folder.join("ready").exists() {
            let ended = self.script.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "Cassandra did not start ({ended:?}):\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = std::fs::read_to_string(self.folder.join("pid")).unwrap();
        self.jvm = Pid::from_raw(text.trim().parse().unwrap()).unwrap();
    }

    /// `host:port` of CQL.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// The process id of Cassandra.
    pub(crate) fn pid(&self) -> i32 {
        self.jvm.as_raw_nonzero().get()
    }

    /// The process id of the script that runs it.
    pub(crate) fn script_pid(&self) -> u32 {
        self.script.id()
    }

    /// What the script said, and the end of the node's log if it failed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(log_path(&self.root, self.ordinal())).unwrap_or_default()
    }

    /// Where Cassandra keeps `data`, `commitlog` and `system.log`.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs `nodetool` with these arguments on a node that was started with `--jmx-port`, and returns what it printed. Panics with
    /// that if it failed.
    pub(crate) fn nodetool(&self, arguments: &[&str]) -> String {
        let mut options = self.options.windows(2).rev();
        let port = options.find(|pair| pair[0] == "--jmx-port").unwrap();
        let output = Command::new(script())
            .arg("nodetool")
            .args(arguments)
            .env("JMX_PORT", &port[1])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "nodetool {arguments:?}:\n{said}");
        said
    }

    fn signal(&mut self, signal: Signal) {
        // While its script runs, the process id is the node's.
        let ended = self.script.try_wait().unwrap();
        assert!(ended.is_none(), "the node is down:\n{}", self.log());
        kill_process(self.jvm, signal).unwrap();
    }

    fn end(&mut self, signal: Signal) {
        self.signal(signal);
        // `Child::wait` would close the pipe first, and the script take the data away with the node.
        let ended = within(STOP_LIMIT, || self.script.try_wait().unwrap().is_some());
        assert!(ended, "the node did not end:\n{}", self.log());
    }

    /// Its sockets stay open, and nobody answers.
    pub(crate) fn freeze(&mut self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    /// kill -9; returns when its ports are free.
    pub(crate) fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// An orderly stop; returns when its ports are free.
    pub(crate) fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// A copy of its data as it is at this moment (it stands still meanwhile), commit log included, as after a power cut.
    pub(crate) fn copy_data(&mut self) -> TempDir {
        let copy = TempDir::new().unwrap();
        self.freeze();
        for part in DATA {
            copy_folder(&self.folder.join(part), &copy.path().join(part));
        }
        self.thaw();
        copy
    }

    /// Puts a copy back in place of the data. It must be down.
    pub(crate) fn put_back(&mut self, copy: &TempDir) {
        let ended = self.script.try_wait().unwrap();
        assert!(ended.is_some(), "kill or stop it first");
        for part in DATA {
            let to = self.folder.join(part);
            if to.exists() {
                std::fs::remove_dir_all(&to).unwrap();
            }
            copy_folder(&copy.path().join(part), &to);
        }
    }

    /// Starts it again with the data that it had; returns when it answers.
    pub(crate) fn restart(&mut self) {
        let ended = self.script.try_wait().unwrap();
        assert!(ended.is_some(), "kill or stop it first");
        self.script = run_script(&self.root, self.ordinal(), &self.options);
        self.wait_until_ready();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let ended = within(STOP_LIMIT, || {
            self.script.try_wait().is_ok_and(|ended| ended.is_some())
        });
        if !ended {
            // Its node dies with it.
            drop(self.script.kill());
            drop(self.script.wait());
        }
    }
}

/// Nodes on 127.0.0.1, 127.0.0.2, … that are one cluster. Commit logs are synced from time to time, as is right with three copies.
pub(crate) struct Ring {
    nodes: Vec<Node>,
    _root: TempDir,
}

impl Ring {
    /// Returns when each node has seen each other one answer. `count` is 3 to 9: fewer cannot hold three copies.
    pub(crate) fn start(count: u8) -> Self {
        assert!((3..=9).contains(&count), "3 to 9 nodes");
        prepare();
        let root = TempDir::new().unwrap();
        let (port, storage) = (port_on_all(count), port_on_all(count));
        let nodes = (1..=count)
            .map(|ordinal| {
                let mut options = own_ports(port, storage);
                for (name, value) in [("--nodes", count), ("--node", ordinal)] {
                    options.extend([name.to_owned(), value.to_string()]);
                }
                Node::spawn(root.path(), ordinal, port, options)
            })
            .collect();
        let mut ring = Self { nodes, _root: root };
        for node in &mut ring.nodes {
            node.wait_until_ready();
        }
        ring.wait_until_whole();
        ring
    }

    /// `host:port` of CQL of each node.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(Node::address).collect()
    }

    /// From 0.
    pub(crate) fn node(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// Waits until each node gets an answer from every other one, as after a restart.
    pub(crate) fn wait_until_whole(&self) {
        // A table that Cassandra itself keeps in three copies.
        const ON_ALL: &str = "SELECT keyspace_name FROM system_distributed.repair_history LIMIT 1";
        for node in &self.nodes {
            let mut last = Ok(0);
            let whole = within(START_LIMIT, || {
                last = cql::query(&node.address(), ON_ALL, cql::ALL);
                last.is_ok()
            });
            assert!(
                whole,
                "{} does not reach all nodes: {last:?}",
                node.address()
            );
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // All at once; each node then waits for its own end.
        for node in &mut self.nodes {
            drop(node.script.stdin.take());
        }
    }
}

/// Nothing where there is nothing.
fn copy_folder(from: &Path, to: &Path) {
    let Ok(entries) = std::fs::read_dir(from) else {
        return;
    };
    std::fs::create_dir_all(to).unwrap();
    for entry in entries {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Fetches what is missing, once, rather than by several nodes at the same time.
fn prepare() {
    static DONE: LazyLock<()> = LazyLock::new(|| {
        let output = Command::new(script()).arg("prepare").output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
    *DONE
}

fn run_script(root: &Path, ordinal: u8, options: &[String]) -> Child {
    let log = File::create(log_path(root, ordinal)).unwrap();
    Command::new(script())
        .args(["--light", "--throwaway", "--until-eof", "--data"])
        .arg(root)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn log_path(root: &Path, ordinal: u8) -> PathBuf {
    root.join(format!("script{ordinal}.log"))
}

fn own_ports(port: u16, storage: u16) -> Vec<String> {
    [
        ("--port", port),
        ("--storage-port", storage),
        ("--jmx-port", 0),
    ]
    .iter()
    .flat_map(|(name, value)| [(*name).to_owned(), value.to_string()])
    .collect()
}

/// A port that is free on each address of a ring.
fn port_on_all(count: u8) -> u16 {
    loop {
        let port = ports::free_port();
        if (1..=count)
            .all(|last| TcpListener::bind(SocketAddr::from(([127, 0, 0, last], port))).is_ok())
        {
            return port;
        }
    }
}

/// This file may belong to any package of the workspace.
fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("scripts/cassandra.sh"))
        .find(|path| path.exists())
        .expect("scripts/cassandra.sh is in this repository")
}

fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// CQL's native protocol, version 4, one request a connection.
pub(crate) mod cql {
    use super::*;

    pub(crate) const ONE: u16 = 0x0001;
    pub(crate) const QUORUM: u16 = 0x0004;
    pub(crate) const ALL: u16 = 0x0005;

    const VERSION: u8 = 4;
    const FROM_SERVER: u8 = 0x80;
    const ERROR: u8 = 0x00;
    const STARTUP: u8 = 0x01;
    const READY: u8 = 0x02;
    const OPTIONS: u8 = 0x05;
    const SUPPORTED: u8 = 0x06;
    const QUERY: u8 = 0x07;
    const RESULT: u8 = 0x08;
    const SKIP_METADATA: u8 = 0x02;
    const ROWS: u32 = 2;

    const CONNECT_LIMIT: Duration = Duration::from_secs(3);
    /// Longer than any of Cassandra's own limits.
    const ANSWER_LIMIT: Duration = Duration::from_secs(20);
    const FRAME_MAX_BYTES: u32 = 1 << 28;

    /// Whether CQL works at `host:port`.
    pub(crate) fn answers(address: &str) -> bool {
        connect(address)
            .and_then(|mut socket| ask(&mut socket, OPTIONS, &[]))
            .is_ok_and(|(kind, _)| kind == SUPPORTED)
    }

    /// Runs one statement on the node at `host:port` and returns how many rows it found (0 if it is no SELECT). The error is the
    /// server's, or of the connection.
    pub(crate) fn query(address: &str, statement: &str, consistency: u16) -> Result<u32, String> {
        let result = run(address, statement, consistency)?;
        Ok(count(&result)?.unwrap_or(0))
    }

    /// The same, with the rows: the bytes of each column, empty where there is no value.
    pub(crate) fn rows(
        address: &str,
        statement: &str,
        consistency: u16,
    ) -> Result<Vec<Vec<Vec<u8>>>, String> {
        let result = run(address, statement, consistency)?;
        let rows = count(&result)?.ok_or("a statement without rows")?;
        let columns = number(&result, 8)?;
        let mut at = 16;
        let mut value = || {
            let length = number(&result, at)?;
            at += 4;
            // Below zero is no value.
            let length = i32::from_be_bytes(length.to_be_bytes()).max(0) as usize;
            let bytes = result.get(at..at + length).ok_or("a short answer")?;
            at += length;
            Ok::<_, String>(bytes.to_vec())
        };
        (0..rows)
            .map(|_| (0..columns).map(|_| value()).collect())
            .collect()
    }

    /// A number of a result.
    fn number(result: &[u8], at: usize) -> Result<u32, String> {
        let bytes = result.get(at..at + 4).ok_or("a short answer")?;
        Ok(u32::from_be_bytes(bytes.try_into().unwrap()))
    }

    /// How many rows a result has: its kind, then flags, number of columns, number of rows.
    fn count(result: &[u8]) -> Result<Option<u32>, String> {
        let has_rows = number(result, 0)? == ROWS;
        has_rows.then(|| number(result, 12)).transpose()
    }

    fn run(address: &str, statement: &str, consistency: u16) -> Result<Vec<u8>, String> {
        let mut socket = connect(address)?;
        let mut startup = 1_u16.to_be_bytes().to_vec();
        for text in ["CQL_VERSION", "3.0.0"] {
            startup.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
            startup.extend(text.as_bytes());
        }
        expect(READY, ask(&mut socket, STARTUP, &startup)?)?;
        let mut body = u32::try_from(statement.len())
            .unwrap()
            .to_be_bytes()
            .to_vec();
        body.extend(statement.as_bytes());
        body.extend(consistency.to_be_bytes());
        body.push(SKIP_METADATA);
        expect(RESULT, ask(&mut socket, QUERY, &body)?)
    }

    fn connect(address: &str) -> Result<TcpStream, String> {
        let parsed = address.parse().map_err(|error| format!("{error}"))?;
        let socket = TcpStream::connect_timeout(&parsed, CONNECT_LIMIT)
            .map_err(|error| format!("{address}: {error}"))?;
        socket.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
        socket.set_write_timeout(Some(ANSWER_LIMIT)).unwrap();
        Ok(socket)
    }

    /// Sends a frame and reads one: its opcode and body.
    fn ask(socket: &mut TcpStream, opcode: u8, body: &[u8]) -> Result<(u8, Vec<u8>), String> {
        let mut frame = vec![VERSION, 0, 0, 0, opcode];
        frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        frame.extend(body);
        let mut exchange = || {
            socket.write_all(&frame)?;
            let mut header = [0; 9];
            socket.read_exact(&mut header)?;
            let length = u32::from_be_bytes(header[5..].try_into().unwrap());
            if header[0] != FROM_SERVER | VERSION || length > FRAME_MAX_BYTES {
                return Err(std::io::Error::other("not CQL"));
            }
            let mut body = vec![0; length as usize];
            socket.read_exact(&mut body)?;
            Ok((header[4], body))
        };
        exchange().map_err(|error| error.to_string())
    }

    fn expect(wanted: u8, (kind, body): (u8, Vec<u8>)) -> Result<Vec<u8>, String> {
        if kind == wanted {
            return Ok(body);
        }
        // An error is a code, a length and a text.
        let text = if kind == ERROR { body.get(6..) } else { None };
        let text = String::from_utf8_lossy(text.unwrap_or_default());
        Err(format!("answer {kind:#04x}: {text}"))
    }
}
