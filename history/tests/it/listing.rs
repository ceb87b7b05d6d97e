//! An archive is walked whole: nothing twice, nothing left out, whatever the page size and whatever the rooms are called.

use bytes::Bytes;
use weir_history::Archive;
use weir_history::archive::{Batch, Quarantined};
use weir_history::held::Held;
use weir_history::listing::{ListedRow, RowKey};
use weir_nats::placement::Generation;
use weir_nats::{Epoch, Message, RoomName, Seq};

use crate::rig::{Kind, Rig, author, room};

for_each_archive! {
    rows_of_two_epochs_at_one_offset_are_both_listed_once,
    rooms_of_any_name_and_payloads_of_every_byte_are_listed_once,
    streams_totals_quarantine_and_notes,
}

fn message(seq: u64, id: &str, data: &[u8]) -> Message {
    Message {
        seq: Seq::new(seq),
        time_ms: 1_000 + i64::try_from(seq).unwrap(),
        id: id.into(),
        author: (!seq.is_multiple_of(3)).then(author),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        data: Bytes::copy_from_slice(data),
    }
}

fn batch(stream: &str, epoch: &str, rows: Vec<(RoomName, Message)>) -> Batch {
    let seqs = rows.iter().map(|(_, message)| message.seq.get());
    let held = Held::from_ranges(seqs.map(|seq| (seq, seq)));
    Batch {
        log: "rooms".into(),
        slot: 0,
        generation: Generation {
            stream: stream.into(),
            epoch: Epoch::new(epoch).unwrap(),
            from: Seq::new(1),
        },
        rows,
        refused: Vec::new(),
        held,
        created: "then".into(),
    }
}

async fn walk(archive: &Archive, room: &RoomName, page: u32, bytes: u32) -> Vec<ListedRow> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let listed = archive
            .rows_of("rooms".into(), room.clone(), after, page, bytes)
            .await
            .unwrap();
        assert!(listed.rows.len() <= page as usize);
        assert!(!listed.rows.is_empty() || !listed.more);
        after = listed.rows.last().map(ListedRow::key);
        all.extend(listed.rows);
        if !listed.more {
            return all;
        }
    }
}

async fn rows_of_two_epochs_at_one_offset_are_both_listed_once(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let (here, other) = (room("chat:here"), room("chat:other"));
    let row = |room: &RoomName, seq, id: &str| (room.clone(), message(seq, id, id.as_bytes()));
    // The epoch that came second sorts first, as texts do.
    let old = (1..=9).map(|n| row(&here, n, &format!("old {n}")));
    let new = (5..=14).map(|n| row(&here, n, &format!("new {n}")));
    let apart = vec![row(&other, 20, "apart")];
    for (stream, epoch, rows) in [
        ("ROOMS_0", "zz", old.collect()),
        ("ROOMS_0_1", "aa", new.collect()),
        ("ROOMS_0_1", "aa", apart),
    ] {
        archive.append(batch(stream, epoch, rows)).await.unwrap();
    }
    let mut wanted: Vec<RowKey> = (1..=9)
        .map(|n| (n, "zz", format!("old {n}")))
        .chain((5..=14).map(|n| (n, "aa", format!("new {n}"))))
        .map(|(n, epoch, id)| RowKey {
            seq: Seq::new(n),
            epoch: epoch.into(),
            id,
        })
        .collect();
    // Another message at the same offset in the same epoch is said to be one, and changes nothing.
    let rows = vec![row(&here, 7, "new 7 again")];
    let appended = archive.append(batch("ROOMS_0_1", "aa", rows)).await;
    assert_eq!(appended.unwrap().conflicts, [Seq::new(7)]);
    wanted.sort();
    for page in 1..=20 {
        let rows = walk(&archive, &here, page, 1 << 20).await;
        let keys: Vec<RowKey> = rows.iter().map(ListedRow::key).collect();
        assert_eq!(keys, wanted, "pages of {page}");
        let whole = rows.iter().all(|row| {
            let (seq, id) = (row.message.seq.get(), row.message.id.as_str());
            *row.message == message(seq, id, id.as_bytes())
        });
        assert!(whole, "pages of {page}");
    }
    // A page of no bytes still holds a row.
    assert_eq!(walk(&archive, &here, 100, 0).await.len(), wanted.len());
    let behind = archive
        .rows_of(
            "rooms".into(),
            here.clone(),
            Some(RowKey::end_of(Seq::new(9))),
            100,
            1 << 20,
        )
        .await
        .unwrap();
    assert_eq!(behind.rows.len(), 5);
    assert!(
        walk(&archive, &room("chat:nobody"), 10, 1 << 20)
            .await
            .is_empty()
    );
}

async fn rooms_of_any_name_and_payloads_of_every_byte_are_listed_once(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let names = [
        "a",
        "chat:'; DROP TABLE messages; --",
        "chat:\"\u{0}\"",
        "чат",
        "聊天:室",
        "chat:🦀",
        "chat:a b",
        "$chat:private",
        "chat:room#u1,u2",
    ];
    let long = format!("chat:{}", "x".repeat(250));
    let every: Vec<u8> = (0..=255).collect();
    let rooms: Vec<RoomName> = names
        .iter()
        .copied()
        .chain([long.as_str()])
        .filter_map(|name| RoomName::parse(name).ok())
        .collect();
    assert!(rooms.len() >= 9);
    for (n, name) in rooms.iter().enumerate() {
        let rows = vec![(name.clone(), message(n as u64 + 1, "id", &every))];
        archive.append(batch("ROOMS_0", "e", rows)).await.unwrap();
    }
    for page in 1..=rooms.len() as u32 + 1 {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let listed = archive.rooms(after, page).await.unwrap();
            let Some(last) = listed.last() else { break };
            after = Some(last.cursor.clone());
            found.extend(listed.into_iter().map(|one| {
                assert_eq!(one.log, "rooms");
                one.room
            }));
        }
        found.sort();
        let mut wanted = rooms.clone();
        wanted.sort();
        assert_eq!(found, wanted, "pages of {page}");
    }
    for name in &rooms {
        let rows = walk(&archive, name, 10, 1 << 20).await;
        assert_eq!(rows.len(), 1, "{name:?}");
        assert_eq!(&rows[0].message.data[..], every, "{name:?}");
    }
    assert!(archive.rooms(Some("nonsense".into()), 1).await.is_err());
}

async fn streams_totals_quarantine_and_notes(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let lobby = room("chat:lobby");
    let rows = vec![(lobby.clone(), message(7, "seven", b"7"))];
    archive.append(batch("ROOMS_0", "one", rows)).await.unwrap();
    let mut refused = batch("ROOMS_1", "two", Vec::new());
    refused.slot = 1;
    refused.held = Held::from_ranges([(1, 5)]);
    refused.refused = (1..=5)
        .map(|n| Quarantined::of_row("rooms", &lobby, &message(n, "q", b"q"), &format!("why {n}")))
        .collect();
    archive.append(refused).await.unwrap();

    let streams = archive.streams().await.unwrap();
    assert_eq!(streams.len(), 2);
    let (first, second) = (&streams[0], &streams[1]);
    assert_eq!(
        (first.generation.stream.as_str(), first.slot),
        ("ROOMS_0", 0)
    );
    assert_eq!(first.generation.epoch.as_str(), "one");
    assert_eq!(
        (first.known.seq, first.known.id.as_str()),
        (Seq::new(7), "seven")
    );
    assert_eq!(
        (first.known.time_ms, first.known.created.as_str()),
        (1_007, "then")
    );
    assert_eq!((second.slot, second.known.seq), (1, Seq::ZERO));
    let held = archive.held_now().await.unwrap();
    assert_eq!(held, *archive.held().borrow());
    assert_eq!(held["ROOMS_1"].ranges(), [(1, 5)]);

    let totals = archive.totals().await.unwrap();
    assert_eq!(totals.rooms.unwrap_or(1), 1);
    assert_eq!(totals.rows.unwrap_or(1), 1);
    assert_eq!(totals.quarantined.unwrap_or(5), 5);

    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = archive.quarantined(after.clone(), 2).await.unwrap();
        let Some((stream, last)) = page.last() else {
            break;
        };
        after = Some((stream.clone(), last.seq));
        found.extend(page.into_iter().map(|(_, one)| (one.seq.get(), one.reason)));
    }
    let wanted: Vec<_> = (1..=5).map(|n| (n, format!("why {n}"))).collect();
    assert_eq!(found, wanted);

    assert_eq!(archive.note("copy".into()).await.unwrap(), None);
    for text in ["one", "two"] {
        archive
            .leave_note("copy".into(), text.into())
            .await
            .unwrap();
        assert_eq!(
            archive.note("copy".into()).await.unwrap().as_deref(),
            Some(text)
        );
    }
    // A note cannot reach what the archive says of itself.
    archive
        .leave_note("id".into(), "mine".into())
        .await
        .unwrap();
    assert_eq!(Some(archive.about().id), archive.id());
    assert_ne!(archive.about().id, "mine");
}
