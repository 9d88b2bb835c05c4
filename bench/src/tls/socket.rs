//! A TCP connection, with TLS on it or without.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use rustls::{Connection, HandshakeKind};
use serde::{Deserialize, Serialize};

use super::Alpn;

/// Bytes in, bytes out, as with a [`TcpStream`]: what does not wait gives [`ErrorKind::WouldBlock`].
///
/// With TLS the handshake proceeds by itself while bytes are read. A connection that ends without TLS' own end gives
/// [`ErrorKind::UnexpectedEof`], and what is no TLS, or not ours to trust, a [`rustls::Error`] inside of the error.
pub(crate) struct Socket {
    stream: TcpStream,
    /// Boxed, as plain connections are the rule.
    tls: Option<Box<Connection>>,
}

/// What a handshake came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Negotiated {
    /// Such as `TLSv1_3`.
    pub(crate) version: String,
    /// Such as `TLS13_AES_128_GCM_SHA256`.
    pub(crate) cipher_suite: String,
    /// Such as `X25519`; none where a session was resumed without a key exchange.
    pub(crate) group: Option<String>,
}

impl Socket {
    pub(crate) fn plain(stream: TcpStream) -> Self {
        Self { stream, tls: None }
    }

    /// The handshake has not begun; [`Self::handshake`] or reading starts it.
    pub(crate) fn secure(stream: TcpStream, connection: impl Into<Connection>) -> Self {
        Self { stream, tls: Some(Box::new(connection.into())) }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Takes the handshake as far as it goes; true once it is done, at once without TLS.
    ///
    /// The last flight of a client may still be unsent then: it goes out with the first bytes that are written.
    pub(crate) fn handshake(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        while tls.is_handshaking() {
            let step = if tls.wants_write() {
                tls.write_tls(&mut self.stream).map(drop)
            } else {
                receive(tls, &mut self.stream)
            };
            match step {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether bytes that were written have not reached the kernel yet.
    pub(crate) fn has_output(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// What the handshake came to; none without TLS or before its end.
    pub(crate) fn negotiated(&self) -> Option<Negotiated> {
        let tls = self.tls.as_ref()?;
        Some(Negotiated {
            version: format!("{:?}", tls.protocol_version()?),
            cipher_suite: format!("{:?}", tls.negotiated_cipher_suite()?.suite()),
            group: tls.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name())),
        })
    }

    /// Whether both sides have agreed on HTTP/2; true without TLS, where nothing is negotiated.
    pub(crate) fn speaks_http2(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| tls.alpn_protocol() == Some(Alpn::Http2.id()))
    }

    /// Whether the handshake resumed a session.
    pub(crate) fn is_resumed(&self) -> bool {
        self.tls.as_ref().and_then(|tls| tls.handshake_kind()) == Some(HandshakeKind::Resumed)
    }

    /// Tells the peer that nothing more comes, as far as that goes without waiting.
    pub(crate) fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            // The connection is of no more use either way.
            let _ = self.flush();
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            receive(tls, &mut self.stream)?;
            // A flight of the handshake, or the answer to a KeyUpdate.
            while tls.wants_write() {
                match tls.write_tls(&mut self.stream) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

impl Write for Socket {
    /// Encrypts bytes and sends what the kernel takes. The rest is sent by [`Write::flush`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.write(bytes) };
        let count = tls.writer().write(bytes)?;
        match self.flush() {
            // They are taken, if not sent.
            Err(error) if error.kind() == ErrorKind::WouldBlock && count > 0 => Ok(count),
            result => result.map(|()| count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Reads once from the socket and processes what came.
fn receive(tls: &mut Connection, stream: &mut TcpStream) -> io::Result<()> {
    let count = tls.read_tls(stream)?;
    if let Err(error) = tls.process_new_packets() {
        // The alert tells the peer why; it may be gone.
        let _ = tls.write_tls(stream);
        return Err(to_io(error));
    }
    if count == 0 && tls.is_handshaking() {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed within the TLS handshake"));
    }
    Ok(())
}

/// Keeps the error, to be told from the system's.
pub(super) fn to_io(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// Whether TLS itself failed, and not the connection below.
pub(crate) fn is_tls_error(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}
