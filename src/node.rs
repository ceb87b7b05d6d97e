//! Knows: the order of a process's life: data folder, listeners, nats-server, roles, a signal, drain, nats-server again.
//! Never: a message, a room, a rule; it may contain no `if` about them.

use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Admin, Metrics, Probe, sample};
use crate::config::{Config, Loaded, NatsUser, Secret};
use crate::data_dir::{DataDir, DataDirError};
use crate::nats_server::{Answer, NatsServer, NatsServerError, who_answers};

/// Which NATS a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One of its own (`weir up`).
    Up,
    /// The configured one (`weir serve`).
    Serve,
}

/// Why a process did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data folder.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A port.
    #[error("{address} ({use_}) cannot be bound: {source}; use another: --set {key}=PORT")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Who it is for.
        use_: &'static str,
        /// The key of its port.
        key: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Our nats-server.
    #[error(transparent)]
    NatsServer(#[from] NatsServerError),
    /// Signals cannot be heard.
    #[error("signals cannot be heard: {0}")]
    Signals(std::io::Error),
    /// Standard output.
    #[error("standard output cannot be written: {0}")]
    Output(std::io::Error),
    /// A second signal cut the drain short.
    #[error("stopped at once by a second signal")]
    Interrupted,
}

/// Where NATS is, and as whom Weir's three connections log in.
#[derive(Debug, Clone)]
pub struct NatsAccess {
    /// Servers, separated by commas.
    pub url: String,
    /// Live and publishing.
    pub live: NatsUser,
    /// Direct Get.
    pub reads: NatsUser,
    /// Answers to requests.
    pub door: NatsUser,
}

impl NatsAccess {
    fn new(config: &Config, own: Option<&NatsServer>) -> Self {
        let nats = &config.nats;
        let Some(server) = own else {
            return Self {
                url: nats.url.clone(),
                live: nats.live.clone(),
                reads: nats.reads.clone(),
                door: nats.door.clone(),
            };
        };
        let user = |user: &str, password: &Secret| NatsUser {
            user: user.to_owned(),
            password: password.clone(),
        };
        let passwords = server.passwords();
        Self {
            url: server.url(),
            live: user("weir", &passwords.weir),
            reads: user("weir_read", &passwords.weir_read),
            door: user("weir_door", &passwords.weir_door),
        }
    }
}

/// What roles need to start.
pub struct Setup {
    /// The configuration; `data_dir` is absolute.
    pub config: Config,
    /// The NATS to use.
    pub nats: NatsAccess,
    /// Tasks that the end waits for.
    pub tasks: TaskTracker,
    /// Cancelled when the process stops: refuse what is new, send clients away, finish what was begun.
    pub draining: CancellationToken,
}

/// Roles that run.
pub struct Roles {
    /// Everything on the public listener.
    pub public: Router,
    /// What `/ready` asks.
    pub probe: Probe,
    /// What `/metrics` shows.
    pub metrics: Vec<Metrics>,
    /// Done when the roles have drained; begun after `draining` is cancelled.
    pub drained: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Starts the roles. Called when nats-server answers (`weir up`), or at once (`weir serve`): NATS may be absent, and may
/// come later.
fn start_roles(setup: &Setup) -> Roles {
    let url = setup.nats.url.clone();
    Roles {
        public: Router::new().fallback(async || (StatusCode::NOT_FOUND, "nothing here\n")),
        probe: Box::new(move || {
            let url = url.clone();
            Box::pin(async move { nats_answers(&url).await })
        }),
        metrics: Vec::new(),
        drained: Box::pin(async {}),
    }
}

async fn nats_answers(url: &str) -> Result<(), String> {
    let mut why = "nats.url names no server".to_owned();
    for one in url.split(',') {
        let host = one.trim().rsplit_once("://").map_or(one, |(_, host)| host);
        let host = if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:4222")
        };
        match tokio::net::lookup_host(&host).await {
            Ok(addresses) => {
                for address in addresses {
                    if matches!(who_answers(address).await, Answer::Nats(_)) {
                        return Ok(());
                    }
                }
                why = format!("NATS does not answer at {host}");
            }
            Err(error) => why = format!("{host}: {error}"),
        }
    }
    Err(why)
}

/// Runs until a signal.
///
/// # Errors
/// It cannot start, or was cut short.
pub async fn run(loaded: Loaded, mode: Mode) -> Result<(), NodeError> {
    let (first, second) = listen_for_signals()?;
    tokio::select! {
        result = live(loaded, mode, first) => result,
        () = second.cancelled() => Err(NodeError::Interrupted),
    }
}

async fn live(loaded: Loaded, mode: Mode, stop: CancellationToken) -> Result<(), NodeError> {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let mut config = loaded.config;
    let data = DataDir::open(&config.data_dir)?;
    config.data_dir = data.path().to_owned();
    let http = &config.http_server;
    let public = bind(http.public(), "clients", "http_server.port").await?;
    let internal = bind(http.internal(), "operators", "http_server.internal_port").await?;
    let server = match mode {
        Mode::Serve => None,
        Mode::Up => tokio::select! {
            server = NatsServer::start(&config.nats_server, data.path()) => Some(server?),
            () = stop.cancelled() => return Ok(()),
        },
    };

    let nats = NatsAccess::new(&config, server.as_ref());
    let setup = Setup {
        config,
        nats,
        tasks: TaskTracker::new(),
        draining: CancellationToken::new(),
    };
    let Roles {
        public: router,
        probe,
        mut metrics,
        drained,
    } = start_roles(&setup);
    if let Some(server) = &server {
        metrics.push(server_metrics(server));
    }
    let admin = Arc::new(Admin::new(probe, metrics, setup.draining.clone()));
    // The internal listener outlives the drain, so that it can be watched.
    let ended = CancellationToken::new();
    let watched = tokio::spawn(admin::serve(internal.listener, admin, ended.clone()));
    let draining = setup.draining.clone();
    setup.tasks.spawn(async move {
        let serve =
            axum::serve(public.listener, router).with_graceful_shutdown(draining.cancelled_owned());
        if let Err(error) = serve.await {
            tracing::error!(%error, "the public listener failed");
        }
    });

    let banner = banner(&setup, server.as_ref(), public.address, internal.address);
    std::io::stdout()
        .lock()
        .write_all(banner.as_bytes())
        .map_err(NodeError::Output)?;
    tracing::info!(public = %public.address, internal = %internal.address, "weir is running");

    stop.cancelled().await;
    drain(&setup, drained).await;
    ended.cancel();
    match timeout(Duration::from_secs(1), watched).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::error!(%error, "the internal listener failed"),
        Ok(Err(error)) => tracing::error!(%error, "the internal listener's task failed"),
        Err(_) => tracing::debug!("someone still reads from the internal listener"),
    }
    if let Some(server) = server {
        server.stop().await;
    }
    tracing::info!("weir stopped");
    Ok(())
}

async fn drain(setup: &Setup, drained: Pin<Box<dyn Future<Output = ()> + Send>>) {
    let patience = setup.config.shutdown.timeout;
    tracing::info!(?patience, "stopping");
    setup.draining.cancel();
    setup.tasks.close();
    let all = async {
        drained.await;
        setup.tasks.wait().await;
    };
    if timeout(patience, all).await.is_err() {
        let left = setup.tasks.len();
        tracing::warn!(
            tasks = left,
            "not everything ended in time, cutting it short"
        );
    }
}

struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

async fn bind(
    address: SocketAddr,
    use_: &'static str,
    key: &'static str,
) -> Result<Bound, NodeError> {
    let failed = |source| NodeError::Bind {
        address,
        use_,
        key,
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Bound { listener, address })
}

/// The first SIGINT or SIGTERM cancels the first token, the next one the second.
fn listen_for_signals() -> Result<(CancellationToken, CancellationToken), NodeError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(NodeError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(NodeError::Signals)?;
    let tokens = (CancellationToken::new(), CancellationToken::new());
    let (first, second) = tokens.clone();
    tokio::spawn(async move {
        for token in [first, second] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(tokens)
}

fn server_metrics(server: &NatsServer) -> Metrics {
    let restarts = server.restarts();
    Box::new(move |text| {
        let name = "weir_nats_server_restarts_total";
        sample(
            text,
            name,
            "counter",
            "Times that weir up started its nats-server again.",
        );
        text.push_str(&format!("{name} {}\n", restarts.load(Ordering::Relaxed)));
    })
}

/// What a person who started us wants to know, with three lines to paste.
fn banner(
    setup: &Setup,
    server: Option<&NatsServer>,
    public: SocketAddr,
    internal: SocketAddr,
) -> String {
    let mut text = format!(
        "\nWeir {} is running\n\n  page       http://{public}/\n  WebSocket  ws://{public}/connection/websocket\n  \
         inside     http://{internal}/ready  http://{internal}/metrics\n",
        env!("CARGO_PKG_VERSION")
    );
    let written = match server {
        None => writeln!(text, "  NATS       {}\n", setup.nats.url),
        Some(server) => demo_lines(&mut text, setup, server),
    };
    debug_assert!(written.is_ok(), "a String takes all");
    text
}

fn demo_lines(text: &mut String, setup: &Setup, server: &NatsServer) -> std::fmt::Result {
    let host = server.url();
    let host = host.trim_start_matches("nats://");
    let demo = setup.config.nats_server.demo_users;
    let data = setup.config.data_dir.display();
    let shown = |name: &'static str| if demo { name } else { "PASSWORD" };
    writeln!(text, "\nPaste into another terminal:\n")?;
    writeln!(text, "  export NATS_URL=nats://ops:{}@{host}", shown("ops"))?;
    writeln!(text, "  nats sub 'room.>'")?;
    writeln!(text, "  nats req say.ops.chat.lobby '{{\"text\":\"hi\"}}'")?;
    writeln!(
        text,
        "\n  MQTT       mqtt://dev1:{}@{}  publish to say/dev1/chat/lobby, subscribe to room/chat/lobby",
        shown("dev1"),
        server.mqtt_address()
    )?;
    if !demo {
        let path: PathBuf = crate::nats_server::Files::new(&setup.config.data_dir).passwords();
        writeln!(text, "  passwords  {}", path.display())?;
    }
    writeln!(
        text,
        "  data       {data}\n\nCtrl-C stops Weir, then its nats-server.\n"
    )
}
