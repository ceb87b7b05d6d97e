//! What a token costs to verify, in µs of CPU: `cargo run --release -p weir-authz --example verify_cost`, of
//! one algorithm with its name behind.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "an example for people"
)]

use weir_authz::Verifier;
use weir_authz::token::{Check, Issuer, Key, Keys, Mint, Signer};

const NOW_S: i64 = 1_800_000_000;
const SECRET: &str = "a secret of the benchmark, long enough";

fn main() {
    let pem = |name: &str| {
        let path = format!("{}/tests/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    let table = [
        ("HS256", SECRET.to_owned(), Key::secret(SECRET)),
        ("HS512", SECRET.to_owned(), Key::secret(SECRET)),
        ("EdDSA", pem("ed"), Key::ed25519_pem(&pem("ed.pub"))),
        ("ES256", pem("p256"), Key::ecdsa_pem(&pem("p256.pub"))),
        ("ES384", pem("p384"), Key::ecdsa_pem(&pem("p384.pub"))),
        ("RS256", pem("rsa"), Key::rsa_pem(&pem("rsa.pub"))),
        ("PS256", pem("rsa"), Key::rsa_pem(&pem("rsa.pub"))),
    ];
    let only = std::env::args().nth(1);
    for (algorithm, private, public) in table {
        if only.as_ref().is_some_and(|only| only != algorithm) {
            continue;
        }
        let signer = Signer::new(algorithm, &private, None).unwrap();
        let mint = Mint {
            user: "a user of ordinary length",
            expires_at_s: Some(NOW_S + 60),
            ..Mint::default()
        };
        let token = mint.signed(&signer).unwrap();
        let keys = Keys::Fixed(vec![(public.unwrap(), None)]);
        let check = Check::default();
        let verifier = Verifier::new(vec![Issuer { check, keys }], None);
        let rounds = if algorithm.starts_with("HS") {
            200_000
        } else {
            1_000
        };
        let mut best_us = f64::INFINITY;
        for _ in 0..5 {
            let start_us = cpu_us();
            for _ in 0..rounds {
                assert!(verifier.connection(&token, NOW_S).is_ok());
            }
            best_us = best_us.min((cpu_us() - start_us) / f64::from(rounds));
        }
        println!(
            "{algorithm}: {best_us:.1} µs a token of {} bytes",
            token.len()
        );
    }
}

/// Time that this thread was on a CPU, which what else runs here does not change. Linux only.
fn cpu_us() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let ns: f64 = text.split(' ').next().unwrap().parse().unwrap();
    ns / 1e3
}
