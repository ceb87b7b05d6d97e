//! An issuer's keys over real HTTP: fetched once for all who wait, rotated under load, and never from
//! anywhere else, however the address behaves.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jsonwebtoken::Algorithm;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use weir_authz::token::{Address, AddressError, Check, Endpoint, Issuer, Keys};
use weir_authz::{TokenError, Verifier};

use crate::NOW;
use crate::figures::figure;
use crate::jwks::{Answer, KeyServer};
use crate::matrix::user_of;
use crate::token_cases::{B, ED, P256, good, jwk, sign};

struct Rig {
    server: KeyServer,
    verifier: Arc<Verifier>,
    stop: CancellationToken,
}

impl Rig {
    async fn start(answer: Answer) -> Self {
        let server = KeyServer::start(answer).await;
        let address = Address::parse(&server.url(), None).unwrap();
        Self::with(server, address)
    }

    fn with(server: KeyServer, address: Address) -> Self {
        let stop = CancellationToken::new();
        let (endpoint, fetcher) = Endpoint::new(address);
        tokio::spawn(fetcher.run(stop.clone()));
        let issuer = Issuer {
            check: Check::default(),
            keys: Keys::Fetched(endpoint),
        };
        Self {
            server,
            verifier: Arc::new(Verifier::new(vec![issuer], None)),
            stop,
        }
    }

    async fn check(&self, token: &str) -> Result<String, TokenError> {
        user_of(&self.verifier, token).await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn set(kids: &[&str]) -> String {
    let keys: Vec<_> = kids
        .iter()
        .map(|kid| jwk(ED, Algorithm::EdDSA, kid))
        .collect();
    json!({ "keys": keys }).to_string()
}

fn token(kid: &str) -> String {
    sign(Algorithm::EdDSA, Some(kid), &good(B, NOW), ED)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "not so after 20 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn hundreds_that_miss_one_key_cost_one_request() {
    let rig = Rig::start(Answer::Body(set(&["old"]))).await;
    assert!(rig.check(&token("old")).await.is_ok());
    let before = rig.server.requests();
    rig.server.now(Answer::Late(
        Duration::from_millis(200),
        set(&["old", "new"]),
    ));
    let new = token("new");
    let all: Vec<_> = (0..300)
        .map(|_| {
            let (verifier, new) = (Arc::clone(&rig.verifier), new.clone());
            tokio::spawn(async move { user_of(&verifier, &new).await })
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap().unwrap(), "ann");
    }
    assert_eq!(rig.server.requests() - before, 1);
    let heads = rig.server.heads();
    let head = heads.last().unwrap().to_ascii_lowercase();
    assert!(
        head.starts_with("get /keys.json?of=tests http/1.1\r\n"),
        "{head}"
    );
    assert!(
        head.contains(&format!("host: {}\r\n", rig.server.address)),
        "{head}"
    );
    for never in ["authorization", "cookie", "ann", "new"] {
        assert!(!head.contains(never), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_rotate_under_load_and_nobody_is_turned_away() {
    let rig = Rig::start(Answer::Body(set(&["k0"]))).await;
    assert!(rig.check(&token("k0")).await.is_ok());
    let newest = Arc::new(AtomicUsize::new(0));
    let (done, checked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let tokens: Arc<Vec<String>> = Arc::new((0..4).map(|nth| token(&format!("k{nth}"))).collect());
    let load: Vec<_> = (0..16)
        .map(|_| {
            let (verifier, newest) = (Arc::clone(&rig.verifier), Arc::clone(&newest));
            let (done, checked) = (Arc::clone(&done), Arc::clone(&checked));
            let tokens = Arc::clone(&tokens);
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    // Those who have the key before the last come, too.
                    let newest = newest.load(Ordering::Relaxed);
                    for nth in [newest.saturating_sub(1), newest] {
                        user_of(&verifier, &tokens[nth]).await.unwrap();
                        checked.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    let before = rig.server.requests();
    for nth in 1..4_usize {
        // Published, and at once in use, as an issuer that gives no notice does it.
        let kids: Vec<String> = (nth.saturating_sub(2)..=nth)
            .map(|nth| format!("k{nth}"))
            .collect();
        let kids: Vec<&str> = kids.iter().map(String::as_str).collect();
        rig.server
            .now(Answer::Late(Duration::from_millis(100), set(&kids)));
        newest.store(nth, Ordering::Relaxed);
        until("the new key was fetched", || {
            rig.server.requests() - before >= nth
        })
        .await;
        let so_far = checked.load(Ordering::Relaxed);
        until("tokens of it are taken", || {
            checked.load(Ordering::Relaxed) > so_far + 64
        })
        .await;
    }
    done.store(true, Ordering::Relaxed);
    for one in load {
        one.await.unwrap();
    }
    let requests = rig.server.requests() - before;
    figure!(
        "3 rotations, {} tokens verified, {requests} requests",
        checked.load(Ordering::Relaxed)
    );
    assert!((3..=4).contains(&requests), "{requests} requests");
}

#[tokio::test]
async fn made_up_names_become_few_requests_and_no_waits() {
    let rig = Rig::start(Answer::Body(set(&["old"]))).await;
    assert!(rig.check(&token("old")).await.is_ok());
    let before = rig.server.requests();
    let start = Instant::now();
    for round in 0..3 {
        let all: Vec<_> = (0..200)
            .map(|nth| {
                let verifier = Arc::clone(&rig.verifier);
                let token = token(&format!("made up {round} {nth}"));
                tokio::spawn(async move { user_of(&verifier, &token).await })
            })
            .collect();
        for one in all {
            assert!(matches!(one.await.unwrap(), Err(TokenError::Invalid(_))));
        }
        // Those that were looked for are known to be nobody's.
        let again = rig
            .verifier
            .connection(&token(&format!("made up {round} 7")), NOW);
        assert!(matches!(again, Err(TokenError::Invalid(_))), "{again:?}");
    }
    let requests = rig.server.requests() - before;
    assert!(
        requests <= 6,
        "{requests} requests in {:?} for 600 names",
        start.elapsed()
    );
    assert!(rig.check(&token("old")).await.is_ok());
}

#[tokio::test]
async fn nothing_but_a_small_answer_at_once_from_the_address_itself_counts() {
    let elsewhere = KeyServer::start(Answer::Body(set(&["k"]))).await;
    let location = format!("Location: {}\r\n", elsewhere.url());
    let large = format!("{}{}", set(&["k"]), " ".repeat(64 << 10));
    let answers = [
        Answer::Status(301, location.clone()),
        Answer::Status(302, location.clone()),
        Answer::Status(307, location.clone()),
        Answer::Status(308, location),
        Answer::Status(404, String::new()),
        Answer::Status(500, String::new()),
        Answer::Status(204, String::new()),
        Answer::Body(large),
        Answer::Body(String::new()),
        Answer::Body("{\"keys\":[]}".to_owned()),
        Answer::Body("{\"keys\":{}}".to_owned()),
        Answer::Body("<html>".to_owned()),
        Answer::Hangup,
    ];
    for answer in answers {
        let rig = Rig::start(answer.clone()).await;
        let found = rig.check(&token("k")).await;
        assert_eq!(found, Err(TokenError::Unavailable), "{answer:?}");
        assert_eq!(
            rig.server.requests() % 2,
            0,
            "{answer:?}: two tries a fetch"
        );
    }
    assert_eq!(elsewhere.requests(), 0, "a redirect was followed");
}

#[tokio::test]
async fn a_slow_address_costs_a_bounded_wait() {
    let late = Duration::from_secs(30);
    let rig = Rig::start(Answer::Late(late, set(&["k"]))).await;
    let start = Instant::now();
    let Err(TokenError::Wanted(wanted)) = rig.verifier.connection(&token("k"), NOW) else {
        panic!("the key cannot be here");
    };
    wanted.wait().await;
    let waited = start.elapsed();
    assert!(
        waited < Duration::from_secs(5),
        "{waited:?}: clients have given up by then"
    );
    assert!(
        waited > Duration::from_secs(3),
        "{waited:?}: two tries of 2 s"
    );
    assert!(rig.server.requests() >= 2);
}

#[tokio::test]
async fn the_keys_that_are_here_outlive_an_outage() {
    let rig = Rig::start(Answer::Body(set(&["old"]))).await;
    assert!(rig.check(&token("old")).await.is_ok());
    rig.server.now(Answer::Hangup);
    assert_eq!(rig.check(&token("new")).await, Err(TokenError::Unavailable));
    // For a moment after a failure nobody waits.
    let at_once = rig.verifier.connection(&token("another"), NOW);
    assert_eq!(at_once, Err(TokenError::Unavailable));
    assert!(rig.check(&token("old")).await.is_ok());
    rig.server.now(Answer::Body("{\"keys\":[]}".to_owned()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.check(&token("new")).await, Err(TokenError::Unavailable));
    assert!(
        rig.check(&token("old")).await.is_ok(),
        "an empty set took the keys away"
    );
    // Back again, and without the old one: it was withdrawn.
    rig.server.now(Answer::Body(set(&["new"])));
    let start = Instant::now();
    while rig.check(&token("new")).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let withdrawn = rig.check(&token("old")).await;
    assert!(
        matches!(withdrawn, Err(TokenError::Invalid(_))),
        "{withdrawn:?}"
    );
}

#[tokio::test]
async fn keys_that_were_not_seen_for_an_hour_are_no_longer_good() {
    let rig = Rig::start(Answer::Body(set(&["old"]))).await;
    assert!(rig.check(&token("old")).await.is_ok());
    rig.server.now(Answer::Hangup);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3_500)).await;
    assert!(rig.verifier.connection(&token("old"), NOW).is_ok());
    tokio::time::advance(Duration::from_secs(200)).await;
    let found = rig.verifier.connection(&token("old"), NOW);
    let is_gone = matches!(found, Err(TokenError::Wanted(_) | TokenError::Unavailable));
    assert!(is_gone, "{found:?}");
    tokio::time::resume();
}

#[tokio::test]
async fn the_same_kid_of_another_key_is_the_new_key() {
    let rig = Rig::start(Answer::Body(set(&["k"]))).await;
    assert!(rig.check(&token("k")).await.is_ok());
    rig.server.now(Answer::Body(
        json!({"keys": [jwk(P256, Algorithm::ES256, "k")]}).to_string(),
    ));
    // Asked again because of another name, the whole set is new.
    assert!(rig.check(&token("other")).await.is_err());
    assert!(rig.check(&token("k")).await.is_err());
    let new = sign(Algorithm::ES256, Some("k"), &good(B, NOW), P256);
    assert!(rig.check(&new).await.is_ok());
}

#[test]
fn what_is_an_address() {
    for good in [
        "https://accounts.example/keys",
        "https://accounts.example:8443/keys?a=b",
        "http://127.0.0.1:9/keys",
        "http://[::1]:9/",
        "https://[::1]",
    ] {
        assert!(Address::parse(good, None).is_ok(), "{good}");
    }
    for (bad, error) in [
        ("", AddressError::Url),
        ("/keys", AddressError::Url),
        ("accounts.example/keys", AddressError::Url),
        ("ftp://accounts.example/keys", AddressError::Url),
        ("file:///etc/passwd", AddressError::Url),
        ("https://", AddressError::Url),
        ("https://a b/", AddressError::Url),
        (
            "https://me:secret@accounts.example/",
            AddressError::Credentials,
        ),
        (
            "https://accounts.example/{{tenant}}/keys",
            AddressError::Template,
        ),
    ] {
        assert_eq!(Address::parse(bad, None).unwrap_err(), error, "{bad}");
    }
    let open = |url: &str| Address::parse(url, None).unwrap().is_open_to_others();
    assert!(open("http://accounts.example/keys"));
    assert!(!open("https://accounts.example/keys"));
    assert!(!open("http://127.0.0.1/keys"));
    let missing = Address::parse("https://a.example", Some(Path::new("/nowhere")));
    assert!(
        matches!(missing, Err(AddressError::Authorities(_))),
        "{missing:?}"
    );
}

/// Keys over TLS: an own authority, and a certificate that must be of the host that is asked.
#[tokio::test]
async fn tls_is_checked() {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys");
    let port = tls_server(&keys, set(&["k"])).await;
    let ca = keys.join("tls.cert.pem");
    let url = format!("https://localhost:{port}/keys");
    let look = async |url: &str, ca: Option<&Path>| match Address::parse(url, ca) {
        Ok(address) => Endpoint::look(&address).await.map(|keys| keys.described()),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(look(&url, Some(&ca)).await.unwrap(), ["k (EdDSA)"]);
    // Another name than the certificate's, and an authority that is not trusted.
    let other = format!("https://127.0.0.1:{port}/keys");
    let error = look(&other, Some(&ca)).await.unwrap_err();
    assert!(error.contains("TLS"), "{error}");
    if let Ok(address) = Address::parse(&url, None) {
        let error = Endpoint::look(&address).await.unwrap_err();
        assert!(error.contains("TLS"), "{error}");
    }
}

async fn tls_server(keys: &Path, body: String) -> u16 {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let certificate = CertificateDer::from_pem_file(keys.join("tls.cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(keys.join("tls.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A handshake that is refused is what this test wants, too.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut head = [0; 4_096];
            if stream.read(&mut head).await.is_ok() {
                let length = body.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    port
}
