//! Knows: the two keys of the callout: what it signs with, and what nats-server seals for. Never: files.

use data_encoding::HEXLOWER;
use nkeys::{KeyPair, KeyPairType, XKey};

use crate::ambient::random;

/// The keys of the callout; every instance has the same.
pub struct CalloutKeys {
    pub(super) issuer: KeyPair,
    pub(super) xkey: XKey,
}

/// A text that is not the seed it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// What signs.
    #[error("the issuer's seed must be an account's: SA…, as `nk -gen account` prints it")]
    Issuer,
    /// What seals.
    #[error("the xkey's seed must be a curve's: SX…, as `nk -gen x25519` prints it")]
    XKey,
}

impl CalloutKeys {
    /// Reads both seeds.
    ///
    /// # Errors
    /// When one is none, or of another kind.
    pub fn from_seeds(issuer: &str, xkey: &str) -> Result<Self, KeyError> {
        let issuer = KeyPair::from_seed(issuer.trim()).map_err(|_| KeyError::Issuer)?;
        if !matches!(issuer.key_pair_type(), KeyPairType::Account) {
            return Err(KeyError::Issuer);
        }
        let xkey = XKey::from_seed(xkey.trim()).map_err(|_| KeyError::XKey)?;
        Ok(Self { issuer, xkey })
    }

    /// Seeds of new keys: the issuer's and the xkey's.
    #[must_use]
    pub fn new_seeds() -> (String, String) {
        let issuer =
            KeyPair::new_from_raw(KeyPairType::Account, random()).expect("32 bytes are a key");
        let xkey = XKey::new_from_raw(random());
        (
            issuer.seed().expect("it was made from one"),
            xkey.seed().expect("it was made from one"),
        )
    }

    /// For `auth_callout.issuer`: `A…`.
    #[must_use]
    pub fn issuer(&self) -> String {
        self.issuer.public_key()
    }

    /// For `auth_callout.xkey`: `X…`.
    #[must_use]
    pub fn xkey(&self) -> String {
        self.xkey.public_key()
    }
}

/// An id for a signed text.
pub(super) fn new_id() -> String {
    HEXLOWER.encode(&random::<16>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_of_their_kind() {
        let (issuer, xkey) = CalloutKeys::new_seeds();
        let keys = CalloutKeys::from_seeds(&format!("{issuer}\n"), &xkey).unwrap();
        assert!(keys.issuer().starts_with('A') && keys.xkey().starts_with('X'));
        let user = KeyPair::new_user().seed().unwrap();
        for (issuer, xkey, error) in [
            (user.as_str(), xkey.as_str(), KeyError::Issuer),
            (&xkey, &xkey, KeyError::Issuer),
            ("", &xkey, KeyError::Issuer),
            (&issuer, &issuer, KeyError::XKey),
            (&issuer, "", KeyError::XKey),
        ] {
            assert_eq!(CalloutKeys::from_seeds(issuer, xkey).err(), Some(error));
        }
    }
}
