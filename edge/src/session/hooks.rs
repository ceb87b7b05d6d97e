//! Knows: what the application is asked about a session, and what its answers do to it. Never: how it is asked,
//! a socket, a clock.
//!
//! Without an answer nothing opens: a connect, a subscribe and a publish get error 100, on which clients try
//! again; a refresh is asked again until `expired_close_delay` is over.

use std::time::Duration;

use weir_authz::hook::{Answer, Connected as Accepted, Published, Refreshed, Subscribed};
use weir_authz::{Action, Grants};
use weir_nats::RoomName;

use super::tokens::SaidBy;
use super::{
    Allowed, Effect, Now, OpenedBy, Phase, Place, Refused, Session, after, random_part, ttl,
};
use crate::door::check_format;
use crate::hook::{About, Failure, Heard, Question};
use crate::protocol::code::{DisconnectCode, ErrorCode};
use crate::protocol::{Connect, Subscribe, json};

/// From a refresh without an answer to the next try, and as much again at random.
const REFRESH_AGAIN: Duration = Duration::from_secs(1);

impl Session {
    /// A question of this connection.
    fn question(&self, id: u32, about: About) -> Question {
        let (user, meta) = match &self.phase {
            Phase::Connected(connected) => (connected.grants.user(), connected.meta.clone()),
            Phase::New | Phase::Unusable => ("", None),
        };
        Question {
            id,
            client: self.client.clone(),
            user: user.to_owned(),
            meta,
            about,
        }
    }

    pub(super) fn ask_connect(&self, id: u32, connect: Connect) -> Effect {
        Effect::Ask(self.question(id, About::Connect(connect)))
    }

    pub(super) fn ask_refresh(&self) -> Effect {
        Effect::Ask(self.question(0, About::Refresh))
    }

    /// The place is taken, so that a second subscribe is refused.
    pub(super) fn ask_subscribe(
        &mut self,
        id: u32,
        room: RoomName,
        subscribe: Subscribe,
    ) -> Effect {
        if let Phase::Connected(connected) = &mut self.phase {
            let place = Place::Waiting(id);
            connected.subscriptions.insert(room.clone(), place);
        }
        Effect::Ask(self.question(id, About::Subscribe { room, subscribe }))
    }

    pub(super) fn ask_publish(&self, id: u32, room: RoomName, data: bytes::Bytes) -> Effect {
        let Some(namespace) = self.settings.namespace(&room) else {
            return Refused::Error(ErrorCode::UNKNOWN_CHANNEL).effect(id);
        };
        let (format, stored) = (namespace.data_format, namespace.stored);
        let about = About::Publish {
            room,
            data,
            format,
            stored,
        };
        Effect::Ask(self.question(id, about))
    }

    /// Feeds what became of a question.
    pub(crate) fn heard(
        &mut self,
        question: Question,
        heard: Result<Heard, Failure>,
        now: Now,
    ) -> Effect {
        if self.is_revoked() {
            return Effect::Close(DisconnectCode::TOKEN_REVOKED);
        }
        let id = question.id;
        match (question.about, heard) {
            (About::Connect(_), Ok(Heard::Connect(answer))) => self.heard_connect(id, answer, now),
            (About::Refresh, Ok(Heard::Refresh(answer))) => self.heard_refresh(answer, now),
            (About::Subscribe { room, subscribe }, Ok(Heard::Subscribe(answer))) => {
                let effect = self.heard_subscribe(id, &room, &subscribe, answer, now);
                self.give_back(id, &room);
                effect
            }
            (About::Publish { room, data, .. }, Ok(Heard::Publish(answer))) => {
                match self.heard_publish(id, &room, data, answer) {
                    Ok(effect) => effect,
                    Err(refused) => refused.effect(id),
                }
            }
            (about, heard) => self.not_heard(id, &about, heard.err(), now),
        }
    }

    /// There is no answer: nothing opens.
    fn not_heard(&mut self, id: u32, about: &About, failure: Option<Failure>, now: Now) -> Effect {
        match about {
            About::Connect(_) => self.phase = Phase::Unusable,
            About::Subscribe { room, .. } => self.give_back(id, room),
            About::Publish { .. } => {}
            About::Refresh => {
                if let Phase::Connected(connected) = &mut self.phase {
                    let wait = REFRESH_AGAIN + random_part(REFRESH_AGAIN);
                    connected.refresh_at = Some(now.instant + wait);
                }
                return Effect::None;
            }
        }
        let code = match failure {
            Some(Failure::TooMany) => ErrorCode::TOO_MANY_REQUESTS,
            _ => ErrorCode::INTERNAL,
        };
        Effect::Reply(json::error(id, code))
    }

    fn heard_connect(&mut self, id: u32, answer: Answer<Accepted>, now: Now) -> Effect {
        match allowed(answer) {
            Ok(accepted) => self.accept(id, accepted.claims, SaidBy::Hook(accepted.data), now),
            Err(refused) => {
                self.phase = Phase::Unusable;
                refused.effect(id)
            }
        }
    }

    fn heard_refresh(&mut self, answer: Answer<Refreshed>, now: Now) -> Effect {
        let refreshed = match answer {
            Answer::Allowed(refreshed) => refreshed,
            Answer::Closed(closing) => return Effect::CloseAs(closing),
            Answer::Expired | Answer::Refused(_) => {
                return Effect::Close(DisconnectCode::EXPIRED);
            }
        };
        if let Phase::Connected(connected) = &mut self.phase {
            let ttl_s = ttl(refreshed.expires_at_s, now.unix_s);
            connected.expires = after(Some(ttl_s), now);
            connected.refresh_at = connected.expires;
            connected.info = refreshed.info.or(connected.info.take());
            connected.meta = refreshed.meta.map(Into::into).or(connected.meta.take());
        }
        Effect::None
    }

    fn heard_subscribe(
        &mut self,
        id: u32,
        room: &RoomName,
        subscribe: &Subscribe,
        answer: Answer<Subscribed>,
        now: Now,
    ) -> Effect {
        let planned = self.is_waiting(id, room).and_then(|()| {
            let subscribed = allowed(answer)?;
            let (grants, namespace) = self.grants_in(room)?;
            let allowed = Allowed {
                permit: grants.check_with_hook(&subscribed.vouched, &namespace.rules)?,
                expires_at_s: subscribed.expires_at_s,
                tells: false,
                options: subscribed.options,
                opened_by: Some(OpenedBy::Application),
            };
            Ok(Self::plan(id, namespace, subscribe, allowed, now))
        });
        match (planned, &mut self.phase) {
            (Ok(join), Phase::Connected(connected)) => {
                connected.subscriptions.insert(room.clone(), Place::Joining);
                Effect::Join(join)
            }
            (Ok(_), _) => Refused::bad().effect(id),
            (Err(refused), _) => refused.effect(id),
        }
    }

    fn heard_publish(
        &self,
        id: u32,
        room: &RoomName,
        data: bytes::Bytes,
        answer: Answer<Published>,
    ) -> Result<Effect, Refused> {
        let published = allowed(answer)?;
        let (grants, namespace) = self.grants_in(room)?;
        let permit = grants.check_with_hook(&published.vouched, &namespace.rules)?;
        let data = published.data.map_or(data, Into::into);
        check_format(namespace.data_format, &data).map_err(|_| Refused::bad())?;
        Ok(Effect::Publish {
            id,
            permit,
            log: namespace.stored.then(|| namespace.log.clone()),
            info: self.info_in(room),
            data,
            key: published.idempotency_key,
        })
    }

    /// Asks: an action that was denied is the application's to decide.
    pub(super) fn may_ask(&self, action: Action, room: &RoomName) -> bool {
        let found = self.grants_in(room);
        found.is_ok_and(|(grants, namespace)| grants.may_ask(action, room, &namespace.rules))
    }

    fn grants_in(
        &self,
        room: &RoomName,
    ) -> Result<(&Grants, &crate::settings::Namespace), Refused> {
        let Phase::Connected(connected) = &self.phase else {
            return Err(Refused::bad());
        };
        let namespace = self.settings.namespace(room);
        let namespace = namespace.ok_or(Refused::Error(ErrorCode::UNKNOWN_CHANNEL))?;
        Ok((&connected.grants, namespace))
    }

    /// A subscribe that was given up meanwhile joins nothing.
    fn is_waiting(&self, id: u32, room: &RoomName) -> Result<(), Refused> {
        match &self.phase {
            Phase::Connected(connected) if matches!(connected.subscriptions.get(room), Some(Place::Waiting(of)) if *of == id) => {
                Ok(())
            }
            _ => Err(Refused::Error(ErrorCode::INTERNAL)),
        }
    }

    /// Gives the place of a subscribe back, where it still waits.
    fn give_back(&mut self, id: u32, room: &RoomName) {
        if self.is_waiting(id, room).is_ok()
            && let Phase::Connected(connected) = &mut self.phase
        {
            connected.subscriptions.remove(room);
        }
    }
}

/// What is not allowed, as the client is told.
fn allowed<T>(answer: Answer<T>) -> Result<T, Refused> {
    match answer {
        Answer::Allowed(allowed) => Ok(allowed),
        Answer::Expired => Err(Refused::Error(ErrorCode::EXPIRED)),
        Answer::Refused(refusal) => Err(Refused::ByHook(refusal)),
        Answer::Closed(closing) => Err(Refused::CloseAs(closing)),
    }
}
