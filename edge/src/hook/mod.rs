//! Knows: how the application's services are asked: by a request on `hook.>` or by HTTP, within a time, a bound
//! of calls and a breaker. Never: who asks, what an answer opens.

mod breaker;
mod http;
mod metrics;
mod nats;
mod passed_on;
mod question;
mod settings;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::http::HeaderMap;
use async_nats::Client;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use weir_authz::hook::Broken;
use weir_nats::ambient::since_1970;
use weir_nats::figures::Figure;

pub use breaker::BreakerLimits;
pub(crate) use passed_on::PassedOn;
pub(crate) use question::{About, Heard, Question};
pub use settings::{HookAt, HookBounds, HookSettings, Transport};

use breaker::{Admitted, Breaker};
use http::HttpService;
use metrics::HookMetrics;

/// Why a question has no answer. The client is told error 100, but for [`Failure::TooMany`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody is there.
    Absent,
    /// No answer in time.
    Late,
    /// Something else than an answer.
    Broken(String),
    /// As many wait for this hook already as may.
    Busy,
    /// It failed so often that it is left alone.
    Open,
    /// As many of this connection wait already as may: error 111.
    TooMany,
}

impl Failure {
    fn broken(why: &str) -> Self {
        Self::Broken(why.to_owned())
    }

    /// The place in [`metrics::KINDS`].
    fn kind(&self) -> usize {
        match self {
            Self::Absent => 0,
            Self::Late => 1,
            Self::Broken(_) => 2,
            Self::Busy | Self::TooMany => 3,
            Self::Open => 4,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("no service is there"),
            Self::Late => f.write_str("no answer in time"),
            Self::Broken(why) => write!(f, "no proper answer: {why}"),
            Self::Busy => f.write_str("too many questions wait for it"),
            Self::Open => f.write_str("it is left alone after failures"),
            Self::TooMany => f.write_str("too many questions of this connection wait"),
        }
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken.to_string())
    }
}

/// Every hook of an edge.
pub struct Hooks {
    connect: Option<Hook>,
    refresh: Option<Hook>,
    subscribe: HashMap<String, Hook>,
    publish: HashMap<String, Hook>,
    /// Headers that some hook wants.
    wanted: passed_on::Wanted,
}

/// One hook: an event, of one namespace where it has one.
struct Hook {
    event: &'static str,
    namespace: String,
    at: HookAt,
    service: Service,
    bounds: HookBounds,
    breaker: Mutex<Breaker>,
    calls: Semaphore,
    metrics: HookMetrics,
}

enum Service {
    Nats(Client, String),
    Http(Box<HttpService>),
}

impl Hooks {
    /// As told; `nats` may publish on `hook.>`.
    #[must_use]
    pub fn new(settings: &HookSettings, nats: &Client) -> Self {
        let hook = |event, namespace: &str, at: &HookAt| {
            Hook::new(event, namespace, at.clone(), settings.bounds, nats)
        };
        let server = |event, at: &Option<HookAt>| at.as_ref().map(|at| hook(event, "", at));
        let each = |event, all: &HashMap<String, HookAt>| {
            let hooks = all.iter();
            hooks
                .map(|(namespace, at)| (namespace.clone(), hook(event, namespace, at)))
                .collect()
        };
        Self {
            connect: server("connect", &settings.connect),
            refresh: server("refresh", &settings.refresh),
            subscribe: each("subscribe", &settings.subscribe),
            publish: each("publish", &settings.publish),
            wanted: passed_on::Wanted::of(settings),
        }
    }

    /// Every figure of the hooks.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let server = [&self.connect, &self.refresh].into_iter().flatten();
        let all = server
            .chain(self.subscribe.values())
            .chain(self.publish.values());
        metrics::figures(all)
    }

    /// What of a client's HTTP request hooks are told; `None` where they want nothing.
    pub(crate) fn of_request(&self, headers: &HeaderMap) -> Option<PassedOn> {
        self.wanted.of_request(headers)
    }

    /// Asks the hook that a question is for.
    pub(crate) async fn ask(
        &self,
        question: &Question,
        passed_on: Option<&PassedOn>,
    ) -> Result<Heard, Failure> {
        let hook = match &question.about {
            About::Connect(_) => self.connect.as_ref(),
            About::Refresh => self.refresh.as_ref(),
            About::Subscribe { room, .. } => {
                self.subscribe.get(room.namespace().unwrap_or_default())
            }
            About::Publish { room, .. } => self.publish.get(room.namespace().unwrap_or_default()),
        };
        match hook {
            Some(hook) => hook.ask(question, passed_on).await,
            None => Err(Failure::Absent),
        }
    }
}

impl Hook {
    fn new(
        event: &'static str,
        namespace: &str,
        at: HookAt,
        bounds: HookBounds,
        nats: &Client,
    ) -> Self {
        let service = match &at.transport {
            Transport::Nats { subject } => Service::Nats(nats.clone(), subject.clone()),
            Transport::Http {
                address,
                static_headers,
            } => Service::Http(Box::new(HttpService::new(
                address,
                static_headers,
                bounds.answer_max_bytes,
            ))),
        };
        Self {
            event,
            namespace: namespace.to_owned(),
            at,
            service,
            bounds,
            breaker: Mutex::default(),
            calls: Semaphore::new(bounds.calls_max),
            metrics: HookMetrics::default(),
        }
    }

    async fn ask(
        &self,
        question: &Question,
        passed_on: Option<&PassedOn>,
    ) -> Result<Heard, Failure> {
        let heard = self.try_ask(question, passed_on).await;
        if let Err(failure) = &heard {
            self.metrics.failures[failure.kind()].add_one();
            let (hook, namespace, client) = (self.event, &self.namespace, &question.client);
            // What was not asked is told once, when the breaker opens: clients could fill the log.
            match failure {
                Failure::Absent | Failure::Late | Failure::Broken(_) => {
                    tracing::warn!(hook, namespace, client, %failure, "hook failed");
                }
                Failure::Busy | Failure::Open | Failure::TooMany => {
                    tracing::debug!(hook, namespace, client, %failure, "hook not asked");
                }
            }
        }
        heard
    }

    async fn try_ask(
        &self,
        question: &Question,
        passed_on: Option<&PassedOn>,
    ) -> Result<Heard, Failure> {
        let _call = self.calls.try_acquire().map_err(|_| Failure::Busy)?;
        let admitted = self.breaker().admit(Instant::now());
        let mut call = Call {
            hook: self,
            admitted: admitted.ok_or(Failure::Open)?,
            succeeded: false,
        };
        self.metrics.calls.add_one();
        let start = Instant::now();
        let headers = passed_on
            .map(|passed_on| passed_on.select(&self.at))
            .unwrap_or_default();
        let body = question.to_json(self.at.include_connection_meta);
        let answer = timeout(self.at.timeout, self.send(body, headers)).await;
        self.metrics.seconds.add(start.elapsed());
        let answer = answer.map_err(|_| Failure::Late)??;
        let now_s = i64::try_from(since_1970().as_secs()).unwrap_or(i64::MAX);
        let heard = question.read(&answer, now_s)?;
        call.succeeded = true;
        Ok(heard)
    }

    async fn send(&self, body: Bytes, headers: HeaderMap) -> Result<Bytes, Failure> {
        match &self.service {
            Service::Http(service) => service.ask(body, headers).await,
            Service::Nats(client, subject) => {
                let answer = nats::ask(client, subject, body, &headers).await?;
                if answer.len() > self.bounds.answer_max_bytes {
                    return Err(Failure::broken("its answer is too long"));
                }
                Ok(answer)
            }
        }
    }

    fn is_open(&self) -> bool {
        self.breaker().is_open()
    }

    fn waiting(&self) -> usize {
        self.bounds.calls_max - self.calls.available_permits()
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that was let through. However it ends, the breaker is told.
struct Call<'h> {
    hook: &'h Hook,
    admitted: Admitted,
    succeeded: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let limits = self.hook.bounds.breaker;
        let now = Instant::now();
        let opened = self
            .hook
            .breaker()
            .ended(self.admitted, self.succeeded, limits, now);
        if opened {
            self.hook.metrics.opened.add_one();
            tracing::error!(
                hook = self.hook.event,
                namespace = self.hook.namespace,
                "hook keeps failing; it is left alone for a while"
            );
        }
    }
}
