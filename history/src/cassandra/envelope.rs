//! Knows: a message as one blob of a row, both ways. Never: tables, NATS.
//!
//! The first byte is the version of what follows, in postcard's wire format
//! (<https://postcard.jamesmunns.com/wire-format>).

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weir_nats::{Author, Door, Message, Seq};

use crate::archive::ArchiveError;

const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    time_ms: i64,
    /// Door, user, client, info; `None` where something else than Weir wrote.
    #[serde(borrow)]
    author: Option<(&'a str, &'a str, &'a str, Option<&'a [u8]>)>,
    tags: BTreeMap<&'a str, &'a str>,
    data: &'a [u8],
}

/// All of a message but its offset and id, which are the row's key.
pub(super) fn encode(message: &Message) -> Vec<u8> {
    let envelope = Envelope {
        time_ms: message.time_ms,
        author: message.author.as_ref().map(|author| {
            (
                author.door.as_str(),
                author.user.as_str(),
                author.client.as_str(),
                author.info.as_deref(),
            )
        }),
        tags: message
            .tags
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect(),
        data: &message.data,
    };
    let mut blob = Vec::with_capacity(message.data.len() + 96);
    blob.push(VERSION);
    postcard::to_extend(&envelope, blob).expect("memory takes it, and every length is known")
}

/// # Errors
/// When the blob is of a newer version, or damaged.
pub(super) fn decode(seq: Seq, id: String, blob: &[u8]) -> Result<Message, ArchiveError> {
    let damaged = |why: String| ArchiveError {
        reason: format!("the archived message at {seq} cannot be read: {why}"),
        temporary: false,
    };
    let (version, rest) = blob
        .split_first()
        .ok_or_else(|| damaged("it is empty".to_owned()))?;
    if *version != VERSION {
        return Err(damaged(format!(
            "format {version}, this Weir knows {VERSION}"
        )));
    }
    let envelope: Envelope<'_> =
        postcard::from_bytes(rest).map_err(|error| damaged(error.to_string()))?;
    Ok(Message {
        seq,
        time_ms: envelope.time_ms,
        id,
        author: envelope.author.map(|(door, user, client, info)| Author {
            user: user.to_owned(),
            client: client.to_owned(),
            info: info.map(Bytes::copy_from_slice),
            door: Door::from_text(door),
        }),
        tags: envelope
            .tags
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        data: Bytes::copy_from_slice(envelope.data),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(data: &'static [u8]) -> Message {
        Message {
            seq: Seq::new(7),
            time_ms: 1_700_000_000_123,
            id: "an id".to_owned(),
            author: Some(Author {
                user: "änn".to_owned(),
                client: "c".to_owned(),
                info: Some(Bytes::from_static(b"{\"a\":1}")),
                door: Door::Nats,
            }),
            tags: BTreeMap::from([("k".to_owned(), "v\0".to_owned())]),
            data: Bytes::from_static(data),
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let every_byte: &'static [u8] =
            Box::leak((0..=255).collect::<Vec<u8>>().into_boxed_slice());
        for data in [&b""[..], b"{}", every_byte] {
            let mut one = message(data);
            let read = |one: &Message| decode(one.seq, one.id.clone(), &encode(one));
            assert_eq!(read(&one).unwrap(), one);
            one.author = None;
            one.tags.clear();
            assert_eq!(read(&one).unwrap(), one);
        }
    }

    #[test]
    fn what_is_damaged_or_newer_is_said_to_be() {
        let blob = encode(&message(b"hello"));
        for end in 0..blob.len() {
            assert!(decode(Seq::new(1), String::new(), &blob[..end]).is_err());
        }
        let mut newer = blob;
        newer[0] = 2;
        let error = decode(Seq::new(1), String::new(), &newer).unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
    }
}
