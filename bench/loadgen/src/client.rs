//! Knows: one client connection speaking the JSON client protocol. Never: what is measured.
//!
//! It does as little work per frame as possible, so that the generator's own cost stays small beside
//! the server's.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_websockets::{ClientBuilder, Message, WebSocketStream};

/// Where and as whom to connect.
#[derive(Clone, clap::Args)]
pub struct Target {
    /// WebSocket address of the server.
    #[arg(long, default_value = "ws://127.0.0.1:8000/connection/websocket")]
    pub url: String,
}

/// A connected client.
pub struct Client {
    ws: WebSocketStream<TcpStream>,
    next_id: u32,
}

/// Position of a subscription: (offset, epoch).
pub type Position = (u64, String);

/// What a subscribe reply said.
pub struct Subscribed {
    pub position: Position,
    pub recovered: bool,
    /// Raw recovered publications.
    pub publications: Vec<Value>,
}

impl Client {
    /// Connects number `n`. Source addresses spread over 127.0.0.x, 20,000 to each, to outrun the port range.
    pub async fn connect(target: &Target, n: usize) -> Result<Self> {
        let uri: http::Uri = target.url.parse().context("url")?;
        let host: SocketAddr = format!(
            "{}:{}",
            uri.host().context("host")?,
            uri.port_u16().unwrap_or(80)
        )
        .replace("localhost", "127.0.0.1")
        .parse()?;
        let socket = TcpSocket::new_v4()?;
        let source = Ipv4Addr::new(127, 0, 0, u8::try_from(1 + n / 20_000)?);
        socket.bind(SocketAddr::from((source, 0)))?;
        let stream = socket.connect(host).await?;
        stream.set_nodelay(true)?;
        let (ws, _) = ClientBuilder::from_uri(uri).connect_on(stream).await?;
        let mut client = Self { ws, next_id: 0 };
        let reply = client.call("connect", json!({})).await?;
        if reply.get("connect").is_none() {
            bail!("connect refused: {reply}");
        }
        Ok(client)
    }

    /// Sends one command and waits for its reply, skipping pushes and answering pings.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        let id = self.send(method, &params).await?;
        loop {
            let frame = self.frame().await?;
            for line in frame.split(|b| *b == b'\n').filter(|l| l.len() > 2) {
                let value: Value = serde_json::from_slice(line)?;
                if value["id"].as_u64() == Some(u64::from(id)) {
                    if value.get("error").is_some() {
                        bail!("{method}: {}", value["error"]);
                    }
                    return Ok(value);
                }
            }
        }
    }

    /// Sends one command without waiting; the reply carries the returned id.
    pub async fn send(&mut self, method: &str, params: &Value) -> Result<u32> {
        self.next_id += 1;
        let text = format!("{{\"id\":{},\"{method}\":{params}}}", self.next_id);
        self.ws.send(Message::text(text)).await?;
        Ok(self.next_id)
    }

    /// Subscribes; with `since`, asks to recover from that position.
    pub async fn subscribe(
        &mut self,
        channel: &str,
        since: Option<&Position>,
    ) -> Result<Subscribed> {
        let params = match since {
            None => json!({ "channel": channel }),
            Some((offset, epoch)) => {
                json!({ "channel": channel, "recover": true, "offset": offset, "epoch": epoch })
            }
        };
        let mut reply = self.call("subscribe", params).await?;
        let result = reply["subscribe"].take();
        Ok(Subscribed {
            position: (
                result["offset"].as_u64().unwrap_or(0),
                result["epoch"].as_str().unwrap_or("").to_owned(),
            ),
            recovered: result["recovered"].as_bool().unwrap_or(false),
            publications: result["publications"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        })
    }

    /// The next frame that is not a ping; pings are answered here.
    pub async fn frame(&mut self) -> Result<Bytes> {
        loop {
            let message = self.ws.next().await.context("closed by the server")??;
            if message.is_close() {
                bail!("closed by the server: {:?}", message.as_close());
            }
            let payload: Bytes = message.into_payload().into();
            if &payload[..] == b"{}" {
                self.ws.send(Message::text("{}")).await?;
                continue;
            }
            return Ok(payload);
        }
    }
}

trait NextExt {
    async fn next(&mut self) -> Option<Result<Message, tokio_websockets::Error>>;
}
impl NextExt for WebSocketStream<TcpStream> {
    async fn next(&mut self) -> Option<Result<Message, tokio_websockets::Error>> {
        std::future::poll_fn(|cx| futures_util::Stream::poll_next(std::pin::Pin::new(self), cx))
            .await
    }
}
