//! Knows: what `weir check` looks at, in the order that a person would: configuration, NATS, JetStream, rights, disk, demo users.
//! Never: changes anything in NATS; what it publishes goes to subjects that no room has and no stream captures.

mod auth_callout;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use serde_json::Value;
use tokio::time::sleep;
use weir_history::cassandra::Cassandra;
use weir_nats::connect::NatsTls;

use crate::config::{ArchiveKind, Config, Loaded, NatsUser, OPERATOR, Secret, Storage};
use crate::nats_server::{Files, MIN_VERSION, Passwords, Version};
use crate::roles::nats_tls;
use crate::tokens::{self, Finding};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a refusal may take to arrive after the publish was flushed.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(300);
/// `max_payload` that the limits of doors and pages are made for, bytes.
const MAX_PAYLOAD_BYTES: usize = 1_048_576;
/// Streams beside the logs': the probe's and the bucket `weir`.
const OTHER_STREAMS: i64 = 2;
/// No room's name has these tokens: `=w` is no escape, and no log may be called `=weir`.
const NO_ROOM: &str = "room._.=weir-check";
const NO_LOG: &str = "log.=weir.0._.=weir-check";

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Good,
    Warning,
    Bad,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    findings: Vec<(Level, String)>,
}

impl Report {
    /// Nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|(level, _)| *level != Level::Bad)
    }

    fn good(&mut self, text: impl Into<String>) {
        self.findings.push((Level::Good, text.into()));
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.findings.push((Level::Warning, text.into()));
    }

    fn bad(&mut self, text: impl Into<String>) {
        self.findings.push((Level::Bad, text.into()));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (level, text) in &self.findings {
            let word = match level {
                Level::Good => "ok      ",
                Level::Warning => "warning ",
                Level::Bad => "WRONG   ",
            };
            // A server's own words may be in it.
            let text: String = text
                .chars()
                .map(|c| if c.is_control() { '\u{fffd}' } else { c })
                .collect();
            writeln!(f, "{word} {text}")?;
        }
        Ok(())
    }
}

/// The cluster answers, and its keyspace is of this version. A file is looked at when it is opened.
async fn archive(report: &mut Report, config: &Config) {
    if config.archive.kind != ArchiveKind::Cassandra {
        return;
    }
    let keyspace = &config.archive.keyspace;
    let version = match crate::archive::cassandra(&config.archive) {
        Ok(cassandra) => Box::pin(Cassandra::version_at(&cassandra)).await,
        Err(error) => Err(error),
    };
    match version {
        Ok(Some(version)) => report.good(format!("archive: keyspace {keyspace}, schema version {version}")),
        Ok(None) => report.warn(format!(
            "archive: there is no keyspace {keyspace} yet; Weir makes it when it starts, or run weir archive migrate"
        )),
        Err(error) => report.bad(format!("{error}; start the cluster, or correct [archive]")),
    }
}

/// Looks at everything.
pub async fn run(loaded: &Loaded) -> Report {
    let mut report = Report::default();
    let config = &loaded.config;
    report.good(format!("configuration: {}", loaded.file_name));
    for warning in &loaded.warnings {
        report.warn(warning.clone());
    }
    for finding in tokens::look(config).await {
        match finding {
            Finding::Good(text) => report.good(text),
            Finding::Warning(text) => report.warn(text),
            Finding::Bad(text) => report.bad(text),
        }
    }
    archive(&mut report, config).await;
    let target = match Target::new(loaded) {
        Ok(target) => target,
        Err(error) => {
            report.bad(error);
            return report;
        }
    };
    let live = match Probed::connect(&target, &target.live).await {
        Ok(live) => live,
        Err(error) if error.refused => {
            report.bad(format!(
                "NATS at {} refuses the user {:?}: {}; set nats.live.user and WEIR_NATS_LIVE_PASSWORD",
                target.url, target.live.user, error.text
            ));
            return report;
        }
        Err(error) => {
            let text = format!("NATS does not answer at {}: {}", target.url, error.text);
            if target.named {
                report.bad(format!("{text}; start it, or correct nats.url"));
            } else {
                report.warn(format!(
                    "{text}; nothing more to check (`weir up` starts its own)"
                ));
            }
            return report;
        }
    };
    server(&mut report, &live);
    jetstream(&mut report, config, &live.client).await;
    rights(&mut report, &target, &live).await;
    if config.auth_callout.enabled || !target.named {
        auth_callout::look(&mut report, config, &target).await;
    }
    disk(&mut report, &target).await;
    demo_users(&mut report, &target, &live).await;
    report
}

/// The NATS to look at.
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) tls: Option<NatsTls>,
    /// The configuration names it; else it is that of `weir up`, which need not run now.
    pub(crate) named: bool,
    pub(crate) live: NatsUser,
    pub(crate) reads: NatsUser,
    pub(crate) door: NatsUser,
    system: NatsUser,
    auth: NatsUser,
    kick: NatsUser,
}

impl Target {
    pub(crate) fn new(loaded: &Loaded) -> Result<Self, String> {
        let config = &loaded.config;
        let named = loaded.given.keys().any(|key| key.starts_with("nats."));
        let nats = config.nats.clone();
        let mut target = Self {
            tls: nats_tls(&nats),
            url: nats.url,
            named,
            live: nats.live,
            reads: nats.reads,
            door: nats.door,
            system: nats.system,
            auth: nats.auth,
            kick: nats.kick,
        };
        if named {
            return Ok(target);
        }
        let path = Files::new(&config.data_dir).passwords();
        let kept = Passwords::load(&path, config.nats_server.demo_users)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let server = &config.nats_server;
        target.url = format!(
            "nats://{}",
            crate::nats_server::reachable((server.address, server.port).into())
        );
        target.tls = None;
        if let Some(kept) = kept {
            target.live.password = kept.weir;
            target.reads.password = kept.weir_read;
            target.door.password = kept.weir_door;
            target.system.password = kept.sys;
            target.auth.password = kept.weir_auth;
            target.kick.password = kept.weir_kick;
        }
        Ok(target)
    }

    /// Options with the TLS of this NATS.
    fn options(&self, options: ConnectOptions) -> ConnectOptions {
        match &self.tls {
            Some(tls) => tls.apply(options),
            None => options,
        }
    }
}

struct ConnectFailure {
    refused: bool,
    text: String,
}

/// A connection that remembers what the server refused.
struct Probed {
    client: Client,
    refusals: Arc<Mutex<Vec<String>>>,
}

/// Refusals that are remembered of one connection; each check makes one.
const REFUSALS_MAX: usize = 64;

impl Probed {
    async fn connect(target: &Target, user: &NatsUser) -> Result<Self, ConnectFailure> {
        let refusals = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&refusals);
        let servers: Vec<&str> = target.url.split(',').map(str::trim).collect();
        let options = ConnectOptions::with_user_and_password(
            user.user.clone(),
            user.password.expose().to_owned(),
        )
        .name("weir check")
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .custom_inbox_prefix(format!("_INBOX.{}", user.user))
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                if heard.len() < REFUSALS_MAX {
                    heard.push(error.to_string());
                }
            }
            async {}
        });
        let client = target
            .options(options)
            .connect(servers)
            .await
            .map_err(|error| ConnectFailure {
                refused: matches!(
                    error.kind(),
                    async_nats::ConnectErrorKind::AuthorizationViolation
                        | async_nats::ConnectErrorKind::Authentication
                ),
                text: error.to_string(),
            })?;
        Ok(Self { client, refusals })
    }

    /// Whether the server lets this user publish there.
    async fn may_publish(&self, subject: &str) -> Result<bool, String> {
        let sent = self
            .client
            .publish(subject.to_owned(), Vec::new().into())
            .await;
        sent.map_err(|error| error.to_string())?;
        self.client
            .flush()
            .await
            .map_err(|error| error.to_string())?;
        let step = REFUSAL_PATIENCE / 15;
        for _ in 0..15 {
            let refused = self
                .refusals
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .any(|text| text.to_lowercase().contains(&subject.to_lowercase()));
            if refused {
                return Ok(false);
            }
            sleep(step).await;
        }
        Ok(true)
    }
}

fn server(report: &mut Report, live: &Probed) {
    let info = live.client.server_info();
    let version = &info.version;
    match Version::parse(version) {
        Some(known) if known >= MIN_VERSION => {
            report.good(format!("nats-server {version} {:?}", info.server_name));
        }
        _ => report.bad(format!(
            "nats-server is {version}; Weir needs {MIN_VERSION} or newer"
        )),
    }
    if info.max_payload < MAX_PAYLOAD_BYTES {
        report.bad(format!(
            "max_payload is {} bytes; set it to 1MB in nats-server's configuration",
            info.max_payload
        ));
    }
    if !info.headers {
        report.bad("headers are off; remove no_header_support from nats-server's configuration");
    }
}

async fn ask(client: &Client, subject: &str) -> Result<Value, String> {
    let answer = client.request(subject.to_owned(), Vec::new().into()).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_slice(&answer.payload).map_err(|e| e.to_string())?;
    match value.pointer("/error/description").and_then(Value::as_str) {
        Some(text) => Err(text.to_owned()),
        None => Ok(value),
    }
}

async fn jetstream(report: &mut Report, config: &Config, client: &Client) {
    let account = match ask(client, "$JS.API.INFO").await {
        Ok(account) => account,
        Err(error) => {
            report.bad(format!(
                "JetStream does not answer ({error}); turn it on for the account, and let the user of \
                 nats.live publish $JS.API.>"
            ));
            return;
        }
    };
    let limit = |name: &str| {
        account
            .pointer(&format!("/limits/{name}"))
            .and_then(Value::as_i64)
            .unwrap_or(-1)
    };
    let slots: i64 = config.logs.iter().map(|log| i64::from(log.slots)).sum();
    let needed = slots + OTHER_STREAMS;
    if limit("max_streams") >= 0 && limit("max_streams") < needed {
        report.bad(format!(
            "the account may have {} streams, this configuration needs {needed}; raise max_streams",
            limit("max_streams")
        ));
    } else {
        report.good(format!("JetStream: {needed} streams needed"));
    }
    for log in &config.logs {
        let (name, most) = match log.storage {
            Storage::File => ("max_storage", limit("max_storage")),
            Storage::Memory => ("max_memory", limit("max_memory")),
        };
        let bytes = log.max_bytes.saturating_mul(i64::from(log.slots));
        if most >= 0 && bytes > most {
            report.bad(format!(
                "logs.{}: its streams may grow to {bytes} bytes, the account's {name} is {most}; lower \
                 max_bytes or raise {name}",
                log.name
            ));
        }
        for slot in 0..log.slots {
            stream(
                report,
                client,
                &format!("{}_{slot}", log.name.to_uppercase()),
            )
            .await;
        }
    }
}

/// A stream that is there must be as Weir makes it, where a difference would be dangerous.
async fn stream(report: &mut Report, client: &Client, name: &str) {
    let Ok(info) = ask(client, &format!("$JS.API.STREAM.INFO.{name}")).await else {
        return; // not made yet
    };
    let is = |option: &str| {
        info.pointer(&format!("/config/{option}"))
            .and_then(Value::as_bool)
            .unwrap_or(false)
    };
    for (option, wanted, why) in [
        ("allow_direct", true, "reads use Direct Get"),
        (
            "allow_rollup_hdrs",
            false,
            "a header could erase the stream",
        ),
        (
            "allow_msg_schedules",
            false,
            "a header could write into other rooms",
        ),
        ("sealed", false, "nothing could be stored"),
    ] {
        if is(option) != wanted {
            report.bad(format!("stream {name}: {option} must be {wanted}: {why}"));
        }
    }
    if info.pointer("/config/republish/dest").is_none() {
        report.bad(format!(
            "stream {name}: it republishes nothing, so nobody would see live messages"
        ));
    }
    let number = |path: &str| info.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let (messages, bytes) = (number("/state/messages"), number("/state/bytes"));
    report.good(format!("stream {name}: {messages} messages, {bytes} bytes"));
}

async fn rights(report: &mut Report, target: &Target, live: &Probed) {
    let mut wrong = 0;
    let mut forbidden = async |report: &mut Report, probed: &Probed, user: &str, subject: &str| {
        match probed.may_publish(subject).await {
            Ok(false) => {}
            Ok(true) => {
                wrong += 1;
                report.bad(format!(
                    "the user {user:?} may publish on {subject:?}, so could forge messages; give it the \
                     rights of deploy/nats.conf"
                ));
            }
            Err(error) => report.bad(format!("the rights of {user:?} cannot be tried: {error}")),
        }
    };
    forbidden(report, live, &target.live.user, NO_ROOM).await;
    for (name, user) in [("reads", &target.reads), ("door", &target.door)] {
        match Probed::connect(target, user).await {
            Ok(probed) => {
                forbidden(report, &probed, &user.user, NO_ROOM).await;
                forbidden(report, &probed, &user.user, NO_LOG).await;
            }
            Err(error) => report.bad(format!(
                "NATS refuses the user {:?}: {}; set nats.{name}.user and WEIR_NATS_{}_PASSWORD",
                user.user,
                error.text,
                name.to_uppercase()
            )),
        }
    }
    match live.may_publish(NO_LOG).await {
        Ok(true) => {}
        Ok(false) => report.bad(format!(
            "the user {:?} may not publish on log.>; give it the rights of deploy/nats.conf",
            target.live.user
        )),
        Err(error) => report.bad(format!(
            "the rights of {:?} cannot be tried: {error}",
            target.live.user
        )),
    }
    if wrong == 0 {
        report.good("rights: nobody of Weir publishes on room.>, only the live user on log.>");
    }
}

/// How soon a message is on the disk is a setting of the server, which only its system account tells.
async fn disk(report: &mut Report, target: &Target) {
    let told = match Probed::connect(target, &target.system).await {
        Ok(system) => ask(&system.client, "$SYS.REQ.SERVER.PING.VARZ").await.ok(),
        Err(_) => None,
    };
    let setting = |name| {
        told.as_ref()
            .and_then(|told| told.pointer(&format!("/data/jetstream/config/{name}")))
    };
    match (setting("sync_always").and_then(Value::as_bool), setting("sync_interval").and_then(Value::as_u64)) {
        (Some(true), _) => report.good("sync_interval: always, an acknowledged message is on the disk"),
        (_, Some(nanoseconds)) => {
            let interval = Duration::from_nanos(nanoseconds);
            report.warn(format!(
                "sync_interval is {interval:?}: a power cut loses the messages acknowledged since; set \
                 `sync_interval: always` in nats-server's jetstream block"
            ));
        }
        _ => report.warn(
            "sync_interval is not known: give [nats.system] a user of the system account to see it; \
             nats-server's default loses up to 2 minutes of acknowledged messages in a power cut",
        ),
    }
}

async fn demo_users(report: &mut Report, target: &Target, live: &Probed) {
    let mut open = Vec::new();
    for name in [OPERATOR, "bot", "dev1"] {
        let user = NatsUser {
            user: name.into(),
            password: Secret::new(name),
        };
        if Probed::connect(target, &user).await.is_ok() {
            open.push(name);
        }
    }
    if open.is_empty() {
        return;
    }
    let names = open.join(", ");
    let listens_on = live.client.server_info().host;
    let local =
        is_loopback(&listens_on) && target.url.split(',').all(|url| is_loopback(host_of(url)));
    if local {
        report.good(format!(
            "demo users {names}: only this machine can reach them"
        ));
    } else {
        report.bad(format!(
            "demo users {names} have their name as password, and this NATS listens on {listens_on}; give \
             them other passwords (nats_server.demo_users = false) or remove them"
        ));
    }
}

fn host_of(url: &str) -> &str {
    let rest = url
        .trim()
        .rsplit_once("://")
        .map_or(url.trim(), |(_, rest)| rest);
    if let Some((host, _)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return host;
    }
    rest.split(['/', ':']).next().unwrap_or(rest)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let table = [
            ("nats://127.0.0.1:4222", "127.0.0.1", true),
            ("tls://nats.example.com", "nats.example.com", false),
            ("nats://[::1]:4222", "::1", true),
            ("wss://localhost:443/path", "localhost", true),
            ("nats://0.0.0.0:4222", "0.0.0.0", false),
        ];
        for (url, host, loopback) in table {
            assert_eq!(host_of(url), host);
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }
}
