//! Knows: where a cluster is and who we are there. Never: connections.

use std::fmt;
use std::path::PathBuf;

/// Where the cluster is and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CassandraConfig {
    /// `host:port` of some nodes; the others are found through them.
    pub nodes: Vec<String>,
    /// The keyspace: letters, digits and `_`.
    pub keyspace: String,
    /// Copies of each row in a data centre, for a keyspace that is created.
    pub replication_factor: u8,
    /// The data centre to talk to and to keep rows in; `None`: any, and the nodes' own.
    pub datacenter: Option<String>,
    /// User and password.
    pub credentials: Option<(String, Password)>,
    /// TLS to the nodes.
    pub tls: Option<CassandraTls>,
}

/// How to trust the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CassandraTls {
    /// Certificate authorities (PEM); `None`: those of this machine.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate chain and key (PEM), where nodes ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A password that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps one.
    #[must_use]
    pub fn new(password: String) -> Self {
        Self(password)
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}
