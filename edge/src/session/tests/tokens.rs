//! Knows: what tokens do to a session: subscription tokens, refreshes, expiry, keys that are not here
//! yet. Never: a socket, a real clock.

use serde_json::{Value, json};
use weir_authz::token::{Address, Endpoint};

use super::*;

const S: Duration = Duration::from_secs(1);

/// A token with any claims, signed with the secret of these tests.
fn signed(claims: &Value) -> String {
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

fn subscribe(id: u32, channel: &str, token: &str) -> String {
    json!({"id": id, "subscribe": {"channel": channel, "token": token}}).to_string()
}

fn sub_refresh(channel: &str, token: &str) -> String {
    json!({"id": 9, "sub_refresh": {"channel": channel, "token": token}}).to_string()
}

fn of_room(channel: &str, for_s: i64) -> String {
    token(SECRET, "ann", Some(channel), for_s)
}

impl Rig {
    fn ann(settings: EdgeSettings) -> Self {
        let mut rig = Self::new(settings);
        let said = rig.say(&connect(&token(SECRET, "ann", None, 3_600)));
        assert!(said.starts_with("connected"), "{said}");
        rig
    }

    pub(super) fn join(&mut self, frame: &str) -> Join {
        let command = json::decode(&Bytes::copy_from_slice(frame.as_bytes()), 1).unwrap();
        match self.session.command(command[0].clone(), self.now) {
            Effect::Join(join) => join,
            other => panic!("{frame}: {}", text(other)),
        }
    }

    /// Joins, as a room would; what the client is told.
    pub(super) fn joined(&mut self, frame: &str) -> String {
        let join = self.join(frame);
        self.let_in(&join)
    }

    pub(super) fn let_in(&mut self, join: &Join) -> String {
        let joined = Joined {
            membership: Membership::for_tests(),
            epoch: None,
            offset: Seq::ZERO,
            recovered: None,
            publications: Vec::new(),
            cursor: Seq::ZERO,
        };
        text(self.session.joined(join, Ok(joined)).0)
    }
}

#[test]
fn a_subscription_token_opens_one_room_to_one_user() {
    let claims = |extra: Value| {
        let mut claims = json!({"sub": "ann", "channel": "closed:a", "exp": UNIX_S + 60});
        for (name, value) in extra.as_object().unwrap() {
            claims[name] = value.clone();
        }
        signed(&claims)
    };
    let table = [
        ("closed:a", claims(json!({})), "join closed:a None"),
        (
            "closed:a",
            claims(json!({"client": "c1"})),
            "join closed:a None",
        ),
        ("closed:a", claims(json!({"client": "c2"})), "close 3500"),
        ("closed:a", claims(json!({"sub": "bob"})), "close 3500"),
        ("closed:a", claims(json!({"sub": ""})), "close 3500"),
        ("closed:b", claims(json!({})), "close 3500"),
        ("closed:a", claims(json!({"channel": ""})), "close 3500"),
        (
            "closed:a",
            claims(json!({"exp": UNIX_S - 60})),
            "error 109 to 2",
        ),
        (
            "closed:a",
            claims(json!({"nbf": UNIX_S + 60})),
            "error 109 to 2",
        ),
        (
            "closed:a",
            claims(json!({"expire_at": UNIX_S - 60})),
            "error 110 to 2",
        ),
        (
            "closed:a",
            token(
                "another secret, 32 bytes or more",
                "ann",
                Some("closed:a"),
                60,
            ),
            "error 103 to 2",
        ),
        ("closed:a", token(SECRET, "ann", None, 60), "close 3500"),
        ("$closed:a", of_room("$closed:a", 60), "join $closed:a None"),
        ("$closed:a", of_room("closed:a", 60), "close 3500"),
        ("$open:a", String::new(), "error 103 to 2"),
        ("nowhere:a", of_room("nowhere:a", 60), "error 102 to 2"),
    ];
    for (channel, token, expected) in table {
        let said = Rig::ann(settings()).say(&subscribe(2, channel, &token));
        assert_eq!(said, expected, "{channel}");
    }
    // Options of the namespace that the token changes for this subscription.
    for (namespace, overrides, expected) in [
        ("closed", json!({}), (false, false)),
        (
            "closed",
            json!({"force_recovery": {"value": true}}),
            (true, true),
        ),
        (
            "closed",
            json!({"force_positioning": {"value": true}}),
            (false, true),
        ),
        ("rec", json!({}), (true, true)),
        (
            "rec",
            json!({"force_recovery": {"value": false}}),
            (false, false),
        ),
        (
            "eph",
            json!({"force_recovery": {"value": true}}),
            (false, false),
        ),
    ] {
        let channel = format!("{namespace}:a");
        let token = claims(json!({"channel": channel, "override": overrides}));
        let join = Rig::ann(settings()).join(&subscribe(2, &channel, &token));
        assert_eq!(
            (join.recoverable, join.positioned),
            expected,
            "{namespace} {overrides}"
        );
    }
}

#[test]
fn what_a_subscription_token_gives_goes_where_it_belongs() {
    let token = signed(&json!({
        "sub": "ann", "channel": "open:a", "exp": UNIX_S + 60, "info": {"role": "x"}, "data": {"d": 1},
    }));
    let mut rig = Rig::ann(settings());
    let said = rig.joined(&subscribe(2, "open:a", &token));
    assert_eq!(
        said,
        r#"{"id":2,"subscribe":{"expires":true,"ttl":60,"data":{"d":1}}}"#
    );
    let info = |rig: &mut Rig, channel: &str| {
        let frame = json!({"id": 3, "publish": {"channel": channel, "data": 1}}).to_string();
        let command = json::decode(&Bytes::from(frame), 1).unwrap();
        match rig.session.command(command[0].clone(), rig.now) {
            Effect::Publish { info, .. } => info,
            other => panic!("{}", text(other)),
        }
    };
    assert_eq!(info(&mut rig, "open:a").as_deref(), Some(r#"{"role":"x"}"#));
    assert_eq!(info(&mut rig, "open:b"), None);
    // A refresh changes it, and another end.
    let new = signed(&json!({"sub": "ann", "channel": "open:a", "exp": UNIX_S + 99, "info": 7}));
    let said = rig.say(&sub_refresh("open:a", &new));
    assert_eq!(said, r#"{"id":9,"sub_refresh":{"expires":true,"ttl":99}}"#);
    assert_eq!(info(&mut rig, "open:a").as_deref(), Some("7"));
    let endless =
        signed(&json!({"sub": "ann", "channel": "open:a", "exp": UNIX_S + 99, "expire_at": 0}));
    assert_eq!(
        rig.say(&sub_refresh("open:a", &endless)),
        r#"{"id":9,"sub_refresh":{}}"#
    );
    assert!(rig.session.deadline() > rig.start + Duration::from_secs(3_600));
}

#[test]
fn a_subscription_ends_after_its_delay() {
    let mut settings = settings();
    settings.client.expired_sub_close_delay = 7 * S;
    settings.client.expired_close_delay = 1_000 * S;
    let mut rig = Rig::ann(settings);
    rig.joined(&subscribe(2, "closed:a", &of_room("closed:a", 60)));
    let end = 67 * S;
    assert_eq!(rig.session.deadline(), rig.start + end);
    assert_eq!(rig.at(end - Duration::from_millis(1)), "nothing");
    let command = rig.at(end);
    assert_eq!(command, "leave");
    // It is over: what is left are errors.
    assert_eq!(
        rig.say(&sub_refresh("closed:a", &of_room("closed:a", 600))),
        "error 103 to 9"
    );
    assert_eq!(
        rig.say(r#"{"id":3,"unsubscribe":{"channel":"closed:a"}}"#),
        r#"{"id":3,"unsubscribe":{}}"#
    );
}

#[test]
fn the_codes_of_sub_refresh() {
    let good = of_room("closed:a", 60);
    let joined = || {
        let mut rig = Rig::ann(settings());
        rig.joined(&subscribe(2, "closed:a", &good));
        rig
    };
    let expire_at = signed(&json!({
        "sub": "ann", "channel": "closed:a", "exp": UNIX_S + 60, "expire_at": UNIX_S - 60,
    }));
    let table = [
        (
            "closed:a",
            of_room("closed:a", 90),
            r#"{"id":9,"sub_refresh":{"expires":true,"ttl":90}}"#,
        ),
        // The Python SDK names no channel.
        (
            "",
            of_room("closed:a", 90),
            r#"{"id":9,"sub_refresh":{"expires":true,"ttl":90}}"#,
        ),
        ("", of_room("closed:b", 90), "error 103 to 9"),
        ("", String::new(), "error 107 to 9"),
        ("closed:a", String::new(), "error 107 to 9"),
        ("closed:b", good.clone(), "error 103 to 9"),
        ("nowhere:a", good.clone(), "error 102 to 9"),
        ("closed:a", of_room("closed:b", 90), "close 3500"),
        (
            "closed:a",
            token(SECRET, "bob", Some("closed:a"), 60),
            "close 3500",
        ),
        ("closed:a", "x".to_owned(), "close 3500"),
        ("closed:a", of_room("closed:a", -60), "leave"),
        ("closed:a", expire_at, "error 110 to 9"),
    ];
    for (channel, token, expected) in table {
        assert_eq!(
            joined().say(&sub_refresh(channel, &token)),
            expected,
            "{channel}"
        );
    }
}

#[test]
fn the_codes_of_refresh() {
    let refresh = |token: &str| json!({"id": 3, "refresh": {"token": token}}).to_string();
    let claims = |extra: Value| {
        let mut claims = json!({"sub": "ann", "exp": UNIX_S + 60});
        for (name, value) in extra.as_object().unwrap() {
            claims[name] = value.clone();
        }
        signed(&claims)
    };
    let table = [
        (
            claims(json!({})),
            r#"{"id":3,"refresh":{"client":"c1","version":"V","expires":true,"ttl":60}}"#,
        ),
        (
            claims(json!({"expire_at": 0})),
            r#"{"id":3,"refresh":{"client":"c1","version":"V"}}"#,
        ),
        // At most a year.
        (
            claims(json!({"exp": i64::MAX})),
            r#"{"id":3,"refresh":{"client":"c1","version":"V","expires":true,"ttl":31536000}}"#,
        ),
        (claims(json!({"expire_at": UNIX_S - 1})), "error 110 to 3"),
        (claims(json!({"exp": UNIX_S - 60})), "close 3005"),
        (claims(json!({"nbf": UNIX_S + 60})), "close 3005"),
        (claims(json!({"sub": "bob"})), "close 3500"),
        (claims(json!({"sub": ""})), "close 3500"),
        (claims(json!({"channel": "open:a"})), "close 3500"),
        ("x".to_owned(), "close 3500"),
        (String::new(), "close 3501"),
    ];
    for (token, expected) in table {
        let said = Rig::ann(settings()).say(&refresh(&token));
        assert_eq!(said.replace(&version(), "V"), expected);
    }
    // Where everything is allowed, nothing expires, with or without a refresh.
    let mut insecure = settings();
    insecure.client.insecure = true;
    let mut rig = Rig::ann(insecure);
    let said = rig.say(&refresh(&claims(json!({}))));
    assert!(!said.contains("expires"), "{said}");
    assert_eq!(rig.at(100 * 24 * 3_600 * S), "nothing");
}

/// A session whose issuer's keys are never here.
fn without_keys() -> Rig {
    let address = Address::parse("http://127.0.0.1:9/keys", None).unwrap();
    let (endpoint, _fetcher) = Endpoint::new(address);
    let issuer = Issuer {
        check: Check::default(),
        keys: Keys::Fetched(endpoint),
    };
    let mut settings = settings();
    settings.client.channel_limit = 2;
    let mut rig = Rig::new(settings);
    rig.session.verifier = Arc::new(Verifier::new(vec![issuer], None));
    rig
}

fn unknown(channel: Option<&str>) -> String {
    let signer = Signer::new("HS256", SECRET, Some("k1".to_owned())).unwrap();
    let mint = Mint {
        channel,
        expires_at_s: Some(UNIX_S + 60),
        ..Mint::default()
    };
    mint.signed(&signer).unwrap()
}

fn command(frame: &str) -> Command {
    json::decode(&Bytes::copy_from_slice(frame.as_bytes()), 1).unwrap()[0].clone()
}

#[test]
fn a_command_waits_for_its_key_once() {
    let mut rig = without_keys();
    let frame = connect(&unknown(None));
    assert_eq!(rig.say(&frame), "fetch for 1");
    let effect = rig.session.again(command(&frame), rig.now);
    assert_eq!(text(effect), "error 100 to 1");
    assert_eq!(rig.say(&frame), "close 3501");

    let mut rig = without_keys();
    rig.say(r#"{"id":1,"connect":{}}"#);
    let refresh = json!({"id": 5, "refresh": {"token": unknown(None)}}).to_string();
    assert_eq!(rig.say(&refresh), "fetch for 5");
    let effect = rig.session.again(command(&refresh), rig.now);
    assert_eq!(text(effect), "error 100 to 5");

    rig.joined(r#"{"id":6,"subscribe":{"channel":"open:a"}}"#);
    for channel in ["open:a", ""] {
        let refresh = sub_refresh(channel, &unknown(Some("open:a")));
        assert_eq!(rig.say(&refresh), "fetch for 9");
        let effect = rig.session.again(command(&refresh), rig.now);
        assert_eq!(text(effect), "error 100 to 9");
    }
}

#[test]
fn a_subscription_that_waits_has_its_place_and_can_be_given_up() {
    let mut rig = without_keys();
    rig.say(r#"{"id":1,"connect":{}}"#);
    let first = subscribe(2, "open:a", &unknown(Some("open:a")));
    assert_eq!(rig.say(&first), "fetch for 2");
    assert_eq!(rig.say(&subscribe(3, "open:a", "")), "error 105 to 3");
    assert_eq!(rig.say(&subscribe(4, "open:b", "")), "join open:b None");
    assert_eq!(rig.say(&subscribe(5, "open:c", "")), "error 106 to 5");
    // Publishing goes on meanwhile.
    let publish = r#"{"id":6,"publish":{"channel":"open:a","data":1}}"#;
    assert_eq!(rig.say(publish), "publish open:a rooms 1");
    let effect = rig.session.again(command(&first), rig.now);
    assert_eq!(text(effect), "error 100 to 2");
    // Its place is free again.
    let again = subscribe(7, "open:c", &unknown(Some("open:c")));
    assert_eq!(rig.say(&again), "fetch for 7");
    let leave = r#"{"id":8,"unsubscribe":{"channel":"open:c"}}"#;
    assert_eq!(rig.say(leave), r#"{"id":8,"unsubscribe":{}}"#);
    // Given up and asked for anew: what comes back for the first is not the second's.
    assert_eq!(
        rig.say(&subscribe(9, "open:c", &unknown(Some("open:c")))),
        "fetch for 9"
    );
    let effect = rig.session.again(command(&again), rig.now);
    assert_eq!(text(effect), "error 100 to 7");
    assert_eq!(rig.say(&subscribe(10, "open:c", "")), "error 105 to 10");
}
