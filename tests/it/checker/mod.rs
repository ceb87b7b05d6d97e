//! Knows: the invariants of rooms, as set and sort work over a record. Never: sockets, processes, time.
//!
//! The numbers follow the list of the reliability notes: I1 integrity, I2 agreement, I3 order,
//! I4 no undeclared gap, I5 tail, I6 durable acknowledgement, I7 real time, I8 author, I9 archive,
//! I10 epoch.

pub(crate) mod event;
mod generate;
mod mutate;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;

use crate::figures::figure;
use event::{At, Event, History, Id, Seen, Tier, Via, What, show_id};

/// What the run promises beyond the invariants, and how much of it must have happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expect {
    /// The stream was scanned at the end (I6).
    pub(crate) scanned: bool,
    /// The archive was scanned after its watermark reached the head (I9).
    pub(crate) archived: bool,
    /// Acknowledgements in these spans (ns) may be gone: the log was put back to before them.
    pub(crate) may_lose: Vec<(u64, u64)>,
    /// After a regress Weir publishes again, in a new epoch, what landed at a reused sequence.
    pub(crate) may_move: bool,
    /// Fewer than these, and the verdict is `unknown`, which is red.
    pub(crate) least: Least,
}

/// An acknowledgement that NATS gave reaches its author within this.
const UNDER_WAY_NS: u64 = 1_000_000_000;

/// How much must have happened for a verdict to mean something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Least {
    pub(crate) acks: usize,
    pub(crate) receipts: usize,
    pub(crate) faults: usize,
    pub(crate) recovered: usize,
    pub(crate) declared_gaps: usize,
}

/// One broken promise, with the events that show it.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) text: String,
    pub(crate) events: Vec<usize>,
}

/// What a record proves.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    Valid,
    Invalid(Vec<Violation>),
    /// Nothing is broken, but too little happened to say so.
    Unknown(String),
}

/// Violations that are kept; the first says most, and a broken run breaks thousands of times.
const VIOLATIONS_MAX: usize = 50;

/// Judges a record.
pub(crate) fn check(history: &History, expect: &Expect) -> Verdict {
    let mut judge = Judge::new(history, expect);
    judge.integrity();
    judge.agreement();
    judge.clients();
    judge.durable();
    judge.real_time();
    judge.archive();
    if !judge.violations.is_empty() {
        return Verdict::Invalid(judge.violations);
    }
    match judge.too_little() {
        Some(reason) => Verdict::Unknown(reason),
        None => Verdict::Valid,
    }
}

/// A message as its author meant it.
struct Meant {
    room: u32,
    author: u32,
    hash: u64,
    event: usize,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Open,
    Ok { event: usize, at: Option<At> },
    Fail { event: usize },
    Unknown,
}

struct Judge<'a> {
    history: &'a History,
    expect: &'a Expect,
    meant: HashMap<Id, Meant>,
    /// Per room and position, what is there, and the first event that said so.
    truth: HashMap<u32, BTreeMap<u64, (u32, Id, usize)>>,
    /// Per message, where it is.
    places: HashMap<Id, Vec<(At, usize)>>,
    violations: Vec<Violation>,
}

impl<'a> Judge<'a> {
    fn new(history: &'a History, expect: &'a Expect) -> Self {
        let mut judge = Self {
            history,
            expect,
            meant: HashMap::new(),
            truth: HashMap::new(),
            places: HashMap::new(),
            violations: Vec::new(),
        };
        judge.read_publishes();
        judge
    }

    fn broken(&mut self, invariant: &'static str, text: String, events: &[usize]) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation {
                invariant,
                text,
                events: events.to_vec(),
            });
        }
    }

    fn events(&self) -> impl Iterator<Item = (usize, &'a Event)> + use<'a> {
        self.history.events.iter().enumerate()
    }

    fn read_publishes(&mut self) {
        for (index, event) in self.events() {
            match event.what {
                What::Invoke {
                    id,
                    room,
                    author,
                    hash,
                } => {
                    let meant = Meant {
                        room,
                        author,
                        hash,
                        event: index,
                        end: End::Open,
                    };
                    if let Some(first) = self.meant.insert(id, meant) {
                        let text = format!("harness: {} was sent twice", show_id(id));
                        self.broken("I1 integrity", text, &[first.event, index]);
                    }
                }
                What::Ok { id, at } => self.end(id, index, End::Ok { event: index, at }),
                What::Fail { id, .. } => self.end(id, index, End::Fail { event: index }),
                What::Unknown { id } => self.end(id, index, End::Unknown),
                _ => {}
            }
        }
    }

    fn end(&mut self, id: Id, index: usize, end: End) {
        let known = self.meant.get_mut(&id);
        match known {
            Some(meant) if meant.end == End::Open => meant.end = end,
            Some(meant) => {
                let first = meant.event;
                let text = format!("{} has two ends", show_id(id));
                self.broken("I1 integrity", text, &[first, index]);
            }
            None => {
                let text = format!("{} ended before it was sent", show_id(id));
                self.broken("I1 integrity", text, &[index]);
            }
        }
    }

    /// I1, I8: everything seen was sent, unchanged, by that author, and was not refused.
    fn integrity(&mut self) {
        for (index, event) in self.events() {
            let (What::Recv { seen, .. } | What::Row { seen, .. }) = event.what else {
                continue;
            };
            let name = |number| self.history.names.text(number).to_owned();
            let Some(meant) = self.meant.get(&seen.id) else {
                let text = format!("{} was never sent (invented)", show_id(seen.id));
                self.broken("I1 integrity", text, &[index]);
                continue;
            };
            let (first, end) = (meant.event, meant.end);
            let id = show_id(seen.id);
            if first > index {
                self.broken(
                    "I1 integrity",
                    format!("{id} was seen before it was sent"),
                    &[index],
                );
            } else if meant.room != seen.room {
                let text = format!("{id} was sent to {}, seen elsewhere", name(meant.room));
                self.broken("I1 integrity", text, &[first, index]);
            } else if meant.hash != seen.hash {
                self.broken("I1 integrity", format!("{id} was changed"), &[first, index]);
            } else if meant.author != seen.author {
                let text = format!("{id} is by `{}`, seen as another's", name(meant.author));
                self.broken("I8 author", text, &[first, index]);
            } else if let End::Fail { event } = end {
                let text = format!("{id} was refused and yet appears (aborted read)");
                self.broken("I1 integrity", text, &[first, event, index]);
            }
        }
    }

    /// I2: one id per position, one position per id, no offset of a room used twice in any epoch.
    fn agreement(&mut self) {
        for (index, event) in self.events() {
            let (room, at, id) = match event.what {
                What::Recv { seen, .. } | What::Row { seen, .. } => (seen.room, seen.at, seen.id),
                What::Ok { id, at: Some(at) } => match self.meant.get(&id) {
                    Some(meant) => (meant.room, at, id),
                    None => continue,
                },
                _ => continue,
            };
            if at.offset == 0 {
                let text = format!("{} has offset 0", show_id(id));
                self.broken("I2 agreement", text, &[index]);
            }
            let offsets = self.truth.entry(room).or_default();
            let (epoch, first, event) = *offsets.entry(at.offset).or_insert((at.epoch, id, index));
            if first != id {
                let text = format!(
                    "offset {} is {} and {}",
                    at.offset,
                    show_id(first),
                    show_id(id)
                );
                self.broken("I2 agreement", text, &[event, index]);
                continue;
            }
            if epoch != at.epoch {
                let text = format!("offset {} of {} has two epochs", at.offset, show_id(id));
                self.broken("I2 agreement", text, &[event, index]);
                continue;
            }
            let places = self.places.entry(id).or_default();
            if places.iter().any(|(known, _)| *known == at) {
                continue;
            }
            places.push((at, index));
            let places = places.clone();
            let same_epoch = places
                .iter()
                .any(|(known, _)| known.epoch == at.epoch && *known != at);
            if places.len() > 1 && (same_epoch || !self.expect.may_move) {
                let text = format!("{} has two positions (duplicate)", show_id(id));
                self.broken("I2 agreement", text, &[places[0].1, index]);
            }
        }
    }

    /// The first offset of a room and epoch above `after`, and who is there.
    fn next_after(&self, room: u32, after: At) -> Option<(u64, Id, usize)> {
        self.truth
            .get(&room)?
            .range(after.offset + 1..)
            .find(|(_, (epoch, ..))| *epoch == after.epoch)
            .map(|(offset, (_, id, event))| (*offset, *id, *event))
    }

    /// I3, I4, I5, I10: what each logical client was told, in its own order.
    fn clients(&mut self) {
        let mut positions: HashMap<(u32, u32), (At, usize)> = HashMap::new();
        let mut joined: HashSet<(u32, u32)> = HashSet::new();
        let mut gone_epochs: HashSet<u32> = HashSet::new();
        let mut epochs: BTreeSet<u32> = BTreeSet::new();
        // A failed recovery must come with no publications.
        let mut failed: HashMap<(u32, u32), usize> = HashMap::new();
        for (index, event) in self.events() {
            match event.what {
                What::Joined {
                    client,
                    room,
                    asked,
                    got,
                    recovered,
                } => {
                    let key = (client, room);
                    epochs.insert(got.epoch);
                    failed.remove(&key);
                    let held = positions.get(&key).copied();
                    if let (Some(asked), Some((held, since))) = (asked, held)
                        && asked != held
                    {
                        let text = format!(
                            "harness: asked from {}, but what was received ends at {}",
                            asked.offset, held.offset
                        );
                        self.broken("I4 no gap", text, &[since, index]);
                    }
                    let now = match asked {
                        Some(asked) if recovered => {
                            self.recovered(index, asked, got, &gone_epochs, held);
                            At {
                                epoch: got.epoch,
                                offset: asked.offset,
                            }
                        }
                        _ => {
                            failed.insert(key, index);
                            got
                        }
                    };
                    positions.insert(key, (now, index));
                    joined.insert(key);
                }
                What::Recv { client, via, seen } if via != Via::History => {
                    let key = (client, seen.room);
                    if via == Via::Recovery
                        && let Some(join) = failed.get(&key)
                    {
                        let text = "publications came with recovered=false".to_owned();
                        self.broken("I4 no gap", text, &[*join, index]);
                    }
                    if joined.contains(&key) {
                        self.receipt(index, seen, &mut positions, key);
                    } else {
                        let text = format!("{} came outside a membership", show_id(seen.id));
                        self.broken("I3 order", text, &[index]);
                    }
                }
                What::Parted { client, room } => {
                    joined.remove(&(client, room));
                }
                What::Regress => gone_epochs.clone_from(&epochs.iter().copied().collect()),
                What::Settled => self.tail(index, &positions, &joined),
                _ => {}
            }
        }
    }

    fn recovered(
        &mut self,
        index: usize,
        asked: At,
        got: At,
        gone: &HashSet<u32>,
        held: Option<(At, usize)>,
    ) {
        let since = held.map_or(index, |(_, since)| since);
        let any_epoch = self.history.names.text(asked.epoch).is_empty();
        if !any_epoch && asked.epoch != got.epoch {
            let text = "recovered=true into another epoch".to_owned();
            self.broken("I10 epoch", text, &[since, index]);
        }
        if gone.contains(&got.epoch) {
            let text = "recovered=true in an epoch whose log went back".to_owned();
            self.broken("I10 epoch", text, &[since, index]);
        }
    }

    fn receipt(
        &mut self,
        index: usize,
        seen: Seen,
        positions: &mut HashMap<(u32, u32), (At, usize)>,
        key: (u32, u32),
    ) {
        let (held, since) = positions[&key];
        if seen.at.epoch != held.epoch {
            let text = format!("{} is of another epoch than the join", show_id(seen.id));
            self.broken("I10 epoch", text, &[since, index]);
        } else if seen.at.offset <= held.offset {
            let text = format!(
                "{} at {} after {} (reorder or re-delivery)",
                show_id(seen.id),
                seen.at.offset,
                held.offset
            );
            self.broken("I3 order", text, &[since, index]);
            return;
        } else if let Some((offset, id, other)) = self.next_after(key.1, held)
            && offset < seen.at.offset
        {
            let text = format!("{} at {offset} was skipped (undeclared gap)", show_id(id));
            self.broken("I4 no gap", text, &[since, other, index]);
        }
        positions.insert(key, (seen.at, index));
    }

    fn tail(
        &mut self,
        index: usize,
        positions: &HashMap<(u32, u32), (At, usize)>,
        joined: &HashSet<(u32, u32)>,
    ) {
        let mut members: Vec<_> = joined.iter().copied().collect();
        members.sort_unstable();
        for key in members {
            let (held, since) = positions[&key];
            let Some((&head, &(epoch, id, event))) = self
                .truth
                .get(&key.1)
                .and_then(|offsets| offsets.last_key_value())
            else {
                continue;
            };
            let behind = epoch == held.epoch && head > held.offset;
            let elsewhere = epoch != held.epoch && head > held.offset;
            if behind || elsewhere {
                let text = format!(
                    "`{}` ends at {} of {}, the head is {} at {head}",
                    self.history.names.text(key.0),
                    held.offset,
                    self.history.names.text(key.1),
                    show_id(id)
                );
                self.broken("I5 tail", text, &[since, event, index]);
            }
        }
    }

    /// I6: every acknowledged message is in the stream or in the archive, where it was said to be.
    fn durable(&mut self) {
        if !self.expect.scanned {
            return;
        }
        let mut kept: HashSet<Id> = HashSet::new();
        for (_, event) in self.events() {
            if let What::Row { seen, .. } = event.what {
                kept.insert(seen.id);
            }
        }
        let mut acked: Vec<(usize, Id, usize)> = self
            .meant
            .iter()
            .filter_map(|(id, meant)| match meant.end {
                End::Ok { event, .. } => Some((event, *id, meant.event)),
                _ => None,
            })
            .collect();
        acked.sort_unstable();
        let lost = |(event, id, invoked): &(usize, Id, usize)| {
            !kept.contains(id) && !self.may_be_lost(*invoked, *event)
        };
        let first_kept = acked
            .iter()
            .position(|ack| !lost(ack))
            .unwrap_or(acked.len());
        let last_kept = acked.iter().rposition(|ack| !lost(ack)).unwrap_or(0);
        let missing: Vec<_> = acked
            .iter()
            .enumerate()
            .filter(|(_, ack)| lost(ack))
            .map(|(i, a)| (i, *a))
            .collect();
        for (rank, (event, id, invoked)) in missing {
            let part = match rank {
                _ if rank < first_kept => "prefix",
                _ if rank > last_kept => "postfix",
                _ => "middle",
            };
            let text = format!("{} was acknowledged and is gone ({part})", show_id(id));
            self.broken("I6 durable ack", text, &[invoked, event]);
        }
    }

    /// I7: what was acknowledged before another was sent comes before it in the room.
    fn real_time(&mut self) {
        // Per room, the highest offset acknowledged so far; per message, that at its sending.
        let mut highest: HashMap<u32, (u64, usize)> = HashMap::new();
        let mut found = Vec::new();
        for (index, event) in self.events() {
            match event.what {
                What::Invoke { id, room, .. } => {
                    if let Some((floor, acked)) = highest.get(&room)
                        && let Some((at, seen)) =
                            self.places.get(&id).and_then(|places| places.first())
                        && at.offset < *floor
                    {
                        found.push((id, at.offset, *floor, [*acked, index, *seen]));
                    }
                }
                What::Ok { id, .. } => {
                    let place = self.places.get(&id).and_then(|places| places.first());
                    if let (Some((at, _)), Some(meant)) = (place, self.meant.get(&id)) {
                        let known = highest.entry(meant.room).or_default();
                        if at.offset > known.0 {
                            *known = (at.offset, index);
                        }
                    }
                }
                _ => {}
            }
        }
        for (id, offset, floor, events) in found {
            let text = format!(
                "{} got {offset}, though {floor} was acknowledged before it was sent",
                show_id(id)
            );
            self.broken("I7 real time", text, &events);
        }
    }

    /// I9: the archive has every stored message once and nothing else.
    fn archive(&mut self) {
        let mut rows: HashMap<(u32, At), usize> = HashMap::new();
        let mut ids: HashMap<Id, usize> = HashMap::new();
        for (index, event) in self.events() {
            let What::Row { tier, seen } = event.what else {
                continue;
            };
            if tier == Tier::Archive {
                if let Some(first) = rows.insert((seen.room, seen.at), index) {
                    let text = format!("{} is archived twice", show_id(seen.id));
                    self.broken("I9 archive", text, &[first, index]);
                }
                ids.insert(seen.id, index);
            }
        }
        if !self.expect.archived {
            return;
        }
        for (index, event) in self.events() {
            if let What::Row {
                tier: Tier::Stream,
                seen,
            } = event.what
                && !rows.contains_key(&(seen.room, seen.at))
            {
                let text = format!("{} is in the stream, not in the archive", show_id(seen.id));
                self.broken("I9 archive", text, &[index]);
            }
        }
        let acked: Vec<_> = self
            .meant
            .iter()
            .filter_map(|(id, meant)| match meant.end {
                End::Ok { event, .. } if !ids.contains_key(id) => Some((*id, meant.event, event)),
                _ => None,
            })
            .collect();
        for (id, invoked, event) in acked {
            if !self.may_be_lost(invoked, event) {
                let text = format!("{} was acknowledged and is not archived", show_id(id));
                self.broken("I9 archive", text, &[event]);
            }
        }
    }

    /// True if an acknowledgement is of a log that was taken away: it came before that, or was under
    /// way then.
    fn may_be_lost(&self, invoked: usize, acked: usize) -> bool {
        let at = |event: usize| self.history.events[event].t;
        self.expect.may_lose.iter().any(|(from, to)| {
            (*from..=*to).contains(&at(acked))
                || (at(invoked) <= *to && (*from..=to + UNDER_WAY_NS).contains(&at(acked)))
        })
    }

    fn too_little(&self) -> Option<String> {
        let tally = Tally::of(self.history);
        let least = &self.expect.least;
        let pairs = [
            ("acknowledgements", tally.acks, least.acks),
            ("receipts", tally.receipts, least.receipts),
            ("faults", tally.faults, least.faults),
            ("recovered joins", tally.recovered, least.recovered),
            ("declared gaps", tally.declared_gaps, least.declared_gaps),
        ];
        pairs
            .into_iter()
            .find(|(_, had, need)| had < need)
            .map(|(what, had, need)| format!("only {had} {what}, {need} are needed"))
    }
}

/// How much a record holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) acks: usize,
    pub(crate) refused: usize,
    pub(crate) unknown: usize,
    pub(crate) receipts: usize,
    pub(crate) faults: usize,
    pub(crate) recovered: usize,
    pub(crate) declared_gaps: usize,
    pub(crate) rows: usize,
}

impl Tally {
    pub(crate) fn of(history: &History) -> Self {
        let mut tally = Self::default();
        for event in &history.events {
            match event.what {
                What::Ok { .. } => tally.acks += 1,
                What::Fail { .. } => tally.refused += 1,
                What::Unknown { .. } => tally.unknown += 1,
                What::Recv { .. } => tally.receipts += 1,
                What::Fault { on: true, .. } => tally.faults += 1,
                What::Joined {
                    asked: Some(_),
                    recovered: true,
                    ..
                } => tally.recovered += 1,
                What::Joined {
                    asked: Some(_),
                    recovered: false,
                    ..
                } => tally.declared_gaps += 1,
                What::Row { .. } => tally.rows += 1,
                _ => {}
            }
        }
        tally
    }
}

/// The smallest story that shows a violation: its own events, and a few of the same room around.
pub(crate) fn witness(history: &History, violation: &Violation) -> String {
    let mut text = format!("{}: {}\n", violation.invariant, violation.text);
    let last = violation.events.iter().copied().max().unwrap_or(0);
    let room = violation
        .events
        .iter()
        .find_map(|event| room_of(&history.events[*event].what));
    let mut shown: BTreeSet<usize> = violation.events.iter().copied().collect();
    let near = (0..=last)
        .rev()
        .chain(last + 1..history.events.len())
        .filter(|event| room.is_some() && room_of(&history.events[*event].what) == room)
        .take(12);
    shown.extend(near);
    for event in shown {
        let mark = if violation.events.contains(&event) {
            ">"
        } else {
            " "
        };
        writeln!(text, "{mark} {}", history.show(event)).unwrap();
    }
    text
}

fn room_of(what: &What) -> Option<u32> {
    match what {
        What::Invoke { room, .. } | What::Joined { room, .. } | What::Parted { room, .. } => {
            Some(*room)
        }
        What::Recv { seen, .. } | What::Row { seen, .. } => Some(seen.room),
        _ => None,
    }
}

/// Fails the test unless the record is valid; shows the first witnesses, keeps the whole record.
pub(crate) fn require_valid(history: &History, expect: &Expect) -> Tally {
    let tally = Tally::of(history);
    figure!("{tally:?}");
    match check(history, expect) {
        Verdict::Valid => tally,
        Verdict::Unknown(reason) => panic!("checker: unknown, {reason}"),
        Verdict::Invalid(violations) => {
            let path =
                std::env::temp_dir().join(format!("weir-record-{}.jsonl", std::process::id()));
            let kept = std::fs::write(&path, history.to_lines());
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for violation in &violations {
                *counts.entry(violation.invariant).or_default() += 1;
            }
            let mut shown = String::new();
            let mut kinds = BTreeSet::new();
            for violation in violations.iter().filter(|v| kinds.insert(v.invariant)) {
                shown.push_str(&witness(history, violation));
            }
            panic!(
                "checker: invalid {counts:?}\n{shown}record: {} ({kept:?})",
                path.display()
            );
        }
    }
}
