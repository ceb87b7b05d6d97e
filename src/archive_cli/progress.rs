//! Knows: how a long command shows how far it is: a bar on a terminal, a line now and then elsewhere; all on standard error.
//! Never: what is counted.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::cli::complain;

/// Between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What was done of something.
pub(super) struct Progress {
    what: &'static str,
    total: Option<u64>,
    done: u64,
    bar: Option<ProgressBar>,
    begun: Instant,
    said: Instant,
}

impl Progress {
    /// Shows `what` (a plural) out of `total`, if that is known.
    pub(super) fn new(what: &'static str, total: Option<u64>) -> Self {
        let now = Instant::now();
        Self {
            what,
            total,
            done: 0,
            bar: std::io::stderr().is_terminal().then(|| bar(what, total)),
            begun: now,
            said: now,
        }
    }

    /// So many more are done.
    pub(super) fn add(&mut self, more: u64) {
        self.done += more;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        } else if self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            let of = self
                .total
                .map(|total| format!(" of {total}"))
                .unwrap_or_default();
            let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
            let rate = self.done as f64 / seconds;
            complain(&format!(
                "{}{of} {}, {rate:.0} a second",
                self.done, self.what
            ));
        }
    }

    /// How many are done.
    pub(super) const fn done(&self) -> u64 {
        self.done
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = if total.is_some() {
        format!("{{bar:30}} {{human_pos}} of {{human_len}} {what}, {{per_sec}}, {{eta}} left")
    } else {
        format!("{{spinner}} {{human_pos}} {what}, {{per_sec}}")
    };
    let style = ProgressStyle::with_template(&template);
    bar.with_style(style.expect("the template is well formed"))
}
