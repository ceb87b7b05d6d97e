//! Knows: clients under TLS, a certificate that is replaced while they are there, and TLS with certificates on both sides
//! to nats-server. Never: what is said inside.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::figures::figure;
use crate::harness::client::Client;
use crate::harness::nats::Nats;
use crate::harness::weir::{Config, Weir, token};
use crate::harness::{either, until, within};

const WITHIN: Duration = Duration::from_secs(30);

/// An authority, in a folder with all that it made.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Self {
            dir,
            issuer: Issuer::new(params, key),
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Makes `<name>.pem` and `<name>.key` of a host, in place of what was there.
    fn make(&self, name: &str, host: &str) {
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()
    }
}

/// A client under TLS.
struct Secure {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    shown: CertificateDer<'static>,
}

impl Secure {
    async fn open(address: &str, authority: &Authority) -> Result<Self, String> {
        // Boxed, as TLS and WebSocket handshakes are large.
        Box::pin(Self::opened(address, authority)).await
    }

    async fn opened(address: &str, authority: &Authority) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate("ca")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|e| e.to_string())?;
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let tls = Box::pin(connector.connect(name, tcp))
            .await
            .map_err(|e| e.to_string())?;
        let shown = tls.get_ref().1.peer_certificates().unwrap()[0].clone();
        let url = format!("wss://{address}/connection/websocket");
        let (socket, _) = Box::pin(tokio_tungstenite::client_async(url, tls))
            .await
            .map_err(|e| e.to_string())?;
        let mut client = Self { socket, shown };
        let connect = json!({ "id": 1, "connect": { "token": token("ann") } });
        client.say(&connect).await;
        assert!(client.next().await.contains("\"connect\""));
        Ok(client)
    }

    async fn say(&mut self, command: &Value) {
        let text = Message::text(command.to_string());
        self.socket.send(text).await.unwrap();
    }

    async fn next(&mut self) -> String {
        let next = within("a frame", WITHIN, self.socket.next()).await;
        next.unwrap().unwrap().into_text().unwrap().to_string()
    }

    /// Says something whose answer is sure.
    async fn lives(&mut self) {
        self.say(&json!({ "id": 9, "unsubscribe": { "channel": "chat:none" } }))
            .await;
        loop {
            let text = self.next().await;
            if text.contains("\"id\":9") {
                return;
            }
        }
    }
}

fn server(authority: &Authority, config: &mut Config) {
    config.more = format!(
        "[http_server.tls]\nenabled = true\ncert_pem_file = {:?}\nkey_pem_file = {:?}\n",
        authority.path("weir.pem"),
        authority.path("weir.key")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_under_tls_and_a_certificate_that_is_replaced() {
    let nats = Nats::start().await;
    let authority = Authority::new();
    authority.make("weir", "localhost");
    let mut config = Config::new(&nats.url());
    server(&authority, &mut config);
    let weir = Weir::start(config).await;
    let address = weir.address();
    let mut reader = Secure::open(&address, &authority).await.unwrap();
    reader
        .say(&json!({ "id": 2, "subscribe": { "channel": "chat:tls" } }))
        .await;
    assert!(reader.next().await.contains("\"subscribe\""));

    // Large and small frames, to a reader that does not read for a while: what the kernel does not take waits, and
    // comes whole and in order.
    let mut author = Secure::open(&address, &authority).await.unwrap();
    let sizes: Vec<usize> = (0..300)
        .map(|n| if n % 3 == 0 { 50_000 } else { n })
        .collect();
    for (n, size) in sizes.iter().enumerate() {
        let data = json!({ "n": n, "pad": "p".repeat(*size) });
        author
            .say(&json!({ "id": 100 + n, "publish": { "channel": "chat:tls", "data": data } }))
            .await;
        let answer = author.next().await;
        assert!(answer.contains("\"publish\""), "{answer}");
    }
    let mut had = Vec::new();
    while had.len() < sizes.len() {
        for line in reader.next().await.lines() {
            let push: Value = serde_json::from_str(line).unwrap();
            let data = &push["push"]["pub"]["data"];
            if let Some(n) = data["n"].as_u64() {
                let size = data["pad"].as_str().unwrap().len();
                had.push((usize::try_from(n).unwrap(), size));
            }
        }
    }
    let wanted: Vec<(usize, usize)> = sizes.into_iter().enumerate().collect();
    assert!(had == wanted, "not whole and in order");

    // Nothing else is spoken there.
    assert!(Client::open(&address).await.is_err());
    weir.until_metric("weir_edge_tls_handshakes_failed", WITHIN, |n| n >= 1.0)
        .await;

    // A new pair of files: new sockets are shown it, those that are there stay.
    let first = reader.shown.clone();
    assert_eq!(first, authority.certificate("weir"));
    authority.make("weir", "localhost");
    let second = authority.certificate("weir");
    until("the new certificate is shown", WITHIN, async || {
        Secure::open(&address, &authority).await.unwrap().shown == second
    })
    .await;
    reader.lives().await;

    // Files that are no good: told, and nothing changes.
    std::fs::write(authority.path("weir.pem"), "no certificate").unwrap();
    weir.until_metric("weir_tls_certificates_refused", WITHIN, |n| n == 1.0)
        .await;
    assert!(weir.log().contains("the new certificate is no good"));
    assert_eq!(
        Secure::open(&address, &authority).await.unwrap().shown,
        second
    );
    // Another's key.
    authority.make("other", "localhost");
    std::fs::copy(authority.path("other.pem"), authority.path("weir.pem")).unwrap();
    let pid = Pid::from_raw(weir.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    weir.until_metric("weir_tls_certificates_refused", WITHIN, |n| n >= 2.0)
        .await;
    assert_eq!(
        Secure::open(&address, &authority).await.unwrap().shown,
        second
    );

    // A hang-up takes good files at once.
    std::fs::copy(authority.path("other.key"), authority.path("weir.key")).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    let third = authority.certificate("other");
    until("the third certificate is shown", WITHIN, async || {
        Secure::open(&address, &authority).await.unwrap().shown == third
    })
    .await;
    reader.lives().await;
    author.lives().await;
    assert!(!weir.log().contains("panicked"));
}

/// A socket on which so much of a TLS handshake is said and no more; until Weir closes it.
async fn half_a_handshake(address: &str, bytes: usize) {
    let hello = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc];
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&hello[..bytes]).await.unwrap();
    let mut sink = [0; 64];
    let ended = async { while matches!(stream.read(&mut sink).await, Ok(1..)) {} };
    within("it is closed", WITHIN, ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_tls_handshake_is_not_waited_for() {
    let nats = Nats::start().await;
    let authority = Authority::new();
    authority.make("weir", "localhost");
    let mut config = Config::new(&nats.url());
    server(&authority, &mut config);
    let weir = Weir::start(config).await;
    let address = weir.address();
    let halves = join_all((0..100).map(|n| half_a_handshake(&address, n % 10)));
    let others = async {
        for _ in 0..20 {
            Secure::open(&address, &authority).await.unwrap();
        }
    };
    tokio::join!(halves, others);
    let name = "weir_edge_tls_handshakes_failed";
    weir.until_metric(name, WITHIN, |n| n >= 100.0).await;

    let before = weir.memory_bytes();
    let idle = either(200, 1_000);
    let mut open = Vec::new();
    for _ in 0..idle {
        open.push(Secure::open(&address, &authority).await.unwrap());
    }
    let each = weir.memory_bytes().saturating_sub(before) / idle;
    figure!(
        "an idle connection under TLS: {:.1} KiB",
        each as f64 / 1_024.0
    );
    assert!(each < 128 << 10, "{each} bytes each");
}

/// `weir check` on a configuration; what it says.
fn check(weir: &Weir) -> String {
    let output = weir.command("check", &[]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn nats_lines(ca: &Path, identity: Option<(PathBuf, PathBuf)>) -> String {
    let mut lines = format!("tls = true\ntls_ca_file = {ca:?}\n");
    if let Some((certificate, key)) = identity {
        lines += &format!("tls_cert_file = {certificate:?}\ntls_key_file = {key:?}\n");
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_to_nats_with_certificates_on_both_sides() {
    // For the client of the test itself; another test may have been first.
    drop(rustls::crypto::ring::default_provider().install_default());
    let authority = Authority::new();
    authority.make("nats", "127.0.0.1");
    authority.make("weir", "weir.internal");
    let nats = Nats::start_tls(&authority.dir).await;
    let ca = authority.path("ca.pem");
    let own = (authority.path("weir.pem"), authority.path("weir.key"));
    let mut config = Config::new(&nats.url());
    config.nats = nats_lines(&ca, Some(own.clone()));
    let weir = Weir::start(config.clone()).await;
    let mut client = Client::connect(&weir.address(), Some("ann")).await.unwrap();
    client.subscribe("chat:a", None).await.unwrap();
    client.publish("chat:a", "1").await.unwrap();
    client.publication(WITHIN).await.unwrap();
    drop(client);
    let said = tokio::task::block_in_place(|| check(&weir));
    assert!(
        !said.contains("does not answer") && !said.contains("refuses the user \"weir"),
        "{said}"
    );
    drop(weir);

    // Without a certificate of our own, with a server of somebody else's authority, with a name that is not the
    // server's, and without TLS: nothing is said to it.
    let stranger = Authority::new();
    let cases = [
        (nats.url(), nats_lines(&ca, None)),
        (
            nats.url(),
            nats_lines(&stranger.path("ca.pem"), Some(own.clone())),
        ),
        (
            nats.url().replace("127.0.0.1", "localhost"),
            nats_lines(&ca, Some(own)),
        ),
        (nats.url(), String::new()),
    ];
    for (url, lines) in cases {
        config.nats_url = url;
        config.nats = lines.clone();
        let weir = Weir::spawned(config.clone());
        let said = tokio::task::block_in_place(|| check(&weir));
        assert!(
            said.contains("WRONG") && said.contains("NATS"),
            "{lines}\n{said}"
        );
        until("it cannot start", WITHIN, async || {
            weir.log().contains("cannot start yet")
        })
        .await;
        assert!(!weir.ready().await, "{lines}");
    }
}
