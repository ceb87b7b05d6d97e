//! Knows: the parts that carry out orders about who is connected, and how they are started. Never: what an order is,
//! whom it is about.

use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_edge::roster::Roster;
use weir_nats::connect::{Link, LinkEvent, Links};
use weir_nats::connections::Connections;
use weir_nats::control::give::Giver;
use weir_nats::control::kick::{KickMetrics, kicker};
use weir_nats::control::service::ControlService;
use weir_nats::control::watch::{Apply, Watch};
use weir_nats::figures::Figure;

use super::{StartError, failed, spawn_service};
use crate::config::Config;

/// What carries orders out, and what is counted of it.
pub(super) struct Control {
    /// Who is connected here.
    pub(super) roster: Roster,
    kicks: Arc<KickMetrics>,
    /// Answers what it has in hand before it ends.
    pub(super) service: Option<JoinHandle<()>>,
}

impl Control {
    /// Starts the watch that was read, with the events of `links` since then, and the requests of operators. The latter end
    /// with `closing`, the rest, which ends connections at nats-servers by `connections`, with `stop`.
    pub(super) async fn start(
        config: &Config,
        links: &Links,
        (mut watch, events): (Watch, Receiver<(Link, LinkEvent)>),
        connections: Option<&Connections>,
        tasks: &TaskTracker,
        closing: &CancellationToken,
        stop: &CancellationToken,
    ) -> Result<Self, StartError> {
        let kicks = Arc::new(KickMetrics::default());
        if let Some(connections) = connections {
            let account = config.auth_callout.account.clone();
            let (kicker, task) = kicker(connections.clone(), account);
            tasks.spawn(task.run(Arc::clone(&kicks), stop.clone()));
            watch = watch.with_kicker(kicker);
        }
        let roster = Roster::default();
        let sockets = roster.clone();
        let apply: Apply = Arc::new(move |orders, has_missed| {
            let sockets = sockets.clone();
            Box::pin(async move { sockets.carry_out(orders, has_missed).await })
        });
        tasks.spawn(watch.run(events, apply, stop.clone()));
        let giver = Giver::open(links.live.clone()).await.map_err(failed)?;
        let ttl = config.revocation.ttl;
        let service = ControlService::new(links.door.clone(), giver, ttl, tasks.clone());
        let service = spawn_service("control", service.run(closing.clone()), tasks);
        Ok(Self {
            roster,
            kicks,
            service: Some(service),
        })
    }

    /// Every figure.
    pub(super) fn figures(&self) -> Vec<Figure> {
        self.kicks.figures()
    }
}
