//! Knows: that equal questions which are asked at once can share an answer. Never: what is asked.
//!
//! An answer is only shared with those who asked *before* it was begun: whoever asks while one is
//! under way gets the next, so that nobody misses what was acknowledged before they asked. So a
//! thousand equal questions at once are two answers.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};

type Flight<V> = Shared<BoxFuture<'static, V>>;

/// Questions that are being answered. Cheap to clone.
pub(super) struct Flights<K, V>(Arc<Mutex<HashMap<K, Line<V>>>>);

/// One question.
struct Line<V> {
    /// It is being answered, or was a moment ago.
    current: Flight<V>,
    /// What begins when `current` has ended.
    next: Option<Flight<V>>,
    /// Who waits for either. The line goes with the last of them.
    waiting: usize,
}

impl<K, V> Clone for Flights<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> std::fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

/// One who waits.
struct Waiting<K: Eq + Hash, V> {
    flights: Flights<K, V>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Waiting<K, V> {
    fn drop(&mut self) {
        let mut lines = self.flights.lines();
        if let Some(line) = lines.get_mut(&self.key) {
            line.waiting -= 1;
            if line.waiting == 0 {
                lines.remove(&self.key);
            }
        }
    }
}

impl<K, V> Flights<K, V> {
    fn lines(&self) -> MutexGuard<'_, HashMap<K, Line<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The answer to `key`, and whether it was another's: from `answer`, or from an equal question's
    /// that begins after this call. Dropping it drops one waiter; the answer is worked on as long as
    /// anyone waits.
    pub(super) async fn ask(
        &self,
        key: K,
        answer: impl FnOnce() -> BoxFuture<'static, V>,
    ) -> (V, bool) {
        let (flight, joined) = self.join(&key, answer);
        let _waiting = Waiting {
            flights: self.clone(),
            key,
        };
        (flight.await, joined)
    }

    fn join(&self, key: &K, answer: impl FnOnce() -> BoxFuture<'static, V>) -> (Flight<V>, bool) {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(key) else {
            let current = answer().shared();
            let line = Line {
                current: current.clone(),
                next: None,
                waiting: 1,
            };
            lines.insert(key.clone(), line);
            return (current, false);
        };
        line.waiting += 1;
        if let Some(next) = &line.next {
            return (next.clone(), true);
        }
        let before = line.current.clone();
        let (flights, key, answer) = (self.clone(), key.clone(), answer());
        let next = async move {
            before.await;
            flights.begin_next(&key);
            answer.await
        };
        let next = next.boxed().shared();
        line.next = Some(next.clone());
        (next, false)
    }

    /// From here on, who asks does not get the answer that begins now.
    fn begin_next(&self, key: &K) {
        let mut lines = self.lines();
        if let Some(line) = lines.get_mut(key)
            && let Some(next) = line.next.take()
        {
            line.current = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[derive(Clone)]
    struct Source {
        flights: Flights<&'static str, (u32, Instant)>,
        begun: Arc<AtomicU32>,
    }

    impl Source {
        fn new() -> Self {
            Self {
                flights: Flights::default(),
                begun: Arc::default(),
            }
        }

        /// Which answer, and when it was begun; each takes a second.
        async fn ask(&self) -> (u32, Instant) {
            let begun = Arc::clone(&self.begun);
            let answer = || {
                async move {
                    let (nth, at) = (begun.fetch_add(1, Ordering::SeqCst), Instant::now());
                    sleep(Duration::from_secs(1)).await;
                    (nth, at)
                }
                .boxed()
            };
            self.flights.ask("page", answer).await.0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_at_once_are_two_answers_and_none_began_before_it_was_asked_for() {
        let source = Source::new();
        let asks = (0..1_000_u64).map(|n| {
            let source = source.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(n % 500)).await;
                let asked = Instant::now();
                let (_, begun) = source.ask().await;
                assert!(begun >= asked, "an answer that may lack what came before");
            })
        });
        for ask in asks.collect::<Vec<_>>() {
            ask.await.unwrap();
        }
        assert_eq!(source.begun.load(Ordering::SeqCst), 2);
        assert!(source.flights.lines().is_empty(), "nothing is kept");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_takes_nobodys_answer_along() {
        let source = Source::new();
        let within = Duration::from_millis(100);
        let (first, second, third) = tokio::join!(
            tokio::time::timeout(within, source.ask()),
            tokio::time::timeout(within, source.ask()),
            source.ask(),
        );
        assert!(first.is_err() && second.is_err());
        assert_eq!(third.0, 1, "the second answer");
        assert!(tokio::time::timeout(within, source.ask()).await.is_err());
        assert!(source.flights.lines().is_empty(), "nothing is kept");
        assert_eq!(source.ask().await.0, 3);
    }
}
