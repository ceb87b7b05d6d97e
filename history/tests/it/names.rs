//! Every room name that there can be, and every payload, comes back from stream and archive as it
//! went in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_nats::ConnectOptions;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_history::Window;
use weir_history::service::{Access, HistoryService};
use weir_nats::message::stamp;
use weir_nats::{NameError, RoomName, Seq};

use crate::names_support::pieces;
use crate::rig::{Kind, Rig, Rng, all_backward, all_forward, author, either, pairs, unique_id};

for_each_archive! {
    every_name_and_every_payload_comes_back,
}

/// Marks of SQL and CQL, and a piece of each of many scripts.
const OWN_PIECES: [&str; 34] = [
    "Z",
    "\u{1}",
    "$$",
    "''",
    "\"\"",
    ";",
    "--",
    "/*",
    "*/",
    "#",
    "%",
    "?",
    "?1",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "%s",
    "`",
    "|",
    "'; DROP TABLE messages; --",
    "' OR 1=1 --",
    "BEGIN BATCH",
    "ß",
    "Ж",
    "λ",
    "א",
    "ع",
    "ह",
    "ไ",
    "한",
    "あ",
];

/// Different names of rooms that are allowed, from 1 to 255 bytes.
fn names(rng: &mut Rng, count: usize) -> Vec<RoomName> {
    let all_pieces = pieces(&OWN_PIECES);
    let mut names = BTreeSet::new();
    // The shortest, and all lengths at which something changes.
    for text in ["a", "'", "\"", "\0", ";", "\\", "é"] {
        names.insert(RoomName::parse(text).unwrap());
    }
    for bytes in [199, 200, 201, 202, 250] {
        names.insert(RoomName::parse(&format!("chat:{}", "x".repeat(bytes))).unwrap());
    }
    names.insert(RoomName::parse(&"';\"".repeat(85)).unwrap());
    while names.len() < count {
        let namespace = rng.pick(&["", "", "chat:", "Other_9-:", "$chat:"]).unwrap();
        let longest = if rng.below(10) == 0 { 120 } else { 6 };
        let count = 1 + rng.below(longest);
        let id: String = (0..count).filter_map(|_| rng.pick(&all_pieces)).collect();
        match RoomName::parse(&format!("{namespace}{id}")) {
            Ok(name) => {
                names.insert(name);
            }
            // Refused at the door, so nothing of it is ever stored.
            Err(
                NameError::TooLong
                | NameError::BadNamespace
                | NameError::NotHeaderSafe
                | NameError::NotNfc
                | NameError::Empty,
            ) => {}
            Err(error) => panic!("{namespace}{id:?}: {error}"),
        }
    }
    names.into_iter().collect()
}

/// Payloads that hold every byte, all alone, together, and none.
fn payload(rng: &mut Rng, nth: usize) -> Bytes {
    match nth % 4 {
        0 => Bytes::from(vec![u8::try_from(nth / 4 % 256).unwrap()]),
        1 => (0..=255).collect::<Vec<u8>>().into(),
        2 => {
            let length = rng.below(2_000);
            (0..length)
                .map(|_| rng.below(256) as u8)
                .collect::<Vec<u8>>()
                .into()
        }
        _ => Bytes::new(),
    }
}

async fn every_name_and_every_payload_comes_back(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let _worker = rig.work(&archive);
    let mut rng = Rng::new(10);
    let rooms = names(&mut rng, either(400, 4_000));
    let lengths: BTreeSet<usize> = rooms.iter().map(|room| room.channel().len()).collect();
    assert!(lengths.contains(&1) && lengths.contains(&255) && lengths.len() > 40);
    let mut stored: BTreeMap<RoomName, Vec<(Seq, Bytes)>> = BTreeMap::new();
    for nth in 0..rooms.len() * 3 {
        let (room, data) = (&rooms[nth * 7 % rooms.len()], payload(&mut rng, nth));
        let headers = stamp(room, &author(), &BTreeMap::new(), &unique_id());
        let subject = room.stored_subject("rooms");
        let ack = rig.js.publish_with_headers(subject, headers, data.clone());
        let seq = Seq::new(ack.await.unwrap().await.unwrap().sequence);
        stored.entry(room.clone()).or_default().push((seq, data));
    }
    rig.archived(&archive).await;
    assert!(archive.quarantined(None, 10).await.unwrap().is_empty());
    assert_eq!(rig.row_count().await, rooms.len() as u64 * 3);
    // From the archive alone.
    rig.trim(1).await;
    let reader = rig.reader(Some(&archive));
    for (room, published) in &stored {
        let place = rig.place(room);
        let forward = all_forward(&reader, &place, room, Seq::ZERO, 2).await;
        assert_eq!((&forward.0, forward.1), (published, true), "{room:?}");
        let backward = all_backward(&reader, &place, room, 50).await;
        assert_eq!((&backward.0, backward.1), (published, true), "{room:?}");
        let page = reader.forward(&place, room, Seq::ZERO, None, 1, 1 << 20);
        let page = page.await.unwrap();
        assert_eq!(page.messages[0].author, Some(author()));
        assert_eq!(pairs(&page.messages), published[..1]);
    }

    // And through the service, in the tokens and headers of a bot.
    let stop = CancellationToken::new();
    let policy = |_: &str, _: &RoomName| {
        Ok(Access {
            log: "rooms".into(),
            window: Window::default(),
        })
    };
    let service = HistoryService::new(
        rig.links.door.clone(),
        reader,
        rig.placements.clone(),
        Arc::new(policy),
        Arc::new(|_: &str, _: &str| true),
        TaskTracker::new(),
    );
    tokio::spawn(service.run(stop.clone()));
    let address = format!("127.0.0.1:{}", rig.links.live.server_info().port);
    let bot = ConnectOptions::new().connect(address).await.unwrap();
    crate::service::until_there(&bot).await;
    for (room, published) in &stored {
        let (ns, id) = room.tokens();
        let subject = format!("history.bot.{ns}.{id}");
        // The true name travels in a header where the token is a hash, as with every stamp.
        let headers = stamp(room, &author(), &BTreeMap::new(), "asked");
        let body = json!({ "since": { "offset": 0 } }).to_string();
        let answer = bot.request_with_headers(subject, headers, body.into());
        let answer = answer.await.unwrap().payload;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let publications = answer["publications"].as_array().unwrap();
        let got = publications.iter().map(|publication| {
            let seq = Seq::new(publication["offset"].as_u64().unwrap());
            let data = match publication["b64data"].as_str() {
                Some(text) => data_encoding::BASE64.decode(text.as_bytes()).unwrap(),
                None => publication["data"].to_string().into_bytes(),
            };
            (seq, Bytes::from(data))
        });
        assert_eq!(&got.collect::<Vec<_>>(), published, "{room:?}");
    }
    stop.cancel();
}
