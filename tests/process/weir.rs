//! Knows: how to run the built `weir` on free ports in a folder of its own, and how to talk to its NATS in plain lines.
//! Never: kills what it did not start.

#![expect(clippy::unwrap_used, reason = "a helper of tests, outside of #[test]")]

#[path = "../support/ports.rs"]
mod ports;

pub(crate) use ports::free_port;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

/// Longer than any of these steps takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that is there and no zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim().starts_with('Z'))
    });
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok()) && !zombie
}

/// Ends one process that this test caused to start.
pub(crate) fn kill_nine(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

pub(crate) struct Weir {
    folder: TempDir,
    data: PathBuf,
    pub(crate) http: u16,
    pub(crate) internal: u16,
    pub(crate) nats: u16,
    pub(crate) mqtt: u16,
    pub(crate) config: Option<PathBuf>,
    pub(crate) program: Option<PathBuf>,
    child: Option<Child>,
}

impl Weir {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let data = folder.path().join("data");
        Self {
            folder,
            data,
            http: free_port(),
            internal: free_port(),
            nats: free_port(),
            mqtt: free_port(),
            config: None,
            program: None,
            child: None,
        }
    }

    /// Another one on other ports in the same data folder.
    pub(crate) fn sibling(&self) -> Self {
        let mut sibling = Self::new();
        sibling.data.clone_from(&self.data);
        sibling
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    fn command(&self, command: &str, sets: &[String]) -> Command {
        let mut process = Command::new(env!("CARGO_BIN_EXE_weir"));
        process
            .args(command.split(' '))
            .arg("--data")
            .arg(&self.data)
            .stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("WEIR_") && name != "WEIR_NATS_SERVER" {
                process.env_remove(&*name);
            }
        }
        for set in [
            format!("http_server.port={}", self.http),
            format!("http_server.internal_port={}", self.internal),
            format!("nats_server.port={}", self.nats),
            format!("nats_server.mqtt_port={}", self.mqtt),
        ] {
            process.arg("--set").arg(set);
        }
        for set in sets {
            process.arg("--set").arg(set);
        }
        if let Some(config) = &self.config {
            process.arg("--config").arg(config);
        }
        if let Some(program) = &self.program {
            process.env("WEIR_NATS_SERVER", program);
        }
        process
    }

    pub(crate) fn start(&mut self, command: &str, sets: &[String]) {
        let out = File::create(self.folder.path().join("out")).unwrap();
        let err = File::create(self.folder.path().join("err")).unwrap();
        let child = self
            .command(command, sets)
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Starts `weir up` and waits until it runs.
    pub(crate) fn up(&mut self) {
        self.start("up", &[]);
        self.wait_running();
    }

    pub(crate) fn wait_running(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.stderr().contains("weir is running") {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", self.stderr());
            assert!(
                Instant::now() < deadline,
                "it does not run:\n{}",
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts `weir up`, which must end by itself: its exit code.
    pub(crate) fn fails(&mut self) -> Option<i32> {
        self.start("up", &[]);
        self.wait_end()
    }

    pub(crate) fn wait_end(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("it does not end:\n{}", self.stderr());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill_process(Pid::from_raw(id.cast_signed()).unwrap(), signal).unwrap();
    }

    pub(crate) fn signal_int(&self) {
        self.signal(Signal::INT);
    }

    /// Ctrl-C; its exit code.
    pub(crate) fn interrupt(&mut self) -> Option<i32> {
        self.signal(Signal::INT);
        self.wait_end()
    }

    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait_end()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("out")).unwrap_or_default()
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("err")).unwrap_or_default()
    }

    /// The process id of its nats-server, as that wrote it.
    pub(crate) fn server_pid(&self) -> Option<i32> {
        let path = self.data.join("nats-server/nats-server.pid");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// An answer of the internal listener, with its head; empty where nobody listens.
    pub(crate) fn get(&self, path: &str) -> String {
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.internal)) else {
            return String::new();
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut text = String::new();
        match socket
            .write_all(request.as_bytes())
            .and_then(|()| socket.read_to_string(&mut text))
        {
            Ok(_) => text,
            Err(_) => String::new(),
        }
    }

    /// Publishes as `ops`; the offset that was acknowledged.
    pub(crate) fn say(&self, text: &str) -> u64 {
        self.try_say(text).expect("an acknowledgement")
    }

    pub(crate) fn try_say(&self, text: &str) -> Option<u64> {
        let mut nats = Lines::connect(self.nats, "ops", "ops").ok()?;
        nats.tell("SUB _INBOX.test 1");
        nats.publish(
            "say.ops.chat.lobby",
            Some("_INBOX.test"),
            &format!("{{\"text\":\"{text}\"}}"),
        );
        let answer = nats.message()?;
        serde_json::from_str::<serde_json::Value>(&answer).ok()?["offset"].as_u64()
    }

    /// Publishes many as `ops`, without waiting in between; the offsets that were acknowledged, in order.
    pub(crate) fn say_many(&self, room: &str, texts: impl IntoIterator<Item = String>) -> Vec<u64> {
        let mut nats = Lines::connect(self.nats, "ops", "ops").unwrap();
        nats.tell("SUB _INBOX.test 1");
        let mut sent = 0;
        for text in texts {
            nats.publish(&format!("say.ops.{room}"), Some("_INBOX.test"), &text);
            sent += 1;
        }
        let mut offsets: Vec<u64> = (0..sent)
            .map(|_| {
                let answer = nats.message().expect("an answer");
                let json: serde_json::Value = serde_json::from_str(&answer).unwrap();
                json["offset"].as_u64().expect("an offset")
            })
            .collect();
        offsets.sort_unstable();
        offsets
    }

    /// A request to JetStream's API as Weir's own user.
    pub(crate) fn jetstream(&self, subject: &str, request: &str) -> serde_json::Value {
        let kept = std::fs::read_to_string(self.data.join("nats-server/passwords.json")).unwrap();
        let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
        let password = kept["weir"].as_str().unwrap();
        let mut nats = Lines::connect(self.nats, "weir", password).unwrap();
        nats.tell("SUB _INBOX.weir.test 1");
        nats.publish(
            &format!("$JS.API.{subject}"),
            Some("_INBOX.weir.test"),
            request,
        );
        serde_json::from_str(&nats.message().expect("an answer")).unwrap()
    }

    pub(crate) fn check(&self, sets: &[String]) -> (Option<i32>, String) {
        run(&mut self.command("check", sets))
    }

    /// A command of `weir archive` on the same data folder and ports, ready to run.
    pub(crate) fn archive(&self, command: &str, args: &[&str]) -> Command {
        let mut process = self.command(&format!("archive {command}"), &[]);
        process.args(args);
        process
    }

    pub(crate) fn token(&self, sets: &[String], args: &[&str]) -> (Option<i32>, String) {
        run(self.command("token", sets).args(args))
    }
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

impl Drop for Weir {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.child = None;
            let id = Pid::from_raw(child.id().cast_signed()).unwrap();
            if kill_process(id, Signal::INT).is_ok() {
                let deadline = Instant::now() + Duration::from_secs(15);
                while child.try_wait().is_ok_and(|status| status.is_none()) {
                    if Instant::now() > deadline {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            if child.kill().is_ok() {
                drop(child.wait());
            }
        }
        // After a kill -9 the server may be left; its pid file is in our own folder.
        let ours = self.data.starts_with(self.folder.path());
        if let Some(pid) = self.server_pid().filter(|pid| ours && is_alive(*pid)) {
            let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&args).contains(&*self.data.to_string_lossy()) {
                kill_nine(pid);
            }
        }
    }
}

/// A NATS connection in plain lines: what the server says about a command comes before the answer to a later ping, so
/// a refusal is certain, not waited for.
pub(crate) struct Lines {
    socket: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Lines {
    pub(crate) fn connect(port: u16, user: &str, password: &str) -> Result<Self, String> {
        let socket = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut lines = Self {
            reader: BufReader::new(socket.try_clone().unwrap()),
            socket,
        };
        let mut info = String::new();
        lines
            .reader
            .read_line(&mut info)
            .map_err(|e| e.to_string())?;
        lines.tell(&format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"user\":\"{user}\",\"pass\":\"{password}\"}}"
        ));
        let errors = lines.errors()?;
        errors.first().map_or(Ok(lines), |error| Err(error.clone()))
    }

    pub(crate) fn tell(&mut self, line: &str) {
        // A server that closes on us says why in what we read next.
        drop(self.socket.write_all(format!("{line}\r\n").as_bytes()));
    }

    pub(crate) fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &str) {
        let reply = reply.map(|reply| format!(" {reply}")).unwrap_or_default();
        self.tell(&format!(
            "PUB {subject}{reply} {}\r\n{payload}",
            payload.len()
        ));
    }

    /// What the server refused of all that was sent so far.
    pub(crate) fn errors(&mut self) -> Result<Vec<String>, String> {
        self.tell("PING");
        let mut errors = Vec::new();
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(0) if errors.is_empty() => return Err("closed".into()),
                Ok(0) => return Ok(errors),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
            if line.starts_with("PONG") {
                return Ok(errors);
            }
            if line.starts_with("PING") {
                self.tell("PONG");
            }
            if let Some(error) = line.strip_prefix("-ERR ") {
                errors.push(error.trim().to_owned());
            }
        }
    }

    pub(crate) fn may_publish(&mut self, subject: &str) -> bool {
        self.publish(subject, None, "{}");
        self.errors().unwrap().is_empty()
    }

    pub(crate) fn may_subscribe(&mut self, subject: &str) -> bool {
        self.tell(&format!("SUB {subject} 7"));
        let may = self.errors().unwrap().is_empty();
        self.tell("UNSUB 7");
        may
    }

    /// The payload of the next message; `None` if none comes within 5 s.
    pub(crate) fn message(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let headers = line.starts_with("HMSG ");
            if headers || line.starts_with("MSG ") {
                let mut sizes = line.split_whitespace().rev();
                let total: usize = sizes.next()?.parse().ok()?;
                let head: usize = if headers {
                    sizes.next()?.parse().ok()?
                } else {
                    0
                };
                let mut bytes = vec![0; total + 2];
                self.reader.read_exact(&mut bytes).ok()?;
                return String::from_utf8(bytes.get(head..total)?.to_vec()).ok();
            }
        }
    }
}
