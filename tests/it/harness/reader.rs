//! Knows: a logical client as the SDKs are: comes back, recovers from its position. Never: publishing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Rng;
use super::client::{Client, Failure, Joined, Position, Publication, Push};
use super::record::Recorder;
use crate::checker::event::{Via, What};

/// A logical client over however many sockets it takes. Ends on drop.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    name: String,
    number: u32,
    address: String,
    recorder: Recorder,
    rooms: Mutex<BTreeMap<String, Held>>,
    kick: Notify,
    /// Sockets that were connected so far.
    connects: AtomicUsize,
    /// Failures that no SDK would come back from.
    fatal: Mutex<Vec<String>>,
}

/// A membership and what it has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) position: Option<Position>,
    pub(crate) member: bool,
    pub(crate) received: usize,
}

impl Reader {
    /// Starts one that stays in `rooms`.
    pub(crate) fn start(recorder: &Recorder, address: &str, name: &str, rooms: &[String]) -> Self {
        let rooms = rooms
            .iter()
            .map(|room| (room.clone(), Held::default()))
            .collect();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            number: recorder.number(name),
            address: address.to_owned(),
            recorder: recorder.clone(),
            rooms: Mutex::new(rooms),
            kick: Notify::new(),
            connects: AtomicUsize::new(0),
            fatal: Mutex::default(),
        });
        let task = tokio::spawn(run(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// What it holds of a room.
    pub(crate) fn held(&self, room: &str) -> Held {
        self.shared.rooms.lock().unwrap()[room].clone()
    }

    /// The rooms it stays in.
    pub(crate) fn rooms(&self) -> Vec<String> {
        self.shared.rooms.lock().unwrap().keys().cloned().collect()
    }

    /// True when it is a member of all its rooms.
    pub(crate) fn joined(&self) -> bool {
        self.shared
            .rooms
            .lock()
            .unwrap()
            .values()
            .all(|held| held.member)
    }

    /// Drops its socket; it comes back and recovers.
    pub(crate) fn kick(&self) {
        self.shared.kick.notify_one();
    }

    /// Sockets that were connected so far.
    pub(crate) fn connects(&self) -> usize {
        self.shared.connects.load(Ordering::Acquire)
    }

    /// Failures that no SDK would come back from.
    pub(crate) fn fatal(&self) -> Vec<String> {
        self.shared.fatal.lock().unwrap().clone()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(shared: Arc<Shared>) {
    let mut rng = Rng::new(u64::from(shared.number) + 1);
    loop {
        let failure = session(&shared).await;
        shared.part_all();
        if let Err(Failure::Closed { code, reason }) = failure
            && matches!(code, 3500..=3999 | 4500..=4999)
        {
            shared
                .fatal
                .lock()
                .unwrap()
                .push(format!("closed {code} {reason}"));
        }
        // SDKs come back with jitter, so that an edge that restarts is not run over.
        tokio::time::sleep(Duration::from_millis(50 + rng.below(250))).await;
    }
}

/// One socket, until it ends or is kicked.
async fn session(shared: &Shared) -> Result<(), Failure> {
    let mut client = Client::connect(&shared.address, Some(&shared.name)).await?;
    shared.connects.fetch_add(1, Ordering::AcqRel);
    loop {
        let absent = shared.absent();
        let mut wait = Duration::from_secs(60);
        for room in absent {
            let from = shared.rooms.lock().unwrap()[&room].position.clone();
            match client.subscribe(&room, from.as_ref()).await {
                Ok(joined) => shared.joined(&room, from.as_ref(), joined),
                Err(Failure::Error {
                    code,
                    message,
                    temporary: true,
                }) => {
                    tracing_of_retry(&shared.name, &room, code, &message);
                    wait = Duration::from_millis(200);
                }
                Err(failure @ Failure::Error { .. }) => {
                    shared
                        .fatal
                        .lock()
                        .unwrap()
                        .push(format!("{room}: {failure:?}"));
                    wait = Duration::from_secs(1);
                }
                Err(failure) => return Err(failure),
            }
        }
        let until = Instant::now() + wait;
        tokio::select! {
            left = pushes(shared, &mut client, until) => left?,
            () = shared.kick.notified() => return Ok(()),
        }
    }
}

/// Takes pushes until a room was left or `until`.
async fn pushes(shared: &Shared, client: &mut Client, until: Instant) -> Result<(), Failure> {
    while let Some(push) = client.push(until).await? {
        if shared.pushed(push) {
            return Ok(());
        }
    }
    Ok(())
}

fn tracing_of_retry(name: &str, room: &str, code: u32, message: &str) {
    if super::long() {
        eprintln!("{name} tries {room} again: {code} {message}");
    }
}

impl Shared {
    fn absent(&self) -> Vec<String> {
        let rooms = self.rooms.lock().unwrap();
        rooms
            .iter()
            .filter(|(_, held)| !held.member)
            .map(|(room, _)| room.clone())
            .collect()
    }

    fn part_all(&self) {
        for (room, held) in self.rooms.lock().unwrap().iter_mut() {
            if held.member {
                held.member = false;
                let room = self.recorder.number(room);
                self.recorder.push(What::Parted {
                    client: self.number,
                    room,
                });
            }
        }
    }

    fn joined(&self, room: &str, from: Option<&Position>, joined: Joined) {
        let asked = from.map(|from| self.recorder.at(&from.epoch, from.offset));
        let got = self.recorder.at(&joined.epoch, joined.offset);
        let number = self.recorder.number(room);
        let (client, recovered) = (self.number, joined.recovered);
        self.recorder.push(What::Joined {
            client,
            room: number,
            asked,
            got,
            recovered,
        });
        let start = match from {
            Some(from) if recovered => from.offset,
            _ => joined.offset,
        };
        let mut rooms = self.rooms.lock().unwrap();
        let held = rooms.get_mut(room).unwrap();
        held.member = true;
        held.position = Some(Position {
            epoch: joined.epoch,
            offset: start,
        });
        for publication in joined.publications {
            self.receive(room, held, &publication, Via::Recovery);
        }
    }

    /// True when the push ended a membership.
    fn pushed(&self, push: Push) -> bool {
        let mut rooms = self.rooms.lock().unwrap();
        let Some(held) = rooms.get_mut(&push.channel) else {
            return false;
        };
        if let Some(publication) = push.publication {
            self.receive(&push.channel, held, &publication, Via::Live);
        }
        let Some(unsubscribed) = push.unsubscribe else {
            return false;
        };
        if unsubscribed.code < 2500 {
            let text = format!("{}: unsubscribed {}", push.channel, unsubscribed.code);
            self.fatal.lock().unwrap().push(text);
        }
        held.member = false;
        let room = self.recorder.number(&push.channel);
        self.recorder.push(What::Parted {
            client: self.number,
            room,
        });
        true
    }

    fn receive(&self, room: &str, held: &mut Held, publication: &Publication, via: Via) {
        let position = held.position.as_mut().expect("a member has a position");
        let at = self.recorder.at(&position.epoch, publication.offset);
        let author = publication
            .info
            .as_ref()
            .map_or("", |info| info.user.as_str());
        let seen = self
            .recorder
            .seen(room, at, author, publication.data.get().as_bytes());
        position.offset = publication.offset;
        held.received += 1;
        self.recorder.push(What::Recv {
            client: self.number,
            via,
            seen,
        });
    }
}
