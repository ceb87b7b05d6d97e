//! Knows: `weir archive migrate`: the archive is there, and its schema is this version's. Never: rows.

use std::process::ExitCode;

use clap::Args;

use super::{Failure, any_archive, version};
use crate::cli::{Common, say};
use crate::config::Loaded;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(super) async fn run(loaded: &Loaded) -> Result<ExitCode, Failure> {
    let config = &loaded.config;
    let before = version(config).await?;
    let about = any_archive(config).await?.about();
    let did = match before {
        None => format!("made, schema version {}", about.schema),
        Some(before) if before == about.schema => {
            format!("schema version {before}, nothing to do")
        }
        Some(before) => format!("schema version {before} is now {}", about.schema),
    };
    say(&format!(
        "{} {}: {did}; id {}\n",
        about.kind, about.place, about.id
    ));
    Ok(ExitCode::SUCCESS)
}
