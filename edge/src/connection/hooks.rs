//! Knows: how a connection's questions wait for their answers beside its other commands, and that publishes in
//! one room keep their order. Never: what is asked, what an answer does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;
use weir_nats::RoomName;

use super::{Back, Connection, Slow, now};
use crate::hook::{About, Failure, Heard, Question};
use crate::protocol::{Command, CommandKind};
use crate::session::Effect;

impl Connection {
    /// Keeps the headers that a connect command gives, where a hook wants some.
    pub(super) fn keep_headers(&mut self, command: &Command) {
        if let CommandKind::Connect(connect) = &command.kind
            && let Some(kept) = &mut self.passed_on
            && !connect.headers.is_empty()
        {
            Arc::make_mut(kept).of_connect(&connect.headers);
        }
    }

    /// Asks the application, beside the other commands.
    pub(super) fn ask(&mut self, question: Question) {
        let (edge, link) = (Arc::clone(&self.edge), Arc::clone(&self.link));
        let slow = Arc::clone(&self.slow);
        let max = edge.settings.hooks.bounds.connection_calls_max;
        let before = slow.asking.fetch_add(1, Ordering::AcqRel);
        // A refresh is one at a time, and waits for nobody's commands.
        if before >= max && !matches!(question.about, About::Refresh) {
            slow.asking.fetch_sub(1, Ordering::AcqRel);
            slow.hear(question, Err(Failure::TooMany));
            return;
        }
        self.connecting = self.connecting || matches!(question.about, About::Connect(_));
        let turn = question.publishes_in().map(|room| slow.line_up(room));
        if turn.is_some() {
            slow.publishing.fetch_add(1, Ordering::AcqRel);
        }
        let passed_on = self.passed_on.clone();
        self.edge.tasks.spawn(async move {
            let heard = edge.hooks.ask(&question, passed_on.as_deref()).await;
            let turn = match turn {
                None => None,
                Some((before, own)) => {
                    // However it ends, those behind it go on.
                    let own = own.drop_guard();
                    if let Some(before) = before {
                        before.cancelled().await;
                    }
                    Some(own)
                }
            };
            slow.asking.fetch_sub(1, Ordering::AcqRel);
            slow.hear(question, heard);
            drop(turn);
            link.outbox.wake();
        });
    }

    pub(super) fn heard(&mut self, question: Question, heard: Result<Heard, Failure>) -> Effect {
        let was_sent = !matches!(heard, Err(Failure::TooMany));
        match &question.about {
            About::Connect(_) => self.connecting = false,
            About::Publish { .. } if was_sent => {
                self.slow.publishing.fetch_sub(1, Ordering::AcqRel);
            }
            About::Publish { .. } | About::Refresh | About::Subscribe { .. } => {}
        }
        self.session.heard(question, heard, now())
    }
}

impl Slow {
    /// Keeps what became of a question until the session takes it.
    fn hear(&self, question: Question, heard: Result<Heard, Failure>) {
        let heard = Back::Heard(Box::new((question, heard)));
        self.waited().back.push_back(heard);
    }

    /// The end of the publish before it in the room, and its own. Forgets those that have ended.
    fn line_up(&self, room: &RoomName) -> (Option<CancellationToken>, CancellationToken) {
        let own = CancellationToken::new();
        let last_in = &mut self.waited().last_in;
        last_in.retain(|(_, last)| !last.is_cancelled());
        match last_in.iter_mut().find(|(other, _)| other == room) {
            Some((_, last)) => (Some(std::mem::replace(last, own.clone())), own),
            None => {
                last_in.push((room.clone(), own.clone()));
                (None, own)
            }
        }
    }
}
