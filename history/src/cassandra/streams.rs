//! Knows: which streams a keyspace knows, and which of their ranges it holds. Never: rows.

use std::collections::HashMap;

use weir_nats::guard::Known;
use weir_nats::{Epoch, Seq};

use super::{Link, lock, to_seq};
use crate::archive::{ArchiveError, HeldByStream};
use crate::held::Held;

/// Streams that a keyspace is read to have: generations of all slots of all logs.
const STREAMS_MAX: usize = 100_000;
/// Ranges that it is read to hold.
const RANGES_MAX: usize = 1_000_000;

/// A stream as the keyspace knows it.
pub(super) struct KnownStream {
    pub(super) log: String,
    pub(super) stream: String,
    pub(super) slot: u16,
    pub(super) epoch: Epoch,
    pub(super) from: Seq,
    pub(super) known: Known,
}

pub(super) async fn read_streams(link: &Link) -> Result<Vec<KnownStream>, ArchiveError> {
    type Row = (
        (String, String, Option<i32>, Option<String>, Option<i64>),
        (Option<String>, Option<i64>, Option<String>, Option<i64>),
    );
    let rows = link.statements.streams(&link.driver, STREAMS_MAX).await?;
    let read = |((log, stream, slot, epoch, from), (created, seq, id, time_ms)): Row| {
        // A row whose first half is not there yet is of another process, this very moment.
        let epoch = Epoch::new(&epoch?).ok()?;
        Some(KnownStream {
            log,
            stream,
            slot: u16::try_from(slot?).ok()?,
            epoch,
            from: to_seq(from?),
            known: Known {
                created: created.unwrap_or_default(),
                seq: to_seq(seq.unwrap_or(0)),
                id: id.unwrap_or_default(),
                time_ms: time_ms.unwrap_or(0),
            },
        })
    };
    Ok(rows
        .into_iter()
        .filter_map(|(a, b, c, d, e, f, g, h, i)| read(((a, b, c, d, e), (f, g, h, i))))
        .collect())
}

pub(super) async fn read_held(link: &Link) -> Result<HeldByStream, ArchiveError> {
    let rows = link.statements.held(&link.driver, RANGES_MAX).await?;
    let own = lock(&link.meta).id.clone();
    let mut held: HashMap<String, Held> = HashMap::new();
    for (archive, stream, from, to) in rows {
        if archive != own {
            continue;
        }
        held.entry(stream)
            .or_default()
            .add(to_seq(from), to_seq(to));
    }
    Ok(held)
}
