//! Knows: the certificate that clients are shown: read from its files, and read again when they change or on SIGHUP.
//! Never: sockets; a connection that is open keeps what it was shown.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::signal::unix::Signal;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use weir_nats::figures;

/// Between looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes of one file; larger ones are no certificates.
const FILE_MAX_BYTES: u64 = 1 << 20;

figures! {
    /// What became of changed files.
    pub struct TlsMetrics: "weir_tls_" {
        /// Certificates taken into use while running.
        certificates_reloaded: Counter,
        /// Changed files that were no good: the certificate before them is still in use.
        certificates_refused: Counter,
    }
}

/// A certificate that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}")]
pub struct TlsError {
    file: String,
    why: String,
}

fn failed(file: &Path, why: impl fmt::Display) -> TlsError {
    TlsError {
        file: file.display().to_string(),
        why: why.to_string(),
    }
}

/// The certificate that is in use, and its files.
pub struct Certificate {
    cert_file: PathBuf,
    key_file: PathBuf,
    current: Arc<Current>,
    /// What the files held when they were last looked at for a change.
    seen: Files,
    metrics: Arc<TlsMetrics>,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// The bytes of both files, which hold a secret: not for logs.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Certificate {
    /// Reads and checks both files (PEM).
    ///
    /// # Errors
    /// A file that cannot be read or is no good, or a key that is not the certificate's.
    pub fn open(cert_file: &Path, key_file: &Path) -> Result<Self, TlsError> {
        let seen = Files {
            cert: read(cert_file)?,
            key: read(key_file)?,
        };
        let key = certified(&seen, cert_file, key_file)?;
        Ok(Self {
            cert_file: cert_file.to_owned(),
            key_file: key_file.to_owned(),
            current: Arc::new(Current(ArcSwap::from_pointee(key))),
            seen,
            metrics: Arc::default(),
        })
    }

    /// What shows clients the certificate that is in use at that moment. TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// Never with the cryptography that is built in.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&self.cert_file, error))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// What became of changed files so far.
    #[must_use]
    pub fn metrics(&self) -> Arc<TlsMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Takes changed files into use until `stop`: at once on a hang-up, else when they have been the same for one
    /// look, so that a pair that is being replaced is not taken apart.
    pub async fn watch(mut self, mut hang_up: Signal, stop: CancellationToken) {
        let mut changed = None;
        loop {
            let is_asked = tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = hang_up.recv() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let files = match self.look().await {
                Ok(files) => files,
                Err(error) if is_asked => {
                    self.refuse(&error);
                    continue;
                }
                // Being replaced, or gone: a change is seen when they are there again.
                Err(_) => continue,
            };
            let is_settled = changed.replace(files.clone()) == Some(files.clone());
            if is_asked || (is_settled && files != self.seen) {
                self.seen = files;
                self.take_up();
            }
        }
    }

    async fn look(&self) -> Result<Files, TlsError> {
        let (cert_file, key_file) = (self.cert_file.clone(), self.key_file.clone());
        let looked = tokio::task::spawn_blocking(move || {
            Ok(Files {
                cert: read(&cert_file)?,
                key: read(&key_file)?,
            })
        });
        looked
            .await
            .unwrap_or_else(|error| Err(failed(&self.cert_file, error)))
    }

    fn take_up(&self) {
        match certified(&self.seen, &self.cert_file, &self.key_file) {
            Ok(key) => {
                self.current.0.store(Arc::new(key));
                self.metrics.certificates_reloaded.add_one();
                tracing::info!(file = %self.cert_file.display(), "new certificate in use");
            }
            Err(error) => self.refuse(&error),
        }
    }

    fn refuse(&self, error: &TlsError) {
        self.metrics.certificates_refused.add_one();
        tracing::error!(%error, "the new certificate is no good; the one before it stays in use");
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let size = std::fs::metadata(file).map_err(|error| failed(file, error))?;
    if size.len() > FILE_MAX_BYTES {
        return Err(failed(file, "it is too large for a certificate or a key"));
    }
    std::fs::read(file).map_err(|error| failed(file, error))
}

fn certified(files: &Files, cert_file: &Path, key_file: &Path) -> Result<CertifiedKey, TlsError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&files.cert)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(cert_file, error))?;
    if chain.is_empty() {
        return Err(failed(cert_file, "it holds no certificate in PEM"));
    }
    // What a PEM reader says of a key could show a part of it.
    let key = PrivateKeyDer::from_pem_slice(&files.key)
        .map_err(|_| failed(key_file, "it holds no private key in PEM"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| failed(key_file, error))
}
