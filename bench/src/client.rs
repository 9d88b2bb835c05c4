//! A blocking client for one request at a time: readiness of contenders, and idle connections.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::http::{Answer, ResponseDecoder};
use crate::tls::{self, Socket};

/// Opens a connection whose reads and writes end at the latest after `timeout`.
pub(crate) fn open(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

/// As [`open`], with TLS if it is asked for; its handshake is done.
pub(crate) fn open_socket(address: SocketAddr, timeout: Duration, tls: Option<&tls::Client>) -> io::Result<Socket> {
    let stream = open(address, timeout)?;
    let Some(tls) = tls else { return Ok(Socket::plain(stream)) };
    let mut socket = Socket::secure(stream, tls.connection()?);
    if !socket.handshake()? {
        return Err(ErrorKind::TimedOut.into());
    }
    socket.flush()?;
    Ok(socket)
}

/// Sends a request (not HEAD) and reads its answer. The timeout holds for each read.
pub(crate) fn exchange(mut stream: impl Read + Write, request: &[u8]) -> io::Result<Answer> {
    stream.write_all(request)?;
    let mut decoder = ResponseDecoder::new(false);
    let mut buffer = [0; 4096];
    loop {
        let count = match stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        };
        if count == 0 {
            return decoder.end().ok_or_else(|| ErrorKind::UnexpectedEof.into());
        }
        let fed = decoder.feed(&buffer[..count]);
        if let Some(answer) = fed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))? {
            return Ok(answer);
        }
    }
}
