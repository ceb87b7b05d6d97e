//! Knows: both doors of one running Weir, and tokens, namespaces and rooms that are made up: what a bot can do with a
//! token over NATS a socket with it can do, live, in history and after a break, and the other way round for all that a
//! subject can say. Never: who may do what; each door is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::figures::figure;
use crate::harness::client::{Client, Failure, Position};
use crate::harness::nats::Nats;
use crate::harness::weir::{Config, Weir, token_with};
use crate::harness::{Rng, either, seed};
use crate::raw_nats::Raw;

mod made_up;

use made_up::{Room, USERS, caps, escape, options};

/// Everybody may read it: what is heard there was heard after all that came before.
const END: &str = "closed:end";
const WITHIN: Duration = Duration::from_secs(30);

/// Sockets that may write into every room that anybody may write into.
struct Writers(BTreeMap<&'static str, Client>);

impl Writers {
    async fn new(weir: &Weir, rooms: &[Room]) -> Self {
        let mut all = BTreeMap::new();
        let users: BTreeSet<_> = rooms
            .iter()
            .filter_map(Room::writer)
            .chain(["root"])
            .collect();
        for user in users {
            let channels = rooms.iter().filter(|room| room.writer() == Some(user));
            let mut channels: Vec<_> = channels.map(|room| room.channel.as_str()).collect();
            channels.push(END);
            let caps = json!([{"channels": channels, "allow": ["pub"]}]);
            all.insert(user, browser(weir, user, &caps).await);
        }
        Self(all)
    }

    /// Writes the room's name and a word into each, and returns those where it was taken.
    async fn write(&mut self, rooms: &[Room], word: &str) -> Vec<Room> {
        let mut written = Vec::new();
        for room in rooms {
            let Some(user) = room.writer() else { continue };
            let data = json!([word, room.channel]).to_string();
            let client = self.0.get_mut(user).unwrap();
            if is_allowed(client.publish(&room.channel, &data).await) {
                written.push(room.clone());
            }
        }
        let root = self.0.get_mut("root").unwrap();
        root.publish(END, &json!([word, END]).to_string())
            .await
            .unwrap();
        written
    }
}

async fn browser(weir: &Weir, user: &str, caps: &Value) -> Client {
    let mut client = Client::open(&weir.address()).await.unwrap();
    let connect = json!({ "token": token_with(user, caps) });
    client.call("connect", connect).await.unwrap();
    client
}

/// True if it was done, false if there is no right to it or no such room.
fn is_allowed<T>(result: Result<T, Failure>) -> bool {
    match result {
        Ok(_) => true,
        Err(Failure::Error {
            code: 103 | 107, ..
        }) => false,
        Err(failure) => panic!("{failure:?}"),
    }
}

/// Every message is of this room, and of no other.
fn require_of<'d>(room: &Room, data: impl IntoIterator<Item = &'d str>) -> usize {
    let data = data.into_iter().map(|data| {
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data[1], room.channel, "read in another room");
    });
    data.count()
}

/// One token at both doors.
struct Bearer {
    user: &'static str,
    native: Raw,
    inbox: String,
    socket: Client,
}

/// What happened in one room.
#[derive(Default)]
struct Seen {
    /// Each action natively and over a socket.
    cells: Vec<(&'static str, bool, bool)>,
    joined: Option<Position>,
}

impl Bearer {
    async fn new(nats: &Nats, weir: &Weir, user: &'static str, caps: &Value) -> Self {
        let token = if user == "_" {
            "=5F".to_owned()
        } else {
            escape(user)
        };
        let mut native = Raw::login(nats.port, &token_with(user, caps))
            .await
            .unwrap();
        assert!(native.hear(&format!("_INBOX.{token}.>")).await);
        assert!(native.hear("room.closed.end").await);
        let mut socket = browser(weir, user, caps).await;
        socket.subscribe(END, None).await.unwrap();
        Self {
            user,
            native,
            inbox: format!("_INBOX.{token}.x"),
            socket,
        }
    }

    /// Asks natively, and says whether nats-server let it through; then Weir has to let it through, too.
    async fn ask(&mut self, what: &str, room: &Room, body: &Value) -> Option<Value> {
        let user = self.inbox.split('.').nth(1).unwrap();
        let subject = format!("{what}.{user}.{}", room.place());
        let answer = self
            .native
            .request(&subject, &self.inbox, &body.to_string())
            .await?;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(
            answer["error"].is_null(),
            "{subject} as {:?}: {answer}",
            self.user
        );
        Some(answer)
    }

    async fn join_and_write(&mut self, room: &Room) -> Seen {
        let mut seen = Seen::default();
        let native = self.native.hear(&format!("room.{}", room.place())).await;
        assert_eq!(
            native,
            self.native.may_hear(&format!("eph.{}", room.place())).await
        );
        let joined = self.socket.subscribe(&room.channel, None).await;
        if let Ok(joined) = &joined {
            let (epoch, offset) = (joined.epoch.clone(), joined.offset);
            seen.joined = Some(Position { epoch, offset });
        }
        seen.cells.push(("live", native, is_allowed(joined)));
        let data = json!(["own", room.channel]);
        let native = self.ask("say", room, &data).await.is_some();
        let socket = self.socket.publish(&room.channel, &data.to_string()).await;
        seen.cells.push(("publish", native, is_allowed(socket)));
        seen
    }

    /// Reads until the word was heard in every room that was joined, and never in another.
    async fn hear(&mut self, word: &str, written: &[Room], rooms: &[(Room, Seen)]) {
        let joined = |nth: fn(&(&str, bool, bool)) -> bool| -> BTreeSet<String> {
            let here = rooms.iter().filter(|(_, seen)| nth(&seen.cells[0]));
            here.map(|(room, _)| room.channel.clone())
                .chain([END.to_owned()])
                .collect()
        };
        let awaited = |joined: &BTreeSet<String>| -> BTreeSet<String> {
            let written = written.iter().map(|room| room.channel.clone());
            written
                .chain([END.to_owned()])
                .filter(|name| joined.contains(name))
                .collect()
        };
        let (native, socket) = (joined(|cell| cell.1), joined(|cell| cell.2));
        let mut missing = awaited(&native);
        while !missing.is_empty() {
            let heard = self.native.next().await;
            let data: Value = serde_json::from_str(&heard.payload).unwrap();
            let name = data[1].as_str().unwrap();
            assert!(native.contains(name), "heard {heard:?}");
            if data[0] == word {
                missing.remove(name);
            }
        }
        let mut missing = awaited(&socket);
        let deadline = Instant::now() + WITHIN;
        while !missing.is_empty() {
            let push = self.socket.push(deadline).await.unwrap();
            let push = push.unwrap_or_else(|| panic!("not heard: {missing:?}"));
            let Some(publication) = &push.publication else {
                continue;
            };
            let data: Value = serde_json::from_str(publication.data.get()).unwrap();
            assert_eq!(data[1], push.channel);
            assert!(socket.contains(&push.channel), "heard {push:?}");
            if data[0] == word {
                missing.remove(&push.channel);
            }
        }
    }

    async fn read_back(&mut self, room: &Room, seen: &mut Seen, is_written: bool) {
        // A position that nobody was given, where there is none.
        let since = seen.joined.clone().unwrap_or_default();
        let position = json!({ "epoch": since.epoch, "offset": since.offset });
        let body = json!({ "limit": 300 });
        let native = self.ask("history", room, &body).await;
        let socket = self.socket.history(&room.channel, None, 300, false).await;
        if let (Some(native), Ok(socket)) = (&native, &socket) {
            let count = require_of(room, socket.publications.iter().map(|one| one.data.get()));
            let natively = native["publications"].as_array().unwrap();
            let data: Vec<_> = natively.iter().map(|one| one["data"].to_string()).collect();
            assert_eq!(require_of(room, data.iter().map(String::as_str)), count);
            assert!(count >= usize::from(is_written));
        }
        seen.cells
            .push(("history", native.is_some(), is_allowed(socket)));
        let body = json!({ "limit": 300, "since": position, "recover": true });
        let native = self.ask("history", room, &body).await.is_some();
        let socket = self
            .socket
            .history(&room.channel, Some(&since), 300, false)
            .await;
        seen.cells
            .push(("what was missed", native, is_allowed(socket)));
        let joined = seen.joined.is_some();
        if joined {
            let channel = json!({ "channel": room.channel });
            self.socket.call("unsubscribe", channel).await.unwrap();
        }
        // Who may join may recover, and nobody else.
        let recovered = self.socket.subscribe(&room.channel, Some(&since)).await;
        if let Ok(recovered) = &recovered {
            let data = recovered.publications.iter().map(|one| one.data.get());
            assert!(require_of(room, data) >= usize::from(is_written));
            assert!(recovered.recovered, "{room:?}: {recovered:?}");
        }
        assert_eq!(is_allowed(recovered), joined, "{room:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_token_can_do_natively_it_can_do_over_a_socket_and_the_other_way_round() {
    let mut rng = Rng::new(seed("two doors", 31));
    let (mut cells, mut allowed, mut only_sockets) = (0, 0, 0);
    let start = Instant::now();
    for _ in 0..either(1, 4) {
        let nats = Nats::start().await;
        let mut config = Config::new(&nats.url());
        config.client = "command_rate_limit = 0".to_owned();
        config.more = nats.auth_callout() + &options(&mut rng);
        let weir = Weir::start(config).await;
        for _ in 0..either(12, 16) {
            let rooms: BTreeSet<_> = (0..12).map(|_| Room::new(&mut rng)).collect();
            let rooms: Vec<_> = rooms.into_iter().collect();
            let (user, caps) = (rng.pick(&USERS).unwrap(), caps(&mut rng, &rooms));
            let mut writers = Writers::new(&weir, &rooms).await;
            let mut bearer = Bearer::new(&nats, &weir, user, &caps).await;
            let mut all = Vec::new();
            for room in &rooms {
                all.push((room.clone(), bearer.join_and_write(room).await));
            }
            let written = writers.write(&rooms, "all").await;
            bearer.hear("all", &written, &all).await;
            for (room, seen) in &mut all {
                bearer.read_back(room, seen, written.contains(room)).await;
            }
            for (room, seen) in &all {
                for (what, native, socket) in &seen.cells {
                    let case = format!("{what} in {:?} as {user:?} with {caps}", room.channel);
                    assert!(*socket || !native, "only NATS allows {case}");
                    if room.is_for_sockets(&caps) {
                        assert!(!native, "a name or a pattern: {case}");
                        only_sockets += u32::from(*socket);
                    } else {
                        assert_eq!(native, socket, "{case}");
                    }
                    cells += 1;
                    allowed += u32::from(*native);
                }
            }
        }
        let log = weir.log();
        assert!(
            !log.contains("panicked") && !log.contains("disconnected"),
            "{log}"
        );
    }
    assert!(
        cells >= either(450, 2_000) && only_sockets > 0,
        "{cells}, {only_sockets}"
    );
    assert!(
        allowed > cells / 10 && allowed < cells / 2,
        "{allowed} of {cells}"
    );
    figure!(
        "{cells} cells at both doors of a running Weir in {:.1?}: {allowed} allowed at both, {only_sockets} over a socket only",
        start.elapsed()
    );
}
