//! Knows: frames of a client and what the session makes of them, as a table; and its timers. Never:
//! a socket, NATS, a real clock.

use weir_authz::token::{Check, Issuer, Key, Keys, Mint, Signer};
use weir_authz::{ChannelRegex, NamespaceRules};
use weir_history::Window;

use super::*;
use crate::hook::HookSettings;
use crate::hub::JoinError;
use crate::limits::{LimitSettings, Limits};
use crate::rate::{Counted, Rate, Rates};
use crate::settings::{Bounds, ClientSettings, DataFormat, DoorSettings};

mod authority;
mod hooks;
mod tokens;

const UNIX_S: i64 = 1_800_000_000;
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const PING: Duration = Duration::from_secs(25);
const PONG: Duration = Duration::from_secs(8);

fn verifier() -> Arc<Verifier> {
    let keys = Keys::Fixed(vec![(Key::secret(SECRET).unwrap(), None)]);
    let check = Check::default();
    Arc::new(Verifier::new(vec![Issuer { check, keys }], None))
}

/// A token of `user`; `for_s` may be negative.
fn token(secret: &str, user: &str, channel: Option<&str>, for_s: i64) -> String {
    let mint = Mint {
        user,
        channel,
        expires_at_s: Some(UNIX_S + for_s),
        ..Mint::default()
    };
    mint.signed(&Signer::new("HS256", secret, None).unwrap())
        .unwrap()
}

fn namespace(rules: NamespaceRules) -> Namespace {
    Namespace {
        rules,
        log: "rooms".into(),
        stored: true,
        window: Window::default(),
        force_recovery: false,
        allow_recovery: false,
        force_positioning: false,
        allow_positioning: false,
        data_format: DataFormat::Json,
        rates: Rates::default(),
        rooms_max: 0,
    }
}

/// `open`: all may do all. `closed`: nobody may do anything. `eph`: open, and nothing is stored.
/// `rec`: open and recoverable. `obj`: payloads are objects. `num`: open, and names are numbers.
fn settings() -> EdgeSettings {
    let all = NamespaceRules {
        allow_subscribe_for_client: true,
        allow_subscribe_for_anonymous: true,
        allow_publish_for_client: true,
        allow_publish_for_anonymous: true,
        allow_history_for_client: true,
        allow_history_for_anonymous: true,
        ..NamespaceRules::default()
    };
    let open = namespace(all);
    let namespaces = [
        ("open", open.clone()),
        ("closed", namespace(NamespaceRules::default())),
        (
            "eph",
            Namespace {
                stored: false,
                ..open.clone()
            },
        ),
        (
            "rec",
            Namespace {
                force_recovery: true,
                ..open.clone()
            },
        ),
        (
            "obj",
            Namespace {
                data_format: DataFormat::JsonObject,
                ..open.clone()
            },
        ),
        (
            "num",
            Namespace {
                rules: NamespaceRules {
                    channel_regex: Some(ChannelRegex::parse("^[0-9]+$").unwrap()),
                    ..open.rules.clone()
                },
                ..open
            },
        ),
    ];
    EdgeSettings {
        client: ClientSettings {
            allow_anonymous_connect_without_token: true,
            channel_limit: 2,
            ping_interval: Duration::ZERO,
            ..ClientSettings::default()
        },
        without_namespace: None,
        namespaces: namespaces
            .into_iter()
            .map(|(name, options)| (name.to_owned(), options))
            .collect(),
        rpc_timeout: Duration::from_secs(4),
        door: DoorSettings::default(),
        shutdown_spread: Duration::ZERO,
        hooks: HookSettings::default(),
        limits: LimitSettings::default(),
        bounds: Bounds::default(),
    }
}

struct Rig {
    session: Session,
    start: Instant,
    now: Now,
}

impl Rig {
    fn new(settings: EdgeSettings) -> Self {
        let start = Instant::now();
        let now = Now {
            instant: start,
            unix_s: UNIX_S,
        };
        let settings = Arc::new(settings);
        let limits = Arc::new(Limits::new(Arc::clone(&settings), start));
        let gate = Gate::new(limits, None, start);
        let session = Session::new(settings, verifier(), "c1".into(), gate, start);
        Self {
            session,
            start,
            now,
        }
    }

    fn connected(settings: EdgeSettings) -> Self {
        let mut rig = Self::new(settings);
        assert!(rig.say(r#"{"id":1,"connect":{}}"#).starts_with("connected"));
        rig
    }

    /// Feeds a frame; what became of its last command.
    fn say(&mut self, frame: &str) -> String {
        let frame = Bytes::copy_from_slice(frame.as_bytes());
        let mut said = String::from("nothing");
        for command in json::decode(&frame, 1_024).unwrap() {
            said = text(self.session.command(command, self.now));
        }
        said
    }

    /// Polls the timers, so long after the start.
    fn at(&mut self, after: Duration) -> String {
        self.now.instant = self.start + after;
        text(self.session.timer(self.now.instant))
    }
}

fn text(effect: Effect) -> String {
    let plain = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    // Replies are whole WebSocket frames.
    let frame = |bytes: Bytes| plain(&bytes[if bytes[1] == 126 { 4 } else { 2 }..]);
    match effect {
        Effect::None => "nothing".into(),
        Effect::Reply(bytes) => {
            let text = frame(bytes);
            let reply: serde_json::Value = serde_json::from_str(&text).unwrap();
            match reply["error"]["code"].as_u64() {
                Some(code) => format!("error {code} to {}", reply["id"]),
                None => text,
            }
        }
        Effect::Connected(bytes) => format!("connected {}", frame(bytes)),
        Effect::Fetch(_, command) => format!("fetch for {}", command.id),
        Effect::Ask(question) => format!("ask for {}", question.id),
        Effect::Join(join) => {
            let since = join.since.map(|since| (since.offset.get(), since.epoch));
            format!("join {} {since:?}", join.permit.room())
        }
        Effect::Leave(..) => "leave".into(),
        Effect::LeaveAll(rooms, _) => format!("leave {}", rooms.len()),
        Effect::Publish {
            permit, log, data, ..
        } => {
            let log = log.unwrap_or("nowhere".into());
            format!("publish {} {log} {}", permit.room(), plain(&data))
        }
        Effect::History { permit, .. } => format!("history {}", permit.room()),
        Effect::Rpc { method, .. } => format!("rpc {method}"),
        Effect::Close(code) => format!("close {}", code.code),
        Effect::CloseAs(closing) => format!("close {}", closing.code),
    }
}

fn connect(token: &str) -> String {
    format!(r#"{{"id":1,"connect":{{"token":"{token}"}}}}"#)
}

#[test]
fn before_a_connect() {
    let expired = connect(&token(SECRET, "ann", None, -60));
    let of_a_room = connect(&token(SECRET, "ann", Some("open:a"), 60));
    let forged = connect(&token("another secret, 32 bytes or more", "ann", None, 60));
    let good = connect(&token(SECRET, "ann", None, 60));
    // Frames one after the other, and what the last of them comes to.
    let table: &[(&[&str], &str)] = &[
        (
            &[r#"{"id":1,"subscribe":{"channel":"open:a"}}"#],
            "close 3501",
        ),
        (
            &[r#"{"id":1,"publish":{"channel":"open:a","data":1}}"#],
            "close 3501",
        ),
        (&[r#"{"id":1,"rpc":{"method":"a"}}"#], "close 3501"),
        (&[r#"{"send":{"data":1}}"#], "close 3501"),
        (&[r#"{"id":1,"ping":{}}"#], "close 3501"),
        (&[r#"{"id":1}"#], "close 3501"),
        (&["{}"], "close 3501"),
        (&[r#"{"connect":{}}"#], "close 3501"),
        (&[r#"{"id":1,"connect":{"token":"x"}}"#], "close 3500"),
        (&[&forged], "close 3500"),
        (&[&of_a_room], "close 3500"),
        (&[&expired], "error 109 to 1"),
        (&[&expired, &good], "close 3501"),
        (&[&expired, "{}"], "close 3501"),
        (&[&good, &good], "close 3501"),
        (
            &[r#"{"id":1,"connect":{}}"#],
            r#"connected {"id":1,"connect":{"client":"c1","version":"VERSION"}}"#,
        ),
        (
            &[&good],
            r#"connected {"id":1,"connect":{"client":"c1","version":"VERSION","expires":true,"ttl":60}}"#,
        ),
    ];
    for (frames, expected) in table {
        let mut rig = Rig::new(settings());
        let said = frames.iter().map(|frame| rig.say(frame)).last().unwrap();
        let said = said.replace(&version(), "VERSION");
        assert_eq!(said, *expected, "{frames:?}");
    }
}

#[test]
fn who_may_connect() {
    let nobody = connect(&token(SECRET, "", None, 60));
    let ann = connect(&token(SECRET, "ann", None, 60));
    let none = r#"{"id":1,"connect":{}}"#;
    // Anonymous without a token, no anonymous tokens, insecure.
    let table = [
        (false, false, false, none, "close 3501"),
        (true, false, false, none, "connected"),
        (false, false, true, none, "connected"),
        (false, false, false, nobody.as_str(), "connected"),
        (true, true, false, nobody.as_str(), "close 3507"),
        (true, true, false, none, "connected"),
        (false, true, false, ann.as_str(), "connected"),
    ];
    for (anonymous, no_tokens, insecure, frame, expected) in table {
        let mut settings = settings();
        settings.client.allow_anonymous_connect_without_token = anonymous;
        settings.client.disallow_anonymous_connection_tokens = no_tokens;
        settings.client.insecure = insecure;
        let said = Rig::new(settings).say(frame);
        assert!(
            said.starts_with(expected),
            "{anonymous} {no_tokens} {insecure} {frame}: {said}"
        );
    }
    let mut without_key = Rig::new(settings());
    without_key.session.verifier = Arc::default();
    assert_eq!(without_key.say(&ann), "close 3500");
}

#[test]
fn commands() {
    let long = "x".repeat(256);
    let of_room = token(SECRET, "", Some("closed:a"), 60);
    let of_room_expired = token(SECRET, "", Some("closed:a"), -60);
    let of_other_room = token(SECRET, "", Some("closed:b"), 60);
    let of_other_user = token(SECRET, "bob", Some("closed:a"), 60);
    let by_token = |token: &str| {
        format!(r#"{{"id":2,"subscribe":{{"channel":"closed:a","token":"{token}"}}}}"#)
    };
    let table: &[(&str, &str)] = &[
        (r#"{"id":2,"connect":{}}"#, "close 3501"),
        ("{}", "close 3501"),
        (r#"{"subscribe":{"channel":"open:a"}}"#, "close 3501"),
        (r#"{"id":2}"#, "close 3501"),
        (r#"{"id":2,"ping":{}}"#, "close 3501"),
        (r#"{"send":{"data":1}}"#, "close 3508"),
        (r#"{"id":2,"send":{"data":1}}"#, "close 3508"),
        (
            r#"{"id":2,"subscribe":{"channel":"open:a"}}"#,
            "join open:a None",
        ),
        (r#"{"id":2,"subscribe":{"channel":""}}"#, "close 3501"),
        (
            r#"{"id":2,"subscribe":{"channel":"no:a"}}"#,
            "error 102 to 2",
        ),
        (r#"{"id":2,"subscribe":{"channel":"a"}}"#, "error 102 to 2"),
        (
            r#"{"id":2,"subscribe":{"channel":"closed:a"}}"#,
            "error 103 to 2",
        ),
        (
            &format!(r#"{{"id":2,"subscribe":{{"channel":"open:{long}"}}}}"#),
            "error 107 to 2",
        ),
        (
            r#"{"id":2,"subscribe":{"channel":"open:a","type":1}}"#,
            "error 108 to 2",
        ),
        (
            r#"{"id":2,"subscribe":{"channel":"open:a","delta":"fossil"}}"#,
            "join open:a None",
        ),
        (
            r#"{"id":2,"subscribe":{"channel":"open:a","delta":"other"}}"#,
            "close 3501",
        ),
        (
            r#"{"id":2,"subscribe":{"channel":"open:a","recover":true,"offset":7}}"#,
            "join open:a None",
        ),
        (
            r#"{"id":2,"subscribe":{"channel":"rec:a","recover":true,"offset":7,"epoch":"e"}}"#,
            r#"join rec:a Some((7, Some("e")))"#,
        ),
        (
            r#"{"id":2,"subscribe":{"channel":"rec:a","recover":true}}"#,
            "join rec:a Some((0, None))",
        ),
        (&by_token(&of_room), "join closed:a None"),
        (&by_token(&of_room_expired), "error 109 to 2"),
        (&by_token(&of_other_room), "close 3500"),
        (&by_token(&of_other_user), "close 3500"),
        (&by_token("x"), "error 103 to 2"),
        (
            r#"{"id":2,"unsubscribe":{"channel":"open:a"}}"#,
            r#"{"id":2,"unsubscribe":{}}"#,
        ),
        (r#"{"id":2,"unsubscribe":{"channel":""}}"#, "close 3501"),
        (
            r#"{"id":2,"publish":{"channel":"open:a","data":[1, 2]}}"#,
            "publish open:a rooms [1, 2]",
        ),
        (
            r#"{"id":2,"publish":{"channel":"eph:a","data":1}}"#,
            "publish eph:a nowhere 1",
        ),
        (
            r#"{"id":2,"publish":{"channel":"obj:a","data":{}}}"#,
            "publish obj:a rooms {}",
        ),
        (
            r#"{"id":2,"publish":{"channel":"obj:a","data":1}}"#,
            "error 107 to 2",
        ),
        (
            r#"{"id":2,"publish":{"channel":"open:a"}}"#,
            "error 107 to 2",
        ),
        (
            r#"{"id":2,"publish":{"channel":"closed:a","data":1}}"#,
            "error 103 to 2",
        ),
        (
            r#"{"id":2,"publish":{"channel":"no:a","data":1}}"#,
            "error 102 to 2",
        ),
        (
            r#"{"id":2,"publish":{"channel":"","data":1}}"#,
            "close 3501",
        ),
        (
            r#"{"id":2,"history":{"channel":"open:a","limit":5}}"#,
            "history open:a",
        ),
        (
            r#"{"id":2,"history":{"channel":"open:a","limit":-2}}"#,
            "error 107 to 2",
        ),
        (
            r#"{"id":2,"history":{"channel":"eph:a"}}"#,
            "error 108 to 2",
        ),
        (
            r#"{"id":2,"history":{"channel":"closed:a"}}"#,
            "error 103 to 2",
        ),
        (r#"{"id":2,"history":{"channel":"no:a"}}"#, "error 102 to 2"),
        (
            r#"{"id":2,"presence":{"channel":"open:a"}}"#,
            "error 108 to 2",
        ),
        (
            r#"{"id":2,"presence_stats":{"channel":"open:a"}}"#,
            "error 108 to 2",
        ),
        (
            r#"{"id":2,"presence":{"channel":"no:a"}}"#,
            "error 102 to 2",
        ),
        (
            r#"{"id":2,"presence_stats":{"channel":"no:a"}}"#,
            "error 102 to 2",
        ),
        (r#"{"id":2,"presence":{"channel":""}}"#, "close 3501"),
        (
            r#"{"id":2,"rpc":{"method":"a.b-c_1","data":1}}"#,
            "rpc a.b-c_1",
        ),
        (r#"{"id":2,"rpc":{"method":"","data":1}}"#, "error 107 to 2"),
        (r#"{"id":2,"rpc":{"method":"a..b"}}"#, "error 107 to 2"),
        (r#"{"id":2,"rpc":{"method":"a.>"}}"#, "error 107 to 2"),
        (r#"{"id":2,"rpc":{"method":"a b"}}"#, "error 107 to 2"),
        (
            &format!(r#"{{"id":2,"rpc":{{"method":"{}"}}}}"#, &long[..129]),
            "error 107 to 2",
        ),
        (
            r#"{"id":2,"sub_refresh":{"channel":"open:a","token":"x"}}"#,
            "error 103 to 2",
        ),
        (r#"{"id":2,"refresh":{"token":""}}"#, "close 3501"),
        (r#"{"id":2,"refresh":{"token":"x"}}"#, "close 3500"),
    ];
    for (frame, expected) in table {
        let mut rig = Rig::connected(settings());
        assert_eq!(rig.say(frame), *expected, "{frame}");
    }
}

#[test]
fn subscriptions_are_counted_from_the_command_on() {
    let mut rig = Rig::connected(settings());
    let subscribe = |room: &str| format!(r#"{{"id":2,"subscribe":{{"channel":"{room}"}}}}"#);
    let join = |rig: &mut Rig, room: &str| {
        let command = json::decode(&Bytes::from(subscribe(room)), 1).unwrap();
        match rig.session.command(command[0].clone(), rig.now) {
            Effect::Join(join) => join,
            other => panic!("{other:?}"),
        }
    };
    let first = join(&mut rig, "open:a");
    assert_eq!(rig.say(&subscribe("open:a")), "error 105 to 2");
    let second = join(&mut rig, "open:b");
    assert_eq!(rig.say(&subscribe("open:c")), "error 106 to 2");
    // A join that failed gives its place back.
    let (effect, cursor) = rig.session.joined(&first, Err(JoinError::Unavailable));
    assert_eq!((text(effect).as_str(), cursor), ("error 100 to 2", None));
    let third = join(&mut rig, "open:c");
    let (effect, _) = rig.session.joined(&third, Err(JoinError::TooManyRooms));
    assert_eq!(text(effect), "error 111 to 2");
    // A room that ends during the join says so in the join's answer, and nowhere else.
    let room = second.permit.room();
    let pushed = rig
        .session
        .unsubscribed(room, UnsubscribeCode::INSUFFICIENT_STATE);
    assert_eq!(pushed, None);
    let (effect, _) = rig.session.joined(&second, Err(JoinError::Unavailable));
    assert_eq!(text(effect), "error 100 to 2");
    assert_eq!(rig.say(&subscribe("open:b")), "join open:b None");
}

#[test]
fn pings_and_pongs() {
    let mut settings = settings();
    settings.client.ping_interval = PING;
    settings.client.pong_timeout = PONG;
    let mut rig = Rig::connected(settings);
    let due = rig.session.deadline() - rig.start;
    assert!(due >= PING / 2 && due <= PING, "{due:?}");
    let ms = Duration::from_millis(1);
    assert_eq!(rig.at(due - ms), "nothing");
    // Three seconds late, as of a process that was busy: the pong's time counts from when it was due.
    assert_eq!(rig.at(due + Duration::from_secs(3)), "{}");
    assert_eq!(rig.session.deadline(), rig.start + due + PONG);
    assert_eq!(rig.at(due + PONG - ms), "nothing");
    assert_eq!(rig.say("{}"), "nothing");
    assert_eq!(rig.session.deadline(), rig.start + due + PING);
    assert_eq!(rig.at(due + PING), "{}");
    assert_eq!(rig.at(due + PING + PONG), "close 3012");

    // With a ping out, a command without an id is its pong; the next one nobody asked for.
    assert_eq!(rig.say(r#"{"rpc":{"method":"a"}}"#), "nothing");
    assert_eq!(rig.say("{}"), "close 3501");
}

#[test]
fn too_many_commands() {
    let mut settings = settings();
    let rate = Rate {
        per_s: 10,
        burst: 3,
    };
    settings.limits.connection = Rates::only(Counted::Commands, rate);
    let mut rig = Rig::connected(settings);
    let rpc = r#"{"id":9,"rpc":{"method":"a"}}"#;
    for _ in 0..3 {
        assert_eq!(rig.say(rpc), "rpc a");
    }
    assert_eq!(rig.say(rpc), "error 111 to 9");
    rig.now.instant += Duration::from_millis(100);
    assert_eq!(rig.say(rpc), "rpc a");
    for _ in 1..LIMITED_MAX {
        assert_eq!(rig.say(rpc), "error 111 to 9");
    }
    assert_eq!(rig.say(rpc), "close 3013");
}

#[test]
fn stale_and_expired() {
    let ms = Duration::from_millis(1);
    let stale = ClientSettings::default().stale_close_delay;
    let mut rig = Rig::new(settings());
    assert_eq!(rig.session.deadline(), rig.start + stale);
    assert_eq!(rig.at(stale - ms), "nothing");
    assert_eq!(rig.at(stale), "close 3502");
    // An answer that was an error is no connect.
    let mut rig = Rig::new(settings());
    rig.say(&connect(&token(SECRET, "ann", None, -60)));
    assert_eq!(rig.at(stale), "close 3502");

    let delay = ClientSettings::default().expired_close_delay;
    let expiry = Duration::from_secs(60);
    let refresh = |user: &str, for_s: i64| {
        let token = token(SECRET, user, None, for_s);
        format!(r#"{{"id":2,"refresh":{{"token":"{token}"}}}}"#)
    };
    let mut rig = Rig::new(settings());
    rig.say(&connect(&token(SECRET, "ann", None, 60)));
    assert_eq!(rig.session.deadline(), rig.start + expiry + delay);
    assert_eq!(rig.at(expiry + delay - ms), "nothing");
    assert_eq!(rig.at(expiry + delay), "close 3005");
    // A refresh moves it; another user's does not do.
    rig.now.instant = rig.start + expiry;
    rig.now.unix_s = UNIX_S + 60;
    assert!(rig.say(&refresh("ann", 160)).contains(r#""ttl":100"#));
    let later = expiry + Duration::from_secs(100) + delay;
    assert_eq!(rig.session.deadline(), rig.start + later);
    assert_eq!(rig.say(&refresh("bob", 160)), "close 3500");
    assert_eq!(rig.say(&refresh("ann", 0)), "close 3005");

    let mut for_ever = Rig::connected(settings());
    let year = Duration::from_secs(300 * 24 * 3_600);
    assert_eq!(for_ever.at(year), "nothing");
}

#[test]
fn a_namespace_with_a_pattern_has_no_other_names() {
    let mut rig = Rig::connected(settings());
    for (command, room) in [
        ("subscribe", "num:12"),
        ("publish", "num:12"),
        ("history", "num:12"),
    ] {
        for (room, is_name) in [(room, true), ("num:1a", false), ("num:", false)] {
            let frame = format!(r#"{{"id":2,"{command}":{{"channel":"{room}","data":{{}}}}}}"#);
            let said = rig.say(&frame);
            assert_eq!(!said.contains("107"), is_name, "{command} {room}: {said}");
        }
    }
}

#[test]
fn capabilities_of_a_token_open_what_rules_do_not_and_a_refresh_changes_them() {
    let token = |caps: &str| {
        let mint = Mint {
            user: "ann",
            expires_at_s: Some(UNIX_S + 60),
            caps: Some(caps),
            ..Mint::default()
        };
        mint.signed(&Signer::new("HS256", SECRET, None).unwrap())
            .unwrap()
    };
    let mut rig = Rig::new(settings());
    let first = token(r#"[{"channels":["closed:a","$closed:p"],"allow":["sub"]}]"#);
    let hello = format!(r#"{{"id":1,"connect":{{"token":"{first}"}}}}"#);
    assert!(rig.say(&hello).starts_with("connected"));
    let say = |rig: &mut Rig, command: &str, room: &str| {
        rig.say(&format!(
            r#"{{"id":2,"{command}":{{"channel":"{room}","data":{{}}}}}}"#
        ))
    };
    for (command, room, is_allowed) in [
        ("subscribe", "closed:b", false),
        ("subscribe", "closed:a", true),
        ("subscribe", "$closed:p", true),
        ("publish", "closed:a", false),
        ("history", "closed:a", false),
    ] {
        let said = say(&mut rig, command, room);
        assert_eq!(
            !said.contains("103"),
            is_allowed,
            "{command} {room}: {said}"
        );
    }
    let second = token(r#"[{"namespaces":["closed"],"allow":["pub"]}]"#);
    rig.say(&format!(r#"{{"id":2,"refresh":{{"token":"{second}"}}}}"#));
    assert!(!say(&mut rig, "publish", "closed:b").contains("103"));
    assert!(say(&mut rig, "publish", "$closed:p").contains("103"));
}
