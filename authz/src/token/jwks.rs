//! Knows: a JSON Web Key Set (RFC 7517) as keys with names. Never: where it came from, tokens, times.

use serde::Deserialize;

use super::keys::{Algorithm, Key, KeyError};

/// Keys of one set; more are left out.
const KEYS_MAX: usize = 64;

/// The keys of one issuer.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Vec<(String, Key)>,
    /// What was left out, and why.
    skipped: Vec<Skipped>,
}

/// A key of a set that no token can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skipped {
    /// Without a `kid`.
    #[error("a key without a kid, which no token can name")]
    NoKid,
    /// For encryption.
    #[error("a key that is not for signatures")]
    Use,
    /// A secret that everybody can read.
    #[error("a shared secret (kty \"oct\"), which has no place in a public set")]
    Secret,
    /// Beyond the bound.
    #[error("keys beyond the first 64")]
    TooMany,
    /// Something about the key itself.
    #[error("a key: {0}")]
    Key(#[from] KeyError),
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<RawKey>,
}

/// All that is read of a key; `x5u` and the like are not.
#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a set. A key that cannot be used is left out: one new kind of key at an issuer must not
    /// turn away those who have the others.
    ///
    /// # Errors
    /// A sentence, when it is no set at all.
    pub fn read(json: &[u8]) -> Result<Self, &'static str> {
        let set: RawSet = serde_json::from_slice(json)
            .map_err(|_| "it is no JSON Web Key Set ({\"keys\":[…]})")?;
        let mut read = Self::default();
        for raw in set.keys {
            if read.keys.len() == KEYS_MAX {
                read.skipped.push(Skipped::TooMany);
                break;
            }
            match raw.read() {
                Ok(named) => read.keys.push(named),
                Err(skipped) => read.skipped.push(skipped),
            }
        }
        Ok(read)
    }

    /// The keys of a name that verify an algorithm.
    pub(super) fn named(&self, kid: &str, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        let is_meant = move |(name, key): &&(String, Key)| name == kid && key.has(algorithm);
        self.keys.iter().filter(is_meant).map(|(_, key)| key)
    }

    /// Whether a key has this name.
    pub(super) fn has(&self, kid: &str) -> bool {
        self.keys.iter().any(|(name, _)| name == kid)
    }

    /// Whether no token can be verified with it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Names and algorithms, for people.
    #[must_use]
    pub fn described(&self) -> Vec<String> {
        let describe =
            |(name, key): &(String, Key)| format!("{name} ({})", key.algorithms().join(", "));
        self.keys.iter().map(describe).collect()
    }

    /// What was left out.
    #[must_use]
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

impl RawKey {
    fn read(self) -> Result<(String, Key), Skipped> {
        if self.kty == "oct" {
            return Err(Skipped::Secret);
        }
        let is_for_signatures = self
            .purpose
            .as_deref()
            .is_none_or(|purpose| purpose == "sig")
            && self
                .key_ops
                .as_ref()
                .is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !is_for_signatures {
            return Err(Skipped::Use);
        }
        let kid = self
            .kid
            .clone()
            .filter(|kid| !kid.is_empty())
            .ok_or(Skipped::NoKid)?;
        let key = self.key()?;
        let key = match &self.alg {
            Some(algorithm) => key.only(algorithm)?,
            None => key,
        };
        Ok((kid, key))
    }

    fn key(&self) -> Result<Key, KeyError> {
        let part = |part: &Option<String>| part.clone().ok_or(KeyError::Parts);
        match self.kty.as_str() {
            "RSA" => Key::rsa_jwk(&part(&self.n)?, &part(&self.e)?),
            "EC" => Key::ec_jwk(&part(&self.crv)?, &part(&self.x)?, &part(&self.y)?),
            "OKP" => Key::okp_jwk(&part(&self.crv)?, &part(&self.x)?),
            _ => Err(KeyError::Kind),
        }
    }
}
