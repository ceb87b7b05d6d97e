//! Knows: which messages the bench stores. Never: where.

use std::collections::BTreeMap;

use bytes::Bytes;
use weir_history::archive::Batch;
use weir_history::held::Held;
use weir_nats::placement::Generation;
use weir_nats::{Author, Door, Epoch, Message, RoomName, Seq};

pub(crate) const LOG: &str = "rooms";
pub(crate) const ROOMS: u64 = 1_000;
const PAYLOAD_BYTES: usize = 200;

pub(crate) fn room(nth: u64) -> RoomName {
    RoomName::parse(&format!("chat:room {nth}")).unwrap()
}

/// Half of all messages are of one room.
pub(crate) fn room_of(seq: u64) -> RoomName {
    if seq.is_multiple_of(2) {
        room(0)
    } else {
        room(seq / 2 % ROOMS)
    }
}

pub(crate) fn payload(seq: u64) -> Vec<u8> {
    let mut text = format!("{{\"n\":{seq},\"text\":\"");
    let mut state = seq.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    while text.len() < PAYLOAD_BYTES - 2 {
        state = state.rotate_left(7).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let word = ["hello ", "the ", "room ", "is ", "quiet ", "today ", "and "];
        text.push_str(word[(state >> 60) as usize % word.len()]);
    }
    text.push_str("\"}");
    text.into_bytes()
}

pub(crate) fn author(seq: u64) -> Author {
    Author {
        user: format!("user{}", seq % 100),
        client: "6f9e2b1c-5a44-4f57-b1f0-0d5a7a3b9c11".into(),
        info: None,
        door: Door::Socket,
    }
}

/// As the worker makes one of what it read.
pub(crate) fn batch(from: u64, to: u64) -> Batch {
    let rows = (from..=to).map(|seq| {
        let message = Message {
            seq: Seq::new(seq),
            time_ms: 1_700_000_000_000 + i64::try_from(seq).unwrap(),
            id: format!("{seq:022}"),
            author: Some(author(seq)),
            tags: BTreeMap::new(),
            data: Bytes::from(payload(seq)),
        };
        (room_of(seq), message)
    });
    Batch {
        log: LOG.into(),
        slot: 0,
        generation: Generation {
            stream: "ROOMS_0".into(),
            epoch: Epoch::new("bench").unwrap(),
            from: Seq::new(1),
        },
        rows: rows.collect(),
        refused: Vec::new(),
        held: Held::from_ranges([(from, to)]),
        created: "2026-01-01T00:00:00Z".into(),
    }
}
