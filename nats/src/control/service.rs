//! Knows: `weir.revoke`, `weir.disconnect` and `weir.unsubscribe` as requests. Never: what an order does; who may ask:
//! nats-server lets only operators publish on `weir.>`.
//!
//! Answers go out as a user that may publish into inboxes only.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::select;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::give::{Given, Giver};
use super::{ENDS_KEPT, Order, OrderError, Revoked, What, Whose};
use crate::message::{format_time_ms, parse_time_ms};

const REVOKE: &str = "weir.revoke";
const DISCONNECT: &str = "weir.disconnect";
const UNSUBSCRIBE: &str = "weir.unsubscribe";
/// All processes answer as one.
const QUEUE_GROUP: &str = "weir-control";
/// Orders that are given at once by one process; beyond it error 111.
const IN_FLIGHT_MAX: usize = 64;
/// The protocol's codes.
const INTERNAL: u32 = 100;
const BAD_REQUEST: u32 = 107;
const TOO_MANY_REQUESTS: u32 = 111;

/// The body of `weir.revoke`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Revoke {
    user: Option<String>,
    token_id: Option<String>,
    issued_before: Option<When>,
    /// Seconds.
    ttl: Option<u64>,
    by: String,
    reason: String,
}

/// The body of the others.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct End {
    user: Option<String>,
    channel: Option<String>,
    client: Option<String>,
    reconnect: Option<bool>,
    by: String,
    reason: String,
}

/// Seconds since 1970, or RFC 3339.
#[derive(Deserialize)]
#[serde(untagged)]
enum When {
    Seconds(i64),
    Text(String),
}

/// Why a request is refused: the protocol's error code and a sentence.
#[derive(Debug)]
struct Refused(u32, String);

impl From<OrderError> for Refused {
    fn from(error: OrderError) -> Self {
        Self(BAD_REQUEST, error.to_string())
    }
}

/// A time as operators write it: seconds since 1970, RFC 3339, or `now`; in seconds since 1970.
///
/// # Errors
/// A sentence that says what may be written.
pub fn time_s(text: &str) -> Result<i64, String> {
    let text = text.trim();
    if text == "now" {
        return Ok(crate::ambient::now_ms() / 1_000 + 1);
    }
    let found = text.parse().ok();
    let found = found.or_else(|| parse_time_ms(text).map(|ms| ms.div_euclid(1_000)));
    found.ok_or_else(|| {
        format!("{text:?} is no time: write seconds since 1970, 2026-01-31T09:30:00Z, or now")
    })
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct ControlService {
    door: Client,
    giver: Giver,
    /// How long a revocation is kept where nothing else is said.
    ttl: Duration,
    tasks: TaskTracker,
    in_flight: Arc<Semaphore>,
}

impl ControlService {
    /// A service that answers on `door`, which may publish into inboxes only.
    #[must_use]
    pub fn new(door: Client, giver: Giver, ttl: Duration, tasks: TaskTracker) -> Self {
        Self {
            door,
            giver,
            ttl,
            tasks,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        }
    }

    /// Answers until `stop`, and returns when what is in hand is answered.
    ///
    /// # Errors
    /// When a subscription cannot be made.
    pub async fn run(self, stop: CancellationToken) -> Result<(), async_nats::SubscribeError> {
        let group = || QUEUE_GROUP.to_owned();
        let revoke = self.door.queue_subscribe(REVOKE, group()).await?;
        let disconnect = self.door.queue_subscribe(DISCONNECT, group()).await?;
        let unsubscribe = self.door.queue_subscribe(UNSUBSCRIBE, group()).await?;
        let mut requests = select(revoke, select(disconnect, unsubscribe));
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
        // Each answer that left brings its permit back.
        let all = u32::try_from(IN_FLIGHT_MAX).expect("a small constant");
        drop(self.in_flight.acquire_many(all).await);
        if let Err(error) = self.door.flush().await {
            tracing::debug!(%error, "last answers about orders not flushed");
        }
        Ok(())
    }

    fn take(&self, request: Message) {
        let reply = request.reply.as_ref().map(ToString::to_string);
        let may_answer =
            |reply: &String| reply.starts_with("_INBOX.") && !reply.contains(['*', '>', ' ']);
        if reply.as_ref().is_some_and(|reply| !may_answer(reply)) {
            tracing::warn!(
                subject = %request.subject,
                "reply subject of an order refused, and so the order"
            );
            return;
        }
        let permit = Arc::clone(&self.in_flight).try_acquire_owned();
        let service = self.clone();
        self.tasks.spawn(async move {
            let given = match &permit {
                Ok(_) => service.give(&request).await,
                Err(_) => Err(Refused(
                    TOO_MANY_REQUESTS,
                    format!("more than {IN_FLIGHT_MAX} orders at once"),
                )),
            };
            let answer = match given {
                Ok(given) => json!({ "result": shown(&given) }),
                Err(Refused(code, message)) => {
                    tracing::info!(subject = %request.subject, code, message, "order refused");
                    let temporary = matches!(code, INTERNAL | TOO_MANY_REQUESTS);
                    json!({ "error": { "code": code, "message": message, "temporary": temporary } })
                }
            };
            if let Some(reply) = reply {
                let answer = Bytes::from(answer.to_string());
                if let Err(error) = service.door.publish(reply, answer).await {
                    tracing::debug!(%error, "answer about an order not sent");
                }
            }
            drop(permit);
        });
    }

    async fn give(&self, request: &Message) -> Result<Given, Refused> {
        let order = self.read(&request.subject, &request.payload)?;
        let given = self.giver.give(order).await;
        given.map_err(|error| Refused(INTERNAL, error.to_string()))
    }

    fn read(&self, subject: &str, payload: &[u8]) -> Result<Order, Refused> {
        let bad = |error: serde_json::Error| Refused(BAD_REQUEST, error.to_string());
        let by = |claimed: &str| match claimed {
            "" => "a request over NATS".to_owned(),
            claimed => format!("a request over NATS, of {claimed}"),
        };
        if subject == REVOKE {
            let body: Revoke = serde_json::from_slice(payload).map_err(bad)?;
            let issued_before_s = match body.issued_before {
                None => None,
                Some(When::Seconds(seconds)) => Some(seconds),
                Some(When::Text(text)) => {
                    let time = time_s(&text);
                    Some(time.map_err(|why| Refused(BAD_REQUEST, format!("issued_before: {why}")))?)
                }
            };
            let (user, id) = (body.user.as_deref(), body.token_id.as_deref());
            let what = What::Revoke(Revoked::new(user, id, issued_before_s)?);
            let ttl = body.ttl.map_or(self.ttl, Duration::from_secs);
            return Ok(Order::new(what, ttl, &by(&body.by), &body.reason)?);
        }
        let body: End = serde_json::from_slice(payload).map_err(bad)?;
        let whose = Whose::new(
            body.user.as_deref(),
            body.channel.as_deref(),
            body.client.as_deref(),
        )?;
        let what = match (subject, body.reconnect) {
            (UNSUBSCRIBE, None) => What::Unsubscribe { whose },
            (UNSUBSCRIBE, Some(_)) => {
                let text =
                    "reconnect: only connections can be sent to reconnect, by weir.disconnect";
                return Err(Refused(BAD_REQUEST, text.to_owned()));
            }
            (_, reconnect) => What::Disconnect {
                whose,
                reconnect: reconnect.unwrap_or(false),
            },
        };
        Ok(Order::new(what, ENDS_KEPT, &by(&body.by), &body.reason)?)
    }
}

fn shown(given: &Given) -> serde_json::Value {
    let (closed, unsubscribed, native) = given.sums();
    let silent = given.silent.iter();
    let silent: Vec<_> = silent
        .map(|process| format!("{} on {}", process.pid, process.host))
        .collect();
    json!({
        "order": given.written.order.what.to_string(),
        "until": format_time_ms(given.written.order.until_ms),
        "processes": given.done.len(),
        "silent": silent,
        "closed": closed,
        "unsubscribed": unsubscribed,
        "native_closed": native,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_seconds_or_a_date() {
        assert_eq!(time_s("1700000000"), Ok(1_700_000_000));
        assert_eq!(time_s("2023-11-14T22:13:20Z"), Ok(1_700_000_000));
        assert!(time_s("now").is_ok_and(|s| s >= crate::ambient::now_ms() / 1_000));
        for bad in ["", "yesterday", "2023-11-14", "-1h"] {
            assert!(
                time_s(bad).unwrap_err().contains("seconds since 1970"),
                "{bad}"
            );
        }
    }
}
