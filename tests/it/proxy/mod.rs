//! Knows: a TCP proxy between a NATS client and nats-server that can lose, hold, cut and freeze what
//! goes by, message by message. Never: Weir.

pub(crate) mod wire;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use wire::{Frame, From, next_frame};

type Wanted = Box<dyn Fn(&Frame) -> bool + Send>;

/// What a rule loses.
enum Loss {
    /// The messages that match.
    Message,
    /// The answers to the publishes that match: their reply subjects are collected here.
    Answer(HashSet<String>),
}

struct Rule {
    wanted: Wanted,
    loss: Loss,
    left: usize,
    hits: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    rules: Mutex<Vec<Rule>>,
    refusing: AtomicBool,
    connections: AtomicUsize,
    accepted: AtomicUsize,
}

/// How often a rule has lost something.
#[derive(Clone, Default)]
pub(crate) struct Hits(Arc<AtomicUsize>);

impl Hits {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// A proxy in front of one nats-server.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
    frozen: watch::Sender<bool>,
    cut: watch::Sender<u64>,
    accept: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `127.0.0.1:target`.
    pub(crate) async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let (frozen, _) = watch::channel(false);
        let (cut, _) = watch::channel(0);
        let accept = tokio::spawn(accept(
            listener,
            target,
            Arc::clone(&state),
            frozen.clone(),
            cut.clone(),
        ));
        Self {
            port,
            state,
            frozen,
            cut,
            accept,
        }
    }

    /// The address to give to the client.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn rule(&self, left: usize, loss: Loss, wanted: Wanted) -> Hits {
        let hits = Hits::default();
        let rule = Rule {
            wanted,
            loss,
            left,
            hits: Arc::clone(&hits.0),
        };
        self.state.rules.lock().unwrap().push(rule);
        hits
    }

    /// Loses the next `count` messages that match.
    pub(crate) fn lose(
        &self,
        count: usize,
        wanted: impl Fn(&Frame) -> bool + Send + 'static,
    ) -> Hits {
        self.rule(count, Loss::Message, Box::new(wanted))
    }

    /// Loses the answers to the next `count` publishes that match and ask for one.
    pub(crate) fn lose_answers(
        &self,
        count: usize,
        wanted: impl Fn(&Frame) -> bool + Send + 'static,
    ) -> Hits {
        self.rule(count, Loss::Answer(HashSet::new()), Box::new(wanted))
    }

    /// Loses nothing from now on.
    pub(crate) fn heal(&self) {
        self.state.rules.lock().unwrap().clear();
        self.state.refusing.store(false, Ordering::Release);
        self.frozen.send_replace(false);
    }

    /// Holds every byte, both ways; connections stay open.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Lets the held bytes go on.
    pub(crate) fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// Ends all connections; new ones are taken.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// Ends all connections and takes no new ones until healed.
    pub(crate) fn refuse(&self) {
        self.state.refusing.store(true, Ordering::Release);
        self.cut();
    }

    /// Connections that were ever taken.
    pub(crate) fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::Acquire)
    }

    /// Connections open now.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    target: u16,
    state: Arc<State>,
    frozen: watch::Sender<bool>,
    cut: watch::Sender<u64>,
) {
    while let Ok((client, _)) = listener.accept().await {
        if state.refusing.load(Ordering::Acquire) {
            continue;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
            continue;
        };
        state.accepted.fetch_add(1, Ordering::AcqRel);
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let state = Arc::clone(&state);
        let (frozen_up, frozen_down) = (frozen.subscribe(), frozen.subscribe());
        let mut cut = cut.subscribe();
        tokio::spawn(async move {
            state.connections.fetch_add(1, Ordering::AcqRel);
            tokio::select! {
                () = pump(From::Client, from_client, to_server, &state, frozen_up) => {}
                () = pump(From::Server, from_server, to_client, &state, frozen_down) => {}
                _ = cut.changed() => {}
            }
            state.connections.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// Forwards until one side ends.
async fn pump(
    from: From,
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    state: &State,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = BytesMut::with_capacity(64 << 10);
    let mut out = BytesMut::new();
    loop {
        match read.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if frozen.wait_for(|frozen| !frozen).await.is_err() {
            return;
        }
        while let Some(frame) = next_frame(from, &mut buffer) {
            if state.passes(&frame) {
                out.extend_from_slice(&frame.raw);
            }
        }
        if !out.is_empty() && write.write_all(&out.split()).await.is_err() {
            return;
        }
    }
}

impl State {
    /// False when a rule loses this message.
    fn passes(&self, frame: &Frame) -> bool {
        if !frame.is_publish() && !frame.is_message() {
            return true;
        }
        let mut rules = self.rules.lock().unwrap();
        for rule in rules.iter_mut() {
            let lost = match &mut rule.loss {
                Loss::Message => rule.left > 0 && (rule.wanted)(frame),
                Loss::Answer(replies) => {
                    if frame.is_publish() {
                        if let Some(reply) = &frame.reply
                            && replies.len() < rule.left
                            && (rule.wanted)(frame)
                        {
                            replies.insert(reply.clone());
                        }
                        false
                    } else {
                        replies.remove(&frame.subject)
                    }
                }
            };
            if lost {
                rule.left -= 1;
                rule.hits.fetch_add(1, Ordering::AcqRel);
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use futures_util::StreamExt as _;

    use super::*;
    use crate::harness::nats::Nats;
    use crate::harness::within;

    async fn client(proxy: &Proxy) -> async_nats::Client {
        async_nats::ConnectOptions::with_user_and_password("test".into(), "test".into())
            .request_timeout(Some(Duration::from_millis(500)))
            .connect(proxy.url())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn exactly_the_wanted_messages_and_answers_are_lost() {
        let nats = Nats::start().await;
        let proxy = Proxy::start(nats.port).await;
        let client = client(&proxy).await;
        let mut live = client.subscribe("room.>").await.unwrap();
        client.flush().await.unwrap();
        let last = proxy.lose(1, |frame| {
            frame.is_message() && frame.subject.starts_with("room.") && frame.holds("n=9")
        });
        for n in 0..20 {
            client
                .publish("room.a.b", format!("n={n};").into())
                .await
                .unwrap();
        }
        for n in (0..20).filter(|n| *n != 9) {
            let message = within("live message", Duration::from_secs(5), live.next()).await;
            assert_eq!(message.unwrap().payload, format!("n={n};").as_bytes());
        }
        assert_eq!(last.count(), 1);

        let mut service = client.subscribe("log.>").await.unwrap();
        let answering = client.clone();
        tokio::spawn(async move {
            while let Some(request) = service.next().await {
                answering
                    .publish(request.reply.unwrap(), "ack".into())
                    .await
                    .unwrap();
            }
        });
        client.flush().await.unwrap();
        let acks = proxy.lose_answers(2, |frame| frame.subject.starts_with("log."));
        for _ in 0..2 {
            assert!(client.request("log.x", "p".into()).await.is_err());
        }
        assert_eq!(
            client.request("log.x", "p".into()).await.unwrap().payload,
            "ack"
        );
        assert_eq!(acks.count(), 2);
    }

    #[tokio::test]
    async fn frozen_bytes_come_later_and_cut_connections_come_back() {
        let nats = Nats::start().await;
        let proxy = Proxy::start(nats.port).await;
        let client = client(&proxy).await;
        let mut live = client.subscribe("room.x").await.unwrap();
        client.flush().await.unwrap();
        proxy.freeze();
        let sent = Instant::now();
        client.publish("room.x", "held".into()).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(200), live.next()).await;
        assert!(early.is_err(), "a frozen proxy let a message by");
        proxy.thaw();
        within("the held message", Duration::from_secs(5), live.next())
            .await
            .unwrap();
        assert!(sent.elapsed() >= Duration::from_millis(200));

        proxy.cut();
        let deadline = Instant::now() + Duration::from_secs(10);
        while client
            .request("nobody", "x".into())
            .await
            .is_err_and(|error| error.kind() != async_nats::RequestErrorKind::NoResponders)
        {
            assert!(Instant::now() < deadline, "not connected again");
        }
        assert_eq!(proxy.connections(), 1);
        client.publish("room.x", "again".into()).await.unwrap();
        let message = within("after the cut", Duration::from_secs(5), live.next()).await;
        assert_eq!(message.unwrap().payload, "again");
        proxy.refuse();
        proxy.heal();
    }
}
