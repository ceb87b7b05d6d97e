//! Knows: JSON Web Tokens, their claims and their traps. Never: rooms' rules, sockets. The only file
//! that names jsonwebtoken.

use std::collections::HashSet;

use base64::Engine as _;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use weir_nats::subject::{USER_NAME_MAX_BYTES, to_nfc};

/// Clocks may differ by this much.
const LEEWAY_S: i64 = 5;
/// Bytes of a token; longer ones are refused unread.
const TOKEN_MAX_BYTES: usize = 12 << 10;

/// How tokens are verified.
#[derive(Clone)]
pub struct TokenSettings {
    /// The shared secret of HS256, HS384 and HS512.
    pub hmac_secret_key: String,
    /// Required `aud`, if not empty.
    pub audience: String,
    /// Required `iss`, if not empty.
    pub issuer: String,
    /// Tokens without `exp` are refused. Off only for compatibility.
    pub require_exp: bool,
}

/// What a valid connection token says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// The user; empty is the anonymous user.
    pub user: String,
    /// When the connection expires, in seconds since 1970; `None` for never.
    pub expires_at_s: Option<i64>,
    /// Public info, JSON, shown beside what the user writes.
    pub info: Option<String>,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Its time is over, or not yet come: error 109, the client gets another.
    #[error("token expired")]
    Expired,
    /// `expire_at` has passed: error 110.
    #[error("connection expired")]
    ConnectionExpired,
    /// Wrong signature, algorithm, form or claim: 3500 at connect, 103 at subscribe.
    #[error("invalid token: {0}")]
    Invalid(String),
    /// The claims contradict the connection: 3500.
    #[error("token is for another {0}")]
    Mismatch(&'static str),
}

/// The claims as they are in a token; unknown ones are ignored.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RawClaims {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<Number>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expire_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<Number>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<Number>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aud: Option<Audience>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    info: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b64info: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<String>,
}

/// A NumericDate: seconds, perhaps with a fraction. A string is refused (CVE-2026-25537).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
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

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Verifies tokens. Only what needs no clock of its own: now is an argument.
#[derive(Clone)]
pub struct Verifier {
    settings: TokenSettings,
    key: DecodingKey,
    validation: Validation,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    /// A verifier with a shared secret.
    #[must_use]
    pub fn new(settings: TokenSettings) -> Self {
        let key = DecodingKey::from_secret(settings.hmac_secret_key.as_bytes());
        let mut validation = Validation::new(Algorithm::HS256);
        // The algorithms are those of this key's kind: a token cannot choose another.
        validation.algorithms = vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        // The library accepts tokens without the claims that it checks, so they are checked here.
        validation.required_spec_claims = HashSet::new();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Self {
            settings,
            key,
            validation,
        }
    }

    /// Verifies a connection token.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn connection(&self, token: &str, now_s: i64) -> Result<Claims, TokenError> {
        let raw = self.verify(token, now_s)?;
        if raw
            .channel
            .as_ref()
            .is_some_and(|channel| !channel.is_empty())
        {
            return Err(TokenError::Invalid(
                "a subscription token cannot connect".to_owned(),
            ));
        }
        self.claims(raw, now_s)
    }

    /// Verifies a subscription token for a channel, a user and a connection.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn subscription(
        &self,
        token: &str,
        channel: &str,
        user: &str,
        client: &str,
        now_s: i64,
    ) -> Result<Claims, TokenError> {
        let raw = self.verify(token, now_s)?;
        match &raw.channel {
            None => return Err(TokenError::Mismatch("channel")),
            Some(of) if of != channel => return Err(TokenError::Mismatch("channel")),
            Some(_) => {}
        }
        if raw
            .client
            .as_ref()
            .is_some_and(|of| !of.is_empty() && of != client)
        {
            return Err(TokenError::Mismatch("client"));
        }
        let claims = self.claims(raw, now_s)?;
        if claims.user == user {
            Ok(claims)
        } else {
            Err(TokenError::Mismatch("user"))
        }
    }

    fn verify(&self, token: &str, now_s: i64) -> Result<RawClaims, TokenError> {
        let invalid = |text: &str| TokenError::Invalid(text.to_owned());
        if token.len() > TOKEN_MAX_BYTES {
            return Err(invalid("longer than 12 KiB"));
        }
        if self.settings.hmac_secret_key.is_empty() {
            // Anybody can sign with an empty secret.
            return Err(invalid("there is no secret to verify it with"));
        }
        let decoded = jsonwebtoken::decode::<RawClaims>(token, &self.key, &self.validation)
            .map_err(|error| TokenError::Invalid(error.to_string()))?;
        if decoded.header.crit.is_some() {
            // Extensions that must be understood, and none is (RFC 7515, 4.1.11).
            return Err(invalid("it has critical extensions"));
        }
        let raw = decoded.claims;
        match raw.exp {
            Some(exp) if exp.seconds().saturating_add(LEEWAY_S) <= now_s => {
                return Err(TokenError::Expired);
            }
            None if self.settings.require_exp => return Err(invalid("it has no exp")),
            _ => {}
        }
        if raw
            .nbf
            .is_some_and(|nbf| nbf.seconds().saturating_sub(LEEWAY_S) > now_s)
        {
            return Err(TokenError::Expired);
        }
        let audience = &self.settings.audience;
        let has_audience = match &raw.aud {
            _ if audience.is_empty() => true,
            Some(Audience::One(one)) => one == audience,
            Some(Audience::Many(many)) => many.contains(audience),
            None => false,
        };
        if !has_audience {
            return Err(invalid("aud is not the audience configured"));
        }
        let issuer = &self.settings.issuer;
        if !issuer.is_empty() && raw.iss.as_ref() != Some(issuer) {
            return Err(invalid("iss is not the issuer configured"));
        }
        Ok(raw)
    }

    fn claims(&self, raw: RawClaims, now_s: i64) -> Result<Claims, TokenError> {
        let user = raw.sub.unwrap_or_default();
        check_user(&user).map_err(|text| TokenError::Invalid(text.to_owned()))?;
        let expires_at_s = match raw.expire_at {
            Some(0) => None,
            Some(at) if at <= now_s => return Err(TokenError::ConnectionExpired),
            Some(at) => Some(at),
            None => raw.exp.map(Number::seconds),
        };
        // As in Centrifugo the base64 twin wins. It is shown to JSON clients, so it is JSON, too.
        let info = match raw.b64info.filter(|b64| !b64.is_empty()) {
            Some(b64) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(b64).ok();
                let info = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
                let malformed = || TokenError::Invalid("b64info is not JSON in base64".to_owned());
                Some(info.ok_or_else(malformed)?)
            }
            None => raw.info,
        };
        let info = info.map(|info: serde_json::Value| info.to_string());
        Ok(Claims {
            user,
            expires_at_s,
            info,
        })
    }
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

/// Mints a token for tests and for a first try; production tokens come from the application.
///
/// # Errors
/// When it cannot be signed.
pub fn mint(
    secret: &str,
    user: &str,
    channel: Option<&str>,
    expires_at_s: Option<i64>,
    settings: &TokenSettings,
) -> Result<String, TokenError> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let claims = RawClaims {
        sub: Some(user.to_owned()),
        exp: expires_at_s.map(Number::Whole),
        aud: some(&settings.audience).map(Audience::One),
        iss: some(&settings.issuer),
        channel: channel.map(str::to_owned),
        ..RawClaims::default()
    };
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
        .map_err(|error| TokenError::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: i64 = 1_800_000_000;

    fn settings() -> TokenSettings {
        TokenSettings {
            hmac_secret_key: "secret".into(),
            audience: String::new(),
            issuer: String::new(),
            require_exp: true,
        }
    }

    fn sign(algorithm: Algorithm, secret: &str, claims: &serde_json::Value) -> String {
        let key = EncodingKey::from_secret(secret.as_bytes());
        jsonwebtoken::encode(&Header::new(algorithm), claims, &key).unwrap()
    }

    fn check(settings: TokenSettings, claims: serde_json::Value) -> Result<Claims, TokenError> {
        Verifier::new(settings).connection(&sign(Algorithm::HS256, "secret", &claims), NOW)
    }

    #[test]
    fn a_token_says_who_and_until_when() {
        let claims = check(
            settings(),
            json!({"sub": "42", "exp": NOW + 60, "info": {"a": 1}}),
        )
        .unwrap();
        assert_eq!(claims.user, "42");
        assert_eq!(claims.expires_at_s, Some(NOW + 60));
        assert_eq!(claims.info.as_deref(), Some("{\"a\":1}"));
        let claims = check(settings(), json!({"exp": NOW + 60, "expire_at": 0})).unwrap();
        assert_eq!((claims.user.as_str(), claims.expires_at_s), ("", None));
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            let token = sign(algorithm, "secret", &json!({"sub": "a", "exp": NOW + 9}));
            assert!(Verifier::new(settings()).connection(&token, NOW).is_ok());
        }
    }

    #[test]
    fn the_traps_are_closed() {
        let expired = Err(TokenError::Expired);
        assert_eq!(
            check(settings(), json!({"sub": "a", "exp": NOW - 6})),
            expired
        );
        assert_eq!(
            check(
                settings(),
                json!({"sub": "a", "exp": NOW + 60, "nbf": NOW + 6})
            ),
            expired
        );
        let past = check(
            settings(),
            json!({"sub": "a", "exp": NOW + 60, "expire_at": NOW - 1}),
        );
        assert_eq!(past, Err(TokenError::ConnectionExpired));
        let strict = TokenSettings {
            audience: "weir".into(),
            issuer: "me".into(),
            ..settings()
        };
        let invalid = [
            (settings(), json!({"sub": "a"})),
            (settings(), json!({"sub": "a", "exp": "2099"})),
            (settings(), json!({"sub": "a", "exp": NOW + 60, "nbf": "x"})),
            (settings(), json!({"sub": "a\n", "exp": NOW + 60})),
            (settings(), json!({"sub": "e\u{301}", "exp": NOW + 60})),
            (settings(), json!({"sub": "x".repeat(129), "exp": NOW + 60})),
            (settings(), json!({"sub": 42, "exp": NOW + 60})),
            (
                settings(),
                json!({"sub": "a", "exp": NOW + 60, "channel": "c"}),
            ),
            (strict.clone(), json!({"sub": "a", "exp": NOW + 60})),
            (
                strict.clone(),
                json!({"sub": "a", "exp": NOW + 60, "aud": "weir"}),
            ),
            (
                strict.clone(),
                json!({"sub": "a", "exp": NOW + 60, "aud": "other", "iss": "me"}),
            ),
        ];
        for (settings, claims) in invalid {
            let result = check(settings, claims.clone());
            assert!(
                matches!(result, Err(TokenError::Invalid(_))),
                "{claims}: {result:?}"
            );
        }
        assert!(
            check(
                strict,
                json!({"sub": "a", "exp": NOW + 60, "aud": ["x", "weir"], "iss": "me"})
            )
            .is_ok()
        );
        let verifier = Verifier::new(settings());
        let other = sign(
            Algorithm::HS256,
            "other",
            &json!({"sub": "a", "exp": NOW + 60}),
        );
        assert!(matches!(
            verifier.connection(&other, NOW),
            Err(TokenError::Invalid(_))
        ));
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.";
        assert!(matches!(
            verifier.connection(none, NOW),
            Err(TokenError::Invalid(_))
        ));
        for text in ["", ".", "a.b.c", &"x".repeat(20_000)] {
            assert!(matches!(
                verifier.connection(text, NOW),
                Err(TokenError::Invalid(_))
            ));
        }
    }

    #[test]
    fn a_subscription_token_is_for_one_channel_user_and_client() {
        let verifier = Verifier::new(settings());
        let token = sign(
            Algorithm::HS256,
            "secret",
            &json!({"sub": "a", "channel": "c", "client": "k", "exp": NOW + 60}),
        );
        let check =
            |channel, user, client| verifier.subscription(&token, channel, user, client, NOW);
        assert!(check("c", "a", "k").is_ok());
        assert_eq!(check("d", "a", "k"), Err(TokenError::Mismatch("channel")));
        assert_eq!(check("c", "b", "k"), Err(TokenError::Mismatch("user")));
        assert_eq!(check("c", "a", "l"), Err(TokenError::Mismatch("client")));
    }

    #[test]
    fn a_minted_token_is_valid() {
        let token = mint("secret", "ann", None, Some(NOW + 60), &settings()).unwrap();
        assert_eq!(
            Verifier::new(settings())
                .connection(&token, NOW)
                .unwrap()
                .user,
            "ann"
        );
    }

    /// A token of any header and claims, with a signature that fits to them.
    fn sign_texts(header: &str, claims: &str) -> String {
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", encode(header), encode(claims));
        let key = EncodingKey::from_secret(b"secret");
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    }

    #[test]
    fn times_at_their_edges() {
        for (claims, expected) in [
            (json!({"exp": NOW + 1}), Ok(Some(NOW + 1))),
            (json!({"exp": NOW - 4}), Ok(Some(NOW - 4))),
            (json!({"exp": NOW - 5}), Err(TokenError::Expired)),
            (json!({"exp": 0}), Err(TokenError::Expired)),
            (json!({"exp": -1}), Err(TokenError::Expired)),
            (json!({"exp": i64::MIN}), Err(TokenError::Expired)),
            (json!({"exp": i64::MAX}), Ok(Some(i64::MAX))),
            (json!({"exp": 1e300}), Ok(Some(i64::MAX))),
            (json!({"exp": NOW as f64 + 0.9}), Ok(Some(NOW))),
            (json!({"exp": NOW + 9, "nbf": i64::MIN}), Ok(Some(NOW + 9))),
            (json!({"exp": NOW + 9, "nbf": NOW + 5}), Ok(Some(NOW + 9))),
            (
                json!({"exp": NOW + 9, "nbf": i64::MAX}),
                Err(TokenError::Expired),
            ),
            (
                json!({"exp": NOW + 9, "expire_at": NOW + 99}),
                Ok(Some(NOW + 99)),
            ),
            (
                json!({"exp": NOW + 9, "expire_at": NOW}),
                Err(TokenError::ConnectionExpired),
            ),
            (
                json!({"exp": NOW - 9, "expire_at": 0}),
                Err(TokenError::Expired),
            ),
        ] {
            let found = check(settings(), claims.clone()).map(|claims| claims.expires_at_s);
            assert_eq!(found, expected, "{claims}");
        }
    }

    #[test]
    fn a_token_cannot_choose_how_it_is_verified() {
        let claims = json!({"sub": "ann", "exp": NOW + 60}).to_string();
        let verifier = Verifier::new(settings());
        let good = sign_texts(r#"{"alg":"HS256"}"#, &claims);
        assert!(verifier.connection(&good, NOW).is_ok());
        let (message, signature) = good.rsplit_once('.').unwrap();
        let mut tokens = vec![
            message.to_owned(),
            format!("{message}."),
            format!("{message}.{signature}A"),
            format!("{good}.{signature}"),
            "é.é.é".to_owned(),
            sign_texts(r#"{"alg":"HS256","crit":["exp"]}"#, &claims),
            sign_texts(r#"{"alg":"HS512"}"#, &claims),
            sign_texts(r#"{"alg":"RS256"}"#, &claims),
            sign_texts(r#"{"alg":"ES256"}"#, &claims),
            sign_texts(r#"{"alg":"EdDSA"}"#, &claims),
            sign_texts(r#"{"alg":"none"}"#, &claims),
            sign_texts(r#"{"alg":"hs256"}"#, &claims),
            sign_texts(r#"{"alg":["HS256"]}"#, &claims),
            sign_texts(r#"{"typ":"JWT"}"#, &claims),
            sign_texts("HS256", &claims),
            sign_texts(r#"{"alg":"HS256"}"#, "[]"),
            sign_texts(r#"{"alg":"HS256"}"#, "null"),
            sign_texts(r#"{"alg":"HS256"}"#, ""),
        ];
        // Two values for one claim: readers differ in which counts.
        for twice in ["\"sub\":\"bob\"", "\"exp\":1", "\"nbf\":1,\"nbf\":1"] {
            let claims = claims.replacen('{', &format!("{{{twice},"), 1);
            tokens.push(sign_texts(r#"{"alg":"HS256"}"#, &claims));
        }
        for token in tokens {
            let found = verifier.connection(&token, NOW);
            assert!(
                matches!(found, Err(TokenError::Invalid(_))),
                "{token}: {found:?}"
            );
        }
        // Keys that a token brings along, or a key id that is a path, mean nothing.
        for header in [
            r#"{"alg":"HS256","jku":"http://127.0.0.1:9/keys"}"#,
            r#"{"alg":"HS256","kid":"../../dev/null"}"#,
        ] {
            assert!(
                verifier
                    .connection(&sign_texts(header, &claims), NOW)
                    .is_ok()
            );
        }
    }

    #[test]
    fn an_empty_secret_verifies_nothing() {
        let none = TokenSettings {
            hmac_secret_key: String::new(),
            ..settings()
        };
        let token = sign(Algorithm::HS256, "", &json!({"sub": "a", "exp": NOW + 60}));
        let found = Verifier::new(none).connection(&token, NOW);
        assert!(matches!(found, Err(TokenError::Invalid(_))), "{found:?}");
    }

    #[test]
    fn public_info_is_json() {
        let info = |claims: serde_json::Value| {
            check(settings(), claims).map(|claims| claims.info.unwrap_or_default())
        };
        let both = json!({"exp": NOW + 9, "info": 5, "b64info": "eyJhIjoKMX0="});
        assert_eq!(info(both).unwrap(), "{\"a\":1}");
        assert_eq!(info(json!({"exp": NOW + 9, "b64info": ""})).unwrap(), "");
        for b64 in ["%%", "bm8=", "/w=="] {
            let found = info(json!({"exp": NOW + 9, "b64info": b64}));
            assert!(matches!(found, Err(TokenError::Invalid(_))), "{b64}");
        }
    }
}
