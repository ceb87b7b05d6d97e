//! Knows: configurations of issuers, and the errors that broken ones must give. Never: a token.

use super::*;

const RSA: &str = include_str!("../../../authz/tests/keys/rsa.pub.pem");
const RSA_PRIVATE: &str = include_str!("../../../authz/tests/keys/rsa.pem");
const RSA_1024: &str = include_str!("../../../authz/tests/keys/rsa_1024.pub.pem");
const P256: &str = include_str!("../../../authz/tests/keys/p256.pub.pem");
const P521: &str = include_str!("../../../authz/tests/keys/p521.pub.pem");
const ED: &str = include_str!("../../../authz/tests/keys/ed.pub.pem");
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn problems(text: &str) -> Vec<String> {
    match load(text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

fn set(key: &str, value: &str) -> String {
    format!("[client.token]\n{key} = \"\"\"\n{value}\"\"\"\n")
}

#[test]
fn several_issuers_each_with_keys_of_its_own() {
    let text = format!(
        "[client.token]\nissuer = \"https://a\"\nhmac_secret_key = \"{SECRET}\"\nrsa_public_key = \"\"\"{RSA}\"\"\"\n\
         [[client.token.issuers]]\nname = \"b\"\nissuer = \"https://b\"\njwks_public_endpoint = \"https://b/keys\"\n\
         audience = \"weir\"\n\
         [client.subscription_token]\nenabled = true\necdsa_public_key = \"\"\"{P256}\"\"\"\n"
    );
    let env = [
        ("WEIR_CLIENT_TOKEN_ISSUERS", "b c"),
        ("WEIR_CLIENT_TOKEN_ISSUERS_C_ISSUER", "https://c"),
        // As variables often hold it.
        (
            "WEIR_CLIENT_TOKEN_ISSUERS_C_ED25519_PUBLIC_KEY",
            &ED.replace('\n', "\\n"),
        ),
    ];
    let loaded = Config::load(from(&text, &env, &[])).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let client = &loaded.config.client;
    let tables: Vec<String> = client
        .token
        .all("t")
        .into_iter()
        .map(|(table, _)| table)
        .collect();
    assert_eq!(tables, ["t", "t.issuers.b", "t.issuers.c"]);
    assert_eq!(client.token.issuers[0].1.audience, "weir");
    assert_eq!(
        client.token.issuers[1].1.ed25519_public_key,
        ED.trim_end().to_owned() + "\n"
    );
    assert!(client.subscription_token.enabled);
    let (verifier, fetchers) = crate::tokens::verifier(&loaded.config).unwrap();
    assert_eq!(
        (format!("{verifier:?}"), fetchers.len()),
        ("Verifier".to_owned(), 1)
    );
}

#[test]
fn a_key_may_be_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let secret = file("secret", &format!("{SECRET}\n"));
    let rsa = file("rsa", RSA);
    let empty = file("empty", "\n");
    let text = format!(
        "[client.token]\nhmac_secret_key_file = \"{secret}\"\nrsa_public_key_file = \"{rsa}\"\n"
    );
    let own = load(&text).unwrap().config.client.token.own;
    assert_eq!(own.hmac_secret_key.expose(), SECRET);
    assert_eq!(own.rsa_public_key.trim_end(), RSA.trim_end());
    let both =
        format!("[client.token]\nhmac_secret_key = \"x\"\nhmac_secret_key_file = \"{secret}\"\n");
    assert_eq!(
        problems(&both),
        [
            "weir.toml:3: client.token.hmac_secret_key_file: hmac_secret_key is set, too; remove one of the two"
        ]
    );
    let text = format!("[client.token]\nhmac_secret_key_file = \"{empty}\"\n");
    assert!(
        problems(&text)[0].contains("is empty; write the key into it"),
        "{:?}",
        problems(&text)
    );
    let none = problems("[client.token]\nrsa_public_key_file = \"/nowhere/key.pem\"\n");
    assert!(none[0].starts_with(
        "weir.toml:2: client.token.rsa_public_key_file: /nowhere/key.pem cannot be read: "
    ));
}

#[test]
fn what_is_no_key_is_said_with_its_place_and_a_remedy() {
    let openssl = "write the public key, as `openssl pkey -in private.pem -pubout` prints it";
    let table = [
        (set("hmac_secret_key", RSA), "hmac_secret_key: it is a PEM, and everyone could sign", "write a secret of 32 bytes or more"),
        (set("rsa_public_key", "no key"), "rsa_public_key: it is not a public key in PEM", openssl),
        (set("rsa_public_key", P256), "rsa_public_key: it is not a public key in PEM (-----BEGIN PUBLIC KEY-----) of the kind RSA", openssl),
        (set("rsa_public_key", RSA_PRIVATE), "rsa_public_key: it is a private key", openssl),
        (set("rsa_public_key", RSA_1024), "this one has 1024", openssl),
        (set("ecdsa_public_key", P521), "ecdsa_public_key: P-521 (ES512) is not offered", openssl),
        (set("ecdsa_public_key", ED), "of the kind ECDSA", openssl),
        (set("ed25519_public_key", RSA), "of the kind Ed25519", openssl),
        ("[client.token]\njwks_public_endpoint = \"accounts.example\"".into(), "it is no URL", "write https://host/path"),
        ("[client.token]\njwks_public_endpoint = \"https://{{tenant}}/keys\"".into(), "a claim must never complete the address", "write https"),
        ("[client.token]\njwks_public_endpoint = \"https://a:b@c/keys\"".into(), "it holds a user or a password", "write https"),
        ("[client.token]\njwks_public_endpoint = \"https://a/\"\njwks_ca_file = \"/nowhere\"".into(), "authorities cannot be read", ""),
        ("[client.token]\njwks_ca_file = \"/nowhere\"".into(), "there is no jwks_public_endpoint", "remove it"),
        (format!("[client.token]\njwks_public_endpoint = \"https://a/\"\nhmac_secret_key = \"{SECRET}\""), "the other keys beside it are never used", "remove one"),
        ("[client.token]\ninsecure_skip_jwks_endpoint_tls_verify = true".into(), "hand out keys of their own", "jwks_ca_file"),
        ("[client.token]\nuser_id_claim = \"a\\nb\"".into(), "no name of a claim", ""),
        ("[client.token]\nhmac_previous_secret_key_valid_until = \"tomorrow\"".into(), "is not a value for it", "0 to"),
        ("[client.token]\nissuer_regex = \"x\"".into(), "unknown key", "Centrifugo has this option"),
        ("[client.token]\nrsa_publik_key = \"x\"".into(), "unknown key", "did you mean `client.token.rsa_public_key`"),
        ("[[client.token.issuers]]\nname = \"b\"\nhmac_secret_key = \"x\"".into(), "issuers.b.issuer: it is empty", "write the iss"),
        ("[[client.token.issuers]]\nname = \"b\"\nissuer = \"b\"".into(), "this issuer has no key", ""),
        ("[[client.token.issuers]]\nname = \"b\"\nissuer = \"b\"\nhmac_secret_kei = \"x\"".into(), "unknown key", "did you mean `client.token.issuers.hmac_secret_key`"),
        (
            "[[client.token.issuers]]\nname = \"b\"\nissuer = \"i\"\nhmac_secret_key = \"x\"\n[[client.token.issuers]]\nname = \"c\"\nissuer = \"i\"\nhmac_secret_key = \"y\"".into(),
            "weir.toml:7: client.token.issuers.c.issuer: \"i\" is there twice",
            "one table",
        ),
        (
            "[client.token]\nhmac_secret_key = \"x\"\n[[client.token.issuers]]\nname = \"b\"\nissuer = \"i\"\nhmac_secret_key = \"y\"".into(),
            "client.token.issuer: with [[…issuers]] beside it",
            "write their iss",
        ),
        ("[client.subscription_token]\nenabled = true".into(), "client.subscription_token.enabled: there is no key", "give one"),
    ];
    for (text, what, remedy) in table {
        let found = problems(&text);
        let is_said = |line: &String| line.contains(what) && line.contains(remedy);
        assert!(found.iter().any(is_said), "{text}\n{found:#?}");
        for line in &found {
            assert!(
                !line.contains(SECRET) && !line.contains("BEGIN RSA"),
                "{line}"
            );
        }
    }
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let warned = |text: &str, part: &str| {
        let warnings = load(text).unwrap().warnings;
        assert!(
            warnings.iter().any(|warning| warning.contains(part)),
            "{text}\n{warnings:?}"
        );
    };
    warned(
        "[client.token]\nhmac_secret_key = \"short\"",
        "client.token.hmac_secret_key: shorter than 32 bytes",
    );
    warned(
        &format!(
            "[client.token]\nhmac_secret_key = \"{SECRET}\"\nhmac_previous_secret_key = \"{SECRET}\""
        ),
        "it is taken for ever",
    );
    warned(
        &format!("[client.token]\nhmac_secret_key = \"{SECRET}\"\nallow_missing_exp = true"),
        "good for ever",
    );
    warned(
        "[client.token]\njwks_public_endpoint = \"http://accounts.example/\"",
        "over plain HTTP",
    );
    warned(
        &format!("[client.subscription_token]\nhmac_secret_key = \"{SECRET}\""),
        "enabled = false",
    );
    warned(
        "",
        "no browser can connect: set client.token.hmac_secret_key or another key",
    );
    let local = load("[client.token]\njwks_public_endpoint = \"http://127.0.0.1:1/\"").unwrap();
    assert!(local.warnings.is_empty(), "{:?}", local.warnings);
}

#[test]
fn weir_token_makes_what_the_configuration_takes() {
    use crate::tokens::{Wish, mint};
    let config = |text: &str| load(text).unwrap().config;
    let now_s = 1_800_000_000;
    let wish = || Wish {
        user: "ann",
        channel: None,
        algorithm: "HS256",
        key: None,
        kid: None,
        issuer: None,
        caps: None,
        now_s,
        expires_at_s: now_s + 60,
    };
    let plain = config(&format!(
        "[client.token]\nhmac_secret_key = \"{SECRET}\"\nissuer = \"me\"\nuser_id_claim = \"uid\""
    ));
    let token = mint(&plain, &wish()).unwrap();
    let (verifier, _) = crate::tokens::verifier(&plain).unwrap();
    assert_eq!(verifier.connection(&token, now_s).unwrap().user, "ann");
    let room = Wish {
        channel: Some("a"),
        ..wish()
    };
    assert!(mint(&plain, &room).is_ok());
    let rsa = config(&set("rsa_public_key", RSA));
    let by = |algorithm, key: &str| Wish {
        algorithm,
        key: Some(key.to_owned()),
        ..wish()
    };
    assert!(mint(&rsa, &by("RS256", RSA_PRIVATE)).is_ok());
    assert!(mint(&rsa, &by("PS512", RSA_PRIVATE)).is_ok());
    let set_only = config("[client.token]\njwks_public_endpoint = \"https://a/\"");
    let with_kid = Wish {
        kid: Some("k".to_owned()),
        ..by("RS256", RSA_PRIVATE)
    };
    assert!(mint(&set_only, &with_kid).is_ok());
    let nobody = config("");
    let named = Wish {
        issuer: Some("x"),
        ..wish()
    };
    let other_user = Wish {
        user: "a\nb",
        ..wish()
    };
    let refused = [
        (
            mint(&nobody, &wish()),
            "client.token.hmac_secret_key: it is empty",
        ),
        (
            mint(&plain, &named),
            "client.token.issuers.x: there is no such issuer",
        ),
        (mint(&plain, &other_user), "sub has control characters"),
        (
            mint(&plain, &by("HS256", "another secret")),
            "would refuse the token: invalid token: its signature",
        ),
        (
            mint(&rsa, &wish()),
            "client.token.hmac_secret_key: it is empty; give a key with --key",
        ),
        (
            mint(
                &rsa,
                &Wish {
                    algorithm: "RS256",
                    ..wish()
                },
            ),
            "RS256: give its private key with --key FILE",
        ),
        (
            mint(&rsa, &by("ES512", RSA_PRIVATE)),
            "\"ES512\" is no algorithm that is offered",
        ),
        (
            mint(&rsa, &by("ES256", RSA_PRIVATE)),
            "the key does not fit the algorithm",
        ),
        (
            mint(&rsa, &by("HS256", SECRET)),
            "no key of the issuer has its algorithm",
        ),
        (
            mint(&set_only, &by("RS256", RSA_PRIVATE)),
            "give it with --kid",
        ),
    ];
    for (found, part) in refused {
        let error = found.unwrap_err();
        assert!(error.contains(part), "{error} / {part}");
    }
}

#[test]
fn the_callout_says_what_it_lacks() {
    let (issuer, xkey) = weir_nats::callout::CalloutKeys::new_seeds();
    let on = format!(
        "[auth_callout]\nenabled = true\nissuer_seed = \"{issuer}\"\nxkey_seed = \"{xkey}\"\n"
    );
    assert_eq!(problems(&on), Vec::<String>::new());
    let limit = format!("{on}user_connection_limit = 3\n");
    let kick = "[nats.kick]\npassword = \"p\"\n";
    assert_eq!(problems(&format!("{limit}{kick}")), Vec::<String>::new());
    for (text, key, remedy) in [
        (
            limit,
            "auth_callout.user_connection_limit",
            "nats.kick.password",
        ),
        (
            format!("{on}static_users = [\"a:b\"]\n"),
            "auth_callout.static_users",
            "another name",
        ),
        (
            format!("{on}account = \"\"\n"),
            "auth_callout.account",
            "[nats.live]",
        ),
        (
            on.replace(&issuer, &xkey),
            "auth_callout.issuer_seed",
            "weir auth keys --new",
        ),
        (
            on.replace(&xkey, "x"),
            "auth_callout.xkey_seed",
            "weir auth keys --new",
        ),
    ] {
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains(key) && found[0].contains(remedy),
            "{found:?}"
        );
        let shows = found[0].contains(&issuer) || found[0].contains(&xkey);
        assert!(!shows, "a seed is shown");
    }
}
