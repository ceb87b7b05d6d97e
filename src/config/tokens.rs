//! Knows: `[client.token]`, `[client.subscription_token]` and `[auth_callout]`: their keys, and what is wrong with one.
//! Never: a token, an issuer's address being asked.

use std::path::PathBuf;
use std::time::Duration;

use weir_nats::callout::{CalloutKeys, KeyError};

use super::read::Section;
use super::{Client, Secret};
use crate::tokens;

/// Who signs, with what, and what else must be so. One issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Issuer {
    /// Secret of HS256, HS384 and HS512.
    pub hmac_secret_key: Secret,
    /// The secret before it.
    pub hmac_previous_secret_key: Secret,
    /// Until when the previous one is taken, in seconds since 1970; 0 for ever.
    pub hmac_previous_secret_key_valid_until: i64,
    /// RSA public key (PEM), of RS256 to RS512 and PS256 to PS512.
    pub rsa_public_key: String,
    /// ECDSA public key (PEM), of ES256 or ES384.
    pub ecdsa_public_key: String,
    /// Ed25519 public key (PEM), of EdDSA.
    pub ed25519_public_key: String,
    /// Address of a JSON Web Key Set; then all keys are from there.
    pub jwks_public_endpoint: String,
    /// Certificate authorities (PEM) of that address; empty: those of this machine.
    pub jwks_ca_file: PathBuf,
    /// If not empty, what `aud` must hold.
    pub audience: String,
    /// If not empty, what `iss` must be.
    pub issuer: String,
    /// The claim with the user; empty is `sub`.
    pub user_id_claim: String,
    /// Tokens without `exp` are taken.
    pub allow_missing_exp: bool,
    /// How far ahead `exp` may be; 0 has no limit.
    pub exp_max_ahead: Duration,
}

impl Issuer {
    /// No key is given, so no token is valid.
    #[must_use]
    pub fn has_no_key(&self) -> bool {
        self.jwks_public_endpoint.is_empty() && self.has_no_fixed_key()
    }

    fn has_no_fixed_key(&self) -> bool {
        let pems = [
            &self.rsa_public_key,
            &self.ecdsa_public_key,
            &self.ed25519_public_key,
        ];
        let secrets = [&self.hmac_secret_key, &self.hmac_previous_secret_key];
        pems.iter().all(|pem| pem.is_empty()) && secrets.iter().all(|secret| secret.is_empty())
    }
}

/// `[client.token]`: how connection tokens are verified, and subscription tokens, unless they have a
/// table of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Token {
    /// The keys of the table itself.
    pub own: Issuer,
    /// `[[client.token.issuers]]`: more issuers, by name.
    pub issuers: Vec<(String, Issuer)>,
}

impl Token {
    /// Every issuer with a key, and the table that it is in.
    pub fn all<'t>(&'t self, table: &str) -> Vec<(String, &'t Issuer)> {
        let more = self.issuers.iter();
        let more = more.map(|(name, issuer)| (format!("{table}.issuers.{name}"), issuer));
        let own = (table.to_owned(), &self.own);
        let all = std::iter::once(own).chain(more);
        all.filter(|(_, issuer)| !issuer.has_no_key()).collect()
    }
}

/// `[client.subscription_token]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionToken {
    /// Subscription tokens are verified by this table; else by `[client.token]`.
    pub enabled: bool,
    /// The same keys as `[client.token]` has.
    pub token: Token,
}

pub(super) fn read_token(s: &mut Section<'_>) -> Token {
    let own = read_issuer(s);
    let issuers = s.list("issuers", |name, table| {
        let issuer = read_issuer(table);
        if issuer.issuer.is_empty() {
            table.refuse(
                "issuer",
                "it is empty",
                "write the iss of its tokens, which tells issuers apart",
            );
        }
        if issuer.has_no_key() {
            table.refuse(
                "hmac_secret_key",
                "this issuer has no key",
                "give it one, or remove it",
            );
        }
        (name, issuer)
    });
    let issuers = issuers.unwrap_or_default();
    if !issuers.is_empty() && !own.has_no_key() && own.issuer.is_empty() {
        s.refuse(
            "issuer",
            "with [[…issuers]] beside it, tokens of this table need a name, too",
            "write their iss, or make it one of the issuers",
        );
    }
    for (nth, (name, issuer)) in issuers.iter().enumerate() {
        let earlier = issuers
            .iter()
            .take(nth)
            .map(|(_, earlier)| earlier)
            .chain([&own]);
        if earlier
            .filter(|other| !other.issuer.is_empty())
            .any(|other| other.issuer == issuer.issuer)
        {
            s.refuse(
                &format!("issuers.{name}.issuer"),
                format!("{:?} is there twice", issuer.issuer),
                "an issuer has one table, with all its keys",
            );
        }
    }
    Token { own, issuers }
}

pub(super) fn read_subscription_token(s: &mut Section<'_>) -> SubscriptionToken {
    let enabled = s.bool("enabled", false);
    let token = read_token(s);
    if enabled && token.all("").is_empty() {
        s.refuse(
            "enabled",
            "there is no key, so no subscription token would be valid",
            "give one, or write false",
        );
    }
    SubscriptionToken { enabled, token }
}

/// `[auth_callout]`: tokens at the native door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthCallout {
    /// nats-server asks Weir who a stranger is; `weir up` sets it itself.
    pub enabled: bool,
    /// The seed of the account key that answers are signed with: `SA…`.
    pub issuer_seed: Secret,
    /// The seed of the curve key that requests are sealed for: `SX…`.
    pub xkey_seed: Secret,
    /// The account that users with a token are put into.
    pub account: String,
    /// Every user of nats-server's configuration: no token may have its name, and at the native door the
    /// options of namespaces say what it may do.
    pub static_users: Vec<String>,
    /// Connections of one user with tokens to NATS and MQTT, all servers together; 0 has no limit. The newest beyond it
    /// are ended.
    pub user_connection_limit: u32,
}

impl Default for AuthCallout {
    fn default() -> Self {
        let users = [
            "weir",
            "weir_read",
            "weir_door",
            "weir_auth",
            "weir_kick",
            "sys",
            "ops",
            "bot",
            "dev1",
        ];
        Self {
            enabled: false,
            issuer_seed: Secret::default(),
            xkey_seed: Secret::default(),
            account: "WEIR".into(),
            static_users: users.map(str::to_owned).to_vec(),
            user_connection_limit: 0,
        }
    }
}

pub(super) fn read_callout(s: &mut Section<'_>) -> AuthCallout {
    let d = AuthCallout::default();
    let callout = AuthCallout {
        enabled: s.bool("enabled", d.enabled),
        issuer_seed: Secret::new(text_or_file(s, "issuer_seed")),
        xkey_seed: Secret::new(text_or_file(s, "xkey_seed")),
        account: s.string("account", &d.account),
        static_users: s.strings("static_users", &d.static_users),
        user_connection_limit: s.int(
            "user_connection_limit",
            d.user_connection_limit,
            0..=u32::MAX,
        ),
    };
    if callout.enabled {
        let (issuer, xkey) = (callout.issuer_seed.expose(), callout.xkey_seed.expose());
        if let Err(error) = CalloutKeys::from_seeds(issuer, xkey) {
            let name = match error {
                KeyError::Issuer => "issuer_seed",
                KeyError::XKey => "xkey_seed",
            };
            let remedy = "make both with `weir auth keys --new`, and name their files";
            s.refuse(name, error.to_string(), remedy);
        }
        let mut users = callout.static_users.iter();
        if let Some(user) = users.find(|user| user.contains(':')) {
            s.refuse(
                "static_users",
                format!(
                    "{user:?} has a colon, as only users with a token have in nats-server's list"
                ),
                "give it another name",
            );
        }
        if callout.account.is_empty() {
            s.refuse("account", "it is empty", "write the account of [nats.live]");
        }
    }
    callout
}

fn read_issuer(s: &mut Section<'_>) -> Issuer {
    let issuer = Issuer {
        hmac_secret_key: Secret::new(text_or_file(s, "hmac_secret_key")),
        hmac_previous_secret_key: Secret::new(text_or_file(s, "hmac_previous_secret_key")),
        hmac_previous_secret_key_valid_until: s.int(
            "hmac_previous_secret_key_valid_until",
            0,
            0..=i64::MAX,
        ),
        rsa_public_key: pem(text_or_file(s, "rsa_public_key")),
        ecdsa_public_key: pem(text_or_file(s, "ecdsa_public_key")),
        ed25519_public_key: pem(text_or_file(s, "ed25519_public_key")),
        jwks_public_endpoint: s.string("jwks_public_endpoint", ""),
        jwks_ca_file: PathBuf::from(s.string("jwks_ca_file", "")),
        audience: s.string("audience", ""),
        issuer: s.string("issuer", ""),
        user_id_claim: s.string("user_id_claim", ""),
        allow_missing_exp: s.bool("allow_missing_exp", false),
        exp_max_ahead: s.duration("exp_max_ahead", Duration::ZERO),
    };
    if s.bool("insecure_skip_jwks_endpoint_tls_verify", false) {
        s.refuse(
            "insecure_skip_jwks_endpoint_tls_verify",
            "whoever is between could hand out keys of their own",
            "name the authority of that address in jwks_ca_file, and write false",
        );
    }
    check(s, &issuer);
    issuer
}

fn check(s: &mut Section<'_>, issuer: &Issuer) {
    for (name, error) in tokens::fixed_keys(issuer).1 {
        let remedy = match name {
            "hmac_secret_key" | "hmac_previous_secret_key" => "write a secret of 32 bytes or more",
            _ => "write the public key, as `openssl pkey -in private.pem -pubout` prints it",
        };
        s.refuse(name, error.to_string(), remedy);
    }
    if !issuer.jwks_public_endpoint.is_empty() {
        if let Err(error) = tokens::address(issuer) {
            s.refuse(
                "jwks_public_endpoint",
                error.to_string(),
                "write https://host/path, as the issuer names it",
            );
        }
        if !issuer.has_no_fixed_key() {
            s.refuse(
                "jwks_public_endpoint",
                "with it, the other keys beside it are never used",
                "remove one or the other, or give each an issuer of its own",
            );
        }
    } else if !issuer.jwks_ca_file.as_os_str().is_empty() {
        s.refuse(
            "jwks_ca_file",
            "there is no jwks_public_endpoint",
            "remove it",
        );
    }
    if issuer.user_id_claim.len() > 128 || issuer.user_id_claim.chars().any(char::is_control) {
        s.refuse(
            "user_id_claim",
            "it is no name of a claim",
            "write at most 128 characters",
        );
    }
}

/// A value, or the text of the file that `…_file` names, without the line break at its end.
pub(super) fn text_or_file(s: &mut Section<'_>, name: &str) -> String {
    let key = format!("{name}_file");
    let (text, file) = (s.string(name, ""), s.string(&key, ""));
    if file.is_empty() {
        return text;
    }
    if !text.is_empty() {
        s.refuse(&key, format!("{name} is set, too"), "remove one of the two");
    }
    match std::fs::read_to_string(&file) {
        Ok(text) if text.trim().is_empty() => {
            s.refuse(&key, format!("{file} is empty"), "write the key into it")
        }
        Ok(text) => return text.trim_end_matches(['\r', '\n']).to_owned(),
        Err(error) => {
            s.refuse(
                &key,
                format!("{file} cannot be read: {error}"),
                "name a file that this user may read",
            );
        }
    }
    String::new()
}

/// Variables often hold line breaks as `\\n`.
fn pem(text: String) -> String {
    if text.contains('\n') {
        text
    } else {
        text.replace("\\n", "\n")
    }
}

/// What is allowed, but probably not meant.
pub(super) fn warn(client: &Client, warnings: &mut Vec<String>) {
    let subscription = &client.subscription_token;
    let mut all = client.token.all("client.token");
    let apart = subscription.token.all("client.subscription_token");
    if subscription.enabled {
        all.extend(apart);
    } else if !apart.is_empty() {
        warnings.push(
            "client.subscription_token: it has keys, and enabled = false, so client.token verifies subscription tokens"
                .into(),
        );
    }
    for (table, issuer) in all {
        for (key, secret) in [
            ("hmac_secret_key", &issuer.hmac_secret_key),
            ("hmac_previous_secret_key", &issuer.hmac_previous_secret_key),
        ] {
            if !secret.is_empty() && secret.expose().len() < 32 {
                warnings.push(format!(
                    "{table}.{key}: shorter than 32 bytes, so it can be guessed from a token"
                ));
            }
        }
        if !issuer.hmac_previous_secret_key.is_empty()
            && issuer.hmac_previous_secret_key_valid_until == 0
        {
            warnings.push(format!(
                "{table}.hmac_previous_secret_key: it is taken for ever; set hmac_previous_secret_key_valid_until"
            ));
        }
        if issuer.allow_missing_exp {
            warnings.push(format!(
                "{table}.allow_missing_exp: a token without exp that leaks is good for ever"
            ));
        }
        if tokens::address(issuer).is_ok_and(|address| address.is_open_to_others()) {
            warnings.push(format!(
                "{table}.jwks_public_endpoint: over plain HTTP, whoever is between can hand out keys of their own"
            ));
        }
    }
}
