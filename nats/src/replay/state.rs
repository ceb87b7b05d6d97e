//! Knows: what a stream's leader says of it as a whole. Never: its messages.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{ApiError, Replay, ReplayError};
use crate::position::Seq;

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

impl StreamState {
    /// How many sequences between the first and the last are not there: deleted, or lost.
    #[must_use]
    pub fn missing(&self) -> u64 {
        if self.messages == 0 {
            return 0;
        }
        let span = self.last.read_from().saturating_sub(self.first.get());
        span.saturating_sub(self.messages)
    }
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

impl Replay {
    /// What the leader says of a stream.
    ///
    /// # Errors
    /// When it is not there or does not answer.
    pub async fn state(&self, stream: &str) -> Result<StreamState, ReplayError> {
        let info = self.info(stream, Bytes::new()).await?;
        let state = info.state;
        Ok(StreamState {
            first: Seq::new(state.first_seq),
            last: Seq::new(state.last_seq),
            messages: state.messages,
            bytes: state.bytes,
            limits: info.config,
            created: info.created,
        })
    }

    /// The sequences between a stream's first and last that are not there, in order: as many as
    /// [`StreamState::missing`] says, each some eight bytes of the answer.
    ///
    /// # Errors
    /// When it is not there or does not answer.
    pub async fn missing(&self, stream: &str) -> Result<Vec<Seq>, ReplayError> {
        let details = json!({ "deleted_details": true }).to_string();
        let info = self.info(stream, details.into()).await?;
        Ok(info.state.deleted.into_iter().map(Seq::new).collect())
    }

    /// How many messages of a subject the stream's index counts, also such that cannot be read.
    ///
    /// # Errors
    /// When the stream is not there or does not answer.
    pub(super) async fn counted(
        &self,
        stream: &str,
        stored_subject: &str,
    ) -> Result<u64, ReplayError> {
        let filter = json!({ "subjects_filter": stored_subject }).to_string();
        let info = self.info(stream, filter.into()).await?;
        Ok(info.state.subjects.values().sum())
    }

    async fn info(&self, stream: &str, request: Bytes) -> Result<Info, ReplayError> {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let reply = match self.request(stream, subject, request).await {
            // Nobody serves JetStream just now, which says nothing of the stream.
            Err(ReplayError::NoStream(stream)) => return Err(ReplayError::TimedOut(stream)),
            reply => reply?,
        };
        match serde_json::from_slice(&reply.payload) {
            Ok(Answer::Info(info)) => Ok(info),
            Ok(Answer::Error { error }) => Err(error.into_replay(stream)),
            Err(_) => Err(ReplayError::Malformed(stream.to_owned())),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Error { error: ApiError },
    Info(Info),
}

#[derive(Deserialize)]
struct Info {
    created: String,
    state: State,
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
    #[serde(default)]
    deleted: Vec<u64>,
    #[serde(default)]
    subjects: HashMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_is_what_lies_between_first_and_last_and_is_not_there() {
        let state = |first, last, messages| StreamState {
            first: Seq::new(first),
            last: Seq::new(last),
            messages,
            bytes: 0,
            limits: Limits::default(),
            created: String::new(),
        };
        for (first, last, messages, missing) in [
            (0, 0, 0, 0),
            (1, 1, 1, 0),
            (1, 10, 10, 0),
            (1, 10, 7, 3),
            // Empty: everything was trimmed.
            (11, 10, 0, 0),
            (5, 10, 2, 4),
        ] {
            let state = state(first, last, messages);
            assert_eq!(state.missing(), missing, "{state:?}");
        }
    }
}
