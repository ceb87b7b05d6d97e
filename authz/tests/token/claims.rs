//! What tokens say, once a key has signed it.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use weir_authz::token::{Check, Issuer, Key, Keys, Overrides, SubscribeOptions};
use weir_authz::{Claims, SubscriptionClaims, TokenError, Verifier};

use crate::NOW;
use crate::token_cases::{PREVIOUS, SECRET, sign};

fn verifier(check: Check) -> Verifier {
    let keys = Keys::Fixed(vec![(Key::secret(SECRET).unwrap(), None)]);
    Verifier::new(vec![Issuer { check, keys }], None)
}

fn by_default(claims: &Value) -> Result<Claims, TokenError> {
    connection(Check::default(), claims)
}

fn connection(check: Check, claims: &Value) -> Result<Claims, TokenError> {
    verifier(check).connection(&sign(Algorithm::HS256, None, claims, SECRET), NOW)
}

fn subscription(claims: &Value) -> Result<SubscriptionClaims, TokenError> {
    let token = sign(Algorithm::HS256, None, claims, SECRET);
    verifier(Check::default()).subscription(&token, Some("a"), "ann", "c1", NOW)
}

fn is_invalid<T>(found: &Result<T, TokenError>) -> bool {
    matches!(found, Err(TokenError::Invalid(_)))
}

#[test]
fn a_connection_token_says_all_of_it() {
    let claims = by_default(&json!({
        "sub": "42", "exp": NOW + 60, "iat": NOW as f64 - 0.5, "jti": "j1", "nbf": NOW,
        "info": {"a": 1.0, "b": 12345678901234567890123_f64}, "meta": {"plan": "x"},
        "channels": ["a", "b:c"],
        "subs": {"news": {"info": {"i": 1}, "data": [1], "override": {"force_recovery": {"value": true},
            "presence": {"value": false}, "join_leave": {}}}, "plain": {}},
        "of the issuer": {"own": "things"},
    }))
    .unwrap();
    assert_eq!(
        (claims.user.as_str(), claims.expires_at_s),
        ("42", Some(NOW + 60))
    );
    assert_eq!(
        (claims.token_id.as_deref(), claims.issued_at_s),
        (Some("j1"), Some(NOW - 1))
    );
    assert!(
        claims.info.unwrap().starts_with("{\"a\":1.0,"),
        "numbers stay as they are"
    );
    assert_eq!(claims.meta.as_deref(), Some("{\"plan\":\"x\"}"));
    assert_eq!(claims.channels, ["a", "b:c"]);
    let news = SubscribeOptions {
        info: Some("{\"i\":1}".to_owned()),
        data: Some("[1]".to_owned()),
        overrides: Overrides {
            presence: Some(false),
            join_leave: Some(false),
            force_recovery: Some(true),
            ..Overrides::default()
        },
    };
    assert_eq!(claims.subs["news"], news);
    assert_eq!(claims.subs["plain"], SubscribeOptions::default());
    let least = by_default(&json!({"exp": NOW + 60})).unwrap();
    let anonymous = Claims::anonymous();
    assert_eq!(
        (&least.user, &least.info),
        (&anonymous.user, &anonymous.info)
    );
    for bad in [
        json!({"channels": "a"}),
        json!({"channels": [1]}),
        json!({"subs": []}),
        json!({"subs": {"a": 1}}),
        json!({"subs": {"a": {"override": {"presence": true}}}}),
        json!({"subs": {"a": {"b64info": "%"}}}),
        json!({"subs": {"a": {"b64data": "bm8="}}}),
        json!({"jti": 7}),
    ] {
        let mut claims = bad.clone();
        claims["exp"] = (NOW + 60).into();
        assert!(is_invalid(&by_default(&claims)), "{bad}");
    }
}

#[test]
fn times_at_their_edges() {
    for (claims, expected) in [
        (json!({"exp": NOW + 1}), Ok(Some(NOW + 1))),
        (json!({"exp": NOW - 4}), Ok(Some(NOW - 4))),
        (json!({"exp": NOW - 5}), Err(TokenError::Expired)),
        (json!({"exp": i64::MIN}), Err(TokenError::Expired)),
        (json!({"exp": i64::MAX}), Ok(Some(i64::MAX))),
        (json!({"exp": u64::MAX}), Ok(Some(i64::MAX))),
        (json!({"exp": 1e300}), Ok(Some(i64::MAX))),
        (json!({"exp": NOW as f64 + 0.9}), Ok(Some(NOW))),
        (json!({"exp": NOW + 9, "nbf": i64::MIN}), Ok(Some(NOW + 9))),
        (json!({"exp": NOW + 9, "nbf": NOW + 5}), Ok(Some(NOW + 9))),
        (
            json!({"exp": NOW + 9, "nbf": NOW + 6}),
            Err(TokenError::Expired),
        ),
        (
            json!({"exp": NOW + 9, "nbf": i64::MAX}),
            Err(TokenError::Expired),
        ),
        (
            json!({"exp": NOW + 9, "expire_at": NOW + 99}),
            Ok(Some(NOW + 99)),
        ),
        (
            json!({"exp": NOW + 9, "expire_at": NOW}),
            Err(TokenError::ConnectionExpired),
        ),
        (
            json!({"exp": NOW + 9, "expire_at": -1}),
            Err(TokenError::ConnectionExpired),
        ),
        (json!({"exp": NOW + 9, "expire_at": 0}), Ok(None)),
        (
            json!({"exp": NOW - 9, "expire_at": 0}),
            Err(TokenError::Expired),
        ),
    ] {
        let found = by_default(&claims).map(|claims| claims.expires_at_s);
        assert_eq!(found, expected, "{claims}");
    }
    let ahead = |exp: i64| {
        let check = Check {
            exp_max_ahead_s: Some(86_400),
            ..Check::default()
        };
        connection(check, &json!({"exp": exp}))
    };
    assert!(ahead(NOW + 86_400).is_ok());
    assert!(is_invalid(&ahead(NOW + 86_406)));
    assert!(is_invalid(&ahead(i64::MAX)));
    // The compatibility switch, and nothing else, admits tokens without an end.
    let endless = json!({"sub": "ann"});
    assert!(is_invalid(&by_default(&endless)));
    let compatible = || Check {
        allow_missing_exp: true,
        ..Check::default()
    };
    assert_eq!(
        connection(compatible(), &endless).unwrap().expires_at_s,
        None
    );
    let over = connection(compatible(), &json!({"sub": "ann", "exp": NOW - 60}));
    assert_eq!(over, Err(TokenError::Expired));
}

#[test]
fn the_users_claim_may_be_another() {
    let user = |claims: &Value| {
        let check = Check {
            user_id_claim: "preferred_username".to_owned(),
            ..Check::default()
        };
        connection(check, claims).map(|claims| claims.user)
    };
    let exp = NOW + 60;
    let both = json!({"exp": exp, "sub": "1", "preferred_username": "ann"});
    assert_eq!(user(&both).unwrap(), "ann");
    assert_eq!(
        user(&json!({"exp": exp, "sub": "1"})).unwrap(),
        "",
        "sub does not step in"
    );
    assert!(is_invalid(&user(
        &json!({"exp": exp, "preferred_username": 7})
    )));
    assert!(is_invalid(&user(
        &json!({"exp": exp, "preferred_username": "a\n"})
    )));
}

#[test]
fn a_subscription_token_is_for_one_channel_user_and_client() {
    let good = json!({
        "sub": "ann", "channel": "a", "client": "c1", "exp": NOW + 60, "jti": "j", "iat": NOW,
        "info": {"role": "x"}, "data": 7, "override": {"force_positioning": {"value": true}},
    });
    let claims = subscription(&good).unwrap();
    assert_eq!(
        (claims.channel.as_str(), claims.user.as_str()),
        ("a", "ann")
    );
    assert_eq!(claims.options.info.as_deref(), Some("{\"role\":\"x\"}"));
    assert_eq!(claims.options.data.as_deref(), Some("7"));
    assert_eq!(claims.options.overrides.force_positioning, Some(true));
    let changed = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        subscription(&claims).map(|claims| claims.user)
    };
    assert_eq!(
        changed("channel", "b".into()),
        Err(TokenError::Mismatch("channel"))
    );
    assert_eq!(
        changed("channel", "".into()),
        Err(TokenError::Mismatch("channel"))
    );
    assert_eq!(
        changed("channel", Value::Null),
        Err(TokenError::Mismatch("channel"))
    );
    assert_eq!(
        changed("client", "c2".into()),
        Err(TokenError::Mismatch("client"))
    );
    assert_eq!(
        changed("sub", "bob".into()),
        Err(TokenError::Mismatch("user"))
    );
    assert_eq!(changed("sub", "".into()), Err(TokenError::Mismatch("user")));
    assert_eq!(changed("exp", (NOW - 60).into()), Err(TokenError::Expired));
    assert_eq!(
        changed("expire_at", (NOW - 60).into()),
        Err(TokenError::ConnectionExpired)
    );
    assert!(is_invalid(&changed("exp", Value::Null)));
    for anyone in ["", "c1"] {
        assert!(changed("client", anyone.into()).is_ok(), "{anyone}");
    }
    // The channel may come from the token alone.
    let token = sign(Algorithm::HS256, None, &good, SECRET);
    let found = verifier(Check::default()).subscription(&token, None, "ann", "c1", NOW);
    assert_eq!(found.unwrap().channel, "a");
    // A connection token subscribes to nothing.
    assert!(subscription(&json!({"sub": "ann", "exp": NOW + 60})).is_err());
}

#[test]
fn subscription_tokens_may_have_issuers_of_their_own() {
    let issuers = |secret: &str| {
        let keys = Keys::Fixed(vec![(Key::secret(secret).unwrap(), None)]);
        vec![Issuer {
            check: Check::default(),
            keys,
        }]
    };
    let apart = Verifier::new(issuers(SECRET), Some(issuers(PREVIOUS)));
    let room = json!({"sub": "ann", "channel": "a", "exp": NOW + 60});
    let user = json!({"sub": "ann", "exp": NOW + 60});
    let signed = |claims: &Value, secret| sign(Algorithm::HS256, None, claims, secret);
    let subscribe = |token: &str| apart.subscription(token, Some("a"), "ann", "c1", NOW);
    assert!(subscribe(&signed(&room, PREVIOUS)).is_ok());
    assert!(is_invalid(&subscribe(&signed(&room, SECRET))));
    assert!(apart.connection(&signed(&user, SECRET), NOW).is_ok());
    assert!(is_invalid(&apart.connection(&signed(&user, PREVIOUS), NOW)));
    let nobody = Verifier::default();
    assert!(is_invalid(&nobody.connection(&signed(&user, SECRET), NOW)));
    assert!(is_invalid(&nobody.subscription(
        &signed(&room, SECRET),
        Some("a"),
        "ann",
        "c1",
        NOW
    )));
}

#[test]
fn a_previous_secret_is_taken_until_its_end() {
    let keys = Keys::Fixed(vec![
        (Key::secret(SECRET).unwrap(), None),
        (Key::secret(PREVIOUS).unwrap(), Some(NOW)),
    ]);
    let verifier = Verifier::new(
        vec![Issuer {
            check: Check::default(),
            keys,
        }],
        None,
    );
    let token = sign(Algorithm::HS256, None, &json!({"exp": NOW + 60}), PREVIOUS);
    assert!(verifier.connection(&token, NOW).is_ok());
    assert!(is_invalid(&verifier.connection(&token, NOW + 1)));
}

#[test]
fn public_info_is_json() {
    let info = |claims: Value| by_default(&claims).map(|claims| claims.info.unwrap_or_default());
    let both = json!({"exp": NOW + 9, "info": 5, "b64info": "eyJhIjoKMX0="});
    assert_eq!(info(both).unwrap(), "{\"a\":1}");
    assert_eq!(info(json!({"exp": NOW + 9, "b64info": ""})).unwrap(), "");
    assert_eq!(info(json!({"exp": NOW + 9, "info": null})).unwrap(), "");
    for b64 in ["%%", "bm8=", "/w=="] {
        assert!(
            is_invalid(&info(json!({"exp": NOW + 9, "b64info": b64}))),
            "{b64}"
        );
    }
}
