//! Three nodes that keep three copies: one that is frozen or killed is nobody's business; without
//! two of them the newest messages are still read, and everything heals alone.

#![allow(
    clippy::print_stderr,
    reason = "figures and seeds are for whoever reads the run"
)]

use std::time::{Duration, Instant};

use weir_history::{Archive, ReadError, Window};
use weir_nats::Seq;

use super::{batch, config_at, message};
use crate::figures::figure;
use crate::node::Ring;
use crate::rig::{Rig, STREAM, all_forward, either, pairs, room};

const NODE_DOWN_WITHIN: Duration = Duration::from_secs(120);
/// Five times the second that is aimed at.
const WRITE_WITHIN: Duration = Duration::from_secs(5);

/// Writes and reads for so long; the slowest write, and what failed.
async fn work(archive: &Archive, from: &mut u64, during: Duration) -> (Duration, Vec<String>) {
    let (mut slowest, mut errors) = (Duration::ZERO, Vec::new());
    let room = room("chat:ring");
    let until = Instant::now() + during;
    while Instant::now() < until {
        let rows = (0..20)
            .map(|nth| {
                let seq = *from + nth;
                (room.clone(), message(seq, 1_000, &seq.to_string(), b"text"))
            })
            .collect();
        let began = Instant::now();
        let batch = batch("ring", "RING_0", rows, (*from, *from + 19));
        match archive.append(batch).await {
            Ok(_) => *from += 20,
            Err(error) => errors.push(format!("append: {error}")),
        }
        slowest = slowest.max(began.elapsed());
        let after = from.saturating_sub(50);
        let page = archive
            .page(super::query(&room, (after, *from), false, 50))
            .await;
        if let Err(error) = page {
            errors.push(format!("page: {error}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (slowest, errors)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_is_nobodys_business_and_two_are_healed_from() {
    let mut ring = tokio::task::spawn_blocking(|| Ring::start(3))
        .await
        .unwrap();
    let rig = Rig::new().await;
    let archive = Archive::cassandra(config_at(ring.addresses(), "ring", 3));
    let archive = archive.await.unwrap();
    tokio::time::timeout(NODE_DOWN_WITHIN, archive.connected())
        .await
        .expect("the ring answers");
    let mut next = 1;
    let (calm, errors) = work(&archive, &mut next, Duration::from_secs(3)).await;
    assert!(errors.is_empty(), "{errors:?}");

    let frozen_for = either(Duration::from_secs(5), Duration::from_secs(15));
    ring.node(1).freeze();
    let (frozen, errors) = work(&archive, &mut next, frozen_for).await;
    ring.node(1).thaw();
    assert!(errors.is_empty(), "one is frozen: {errors:?}");
    ring.node(2).kill();
    let (killed, errors) = work(&archive, &mut next, Duration::from_secs(5)).await;
    assert!(errors.is_empty(), "one is killed: {errors:?}");
    figure!("slowest write: calm {calm:?}, one frozen {frozen:?}, one killed {killed:?}");
    assert!(frozen.max(killed) < WRITE_WITHIN);

    // A room through the whole path, archived while two of three live.
    let lobby = room("chat:lobby");
    let stored = rig.publish(std::slice::from_ref(&lobby), 200).await;
    let worker = rig.work(&archive);
    let last = rig.last().await;
    let mut held = archive.held();
    let archived = held.wait_for(|all| all.get(STREAM).is_some_and(|held| held.end() >= last));
    tokio::time::timeout(NODE_DOWN_WITHIN, archived)
        .await
        .expect("two of three are enough")
        .unwrap();
    rig.trim(50).await;

    ring.node(1).kill();
    let more = rig.publish(std::slice::from_ref(&lobby), 30).await;
    let reader = rig.reader(Some(&archive)).with_cache(0);
    let place = rig.place(&lobby);
    let all: Vec<_> = stored[&lobby]
        .iter()
        .chain(&more[&lobby])
        .cloned()
        .collect();
    // What the stream still has does not need the archive: after the watermark, and also below it.
    let tail = |after: usize| all[after - 1].0;
    for after in [200, 160] {
        let page = reader
            .forward(&place, &lobby, tail(after), None, 100, 1 << 20)
            .await
            .unwrap();
        assert_eq!(pairs(&page.messages), all[after..], "after {after}");
        assert!(page.whole);
    }
    let newest = reader.backward(&place, &lobby, None, 60, 1 << 20).await;
    assert_eq!(
        newest.unwrap().messages.len(),
        60,
        "30 above the watermark, 30 below"
    );
    let window = Window {
        size: Some(100),
        ttl: None,
    };
    for after in [200, 160] {
        let since = tail(after);
        let recovery = reader.recover(&place, &lobby, None, since, &window, 100, 1 << 20);
        let recovery = recovery.await.unwrap();
        assert!(recovery.recovered, "within a window, after {after}");
        assert_eq!(pairs(&recovery.page.messages), all[after..]);
    }
    // What only the archive has is an error that says to try again, and never a gap.
    let deep = reader.forward(&place, &lobby, Seq::ZERO, None, 100, 1 << 20);
    match deep.await {
        Err(ReadError::Archive(error)) => assert!(error.temporary, "{error}"),
        other => panic!("a temporary error, not {other:?}"),
    }

    for node in [1, 2] {
        ring.node(node).restart();
    }
    let last = rig.last().await;
    let mut held = archive.held();
    let archived = held.wait_for(|all| all.get(STREAM).is_some_and(|held| held.end() >= last));
    tokio::time::timeout(NODE_DOWN_WITHIN, archived)
        .await
        .expect("it heals alone")
        .unwrap();
    drop(worker);
    rig.trim(1).await;
    let deadline = Instant::now() + NODE_DOWN_WITHIN;
    loop {
        let page = reader.forward(&place, &lobby, Seq::ZERO, None, 10, 1 << 20);
        match page.await {
            Ok(_) => break,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (found, whole) = all_forward(&reader, &place, &lobby, Seq::ZERO, 100).await;
    assert_eq!((found, whole), (all, true));
}
