//! Knows: `weir archive copy`: all that one archive has goes into another while Weir runs; what is held is taken before the rows
//! and recorded after them. Never: SQL, files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::{Deserialize, Serialize};
use weir_history::Archive;
use weir_history::held::Held;
use weir_history::listing::{ListedRoom, ListedRow, RowKey, StreamRecord};
use weir_nats::{Epoch, Seq};

use super::fill::Fill;
use super::progress::Progress;
use super::walk::StreamsByEpoch;
use super::{Failure, any_archive, existing_archive, failed, patiently, walk};
use crate::cli::{Common, complain, key_value};
use crate::config::{ConfigFile, Loaded};

/// Notes in the target: the id of the archive that it is a copy of, and how far the copy is.
const SOURCE_NOTE: &str = "copy.source";
const STATE_NOTE: &str = "copy.state";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The configuration whose [archive] is the target
    #[arg(long, value_name = "FILE")]
    to_config: PathBuf,
    /// The data folder of that configuration
    #[arg(long, value_name = "DIR")]
    to_data: Option<PathBuf>,
    /// Any key of that configuration; may be repeated
    #[arg(long = "to-set", value_name = "KEY=VALUE", value_parser = key_value)]
    to_sets: Vec<(String, String)>,
}

type Ranges = BTreeMap<String, Vec<(u64, u64)>>;

/// How far a copy is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// What the target has, from copies that were finished.
    done: Option<Ranges>,
    /// A copy that is not finished.
    under_way: Option<UnderWay>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct UnderWay {
    /// What the source held when it began: recorded in the target at its end.
    held: Ranges,
    /// The last room that was copied whole.
    room: Option<String>,
    /// The last row of the room that was not.
    row: Option<LastRow>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LastRow {
    log: String,
    room: String,
    offset: Seq,
    epoch: String,
    id: String,
}

impl LastRow {
    fn is_in(&self, room: &ListedRoom) -> bool {
        self.log == room.log && self.room == room.room.channel()
    }

    fn key(self) -> RowKey {
        RowKey {
            seq: self.offset,
            epoch: self.epoch,
            id: self.id,
        }
    }
}

pub(super) async fn run(loaded: &Loaded, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let to = Common {
        config: Some(arguments.to_config.clone()),
        data: arguments.to_data.clone(),
        sets: arguments.to_sets.clone(),
    };
    let to = to.load(&ConfigFile::None).map_err(Failure::Config)?;
    let source = existing_archive(&loaded.config).await?;
    let target = any_archive(&to.config).await?;
    let mut copy = Copy {
        state: State::default(),
        source,
        target,
        rows: 0,
        conflicts: 0,
    };
    copy.is_allowed().await?;
    copy.all().await?;
    let (from, to) = (copy.source.about(), copy.target.about());
    complain(&format!(
        "{} has all that {} held; {} rows were copied",
        to.place, from.place, copy.rows
    ));
    if copy.conflicts > 0 {
        complain(&format!(
            "{} messages are in the target's quarantine, as another has their offset in the same stream",
            copy.conflicts
        ));
    }
    Ok(ExitCode::SUCCESS)
}

struct Copy {
    source: Archive,
    target: Archive,
    state: State,
    rows: u64,
    conflicts: u64,
}

impl Copy {
    /// The target is empty, or a copy of the same archive.
    async fn is_allowed(&mut self) -> Result<(), Failure> {
        let target = &self.target;
        let (place, id) = (target.about().place, self.source.about().id);
        if id == target.about().id {
            return Err(Failure::Config(format!(
                "{place} is the archive itself: --to-config must name another"
            )));
        }
        let of = patiently(async || target.note(SOURCE_NOTE.into()).await).await?;
        match of {
            Some(of) if of == id => {
                let state = patiently(async || target.note(STATE_NOTE.into()).await).await?;
                let state = state.unwrap_or_else(|| "{}".into());
                self.state = serde_json::from_str(&state).map_err(|error| {
                    failed(format!(
                        "the note {STATE_NOTE} in {place} cannot be read: {error}"
                    ))
                })?;
            }
            Some(of) => {
                return Err(failed(format!(
                    "{place} is a copy of another archive ({of}, and this one is {id}): give an empty one"
                )));
            }
            None => {
                let is_empty = patiently(async || target.streams().await).await?.is_empty()
                    && walk::rooms(target, None).await?.is_empty()
                    && walk::quarantined(target, None).await?.is_empty();
                if !is_empty {
                    return Err(failed(format!(
                        "{place} is not empty, and no copy of this archive: give an empty one, or import an export \
                         into it"
                    )));
                }
                patiently(async || target.leave_note(SOURCE_NOTE.into(), id.clone()).await).await?;
            }
        }
        Ok(())
    }

    /// Finishes what is under way, then copies what came since.
    async fn all(&mut self) -> Result<(), Failure> {
        if self.state.under_way.is_some() {
            complain("goes on with the copy that was not finished");
            self.one().await?;
        }
        let held = patiently(async || self.source.held_now().await).await?;
        let held: Ranges = held
            .iter()
            .map(|(stream, held)| (stream.clone(), held.ranges().to_vec()))
            .collect();
        if self.state.done.as_ref() == Some(&held) {
            let fill = Fill::new(self.target.clone(), Vec::new()).await?;
            return self.copy_erasures(&fill).await;
        }
        self.state.under_way = Some(UnderWay {
            held,
            room: None,
            row: None,
        });
        self.save().await?;
        self.one().await
    }

    async fn one(&mut self) -> Result<(), Failure> {
        let Some(way) = self.state.under_way.clone() else {
            return Ok(());
        };
        let streams = patiently(async || self.source.streams().await).await?;
        let done = self.state.done.clone().unwrap_or_default();
        let plan = Plan::new(&streams, &way.held, &done);
        let mut fill = Fill::new(self.target.clone(), streams).await?;
        self.copy_erasures(&fill).await?;
        self.copy_rows(&plan, &mut fill, &way).await?;
        self.copy_quarantine(&plan, &mut fill).await?;
        fill.write().await?;
        // Given while rows were on their way.
        self.copy_erasures(&fill).await?;
        for stream in patiently(async || self.source.streams().await).await? {
            let name = &stream.generation.stream;
            let Some(ranges) = way.held.get(name) else {
                continue;
            };
            // Where rows have left by age, a recovery across them must not be called whole there either.
            let log = stream.log;
            let expired = patiently(async || self.source.any_expired_to(log.clone()).await).await?;
            let held = Held::from_ranges(ranges.clone()).above(expired);
            fill.held(name, held).await?;
        }
        self.conflicts += fill.conflicts;
        self.state = State {
            done: Some(way.held),
            under_way: None,
        };
        self.save().await
    }

    async fn copy_erasures(&self, fill: &Fill) -> Result<(), Failure> {
        for one in patiently(async || self.source.erasures().await).await? {
            fill.erase(&one.order).await?;
        }
        Ok(())
    }

    async fn copy_rows(
        &mut self,
        plan: &Plan,
        fill: &mut Fill,
        way: &UnderWay,
    ) -> Result<(), Failure> {
        let is_first = self.state.done.is_none() && way.room.is_none() && way.row.is_none();
        let total = if is_first {
            patiently(async || self.source.totals().await).await?.rows
        } else {
            None
        };
        let mut progress = Progress::new("rows", total);
        let mut cursor = way.room.clone();
        let mut begun = way.row.clone();
        loop {
            let rooms = walk::rooms(&self.source, cursor.as_deref()).await?;
            if rooms.is_empty() {
                break;
            }
            for room in rooms {
                let after = begun.take_if(|row| row.is_in(&room)).map(LastRow::key);
                if let Some(first) = plan.first_of(&room.log) {
                    let after = after.or_else(|| Some(RowKey::end_of(first.just_before())));
                    self.copy_room(plan, fill, &room, after, cursor.as_ref(), &mut progress)
                        .await?;
                }
                cursor = Some(room.cursor);
            }
        }
        self.rows += progress.done();
        Ok(())
    }

    async fn copy_room(
        &mut self,
        plan: &Plan,
        fill: &mut Fill,
        room: &ListedRoom,
        mut after: Option<RowKey>,
        before: Option<&String>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        loop {
            let page = walk::rows(&self.source, &room.log, &room.room, after.as_ref()).await?;
            for row in &page.rows {
                let seq = row.message.seq;
                if plan.has(&room.log, &row.epoch, seq)? {
                    continue;
                }
                progress.add(1);
                let message = row.message.as_ref().clone();
                if fill.row(&room.log, room.room.clone(), &row.epoch, message)? {
                    fill.write().await?;
                    let key = row.key();
                    if let Some(way) = &mut self.state.under_way {
                        way.room = before.cloned();
                        way.row = Some(LastRow {
                            log: room.log.clone(),
                            room: room.room.channel().to_owned(),
                            offset: key.seq,
                            epoch: key.epoch,
                            id: key.id,
                        });
                    }
                    self.save().await?;
                }
            }
            after = page.rows.last().map(ListedRow::key);
            if !page.more {
                return Ok(());
            }
        }
    }

    async fn copy_quarantine(&self, plan: &Plan, fill: &mut Fill) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = walk::quarantined(&self.source, after.as_ref()).await?;
            let Some((stream, last)) = page.last() else {
                return Ok(());
            };
            after = Some((stream.clone(), last.seq));
            for (stream, one) in page {
                let is_there = plan.done.get(&stream).is_some_and(|held| held.has(one.seq));
                if !is_there && fill.quarantined(&stream, one)? {
                    fill.write().await?;
                }
            }
        }
    }

    async fn save(&self) -> Result<(), Failure> {
        let text = serde_json::to_string(&self.state).map_err(failed)?;
        patiently(async || {
            self.target
                .leave_note(STATE_NOTE.into(), text.clone())
                .await
        })
        .await
    }
}

/// What is still to be copied.
struct Plan {
    streams: StreamsByEpoch,
    /// By stream: what earlier copies brought.
    done: BTreeMap<String, Held>,
    /// By log: the lowest sequence that they did not.
    first: BTreeMap<String, Seq>,
}

impl Plan {
    fn new(streams: &[StreamRecord], held: &Ranges, done: &Ranges) -> Self {
        let to_held = |ranges: Option<&Vec<(u64, u64)>>| {
            Held::from_ranges(ranges.into_iter().flatten().copied())
        };
        let mut first: BTreeMap<String, Seq> = BTreeMap::new();
        for stream in streams {
            let name = &stream.generation.stream;
            let (held, done) = (to_held(held.get(name)), to_held(done.get(name)));
            // A stream of which nothing was copied may have rows that are not held yet.
            let lowest = match held.minus(&done).ranges().first() {
                Some((from, _)) if !done.ranges().is_empty() => Seq::new(*from),
                None if !done.ranges().is_empty() => continue,
                _ => Seq::ZERO,
            };
            first
                .entry(stream.log.clone())
                .and_modify(|there| *there = lowest.min(*there))
                .or_insert(lowest);
        }
        Self {
            streams: StreamsByEpoch::new(streams.iter().cloned()),
            done: done
                .iter()
                .map(|(stream, ranges)| (stream.clone(), Held::from_ranges(ranges.clone())))
                .collect(),
            first,
        }
    }

    /// Where to begin in the rooms of a log; `None` if nothing of it is new.
    fn first_of(&self, log: &str) -> Option<Seq> {
        self.first.get(log).copied()
    }

    fn has(&self, log: &str, epoch: &Epoch, seq: Seq) -> Result<bool, Failure> {
        let stream = &self.streams.of(log, epoch, seq)?.generation.stream;
        Ok(self.done.get(stream).is_some_and(|held| held.has(seq)))
    }
}
