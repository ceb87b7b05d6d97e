//! Knows: what was published reads back byte for byte over archive and stream, in every direction.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::figures::figure;
use crate::harness::client::{Client, Failure, Page, Position, publish_body};
use crate::harness::rig::Rig;
use crate::harness::{Rng, either, heavy, scan, seed, until};

/// Commands that may be under way on one socket.
const IN_FLIGHT: usize = 100;

/// Messages of every shape that JSON has, one room after the other.
fn messages(seed: u64, rooms: usize, each: usize) -> BTreeMap<String, Vec<String>> {
    let mut rng = Rng::new(seed);
    let mut all = BTreeMap::new();
    for room in 0..rooms {
        let texts = (0..each).map(|n| {
            let fill = "y".repeat(rng.below(300) as usize);
            match rng.below(6) {
                0 => format!("{{ \"n\" : {n},\t\"s\":\"{fill}\" }}"),
                1 => format!("[{n},\"\\u0000\\n\\ud83d\\ude00\",1.50,-0,1e3]"),
                2 => format!("\"{n} é 漢字 😀 {fill}\""),
                3 => format!("{{\"n\":{n},\"n\":{n},\"deep\":[[[[{{\"a\":null}}]]]]}}"),
                4 => format!("{n}.{}", rng.below(1_000_000)),
                _ => format!("{{\"n\":{n},\"fill\":\"{fill}\"}}"),
            }
        });
        all.insert(format!("chat:room {room} é"), texts.collect());
    }
    all
}

async fn publish_all(client: &mut Client, all: &BTreeMap<String, Vec<String>>) {
    let longest = all.values().map(Vec::len).max().unwrap();
    let mut waiting = Vec::new();
    // Across rooms in turn, so that each room is spread over the whole log.
    for n in 0..longest {
        for (room, texts) in all {
            let body = publish_body(room, &texts[n]);
            waiting.push(client.send("publish", &body).await.unwrap());
            if waiting.len() == IN_FLIGHT {
                for id in waiting.drain(..) {
                    client.reply(id).await.unwrap();
                }
            }
        }
    }
    for id in waiting {
        client.reply(id).await.unwrap();
    }
}

/// A page of history; asks again where the answer is a temporary error.
async fn page(
    client: &mut Client,
    room: &str,
    since: Option<&Position>,
    limit: i32,
    reverse: bool,
) -> Page {
    for _ in 0..50 {
        match client.history(room, since, limit, reverse).await {
            Ok(page) => return page,
            Err(Failure::Error {
                temporary: true, ..
            }) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(failure) => panic!("history of {room}: {failure:?}"),
        }
    }
    panic!("history of {room} stays unavailable");
}

/// Reads a room whole in pages of `limit`; offsets must go strictly one way.
async fn read(client: &mut Client, room: &str, limit: i32, reverse: bool) -> Vec<String> {
    let mut texts = Vec::new();
    let top = page(client, room, None, 0, false).await;
    let head = top.offset;
    let mut since = if reverse {
        None
    } else {
        Some(Position {
            epoch: top.epoch,
            offset: 0,
        })
    };
    loop {
        let page = page(client, room, since.as_ref(), limit, reverse).await;
        for publication in &page.publications {
            let last = since.as_ref().map(|position| position.offset);
            let ordered = last.is_none_or(|last| {
                if reverse {
                    publication.offset < last
                } else {
                    publication.offset > last
                }
            });
            assert!(ordered, "{room}: {} after {last:?}", publication.offset);
            since = Some(Position {
                epoch: page.epoch.clone(),
                offset: publication.offset,
            });
            texts.push(publication.data.get().to_owned());
        }
        assert_eq!(
            page.offset, head,
            "{room}: the top moved though nobody wrote"
        );
        if page.publications.is_empty() {
            break;
        }
    }
    if reverse {
        texts.reverse();
    }
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_messages_read_back_over_archive_and_stream() {
    let _turn = heavy().await;
    let seed = seed("archive", 71);
    let (rooms, each) = (50, 200);
    let all = messages(seed, rooms, each);
    let mut rig = Rig::servers(0, false, |config| {
        config.client.push_str("command_rate_limit = 0\n");
    })
    .await;
    let mut client = rig.client("author").await;
    publish_all(&mut client, &all).await;
    let streamed = scan::stream(&rig.nats).await;
    assert_eq!(streamed.len(), rooms * each);
    let newest = streamed.last().unwrap().offset;
    until(
        "the archive's watermark is at the head",
        Duration::from_secs(120),
        async || rig.weir.archive().up_to().await >= newest,
    )
    .await;

    // Cut the stream to its last 500.
    let js = rig.nats.jetstream().await;
    let name = scan::generations(&rig.nats).await.pop().unwrap().stream;
    let mut stream = js.get_stream(&name).await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_messages = 500;
    js.update_stream(config).await.unwrap();
    assert_eq!(scan::stream(&rig.nats).await.len(), 500);

    let start = std::time::Instant::now();
    let sample = either(12, rooms);
    let mut rng = Rng::new(seed);
    for (number, (room, texts)) in all.iter().enumerate() {
        let page_size = 1 + rng.below(150) as i32;
        assert_eq!(
            &read(&mut client, room, 100, false).await,
            texts,
            "{room} forward"
        );
        assert_eq!(
            &read(&mut client, room, 100, true).await,
            texts,
            "{room} backward"
        );
        if number < sample {
            let paged = read(&mut client, room, page_size, number % 2 == 0).await;
            assert_eq!(&paged, texts, "{room} in pages of {page_size}");
        }
    }

    figure!(
        "{} messages of {rooms} rooms read forward, backward and of {sample} rooms by page in {:.1?}",
        rooms * each,
        start.elapsed()
    );

    // Recovery of everything, from the archive: the first page in the reply, the rest as pushes.
    let (room, texts) = all.first_key_value().unwrap();
    let from = Position {
        epoch: String::new(),
        offset: 0,
    };
    let joined = client.subscribe(room, Some(&from)).await.unwrap();
    assert!(joined.recovered && joined.was_recovering, "{joined:?}");
    let mut recovered: Vec<_> = joined
        .publications
        .iter()
        .map(|publication| publication.data.get().to_owned())
        .collect();
    while recovered.len() < texts.len() {
        let (_, publication) = client
            .publication(Duration::from_secs(20))
            .await
            .expect("the rest");
        recovered.push(publication.data.get().to_owned());
    }
    assert_eq!(&recovered, texts);
    let position = Position {
        epoch: joined.epoch,
        offset: 1,
    };

    // The archive is lost: it fills itself again with what the stream still has, and says so.
    rig.weir.stop();
    rig.weir.archive().lose().await;
    rig.weir.spawn();
    rig.weir.until_ready().await;
    until(
        "the new archive has what the stream has",
        Duration::from_secs(60),
        async || {
            rig.weir.archive().up_to().await >= newest
                && rig.weir.archive().rows().await.len() == 500
        },
    )
    .await;
    let mut client = rig.client("author").await;
    for (room, _) in all.iter().take(5) {
        let kept: Vec<_> = streamed[streamed.len() - 500..]
            .iter()
            .filter(|row| row.data == all[room][each - 1].as_bytes())
            .collect();
        assert!(
            !kept.is_empty(),
            "the newest message of {room} is in the last 500"
        );
        let texts = read(&mut client, room, 100, false).await;
        assert!(
            all[room].ends_with(&texts) && !texts.is_empty(),
            "{room}: {}",
            texts.len()
        );
    }
    let joined = client.subscribe(room, Some(&position)).await.unwrap();
    assert!(
        joined.was_recovering && !joined.recovered,
        "a silent gap: {joined:?}"
    );
    assert!(joined.publications.is_empty());
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_breaks_of_a_bot_are_kept_in_the_log_and_left_out_of_frames() {
    let rig = Rig::servers(1, false, |_| {}).await;
    let bot = rig.nats.client("bot").await;
    let mut reader = rig.client("reader").await;
    reader.subscribe("chat:r0", None).await.unwrap();
    let data = "{\r\n  \"a\": [1,\n 2]\n}";
    let answer = bot.request("say.bot.chat.r0", data.into()).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["offset"].is_u64(), "{answer}");
    let (_, publication) = reader.publication(Duration::from_secs(10)).await.unwrap();
    assert_eq!(publication.data.get(), data.replace(['\r', '\n'], ""));
    assert_eq!(publication.info.unwrap().user, "bot");
    assert_eq!(scan::stream(&rig.nats).await[0].data, data.as_bytes());
    until("it is archived", Duration::from_secs(20), async || {
        rig.weir.archive().up_to().await >= publication.offset
    })
    .await;
    assert_eq!(rig.weir.archive().rows().await[0].data, data.as_bytes());
    let page = reader.history("chat:r0", None, 10, false).await.unwrap();
    assert_eq!(
        page.publications[0].data.get(),
        data.replace(['\r', '\n'], "")
    );
}
