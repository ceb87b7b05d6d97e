//! Knows: who is connected to the nats-servers (CONNZ), and how one of them is sent away (KICK). Never: why.
//!
//! A user of the system account does both, and can do nothing else there.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;

use crate::connect::{ConnectConfig, ConnectError, Credentials, connect_as};

const LIST: &str = "$SYS.REQ.SERVER.PING.CONNZ";
/// Connections in one answer of one server.
const PAGE_CONNECTIONS: usize = 1_024;
/// Pages of a list.
const PAGES_MAX: usize = 128;
/// For the first server to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Nobody knows how many servers there are: after so long without another answer it was the last.
const ANSWERS_PAUSE: Duration = Duration::from_millis(250);

/// One connection of a user whom a callout let in, or of one of a server's configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// When it began, in nanoseconds since 1970, by its server's clock.
    pub start_ns: i128,
    /// Its server's id.
    pub server: String,
    /// Its number there; never given twice while the server runs.
    pub cid: u64,
    /// The user's name, which of a callout's users is `<user>:<token id>`, see
    /// [`Admission`](crate::callout::Admission).
    pub user: String,
}

impl Connection {
    /// User and token id (both escaped as in subjects) of one whom the callout let in; users of a server's
    /// configuration have no colon.
    #[must_use]
    pub fn of_token(&self) -> Option<(&str, &str)> {
        self.user.split_once(':')
    }
}

/// Why there is no list, or nobody was sent away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionsError {
    /// No server answered in time.
    #[error("no nats-server says who is connected")]
    Silence,
    /// More than a list may have.
    #[error("there are more connections than are looked at")]
    TooMany,
    /// The client, or a text that is not what it should be.
    #[error("{0}")]
    Failed(String),
}

/// Lists and ends connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections {
    client: Client,
}

impl Connections {
    /// Connects as a user of the system account.
    ///
    /// # Errors
    /// When it is refused, or there is no NATS.
    pub async fn connect(
        config: &ConnectConfig,
        credentials: &Credentials,
    ) -> Result<Self, ConnectError> {
        let client = connect_as(config, credentials, "connections").await?;
        Ok(Self { client })
    }

    /// Its connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Who is connected to an account now, on every server, oldest first. It takes a quarter of a second, since only
    /// silence says that no more servers answer.
    ///
    /// # Errors
    /// When no server answers, or one says what is no list.
    pub async fn list(&self, account: &str) -> Result<Vec<Connection>, ConnectionsError> {
        let mut all = Vec::new();
        let mut longer = None;
        for page in 0..PAGES_MAX {
            let answers = self.page(account, page, longer.as_ref()).await?;
            let ends = |answer: &&Answer| answer.ends_after(page);
            let servers = answers.iter().filter(|answer| !ends(answer));
            longer = Some(servers.map(|answer| answer.server.id.clone()).collect());
            for answer in answers {
                answer.read(&mut all)?;
            }
            if longer.as_ref().is_some_and(BTreeSet::is_empty) {
                // A page may have shifted while it was read.
                all.sort_unstable();
                all.dedup();
                return Ok(all);
            }
        }
        Err(ConnectionsError::TooMany)
    }

    /// One page of every server, or of `servers`, where it is known who has one.
    async fn page(
        &self,
        account: &str,
        page: usize,
        servers: Option<&BTreeSet<String>>,
    ) -> Result<Vec<Answer>, ConnectionsError> {
        let offset = page * PAGE_CONNECTIONS;
        let ask =
            json!({"auth": true, "acc": account, "offset": offset, "limit": PAGE_CONNECTIONS});
        let inbox = self.client.new_inbox();
        let told = self.client.subscribe(inbox.clone()).await;
        let mut told = told.map_err(failed)?;
        let ask = ask.to_string().into();
        let sent = self.client.publish_with_reply(LIST, inbox, ask).await;
        sent.map_err(failed)?;
        let mut missing = servers.cloned();
        let mut answers = Vec::new();
        let mut patience = ANSWER_WITHIN;
        loop {
            let message = match timeout(patience, told.next()).await {
                Ok(Some(message)) if message.status.is_none() => message,
                Err(_) if !answers.is_empty() => return Ok(answers),
                _ => return Err(ConnectionsError::Silence),
            };
            let answer: Answer = serde_json::from_slice(&message.payload).map_err(failed)?;
            match &mut missing {
                Some(missing) => {
                    missing.remove(&answer.server.id);
                    if missing.is_empty() {
                        answers.push(answer);
                        return Ok(answers);
                    }
                }
                None => patience = ANSWERS_PAUSE,
            }
            answers.push(answer);
        }
    }

    /// Sends one away; false if it had gone.
    ///
    /// # Errors
    /// When its server does not answer.
    pub async fn kick(&self, connection: &Connection) -> Result<bool, ConnectionsError> {
        let subject = format!("$SYS.REQ.SERVER.{}.KICK", connection.server);
        let ask = json!({ "cid": connection.cid }).to_string();
        let answer = self.client.request(subject, ask.into()).await;
        let answer = answer.map_err(failed)?;
        let answer: Kicked = serde_json::from_slice(&answer.payload).map_err(failed)?;
        Ok(answer.error.is_none())
    }
}

/// What a server says to a question for its list.
#[derive(Deserialize)]
struct Answer {
    server: Server,
    data: List,
}

#[derive(Deserialize)]
struct Server {
    id: String,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    total: usize,
    /// Absent where the account is not known.
    connections: Option<Vec<Row>>,
}

#[derive(Deserialize)]
struct Row {
    cid: u64,
    start: String,
    #[serde(default)]
    authorized_user: String,
}

impl Answer {
    fn ends_after(&self, page: usize) -> bool {
        let rows = self.data.connections.as_ref().map_or(0, Vec::len);
        rows == 0 || self.data.total <= (page + 1) * PAGE_CONNECTIONS
    }

    fn read(self, all: &mut Vec<Connection>) -> Result<(), ConnectionsError> {
        for row in self.data.connections.unwrap_or_default() {
            let start = OffsetDateTime::parse(&row.start, &Rfc3339).map_err(failed)?;
            all.push(Connection {
                start_ns: start.unix_timestamp_nanos(),
                server: self.server.id.clone(),
                cid: row.cid,
                user: row.authorized_user,
            });
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Kicked {
    error: Option<serde_json::Value>,
}

fn failed(error: impl std::fmt::Display) -> ConnectionsError {
    ConnectionsError::Failed(error.to_string())
}
