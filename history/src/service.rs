//! Knows: `history.<user>.<ns>.<id>`, the history of rooms as a NATS micro service. Never: SQL,
//! sockets.
//!
//! Answers like a service of the NATS micro framework (ADR-32), so `nats micro info` finds it, and
//! goes into the asker's own inbox only.

use std::sync::Arc;
use std::time::Instant;

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_nats::message::{header, last};
use weir_nats::placement::Place;
use weir_nats::subject::user_from_token;
use weir_nats::{Placements, RoomName, Seq};

use crate::read::{Page, ReadError, Reader, Window};

mod answer;
mod describe;
mod request;

use answer::{ANSWER_MAX_BYTES, answer};
use describe::Instance;
use request::{BAD_REQUEST, Request};

const SUBJECT: &str = "history.*.*.*";
const QUEUE_GROUP: &str = "weir-history";
/// Bytes of payloads that are read for one answer, which is itself at most 512 KiB: in base64, with
/// what stands beside them, fewer may fit.
pub const PAGE_MAX_BYTES: u32 = 384 << 10;
/// Requests worked on at once; beyond it error 111.
const IN_FLIGHT_MAX: usize = 64;
/// The protocol's codes: try again.
const INTERNAL: u32 = 100;
const TOO_MANY_REQUESTS: u32 = 111;
/// The protocol's code for what cannot be had this way.
const NOT_AVAILABLE: u32 = 108;

/// What a room's namespace says of reading it back, for a user.
pub struct Access {
    /// The log that keeps it.
    pub log: String,
    /// The logical window.
    pub window: Window,
}

/// Decides for a user and a room: how it may be read, or the protocol's error code and a sentence.
pub type Policy = Arc<dyn Fn(&str, &RoomName) -> Result<Access, (u32, &'static str)> + Send + Sync>;
/// Says whether an answer to this user may go to this reply subject.
pub type MayAnswer = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct HistoryService {
    client: Client,
    reader: Reader,
    placements: Placements,
    policy: Policy,
    may_answer: MayAnswer,
    tasks: TaskTracker,
    in_flight: Arc<Semaphore>,
    page_max_bytes: u32,
    instance: Arc<Instance>,
}

/// Why a request has no answer: the protocol's error code and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    fn new(code: u32, message: String) -> Self {
        Self { code, message }
    }

    fn to_json(&self) -> serde_json::Value {
        let temporary = matches!(self.code, INTERNAL | TOO_MANY_REQUESTS);
        json!({ "error": { "code": self.code, "message": self.message, "temporary": temporary } })
    }
}

impl HistoryService {
    /// A service on `client`, which may publish into inboxes only.
    #[must_use]
    pub fn new(
        client: Client,
        reader: Reader,
        placements: Placements,
        policy: Policy,
        may_answer: MayAnswer,
        tasks: TaskTracker,
    ) -> Self {
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        Self {
            client,
            reader,
            placements,
            policy,
            may_answer,
            tasks,
            in_flight,
            page_max_bytes: PAGE_MAX_BYTES,
            instance: Arc::new(Instance::new()),
        }
    }

    /// The same with smaller pages; [`PAGE_MAX_BYTES`] is the most.
    #[must_use]
    pub fn with_page(self, page_max_bytes: u32) -> Self {
        Self {
            page_max_bytes: page_max_bytes.min(PAGE_MAX_BYTES),
            ..self
        }
    }

    /// Answers until `stop`, and returns when the requests in hand are answered. While NATS is away
    /// it may not return.
    ///
    /// # Errors
    /// When a subscription cannot be made.
    pub async fn run(self, stop: CancellationToken) -> Result<(), async_nats::SubscribeError> {
        let requests = self
            .client
            .queue_subscribe(SUBJECT, QUEUE_GROUP.to_owned())
            .await?;
        let discovery = self.client.subscribe("$SRV.>").await?;
        let mut all = futures_util::stream::select(requests, discovery);
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => break,
                request = all.next() => request,
            };
            let Some(request) = request else {
                return Ok(());
            };
            self.take_any(request);
        }
        let (requests, discovery) = all.get_mut();
        for subscription in [requests, discovery] {
            if let Err(error) = subscription.drain().await {
                tracing::debug!(%error, "history's subscription was gone");
            }
        }
        while let Some(request) = all.next().await {
            self.take_any(request);
        }
        // Each answer that left brings its permit back.
        let permits = u32::try_from(IN_FLIGHT_MAX).expect("a small constant");
        drop(self.in_flight.acquire_many(permits).await);
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "last history answers not flushed");
        }
        Ok(())
    }

    fn take_any(&self, request: Message) {
        if request.subject.starts_with("$SRV.") {
            self.describe(&request);
        } else {
            self.take(request);
        }
    }

    fn take(&self, request: Message) {
        let user = request
            .subject
            .split('.')
            .nth(1)
            .and_then(|token| user_from_token(token).ok());
        let (Some(user), Some(reply)) = (user, request.reply.as_ref().map(ToString::to_string))
        else {
            return;
        };
        if !(self.may_answer)(&user, &reply) {
            tracing::warn!(user, "reply subject of a history request refused");
            return;
        }
        let service = self.clone();
        let permit = Arc::clone(&self.in_flight).try_acquire_owned();
        self.tasks.spawn(async move {
            let start = Instant::now();
            let answer = match &permit {
                Ok(_) => service.answer(&user, &request).await,
                Err(_) => {
                    let text = format!("more than {IN_FLIGHT_MAX} requests at once");
                    Err(Failure::new(TOO_MANY_REQUESTS, text))
                }
            };
            let failure = answer.as_ref().err();
            service.instance.answered(start.elapsed(), failure);
            match answer {
                Ok(answer) => service.send(reply, answer).await,
                Err(failure) => service.send_failure(reply, &failure).await,
            }
            drop(permit);
        });
    }

    async fn send(&self, reply: String, answer: Bytes) {
        if let Err(error) = self.client.publish(reply, answer).await {
            tracing::debug!(%error, "history answer not sent");
        }
    }

    /// An error as Weir's protocol has it, and as NATS micro services have it.
    async fn send_failure(&self, reply: String, failure: &Failure) {
        let body = Bytes::from(failure.to_json().to_string());
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Service-Error-Code", failure.code.to_string());
        // A header holds no line break.
        let text = failure.message.replace(['\r', '\n'], " ");
        headers.insert("Nats-Service-Error", text);
        let sent = self.client.publish_with_headers(reply, headers, body);
        if let Err(error) = sent.await {
            tracing::debug!(%error, "history answer not sent");
        }
    }

    async fn answer(&self, user: &str, request: &Message) -> Result<Bytes, Failure> {
        let bad = |text: String| Failure::new(BAD_REQUEST, text);
        let mut tokens = request.subject.split('.').skip(2);
        let (ns, id) = (
            tokens.next().unwrap_or_default(),
            tokens.next().unwrap_or_default(),
        );
        let name = request
            .headers
            .as_ref()
            .and_then(|headers| last(headers, header::ROOM_NAME));
        let room = RoomName::from_tokens(ns, id, name).map_err(|error| bad(error.to_string()))?;
        let access = (self.policy)(user, &room)
            .map_err(|(code, text)| Failure::new(code, text.to_owned()))?;
        let asked = Request::parse(&request.payload)?;
        let place = self
            .placements
            .place(&access.log, &room)
            .ok_or_else(|| Failure::new(INTERNAL, "the log is not placed yet".to_owned()))?;
        let answer = self
            .read(&place, &room, &asked, &access.window)
            .await
            .map_err(|error| Failure::new(INTERNAL, error.to_string()))?;
        let max_bytes = self.client.server_info().max_payload;
        if max_bytes > 0 && answer.len() > max_bytes {
            let text = format!(
                "the next message is larger than an answer over NATS may be \
                 ({max_bytes} bytes); read it over a socket"
            );
            return Err(Failure::new(NOT_AVAILABLE, text));
        }
        Ok(answer)
    }

    async fn read(
        &self,
        place: &Place,
        room: &RoomName,
        asked: &Request,
        window: &Window,
    ) -> Result<Bytes, ReadError> {
        // The position is read first: what comes after it is the next page's.
        let head = self.reader.head(place).await?;
        let max_bytes = self.page_max_bytes;
        let (page, recovered) = match asked {
            Request::Position => {
                let nothing = Page {
                    messages: Vec::new(),
                    reached: Seq::ZERO,
                    more: false,
                    whole: true,
                };
                (nothing, None)
            }
            Request::Page { ask, limit } => {
                let page = self
                    .reader
                    .history(place, room, *ask, window, *limit, max_bytes)
                    .await?;
                (page, None)
            }
            Request::Recovery {
                epoch,
                since,
                limit,
            } => {
                let epoch = epoch.as_deref();
                let recovery = self
                    .reader
                    .recover(place, room, epoch, *since, window, *limit, max_bytes)
                    .await?;
                (recovery.page, Some(recovery.recovered))
            }
        };
        Ok(answer(&page, &head, recovered))
    }

    /// `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`.
    fn describe(&self, request: &Message) {
        let Some(reply) = request.reply.as_ref().map(ToString::to_string) else {
            return;
        };
        if !reply.starts_with("_INBOX.") {
            return;
        }
        let Some(said) = self.instance.describe(&request.subject) else {
            return;
        };
        let service = self.clone();
        let said = Bytes::from(said.to_string());
        self.tasks
            .spawn(async move { service.send(reply, said).await });
    }
}
