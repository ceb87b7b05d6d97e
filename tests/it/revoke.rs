//! Knows: what is revoked, disconnected or narrowed ends everywhere, at sockets and at NATS, also at an edge that was
//! cut off meanwhile, and opens nothing again. Never: which tokens an order matches (unit tests do).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{ConnectOptions, RequestErrorKind};
use serde_json::{Value, json};

use crate::figures::figure;
use crate::harness::client::{Client, Failure};
use crate::harness::nats::Nats;
use crate::harness::weir::{Config, Weir, signed};
use crate::harness::{either, until, within};
use crate::proxy::Proxy;

const WITHIN: Duration = Duration::from_secs(10);
/// What is aimed at.
const AIM: Duration = Duration::from_secs(2);

fn now_s() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_secs()).unwrap()
}

/// A token that was issued so many seconds ago.
fn token(user: &str, id: &str, age_s: i64, more: Value) -> String {
    let mut claims =
        json!({"sub": user, "exp": now_s() + 3_600, "iat": now_s() - age_s, "jti": id});
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    signed(&claims)
}

async fn connect(weir: &Weir, token: &str) -> Result<Client, Failure> {
    let mut client = Client::open(&weir.address()).await?;
    client.call("connect", json!({ "token": token })).await?;
    Ok(client)
}

/// A bot, and whether it is still let in when it comes back.
async fn bot(nats: &Nats, user: &str, token: &str) -> async_nats::Client {
    let options = ConnectOptions::with_token(token.to_owned())
        .custom_inbox_prefix(format!("_INBOX.{user}"))
        .connect(nats.url());
    within("a bot logs in", WITHIN, Box::pin(options))
        .await
        .unwrap()
}

async fn is_let_in(nats: &Nats, token: &str) -> bool {
    let options = ConnectOptions::with_token(token.to_owned()).connect(nats.url());
    within("a login is decided", WITHIN, Box::pin(options))
        .await
        .is_ok()
}

/// Asks as an operator.
async fn ask(operator: &async_nats::Client, subject: &str, body: Value) -> Value {
    let asked = operator.request(subject.to_owned(), body.to_string().into());
    let answer = within("an order is answered", WITHIN, asked).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// Two edges and the callout on one NATS.
struct Two {
    nats: Nats,
    first: Weir,
    second: Weir,
    operator: async_nats::Client,
}

impl Two {
    async fn start() -> Self {
        let nats = Box::pin(Nats::start()).await;
        let weir = async || {
            let mut config = Config::new(&nats.url());
            config.more = nats.auth_callout();
            Box::pin(Weir::start(config)).await
        };
        let (first, second) = (weir().await, weir().await);
        let operator = Box::pin(nats.client("ops")).await;
        Self {
            nats,
            first,
            second,
            operator,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_is_closed_everywhere_and_opens_nothing_again() {
    let two = Two::start().await;
    let rounds = either(9, 100);
    let mut times = Vec::new();
    let bystander = token("bystander", "b", 5, json!({}));
    let mut calm = connect(&two.first, &bystander).await.unwrap();
    let calm_bot = bot(&two.nats, "bystander", &bystander).await;
    for round in 0..rounds {
        let user = format!("user {round}");
        let old = token(&user, &format!("id:{round}"), 2, json!({}));
        let mut first = connect(&two.first, &old).await.unwrap();
        let mut second = connect(&two.second, &old).await.unwrap();
        first.subscribe("chat:a", None).await.unwrap();
        let native = bot(&two.nats, &format!("user=20{round}"), &old).await;
        let start = Instant::now();
        let order = match round % 3 {
            0 => json!({"user": user, "by": "test", "reason": "it left"}),
            1 => json!({"token_id": format!("id:{round}")}),
            _ => json!({"user": user, "issued_before": now_s()}),
        };
        let asked = ask(&two.operator, "weir.revoke", order.clone());
        let closed = async {
            let ends = [
                first.until_closed(WITHIN).await,
                second.until_closed(WITHIN).await,
            ];
            assert_eq!(ends.map(|end| end.code()), [3500, 3500], "{order}");
            until("the bot is sent away", WITHIN, async || {
                native.connection_state() != State::Connected
            })
            .await;
            start.elapsed()
        };
        let (answer, took) = tokio::join!(asked, closed);
        times.push(took);
        let result = &answer["result"];
        assert_eq!(
            (&result["processes"], &result["silent"]),
            (&json!(2), &json!([])),
            "{answer}"
        );
        assert_eq!(result["closed"], 2, "{answer}");
        assert!(result["native_closed"].as_u64() >= Some(1), "{answer}");
        for weir in [&two.first, &two.second] {
            let again = connect(weir, &old).await.err().map(|error| error.code());
            assert_eq!(again, Some(3500));
        }
        assert!(!is_let_in(&two.nats, &old).await);
        // It answers pings, and nothing else happens to it.
        let push = calm.push(Instant::now() + Duration::from_millis(5)).await;
        assert!(push.unwrap().is_none());
        if round % 3 == 0 {
            let new = token(&user, "new", -1, json!({}));
            assert!(connect(&two.second, &new).await.is_ok() && is_let_in(&two.nats, &new).await);
        }
    }
    calm.publish("chat:a", "1").await.unwrap();
    assert_eq!(calm_bot.connection_state(), State::Connected);
    times.sort_unstable();
    let in_time = times.iter().filter(|took| **took <= AIM).count();
    figure!(
        "revoked: {in_time} of {rounds} closed at two edges and at NATS within 2 s; p50 {:.0?}, longest {:.0?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert!(times.iter().all(|took| *took <= WITHIN), "{times:?}");

    // Everybody's; and who starts later knows it, too.
    let answer = ask(
        &two.operator,
        "weir.revoke",
        json!({"issued_before": now_s()}),
    )
    .await;
    assert!(answer["result"]["closed"].as_u64() >= Some(1), "{answer}");
    assert_eq!(calm.until_closed(WITHIN).await.code(), 3500);
    let Two {
        nats, mut second, ..
    } = two;
    second.stop();
    second.spawn();
    second.until_ready().await;
    let again = connect(&second, &bystander).await.err();
    assert_eq!(again.map(|error| error.code()), Some(3500));
    assert!(!is_let_in(&nats, &bystander).await);
    let revoked = second.metric("weir_revoked_tokens_refused_total").await;
    assert!(revoked >= Some(1.0), "{revoked:?}");
    // Who ordered it and what came of it, and nothing of a token.
    let log = second.log();
    for part in [
        "order is carried out",
        "a request over NATS, of test",
        "it left",
    ] {
        assert!(log.contains(part), "{part} is not in the log");
    }
    for part in bystander.split('.').skip(1) {
        assert!(!log.contains(part), "a token is in the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_was_cut_off_reads_orders_before_it_serves_anybody() {
    let nats = Nats::start().await;
    let proxy = Proxy::start(nats.port).await;
    let near = Weir::start(Config::new(&nats.url())).await;
    let mut config = Config::new(&proxy.url());
    config.more = "[shutdown]\nspread = \"0s\"\n".to_owned();
    let far = Weir::start(config).await;
    let operator = nats.client("ops").await;
    let (rounds, wait) = (either(3, 20), Duration::from_secs(30));
    let mut times = Vec::new();
    for round in 0..rounds {
        let (bad, worse) = (format!("bad{round}"), format!("worse{round}"));
        let revoked_token = token(&bad, &bad, 2, json!({}));
        let mut revoked = connect(&far, &revoked_token).await.unwrap();
        let mut ended = connect(&far, &token(&worse, &worse, 2, json!({})))
            .await
            .unwrap();
        let good = token("good", "good", 2, json!({}));
        let mut stays = connect(&far, &good).await.unwrap();
        let mut writer = connect(&near, &good).await.unwrap();
        let room = format!("chat:round{round}");
        for client in [&mut revoked, &mut ended, &mut stays] {
            client.subscribe(&room, None).await.unwrap();
        }
        proxy.refuse();
        // It has noticed.
        until("the far edge is cut off", wait, async || !far.ready().await).await;
        // The far edge cannot answer, and the orders stand.
        let answers = tokio::join!(
            ask(&operator, "weir.revoke", json!({"user": bad})),
            ask(&operator, "weir.disconnect", json!({"user": worse}))
        );
        for answer in [answers.0, answers.1] {
            let silent = answer["result"]["silent"].as_array().map(Vec::len);
            assert_eq!(answer["result"]["processes"], 1, "{answer}");
            assert_eq!(silent, Some(1), "{answer}");
        }
        // From now on there is always something to be shown.
        let (stop, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let writing = tokio::spawn({
            let (room, stop, written) = (room.clone(), Arc::clone(&stop), Arc::clone(&written));
            async move {
                while !stop.load(Ordering::Acquire) {
                    writer.publish(&room, "{\"secret\":1}").await.unwrap();
                    written.fetch_add(1, Ordering::AcqRel);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        });
        until("something was written meanwhile", WITHIN, async || {
            written.load(Ordering::Acquire) > 5
        })
        .await;
        let healed = Instant::now();
        proxy.heal();
        let shown = Mutex::new(Vec::new());
        let end = async |client: &mut Client| {
            let end = client.until_closed(wait).await;
            // Whatever it was shown before it was closed.
            while let Some(push) = client.take_push() {
                if push.publication.is_some() {
                    shown.lock().unwrap().push(push.channel);
                }
            }
            (end.code(), Instant::now())
        };
        let (of_revoked, of_ended) = tokio::join!(end(&mut revoked), end(&mut ended));
        assert_eq!((of_revoked.0, of_ended.0), (3500, 3503));
        assert_eq!(
            shown.lock().unwrap().len(),
            0,
            "shown what was written after the order"
        );
        // The connection to NATS comes back by itself, within the pause between tries.
        let took = of_revoked.1.max(of_ended.1).duration_since(healed);
        times.push(took);
        let served = stays.publication(wait).await;
        assert!(served.is_some(), "whoever may stay is served");
        assert!(served.unwrap().1.offset > 0);
        stop.store(true, Ordering::Release);
        writing.await.unwrap();
        until("the far edge is ready", wait, async || far.ready().await).await;
        let again = connect(&far, &revoked_token).await.err();
        assert_eq!(again.map(|error| error.code()), Some(3500));
    }
    times.sort_unstable();
    let in_time = times.iter().filter(|took| **took <= AIM).count();
    figure!(
        "cut off meanwhile: {in_time} of {rounds} closed within 2 s of the way being free again (the edge tries every 0.8 s at most), \
         nothing shown before; longest {:.0?}",
        times[times.len() - 1]
    );
    assert!(times.iter().all(|took| *took <= WITHIN), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_subscriptions_end_by_order_and_only_operators_give_one() {
    let two = Two::start().await;
    let (a, b) = ("chat:a", "chat:b");
    let of = |user: &str| token(user, user, 2, json!({}));
    let member = async |weir: &Weir, user: &str| {
        let mut client = connect(weir, &of(user)).await.unwrap();
        for room in [a, b] {
            client.subscribe(room, None).await.unwrap();
        }
        client
    };
    let mut ann = member(&two.first, "ann").await;
    let mut ann_too = member(&two.second, "ann").await;
    let mut bob = member(&two.second, "bob").await;
    let pushed = async |client: &mut Client| {
        let push = client.push(Instant::now() + WITHIN).await.unwrap().unwrap();
        (
            push.channel,
            push.unsubscribe.map(|unsubscribed| unsubscribed.code),
        )
    };

    // By user and room, at every edge; whoever else is there stays.
    let body = json!({"user": "ann", "channel": a});
    let answer = ask(&two.operator, "weir.unsubscribe", body).await;
    assert_eq!(answer["result"]["unsubscribed"], 2, "{answer}");
    for client in [&mut ann, &mut ann_too] {
        assert_eq!(pushed(client).await, (a.to_owned(), Some(2000)));
    }
    bob.publish(a, "\"not for ann\"").await.unwrap();
    bob.publish(b, "\"for all\"").await.unwrap();
    for (client, room) in [(&mut ann, b), (&mut ann_too, b), (&mut bob, a)] {
        assert_eq!(client.publication(WITHIN).await.unwrap().0, room);
    }
    // It is no ban.
    ann.subscribe(a, None).await.unwrap();
    // By room alone, and from the command line.
    let command = |name: &str, arguments: &[&str]| {
        let output = two.first.command(name, arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let (code, said) = command("unsubscribe", &["--room", b]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("in force  in 2 of 2 running processes"),
        "{said}"
    );
    assert!(said.contains("3 subscriptions of others"), "{said}");
    for client in [&mut ann_too, &mut bob] {
        while pushed(client).await != (b.to_owned(), Some(2000)) {}
    }
    // By user; a bot with a token is sent away, and comes back, as its token is good.
    let native = bot(&two.nats, "ann", &of("ann")).await;
    let before = native.statistics().connects.load(Ordering::Relaxed);
    let (code, said) = command("disconnect", &["--user", "ann", "--reason", "tidy"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("2 sockets") && said.contains("connections at NATS"),
        "{said}"
    );
    assert_eq!(ann.until_closed(WITHIN).await.code(), 3503);
    assert_eq!(ann_too.until_closed(WITHIN).await.code(), 3503);
    until("the bot comes back", WITHIN, async || {
        native.statistics().connects.load(Ordering::Relaxed) > before
            && native.connection_state() == State::Connected
    })
    .await;
    let answer = ask(
        &two.operator,
        "weir.disconnect",
        json!({"channel": a, "reconnect": true}),
    )
    .await;
    assert_eq!(answer["result"]["closed"], 1, "{answer}");
    assert_eq!(bob.until_closed(WITHIN).await.code(), 3011);
    assert!(
        connect(&two.first, &of("ann")).await.is_ok(),
        "nothing was revoked"
    );

    // What is no order is told so.
    for (name, arguments, status, why) in [
        ("revoke", &[][..], 2, "required"),
        ("revoke", &["--user", ""], 64, "people without a name"),
        (
            "revoke",
            &["--user", "ann", "--token-id", "x"],
            2,
            "cannot be used with",
        ),
        (
            "revoke",
            &["--issued-before", "yesterday"],
            2,
            "seconds since 1970",
        ),
        ("revoke", &["--issued-before", "9999999999"], 64, "has come"),
        ("revoke", &["--user", "ann", "--ttl", "0s"], 64, "ttl"),
        ("disconnect", &[], 2, "required"),
        ("unsubscribe", &["--room", ""], 64, "must not be empty"),
    ] {
        let (code, said) = command(name, arguments);
        assert_eq!(code, Some(status), "{name} {arguments:?}: {said}");
        assert!(said.contains(why), "{name} {arguments:?}: {said}");
    }
    for (subject, body, why) in [
        ("weir.revoke", json!({}), "name whom it is about"),
        ("weir.revoke", json!({"usr": "ann"}), "unknown field"),
        ("weir.revoke", json!({"user": 7}), "invalid type"),
        (
            "weir.revoke",
            json!({"user": "ann", "issued_before": "soon"}),
            "is no time",
        ),
        (
            "weir.disconnect",
            json!({"reason": "none"}),
            "name whom it is about",
        ),
        (
            "weir.unsubscribe",
            json!({"user": "ann", "reconnect": true}),
            "weir.disconnect",
        ),
    ] {
        let answer = ask(&two.operator, subject, body).await;
        let error = &answer["error"];
        assert_eq!(error["code"], 107, "{subject}: {answer}");
        assert!(
            error["message"].as_str().unwrap().contains(why),
            "{subject}: {answer}"
        );
    }
    let (code, said) = command(
        "revoke",
        &[
            "--token-id",
            "one",
            "--reason",
            "lost\nphone",
            "--ttl",
            "2h",
        ],
    );
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("revoked   1 entries"), "{said}");
    let (_, said) = command("revoke", &["--list"]);
    assert!(
        said.contains("revoke the token \"one\"") && said.contains("lost\\nphone"),
        "{said}"
    );
    assert!(said.ends_with("1 entries\n"), "{said}");

    // Nobody else is heard: nats-server lets nobody else publish there.
    let eve = bot(&two.nats, "eve", &of("eve")).await;
    for client in [
        two.nats.client("bot").await,
        two.nats.client("dev1").await,
        eve,
    ] {
        for subject in [
            "weir.revoke",
            "weir.disconnect",
            "weir.unsubscribe",
            "weir.ordered",
        ] {
            let body = json!({"user": "ann"}).to_string();
            let asked = client.send_request(
                subject,
                async_nats::Request::new()
                    .payload(body.into())
                    .timeout(Some(Duration::from_millis(500))),
            );
            assert_eq!(asked.await.unwrap_err().kind(), RequestErrorKind::TimedOut);
        }
    }
    let (_, said) = command("revoke", &["--list"]);
    assert!(said.ends_with("1 entries\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_narrows_takes_rooms_away_at_once() {
    let nats = Nats::start().await;
    let weir = Weir::start(Config::new(&nats.url())).await;
    let caps = |rooms: &[&str]| {
        let caps = json!([{"channels": rooms, "allow": ["sub", "pub"]}]);
        token("ann", "t", 0, json!({"caps": caps}))
    };
    let (a, b) = ("closed:a", "closed:b");
    let mut ann = connect(&weir, &caps(&[a, b])).await.unwrap();
    let mut writer = connect(&weir, &caps(&[a, b])).await.unwrap();
    for room in [a, b] {
        ann.subscribe(room, None).await.unwrap();
    }
    ann.call("refresh", json!({"token": caps(&[b])}))
        .await
        .unwrap();
    let push = ann.push(Instant::now() + WITHIN).await.unwrap().unwrap();
    assert_eq!(push.channel, a);
    assert_eq!(
        push.unsubscribe.map(|unsubscribed| unsubscribed.code),
        Some(2000)
    );
    for room in [a, b] {
        writer.publish(room, "1").await.unwrap();
    }
    assert_eq!(ann.publication(WITHIN).await.unwrap().0, b);
    assert_eq!(ann.publish(a, "1").await.unwrap_err().code(), 103);
    assert_eq!(ann.subscribe(a, None).await.unwrap_err().code(), 103);
    ann.publish(b, "2").await.unwrap();
    // What the new token allows again is there again.
    ann.call("refresh", json!({"token": caps(&[a, b])}))
        .await
        .unwrap();
    ann.subscribe(a, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_lost_gets_its_revocations_back() {
    let nats = Nats::start().await;
    let mut weir = Weir::start(Config::new(&nats.url())).await;
    let operator = nats.client("ops").await;
    let lost = token("ann", "lost", 2, json!({}));
    let body = json!({"token_id": "lost", "reason": "a phone in a taxi"});
    let answer = ask(&operator, "weir.revoke", body).await;
    assert_eq!(answer["result"]["processes"], 1, "{answer}");
    let js = nats.jetstream().await;
    js.delete_key_value("weir").await.unwrap();
    until("it is written again", Duration::from_secs(60), async || {
        let Ok(bucket) = js.get_key_value("weir").await else {
            return false;
        };
        let entry = bucket.get("control.revoke.token.lost").await;
        entry.is_ok_and(|entry| entry.is_some())
    })
    .await;
    // Whoever knows nothing else reads it there.
    weir.stop();
    weir.spawn();
    weir.until_ready().await;
    let found = connect(&weir, &lost).await.err();
    assert_eq!(found.map(|error| error.code()), Some(3500));
}
