//! Knows: acknowledgements that never come: stored once, and the author is told the true end.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::checker::event::What;
use crate::checker::{Expect, Least, require_valid};
use crate::figures::figure;
use crate::harness::client::{Failure, is_unknown};
use crate::harness::rig::Rig;
use crate::harness::{Rng, either, heavy, scan, seed, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_in_five_acknowledgements_is_lost_and_each_message_is_stored_once() {
    let _turn = heavy().await;
    let seed = seed("lost_ack", 5);
    let mut rig = Rig::servers(4, true, |_| {}).await;
    let rooms = rig.rooms.clone();
    for number in 0..4 {
        rig.read(&format!("reader{number}"), &rooms);
    }
    rig.until_joined().await;
    let dice = Mutex::new(Rng::new(seed));
    let proxy = rig.proxy.as_ref().unwrap();
    let lost = proxy.lose_answers(usize::MAX, move |frame| {
        frame.subject.starts_with("log.") && dice.lock().unwrap().below(5) == 0
    });
    for number in 0..5 {
        rig.write(&format!("writer{number}"), 40, 100);
    }
    rig.bot(20, 100).await;
    // Each costs the time in which an acknowledgement may come, 2 s.
    let wanted = either(15, 100);
    until(
        "acknowledgements were lost",
        Duration::from_secs(60 + 5 * wanted as u64),
        async || lost.count() >= wanted,
    )
    .await;
    let unanswered: usize = rig.writers.iter().map(|writer| writer.unanswered()).sum();
    assert_eq!(unanswered, 0, "publishes that had no answer within 5 s");
    rig.proxy.as_ref().unwrap().heal();
    rig.until_acked(100, Duration::from_secs(60)).await;
    rig.settle().await;
    rig.scan().await;
    rig.require_calm();
    figure!("{} acknowledgements were lost", lost.count());
    let least = Least {
        acks: 100,
        receipts: 400,
        ..Least::default()
    };
    let expect = Expect {
        scanned: true,
        archived: true,
        least,
        ..Expect::default()
    };
    require_valid(&rig.recorder.history(), &expect);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_whose_acknowledgements_all_vanish_is_answered_unknown_and_stored_once() {
    let rig = Rig::servers(1, true, |_| {}).await;
    let room = &rig.rooms[0];
    let mut author = rig.client("author").await;
    author.publish(room, "{\"n\":0}").await.unwrap();
    let proxy = rig.proxy.as_ref().unwrap();
    let lost = proxy.lose_answers(usize::MAX, |frame| frame.subject.starts_with("log."));
    let sent = Instant::now();
    let failure = author.publish(room, "{\"n\":1}").await.unwrap_err();
    assert!(
        matches!(failure, Failure::Error { code: 100, .. }) && is_unknown(&failure),
        "{failure:?}"
    );
    assert!(
        sent.elapsed() < Duration::from_secs(5),
        "answered after {:?}",
        sent.elapsed()
    );
    assert!(lost.count() >= 1);
    proxy.heal();
    // Its order is kept: what follows waits for its fate, and comes after it.
    until(
        "the log takes publishes again",
        Duration::from_secs(60),
        async || author.publish(room, "{\"n\":2}").await.is_ok(),
    )
    .await;
    let stored: Vec<_> = scan::stream(&rig.nats)
        .await
        .into_iter()
        .map(|row| row.data)
        .collect();
    let count = |text: &[u8]| stored.iter().filter(|data| *data == text).count();
    assert_eq!(count(b"{\"n\":1}"), 1, "{stored:?}");
    let place = |text: &[u8]| stored.iter().position(|data| data == text).unwrap();
    assert!(place(b"{\"n\":1}") < place(b"{\"n\":2}"));
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_is_lost_on_its_way_is_not_told_as_stored() {
    let mut rig = Rig::servers(1, true, |_| {}).await;
    let rooms = rig.rooms.clone();
    rig.read("reader", &rooms);
    rig.until_joined().await;
    rig.write("writer", 20, 100);
    rig.until_acked(20, Duration::from_secs(60)).await;
    // The publish itself never reaches the server, again and again.
    let proxy = rig.proxy.as_ref().unwrap();
    let lost = proxy.lose(usize::MAX, |frame| {
        frame.is_publish() && frame.subject.starts_with("log.")
    });
    until("publishes were lost", Duration::from_secs(30), async || {
        lost.count() >= 3
    })
    .await;
    let ends = || {
        rig.recorder
            .count(|what| matches!(what, What::Unknown { .. } | What::Fail { .. }))
    };
    until("authors were told", Duration::from_secs(30), async || {
        ends() >= 1
    })
    .await;
    proxy.heal();
    rig.until_acked(20, Duration::from_secs(60)).await;
    rig.settle().await;
    rig.scan().await;
    rig.require_calm();
    let expect = Expect {
        scanned: true,
        archived: true,
        ..Expect::default()
    };
    require_valid(&rig.recorder.history(), &expect);
}
