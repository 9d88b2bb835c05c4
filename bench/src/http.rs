//! HTTP/1.1 for the generator and the backend: core's codec, fed with pieces of any size. Bodies are hashed, where somebody wants
//! to know, and discarded.

use std::cell::RefCell;

use meshring_core::http::body::{BodyDecoder, Event, Step};
use meshring_core::http::error::{BadResponse, ChunkError, Refusal};
use meshring_core::http::fields::Fields;
use meshring_core::http::head::{BodyFraming, Bounds, HeadScanner, Method};
use meshring_core::http::{request, response};

use crate::body_check::BodyCheck;

/// Why bytes are not an HTTP/1.1 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("malformed response: {0}")]
    Response(#[from] BadResponse),
    #[error("malformed request: {0}")]
    Request(#[from] Refusal),
    #[error("malformed body: {0}")]
    Body(#[from] ChunkError),
    #[error("bytes after the end of the response")]
    Unsolicited,
}

/// Of heads: what a proxy under test may have made of one that was as large as it could be.
const BOUNDS: Bounds = Bounds::NEXT_HOP;

thread_local! {
    /// One for all connections of a thread: nobody looks at the fields once a head is parsed.
    static FIELDS: RefCell<Box<Fields>> = RefCell::new(Fields::new());
}

/// A head in so many bytes, and how the body behind it is framed.
type Parsed<H> = Result<Option<(usize, H, BodyFraming)>, DecodeError>;

/// What the bytes so far come to.
enum Found<H> {
    NeedMore,
    Head(H),
    /// Of the message with this head.
    End(H),
}

/// Messages that come in pieces. What comes whole is parsed in place, without a copy.
#[derive(Debug)]
struct Messages<H> {
    /// The part of a head, or of a trailer, that has come so far.
    kept: Vec<u8>,
    scanner: HeadScanner,
    current: Option<(H, BodyDecoder)>,
}

impl<H> Default for Messages<H> {
    fn default() -> Self {
        Self { kept: Vec::new(), scanner: HeadScanner::default(), current: None }
    }
}

impl<H: Copy> Messages<H> {
    /// Takes bytes up to the end of a head or of a message: how many of them, and what was found. `data` gets the bodies.
    fn take(
        &mut self,
        bytes: &[u8],
        parse: impl Fn(&[u8], &mut Fields) -> Parsed<H>,
        data: impl FnMut(&[u8]),
    ) -> Result<(usize, Found<H>), DecodeError> {
        if self.kept.is_empty() {
            let (used, found) = self.step(bytes, parse, data)?;
            if !matches!(found, Found::NeedMore) {
                return Ok((used, found));
            }
            self.kept.extend_from_slice(&bytes[used..]);
        } else {
            let mut window = std::mem::take(&mut self.kept);
            let before = window.len();
            window.extend_from_slice(bytes);
            let (used, found) = self.step(&window, parse, data)?;
            if !matches!(found, Found::NeedMore) {
                // What was kept had no end, so that it is used up.
                return Ok((used - before, found));
            }
            window.drain(..used);
            self.kept = window;
        }
        Ok((bytes.len(), Found::NeedMore))
    }

    fn step(
        &mut self,
        window: &[u8],
        parse: impl Fn(&[u8], &mut Fields) -> Parsed<H>,
        mut data: impl FnMut(&[u8]),
    ) -> Result<(usize, Found<H>), DecodeError> {
        let Some((head, body)) = &mut self.current else {
            if !self.scanner.ready(window, BOUNDS) {
                return Ok((0, Found::NeedMore));
            }
            let parsed = FIELDS.with_borrow_mut(|fields| parse(window, fields))?;
            let Some((len, head, framing)) = parsed else { return Ok((0, Found::NeedMore)) };
            self.scanner.reset();
            self.current = Some((head, BodyDecoder::new(framing)));
            return Ok((len, Found::Head(head)));
        };
        let mut used = 0;
        loop {
            let rest = &window[used..];
            let Step { consumed, event } = body.decode(rest)?;
            used += consumed;
            match event {
                Event::NeedInput => return Ok((used, Found::NeedMore)),
                Event::Data(range) => data(&rest[range]),
                Event::Trailer { .. } => {}
                Event::End => {
                    let head = *head;
                    self.current = None;
                    return Ok((used, Found::End(head)));
                }
            }
        }
    }
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
    messages: Messages<Answer>,
    method: Method,
    started: bool,
    check: Option<BodyCheck>,
}

impl ResponseDecoder {
    /// `to_head`: responses answer HEAD requests, so they have no body whatever their fields say.
    pub(crate) fn new(to_head: bool) -> Self {
        let method = if to_head { Method::Head } else { Method::Get };
        Self { messages: Messages::default(), method, started: false, check: None }
    }

    /// Looks at the bodies, too.
    pub(crate) fn checking(self, check: Option<BodyCheck>) -> Self {
        Self { check, ..self }
    }

    /// Prepares for the response to the next request, whatever came of the last one.
    pub(crate) fn reset(&mut self) {
        self.messages = Messages::default();
        self.started = false;
        if let Some(check) = &mut self.check {
            check.reset();
        }
    }

    /// True once any byte of the response has come.
    pub(crate) fn started(&self) -> bool {
        self.started
    }

    /// Of a whole answer: whether its body is the expected one; `None` if nobody expects any.
    pub(crate) fn is_right(&self, answer: Answer) -> Option<bool> {
        self.check.as_ref().map(|check| check.is_right(answer.status))
    }

    /// Takes bytes; the answer once they complete it. Bytes after its end are an error, as nothing is pipelined.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<Option<Answer>, DecodeError> {
        self.started |= !bytes.is_empty();
        let method = self.method;
        loop {
            let parse = |window: &[u8], fields: &mut Fields| {
                let head = response::parse(window, fields, method, BOUNDS)?;
                Ok(head
                    .map(|head| (head.len, Answer { status: head.status, keep_alive: head.keep_alive }, head.framing)))
            };
            let check = &mut self.check;
            let (used, found) = self.messages.take(bytes, parse, |data| {
                if let Some(check) = check {
                    check.add(data);
                }
            })?;
            bytes = &bytes[used..];
            match found {
                Found::NeedMore => return Ok(None),
                Found::Head(_) => {}
                Found::End(Answer { status: ..200, .. }) => {}
                Found::End(answer) if bytes.is_empty() => return Ok(Some(answer)),
                Found::End(_) => return Err(DecodeError::Unsolicited),
            }
        }
    }

    /// The connection ended; the answer if that is a valid end of it.
    pub(crate) fn end(&self) -> Option<Answer> {
        match self.messages.current {
            Some((answer, BodyDecoder::UntilClose)) => Some(answer),
            _ => None,
        }
    }
}

/// What the backend has to know of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) keep_alive: bool,
    pub(crate) is_head: bool,
    /// Whether its path begins with [`HOLD`].
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
    /// Each with whether its client waits for 100.
    messages: Messages<(Request, bool)>,
}

impl RequestDecoder {
    /// Takes bytes up to the next event; returns how many and the event.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Result<(usize, RequestEvent), DecodeError> {
        let mut used = 0;
        loop {
            let (taken, found) = self.messages.take(&bytes[used..], parse_request, |_| {})?;
            used += taken;
            match found {
                Found::NeedMore => return Ok((used, RequestEvent::NeedMore)),
                Found::Head((_, true)) if used == bytes.len() => return Ok((used, RequestEvent::ExpectsContinue)),
                Found::Head(_) => {}
                Found::End((request, _)) => return Ok((used, RequestEvent::Complete(request))),
            }
        }
    }
}

fn parse_request(window: &[u8], fields: &mut Fields) -> Parsed<(Request, bool)> {
    let Some(head) = request::parse(window, fields, BOUNDS)? else { return Ok(None) };
    let request = Request {
        keep_alive: head.keep_alive,
        is_head: head.method == Method::Head,
        is_held: head.path_of(window).starts_with(HOLD.as_bytes()),
    };
    Ok(Some((head.len, (request, head.expect_continue), head.framing)))
}

#[cfg(test)]
mod tests;
