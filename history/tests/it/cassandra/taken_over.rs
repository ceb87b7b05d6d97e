//! What happened to a keyspace behind the back of a process that goes on with it.

use std::time::Duration;

use weir_nats::Seq;

use super::{WITHIN, batch, config, message, offsets, open, scylla};
use crate::rig::{Kind, Rig, room};

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + WITHIN;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A worker has a stream, another has it and is killed between a row and the claim, the log loses that message, and
/// the stream comes back to the first: what it knew when it had the stream before says nothing of that row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_worker_left_unclaimed_is_seen_when_a_stream_comes_back() {
    let rig = Rig::on(Kind::Cassandra).await;
    let lobby = room("chat:lobby");
    let archive = rig.archive().await;
    let worker = rig.work(&archive);
    rig.publish(std::slice::from_ref(&lobby), 10).await;
    rig.archived(&archive).await;
    drop(worker);

    let session = scylla(&rig.cassandra()).await;
    let keyspace = rig.cassandra().keyspace;
    let epoch = rig.place(&lobby).current().epoch.as_str().to_owned();
    let last = i64::try_from(rig.last().await.get()).unwrap();
    let select = format!(
        "SELECT msg FROM {keyspace}.messages
         WHERE log = 'rooms' AND room = 'chat:lobby' AND epoch = ? AND bucket = 0 AND off = ?"
    );
    let found = session.query_unpaged(select, (&epoch, last)).await.unwrap();
    let rows = found.into_rows_result().unwrap();
    let (envelope,): (Vec<u8>,) = rows.single_row().unwrap();
    let insert = format!(
        "INSERT INTO {keyspace}.messages (log, room, epoch, bucket, off, id, msg)
         VALUES ('rooms', 'chat:lobby', ?, 0, ?, 'lost', ?)"
    );
    let row = (&epoch, last + 1, envelope);
    session.query_unpaged(insert, row).await.unwrap();

    let worker = rig.work(&archive);
    rig.publish(std::slice::from_ref(&lobby), 1).await;
    let conflicts = || worker.metrics.counts.conflicts.value();
    until("the other message is seen", || conflicts() > 0).await;
    assert_eq!(conflicts(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_dropped_under_a_running_process_is_made_anew() {
    let own = config();
    let archive = open(&own.config).await;
    let room = room("chat:lobby");
    let rows = |from: u64, to: u64| {
        (from..=to)
            .map(|seq| (room.clone(), message(seq, 1_000, &seq.to_string(), b"x")))
            .collect::<Vec<_>>()
    };
    let ten = || batch("one", "ROOMS_0", rows(1, 10), (1, 10));
    archive.append(ten()).await.unwrap();
    let id = archive.id().unwrap();
    let session = scylla(&own.config).await;
    let drop = format!("DROP KEYSPACE {}", own.config.keyspace);
    session.query_unpaged(drop, ()).await.unwrap();
    until("it has a new identity and claims nothing", || {
        archive.id().unwrap() != id && !archive.held().borrow().contains_key("ROOMS_0")
    })
    .await;
    archive.append(ten()).await.unwrap();
    assert_eq!(archive.held().borrow()["ROOMS_0"].ranges(), [(1, 10)]);
    let all = offsets(&archive, &room, false, 5).await;
    assert_eq!(all, (1..=10).collect::<Vec<u64>>());
    assert_eq!(
        archive.held_now().await.unwrap()["ROOMS_0"].end(),
        Seq::new(10)
    );
}
