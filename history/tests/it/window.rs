//! A logical window is counted, wherever its messages lie and however big they are.

use bytes::Bytes;
use weir_history::{Ask, Reader, Window};
use weir_nats::placement::Place;
use weir_nats::{RoomName, Seq};

use crate::rig::{Kind, Rig, pairs, room};

for_each_archive! {
    a_window_of_three_lies_across_the_archive_and_the_tail,
    a_recovery_of_more_than_a_page_is_judged_by_its_count,
}

const PAGE_MAX_BYTES: u32 = 1 << 20;

fn newest(size: u64) -> Window {
    Window {
        size: Some(size),
        ttl: None,
    }
}

/// Asserts that a window of each size shows the newest of what was published, both ways.
async fn shows_the_newest(
    reader: &Reader,
    place: &Place,
    room: &RoomName,
    published: &[(Seq, Bytes)],
    sizes: &[usize],
) {
    for size in sizes {
        let inside = &published[published.len().saturating_sub(*size)..];
        let window = newest(*size as u64);
        for limit in [1, 2, 300_usize] {
            let max = u32::try_from(limit).unwrap();
            let history = async |reverse| {
                let ask = Ask {
                    reverse,
                    ..Ask::default()
                };
                reader
                    .history(place, room, ask, &window, max, PAGE_MAX_BYTES)
                    .await
                    .unwrap()
            };
            let what = format!("{size} of {} by {limit}", published.len());
            let page = history(false).await;
            let expected = &inside[..limit.min(inside.len())];
            assert_eq!(pairs(&page.messages), expected, "{what}");
            // A page that is exactly full may say that more could follow.
            assert!(page.more || limit >= inside.len(), "{what}");
            let page = history(true).await;
            let expected: Vec<_> = inside.iter().rev().take(limit).cloned().collect();
            assert_eq!(pairs(&page.messages), expected, "{what}, reverse");
        }
    }
}

async fn a_window_of_three_lies_across_the_archive_and_the_tail(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let (room, other) = (room("chat:lobby"), room("chat:other"));
    let both = [room.clone(), other];
    let worker = rig.work(&archive);
    let mut published = rig.publish(&both, 20).await[&room].clone();
    rig.archived(&archive).await;
    drop(worker);
    let reader = rig.reader(Some(&archive));
    let place = rig.place(&room);
    // The tail grows: none, one, two, … of the window are not archived.
    for _ in 0..5 {
        shows_the_newest(&reader, &place, &room, &published, &[0, 1, 3, 50]).await;
        published.extend(rig.publish(&both, 2).await[&room].clone());
    }
    let asks = (0..200).map(|_| {
        let (reader, place, room) = (reader.clone(), place.clone(), room.clone());
        tokio::spawn(async move {
            let window = newest(3);
            let page = reader.history(&place, &room, Ask::default(), &window, 9, PAGE_MAX_BYTES);
            page.await.unwrap().messages.len()
        })
    });
    for ask in asks.collect::<Vec<_>>() {
        assert_eq!(ask.await.unwrap(), 3, "each gets its turn");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_is_found_in_a_stream_that_is_spread_unevenly() {
    let rig = Rig::new().await;
    let (room, other) = (room("chat:lobby"), [room("chat:other")]);
    let mut published = Vec::new();
    for (of_room, of_other) in [(1, 400), (30, 3), (2, 700), (1, 0), (9, 50)] {
        published.extend(rig.publish(std::slice::from_ref(&room), of_room).await[&room].clone());
        rig.publish(&other, of_other).await;
    }
    let (reader, place) = (rig.reader(None), rig.place(&room));
    let sizes: Vec<usize> = (0..=published.len() + 1).collect();
    shows_the_newest(&reader, &place, &room, &published, &sizes).await;
    rig.trim(100).await;
    let left = published.split_off(published.len() - 10);
    shows_the_newest(&reader, &place, &room, &left, &[1, 3, 9, 10, 11]).await;
}

async fn a_recovery_of_more_than_a_page_is_judged_by_its_count(kind: Kind) {
    const EACH_BYTES: usize = 512 << 10;
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let room = room("chat:lobby");
    let worker = rig.work(&archive);
    rig.publish_big(&room, 30, EACH_BYTES).await;
    rig.archived(&archive).await;
    drop(worker);
    rig.publish_big(&room, 10, EACH_BYTES).await;
    let place = rig.place(&room);
    let epoch = place.current().epoch.clone();
    for reader in [rig.reader(Some(&archive)), rig.reader(None)] {
        for (since, size) in [(0, 40), (5, 35), (30, 10), (35, 5)] {
            for (size, recovered) in [(size, true), (size + 1, true), (size - 1, false)] {
                let since = Seq::new(since);
                let window = newest(size);
                let epoch = Some(epoch.as_str());
                let recovery = reader
                    .recover(&place, &room, epoch, since, &window, 300, PAGE_MAX_BYTES)
                    .await
                    .unwrap();
                assert_eq!(recovery.recovered, recovered, "{size} after {since:?}");
                let bytes: usize = recovery.page.messages.iter().map(|m| m.data.len()).sum();
                assert!(bytes <= PAGE_MAX_BYTES as usize);
                if recovered {
                    assert!(recovery.page.more && !recovery.page.messages.is_empty());
                    assert_eq!(recovery.page.messages[0].seq.get(), since.read_from());
                }
            }
        }
    }
}
