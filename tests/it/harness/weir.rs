//! Knows: the built `weir` as a process: its config, ports, log, figures, death. Never: its code.

use std::fmt::Write as _;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::archive::ArchiveAt;
use super::nats::{nats_server, signal};
use super::{free_port, until};

/// The key that signs the tokens of all tests.
const TOKEN_KEY: &str = "a key that signs the tokens of the tests only";

/// What a test changes of the configuration.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) nats_url: String,
    /// Of Weir's user `weir`.
    pub(crate) password: String,
    /// What the passwords of its other users have after the name.
    pub(crate) suffix: String,
    /// More lines under `[client]`.
    pub(crate) client: String,
    /// The lines under `[client.token]`.
    pub(crate) token: String,
    /// More lines of the log `rooms`.
    pub(crate) log: String,
    /// Where rooms are kept, and more lines under `[archive]`.
    pub(crate) archive: ArchiveAt,
    pub(crate) archive_more: String,
    /// More tables.
    pub(crate) more: String,
    /// More lines of `[http_server]`, and of `[nats]`.
    pub(crate) http_server: String,
    pub(crate) nats: String,
    /// A folder for files with the passwords; else they are in the configuration.
    pub(crate) passwords_in: Option<PathBuf>,
    /// Flags `--set KEY=VALUE`, which win over the file.
    pub(crate) sets: Vec<String>,
    pub(crate) port: u16,
    pub(crate) internal_port: u16,
}

impl Config {
    /// Everything open to everyone in `chat`, kept for ever.
    pub(crate) fn new(nats_url: &str) -> Self {
        Self {
            nats_url: nats_url.to_owned(),
            password: "weir".to_owned(),
            suffix: String::new(),
            client: String::new(),
            token: format!("hmac_secret_key = \"{TOKEN_KEY}\""),
            log: String::new(),
            archive: ArchiveAt::chosen(),
            archive_more: String::new(),
            more: String::new(),
            http_server: String::new(),
            nats: String::new(),
            passwords_in: None,
            sets: Vec::new(),
            port: free_port(),
            internal_port: free_port(),
        }
    }

    /// The line that gives a user's password.
    fn password_of(&self, user: &str, password: &str) -> String {
        let Some(folder) = &self.passwords_in else {
            return format!("password = {password:?}");
        };
        let path = folder.join(format!("{user}.password"));
        std::fs::write(&path, format!("{password}\n")).unwrap();
        format!("password_file = {path:?}")
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let Self {
            nats_url,
            password,
            suffix,
            client,
            token,
            log,
            archive,
            archive_more,
            more,
            http_server,
            nats,
            passwords_in: _,
            sets: _,
            port,
            internal_port,
        } = self;
        write!(
            text,
            r#"
[http_server]
address = "127.0.0.1"
port = {port}
internal_address = "127.0.0.1"
internal_port = {internal_port}
{http_server}

[nats]
url = "{nats_url}"
{nats}

[nats.live]
user = "weir"
{live}

[nats.reads]
user = "weir_read"
{reads}

[nats.door]
user = "weir_door"
{door}

[client]
allow_anonymous_connect_without_token = true
{client}

[client.token]
{token}

[[channel.namespaces]]
name = "chat"
history_size = -1
history_ttl = "0s"
force_recovery = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true

[[channel.namespaces]]
name = "closed"
history_size = -1
force_recovery = true

[[channel.namespaces]]
name = "loose"
history_size = 0
allow_subscribe_for_client = true
allow_publish_for_client = true

[[logs]]
name = "rooms"
{log}

[archive]
{archive}{archive_more}
{more}
"#,
            archive = archive.config(),
            live = self.password_of("weir", password),
            reads = self.password_of("weir_read", &format!("weir_read{suffix}")),
            door = self.password_of("weir_door", &format!("weir_door{suffix}")),
        )
        .unwrap();
        text
    }
}

/// A running `weir serve`. Killed and removed on drop.
pub(crate) struct Weir {
    dir: TempDir,
    pub(crate) config: Config,
    child: Option<Child>,
}

impl Weir {
    /// Starts `weir serve` and waits until it is ready.
    pub(crate) async fn start(config: Config) -> Self {
        let mut weir = Self::spawned(config);
        weir.until_ready().await;
        weir
    }

    /// Starts `weir serve` and waits for nothing.
    pub(crate) fn spawned(config: Config) -> Self {
        Self::spawned_in(tempfile::tempdir().unwrap(), config)
    }

    /// The same, on a data folder that the test has prepared.
    pub(crate) fn spawned_in(dir: TempDir, config: Config) -> Self {
        let mut weir = Self {
            dir,
            config,
            child: None,
        };
        weir.spawn();
        weir
    }

    /// Starts it (again) on the same ports and data.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let path = self.dir.path().join("weir.toml");
        std::fs::write(&path, self.config.text()).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        std::fs::create_dir_all(self.data()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("serve")
            .arg("--config")
            .arg(&path)
            .arg("--data")
            .arg(self.data())
            .args(self.config.sets.iter().flat_map(|set| ["--set", set]))
            .env("WEIR_NATS_SERVER", nats_server())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Another command of the same program, on the same configuration and data.
    pub(crate) fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_weir"));
        program.arg(command).args(arguments);
        program
            .arg("--config")
            .arg(self.dir.path().join("weir.toml"));
        program.arg("--data").arg(self.data());
        program
    }

    /// Waits for `/ready`; shows the log if the process ends meanwhile.
    pub(crate) async fn until_ready(&mut self) {
        let start = Instant::now();
        while !self.ready().await {
            if let Some(status) = self.ended() {
                panic!(
                    "weir ended ({status}) before it was ready:\n{}",
                    tail(&self.log())
                );
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "weir is not ready after 60 s: {:?}\n{}",
                self.get("/ready").await,
                tail(&self.log())
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The folder with the archive.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where its rooms are kept.
    pub(crate) fn archive(&self) -> ArchiveAt {
        self.config.archive.in_folder(&self.data())
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("weir.log")
    }

    /// Everything that it logged, over all its lives.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Where browsers connect.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.config.port)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// An orderly stop.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, Signal::TERM);
            child.wait().unwrap();
        }
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .as_mut()
            .and_then(|child| child.try_wait().unwrap())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Resident memory in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    /// True when `/ready` answers 200.
    pub(crate) async fn ready(&self) -> bool {
        matches!(self.get("/ready").await, Some((200, _)))
    }

    /// One page of the internal listener: status and body.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(&format!("127.0.0.1:{}", self.config.internal_port), path).await
    }

    /// The sum of a metric over its labels; `None` if there is none of that name.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await?;
        let values: Vec<f64> = text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with([' ', '{']))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Waits until a metric is as wanted.
    pub(crate) async fn until_metric(
        &self,
        name: &str,
        deadline: Duration,
        wanted: impl Fn(f64) -> bool,
    ) {
        until(&format!("metric {name}"), deadline, async || {
            self.metric(name).await.is_some_and(&wanted)
        })
        .await;
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- weir's log ends:\n{}", tail(&self.log()));
        }
    }
}

/// The last lines of a log.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A connection token of a user.
pub(crate) fn token(user: &str) -> String {
    token_with(user, &serde_json::json!([]))
}

/// The same with rights of its own.
pub(crate) fn token_with(user: &str, caps: &serde_json::Value) -> String {
    let claims = serde_json::json!({ "sub": user, "exp": 4_102_444_800_u64, "caps": caps });
    let key = jsonwebtoken::EncodingKey::from_secret(TOKEN_KEY.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

/// A GET without a client library: status and body.
pub(crate) async fn http_get(address: &str, path: &str) -> Option<(u16, String)> {
    let get = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())?;
        Some((status, body))
    };
    tokio::time::timeout(Duration::from_secs(5), get)
        .await
        .ok()
        .flatten()
}
