//! Knows: what a run recorded, and names for its numbers. Never: sockets, verdicts.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::Serialize;

/// `process << 32 | counter`: unique in a run, and carried in the payload.
pub(crate) type Id = u64;

/// A position as the system under test told it. Numbers stand for names (see [`Names`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) struct At {
    pub(crate) epoch: u32,
    pub(crate) offset: u64,
}

/// How a message reached a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) enum Via {
    Live,
    Recovery,
    History,
}

/// Where a final scan found a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) enum Tier {
    Stream,
    Archive,
}

/// A message as someone saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Seen {
    pub(crate) room: u32,
    pub(crate) at: At,
    pub(crate) id: Id,
    pub(crate) author: u32,
    pub(crate) hash: u64,
}

/// One line of the record.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) enum What {
    /// A publish was sent.
    Invoke {
        id: Id,
        room: u32,
        author: u32,
        hash: u64,
    },
    /// It was acknowledged; the door's answer tells where, the socket's does not.
    Ok { id: Id, at: Option<At> },
    /// It was refused: it must never appear.
    Fail { id: Id, code: u32 },
    /// Nobody knows: time-out, lost connection, or so answered.
    Unknown { id: Id },
    /// A logical client joined. `asked` is the position it recovers from.
    Joined {
        client: u32,
        room: u32,
        asked: Option<At>,
        got: At,
        recovered: bool,
    },
    /// A logical client was handed a message.
    Recv { client: u32, via: Via, seen: Seen },
    /// The membership ended; the position stays, to recover from.
    Parted { client: u32, room: u32 },
    /// A fault began or ended.
    Fault { name: &'static str, on: bool },
    /// From here on the log may have lost what it had: old epochs must not be recovered.
    Regress,
    /// After heal and quiet: who is a member must have everything.
    Settled,
    /// A row of the final scan.
    Row { tier: Tier, seen: Seen },
}

/// When (nanoseconds since the start of the run), and what.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Event {
    pub(crate) t: u64,
    pub(crate) what: What,
}

/// Names of rooms, epochs, authors and clients by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    numbers: HashMap<String, u32>,
    texts: Vec<String>,
}

impl Names {
    /// The number of a name; the same for the same name.
    pub(crate) fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.texts.len()).unwrap();
        self.texts.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    /// The name of a number.
    pub(crate) fn text(&self, number: u32) -> &str {
        self.texts.get(number as usize).map_or("?", String::as_str)
    }
}

/// A whole run, in the order of its clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
    pub(crate) names: Names,
}

impl History {
    /// One event as a line for people.
    pub(crate) fn show(&self, index: usize) -> String {
        let event = &self.events[index];
        let mut line = format!("{index:>7} {:>12.6}s ", event.t as f64 / 1e9);
        let name = |number: u32| self.names.text(number);
        let seen = |seen: &Seen| {
            format!(
                "{} {}@{} {} by `{}`",
                name(seen.room),
                seen.at.offset,
                name(seen.at.epoch),
                show_id(seen.id),
                name(seen.author)
            )
        };
        let text = match &event.what {
            What::Invoke {
                id, room, author, ..
            } => {
                format!(
                    "invoke {} in {} by `{}`",
                    show_id(*id),
                    name(*room),
                    name(*author)
                )
            }
            What::Joined {
                client,
                room,
                asked,
                got,
                recovered,
            } => format!(
                "{} joined {} asked {:?} got {}@{} recovered={recovered}",
                name(*client),
                name(*room),
                asked.map(|at| format!("{}@{}", at.offset, name(at.epoch))),
                got.offset,
                name(got.epoch)
            ),
            What::Recv {
                client,
                via,
                seen: message,
            } => {
                format!("{} received {via:?} {}", name(*client), seen(message))
            }
            What::Row {
                tier,
                seen: message,
            } => format!("{tier:?} row {}", seen(message)),
            What::Parted { client, room } => format!("{} parted {}", name(*client), name(*room)),
            What::Ok { id, at } => format!("ok {} {at:?}", show_id(*id)),
            What::Fail { id, code } => format!("fail {} code {code}", show_id(*id)),
            What::Unknown { id } => format!("unknown {}", show_id(*id)),
            other => format!("{other:?}"),
        };
        write!(line, "{text}").unwrap();
        line
    }

    /// The record as JSON lines.
    pub(crate) fn to_lines(&self) -> String {
        let mut lines = String::new();
        for event in &self.events {
            lines.push_str(&serde_json::to_string(event).unwrap());
            lines.push('\n');
        }
        lines
    }
}

/// `p3-17`, as the payload spells it.
pub(crate) fn show_id(id: Id) -> String {
    format!("p{}-{}", id >> 32, id & 0xffff_ffff)
}

/// Undoes [`show_id`].
pub(crate) fn parse_id(text: &str) -> Option<Id> {
    let (process, counter) = text.strip_prefix('p')?.split_once('-')?;
    Some(process.parse::<u64>().ok()? << 32 | counter.parse::<u64>().ok()?)
}

/// FNV-1a over the payload: equal bytes, equal hash.
pub(crate) fn hash_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
