//! Knows: which loads there are, for servers that speak the Centrifugo client protocol v2 in JSON over
//! WebSocket. Never: how one works.
//!
//! Each sub-command prints figures (a table, or one line with `--json`) and exits 1 when anything was lost.

mod client;
mod fanout;
mod idle;
mod payload;
mod process;
mod publish;
mod report;
mod storm;

use clap::Parser as _;

#[derive(clap::Parser)]
#[command(version, about)]
struct Cli {
    /// Print one JSON line instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Deliveries: cost, latency from the intended send time, loss and order.
    Fanout(fanout::Args),
    /// Memory and CPU per quiet connection.
    Idle(idle::Args),
    /// Everybody reconnects at once and recovers what was missed.
    Storm(storm::Args),
    /// Acknowledged publishes a second.
    Publish(publish::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<std::process::ExitCode> {
    let cli = Cli::parse();
    let (report, whole) = match cli.what {
        What::Fanout(args) => fanout::run(args).await?,
        What::Idle(args) => idle::run(args).await?,
        What::Storm(args) => storm::run(args).await?,
        What::Publish(args) => publish::run(args).await?,
    };
    report.print(cli.json);
    Ok(if whole {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    })
}
