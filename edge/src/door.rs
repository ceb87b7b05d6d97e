//! Knows: the native door: `say` requests of bots, devices and the CLI, on the same publish path as a
//! socket's. Never: sockets, streams.
//!
//! Identity is the subject's token, which the NATS permission of the connection fixes. Answers go
//! out as a user that may publish into inboxes only, and only into the asker's own.

use std::sync::Arc;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_authz::{Action, Permit};
use weir_nats::message::{header, last};
use weir_nats::publish::{Outcome, Refusal};
use weir_nats::subject::{user_from_token, user_token};
use weir_nats::{Author, Door as Through, RoomName};

use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::protocol::code::ErrorCode;
use crate::rate::{Cost, Counted};
use crate::settings::{DataFormat, EdgeSettings};
use crate::writer::{Writer, Written};

/// All edges answer as one.
const QUEUE_GROUP: &str = "weir-door";
/// The header in which a bot gives its own idempotency key.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// Bytes of an idempotency key.
const KEY_MAX_BYTES: usize = 256;

/// The native door of one edge. Cheap to clone.
#[derive(Clone)]
pub struct NativeDoor {
    client: Client,
    writer: Writer,
    settings: Arc<EdgeSettings>,
    metrics: Arc<Metrics>,
    limits: Arc<Limits>,
    tasks: TaskTracker,
    in_flight: Arc<Semaphore>,
}

/// Why a request is refused, as it is told.
#[derive(Debug)]
struct Refused {
    code: ErrorCode,
    detail: String,
}

impl Refused {
    fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }

    fn to_json(&self) -> serde_json::Value {
        json!({ "error": {
            "code": self.code.code,
            "message": self.code.message,
            "detail": self.detail,
            "temporary": self.code.temporary,
        } })
    }
}

impl NativeDoor {
    /// A door on `client`, which is connected as the user that may answer and nothing else.
    #[must_use]
    pub fn new(
        client: Client,
        writer: Writer,
        settings: Arc<EdgeSettings>,
        metrics: Arc<Metrics>,
        limits: Arc<Limits>,
        tasks: TaskTracker,
    ) -> Self {
        let in_flight = Arc::new(Semaphore::new(settings.door.in_flight_max));
        Self {
            client,
            writer,
            settings,
            metrics,
            limits,
            tasks,
            in_flight,
        }
    }

    /// Takes `say.<user>.<ns>.<id>` requests until `stop`, and returns when those in hand are
    /// answered. While NATS is away it may not return.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn run(self, stop: CancellationToken) -> Result<(), async_nats::SubscribeError> {
        let mut requests = self
            .client
            .queue_subscribe("say.*.*.*", QUEUE_GROUP.to_owned())
            .await?;
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => break,
                request = requests.next() => request,
            };
            let Some(request) = request else {
                return Ok(());
            };
            self.take(request);
        }
        self.finish(requests).await;
        Ok(())
    }

    /// Asks for no more requests, and waits until those that came are answered.
    async fn finish(&self, mut requests: Subscriber) {
        if let Err(error) = requests.drain().await {
            tracing::debug!(%error, "door's subscription was gone");
        }
        while let Some(request) = requests.next().await {
            self.take(request);
        }
        // Each answer that left brings its permit back.
        let all = u32::try_from(self.settings.door.in_flight_max).unwrap_or(u32::MAX);
        drop(self.in_flight.acquire_many(all).await);
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "door's last answers not flushed");
        }
    }

    fn take(&self, request: Message) {
        self.metrics.door_requests.add_one();
        let Some(user) = request
            .subject
            .split('.')
            .nth(1)
            .and_then(|t| user_from_token(t).ok())
        else {
            // No user of that name can exist, so there is nobody to answer.
            self.metrics.door_reply_refused.add_one();
            return;
        };
        let reply = request.reply.as_ref().map(ToString::to_string);
        if let Some(reply) = &reply
            && !may_be_answered(&user, reply, &self.settings.door.operators)
        {
            // Answering would publish where the asker may not: neither stored nor answered.
            self.metrics.door_reply_refused.add_one();
            tracing::warn!(user, "reply subject of a request refused");
            return;
        }
        if !self.limits.request(&user, Instant::now()) {
            self.metrics.door_limited.add_one();
            let refused = Refused::new(
                ErrorCode::TOO_MANY_REQUESTS,
                "requests come too fast (door.rate_limit)",
            );
            return self.answer(reply, refused.to_json(), None);
        }
        let Ok(permit) = Arc::clone(&self.in_flight).try_acquire_owned() else {
            let refused = Refused::new(
                ErrorCode::TOO_MANY_REQUESTS,
                "the door has too much in hand",
            );
            return self.answer(reply, refused.to_json(), None);
        };
        match self.read(&request, user) {
            Ok((may_publish, log, written)) => {
                let door = self.clone();
                let done = Box::new(move |outcome: Outcome| {
                    let answer = door.outcome(&outcome);
                    door.answer(reply, answer, Some(permit));
                });
                self.writer.store(&may_publish, log, written, done);
            }
            Err(refused) => self.answer(reply, refused.to_json(), Some(permit)),
        }
    }

    /// Checks a request and makes it a message. Of its headers only the room's true name and the
    /// idempotency key are read; everything else is dropped.
    fn read(&self, request: &Message, user: String) -> Result<(Permit, String, Written), Refused> {
        let bad = |detail: String| Refused::new(ErrorCode::BAD_REQUEST, detail);
        let none = HeaderMap::new();
        let headers = request.headers.as_ref().unwrap_or(&none);
        let mut tokens = request.subject.split('.').skip(2);
        let (Some(ns), Some(id)) = (tokens.next(), tokens.next()) else {
            return Err(bad("the subject must be say.<user>.<ns>.<id>".to_owned()));
        };
        let room = RoomName::from_tokens(ns, id, last(headers, header::ROOM_NAME))
            .map_err(|error| bad(error.to_string()))?;
        let Some(namespace) = self.settings.namespace(&room) else {
            return Err(Refused::new(
                ErrorCode::UNKNOWN_CHANNEL,
                "no such namespace",
            ));
        };
        if !namespace.stored {
            return Err(Refused::new(
                ErrorCode::NOT_AVAILABLE,
                "rooms of this namespace are not stored; publish on eph. is for edges only",
            ));
        }
        if !namespace.rules.takes(&room) {
            return Err(bad("no room of the namespace has such a name".to_owned()));
        }
        let grants = self.settings.door.grants(&user);
        let permit = grants
            .check(Action::Publish, &room, &namespace.rules, false)
            .map_err(|_| Refused::new(ErrorCode::PERMISSION_DENIED, "no right to publish here"))?;
        if request.payload.len() > self.settings.door.message_size_limit_bytes {
            let limit = self.settings.door.message_size_limit_bytes;
            return Err(bad(format!("a message is at most {limit} bytes")));
        }
        check_format(namespace.data_format, &request.payload)
            .map_err(|detail| bad(detail.into()))?;
        let bytes = u32::try_from(request.payload.len()).unwrap_or(u32::MAX);
        let cost = Cost::one(Counted::Commands)
            .and(Counted::Messages, 1)
            .and(Counted::Bytes, bytes);
        if !self.limits.namespace(&room, cost, Instant::now()) {
            let detail = "too much comes into this namespace (rate_limit)";
            return Err(Refused::new(ErrorCode::TOO_MANY_REQUESTS, detail));
        }
        let key = last(headers, IDEMPOTENCY_KEY).map(str::to_owned);
        if key
            .as_ref()
            .is_some_and(|key| key.is_empty() || key.len() > KEY_MAX_BYTES)
        {
            return Err(bad(format!(
                "an idempotency key is 1 to {KEY_MAX_BYTES} bytes"
            )));
        }
        let written = Written {
            author: Author {
                user,
                client: String::new(),
                info: None,
                door: Through::Nats,
            },
            data: request.payload.clone(),
            key,
        };
        Ok((permit, namespace.log.clone(), written))
    }

    fn outcome(&self, outcome: &Outcome) -> serde_json::Value {
        let temporary = |detail: &str| Refused::new(ErrorCode::INTERNAL, detail);
        match outcome {
            Outcome::Stored {
                position,
                duplicate,
            } => {
                self.metrics.publishes_stored.add_one();
                let mut answer = json!({
                    "offset": position.offset.get(),
                    "epoch": position.epoch.as_str(),
                });
                if *duplicate {
                    answer["duplicate"] = true.into();
                }
                answer
            }
            Outcome::Refused(refusal) => {
                self.metrics.publishes_refused.add_one();
                let refused = match refusal {
                    Refusal::Busy => Refused::new(ErrorCode::TOO_MANY_REQUESTS, "the log is busy"),
                    Refusal::TooLarge => Refused::new(ErrorCode::BAD_REQUEST, "too large"),
                    Refusal::Conflict => Refused::new(
                        ErrorCode::BAD_REQUEST,
                        "the idempotency key was used for another message",
                    ),
                    Refusal::NotSent(why) => temporary(why),
                };
                refused.to_json()
            }
            Outcome::Unknown => {
                self.metrics.publishes_unknown.add_one();
                let mut answer = temporary("publish outcome unknown").to_json();
                answer["unknown"] = true.into();
                answer
            }
        }
    }

    fn answer(
        &self,
        reply: Option<String>,
        answer: serde_json::Value,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        // MQTT devices and `nats pub` give no reply subject: they asked for no answer.
        let Some(reply) = reply else { return };
        let client = self.client.clone();
        self.tasks.spawn(async move {
            let payload = Bytes::from(answer.to_string());
            if let Err(error) = client.publish(reply, payload).await {
                tracing::debug!(%error, "answer not sent");
            }
            drop(permit);
        });
    }
}

/// True if a reply subject is the asker's own inbox. `_INBOX.<user>.` for users, any `_INBOX.` for
/// operators, and no wildcards.
#[must_use]
pub fn may_be_answered(user: &str, reply: &str, operators: &[String]) -> bool {
    let prefix = if operators.iter().any(|operator| operator == user) {
        "_INBOX.".to_owned()
    } else {
        format!("_INBOX.{}.", user_token(user))
    };
    reply.len() > prefix.len() && reply.starts_with(&prefix) && !reply.contains(['*', '>', ' '])
}

/// What a namespace's `publication_data_format` says of a payload.
///
/// # Errors
/// A sentence that says what it has to be.
pub fn check_format(format: DataFormat, payload: &[u8]) -> Result<(), &'static str> {
    match format {
        DataFormat::Json if !crate::protocol::json::is_json(payload) => {
            Err("the payload must be JSON (publication_data_format of the namespace)")
        }
        DataFormat::JsonObject if !crate::protocol::json::is_json_object(payload) => {
            Err("the payload must be a JSON object (publication_data_format of the namespace)")
        }
        DataFormat::Json | DataFormat::JsonObject | DataFormat::Binary => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::DoorSettings;

    #[test]
    fn answers_go_into_the_askers_own_inbox_only() {
        let operators = ["ops".to_owned()];
        let check = |user, reply| may_be_answered(user, reply, &operators);
        assert!(check("dev1", "_INBOX.dev1.x.y"));
        assert!(check("ops", "_INBOX.whatever"));
        assert!(check("a b", "_INBOX.a=20b.x"));
        for reply in [
            "_INBOX.dev2.x",
            "_INBOX.dev1",
            "_INBOX.dev1.",
            "_INBOX.dev11.x",
            "log.rooms.1.chat.lobby",
            "room.chat.lobby",
            "weir.x",
            "$JS.API.STREAM.PURGE.ROOMS_0",
            "$KV.weir.x",
            "_INBOX.dev1.*",
        ] {
            assert!(!check("dev1", reply), "{reply}");
        }
        assert!(!check("ops", "$JS.API.STREAM.PURGE.ROOMS_0"));
    }

    #[test]
    fn who_logged_in_with_a_token_has_what_nats_server_let_through() {
        let room = RoomName::parse("closed:a").unwrap();
        let rules = weir_authz::NamespaceRules::default();
        let may = |settings: &DoorSettings, user: &str| {
            let grants = settings.grants(user);
            grants.check(Action::Publish, &room, &rules, false).is_ok()
        };
        let mut settings = DoorSettings::default();
        assert!(
            !may(&settings, "ann"),
            "without a callout there are only static users"
        );
        settings.static_users = Some(["bot".to_owned()].into());
        assert!(may(&settings, "ann"));
        assert!(!may(&settings, "bot"));
    }
}
