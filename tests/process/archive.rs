//! Knows: `weir archive` from outside: what each command says and leaves behind, also when it is killed in the middle and while
//! Weir publishes. Never: how a command does it.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of #[test]")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;
use weir_history::Archive;
use weir_history::archive::{Batch, Quarantined};
use weir_history::held::Held;
use weir_history::listing::{ListedRow, StreamRecord};
use weir_nats::placement::Generation;
use weir_nats::{Author, Door, Epoch, Message, RoomName, Seq};

use crate::node::{Keyspace, cql, shared_node};
use crate::weir::{Weir, until};

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn succeeds(command: &mut Command) -> Ran {
    let ran = run(command);
    assert_eq!(ran.code, Some(0), "{command:?}\n{}\n{}", ran.out, ran.err);
    ran
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

fn archive_of(weir: &Weir) -> PathBuf {
    weir.data().join("archive.db")
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Everything that an archive has.
#[derive(Debug, PartialEq)]
struct All {
    streams: Vec<StreamRecord>,
    rows: Vec<(String, RoomName, ListedRow)>,
    quarantine: Vec<(String, u64, String, String, Bytes, String)>,
    held: BTreeMap<String, Vec<(u64, u64)>>,
}

fn read_all(path: &Path) -> All {
    block_on(async {
        let archive = Archive::sqlite(path).await.unwrap();
        let mut rows = Vec::new();
        for one in archive.rooms(None, u32::MAX).await.unwrap() {
            let listed = archive
                .rows_of(
                    one.log.clone(),
                    one.room.clone(),
                    None,
                    u32::MAX - 1,
                    u32::MAX,
                )
                .await
                .unwrap();
            let of_room = listed.rows.into_iter();
            rows.extend(of_room.map(|row| (one.log.clone(), one.room.clone(), row)));
        }
        let kept = archive.quarantined(None, 1_000).await.unwrap().into_iter();
        let kept = kept.map(|(stream, one)| {
            (
                stream,
                one.seq.get(),
                one.subject,
                one.headers,
                one.data,
                one.reason,
            )
        });
        let held = archive.held_now().await.unwrap().into_iter();
        All {
            streams: archive.streams().await.unwrap(),
            rows,
            quarantine: kept.collect(),
            held: held
                .map(|(stream, held)| (stream, held.ranges().to_vec()))
                .collect(),
        }
    })
}

/// An archive of two epochs that share offsets, holes, odd names, any bytes and a quarantine.
fn build(path: &Path, messages: u64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let names = [
        "chat:lobby",
        "chat:'; DROP TABLE rooms; --",
        "聊天",
        "a\u{0}b",
        "#x",
    ];
    let rooms: Vec<RoomName> = names
        .iter()
        .map(|name| RoomName::parse(name).unwrap())
        .collect();
    let message = |seq: u64, epoch: &str| Message {
        seq: Seq::new(seq),
        time_ms: 1_700_000_000_000 + i64::try_from(seq).unwrap(),
        id: format!("{epoch} {seq}"),
        author: (!seq.is_multiple_of(5)).then(|| Author {
            user: format!("user {seq}"),
            client: "c\"1".into(),
            info: seq
                .is_multiple_of(2)
                .then(|| Bytes::from_static(b"{\"name\":\"\xc3\xa9\"}")),
            door: if seq.is_multiple_of(3) {
                Door::Nats
            } else {
                Door::Socket
            },
        }),
        tags: if seq.is_multiple_of(7) {
            [("k".into(), "v\n".into())].into()
        } else {
            BTreeMap::new()
        },
        data: if seq.is_multiple_of(11) {
            (0..=255).collect()
        } else {
            format!("{{\"n\":{seq},\"epoch\":\"{epoch}\",\"text\":\"é \\\" \\u0000\"}}").into()
        },
    };
    block_on(async {
        let archive = Archive::sqlite(path).await.unwrap();
        let half = messages / 2;
        for (stream, epoch, from, to) in [
            ("ROOMS_0", "zzz", 1, half + 20),
            ("ROOMS_0_1", "aaa", half + 1, messages),
        ] {
            let seqs: Vec<u64> = (from..=to).collect();
            for part in seqs.chunks(5_000) {
                let rows = part.iter().filter(|seq| **seq % 13 != 0).map(|seq| {
                    let room = usize::try_from(*seq).unwrap() % rooms.len();
                    (rooms[room].clone(), message(*seq, epoch))
                });
                let refused = part.iter().filter(|seq| **seq % 1_300 == 0).map(|seq| {
                    let message = message(*seq, epoch);
                    Quarantined::of_row("rooms", &rooms[0], &message, &"a test's")
                });
                let ranges = part
                    .chunks(2_000)
                    .map(|few| (few[0], few[few.len() - 1] - 1));
                let batch = Batch {
                    log: "rooms".into(),
                    slot: 0,
                    generation: Generation {
                        stream: stream.into(),
                        epoch: Epoch::new(epoch).unwrap(),
                        from: Seq::new(from),
                    },
                    rows: rows.collect(),
                    refused: refused.collect(),
                    held: Held::from_ranges(ranges),
                    created: format!("{stream} was created"),
                };
                archive.append(batch).await.unwrap();
            }
        }
    });
}

#[test]
fn what_is_exported_is_imported_as_it_was() {
    let (from, to) = (Weir::new(), Weir::new());
    build(&archive_of(&from), 9_000);
    let file = from.folder().join("export.jsonl");
    let ran = succeeds(&mut from.archive("export", &["--out", path(&file)]));
    assert!(
        ran.err
            .contains("rows and 6 messages in quarantine are exported"),
        "{}",
        ran.err
    );
    let again = run(&mut from.archive("export", &["--out", path(&file)]));
    assert_eq!(again.code, Some(1));
    assert!(
        again.err.contains("add --resume to go on with it"),
        "{}",
        again.err
    );

    succeeds(&mut to.archive("import", &[path(&file)]));
    let all = read_all(&archive_of(&from));
    assert!(all.rows.len() > 8_000 && all.held.len() == 2);
    let shared = all_offsets_shared(&archive_of(&from));
    assert!(shared > 10, "two epochs at one offset");
    assert!(read_all(&archive_of(&to)) == all, "the import differs");
    let ran = succeeds(&mut to.archive("import", &[path(&file)]));
    assert!(
        ran.err
            .contains(" imported, 0 of them were not there before"),
        "{}",
        ran.err
    );
    assert!(read_all(&archive_of(&to)) == all);

    // The same file comes out again, but for the archive's id in its first line.
    let back = to.folder().join("back.jsonl");
    succeeds(&mut to.archive("export", &["--out", path(&back)]));
    let rest = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        text.split_once('\n').unwrap().1.to_owned()
    };
    assert!(rest(&file) == rest(&back));

    // One room, on standard output: its rows, and no word of what is held.
    let ran = succeeds(&mut from.archive("export", &["--room", "聊天"]));
    assert!(ran.out.lines().count() > 1_000);
    for line in ran.out.lines().filter(|line| line.starts_with("{\"row\"")) {
        assert!(line.contains("\"room\":\"聊天\""));
    }
    assert!(!ran.out.contains("{\"held\":{") && ran.out.contains("{\"end\":{"));

    // A file without its end proves nothing.
    let cut = to.folder().join("cut.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let end = text.find("{\"end\"").unwrap();
    std::fs::write(&cut, &text[..end]).unwrap();
    let third = Weir::new();
    let ran = run(&mut third.archive("import", &[path(&cut)]));
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("is cut"), "{}", ran.err);
    let partly = read_all(&archive_of(&third));
    assert!(partly.rows == all.rows && partly.held.is_empty());

    // Two histories are not mixed.
    let other = Weir::new();
    build(&archive_of(&other), 100);
    let sql = "UPDATE streams SET epoch = 'other' WHERE stream = 'ROOMS_0'";
    Connection::open(archive_of(&other))
        .unwrap()
        .execute_batch(sql)
        .unwrap();
    let ran = run(&mut other.archive("import", &[path(&file)]));
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("two histories"), "{}", ran.err);
}

#[test]
fn an_export_that_was_stopped_anywhere_goes_on_to_the_same_file() {
    let weir = Weir::new();
    build(&archive_of(&weir), 4_000);
    let whole = weir.folder().join("whole.jsonl");
    succeeds(&mut weir.archive("export", &["--out", path(&whole)]));
    let bytes = std::fs::read(&whole).unwrap();
    let line_ends: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
    let last = line_ends.len() - 1;
    let part = weir.folder().join("part.jsonl");
    // In the first lines, in rows, and in each of the last lines: after a line, and within the next.
    for line in [
        0,
        1,
        2,
        3,
        4,
        1_000,
        2_500,
        last - 6,
        last - 4,
        last - 3,
        last - 2,
        last - 1,
        last,
    ] {
        for more in [1, 9] {
            let length = (line_ends[line] + more).min(bytes.len());
            std::fs::write(&part, &bytes[..length]).unwrap();
            succeeds(&mut weir.archive("export", &["--resume", "--out", path(&part)]));
            assert!(
                std::fs::read(&part).unwrap() == bytes,
                "cut in line {line}, at {length}"
            );
        }
    }
    std::fs::remove_file(&part).unwrap();
    succeeds(&mut weir.archive("export", &["--resume", "--out", path(&part)]));
    assert!(
        std::fs::read(&part).unwrap() == bytes,
        "begun with --resume"
    );
    let other = Weir::new();
    build(&archive_of(&other), 100);
    let ran = run(&mut other.archive("export", &["--resume", "--out", path(&part)]));
    assert_eq!(ran.code, Some(0), "it is complete: {}", ran.err);
    std::fs::write(&part, &bytes[..bytes.len() / 2]).unwrap();
    let ran = run(&mut other.archive("export", &["--resume", "--out", path(&part)]));
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("an export of another archive"),
        "{}",
        ran.err
    );
}

#[test]
fn an_export_and_an_import_that_are_killed_go_on_where_they_were() {
    let (from, to) = (Weir::new(), Weir::new());
    build(&archive_of(&from), 40_000);
    let (whole, part) = (from.folder().join("whole"), from.folder().join("part"));
    succeeds(&mut from.archive("export", &["--out", path(&whole)]));
    let spawn = |command: &mut Command| {
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut export = spawn(&mut from.archive("export", &["--out", path(&part)]));
    until("a part of the export", || {
        std::fs::metadata(&part).is_ok_and(|part| part.len() > 1 << 20)
    });
    export.kill().unwrap();
    export.wait().unwrap();
    let length = std::fs::metadata(&part).unwrap().len();
    assert!(
        length < std::fs::metadata(&whole).unwrap().len(),
        "it was too fast to be killed"
    );
    succeeds(&mut from.archive("export", &["--resume", "--out", path(&part)]));
    assert!(std::fs::read(&part).unwrap() == std::fs::read(&whole).unwrap());

    let state = from.folder().join("whole.import");
    let mut import = spawn(&mut to.archive("import", &[path(&whole)]));
    until("a part of the import", || state.exists());
    import.kill().unwrap();
    import.wait().unwrap();
    assert!(state.exists(), "it was too fast to be killed");
    assert!(
        read_all(&archive_of(&to)).held.is_empty(),
        "nothing is held before all rows are there"
    );
    let ran = succeeds(&mut to.archive("import", &[path(&whole)]));
    assert!(ran.err.contains("goes on behind row "), "{}", ran.err);
    assert!(!state.exists());
    assert!(read_all(&archive_of(&to)) == read_all(&archive_of(&from)));
}

fn status(weir: &Weir) -> (Option<i32>, serde_json::Value) {
    let ran = run(&mut weir.archive("status", &["--json"]));
    let json = serde_json::from_str(&ran.out);
    let json = json.unwrap_or_else(|error| panic!("{error}: {}\n{}", ran.out, ran.err));
    (ran.code, json)
}

fn is_archived(weir: &Weir, last: u64) {
    until("everything archived", || {
        let (_, status) = status(weir);
        let held = status["streams"][0]["held"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        held.last()
            .is_some_and(|range| range[1].as_u64() >= Some(last))
    });
}

fn texts(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("{{\"text\":\"hello {n}\"}}"))
}

#[test]
fn status_says_how_far_behind_and_what_is_missing() {
    let mut weir = Weir::new();
    let none = run(&mut weir.archive("status", &[]));
    assert_eq!(none.code, Some(1));
    assert!(none.err.contains("there is no archive at"), "{}", none.err);
    assert!(!archive_of(&weir).exists(), "looking makes nothing");

    weir.up();
    let offsets = weir.say_many("chat.lobby", texts(200));
    let last = *offsets.last().unwrap();
    is_archived(&weir, last);
    let (code, now) = status(&weir);
    assert_eq!(code, Some(0), "{now}");
    let stream = &now["streams"][0];
    assert_eq!(stream["stream"], "ROOMS_0");
    assert_eq!(
        (&stream["lag_messages"], &stream["lag_seconds"]),
        (&0.into(), &0.0.into())
    );
    assert_eq!(stream["head"]["last"], last);
    assert_eq!(
        (&now["archive"]["rows"], &now["archive"]["kind"]),
        (&200.into(), &"sqlite".into())
    );
    assert!(stream["hours_until_loss"].as_f64().unwrap() > 1.0, "{now}");

    // Another process holds the archive's lock: Weir cannot write, and status can still look.
    let lock = Connection::open(archive_of(&weir)).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    weir.say_many("chat.lobby", texts(30));
    let (code, behind) = status(&weir);
    let stream = &behind["streams"][0];
    assert_eq!(
        (code, &stream["lag_messages"]),
        (Some(0), &30.into()),
        "{behind}"
    );
    assert!(stream["lag_seconds"].as_f64().unwrap() > 0.0);
    let text = succeeds(&mut weir.archive("status", &[]));
    assert!(
        text.out.contains("lag         30 messages, "),
        "{}",
        text.out
    );
    lock.execute_batch("ROLLBACK").unwrap();
    is_archived(&weir, last + 30);

    weir.interrupt();
    let sql = "UPDATE held SET to_seq = 99; INSERT INTO held SELECT stream, 111, 230 FROM held";
    lock.execute_batch(sql).unwrap();
    let ran = run(&mut weir.archive("status", &[]));
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    for line in [
        "held        1 to 99, 111 to 230",
        "holes       100 to 110",
        "log         not known: cannot connect to NATS",
        "wrong: ROOMS_0: 1 hole",
    ] {
        assert!(ran.out.contains(line), "{line} is not in:\n{}", ran.out);
    }
}

#[test]
fn verify_finds_the_first_difference() {
    let mut weir = Weir::new();
    weir.up();
    let mut offsets = weir.say_many("chat.lobby", texts(700));
    offsets.extend(weir.say_many("chat.other", texts(100)));
    let last = *offsets.last().unwrap();
    is_archived(&weir, last);
    let ran = succeeds(&mut weir.archive("verify", &[]));
    assert!(
        ran.out
            .contains("800 messages were compared, no difference"),
        "{}",
        ran.out
    );

    let archive = Connection::open(archive_of(&weir)).unwrap();
    archive.busy_timeout(Duration::from_secs(10)).unwrap();
    let differs = |args: &[&str]| {
        let ran = run(&mut weir.archive("verify", args));
        assert_eq!(ran.code, Some(1), "{}\n{}", ran.out, ran.err);
        ran.out
    };
    let (first, second) = (offsets[650], offsets[300]);
    for seq in [first, second] {
        let sql = "UPDATE messages SET data = CAST(replace(data, 'hello', 'hullo') AS BLOB) WHERE offset = ?1";
        assert_eq!(archive.execute(sql, [seq.cast_signed()]).unwrap(), 1);
    }
    let said = differs(&[]);
    assert!(
        said.contains(&format!(
            "ROOMS_0: sequence {second}, room \"chat:lobby\", epoch "
        )),
        "{said}"
    );
    assert!(
        said.contains("payload: differs from byte 10 on, the log has"),
        "{said}"
    );
    let (from, to) = ((second + 1).to_string(), (second - 1).to_string());
    let said = differs(&["--from", &from]);
    assert!(said.contains(&format!("sequence {first},")), "{said}");
    succeeds(&mut weir.archive("verify", &["--to", &to]));
    let ran = run(&mut weir.archive("verify", &["--log", "nothing"]));
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("nothing to compare"), "{}", ran.err);
    let sql = "UPDATE messages SET data = CAST(replace(data, 'hullo', 'hello') AS BLOB)";
    archive.execute_batch(sql).unwrap();
    succeeds(&mut weir.archive("verify", &[]));

    let sql = "UPDATE messages SET user = 'eve' WHERE offset = ?1";
    archive.execute(sql, [offsets[750].cast_signed()]).unwrap();
    let said = differs(&[]);
    assert!(
        said.contains(&format!("sequence {}, room \"chat:other\"", offsets[750])),
        "{said}"
    );
    assert!(said.contains("author: the log has"), "{said}");
    archive
        .execute(
            "DELETE FROM messages WHERE offset = ?1",
            [offsets[750].cast_signed()],
        )
        .unwrap();
    assert!(differs(&[]).contains("the archive has no row, though it holds this sequence"));
    // Without the message the log and the archive agree again.
    let delete = |seq: u64| {
        let answer = weir.jetstream("STREAM.MSG.DELETE.ROOMS_0", &format!("{{\"seq\":{seq}}}"));
        assert_eq!(answer["success"], true, "{answer}");
    };
    delete(offsets[750]);
    succeeds(&mut weir.archive("verify", &[]));
    delete(offsets[400]);
    let said = differs(&[]);
    assert!(
        said.contains(&format!("sequence {}, room \"chat:lobby\"", offsets[400])),
        "{said}"
    );
    assert!(said.contains("the archive has a row (id \""), "{said}");
}

/// Ends the publisher also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_copy_is_made_while_weir_publishes_and_weir_goes_on_with_it() {
    let mut weir = Weir::new();
    weir.up();
    let mut offsets = weir.say_many("chat.lobby", texts(1_500));
    offsets.extend(weir.say_many("chat.other", texts(400)));
    is_archived(&weir, *offsets.last().unwrap());
    // From here on only the archive has the beginning.
    let cut = offsets[1_000];
    let answer = weir.jetstream("STREAM.PURGE.ROOMS_0", &format!("{{\"seq\":{cut}}}"));
    assert_eq!(answer["success"], true, "{answer}");

    let target = weir.folder().join("target.db");
    let config = weir.folder().join("target.toml");
    std::fs::write(&config, format!("[archive]\npath = {:?}\n", path(&target))).unwrap();
    let to = ["--to-config", path(&config)];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut offsets = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                offsets.push(weir.say("beside the copy"));
            }
            offsets
        });
        let running = StopOnDrop(&stop);
        succeeds(&mut weir.archive("copy", &to));
        let copied = read_all(&target);
        let held = &copied.held["ROOMS_0"];
        assert_eq!(held.len(), 1, "{held:?}");
        assert!(held[0].0 == 1 && held[0].1 >= offsets[1_899], "{held:?}");
        // A second copy brings what came since, and no more.
        let before = copied.rows.len();
        let ran = succeeds(&mut weir.archive("copy", &to));
        let more: usize = ran
            .err
            .split("held; ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            more < 1_000,
            "{before} were there, {more} were copied again"
        );
        drop(running);
        offsets.extend(publisher.join().unwrap());
    });
    is_archived(&weir, *offsets.last().unwrap());
    succeeds(&mut weir.archive("copy", &to));
    let ran = succeeds(&mut weir.archive("copy", &to));
    assert!(ran.err.contains("; 0 rows were copied"), "{}", ran.err);
    assert_eq!(read_all(&target).rows, read_all(&archive_of(&weir)).rows);

    // Weir starts on the target and goes on from the log.
    let late = weir.say("not in the copy");
    offsets.push(late);
    weir.interrupt();
    weir.start("up", &[format!("archive.path={}", path(&target))]);
    weir.wait_running();
    offsets.push(weir.say("archived in the target"));
    let last = *offsets.last().unwrap();
    until("the target has all of it", || {
        read_all(&target).held["ROOMS_0"]
            .last()
            .is_some_and(|(_, to)| *to >= last)
    });
    let all = read_all(&target);
    assert_eq!(all.held["ROOMS_0"], [(1, last)]);
    let mut found: Vec<u64> = all
        .rows
        .iter()
        .map(|(_, _, row)| row.message.seq.get())
        .collect();
    found.sort_unstable();
    offsets.sort_unstable();
    assert!(found == offsets, "{} of {}", found.len(), offsets.len());
}

#[test]
fn a_copy_goes_where_nothing_is_or_where_it_was_before() {
    let (from, to, other) = (Weir::new(), Weir::new(), Weir::new());
    build(&archive_of(&from), 30_000);
    let config = |weir: &Weir| {
        let config = weir.folder().join("weir.toml");
        std::fs::write(&config, format!("data_dir = {:?}\n", path(weir.data()))).unwrap();
        config
    };
    let copy = |source: &Weir, target: &Weir| {
        source.archive("copy", &["--to-config", path(&config(target))])
    };
    // Killed in the middle, it goes on.
    let mut child = copy(&from, &to);
    let mut child = child
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let rows = |path: &Path| {
        let count = "SELECT count(*) FROM messages";
        let open =
            Connection::open(path).and_then(|file| file.query_row(count, [], |row| row.get(0)));
        open.unwrap_or(0_i64)
    };
    until("a part of the copy", || {
        archive_of(&to).exists() && rows(&archive_of(&to)) > 0
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        read_all(&archive_of(&to)).held.is_empty(),
        "it was too fast to be killed"
    );
    let ran = succeeds(&mut copy(&from, &to));
    assert!(ran.err.contains("goes on with the copy"), "{}", ran.err);
    assert!(read_all(&archive_of(&to)) == read_all(&archive_of(&from)));

    let refused = |mut command: Command, why: &str| {
        let ran = run(&mut command);
        assert!(ran.code != Some(0) && ran.err.contains(why), "{}", ran.err);
    };
    refused(copy(&from, &from), "is the archive itself");
    build(&archive_of(&other), 100);
    refused(copy(&from, &other), "is not empty");
    refused(copy(&other, &to), "a copy of another archive");
}

#[test]
fn migrate_and_quarantine_say_what_there_is() {
    let weir = Weir::new();
    let ran = succeeds(&mut weir.archive("migrate", &[]));
    assert!(ran.out.contains("made, schema version "), "{}", ran.out);
    let ran = succeeds(&mut weir.archive("migrate", &[]));
    assert!(ran.out.contains("nothing to do"), "{}", ran.out);
    let ran = succeeds(&mut weir.archive("quarantine", &[]));
    assert_eq!(ran.out, "nothing is in quarantine\n");

    build(&archive_of(&weir), 4_000);
    let ran = succeeds(&mut weir.archive("quarantine", &[]));
    assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
    assert!(
        ran.out.starts_with("ROOMS_0 1300 log.rooms.20.chat.lobby "),
        "{}",
        ran.out
    );
    let ran = succeeds(&mut weir.archive("quarantine", &["--show", "1300"]));
    assert!(ran.out.contains("Nats-Msg-Id: zzz 1300\n"), "{}", ran.out);
    assert!(ran.out.contains("{\"n\":1300,"), "{}", ran.out);
    let ran = succeeds(&mut weir.archive("quarantine", &["--json", "--stream", "ROOMS_0_1"]));
    let first: serde_json::Value = serde_json::from_str(ran.out.lines().next().unwrap()).unwrap();
    assert_eq!(first["quarantine"]["offset"], 2_600);
    let ran = run(&mut weir.archive("quarantine", &["--show", "7"]));
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("no message with the sequence 7"),
        "{}",
        ran.err
    );
}

/// Everything but the first line, which names the archive; rooms come in another order from another archive.
fn exported(weir: &Weir) -> Vec<String> {
    let ran = succeeds(&mut weir.archive("export", &[]));
    let mut lines: Vec<String> = ran.out.lines().skip(1).map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn an_archive_moves_to_cassandra_and_back() {
    let (from, mut to, back) = (Weir::new(), Weir::new(), Weir::new());
    build(&archive_of(&from), 12_000);
    let keyspace = Keyspace::new(shared_node());
    let config = to.folder().join("cassandra.toml");
    let text = format!(
        "[archive]\nkind = \"cassandra\"\nnodes = [{:?}]\nkeyspace = {:?}\nreplication_factor = 1\n",
        shared_node(),
        keyspace.name()
    );
    std::fs::write(&config, text).unwrap();
    to.config = Some(config.clone());
    let none = run(&mut to.archive("status", &[]));
    assert_eq!(none.code, Some(1));
    assert!(
        none.err.contains("there is no archive in the keyspace"),
        "{}",
        none.err
    );
    let there = format!("SELECT * FROM {}.meta", keyspace.name());
    assert!(
        cql::query(shared_node(), &there, cql::ONE).is_err(),
        "looking makes nothing"
    );
    let ran = succeeds(&mut to.archive("migrate", &[]));
    assert!(ran.out.contains("made, schema version "), "{}", ran.out);
    let ran = succeeds(&mut to.archive("migrate", &[]));
    assert!(ran.out.contains("nothing to do"), "{}", ran.out);

    // Killed in the middle, it goes on, and then the copy is as the original.
    let copy = || from.archive("copy", &["--to-config", path(&config)]);
    let mut child = copy();
    let mut child = child
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("a part of the copy", || {
        let state = succeeds(&mut to.archive("status", &["--json", "--count"]));
        let state: serde_json::Value = serde_json::from_str(&state.out).unwrap();
        state["archive"]["rows"].as_u64() > Some(0)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let part = exported(&to);
    let held = |lines: &[String]| {
        let held = lines.iter().filter(|line| line.starts_with("{\"held\""));
        held.cloned().collect::<Vec<_>>()
    };
    assert!(
        held(&part)
            .iter()
            .all(|line| line.contains("\"ranges\":[]")),
        "it was too fast to be killed"
    );
    let ran = succeeds(&mut copy());
    assert!(ran.err.contains("goes on with the copy"), "{}", ran.err);
    let all = exported(&from);
    assert_eq!(held(&all).len(), 2);
    assert!(exported(&to) == all, "the copy differs");
    let ran = succeeds(&mut copy());
    assert!(ran.err.contains("; 0 rows were copied"), "{}", ran.err);

    let ran = succeeds(&mut to.archive("quarantine", &["--show", "1300"]));
    assert!(ran.out.contains("Nats-Msg-Id: zzz 1300\n"), "{}", ran.out);
    let rows = all
        .iter()
        .filter(|line| line.starts_with("{\"row\""))
        .count();
    // The holes are wrong, and said to be.
    let ran = run(&mut to.archive("status", &["--json", "--count"]));
    let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (ran.code, &status["archive"]["rooms"]),
        (Some(1), &5.into())
    );
    let shared = all_offsets_shared(&archive_of(&from));
    assert_eq!(
        status["archive"]["rows"].as_u64(),
        Some((rows - shared) as u64),
        "Cassandra counts offsets"
    );

    // And back, by an export that goes on after a cut, into SQLite.
    let file = to.folder().join("export.jsonl");
    succeeds(&mut to.archive("export", &["--out", path(&file)]));
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    succeeds(&mut to.archive("export", &["--resume", "--out", path(&file)]));
    assert!(std::fs::read(&file).unwrap() == bytes);
    succeeds(&mut back.archive("import", &[path(&file)]));
    assert!(exported(&back) == all, "the way back differs");
}

/// Offsets that two rows of a room have.
fn all_offsets_shared(path: &Path) -> usize {
    let rows = read_all(path).rows;
    let shared = rows
        .windows(2)
        .filter(|two| two[0].1 == two[1].1 && two[0].2.message.seq == two[1].2.message.seq);
    shared.count()
}
