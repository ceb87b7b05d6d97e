//! Knows: `weir archive status`: what the archive holds beside what the log has, and what is wrong with it. Never: changes anything.

mod judge;
mod show;

use std::collections::BTreeMap;
use std::process::ExitCode;

use async_nats::jetstream::{Context, ErrorCode, context::GetStreamErrorKind};
use clap::Args;
use serde::Serialize;
use weir_history::Archive;
use weir_history::listing::{StreamRecord, Totals};
use weir_nats::Seq;
use weir_nats::ambient::now_ms;
use weir_nats::message::{header, last, parse_time_ms};
use weir_nats::placement::Generation;
use weir_nats::replay::Replay;
use weir_nats::stream::context;

use self::judge::{Head, Judged, judge};
use super::progress::Progress;
use super::{Failure, Nats, existing_archive, patiently, walk};
use crate::cli::{Common, say};
use crate::config::Loaded;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// One JSON object instead of lines to read
    #[arg(long)]
    json: bool,
    /// Count rows one by one where the archive does not know how many it has
    #[arg(long)]
    count: bool,
}

#[derive(Serialize)]
struct Status {
    archive: ArchiveStatus,
    /// Why the log could not be asked.
    nats_error: Option<String>,
    streams: Vec<StreamStatus>,
    /// What somebody has to look at; the exit code is 1 if there is anything.
    wrong: Vec<String>,
}

#[derive(Serialize)]
struct ArchiveStatus {
    kind: &'static str,
    place: String,
    id: String,
    schema: String,
    rooms: Option<u64>,
    rows: Option<u64>,
    quarantined: Option<u64>,
    disk_bytes: Option<u64>,
}

#[derive(Serialize)]
struct StreamStatus {
    stream: String,
    log: String,
    slot: u16,
    epoch: String,
    /// The first sequence that it can have.
    from: u64,
    /// Both ends included.
    held: Vec<(u64, u64)>,
    /// What is missing between `from` and the end of what is held, and what the log dropped behind that.
    holes: Vec<(u64, u64)>,
    /// The time of the newest archived message, milliseconds since 1970.
    newest_archived_ms: Option<i64>,
    /// The log's part; none where it was not asked or has no such stream any more.
    head: Option<Head>,
    lag_messages: Option<u64>,
    lag_seconds: Option<f64>,
    /// How full the stream is against the nearest of its limits, 0 to 1.
    full: Option<f64>,
    /// Until a message is dropped that is not archived, if nothing is archived from now on.
    hours_until_loss: Option<f64>,
}

/// A stream as archive or placement know it.
struct Known {
    log: String,
    slot: u16,
    generation: Generation,
    archived: Option<StreamRecord>,
    /// The highest sequence that it is known to have given, if it has ended.
    ended_at: Option<Seq>,
}

pub(super) async fn run(loaded: &Loaded, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let archive = existing_archive(&loaded.config).await?;
    let (nats, nats_error) = match Box::pin(Nats::connect(loaded)).await {
        Ok(nats) => (Some(nats), None),
        Err(error) => (None, Some(error)),
    };
    let known = known_streams(&archive, nats.as_ref()).await?;
    // The log first, so that what is archived meanwhile is not taken for missing.
    let mut heads = BTreeMap::new();
    if let Some(nats) = &nats {
        let js = context(nats.links.live.clone());
        for name in known.keys() {
            if let Some(head) = head(&js, name).await.map_err(super::failed)? {
                heads.insert(name.clone(), head);
            }
        }
    }
    let held = patiently(async || archive.held_now().await).await?;
    let known = known_streams(&archive, nats.as_ref()).await?;
    let mut streams = Vec::new();
    let mut wrong = Vec::new();
    for (name, stream) in known {
        let held = held.get(&name).cloned().unwrap_or_default();
        let mut head = heads.remove(&name);
        if let (Some(nats), Some(head)) = (&nats, &mut head) {
            let behind = held.end().max(stream.generation.from.just_before());
            if head.last > behind {
                head.oldest_unarchived_ms = time_after(&nats.links.reads, &stream, behind).await;
            }
        }
        let newest = stream.archived.as_ref().map(|one| one.known.time_ms);
        let newest = newest.filter(|time_ms| *time_ms > 0);
        let from = stream.generation.from;
        let mut judged = judge(from, &held, head.as_ref(), newest, now_ms());
        let end = held.end().max(from.just_before());
        if let Some(to) = stream.ended_at.filter(|to| head.is_none() && *to > end) {
            // Its stream is gone, and the archive no longer has what it once had.
            judged.holes.push((end.read_from(), to.get()));
        }
        wrong.extend(complaints(&name, &judged, loaded));
        streams.push(StreamStatus {
            stream: name,
            log: stream.log,
            slot: stream.slot,
            epoch: stream.generation.epoch.as_str().to_owned(),
            from: stream.generation.from.get(),
            held: held.ranges().to_vec(),
            holes: judged.holes,
            newest_archived_ms: newest,
            head,
            lag_messages: judged.lag_messages,
            lag_seconds: judged.lag_seconds,
            full: judged.full,
            hours_until_loss: judged.hours_until_loss,
        });
    }
    let status = Status {
        archive: archive_status(&archive, arguments).await?,
        nats_error,
        streams,
        wrong,
    };
    if arguments.json {
        let json = serde_json::to_string_pretty(&status).map_err(super::failed)?;
        say(&format!("{json}\n"));
    } else {
        say(&show::text(&status));
    }
    Ok(if status.wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn complaints(name: &str, judged: &Judged, loaded: &Loaded) -> Vec<String> {
    let mut wrong = Vec::new();
    if !judged.holes.is_empty() {
        let count = judged.holes.len();
        wrong.push(format!(
            "{name}: {count} {} what the log dropped before it was archived; recoveries across it are refused",
            if count == 1 { "hole:" } else { "holes:" }
        ));
    }
    let allowed_hours = loaded.config.archive.allowed_lag.as_secs_f64() / 3_600.0;
    if let Some(hours) = judged.hours_until_loss
        && hours < allowed_hours
    {
        wrong.push(format!(
            "{name}: messages that are not archived may be lost in {hours:.1} h, less than archive.allowed_lag \
             ({allowed_hours:.1} h): see why the archive is behind, or give the log more room (max_age, max_bytes)"
        ));
    }
    wrong
}

async fn known_streams(
    archive: &Archive,
    nats: Option<&Nats>,
) -> Result<BTreeMap<String, Known>, Failure> {
    let mut known = BTreeMap::new();
    for one in patiently(async || archive.streams().await).await? {
        known.insert(
            one.generation.stream.clone(),
            Known {
                log: one.log.clone(),
                slot: one.slot,
                generation: one.generation.clone(),
                archived: Some(one),
                ended_at: None,
            },
        );
    }
    for (log, record) in nats.iter().flat_map(|nats| &nats.placements) {
        for (slot, index) in record.slots.iter().zip(0..) {
            let ended = slot.ended.iter().map(|one| (&one.generation, Some(one.to)));
            let placed = slot.generations.iter().map(|generation| (generation, None));
            for (generation, ended_at) in ended.chain(placed) {
                let entry = known.entry(generation.stream.clone());
                let one = entry.or_insert_with(|| Known {
                    log: log.clone(),
                    slot: index,
                    generation: generation.clone(),
                    archived: None,
                    ended_at,
                });
                one.ended_at = one.ended_at.or(ended_at);
            }
        }
    }
    Ok(known)
}

/// What the leader says of a stream; `None` if there is none.
async fn head(js: &Context, stream: &str) -> Result<Option<Head>, String> {
    let mut stream = match js.get_stream(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                GetStreamErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                _ => Err(format!("the stream {stream} cannot be read: {error}")),
            };
        }
    };
    let info = stream.info().await.map_err(|error| error.to_string())?;
    let (config, state) = (&info.config, &info.state);
    let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
    let oldest_ms = i64::try_from(state.first_timestamp.unix_timestamp_nanos() / 1_000_000);
    Ok(Some(Head {
        first: Seq::new(state.first_sequence),
        last: Seq::new(state.last_sequence),
        messages: state.messages,
        bytes: state.bytes,
        oldest_ms: oldest_ms.ok().filter(|_| state.messages > 0),
        oldest_unarchived_ms: None,
        max_age_seconds: (!config.max_age.is_zero()).then_some(config.max_age.as_secs_f64()),
        max_bytes: limit(config.max_bytes),
        max_messages: limit(config.max_messages),
    }))
}

/// When the first message behind `after` was stored.
async fn time_after(reads: &async_nats::Client, stream: &Known, after: Seq) -> Option<i64> {
    let replay = Replay::new(reads.clone());
    let filter = format!("log.{}.>", stream.log);
    let found = replay
        .scan(&stream.generation.stream, &filter, after, 1)
        .await;
    // It is only for the estimate.
    parse_time_ms(last(&found.ok()?.first()?.headers, header::TIME)?)
}

async fn archive_status(
    archive: &Archive,
    arguments: &Arguments,
) -> Result<ArchiveStatus, Failure> {
    let about = archive.about();
    let mut totals: Totals = patiently(async || archive.totals().await).await?;
    if totals.rows.is_none() && arguments.count {
        let (rooms, rows) = count(archive).await?;
        totals.rooms = Some(rooms);
        totals.rows = Some(rows);
    }
    Ok(ArchiveStatus {
        kind: about.kind,
        place: about.place,
        id: about.id,
        schema: about.schema,
        rooms: totals.rooms,
        rows: totals.rows,
        quarantined: totals.quarantined,
        disk_bytes: totals.disk_bytes,
    })
}

/// Rooms and rows.
async fn count(archive: &Archive) -> Result<(u64, u64), Failure> {
    let mut progress = Progress::new("rows", None);
    let (mut count, mut cursor) = (0, None::<String>);
    loop {
        let rooms = walk::rooms(archive, cursor.as_deref()).await?;
        let Some(last) = rooms.last() else {
            return Ok((count, progress.done()));
        };
        cursor = Some(last.cursor.clone());
        count += rooms.len() as u64;
        for one in rooms {
            let all = (Seq::ZERO, Seq::MAX);
            let counted = patiently(async || {
                let (log, room) = (one.log.clone(), one.room.clone());
                archive.count(log, room, all, u64::MAX).await
            });
            progress.add(counted.await?.messages);
        }
    }
}
