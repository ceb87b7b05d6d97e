//! Keys of the configuration and of sets: what is one, what is none, and why.

use jsonwebtoken::Algorithm;
use serde_json::json;
use weir_authz::token::{Key, KeyError, KeySet, Kind, Mint, MintError, Signer, Skipped};
use weir_authz::{TokenError, Verifier};

use crate::NOW;
use crate::token_cases::{
    ED, ED_PUBLIC, P256, P256_PUBLIC, P384, RSA, RSA_PUBLIC, SECRET, jwk, set_of_b,
};

const PKCS1: &str = include_str!("../keys/rsa.pkcs1.pem");
const P384_PUBLIC: &str = include_str!("../keys/p384.pub.pem");
const P521_PUBLIC: &str = include_str!("../keys/p521.pub.pem");
const K1_PUBLIC: &str = include_str!("../keys/secp256k1.pub.pem");
const WEAK: &str = include_str!("../keys/rsa_1024.pub.pem");

#[test]
fn a_key_is_of_one_kind_and_has_its_algorithms_only() {
    let kind = |key: Result<Key, KeyError>| key.map(|key| (key.kind(), key.algorithms().join(" ")));
    let of = |kind, algorithms: &str| Ok((kind, algorithms.to_owned()));
    let rsa = "RS256 RS384 RS512 PS256 PS384 PS512";
    assert_eq!(
        kind(Key::secret(SECRET)),
        of(Kind::Hmac, "HS256 HS384 HS512")
    );
    assert_eq!(kind(Key::rsa_pem(RSA_PUBLIC)), of(Kind::Rsa, rsa));
    assert_eq!(kind(Key::rsa_pem(PKCS1)), of(Kind::Rsa, rsa));
    assert_eq!(kind(Key::ecdsa_pem(P256_PUBLIC)), of(Kind::P256, "ES256"));
    assert_eq!(kind(Key::ecdsa_pem(P384_PUBLIC)), of(Kind::P384, "ES384"));
    assert_eq!(
        kind(Key::ed25519_pem(ED_PUBLIC)),
        of(Kind::Ed25519, "EdDSA")
    );
    let refused = [
        (Key::secret(""), KeyError::Parts),
        (Key::secret(RSA_PUBLIC), KeyError::PemAsSecret),
        (
            Key::secret(&format!("\n {P256_PUBLIC}")),
            KeyError::PemAsSecret,
        ),
        (Key::rsa_pem(WEAK), KeyError::RsaBits(1_024)),
        (Key::rsa_pem(RSA), KeyError::Private),
        (Key::rsa_pem(P256_PUBLIC), KeyError::Pem("RSA")),
        (Key::rsa_pem(ED_PUBLIC), KeyError::Pem("RSA")),
        (Key::rsa_pem(""), KeyError::Pem("RSA")),
        (Key::rsa_pem("a secret"), KeyError::Pem("RSA")),
        (Key::rsa_pem(&RSA_PUBLIC[..200]), KeyError::Pem("RSA")),
        (Key::ecdsa_pem(P521_PUBLIC), KeyError::Es512),
        (Key::ecdsa_pem(K1_PUBLIC), KeyError::Curve),
        (Key::ecdsa_pem(RSA_PUBLIC), KeyError::Pem("ECDSA")),
        (Key::ecdsa_pem(P256), KeyError::Private),
        (Key::ed25519_pem(P256_PUBLIC), KeyError::Pem("Ed25519")),
        (Key::ed25519_pem(ED), KeyError::Private),
    ];
    for (found, expected) in refused {
        assert_eq!(found.unwrap_err(), expected);
    }
    assert!(KeyError::Es512.to_string().contains("ES512"));
    assert!(!format!("{:?}", Key::secret(SECRET).unwrap()).contains(SECRET));
}

#[test]
fn a_set_gives_what_can_be_used_and_says_what_cannot() {
    let set = KeySet::read(set_of_b().as_bytes()).unwrap();
    let names = set.described();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.contains(&"bound (RS256)".to_owned()), "{names:?}");
    assert!(names.contains(&"2 (ES384)".to_owned()), "{names:?}");
    let skipped = [
        Skipped::Use,
        Skipped::Key(KeyError::Es512),
        Skipped::Secret,
        Skipped::Key(KeyError::Kind),
    ];
    assert_eq!(set.skipped(), skipped);

    let ed = jwk(ED, Algorithm::EdDSA, "k");
    let changed = |name: &str, value: serde_json::Value| {
        let mut key = ed.clone();
        key[name] = value;
        key
    };
    let table = [
        (changed("kid", "".into()), Skipped::NoKid),
        (changed("kid", json!(null)), Skipped::NoKid),
        (
            changed("crv", "Ed448".into()),
            Skipped::Key(KeyError::Curve),
        ),
        (changed("x", "".into()), Skipped::Key(KeyError::Parts)),
        (changed("x", "AAAA".into()), Skipped::Key(KeyError::Parts)),
        (changed("x", json!(null)), Skipped::Key(KeyError::Parts)),
        (changed("alg", "ES256".into()), Skipped::Key(KeyError::Kind)),
        (changed("alg", "none".into()), Skipped::Key(KeyError::Kind)),
        (
            changed("alg", "ES512".into()),
            Skipped::Key(KeyError::Es512),
        ),
        (changed("use", "enc".into()), Skipped::Use),
        (changed("key_ops", json!(["sign"])), Skipped::Use),
        (changed("kty", "EC".into()), Skipped::Key(KeyError::Parts)),
        (
            json!({"kty": "RSA", "kid": "k", "n": "AQAB", "e": "AQAB"}),
            Skipped::Key(KeyError::RsaBits(17)),
        ),
        (
            json!({"kty": "RSA", "kid": "k", "n": "", "e": "AQAB"}),
            Skipped::Key(KeyError::Parts),
        ),
        (
            json!({"kty": "EC", "kid": "k", "crv": "P-256", "x": "AA", "y": "AA"}),
            Skipped::Key(KeyError::Parts),
        ),
        (
            json!({"kty": "EC", "kid": "k", "crv": "P-256", "x": "A".repeat(43), "y": "A".repeat(43)}),
            Skipped::Key(KeyError::Parts),
        ),
    ];
    for (key, expected) in table {
        let set = KeySet::read(json!({"keys": [key]}).to_string().as_bytes()).unwrap();
        assert!(set.is_empty(), "{key}");
        assert_eq!(set.skipped(), [expected], "{key}");
    }
    let many: Vec<_> = (0..70)
        .map(|nth| jwk(ED, Algorithm::EdDSA, &nth.to_string()))
        .collect();
    let set = KeySet::read(json!({ "keys": many }).to_string().as_bytes()).unwrap();
    assert_eq!(
        (set.described().len(), set.skipped()),
        (64, &[Skipped::TooMany][..])
    );
    for no_set in ["", "[]", "{}", "{\"keys\":1}", "{\"keys\":[1]}"] {
        assert!(KeySet::read(no_set.as_bytes()).is_err(), "{no_set}");
    }
}

#[test]
fn a_minted_token_is_valid_by_every_algorithm() {
    use weir_authz::token::{Check, Issuer, Keys};
    let table = [
        ("HS256", SECRET, Key::secret(SECRET)),
        ("HS512", SECRET, Key::secret(SECRET)),
        ("RS256", RSA, Key::rsa_pem(RSA_PUBLIC)),
        ("PS384", RSA, Key::rsa_pem(RSA_PUBLIC)),
        ("ES256", P256, Key::ecdsa_pem(P256_PUBLIC)),
        ("ES384", P384, Key::ecdsa_pem(P384_PUBLIC)),
        ("EdDSA", ED, Key::ed25519_pem(ED_PUBLIC)),
    ];
    for (algorithm, private, public) in table {
        let check = Check {
            issuer: "me".to_owned(),
            audience: "weir".to_owned(),
            user_id_claim: "uid".to_owned(),
            ..Check::default()
        };
        let keys = Keys::Fixed(vec![(public.unwrap(), None)]);
        let verifier = Verifier::new(vec![Issuer { check, keys }], None);
        let mint = Mint {
            user: "ann",
            expires_at_s: Some(NOW + 60),
            audience: "weir",
            issuer: "me",
            user_id_claim: "uid",
            ..Mint::default()
        };
        let signer = Signer::new(algorithm, private, Some("k".to_owned())).unwrap();
        let token = mint.signed(&signer).unwrap();
        assert_eq!(
            verifier.connection(&token, NOW).unwrap().user,
            "ann",
            "{algorithm}"
        );
        let room = Mint {
            channel: Some("a"),
            ..mint
        };
        let token = room.signed(&signer).unwrap();
        assert!(matches!(
            verifier.connection(&token, NOW),
            Err(TokenError::Invalid(_))
        ));
        assert!(
            verifier
                .subscription(&token, Some("a"), "ann", "c", NOW)
                .is_ok()
        );
    }
    for bad in ["ES512", "none", "hs256", ""] {
        assert!(
            matches!(Signer::new(bad, SECRET, None), Err(MintError::Algorithm(_))),
            "{bad}"
        );
    }
    for (algorithm, key) in [
        ("HS256", RSA_PUBLIC),
        ("RS256", SECRET),
        ("ES256", ED),
        ("EdDSA", RSA_PUBLIC),
    ] {
        assert!(
            matches!(Signer::new(algorithm, key, None), Err(MintError::Key(_))),
            "{algorithm}"
        );
    }
}
