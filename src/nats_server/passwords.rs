//! Knows: the name of our nats-server and its users' passwords, made once and kept in the data folder (0600).
//! Never: prints one, except those that equal a demo user's name.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

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
}

impl Passwords {
    /// Reads them, or makes them at the first start. With `demo` the three demo users have their names.
    ///
    /// # Errors
    /// The file cannot be read, written or understood.
    pub fn load_or_make(path: &Path, demo: bool) -> std::io::Result<Self> {
        let kept = match std::fs::read(path) {
            Ok(bytes) => {
                std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
                serde_json::from_slice(&bytes).map_err(std::io::Error::other)?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(path)?,
            Err(error) => return Err(error),
        };
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
        }
    }
}

fn make(path: &Path) -> std::io::Result<Kept> {
    let kept = Kept {
        server_name: format!("weir-{}", random_hex(4)?),
        weir: random_hex(24)?,
        weir_read: random_hex(24)?,
        weir_door: random_hex(24)?,
        sys: random_hex(24)?,
        ops: random_hex(12)?,
        bot: random_hex(12)?,
        dev1: random_hex(12)?,
    };
    let bytes = serde_json::to_vec_pretty(&kept).map_err(std::io::Error::other)?;
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
    std::fs::rename(&draft, path)?;
    Ok(kept)
}

fn random_hex(bytes: usize) -> std::io::Result<String> {
    let mut buffer = vec![0_u8; bytes];
    getrandom::fill(&mut buffer).map_err(std::io::Error::other)?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}
