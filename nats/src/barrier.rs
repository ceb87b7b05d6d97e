//! Knows: how to learn that a stream has dealt with everything that was sent to it before. Never: why
//! that matters.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, HeaderMap, Request};

/// The stream that a publish is for; another one refuses it.
pub(crate) const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How a [`barrier`] went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    /// The stream answered.
    Passed,
    /// No stream takes the subject.
    NoStream,
    /// No answer.
    Silent,
}

/// A publish that is always refused: its answer proves that the stream has dealt with everything
/// that was sent before it on the same connection.
pub(crate) async fn barrier(client: &Client, subject: &str) -> Barrier {
    let mut headers = HeaderMap::new();
    // No stream has this name.
    headers.insert(EXPECTED_STREAM, "-");
    let request = Request::new().headers(headers).timeout(Some(ANSWER_WITHIN));
    match client.send_request(subject.to_owned(), request).await {
        Ok(_) => Barrier::Passed,
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Barrier::NoStream,
        Err(_) => Barrier::Silent,
    }
}
