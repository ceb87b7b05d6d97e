//! Knows: a bot that recovers over NATS gets exactly what a browser gets: the same verdict, the same messages.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::client::{Failure, Position, publish_body};
use crate::harness::rig::Rig;
use crate::harness::{scan, until};

/// A verdict, and what came with it: offset and payload.
type Got = (bool, Vec<(u64, String)>);

async fn publish(rig: &Rig, room: &str, numbers: std::ops::Range<u32>) {
    let mut author = rig.client("author").await;
    let mut waiting = Vec::new();
    for n in numbers {
        let body = publish_body(room, &format!("{{\"n\":{n}}}"));
        waiting.push(author.send("publish", &body).await.unwrap());
    }
    for id in waiting {
        author.reply(id).await.unwrap();
    }
}

/// As a browser's SDK does: what is in the reply, then what is pushed.
async fn browser(rig: &Rig, room: &str, since: &Position, expected: usize) -> Got {
    let mut client = rig.client("reader").await;
    let joined = loop {
        match client.subscribe(room, Some(since)).await {
            Ok(joined) => break joined,
            // While a log moves; SDKs try again, too.
            Err(Failure::Error {
                temporary: true, ..
            }) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(failure) => panic!("{room}: {failure:?}"),
        }
    };
    assert!(joined.was_recovering);
    let mut got: Vec<_> = joined.publications.into_iter().collect();
    while joined.recovered && got.len() < expected {
        let (_, publication) = client
            .publication(Duration::from_secs(10))
            .await
            .expect("the rest is pushed");
        got.push(publication);
    }
    let got = got
        .into_iter()
        .map(|one| (one.offset, one.data.get().to_owned()));
    (joined.recovered, got.collect())
}

/// Page by page, until there are no more.
async fn bot(rig: &Rig, room: &str, since: &Position, limit: i64) -> Got {
    let client = rig.nats.client("bot").await;
    let (ns, id) = room.split_once(':').unwrap();
    let (mut since, mut got) = (since.clone(), Vec::new());
    loop {
        let body = json!({
            "since": { "offset": since.offset, "epoch": since.epoch },
            "recover": true,
            "limit": limit,
        });
        let answer = client
            .request(format!("history.bot.{ns}.{id}"), body.to_string().into())
            .await
            .unwrap();
        assert!(answer.payload.len() <= 512 << 10);
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        if answer["error"]["temporary"] == true {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        assert!(answer["error"].is_null(), "{answer}");
        let recovered = answer["recovered"].as_bool().unwrap();
        for publication in answer["publications"].as_array().unwrap() {
            since.offset = publication["offset"].as_u64().unwrap();
            got.push((since.offset, publication["data"].to_string()));
        }
        if answer["more"] == false {
            return (recovered, got);
        }
    }
}

/// Asserts that both get the same, and that it is this.
async fn both(rig: &Rig, room: &str, since: &Position, expected: &[u32], recovered: bool) {
    let expected: Vec<_> = expected.iter().map(|n| format!("{{\"n\":{n}}}")).collect();
    let one = browser(rig, room, since, expected.len()).await;
    assert_eq!(one.0, recovered, "{room} since {since:?}");
    let payloads: Vec<_> = one.1.iter().map(|(_, data)| data.clone()).collect();
    assert_eq!(payloads, expected, "{room} since {since:?}");
    for limit in [7, 100, -1] {
        let other = bot(rig, room, since, limit).await;
        assert_eq!(other, one, "{room} since {since:?} by {limit}");
    }
}

async fn head(rig: &Rig, room: &str) -> Position {
    let mut client = rig.client("reader").await;
    let page = client.history(room, None, 0, false).await.unwrap();
    Position {
        epoch: page.epoch,
        offset: page.offset,
    }
}

async fn until_archived(rig: &Rig) {
    let newest = scan::stream(&rig.nats).await.last().unwrap().offset;
    until("it is archived", Duration::from_secs(60), async || {
        rig.weir.archive().up_to().await >= newest
    })
    .await;
}

/// Cuts the stream to its last messages.
async fn trim(rig: &Rig, keep: i64) {
    let js = rig.nats.jetstream().await;
    let name = scan::generations(&rig.nats).await.pop().unwrap().stream;
    let mut stream = js.get_stream(&name).await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_messages = keep;
    js.update_stream(config.clone()).await.unwrap();
    config.max_messages = -1;
    js.update_stream(config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_and_out_of_the_window_across_a_hole_and_an_epoch() {
    let mut rig = Rig::servers(1, false, |config| {
        config.more.push_str(
            "[[channel.namespaces]]\nname = \"small\"\nhistory_size = 10\nforce_recovery = true\n\
             allow_subscribe_for_client = true\nallow_publish_for_client = true\n\
             allow_history_for_client = true\n",
        );
    })
    .await;
    let room = "chat:r0";
    publish(&rig, room, 0..1).await;
    let begin = head(&rig, room).await;
    publish(&rig, room, 1..400).await;
    let end = head(&rig, room).await;
    let at = |offset: u64| Position {
        offset,
        ..begin.clone()
    };
    let numbers: Vec<u32> = (0..400).collect();
    let any = Position::default();
    let foreign = Position {
        epoch: "foreign".to_owned(),
        ..begin.clone()
    };
    let after = |offset: u64| &numbers[usize::try_from(offset).unwrap()..];

    // From the stream, then from the archive and the stream.
    for round in 0..2 {
        if round == 1 {
            until_archived(&rig).await;
            Box::pin(trim(&rig, 50)).await;
        }
        both(&rig, room, &begin, after(1), true).await;
        both(&rig, room, &any, after(0), true).await;
        both(&rig, room, &at(390), after(390), true).await;
        both(&rig, room, &end, &[], true).await;
        both(&rig, room, &at(end.offset + 1_000), &[], false).await;
        both(&rig, room, &foreign, &[], false).await;
    }

    // A namespace that shows the newest ten.
    let room = "small:r0";
    publish(&rig, room, 0..1).await;
    let small = head(&rig, room).await;
    publish(&rig, room, 1..11).await;
    let ten: Vec<u32> = (1..11).collect();
    both(&rig, room, &small, &ten, true).await;
    publish(&rig, room, 11..12).await;
    both(&rig, room, &small, &[], false).await;

    // The archive is lost, and holds what the stream still had.
    let room = "chat:r0";
    until_archived(&rig).await;
    rig.weir.stop();
    rig.weir.archive().lose().await;
    rig.weir.spawn();
    rig.weir.until_ready().await;
    until_archived(&rig).await;
    both(&rig, room, &begin, &[], false).await;
    both(&rig, room, &at(385), after(385), true).await;

    // The stream is lost: another epoch.
    let generation = scan::generations(&rig.nats).await.pop().unwrap();
    let js = rig.nats.jetstream().await;
    js.delete_stream(&generation.stream).await.unwrap();
    until("a new epoch", Duration::from_secs(60), async || {
        let newest = scan::generations(&rig.nats).await.pop().unwrap();
        newest.epoch != generation.epoch && rig.weir.ready().await
    })
    .await;
    both(&rig, room, &at(385), &[], false).await;
    publish(&rig, room, 400..401).await;
    let new = head(&rig, room).await;
    assert_ne!(new.epoch, begin.epoch);
    publish(&rig, room, 401..420).await;
    let late: Vec<u32> = (401..420).collect();
    both(&rig, room, &new, &late, true).await;
    rig.require_calm();
}
