//! Knows: readers that stop reading under traffic cost the edge next to nothing and lose nothing.

use std::time::{Duration, Instant};

use crate::figures::figure;
use crate::harness::client::{Client, Failure, Position};
use crate::harness::rig::Rig;
use crate::harness::{either, heavy, until};

/// Stopped readers of a run: the cost of one is their cost divided by this.
const STOPPED: u64 = 40;
const MEGABYTE: u64 = 1 << 20;
const MESSAGE_BYTES: u64 = 16 << 10;
const ROOM: &str = "chat:r0";

struct Traffic {
    author: Client,
    sent: usize,
}

impl Traffic {
    /// Publishes `bytes` in messages of 16 KiB, ten under way.
    async fn send(&mut self, bytes: u64) {
        let fill = "z".repeat(MESSAGE_BYTES as usize);
        let mut waiting = Vec::new();
        for _ in 0..bytes / MESSAGE_BYTES {
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

/// Runs `work` and notes the peak of Weir's memory.
async fn peak<T>(rig: &Rig, peak: &mut u64, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        let done = tokio::time::timeout(Duration::from_millis(20), &mut work).await;
        *peak = rig.weir.memory_bytes().max(*peak);
        if let Ok(value) = done {
            return value;
        }
    }
}

/// Traffic, under which one reader stops reading for a while and then takes it all, on its socket.
async fn stop_briefly(
    rig: &Rig,
    traffic: &mut Traffic,
    bytes: u64,
    reader: &mut Narrow,
    stop_for: Duration,
    most: &mut u64,
) {
    let end = traffic.sent + (bytes / MESSAGE_BYTES) as usize;
    let ((), kept) = peak(rig, most, async {
        tokio::join!(traffic.send(bytes), async {
            tokio::time::sleep(stop_for).await;
            reader.read_up_to(end, Duration::from_secs(120)).await
        })
    })
    .await;
    assert_eq!(kept, Ok(()), "the reader that stopped for {stop_for:?}");
}

/// Waits until the edge has closed all stopped readers for their missing pongs.
async fn until_closed(rig: &Rig) {
    let all = |closed: f64| closed >= STOPPED as f64;
    rig.weir
        .until_metric("weir_edge_closed_no_pong", Duration::from_secs(120), all)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_stop_keeps_the_socket_and_a_long_one_ends_in_no_pong() {
    let _turn = heavy().await;
    let (ping, pong) = either((4, 3), (25, 8));
    let bytes = either(12, 50) * MEGABYTE;
    let rig = Rig::servers(1, false, |config| {
        config.client.push_str(&format!(
            "ping_interval = \"{ping}s\"\npong_timeout = \"{pong}s\"\ncommand_rate_limit = 0\n"
        ));
    })
    .await;
    let mut traffic = Traffic {
        author: rig.client("author").await,
        sent: 0,
    };

    let messages = (bytes / MESSAGE_BYTES) as usize;
    // How long the short one stops is the test's subject, so it is a time and no condition.
    let stop_for = either(Duration::from_millis(1_500), Duration::from_secs(5));

    // What the same traffic costs with one stopped reader. The first round fills the allocator's pools and
    // the cache of pages, which all readers share. The others differ by what the worker that fills
    // the archive has in its hands, so the larger counts, and so many stop below that this is little each.
    let mut one = 0;
    for round in 0..3 {
        let mut steady = Narrow::join(&rig, "steady").await;
        steady.next = traffic.sent;
        let start = rig.weir.memory_bytes();
        let mut most = start;
        stop_briefly(&rig, &mut traffic, bytes, &mut steady, stop_for, &mut most).await;
        let more = most - start;
        figure!("round {round}: one stopped reader: {more} bytes more than {start}");
        if round > 0 {
            one = more.max(one);
        }
    }

    let first = traffic.sent;
    let end = first + messages;
    let mut short = Narrow::join(&rig, "short").await;
    let mut stopped = Vec::new();
    for number in 0..STOPPED {
        stopped.push(Narrow::join(&rig, &format!("stopped{number}")).await);
    }
    for reader in stopped.iter_mut().chain([&mut short]) {
        reader.next = first;
    }
    let start = rig.weir.memory_bytes();
    let mut most = start;
    stop_briefly(&rig, &mut traffic, bytes, &mut short, stop_for, &mut most).await;
    let extra = (most - start).saturating_sub(one) / STOPPED;
    figure!(
        "{STOPPED} more stopped: {} bytes more than {start}: {extra} each",
        most - start
    );
    assert!(extra <= MEGABYTE, "a stopped reader costs {extra} bytes");

    // The others never answer a ping. The edge closes them; log and metric say why. They come back
    // and have everything, and what is written meanwhile; the short one never left.
    let last = end + (MEGABYTE / MESSAGE_BYTES) as usize;
    let back = stopped
        .iter_mut()
        .enumerate()
        .map(async |(number, reader)| {
            until_closed(&rig).await;
            // What was on its way when the socket ended still counts; then it ends, 3012 or 1006.
            if let Err(failure) = reader.read_up_to(end, Duration::from_secs(60)).await {
                assert!(matches!(failure.code(), 3012 | 1006), "{failure:?}");
            }
            reader.come_back(&rig, &format!("stopped{number}")).await;
            reader
                .read_up_to(last, Duration::from_secs(120))
                .await
                .unwrap();
        });
    let write = async {
        until_closed(&rig).await;
        traffic.author = rig.client("author").await;
        traffic.send(MEGABYTE).await;
    };
    let (kept, (), _) = tokio::join!(
        short.read_up_to(last, Duration::from_secs(240)),
        write,
        futures_util::future::join_all(back)
    );
    assert_eq!(kept, Ok(()), "the reader that stopped for {stop_for:?}");
    assert!(
        rig.weir.log().contains("3012"),
        "the log does not name 3012"
    );
    until("nobody is behind", Duration::from_secs(20), async || {
        rig.weir.metric("weir_edge_behind").await == Some(0.0)
    })
    .await;
    rig.require_calm();
}
