//! Knows: the reconnect storm. Everybody drops, messages pass, everybody comes back at once and must recover them.
//! Never: the wire.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::Barrier;

use crate::client::{Client, Target};
use crate::payload;
use crate::process::Watched;
use crate::report::{Report, histogram};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 2000)]
    conns: usize,
    #[arg(long, default_value = "chat:storm")]
    channel: String,
    /// Messages published while everybody is away.
    #[arg(long, default_value_t = 20)]
    missed: u64,
    /// Payload bytes.
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// Process to charge, `PID` or `PID:name`; may be repeated.
    #[arg(long = "pid")]
    pids: Vec<Watched>,
}

pub async fn run(args: Args) -> Result<(Report, bool)> {
    let mut publisher = Client::connect(&args.target, args.conns).await?;
    publisher.subscribe(&args.channel, None).await?;
    let mut positions = Vec::with_capacity(args.conns);
    let mut clients = Vec::with_capacity(args.conns);
    for i in 0..args.conns {
        let mut client = Client::connect(&args.target, i).await?;
        positions.push(client.subscribe(&args.channel, None).await?.position);
        clients.push(client);
    }
    drop(clients);
    tokio::time::sleep(Duration::from_millis(500)).await;
    for n in 0..args.missed {
        let params = format!(
            r#"{{"channel":"{}","data":{}}}"#,
            args.channel,
            payload::make(n, 0, args.size)
        );
        publisher
            .call("publish", serde_json::from_str(&params)?)
            .await?;
    }
    let before: Vec<f64> = args
        .pids
        .iter()
        .map(Watched::cpu_s)
        .collect::<Result<_>>()?;
    let gate = Arc::new(Barrier::new(args.conns));
    let mut tasks = Vec::with_capacity(args.conns);
    let start = Instant::now();
    for (i, position) in positions.into_iter().enumerate() {
        let (target, channel, gate, missed) = (
            args.target.clone(),
            args.channel.clone(),
            Arc::clone(&gate),
            args.missed,
        );
        tasks.push(tokio::spawn(async move {
            gate.wait().await;
            let begun = Instant::now();
            let mut client = Client::connect(&target, i).await.context("connect")?;
            let back = client.subscribe(&channel, Some(&position)).await?;
            let mut numbers: Vec<u64> = back
                .publications
                .iter()
                .filter_map(|p| p["data"]["n"].as_u64())
                .collect();
            // a server may send a long recovery as ordinary publications after the reply
            while back.recovered && (numbers.len() as u64) < missed {
                let frame = tokio::time::timeout(Duration::from_secs(10), client.frame()).await??;
                payload::scan(&frame, |n, _| numbers.push(n));
            }
            let whole = back.recovered && numbers.iter().copied().eq(0..missed);
            Ok::<_, anyhow::Error>((begun.elapsed(), whole, client))
        }));
    }
    let (mut latency, mut whole, mut failed, mut kept) = (histogram(), 0, 0, Vec::new());
    for task in tasks {
        match task.await? {
            Ok((took, complete, client)) => {
                latency.saturating_record(u64::try_from(took.as_micros())?);
                whole += usize::from(complete);
                kept.push(client);
            }
            Err(error) => {
                if failed == 0 {
                    eprintln!("first failure: {error:#}");
                }
                failed += 1;
            }
        }
    }
    let took = start.elapsed();
    let mut report = Report::new("storm");
    report.add("conns", args.conns);
    report.add("missed", args.missed);
    report.add("recovered_whole", whole);
    report.add("failed", failed);
    report.num("all_back_s", took.as_secs_f64());
    report.latency("recovery", &latency);
    for (watched, before) in args.pids.iter().zip(&before) {
        report.num(
            &format!("{}_cpu_s", watched.name),
            watched.cpu_s()? - before,
        );
    }
    Ok((report, whole == args.conns))
}
