//! Knows: how a correct system behaves, as a seeded simulation that writes a record. Never: Weir.

use super::event::{At, Event, History, Id, Seen, Tier, Via, What};
use crate::harness::Rng;

/// A simulated room: its log, and what the next offset is.
struct Room {
    number: u32,
    log: Vec<Seen>,
}

struct Reader {
    number: u32,
    /// Per room: position (index into the log of what was read up to), and whether a member.
    rooms: Vec<Cursor>,
}

#[derive(Clone, Copy)]
struct Cursor {
    /// Entries of the room's log that are behind the position.
    read: usize,
    at: At,
    member: bool,
}

struct Open {
    id: Id,
    room: usize,
    author: u32,
    hash: u64,
    stored: Option<At>,
}

/// The simulated system.
struct World {
    rng: Rng,
    history: History,
    clock: u64,
    sequence: u64,
    epoch: u32,
    rooms: Vec<Room>,
    readers: Vec<Reader>,
    open: Vec<Open>,
    counters: Vec<u64>,
    authors: Vec<u32>,
}

/// A valid record: writers whose publishes end in all three ways, readers that come and go, gaps
/// that are declared, log regresses with new epochs, and the final scans.
pub(crate) fn valid(seed: u64) -> History {
    let mut world = World::new(seed);
    let steps = 600 + world.rng.below(600);
    for _ in 0..steps {
        world.step();
    }
    world.finish();
    world.history
}

impl World {
    fn new(seed: u64) -> Self {
        let mut history = History::default();
        let epoch = history.names.number("e0");
        let rooms = (0..3)
            .map(|i| Room {
                number: history.names.number(&format!("chat:{i}")),
                log: Vec::new(),
            })
            .collect();
        let authors = (0..4)
            .map(|i| history.names.number(&format!("w{i}")))
            .collect();
        let nowhere = Cursor {
            read: 0,
            at: At { epoch, offset: 0 },
            member: false,
        };
        let readers = (0..5)
            .map(|i| Reader {
                number: history.names.number(&format!("r{i}")),
                rooms: vec![nowhere; 3],
            })
            .collect();
        let mut world = Self {
            rng: Rng::new(seed),
            history,
            clock: 0,
            sequence: 0,
            epoch,
            rooms,
            readers,
            open: Vec::new(),
            counters: vec![0; 4],
            authors,
        };
        for reader in 0..5 {
            for room in 0..3 {
                world.join_fresh(reader, room);
            }
        }
        world
    }

    fn push(&mut self, what: What) {
        self.clock += 1_000 + self.rng.below(1_000_000);
        self.history.events.push(Event {
            t: self.clock,
            what,
        });
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..30 => self.invoke(),
            30..45 => self.store(),
            45..60 => self.resolve(),
            60..92 => self.deliver(),
            92..95 => self.part(),
            95..99 => self.rejoin(),
            _ if self.rng.below(4) == 0 => self.regress(),
            _ => {}
        }
    }

    fn invoke(&mut self) {
        let writer = self.rng.below(4) as usize;
        let room = self.rng.below(3) as usize;
        self.counters[writer] += 1;
        let id = (writer as u64) << 32 | self.counters[writer];
        let (author, hash) = (self.authors[writer], self.rng.next());
        self.push(What::Invoke {
            id,
            room: self.rooms[room].number,
            author,
            hash,
        });
        self.open.push(Open {
            id,
            room,
            author,
            hash,
            stored: None,
        });
    }

    fn store(&mut self) {
        let waiting: Vec<_> = (0..self.open.len())
            .filter(|i| self.open[*i].stored.is_none())
            .collect();
        let Some(index) = self.rng.pick(&waiting) else {
            return;
        };
        self.sequence += 1 + self.rng.below(3);
        let at = At {
            epoch: self.epoch,
            offset: self.sequence,
        };
        let open = &mut self.open[index];
        open.stored = Some(at);
        let room = &mut self.rooms[open.room];
        room.log.push(Seen {
            room: room.number,
            at,
            id: open.id,
            author: open.author,
            hash: open.hash,
        });
    }

    fn resolve(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let index = self.rng.below(self.open.len() as u64) as usize;
        let open = self.open.swap_remove(index);
        let id = open.id;
        let what = match (open.stored, self.rng.below(10)) {
            (Some(_), 0) => What::Unknown { id },
            (Some(at), 1..5) => What::Ok { id, at: Some(at) },
            (Some(_), _) => What::Ok { id, at: None },
            (None, 0..5) => What::Unknown { id },
            (None, _) => What::Fail { id, code: 111 },
        };
        self.push(what);
    }

    fn deliver(&mut self) {
        let reader = self.rng.below(5) as usize;
        let room = self.rng.below(3) as usize;
        self.hand(reader, room, Via::Live);
    }

    fn hand(&mut self, reader: usize, room: usize, via: Via) -> bool {
        let cursor = self.readers[reader].rooms[room];
        let Some(seen) = self.rooms[room].log.get(cursor.read).copied() else {
            return false;
        };
        if !cursor.member || seen.at.epoch != cursor.at.epoch {
            return false;
        }
        self.readers[reader].rooms[room] = Cursor {
            read: cursor.read + 1,
            at: seen.at,
            ..cursor
        };
        self.push(What::Recv {
            client: self.readers[reader].number,
            via,
            seen,
        });
        true
    }

    fn part(&mut self) {
        let reader = self.rng.below(5) as usize;
        let room = self.rng.below(3) as usize;
        if self.readers[reader].rooms[room].member {
            self.readers[reader].rooms[room].member = false;
            let (client, room) = (self.readers[reader].number, self.rooms[room].number);
            self.push(What::Parted { client, room });
        }
    }

    fn rejoin(&mut self) {
        let reader = self.rng.below(5) as usize;
        let room = self.rng.below(3) as usize;
        if !self.readers[reader].rooms[room].member {
            self.join(reader, room);
        }
    }

    fn join_fresh(&mut self, reader: usize, room: usize) {
        let got = At {
            epoch: self.epoch,
            offset: self.sequence,
        };
        let (client, number) = (self.readers[reader].number, self.rooms[room].number);
        self.push(What::Joined {
            client,
            room: number,
            asked: None,
            got,
            recovered: false,
        });
        let read = self.rooms[room].log.len();
        self.readers[reader].rooms[room] = Cursor {
            read,
            at: got,
            member: true,
        };
    }

    fn join(&mut self, reader: usize, room: usize) {
        let cursor = self.readers[reader].rooms[room];
        let (client, number) = (self.readers[reader].number, self.rooms[room].number);
        let recovered = cursor.at.epoch == self.epoch && self.rng.below(10) < 7;
        let top = At {
            epoch: self.epoch,
            offset: self.sequence,
        };
        let got = if recovered { cursor.at } else { top };
        let asked = Some(cursor.at);
        self.push(What::Joined {
            client,
            room: number,
            asked,
            got,
            recovered,
        });
        let behind = self.rooms[room].log.len() - cursor.read;
        if recovered {
            self.readers[reader].rooms[room].member = true;
            for _ in 0..behind {
                self.hand(reader, room, Via::Recovery);
            }
        } else {
            let read = self.rooms[room].log.len();
            self.readers[reader].rooms[room] = Cursor {
                read,
                at: got,
                member: true,
            };
        }
    }

    /// The log goes back: nothing that is shown here was lost, but the epoch must change.
    fn regress(&mut self) {
        self.push(What::Fault {
            name: "rollback",
            on: true,
        });
        self.push(What::Regress);
        self.sequence += 1_000_000;
        let name = format!("e{}", self.sequence);
        self.epoch = self.history.names.number(&name);
        for reader in 0..5 {
            for room in 0..3 {
                if self.readers[reader].rooms[room].member {
                    self.readers[reader].rooms[room].member = false;
                    let (client, number) = (self.readers[reader].number, self.rooms[room].number);
                    self.push(What::Parted {
                        client,
                        room: number,
                    });
                }
            }
        }
        self.push(What::Fault {
            name: "rollback",
            on: false,
        });
    }

    fn finish(&mut self) {
        while !self.open.is_empty() {
            self.resolve();
        }
        for reader in 0..5 {
            for room in 0..3 {
                if !self.readers[reader].rooms[room].member {
                    self.join(reader, room);
                }
                while self.hand(reader, room, Via::Live) {}
            }
        }
        self.push(What::Settled);
        let trimmed = self.rng.below(20) as usize;
        for room in 0..3 {
            for (index, seen) in self.rooms[room].log.clone().into_iter().enumerate() {
                self.push(What::Row {
                    tier: Tier::Archive,
                    seen,
                });
                if index >= trimmed {
                    self.push(What::Row {
                        tier: Tier::Stream,
                        seen,
                    });
                }
            }
        }
    }
}
