//! Knows: how a message and an atomic batch are sent, and what an acknowledgement says.
//! Never: what follows from it.

use std::time::Duration;

use async_nats::client::{RequestError, RequestErrorKind};
use async_nats::header::HeaderValue;
use async_nats::{HeaderMap, Message, Request};
use serde::Deserialize;

use super::queue::Ticket;
use super::random_id;
use crate::barrier::EXPECTED_STREAM;
use crate::connect::Links;
use crate::position::Seq;

/// Without an acknowledgement for this long the outcome of a send is unknown.
const ACK_WITHIN: Duration = Duration::from_secs(2);
/// How soon a lost connection ends the wait for an acknowledgement, which died with it.
const LOST_CHECK: Duration = Duration::from_millis(50);
/// The stream has another name than the sender knows: nothing is stored.
const WRONG_STREAM: u32 = 10_060;

/// What a send came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Stored, or there before.
    Acked { seq: Seq, duplicate: bool },
    /// Surely not stored by this send: the room's stream is fenced or not there.
    NoStream,
    /// Surely not stored by this send, and it said why.
    Refused(String),
    /// Sent perhaps, stored perhaps.
    Unknown,
}

#[derive(Deserialize)]
struct Ack {
    error: Option<AckError>,
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct AckError {
    err_code: Option<u32>,
    description: Option<String>,
}

/// Sends one message, which only the named stream will take.
pub(super) async fn single(links: &Links, ticket: &Ticket, stream: &str) -> Sent {
    let mut headers = ticket.headers.clone();
    headers.insert(EXPECTED_STREAM, stream);
    request(links, ticket, headers).await
}

/// `Nats-Batch-Id` on all, `Nats-Batch-Sequence` from 1, `Nats-Batch-Commit` on the last, whose
/// acknowledgement is that of all: the last sequence.
pub(super) async fn batch<'a>(
    links: &Links,
    tickets: impl ExactSizeIterator<Item = &'a Ticket>,
    stream: &str,
) -> Sent {
    let batch_id = random_id();
    let count = tickets.len();
    for (ticket, nth) in tickets.zip(1_usize..) {
        let mut headers = ticket.headers.clone();
        headers.insert("Nats-Batch-Id", batch_id.as_str());
        headers.insert("Nats-Batch-Sequence", HeaderValue::from(nth as u64));
        if nth == 1 {
            headers.insert(EXPECTED_STREAM, stream);
        }
        if nth == count {
            headers.insert("Nats-Batch-Commit", "1");
            return request(links, ticket, headers).await;
        }
        let published = links
            .live
            .publish_with_headers(ticket.subject.clone(), headers, ticket.data.clone())
            .await;
        if let Err(error) = published {
            // Without its commit the server drops the batch.
            return Sent::Refused(error.to_string());
        }
    }
    Sent::Refused("a batch of none".to_owned())
}

async fn request(links: &Links, ticket: &Ticket, headers: HeaderMap) -> Sent {
    let lost = links.live_lost();
    let request = Request::new()
        .headers(headers)
        .payload(ticket.data.clone())
        .timeout(Some(ACK_WITHIN));
    let answer = links.live.send_request(ticket.subject.clone(), request);
    tokio::pin!(answer);
    loop {
        tokio::select! {
            answer = &mut answer => return outcome(answer),
            () = tokio::time::sleep(LOST_CHECK) => {
                if links.live_lost() != lost {
                    return Sent::Unknown;
                }
            }
        }
    }
}

fn outcome(result: Result<Message, RequestError>) -> Sent {
    match result {
        Ok(reply) => read(&reply.payload),
        Err(error) => match error.kind() {
            RequestErrorKind::NoResponders => Sent::NoStream,
            RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                Sent::Refused(error.to_string())
            }
            RequestErrorKind::TimedOut | RequestErrorKind::Other => Sent::Unknown,
        },
    }
}

fn read(payload: &[u8]) -> Sent {
    let Ok(ack) = serde_json::from_slice::<Ack>(payload) else {
        return Sent::Unknown;
    };
    if let Some(error) = ack.error {
        let code = error.err_code.unwrap_or_default();
        if code == WRONG_STREAM {
            return Sent::NoStream;
        }
        let text = error.description.unwrap_or_default();
        return Sent::Refused(format!("{text} ({code})"));
    }
    match ack.seq {
        Some(seq) if seq > 0 => Sent::Acked {
            seq: Seq::new(seq),
            duplicate: ack.duplicate,
        },
        _ => Sent::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_read() {
        let acked = |seq, duplicate| Sent::Acked {
            seq: Seq::new(seq),
            duplicate,
        };
        assert_eq!(read(br#"{"stream":"A","seq":7}"#), acked(7, false));
        assert_eq!(
            read(br#"{"stream":"A","seq":7,"duplicate":true}"#),
            acked(7, true)
        );
        assert_eq!(
            read(br#"{"error":{"code":400,"err_code":10060},"stream":"A","seq":0}"#),
            Sent::NoStream
        );
        assert_eq!(
            read(br#"{"error":{"code":400,"err_code":10201,"description":"x"},"seq":0}"#),
            Sent::Refused("x (10201)".into())
        );
        assert_eq!(read(b"junk"), Sent::Unknown);
        assert_eq!(read(b"{}"), Sent::Unknown);
    }
}
