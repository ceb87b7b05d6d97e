//! Knows: who is let in, what the server shows of them, and what becomes of logins when the callout is gone. Never:
//! what they may do then (`roles`, `cells`).

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::figures::figure;
use crate::length::either;
use crate::mqtt::Mqtt;
use crate::raw::Raw;
use crate::roles::{closed, with_caps};
use crate::server::{PATIENCE, Server, now_s, token};

const READS: &str = r#"[{"channels":["vip:a"],"allow":["sub"]}]"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_taken_as_token_or_password_and_everything_else_is_refused() {
    let server = Server::start().await;
    let callout = server.callout(closed()).await;
    let good = with_caps(READS);
    let long = token("ann", json!({"info": {"x": "y".repeat(7_000)}}));
    assert!(long.len() > 9_000 && long.len() < 12_288);
    let too_long = token("ann", json!({"info": {"x": "y".repeat(9_200)}}));
    assert!(too_long.len() > 12_288 && too_long.len() < 16_000);
    for options in [
        json!({"auth_token": good}),
        json!({"user": "whoever", "pass": good}),
        json!({"auth_token": long}),
    ] {
        assert!(Raw::connect(server.port, &options).await.is_ok());
    }
    let forged = format!("{}x", &good[..good.len() - 1]);
    for (what, options) in [
        ("nothing", json!({})),
        ("another secret", json!({"auth_token": forged})),
        ("no token", json!({"auth_token": "secret"})),
        (
            "a password of nobody",
            json!({"user": "root", "pass": "root"}),
        ),
        (
            "a wrong password of a static user",
            json!({"user": "ops", "pass": good}),
        ),
        (
            "the name of a static user",
            json!({"auth_token": token("ops", json!({}))}),
        ),
        (
            "Weir's own name",
            json!({"auth_token": token("weir", json!({}))}),
        ),
        ("no user", json!({"auth_token": token("", json!({}))})),
        (
            "expired",
            json!({"auth_token": token("ann", json!({"exp": now_s() - 60}))}),
        ),
        (
            "a subscription token",
            json!({"auth_token": token("ann", json!({"channel": "vip:a"}))}),
        ),
        (
            "caps that are none",
            json!({"auth_token": token("ann", json!({"caps": [{"allow": ["all"]}]}))}),
        ),
        ("longer than 12 KiB", json!({"auth_token": too_long})),
    ] {
        let found = Raw::connect(server.port, &options).await;
        let refused = found.err().unwrap_or_else(|| panic!("let in: {what}"));
        assert!(
            refused.contains("Authorization Violation"),
            "{what}: {refused}"
        );
    }
    for (id, password, code) in [
        ("ann:1", good.as_str(), None),
        ("ann", &good, None),
        ("bob", &good, Some(5)),
        ("ann2", &good, Some(5)),
        ("", &good, Some(5)),
        ("ann:1", &forged, Some(5)),
        ("ann:1", &long, None),
        // No line holds it there, so that it is Weir that refuses it.
        ("ann:1", &too_long, Some(5)),
    ] {
        let found = Mqtt::connect(server.mqtt_port, id, "any", password).await;
        assert_eq!(found.err(), code.map(Some), "{id}");
    }
    let escaped = token("ann@x", json!({}));
    let found = Mqtt::connect(server.mqtt_port, "ann=40x:1", "any", &escaped).await;
    assert!(found.is_ok(), "an id as subjects spell the user");
    // Neither log nor connection list has any of it.
    let system = server.user("sys").await.unwrap();
    let list = system.request("$SYS.REQ.SERVER.PING.CONNZ", r#"{"auth":true}"#.into());
    let list = list.await.unwrap().payload;
    let shown = String::from_utf8_lossy(&list).into_owned() + &server.log();
    for part in good
        .split('.')
        .chain(too_long.split('.'))
        .filter(|part| part.len() > 40)
    {
        assert!(!shown.contains(&part[..40]), "a token is in a log or list");
    }
    callout.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_its_users_name_and_ends_with_its_token() {
    let server = Server::start().await;
    let callout = server.callout(closed()).await;
    let short = token("ann@x", json!({"exp": now_s() + 3, "jti": "j 1"}));
    let mut client = Raw::login(server.port, &short).await.unwrap();
    let kick = server.user("weir_kick").await.unwrap();
    let list = kick.request("$SYS.REQ.SERVER.PING.CONNZ", r#"{"auth":true}"#.into());
    let list: Value = serde_json::from_slice(&list.await.unwrap().payload).unwrap();
    let all = list["data"]["connections"].as_array().unwrap();
    let found = all
        .iter()
        .find(|one| one["authorized_user"] == "ann=40x:j=201");
    let found = found.unwrap_or_else(|| panic!("{list}"));
    assert_eq!(found["account"], "WEIR");
    let start = Instant::now();
    let end = loop {
        match client.line().await {
            Ok(line) if line == "PING" => {}
            Ok(line) => break line,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(end.contains("User Authentication Expired"), "{end}");
    assert!(start.elapsed() < PATIENCE);

    // One that is to go is sent away at once, and nothing else is possible with that user.
    let mut client = Raw::login(server.port, &token("ann@x", json!({})))
        .await
        .unwrap();
    let list = kick.request("$SYS.REQ.SERVER.PING.CONNZ", r#"{"auth":true}"#.into());
    let list: Value = serde_json::from_slice(&list.await.unwrap().payload).unwrap();
    let all = list["data"]["connections"].as_array().unwrap();
    let found = all
        .iter()
        .find(|one| one.to_string().contains("ann=40x:t1"))
        .unwrap();
    let id = list["server"]["id"].as_str().unwrap();
    let body = json!({"cid": found["cid"]}).to_string();
    let kicked = kick
        .request(format!("$SYS.REQ.SERVER.{id}.KICK"), body.into())
        .await;
    assert!(kicked.is_ok(), "{kicked:?}");
    while client.line().await.is_ok() {}
    let mut raw = Raw::connect(
        server.port,
        &json!({"user": "weir_kick", "pass": "weir_kick"}),
    )
    .await
    .unwrap();
    for subject in [
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.SERVER.PING.VARZ",
        "$SYS.REQ.ACCOUNT.WEIR.CONNZ",
        "say.x.y.z",
    ] {
        assert!(!raw.may_publish(subject).await, "{subject}");
    }
    let mut raw = Raw::connect(
        server.port,
        &json!({"user": "weir_auth", "pass": "weir_auth"}),
    )
    .await
    .unwrap();
    for subject in [
        "room.vip.a",
        "log.x",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.weir.x",
        "$SYS.REQ.USER.AUTH",
    ] {
        assert!(!raw.may_publish(subject).await, "{subject}");
    }
    assert!(!raw.may_hear(">").await && !raw.may_hear("_INBOX.>").await);
    callout.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_callout_those_who_are_in_stay_and_nobody_else_gets_in() {
    let server = Server::start().await;
    let good = with_caps(READS);
    let (first, second) = (
        server.callout(closed()).await,
        server.callout(closed()).await,
    );
    let mut inside = Raw::login(server.port, &good).await.unwrap();
    for _ in 0..40 {
        assert!(Raw::login(server.port, &good).await.is_ok());
    }
    let (one, other) = (first.admitted(), second.admitted());
    assert!(one > 0.0 && other > 0.0, "both answer: {one} {other}");
    // One of two goes: nobody notices.
    first.stop().await;
    assert!(Raw::login(server.port, &good).await.is_ok());
    second.stop().await;
    let refused = Raw::login(server.port, &good)
        .await
        .err()
        .expect("nobody gets in");
    assert!(
        refused.contains("Authentication Timeout") || refused.contains("Authorization Violation"),
        "{refused}"
    );
    let device = Mqtt::connect(server.mqtt_port, "ann", "ann", &good).await;
    assert!(device.is_err(), "nor by MQTT");
    assert!(inside.may_hear("room.vip.a").await && !inside.may_hear("room.vip.b").await);
    assert!(
        server.user("ops").await.is_some(),
        "static users need no callout"
    );
    let again = server.callout(closed()).await;
    assert!(Raw::login(server.port, &good).await.is_ok());
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_login_costs() {
    let server = Server::start().await;
    let callout = server.callout(closed()).await;
    let good = with_caps(READS);
    let password = json!({"user": "bot", "pass": "bot"});
    let count = either(200, 2_000);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..count {
        for (nth, options) in [json!({"auth_token": good}), password.clone()]
            .iter()
            .enumerate()
        {
            let start = Instant::now();
            let client = Raw::connect(server.port, options).await;
            times[nth].push(start.elapsed());
            assert!(client.is_ok());
        }
    }
    for times in &mut times {
        times.sort_unstable();
    }
    let all: Duration = times[0].iter().sum();
    // So many at once.
    let at_once = 16;
    let start = Instant::now();
    let mut logins = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        let (port, good) = (server.port, good.clone());
        logins.spawn(async move {
            for _ in 0..count / at_once {
                assert!(Raw::login(port, &good).await.is_ok());
            }
        });
    }
    while let Some(done) = logins.join_next().await {
        done.unwrap();
    }
    let together = start.elapsed();
    figure!(
        "{:.0} logins a second with a token (HS256), {at_once} at once",
        (count / at_once * at_once) as f64 / together.as_secs_f64()
    );
    figure!(
        "a login with a token (HS256): p50 {:.2?}, p99 {:.2?}, {:.0} a second one after another; with a static password: p50 {:.2?}",
        times[0][count / 2],
        times[0][count * 99 / 100],
        count as f64 / all.as_secs_f64(),
        times[1][count / 2],
    );
    assert!(times[0][count / 2] < Duration::from_secs(1));
    callout.stop().await;
}
