//! Knows: the internal listener: /health (the process lives), /ready (messages go through), /metrics (Prometheus text).
//! Never: decides what ready means or what is counted; `node.rs` supplies both. Never on the public listener.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use weir_nats::figures::{Figure, Sample};

/// What a probe says: ready, or why not.
pub type Verdict = Result<(), String>;
/// Asks whether messages go through.
pub type Probe = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Verdict> + Send>> + Send + Sync>;
/// Writes its metrics as Prometheus text, each line ended.
pub type Metrics = Box<dyn Fn(&mut String) + Send + Sync>;

/// A verdict is asked for at most this often; in between the last one stands.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A probe that takes longer says no.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// What the internal listener shows.
pub struct Admin {
    probe: Probe,
    metrics: Vec<Metrics>,
    /// When the last verdict was given. The lock is held while probing, so that many askers are one probe.
    last: Mutex<Option<(Instant, Verdict)>>,
    started: Instant,
    /// Cancelled: not ready any more, so that balancers look elsewhere while clients are sent away.
    draining: CancellationToken,
}

impl Admin {
    /// Shows what these tell.
    #[must_use]
    pub fn new(probe: Probe, metrics: Vec<Metrics>, draining: CancellationToken) -> Self {
        Self {
            probe,
            metrics,
            last: Mutex::new(None),
            started: Instant::now(),
            draining,
        }
    }

    async fn verdict(&self) -> Verdict {
        if self.draining.is_cancelled() {
            return Err("stopping".into());
        }
        let mut last = self.last.lock().await;
        if let Some((at, verdict)) = &*last
            && at.elapsed() < PROBE_INTERVAL
        {
            return verdict.clone();
        }
        let verdict = timeout(PROBE_TIMEOUT, (self.probe)())
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {PROBE_TIMEOUT:?}")));
        *last = Some((Instant::now(), verdict.clone()));
        verdict
    }

    fn text(&self) -> String {
        let mut text = String::with_capacity(8_192);
        sample(
            &mut text,
            "weir_build_info",
            "gauge",
            "Always 1; the label is the version.",
        );
        text.push_str(&format!(
            "weir_build_info{{version=\"{}\"}} 1\n",
            env!("CARGO_PKG_VERSION")
        ));
        sample(
            &mut text,
            "weir_uptime_seconds",
            "gauge",
            "Seconds since this process started.",
        );
        text.push_str(&format!(
            "weir_uptime_seconds {}\n",
            self.started.elapsed().as_secs()
        ));
        for metrics in &self.metrics {
            metrics(&mut text);
        }
        text
    }
}

/// Writes the two lines that precede the samples of a metric; `kind` is `counter`, `gauge` or `histogram`.
pub fn sample(text: &mut String, name: &str, kind: &str, help: &str) {
    text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

/// Writes a metric with its samples.
pub fn write_figure(text: &mut String, figure: &Figure) {
    sample(text, figure.name, figure.kind, figure.help);
    for Sample {
        suffix,
        labels,
        value,
    } in &figure.samples
    {
        text.push_str(figure.name);
        text.push_str(suffix);
        for (nth, (name, value)) in labels.iter().enumerate() {
            text.push_str(if nth == 0 { "{" } else { "," });
            let value = value.replace('\\', r"\\").replace('"', "\\\"");
            text.push_str(&format!("{name}=\"{}\"", value.replace('\n', r"\n")));
        }
        text.push_str(if labels.is_empty() { " " } else { "} " });
        match *value {
            f64::INFINITY => text.push_str("+Inf\n"),
            value => text.push_str(&format!("{value}\n")),
        }
    }
}

/// Serves until `stop`.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    admin: Arc<Admin>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route(
            "/health",
            get(async || json(StatusCode::OK, &serde_json::json!({}))),
        )
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    match admin.verdict().await {
        Ok(()) => json(StatusCode::OK, &serde_json::json!({ "ready": true })),
        Err(why) => json(
            StatusCode::SERVICE_UNAVAILABLE,
            &serde_json::json!({ "ready": false, "why": why }),
        ),
    }
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        admin.text(),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_askers_are_one_probe_a_second() {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        let probe: Probe = Box::new(move || {
            let n = counter.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                if n == 0 {
                    Err("cold".to_owned())
                } else {
                    Ok(())
                }
            })
        });
        let draining = CancellationToken::new();
        let admin = Admin::new(probe, Vec::new(), draining.clone());
        for _ in 0..10 {
            assert_eq!(admin.verdict().await, Err("cold".to_owned()));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tokio::time::advance(PROBE_INTERVAL).await;
        assert_eq!(admin.verdict().await, Ok(()));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        draining.cancel();
        assert!(admin.verdict().await.is_err());
    }

    #[test]
    fn a_figure_is_written_with_its_labels() {
        let mut figure = Figure::new("weir_some", "Some.", "gauge");
        figure.sample("", Vec::new(), 3.0);
        figure.sample(
            "_sum",
            vec![("a", "x\"\\\n".into()), ("b", "y".into())],
            0.25,
        );
        figure.sample("", vec![("le", "+Inf".into())], f64::INFINITY);
        let mut text = String::new();
        write_figure(&mut text, &figure);
        let expected = r#"# HELP weir_some Some.
# TYPE weir_some gauge
weir_some 3
weir_some_sum{a="x\"\\\n",b="y"} 0.25
weir_some{le="+Inf"} +Inf
"#;
        assert_eq!(text, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_is_a_no() {
        let probe: Probe = Box::new(|| Box::pin(std::future::pending()));
        let admin = Admin::new(probe, Vec::new(), CancellationToken::new());
        assert!(admin.verdict().await.unwrap_err().contains("no answer"));
    }
}
