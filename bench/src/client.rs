//! Blocking clients: readiness of contenders, idle connections and idle streams.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::http::{Answer, ResponseDecoder};
use crate::http2::client::{Client, Ended, Request};
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

/// An HTTP/2 connection, each of whose streams carries the same request.
pub(crate) struct Http2<'r> {
    socket: Socket,
    client: Client,
    request: &'r Request,
    ended: Vec<Ended>,
}

impl<'r> Http2<'r> {
    /// Begins to speak HTTP/2; returns when the server's settings have come.
    pub(crate) fn begin(socket: Socket, request: &'r Request) -> io::Result<Self> {
        if !socket.speaks_http2() {
            return Err(io::Error::new(ErrorKind::InvalidData, "the server does not choose h2 by ALPN"));
        }
        let mut output = Vec::new();
        let client = Client::new(request, &mut output);
        let mut connection = Self { socket, client, request, ended: Vec::new() };
        connection.send(&output)?;
        while !connection.client.is_settled() {
            connection.receive()?;
        }
        Ok(connection)
    }

    /// Sends the request; gives the status of its answer. The timeout of the socket holds for each read.
    pub(crate) fn exchange(&mut self) -> io::Result<u16> {
        let mut output = Vec::new();
        self.client.send(self.request, Instant::now(), &mut output);
        self.send(&output)?;
        loop {
            if let Some(Ended { outcome, .. }) = self.ended.pop() {
                return outcome.map_err(|error| io::Error::new(ErrorKind::InvalidData, error));
            }
            self.receive()?;
        }
    }

    /// Opens streams whose requests the server holds back; returns when it has taken them all. Fails where it allows fewer,
    /// or answers.
    pub(crate) fn hold(&mut self, streams: usize) -> io::Result<()> {
        let mut output = Vec::new();
        for _ in 0..streams {
            if !self.client.can_send() {
                let message = format!("the server allows {} streams on a connection", self.client.streams_max());
                return Err(io::Error::other(message));
            }
            self.client.send(self.request, Instant::now(), &mut output);
        }
        // It comes back after what was sent before it has been taken.
        self.client.ping(&mut output);
        self.send(&output)?;
        while self.client.pongs() == 0 {
            self.receive()?;
        }
        match self.ended.pop() {
            None => Ok(()),
            Some(Ended { outcome: Ok(status), .. }) => {
                Err(io::Error::other(format!("answered with status {status} instead of being held back")))
            }
            Some(Ended { outcome: Err(error), .. }) => Err(io::Error::new(ErrorKind::InvalidData, error)),
        }
    }

    /// How many of the streams are still open, as far as has come.
    pub(crate) fn count_open(&mut self) -> usize {
        if self.socket.stream().set_nonblocking(true).is_err() {
            return 0;
        }
        loop {
            match self.receive() {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.client.open(),
                Err(_) => return 0,
            }
        }
    }

    fn send(&mut self, output: &[u8]) -> io::Result<()> {
        self.socket.write_all(output)?;
        self.socket.flush()
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let count = match self.socket.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        };
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut output = Vec::new();
        self.client
            .receive(&buffer[..count], self.request, &mut self.ended, &mut output)
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        self.send(&output)
    }
}
