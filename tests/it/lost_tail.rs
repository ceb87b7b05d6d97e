//! Knows: the last live message of a room is lost on its way, then silence: everyone has it in 10 s.

use std::time::{Duration, Instant};

use crate::checker::event::{What, hash_of};
use crate::checker::{Expect, Least, require_valid};
use crate::figures::figure;
use crate::harness::record::payload;
use crate::harness::rig::Rig;
use crate::harness::{either, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_live_message_is_lost_and_everyone_has_it_within_ten_seconds() {
    let mut rig = Rig::servers(3, true, |_| {}).await;
    for number in 0..9 {
        let rooms = [rig.rooms[number % 3].clone()];
        rig.read(&format!("reader{number}"), &rooms);
    }
    rig.until_joined().await;
    let mut author = rig.client("author").await;
    let number = rig.recorder.number("author");
    let proxy = rig.proxy.as_ref().unwrap();
    let mut slowest = Duration::ZERO;
    let mut counter = 0;
    for _ in 0..either(2, 34) {
        for room in &rig.rooms {
            // Two that arrive, and a last one that does not.
            for last in [false, false, true] {
                counter += 1;
                let id = u64::from(number) << 32 | counter;
                let data = payload(id, 100);
                let marker = data.clone();
                let lost = proxy.lose(usize::from(last), move |frame| {
                    frame.is_message() && frame.subject.starts_with("room.") && frame.holds(&marker)
                });
                let (room_number, hash) = (rig.recorder.number(room), hash_of(data.as_bytes()));
                rig.recorder.push(What::Invoke {
                    id,
                    room: room_number,
                    author: number,
                    hash,
                });
                author.publish(room, &data).await.unwrap();
                rig.recorder.push(What::Ok { id, at: None });
                if last {
                    let lost_now = async || lost.count() == 1;
                    until(
                        "the live copy passed the proxy",
                        Duration::from_secs(5),
                        lost_now,
                    )
                    .await;
                }
            }
            let since = Instant::now();
            let received = || rig.recorder.count(|what| matches!(what, What::Recv { .. }));
            let expected = 3 * counter as usize;
            until(
                "everyone has the lost tail",
                Duration::from_secs(10),
                async || received() == expected,
            )
            .await;
            slowest = slowest.max(since.elapsed());
        }
    }
    figure!(
        "the slowest of {} lost tails came after {slowest:?}",
        counter / 3
    );
    rig.settle().await;
    rig.scan().await;
    rig.require_calm();
    let acks = counter as usize;
    let least = Least {
        acks,
        receipts: 3 * acks,
        ..Least::default()
    };
    let expect = Expect {
        scanned: true,
        archived: true,
        least,
        ..Expect::default()
    };
    let tally = require_valid(&rig.recorder.history(), &expect);
    assert_eq!(tally.declared_gaps, 0);
}
