//! Knows: what is counted of one hook, and the figures of all. Never: calls.

use weir_nats::figures::{Counter, Figure, Seconds, Value as _};

use super::Hook;

/// Counters of one hook.
#[derive(Debug, Default)]
pub(super) struct HookMetrics {
    pub(super) calls: Counter,
    pub(super) failures: [Counter; KINDS.len()],
    pub(super) opened: Counter,
    pub(super) seconds: Seconds,
}

/// Values of the label `kind`, by [`super::Failure::kind`].
pub(super) const KINDS: [&str; 5] = ["absent", "late", "broken", "busy", "open"];

type Labels = Vec<(&'static str, String)>;

/// Every figure of these hooks.
pub(super) fn figures<'h>(hooks: impl Iterator<Item = &'h Hook> + Clone) -> Vec<Figure> {
    let labels = |hook: &Hook| -> Labels {
        vec![
            ("hook", hook.event.to_owned()),
            ("namespace", hook.namespace.clone()),
        ]
    };
    let mut calls = Figure::new(
        "weir_edge_hook_calls",
        "Questions put to the application's services.",
        "counter",
    );
    let mut failures = Figure::new(
        "weir_edge_hook_failures",
        "Questions without an answer: no service, too late, no proper answer, too many at once, left alone.",
        "counter",
    );
    let mut open = Figure::new(
        "weir_edge_hook_breaker_open",
        "1 while a service is left alone after failures.",
        "gauge",
    );
    let mut opened = Figure::new(
        "weir_edge_hook_breaker_opened",
        "Times a service was left alone.",
        "counter",
    );
    let mut waiting = Figure::new(
        "weir_edge_hook_waiting",
        "Questions that wait for their answer now.",
        "gauge",
    );
    let mut seconds = Figure::new(
        "weir_edge_hook_seconds",
        "How long answers took, and questions without one.",
        Seconds::KIND,
    );
    for hook in hooks {
        let metrics = &hook.metrics;
        calls.sample("", labels(hook), metrics.calls.value() as f64);
        for (kind, count) in KINDS.iter().zip(&metrics.failures) {
            let mut labels = labels(hook);
            labels.push(("kind", (*kind).to_owned()));
            failures.sample("", labels, count.value() as f64);
        }
        open.sample("", labels(hook), f64::from(u8::from(hook.is_open())));
        opened.sample("", labels(hook), metrics.opened.value() as f64);
        waiting.sample("", labels(hook), hook.waiting() as f64);
        let first = seconds.samples.len();
        metrics.seconds.sample(&mut seconds);
        for sample in &mut seconds.samples[first..] {
            sample.labels.splice(0..0, labels(hook));
        }
    }
    [calls, failures, open, opened, waiting, seconds]
        .into_iter()
        .filter(|figure| !figure.samples.is_empty())
        .collect()
}
