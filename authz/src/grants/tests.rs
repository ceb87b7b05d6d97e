//! Tests of grants.

use super::*;

fn room(name: &str) -> RoomName {
    RoomName::parse(name).unwrap()
}

fn socket(user: &str, insecure: bool) -> Grants {
    let mut claims = Claims::anonymous();
    claims.user = user.to_owned();
    Grants::of(&claims, insecure)
}

fn shown(grants: &Grants, user: &str, of: &str, name: &str, rules: &NamespaceRules) -> bool {
    let claims = SubscriptionClaims {
        channel: of.to_owned(),
        user: user.to_owned(),
        client: None,
        expires_at_s: None,
        options: crate::token::SubscribeOptions::default(),
        token_id: None,
        issued_at_s: None,
    };
    grants.check_with_token(&claims, &room(name), rules).is_ok()
}

fn check(grants: &Grants, action: Action, name: &str, rules: &NamespaceRules) -> bool {
    grants.check(action, &room(name), rules, false).is_ok()
}

#[test]
fn nothing_is_allowed_by_default() {
    let rules = NamespaceRules::default();
    for user in ["", "ann"] {
        for action in [
            Action::Subscribe,
            Action::Publish,
            Action::History,
            Action::Presence,
        ] {
            let grants = socket(user, false);
            assert!(grants.check(action, &room("a"), &rules, true).is_err());
        }
    }
    assert!(check(&socket("", true), Action::Publish, "a", &rules));
}

#[test]
fn users_and_the_anonymous_user_have_rules_of_their_own() {
    let rules = NamespaceRules {
        allow_subscribe_for_client: true,
        allow_publish_for_client: true,
        allow_publish_for_anonymous: true,
        allow_history_for_anonymous: true,
        ..NamespaceRules::default()
    };
    let (ann, nobody) = (socket("ann", false), socket("", false));
    assert!(check(&ann, Action::Subscribe, "a", &rules));
    assert!(!check(&nobody, Action::Subscribe, "a", &rules));
    assert!(check(&ann, Action::Publish, "a", &rules));
    assert!(check(&nobody, Action::Publish, "a", &rules));
    assert!(!check(&nobody, Action::History, "a", &rules));
}

#[test]
fn marks_limit_who_may_join() {
    let rules = NamespaceRules {
        allow_subscribe_for_client: true,
        allow_user_limited_channels: true,
        ..NamespaceRules::default()
    };
    let ann = socket("ann", false);
    assert!(!check(&ann, Action::Subscribe, "$x", &rules));
    assert!(shown(&ann, "ann", "$x", "$x", &rules));
    assert!(!shown(&ann, "ann", "$y", "$x", &rules));
    assert!(!shown(&ann, "bob", "$x", "$x", &rules));
    assert!(check(&ann, Action::Subscribe, "x#ann,bob", &rules));
    assert!(!check(&ann, Action::Subscribe, "x#bob", &rules));
    assert!(!shown(&ann, "ann", "x#bob", "x#bob", &rules));
    assert!(!check(&socket("", false), Action::Subscribe, "x#", &rules));
    let off = NamespaceRules {
        allow_user_limited_channels: false,
        ..rules
    };
    assert!(!check(&ann, Action::Subscribe, "x#ann", &off));
}

#[test]
fn at_the_native_door_a_right_to_subscribe_counts_as_being_subscribed() {
    let rules = NamespaceRules {
        allow_subscribe_for_client: true,
        allow_publish_for_subscriber: true,
        ..NamespaceRules::default()
    };
    assert!(check(&Grants::native("bot"), Action::Publish, "a", &rules));
    assert!(!check(
        &Grants::native("bot"),
        Action::Publish,
        "$a",
        &rules
    ));
    assert!(!check(&socket("bot", false), Action::Publish, "a", &rules));
    let subscribed = socket("bot", false).check(Action::Publish, &room("a"), &rules, true);
    assert_eq!(subscribed.unwrap().action(), Action::Publish);
}

/// Sets the three options of an action.
fn allow(action: Action, client: bool, subscriber: bool, anonymous: bool) -> NamespaceRules {
    let mut rules = NamespaceRules::default();
    match action {
        Action::Subscribe => {
            rules.allow_subscribe_for_client = client;
            rules.allow_subscribe_for_anonymous = anonymous;
        }
        Action::Publish => {
            rules.allow_publish_for_client = client;
            rules.allow_publish_for_subscriber = subscriber;
            rules.allow_publish_for_anonymous = anonymous;
        }
        Action::History => {
            rules.allow_history_for_client = client;
            rules.allow_history_for_subscriber = subscriber;
            rules.allow_history_for_anonymous = anonymous;
        }
        Action::Presence => {
            rules.allow_presence_for_client = client;
            rules.allow_presence_for_subscriber = subscriber;
            rules.allow_presence_for_anonymous = anonymous;
        }
    }
    rules
}

#[test]
fn every_action_follows_one_table() {
    let bits = [false, true];
    for action in [
        Action::Subscribe,
        Action::Publish,
        Action::History,
        Action::Presence,
    ] {
        for case in 0..32_u8 {
            let bit = |nth: u8| bits[usize::from(case >> nth & 1)];
            let (client, subscriber, anonymous) = (bit(0), bit(1), bit(2));
            let (has_name, subscribed) = (bit(3), bit(4));
            let rules = allow(action, client, subscriber, anonymous);
            let user = if has_name { "ann" } else { "" };
            let counts = subscriber && subscribed && action != Action::Subscribe;
            let expected = (client || counts) && (has_name || anonymous);
            let found = socket(user, false).check(action, &room("a"), &rules, subscribed);
            assert_eq!(found.is_ok(), expected, "{action:?} {case:05b}");
            if let Ok(permit) = found {
                assert_eq!((permit.room().channel(), permit.action()), ("a", action));
            }
        }
    }
}

#[test]
fn marked_names_do_not_slip_under_a_namespace_at_the_native_door() {
    for action in [
        Action::Subscribe,
        Action::Publish,
        Action::History,
        Action::Presence,
    ] {
        let rules = NamespaceRules {
            allow_user_limited_channels: true,
            ..allow(action, true, true, true)
        };
        let ann = Grants::native("ann");
        assert!(check(&ann, action, "chat:a", &rules));
        for name in [
            "$chat:a",
            "chat:a#ann",
            "$chat:a#ann",
            "#ann",
            "$a",
            "chat:a#",
        ] {
            assert!(!check(&ann, action, name, &rules), "{action:?} {name}");
        }
    }
}
