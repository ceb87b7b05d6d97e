//! Knows: `weir auth`: what a token may do at both doors, and the keys of the auth callout. Never: prints a token or a
//! seed.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;
use weir_authz::callout::verified;
use weir_authz::capability::Scope;
use weir_authz::render::render;
use weir_authz::{Action, Claims, Grants, NamespaceRules};
use weir_nats::RoomName;
use weir_nats::callout::CalloutKeys;

use crate::cli::Common;
use crate::config::Config;
use crate::nats_server::{Files, Passwords};
use crate::roles::{all_rules, static_users};
use crate::tokens;

const ACTIONS: [(Action, &str); 4] = [
    (Action::Subscribe, "subscribe"),
    (Action::Publish, "publish"),
    (Action::History, "history"),
    (Action::Presence, "presence"),
];

/// What is asked about tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    /// Say what a token may do over a socket, and over NATS and MQTT
    Permissions(PermissionsArgs),
    /// Print the public keys of the auth callout, for auth_callout in nats-server's configuration
    Keys(KeysArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PermissionsArgs {
    #[command(flatten)]
    common: Common,
    /// The token; `-` reads it from standard input
    #[arg(long)]
    token: String,
}

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(flatten)]
    common: Common,
    /// Make new seeds in this folder first: issuer.seed and xkey.seed
    #[arg(long, value_name = "FOLDER")]
    new: Option<PathBuf>,
}

impl AuthCommand {
    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::Permissions(args) => &args.common,
            Self::Keys(args) => &args.common,
        }
    }

    /// Runs it, and returns what to print.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub(crate) async fn run(&self, config: Config) -> Result<String, String> {
        match self {
            Self::Permissions(args) => {
                let token = match args.token.as_str() {
                    "-" => std::io::read_to_string(std::io::stdin()),
                    token => Ok(token.to_owned()),
                };
                let token = token.map_err(|error| format!("standard input: {error}"))?;
                permissions(with_own_secret(config)?, token.trim()).await
            }
            Self::Keys(args) => keys(&config, args.new.as_deref()),
        }
    }
}

/// Without a key of its own, the one that `weir up` made for this data folder.
///
/// # Errors
/// When its file is there and cannot be read.
pub(crate) fn with_own_secret(mut config: Config) -> Result<Config, String> {
    if config.client.token.all("").is_empty()
        && let Some(kept) = kept(&config)?
    {
        config.client.token.own.hmac_secret_key = kept.token_secret;
    }
    Ok(config)
}

fn kept(config: &Config) -> Result<Option<Passwords>, String> {
    let path = Files::new(&config.data_dir).passwords();
    Passwords::load(&path, config.nats_server.demo_users)
        .map_err(|error| format!("{}: {error}", path.display()))
}

async fn permissions(config: Config, token: &str) -> Result<String, String> {
    let (verifier, fetchers) = tokens::verifier(&config).map_err(|error| error.to_string())?;
    let stop = CancellationToken::new();
    for fetcher in fetchers {
        tokio::spawn(fetcher.run(stop.clone()));
    }
    let claims = verified(&verifier, token).await;
    stop.cancel();
    let claims = claims.map_err(|error| format!("the token is not accepted: {error}"))?;
    let rules = all_rules(&config);
    let mut text = String::new();
    let written = describe(&mut text, &config, &claims, &rules);
    debug_assert!(written.is_ok(), "a String takes all");
    Ok(text)
}

fn describe(
    text: &mut String,
    config: &Config,
    claims: &Claims,
    rules: &[(Option<String>, NamespaceRules)],
) -> std::fmt::Result {
    writeln!(text, "user     {:?}", claims.user)?;
    let id = claims.token_id.as_deref().unwrap_or_default();
    writeln!(text, "token    {id:?}")?;
    match claims.expires_at_s {
        Some(at) => writeln!(text, "until    {at} (seconds since 1970)")?,
        None => writeln!(text, "until    it never expires")?,
    }
    writeln!(text, "\nover a socket (what subscribers may do included)")?;
    let grants = Grants::of(claims, config.client.insecure);
    for (namespace, rules) in rules {
        let (prefix, shown) = match namespace {
            Some(name) => (format!("{name}:"), format!("{name}:…")),
            None => (String::new(), "rooms without a namespace".to_owned()),
        };
        // Any room without marks stands for all.
        if let Ok(room) = RoomName::parse(&format!("{prefix}x")) {
            let unnamed = without_rooms(claims);
            let wide = Grants::of(&unnamed, config.client.insecure);
            line(text, &shown, &wide, &room, rules)?;
        }
    }
    for capability in &claims.capabilities {
        if let Scope::Room(room) = &capability.scope {
            let rules = rules
                .iter()
                .find(|(name, _)| name.as_deref() == room.namespace());
            match rules {
                Some((_, rules)) if !rules.takes(room) => {
                    writeln!(text, "  {:?}: no name for channel_regex", room.channel())?;
                }
                Some((_, rules)) => line(text, room.channel(), &grants, room, rules)?,
                None => writeln!(text, "  {:?}: no such namespace", room.channel())?,
            }
        }
    }
    writeln!(text, "\nover NATS and MQTT")?;
    if claims.user.is_empty() || static_users(config).contains(&claims.user) {
        return writeln!(
            text,
            "  refused: it needs a user, and none of nats-server's configuration"
        );
    }
    let namespaces = rules.iter().map(|(name, rules)| (name.as_deref(), rules));
    let permissions = render(&Grants::of_native(claims), namespaces);
    for (side, subjects) in [
        ("publish", permissions.publish()),
        ("subscribe", permissions.subscribe()),
    ] {
        for subject in subjects {
            writeln!(text, "  {side:<10}{subject}")?;
        }
    }
    Ok(())
}

fn without_rooms(claims: &Claims) -> Claims {
    let mut wide = claims.clone();
    wide.capabilities
        .retain(|capability| matches!(capability.scope, Scope::Namespace(_)));
    wide
}

fn line(
    text: &mut String,
    shown: &str,
    grants: &Grants,
    room: &RoomName,
    rules: &NamespaceRules,
) -> std::fmt::Result {
    let may = |action, subscribed| grants.check(action, room, rules, subscribed).is_ok();
    let subscribes = may(Action::Subscribe, false);
    let all = ACTIONS
        .iter()
        .filter(|(action, _)| may(*action, subscribes));
    let all: Vec<&str> = all.map(|(_, word)| *word).collect();
    let all = if all.is_empty() {
        "nothing".to_owned()
    } else {
        all.join(", ")
    };
    let pattern = if rules.channel_regex.is_some() {
        ", where channel_regex takes the name"
    } else {
        ""
    };
    // A name may hold anything.
    let shown: String = shown.chars().flat_map(char::escape_debug).collect();
    writeln!(text, "  {shown}: {all}{pattern}")
}

fn keys(config: &Config, new: Option<&Path>) -> Result<String, String> {
    let mut text = String::new();
    let (issuer, xkey) = match new {
        Some(folder) => {
            let seeds = CalloutKeys::new_seeds();
            for (name, seed) in [("issuer", &seeds.0), ("xkey", &seeds.1)] {
                let path = folder.join(format!("{name}.seed"));
                write_secret(&path, seed)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                text.push_str(&format!(
                    "made     auth_callout.{name}_seed_file = {:?}\n",
                    path.display().to_string()
                ));
            }
            seeds
        }
        None if config.auth_callout.issuer_seed.is_empty() => {
            let kept = kept(config)?.ok_or(
                "there are no keys: give auth_callout.issuer_seed_file and xkey_seed_file, or make them with --new FOLDER",
            )?;
            (
                kept.auth_issuer_seed.expose().to_owned(),
                kept.auth_xkey_seed.expose().to_owned(),
            )
        }
        None => (
            config.auth_callout.issuer_seed.expose().to_owned(),
            config.auth_callout.xkey_seed.expose().to_owned(),
        ),
    };
    let keys = CalloutKeys::from_seeds(&issuer, &xkey).map_err(|error| error.to_string())?;
    text.push_str(&format!(
        "issuer   {}   WEIR_CONF_AUTH_ISSUER of deploy/nats.conf\nxkey     {}   WEIR_CONF_AUTH_XKEY\n",
        keys.issuer(),
        keys.xkey()
    ));
    Ok(text)
}

/// Never over one that is there.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()
}
