//! Knows: whether the process of a pid file is a nats-server of this data folder, and how to end it.
//! Never: a process that does not run on our configuration file.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::time::{Instant, sleep};

const POLL: Duration = Duration::from_millis(20);

/// The nats-server that an earlier Weir left running on `conf`, if there is one.
pub(super) fn find(pid_file: &Path, conf: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(pid_file).ok()?;
    let pid = Pid::from_raw(text.trim().parse().ok()?)?;
    (is_alive(pid) && arguments(pid).is_some_and(|args| args.contains(&*conf.to_string_lossy())))
        .then_some(pid)
}

/// Asks it to end; after `patience` ends it. `false`: it is still there.
pub(super) async fn stop(pid: Pid, patience: Duration) -> bool {
    for signal in [Signal::TERM, Signal::KILL] {
        if let Err(error) = kill_process(pid, signal) {
            tracing::debug!(%error, pid = pid.as_raw_nonzero(), "signal not delivered");
        }
        let deadline = Instant::now() + patience;
        while is_alive(pid) {
            if Instant::now() > deadline {
                break;
            }
            sleep(POLL).await;
        }
    }
    !is_alive(pid)
}

fn is_alive(pid: Pid) -> bool {
    // A zombie whose parent does not wait holds neither files nor ports.
    test_kill_process(pid).is_ok() && !is_zombie(pid)
}

fn is_zombie(pid: Pid) -> bool {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    // pid (name) state …; a name may hold anything, so look behind its last parenthesis.
    std::fs::read_to_string(path).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}

fn arguments(pid: Pid) -> Option<String> {
    if let Ok(bytes) = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) {
        return Some(String::from_utf8_lossy(&bytes).replace('\0', " "));
    }
    // No /proc: macOS and the BSDs.
    let output = std::process::Command::new("ps")
        .args(["-o", "args=", "-p", &pid.as_raw_nonzero().to_string()])
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
