//! Every token of the table, by the verifier as an edge has it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use weir_authz::token::{Address, Check, Endpoint, Issuer, Key, Keys};
use weir_authz::{TokenError, Verifier};

use crate::NOW;
use crate::figures::figure;
use crate::jwks::{Answer, KeyServer};
use crate::token_cases::{
    A, B, C, C_AUDIENCE, ED_PUBLIC, Expected, P256_PUBLIC, PREVIOUS, RSA_PUBLIC, SECRET, cases,
    set_of_b, set_of_c,
};

fn check(issuer: &str, audience: &str) -> Check {
    Check {
        issuer: issuer.to_owned(),
        audience: audience.to_owned(),
        ..Check::default()
    }
}

/// Keys at an address, fetched until the test ends.
fn fetched(server: &KeyServer, stop: &CancellationToken) -> Keys {
    let address = Address::parse(&server.url(), None).unwrap();
    let (endpoint, fetcher) = Endpoint::new(address);
    tokio::spawn(fetcher.run(stop.clone()));
    Keys::Fetched(endpoint)
}

/// Verifies, and waits for keys where they are missing.
pub(crate) async fn user_of(verifier: &Verifier, token: &str) -> Result<String, TokenError> {
    for _ in 0..3 {
        match verifier.connection(token, NOW) {
            Err(TokenError::Wanted(wanted)) => wanted.wait().await,
            found => return found.map(|claims| claims.user),
        }
    }
    panic!("the key is wanted again and again");
}

#[tokio::test]
async fn every_token_of_the_table_is_what_it_should_be() {
    let stop = CancellationToken::new();
    let canary = KeyServer::start(Answer::Body(set_of_c())).await;
    let server_b = KeyServer::start(Answer::Body(set_of_b())).await;
    let server_c = KeyServer::start(Answer::Body(set_of_c())).await;
    let fixed = vec![
        (Key::secret(SECRET).unwrap(), None),
        (Key::secret(PREVIOUS).unwrap(), Some(NOW)),
        (Key::rsa_pem(RSA_PUBLIC).unwrap(), None),
        (Key::ecdsa_pem(P256_PUBLIC).unwrap(), None),
        (Key::ed25519_pem(ED_PUBLIC).unwrap(), None),
    ];
    let issuer = |check, keys| Issuer { check, keys };
    let verifier = Verifier::new(
        vec![
            issuer(check(A, ""), Keys::Fixed(fixed)),
            issuer(check(B, ""), fetched(&server_b, &stop)),
            issuer(check(C, C_AUDIENCE), fetched(&server_c, &stop)),
        ],
        None,
    );
    let cases = cases(NOW, &canary.url());
    assert!(cases.len() >= 60, "{}", cases.len());
    let verifier = Arc::new(verifier);
    // All at once, as those whose key is nobody's wait for a fetch.
    let running: Vec<_> = cases
        .iter()
        .map(|case| {
            let (verifier, token) = (Arc::clone(&verifier), case.token.clone());
            tokio::spawn(async move { user_of(&verifier, &token).await })
        })
        .collect();
    for (case, running) in cases.iter().zip(running) {
        let found = running.await.unwrap();
        let is_right = match (&found, case.expected) {
            (Ok(user), Expected::User(expected)) => user == expected,
            (Err(TokenError::Expired), Expected::Expired)
            | (Err(TokenError::ConnectionExpired), Expected::ConnectionExpired)
            | (Err(TokenError::Invalid(_)), Expected::Invalid) => true,
            _ => false,
        };
        assert!(
            is_right,
            "{}: {found:?}, not {:?}",
            case.name, case.expected
        );
        if let Err(error) = found {
            // What is logged of a token that is refused holds nothing of it.
            let said = format!("{error} {error:?}");
            for part in case.token.split('.').filter(|part| part.len() > 8) {
                assert!(!said.contains(part), "{}: {said}", case.name);
            }
        }
    }
    assert_eq!(
        canary.requests(),
        0,
        "an address that a token named was asked"
    );
    // The names of nobody cost one fetch each at most, and those of the addresses themselves none.
    assert!(server_c.requests() <= 2, "{}", server_c.requests());
    figure!(
        "{} tokens; {} requests to B, {} to C",
        cases.len(),
        server_b.requests(),
        server_c.requests()
    );
    stop.cancel();
}
