//! What only the archive in Cassandra does, against a real node: rows that are never overwritten,
//! a keyspace that is emptied under a running process, pages over many buckets and epochs.

mod backlog;
mod erased_files;
mod late;
mod ring;
mod secure;
mod taken_over;
mod workers;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use weir_history::archive::{Batch, PageQuery};
use weir_history::held::Held;
use weir_history::{Archive, CassandraConfig};
use weir_nats::placement::Generation;
use weir_nats::{Author, Door, Epoch, Message, RoomName, Seq};

use crate::node::{Keyspace, shared_node};
use crate::rig::{NODE_WITHIN, room};

const LOG: &str = "rooms";
const WITHIN: Duration = Duration::from_secs(30);

/// A keyspace of the test's own, and how to reach it.
struct Own {
    config: CassandraConfig,
    _keyspace: Keyspace,
}

fn config() -> Own {
    let keyspace = Keyspace::new(shared_node());
    Own {
        config: config_at(vec![shared_node().to_owned()], keyspace.name(), 1),
        _keyspace: keyspace,
    }
}

pub(crate) fn config_at(nodes: Vec<String>, keyspace: &str, copies: u8) -> CassandraConfig {
    CassandraConfig {
        nodes,
        keyspace: keyspace.to_owned(),
        replication_factor: copies,
        datacenter: None,
        credentials: None,
        tls: None,
    }
}

async fn open(config: &CassandraConfig) -> Archive {
    let archive = Archive::cassandra(config.clone()).await.unwrap();
    let connected = tokio::time::timeout(NODE_WITHIN, archive.connected());
    connected.await.expect("the node answers");
    archive
}

fn message(seq: u64, time_ms: i64, id: &str, data: &[u8]) -> Message {
    Message {
        seq: Seq::new(seq),
        time_ms,
        id: id.to_owned(),
        author: Some(Author {
            user: "ann".into(),
            client: "c".into(),
            info: None,
            door: Door::Socket,
        }),
        tags: BTreeMap::new(),
        data: Bytes::copy_from_slice(data),
    }
}

fn batch(epoch: &str, stream: &str, rows: Vec<(RoomName, Message)>, held: (u64, u64)) -> Batch {
    Batch {
        log: LOG.to_owned(),
        slot: 0,
        generation: Generation {
            stream: stream.to_owned(),
            epoch: Epoch::new(epoch).unwrap(),
            from: Seq::new(1),
        },
        rows,
        refused: Vec::new(),
        held: Held::from_ranges([held]),
        created: "2026-01-01T00:00:00Z".to_owned(),
    }
}

fn query(room: &RoomName, (after, up_to): (u64, u64), reverse: bool, max: u32) -> PageQuery {
    PageQuery {
        log: LOG.to_owned(),
        room: room.clone(),
        after: Seq::new(after),
        up_to: Seq::new(up_to),
        reverse,
        max_messages: max,
        max_bytes: 1 << 20,
    }
}

/// All offsets of a room in a range, read by pages.
async fn offsets(archive: &Archive, room: &RoomName, reverse: bool, size: u32) -> Vec<u64> {
    let (mut after, mut up_to) = (0, Seq::MAX.get());
    let mut all = Vec::new();
    loop {
        let rows = archive
            .page(query(room, (after, up_to), reverse, size))
            .await
            .unwrap();
        all.extend(rows.messages.iter().map(|one| one.seq.get()));
        match rows.messages.last() {
            Some(last) if rows.more => {
                if reverse {
                    up_to = last.seq.get() - 1;
                } else {
                    after = last.seq.get();
                }
            }
            _ => return all,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_go_over_buckets_and_epochs_both_ways() {
    let own = config();
    let archive = open(&own.config).await;
    let room = room("chat:lobby");
    // Two epochs meet in one bucket; between the others lie empty ones.
    let width = 1 << 20;
    let old: Vec<u64> = (1..=150).chain((0..40).map(|n| n * width + 7)).collect();
    let old: Vec<u64> = {
        let mut old = old;
        old.sort_unstable();
        old.dedup();
        old
    };
    let start = 39 * width + 500;
    let new: Vec<u64> = (0..300).map(|n| start + n * 9_000).collect();
    let rows = |seqs: &[u64]| {
        seqs.iter()
            .map(|seq| {
                let time = 1_700_000_000_000 + i64::try_from(*seq).unwrap();
                let text = format!("message {seq}");
                (
                    room.clone(),
                    message(*seq, time, &format!("id{seq}"), text.as_bytes()),
                )
            })
            .collect::<Vec<_>>()
    };
    archive
        .append(batch(
            "one",
            "ROOMS_0",
            rows(&old),
            (1, *old.last().unwrap()),
        ))
        .await
        .unwrap();
    archive
        .append(batch(
            "two",
            "ROOMS_0_1",
            rows(&new),
            (start, *new.last().unwrap()),
        ))
        .await
        .unwrap();
    let all: Vec<u64> = old.iter().chain(&new).copied().collect();
    for size in [1, 3, 50, 64, 200, 1_000] {
        assert_eq!(offsets(&archive, &room, false, size).await, all, "{size}");
        let mut back = offsets(&archive, &room, true, size).await;
        back.reverse();
        assert_eq!(back, all, "{size} backward");
    }
    // Bytes bound a page, and one message always comes.
    let mut small = query(&room, (0, Seq::MAX.get()), false, 100);
    small.max_bytes = 1;
    let rows = archive.page(small).await.unwrap();
    assert!(rows.more && rows.messages.len() == 1);

    let count = archive
        .count(LOG.into(), room.clone(), (Seq::ZERO, Seq::MAX), 10_000)
        .await
        .unwrap();
    assert_eq!(count.messages, all.len() as u64);
    assert_eq!(count.oldest, Some(Seq::new(1)));
    let some = archive
        .count(LOG.into(), room.clone(), (Seq::ZERO, Seq::MAX), 10)
        .await
        .unwrap();
    assert_eq!(
        (some.messages, some.oldest),
        (10, Some(Seq::new(all[all.len() - 10])))
    );
    let found = archive
        .find(LOG.into(), room.clone(), "id7".into(), Seq::ZERO)
        .await;
    assert_eq!(found.unwrap(), Some(Seq::new(7)));
    let found = archive
        .find(LOG.into(), room.clone(), "id7".into(), Seq::new(7))
        .await;
    assert_eq!(found.unwrap(), None);

    for seq in [2, 150, all[170], all[all.len() - 1]] {
        let time = 1_700_000_000_000 + i64::try_from(seq).unwrap();
        let expected = all.iter().copied().rfind(|one| *one < seq).map(Seq::new);
        let older = archive
            .older_than((LOG.into(), 0), room.clone(), time)
            .await;
        assert_eq!(older.unwrap(), expected, "before {seq}");
    }
    let beyond = archive
        .older_than((LOG.into(), 0), room.clone(), i64::from(i32::MAX) * 1_000)
        .await;
    assert_eq!(beyond.unwrap(), all.last().copied().map(Seq::new));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_over_another_message() {
    let own = config();
    let config = own.config.clone();
    let room = room("chat:lobby");
    let row = |id: &str, time, text: &str| (room.clone(), message(5, time, id, text.as_bytes()));
    {
        let archive = open(&config).await;
        let first = batch("one", "ROOMS_0", vec![row("a", 1_000, "first")], (5, 5));
        for _ in 0..2 {
            let appended = archive.append(first.clone()).await.unwrap();
            assert!(appended.conflicts.is_empty(), "the same message again");
        }
    }
    // Another process, and a log that went back in time meanwhile.
    let archive = open(&config).await;
    let other = batch("one", "ROOMS_0", vec![row("b", 2_000, "second")], (5, 5));
    let appended = archive.append(other).await.unwrap();
    assert_eq!(appended.conflicts, [Seq::new(5)], "it is noticed");
    let refused = archive.quarantined(None, 10).await.unwrap();
    assert_eq!(&refused[0].1.data[..], b"second", "and kept");
    let rows = archive
        .page(query(&room, (0, 100), false, 10))
        .await
        .unwrap();
    assert_eq!(rows.messages.len(), 1, "one offset, one message");
    assert_eq!(&rows.messages[0].data[..], b"first");
    assert_eq!(
        archive
            .count(LOG.into(), room, (Seq::ZERO, Seq::MAX), 9)
            .await
            .unwrap()
            .messages,
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_emptied_under_a_running_process_is_noticed_before_anything_is_claimed() {
    let own = config();
    let config = own.config.clone();
    let archive = open(&config).await;
    let other = scylla(&config).await;
    let id = archive.id().unwrap();
    let room = room("chat:lobby");
    let rows = |from: u64, to: u64| {
        (from..=to)
            .map(|seq| (room.clone(), message(seq, 1_000, &seq.to_string(), b"x")))
            .collect::<Vec<_>>()
    };
    archive
        .append(batch("one", "ROOMS_0", rows(1, 10), (1, 10)))
        .await
        .unwrap();
    for table in [
        "held",
        "messages",
        "room_buckets",
        "streams",
        "meta",
        "intents",
    ] {
        other
            .query_unpaged(format!("TRUNCATE {}.{table}", config.keyspace), ())
            .await
            .unwrap();
    }
    // Either this write finds out, or the look of every second did before.
    let next = archive
        .append(batch("one", "ROOMS_0", rows(11, 12), (11, 12)))
        .await;
    let held = archive.held().borrow().get("ROOMS_0").cloned();
    match next {
        Err(error) => assert!(
            error.temporary && error.reason.contains("emptied"),
            "{error}"
        ),
        Ok(_) => assert_eq!(
            held.unwrap().ranges(),
            [(11, 12)],
            "1 to 10 are not claimed"
        ),
    }
    let deadline = tokio::time::Instant::now() + WITHIN;
    while archive.id().unwrap() == id {
        assert!(
            tokio::time::Instant::now() < deadline,
            "it has a new identity"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    archive
        .append(batch("one", "ROOMS_0", rows(1, 12), (1, 12)))
        .await
        .unwrap();
    assert_eq!(archive.held().borrow()["ROOMS_0"].ranges(), [(1, 12)]);
    let all = offsets(&archive, &room, false, 5).await;
    assert_eq!(
        all,
        (1..=12).collect::<Vec<u64>>(),
        "its index is there again"
    );

    // What was claimed under another identity counts no more, even if it is still there.
    let id = archive.id().unwrap();
    let truncate = format!("TRUNCATE {}.meta", config.keyspace);
    other.query_unpaged(truncate, ()).await.unwrap();
    let deadline = tokio::time::Instant::now() + WITHIN;
    while archive.id().unwrap() == id || archive.held().borrow().contains_key("ROOMS_0") {
        assert!(tokio::time::Instant::now() < deadline, "nothing is claimed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_payloads_of_every_kind_come_back() {
    let own = config();
    let archive = open(&own.config).await;
    let names = [
        "chat:'; DROP KEYSPACE weir; --",
        "chat:\"quoted\"",
        "chat:nul\0in it",
        "日本語の部屋",
        "chat:العربية",
        "x",
        "chat:🙂\u{10FFFF}",
    ];
    let long = format!("chat:{}", "é".repeat(125));
    let every_byte: Vec<u8> = (0..=255).collect();
    let rooms: Vec<RoomName> = names
        .iter()
        .copied()
        .chain([long.as_str()])
        .map(room)
        .collect();
    let rows = rooms.iter().enumerate().map(|(nth, room)| {
        let seq = nth as u64 + 1;
        (
            room.clone(),
            message(seq, 5, &format!("id'{seq}\0"), &every_byte),
        )
    });
    archive
        .append(batch("e", "ROOMS_0", rows.collect(), (1, 8)))
        .await
        .unwrap();
    for (nth, room) in rooms.iter().enumerate() {
        let rows = archive.page(query(room, (0, 100), true, 10)).await.unwrap();
        assert_eq!(rows.messages.len(), 1, "{room}");
        let expected = message(nth as u64 + 1, 5, &format!("id'{}\0", nth + 1), &every_byte);
        assert_eq!(*rows.messages[0], expected);
    }
}

async fn scylla(config: &CassandraConfig) -> scylla::client::session::Session {
    scylla::client::session_builder::SessionBuilder::new()
        .known_nodes(&config.nodes)
        .build()
        .await
        .unwrap()
}
