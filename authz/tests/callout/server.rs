//! Knows: a nats-server with the shipped configuration, the callout beside it, and tokens for it. Never: what must
//! hold.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_authz::callout::NativeLogins;
use weir_authz::capability::Scope;
use weir_authz::token::{Check, Issuer, Key, Keys};
use weir_authz::{Action, Claims, NamespaceRules, Verifier};
use weir_nats::ambient::since_1970;
use weir_nats::callout::{Callout, CalloutKeys, CalloutMetrics};
use weir_nats::connect::{ConnectConfig, Credentials, LinkTimes};

use crate::ports::free_port;

const CONFIG: &str = include_str!("../../../deploy/nats.conf");
pub(crate) const STATIC_USERS: [&str; 9] = [
    "weir",
    "weir_read",
    "weir_door",
    "ops",
    "bot",
    "dev1",
    "weir_auth",
    "weir_kick",
    "sys",
];
const SECRET: &str = "a secret of thirty-two bytes or so";
/// Nothing here takes longer on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A nats-server of one test, ended with it. Its static users have their names as passwords; `test` may do
/// everything in the account.
pub(crate) struct Server {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) mqtt_port: u16,
    seeds: (String, String),
}

impl Server {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, mqtt_port) = (free_port(), free_port());
        let seeds = CalloutKeys::new_seeds();
        let keys = CalloutKeys::from_seeds(&seeds.0, &seeds.1).unwrap();
        let users = "jetstream: enabled\n    users: [\n";
        assert!(
            CONFIG.contains(users) && CONFIG.contains("auth_users: [ "),
            "it has changed its shape"
        );
        let config = CONFIG
            .replace(
                users,
                &format!("{users}      {{ user: test, password: test }}\n"),
            )
            .replace("auth_users: [ ", "auth_users: [ test, ");
        let path = dir.path().join("nats.conf");
        std::fs::write(&path, config).unwrap();
        let file = |name: &str| format!("'{}'", dir.path().join(name).display());
        let mut command = Command::new(program());
        command.arg("-c").arg(&path).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        for (name, value) in [
            ("SERVER_NAME", "'weir-test'".to_owned()),
            ("HOST", "'127.0.0.1'".to_owned()),
            ("PORT", port.to_string()),
            ("MQTT_PORT", mqtt_port.to_string()),
            ("PID_FILE", file("nats.pid")),
            ("LOG_FILE", file("nats.log")),
            ("STORE_DIR", file("store")),
            ("AUTH_ISSUER", format!("'{}'", keys.issuer())),
            ("AUTH_XKEY", format!("'{}'", keys.xkey())),
        ] {
            command.env(format!("WEIR_CONF_{name}"), value);
        }
        for user in STATIC_USERS {
            command.env(
                format!("WEIR_CONF_{}_PASSWORD", user.to_uppercase()),
                format!("'{user}'"),
            );
        }
        let child = command
            .spawn()
            .expect("nats-server (WEIR_NATS_SERVER, .tools/bin or PATH)");
        let server = Self {
            child,
            dir,
            port,
            mqtt_port,
            seeds,
        };
        let deadline = Instant::now() + PATIENCE;
        while server.user("test").await.is_none() {
            assert!(
                Instant::now() < deadline,
                "nats-server does not answer: {}",
                server.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// What the server wrote.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("nats.log")).unwrap_or_default()
    }

    /// As one of the configured users.
    pub(crate) async fn user(&self, name: &str) -> Option<async_nats::Client> {
        let options = async_nats::ConnectOptions::with_user_and_password(name.into(), name.into());
        let options = options.custom_inbox_prefix(format!("_INBOX.{name}"));
        options.connect(self.url()).await.ok()
    }

    /// Where Weir connects.
    pub(crate) fn links(&self) -> ConnectConfig {
        ConnectConfig {
            url: self.url(),
            live: user("weir"),
            reads: user("weir_read"),
            door: user("weir_door"),
            tls: None,
            times: LinkTimes::default(),
        }
    }

    /// One instance of the callout.
    pub(crate) async fn callout(
        &self,
        namespaces: Vec<(Option<String>, NamespaceRules)>,
    ) -> Running {
        let config = self.links();
        let client = Callout::connect(&config, &user("weir_auth")).await.unwrap();
        let keys = Keys::Fixed(vec![(Key::secret(SECRET).unwrap(), None)]);
        let check = Check::default();
        let verifier = Arc::new(Verifier::new(vec![Issuer { check, keys }], None));
        let policy = NativeLogins::new(verifier, namespaces, STATIC_USERS.map(str::to_owned));
        let metrics = Arc::new(CalloutMetrics::default());
        let callout = Callout::new(
            client.clone(),
            CalloutKeys::from_seeds(&self.seeds.0, &self.seeds.1).unwrap(),
            "WEIR",
            policy.decide(),
            Arc::clone(&metrics),
            TaskTracker::new(),
        );
        let logins = Arc::new(Notify::new());
        let callout = callout.with_logins(Arc::clone(&logins));
        let stop = CancellationToken::new();
        let mut run = Box::pin(callout.run(stop.clone()));
        // Once it was polled it has asked for its subscription, which the server has before what comes after it.
        tokio::select! {
            biased;
            ended = &mut run => panic!("{ended:?}"),
            () = tokio::task::yield_now() => {}
        }
        let task = tokio::spawn(run);
        client.flush().await.unwrap();
        Running {
            stop,
            task,
            metrics,
            logins,
        }
    }
}

/// A static user, whose password is its name.
pub(crate) fn user(name: &str) -> Credentials {
    Credentials {
        user: name.to_owned(),
        password: name.to_owned(),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
    }
}

/// An instance of the callout that runs.
pub(crate) struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), async_nats::SubscribeError>>,
    metrics: Arc<CalloutMetrics>,
    /// Told of each login.
    pub(crate) logins: Arc<Notify>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// How many it has let in.
    pub(crate) fn admitted(&self) -> f64 {
        self.metrics.figure().samples[0].value
    }
}

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("WEIR_NATS_SERVER") {
        return path.into();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    if own.exists() {
        own
    } else {
        "nats-server".into()
    }
}

/// Seconds since 1970.
pub(crate) fn now_s() -> i64 {
    i64::try_from(since_1970().as_secs()).unwrap()
}

/// A token that is valid for an hour, with more claims.
pub(crate) fn token(user: &str, more: Value) -> String {
    let mut claims = json!({"sub": user, "exp": now_s() + 3_600, "jti": "t1"});
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let header = jsonwebtoken::Header::default();
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&header, &claims, &key).unwrap()
}

/// The token that says what these claims say.
pub(crate) fn token_of(claims: &Claims) -> String {
    let words = [
        (Action::Subscribe, "sub"),
        (Action::Publish, "pub"),
        (Action::History, "hst"),
        (Action::Presence, "prs"),
    ];
    let caps: Vec<Value> = claims
        .capabilities
        .iter()
        .map(|capability| {
            let allow = words
                .iter()
                .filter(|(action, _)| capability.actions.has(*action));
            let allow: Vec<&str> = allow.map(|(_, word)| *word).collect();
            match &capability.scope {
                Scope::Room(room) => json!({"channels": [room.channel()], "allow": allow}),
                Scope::Namespace(name) => {
                    json!({"namespaces": [name.as_deref().unwrap_or("")], "allow": allow})
                }
            }
        })
        .collect();
    token(&claims.user, json!({"caps": caps}))
}
