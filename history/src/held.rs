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

    /// How many sequences are held.
    #[must_use]
    pub fn count(&self) -> u64 {
        let each = self
            .0
            .iter()
            .map(|(from, to)| (to - from).saturating_add(1));
        each.fold(0, u64::saturating_add)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_when_they_touch() {
        let mut held = Held::from_ranges([(1, 3), (7, 9)]);
        assert!(held.covers(Seq::new(0), Seq::new(3)));
        assert!(!held.covers(Seq::new(2), Seq::new(8)));
        held.add(Seq::new(4), Seq::new(6));
        assert_eq!(held.ranges(), [(1, 9)]);
        assert_eq!(held.count(), 9);
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
}
