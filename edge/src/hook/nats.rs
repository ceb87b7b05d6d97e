//! Knows: a question as one NATS message, and the first answer to it. Never: what is asked, how long it may take.
//!
//! Each question has an inbox of its own that nats-server closes after one message: a service that answers often
//! is heard once, and one that never answers leaves nothing behind, as the client library's own inbox would.

use async_nats::{Client, HeaderMap as NatsHeaders, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::HeaderMap;

use super::Failure;

/// Asks once. Dropping it gives the inbox up.
pub(super) async fn ask(
    client: &Client,
    subject: &str,
    question: Bytes,
    headers: &HeaderMap,
) -> Result<Bytes, Failure> {
    let not_sent = |what: String| Failure::Broken(format!("the question was not sent: {what}"));
    let inbox = client.new_inbox();
    let answers = client.subscribe(inbox.clone()).await;
    let mut answers = answers.map_err(|error| not_sent(error.to_string()))?;
    let closed = answers.unsubscribe_after(1).await;
    closed.map_err(|error| not_sent(error.to_string()))?;
    let subject = subject.to_owned();
    let sent = if headers.is_empty() {
        client.publish_with_reply(subject, inbox, question).await
    } else {
        let headers = in_nats(headers);
        let sent = client.publish_with_reply_and_headers(subject, inbox, headers, question);
        sent.await
    };
    sent.map_err(|error| not_sent(error.to_string()))?;
    match answers.next().await {
        Some(answer) if answer.status == Some(StatusCode::NO_RESPONDERS) => Err(Failure::Absent),
        Some(answer) => Ok(answer.payload),
        None => Err(Failure::broken("the connection to NATS ended")),
    }
}

fn in_nats(headers: &HeaderMap) -> NatsHeaders {
    let mut found = NatsHeaders::new();
    for (name, value) in headers {
        // What is no text cannot be in a NATS header.
        if let Ok(value) = value.to_str() {
            found.append(name.as_str(), value);
        }
    }
    found
}
