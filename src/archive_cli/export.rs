//! Knows: `weir archive export`: the order of the lines, and where a file that was cut goes on. Never: SQL, what a line looks like.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use weir_history::Archive;
use weir_history::held::Held;
use weir_history::listing::{ListedRoom, ListedRow, RowKey};
use weir_nats::{RoomName, Seq};

use super::lines::{EndLine, Header, HeldLine, Line, QuarantineLine, RowLine, StreamLine, VERSION};
use super::progress::Progress;
use super::{Failure, existing_archive, failed, patiently, walk};
use crate::cli::{Common, complain};
use crate::config::Loaded;

/// A line that is longer than this is none of ours: a message has a megabyte at most, and JSON may make six of it.
pub(super) const LINE_MAX_BYTES: u64 = 16 << 20;
/// Lines are put together before they are written.
const WRITE_BYTES: usize = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The file to write; - is standard output
    #[arg(long, default_value = "-")]
    out: PathBuf,
    /// Only this room; rows only
    #[arg(long)]
    room: Option<String>,
    /// Only this log
    #[arg(long)]
    log: Option<String>,
    /// Go on at the last complete line of the file
    #[arg(long)]
    resume: bool,
}

/// How far a file has come.
#[derive(Debug, Default)]
struct Done {
    header: Option<Header>,
    streams: Vec<StreamLine>,
    /// Ids of orders of erasure.
    erasures: Vec<String>,
    counts: EndLine,
    held: usize,
    last_row: Option<RowLine>,
    last_quarantined: Option<(String, Seq)>,
    is_whole: bool,
}

pub(super) async fn run(loaded: &Loaded, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let room = arguments.room.as_deref().map(RoomName::parse).transpose();
    let room = room.map_err(|error| Failure::Config(format!("--room: {error}")))?;
    let archive = existing_archive(&loaded.config).await?;
    let (done, out) = open(arguments)?;
    if done.is_whole {
        complain("the export is complete, nothing to do");
        return Ok(ExitCode::SUCCESS);
    }
    let header = Header {
        version: VERSION,
        archive: archive.about().id,
        log: arguments.log.clone(),
        room: arguments.room.clone(),
    };
    if done.header.as_ref().is_some_and(|there| *there != header) {
        return Err(failed(format!(
            "{} is an export of another archive, room or log: give the same as then, or another file",
            arguments.out.display()
        )));
    }
    let mut export = Export {
        archive,
        out,
        room,
        counts: done.counts,
    };
    export.run(header, done).await?;
    Ok(ExitCode::SUCCESS)
}

fn open(arguments: &Arguments) -> Result<(Done, Box<dyn Write>), Failure> {
    let path = &arguments.out;
    if path.as_os_str() == "-" {
        if arguments.resume {
            return Err(Failure::Config(
                "--resume needs --out FILE: standard output cannot be read back".into(),
            ));
        }
        let out = BufWriter::with_capacity(WRITE_BYTES, std::io::stdout());
        return Ok((Done::default(), Box::new(out)));
    }
    let unusable = |error: std::io::Error| failed(format!("{}: {error}", path.display()));
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if arguments.resume {
        options.create(true).truncate(false);
    } else {
        options.create_new(true);
    }
    let mut file = match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(failed(format!(
                "{} is there already: add --resume to go on with it, or name another file",
                path.display()
            )));
        }
        opened => opened.map_err(unusable)?,
    };
    let (done, end) = read_back(&file, path)?;
    file.set_len(end).map_err(unusable)?;
    file.seek(SeekFrom::Start(end)).map_err(unusable)?;
    Ok((
        done,
        Box::new(BufWriter::with_capacity(WRITE_BYTES, Synced(file))),
    ))
}

/// A file that is on the disk once it is flushed.
struct Synced(File);

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.sync_all()
    }
}

/// What a file holds, and where its last complete line ends.
fn read_back(file: &File, path: &Path) -> Result<(Done, u64), Failure> {
    let wrong = |line: u64, error: String| {
        failed(format!(
            "{}, line {line}: {error}. Begin anew in another file",
            path.display()
        ))
    };
    let mut reader = BufReader::with_capacity(WRITE_BYTES, file);
    let (mut done, mut end, mut number) = (Done::default(), 0, 0);
    let (mut line, mut last) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let read = (&mut reader)
            .take(LINE_MAX_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| wrong(number, error.to_string()))?;
        if line.last() != Some(&b'\n') {
            if read as u64 == LINE_MAX_BYTES {
                return Err(wrong(number + 1, "it is too long".into()));
            }
            break;
        }
        number += 1;
        end += read as u64;
        // Only the last row is looked into.
        if line.starts_with(b"{\"row\":") {
            done.counts.rows += 1;
            std::mem::swap(&mut line, &mut last);
            continue;
        }
        match Line::parse(&line).map_err(|error| wrong(number, error))? {
            Line::WeirArchive(header) if number == 1 => done.header = Some(header),
            _ if number == 1 => return Err(wrong(1, "it is no export of an archive".into())),
            Line::Stream(stream) => done.streams.push(stream),
            Line::Erasure(order) => done.erasures.push(order.id),
            Line::Quarantine(one) => {
                done.counts.quarantined += 1;
                done.last_quarantined = Some((one.stream, one.offset));
            }
            Line::Held(_) => done.held += 1,
            Line::End(_) => done.is_whole = true,
            Line::WeirArchive(_) | Line::Row(_) => {
                return Err(wrong(number, "it is not where it belongs".into()));
            }
        }
    }
    if !last.is_empty() {
        match Line::parse(&last).map_err(|error| wrong(number, error))? {
            Line::Row(row) => done.last_row = Some(row),
            _ => return Err(wrong(number, "it is no row".into())),
        }
    }
    Ok((done, end))
}

struct Export {
    archive: Archive,
    out: Box<dyn Write>,
    room: Option<RoomName>,
    counts: EndLine,
}

impl Export {
    async fn run(&mut self, header: Header, done: Done) -> Result<(), Failure> {
        let streams = match done.header {
            // Written whole or not at all: rows follow only the last of them.
            Some(_)
                if done.last_row.is_some() || done.last_quarantined.is_some() || done.held > 0 =>
            {
                done.streams
            }
            begun => {
                self.begin(
                    header.clone(),
                    begun.is_some(),
                    (&done.streams, &done.erasures),
                )
                .await?
            }
        };
        let total = match (&self.room, &header.log) {
            (None, None) => patiently(async || self.archive.totals().await).await?.rows,
            _ => None,
        };
        let mut progress = Progress::new("rows", total);
        progress.add(self.counts.rows);
        if done.last_quarantined.is_none() && done.held == 0 {
            self.rows(&header, &streams, done.last_row, &mut progress)
                .await?;
        }
        drop(progress);
        if self.room.is_none() {
            if done.held == 0 {
                self.quarantined(&streams, done.last_quarantined).await?;
            }
            for stream in streams.iter().skip(done.held) {
                // Where rows have left by age, a recovery across them must not be called whole elsewhere either.
                let log = stream.log.clone();
                let expired = patiently(async || self.archive.any_expired_to(log.clone()).await);
                let held = Held::from_ranges(stream.held.clone()).above(expired.await?);
                self.put(&Line::Held(HeldLine {
                    stream: stream.name.clone(),
                    ranges: held.ranges().to_vec(),
                }))?;
            }
        }
        self.put(&Line::End(self.counts))?;
        self.out.flush().map_err(unwritable)?;
        complain(&format!(
            "{} rows and {} messages in quarantine are exported",
            self.counts.rows, self.counts.quarantined
        ));
        Ok(())
    }

    /// The head of the file. What is held is read before any row, so that all of it is among the rows.
    async fn begin(
        &mut self,
        header: Header,
        has_header: bool,
        (there, erasures): (&[StreamLine], &[String]),
    ) -> Result<Vec<StreamLine>, Failure> {
        let held = patiently(async || self.archive.held_now().await).await?;
        let known = patiently(async || self.archive.streams().await).await?;
        let nothing = Held::default();
        let mut streams = there.to_vec();
        let wanted = header.log.clone();
        if !has_header {
            self.put(&Line::WeirArchive(header))?;
        }
        for stream in known {
            let name = &stream.generation.stream;
            let is_wanted = wanted.as_ref().is_none_or(|log| *log == stream.log);
            if !is_wanted || there.iter().any(|line| line.name == *name) {
                continue;
            }
            let line = StreamLine::new(&stream, held.get(name).unwrap_or(&nothing));
            self.put(&Line::Stream(line.clone()))?;
            streams.push(line);
        }
        for one in patiently(async || self.archive.erasures().await).await? {
            if !erasures.contains(&one.order.id) {
                self.put(&Line::Erasure(one.order))?;
            }
        }
        Ok(streams)
    }

    async fn rows(
        &mut self,
        header: &Header,
        streams: &[StreamLine],
        last: Option<RowLine>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let mut skip = last.map(|row| {
            let key = RowKey {
                seq: row.offset,
                epoch: row.epoch.as_str().to_owned(),
                id: row.id,
            };
            (row.log, row.room, key)
        });
        let mut cursor: Option<String> = None;
        loop {
            let rooms = match &self.room {
                Some(_) if cursor.is_some() => Vec::new(),
                Some(room) => in_each_log(room, streams),
                None => walk::rooms(&self.archive, cursor.as_deref()).await?,
            };
            let Some(last) = rooms.last() else {
                break;
            };
            cursor = Some(last.cursor.clone());
            for one in rooms {
                if header.log.as_ref().is_some_and(|log| *log != one.log) {
                    continue;
                }
                // Rooms come in the same order as then.
                let after = match &skip {
                    Some((log, room, _)) if *log != one.log || *room != one.room.channel() => {
                        continue;
                    }
                    Some(_) => skip.take().map(|(_, _, key)| key),
                    None => None,
                };
                self.rows_of(&one, after, progress).await?;
            }
        }
        match skip {
            None => Ok(()),
            Some((_, room, _)) => Err(failed(format!(
                "the room {room:?}, at which the file stopped, is not in the archive any more: begin anew in another \
                 file"
            ))),
        }
    }

    async fn rows_of(
        &mut self,
        one: &ListedRoom,
        mut after: Option<RowKey>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        loop {
            let page = walk::rows(&self.archive, &one.log, &one.room, after.as_ref()).await?;
            for row in &page.rows {
                let (log, room) = (&one.log, one.room.channel());
                let line = RowLine::new(log, room, &row.epoch, &row.message);
                self.put(&Line::Row(line))?;
            }
            let rows = page.rows.len() as u64;
            self.counts.rows += rows;
            progress.add(rows);
            after = page.rows.last().map(ListedRow::key);
            if !page.more {
                return Ok(());
            }
        }
    }

    async fn quarantined(
        &mut self,
        streams: &[StreamLine],
        mut after: Option<(String, Seq)>,
    ) -> Result<(), Failure> {
        loop {
            let page = walk::quarantined(&self.archive, after.as_ref()).await?;
            let Some((stream, last)) = page.last() else {
                return Ok(());
            };
            after = Some((stream.clone(), last.seq));
            for (stream, one) in page {
                if streams.iter().any(|line| line.name == stream) {
                    self.counts.quarantined += 1;
                    self.put(&Line::Quarantine(QuarantineLine::new(&stream, &one)))?;
                }
            }
        }
    }

    fn put(&mut self, line: &Line) -> Result<(), Failure> {
        self.out
            .write_all(line.to_text().as_bytes())
            .map_err(unwritable)
    }
}

fn unwritable(error: std::io::Error) -> Failure {
    failed(format!(
        "the export cannot be written: {error}; make room, and go on with --resume"
    ))
}

/// The room as it would be listed, in each log that is exported.
fn in_each_log(room: &RoomName, streams: &[StreamLine]) -> Vec<ListedRoom> {
    let mut logs: Vec<&String> = streams.iter().map(|stream| &stream.log).collect();
    logs.sort();
    logs.dedup();
    let listed = logs.into_iter().map(|log| ListedRoom {
        log: log.clone(),
        room: room.clone(),
        cursor: String::new(),
    });
    listed.collect()
}
