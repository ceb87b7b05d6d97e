//! Knows: the nats-server of `weir up`: start it, wait until it answers, start it again when it dies, take over one that a
//! killed Weir left behind, stop it last. It runs in its own process group, so that Ctrl-C reaches only us.
//! Never: streams, rooms, or a server that is not ours.

mod find;
mod info;
mod leftover;
mod passwords;

use std::fs::{DirBuilder, File};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use find::{MIN_VERSION, NotFound, Program, Version, find};
pub use info::{Answer, Info, reachable, who_answers};
pub use passwords::Passwords;
use weir_nats::callout::CalloutKeys;

use crate::config;

/// The configuration, as shipped.
const CONF: &str = include_str!("../../deploy/nats.conf");

/// How long a stopping server may take before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// A big store takes its time to be read; a server that lives is waited for this long.
const READY_PATIENCE: Duration = Duration::from_secs(600);
const READY_POLL: Duration = Duration::from_millis(25);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A server that lived this long died of something new: the back-off begins again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// Of a log that explains a failed start.
const LOG_TAIL_LINES: usize = 5;
const LOG_TAIL_BYTES: usize = 65_536;

/// Why there is no nats-server.
#[derive(Debug, thiserror::Error)]
pub enum NatsServerError {
    /// No program.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// A stranger has the port.
    #[error(
        "port {port} ({use_}) is taken by {who}; stop it, or use another port: --set {key}=PORT{hint}",
        port = address.port()
    )]
    Stranger {
        /// The address.
        address: SocketAddr,
        /// NATS or MQTT.
        use_: &'static str,
        /// Who answered.
        who: String,
        /// The key of the port.
        key: &'static str,
        /// What else to do.
        hint: &'static str,
    },
    /// An earlier one does not end.
    #[error(
        "the nats-server that an earlier Weir left behind (process {0}) does not end; end it by hand"
    )]
    Immortal(i32),
    /// It ended before it was ready.
    #[error("nats-server ended before it was ready ({status}):{log}")]
    Died {
        /// Its exit status.
        status: String,
        /// The end of its log, each line on a line of its own.
        log: String,
    },
    /// It lives and does not answer.
    #[error("nats-server did not answer on {address} within {patience:?}:{log}")]
    Silent {
        /// The address.
        address: SocketAddr,
        /// How long we waited.
        patience: Duration,
        /// The end of its log.
        log: String,
    },
    /// The data folder.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Where the files of our nats-server are.
#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// In this data folder.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self {
            folder: data_dir.join("nats-server"),
        }
    }

    /// The passwords.
    #[must_use]
    pub fn passwords(&self) -> PathBuf {
        self.folder.join("passwords.json")
    }

    fn conf(&self) -> PathBuf {
        self.folder.join("nats.conf")
    }

    fn pid(&self) -> PathBuf {
        self.folder.join("nats-server.pid")
    }

    /// The log that it writes itself; lines of a killed Weir's server must not end in a broken pipe.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("nats-server.log")
    }

    /// What it says before it has a log.
    fn output(&self) -> PathBuf {
        self.folder.join("nats-server.out")
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }
}

/// A nats-server that runs, and is kept running until [`NatsServer::stop`].
#[derive(Debug)]
pub struct NatsServer {
    address: SocketAddr,
    mqtt_address: SocketAddr,
    passwords: Passwords,
    version: Version,
    restarts: Arc<AtomicU64>,
    stopping: CancellationToken,
    keeper: JoinHandle<()>,
}

impl NatsServer {
    /// Starts it in `data_dir` (absolute) and waits until it answers.
    ///
    /// # Errors
    /// No program, a port that is taken, or a server that does not come up.
    pub async fn start(
        config: &config::NatsServer,
        data_dir: &Path,
    ) -> Result<Self, NatsServerError> {
        let program = find(&config.path)?;
        let files = Files::new(data_dir);
        let failed = |path: PathBuf| move |source| NatsServerError::Io { path, source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&files.folder)
            .map_err(failed(files.folder.clone()))?;
        let passwords = Passwords::load_or_make(&files.passwords(), config.demo_users)
            .map_err(failed(files.passwords()))?;
        if let Some(pid) = leftover::find(&files.pid(), &files.conf()) {
            // Stopped and started again rather than adopted: so it runs today's version, ports and permissions.
            tracing::info!(
                pid = pid.as_raw_nonzero(),
                "taking over the nats-server that an earlier weir left behind"
            );
            if !leftover::stop(pid, STOP_PATIENCE).await {
                return Err(NatsServerError::Immortal(pid.as_raw_nonzero().get()));
            }
        }
        let keys = CalloutKeys::from_seeds(
            passwords.auth_issuer_seed.expose(),
            passwords.auth_xkey_seed.expose(),
        );
        let keys = keys
            .map_err(std::io::Error::other)
            .map_err(failed(files.passwords()))?;
        let launch = Launch {
            issuer: keys.issuer(),
            xkey: keys.xkey(),
            program: program.path,
            address: (config.address, config.port).into(),
            mqtt_address: (config.address, config.mqtt_port).into(),
            passwords,
            files,
        };
        launch.refuse_strangers().await?;
        std::fs::write(launch.files.conf(), CONF).map_err(failed(launch.files.conf()))?;
        let mut child = launch.spawn()?;
        if let Err(error) = launch.wait_ready(&mut child).await {
            end(&mut child).await;
            return Err(error);
        }
        tracing::info!(version = %program.version, address = %launch.address, "nats-server is ready");
        let restarts = Arc::new(AtomicU64::new(0));
        let stopping = CancellationToken::new();
        Ok(Self {
            address: launch.address,
            mqtt_address: launch.mqtt_address,
            passwords: launch.passwords.clone(),
            version: program.version,
            restarts: Arc::clone(&restarts),
            stopping: stopping.clone(),
            keeper: tokio::spawn(keep(launch, child, stopping, restarts)),
        })
    }

    /// Its users.
    #[must_use]
    pub const fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// Its version.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Where clients on this machine reach it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", reachable(self.address))
    }

    /// Where MQTT devices on this machine reach it.
    #[must_use]
    pub fn mqtt_address(&self) -> SocketAddr {
        reachable(self.mqtt_address)
    }

    /// How often it was started again, shared with the metrics.
    #[must_use]
    pub fn restarts(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.restarts)
    }

    /// Stops it, and waits until it ended.
    pub async fn stop(self) {
        self.stopping.cancel();
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "the task that keeps nats-server failed");
        }
    }
}

/// All that a start needs, so that it can be done again.
struct Launch {
    program: PathBuf,
    address: SocketAddr,
    mqtt_address: SocketAddr,
    passwords: Passwords,
    /// The public keys of the callout.
    issuer: String,
    xkey: String,
    files: Files,
}

impl Launch {
    async fn refuse_strangers(&self) -> Result<(), NatsServerError> {
        let stranger = |address, use_, who, key, hint| {
            Err(NatsServerError::Stranger {
                address,
                use_,
                who,
                key,
                hint,
            })
        };
        let use_it = ", or use it: weir serve";
        match who_answers(self.address).await {
            Answer::Nobody => {}
            Answer::Nats(info) if info.server_name == self.passwords.server_name => {
                let who = format!(
                    "the nats-server of this data folder ({}), whose process id is not in {}",
                    info.server_name,
                    self.files.pid().display()
                );
                return stranger(self.address, "NATS", who, "nats_server.port", "");
            }
            Answer::Nats(info) => {
                let name: String = info
                    .server_name
                    .chars()
                    .flat_map(char::escape_debug)
                    .collect();
                let who = format!("another nats-server, {name:?}, version {:?}", info.version);
                return stranger(self.address, "NATS", who, "nats_server.port", use_it);
            }
            Answer::Other(said) => {
                let who = not_nats(&said);
                return stranger(self.address, "NATS", who, "nats_server.port", "");
            }
        }
        match who_answers(self.mqtt_address).await {
            Answer::Nobody => Ok(()),
            Answer::Nats(info) => {
                let who = format!("a nats-server, {:?}", info.server_name);
                stranger(self.mqtt_address, "MQTT", who, "nats_server.mqtt_port", "")
            }
            Answer::Other(said) => {
                let who = not_nats(&said);
                stranger(self.mqtt_address, "MQTT", who, "nats_server.mqtt_port", "")
            }
        }
    }

    fn spawn(&self) -> Result<Child, NatsServerError> {
        let output = self.files.output();
        let failed = |path: PathBuf| move |source| NatsServerError::Io { path, source };
        let file = File::create(&output).map_err(failed(output.clone()))?;
        let second = file.try_clone().map_err(failed(output))?;
        let mut command = Command::new(&self.program);
        command
            .arg("-c")
            .arg(self.files.conf())
            .stdin(Stdio::null())
            .stdout(Stdio::from(file))
            .stderr(Stdio::from(second))
            .process_group(0)
            // A start that is given up leaves nothing behind. After kill -9 it lives on, and is taken over.
            .kill_on_drop(true)
            .env_clear();
        // Weir's own secrets are none of its business; Go's tuning is.
        for (name, value) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("GO") || ["PATH", "HOME", "TMPDIR", "TZ"].contains(&&*text) {
                command.env(name, value);
            }
        }
        for (name, value) in self.variables() {
            command.env(format!("WEIR_CONF_{name}"), value);
        }
        command.spawn().map_err(failed(self.program.clone()))
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        // nats-server reads a variable as configuration, so texts carry their quotes.
        let quoted =
            |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let path = |path: PathBuf| quoted(&path.to_string_lossy());
        let secret = |secret: &config::Secret| quoted(secret.expose());
        let (files, users) = (&self.files, &self.passwords);
        vec![
            ("SERVER_NAME", quoted(&users.server_name)),
            ("HOST", quoted(&self.address.ip().to_string())),
            ("PORT", self.address.port().to_string()),
            ("MQTT_PORT", self.mqtt_address.port().to_string()),
            ("PID_FILE", path(files.pid())),
            ("LOG_FILE", path(files.log())),
            ("STORE_DIR", path(files.store())),
            ("WEIR_PASSWORD", secret(&users.weir)),
            ("WEIR_READ_PASSWORD", secret(&users.weir_read)),
            ("WEIR_DOOR_PASSWORD", secret(&users.weir_door)),
            ("SYS_PASSWORD", secret(&users.sys)),
            ("OPS_PASSWORD", secret(&users.ops)),
            ("BOT_PASSWORD", secret(&users.bot)),
            ("DEV1_PASSWORD", secret(&users.dev1)),
            ("BACKEND_PASSWORD", secret(&users.backend)),
            ("WEIR_AUTH_PASSWORD", secret(&users.weir_auth)),
            ("WEIR_KICK_PASSWORD", secret(&users.weir_kick)),
            ("AUTH_ISSUER", quoted(&self.issuer)),
            ("AUTH_XKEY", quoted(&self.xkey)),
        ]
    }

    async fn wait_ready(&self, child: &mut Child) -> Result<(), NatsServerError> {
        let deadline = Instant::now() + READY_PATIENCE;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(NatsServerError::Died {
                    status: status.to_string(),
                    log: self.log_tail(),
                });
            }
            if let Answer::Nats(info) = who_answers(self.address).await
                && info.server_name == self.passwords.server_name
                && info.jetstream
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(NatsServerError::Silent {
                    address: self.address,
                    patience: READY_PATIENCE,
                    log: self.log_tail(),
                });
            }
            sleep(READY_POLL).await;
        }
    }

    /// The last lines that name a failure, from both places that it writes to.
    fn log_tail(&self) -> String {
        let mut lines = Vec::new();
        for path in [self.files.output(), self.files.log()] {
            let bytes = std::fs::read(path).unwrap_or_default();
            let tail = bytes
                .get(bytes.len().saturating_sub(LOG_TAIL_BYTES)..)
                .unwrap_or_default();
            for line in String::from_utf8_lossy(tail).lines() {
                if ["[FTL]", "[ERR]", "nats-server:", "panic"]
                    .iter()
                    .any(|mark| line.contains(mark))
                {
                    lines.push(
                        line.chars()
                            .flat_map(char::escape_debug)
                            .collect::<String>(),
                    );
                }
            }
        }
        let skipped = lines.len().saturating_sub(LOG_TAIL_LINES);
        lines
            .iter()
            .skip(skipped)
            .map(|line| format!("\n  {line}"))
            .collect()
    }
}

fn not_nats(said: &str) -> String {
    if said.is_empty() {
        "something that is not nats-server".to_owned()
    } else {
        format!("something that is not nats-server and says \"{said}\"")
    }
}

/// Starts it again when it dies, until told to stop.
async fn keep(
    launch: Launch,
    mut child: Child,
    stopping: CancellationToken,
    restarts: Arc<AtomicU64>,
) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = Instant::now();
        let status = tokio::select! {
            () = stopping.cancelled() => return end(&mut child).await,
            status = child.wait() => status,
        };
        tracing::error!(
            status = status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            log = launch.log_tail(),
            "nats-server died, starting it again"
        );
        if started.elapsed() > HEALTHY_AFTER {
            backoff = BACKOFF_MIN;
        }
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
            restarts.fetch_add(1, Ordering::Relaxed);
            match launch.spawn() {
                Ok(again) => {
                    child = again;
                    break;
                }
                Err(error) => tracing::error!(%error, "nats-server cannot be started"),
            }
        }
        let ready = tokio::select! {
            () = stopping.cancelled() => return end(&mut child).await,
            ready = launch.wait_ready(&mut child) => ready,
        };
        match ready {
            Ok(()) => tracing::info!("nats-server is ready again"),
            Err(error) => {
                tracing::error!(%error, "nats-server did not come up");
                end(&mut child).await;
            }
        }
    }
}

/// Asks it to end, and kills it if it does not.
async fn end(child: &mut Child) {
    let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else {
        return;
    };
    if let Err(error) = kill_process(pid, Signal::TERM) {
        tracing::debug!(%error, "nats-server had ended");
    }
    match timeout(STOP_PATIENCE, child.wait()).await {
        Ok(Ok(status)) => tracing::info!(%status, "nats-server stopped"),
        Ok(Err(error)) => tracing::error!(%error, "nats-server cannot be waited for"),
        Err(_) => {
            tracing::warn!(patience = ?STOP_PATIENCE, "nats-server did not end when asked, killing it");
            if let Err(error) = child.kill().await {
                tracing::error!(%error, "nats-server cannot be killed");
            }
        }
    }
}
