//! Knows: authors at a steady rate, over a socket or the native door, and the end of each publish.
//! Never: reading.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::client::{Client, Failure, is_unknown, publish_body};
use super::record::{Recorder, payload};
use crate::checker::event::{Id, What, hash_of};

/// After this a publish without an answer counts as unknown, as in the SDKs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Publishes of one writer that wait for their answer; beyond it the writer waits too.
const OUTSTANDING_MAX: usize = 256;

/// An author. `finish` it to have every publish ended.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    figures: Arc<Figures>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Figures {
    acked: AtomicUsize,
    unanswered: AtomicUsize,
}

/// What a writer does.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// User name, unique in a run.
    pub(crate) name: String,
    pub(crate) rooms: Vec<String>,
    pub(crate) per_second: u32,
    pub(crate) bytes: usize,
}

impl Writer {
    /// Starts one that publishes over a WebSocket.
    pub(crate) fn over_socket(recorder: &Recorder, address: &str, plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let figures = Arc::<Figures>::default();
        let pen = Pen::new(recorder, plan, &figures);
        let task = tokio::spawn(write(pen, address.to_owned(), Arc::clone(&stop)));
        Self {
            stop,
            figures,
            task,
        }
    }

    /// Starts one that asks the native door and awaits each answer.
    pub(crate) fn over_nats(recorder: &Recorder, nats: async_nats::Client, plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let figures = Arc::<Figures>::default();
        let pen = Pen::new(recorder, plan, &figures);
        let task = tokio::spawn(say(pen, nats, Arc::clone(&stop)));
        Self {
            stop,
            figures,
            task,
        }
    }

    /// Acknowledged so far.
    pub(crate) fn acked(&self) -> usize {
        self.figures.acked.load(Ordering::Acquire)
    }

    /// Publishes on a living socket that had no answer within 5 s.
    pub(crate) fn unanswered(&self) -> usize {
        self.figures.unanswered.load(Ordering::Acquire)
    }

    /// Sends no more, and waits until every publish has its end.
    pub(crate) async fn finish(self) -> usize {
        self.stop.store(true, Ordering::Release);
        super::within("writers end", Duration::from_secs(60), self.task)
            .await
            .unwrap();
        self.figures.acked.load(Ordering::Acquire)
    }
}

/// Makes the messages of one author.
struct Pen {
    recorder: Recorder,
    plan: Plan,
    author: u32,
    process: u64,
    counter: u64,
    figures: Arc<Figures>,
}

impl Pen {
    fn new(recorder: &Recorder, plan: Plan, figures: &Arc<Figures>) -> Self {
        let author = recorder.number(&plan.name);
        let figures = Arc::clone(figures);
        Self {
            recorder: recorder.clone(),
            author,
            process: u64::from(author),
            counter: 0,
            plan,
            figures,
        }
    }

    /// The next message: its id, room and payload. It counts as sent.
    fn next(&mut self) -> (Id, String, String) {
        self.counter += 1;
        let id = self.process << 32 | self.counter;
        let room = self.plan.rooms[self.counter as usize % self.plan.rooms.len()].clone();
        let data = payload(id, self.plan.bytes);
        let number = self.recorder.number(&room);
        let (author, hash) = (self.author, hash_of(data.as_bytes()));
        self.recorder.push(What::Invoke {
            id,
            room: number,
            author,
            hash,
        });
        (id, room, data)
    }

    fn ended(&self, id: Id, result: Result<(), Failure>) {
        self.recorder.push(match result {
            Ok(()) => {
                self.figures.acked.fetch_add(1, Ordering::AcqRel);
                What::Ok { id, at: None }
            }
            Err(failure) if is_unknown(&failure) => What::Unknown { id },
            Err(failure) => What::Fail {
                id,
                code: failure.code(),
            },
        });
    }
}

async fn write(mut pen: Pen, address: String, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Acquire) {
        if let Ok(mut client) = Client::connect(&address, Some(&pen.plan.name)).await {
            let mut waiting = HashMap::new();
            let _ = publish_over(&mut pen, &mut client, &mut waiting, &stop).await;
            // The socket is gone or all is answered: the fate of the rest is not known.
            for (_, (id, _)) in waiting {
                pen.ended(id, Err(Failure::Silent));
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Publishes over one socket until it ends, or until stopped and all is answered.
async fn publish_over(
    pen: &mut Pen,
    client: &mut Client,
    waiting: &mut HashMap<u32, (Id, Instant)>,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let period = Duration::from_secs(1) / pen.plan.per_second;
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let stopped = stop.load(Ordering::Acquire);
        if stopped && waiting.is_empty() {
            return Ok(());
        }
        tokio::select! {
            _ = ticks.tick(), if !stopped && waiting.len() < OUTSTANDING_MAX => {
                let (id, room, data) = pen.next();
                match client.send("publish", &publish_body(&room, &data)).await {
                    Ok(command) => {
                        waiting.insert(command, (id, Instant::now()));
                    }
                    Err(failure) => {
                        pen.ended(id, Err(Failure::Silent));
                        return Err(failure);
                    }
                }
            }
            read = client.read(Instant::now() + Duration::from_millis(200)) => match read {
                Ok(()) | Err(Failure::Silent) => {}
                Err(failure) => return Err(failure),
            }
        }
        waiting.retain(|command, (id, sent)| {
            if let Some(result) = client.take_reply(*command) {
                pen.ended(*id, result.map(drop));
                return false;
            }
            let late = sent.elapsed() > ANSWER_DEADLINE;
            if late {
                pen.figures.unanswered.fetch_add(1, Ordering::AcqRel);
                pen.ended(*id, Err(Failure::Silent));
            }
            !late
        });
    }
}

/// The door's answer, as the design has it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    pub(crate) offset: u64,
    pub(crate) epoch: String,
    pub(crate) unknown: bool,
    pub(crate) error: Option<SaidError>,
}

/// The door's error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SaidError {
    pub(crate) code: u32,
    pub(crate) message: String,
}

async fn say(mut pen: Pen, nats: async_nats::Client, stop: Arc<AtomicBool>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / pen.plan.per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !stop.load(Ordering::Acquire) {
        ticks.tick().await;
        let (id, room, data) = pen.next();
        let (ns, name) = room.split_once(':').expect("a room with a namespace");
        let subject = format!("say.{}.{ns}.{name}", pen.plan.name);
        let request = tokio::time::timeout(ANSWER_DEADLINE, nats.request(subject, data.into()));
        let said = match request.await {
            Ok(Ok(answer)) => serde_json::from_slice::<Said>(&answer.payload)
                .unwrap_or_else(|error| panic!("the door's answer is no JSON ({error})")),
            _ => Said {
                unknown: true,
                ..Said::default()
            },
        };
        match said {
            Said { unknown: true, .. } => pen.ended(id, Err(Failure::Silent)),
            Said {
                error: Some(error), ..
            } => pen.ended(
                id,
                Err(Failure::Error {
                    code: error.code,
                    message: error.message,
                    temporary: false,
                }),
            ),
            Said { offset, epoch, .. } => {
                let at = Some(pen.recorder.at(&epoch, offset));
                pen.figures.acked.fetch_add(1, Ordering::AcqRel);
                pen.recorder.push(What::Ok { id, at });
            }
        }
    }
}
