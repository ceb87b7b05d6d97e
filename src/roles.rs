//! Knows: how the roles of a process are built from the configuration, started in order and let go.
//! Never: messages, listeners, a nats-server of our own.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_authz::{Action, Grants, NamespaceRules, TokenSettings, Verifier};
use weir_edge::connection::Edge;
use weir_edge::door::{NativeDoor, may_be_answered};
use weir_edge::hub::{Hub, HubParts};
use weir_edge::metrics::Metrics;
use weir_edge::outbox::OutboxLimits;
use weir_edge::rate::{Rate, UserRates};
use weir_edge::room::RingLimits;
use weir_edge::seats::Seats;
use weir_edge::settings::{
    Bounds, ClientSettings, DataFormat, DoorSettings, EdgeSettings, Namespace,
};
use weir_edge::{server, sweep};
use weir_history::archive::OldestMs;
use weir_history::erase::{Eraser, expire};
use weir_history::service::{Access, HistoryService};
use weir_history::{Archive, Reader, Window, Worker, WorkerMetrics};
use weir_nats::ambient::now_ms;
use weir_nats::connect::{ConnectConfig, Credentials, LinkTimes, Links};
use weir_nats::erasure::watch::{Apply, Identity, Watch};
use weir_nats::figures::Figure;
use weir_nats::guard::Guard;
use weir_nats::publish::{ArchiveLookup, PublishLimits, Publisher, PublisherParts, Saw};
use weir_nats::replay::Replay;
use weir_nats::stream::{
    LogConfig, PROBE_SUBJECT, PROBED_SUBJECT, Storage, context, declare_bucket, declare_probe,
};
use weir_nats::{Orders, Placements, RoomName};

use crate::config::{self, Config};

/// Between tries to open an archive that is locked.
const ARCHIVE_RETRY: Duration = Duration::from_secs(1);
/// Between comparisons of streams that clients cause.
const SUSPICION_EVERY: Duration = Duration::from_secs(10);
/// For requests of the native doors that are in hand when the process stops: a publish is answered within 4 s.
const SERVICES_WITHIN: Duration = Duration::from_secs(5);
/// For the word that this process has ended.
const SAID_WITHIN: Duration = Duration::from_millis(1_500);
/// For a connection to NATS to be closed properly.
const LINK_CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// For a probe to come back.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// Roles that run.
pub struct Roles {
    /// What sockets use; its router and listener belong to it.
    pub edge: Arc<Edge>,
    /// The worker's counters.
    pub worker: Arc<WorkerMetrics>,
    links: Links,
    guard: Guard,
    tasks: TaskTracker,
    /// The doors, which answer what they have in hand before they end.
    services: Vec<JoinHandle<()>>,
    /// Says at the end that this process has ended.
    erasure: JoinHandle<()>,
    orders: Orders,
    /// Nothing new is taken: no sockets, no requests.
    closing: CancellationToken,
    /// What serves the others ends.
    stop: CancellationToken,
}

/// A role that could not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

fn failed(error: impl std::fmt::Display) -> StartError {
    StartError(error.to_string())
}

impl Roles {
    /// Connects, compares the streams, opens the archive and starts every role. `data_dir` exists.
    ///
    /// # Errors
    /// When NATS or JetStream is not there, or the archive cannot be opened for good.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let links = Links::connect(&connect_config(config))
            .await
            .map_err(failed)?;
        // Subscribed first: what happens while the streams are compared is not missed.
        let (guard_events, sweep_events) = (links.events(), links.events());
        let js = context(links.live.clone());
        declare_probe(&js).await.map_err(failed)?;
        let archive = open_archive(config).await?;
        let seeds = archive.known().await.map_err(failed)?;
        let placements = Placements::default();
        let logs: Vec<LogConfig> = config.logs.iter().map(log_config).collect();
        let deep_reads = usize::from(config.history.stream_reads);
        let replay = Replay::new(links.reads.clone()).with_reads_at_once(deep_reads);
        // Before anything is read or appended: what was ordered to be erased does not come back.
        let orders = Orders::default();
        let replicas = logs.iter().map(|log| log.replicas).max().unwrap_or(1);
        declare_bucket(&js, replicas).await.map_err(failed)?;
        let identity = identity(config, &archive);
        let watch = Watch::start(links.live.clone(), orders.clone(), identity);
        let watch = watch.await.map_err(failed)?;
        let eraser = Eraser::new(
            archive.clone(),
            watch.book(),
            orders.clone(),
            replay.clone(),
            watch.resets(),
        );
        eraser.prepare().await.map_err(failed)?;
        let guard = Guard::start(
            &links,
            logs.clone(),
            placements.clone(),
            seeds,
            orders.clone(),
        );
        let guard = guard.await.map_err(failed)?;
        let secret = guard.idempotency_secret().await.map_err(failed)?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(guard.clone().run(guard_events, stop.clone()));

        let reader = Reader::new(Some(archive.clone()), replay.clone())
            .with_cache(config.history.cache_max_size)
            .with_orders(orders.clone());
        let wake = Arc::new(Notify::new());
        let publisher = Publisher::start(
            PublisherParts {
                links: links.clone(),
                placements: placements.clone(),
                guard: guard.clone(),
                key: secret,
                duplicate_windows: logs
                    .iter()
                    .map(|log| (log.name.clone(), log.duplicate_window))
                    .collect(),
                saw: saw(guard.clone(), Arc::clone(&wake)),
                lookup: Some(lookup(reader.clone())),
                limits: publish_limits(config),
            },
            &tasks,
        );
        let worker_metrics = Arc::new(WorkerMetrics::new(config.archive.allowed_lag));
        tasks.spawn(eraser.run(stop.clone()));
        if let Some(oldest_ms) = oldest_ms(config) {
            tasks.spawn(expire(archive.clone(), oldest_ms, stop.clone()));
        }
        let worker = Worker::new(
            archive,
            replay,
            guard.clone(),
            placements.clone(),
            wake,
            Arc::clone(&worker_metrics),
        )
        .with_orders(orders.clone())
        .among_others(links.live.clone());
        tasks.spawn(worker.run(tasks.clone(), stop.clone()));

        let settings = Arc::new(edge_settings(config));
        let metrics = Arc::new(Metrics::default());
        let suspicion = guard.clone();
        let hub = Hub::new(HubParts {
            live: links.live.clone(),
            reader: reader.clone(),
            placements: placements.clone(),
            orders: orders.clone(),
            settings: Arc::clone(&settings),
            metrics: Arc::clone(&metrics),
            tasks: tasks.clone(),
            suspect: suspect(suspicion),
        });
        let (forgetful, pages) = (hub.clone(), reader.clone());
        let apply: Apply = Arc::new(move || {
            // They are not shown any more; this is so that they are not kept either.
            pages.forget();
            let hub = forgetful.clone();
            Box::pin(async move { hub.forget_erased().await })
        });
        let erasure = tasks.spawn(watch.run(apply, stop.clone()));
        tasks.spawn(sweep::run(
            hub.clone(),
            sweep_events,
            publisher.resync(),
            stop.clone(),
        ));
        let (rate, users_max) = (settings.door.rate, settings.door.users_max);
        let rates = Arc::new(UserRates::new(rate, users_max));
        let door = NativeDoor::new(
            links.door.clone(),
            publisher.clone(),
            Arc::clone(&settings),
            Arc::clone(&metrics),
            Arc::clone(&rates),
            tasks.clone(),
        );
        let closing = CancellationToken::new();
        let door = spawn_service("door", door.run(closing.clone()), &tasks);
        let history = HistoryService::new(
            links.door.clone(),
            reader.clone(),
            placements.clone(),
            history_policy(Arc::clone(&settings), rates),
            {
                let settings = Arc::clone(&settings);
                Arc::new(move |user: &str, reply: &str| {
                    may_be_answered(user, reply, &settings.door.operators)
                })
            },
            tasks.clone(),
        )
        .with_page(settings.bounds.reply_max_bytes);
        let history = spawn_service("history", history.run(closing.clone()), &tasks);
        let edge = Arc::new(Edge {
            verifier: verifier(config),
            settings,
            metrics,
            hub,
            publisher,
            reader,
            placements,
            nats: links.live.clone(),
            seats: Seats::default(),
            tasks: tasks.clone(),
            draining: CancellationToken::new(),
        });
        Ok(Self {
            edge,
            worker: worker_metrics,
            links,
            guard,
            tasks,
            services: vec![door, history],
            erasure,
            orders,
            closing,
            stop,
        })
    }

    /// Accepts sockets on `listener`, with `page` beside the WebSocket endpoint.
    pub fn accept(&self, listener: TcpListener, page: axum::Router) {
        let router = page.merge(server::router(Arc::clone(&self.edge)));
        let edge = Arc::clone(&self.edge);
        let stop = self.closing.clone();
        self.tasks
            .spawn(server::serve(listener, router, edge, stop));
    }

    /// A round trip through the delivery path: stored by JetStream, republished, and back here.
    ///
    /// # Errors
    /// A sentence that says what does not work.
    pub async fn probe(&self) -> Result<(), String> {
        if !*self.guard.gate().borrow() {
            return Err("the streams are not compared since the last connect to NATS".to_owned());
        }
        let name = self.links.live.new_inbox().replace('.', "-");
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let probed = format!("{PROBED_SUBJECT}.{name}");
        let mut back = self
            .links
            .live
            .subscribe(probed)
            .await
            .map_err(|e| text(&e))?;
        let js = context(self.links.live.clone());
        let store = async || {
            let publish = js.publish(format!("{PROBE_SUBJECT}.{name}"), "".into());
            let ack = publish.await.map_err(|e| text(&e))?;
            ack.await.map_err(|e| text(&e))
        };
        let round_trip = async {
            if store().await.is_err() {
                // The probe's stream is in memory, so it goes when nats-server does.
                declare_probe(&js).await.map_err(|e| text(&e))?;
                store().await?;
            }
            back.next()
                .await
                .ok_or_else(|| "the probe's subscription ended".to_owned())
        };
        match tokio::time::timeout(PROBE_WITHIN, round_trip).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err("a probe did not come back through NATS in time".to_owned()),
        }
    }

    /// Every figure.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures = self.edge.metrics.figures();
        figures.push(Figure::single(
            "weir_publish_waiting_bytes",
            "Bytes that wait to be published.",
            "gauge",
            self.edge.publisher.waiting_bytes() as f64,
        ));
        figures.push(Figure::single(
            "weir_erasure_orders",
            "Orders of erasure in force.",
            "gauge",
            self.orders.count() as f64,
        ));
        figures.extend(self.worker.figures());
        let from_rings = self.edge.metrics.recovered_from_ring.value();
        figures.extend(self.edge.reader.metrics().read(from_rings));
        figures
    }

    /// Takes nothing new, answers what is under way, lets sockets go (3001), and stops the roles; all of it within
    /// `within` and a moment.
    pub async fn stop(self, within: Duration) {
        let deadline = Instant::now() + within;
        let services_deadline = deadline.min(Instant::now() + SERVICES_WITHIN);
        self.closing.cancel();
        // Sockets learn of their publishes before they are sent away.
        if timeout_at(deadline, self.edge.publisher.settled())
            .await
            .is_err()
        {
            tracing::warn!("publishes were cut short");
        }
        self.edge.draining.cancel();
        while self.edge.metrics.connections.value() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if timeout_at(services_deadline, join_all(self.services))
            .await
            .is_err()
        {
            tracing::warn!("requests at the native door were cut short");
        }
        self.stop.cancel();
        if timeout_at(Instant::now() + SAID_WITHIN, self.erasure)
            .await
            .is_err()
        {
            tracing::debug!("the process is still on the list of those that run");
        }
        let Links {
            live, reads, door, ..
        } = &self.links;
        join_all([live, reads, door].map(close)).await;
    }
}

/// Sends what is to be sent and ends a connection, so that neither side takes its end for a loss.
async fn close(client: &async_nats::Client) {
    let closed = async {
        client.flush().await.map_err(|error| error.to_string())?;
        client.drain().await.map_err(|error| error.to_string())?;
        // Nothing is answered any more once it is closed.
        while client.flush().await.is_ok() {}
        Ok::<(), String>(())
    };
    match tokio::time::timeout(LINK_CLOSE_WITHIN, closed).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error, "nats connection was closed before"),
        Err(_) => tracing::debug!("nats connection is not closed in time"),
    }
}

fn spawn_service(
    name: &'static str,
    service: impl Future<Output = Result<(), async_nats::SubscribeError>> + Send + 'static,
    tasks: &TaskTracker,
) -> JoinHandle<()> {
    tasks.spawn(async move {
        if let Err(error) = service.await {
            tracing::error!(name, %error, "service ended");
        }
    })
}

async fn open_archive(config: &Config) -> Result<Archive, StartError> {
    loop {
        match crate::archive::open(config).await {
            Ok(archive) => return Ok(archive),
            Err(error) if error.temporary => {
                tracing::warn!(%error, "archive cannot be opened yet; trying again");
                tokio::time::sleep(ARCHIVE_RETRY).await;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Which process this is: one that starts again on the same data folder is the same.
fn identity(config: &Config, archive: &Archive) -> Identity {
    let host = host_name();
    let mut hasher = DefaultHasher::new();
    config.data_dir.hash(&mut hasher);
    Identity {
        id: format!(
            "{}-{:016x}",
            weir_nats::subject::escape(&host),
            hasher.finish()
        ),
        host,
        archive: {
            let archive = archive.clone();
            Arc::new(move || archive.id())
        },
    }
}

/// This machine's name.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// Below which age the archive keeps a room's messages; `None` if every namespace keeps all.
fn oldest_ms(config: &Config) -> Option<OldestMs> {
    let channel = &config.channel;
    let of = |options: &config::Namespace| {
        let ttl = options.archive_ttl;
        (!ttl.is_zero()).then(|| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
    };
    let without = of(&channel.without_namespace);
    let named: HashMap<String, i64> = channel
        .namespaces
        .iter()
        .filter_map(|(name, options)| Some((name.clone(), of(options)?)))
        .collect();
    if without.is_none() && named.is_empty() {
        return None;
    }
    Some(Arc::new(move |room: &RoomName| {
        let ttl_ms = match room.namespace() {
            Some(name) => named.get(name).copied(),
            None => without,
        };
        Some(now_ms().saturating_sub(ttl_ms?))
    }))
}

fn saw(guard: Guard, wake: Arc<Notify>) -> Saw {
    Arc::new(move |stream, known| {
        guard.saw(stream, &known);
        wake.notify_one();
    })
}

/// A client's position above the stream's end closes the gate for a comparison, so clients may cause
/// that only so often.
fn suspect(guard: Guard) -> Box<dyn Fn(&str) + Send + Sync> {
    let last = std::sync::Mutex::new(None::<Instant>);
    Box::new(move |stream| {
        let now = Instant::now();
        let mut last = last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_none_or(|last| now.duration_since(last) > SUSPICION_EVERY) {
            *last = Some(now);
            guard.suspect(stream);
        }
    })
}

fn lookup(reader: Reader) -> ArchiveLookup {
    Arc::new(move |room, id, after| {
        let reader = reader.clone();
        Box::pin(async move {
            match reader.find(room, id, after).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "archive could not be asked for a publish");
                    None
                }
            }
        })
    })
}

fn history_policy(
    settings: Arc<EdgeSettings>,
    rates: Arc<UserRates>,
) -> weir_history::service::Policy {
    Arc::new(move |user: &str, room: &RoomName| {
        if !rates.take(user, Instant::now()) {
            return Err((111, "requests come too fast (door.rate_limit)"));
        }
        let namespace = settings.namespace(room).ok_or((102, "unknown channel"))?;
        if !namespace.stored {
            return Err((108, "rooms of this namespace are not stored"));
        }
        Grants::native(user)
            .check(Action::History, room, &namespace.rules, false)
            .map_err(|_| (103, "permission denied"))?;
        Ok(Access {
            log: namespace.log.clone(),
            window: namespace.window,
        })
    })
}

fn verifier(config: &Config) -> Option<Arc<Verifier>> {
    let token = &config.client.token;
    (!token.hmac_secret_key.is_empty()).then(|| Arc::new(Verifier::new(token_settings(config))))
}

/// How tokens are verified and minted.
#[must_use]
pub fn token_settings(config: &Config) -> TokenSettings {
    let token = &config.client.token;
    TokenSettings {
        hmac_secret_key: token.hmac_secret_key.expose().to_owned(),
        audience: token.audience.clone(),
        issuer: token.issuer.clone(),
        require_exp: true,
    }
}

pub(crate) fn connect_config(config: &Config) -> ConnectConfig {
    let credentials = |user: &config::NatsUser| Credentials {
        user: user.user.clone(),
        password: user.password.expose().to_owned(),
    };
    ConnectConfig {
        url: config.nats.url.clone(),
        live: credentials(&config.nats.live),
        reads: credentials(&config.nats.reads),
        door: credentials(&config.nats.door),
        times: LinkTimes {
            ping_interval: config.nats.ping_interval,
            request_timeout: config.nats.request_timeout,
        },
    }
}

fn publish_limits(config: &Config) -> PublishLimits {
    PublishLimits {
        queue_max_bytes: config.publish.queue_max_size,
        expected_wait_max: config.publish.queue_max_wait,
        batch_max_messages: usize::from(config.publish.batch_size),
    }
}

fn log_config(log: &config::LogOptions) -> LogConfig {
    LogConfig {
        name: log.name.clone(),
        slots: log.slots,
        max_age: log.max_age,
        max_bytes: log.max_bytes,
        max_messages: log.max_messages,
        storage: match log.storage {
            config::Storage::File => Storage::File,
            config::Storage::Memory => Storage::Memory,
        },
        replicas: log.replicas,
        duplicate_window: log.duplicate_window,
    }
}

fn edge_settings(config: &Config) -> EdgeSettings {
    let client = &config.client;
    let namespaces: HashMap<String, Namespace> = config
        .channel
        .namespaces
        .iter()
        .map(|(name, options)| (name.clone(), namespace(options)))
        .collect();
    let bounds = Bounds::default();
    EdgeSettings {
        client: ClientSettings {
            allowed_origins: client.allowed_origins.clone(),
            insecure: client.insecure,
            allow_anonymous_connect_without_token: client.allow_anonymous_connect_without_token,
            disallow_anonymous_connection_tokens: client.disallow_anonymous_connection_tokens,
            channel_limit: client.channel_limit as usize,
            connection_limit: client.connection_limit as usize,
            connection_rate_limit_per_s: client.connection_rate_limit,
            user_connection_limit: client.user_connection_limit as usize,
            queue_max_size_bytes: client.queue_max_size,
            message_size_limit_bytes: config.websocket.message_size_limit,
            ping_interval: client.ping_interval,
            pong_timeout: client.pong_timeout,
            stale_close_delay: client.stale_close_delay,
            expired_close_delay: client.expired_close_delay,
            history_max_publication_limit: client.history_max_publication_limit,
            recovery_max_publication_limit: client.recovery_max_publication_limit,
            command_rate: Rate {
                per_s: client.command_rate_limit,
                burst: client.command_burst,
            },
        },
        without_namespace: Some(namespace(&config.channel.without_namespace)),
        namespaces,
        rpc_timeout: config.rpc.timeout,
        door: DoorSettings {
            message_size_limit_bytes: config.door.message_size_limit,
            rate: Rate {
                per_s: config.door.rate_limit,
                burst: config.door.burst,
            },
            users_max: config.door.users_limit as usize,
            in_flight_max: config.door.in_flight_limit as usize,
            operators: vec!["ops".to_owned()],
        },
        shutdown_spread: config.shutdown.spread,
        bounds: Bounds {
            rooms_max: config.room.limit as usize,
            ring: RingLimits {
                ring_max_messages: config.room.ring_size as usize,
                ring_max_bytes: config.room.ring_max_size,
            },
            room_idle: config.room.idle_timeout,
            sweep_interval: config.room.sweep_interval,
            slow_commands_max: config.rpc.in_flight_limit as usize,
            reply_max_bytes: u32::try_from(config.history.page_max_size).unwrap_or(u32::MAX),
            pushes_max_bytes: OutboxLimits::PUSHES_MAX_BYTES.min(client.queue_max_size),
            ..bounds
        },
    }
}

fn namespace(options: &config::Namespace) -> Namespace {
    Namespace {
        rules: NamespaceRules {
            allow_subscribe_for_client: options.allow_subscribe_for_client,
            allow_subscribe_for_anonymous: options.allow_subscribe_for_anonymous,
            allow_publish_for_subscriber: options.allow_publish_for_subscriber,
            allow_publish_for_client: options.allow_publish_for_client,
            allow_publish_for_anonymous: options.allow_publish_for_anonymous,
            allow_history_for_subscriber: options.allow_history_for_subscriber,
            allow_history_for_client: options.allow_history_for_client,
            allow_history_for_anonymous: options.allow_history_for_anonymous,
            allow_user_limited_channels: options.allow_user_limited_channels,
            // Nobody can ask: presence is not in this version.
            ..NamespaceRules::default()
        },
        log: options.log.clone(),
        stored: options.history_size != 0,
        window: Window {
            size: u64::try_from(options.history_size).ok(),
            // What the archive lets go is outside, whatever a stream still has.
            ttl: [options.history_ttl, options.archive_ttl]
                .into_iter()
                .filter(|ttl| !ttl.is_zero())
                .min(),
        },
        force_recovery: options.force_recovery,
        allow_recovery: options.allow_recovery,
        force_positioning: options.force_positioning,
        allow_positioning: options.allow_positioning,
        data_format: match options.publication_data_format {
            config::DataFormat::Json => DataFormat::Json,
            config::DataFormat::JsonObject => DataFormat::JsonObject,
            config::DataFormat::Binary => DataFormat::Binary,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn keys_reach_what_they_are_about() {
        let text = r#"
            [client]
            allowed_origins = ["https://*.example.com"]
            disallow_anonymous_connection_tokens = true
            connection_limit = 11
            connection_rate_limit = 12
            user_connection_limit = 13
            command_rate_limit = 14
            command_burst = 15
            [[channel.namespaces]]
            name = "chat"
            history_size = 10000
            history_ttl = "16s"
            archive_ttl = "90d"
            [[channel.namespaces]]
            name = "notes"
            history_size = -1
            archive_ttl = "30m"
            [publish]
            queue_max_size = 1048577
            queue_max_wait = "17ms"
            batch_size = 18
            [history]
            page_max_size = 65537
            [rpc]
            timeout = "19ms"
            in_flight_limit = 20
            [door]
            rate_limit = 21
            burst = 22
            in_flight_limit = 23
            users_limit = 24
            [nats]
            request_timeout = "250ms"
            ping_interval = "26s"
            [shutdown]
            spread = "27s"
        "#;
        let file = Some(("weir.toml".to_owned(), text.to_owned()));
        let sources = Sources {
            file,
            ..Sources::default()
        };
        let config = Config::load(sources).unwrap().config;
        let seconds = Duration::from_secs;

        let settings = edge_settings(&config);
        let client = &settings.client;
        assert_eq!(client.allowed_origins, ["https://*.example.com"]);
        assert!(client.disallow_anonymous_connection_tokens);
        assert_eq!(client.connection_limit, 11);
        assert_eq!(client.connection_rate_limit_per_s, 12);
        assert_eq!(client.user_connection_limit, 13);
        let rate = |per_s, burst| Rate { per_s, burst };
        assert_eq!(client.command_rate, rate(14, 15));
        let chat = settings.namespaces["chat"].window;
        assert_eq!((chat.size, chat.ttl), (Some(10_000), Some(seconds(16))));
        let notes = settings.namespaces["notes"].window;
        assert_eq!((notes.size, notes.ttl), (None, Some(seconds(1_800))));
        let oldest_ms = oldest_ms(&config).unwrap();
        let age_ms = |room: &str| {
            let oldest = oldest_ms(&RoomName::parse(room).unwrap());
            oldest.map(|oldest| now_ms() - oldest)
        };
        assert!(age_ms("notes:a").is_some_and(|age| (1_800_000..1_805_000).contains(&age)));
        assert!(age_ms("chat:a").is_some_and(|age| age >= 90 * 86_400_000));
        assert_eq!(age_ms("a"), None);
        assert_eq!(settings.bounds.reply_max_bytes, 65_537);
        assert_eq!(settings.rpc_timeout, Duration::from_millis(19));
        assert_eq!(settings.bounds.slow_commands_max, 20);
        assert_eq!(settings.door.rate, rate(21, 22));
        assert_eq!(settings.door.in_flight_max, 23);
        assert_eq!(settings.door.users_max, 24);
        assert_eq!(settings.shutdown_spread, seconds(27));

        let limits = PublishLimits {
            queue_max_bytes: 1_048_577,
            expected_wait_max: Duration::from_millis(17),
            batch_max_messages: 18,
        };
        assert_eq!(publish_limits(&config), limits);
        let times = LinkTimes {
            ping_interval: seconds(26),
            request_timeout: Duration::from_millis(250),
        };
        assert_eq!(connect_config(&config).times, times);
    }

    #[test]
    fn defaults_are_those_of_the_parts() {
        let config = Config::default();
        assert_eq!(publish_limits(&config), PublishLimits::default());
        assert_eq!(connect_config(&config).times, LinkTimes::default());
    }
}
