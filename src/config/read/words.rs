//! Knows: how keys and values are spelled: durations, paths of keys, variables, and which key was meant. Never: sources.

use std::collections::BTreeSet;
use std::time::Duration;

/// Reads `25s`, `1h30m`, `250ms`, `7d`; a bare number has no unit and is refused, except 0.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let letters = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let unit_ms: u64 = match rest.get(..letters)? {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(unit_ms)?))?;
        rest = rest.get(letters..)?;
    }
    (!text.is_empty()).then_some(total)
}

pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

pub(super) fn variable(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}

pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(offset)
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

pub(super) fn without_indexes(path: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out
}

/// `channel.namespaces.chat.history_size` → `channel.namespaces.history_size`, the form of a file's key.
pub(super) fn without_names(key: &str) -> String {
    let lists = [
        "channel.namespaces.",
        "logs.",
        "client.token.issuers.",
        "client.subscription_token.issuers.",
    ];
    for list in lists {
        if let Some((_, option)) = key.strip_prefix(list).and_then(|rest| rest.split_once('.')) {
            return format!("{list}{option}");
        }
    }
    key.to_owned()
}

/// Options of Centrifugo that a reader of its manual may bring along.
pub(super) fn is_later(path: &str) -> bool {
    const LATER: [&str; 19] = [
        "force_recovery_mode",
        "auto_cache_recover",
        "allowed_delta_types",
        "delta_publish",
        "allow_tags_filter",
        "channel_regex",
        "history_meta_ttl",
        "subscription_type",
        "user_id_http_header",
        "insecure_skip_token_signature_verify",
        "presence_update_interval",
        "channel_position_check_delay",
        "channel_position_max_time_lag",
        "concurrency",
        "connect_include_server_time",
        "connect_code_to_unidirectional_disconnect",
        "audience_regex",
        "issuer_regex",
        "compression",
    ];
    const LATER_TABLES: [&str; 10] = [
        "admin.",
        "broker.",
        "engine.",
        "consumers",
        "grpc_api.",
        "http_api.",
        "sse.",
        "http_stream.",
        "webtransport.",
        "client.subscribe_to_user_personal_channel.",
    ];
    let option = path.rsplit('.').next().unwrap_or(path);
    LATER.contains(&option)
        || option.contains("_proxy_")
        || path.contains("proxy.")
        || LATER_TABLES.iter().any(|table| path.starts_with(table))
}

/// The known key that differs least, if it is near enough to be meant.
pub(super) fn nearest(key: &str, known: BTreeSet<String>) -> Option<String> {
    known
        .into_iter()
        .filter(|candidate| !candidate.contains('*'))
        .map(|candidate| (distance(key, &candidate), candidate))
        .min()
        .filter(|(steps, _)| *steps <= 3)
        .map(|(_, candidate)| candidate)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = *cell;
            left = replaced.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let table = [
            ("25s", Some(25_000)),
            ("1h30m", Some(5_400_000)),
            ("250ms", Some(250)),
            ("7d", Some(604_800_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("25", None),
            ("s", None),
            ("-1s", None),
            ("1.5h", None),
            ("5 s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ];
        for (text, expected_ms) in table {
            let expected = expected_ms.map(Duration::from_millis);
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, steps) in [
            ("", "", 0),
            ("port", "prot", 2),
            ("ports", "port", 1),
            ("a", "", 1),
        ] {
            assert_eq!(distance(a, b), steps, "{a} {b}");
        }
    }
}
