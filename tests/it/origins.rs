//! Knows: which pages may connect, over a real socket: the exact origin, or one below a named host, and who names none;
//! and which pages are not on that port.
//! Never: how origins are compared (edge/src/origin.rs).

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::figures::figure;
use crate::harness::rig::Rig;
use crate::harness::weir::http_get;

const ALLOWED: &str = r#"allowed_origins = ["https://app.example.com", "https://*.wild.example", "http://dev.example:3000"]"#;

/// An `Origin` and whether it may connect; `{}` is the address that was asked for.
const ORIGINS: &[(&str, bool)] = &[
    ("https://app.example.com", true),
    // A browser says no port that is the scheme's own, and no capitals; who does means the same.
    ("https://app.example.com:443", true),
    ("HTTPS://APP.EXAMPLE.COM", true),
    ("http://dev.example:3000", true),
    ("https://a.wild.example", true),
    ("https://a.b.wild.example", true),
    ("http://{}", true),
    ("http://app.example.com", false),
    ("https://app.example.com:8443", false),
    ("https://app.example.com:80", false),
    ("https://app.example.com.evil.example", false),
    ("https://evil.example/app.example.com", false),
    ("https://app.example.com@evil.example", false),
    ("https://xapp.example.com", false),
    ("https://sub.app.example.com", false),
    ("https://example.com", false),
    ("https://wild.example", false),
    ("https://evilwild.example", false),
    ("http://a.wild.example", false),
    ("https://a.wild.example.evil.example", false),
    ("http://dev.example", false),
    ("http://{}.evil.example", false),
    ("null", false),
    ("file://", false),
    ("app.example.com", false),
    ("*", false),
    ("https://app.example.com https://evil.example", false),
    ("", false),
];

/// The status that an upgrade with these headers is answered with.
async fn status(address: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /connection/websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    std::str::from_utf8(&head[9..]).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_these_origins_and_no_others() {
    let rig = Rig::servers(1, false, |config| {
        config.client = format!("{ALLOWED}\n");
    })
    .await;
    let address = rig.weir.address();
    let mut wrong = Vec::new();
    for (origin, allowed) in ORIGINS {
        let origin = origin.replace("{}", &address);
        let got = status(&address, &format!("Origin: {origin}\r\n")).await;
        if got != if *allowed { 101 } else { 403 } {
            wrong.push(format!("{origin:?}: {got}, allowed: {allowed}"));
        }
    }
    // Native SDKs name none. Two are nobody's.
    assert_eq!(status(&address, "").await, 101);
    let twice = "Origin: https://app.example.com\r\nOrigin: https://evil.example\r\n";
    let other_way = "Origin: https://evil.example\r\nOrigin: https://app.example.com\r\n";
    for two in [twice, other_way] {
        let got = status(&address, two).await;
        if got == 101 {
            wrong.push(format!("{two:?}: {got}"));
        }
    }
    // Pages for operators are on the other listener.
    for path in ["/metrics", "/ready", "/health", "/admin", "/debug/pprof"] {
        let (status, _) = http_get(&address, path).await.unwrap();
        assert_eq!(status, 404, "{path}");
    }
    figure!("{} origins", ORIGINS.len() + 3);
    assert!(wrong.is_empty(), "{wrong:#?}");
}
