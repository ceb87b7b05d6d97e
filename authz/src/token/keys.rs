//! Knows: keys, their kinds, and which algorithms each kind has. The one file that names
//! jsonwebtoken. Never: claims, where a key came from.

use jsonwebtoken::DecodingKey;
use jsonwebtoken::crypto::{sign, verify};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};

pub(super) use jsonwebtoken::{Algorithm, EncodingKey as SigningKey};

/// RSA keys of fewer bits can be factored; of more, the library refuses.
const RSA_MIN_BITS: usize = 2_048;
const RSA_MAX_BITS: usize = 4_096;

/// What a key is. Its algorithms follow from it, and a token cannot choose another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A shared secret.
    Hmac,
    /// An RSA public key.
    Rsa,
    /// A public key on the curve P-256.
    P256,
    /// A public key on the curve P-384.
    P384,
    /// An Ed25519 public key.
    Ed25519,
}

impl Kind {
    const fn list(self) -> &'static [Algorithm] {
        match self {
            Self::Hmac => &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512],
            Self::Rsa => &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            Self::P256 => &[Algorithm::ES256],
            Self::P384 => &[Algorithm::ES384],
            Self::Ed25519 => &[Algorithm::EdDSA],
        }
    }

    /// The names of its algorithms.
    #[must_use]
    pub fn algorithms(self) -> Vec<String> {
        self.list().iter().map(|one| format!("{one:?}")).collect()
    }
}

/// Why something is no key. The text says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The PEM cannot be read.
    #[error("it is not a public key in PEM (-----BEGIN PUBLIC KEY-----) of the kind {0}")]
    Pem(&'static str),
    /// A private key where a public one belongs.
    #[error(
        "it is a private key; here belongs the public one, and the private one stays with the issuer"
    )]
    Private,
    /// A secret that is a public key: everyone could sign with it.
    #[error("it is a PEM, and everyone could sign with a public key as the secret")]
    PemAsSecret,
    /// Too short, or longer than the library takes.
    #[error("an RSA key must have 2048 to 4096 bits, this one has {0}")]
    RsaBits(usize),
    /// The one algorithm of RFC 7518 that is not offered.
    #[error("P-521 (ES512) is not offered; use P-256 (ES256) or P-384 (ES384)")]
    Es512,
    /// Another curve, such as secp256k1 or Ed448.
    #[error("it is on a curve that is not offered; use P-256, P-384 or Ed25519")]
    Curve,
    /// Parts of a JWK are missing or malformed.
    #[error("its parts are missing or malformed")]
    Parts,
    /// A JWK of a kind or for an algorithm that is not offered.
    #[error("its kind or algorithm is not offered")]
    Kind,
}

/// A key that verifies tokens.
#[derive(Clone)]
pub struct Key {
    kind: Kind,
    key: DecodingKey,
    /// A JWK may be for one algorithm only.
    only: Option<Algorithm>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?})", self.kind)
    }
}

impl Key {
    /// A shared secret, for HS256, HS384 and HS512.
    ///
    /// # Errors
    /// When it is empty or a PEM.
    pub fn secret(secret: &str) -> Result<Self, KeyError> {
        if secret.trim_start().starts_with("-----BEGIN") {
            return Err(KeyError::PemAsSecret);
        }
        if secret.is_empty() {
            // Anybody can sign with an empty secret.
            return Err(KeyError::Parts);
        }
        Ok(Self {
            kind: Kind::Hmac,
            key: DecodingKey::from_secret(secret.as_bytes()),
            only: None,
        })
    }

    /// An RSA public key in PEM (SPKI or PKCS#1), for RS and PS.
    ///
    /// # Errors
    /// When it cannot be read, is private, too short or too long.
    pub fn rsa_pem(pem: &str) -> Result<Self, KeyError> {
        let pem = public_pem(pem)?;
        let key = DecodingKey::from_rsa_pem(pem).map_err(|_| KeyError::Pem("RSA"))?;
        Self::rsa(key)
    }

    /// An ECDSA public key in PEM, for ES256 or ES384.
    ///
    /// # Errors
    /// When it cannot be read, is private, or of another curve.
    pub fn ecdsa_pem(pem: &str) -> Result<Self, KeyError> {
        let pem = public_pem(pem)?;
        let key = DecodingKey::from_ec_pem(pem).map_err(|_| KeyError::Pem("ECDSA"))?;
        let bytes = key.try_get_as_bytes().map_err(|_| KeyError::Parts)?;
        // A point: one byte that says so, and both coordinates.
        let kind = match bytes.len() {
            65 => Kind::P256,
            97 => Kind::P384,
            133 => return Err(KeyError::Es512),
            _ => return Err(KeyError::Curve),
        };
        Self {
            kind,
            key,
            only: None,
        }
        .tried(KeyError::Curve)
    }

    /// An Ed25519 public key in PEM, for EdDSA.
    ///
    /// # Errors
    /// When it cannot be read or is private.
    pub fn ed25519_pem(pem: &str) -> Result<Self, KeyError> {
        let pem = public_pem(pem)?;
        let key = DecodingKey::from_ed_pem(pem).map_err(|_| KeyError::Pem("Ed25519"))?;
        Self::ed25519(key)
    }

    /// The parts of a JWK of the kind RSA.
    pub(super) fn rsa_jwk(n: &str, e: &str) -> Result<Self, KeyError> {
        let key = DecodingKey::from_rsa_components(n, e).map_err(|_| KeyError::Parts)?;
        Self::rsa(key)
    }

    /// The parts of a JWK of the kind EC.
    pub(super) fn ec_jwk(curve: &str, x: &str, y: &str) -> Result<Self, KeyError> {
        let (kind, coordinate) = match curve {
            "P-256" => (Kind::P256, 32),
            "P-384" => (Kind::P384, 48),
            "P-521" => return Err(KeyError::Es512),
            _ => return Err(KeyError::Curve),
        };
        let key = DecodingKey::from_ec_components(x, y).map_err(|_| KeyError::Parts)?;
        match key.try_get_as_bytes() {
            Ok(bytes) if bytes.len() == 1 + 2 * coordinate => {}
            Ok(_) | Err(_) => return Err(KeyError::Parts),
        }
        Self {
            kind,
            key,
            only: None,
        }
        .tried(KeyError::Parts)
    }

    /// The parts of a JWK of the kind OKP.
    pub(super) fn okp_jwk(curve: &str, x: &str) -> Result<Self, KeyError> {
        if curve != "Ed25519" {
            return Err(KeyError::Curve);
        }
        let key = DecodingKey::from_ed_components(x).map_err(|_| KeyError::Parts)?;
        Self::ed25519(key)
    }

    /// Binds a key to one algorithm of its kind, as a JWK's `alg` does.
    pub(super) fn only(mut self, name: &str) -> Result<Self, KeyError> {
        if name == "ES512" {
            return Err(KeyError::Es512);
        }
        let algorithm = algorithm(name).filter(|one| self.kind.list().contains(one));
        self.only = Some(algorithm.ok_or(KeyError::Kind)?);
        Ok(self)
    }

    fn rsa(key: DecodingKey) -> Result<Self, KeyError> {
        let jwk = Jwk::from_decoding_key(&key, None).map_err(|_| KeyError::Pem("RSA"))?;
        let AlgorithmParameters::RSA(parts) = &jwk.algorithm else {
            return Err(KeyError::Parts);
        };
        let bits = bits(&parts.n).ok_or(KeyError::Parts)?;
        if !(RSA_MIN_BITS..=RSA_MAX_BITS).contains(&bits) {
            return Err(KeyError::RsaBits(bits));
        }
        let kind = Kind::Rsa;
        Self {
            kind,
            key,
            only: None,
        }
        .tried(KeyError::Parts)
    }

    fn ed25519(key: DecodingKey) -> Result<Self, KeyError> {
        // The library takes the first 32 bytes of whatever it is given, and panics on fewer.
        match key.try_get_as_bytes() {
            Ok(bytes) if bytes.len() == 32 => {}
            Ok(_) | Err(_) => return Err(KeyError::Parts),
        }
        let kind = Kind::Ed25519;
        Self {
            kind,
            key,
            only: None,
        }
        .tried(KeyError::Parts)
    }

    /// Whether the library can use it, found out now and not with the first token.
    fn tried(self, otherwise: KeyError) -> Result<Self, KeyError> {
        let first = self.kind.list()[0];
        match verify("AA", b"", &self.key, first) {
            // RSA keys are read only while a signature is verified, so both answers are good ones.
            Ok(_) => Ok(self),
            Err(_) => Err(otherwise),
        }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The names of the algorithms that it verifies.
    #[must_use]
    pub fn algorithms(&self) -> Vec<String> {
        match self.only {
            Some(only) => vec![format!("{only:?}")],
            None => self.kind.algorithms(),
        }
    }

    /// Whether tokens of an algorithm may be verified with it.
    pub(super) fn has(&self, algorithm: Algorithm) -> bool {
        self.kind.list().contains(&algorithm) && self.only.is_none_or(|only| only == algorithm)
    }

    /// Whether it made a signature. False for an algorithm that is not its own. Signatures of secrets
    /// are compared in constant time.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &str) -> bool {
        self.has(algorithm)
            && !signature.is_empty()
            && verify(signature, message, &self.key, algorithm).unwrap_or(false)
    }
}

/// The algorithm of a name, spelled exactly so.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    name.parse().ok()
}

fn public_pem(pem: &str) -> Result<&[u8], KeyError> {
    if pem.contains("PRIVATE KEY") {
        return Err(KeyError::Private);
    }
    Ok(pem.as_bytes())
}

/// Bits of a number in base64url.
fn bits(number: &str) -> Option<usize> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(number)
        .ok()?;
    let first = bytes.iter().position(|byte| *byte != 0)?;
    let zeros = usize::try_from(bytes[first].leading_zeros()).ok()?;
    Some((bytes.len() - first) * 8 - zeros)
}

/// A key that makes signatures, for tokens to try things out with.
pub(super) fn signing_key(algorithm: Algorithm, key: &str) -> Result<SigningKey, KeyError> {
    let pem = key.as_bytes();
    if Kind::Hmac.list().contains(&algorithm) {
        Key::secret(key)?;
        Ok(SigningKey::from_secret(pem))
    } else if Kind::Rsa.list().contains(&algorithm) {
        SigningKey::from_rsa_pem(pem).map_err(|_| KeyError::Pem("RSA (private)"))
    } else if algorithm == Algorithm::EdDSA {
        SigningKey::from_ed_pem(pem).map_err(|_| KeyError::Pem("Ed25519 (private, PKCS#8)"))
    } else {
        SigningKey::from_ec_pem(pem).map_err(|_| KeyError::Pem("ECDSA (private, PKCS#8)"))
    }
}

/// Signs the first two parts of a token: the third.
pub(super) fn signature(
    message: &str,
    key: &SigningKey,
    algorithm: Algorithm,
) -> Result<String, String> {
    sign(message.as_bytes(), key, algorithm).map_err(|error| error.to_string())
}
