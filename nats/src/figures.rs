//! Knows: counters, gauges and histograms, and the figures that are read from them. Never: what is
//! counted, how figures are served.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// One metric as it is read: a name, and samples that differ in suffix and labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// What it says, in a sentence.
    pub help: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its values.
    pub samples: Vec<Sample>,
}

/// One value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Appended to the metric's name: `_sum`, `_count`, `_bucket` of a histogram, else nothing.
    pub suffix: &'static str,
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The value; infinity where there is no bound.
    pub value: f64,
}

impl Figure {
    /// A metric without samples yet.
    #[must_use]
    pub const fn new(name: &'static str, help: &'static str, kind: &'static str) -> Self {
        Self {
            name,
            help,
            kind,
            samples: Vec::new(),
        }
    }

    /// A metric with one value and no label.
    #[must_use]
    pub fn single(name: &'static str, help: &'static str, kind: &'static str, value: f64) -> Self {
        let mut figure = Self::new(name, help, kind);
        figure.sample("", Vec::new(), value);
        figure
    }

    /// Adds a value.
    pub fn sample(
        &mut self,
        suffix: &'static str,
        labels: Vec<(&'static str, String)>,
        value: f64,
    ) {
        self.samples.push(Sample {
            suffix,
            labels,
            value,
        });
    }
}

/// Something that is counted or measured.
pub trait Value {
    /// `counter`, `gauge` or `histogram`.
    const KIND: &'static str;

    /// Adds its samples to `figure`.
    fn sample(&self, figure: &mut Figure);
}

/// Only ever grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The figure now.
    #[must_use]
    pub fn value(&self) -> i64 {
        i64::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(i64::MAX)
    }
}

impl Value for Counter {
    const KIND: &'static str = "counter";

    fn sample(&self, figure: &mut Figure) {
        figure.sample("", Vec::new(), self.value() as f64);
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Changes it by `delta`, and returns the new value.
    pub fn add(&self, delta: i64) -> i64 {
        self.0.fetch_add(delta, Ordering::Relaxed) + delta
    }

    /// The figure now.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Value for Gauge {
    const KIND: &'static str = "gauge";

    fn sample(&self, figure: &mut Figure) {
        figure.sample("", Vec::new(), self.value() as f64);
    }
}

/// Upper ends of the buckets of [`Seconds`].
const SECONDS: [f64; 8] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0];
/// Upper ends of the buckets of [`Sizes`].
const SIZES: [f64; 8] = [1.0, 3.0, 10.0, 30.0, 100.0, 1_000.0, 5_000.0, 20_000.0];

/// How often which duration was seen.
#[derive(Debug, Default)]
pub struct Seconds(Buckets);

impl Seconds {
    /// One more.
    pub fn add(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.add(&SECONDS, took.as_secs_f64(), us);
    }
}

impl Value for Seconds {
    const KIND: &'static str = "histogram";

    fn sample(&self, figure: &mut Figure) {
        self.0.sample(&SECONDS, 1e-6, figure);
    }
}

/// How often which size was seen.
#[derive(Debug, Default)]
pub struct Sizes(Buckets);

impl Sizes {
    /// One more.
    pub fn add(&self, size: usize) {
        self.0.add(&SIZES, size as f64, size as u64);
    }
}

impl Value for Sizes {
    const KIND: &'static str = "histogram";

    fn sample(&self, figure: &mut Figure) {
        self.0.sample(&SIZES, 1.0, figure);
    }
}

#[derive(Debug, Default)]
struct Buckets {
    /// Not summed up; the last is for what is above all ends.
    counts: [AtomicU64; 9],
    sum: AtomicU64,
}

impl Buckets {
    fn add(&self, ends: &[f64; 8], value: f64, amount: u64) {
        let nth = ends.partition_point(|end| *end < value);
        self.counts[nth].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(amount, Ordering::Relaxed);
    }

    fn sample(&self, ends: &[f64; 8], unit: f64, figure: &mut Figure) {
        let mut total = 0;
        for (nth, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let end = ends.get(nth).map_or("+Inf".to_owned(), f64::to_string);
            figure.sample("_bucket", vec![("le", end)], total as f64);
        }
        let sum = self.sum.load(Ordering::Relaxed) as f64 * unit;
        figure.sample("_sum", Vec::new(), sum);
        figure.sample("_count", Vec::new(), total as f64);
    }
}

/// Declares a struct of figures and `figures(&self) -> Vec<Figure>`, which reads them all. The name
/// of each is the prefix and the field; the help is the first line of its documentation.
#[macro_export]
macro_rules! figures {
    (
        $(#[$meta:meta])*
        $vis:vis struct $Struct:ident: $prefix:literal {
            $($(#[doc = $doc:expr])+ $name:ident: $kind:ident),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $Struct { $($(#[doc = $doc])+ $vis $name: $crate::figures::$kind),+ }

        impl $Struct {
            /// Every figure as it is now. Each is read by itself: no lock.
            #[must_use]
            $vis fn figures(&self) -> Vec<$crate::figures::Figure> {
                use $crate::figures::{Figure, Value};
                vec![$({
                    let mut figure = Figure::new(
                        concat!($prefix, stringify!($name)),
                        [$($doc.trim_ascii()),+][0],
                        <$crate::figures::$kind as Value>::KIND,
                    );
                    Value::sample(&self.$name, &mut figure);
                    figure
                }),+]
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::figures! {
        /// Of a test.
        struct Few: "few_" {
            /// Things that were seen.
            seen: Counter,
            /// How long a thing took.
            took_seconds: Seconds,
        }
    }

    #[test]
    fn a_figure_has_its_name_help_and_samples() {
        let few = Few::default();
        few.seen.add(3);
        let figures = few.figures();
        let seen = Figure::single("few_seen", "Things that were seen.", "counter", 3.0);
        assert_eq!(figures[0], seen);
        assert_eq!(figures[1].name, "few_took_seconds");
    }

    #[test]
    fn buckets_are_summed_up() {
        let took = Seconds::default();
        for ms in [1, 5, 5, 2_000, 60_000] {
            took.add(Duration::from_millis(ms));
        }
        let mut figure = Figure::new("took", "", Seconds::KIND);
        took.sample(&mut figure);
        let of = |suffix: &str, le: &str| {
            let found = figure.samples.iter().find(|sample| {
                sample.suffix == suffix && sample.labels.iter().all(|(_, value)| value == le)
            });
            found.unwrap().value
        };
        assert_eq!(of("_bucket", "0.001"), 1.0);
        assert_eq!(of("_bucket", "0.01"), 3.0);
        assert_eq!(of("_bucket", "1"), 3.0);
        assert_eq!(of("_bucket", "10"), 4.0);
        assert_eq!(of("_bucket", "+Inf"), 5.0);
        assert_eq!(of("_count", ""), 5.0);
        assert!((of("_sum", "") - 62.011).abs() < 1e-9);
    }
}
