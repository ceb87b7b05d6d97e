//! Knows: thousands of sockets that are slow on purpose, or say nothing at all, are closed in time, and those who mean it
//! notice little. Never: limits of an address (rates.rs), which would refuse most of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::figures::figure;
use crate::harness::client::Client;
use crate::harness::rig::Rig;
use crate::harness::{either, heavy, within};

/// Sockets that are being opened at a time, as a listener's queue has an end.
const OPENING: usize = 64;
const ROOM: &str = "chat:handshakes";

/// How a hostile socket wastes its time.
#[derive(Clone, Copy, Debug)]
enum Slow {
    /// Says nothing.
    Silent,
    /// Begins a request and never ends it.
    Half,
    /// Sends its headers byte by byte.
    Drips,
    /// Upgrades, and sends no connect command.
    Upgraded,
    /// Begins a frame and never ends it.
    HalfFrame,
}

const KINDS: [Slow; 5] = [
    Slow::Silent,
    Slow::Half,
    Slow::Drips,
    Slow::Upgraded,
    Slow::HalfFrame,
];

/// One of them; how long Weir bore with it.
async fn waste(address: &str, kind: Slow, opening: &Semaphore) -> Duration {
    let turn = opening.acquire().await.unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let start = Instant::now();
    let request = format!(
        "GET /connection/websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let first = match kind {
        Slow::Silent => "",
        Slow::Half => &request[..60],
        Slow::Drips => &request[..1],
        Slow::Upgraded | Slow::HalfFrame => &request,
    };
    // Where Weir closes first, the end is read below.
    let _ = stream.write_all(first.as_bytes()).await;
    if matches!(kind, Slow::HalfFrame) {
        let _ = stream.write_all(&[0x81, 0xfe, 0x10]).await;
    }
    drop(turn);
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        if matches!(kind, Slow::Drips) {
            for byte in &request.as_bytes()[1..] {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
            }
        }
        std::future::pending::<()>().await;
    };
    let end = async {
        let mut sink = [0; 512];
        while matches!(reader.read(&mut sink).await, Ok(1..)) {}
    };
    tokio::select! {
        () = drip => {}
        () = end => {}
    }
    start.elapsed()
}

/// Connects again and again, and publishes to a reader that stays; how long each took.
async fn mean_it(address: &str, times: usize) -> (Vec<Duration>, Vec<Duration>) {
    let mut reader = Client::connect(address, Some("reader")).await.unwrap();
    reader.subscribe(ROOM, None).await.unwrap();
    let mut author = Client::connect(address, Some("author")).await.unwrap();
    let (mut connects, mut deliveries) = (Vec::new(), Vec::new());
    for n in 0..times {
        let start = Instant::now();
        let guest = Client::connect(address, Some("guest")).await.unwrap();
        connects.push(start.elapsed());
        drop(guest);
        let start = Instant::now();
        author.publish(ROOM, &n.to_string()).await.unwrap();
        reader.publication(Duration::from_secs(20)).await.unwrap();
        deliveries.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (connects, deliveries)
}

fn p99(times: &mut [Duration]) -> Duration {
    times.sort();
    times[(times.len() * 99 / 100).min(times.len() - 1)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_half_open_handshakes_are_closed_and_nobody_else_waits() {
    let _turn = heavy().await;
    let rig = Rig::servers(1, false, |config| {
        config.client = "stale_close_delay = \"5s\"\n".into();
    })
    .await;
    let address = rig.weir.address();
    let (hostile, times) = either((400, 100), (2_000, 300));
    let (mut connects, mut deliveries) = mean_it(&address, times).await;
    let calm = (p99(&mut connects), p99(&mut deliveries));

    let opening = Arc::new(Semaphore::new(OPENING));
    let stop = CancellationToken::new();
    // Who is closed comes back, so that there are as many all the time.
    let attack = (0..hostile).map(|n| {
        let (address, opening, stop) = (address.clone(), Arc::clone(&opening), stop.clone());
        tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !stop.is_cancelled() {
                let kind = KINDS[n % KINDS.len()];
                longest = longest.max(waste(&address, kind, &opening).await);
            }
            longest
        })
    });
    let attack: Vec<_> = attack.collect();
    // All that upgrade are there, and the others have been there as long.
    let upgraded = hostile * 2 / KINDS.len();
    rig.weir
        .until_metric("weir_edge_connections", Duration::from_secs(60), |open| {
            open >= upgraded as f64 * 0.9
        })
        .await;
    let (mut connects, mut deliveries) = mean_it(&address, times).await;
    let under = (p99(&mut connects), p99(&mut deliveries));
    stop.cancel();
    let ends = within("all are closed", Duration::from_secs(90), join_all(attack)).await;
    let longest = ends.into_iter().map(Result::unwrap).max().unwrap();
    let ratio = |under: Duration, calm: Duration| under.as_secs_f64() / calm.as_secs_f64();
    figure!(
        "{hostile} slow handshakes: connect p99 {:.1?} (calm {:.1?}, {:.1}x), delivery p99 {:.1?} (calm {:.1?}, {:.1}x), closed within {longest:.1?}",
        under.0,
        calm.0,
        ratio(under.0, calm.0),
        under.1,
        calm.1,
        ratio(under.1, calm.1),
    );
    assert!(longest < Duration::from_secs(50), "{longest:?}");
    // Five times the aim of twice the calm figure; the slow ones are on the same cores here.
    assert!(
        under.0 < (calm.0 * 10).max(Duration::from_secs(1)),
        "{under:?} {calm:?}"
    );
    assert!(
        under.1 < (calm.1 * 10).max(Duration::from_secs(1)),
        "{under:?} {calm:?}"
    );
    rig.require_calm();
}
