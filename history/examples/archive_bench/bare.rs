//! Knows: how fast the driver alone is, with rows like the archive's. Never: Weir.

use futures_util::StreamExt as _;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};

use crate::rows::{ROOMS, payload};

/// Rows of a batch, which are of one partition.
const BATCH_ROWS: u64 = 50;
const AT_ONCE: usize = 4;

/// Writes `rows` rows to the node at `host:port`.
pub(crate) async fn append(node: &str, rows: u64) {
    let session = SessionBuilder::new()
        .known_node(node)
        .build()
        .await
        .unwrap();
    for statement in [
        "CREATE KEYSPACE bare WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}",
        "CREATE TABLE bare.messages (room text, off bigint, msg blob, PRIMARY KEY (room, off))",
    ] {
        session.query_unpaged(statement, ()).await.unwrap();
    }
    let insert = "INSERT INTO bare.messages (room, off, msg) VALUES (?, ?, ?)";
    let insert = session.prepare(insert).await.unwrap();
    let batches = (0..rows / BATCH_ROWS).map(|nth| {
        let (session, insert) = (&session, &insert);
        async move {
            let mut batch = Batch::new(BatchType::Unlogged);
            let name = format!("chat:room {}", nth % ROOMS);
            let mut values = Vec::new();
            for seq in nth * BATCH_ROWS..(nth + 1) * BATCH_ROWS {
                batch.append_statement(insert.clone());
                values.push((name.as_str(), i64::try_from(seq).unwrap(), payload(seq)));
            }
            session.batch(&batch, values).await.unwrap();
        }
    });
    futures_util::stream::iter(batches)
        .buffer_unordered(AT_ONCE)
        .for_each(|()| async {})
        .await;
}
