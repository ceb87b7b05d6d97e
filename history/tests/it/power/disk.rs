//! Knows: a file system whose power can be cut: ext4 in a file, on a loop device, in a second ext4
//! that stands for the disk and its write cache. Never: what is kept on it.
//!
//! Shutting down an ext4 by ioctl drops what it had not written. Done to the inner one that is a
//! machine that loses its memory; done to the outer one it is a disk that also loses what it was
//! given and not told to flush.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use weir_nats::ambient::random;

use crate::power::until;

/// Folders of these tests in the system's folder for temporary files.
const PREFIX: &str = "weir-power-";
/// What the outer file system needs beside the inner one: its journal and its tables.
const OVERHEAD_MIB: u64 = 64;
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`, when a line is read. Perl, as an ioctl is
/// unsafe in Rust; started before the cut, as starting it takes longer than many commits.
const SHUT_DOWN: &str = r#"
    open(my $folder, "<", $ARGV[0]) or die "open: $!\n";
    my $flags = pack("L", 2);
    $| = 1;
    print "ready\n";
    exit unless defined(<STDIN>);
    defined(ioctl($folder, 0x8004587d, $flags)) or die "EXT4_IOC_SHUTDOWN: $!\n";
"#;

/// What loses its power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The machine: what was not written to the disk is gone.
    Machine,
    /// The machine and its disk: what the disk was not told to flush is gone as well.
    Disk,
}

/// A file system of its own. Dropping it leaves no mount and no loop device.
pub(crate) struct Disk {
    folder: PathBuf,
    /// Held as long as this process lives, so that others leave the folder alone.
    _lock: File,
}

impl Disk {
    /// A new one of `mib` MiB; nothing where `WEIR_TEST_NO_LOOP=1` says that there cannot be one.
    pub(crate) fn new(mib: u64) -> Option<Self> {
        if std::env::var("WEIR_TEST_NO_LOOP").is_ok_and(|value| value == "1") {
            eprintln!(
                "LEFT OUT because of WEIR_TEST_NO_LOOP=1: no power was cut, no disk was full"
            );
            return None;
        }
        match Self::mounted(mib) {
            Ok(disk) => Some(disk),
            Err(error) => panic!(
                "no file system to cut the power of: {error}. This test needs root, free loop \
                 devices (modprobe loop), and mount, mkfs.ext4 and perl (apt-get install mount \
                 e2fsprogs perl-base). WEIR_TEST_NO_LOOP=1 leaves it out and proves nothing."
            ),
        }
    }

    fn mounted(mib: u64) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        // One at a time, so that no folder is taken for a leftover before it is locked.
        let turn = File::open(std::env::temp_dir()).map_err(text)?;
        turn.lock().map_err(text)?;
        clear_leftovers().map_err(text)?;
        let name = data_encoding::HEXLOWER.encode(&random::<6>());
        let folder = std::env::temp_dir().join(format!("{PREFIX}{name}"));
        std::fs::create_dir(&folder).map_err(text)?;
        let lock = File::create(folder.join("lock")).map_err(text)?;
        lock.lock().map_err(text)?;
        let disk = Self {
            folder,
            _lock: lock,
        };
        std::fs::create_dir(disk.outer()).map_err(text)?;
        std::fs::create_dir(disk.path()).map_err(text)?;
        make(&disk.folder.join("outer.img"), mib + OVERHEAD_MIB)?;
        disk.mount_outer()?;
        make(&disk.outer().join("inner.img"), mib)?;
        disk.mount_inner()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("inner")
    }

    /// A switch that cuts the power at once when it is pressed.
    pub(crate) fn switch(&self, cut: Cut) -> Switch {
        let folder = match cut {
            Cut::Machine => self.path(),
            Cut::Disk => self.outer(),
        };
        let mut child = Command::new("perl")
            .args(["-e", SHUT_DOWN])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        Switch(child)
    }

    /// Power again. Whoever had a file open on it is gone by now.
    pub(crate) fn start(&self, cut: Cut) {
        unmount(&self.path());
        if cut == Cut::Disk {
            unmount(&self.outer());
            self.mount_outer().unwrap();
        }
        self.mount_inner().unwrap();
    }

    fn outer(&self) -> PathBuf {
        self.folder.join("outer")
    }

    fn mount_outer(&self) -> Result<(), String> {
        mount(&self.folder.join("outer.img"), &self.outer())
    }

    fn mount_inner(&self) -> Result<(), String> {
        mount(&self.outer().join("inner.img"), &self.path())
    }
}

/// Dropping it cuts nothing.
pub(crate) struct Switch(Child);

impl Switch {
    /// Cuts the power. Once this returns, nothing reaches the file system.
    pub(crate) fn press(mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.folder) {
            eprintln!("{}: {error}", self.folder.display());
        }
    }
}

/// What a run left that was killed: its locks are gone with it, its mounts are not.
fn clear_leftovers() -> std::io::Result<()> {
    for entry in std::fs::read_dir(std::env::temp_dir())? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join("lock")) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            let folder = entry.path();
            let cleared = clear(&folder);
            eprintln!("a killed run left {}: {cleared:?}", folder.display());
        }
    }
    Ok(())
}

/// Unmounts and deletes. The loop devices go with their mounts.
fn clear(folder: &Path) -> std::io::Result<()> {
    for mount in [folder.join("inner"), folder.join("outer")] {
        if is_mounted(&mount) {
            // Lazily: a test that failed may still have files open.
            let path = mount.to_string_lossy();
            run("umount", &["-l", &path]).map_err(std::io::Error::other)?;
        }
    }
    std::fs::remove_dir_all(folder)
}

fn is_mounted(folder: &Path) -> bool {
    let parent = folder.parent().and_then(|parent| parent.metadata().ok());
    match (folder.metadata(), parent) {
        (Ok(here), Some(parent)) => here.dev() != parent.dev(),
        (Err(error), _) => error.kind() != std::io::ErrorKind::NotFound,
        (Ok(_), None) => false,
    }
}

fn make(image: &Path, mib: u64) -> Result<(), String> {
    let file = OpenOptions::new().write(true).create_new(true).open(image);
    file.and_then(|file| file.set_len(mib << 20))
        .map_err(|error| format!("{}: {error}", image.display()))?;
    // Nothing is left to do in the background: what is written later is the test's.
    let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    let image = image.to_string_lossy();
    run("mkfs.ext4", &["-q", "-F", "-E", options, &image])
}

fn mount(image: &Path, folder: &Path) -> Result<(), String> {
    let (image, folder) = (image.to_string_lossy(), folder.to_string_lossy());
    run("mount", &["-t", "ext4", "-o", "loop", &image, &folder])
}

/// A process that was killed closes its files a moment later.
fn unmount(folder: &Path) {
    let path = folder.to_str().unwrap();
    until("unmounted", || {
        let unmounted = run("umount", &[path]);
        if let Err(error) = &unmounted {
            eprintln!("tried again: {error}");
        }
        unmounted.is_ok()
    });
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {}", said.trim()))
}
