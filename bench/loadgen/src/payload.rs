//! Knows: the published payload, `{"n":<number>,"t":<intended send time, ns>,"p":"xx…"}`, and a scanner that finds it
//! in any frame without parsing JSON. Never: who sent it.

use std::sync::LazyLock;
use std::time::Instant;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since the generator started.
pub fn now_ns() -> u64 {
    u64::try_from(START.elapsed().as_nanos()).expect("584 years")
}

/// A payload of about `size` bytes.
pub fn make(n: u64, t_ns: u64, size: usize) -> String {
    let head = format!("{{\"n\":{n},\"t\":{t_ns},\"p\":\"");
    let pad = size.saturating_sub(head.len() + 2);
    format!("{head}{}\"}}", "x".repeat(pad))
}

/// Calls `each(n, t_ns)` for every payload in the frame.
pub fn scan(frame: &[u8], mut each: impl FnMut(u64, u64)) {
    for at in memchr::memmem::find_iter(frame, b"{\"n\":") {
        let Some((n, rest)) = number(&frame[at + 5..]) else {
            continue;
        };
        let Some(rest) = rest.strip_prefix(b",\"t\":") else {
            continue;
        };
        if let Some((t, _)) = number(rest) {
            each(n, t);
        }
    }
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let len = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    let value = std::str::from_utf8(&bytes[..len]).ok()?.parse().ok()?;
    Some((value, &bytes[len..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_payload_of_a_frame_with_several_lines() {
        let line = |n| {
            format!(
                "{{\"push\":{{\"channel\":\"a\",\"pub\":{{\"data\":{},\"offset\":{n}}}}}}}",
                make(n, 70 + n, 128)
            )
        };
        let frame = format!("{}\n{}", line(1), line(2));
        let mut seen = Vec::new();
        scan(frame.as_bytes(), |n, t| seen.push((n, t)));
        assert_eq!(seen, [(1, 71), (2, 72)]);
    }

    #[test]
    fn ignores_frames_without_a_payload() {
        scan(b"{\"id\":3,\"publish\":{}}", |_, _| panic!("found one"));
    }

    #[test]
    fn payload_has_the_size_asked_for() {
        assert_eq!(make(12, 345, 128).len(), 128);
    }
}
