//! Knows: in which pages an archive is walked, and that each is asked for patiently. Never: what is done with rows.

use std::collections::HashMap;

use weir_history::Archive;
use weir_history::archive::Quarantined;
use weir_history::listing::{ListedRoom, ListedRows, RowKey, StreamRecord};
use weir_nats::{Epoch, RoomName, Seq};

use super::{Failure, failed, patiently};

const ROOMS_MAX: u32 = 1_000;
const ROWS_MAX: u32 = 1_000;
const ROWS_MAX_BYTES: u32 = 2 << 20;
/// Each may have a megabyte.
const QUARANTINED_MAX: u32 = 16;

/// The rooms behind a cursor; none is the end.
pub(super) async fn rooms(
    archive: &Archive,
    after: Option<&str>,
) -> Result<Vec<ListedRoom>, Failure> {
    patiently(async || archive.rooms(after.map(str::to_owned), ROOMS_MAX).await).await
}

/// The rows of a room behind `after`.
pub(super) async fn rows(
    archive: &Archive,
    log: &str,
    room: &RoomName,
    after: Option<&RowKey>,
) -> Result<ListedRows, Failure> {
    let page = async || {
        let (log, room, after) = (log.to_owned(), room.clone(), after.cloned());
        archive
            .rows_of(log, room, after, ROWS_MAX, ROWS_MAX_BYTES)
            .await
    };
    patiently(page).await
}

/// What is in quarantine behind a stream and sequence; nothing is the end.
pub(super) async fn quarantined(
    archive: &Archive,
    after: Option<&(String, Seq)>,
) -> Result<Vec<(String, Quarantined)>, Failure> {
    patiently(async || archive.quarantined(after.cloned(), QUARANTINED_MAX).await).await
}

/// Which stream a row is of: rows know their log and epoch.
pub(super) struct StreamsByEpoch(HashMap<(String, Epoch), Vec<StreamRecord>>);

impl StreamsByEpoch {
    pub(super) fn new(streams: impl IntoIterator<Item = StreamRecord>) -> Self {
        let mut all: HashMap<_, Vec<StreamRecord>> = HashMap::new();
        for stream in streams {
            let key = (stream.log.clone(), stream.generation.epoch.clone());
            all.entry(key).or_default().push(stream);
        }
        for streams in all.values_mut() {
            streams.sort_by_key(|stream| stream.generation.from);
        }
        Self(all)
    }

    /// A slot may have moved to another stream within an epoch: the last that begins at or below the row has it.
    pub(super) fn of(&self, log: &str, epoch: &Epoch, seq: Seq) -> Result<&StreamRecord, Failure> {
        let streams = self.0.get(&(log.to_owned(), epoch.clone()));
        let streams = streams.map(Vec::as_slice).unwrap_or_default();
        streams
            .iter()
            .rfind(|stream| stream.generation.from <= seq)
            .or_else(|| streams.first())
            .ok_or_else(|| {
                failed(format!(
                    "the row {seq} of the log {log} is of the epoch {epoch}, which no stream has"
                ))
            })
    }
}
