//! Knows: services that lie, hang, flood or are absent: error 100, nothing opened, nobody else held up. Never: what
//! they would have decided.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::{
    Backend, Client, Duration, Failure, Over, Play, Reply, WITHIN, application, configure, connect,
    json, rig, until, value,
};
use crate::figures::figure;
use crate::harness::rig::Rig;

/// Never left alone, so that each case is asked.
const PATIENT: &str = "[hooks]\nbreaker_failures = 1000000\n";

fn is_temporary(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Error {
            code: 100,
            temporary: true,
            ..
        }
    )
}

/// Answers that are none, to any question.
fn lies() -> Vec<Reply> {
    let mut lies: Vec<Reply> = [
        "",
        "ok",
        "null",
        "true",
        "{}",
        "[]",
        "{\"result\":null}",
        "{\"result\":[]}",
        "{\"result\":true}",
        "{\"result\":{\"user\":56,\"info\":1}}",
        "{\"result\":{\"user\":\"\\u0000\"}}",
        "{\"result\":{\"user\":\"ann\",\"user\":\"bob\"}}",
        "{\"result\":{\"user\":\"mallory\",\"channel\":\"ask:other\",\"expire_at\":\"never\"}}",
        "{\"result\":{\"user\":\"ann\",\"channel\":1}}",
        "{\"result\":{\"user\":\"ann\",\"b64info\":\"%\",\"b64data\":\"%\"}}",
        "{\"error\":{\"code\":0,\"message\":\"no\"}}",
        "{\"error\":{\"code\":108,\"message\":\"no\"}}",
        "{\"error\":{\"code\":109,\"message\":\"no\"}}",
        "{\"error\":{\"code\":2000}}",
        "{\"error\":\"no\"}",
        "{\"result\":{\"user\":\"ann\"},\"error\":{\"code\":5}}",
        "{\"disconnect\":{\"code\":1000}}",
        "{\"disconnect\":{\"code\":3005}}",
        "{\"disconnect\":{\"code\":5000}}",
        "{\"result\":{\"user\":\"ann\"}",
        "{\"result\":{\"user\":\"ann\"}} {}",
        "<html>",
    ]
    .map(|text| Reply::Text(text.to_owned()))
    .to_vec();
    let long = value!({ "result": { "user": "ann", "data": "x".repeat(700_000) } });
    lies.push(json(&long));
    lies
}

async fn lied_to(over: Over) {
    let play = Play::new(application);
    let (rig, _backend) = rig(over, &play, PATIENT, "").await;
    let address = rig.weir.address();
    let (mut ann, _) = connect(&address, value!({ "as": "ann" })).await.unwrap();
    let mut all = lies();
    if over == Over::Http {
        all.extend([204, 301, 302, 307, 401, 403, 404, 500, 503].map(Reply::Status));
    }
    for lie in &all {
        let text = format!("{lie:?}");
        let text = &text[..text.len().min(120)];
        let told = lie.clone();
        play.now(move |_| told.clone());
        let failure = connect(&address, value!({ "as": "ann" })).await.err();
        // An answer about somebody in particular is one to a connect.
        let is_somebody =
            matches!(lie, Reply::Text(body) if body.contains("\"user\":\"ann\",\"channel\":1"));
        if !is_somebody {
            assert!(is_temporary(&failure.unwrap()), "connect: {text}");
        }
        let failure = ann.subscribe("ask:in", None).await.unwrap_err();
        assert!(is_temporary(&failure), "subscribe: {text}: {failure:?}");
        let failure = ann.publish("ask:in", "1").await.unwrap_err();
        assert!(is_temporary(&failure), "publish: {text}: {failure:?}");
    }
    // About another room, or another user, than was asked.
    for about in [
        value!({ "channel": "ask:other" }),
        value!({ "user": "bob" }),
    ] {
        play.now(move |_| json(&value!({ "result": about })));
        for room in ["ask:in", "asked-loose:in"] {
            assert!(is_temporary(&ann.subscribe(room, None).await.unwrap_err()));
            assert!(is_temporary(&ann.publish(room, "1").await.unwrap_err()));
        }
    }
    // What would be published in its place is no JSON, and what must not be stored cannot be.
    for result in [
        value!({ "b64data": "eA==" }),
        value!({ "skip_history": true }),
    ] {
        play.now(move |_| json(&value!({ "result": result })));
        assert!(is_temporary(&ann.publish("ask:in", "1").await.unwrap_err()));
    }
    let page = ann.history("ask:in", None, 10, false).await.unwrap();
    assert!(page.publications.is_empty(), "nothing was published");
    ann.publish("chat:r0", "1").await.unwrap();
    let broken = rig.weir.metric("weir_edge_hook_failures").await.unwrap();
    assert!(broken >= (all.len() * 3 - 1) as f64, "{broken}");
    figure!("{} answers that are none over {over:?}", all.len());
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_lies_opens_nothing_over_nats() {
    Box::pin(lied_to(Over::Nats)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_lies_opens_nothing_over_http() {
    Box::pin(lied_to(Over::Http)).await;
}

/// How long `work` took.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (work.await, start.elapsed())
}

/// The services hang for `ask`, and nobody else waits: not the other commands of the connection, not a namespace
/// with a service of its own, not others.
async fn hung_up(over: Over) {
    let play = Play::new(application);
    let more = format!("{PATIENT}connection_in_flight_limit = 5\nin_flight_limit = 8\n");
    let (rig, _backend) = rig(over, &play, &more, "").await;
    let address = rig.weir.address();
    let (mut ann, _) = connect(&address, value!({ "as": "ann" })).await.unwrap();
    let (mut bob, _) = connect(&address, value!({ "as": "bob" })).await.unwrap();
    play.now(|asked| {
        let channel = asked.body["channel"].as_str().unwrap_or_default();
        if channel.starts_with("ask:") {
            Reply::Hang
        } else {
            application(asked)
        }
    });
    let start = Instant::now();
    let mut waiting = Vec::new();
    for n in 0..3 {
        let body = format!("{{\"channel\":\"ask:s{n}\"}}");
        waiting.push(ann.send("subscribe", &body).await.unwrap());
    }
    for _ in 0..2 {
        let body = "{\"channel\":\"ask:in\",\"data\":1}";
        waiting.push(ann.send("publish", body).await.unwrap());
    }
    let one_more = ann.publish("ask:in", "1").await.unwrap_err();
    assert_eq!(one_more.code(), 111, "{one_more:?}");
    // Beside all that, of this connection and of another.
    ann.subscribe("chat:r0", None).await.unwrap();
    ann.publish("chat:r0", "1").await.unwrap();
    ann.history("chat:r0", None, 1, false).await.unwrap();
    let (joined, took) = timed(bob.subscribe("vip:in", None)).await;
    joined.unwrap();
    bob.publish("vip:in", "1").await.unwrap();
    // What was asked is still open, so none of this waited for it.
    let answered = waiting.iter().find(|id| ann.take_reply(**id).is_some());
    let hung = start.elapsed();
    assert!(
        answered.is_none() || hung > Duration::from_secs(1),
        "{answered:?} after {hung:?}"
    );
    for id in waiting {
        assert!(is_temporary(&ann.reply(id).await.unwrap_err()));
    }
    let all = start.elapsed();
    assert!(
        all >= Duration::from_secs(1),
        "the time-out is 1 s: {all:?}"
    );
    assert!(all < Duration::from_secs(5), "they waited at once: {all:?}");
    // A place that was given back is free again, and what was given up stays so.
    let id = ann
        .send("subscribe", "{\"channel\":\"ask:s0\"}")
        .await
        .unwrap();
    assert_eq!(ann.subscribe("ask:s0", None).await.unwrap_err().code(), 105);
    ann.call("unsubscribe", value!({ "channel": "ask:s0" }))
        .await
        .unwrap();
    play.now(application);
    assert!(is_temporary(&ann.reply(id).await.unwrap_err()));
    ann.subscribe("ask:in", None).await.unwrap();
    figure!("over {over:?}: a subscribe by another service took {took:?} while 5 hung");
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_hangs_holds_nobody_else_up_over_nats() {
    Box::pin(hung_up(Over::Nats)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_hangs_holds_nobody_else_up_over_http() {
    Box::pin(hung_up(Over::Http)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_of_one_connection_keep_their_order_in_a_room() {
    let play = Play::new(application);
    let (rig, _backend) = rig(Over::Nats, &play, PATIENT, "").await;
    let address = rig.weir.address();
    let (mut ann, _) = connect(&address, value!({ "as": "ann" })).await.unwrap();
    // The earlier, the later the answer; the fourth is refused.
    play.now(|asked| {
        let n = asked.body["data"].as_u64().unwrap();
        let answer = if n == 4 {
            value!({ "error": { "code": 400 } })
        } else {
            value!({ "result": {} })
        };
        Reply::Late(Duration::from_millis(50 * (12 - n)), answer.to_string())
    });
    let mut ids = Vec::new();
    for n in 0..12 {
        let body = format!("{{\"channel\":\"ask:in\",\"data\":{n}}}");
        ids.push(ann.send("publish", &body).await.unwrap());
    }
    for (n, id) in ids.into_iter().enumerate() {
        assert_eq!(ann.reply(id).await.is_ok(), n != 4, "{n}");
    }
    let page = ann.history("ask:in", None, 20, false).await.unwrap();
    let order: Vec<&str> = page.publications.iter().map(|one| one.data.get()).collect();
    let expected = ["0", "1", "2", "3", "5", "6", "7", "8", "9", "10", "11"];
    assert_eq!(order, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_floods_is_heard_once() {
    let play = Play::new(application);
    let (rig, _backend) = rig(Over::Nats, &play, PATIENT, "").await;
    let address = rig.weir.address();
    let (mut ann, _) = connect(&address, value!({ "as": "ann" })).await.unwrap();
    let (mut reader, _) = connect(&address, value!({ "as": "bob" })).await.unwrap();
    reader.subscribe("chat:r0", None).await.unwrap();
    let yes = value!({ "result": {} }).to_string();
    play.now(move |_| Reply::Many(2_000, yes.clone()));
    let mut slowest = Duration::ZERO;
    for n in 0..10 {
        ann.publish("ask:in", &n.to_string()).await.unwrap();
        let (sent, took) = timed(ann.publish("chat:r0", &n.to_string())).await;
        sent.unwrap();
        slowest = slowest.max(took);
    }
    // Too long for an answer, and 500 of them.
    let long = format!("{{\"result\":{{\"data\":\"{}\"}}}}", "x".repeat(100_000));
    play.now(move |_| Reply::Many(100, long.clone()));
    for _ in 0..5 {
        let failure = ann.publish("ask:in", "1").await.unwrap_err();
        assert!(is_temporary(&failure), "{failure:?}");
        let (sent, took) = timed(ann.publish("chat:r0", "1")).await;
        sent.unwrap();
        slowest = slowest.max(took);
    }
    for _ in 0..15 {
        assert!(reader.publication(WITHIN).await.is_some());
    }
    let page = ann.history("ask:in", None, 100, false).await.unwrap();
    assert_eq!(page.publications.len(), 10, "one each");
    figure!(
        "20,500 answers where 15 were asked for: the slowest publish elsewhere took {slowest:?}"
    );
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_service_opens_nothing_and_is_left_alone_until_it_is_back() {
    let play = Play::new(application);
    let servers = Rig::servers(1, false, |config| {
        let more = "[hooks]\nbreaker_failures = 4\nbreaker_open_time = \"500ms\"\n";
        configure(config, |_| "nats".to_owned(), more);
    });
    let rig = Box::pin(servers).await;
    let address = rig.weir.address();
    let opened = async || rig.weir.metric("weir_edge_hook_breaker_opened").await;
    let failure = connect(&address, value!({ "as": "ann" })).await.err();
    assert!(is_temporary(&failure.unwrap()), "nobody is there");
    // A token needs nobody.
    let mut ann = Client::connect(&address, Some("ann")).await.unwrap();
    assert!(is_temporary(&ann.publish("ask:in", "1").await.unwrap_err()));
    for _ in 0..4 {
        let failure = ann.subscribe("ask:in", None).await.unwrap_err();
        assert!(is_temporary(&failure), "{failure:?}");
    }
    assert_eq!(opened().await, Some(1.0), "that of subscribing in `ask`");
    assert_eq!(
        rig.weir.metric("weir_edge_hook_breaker_open").await,
        Some(1.0)
    );
    // While it is open, a service that is there is not asked.
    let _backend = Backend::over_nats(&rig.nats, &play).await;
    let (joined, took) = timed(ann.subscribe("ask:in", None)).await;
    if took < Duration::from_millis(100) {
        assert!(joined.is_err() && play.asked().is_empty());
    }
    ann.subscribe("vip:in", None).await.unwrap();
    until("the service is asked again", WITHIN, async || {
        let mut ann = Client::connect(&address, Some("ann")).await.unwrap();
        ann.subscribe("ask:in", None).await.is_ok()
    })
    .await;
    assert_eq!(
        rig.weir.metric("weir_edge_hook_breaker_open").await,
        Some(0.0)
    );
    // It fails again, and more and more is left alone; then it is back.
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    play.now(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Reply::Text("no".to_owned())
    });
    for n in 0..40 {
        let failure = ann.publish("ask:in", &n.to_string()).await.unwrap_err();
        assert!(is_temporary(&failure), "{failure:?}");
    }
    let calls = calls.load(Ordering::Relaxed);
    // The one before them found nobody.
    assert!((3..=40).contains(&calls), "{calls} of 40 were asked");
    assert!(opened().await >= Some(2.0), "that of publishing, too");
    let open = rig.weir.metric("weir_edge_hook_failures").await;
    assert!(open.is_some_and(|open| open > 40.0));
    play.now(application);
    until("publishes are asked about again", WITHIN, async || {
        ann.publish("ask:in", "1").await.is_ok()
    })
    .await;
    figure!("{calls} of 40 questions reached a service that fails");
    rig.require_calm();
}
