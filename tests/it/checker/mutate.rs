//! Knows: how to break a valid record in one place, and that the checker sees each. Never: Weir.

use std::collections::{HashMap, HashSet};

use super::event::{At, Event, History, Id, Seen, Tier, Via, What};
use super::{Expect, Verdict, check, generate};
use crate::figures::figure;
use crate::harness::Rng;

/// The kinds of broken promise, one name each.
const KINDS: [&str; 14] = [
    "drop a receipt",
    "receive twice",
    "swap two receipts",
    "change the author",
    "drop an archived row",
    "archive twice",
    "reuse an offset",
    "move an acknowledgement in time",
    "move an acknowledgement to another offset",
    "flip recovered to true",
    "flip recovered to false",
    "lose an acknowledged message everywhere",
    "refuse what appears",
    "change the payload",
];

fn expect() -> Expect {
    Expect {
        scanned: true,
        archived: true,
        ..Expect::default()
    }
}

/// Breaks a record in one place; `None` when this record has no place for it.
fn mutate(history: &History, kind: &str, rng: &mut Rng) -> Option<History> {
    let mut broken = history.clone();
    let events = &mut broken.events;
    let find = |wanted: &dyn Fn(&What) -> bool| -> Vec<usize> {
        (0..history.events.len())
            .filter(|i| wanted(&history.events[*i].what))
            .collect()
    };
    let receipts = find(&|what| matches!(what, What::Recv { .. }));
    let rows = find(&|what| {
        matches!(
            what,
            What::Row {
                tier: Tier::Archive,
                ..
            }
        )
    });
    match kind {
        "drop a receipt" => {
            events.remove(rng.pick(&receipts)?);
        }
        "receive twice" => {
            let index = rng.pick(&receipts)?;
            events.insert(index + 1, events[index]);
        }
        "swap two receipts" => {
            let (first, second) = rng.pick(&neighbours(history))?;
            let (a, b) = (events[first].what, events[second].what);
            (events[first].what, events[second].what) = (b, a);
        }
        "change the author" => {
            let index = rng.pick(&receipts)?;
            edit(&mut events[index], |seen| {
                seen.author = seen.author.wrapping_add(1)
            });
        }
        "drop an archived row" => {
            events.remove(rng.pick(&rows)?);
        }
        "archive twice" => {
            let index = rng.pick(&rows)?;
            events.push(events[index]);
        }
        "reuse an offset" => {
            let pairs = neighbours(history);
            let (first, second) = rng.pick(&pairs)?;
            let at = seen_of(&events[first].what)?.at;
            edit(&mut events[second], |seen| seen.at = at);
        }
        "move an acknowledgement in time" => {
            let (ok, before) = rng.pick(&late_acks(history))?;
            let event = events.remove(ok);
            events.insert(before, event);
        }
        "move an acknowledgement to another offset" => {
            let acks = find(&|what| matches!(what, What::Ok { at: Some(_), .. }));
            let index = rng.pick(&acks)?;
            if let What::Ok { at: Some(at), .. } = &mut events[index].what {
                at.offset += 1;
            }
        }
        "flip recovered to true" => {
            let index = rng.pick(&unrecovered_with_loss(history))?;
            if let What::Joined { recovered, .. } = &mut events[index].what {
                *recovered = true;
            }
        }
        "flip recovered to false" => {
            let index = rng.pick(&recovered_with_publications(history))?;
            if let What::Joined { recovered, .. } = &mut events[index].what {
                *recovered = false;
            }
        }
        "lose an acknowledged message everywhere" => {
            let acked: HashSet<Id> = history
                .events
                .iter()
                .filter_map(|event| match event.what {
                    What::Ok { id, .. } => Some(id),
                    _ => None,
                })
                .collect();
            let kept: Vec<_> = rows
                .iter()
                .filter_map(|row| seen_of(&history.events[*row].what).map(|seen| seen.id))
                .filter(|id| acked.contains(id))
                .collect();
            let id = rng.pick(&kept)?;
            events.retain(|event| !matches!(event.what, What::Row { seen, .. } if seen.id == id));
        }
        "refuse what appears" => {
            let acks = find(&|what| matches!(what, What::Ok { .. }));
            let index = rng.pick(&acks)?;
            if let What::Ok { id, .. } = events[index].what {
                events[index].what = What::Fail { id, code: 111 };
            }
        }
        "change the payload" => {
            let index = rng.pick(&rows)?;
            edit(&mut events[index], |seen| seen.hash ^= 1);
        }
        _ => unreachable!("a kind without a mutation"),
    }
    Some(broken)
}

fn edit(event: &mut Event, change: impl FnOnce(&mut Seen)) {
    if let What::Recv { seen, .. } | What::Row { seen, .. } = &mut event.what {
        change(seen);
    }
}

fn seen_of(what: &What) -> Option<Seen> {
    match what {
        What::Recv { seen, .. } | What::Row { seen, .. } => Some(*seen),
        _ => None,
    }
}

/// Pairs of receipts that one client had of one room, one after the other.
fn neighbours(history: &History) -> Vec<(usize, usize)> {
    let mut last: HashMap<(u32, u32), usize> = HashMap::new();
    let mut pairs = Vec::new();
    for (index, event) in history.events.iter().enumerate() {
        match event.what {
            What::Recv { client, seen, .. } => {
                if let Some(first) = last.insert((client, seen.room), index) {
                    pairs.push((first, index));
                }
            }
            What::Joined { client, room, .. } => {
                last.remove(&(client, room));
            }
            _ => {}
        }
    }
    pairs
}

/// Acknowledgements, and an earlier sending in the same room of what has a lower offset: moved
/// before it (and after its own sending), the acknowledgement breaks the real-time order.
fn late_acks(history: &History) -> Vec<(usize, usize)> {
    let mut places: HashMap<Id, At> = HashMap::new();
    let mut sent: HashMap<Id, (u32, usize)> = HashMap::new();
    for (index, event) in history.events.iter().enumerate() {
        match event.what {
            What::Row { seen, .. } => {
                places.insert(seen.id, seen.at);
            }
            What::Invoke { id, room, .. } => {
                sent.insert(id, (room, index));
            }
            _ => {}
        }
    }
    let mut pairs = Vec::new();
    for (ok, event) in history.events.iter().enumerate() {
        let What::Ok { id, .. } = event.what else {
            continue;
        };
        let (room, own) = sent[&id];
        let before = sent.iter().filter(|(other, (other_room, other_sent))| {
            *other_room == room
                && (own + 1..ok).contains(other_sent)
                && places
                    .get(*other)
                    .is_some_and(|at| at.offset < places[&id].offset)
        });
        pairs.extend(before.map(|(_, (_, other_sent))| (ok, *other_sent)).min());
    }
    pairs
}

/// Joins that were truly told `false`: something was missed, or the epoch is another.
fn unrecovered_with_loss(history: &History) -> Vec<usize> {
    let log: HashSet<Seen> = history
        .events
        .iter()
        .filter_map(|event| seen_of(&event.what))
        .collect();
    let received_after = |client: u32, room: u32, from: usize| {
        history.events[from..].iter().any(|event| {
            matches!(event.what, What::Recv { client: c, seen, .. } if c == client && seen.room == room)
        })
    };
    (0..history.events.len())
        .filter(|index| match history.events[*index].what {
            What::Joined {
                client,
                room,
                asked: Some(asked),
                got,
                recovered: false,
            } => {
                asked.epoch != got.epoch
                    || log.iter().any(|seen| {
                        seen.room == room
                            && seen.at.epoch == got.epoch
                            && (asked.offset + 1..=got.offset).contains(&seen.at.offset)
                    }) && received_after(client, room, *index)
            }
            _ => false,
        })
        .collect()
}

fn recovered_with_publications(history: &History) -> Vec<usize> {
    (0..history.events.len() - 1)
        .filter(|index| {
            let next = &history.events[index + 1].what;
            matches!(
                history.events[*index].what,
                What::Joined {
                    recovered: true,
                    ..
                }
            ) && matches!(
                next,
                What::Recv {
                    via: Via::Recovery,
                    ..
                }
            )
        })
        .collect()
}

#[test]
fn a_hundred_clean_histories_raise_no_alarm() {
    for seed in 0..100 {
        let history = generate::valid(seed);
        let verdict = check(&history, &expect());
        assert!(
            matches!(verdict, Verdict::Valid),
            "seed {seed}: {verdict:?}"
        );
    }
}

#[test]
fn a_thousand_broken_histories_are_all_caught() {
    let mut caught: HashMap<&str, usize> = HashMap::new();
    let mut total = 0;
    let mut seed = 0;
    while total < 1_000 {
        seed += 1;
        let history = generate::valid(seed);
        let mut rng = Rng::new(seed);
        for kind in KINDS {
            let Some(broken) = mutate(&history, kind, &mut rng) else {
                continue;
            };
            let verdict = check(&broken, &expect());
            assert!(
                matches!(verdict, Verdict::Invalid(_)),
                "seed {seed}: `{kind}` passed"
            );
            *caught.entry(kind).or_default() += 1;
            total += 1;
        }
    }
    figure!("{total} broken histories of {} kinds caught", KINDS.len());
    assert!(
        KINDS.iter().all(|kind| caught.get(kind) >= Some(&30)),
        "{caught:?}"
    );
}

#[test]
fn too_little_is_unknown_and_the_witness_is_small() {
    let history = generate::valid(7);
    let mut wanting = expect();
    wanting.least.acks = 1_000_000;
    assert!(matches!(check(&history, &wanting), Verdict::Unknown(_)));
    let broken = mutate(&history, "drop a receipt", &mut Rng::new(1)).unwrap();
    let Verdict::Invalid(violations) = check(&broken, &expect()) else {
        panic!("not caught")
    };
    let text = super::witness(&broken, &violations[0]);
    assert!(text.lines().count() <= 20, "{text}");
}

#[test]
fn a_lost_message_is_forgiven_only_where_the_log_was_put_back() {
    let history = generate::valid(11);
    let broken = mutate(
        &history,
        "lose an acknowledged message everywhere",
        &mut Rng::new(3),
    )
    .unwrap();
    let mut forgiving = expect();
    assert!(matches!(check(&broken, &forgiving), Verdict::Invalid(_)));
    forgiving.may_lose = vec![(0, u64::MAX)];
    assert!(matches!(check(&broken, &forgiving), Verdict::Valid));
}
