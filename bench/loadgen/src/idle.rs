//! Knows: idle cost, resident memory and CPU of the server per quiet connection. Never: the wire.

use std::time::Duration;

use anyhow::Result;

use crate::client::{Client, Target};
use crate::process::Watched;
use crate::report::Report;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 10_000)]
    conns: usize,
    /// Channels each connection joins.
    #[arg(long, default_value_t = 1)]
    channels_per_conn: usize,
    /// Distinct channels in all; connections go round them.
    #[arg(long, default_value_t = 1000)]
    channels: usize,
    #[arg(long, default_value = "chat:idle")]
    channel: String,
    /// Seconds to stay quiet (pings are answered); CPU is measured over the second half.
    #[arg(long, default_value_t = 40)]
    seconds: u64,
    /// Process to charge, `PID` or `PID:name`; may be repeated.
    #[arg(long = "pid")]
    pids: Vec<Watched>,
}

pub async fn run(args: Args) -> Result<(Report, bool)> {
    let before: Vec<f64> = args
        .pids
        .iter()
        .map(Watched::rss_kib)
        .collect::<Result<_>>()?;
    let mut quiet = Vec::with_capacity(args.conns);
    for i in 0..args.conns {
        let mut client = Client::connect(&args.target, i).await?;
        for k in 0..args.channels_per_conn {
            let name = format!(
                "{}{}",
                args.channel,
                (i * args.channels_per_conn + k) % args.channels
            );
            client.subscribe(&name, None).await?;
        }
        quiet.push(tokio::spawn(
            async move { client.frame().await.map(|_| ()) },
        ));
    }
    tokio::time::sleep(Duration::from_secs(args.seconds / 2)).await;
    let cpu: Vec<f64> = args
        .pids
        .iter()
        .map(Watched::cpu_s)
        .collect::<Result<_>>()?;
    tokio::time::sleep(Duration::from_secs(args.seconds - args.seconds / 2)).await;
    let mut report = Report::new("idle");
    report.add("conns", args.conns);
    report.add("channels_per_conn", args.channels_per_conn);
    let alive = quiet.iter().filter(|task| !task.is_finished()).count();
    report.add("alive", alive);
    let (conns, half) = (args.conns as f64, (args.seconds - args.seconds / 2) as f64);
    for ((watched, before), cpu) in args.pids.iter().zip(&before).zip(&cpu) {
        let after = watched.rss_kib()?;
        report.num(&format!("{}_rss_kib", watched.name), after);
        report.num(
            &format!("{}_kib_per_conn", watched.name),
            (after - before) / conns,
        );
        report.num(
            &format!("{}_cores_idle", watched.name),
            (watched.cpu_s()? - cpu) / half,
        );
    }
    Ok((report, alive == args.conns))
}
