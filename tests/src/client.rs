//! A client that sends any bytes and reads responses strictly.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::wire::{FieldLines, Framing, Head, Wire};

/// What a read or write may take before it fails the test.
const IO_PATIENCE: Duration = Duration::from_secs(20);

/// A response, read to its end.
#[derive(Debug, Clone)]
pub struct Response {
    /// `HTTP/1.1`.
    pub version: String,
    /// Of the status line.
    pub status: u16,
    /// In order.
    pub fields: FieldLines,
    /// Decoded.
    pub body: Vec<u8>,
    /// How its end was marked.
    pub framing: Framing,
    /// Of a chunked body.
    pub trailers: FieldLines,
}

impl Response {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts the status, showing the body where it is another one.
    ///
    /// # Panics
    /// When it is another one.
    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{:?} {}", self.fields, self.text());
        self
    }
}

/// One connection of a client.
#[derive(Debug)]
pub struct Client<S = TcpStream> {
    wire: Wire<S>,
}

impl Client<TcpStream> {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// Connects, or says why not.
    pub fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_PATIENCE))?;
        stream.set_write_timeout(Some(IO_PATIENCE))?;
        Ok(Self { wire: Wire::new(stream) })
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.wire.stream
    }

    /// Says that nothing more will be sent; responses can still be read.
    pub fn finish_sending(&self) {
        self.stream().shutdown(Shutdown::Write).expect("an open connection");
    }
}

impl Client<UnixStream> {
    /// Connects to a unix socket.
    pub fn connect_unix(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(IO_PATIENCE))?;
        stream.set_write_timeout(Some(IO_PATIENCE))?;
        Ok(Self { wire: Wire::new(stream) })
    }
}

impl<S: Read + Write> Client<S> {
    /// Over any stream: one with TLS in between.
    #[must_use]
    pub fn over(stream: S) -> Self {
        Self { wire: Wire::new(stream) }
    }

    /// The stream. What was read from it already is not in it any more.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.wire.stream
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// When the connection does not take them.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes).expect("the connection takes what is sent");
        self
    }

    /// Sends bytes, or says why not.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.wire.stream.write_all(bytes.as_ref())
    }

    /// The next head, interim or final, without its body.
    ///
    /// # Panics
    /// When there is none.
    pub fn head(&mut self) -> Head {
        self.wire.head().expect("a readable response head").expect("a response before the end of the connection")
    }

    /// The response to a request of that method; interim responses fail it.
    pub fn try_response(&mut self, method: &str) -> anyhow::Result<Response> {
        let head = self.wire.head()?.context("the connection ended instead of a response")?;
        let mut parts = head.line.splitn(3, ' ');
        let version = parts.next().unwrap_or_default().to_owned();
        let status: u16 = parts.next().and_then(|s| s.parse().ok()).with_context(|| head.line.clone())?;
        ensure!(version == "HTTP/1.1" || version == "HTTP/1.0", "status line {:?}", head.line);
        ensure!(parts.next().is_some(), "no space behind the status: {:?}", head.line);
        ensure!(status >= 200, "interim response {:?}", head.line);
        let (framing, body, trailers) = if method == "HEAD" || status == 204 || status == 304 {
            (Framing::None, Vec::new(), FieldLines::default())
        } else {
            self.wire.body(&head.fields, Framing::UntilClose)?
        };
        Ok(Response { version, status, fields: head.fields, body, framing, trailers })
    }

    /// As [`try_response`](Self::try_response).
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        match self.try_response("GET") {
            Ok(response) => response,
            Err(error) => panic!("no response: {error:#}"),
        }
    }

    /// Sends a GET and reads its response.
    #[track_caller]
    pub fn get(&mut self, host: &str, target: &str) -> Response {
        self.get_with(host, target, &[])
    }

    /// As [`get`](Self::get), with further fields.
    #[track_caller]
    pub fn get_with(&mut self, host: &str, target: &str, fields: &[(&str, &str)]) -> Response {
        self.send(request("GET", host, target, fields)).response()
    }

    /// Asserts that the peer closes without sending anything more.
    ///
    /// # Panics
    /// When something else comes.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let rest = match self.wire.rest() {
            Ok(rest) => rest,
            Err(error) => panic!("neither silence nor the end of the connection: {error:#}"),
        };
        assert!(rest.is_empty(), "unexpected bytes: {:?}", String::from_utf8_lossy(&rest));
    }

    /// Exactly `len` bytes of whatever comes.
    ///
    /// # Panics
    /// When the connection ends before.
    #[track_caller]
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        match self.wire.exactly(len) {
            Ok(bytes) => bytes,
            Err(error) => panic!("not {len} bytes: {error:#}"),
        }
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> anyhow::Result<Vec<u8>> {
        self.wire.rest()
    }
}

/// The bytes of a request without body.
#[must_use]
pub fn request(method: &str, host: &str, target: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n").into_bytes();
    for (name, value) in fields {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}
