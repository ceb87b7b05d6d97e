//! Knows: answers of every shape, and what is taken from each. Never: how they came.

use super::*;
use crate::{Grants, NamespaceRules};

const NOW_S: i64 = 1_800_000_000;

fn room(name: &str) -> RoomName {
    RoomName::parse(name).unwrap()
}

fn connected(answer: &str) -> Result<Answer<Connected>, Broken> {
    connect(answer.as_bytes(), NOW_S)
}

fn subscribed(answer: &str) -> Result<Answer<Subscribed>, Broken> {
    subscribe(answer.as_bytes(), "ann", &room("chat:a"), NOW_S)
}

#[test]
fn a_connect_answer_is_as_much_as_a_token() {
    let answer = format!(
        r#"{{"result":{{"user":"ann","expire_at":{},"info":{{"n":
1}},"b64data":"eyJkIjoxfQ==","meta":{{"m":1}},"channels":["x"],
        "caps":[{{"channels":["$a"],"allow":["sub"]}}],"later":[]}}}}"#,
        NOW_S + 60
    );
    let Ok(Answer::Allowed(found)) = connected(&answer) else {
        panic!("{:?}", connected(&answer));
    };
    assert_eq!(found.claims.user, "ann");
    assert_eq!(found.claims.expires_at_s, Some(NOW_S + 60));
    assert_eq!(found.claims.info.as_deref(), Some("{\"n\":1}"));
    assert_eq!(found.claims.meta.as_deref(), Some("{\"m\":1}"));
    assert_eq!(found.claims.capabilities.len(), 1);
    assert_eq!(found.data.as_deref(), Some("{\"d\":1}"));
    let over = format!(r#"{{"result":{{"user":"ann","expire_at":{NOW_S}}}}}"#);
    assert_eq!(connected(&over), Ok(Answer::Expired));
}

#[test]
fn the_severest_part_counts() {
    let error = r#""error":{"code":403,"message":"no","temporary":true}"#;
    let close = r#""disconnect":{"code":4501,"reason":"away"}"#;
    let all = format!(r#"{{"result":{{"user":"ann"}},{error},{close}}}"#);
    let closing = Closing {
        code: 4_501,
        reason: "away".to_owned(),
    };
    assert_eq!(connected(&all), Ok(Answer::Closed(closing)));
    let two = format!(r#"{{"result":{{"user":"ann"}},{error},"disconnect":null}}"#);
    let refusal = Refusal {
        code: 403,
        message: "no".to_owned(),
        temporary: true,
    };
    assert_eq!(connected(&two), Ok(Answer::Refused(refusal)));
}

#[test]
fn what_is_no_answer_opens_nothing() {
    let long_info = format!(
        r#"{{"result":{{"user":"a","info":"{}"}}}}"#,
        "x".repeat(INFO_MAX_BYTES)
    );
    for bad in [
        "",
        "null",
        "true",
        "{}",
        "[]",
        "{\"result\":null}",
        "{\"result\":[]}",
        "{\"result\":true}",
        "{\"result\":\"ok\"}",
        "{\"result\":{}}",
        "{\"result\":{\"user\":null}}",
        "{\"result\":{\"user\":56}}",
        "{\"result\":{\"user\":\"a\",\"user\":\"b\"}}",
        "{\"result\":{\"user\":\"a\\u0000\"}}",
        "{\"result\":{\"user\":\"a\",\"expire_at\":\"1\"}}",
        "{\"result\":{\"user\":\"a\",\"b64info\":\"!\"}}",
        "{\"result\":{\"user\":\"a\",\"caps\":[{\"channels\":[\"a\"],\"allow\":[\"all\"]}]}}",
        "{\"result\":{\"user\":\"a\"}} x",
        "{\"result\":{\"user\":\"a\"}",
        "{\"error\":{}}",
        "{\"error\":\"no\"}",
        "{\"error\":{\"code\":0}}",
        "{\"error\":{\"code\":108}}",
        "{\"error\":{\"code\":2000}}",
        "{\"error\":{\"code\":-400}}",
        "{\"result\":{\"user\":\"a\"},\"error\":{\"code\":1}}",
        "{\"disconnect\":{\"code\":3000}}",
        "{\"disconnect\":{\"code\":5000}}",
        "{\"disconnect\":{\"code\":70000}}",
        "{\"result\":{\"user\":\"a\"},\"disconnect\":{}}",
        &long_info,
        &format!("{{\"result\":{{\"user\":\"{}\"}}}}", "u".repeat(129)),
    ] {
        let found = connected(bad);
        assert!(found.is_err(), "{bad}: {found:?}");
    }
    assert!(connect(b"{\"result\":{\"user\":\"\xff\"}}", NOW_S).is_err());
    for bad in ["{\"result\":[]}", "{}", "{\"result\":{\"expired\":false}}"] {
        assert!(refresh(bad.as_bytes(), NOW_S).is_err(), "{bad}");
        assert!(connected(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_wrong_is_said_without_what_was_answered() {
    for bad in [
        "{\"result\":{\"user\":\"a\",\"expire_at\":\"secret\"}}",
        "{\"result\":\"secret\"}",
        "{\"secret\":",
        "\"secret\"",
    ] {
        let error = connected(bad).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn texts_are_cut_and_a_reason_is_no_json() {
    let close = |reason: &str| {
        let answer =
            serde_json::json!({ "disconnect": { "code": 4_000, "reason": reason } }).to_string();
        match connected(&answer) {
            Ok(Answer::Closed(closing)) => closing.reason,
            found => panic!("{found:?}"),
        }
    };
    assert_eq!(close("{\"reconnect\":true}"), "");
    assert_eq!(close(&"é".repeat(100)).len(), 122);
    assert_eq!(close("a\nb"), "ab");
}

#[test]
fn an_answer_about_somebody_else_is_broken() {
    for bad in [
        r#"{"result":{"channel":"chat:b"}}"#,
        r#"{"result":{"user":"bob"}}"#,
    ] {
        assert!(subscribed(bad).is_err(), "{bad}");
        assert!(
            publish(bad.as_bytes(), "ann", &room("chat:a")).is_err(),
            "{bad}"
        );
    }
    let same = r#"{"result":{"channel":"chat:a","user":"ann"}}"#;
    assert!(matches!(subscribed(same), Ok(Answer::Allowed(_))));
}

#[test]
fn an_answer_opens_the_room_that_was_asked_about_to_the_user_that_asked() {
    let answer =
        r#"{"result":{"info":{"n":1},"data":[1],"override":{"force_recovery":{"value":true}}}}"#;
    let Ok(Answer::Allowed(found)) = subscribed(answer) else {
        panic!("{:?}", subscribed(answer));
    };
    assert_eq!(found.options.info.as_deref(), Some("{\"n\":1}"));
    assert_eq!(found.options.overrides.force_recovery, Some(true));
    let grants = |user: &str| {
        let mut claims = Claims::anonymous();
        claims.user = user.to_owned();
        Grants::of(&claims, false)
    };
    let asks = NamespaceRules {
        subscribe_proxy_enabled: true,
        ..NamespaceRules::default()
    };
    let permit = grants("ann")
        .check_with_hook(&found.vouched, &asks)
        .unwrap();
    assert_eq!(permit.room(), &room("chat:a"));
    assert_eq!(permit.action(), Action::Subscribe);
    assert!(
        grants("bob")
            .check_with_hook(&found.vouched, &asks)
            .is_err()
    );
    let off = NamespaceRules::default();
    assert!(grants("ann").check_with_hook(&found.vouched, &off).is_err());
    for name in ["$chat:a", "chat:a#ann", "$chat:a#ann"] {
        let Ok(Answer::Allowed(found)) = subscribe(b"{\"result\":{}}", "ann", &room(name), NOW_S)
        else {
            panic!("it is an answer");
        };
        let found = grants("ann").check_with_hook(&found.vouched, &asks);
        assert!(found.is_err(), "{name} has rights of its own");
    }
}

#[test]
fn a_publish_may_be_another() {
    let ask = |answer: &str| publish(answer.as_bytes(), "ann", &room("chat:a"));
    let data = |answer: &str| match ask(answer) {
        Ok(Answer::Allowed(found)) => found.data.map(|data| String::from_utf8(data).unwrap()),
        found => panic!("{found:?}"),
    };
    assert_eq!(data(r#"{"result":{}}"#), None);
    assert_eq!(
        data(r#"{"result":{"data":{"a": 1}}}"#).as_deref(),
        Some(r#"{"a": 1}"#)
    );
    assert_eq!(
        data(r#"{"result":{"b64data":"MQ=="}}"#).as_deref(),
        Some("1")
    );
    assert!(ask(r#"{"result":{"b64data":"?"}}"#).is_err());
    let long = format!(
        r#"{{"result":{{"idempotency_key":"{}"}}}}"#,
        "k".repeat(257)
    );
    assert!(ask(&long).is_err());
}

#[test]
fn a_refresh_says_until_when_or_ends() {
    let ask = |answer: String| refresh(answer.as_bytes(), NOW_S);
    let until = ask(format!(
        r#"{{"result":{{"expire_at":{},"info":{{"n":2}}}}}}"#,
        NOW_S + 5
    ));
    let Ok(Answer::Allowed(found)) = until else {
        panic!("{until:?}");
    };
    assert_eq!(found.expires_at_s, NOW_S + 5);
    assert_eq!(found.info.as_deref(), Some("{\"n\":2}"));
    for ends in [
        r#"{"result":{"expired":true}}"#.to_owned(),
        format!(
            r#"{{"result":{{"expired":true,"expire_at":{}}}}}"#,
            NOW_S + 5
        ),
        format!(r#"{{"result":{{"expire_at":{NOW_S}}}}}"#),
        r#"{"error":{"code":403}}"#.to_owned(),
    ] {
        assert_eq!(ask(ends.clone()), Ok(Answer::Expired), "{ends}");
    }
    assert!(ask(r#"{"result":{"expire_at":0}}"#.to_owned()).is_err());
    assert!(matches!(
        ask(r#"{"disconnect":{"code":4500}}"#.to_owned()),
        Ok(Answer::Closed(_))
    ));
}
