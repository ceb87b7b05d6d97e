//! Knows: the keys of one issuer with an address: which are here, when they are fetched, who waits.
//! Never: tokens, what fetching is, another issuer's keys.
//!
//! One task fetches ([`Fetcher`]); whoever misses a key waits for a fetch that began after it asked,
//! so however many miss one, one request is made. Three bounds keep a flood of made-up names from
//! becoming requests or waits: a pause between fetches, a memory of names that were looked for in
//! vain, and no waiting just after a fetch that failed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::http::Address;
use super::jwks::KeySet;

/// Between the beginnings of two fetches.
const PAUSE: Duration = Duration::from_secs(1);
/// Of one fetch.
const TRIES: u32 = 2;
/// Without being asked, so that withdrawn keys go and an outage is survived with fresh ones.
const REFRESH_EVERY: Duration = Duration::from_secs(300);
/// The same after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(15);
/// How long keys are good without being seen again.
const KEYS_LIVE: Duration = Duration::from_secs(3_600);
/// How long a name that is no key's is answered without looking again.
const ABSENT_FOR: Duration = Duration::from_secs(10);
/// Such names; beyond it the oldest are forgotten.
const ABSENT_MAX_NAMES: u64 = 1_024;
/// How long after a failure nobody waits for another try.
const FAILED_FOR: Duration = Duration::from_millis(900);
/// Of one wait. Clients give up after 5 s.
const WAIT_WITHIN: Duration = Duration::from_millis(4_200);

/// The keys of one issuer; all clones are one.
#[derive(Clone)]
pub struct Endpoint(Arc<Shared>);

struct Shared {
    address: Address,
    state: watch::Sender<State>,
    absent: moka::sync::Cache<String, ()>,
}

#[derive(Default)]
struct State {
    keys: Arc<KeySet>,
    fetched: Option<Instant>,
    failed: Option<Instant>,
    /// Somebody misses a key, and no fetch that would tell has begun.
    wanted: bool,
    /// Fetches that began and that ended; they differ by at most one.
    began: u64,
    ended: u64,
}

impl State {
    fn is_good(&self) -> bool {
        self.fetched.is_some_and(|at| at.elapsed() < KEYS_LIVE)
    }

    fn has(&self, kid: &str) -> bool {
        self.is_good() && self.keys.has(kid)
    }

    fn has_just_failed(&self) -> bool {
        self.failed.is_some_and(|at| at.elapsed() < FAILED_FOR)
    }
}

/// What is known of a name.
pub(super) enum Found {
    /// These keys, one or more of which have it.
    Here(Arc<KeySet>),
    /// It is no key's.
    Absent,
    /// A fetch would tell.
    Unknown,
    /// A fetch would tell, and one has just failed.
    Failed,
}

impl Endpoint {
    /// The keys at an address, and what fetches them; without the latter running there are none.
    #[must_use]
    pub fn new(address: Address) -> (Self, Fetcher) {
        let shared = Arc::new(Shared {
            address,
            state: watch::Sender::new(State::default()),
            absent: moka::sync::Cache::builder()
                .max_capacity(ABSENT_MAX_NAMES)
                .time_to_live(ABSENT_FOR)
                .build(),
        });
        (Self(Arc::clone(&shared)), Fetcher(shared))
    }

    /// Asks: what is known of a name, without waiting.
    pub(super) fn find(&self, kid: &str) -> Found {
        let state = self.0.state.borrow();
        if state.has(kid) {
            Found::Here(Arc::clone(&state.keys))
        } else if self.0.absent.contains_key(kid) {
            Found::Absent
        } else if state.has_just_failed() {
            Found::Failed
        } else {
            Found::Unknown
        }
    }

    /// Fetches and shows the keys once, for `weir check`.
    ///
    /// # Errors
    /// A sentence that says why there are none.
    pub async fn look(address: &Address) -> Result<KeySet, String> {
        fetch(address).await
    }
}

/// A key that a token needs and that is not here.
#[derive(Clone)]
pub struct Wanted {
    endpoint: Endpoint,
    kid: String,
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wanted({})", self.endpoint.0.address)
    }
}

impl PartialEq for Wanted {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.endpoint.0, &other.endpoint.0) && self.kid == other.kid
    }
}

impl Eq for Wanted {}

impl Wanted {
    pub(super) fn new(endpoint: &Endpoint, kid: &str) -> Self {
        Self {
            endpoint: endpoint.clone(),
            kid: kid.to_owned(),
        }
    }

    /// Waits, at most 4.2 s, until it is here or a fetch that began after this call has ended. Verify
    /// again afterwards.
    pub async fn wait(self) {
        if tokio::time::timeout(WAIT_WITHIN, self.fetched())
            .await
            .is_err()
        {
            tracing::warn!(address = %self.endpoint.0.address, "waited too long for an issuer's keys");
        }
    }

    async fn fetched(&self) {
        let shared = &self.endpoint.0;
        let mut state = shared.state.subscribe();
        let asked_after = state.borrow().began;
        loop {
            {
                let now = state.borrow_and_update();
                if now.has(&self.kid) {
                    return;
                }
                if now.ended > asked_after {
                    if !now.has_just_failed() && now.is_good() {
                        shared.absent.insert(self.kid.clone(), ());
                    }
                    return;
                }
            }
            shared.state.send_if_modified(|state| {
                let is_first = state.began == state.ended && !state.wanted;
                state.wanted |= is_first;
                is_first
            });
            if state.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Fetches the keys of one issuer, one fetch at a time.
pub struct Fetcher(Arc<Shared>);

impl Fetcher {
    /// Runs until it is stopped: fetches at once, then now and then, and when somebody misses a key.
    pub async fn run(self, stop: CancellationToken) {
        let shared = &self.0;
        let mut state = shared.state.subscribe();
        loop {
            let began = Instant::now();
            shared.state.send_modify(|state| {
                state.wanted = false;
                state.began += 1;
            });
            tokio::select! {
                () = stop.cancelled() => return,
                result = fetch(&shared.address) => self.ended(result),
            }
            let has_failed = shared.state.borrow().failed.is_some();
            let again = if has_failed {
                RETRY_AFTER
            } else {
                REFRESH_EVERY
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(began + again) => {}
                _ = state.wait_for(|state| state.wanted) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(began + PAUSE) => {}
            }
        }
    }

    fn ended(&self, result: Result<KeySet, String>) {
        let address = &self.0.address;
        let was = self.0.state.borrow().keys.described();
        match &result {
            Ok(keys) => {
                let is = keys.described();
                if is != was {
                    // Names are the issuer's own words.
                    tracing::info!(%address, keys = ?is, "issuer's keys fetched");
                    for skipped in keys.skipped() {
                        tracing::warn!(%address, %skipped, "a key of the issuer is not used");
                    }
                }
            }
            Err(error) => tracing::warn!(%address, %error, "issuer's keys cannot be fetched"),
        }
        self.0.state.send_modify(|state| {
            state.ended = state.began;
            match result {
                Ok(keys) => {
                    // The whole set: a key that is no longer in it is no longer valid.
                    state.keys = Arc::new(keys);
                    state.fetched = Some(Instant::now());
                    state.failed = None;
                }
                Err(_) => state.failed = Some(Instant::now()),
            }
        });
    }
}

async fn fetch(address: &Address) -> Result<KeySet, String> {
    let mut last = String::new();
    for _ in 0..TRIES {
        let answer: Result<Bytes, String> = address.get().await;
        match answer {
            Ok(body) => match KeySet::read(&body) {
                // Nobody withdraws every key; something there is broken, and the old ones stay.
                Ok(keys) if keys.is_empty() => last = "it has no key that can be used".to_owned(),
                Ok(keys) => return Ok(keys),
                Err(error) => last = error.to_owned(),
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}
