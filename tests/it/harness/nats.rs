//! Knows: a real nats-server of a test's own: start, kill, freeze, put its store back. Never: Weir.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{free_port, until};

/// The configuration that is shipped, so that its rights are the ones under test.
const CONFIG: &str = include_str!("../../../deploy/nats.conf");
/// Where the account's users begin.
const USERS: &str = "jetstream: enabled\n    users: [\n";

/// A nats-server in a folder of its own. Killed and removed on drop.
pub(crate) struct Nats {
    dir: TempDir,
    pub(crate) port: u16,
    pub(crate) mqtt_port: u16,
    child: Option<Child>,
    jetstream: bool,
    store: PathBuf,
    callout: CalloutKeys,
    /// What passwords have after the name of their user.
    suffix: String,
    /// A folder with `ca.pem` and with `.pem` and `.key` of `nats` and `weir`: it wants TLS, and a certificate.
    tls: Option<PathBuf>,
}

/// The keys of the auth callout, as `weir auth keys` makes them.
struct CalloutKeys {
    dir: TempDir,
    issuer: String,
    xkey: String,
}

impl CalloutKeys {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["auth", "keys", "--new"])
            .arg(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8(made.stdout).unwrap();
        let key = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        Self {
            issuer: key("issuer"),
            xkey: key("xkey"),
            dir,
        }
    }
}

/// The nats-server to test with: `WEIR_NATS_SERVER`, else the project's own, else PATH.
pub(crate) fn nats_server() -> PathBuf {
    if let Some(path) = std::env::var_os("WEIR_NATS_SERVER") {
        return path.into();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin/nats-server");
    if own.exists() {
        own
    } else {
        "nats-server".into()
    }
}

/// A signal to a process that this test started.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

impl Nats {
    /// Starts one with JetStream and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_with(free_port(), true, None).await
    }

    /// Starts one that speaks TLS only, with the files of a folder.
    pub(crate) async fn start_tls(files: &TempDir) -> Self {
        let tls = Some(files.path().to_owned());
        Self::started(free_port(), true, None, tls, "").await
    }

    /// Starts one whose passwords nobody could guess: the name of the user, and this after it.
    pub(crate) async fn start_secret(suffix: &str) -> Self {
        Self::started(free_port(), true, None, None, suffix).await
    }

    /// Starts one as told: without JetStream, or with its store on a disk of the test's choice.
    pub(crate) async fn start_with(port: u16, jetstream: bool, store: Option<PathBuf>) -> Self {
        Self::started(port, jetstream, store, None, "").await
    }

    async fn started(
        port: u16,
        jetstream: bool,
        store: Option<PathBuf>,
        tls: Option<PathBuf>,
        suffix: &str,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = store.unwrap_or_else(|| dir.path().join("store"));
        let mut nats = Self {
            dir,
            port,
            mqtt_port: free_port(),
            child: None,
            jetstream,
            store,
            callout: CalloutKeys::new(),
            suffix: suffix.to_owned(),
            tls,
        };
        nats.spawn().await;
        nats
    }

    /// The address without credentials.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A user's password.
    pub(crate) fn password(&self, user: &str) -> String {
        let suffix = if user == "test" { "" } else { &self.suffix };
        format!("{user}{suffix}")
    }

    /// A seed of the auth callout.
    pub(crate) fn seed(&self, name: &str) -> String {
        let path = self.callout.dir.path().join(name);
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    /// The lines that make Weir its auth callout.
    pub(crate) fn auth_callout(&self) -> String {
        let seed = |name: &str| self.callout.dir.path().join(name).display().to_string();
        format!(
            "[nats.auth]\npassword = {:?}\n[auth_callout]\nenabled = true\nissuer_seed_file = {:?}\nxkey_seed_file = {:?}\n",
            self.password("weir_auth"),
            seed("issuer.seed"),
            seed("xkey.seed")
        )
    }

    /// Starts it (again) on the same port and store, and waits until it answers.
    pub(crate) async fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let path = self.dir.path().join("nats.conf");
        std::fs::write(&path, self.config()).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("nats.out"))
            .unwrap();
        let child = Command::new(nats_server())
            .arg("-c")
            .arg(&path)
            .envs(self.environment())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("nats-server (WEIR_NATS_SERVER, .tools/bin or PATH)");
        self.child = Some(child);
        until("nats-server answers", Duration::from_secs(20), async || {
            let Ok(client) = self.options("test").connect(self.url()).await else {
                return false;
            };
            let context = async_nats::jetstream::new(client);
            !self.jetstream || context.query_account().await.is_ok()
        })
        .await;
    }

    /// The shipped text with one more user, `test`, who may do everything in the account (to scan, to
    /// cut, to delete); and, for a server without JetStream, with that taken out.
    fn config(&self) -> String {
        assert!(
            CONFIG.contains(USERS),
            "deploy/nats.conf has changed its shape"
        );
        let user = "      { user: test, password: test }\n";
        assert!(
            CONFIG.contains("auth_users: [ "),
            "deploy/nats.conf has changed its shape"
        );
        let mut config = CONFIG
            .replace(USERS, &format!("{USERS}{user}"))
            .replace("auth_users: [ ", "auth_users: [ test, ");
        if let Some(folder) = &self.tls {
            let file = |name: &str| folder.join(name).display().to_string();
            config += &format!(
                "\ntls {{ cert_file: '{}', key_file: '{}', ca_file: '{}', verify: true }}\n",
                file("nats.pem"),
                file("nats.key"),
                file("ca.pem")
            );
        }
        if self.jetstream {
            return config;
        }
        let without = |text: &str, block: &str| {
            let start = text.find(&format!("\n{block} {{")).unwrap();
            let end = start + text[start..].find("\n}\n").unwrap() + 3;
            format!("{}{}", &text[..start], &text[end..])
        };
        without(&without(&config, "jetstream"), "mqtt").replace("jetstream: enabled", "")
    }

    /// What the shipped configuration takes from its environment; passwords are the user names.
    fn environment(&self) -> Vec<(String, String)> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let mut values = vec![
            ("SERVER_NAME".to_owned(), "'weir-test'".to_owned()),
            ("HOST".to_owned(), "'127.0.0.1'".to_owned()),
            ("PORT".to_owned(), self.port.to_string()),
            ("MQTT_PORT".to_owned(), self.mqtt_port.to_string()),
            ("PID_FILE".to_owned(), format!("'{}'", path("nats.pid"))),
            ("LOG_FILE".to_owned(), format!("'{}'", path("nats.log"))),
            (
                "AUTH_ISSUER".to_owned(),
                format!("'{}'", self.callout.issuer),
            ),
            ("AUTH_XKEY".to_owned(), format!("'{}'", self.callout.xkey)),
            (
                "STORE_DIR".to_owned(),
                format!("'{}'", self.store.display()),
            ),
        ];
        for user in [
            "weir",
            "weir_read",
            "weir_door",
            "ops",
            "bot",
            "dev1",
            "sys",
            "weir_auth",
            "weir_kick",
        ] {
            values.push((
                format!("{}_PASSWORD", user.to_uppercase()),
                format!("'{user}{}'", self.suffix),
            ));
        }
        values
            .into_iter()
            .map(|(name, value)| (format!("WEIR_CONF_{name}"), value))
            .collect()
    }

    fn options(&self, user: &str) -> async_nats::ConnectOptions {
        let options =
            async_nats::ConnectOptions::with_user_and_password(user.into(), self.password(user));
        let options = match &self.tls {
            None => options,
            Some(folder) => options
                .require_tls(true)
                .add_root_certificates(folder.join("ca.pem"))
                .add_client_certificate(folder.join("weir.pem"), folder.join("weir.key")),
        };
        options
            .custom_inbox_prefix(if user == "test" {
                "_INBOX".into()
            } else {
                format!("_INBOX.{user}")
            })
            .request_timeout(Some(Duration::from_secs(5)))
    }

    /// A connection as one of the configured users; `test` may do everything.
    pub(crate) async fn client(&self, user: &str) -> async_nats::Client {
        self.options(user).connect(self.url()).await.unwrap()
    }

    /// JetStream with all rights.
    pub(crate) async fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client("test").await)
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

    /// Stops it in mid-step; sockets stay open.
    pub(crate) fn freeze(&self) {
        signal(self.child.as_ref().unwrap(), Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        signal(self.child.as_ref().unwrap(), Signal::CONT);
    }

    /// Where its streams are.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// Flips one bit of a stream's newest block: `part` of its bytes lie before it. The server must be stopped.
    pub(crate) fn flip(&self, stream: &str, part: f64) {
        assert!(self.child.is_none(), "stop it first");
        let folder = self.store.join("jetstream/WEIR/streams").join(stream);
        let entries = std::fs::read_dir(folder.join("msgs")).unwrap();
        let blocks = entries.map(|entry| entry.unwrap().path());
        let block = blocks
            .filter(|path| path.extension().is_some_and(|ext| ext == "blk"))
            .max_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap())
            .expect("a block");
        let mut bytes = std::fs::read(&block).unwrap();
        let at = (bytes.len() as f64 * part) as usize;
        bytes[at] ^= 0x10;
        std::fs::write(&block, bytes).unwrap();
    }

    /// A copy of the store as it is at this moment (the server stands still meanwhile).
    pub(crate) fn copy_store(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        self.freeze();
        copy_folder(&self.store, &copy.path().join("store"));
        self.thaw();
        copy
    }

    /// Puts a copy back in place of the store. The server must be stopped.
    pub(crate) fn put_back(&self, copy: &TempDir) {
        assert!(self.child.is_none(), "stop it first");
        std::fs::remove_dir_all(&self.store).unwrap();
        copy_folder(&copy.path().join("store"), &self.store);
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
