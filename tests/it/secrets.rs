//! Knows: no secret and no token is in a log, at any level, whatever becomes of it; and secrets come from files. Never: what
//! a token may do.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::figures::figure;
use crate::harness::client::Client;
use crate::harness::nats::Nats;
use crate::harness::until;
use crate::harness::weir::{Config, Weir};

const WITHIN: Duration = Duration::from_secs(20);
/// In a file, and nowhere in the configuration.
const TOKEN_KEY: &str = "a-key-of-tokens-that-no-log-may-ever-show-17";
const PASSWORD: &str = "-password-that-no-log-may-show-31";
const PAYLOAD: &str = "payload-that-no-log-may-show-23";
const QUERY: &str = "query-that-no-log-may-show-29";

fn signed(key: &str, claims: &serde_json::Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(key.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

/// A socket whose address holds what some SDKs put there.
async fn with_query(address: &str, query: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /connection/websocket?{query} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie: session={QUERY}\r\n\
         Authorization: Bearer {QUERY}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    std::str::from_utf8(&head[9..]).unwrap().parse().unwrap()
}

async fn connected(address: &str, token: &str) -> Client {
    let mut client = Client::open(address).await.unwrap();
    let connect = json!({ "token": token });
    client.call("connect", connect).await.unwrap();
    client
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, format!("{text}\n")).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_log_shows_a_secret_or_a_token() {
    let nats = Nats::start_secret(PASSWORD).await;
    let folder = tempfile::tempdir().unwrap();
    let key_file = write(folder.path(), "token.key", TOKEN_KEY);
    let mut config = Config::new(&nats.url());
    config.token = format!("hmac_secret_key_file = {key_file:?}");
    config.more =
        nats.auth_callout() + "[log]\nlevel = \"trace,async_nats=trace\"\nformat = \"json\"\n";
    config.password = nats.password("weir");
    config.suffix = PASSWORD.to_owned();
    config.passwords_in = Some(folder.path().to_owned());
    let weir = Weir::start(config).await;
    let at = weir.address();

    let claims = json!({ "sub": "ann", "exp": 4_102_444_800_u64, "info": { "secret": QUERY } });
    let good = signed(TOKEN_KEY, &claims);
    let forged = signed("a key that is somebody else's, 32 bytes", &claims);
    let expired = signed(TOKEN_KEY, &json!({ "sub": "ann", "exp": 1_000_000_000 }));
    let room = signed(
        TOKEN_KEY,
        &json!({ "sub": "ann", "channel": "closed:a", "exp": 4_102_444_800_u64 }),
    );
    for token in [
        &good,
        &forged,
        &expired,
        &format!("{good}x"),
        &format!("x.{good}"),
    ] {
        let mut client = Client::open(&at).await.unwrap();
        // Refused or not is other tests'.
        drop(client.call("connect", json!({ "token": token })).await);
        drop(client.call("refresh", json!({ "token": token })).await);
    }
    for token in [&room, &forged, &expired] {
        let mut client = connected(&at, &good).await;
        let body = json!({ "channel": "closed:a", "token": token });
        drop(client.call("subscribe", body.clone()).await);
        drop(client.call("sub_refresh", body).await);
    }
    let mut client = connected(&at, &good).await;
    let payload = format!("{PAYLOAD:?}");
    client.publish("chat:a", &payload).await.unwrap();
    let rpc = json!({ "method": "nobody", "data": PAYLOAD });
    drop(client.call("rpc", rpc).await);
    let broken = format!("{{\"connect\":{good:?}");
    drop(client.raw(Message::text(broken)).await);
    // A token in the address is for other servers, and must not be in a log either; it is no token here.
    for query in [
        format!("cf_connect=%7B%22token%22%3A%22{good}%22%7D"),
        format!("token={good}&x={QUERY}"),
    ] {
        assert_eq!(with_query(&at, &query).await, 101);
    }
    // The native door, by token.
    for token in [&good, &forged, &expired] {
        let options = async_nats::ConnectOptions::with_token(token.clone());
        if let Ok(bot) = options
            .custom_inbox_prefix("_INBOX.ann")
            .connect(nats.url())
            .await
        {
            let answer = bot.request("say.ann.chat.a", PAYLOAD.into()).await;
            drop(answer);
        }
    }
    until("it was all seen", WITHIN, async || {
        let log = weir.log();
        log.matches("token refused").count() >= 3 && log.contains("TRACE")
    })
    .await;

    let mut secrets: Vec<(String, String)> = [TOKEN_KEY, PASSWORD, PAYLOAD, QUERY]
        .into_iter()
        .map(|text| (text.to_owned(), text.to_owned()))
        .collect();
    for token in [good, forged, expired, room] {
        // Each part by itself: of the header nothing is secret.
        for part in token.split('.').skip(1) {
            secrets.push((format!("a part of {token}"), part.to_owned()));
        }
    }
    for name in ["issuer.seed", "xkey.seed"] {
        secrets.push((name.to_owned(), nats.seed(name)));
    }
    let log = weir.log();
    let shown: Vec<&String> = secrets
        .iter()
        .filter(|(_, secret)| log.contains(secret.as_str()))
        .map(|(name, _)| name)
        .collect();
    assert!(shown.is_empty(), "in the log: {shown:#?}");
    figure!("{} lines of log at trace", log.lines().count());
}
