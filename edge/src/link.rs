//! Knows: what rooms may do to a connection: push frames and leave it signals. Never: sessions,
//! commands, NATS.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use weir_nats::RoomName;

use crate::outbox::{Outbox, Pushed};
use crate::protocol::code::{DisconnectCode, UnsubscribeCode};
use crate::roster::Notice;

/// Something a room or the node tells a connection's session. At most one per membership, one close, and
/// the orders of one look at the bucket, so the queue is bounded.
#[derive(Clone, Debug)]
pub enum Signal {
    /// A room ended the membership; the session tells the client.
    Unsubscribed {
        /// The room.
        room: RoomName,
        /// Why.
        code: UnsubscribeCode,
    },
    /// The connection has to end.
    Close(DisconnectCode),
    /// Operators have ordered something.
    Told(Arc<Notice>),
}

/// The part of a connection that rooms hold.
#[derive(Debug)]
pub struct Link {
    /// Where frames go.
    pub outbox: Outbox,
    signals: Mutex<VecDeque<Signal>>,
    is_muted: AtomicBool,
}

impl Link {
    /// Wraps a connection's outbox.
    #[must_use]
    pub fn new(outbox: Outbox) -> Self {
        Self {
            outbox,
            signals: Mutex::default(),
            is_muted: AtomicBool::new(false),
        }
    }

    /// Pushes a stored publication. An empty frame stands for one that a JSON client cannot be
    /// shown, and ends the connection (3506).
    pub fn push(&self, frame: &Bytes) -> Pushed {
        if self.is_muted.load(Ordering::Acquire) {
            return Pushed::Gone;
        }
        if frame.is_empty() {
            self.signal(Signal::Close(DisconnectCode::INAPPROPRIATE_PROTOCOL));
            return Pushed::Gone;
        }
        self.outbox.push(frame)
    }

    /// Pushes what nothing stores. A reader that cannot take it is slow (3008).
    pub fn push_unstored(&self, frame: &Bytes) -> Pushed {
        if frame.is_empty() || self.is_muted.load(Ordering::Acquire) {
            return self.push(frame);
        }
        match self.outbox.reply(frame) {
            Pushed::Full => {
                self.signal(Signal::Close(DisconnectCode::SLOW));
                Pushed::Gone
            }
            pushed => pushed,
        }
    }

    /// Sends a reply. A client that cannot take it is slow (3008).
    pub fn reply(&self, frame: &Bytes) {
        if self.outbox.reply(frame) == Pushed::Full {
            self.signal(Signal::Close(DisconnectCode::SLOW));
        }
    }

    /// No room reaches the client any more; the connection is about to end.
    pub fn mute(&self) {
        self.is_muted.store(true, Ordering::Release);
    }

    /// Leaves a signal and wakes the session.
    pub fn signal(&self, signal: Signal) {
        self.signals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(signal);
        self.outbox.wake();
    }

    /// Takes the oldest signal.
    pub fn take_signal(&self) -> Option<Signal> {
        self.signals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}
