//! Knows: the two ways into a room, and that each needs a permit. Never: who asked, or what the client
//! is told.

use std::collections::BTreeMap;

use async_nats::Client;
use async_nats::connection::State;
use async_nats::header::HeaderValue;
use bytes::Bytes;
use futures_util::FutureExt as _;
use weir_authz::{Action, Permit};
use weir_nats::Author;
use weir_nats::figures::Figure;
use weir_nats::publish::{Done, Outcome, Outgoing, Publisher, Refusal};

/// Writes into rooms, for whoever has a permit:
///
/// ```compile_fail,E0308
/// # fn f(writer: &weir_edge::writer::Writer, written: weir_edge::writer::Written) {
/// let room = weir_nats::RoomName::parse("chat:lobby").unwrap();
/// writer.store(&room, "rooms".to_owned(), written, Box::new(|_| {}));
/// # }
/// ```
#[derive(Clone)]
pub struct Writer {
    publisher: Publisher,
    nats: Client,
}

/// What is written.
pub struct Written {
    /// Its author, as verified.
    pub author: Author,
    /// The payload.
    pub data: Bytes,
    /// The caller's own idempotency key.
    pub key: Option<String>,
}

impl Writer {
    /// Into logs by `publisher`, and straight to `eph.` by `nats`.
    #[must_use]
    pub fn new(publisher: Publisher, nats: Client) -> Self {
        Self { publisher, nats }
    }

    /// What waits to be sent into logs, as a figure.
    #[must_use]
    pub fn figure(&self) -> Figure {
        self.publisher.figure()
    }

    /// Waits until what was taken before this call is answered.
    pub async fn settled(&self) {
        self.publisher.settled().await;
    }

    /// Into the log; `done` is told the outcome.
    pub fn store(&self, permit: &Permit, log: String, written: Written, done: Done) {
        if permit.action() != Action::Publish {
            return done(Outcome::Refused(Refusal::NotSent(
                "the permit is not for publishing".to_owned(),
            )));
        }
        self.publisher.submit(Outgoing {
            room: permit.room().clone(),
            log,
            author: written.author,
            tags: BTreeMap::new(),
            data: written.data,
            key: written.key,
            done,
        });
    }

    /// Straight to `eph.`: nothing acknowledges it, and a reader that is away misses it. Handed over at
    /// once, so that a client's own order is kept, or not at all: what the NATS client holds back while
    /// it is disconnected would come minutes later. True if it was handed over.
    #[must_use]
    pub fn pass_on(&self, permit: &Permit, written: Written, id: &str) -> bool {
        if permit.action() != Action::Publish || self.nats.connection_state() != State::Connected {
            return false;
        }
        let room = permit.room();
        let tags = BTreeMap::new();
        let mut headers = weir_nats::message::stamp(room, &written.author, &tags, id);
        headers.insert("Nats-Msg-Id", HeaderValue::from(0_u64));
        let subject = room.ephemeral_subject();
        let sent = self
            .nats
            .publish_with_headers(subject, headers, written.data);
        matches!(sent.now_or_never(), Some(Ok(())))
    }
}
