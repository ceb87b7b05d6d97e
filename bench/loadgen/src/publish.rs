//! Knows: acknowledged publishes, how many a second, how fast, at what cost. Never: the wire.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::client::{Client, Target};
use crate::payload;
use crate::process::Watched;
use crate::report::{Report, histogram};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Publishers, each with its own channel.
    #[arg(long, default_value_t = 50)]
    conns: usize,
    /// Unacknowledged publishes each keeps in flight.
    #[arg(long, default_value_t = 8)]
    inflight: usize,
    /// How long at most.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many at most, over all publishers (0: as many as there is time for).
    #[arg(long, default_value_t = 0)]
    count: u64,
    /// Payload bytes.
    #[arg(long, default_value_t = 128)]
    size: usize,
    #[arg(long, default_value = "chat:pub")]
    channel: String,
    /// Process to charge, `PID` or `PID:name`; may be repeated.
    #[arg(long = "pid")]
    pids: Vec<Watched>,
}

pub async fn run(args: Args) -> Result<(Report, bool)> {
    let mut clients = Vec::with_capacity(args.conns);
    for i in 0..args.conns {
        let mut client = Client::connect(&args.target, i).await?;
        let channel = format!("{}{i}", args.channel);
        client.subscribe(&channel, None).await?;
        clients.push((client, channel));
    }
    let before: Vec<f64> = args
        .pids
        .iter()
        .map(Watched::cpu_s)
        .collect::<Result<_>>()?;
    let left = (args.count > 0).then(|| Arc::new(AtomicU64::new(args.count)));
    let start = Instant::now();
    let until = start + Duration::from_secs(args.seconds);
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|(client, channel)| {
            let load = Load {
                until,
                left: left.clone(),
                inflight: args.inflight,
                size: args.size,
            };
            tokio::spawn(publish(client, channel, load))
        })
        .collect();
    let (mut latency, mut acked, mut refused) = (histogram(), 0u64, 0u64);
    for task in tasks {
        let (h, a, r) = task.await??;
        latency.add(&h)?;
        acked += a;
        refused += r;
    }
    let took = start.elapsed().as_secs_f64();
    let mut report = Report::new("publish");
    report.add("conns", args.conns);
    report.add("inflight", args.inflight);
    report.add("acked", acked);
    report.add("refused", refused);
    let acked_f = acked as f64;
    report.num("acked_per_s", acked_f / took);
    report.latency("ack", &latency);
    for (watched, before) in args.pids.iter().zip(&before) {
        report.num(
            &format!("{}_cpu_s_per_1m", watched.name),
            (watched.cpu_s()? - before) / acked_f * 1e6,
        );
    }
    Ok((report, refused == 0 && acked > 0))
}

/// One publisher's share.
struct Load {
    until: Instant,
    /// Messages that all publishers together may still send.
    left: Option<Arc<AtomicU64>>,
    inflight: usize,
    size: usize,
}

impl Load {
    /// Takes one message to send, if there is time and number for it.
    fn take(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        Instant::now() < self.until
            && self.left.as_ref().is_none_or(|left| {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                    .is_ok()
            })
    }
}

async fn publish(
    mut client: Client,
    channel: String,
    load: Load,
) -> Result<(hdrhistogram::Histogram<u64>, u64, u64)> {
    let (mut latency, mut acked, mut refused, mut n) = (histogram(), 0, 0, 0);
    let mut waiting: HashMap<u64, Instant> = HashMap::new();
    loop {
        while waiting.len() < load.inflight && load.take() {
            let params = format!(
                r#"{{"channel":"{channel}","data":{}}}"#,
                payload::make(n, 0, load.size)
            );
            let id = client
                .send("publish", &serde_json::from_str(&params)?)
                .await?;
            waiting.insert(u64::from(id), Instant::now());
            n += 1;
        }
        if waiting.is_empty() {
            return Ok((latency, acked, refused));
        }
        let frame = tokio::time::timeout(Duration::from_secs(30), client.frame()).await??;
        for line in frame
            .split(|b| *b == b'\n')
            .filter(|l| l.starts_with(b"{\"id\""))
        {
            let reply: serde_json::Value = serde_json::from_slice(line)?;
            if let Some(sent) = reply["id"].as_u64().and_then(|id| waiting.remove(&id)) {
                latency.saturating_record(u64::try_from(sent.elapsed().as_micros())?);
                if reply.get("error").is_some() {
                    refused += 1
                } else {
                    acked += 1
                }
            }
        }
    }
}
