//! Knows: the process `weir` from outside: start, signals, kill -9, takeover, strangers, wrong configurations, exit codes,
//! the commands of `weir archive`, and what each NATS user may do on the shipped nats.conf.
//! Never: rooms from inside; `tests/it` has those.

#[path = "process/archive.rs"]
mod archive;
#[path = "support/jwks.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses its part, and fails by panicking"
)]
mod jwks;
#[path = "support/cassandra.rs"]
mod node;
#[path = "process/permissions.rs"]
mod permissions;
#[path = "process/weir.rs"]
mod weir;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use jwks::{Answer, KeyServer};
use weir::{Lines, Weir, free_port, is_alive, until};

#[test]
fn starts_prints_lines_to_paste_and_stops_cleanly() {
    let mut weir = Weir::new();
    weir.up();
    let out = weir.stdout();
    for line in [
        format!("page       http://127.0.0.1:{}/", weir.http),
        format!(
            "WebSocket  ws://127.0.0.1:{}/connection/websocket",
            weir.http
        ),
        format!("export NATS_URL=nats://ops:ops@127.0.0.1:{}", weir.nats),
        "nats sub 'room.>'".to_owned(),
        r#"nats req say.ops.chat.lobby '{"text":"hi"}'"#.to_owned(),
        format!("mqtt://dev1:dev1@127.0.0.1:{}", weir.mqtt),
    ] {
        assert!(out.contains(&line), "{line} is not in:\n{out}");
    }
    assert!(weir.get("/health").starts_with("HTTP/1.1 200"));
    assert!(weir.get("/metrics").contains("weir_build_info{version="));
    until("ready", || weir.get("/ready").starts_with("HTTP/1.1 200"));
    let server = weir.server_pid().unwrap();
    assert_eq!(weir.interrupt(), Some(0));
    assert!(!is_alive(server), "nats-server outlived a clean stop");
    let log = weir.stderr();
    let (stopped, ended) = (
        log.find("nats-server stopped"),
        log.find("\"weir stopped\""),
    );
    assert!(stopped.is_some() && stopped < ended, "{log}");
}

#[test]
fn what_it_keeps_is_closed_to_others_and_logs_hold_no_secret() {
    let mut weir = Weir::new();
    weir.up();
    let mode = |path: &str| {
        std::fs::metadata(weir.data().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(""), 0o700);
    assert_eq!(mode("nats-server"), 0o700);
    assert_eq!(mode("nats-server/passwords.json"), 0o600);
    let text = std::fs::read_to_string(weir.data().join("nats-server/passwords.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    weir.interrupt();
    let logs = format!(
        "{}{}{}",
        weir.stdout(),
        weir.stderr(),
        std::fs::read_to_string(weir.data().join("nats-server/nats-server.log")).unwrap()
    );
    for (name, value) in kept.as_object().unwrap() {
        let shown = name != "server_name" && logs.contains(value.as_str().unwrap());
        assert!(!shown, "the password of {name} is in a log");
    }
}

#[test]
fn a_token_of_the_data_folder_opens_nats_and_a_folder_of_before_gets_what_it_lacks() {
    let mut weir = Weir::new();
    weir.up();
    let path = weir.data().join("nats-server/passwords.json");
    let read = || -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
    };
    let mut kept = read();
    weir.interrupt();
    let of_now = [
        "weir_auth",
        "weir_kick",
        "auth_issuer_seed",
        "auth_xkey_seed",
        "token_secret",
    ];
    for name in of_now {
        assert!(
            kept.as_object_mut().unwrap().remove(name).is_some(),
            "{name}"
        );
    }
    std::fs::write(&path, kept.to_string()).unwrap();
    weir.up();
    let made = read();
    assert_eq!(made["weir"], kept["weir"], "what was there stays");
    // As it is to be pasted, in another folder and with nothing of ours on the PATH.
    let out = weir.stdout();
    let line = out
        .lines()
        .find(|line| line.trim().starts_with("a token"))
        .unwrap();
    assert!(
        line.contains(&format!("-s nats://127.0.0.1:{} ", weir.nats)),
        "{line}"
    );
    let (_, command) = line.split_once("$(").unwrap();
    let (command, rest) = command.split_once(")\"").unwrap();
    assert_eq!(
        rest,
        " --inbox-prefix _INBOX.ann req say.ann.chat.lobby '{\"text\":\"hi\"}'"
    );
    let mut shell = Command::new("sh");
    let made = shell
        .args(["-c", command])
        .current_dir("/")
        .output()
        .unwrap();
    let token = String::from_utf8(made.stdout).unwrap();
    assert!(made.status.success(), "{command}");
    let mut nats = Lines::connect(weir.nats, "ann", token.trim()).unwrap();
    assert!(nats.may_publish("say.ann.chat.lobby") && nats.may_subscribe("room.chat.lobby"));
    assert!(!nats.may_publish("say.bot.chat.lobby") && !nats.may_subscribe("room.>"));
    let (_, found) = weir.check(&[]);
    assert!(found.contains("auth callout: a token is let in"), "{found}");
}

#[test]
fn a_killed_weir_leaves_a_server_that_the_next_one_takes_over() {
    let mut weir = Weir::new();
    weir.up();
    let offset = weir.say("before");
    let left = weir.server_pid().unwrap();
    weir.kill();
    assert!(is_alive(left), "nats-server died with its weir");
    weir.up();
    assert!(weir.stderr().contains("taking over"), "{}", weir.stderr());
    let now = weir.server_pid().unwrap();
    assert_ne!(left, now);
    assert!(!is_alive(left));
    assert!(
        weir.say("after") > offset,
        "what was acknowledged before is gone"
    );
    assert_eq!(weir.interrupt(), Some(0));
    assert!(!is_alive(now));
}

#[test]
fn a_leftover_on_other_ports_is_taken_over_too() {
    let mut weir = Weir::new();
    weir.up();
    let left = weir.server_pid().unwrap();
    weir.kill();
    weir.nats = free_port();
    weir.mqtt = free_port();
    weir.up();
    assert!(!is_alive(left));
    weir.say("hello");
}

#[test]
fn a_server_that_dies_is_started_again_and_keeps_what_it_had() {
    let mut weir = Weir::new();
    weir.up();
    let offset = weir.say("before");
    let first = weir.server_pid().unwrap();
    weir::kill_nine(first);
    until("a new nats-server", || {
        weir.server_pid()
            .is_some_and(|pid| pid != first && is_alive(pid))
    });
    until("an acknowledged message", || {
        weir.try_say("after").is_some_and(|next| next > offset)
    });
    until("ready again", || {
        weir.get("/ready").starts_with("HTTP/1.1 200")
    });
    assert!(
        weir.get("/metrics")
            .contains("weir_nats_server_restarts_total 1")
    );
    assert_eq!(weir.interrupt(), Some(0));
}

#[test]
fn a_stopped_weir_finds_its_data_again() {
    let mut weir = Weir::new();
    weir.up();
    let first = weir.say("one");
    assert_eq!(weir.terminate(), Some(0));
    weir.up();
    assert!(weir.say("two") > first);
}

#[test]
fn a_second_weir_in_the_same_folder_is_refused_and_harms_nobody() {
    let mut weir = Weir::new();
    weir.up();
    let mut second = weir.sibling();
    assert_eq!(second.fails(), Some(1));
    let error = second.stderr();
    assert!(
        error.contains("is in use by another Weir (process "),
        "{error}"
    );
    weir.say("still here");
}

#[test]
fn strangers_on_ports_are_named() {
    // Something that talks, on the port of NATS.
    let mut weir = Weir::new();
    let stranger = TcpListener::bind(("127.0.0.1", weir.nats)).unwrap();
    std::thread::spawn(move || {
        for socket in stranger.incoming().flatten() {
            let mut socket = socket;
            let sent = socket.write_all(b"220 mail.example ESMTP\x1b[31m\r\n");
            assert!(sent.is_ok());
        }
    });
    assert_eq!(weir.fails(), Some(1));
    let error = weir.stderr();
    assert!(
        error.contains(&format!("port {} (NATS) is taken by", weir.nats)),
        "{error}"
    );
    assert!(
        error.contains("says \"220 mail.example ESMTP\\u{1b}[31m\""),
        "{error}"
    );
    assert!(error.contains("nats_server.port"), "{error}");

    // Something silent, on the port of MQTT.
    let mut weir = Weir::new();
    let silent = TcpListener::bind(("127.0.0.1", weir.mqtt)).unwrap();
    assert_eq!(weir.fails(), Some(1));
    let error = weir.stderr();
    assert!(
        error.contains(&format!("port {} (MQTT) is taken by something", weir.mqtt)),
        "{error}"
    );
    drop(silent);

    // The public port.
    let mut weir = Weir::new();
    let taken = TcpListener::bind(("127.0.0.1", weir.http)).unwrap();
    assert_eq!(weir.fails(), Some(1));
    let error = weir.stderr();
    assert!(
        error.contains(&format!(
            "127.0.0.1:{} (clients) cannot be bound",
            weir.http
        )),
        "{error}"
    );
    assert!(
        !weir.data().join("nats-server").exists(),
        "nats-server was started for nothing"
    );
    drop(taken);

    // Another Weir's nats-server.
    let mut other = Weir::new();
    other.up();
    let mut weir = Weir::new();
    weir.nats = other.nats;
    assert_eq!(weir.fails(), Some(1));
    let error = weir.stderr();
    assert!(error.contains("another nats-server, \"weir-"), "{error}");
    assert!(error.contains("weir serve"), "{error}");
    other.say("unharmed");
}

#[test]
fn no_program_or_an_old_one_is_an_error_that_says_how_to_get_one() {
    let mut weir = Weir::new();
    let old = weir.folder().join("old-nats-server");
    std::fs::write(&old, "#!/bin/sh\necho nats-server: v2.10.1\n").unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (path, part) in [
        (old.as_path(), "is 2.10.1"),
        ("/nowhere/nats-server".as_ref(), "/nowhere"),
    ] {
        weir.program = Some(path.to_owned());
        assert_eq!(weir.fails(), Some(1));
        let error = weir.stderr();
        assert!(
            error.contains(part) && error.contains("scripts/get-nats-server.sh"),
            "{error}"
        );
    }
}

#[test]
fn wrong_configurations_exit_64_before_a_port_is_bound() {
    let table = [
        (
            "[http_server]\nprot = 1\n",
            "c.toml:2: http_server.prot: unknown key; did you mean `http_server.port`?",
        ),
        ("[nats]\nurl = \"nats://127.0.0.1:4222\"\n", "weir serve"),
        (
            "[nats_server]\naddress = \"0.0.0.0\"\n",
            "demo_users = false",
        ),
        ("[log]\nlevel = \"weir=loud\"\n", "is no log filter"),
    ];
    for (text, part) in table {
        let mut weir = Weir::new();
        let path = weir.folder().join("c.toml");
        std::fs::write(&path, text).unwrap();
        weir.config = Some(path);
        assert_eq!(weir.fails(), Some(64), "{text}");
        assert!(weir.stderr().contains(part), "{text}: {}", weir.stderr());
        assert!(!weir.data().exists());
    }
    let mut weir = Weir::new();
    weir.config = Some(weir.folder().join("absent.toml"));
    assert_eq!(weir.fails(), Some(64));
    assert!(
        weir.stderr().contains("absent.toml: cannot be read"),
        "{}",
        weir.stderr()
    );
}

#[test]
fn serve_waits_for_nats_and_says_so() {
    let mut weir = Weir::new();
    weir.start("serve", &[]);
    until("a line about NATS", || {
        weir.stderr().contains("cannot start yet")
    });
    until("the internal listener", || {
        weir.get("/health").starts_with("HTTP/1.1 200")
    });
    let answer = weir.get("/ready");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("not started"),
        "{answer}"
    );
    assert_eq!(weir.interrupt(), Some(0));
}

#[test]
fn serve_runs_beside_another_on_the_same_nats() {
    let mut first = Weir::new();
    first.up();
    let text = std::fs::read_to_string(first.data().join("nats-server/passwords.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    let set =
        |key: &str, name: &str| format!("nats.{key}.password={}", kept[name].as_str().unwrap());
    let sets = [
        format!("nats.url=nats://127.0.0.1:{}", first.nats),
        set("live", "weir"),
        set("reads", "weir_read"),
        set("door", "weir_door"),
    ];
    let mut second = Weir::new();
    second.start("serve", &sets);
    second.wait_running();
    until("ready", || second.get("/ready").starts_with("HTTP/1.1 200"));
    assert_eq!(second.interrupt(), Some(0));
    first.say("still here");
}

#[test]
fn check_judges_a_running_nats() {
    let mut weir = Weir::new();
    let (code, out) = weir.check(&[]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("NATS does not answer"), "{out}");
    weir.up();
    let (code, out) = weir.check(&[]);
    assert_eq!(code, Some(0), "{out}");
    for part in [
        "sync_interval: always",
        "rights: nobody",
        "demo users ops, bot, dev1",
    ] {
        assert!(out.contains(part), "{part} is not in:\n{out}");
    }
    // With the operator's rights Weir could not work, and the check says so.
    let (code, out) = weir.check(&[
        format!("nats.url=nats://127.0.0.1:{}", weir.nats),
        "nats.live.user=ops".into(),
        "nats.live.password=ops".into(),
        "nats.door.user=bot".into(),
        "nats.door.password=wrong".into(),
    ]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("JetStream does not answer"), "{out}");
    assert!(out.contains("NATS refuses the user \"bot\""), "{out}");
    assert!(out.contains("may not publish on log.>"), "{out}");
}

#[test]
fn tokens_are_minted_with_the_configured_key() {
    let weir = Weir::new();
    let key = "client.token.hmac_secret_key=0123456789abcdef0123456789abcdef".to_owned();
    let (code, out) = weir.token(&[], &["--user", "ann"]);
    assert_eq!(code, Some(64), "{out}");
    assert!(out.contains("WEIR_CLIENT_TOKEN_HMAC_SECRET_KEY"), "{out}");
    let (code, out) = weir.token(&[key], &["--user", "ann", "--ttl", "5m"]);
    assert_eq!(code, Some(0), "{out}");
    let claims = out.trim().split('.').nth(1).unwrap();
    let claims = data_encoding::BASE64URL_NOPAD
        .decode(claims.as_bytes())
        .unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["sub"], "ann");
}

#[test]
fn a_token_is_signed_by_a_key_in_a_file_and_by_no_other() {
    let weir = Weir::new();
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/authz/tests/keys");
    let sets = [
        format!("client.token.ecdsa_public_key_file={keys}/p256.pub.pem"),
        "client.token.issuer=https://app.example".to_owned(),
    ];
    let token = |key: &str, more: &[&str]| {
        let key = format!("{keys}/{key}");
        let args = [&["--user", "ann", "--key", &key, "--algorithm"][..], more].concat();
        weir.token(&sets, &args)
    };
    let (code, out) = token("p256.pem", &["ES256"]);
    assert_eq!((code, out.split('.').count()), (Some(0), 3), "{out}");
    let (code, out) = token("p256.pem", &["ES512"]);
    assert_eq!(code, Some(64), "{out}");
    assert!(
        out.contains("\"ES512\" is no algorithm that is offered"),
        "{out}"
    );
    let (code, out) = token("p384.pem", &["ES384"]);
    assert_eq!(code, Some(64), "{out}");
    assert!(out.contains("would refuse the token"), "{out}");
    let (code, out) = token("nothing.pem", &["ES256"]);
    assert_eq!(code, Some(64), "{out}");
    assert!(out.contains("--key: it cannot be read"), "{out}");
    let wrong = [format!(
        "client.token.ecdsa_public_key_file={keys}/p521.pub.pem"
    )];
    let (code, out) = weir.check(&wrong);
    assert_eq!(code, Some(64), "{out}");
    assert!(
        out.contains("--set: client.token.ecdsa_public_key_file: P-521 (ES512) is not offered"),
        "{out}"
    );
}

#[test]
fn check_looks_at_every_key_and_asks_every_address() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let set = r#"{"keys":[
        {"kty":"OKP","crv":"Ed25519","kid":"k1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty":"EC","crv":"P-521","kid":"k2","x":"AA","y":"AA"}]}"#;
    let server = runtime.block_on(KeyServer::start(Answer::Body(set.to_owned())));
    let weir = Weir::new();
    let address = [format!(
        "client.token.jwks_public_endpoint={}",
        server.url()
    )];
    let (_, out) = weir.check(&address);
    assert!(out.contains("has k1 (EdDSA)"), "{out}");
    assert!(
        out.contains("a key without a kid, which no token can name, and it is not used"),
        "{out}"
    );
    assert!(out.contains("P-521 (ES512) is not offered"), "{out}");
    server.now(Answer::Status(
        302,
        "Location: http://127.0.0.1:1/\r\n".to_owned(),
    ));
    let (code, out) = weir.check(&address);
    assert_eq!(code, Some(1), "{out}");
    let told = format!(
        "WRONG    tokens: client.token.jwks_public_endpoint: {}: it answers 302",
        server.url()
    );
    assert!(out.contains(&told), "{out}");
    assert!(out.contains("redirects are not followed"), "{out}");
    let secret = ["client.token.hmac_secret_key=0123456789abcdef0123456789abcdef".to_owned()];
    let (_, out) = weir.check(&secret);
    assert!(
        out.contains("client.token takes HS256, HS384, HS512"),
        "{out}"
    );
    assert!(!out.contains("0123456789abcdef"), "{out}");
}

#[test]
fn a_second_signal_does_not_wait() {
    let mut weir = Weir::new();
    weir.up();
    // A client that never ends its request holds the drain open for `shutdown.timeout`.
    let mut client = std::net::TcpStream::connect(("127.0.0.1", weir.http)).unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    let server = weir.server_pid().unwrap();
    let begun = Instant::now();
    weir.signal_int();
    weir.signal_int();
    weir.wait_end();
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(!is_alive(server));
}
