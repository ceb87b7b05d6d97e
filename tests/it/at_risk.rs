//! Knows: an archive that falls behind is an alarm before anything is lost, and no reason to be unready.

use std::time::Duration;

use crate::harness::archive::ArchiveAt;
use crate::harness::rig::Rig;
use crate::harness::until;

const AT_RISK: &str = "weir::archive_at_risk";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_stands_still_is_an_alarm_before_messages_are_lost() {
    let rig = Rig::servers(1, false, |config| {
        config.archive = ArchiveAt::sqlite();
        config.archive_more.push_str("allowed_lag = \"15s\"\n");
        config
            .log
            .push_str("max_age = \"30s\"\nduplicate_window = \"10s\"\n");
    })
    .await;
    let mut client = rig.client("a").await;
    client.publish("chat:r0", "0").await.unwrap();
    let archive = rig.weir.archive();
    until("it is archived", Duration::from_secs(30), async || {
        archive.up_to().await > 0
    })
    .await;
    let used = "weir_archive_retention_used_ratio{stream=\"ROOMS_0\"}";
    let hours = "weir_archive_hours_until_loss{stream=\"ROOMS_0\"}";
    let within = Duration::from_secs(20);
    rig.weir
        .until_metric(used, within, |used| used < 0.01)
        .await;
    rig.weir
        .until_metric(hours, within, |hours| hours > 29.0 / 3_600.0)
        .await;
    assert!(!rig.weir.log().contains(AT_RISK));

    let locker = rusqlite::Connection::open(archive.file()).unwrap();
    locker.busy_timeout(Duration::from_secs(10)).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    client.publish("chat:r0", "1").await.unwrap();
    until("the alarm", Duration::from_secs(60), async || {
        assert!(rig.weir.ready().await, "unready for a lagging archive");
        rig.weir.log().contains(AT_RISK)
    })
    .await;
    // There is still time: the message is in the stream, and the figures say so, too.
    let share = rig.weir.metric(used).await.unwrap();
    assert!((0.3..1.0).contains(&share), "{share}");
    assert_eq!(
        rig.weir.metric("weir_archive_streams_at_risk").await,
        Some(1.0)
    );
    assert!(rig.weir.metric("weir_archive_lag_seconds").await.unwrap() > 5.0);
    assert!(rig.weir.metric("weir_archive_retries").await.unwrap() > 0.0);
    locker.execute_batch("ROLLBACK").unwrap();
    until("it is archived", Duration::from_secs(30), async || {
        archive.rows().await.len() == 2
    })
    .await;
    rig.weir
        .until_metric("weir_archive_streams_at_risk", within, |streams| {
            streams == 0.0
        })
        .await;
    assert!(
        rig.weir
            .metric("weir_archive_write_seconds_count")
            .await
            .unwrap()
            >= 2.0
    );
    rig.require_calm();
}
