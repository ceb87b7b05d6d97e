//! Knows: where a NATS protocol message begins and ends, and its subject. Never: sockets, rules.

use bytes::{Bytes, BytesMut};

/// Who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Client,
    Server,
}

/// One protocol message, whole.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) from: From,
    /// `PUB`, `HMSG`, `PING`, …, upper case.
    pub(crate) verb: String,
    /// Of PUB, HPUB, MSG and HMSG.
    pub(crate) subject: String,
    pub(crate) reply: Option<String>,
    /// Headers and payload.
    pub(crate) body: Bytes,
    /// As it goes on the wire.
    pub(crate) raw: Bytes,
}

impl Frame {
    /// True when the body (headers included) holds this text.
    pub(crate) fn holds(&self, text: &str) -> bool {
        self.body
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }

    /// A publish by a client.
    pub(crate) fn is_publish(&self) -> bool {
        self.from == From::Client && matches!(self.verb.as_str(), "PUB" | "HPUB")
    }

    /// A message to a client.
    pub(crate) fn is_message(&self) -> bool {
        self.from == From::Server && matches!(self.verb.as_str(), "MSG" | "HMSG")
    }
}

/// Takes the next whole message out of what was read; `None` until there is one.
pub(crate) fn next_frame(from: From, buffer: &mut BytesMut) -> Option<Frame> {
    let end = buffer.windows(2).position(|window| window == b"\r\n")?;
    let line = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let verb = words.first().unwrap_or(&"").to_ascii_uppercase();
    // PUB subject [reply] n; HPUB subject [reply] h n; MSG subject sid [reply] n; HMSG … h n
    let (names, sizes) = match verb.as_str() {
        "PUB" => (1, 1),
        "HPUB" => (1, 2),
        "MSG" => (2, 1),
        "HMSG" => (2, 2),
        _ => (0, 0),
    };
    let size = match sizes {
        0 => 0,
        _ => words.last()?.parse::<usize>().ok()? + 2,
    };
    let total = end + 2 + size;
    if buffer.len() < total {
        return None;
    }
    let raw = buffer.split_to(total).freeze();
    let body = if size == 0 {
        Bytes::new()
    } else {
        raw.slice(end + 2..total - 2)
    };
    let has_reply = sizes > 0 && words.len() == 1 + names + 1 + sizes;
    Some(Frame {
        from,
        subject: if names > 0 {
            words[1].to_owned()
        } else {
            String::new()
        },
        reply: has_reply.then(|| words[1 + names].to_owned()),
        verb,
        body,
        raw,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_however_they_arrive() {
        let wire =
            b"PUB a.b 3\r\nx\r\n\r\nHPUB log.x _INBOX.1 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPING\r\n";
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in wire {
            buffer.extend_from_slice(&[*byte]);
            frames.extend(next_frame(From::Client, &mut buffer));
        }
        let shown: Vec<_> = frames
            .iter()
            .map(|f| {
                (
                    f.verb.as_str(),
                    f.subject.as_str(),
                    f.reply.as_deref(),
                    f.body.len(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("PUB", "a.b", None, 3),
                ("HPUB", "log.x", Some("_INBOX.1"), 14),
                ("PING", "", None, 0)
            ]
        );
        assert!(frames[1].holds("hi") && frames[1].is_publish());
        let mut buffer =
            BytesMut::from(&b"MSG room.a 7 _INBOX.q 2\r\nok\r\nMSG room.a 7 2\r\nok\r\n"[..]);
        let first = next_frame(From::Server, &mut buffer).unwrap();
        assert_eq!(first.reply.as_deref(), Some("_INBOX.q"));
        assert_eq!(next_frame(From::Server, &mut buffer).unwrap().reply, None);
    }
}
