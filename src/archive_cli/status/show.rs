//! Knows: how a status reads. Never: where its figures come from.

use std::fmt::Write as _;

use super::{ArchiveStatus, Status, StreamStatus};

/// Ranges of one stream that are shown; more are in the JSON.
const RANGES_MAX: usize = 8;

pub(super) fn text(status: &Status) -> String {
    let mut text = archive(&status.archive);
    if let Some(error) = &status.nats_error {
        line(&mut text, "log", &format!("not known: {error}"));
    }
    for stream in &status.streams {
        text.push_str(&of_stream(stream));
    }
    if status.streams.is_empty() {
        text.push_str("\nno stream was archived yet\n");
    }
    if !status.wrong.is_empty() {
        text.push('\n');
    }
    for wrong in &status.wrong {
        writeln!(text, "wrong: {wrong}").expect("a string takes all");
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    writeln!(text, "  {name:<12}{value}").expect("a string takes all");
}

fn archive(archive: &ArchiveStatus) -> String {
    let count = |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
    let mut text = format!("archive {} ({})\n", archive.place, archive.kind);
    line(&mut text, "id", &archive.id);
    line(&mut text, "schema", &archive.schema);
    let rows = match archive.rows {
        Some(rows) => rows.to_string(),
        None => "not counted (--count)".to_owned(),
    };
    line(&mut text, "rows", &rows);
    line(&mut text, "rooms", &count(archive.rooms));
    line(&mut text, "quarantine", &count(archive.quarantined));
    if let Some(bytes) = archive.disk_bytes {
        line(&mut text, "on disk", &bytes_text(bytes));
    }
    text
}

fn of_stream(stream: &StreamStatus) -> String {
    let mut text = format!(
        "\n{} (log {}, slot {}, epoch {})\n",
        stream.stream, stream.log, stream.slot, stream.epoch
    );
    line(&mut text, "held", &ranges(&stream.held, "nothing"));
    line(&mut text, "holes", &ranges(&stream.holes, "none"));
    let Some(head) = &stream.head else {
        line(&mut text, "log", "not there, or not asked");
        return text;
    };
    let has = match head.messages {
        0 => format!("empty, last sequence {}", head.last),
        messages => format!(
            "{} to {}, {messages} messages, {}",
            head.first,
            head.last,
            bytes_text(head.bytes)
        ),
    };
    line(&mut text, "log", &has);
    if let (Some(messages), seconds) = (stream.lag_messages, stream.lag_seconds) {
        let seconds = seconds.map_or_else(String::new, |seconds| format!(", {seconds:.1} s"));
        line(&mut text, "lag", &format!("{messages} messages{seconds}"));
    }
    if let Some(full) = stream.full {
        line(
            &mut text,
            "full",
            &format!("{:.0} % of its retention", full * 100.0),
        );
    }
    let hours = match stream.hours_until_loss {
        Some(hours) => format!("{hours:.1} h, if nothing is archived from now on"),
        None => "no limit that could be reckoned with".to_owned(),
    };
    line(&mut text, "until loss", &hours);
    text
}

fn ranges(ranges: &[(u64, u64)], none: &str) -> String {
    if ranges.is_empty() {
        return none.to_owned();
    }
    let shown: Vec<String> = ranges
        .iter()
        .take(RANGES_MAX)
        .map(|(from, to)| match from == to {
            true => from.to_string(),
            false => format!("{from} to {to}"),
        })
        .collect();
    let more = ranges.len() - shown.len();
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more (--json)"),
    };
    format!("{}{more}", shown.join(", "))
}

fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["bytes", "KiB", "MiB", "GiB"] {
        if value < 1_024.0 {
            return match unit {
                "bytes" => format!("{bytes} bytes"),
                unit => format!("{value:.1} {unit}"),
            };
        }
        value /= 1_024.0;
    }
    format!("{value:.1} TiB")
}
