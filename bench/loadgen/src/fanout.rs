//! Knows: fan-out, many readers in one or many channels and one publisher at a fixed total rate. Never: the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::Barrier;

use crate::client::{Client, Target};
use crate::payload;
use crate::process::{self, Watched};
use crate::report::{Report, histogram};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Readers.
    #[arg(long, default_value_t = 1000)]
    subs: usize,
    /// Channels; reader i sits in channel i mod channels, publishes go round the channels.
    #[arg(long, default_value_t = 1)]
    channels: usize,
    /// Channel name (a number is appended when there are several).
    #[arg(long, default_value = "chat:load")]
    channel: String,
    /// Publishes a second, over all channels.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Payload bytes.
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// How long to publish.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Process to charge CPU to, `PID` or `PID:name`; may be repeated.
    #[arg(long = "pid")]
    pids: Vec<Watched>,
}

struct Seen {
    received: u64,
    out_of_order: u64,
    latency_us: hdrhistogram::Histogram<u64>,
}

pub async fn run(args: Args) -> Result<(Report, bool)> {
    let names: Vec<String> = (0..args.channels)
        .map(|i| {
            if args.channels == 1 {
                args.channel.clone()
            } else {
                format!("{}{i}", args.channel)
            }
        })
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let ready = Arc::new(Barrier::new(args.subs + 1));
    let mut readers = Vec::with_capacity(args.subs);
    for i in 0..args.subs {
        let mut client = Client::connect(&args.target, i).await?;
        client.subscribe(&names[i % names.len()], None).await?;
        readers.push(tokio::spawn(read(
            client,
            Arc::clone(&ready),
            Arc::clone(&stop),
        )));
    }
    let mut publisher = Client::connect(&args.target, args.subs).await?;
    // where only members may publish it has to be one; its own copies are not counted
    for name in &names {
        publisher.subscribe(name, None).await?;
    }
    ready.wait().await;
    tokio::time::sleep(Duration::from_millis(300)).await;

    let before: Vec<f64> = args
        .pids
        .iter()
        .map(Watched::cpu_s)
        .collect::<Result<_>>()?;
    let own_before = process::own_cpu_s()?;
    let start_ns = payload::now_ns();
    let (total, step_ns) = (
        (args.rate * args.seconds as f64) as u64,
        (1e9 / args.rate) as u64,
    );
    let mut published = 0;
    for n in 0..total {
        let intended = start_ns + n * step_ns;
        while payload::now_ns() < intended {
            let wait = Duration::from_nanos(intended.saturating_sub(payload::now_ns()));
            // reading while waiting keeps the publisher's own copies from piling up
            if let Ok(frame) = tokio::time::timeout(wait, publisher.frame()).await {
                frame?;
            }
        }
        let data = payload::make(n, intended, args.size);
        let channel = &names[usize::try_from(n)? % names.len()];
        let params = format!("{{\"channel\":\"{channel}\",\"data\":{data}}}");
        publisher
            .send("publish", &serde_json::from_str(&params)?)
            .await?;
        published += 1;
    }
    // until nothing new arrives: the server's backlog belongs to the window
    let drain = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < drain {
        if let Ok(frame) = tokio::time::timeout(Duration::from_millis(100), publisher.frame()).await
        {
            frame?;
        }
    }
    let after: Vec<f64> = args
        .pids
        .iter()
        .map(Watched::cpu_s)
        .collect::<Result<_>>()?;
    let own = process::own_cpu_s()? - own_before;
    stop.store(true, Ordering::Relaxed);

    let (mut received, mut out_of_order, mut latency) = (0, 0, histogram());
    for reader in readers {
        let seen = reader.await??;
        received += seen.received;
        out_of_order += seen.out_of_order;
        latency.add(&seen.latency_us)?;
    }
    let mut expected = 0;
    for c in 0..names.len() {
        let members = (args.subs + names.len() - 1 - c) / names.len();
        let messages = (usize::try_from(total)? + names.len() - 1 - c) / names.len();
        expected += members * messages;
    }
    let mut report = Report::new("fanout");
    report.add("subs", args.subs);
    report.add("channels", args.channels);
    report.num("rate", args.rate);
    report.add("size", args.size);
    report.add("published", published);
    report.add("deliveries_expected", expected);
    report.add("deliveries", received);
    report.add("out_of_order", out_of_order);
    report.latency("latency", &latency);
    let million = received as f64 / 1e6;
    for (watched, (a, b)) in args.pids.iter().zip(before.iter().zip(&after)) {
        report.num(&format!("{}_cpu_s", watched.name), b - a);
        report.num(&format!("{}_cpu_s_per_1m", watched.name), (b - a) / million);
        report.num(&format!("{}_rss_kib", watched.name), watched.rss_kib()?);
    }
    report.num("loadgen_cpu_s_per_1m", own / million);
    let whole = received == expected as u64 && out_of_order == 0;
    Ok((report, whole))
}

async fn read(mut client: Client, ready: Arc<Barrier>, stop: Arc<AtomicBool>) -> Result<Seen> {
    let mut seen = Seen {
        received: 0,
        out_of_order: 0,
        latency_us: histogram(),
    };
    let mut last = None;
    ready.wait().await;
    loop {
        match tokio::time::timeout(Duration::from_millis(500), client.frame()).await {
            Ok(frame) => {
                let now = payload::now_ns();
                payload::scan(&frame?, |n, t| {
                    seen.received += 1;
                    if last.is_some_and(|l| n <= l) {
                        seen.out_of_order += 1;
                    }
                    last = Some(n);
                    seen.latency_us
                        .saturating_record(now.saturating_sub(t) / 1000);
                });
            }
            Err(_) if stop.load(Ordering::Relaxed) => return Ok(seen),
            Err(_) => {}
        }
    }
}
