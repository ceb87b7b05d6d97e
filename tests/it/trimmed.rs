//! Knows: a message whose `previous` is lower than what the edge has, as the log was trimmed between:
//! nothing is skipped in silence.

use std::time::Duration;

use crate::checker::event::{What, hash_of};
use crate::checker::{Expect, Least, Tally, require_valid};
use crate::harness::record::payload;
use crate::harness::rig::Rig;
use crate::harness::weir::Config;
use crate::harness::{scan, until};

/// No sweep, so that only the next message can show what was lost.
fn unswept(config: &mut Config) {
    config.more.push_str("[room]\nsweep_interval = \"1h\"\n");
}

struct Author<'a> {
    rig: &'a Rig,
    number: u32,
    counter: u64,
}

impl Author<'_> {
    async fn publish(&mut self) -> String {
        self.counter += 1;
        let id = u64::from(self.number) << 32 | self.counter;
        let data = payload(id, 100);
        let recorder = &self.rig.recorder;
        let (room, hash) = (
            recorder.number(&self.rig.rooms[0]),
            hash_of(data.as_bytes()),
        );
        recorder.push(What::Invoke {
            id,
            room,
            author: self.number,
            hash,
        });
        self.rig
            .client("author")
            .await
            .publish(&self.rig.rooms[0], &data)
            .await
            .unwrap();
        recorder.push(What::Ok { id, at: None });
        data
    }
}

/// Loses the live copies of two messages, trims the log beyond them, publishes one more.
async fn lose_trim_publish(rig: &Rig, archived: bool) {
    let mut author = Author {
        rig,
        number: rig.recorder.number("author"),
        counter: 0,
    };
    let proxy = rig.proxy.as_ref().unwrap();
    author.publish().await;
    author.publish().await;
    until(
        "the first two arrived",
        Duration::from_secs(20),
        async || {
            rig.readers
                .iter()
                .all(|reader| reader.held(&rig.rooms[0]).received == 2)
        },
    )
    .await;
    let lost = proxy.lose(2, |frame| {
        frame.is_message() && frame.subject.starts_with("room.")
    });
    if !archived {
        // The worker cannot read what is to be trimmed.
        proxy.lose(usize::MAX, |frame| {
            frame.is_publish() && frame.subject.starts_with("$JS.API.DIRECT.GET.")
        });
    }
    author.publish().await;
    author.publish().await;
    until(
        "both live copies were lost",
        Duration::from_secs(5),
        async || lost.count() == 2,
    )
    .await;
    let newest = scan::stream(&rig.nats).await.last().unwrap().offset;
    if archived {
        until(
            "the archive has them",
            Duration::from_secs(30),
            async || rig.weir.archive().up_to().await >= newest,
        )
        .await;
    }
    let generation = scan::generations(&rig.nats).await.pop().unwrap();
    let stream = rig
        .nats
        .jetstream()
        .await
        .get_stream(&generation.stream)
        .await
        .unwrap();
    stream.purge().sequence(newest + 1).await.unwrap();
    proxy.heal();
    author.publish().await;
}

async fn readers(rig: &mut Rig) {
    for number in 0..5 {
        let rooms = rig.rooms.clone();
        rig.read(&format!("reader{number}"), &rooms);
    }
    rig.until_joined().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_comes_from_the_archive() {
    let mut rig = Rig::servers(1, true, unswept).await;
    readers(&mut rig).await;
    Box::pin(lose_trim_publish(&rig, true)).await;
    rig.settle().await;
    scan::record_archive(&rig.recorder, &rig.weir.archive()).await;
    let received = rig
        .readers
        .iter()
        .all(|reader| reader.held(&rig.rooms[0]).received == 5);
    let least = Least {
        acks: 5,
        receipts: 10,
        ..Least::default()
    };
    require_valid(
        &rig.recorder.history(),
        &Expect {
            least,
            ..Expect::default()
        },
    );
    assert!(received, "some reader does not have all five");
    rig.require_calm();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_and_is_nowhere_is_a_declared_gap() {
    let mut rig = Rig::servers(1, true, unswept).await;
    readers(&mut rig).await;
    Box::pin(lose_trim_publish(&rig, false)).await;
    // Whoever missed the two is told so: a second join, `recovered: false`.
    until(
        "every reader was told",
        Duration::from_secs(30),
        async || Tally::of(&rig.recorder.history()).declared_gaps == rig.readers.len(),
    )
    .await;
    rig.settle().await;
    let history = rig.recorder.history();
    let least = Least {
        acks: 5,
        receipts: 10,
        declared_gaps: 5,
        ..Least::default()
    };
    require_valid(
        &history,
        &Expect {
            least,
            ..Expect::default()
        },
    );
    rig.require_calm();
}
