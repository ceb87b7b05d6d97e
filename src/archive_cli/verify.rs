//! Knows: `weir archive verify`: what the log and the archive both should have is compared message by message, both ways.
//! Never: repairs anything.

use std::fmt;
use std::process::ExitCode;

use clap::Args;
use weir_history::held::Held;
use weir_history::listing::StreamRecord;
use weir_nats::replay::{Replay, StreamState};
use weir_nats::{Placements, Seq};

use super::progress::Progress;
use super::{Failure, Nats, existing_archive, failed, patiently};
use crate::cli::{Common, complain, say};
use crate::config::Loaded;

mod stream;
mod words;

use stream::Verify;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Only this log
    #[arg(long)]
    log: Option<String>,
    /// The first sequence; else the first that the log has
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// The last sequence; else the last that the archive holds. With --from or --to, holes count as differences
    #[arg(long, value_name = "SEQ")]
    to: Option<u64>,
}

/// Where log and archive first differ.
struct Difference(String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) async fn run(loaded: &Loaded, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let archive = existing_archive(&loaded.config).await?;
    let nats = Box::pin(Nats::connect(loaded)).await.map_err(|error| {
        failed(format!(
            "{error}; verify needs the log: start NATS, or correct nats.url"
        ))
    })?;
    let replay = Replay::new(nats.links.reads.clone());
    let placements = Placements::default();
    for (log, record) in &nats.placements {
        // A log that was never started has no slots.
        if !record.slots.is_empty() {
            placements.set(log, record);
        }
    }
    let held = patiently(async || archive.held_now().await).await?;
    let streams = patiently(async || archive.streams().await).await?;
    let erasures = patiently(async || archive.erasures().await).await?;
    let nothing = Held::default();
    let (mut compared, mut ranges_compared) = (0, 0);
    for stream in &streams {
        let name = &stream.generation.stream;
        if arguments.log.as_ref().is_some_and(|log| *log != stream.log) {
            continue;
        }
        let state = match replay.state(name).await {
            Ok(state) => state,
            Err(weir_nats::replay::ReplayError::NoStream(_)) => {
                complain(&format!("{name}: the log does not have it any more"));
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        let held = held.get(name).unwrap_or(&nothing);
        for (from, to) in ranges(arguments, stream, &state, held) {
            let mut verify = Verify {
                archive: &archive,
                replay: &replay,
                placements: &placements,
                stream,
                held,
                erasures: &erasures,
                progress: Progress::new("messages", Some(to.get() - from.get() + 1)),
            };
            if let Err(difference) = verify.range(from, to).await? {
                drop(verify);
                say(&format!("{name}: {difference}\n"));
                return Ok(ExitCode::FAILURE);
            }
            compared += verify.progress.done();
            ranges_compared += 1;
            drop(verify);
            say(&format!("{name}: {from} to {to} are the same\n"));
        }
    }
    if ranges_compared == 0 {
        return Err(failed(
            "there is nothing to compare: the archive holds nothing that the log still has in this range; weir archive \
             status shows both",
        ));
    }
    say(&format!(
        "{compared} messages were compared, no difference\n"
    ));
    Ok(ExitCode::SUCCESS)
}

/// What both should have; or all of what was asked for that the stream has.
fn ranges(
    arguments: &Arguments,
    stream: &StreamRecord,
    state: &StreamState,
    held: &Held,
) -> Vec<(Seq, Seq)> {
    let first = state.first.max(stream.generation.from);
    let first = first.max(Seq::new(arguments.from.unwrap_or(0)));
    let last = state.last.min(Seq::new(arguments.to.unwrap_or(u64::MAX)));
    let all = if arguments.from.is_some() || arguments.to.is_some() {
        // What the worker has not come to yet is no difference, unless it was asked for by name.
        let end = if arguments.to.is_some() {
            last
        } else {
            held.end().min(last)
        };
        vec![(first.get(), end.get())]
    } else {
        let both = held.ranges().iter();
        both.map(|(from, to)| (first.get().max(*from), last.get().min(*to)))
            .collect()
    };
    all.into_iter()
        .filter(|(from, to)| from <= to)
        .map(|(from, to)| (Seq::new(from), Seq::new(to)))
        .collect()
}
