//! Knows: what becomes of a token that is shown to NATS or MQTT: refused, or let in with the permissions that its
//! grants render to. Never: how nats-server asks (`weir_nats::callout`), sockets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use weir_nats::ambient::since_1970;
use weir_nats::callout::{Admission, Decide, Login};
use weir_nats::control::token_key;
use weir_nats::subject::user_token;

use crate::grants::Grants;
use crate::render::render;
use crate::rules::NamespaceRules;
use crate::token::{Claims, TokenError, Verifier};

/// How long a login waits for what was revoked while NATS was away.
const ORDERS_WITHIN: Duration = Duration::from_secs(2);

/// Why nobody is let in. No text holds any of what was shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// Neither a token nor a password.
    #[error("no token was shown")]
    NoToken,
    /// The token is not accepted.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It has no user.
    #[error("the token has no user, and the anonymous user has no inbox of its own")]
    Anonymous,
    /// Its user has the name of one in nats-server's configuration, whose inbox it would hear.
    #[error("the token's user is one of nats-server's configuration")]
    Reserved,
    /// A session of MQTT is found by its client id, whoever opened it.
    #[error("the MQTT client id must be the user's token, or begin with it and a colon")]
    MqttClient,
    /// NATS was away, and what was revoked meanwhile is not known yet.
    #[error("which tokens are revoked is not known just now")]
    Unread,
    /// A leaf node, a route or a gateway.
    #[error("a token is for clients only")]
    Kind,
}

/// The callout's policy.
pub struct NativeLogins {
    verifier: Arc<Verifier>,
    namespaces: Vec<(Option<String>, NamespaceRules)>,
    reserved: BTreeSet<String>,
}

impl NativeLogins {
    /// A policy by the rules of all namespaces (`None`: of rooms without one); `reserved` are the users
    /// of nats-server's configuration, whose names no token may have.
    #[must_use]
    pub fn new(
        verifier: Arc<Verifier>,
        namespaces: Vec<(Option<String>, NamespaceRules)>,
        reserved: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            verifier,
            namespaces,
            reserved: reserved.into_iter().collect(),
        }
    }

    /// As a function for the service.
    #[must_use]
    pub fn decide(self) -> Decide {
        let policy = Arc::new(self);
        Arc::new(move |login| {
            let policy = Arc::clone(&policy);
            Box::pin(async move { policy.admit(login).await.map_err(|error| error.to_string()) })
        })
    }

    /// Lets somebody in, or not. Waits for the key of a token where it has to be fetched.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn admit(&self, login: Login) -> Result<Admission, LoginError> {
        if !login.is_client {
            return Err(LoginError::Kind);
        }
        if login.token.is_empty() {
            return Err(LoginError::NoToken);
        }
        let revocations = self.verifier.revocations();
        if let Some(read) = revocations.until_current()
            && timeout(ORDERS_WITHIN, read).await.is_err()
        {
            return Err(LoginError::Unread);
        }
        let claims = verified(&self.verifier, &login.token).await?;
        // A key may have been waited for.
        if revocations.until_current().is_some() {
            return Err(LoginError::Unread);
        }
        let user = self.user(&claims)?;
        if let Some(id) = &login.mqtt_client
            && !is_of_user(id, &user)
        {
            return Err(LoginError::MqttClient);
        }
        let namespaces = self.namespaces.iter();
        let namespaces = namespaces.map(|(name, rules)| (name.as_deref(), rules));
        let permissions = render(&Grants::of_native(&claims), namespaces);
        Ok(Admission {
            name: format!(
                "{user}:{}",
                token_key(claims.token_id.as_deref().unwrap_or_default())
            ),
            publish: permissions.publish().to_vec(),
            subscribe: permissions.subscribe().to_vec(),
            expires_at_s: claims.expires_at_s,
        })
    }

    /// The user's token in subjects.
    fn user(&self, claims: &Claims) -> Result<String, LoginError> {
        if claims.user.is_empty() {
            Err(LoginError::Anonymous)
        } else if self.reserved.contains(&claims.user) {
            Err(LoginError::Reserved)
        } else {
            Ok(user_token(&claims.user))
        }
    }
}

/// Verifies a connection token now, and waits for its key where it has to be fetched.
///
/// # Errors
/// See [`TokenError`]; never [`TokenError::Wanted`].
pub async fn verified(verifier: &Verifier, token: &str) -> Result<Claims, TokenError> {
    let now_s = || i64::try_from(since_1970().as_secs()).unwrap_or(i64::MAX);
    match verifier.connection(token, now_s()) {
        Err(TokenError::Wanted(wanted)) => wanted.wait().await,
        found => return found,
    }
    match verifier.connection(token, now_s()) {
        Err(TokenError::Wanted(_)) => Err(TokenError::Unavailable),
        found => found,
    }
}

/// A colon is in no user's token, so no user's ids are another's.
fn is_of_user(id: &str, user: &str) -> bool {
    let rest = id.strip_prefix(user);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Check, Issuer, Key, Keys, Mint, Signer};

    const SECRET: &str = "a secret of thirty-two bytes or so";

    fn policy() -> NativeLogins {
        let keys = Keys::Fixed(vec![(Key::secret(SECRET).unwrap(), None)]);
        let check = Check::default();
        let verifier = Verifier::new(vec![Issuer { check, keys }], None);
        let open = NamespaceRules {
            allow_subscribe_for_client: true,
            ..NamespaceRules::default()
        };
        let namespaces = vec![(Some("chat".to_owned()), open)];
        NativeLogins::new(Arc::new(verifier), namespaces, ["ops".to_owned()])
    }

    fn token(user: &str) -> String {
        let signer = Signer::new("HS256", SECRET, None).unwrap();
        let mint = Mint {
            user,
            expires_at_s: Some(4_000_000_000),
            ..Mint::default()
        };
        mint.signed(&signer).unwrap()
    }

    fn login(token: String, mqtt_client: Option<&str>) -> Login {
        Login {
            token,
            mqtt_client: mqtt_client.map(str::to_owned),
            is_client: true,
        }
    }

    #[tokio::test]
    async fn a_token_is_let_in_with_its_permissions() {
        let found = policy()
            .admit(login(token("ann@x"), Some("ann=40x:phone")))
            .await;
        let found = found.unwrap();
        assert_eq!(found.name, "ann=40x:");
        assert_eq!(found.publish, ["_NONE_"]);
        assert!(found.subscribe.contains(&"room.chat.*".to_owned()));
        assert_eq!(found.expires_at_s, Some(4_000_000_000));
    }

    #[tokio::test]
    async fn everybody_else_is_not() {
        let policy = policy();
        let cases = [
            (login(String::new(), None), LoginError::NoToken),
            (login(token(""), None), LoginError::Anonymous),
            (login(token("ops"), None), LoginError::Reserved),
            (login(token("ann"), Some("")), LoginError::MqttClient),
            (login(token("ann"), Some("bob")), LoginError::MqttClient),
            (login(token("ann"), Some("ann2")), LoginError::MqttClient),
            (
                Login {
                    is_client: false,
                    ..login(token("ann"), None)
                },
                LoginError::Kind,
            ),
        ];
        for (login, error) in cases {
            assert_eq!(policy.admit(login).await, Err(error));
        }
        for bad in [
            "x".to_owned(),
            "x".repeat(13_000),
            format!("{}x", token("ann")),
        ] {
            let found = policy.admit(login(bad, None)).await;
            assert!(matches!(found, Err(LoginError::Token(_))), "{found:?}");
        }
    }
}
