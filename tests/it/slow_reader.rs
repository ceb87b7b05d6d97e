//! Knows: readers that stop reading under traffic cost the edge next to nothing and lose nothing.

use std::time::{Duration, Instant};

use crate::harness::client::{Client, Failure, Position};
use crate::harness::rig::Rig;
use crate::harness::{either, heavy, until};

/// Stopped readers of a run: the cost of one is their cost divided by this.
const STOPPED: u64 = 16;
const MEGABYTE: u64 = 1 << 20;
const ROOM: &str = "chat:r0";

struct Traffic {
    author: Client,
    sent: usize,
}

impl Traffic {
    /// Publishes `bytes` in messages of 16 KiB, ten under way.
    async fn send(&mut self, bytes: u64) {
        let fill = "z".repeat(16 << 10);
        let mut waiting = Vec::new();
        for _ in 0..bytes / (16 << 10) {
            let data = format!("{{\"n\":{},\"fill\":\"{fill}\"}}", self.sent);
            self.sent += 1;
            let body = crate::harness::client::publish_body(ROOM, &data);
            waiting.push(self.author.send("publish", &body).await.unwrap());
            if waiting.len() == 10 {
                for id in waiting.drain(..) {
                    self.author.reply(id).await.unwrap();
                }
            }
        }
        for id in waiting {
            self.author.reply(id).await.unwrap();
        }
    }
}

/// The `n` of a payload.
fn number(data: &str) -> usize {
    let digits = data.strip_prefix("{\"n\":").unwrap();
    digits[..digits.find(',').unwrap()].parse().unwrap()
}

/// A reader with a small socket buffer, and what it has had so far.
struct Narrow {
    client: Client,
    position: Position,
    /// The next message that it has to get.
    next: usize,
}

impl Narrow {
    async fn join(rig: &Rig, user: &str) -> Self {
        let mut client = Client::open_narrow(&rig.weir.address(), Some(16 << 10))
            .await
            .unwrap();
        client.hello(Some(user)).await.unwrap();
        let joined = client.subscribe(ROOM, None).await.unwrap();
        let position = Position {
            epoch: joined.epoch,
            offset: joined.offset,
        };
        Self {
            client,
            position,
            next: 0,
        }
    }

    fn take(&mut self, data: &str, offset: u64) {
        assert_eq!(number(data), self.next, "out of order or skipped");
        assert!(offset > self.position.offset);
        self.position.offset = offset;
        self.next += 1;
    }

    /// Reads on until everything up to `end` is here.
    async fn read_up_to(&mut self, end: usize, deadline: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + deadline;
        while self.next < end {
            let push = self.client.push(deadline).await?.ok_or(Failure::Silent)?;
            assert!(push.unsubscribe.is_none(), "unsubscribed: {push:?}");
            if let Some(publication) = push.publication {
                self.take(publication.data.get(), publication.offset);
            }
        }
        Ok(())
    }

    /// Comes back on a new socket and recovers.
    async fn come_back(&mut self, rig: &Rig, user: &str) {
        let mut client = rig.client(user).await;
        let joined = client.subscribe(ROOM, Some(&self.position)).await.unwrap();
        assert!(joined.recovered, "{:?}", (joined.epoch, joined.offset));
        self.client = client;
        for publication in joined.publications {
            self.take(publication.data.get(), publication.offset);
        }
    }
}

/// Peak memory of Weir while `work` runs.
async fn peak<T>(rig: &Rig, work: impl Future<Output = T>) -> (u64, T) {
    let mut work = std::pin::pin!(work);
    let mut peak = rig.weir.memory_bytes();
    loop {
        match tokio::time::timeout(Duration::from_millis(20), &mut work).await {
            Ok(value) => return (peak.max(rig.weir.memory_bytes()), value),
            Err(_) => peak = peak.max(rig.weir.memory_bytes()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_stop_keeps_the_socket_and_a_long_one_ends_in_no_pong() {
    let _turn = heavy().await;
    let (ping, pong) = either((2, 2), (25, 8));
    let bytes = either(12, 50) * MEGABYTE;
    let rig = Rig::servers(1, false, |config| {
        config.client.push_str(&format!(
            "ping_interval = \"{ping}s\"\npong_timeout = \"{pong}s\"\n"
        ));
    })
    .await;
    let mut traffic = Traffic {
        author: rig.client("author").await,
        sent: 0,
    };

    // What the same traffic costs with nobody stopped; caches and rings are warm after it.
    traffic.send(bytes).await;
    let (base, ()) = peak(&rig, traffic.send(bytes)).await;
    traffic.sent = 0;

    let mut short = Narrow::join(&rig, "short").await;
    let mut stopped = Vec::new();
    for number in 0..STOPPED {
        stopped.push(Narrow::join(&rig, &format!("stopped{number}")).await);
    }
    let start = Instant::now();
    let (under_load, ()) = peak(&rig, traffic.send(bytes)).await;
    // The short one stops for less than a pong may take; how long it stopped is the test's subject.
    let stop_for = either(Duration::from_millis(1_500), Duration::from_secs(5));
    tokio::time::sleep(stop_for.saturating_sub(start.elapsed())).await;
    eprintln!("the short stop was {:?}", start.elapsed());
    let extra = under_load.saturating_sub(base) / (STOPPED + 1);
    eprintln!("memory: {base} with nobody stopped, {under_load} with {STOPPED}: {extra} each");
    assert!(extra <= MEGABYTE, "a stopped reader costs {extra} bytes");
    let kept = short
        .read_up_to(traffic.sent, Duration::from_secs(60))
        .await;
    assert_eq!(kept, Ok(()), "the reader that stopped for a moment");

    // The others never answer a ping. The edge closes them; log and metric say why.
    rig.weir
        .until_metric("weir_edge_closed_no_pong", Duration::from_secs(120), |n| {
            n >= STOPPED as f64
        })
        .await;
    assert!(
        rig.weir.log().contains("3012"),
        "the log does not name 3012"
    );
    for (number, reader) in stopped.iter_mut().enumerate() {
        // What was on its way when the socket ended still counts; then it ends, 3012 or 1006.
        let end = reader
            .read_up_to(traffic.sent, Duration::from_secs(30))
            .await;
        if let Err(failure) = end {
            assert!(matches!(failure.code(), 3012 | 1006), "{failure:?}");
        }
        reader.come_back(&rig, &format!("stopped{number}")).await;
        reader
            .read_up_to(traffic.sent, Duration::from_secs(60))
            .await
            .unwrap();
    }
    // Both are live again.
    traffic.send(MEGABYTE).await;
    let end = traffic.sent;
    for reader in stopped.iter_mut().chain([&mut short]) {
        reader
            .read_up_to(end, Duration::from_secs(60))
            .await
            .unwrap();
    }
    until("nobody is behind", Duration::from_secs(20), async || {
        rig.weir.metric("weir_edge_behind").await == Some(0.0)
    })
    .await;
    rig.require_calm();
}
