//! Knows: what waits for one stream and what is on its way, and how each is answered once and in
//! time. Never: NATS.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Done, Outcome, Outgoing, Refusal};
use crate::subject::RoomName;

/// Messages of one atomic batch that the server takes.
const BATCH_MAX_MESSAGES: usize = 1_000;
/// Bytes of one atomic batch.
const BATCH_MAX_BYTES: usize = 1 << 20;
/// One outage must not count as the time that a round takes.
const ROUND_MAX: Duration = Duration::from_millis(500);
/// What a message takes beside its payload and subject, about.
const OVERHEAD_BYTES: usize = 400;

/// What may wait for one stream, and how much goes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishLimits {
    /// Bytes that may wait for one stream; beyond it a message is refused as busy.
    pub queue_max_bytes: usize,
    /// Expected wait beyond which a message is refused as busy. Below [`super::ANSWER_WITHIN`].
    pub expected_wait_max: Duration,
    /// Messages of one atomic batch: 1 to 1,000, which is the server's own limit.
    pub batch_max_messages: usize,
}

impl Default for PublishLimits {
    fn default() -> Self {
        Self {
            queue_max_bytes: 32 << 20,
            expected_wait_max: Duration::from_secs(3),
            batch_max_messages: BATCH_MAX_MESSAGES,
        }
    }
}

/// One message in the publisher.
pub(super) struct Ticket {
    pub(super) room: RoomName,
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) author_user: String,
    pub(super) data: Bytes,
    pub(super) id: String,
    pub(super) keyed: bool,
    pub(super) deadline: Instant,
    state: Mutex<State>,
}

struct State {
    /// Taken by the one who answers.
    done: Option<Done>,
    /// Set before the first byte of it may be sent, unset when it surely was not stored.
    sent: bool,
    /// Set once the caller has heard.
    told: bool,
}

impl Ticket {
    pub(super) fn new(
        subject: String,
        headers: HeaderMap,
        id: String,
        deadline: Instant,
        outgoing: Outgoing,
    ) -> Self {
        let state = State {
            done: Some(outgoing.done),
            sent: false,
            told: false,
        };
        Self {
            room: outgoing.room,
            subject,
            headers,
            author_user: outgoing.author.user,
            data: outgoing.data,
            id,
            keyed: outgoing.key.is_some(),
            deadline,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the caller, unless it was told.
    pub(super) fn answer(&self, outcome: Outcome) {
        let done = self.state().done.take();
        if let Some(done) = done {
            done(outcome);
            self.state().told = true;
        }
    }

    /// True if it may be sent now. One that was answered is never sent (again): its caller was told
    /// that it is not stored, or nothing, and may have sent it anew.
    pub(super) fn claim(&self) -> bool {
        let mut state = self.state();
        state.sent |= state.done.is_some();
        state.done.is_some()
    }

    /// It is surely not stored.
    pub(super) fn unclaim(&self) {
        self.state().sent = false;
    }

    pub(super) fn is_answered(&self) -> bool {
        self.state().done.is_none()
    }

    /// True once the caller's `done` has returned.
    pub(super) fn is_told(&self) -> bool {
        self.state().told
    }

    /// Answers it if its time is up: what was never sent is refused, what was sent is unknown.
    fn expire(&self) {
        let (done, sent) = {
            let mut state = self.state();
            (state.done.take(), state.sent)
        };
        if let Some(done) = done {
            done(if sent {
                Outcome::Unknown
            } else {
                not_sent("it could not be sent in time")
            });
            self.state().told = true;
        }
    }

    fn len(&self) -> usize {
        self.data.len() + self.subject.len() + OVERHEAD_BYTES
    }
}

impl Drop for Ticket {
    /// Also when the process ends, every caller hears something true.
    fn drop(&mut self) {
        self.expire();
    }
}

pub(super) fn not_sent(why: &str) -> Outcome {
    Outcome::Refused(Refusal::NotSent(why.to_owned()))
}

/// The queue of one slot. One task sends from it, another answers what is late.
pub(super) struct SlotQueue {
    inner: Mutex<Inner>,
    /// For the sender.
    added: Notify,
    /// For the one who answers what is late.
    filled: Notify,
}

struct Inner {
    limits: PublishLimits,
    waiting: VecDeque<Arc<Ticket>>,
    waiting_bytes: usize,
    /// Sent, and their fate not known.
    in_flight: Vec<Arc<Ticket>>,
    in_flight_since: Option<Instant>,
    /// How long a round takes, smoothed.
    round: Duration,
}

impl SlotQueue {
    pub(super) fn new(limits: PublishLimits) -> Self {
        let limits = PublishLimits {
            batch_max_messages: limits.batch_max_messages.clamp(1, BATCH_MAX_MESSAGES),
            ..limits
        };
        let inner = Inner {
            limits,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: Vec::new(),
            in_flight_since: None,
            round: Duration::ZERO,
        };
        Self {
            inner: Mutex::new(inner),
            added: Notify::new(),
            filled: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message behind the others, or gives it back if it would wait too long.
    pub(super) fn push(&self, ticket: Arc<Ticket>, now: Instant) -> Result<(), Arc<Ticket>> {
        let mut inner = self.inner();
        let bytes = ticket.len();
        if inner.waiting_bytes + bytes > inner.limits.queue_max_bytes
            || inner.expected_wait(now) > inner.limits.expected_wait_max
        {
            return Err(ticket);
        }
        inner.waiting_bytes += bytes;
        inner.waiting.push_back(ticket);
        drop(inner);
        self.added.notify_one();
        self.filled.notify_one();
        Ok(())
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.inner().waiting_bytes
    }

    /// What was taken and not let go yet.
    pub(super) fn held(&self) -> Vec<Weak<Ticket>> {
        let inner = self.inner();
        let held = inner.in_flight.iter().chain(&inner.waiting);
        held.map(Arc::downgrade).collect()
    }

    /// What goes together next, once there is something.
    pub(super) async fn next_round(&self) -> VecDeque<Arc<Ticket>> {
        loop {
            let taken = self.inner().take(Instant::now());
            if !taken.is_empty() {
                return taken;
            }
            self.added.notified().await;
        }
    }

    /// The fate of the round is known.
    pub(super) fn landed(&self) {
        let mut inner = self.inner();
        let took = inner
            .in_flight_since
            .take()
            .map_or(Duration::ZERO, |since| since.elapsed());
        inner.round = (inner.round * 3 + took.min(ROUND_MAX)) / 4;
        inner.in_flight.clear();
    }

    /// Answers whatever is late, for ever. Sleeps while nothing is there.
    pub(super) async fn answer_late(&self) {
        loop {
            let now = Instant::now();
            let (late, next) = self.inner().take_late(now);
            for ticket in late {
                ticket.expire();
            }
            match next {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => self.filled.notified().await,
            }
        }
    }
}

impl Inner {
    fn expected_wait(&self, now: Instant) -> Duration {
        let in_flight = self
            .in_flight_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let rounds = self.waiting.len() / self.limits.batch_max_messages;
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
        in_flight + self.round.saturating_mul(rounds)
    }

    /// Up to a batch; a message with a caller's key goes alone, as it may be a duplicate.
    fn take(&mut self, now: Instant) -> VecDeque<Arc<Ticket>> {
        let (mut taken, mut bytes) = (VecDeque::new(), 0);
        let mut is_keyed = false;
        while let Some(next) = self.waiting.front() {
            let is_full = taken.len() >= self.limits.batch_max_messages
                || bytes + next.len() > BATCH_MAX_BYTES;
            if !taken.is_empty() && (is_full || is_keyed || next.keyed) {
                break;
            }
            is_keyed = next.keyed;
            bytes += next.len();
            taken.extend(self.waiting.pop_front());
        }
        self.waiting_bytes -= bytes;
        if !taken.is_empty() {
            self.in_flight = taken.iter().map(Arc::clone).collect();
            self.in_flight_since = Some(now);
        }
        taken
    }

    /// What is late, and when the next will be. What waits is taken out; what is on its way stays
    /// until its fate is known.
    fn take_late(&mut self, now: Instant) -> (Vec<Arc<Ticket>>, Option<Instant>) {
        let is_late = |ticket: &Arc<Ticket>| ticket.deadline <= now;
        let mut late: Vec<Arc<Ticket>> = Vec::new();
        let mut next = None;
        for ticket in &self.in_flight {
            if is_late(ticket) {
                late.push(Arc::clone(ticket));
            } else {
                next = Some(ticket.deadline);
                break;
            }
        }
        while self.waiting.front().is_some_and(is_late) {
            if let Some(ticket) = self.waiting.pop_front() {
                self.waiting_bytes -= ticket.len();
                late.push(ticket);
            }
        }
        let next = next.or_else(|| self.waiting.front().map(|ticket| ticket.deadline));
        (late, next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::message::{Author, Door};

    fn ticket(id: &str, keyed: bool, deadline: Instant) -> (Arc<Ticket>, Told) {
        let told = Told::default();
        let tell = Arc::clone(&told);
        let outgoing = Outgoing {
            room: RoomName::parse("chat:lobby").unwrap(),
            log: "rooms".into(),
            author: Author {
                user: String::new(),
                client: String::new(),
                info: None,
                door: Door::Socket,
            },
            tags: BTreeMap::new(),
            data: Bytes::new(),
            key: keyed.then(String::new),
            done: Box::new(move |outcome| tell.lock().unwrap().push(outcome)),
        };
        let ticket = Ticket::new("s".into(), HeaderMap::new(), id.into(), deadline, outgoing);
        (Arc::new(ticket), told)
    }

    type Told = Arc<Mutex<Vec<Outcome>>>;

    fn queue_of(ids: &[(&str, bool)], deadline: Instant) -> SlotQueue {
        let queue = SlotQueue::new(PublishLimits::default());
        for (id, keyed) in ids {
            let pushed = queue.push(ticket(id, *keyed, deadline).0, Instant::now());
            assert!(pushed.is_ok());
        }
        queue
    }

    fn round(queue: &SlotQueue) -> Vec<String> {
        let taken = queue.inner().take(Instant::now());
        taken.iter().map(|ticket| ticket.id.clone()).collect()
    }

    #[test]
    fn callers_keys_go_alone_and_in_order() {
        let later = Instant::now() + Duration::from_secs(9);
        let ids = [
            ("a", false),
            ("b", false),
            ("k", true),
            ("l", true),
            ("c", false),
        ];
        let queue = queue_of(&ids, later);
        assert_eq!(round(&queue), ["a", "b"]);
        assert_eq!(round(&queue), ["k"]);
        assert_eq!(round(&queue), ["l"]);
        assert_eq!(round(&queue), ["c"]);
        assert!(round(&queue).is_empty());
        assert_eq!(queue.waiting_bytes(), 0);
    }

    #[test]
    fn a_batch_is_bounded() {
        let later = Instant::now() + Duration::from_secs(9);
        let ids = vec![("a", false); BATCH_MAX_MESSAGES + 1];
        let queue = queue_of(&ids, later);
        assert_eq!(round(&queue).len(), BATCH_MAX_MESSAGES);
        assert_eq!(round(&queue).len(), 1);
    }

    #[test]
    fn limits_are_those_given() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let queue = SlotQueue::new(PublishLimits {
            queue_max_bytes: 3 * (OVERHEAD_BYTES + 1),
            batch_max_messages: 2,
            ..PublishLimits::default()
        });
        for taken in [true, true, true, false] {
            let pushed = queue.push(ticket("a", false, later).0, now);
            assert_eq!(pushed.is_ok(), taken);
        }
        assert_eq!(round(&queue).len(), 2);
        assert_eq!(round(&queue).len(), 1);
    }

    #[test]
    fn what_is_late_is_answered_once_and_truly() {
        let now = Instant::now();
        let queue = SlotQueue::new(PublishLimits::default());
        let (first, first_told) = ticket("a", false, now);
        let (second, second_told) = ticket("b", true, now);
        assert!(queue.push(first, now).is_ok());
        assert!(queue.push(second, now).is_ok());
        let taken = queue.inner().take(now);
        assert!(taken[0].claim());
        let (late, next) = queue.inner().take_late(now);
        assert_eq!((late.len(), next), (2, None));
        late.iter().for_each(|ticket| ticket.expire());
        assert_eq!(*first_told.lock().unwrap(), [Outcome::Unknown]);
        assert_eq!(
            *second_told.lock().unwrap(),
            [not_sent("it could not be sent in time")]
        );
        assert!(!late[1].claim(), "what was refused is never sent");
        drop((late, taken));
        queue.landed();
        assert_eq!(first_told.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_long_wait_is_refused() {
        let start = Instant::now();
        let later = start + Duration::from_secs(9);
        let queue = queue_of(&[("a", false)], later);
        assert_eq!(queue.inner().take(start).len(), 1);
        let wait_max = PublishLimits::default().expected_wait_max;
        let now = start + wait_max + Duration::from_millis(1);
        assert!(queue.push(ticket("b", false, later).0, now).is_err());
        queue.landed();
        assert!(queue.push(ticket("c", false, later).0, now).is_ok());
    }
}
