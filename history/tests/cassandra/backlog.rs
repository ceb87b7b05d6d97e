//! A backlog of many rooms reaches the archive whole, however often the worker dies and the cluster
//! goes away.

use std::time::Instant;

use weir_nats::Seq;

use crate::rig::{Rig, rooms};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a figure, not a test"]
async fn speed() {
    let rig = Rig::new().await;
    let count: usize = std::env::var("COUNT").map_or(100_000, |n| n.parse().unwrap());
    let rooms = rooms(1_000);
    let started = Instant::now();
    let _stored = rig.publish(&rooms, count).await;
    eprintln!("published {count} in {:?}", started.elapsed());
    let archive = crate::open(&crate::config()).await;
    let started = Instant::now();
    let worker = rig.work(&archive);
    let last = rig.last().await;
    let mut held = archive.held();
    let reached = held.wait_for(|all| all.get("ROOMS_0").is_some_and(|held| held.end() >= last));
    tokio::time::timeout(std::time::Duration::from_secs(300), reached).await.unwrap().unwrap();
    let took = started.elapsed();
    eprintln!("archived {count} in {took:?}: {:.0} rows/s, {:?}", count as f64 / took.as_secs_f64(), worker.metrics);
    let _ = Seq::ZERO;
}
