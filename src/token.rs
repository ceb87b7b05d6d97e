//! Knows: how to make a connection token for a person who tries Weir.
//! Never: verifies one; that is weir-authz.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

use crate::config::Token;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// There is no key.
    #[error(
        "client.token.hmac_secret_key is empty, so no token would be valid; set it in the file, or as \
         WEIR_CLIENT_TOKEN_HMAC_SECRET_KEY"
    )]
    NoKey,
    /// `--info` is not JSON.
    #[error("--info is not JSON: {0}")]
    Info(serde_json::Error),
    /// It cannot be signed.
    #[error("the token cannot be signed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    channels: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "str::is_empty")]
    aud: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    iss: &'a str,
}

/// Makes an HS256 token that this configuration accepts.
///
/// # Errors
/// There is no key, or `info` is not JSON.
pub fn mint(
    config: &Token,
    user: &str,
    ttl: Duration,
    channels: &[String],
    info: Option<&str>,
) -> Result<String, TokenError> {
    if config.hmac_secret_key.is_empty() {
        return Err(TokenError::NoKey);
    }
    let info = info
        .map(serde_json::from_str)
        .transpose()
        .map_err(TokenError::Info)?;
    // A clock before 1970 makes a token that is long expired, which is the truth.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let claims = Claims {
        sub: user,
        iat: now,
        exp: now.saturating_add(ttl.as_secs()),
        channels,
        info,
        aud: &config.audience,
        iss: &config.issuer,
    };
    let key = EncodingKey::from_secret(config.hmac_secret_key.expose().as_bytes());
    Ok(encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    use super::*;
    use crate::config::Secret;

    #[test]
    fn a_token_says_what_was_asked() {
        let config = Token {
            hmac_secret_key: Secret::new("k".repeat(32)),
            ..Token::default()
        };
        let channels = ["chat:lobby".to_owned()];
        let token = mint(
            &config,
            "ann",
            Duration::from_secs(60),
            &channels,
            Some("{\"a\":1}"),
        )
        .unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let claims: serde_json::Value =
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        assert_eq!(claims["sub"], "ann");
        assert_eq!(claims["channels"][0], "chat:lobby");
        assert_eq!(claims["info"]["a"], 1);
        assert_eq!(
            claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
            60
        );
        assert!(claims.get("aud").is_none());
    }

    #[test]
    fn no_key_no_token() {
        let error = mint(&Token::default(), "ann", Duration::ZERO, &[], None).unwrap_err();
        assert!(matches!(error, TokenError::NoKey));
    }
}
