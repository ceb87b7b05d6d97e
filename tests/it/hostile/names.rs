//! Knows: names that try to be somebody else's room, ten thousand of them. Never: frames.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Bystander;
use crate::figures::figure;
use crate::harness::client::{Client, Failure, publish_body};
use crate::harness::names::pieces;
use crate::harness::rig::Rig;
use crate::harness::{Rng, heavy, seed};

/// Rooms that are joined at once; below the limit of a connection.
const AT_ONCE: usize = 100;
const NAMES: usize = 10_000;

/// Marks of NATS and of Centrifugo; and plain ones so that names come close.
const OWN_PIECES: [&str; 14] = [
    "b",
    "A",
    "  ",
    "$JS",
    "$SYS",
    "$KV",
    "=24",
    "%2E",
    "\u{200b}",
    "\u{85}",
    "room",
    "log",
    "bystander",
    "chat",
];

/// Names in `chat`, all different, all allowed: NFC, and not limited to users by a `#`.
fn names(rng: &mut Rng) -> Vec<String> {
    let all_pieces = pieces(&OWN_PIECES);
    let mut names = BTreeSet::new();
    while names.len() < NAMES {
        let mut id = String::new();
        let count = match rng.below(20) {
            0 => 60 + rng.below(60),
            _ => 1 + rng.below(8),
        };
        for _ in 0..count {
            id.push_str(rng.pick(&all_pieces).unwrap());
        }
        let name = format!("chat:{id}");
        // Names whose token is a hash travel in a header, which cannot hold these (documented, 107).
        let escaped: usize = id
            .bytes()
            .map(|b| {
                if b.is_ascii_alphanumeric() || b == b'_' || b == b'-' {
                    1
                } else {
                    3
                }
            })
            .sum();
        let in_header = escaped > 200;
        let unsafe_there = name.contains(['\r', '\n', '\0']) || name.trim() != name;
        let ok = name.len() <= 255 && !(in_header && unsafe_there) && id != "bystander";
        if ok {
            names.insert(name);
        }
    }
    let mut names: Vec<_> = names.into_iter().collect();
    // Mixed, so that neighbours in the alphabet are not joined together only.
    for i in (1..names.len()).rev() {
        names.swap(i, rng.below(i as u64 + 1) as usize);
    }
    names
}

/// Joins rooms, publishes into each its own name, and takes exactly these back.
async fn visit(client: &mut Client, rooms: &[String], round: usize) {
    let mut waiting = Vec::new();
    for room in rooms {
        let body = serde_json::json!({ "channel": room }).to_string();
        waiting.push((client.send("subscribe", &body).await.unwrap(), room));
    }
    for (id, room) in waiting.drain(..) {
        client
            .reply(id)
            .await
            .unwrap_or_else(|failure| panic!("join {room:?}: {failure:?}"));
        client.take_join(id).unwrap();
    }
    for room in rooms {
        let data = serde_json::json!([round, room]).to_string();
        let id = client
            .send("publish", &publish_body(room, &data))
            .await
            .unwrap();
        waiting.push((id, room));
    }
    for (id, room) in waiting.drain(..) {
        client
            .reply(id)
            .await
            .unwrap_or_else(|failure| panic!("publish {room:?}: {failure:?}"));
    }
    let mut got = BTreeMap::new();
    while got.len() < rooms.len() {
        let next = client.publication(Duration::from_secs(20)).await;
        let (room, publication) = next.expect("every room's own message");
        let data: (usize, String) = serde_json::from_str(publication.data.get()).unwrap();
        assert_eq!(data, (round, room.clone()), "a message crossed rooms");
        assert!(got.insert(room, ()).is_none(), "twice");
    }
    for room in rooms {
        let body = serde_json::json!({ "channel": room }).to_string();
        waiting.push((client.send("unsubscribe", &body).await.unwrap(), room));
    }
    for (id, _) in waiting {
        client.reply(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_names_never_meet() {
    let _turn = heavy().await;
    let mut rng = Rng::new(seed("names", 81));
    let names = names(&mut rng);
    // The bystander answers pings only while it reads, which it does not for as long as this takes.
    let mut rig = Rig::servers(1, true, |config| {
        config
            .client
            .push_str("command_rate_limit = 0\nping_interval = \"0s\"\n");
    })
    .await;
    let bystander = Bystander::start(&rig).await;
    let mut client = rig.client("mallory").await;
    for (round, rooms) in names.chunks(AT_ONCE).enumerate() {
        visit(&mut client, rooms, round).await;
    }
    // And what is no name is refused, at once and by its code.
    for name in [
        "chat:e\u{301}",
        "chat:\u{1100}\u{1161}",
        "chat:\u{212b}",
        &"x".repeat(256),
    ] {
        let refused = client.subscribe(name, None).await.unwrap_err();
        assert!(
            matches!(refused, Failure::Error { code: 107, .. }),
            "{name:?}: {refused:?}"
        );
    }
    figure!("{} names", names.len());
    bystander.require_peace(&mut rig).await;
}
