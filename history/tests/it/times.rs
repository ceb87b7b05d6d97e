//! What is asked for by time is what was stored then, wherever it lies.

use std::sync::Arc;
use std::time::Duration;

use weir_history::{Archive, Ask, Reader, Window};
use weir_nats::placement::Place;
use weir_nats::{Message, RoomName, Seq};

use crate::rig::{Kind, Rig, room};

for_each_archive! {
    a_span_of_time_is_read_forward_and_backward_over_all_tiers,
    the_newest_before_a_time_is_found_in_a_long_room,
}

const MAX_BYTES: u32 = 1 << 20;

/// Reads a whole span page by page, in the order asked for.
async fn all(
    reader: &Reader,
    place: &Place,
    room: &RoomName,
    mut ask: Ask,
    limit: u32,
) -> Vec<Arc<Message>> {
    let (mut found, window) = (Vec::new(), Window::default());
    loop {
        let page = reader
            .history(place, room, ask, &window, limit, MAX_BYTES)
            .await
            .unwrap();
        assert!(page.whole);
        assert!(page.messages.len() <= limit as usize);
        ask.since = page.messages.last().map(|last| last.seq).or(ask.since);
        let is_last = !page.more || page.messages.is_empty();
        found.extend(page.messages);
        if is_last {
            return found;
        }
    }
}

/// Asserts that spans between these times show what they should.
async fn check(reader: &Reader, place: &Place, room: &RoomName, known: &[Arc<Message>]) {
    let (first_ms, last_ms) = (known[0].time_ms, known[known.len() - 1].time_ms);
    let middle_ms = known[known.len() / 2].time_ms;
    let times = [
        None,
        Some(0),
        Some(first_ms),
        Some(first_ms + 1),
        Some(middle_ms),
        Some(middle_ms + 1),
        Some(last_ms),
        Some(last_ms + 1),
        Some(last_ms + 100_000),
    ];
    for since_ms in times {
        for until_ms in times {
            if let (Some(from), Some(until)) = (since_ms, until_ms)
                && from >= until
            {
                continue;
            }
            let inside = known.iter().filter(|message| {
                since_ms.is_none_or(|from| message.time_ms >= from)
                    && until_ms.is_none_or(|until| message.time_ms < until)
            });
            let mut expected: Vec<Seq> = inside.map(|message| message.seq).collect();
            for (reverse, limit) in [(false, 7), (false, 1_000), (true, 7), (true, 1_000)] {
                let ask = Ask {
                    since: None,
                    reverse,
                    since_ms,
                    until_ms,
                };
                let found = all(reader, place, room, ask, limit).await;
                let mut found: Vec<Seq> = found.iter().map(|message| message.seq).collect();
                if reverse {
                    found.reverse();
                }
                assert_eq!(found, expected, "{ask:?} by {limit}");
            }
            // A position narrows it further.
            let since = known[known.len() / 3].seq;
            expected.retain(|seq| *seq > since);
            let ask = Ask {
                since: Some(since),
                reverse: false,
                since_ms,
                until_ms,
            };
            let found = all(reader, place, room, ask, 1_000).await;
            let found: Vec<Seq> = found.iter().map(|message| message.seq).collect();
            assert_eq!(found, expected, "{ask:?}");
        }
    }
}

async fn known(reader: &Reader, place: &Place, room: &RoomName) -> Vec<Arc<Message>> {
    all(reader, place, room, Ask::default(), 1_000).await
}

/// Publishes in bursts that are some milliseconds apart.
async fn publish(rig: &Rig, both: &[RoomName], bursts: usize) {
    for _ in 0..bursts {
        rig.publish(both, 30).await;
        // Not to wait for anything: so that the times of the bursts differ.
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
}

async fn a_span_of_time_is_read_forward_and_backward_over_all_tiers(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let both = [room("chat:lobby"), room("chat:other")];
    let place = rig.place(&both[0]);
    publish(&rig, &both, 5).await;
    // The stream alone, with an archive that has nothing yet.
    for archive in [None, Some(&archive)] {
        let reader = rig.reader(archive);
        let known = known(&reader, &place, &both[0]).await;
        assert_eq!(known.len(), 75);
        check(&reader, &place, &both[0], &known).await;
    }
    let worker = rig.work(&archive);
    rig.archived(&archive).await;
    let reader = rig.reader(Some(&archive));
    let all_known = known(&reader, &place, &both[0]).await;
    check(&reader, &place, &both[0], &all_known).await;
    // The archive alone, then a tail that it does not have.
    rig.trim(1).await;
    check(&reader, &place, &both[0], &all_known).await;
    drop(worker);
    publish(&rig, &both, 3).await;
    let all_known = known(&reader, &place, &both[0]).await;
    assert_eq!(all_known.len(), 120);
    check(&reader, &place, &both[0], &all_known).await;
}

async fn the_newest_before_a_time_is_found_in_a_long_room(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive: Archive = rig.archive().await;
    let lobby = room("chat:lobby");
    let generation = rig.place(&lobby).current().clone();
    // 20,000 rows, two to a millisecond, with gaps between the offsets.
    let message = |nth: u64| Message {
        seq: Seq::new(nth * 3 + 1),
        time_ms: 1_000_000 + i64::try_from(nth / 2).unwrap(),
        id: nth.to_string(),
        author: None,
        tags: Default::default(),
        data: "{}".into(),
    };
    for batch in 0..20 {
        let rows = (batch * 1_000..(batch + 1) * 1_000).map(|nth| (lobby.clone(), message(nth)));
        let batch = weir_history::archive::Batch {
            log: "rooms".into(),
            slot: 0,
            generation: generation.clone(),
            rows: rows.collect(),
            refused: Vec::new(),
            held: Default::default(),
            created: String::new(),
        };
        archive.append(batch).await.unwrap();
    }
    let ask = async |time_ms| {
        archive
            .older_than(("rooms".into(), 0), lobby.clone(), time_ms)
            .await
            .unwrap()
            .map(Seq::get)
    };
    assert_eq!(ask(1_000_000).await, None);
    assert_eq!(ask(1_000_001).await, Some(4));
    assert_eq!(ask(1_005_000).await, Some(9_999 * 3 + 1));
    assert_eq!(ask(1_009_999).await, Some(19_997 * 3 + 1));
    assert_eq!(ask(i64::MAX).await, Some(19_999 * 3 + 1));
    let other = room("chat:other");
    let none = archive
        .older_than(("rooms".into(), 0), other, i64::MAX)
        .await;
    assert_eq!(none.unwrap(), None);
}
