//! Knows: how two messages that should be one differ, in words. Never: where they come from.

use std::fmt::{self, Write as _};

use weir_nats::Message;

/// Bytes of a payload that are shown around its first difference.
const SHOWN_BYTES: usize = 40;

/// The first difference of two messages in words.
pub(super) fn compare(log: &Message, archive: &Message) -> Option<String> {
    let shown = |what: &str, log: &dyn fmt::Debug, archive: &dyn fmt::Debug| {
        Some(format!(
            "{what}: the log has {log:?}, the archive has {archive:?}"
        ))
    };
    if log.id != archive.id {
        return shown("id", &log.id, &archive.id);
    }
    if log.time_ms != archive.time_ms {
        return shown("time (ms since 1970)", &log.time_ms, &archive.time_ms);
    }
    if log.author != archive.author {
        return shown("author", &log.author, &archive.author);
    }
    if log.tags != archive.tags {
        return shown("tags", &log.tags, &archive.tags);
    }
    if log.data == archive.data {
        return None;
    }
    let same = log.data.iter().zip(archive.data.iter());
    let at = same.take_while(|(a, b)| a == b).count();
    let mut text = format!("payload: differs from byte {at} on");
    for (name, data) in [
        ("the log has", &log.data),
        ("the archive has", &archive.data),
    ] {
        let around = &data[at.saturating_sub(SHOWN_BYTES / 2).min(data.len())..];
        let around = &around[..around.len().min(SHOWN_BYTES)];
        write!(
            text,
            ", {name} {} bytes, there b\"{}\"",
            data.len(),
            around.escape_ascii()
        )
        .expect("a string takes all");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weir_nats::Seq;

    use super::*;

    #[test]
    fn the_first_difference_is_said() {
        let message = |id: &str, time_ms, data: &'static [u8]| Message {
            seq: Seq::new(1),
            time_ms,
            id: id.into(),
            author: None,
            tags: BTreeMap::new(),
            data: bytes::Bytes::from_static(data),
        };
        let one = message("a", 1, b"{\"text\":\"hello\"}");
        assert_eq!(compare(&one, &one), None);
        let table = [
            (
                message("b", 1, b"{}"),
                "id: the log has \"a\", the archive has \"b\"",
            ),
            (
                message("a", 2, b"{}"),
                "time (ms since 1970): the log has 1, the archive has 2",
            ),
            (
                message("a", 1, b"{\"text\":\"hullo\"}"),
                "payload: differs from byte 10 on, the log has 16 bytes, there b\"{\\\"text\\\":\\\"hello\\\"}\", \
                 the archive has 16 bytes, there b\"{\\\"text\\\":\\\"hullo\\\"}\"",
            ),
            (
                message("a", 1, b""),
                "payload: differs from byte 0 on, the log has 16 bytes, there b\"{\\\"text\\\":\\\"hello\\\"}\", \
                 the archive has 0 bytes, there b\"\"",
            ),
        ];
        for (other, text) in table {
            assert_eq!(compare(&one, &other).unwrap(), text);
        }
    }
}
