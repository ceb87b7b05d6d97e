//! Knows: what each user of deploy/nats.conf may publish and hear, tried on a real nats-server.
//! Never: what Weir itself would do with it.

use crate::weir::{Lines, Weir};

/// Subjects that no user but Weir's may publish on, whoever it is.
const NEVER: &[&str] = &[
    "room.chat.lobby",
    "log.rooms.1.chat.lobby",
    "eph.chat.lobby",
    "who.chat.lobby",
    "rpc.add",
    "hook.connect",
    "$JS.API.INFO",
    "$JS.API.STREAM.PURGE.ROOMS_0",
    "$JS.API.STREAM.MSG.DELETE.ROOMS_0",
    "$JS.API.STREAM.INFO.ROOMS_0",
    "$JS.API.DIRECT.GET.ROOMS_0",
    "$JS.ACK.ROOMS_0.c.1.1.1.1.1",
    "$KV.weir.placement.rooms",
    "$KV.weir.erase.x",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.ACCOUNT.WEIR.CONNZ",
    "$MQTT.sub.x",
    "$MQTT.msgs.x",
    "parked.ROOMS_0",
    "_INBOX.weir.x",
    "_INBOX.bot.x",
    "_INBOX.dev1.x",
];

/// Subjects that only Weir's users, or operators, may hear.
const NEVER_HEARD: &[&str] = &[
    ">",
    "*.>",
    "log.>",
    "say.>",
    "say.*.*.*",
    "history.*.*.*",
    "$JS.>",
    "$KV.>",
    "$SYS.>",
    "$MQTT.>",
    "_INBOX.>",
    "_INBOX.weir.>",
    "_INBOX.ops.>",
    "_R_.>",
    "weir.>",
];
/// Subjects that only the application's services may hear: an answer to one lets somebody in.
const HOOKS: &[&str] = &["hook.>", "hook.*", "hook.connect", "hook.subscribe.vip"];

struct User {
    name: &'static str,
    may_publish: &'static [&'static str],
    may_not_publish: &'static [&'static str],
    may_hear: &'static [&'static str],
    may_not_hear: &'static [&'static str],
}

const USERS: &[User] = &[
    User {
        name: "dev1",
        may_publish: &["say.dev1.chat.lobby", "history.dev1.chat.lobby"],
        may_not_publish: &[
            "say.bot.chat.lobby",
            "say.ops.chat.lobby",
            "say.dev1.chat.lobby.more",
            "say.dev1.chat",
            "history.bot.chat.lobby",
            "weir.disconnect",
            "weir.revoke",
            "weir.unsubscribe",
            "weir.ordered",
            "$KV.weir.control.revoke.user.x",
            "$SRV.PING",
        ],
        may_hear: &[
            "room.>",
            "room.chat.lobby",
            "room.chat.*",
            "eph.chat.lobby",
            "_INBOX.dev1.>",
        ],
        may_not_hear: &[
            "who.chat.lobby",
            "rpc.add",
            "_INBOX.bot.>",
            "_INBOX.dev1",
            "$SRV.>",
        ],
    },
    User {
        name: "bot",
        may_publish: &["say.bot.chat.lobby", "history.bot.chat.lobby"],
        may_not_publish: &[
            "say.dev1.chat.lobby",
            "history.dev1.chat.lobby",
            "weir.disconnect",
            "weir.revoke",
            "weir.unsubscribe",
            "weir.ordered",
            "$KV.weir.control.revoke.user.x",
            "$SRV.PING",
        ],
        may_hear: &["room.>", "eph.>", "rpc.add", "_INBOX.bot.>"],
        may_not_hear: &["who.chat.lobby", "hook.connect", "_INBOX.dev1.>"],
    },
    User {
        name: "backend",
        may_publish: &["say.backend.chat.lobby", "history.backend.chat.lobby"],
        may_not_publish: &[
            "say.bot.chat.lobby",
            "history.dev1.chat.lobby",
            "hook.subscribe",
            "hook.publish",
            "hook.refresh",
            "weir.disconnect",
            "$SRV.PING",
        ],
        may_hear: &["hook.>", "hook.connect", "rpc.add", "_INBOX.backend.>"],
        may_not_hear: &["room.chat.lobby", "who.chat.lobby", "_INBOX.dev1.>"],
    },
    User {
        name: "ops",
        may_publish: &[
            "say.ops.chat.lobby",
            "history.ops.chat.lobby",
            "weir.disconnect",
            "weir.revoke",
            "weir.unsubscribe",
            "$SRV.PING",
        ],
        may_not_publish: &["say.dev1.chat.lobby", "history.bot.chat.lobby"],
        may_hear: &["room.>", "eph.>", "who.>", "weir.>", "_INBOX.>"],
        may_not_hear: &["log.>", "say.>", "$KV.>"],
    },
];

/// Weir's own: may publish, may not, may hear, may not.
type Row = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);
const OWN: &[Row] = &[
    (
        "weir",
        &[
            "log.x.1._.=check",
            "eph._.=check",
            "who._.=check",
            "rpc.=check",
            "hook.=check",
            "weir.check",
            "$JS.API.INFO",
            "$JS.API.STREAM.MSG.DELETE.NONE",
            "$KV.weir.check",
        ],
        &[
            "room.chat.lobby",
            "say.ops.chat.lobby",
            "history.ops.chat.lobby",
            "_INBOX.ops.x",
            "$SYS.REQ.SERVER.PING",
            "$KV.other.x",
        ],
        &[
            "room.chat.lobby",
            "eph.chat.lobby",
            "_INBOX.weir.x",
            "$JS.EVENT.ADVISORY.>",
        ],
        &[">", "say.>", "log.>", "_INBOX.>", "$SYS.>"],
    ),
    (
        "weir_read",
        &[
            "$JS.API.DIRECT.GET.ROOMS_0",
            "$JS.API.DIRECT.GET.ROOMS_0.log.rooms.1.a.b",
            "$JS.API.STREAM.INFO.ROOMS_0",
        ],
        &[
            "room.a.b",
            "log.rooms.1.a.b",
            "$JS.API.STREAM.PURGE.ROOMS_0",
            "$JS.API.STREAM.DELETE.ROOMS_0",
            "$JS.API.STREAM.MSG.DELETE.ROOMS_0",
            "$KV.weir.erase.x",
            "_INBOX.ops.x",
            "hook.connect",
        ],
        &["_INBOX.weir_read.x"],
        &[">", "room.>", "_INBOX.>", "say.>"],
    ),
    (
        "weir_door",
        &["_INBOX.ops.x", "_INBOX.dev1.x"],
        &[
            "room.a.b",
            "log.rooms.1.a.b",
            "say.ops.a.b",
            "weir.x",
            "$JS.API.INFO",
            "$JS.API.STREAM.MSG.DELETE.ROOMS_0",
            "$KV.weir.x",
            "$SRV.PING",
            "_INBOX",
            "rpc.x",
            "hook.connect",
        ],
        &["say.*.*.*", "history.*.*.*", "weir.>", "$SRV.PING"],
        &[">", "room.>", "_INBOX.>", "say.>", "log.>"],
    ),
    (
        "weir_auth",
        &["$SYS._INBOX.x.y"],
        &[
            "room.a.b",
            "log.rooms.1.a.b",
            "say.ops.a.b",
            "$JS.API.INFO",
            "$SYS.REQ.USER.AUTH",
            "$SYS.REQ.SERVER.PING",
            "_INBOX.weir.x",
        ],
        &["$SYS.REQ.USER.AUTH"],
        &[">", "room.>", "_INBOX.>", "$SYS.>", "$SYS._INBOX.>"],
    ),
    (
        "weir_kick",
        &["$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.NONE.KICK"],
        &[
            "room.a.b",
            "say.ops.a.b",
            "$JS.API.INFO",
            "$SYS.REQ.SERVER.PING",
            "$SYS.REQ.SERVER.PING.VARZ",
            "$SYS.REQ.SERVER.NONE.RELOAD",
            "$SYS.REQ.SERVER.NONE.LDM",
            "$SYS.REQ.ACCOUNT.WEIR.CONNZ",
            "_INBOX.weir.x",
        ],
        &["_INBOX.weir_kick.x"],
        &[">", "_INBOX.>", "$SYS.>", "$SYS.ACCOUNT.>"],
    ),
];

#[test]
fn users_may_do_what_the_design_says_and_nothing_else() {
    let mut weir = Weir::new();
    weir.up();
    for user in USERS {
        let mut nats = Lines::connect(weir.nats, user.name, user.name).unwrap();
        for subject in user.may_publish {
            assert!(
                nats.may_publish(subject),
                "{} must publish {subject}",
                user.name
            );
        }
        for subject in NEVER.iter().chain(user.may_not_publish) {
            assert!(
                !nats.may_publish(subject),
                "{} may publish {subject}",
                user.name
            );
        }
        for subject in user.may_hear {
            assert!(
                nats.may_subscribe(subject),
                "{} must hear {subject}",
                user.name
            );
        }
        let forbidden = NEVER_HEARD.iter().filter(|subject| {
            let operators = subject.starts_with("_INBOX.") || **subject == "weir.>";
            user.name != "ops" || !operators
        });
        let hooks = HOOKS.iter().filter(|_| user.name != "backend");
        for subject in forbidden.chain(hooks).chain(user.may_not_hear) {
            assert!(
                !nats.may_subscribe(subject),
                "{} may hear {subject}",
                user.name
            );
        }
    }
    let kept = std::fs::read(weir.data().join("nats-server/passwords.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    for (name, may_publish, may_not_publish, may_hear, may_not_hear) in OWN {
        let mut nats = Lines::connect(weir.nats, name, kept[name].as_str().unwrap()).unwrap();
        for subject in *may_publish {
            assert!(nats.may_publish(subject), "{name} must publish {subject}");
        }
        for subject in *may_not_publish {
            assert!(!nats.may_publish(subject), "{name} may publish {subject}");
        }
        for subject in *may_hear {
            assert!(nats.may_subscribe(subject), "{name} must hear {subject}");
        }
        for subject in may_not_hear.iter().chain(HOOKS) {
            assert!(!nats.may_subscribe(subject), "{name} may hear {subject}");
        }
    }
}

#[test]
fn nobody_comes_in_without_the_password() {
    let mut weir = Weir::new();
    weir.up();
    for (user, password) in [
        ("", ""),
        ("ops", ""),
        ("ops", "bot"),
        ("weir", "weir"),
        ("weir_read", "weir_read"),
        ("weir_door", "weir_door"),
        ("sys", "sys"),
        ("admin", "admin"),
    ] {
        assert!(
            Lines::connect(weir.nats, user, password).is_err(),
            "{user:?} {password:?}"
        );
    }
}

#[test]
fn a_service_answers_where_the_caller_asked_and_only_once() {
    let mut weir = Weir::new();
    weir.up();
    let kept = std::fs::read(weir.data().join("nats-server/passwords.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    let mut caller = Lines::connect(weir.nats, "weir", kept["weir"].as_str().unwrap()).unwrap();
    let mut bot = Lines::connect(weir.nats, "bot", "bot").unwrap();
    bot.tell("SUB rpc.add 1");
    assert!(bot.errors().unwrap().is_empty());
    caller.tell("SUB _INBOX.weir.a 1");
    caller.publish("rpc.add", Some("_INBOX.weir.a"), "{}");
    assert_eq!(bot.message().as_deref(), Some("{}"));
    assert!(bot.may_publish("_INBOX.weir.a"));
    assert_eq!(caller.message().as_deref(), Some("{}"));
    assert!(
        !bot.may_publish("_INBOX.weir.a"),
        "an answer was allowed twice"
    );
    assert!(!bot.may_publish("_INBOX.weir.b"));
}
