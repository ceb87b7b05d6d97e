//! Knows: one accepted socket, plain or under TLS, as bytes that are tried: what cannot be done now is not waited for.
//! Never: frames, HTTP, where certificates come from.
//!
//! Under TLS what was taken may still lie here, encrypted, when the kernel takes no more: at most
//! `SEALED_MAX_BYTES`, after which nothing is taken. Whoever writes asks [`Socket::has_pending`].

use std::io::{ErrorKind, IoSlice, Read as _, Result, Write};
use std::net::Shutdown;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::ServerConnection;
use socket2::SockRef;
use tokio::net::TcpStream;

/// Bytes that are encrypted and not yet taken by the kernel, of one socket.
const SEALED_MAX_BYTES: usize = 16 << 10;

/// A socket whose handshakes are done.
#[derive(Debug)]
pub enum Socket {
    /// As it is.
    Plain(TcpStream),
    /// Under TLS.
    Tls(Box<TlsSocket>),
}

/// A socket and its TLS session.
#[derive(Debug)]
pub struct TlsSocket {
    tcp: TcpStream,
    session: Mutex<ServerConnection>,
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(tcp)
    }
}

impl Socket {
    /// A socket on which `session` has done its handshake.
    #[must_use]
    pub fn tls(tcp: TcpStream, mut session: ServerConnection) -> Self {
        session.set_buffer_limit(Some(SEALED_MAX_BYTES));
        Self::Tls(Box::new(TlsSocket {
            tcp,
            session: Mutex::new(session),
        }))
    }

    /// The socket below, for its options.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.tcp,
        }
    }

    /// Waits until there may be something to read.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn readable(&self) -> Result<()> {
        match self {
            Self::Tls(tls) if tls.has_plain() => Ok(()),
            _ => self.tcp().readable().await,
        }
    }

    /// Waits until the kernel may take something.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn writable(&self) -> Result<()> {
        self.tcp().writable().await
    }

    /// Reads what is here; 0 at the end.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is here; anything else if the socket, or TLS on it, is broken.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_read(buffer),
            Self::Tls(tls) => tls.try_read(buffer),
        }
    }

    /// Writes as much as is taken now.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is taken; anything else if the socket is broken.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(tls) => tls.try_write(&[IoSlice::new(bytes)]),
        }
    }

    /// The same of several parts.
    ///
    /// # Errors
    /// As [`Socket::try_write`].
    pub fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(parts),
            Self::Tls(tls) => tls.try_write(parts),
        }
    }

    /// True while something that was taken is not with the kernel yet.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session().wants_write(),
        }
    }

    /// Hands what is pending to the kernel, as far as it takes it: how many bytes.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn flush_pending(&self) -> Result<usize> {
        match self {
            Self::Plain(_) => Ok(0),
            Self::Tls(tls) => tls.send(&mut tls.session()),
        }
    }

    /// Ends both directions. Under TLS the peer is told, if the kernel takes that at once.
    pub fn shutdown(&self) {
        if let Self::Tls(tls) = self {
            let mut session = tls.session();
            session.send_close_notify();
            if let Err(error) = tls.send(&mut session) {
                tracing::trace!(%error, "the end of TLS was not sent");
            }
        }
        if let Err(error) = SockRef::from(self.tcp()).shutdown(Shutdown::Both) {
            tracing::trace!(%error, "socket was gone");
        }
    }
}

impl TlsSocket {
    fn session(&self) -> MutexGuard<'_, ServerConnection> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_plain(&self) -> bool {
        let mut session = self.session();
        // Reading nothing tells whether something is there, or the end.
        !matches!(
            session.reader().into_first_chunk(),
            Err(error) if error.kind() == ErrorKind::WouldBlock
        )
    }

    fn try_read(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut session = self.session();
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            session.read_tls(&mut Tcp(&self.tcp))?;
            let processed = session.process_new_packets();
            // Tickets, new keys, or why it is over.
            self.send(&mut session)?;
            processed.map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }

    fn try_write(&self, parts: &[IoSlice<'_>]) -> Result<usize> {
        let mut session = self.session();
        self.send(&mut session)?;
        let taken = session.writer().write_vectored(parts)?;
        if taken == 0 && parts.iter().any(|part| !part.is_empty()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.send(&mut session)?;
        Ok(taken)
    }

    fn send(&self, session: &mut ServerConnection) -> Result<usize> {
        let mut sent = 0;
        while session.wants_write() {
            match session.write_tls(&mut Tcp(&self.tcp)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}

/// A socket as TLS wants to read and write it.
struct Tcp<'s>(&'s TcpStream);

impl std::io::Read for Tcp<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Tcp<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
