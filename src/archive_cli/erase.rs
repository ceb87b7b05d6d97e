//! Knows: `weir archive erase`: how an order is given, written down first, and followed through processes, archive and streams.
//! Never: what an order covers, how a row or a message is erased; shows or logs no payload.

use std::collections::HashMap;
use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args};
use tokio::time::{Instant, sleep};
use weir_history::Archive;
use weir_nats::ambient::now_ms;
use weir_nats::erasure::book::{ArchiveProgress, Book, Process, StreamProgress};
use weir_nats::erasure::streams::{StreamEraser, is_passed};
use weir_nats::erasure::watch::NUDGE_SUBJECT;
use weir_nats::erasure::{ErasureError, Order, What};
use weir_nats::{RoomName, Seq};

use super::erase_list;
use super::progress::Progress;
use super::{Failure, Nats, any_archive, failed, patiently, version};
use crate::cli::{Common, complain, say, who};
use crate::config::Loaded;
use crate::telemetry;

/// How long processes that run may take to put an order in force.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(15);
/// A process that said nothing for so long is not waited for; each says every 20 s that it runs.
const SILENT_AFTER: Duration = Duration::from_secs(65);
/// Between looks at what others do.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Tries of a step of a stream, and the time between them.
const STREAM_TRIES_MAX: u32 = 8;
const STREAM_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["room", "user", "resume", "again", "list"])))]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Erase what was said in a room until now: its name as clients write it, such as chat:lobby
    #[arg(long)]
    room: Option<String>,
    /// Erase what a user wrote until now, in every room
    #[arg(long)]
    user: Option<String>,
    /// Go on with orders that are not carried out
    #[arg(long)]
    resume: bool,
    /// Look through the streams again for what was ever ordered: after JetStream was restored from a copy
    #[arg(long)]
    again: bool,
    /// List all orders: who gave them, when, and how far they are
    #[arg(long)]
    list: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Why, for the list
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

impl From<ErasureError> for Failure {
    fn from(error: ErasureError) -> Self {
        Self::Failed(error.to_string())
    }
}

pub(super) async fn run(loaded: &Loaded, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let nats = Box::pin(Nats::connect(loaded)).await;
    let nats = nats.map_err(Failure::Failed)?;
    let book = Book::open(nats.links.live.clone()).await?;
    if arguments.list {
        let archive = archive_here(loaded).await?;
        return erase_list::show(&book, archive.as_ref()).await;
    }
    // The audit's event goes where Weir's own log lines go.
    if let Err(error) = telemetry::start(&loaded.config.log) {
        complain(&format!("no log lines: {error}"));
    }
    let eraser = StreamEraser::new(nats.links.live.clone());
    let erasing = Erasing {
        loaded,
        nats,
        book,
        eraser,
    };
    if arguments.resume || arguments.again {
        return erasing.resume(arguments.again).await;
    }
    let what = what(arguments)?;
    match erasing.order(what, arguments).await? {
        Some((order, revision)) => {
            let done = erasing.carry_out(&order, revision, false).await?;
            Ok(code(done))
        }
        None => Ok(ExitCode::FAILURE),
    }
}

fn what(arguments: &Arguments) -> Result<What, Failure> {
    match (&arguments.room, &arguments.user) {
        (Some(room), _) => {
            let name = RoomName::parse(room)
                .map_err(|error| Failure::Config(format!("--room {room}: {error}")))?;
            Ok(What::Room(name.channel().to_owned()))
        }
        (None, Some(user)) if !user.is_empty() => Ok(What::User(user.clone())),
        _ => Err(Failure::Config(
            "--user: it is empty, and what nobody wrote cannot be told apart; name the room with --room".to_owned(),
        )),
    }
}

/// Carried out, and in force in every process.
fn code(done: bool) -> ExitCode {
    if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The archive that is configured, if it is there: a file may be another machine's.
async fn archive_here(loaded: &Loaded) -> Result<Option<Archive>, Failure> {
    let config = &loaded.config;
    match version(config).await? {
        Some(_) => any_archive(config).await.map(Some),
        None => Ok(None),
    }
}

struct Erasing<'a> {
    loaded: &'a Loaded,
    nats: Nats,
    book: Book,
    eraser: StreamEraser,
}

impl Erasing<'_> {
    /// Says what will be erased, asks, and writes the order down. `None`: the answer was no.
    async fn order(
        &self,
        what: What,
        arguments: &Arguments,
    ) -> Result<Option<(Order, u64)>, Failure> {
        let mut placed: Vec<_> = self
            .nats
            .placements
            .iter()
            .map(|(log, record)| (log.clone(), record.clone()))
            .collect();
        placed.sort_by(|a, b| a.0.cmp(&b.0));
        let (logs, newest_ms) = self.eraser.scope(&placed).await?;
        let reason = arguments.reason.clone();
        let order = Order::new(what, logs, newest_ms, who(), reason);
        self.preview(&order).await?;
        if !arguments.yes && !confirmed()? {
            say("nothing was erased\n");
            return Ok(None);
        }
        let revision = match self.book.write(&order).await {
            Err(ErasureError::TooMany) => {
                self.make_room().await?;
                self.book.write(&order).await?
            }
            written => written?,
        };
        tracing::info!(
            target: "audit",
            id = order.id,
            what = %order.what,
            by = order.by,
            reason = order.reason,
            "erasure is ordered"
        );
        say(&format!("order     {}\n", order.id));
        Ok(Some((order, revision)))
    }

    async fn preview(&self, order: &Order) -> Result<(), Failure> {
        say(&format!("erase     {}\n", order.what));
        let archive = archive_here(self.loaded).await?;
        match &archive {
            Some(archive) => {
                let rows = patiently(async || archive.erasable(order.what.clone()).await).await?;
                say(&match rows {
                    Some(rows) => format!("archive   {rows} rows\n"),
                    None => "archive   will be looked through\n".to_owned(),
                });
            }
            None => say("archive   not on this machine: the Weir that fills it will count\n"),
        }
        for log in &order.logs {
            for slot in &log.slots {
                for stream in &slot.streams {
                    let count = self.count(order, &log.log, stream, slot.up_to).await?;
                    say(&format!(
                        "stream    {stream}: {count}, up to message {}\n",
                        slot.up_to
                    ));
                }
            }
        }
        say("kept      what is stored after this; all other messages keep their offsets\n");
        Ok(())
    }

    /// What a stream has, as far as it is known without reading it whole.
    async fn count(
        &self,
        order: &Order,
        log: &str,
        stream: &str,
        up_to: Seq,
    ) -> Result<String, Failure> {
        match &order.what {
            What::User(_) => Ok("will be looked through".to_owned()),
            What::Room(room) => {
                let room = RoomName::parse(room).map_err(failed)?;
                let subject = room.stored_subject(log);
                let count = self.eraser.count(stream, &subject, up_to).await?;
                Ok(format!("{count} messages"))
            }
        }
    }

    /// Takes the oldest orders out that are carried out and that no stream has anything left of; the
    /// archive keeps its own record.
    async fn make_room(&self) -> Result<(), Failure> {
        for written in self.book.orders().await? {
            let order = &written.order;
            let is_done = self.book.progress(&order.id).await?.is_done(order);
            if is_done && is_passed(self.eraser.replay(), order).await? {
                self.book.remove(&order.id).await?;
                return Ok(());
            }
        }
        Err(ErasureError::TooMany.into())
    }

    async fn resume(&self, again: bool) -> Result<ExitCode, Failure> {
        let (mut all_done, mut found) = (true, false);
        for written in self.book.orders().await? {
            let order = &written.order;
            if again || !self.book.progress(&order.id).await?.is_done(order) {
                found = true;
                say(&format!("order     {} ({})\n", order.id, order.what));
                all_done &= self.carry_out(order, written.revision, again).await?;
            }
        }
        if !found {
            say("every order is carried out\n");
        }
        Ok(code(all_done))
    }

    /// Follows an order until nothing is left. True if so, and if every process has confirmed it.
    async fn carry_out(&self, order: &Order, revision: u64, again: bool) -> Result<bool, Failure> {
        let nudged = self.nats.links.live.publish(NUDGE_SUBJECT, "".into()).await;
        nudged.map_err(failed)?;
        let in_force = self.until_in_force(revision).await?;
        let archived = self.erase_archive(order).await?;
        let streams = match &archived {
            Some(held) => self.erase_streams(order, held, again).await?,
            None => false,
        };
        let done = in_force && archived.is_some() && streams;
        if done {
            say("done      nothing of it is left in the archive and the streams\n");
            self.say_left_to_do(order).await?;
            tracing::info!(target: "audit", id = order.id, "erasure is carried out");
        } else {
            complain("not all is done; weir archive erase --resume goes on");
        }
        Ok(done)
    }

    /// Says what is left to whoever runs the archive, each thing once.
    async fn say_left_to_do(&self, order: &Order) -> Result<(), Failure> {
        let known = self.book.progress(&order.id).await?.archives;
        let mut left: Vec<&str> = known.iter().map(|(_, a)| a.left_to_do.as_str()).collect();
        left.sort_unstable();
        left.dedup();
        for (nth, line) in left.iter().flat_map(|text| text.lines().enumerate()) {
            let head = if nth == 0 { "left" } else { "" };
            say(&format!("{head:<10}{line}\n"));
        }
        Ok(())
    }

    /// Waits until every process that runs has the order in force, for some time. True if all have.
    async fn until_in_force(&self, revision: u64) -> Result<bool, Failure> {
        let deadline = Instant::now() + IN_FORCE_WITHIN;
        loop {
            let processes = self.book.processes().await?;
            let late: Vec<&Process> = processes.iter().filter(|p| p.revision < revision).collect();
            if late.is_empty() {
                say(&format!(
                    "in force  in {} running processes\n",
                    processes.len()
                ));
                return Ok(true);
            }
            if Instant::now() > deadline {
                for process in late {
                    complain(&format!(
                        "process {} on {} has not confirmed the order; it was last heard of {} s ago. If it runs, its \
                         clients may be shown what it has in memory until it is connected to NATS again",
                        process.pid,
                        process.host,
                        seconds_since(process.at_ms)
                    ));
                }
                return Ok(false);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for the Weir that fills the archive, or does its work where none runs. `Some`: nothing
    /// of the order is left there, and what `Held` says.
    async fn erase_archive(&self, order: &Order) -> Result<Option<Held>, Failure> {
        let mut progress = Progress::new("rows erased", None);
        loop {
            let known = self.book.progress(&order.id).await?.archives;
            let erased: u64 = known.iter().map(|(_, archive)| archive.erased).sum();
            progress.add(erased.saturating_sub(progress.done()));
            let running = self.archives_running().await?;
            let is_done = |id: &String| {
                known
                    .iter()
                    .any(|(name, a)| name == id && a.done_ms.is_some())
            };
            if running.is_empty() {
                drop(progress);
                return self.erase_local_archive(order).await;
            }
            if running.iter().all(is_done) {
                drop(progress);
                say(&format!("archive   {erased} rows erased\n"));
                return Ok(Some(Held::All));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The archives that a Weir fills now.
    async fn archives_running(&self) -> Result<Vec<String>, Failure> {
        let processes = self.book.processes().await?;
        let heard = processes
            .into_iter()
            .filter(|process| seconds_since(process.at_ms) < SILENT_AFTER.as_secs());
        let mut archives: Vec<String> = heard.filter_map(|process| process.archive).collect();
        archives.sort();
        archives.dedup();
        Ok(archives)
    }

    async fn erase_local_archive(&self, order: &Order) -> Result<Option<Held>, Failure> {
        let Some(archive) = archive_here(self.loaded).await? else {
            complain("no Weir that fills an archive runs, and there is no archive on this machine");
            return Ok(None);
        };
        let progress = std::sync::Mutex::new(Progress::new("rows erased", None));
        let add = |rows| {
            if let Ok(mut progress) = progress.lock() {
                progress.add(rows);
            }
        };
        patiently(async || archive.erase(order, add).await).await?;
        drop(progress);
        let recorded = patiently(async || archive.erasures().await).await?;
        let erased = recorded.iter().find(|one| one.order.id == order.id);
        let erased = erased.map_or(0, |one| one.erased);
        say(&format!("archive   {erased} rows erased\n"));
        let held = archive.held().borrow().clone();
        let mut ends = HashMap::new();
        let mut has_all = true;
        for slot in order.logs.iter().flat_map(|log| &log.slots) {
            for stream in &slot.streams {
                let needed = self.eraser.end(stream, slot.up_to).await?;
                let has = held.get(stream).map_or(Seq::ZERO, |held| held.end());
                has_all &= has >= needed;
                ends.insert(stream.clone(), has.min(needed));
            }
        }
        if !has_all {
            return Ok(Some(Held::UpTo(ends)));
        }
        let progress = ArchiveProgress {
            erased,
            done_ms: Some(now_ms()),
            left_to_do: archive.left_to_do(),
        };
        let id = archive
            .id()
            .ok_or_else(|| failed("the archive does not answer"))?;
        self.book.set_archive(&order.id, &id, &progress).await?;
        Ok(Some(Held::All))
    }

    /// True if nothing of the order is left in any stream.
    async fn erase_streams(
        &self,
        order: &Order,
        held: &Held,
        again: bool,
    ) -> Result<bool, Failure> {
        let mut all_done = true;
        let known = self.book.progress(&order.id).await?;
        for log in &order.logs {
            for slot in &log.slots {
                for stream in &slot.streams {
                    let mut at = known.stream(stream);
                    if again {
                        (at.reached, at.done_ms) = (Seq::ZERO, None);
                    }
                    if at.done_ms.is_none() {
                        let before = at.erased;
                        let needed = self.eraser.end(stream, slot.up_to).await?;
                        let end = held.end(stream, needed);
                        let is_all = end >= needed;
                        let ends = (end, is_all);
                        let erase = self.erase_stream(order, (&log.log, stream), ends, &mut at);
                        erase.await?;
                        let erased = at.erased - before;
                        say(&format!("stream    {stream}: {erased} messages erased\n"));
                        if !is_all {
                            all_done = false;
                            complain(&format!(
                                "{stream} is erased up to message {end} only: the archive does not have the rest yet. \
                                 Start Weir, then run weir archive erase --resume"
                            ));
                        }
                    }
                }
            }
        }
        Ok(all_done)
    }

    /// Erases in a stream up to `end`, which is all that is needed or not.
    async fn erase_stream(
        &self,
        order: &Order,
        (log, stream): (&str, &str),
        (end, is_all): (Seq, bool),
        at: &mut StreamProgress,
    ) -> Result<(), Failure> {
        let mut progress = Progress::new("messages erased", None);
        let mut tries_left = STREAM_TRIES_MAX;
        while at.done_ms.is_none() {
            let before = at.erased;
            match self.eraser.step(order, log, stream, end, at).await {
                Ok(()) => tries_left = STREAM_TRIES_MAX,
                Err(error) if tries_left > 0 => {
                    tries_left -= 1;
                    tracing::debug!(%error, "a step is tried again");
                    sleep(STREAM_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
            progress.add(at.erased - before);
            let mut written = at.clone();
            if !is_all {
                // There is more, which the archive does not have yet.
                written.done_ms = None;
            }
            self.book.set_stream(&order.id, stream, &written).await?;
        }
        Ok(())
    }
}

/// Up to where an archive has what the streams had at the order: a stream may erase no more than that.
enum Held {
    All,
    UpTo(HashMap<String, Seq>),
}

impl Held {
    fn end(&self, stream: &str, needed: Seq) -> Seq {
        match self {
            Self::All => needed,
            Self::UpTo(ends) => ends.get(stream).copied().unwrap_or(Seq::ZERO).min(needed),
        }
    }
}

fn seconds_since(at_ms: i64) -> u64 {
    u64::try_from(now_ms().saturating_sub(at_ms) / 1_000).unwrap_or(0)
}

fn confirmed() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Config(
            "nobody can be asked here; add --yes if you are sure".to_owned(),
        ));
    }
    say("This cannot be undone. Erase? Type yes: ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(failed)?;
    Ok(answer.trim() == "yes")
}
