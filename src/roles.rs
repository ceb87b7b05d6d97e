//! Knows: how the roles of a process are built from the configuration, started in order and let go.
//! Never: messages, listeners, a nats-server of our own.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_edge::connection::Edge;
use weir_edge::door::{NativeDoor, may_be_answered};
use weir_edge::hub::{Hub, HubParts};
use weir_edge::limits::Limits;
use weir_edge::metrics::Metrics;
use weir_edge::seats::Seats;
use weir_edge::writer::Writer;
use weir_edge::{server, sweep};
use weir_history::erase::{Eraser, expire};
use weir_history::service::HistoryService;
use weir_history::{Archive, Reader, Worker, WorkerMetrics};
use weir_nats::connect::Links;
use weir_nats::connections::Connections;
use weir_nats::erasure::watch::{Apply, Identity, Watch};
use weir_nats::figures::Figure;
use weir_nats::guard::Guard;
use weir_nats::publish::{Publisher, PublisherParts};
use weir_nats::replay::Replay;
use weir_nats::stream::{LogConfig, context, declare_bucket, declare_probe};
use weir_nats::{Orders, Placements};

use crate::config::Config;

mod hooks;
mod logins;
mod probe;
mod settings;

use hooks::{history_policy, lookup, saw, suspect};
use logins::Logins;
pub(crate) use settings::{all_rules, static_users};
pub(crate) use settings::{connect_config, nats_tls};
use settings::{edge_settings, kick_credentials, log_config, oldest_ms, publish_limits};

/// Between tries to open an archive that is locked.
const ARCHIVE_RETRY: Duration = Duration::from_secs(1);
/// For requests of the native doors that are in hand when the process stops: a publish is answered within 4 s.
const SERVICES_WITHIN: Duration = Duration::from_secs(5);
/// For the word that this process has ended.
const SAID_WITHIN: Duration = Duration::from_millis(1_500);
/// For a connection to NATS to be closed properly.
const LINK_CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Roles that run.
pub struct Roles {
    /// What sockets use; its router and listener belong to it.
    pub edge: Arc<Edge>,
    /// The worker's counters.
    pub worker: Arc<WorkerMetrics>,
    links: Links,
    guard: Guard,
    tasks: TaskTracker,
    logins: Logins,
    /// As the users beside the three.
    more_links: Vec<async_nats::Client>,
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
        let connections = match kick_credentials(config) {
            Some(user) => Some(Connections::connect(&connect_config(config), &user).await),
            None => None,
        };
        let connections = connections.transpose().map_err(failed)?;
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
        let limits = Arc::new(Limits::new(Arc::clone(&settings), Instant::now()));
        let suspicion = guard.clone();
        let hub = Hub::new(HubParts {
            live: links.live.clone(),
            reader: reader.clone(),
            placements: placements.clone(),
            orders: orders.clone(),
            settings: Arc::clone(&settings),
            metrics: Arc::clone(&metrics),
            limits: Arc::clone(&limits),
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
        let writer = Writer::new(publisher, links.live.clone());
        let door = NativeDoor::new(
            links.door.clone(),
            writer.clone(),
            Arc::clone(&settings),
            Arc::clone(&metrics),
            Arc::clone(&limits),
            tasks.clone(),
        );
        let closing = CancellationToken::new();
        let door = spawn_service("door", door.run(closing.clone()), &tasks);
        let history = HistoryService::new(
            links.door.clone(),
            reader.clone(),
            placements.clone(),
            history_policy(Arc::clone(&settings), Arc::clone(&limits)),
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
        let (verifier, fetchers) = crate::tokens::verifier(config).map_err(failed)?;
        for fetcher in fetchers {
            tasks.spawn(fetcher.run(stop.clone()));
        }
        let mut logins = Logins::start(
            config,
            &verifier,
            connections.as_ref(),
            &tasks,
            &closing,
            &stop,
        )
        .await?;
        let kicks = connections.map(|connections| connections.client().clone());
        let more_links = logins.link.take().into_iter().chain(kicks);
        let services = [door, history].into_iter().chain(logins.service.take());
        let edge = Arc::new(Edge {
            verifier,
            settings,
            metrics,
            hub,
            writer,
            reader,
            placements,
            nats: links.live.clone(),
            seats: Seats::default(),
            limits,
            tasks: tasks.clone(),
            draining: CancellationToken::new(),
        });
        Ok(Self {
            edge,
            worker: worker_metrics,
            links,
            guard,
            tasks,
            services: services.collect(),
            logins,
            more_links: more_links.collect(),
            erasure,
            orders,
            closing,
            stop,
        })
    }

    /// Accepts sockets on `listener`, under TLS if there is one, with `page` beside the WebSocket endpoint.
    pub fn accept(&self, listener: TcpListener, tls: Option<TlsAcceptor>, page: axum::Router) {
        let router = page.merge(server::router(Arc::clone(&self.edge)));
        let edge = Arc::clone(&self.edge);
        let stop = self.closing.clone();
        self.tasks
            .spawn(server::serve(listener, tls, router, edge, stop));
    }

    /// Every figure.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures = self.edge.metrics.figures();
        figures.push(self.edge.writer.figure());
        figures.push(self.edge.limits.figure());
        figures.push(self.orders.figure());
        figures.extend(self.logins.figures());
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
        if timeout_at(deadline, self.edge.writer.settled())
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
        let links = [live, reads, door].into_iter().chain(&self.more_links);
        join_all(links.map(close)).await;
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
