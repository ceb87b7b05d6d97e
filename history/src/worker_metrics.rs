//! Knows: what the worker did, how far the archive is behind each stream, and when that becomes
//! dangerous. Never: reads a stream, writes a row.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use weir_nats::Seq;
use weir_nats::ambient::now_ms;
use weir_nats::figures::Figure;
use weir_nats::replay::{Limits, Scanned, StreamState};

use crate::archive::Appended;
use crate::gaps::Next;
use crate::held::Held;

/// Share of `max_age` that the oldest unarchived message may have used before it is an alarm.
const AGE_USED_MAX: f64 = 0.5;
/// Share of `max_bytes` or `max_messages` that is not archived before it is an alarm.
const SPACE_USED_MAX: f64 = 0.8;
/// An alarm that stays is told again after this.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// How long growth is observed before it is believed.
const GROWTH_SPAN: Duration = Duration::from_secs(10);
/// A guess before that needs this much.
const GROWTH_SPAN_MIN: Duration = Duration::from_secs(1);

weir_nats::figures! {
    /// What a worker did since its start.
    pub struct WorkerCounts: "weir_archive_" {
        /// Rows written.
        rows: Counter,
        /// Batches written.
        batches: Counter,
        /// Batches tried again.
        retries: Counter,
        /// Messages put into quarantine: they are no room's, or the archive refuses them.
        quarantined: Counter,
        /// Offsets at which another message was archived before.
        conflicts: Counter,
        /// Messages of a batch.
        batch_messages: Sizes,
        /// Seconds until a batch was durable.
        write_seconds: Seconds,
    }
}

/// Figures of a worker. Read at any time.
#[derive(Debug, Default)]
pub struct WorkerMetrics {
    /// What it did.
    pub counts: WorkerCounts,
    allowed_lag: Duration,
    streams: Mutex<BTreeMap<String, Behind>>,
}

/// A stream that is followed; dropping it takes its figures away.
#[derive(Debug)]
pub(crate) struct Followed {
    metrics: Arc<WorkerMetrics>,
    stream: String,
}

/// How far the archive is behind a stream.
#[derive(Debug, Default)]
struct Behind {
    messages: u64,
    /// When the oldest message was stored that is not archived; `None` if all are.
    oldest_ms: Option<i64>,
    limits: Limits,
    bytes_per_message: f64,
    growth: Growth,
    /// When the alarm was told, while it stands.
    told: Option<Instant>,
    /// Ranges that neither the stream has any more nor the archive, and their sequences.
    holes: u64,
    lost: u64,
}

/// How fast a stream grows.
#[derive(Debug, Default)]
struct Growth {
    from: Option<(Instant, Seq)>,
    messages_per_s: Option<f64>,
}

/// What comes of it if nothing is archived any more.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Outlook {
    /// Share of `max_age` that the oldest unarchived message has used.
    age_used: f64,
    /// Share of `max_bytes` or `max_messages` that is not archived.
    space_used: f64,
    /// Seconds until the first unarchived message is dropped, at the growth that was seen last.
    until_loss_s: f64,
}

impl WorkerMetrics {
    /// Figures that raise an alarm when less than `allowed_lag` is left until the first loss.
    #[must_use]
    pub fn new(allowed_lag: Duration) -> Self {
        Self {
            allowed_lag,
            ..Self::default()
        }
    }

    /// Messages that the streams have and the archive does not, at the last look at each.
    #[must_use]
    pub fn lag_messages(&self) -> u64 {
        self.streams().values().map(|behind| behind.messages).sum()
    }

    /// Sequences that neither the streams have any more nor the archive, at the last look at each.
    #[must_use]
    pub fn lost_messages(&self) -> u64 {
        self.streams().values().map(|behind| behind.lost).sum()
    }

    /// Every figure.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let mut used = Figure::new(
            "weir_archive_retention_used_ratio",
            "Share of a stream's retention that is not archived yet; at 1 messages are lost.",
            "gauge",
        );
        let mut until_loss = Figure::new(
            "weir_archive_hours_until_loss",
            "Hours until a message is lost if nothing is archived from now on.",
            "gauge",
        );
        let mut holes = Figure::new(
            "weir_archive_holes",
            "Ranges of a stream that it no longer has and the archive does not hold.",
            "gauge",
        );
        let mut lost = Figure::new(
            "weir_archive_lost_messages",
            "Sequences in these ranges; recoveries across them are refused.",
            "gauge",
        );
        let now_ms = now_ms();
        let (mut lag_messages, mut lag_ms, mut at_risk) = (0, 0, 0);
        for (stream, behind) in self.streams().iter() {
            lag_messages += behind.messages;
            lag_ms = lag_ms.max(behind.age_ms(now_ms));
            at_risk += u64::from(behind.told.is_some());
            let outlook = behind.outlook(now_ms);
            let label = || vec![("stream", stream.clone())];
            used.sample("", label(), outlook.used());
            until_loss.sample("", label(), outlook.until_loss_s / 3_600.0);
            holes.sample("", label(), behind.holes as f64);
            lost.sample("", label(), behind.lost as f64);
        }
        let single = |name, help, value| Figure::single(name, help, "gauge", value);
        let mut figures = self.counts.figures();
        figures.extend([
            single(
                "weir_archive_lag_messages",
                "Messages that the archive is behind the log.",
                lag_messages as f64,
            ),
            single(
                "weir_archive_lag_seconds",
                "Age of the oldest message that is not archived.",
                lag_ms as f64 / 1_000.0,
            ),
            single(
                "weir_archive_streams_at_risk",
                "Streams that may drop messages before they are archived.",
                at_risk as f64,
            ),
            used,
            until_loss,
            holes,
            lost,
        ]);
        figures
    }

    /// Figures for one more stream.
    pub(crate) fn follow(self: &Arc<Self>, stream: &str) -> Followed {
        Followed {
            metrics: Arc::clone(self),
            stream: stream.to_owned(),
        }
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<String, Behind>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Followed {
    /// The stream was looked at: `left` of what it has is not archived, and `lost`, where that is known,
    /// is nowhere.
    pub(crate) fn looked(&self, state: &StreamState, left: u64, lost: Option<&Held>) {
        let now = Instant::now();
        self.update(|behind| {
            behind.growth.look(now, state.last);
            behind.limits = state.limits;
            behind.bytes_per_message = state.bytes as f64 / state.messages.max(1) as f64;
            behind.set_messages(left);
            if let Some(lost) = lost {
                behind.set_lost(&self.stream, lost);
            }
        });
    }

    /// What comes next was read.
    pub(crate) fn read(&self, page: &[Scanned]) {
        if let Some(first_ms) = page.iter().find_map(time_ms) {
            self.update(|behind| behind.oldest_ms = Some(first_ms));
        }
    }

    /// A batch that was read from `page` is durable, up to `last` of what the stream had then.
    pub(crate) fn wrote(&self, page: Batched, appended: &Appended, took: Duration) {
        let counts = &self.metrics.counts;
        counts.rows.add(appended.rows);
        counts.batches.add_one();
        counts.quarantined.add(appended.refused);
        counts.conflicts.add(appended.conflicts.len() as u64);
        counts.batch_messages.add(page.messages);
        counts.write_seconds.add(took);
        self.update(|behind| {
            behind.oldest_ms = page.last_ms.or(behind.oldest_ms);
            behind.set_messages(page.left);
        });
    }

    /// Changes the figures, then looks whether they are an alarm.
    fn update(&self, change: impl FnOnce(&mut Behind)) {
        let mut streams = self.metrics.streams();
        let behind = streams.entry(self.stream.clone()).or_default();
        change(behind);
        behind.alarm(&self.stream, self.metrics.allowed_lag);
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.metrics.streams().remove(&self.stream);
    }
}

/// What is remembered of a page once it became a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batched {
    messages: usize,
    last_ms: Option<i64>,
    left: u64,
}

impl Batched {
    /// A page of what was `next`.
    pub(crate) fn new(page: &[Scanned], next: Next) -> Self {
        let end = page.last().map_or(next.up_to, |one| one.seq);
        let done = end.get().saturating_sub(next.after.get());
        Self {
            messages: page.len(),
            last_ms: page.iter().rev().find_map(time_ms),
            left: next.left.saturating_sub(done),
        }
    }
}

fn time_ms(one: &Scanned) -> Option<i64> {
    let delivery = one.delivery.as_ref().ok()?;
    Some(delivery.message.time_ms)
}

impl Behind {
    fn set_messages(&mut self, messages: u64) {
        self.messages = messages;
        if messages == 0 {
            self.oldest_ms = None;
        }
    }

    /// Says so when something more is lost.
    fn set_lost(&mut self, stream: &str, lost: &Held) {
        let sequences = lost.count();
        if sequences > self.lost {
            let newest = lost.ranges().last();
            tracing::error!(
                target: "weir::archive_hole",
                stream,
                sequences,
                ?newest,
                "neither the stream nor the archive has these messages; recoveries across them are refused"
            );
        }
        self.lost = sequences;
        self.holes = lost.ranges().len() as u64;
    }

    fn age_ms(&self, now_ms: i64) -> i64 {
        self.oldest_ms
            .map_or(0, |oldest_ms| now_ms.saturating_sub(oldest_ms).max(0))
    }

    fn outlook(&self, now_ms: i64) -> Outlook {
        let mut outlook = Outlook {
            age_used: 0.0,
            space_used: 0.0,
            until_loss_s: f64::INFINITY,
        };
        if self.limits.max_age_ns > 0 {
            let max_age_s = self.limits.max_age_ns as f64 / 1e9;
            let age_s = self.age_ms(now_ms) as f64 / 1e3;
            outlook.age_used = age_s / max_age_s;
            outlook.until_loss_s = (max_age_s - age_s).max(0.0);
        }
        let messages_per_s = self.growth.messages_per_s.unwrap_or(0.0);
        for (max, each) in [
            (self.limits.max_messages, 1.0),
            (self.limits.max_bytes, self.bytes_per_message),
        ] {
            if max <= 0 {
                continue;
            }
            let (max, unarchived) = (max as f64, self.messages as f64 * each);
            outlook.space_used = outlook.space_used.max(unarchived / max);
            let per_s = messages_per_s * each;
            if per_s > 0.0 {
                let left_s = (max - unarchived).max(0.0) / per_s;
                outlook.until_loss_s = outlook.until_loss_s.min(left_s);
            }
        }
        outlook
    }

    /// Says so when loss comes near, again after a while, and once when it is over.
    fn alarm(&mut self, stream: &str, allowed_lag: Duration) {
        let now_ms = now_ms();
        let outlook = self.outlook(now_ms);
        let is_told = self.told.is_some();
        if !outlook.is_risk(allowed_lag) {
            if is_told {
                tracing::info!(
                    target: "weir::archive_at_risk",
                    stream,
                    "the archive is near enough to the stream again"
                );
            }
            self.told = None;
            return;
        }
        if self.told.is_some_and(|told| told.elapsed() < TELL_AGAIN) {
            return;
        }
        self.told = Some(Instant::now());
        tracing::warn!(
            target: "weir::archive_at_risk",
            stream,
            lag_messages = self.messages,
            lag_seconds = self.age_ms(now_ms) / 1_000,
            retention_used = format!("{:.0} %", outlook.used() * 100.0),
            hours_until_loss = format!("{:.2}", outlook.until_loss_s / 3_600.0),
            "the stream may drop messages before they are archived"
        );
    }
}

impl Outlook {
    fn used(&self) -> f64 {
        self.age_used.max(self.space_used)
    }

    fn is_risk(&self, allowed_lag: Duration) -> bool {
        self.age_used > AGE_USED_MAX
            || self.space_used > SPACE_USED_MAX
            || self.until_loss_s < allowed_lag.as_secs_f64()
    }
}

impl Growth {
    fn look(&mut self, now: Instant, last: Seq) {
        let Some((since, from)) = self.from else {
            self.from = Some((now, last));
            return;
        };
        let span = now.duration_since(since);
        if span < GROWTH_SPAN_MIN || (span < GROWTH_SPAN && self.messages_per_s.is_some()) {
            return;
        }
        let seen = last.get().saturating_sub(from.get()) as f64 / span.as_secs_f64();
        if span < GROWTH_SPAN {
            // A first guess; the span goes on.
            self.messages_per_s = Some(seen);
            return;
        }
        self.messages_per_s = Some(self.messages_per_s.map_or(seen, |old| (old + seen) / 2.0));
        self.from = Some((now, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn behind(messages: u64, age_s: i64, limits: Limits, messages_per_s: f64) -> Outlook {
        let now_ms = 1_000_000_000;
        let behind = Behind {
            messages,
            oldest_ms: (messages > 0).then_some(now_ms - age_s * 1_000),
            limits,
            bytes_per_message: 100.0,
            growth: Growth {
                from: None,
                messages_per_s: Some(messages_per_s),
            },
            told: None,
            holes: 0,
            lost: 0,
        };
        behind.outlook(now_ms)
    }

    fn limits(max_age_s: i64, max_bytes: i64, max_messages: i64) -> Limits {
        Limits {
            max_age_ns: max_age_s * 1_000_000_000,
            max_bytes,
            max_messages,
        }
    }

    #[test]
    fn the_nearest_limit_says_when_the_first_message_is_lost() {
        let none = behind(1_000_000, 1_000_000, limits(0, -1, -1), 1e6);
        assert_eq!((none.used(), none.until_loss_s), (0.0, f64::INFINITY));
        assert!(!none.is_risk(HOUR));
        // 72 hours, one of them used.
        let age = behind(10, 3_600, limits(259_200, -1, -1), 100.0);
        assert_eq!((age.used(), age.until_loss_s), (1.0 / 72.0, 255_600.0));
        // 1,000 of 10,000 messages at 10 a second; in bytes there is less room.
        let messages = behind(1_000, 5, limits(0, -1, 10_000), 10.0);
        assert_eq!((messages.used(), messages.until_loss_s), (0.1, 900.0));
        let bytes = behind(1_000, 5, limits(259_200, 200_000, 10_000), 10.0);
        assert_eq!((bytes.used(), bytes.until_loss_s), (0.5, 100.0));
        // Nobody writes: nothing is pushed out.
        let quiet = behind(1_000, 5, limits(0, 200_000, 10_000), 0.0);
        assert_eq!(quiet.until_loss_s, f64::INFINITY);
    }

    #[test]
    fn it_is_an_alarm_while_there_is_still_time() {
        let day = limits(86_400, -1, -1);
        assert!(!behind(0, 0, day, 9.0).is_risk(HOUR));
        assert!(!behind(5, 43_000, day, 9.0).is_risk(HOUR));
        assert!(behind(5, 43_300, day, 9.0).is_risk(HOUR), "half of it used");
        let short = limits(4_000, -1, -1);
        assert!(!behind(5, 390, short, 9.0).is_risk(HOUR));
        assert!(behind(5, 410, short, 9.0).is_risk(HOUR), "an hour is left");
        let space = limits(0, -1, 1_000);
        assert!(!behind(790, 1, space, 0.0).is_risk(HOUR));
        assert!(behind(810, 1, space, 0.0).is_risk(HOUR), "four fifths used");
        assert!(behind(0, 0, space, 10.0).is_risk(HOUR), "100 s are kept");
        assert!(!behind(0, 0, space, 10.0).is_risk(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn growth_is_what_was_seen() {
        let mut growth = Growth::default();
        let mut last = 1_000;
        for _ in 0..100 {
            growth.look(Instant::now(), Seq::new(last));
            last += 50;
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        assert_eq!(growth.messages_per_s, Some(100.0));
        for _ in 0..200 {
            growth.look(Instant::now(), Seq::new(last));
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        assert!(growth.messages_per_s.unwrap() < 1.0);
    }

    fn state(last: u64) -> StreamState {
        StreamState {
            first: Seq::new(1),
            last: Seq::new(last),
            messages: last,
            bytes: last * 100,
            limits: limits(0, -1, 100),
            created: String::new(),
        }
    }

    #[tokio::test]
    async fn the_lag_is_the_sum_over_streams_and_goes_with_them() {
        let metrics = Arc::new(WorkerMetrics::new(HOUR));
        let (one, other) = (metrics.follow("ONE"), metrics.follow("OTHER"));
        one.looked(&state(70), 70, None);
        other.looked(&state(5), 5, Some(&Held::from_ranges([(2, 3), (7, 7)])));
        assert_eq!(metrics.lag_messages(), 75);
        one.looked(&state(90), 90, None);
        let value = |name: &str, stream: &str| {
            let figures = metrics.figures();
            let figure = figures.iter().find(|figure| figure.name == name).unwrap();
            let of = |labels: &[(&str, String)]| labels.iter().all(|(_, value)| value == stream);
            let sample = figure.samples.iter().find(|sample| of(&sample.labels));
            sample.map(|sample| sample.value)
        };
        assert_eq!(value("weir_archive_streams_at_risk", ""), Some(1.0));
        let used = "weir_archive_retention_used_ratio";
        assert_eq!(value(used, "ONE"), Some(0.9));
        assert_eq!(value(used, "OTHER"), Some(0.05));
        assert_eq!(value("weir_archive_holes", "OTHER"), Some(2.0));
        assert_eq!(value("weir_archive_lost_messages", "OTHER"), Some(3.0));
        assert_eq!(metrics.lost_messages(), 3);
        one.looked(&state(90), 0, None);
        assert_eq!(value("weir_archive_streams_at_risk", ""), Some(0.0));
        drop(one);
        assert_eq!(value(used, "ONE"), None);
        assert_eq!(metrics.lag_messages(), 5);
    }
}
