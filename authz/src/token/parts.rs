//! Knows: the three parts of a signed token, before anything of it is believed. Never: keys, times,
//! what a claim means.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::claims::RawClaims;
use super::keys::{Algorithm, Key, algorithm};
use super::{TOKEN_MAX_BYTES, TokenError};

/// Bytes of a key id; longer ones are no key's.
const KID_MAX_BYTES: usize = 256;

/// All that is read of a header. Keys that a token brings along (`jwk`, `jku`, `x5u`, `x5c`) are not.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

/// A token that is well formed. What it claims comes out only by a key ([`Parts::verified`]).
pub(super) struct Parts<'t> {
    algorithm: Algorithm,
    kid: Option<String>,
    message: &'t str,
    signature: &'t str,
    payload: Vec<u8>,
    claims: RawClaims,
}

impl<'t> Parts<'t> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// [`TokenError::Invalid`] where it is too long or has another form.
    pub(super) fn read(token: &'t str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(TokenError::invalid("longer than 12 KiB"));
        }
        let form = || TokenError::invalid("it is not header.payload.signature");
        let (message, signature) = token.rsplit_once('.').ok_or_else(form)?;
        let (header, payload) = message.split_once('.').ok_or_else(form)?;
        // The decoder refuses padding, other alphabets and dots, so there is one spelling only.
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| form())?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| form())?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|_| TokenError::invalid("its header is not what a signed token's is"))?;
        if header.crit.is_some() {
            // Extensions that must be understood, and none is (RFC 7515, 4.1.11).
            return Err(TokenError::invalid("it has critical extensions"));
        }
        let Some(algorithm) = algorithm(&header.alg) else {
            return Err(TokenError::invalid("its algorithm is not offered"));
        };
        if header
            .kid
            .as_ref()
            .is_some_and(|kid| kid.len() > KID_MAX_BYTES)
        {
            return Err(TokenError::invalid("its kid is longer than 256 bytes"));
        }
        // serde names the field and what it expects; a value is in its text only as a type.
        let claims = serde_json::from_slice(&payload)
            .map_err(|error| TokenError::Invalid(describe(&error)))?;
        Ok(Self {
            algorithm,
            kid: header.kid,
            message,
            signature,
            payload,
            claims,
        })
    }

    /// Which of the configured issuers to ask. Not believed: a look-up in a list, and the claim is
    /// checked again with all others.
    pub(super) fn said_issuer(&self) -> Option<&str> {
        self.claims.iss.as_deref()
    }

    /// The algorithm that the header names; a key decides whether it is one of its own.
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key's id, a name in a map and nothing else.
    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The claims, if one of the keys made the signature.
    ///
    /// # Errors
    /// [`TokenError::Invalid`] if none did.
    pub(super) fn verified<'k>(
        self,
        mut keys: impl Iterator<Item = &'k Key>,
    ) -> Result<(RawClaims, Vec<u8>), TokenError> {
        let is_good =
            keys.any(|key| key.verifies(self.algorithm, self.message.as_bytes(), self.signature));
        if is_good {
            Ok((self.claims, self.payload))
        } else {
            Err(TokenError::invalid("its signature is not the issuer's"))
        }
    }
}

/// Where the claims are not what they should be, without any of their values.
fn describe(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => {
            format!(
                "a claim is twice there or has the wrong type (column {})",
                error.column()
            )
        }
        _ => "its claims are not a JSON object".to_owned(),
    }
}
