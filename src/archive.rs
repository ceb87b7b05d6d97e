//! Knows: which archive the configuration names, and how it is opened. Never: what is in it.

use std::path::{Path, PathBuf};

use weir_history::archive::ArchiveError;
use weir_history::{Archive, CassandraConfig, CassandraTls, Password};

use crate::config::{self, ArchiveKind, Config};

/// Opens the archive that the configuration names. A Cassandra that does not answer is no error: the
/// archive is there as soon as it does.
///
/// # Errors
/// When it cannot be opened; temporary ones may be tried again.
pub async fn open(config: &Config) -> Result<Archive, ArchiveError> {
    match config.archive.kind {
        ArchiveKind::Sqlite => Archive::sqlite(&config.archive_path()).await,
        ArchiveKind::Cassandra => Archive::cassandra(cassandra(&config.archive)?).await,
    }
}

/// How Cassandra is reached.
///
/// # Errors
/// When the password's file cannot be read.
pub fn cassandra(archive: &config::Archive) -> Result<CassandraConfig, ArchiveError> {
    let given = |path: &Path| (!path.as_os_str().is_empty()).then(|| PathBuf::from(path));
    let credentials = match given(&archive.password_file) {
        None => None,
        Some(file) => {
            let password = std::fs::read_to_string(&file).map_err(|error| ArchiveError {
                reason: format!("archive.password_file {}: {error}", file.display()),
                temporary: false,
            })?;
            let password = password.trim_end_matches(['\r', '\n']);
            Some((archive.user.clone(), Password::new(password.to_owned())))
        }
    };
    let identity = given(&archive.tls_cert_file).zip(given(&archive.tls_key_file));
    Ok(CassandraConfig {
        nodes: archive.nodes.clone(),
        keyspace: archive.keyspace.clone(),
        replication_factor: archive.replication_factor,
        datacenter: (!archive.datacenter.is_empty()).then(|| archive.datacenter.clone()),
        credentials,
        tls: archive.tls.then(|| CassandraTls {
            ca_file: given(&archive.tls_ca_file),
            identity,
        }),
    })
}
