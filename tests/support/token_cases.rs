//! Knows: issuers, their keys, and tokens good and bad, each with what must become of it. Never: who
//! verifies them: the verifier alone, or an edge at the end of a socket.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

pub(crate) const RSA: &str = include_str!("../../authz/tests/keys/rsa.pem");
pub(crate) const RSA_PUBLIC: &str = include_str!("../../authz/tests/keys/rsa.pub.pem");
pub(crate) const P256: &str = include_str!("../../authz/tests/keys/p256.pem");
pub(crate) const P256_PUBLIC: &str = include_str!("../../authz/tests/keys/p256.pub.pem");
pub(crate) const P384: &str = include_str!("../../authz/tests/keys/p384.pem");
pub(crate) const ED: &str = include_str!("../../authz/tests/keys/ed.pem");
pub(crate) const ED_PUBLIC: &str = include_str!("../../authz/tests/keys/ed.pub.pem");
const RSA_B: &str = include_str!("../../authz/tests/keys/rsa_b.pem");
const ED_C: &str = include_str!("../../authz/tests/keys/ed_c.pem");

pub(crate) const SECRET: &str = "the secret of issuer a, of the tests";
pub(crate) const PREVIOUS: &str = "the previous secret of issuer a, until it is over";
/// The secret of a key that issuer B publishes, so that everybody has it.
const PUBLISHED: &str = "a secret that everybody can read in a set";

/// The issuer whose keys are in the configuration: a secret, RSA, P-256 and Ed25519.
pub(crate) const A: &str = "https://a.example";
/// One with an address, and keys of every kind.
pub(crate) const B: &str = "https://b.example";
/// Another with an address, a key of the same name as one of B's, and an audience.
pub(crate) const C: &str = "https://c.example";
pub(crate) const C_AUDIENCE: &str = "weir";

/// What must become of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// It is this user's.
    User(&'static str),
    /// Error 109.
    Expired,
    /// Error 110.
    ConnectionExpired,
    /// Close 3500.
    Invalid,
}

/// A token and what must become of it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) token: String,
    pub(crate) expected: Expected,
}

/// A private key that signs.
pub(crate) fn signing(pem: &str, algorithm: Algorithm) -> EncodingKey {
    let pem = pem.as_bytes();
    match format!("{algorithm:?}").as_bytes() {
        [b'H', ..] => EncodingKey::from_secret(pem),
        [b'R' | b'P', ..] => EncodingKey::from_rsa_pem(pem).unwrap(),
        [b'E', b'S', ..] => EncodingKey::from_ec_pem(pem).unwrap(),
        _ => EncodingKey::from_ed_pem(pem).unwrap(),
    }
}

/// Any header over any payload, with a signature that `algorithm` and the key make.
pub(crate) fn sign_texts(header: &str, payload: &str, algorithm: Algorithm, pem: &str) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", encode(header), encode(payload));
    let key = signing(pem, algorithm);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// A token as an issuer makes it.
pub(crate) fn sign(algorithm: Algorithm, kid: Option<&str>, claims: &Value, pem: &str) -> String {
    let mut header = json!({"typ": "JWT", "alg": format!("{algorithm:?}")});
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    sign_texts(&header.to_string(), &claims.to_string(), algorithm, pem)
}

/// The public half of a key as a member of a set.
pub(crate) fn jwk(pem: &str, algorithm: Algorithm, kid: &str) -> Value {
    let jwk = Jwk::from_encoding_key(&signing(pem, algorithm), algorithm).unwrap();
    let mut jwk = serde_json::to_value(jwk).unwrap();
    jwk.as_object_mut().unwrap().remove("alg");
    jwk["kid"] = kid.into();
    jwk
}

/// What B publishes.
pub(crate) fn set_of_b() -> String {
    let mut bound = jwk(RSA_B, Algorithm::RS256, "bound");
    bound["alg"] = "RS256".into();
    bound["use"] = "sig".into();
    let mut enc = jwk(RSA_B, Algorithm::RS256, "enc");
    enc["use"] = "enc".into();
    let coordinate = URL_SAFE_NO_PAD.encode([7; 66]);
    json!({"keys": [
        jwk(RSA_B, Algorithm::RS256, "1"),
        jwk(P384, Algorithm::ES384, "2"),
        jwk(P256, Algorithm::ES256, "3"),
        bound,
        enc,
        {"kty": "EC", "crv": "P-521", "kid": "p521", "x": coordinate, "y": coordinate},
        {"kty": "oct", "kid": "oct", "k": URL_SAFE_NO_PAD.encode(PUBLISHED)},
        {"kty": "new", "kid": "new"},
    ]})
    .to_string()
}

/// What C publishes: its key has the name of one of B's.
pub(crate) fn set_of_c() -> String {
    json!({"keys": [jwk(ED_C, Algorithm::EdDSA, "1")]}).to_string()
}

/// The tokens. `canary` is an address that nobody may be asked at.
pub(crate) fn cases(now_s: i64, canary: &str) -> Vec<Case> {
    let mut cases = accepted(now_s);
    cases.extend(other_algorithms(now_s));
    cases.extend(other_keys(now_s, canary));
    cases.extend(claims(now_s, canary));
    cases.extend(forms(now_s));
    let names: std::collections::HashSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
    cases
}

fn case(name: &'static str, token: String, expected: Expected) -> Case {
    Case {
        name,
        token,
        expected,
    }
}

/// Claims that nothing is wrong with.
pub(crate) fn good(issuer: &str, now_s: i64) -> Value {
    json!({"iss": issuer, "sub": "ann", "exp": now_s + 600, "aud": [C_AUDIENCE, "another"]})
}

fn accepted(now_s: i64) -> Vec<Case> {
    use Algorithm::{
        ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
    };
    let ann = Expected::User("ann");
    let (a, b, c) = (good(A, now_s), good(B, now_s), good(C, now_s));
    vec![
        case("HS256", sign(HS256, None, &a, SECRET), ann),
        case("HS384", sign(HS384, None, &a, SECRET), ann),
        case("HS512", sign(HS512, None, &a, SECRET), ann),
        case("RS256", sign(RS256, None, &a, RSA), ann),
        case("RS384", sign(RS384, None, &a, RSA), ann),
        case("RS512", sign(RS512, None, &a, RSA), ann),
        case("PS256", sign(PS256, None, &a, RSA), ann),
        case("PS384", sign(PS384, None, &a, RSA), ann),
        case("PS512", sign(PS512, None, &a, RSA), ann),
        case("ES256", sign(ES256, None, &a, P256), ann),
        case("EdDSA", sign(EdDSA, None, &a, ED), ann),
        case("the previous secret", sign(HS256, None, &a, PREVIOUS), ann),
        case("RS256 of a set", sign(RS256, Some("1"), &b, RSA_B), ann),
        case("PS512 of a set", sign(PS512, Some("1"), &b, RSA_B), ann),
        case("ES384 of a set", sign(ES384, Some("2"), &b, P384), ann),
        case("ES256 of a set", sign(ES256, Some("3"), &b, P256), ann),
        case(
            "a key bound to its algorithm",
            sign(RS256, Some("bound"), &b, RSA_B),
            ann,
        ),
        case(
            "EdDSA of another set",
            sign(EdDSA, Some("1"), &c, ED_C),
            ann,
        ),
    ]
}

fn other_algorithms(now_s: i64) -> Vec<Case> {
    use Algorithm::{ES384, EdDSA, HS256, HS384, PS256, RS256, RS512};
    let (a, b) = (good(A, now_s), good(B, now_s));
    let text = a.to_string();
    let invalid = |name, token| case(name, token, Expected::Invalid);
    let header = |header: &str| sign_texts(header, &text, HS256, SECRET);
    let unsigned = |alg: &str| {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!(
            "{}.{}.",
            encode(&format!("{{\"alg\":\"{alg}\"}}")),
            encode(&text)
        )
    };
    let der: String = RSA_PUBLIC
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let published_n = jwk(RSA_B, RS256, "1")["n"].as_str().unwrap().to_owned();
    vec![
        invalid(
            "HS256 by the RSA key's PEM",
            sign(HS256, None, &a, RSA_PUBLIC),
        ),
        invalid(
            "HS256 by the RSA key's PEM, trimmed",
            sign(HS256, None, &a, RSA_PUBLIC.trim_end()),
        ),
        invalid("HS256 by the RSA key's base64", sign(HS256, None, &a, &der)),
        invalid(
            "HS384 by the ECDSA key's PEM",
            sign(HS384, None, &a, P256_PUBLIC),
        ),
        invalid(
            "HS256 by the Ed25519 key's PEM",
            sign(HS256, None, &a, ED_PUBLIC),
        ),
        invalid(
            "HS256 by a set's RSA modulus",
            sign(HS256, Some("1"), &b, &published_n),
        ),
        invalid(
            "HS256 by a secret that a set publishes",
            sign(HS256, Some("oct"), &b, PUBLISHED),
        ),
        invalid("none", unsigned("none")),
        invalid("None", unsigned("None")),
        invalid("nOnE", unsigned("nOnE")),
        invalid("none, signed", header(r#"{"alg":"none"}"#)),
        invalid("HS256 without a signature", unsigned("HS256")),
        invalid("no alg", header(r#"{"typ":"JWT"}"#)),
        invalid("a list as alg", header(r#"{"alg":["HS256"]}"#)),
        invalid("null as alg", header(r#"{"alg":null}"#)),
        invalid("hs256", header(r#"{"alg":"hs256"}"#)),
        invalid("two algs", header(r#"{"alg":"HS256","alg":"HS256"}"#)),
        invalid("ES512", header(r#"{"alg":"ES512"}"#)),
        invalid("ES256K", header(r#"{"alg":"ES256K"}"#)),
        invalid("HS512 said, HS256 signed", header(r#"{"alg":"HS512"}"#)),
        invalid("RS256 said, HS256 signed", header(r#"{"alg":"RS256"}"#)),
        invalid("EdDSA said, HS256 signed", header(r#"{"alg":"EdDSA"}"#)),
        invalid(
            "PS256 said, RS256 signed",
            sign_texts(r#"{"alg":"PS256"}"#, &text, RS256, RSA),
        ),
        invalid(
            "RS256 said, PS256 signed",
            sign_texts(r#"{"alg":"RS256"}"#, &text, PS256, RSA),
        ),
        invalid(
            "EdDSA said, RS256 signed",
            sign_texts(r#"{"alg":"EdDSA"}"#, &text, RS256, RSA),
        ),
        invalid("ES384 where the key is P-256", sign(ES384, None, &a, P384)),
        invalid(
            "a bound key's other algorithm",
            sign(RS512, Some("bound"), &b, RSA_B),
        ),
        invalid("a key of another kind", sign(EdDSA, Some("1"), &b, ED)),
        invalid(
            "a critical extension",
            header(r#"{"alg":"HS256","crit":["exp"]}"#),
        ),
    ]
}

fn other_keys(now_s: i64, canary: &str) -> Vec<Case> {
    use Algorithm::{EdDSA, HS256, RS256};
    let (a, b, c) = (good(A, now_s), good(B, now_s), good(C, now_s));
    let invalid = |name, token| case(name, token, Expected::Invalid);
    let with = |extra: Value, algorithm, claims: &Value, pem| {
        let mut header = json!({"alg": format!("{algorithm:?}")});
        for (name, value) in extra.as_object().unwrap() {
            header[name] = value.clone();
        }
        sign_texts(&header.to_string(), &claims.to_string(), algorithm, pem)
    };
    let brought = jwk(ED_C, EdDSA, "1");
    let of_set = |extra: Value| with(extra, EdDSA, &a, ED_C);
    let long = "k".repeat(300);
    vec![
        invalid(
            "another secret",
            sign(HS256, None, &a, "another secret of the same length..."),
        ),
        invalid("an empty secret", sign(HS256, None, &a, "")),
        invalid("another RSA key", sign(RS256, None, &a, RSA_B)),
        invalid("C's key, B's name for it", sign(EdDSA, Some("1"), &b, ED_C)),
        invalid(
            "B's key, C's name for it",
            sign(RS256, Some("1"), &c, RSA_B),
        ),
        invalid("A's key, and B said", sign(RS256, Some("1"), &b, RSA)),
        invalid("B's key, and A said", sign(RS256, Some("1"), &a, RSA_B)),
        invalid("A's secret, and B said", sign(HS256, Some("1"), &b, SECRET)),
        invalid("no kid", sign(RS256, None, &b, RSA_B)),
        invalid("an empty kid", sign(RS256, Some(""), &b, RSA_B)),
        invalid("a kid of nobody", sign(RS256, Some("nobody"), &b, RSA_B)),
        invalid(
            "a kid that is a path",
            sign(RS256, Some("../../dev/null"), &b, RSA_B),
        ),
        invalid(
            "a kid that is SQL",
            sign(RS256, Some("1' OR '1'='1"), &b, RSA_B),
        ),
        invalid(
            "a kid that is an address",
            sign(RS256, Some(canary), &b, RSA_B),
        ),
        invalid(
            "a kid that is too long",
            sign(RS256, Some(&long), &b, RSA_B),
        ),
        invalid(
            "a kid that is a number",
            with(json!({"kid": 1}), RS256, &b, RSA_B),
        ),
        invalid("a key for encryption", sign(RS256, Some("enc"), &b, RSA_B)),
        invalid(
            "a key that was left out",
            sign(RS256, Some("p521"), &b, RSA_B),
        ),
        invalid(
            "a key of an unknown kind",
            sign(RS256, Some("new"), &b, RSA_B),
        ),
        invalid(
            "a key that the token brings",
            of_set(json!({"jwk": brought})),
        ),
        invalid(
            "the same to an issuer with a set",
            with(json!({"jwk": brought}), EdDSA, &b, ED_C),
        ),
        invalid(
            "an address that the token brings",
            of_set(json!({"jku": canary})),
        ),
        invalid(
            "the same with a kid",
            with(json!({"jku": canary, "kid": "9"}), EdDSA, &b, ED_C),
        ),
        invalid(
            "a certificate's address",
            of_set(json!({"x5u": canary, "x5t": "AA"})),
        ),
        invalid(
            "a certificate",
            of_set(json!({"x5c": [STANDARD.encode("certificate")]})),
        ),
        case(
            "what a token brings does not matter",
            with(
                json!({"jku": canary, "x5u": canary, "kid": "/etc/passwd"}),
                HS256,
                &a,
                SECRET,
            ),
            Expected::User("ann"),
        ),
    ]
}

fn claims(now_s: i64, canary: &str) -> Vec<Case> {
    let changed = |issuer: &str, name: &str, value: Value| {
        let mut claims = good(issuer, now_s);
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims
                .as_object_mut()
                .unwrap()
                .insert(name.to_owned(), value),
        };
        claims
    };
    let a =
        |name: &str, value: Value| sign(Algorithm::HS256, None, &changed(A, name, value), SECRET);
    let c = |value: Value| sign(Algorithm::EdDSA, Some("1"), &changed(C, "aud", value), ED_C);
    let twice = |claim: &str| {
        let text = good(A, now_s)
            .to_string()
            .replacen('{', &format!("{{{claim},"), 1);
        sign_texts(r#"{"alg":"HS256"}"#, &text, Algorithm::HS256, SECRET)
    };
    let null_exp = {
        let text = good(A, now_s)
            .to_string()
            .replace(&(now_s + 600).to_string(), "null");
        sign_texts(r#"{"alg":"HS256"}"#, &text, Algorithm::HS256, SECRET)
    };
    let (ann, anonymous) = (Expected::User("ann"), Expected::User(""));
    let (expired, invalid) = (Expected::Expired, Expected::Invalid);
    vec![
        case(
            "an issuer that is an address",
            a("iss", canary.into()),
            invalid,
        ),
        case("no iss", a("iss", Value::Null), invalid),
        case("an empty iss", a("iss", "".into()), invalid),
        case("a list as iss", a("iss", json!([A])), invalid),
        case("nearly the iss", a("iss", format!("{A}/").into()), invalid),
        case("no exp", a("exp", Value::Null), invalid),
        case("null as exp", null_exp, invalid),
        case(
            "a text as exp",
            a("exp", (now_s + 600).to_string().into()),
            invalid,
        ),
        case("exp is over", a("exp", json!(now_s - 60)), expired),
        case(
            "exp is a fraction and over",
            a("exp", json!(now_s as f64 - 60.5)),
            expired,
        ),
        case("exp is 0", a("exp", json!(0)), expired),
        case("exp is below 0", a("exp", json!(-1)), expired),
        case("exp is very far", a("exp", json!(1e300)), ann),
        case(
            "a text as nbf",
            a("nbf", (now_s - 600).to_string().into()),
            invalid,
        ),
        case("nbf is to come", a("nbf", json!(now_s + 60)), expired),
        case("nbf is past", a("nbf", json!(now_s - 60)), ann),
        case("a text as iat", a("iat", "yesterday".into()), invalid),
        case("no aud", c(Value::Null), invalid),
        case("another aud", c("another".into()), invalid),
        case("an empty list as aud", c(json!([])), invalid),
        case("the aud in a list", c(json!(["x", C_AUDIENCE])), ann),
        case("the aud alone", c(C_AUDIENCE.into()), ann),
        case("a number as aud", c(json!(7)), invalid),
        case("no sub", a("sub", Value::Null), anonymous),
        case("an empty sub", a("sub", "".into()), anonymous),
        case("a number as sub", a("sub", json!(42)), invalid),
        case(
            "a sub with a line break",
            a("sub", "ann\nbob".into()),
            invalid,
        ),
        case("a sub with a NUL", a("sub", "ann\0".into()), invalid),
        case(
            "a sub that is too long",
            a("sub", "x".repeat(129).into()),
            invalid,
        ),
        case(
            "a sub that is not in NFC",
            a("sub", "e\u{301}".into()),
            invalid,
        ),
        case(
            "a sub that is a wildcard",
            a("sub", "a.>".into()),
            Expected::User("a.>"),
        ),
        case("two subs", twice(r#""sub":"bob""#), invalid),
        case("two exps", twice(r#""exp":1"#), invalid),
        case(
            "a subscription token",
            a("channel", "open:a".into()),
            invalid,
        ),
        case(
            "expire_at is over",
            a("expire_at", json!(now_s - 60)),
            Expected::ConnectionExpired,
        ),
        case("expire_at is never", a("expire_at", json!(0)), ann),
        case("a text as expire_at", a("expire_at", "0".into()), invalid),
        case("b64info is no base64", a("b64info", "%%".into()), invalid),
        case("b64info is no JSON", a("b64info", "bm8=".into()), invalid),
    ]
}

fn forms(now_s: i64) -> Vec<Case> {
    let invalid = |name, token| case(name, token, Expected::Invalid);
    let claims = good(A, now_s);
    let token = sign(Algorithm::HS256, None, &claims, SECRET);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let other = URL_SAFE_NO_PAD.encode(claims.to_string().replace("ann", "bob"));
    let payload_of = |text: &str| sign_texts(r#"{"alg":"HS256"}"#, text, Algorithm::HS256, SECRET);
    let mut long = claims.clone();
    long["meta"] = "x".repeat(12 << 10).into();
    vec![
        invalid("one part", header.to_owned()),
        invalid("two parts", message.to_owned()),
        invalid("an empty signature", format!("{message}.")),
        invalid("a longer signature", format!("{message}.{signature}A")),
        invalid("another payload", format!("{header}.{other}.{signature}")),
        invalid("four parts", format!("{token}.{signature}")),
        invalid("five parts", format!("{token}..")),
        invalid("padding", format!("{message}.{signature}=")),
        invalid("a space behind", format!("{token} ")),
        invalid("a line break behind", format!("{token}\\n")),
        invalid("Bearer", format!("Bearer {token}")),
        invalid("signature first", format!("{signature}.{header}.{payload}")),
        invalid("a payload that is a list", payload_of("[]")),
        invalid("a payload that is null", payload_of("null")),
        invalid("a payload that is empty", payload_of("")),
        invalid(
            "a header that is a text",
            sign_texts("\"HS256\"", &claims.to_string(), Algorithm::HS256, SECRET),
        ),
        invalid("too long", sign(Algorithm::HS256, None, &long, SECRET)),
        invalid("not ASCII", "é.é.é".to_owned()),
    ]
}
