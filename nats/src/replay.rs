//! Knows: JetStream's Direct Get and stream state, as ADR-31 and the server define them. Never:
//! which tier should be read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::message::{Delivery, DeliveryError, header, last};
use crate::position::Seq;

mod pages;
mod state;

pub use pages::ReplayPage;
pub use state::{Limits, StreamState};

/// Deep reads of one connection at a time: they hold up the stream's writers.
const READS_AT_ONCE_MAX: usize = 4;
/// Messages of one batch.
const BATCH_MAX_MESSAGES: u32 = 200;
/// Messages of one scan, as for the archive.
const SCAN_MAX_MESSAGES: u32 = 1_000;
/// Bytes of one batch.
const BATCH_MAX_BYTES: u32 = 1 << 20;
/// Subjects of one multi-last request (the server refuses more than 1,024).
const SUBJECTS_MAX: usize = 1_000;
/// JetStream's error of a message that is not there.
const NO_MESSAGE: u64 = 10_037;
/// Without a reply for this long a read has failed, unless the connection says otherwise.
const REPLY_WITHIN: Duration = Duration::from_secs(2);

/// A read that did not succeed. Nothing partial is ever returned.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReplayError {
    /// No answer in time, or no connection: try again.
    #[error("the stream {0} did not answer in time")]
    TimedOut(String),
    /// There is no such stream, or it has no leader, or it may not be read.
    #[error("the stream {0} is not there")]
    NoStream(String),
    /// JetStream refused the request.
    #[error("the stream {stream} refused a read: {reason}")]
    Refused {
        /// The stream.
        stream: String,
        /// What the server said.
        reason: String,
    },
    /// An answer that is not what was asked for.
    #[error("the stream {0} gave an answer that cannot be read")]
    Malformed(String),
}

/// One message of a stream, whoever wrote it.
#[derive(Debug)]
pub struct Scanned {
    /// Its sequence.
    pub seq: Seq,
    /// Its subject.
    pub subject: String,
    /// Its headers, with those of the server.
    pub headers: HeaderMap,
    /// Its payload.
    pub payload: Bytes,
    /// The message of a room, or why it is none.
    pub delivery: Result<Delivery, DeliveryError>,
}

/// Reads streams over one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Replay {
    client: Client,
    reads: Arc<Semaphore>,
    reply_within: Duration,
}

impl Replay {
    /// Reads over `client`, with its time-out of requests.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            reply_within: client.timeout().unwrap_or(REPLY_WITHIN),
            client,
            reads: Arc::new(Semaphore::new(READS_AT_ONCE_MAX)),
        }
    }

    /// The same with another bound on deep reads at a time, at least 1.
    #[must_use]
    pub fn with_reads_at_once(self, reads_max: usize) -> Self {
        Self {
            reads: Arc::new(Semaphore::new(reads_max.max(1))),
            ..self
        }
    }

    /// The last message of a subject.
    ///
    /// # Errors
    /// When the stream does not answer; a subject without messages is `None`.
    pub async fn last(
        &self,
        stream: &str,
        stored_subject: &str,
    ) -> Result<Option<Delivery>, ReplayError> {
        self.one(stream, &json!({ "last_by_subj": stored_subject }))
            .await
    }

    /// The message at a sequence, of whatever subject.
    ///
    /// # Errors
    /// When the stream does not answer; a sequence that is not there is `None`.
    pub async fn at(&self, stream: &str, seq: Seq) -> Result<Option<Delivery>, ReplayError> {
        if seq.is_zero() {
            return Ok(None);
        }
        self.one(stream, &json!({ "seq": seq.get() })).await
    }

    async fn one(
        &self,
        stream: &str,
        query: &serde_json::Value,
    ) -> Result<Option<Delivery>, ReplayError> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let reply = self
            .request(stream, subject, query.to_string().into())
            .await?;
        match status(&reply) {
            None => Ok(Some(self.delivery(stream, &reply)?)),
            Some(404) => Ok(None),
            Some(_) => Err(refused(stream, &reply)),
        }
    }

    /// The last sequence of each subject that moved past `after`.
    ///
    /// # Errors
    /// When the stream does not answer whole.
    pub async fn heads(
        &self,
        stream: &str,
        stored_subjects: &[String],
        after: Seq,
    ) -> Result<HashMap<String, Seq>, ReplayError> {
        let mut heads = HashMap::new();
        for subjects in stored_subjects.chunks(SUBJECTS_MAX) {
            let query = json!({
                "multi_last": subjects,
                "seq": after.read_from(),
                "batch": SUBJECTS_MAX,
            });
            let (deliveries, _) = self.batch(stream, &query).await?;
            heads.extend(
                deliveries
                    .into_iter()
                    .map(|d| (d.stored_subject, d.message.seq)),
            );
        }
        Ok(heads)
    }

    /// Messages of rooms after `after` under a subject filter, at most `max_messages`.
    ///
    /// # Errors
    /// When the stream does not answer whole.
    pub async fn all_after(
        &self,
        stream: &str,
        filter: &str,
        after: Seq,
        max_messages: u32,
    ) -> Result<Vec<Delivery>, ReplayError> {
        let scanned = self.scan(stream, filter, after, max_messages).await?;
        Ok(scanned
            .into_iter()
            .filter_map(|one| one.delivery.ok())
            .collect())
    }

    /// Every message after `after` under a subject filter, also what is no room's.
    ///
    /// # Errors
    /// When the stream does not answer whole, or an answer has no sequence.
    pub async fn scan(
        &self,
        stream: &str,
        filter: &str,
        after: Seq,
        max_messages: u32,
    ) -> Result<Vec<Scanned>, ReplayError> {
        let query = json!({
            "seq": after.read_from(),
            "next_by_subj": filter,
            "batch": max_messages.min(SCAN_MAX_MESSAGES),
            "max_bytes": BATCH_MAX_BYTES,
        });
        let (replies, _) = self.replies(stream, &query).await?;
        let malformed = || ReplayError::Malformed(stream.to_owned());
        let scanned = replies.into_iter().map(|reply| {
            let headers = reply.headers.unwrap_or_default();
            let seq = number(&headers, header::SEQUENCE)
                .map(Seq::new)
                .ok_or_else(malformed)?;
            let subject = last(&headers, header::SUBJECT)
                .ok_or_else(malformed)?
                .to_owned();
            let delivery = Delivery::from_headers(&headers, reply.payload.clone());
            Ok(Scanned {
                seq,
                subject,
                headers,
                payload: reply.payload,
                delivery,
            })
        });
        scanned.collect()
    }

    /// The message at a sequence, whatever it is; `None` if there is none any more.
    ///
    /// # Errors
    /// When the stream does not answer whole.
    pub async fn scan_at(&self, stream: &str, seq: Seq) -> Result<Option<Scanned>, ReplayError> {
        let page = self.scan(stream, ">", seq.just_before(), 1).await?;
        Ok(page.into_iter().next().filter(|scanned| scanned.seq == seq))
    }

    /// The first sequence after `after` under a subject filter, as the stream's leader has it: a
    /// replica that lags may have said that there is none.
    ///
    /// # Errors
    /// When the leader does not answer.
    pub async fn leader_has_after(
        &self,
        stream: &str,
        filter: &str,
        after: Seq,
    ) -> Result<Option<Seq>, ReplayError> {
        let query = json!({ "seq": after.read_from(), "next_by_subj": filter }).to_string();
        let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
        let reply = self.client.request(subject, query.into()).await;
        let malformed = || ReplayError::Malformed(stream.to_owned());
        let reply = reply.map_err(|_| ReplayError::TimedOut(stream.to_owned()))?;
        let answer: serde_json::Value =
            serde_json::from_slice(&reply.payload).map_err(|_| malformed())?;
        if let Some(code) = answer.pointer("/error/err_code") {
            return match code.as_u64() {
                Some(NO_MESSAGE) => Ok(None),
                _ => Err(ReplayError::Refused {
                    stream: stream.to_owned(),
                    reason: answer["error"]["description"].to_string(),
                }),
            };
        }
        let seq = answer
            .pointer("/message/seq")
            .and_then(serde_json::Value::as_u64);
        seq.map(|seq| Some(Seq::new(seq))).ok_or_else(malformed)
    }

    /// One batch, and how many messages follow it.
    async fn batch(
        &self,
        stream: &str,
        query: &serde_json::Value,
    ) -> Result<(Vec<Delivery>, u64), ReplayError> {
        let (replies, pending) = self.replies(stream, query).await?;
        let deliveries = replies.iter().map(|reply| self.delivery(stream, reply));
        Ok((deliveries.collect::<Result<_, _>>()?, pending))
    }

    /// The replies of a batch, which count only with its end mark.
    async fn replies(
        &self,
        stream: &str,
        query: &serde_json::Value,
    ) -> Result<(Vec<async_nats::Message>, u64), ReplayError> {
        let timed_out = || ReplayError::TimedOut(stream.to_owned());
        let inbox = self.client.new_inbox();
        let mut replies = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|_| timed_out())?;
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        self.client
            .publish_with_reply(subject, inbox, query.to_string().into())
            .await
            .map_err(|_| timed_out())?;
        let mut messages = Vec::new();
        loop {
            let reply = tokio::time::timeout(self.reply_within, replies.next())
                .await
                .map_err(|_| timed_out())?
                .ok_or_else(timed_out)?;
            match status(&reply) {
                None => messages.push(reply),
                Some(204) => {
                    let headers = reply.headers.as_ref();
                    let pending = headers
                        .and_then(|h| number(h, header::NUM_PENDING))
                        .unwrap_or(0);
                    return Ok((messages, pending));
                }
                Some(404) => return Ok((messages, 0)),
                Some(503) => return Err(ReplayError::NoStream(stream.to_owned())),
                Some(_) => return Err(refused(stream, &reply)),
            }
        }
    }

    fn delivery(&self, stream: &str, reply: &async_nats::Message) -> Result<Delivery, ReplayError> {
        let malformed = || ReplayError::Malformed(stream.to_owned());
        let headers = reply.headers.as_ref().ok_or_else(malformed)?;
        let delivery =
            Delivery::from_headers(headers, reply.payload.clone()).map_err(|_| malformed())?;
        if delivery.stream == stream {
            Ok(delivery)
        } else {
            Err(malformed())
        }
    }

    async fn request(
        &self,
        stream: &str,
        subject: String,
        payload: Bytes,
    ) -> Result<async_nats::Message, ReplayError> {
        use async_nats::client::RequestErrorKind;
        let request = async_nats::Request::new()
            .payload(payload)
            .timeout(Some(self.reply_within));
        self.client
            .send_request(subject, request)
            .await
            .map_err(|error| match error.kind() {
                RequestErrorKind::NoResponders => ReplayError::NoStream(stream.to_owned()),
                _ => ReplayError::TimedOut(stream.to_owned()),
            })
    }
}

#[derive(Deserialize)]
struct ApiError {
    err_code: Option<u32>,
    description: Option<String>,
}

impl ApiError {
    fn into_replay(self, stream: &str) -> ReplayError {
        match self.err_code {
            // JSStreamNotFoundErr
            Some(10_059) => ReplayError::NoStream(stream.to_owned()),
            _ => ReplayError::Refused {
                stream: stream.to_owned(),
                reason: self.description.unwrap_or_default(),
            },
        }
    }
}

fn status(reply: &async_nats::Message) -> Option<u16> {
    reply.status.map(|status| status.as_u16())
}

fn refused(stream: &str, reply: &async_nats::Message) -> ReplayError {
    let reason = reply.description.clone().unwrap_or_default();
    let status = status(reply).unwrap_or_default();
    ReplayError::Refused {
        stream: stream.to_owned(),
        reason: format!("{status} {reason}"),
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    last(headers, name)?.parse().ok()
}
