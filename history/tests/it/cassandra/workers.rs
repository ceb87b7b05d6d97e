//! Several workers of one archive: each stream has one, and another when that one is gone.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_history::share::Share;
use weir_nats::Seq;

use crate::rig::{Kind, Rig, all_forward, room};

/// Five times the time after which a worker that is not heard is taken to be gone.
const WITHIN: Duration = Duration::from_secs(25);

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + WITHIN;
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_has_one_of_the_living() {
    let rig = Rig::new().await;
    let streams: Vec<String> = (0..60).map(|nth| format!("ROOMS_{nth}")).collect();
    let others = [
        Rig::beside(rig.url.clone(), Vec::new()).await,
        Rig::beside(rig.url.clone(), Vec::new()).await,
    ];
    let stops: [CancellationToken; 3] = std::array::from_fn(|_| CancellationToken::new());
    let mut shares = Vec::new();
    for (rig, stop) in [&rig, &others[0], &others[1]].into_iter().zip(&stops) {
        let client = rig.links.live.clone();
        let share = Share::join(client, "someid", Box::new(|| true), stop.clone()).await;
        shares.push(share.unwrap());
    }
    let owners = |shares: &[Share], stream: &str| {
        let mine = shares.iter().filter(|share| share.is_mine(stream));
        mine.count()
    };
    until("each stream has one of three", || {
        streams.iter().all(|stream| owners(&shares, stream) == 1)
            && shares
                .iter()
                .all(|share| streams.iter().any(|stream| share.is_mine(stream)))
    })
    .await;
    // One says goodbye.
    stops[2].cancel();
    shares.pop();
    until("each stream has one of two", || {
        streams.iter().all(|stream| owners(&shares, stream) == 1)
    })
    .await;
    // One is not heard any more.
    others[0].links.live.drain().await.unwrap();
    shares.pop();
    until("each stream has the last", || {
        streams.iter().all(|stream| owners(&shares, stream) == 1)
    })
    .await;
    stops[0].cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_worker_dies_gets_another() {
    let rig = Rig::on(Kind::Cassandra).await;
    let lobby = room("chat:lobby");
    let archives = [rig.archive().await, rig.archive().await];
    let mut workers = archives
        .each_ref()
        .map(|archive| Some(rig.work_among(archive)));
    let mut stored = rig.publish(std::slice::from_ref(&lobby), 300).await;
    rig.archived(&archives[0]).await;
    rig.archived(&archives[1]).await;
    let rows = |worker: &Option<crate::rig::Running>| {
        worker
            .as_ref()
            .map_or(0, |worker| worker.metrics.counts.rows.value())
    };
    until("somebody counts what it wrote", || {
        workers.iter().any(|worker| rows(worker) > 0)
    })
    .await;
    let busy = usize::from(rows(&workers[0]) == 0);
    assert_eq!(rows(&workers[1 - busy]), 0, "one of two works");

    workers[busy] = None;
    let more = rig.publish(std::slice::from_ref(&lobby), 300).await;
    stored.get_mut(&lobby).unwrap().extend(more[&lobby].clone());
    let other = &archives[1 - busy];
    let last = rig.last().await;
    let mut held = other.held();
    let reached = held.wait_for(|all| all.get("ROOMS_0").is_some_and(|held| held.end() >= last));
    tokio::time::timeout(WITHIN, reached)
        .await
        .expect("the other took over")
        .unwrap();
    until("it counts what it wrote", || rows(&workers[1 - busy]) > 0).await;
    rig.trim(1).await;
    let reader = rig.reader(Some(other));
    let found = all_forward(&reader, &rig.place(&lobby), &lobby, Seq::ZERO, 100).await;
    assert_eq!(found, (stored[&lobby].clone(), true));
}
