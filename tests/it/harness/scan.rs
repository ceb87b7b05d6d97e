//! Knows: what streams and the archive hold in the end, read without Weir. Never: Weir's own readers.

use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;

use super::archive::ArchiveAt;
use super::nats::Nats;
use super::record::Recorder;
use crate::checker::event::{Tier, What};

/// A stored message as a scan finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) room: String,
    pub(crate) epoch: String,
    pub(crate) offset: u64,
    pub(crate) author: String,
    pub(crate) data: Vec<u8>,
}

/// Part of what the KV bucket `weir` says under `placement.<log>`.
#[derive(Debug, Deserialize)]
struct Placement {
    slots: Vec<Slot>,
}

#[derive(Debug, Deserialize)]
struct Slot {
    generations: Vec<Generation>,
}

/// One life of a slot.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Generation {
    pub(crate) stream: String,
    pub(crate) epoch: String,
    pub(crate) from: u64,
}

/// The lives of the log `rooms`, oldest first.
pub(crate) async fn generations(nats: &Nats) -> Vec<Generation> {
    let bucket = nats.jetstream().await.get_key_value("weir").await.unwrap();
    let value = bucket
        .get("placement.rooms")
        .await
        .unwrap()
        .expect("the log is placed");
    let placement: Placement = serde_json::from_slice(&value).unwrap();
    placement
        .slots
        .into_iter()
        .flat_map(|slot| slot.generations)
        .collect()
}

/// Every message of the log `rooms` that JetStream holds, oldest first.
pub(crate) async fn stream(nats: &Nats) -> Vec<Stored> {
    let client = nats.client("test").await;
    let mut all = Vec::new();
    for generation in generations(nats).await {
        let mut next = generation.from;
        while let Some(sequence) = page(&client, &generation, next, &mut all).await {
            next = sequence + 1;
        }
    }
    all
}

/// Reads one page from `from`; the last sequence read, or `None` at the end.
async fn page(
    client: &async_nats::Client,
    generation: &Generation,
    from: u64,
    all: &mut Vec<Stored>,
) -> Option<u64> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    let subject = format!("$JS.API.DIRECT.GET.{}", generation.stream);
    let body = json!({ "seq": from, "batch": 500, "next_by_subj": ">" }).to_string();
    client
        .publish_with_reply(subject, inbox, body.into())
        .await
        .unwrap();
    let mut last = None;
    loop {
        let answer = super::within("scan", Duration::from_secs(20), answers.next())
            .await
            .unwrap();
        if answer.status.is_some() {
            return last;
        }
        let headers = answer.headers.unwrap_or_default();
        let offset = value(&headers, "Nats-Sequence").parse().unwrap();
        let mut tokens = value(&headers, "Nats-Subject").split('.').skip(3);
        let (ns, id) = (tokens.next().unwrap(), tokens.next().unwrap());
        all.push(Stored {
            room: format!("{ns}:{id}"),
            epoch: generation.epoch.clone(),
            offset,
            author: value(&headers, "Weir-User").to_owned(),
            data: answer.payload.to_vec(),
        });
        last = Some(offset);
    }
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get_last(name).map_or("", |value| value.as_str())
}

/// Writes the stream's rows into the record.
pub(crate) async fn record_stream(recorder: &Recorder, nats: &Nats) -> usize {
    let rows = stream(nats).await;
    record(recorder, Tier::Stream, &rows);
    rows.len()
}

/// Writes the archive's rows into the record.
pub(crate) async fn record_archive(recorder: &Recorder, archive: &ArchiveAt) -> usize {
    let rows = archive.rows().await;
    record(recorder, Tier::Archive, &rows);
    rows.len()
}

fn record(recorder: &Recorder, tier: Tier, rows: &[Stored]) {
    for row in rows {
        let at = recorder.at(&row.epoch, row.offset);
        let seen = recorder.seen(&row.room, at, &row.author, &row.data);
        recorder.push(What::Row { tier, seen });
    }
}
