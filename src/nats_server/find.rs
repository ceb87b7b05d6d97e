//! Knows: where a nats-server program may be, and which versions Weir can use.
//! Never: starts a server.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A version of nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// Atomic batches and first sequences as Weir needs them work from here on.
pub const MIN_VERSION: Version = Version(2, 14, 3);

impl Version {
    /// Reads `2.15.2`, `v2.15.2` or `2.15.2-RC.1`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let numbers = text.split(['-', '+']).next()?;
        let mut parts = numbers.split('.').map(str::parse);
        let version = Self(
            parts.next()?.ok()?,
            parts.next()?.ok()?,
            parts.next().unwrap_or(Ok(0)).ok()?,
        );
        parts.next().is_none().then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// No nats-server that Weir can use.
#[derive(Debug, thiserror::Error)]
#[error(
    "no nats-server {MIN_VERSION} or newer was found{looked}; run scripts/get-nats-server.sh, or set \
     WEIR_NATS_SERVER to the program"
)]
pub struct NotFound {
    looked: String,
}

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// What it says it is.
    pub version: Version,
}

/// Looks at `configured` alone if it is not empty, else at `WEIR_NATS_SERVER` alone if it is set, else at each
/// folder of `PATH` and at `.tools/bin`.
///
/// # Errors
/// None is there, or those that are there are too old.
pub fn find(configured: &Path) -> Result<Program, NotFound> {
    let mut looked = String::new();
    for path in candidates(configured) {
        match version_of(&path) {
            Ok(version) if version >= MIN_VERSION => {
                // It is started later, perhaps from another folder.
                let path = path.canonicalize().unwrap_or(path);
                return Ok(Program { path, version });
            }
            Ok(version) => looked.push_str(&format!(" ({} is {version})", path.display())),
            Err(problem) => looked.push_str(&format!(" ({}: {problem})", path.display())),
        }
    }
    Err(NotFound { looked })
}

fn candidates(configured: &Path) -> Vec<PathBuf> {
    if !configured.as_os_str().is_empty() {
        return vec![configured.to_owned()];
    }
    if let Some(path) = std::env::var_os("WEIR_NATS_SERVER").filter(|path| !path.is_empty()) {
        return vec![PathBuf::from(path)];
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from(".tools/bin")])
        .map(|folder| folder.join("nats-server"))
        .filter(|program| program.is_file())
        .collect()
}

fn version_of(program: &Path) -> Result<Version, String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .find_map(|word| Version::parse(word).filter(|_| word.contains('.')))
        .ok_or_else(|| "it does not tell its version".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let table = [
            ("2.15.2", Some(Version(2, 15, 2))),
            ("v2.14.3", Some(Version(2, 14, 3))),
            ("2.15.0-RC.1", Some(Version(2, 15, 0))),
            ("2.15", Some(Version(2, 15, 0))),
            ("", None),
            ("two", None),
            ("2.15.2.1", None),
        ];
        for (text, expected) in table {
            assert_eq!(Version::parse(text), expected, "{text}");
        }
        assert!(Version(2, 14, 2) < MIN_VERSION && Version(2, 15, 0) > MIN_VERSION);
    }
}
