//! What was ordered to be erased is gone from the archive's files and from every page, does not come
//! back, and leaves no hole; what is too old leaves, and is missed.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use rusqlite::Connection;
use weir_history::archive::{Batch, Quarantined};
use weir_history::held::Held;
use weir_history::{Archive, Ask, Window};
use weir_nats::erasure::{LogScope, Order, SlotScope, What};
use weir_nats::message::stamp;
use weir_nats::placement::Generation;
use weir_nats::{Author, Epoch, Message, Orders, RoomName, Seq};

use crate::rig::{
    Kind, Rig, STREAM, all_backward, all_forward, author, pairs, room, rooms, unique_id,
};

for_each_archive! {
    an_authors_rows_are_erased_and_do_not_come_back,
}

const UNTIL_MS: i64 = 1_000_000;

pub(crate) fn order(what: What, up_to: u64) -> Order {
    let slot = SlotScope {
        streams: vec![STREAM.into()],
        up_to: Seq::new(up_to),
    };
    let scope = LogScope {
        log: "rooms".into(),
        slots: vec![slot],
    };
    Order::new(what, vec![scope], UNTIL_MS, "tester".into(), String::new())
}

fn batch(first: u64, rows: Vec<(RoomName, Message)>) -> Batch {
    let last = first + rows.len() as u64 - 1;
    Batch {
        log: "rooms".into(),
        slot: 0,
        generation: Generation {
            stream: STREAM.into(),
            epoch: Epoch::new("e").unwrap(),
            from: Seq::new(1),
        },
        rows,
        refused: Vec::new(),
        held: Held::from_ranges([(first, last)]),
        created: "then".into(),
    }
}

fn message(seq: u64, user: &str, data: &str) -> Message {
    Message {
        seq: Seq::new(seq),
        time_ms: i64::try_from(seq).unwrap(),
        id: format!("id{seq}"),
        author: Some(Author {
            user: user.into(),
            ..author()
        }),
        tags: BTreeMap::new(),
        data: Bytes::copy_from_slice(data.as_bytes()),
    }
}

/// A text that is nowhere else, of some length.
fn text(seq: u64) -> String {
    let fill = "z".repeat((seq * 7919 % 3_000) as usize);
    format!("\"{} {fill}\"", unique_id())
}

/// How many of these texts (by their unique part) lie in the archive's files.
fn found(path: &Path, texts: &[String]) -> usize {
    let mut bytes = Vec::new();
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        bytes.extend(std::fs::read(file).unwrap_or_default());
    }
    // Each begins with a quote and the 24 digits of its own.
    let words: HashSet<&[u8]> = bytes.split(|b| !b.is_ascii_hexdigit()).collect();
    let has = |text: &&String| words.contains(&text.as_bytes()[1..25]);
    texts.iter().filter(has).count()
}

async fn an_authors_rows_are_erased_and_do_not_come_back(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let rooms = rooms(3);
    let worker = rig.work(&archive);
    rig.publish(&rooms, 600).await;
    let bob = Author {
        user: "bob".into(),
        ..author()
    };
    for room in &rooms {
        let headers = stamp(room, &bob, &BTreeMap::new(), &unique_id());
        let subject = room.stored_subject("rooms");
        let ack = rig
            .js
            .publish_with_headers(subject, headers, "\"b\"".into());
        ack.await.unwrap().await.unwrap();
    }
    rig.publish(&rooms, 3).await;
    rig.archived(&archive).await;
    drop(worker);
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&rooms[0]);
    let before = reader.forward(&place, &rooms[0], Seq::ZERO, None, 1_000, 1 << 20);
    let before = before.await.unwrap().messages;
    let mut ann = order(What::User("ann".into()), 603);
    ann.until_ms = i64::MAX;
    let told = Mutex::new(0);
    let add = |rows| *told.lock().unwrap() += rows;
    archive.erase(&ann, add).await.unwrap();
    assert_eq!(*told.lock().unwrap(), 600);
    // Done once more it finds nothing, and what was written down stays.
    archive
        .erase(&ann, |rows| assert_eq!(rows, 0))
        .await
        .unwrap();
    let record = archive.erasures().await.unwrap();
    assert_eq!((record[0].erased, record[0].done_ms.is_some()), (600, true));

    let reader = rig.reader(Some(&archive));
    let check = async || {
        for room in &rooms {
            let (found, whole) = all_forward(&reader, &rig.place(room), room, Seq::ZERO, 50).await;
            assert!(whole && found.len() == 2, "{room}: {found:?}");
            assert_eq!(&found[0].1[..], b"\"b\"");
            let counted = archive.count("rooms".into(), room.clone(), (Seq::ZERO, Seq::MAX), 99);
            assert_eq!(counted.await.unwrap().messages, 2);
        }
    };
    check().await;
    // Delivered again: nothing of hers is taken.
    let generation = place.current().clone();
    let rows = before
        .iter()
        .map(|one| (rooms[0].clone(), Message::clone(one)));
    let again = Batch {
        generation,
        ..batch(1, rows.collect())
    };
    assert_eq!(archive.append(again).await.unwrap().erased, 200);
    reader.forget();
    check().await;

    let channel = rooms[1].channel().to_owned();
    let mut room = order(What::Room(channel), 606);
    room.until_ms = i64::MAX;
    archive.erase(&room, |_| {}).await.unwrap();
    let counted = async |room: &RoomName| {
        let counted = archive.count("rooms".into(), room.clone(), (Seq::ZERO, Seq::MAX), 99);
        counted.await.unwrap().messages
    };
    assert_eq!((counted(&rooms[1]).await, counted(&rooms[2]).await), (0, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_left_in_the_file_and_nothing_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive.db");
    let archive = Archive::sqlite(&path).await.unwrap();
    let rooms = rooms(7);
    let (mut anns, mut bobs) = (Vec::new(), Vec::new());
    let mut batches = Vec::new();
    for first in (1..=2_000).step_by(100) {
        let rows = (first..first + 100).map(|seq| {
            let text = text(seq);
            let user = if seq % 5 == 0 { "ann" } else { "bob" };
            let of = if user == "ann" { &mut anns } else { &mut bobs };
            of.push((seq, text.clone()));
            let room = rooms[(seq * seq % 7) as usize].clone();
            (room, message(seq, user, &text))
        });
        batches.push(batch(first, rows.collect()));
    }
    for batch in &batches {
        archive.append(batch.clone()).await.unwrap();
    }
    // One in quarantine, too: its subject names no room, its header names the author.
    let lost = text(3_000);
    let mut strange = batch(2_001, Vec::new());
    let headers = stamp(&rooms[0], &author(), &BTreeMap::new(), "x");
    strange.refused.push(Quarantined {
        seq: Seq::new(2_001),
        subject: "log.rooms.20.chat.=h".into(),
        headers: headers
            .iter()
            .map(|(name, values)| format!("{name}: {}\n", values[0]))
            .collect(),
        data: lost.clone().into(),
        reason: "no room".into(),
    });
    strange.held = Held::from_ranges([(2_001, 2_001)]);
    archive.append(strange.clone()).await.unwrap();

    // What came later is kept: up to 1,500, and what lies in quarantine below it.
    let (gone, kept): (Vec<_>, Vec<_>) = anns.into_iter().partition(|(seq, _)| *seq <= 1_500);
    let texts = |of: &[(u64, String)]| of.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
    let gone = texts(&gone);
    assert_eq!(found(&path, &gone), 300, "the scan finds what is there");
    assert_eq!(
        archive.erasable(What::User("ann".into())).await.unwrap(),
        Some(400)
    );
    let ann = order(What::User("ann".into()), 1_500);
    let told = Mutex::new(0);
    let add = |rows| *told.lock().unwrap() += rows;
    archive.erase(&ann, add).await.unwrap();
    assert_eq!(*told.lock().unwrap(), 300);
    assert_eq!(found(&path, &gone), 0);
    assert_eq!(found(&path, std::slice::from_ref(&lost)), 1);
    assert_eq!(found(&path, &texts(&kept)), 100);
    assert_eq!(found(&path, &texts(&bobs)), 1_600);

    // Re-delivery, and an archive that is opened again.
    for batch in &batches {
        let appended = archive.append(batch.clone()).await.unwrap();
        assert_eq!((appended.rows, appended.conflicts.len()), (0, 0));
    }
    drop(archive);
    let archive = Archive::sqlite(&path).await.unwrap();
    let again = archive.append(batches[0].clone()).await.unwrap();
    assert_eq!((again.rows, again.erased), (0, 20));
    assert_eq!(found(&path, &gone), 0);
    assert_eq!(archive.held().borrow()[STREAM].ranges(), [(1, 2_001)]);
    let record = archive.erasures().await.unwrap();
    assert_eq!((record.len(), record[0].erased), (1, 300));
    assert!(record[0].done_ms.is_some() && record[0].order == ann);

    // All of her, and then a room.
    archive
        .erase(&order(What::User("ann".into()), 9_999), |_| {})
        .await
        .unwrap();
    assert_eq!(found(&path, &texts(&kept)), 0);
    assert_eq!(found(&path, std::slice::from_ref(&lost)), 0);
    assert!(archive.quarantined(None, 10).await.unwrap().is_empty());
    assert_eq!(archive.append(strange).await.unwrap().erased, 1);
    let of_room: Vec<_> = bobs
        .iter()
        .filter(|(seq, _)| seq * seq % 7 == 2)
        .cloned()
        .collect();
    let channel = rooms[2].channel().to_owned();
    archive
        .erase(&order(What::Room(channel), 9_999), |_| {})
        .await
        .unwrap();
    assert_eq!(found(&path, &texts(&of_room)), 0);
    assert_eq!(found(&path, &texts(&bobs)), 1_600 - of_room.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_version_1_is_brought_up_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive.db");
    let archive = Archive::sqlite(&path).await.unwrap();
    let room = room("chat:lobby");
    let row = (room.clone(), message(1, "ann", "\"one\""));
    archive.append(batch(1, vec![row])).await.unwrap();
    drop(archive);
    let old = Connection::open(&path).unwrap();
    old.execute_batch(
        "DROP TABLE erasures; DROP INDEX messages_by_user;
         ALTER TABLE rooms DROP COLUMN expired_to;
         UPDATE meta SET value = '1' WHERE key = 'version';",
    )
    .unwrap();
    drop(old);
    let archive = Archive::sqlite(&path).await.unwrap();
    assert_eq!(
        archive.erasable(What::User("ann".into())).await.unwrap(),
        Some(1)
    );
    archive
        .erase(&order(What::User("ann".into()), 9), |_| {})
        .await
        .unwrap();
    assert_eq!(
        archive.erasable(What::User("ann".into())).await.unwrap(),
        Some(0)
    );
    let file = Connection::open(&path).unwrap();
    let version: String = file
        .query_row("SELECT value FROM meta WHERE key = 'version'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(version, "2");
    file.execute("UPDATE meta SET value = '99' WHERE key = 'version'", [])
        .unwrap();
    let newer = Archive::sqlite(&path).await.unwrap_err();
    assert!(
        !newer.temporary && newer.reason.contains("version 99"),
        "{newer}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_leave_out_what_is_erased_before_it_is_gone() {
    let rig = Rig::new().await;
    let archive = rig.archive().await;
    let orders = Orders::default();
    let room = room("chat:lobby");
    let place = rig.place(&room);
    let mut kept = Vec::new();
    // Half of it archived, half only in the stream; eight of nine are erased.
    for half in 0..2 {
        for n in 0..450 {
            let user = if n % 9 == 4 { "bob" } else { "ann é" };
            let data = Bytes::from(format!("\"{half} {n}\""));
            let author = Author {
                user: user.into(),
                ..author()
            };
            let headers = stamp(&room, &author, &BTreeMap::new(), &unique_id());
            let subject = room.stored_subject("rooms");
            let ack = rig.js.publish_with_headers(subject, headers, data.clone());
            let seq = Seq::new(ack.await.unwrap().await.unwrap().sequence);
            if user == "bob" {
                kept.push((seq, data));
            }
        }
        if half == 0 {
            let worker = rig.work(&archive);
            rig.archived(&archive).await;
            drop(worker);
        }
    }
    let reader = rig.reader(Some(&archive)).with_orders(orders.clone());
    // The pages are in the cache before the order comes.
    assert_eq!(
        all_forward(&reader, &place, &room, Seq::ZERO, 40)
            .await
            .0
            .len(),
        900
    );
    let mut order = order(What::User("ann é".into()), 900);
    order.until_ms = i64::MAX;
    orders.add([order]);
    for page_size in [1, 40, 1_000] {
        let forward = all_forward(&reader, &place, &room, Seq::ZERO, page_size).await;
        assert_eq!(forward, (kept.clone(), true), "forward by {page_size}");
        let backward = all_backward(&reader, &place, &room, page_size).await;
        assert_eq!(backward, (kept.clone(), true), "backward by {page_size}");
    }
    let page = reader
        .forward(&place, &room, Seq::ZERO, None, 20, 1 << 20)
        .await
        .unwrap();
    assert_eq!(page.messages.len(), 20, "a page is filled up");
    let window = Window::default();
    let recovery = reader.recover(&place, &room, None, Seq::ZERO, &window, 1_000, 1 << 20);
    let recovery = recovery.await.unwrap();
    assert!(recovery.recovered && pairs(&recovery.page.messages) == kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_left_by_age_is_missed_and_nothing_else() {
    let rig = Rig::new().await;
    let archive = rig.archive().await;
    let (old, other) = (room("old:lobby"), room("new:lobby"));
    let both = [old.clone(), other.clone()];
    rig.publish(&both, 1_200).await;
    // The stream's clock has to move on, or all are of one age.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let since = weir_nats::ambient::now_ms();
    let young = rig.publish(&both, 100).await;
    let worker = rig.work(&archive);
    rig.archived(&archive).await;
    let reader = rig.reader(Some(&archive));
    let recover = async |room: &RoomName, since| {
        let place = rig.place(room);
        let window = Window::default();
        let recovery = reader.recover(&place, room, None, since, &window, 2_000, 1 << 20);
        let recovery = recovery.await.unwrap();
        (recovery.recovered, recovery.page.messages.len())
    };
    assert_eq!(recover(&old, Seq::ZERO).await, (true, 650));
    let oldest_ms =
        Arc::new(move |room: &RoomName| (room.namespace() == Some("old")).then_some(since));
    let (mut after, mut rows) = (0, 0);
    loop {
        let step = archive.expire_step(after, oldest_ms.clone()).await.unwrap();
        rows += step.rows;
        let Some(next) = step.next else { break };
        after = next;
    }
    assert_eq!(rows, 600);
    assert_eq!(recover(&old, Seq::ZERO).await, (false, 0), "a silent gap");
    let first = young[&old][0].0;
    assert_eq!(recover(&old, first.just_before()).await, (true, 50));
    assert_eq!(recover(&other, Seq::ZERO).await, (true, 650));
    let place = rig.place(&old);
    let page = reader
        .history(
            &place,
            &old,
            Ask::default(),
            &Window::default(),
            2_000,
            1 << 20,
        )
        .await
        .unwrap();
    assert_eq!(
        (pairs(&page.messages), page.whole),
        (young[&old].clone(), true)
    );
    // An archive that is opened again still knows.
    drop(worker);
    let expired = archive
        .expired_to("rooms".into(), old.clone())
        .await
        .unwrap();
    drop((archive, reader));
    let archive = rig.archive().await;
    assert_eq!(
        archive.expired_to("rooms".into(), old).await.unwrap(),
        expired
    );
    let any = archive.any_expired_to("rooms".into()).await.unwrap();
    assert!(any > Seq::ZERO, "a copy must not claim what has left");
    let other = archive.any_expired_to("other".into()).await.unwrap();
    assert_eq!(other, Seq::ZERO);
    assert!(!expired.is_zero() && expired < first);
}
