//! Knows: `weir archive import`: lines of an export become rows, and what they prove only after them; where an import that was
//! stopped goes on. Never: SQL.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use weir_history::held::Held;
use weir_nats::RoomName;

use super::export::LINE_MAX_BYTES;
use super::fill::Fill;
use super::lines::{EndLine, HeldLine, Line, RowLine, VERSION};
use super::progress::Progress;
use super::{Failure, any_archive, failed};
use crate::cli::{Common, complain};
use crate::config::Loaded;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// A file that weir archive export wrote
    file: PathBuf,
}

/// Bytes by which a place in a file is known again.
const TAIL_BYTES: usize = 64;

/// How far an import came, in a file beside the one that is imported. Without it, or where it does not fit, all of the file is
/// read again, which changes nothing that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The first line of the file that was imported.
    header: Line,
    /// The archive that was imported into.
    into: String,
    /// Everything before this byte is durable.
    offset: u64,
    /// What lies before it.
    before: EndLine,
    /// The last bytes before it, in hexadecimal.
    tail: String,
}

pub(super) async fn run(loaded: &Loaded, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut input = Input::open(&arguments.file)?;
    let header = input.header()?;
    let archive = any_archive(&loaded.config).await?;
    let into = archive.about().id;
    let mut streams = Vec::new();
    // Streams and orders of erasure come before all else.
    let mut line = input.next()?;
    let mut orders = Vec::new();
    loop {
        match line {
            Some(Line::Stream(stream)) => streams.push(stream.record()),
            Some(Line::Erasure(order)) => orders.push(order),
            _ => break,
        }
        line = input.next()?;
    }
    let mut fill = Fill::new(archive, streams).await?;
    for order in &orders {
        fill.erase(order).await?;
    }
    let mut state = State {
        header,
        into,
        offset: 0,
        before: EndLine::default(),
        tail: String::new(),
    };
    let state_path = state_path(&arguments.file);
    if let Some(there) = read_state(&state_path, &state)
        && input.has_at(there.offset, &there.tail)?
    {
        state = there;
        input.go_to(state.offset)?;
        line = input.next()?;
        complain(&format!("goes on behind row {}", state.before.rows));
    }
    let mut progress = Progress::new("rows", None);
    progress.add(state.before.rows);
    let mut counts = state.before;
    let mut held: Vec<HeldLine> = Vec::new();
    let mut end = None;
    while let Some(now) = line {
        let is_due = match now {
            Line::Row(row) if held.is_empty() => {
                counts.rows += 1;
                progress.add(1);
                take(&mut fill, row).map_err(|error| input.wrong(&error))?
            }
            Line::Quarantine(one) if held.is_empty() => {
                counts.quarantined += 1;
                let stream = one.stream.clone();
                let one = one.quarantined().map_err(|error| input.wrong(&error))?;
                fill.quarantined(&stream, one)?
            }
            Line::Held(line) => {
                held.push(line);
                false
            }
            Line::End(line) => {
                end = Some(line);
                break;
            }
            _ => return Err(input.wrong("it is not where it belongs")),
        };
        if is_due {
            fill.write().await?;
            state.offset = input.offset;
            state.before = counts;
            state.tail = input.tail();
            write_state(&state_path, &state)?;
        }
        line = input.next()?;
    }
    fill.write().await?;
    drop(progress);
    let file = arguments.file.display();
    match end {
        None => {
            return Err(failed(format!(
                "{file} is cut: its {} rows are imported, but not what they prove, so Weir will read the log again. \
                 Finish it with weir archive export --resume, and import it again",
                counts.rows
            )));
        }
        Some(end) if end != counts => {
            return Err(failed(format!(
                "{file} says that it has {} rows and {} messages in quarantine, and has {} and {}: it was changed. \
                 What it proves is not recorded",
                end.rows, end.quarantined, counts.rows, counts.quarantined
            )));
        }
        Some(_) => {}
    }
    for line in held {
        fill.held(&line.stream, Held::from_ranges(line.ranges))
            .await?;
    }
    forget_state(&state_path)?;
    complain(&format!(
        "{} messages in quarantine and {} rows are imported{}",
        counts.quarantined,
        counts.rows,
        fill.news()
    ));
    let conflicts = fill.conflicts;
    if conflicts > 0 {
        complain(&format!(
            "{conflicts} of them went into quarantine, as another message has their offset in the same stream"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn take(fill: &mut Fill, row: RowLine) -> Result<bool, String> {
    let room = RoomName::parse(&row.room).map_err(|error| format!("{:?}: {error}", row.room))?;
    let (log, epoch) = (row.log.clone(), row.epoch.clone());
    let message = row.message()?;
    fill.row(&log, room, &epoch, message)
        .map_err(|failure| match failure {
            Failure::Config(text) | Failure::Failed(text) => text,
        })
}

/// A file, line by line.
struct Input {
    path: PathBuf,
    reader: BufReader<File>,
    /// Where the line that was read last ends.
    offset: u64,
    line: Vec<u8>,
}

impl Input {
    fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path)
            .map_err(|error| failed(format!("{}: {error}; give an export", path.display())))?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 20, file),
            offset: 0,
            line: Vec::new(),
        })
    }

    fn header(&mut self) -> Result<Line, Failure> {
        match self.next()? {
            Some(line @ Line::WeirArchive(_)) => {
                if let Line::WeirArchive(header) = &line
                    && header.version != VERSION
                {
                    return Err(self.wrong(&format!(
                        "it is an export of version {}, and this Weir reads {VERSION}: run a newer one",
                        header.version
                    )));
                }
                Ok(line)
            }
            _ => Err(self.wrong("it is no export of an archive")),
        }
    }

    /// The next line; `None` at the end, also where the last line is cut.
    fn next(&mut self) -> Result<Option<Line>, Failure> {
        self.line.clear();
        let read = (&mut self.reader)
            .take(LINE_MAX_BYTES)
            .read_until(b'\n', &mut self.line)
            .map_err(|error| self.wrong(&error.to_string()))?;
        if self.line.last() != Some(&b'\n') {
            if read as u64 == LINE_MAX_BYTES {
                return Err(self.wrong("a line is too long"));
            }
            return Ok(None);
        }
        let parsed = Line::parse(&self.line).map_err(|error| self.wrong(&error))?;
        self.offset += read as u64;
        Ok(Some(parsed))
    }

    fn go_to(&mut self, offset: u64) -> Result<(), Failure> {
        self.offset = offset;
        self.reader
            .seek(SeekFrom::Start(offset))
            .map(|_| ())
            .map_err(|error| self.wrong(&error.to_string()))
    }

    /// The end of the line that was read last.
    fn tail(&self) -> String {
        let begin = self.line.len().saturating_sub(TAIL_BYTES);
        HEXLOWER.encode(&self.line[begin..])
    }

    /// True if the file has these bytes before `offset`. It reads on where it was.
    fn has_at(&mut self, offset: u64, tail: &str) -> Result<bool, Failure> {
        let there = (|| {
            let before = self.reader.stream_position()?;
            let length = (tail.len() / 2).min(TAIL_BYTES) as u64;
            self.reader
                .seek(SeekFrom::Start(offset.saturating_sub(length)))?;
            let mut bytes = Vec::new();
            (&mut self.reader).take(length).read_to_end(&mut bytes)?;
            self.reader.seek(SeekFrom::Start(before))?;
            Ok::<_, std::io::Error>(HEXLOWER.encode(&bytes))
        })();
        match there {
            Ok(there) => Ok(!tail.is_empty() && there == tail),
            Err(error) => Err(self.wrong(&error.to_string())),
        }
    }

    fn wrong(&self, error: &str) -> Failure {
        let path = self.path.display();
        failed(format!("{path}, behind byte {}: {error}", self.offset))
    }
}

fn state_path(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".import");
    path.into()
}

/// What was left of the same import, if anything.
fn read_state(path: &Path, now: &State) -> Option<State> {
    let state: State = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (state.header == now.header && state.into == now.into).then_some(state)
}

fn write_state(path: &Path, state: &State) -> Result<(), Failure> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let json = serde_json::to_vec(state).map_err(failed)?;
    std::fs::write(&aside, json)
        .and_then(|()| std::fs::rename(&aside, path))
        .map_err(|error| {
            failed(format!(
                "{}: {error}; the folder of the file must be writable, so that an import can go on",
                path.display()
            ))
        })
}

fn forget_state(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed(format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}
