//! An archive that answers late knows what a stream was before, and that is not passed over.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_history::Archive;
use weir_nats::Seq;

use crate::node::Node;
use crate::rig::{Kind, Rig, all_forward, room};

const WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_what_the_archive_knew_gets_a_new_generation() {
    let rig = Rig::on(Kind::Cassandra).await;
    let lobby = room("chat:lobby");
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let old = rig.publish(std::slice::from_ref(&lobby), 300).await;
    rig.archived(&archive).await;
    drop((worker, archive));

    // NATS was lost and made anew, and took more than there was before, before the archive answered.
    let anew = Rig::new().await;
    let stop = CancellationToken::new();
    let guard = anew.guard.clone().run(anew.links.events(), stop.clone());
    let guard = tokio::spawn(guard);
    let new = anew.publish(std::slice::from_ref(&lobby), 400).await;
    let archive = Archive::cassandra(rig.cassandra()).await.unwrap();
    tokio::time::timeout(WITHIN, archive.connected())
        .await
        .expect("the node answers");
    let worker = anew.work(&archive);
    let mut changes = anew.placements.changes();
    let next = async {
        loop {
            let place = anew.place(&lobby);
            if place.current().stream != "ROOMS_0" {
                return place;
            }
            changes.changed().await.unwrap();
        }
    };
    let place = tokio::time::timeout(WITHIN, next)
        .await
        .expect("the difference is noticed");
    assert!(place.current().from > Seq::new(400), "above every offset");

    // All that was acknowledged is there, before and after, each once and at an offset of its own.
    let count = old[&lobby].len() + new[&lobby].len();
    let reader = anew.reader(Some(&archive));
    let deadline = tokio::time::Instant::now() + WITHIN;
    loop {
        let (found, _) = all_forward(&reader, &anew.place(&lobby), &lobby, Seq::ZERO, 100).await;
        if found.len() == count {
            assert!(found.is_sorted_by(|a, b| a.0 < b.0));
            assert_eq!(found[..300], old[&lobby]);
            let moved: Vec<_> = found[300..].iter().map(|(_, data)| data).collect();
            let published: Vec<_> = new[&lobby].iter().map(|(_, data)| data).collect();
            assert_eq!(moved, published);
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{} of {count} are there",
            found.len()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(worker);
    stop.cancel();
    guard.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_comes_late_gets_what_waited() {
    let mut node = Node::start(&[]);
    node.stop();
    let rig = Rig::new().await;
    let config = super::config_at(vec![node.address()], "late", 1);
    let archive = Archive::cassandra(config)
        .await
        .expect("being away is no error");
    assert!(!archive.is_connected());
    assert!(!archive.trouble().is_empty());
    let worker = rig.work(&archive);
    let lobby = room("chat:lobby");
    let stored = rig.publish(std::slice::from_ref(&lobby), 200).await;
    // All of it is still in the stream, and read there.
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&lobby);
    let found = all_forward(&reader, &place, &lobby, Seq::ZERO, 50).await;
    assert_eq!(found, (stored[&lobby].clone(), true));
    let lagging = || worker.metrics.counts.retries.value() > 0;
    let deadline = tokio::time::Instant::now() + WITHIN;
    while !lagging() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "its tries are counted"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.restart();
    let last = rig.last().await;
    let mut held = archive.held();
    let reached = held.wait_for(|all| all.get("ROOMS_0").is_some_and(|held| held.end() >= last));
    tokio::time::timeout(WITHIN, reached)
        .await
        .expect("it is archived once the cluster answers")
        .unwrap();
    rig.trim(1).await;
    let found = all_forward(&reader, &place, &lobby, Seq::ZERO, 50).await;
    assert_eq!(found, (stored[&lobby].clone(), true));
}
