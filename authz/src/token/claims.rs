//! Knows: the claims of connection and subscription tokens and their traps. Never: signatures, keys,
//! clocks (now is an argument), rooms' rules.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use weir_nats::control::TokenFacts;
use weir_nats::subject::{USER_NAME_MAX_BYTES, to_nfc};

use super::TokenError;
use super::verifier::Check;
use crate::capability::{self, Capability, RawCapability};

/// Clocks may differ by this much.
const LEEWAY_S: i64 = 5;

/// What a valid connection token says. Only a [`Verifier`](super::Verifier) makes one, or
/// [`Claims::anonymous`] where no token is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claims {
    /// The user; empty is the anonymous user.
    pub user: String,
    /// When the connection expires, in seconds since 1970; `None` for never.
    pub expires_at_s: Option<i64>,
    /// Public info, JSON, shown beside what the user writes.
    pub info: Option<String>,
    /// Rooms that the server subscribes the connection to.
    pub channels: Vec<String>,
    /// The same with options of each; where there are some, they win.
    pub subs: BTreeMap<String, SubscribeOptions>,
    /// Rights of its own (`caps`), beside what namespaces allow everyone.
    pub capabilities: Vec<Capability>,
    /// For the application's services only, JSON.
    pub meta: Option<String>,
    /// The token's id (`jti`).
    pub token_id: Option<String>,
    /// When it was made, in seconds since 1970.
    pub issued_at_s: Option<i64>,
}

impl Claims {
    /// Of a connection without a token, where one is allowed.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            user: String::new(),
            expires_at_s: None,
            info: None,
            channels: Vec::new(),
            subs: BTreeMap::new(),
            capabilities: Vec::new(),
            meta: None,
            token_id: None,
            issued_at_s: None,
        }
    }

    /// What it can be revoked by.
    #[must_use]
    pub fn facts(&self) -> TokenFacts {
        TokenFacts {
            token_id: self.token_id.clone(),
            issued_at_s: self.issued_at_s,
        }
    }
}

/// What a valid subscription token says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionClaims {
    /// The room.
    pub channel: String,
    /// The user; empty is the anonymous user.
    pub user: String,
    /// The one connection that may use it, if it is for one only.
    pub client: Option<String>,
    /// When the subscription expires, in seconds since 1970; `None` for never.
    pub expires_at_s: Option<i64>,
    /// Info, data and options.
    pub options: SubscribeOptions,
    /// The token's id (`jti`).
    pub token_id: Option<String>,
    /// When it was made, in seconds since 1970.
    pub issued_at_s: Option<i64>,
}

impl SubscriptionClaims {
    /// What it can be revoked by.
    #[must_use]
    pub fn facts(&self) -> TokenFacts {
        TokenFacts {
            token_id: self.token_id.clone(),
            issued_at_s: self.issued_at_s,
        }
    }
}

/// What a token says about one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Public info, JSON, shown beside what the user writes in this room (`chan_info`).
    pub info: Option<String>,
    /// For the client, JSON, in the reply to the subscription.
    pub data: Option<String>,
    /// Options of the namespace that are another for this subscription.
    pub overrides: Overrides,
}

/// Options that a token sets for one subscription; `None` leaves the namespace's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Takes part in presence.
    pub presence: Option<bool>,
    /// Its joins and leaves are sent.
    pub join_leave: Option<bool>,
    /// Gets joins and leaves, asked for or not.
    pub force_push_join_leave: Option<bool>,
    /// Is positioned, asked for or not.
    pub force_positioning: Option<bool>,
    /// Is recoverable, asked for or not.
    pub force_recovery: Option<bool>,
}

/// The claims as they are in a token; unknown ones are ignored, one that is there twice is refused.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RawClaims {
    sub: Option<String>,
    exp: Option<Number>,
    expire_at: Option<i64>,
    nbf: Option<Number>,
    iat: Option<Number>,
    jti: Option<String>,
    aud: Option<Audience>,
    pub(super) iss: Option<String>,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    #[serde(rename = "override")]
    overrides: Option<RawOverrides>,
    channels: Option<Vec<String>>,
    subs: Option<BTreeMap<String, RawOptions>>,
    caps: Option<Vec<RawCapability>>,
    meta: Option<Box<RawValue>>,
    channel: Option<String>,
    client: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawOptions {
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    #[serde(rename = "override")]
    overrides: Option<RawOverrides>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct RawOverrides {
    presence: Option<Switch>,
    join_leave: Option<Switch>,
    force_push_join_leave: Option<Switch>,
    force_positioning: Option<Switch>,
    force_recovery: Option<Switch>,
}

#[derive(Deserialize)]
struct Switch {
    #[serde(default)]
    value: bool,
}

/// A NumericDate: seconds, perhaps with a fraction. A string is refused (CVE-2026-25537).
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Number {
    Whole(i64),
    Fraction(f64),
}

impl Number {
    fn seconds(self) -> i64 {
        match self {
            Self::Whole(seconds) => seconds,
            Self::Fraction(seconds) => {
                // Saturates, as the comparison with now is all that follows.
                #[expect(clippy::cast_possible_truncation, reason = "whole seconds are meant")]
                let whole = seconds as i64;
                whole
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl RawClaims {
    /// Checks what every token is checked for: times, audience, issuer.
    pub(super) fn check(&self, check: &Check, now_s: i64) -> Result<(), TokenError> {
        let exp = self.exp.map(Number::seconds);
        match exp {
            Some(exp) if exp.saturating_add(LEEWAY_S) <= now_s => return Err(TokenError::Expired),
            None if !check.allow_missing_exp => return Err(TokenError::invalid("it has no exp")),
            _ => {}
        }
        let latest_s = check
            .exp_max_ahead_s
            .map(|ahead| now_s.saturating_add(ahead));
        if let (Some(exp), Some(latest)) = (exp, latest_s)
            && exp > latest.saturating_add(LEEWAY_S)
        {
            return Err(TokenError::invalid("its exp is too far ahead"));
        }
        let not_before = self.nbf.map(Number::seconds);
        if not_before.is_some_and(|nbf| nbf.saturating_sub(LEEWAY_S) > now_s) {
            return Err(TokenError::Expired);
        }
        let audience = &check.audience;
        let has_audience = match &self.aud {
            _ if audience.is_empty() => true,
            Some(Audience::One(one)) => one == audience,
            Some(Audience::Many(many)) => many.contains(audience),
            None => false,
        };
        if !has_audience {
            return Err(TokenError::invalid("aud is not the audience configured"));
        }
        if !check.issuer.is_empty() && self.iss.as_ref() != Some(&check.issuer) {
            return Err(TokenError::invalid("iss is not the issuer configured"));
        }
        Ok(())
    }

    /// As a connection token's.
    pub(super) fn connection(
        mut self,
        check: &Check,
        payload: &[u8],
        now_s: i64,
    ) -> Result<Claims, TokenError> {
        if self
            .channel
            .as_ref()
            .is_some_and(|channel| !channel.is_empty())
        {
            return Err(TokenError::invalid("a subscription token cannot connect"));
        }
        let user = self.user(check, payload)?;
        let expires_at_s = self.expires_at_s(now_s)?;
        let subs = self.subs.take().unwrap_or_default();
        let subs = subs
            .into_iter()
            .map(|(channel, options)| Ok((channel, options.read()?)))
            .collect::<Result<_, TokenError>>()?;
        Ok(Claims {
            user,
            expires_at_s,
            info: json(self.info.take(), self.b64info.take(), "b64info")?,
            channels: self.channels.take().unwrap_or_default(),
            subs,
            capabilities: capability::read(self.caps.take().unwrap_or_default())?,
            meta: self.meta.as_deref().map(one_line),
            token_id: self.jti,
            issued_at_s: self.iat.map(Number::seconds),
        })
    }

    /// As a subscription token's.
    pub(super) fn subscription(
        mut self,
        check: &Check,
        payload: &[u8],
        now_s: i64,
    ) -> Result<SubscriptionClaims, TokenError> {
        let channel = self.channel.take().filter(|channel| !channel.is_empty());
        let channel = channel.ok_or(TokenError::Mismatch("channel"))?;
        let user = self.user(check, payload)?;
        let expires_at_s = self.expires_at_s(now_s)?;
        let options = RawOptions {
            info: self.info.take(),
            b64info: self.b64info.take(),
            data: self.data.take(),
            b64data: self.b64data.take(),
            overrides: self.overrides.take(),
        };
        Ok(SubscriptionClaims {
            channel,
            user,
            client: self.client.take().filter(|client| !client.is_empty()),
            expires_at_s,
            options: options.read()?,
            token_id: self.jti,
            issued_at_s: self.iat.map(Number::seconds),
        })
    }

    fn user(&mut self, check: &Check, payload: &[u8]) -> Result<String, TokenError> {
        let user = match check.user_id_claim.as_str() {
            "" | "sub" => self.sub.take(),
            name => {
                let claims: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_slice(payload)
                        .map_err(|_| TokenError::invalid("its claims are not a JSON object"))?;
                match claims.get(name) {
                    None | Some(serde_json::Value::Null) => None,
                    Some(serde_json::Value::String(user)) => Some(user.clone()),
                    Some(_) => return Err(TokenError::invalid("the user's claim is no text")),
                }
            }
        };
        let user = user.unwrap_or_default();
        check_user(&user).map_err(TokenError::invalid)?;
        Ok(user)
    }

    /// `expire_at` counts where it is there, and 0 is never.
    fn expires_at_s(&self, now_s: i64) -> Result<Option<i64>, TokenError> {
        match self.expire_at {
            Some(0) => Ok(None),
            Some(at) if at <= now_s => Err(TokenError::ConnectionExpired),
            Some(at) => Ok(Some(at)),
            None => Ok(self.exp.map(Number::seconds)),
        }
    }
}

impl RawOptions {
    fn read(self) -> Result<SubscribeOptions, TokenError> {
        Ok(SubscribeOptions {
            info: json(self.info, self.b64info, "b64info")?,
            data: json(self.data, self.b64data, "b64data")?,
            overrides: self.overrides.unwrap_or_default().read(),
        })
    }
}

impl RawOverrides {
    pub(crate) fn read(self) -> Overrides {
        let value = |switch: Option<Switch>| switch.map(|switch| switch.value);
        Overrides {
            presence: value(self.presence),
            join_leave: value(self.join_leave),
            force_push_join_leave: value(self.force_push_join_leave),
            force_positioning: value(self.force_positioning),
            force_recovery: value(self.force_recovery),
        }
    }
}

/// A claim or its base64 twin, which wins as in Centrifugo. It is shown to JSON clients, so it is JSON.
pub(crate) fn json(
    plain: Option<Box<RawValue>>,
    b64: Option<String>,
    name: &str,
) -> Result<Option<String>, TokenError> {
    let Some(b64) = b64.filter(|b64| !b64.is_empty()) else {
        return Ok(plain.as_deref().map(one_line));
    };
    let bytes = STANDARD.decode(b64).ok();
    let value: Option<Box<RawValue>> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match value {
        Some(value) => Ok(Some(one_line(&value))),
        None => Err(TokenError::Invalid(format!("{name} is not JSON in base64"))),
    }
}

/// Line breaks are white space in JSON, and headers cannot hold them.
pub(crate) fn one_line(json: &RawValue) -> String {
    json.get().replace(['\r', '\n'], "")
}

/// A user name that subjects, headers and logs can hold.
///
/// # Errors
/// A sentence that says what it has to be.
pub fn check_user(user: &str) -> Result<(), &'static str> {
    if user.len() > USER_NAME_MAX_BYTES {
        Err("sub is longer than 128 bytes")
    } else if user.chars().any(char::is_control) {
        Err("sub has control characters")
    } else if to_nfc(user) != user {
        Err("sub is not in Unicode normalization form C (NFC)")
    } else {
        Ok(())
    }
}
