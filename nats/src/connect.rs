//! Knows: the three connections of a process and what happens to them. Never: streams, rooms.
//!
//! Live and publishing, reads, and the door are apart, since a Direct Get runs in the server's read
//! loop of its connection, and since the door's user may publish nowhere but into inboxes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::broadcast;

/// Events that a slow listener may be behind before it is told that it lagged.
const EVENTS_MAX: usize = 256;
/// Live messages that may wait for one room before the newest are dropped and repaired later.
const SUBSCRIPTION_MAX_MESSAGES: usize = 8_192;
/// What was revoked while NATS was away has to be closed within 2 s of its return.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(800);

/// A NATS user and its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password; never logged.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Where and as whom to connect.
#[derive(Clone, Debug)]
pub struct ConnectConfig {
    /// `nats://host:port`, several separated by commas.
    pub url: String,
    /// The user that publishes into logs and administers streams.
    pub live: Credentials,
    /// The user that reads logs.
    pub reads: Credentials,
    /// The user that answers requests and may publish into inboxes only.
    pub door: Credentials,
    /// TLS to the servers; without it `tls://` in the address asks for TLS with this machine's authorities.
    pub tls: Option<NatsTls>,
    /// How soon a silent server is noticed.
    pub times: LinkTimes,
}

/// How to trust the servers, and who we are to them. Nothing is ever sent without TLS then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatsTls {
    /// Certificate authorities (PEM); `None`: those of this machine.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate chain and key (PEM), where servers ask for one (`verify: true`).
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl NatsTls {
    /// Options that connect in no other way. The files are read at each connect, so that new ones are taken.
    #[must_use]
    pub fn apply(&self, options: ConnectOptions) -> ConnectOptions {
        let mut options = options.require_tls(true);
        if let Some(file) = &self.ca_file {
            options = options.add_root_certificates(file.clone());
        }
        if let Some((certificates, key)) = &self.identity {
            options = options.add_client_certificate(certificates.clone(), key.clone());
        }
        options
    }
}

/// How soon a silent server is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTimes {
    /// Between pings of a connection; two without an answer end it.
    pub ping_interval: Duration,
    /// For the answer to a read or another request that sets no time of its own.
    pub request_timeout: Duration,
}

impl Default for LinkTimes {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
        }
    }
}

/// Which of the three connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// Live messages, publishing, stream administration.
    Live,
    /// Direct Get.
    Reads,
    /// `say` and `history` requests.
    Door,
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is up, for the first time or again.
    Connected,
    /// It was lost; it is tried again for ever.
    Disconnected,
    /// Messages of a subscription were dropped, as they were not taken in time.
    SlowConsumer,
}

/// The three connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Links {
    /// Live messages, publishing, stream administration.
    pub live: Client,
    /// Direct Get.
    pub reads: Client,
    /// `say` and `history` requests.
    pub door: Client,
    events: broadcast::Sender<(Link, LinkEvent)>,
    /// How often the live connection was lost.
    live_lost: Arc<AtomicU64>,
}

/// A connection that could not be made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot connect to NATS at {url} as user `{user}`: {reason}")]
pub struct ConnectError {
    /// The address as configured.
    pub url: String,
    /// The user.
    pub user: String,
    /// What the client said.
    pub reason: String,
}

impl Links {
    /// Connects all three.
    ///
    /// # Errors
    /// When one cannot be made; nothing is retried here, so that a wrong password is told at once.
    pub async fn connect(config: &ConnectConfig) -> Result<Self, ConnectError> {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let live_lost = Arc::new(AtomicU64::new(0));
        let of_no_interest = Arc::new(AtomicU64::new(0));
        let open = async |link, credentials, lost: &Arc<AtomicU64>| {
            // Boxed: the options of a connection are large, and all who start anything wait for this.
            Box::pin(connect(
                config,
                link,
                credentials,
                &events,
                Arc::clone(lost),
            ))
            .await
        };
        Ok(Self {
            live: open(Link::Live, &config.live, &live_lost).await?,
            reads: open(Link::Reads, &config.reads, &of_no_interest).await?,
            door: open(Link::Door, &config.door, &of_no_interest).await?,
            events,
            live_lost,
        })
    }

    /// What happens to the connections from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<(Link, LinkEvent)> {
        self.events.subscribe()
    }

    /// How often the live connection was lost: names one unbroken connection. What was sent on one
    /// may be taken by the server even after the next is made.
    #[must_use]
    pub fn live_lost(&self) -> u64 {
        self.live_lost.load(Ordering::Acquire)
    }

    /// True while the live connection is up, as far as is known.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live.connection_state() == State::Connected
    }
}

async fn connect(
    config: &ConnectConfig,
    link: Link,
    credentials: &Credentials,
    events: &broadcast::Sender<(Link, LinkEvent)>,
    lost: Arc<AtomicU64>,
) -> Result<Client, ConnectError> {
    let events = events.clone();
    let user = credentials.user.clone();
    let options = ConnectOptions::with_user_and_password(user, credentials.password.clone())
        .name(format!("weir {link:?}").to_lowercase())
        .custom_inbox_prefix(format!("_INBOX.{}", credentials.user))
        .ping_interval(config.times.ping_interval)
        .request_timeout(Some(config.times.request_timeout))
        .subscription_capacity(SUBSCRIPTION_MAX_MESSAGES)
        .reconnect_delay_callback(reconnect_pause)
        .event_callback(move |event| {
            let event = seen(link, &event);
            if event == Some(LinkEvent::Disconnected) {
                lost.fetch_add(1, Ordering::AcqRel);
            }
            if let Some(event) = event {
                // Nobody listening yet is no error: events before the start are looked up then.
                drop(events.send((link, event)));
            }
            async {}
        });
    open(options, config, credentials).await
}

/// A connection beside the three, as another user.
pub(crate) async fn connect_as(
    config: &ConnectConfig,
    credentials: &Credentials,
    what_for: &'static str,
) -> Result<Client, ConnectError> {
    let user = credentials.user.clone();
    let options = ConnectOptions::with_user_and_password(user, credentials.password.clone())
        .name(format!("weir {what_for}"))
        .custom_inbox_prefix(format!("_INBOX.{}", credentials.user))
        .ping_interval(config.times.ping_interval)
        .request_timeout(Some(config.times.request_timeout))
        .reconnect_delay_callback(reconnect_pause)
        .event_callback(move |event| {
            tracing::info!(what_for, %event, "nats link");
            async {}
        });
    open(options, config, credentials).await
}

/// Connects to the first server that takes these credentials, as the configuration trusts servers.
async fn open(
    options: ConnectOptions,
    config: &ConnectConfig,
    credentials: &Credentials,
) -> Result<Client, ConnectError> {
    let options = match &config.tls {
        Some(tls) => tls.apply(options),
        None => options,
    };
    let servers: Vec<&str> = config.url.split(',').map(str::trim).collect();
    // Large, and awaited by much else.
    Box::pin(options.connect(servers.as_slice()))
        .await
        .map_err(|error| ConnectError {
            url: config.url.clone(),
            user: credentials.user.clone(),
            reason: error.to_string(),
        })
}

/// Between tries to reach a server again.
fn reconnect_pause(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts.min(6)).unwrap_or(6);
    (Duration::from_millis(25) * 2_u32.pow(exponent)).min(RECONNECT_PAUSE_MAX)
}

fn seen(link: Link, event: &Event) -> Option<LinkEvent> {
    match event {
        Event::Connected => {
            tracing::info!(?link, "nats connected");
            Some(LinkEvent::Connected)
        }
        Event::Disconnected => {
            tracing::warn!(?link, "nats disconnected");
            Some(LinkEvent::Disconnected)
        }
        Event::SlowConsumer(subscription) => {
            tracing::warn!(?link, subscription, "nats messages were dropped here");
            Some(LinkEvent::SlowConsumer)
        }
        Event::ServerError(error) => {
            tracing::warn!(?link, %error, "nats server error");
            None
        }
        Event::ClientError(error) => {
            tracing::warn!(?link, %error, "nats client error");
            None
        }
        Event::LameDuckMode | Event::Draining | Event::Closed => None,
    }
}
