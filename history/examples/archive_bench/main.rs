//! Figures of an archive: rows a second and CPU a row beside the bare driver, a backlog through the
//! worker, pages cold and cached. `scripts/bench.sh` runs it. Prints a line a figure.
//!
//! Knows: which measurement is asked for. Never: how it is made.
//!
//! ```text
//! archive_bench append  sqlite FILE ROWS
//! archive_bench append  cassandra HOST:PORT ROWS [PID]
//! archive_bench backlog sqlite FILE ROWS NATS-URL NATS-PID
//! archive_bench backlog cassandra HOST:PORT ROWS NATS-URL NATS-PID [PID]
//! ```
//!
//! `backlog` publishes first what the stream does not have. PID is Cassandra's process.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that prints figures, and ends when it cannot"
)]

mod backlog;
mod bare;
mod pages;
mod rows;
mod usage;

use std::time::Duration;

use weir_history::{Archive, CassandraConfig};

use backlog::Backlog;
use usage::{Others, Usage};

/// Messages of a batch, as the worker gathers them from a backlog.
const BATCH_ROWS: u64 = 16_384;

/// Which archive, and how much goes into it.
struct Archiving {
    kind: String,
    /// A file, or `host:port`.
    place: String,
    rows: u64,
}

#[tokio::main]
async fn main() {
    let mut given = std::env::args().skip(1);
    let mut next = |what: &str| given.next().unwrap_or_else(|| panic!("{what} is missing"));
    let command = next("append or backlog");
    let archiving = Archiving {
        kind: next("sqlite or cassandra"),
        place: next("its file, or host:port"),
        rows: next("rows").parse().unwrap(),
    };
    match command.as_str() {
        "append" => append(&archiving, &pids(&mut given, &["Cassandra"])).await,
        "backlog" => {
            let url = next("the URL of NATS");
            let others = pids(&mut given, &["nats-server", "Cassandra"]);
            backlog(&archiving, &url, &others).await;
        }
        other => panic!("{other}: append or backlog"),
    }
}

fn pids(given: &mut impl Iterator<Item = String>, names: &[&'static str]) -> Others {
    let pids = given.map(|pid| pid.parse().unwrap());
    names.iter().copied().zip(pids).collect()
}

async fn append(archiving: &Archiving, others: &Others) {
    let Archiving { kind, place, rows } = archiving;
    let archive = open(archiving, "bench").await;
    let usage = Usage::start(others);
    let mut from = 1;
    while from <= *rows {
        let to = (from + BATCH_ROWS - 1).min(*rows);
        archive.append(rows::batch(from, to)).await.unwrap();
        from = to + 1;
    }
    println!("{kind}, append: {}", usage.per_row(*rows));
    if kind == "cassandra" {
        let usage = Usage::start(others);
        bare::append(place, *rows).await;
        println!("bare driver, append: {}", usage.per_row(*rows));
    }
    pages::of_archive(&archive, kind, *rows).await;
}

async fn backlog(archiving: &Archiving, url: &str, others: &Others) {
    let Archiving { kind, rows, .. } = archiving;
    let nats = Box::pin(Backlog::at(url)).await;
    nats.fill(*rows).await;
    let archive = open(archiving, "backlog").await;
    let cost = nats.archive(&archive, *rows, others).await;
    println!("{kind}, backlog from JetStream by the worker: {cost}");
    let reader = nats.reader(&archive);
    pages::of_reader(&reader, &nats.placements, kind, *rows).await;
}

async fn open(archiving: &Archiving, keyspace: &str) -> Archive {
    if archiving.kind == "sqlite" {
        return Archive::sqlite(archiving.place.as_ref()).await.unwrap();
    }
    let config = CassandraConfig {
        nodes: vec![archiving.place.clone()],
        keyspace: keyspace.into(),
        replication_factor: 1,
        datacenter: None,
        credentials: None,
        tls: None,
    };
    let archive = Archive::cassandra(config).await.unwrap();
    tokio::time::timeout(Duration::from_secs(120), archive.connected())
        .await
        .expect("the node answers");
    archive
}
