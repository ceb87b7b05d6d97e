//! Knows: which archive the Weir under test keeps its rooms in, and what is in there, read without
//! Weir. Never: Weir's own readers.
//!
//! Every black-box test runs against either archive with the same assertions: SQLite, or with
//! `WEIR_TEST_ARCHIVE=cassandra` the Cassandra node that tests share, in a keyspace of its own. What
//! is about SQLite's file itself asks for [`ArchiveAt::sqlite`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::cassandra::{Keyspace, cql, shared_node};
use super::scan::Stored;

/// Where rooms are kept.
#[derive(Clone)]
pub(crate) enum ArchiveAt {
    /// A file; in the data folder if it is relative.
    Sqlite(PathBuf),
    /// A keyspace that nobody else has, dropped with the last of these.
    Cassandra(Arc<Keyspace>),
}

impl ArchiveAt {
    /// What `WEIR_TEST_ARCHIVE` says; else the file in the data folder.
    pub(crate) fn chosen() -> Self {
        match std::env::var("WEIR_TEST_ARCHIVE").as_deref() {
            Ok("cassandra") => Self::cassandra(),
            Ok("sqlite") | Err(_) => Self::sqlite(),
            Ok(other) => panic!("WEIR_TEST_ARCHIVE={other}: sqlite or cassandra"),
        }
    }

    /// The default file.
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite("archive.db".into())
    }

    /// A keyspace of its own on the node that tests share.
    pub(crate) fn cassandra() -> Self {
        Self::Cassandra(Arc::new(Keyspace::new(shared_node())))
    }

    /// The lines under `[archive]`.
    pub(crate) fn config(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("kind = \"sqlite\"\npath = \"{}\"\n", path.display()),
            Self::Cassandra(keyspace) => {
                let (node, name) = (shared_node(), keyspace.name());
                format!(
                    "kind = \"cassandra\"\nnodes = [\"{node}\"]\nkeyspace = \"{name}\"\n\
                     replication_factor = 1\n"
                )
            }
        }
    }

    /// The same as seen from here.
    pub(crate) fn in_folder(&self, data: &Path) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(data.join(path)),
            Self::Cassandra(_) => self.clone(),
        }
    }

    /// SQLite's file.
    pub(crate) fn file(&self) -> &Path {
        match self {
            Self::Sqlite(path) => path,
            Self::Cassandra(_) => panic!("this test is about SQLite's file"),
        }
    }

    /// How far it has the log; 0 while it has nothing.
    pub(crate) async fn up_to(&self) -> u64 {
        match self {
            Self::Sqlite(path) => sqlite_up_to(path),
            Self::Cassandra(keyspace) => {
                let statement = format!("SELECT to_seq FROM {}.held", keyspace.name());
                // Weir creates the tables.
                let rows = cql::rows(shared_node(), &statement, cql::ONE).unwrap_or_default();
                let ends = rows.iter().map(|row| bigint(&row[0]));
                ends.max().unwrap_or(0)
            }
        }
    }

    /// Every row, by offset.
    pub(crate) async fn rows(&self) -> Vec<Stored> {
        match self {
            Self::Sqlite(path) => sqlite_rows(path),
            Self::Cassandra(keyspace) => cassandra_rows(keyspace.name()),
        }
    }

    /// Everything in it is gone. Weir must be stopped.
    pub(crate) async fn lose(&self) {
        match self {
            Self::Sqlite(path) => {
                for suffix in ["", "-wal", "-shm"] {
                    let mut file = path.clone().into_os_string();
                    file.push(suffix);
                    let gone = std::fs::remove_file(&file);
                    let may_be_missing = !suffix.is_empty();
                    assert!(
                        gone.is_ok() || may_be_missing,
                        "the archive is a file: {gone:?}"
                    );
                }
            }
            Self::Cassandra(keyspace) => {
                let statement = format!("DROP KEYSPACE {}", keyspace.name());
                cql::query(shared_node(), &statement, cql::ONE).unwrap();
            }
        }
    }
}

fn sqlite_up_to(path: &Path) -> u64 {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let newest = rusqlite::Connection::open_with_flags(path, flags)
        .and_then(|db| db.query_row("SELECT max(offset) FROM messages", [], |row| row.get(0)));
    newest
        .ok()
        .flatten()
        .map_or(0, |seq: i64| u64::try_from(seq).unwrap())
}

fn sqlite_rows(path: &Path) -> Vec<Stored> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(path, flags).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    let mut query = connection
        .prepare(
            "SELECT r.channel, s.epoch, m.offset, m.user, m.data FROM messages m
             JOIN rooms r ON r.id = m.room JOIN streams s ON s.id = m.stream
             ORDER BY m.offset",
        )
        .unwrap();
    let rows = query
        .query_map([], |row| {
            Ok(Stored {
                room: row.get(0)?,
                epoch: row.get(1)?,
                offset: u64::try_from(row.get::<_, i64>(2)?).unwrap(),
                author: row.get(3)?,
                data: row.get(4)?,
            })
        })
        .unwrap();
    rows.map(Result::unwrap).collect()
}

fn bigint(bytes: &[u8]) -> u64 {
    let bytes = bytes.try_into().expect("a bigint has eight bytes");
    u64::try_from(i64::from_be_bytes(bytes)).unwrap()
}

fn cassandra_rows(keyspace: &str) -> Vec<Stored> {
    let statement = format!("SELECT room, epoch, off, msg FROM {keyspace}.messages");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let rows = cql::rows(shared_node(), &statement, cql::ONE).unwrap();
    let mut stored: Vec<_> = rows
        .iter()
        // What was erased is an empty blob.
        .filter(|row| !row[3].is_empty())
        .map(|row| {
            let (author, data) = envelope(&row[3]);
            Stored {
                room: text(&row[0]),
                epoch: text(&row[1]),
                offset: bigint(&row[2]),
                author,
                data,
            }
        })
        .collect();
    stored.sort_by_key(|row| row.offset);
    stored
}

/// Author and payload of a row's blob: a version, then time, author (door, user, client, info), tags
/// and payload in postcard's wire format.
fn envelope(blob: &[u8]) -> (String, Vec<u8>) {
    assert_eq!(blob[0], 1, "a format that this test does not know");
    let mut rest = Fields(&blob[1..]);
    let (_time, mut user) = (rest.number(), Vec::new());
    if rest.is_some() {
        let _door = rest.bytes();
        user = rest.bytes();
        let _client = rest.bytes();
        if rest.is_some() {
            rest.bytes();
        }
    }
    for _ in 0..rest.number() * 2 {
        rest.bytes();
    }
    let data = rest.bytes();
    assert!(rest.0.is_empty(), "more than a message");
    (String::from_utf8(user).unwrap(), data)
}

/// What is left of a blob.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// Seven bits a byte, the lowest first.
    fn number(&mut self) -> usize {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.0[0];
            self.0 = &self.0[1..];
            number |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return number;
            }
        }
    }

    fn is_some(&mut self) -> bool {
        self.number() == 1
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.number();
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }
}
