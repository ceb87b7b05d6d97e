//! Knows: the name of our nats-server, its users' passwords and the callout's seeds, made once and kept in the data folder (0600).
//! Never: prints one, except those that equal a demo user's name.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};
use weir_nats::callout::CalloutKeys;

use crate::config::Secret;

/// What is kept.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    server_name: String,
    weir: String,
    weir_read: String,
    weir_door: String,
    sys: String,
    ops: String,
    bot: String,
    dev1: String,
    // A data folder of before the auth callout has none of these yet.
    #[serde(default)]
    backend: String,
    #[serde(default)]
    weir_auth: String,
    #[serde(default)]
    weir_kick: String,
    #[serde(default)]
    auth_issuer_seed: String,
    #[serde(default)]
    auth_xkey_seed: String,
    #[serde(default)]
    token_secret: String,
}

/// The users of our nats-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passwords {
    /// `weir-` and eight hex digits: tells our server from another's.
    pub server_name: String,
    /// Live connection.
    pub weir: Secret,
    /// Reads connection.
    pub weir_read: Secret,
    /// Door connection.
    pub weir_door: Secret,
    /// System account.
    pub sys: Secret,
    /// Operator.
    pub ops: Secret,
    /// A bot.
    pub bot: Secret,
    /// A device.
    pub dev1: Secret,
    /// The application's services, which decide where they are asked.
    pub backend: Secret,
    /// Answers the auth callout.
    pub weir_auth: Secret,
    /// Counts and ends connections.
    pub weir_kick: Secret,
    /// What the callout signs with.
    pub auth_issuer_seed: Secret,
    /// What requests to the callout are sealed for.
    pub auth_xkey_seed: Secret,
    /// Signs tokens for trying things out, where the configuration has no key at all.
    pub token_secret: Secret,
}

impl Passwords {
    /// Reads them, or makes them at the first start. With `demo` the four demo users have their names.
    ///
    /// # Errors
    /// The file cannot be read, written or understood.
    pub fn load_or_make(path: &Path, demo: bool) -> std::io::Result<Self> {
        let mut kept = match std::fs::read(path) {
            Ok(bytes) => {
                std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
                serde_json::from_slice(&bytes).map_err(std::io::Error::other)?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make()?,
            Err(error) => return Err(error),
        };
        complete(&mut kept)?;
        write(path, &kept)?;
        Ok(Self::new(kept, demo))
    }

    /// Reads them; `None` where no `weir up` has run yet.
    ///
    /// # Errors
    /// The file is there and cannot be read or understood.
    pub fn load(path: &Path, demo: bool) -> std::io::Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(bytes) => {
                let kept = serde_json::from_slice(&bytes).map_err(std::io::Error::other)?;
                Ok(Some(Self::new(kept, demo)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn new(kept: Kept, demo: bool) -> Self {
        let shown =
            |name: &str, made: String| Secret::new(if demo { name.to_owned() } else { made });
        Self {
            server_name: kept.server_name,
            weir: Secret::new(kept.weir),
            weir_read: Secret::new(kept.weir_read),
            weir_door: Secret::new(kept.weir_door),
            sys: Secret::new(kept.sys),
            ops: shown("ops", kept.ops),
            bot: shown("bot", kept.bot),
            dev1: shown("dev1", kept.dev1),
            backend: shown("backend", kept.backend),
            weir_auth: Secret::new(kept.weir_auth),
            weir_kick: Secret::new(kept.weir_kick),
            auth_issuer_seed: Secret::new(kept.auth_issuer_seed),
            auth_xkey_seed: Secret::new(kept.auth_xkey_seed),
            token_secret: Secret::new(kept.token_secret),
        }
    }
}

fn make() -> std::io::Result<Kept> {
    Ok(Kept {
        server_name: format!("weir-{}", random_hex(4)?),
        weir: random_hex(24)?,
        weir_read: random_hex(24)?,
        weir_door: random_hex(24)?,
        sys: random_hex(24)?,
        ops: random_hex(12)?,
        bot: random_hex(12)?,
        dev1: random_hex(12)?,
        backend: String::new(),
        weir_auth: String::new(),
        weir_kick: String::new(),
        auth_issuer_seed: String::new(),
        auth_xkey_seed: String::new(),
        token_secret: String::new(),
    })
}

/// Makes what is not there yet.
fn complete(kept: &mut Kept) -> std::io::Result<()> {
    let passwords = [
        &mut kept.backend,
        &mut kept.weir_auth,
        &mut kept.weir_kick,
        &mut kept.token_secret,
    ];
    for password in passwords {
        if password.is_empty() {
            *password = random_hex(24)?;
        }
    }
    if kept.auth_issuer_seed.is_empty() || kept.auth_xkey_seed.is_empty() {
        (kept.auth_issuer_seed, kept.auth_xkey_seed) = CalloutKeys::new_seeds();
    }
    Ok(())
}

fn write(path: &Path, kept: &Kept) -> std::io::Result<()> {
    let bytes = serde_json::to_vec_pretty(kept).map_err(std::io::Error::other)?;
    if std::fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    // Under another name first: a half-written file would lock us out of our own server.
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)
}

fn random_hex(bytes: usize) -> std::io::Result<String> {
    let mut buffer = vec![0_u8; bytes];
    getrandom::fill(&mut buffer).map_err(std::io::Error::other)?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}
