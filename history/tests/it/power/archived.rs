//! Knows: what is in an archive file, read without touching it. Never: how it got there.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _};
use weir_history::held::Held;
use weir_nats::Seq;

/// A row, as the archive keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) room: String,
    pub(crate) id: String,
    pub(crate) data: Bytes,
}

/// What one stream has in the file.
#[derive(Debug, Default)]
pub(crate) struct Archived {
    pub(crate) rows: BTreeMap<u64, Row>,
    pub(crate) held: Held,
}

impl Archived {
    /// How many of `held` have no row.
    pub(crate) fn missing(&self, held: &Held) -> u64 {
        let missing = held
            .ranges()
            .iter()
            .map(|(from, to)| (to - from + 1) - self.rows.range(from..=to).count() as u64);
        missing.sum()
    }

    /// The ranges for which there are rows.
    pub(crate) fn ranges(&self) -> Held {
        Held::from_ranges(self.rows.keys().map(|seq| (*seq, *seq)))
    }
}

/// Reads a copy of the file and its log: SQLite repairs what it opens, and the file is to stay as
/// the power cut left it until Weir opens it. Nothing, where the file is not there yet.
pub(crate) fn read(file: &Path) -> HashMap<String, Archived> {
    let copy = tempfile::tempdir().unwrap();
    let copied = copy.path().join("copy.db");
    for suffix in ["", "-wal"] {
        let from = format!("{}{suffix}", file.display());
        if Path::new(&from).exists() {
            std::fs::copy(&from, format!("{}{suffix}", copied.display())).unwrap();
        }
    }
    let connection = Connection::open(&copied).unwrap();
    let sound: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sound, "ok");
    // Cut before the first commit.
    let has_tables = connection
        .query_row(
            "SELECT 1 FROM sqlite_master WHERE name = 'messages'",
            [],
            |_| Ok(()),
        )
        .optional()
        .unwrap()
        .is_some();
    if !has_tables {
        return HashMap::new();
    }
    let mut all: HashMap<String, Archived> = HashMap::new();
    let mut rows = connection
        .prepare(
            "SELECT streams.stream, offset, channel, messages.msg_id, data
             FROM messages JOIN rooms ON rooms.id = room JOIN streams ON streams.id = messages.stream",
        )
        .unwrap();
    let mut rows = rows.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let of_stream = all.entry(row.get(0).unwrap()).or_default();
        let seq: i64 = row.get(1).unwrap();
        let twice = of_stream.rows.insert(
            seq as u64,
            Row {
                room: row.get(2).unwrap(),
                id: row.get(3).unwrap(),
                data: row.get::<_, Vec<u8>>(4).unwrap().into(),
            },
        );
        assert!(twice.is_none(), "{seq} is there twice");
    }
    let mut held = connection
        .prepare("SELECT stream, from_seq, to_seq FROM held")
        .unwrap();
    let mut held = held.query([]).unwrap();
    while let Some(row) = held.next().unwrap() {
        let of_stream = all.entry(row.get(0).unwrap()).or_default();
        let (from, to): (i64, i64) = (row.get(1).unwrap(), row.get(2).unwrap());
        of_stream
            .held
            .add(Seq::new(from as u64), Seq::new(to as u64));
    }
    all
}
