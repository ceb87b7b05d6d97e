//! Knows: named figures and how they are printed, as a table or as one JSON line. Never: what they mean.

use serde_json::{Map, Value};

/// Figures in the order they were added.
#[derive(Default)]
pub struct Report(Map<String, Value>);

impl Report {
    pub fn new(kind: &str) -> Self {
        let mut report = Self::default();
        report.add("kind", kind);
        report
    }

    pub fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// A number rounded to three significant decimals.
    pub fn num(&mut self, name: &str, value: f64) {
        self.add(name, (value * 1000.0).round() / 1000.0);
    }

    /// p50, p99 and maximum of a histogram of microseconds, in milliseconds.
    pub fn latency(&mut self, name: &str, h: &hdrhistogram::Histogram<u64>) {
        for (label, value) in [
            ("p50", h.value_at_quantile(0.5)),
            ("p99", h.value_at_quantile(0.99)),
            ("max", h.max()),
        ] {
            self.num(&format!("{name}_{label}_ms"), value as f64 / 1000.0);
        }
    }

    pub fn print(&self, as_json: bool) {
        if as_json {
            println!("{}", Value::Object(self.0.clone()));
        } else {
            for (name, value) in &self.0 {
                println!("{name:<34} {value}");
            }
        }
    }
}

/// An empty histogram of microseconds up to ten minutes.
pub fn histogram() -> hdrhistogram::Histogram<u64> {
    hdrhistogram::Histogram::new_with_bounds(1, 600_000_000, 3).expect("constant bounds")
}
