//! Knows: how an answer is written, and that it stays within what is promised. Never: reads.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use weir_nats::{Message, Position};

use crate::read::Page;

/// Bytes of one answer. One message is always in it, however large it is.
pub(super) const ANSWER_MAX_BYTES: usize = 512 << 10;
/// What stands beside the publications takes less.
const FRAME_BYTES: usize = 512;

/// What is beside the publications.
#[derive(Serialize)]
struct Frame<'a> {
    epoch: &'a str,
    offset: u64,
    more: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    whole: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
}

/// A publication as bots read it. A JSON payload is embedded byte for byte, so that no number or
/// order of keys changes; any other is base64.
#[derive(Serialize)]
struct Publication<'a> {
    offset: u64,
    time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    door: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b64data: Option<String>,
}

/// Writes an answer: as much of the page as fits, where the room stands, and for a recovery the
/// verdict.
pub(super) fn answer(page: &Page, head: &Position, recovered: Option<bool>) -> Bytes {
    let mut text = br#"{"publications":["#.to_vec();
    let mut more = page.more;
    for (nth, message) in page.messages.iter().enumerate() {
        let end = text.len();
        if nth > 0 {
            text.push(b',');
        }
        serde_json::to_writer(&mut text, &publication(message)).expect("a message becomes JSON");
        if nth > 0 && text.len() > ANSWER_MAX_BYTES - FRAME_BYTES {
            text.truncate(end);
            more = true;
            break;
        }
    }
    let frame = Frame {
        epoch: head.epoch.as_str(),
        offset: head.offset.get(),
        more,
        whole: recovered.is_none().then_some(page.whole),
        recovered,
    };
    let frame = serde_json::to_vec(&frame).expect("an answer becomes JSON");
    text.extend_from_slice(b"],");
    text.extend_from_slice(&frame[1..]);
    text.into()
}

fn publication(message: &Message) -> Publication<'_> {
    let author = message.author.as_ref();
    let data = serde_json::from_slice::<&RawValue>(&message.data).ok();
    let base64 = || data_encoding::BASE64.encode(&message.data);
    Publication {
        offset: message.seq.get(),
        time: message.time_ms,
        user: author.map(|author| author.user.as_str()),
        client: author
            .map(|author| author.client.as_str())
            .filter(|client| !client.is_empty()),
        door: author.map(|author| author.door.as_str()),
        tags: (!message.tags.is_empty()).then_some(&message.tags),
        b64data: data.is_none().then(base64),
        data,
    }
}

/// The answer as a JSON schema, for those who look the service up.
pub(super) const SCHEMA: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","title":"history answer","oneOf":[{"type":"object","required":["publications","epoch","offset","more"],"properties":{"publications":{"type":"array","items":{"type":"object","required":["offset","time"],"properties":{"offset":{"type":"integer"},"time":{"description":"when it was stored, milliseconds since 1970","type":"integer"},"user":{"type":"string"},"client":{"type":"string"},"door":{"enum":["socket","nats","api"]},"tags":{"type":"object","additionalProperties":{"type":"string"}},"data":{"description":"the payload, if it is JSON"},"b64data":{"description":"the payload in base64, if it is not","type":"string"}}}},"epoch":{"type":"string"},"offset":{"description":"where the room stands","type":"integer"},"more":{"description":"ask again from the last publication","type":"boolean"},"whole":{"description":"false: something in this range is lost","type":"boolean"},"recovered":{"description":"the verdict on recover: true if nothing since is missing","type":"boolean"}}},{"type":"object","required":["error"],"properties":{"error":{"type":"object","required":["code","message","temporary"],"properties":{"code":{"type":"integer"},"message":{"type":"string"},"temporary":{"description":"try again","type":"boolean"}}}}}]}"#;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_nats::{Epoch, Seq};

    use super::*;

    fn page(payloads: Vec<Vec<u8>>) -> Page {
        let messages = payloads.into_iter().enumerate().map(|(nth, data)| {
            Arc::new(Message {
                seq: Seq::new(nth as u64 + 1),
                time_ms: 1_732_440_000_000,
                id: String::new(),
                author: None,
                tags: BTreeMap::new(),
                data: data.into(),
            })
        });
        Page {
            messages: messages.collect(),
            reached: Seq::ZERO,
            more: false,
            whole: true,
        }
    }

    fn written(page: &Page, recovered: Option<bool>) -> (serde_json::Value, usize) {
        let head = Position {
            epoch: Epoch::new("e").unwrap(),
            offset: Seq::new(9),
        };
        let answer = answer(page, &head, recovered);
        (serde_json::from_slice(&answer).unwrap(), answer.len())
    }

    #[test]
    fn an_answer_ends_where_half_a_mebibyte_does() {
        // Base64 takes a third more than the bytes, and every message its own frame.
        let full = page(vec![vec![0xff; 1_000]; 390]);
        let (answer, bytes) = written(&full, Some(true));
        let count = answer["publications"].as_array().unwrap().len();
        assert!(
            bytes <= ANSWER_MAX_BYTES && bytes > ANSWER_MAX_BYTES * 9 / 10,
            "{bytes}"
        );
        assert!((300..390).contains(&count), "{count}");
        assert_eq!(answer["more"], true);
        // One message is always there.
        let (answer, _) = written(&page(vec![vec![0xff; 600 << 10], vec![0xff]]), None);
        assert_eq!(answer["publications"].as_array().unwrap().len(), 1);
        assert_eq!(answer["more"], true);
    }

    #[test]
    fn the_verdict_and_the_end_are_told() {
        let (answer, _) = written(&page(vec![b"1".to_vec()]), None);
        let expected = serde_json::json!({
            "publications": [{ "offset": 1, "time": 1_732_440_000_000_i64, "data": 1 }],
            "epoch": "e", "offset": 9, "more": false, "whole": true,
        });
        assert_eq!(answer, expected);
        let (answer, _) = written(&page(Vec::new()), Some(false));
        let expected = serde_json::json!({
            "publications": [], "epoch": "e", "offset": 9, "more": false, "recovered": false,
        });
        assert_eq!(answer, expected);
    }
}
