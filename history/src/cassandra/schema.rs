//! Knows: the tables, their version, and how a keyspace gets them. Never: rows.
//!
//! A partition of `messages` is one room in one epoch in one bucket of [`BUCKET_WIDTH`] sequences:
//! which one a message belongs to follows from the message alone, so any worker puts it into the
//! same place, in any order and any number of times. The message's id is part of the key, so that
//! nothing is ever written over another message, not even in a log that went back in time.

use super::CassandraConfig;
use super::driver::Driver;
use crate::archive::ArchiveError;

/// Of these tables; a keyspace of another one is refused.
pub(super) const VERSION: &str = "1";

/// Sequences of a bucket. A bucket holds at most as many rows of a room: with 231 bytes a row, and
/// half of a log in one room, 121 MB.
pub(super) const BUCKET_WIDTH: u64 = 1 << 20;

/// Tables, each with what it is for.
const TABLES: [&str; 10] = [
    // `id`, `version`, `bucket_width`.
    "CREATE TABLE IF NOT EXISTS {}.meta (key text PRIMARY KEY, value text)",
    // One row a stream: a generation of a slot, its epoch, where it begins, the highest message
    // known of it (written with its sequence as timestamp, so the highest wins).
    "CREATE TABLE IF NOT EXISTS {}.streams (
        log text, stream text, slot int, epoch text, from_seq bigint, created text,
        seq bigint, msg_id text, time_ms bigint,
        PRIMARY KEY (log, stream))",
    // Ranges of sequences that are held whole (the end is the timestamp: the longest wins), each under
    // the id of the archive that it was claimed for: an emptied keyspace has a new one. And how far
    // rows may have been written that no range tells of yet.
    "CREATE TABLE IF NOT EXISTS {}.held (
        log text, archive text, stream text, from_seq bigint, to_seq bigint,
        PRIMARY KEY (log, archive, stream, from_seq))",
    "CREATE TABLE IF NOT EXISTS {}.intents (
        log text, stream text, up_to bigint,
        PRIMARY KEY (log, stream))",
    "CREATE TABLE IF NOT EXISTS {}.messages (
        log text, room text, epoch text, bucket bigint, off bigint, id text, msg blob,
        PRIMARY KEY ((log, room, epoch, bucket), off, id))
        WITH CLUSTERING ORDER BY (off DESC, id DESC)
        AND compaction = {'class': 'UnifiedCompactionStrategy', 'scaling_parameters': 'T4'}
        AND compression = {'class': 'LZ4Compressor', 'chunk_length_in_kb': 16}",
    // Which buckets of a room have rows.
    "CREATE TABLE IF NOT EXISTS {}.room_buckets (
        log text, room text, bucket bigint, epoch text,
        PRIMARY KEY ((log, room), bucket, epoch))
        WITH CLUSTERING ORDER BY (bucket DESC, epoch DESC)
        AND compaction = {'class': 'UnifiedCompactionStrategy', 'scaling_parameters': 'L4'}",
    // Where a user's messages are, for erasing them.
    "CREATE TABLE IF NOT EXISTS {}.user_buckets (
        log text, user text, room text, bucket bigint, epoch text,
        PRIMARY KEY ((log, user), room, bucket, epoch))
        WITH compaction = {'class': 'UnifiedCompactionStrategy', 'scaling_parameters': 'L4'}",
    // The first offset of each second (the lowest wins), for reading by time.
    "CREATE TABLE IF NOT EXISTS {}.stream_seconds (
        stream text, day int, sec bigint, off bigint,
        PRIMARY KEY ((stream, day), sec))",
    // Messages that are no room's, or that could not become a row.
    "CREATE TABLE IF NOT EXISTS {}.quarantine (
        stream text, seq bigint, subject text, headers text, data blob, reason text,
        PRIMARY KEY (stream, seq))",
    // Orders to erase (JSON), which no append may undo, and how far each is carried out.
    "CREATE TABLE IF NOT EXISTS {}.erasures (
        id text PRIMARY KEY, ordered text, erased bigint, done_ms bigint)",
];

/// What a keyspace says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) id: String,
    pub(super) bucket_width: u64,
}

/// Creates what is not there of keyspace, tables and identity. True if anything was.
///
/// # Errors
/// When the cluster does not answer or does not permit it, or the keyspace is of another version.
pub(super) async fn ensure(
    driver: &Driver,
    config: &CassandraConfig,
    new_id: impl FnOnce() -> String,
) -> Result<(Meta, bool), ArchiveError> {
    let keyspace = &config.keyspace;
    if let Some(meta) = read_meta(driver, keyspace).await? {
        return Ok((meta, false));
    }
    let is_there: Vec<(String,)> = driver
        .ask(
            "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?",
            (keyspace,),
        )
        .await?;
    if is_there.is_empty() {
        driver.change_schema(&create_keyspace(config)).await?;
    }
    for table in TABLES {
        driver
            .change_schema(&table.replacen("{}", keyspace, 1))
            .await?;
    }
    // The first of several processes gives the identity; `id` comes last, so that whoever sees one
    // sees the rest.
    let set = format!("INSERT INTO {keyspace}.meta (key, value) VALUES (?, ?) IF NOT EXISTS");
    let width = BUCKET_WIDTH.to_string();
    let id = new_id();
    for (key, value) in [("version", VERSION), ("bucket_width", &width), ("id", &id)] {
        driver.set_once(&set, (key, value)).await?;
    }
    let meta = read_meta(driver, keyspace).await?;
    let meta = meta.ok_or_else(|| ArchiveError {
        reason: format!("keyspace {keyspace}: its identity was written and is not there"),
        temporary: true,
    })?;
    Ok((meta, true))
}

/// `None` if there is no such keyspace, it has no tables, or they were emptied.
///
/// # Errors
/// When the cluster does not answer, or the keyspace is of another version.
pub(super) async fn read_meta(
    driver: &Driver,
    keyspace: &str,
) -> Result<Option<Meta>, ArchiveError> {
    let tables: Vec<(String,)> = driver
        .ask(
            "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'meta'",
            (keyspace,),
        )
        .await?;
    if tables.is_empty() {
        return Ok(None);
    }
    read_identity(driver, keyspace).await
}

/// The same of a keyspace that has tables; `None` if they were emptied.
///
/// # Errors
/// When there are no tables, the cluster does not answer, or the keyspace is of another version.
pub(super) async fn read_identity(
    driver: &Driver,
    keyspace: &str,
) -> Result<Option<Meta>, ArchiveError> {
    // By key: a scan of the table would wait for a node that stands still.
    let select = format!(
        "SELECT key, value FROM {keyspace}.meta WHERE key IN ('id', 'version', 'bucket_width')"
    );
    let rows: Vec<(String, String)> = driver.ask(&select, ()).await?;
    let value = |name: &str| {
        let row = rows.iter().find(|(key, _)| key == name);
        row.map(|(_, value)| value.as_str())
    };
    let (Some(id), Some(version)) = (value("id"), value("version")) else {
        return Ok(None);
    };
    if version != VERSION {
        return Err(ArchiveError {
            reason: format!(
                "keyspace {keyspace} has schema version {version}, this Weir knows {VERSION}: run \
                 `weir archive migrate` of the newer of the two, or name another [archive] keyspace"
            ),
            temporary: false,
        });
    }
    let width = value("bucket_width").and_then(|width| width.parse().ok());
    let bucket_width = width
        .filter(|width| *width > 0)
        .ok_or_else(|| ArchiveError {
            reason: format!("keyspace {keyspace}: its meta table has no bucket_width"),
            temporary: false,
        })?;
    Ok(Some(Meta {
        id: id.to_owned(),
        bucket_width,
    }))
}

/// The names are checked where the configuration is read; nothing that a client wrote comes here.
fn create_keyspace(config: &CassandraConfig) -> String {
    let factor = config.replication_factor;
    let replication = match &config.datacenter {
        Some(datacenter) => {
            format!("{{'class': 'NetworkTopologyStrategy', '{datacenter}': {factor}}}")
        }
        None => format!("{{'class': 'NetworkTopologyStrategy', 'replication_factor': {factor}}}"),
    };
    format!(
        "CREATE KEYSPACE IF NOT EXISTS {} WITH replication = {replication}",
        config.keyspace
    )
}
