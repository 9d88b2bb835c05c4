//! What the other side sends (RFC 9113 sections 4 to 8).

use super::super::super::head::BodyFraming;
use super::super::super::http2::{
    Malformed, Refused, Shape, Upgraded, request_to_text, response_to_text, trailers_to_text,
};
use super::super::code::{Code, ConnectionError, Fault};
use super::super::frame::{self, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, STREAM_MAX, WINDOW_MAX, flag, kind};
use super::inbox::Coding;
use super::streams::Sending;
use super::*;
use crate::http::error::Refusal;
use crate::limits::{
    HTTP2_HEADER_BLOCK_BYTES_MAX, HTTP2_HEADER_FRAMES_MAX, HTTP2_INTERIM_BYTES_MAX, HTTP2_PREMATURE_RESETS_MAX,
};

type Result<T> = std::result::Result<T, ConnectionError>;
/// Why a stream is to be reset; `None`: it has its end already.
type Judged = std::result::Result<(), Option<(Code, &'static str)>>;

impl<T: Wake + Default> Engine<T> {
    /// Takes bytes in, as far as `out` has room for what they ask for: how many. The rest is to be handed over again once
    /// `out` was written.
    ///
    /// # Errors
    /// The other side breaks the protocol: see [`fail`](Self::fail).
    pub fn receive(&mut self, bytes: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<usize> {
        let mut at = 0;
        while at < bytes.len() && out.len() < BUFFER_BYTES {
            at += self.step(&bytes[at..], scratch, out)?;
        }
        Ok(at)
    }

    fn step(&mut self, bytes: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<usize> {
        match self.reading {
            Reading::Preface(done) => {
                let rest = &PREFACE[done..];
                let len = rest.len().min(bytes.len());
                if bytes[..len] != rest[..len] {
                    return Err(ConnectionError::protocol("not the preface of HTTP/2"));
                }
                self.reading = if len == rest.len() { Reading::Frame } else { Reading::Preface(done + len) };
                Ok(len)
            }
            Reading::Frame => self.frame(bytes, scratch, out),
            Reading::Padded { stream, len, ends } => {
                let padding = usize::from(bytes[0]);
                let Some(data) = (len - 1).checked_sub(padding) else {
                    return Err(ConnectionError::protocol("padding that is longer than its DATA frame"));
                };
                self.begin_data(stream, (data, padding, padding + 1), ends, out)?;
                Ok(1)
            }
            Reading::Data { key, len, padding, ends } => Ok(self.data_part(key, (len, padding), ends, bytes, out)),
        }
    }

    /// A frame, if all of it has come.
    fn frame(&mut self, bytes: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<usize> {
        if self.partial.is_empty()
            && let Some(first) = bytes.first_chunk()
        {
            let header = self.check(FrameHeader::read(first))?;
            if header.kind == kind::DATA {
                self.data_frame(header, out)?;
                return Ok(FRAME_HEADER_BYTES);
            }
            if let Some(payload) = bytes.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.len) {
                self.whole(header, payload, scratch, out)?;
                return Ok(FRAME_HEADER_BYTES + header.len);
            }
        }
        let wanted = match self.partial.first_chunk() {
            None => FRAME_HEADER_BYTES,
            Some(first) => FRAME_HEADER_BYTES + FrameHeader::read(first).len,
        };
        let count = (wanted - self.partial.len()).min(bytes.len());
        self.partial.extend_from_slice(&bytes[..count]);
        if self.partial.len() < wanted {
            return Ok(count);
        }
        let Some(first) = self.partial.first_chunk() else { return Ok(count) };
        let header = FrameHeader::read(first);
        if wanted == FRAME_HEADER_BYTES {
            self.check(header)?;
        }
        if header.kind == kind::DATA {
            self.partial = Vec::new();
            self.data_frame(header, out)?;
        } else if self.partial.len() == FRAME_HEADER_BYTES + header.len {
            let frame = std::mem::take(&mut self.partial);
            self.whole(header, &frame[FRAME_HEADER_BYTES..], scratch, out)?;
        }
        Ok(count)
    }

    /// What can be said before the payload has come.
    fn check(&self, header: FrameHeader) -> Result<FrameHeader> {
        if !self.has_settings && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return Err(ConnectionError::protocol("the first frame is not SETTINGS"));
        }
        if header.len > FRAME_BYTES_MAX {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a frame of more than 16384 bytes"));
        }
        let is_expected = match &self.block {
            Some(block) => header.kind == kind::CONTINUATION && header.stream == block.stream,
            None => header.kind != kind::CONTINUATION,
        };
        if !is_expected {
            return Err(ConnectionError::protocol(
                "CONTINUATION where there is nothing to continue, or something else where there is",
            ));
        }
        let needs_stream = match header.kind {
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM | kind::CONTINUATION => Some(true),
            kind::SETTINGS | kind::PING | kind::GOAWAY => Some(false),
            _ => None,
        };
        if needs_stream.is_some_and(|needs| needs != (header.stream != 0)) {
            return Err(ConnectionError::protocol("a frame about a stream on the connection, or the reverse"));
        }
        Ok(header)
    }

    fn whole(&mut self, header: FrameHeader, payload: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<()> {
        match header.kind {
            kind::HEADERS => {
                let (block, depends) = frame::strip(header, payload)?;
                if depends == Some(header.stream) {
                    return Err(ConnectionError::protocol("a stream that depends on itself"));
                }
                let ends = header.has(flag::END_STREAM);
                if header.has(flag::END_HEADERS) {
                    return self.block_of(header.stream, ends, block, scratch, out);
                }
                self.block = Some(Block { stream: header.stream, ends, frames: 1, bytes: block.to_vec() });
                Ok(())
            }
            kind::CONTINUATION => self.continuation(header, payload, scratch, out),
            kind::SETTINGS => self.settings(header, payload, out),
            kind::WINDOW_UPDATE => self.window_update(header, payload, out),
            kind::RST_STREAM => self.reset_by_peer(header, payload, out),
            kind::PING => self.pinged(header, payload, out),
            kind::GOAWAY => self.goaway(payload),
            kind::PUSH_PROMISE => Err(ConnectionError::protocol("PUSH_PROMISE, which nobody may send here")),
            kind::PRIORITY if header.len != 5 => {
                Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a PRIORITY frame that is not of 5 bytes"))
            }
            kind::PRIORITY if frame::number(payload) & STREAM_MAX == header.stream => {
                Err(ConnectionError::protocol("a stream that depends on itself"))
            }
            // Priorities are ignored, and so is what is not known (RFC 9113 section 4.1).
            _ => self.useless(),
        }
    }

    /// A frame that is of no use: none is wrong, but there are only so many.
    fn useless(&mut self) -> Result<()> {
        self.useless_frames += 1;
        if self.useless_frames > HTTP2_USELESS_FRAMES_MAX {
            return Err(ConnectionError::new(Code::ENHANCE_YOUR_CALM, "too many frames that mean nothing"));
        }
        Ok(())
    }

    /// One that is.
    pub(super) fn useful(&mut self) {
        self.useless_frames = self.useless_frames.saturating_sub(2);
    }

    fn continuation(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(block) = &mut self.block else { return Ok(()) };
        block.bytes.extend_from_slice(payload);
        block.frames += 1;
        if block.bytes.len() > HTTP2_HEADER_BLOCK_BYTES_MAX || block.frames > HTTP2_HEADER_FRAMES_MAX {
            return Err(ConnectionError::new(Code::ENHANCE_YOUR_CALM, "a header section without an end"));
        }
        if header.has(flag::END_HEADERS)
            && let Some(block) = self.block.take()
        {
            return self.block_of(block.stream, block.ends, &block.bytes, scratch, out);
        }
        Ok(())
    }

    /// A whole field section: a head or trailers.
    fn block_of(&mut self, id: u32, ends: bool, block: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<()> {
        let Scratch { fields, strings, key } = scratch;
        fields.clear();
        // Also that of a stream which is closed: the table must stay in step (RFC 9113 section 4.3).
        let listing = self
            .decoder
            .decode(block, strings, HTTP2_HEADER_LIST_BYTES_MAX as usize, |name, value, _| fields.push(name, value))
            .map_err(|error| ConnectionError::new(Code::COMPRESSION_ERROR, error.reason()))?;
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
    fn closed(&mut self, id: u32, reason: &'static str) -> Result<()> {
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

    fn is_unopened(&self, id: u32) -> bool {
        match (self.role, id % 2 == 1) {
            (Role::Server, true) => id > self.last_id,
            (Role::Client, true) => id >= self.next_id,
            (_, false) => true,
        }
    }

    fn open_theirs(
        &mut self,
        id: u32,
        ends: bool,
        is_too_large: bool,
        fields: &FieldList,
        random: [u8; 16],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if self.leaving == Leaving::Final {
            // It was told which one is the last (RFC 9113 section 6.8).
            return self.useless();
        }
        if id > self.last_id + 2 && self.passed_over.len() < PASSED_OVER_MAX {
            self.passed_over.push((self.last_id + 1, id - 1));
        }
        self.last_id = id;
        self.opened += 1;
        // Not only those that it has open: what serves one that it has reset takes a moment to end.
        let is_full = self.active >= HTTP2_STREAMS_MAX as usize || self.streams.len() >= 2 * HTTP2_STREAMS_MAX as usize;
        if is_full {
            self.forget(id);
            frame::write_number(out, kind::RST_STREAM, id, Code::REFUSED_STREAM.0);
            return self.useless();
        }
        let waiter = T::default();
        let key = self.streams.insert(id, waiter, i64::from(self.wishes.initial_window), HTTP2_STREAM_WINDOW_BYTES);
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let text = stream.inbox.head();
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
    fn section_of(
        &mut self,
        key: StreamKey,
        ends: bool,
        is_too_large: bool,
        fields: &FieldList,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        match stream.fault {
            Some(Fault::Reset(_)) => {
                return Err(ConnectionError::new(Code::STREAM_CLOSED, "HEADERS behind RST_STREAM"));
            }
            Some(_) => return self.useless(),
            None if stream.inbox.is_ended => {
                return self.break_stream(key, Code::STREAM_CLOSED, "HEADERS behind END_STREAM", out);
            }
            None => {}
        }
        let judged = if is_too_large {
            Err(Malformed::TooLarge)
        } else if stream.inbox.has_head {
            trailers(stream, ends, fields)
        } else {
            response(stream, ends, fields)
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
            Err(malformed) => {
                self.events.push_back(Event::Malformed(malformed));
                self.break_stream(key, Code::PROTOCOL_ERROR, malformed.code(), out)
            }
        }
    }

    fn data_frame(&mut self, header: FrameHeader, out: &mut Vec<u8>) -> Result<()> {
        let len = header.len as u32;
        self.receive_window = self.receive_window.checked_sub(len).ok_or(ConnectionError::new(
            Code::FLOW_CONTROL_ERROR,
            "more DATA than the window of the connection allows",
        ))?;
        let ends = header.has(flag::END_STREAM);
        if !header.has(flag::PADDED) {
            return self.begin_data(header.stream, (header.len, 0, 0), ends, out);
        }
        if header.len == 0 {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a padded DATA frame without the length of it"));
        }
        self.reading = Reading::Padded { stream: header.stream, len: header.len, ends };
        Ok(())
    }

    /// The payload of a DATA frame is next: so many bytes of data, then of padding. `overhead`: bytes of flow control that nobody
    /// will read.
    fn begin_data(
        &mut self,
        id: u32,
        (len, padding, overhead): (usize, usize, usize),
        ends: bool,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if len == 0 && !ends {
            self.useless()?;
        } else {
            self.useful();
        }
        let key = match self.streams.find(id) {
            None => {
                self.closed(id, "DATA on a stream that is closed")?;
                None
            }
            Some(key) => match self.judge_data(key, len, overhead, ends)? {
                Ok(()) => Some(key),
                Err(Some((code, reason))) => {
                    self.break_stream(key, code, reason, out)?;
                    None
                }
                Err(None) => None,
            },
        };
        self.give_back(overhead as u32, out);
        self.reading = Reading::Data { key, len, padding, ends };
        if len + padding == 0 {
            self.data_part(key, (0, 0), ends, b"", out);
        }
        Ok(())
    }

    /// Whether data may come on a stream, and if not, why the stream is to be reset, unless it has its end already.
    fn judge_data(&mut self, key: StreamKey, len: usize, overhead: usize, ends: bool) -> Result<Judged> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(Err(None)) };
        match stream.fault {
            Some(Fault::Reset(_)) => {
                return Err(ConnectionError::new(Code::STREAM_CLOSED, "DATA behind RST_STREAM"));
            }
            Some(_) => return Ok(Err(None)),
            None => {}
        }
        if stream.inbox.is_ended {
            return Ok(Err(Some((Code::STREAM_CLOSED, "DATA behind END_STREAM"))));
        }
        if !stream.inbox.has_head {
            return Ok(Err(Some((Code::PROTOCOL_ERROR, "DATA before a head"))));
        }
        let Some(window) = stream.receive_window.checked_sub((len + overhead) as u32) else {
            return Ok(Err(Some((Code::FLOW_CONTROL_ERROR, "more DATA than the window of the stream allows"))));
        };
        stream.receive_window = window;
        stream.credit += overhead as u32;
        Ok(announced(&mut stream.inbox.coding, len as u64, ends).map_err(Some))
    }

    /// What has come of a payload: how many bytes.
    fn data_part(
        &mut self,
        key: Option<StreamKey>,
        (len, padding): (usize, usize),
        ends: bool,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> usize {
        let count = len.min(bytes.len());
        let skipped = padding.min(bytes.len() - count);
        let stream = key.and_then(|key| self.streams.get_mut(key).map(|stream| (key, stream)));
        let is_last = count == len;
        match stream {
            Some((key, stream)) if stream.fault.is_none() => {
                let was_over = stream.is_over();
                stream.inbox.push(&bytes[..count]);
                // Padding tells nobody anything.
                let is_done = is_last && ends && !stream.inbox.is_ended;
                stream.inbox.is_ended |= is_last && ends;
                if count > 0 || is_done {
                    stream.count(&mut self.waiting_bytes);
                    stream.waiter.wake();
                }
                self.settle(was_over, key);
            }
            // Nobody reads it.
            _ => self.give_back(count as u32, out),
        }
        self.reading = if is_last && skipped == padding {
            Reading::Frame
        } else {
            Reading::Data { key, len: len - count, padding: padding - skipped, ends }
        };
        count + skipped
    }

    fn settings(&mut self, header: FrameHeader, payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if header.has(flag::ACK) {
            return match payload {
                [] => self.useless(),
                _ => Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")),
            };
        }
        if !payload.len().is_multiple_of(6) {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "SETTINGS whose length is no multiple of 6"));
        }
        let before = self.wishes.initial_window;
        self.wishes.update(payload, self.role == Role::Client)?;
        self.has_settings = true;
        let grown = i64::from(self.wishes.initial_window) - i64::from(before);
        if grown != 0 {
            for stream in self.streams.iter_mut() {
                stream.send_window += grown;
                if stream.send_window > i64::from(WINDOW_MAX) {
                    return Err(ConnectionError::new(Code::FLOW_CONTROL_ERROR, "SETTINGS that make a window overflow"));
                }
                stream.waiter.wake();
            }
        }
        FrameHeader { len: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 }.write(out);
        self.useless()
    }

    fn window_update(&mut self, header: FrameHeader, payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if payload.len() != 4 {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a WINDOW_UPDATE frame that is not of 4 bytes"));
        }
        let increment = frame::number(payload) & WINDOW_MAX;
        if header.stream == 0 {
            if increment == 0 {
                return Err(ConnectionError::protocol("WINDOW_UPDATE by nothing"));
            }
            self.send_window += i64::from(increment);
            if self.send_window > i64::from(WINDOW_MAX) {
                let reason = "WINDOW_UPDATE that makes the window of the connection overflow";
                return Err(ConnectionError::new(Code::FLOW_CONTROL_ERROR, reason));
            }
            self.wake_queued(usize::MAX);
            return self.useless();
        }
        let Some(key) = self.streams.find(header.stream) else {
            if self.is_unopened(header.stream) {
                return Err(ConnectionError::protocol("WINDOW_UPDATE on a stream that nobody has opened"));
            }
            return self.useless();
        };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if stream.fault.is_some() {
            return self.useless();
        }
        if increment == 0 {
            return self.break_stream(key, Code::PROTOCOL_ERROR, "WINDOW_UPDATE by nothing", out);
        }
        stream.send_window += i64::from(increment);
        if stream.send_window > i64::from(WINDOW_MAX) {
            let reason = "WINDOW_UPDATE that makes the window of the stream overflow";
            return self.break_stream(key, Code::FLOW_CONTROL_ERROR, reason, out);
        }
        if stream.send_window > 0 {
            stream.waiter.wake();
        }
        self.useless()
    }

    fn reset_by_peer(&mut self, header: FrameHeader, payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if payload.len() != 4 {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a RST_STREAM frame that is not of 4 bytes"));
        }
        let Some(key) = self.streams.find(header.stream) else {
            if self.is_unopened(header.stream) {
                return Err(ConnectionError::protocol("RST_STREAM on a stream that nobody has opened"));
            }
            return self.useless();
        };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if stream.fault.is_some() {
            return self.useless();
        }
        let (was_over, is_premature) = (stream.is_over(), stream.sending == Sending::Head);
        stream.sending = Sending::Ended;
        // A server that has said all may say that it needs no more of the request (RFC 9113 section 8.1): nothing is lost by that.
        let is_harmless = self.role == Role::Client && stream.inbox.is_ended;
        let mut unread = 0;
        if !is_harmless {
            stream.fault = Some(Fault::Reset(Code(frame::number(payload))));
            if self.role == Role::Server {
                unread = stream.inbox.discard() as u32;
            }
        }
        stream.waiter.wake();
        self.settle(was_over, key);
        self.give_back(unread, out);
        if self.role == Role::Server && is_premature {
            self.premature_resets += 1;
            if self.premature_resets > HTTP2_PREMATURE_RESETS_MAX && self.premature_resets > self.opened / 2 {
                return Err(ConnectionError::new(
                    Code::ENHANCE_YOUR_CALM,
                    "too many requests that are taken back at once",
                ));
            }
        }
        Ok(())
    }

    fn pinged(&mut self, header: FrameHeader, payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let Ok(payload) = payload.try_into() else {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a PING frame that is not of 8 bytes"));
        };
        if !header.has(flag::ACK) {
            frame::write_ping(out, flag::ACK, payload);
            return self.useless();
        }
        self.has_pong |= payload == ALIVE;
        if payload == LEAVING && self.leaving == Leaving::Announced {
            self.leaving = Leaving::Final;
            frame::write_goaway(out, self.last_id, Code::NO_ERROR, "");
        }
        self.useless()
    }

    fn goaway(&mut self, payload: &[u8]) -> Result<()> {
        if payload.len() < 8 {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a GOAWAY frame of less than 8 bytes"));
        }
        let last = frame::number(payload) & STREAM_MAX;
        if self.last_processed.is_some_and(|before| last > before) {
            return Err(ConnectionError::protocol("GOAWAY that takes back what an earlier one has said"));
        }
        self.last_processed = Some(last);
        if self.role == Role::Server {
            return self.useless();
        }
        for stream in self.streams.iter_mut().filter(|stream| stream.id > last) {
            if stream.fault.is_none() {
                self.active = self.active.saturating_sub(usize::from(!stream.is_over()));
                stream.fault = Some(Fault::Unprocessed);
                stream.sending = Sending::Ended;
            }
            stream.waiter.wake();
        }
        self.useless()
    }

    /// An error of the other side that ends a stream (RFC 9113 section 5.4.2).
    fn break_stream(&mut self, key: StreamKey, code: Code, reason: &'static str, out: &mut Vec<u8>) -> Result<()> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let was_over = stream.is_over();
        stream.fault = Some(Fault::Broken(code, reason));
        stream.sending = Sending::Ended;
        stream.waiter.wake();
        self.settle(was_over, key);
        self.reset_bad(key.id, code, out)
    }

    /// Resets a stream on account of the other side: an honest one makes hardly any such errors (CVE-2025-8671). A server's end the
    /// streams that they are about, not those of others.
    fn reset_bad(&mut self, id: u32, code: Code, out: &mut Vec<u8>) -> Result<()> {
        frame::write_number(out, kind::RST_STREAM, id, code.0);
        self.forget(id);
        self.local_resets += 1;
        if self.role == Role::Server && self.local_resets > HTTP2_LOCAL_RESETS_MAX {
            return Err(ConnectionError::new(Code::ENHANCE_YOUR_CALM, "too many streams that had to be reset"));
        }
        Ok(())
    }

    /// Remembers that we have reset a stream: late frames of it are no error.
    pub(super) fn forget(&mut self, id: u32) {
        if self.role == Role::Client {
            return;
        }
        if self.resets.len() >= HTTP2_RESETS_REMEMBERED_MAX {
            self.resets.pop_front();
        }
        self.resets.push_back(id);
    }
}

/// Gaps between ids that are remembered: an honest client leaves none.
const PASSED_OVER_MAX: usize = 4;

/// Counts data against the length that was announced (RFC 9113 section 8.1.1).
fn announced(coding: &mut Coding, len: u64, ends: bool) -> std::result::Result<(), (Code, &'static str)> {
    let wrong = (Code::PROTOCOL_ERROR, "DATA whose length is not what Content-Length says");
    match coding {
        Coding::Length(left) => {
            *left = left.checked_sub(len).ok_or(wrong)?;
            if ends && *left > 0 { Err(wrong) } else { Ok(()) }
        }
        Coding::None if len > 0 => Err((Code::PROTOCOL_ERROR, "DATA where the message has none")),
        _ => Ok(()),
    }
}

/// A head of a response, interim or final.
fn response<T>(stream: &mut streams::Stream<T>, ends: bool, fields: &FieldList) -> std::result::Result<(), Malformed> {
    let status = fields.status()?;
    let is_final = status >= 200;
    let method = stream.method.unwrap_or(Method::Other);
    let tunnel = stream.tunnel.as_deref();
    let upgraded = tunnel.filter(|_| is_final).map(|tunnel| Upgraded {
        protocol: &tunnel.protocol,
        accept: tunnel.accept.as_ref().map(<[u8; 28]>::as_slice),
    });
    let is_tunnel = (200..300).contains(&status) && (tunnel.is_some() || method == Method::Connect);
    let text = stream.inbox.head();
    if !is_final && text.len() > HTTP2_INTERIM_BYTES_MAX {
        return Err(Malformed::TooLarge);
    }
    let framing = response_to_text(text, status, fields.lines(), ends, method, upgraded)?;
    if is_final {
        stream.inbox.has_head = true;
        stream.inbox.coding = if is_tunnel { Coding::Raw } else { Coding::of(framing) };
    }
    Ok(())
}

/// Trailers, of either side.
fn trailers<T>(stream: &mut streams::Stream<T>, ends: bool, fields: &FieldList) -> std::result::Result<(), Malformed> {
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
