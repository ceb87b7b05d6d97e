//! Knows: what answers of the application do to a session, and that without one nothing opens. Never: a socket,
//! a service, a real clock.

use super::*;
use crate::hook::{Failure, HookAt, Question, Transport};

const S: Duration = Duration::from_secs(1);
const YES: &str = r#"{"result":{}}"#;
const NO: &str = r#"{"error":{"code":403,"message":"no"}}"#;

/// All of it is asked about, in `ask`. There `allow_…` is on for everybody, and counts for nobody.
fn asking() -> EdgeSettings {
    let at = HookAt {
        transport: Transport::Nats {
            subject: "hook".into(),
        },
        timeout: S,
        http_headers: Vec::new(),
        emulated_headers: Vec::new(),
        include_connection_meta: false,
    };
    let mut settings = settings();
    settings.hooks.connect = Some(at.clone());
    settings.hooks.refresh = Some(at);
    let mut ask = settings.namespaces["open"].clone();
    ask.rules.subscribe_proxy_enabled = true;
    ask.rules.publish_proxy_enabled = true;
    ask.rules.allow_publish_for_subscriber = true;
    ask.rules.allow_user_limited_channels = true;
    settings.namespaces.insert("ask".into(), ask);
    settings.client.insecure = true;
    settings
}

impl Rig {
    fn asks(&mut self, frame: &str) -> Question {
        let command = json::decode(&Bytes::copy_from_slice(frame.as_bytes()), 1).unwrap();
        match self.session.command(command[0].clone(), self.now) {
            Effect::Ask(question) => question,
            other => panic!("{frame}: {}", text(other)),
        }
    }

    fn hears(&mut self, question: Question, answer: &str) -> String {
        let heard = question.read(answer.as_bytes(), self.now.unix_s);
        let heard = heard.map_err(Failure::from);
        text(self.session.heard(question, heard, self.now))
    }

    fn hears_nothing(&mut self, question: Question, failure: Failure) -> String {
        text(self.session.heard(question, Err(failure), self.now))
    }

    /// Connected by the hook, for so long.
    fn accepted(settings: EdgeSettings, for_s: i64) -> Self {
        let mut rig = Self::new(settings);
        let question = rig.asks(r#"{"id":1,"connect":{}}"#);
        let at = rig.now.unix_s + for_s;
        let answer = format!(r#"{{"result":{{"user":"ann","expire_at":{at}}}}}"#);
        let said = rig.hears(question, &answer);
        assert!(said.starts_with("connected"), "{said}");
        rig
    }
}

fn subscribe(id: u32, channel: &str) -> String {
    format!(r#"{{"id":{id},"subscribe":{{"channel":"{channel}"}}}}"#)
}

fn publish(id: u32, channel: &str) -> String {
    format!(r#"{{"id":{id},"publish":{{"channel":"{channel}","data":1}}}}"#)
}

#[test]
fn without_a_token_the_application_says_who_it_is() {
    let table = [
        (r#"{"result":{"user":"ann"}}"#, "connected"),
        (r#"{"result":{"user":""}}"#, "connected"),
        (
            r#"{"result":{"user":"ann","expire_at":1}}"#,
            "error 110 to 1",
        ),
        (NO, "error 403 to 1"),
        (r#"{"disconnect":{"code":4500}}"#, "close 4500"),
        ("{}", "error 100 to 1"),
        (r#"{"result":{}}"#, "error 100 to 1"),
    ];
    for (answer, expected) in table {
        let mut rig = Rig::new(asking());
        let question = rig.asks(r#"{"id":1,"connect":{}}"#);
        let said = rig.hears(question, answer);
        assert!(said.starts_with(expected), "{answer}: {said}");
        let is_in = expected == "connected";
        let next = rig.say(&subscribe(2, "open:a"));
        assert_eq!(next.starts_with("join"), is_in, "{answer}: {next}");
    }
    let mut rig = Rig::new(asking());
    let said = rig.say(&connect(&token(SECRET, "ann", None, 60)));
    assert!(
        said.starts_with("connected"),
        "a token needs nobody: {said}"
    );
    for failure in [
        Failure::Absent,
        Failure::Late,
        Failure::Broken(String::new()),
        Failure::Busy,
        Failure::Open,
    ] {
        let mut rig = Rig::new(asking());
        let question = rig.asks(r#"{"id":1,"connect":{}}"#);
        assert_eq!(rig.hears_nothing(question, failure), "error 100 to 1");
        assert_eq!(rig.say(&subscribe(2, "open:a")), "close 3501");
    }
}

#[test]
fn a_room_is_joined_when_the_application_said_so() {
    let mut rig = Rig::accepted(asking(), 60);
    let question = rig.asks(&subscribe(2, "ask:a"));
    assert_eq!(question.user, "ann");
    assert_eq!(rig.say(&subscribe(3, "ask:a")), "error 105 to 3");
    assert_eq!(rig.hears(question, YES), "join ask:a None");
    for (answer, expected) in [(NO, "error 403 to 4"), ("[]", "error 100 to 4")] {
        let question = rig.asks(&subscribe(4, "ask:b"));
        assert_eq!(rig.hears(question, answer), expected);
    }
    let question = rig.asks(&subscribe(5, "ask:b"));
    assert_eq!(
        rig.hears_nothing(question, Failure::TooMany),
        "error 111 to 5"
    );
    // Its place was given back each time, and counts while it waits.
    let question = rig.asks(&subscribe(6, "ask:b"));
    assert_eq!(rig.say(&subscribe(7, "open:a")), "error 106 to 7");
    // A subscribe that was given up joins nothing, whatever is answered.
    rig.say(r#"{"id":8,"unsubscribe":{"channel":"ask:b"}}"#);
    let again = rig.asks(&subscribe(9, "ask:b"));
    assert_eq!(rig.hears(question, YES), "error 100 to 6");
    assert_eq!(rig.hears(again, YES), "join ask:b None");
}

#[test]
fn names_have_rights_of_their_own_and_options_have_none() {
    let mut rig = Rig::accepted(asking(), 60);
    assert_eq!(rig.say(&subscribe(2, "$ask:a")), "error 103 to 2");
    assert_eq!(rig.say(&subscribe(3, "ask:a#bob")), "error 103 to 3");
    assert_eq!(rig.say(&subscribe(4, "ask:a#ann")), "join ask:a#ann None");
    for room in ["ask:a", "ask:a#ann", "$ask:a"] {
        let question = rig.asks(&publish(5, room));
        assert_eq!(rig.hears(question, NO), "error 403 to 5");
    }
}

#[test]
fn what_is_published_is_what_the_application_says() {
    let mut rig = Rig::accepted(asking(), 60);
    let table = [
        (YES, "publish ask:a rooms 1"),
        (
            r#"{"result":{"data":{"n":2}}}"#,
            r#"publish ask:a rooms {"n":2}"#,
        ),
        (NO, "error 403 to 2"),
        ("no", "error 100 to 2"),
        (r#"{"disconnect":{"code":4001}}"#, "close 4001"),
    ];
    for (answer, expected) in table {
        let question = rig.asks(&publish(2, "ask:a"));
        assert_eq!(rig.hears(question, answer), expected);
    }
    let bad = r#"{"id":3,"publish":{"channel":"ask:a"}}"#;
    assert_eq!(
        rig.say(bad),
        "error 107 to 3",
        "nobody is asked about nothing"
    );
}

#[test]
fn a_refresh_is_asked_for_at_its_time_and_again_until_the_delay_is_over() {
    let mut settings = asking();
    settings.client.insecure = false;
    settings.client.expired_close_delay = 10 * S;
    let mut rig = Rig::accepted(settings, 60);
    let refresh = r#"{"id":2,"refresh":{"token":"x"}}"#;
    assert_eq!(rig.session.deadline(), rig.start + 60 * S);
    let due = |rig: &mut Rig, after: Duration| {
        rig.now.instant = rig.start + after;
        match rig.session.timer(rig.now.instant) {
            Effect::Ask(question) => question,
            other => panic!("{after:?}: {}", text(other)),
        }
    };
    let question = due(&mut rig, 60 * S);
    assert_eq!(rig.at(61 * S), "nothing", "one at a time");
    rig.now.unix_s += 61;
    assert_eq!(rig.hears_nothing(question, Failure::Late), "nothing");
    let again = rig.session.deadline();
    let wait = again - (rig.start + 61 * S);
    assert!((S..=2 * S).contains(&wait), "{wait:?}");
    let question = due(&mut rig, 63 * S);
    let answer = format!(r#"{{"result":{{"expire_at":{}}}}}"#, rig.now.unix_s + 100);
    assert_eq!(rig.hears(question, &answer), "nothing");
    assert_eq!(rig.session.deadline(), rig.start + 163 * S);
    // Then nobody answers.
    let mut now = 163 * S;
    while now < 173 * S {
        let question = due(&mut rig, now);
        assert_eq!(rig.hears_nothing(question, Failure::Absent), "nothing");
        now = rig.session.deadline() - rig.start;
    }
    assert_eq!(rig.at(173 * S), "close 3005");
    for (answer, expected) in [
        (r#"{"result":{"expired":true}}"#, "close 3005"),
        (NO, "close 3005"),
        (r#"{"disconnect":{"code":4600}}"#, "close 4600"),
    ] {
        let question = Question {
            about: crate::hook::About::Refresh,
            ..rig.asks(&publish(3, "ask:a"))
        };
        assert_eq!(rig.hears(question, answer), expected);
    }
    assert_eq!(rig.say(refresh), "close 3501", "there is no token to send");
}

#[test]
fn a_refresh_leaves_alone_what_the_application_decided() {
    let mut settings = asking();
    settings.client.insecure = false;
    (settings.hooks.connect, settings.hooks.refresh) = (None, None);
    let mut rig = Rig::new(settings);
    let token = token(SECRET, "ann", None, 60);
    let caps = serde_json::json!({"caps": [{"channels": ["ask:b"], "allow": ["sub"]}]});
    let more = authority::issued("ann", caps);
    assert!(rig.say(&connect(&more)).starts_with("connected"));
    // Its token opens this one, so that nobody is asked.
    rig.joined(&subscribe(1, "ask:b"));
    let question = rig.asks(&subscribe(2, "ask:a"));
    let heard = question.read(YES.as_bytes(), rig.now.unix_s);
    let effect = rig
        .session
        .heard(question, heard.map_err(Failure::from), rig.now);
    let Effect::Join(join) = effect else {
        panic!("{}", text(effect));
    };
    rig.let_in(&join);
    let refresh = format!(r#"{{"id":3,"refresh":{{"token":"{token}"}}}}"#);
    let said = rig.say(&refresh);
    assert_eq!(said, "leave 1", "what its token opened");
    for (room, stays) in [("ask:a", true), ("ask:b", false)] {
        let room = RoomName::parse(room).unwrap();
        assert_eq!(rig.session.is_subscribed(&room), stays, "{room}");
    }
}
