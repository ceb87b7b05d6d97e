//! Knows: connections whose time is over and whose application is asked whether they go on. Never: tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::{Duration, Over, Play, Reply, WITHIN, application, connect, json, rig, until, value};
use crate::figures::figure;
use crate::harness::client::Failure;

fn in_s(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() + seconds
}

fn for_two_seconds(user: &str) -> Reply {
    json(
        &value!({ "result": { "user": user, "expire_at": in_s(2), "info": { "n": 0 }, "meta": { "m": 1 } } }),
    )
}

async fn refreshes(over: Over) {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let play = Play::new(move |asked| match asked.event.as_str() {
        "connect" => for_two_seconds(asked.body["data"]["as"].as_str().unwrap()),
        "refresh" => match counted.fetch_add(1, Ordering::Relaxed) {
            // No answer: it is asked again. Neither until when nor that it is over is none.
            0 => Reply::Hang,
            1 => json(&value!({ "result": {} })),
            2 | 3 => json(&value!({ "result": { "expire_at": in_s(2), "info": { "n": 1 } } })),
            _ => json(&value!({ "result": { "expired": true } })),
        },
        _ => application(asked),
    });
    let client = "expired_close_delay = \"15s\"\n";
    let (rig, _backend) = rig(over, &play, "", client).await;
    let address = rig.weir.address();
    let start = Instant::now();
    let (mut ann, hello) = connect(&address, value!({ "as": "ann" })).await.unwrap();
    assert_eq!(
        hello.get("ttl"),
        None,
        "the client is not to refresh: {hello}"
    );
    ann.subscribe("chat:r0", None).await.unwrap();
    until("it was asked three times", WITHIN, async || {
        tries.load(Ordering::Relaxed) >= 3
    })
    .await;
    let lives = start.elapsed();
    assert!(lives >= Duration::from_secs(2), "{lives:?}");
    // It goes on, with what the answer said.
    until("its info is the new one", WITHIN, async || {
        ann.publish("chat:r0", "1").await.unwrap();
        let (_, publication) = ann.publication(WITHIN).await.unwrap();
        publication.info.unwrap().conn_info == Some(value!({ "n": 1 }))
    })
    .await;
    let end = ann.until_closed(WITHIN).await;
    assert_eq!(end.code(), 3_005, "{end:?}");
    let lived = start.elapsed();
    assert!(
        lived >= Duration::from_secs(5),
        "twice two seconds more: {lived:?}"
    );
    let asked = play.asked();
    let refresh = asked.iter().find(|asked| asked.event == "refresh").unwrap();
    assert_eq!(refresh.body["user"], "ann");
    assert_eq!(refresh.body["meta"], value!({ "m": 1 }));
    figure!(
        "over {over:?}: {} questions, {lived:?}",
        tries.load(Ordering::Relaxed)
    );

    // The application ends one as it likes; and a client has nothing to send.
    play.now(|asked| match asked.event.as_str() {
        "connect" => for_two_seconds("ann"),
        _ => json(&value!({ "disconnect": { "code": 4600, "reason": "over" } })),
    });
    let (mut ann, _) = connect(&address, value!({})).await.unwrap();
    let end = Failure::Closed {
        code: 4_600,
        reason: "over".to_owned(),
    };
    assert_eq!(ann.until_closed(WITHIN).await, end);
    let (mut ann, _) = connect(&address, value!({})).await.unwrap();
    let token = crate::harness::weir::token("ann");
    let refused = ann.call("refresh", value!({ "token": token })).await;
    assert_eq!(refused.unwrap_err().code(), 3_501);
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_is_asked_again_and_extends_or_ends_over_nats() {
    Box::pin(refreshes(Over::Nats)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_is_asked_again_and_extends_or_ends_over_http() {
    Box::pin(refreshes(Over::Http)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answer_a_connection_ends_after_the_delay() {
    let play = Play::new(|asked| match asked.event.as_str() {
        "connect" => for_two_seconds("ann"),
        _ => Reply::Hang,
    });
    let client = "expired_close_delay = \"4s\"\n";
    let (rig, backend) = rig(Over::Nats, &play, "", client).await;
    let address = rig.weir.address();
    let start = Instant::now();
    let (mut ann, _) = connect(&address, value!({})).await.unwrap();
    until("the service hangs", WITHIN, async || {
        play.asked().iter().any(|asked| asked.event == "refresh")
    })
    .await;
    // From now on there is none.
    drop(backend);
    let end = ann.until_closed(WITHIN).await;
    let lived = start.elapsed();
    assert_eq!(end.code(), 3_005, "{end:?}");
    // Two seconds, cut to whole ones, and the delay.
    assert!(lived >= Duration::from_secs(5), "{lived:?}");
    assert!(lived < Duration::from_secs(15), "{lived:?}");
    let failures = rig.weir.metric("weir_edge_hook_failures").await.unwrap();
    assert!(failures >= 2.0, "it was asked more than once: {failures}");
    figure!("closed after {lived:?}, {failures} questions without an answer");
}
