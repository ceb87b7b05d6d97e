//! Knows: how the offset that belongs to a time is found where rows are ordered by offset. Never:
//! rows, files, clocks.

use weir_nats::Seq;

/// The newest offset whose row was stored before `time_ms`, in as many steps as an offset has bits:
/// the time of rows grows with their offset. Where a clock was set back it is one of the offsets
/// about which that is true, so readers look at each message's time too.
///
/// `first_at` gives the first row at or above an offset, as its offset and time; `newest` is the
/// newest row.
///
/// # Errors
/// What `first_at` gives.
pub(crate) fn newest_before<E>(
    newest: Option<(Seq, i64)>,
    time_ms: i64,
    mut first_at: impl FnMut(Seq) -> Result<Option<(Seq, i64)>, E>,
) -> Result<Option<Seq>, E> {
    let Some((newest, newest_ms)) = newest else {
        return Ok(None);
    };
    if newest_ms < time_ms {
        return Ok(Some(newest));
    }
    let mut older = None;
    // What is below `from` is older, what is at or above `to` is not.
    let (mut from, mut to) = (0, newest.get());
    while from < to {
        let middle = from + (to - from) / 2;
        match first_at(Seq::new(middle))? {
            Some((seq, at_ms)) if seq.get() < to && at_ms < time_ms => {
                older = Some(seq);
                from = seq.read_from();
            }
            _ => to = middle,
        }
    }
    Ok(older)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches rows (offset, time), and counts the steps.
    fn search(rows: &[(u64, i64)], time_ms: i64) -> (Option<u64>, usize) {
        let row = |(seq, time)| (Seq::new(seq), time);
        let mut steps = 0;
        let first_at = |seq: Seq| {
            steps += 1;
            let nth = rows.partition_point(|(offset, _)| *offset < seq.get());
            Ok::<_, ()>(rows.get(nth).copied().map(row))
        };
        let found = newest_before(rows.last().copied().map(row), time_ms, first_at);
        (found.unwrap().map(Seq::get), steps)
    }

    #[test]
    fn the_newest_before_a_time_is_found_in_few_steps() {
        // 100,000 rows, three to a millisecond, with the gaps that other rooms and epochs leave.
        let mut rows = Vec::new();
        let mut offset = 0;
        for nth in 0..100_000_u64 {
            offset += if nth % 30_000 == 29_999 {
                1_000_000
            } else {
                1 + nth * 7 % 13
            };
            rows.push((offset, 1_000 + i64::try_from(nth / 3).unwrap()));
        }
        let newest_ms = rows.last().unwrap().1;
        for time_ms in [
            i64::MIN,
            999,
            1_000,
            1_001,
            1_002,
            17_345,
            newest_ms,
            newest_ms + 1,
            i64::MAX,
        ] {
            let expected = rows.iter().rev().find(|(_, at)| *at < time_ms);
            let (found, steps) = search(&rows, time_ms);
            assert_eq!(
                found,
                expected.map(|(offset, _)| *offset),
                "before {time_ms}"
            );
            assert!(steps <= 24, "{steps} steps for {time_ms}");
        }
        assert_eq!(search(&[], 5), (None, 0));
        assert_eq!(search(&[(7, 5)], 5).0, None);
        assert_eq!(search(&[(7, 5)], 6).0, Some(7));
    }
}
