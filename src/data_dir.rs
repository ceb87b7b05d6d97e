//! Knows: the data folder: that it is ours alone, and that one Weir at a time uses it.
//! Never: what is kept in it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It cannot be made or written.
    #[error("the data folder {path} cannot be used: {source}; give another with --data", path = path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another Weir has it.
    #[error("the data folder {path} is in use by another Weir{holder}; stop that one, or give another folder with --data", path = path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// ` (process 123)` or nothing.
        holder: String,
    },
}

/// A data folder that this process holds. It is free again when this value is dropped or the process ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the folder if needed (mode 0700), and takes it.
    ///
    /// # Errors
    /// It cannot be used, or another process has it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        // nats-server is started with these paths, and may not depend on where we were started.
        let path = path.canonicalize().map_err(failed)?;
        let lock_path = path.join("weir.lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path)
            .map_err(failed)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut text = String::new();
            let holder = match lock.read_to_string(&mut text) {
                Ok(_) if !text.trim().is_empty() => format!(" (process {})", text.trim()),
                _ => String::new(),
            };
            return Err(DataDirError::InUse { path, holder });
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
