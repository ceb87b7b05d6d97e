//! Knows: what Weir needs and does not find: a clear message, and recovery without a restart.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::archive::ArchiveAt;
use crate::harness::client::{Client, Failure};
use crate::harness::nats::Nats;
use crate::harness::rig::Rig;
use crate::harness::weir::{Config, Weir, tail};
use crate::harness::{free_port, scan, until};

/// Waits until the log holds one of the texts, in any case of letters.
async fn until_logged(weir: &Weir, texts: &[&str]) {
    until(
        &format!("the log says one of {texts:?}"),
        Duration::from_secs(30),
        async || {
            let log = weir.log().to_lowercase();
            texts.iter().any(|text| log.contains(&text.to_lowercase()))
        },
    )
    .await;
}

/// Ends, with a status that is no success and a message that names the texts.
async fn ends_naming(weir: &mut Weir, texts: &[&str]) {
    until("weir ends", Duration::from_secs(30), async || {
        weir.ended().is_some()
    })
    .await;
    assert!(!weir.ended().unwrap().success());
    let log = weir.log();
    for text in texts {
        assert!(
            log.contains(text),
            "the message does not name {text}:\n{}",
            tail(&log)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_that_is_not_there_at_start_is_waited_for() {
    let port = free_port();
    let mut weir = Weir::spawned(Config::new(&format!("nats://127.0.0.1:{port}")));
    until_logged(&weir, &[&format!("127.0.0.1:{port}")]).await;
    assert!(
        weir.ended().is_none(),
        "weir gave up:\n{}",
        tail(&weir.log())
    );
    assert!(!weir.ready().await);
    let _nats = Nats::start_with(port, true, None).await;
    weir.until_ready().await;
    let mut client = Client::connect(&weir.address(), Some("a")).await.unwrap();
    client.publish("chat:a", "1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_without_jetstream_is_named_and_waited_for() {
    let port = free_port();
    let nats = Nats::start_with(port, false, None).await;
    let mut weir = Weir::spawned(Config::new(&nats.url()));
    until_logged(&weir, &["jetstream"]).await;
    assert!(
        weir.ended().is_none(),
        "weir gave up:\n{}",
        tail(&weir.log())
    );
    assert!(!weir.ready().await);
    drop(nats);
    let _nats = Nats::start_with(port, true, None).await;
    weir.until_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_that_is_lost_costs_errors_and_comes_back() {
    let mut rig = Rig::servers(1, false, |_| {}).await;
    let mut client = rig.client("a").await;
    client.subscribe("chat:r0", None).await.unwrap();
    client.publish("chat:r0", "1").await.unwrap();
    client.publication(Duration::from_secs(10)).await.unwrap();
    rig.nats.kill();
    let sent = Instant::now();
    let failure = client.publish("chat:r0", "2").await.unwrap_err();
    assert!(
        matches!(
            failure,
            Failure::Error {
                code: 100 | 111,
                temporary: true,
                ..
            }
        ),
        "{failure:?}"
    );
    assert!(sent.elapsed() < Duration::from_secs(5));
    until("weir is not ready", Duration::from_secs(30), async || {
        !rig.weir.ready().await
    })
    .await;
    let (status, _) = rig.weir.get("/health").await.unwrap();
    assert_eq!(status, 200, "it lives, though it is not ready");
    rig.nats.spawn().await;
    until(
        "the same socket publishes again",
        Duration::from_secs(60),
        async || client.publish("chat:r0", "3").await.is_ok(),
    )
    .await;
    rig.weir.until_ready().await;
    loop {
        let (_, publication) = client.publication(Duration::from_secs(20)).await.unwrap();
        if publication.data.get() == "3" {
            break;
        }
    }
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_names_the_user() {
    let nats = Nats::start().await;
    let mut config = Config::new(&nats.url());
    config.password = "wrong".to_owned();
    let weir = Weir::spawned(config);
    until_logged(&weir, &["weir_door", "user `weir`", "user weir"]).await;
    until_logged(&weir, &["authorization", "password"]).await;
    assert!(!weir.log().contains("wrong"), "the password is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_an_error_that_names_it() {
    let nats = Nats::start().await;
    for internal in [false, true] {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut config = Config::new(&nats.url());
        if internal {
            config.internal_port = port;
        } else {
            config.port = port;
        }
        let mut weir = Weir::spawned(config);
        ends_naming(&mut weir, &[&port.to_string()]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_archive_holds_up_nobody_and_catches_up() {
    let rig = Rig::servers(1, false, |config| config.archive = ArchiveAt::sqlite()).await;
    let mut client = rig.client("a").await;
    client.subscribe("chat:r0", None).await.unwrap();
    client.publish("chat:r0", "0").await.unwrap();
    let (_, first) = client.publication(Duration::from_secs(10)).await.unwrap();
    let archive = rig.weir.archive();
    until(
        "the first is archived",
        Duration::from_secs(30),
        async || archive.up_to().await >= first.offset,
    )
    .await;
    let locker = rusqlite::Connection::open(archive.file()).unwrap();
    locker.busy_timeout(Duration::from_secs(10)).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut newest = 0;
    for n in 1..=50 {
        client.publish("chat:r0", &n.to_string()).await.unwrap();
        let (_, publication) = client.publication(Duration::from_secs(10)).await.unwrap();
        assert_eq!(publication.data.get(), n.to_string());
        newest = publication.offset;
    }
    until_logged(&rig.weir, &["locked", "busy"]).await;
    // History goes on meanwhile: what the archive lacks is in the stream.
    let page = client.history("chat:r0", None, 100, false).await.unwrap();
    assert_eq!(page.publications.len(), 51);
    assert!(archive.up_to().await < newest);
    locker.execute_batch("ROLLBACK").unwrap();
    until(
        "the archive has caught up",
        Duration::from_secs(60),
        async || archive.up_to().await >= newest,
    )
    .await;
    assert_eq!(archive.rows().await.len(), 51);
    rig.require_calm();
}

/// A small disk. Unmounted on drop.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// `None`, with a word why, where mounting is not allowed.
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let option = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "tmpfs"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { dir }),
            other => {
                eprintln!("skipped: a small disk cannot be mounted here ({other:?})");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Fills all that is free.
    fn fill(&self) -> PathBuf {
        use std::io::Write as _;
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let block = vec![0; 4 << 10];
        while file.write_all(&block).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, as whoever had files there may be dying only now.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_nats_is_an_error_in_time_and_no_loss() {
    let Some(disk) = Disk::mount(48 << 20) else {
        return;
    };
    let port = free_port();
    let mut nats = Nats::start_with(port, true, Some(disk.path().join("store"))).await;
    let weir = Weir::start(Config::new(&nats.url())).await;
    let mut client = Client::connect(&weir.address(), Some("a")).await.unwrap();
    let mut acked = 0;
    for n in 0..50 {
        client.publish("chat:full", &n.to_string()).await.unwrap();
        acked += 1;
    }
    let filler = disk.fill();
    let big = format!("\"{}\"", "f".repeat(32 << 10));
    let mut slowest = Duration::ZERO;
    let failure = loop {
        let sent = Instant::now();
        let result = client.publish("chat:full", &big).await;
        slowest = slowest.max(sent.elapsed());
        match result {
            Ok(()) => acked += 1,
            Err(failure) => break failure,
        }
        assert!(acked < 5_000, "the disk never fills");
    };
    assert!(
        matches!(
            failure,
            Failure::Error {
                code: 100 | 111,
                ..
            }
        ),
        "{failure:?}"
    );
    assert!(
        slowest < Duration::from_secs(5),
        "an answer took {slowest:?}"
    );
    std::fs::remove_file(filler).unwrap();
    // nats-server 2.15 goes on only after a restart once its disk was full (reliability notes).
    nats.kill();
    nats.spawn().await;
    until(
        "publishes are taken again",
        Duration::from_secs(75),
        async || client.publish("chat:full", "\"again\"").await.is_ok(),
    )
    .await;
    let rows = scan::stream(&nats).await;
    assert!(
        rows.len() > acked,
        "{} stored, {acked} acknowledged before",
        rows.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_archive_holds_up_nobody_and_is_caught_up() {
    let Some(disk) = Disk::mount(16 << 20) else {
        return;
    };
    let nats = Nats::start().await;
    let mut config = Config::new(&nats.url());
    let file = disk.path().join("archive.db");
    config.archive = ArchiveAt::Sqlite(file);
    let weir = Weir::start(config).await;
    let mut client = Client::connect(&weir.address(), Some("a")).await.unwrap();
    client.publish("chat:full", "0").await.unwrap();
    until(
        "the first is archived",
        Duration::from_secs(30),
        async || weir.archive().up_to().await > 0,
    )
    .await;
    let filler = disk.fill();
    let big = format!("\"{}\"", "f".repeat(32 << 10));
    for _ in 0..200 {
        client.publish("chat:full", &big).await.unwrap();
    }
    until_logged(&weir, &["full"]).await;
    std::fs::remove_file(filler).unwrap();
    until(
        "the archive has caught up",
        Duration::from_secs(60),
        async || weir.archive().rows().await.len() == 201,
    )
    .await;
}
