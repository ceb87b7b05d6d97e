//! Knows: a frame that is too large is refused by its header alone: nothing of it is waited for, kept or parsed.
//! Never: other mistakes in frames (hostile/frames.rs).

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::figures::figure;
use crate::harness::rig::Rig;
use crate::harness::{either, within};

/// `websocket.message_size_limit`.
const LIMIT: u64 = 65_536;
const WITHIN: Duration = Duration::from_secs(20);

async fn upgraded(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /connection/websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    stream
}

/// The header of a masked frame that says how long its payload is.
fn header(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match (u16::try_from(length), length) {
        (_, ..126) => bytes.push(0x80 | length as u8),
        (Ok(length), _) => {
            bytes.push(0x80 | 126);
            bytes.extend(length.to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes
}

/// The code of the Close frame that comes next.
async fn close_code(stream: &mut TcpStream) -> u16 {
    within("a close frame", WITHIN, async {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(head[0], 0x88, "not a Close frame: {head:?}");
        u16::from_be_bytes([head[2], head[3]])
    })
    .await
}

const TEXT: u8 = 0x81;
const FIRST_PART: u8 = 0x01;
const LAST_PART: u8 = 0x80;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_too_large_are_refused_by_their_header() {
    let mut rig = Rig::servers(1, false, |_| {}).await;
    let address = rig.weir.address();
    // Not a byte of the payload is sent: whoever waits for it does not answer.
    for length in [LIMIT + 1, 1 << 30, (1 << 63) - 1] {
        let mut stream = upgraded(&address).await;
        stream.write_all(&header(TEXT, length)).await.unwrap();
        assert_eq!(close_code(&mut stream).await, 1009, "{length} bytes");
    }
    // In parts it is as large as its parts together.
    let mut stream = upgraded(&address).await;
    stream
        .write_all(&header(FIRST_PART, LIMIT - 10))
        .await
        .unwrap();
    stream
        .write_all(&vec![b' '; LIMIT as usize - 10])
        .await
        .unwrap();
    stream.write_all(&header(LAST_PART, 11)).await.unwrap();
    assert_eq!(close_code(&mut stream).await, 1009, "in parts");
    // The limit itself is read; it is no command.
    let mut stream = upgraded(&address).await;
    stream.write_all(&header(TEXT, LIMIT)).await.unwrap();
    stream.write_all(&vec![b'x'; LIMIT as usize]).await.unwrap();
    assert_eq!(close_code(&mut stream).await, 3501, "at the limit");

    // Many that promise a gigabyte each cost no memory.
    let before = rig.weir.memory_bytes();
    let many = either(200, 2_000);
    let mut streams = Vec::new();
    for _ in 0..many {
        let mut stream = upgraded(&address).await;
        stream.write_all(&header(TEXT, 1 << 30)).await.unwrap();
        streams.push(stream);
    }
    for stream in &mut streams {
        assert_eq!(close_code(stream).await, 1009);
    }
    let more = rig.weir.memory_bytes().saturating_sub(before);
    figure!(
        "{many} frames of a gigabyte by their header: {} KiB more",
        more >> 10
    );
    assert!(more < (32 << 20) + many * (16 << 10), "{more} bytes more");
    assert!(rig.weir.ended().is_none());
}
