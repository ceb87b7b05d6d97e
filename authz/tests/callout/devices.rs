//! Knows: what each role may do over MQTT, at every QoS, retained and as a will; and that what is forbidden arrives nowhere,
//! is kept nowhere and is in the server's log, though it is acknowledged. Never: how rights are rendered.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::figures::figure;
use crate::mqtt::Mqtt;
use crate::roles::{ROLES, closed, with_caps};
use crate::server::{PATIENCE, Server};

/// Each with the subjects that it is in NATS.
const FILTERS: [(&str, &[&str]); 18] = [
    ("#", &[">"]),
    ("+", &["*"]),
    ("+/+/+", &["*.*.*"]),
    ("log/#", &["log.>"]),
    ("$JS/#", &["$JS.>"]),
    ("$JS/API/#", &["$JS.API.>"]),
    ("$KV/#", &["$KV.>"]),
    ("$SYS/#", &["$SYS.>"]),
    ("$MQTT/#", &["$MQTT.>"]),
    ("_INBOX/#", &["_INBOX.>"]),
    ("say/#", &["say.>"]),
    ("room/#", &["room.>"]),
    ("room/+/a", &["room.*.a"]),
    ("room/other/a", &["room.other.a"]),
    ("room/vip/a", &["room.vip.a"]),
    ("room/vip/#", &["room.vip", "room.vip.>"]),
    ("who/vip/a", &["who.vip.a"]),
    ("room/=24vip/a", &["room.=24vip.a"]),
];
const TOPICS: [&str; 14] = [
    "log/rooms/1/vip/a",
    "room/vip/a",
    "eph/vip/a",
    "who/vip/a",
    "weir/disconnect",
    "$JS/API/STREAM/CREATE/X",
    "$JS/API/STREAM/PURGE/ROOMS_0",
    "$KV/weir/erase/x",
    "_INBOX/weir/x",
    "say/bot/vip/a",
    "say/ann/other/a",
    "say/ann/vip/a",
    "history/ann/vip/a",
    "say/ann/=24vip/a",
];
/// QoS, and whether it is to be retained.
const WAYS: [(u8, bool); 5] = [(0, false), (1, false), (2, false), (0, true), (1, true)];
const MAY_NOT: u8 = 128;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_may_do_its_own_and_what_is_forbidden_arrives_nowhere() {
    let server = Server::start().await;
    let callout = server.callout(closed()).await;
    let all = server.user("test").await.unwrap();
    let mut everything = all.subscribe(">").await.unwrap();
    all.flush().await.unwrap();
    let (mut cells, mut expected, mut refused) = (0, BTreeSet::new(), BTreeSet::new());
    for role in ROLES {
        let token = with_caps(role.caps);
        let device = Mqtt::connect(server.mqtt_port, "ann:1", "ann", &token).await;
        let mut device = device.ok().unwrap();
        for (filter, subjects) in FILTERS {
            let may = subjects.iter().all(|subject| role.hear.contains(subject));
            let granted = if may { 0 } else { MAY_NOT };
            assert_eq!(
                device.subscribe(filter).await,
                granted,
                "{}: {filter}",
                role.name
            );
            cells += 1;
        }
        for topic in TOPICS {
            let subject = topic.replace('/', ".");
            let may = role.publish.contains(&subject.as_str());
            for (qos, retain) in WAYS {
                let payload = format!("{} {} {topic} {qos} {retain}", word(may), role.name);
                device.publish(topic, &payload, qos, retain).await;
                if may {
                    expected.insert(payload);
                } else {
                    refused.insert(subject.clone());
                }
                cells += 1;
            }
            let payload = format!("{} {} {topic} will", word(may), role.name);
            let will = Some((topic, payload.as_str()));
            let port = server.mqtt_port;
            let dying = Mqtt::connect_with_will(port, "ann:2", "ann", &token, will).await;
            drop(dying.ok().unwrap());
            if may {
                expected.insert(payload);
            }
            cells += 1;
        }
    }
    // What was allowed arrives where it was said, once; the wills when the server has seen that they are dead.
    let mut missing = expected.clone();
    let hears = async {
        while !missing.is_empty() {
            let message = everything.next().await.unwrap();
            let payload = String::from_utf8_lossy(&message.payload).into_owned();
            require_own(&message.subject, &payload);
            missing.remove(&payload);
        }
    };
    let heard = tokio::time::timeout(PATIENCE, hears).await;
    assert!(heard.is_ok(), "not heard: {missing:?}");
    // Each of the wills that were forbidden is in the log as well, besides what was published.
    let (each, start) = (WAYS.len() + 1, Instant::now());
    let violations = |log: &str, subject: &str| {
        log.matches(&format!("- Publish Violation - Subject \"{subject}\""))
            .count()
    };
    for subject in &refused {
        let roles = ROLES
            .iter()
            .filter(|role| !role.publish.contains(&subject.as_str()));
        let wanted = each * roles.count();
        while violations(&server.log(), subject) < wanted {
            assert!(start.elapsed() < PATIENCE, "{subject}: {}", server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    all.publish("end", "end".into()).await.unwrap();
    loop {
        let message = everything.next().await.unwrap();
        if message.subject.as_str() == "end" {
            break;
        }
        require_own(&message.subject, &String::from_utf8_lossy(&message.payload));
    }
    require_nothing_kept(&jetstream::new(all.clone())).await;
    figure!(
        "{cells} cells of {} roles over MQTT, {} allowed publishes",
        ROLES.len(),
        expected.len()
    );

    // A live message reaches the one that may read.
    let token = with_caps(ROLES[1].caps);
    let device = Mqtt::connect(server.mqtt_port, "ann:3", "ann", &token).await;
    let mut device = device.ok().unwrap();
    assert_eq!(device.subscribe("room/vip/a").await, 0);
    all.publish("room.vip.a", "hi".into()).await.unwrap();
    assert_eq!(
        device.message().await,
        ("room/vip/a".to_owned(), "hi".to_owned())
    );
    callout.stop().await;
}

fn word(may: bool) -> &'static str {
    if may { "allowed" } else { "forbidden" }
}

/// What is forbidden is only where a sender's own QoS 2 is held until it is released.
fn require_own(subject: &str, payload: &str) {
    let is_held = subject.starts_with("$MQTT.qos2.in.");
    assert!(
        is_held || !payload.contains("forbidden"),
        "{subject}: {payload}"
    );
}

async fn require_nothing_kept(js: &jetstream::Context) {
    let names: Vec<String> = js.stream_names().try_collect().await.unwrap();
    assert!(names.contains(&"$MQTT_msgs".to_owned()), "{names:?}");
    for name in names {
        let mut stream = js.get_stream(&name).await.unwrap();
        let state = stream.info().await.unwrap().state.clone();
        for sequence in state.first_sequence..=state.last_sequence {
            // Some are gone.
            if let Ok(message) = stream.get_raw_message(sequence).await {
                let payload = String::from_utf8_lossy(&message.payload);
                assert!(
                    !payload.contains("forbidden"),
                    "{name}: {} {payload}",
                    message.subject
                );
            }
        }
    }
}
