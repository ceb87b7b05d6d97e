//! Knows: the client protocol v2 in JSON over one socket, byte for byte. Never: Weir's own decoder.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

/// How long a command may take; SDKs give up after 5 s.
const REPLY_DEADLINE: Duration = Duration::from_secs(5);

/// Why a command has no result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    /// An error reply.
    Error {
        code: u32,
        message: String,
        temporary: bool,
    },
    /// The socket ended; 1006 when without a Close frame.
    Closed { code: u16, reason: String },
    /// No reply in time.
    Silent,
}

impl Failure {
    /// The error or close code; 0 for silence.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Error { code, .. } => *code,
            Self::Closed { code, .. } => u32::from(*code),
            Self::Silent => 0,
        }
    }
}

/// A position as clients hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) epoch: String,
    pub(crate) offset: u64,
}

/// A publication, its data as the bytes on the wire.
#[derive(Debug, Deserialize)]
pub(crate) struct Publication {
    pub(crate) data: Box<RawValue>,
    #[serde(default)]
    pub(crate) offset: u64,
    pub(crate) info: Option<Info>,
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
}

/// Who published.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Info {
    #[serde(default)]
    pub(crate) user: String,
    #[serde(default)]
    pub(crate) client: String,
    pub(crate) conn_info: Option<Value>,
    pub(crate) chan_info: Option<Value>,
}

/// What the server sends without being asked.
#[derive(Debug, Deserialize)]
pub(crate) struct Push {
    #[serde(default)]
    pub(crate) channel: String,
    #[serde(rename = "pub")]
    pub(crate) publication: Option<Publication>,
    pub(crate) unsubscribe: Option<Unsubscribed>,
}

/// Told to leave a room.
#[derive(Debug, Deserialize)]
pub(crate) struct Unsubscribed {
    #[serde(default)]
    pub(crate) code: u32,
}

/// The answer to subscribe.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(crate) struct Joined {
    pub(crate) epoch: String,
    pub(crate) offset: u64,
    pub(crate) recovered: bool,
    pub(crate) was_recovering: bool,
    pub(crate) recoverable: bool,
    pub(crate) positioned: bool,
    pub(crate) publications: Vec<Publication>,
    pub(crate) expires: bool,
    pub(crate) ttl: u32,
    pub(crate) data: Value,
}

/// The answer to history.
#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    pub(crate) publications: Vec<Publication>,
    pub(crate) epoch: String,
    pub(crate) offset: u64,
}

#[derive(Debug, Deserialize)]
struct ErrorReply {
    code: u32,
    #[serde(default)]
    message: String,
    #[serde(default)]
    temporary: bool,
}

#[derive(Debug, Deserialize)]
struct Reply {
    #[serde(default)]
    id: u32,
    error: Option<ErrorReply>,
    push: Option<Push>,
    subscribe: Option<Joined>,
    history: Option<Page>,
    connect: Option<Value>,
    unsubscribe: Option<Value>,
    publish: Option<Value>,
    rpc: Option<Value>,
    refresh: Option<Value>,
    presence: Option<Value>,
    presence_stats: Option<Value>,
    sub_refresh: Option<Value>,
}

/// One socket. Pings are answered while it reads.
pub(crate) struct Client {
    socket: WebSocketStream<TcpStream>,
    next_id: u32,
    pushes: VecDeque<Push>,
    replies: BTreeMap<u32, Result<Value, Failure>>,
    joins: BTreeMap<u32, Joined>,
    pages: BTreeMap<u32, Page>,
    closed: Option<Failure>,
    /// Pings that were answered.
    pub(crate) pings: u32,
}

impl Client {
    /// Opens a socket and says nothing.
    pub(crate) async fn open(address: &str) -> Result<Self, Failure> {
        Self::open_narrow(address, None).await
    }

    /// The same with a receive buffer of so many bytes, so that a reader that stops is felt early.
    pub(crate) async fn open_narrow(address: &str, receive: Option<u32>) -> Result<Self, Failure> {
        Self::open_with(address, receive, &[]).await
    }

    /// The same with more headers in the HTTP request.
    pub(crate) async fn open_with(
        address: &str,
        receive: Option<u32>,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Failure> {
        let tcp = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = receive {
            tcp.set_recv_buffer_size(bytes).unwrap();
        }
        Self::open_on(address, tcp, headers).await
    }

    /// The same from another address of this machine, with more headers.
    pub(crate) async fn open_from(
        address: &str,
        from: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Failure> {
        let tcp = TcpSocket::new_v4().unwrap();
        tcp.bind(format!("{from}:0").parse().unwrap()).unwrap();
        Self::open_on(address, tcp, headers).await
    }

    async fn open_on(
        address: &str,
        tcp: TcpSocket,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Failure> {
        let closed = |reason: String| Failure::Closed {
            code: 1006,
            reason: format!("open: {reason}"),
        };
        let peer: SocketAddr = address.parse().unwrap();
        let open = async {
            let stream = tcp.connect(peer).await.map_err(|e| closed(e.to_string()))?;
            stream.set_nodelay(true).unwrap();
            let url = format!("ws://{address}/connection/websocket");
            let mut request = url.into_client_request().unwrap();
            for (name, value) in headers {
                request.headers_mut().insert(*name, value.parse().unwrap());
            }
            tokio_tungstenite::client_async(request, stream)
                .await
                .map_err(|e| closed(e.to_string()))
        };
        let (socket, _) = tokio::time::timeout(REPLY_DEADLINE, open)
            .await
            .map_err(|_| closed("no answer".into()))??;
        Ok(Self {
            socket,
            next_id: 0,
            pushes: VecDeque::new(),
            replies: BTreeMap::new(),
            joins: BTreeMap::new(),
            pages: BTreeMap::new(),
            closed: None,
            pings: 0,
        })
    }

    /// Opens a socket and connects, as a user or as nobody.
    pub(crate) async fn connect(address: &str, user: Option<&str>) -> Result<Self, Failure> {
        let mut client = Self::open(address).await?;
        client.hello(user).await?;
        Ok(client)
    }

    /// The connect command.
    pub(crate) async fn hello(&mut self, user: Option<&str>) -> Result<Value, Failure> {
        let mut connect = json!({ "name": "test" });
        if let Some(user) = user {
            connect["token"] = json!(super::weir::token(user));
        }
        self.call("connect", connect).await
    }

    /// Sends one command and returns its id.
    pub(crate) async fn send(&mut self, method: &str, body: &str) -> Result<u32, Failure> {
        self.next_id += 1;
        let id = self.next_id;
        self.raw(Message::text(format!(
            "{{\"id\":{id},\"{method}\":{body}}}"
        )))
        .await?;
        Ok(id)
    }

    /// Sends a frame as it is.
    pub(crate) async fn raw(&mut self, message: Message) -> Result<(), Failure> {
        if let Some(closed) = &self.closed {
            return Err(closed.clone());
        }
        match self.socket.send(message).await {
            Ok(()) => Ok(()),
            // What the server said before it closed is still to be read.
            Err(_) => loop {
                self.read(Instant::now() + REPLY_DEADLINE).await?;
            },
        }
    }

    /// Sends a command and waits for its result.
    pub(crate) async fn call(&mut self, method: &str, body: Value) -> Result<Value, Failure> {
        let id = self.send(method, &body.to_string()).await?;
        self.reply(id).await
    }

    /// Waits for the reply of an earlier command.
    pub(crate) async fn reply(&mut self, id: u32) -> Result<Value, Failure> {
        let deadline = Instant::now() + REPLY_DEADLINE;
        loop {
            if let Some(reply) = self.replies.remove(&id) {
                return reply;
            }
            self.read(deadline).await?;
        }
    }

    /// True when the reply is here already.
    pub(crate) fn take_reply(&mut self, id: u32) -> Option<Result<Value, Failure>> {
        self.replies.remove(&id)
    }

    /// Joins a room; with a position, recovers from it.
    pub(crate) async fn subscribe(
        &mut self,
        room: &str,
        from: Option<&Position>,
    ) -> Result<Joined, Failure> {
        let mut body = json!({ "channel": room, "flag": 1 });
        if let Some(from) = from {
            body["recover"] = json!(true);
            body["epoch"] = json!(from.epoch);
            body["offset"] = json!(from.offset);
        }
        let id = self.send("subscribe", &body.to_string()).await?;
        self.reply(id).await?;
        Ok(self.joins.remove(&id).unwrap())
    }

    /// Publishes a payload as it is and waits for the acknowledgement.
    pub(crate) async fn publish(&mut self, room: &str, data: &str) -> Result<(), Failure> {
        let id = self.send("publish", &publish_body(room, data)).await?;
        self.reply(id).await.map(drop)
    }

    /// Reads history: exclusive of `since`.
    pub(crate) async fn history(
        &mut self,
        room: &str,
        since: Option<&Position>,
        limit: i32,
        reverse: bool,
    ) -> Result<Page, Failure> {
        let mut body = json!({ "channel": room, "limit": limit, "reverse": reverse });
        if let Some(since) = since {
            body["since"] = json!({ "epoch": since.epoch, "offset": since.offset });
        }
        let id = self.send("history", &body.to_string()).await?;
        self.reply(id).await?;
        Ok(self.pages.remove(&id).unwrap())
    }

    /// The next push, or `None` at the deadline.
    pub(crate) async fn push(&mut self, deadline: Instant) -> Result<Option<Push>, Failure> {
        loop {
            if let Some(push) = self.pushes.pop_front() {
                return Ok(Some(push));
            }
            match self.read(deadline).await {
                Ok(()) => {}
                Err(Failure::Silent) => return Ok(None),
                Err(failure) => return Err(failure),
            }
        }
    }

    /// A push that has come.
    pub(crate) fn take_push(&mut self) -> Option<Push> {
        self.pushes.pop_front()
    }

    /// The next publication within `wait`.
    pub(crate) async fn publication(&mut self, wait: Duration) -> Option<(String, Publication)> {
        let deadline = Instant::now() + wait;
        loop {
            let push = self.push(deadline).await.ok()??;
            if let Some(publication) = push.publication {
                return Some((push.channel, publication));
            }
        }
    }

    /// Reads until the socket ends; what it said then.
    pub(crate) async fn until_closed(&mut self, wait: Duration) -> Failure {
        let deadline = Instant::now() + wait;
        loop {
            if let Err(failure) = self.read(deadline).await {
                return failure;
            }
        }
    }

    /// One frame. A frame may hold several replies. Cancel-safe: nothing is lost when it is dropped.
    pub(crate) async fn read(&mut self, deadline: Instant) -> Result<(), Failure> {
        if let Some(closed) = &self.closed {
            return Err(closed.clone());
        }
        let next = tokio::time::timeout_at(deadline.into(), self.socket.next()).await;
        let Ok(next) = next else {
            return Err(Failure::Silent);
        };
        let failure = match next {
            Some(Ok(Message::Text(text))) => {
                self.take_frame(text.as_str()).await;
                return Ok(());
            }
            Some(Ok(Message::Close(Some(frame)))) => Failure::Closed {
                code: frame.code.into(),
                reason: frame.reason.to_string(),
            },
            Some(Ok(Message::Close(None))) => Failure::Closed {
                code: 1005,
                reason: String::new(),
            },
            Some(Ok(_)) => return Ok(()),
            Some(Err(error)) => Failure::Closed {
                code: 1006,
                reason: error.to_string(),
            },
            None => Failure::Closed {
                code: 1006,
                reason: "end".into(),
            },
        };
        self.closed = Some(failure.clone());
        Err(failure)
    }

    async fn take_frame(&mut self, text: &str) {
        let mut pong = false;
        for line in text.split('\n') {
            if line == "{}" {
                pong = true;
                continue;
            }
            let mut reply: Reply = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("the server sent no JSON reply ({error}): {line}"));
            if let Some(push) = reply.push.take() {
                self.pushes.push_back(push);
                continue;
            }
            self.take_reply_line(reply);
        }
        if pong {
            self.pings += 1;
            // A socket that is gone says so at the next read.
            let _ = self.socket.send(Message::text("{}")).await;
        }
    }

    fn take_reply_line(&mut self, reply: Reply) {
        let id = reply.id;
        if let Some(error) = reply.error {
            let ErrorReply {
                code,
                message,
                temporary,
            } = error;
            self.replies.insert(
                id,
                Err(Failure::Error {
                    code,
                    message,
                    temporary,
                }),
            );
            return;
        }
        let result = [
            reply.connect,
            reply.unsubscribe,
            reply.publish,
            reply.rpc,
            reply.refresh,
            reply.presence,
            reply.presence_stats,
            reply.sub_refresh,
        ]
        .into_iter()
        .flatten()
        .next();
        if let Some(join) = reply.subscribe {
            self.joins.insert(id, join);
            self.replies.insert(id, Ok(Value::Null));
        } else if let Some(page) = reply.history {
            self.pages.insert(id, page);
            self.replies.insert(id, Ok(Value::Null));
        } else {
            self.replies
                .insert(id, Ok(result.expect("a reply names its method")));
        }
    }

    /// Takes the answer of a subscribe whose reply has come.
    pub(crate) fn take_join(&mut self, id: u32) -> Option<Joined> {
        self.joins.remove(&id)
    }
}

/// The body of a publish command, the payload as it is.
pub(crate) fn publish_body(room: &str, data: &str) -> String {
    format!("{{\"channel\":{},\"data\":{data}}}", json!(room))
}

/// True for an error that says the publish may or may not be stored.
pub(crate) fn is_unknown(failure: &Failure) -> bool {
    match failure {
        Failure::Error {
            code: 100, message, ..
        } => message.contains("unknown"),
        Failure::Error { .. } => false,
        Failure::Closed { .. } | Failure::Silent => true,
    }
}
