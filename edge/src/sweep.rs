//! Knows: how lost tails are found: silence is no proof, so the heads of the open rooms are compared
//! with the log every few seconds, and at once after anything that can lose live messages. Never:
//! how a room repairs itself.

use std::collections::HashMap;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use weir_nats::connect::{Link as NatsLink, LinkEvent};
use weir_nats::{RoomName, Seq};

use crate::hub::Hub;

/// Rooms asked for in one request (the server refuses more than 1,024).
const ROOMS_PER_REQUEST_MAX: usize = 1_000;

/// Runs until `stop`. `events` are those of the NATS connections, `resync` names rooms whose publish
/// had a duplicate or unknown outcome.
pub async fn run(
    hub: Hub,
    mut events: broadcast::Receiver<(NatsLink, LinkEvent)>,
    mut resync: broadcast::Receiver<RoomName>,
    stop: CancellationToken,
) {
    let mut placements = hub.shared().placements.changes();
    let mut timer = tokio::time::interval(hub.shared().settings.bounds.sweep_interval);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut swept = Swept::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => swept.sweep(&hub).await,
            event = events.recv() => match event {
                Ok((NatsLink::Live, LinkEvent::Connected | LinkEvent::SlowConsumer))
                | Err(RecvError::Lagged(_)) => {
                    // One event a dropped message may come: one sweep is enough for all of them.
                    while events.try_recv().is_ok() {}
                    swept.forget();
                    swept.sweep(&hub).await;
                }
                Ok(_) => {}
                Err(RecvError::Closed) => return,
            },
            room = resync.recv() => match room {
                Ok(room) => look_again(&hub, &room).await,
                Err(RecvError::Lagged(_)) => {
                    swept.forget();
                    swept.sweep(&hub).await;
                }
                Err(RecvError::Closed) => return,
            },
            changed = placements.changed() => {
                if changed.is_err() {
                    return;
                }
                hub.check_placements().await;
            }
        }
    }
}

/// Up to where each stream was swept: rooms whose last message is not after that need no look.
#[derive(Default)]
struct Swept(HashMap<String, Seq>);

impl Swept {
    /// After a possible loss every room is looked at again, whenever it last moved.
    fn forget(&mut self) {
        self.0.clear();
    }

    async fn sweep(&mut self, hub: &Hub) {
        // The ends of the streams are read before the list of rooms: a room that opens in between
        // reads its own position, and one that is on the list is asked about all up to that end.
        let mut ends = HashMap::new();
        for slot in hub.shared().placements.slots() {
            for generation in slot.generations.iter() {
                match hub.shared().live_replay.state(&generation.stream).await {
                    Ok(state) => {
                        ends.insert(generation.stream.clone(), state.last);
                    }
                    // The next sweep starts from the same place, so nothing is skipped.
                    Err(error) => {
                        tracing::debug!(stream = %generation.stream, %error, "sweep failed");
                    }
                }
            }
        }
        let mut by_stream: HashMap<String, Vec<(RoomName, String)>> = HashMap::new();
        for (room, stream, subject) in hub.stored_rooms() {
            by_stream.entry(stream).or_default().push((room, subject));
        }
        for (stream, rooms) in by_stream {
            let Some(end) = ends.get(&stream).copied() else {
                continue;
            };
            if let Err(error) = self.sweep_stream(hub, &stream, end, rooms).await {
                tracing::debug!(%stream, %error, "sweep failed");
            }
        }
    }

    async fn sweep_stream(
        &mut self,
        hub: &Hub,
        stream: &str,
        end: Seq,
        rooms: Vec<(RoomName, String)>,
    ) -> Result<(), weir_nats::replay::ReplayError> {
        let replay = &hub.shared().live_replay;
        let after = self.0.get(stream).copied().unwrap_or(Seq::ZERO);
        if end <= after {
            return Ok(());
        }
        hub.shared().metrics.sweeps.add_one();
        // A room that is busy with a repair is not waited for: the next sweep names it again.
        let mut told_all = true;
        for some in rooms.chunks(ROOMS_PER_REQUEST_MAX) {
            let subjects: Vec<String> = some.iter().map(|(_, subject)| subject.clone()).collect();
            let by_subject: HashMap<&str, &RoomName> = some
                .iter()
                .map(|(room, subject)| (subject.as_str(), room))
                .collect();
            for (subject, head) in replay.heads(stream, &subjects, after).await? {
                if let Some(room) = by_subject.get(subject.as_str()) {
                    told_all &= hub.tell_head(room, head);
                }
            }
        }
        if told_all {
            self.0.insert(stream.to_owned(), end);
        }
        Ok(())
    }
}

/// One room whose live copy may never have come.
async fn look_again(hub: &Hub, room: &RoomName) {
    let Some((stream, subject)) = hub.stored_room(room) else {
        return;
    };
    match hub.shared().live_replay.last(&stream, &subject).await {
        Ok(Some(last)) => {
            if !hub.tell_head(room, last.message.seq) {
                tracing::debug!(%room, "room is busy; the sweep will find it");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::debug!(%room, %error, "resync failed; the sweep will find it"),
    }
}
