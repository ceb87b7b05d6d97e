//! Knows: a bot that forges headers, subjects and reply subjects changes nothing of anybody else's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};

use crate::figures::figure;
use crate::harness::nats::Nats;
use crate::harness::rig::Rig;
use crate::harness::scan;
use crate::harness::until;
use crate::harness::weir::{Config, Weir, token_with};
use crate::raw_nats::Raw;

/// A connection of the bot that counts what the server refused it.
async fn counted_bot(rig: &Rig) -> (async_nats::Client, Arc<AtomicUsize>) {
    let refused = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&refused);
    let client = async_nats::ConnectOptions::with_user_and_password("bot".into(), "bot".into())
        .custom_inbox_prefix("_INBOX.bot")
        .event_callback(move |event| {
            let violation = event
                .to_string()
                .to_lowercase()
                .contains("permissions violation");
            counter.fetch_add(usize::from(violation), Ordering::AcqRel);
            async {}
        })
        .connect(rig.nats.url())
        .await
        .unwrap();
    (client, refused)
}

async fn ask(client: &async_nats::Client, subject: &str, headers: HeaderMap, data: &str) -> Value {
    let answer = client
        .request_with_headers(subject.to_owned(), headers, data.to_owned().into())
        .await
        .unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_headers_change_nothing() {
    let rig = Rig::servers(1, false, |_| {}).await;
    let mut reader = rig.client("reader").await;
    reader.subscribe("chat:r0", None).await.unwrap();
    let mut alice = rig.client("alice").await;
    alice.publish("chat:r0", "\"before\"").await.unwrap();
    let (bot, _) = counted_bot(&rig).await;
    let forged = [
        ("Nats-Sequence", "777"),
        ("Nats-Msg-Id", "alice-1"),
        ("Nats-Rollup", "all"),
        ("Nats-TTL", "1s"),
        ("Nats-Stream", "ROOMS_7"),
        ("Nats-Subject", "log.rooms.1.chat.other"),
        ("Nats-Last-Sequence", "999999"),
        ("Nats-Expected-Last-Sequence", "5"),
        ("Nats-Expected-Stream", "ROOMS_7"),
        ("Nats-Batch-Id", "b"),
        ("Nats-Batch-Sequence", "1"),
        ("Nats-Schedule", "@every 1s"),
        ("Nats-Schedule-Target", "log.rooms.1.chat.other"),
        ("Weir-User", "alice"),
        ("Weir-Client", "alice's"),
        ("Weir-Door", "socket"),
        ("Weir-Info", "{\"admin\":true}"),
        ("Weir-Tags", "{\"k\":\"v\"}"),
        ("Room-Name", "chat:other"),
    ];
    figure!("{} forged headers", forged.len());
    let mut headers = HeaderMap::new();
    for (name, value) in forged {
        headers.append(name, value);
    }
    // Twice, since a foreign id must swallow nothing.
    let mut offsets = Vec::new();
    for n in 0..2 {
        let answer = ask(&bot, "say.bot.chat.r0", headers.clone(), &format!("{n}")).await;
        offsets.push(
            answer["offset"]
                .as_u64()
                .unwrap_or_else(|| panic!("{answer}")),
        );
    }
    assert!(offsets[0] < offsets[1] && offsets[1] < 777, "{offsets:?}");
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (room, publication) = reader.publication(Duration::from_secs(10)).await.unwrap();
        assert_eq!(room, "chat:r0");
        assert!(publication.tags.is_empty());
        let info = publication.info.unwrap();
        assert!(info.user == "alice" || info.client.is_empty(), "{info:?}");
        seen.push((
            publication.data.get().to_owned(),
            info.user,
            publication.offset,
        ));
    }
    assert_eq!(
        seen[1..],
        [
            ("0".to_owned(), "bot".to_owned(), offsets[0]),
            ("1".to_owned(), "bot".to_owned(), offsets[1]),
        ]
    );
    let rows = scan::stream(&rig.nats).await;
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows.iter().all(|row| row.room == "chat:r0"), "{rows:?}");
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_refuses_what_a_bot_may_not_publish_or_hear() {
    let rig = Rig::servers(1, false, |_| {}).await;
    let mut reader = rig.client("reader").await;
    reader.subscribe("chat:r0", None).await.unwrap();
    let (bot, refused) = counted_bot(&rig).await;
    let subjects = [
        "room.chat.r0",
        "log.rooms.1.chat.r0",
        "eph.chat.r0",
        "who.chat.r0",
        "say.alice.chat.r0",
        "say.ops.chat.r0",
        "history.alice.chat.r0",
        "weir.disconnect",
        "$JS.API.STREAM.PURGE.ROOMS_0",
        "$JS.API.STREAM.DELETE.ROOMS_0",
        "$KV.weir.placement.rooms",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.weir.x",
    ];
    figure!("{} subjects refused to a publisher", subjects.len());
    for subject in subjects {
        bot.publish(subject, "\"forged\"".into()).await.unwrap();
    }
    for subject in [
        "log.>",
        "say.>",
        "_INBOX.>",
        "_INBOX.alice.>",
        "$KV.>",
        "$JS.>",
        ">",
    ] {
        let _ = bot.subscribe(subject).await.unwrap();
    }
    bot.flush().await.unwrap();
    until(
        "every one was refused by the server",
        Duration::from_secs(10),
        async || refused.load(Ordering::Acquire) >= subjects.len() + 7,
    )
    .await;
    // What is allowed still goes, and it is all that anybody sees.
    let answer = ask(&bot, "say.bot.chat.r0", HeaderMap::new(), "\"true\"").await;
    assert!(answer["offset"].is_u64(), "{answer}");
    let (_, publication) = reader.publication(Duration::from_secs(10)).await.unwrap();
    assert_eq!(publication.data.get(), "\"true\"");
    assert_eq!(scan::stream(&rig.nats).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_subject_is_no_way_to_publish() {
    let rig = Rig::servers(1, false, |_| {}).await;
    let mut reader = rig.client("reader").await;
    reader.subscribe("chat:r0", None).await.unwrap();
    let (bot, _) = counted_bot(&rig).await;
    let spy = rig.nats.client("test").await;
    let replies = [
        "log.rooms.1.chat.r0",
        "room.chat.r0",
        "eph.chat.r0",
        "say.alice.chat.r0",
        "weir.disconnect",
        "weir.probe.x",
        "$JS.API.STREAM.PURGE.ROOMS_0",
        "$JS.API.STREAM.DELETE.ROOMS_0",
        "$KV.weir.placement.rooms",
        "_INBOX.alice.x",
        "_INBOX.weir.x",
        "_INBOX.botnet.x",
        "_INBOX.x",
        "_INBOX.bot",
    ];
    figure!("{} reply subjects", replies.len());
    let mut heard = spy.subscribe(">").await.unwrap();
    spy.flush().await.unwrap();
    let placement = scan::generations(&rig.nats).await;
    for request in ["say.bot.chat.r0", "history.bot.chat.r0"] {
        for reply in replies {
            let data = "{\"limit\":5}";
            bot.publish_with_reply(request, reply, data.into())
                .await
                .unwrap();
        }
    }
    bot.flush().await.unwrap();
    // A request behind them is answered, so they were seen; metrics say what became of them.
    let answer = ask(&bot, "say.bot.chat.r0", HeaderMap::new(), "\"true\"").await;
    assert!(answer["offset"].is_u64(), "{answer}");
    rig.weir
        .until_metric(
            "weir_edge_door_reply_refused",
            Duration::from_secs(10),
            |refused| refused >= replies.len() as f64,
        )
        .await;
    let (_, publication) = reader.publication(Duration::from_secs(10)).await.unwrap();
    assert_eq!(
        publication.data.get(),
        "\"true\"",
        "a forged message reached the room"
    );
    assert_eq!(
        scan::stream(&rig.nats).await.len(),
        1,
        "a forged message was stored"
    );
    let after = scan::generations(&rig.nats).await;
    assert_eq!(placement[0].epoch, after[0].epoch);
    while let Some(Some(message)) = heard.next().now_or_never() {
        let subject = message.subject.as_str();
        let own = subject == "room.chat.r0" && message.payload == "\"true\"";
        assert!(
            own || !replies.contains(&subject),
            "something was delivered on {subject}"
        );
    }
    rig.require_calm();
}

/// Roles of one user with a token, and whether it may send each of the two kinds of requests in `closed:a`.
const ROLES: [(&str, &str, bool, bool); 6] = [
    ("nothing", "[]", false, false),
    (
        "reads",
        r#"[{"channels":["closed:a"],"allow":["sub"]}]"#,
        false,
        false,
    ),
    (
        "writes",
        r#"[{"channels":["closed:a"],"allow":["pub"]}]"#,
        true,
        false,
    ),
    (
        "reads back",
        r#"[{"channels":["closed:a"],"allow":["hst"]}]"#,
        false,
        true,
    ),
    (
        "all",
        r#"[{"channels":["closed:a"],"allow":["sub","pub","hst","prs"]}]"#,
        true,
        true,
    ),
    (
        "the namespace",
        r#"[{"namespaces":["closed"],"allow":["sub","pub","hst","prs"]}]"#,
        true,
        true,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_role_with_a_token_is_answered_outside_its_own_inbox() {
    let nats = Nats::start().await;
    let mut config = Config::new(&nats.url());
    config.more = nats.auth_callout();
    let weir = Weir::start(config).await;
    let spy = nats.client("test").await;
    let mut heard = spy.subscribe(">").await.unwrap();
    spy.flush().await.unwrap();
    let replies = [
        "log.rooms.1.closed.a",
        "room.closed.a",
        "eph.closed.a",
        "who.closed.a",
        "say.bob.closed.a",
        "say.ann.closed.b",
        "history.bob.closed.a",
        "weir.disconnect",
        "$JS.API.STREAM.PURGE.ROOMS_0",
        "$KV.weir.placement.rooms",
        "$SYS.REQ.USER.AUTH",
        "$SYS.REQ.SERVER.PING.CONNZ",
        "_INBOX.bob.x",
        "_INBOX.weir.x",
        "_INBOX.weir_auth.x",
        "_INBOX.weir_kick.x",
        "_INBOX.annx.x",
        "_INBOX.x",
        "_INBOX.ann",
        "_INBOX.ann.*",
        "_INBOX.ann.>",
        "_INBOX.ann.x.*",
        "_R_.x",
        "x",
    ];
    let (mut sent, mut taken, mut said) = (0, 0, 0_usize);
    for (role, caps, says, asks) in ROLES {
        let caps: Value = serde_json::from_str(caps).unwrap();
        let mut ann = Raw::login(nats.port, &token_with("ann", &caps))
            .await
            .unwrap();
        assert!(ann.hear("_INBOX.ann.>").await);
        for (request, may) in [("say.ann.closed.a", says), ("history.ann.closed.a", asks)] {
            for reply in replies {
                let data = json!({ "limit": 5 }).to_string();
                let bytes = data.len();
                let publish = format!("PUB {request} {reply} {bytes}\r\n{data}\r\n");
                let is_let_through = ann.after(&publish).await.unwrap().is_empty();
                // Where nats-server's own answers go it lets nobody ask for one.
                let expected = may && !reply.starts_with("_R_.");
                assert_eq!(is_let_through, expected, "{role}: {request} {reply}");
                sent += 1;
                taken += usize::from(expected);
                said += usize::from(expected && request.starts_with("say."));
            }
            // What was asked as it should be is answered, so what was before it was seen.
            let answer = ann
                .request(request, "_INBOX.ann.own", r#"{"limit":5}"#)
                .await;
            assert_eq!(answer.is_some(), may, "{role}: {request}");
        }
    }
    // Only what is said is counted there.
    let wanted = said as f64;
    weir.until_metric(
        "weir_edge_door_reply_refused",
        Duration::from_secs(10),
        |refused| refused >= wanted,
    )
    .await;
    let users = ROLES.iter().filter(|role| role.2).count();
    assert_eq!(
        scan::stream(&nats).await.len(),
        users,
        "only what was asked as it should be is stored"
    );
    while let Some(Some(message)) = heard.next().now_or_never() {
        let subject = message.subject.as_str();
        let is_live = subject == "room.closed.a" && message.payload == r#"{"limit":5}"#;
        let is_request = message.reply.is_some();
        assert!(
            is_live || is_request || !replies.contains(&subject),
            "delivered on {subject}"
        );
    }
    figure!(
        "{sent} requests of {} roles with reply subjects of others, {taken} of them let through by NATS, none answered",
        ROLES.len()
    );
    let log = weir.log();
    let calm = !log.contains("disconnected") && !log.contains("panicked");
    assert!(calm, "a link was lost");
}
