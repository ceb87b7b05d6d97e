//! Knows: the parts that let users with a token in at NATS, and how they are started. Never: what a token is, what it
//! may do.

use std::sync::Arc;

use async_nats::Client;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_authz::Verifier;
use weir_authz::callout::NativeLogins;
use weir_nats::callout::{Callout, CalloutKeys, CalloutMetrics, UserLimit};
use weir_nats::connections::Connections;
use weir_nats::figures::{Counter, Figure};

use super::settings::{all_rules, connect_config, credentials, static_users};
use super::{StartError, failed, spawn_service};
use crate::config::Config;

/// What lets users in, and what is counted of it.
#[derive(Default)]
pub(super) struct Logins {
    metrics: Arc<CalloutMetrics>,
    kicked: Arc<Counter>,
    /// Its connection, to be closed at the end.
    pub(super) link: Option<Client>,
    /// Answers what it has in hand before it ends.
    pub(super) service: Option<JoinHandle<()>>,
}

impl Logins {
    /// Starts the callout and the limit beside it, where the configuration wants them. The first ends with `closing`, the
    /// second, which counts by `connections`, with `stop`.
    pub(super) async fn start(
        config: &Config,
        verifier: &Arc<Verifier>,
        connections: Option<&Connections>,
        tasks: &TaskTracker,
        closing: &CancellationToken,
        stop: &CancellationToken,
    ) -> Result<Self, StartError> {
        let mut logins = Self::default();
        let settings = &config.auth_callout;
        if !settings.enabled {
            return Ok(logins);
        }
        let at = connect_config(config);
        let link = Callout::connect(&at, &credentials(&config.nats.auth)).await;
        let link = link.map_err(failed)?;
        logins.link = Some(link.clone());
        let (issuer, xkey) = (settings.issuer_seed.expose(), settings.xkey_seed.expose());
        let keys = CalloutKeys::from_seeds(issuer, xkey).map_err(failed)?;
        let policy = NativeLogins::new(
            Arc::clone(verifier),
            all_rules(config),
            static_users(config),
        );
        let told = Arc::new(Notify::new());
        if let Some(connections) = connections
            && settings.user_connection_limit > 0
        {
            let limit = UserLimit::new(
                connections.clone(),
                &settings.account,
                settings.user_connection_limit as usize,
                Arc::clone(&told),
                Arc::clone(&logins.kicked),
            );
            tasks.spawn(limit.run(stop.clone()));
        }
        let callout = Callout::new(
            link,
            keys,
            &settings.account,
            policy.decide(),
            Arc::clone(&logins.metrics),
            tasks.clone(),
        );
        let callout = callout.with_logins(told).run(closing.clone());
        logins.service = Some(spawn_service("auth callout", callout, tasks));
        Ok(logins)
    }

    /// Every figure.
    pub(super) fn figures(&self) -> [Figure; 2] {
        [self.metrics.figure(), UserLimit::figure(&self.kicked)]
    }
}
