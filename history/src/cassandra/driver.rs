//! Knows: the CQL driver: connections, time-outs, which errors may pass. Never: tables, rooms. The
//! only file that names `scylla`.
//!
//! Everything that goes through here may run twice: rows carry their own write timestamps, so each
//! statement is marked idempotent, and the driver may repeat it or send it to a second node when the
//! first is slow.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::client::{PoolSize, SelfIdentity};
use scylla::errors::{
    DbError, ExecutionError, NewSessionError, PagerExecutionError, PrepareError,
    RequestAttemptError, RequestError,
};
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;

pub(super) use scylla::deserialize::row::DeserializeRow;
pub(super) use scylla::serialize::row::SerializeRow;

use super::CassandraConfig;
use crate::archive::ArchiveError;

/// Above the 2 s after which Cassandra itself gives a write up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Schema changes are rare, and slow on a loaded node.
const SCHEMA_TIMEOUT: Duration = Duration::from_secs(30);
/// A frozen node is found out after the sum of both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// A second node is asked when the first has not answered for so long, and then a third.
const SPECULATE_AFTER: Duration = Duration::from_millis(250);
const SPECULATE_MAX: usize = 2;
/// Rows of a scan that are fetched at a time.
const SCAN_PAGE_ROWS: i32 = 1_000;

/// A session with a cluster.
#[derive(Debug)]
pub(super) struct Driver {
    session: Session,
}

/// A prepared statement.
#[derive(Clone, Debug)]
pub(super) struct Statement(PreparedStatement);

impl Driver {
    /// Connects to any of the nodes.
    ///
    /// # Errors
    /// When none of them answers, or refuses these credentials; also when a file of the
    /// configuration cannot be read.
    pub(super) async fn connect(config: &CassandraConfig) -> Result<Self, ArchiveError> {
        let mut policy = DefaultPolicy::builder().token_aware(true);
        if let Some(datacenter) = &config.datacenter {
            policy = policy.prefer_datacenter(datacenter.clone());
        }
        let profile = ExecutionProfile::builder()
            .consistency(Consistency::LocalQuorum)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .load_balancing_policy(policy.build())
            .speculative_execution_policy(Some(Arc::new(SimpleSpeculativeExecutionPolicy {
                max_retry_count: SPECULATE_MAX,
                retry_interval: SPECULATE_AFTER,
            })))
            .build();
        let mut builder = SessionBuilder::new()
            .known_nodes(&config.nodes)
            .default_execution_profile_handle(profile.into_handle())
            .custom_identity(SelfIdentity::new().with_application_name("weir"))
            .connection_timeout(CONNECT_TIMEOUT)
            .keepalive_interval(KEEPALIVE_INTERVAL)
            .keepalive_timeout(KEEPALIVE_TIMEOUT)
            .schema_agreement_timeout(SCHEMA_TIMEOUT)
            .pool_size(PoolSize::PerHost(
                std::num::NonZeroUsize::new(1).expect("one is not zero"),
            ))
            // Cassandra has no shards.
            .disallow_shard_aware_port(true)
            .fetch_schema_metadata(true)
            .tcp_nodelay(true);
        if let Some((user, password)) = &config.credentials {
            builder = builder.user(user, password.expose());
        }
        if let Some(tls) = &config.tls {
            builder = builder.tls_context(Some(tls_config(tls)?));
        }
        let session = Box::pin(builder.build()).await.map_err(|error| {
            let temporary = !matches!(
                error,
                NewSessionError::EmptyKnownNodesList | NewSessionError::IllegalConfig(_)
            );
            ArchiveError {
                reason: format!("Cassandra at {}: {error}", config.nodes.join(", ")),
                temporary,
            }
        })?;
        let driver = Self { session };
        if config.datacenter.is_none() {
            driver.has_one_datacenter().await?;
        }
        Ok(driver)
    }

    /// `LOCAL_QUORUM` is of the data centre of whichever node is asked: with several, what was written
    /// in one need not be there yet for who reads in another.
    async fn has_one_datacenter(&self) -> Result<(), ArchiveError> {
        let mut all: Vec<(Option<String>,)> = Vec::new();
        for table in ["local", "peers"] {
            let asked = format!("SELECT data_center FROM system.{table}");
            all.extend(self.ask::<(Option<String>,)>(&asked, ()).await?);
        }
        let mut names: Vec<String> = all.into_iter().filter_map(|(name,)| name).collect();
        names.sort();
        names.dedup();
        if names.len() < 2 {
            return Ok(());
        }
        Err(ArchiveError {
            reason: format!(
                "the cluster has the data centres {}: set archive.datacenter to one of them, the same for every Weir",
                names.join(", ")
            ),
            temporary: false,
        })
    }

    /// Runs a schema change and waits until all nodes agree.
    ///
    /// # Errors
    /// When it was refused or not answered.
    pub(super) async fn change_schema(&self, cql: &str) -> Result<(), ArchiveError> {
        let mut statement = scylla::statement::unprepared::Statement::new(cql);
        statement.set_request_timeout(Some(SCHEMA_TIMEOUT));
        let changed = Box::pin(self.session.query_unpaged(statement, ())).await;
        changed.map(drop).map_err(|error| failed(&error))
    }

    /// Asks something once, without preparing it.
    ///
    /// # Errors
    /// When it was refused, not answered, or of another type.
    pub(super) async fn ask<R>(
        &self,
        cql: &str,
        values: impl SerializeRow,
    ) -> Result<Vec<R>, ArchiveError>
    where
        R: for<'f> DeserializeRow<'f, 'f>,
    {
        let mut statement = scylla::statement::unprepared::Statement::new(cql);
        statement.set_is_idempotent(true);
        let found = Box::pin(self.session.query_unpaged(statement, values)).await;
        read_rows(found.map_err(|error| failed(&error))?)
    }

    /// Writes a row unless there is one. A comparison among all replicas, so for rare things only.
    ///
    /// # Errors
    /// When it was refused or not answered; it may have been done.
    pub(super) async fn set_once(
        &self,
        cql: &str,
        values: impl SerializeRow,
    ) -> Result<(), ArchiveError> {
        let mut statement = scylla::statement::unprepared::Statement::new(cql);
        statement.set_request_timeout(Some(SCHEMA_TIMEOUT));
        let set = Box::pin(self.session.query_unpaged(statement, values)).await;
        set.map(drop).map_err(|error| failed(&error))
    }

    /// Prepares a statement that may run twice.
    ///
    /// # Errors
    /// When it was refused or not answered.
    pub(super) async fn prepare(&self, cql: &str) -> Result<Statement, ArchiveError> {
        let prepared = Box::pin(self.session.prepare(cql)).await;
        let mut prepared = prepared.map_err(|error| failed(&error.into()))?;
        prepared.set_is_idempotent(true);
        prepared.set_page_size(SCAN_PAGE_ROWS);
        Ok(Statement(prepared))
    }

    /// Writes.
    ///
    /// # Errors
    /// When it is not known to have been written.
    pub(super) async fn write(
        &self,
        statement: &Statement,
        values: impl SerializeRow,
    ) -> Result<(), ArchiveError> {
        let written = Box::pin(self.session.execute_unpaged(&statement.0, values)).await;
        written.map(drop).map_err(|error| failed(&error))
    }

    /// Writes rows of one partition, all or nothing.
    ///
    /// # Errors
    /// When they are not known to have been written.
    pub(super) async fn write_all<V: SerializeRow>(
        &self,
        statement: &Statement,
        rows: Vec<V>,
    ) -> Result<(), ArchiveError> {
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_is_idempotent(true);
        for _ in &rows {
            batch.append_statement(statement.0.clone());
        }
        let written = Box::pin(self.session.batch(&batch, rows)).await;
        written.map(drop).map_err(|error| failed(&error))
    }

    /// Reads what a statement with a LIMIT finds.
    ///
    /// # Errors
    /// When it was refused, not answered, or of another type.
    pub(super) async fn read<R>(
        &self,
        statement: &Statement,
        values: impl SerializeRow,
    ) -> Result<Vec<R>, ArchiveError>
    where
        R: for<'f> DeserializeRow<'f, 'f>,
    {
        let found = Box::pin(self.session.execute_unpaged(&statement.0, values)).await;
        read_rows(found.map_err(|error| failed(&error))?)
    }

    /// Reads all that a statement finds, page by page, at most `max_rows`.
    ///
    /// # Errors
    /// When it was refused, not answered, or of another type.
    pub(super) async fn scan<R>(
        &self,
        statement: &Statement,
        values: impl SerializeRow,
        max_rows: usize,
    ) -> Result<Vec<R>, ArchiveError>
    where
        R: for<'f, 'm> DeserializeRow<'f, 'm> + 'static,
    {
        let pager = Box::pin(self.session.execute_iter(statement.0.clone(), values)).await;
        let rows = pager
            .map_err(|error| failed_scan(&error))?
            .rows_stream::<R>()
            .map_err(|error| of_another_type(&error))?;
        let mut rows = Box::pin(rows);
        let mut found = Vec::new();
        while found.len() < max_rows
            && let Some(row) = rows.try_next().await.map_err(|error| ArchiveError {
                reason: format!("Cassandra: {error}"),
                temporary: true,
            })?
        {
            found.push(row);
        }
        Ok(found)
    }
}

fn read_rows<R>(found: scylla::response::query_result::QueryResult) -> Result<Vec<R>, ArchiveError>
where
    R: for<'f> DeserializeRow<'f, 'f>,
{
    let rows = found
        .into_rows_result()
        .map_err(|error| of_another_type(&error))?;
    let rows = rows
        .rows::<R>()
        .map_err(|error| of_another_type(&error))?
        .collect::<Result<Vec<R>, _>>();
    rows.map_err(|error| of_another_type(&error))
}

/// The table is not what this version of Weir made of it.
fn of_another_type(error: &dyn std::fmt::Display) -> ArchiveError {
    ArchiveError {
        reason: format!("Cassandra: {error}; is the keyspace of another version of Weir?"),
        temporary: false,
    }
}

/// Sorted by whose fault it is: errors of a cluster that is not well are masked by one another, so
/// everything that is not plainly the statement's own fault may pass.
fn failed(error: &ExecutionError) -> ArchiveError {
    let attempt = match error {
        ExecutionError::LastAttemptError(attempt)
        | ExecutionError::PrepareError(PrepareError::AllAttemptsFailed {
            first_attempt: attempt,
        }) => Some(attempt),
        _ => None,
    };
    let is_ours = match (error, attempt) {
        (ExecutionError::BadQuery(_), _) => true,
        (_, Some(attempt)) => is_ours(attempt),
        _ => false,
    };
    ArchiveError {
        reason: format!("Cassandra: {error}"),
        temporary: !is_ours,
    }
}

fn failed_scan(error: &PagerExecutionError) -> ArchiveError {
    let is_ours = match error {
        PagerExecutionError::SerializationError(_) => true,
        PagerExecutionError::NextPageError(scylla::errors::NextPageError::RequestFailure(
            RequestError::LastAttemptError(attempt),
        )) => is_ours(attempt),
        _ => false,
    };
    ArchiveError {
        reason: format!("Cassandra: {error}"),
        temporary: !is_ours,
    }
}

fn is_ours(attempt: &RequestAttemptError) -> bool {
    match attempt {
        RequestAttemptError::SerializationError(_)
        | RequestAttemptError::CqlRequestSerialization(_) => true,
        RequestAttemptError::DbError(error, _) => matches!(
            error,
            DbError::SyntaxError
                | DbError::Invalid
                | DbError::Unauthorized
                | DbError::AuthenticationError
                | DbError::ConfigError
        ),
        _ => false,
    }
}

/// How to trust the nodes, and to be trusted by them.
fn tls_config(tls: &super::CassandraTls) -> Result<Arc<ClientConfig>, ArchiveError> {
    let bad = |what: &std::path::Path, error: &dyn std::fmt::Display| ArchiveError {
        reason: format!("{}: {error}", what.display()),
        temporary: false,
    };
    let mut roots = rustls::RootCertStore::empty();
    match &tls.ca_file {
        Some(file) => {
            let certificates = CertificateDer::pem_file_iter(file).map_err(|e| bad(file, &e))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|e| bad(file, &e))?;
                roots.add(certificate).map_err(|e| bad(file, &e))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs();
            for certificate in native.certs {
                if let Err(error) = roots.add(certificate) {
                    tracing::debug!(%error, "a certificate of this machine is not used");
                }
            }
        }
    }
    if roots.is_empty() {
        return Err(ArchiveError {
            reason: "no certificate authority is known here: set archive.tls_ca_file".to_owned(),
            temporary: false,
        });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| of_another_type(&error))?
        .with_root_certificates(roots);
    let config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((certificates, key)) => {
            let chain = CertificateDer::pem_file_iter(certificates)
                .and_then(Iterator::collect)
                .map_err(|e| bad(certificates, &e))?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, &e))?;
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|e| bad(key, &e))?
        }
    };
    Ok(Arc::new(config))
}
