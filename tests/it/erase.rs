//! Knows: `weir archive erase`: what was ordered to be erased is gone from pages, rings, streams and files, does
//! not come back, and leaves everything else where it is.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::archive::ArchiveAt;
use crate::harness::client::{Client, Joined, Position, publish_body};
use crate::harness::rig::Rig;
use crate::harness::{Rng, heavy, scan, until, within};

/// Commands that may be under way on one socket.
const IN_FLIGHT: usize = 64;
const NEEDLE_BYTES: usize = 16;

/// Texts that are nowhere else, found by the prefix that they share.
struct Texts {
    prefix: String,
    rng: Rng,
}

impl Texts {
    fn new() -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let mut rng = Rng::new(u64::try_from(now.as_nanos() & 0xffff_ffff_ffff).unwrap());
        let prefix = format!("{:016x}", rng.next());
        Self { prefix, rng }
    }

    /// A JSON string that begins with the prefix and a number of its own.
    fn next(&mut self) -> String {
        let fill = "q".repeat(self.rng.below(1_500) as usize);
        format!("\"{}{:016x}{fill}\"", self.prefix, self.rng.next())
    }

    /// The numbers of all texts that lie in any file of a folder.
    fn found_in(&self, folder: &Path) -> HashSet<String> {
        let mut found = HashSet::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                // A file that went meanwhile has nothing.
                let bytes = std::fs::read(path).unwrap_or_default();
                for at in memchr::memmem::find_iter(&bytes, self.prefix.as_bytes()) {
                    let from = at + self.prefix.len();
                    if let Some(number) = bytes.get(from..from + NEEDLE_BYTES) {
                        found.insert(String::from_utf8_lossy(number).into_owned());
                    }
                }
            }
        }
        found
    }

    fn number(&self, text: &str) -> String {
        let from = 1 + self.prefix.len();
        text[from..from + NEEDLE_BYTES].to_owned()
    }

    /// How many of these lie in the archive's files, and how many in the streams'.
    fn count(&self, rig: &Rig, texts: &[String]) -> (usize, usize) {
        let count = |folder: &Path| {
            let found = self.found_in(folder);
            let is_found = |text: &&String| found.contains(&self.number(text));
            texts.iter().filter(is_found).count()
        };
        (count(&rig.weir.data()), count(rig.nats.store()))
    }
}

/// Weir with its archive in a file, whose bytes can be looked at.
async fn servers() -> Rig {
    Rig::servers(0, false, |config| {
        config.archive = ArchiveAt::sqlite();
        config.client.push_str("command_rate_limit = 0\n");
    })
    .await
}

/// What was said, by room, in order.
type Said = BTreeMap<String, Vec<String>>;

async fn say(rig: &Rig, texts: &mut Texts, user: &str, rooms: &[&str], each: usize) -> Said {
    let mut client = rig.client(user).await;
    let mut said = Said::new();
    let mut waiting = Vec::new();
    for n in 0..each * rooms.len() {
        let (room, text) = (rooms[n % rooms.len()], texts.next());
        let body = publish_body(room, &text);
        waiting.push(client.send("publish", &body).await.unwrap());
        said.entry(room.to_owned()).or_default().push(text);
        if waiting.len() == IN_FLIGHT || n + 1 == each * rooms.len() {
            for id in waiting.drain(..) {
                client.reply(id).await.unwrap();
            }
        }
    }
    said
}

async fn until_archived(rig: &Rig) {
    let newest = scan::stream(&rig.nats).await.last().unwrap().offset;
    until("all is archived", Duration::from_secs(60), async || {
        rig.weir.archive().up_to().await >= newest
    })
    .await;
}

/// Runs the command to its end.
async fn erase(rig: &Rig, arguments: &[&str]) -> Output {
    let mut command = rig
        .weir
        .command("archive", &[&["erase"], arguments].concat());
    command.stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    within(
        "the command ends",
        Duration::from_secs(120),
        command.output(),
    )
    .await
    .unwrap()
}

async fn erased(rig: &Rig, arguments: &[&str]) -> String {
    let output = erase(rig, arguments).await;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{arguments:?}:\n{text}");
    String::from_utf8(output.stdout).unwrap()
}

/// A room's pages from its beginning: offsets and texts.
async fn history(client: &mut Client, room: &str) -> Vec<(u64, String)> {
    let top = client.history(room, None, 0, false).await.unwrap();
    let mut since = Position {
        epoch: top.epoch,
        offset: 0,
    };
    let mut all = Vec::new();
    loop {
        let page = client
            .history(room, Some(&since), 100, false)
            .await
            .unwrap();
        for publication in &page.publications {
            since.offset = publication.offset;
            all.push((publication.offset, publication.data.get().to_owned()));
        }
        if page.publications.is_empty() {
            return all;
        }
    }
}

fn texts_of(all: &[(u64, String)]) -> Vec<&str> {
    all.iter().map(|(_, text)| text.as_str()).collect()
}

/// Comes back from `from` with a socket of its own, and reads all that was missed.
async fn recovered(rig: &Rig, room: &str, from: &Position) -> (Joined, Vec<(u64, String)>) {
    let mut client = rig.client("away").await;
    let mut joined = client.subscribe(room, Some(from)).await.unwrap();
    let mut missed: Vec<_> = std::mem::take(&mut joined.publications)
        .into_iter()
        .map(|publication| (publication.offset, publication.data.get().to_owned()))
        .collect();
    while let Some((_, publication)) = client.publication(Duration::from_millis(700)).await {
        missed.push((publication.offset, publication.data.get().to_owned()));
    }
    (joined, missed)
}

/// Somebody who goes on talking, and what that was.
struct Talk {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Talk {
    async fn start(rig: &Rig, room: &'static str) -> Self {
        let mut client = rig.client("carl").await;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut said = Vec::new();
            while !told.load(Ordering::Acquire) {
                let text = format!("\"talk {}\"", said.len());
                client.publish(room, &text).await.unwrap();
                said.push(text);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            said
        });
        Self { stop, task }
    }

    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Release);
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_erased_everywhere_and_nothing_else_moves() {
    let _turn = heavy().await;
    let rig = servers().await;
    let mut texts = Texts::new();
    let (gone, other) = ("chat:gone", "chat:other");
    let mut listener = rig.client("listener").await;
    listener.subscribe(gone, None).await.unwrap();
    let said = say(&rig, &mut texts, "ann", &[gone, other], 300).await;
    let mut client = rig.client("reader").await;
    let before = (
        history(&mut client, gone).await,
        history(&mut client, other).await,
    );
    assert_eq!(texts_of(&before.0), said[gone]);
    // Behind the ring, and in it.
    let top = client.history(gone, None, 0, false).await.unwrap();
    let at = |nth: usize| Position {
        epoch: top.epoch.clone(),
        offset: before.0[nth].0,
    };
    let (early, late) = (at(10), at(290));
    until_archived(&rig).await;
    let all = said[gone].len();
    assert_eq!(
        texts.count(&rig, &said[gone]),
        (all, all),
        "the scan finds what is there"
    );

    let talk = Talk::start(&rig, other).await;
    let out = erased(
        &rig,
        &["--room", gone, "--yes", "--reason", "a court said so"],
    )
    .await;
    let talked = talk.end().await;
    assert!(out.contains(&format!("{all} rows erased")), "{out}");
    assert!(out.contains(&format!("{all} messages erased")), "{out}");
    assert!(out.contains("in force  in 1 running processes"), "{out}");

    assert_eq!(
        texts.count(&rig, &said[gone]),
        (0, 0),
        "erased bytes are left"
    );
    assert!(history(&mut client, gone).await.is_empty());
    let other_now = history(&mut client, other).await;
    assert_eq!(
        other_now[..before.1.len()],
        before.1,
        "other messages moved"
    );
    assert_eq!(texts_of(&other_now[before.1.len()..]), talked);

    // Live goes on, with offsets above all that was.
    client.publish(gone, "\"after\"").await.unwrap();
    let newest = loop {
        let (_, publication) = listener.publication(Duration::from_secs(10)).await.unwrap();
        if publication.data.get() == "\"after\"" {
            break publication.offset;
        }
    };
    assert!(newest > before.0.last().unwrap().0);
    let only = vec![(newest, "\"after\"".to_owned())];
    assert_eq!(history(&mut client, gone).await, only);
    for from in [&early, &late] {
        let (joined, missed) = recovered(&rig, gone, from).await;
        assert!(joined.recovered, "from {from:?}: {joined:?}");
        assert_eq!(missed, only, "from {from:?}");
    }

    // The same from a process that has nothing in memory.
    let mut rig = rig;
    rig.weir.kill();
    rig.weir.spawn();
    rig.weir.until_ready().await;
    let mut client = rig.client("reader").await;
    assert_eq!(history(&mut client, gone).await, only);
    let (joined, missed) = recovered(&rig, gone, &early).await;
    assert!(joined.recovered && missed == only, "{joined:?}");

    let list = erased(&rig, &["--list"]).await;
    for word in ["room chat:gone", "by ", "a court said so", "; done 20"] {
        assert!(list.contains(word), "{word}: {list}");
    }
    let audit = rig.weir.log();
    assert!(audit.contains("erasure is in force") && !audit.contains(&texts.prefix));
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_messages_are_erased_and_those_around_them_stay() {
    let _turn = heavy().await;
    let rig = servers().await;
    let mut texts = Texts::new();
    let rooms = ["chat:one", "chat:two é"];
    let mut anns = Vec::new();
    for _ in 0..10 {
        say(&rig, &mut texts, "bob", &rooms, 12).await;
        let said = say(&rig, &mut texts, "ann b", &rooms, 5).await;
        anns.extend(said.into_values().flatten());
    }
    let mut client = rig.client("reader").await;
    let mut expected = BTreeMap::new();
    let mut positions = Vec::new();
    for room in rooms {
        let all = history(&mut client, room).await;
        let is_kept = |(_, text): &&(u64, String)| !anns.contains(text);
        let top = client.history(room, None, 0, false).await.unwrap();
        for nth in [0, 60, all.len() - 3] {
            positions.push((
                room,
                Position {
                    epoch: top.epoch.clone(),
                    offset: all[nth].0,
                },
            ));
        }
        expected.insert(
            room,
            all.iter().filter(is_kept).cloned().collect::<Vec<_>>(),
        );
    }
    until_archived(&rig).await;
    assert_eq!(texts.count(&rig, &anns), (100, 100));
    let talk = Talk::start(&rig, "chat:talk").await;
    let out = erased(&rig, &["--user", "ann b", "--yes"]).await;
    talk.end().await;
    assert!(
        out.contains("100 rows erased") && out.contains("100 messages erased"),
        "{out}"
    );
    assert_eq!(texts.count(&rig, &anns), (0, 0), "erased bytes are left");
    // She may go on, and that stays.
    let later = say(&rig, &mut texts, "ann b", &rooms, 2).await;
    for room in rooms {
        let all = history(&mut client, room).await;
        let (old, new) = all.split_at(expected[room].len());
        assert_eq!(old, expected[room], "{room}");
        assert_eq!(texts_of(new), later[room]);
        expected.insert(room, all);
    }
    for (room, from) in &positions {
        let (joined, missed) = recovered(&rig, room, from).await;
        let after: Vec<_> = expected[room]
            .iter()
            .filter(|(offset, _)| *offset > from.offset)
            .cloned()
            .collect();
        assert!(joined.recovered, "{room} from {from:?}: {joined:?}");
        assert_eq!(missed, after, "{room} from {from:?}");
    }
    let refused = erase(&rig, &["--user", "", "--yes"]).await;
    assert_eq!(refused.status.code(), Some(64));
    let unasked = erase(&rig, &["--user", "bob"]).await;
    assert_eq!(unasked.status.code(), Some(64), "nobody said yes");
    assert_eq!(history(&mut client, rooms[0]).await, expected[rooms[0]]);
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_was_killed_is_taken_up_again() {
    let _turn = heavy().await;
    let rig = servers().await;
    let mut texts = Texts::new();
    let said = say(&rig, &mut texts, "ann", &["chat:gone"], 4_000).await;
    until_archived(&rig).await;
    let name = scan::generations(&rig.nats).await.pop().unwrap().stream;
    let js = rig.nats.jetstream().await;
    let left = async || {
        let mut stream = js.get_stream(&name).await.unwrap();
        stream.info().await.unwrap().state.messages
    };
    let mut command = rig
        .weir
        .command("archive", &["erase", "--user", "ann", "--yes"]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    until("it is half way", Duration::from_secs(60), async || {
        left().await < 3_000
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    let half = left().await;
    assert!(
        half > 100,
        "it was not killed in the middle: {half} are left"
    );
    let list = erased(&rig, &["--list"]).await;
    assert!(list.contains("open: the streams are not done"), "{list}");
    // Nobody is shown what is still there.
    let mut client = rig.client("reader").await;
    assert!(history(&mut client, "chat:gone").await.is_empty());
    erased(&rig, &["--resume"]).await;
    assert_eq!(left().await, 0);
    assert_eq!(texts.count(&rig, &said["chat:gone"]), (0, 0));
    let list = erased(&rig, &["--list"]).await;
    // The page that it was killed in is erased and not counted.
    assert!(
        list.contains("4000 rows, ") && list.contains("; done"),
        "{list}"
    );
    let nothing = erased(&rig, &["--resume"]).await;
    assert!(nothing.contains("every order is carried out"), "{nothing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_from_before_do_not_bring_it_back() {
    let _turn = heavy().await;
    let mut rig = servers().await;
    let mut texts = Texts::new();
    let (gone, other) = ("chat:gone", "chat:other");
    let said = say(&rig, &mut texts, "ann", &[gone], 200).await;
    say(&rig, &mut texts, "bob", &[other, gone], 100).await;
    until_archived(&rig).await;
    let mut client = rig.client("reader").await;
    let kept = history(&mut client, other).await;
    let of_bob: Vec<_> = history(&mut client, gone).await.split_off(200);
    let top = client.history(gone, None, 0, false).await.unwrap();
    let start = Position {
        epoch: top.epoch,
        offset: 0,
    };
    // Copies of both, as they are now.
    rig.weir.stop();
    let archive = std::fs::read(rig.weir.archive().file()).unwrap();
    let wal = rig.weir.archive().file().with_extension("db-wal");
    assert!(!wal.exists() || std::fs::metadata(&wal).unwrap().len() == 0);
    let store = rig.nats.copy_store();
    rig.weir.spawn();
    rig.weir.until_ready().await;
    erased(&rig, &["--user", "ann", "--yes"]).await;
    assert_eq!(texts.count(&rig, &said[gone]), (0, 0));

    // The archive's copy comes back: the order in the bucket is carried out in it again.
    let put_archive_back = |rig: &Rig| {
        for suffix in ["db-wal", "db-shm"] {
            // They are there or not, as the last process left them.
            let _ = std::fs::remove_file(rig.weir.archive().file().with_extension(suffix));
        }
        std::fs::write(rig.weir.archive().file(), &archive).unwrap();
    };
    rig.weir.stop();
    put_archive_back(&rig);
    assert_eq!(texts.count(&rig, &said[gone]), (200, 0));
    rig.weir.spawn();
    rig.weir.until_ready().await;
    let mut client = rig.client("reader").await;
    assert_eq!(
        history(&mut client, gone).await,
        of_bob,
        "shown before it was erased again"
    );
    until("it is erased again", Duration::from_secs(30), async || {
        texts.count(&rig, &said[gone]) == (0, 0)
    })
    .await;

    // JetStream's copy comes back, without the order: the archive has it on record. Its held range
    // is lost, so that everything is delivered to it once more.
    rig.weir.stop();
    rig.nats.stop();
    rig.nats.put_back(&store);
    rig.nats.spawn().await;
    let file = rusqlite::Connection::open(rig.weir.archive().file()).unwrap();
    file.execute_batch("DELETE FROM held; DELETE FROM messages;")
        .unwrap();
    drop(file);
    assert_eq!(texts.count(&rig, &said[gone]).1, 200, "the copy has it");
    rig.weir.spawn();
    rig.weir.until_ready().await;
    let mut client = rig.client("reader").await;
    assert_eq!(history(&mut client, gone).await, of_bob);
    assert_eq!(history(&mut client, other).await, kept);
    until(
        "the rest is archived again",
        Duration::from_secs(30),
        async || rig.weir.archive().rows().await.len() == 200,
    )
    .await;
    assert_eq!(texts.count(&rig, &said[gone]), (0, 200));
    let (joined, missed) = recovered(&rig, gone, &start).await;
    assert!(joined.recovered, "{joined:?}");
    assert_eq!(missed, of_bob);
    let list = erased(&rig, &["--list"]).await;
    assert!(list.contains("user ann"), "{list}");
    until(
        "the order is in the bucket again",
        Duration::from_secs(20),
        async || {
            let output = erase(&rig, &["--again"]).await;
            output.status.success() && texts.count(&rig, &said[gone]) == (0, 0)
        },
    )
    .await;
    let (joined, missed) = recovered(&rig, gone, &start).await;
    assert!(joined.recovered && missed == of_bob, "{joined:?}");
    rig.require_calm();
}

/// That nothing is left after them is shown beside the archive itself (history/tests/it/cassandra/erased_files.rs).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_that_are_left_in_cassandra_are_named_at_the_end() {
    let _turn = heavy().await;
    let rig = Rig::servers(0, false, |config| config.archive = ArchiveAt::cassandra()).await;
    let mut texts = Texts::new();
    let (gone, other) = ("chat:gone", "chat:other");
    let said = say(&rig, &mut texts, "ann", &[gone, other], 20).await;
    until_archived(&rig).await;
    let out = erased(&rig, &["--room", gone, "--yes"]).await;
    assert!(out.contains("20 rows erased"), "{out}");
    let (_, left) = out.split_once("\nleft  ").expect(&out);
    for step in [
        "nodetool repair --full",
        "nodetool flush",
        "nodetool garbagecollect --granularity CELL",
        "nodetool clearsnapshot --all",
        "nodetool drain",
        "docs/erasure.md",
    ] {
        assert!(left.contains(step), "{step}: {out}");
    }
    let mut client = rig.client("reader").await;
    assert!(history(&mut client, gone).await.is_empty());
    assert_eq!(
        texts_of(&history(&mut client, other).await),
        said[other],
        "others stay"
    );
    rig.require_calm();
}
