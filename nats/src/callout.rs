//! Knows: the auth callout of nats-server: it asks who a stranger is, this answers. Many instances answer as one.
//! Never: what a token is, who may do what: it is told (`Decide`).
//!
//! ```text
//! CONNECT → nats-server → $SYS.REQ.USER.AUTH, sealed → wire::open → Login → Decide → Admission
//!         ← permissions ← sealed answer              ← wire::answer ←
//! ```
//!
//! A request that is not answered is a refusal: nats-server waits `authorization.timeout` and then ends the
//! connection. Nothing of what somebody showed is in any text that is made here.

mod keys;
mod limit;
mod wire;

use std::pin::Pin;
use std::sync::Arc;

use async_nats::{Client, Message};
use futures_util::StreamExt as _;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use keys::{CalloutKeys, KeyError};
pub use limit::UserLimit;

use crate::ambient::since_1970;
use crate::connect::{ConnectConfig, ConnectError, Credentials, connect_as};
use crate::figures::{Counter, Figure};

/// Where nats-server asks, in the account of the callout.
const SUBJECT: &str = "$SYS.REQ.USER.AUTH";
const QUEUE_GROUP: &str = "weir-auth";
/// In which header nats-server says its own key.
const SERVER_KEY: &str = "Nats-Server-Xkey";
/// Logins worked on at once; beyond it they are refused.
const LOGINS_IN_FLIGHT_MAX: usize = 1_024;

/// Who wants in, as nats-server says it. Not for logs: it holds a token.
pub struct Login {
    /// What was given as token, or else as password; empty if neither.
    pub token: String,
    /// The client id, of an MQTT client.
    pub mqtt_client: Option<String>,
    /// It is a client; leaf nodes, routes and gateways are not.
    pub is_client: bool,
}

/// What somebody may do who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The name that CONNZ and the server's log show, and all that they show of the token: nats-server keeps no
    /// tags and no JWT of users that a callout let in.
    pub name: String,
    /// Subjects to publish on; never empty, as that would be all.
    pub publish: Vec<String>,
    /// Subjects to subscribe to; never empty, as that would be all.
    pub subscribe: Vec<String>,
    /// When the connection ends, in seconds since 1970.
    pub expires_at_s: Option<i64>,
}

/// Says of a login what it may do, or why it is refused, for logs.
pub type Decide = Arc<
    dyn Fn(Login) -> Pin<Box<dyn Future<Output = Result<Admission, String>> + Send>> + Send + Sync,
>;

/// What is counted.
#[derive(Debug, Default)]
pub struct CalloutMetrics {
    admitted: Counter,
    refused: Counter,
    unread: Counter,
}

impl CalloutMetrics {
    /// Every figure.
    #[must_use]
    pub fn figure(&self) -> Figure {
        let mut figure = Figure::new(
            "weir_native_logins_total",
            "Logins that nats-server asked about, by what became of them.",
            "counter",
        );
        for (outcome, counter) in [
            ("admitted", &self.admitted),
            ("refused", &self.refused),
            ("unread", &self.unread),
        ] {
            let labels = vec![("outcome", outcome.to_owned())];
            figure.sample("", labels, counter.value() as f64);
        }
        figure
    }
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Callout {
    client: Client,
    keys: Arc<CalloutKeys>,
    /// The account that users are put into.
    account: Arc<str>,
    decide: Decide,
    metrics: Arc<CalloutMetrics>,
    tasks: TaskTracker,
    in_flight: Arc<Semaphore>,
    logins: Arc<Notify>,
}

impl Callout {
    /// Connects as the user of the callout's own account.
    ///
    /// # Errors
    /// When it is refused, or there is no NATS.
    pub async fn connect(
        config: &ConnectConfig,
        credentials: &Credentials,
    ) -> Result<Client, ConnectError> {
        connect_as(config, credentials, "auth").await
    }

    /// A service on `client`, see [`Callout::connect`].
    #[must_use]
    pub fn new(
        client: Client,
        keys: CalloutKeys,
        account: &str,
        decide: Decide,
        metrics: Arc<CalloutMetrics>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            client,
            keys: Arc::new(keys),
            account: Arc::from(account),
            decide,
            metrics,
            tasks,
            in_flight: Arc::new(Semaphore::new(LOGINS_IN_FLIGHT_MAX)),
            logins: Arc::default(),
        }
    }

    /// With somebody who is told when somebody was let in, see [`UserLimit`].
    #[must_use]
    pub fn with_logins(mut self, logins: Arc<Notify>) -> Self {
        self.logins = logins;
        self
    }

    /// Answers until `stop`, and returns when what is in hand is answered.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn run(self, stop: CancellationToken) -> Result<(), async_nats::SubscribeError> {
        let mut requests = self
            .client
            .queue_subscribe(SUBJECT, QUEUE_GROUP.to_owned())
            .await?;
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => break,
                request = requests.next() => request,
            };
            let Some(request) = request else {
                return Ok(());
            };
            self.take(request);
        }
        if let Err(error) = requests.drain().await {
            tracing::debug!(%error, "callout's subscription was gone");
        }
        while let Some(request) = requests.next().await {
            self.take(request);
        }
        // Each answer that left brings its permit back.
        let all = u32::try_from(LOGINS_IN_FLIGHT_MAX).expect("a small constant");
        drop(self.in_flight.acquire_many(all).await);
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "callout's last answers not flushed");
        }
        Ok(())
    }

    fn take(&self, request: Message) {
        let permit = Arc::clone(&self.in_flight).try_acquire_owned();
        let service = self.clone();
        self.tasks.spawn(async move {
            service.serve(&request, permit.is_ok()).await;
            drop(permit);
        });
    }

    async fn serve(&self, request: &Message, has_room: bool) {
        let Some(reply) = request.reply.clone() else {
            return;
        };
        let server_key = request.headers.as_ref();
        let server_key = server_key.and_then(|headers| headers.get_last(SERVER_KEY));
        let opened = wire::open(
            &self.keys,
            server_key.map(|key| key.as_str()),
            &request.payload,
        );
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.metrics.unread.add_one();
                tracing::warn!(%error, "a request of nats-server's auth callout is not answered");
                return;
            }
        };
        let (asker, login) = opened;
        let decided = match &asker.refuse {
            Some(why) => Err((*why).to_owned()),
            None if !has_room => Err("too many logins at once".to_owned()),
            None => (self.decide)(login).await,
        };
        match &decided {
            Ok(admission) => {
                self.metrics.admitted.add_one();
                tracing::debug!(user = admission.name, "native login");
            }
            Err(reason) => {
                self.metrics.refused.add_one();
                tracing::info!(reason, "native login refused");
            }
        }
        let admitted = decided.is_ok();
        let now_s = i64::try_from(since_1970().as_secs()).unwrap_or(i64::MAX);
        let answer = wire::answer(&self.keys, &asker, &self.account, decided, now_s);
        let sent = match answer {
            Ok(answer) => {
                let published = self.client.publish(reply, answer.into()).await;
                published.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::warn!(error, "a login could not be answered");
        }
        if admitted {
            self.logins.notify_one();
        }
    }
}
