//! Knows: what an attacker at the public door must not get: room names, other sites' answers, other
//! listeners, lines in the log, a second copy of a message. Never: tokens, frames (hostile, tokens).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::figures::figure;
use crate::harness::client::{Client, Failure};
use crate::harness::rig::Rig;
use crate::harness::{either, until};

const WITHIN: Duration = Duration::from_secs(10);
/// What a shell or a terminal would act upon.
const NASTY: &str =
    "a\u{1b}[31m\u{1b}]0;x\u{7}\r\n{\"level\":\"ERROR\",\"message\":\"forged\"}\u{202e}\u{2028}";

/// Sends a request as it is and returns the head of the answer, in lower case.
async fn head(address: &str, request: &str) -> String {
    let answer = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.unwrap() == 1 {
            answer.push(byte[0]);
        }
        String::from_utf8(answer).unwrap().to_lowercase()
    };
    tokio::time::timeout(WITHIN, answer)
        .await
        .expect("an answer in time")
}

/// Whether a room is there, who is in it and what was said cannot be told by who may not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_tells_whether_a_room_is_there() {
    let probes = either(60, 1_000);
    let rig = Rig::servers(1, false, |config| {
        config.more =
            "[[channel.namespaces]]\nname = \"dialog\"\nhistory_size = -1\nhistory_ttl = \"0s\"\n\
            allow_user_limited_channels = true\nallow_publish_for_subscriber = true\n"
                .into();
    })
    .await;
    // Rooms that were spoken in, and in which somebody is, beside such that never were.
    let ops = rig.nats.client("ops").await;
    let mut lurker = rig.client("lurker").await;
    lurker.subscribe("chat:there", None).await.unwrap();
    let said = ops.request("say.ops.chat.there", "1".into()).await;
    let answer: Value = serde_json::from_slice(&said.unwrap().payload).unwrap();
    assert!(answer["offset"].is_u64(), "{answer}");
    let mut ann = rig.client("ann").await;
    ann.subscribe("dialog:x#ann", None).await.unwrap();
    ann.publish("dialog:x#ann", "1").await.unwrap();
    let mut eve = rig.client("eve").await;
    let pairs = [
        ("closed:there", "closed:nowhere"),
        ("$closed:there", "$closed:nowhere"),
        ("dialog:x#ann", "dialog:x#bob"),
        ("nope:there", "none:there"),
    ];
    let mut answers: BTreeMap<(usize, &str), BTreeSet<String>> = BTreeMap::new();
    for probe in 0..probes {
        let nth = probe % pairs.len();
        let room = if (probe / pairs.len()).is_multiple_of(2) {
            pairs[nth].0
        } else {
            pairs[nth].1
        };
        for (method, body) in [
            ("subscribe", json!({ "channel": room })),
            (
                "subscribe",
                json!({ "channel": room, "recover": true, "epoch": "x", "offset": 1 }),
            ),
            ("history", json!({ "channel": room, "limit": 1 })),
            ("presence", json!({ "channel": room })),
            ("presence_stats", json!({ "channel": room })),
            ("publish", json!({ "channel": room, "data": 1 })),
        ] {
            let answer = eve.call(method, body).await;
            let Err(failure @ Failure::Error { .. }) = answer else {
                panic!("{method} {room}: {answer:?}");
            };
            answers
                .entry((nth, method))
                .or_default()
                .insert(format!("{failure:?}"));
        }
    }
    figure!(
        "{probes} probes of {} pairs of rooms, 6 questions each",
        pairs.len()
    );
    let told: Vec<_> = answers.iter().filter(|(_, said)| said.len() > 1).collect();
    assert!(told.is_empty(), "{told:#?}");
    rig.require_calm();
}

/// Pages of other sites are told nothing, whatever they ask for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_sites_are_given_no_permission() {
    let rig = Rig::servers(1, false, |_| {}).await;
    let public = rig.weir.address();
    let internal = format!("127.0.0.1:{}", rig.weir.config.internal_port);
    let mut asked = 0;
    for address in [&public, &internal] {
        for path in [
            "/",
            "/connection/websocket",
            "/health",
            "/ready",
            "/metrics",
            "/api",
            "/nope",
        ] {
            for method in ["OPTIONS", "GET", "POST"] {
                for origin in ["https://evil.example", "null"] {
                    let request = format!(
                        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nOrigin: {origin}\r\nCookie: a=b\r\n\
                         Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\
                         Content-Length: 0\r\nConnection: close\r\n\r\n"
                    );
                    let head = head(address, &request).await;
                    assert!(head.starts_with("http/1.1 "), "{method} {path}: {head}");
                    assert!(!head.contains("access-control-"), "{method} {path}: {head}");
                    assert!(!head.contains("set-cookie"), "{method} {path}: {head}");
                    asked += 1;
                }
            }
        }
    }
    figure!("{asked} requests of other sites");
    // What operators see is not at the public door.
    for path in [
        "/health",
        "/ready",
        "/metrics",
        "/debug/pprof",
        "/api",
        "/admin",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {public}\r\nConnection: close\r\n\r\n");
        let head = head(&public, &request).await;
        assert!(head.starts_with("http/1.1 404 "), "{path}: {head}");
    }
}

/// A message that inflates cannot come in: compression is never agreed on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_is_never_agreed_on() {
    let rig = Rig::servers(1, false, |_| {}).await;
    let address = rig.weir.address();
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits; server_no_context_takeover",
        "x-webkit-deflate-frame, permessage-bzip2",
    ] {
        let request = format!(
            "GET /connection/websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Extensions: {offer}\r\n\r\n"
        );
        let head = head(&address, &request).await;
        assert!(head.starts_with("http/1.1 101 "), "{offer}: {head}");
        assert!(!head.contains("extensions"), "{offer}: {head}");
    }
}

/// The ports, in TCP's state of listening, that a process holds on any address.
fn listening(pid: u32) -> BTreeMap<u16, String> {
    let inodes: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| {
            let link = link.to_string_lossy().into_owned();
            let inode = link.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let mut ports = BTreeMap::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Local address, state (0A is LISTEN), inode.
            if fields[3] == "0A" && inodes.contains(fields[9]) {
                let (address, port) = fields[1].split_once(':').unwrap();
                ports.insert(u16::from_str_radix(port, 16).unwrap(), address.to_owned());
            }
        }
    }
    ports
}

/// What is not needed is not open, and nothing but what was asked for is open to the world.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_two_listeners_are_open() {
    let rig = Rig::servers(1, false, |_| {}).await;
    // 127.0.0.1, as the kernel writes it.
    const LOOPBACK: &str = "0100007F";
    let config = &rig.weir.config;
    let expected = [config.port, config.internal_port].map(|port| (port, LOOPBACK.to_owned()));
    assert_eq!(listening(rig.weir.pid()), BTreeMap::from(expected));
}

/// What clients call themselves and their rooms is a value in one record of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_says_is_no_line_of_the_log() {
    let rig = Rig::servers(1, false, |config| {
        config.more = "[log]\nlevel = \"trace\"\nformat = \"json\"\n".into();
    })
    .await;
    let mut client = Client::open(&rig.weir.address()).await.unwrap();
    let hello = json!({ "name": NASTY, "version": NASTY, "token": "" });
    client.call("connect", hello).await.unwrap();
    for room in [
        format!("chat:{NASTY}"),
        format!("nope:{NASTY}"),
        NASTY.to_owned(),
    ] {
        // Refused or not, it was said.
        let answer = client.subscribe(&room, None).await;
        assert!(!matches!(answer, Err(Failure::Silent)), "{room:?}");
    }
    let frame = json!({ "id": 9, NASTY: { "channel": NASTY } }).to_string();
    client.raw(Message::text(frame)).await.unwrap();
    client.until_closed(WITHIN).await;
    let bot = rig.nats.client("bot").await;
    let mut headers = HeaderMap::new();
    headers.insert("Idempotency-Key", "a\u{1b}[31m");
    let say = bot.request_with_headers("say.bot.chat.r0", headers, NASTY.into());
    say.await.unwrap();
    until("it is in the log", WITHIN, async || {
        rig.weir.log().contains("connection closed")
    })
    .await;
    let log = rig.weir.log();
    // What `weir serve` says to its terminal, on the other stream, is in the same file.
    let banner = ["Weir ", "  page ", "  WebSocket ", "  inside ", "  NATS "];
    let is_banner =
        |line: &str| line.is_empty() || banner.iter().any(|said| line.starts_with(said));
    let lines = log.lines().filter(|line| !is_banner(line));
    let mut count = 0;
    for line in lines {
        count += 1;
        let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        assert_ne!(record["message"], "forged", "{line}");
        let raw = |c: char| c.is_control() || ('\u{2028}'..='\u{2029}').contains(&c);
        assert!(!line.contains(raw), "{line:?}");
    }
    figure!("{count} lines of the log, each one record");
    assert!(count > 4);
}

/// What is sent again, by whom it was sent or by whom it was captured, is stored once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captured_publish_that_is_sent_again_is_stored_once() {
    let messages = either(100, 1_000);
    let rig = Rig::servers(1, false, |_| {}).await;
    let bot = rig.nats.client("bot").await;
    let mut first = Vec::new();
    for round in 0..2 {
        for n in 0..messages {
            let mut headers = HeaderMap::new();
            headers.insert("Idempotency-Key", format!("key {n}").as_str());
            let say = bot.request_with_headers("say.bot.chat.r0", headers, format!("{n}").into());
            let answer: Value = serde_json::from_slice(&say.await.unwrap().payload).unwrap();
            let offset = answer["offset"]
                .as_u64()
                .unwrap_or_else(|| panic!("{answer}"));
            match round {
                0 => first.push(offset),
                _ => assert_eq!(offset, first[n], "the answer is the first one's: {answer}"),
            }
        }
    }
    // The same key of another user is another message.
    let ops = rig.nats.client("ops").await;
    let mut headers = HeaderMap::new();
    headers.insert("Idempotency-Key", "key 0");
    let say = ops.request_with_headers("say.ops.chat.r0", headers, "\"mine\"".into());
    let answer: Value = serde_json::from_slice(&say.await.unwrap().payload).unwrap();
    assert!(
        answer["offset"]
            .as_u64()
            .is_some_and(|offset| !first.contains(&offset)),
        "{answer}"
    );
    let rows = crate::harness::scan::stream(&rig.nats).await;
    figure!(
        "{messages} messages sent twice, {} stored with one of another user",
        rows.len()
    );
    assert_eq!(rows.len(), messages + 1);
}
