//! Knows: how a connection obeys orders of operators, and that it serves nobody before they are read. Never: whom an
//! order is about (its session says).

use std::pin::Pin;
use std::sync::atomic::Ordering;

use super::{Connection, End};
use crate::protocol::code::DisconnectCode;
use crate::roster::{Notice, Told};
use crate::session::Obeyed;

/// What is waited for before the next command.
pub(super) type Held = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Connection {
    /// True while NATS is back and what was ordered meanwhile is not read yet.
    pub(super) fn is_held(&mut self) -> bool {
        if self.held.is_none()
            && let Some(read) = self.edge.verifier.revocations().hold()
        {
            self.held = Some(Box::pin(read));
        }
        self.held.is_some()
    }

    /// From now on orders reach it. One that came between the look at its token and this is found here.
    pub(super) fn enter(&mut self) -> Result<(), End> {
        let (user, _) = self.session.user().unwrap_or_default();
        self.listed = Some(self.edge.roster.enter(user, &self.link));
        if self.session.is_revoked() {
            return Err(End::Close(DisconnectCode::TOKEN_REVOKED));
        }
        Ok(())
    }

    /// Does what was told. Once it returns, nothing that the order takes away is served.
    pub(super) fn obey(&mut self, notice: &Notice) -> Result<(), End> {
        let obeyed = match &notice.told {
            Told::Order(order) => self.session.obey(order),
            Told::Missed => Obeyed {
                close: Some(DisconnectCode::FORCE_RECONNECT),
                ..Obeyed::default()
            },
        };
        if let Some(code) = obeyed.close {
            // Rooms learn a moment later that it has gone.
            self.link.mute();
            notice.closed.fetch_add(1, Ordering::AcqRel);
            return Err(End::Close(code));
        }
        for (membership, frame) in obeyed.left {
            drop(membership);
            notice.unsubscribed.fetch_add(1, Ordering::AcqRel);
            self.edge.metrics.rooms_taken_away.add_one();
            self.link.reply(&frame);
        }
        Ok(())
    }
}

/// Waits for what is waited for.
pub(super) async fn released(held: &mut Option<Held>) {
    match held {
        Some(read) => read.await,
        None => std::future::pending().await,
    }
}
