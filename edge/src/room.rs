//! Knows: one room on this edge: how far it is proven whole, its ring of recent frames, its members
//! and each one's cursor. Never: a socket, a clock, a subject, NATS.
//!
//! A member is *held* from its join to its reply, then *live* or *behind*. Held and behind members
//! get no pushes: they are served from the ring or the log, in order, until they reach the head, and
//! that is the one mechanism for a join, a long recovery and a slow reader.

use std::collections::VecDeque;

use bytes::Bytes;
use weir_nats::{Epoch, Seq};

use crate::outbox::Pushed;

/// Bounds of one room's ring.
#[derive(Clone, Copy, Debug)]
pub struct RingLimits {
    /// Messages kept.
    pub ring_max_messages: usize,
    /// Bytes of encoded frames kept.
    pub ring_max_bytes: usize,
}

/// A message as members get it: encoded once, shared by all.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its offset.
    pub seq: Seq,
    /// When it was stored, in milliseconds since 1970.
    pub time_ms: i64,
    /// Its author as a number; two authors may share one.
    pub author: u64,
    /// The whole WebSocket frame of the push.
    pub frame: Bytes,
    /// The publication alone, a slice of `frame`, for replies that list publications.
    pub publication: Bytes,
}

/// Older messages of a room: all that lie in (`after`, `up_to`].
#[derive(Clone, Debug)]
pub struct Past {
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// Below the oldest.
    pub after: Seq,
    /// At or above the newest.
    pub up_to: Seq,
}

/// Names a member of a room; never reused within one room.
#[cfg_attr(test, derive(Default))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemberId {
    slot: u32,
    turn: u32,
}

/// What a live message means for the room's continuity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// At or below what the room has: already delivered.
    Known,
    /// The room had exactly what came before: deliver.
    Next,
    /// Messages up to this offset are missing: read them first.
    Gap(Seq),
    /// The header's previous is lower than what the room has, which proves nothing.
    Unproven,
}

/// Where a member stands after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has everything and gets pushes as they come.
    Live,
    /// Its outbox is full; call again when it has room.
    Full,
    /// The ring does not reach back to its cursor: read the log after it.
    Log(Seq),
    /// There is no such member, or its socket is gone.
    Gone,
}

/// What became of a page of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paged {
    /// The member has all of it.
    Taken,
    /// Its outbox took this many; offer the rest when it has room.
    Full(usize),
    /// There is no such member that is behind: it left, or its place is another's now.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    Live,
    Behind,
}

#[derive(Debug)]
struct Member<S> {
    sink: S,
    /// Nothing at or below it is handed to this member any more.
    cursor: Seq,
    state: State,
}

/// One room. `S` is whatever takes a member's frames.
#[derive(Debug)]
pub struct Room<S> {
    epoch: Epoch,
    have: Seq,
    ring: VecDeque<Entry>,
    ring_bytes: usize,
    /// Everything after this and up to `have` is in the ring.
    floor: Seq,
    limits: RingLimits,
    slots: Vec<(u32, Option<Member<S>>)>,
    free: Vec<u32>,
}

impl<S> Room<S> {
    /// A room that is whole up to `have`.
    #[must_use]
    pub fn new(epoch: Epoch, have: Seq, limits: RingLimits) -> Self {
        Self {
            epoch,
            have,
            ring: VecDeque::new(),
            ring_bytes: 0,
            floor: have,
            limits,
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Asks: the epoch.
    #[must_use]
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Asks: the offset up to which the room is whole.
    #[must_use]
    pub fn have(&self) -> Seq {
        self.have
    }

    /// Asks: bytes of frames in the ring.
    #[must_use]
    pub fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// Asks: how many members there are.
    #[must_use]
    pub fn member_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Asks: what a live message with this header means. A gap is proven by a previous
    /// *above* what the room has; one *below* proves nothing, as trimming and erasure lower it.
    #[must_use]
    pub fn step(&self, previous: Seq, seq: Seq) -> Step {
        if seq <= self.have {
            Step::Known
        } else if previous == self.have {
            Step::Next
        } else if previous > self.have {
            Step::Gap(previous)
        } else {
            Step::Unproven
        }
    }

    /// Asks: the entries after `since`, if the ring proves that there are no others.
    #[must_use]
    pub fn since(&self, since: Seq) -> Option<impl ExactSizeIterator<Item = &Entry>> {
        if since < self.floor {
            return None;
        }
        let start = self.ring.partition_point(|entry| entry.seq <= since);
        Some(self.ring.range(start..))
    }

    /// Asks: the offset after which the ring is whole.
    #[must_use]
    pub fn floor(&self) -> Seq {
        self.floor
    }

    /// Asks: how many older messages the ring could take.
    #[must_use]
    pub fn ring_space(&self) -> usize {
        self.limits
            .ring_max_messages
            .saturating_sub(self.ring.len())
    }

    /// Feeds older entries, oldest first. If they are whole up to where the ring begins, they are
    /// its beginning from now on.
    pub fn fill(&mut self, past: Past) {
        if past.up_to != self.floor || past.after >= self.floor {
            return;
        }
        for entry in past.entries.into_iter().rev() {
            self.ring_bytes += entry.frame.len();
            self.ring.push_front(entry);
        }
        self.floor = past.after;
        self.trim(self.limits.ring_max_bytes);
    }

    /// Feeds the next message: pushes it to every live member and keeps it in the ring. Returns the
    /// members that fell behind with it.
    pub fn append(
        &mut self,
        entry: Entry,
        mut push: impl FnMut(&S, &Bytes) -> Pushed,
    ) -> Vec<MemberId> {
        debug_assert!(entry.seq > self.have, "the caller asked `step` first");
        self.have = entry.seq;
        let mut fell_behind = Vec::new();
        let mut gone = Vec::new();
        for (index, (turn, slot)) in self.slots.iter_mut().enumerate() {
            let Some(member) = slot else { continue };
            if member.state != State::Live || member.cursor >= entry.seq {
                continue;
            }
            let id = || MemberId {
                slot: to_u32(index),
                turn: *turn,
            };
            match push(&member.sink, &entry.frame) {
                Pushed::Taken => member.cursor = entry.seq,
                Pushed::Full => {
                    member.state = State::Behind;
                    fell_behind.push(id());
                }
                Pushed::Gone => gone.push(id()),
            }
        }
        for id in gone {
            self.leave(id);
        }
        self.ring_bytes += entry.frame.len();
        self.ring.push_back(entry);
        self.trim(self.limits.ring_max_bytes);
        fell_behind
    }

    /// Feeds that nothing of this room lies between what it has and `seq` (erased, or never there).
    pub fn skip_to(&mut self, seq: Seq) {
        self.have = self.have.max(seq);
    }

    /// Feeds that something up to `seq` is lost for good: the ring proves nothing before it.
    pub fn lose_to(&mut self, seq: Seq) {
        self.have = self.have.max(seq);
        self.floor = self.have;
        self.ring.clear();
        self.ring_bytes = 0;
    }

    /// Command: keep no entry that was erased. The ring then begins after the last of them, so that
    /// an entry that is taken for one costs a read of the log and nothing else.
    pub fn forget(&mut self, is_erased: impl Fn(&Entry) -> bool) {
        let Some(last) = self.ring.iter().rposition(is_erased) else {
            return;
        };
        for entry in self.ring.drain(..=last) {
            self.ring_bytes -= entry.frame.len();
            self.floor = entry.seq;
        }
    }

    /// Command: keep at most this many bytes in the ring.
    pub fn trim(&mut self, max_bytes: usize) {
        while self.ring.len() > self.limits.ring_max_messages || self.ring_bytes > max_bytes {
            let Some(oldest) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes -= oldest.frame.len();
            self.floor = oldest.seq;
        }
    }

    /// Command: a new member, held at the room's position until [`Room::release`].
    pub fn join(&mut self, sink: S) -> MemberId {
        let member = Member {
            sink,
            cursor: self.have,
            state: State::Held,
        };
        if let Some(slot) = self.free.pop() {
            let place = &mut self.slots[slot as usize];
            place.0 = place.0.wrapping_add(1);
            place.1 = Some(member);
            return MemberId {
                slot,
                turn: place.0,
            };
        }
        self.slots.push((0, Some(member)));
        MemberId {
            slot: to_u32(self.slots.len() - 1),
            turn: 0,
        }
    }

    /// Command: the member's reply is written and ends at `cursor`; let it follow from there.
    pub fn release(
        &mut self,
        id: MemberId,
        cursor: Seq,
        push: impl FnMut(&S, &Bytes) -> Pushed,
    ) -> Turn {
        self.advance(id, cursor);
        self.turn(id, push)
    }

    /// `cursor` may be below what the member was held at: a recovery starts in the past.
    fn advance(&mut self, id: MemberId, cursor: Seq) {
        if let Some(member) = self.member(id)
            && member.state == State::Held
        {
            member.state = State::Behind;
            member.cursor = cursor;
        }
    }

    /// Feeds a page of the log to a member that is behind, in order and as far as its sink takes it.
    /// `reached` is the offset up to which the page is whole.
    pub fn page(
        &mut self,
        id: MemberId,
        page: &[(Seq, Bytes)],
        reached: Seq,
        mut push: impl FnMut(&S, &Bytes) -> Pushed,
    ) -> Paged {
        let Some(member) = self
            .member(id)
            .filter(|member| member.state == State::Behind)
        else {
            return Paged::Gone;
        };
        for (nth, (seq, frame)) in page.iter().enumerate() {
            if *seq <= member.cursor {
                continue;
            }
            match push(&member.sink, frame) {
                Pushed::Taken => member.cursor = *seq,
                Pushed::Full => return Paged::Full(nth),
                Pushed::Gone => {
                    self.leave(id);
                    return Paged::Gone;
                }
            }
        }
        member.cursor = member.cursor.max(reached);
        Paged::Taken
    }

    /// Polls a member that is behind: hands it what the ring has, and makes it live at the head.
    pub fn turn(&mut self, id: MemberId, mut push: impl FnMut(&S, &Bytes) -> Pushed) -> Turn {
        let (floor, have) = (self.floor, self.have);
        let Some((turn, slot)) = self.slots.get_mut(id.slot as usize) else {
            return Turn::Gone;
        };
        let member = match slot {
            Some(member) if *turn == id.turn => member,
            _ => return Turn::Gone,
        };
        if member.state == State::Live {
            return Turn::Live;
        }
        if member.cursor < floor {
            return Turn::Log(member.cursor);
        }
        let start = self
            .ring
            .partition_point(|entry| entry.seq <= member.cursor);
        for entry in self.ring.range(start..) {
            match push(&member.sink, &entry.frame) {
                Pushed::Taken => member.cursor = entry.seq,
                Pushed::Full => return Turn::Full,
                Pushed::Gone => {
                    self.leave(id);
                    return Turn::Gone;
                }
            }
        }
        member.cursor = member.cursor.max(have);
        member.state = State::Live;
        Turn::Live
    }

    /// Command: the member leaves; an unknown one has left already.
    pub fn leave(&mut self, id: MemberId) -> Option<S> {
        let (turn, slot) = self.slots.get_mut(id.slot as usize)?;
        if *turn != id.turn {
            return None;
        }
        let member = slot.take()?;
        self.free.push(id.slot);
        Some(member.sink)
    }

    /// Asks: every member.
    pub fn members(&self) -> impl Iterator<Item = (MemberId, &S)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(index, (turn, slot))| {
                let member = slot.as_ref()?;
                Some((
                    MemberId {
                        slot: to_u32(index),
                        turn: *turn,
                    },
                    &member.sink,
                ))
            })
    }

    /// Command: drops every member for which `is_gone` says so.
    pub fn reap(&mut self, is_gone: impl Fn(&S) -> bool) {
        let gone: Vec<_> = self
            .members()
            .filter(|(_, sink)| is_gone(sink))
            .map(|(id, _)| id)
            .collect();
        for id in gone {
            self.leave(id);
        }
    }

    /// Asks: a member's sink.
    #[must_use]
    pub fn sink(&self, id: MemberId) -> Option<&S> {
        let (turn, slot) = self.slots.get(id.slot as usize)?;
        if *turn == id.turn {
            slot.as_ref().map(|member| &member.sink)
        } else {
            None
        }
    }

    fn member(&mut self, id: MemberId) -> Option<&mut Member<S>> {
        let (turn, slot) = self.slots.get_mut(id.slot as usize)?;
        if *turn == id.turn {
            slot.as_mut()
        } else {
            None
        }
    }
}

fn to_u32(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 members in a room")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// A sink with a bound that a test can move.
    #[derive(Clone, Default)]
    struct Sink(Rc<RefCell<(Vec<u64>, usize)>>);

    fn push(sink: &Sink, frame: &Bytes) -> Pushed {
        let mut inner = sink.0.borrow_mut();
        if inner.0.len() >= inner.1 {
            return Pushed::Full;
        }
        inner
            .0
            .push(String::from_utf8_lossy(frame).trim().parse().unwrap());
        Pushed::Taken
    }

    fn sink(room_for: usize) -> Sink {
        Sink(Rc::new(RefCell::new((Vec::new(), room_for))))
    }

    fn entry(seq: u64) -> Entry {
        let frame = Bytes::from(seq.to_string());
        Entry {
            seq: Seq::new(seq),
            time_ms: 0,
            author: seq % 2,
            publication: frame.clone(),
            frame,
        }
    }

    fn room(have: u64, messages: usize) -> Room<Sink> {
        let limits = RingLimits {
            ring_max_messages: messages,
            ring_max_bytes: 1 << 20,
        };
        Room::new(Epoch::new("e").unwrap(), Seq::new(have), limits)
    }

    #[test]
    fn a_ring_forgets_what_was_erased_and_proves_nothing_before_it() {
        let mut room = room(0, 9);
        for seq in 1..=6 {
            room.append(entry(seq), push);
        }
        room.forget(|entry| entry.author == 1 && entry.seq <= Seq::new(4));
        assert!(room.since(Seq::new(2)).is_none());
        let left: Vec<_> = room
            .since(Seq::new(3))
            .unwrap()
            .map(|e| e.seq.get())
            .collect();
        assert_eq!(left, [4, 5, 6]);
        assert_eq!((room.ring_bytes(), room.have()), (3, Seq::new(6)));
        room.forget(|_| false);
        assert_eq!(room.ring_bytes(), 3);
        room.forget(|_| true);
        assert_eq!(room.ring_bytes(), 0);
        assert_eq!(room.since(Seq::new(6)).unwrap().len(), 0);
    }

    #[test]
    fn steps() {
        let room = room(10, 4);
        let step = |previous, seq| room.step(Seq::new(previous), Seq::new(seq));
        assert_eq!(step(10, 15), Step::Next);
        assert_eq!(step(12, 15), Step::Gap(Seq::new(12)));
        assert_eq!(step(0, 15), Step::Unproven);
        assert_eq!(step(9, 10), Step::Known);
    }

    #[test]
    fn a_join_is_a_cut_and_no_message_is_pushed_before_its_release() {
        let mut room = room(10, 4);
        let a = sink(99);
        let id = room.join(a.clone());
        assert!(room.append(entry(12), push).is_empty());
        assert!(a.0.borrow().0.is_empty());
        assert_eq!(room.release(id, Seq::new(10), push), Turn::Live);
        room.append(entry(15), push);
        assert_eq!(a.0.borrow().0, [12, 15]);
    }

    #[test]
    fn a_slow_reader_falls_behind_and_follows_from_the_ring_then_the_log() {
        let mut room = room(0, 3);
        let a = sink(1);
        let id = room.join(a.clone());
        assert_eq!(room.release(id, Seq::ZERO, push), Turn::Live);
        assert!(room.append(entry(1), push).is_empty());
        assert_eq!(room.append(entry(2), push), [id]);
        assert!(room.append(entry(3), push).is_empty());
        assert_eq!(room.turn(id, push), Turn::Full);
        a.0.borrow_mut().1 = 2;
        assert_eq!(room.turn(id, push), Turn::Full);
        for seq in 4..9 {
            room.append(entry(seq), push);
        }
        // The ring now begins after 5; the member is at 2.
        assert_eq!(room.turn(id, push), Turn::Log(Seq::new(2)));
        a.0.borrow_mut().1 = 3;
        let page = [3, 4, 5, 6].map(|seq| (Seq::new(seq), entry(seq).frame));
        assert_eq!(room.page(id, &page, Seq::new(6), push), Paged::Full(1));
        a.0.borrow_mut().1 = 99;
        assert_eq!(room.page(id, &page[1..], Seq::new(6), push), Paged::Taken);
        assert_eq!(room.turn(id, push), Turn::Live);
        assert_eq!(a.0.borrow().0, [1, 2, 3, 4, 5, 6, 7, 8]);
        // A page that was read for a place that is gone reaches nobody.
        room.leave(id);
        let again = room.join(a.clone());
        room.release(again, Seq::new(8), push);
        assert_eq!(room.page(id, &page, Seq::new(6), push), Paged::Gone);
        assert_eq!(room.page(again, &page, Seq::new(6), push), Paged::Gone);
        assert_eq!(a.0.borrow().0.len(), 8);
    }

    #[test]
    fn a_member_ahead_of_the_room_is_never_handed_what_it_has() {
        let mut room = room(5, 4);
        let a = sink(99);
        let id = room.join(a.clone());
        assert_eq!(room.release(id, Seq::new(9), push), Turn::Live);
        room.append(entry(7), push);
        room.append(entry(9), push);
        room.append(entry(11), push);
        assert_eq!(a.0.borrow().0, [11]);
    }

    #[test]
    fn the_ring_says_what_it_proves() {
        let mut room = room(5, 2);
        assert_eq!(room.since(Seq::new(5)).unwrap().len(), 0);
        assert!(room.since(Seq::new(4)).is_none());
        for seq in [7, 9, 12] {
            room.append(entry(seq), push);
        }
        let seqs = |since| {
            room.since(Seq::new(since))
                .map(|i| i.map(|e| e.seq.get()).collect())
        };
        assert_eq!(seqs(7), Some(vec![9, 12]));
        assert_eq!(seqs(8), Some(vec![9, 12]));
        assert_eq!(seqs(6), None);
        room.lose_to(Seq::new(20));
        assert!(room.since(Seq::new(12)).is_none());
    }

    #[test]
    fn a_slot_is_reused_under_another_name() {
        let mut room = room(0, 2);
        let first = room.join(sink(1));
        room.leave(first);
        let second = room.join(sink(1));
        assert_ne!(first, second);
        assert!(room.leave(first).is_none());
        assert_eq!(room.member_count(), 1);
    }

    fn past(seqs: &[u64], after: u64, up_to: u64) -> Past {
        Past {
            entries: seqs.iter().copied().map(entry).collect(),
            after: Seq::new(after),
            up_to: Seq::new(up_to),
        }
    }

    fn since(room: &Room<Sink>, seq: u64) -> Option<Vec<u64>> {
        let entries = room.since(Seq::new(seq))?;
        Some(entries.map(|entry| entry.seq.get()).collect())
    }

    #[test]
    fn a_past_is_put_before_what_came_meanwhile() {
        let mut room = room(10, 5);
        assert_eq!((room.floor(), room.ring_space()), (Seq::new(10), 5));
        room.append(entry(12), push);
        assert_eq!(since(&room, 9), None);
        room.fill(past(&[4, 7, 10], 2, 10));
        assert_eq!(since(&room, 2), Some(vec![4, 7, 10, 12]));
        assert_eq!(since(&room, 7), Some(vec![10, 12]));
        assert_eq!(since(&room, 1), None);
        assert_eq!((room.ring_bytes(), room.ring_space()), (6, 1));
        // The oldest go first, also of what was put before.
        room.append(entry(13), push);
        room.append(entry(14), push);
        assert_eq!(since(&room, 2), None);
        assert_eq!(since(&room, 4), Some(vec![7, 10, 12, 13, 14]));
    }

    #[test]
    fn a_past_that_does_not_reach_the_ring_proves_nothing() {
        // Something was lost between, or the ring gave up its oldest, since it was read.
        let mut room = room(10, 5);
        room.lose_to(Seq::new(20));
        room.fill(past(&[4, 7, 10], 2, 10));
        assert_eq!(since(&room, 7), None);
        assert_eq!(since(&room, 20), Some(vec![]));
        room.fill(past(&[], 30, 20));
        assert_eq!(room.floor(), Seq::new(20));
        // An empty past is one, too.
        room.fill(past(&[], 0, 20));
        assert_eq!(since(&room, 0), Some(vec![]));
    }
}
