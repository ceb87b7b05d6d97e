//! Knows: how orders of erasure are listed: what, by whom, when, why, how far. Never: changes one.

use std::fmt::Write as _;
use std::process::ExitCode;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weir_history::Archive;
use weir_nats::erasure::Order;
use weir_nats::erasure::book::{Book, Progress};

use super::{Failure, failed, patiently};
use crate::cli::say;

/// Lists the orders of the bucket, and those that only the archive still has on record.
pub(super) async fn show(book: &Book, archive: Option<&Archive>) -> Result<ExitCode, Failure> {
    let written = book.orders().await?;
    let mut text = String::new();
    if let Some(archive) = archive {
        let recorded = patiently(async || archive.erasures().await).await?;
        let is_written = |id: &str| written.iter().any(|one| one.order.id == id);
        for old in recorded.iter().filter(|one| !is_written(&one.order.id)) {
            let state = format!("{} rows; kept by the archive only", old.erased);
            line(&mut text, &old.order, &state).map_err(failed)?;
        }
    }
    for one in &written {
        let progress = book.progress(&one.order.id).await?;
        line(&mut text, &one.order, &state(&one.order, &progress)).map_err(failed)?;
    }
    if text.is_empty() {
        text.push_str("nothing was ever ordered to be erased\n");
    }
    say(&text);
    Ok(ExitCode::SUCCESS)
}

fn state(order: &Order, progress: &Progress) -> String {
    let rows: u64 = progress.archives.iter().map(|(_, one)| one.erased).sum();
    let messages: u64 = progress.streams.iter().map(|(_, one)| one.erased).sum();
    let ended = progress
        .streams
        .iter()
        .filter_map(|(_, one)| one.done_ms)
        .chain(progress.archives.iter().filter_map(|(_, one)| one.done_ms))
        .max();
    let state = match ended {
        Some(ended) if progress.is_done(order) => format!("done {}", shown_time(ended)),
        _ if progress.is_archived() => "open: the streams are not done".to_owned(),
        _ => "open: the archive is not done".to_owned(),
    };
    format!("{rows} rows, {messages} messages; {state}")
}

fn line(text: &mut String, order: &Order, state: &str) -> std::fmt::Result {
    let at = shown_time(order.at_ms);
    let (id, what, by) = (&order.id, shown(&order.what.to_string()), shown(&order.by));
    writeln!(text, "{id}  {at}  {what}  by {by}  {state}")?;
    if order.reason.is_empty() {
        Ok(())
    } else {
        writeln!(text, "    reason: {}", shown(&order.reason))
    }
}

/// Names are users' to choose: none moves the cursor or begins a line.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn shown_time(ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(ms / 1_000).ok();
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| ms.to_string())
}
