//! An archive that is put back to an older copy fills itself again; what the stream no longer has is a
//! hole, told, and nothing is recovered across it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_history::erase::Eraser;
use weir_history::{Archive, Reader, Window};
use weir_nats::erasure::watch::{Identity, Watch};
use weir_nats::erasure::{LogScope, Order, SlotScope, What};
use weir_nats::placement::Place;
use weir_nats::replay::Replay;
use weir_nats::{RoomName, Seq};

use crate::rig::{
    Kind, NODE_WITHIN, Rig, Running, STREAM, all_backward, all_forward, room, unique_id,
};

for_each_archive! {
    a_copy_that_is_put_back_while_nobody_works_fills_itself_again,
    a_copy_from_before_a_new_epoch_lacks_what_came_after_it_in_the_old_one,
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + NODE_WITHIN;
    while !condition().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn recovered(reader: &Reader, place: &Place, room: &RoomName, after: u64) -> bool {
    let window = Window::default();
    let epoch = Some(place.current().epoch.as_str());
    let recovery = reader.recover(place, room, epoch, Seq::new(after), &window, 300, 1 << 20);
    recovery.await.unwrap().recovered
}

/// 100 messages are in the copy; the archive had 400, and the stream has the last 150 of 500.
async fn copy_and_go_on(rig: &mut Rig, room: &RoomName) -> (Vec<(Seq, Bytes)>, TempDir) {
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let mut stored = rig.publish(std::slice::from_ref(room), 100).await[room].clone();
    rig.archived(&archive).await;
    drop(worker);
    let copy = rig.copy_archive();
    let worker = rig.work(&archive);
    stored.extend(rig.publish(std::slice::from_ref(room), 300).await[room].clone());
    rig.archived(&archive).await;
    drop(worker);
    (stored, copy)
}

/// What must be so in the end. `stored` are 1 to 500, and 101 to 350 are lost.
async fn check(
    rig: &Rig,
    (archive, worker): (&Archive, &Running),
    reader: &Reader,
    room: &RoomName,
    stored: &[(Seq, Bytes)],
) {
    rig.held(archive, &[(1, 100), (351, 500)]).await;
    assert_eq!(
        archive.held_now().await.unwrap()[STREAM].ranges(),
        [(1, 100), (351, 500)]
    );
    until("the hole is reported", async || {
        worker.metrics.lost_messages() == 250
    })
    .await;
    let kept = [&stored[..100], &stored[350..]].concat();
    let place = rig.place(room);
    let (found, whole) = all_forward(reader, &place, room, Seq::ZERO, 70).await;
    assert!(!whole);
    assert_eq!(found, kept);
    let (found, whole) = all_backward(reader, &place, room, 70).await;
    assert!(!whole);
    assert_eq!(found, kept);
    for (after, expected) in [
        (0, false),
        (99, false),
        (100, false),
        (349, false),
        (350, true),
        (500, true),
    ] {
        assert_eq!(
            recovered(reader, &place, room, after).await,
            expected,
            "after {after}"
        );
    }
    assert_eq!(rig.row_count().await, 250);
}

async fn a_copy_that_is_put_back_while_nobody_works_fills_itself_again(kind: Kind) {
    let mut rig = Rig::on_its_own(kind).await;
    let room = room("chat:lobby");
    let (mut stored, copy) = copy_and_go_on(&mut rig, &room).await;
    rig.put_archive_back(&copy).await;
    stored.extend(rig.publish(std::slice::from_ref(&room), 100).await[&room].clone());
    rig.trim(150).await;
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let reader = rig.reader(Some(&archive));
    check(&rig, (&archive, &worker), &reader, &room, &stored).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_put_back_under_a_worker_fills_itself_again() {
    let mut rig = Rig::on_its_own(Kind::Cassandra).await;
    let room = room("chat:lobby");
    let (mut stored, copy) = copy_and_go_on(&mut rig, &room).await;
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&room);
    assert!(recovered(&reader, &place, &room, 0).await);

    // An order that the copy knows nothing of, carried out before it is put back.
    let stop = CancellationToken::new();
    let named = archive.clone();
    let identity = Identity {
        id: unique_id(),
        host: "here".into(),
        archive: Arc::new(move || named.id()),
    };
    let watch = Watch::start(rig.links.live.clone(), rig.orders.clone(), identity)
        .await
        .unwrap();
    let eraser = Eraser::new(
        archive.clone(),
        watch.book(),
        rig.orders.clone(),
        Replay::new(rig.links.reads.clone()),
        watch.resets(),
    );
    let eraser = tokio::spawn(eraser.run(stop.clone()));
    let slot = SlotScope {
        streams: vec![STREAM.into()],
        up_to: Seq::new(400),
    };
    let scope = LogScope {
        log: "rooms".into(),
        slots: vec![slot],
    };
    let what = What::User("nobody".into());
    let order = Order::new(what, vec![scope], 0, "tester".into(), String::new());
    rig.orders.add([order.clone()]);
    let is_done = async || {
        let recorded = archive.erasures().await.unwrap_or_default();
        recorded
            .iter()
            .any(|one| one.order == order && one.done_ms.is_some())
    };
    until("the order is carried out", is_done).await;

    // Somebody asks all the time, and nothing that is gone may be called recovered.
    let whole_so_far = Arc::new(AtomicU32::new(0));
    let asking = {
        let whole_so_far = Arc::clone(&whole_so_far);
        let (reader, place, room, stop) =
            (reader.clone(), place.clone(), room.clone(), stop.clone());
        tokio::spawn(async move {
            let (mut asked, mut whole) = (0, 0);
            while !stop.is_cancelled() {
                let window = Window::default();
                let recovery =
                    reader.recover(&place, &room, None, Seq::new(99), &window, 300, 1 << 20);
                if let Ok(recovery) = recovery.await {
                    asked += 1;
                    if recovery.recovered {
                        whole += 1;
                        whole_so_far.store(whole, Ordering::Relaxed);
                        let first = recovery.page.messages.first().map(|one| one.seq);
                        assert_eq!(first, Some(Seq::new(100)));
                        let all = recovery.page.messages.windows(2);
                        let mut steps = all.map(|two| two[1].seq.get() - two[0].seq.get());
                        assert!(
                            steps.all(|step| step == 1),
                            "a gap that was called recovered"
                        );
                    }
                }
                // Each asks the archive itself and not what is kept of it.
                reader.forget();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (asked, whole)
        })
    };
    let is_asked = async || whole_so_far.load(Ordering::Relaxed) > 2;
    until("it is asked, and recovers", is_asked).await;
    let more = async |rig: &Rig| rig.publish(std::slice::from_ref(&room), 50).await[&room].clone();
    rig.node.as_mut().unwrap().kill();
    stored.extend(more(&rig).await);
    rig.trim(100).await;
    let node = rig.node.as_mut().unwrap();
    node.put_back(&copy);
    node.restart();
    stored.extend(more(&rig).await);
    // 351 to 400 are there again, as the stream still had them.
    check(&rig, (&archive, &worker), &reader, &room, &stored).await;
    until("the order is carried out again", is_done).await;
    stop.cancel();
    let (asked, whole) = asking.await.unwrap();
    assert!(
        asked > 0 && whole > 0 && whole < asked,
        "{whole} of {asked}"
    );
    eraser.await.unwrap();
}

async fn a_copy_from_before_a_new_epoch_lacks_what_came_after_it_in_the_old_one(kind: Kind) {
    let mut rig = Rig::on_its_own(kind).await;
    let room = room("chat:lobby");
    let one = std::slice::from_ref(&room);
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let mut published = rig.publish(one, 100).await[&room].clone();
    rig.archived(&archive).await;
    drop(worker);
    let copy = rig.copy_archive();
    let worker = rig.work(&archive);
    rig.publish(one, 50).await;
    rig.archived(&archive).await;
    drop(worker);

    // The stream is deleted, and a Weir that starts then makes the next one, and archives it.
    rig.js.delete_stream(STREAM).await.unwrap();
    let known = archive.known().await.unwrap();
    let anew = Rig::beside(rig.url.clone(), known).await;
    let worker = anew.work(&archive);
    let late = anew.publish(one, 40).await[&room].clone();
    let place = anew.place(&room);
    let stream = place.current().stream.clone();
    assert_ne!(stream, STREAM);
    let all_of_it = async |archive: &Archive| {
        let mut held = archive.held();
        let reached = held.wait_for(|all| {
            all.get(&stream)
                .is_some_and(|held| held.end() >= late[39].0)
        });
        let reached = tokio::time::timeout(NODE_WITHIN, reached).await;
        reached.expect("it is archived").unwrap();
    };
    all_of_it(&archive).await;
    until("the old one is retired", async || {
        anew.place(&room).generations.len() == 1
    })
    .await;
    let reader = anew.reader(Some(&archive));
    let (found, whole) = all_forward(&reader, &anew.place(&room), &room, Seq::ZERO, 70).await;
    assert!(whole && found.len() == 190);
    drop((worker, reader, archive));

    rig.put_archive_back(&copy).await;
    let archive = rig.archive().await;
    let known = archive.known().await.unwrap();
    let anew = Rig::beside(rig.url.clone(), known).await;
    let place = anew.place(&room);
    assert_eq!(
        place.current().stream,
        stream,
        "nothing is wrong with the log"
    );
    let _worker = anew.work(&archive);
    all_of_it(&archive).await;
    published.extend(late);
    let reader = anew.reader(Some(&archive));
    for size in [30, 100, 300] {
        let (found, whole) = all_forward(&reader, &place, &room, Seq::ZERO, size).await;
        assert!(!whole, "101 to 150 are nowhere");
        assert_eq!(found, published);
        let (found, whole) = all_backward(&reader, &place, &room, size).await;
        assert!(!whole);
        assert_eq!(found, published);
    }
    let below = reader.forward(&place, &room, Seq::ZERO, Some(Seq::new(100)), 200, 1 << 20);
    let below = below.await.unwrap();
    assert!(below.whole && below.messages.len() == 100);
    let start = place.current().from.just_before().get();
    assert!(recovered(&reader, &place, &room, start).await);
    assert!(!recovered(&reader, &place, &room, 100).await);
    assert_eq!(rig.row_count().await, 140);
}
