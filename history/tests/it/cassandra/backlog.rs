//! A backlog of many rooms reaches the archive whole, however often its worker is killed and the
//! cluster goes away.

#![allow(
    clippy::print_stderr,
    reason = "figures and seeds are for whoever reads the run"
)]

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use weir_history::Archive;
use weir_nats::{RoomName, Seq};

use super::config_at;
use crate::figures::figure;
use crate::node::Node;
use crate::rig::{Rig, STREAM, all_forward, either, room};

/// What the child that is killed needs to know: NATS, then the node.
const CHILD: &str = "WEIR_TEST_WORKER";
const KILLS: u64 = 20;
const KEYSPACE: &str = "backlog";

/// A worker in a process of its own, so that killing it is `kill -9` and not a dropped future.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test that kills it"]
async fn worker_child() {
    let Ok(at) = std::env::var(CHILD) else {
        return;
    };
    let (nats, node) = at.split_once(' ').unwrap();
    let rig = Rig::beside(nats.to_owned(), Vec::new()).await;
    let archive = Archive::cassandra(config_at(vec![node.to_owned()], KEYSPACE, 1))
        .await
        .unwrap();
    let _worker: crate::rig::Running = rig.work(&archive);
    std::future::pending::<()>().await;
}

fn spawn_worker(nats: &str, node: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "cassandra::backlog::worker_child"])
        .env(CHILD, format!("{nats} {node}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Count and hash of a room's rows.
fn digest<'a>(rows: impl IntoIterator<Item = &'a (Seq, Bytes)>) -> (u64, String) {
    let (mut count, mut hash) = (0, Sha256::new());
    for (seq, data) in rows {
        count += 1;
        hash.update(seq.get().to_be_bytes());
        hash.update((data.len() as u64).to_be_bytes());
        hash.update(data);
    }
    (count, data_encoding::HEXLOWER.encode(&hash.finalize()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_whole_after_twenty_kills_and_an_outage() {
    let (count, rooms) = either((30_000, 100), (1_000_000, 1_000));
    let outage = either(Duration::from_secs(5), Duration::from_secs(120));
    let mut node = Node::start(&[]);
    let rig = Rig::new().await;
    let archive = Archive::cassandra(config_at(vec![node.address()], KEYSPACE, 1));
    let archive = archive.await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), archive.connected())
        .await
        .expect("the node answers");

    // One room has half of all messages.
    let mut names = vec![room("chat:half")];
    for nth in 1..rooms {
        names.push(room("chat:half"));
        names.push(room(&format!("chat:room {nth}")));
    }
    let began = Instant::now();
    let half = count / 2;
    let mut stored = rig.publish(&names, half).await;
    let publishing = began.elapsed();

    let mut seed = 0x9E37_79B9_7F4A_7C15_u64 ^ u64::from(std::process::id());
    eprintln!("seed {seed:x}");
    let mut worker = Killed(spawn_worker(&rig.url, &node.address()));
    let rest = rig.publish(&names, count - half);
    let kills = async {
        for kill in 0..KILLS {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            // No condition to wait for: the point is that it may be anywhere.
            tokio::time::sleep(Duration::from_millis(200 + seed % either(800, 3_000))).await;
            drop(std::mem::replace(
                &mut worker,
                Killed(spawn_worker(&rig.url, &node.address())),
            ));
            if kill == KILLS / 2 {
                node.kill();
                tokio::time::sleep(outage).await;
                node.restart();
            }
        }
    };
    let (rest, ()) = tokio::join!(rest, kills);
    for (room, messages) in rest {
        stored.entry(room).or_default().extend(messages);
    }

    let began = Instant::now();
    let last = rig.last().await;
    let mut held = archive.held();
    let reached = held.wait_for(|all| all.get(STREAM).is_some_and(|held| held.end() >= last));
    tokio::time::timeout(Duration::from_secs(either(120, 900)), reached)
        .await
        .expect("archived in time")
        .unwrap();
    figure!(
        "{count} messages, {KILLS} kills: half published in {publishing:?}, archived {:?} after the last kill",
        began.elapsed()
    );
    drop(worker);

    // Only the archive has them now.
    rig.trim(1).await;
    assert_eq!(archive.held().borrow()[STREAM].ranges(), [(1, last.get())]);
    let reader = rig.reader(Some(&archive));
    let expected: BTreeMap<&RoomName, (u64, String)> = stored
        .iter()
        .map(|(room, messages)| (room, digest(messages)))
        .collect();
    assert_eq!(expected.len(), rooms);
    for (room, expected) in &expected {
        let place = rig.place(room);
        let (found, whole) = all_forward(&reader, &place, room, Seq::ZERO, 1_000).await;
        assert!(whole, "{room}");
        assert_eq!(&digest(&found), expected, "{room}");
    }
}
