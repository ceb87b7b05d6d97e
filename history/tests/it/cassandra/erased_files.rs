//! Knows: that the steps that the command names take every byte of what was erased out of a node's files: data, snapshots,
//! commit log. Never: how rows are overwritten (erase.rs is about that, for both archives).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use weir_history::Archive;
use weir_history::archive::{Batch, Quarantined};
use weir_nats::erasure::What;
use weir_nats::message::stamp;
use weir_nats::{Author, Message, RoomName, Seq};

use super::{LOG, batch, config_at, message, offsets, open, query};
use crate::erase::order;
use crate::node::{Node, cql};
use crate::rig::{NODE_WITHIN, Rng, STREAM, author, ports, room};

/// The one that docs/erasure.md names, so that its commands can be compared.
const KEYSPACE: &str = "weir";
const DOCS: &str = include_str!("../../../../docs/erasure.md");
/// Messages that become rows, and those that come into quarantine behind them, of each batch.
const ROWS: u64 = 150;
const REFUSED: u64 = 3;
const BATCH: u64 = ROWS + REFUSED;
const ROOMS: [&str; 3] = ["chat:gone", "chat:later", "chat:kept"];
/// What is looked for: a row is in a compressed file piece by piece, but bytes without any pattern are not changed by that.
const PIECE: usize = 8;
const PAGE: usize = 4096;

/// The unmistakable bytes of messages, and which message each piece of them is of.
struct Marks {
    rng: Rng,
    of_piece: HashMap<u64, u64>,
    /// By the first 20 bits of a piece: whether there is one like it.
    maybe: Vec<bool>,
}

/// In which kind of file which messages were found, by their sequences.
type Found = BTreeMap<&'static str, BTreeSet<u64>>;

impl Marks {
    fn new() -> Self {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).unwrap();
        Self {
            rng: Rng::new(u64::from_le_bytes(seed)),
            of_piece: HashMap::new(),
            maybe: vec![false; 1 << 20],
        }
    }

    /// A payload for the message at `seq`, nowhere with a zero, as unused parts of files are.
    fn payload(&mut self, seq: u64) -> Bytes {
        let pieces = 8 + self.rng.below(180) as usize;
        let bytes: Vec<u8> = (0..pieces * PIECE)
            .map(|_| 1 + u8::try_from(self.rng.below(255)).unwrap())
            .collect();
        for piece in bytes.chunks_exact(PIECE) {
            let piece = u64::from_le_bytes(piece.try_into().unwrap());
            self.of_piece.insert(piece, seq);
            self.maybe[(piece >> 44) as usize] = true;
        }
        bytes.into()
    }

    /// Looks through every file below a folder for any piece of any message.
    fn find(&self, folder: &Path) -> Found {
        let mut found = Found::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            // A folder or a file that went meanwhile has nothing.
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(bytes) = std::fs::read(&path) {
                    let seqs = self.find_in(&bytes);
                    if !seqs.is_empty() {
                        found.entry(kind_of(&path)).or_default().extend(seqs);
                    }
                }
            }
        }
        found
    }

    fn find_in(&self, bytes: &[u8]) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut at = 0;
        while let Some(piece) = bytes.get(at..at + PIECE) {
            if at % PAGE == 0 && bytes[at..].starts_with(&[0; PAGE]) {
                at += PAGE;
                continue;
            }
            let piece = u64::from_le_bytes(piece.try_into().unwrap());
            if self.maybe[(piece >> 44) as usize] {
                found.extend(self.of_piece.get(&piece));
            }
            at += 1;
        }
        found
    }
}

fn kind_of(path: &Path) -> &'static str {
    let has = |name: &str| path.iter().any(|part| part == name);
    match () {
        () if has("snapshots") => "snapshots",
        () if has("data") => "data",
        () if has("commitlog") => "commit log",
        () => "elsewhere",
    }
}

/// What was said, and what of it must be gone.
#[derive(Default)]
struct Said {
    batches: Vec<Batch>,
    /// Sequence, room and author of each.
    all: Vec<(u64, &'static str, &'static str)>,
    gone: BTreeSet<u64>,
}

impl Said {
    /// One more batch: rows of three rooms by two authors, and three that come into quarantine.
    fn more(&mut self, marks: &mut Marks) -> Batch {
        let first = self.up_to() + 1;
        let mut rows: Vec<(RoomName, Message)> = Vec::new();
        for seq in first..first + ROWS {
            let in_room = ROOMS[(seq % 3) as usize];
            let user = if seq % 5 == 0 { "ann" } else { "bob" };
            let time_ms = i64::try_from(seq).unwrap();
            let said = message(seq, time_ms, &format!("id{seq}"), &marks.payload(seq));
            let author = Some(by(user));
            rows.push((room(in_room), Message { author, ..said }));
            self.all.push((seq, in_room, user));
        }
        let mut next = batch("one", STREAM, rows, (first, first + BATCH - 1));
        let strangers = [
            (ROOMS[0], "bob"),
            ("chat:lost", "ann"),
            ("chat:lost", "bob"),
        ];
        for (seq, (in_room, user)) in (first + ROWS..).zip(strangers) {
            let headers = stamp(&room(in_room), &by(user), &BTreeMap::new(), "x");
            next.refused.push(Quarantined {
                seq: Seq::new(seq),
                subject: room(in_room).stored_subject(LOG),
                headers: headers
                    .iter()
                    .map(|(name, values)| format!("{name}: {}\n", values[0]))
                    .collect(),
                data: marks.payload(seq),
                reason: "of no room".to_owned(),
            });
            self.all.push((seq, in_room, user));
        }
        self.batches.push(next.clone());
        next
    }

    fn up_to(&self) -> u64 {
        self.all.len() as u64
    }

    /// Erases all that was said until now of a room or by a user.
    async fn erase(&mut self, archive: &Archive, what: What) {
        let is_meant = |(_, room, user): &&(u64, &str, &str)| match &what {
            What::Room(name) => name == room,
            What::User(name) => name == user,
        };
        let meant = self.all.iter().filter(is_meant);
        self.gone.extend(meant.map(|(seq, ..)| *seq));
        let order = order(what, self.up_to());
        archive.erase(&order, |_| {}).await.unwrap();
    }

    fn kept(&self) -> BTreeSet<u64> {
        let kept = self.all.iter().map(|(seq, ..)| *seq);
        kept.filter(|seq| !self.gone.contains(seq)).collect()
    }

    /// The rows of a room that stay: offset and payload.
    fn kept_in(&self, name: &str) -> Vec<(u64, Bytes)> {
        let rows = self.batches.iter().flat_map(|batch| &batch.rows);
        rows.filter(|(room, message)| {
            room.channel() == name && !self.gone.contains(&message.seq.get())
        })
        .map(|(_, message)| (message.seq.get(), message.data.clone()))
        .collect()
    }
}

fn by(user: &str) -> Author {
    Author {
        user: user.to_owned(),
        ..author()
    }
}

/// Every room has what stays, at its offset, and nothing else; and so has the quarantine.
async fn require_what_stays(archive: &Archive, said: &Said) {
    for name in ROOMS {
        let kept = said.kept_in(name);
        let room = room(name);
        for reverse in [false, true] {
            let mut found = offsets(archive, &room, reverse, 20).await;
            found.sort_unstable();
            assert!(found.iter().eq(kept.iter().map(|(seq, _)| seq)), "{name}");
        }
        let page = archive.page(query(&room, (0, i64::MAX as u64), false, 1_000));
        let page = page.await.unwrap().messages;
        let page = page.iter().map(|one| (one.seq.get(), one.data.clone()));
        assert!(page.eq(kept), "{name}: a payload changed");
    }
    let strangers = said.batches.iter().flat_map(|batch| &batch.refused);
    let strangers = strangers.filter(|one| !said.gone.contains(&one.seq.get()));
    let strangers: Vec<_> = strangers.map(|one| (one.seq, &one.data)).collect();
    let quarantined = archive.quarantined(None, 100).await.unwrap();
    let quarantined = quarantined.iter().map(|(_, one)| (one.seq, &one.data));
    assert_eq!(quarantined.collect::<Vec<_>>(), strangers);
}

/// The commands among what is left to do, without the word nodetool.
fn commands(left_to_do: &str) -> Vec<&str> {
    let lines = left_to_do.lines();
    lines.filter_map(|l| l.strip_prefix("nodetool ")).collect()
}

fn nodetool(node: &Node, command: &str) {
    node.nodetool(&command.split(' ').collect::<Vec<_>>());
}

fn segments(node: &Node) -> BTreeSet<std::ffi::OsString> {
    let folder = std::fs::read_dir(node.folder().join("commitlog")).unwrap();
    folder.map(|entry| entry.unwrap().file_name()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_left_in_a_nodes_files_after_the_steps_that_are_named() {
    let jmx = ports::free_port().to_string();
    let mut node = Node::start(&["--jmx-port", &jmx]);
    let config = config_at(vec![node.address()], KEYSPACE, 1);
    let archive = open(&config).await;
    let (mut marks, mut said) = (Marks::new(), Said::default());
    // Each makes data files of what is in memory.
    for command in ["flush weir", "snapshot -t before weir"] {
        archive.append(said.more(&mut marks)).await.unwrap();
        nodetool(&node, command);
    }
    let flushed = said.kept();
    archive.append(said.more(&mut marks)).await.unwrap();

    // The scan finds all of it, wherever it is.
    let before = Found::from([
        ("data", flushed.clone()),
        ("snapshots", flushed),
        ("commit log", said.kept()),
    ]);
    assert!(marks.find(node.folder()) == before, "the scan is blind");
    for what in [What::Room(ROOMS[0].into()), What::User("ann".into())] {
        said.erase(&archive, what).await;
    }
    // What is said later stays.
    archive.append(said.more(&mut marks)).await.unwrap();
    require_what_stays(&archive, &said).await;
    let still = marks.find(node.folder());
    let has_all = |(kind, all): (&&str, &BTreeSet<u64>)| still[kind].is_superset(all);
    assert!(before.iter().all(has_all), "no step is needed");

    let left_to_do = archive.left_to_do();
    for command in commands(&left_to_do) {
        assert!(DOCS.contains(&format!("`nodetool {command}`")), "{command}");
        nodetool(&node, command);
    }
    assert!(left_to_do.contains("stop the node and start it again"));
    drop(archive);
    let old = segments(&node);
    node.stop();
    node.restart();
    assert!(segments(&node).is_disjoint(&old), "the commit log is anew");
    assert_eq!(
        marks.find(node.folder()),
        Found::from([("data", said.kept())])
    );

    // The streams are read again, by a process that knows nothing.
    let archive = open(&config).await;
    require_what_stays(&archive, &said).await;
    for batch in &said.batches {
        let appended = archive.append(batch.clone()).await.unwrap();
        let seqs = batch.rows.iter().map(|(_, message)| message.seq);
        let seqs = seqs.chain(batch.refused.iter().map(|one| one.seq));
        let gone = seqs.filter(|seq| said.gone.contains(&seq.get())).count();
        assert_eq!((appended.rows, appended.erased), (0, gone as u64));
    }
    require_what_stays(&archive, &said).await;
    let back = |said: &Said| -> Vec<u64> {
        let found = marks.find(node.folder()).into_values().flatten();
        found.filter(|seq| said.gone.contains(seq)).collect()
    };
    assert!(back(&said).is_empty(), "it came back");

    // The other way to turn the commit log over, while the node runs.
    said.erase(&archive, What::Room(ROOMS[1].into())).await;
    assert!(!back(&said).is_empty());
    let is_needed =
        |command: &&str| ["flush", "garbagecollect"].contains(&command.split(' ').next().unwrap());
    for command in commands(&left_to_do).into_iter().filter(is_needed) {
        nodetool(&node, command);
    }
    let old = segments(&node);
    for statement in [
        "CREATE TABLE weir.turnover (key int PRIMARY KEY)",
        "DROP TABLE weir.turnover",
    ] {
        assert!(DOCS.contains(statement), "{statement}");
        cql::query(&node.address(), statement, cql::ONE).unwrap();
    }
    let deadline = tokio::time::Instant::now() + NODE_WITHIN;
    while !back(&said).is_empty() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?}",
            marks.find(node.folder())
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!segments(&node).is_superset(&old), "old segments are gone");
    require_what_stays(&archive, &said).await;
}
