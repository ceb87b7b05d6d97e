//! Knows: the Cassandra nodes that tests use: that they answer, can be broken and mended, and end with whoever started them.
//! Never: Weir.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cassandra.rs"]
mod cassandra;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cassandra::{Keyspace, Node, Ring, cql, shared_node};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

/// Longer than any of these steps takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(240);

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Creates the keyspace with a table `rows` and one row, 1.
fn fill(address: &str, keyspace: &str, copies: u8) {
    for statement in [
        format!(
            "CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', 'datacenter1': {copies}}}"
        ),
        format!("CREATE TABLE {keyspace}.rows (id int PRIMARY KEY)"),
    ] {
        cql::query(address, &statement, cql::ONE).unwrap();
    }
    // The other nodes may hear of the table a moment later.
    until("the table everywhere", || {
        write(address, keyspace, 1, cql::ALL).is_ok()
    });
}

fn write(address: &str, keyspace: &str, id: i32, consistency: u16) -> Result<u32, String> {
    let statement = format!("INSERT INTO {keyspace}.rows (id) VALUES ({id})");
    cql::query(address, &statement, consistency)
}

#[test]
fn the_shared_node_answers_and_forgets_a_keyspace_with_its_test() {
    let address = shared_node();
    assert!(cql::answers(address));
    let keyspace = Keyspace::new(address);
    let name = keyspace.name().to_owned();
    fill(address, &name, 1);
    drop(keyspace);
    let error = write(address, &name, 2, cql::ONE).unwrap_err();
    assert!(error.contains(&name), "{error}");
}

#[test]
fn a_node_keeps_what_it_acknowledged_through_kill_nine() {
    let mut node = Node::start(&[]);
    let keyspace = Keyspace::new(&node.address());
    fill(&node.address(), keyspace.name(), 1);
    for id in 2..100 {
        write(&node.address(), keyspace.name(), id, cql::ONE).unwrap();
    }
    node.kill();
    assert!(!cql::answers(&node.address()));
    node.restart();
    let rows = format!("SELECT id FROM {}.rows", keyspace.name());
    assert_eq!(cql::query(&node.address(), &rows, cql::ONE), Ok(99));
}

/// Not a test of its own: what the next two kill. It holds a node until its standard input ends.
#[test]
#[ignore = "started by other tests"]
fn holds_a_node() {
    let Some(root) = std::env::var_os("WEIR_TEST_HOLD_IN") else {
        return;
    };
    let root = Path::new(&root);
    let node = Node::start_in(root, &[]);
    let draft = root.join("draft");
    std::fs::write(&draft, format!("{} {}", node.pid(), node.script_pid())).unwrap();
    std::fs::rename(draft, root.join("pids")).unwrap();
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).unwrap();
}

/// A test process that holds a node in `root`, with the process ids of the node and of its script.
fn holder(root: &Path) -> (Child, i32, i32) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_a_node", "--ignored"])
        .env("WEIR_TEST_HOLD_IN", root)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("a node of another process", || {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}");
        root.join("pids").exists()
    });
    let text = std::fs::read_to_string(root.join("pids")).unwrap();
    let (node, script) = text.split_once(' ').unwrap();
    (child, node.parse().unwrap(), script.parse().unwrap())
}

/// A process that is there and no zombie.
fn is_alive(pid: i32) -> bool {
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim().starts_with('Z'))
    });
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok()) && !zombie
}

#[test]
fn a_killed_test_process_leaves_no_node_and_no_data() {
    let root = TempDir::new().unwrap();
    let (mut child, node, script) = holder(root.path());
    assert!(is_alive(node) && is_alive(script));
    child.kill().unwrap();
    child.wait().unwrap();
    until("the end of the node", || !is_alive(node));
    until("the end of its script", || !is_alive(script));
    assert!(!root.path().join("node1").exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_killed_script_leaves_no_node() {
    let root = TempDir::new().unwrap();
    let (mut child, node, script) = holder(root.path());
    kill_process(Pid::from_raw(script).unwrap(), Signal::KILL).unwrap();
    until("the end of the node", || !is_alive(node));
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
#[ignore = "three nodes: a minute or more; WEIR_TEST_LONG=1 runs it"]
fn a_ring_of_three_survives_one_frozen_and_one_killed() {
    let mut ring = Ring::start(3);
    let at = ring.addresses();
    let keyspace = Keyspace::new(&at[0]);
    let name = keyspace.name();
    fill(&at[0], name, 3);

    ring.node(0).freeze();
    write(&at[1], name, 2, cql::QUORUM).unwrap();
    assert!(write(&at[1], name, 3, cql::ALL).is_err());
    ring.node(0).thaw();
    ring.wait_until_whole();
    until("all three again", || {
        write(&at[1], name, 3, cql::ALL).is_ok()
    });

    ring.node(2).kill();
    assert!(!cql::answers(&at[2]));
    until("a quorum", || write(&at[0], name, 4, cql::QUORUM).is_ok());
    assert!(write(&at[0], name, 5, cql::ALL).is_err());
    ring.node(2).restart();
    ring.wait_until_whole();
    until("all three again", || {
        write(&at[0], name, 5, cql::ALL).is_ok()
    });
}
