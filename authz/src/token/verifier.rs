//! Knows: which issuer a token is asked of, and with which keys. Never: a clock (now is an argument),
//! sockets, rooms' rules.

use weir_nats::Revocations;
use weir_nats::control::TokenFacts;

use super::TokenError;
use super::claims::{Claims, RawClaims, SubscriptionClaims};
use super::endpoint::{Endpoint, Found, Wanted};
use super::keys::Key;
use super::parts::Parts;

/// What the tokens of one issuer are checked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Required `iss`, if not empty.
    pub issuer: String,
    /// Required in `aud`, if not empty.
    pub audience: String,
    /// The claim that names the user; empty is `sub`.
    pub user_id_claim: String,
    /// Tokens without `exp` are taken. Only for compatibility.
    pub allow_missing_exp: bool,
    /// Seconds from now beyond which `exp` is refused; `None` has no limit.
    pub exp_max_ahead_s: Option<i64>,
}

/// The keys of one issuer.
#[derive(Clone)]
pub enum Keys {
    /// Of the configuration: each with the second since 1970 until which it is taken.
    Fixed(Vec<(Key, Option<i64>)>),
    /// Of the issuer's address.
    Fetched(Endpoint),
}

/// Someone whose tokens are taken.
#[derive(Clone)]
pub struct Issuer {
    /// What they are checked for.
    pub check: Check,
    /// What they are verified with.
    pub keys: Keys,
}

/// Verifies tokens.
#[derive(Clone, Default)]
pub struct Verifier {
    connection: Vec<Issuer>,
    /// `None`: the same.
    subscription: Option<Vec<Issuer>>,
    revocations: Revocations,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    /// A verifier for the tokens of these issuers; `subscription` are those of subscription tokens,
    /// where they are not the same. Without any, no token is valid.
    #[must_use]
    pub fn new(connection: Vec<Issuer>, subscription: Option<Vec<Issuer>>) -> Self {
        Self {
            connection,
            subscription,
            revocations: Revocations::default(),
        }
    }

    /// The same, which refuses tokens that are revoked.
    #[must_use]
    pub fn with_revocations(self, revocations: Revocations) -> Self {
        Self {
            revocations,
            ..self
        }
    }

    /// Which tokens are revoked.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Verifies a connection token.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn connection(&self, token: &str, now_s: i64) -> Result<Claims, TokenError> {
        let (issuer, claims, payload) = verify(&self.connection, token, now_s)?;
        let claims = claims.connection(&issuer.check, &payload, now_s)?;
        self.check_revoked(&claims.user, &claims.facts())?;
        Ok(claims)
    }

    /// Verifies a subscription token for a user and a connection, and for a channel, if one is given.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn subscription(
        &self,
        token: &str,
        channel: Option<&str>,
        user: &str,
        client: &str,
        now_s: i64,
    ) -> Result<SubscriptionClaims, TokenError> {
        let issuers = self.subscription.as_ref().unwrap_or(&self.connection);
        let (issuer, claims, payload) = verify(issuers, token, now_s)?;
        let claims = claims.subscription(&issuer.check, &payload, now_s)?;
        if channel.is_some_and(|channel| channel != claims.channel) {
            return Err(TokenError::Mismatch("channel"));
        }
        if claims.client.as_ref().is_some_and(|of| of != client) {
            return Err(TokenError::Mismatch("client"));
        }
        if claims.user != user {
            return Err(TokenError::Mismatch("user"));
        }
        self.check_revoked(&claims.user, &claims.facts())?;
        Ok(claims)
    }

    fn check_revoked(&self, user: &str, token: &TokenFacts) -> Result<(), TokenError> {
        if self.revocations.refuses(user, token) {
            Err(TokenError::Revoked)
        } else {
            Ok(())
        }
    }
}

fn verify<'i>(
    issuers: &'i [Issuer],
    token: &str,
    now_s: i64,
) -> Result<(&'i Issuer, RawClaims, Vec<u8>), TokenError> {
    let parts = Parts::read(token)?;
    let issuer = issuer_of(issuers, parts.said_issuer())?;
    let algorithm = parts.algorithm();
    let (claims, payload) = match &issuer.keys {
        Keys::Fixed(keys) => {
            let is_valid = |until: &Option<i64>| until.is_none_or(|until| now_s <= until);
            let keys = keys.iter().filter(|(_, until)| is_valid(until));
            let mut keys = keys
                .map(|(key, _)| key)
                .filter(|key| key.has(algorithm))
                .peekable();
            if keys.peek().is_none() {
                return Err(TokenError::invalid(
                    "no key of the issuer has its algorithm",
                ));
            }
            parts.verified(keys)?
        }
        Keys::Fetched(endpoint) => {
            let Some(kid) = parts.kid().filter(|kid| !kid.is_empty()) else {
                return Err(TokenError::invalid(
                    "it has no kid, so no key of the set is meant",
                ));
            };
            match endpoint.find(kid) {
                Found::Here(keys) => {
                    let kid = kid.to_owned();
                    parts.verified(keys.named(&kid, algorithm))?
                }
                Found::Absent => {
                    return Err(TokenError::invalid("its kid is no key's of the issuer"));
                }
                Found::Unknown => return Err(TokenError::Wanted(Wanted::new(endpoint, kid))),
                Found::Failed => return Err(TokenError::Unavailable),
            }
        }
    };
    claims.check(&issuer.check, now_s)?;
    Ok((issuer, claims, payload))
}

/// The issuer with the name that the token says, or else the one without a name.
fn issuer_of<'i>(issuers: &'i [Issuer], said: Option<&str>) -> Result<&'i Issuer, TokenError> {
    let named = |name: &str| issuers.iter().find(|issuer| issuer.check.issuer == name);
    let found = said.filter(|said| !said.is_empty()).and_then(named);
    found.or_else(|| named("")).ok_or_else(|| {
        TokenError::invalid(if issuers.is_empty() {
            "there is no key to verify it with"
        } else {
            "iss is no issuer that is configured"
        })
    })
}
