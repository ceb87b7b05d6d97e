//! Knows: the floor, a server that answers connect, subscribe and publish of the JSON client protocol.
//! Never: anything else.
//!
//! A publication is encoded into one WebSocket frame and written straight to every member's socket. No history, no queue
//! (a socket that would block loses the message and is counted), no pings, no checks. What it costs is what the kernel,
//! the runtime and one formatted string cost, so it is the mark that a real server is measured against.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use sha1::Digest as _;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};

type Members = Arc<RwLock<Vec<Arc<TcpStream>>>>;

#[derive(Default)]
struct Rooms {
    by_name: Mutex<HashMap<String, (Members, Arc<AtomicU64>)>>,
    dropped: AtomicU64,
}

impl Rooms {
    fn get(&self, name: &str) -> (Members, Arc<AtomicU64>) {
        let mut rooms = self.by_name.lock().expect("no panic while held");
        let (members, offset) = rooms.entry(name.to_owned()).or_default();
        (Arc::clone(members), Arc::clone(offset))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:8000".into());
    let listener = TcpListener::bind(&address).await?;
    println!("floor listens on {address}");
    let rooms = Arc::new(Rooms::default());
    loop {
        let (stream, _) = listener.accept().await?;
        let rooms = Arc::clone(&rooms);
        tokio::spawn(async move {
            stream.set_nodelay(true).ok();
            let stream = Arc::new(stream);
            let mut joined = Vec::new();
            // Every connection ends in an error: its client goes away.
            drop(serve(&stream, &rooms, &mut joined).await);
            for members in joined {
                members
                    .write()
                    .expect("no panic while held")
                    .retain(|m| !Arc::ptr_eq(m, &stream));
            }
        });
    }
}

async fn serve(stream: &Arc<TcpStream>, rooms: &Rooms, joined: &mut Vec<Members>) -> Result<()> {
    let mut input = Vec::new();
    let head = loop {
        read_more(stream, &mut input).await?;
        if let Some(end) = find(&input, b"\r\n\r\n") {
            break input.drain(..end + 4).collect::<Vec<u8>>();
        }
    };
    let key = std::str::from_utf8(&head)?
        .lines()
        .find_map(|l| {
            l.split_once(':')
                .filter(|(k, _)| k.eq_ignore_ascii_case("sec-websocket-key"))
                .map(|(_, v)| v.trim())
        })
        .context("no key")?;
    let accept = base64::engine::general_purpose::STANDARD.encode(sha1::Sha1::digest(format!(
        "{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    )));
    write_all(
        stream,
        format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n").as_bytes(),
    )
    .await?;
    loop {
        while let Some(text) = take_frame(&mut input)? {
            for line in text.split(|b| *b == b'\n').filter(|l| l.len() > 2) {
                command(stream, rooms, joined, &serde_json::from_slice(line)?).await?;
            }
        }
        if input.is_empty() {
            input = Vec::new(); // an idle connection keeps no buffer
        }
        read_more(stream, &mut input).await?;
    }
}

async fn command(
    stream: &Arc<TcpStream>,
    rooms: &Rooms,
    joined: &mut Vec<Members>,
    command: &serde_json::Value,
) -> Result<()> {
    let id = &command["id"];
    if command.get("connect").is_some() {
        let reply = format!(
            r#"{{"id":{id},"connect":{{"client":"floor","version":"0","ping":25,"pong":true}}}}"#
        );
        write_all(stream, &frame(reply.as_bytes())).await
    } else if let Some(params) = command.get("subscribe") {
        let (members, offset) = rooms.get(params["channel"].as_str().context("channel")?);
        members
            .write()
            .expect("no panic while held")
            .push(Arc::clone(stream));
        joined.push(members);
        let offset = offset.load(Ordering::Relaxed);
        let reply = format!(
            r#"{{"id":{id},"subscribe":{{"recoverable":true,"epoch":"floor","offset":{offset}}}}}"#
        );
        write_all(stream, &frame(reply.as_bytes())).await
    } else if let Some(params) = command.get("publish") {
        let channel = params["channel"].as_str().context("channel")?;
        let (members, offset) = rooms.get(channel);
        let offset = offset.fetch_add(1, Ordering::Relaxed) + 1;
        let push = format!(
            r#"{{"push":{{"channel":"{channel}","pub":{{"data":{},"offset":{offset}}}}}}}"#,
            params["data"]
        );
        let push = frame(push.as_bytes());
        for member in members.read().expect("no panic while held").iter() {
            if !matches!(member.try_write(&push), Ok(n) if n == push.len()) {
                rooms.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        write_all(
            stream,
            &frame(format!(r#"{{"id":{id},"publish":{{}}}}"#).as_bytes()),
        )
        .await
    } else {
        bail!("not a command of the floor: {command}")
    }
}

/// A server's text frame.
fn frame(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 4);
    out.push(0x81);
    match u8::try_from(text.len()) {
        Ok(len) if len < 126 => out.push(len),
        _ => {
            out.push(126);
            out.extend_from_slice(
                &u16::try_from(text.len())
                    .expect("floor payloads are small")
                    .to_be_bytes(),
            );
        }
    }
    out.extend_from_slice(text);
    out
}

/// Takes one whole masked frame off the input, if there is one.
fn take_frame(input: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let Some(len_byte) = input.get(1) else {
        return Ok(None);
    };
    let (mut len, mut at) = (usize::from(len_byte & 0x7f), 2);
    if len == 126 {
        let Some(bytes) = input.get(2..4) else {
            return Ok(None);
        };
        len = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
        at = 4;
    }
    if input.len() < at + 4 + len {
        return Ok(None);
    }
    if input[0] & 0x0f == 8 {
        bail!("closed");
    }
    let mask: [u8; 4] = input[at..at + 4].try_into()?;
    let text = input[at + 4..at + 4 + len]
        .iter()
        .zip(mask.iter().cycle())
        .map(|(b, m)| b ^ m)
        .collect();
    input.drain(..at + 4 + len);
    Ok(Some(text))
}

async fn read_more(stream: &TcpStream, input: &mut Vec<u8>) -> Result<()> {
    let mut chunk = [0; 2048];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut chunk) {
            Ok(0) => bail!("closed"),
            Ok(n) => {
                input.extend_from_slice(&chunk[..n]);
                return Ok(());
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
    }
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                stream.ready(Interest::WRITABLE).await?;
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}
