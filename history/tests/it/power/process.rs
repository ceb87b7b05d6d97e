//! Knows: the process that the power cut kills: this test program again, which fills an archive and
//! says what it was told is durable. Never: what must be there afterwards.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use weir_history::Archive;
use weir_history::archive::Batch;
use weir_history::held::Held;
use weir_history::sqlite::{Sqlite, Synchronous};
use weir_nats::placement::Generation;
use weir_nats::position::Epoch;
use weir_nats::{Message, Seq};

use crate::power::archived::Row;
use crate::power::{below, until};
use crate::rig::{Rig, author, room};

/// Its archive. Set by [`Process::start`] only.
const FILE: &str = "WEIR_POWER_FILE";
const SYNCHRONOUS: &str = "WEIR_POWER_SYNCHRONOUS";
/// The nats-server whose log it archives; without it, it makes up its own messages.
const NATS: &str = "WEIR_POWER_NATS";
const STREAMS: usize = 3;
const ROOMS_PER_STREAM: u64 = 20;
const BATCH_MAX_ROWS: u64 = 300;
const DATA_MAX_BYTES: u64 = 900;

/// What a process said before it died.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    /// What it was told is durable, by stream.
    pub(crate) held: HashMap<String, Held>,
    /// Commits it was told of.
    pub(crate) commits: u64,
    /// Errors that an append came to.
    pub(crate) errors: Vec<String>,
}

/// The process. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    said: Arc<Mutex<Said>>,
    listener: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    /// Appends messages of its own to the archive, as fast as it can.
    pub(crate) fn appending(file: &Path, synchronous: Synchronous) -> Self {
        Self::start(file, &[(SYNCHRONOUS, &format!("{synchronous:?}"))])
    }

    /// Archives the log of a nats-server.
    pub(crate) fn archiving(file: &Path, nats: &str) -> Self {
        Self::start(file, &[(NATS, nats)])
    }

    fn start(file: &Path, settings: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "power::process::is_cut_off", "--include-ignored"])
            .args(["--nocapture", "--test-threads=2"])
            .env(FILE, file)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = Arc::<Mutex<Said>>::default();
        let heard = Arc::clone(&said);
        let listener = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                hear(&mut heard.lock().unwrap(), &line);
            }
        });
        Self {
            child,
            said,
            listener: Some(listener),
        }
    }

    /// Waits until it said so many times that something is durable.
    pub(crate) fn until_commits(&self, commits: u64) {
        until("commits", || self.said.lock().unwrap().commits >= commits);
    }

    /// Waits until an append failed.
    pub(crate) fn until_refused(&self) {
        until("an append fails", || {
            !self.said.lock().unwrap().errors.is_empty()
        });
    }

    /// Waits until it said that `stream` is durable beyond `end`.
    pub(crate) fn until_held_beyond(&self, stream: &str, end: Seq) {
        until("more is held", || {
            let said = self.said.lock().unwrap();
            said.held.get(stream).is_some_and(|held| held.end() > end)
        });
    }

    /// What it said until now. Ask before the cut, as a real machine says nothing after it: an
    /// fsync that is under way when ext4 is shut down may say that it is done and is not (7 times in
    /// 155 cuts of plain writes and fsyncs, without SQLite; never when the outer one is shut down).
    pub(crate) fn said(&self) -> Said {
        self.said.lock().unwrap().clone()
    }

    /// Kills it, and returns all that it said.
    pub(crate) fn kill(mut self) -> Said {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // What it said is in the pipe and still to be read.
        self.listener.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.said.lock().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn hear(said: &mut Said, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["held", stream, from, to] => {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let held = said.held.entry(stream.to_owned()).or_default();
            held.add(Seq::new(from), Seq::new(to));
            said.commits += 1;
        }
        ["error", ..] => said.errors.push(line.to_owned()),
        // The test runner's own lines.
        _ => {}
    }
}

/// One line, whole. False once nobody reads it.
fn say(line: &str) -> bool {
    writeln!(std::io::stdout().lock(), "{line}").is_ok()
}

/// The life of the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that the other tests start and cut off; alone it does nothing"]
async fn is_cut_off() {
    let Some(file) = std::env::var_os(FILE).map(PathBuf::from) else {
        return;
    };
    say("");
    if let Ok(nats) = std::env::var(NATS) {
        return Box::pin(archive_the_log(&file, nats)).await;
    }
    let synchronous = match std::env::var(SYNCHRONOUS).as_deref() {
        Ok("Normal") => Synchronous::Normal,
        _ => Synchronous::Full,
    };
    // The cut may come while it is opened.
    let opened = Sqlite::open_with(&file, synchronous);
    let archive = match opened {
        Ok(sqlite) => Archive::Sqlite(Arc::new(sqlite)),
        Err(error) => {
            say(&format!("error {error}"));
            return;
        }
    };
    let streams = (0..STREAMS).map(|n| append_on(archive.clone(), format!("ROOMS_{n}")));
    futures_util::future::join_all(streams).await;
}

/// Goes on from what is held, as the worker does, until an append fails.
async fn append_on(archive: Archive, stream: String) {
    loop {
        let held = archive.held().borrow().get(&stream).map(Held::end);
        let from = held.unwrap_or(Seq::ZERO).get() + 1;
        let to = from + below(BATCH_MAX_ROWS);
        let rows = (from..=to).map(|seq| {
            let row = row(&stream, seq);
            let message = Message {
                seq: Seq::new(seq),
                time_ms: 1_000 + seq as i64,
                id: row.id,
                author: Some(author()),
                tags: Default::default(),
                data: row.data,
            };
            (room(&row.room), message)
        });
        let batch = Batch {
            log: "rooms".into(),
            slot: 0,
            generation: Generation {
                stream: stream.clone(),
                epoch: Epoch::new("epoch").unwrap(),
                from: Seq::new(1),
            },
            rows: rows.collect(),
            refused: Vec::new(),
            held: Held::from_ranges([(from, to)]),
            created: "then".into(),
        };
        match archive.append(batch).await {
            Ok(appended) => {
                assert_eq!(appended.rows, to - from + 1);
                if !say(&format!("held {stream} {from} {to}")) {
                    return;
                }
            }
            Err(error) => {
                say(&format!("error {error}"));
                return;
            }
        }
    }
}

/// The row of a sequence: both processes know it.
pub(crate) fn row(stream: &str, seq: u64) -> Row {
    let mixed = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let bytes = usize::try_from(20 + mixed % DATA_MAX_BYTES).unwrap();
    let text = format!("{stream} {seq} ");
    Row {
        room: format!("chat:{stream} {}", mixed % ROOMS_PER_STREAM),
        id: format!("{stream}-{seq}"),
        data: Bytes::from(text.repeat(bytes / text.len() + 1)),
    }
}

async fn archive_the_log(file: &Path, nats: String) {
    let archive = Archive::sqlite(file).await.unwrap();
    let rig = Rig::beside(nats, archive.known().await.unwrap()).await;
    let _worker = rig.work(&archive);
    let mut held = archive.held();
    loop {
        let lines: Vec<String> = held
            .borrow_and_update()
            .iter()
            .flat_map(|(stream, held)| {
                let ranges = held.ranges().iter();
                ranges.map(move |(from, to)| format!("held {stream} {from} {to}"))
            })
            .collect();
        if !lines.iter().all(|line| say(line)) || held.changed().await.is_err() {
            return;
        }
    }
}
