//! Knows: the commands of `weir archive`, what they share: how the archive is opened, how NATS is reached, how a failure is told.
//! Never: what a command does (a file each), SQL.

mod copy;
mod erase;
mod erase_list;
mod export;
mod fill;
mod import;
mod lines;
mod migrate;
mod progress;
mod quarantine;
mod status;
mod verify;
mod walk;

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use tokio::time::{Instant, sleep};
use weir_history::Archive;
use weir_history::archive::ArchiveError;
use weir_history::cassandra::Cassandra;
use weir_history::sqlite::Sqlite;
use weir_nats::connect::Links;
use weir_nats::guard::written_placement;
use weir_nats::placement::PlacementRecord;
use weir_nats::stream::context;

use crate::archive;
use crate::check::Target;
use crate::cli::Common;
use crate::config::{ArchiveKind, Config, Loaded};
use crate::roles::connect_config;

/// How long a command waits for an archive that is locked or away for a moment.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// How long a command waits for NATS to let it in.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub(crate) enum ArchiveCommand {
    /// Make the archive that is configured, or bring its schema up to this version
    Migrate(migrate::Arguments),
    /// Say what the archive holds, how far it is behind the log, and how long until a message could be lost
    Status(status::Arguments),
    /// Compare the log with the archive, row by row, and say where they first differ
    Verify(verify::Arguments),
    /// Write the archive into a file of JSON lines
    Export(export::Arguments),
    /// Read a file of JSON lines into the archive
    Import(import::Arguments),
    /// Copy the archive into that of another configuration, such as from SQLite to Cassandra
    Copy(copy::Arguments),
    /// Erase a room, or what a user wrote, from memory, streams and archive; cannot be undone
    Erase(erase::Arguments),
    /// List the messages that could not become a row
    Quarantine(quarantine::Arguments),
}

impl ArchiveCommand {
    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::Migrate(arguments) => &arguments.common,
            Self::Status(arguments) => &arguments.common,
            Self::Verify(arguments) => &arguments.common,
            Self::Export(arguments) => &arguments.common,
            Self::Import(arguments) => &arguments.common,
            Self::Copy(arguments) => &arguments.common,
            Self::Erase(arguments) => &arguments.common,
            Self::Quarantine(arguments) => &arguments.common,
        }
    }
}

/// Why a command did not do what it was asked. The text says what to do.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration or the arguments are wrong.
    Config(String),
    /// It failed.
    Failed(String),
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        Self::Failed(error.to_string())
    }
}

fn failed(text: impl std::fmt::Display) -> Failure {
    Failure::Failed(text.to_string())
}

/// Runs a command; what it says goes to standard output, its progress to standard error.
pub(crate) async fn run(command: &ArchiveCommand, loaded: &Loaded) -> Result<ExitCode, Failure> {
    match command {
        ArchiveCommand::Migrate(_) => migrate::run(loaded).await,
        ArchiveCommand::Status(arguments) => Box::pin(status::run(loaded, arguments)).await,
        ArchiveCommand::Verify(arguments) => Box::pin(verify::run(loaded, arguments)).await,
        ArchiveCommand::Export(arguments) => Box::pin(export::run(loaded, arguments)).await,
        ArchiveCommand::Import(arguments) => Box::pin(import::run(loaded, arguments)).await,
        ArchiveCommand::Copy(arguments) => Box::pin(copy::run(loaded, arguments)).await,
        ArchiveCommand::Erase(arguments) => Box::pin(erase::run(loaded, arguments)).await,
        ArchiveCommand::Quarantine(arguments) => quarantine::run(loaded, arguments).await,
    }
}

/// Opens the archive that is configured, which must be there: looking makes nothing.
async fn existing_archive(config: &Config) -> Result<Archive, Failure> {
    if version(config).await?.is_some() {
        return any_archive(config).await;
    }
    Err(failed(match config.archive.kind {
        ArchiveKind::Sqlite => format!(
            "there is no archive at {}: start Weir, which makes it, or run weir archive migrate; if it is elsewhere, \
             correct --data or [archive] path",
            config.archive_path().display()
        ),
        ArchiveKind::Cassandra => format!(
            "there is no archive in the keyspace {} at {}: start Weir, which makes it, or run weir archive migrate; if \
             it is elsewhere, correct [archive] nodes and keyspace",
            config.archive.keyspace,
            config.archive.nodes.join(", ")
        ),
    }))
}

/// The schema version of the archive that is configured; `None` if there is none yet.
async fn version(config: &Config) -> Result<Option<String>, Failure> {
    match config.archive.kind {
        ArchiveKind::Sqlite => Ok(Sqlite::version_at(&config.archive_path())?),
        ArchiveKind::Cassandra => {
            let settings = archive::cassandra(&config.archive)?;
            patiently(async || Cassandra::version_at(&settings).await).await
        }
    }
}

/// Opens the archive that is configured, and makes it if it is not there.
async fn any_archive(config: &Config) -> Result<Archive, Failure> {
    if config.archive.kind == ArchiveKind::Sqlite
        && let Some(folder) = config.archive_path().parent()
    {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| {
                failed(format!(
                    "the folder {} cannot be made: {error}; correct --data or [archive] path",
                    folder.display()
                ))
            })?;
    }
    let archive = patiently(async || archive::open(config).await).await?;
    // A cluster that does not answer yet is no error to Weir, which waits for it.
    patiently(async || {
        if archive.is_connected() {
            return Ok(());
        }
        Err(ArchiveError {
            reason: format!(
                "{} is not there: {}",
                archive.about().place,
                archive.trouble()
            ),
            temporary: true,
        })
    })
    .await?;
    Ok(archive)
}

/// Tries again what an archive could not do just now.
async fn patiently<T>(
    mut work: impl AsyncFnMut() -> Result<T, ArchiveError>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = PAUSE_FIRST;
    loop {
        match work().await {
            Ok(done) => return Ok(done),
            Err(error) if error.temporary && Instant::now() + pause < deadline => {
                tracing::debug!(%error, "the archive is asked again");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(error) if error.temporary => {
                return Err(failed(format!(
                    "{error}; it was tried for {PATIENCE:?}. Run the command again when the archive answers: it goes \
                     on where it stopped"
                )));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Connects as Weir does.
///
/// # Errors
/// A sentence that says what is missing.
pub(crate) async fn connect(loaded: &Loaded) -> Result<Links, String> {
    let target = Target::new(loaded)?;
    let mut config = loaded.config.clone();
    config.nats.url = target.url;
    config.nats.live = target.live;
    config.nats.reads = target.reads;
    config.nats.door = target.door;
    let mut settings = connect_config(&config);
    settings.tls = target.tls;
    let connecting = Box::pin(Links::connect(&settings));
    tokio::time::timeout(CONNECT_WITHIN, connecting)
        .await
        .map_err(|_| format!("NATS at {} does not answer", config.nats.url))?
        .map_err(|error| error.to_string())
}

/// NATS as the configuration names it, or that of a `weir up` in the same data folder, and where each log is placed.
struct Nats {
    links: Links,
    placements: HashMap<String, PlacementRecord>,
}

impl Nats {
    async fn connect(loaded: &Loaded) -> Result<Self, String> {
        let links = connect(loaded).await?;
        let js = context(links.live.clone());
        let mut placements = HashMap::new();
        for log in &loaded.config.logs {
            let record = written_placement(&js, &log.name).await;
            placements.insert(log.name.clone(), record.map_err(|error| error.to_string())?);
        }
        Ok(Self { links, placements })
    }
}
