//! What a bot is answered, and into which inbox.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_history::service::{Access, HistoryService};
use weir_history::{Reader, Window};
use weir_nats::message::stamp;
use weir_nats::{RoomName, Seq};

use crate::rig::{Kind, Rig, WITHIN, author, room, unique_id};

async fn serve(rig: &Rig, stop: &CancellationToken) -> Client {
    serve_from(rig, rig.reader(None), stop).await
}

async fn serve_from(rig: &Rig, reader: Reader, stop: &CancellationToken) -> Client {
    let policy = |user: &str, room: &RoomName| {
        if user == "bob" && room.namespace() == Some("chat") {
            let window = Window::default();
            Ok(Access {
                log: "rooms".into(),
                window,
            })
        } else {
            Err((103, "permission denied"))
        }
    };
    let may_answer = |user: &str, reply: &str| reply.starts_with(&format!("_INBOX.{user}."));
    let service = HistoryService::new(
        rig.links.door.clone(),
        reader,
        rig.placements.clone(),
        Arc::new(policy),
        Arc::new(may_answer),
        TaskTracker::new(),
    );
    tokio::spawn(service.run(stop.clone()));
    let address = rig.links.live.server_info();
    let bob = ConnectOptions::new()
        .custom_inbox_prefix("_INBOX.bob")
        .connect(format!("127.0.0.1:{}", address.port))
        .await
        .unwrap();
    until_there(&bob).await;
    bob
}

/// Waits until the service answers.
pub(crate) async fn until_there(client: &Client) {
    let deadline = tokio::time::Instant::now() + WITHIN;
    while client.request("$SRV.PING", "".into()).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the service is up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ask(client: &Client, subject: &str, body: Value) -> Value {
    let answer = client
        .request(subject.to_owned(), body.to_string().into())
        .await
        .unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bot_reads_back_page_by_page_and_recovers() {
    let rig = Rig::new().await;
    let stop = CancellationToken::new();
    let bob = serve(&rig, &stop).await;
    let lobby = room("chat:lobby");
    rig.publish(std::slice::from_ref(&lobby), 250).await;
    let subject = "history.bob.chat.lobby";
    let (mut since, mut count) = (0, 0);
    let epoch = loop {
        let body = json!({ "since": { "offset": since, "epoch": "" }, "limit": 100 });
        let answer = ask(&bob, subject, body).await;
        let page = answer["publications"].as_array().unwrap();
        for publication in page {
            assert!(publication["offset"].as_u64().unwrap() > since);
            since = publication["offset"].as_u64().unwrap();
            assert_eq!(publication["data"]["n"], count);
            assert_eq!(publication["user"], "ann");
            count += 1;
        }
        assert_eq!(answer["whole"], true);
        if answer["more"] == false {
            break answer["epoch"].as_str().unwrap().to_owned();
        }
    };
    assert_eq!(count, 250);
    let recover = |epoch: &str, offset: u64| json!({ "since": { "offset": offset, "epoch": epoch }, "recover": true });
    let answer = ask(&bob, subject, recover(&epoch, since - 3)).await;
    assert_eq!(answer["recovered"], true);
    assert_eq!(answer["publications"].as_array().unwrap().len(), 3);
    let answer = ask(&bob, subject, recover("other", since - 3)).await;
    assert_eq!(answer["recovered"], false);
    assert!(answer["publications"].as_array().unwrap().is_empty());
    let newest = ask(&bob, subject, json!({ "limit": 2, "reverse": true })).await;
    assert_eq!(newest["publications"][0]["offset"], since);
    assert_eq!(newest["offset"], since);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_comes_back_byte_for_byte() {
    let rig = Rig::new().await;
    let stop = CancellationToken::new();
    let bob = serve(&rig, &stop).await;
    let lobby = room("chat:lobby");
    let json_text = r#"{"z":1.0,"a":123456789012345678901234567890,"a":"twice"}"#;
    for data in [json_text.as_bytes(), b"\xff\x00no json"] {
        let headers = stamp(&lobby, &author(), &Default::default(), &unique_id());
        let subject = lobby.stored_subject("rooms");
        let ack = rig.js.publish_with_headers(subject, headers, data.into());
        ack.await.unwrap().await.unwrap();
    }
    let answer = bob.request("history.bob.chat.lobby", r#"{"since":{}}"#.into());
    let answer = answer.await.unwrap().payload;
    let text = std::str::from_utf8(&answer).unwrap();
    assert!(text.contains(&format!(r#""data":{json_text}"#)), "{text}");
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let bytes = answer["publications"][1]["b64data"].as_str().unwrap();
    let bytes = data_encoding::BASE64.decode(bytes.as_bytes()).unwrap();
    assert_eq!(bytes, b"\xff\x00no json");
    stop.cancel();
}

for_each_archive! {
    a_bot_reads_by_time_and_is_told_what_there_is,
}

async fn a_bot_reads_by_time_and_is_told_what_there_is(kind: Kind) {
    let rig = Rig::on(kind).await;
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    let stop = CancellationToken::new();
    let bob = serve_from(&rig, rig.reader(Some(&archive)), &stop).await;
    let lobby = room("chat:lobby");
    let subject = "history.bob.chat.lobby";
    for _ in 0..3 {
        rig.publish(std::slice::from_ref(&lobby), 20).await;
        // Not to wait for anything: so that the times of the bursts differ.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.archived(&archive).await;
    drop(worker);
    rig.trim(10).await;
    rig.publish(std::slice::from_ref(&lobby), 20).await;
    let numbers = |answer: &Value| -> Vec<(u64, i64)> {
        let page = answer["publications"].as_array().unwrap();
        let number = |one: &Value| {
            (
                one["offset"].as_u64().unwrap(),
                one["time"].as_i64().unwrap(),
            )
        };
        page.iter().map(number).collect()
    };
    let everything = ask(&bob, subject, json!({ "limit": -1 })).await;
    let all = numbers(&everything);
    assert_eq!(all.len(), 80);
    let (from, until) = (all[25].1, all[70].1);
    let mut expected = all.clone();
    expected.retain(|(_, time)| (from..until).contains(time));
    let body = json!({ "since_time": from, "until_time": until });
    assert_eq!(numbers(&ask(&bob, subject, body).await), expected);
    let body = json!({ "since_time": from, "until_time": until, "reverse": true, "limit": 5 });
    let answer = ask(&bob, subject, body).await;
    expected.reverse();
    assert_eq!(numbers(&answer), expected[..5]);
    assert_eq!(
        (&answer["more"], &answer["whole"]),
        (&json!(true), &json!(true))
    );
    // In pages of less than a message's worth there is always one.
    let before = expected[4].0;
    let body = json!({ "since": { "offset": before }, "reverse": true, "since_time": from });
    assert_eq!(numbers(&ask(&bob, subject, body).await), expected[5..]);

    // Wrong requests are answered with what there is, as errors of NATS micro services, too.
    let answer = bob
        .request(subject, r#"{"since_tme":1}"#.into())
        .await
        .unwrap();
    let headers = answer.headers.unwrap();
    let header = |name: &str| headers.get(name).unwrap().as_str().to_owned();
    assert_eq!(header("Nats-Service-Error-Code"), "107");
    assert!(header("Nats-Service-Error").contains("`since_time`"));
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    let text = answer["error"]["message"].as_str().unwrap();
    assert!(
        text.contains("`since_tme`") && text.contains("`until_time`"),
        "{text}"
    );
    assert_eq!(answer["error"]["temporary"], false);

    // It describes itself, and what it did.
    let info = ask(&bob, "$SRV.INFO.weir-history", json!({})).await;
    assert_eq!(info["endpoints"][0]["subject"], "history.*.*.*");
    let schema = info["endpoints"][0]["metadata"]["request_schema"].as_str();
    assert!(schema.unwrap().contains("since_time"));
    let stats = ask(&bob, "$SRV.STATS.weir-history", json!({})).await;
    let endpoint = &stats["endpoints"][0];
    assert_eq!(endpoint["num_requests"], 5);
    assert_eq!(endpoint["num_errors"], 1);
    assert!(endpoint["average_processing_time"].as_u64().unwrap() > 0);
    assert!(
        endpoint["last_error"]
            .as_str()
            .unwrap()
            .contains("since_tme")
    );
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_and_inboxes_are_kept() {
    let rig = Rig::new().await;
    let stop = CancellationToken::new();
    let bob = serve(&rig, &stop).await;
    let codes = [
        ("history.bob.chat.lobby", "{\"limit\":-2}", 107),
        ("history.bob.chat.lobby", "{\"unknown\":1}", 107),
        ("history.bob.chat.lobby", "no json", 107),
        ("history.bob.chat.=61", "", 107),
        ("history.bob.other.lobby", "", 103),
    ];
    for (subject, body, code) in codes {
        let answer = bob.request(subject, body.into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(answer["error"]["code"], code, "{subject} {body}");
    }
    // Not into a log, a room or another's inbox.
    let before = rig.last().await;
    let mut all = rig.links.live.subscribe(">").await.unwrap();
    rig.links.live.flush().await.unwrap();
    for reply in [
        "log.rooms.20.chat.lobby",
        "room.chat.lobby",
        "_INBOX.ann.1",
        "_INBOX.bobby.1",
    ] {
        bob.publish_with_reply("history.bob.chat.lobby", reply, "{}".into())
            .await
            .unwrap();
    }
    bob.request("history.bob.chat.lobby", "{}".into())
        .await
        .unwrap();
    bob.publish("end.of.test", "".into()).await.unwrap();
    while let Some(message) = all.next().await {
        let subject = message.subject.as_str();
        if subject == "end.of.test" {
            break;
        }
        let is_answer = !subject.starts_with("history.");
        let to_bob = subject.starts_with("_INBOX.bob.") || subject.starts_with("_INBOX.test.");
        assert!(
            !is_answer || to_bob || subject.starts_with("$JS."),
            "{subject}"
        );
    }
    assert_eq!(rig.last().await, before);
    assert_eq!(before, Seq::ZERO);
    stop.cancel();
}
