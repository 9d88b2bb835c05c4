//! Incremental HTTP/1.1 decoders (RFC 9112): bytes in, events out, no sockets.
//!
//! Bodies are counted and discarded. Both decoders take input in pieces of any size.

use httparse::Status;

use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

/// Why bytes are not an HTTP/1.1 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("malformed head: {0}")]
    Head(#[from] httparse::Error),
    #[error("head of more than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    #[error("content-length is not one decimal number")]
    ContentLength,
    #[error("transfer-encoding other than chunked")]
    TransferEncoding,
    #[error("malformed chunk")]
    Chunk,
    #[error("bytes after the end of the response")]
    Unsolicited,
}

/// How the body that follows a head ends (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// This many bytes are still to come.
    Exact(u64),
    Chunked(Chunked),
    /// The end of the connection ends the body.
    UntilClose,
}

impl Body {
    /// Discards body bytes from the front of `bytes`; returns how many, and whether the body ended after them.
    fn skip(&mut self, bytes: &[u8]) -> Result<(usize, bool), DecodeError> {
        match self {
            Self::Exact(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                Ok((taken, *left == 0))
            }
            Self::Chunked(chunked) => chunked.skip(bytes),
            Self::UntilClose => Ok((bytes.len(), false)),
        }
    }
}

/// Where the chunked decoder stands (RFC 9112, section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

/// Decoder of the chunked transfer coding that keeps nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunked {
    state: ChunkState,
    left: u64,
    digits: u8,
    /// Bytes of extensions and trailers so far, bounded like a head.
    overhead: usize,
}

impl Chunked {
    pub(crate) const fn new() -> Self {
        Self { state: ChunkState::Size, left: 0, digits: 0, overhead: 0 }
    }

    fn skip(&mut self, bytes: &[u8]) -> Result<(usize, bool), DecodeError> {
        let mut position = 0;
        while position < bytes.len() {
            if self.state == ChunkState::Data {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - position);
                self.left -= taken as u64;
                position += taken;
                if self.left == 0 {
                    self.state = ChunkState::DataCr;
                }
                continue;
            }
            let byte = bytes[position];
            position += 1;
            if self.step(byte)? {
                return Ok((position, true));
            }
        }
        Ok((position, false))
    }

    /// Takes one byte that is not chunk data; true after the last byte of the body.
    fn step(&mut self, byte: u8) -> Result<bool, DecodeError> {
        use ChunkState::{Data, DataCr, DataLf, EndLf, Extension, Size, SizeLf, Trailer, TrailerLf, TrailerStart};
        self.state = match (self.state, byte) {
            (Size, b'\r') if self.digits > 0 => SizeLf,
            (Size, b';' | b' ' | b'\t') if self.digits > 0 => self.count_overhead(Extension)?,
            (Size, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(DecodeError::Chunk)?;
                // 15 digits can not overflow 64 bits.
                if self.digits == 15 {
                    return Err(DecodeError::Chunk);
                }
                self.digits += 1;
                self.left = self.left * 16 + u64::from(digit);
                Size
            }
            (Extension, b'\r') => SizeLf,
            (Extension, _) => self.count_overhead(Extension)?,
            (SizeLf, b'\n') if self.left == 0 => TrailerStart,
            (SizeLf, b'\n') => Data,
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => {
                self.digits = 0;
                Size
            }
            (TrailerStart, b'\r') => EndLf,
            (TrailerStart, _) => self.count_overhead(Trailer)?,
            (Trailer, b'\r') => TrailerLf,
            (Trailer, _) => self.count_overhead(Trailer)?,
            (TrailerLf, b'\n') => TrailerStart,
            (EndLf, b'\n') => return Ok(true),
            _ => return Err(DecodeError::Chunk),
        };
        Ok(false)
    }

    fn count_overhead(&mut self, next: ChunkState) -> Result<ChunkState, DecodeError> {
        self.overhead += 1;
        if self.overhead > HEAD_BYTES_MAX { Err(DecodeError::Chunk) } else { Ok(next) }
    }
}

/// A head that may arrive in pieces. Whole heads are parsed in place, without a copy.
#[derive(Debug, Default)]
struct HeadBuffer(Vec<u8>);

impl HeadBuffer {
    /// Parses a head that starts in earlier pieces and goes on in `bytes`.
    /// Returns how much of `bytes` was taken and, once it is whole, what `parse` made of it.
    fn parse<T>(&mut self, bytes: &[u8], parse: impl Fn(&[u8]) -> ParsedHead<T>) -> HeadProgress<T> {
        let kept = self.0.len();
        if kept == 0 {
            if let Some((length, head)) = parse(bytes)? {
                return Ok((length, Some(head)));
            }
            self.0.extend_from_slice(bytes);
        } else {
            self.0.extend_from_slice(bytes);
            if let Some((length, head)) = parse(&self.0)? {
                self.0.clear();
                return Ok((length.saturating_sub(kept), Some(head)));
            }
        }
        if self.0.len() > HEAD_BYTES_MAX {
            return Err(DecodeError::HeadTooLong);
        }
        Ok((bytes.len(), None))
    }
}

type ParsedHead<T> = Result<Option<(usize, T)>, DecodeError>;
type HeadProgress<T> = Result<(usize, Option<T>), DecodeError>;

/// What the header fields say about framing and the connection.
struct Fields {
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expect_continue: bool,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Self, DecodeError> {
        let mut fields =
            Self { content_length: None, chunked: false, close: false, keep_alive: false, expect_continue: false };
        for header in headers {
            // Comparing lengths first keeps the common case, a field of no interest, cheap.
            match header.name.len() {
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    let length = parse_length(header.value)?;
                    if fields.content_length.is_some_and(|earlier| earlier != length) {
                        return Err(DecodeError::ContentLength);
                    }
                    fields.content_length = Some(length);
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                        return Err(DecodeError::TransferEncoding);
                    }
                    fields.chunked = true;
                }
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    for option in header.value.split(|&byte| byte == b',') {
                        let option = option.trim_ascii();
                        fields.close |= option.eq_ignore_ascii_case(b"close");
                        fields.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                6 if header.name.eq_ignore_ascii_case("expect") => {
                    fields.expect_continue = header.value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
                }
                _ => {}
            }
        }
        Ok(fields)
    }

    /// Persistence as RFC 9112, section 9.3 defines it; `minor` is the minor version.
    fn persistent(&self, minor: Option<u8>) -> bool {
        !self.close && (minor == Some(1) || self.keep_alive)
    }
}

fn parse_length(value: &[u8]) -> Result<u64, DecodeError> {
    let value = value.trim_ascii();
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(DecodeError::ContentLength);
    }
    let text = std::str::from_utf8(value).map_err(|_| DecodeError::ContentLength)?;
    text.parse().map_err(|_| DecodeError::ContentLength)
}

/// A whole final response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether the connection may carry another request.
    pub(crate) keep_alive: bool,
}

/// Decodes the response to one request at a time. Interim (1xx) responses are skipped.
#[derive(Debug)]
pub(crate) struct ResponseDecoder {
    head: HeadBuffer,
    /// Answer and rest of the body, once the head is known.
    body: Option<(Answer, Body)>,
    to_head: bool,
    started: bool,
}

impl ResponseDecoder {
    /// `to_head`: responses answer HEAD requests, so they have no body whatever their fields say.
    pub(crate) fn new(to_head: bool) -> Self {
        Self { head: HeadBuffer::default(), body: None, to_head, started: false }
    }

    /// Prepares for the response to the next request, whatever came of the last one.
    pub(crate) fn reset(&mut self) {
        self.head.0.clear();
        self.body = None;
        self.started = false;
    }

    /// True once any byte of the response has come.
    pub(crate) fn started(&self) -> bool {
        self.started
    }

    /// Takes bytes; the answer once they complete it. Bytes after its end are an error, as nothing is pipelined.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<Option<Answer>, DecodeError> {
        self.started |= !bytes.is_empty();
        loop {
            if let Some((answer, body)) = &mut self.body {
                let (taken, ended) = body.skip(bytes)?;
                if !ended {
                    return Ok(None);
                }
                return if taken == bytes.len() { Ok(Some(*answer)) } else { Err(DecodeError::Unsolicited) };
            }
            if bytes.is_empty() {
                return Ok(None);
            }
            let to_head = self.to_head;
            let (taken, head) = self.head.parse(bytes, |piece| parse_response_head(piece, to_head))?;
            bytes = &bytes[taken..];
            self.body = match head {
                Some((answer, _)) if answer.status < 200 => None,
                other => other,
            };
        }
    }

    /// The connection ended; the answer if that is a valid end of it.
    pub(crate) fn end(&self) -> Option<Answer> {
        match self.body {
            Some((answer, Body::UntilClose)) => Some(answer),
            _ => None,
        }
    }
}

fn parse_response_head(bytes: &[u8], to_head: bool) -> ParsedHead<(Answer, Body)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let Status::Complete(length) = response.parse(bytes)? else { return Ok(None) };
    let status = response.code.ok_or(httparse::Error::Status)?;
    let fields = Fields::read(response.headers)?;
    let body = if to_head || status < 200 || status == 204 || status == 304 {
        Body::Exact(0)
    } else if fields.chunked {
        Body::Chunked(Chunked::new())
    } else {
        fields.content_length.map_or(Body::UntilClose, Body::Exact)
    };
    let keep_alive = fields.persistent(response.version) && body != Body::UntilClose;
    Ok(Some((length, (Answer { status, keep_alive }, body))))
}

/// What the backend has to know of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) keep_alive: bool,
    pub(crate) is_head: bool,
    /// Whether its target begins with [`HOLD`].
    pub(crate) is_held: bool,
}

/// The backend never answers requests whose path begins so.
pub(crate) const HOLD: &str = "/hold";

/// What comes next in a stream of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestEvent {
    /// All input is used up.
    NeedMore,
    /// The client waits for an interim response before it sends the body.
    ExpectsContinue,
    /// A whole request, with its body discarded.
    Complete(Request),
}

/// Decodes pipelined requests.
#[derive(Debug, Default)]
pub(crate) struct RequestDecoder {
    head: HeadBuffer,
    body: Option<(Request, Body)>,
}

impl RequestDecoder {
    /// Takes bytes up to the next event; returns how many and the event.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Result<(usize, RequestEvent), DecodeError> {
        let mut used = 0;
        if self.body.is_none() {
            if bytes.is_empty() {
                return Ok((0, RequestEvent::NeedMore));
            }
            let (taken, head) = self.head.parse(bytes, parse_request_head)?;
            used = taken;
            let Some((request, body, expects_continue)) = head else { return Ok((used, RequestEvent::NeedMore)) };
            self.body = Some((request, body));
            if expects_continue && used == bytes.len() && body != Body::Exact(0) {
                return Ok((used, RequestEvent::ExpectsContinue));
            }
        }
        if let Some((request, body)) = &mut self.body {
            let (taken, ended) = body.skip(&bytes[used..])?;
            used += taken;
            if ended {
                let request = *request;
                self.body = None;
                return Ok((used, RequestEvent::Complete(request)));
            }
        }
        Ok((used, RequestEvent::NeedMore))
    }
}

fn parse_request_head(bytes: &[u8]) -> ParsedHead<(Request, Body, bool)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let Status::Complete(length) = request.parse(bytes)? else { return Ok(None) };
    let fields = Fields::read(request.headers)?;
    let body =
        if fields.chunked { Body::Chunked(Chunked::new()) } else { Body::Exact(fields.content_length.unwrap_or(0)) };
    let keep_alive = fields.persistent(request.version);
    let is_head = request.method == Some("HEAD");
    let is_held = request.path.is_some_and(|path| path.starts_with(HOLD));
    Ok(Some((length, (Request { keep_alive, is_head, is_held }, body, fields.expect_continue))))
}

#[cfg(test)]
mod tests;
