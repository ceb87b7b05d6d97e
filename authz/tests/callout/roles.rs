//! Knows: roles as people give them, and for each subject that Weir has whether it is theirs.
//! Never: how rights are rendered.

use serde_json::json;
use weir_authz::NamespaceRules;

use crate::figures::figure;
use crate::raw::Raw;
use crate::server::{Server, token};

/// What nobody with a token may publish on.
const NEVER: [&str; 30] = [
    "room.vip.a",
    "eph.vip.a",
    "who.vip.a",
    "log.rooms.1.vip.a",
    "parked.ROOMS_0",
    "rpc.add",
    "hook.connect",
    "weir.disconnect",
    "$SRV.PING",
    "$JS.API.INFO",
    "$JS.API.STREAM.CREATE.X",
    "$JS.API.STREAM.PURGE.ROOMS_0",
    "$JS.API.STREAM.MSG.GET.ROOMS_0",
    "$JS.API.DIRECT.GET.ROOMS_0",
    "$JS.API.CONSUMER.CREATE.ROOMS_0",
    "$JS.ACK.ROOMS_0.c.1.1.1.1.1",
    "$KV.weir.erase.x",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.USER.AUTH",
    "$SYS.REQ.USER.INFO",
    "$MQTT.msgs.x",
    "$MQTT.sub.x",
    "_INBOX.weir.x",
    "_INBOX.bot.x",
    "_INBOX.ann.x",
    "say.bot.vip.a",
    "history.bot.vip.a",
    "say.ann.vip",
    "say.ann.vip.a.b",
    "say.ann.other.a",
];

/// What nobody with a token may hear.
const NEVER_HEARD: [&str; 22] = [
    ">",
    "*",
    "*.>",
    "*.*.*",
    "log.>",
    "say.>",
    "say.*.*.*",
    "say.ann.vip.*",
    "history.*.*.*",
    "room.>",
    "room.*.a",
    "room.*.*",
    "room.other.a",
    "$JS.>",
    "$JS.API.>",
    "$KV.>",
    "$SYS.>",
    "$SYS.REQ.USER.AUTH",
    "_INBOX.>",
    "_INBOX.*.>",
    "_INBOX.bot.>",
    "weir.>",
];

pub(crate) struct Role {
    pub(crate) name: &'static str,
    pub(crate) caps: &'static str,
    pub(crate) publish: &'static [&'static str],
    pub(crate) hear: &'static [&'static str],
}

const INBOX: &str = "_INBOX.ann.x";
pub(crate) const ROLES: [Role; 7] = [
    Role {
        name: "nothing",
        caps: "[]",
        publish: &[],
        hear: &[INBOX],
    },
    Role {
        name: "read-only",
        caps: r#"[{"channels":["vip:a"],"allow":["sub"]}]"#,
        publish: &[],
        hear: &[INBOX, "room.vip.a", "eph.vip.a"],
    },
    Role {
        name: "write-only",
        caps: r#"[{"channels":["vip:a"],"allow":["pub"]}]"#,
        publish: &["say.ann.vip.a"],
        hear: &[INBOX],
    },
    Role {
        name: "reads back",
        caps: r#"[{"channels":["vip:a"],"allow":["hst"]}]"#,
        publish: &["history.ann.vip.a"],
        hear: &[INBOX],
    },
    Role {
        name: "watches",
        caps: r#"[{"channels":["vip:a"],"allow":["prs"]}]"#,
        publish: &[],
        hear: &[INBOX, "who.vip.a"],
    },
    Role {
        name: "private",
        caps: r#"[{"channels":["$vip:a","vip:b#ann"],"allow":["sub","pub"]}]"#,
        publish: &["say.ann.=24vip.a", "say.ann.=23vip.b=23ann"],
        hear: &[
            INBOX,
            "room.=24vip.a",
            "eph.=24vip.a",
            "room.=23vip.b=23ann",
        ],
    },
    Role {
        name: "the namespace",
        caps: r#"[{"namespaces":["vip"],"allow":["sub","pub","hst","prs"]}]"#,
        publish: &["say.ann.vip.a", "say.ann.vip.b", "history.ann.vip.a"],
        hear: &[
            INBOX,
            "room.vip.a",
            "eph.vip.a",
            "who.vip.a",
            "room.vip.b",
            "room.vip",
            "room.vip.>",
            "room.vip.*",
        ],
    },
];

/// Theirs in one role and not in another.
const SOME: [&str; 5] = [
    "say.ann.vip.a",
    "say.ann.vip.b",
    "history.ann.vip.a",
    "say.ann.=24vip.a",
    "say.ann.=23vip.b=23ann",
];
const SOME_HEARD: [&str; 11] = [
    INBOX,
    "room.vip.a",
    "eph.vip.a",
    "who.vip.a",
    "room.vip.b",
    "room.=24vip.a",
    "eph.=24vip.a",
    "room.=23vip.b=23ann",
    "room.vip",
    "room.vip.>",
    "room.vip.*",
];

/// A namespace without rights for everyone.
pub(crate) fn closed() -> Vec<(Option<String>, NamespaceRules)> {
    let rules = NamespaceRules {
        allow_user_limited_channels: true,
        ..NamespaceRules::default()
    };
    vec![
        (Some("vip".to_owned()), rules.clone()),
        (Some("other".to_owned()), rules),
    ]
}

pub(crate) fn with_caps(caps: &str) -> String {
    let caps: serde_json::Value = serde_json::from_str(caps).unwrap();
    token("ann", json!({"caps": caps}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_do_its_own_and_nothing_else() {
    let server = Server::start().await;
    let callout = server.callout(closed()).await;
    let mut cells = 0;
    for role in ROLES {
        let token = with_caps(role.caps);
        let mut client = Raw::login(server.port, &token).await.unwrap();
        for subject in NEVER.iter().chain(&SOME) {
            let expected = role.publish.contains(subject);
            assert_eq!(
                client.may_publish(subject).await,
                expected,
                "{}: publish on {subject}",
                role.name
            );
            cells += 1;
        }
        for subject in NEVER_HEARD.iter().chain(&SOME_HEARD) {
            let expected = role.hear.contains(subject);
            assert_eq!(
                client.may_hear(subject).await,
                expected,
                "{}: hear {subject}",
                role.name
            );
            cells += 1;
        }
    }
    assert!(cells >= 300);
    figure!("{cells} cells of {} roles", ROLES.len());
    callout.stop().await;
}
