//! The client's side: one request, sent again and again on the streams of a connection.

use std::collections::VecDeque;
use std::time::Instant;

use super::encoder::{Encoder, FieldSet};
use super::frame::{Frame, FrameReader, Settings, begin_frame, end_frame, flag, kind, write_frame, write_reset};
use super::headers::{HeaderReader, Headers, Summary};
use super::{ConnectionError, PREFACE, SendWindow, Unreturned, WINDOW_BYTES_DEFAULT, code, write_data, write_greeting};
use crate::body_check::BodyCheck;
use crate::limits::{CONNECTION_WINDOW_BYTES, GENERATOR_OUTPUT_BYTES_MAX, STREAM_WINDOW_BYTES};

/// The request of all streams.
pub(crate) struct Request {
    fields: FieldSet,
    body: Vec<u8>,
    /// Answers have no body, whatever their fields say.
    is_head: bool,
    is_grpc: bool,
    check: Option<BodyCheck>,
}

impl Request {
    /// `fields` are all of them, pseudo fields first, in lower case.
    pub(crate) fn new(fields: &[(&str, &str)], body: Vec<u8>, is_grpc: bool) -> Self {
        let is_head = fields.contains(&(":method", "HEAD"));
        Self { fields: FieldSet::new(fields), body, is_head, is_grpc, check: None }
    }

    /// Answers must have a certain body.
    pub(crate) fn checking(self, check: Option<BodyCheck>) -> Self {
        Self { check, ..self }
    }
}

/// Why a stream got no whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the stream was reset with code {0}")]
    Reset(u32),
    #[error("the stream was refused")]
    Refused,
    #[error("the server went away before it took the stream")]
    GoneAway,
    #[error("{0}")]
    Malformed(&'static str),
    #[error("grpc-status {0}")]
    Grpc(u32),
    #[error("the body is not the one that was expected")]
    WrongBody,
}

/// A stream that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// What [`Client::send`] was given.
    pub(crate) since: Instant,
    /// The status of a whole answer, with grpc-status 0 if it is gRPC and the status is 200.
    pub(crate) outcome: Result<u16, StreamError>,
}

/// What is kept of an answer's fields, and of its trailers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct AnswerFields {
    status: Option<u16>,
    content_length: Option<u64>,
    grpc_status: Option<u32>,
}

impl Summary for AnswerFields {
    fn add(&mut self, name: &[u8], value: &[u8]) {
        let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
        match name {
            b":status" => self.status = number().and_then(|status| status.try_into().ok()),
            b"content-length" => self.content_length = number(),
            // What is no number is a status, and not the good one.
            b"grpc-status" => {
                self.grpc_status = Some(number().and_then(|status| status.try_into().ok()).unwrap_or(u32::MAX));
            }
            _ => {}
        }
    }
}

struct Stream {
    since: Instant,
    /// Of the final answer, once it has begun.
    answer: Option<AnswerFields>,
    /// Bytes of the answer's body so far.
    received: u64,
    /// The first bytes of the answer's body: of a gRPC message its flag and its length.
    message_head: [u8; GRPC_HEAD_BYTES],
    unreturned: Unreturned,
    /// Bytes of the request's body that have been written.
    body_sent: usize,
    window: SendWindow,
    check: Option<BodyCheck>,
}

/// Flag and length in front of each gRPC message.
pub(crate) const GRPC_HEAD_BYTES: usize = 5;

/// A connection.
pub(crate) struct Client {
    frames: FrameReader,
    headers: HeaderReader<AnswerFields>,
    encoder: Encoder,
    peer: Settings,
    settled: bool,
    /// Those of `first_id`, `first_id + 2` and so on; none once they have ended, and the first one is open.
    streams: VecDeque<Option<Stream>>,
    first_id: u32,
    open: usize,
    /// How many of the open ones have body left to send.
    sending: usize,
    window: SendWindow,
    unreturned: Unreturned,
    pongs: u64,
    going_away: bool,
}

impl Client {
    /// Appends what the connection begins with.
    pub(crate) fn new(request: &Request, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(PREFACE);
        write_greeting(&[(Settings::ENABLE_PUSH, 0)], out);
        Self {
            frames: FrameReader::default(),
            headers: HeaderReader::new(),
            encoder: Encoder::new(&request.fields),
            peer: Settings::new(),
            settled: false,
            streams: VecDeque::new(),
            first_id: 1,
            open: 0,
            sending: 0,
            window: SendWindow::new(WINDOW_BYTES_DEFAULT),
            unreturned: Unreturned::default(),
            pongs: 0,
            going_away: false,
        }
    }

    /// Whether the server's settings have come.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Streams at a time that the server allows.
    pub(crate) fn streams_max(&self) -> usize {
        self.peer.max_concurrent_streams as usize
    }

    /// Open streams.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Whether the connection takes no more requests: the server goes away, or stream identifiers are used up.
    pub(crate) fn is_ending(&self) -> bool {
        self.going_away || self.next_id() > i32::MAX as u32
    }

    /// Whether a request can be sent now.
    pub(crate) fn can_send(&self) -> bool {
        self.settled && !self.is_ending() && self.open < self.streams_max()
    }

    /// Asks the server for a sign that it has taken what was sent so far.
    pub(crate) fn ping(&self, out: &mut Vec<u8>) {
        write_frame(kind::PING, 0, 0, &[0; 8], out);
    }

    /// How many such signs have come.
    pub(crate) fn pongs(&self) -> u64 {
        self.pongs
    }

    fn next_id(&self) -> u32 {
        self.first_id + 2 * self.streams.len() as u32
    }

    /// Begins a stream. `since` is given back when it ends.
    pub(crate) fn send(&mut self, request: &Request, since: Instant, out: &mut Vec<u8>) {
        let id = self.next_id();
        let end_stream = if request.body.is_empty() { flag::END_STREAM } else { 0 };
        let start = begin_frame(kind::HEADERS, flag::END_HEADERS | end_stream, id, out);
        self.encoder.write(&request.fields, 0..request.fields.len(), out);
        end_frame(start, out);
        self.streams.push_back(Some(Stream {
            since,
            answer: None,
            received: 0,
            message_head: [0; GRPC_HEAD_BYTES],
            unreturned: Unreturned::default(),
            body_sent: 0,
            window: SendWindow::new(self.peer.initial_window_size),
            check: request.check.clone(),
        }));
        self.open += 1;
        if !request.body.is_empty() {
            self.sending += 1;
            self.write_body(self.streams.len() - 1, request, out);
        }
    }

    /// Appends what the windows let through of the bodies that are left, up to a bound: call it again when `out` is sent.
    pub(crate) fn write_bodies(&mut self, request: &Request, out: &mut Vec<u8>) {
        let mut index = 0;
        while self.sending > 0 && index < self.streams.len() && self.window.bytes() > 0 {
            if out.len() >= GENERATOR_OUTPUT_BYTES_MAX {
                return;
            }
            self.write_body(index, request, out);
            index += 1;
        }
    }

    fn write_body(&mut self, index: usize, request: &Request, out: &mut Vec<u8>) {
        let id = self.first_id + 2 * index as u32;
        let Some(Some(stream)) = self.streams.get_mut(index) else { return };
        let left = &request.body[stream.body_sent..];
        if left.is_empty() {
            return;
        }
        let windows = [&mut stream.window, &mut self.window];
        stream.body_sent += write_data(id, left, true, windows, self.peer.max_frame_size, out);
        if stream.body_sent == request.body.len() {
            self.sending -= 1;
        }
    }

    /// Takes bytes from the server. Streams that end because of them are appended to `ended`, what is to be sent to `out`.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        request: &Request,
        ended: &mut Vec<Ended>,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        let mut frames = std::mem::take(&mut self.frames);
        let result = frames.feed(bytes, |frame| self.take_frame(&frame, request, ended, out));
        self.frames = frames;
        result?;
        self.write_bodies(request, out);
        Ok(())
    }

    fn take_frame(
        &mut self,
        frame: &Frame<'_>,
        request: &Request,
        ended: &mut Vec<Ended>,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        self.headers.check_order(frame)?;
        if !self.settled && frame.kind != kind::SETTINGS {
            return Err(ConnectionError::Protocol("the server does not begin with its settings"));
        }
        if frame.stream == 0 && matches!(frame.kind, kind::DATA | kind::HEADERS | kind::RST_STREAM) {
            return Err(ConnectionError::Protocol("a frame of a stream on none"));
        }
        match frame.kind {
            kind::DATA => self.take_data(frame, request, ended, out),
            kind::HEADERS | kind::CONTINUATION => {
                let Some(headers) = self.headers.take(frame)? else { return Ok(()) };
                self.take_headers(&headers, request, ended, out)
            }
            kind::RST_STREAM => {
                let error = match frame.number(0)? {
                    code::REFUSED_STREAM => StreamError::Refused,
                    code => StreamError::Reset(code),
                };
                self.end(frame.stream, Err(error), request, ended);
                Ok(())
            }
            kind::SETTINGS if frame.has(flag::ACK) => Ok(()),
            kind::SETTINGS => self.take_settings(frame, out),
            kind::PUSH_PROMISE => Err(ConnectionError::Protocol("a push, which was not allowed")),
            kind::PING if frame.payload.len() != 8 => Err(ConnectionError::FrameSize(frame.payload.len())),
            kind::PING if frame.has(flag::ACK) => {
                self.pongs += 1;
                Ok(())
            }
            kind::PING => {
                write_frame(kind::PING, flag::ACK, 0, frame.payload, out);
                Ok(())
            }
            kind::GOAWAY => self.take_goaway(frame.number(0)?, request, ended),
            kind::WINDOW_UPDATE => {
                let bytes = i64::from(frame.number(0)? & 0x7fff_ffff);
                match self.stream_mut(frame.stream)? {
                    _ if frame.stream == 0 => self.window.add(bytes),
                    Some(stream) => stream.window.add(bytes),
                    None => Ok(()),
                }
            }
            // PRIORITY, and extensions (section 5.5).
            _ => Ok(()),
        }
    }

    fn take_settings(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let change = self.peer.apply(frame.payload)?;
        for stream in self.streams.iter_mut().flatten() {
            stream.window.add(change)?;
        }
        self.encoder.set_table_size(self.peer.header_table_size);
        self.settled = true;
        write_frame(kind::SETTINGS, flag::ACK, 0, &[], out);
        Ok(())
    }

    fn take_data(
        &mut self,
        frame: &Frame<'_>,
        request: &Request,
        ended: &mut Vec<Ended>,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        let content = frame.content()?;
        // Padding counts as well (section 6.9.1).
        self.unreturned.take(frame.payload.len(), CONNECTION_WINDOW_BYTES, 0, out);
        let Some(stream) = self.stream_mut(frame.stream)? else { return Ok(()) };
        let Some(answer) = stream.answer else {
            return self.refuse(frame.stream, "data before the answer's head", request, ended, out);
        };
        for (place, byte) in stream.message_head.iter_mut().skip(stream.received as usize).zip(content) {
            *place = *byte;
        }
        stream.received += content.len() as u64;
        if let Some(check) = &mut stream.check {
            check.add(content);
        }
        if frame.has(flag::END_STREAM) {
            self.finish(frame.stream, answer, request, ended, out);
        } else {
            stream.unreturned.take(frame.payload.len(), STREAM_WINDOW_BYTES, frame.stream, out);
        }
        Ok(())
    }

    fn take_headers(
        &mut self,
        headers: &Headers<AnswerFields>,
        request: &Request,
        ended: &mut Vec<Ended>,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        let Some(stream) = self.stream_mut(headers.stream)? else { return Ok(()) };
        let fields = headers.summary;
        let answer = match (&mut stream.answer, fields.status) {
            // An interim answer.
            (None, Some(100..200)) if !headers.end_stream => return Ok(()),
            (None, Some(200..)) => *stream.answer.insert(fields),
            (Some(answer), None) if headers.end_stream => {
                answer.grpc_status = fields.grpc_status;
                *answer
            }
            (None, _) => return self.refuse(headers.stream, "an answer without a status", request, ended, out),
            (Some(_), _) => {
                return self.refuse(headers.stream, "trailers that do not end the stream", request, ended, out);
            }
        };
        if headers.end_stream {
            self.finish(headers.stream, answer, request, ended, out);
        }
        Ok(())
    }

    /// The server ended a stream in order.
    fn finish(&mut self, id: u32, answer: AnswerFields, request: &Request, ended: &mut Vec<Ended>, out: &mut Vec<u8>) {
        let Ok(Some(stream)) = self.stream_mut(id) else { return };
        // Who answers early wants no more of the body (section 8.1).
        if stream.body_sent < request.body.len() {
            write_reset(id, code::CANCEL, out);
        }
        let outcome = judge(stream, answer, request);
        self.end(id, outcome, request, ended);
    }

    /// Resets a stream whose answer is malformed.
    fn refuse(
        &mut self,
        id: u32,
        reason: &'static str,
        request: &Request,
        ended: &mut Vec<Ended>,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        write_reset(id, code::PROTOCOL_ERROR, out);
        self.end(id, Err(StreamError::Malformed(reason)), request, ended);
        Ok(())
    }

    fn end(&mut self, id: u32, outcome: Result<u16, StreamError>, request: &Request, ended: &mut Vec<Ended>) {
        let Some(stream) = self.index_of(id).and_then(|index| self.streams.get_mut(index)?.take()) else { return };
        self.open -= 1;
        if stream.body_sent < request.body.len() {
            self.sending -= 1;
        }
        while let Some(None) = self.streams.front() {
            self.streams.pop_front();
            self.first_id += 2;
        }
        ended.push(Ended { since: stream.since, outcome });
    }

    /// The server takes no streams after `last` (section 6.8).
    fn take_goaway(&mut self, last: u32, request: &Request, ended: &mut Vec<Ended>) -> Result<(), ConnectionError> {
        self.going_away = true;
        let ids = (self.first_id..self.next_id()).step_by(2);
        for id in ids.filter(|id| *id > last & 0x7fff_ffff) {
            self.end(id, Err(StreamError::GoneAway), request, ended);
        }
        Ok(())
    }

    /// Resets the streams that began at `since_max` or before.
    pub(crate) fn expire(&mut self, since_max: Instant, request: &Request, ended: &mut Vec<Ended>, out: &mut Vec<u8>) {
        for id in (self.first_id..self.next_id()).step_by(2) {
            let Ok(Some(stream)) = self.stream_mut(id) else { continue };
            // They began in the order of their identifiers.
            if stream.since > since_max {
                return;
            }
            write_reset(id, code::CANCEL, out);
            self.end(id, Err(StreamError::Reset(code::CANCEL)), request, ended);
        }
    }

    /// Ends all streams, as the connection is lost; gives the `since` of each.
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Instant> {
        (self.open, self.sending) = (0, 0);
        std::mem::take(&mut self.streams).into_iter().flatten().map(|stream| stream.since)
    }

    fn index_of(&self, id: u32) -> Option<usize> {
        (id % 2 == 1).then(|| Some(id.checked_sub(self.first_id)? as usize / 2))?
    }

    /// None for one that has ended; an error for one that never was.
    fn stream_mut(&mut self, id: u32) -> Result<Option<&mut Stream>, ConnectionError> {
        if id >= self.next_id() || (id != 0 && id.is_multiple_of(2)) {
            return Err(ConnectionError::Protocol("a frame on a stream that was never opened"));
        }
        Ok(self.index_of(id).and_then(|index| self.streams.get_mut(index)?.as_mut()))
    }
}

/// What an answer that ended in order comes to.
fn judge(stream: &Stream, answer: AnswerFields, request: &Request) -> Result<u16, StreamError> {
    let status = answer.status.ok_or(StreamError::Malformed("an answer without a status"))?;
    let has_body = !request.is_head && status != 204 && status != 304;
    if has_body && answer.content_length.is_some_and(|length| length != stream.received) {
        return Err(StreamError::Malformed("a body of another length than its content-length"));
    }
    if stream.check.as_ref().is_some_and(|check| !check.is_right(status)) {
        return Err(StreamError::WrongBody);
    }
    if !request.is_grpc || status != 200 {
        return Ok(status);
    }
    match answer.grpc_status {
        None => Err(StreamError::Malformed("a gRPC answer without a grpc-status")),
        Some(0) => {
            let [_, length @ ..] = stream.message_head;
            let whole = GRPC_HEAD_BYTES as u64 + u64::from(u32::from_be_bytes(length));
            // One call, one message: a proxy that loses it must not pass.
            if stream.received == whole { Ok(status) } else { Err(StreamError::Malformed("no whole gRPC message")) }
        }
        Some(status) => Err(StreamError::Grpc(status)),
    }
}
