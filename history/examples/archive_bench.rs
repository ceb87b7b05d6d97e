//! Figures of an archive: rows a second and CPU a row beside the bare driver, pages cold and cached.
//! `scripts/bench.sh` runs it. Prints lines of `name value`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that prints figures, and ends when it cannot"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use weir_history::archive::{Batch, PageQuery};
use weir_history::held::Held;
use weir_history::{Archive, CassandraConfig};
use weir_nats::placement::Generation;
use weir_nats::{Author, Door, Epoch, Message, RoomName, Seq};

const LOG: &str = "rooms";
const ROOMS: u64 = 1_000;
/// Messages of a batch, as the worker gathers them from a backlog.
const BATCH: u64 = 16_384;
const PAYLOAD_BYTES: usize = 200;
const PAGES: u64 = 2_000;

struct Arguments {
    rows: u64,
    kind: String,
    /// A file, or `host:port`.
    place: String,
    /// Cassandra's process.
    pid: Option<u32>,
}

#[tokio::main]
async fn main() {
    let mut given = std::env::args().skip(1);
    let mut next = |what: &str| given.next().unwrap_or_else(|| panic!("{what} is missing"));
    let arguments = Arguments {
        kind: next("sqlite or cassandra"),
        place: next("its file, or host:port"),
        rows: next("rows").parse().unwrap(),
        pid: given.next().map(|pid| pid.parse().unwrap()),
    };
    let archive = open(&arguments).await;
    let rows = arguments.rows;

    let (began, own, others) = (Instant::now(), cpu(None), cpu(arguments.pid));
    let mut from = 1;
    while from <= rows {
        let to = (from + BATCH - 1).min(rows);
        archive.append(batch(from, to)).await.unwrap();
        from = to + 1;
    }
    let kind = &arguments.kind;
    report(kind, "append", rows, began, own, others, arguments.pid);

    if kind == "cassandra" {
        let (began, own, others) = (Instant::now(), cpu(None), cpu(arguments.pid));
        bare(&arguments).await;
        report(
            "bare-driver",
            "append",
            rows,
            began,
            own,
            others,
            arguments.pid,
        );
    }

    let head = Seq::new(rows);
    pages(&archive, &format!("{kind} last-50"), |nth| {
        (room(nth % ROOMS), head)
    })
    .await;
    let mut seed = 7_u64;
    pages(&archive, &format!("{kind} random-50"), |_| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (room(seed % ROOMS), Seq::new(seed % rows + 1))
    })
    .await;
}

async fn open(arguments: &Arguments) -> Archive {
    if arguments.kind == "sqlite" {
        return Archive::sqlite(arguments.place.as_ref()).await.unwrap();
    }
    let archive = Archive::cassandra(config(arguments)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(120), archive.connected())
        .await
        .expect("the node answers");
    archive
}

fn config(arguments: &Arguments) -> CassandraConfig {
    CassandraConfig {
        nodes: vec![arguments.place.clone()],
        keyspace: "bench".into(),
        replication_factor: 1,
        datacenter: None,
        credentials: None,
        tls: None,
    }
}

fn room(nth: u64) -> RoomName {
    RoomName::parse(&format!("chat:room {nth}")).unwrap()
}

/// Half of all messages are of one room.
fn room_of(seq: u64) -> RoomName {
    if seq.is_multiple_of(2) {
        room(0)
    } else {
        room(seq / 2 % ROOMS)
    }
}

fn payload(seq: u64) -> Vec<u8> {
    let mut text = format!("{{\"n\":{seq},\"text\":\"");
    let mut state = seq.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    while text.len() < PAYLOAD_BYTES - 2 {
        state = state.rotate_left(7).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let word = ["hello ", "the ", "room ", "is ", "quiet ", "today ", "and "];
        text.push_str(word[(state >> 60) as usize % word.len()]);
    }
    text.push_str("\"}");
    text.into_bytes()
}

fn batch(from: u64, to: u64) -> Batch {
    let rows = (from..=to).map(|seq| {
        let message = Message {
            seq: Seq::new(seq),
            time_ms: 1_700_000_000_000 + i64::try_from(seq).unwrap(),
            id: format!("{seq:022}"),
            author: Some(Author {
                user: format!("user{}", seq % 100),
                client: "6f9e2b1c-5a44-4f57-b1f0-0d5a7a3b9c11".into(),
                info: None,
                door: Door::Socket,
            }),
            tags: BTreeMap::new(),
            data: Bytes::from(payload(seq)),
        };
        (room_of(seq), message)
    });
    Batch {
        log: LOG.into(),
        slot: 0,
        generation: Generation {
            stream: "ROOMS_0".into(),
            epoch: Epoch::new("bench").unwrap(),
            from: Seq::new(1),
        },
        rows: rows.collect(),
        refused: Vec::new(),
        held: Held::from_ranges([(from, to)]),
        created: "2026-01-01T00:00:00Z".into(),
    }
}

/// The same rows by the driver alone: batches of 50 of one partition, 4 at a time.
async fn bare(arguments: &Arguments) {
    use futures_util::StreamExt as _;
    use scylla::statement::batch::{Batch, BatchType};

    let session = scylla::client::session_builder::SessionBuilder::new()
        .known_node(&arguments.place)
        .build()
        .await
        .unwrap();
    for statement in [
        "CREATE KEYSPACE bare WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}",
        "CREATE TABLE bare.messages (room text, off bigint, msg blob, PRIMARY KEY (room, off))",
    ] {
        session.query_unpaged(statement, ()).await.unwrap();
    }
    let insert = "INSERT INTO bare.messages (room, off, msg) VALUES (?, ?, ?)";
    let insert = session.prepare(insert).await.unwrap();
    let batches = (0..arguments.rows / 50).map(|nth| {
        let (session, insert) = (&session, &insert);
        async move {
            let mut batch = Batch::new(BatchType::Unlogged);
            let name = format!("chat:room {}", nth % ROOMS);
            let mut values = Vec::new();
            for seq in nth * 50..nth * 50 + 50 {
                batch.append_statement(insert.clone());
                values.push((name.as_str(), i64::try_from(seq).unwrap(), payload(seq)));
            }
            session.batch(&batch, values).await.unwrap();
        }
    });
    futures_util::stream::iter(batches)
        .buffer_unordered(4)
        .for_each(|()| async {})
        .await;
}

async fn pages(archive: &Archive, what: &str, mut at: impl FnMut(u64) -> (RoomName, Seq)) {
    let mut took = Vec::new();
    for nth in 0..PAGES {
        let (room, up_to) = at(nth);
        let query = PageQuery {
            log: LOG.into(),
            room,
            after: Seq::ZERO,
            up_to,
            reverse: true,
            max_messages: 50,
            max_bytes: 1 << 20,
        };
        let began = Instant::now();
        archive.page(query).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    let at = |share: usize| took[took.len() * share / 100].as_secs_f64() * 1e3;
    println!("{what} p50 {:.2} ms, p99 {:.2} ms", at(50), at(99));
}

fn report(
    kind: &str,
    what: &str,
    rows: u64,
    began: Instant,
    own: f64,
    others: f64,
    pid: Option<u32>,
) {
    let (took, count) = (began.elapsed().as_secs_f64(), rows as f64);
    let own = (cpu(None) - own) / count * 1e6;
    let others = (cpu(pid) - others) / count * 1e6;
    let others = if pid.is_some() {
        format!(", Cassandra {others:.1} us")
    } else {
        String::new()
    };
    println!(
        "{kind} {what} {rows} rows in {took:.1} s: {:.0} rows/s, own CPU {own:.1} us a row{others}",
        count / took
    );
}

/// CPU seconds of a process, or of this one.
fn cpu(pid: Option<u32>) -> f64 {
    let path = pid.map_or_else(
        || "/proc/self/stat".into(),
        |pid| format!("/proc/{pid}/stat"),
    );
    let text = std::fs::read_to_string(path).unwrap();
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}
