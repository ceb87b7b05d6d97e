//! Knows: `weir archive quarantine`: what could not become a row, as a list or one of them whole. Never: changes it.

use std::process::ExitCode;

use clap::Args;
use weir_history::archive::Quarantined;
use weir_nats::Seq;

use super::lines::{Data, Line, QuarantineLine};
use super::{Failure, existing_archive, failed, walk};
use crate::cli::{Common, say};
use crate::config::Loaded;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// One JSON object a message, with headers and payload
    #[arg(long)]
    json: bool,
    /// Print headers and payload of the message with this sequence
    #[arg(long, value_name = "SEQ")]
    show: Option<u64>,
    /// Only those of this stream
    #[arg(long)]
    stream: Option<String>,
}

pub(super) async fn run(loaded: &Loaded, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let archive = existing_archive(&loaded.config).await?;
    let mut after = None;
    let mut listed = 0_u64;
    loop {
        let page = walk::quarantined(&archive, after.as_ref()).await?;
        let Some((stream, last)) = page.last() else {
            break;
        };
        after = Some((stream.clone(), last.seq));
        for (stream, one) in page {
            let wanted = arguments.stream.as_ref().is_none_or(|only| *only == stream)
                && arguments.show.is_none_or(|seq| one.seq == Seq::new(seq));
            if wanted {
                listed += 1;
                say(&shown(&stream, &one, arguments));
            }
        }
    }
    match arguments.show {
        Some(seq) if listed == 0 => Err(failed(format!(
            "there is no message with the sequence {seq} in quarantine; weir archive quarantine lists them"
        ))),
        _ => {
            if listed == 0 && !arguments.json {
                say("nothing is in quarantine\n");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn shown(stream: &str, one: &Quarantined, arguments: &Arguments) -> String {
    if arguments.json {
        return Line::Quarantine(QuarantineLine::new(stream, one)).to_text();
    }
    let brief = format!(
        "{stream} {} {} {} bytes: {}\n",
        one.seq,
        printable(&one.subject),
        one.data.len(),
        printable(&one.reason)
    );
    if arguments.show.is_none() {
        return brief;
    }
    let payload = match Data::from(&one.data[..]) {
        Data::Text(text) => printable(&text),
        Data::Binary { base64 } => format!("base64: {base64}"),
    };
    format!("{brief}{}\n{payload}\n", printable(&one.headers))
}

/// A stranger's bytes do not steer the terminal.
fn printable(text: &str) -> String {
    let is_plain = |c: char| !c.is_control() || c == '\n' || c == '\t';
    let shown = |c: char| match c {
        c if is_plain(c) => c.to_string(),
        c => c.escape_default().to_string(),
    };
    text.chars().map(shown).collect()
}
