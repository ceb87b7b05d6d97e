//! Knows: what tokens do at a real socket: the whole table of good and bad ones, keys that change
//! under load, ends and refreshes, public info, and that none of it is in a log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::figures::figure;
use crate::harness::client::{Client, Failure};
use crate::harness::rig::Rig;
use crate::harness::until;
use crate::jwks::{Answer, KeyServer};
use crate::token_cases::{
    A, B, C, C_AUDIENCE, Case, ED, ED_PUBLIC, Expected, P256_PUBLIC, PREVIOUS, RSA_PUBLIC, SECRET,
    cases, good, jwk, set_of_b, set_of_c, sign,
};

const WITHIN: Duration = Duration::from_secs(20);

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

fn own_keys() -> String {
    format!(
        "issuer = \"{A}\"\nhmac_secret_key = \"{SECRET}\"\nhmac_previous_secret_key = \"{PREVIOUS}\"\n\
         hmac_previous_secret_key_valid_until = {}\nrsa_public_key = \"\"\"{RSA_PUBLIC}\"\"\"\n\
         ecdsa_public_key = \"\"\"{P256_PUBLIC}\"\"\"\ned25519_public_key = \"\"\"{ED_PUBLIC}\"\"\"\n",
        now_s() + 3_600
    )
}

fn issuer(name: &str, iss: &str, server: &KeyServer, more: &str) -> String {
    let url = server.url();
    format!(
        "\n[[client.token.issuers]]\nname = \"{name}\"\nissuer = \"{iss}\"\njwks_public_endpoint = \"{url}\"\n{more}\n"
    )
}

async fn connect(address: &str, token: &str) -> Result<(Client, Value), Failure> {
    let mut client = Client::open(address).await?;
    let hello = client.call("connect", json!({ "token": token })).await?;
    Ok((client, hello))
}

/// Nothing of these texts is in the log, nor any part of a token that is longer than a word.
fn assert_not_logged<'t>(log: &str, texts: impl Iterator<Item = &'t str>) {
    for text in texts {
        for part in text.split(['.', '\n']).filter(|part| part.len() >= 16) {
            assert!(!log.contains(part), "the log holds {part:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_token_of_the_table_at_a_socket() {
    let canary = KeyServer::start(Answer::Body(set_of_c())).await;
    let server_b = KeyServer::start(Answer::Body(set_of_b())).await;
    let server_c = KeyServer::start(Answer::Body(set_of_c())).await;
    let rig = Rig::servers(1, false, |config| {
        let audience = format!("audience = \"{C_AUDIENCE}\"");
        config.token = own_keys();
        config.more = issuer("b", B, &server_b, "") + &issuer("c", C, &server_c, &audience);
        // As much as it can say, so that nothing hides behind the level.
        config.more += "\n[log]\nlevel = \"debug,weir=trace,weir_edge=trace,weir_authz=trace,weir_nats=trace\"\n";
    })
    .await;
    let address = rig.weir.address();
    let cases = cases(now_s(), &canary.url());
    assert!(cases.len() >= 60, "{}", cases.len());
    let outcomes = join_all(cases.iter().enumerate().map(|(nth, case)| {
        let address = address.clone();
        async move {
            let found = connect(&address, &case.token).await;
            if let (Ok((mut client, _)), Expected::User(_)) = (found, case.expected) {
                // Who it is, as everybody else sees it.
                return client
                    .publish("chat:matrix", &nth.to_string())
                    .await
                    .map_err(|error| error.code());
            }
            connect(&address, &case.token)
                .await
                .map(drop)
                .map_err(|error| error.code())
        }
    }));
    let outcomes = outcomes.await;
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let expected = match case.expected {
            Expected::User(_) => Ok(()),
            Expected::Expired => Err(109),
            Expected::ConnectionExpired => Err(110),
            Expected::Invalid => Err(3500),
        };
        assert_eq!(*outcome, expected, "{}", case.name);
    }
    let reader = sign(Algorithm::HS256, None, &good(A, now_s()), SECRET);
    let (mut reader, _) = connect(&address, &reader).await.unwrap();
    let mut authors = BTreeMap::new();
    let page = reader
        .history("chat:matrix", None, 300, false)
        .await
        .unwrap();
    for publication in page.publications {
        let nth: usize = serde_json::from_str(publication.data.get()).unwrap();
        authors.insert(nth, publication.info.unwrap().user);
    }
    for (nth, case) in cases.iter().enumerate() {
        if let Expected::User(user) = case.expected {
            assert_eq!(
                authors.get(&nth).map(String::as_str),
                Some(user),
                "{}",
                case.name
            );
        }
    }
    assert_eq!(
        canary.requests(),
        0,
        "an address that a token named was asked"
    );
    // Where it does not belong, it is still a token.
    let token = &cases[0].token;
    for frame in [
        format!("{{\"id\":1,\"connect\":\"{token}\"}}"),
        format!("{{\"id\":\"{token}\",\"connect\":{{}}}}"),
        format!("{{\"id\":1,\"connect\":{{\"token\":{{\"{token}\":1}}}}}}"),
        format!("{{\"id\":1,\"connect\":{{\"token\":\"{token}\"}}"),
        token.clone(),
    ] {
        let mut client = Client::open(&address).await.unwrap();
        client.raw(Message::text(frame)).await.unwrap();
        assert_eq!(client.until_closed(WITHIN).await.code(), 3501);
    }
    let log = rig.weir.log();
    assert!(
        log.contains("token refused"),
        "what was refused is logged, without the token"
    );
    let texts = cases.iter().map(|case: &Case| case.token.as_str());
    assert_not_logged(&log, texts.chain([SECRET, PREVIOUS]));
    figure!(
        "{} tokens at a socket; {} requests to the address of B",
        cases.len(),
        server_b.requests()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_rotate_under_load_with_no_failed_connect() {
    let set = |kids: &[usize]| {
        let keys: Vec<_> = kids
            .iter()
            .map(|nth| jwk(ED, Algorithm::EdDSA, &format!("k{nth}")))
            .collect();
        Answer::Late(
            Duration::from_millis(100),
            json!({ "keys": keys }).to_string(),
        )
    };
    let server = KeyServer::start(set(&[0])).await;
    let rig = Rig::servers(1, false, |config| {
        config.token = format!("jwks_public_endpoint = \"{}\"\n", server.url());
    })
    .await;
    let address = rig.weir.address();
    let newest = Arc::new(AtomicUsize::new(0));
    let (done, connects) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (address, newest) = (address.clone(), Arc::clone(&newest));
            let (done, connects) = (Arc::clone(&done), Arc::clone(&connects));
            tokio::spawn(async move {
                let mut slowest = Duration::ZERO;
                while !done.load(Ordering::Relaxed) {
                    let kid = format!("k{}", newest.load(Ordering::Relaxed));
                    let token = sign(Algorithm::EdDSA, Some(&kid), &good(B, now_s()), ED);
                    let start = Instant::now();
                    if let Err(failure) = connect(&address, &token).await {
                        return Err(format!("{kid}: {failure:?}"));
                    }
                    slowest = slowest.max(start.elapsed());
                    connects.fetch_add(1, Ordering::Relaxed);
                }
                Ok(slowest)
            })
        })
        .collect();
    let rotations = 3;
    for nth in 0..=rotations {
        if nth > 0 {
            server.now(set(&[nth - 1, nth]));
            newest.store(nth, Ordering::Relaxed);
        }
        let before = connects.load(Ordering::Relaxed);
        until("connects go on", WITHIN, async || {
            connects.load(Ordering::Relaxed) >= before + 40
        })
        .await;
    }
    done.store(true, Ordering::Relaxed);
    let mut slowest = Duration::ZERO;
    for one in load {
        slowest = slowest.max(one.await.unwrap().unwrap());
    }
    let requests = server.requests();
    assert!(requests <= 2 + rotations, "{requests} requests");
    figure!(
        "{rotations} rotations under {} connects: none failed, slowest {} ms, {requests} requests",
        connects.load(Ordering::Relaxed),
        slowest.as_millis()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_slow_to_come_holds_up_its_own_command_only() {
    let server = KeyServer::start(Answer::Body(set_of_c())).await;
    let rig = Rig::servers(1, false, |config| {
        config.token = own_keys();
        config.more = issuer("c", C, &server, "");
    })
    .await;
    let address = rig.weir.address();
    let token = |iss: &str, kid: Option<&str>, extra: Value| {
        let mut claims = good(iss, now_s());
        for (name, value) in extra.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let (algorithm, key) = if iss == A {
            (Algorithm::HS256, SECRET)
        } else {
            (Algorithm::EdDSA, ED)
        };
        sign(algorithm, kid, &claims, key)
    };
    let (mut client, _) = connect(&address, &token(A, None, json!({}))).await.unwrap();
    let slow = json!({"keys": [jwk(ED, Algorithm::EdDSA, "slow")]}).to_string();
    server.now(Answer::Late(Duration::from_millis(1_500), slow));
    let refresh = json!({"token": token(C, Some("slow"), json!({}))});
    let subscribe = json!({"channel": "closed:a", "token": token(C, Some("slow"), json!({"channel": "closed:a"}))});
    let refresh = client.send("refresh", &refresh.to_string()).await.unwrap();
    let subscribe = client
        .send("subscribe", &subscribe.to_string())
        .await
        .unwrap();
    let start = Instant::now();
    for nth in 0..10 {
        client.publish("chat:r0", &nth.to_string()).await.unwrap();
    }
    let published = start.elapsed();
    assert!(
        client.take_reply(refresh).is_none(),
        "the refresh cannot be answered yet ({published:?})"
    );
    assert!(published < Duration::from_millis(1_400), "{published:?}");
    assert_eq!(client.reply(refresh).await.unwrap()["expires"], true);
    client.reply(subscribe).await.unwrap();
    // A subscribe that is given up while it waits does not come back.
    server.now(Answer::Hangup);
    let lost = json!({"channel": "closed:b", "token": token(C, Some("lost"), json!({"channel": "closed:b"}))});
    let waited = client.call("subscribe", lost.clone()).await.unwrap_err();
    assert_eq!(waited.code(), 100, "the address is down: try again");
    let refused = connect(&address, &token(C, Some("lost"), json!({})))
        .await
        .map(drop);
    assert_eq!(refused.unwrap_err().code(), 100);
    // Those whose keys are here notice nothing.
    assert!(
        connect(&address, &token(C, Some("slow"), json!({})))
            .await
            .is_ok()
    );
    assert!(connect(&address, &token(A, None, json!({}))).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_subscriptions_end_and_are_refreshed() {
    let rig = Rig::servers(1, false, |config| {
        config.client = "expired_close_delay = \"1s\"\nexpired_sub_close_delay = \"1s\"\n".into();
        config.token = own_keys();
    })
    .await;
    let address = rig.weir.address();
    let token = |extra: Value| {
        let mut claims = good(A, now_s());
        for (name, value) in extra.as_object().unwrap() {
            claims[name] = value.clone();
        }
        sign(Algorithm::HS256, None, &claims, SECRET)
    };
    let ends = |in_s: i64| json!({"exp": now_s() + in_s});
    let of_room = |in_s: i64| token(json!({"exp": now_s() + in_s, "channel": "closed:a"}));

    // The connection: told when it ends, closed after the delay, unless it is refreshed.
    let (mut brief, hello) = connect(&address, &token(ends(2))).await.unwrap();
    assert!(
        hello["expires"] == true && hello["ttl"].as_u64().is_some_and(|ttl| ttl <= 2),
        "{hello}"
    );
    let (mut kept, hello) = connect(&address, &token(ends(2))).await.unwrap();
    let start = Instant::now();
    let reply = kept
        .call("refresh", json!({"token": token(ends(600))}))
        .await
        .unwrap();
    assert!(
        reply["expires"] == true && reply["ttl"].as_u64().is_some_and(|ttl| ttl > 590),
        "{reply}"
    );
    assert_eq!(reply["client"], hello["client"]);
    assert_eq!(brief.until_closed(WITHIN).await.code(), 3005);
    let lived = start.elapsed();
    assert!(
        lived > Duration::from_secs(2) && lived < Duration::from_secs(10),
        "{lived:?}"
    );
    assert_eq!(
        connect(&address, &token(ends(-60)))
            .await
            .map(drop)
            .unwrap_err()
            .code(),
        109
    );

    // A subscription: the same, with 2501.
    let subscribe = async |client: &mut Client, token: &str| {
        let body = json!({"channel": "closed:a", "token": token}).to_string();
        let id = client.send("subscribe", &body).await?;
        client.reply(id).await?;
        Ok::<_, Failure>(client.take_join(id).unwrap())
    };
    let joined = subscribe(&mut kept, &of_room(2)).await.unwrap();
    assert!(
        joined.expires && (1..=2).contains(&joined.ttl),
        "{joined:?}"
    );
    let start = Instant::now();
    let ended = loop {
        let push = kept.push(Instant::now() + WITHIN).await.unwrap().unwrap();
        if let Some(ended) = push.unsubscribe {
            break (push.channel, ended.code);
        }
    };
    let lived = start.elapsed();
    assert_eq!(ended, ("closed:a".to_owned(), 2501));
    assert!(
        lived > Duration::from_millis(1_500) && lived < Duration::from_secs(10),
        "{lived:?}"
    );
    assert_eq!(
        subscribe(&mut kept, &of_room(-60))
            .await
            .unwrap_err()
            .code(),
        109
    );
    subscribe(&mut kept, &of_room(2)).await.unwrap();
    let refresh = json!({"channel": "closed:a", "token": of_room(600)});
    let reply = kept.call("sub_refresh", refresh).await.unwrap();
    assert!(
        reply["ttl"].as_u64().is_some_and(|ttl| ttl > 590),
        "{reply}"
    );
    let quiet = kept
        .push(Instant::now() + Duration::from_secs(4))
        .await
        .unwrap();
    assert!(
        quiet.is_none_or(|push| push.unsubscribe.is_none()),
        "a refreshed subscription ended"
    );
    // Without one the client would be refreshed as somebody else.
    let other = json!({"token": token(json!({"sub": "bob"}))});
    let closed = kept.call("refresh", other).await.unwrap_err();
    assert_eq!(closed.code(), 3500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn info_of_tokens_is_the_same_live_in_history_and_recovered() {
    let rig = Rig::servers(1, false, |config| config.token = own_keys()).await;
    let address = rig.weir.address();
    let claims = |extra: Value| {
        let mut claims = good(A, now_s());
        for (name, value) in extra.as_object().unwrap() {
            claims[name] = value.clone();
        }
        sign(Algorithm::HS256, None, &claims, SECRET)
    };
    let (mut ann, _) = connect(&address, &claims(json!({"info": {"name": "Ann"}})))
        .await
        .unwrap();
    let room = json!({
        "channel": "chat:info", "info": {"role": "owner"}, "data": {"theme": "dark"},
    });
    let body = json!({"channel": "chat:info", "token": claims(room)}).to_string();
    let id = ann.send("subscribe", &body).await.unwrap();
    ann.reply(id).await.unwrap();
    let joined = ann.take_join(id).unwrap();
    assert_eq!(joined.data, json!({"theme": "dark"}));
    ann.publish("chat:info", "1").await.unwrap();
    let (_, live) = ann.publication(WITHIN).await.unwrap();
    let page = ann.history("chat:info", None, 10, false).await.unwrap();
    let from = crate::harness::client::Position {
        epoch: joined.epoch,
        offset: joined.offset,
    };
    let mut later = connect(&address, &claims(json!({"sub": "later"})))
        .await
        .unwrap()
        .0;
    let recovered = later.subscribe("chat:info", Some(&from)).await.unwrap();
    assert!(recovered.recovered);
    let infos = [
        live.info,
        page.publications[0].info.clone(),
        recovered.publications[0].info.clone(),
    ];
    for info in infos {
        let info = info.unwrap();
        assert_eq!(info.user, "ann");
        assert_eq!(info.conn_info, Some(json!({"name": "Ann"})));
        assert_eq!(info.chan_info, Some(json!({"role": "owner"})));
    }
}
