//! Knows: which sequences of a stream are to be read next, which are lost, and whether a gap in what
//! was read is an erasure or a loss. Never: NATS, rows.
//!
//! A stream says that a message was deleted and that it was lost to a bad disk in the same way: it is
//! not there. Weir itself deletes only by an order of erasure, or from a generation that has ended,
//! when its messages were moved. So a gap that neither explains is a hole.

use weir_nats::placement::Generation;
use weir_nats::replay::StreamState;
use weir_nats::{Orders, Seq};

use crate::held::Held;

/// Ranges that are remembered as not to be found; beyond it nothing below their end is looked for.
const ABSENT_MAX_RANGES: usize = 1_000;

/// What is remembered of a stream while it is followed.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// The stream should have it and has not, or it cannot become a row: not to be read again.
    absent: Held,
    /// Under which circumstances that was found.
    found_under: (u64, bool),
}

/// What to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    /// Behind this.
    pub(crate) after: Seq,
    /// Up to and with this.
    pub(crate) up_to: Seq,
    /// Sequences that are to be read, these and later ones.
    pub(crate) left: u64,
}

/// What a page of a stream proves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proof {
    /// Whole, once the page is archived.
    pub(crate) held: Held,
    /// The stream reaches down to it, does not have it, and nothing explains that.
    pub(crate) absent: Held,
}

impl Gaps {
    /// Forgets what was absent when that may be explained now: by a new order, or as the generation has
    /// ended.
    pub(crate) fn refresh(&mut self, orders_version: u64, has_ended: bool) {
        let now = (orders_version, has_ended);
        if self.found_under != now {
            self.found_under = now;
            self.absent = Held::default();
        }
    }

    /// These are not there, or cannot become rows.
    pub(crate) fn add(&mut self, absent: &Held) {
        for (from, to) in absent.ranges() {
            self.absent.add(Seq::new(*from), Seq::new(*to));
        }
        if self.absent.ranges().len() > ABSENT_MAX_RANGES {
            self.absent = Held::from_ranges([(0, self.absent.end().get())]);
        }
    }

    /// The lowest that the stream has, or should have, and the archive does not hold.
    pub(crate) fn next(
        &self,
        generation: &Generation,
        state: &StreamState,
        held: &Held,
    ) -> Option<Next> {
        let from = state.first.max(generation.from).get();
        let all = Held::from_ranges([(from, state.last.get())]);
        let missing = all.minus(held).minus(&self.absent);
        let (from, to) = *missing.ranges().first()?;
        Some(Next {
            after: Seq::new(from).just_before(),
            up_to: Seq::new(to),
            left: missing.count(),
        })
    }

    /// What neither the stream has any more nor the archive.
    pub(crate) fn lost(&self, generation: &Generation, state: &StreamState, held: &Held) -> Held {
        let before = state.first.just_before().get();
        let mut lost = Held::from_ranges([(generation.from.get(), before)]);
        for (from, to) in self.absent.ranges() {
            let from = generation.from.max(Seq::new(*from));
            lost.add(from, Seq::new(*to));
        }
        lost.minus(held)
    }
}

/// What a page proves: `seqs` are what came of what was asked for, in order, and `first` is the stream's first
/// sequence, read *after* them. A jump is whole only if the stream still reached down to its start, so
/// that what is missing was not trimmed unseen, and if `is_explained` says, of its last sequence, that
/// it may have been deleted.
pub(crate) fn proven(
    next: Next,
    seqs: &[Seq],
    first: Seq,
    is_explained: impl Fn(Seq) -> bool,
) -> Proof {
    let mut proof = Proof::default();
    let mut expected = next.after.get().saturating_add(1);
    // With nothing at all the page speaks for everything that was asked for.
    let end = next.up_to.get().saturating_add(1);
    let nothing = seqs.is_empty().then_some((end, false));
    let there = seqs.iter().map(|seq| (seq.get(), true));
    for (seq, is_there) in there.chain(nothing) {
        let from = expected.max(first.get()).min(seq);
        if from < seq {
            let (gap, last) = (Seq::new(from), Seq::new(seq - 1));
            if is_explained(last) {
                proof.held.add(gap, last);
            } else {
                proof.absent.add(gap, last);
            }
        }
        if is_there {
            proof.held.add(Seq::new(seq), Seq::new(seq));
        }
        expected = seq.saturating_add(1);
    }
    proof
}

/// Up to where orders of erasure may have deleted messages of a stream; zero without any.
pub(crate) fn explained_to(orders: &Orders, log: &str, stream: &str) -> Seq {
    let matcher = orders.matcher();
    let scopes = matcher.all().flat_map(|order| &order.logs);
    let slots = scopes
        .filter(|scope| scope.log == log)
        .flat_map(|scope| &scope.slots);
    slots
        .filter(|slot| slot.streams.iter().any(|one| one == stream))
        .map(|slot| slot.up_to)
        .max()
        .unwrap_or(Seq::ZERO)
}

#[cfg(test)]
mod tests {
    use weir_nats::Epoch;
    use weir_nats::erasure::{LogScope, Order, SlotScope, What};

    use super::*;

    fn seqs(list: &[u64]) -> Vec<Seq> {
        list.iter().copied().map(Seq::new).collect()
    }

    fn next(after: u64, up_to: u64) -> Next {
        Next {
            after: Seq::new(after),
            up_to: Seq::new(up_to),
            left: up_to - after,
        }
    }

    fn prove(asked: Next, list: &[u64], first: u64, explained: bool) -> [Vec<(u64, u64)>; 2] {
        let proof = proven(asked, &seqs(list), Seq::new(first), |_| explained);
        [proof.held, proof.absent].map(|held| held.ranges().to_vec())
    }

    #[test]
    fn a_jump_is_whole_only_if_the_stream_still_reached_below_it_and_it_is_explained() {
        assert_eq!(
            prove(next(0, 3), &[1, 2, 3], 1, false),
            [vec![(1, 3)], vec![]]
        );
        // 4 was deleted while the stream began at 1.
        assert_eq!(prove(next(2, 9), &[3, 5], 1, true), [vec![(3, 5)], vec![]]);
        // Nobody deleted it: it was lost.
        let lost = [vec![(3, 3), (5, 5)], vec![(4, 4)]];
        assert_eq!(prove(next(2, 9), &[3, 5], 1, false), lost);
        // 3 to 6 were trimmed before they were read.
        assert_eq!(prove(next(2, 9), &[7, 8], 7, true), [vec![(7, 8)], vec![]]);
        assert_eq!(prove(next(2, 9), &[7, 8], 8, false), [vec![(7, 8)], vec![]]);
        // Trimmed up to 5, and 6 deleted, or lost.
        assert_eq!(prove(next(2, 9), &[7, 8], 6, true), [vec![(6, 8)], vec![]]);
        assert_eq!(
            prove(next(2, 9), &[7, 8], 6, false),
            [vec![(7, 8)], vec![(6, 6)]]
        );
    }

    #[test]
    fn a_page_with_nothing_speaks_for_what_was_asked_for() {
        assert_eq!(prove(next(2, 9), &[], 1, true), [vec![(3, 9)], vec![]]);
        assert_eq!(prove(next(2, 9), &[], 1, false), [vec![], vec![(3, 9)]]);
        // All of it was trimmed, or some.
        assert_eq!(prove(next(2, 9), &[], 10, true), [vec![], vec![]]);
        assert_eq!(prove(next(2, 9), &[], 8, true), [vec![(8, 9)], vec![]]);
    }

    fn generation(from: u64) -> Generation {
        Generation {
            stream: "ROOMS_0".into(),
            epoch: Epoch::new("e").unwrap(),
            from: Seq::new(from),
        }
    }

    fn state(first: u64, last: u64) -> StreamState {
        StreamState {
            first: Seq::new(first),
            last: Seq::new(last),
            messages: 0,
            bytes: 0,
            limits: Default::default(),
            created: String::new(),
        }
    }

    #[test]
    fn holes_that_the_stream_still_has_come_before_its_tail() {
        let mut gaps = Gaps::default();
        let held = Held::from_ranges([(1, 100), (201, 300)]);
        let asked =
            |gaps: &Gaps, first, last| gaps.next(&generation(1), &state(first, last), &held);
        let wanted = |after, up_to, left| Next {
            left,
            ..next(after, up_to)
        };
        assert_eq!(asked(&gaps, 1, 300), Some(wanted(100, 200, 100)));
        assert_eq!(asked(&gaps, 150, 400), Some(wanted(149, 200, 151)));
        // The stream has nothing of it any more.
        assert_eq!(asked(&gaps, 201, 300), None);
        assert_eq!(asked(&gaps, 301, 400), Some(wanted(300, 400, 100)));
        assert_eq!(asked(&gaps, 301, 300), None, "an empty stream");
        let lost = |gaps: &Gaps, first| gaps.lost(&generation(1), &state(first, 400), &held);
        assert!(lost(&gaps, 90).ranges().is_empty());
        assert_eq!(lost(&gaps, 150).ranges(), [(101, 149)]);
        assert_eq!(lost(&gaps, 351).ranges(), [(101, 200), (301, 350)]);
        // What was looked for and not found is not looked for again.
        gaps.add(&Held::from_ranges([(120, 130)]));
        assert_eq!(asked(&gaps, 1, 300), Some(wanted(100, 119, 89)));
        assert_eq!(asked(&gaps, 115, 300), Some(wanted(114, 119, 75)));
        assert_eq!(asked(&gaps, 120, 300), Some(wanted(130, 200, 70)));
        assert_eq!(lost(&gaps, 90).ranges(), [(120, 130)]);
        assert_eq!(lost(&gaps, 110).ranges(), [(101, 109), (120, 130)]);
        // An order may explain it.
        gaps.refresh(1, false);
        assert_eq!(asked(&gaps, 1, 300), Some(wanted(100, 200, 100)));
        // A later generation does not begin at 1.
        let later = Gaps::default().next(&generation(500), &state(500, 520), &Held::default());
        assert_eq!(later, Some(wanted(499, 520, 21)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut gaps = Gaps::default();
        let every_other = (1..=ABSENT_MAX_RANGES as u64 + 1).map(|n| (n * 2, n * 2));
        gaps.add(&Held::from_ranges(every_other));
        assert_eq!(
            gaps.absent.ranges(),
            [(0, ABSENT_MAX_RANGES as u64 * 2 + 2)]
        );
    }

    #[test]
    fn an_order_explains_gaps_up_to_where_it_was_given() {
        let orders = Orders::default();
        assert_eq!(explained_to(&orders, "rooms", "ROOMS_0"), Seq::ZERO);
        let slot = SlotScope {
            streams: vec!["ROOMS_0".into(), "ROOMS_0_1".into()],
            up_to: Seq::new(10),
        };
        let scope = LogScope {
            log: "rooms".into(),
            slots: vec![slot],
        };
        let what = What::User("ann".into());
        orders.add([Order::new(what, vec![scope], 0, "op".into(), String::new())]);
        for (log, stream, up_to) in [
            ("rooms", "ROOMS_0", 10),
            ("rooms", "ROOMS_0_1", 10),
            ("rooms", "ROOMS_1", 0),
            ("other", "ROOMS_0", 0),
        ] {
            assert_eq!(
                explained_to(&orders, log, stream),
                Seq::new(up_to),
                "{log} {stream}"
            );
        }
    }
}
