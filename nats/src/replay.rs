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

use crate::message::{Delivery, DeliveryError, Message, format_time_ms, header, last};
use crate::position::Seq;

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
/// Probes for where a backward page starts.
const PROBES_MAX: usize = 12;

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

/// What a stream's leader says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// The lowest sequence that is there; last + 1 when it is empty.
    pub first: Seq,
    /// The highest sequence ever given.
    pub last: Seq,
    /// Messages in it.
    pub messages: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// When it drops its oldest messages.
    pub limits: Limits,
    /// When it was created, as the server spells it.
    pub created: String,
}

/// What a stream keeps at most. Zero or less is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Limits {
    /// Age of a message, in nanoseconds.
    #[serde(default, rename = "max_age")]
    pub max_age_ns: i64,
    /// Bytes.
    #[serde(default)]
    pub max_bytes: i64,
    /// Messages.
    #[serde(default, rename = "max_msgs")]
    pub max_messages: i64,
}

/// Messages of one room.
#[derive(Clone, Debug, Default)]
pub struct ReplayPage {
    /// Oldest first from [`Replay::forward`], newest first from [`Replay::backward`].
    pub messages: Vec<Arc<Message>>,
    /// More follow in the same direction.
    pub more: bool,
}

/// The newest messages of a span.
struct Newest {
    /// Newest first.
    messages: Vec<Arc<Message>>,
    /// How many lie in the span.
    seen: usize,
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

    /// What the leader says of a stream.
    ///
    /// # Errors
    /// When it is not there or does not answer.
    pub async fn state(&self, stream: &str) -> Result<StreamState, ReplayError> {
        #[derive(Deserialize)]
        struct Answer {
            error: Option<ApiError>,
            created: Option<String>,
            state: Option<State>,
            #[serde(default)]
            config: Limits,
        }
        #[derive(Deserialize)]
        struct State {
            messages: u64,
            #[serde(default)]
            bytes: u64,
            first_seq: u64,
            last_seq: u64,
        }
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let reply = match self.request(stream, subject, Bytes::new()).await {
            // Nobody serves JetStream just now, which says nothing of the stream.
            Err(ReplayError::NoStream(stream)) => return Err(ReplayError::TimedOut(stream)),
            reply => reply?,
        };
        let answer: Answer = serde_json::from_slice(&reply.payload)
            .map_err(|_| ReplayError::Malformed(stream.to_owned()))?;
        if let Some(error) = answer.error {
            return Err(error.into_replay(stream));
        }
        let (Some(state), Some(created)) = (answer.state, answer.created) else {
            return Err(ReplayError::Malformed(stream.to_owned()));
        };
        Ok(StreamState {
            first: Seq::new(state.first_seq),
            last: Seq::new(state.last_seq),
            messages: state.messages,
            bytes: state.bytes,
            limits: answer.config,
            created,
        })
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

    /// Messages of one subject after `after`, oldest first.
    ///
    /// # Errors
    /// When the stream does not answer whole.
    pub async fn forward(
        &self,
        stream: &str,
        stored_subject: &str,
        after: Seq,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<ReplayPage, ReplayError> {
        let _permit = self
            .reads
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let mut page = ReplayPage::default();
        let mut from = after;
        let mut bytes = 0_usize;
        loop {
            let wanted = max_messages.saturating_sub(to_u32(page.messages.len()));
            let left = max_bytes.saturating_sub(to_u32(bytes));
            if wanted == 0 || left == 0 {
                page.more = true;
                return Ok(page);
            }
            let query = json!({
                "seq": from.read_from(),
                "next_by_subj": stored_subject,
                "batch": wanted.min(BATCH_MAX_MESSAGES),
                "max_bytes": left.min(BATCH_MAX_BYTES),
            });
            let (deliveries, pending) = self.batch(stream, &query).await?;
            let Some(newest) = deliveries.last() else {
                return Ok(page);
            };
            from = newest.message.seq;
            for delivery in deliveries {
                if delivery.stored_subject != stored_subject {
                    return Err(ReplayError::Malformed(stream.to_owned()));
                }
                bytes += delivery.message.data.len();
                page.messages.push(Arc::new(delivery.message));
            }
            page.more = pending > 0;
            if !page.more {
                return Ok(page);
            }
        }
    }

    /// How many messages of a subject lie after `after`, and the sequence of the first of them.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub async fn count_after(
        &self,
        stream: &str,
        stored_subject: &str,
        after: Seq,
    ) -> Result<Option<(u64, Seq)>, ReplayError> {
        let query = json!({ "seq": after.read_from(), "next_by_subj": stored_subject, "batch": 1 });
        let (deliveries, pending) = self.batch(stream, &query).await?;
        Ok(deliveries
            .first()
            .map(|first| (pending + 1, first.message.seq)))
    }

    /// The first message of a subject that was stored at `time_ms` (milliseconds since 1970) or later.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub async fn first_since(
        &self,
        stream: &str,
        stored_subject: &str,
        time_ms: i64,
    ) -> Result<Option<Seq>, ReplayError> {
        let time = format_time_ms(time_ms);
        let query = json!({ "start_time": time, "next_by_subj": stored_subject, "batch": 1 });
        let (deliveries, _) = self.batch(stream, &query).await?;
        Ok(deliveries.first().map(|first| first.message.seq))
    }

    /// The newest messages of one subject below `before` and above `above`, newest first. JetStream
    /// has no such request: the start is found by interpolating over the pending counts, then one
    /// forward read ends at `before`.
    ///
    /// # Errors
    /// When the stream does not answer whole.
    pub async fn backward(
        &self,
        stream: &str,
        stored_subject: &str,
        before: Option<Seq>,
        above: Seq,
        max_messages: u32,
        max_bytes: u32,
    ) -> Result<ReplayPage, ReplayError> {
        let state = self.state(stream).await?;
        let end = before.unwrap_or(Seq::new(state.last.read_from()));
        let low = above.max(state.first.just_before());
        if end.get() <= low.read_from() {
            return Ok(ReplayPage::default());
        }
        // How many lie at or after `end`: what a count from elsewhere has to leave out.
        let beyond = self
            .count_after(stream, stored_subject, end.just_before())
            .await?
            .map_or(0, |(count, _)| count);
        let Some((count, _)) = self.count_after(stream, stored_subject, low).await? else {
            return Ok(ReplayPage::default());
        };
        let total = count.saturating_sub(beyond);
        let wanted = u64::from(max_messages);
        let (mut start, mut held) = (low, total);
        let (mut top, mut lower) = (end.get(), low.get());
        for _ in 0..PROBES_MAX {
            if held <= wanted * 2 || top - lower < 2 {
                break;
            }
            // Where about one and a half pages would lie, if the room were evenly spread.
            let span = top - lower;
            let share = u128::from(span) * u128::from(wanted + wanted / 2) / u128::from(held);
            let back = u64::try_from(share).unwrap_or(span).clamp(1, span - 1);
            let probe = Seq::new(top - back);
            let found = self.count_after(stream, stored_subject, probe).await?;
            let count = found.map_or(0, |(count, _)| count).saturating_sub(beyond);
            if count >= wanted {
                (start, held, lower) = (probe, count, probe.get());
            } else {
                // Too far up: what is wanted begins below the probe.
                top = probe.get();
                if top - lower < 2 {
                    break;
                }
                let middle = Seq::new(lower + (top - lower) / 2);
                let found = self.count_after(stream, stored_subject, middle).await?;
                let count = found.map_or(0, |(count, _)| count).saturating_sub(beyond);
                if count >= wanted {
                    (start, held, lower) = (middle, count, middle.get());
                } else {
                    top = middle.get();
                }
            }
        }
        let wanted = max_messages as usize;
        loop {
            let read = self
                .newest_in(stream, stored_subject, (start, end), wanted, max_bytes)
                .await?;
            // What was written while it was counted may have hidden that too few lie here.
            let is_enough = read.seen >= wanted || read.seen > read.messages.len();
            if start > low && !is_enough {
                let span = end.get() - start.get();
                start = Seq::new(end.get().saturating_sub(span * 2)).max(low);
                continue;
            }
            return Ok(ReplayPage {
                more: read.seen > read.messages.len() || (start > low && total > read.seen as u64),
                messages: read.messages,
            });
        }
    }

    /// The newest messages of a subject in (`after`, `end`), newest first, of all that lie there.
    async fn newest_in(
        &self,
        stream: &str,
        stored_subject: &str,
        (after, end): (Seq, Seq),
        max_messages: usize,
        max_bytes: u32,
    ) -> Result<Newest, ReplayError> {
        let mut messages: Vec<Arc<Message>> = Vec::new();
        let (mut from, mut seen) = (after, 0);
        loop {
            let page = self
                .forward(
                    stream,
                    stored_subject,
                    from,
                    BATCH_MAX_MESSAGES,
                    BATCH_MAX_BYTES,
                )
                .await?;
            let reached_end = page.messages.iter().any(|message| message.seq >= end);
            if let Some(newest) = page.messages.last() {
                from = newest.seq;
            }
            let before = messages.len();
            let inside = page.messages.into_iter();
            messages.extend(inside.filter(|message| message.seq < end));
            seen += messages.len() - before;
            // Only the newest are wanted; a window as large as the page keeps memory bounded.
            let mut bytes = 0;
            let fitting = messages.iter().rev().take(max_messages);
            let fitting = fitting
                .take_while(|message| {
                    let fits = bytes == 0 || bytes + message.data.len() <= max_bytes as usize;
                    bytes += message.data.len();
                    fits
                })
                .count();
            messages.drain(..messages.len() - fitting);
            if reached_end || !page.more {
                break;
            }
        }
        messages.reverse();
        Ok(Newest { messages, seen })
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

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
