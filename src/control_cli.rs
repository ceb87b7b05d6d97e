//! Knows: `weir revoke`, `weir disconnect` and `weir unsubscribe`: how an order is named, given, and what is said of
//! it. Never: what an order does; shows or takes no token.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args};
use weir_nats::ambient::now_ms;
use weir_nats::control::book::{Book, BookError};
use weir_nats::control::give::{Given, Giver};
use weir_nats::control::service::time_s;
use weir_nats::control::{ENDS_KEPT, Order, OrderError, Revoked, What, Whose};
use weir_nats::message::format_time_ms;

use crate::archive_cli::{Failure, connect};
use crate::cli::{Common, complain, duration, say, who};
use crate::config::Loaded;
use crate::telemetry;

/// What `weir revoke` is asked for.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(["user", "token_id", "issued_before", "list"])))]
#[command(after_help = "\
Whoever is connected with such a token is closed (3500) within a second or two, at sockets, NATS and MQTT, and the token opens nothing
any more. A token without iat counts as issued before any time; one without jti is hit by no --token-id.

  weir revoke --user ann                        every token of ann's until now; a new one works from the next second on
  weir revoke --token-id 5f3a                   one token, by its jti
  weir revoke --issued-before 2026-01-31T09:00:00Z   everybody's tokens of before
  weir revoke --list                            what is revoked, by whom and until when

Over NATS: nats req weir.revoke '{\"user\":\"ann\"}', as an operator.")]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// This user's tokens, issued until now or before --issued-before
    #[arg(long)]
    user: Option<String>,
    /// The token with this id (its claim jti)
    #[arg(long, value_name = "JTI", conflicts_with_all = ["user", "issued_before"])]
    token_id: Option<String>,
    /// Tokens issued before this time: seconds since 1970, 2026-01-31T09:30:00Z, or now; without --user, everybody's
    #[arg(long, value_name = "TIME", value_parser = time_s)]
    issued_before: Option<i64>,
    /// List what is revoked
    #[arg(long, conflicts_with_all = ["user", "token_id", "issued_before"])]
    list: bool,
    /// How long it is kept: as long as such a token can be valid [default: revocation.ttl, 720h]
    #[arg(long, value_parser = duration)]
    ttl: Option<Duration>,
    /// Why, for the list and the log
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

/// Whose connections or subscriptions.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whose").required(true).multiple(true).args(["user", "room", "client"])))]
pub(crate) struct WhoseArgs {
    /// Of this user; "" is everybody without a name
    #[arg(long)]
    user: Option<String>,
    /// In this room, by its name as clients write it, such as chat:lobby
    #[arg(long, visible_alias = "channel")]
    room: Option<String>,
    /// Of the connection with this id
    #[arg(long, value_name = "ID")]
    client: Option<String>,
}

/// What `weir disconnect` is asked for.
#[derive(Debug, Args)]
#[command(after_help = "\
All that is given must be so. Clients stay away (3503) until their application connects again; nothing keeps it from that: to shut somebody
out, use weir revoke. --user alone ends connections at NATS and MQTT that a token opened, too; those come back by themselves.

Over NATS: nats req weir.disconnect '{\"user\":\"ann\"}', as an operator.")]
pub(crate) struct DisconnectArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    whose: WhoseArgs,
    /// They come back by themselves (3011)
    #[arg(long)]
    reconnect: bool,
    /// Why, for the log
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

/// What `weir unsubscribe` is asked for.
#[derive(Debug, Args)]
#[command(after_help = "\
All that is given must be so; without --room, every subscription of those connections ends (2000). Clients stay out until their application
subscribes again; nothing keeps it from that. Subscriptions at NATS and MQTT stay: no nats-server can end one.

Over NATS: nats req weir.unsubscribe '{\"user\":\"ann\",\"channel\":\"chat:lobby\"}', as an operator.")]
pub(crate) struct UnsubscribeArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    whose: WhoseArgs,
    /// Why, for the log
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

impl From<OrderError> for Failure {
    fn from(error: OrderError) -> Self {
        Self::Config(error.to_string())
    }
}

impl From<BookError> for Failure {
    fn from(error: BookError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl RevokeArgs {
    pub(crate) async fn run(&self, loaded: &Loaded) -> Result<ExitCode, Failure> {
        if self.list {
            return list(loaded).await;
        }
        let user = self.user.as_deref();
        let revoked = Revoked::new(user, self.token_id.as_deref(), self.issued_before)?;
        let ttl = self.ttl.unwrap_or(loaded.config.revocation.ttl);
        let order = Order::new(What::Revoke(revoked), ttl, &who(), &self.reason)?;
        Box::pin(give(loaded, order)).await
    }
}

impl WhoseArgs {
    fn read(&self) -> Result<Whose, OrderError> {
        let (user, room) = (self.user.as_deref(), self.room.as_deref());
        Whose::new(user, room, self.client.as_deref())
    }
}

impl DisconnectArgs {
    pub(crate) async fn run(&self, loaded: &Loaded) -> Result<ExitCode, Failure> {
        let what = What::Disconnect {
            whose: self.whose.read()?,
            reconnect: self.reconnect,
        };
        let order = Order::new(what, ENDS_KEPT, &who(), &self.reason)?;
        Box::pin(give(loaded, order)).await
    }
}

impl UnsubscribeArgs {
    pub(crate) async fn run(&self, loaded: &Loaded) -> Result<ExitCode, Failure> {
        let whose = self.whose.read()?;
        let order = Order::new(What::Unsubscribe { whose }, ENDS_KEPT, &who(), &self.reason)?;
        Box::pin(give(loaded, order)).await
    }
}

async fn give(loaded: &Loaded, order: Order) -> Result<ExitCode, Failure> {
    // The audit's event goes where Weir's own log lines go.
    if let Err(error) = telemetry::start(&loaded.config.log) {
        complain(&format!("no log lines: {error}"));
    }
    let links = connect(loaded).await.map_err(Failure::Failed)?;
    let giver = Giver::open(links.live).await?;
    let given = Box::pin(giver.give(order)).await?;
    let mut text = String::new();
    let written = describe(&mut text, &given);
    debug_assert!(written.is_ok(), "a String takes all");
    if matches!(given.written.order.what, What::Revoke(_)) {
        let kept = kept(giver.book()).await?.len();
        text.push_str(&format!("revoked   {kept} entries are kept in all\n"));
    }
    say(&text);
    for process in &given.silent {
        complain(&format!(
            "process {} on {} has not confirmed the order; it was last heard of {} s ago. If it runs, what it has stays open until it \
             is connected to NATS again, and is closed then before anything else",
            process.pid,
            process.host,
            now_ms().saturating_sub(process.at_ms).max(0) / 1_000
        ));
    }
    Ok(if given.silent.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn describe(text: &mut String, given: &Given) -> std::fmt::Result {
    let order = &given.written.order;
    writeln!(text, "order     {}", order.what)?;
    writeln!(text, "kept      until {}", format_time_ms(order.until_ms))?;
    let running = given.done.len() + given.silent.len();
    if running == 0 {
        return writeln!(text, "in force  as soon as a Weir runs; none does now");
    }
    writeln!(
        text,
        "in force  in {} of {running} running processes",
        given.done.len()
    )?;
    let (closed, unsubscribed, native) = given.sums();
    writeln!(
        text,
        "ended     {closed} sockets, {unsubscribed} subscriptions of others, {native} connections at NATS servers"
    )
}

async fn kept(book: &Book) -> Result<Vec<Order>, BookError> {
    let now = now_ms();
    let (written, _) = book.after(0).await?;
    let orders = written.into_iter().map(|written| written.order);
    let is_kept = |order: &Order| matches!(order.what, What::Revoke(_)) && !order.is_over(now);
    Ok(orders.filter(is_kept).collect())
}

async fn list(loaded: &Loaded) -> Result<ExitCode, Failure> {
    let links = connect(loaded).await.map_err(Failure::Failed)?;
    let mut orders = kept(&Book::open(links.live).await?).await?;
    orders.sort_by_key(|order| order.at_ms);
    let mut text = String::new();
    for order in &orders {
        let why: String = order.reason.chars().flat_map(char::escape_debug).collect();
        let by: String = order.by.chars().flat_map(char::escape_debug).collect();
        let line = format!(
            "{}  {}  until {}  by {by}{}\n",
            format_time_ms(order.at_ms),
            order.what,
            format_time_ms(order.until_ms),
            if why.is_empty() {
                String::new()
            } else {
                format!(": {why}")
            },
        );
        text.push_str(&line);
    }
    text.push_str(&format!("{} entries\n", orders.len()));
    say(&text);
    Ok(ExitCode::SUCCESS)
}
