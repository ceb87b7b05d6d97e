//! Knows: how a stream's messages are erased: found by scanning, each by `MSG.DELETE` with
//! `no_erase: false`, so that its bytes are written over in the block files. (A purge by subject
//! leaves them there.) Never: rooms, archives.

use std::time::Duration;

use async_nats::Client;
use async_nats::client::RequestErrorKind;
use futures_util::future::try_join_all;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::book::StreamProgress;
use super::{ErasureError, LogScope, Order, SlotScope, What};
use crate::ambient::now_ms;
use crate::message::{header, last, parse_time_ms};
use crate::placement::PlacementRecord;
use crate::position::Seq;
use crate::replay::{Replay, ReplayError, Scanned};
use crate::subject::{RoomName, unescape};

/// Messages of one page of a scan.
const PAGE_MAX_MESSAGES: u32 = 200;
/// Messages being erased at a time: each waits for the disk, and holds up the stream's writers.
const AT_ONCE_MAX: usize = 4;
/// For one message to be erased.
const ERASED_WITHIN: Duration = Duration::from_secs(5);

/// Erases over a connection of Weir's own user, which alone may.
#[derive(Clone, Debug)]
pub struct StreamEraser {
    client: Client,
    replay: Replay,
}

impl StreamEraser {
    /// Erases over `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            replay: Replay::new(client.clone()),
            client,
        }
    }

    /// What it reads with.
    #[must_use]
    pub const fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Up to where an order that ends at `up_to` has something to do in a stream; zero in one that is gone.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub async fn end(&self, stream: &str, up_to: Seq) -> Result<Seq, ErasureError> {
        end(&self.replay, stream, up_to).await
    }

    /// What an order would cover if it was given now: every log that is placed, and when the newest
    /// message of their streams was stored (milliseconds since 1970; 0 if there is none).
    ///
    /// # Errors
    /// When a stream does not answer.
    pub async fn scope(
        &self,
        placed: &[(String, PlacementRecord)],
    ) -> Result<(Vec<LogScope>, i64), ErasureError> {
        let (mut logs, mut newest_ms) = (Vec::new(), 0);
        for (log, record) in placed {
            let mut slots = Vec::new();
            for slot in &record.slots {
                let streams: Vec<String> =
                    slot.generations.iter().map(|g| g.stream.clone()).collect();
                let mut up_to = Seq::ZERO;
                if let Some(current) = streams.last() {
                    let last = self.replay.state(current).await?.last;
                    let at = self.replay.scan(current, ">", last.just_before(), 1);
                    let time_ms = at.await?.first().map(time_of);
                    newest_ms = newest_ms.max(time_ms.unwrap_or_default());
                    up_to = last;
                }
                slots.push(SlotScope { streams, up_to });
            }
            let log = log.clone();
            logs.push(LogScope { log, slots });
        }
        Ok((logs, newest_ms))
    }

    /// How many messages of a room a stream has up to a sequence.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub async fn count(
        &self,
        stream: &str,
        stored_subject: &str,
        up_to: Seq,
    ) -> Result<u64, ErasureError> {
        let after = async |seq| {
            let found = self.replay.count_after(stream, stored_subject, seq).await?;
            Ok::<_, ErasureError>(found.map_or(0, |(count, _)| count))
        };
        Ok(after(Seq::ZERO).await?.saturating_sub(after(up_to).await?))
    }

    /// One page of a stream after `progress`, up to `end`. Half of the time is left to the stream's
    /// writers. `done_ms` is set when `end` was reached; a stream that is gone is done.
    ///
    /// # Errors
    /// When the stream does not answer or a message stays; what is in `progress` then holds.
    pub async fn step(
        &self,
        order: &Order,
        log: &str,
        stream: &str,
        end: Seq,
        progress: &mut StreamProgress,
    ) -> Result<(), ErasureError> {
        let filter = match &order.what {
            What::Room(name) => match RoomName::parse(name) {
                Ok(room) => room.stored_subject(log),
                // No room has such a name, so none has a message.
                Err(_) => {
                    finish(progress, end);
                    return Ok(());
                }
            },
            What::User(_) => format!("log.{log}.>"),
        };
        let after = progress.reached;
        let page = self.replay.scan(stream, &filter, after, PAGE_MAX_MESSAGES);
        let page = match page.await {
            Ok(page) => page,
            // Direct Get says so also where a leader is missing; the leader itself says for sure.
            Err(ReplayError::NoStream(_)) => match self.replay.state(stream).await {
                Err(ReplayError::NoStream(_)) => {
                    finish(progress, end);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(ReplayError::TimedOut(stream.to_owned()).into()),
            },
            Err(error) => return Err(error.into()),
        };
        let is_over = page.last().is_none_or(|newest| newest.seq >= end);
        let covered: Vec<Seq> = page
            .iter()
            .filter(|one| one.seq <= end && covers(order, log, one))
            .map(|one| one.seq)
            .collect();
        for some in covered.chunks(AT_ONCE_MAX) {
            let begun = Instant::now();
            let erased = try_join_all(some.iter().map(|seq| self.erase(stream, *seq))).await?;
            progress.erased += erased.into_iter().filter(|erased| *erased).count() as u64;
            tokio::time::sleep(begun.elapsed()).await;
        }
        if is_over {
            finish(progress, end);
        } else if let Some(newest) = page.last() {
            progress.reached = newest.seq;
        }
        Ok(())
    }

    /// Erases one message. False if it was not there.
    async fn erase(&self, stream: &str, seq: Seq) -> Result<bool, ErasureError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            success: bool,
            error: Option<ApiError>,
        }
        #[derive(Deserialize)]
        struct ApiError {
            description: Option<String>,
        }
        let failed = |reason: String| ErasureError::Delete {
            stream: stream.to_owned(),
            seq,
            reason,
        };
        let body = json!({ "seq": seq.get(), "no_erase": false }).to_string();
        let request = async_nats::Request::new()
            .payload(body.into())
            .timeout(Some(ERASED_WITHIN));
        let subject = format!("$JS.API.STREAM.MSG.DELETE.{stream}");
        let answer = self.client.send_request(subject, request).await;
        let answer = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => failed("JetStream does not answer".to_owned()),
            _ => failed(error.to_string()),
        })?;
        let answer: Answer =
            serde_json::from_slice(&answer.payload).map_err(|error| failed(error.to_string()))?;
        if answer.success {
            return Ok(true);
        }
        // One that is there no more was trimmed, or erased by a try whose answer was lost.
        let there = self.replay.scan(stream, ">", seq.just_before(), 1).await?;
        if there.first().is_none_or(|one| one.seq != seq) {
            return Ok(false);
        }
        let said = answer.error.and_then(|error| error.description);
        Err(failed(said.unwrap_or_else(|| "no reason given".to_owned())))
    }
}

/// Up to where an order that ends at `up_to` has something to do in a stream; zero in one that is gone.
///
/// # Errors
/// When the stream does not answer.
pub async fn end(replay: &Replay, stream: &str, up_to: Seq) -> Result<Seq, ErasureError> {
    match replay.state(stream).await {
        Ok(state) => Ok(up_to.min(state.last)),
        Err(ReplayError::NoStream(_)) => Ok(Seq::ZERO),
        Err(error) => Err(error.into()),
    }
}

/// True if no stream has anything left that an order could cover: all is trimmed.
///
/// # Errors
/// When a stream does not answer.
pub async fn is_passed(replay: &Replay, order: &Order) -> Result<bool, ErasureError> {
    for slot in order.logs.iter().flat_map(|log| &log.slots) {
        for stream in &slot.streams {
            match replay.state(stream).await {
                Ok(state) if state.first <= slot.up_to => return Ok(false),
                Ok(_) | Err(ReplayError::NoStream(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(true)
}

fn finish(progress: &mut StreamProgress, end: Seq) {
    progress.reached = end;
    progress.done_ms = Some(now_ms());
}

/// True if an order covers a message of a log's stream, also one that is no room's.
fn covers(order: &Order, log: &str, scanned: &Scanned) -> bool {
    if let Ok(delivery) = &scanned.delivery {
        return order.covers(log, &delivery.room, &delivery.message);
    }
    let user = last(&scanned.headers, header::USER).unwrap_or_default();
    let time_ms = time_of(scanned);
    covers_stranger(order, &scanned.subject, user, scanned.seq, time_ms)
}

fn time_of(scanned: &Scanned) -> i64 {
    let text = last(&scanned.headers, header::TIME);
    text.and_then(parse_time_ms).unwrap_or_default()
}

/// True if an order covers what lies under a stored subject and is no room's. `user` is as the header
/// has it; `time_ms` is 0 if not known.
#[must_use]
pub fn covers_stranger(
    order: &Order,
    stored_subject: &str,
    user: &str,
    seq: Seq,
    time_ms: i64,
) -> bool {
    let mut tokens = stored_subject.split('.').skip(1);
    let (Some(log), Some(partition)) = (tokens.next(), tokens.next()) else {
        return false;
    };
    let is_named = match &order.what {
        What::Room(name) => {
            RoomName::parse(name).is_ok_and(|room| room.stored_subject(log) == stored_subject)
        }
        What::User(name) => unescape(user).is_ok_and(|user| user == *name),
    };
    let partition = partition.parse().unwrap_or_default();
    is_named && order.reaches(log, partition, seq, time_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_rooms_is_known_by_its_subject_or_its_header() {
        let order = |what| {
            let slot = SlotScope {
                streams: vec!["ROOMS_0".into()],
                up_to: Seq::new(10),
            };
            let scope = LogScope {
                log: "rooms".into(),
                slots: vec![slot],
            };
            Order::new(what, vec![scope], 0, String::new(), String::new())
        };
        let lobby = RoomName::parse("chat:lobby").unwrap();
        let subject = lobby.stored_subject("rooms");
        let (room, user) = (
            order(What::Room("chat:lobby".into())),
            order(What::User("ann é".into())),
        );
        let escaped = crate::subject::escape("ann é");
        let seq = Seq::new;
        assert!(covers_stranger(&room, &subject, "", seq(10), 0));
        assert!(!covers_stranger(&room, &subject, "", seq(11), 0));
        assert!(!covers_stranger(&room, "log.rooms.1.chat.x", "", seq(1), 0));
        assert!(covers_stranger(
            &user,
            "log.rooms.1.a.=h",
            &escaped,
            seq(1),
            0
        ));
        assert!(!covers_stranger(
            &user,
            "log.rooms.1.a.=h",
            "bob",
            seq(1),
            0
        ));
        assert!(!covers_stranger(&user, "nothing", &escaped, seq(1), 0));
    }
}
