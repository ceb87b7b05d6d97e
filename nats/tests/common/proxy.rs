//! Knows: how to stand between a client and nats-server and lose what one of them says. Never: NATS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A TCP proxy on a port of its own.
pub struct Proxy {
    pub port: u16,
    /// What the server says is swallowed.
    deaf: Arc<AtomicBool>,
    /// What the client says is swallowed.
    mute: Arc<AtomicBool>,
    /// What the client says waits here.
    hold: watch::Sender<bool>,
    cut: watch::Sender<u64>,
}

impl Proxy {
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            deaf: Arc::default(),
            mute: Arc::default(),
            hold: watch::Sender::new(false),
            cut: watch::Sender::new(0),
        };
        let (deaf, mute) = (Arc::clone(&proxy.deaf), Arc::clone(&proxy.mute));
        let (hold, cut) = (proxy.hold.clone(), proxy.cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else {
                    continue;
                };
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                let up = pump(
                    client_read,
                    server_write,
                    Arc::clone(&mute),
                    hold.subscribe(),
                );
                let free = watch::Sender::new(false).subscribe();
                let down = pump(server_read, client_write, Arc::clone(&deaf), free);
                let mut cut = cut.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        () = up => {}
                        () = down => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        proxy
    }

    /// From now on the client hears nothing.
    pub fn swallow_answers(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// From now on the server hears nothing.
    pub fn swallow_requests(&self) {
        self.mute.store(true, Ordering::SeqCst);
    }

    /// From now on what the client says waits, or goes on.
    pub fn hold_requests(&self, hold: bool) {
        self.hold.send_replace(hold);
    }

    /// Cuts every connection and lets the next ones be.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
        self.deaf.store(false, Ordering::SeqCst);
        self.mute.store(false, Ordering::SeqCst);
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    swallow: Arc<AtomicBool>,
    mut hold: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if *hold.borrow() && hold.wait_for(|hold| !hold).await.is_err() {
            return;
        }
        if !swallow.load(Ordering::SeqCst) && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
