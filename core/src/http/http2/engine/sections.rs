//! Heads and trailers of the other side (RFC 9113 section 8).

use super::super::super::head::BodyFraming;
use super::super::code::{Code, ConnectionError, Fault};
use super::super::frame::{self, kind};
use super::super::{Refused, Upgraded, request_to_text, response_to_text, trailers_to_text};
use super::inbox::Coding;
use super::receive::Received;
use super::*;
use crate::limits::{HTTP2_HEADER_FIELDS_ENDURED, HTTP2_INTERIM_BYTES_MAX};

impl<T: Wake + Default> Engine<T> {
    /// A whole field section: a head or trailers.
    pub(super) fn block_of(
        &mut self,
        id: u32,
        ends: bool,
        block: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Received<()> {
        let Scratch { fields, strings, key } = scratch;
        fields.clear();
        // Also that of a stream which is closed: the table must stay in step (RFC 9113 section 4.3).
        let listing = self
            .decoder
            .decode(block, strings, HTTP2_HEADER_LIST_BYTES_MAX as usize, |name, value, _| fields.push(name, value))
            .map_err(|error| {
                let is_large = error == hpack::Error::ListSize;
                let code = if is_large { Code::ENHANCE_YOUR_CALM } else { Code::COMPRESSION_ERROR };
                ConnectionError::new(code, error.reason())
            })?;
        if self.role == Role::Server && fields.count() > HTTP2_HEADER_FIELDS_ENDURED {
            // Answered, one behind the other, each would cost as much as dozens of requests.
            let reason = "a header section has many times more fields than it may have";
            return Err(ConnectionError::new(Code::ENHANCE_YOUR_CALM, reason));
        }
        if let Some(key) = self.streams.find(id) {
            return self.section_of(key, ends, listing.too_large, fields, out);
        }
        let is_theirs = (id % 2 == 1) == (self.role == Role::Server);
        if self.role == Role::Server && is_theirs && id > self.last_id {
            return self.open_theirs(id, ends, listing.too_large, fields, *key, out);
        }
        self.closed(id, "HEADERS on a stream that is closed")
    }

    /// A frame on a stream that nobody has.
    pub(super) fn closed(&mut self, id: u32, reason: &'static str) -> Received<()> {
        if self.is_behind_the_last(id) {
            return self.useless();
        }
        if self.is_unopened(id) {
            return Err(ConnectionError::protocol("a frame on a stream that nobody has opened"));
        }
        if self.passed_over.iter().any(|(first, last)| (*first..=*last).contains(&id)) {
            return Err(ConnectionError::protocol("a stream that was passed over"));
        }
        // We may have reset it a moment ago. A server whose response nobody wants any more is in no hurry.
        if self.role == Role::Client || self.resets.contains(&id) {
            return self.useless();
        }
        Err(ConnectionError::new(Code::STREAM_CLOSED, reason))
    }

    /// Whether it is a request that crossed our last GOAWAY, which was not taken: so are its frames (RFC 9113 section 6.8).
    pub(super) fn is_behind_the_last(&self, id: u32) -> bool {
        self.role == Role::Server && self.leaving == Leaving::Final && id % 2 == 1 && id > self.last_id
    }

    pub(super) fn is_unopened(&self, id: u32) -> bool {
        match (self.role, id % 2 == 1) {
            (Role::Server, true) => id > self.last_id && !self.is_behind_the_last(id),
            (Role::Client, true) => id >= self.next_id,
            (_, false) => true,
        }
    }

    pub(super) fn open_theirs(
        &mut self,
        id: u32,
        ends: bool,
        is_too_large: bool,
        fields: &FieldList,
        random: [u8; 16],
        out: &mut Vec<u8>,
    ) -> Received<()> {
        if self.leaving == Leaving::Final {
            // It was told which one is the last (RFC 9113 section 6.8).
            return self.useless();
        }
        if id > self.last_id + 2 && self.passed_over.len() < PASSED_OVER_MAX {
            self.passed_over.push((self.last_id + 1, id - 1));
        }
        self.last_id = id;
        // Not only those that it has open: what serves one that it has reset takes a moment to end.
        let is_full = self.active >= HTTP2_STREAMS_MAX as usize || self.streams.len() >= 2 * HTTP2_STREAMS_MAX as usize;
        if is_full {
            self.forget(id);
            frame::write_number(out, kind::RST_STREAM, id, Code::REFUSED_STREAM.0);
            return self.useless();
        }
        // Those that were refused do not make up for others that are taken back.
        self.opened += 1;
        let waiter = T::default();
        let key = self.streams.insert(id, waiter, i64::from(self.wishes.initial_window), HTTP2_STREAM_WINDOW_BYTES);
        let Some((stream, spare)) = self.streams.with_spare(key) else { return Ok(()) };
        let text = stream.inbox.head(spare);
        let judged = match fields.request() {
            _ if is_too_large => Err(Refused::Status(Refusal::HeadTooLarge)),
            Ok(pseudo) => request_to_text(text, &pseudo, fields.lines(), ends, random),
            Err(malformed) => Err(malformed.into()),
        };
        let shape = match judged {
            Ok(shape) => Ok(shape),
            Err(Refused::Status(refusal)) => Err(refusal),
            Err(Refused::Malformed(malformed)) => {
                self.streams.remove(key, &mut self.waiting_bytes);
                self.events.push_back(Event::Malformed(malformed));
                return self.reset_bad(id, Code::PROTOCOL_ERROR, out);
            }
        };
        stream.method = Some(shape.map_or(Method::Other, |shape| shape.method));
        stream.opened_at = self.age;
        stream.is_tunnel = shape.is_ok_and(|shape| shape.framing == BodyFraming::UntilClose);
        stream.inbox.has_head = true;
        stream.inbox.is_ended = ends;
        stream.inbox.coding = Coding::of(shape.map_or(BodyFraming::None, |shape: Shape| shape.framing));
        if shape.is_err() {
            // Whatever follows, nobody reads it.
            stream.inbox.coding = Coding::Raw;
        }
        stream.count(&mut self.waiting_bytes);
        self.active += 1;
        self.useful();
        self.events.push_back(Event::Opened(Opening { key, shape }));
        Ok(())
    }

    /// A section of a stream that somebody has.
    pub(super) fn section_of(
        &mut self,
        key: StreamKey,
        ends: bool,
        is_too_large: bool,
        fields: &FieldList,
        out: &mut Vec<u8>,
    ) -> Received<()> {
        let Some((stream, spare)) = self.streams.with_spare(key) else { return Ok(()) };
        match stream.fault {
            Some(Fault::Reset(_)) => {
                return Err(ConnectionError::new(Code::STREAM_CLOSED, "HEADERS behind RST_STREAM"));
            }
            Some(_) => return self.useless(),
            None if stream.inbox.is_ended => {
                return self.break_stream(key, Code::STREAM_CLOSED, Malformed::BehindEnd, out);
            }
            None => {}
        }
        let judged = if is_too_large {
            Err(Malformed::TooLarge)
        } else if stream.is_tunnel {
            Err(Malformed::SectionInTunnel)
        } else if stream.inbox.has_head {
            trailers(stream, ends, fields)
        } else {
            response(stream, spare, ends, fields)
        };
        let was_over = stream.is_over();
        stream.count(&mut self.waiting_bytes);
        match judged {
            Ok(()) => {
                stream.inbox.is_ended |= ends;
                stream.waiter.wake();
                self.settle(was_over, key);
                self.useful();
                Ok(())
            }
            Err(malformed) => self.break_stream(key, Code::PROTOCOL_ERROR, malformed, out),
        }
    }
}

/// Gaps between ids that are remembered: an honest client leaves none.
const PASSED_OVER_MAX: usize = 4;

/// A head of a response, interim or final.
fn response<T>(
    stream: &mut streams::Stream<T>,
    spare: &mut inbox::Spare,
    ends: bool,
    fields: &FieldList,
) -> Result<(), Malformed> {
    let status = fields.status()?;
    let is_final = status >= 200;
    let method = stream.method.unwrap_or(Method::Other);
    let tunnel = stream.tunnel.as_deref();
    let upgraded = tunnel.filter(|_| is_final).map(|tunnel| Upgraded {
        protocol: &tunnel.protocol,
        accept: tunnel.accept.as_ref().map(<[u8; 28]>::as_slice),
    });
    let is_tunnel = (200..300).contains(&status) && (tunnel.is_some() || method == Method::Connect);
    let text = stream.inbox.head(spare);
    if !is_final && text.len() > HTTP2_INTERIM_BYTES_MAX {
        return Err(Malformed::TooLarge);
    }
    let framing = response_to_text(text, status, fields.lines(), ends, method, upgraded)?;
    if is_final {
        stream.inbox.has_head = true;
        stream.inbox.coding = if is_tunnel { Coding::Raw } else { Coding::of(framing) };
        stream.is_tunnel = is_tunnel;
    }
    Ok(())
}

/// Trailers, of either side.
fn trailers<T>(stream: &mut streams::Stream<T>, ends: bool, fields: &FieldList) -> Result<(), Malformed> {
    fields.trailers()?;
    if !ends {
        return Err(Malformed::TrailersGoOn);
    }
    if matches!(stream.inbox.coding, Coding::Length(1..)) {
        return Err(Malformed::LengthMismatch);
    }
    let lines = stream.inbox.trailers_mut();
    trailers_to_text(lines, fields.lines()).inspect_err(|_| lines.clear())
}
