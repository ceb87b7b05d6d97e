//! Knows: what revocations, orders and refreshes that narrow take away from a session. Never: a socket, a real clock.

use serde_json::{Value, json};
use weir_nats::Revocations;
use weir_nats::control::{Order, Revoked, What, Whose};

use super::*;

fn signed(claims: &Value) -> String {
    use jsonwebtoken::{EncodingKey, Header};
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::default(), claims, &key).unwrap()
}

/// A token that was issued at [`UNIX_S`], with more claims.
pub(super) fn issued(user: &str, more: Value) -> String {
    let mut claims =
        json!({"sub": user, "exp": UNIX_S + 3_600, "iat": UNIX_S, "jti": format!("of-{user}")});
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    signed(&claims)
}

fn order(what: What) -> Order {
    Order::new(what, Duration::from_secs(60), "", "").unwrap()
}

fn of_user(user: &str, issued_before_s: i64) -> Order {
    order(What::Revoke(Revoked::User {
        user: user.to_owned(),
        issued_before_s,
    }))
}

fn of_token(id: &str) -> Order {
    let id = id.to_owned();
    order(What::Revoke(Revoked::Token { id }))
}

/// A session whose verifier knows these revocations.
fn watched(settings: EdgeSettings) -> (Rig, Revocations) {
    let mut rig = Rig::new(settings);
    let revocations = Revocations::default();
    let verifier = Verifier::clone(&rig.session.verifier);
    rig.session.verifier = Arc::new(verifier.with_revocations(revocations.clone()));
    (rig, revocations)
}

fn connected(token: &str) -> (Rig, Revocations) {
    let (mut rig, revocations) = watched(settings());
    let said = rig.say(&connect(token));
    assert!(said.starts_with("connected"), "{said}");
    (rig, revocations)
}

fn subscribe(channel: &str, token: &str) -> String {
    json!({"id": 2, "subscribe": {"channel": channel, "token": token}}).to_string()
}

fn publish(channel: &str) -> String {
    json!({"id": 3, "publish": {"channel": channel, "data": {}}}).to_string()
}

fn refresh(token: &str) -> String {
    json!({"id": 4, "refresh": {"token": token}}).to_string()
}

/// What an order does: a code, or the rooms that are left.
fn obeyed(rig: &mut Rig, order: &Order) -> (Option<u16>, usize) {
    let obeyed = rig.session.obey(order);
    for (_, frame) in &obeyed.left {
        let text = String::from_utf8_lossy(&frame[2..]);
        assert!(text.contains(r#""unsubscribe":{"code":2000"#), "{text}");
    }
    (obeyed.close.map(|code| code.code), obeyed.left.len())
}

#[test]
fn a_revoked_token_opens_nothing() {
    for (revoked, code) in [
        (of_user("ann", UNIX_S + 1), Some(3500)),
        (of_user("ann", UNIX_S), None),
        (of_user("bob", UNIX_S + 1), None),
        (of_token("of-ann"), Some(3500)),
        (of_token("of-bob"), None),
        (
            order(What::Revoke(Revoked::Issued {
                before_s: UNIX_S + 1,
            })),
            Some(3500),
        ),
    ] {
        let (mut rig, revocations) = watched(settings());
        revocations.add([&revoked]);
        let said = rig.say(&connect(&issued("ann", json!({}))));
        match code {
            Some(code) => assert_eq!(said, format!("close {code}"), "{}", revoked.what),
            None => assert!(said.starts_with("connected"), "{}: {said}", revoked.what),
        }
    }
    // One that does not say when it was made cannot prove that it is newer.
    let (mut rig, revocations) = watched(settings());
    revocations.add([&of_user("ann", UNIX_S - 1_000)]);
    assert_eq!(
        rig.say(&connect(&token(SECRET, "ann", None, 60))),
        "close 3500"
    );
    // Nor is a revoked one taken later.
    let (mut rig, revocations) = connected(&issued("ann", json!({"jti": "first"})));
    revocations.add([&of_token("second"), &of_token("of a room")]);
    assert_eq!(
        rig.say(&refresh(&issued("ann", json!({"jti": "second"})))),
        "close 3500"
    );
    let (mut rig, revocations) = connected(&issued("ann", json!({"jti": "first"})));
    revocations.add([&of_token("of a room")]);
    let of_room = issued("ann", json!({"jti": "of a room", "channel": "closed:a"}));
    assert_eq!(rig.say(&subscribe("closed:a", &of_room)), "error 103 to 2");
    assert_eq!(
        rig.say(&subscribe("open:a", "")),
        "join open:a None",
        "the connection is good"
    );
}

#[test]
fn whoever_is_in_is_out_with_the_next_command_or_order() {
    let (mut rig, revocations) = connected(&issued("ann", json!({})));
    assert_eq!(rig.say(&publish("open:a")), "publish open:a rooms {}");
    let other = of_user("bob", UNIX_S + 1);
    revocations.add([&other]);
    assert_eq!(obeyed(&mut rig, &other), (None, 0));
    assert_eq!(rig.say(&publish("open:a")), "publish open:a rooms {}");
    let revoked = of_user("ann", UNIX_S + 1);
    revocations.add([&revoked]);
    for frame in [
        publish("open:a"),
        subscribe("open:b", ""),
        refresh(&issued("ann", json!({"iat": UNIX_S + 9}))),
    ] {
        assert_eq!(rig.say(&frame), "close 3500", "{frame}");
    }
    assert_eq!(obeyed(&mut rig, &revoked), (Some(3500), 0));
    // A refresh in time makes the connection the new token's.
    let (mut rig, revocations) = connected(&issued("ann", json!({})));
    let newer = issued("ann", json!({"iat": UNIX_S + 9, "jti": "newer"}));
    assert!(rig.say(&refresh(&newer)).contains("refresh"));
    revocations.add([&revoked, &of_token("of-ann")]);
    assert_eq!(obeyed(&mut rig, &revoked), (None, 0));
    assert_eq!(rig.say(&publish("open:a")), "publish open:a rooms {}");
    // Without a token there is nothing to revoke.
    let (mut rig, revocations) = watched(settings());
    assert!(rig.say(r#"{"id":1,"connect":{}}"#).starts_with("connected"));
    let everybody = order(What::Revoke(Revoked::Issued {
        before_s: UNIX_S + 1,
    }));
    revocations.add([&everybody]);
    assert_eq!(obeyed(&mut rig, &everybody), (None, 0));
}

#[test]
fn a_revoked_subscription_token_costs_its_room_alone() {
    let (mut rig, revocations) = connected(&issued("ann", json!({})));
    let of_room = issued("ann", json!({"jti": "of a room", "channel": "closed:a"}));
    rig.joined(&subscribe("closed:a", &of_room));
    rig.joined(&subscribe("open:a", ""));
    let revoked = of_token("of a room");
    revocations.add([&revoked]);
    assert!(
        !rig.session
            .is_subscribed(&RoomName::parse("closed:a").unwrap()),
        "at once"
    );
    assert_eq!(obeyed(&mut rig, &revoked), (None, 1));
    assert!(
        rig.session
            .is_subscribed(&RoomName::parse("open:a").unwrap())
    );
    assert_eq!(obeyed(&mut rig, &revoked), (None, 0), "once");
    // Revoked while the join was on its way.
    let (mut rig, revocations) = connected(&issued("ann", json!({})));
    let join = rig.join(&subscribe("closed:a", &of_room));
    revocations.add([&revoked]);
    assert_eq!(obeyed(&mut rig, &revoked), (None, 0));
    let gone = rig.session.joined(&join, Err(JoinError::Unavailable)).0;
    assert_eq!(text(gone), "error 103 to 2");
}

#[test]
fn orders_reach_whom_they_name() {
    let end = |user: Option<&str>, room: Option<&str>, client: Option<&str>| {
        Whose::new(user, room, client).unwrap()
    };
    let disconnect = |whose| What::Disconnect {
        whose,
        reconnect: false,
    };
    let back = |whose| What::Disconnect {
        whose,
        reconnect: true,
    };
    let unsubscribe = |whose| What::Unsubscribe { whose };
    let table = [
        (disconnect(end(Some("ann"), None, None)), (Some(3503), 0)),
        (back(end(Some("ann"), None, None)), (Some(3011), 0)),
        (disconnect(end(Some("bob"), None, None)), (None, 0)),
        (
            disconnect(end(Some("ann"), None, Some("c1"))),
            (Some(3503), 0),
        ),
        (disconnect(end(Some("ann"), None, Some("c2"))), (None, 0)),
        (disconnect(end(None, Some("open:a"), None)), (Some(3503), 0)),
        (disconnect(end(None, Some("open:c"), None)), (None, 0)),
        (
            unsubscribe(end(Some("ann"), Some("open:a"), None)),
            (None, 1),
        ),
        (unsubscribe(end(Some("ann"), None, None)), (None, 2)),
        (unsubscribe(end(None, Some("open:b"), None)), (None, 1)),
        (unsubscribe(end(None, None, Some("c1"))), (None, 2)),
        (
            unsubscribe(end(Some("bob"), Some("open:a"), None)),
            (None, 0),
        ),
        (
            unsubscribe(end(Some("ann"), Some("open:c"), None)),
            (None, 0),
        ),
    ];
    for (what, expected) in table {
        let (mut rig, _) = connected(&issued("ann", json!({})));
        rig.joined(&subscribe("open:a", ""));
        rig.joined(&subscribe("open:b", ""));
        let mut given = order(what);
        given.at_ms = UNIX_S * 1_000;
        assert_eq!(obeyed(&mut rig, &given), expected, "{}", given.what);
        // Whoever came long after it was given is not meant.
        let (mut rig, _) = connected(&issued("ann", json!({})));
        rig.joined(&subscribe("open:a", ""));
        given.at_ms -= 60_000;
        assert_eq!(obeyed(&mut rig, &given), (None, 0), "{}", given.what);
    }
}

#[test]
fn a_refresh_that_narrows_ends_the_rooms_that_it_does_not_allow() {
    let caps = |rooms: &[&str]| json!({"caps": [{"channels": rooms, "allow": ["sub", "pub"]}]});
    let is_in = |rig: &Rig, room: &str| rig.session.is_subscribed(&RoomName::parse(room).unwrap());
    let start = || {
        let mut settings = settings();
        settings.client.channel_limit = 9;
        let (mut rig, _) = watched(settings);
        rig.say(&connect(&issued(
            "ann",
            caps(&["closed:a", "closed:b", "$closed:p"]),
        )));
        for room in ["closed:a", "closed:b", "$closed:p", "open:a"] {
            rig.joined(&subscribe(room, ""));
            assert!(is_in(&rig, room), "{room}");
        }
        rig.joined(&subscribe(
            "$closed:t",
            &issued("ann", json!({"channel": "$closed:t"})),
        ));
        rig
    };
    let mut rig = start();
    assert!(
        rig.say(&refresh(&issued(
            "ann",
            caps(&["closed:a", "closed:b", "$closed:p"])
        )))
        .contains("refresh")
    );
    let mut rig_narrowed = start();
    let said = rig_narrowed.say(&refresh(&issued("ann", caps(&["closed:b"]))));
    assert_eq!(said, "leave 2");
    for (room, stays) in [
        ("closed:a", false),
        ("$closed:p", false),
        ("closed:b", true),
        ("open:a", true),
        // A subscription token of its own opened it.
        ("$closed:t", true),
    ] {
        assert!(is_in(&rig, room), "nothing was narrowed: {room}");
        assert_eq!(is_in(&rig_narrowed, room), stays, "{room}");
    }
    assert_eq!(rig_narrowed.say(&publish("closed:a")), "error 103 to 3");
    // One that waits for its token's key is not in yet.
    let mut rig_waiting = start();
    let waiting = RoomName::parse("closed:w").unwrap();
    if let Phase::Connected(connected) = &mut rig_waiting.session.phase {
        let place = Place::Waiting(7);
        connected.subscriptions.insert(waiting.clone(), place);
    }
    let said = rig_waiting.say(&refresh(&issued("ann", caps(&["closed:b"]))));
    assert_eq!(said, "leave 2");
    let Phase::Connected(connected) = &rig_waiting.session.phase else {
        panic!("it is connected");
    };
    assert!(connected.subscriptions.contains_key(&waiting));
    // The reply comes first, then the pushes, each with its room.
    let mut rig = start();
    let command = refresh(&issued("ann", json!({})));
    let commands = json::decode(&Bytes::from(command), 1).unwrap();
    let Effect::LeaveAll(left, frames) = rig.session.command(commands[0].clone(), rig.now) else {
        panic!("it narrows");
    };
    assert_eq!((left.len(), frames.len()), (3, 4));
    let texts: Vec<_> = frames
        .iter()
        .map(|frame| String::from_utf8_lossy(frame))
        .collect();
    assert!(texts[0].contains("refresh"), "{texts:?}");
    for room in ["closed:a", "closed:b", "$closed:p"] {
        let push = format!(r#""channel":"{room}","unsubscribe":{{"code":2000"#);
        assert!(
            texts.iter().any(|text| text.contains(&push)),
            "{room}: {texts:?}"
        );
    }
}
