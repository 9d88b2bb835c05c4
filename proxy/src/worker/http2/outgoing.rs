//! Our message on a stream: HTTP/1.1 text becomes frames.

use std::{
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use meshring_core::http::{
    body::{BodyDecoder, LAST_CHUNK},
    chunked::Event,
    head::{BodyFraming, Method},
    http2::{
        self, Code, Fault, RequestText, ResponseText, Room, StreamKey, Tunnel, encode_field,
        hpack::{encode, encode_status},
    },
};

use super::{
    client::Opener,
    link::{Link, Waiter},
    stream::Broken,
    websocket,
};
use crate::worker::interrupt::Interrupt;

/// An extended CONNECT (RFC 8441), which the text of our side is an upgrade for.
#[derive(Debug)]
pub(super) struct Extended {
    /// Of a WebSocket: what the server must say to the key that was sent.
    accept: Option<[u8; 28]>,
}

impl Extended {
    /// Of the text that the request has become.
    pub(super) fn of(text: &[u8]) -> Box<Self> {
        let key = http2::request_from_text(text).and_then(|request| request.websocket_key());
        Box::new(Self { accept: key.map(websocket::accept) })
    }

    /// Whether an answer may go on as it is. To its client a 2xx says that the tunnel is open (section 5), and a server that knows no
    /// upgrade means another thing; and only we can tell a server that has understood the key (RFC 6455 section 4.1).
    fn takes(&self, answer: &ResponseText<'_>) -> bool {
        match (answer.is_tunnel, &self.accept) {
            (false, _) => !(200..300).contains(&answer.status),
            (true, None) => true,
            (true, Some(accept)) => answer.websocket_accept() == Some(accept),
        }
    }
}

/// How the text goes on.
#[derive(Debug)]
enum Framing {
    /// With a head.
    Head,
    Coded(BodyDecoder),
    /// A tunnel: there is no text any more.
    Raw,
    /// All is said, or nothing can be any more.
    Done,
}

/// What a stream is to the one that writes to it.
pub(super) struct Target<'a> {
    pub(super) link: &'a Rc<Link>,
    /// Of a stream that is open.
    pub(super) key: &'a mut Option<StreamKey>,
    pub(super) interrupt: &'a Rc<Interrupt>,
}

/// Our message. Nothing of it is kept here: who cannot send it yet has it still.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Of the request that is answered.
    method: Method,
    /// What is answered is an extended CONNECT.
    extended: Option<Box<Extended>>,
    /// Of a request: what it is sent with.
    opener: Option<Opener>,
    framing: Framing,
    /// The trailers, encoded.
    trailers: Vec<u8>,
}

impl Outgoing {
    pub(super) fn response(method: Method, extended: Option<Box<Extended>>) -> Self {
        Self { method, extended, opener: None, framing: Framing::Head, trailers: Vec::new() }
    }

    pub(super) fn request(opener: Opener) -> Self {
        Self { opener: Some(opener), ..Self::response(Method::Other, None) }
    }

    /// Sends `text` from `written` on; `written` says how far that is done.
    pub(super) fn poll_write(
        &mut self,
        cx: &Context<'_>,
        target: &mut Target<'_>,
        text: &[u8],
        written: &mut usize,
    ) -> Poll<Result<(), Broken>> {
        loop {
            let rest = &text[*written..];
            let taken = match &self.framing {
                Framing::Done if rest.is_empty() => return Poll::Ready(Ok(())),
                Framing::Done => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                // Nothing says yet that this is the end.
                _ if rest.is_empty() && !self.is_whole() => return Poll::Ready(Ok(())),
                Framing::Head => ready!(self.poll_head(cx, target, rest))?,
                Framing::Raw => ready!(Self::poll_raw(target, rest))?,
                Framing::Coded(_) => ready!(self.poll_body(target, rest))?,
            };
            *written += taken;
        }
    }

    /// Whether a head is next.
    pub(super) fn is_at_head(&self) -> bool {
        matches!(self.framing, Framing::Head)
    }

    fn is_whole(&self) -> bool {
        matches!(&self.framing, Framing::Coded(decoder) if decoder.is_done())
    }

    /// Sends a head: how long it is, and whatever belongs to it.
    fn poll_head(&mut self, cx: &Context<'_>, target: &mut Target<'_>, text: &[u8]) -> Poll<Result<usize, Broken>> {
        if let Some(key) = *target.key
            && !target.link.with(|protocol, out| protocol.head_room(key, out))
        {
            return Poll::Pending;
        }
        if self.opener.is_some() {
            self.poll_request(cx, target, text)
        } else {
            Poll::Ready(self.response_head(target, text))
        }
    }

    fn response_head(&mut self, target: &Target<'_>, text: &[u8]) -> Result<usize, Broken> {
        let key = target.key.ok_or(io::ErrorKind::NotConnected)?;
        let head = http2::response_from_text(text, self.method).ok_or(io::ErrorKind::InvalidData)?;
        let write = |head: &ResponseText<'_>, is_final, ends| {
            target.link.with(|protocol, out| {
                protocol.section(key, is_final, ends, out, |out| {
                    encode_status(out, head.status);
                    head.fields().for_each(|(name, value)| encode_field(out, name, value));
                });
                protocol.fault(key)
            })
        };
        let fault = if (100..200).contains(&head.status) && !head.is_tunnel {
            write(&head, false, false)
        } else if self.extended.as_ref().is_some_and(|extended| !extended.takes(&head)) {
            // What follows is not for this client.
            self.framing = Framing::Done;
            target.link.with(|protocol, out| protocol.section(key, true, true, out, |out| encode_status(out, 502)));
            return Ok(text.len());
        } else {
            let (ends, len) = self.begin_body(head.framing, head.is_tunnel, &text[head.len..])?;
            let fault = write(&head, true, ends);
            return fault.map_or(Ok(head.len + len), |fault| Err(fault.into()));
        };
        fault.map_or(Ok(head.len), |fault| Err(fault.into()))
    }

    fn poll_request(&mut self, cx: &Context<'_>, target: &mut Target<'_>, text: &[u8]) -> Poll<Result<usize, Broken>> {
        let head = http2::request_from_text(text).ok_or(io::ErrorKind::InvalidData)?;
        let Some(opener) = &self.opener else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        if head.protocol.is_some() {
            ready!(opener.poll_extended(target.link, cx))?;
        }
        let scheme = opener.scheme();
        let method = Method::named(head.method);
        let tunnel = head.protocol.map(|protocol| {
            Box::new(Tunnel { protocol: protocol.to_vec(), accept: head.websocket_key().map(websocket::accept) })
        });
        let is_tunnel = tunnel.is_some() || method == Method::Connect;
        let (ends, len) = self.begin_body(head.framing, is_tunnel, &text[head.len..])?;
        let waiter = Waiter(Rc::clone(target.interrupt));
        let opened = target.link.with(|protocol, out| {
            protocol.open(waiter, method, tunnel, ends, out, |out| encode_request(out, &head, scheme))
        });
        *target.key = Some(opened.inspect_err(|_| self.framing = Framing::Done)?);
        Poll::Ready(Ok(head.len + len))
    }

    /// What follows a head: whether that is nothing, and how much of `rest` says so.
    fn begin_body(&mut self, framing: BodyFraming, is_tunnel: bool, rest: &[u8]) -> Result<(bool, usize), Broken> {
        if is_tunnel {
            self.framing = Framing::Raw;
            return Ok((false, 0));
        }
        let mut decoder = BodyDecoder::new(framing);
        let ending = if self.trailers.is_empty() { ending(&mut decoder, rest, LAST_CHUNK)? } else { None };
        self.framing = if ending.is_some() { Framing::Done } else { Framing::Coded(BodyDecoder::new(framing)) };
        Ok((ending.is_some(), ending.unwrap_or_default()))
    }

    /// Sends the next piece of a body: how much of the text it is.
    fn poll_body(&mut self, target: &Target<'_>, text: &[u8]) -> Poll<Result<usize, Broken>> {
        let Framing::Coded(decoder) = &mut self.framing else { return Poll::Ready(Ok(0)) };
        let mut next = decoder.clone();
        let mut step = next.decode(text).map_err(not_ours)?;
        let (range, ends, taken) = match step.event {
            Event::Data(range) => {
                let room = ready!(Self::poll_room(target))?;
                if range.len() > room {
                    // As if no more had come.
                    next = decoder.clone();
                    step = next.decode(&text[..range.start + room]).map_err(not_ours)?;
                    let Event::Data(range) = step.event else {
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    };
                    (range, false, step.consumed)
                } else {
                    let mut behind = next.clone();
                    let rest = &text[step.consumed..];
                    let ending = if self.trailers.is_empty() {
                        ending(&mut behind, rest, LAST_CHUNK_BEHIND_DATA)?
                    } else {
                        None
                    };
                    (range, ending.is_some(), step.consumed + ending.unwrap_or_default())
                }
            }
            Event::Trailer { name, value } => {
                if self.trailers.is_empty() {
                    self.trailers.reserve(TRAILER_BYTES);
                }
                encode_field(&mut self.trailers, &text[name], &text[value]);
                *decoder = next;
                return Poll::Ready(Ok(step.consumed));
            }
            Event::NeedInput if step.consumed == 0 => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            Event::NeedInput => {
                *decoder = next;
                return Poll::Ready(Ok(step.consumed));
            }
            Event::End => {
                self.finish(target);
                return Poll::Ready(Ok(step.consumed));
            }
        };
        self.framing = if ends { Framing::Done } else { Framing::Coded(next) };
        send(target, &text[range], ends);
        Poll::Ready(Ok(taken))
    }

    /// Sends as much of a tunnel's data as there is room for: how much.
    fn poll_raw(target: &Target<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        let room = ready!(Self::poll_room(target))?;
        let len = room.min(data.len());
        send(target, &data[..len], false);
        Poll::Ready(Ok(len))
    }

    fn poll_room(target: &Target<'_>) -> Poll<Result<usize, Broken>> {
        let Some(key) = *target.key else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        match target.link.with(|protocol, out| protocol.room(key, out)) {
            Room::Bytes(room) => Poll::Ready(Ok(room)),
            Room::Wait => Poll::Pending,
            Room::Gone => Poll::Ready(Err(gone(target, key))),
        }
    }

    /// Says that the message is whole.
    fn finish(&mut self, target: &Target<'_>) {
        self.framing = Framing::Done;
        let Some(key) = *target.key else { return };
        let trailers = std::mem::take(&mut self.trailers);
        target.link.with(|protocol, out| {
            if trailers.is_empty() {
                protocol.data(key, b"", true, out);
            } else {
                protocol.section(key, true, true, out, |out| out.extend_from_slice(&trailers));
            }
        });
    }

    /// What goes out behind a body of an announced length: lines of text.
    pub(super) fn put_trailers(&mut self, lines: &[u8]) {
        self.trailers.clear();
        let mut rest = lines;
        while let Some(end) = memchr::memmem::find(rest, b"\r\n") {
            let (line, behind) = rest.split_at(end);
            if let Some(colon) = memchr::memchr(b':', line) {
                encode_field(&mut self.trailers, &line[..colon], line[colon + 1..].trim_ascii_start());
            }
            rest = &behind[2..];
        }
    }

    /// Ends our side of a tunnel.
    pub(super) fn end(&mut self, target: &Target<'_>) {
        if matches!(self.framing, Framing::Raw) {
            self.finish(target);
        }
    }

    /// Ends the stream with an error: ours to an upstream, or what we have got from one.
    pub(super) fn abort(&mut self, target: &Target<'_>, is_upstream: bool) {
        let code = match (is_upstream, self.method, &self.extended) {
            (true, ..) => Code::CANCEL,
            // The connection that the tunnel leads to has broken (RFC 9113 section 8.5).
            (false, Method::Connect, _) => Code::CONNECT_ERROR,
            // Likewise, once it is a tunnel (RFC 8441 section 5).
            (false, _, Some(_)) if matches!(self.framing, Framing::Raw | Framing::Done) => Code::CANCEL,
            (false, ..) => Code::INTERNAL_ERROR,
        };
        self.framing = Framing::Done;
        if let Some(key) = *target.key {
            target.link.with(|protocol, out| protocol.reset(key, code, out));
        }
    }

    /// What was not sent never will be.
    pub(super) fn give_up(&mut self) {
        self.framing = Framing::Done;
    }
}

/// The end of a chunk, and of a body without trailers.
const LAST_CHUNK_BEHIND_DATA: &[u8] = b"\r\n0\r\n\r\n";
/// What a trailer section usually takes, in bytes.
const TRAILER_BYTES: usize = 64;

/// Whether the body has its end at the beginning of `rest`, with neither data nor trailers before it: how far. `last_chunk`: what the
/// end is here of a body in chunks.
fn ending(decoder: &mut BodyDecoder, rest: &[u8], last_chunk: &[u8]) -> Result<Option<usize>, Broken> {
    if matches!(decoder, BodyDecoder::Chunked(_)) && rest.len() >= last_chunk.len() {
        return Ok(rest.starts_with(last_chunk).then_some(last_chunk.len()));
    }
    let mut at = 0;
    while !decoder.is_done() {
        let step = decoder.decode(&rest[at..]).map_err(not_ours)?;
        at += step.consumed;
        match step.event {
            Event::End => break,
            Event::NeedInput if step.consumed > 0 => {}
            _ => return Ok(None),
        }
    }
    Ok(Some(at))
}

fn send(target: &Target<'_>, data: &[u8], ends: bool) {
    if let Some(key) = *target.key {
        target.link.with(|protocol, out| protocol.data(key, data, ends, out));
    }
}

fn gone(target: &Target<'_>, key: StreamKey) -> Broken {
    match target.link.ask(|protocol| protocol.fault(key)) {
        Some(fault) => fault.into(),
        None => io::ErrorKind::BrokenPipe.into(),
    }
}

/// What we write is ours: this never happens, and if it did, nothing of it must go out.
fn not_ours(error: impl std::error::Error + Send + Sync + 'static) -> Broken {
    Broken::Io(io::Error::new(io::ErrorKind::InvalidData, error))
}

fn encode_request(out: &mut Vec<u8>, head: &RequestText<'_>, scheme: &[u8]) {
    encode(out, b":method", head.method, false);
    if let Some(path) = head.path {
        encode(out, b":scheme", scheme, false);
        // It may have a secret in its query.
        encode(out, b":path", path, true);
    }
    encode(out, b":authority", head.authority, false);
    if let Some(protocol) = head.protocol {
        encode(out, b":protocol", protocol, false);
    }
    head.fields().for_each(|(name, value)| encode_field(out, name, value));
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_seen_where_it_is_and_in_no_other_place() {
        let ends =
            |decoder: BodyDecoder, rest: &[u8], last_chunk: &[u8]| ending(&mut { decoder }, rest, last_chunk).unwrap();
        let chunked = || BodyDecoder::new(BodyFraming::Chunked);
        for (rest, end) in [
            (&b"0\r\n\r\n"[..], Some(5)),
            (b"0\r\n\r\nbehind it", Some(5)),
            (b"", None),
            (b"0\r\n", None),
            (b"0\r\na: b\r\n\r\n", None),
            (b"5\r\n0\r\n\r\n\r\n", None),
        ] {
            assert_eq!(ends(chunked(), rest, LAST_CHUNK), end, "{rest:?}");
            let mut behind_data = chunked();
            let text = b"3\r\nabc";
            assert_eq!(behind_data.decode(text).unwrap().consumed, text.len());
            let rest = [&b"\r\n"[..], rest].concat();
            assert_eq!(ends(behind_data, &rest, LAST_CHUNK_BEHIND_DATA), end.map(|end| end + 2), "{rest:?}");
        }
        assert_eq!(ends(BodyDecoder::Done, b"0\r\n\r\n", LAST_CHUNK), Some(0));
        assert_eq!(ends(BodyDecoder::Length(5), b"0\r\n\r\n", LAST_CHUNK), None);
    }
}
