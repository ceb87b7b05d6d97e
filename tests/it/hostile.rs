//! Knows: hostile input at the socket and at the native door, and the documented answer to each.

mod frames;
mod names;

use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::Value;

use crate::figures::figure;
use crate::harness::client::{Client, Failure};
use crate::harness::rig::Rig;
use crate::harness::within;

/// What a case has to end in.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// The command's result.
    Result,
    /// An error reply of this code; the connection lives.
    Error(u32),
    /// The connection is closed with this code.
    Close(u16),
    /// The connection is closed with the first, or with the second where a library is in between.
    CloseOr(u16, u16),
    /// No matter what, as nothing documents it; nobody else may notice.
    Survive,
}

/// A room that somebody else is in while hostile things happen, and how many links Weir has.
struct Bystander {
    client: Client,
    links: usize,
}

impl Bystander {
    async fn start(rig: &Rig) -> Self {
        let mut client = rig.client("bystander").await;
        client.subscribe("chat:bystander", None).await.unwrap();
        Self {
            client,
            links: rig.proxy.as_ref().unwrap().accepted(),
        }
    }

    /// Fails if anything but its own message came, if Weir died, or if NATS dropped Weir.
    async fn require_peace(mut self, rig: &mut Rig) {
        let mut author = rig.client("author").await;
        author.publish("chat:bystander", "\"peace\"").await.unwrap();
        let (room, publication) = self
            .client
            .publication(Duration::from_secs(10))
            .await
            .expect("the own message");
        assert_eq!(
            (room.as_str(), publication.data.get()),
            ("chat:bystander", "\"peace\"")
        );
        assert!(rig.weir.ended().is_none(), "weir ended");
        assert_eq!(
            rig.proxy.as_ref().unwrap().accepted(),
            self.links,
            "NATS dropped a link"
        );
        rig.require_calm();
    }
}

/// Fails with the case's name unless the result is the wanted one.
fn judge(name: &str, want: Want, got: &Result<Value, Failure>) -> Result<(), String> {
    let fits = match (want, got) {
        (Want::Survive, _) | (Want::Result, Ok(_)) => true,
        (Want::Error(code), Err(Failure::Error { code: got, .. })) => code == *got,
        (Want::Close(code), Err(Failure::Closed { code: got, .. })) => code == *got,
        (Want::CloseOr(code, other), Err(Failure::Closed { code: got, .. })) => {
            code == *got || other == *got
        }
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        Err(format!("{name}: wanted {want:?}, got {got:?}"))
    }
}

/// Asks the door as the bot; the error code, or 0 for a stored message.
async fn say(bot: &async_nats::Client, subject: &str, headers: HeaderMap, data: &[u8]) -> u64 {
    let request = bot.request_with_headers(subject.to_owned(), headers, data.to_vec().into());
    let answer = within("the door's answer", Duration::from_secs(10), request)
        .await
        .unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    answer["error"]["code"].as_u64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_door_answers_hostile_requests_with_the_documented_code() {
    let mut rig = Rig::servers(1, true, |_| {}).await;
    let bystander = Bystander::start(&rig).await;
    let bot = rig.nats.client("bot").await;
    let long_hash = "=hAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let big = format!("\"{}\"", "b".repeat(64 << 10));
    let cases: &[(&str, &str, &[u8], u64)] = &[
        ("plain", "say.bot.chat.a", b"{}", 0),
        ("escaped", "say.bot.chat.a=20b", b"1", 0),
        ("not JSON", "say.bot.chat.a", b"hello", 107),
        ("empty", "say.bot.chat.a", b"", 107),
        ("two values", "say.bot.chat.a", b"{} {}", 107),
        ("not UTF-8", "say.bot.chat.a", b"\"\xff\xfe\"", 107),
        ("truncated", "say.bot.chat.a", b"{\"a\":", 107),
        ("too large", "say.bot.chat.a", big.as_bytes(), 107),
        ("literal star", "say.bot.chat.*", b"1", 107),
        ("literal greater", "say.bot.chat.>", b"1", 107),
        ("lower-case escape", "say.bot.chat.a=2a", b"1", 107),
        ("needless escape", "say.bot.chat.=41", b"1", 107),
        ("cut escape", "say.bot.chat.a=2", b"1", 107),
        ("escape of no UTF-8", "say.bot.chat.=FF", b"1", 107),
        ("escape that is not NFC", "say.bot.chat.e=CC=81", b"1", 107),
        ("raw dollar", "say.bot.chat.$JS", b"1", 107),
        (
            "hash without a name",
            &format!("say.bot.chat.{long_hash}"),
            b"1",
            107,
        ),
        ("unknown namespace", "say.bot.nope.a", b"1", 102),
        ("closed namespace", "say.bot.closed.a", b"1", 103),
        ("not stored", "say.bot.loose.a", b"1", 108),
    ];
    let mut wrong = Vec::new();
    figure!("{} requests at the door", cases.len());
    for (name, subject, data, want) in cases {
        // A subject that nobody listens on is an answer too: no responders.
        let request = bot.request(subject.to_string(), data.to_vec().into());
        let got = match within(name, Duration::from_secs(10), request).await {
            Ok(answer) => {
                let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
                answer["error"]["code"].as_u64().unwrap_or(0)
            }
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => 107,
            Err(error) => panic!("{name}: {error}"),
        };
        if got != *want {
            wrong.push(format!("{name}: wanted {want}, got {got}"));
        }
    }
    for (key, want) in [
        ("", 107),
        (&"k".repeat(5_000), 107),
        ("a key", 0),
        ("a key", 0),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("Idempotency-Key", key);
        let got = say(&bot, "say.bot.chat.a", headers, b"1").await;
        if got != want {
            wrong.push(format!(
                "key of {} bytes: wanted {want}, got {got}",
                key.len()
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    bystander.require_peace(&mut rig).await;
}
