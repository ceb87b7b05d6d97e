//! Knows: a client that is very far behind recovers completely, in bounded memory, while others chat undisturbed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::figures::figure;
use crate::harness::client::{Client, Position, publish_body};
use crate::harness::rig::Rig;
use crate::harness::{either, heavy, scan, until};

const FAR: &str = "chat:far";
const LIVE: &str = "chat:live";
const CHATTERS: usize = 100;
/// What all of them say together in a second.
const SAID_PER_S: u64 = 25;
/// Weir may take this much more while it serves the one who is behind; its page cache is a part of it.
const MEMORY_MAX_BYTES: u64 = 48 << 20;
const CACHE_BYTES: u64 = 4 << 20;
const IN_FLIGHT: usize = 100;

/// Publishes `count` numbered messages of about 200 bytes.
async fn publish(client: &mut Client, count: usize) {
    let fill = "f".repeat(180);
    let mut waiting = Vec::with_capacity(IN_FLIGHT);
    for n in 0..count {
        let body = publish_body(FAR, &format!("{{\"n\":{n},\"f\":\"{fill}\"}}"));
        waiting.push(client.send("publish", &body).await.unwrap());
        if waiting.len() == IN_FLIGHT || n + 1 == count {
            for id in waiting.drain(..) {
                client.reply(id).await.unwrap();
            }
        }
    }
}

/// Chats in turn with all others, and notes how long each of its own messages took to come back.
async fn chat(address: String, number: usize, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut client = Client::connect(&address, Some(&format!("chatter{number}")))
        .await
        .unwrap();
    client.subscribe(LIVE, None).await.unwrap();
    let every = Duration::from_secs(1) * u32::try_from(CHATTERS).unwrap()
        / u32::try_from(SAID_PER_S).unwrap();
    let mut next = Instant::now() + every * u32::try_from(number).unwrap() / 100;
    let (mut took, mut said) = (Vec::new(), None);
    while !stop.load(Ordering::Relaxed) {
        if said.is_none() && Instant::now() >= next {
            next = Instant::now() + every;
            let body = publish_body(LIVE, &number.to_string());
            client.send("publish", &body).await.unwrap();
            said = Some(Instant::now());
        }
        let look = next.min(Instant::now() + Duration::from_millis(200));
        let push = client.push(look).await.unwrap();
        let is_mine = push
            .and_then(|push| push.publication)
            .is_some_and(|publication| publication.data.get() == number.to_string());
        if is_mine && let Some(at) = said.take() {
            took.push(at.elapsed());
        }
    }
    took
}

/// Runs `work` while everybody chats; the latencies, sorted.
async fn while_chatting(rig: &Rig, work: impl Future<Output = ()>) -> Vec<Duration> {
    let stop = Arc::new(AtomicBool::new(false));
    let chatters: Vec<_> = (0..CHATTERS)
        .map(|number| tokio::spawn(chat(rig.weir.address(), number, Arc::clone(&stop))))
        .collect();
    work.await;
    stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for chatter in chatters {
        took.extend(chatter.await.unwrap());
    }
    took.sort();
    took
}

fn at(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// Recovers everything, in order; nothing is kept but the last number.
async fn recover(rig: &Rig, count: usize) {
    let mut client = rig.client("late").await;
    let begin = Position::default();
    let joined = client.subscribe(FAR, Some(&begin)).await.unwrap();
    assert!(joined.recovered && joined.was_recovering);
    let mut next = 0;
    let mut take = |data: &str| {
        let expected = format!("{{\"n\":{next},");
        assert!(data.starts_with(&expected), "{next} is missing: {data}");
        next += 1;
        next < count
    };
    let mut is_behind = true;
    for publication in &joined.publications {
        is_behind = take(publication.data.get());
    }
    while is_behind {
        let (_, publication) = client
            .publication(Duration::from_secs(30))
            .await
            .expect("the rest is pushed");
        is_behind = take(publication.data.get());
    }
    // Live from here on.
    client.publish(FAR, "\"live\"").await.unwrap();
    let (_, publication) = client.publication(Duration::from_secs(20)).await.unwrap();
    assert_eq!(publication.data.get(), "\"live\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_very_far_behind_recovers_while_a_hundred_others_chat() {
    let _turn = heavy().await;
    let count = either(20_000, 300_000);
    let rig = Rig::servers(0, false, |config| {
        config.client.push_str("command_rate_limit = 0\n");
        config
            .more
            .push_str(&format!("[history]\ncache_max_size = {CACHE_BYTES}\n"));
    })
    .await;
    let mut author = rig.client("author").await;
    publish(&mut author, count).await;
    let name = scan::generations(&rig.nats).await.pop().unwrap().stream;
    let js = rig.nats.jetstream().await;
    let mut stream = js.get_stream(&name).await.unwrap();
    let newest = stream.info().await.unwrap().state.last_sequence;
    until("all is archived", Duration::from_secs(300), async || {
        rig.weir.metric("weir_archive_lag_messages").await == Some(0.0)
            && rig.weir.archive().up_to().await >= newest
    })
    .await;
    // Most of it is in the archive alone.
    let keep = newest - 1_000;
    stream.purge().sequence(keep).await.unwrap();

    let span = either(Duration::from_secs(8), Duration::from_secs(20));
    let alone = while_chatting(&rig, tokio::time::sleep(span)).await;
    let before = rig.weir.memory_bytes();
    let (mut most, start) = (before, Instant::now());
    let beside = while_chatting(&rig, async {
        let mut work = Box::pin(recover(&rig, count));
        loop {
            let done = tokio::time::timeout(Duration::from_millis(20), &mut work).await;
            most = rig.weir.memory_bytes().max(most);
            if done.is_ok() {
                return;
            }
        }
    })
    .await;
    let took = start.elapsed();
    figure!(
        "{count} messages behind: recovered in {took:?}, {} KiB more memory; \
         chat p50 / p99 alone {:?} / {:?}, beside it {:?} / {:?}",
        (most - before) >> 10,
        at(&alone, 0.5),
        at(&alone, 0.99),
        at(&beside, 0.5),
        at(&beside, 0.99),
    );
    assert!(
        most - before <= MEMORY_MAX_BYTES,
        "{} bytes more than {before}",
        most - before
    );
    // The aim is no difference; this is what a test on a busy machine may say.
    assert!(at(&beside, 0.99) <= at(&alone, 0.99) * 5 + Duration::from_secs(1));
    rig.require_calm();
}
