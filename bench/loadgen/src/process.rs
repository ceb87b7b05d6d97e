//! Knows: what a process has used, CPU seconds and resident memory, from /proc. Never: loads.

use anyhow::{Context, Result};

/// A process to watch, given as `PID` or `PID:name`.
#[derive(Clone)]
pub struct Watched {
    pub pid: u32,
    pub name: String,
}

impl std::str::FromStr for Watched {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Self> {
        let (pid, name) = s.split_once(':').unwrap_or((s, s));
        Ok(Self {
            pid: pid.parse().context("pid")?,
            name: name.to_owned(),
        })
    }
}

impl Watched {
    /// CPU seconds used so far, user and system, all threads.
    pub fn cpu_s(&self) -> Result<f64> {
        cpu_s(&self.pid.to_string())
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .context("process is gone")?;
        let line = status
            .lines()
            .find(|l| l.starts_with("VmRSS:"))
            .context("no VmRSS")?;
        Ok(line
            .split_whitespace()
            .nth(1)
            .context("no value")?
            .parse()?)
    }
}

/// CPU seconds of the generator itself.
pub fn own_cpu_s() -> Result<f64> {
    cpu_s("self")
}

fn cpu_s(pid: &str) -> Result<f64> {
    const TICKS_PER_S: f64 = 100.0; // USER_HZ, fixed by the Linux ABI
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("process is gone")?;
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .context("stat")?
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / TICKS_PER_S)
}
