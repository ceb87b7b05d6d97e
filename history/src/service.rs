//! Knows: `history.<user>.<ns>.<id>`, the history of rooms as a NATS micro service. Never: SQL,
//! sockets.
//!
//! Answers like a service of the NATS micro framework (ADR-32), so `nats micro info` finds it, and
//! goes into the asker's own inbox only.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_nats::{Client, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_nats::ambient::random;
use weir_nats::message::{header, last};
use weir_nats::placement::Place;
use weir_nats::subject::user_from_token;
use weir_nats::{Placements, RoomName, Seq};

use crate::read::{Page, Reader, Window};

const QUEUE_GROUP: &str = "weir-history";
/// Bytes of payloads in one answer. In base64, with all that stands beside them, they must fit into the
/// 1 MiB that NATS takes.
pub const PAGE_MAX_BYTES: u32 = 384 << 10;
/// Messages of one answer.
const PAGE_MAX_MESSAGES: u32 = 1_000;
/// Requests worked on at once; beyond it error 111.
const IN_FLIGHT_MAX: usize = 64;

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
    id: String,
}

/// A request's body; an empty one asks for the newest page's position.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Request {
    since: Option<Since>,
    limit: Option<i64>,
    reverse: bool,
    recover: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Since {
    offset: u64,
    epoch: String,
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
        let id = data_encoding::HEXLOWER.encode(&random::<8>());
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
            id,
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
            .queue_subscribe("history.*.*.*", QUEUE_GROUP.to_owned())
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
            let answer = match &permit {
                Ok(_) => service.answer(&user, &request).await,
                Err(_) => Err((111, "too many requests".to_owned())),
            };
            let answer = answer.unwrap_or_else(|(code, message)| {
                let temporary = matches!(code, 100 | 111);
                let error = json!({"code": code, "message": message, "temporary": temporary});
                json!({ "error": error }).to_string()
            });
            service.send(reply, answer).await;
            drop(permit);
        });
    }

    async fn send(&self, reply: String, answer: String) {
        if let Err(error) = self.client.publish(reply, Bytes::from(answer)).await {
            tracing::debug!(%error, "history answer not sent");
        }
    }

    async fn answer(&self, user: &str, request: &Message) -> Result<String, (u32, String)> {
        let bad = |text: String| (107, text);
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
        let access = (self.policy)(user, &room).map_err(|(code, text)| (code, text.to_owned()))?;
        let body: Request = if request.payload.trim_ascii().is_empty() {
            Request::default()
        } else {
            serde_json::from_slice(&request.payload).map_err(|error| bad(error.to_string()))?
        };
        let place = self
            .placements
            .place(&access.log, &room)
            .ok_or_else(|| (100, "the log is not placed yet".to_owned()))?;
        let limit = match body.limit {
            None => 100,
            Some(-1) => PAGE_MAX_MESSAGES,
            Some(limit) if (0..=i64::from(u32::MAX)).contains(&limit) => u32::try_from(limit)
                .unwrap_or(PAGE_MAX_MESSAGES)
                .min(PAGE_MAX_MESSAGES),
            Some(_) => return Err(bad("limit is -1, 0 or a positive number".to_owned())),
        };
        self.read(&place, &room, &body, &access.window, limit)
            .await
            .map_err(|error| (100, error.to_string()))
    }

    async fn read(
        &self,
        place: &Place,
        room: &RoomName,
        body: &Request,
        window: &Window,
        limit: u32,
    ) -> Result<String, crate::read::ReadError> {
        let head = self.reader.head(place).await?;
        let since = body.since.as_ref().map(|since| Seq::new(since.offset));
        let mut recovered = None;
        let page = if body.recover {
            let epoch = body
                .since
                .as_ref()
                .map(|s| s.epoch.as_str())
                .filter(|e| !e.is_empty());
            let since = since.unwrap_or_default();
            let recovery = self
                .reader
                .recover(
                    place,
                    room,
                    epoch,
                    since,
                    window,
                    limit.max(1),
                    self.page_max_bytes,
                )
                .await?;
            recovered = Some(recovery.recovered);
            recovery.page
        } else if limit == 0 {
            Page {
                messages: Vec::new(),
                reached: Seq::ZERO,
                more: false,
                whole: true,
            }
        } else {
            self.reader
                .history(
                    place,
                    room,
                    since,
                    body.reverse,
                    window,
                    limit,
                    self.page_max_bytes,
                )
                .await?
        };
        let answer = Answer {
            publications: page.messages.iter().map(|m| publication(m)).collect(),
            epoch: head.epoch.as_str(),
            offset: head.offset.get(),
            more: page.more,
            whole: recovered.is_none().then_some(page.whole),
            recovered,
        };
        Ok(serde_json::to_string(&answer).expect("an answer becomes JSON"))
    }

    /// `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`, for all, by name, and by name and id.
    fn describe(&self, request: &Message) {
        const NAME: &str = "weir-history";
        let Some(reply) = request.reply.as_ref().map(ToString::to_string) else {
            return;
        };
        let mut tokens = request.subject.split('.').skip(1);
        let verb = tokens.next().unwrap_or_default();
        let is_me = tokens.next().is_none_or(|name| name == NAME)
            && tokens.next().is_none_or(|id| id == self.id);
        if !is_me || !reply.starts_with("_INBOX.") {
            return;
        }
        let kind = verb.to_lowercase();
        let mut answer = json!({
            "type": format!("io.nats.micro.v1.{kind}_response"),
            "name": NAME,
            "id": self.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {},
        });
        let endpoint = json!({
            "name": "history",
            "subject": "history.*.*.*",
            "queue_group": QUEUE_GROUP,
            "metadata": { "request": "{since:{offset,epoch},limit,reverse,recover}" },
        });
        match verb {
            "PING" => {}
            "INFO" => {
                let kib = self.page_max_bytes >> 10;
                let text = "Reads a room back: history.<user>.<ns>.<id>, pages of up to";
                answer["description"] = format!("{text} {kib} KiB").into();
                answer["endpoints"] = json!([endpoint]);
            }
            "STATS" => answer["endpoints"] = json!([endpoint]),
            _ => return,
        }
        let service = self.clone();
        self.tasks
            .spawn(async move { service.send(reply, answer.to_string()).await });
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    publications: Vec<Publication<'a>>,
    epoch: &'a str,
    offset: u64,
    more: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    whole: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
}

/// A publication as bots read it. A JSON payload is embedded byte for byte, so that no number or
/// order of keys changes; any other is base64.
#[derive(Serialize)]
struct Publication<'a> {
    offset: u64,
    time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    door: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b64data: Option<String>,
}

fn publication(message: &weir_nats::Message) -> Publication<'_> {
    let author = message.author.as_ref();
    let data = serde_json::from_slice::<&RawValue>(&message.data).ok();
    let base64 = || data_encoding::BASE64.encode(&message.data);
    Publication {
        offset: message.seq.get(),
        time: message.time_ms,
        user: author.map(|author| author.user.as_str()),
        client: author
            .map(|author| author.client.as_str())
            .filter(|client| !client.is_empty()),
        door: author.map(|author| author.door.as_str()),
        tags: (!message.tags.is_empty()).then_some(&message.tags),
        b64data: data.is_none().then(base64),
        data,
    }
}
