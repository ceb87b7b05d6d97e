//! Knows: how the configuration's issuers become a verifier, a signer for trying out, and findings of
//! `weir check`. Never: which key of the configuration has which name in a file (`config/tokens.rs`).

use std::sync::Arc;

use weir_authz::Verifier;
use weir_authz::token::{
    Address, AddressError, Check, Endpoint, Fetcher, Issuer, Key, KeyError, Keys, Mint, Signer,
};
use weir_nats::ambient::random;

use crate::config::{self, Config};

/// A key, and until which second since 1970 it is taken.
type Until = (Key, Option<i64>);

/// The keys that an issuer's table holds, and those that are none, each with the name of its option.
#[must_use]
pub fn fixed_keys(issuer: &config::Issuer) -> (Vec<Until>, Vec<(&'static str, KeyError)>) {
    let previous = issuer.hmac_previous_secret_key_valid_until;
    let previous = (previous > 0).then_some(previous);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut add = |name, text: &str, read: fn(&str) -> Result<Key, KeyError>, until| {
        if !text.is_empty() {
            match read(text) {
                Ok(key) => good.push((key, until)),
                Err(error) => bad.push((name, error)),
            }
        }
    };
    add(
        "hmac_secret_key",
        issuer.hmac_secret_key.expose(),
        Key::secret,
        None,
    );
    let secret = issuer.hmac_previous_secret_key.expose();
    add("hmac_previous_secret_key", secret, Key::secret, previous);
    add("rsa_public_key", &issuer.rsa_public_key, Key::rsa_pem, None);
    add(
        "ecdsa_public_key",
        &issuer.ecdsa_public_key,
        Key::ecdsa_pem,
        None,
    );
    add(
        "ed25519_public_key",
        &issuer.ed25519_public_key,
        Key::ed25519_pem,
        None,
    );
    (good, bad)
}

/// The address of an issuer's keys.
///
/// # Errors
/// When it is none, as is the empty one.
pub fn address(issuer: &config::Issuer) -> Result<Address, AddressError> {
    let ca_file = &issuer.jwks_ca_file;
    let ca_file = (!ca_file.as_os_str().is_empty()).then_some(ca_file.as_path());
    Address::parse(&issuer.jwks_public_endpoint, ca_file)
}

/// The verifier of both kinds of tokens, and what fetches the keys of issuers with an address.
///
/// # Errors
/// When an address became none since the configuration was checked.
pub fn verifier(config: &Config) -> Result<(Arc<Verifier>, Vec<Fetcher>), AddressError> {
    let mut fetchers = Vec::new();
    let client = &config.client;
    let connection = issuers(&client.token, &mut fetchers)?;
    let subscription = &client.subscription_token;
    let subscription = if subscription.enabled {
        Some(issuers(&subscription.token, &mut fetchers)?)
    } else {
        None
    };
    Ok((Arc::new(Verifier::new(connection, subscription)), fetchers))
}

fn issuers(
    token: &config::Token,
    fetchers: &mut Vec<Fetcher>,
) -> Result<Vec<Issuer>, AddressError> {
    let mut issuers = Vec::new();
    for (_, issuer) in token.all("") {
        let keys = if issuer.jwks_public_endpoint.is_empty() {
            Keys::Fixed(fixed_keys(issuer).0)
        } else {
            let (endpoint, fetcher) = Endpoint::new(address(issuer)?);
            fetchers.push(fetcher);
            Keys::Fetched(endpoint)
        };
        issuers.push(Issuer {
            check: check(issuer),
            keys,
        });
    }
    Ok(issuers)
}

fn check(issuer: &config::Issuer) -> Check {
    let ahead = i64::try_from(issuer.exp_max_ahead.as_secs()).unwrap_or(i64::MAX);
    Check {
        issuer: issuer.issuer.clone(),
        audience: issuer.audience.clone(),
        user_id_claim: issuer.user_id_claim.clone(),
        allow_missing_exp: issuer.allow_missing_exp,
        exp_max_ahead_s: (ahead > 0).then_some(ahead),
    }
}

/// What `weir token` is asked for.
pub struct Wish<'a> {
    /// The user.
    pub user: &'a str,
    /// The room, for a subscription token.
    pub channel: Option<&'a str>,
    /// `HS256` and so on.
    pub algorithm: &'a str,
    /// The private key (PEM) or the secret; without it, the secret of the configuration.
    pub key: Option<String>,
    /// The key's id.
    pub kid: Option<String>,
    /// The issuer's name in the configuration.
    pub issuer: Option<&'a str>,
    /// `caps`, JSON.
    pub caps: Option<&'a str>,
    /// Now and `exp`, in seconds since 1970.
    pub now_s: i64,
    /// See `now_s`.
    pub expires_at_s: i64,
}

/// Makes a token that this configuration takes.
///
/// # Errors
/// A sentence that says which key is missing or does not fit.
pub fn mint(config: &Config, wish: &Wish<'_>) -> Result<String, String> {
    let client = &config.client;
    let (table, token) = match wish.channel {
        Some(_) if client.subscription_token.enabled => (
            "client.subscription_token",
            &client.subscription_token.token,
        ),
        _ => ("client.token", &client.token),
    };
    let all = token.all(table);
    let wanted = wish.issuer.map(|name| format!("{table}.issuers.{name}"));
    let found = match &wanted {
        Some(wanted) => all.iter().find(|(at, _)| at == wanted),
        None => all.first(),
    };
    let Some((at, issuer)) = found else {
        let variable = table.replace('.', "_").to_ascii_uppercase();
        return Err(match wanted {
            Some(wanted) => format!("{wanted}: there is no such issuer with a key"),
            None => format!(
                "{table}.hmac_secret_key: it is empty, so no token would be valid; set it in the file, or as \
                 WEIR_{variable}_HMAC_SECRET_KEY"
            ),
        });
    };
    let key = match &wish.key {
        Some(key) => key.as_str(),
        None if wish.algorithm.starts_with("HS") => issuer.hmac_secret_key.expose(),
        None => {
            return Err(format!(
                "{}: give its private key with --key FILE",
                wish.algorithm
            ));
        }
    };
    if key.is_empty() {
        return Err(format!(
            "{at}.hmac_secret_key: it is empty; give a key with --key FILE"
        ));
    }
    let signer =
        Signer::new(wish.algorithm, key, wish.kid.clone()).map_err(|error| error.to_string())?;
    let mint = Mint {
        user: wish.user,
        channel: wish.channel,
        expires_at_s: Some(wish.expires_at_s),
        issued_at_s: Some(wish.now_s),
        token_id: &data_encoding::HEXLOWER.encode(&random::<8>()),
        audience: &issuer.audience,
        issuer: &issuer.issuer,
        user_id_claim: &issuer.user_id_claim,
        caps: wish.caps,
    };
    let token = mint.signed(&signer).map_err(|error| error.to_string())?;
    if !issuer.jwks_public_endpoint.is_empty() {
        if wish.kid.is_none() {
            return Err(format!(
                "{at}.jwks_public_endpoint: its tokens need a key id; give it with --kid"
            ));
        }
        // Whether the set has the key is known only there.
        return Ok(token);
    }
    let keys = Keys::Fixed(fixed_keys(issuer).0);
    let verifier = Verifier::new(
        vec![Issuer {
            check: check(issuer),
            keys,
        }],
        None,
    );
    let verified = match wish.channel {
        Some(room) => verifier
            .subscription(&token, Some(room), wish.user, "", wish.now_s)
            .map(drop),
        None => verifier.connection(&token, wish.now_s).map(drop),
    };
    match verified {
        Ok(()) => Ok(token),
        Err(error) => Err(format!(
            "{at}: this configuration would refuse the token: {error}"
        )),
    }
}

/// What `weir check` found of one issuer.
pub enum Finding {
    /// It is as it should be.
    Good(String),
    /// Allowed, but probably not meant.
    Warning(String),
    /// No token of it is valid.
    Bad(String),
}

/// Looks at every issuer, and asks the addresses of those that have one.
pub async fn look(config: &Config) -> Vec<Finding> {
    let client = &config.client;
    let mut all = client.token.all("client.token");
    if client.subscription_token.enabled {
        all.extend(
            client
                .subscription_token
                .token
                .all("client.subscription_token"),
        );
    }
    let mut findings = Vec::new();
    for (table, issuer) in all {
        if issuer.jwks_public_endpoint.is_empty() {
            let keys = fixed_keys(issuer).0;
            let mut names: Vec<String> =
                keys.iter().flat_map(|(key, _)| key.algorithms()).collect();
            names.dedup();
            findings.push(Finding::Good(format!(
                "tokens: {table} takes {}",
                names.join(", ")
            )));
            continue;
        }
        let url = &issuer.jwks_public_endpoint;
        let set = match address(issuer) {
            Ok(address) => Endpoint::look(&address).await,
            Err(error) => Err(error.to_string()),
        };
        match set {
            Ok(set) => {
                findings.push(Finding::Good(format!("tokens: {table}: {url} has {}", set.described().join("; "))));
                for skipped in set.skipped() {
                    findings.push(Finding::Warning(format!("tokens: {table}: {url} has {skipped}, and it is not used")));
                }
            }
            Err(error) => findings.push(Finding::Bad(format!(
                "tokens: {table}.jwks_public_endpoint: {url}: {error}; correct it, or start what serves it"
            ))),
        }
    }
    findings
}
