//! Knows: the order of a process's life: data folder, listeners, nats-server, roles, a signal, drain, nats-server again.
//! Never: a message, a room, a rule; it may contain no `if` about them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::RwLock;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin, Metrics, Probe, sample, write_figure};
use crate::config::{self, Config, Loaded, NatsUser, OPERATOR, Secret};
use crate::data_dir::{DataDir, DataDirError};
use crate::nats_server::{Files, NatsServer, NatsServerError};
use crate::roles::Roles;
use crate::tls::{Certificate, TlsError};

const START_PAUSE_MIN: Duration = Duration::from_millis(250);
const START_PAUSE_MAX: Duration = Duration::from_secs(5);

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
    /// The certificate for clients.
    #[error("http_server.tls: {0}")]
    Tls(#[from] TlsError),
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

/// Roles that run; none before they started and after they stopped.
type Running = Arc<RwLock<Option<Roles>>>;

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
    let ended = CancellationToken::new();
    let (tls, tls_metrics) = clients_tls(&config, &ended)?;
    let server = match mode {
        Mode::Serve => None,
        Mode::Up => tokio::select! {
            server = NatsServer::start(&config.nats_server, data.path()) => Some(server?),
            () = stop.cancelled() => return Ok(()),
        },
    };

    if let Some(server) = &server {
        use_own(&mut config, server);
    }
    let running = Running::default();
    let draining = CancellationToken::new();
    let mut metrics = vec![role_metrics(Arc::clone(&running))];
    metrics.extend(tls_metrics);
    if let Some(server) = &server {
        metrics.push(server_metrics(server));
    }
    let admin = Arc::new(Admin::new(
        probe(Arc::clone(&running)),
        metrics,
        draining.clone(),
    ));
    // The internal listener comes first and goes last, so that start and drain can be watched.
    let watched = tokio::spawn(admin::serve(internal.listener, admin, ended.clone()));

    let started = tokio::select! {
        roles = start_roles(&config) => Some(roles),
        () = stop.cancelled() => None,
    };
    if let Some(roles) = started {
        roles.accept(public.listener, tls, page());
        *running.write().await = Some(roles);
        let banner = banner(&config, server.as_ref(), public.address, internal.address);
        std::io::stdout()
            .lock()
            .write_all(banner.as_bytes())
            .map_err(NodeError::Output)?;
        tracing::info!(public = %public.address, internal = %internal.address, "weir is running");
        stop.cancelled().await;
    }

    tracing::info!(patience = ?config.shutdown.timeout, "stopping");
    draining.cancel();
    let roles = running.write().await.take();
    if let Some(roles) = roles {
        roles.stop(config.shutdown.timeout).await;
    }
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

/// Starts the roles as soon as NATS and the archive are there; until then says every few seconds why not.
async fn start_roles(config: &Config) -> Roles {
    let mut pause = START_PAUSE_MIN;
    loop {
        match Box::pin(Roles::start(config)).await {
            Ok(roles) => return roles,
            Err(error) => tracing::warn!(%error, "cannot start yet, trying again"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(START_PAUSE_MAX);
    }
}

/// `weir up`: our own server, and the users made for it.
fn use_own(config: &mut Config, server: &NatsServer) {
    let user = |user: &str, password: &Secret| NatsUser {
        user: user.to_owned(),
        password: password.clone(),
    };
    let passwords = server.passwords();
    let nats = &mut config.nats;
    nats.url = server.url();
    nats.live = user("weir", &passwords.weir);
    nats.reads = user("weir_read", &passwords.weir_read);
    nats.door = user("weir_door", &passwords.weir_door);
    nats.auth = user("weir_auth", &passwords.weir_auth);
    nats.kick = user("weir_kick", &passwords.weir_kick);
    let callout = &mut config.auth_callout;
    callout.enabled = true;
    callout.issuer_seed = passwords.auth_issuer_seed.clone();
    callout.xkey_seed = passwords.auth_xkey_seed.clone();
    callout.account = config::AuthCallout::default().account;
    if config.client.token.all("").is_empty() {
        // Known in this data folder only, so that `weir token` can make one that is taken.
        config.client.token.own.hmac_secret_key = passwords.token_secret.clone();
    }
}

fn probe(running: Running) -> Probe {
    Box::new(move || {
        let running = Arc::clone(&running);
        Box::pin(async move {
            match &*running.read().await {
                Some(roles) => roles.probe().await,
                None => {
                    Err("not started: NATS or the archive is not there yet; see the log".to_owned())
                }
            }
        })
    })
}

fn role_metrics(running: Running) -> Metrics {
    Box::new(move |text| {
        let Ok(running) = running.try_read() else {
            return; // starting or stopping at this very moment
        };
        for figure in running.iter().flat_map(Roles::figures) {
            write_figure(text, &figure);
        }
    })
}

/// TLS for clients, if they are to be spoken to in it; its certificate is watched until `ended`.
fn clients_tls(
    config: &Config,
    ended: &CancellationToken,
) -> Result<(Option<TlsAcceptor>, Option<Metrics>), NodeError> {
    let tls = &config.http_server.tls;
    if !tls.enabled {
        return Ok((None, None));
    }
    let certificate = Certificate::open(&tls.cert_pem_file, &tls.key_pem_file)?;
    let acceptor = certificate.acceptor()?;
    let metrics = certificate.metrics();
    let hang_up = signal(SignalKind::hangup()).map_err(NodeError::Signals)?;
    tokio::spawn(certificate.watch(hang_up, ended.clone()));
    let write: Metrics = Box::new(move |text| {
        for figure in metrics.figures() {
            write_figure(text, &figure);
        }
    });
    Ok((Some(acceptor), Some(write)))
}

/// The page at `/`: one file, which names the hashes of its own script and style.
const PAGE: &str = include_str!("page.html");

/// What the public listener serves beside sockets.
fn page() -> Router {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The one rule that a page cannot give itself: no other site may frame it.
        (header::CONTENT_SECURITY_POLICY, "frame-ancestors 'none'"),
    ];
    Router::new().route("/", get(async move || (headers, PAGE)))
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
    config: &Config,
    server: Option<&NatsServer>,
    public: SocketAddr,
    internal: SocketAddr,
) -> String {
    let s = if config.http_server.tls.enabled {
        "s"
    } else {
        ""
    };
    let mut text = format!(
        "\nWeir {} is running\n\n  page       http{s}://{public}/\n  WebSocket  ws{s}://{public}/connection/websocket\n  \
         inside     http://{internal}/ready  http://{internal}/metrics\n",
        env!("CARGO_PKG_VERSION")
    );
    let written = match server {
        None => writeln!(text, "  NATS       {}\n", config.nats.url),
        Some(server) => demo_lines(&mut text, config, server),
    };
    debug_assert!(written.is_ok(), "a String takes all");
    text
}

fn demo_lines(text: &mut String, config: &Config, server: &NatsServer) -> std::fmt::Result {
    let host = server.url();
    let host = host.trim_start_matches("nats://");
    let demo = config.nats_server.demo_users;
    let data = config.data_dir.display();
    let shown = |name: &'static str| if demo { name } else { "PASSWORD" };
    // Names of namespaces need no escape in a subject; `_` stands for none.
    let ns = config
        .channel
        .namespaces
        .first()
        .map_or("_", |(name, _)| name);
    writeln!(text, "\nPaste into another terminal:\n")?;
    writeln!(
        text,
        "  export NATS_URL=nats://{OPERATOR}:{}@{host}",
        shown(OPERATOR)
    )?;
    writeln!(text, "  nats sub 'room.>'")?;
    writeln!(
        text,
        "  nats req say.{OPERATOR}.{ns}.lobby '{{\"text\":\"hi\"}}'"
    )?;
    writeln!(
        text,
        "\n  MQTT       mqtt://dev1:{}@{}  publish to say/dev1/{ns}/lobby, subscribe to room/{ns}/lobby",
        shown("dev1"),
        server.mqtt_address()
    )?;
    let token = if config.client.token.own.hmac_secret_key == server.passwords().token_secret {
        // In another terminal Weir may not be on the PATH.
        let program = std::env::current_exe().unwrap_or_else(|_| "weir".into());
        let (program, folder) = (shell_word(&program), shell_word(&config.data_dir));
        format!("$({program} token --user ann --data {folder})")
    } else {
        "TOKEN".to_owned()
    };
    writeln!(
        text,
        "  a token    nats -s nats://{host} --token \"{token}\" --inbox-prefix _INBOX.ann req say.ann.{ns}.lobby \
         '{{\"text\":\"hi\"}}'"
    )?;
    if !demo {
        let path = Files::new(&config.data_dir).passwords();
        writeln!(text, "  passwords  {}", path.display())?;
    }
    writeln!(
        text,
        "  data       {data}\n\nCtrl-C stops Weir, then its nats-server.\n"
    )
}

/// A path as a shell takes it.
fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}
