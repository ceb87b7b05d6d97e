//! Knows: what follows from a stream's head and what is held of it: holes, lag, how full it is, hours until loss. Pure.
//! Never: NATS, archives, clocks.

use serde::Serialize;
use weir_history::held::Held;
use weir_nats::Seq;

/// A rate is no rate before the oldest message is this old.
const RATE_MIN_SECONDS: f64 = 600.0;

/// What the leader says of a stream.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Head {
    pub(super) first: Seq,
    pub(super) last: Seq,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) oldest_ms: Option<i64>,
    pub(super) oldest_unarchived_ms: Option<i64>,
    pub(super) max_age_seconds: Option<f64>,
    pub(super) max_bytes: Option<u64>,
    pub(super) max_messages: Option<u64>,
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Judged {
    pub(super) holes: Vec<(u64, u64)>,
    pub(super) lag_messages: Option<u64>,
    pub(super) lag_seconds: Option<f64>,
    pub(super) full: Option<f64>,
    pub(super) hours_until_loss: Option<f64>,
}

pub(super) fn judge(
    from: Seq,
    held: &Held,
    head: Option<&Head>,
    newest_archived_ms: Option<i64>,
    now_ms: i64,
) -> Judged {
    let mut holes = held.holes(from);
    let Some(head) = head else {
        return Judged {
            holes,
            ..Judged::default()
        };
    };
    let seconds_since = |ms: i64| (now_ms.saturating_sub(ms)).max(0) as f64 / 1_000.0;
    let end = held.end().max(from.just_before());
    let lag = head.last.get().saturating_sub(end.get());
    if lag > 0 && head.first.get() > end.read_from() {
        // Dropped, and not archived.
        holes.push((end.read_from(), head.first.get() - 1));
    }
    let lag_seconds = if lag == 0 {
        Some(0.0)
    } else {
        newest_archived_ms
            .or(head.oldest_unarchived_ms)
            .or(head.oldest_ms)
            .map(seconds_since)
    };
    let age = head.oldest_ms.map_or(0.0, seconds_since);
    let share = |part: f64, whole: Option<f64>| whole.map(|whole| part / whole);
    let fills = [
        share(age, head.max_age_seconds),
        share(head.bytes as f64, head.max_bytes.map(|max| max as f64)),
        share(
            head.messages as f64,
            head.max_messages.map(|max| max as f64),
        ),
    ];
    // The messages at the end that are not archived, and their share of the bytes.
    let waiting = lag.min(head.messages) as f64;
    let waiting_bytes = head.bytes as f64 * waiting / (head.messages.max(1) as f64);
    let rate = |of: f64| (age >= RATE_MIN_SECONDS && of > 0.0).then(|| of / age);
    let room_left = |max: Option<u64>, waiting: f64, all: f64| {
        let (max, rate) = (max? as f64, rate(all)?);
        Some((max - waiting).max(0.0) / rate)
    };
    let losses = [
        head.max_age_seconds.map(|max| {
            let waits = if lag == 0 {
                None
            } else {
                head.oldest_unarchived_ms
            };
            (max - waits.map_or(0.0, seconds_since)).max(0.0)
        }),
        room_left(head.max_bytes, waiting_bytes, head.bytes as f64),
        room_left(head.max_messages, waiting, head.messages as f64),
    ];
    Judged {
        holes,
        lag_messages: Some(lag),
        lag_seconds,
        full: fills.into_iter().flatten().reduce(f64::max),
        hours_until_loss: losses
            .into_iter()
            .flatten()
            .reduce(f64::min)
            .map(|seconds| seconds / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_000_000_000;

    fn check(held: &[(u64, u64)], head: Head, newest: Option<i64>) -> Judged {
        let held = Held::from_ranges(held.to_vec());
        judge(Seq::new(1), &held, Some(&head), newest, NOW_MS)
    }

    fn head(first: u64, last: u64) -> Head {
        Head {
            first: Seq::new(first),
            last: Seq::new(last),
            messages: last + 1 - first,
            bytes: (last + 1 - first) * 100,
            oldest_ms: Some(NOW_MS - 3_600_000),
            max_age_seconds: Some(7_200.0),
            ..Head::default()
        }
    }

    #[test]
    fn an_archive_that_has_everything_is_not_behind() {
        let judged = check(&[(1, 100)], head(51, 100), Some(NOW_MS - 50_000));
        let wanted = Judged {
            holes: Vec::new(),
            lag_messages: Some(0),
            lag_seconds: Some(0.0),
            full: Some(0.5),
            hours_until_loss: Some(2.0),
        };
        assert_eq!(judged, wanted);
        let silent = judge(
            Seq::new(1),
            &Held::from_ranges([(3, 4)]),
            None,
            None,
            NOW_MS,
        );
        assert_eq!((silent.holes, silent.lag_messages), (vec![(1, 2)], None));
    }

    #[test]
    fn what_waits_is_lost_when_it_is_too_old_or_pushed_out() {
        let waits = Head {
            oldest_unarchived_ms: Some(NOW_MS - 1_800_000),
            ..head(51, 100)
        };
        let judged = check(&[(1, 60)], waits.clone(), Some(NOW_MS - 1_900_000));
        assert_eq!(
            (judged.lag_messages, judged.lag_seconds),
            (Some(40), Some(1_900.0))
        );
        assert_eq!(judged.hours_until_loss, Some(1.5));
        // 50 messages an hour; 40 of the 60 that fit are waiting.
        let tight = Head {
            max_messages: Some(60),
            ..waits
        };
        let judged = check(&[(1, 60)], tight.clone(), None);
        assert!((judged.hours_until_loss.unwrap() - 0.4).abs() < 1e-9);
        assert!((judged.full.unwrap() - 50.0 / 60.0).abs() < 1e-9);
        // What the stream has is too young to say how fast it grows.
        let young = Head {
            oldest_ms: Some(NOW_MS - 10_000),
            max_age_seconds: None,
            ..tight
        };
        assert_eq!(check(&[(1, 60)], young, None).hours_until_loss, None);
    }

    #[test]
    fn holes_are_what_is_missing_and_what_can_no_longer_come() {
        let judged = check(&[(3, 10), (15, 20)], head(15, 20), None);
        assert_eq!(judged.holes, [(1, 2), (11, 14)]);
        let judged = check(&[(1, 20)], head(31, 40), None);
        assert_eq!(
            (judged.holes, judged.lag_messages),
            (vec![(21, 30)], Some(20))
        );
        // Nothing is archived yet, and everything is still there.
        assert!(check(&[], head(1, 40), None).holes.is_empty());
    }
}
