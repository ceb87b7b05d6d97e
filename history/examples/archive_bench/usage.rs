//! Knows: what work cost in time and CPU. Never: what the work was.

use std::time::{Duration, Instant};

/// Processes beside this one whose CPU is counted: name and id.
pub(crate) type Others = Vec<(&'static str, u32)>;

/// From its start on.
pub(crate) struct Usage {
    began: Instant,
    own: f64,
    others: Vec<(&'static str, u32, f64)>,
}

impl Usage {
    pub(crate) fn start(others: &Others) -> Self {
        Self {
            began: Instant::now(),
            own: cpu_s("self"),
            others: others
                .iter()
                .map(|&(name, pid)| (name, pid, cpu_s(&pid.to_string())))
                .collect(),
        }
    }

    /// Time, rate, and CPU a row of each process.
    pub(crate) fn per_row(&self, rows: u64) -> String {
        let took = self.began.elapsed().as_secs_f64();
        let per_row = |from: f64, to: f64| (to - from) / rows as f64 * 1e6;
        let mut text = format!(
            "{rows} rows in {took:.1} s: {:.0} rows/s; CPU a row: own {:.1} us",
            rows as f64 / took,
            per_row(self.own, cpu_s("self"))
        );
        for (name, pid, before) in &self.others {
            let cost = per_row(*before, cpu_s(&pid.to_string()));
            text.push_str(&format!(", {name} {cost:.1} us"));
        }
        text
    }
}

/// CPU seconds of a process.
fn cpu_s(pid: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // Hundredths of a second, in user mode and in the kernel.
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

/// `p50 …, p99 …` of durations.
pub(crate) fn quantiles(mut took: Vec<Duration>) -> String {
    took.sort();
    let at = |share: usize| took[took.len() * share / 100].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms", at(50), at(99))
}
