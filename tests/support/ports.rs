//! Knows: ports for servers that a test starts, kills and starts again. Never: servers.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::{LazyLock, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// Below the range from which outgoing connections take theirs (32768 and up on Linux): while a
/// server is down its port must not be taken by a client, least of all by one that tries to reach
/// that very port and ends up connected to itself.
const LOWEST: u64 = 10_000;
const COUNT: u64 = 22_000;

/// A port that nobody listens on, and that this process has not given away before.
pub(crate) fn free_port() -> u16 {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // Another process of the same moment starts elsewhere.
    let mut state = now.as_nanos() as u64 ^ (u64::from(std::process::id()) << 32);
    loop {
        // xorshift64 (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let port = u16::try_from(LOWEST + state % COUNT).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}
