//! Knows: everybody comes back at once after Weir was restarted: each is recovered, and the archive is read once a room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use crate::figures::figure;
use crate::harness::client::{Client, Failure, Position, publish_body};
use crate::harness::rig::Rig;
use crate::harness::{either, heavy, scan, until};

/// Messages of a room; what was missed is the newest of them.
const EACH: usize = 80;
/// Sockets that are being opened at a time, as a listener's queue has an end.
const OPENING: usize = 100;

/// Connects and recovers as SDKs do: again, if it is told so.
async fn come_back(
    address: &str,
    room: &str,
    from: Option<&Position>,
    opening: &Semaphore,
) -> (Client, usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        assert!(Instant::now() < deadline, "{room} cannot be joined");
        let turn = opening.acquire().await.unwrap();
        let client = Client::connect(address, Some("reader")).await;
        drop(turn);
        let Ok(mut client) = client else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        match client.subscribe(room, from).await {
            Ok(joined) => {
                assert_eq!(joined.recovered, from.is_some(), "{room} since {from:?}");
                return (client, joined.publications.len());
            }
            Err(Failure::Error {
                temporary: true, ..
            }) => {}
            Err(Failure::Silent | Failure::Closed { .. }) => {}
            Err(failure) => panic!("{room}: {failure:?}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_comes_back_and_the_archive_is_read_once_a_room() {
    let _turn = heavy().await;
    let (rooms, clients) = either((20, 1_000), (100, 10_000));
    let mut rig = Rig::servers(rooms, false, |config| {
        config.client.push_str("command_rate_limit = 0\n");
    })
    .await;
    let mut author = rig.client("author").await;
    let mut waiting = Vec::new();
    for n in 0..EACH {
        for room in &rig.rooms {
            let body = publish_body(room, &n.to_string());
            waiting.push(author.send("publish", &body).await.unwrap());
        }
        for id in waiting.drain(..) {
            author.reply(id).await.unwrap();
        }
    }
    // Where each message lies, and so where whoever was there when it came stands.
    let rows = scan::stream(&rig.nats).await;
    let newest = rows.last().unwrap().offset;
    until("all is archived", Duration::from_secs(60), async || {
        rig.weir.archive().up_to().await >= newest
    })
    .await;
    // So that only the archive has what they missed.
    let generation = scan::generations(&rig.nats).await.pop().unwrap();
    let js = rig.nats.jetstream().await;
    let stream = js.get_stream(&generation.stream).await.unwrap();
    stream.purge().sequence(newest).await.unwrap();
    rig.weir.stop();
    rig.weir.spawn();
    rig.weir.until_ready().await;

    let opening = Arc::new(Semaphore::new(OPENING));
    let start = Instant::now();
    let came_back = (0..clients).map(|number| {
        let room = rig.rooms[number % rooms].clone();
        let mine: Vec<_> = rows.iter().filter(|row| row.room == room).collect();
        // One in ten is new, also among the first in each room; the others missed 0 to 40.
        let missed = number / rooms % 41;
        let row = mine[EACH - 1 - missed];
        let is_new = (number / rooms).is_multiple_of(10);
        let from = (!is_new).then(|| Position {
            epoch: row.epoch.clone(),
            offset: row.offset,
        });
        let (address, opening) = (rig.weir.address(), Arc::clone(&opening));
        tokio::spawn(async move {
            let (client, got) = come_back(&address, &room, from.as_ref(), &opening).await;
            let expected = if is_new { 0 } else { missed };
            assert_eq!(got, expected, "{room} since {from:?}");
            client
        })
    });
    let came_back: Vec<Client> = join_all(came_back.collect::<Vec<_>>())
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let took = start.elapsed();
    let metric = async |name: &str| rig.weir.metric(name).await.unwrap();
    let read = metric("weir_history_reads_total{tier=\"archive\"}").await;
    let queries = metric("weir_history_archive_queries_total").await;
    let from_ring = metric("weir_history_reads_total{tier=\"ring\"}").await;
    figure!(
        "{clients} clients in {rooms} rooms came back in {took:?}: {from_ring} from rings, \
         {read} pages of the archive, {queries} queries"
    );
    assert!(read <= rooms as f64, "{read} pages for {rooms} rooms");
    assert!(
        queries <= rooms as f64,
        "{queries} queries for {rooms} rooms"
    );
    assert_eq!(metric("weir_edge_recovered_false").await, 0.0);
    drop(came_back);
    rig.require_calm();
}
