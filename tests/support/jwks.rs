//! Knows: an issuer's address with keys, as a real HTTP server that can be slow, wrong or gone. Never:
//! how Weir asks.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// 200 with this body.
    Body(String),
    /// The same, this much later.
    Late(Duration, String),
    /// Another status, with more header lines.
    Status(u16, String),
    /// The connection is closed.
    Hangup,
}

/// A server on a free port of this machine. Ends on drop.
pub(crate) struct KeyServer {
    pub(crate) address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

struct Shared {
    answer: Answer,
    requests: Vec<String>,
}

impl KeyServer {
    pub(crate) async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared {
            answer,
            requests: Vec::new(),
        }));
        let for_task = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&for_task);
                tokio::spawn(async move {
                    // A client that went away is what some tests want.
                    serve(stream, &shared).await.unwrap_or_default();
                });
            }
        });
        Self {
            address,
            shared,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/keys.json?of=tests", self.address)
    }

    pub(crate) fn now(&self, answer: Answer) {
        self.shared.lock().unwrap().answer = answer;
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.shared.lock().unwrap().requests.len()
    }

    /// The heads of all requests.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.shared.lock().unwrap().requests.clone()
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let answer = {
        let mut shared = shared.lock().unwrap();
        shared
            .requests
            .push(String::from_utf8_lossy(&head).into_owned());
        shared.answer.clone()
    };
    let (status, more, body) = match answer {
        Answer::Body(body) => (200, String::new(), body),
        Answer::Late(after, body) => {
            tokio::time::sleep(after).await;
            (200, String::new(), body)
        }
        Answer::Status(status, more) => (status, more, String::new()),
        Answer::Hangup => return Ok(()),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} S\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await
}
