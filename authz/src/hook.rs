//! Knows: what an application's service may answer when it is asked about a connection, a subscription or a
//! publication, and what of it counts. Never: how it is asked, sockets, a clock (now is an argument).
//!
//! Shapes are those of Centrifugo's proxies: `{"result": …}`, `{"error": {"code", "message"}}` or
//! `{"disconnect": {"code", "reason"}}`. What is none of them is [`Broken`], and opens nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use weir_nats::RoomName;

use crate::capability::{self, RawCapability};
use crate::grants::Action;
use crate::token::claims::{RawOverrides, json, one_line};
use crate::token::{Claims, SubscribeOptions, TokenError, check_user};

/// Bytes of `info`, which travels with every message of its author.
pub const INFO_MAX_BYTES: usize = 12 << 10;
/// Codes of errors that applications may send.
const ERRORS: std::ops::RangeInclusive<u32> = 400..=1_999;
/// Codes of closes that applications may send; up to 4499 the client comes back.
const CLOSES: std::ops::RangeInclusive<u16> = 4_000..=4_999;
/// Bytes of an error's text.
const MESSAGE_MAX_BYTES: usize = 255;
/// Bytes of a close's reason: what a WebSocket frame has room for.
const REASON_MAX_BYTES: usize = 123;
/// Bytes of an idempotency key.
const KEY_MAX_BYTES: usize = 256;

/// An answer that is none. The text holds nothing of what was answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(String);

impl Broken {
    /// With a reason for the log.
    #[must_use]
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// What a service answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// Yes, and so.
    Allowed(T),
    /// Yes, but only until a time that is over: error 110.
    Expired,
    /// No, and the client is told this error.
    Refused(Refusal),
    /// No, and the connection ends.
    Closed(Closing),
}

/// An error of the application's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 400 to 1999.
    pub code: u32,
    /// At most 255 bytes.
    pub message: String,
    /// The client may try again.
    pub temporary: bool,
}

/// A close of the application's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// 4000 to 4999.
    pub code: u16,
    /// At most 123 bytes, and no JSON, which SDKs would read as something else.
    pub reason: String,
}

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connected {
    /// As a token would say it.
    pub claims: Claims,
    /// For the client, JSON, in the reply to its connect.
    pub data: Option<String>,
}

/// That a service allowed one action of one user in one room: what
/// [`Grants::check_with_hook`](crate::Grants::check_with_hook) makes a permit of. There is no other way
/// to one than an answer that was read:
///
/// ```compile_fail,E0451
/// use weir_authz::{Action, hook::Vouched};
/// let room = weir_nats::RoomName::parse("chat:lobby").unwrap();
/// let vouched = Vouched { action: Action::Publish, user: "ann".to_owned(), room };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    pub(crate) action: Action,
    pub(crate) user: String,
    pub(crate) room: RoomName,
}

/// A subscription that is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subscribed {
    /// The proof.
    pub vouched: Vouched,
    /// When it expires, in seconds since 1970; `None` for never.
    pub expires_at_s: Option<i64>,
    /// Info, data and options.
    pub options: SubscribeOptions,
}

/// A publication that is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The proof.
    pub vouched: Vouched,
    /// What to publish instead.
    pub data: Option<Vec<u8>>,
    /// So that a publish sent twice is stored once.
    pub idempotency_key: Option<String>,
    /// It must not be stored.
    pub skip_history: bool,
}

/// A connection that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refreshed {
    /// Until when, in seconds since 1970.
    pub expires_at_s: i64,
    /// Public info, JSON, where it changes.
    pub info: Option<String>,
    /// For the application's services only, JSON, where it changes.
    pub meta: Option<String>,
}

/// serde reads a struct from a list, too; these are objects only.
struct Object<T>(T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if !raw.get().starts_with('{') {
            return Err(D::Error::custom("no object"));
        }
        let read = serde_json::from_str(raw.get());
        // What serde says would quote the answer.
        read.map(Self)
            .map_err(|_| D::Error::custom("another shape"))
    }
}

#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Envelope<T> {
    result: Option<Object<T>>,
    error: Option<Object<RawError>>,
    disconnect: Option<Object<RawDisconnect>>,
}

#[derive(Deserialize)]
struct RawError {
    code: u32,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    temporary: Option<bool>,
}

#[derive(Deserialize)]
struct RawDisconnect {
    code: u16,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Deserialize)]
struct RawConnect {
    user: String,
    expire_at: Option<i64>,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    meta: Option<Box<RawValue>>,
    caps: Option<Vec<RawCapability>>,
}

#[derive(Deserialize)]
struct RawSubscribe {
    channel: Option<String>,
    user: Option<String>,
    expire_at: Option<i64>,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    #[serde(rename = "override")]
    overrides: Option<RawOverrides>,
}

#[derive(Deserialize)]
struct RawPublish {
    channel: Option<String>,
    user: Option<String>,
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    idempotency_key: Option<String>,
    skip_history: Option<bool>,
}

#[derive(Deserialize)]
struct RawRefresh {
    expired: Option<bool>,
    expire_at: Option<i64>,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    meta: Option<Box<RawValue>>,
}

/// Reads the answer to a connect.
///
/// # Errors
/// [`Broken`] if it is none.
pub fn connect(answer: &[u8], now_s: i64) -> Result<Answer<Connected>, Broken> {
    read(answer, |raw: RawConnect| {
        check_user(&raw.user).map_err(|why| Broken::new(why.replace("sub ", "user ")))?;
        let Ok(expires_at_s) = expires_at_s(raw.expire_at, now_s) else {
            return Ok(Answer::Expired);
        };
        let caps = capability::read(raw.caps.unwrap_or_default());
        let claims = Claims {
            user: raw.user,
            expires_at_s,
            info: info(raw.info, raw.b64info)?,
            capabilities: caps.map_err(token_error)?,
            meta: raw.meta.as_deref().map(one_line),
            ..Claims::anonymous()
        };
        let data = json(raw.data, raw.b64data, "b64data").map_err(token_error)?;
        Ok(Answer::Allowed(Connected { claims, data }))
    })
}

/// Reads the answer to a subscribe of `user` in `room`.
///
/// # Errors
/// [`Broken`] if it is none, or about another user or room.
pub fn subscribe(
    answer: &[u8],
    user: &str,
    room: &RoomName,
    now_s: i64,
) -> Result<Answer<Subscribed>, Broken> {
    read(answer, |raw: RawSubscribe| {
        let vouched = vouch(Action::Subscribe, user, room, raw.user, raw.channel)?;
        let Ok(expires_at_s) = expires_at_s(raw.expire_at, now_s) else {
            return Ok(Answer::Expired);
        };
        let options = SubscribeOptions {
            info: info(raw.info, raw.b64info)?,
            data: json(raw.data, raw.b64data, "b64data").map_err(token_error)?,
            overrides: raw.overrides.unwrap_or_default().read(),
        };
        Ok(Answer::Allowed(Subscribed {
            vouched,
            expires_at_s,
            options,
        }))
    })
}

/// Reads the answer to a publish of `user` in `room`.
///
/// # Errors
/// [`Broken`] if it is none, or about another user or room.
pub fn publish(answer: &[u8], user: &str, room: &RoomName) -> Result<Answer<Published>, Broken> {
    read(answer, |raw: RawPublish| {
        let vouched = vouch(Action::Publish, user, room, raw.user, raw.channel)?;
        let b64data = raw.b64data.filter(|text| !text.is_empty());
        let data = match (raw.data, b64data) {
            (Some(data), _) => Some(data.get().as_bytes().to_vec()),
            (None, Some(b64data)) => {
                let data = STANDARD.decode(b64data);
                Some(data.map_err(|_| Broken::new("b64data is not base64"))?)
            }
            (None, None) => None,
        };
        let idempotency_key = raw.idempotency_key.filter(|key| !key.is_empty());
        if idempotency_key
            .as_ref()
            .is_some_and(|key| key.len() > KEY_MAX_BYTES)
        {
            return Err(Broken::new("its idempotency_key is longer than 256 bytes"));
        }
        Ok(Answer::Allowed(Published {
            vouched,
            data,
            idempotency_key,
            skip_history: raw.skip_history.unwrap_or(false),
        }))
    })
}

/// Reads the answer to a refresh. One that says neither `expired` nor until when is broken, as "for ever"
/// must not come of a field that was forgotten; an error says that it has expired.
///
/// # Errors
/// [`Broken`] if it is none.
pub fn refresh(answer: &[u8], now_s: i64) -> Result<Answer<Refreshed>, Broken> {
    let found = read(answer, |raw: RawRefresh| {
        let expired = raw.expired.unwrap_or(false);
        let expires_at_s = match raw.expire_at {
            _ if expired => return Ok(Answer::Expired),
            None | Some(0) => return Err(Broken::new("it has no expire_at")),
            Some(at) if at <= now_s => return Ok(Answer::Expired),
            Some(at) => at,
        };
        Ok(Answer::Allowed(Refreshed {
            expires_at_s,
            info: info(raw.info, raw.b64info)?,
            meta: raw.meta.as_deref().map(one_line),
        }))
    })?;
    Ok(match found {
        Answer::Refused(_) => Answer::Expired,
        found => found,
    })
}

/// The first of disconnect, error and result that is there, as in Centrifugo.
fn read<R: DeserializeOwned, T>(
    answer: &[u8],
    result: impl FnOnce(R) -> Result<Answer<T>, Broken>,
) -> Result<Answer<T>, Broken> {
    let Object(envelope): Object<Envelope<R>> =
        serde_json::from_slice(answer).map_err(|error| {
            let what = if error.is_data() {
                "it is JSON of another shape"
            } else {
                "it is no JSON"
            };
            Broken::new(what)
        })?;
    if let Some(Object(raw)) = envelope.disconnect {
        if !CLOSES.contains(&raw.code) {
            return Err(Broken::new(format!(
                "{} is no code of a disconnect (4000 to 4999)",
                raw.code
            )));
        }
        let reason = raw.reason.unwrap_or_default();
        let reason = if reason.starts_with('{') {
            String::new()
        } else {
            cut(reason, REASON_MAX_BYTES)
        };
        let code = raw.code;
        return Ok(Answer::Closed(Closing { code, reason }));
    }
    if let Some(Object(raw)) = envelope.error {
        if !ERRORS.contains(&raw.code) {
            return Err(Broken::new(format!(
                "{} is no code of an error (400 to 1999)",
                raw.code
            )));
        }
        return Ok(Answer::Refused(Refusal {
            code: raw.code,
            message: cut(raw.message.unwrap_or_default(), MESSAGE_MAX_BYTES),
            temporary: raw.temporary.unwrap_or(false),
        }));
    }
    let missing = || Broken::new("it has no result, no error and no disconnect");
    result(envelope.result.ok_or_else(missing)?.0)
}

/// An answer may say whom and what it is about, and then it must be what was asked.
fn vouch(
    action: Action,
    user: &str,
    room: &RoomName,
    about_user: Option<String>,
    about_room: Option<String>,
) -> Result<Vouched, Broken> {
    if about_room.is_some_and(|channel| channel != room.channel()) {
        return Err(Broken::new("it is about another channel"));
    }
    if about_user.is_some_and(|about| about != user) {
        return Err(Broken::new("it is about another user"));
    }
    Ok(Vouched {
        action,
        user: user.to_owned(),
        room: room.clone(),
    })
}

/// 0 is never; a time that is over is an error.
fn expires_at_s(at: Option<i64>, now_s: i64) -> Result<Option<i64>, ()> {
    match at {
        None | Some(0) => Ok(None),
        Some(at) if at <= now_s => Err(()),
        Some(at) => Ok(Some(at)),
    }
}

fn info(plain: Option<Box<RawValue>>, b64: Option<String>) -> Result<Option<String>, Broken> {
    let info = json(plain, b64, "b64info").map_err(token_error)?;
    if info
        .as_ref()
        .is_some_and(|info| info.len() > INFO_MAX_BYTES)
    {
        return Err(Broken::new("its info is longer than 12 KiB"));
    }
    Ok(info)
}

fn token_error(error: TokenError) -> Broken {
    match error {
        TokenError::Invalid(why) => Broken(why),
        error => Broken(error.to_string()),
    }
}

/// At most so many bytes, cut between characters; without control characters.
fn cut(text: String, max_bytes: usize) -> String {
    let mut cut: String = text.chars().filter(|c| !c.is_control()).collect();
    cut.truncate(cut.floor_char_boundary(max_bytes));
    cut
}

#[cfg(test)]
mod tests;
