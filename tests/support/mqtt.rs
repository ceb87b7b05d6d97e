//! Knows: as much of MQTT 3.1.1 as a device with a token needs. Never: what must come back.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A device that is connected.
pub(crate) struct Mqtt {
    stream: TcpStream,
    packets: u16,
}

impl Mqtt {
    /// Connects with a clean session.
    ///
    /// # Errors
    /// The return code of CONNACK, or `None` if the connection was closed without one.
    pub(crate) async fn connect(
        port: u16,
        id: &str,
        user: &str,
        password: &str,
    ) -> Result<Self, Option<u8>> {
        Self::connect_with_will(port, id, user, password, None).await
    }

    /// The same with topic and payload of a will, which the server publishes (QoS 1) when the connection breaks.
    ///
    /// # Errors
    /// As of [`Mqtt::connect`].
    pub(crate) async fn connect_with_will(
        port: u16,
        id: &str,
        user: &str,
        password: &str,
        will: Option<(&str, &str)>,
    ) -> Result<Self, Option<u8>> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut mqtt = Self { stream, packets: 0 };
        let mut body = text("MQTT");
        // Level 4; user, password, clean session; no keep-alive.
        let flags = if will.is_some() {
            0b1100_1110
        } else {
            0b1100_0010
        };
        body.extend([4, flags, 0, 0]);
        let (topic, payload) = will.unzip();
        for field in [Some(id), topic, payload, Some(user), Some(password)] {
            body.extend(field.map(text).unwrap_or_default());
        }
        mqtt.send(0x10, &body).await;
        match mqtt.packet().await {
            Some((0x20, answer)) if answer[1] == 0 => Ok(mqtt),
            Some((0x20, answer)) => Err(Some(answer[1])),
            _ => Err(None),
        }
    }

    /// The return code of SUBACK: the granted QoS, or 128.
    pub(crate) async fn subscribe(&mut self, filter: &str) -> u8 {
        let mut body = self.next_id();
        body.extend(text(filter));
        body.push(0);
        self.send(0x82, &body).await;
        self.packet_of(0x90).await[2]
    }

    /// Publishes and waits until the server has taken it: for PUBACK (QoS 1), PUBCOMP (2), or PINGRESP (0).
    pub(crate) async fn publish(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        let mut body = text(topic);
        let id = self.next_id();
        if qos > 0 {
            body.extend(&id);
        }
        body.extend(payload.as_bytes());
        self.send(0x30 | qos << 1 | u8::from(retain), &body).await;
        match qos {
            0 => {
                self.send(0xc0, &[]).await;
                self.packet_of(0xd0).await;
            }
            1 => assert_eq!(self.packet_of(0x40).await, id),
            _ => {
                assert_eq!(self.packet_of(0x50).await, id);
                self.send(0x62, &id).await;
                assert_eq!(self.packet_of(0x70).await, id);
            }
        }
    }

    /// Topic and payload of the next message at QoS 0.
    pub(crate) async fn message(&mut self) -> (String, String) {
        let body = self.packet_of(0x30).await;
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (of(&body[2..2 + length]), of(&body[2 + length..]))
    }

    /// Waits until the server ends it.
    pub(crate) async fn until_closed(&mut self) {
        while self.packet().await.is_some() {}
    }

    fn next_id(&mut self) -> Vec<u8> {
        self.packets += 1;
        self.packets.to_be_bytes().to_vec()
    }

    async fn packet_of(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let (found, body) = self.packet().await.expect("the connection lives");
            if found & 0xf0 == kind {
                return body;
            }
        }
    }

    async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let kind = self.stream.read_u8().await.ok()?;
            let (mut length, mut shift) = (0_usize, 0);
            loop {
                let byte = self.stream.read_u8().await.ok()?;
                length |= usize::from(byte & 127) << shift;
                shift += 7;
                if byte < 128 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((kind, body))
        };
        timeout(PATIENCE, read).await.expect("an answer")
    }

    async fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut length = body.len();
        loop {
            let byte = u8::try_from(length % 128).unwrap();
            length /= 128;
            packet.push(if length > 0 { byte | 128 } else { byte });
            if length == 0 {
                break;
            }
        }
        packet.extend(body);
        self.stream.write_all(&packet).await.unwrap();
    }
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    [&length.to_be_bytes(), text.as_bytes()].concat()
}
