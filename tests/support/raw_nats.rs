//! Knows: NATS' protocol as far as a hostile client needs it: anything may be sent, and what comes back is seen.
//! Never: what must come back.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that is logged in.
pub(crate) struct Raw {
    stream: BufReader<TcpStream>,
    sids: u64,
    heard: VecDeque<Heard>,
}

/// A message.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) subject: String,
    pub(crate) headers: String,
    pub(crate) payload: String,
}

impl Raw {
    /// Connects with a token.
    ///
    /// # Errors
    /// What the server said when it refused.
    pub(crate) async fn login(port: u16, token: &str) -> Result<Self, String> {
        Self::connect(port, &serde_json::json!({ "auth_token": token })).await
    }

    /// The same with any options.
    ///
    /// # Errors
    /// What the server said when it refused.
    pub(crate) async fn connect(port: u16, options: &serde_json::Value) -> Result<Self, String> {
        let mut options = options.clone();
        options["verbose"] = false.into();
        options["headers"] = true.into();
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Self {
            stream: BufReader::new(stream),
            sids: 0,
            heard: VecDeque::new(),
        };
        let info = raw.line().await?;
        assert!(info.starts_with("INFO "), "{info}");
        raw.send(&format!("CONNECT {options}\r\n")).await?;
        let said = raw.after("").await?;
        if said.is_empty() {
            Ok(raw)
        } else {
            Err(said.join(" "))
        }
    }

    /// True if a publish on `subject` is not refused.
    pub(crate) async fn may_publish(&mut self, subject: &str) -> bool {
        let said = self
            .after(&format!("PUB {subject} 2\r\n{{}}\r\n"))
            .await
            .unwrap();
        is_allowed(&said)
    }

    /// True if a subscription is not refused. It is ended again.
    pub(crate) async fn may_hear(&mut self, subject: &str) -> bool {
        self.sids += 1;
        let sid = self.sids;
        let said = self
            .after(&format!("SUB {subject} {sid}\r\nUNSUB {sid}\r\n"))
            .await
            .unwrap();
        is_allowed(&said)
    }

    /// True if a subscription is not refused. It stays.
    pub(crate) async fn hear(&mut self, subject: &str) -> bool {
        self.sids += 1;
        let subscribe = format!("SUB {subject} {}\r\n", self.sids);
        is_allowed(&self.after(&subscribe).await.unwrap())
    }

    /// What is answered to a request, or `None` if the server refuses it. What is heard meanwhile is kept. `inbox` is
    /// subscribed to already.
    pub(crate) async fn request(
        &mut self,
        subject: &str,
        inbox: &str,
        data: &str,
    ) -> Option<String> {
        let bytes = data.len();
        self.send(&format!("PUB {subject} {inbox} {bytes}\r\n{data}\r\n"))
            .await
            .unwrap();
        loop {
            let line = self.line().await.unwrap();
            if let Some(heard) = self.message(&line).await.unwrap() {
                if heard.subject == inbox {
                    assert!(
                        !heard.headers.starts_with("NATS/1.0 503"),
                        "nobody answers {subject}"
                    );
                    return Some(heard.payload);
                }
                self.heard.push_back(heard);
            } else if line.starts_with("-ERR") {
                assert!(!is_allowed(&[line]));
                return None;
            } else if line == "PING" {
                self.send("PONG\r\n").await.unwrap();
            }
        }
    }

    /// The next message, which may have come before.
    pub(crate) async fn next(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return heard;
            }
            let line = self.line().await.unwrap();
            if let Some(heard) = self.message(&line).await.unwrap() {
                return heard;
            }
            if line == "PING" {
                self.send("PONG\r\n").await.unwrap();
            }
        }
    }

    /// Sends, and returns what the server said about it.
    ///
    /// # Errors
    /// What it said before it closed the connection.
    pub(crate) async fn after(&mut self, text: &str) -> Result<Vec<String>, String> {
        self.send(&format!("{text}PING\r\n")).await?;
        let mut said: Vec<String> = Vec::new();
        loop {
            let line = self.line().await;
            let line = line.map_err(|error| format!("{} {error}", said.join(" ")))?;
            if let Some(heard) = self.message(&line).await? {
                self.heard.push_back(heard);
                continue;
            }
            match line.as_str() {
                "PONG" => return Ok(said),
                "PING" => self.send("PONG\r\n").await?,
                _ if line.starts_with("INFO ") => {}
                _ => said.push(line),
            }
        }
    }

    /// The next line, of whatever kind.
    ///
    /// # Errors
    /// The connection is closed.
    pub(crate) async fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.stream.read_line(&mut line)).await;
        match read.map_err(|_| "silence")? {
            Ok(0) => Err("closed".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits until the server ends it.
    pub(crate) async fn until_closed(&mut self) {
        loop {
            match self.line().await {
                Ok(_) => {}
                Err(error) if error == "silence" => panic!("it stays open"),
                Err(_) => return,
            }
        }
    }

    /// The message that begins with a line, if it is one.
    async fn message(&mut self, line: &str) -> Result<Option<Heard>, String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<usize>().map_err(|error| error.to_string());
        let (headers, bytes) = match words.as_slice() {
            ["MSG", .., bytes] => (0, number(bytes)?),
            ["HMSG", .., headers, bytes] => (number(headers)?, number(bytes)?),
            _ => return Ok(None),
        };
        let mut body = vec![0; bytes + "\r\n".len()];
        let read = timeout(PATIENCE, self.stream.read_exact(&mut body)).await;
        let read = read.map_err(|_| "silence")?;
        read.map_err(|error| error.to_string())?;
        let of = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
        Ok(Some(Heard {
            subject: words[1].to_owned(),
            headers: of(&body[..headers]),
            payload: of(&body[headers..bytes]),
        }))
    }

    async fn send(&mut self, text: &str) -> Result<(), String> {
        let sent = self.stream.write_all(text.as_bytes()).await;
        sent.map_err(|error| error.to_string())
    }
}

fn is_allowed(said: &[String]) -> bool {
    assert!(
        said.iter()
            .all(|line| line.starts_with("-ERR 'Permissions Violation")),
        "{said:?}"
    );
    said.is_empty()
}
