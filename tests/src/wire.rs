//! HTTP/1.1 as the tests read it: strict, independent of the codecs under test, from any stream.

use std::{
    fmt,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, bail, ensure};

/// Field names and values in order, names in lower case.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FieldLines(pub Vec<(String, String)>);

impl FieldLines {
    /// The only value of a name.
    ///
    /// # Panics
    /// When the name occurs more than once.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} occurs {} times: {self:?}", all.len());
        all.first().copied()
    }

    /// All values of a name.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Whether a name occurs.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }
}

impl fmt::Debug for FieldLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, value)| (name, value))).finish()
    }
}

/// A first line and its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Without CRLF.
    pub line: String,
    /// In order.
    pub fields: FieldLines,
}

/// How the end of a body was marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none by definition.
    None,
    /// Content-Length.
    Length,
    /// Chunked.
    Chunked,
    /// The end of the connection.
    UntilClose,
}

/// A buffered stream of HTTP/1.1 messages.
#[derive(Debug)]
pub struct Wire<S> {
    /// The stream itself.
    pub stream: S,
    buffer: Vec<u8>,
    tape: Option<Tape>,
}

/// Every byte that was read from a stream, as it came, whatever the reader made of it.
#[derive(Debug, Clone, Default)]
pub struct Tape(Arc<Mutex<Vec<u8>>>);

impl Tape {
    /// What was read since the tape was taken last.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn record(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }
}

/// What is wrong with a message that ends too early.
#[derive(Debug)]
pub struct Truncated;

impl fmt::Display for Truncated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection ended in the middle of a message")
    }
}

impl std::error::Error for Truncated {}

/// Whether reading failed because the sender gave up in the middle, by FIN or by reset.
#[must_use]
pub fn is_truncation(error: &anyhow::Error) -> bool {
    error.is::<Truncated>()
        || error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

impl<S: Read + Write> Wire<S> {
    /// Over a stream from which nothing has been read.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), tape: None }
    }

    /// As [`new`](Self::new), with every byte recorded.
    pub fn recorded(stream: S, tape: Tape) -> Self {
        Self { tape: Some(tape), ..Self::new(stream) }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut space = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    if let Some(tape) = &self.tape {
                        tape.record(&space[..count]);
                    }
                    self.buffer.extend_from_slice(&space[..count]);
                    return Ok(count);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(len);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// The next bytes, whatever comes; none at the end of the stream.
    pub fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.buffer.is_empty() {
            self.fill()?;
        }
        Ok(self.take(self.buffer.len()))
    }

    /// The next `len` bytes.
    pub fn exactly(&mut self, len: usize) -> anyhow::Result<Vec<u8>> {
        while self.buffer.len() < len {
            ensure!(self.fill()? > 0, Truncated);
        }
        Ok(self.take(len))
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut from = 0;
        loop {
            if let Some(at) = self.buffer[from..].iter().position(|&byte| byte == b'\n') {
                let mut line = self.take(from + at + 1);
                line.pop();
                ensure!(line.pop() == Some(b'\r'), "a line ends in a bare LF: {:?}", String::from_utf8_lossy(&line));
                // Obs-text is read as Latin-1 where it is no UTF-8, so that no byte is lost.
                return Ok(String::from_utf8(line)
                    .unwrap_or_else(|error| error.as_bytes().iter().map(|&byte| char::from(byte)).collect()));
            }
            from = self.buffer.len();
            ensure!(self.fill()? > 0, Truncated);
        }
    }

    /// The next head; `None` where the stream ends before it begins.
    pub fn head(&mut self) -> anyhow::Result<Option<Head>> {
        if self.buffer.is_empty() && self.fill()? == 0 {
            return Ok(None);
        }
        let line = self.line()?;
        Ok(Some(Head { line, fields: self.fields()? }))
    }

    fn fields(&mut self) -> anyhow::Result<FieldLines> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(FieldLines(fields));
            }
            let (name, value) =
                line.split_once(':').with_context(|| format!("a field line without colon: {line:?}"))?;
            ensure!(!name.is_empty() && !name.contains([' ', '\t']), "a bad field name: {line:?}");
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// A body as `fields` announce it, and the trailer section.
    pub fn body(&mut self, fields: &FieldLines, otherwise: Framing) -> anyhow::Result<(Framing, Vec<u8>, FieldLines)> {
        if let Some(coding) = fields.value("transfer-encoding") {
            ensure!(coding == "chunked", "transfer-encoding: {coding}");
            ensure!(!fields.has("content-length"), "content-length beside transfer-encoding");
            let (body, trailers) = self.chunks()?;
            return Ok((Framing::Chunked, body, trailers));
        }
        if let Some(length) = fields.value("content-length") {
            let length = length.parse().with_context(|| format!("content-length: {length}"))?;
            return Ok((Framing::Length, self.exactly(length)?, FieldLines::default()));
        }
        match otherwise {
            Framing::UntilClose => Ok((Framing::UntilClose, self.rest()?, FieldLines::default())),
            _ => Ok((Framing::None, Vec::new(), FieldLines::default())),
        }
    }

    fn chunks(&mut self) -> anyhow::Result<(Vec<u8>, FieldLines)> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(&line, 16).with_context(|| format!("chunk size {line:?}"))?;
            if size == 0 {
                return Ok((body, self.fields()?));
            }
            body.extend(self.exactly(size)?);
            let end = self.exactly(2)?;
            if end != b"\r\n" {
                bail!("a chunk does not end in CRLF but in {end:?}");
            }
        }
    }

    /// Everything up to the end of the stream.
    pub fn rest(&mut self) -> anyhow::Result<Vec<u8>> {
        while self.fill()? > 0 {}
        Ok(self.take(self.buffer.len()))
    }
}
