//! Knows: an archive's file that is put back to an older copy: it is filled again from the log, and what the
//! log no longer has is told to operators and refused to clients.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::archive::ArchiveAt;
use crate::harness::client::{Position, publish_body};
use crate::harness::rig::Rig;
use crate::harness::{scan, until};

const ROOM: &str = "chat:r0";

async fn publish(rig: &Rig, numbers: std::ops::RangeInclusive<u32>) {
    let mut author = rig.client("author").await;
    for n in numbers {
        let body = publish_body(ROOM, &format!("{{\"n\":{n}}}"));
        let id = author.send("publish", &body).await.unwrap();
        author.reply(id).await.unwrap();
    }
}

async fn until_archived(rig: &Rig, newest: u64) {
    until("it is archived", Duration::from_secs(30), async || {
        rig.weir.archive().up_to().await >= newest
    })
    .await;
}

/// What a browser and a bot are told of a recovery, which must be the same.
async fn recovered(rig: &Rig, since: &Position) -> bool {
    let mut browser = rig.client("reader").await;
    let joined = browser.subscribe(ROOM, Some(since)).await.unwrap();
    let bot = rig.nats.client("bot").await;
    let body = json!({
        "since": { "offset": since.offset, "epoch": since.epoch },
        "recover": true,
        "limit": 100,
    });
    let answer = bot
        .request("history.bot.chat.r0", body.to_string().into())
        .await
        .unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer["recovered"], json!(joined.recovered), "{answer}");
    joined.recovered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_neither_a_copy_nor_the_log_has_is_told_and_refused() {
    let mut rig = Rig::servers(1, false, |config| config.archive = ArchiveAt::sqlite()).await;
    publish(&rig, 1..=20).await;
    until_archived(&rig, 20).await;
    rig.weir.stop();
    let file = rig.weir.archive().file().to_owned();
    let copy = file.with_extension("copy");
    std::fs::copy(&file, &copy).unwrap();
    rig.weir.spawn();
    rig.weir.until_ready().await;
    publish(&rig, 21..=50).await;
    until_archived(&rig, 50).await;
    assert_eq!(rig.weir.metric("weir_archive_holes").await, Some(0.0));
    rig.weir.stop();

    rig.weir.archive().lose().await;
    std::fs::copy(&copy, &file).unwrap();
    let generation = scan::generations(&rig.nats).await.pop().unwrap();
    let js = rig.nats.jetstream().await;
    let stream = js.get_stream(&generation.stream).await.unwrap();
    stream.purge().sequence(41).await.unwrap();
    rig.weir.spawn();
    rig.weir.until_ready().await;
    publish(&rig, 51..=60).await;
    until_archived(&rig, 60).await;

    let within = Duration::from_secs(20);
    let (holes, lost) = ("weir_archive_holes", "weir_archive_lost_messages");
    rig.weir
        .until_metric(lost, within, |lost| lost == 20.0)
        .await;
    rig.weir
        .until_metric(holes, within, |holes| holes == 1.0)
        .await;
    assert!(rig.weir.log().contains("weir::archive_hole"));
    let status = rig.weir.command("archive", &["status", "--json"]);
    let output = tokio::process::Command::from(status)
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let streams = status["streams"].as_array().unwrap();
    let own = streams
        .iter()
        .find(|one| one["stream"] == json!(generation.stream));
    let own = own.unwrap();
    assert_eq!(own["held"], json!([[1, 20], [41, 60]]), "{own}");
    assert_eq!(own["holes"], json!([[21, 40]]), "{own}");

    let at = |offset| Position {
        epoch: generation.epoch.clone(),
        offset,
    };
    for (offset, expected) in [(1, false), (20, false), (39, false), (40, true), (60, true)] {
        assert_eq!(
            recovered(&rig, &at(offset)).await,
            expected,
            "since {offset}"
        );
    }
    // Pages go over the hole in both directions.
    let mut client = rig.client("reader").await;
    let page = client
        .history(ROOM, Some(&at(0)), 100, false)
        .await
        .unwrap();
    let offsets: Vec<u64> = page.publications.iter().map(|one| one.offset).collect();
    let expected: Vec<u64> = (1..=20).chain(41..=60).collect();
    assert_eq!(offsets, expected);
    let page = client.history(ROOM, None, 100, true).await.unwrap();
    let offsets: Vec<u64> = page
        .publications
        .iter()
        .rev()
        .map(|one| one.offset)
        .collect();
    assert_eq!(offsets, expected);
    let mut rows = rig.weir.archive().rows().await;
    rows.sort_by_key(|row| row.offset);
    let texts: Vec<_> = rows
        .iter()
        .map(|row| String::from_utf8_lossy(&row.data).into_owned())
        .collect();
    let wanted: Vec<_> = expected.iter().map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(texts, wanted);
    rig.require_calm();
}
