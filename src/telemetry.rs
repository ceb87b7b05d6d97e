//! Knows: how log lines look: readable on a terminal, JSON otherwise, one event a line, control characters escaped.
//! Never: what is logged; payloads and tokens are nobody's to log.

use std::fmt;
use std::io::IsTerminal;

use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use crate::config::{Log, LogFormat};

/// Logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is no filter.
    #[error(
        "{at}: {filter:?} is no log filter ({source}); write a level such as \"info\", or \"info,weir_edge=debug\""
    )]
    Filter {
        /// `WEIR_LOG` or `log.level`.
        at: &'static str,
        /// The text.
        filter: String,
        /// Why.
        source: ParseError,
    },
    /// Another subscriber is in place.
    #[error("logging cannot start: {0}")]
    Taken(Box<dyn std::error::Error + Send + Sync>),
}

/// Starts logging to standard error. `WEIR_LOG` wins over `log.level`.
///
/// # Errors
/// The filter cannot be parsed, or logging has started before.
pub fn start(log: &Log) -> Result<(), TelemetryError> {
    let (at, text) = match std::env::var("WEIR_LOG") {
        Ok(text) if !text.is_empty() => ("WEIR_LOG", text),
        _ => ("log.level", log.level.clone()),
    };
    // A bare level is about Weir; its NATS client would say every connect twice.
    let bare = text.parse::<tracing::Level>().is_ok();
    let nats = if bare { "async_nats=warn," } else { "" };
    // Last, so that it wins: below this level the NATS client shows payloads, and no log may.
    let full = format!("{text},{nats}async_nats::connection=info");
    let filter = EnvFilter::try_new(&full).map_err(|source| TelemetryError::Filter {
        at,
        filter: text,
        source,
    })?;
    // A panic is an event too, on one line as all others.
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string);
        let text = panic.payload_as_str().unwrap_or("a value that is no text");
        tracing::error!(at, panic = text, "a task panicked");
    }));
    let terminal = std::io::stderr().is_terminal();
    let pretty = match log.format {
        LogFormat::Auto => terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if pretty {
        builder
            .with_ansi(terminal)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .try_init()
            .map_err(TelemetryError::Taken)
    } else {
        builder
            .json()
            .flatten_event(true)
            .try_init()
            .map_err(TelemetryError::Taken)
    }
}

/// A value may come from a client: what would move the cursor or begin a line is shown, not done.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    escape_into(writer, &format!("{value:?}"))
}

fn escape_into(writer: &mut dyn fmt::Write, text: &str) -> fmt::Result {
    for c in text.chars() {
        // Direction marks and line separators reorder or break a line without being control characters.
        let moves =
            c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if moves {
            write!(writer, "{}", c.escape_default())?
        } else {
            writer.write_char(c)?
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        let table = [
            ("plain text, ä, 🙂", "plain text, ä, 🙂"),
            ("a\nb\r\x1b[31m", "a\\nb\\r\\u{1b}[31m"),
            ("\u{9b}x\u{202e}y\0", "\\u{9b}x\\u{202e}y\\u{0}"),
        ];
        for (text, expected) in table {
            let mut out = String::new();
            escape_into(&mut out, text).unwrap();
            assert_eq!(out, expected);
        }
    }
}
