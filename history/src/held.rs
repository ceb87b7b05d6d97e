//! Knows: which sequences of a stream the archive holds whole, as ranges. Never: rows, files.

use weir_nats::Seq;

/// Ranges of sequences, both ends included, in order, never touching.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held(Vec<(u64, u64)>);

impl Held {
    /// From rows; any order.
    #[must_use]
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut held = Self::default();
        for (from, to) in ranges {
            held.add(Seq::new(from), Seq::new(to));
        }
        held
    }

    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// The highest sequence that is held; zero if nothing is.
    #[must_use]
    pub fn end(&self) -> Seq {
        Seq::new(self.0.last().map_or(0, |(_, to)| *to))
    }

    /// Adds a range and joins it with those it touches.
    pub fn add(&mut self, from: Seq, to: Seq) {
        let (mut from, mut to) = (from.get(), to.get());
        if from > to {
            return;
        }
        self.0.retain(|(a, b)| {
            let touches = *a <= to.saturating_add(1) && from <= b.saturating_add(1);
            if touches {
                from = from.min(*a);
                to = to.max(*b);
            }
            !touches
        });
        let at = self.0.partition_point(|(a, _)| *a < from);
        self.0.insert(at, (from, to));
    }

    /// True if everything in (after, up_to] is held.
    #[must_use]
    pub fn covers(&self, after: Seq, up_to: Seq) -> bool {
        after >= up_to
            || self
                .0
                .iter()
                .any(|(from, to)| *from <= after.read_from() && up_to.get() <= *to)
    }

    /// True if this one sequence is held.
    #[must_use]
    pub fn has(&self, seq: Seq) -> bool {
        self.covers(seq.just_before(), seq)
    }

    /// What lies between `from` and the end and is not held, both ends included.
    #[must_use]
    pub fn holes(&self, from: Seq) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut expected = from.get();
        for (from, to) in &self.0 {
            if *from > expected {
                holes.push((expected, from - 1));
            }
            expected = expected.max(to.saturating_add(1));
        }
        holes
    }

    /// What is held, but for some sequences.
    #[must_use]
    pub fn without(&self, seqs: &[Seq]) -> Self {
        self.minus(&Self::from_ranges(
            seqs.iter().map(|seq| (seq.get(), seq.get())),
        ))
    }

    /// What is held above `seq`.
    #[must_use]
    pub fn above(&self, seq: Seq) -> Self {
        self.minus(&Self::from_ranges([(0, seq.get())]))
    }

    /// What is held here and not there.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = Self::default();
        for (from, to) in &self.0 {
            let mut from = *from;
            for (a, b) in &other.0 {
                if *b < from || *a > *to {
                    continue;
                }
                if *a > from {
                    left.add(Seq::new(from), Seq::new(a - 1));
                }
                from = b.saturating_add(1);
            }
            left.add(Seq::new(from), Seq::new(*to));
        }
        left
    }
}

/// What a page of a stream proves, read after `held_end`: `seqs` are what came, in order, and
/// `first` is the stream's first sequence, read *after* them. A jump is whole only if the stream
/// still reached down to its start, so that what is missing was deleted and not trimmed unseen.
#[must_use]
pub fn proven(held_end: Seq, seqs: &[Seq], first: Seq) -> Held {
    let mut held = Held::default();
    let mut expected = held_end.read_from();
    for seq in seqs {
        let seq = seq.get();
        let from = if first.get() <= expected {
            expected
        } else {
            first.get().min(seq)
        };
        held.add(Seq::new(from), Seq::new(seq));
        expected = seq + 1;
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seqs(list: &[u64]) -> Vec<Seq> {
        list.iter().copied().map(Seq::new).collect()
    }

    #[test]
    fn ranges_join_when_they_touch() {
        let mut held = Held::from_ranges([(1, 3), (7, 9)]);
        assert!(held.covers(Seq::new(0), Seq::new(3)));
        assert!(!held.covers(Seq::new(2), Seq::new(8)));
        held.add(Seq::new(4), Seq::new(6));
        assert_eq!(held.ranges(), [(1, 9)]);
        assert!(held.covers(Seq::new(8), Seq::new(9)));
        assert!(held.covers(Seq::new(9), Seq::new(9)));
        assert!(!held.covers(Seq::new(9), Seq::new(10)));
    }

    #[test]
    fn holes_and_differences() {
        let held = Held::from_ranges([(5, 9), (12, 12), (20, 30)]);
        assert_eq!(held.holes(Seq::new(1)), [(1, 4), (10, 11), (13, 19)]);
        assert_eq!(held.holes(Seq::new(12)), [(13, 19)]);
        assert!(Held::default().holes(Seq::new(1)).is_empty());
        assert!(held.has(Seq::new(12)) && !held.has(Seq::new(11)));
        let minus = |other: &[(u64, u64)]| held.minus(&Held::from_ranges(other.to_vec())).0;
        assert_eq!(minus(&[]), held.0);
        assert_eq!(minus(&[(1, 40)]), []);
        assert_eq!(
            minus(&[(1, 6), (8, 12), (25, 26)]),
            [(7, 7), (20, 24), (27, 30)]
        );
        assert_eq!(minus(&[(1, 4), (31, 50)]), held.0);
        assert_eq!(minus(&[(30, 50)]), [(5, 9), (12, 12), (20, 29)]);
        assert_eq!(held.above(Seq::new(7)).0, [(8, 9), (12, 12), (20, 30)]);
        assert_eq!(held.above(Seq::ZERO), held);
    }

    #[test]
    fn a_jump_is_whole_only_if_the_stream_still_reached_below_it() {
        let p = |end, list: &[u64], first| proven(Seq::new(end), &seqs(list), Seq::new(first)).0;
        assert_eq!(p(0, &[1, 2, 3], 1), [(1, 3)]);
        // 4 was deleted while the stream began at 1.
        assert_eq!(p(2, &[3, 5], 1), [(3, 5)]);
        // 3..6 were trimmed before they were read.
        assert_eq!(p(2, &[7, 8], 7), [(7, 8)]);
        // Trimmed up to 5, and 6 deleted: 3..5 is the hole.
        assert_eq!(p(2, &[7, 8], 6), [(6, 8)]);
    }
}
