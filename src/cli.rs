//! Knows: commands and flags, and which exit code each end has: 0, 1 (it failed), 64 (the configuration is wrong).
//! Never: does the work itself.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::archive_cli::{self, ArchiveCommand};
use crate::auth_cli::{AuthCommand, with_own_secret};
use crate::config::{Config, ConfigFile, Loaded, Sources, parse_duration};
use crate::control_cli::{DisconnectArgs, RevokeArgs, UnsubscribeArgs};
use crate::node::{self, Mode};
use crate::roles::host_name;
use crate::tokens::{self, Wish};
use crate::{check, telemetry};
use clap::{Args, Parser, Subcommand};

/// The configuration is wrong (EX_USAGE of sysexits).
const EXIT_CONFIG: u8 = 64;

/// The edge messaging layer on NATS.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start nats-server and Weir; without --config, the demo: rooms chat:…, open to this machine
    Up(Common),
    /// Start Weir on the NATS that the configuration names
    Serve(Common),
    /// Say what is wrong with a configuration, and with the NATS that it names
    Check(Common),
    /// Make a token for trying things out
    Token {
        #[command(flatten)]
        common: Common,
        /// The user's id
        #[arg(long)]
        user: String,
        /// How long it is valid
        #[arg(long, default_value = "1h", value_parser = duration)]
        ttl: Duration,
        /// A room: makes a subscription token for it instead of a connection token
        #[arg(long)]
        channel: Option<String>,
        /// How it is signed: HS256 to HS512, RS256 to RS512, PS256 to PS512, ES256, ES384 or EdDSA
        #[arg(long, default_value = "HS256")]
        algorithm: String,
        /// A file with the private key (PEM, PKCS#8), or with the secret, if not the configuration's
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// The key's id in the issuer's set
        #[arg(long)]
        kid: Option<String>,
        /// Which issuer of client.token.issuers, by name
        #[arg(long)]
        issuer: Option<String>,
        /// Rights of its own, as JSON: [{"channels":["chat:a"],"allow":["sub","pub"]}]
        #[arg(long, value_name = "JSON")]
        caps: Option<String>,
    },
    /// Say what tokens may do, and the keys of the auth callout
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Declare tokens invalid: a user's, one, or all of before a time
    Revoke(RevokeArgs),
    /// End connections of a user, of a room, or one
    Disconnect(DisconnectArgs),
    /// End subscriptions of a user, of a room, or of one connection
    Unsubscribe(UnsubscribeArgs),
    /// Look at the archive, move it, compare it with the log; Weir may run meanwhile
    #[command(subcommand)]
    Archive(ArchiveCommand),
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Common {
    /// The configuration file
    #[arg(long, env = "WEIR_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// The data folder (key data_dir)
    #[arg(long, env = "WEIR_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// Any key: --set http_server.port=9000; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) sets: Vec<(String, String)>,
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write 25s, 2m or 72h".to_owned())
}

pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.trim().to_owned(), value.to_owned()))
        .ok_or_else(|| "write KEY=VALUE".to_owned())
}

impl Common {
    pub(crate) fn load(&self, default: &ConfigFile<'_>) -> Result<Loaded, String> {
        let file = self
            .config
            .as_deref()
            .map_or_else(|| default.clone(), ConfigFile::At);
        let mut sets = self.sets.clone();
        if let Some(data) = &self.data {
            sets.push(("data_dir".into(), data.to_string_lossy().into_owned()));
        }
        let sources = Sources::of_process(&file, sets).map_err(|errors| errors.to_string())?;
        Config::load(sources).map_err(|errors| errors.to_string())
    }
}

/// Runs the command of this process.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    // Two are linked, as the Cassandra driver brings one of its own; this one is for every TLS connection.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider is there already");
    }
    match &cli.command {
        Command::Up(common) => start(common, &ConfigFile::Demo, Mode::Up),
        Command::Serve(common) => start(common, &ConfigFile::None, Mode::Serve),
        Command::Check(common) => with_runtime(common, &ConfigFile::None, |loaded| async move {
            let report = check::run(&loaded).await;
            say(&report.to_string());
            if report.is_good() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }),
        Command::Token { common, .. } => token(common, &cli.command),
        Command::Auth(command) => {
            with_runtime(command.common(), &ConfigFile::Demo, |loaded| async move {
                match Box::pin(command.run(loaded.config)).await {
                    Ok(text) => {
                        say(&text);
                        ExitCode::SUCCESS
                    }
                    Err(error) => failed(&error),
                }
            })
        }
        Command::Archive(command) => {
            with_runtime(command.common(), &ConfigFile::None, |loaded| async move {
                ended(Box::pin(archive_cli::run(command, &loaded)).await)
            })
        }
        Command::Revoke(args) => {
            with_runtime(&args.common, &ConfigFile::None, |loaded| async move {
                ended(Box::pin(args.run(&loaded)).await)
            })
        }
        Command::Disconnect(args) => {
            with_runtime(&args.common, &ConfigFile::None, |loaded| async move {
                ended(Box::pin(args.run(&loaded)).await)
            })
        }
        Command::Unsubscribe(args) => {
            with_runtime(&args.common, &ConfigFile::None, |loaded| async move {
                ended(Box::pin(args.run(&loaded)).await)
            })
        }
    }
}

fn token(common: &Common, command: &Command) -> ExitCode {
    let Command::Token {
        user,
        ttl,
        channel,
        algorithm,
        key,
        kid,
        issuer,
        caps,
        ..
    } = command
    else {
        return ExitCode::FAILURE;
    };
    let loaded = match common.load(&ConfigFile::None) {
        Ok(loaded) => loaded,
        Err(errors) => return wrong(&errors),
    };
    let key = match key.as_ref().map(std::fs::read_to_string).transpose() {
        Ok(key) => key.map(|key| key.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => return wrong(&format!("--key: it cannot be read: {error}")),
    };
    // A clock before 1970 makes a token that is long expired, which is the truth.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let wish = Wish {
        user,
        channel: channel.as_deref(),
        algorithm,
        key,
        kid: kid.clone(),
        issuer: issuer.as_deref(),
        caps: caps.as_deref(),
        now_s: seconds(now),
        expires_at_s: seconds(now.saturating_add(*ttl)),
    };
    let config = match with_own_secret(loaded.config) {
        Ok(config) => config,
        Err(error) => return wrong(&error),
    };
    match tokens::mint(&config, &wish) {
        Ok(token) => {
            say(&format!("{token}\n"));
            ExitCode::SUCCESS
        }
        Err(error) => wrong(&error),
    }
}

fn start(common: &Common, default: &ConfigFile<'_>, mode: Mode) -> ExitCode {
    with_runtime(common, default, |loaded| async move {
        if mode == Mode::Up
            && let Some(at) = loaded.given.get("nats.url")
        {
            return wrong(&format!(
                "{at}: nats.url: weir up starts its own nats-server; remove it, or use weir serve"
            ));
        }
        if let Err(error) = telemetry::start(&loaded.config.log) {
            return wrong(&error.to_string());
        }
        match Box::pin(node::run(loaded, mode)).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.to_string()),
        }
    })
}

fn with_runtime<F: Future<Output = ExitCode>>(
    common: &Common,
    default: &ConfigFile<'_>,
    work: impl FnOnce(Loaded) -> F,
) -> ExitCode {
    let loaded = match common.load(default) {
        Ok(loaded) => loaded,
        Err(errors) => return wrong(&errors),
    };
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let code = runtime.block_on(work(loaded));
            // What a second Ctrl-C left running is not waited for.
            runtime.shutdown_timeout(Duration::from_secs(1));
            code
        }
        Err(error) => failed(&format!("the runtime cannot start: {error}")),
    }
}

pub(crate) fn say(text: &str) {
    // A reader who went away (`weir check | head`) is no failure of ours.
    if std::io::stdout().lock().write_all(text.as_bytes()).is_err() {
        tracing::debug!("standard output is closed");
    }
}

pub(crate) fn complain(text: &str) {
    if writeln!(
        std::io::stderr().lock(),
        "weir: {}",
        text.replace('\n', "\nweir: ")
    )
    .is_err()
    {
        tracing::debug!("standard error is closed");
    }
}

fn ended(result: Result<ExitCode, archive_cli::Failure>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(archive_cli::Failure::Config(errors)) => wrong(&errors),
        Err(archive_cli::Failure::Failed(error)) => failed(&error),
    }
}

fn wrong(errors: &str) -> ExitCode {
    complain(errors);
    ExitCode::from(EXIT_CONFIG)
}

fn failed(error: &str) -> ExitCode {
    complain(error);
    ExitCode::FAILURE
}

/// The operating system's user, by what the system says and not by what the environment does.
pub(crate) fn who() -> String {
    let uid = rustix::process::getuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    format!("{}@{} (uid {uid})", name.unwrap_or("unknown"), host_name())
}
