//! Knows: which archive the Weir under test keeps its rooms in, and what is in there, read without
//! Weir. Never: Weir's own readers.
//!
//! Every black-box test runs against either archive with the same assertions: SQLite, or with
//! `WEIR_TEST_ARCHIVE=cassandra` the Cassandra at `WEIR_TEST_CASSANDRA` (`host:port`), in a keyspace
//! of its own. What is about SQLite's file itself asks for [`ArchiveAt::sqlite`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::scan::Stored;

/// Where rooms are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ArchiveAt {
    /// A file; in the data folder if it is relative.
    Sqlite(PathBuf),
    /// A keyspace that nobody else has.
    Cassandra { node: String, keyspace: String },
}

impl ArchiveAt {
    /// What `WEIR_TEST_ARCHIVE` says; else the file in the data folder.
    pub(crate) fn chosen() -> Self {
        match std::env::var("WEIR_TEST_ARCHIVE").as_deref() {
            Ok("cassandra") => {
                let node = std::env::var("WEIR_TEST_CASSANDRA")
                    .expect("WEIR_TEST_CASSANDRA=host:port, for WEIR_TEST_ARCHIVE=cassandra");
                let id = tempfile::tempdir().unwrap();
                let id = id.path().file_name().unwrap().to_str().unwrap();
                let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
                let keyspace = format!("it_{}_{}", std::process::id(), id.to_lowercase());
                Self::Cassandra { node, keyspace }
            }
            Ok("sqlite") | Err(_) => Self::sqlite(),
            Ok(other) => panic!("WEIR_TEST_ARCHIVE={other}: sqlite or cassandra"),
        }
    }

    /// The default file.
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite("archive.db".into())
    }

    /// The lines under `[archive]`.
    pub(crate) fn config(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("kind = \"sqlite\"\npath = \"{}\"\n", path.display()),
            Self::Cassandra { node, keyspace } => {
                format!("kind = \"cassandra\"\nnodes = [\"{node}\"]\nkeyspace = \"{keyspace}\"\n")
            }
        }
    }

    /// The same as seen from here.
    pub(crate) fn in_folder(&self, data: &Path) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(data.join(path)),
            Self::Cassandra { .. } => self.clone(),
        }
    }

    /// SQLite's file.
    pub(crate) fn file(&self) -> &Path {
        match self {
            Self::Sqlite(path) => path,
            Self::Cassandra { .. } => panic!("this test is about SQLite's file"),
        }
    }

    /// The newest offset in it; 0 while there is none.
    pub(crate) async fn up_to(&self) -> u64 {
        match self {
            Self::Sqlite(path) => sqlite_up_to(path),
            Self::Cassandra { .. } => self.rows().await.last().map_or(0, |row| row.offset),
        }
    }

    /// Every row, by offset.
    pub(crate) async fn rows(&self) -> Vec<Stored> {
        match self {
            Self::Sqlite(path) => sqlite_rows(path),
            Self::Cassandra { node, keyspace } => {
                panic!("{keyspace} at {node} cannot be scanned yet")
            }
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
            Self::Cassandra { node, keyspace } => {
                panic!("{keyspace} at {node} cannot be emptied yet")
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
