//! Knows: how publishes, history and rpc end, as replies. Never: sockets, sessions.

use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use weir_history::Ask;
use weir_nats::publish::{Outcome, Refusal};
use weir_nats::{RoomName, Seq};

use crate::connection::Edge;
use crate::metrics::Metrics;
use crate::protocol::code::ErrorCode;
use crate::protocol::{History, json};
use crate::room_task::encode;

/// Reads a page and the room's position for a `history` command.
///
/// # Errors
/// A sentence for the log; the client is told error 100.
pub(crate) async fn read_history(
    edge: &Edge,
    room: &RoomName,
    request: &History,
) -> Result<(Vec<Bytes>, weir_nats::Epoch, Seq), String> {
    let namespace = edge.settings.namespace(room).ok_or("no such namespace")?;
    let place = edge
        .placements
        .place(&namespace.log, room)
        .ok_or("log not placed")?;
    let text = |error: weir_history::ReadError| error.to_string();
    // The position is read first: what comes after it is the next page's.
    let (epoch, offset) = match edge.hub.position(room).await {
        Some(position) => position,
        None => {
            let head = edge.reader.head(&place).await.map_err(text)?;
            (head.epoch, head.offset)
        }
    };
    let max = edge.settings.client.history_max_publication_limit;
    let limit = u32::try_from(request.limit).unwrap_or(max).min(max);
    if limit == 0 {
        return Ok((Vec::new(), epoch, offset));
    }
    let since = request
        .since
        .as_ref()
        .map(|(offset, _)| Seq::new((*offset).min(Seq::MAX.get())));
    let ask = Ask {
        since,
        reverse: request.reverse,
        ..Ask::default()
    };
    let page = edge
        .reader
        .history(
            &place,
            room,
            ask,
            &namespace.window,
            limit,
            edge.settings.bounds.reply_max_bytes,
        )
        .await
        .map_err(text)?;
    let publications = page
        .messages
        .iter()
        .map(|message| encode(room, message).publication)
        .collect();
    let seen = page
        .messages
        .iter()
        .map(|message| message.seq)
        .max()
        .unwrap_or_default();
    Ok((publications, epoch, offset.max(seen)))
}

/// The reply to a `publish` that ended.
pub(crate) fn publish_reply(id: u32, outcome: &Outcome, metrics: &Metrics) -> Bytes {
    match outcome {
        Outcome::Stored { .. } => {
            metrics.publishes_stored.add_one();
            json::empty(id, "publish")
        }
        Outcome::Unknown => {
            metrics.publishes_unknown.add_one();
            json::error_text(id, ErrorCode::INTERNAL, "publish outcome unknown")
        }
        Outcome::Refused(refusal) => {
            metrics.publishes_refused.add_one();
            let code = match refusal {
                Refusal::Busy => ErrorCode::TOO_MANY_REQUESTS,
                Refusal::TooLarge | Refusal::Conflict => ErrorCode::BAD_REQUEST,
                Refusal::NotSent(why) => {
                    tracing::debug!(why, "publish refused");
                    ErrorCode::INTERNAL
                }
            };
            json::error(id, code)
        }
    }
}

/// A service answers with JSON, or with the headers of a NATS micro service error (ADR-32).
pub(crate) fn rpc_reply(
    id: u32,
    reply: Result<async_nats::Message, async_nats::client::RequestError>,
) -> Bytes {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => {
            let code = match error.kind() {
                RequestErrorKind::NoResponders => ErrorCode::NOT_AVAILABLE,
                _ => ErrorCode::INTERNAL,
            };
            return json::error(id, code);
        }
    };
    if let Some(headers) = &reply.headers
        && let Some(code) = weir_nats::message::last(headers, "Nats-Service-Error-Code")
    {
        let text = weir_nats::message::last(headers, "Nats-Service-Error").unwrap_or("error");
        // Applications have 400 to 1999 for their own; anything else is an internal error.
        return match code.parse::<u32>() {
            Ok(code @ 400..=1_999) => {
                let code = ErrorCode {
                    code,
                    message: "",
                    temporary: false,
                };
                json::error_text(id, code, text)
            }
            _ => json::error_text(id, ErrorCode::INTERNAL, text),
        };
    }
    if !reply.payload.is_empty() && !json::is_json(&reply.payload) {
        tracing::warn!("an rpc service answered with what is not JSON");
        return json::error(id, ErrorCode::INTERNAL);
    }
    json::rpc(id, &reply.payload)
}
