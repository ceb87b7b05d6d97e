//! Knows: a table of frames and commands, and the documented answer to each. Never: the native door.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::{Bystander, Want, judge};
use crate::figures::figure;
use crate::harness::client::{Client, Failure};
use crate::harness::rig::Rig;

use Want::{Close, CloseOr, Error, Survive};

fn text(text: impl Into<String>) -> Message {
    Message::text(text.into())
}

fn command(method: &str, body: &str) -> Message {
    text(format!("{{\"id\":7,\"{method}\":{body}}}"))
}

fn subscribe(channel: &str) -> Message {
    command(
        "subscribe",
        &serde_json::json!({ "channel": channel }).to_string(),
    )
}

fn publish(channel: &str) -> Message {
    command(
        "publish",
        &serde_json::json!({ "channel": channel, "data": 1 }).to_string(),
    )
}

fn raw(bytes: &[u8], opcode: OpCode, whole: bool) -> Message {
    Message::Frame(Frame::message(bytes.to_vec(), opcode, whole))
}

/// Before the connect command nothing else is understood.
fn unconnected() -> Vec<(&'static str, Message, Want)> {
    vec![
        ("subscribe first", subscribe("chat:a"), Close(3501)),
        ("publish first", publish("chat:a"), Close(3501)),
        ("a pong first", text("{}"), Close(3501)),
        ("unknown method first", command("fly", "{}"), Close(3501)),
        ("connect with id 0", text("{\"connect\":{}}"), Close(3501)),
        ("connect is null", command("connect", "null"), Close(3501)),
        ("connect is a number", command("connect", "5"), Close(3501)),
        ("connect is a list", command("connect", "[]"), Close(3501)),
        (
            "the token is a number",
            command("connect", "{\"token\":5}"),
            Close(3501),
        ),
        (
            "the token is no token",
            command("connect", "{\"token\":\"a.b.c\"}"),
            Close(3500),
        ),
        (
            "the token is empty parts",
            command("connect", "{\"token\":\"..\"}"),
            Close(3500),
        ),
        (
            "alg none",
            command(
                "connect",
                "{\"token\":\"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.\"}",
            ),
            Close(3500),
        ),
        ("an empty frame", text(""), Close(3501)),
        ("a binary frame", Message::binary(&b"{}"[..]), Close(3501)),
        (
            "HTTP on the socket",
            text("GET / HTTP/1.1\r\n\r\n"),
            Close(3501),
        ),
    ]
}

/// What a connected client may get wrong in a frame.
fn malformed() -> Vec<(&'static str, Message, Want)> {
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let many = "{}\n".repeat(5_000);
    vec![
        ("an empty frame", text(""), Close(3501)),
        ("only a line break", text("\n"), Close(3501)),
        (
            "a blank line between",
            text("{\"id\":7,\"rpc\":{}}\n\n{\"id\":8,\"rpc\":{}}"),
            Close(3501),
        ),
        ("not JSON", text("hello"), Close(3501)),
        (
            "truncated",
            text("{\"id\":7,\"publish\":{\"channel\":\"chat:a\","),
            Close(3501),
        ),
        ("a list", text("[]"), Close(3501)),
        (
            "a list of commands",
            text("[{\"id\":7,\"rpc\":{}}]"),
            Close(3501),
        ),
        ("null", text("null"), Close(3501)),
        ("a string", text("\"x\""), Close(3501)),
        (
            "two values on a line",
            text("{\"id\":7,\"rpc\":{}} {}"),
            Close(3501),
        ),
        (
            "a byte order mark",
            text("\u{feff}{\"id\":7,\"rpc\":{}}"),
            Close(3501),
        ),
        ("NUL", text("\0"), Close(3501)),
        (
            "not UTF-8",
            raw(
                b"{\"id\":7,\"rpc\":{\"method\":\"\xff\"}}",
                OpCode::Data(Data::Text),
                true,
            ),
            Close(1007),
        ),
        ("binary", Message::binary(&b"\x00"[..]), Close(3501)),
        (
            "a continuation of nothing",
            raw(b"x", OpCode::Data(Data::Continue), true),
            Close(1002),
        ),
        (
            "longer than 64 KiB",
            command(
                "publish",
                &format!(
                    "{{\"channel\":\"chat:a\",\"data\":\"{}\"}}",
                    "h".repeat(65_537)
                ),
            ),
            CloseOr(1009, 1006),
        ),
        ("a megabyte", text("m".repeat(1 << 20)), CloseOr(1009, 1006)),
        (
            "deep",
            command(
                "publish",
                &format!("{{\"channel\":\"chat:deep\",\"data\":{deep}}}"),
            ),
            Survive,
        ),
        ("a command that is deep", text(deep), Close(3501)),
        ("too many commands in a frame", text(many), Close(3501)),
        ("no command", text("{\"id\":7}"), Close(3501)),
        ("an unknown command", command("fly", "{}"), Close(3501)),
        ("a lone ping", command("ping", "{}"), Close(3501)),
        ("a pong that nobody asked for", text("{}"), Close(3501)),
        (
            "a command with id 0",
            text("{\"rpc\":{\"method\":\"a\"}}"),
            Close(3501),
        ),
        ("connect again", command("connect", "{}"), Close(3501)),
        ("send", text("{\"send\":{\"data\":1}}"), Close(3508)),
        (
            "the id is negative",
            text("{\"id\":-1,\"rpc\":{}}"),
            Close(3501),
        ),
        (
            "the id is a string",
            text("{\"id\":\"7\",\"rpc\":{}}"),
            Close(3501),
        ),
        (
            "the id is 2^32",
            text("{\"id\":4294967296,\"rpc\":{}}"),
            Close(3501),
        ),
        (
            "the id is twice there",
            text("{\"id\":7,\"id\":8,\"rpc\":{}}"),
            Close(3501),
        ),
        (
            "subscribe is a list",
            command("subscribe", "[\"chat:a\"]"),
            Close(3501),
        ),
        (
            "the channel is a number",
            command("subscribe", "{\"channel\":5}"),
            Close(3501),
        ),
        (
            "the channel is null",
            command("subscribe", "{\"channel\":null}"),
            Close(3501),
        ),
        (
            "the offset is negative",
            command(
                "subscribe",
                "{\"channel\":\"chat:a\",\"recover\":true,\"offset\":-1}",
            ),
            Close(3501),
        ),
        (
            "the offset is beyond u64",
            command(
                "subscribe",
                "{\"channel\":\"chat:a\",\"recover\":true,\"offset\":18446744073709551616}",
            ),
            Close(3501),
        ),
        (
            "a lone surrogate",
            command("subscribe", "{\"channel\":\"chat:\\ud800\"}"),
            Close(3501),
        ),
        (
            "the payload is not JSON",
            command("publish", "{\"channel\":\"chat:a\",\"data\":nope}"),
            Close(3501),
        ),
        (
            "a raw line break in the payload",
            command("publish", "{\"channel\":\"chat:a\",\"data\":{\n}}"),
            Close(3501),
        ),
        (
            "a raw line break in a string",
            command("publish", "{\"channel\":\"chat:a\",\"data\":\"a\nb\"}"),
            Close(3501),
        ),
    ]
}

/// What a connected client may get wrong in a command. The connection lives.
fn wrong() -> Vec<(&'static str, Message, Want)> {
    let long = "l".repeat(251);
    let method = "m".repeat(129);
    vec![
        ("256 bytes", subscribe(&format!("chat:{long}")), Error(107)),
        (
            "256 bytes to publish",
            publish(&format!("chat:{long}")),
            Error(107),
        ),
        ("not NFC", subscribe("chat:e\u{301}"), Error(107)),
        ("not NFC to publish", publish("chat:e\u{301}"), Error(107)),
        ("an empty id", subscribe("chat:"), Error(107)),
        ("an empty namespace", subscribe(":a"), Error(107)),
        ("a namespace with a dot", subscribe("a.b:c"), Error(107)),
        ("a namespace with a star", subscribe("*:c"), Error(107)),
        ("a namespace with a space", subscribe("a b:c"), Error(107)),
        ("an unknown namespace", subscribe("nope:a"), Error(102)),
        (
            "an unknown namespace to publish",
            publish("nope:a"),
            Error(102),
        ),
        ("no right to subscribe", subscribe("closed:a"), Error(103)),
        ("no right to publish", publish("closed:a"), Error(103)),
        ("a room without a namespace", subscribe("lobby"), Error(103)),
        (
            "a private room without a token",
            subscribe("$chat:a"),
            Error(103),
        ),
        (
            "somebody else's room",
            subscribe("chat:a#alice,bob"),
            Error(103),
        ),
        (
            "publish without data",
            command("publish", "{\"channel\":\"chat:a\"}"),
            Error(107),
        ),
        (
            "a map subscription",
            command("subscribe", "{\"channel\":\"chat:a\",\"type\":1}"),
            Error(108),
        ),
        (
            "a tags filter",
            command(
                "subscribe",
                "{\"channel\":\"chat:a\",\"tf\":{\"cmp\":\"eq\"}}",
            ),
            Error(107),
        ),
        (
            "presence is off",
            command("presence", "{\"channel\":\"chat:a\"}"),
            Error(108),
        ),
        (
            "presence of an unknown namespace",
            command("presence", "{\"channel\":\"nope:a\"}"),
            Error(102),
        ),
        (
            "history without a right",
            command("history", "{\"channel\":\"closed:a\"}"),
            Error(103),
        ),
        (
            "history of what is not stored",
            command("history", "{\"channel\":\"loose:a\"}"),
            Error(108),
        ),
        (
            "history of a bad name",
            command("history", "{\"channel\":\"chat:e\u{301}\"}"),
            Error(107),
        ),
        (
            "rpc without a service",
            command("rpc", "{\"method\":\"nobody.here\",\"data\":1}"),
            Error(108),
        ),
        (
            "rpc with a wildcard",
            command("rpc", "{\"method\":\"a.*\",\"data\":1}"),
            Error(107),
        ),
        (
            "rpc with an empty token",
            command("rpc", "{\"method\":\"a..b\",\"data\":1}"),
            Error(107),
        ),
        (
            "rpc with a space",
            command("rpc", "{\"method\":\"a b\",\"data\":1}"),
            Error(107),
        ),
        (
            "rpc to JetStream",
            command("rpc", "{\"method\":\"$JS.API.INFO\",\"data\":1}"),
            Error(107),
        ),
        (
            "rpc with 129 bytes",
            command("rpc", &format!("{{\"method\":\"{method}\",\"data\":1}}")),
            Error(107),
        ),
        (
            "sub_refresh of nothing",
            command("sub_refresh", "{\"channel\":\"chat:a\",\"token\":\"x\"}"),
            Error(103),
        ),
        (
            "unsubscribe of nothing",
            command("unsubscribe", "{\"channel\":\"chat:a\"}"),
            Want::Result,
        ),
        (
            "a carriage return in the payload",
            command("publish", "{\"channel\":\"chat:a\",\"data\":[1,\r2]}"),
            Want::Result,
        ),
        (
            "unknown fields",
            command(
                "publish",
                "{\"channel\":\"chat:a\",\"data\":1,\"to\":\"log.x\"}",
            ),
            Want::Result,
        ),
    ]
}

/// These close a connected client, though the frame is well formed.
fn fatal() -> Vec<(&'static str, Message, Want)> {
    vec![
        ("an empty channel", subscribe(""), Close(3501)),
        ("an empty channel to publish", publish(""), Close(3501)),
        (
            "an unknown delta",
            command("subscribe", "{\"channel\":\"chat:a\",\"delta\":\"x\"}"),
            Close(3501),
        ),
        (
            "refresh without a token",
            command("refresh", "{}"),
            Close(3501),
        ),
        (
            "refresh with a bad token",
            command("refresh", "{\"token\":\"x\"}"),
            Close(3500),
        ),
    ]
}

/// Sends one frame; the reply to command 7, or how the connection ended.
async fn send(client: &mut Client, message: Message) -> Result<Value, Failure> {
    client.raw(message).await?;
    match client.reply(7).await {
        // Nothing was said: the connection must still be of use.
        Err(Failure::Silent) => Err(Failure::Silent),
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_frames_get_the_documented_code_and_nobody_else_notices() {
    let mut rig = Rig::servers(1, true, |_| {}).await;
    let bystander = Bystander::start(&rig).await;
    let mut failed = Vec::new();
    let mut count = 0;
    for (name, message, want) in unconnected() {
        let mut client = Client::open(&rig.weir.address()).await.unwrap();
        let got = send(&mut client, message).await;
        failed.extend(judge(name, want, &got).err());
        count += 1;
    }
    for (name, message, want) in malformed().into_iter().chain(fatal()) {
        let mut client = rig.client("mallory").await;
        let got = send(&mut client, message).await;
        failed.extend(judge(name, want, &got).err());
        count += 1;
    }
    let mut client = rig.client("mallory").await;
    for (name, message, want) in wrong() {
        let got = send(&mut client, message).await;
        failed.extend(judge(name, want, &got).err());
        count += 1;
    }
    figure!("{count} frames");
    assert!(count >= 60, "only {count} cases");
    assert!(
        failed.is_empty(),
        "{} of {count}:\n{}",
        failed.len(),
        failed.join("\n")
    );
    bystander.require_peace(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_a_connection_hold() {
    let mut rig = Rig::servers(1, true, |config| {
        config
            .client
            .push_str("stale_close_delay = \"1s\"\nchannel_limit = 5\ncommand_rate_limit = 500\ncommand_burst = 1000\n");
    })
    .await;
    let bystander = Bystander::start(&rig).await;
    // Says nothing.
    let mut silent = Client::open(&rig.weir.address()).await.unwrap();
    let end = silent.until_closed(Duration::from_secs(10)).await;
    assert_eq!(end.code(), 3502, "{end:?}");
    // The same id twice: both are answered.
    let mut client = rig.client("mallory").await;
    client
        .raw(text("{\"id\":7,\"publish\":{\"channel\":\"chat:a\",\"data\":1}}\n{\"id\":7,\"history\":{\"channel\":\"closed:a\"}}"))
        .await
        .unwrap();
    let answers = [client.reply(7).await, client.reply(7).await];
    assert_eq!(
        answers.iter().filter(|answer| answer.is_ok()).count(),
        1,
        "{answers:?}"
    );
    // Subscribed twice, and one room more than allowed.
    for number in 0..5 {
        client
            .subscribe(&format!("chat:limit{number}"), None)
            .await
            .unwrap();
    }
    let again = client.subscribe("chat:limit0", None).await.unwrap_err();
    assert_eq!(again.code(), 105, "{again:?}");
    let more = client.subscribe("chat:limit5", None).await.unwrap_err();
    assert_eq!(more.code(), 106, "{more:?}");
    // Far too many commands: refused, and in the end closed.
    let mut codes = std::collections::BTreeMap::<u32, usize>::new();
    for _ in 0..40 {
        let lines: Vec<_> = (0..200)
            .map(|n| {
                format!(
                    "{{\"id\":{},\"presence\":{{\"channel\":\"chat:a\"}}}}",
                    1_000 + n
                )
            })
            .collect();
        if client.raw(text(lines.join("\n"))).await.is_err() {
            break;
        }
        for n in 0..200 {
            match client.reply(1_000 + n).await {
                Ok(_) => unreachable!("presence is off"),
                Err(failure) => *codes.entry(failure.code()).or_default() += 1,
            }
        }
    }
    assert!(
        codes.contains_key(&111),
        "never too many requests: {codes:?}"
    );
    assert!(
        codes.keys().all(|code| [108, 111, 3013].contains(code)),
        "{codes:?}"
    );
    bystander.require_peace(&mut rig).await;
}

/// Sends bytes to the public port; the status, or `None` if it only closed.
async fn http(address: &str, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request).await;
    let mut answer = vec![0; 1024];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut answer)).await;
    let length = read.expect("an answer or an end").ok()?;
    std::str::from_utf8(&answer[..length])
        .ok()?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_handshakes_are_refused() {
    let mut rig = Rig::servers(1, true, |_| {}).await;
    let bystander = Bystander::start(&rig).await;
    let address = rig.weir.address();
    let upgrade = |extra: &str| {
        format!(
            "GET /connection/websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extra}\r\n"
        )
    };
    let plain = format!("GET /connection/websocket HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let post = format!(
        "POST /connection/websocket HTTP/1.1\r\nHost: {address}\r\ncontent-length: 0\r\n\r\n"
    );
    let huge = upgrade(&format!("X-Huge: {}\r\n", "h".repeat(200 << 10)));
    type Answers = &'static [Option<u16>];
    let cases: &[(&str, Vec<u8>, Answers)] = &[
        ("good", upgrade("").into(), &[Some(101)]),
        (
            "own origin",
            upgrade(&format!("Origin: http://{address}\r\n")).into(),
            &[Some(101)],
        ),
        (
            "foreign origin",
            upgrade("Origin: https://evil.example\r\n").into(),
            &[Some(403)],
        ),
        (
            "null origin",
            upgrade("Origin: null\r\n").into(),
            &[Some(403)],
        ),
        (
            "origin with our name in front",
            upgrade(&format!("Origin: http://{address}.evil.example\r\n")).into(),
            &[Some(403)],
        ),
        ("no upgrade", plain.into(), &[Some(426), Some(400)]),
        ("POST", post.into(), &[Some(405), Some(400), Some(426)]),
        (
            "old version",
            upgrade("").replace("Version: 13", "Version: 8").into(),
            &[Some(400), Some(426)],
        ),
        (
            "no key",
            upgrade("")
                .replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "")
                .into(),
            &[Some(400)],
        ),
        (
            "200 KiB of headers",
            huge.into(),
            &[Some(431), Some(400), None],
        ),
        (
            "no HTTP",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            &[Some(400), None],
        ),
    ];
    let mut failed = Vec::new();
    figure!("{} handshakes", cases.len());
    for (name, request, wanted) in cases {
        let got = http(&address, request).await;
        if !wanted.contains(&got) {
            failed.push(format!("{name}: wanted {wanted:?}, got {got:?}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    bystander.require_peace(&mut rig).await;
}
