//! Knows: how a token is made, for trying things out; real ones come from the application. Never: how
//! one is checked.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::keys::{self, Algorithm, KeyError, SigningKey};

/// Why no token was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// ES512, none, or a misspelled one.
    #[error(
        "{0:?} is no algorithm that is offered: HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA"
    )]
    Algorithm(String),
    /// The key does not fit.
    #[error("the key does not fit the algorithm: {0}")]
    Key(#[from] KeyError),
    /// No JSON.
    #[error("caps: {0}")]
    Caps(String),
    /// The key's library refused.
    #[error("it cannot be signed: {0}")]
    Sign(String),
}

/// What signs: an algorithm and its key.
pub struct Signer {
    algorithm: Algorithm,
    key: SigningKey,
    kid: Option<String>,
}

impl Signer {
    /// A secret for HS…, a private key in PEM (PKCS#8) for the others.
    ///
    /// # Errors
    /// When the algorithm is not offered, or the key is not one of it.
    pub fn new(algorithm: &str, key: &str, kid: Option<String>) -> Result<Self, MintError> {
        let known = keys::algorithm(algorithm);
        let known = known.ok_or_else(|| MintError::Algorithm(algorithm.to_owned()))?;
        let key = keys::signing_key(known, key)?;
        Ok(Self {
            algorithm: known,
            key,
            kid,
        })
    }
}

/// The claims of a token to make; empty ones are left out, `sub` is not.
#[derive(Clone, Debug, Default)]
pub struct Mint<'a> {
    /// The user.
    pub user: &'a str,
    /// The room, for a subscription token.
    pub channel: Option<&'a str>,
    /// `exp`, in seconds since 1970.
    pub expires_at_s: Option<i64>,
    /// `iat`, in seconds since 1970.
    pub issued_at_s: Option<i64>,
    /// `jti`
    pub token_id: &'a str,
    /// `aud`
    pub audience: &'a str,
    /// `iss`
    pub issuer: &'a str,
    /// The claim that names the user; empty is `sub`.
    pub user_id_claim: &'a str,
    /// `caps`, JSON.
    pub caps: Option<&'a str>,
}

impl Mint<'_> {
    /// Makes the token.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn signed(&self, signer: &Signer) -> Result<String, MintError> {
        let mut claims = Map::new();
        let user = match self.user_id_claim {
            "" => "sub",
            name => name,
        };
        claims.insert(user.to_owned(), self.user.into());
        let texts = [
            ("channel", self.channel.unwrap_or_default()),
            ("aud", self.audience),
            ("iss", self.issuer),
            ("jti", self.token_id),
        ];
        for (name, text) in texts {
            if !text.is_empty() {
                claims.insert(name.to_owned(), text.into());
            }
        }
        if let Some(caps) = self.caps {
            let caps: Value =
                serde_json::from_str(caps).map_err(|error| MintError::Caps(error.to_string()))?;
            claims.insert("caps".to_owned(), caps);
        }
        for (name, seconds) in [("exp", self.expires_at_s), ("iat", self.issued_at_s)] {
            if let Some(seconds) = seconds {
                claims.insert(name.to_owned(), seconds.into());
            }
        }
        let mut header = Map::new();
        header.insert("alg".to_owned(), format!("{:?}", signer.algorithm).into());
        header.insert("typ".to_owned(), "JWT".into());
        if let Some(kid) = &signer.kid {
            header.insert("kid".to_owned(), kid.as_str().into());
        }
        let part =
            |object: Map<String, Value>| URL_SAFE_NO_PAD.encode(Value::from(object).to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature =
            keys::signature(&message, &signer.key, signer.algorithm).map_err(MintError::Sign)?;
        Ok(format!("{message}.{signature}"))
    }
}
