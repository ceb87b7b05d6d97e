//! Knows: an application's services, over NATS as a queue group or over HTTP, that do as a test tells them. Never:
//! what Weir makes of an answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Client;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::harness::nats::Nats;

/// What a service does with a question.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// Answers this.
    Text(String),
    /// The same, this much later.
    Late(Duration, String),
    /// Never answers.
    Hang,
    /// Answers this so often.
    Many(usize, String),
    /// Answers with another HTTP status.
    Status(u16),
}

/// An answer of JSON.
pub(super) fn json(value: &Value) -> Reply {
    Reply::Text(value.to_string())
}

/// A question as it came in.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// `connect`, `subscribe.vip`, …
    pub(super) event: String,
    pub(super) body: Value,
    /// Names in small letters.
    pub(super) headers: Vec<(String, String)>,
}

type Script = Box<dyn Fn(&Asked) -> Reply + Send>;

/// What services do now, and what they were asked.
#[derive(Clone)]
pub(super) struct Play(Arc<Mutex<Shared>>);

struct Shared {
    script: Script,
    asked: Vec<Asked>,
}

impl Play {
    pub(super) fn new(script: impl Fn(&Asked) -> Reply + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            script: Box::new(script),
            asked: Vec::new(),
        })))
    }

    /// From now on they do this.
    pub(super) fn now(&self, script: impl Fn(&Asked) -> Reply + Send + 'static) {
        self.0.lock().unwrap().script = Box::new(script);
    }

    /// Every question so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.0.lock().unwrap().asked.clone()
    }

    fn reply(&self, asked: Asked) -> Reply {
        let mut shared = self.0.lock().unwrap();
        let reply = (shared.script)(&asked);
        shared.asked.push(asked);
        reply
    }
}

/// A service that runs. Ends on drop.
pub(super) struct Backend {
    task: JoinHandle<()>,
    /// Where it is, if it speaks HTTP.
    pub(super) url: String,
}

impl Backend {
    /// On `hook.>`, as the user that may.
    pub(super) async fn over_nats(nats: &Nats, play: &Play) -> Self {
        // What answers more than once needs more rights than a service has.
        let (client, loud) = (nats.client("backend").await, nats.client("test").await);
        let group = "app".to_owned();
        let mut questions = client.queue_subscribe("hook.>", group).await.unwrap();
        client.flush().await.unwrap();
        let play = play.clone();
        let task = tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                let (client, loud, play) = (client.clone(), loud.clone(), play.clone());
                tokio::spawn(async move { answer(&client, &loud, &play, question).await });
            }
        });
        let url = String::new();
        Self { task, url }
    }

    /// On a port of its own.
    pub(super) async fn over_http(play: &Play) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new()
            .route("/{event}", axum::routing::post(post))
            .with_state(play.clone());
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self { task, url }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(client: &Client, loud: &Client, play: &Play, question: async_nats::Message) {
    let headers = question.headers.iter().flat_map(|headers| headers.iter());
    let asked = Asked {
        event: question.subject.strip_prefix("hook.").unwrap().to_owned(),
        body: serde_json::from_slice(&question.payload).unwrap(),
        headers: headers
            .map(|(name, values)| (name.to_string(), values[0].to_string()))
            .collect(),
    };
    let reply = question.reply.unwrap();
    let (client, times, text) = match play.reply(asked) {
        Reply::Text(text) => (client, 1, text),
        Reply::Late(after, text) => {
            tokio::time::sleep(after).await;
            (client, 1, text)
        }
        Reply::Many(times, text) => (loud, times, text),
        Reply::Hang | Reply::Status(_) => return,
    };
    for _ in 0..times {
        client
            .publish(reply.clone(), text.clone().into())
            .await
            .unwrap();
    }
}

async fn post(
    State(play): State<Play>,
    Path(event): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    let asked = Asked {
        event,
        body: serde_json::from_slice(&body).unwrap(),
        headers: headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect(),
    };
    match play.reply(asked) {
        Reply::Text(text) => text.into_response(),
        Reply::Late(after, text) => {
            tokio::time::sleep(after).await;
            text.into_response()
        }
        Reply::Many(times, text) => text.repeat(times).into_response(),
        Reply::Hang => std::future::pending().await,
        Reply::Status(status) => {
            let status = StatusCode::from_u16(status).unwrap();
            (status, [(header::LOCATION, "/elsewhere")], "").into_response()
        }
    }
}
