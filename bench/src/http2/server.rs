//! The server's side: every request gets the same answer, and a gRPC call gets its message back.

use std::ops::Range;

use super::encoder::{Encoder, FieldSet};
use super::frame::{Frame, FrameReader, Settings, begin_frame, end_frame, flag, kind, write_frame};
use super::headers::{HeaderReader, Headers, Summary};
use super::{ConnectionError, SendWindow, Unreturned, WINDOW_BYTES_DEFAULT, code, write_data, write_greeting};
use crate::http::HOLD;
use crate::limits::{
    BACKEND_OUTPUT_BYTES_MAX, BACKEND_STREAMS_MAX, CONNECTION_WINDOW_BYTES, GRPC_MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
};

/// What is answered on all connections.
pub(crate) struct Answers {
    fields: FieldSet,
    body: Vec<u8>,
}

/// Places in the fields of [`Answers`].
const ANSWER: Range<usize> = 0..3;
const GRPC_ANSWER: Range<usize> = 3..5;
const GRPC_OK: Range<usize> = 5..6;
/// A message that is too long: RESOURCE_EXHAUSTED, without a message.
const GRPC_TOO_LONG: Range<usize> = 6..9;

impl Answers {
    pub(crate) fn new(body_bytes: usize) -> Self {
        let fields = FieldSet::new(&[
            (":status", "200"),
            ("content-type", "text/plain"),
            ("content-length", &body_bytes.to_string()),
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", "0"),
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", "8"),
        ]);
        Self { fields, body: vec![b'x'; body_bytes] }
    }
}

/// What has to be known of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct RequestFields {
    is_head: bool,
    is_grpc: bool,
    is_held: bool,
}

impl Summary for RequestFields {
    fn add(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b":method" => self.is_head = value == b"HEAD",
            b":path" => self.is_held = value.starts_with(HOLD.as_bytes()),
            b"content-type" => self.is_grpc = value.starts_with(b"application/grpc"),
            _ => {}
        }
    }
}

/// A request that has not been answered wholly.
struct Stream {
    id: u32,
    request: RequestFields,
    /// What came of a gRPC call.
    message: Vec<u8>,
    unreturned: Unreturned,
    window: SendWindow,
    /// Bytes of the answer's body that have been written; none before its head.
    sent: Option<usize>,
}

/// A connection.
pub(crate) struct Server {
    frames: FrameReader,
    headers: HeaderReader<RequestFields>,
    encoder: Encoder,
    peer: Settings,
    streams: Vec<Stream>,
    /// How many of the streams have answers that wait for a window.
    waiting: usize,
    last_id: u32,
    window: SendWindow,
    unreturned: Unreturned,
    /// Buffers of messages that are answered.
    spare: Vec<Vec<u8>>,
}

impl Server {
    /// Appends what the connection begins with.
    pub(crate) fn new(answers: &Answers, out: &mut Vec<u8>) -> Self {
        write_greeting(&[(Settings::MAX_CONCURRENT_STREAMS, BACKEND_STREAMS_MAX)], out);
        Self {
            frames: FrameReader::default(),
            headers: HeaderReader::new(),
            encoder: Encoder::new(&answers.fields),
            peer: Settings::new(),
            streams: Vec::new(),
            waiting: 0,
            last_id: 0,
            window: SendWindow::new(WINDOW_BYTES_DEFAULT),
            unreturned: Unreturned::default(),
            spare: Vec::new(),
        }
    }

    /// Takes bytes from the client, from after its preface on, and appends the answers. After an error the connection has to be closed; a GOAWAY that
    /// says why is appended.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        answers: &Answers,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        let result = self.receive_all(bytes, answers, out);
        if result.is_err() {
            let text = [self.last_id.to_be_bytes(), code::PROTOCOL_ERROR.to_be_bytes()].concat();
            write_frame(kind::GOAWAY, 0, 0, &text, out);
        }
        result
    }

    fn receive_all(&mut self, bytes: &[u8], answers: &Answers, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let mut frames = std::mem::take(&mut self.frames);
        let result = frames.feed(bytes, |frame| self.take_frame(&frame, answers, out));
        self.frames = frames;
        result?;
        self.write_waiting(answers, out);
        Ok(())
    }

    fn take_frame(&mut self, frame: &Frame<'_>, answers: &Answers, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        self.headers.check_order(frame)?;
        match frame.kind {
            kind::DATA => self.take_data(frame, answers, out),
            kind::HEADERS | kind::CONTINUATION => match self.headers.take(frame)? {
                Some(headers) => self.take_headers(&headers, answers, out),
                None => Ok(()),
            },
            kind::RST_STREAM => {
                if let Some(index) = self.index_of(frame.stream) {
                    self.remove(index);
                }
                Ok(())
            }
            kind::SETTINGS if frame.has(flag::ACK) => Ok(()),
            kind::SETTINGS => {
                let change = self.peer.apply(frame.payload)?;
                self.streams.iter_mut().try_for_each(|stream| stream.window.add(change))?;
                self.encoder.set_table_size(self.peer.header_table_size);
                write_frame(kind::SETTINGS, flag::ACK, 0, &[], out);
                Ok(())
            }
            kind::PING if frame.payload.len() != 8 => Err(ConnectionError::FrameSize(frame.payload.len())),
            kind::PING if !frame.has(flag::ACK) => {
                write_frame(kind::PING, flag::ACK, 0, frame.payload, out);
                Ok(())
            }
            kind::WINDOW_UPDATE => {
                let bytes = i64::from(frame.number(0)? & 0x7fff_ffff);
                match self.index_of(frame.stream) {
                    _ if frame.stream == 0 => self.window.add(bytes),
                    Some(index) => self.streams[index].window.add(bytes),
                    None => Ok(()),
                }
            }
            // PRIORITY, GOAWAY of a client that is about to close, and extensions.
            _ => Ok(()),
        }
    }

    fn take_headers(
        &mut self,
        headers: &Headers<RequestFields>,
        answers: &Answers,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        if headers.stream <= self.last_id {
            // Trailers of a request, which end it.
            return match self.index_of(headers.stream) {
                Some(index) if headers.end_stream => self.answer(index, answers, out),
                _ => Ok(()),
            };
        }
        if headers.stream.is_multiple_of(2) {
            return Err(ConnectionError::Protocol("a stream that a client cannot open"));
        }
        self.last_id = headers.stream;
        if headers.summary.is_held {
            return Ok(());
        }
        self.streams.push(Stream {
            id: headers.stream,
            request: headers.summary,
            message: if headers.summary.is_grpc { self.spare.pop().unwrap_or_default() } else { Vec::new() },
            unreturned: Unreturned::default(),
            window: SendWindow::new(self.peer.initial_window_size),
            sent: None,
        });
        if headers.end_stream { self.answer(self.streams.len() - 1, answers, out) } else { Ok(()) }
    }

    fn take_data(&mut self, frame: &Frame<'_>, answers: &Answers, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let content = frame.content()?;
        if frame.stream > self.last_id || frame.stream == 0 {
            return Err(ConnectionError::Protocol("data on a stream that was never opened"));
        }
        self.unreturned.take(frame.payload.len(), CONNECTION_WINDOW_BYTES, 0, out);
        let Some(index) = self.index_of(frame.stream) else { return Ok(()) };
        let stream = &mut self.streams[index];
        if stream.request.is_grpc && stream.message.len() <= GRPC_MESSAGE_BYTES_MAX {
            stream.message.extend_from_slice(content);
        }
        if frame.has(flag::END_STREAM) {
            return self.answer(index, answers, out);
        }
        stream.unreturned.take(frame.payload.len(), STREAM_WINDOW_BYTES, frame.stream, out);
        Ok(())
    }

    /// The request is whole.
    fn answer(&mut self, index: usize, answers: &Answers, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let stream = &mut self.streams[index];
        if stream.sent.is_some() {
            return Err(ConnectionError::Protocol("a request that ends twice"));
        }
        let too_long = stream.message.len() > GRPC_MESSAGE_BYTES_MAX;
        let (positions, ends) = match stream.request {
            RequestFields { is_grpc: true, .. } if too_long => (GRPC_TOO_LONG, true),
            RequestFields { is_grpc: true, .. } => (GRPC_ANSWER, false),
            RequestFields { is_head, .. } => (ANSWER, is_head || answers.body.is_empty()),
        };
        write_headers(stream.id, &mut self.encoder, answers, positions, ends, out);
        stream.sent = Some(0);
        self.waiting += 1;
        if ends {
            self.remove(index);
        } else {
            self.write_answer(index, answers, out);
        }
        Ok(())
    }

    /// Appends what the windows let through of an answer's body; true if the stream has ended with it.
    fn write_answer(&mut self, index: usize, answers: &Answers, out: &mut Vec<u8>) -> bool {
        let stream = &mut self.streams[index];
        let Some(sent) = &mut stream.sent else { return false };
        let is_grpc = stream.request.is_grpc;
        let body = if is_grpc { &stream.message } else { &answers.body };
        let windows = [&mut stream.window, &mut self.window];
        *sent += write_data(stream.id, &body[*sent..], !is_grpc, windows, self.peer.max_frame_size, out);
        if *sent < body.len() {
            return false;
        }
        if is_grpc {
            write_headers(stream.id, &mut self.encoder, answers, GRPC_OK, true, out);
        }
        self.remove(index);
        true
    }

    /// Appends what the windows let through of the bodies that are left, up to a bound: call it again when `out` is sent.
    pub(crate) fn write_waiting(&mut self, answers: &Answers, out: &mut Vec<u8>) {
        let mut index = 0;
        while self.waiting > 0 && index < self.streams.len() && self.window.bytes() > 0 {
            if out.len() >= BACKEND_OUTPUT_BYTES_MAX {
                return;
            }
            // Another stream takes the place of one that has ended.
            if !self.write_answer(index, answers, out) {
                index += 1;
            }
        }
    }

    fn remove(&mut self, index: usize) {
        let mut stream = self.streams.swap_remove(index);
        if stream.sent.is_some() {
            self.waiting -= 1;
        }
        if stream.message.capacity() > 0 {
            stream.message.clear();
            self.spare.push(stream.message);
        }
    }

    /// The latest ones are asked for most.
    fn index_of(&self, id: u32) -> Option<usize> {
        self.streams.iter().rposition(|stream| stream.id == id)
    }
}

fn write_headers(
    stream: u32,
    encoder: &mut Encoder,
    answers: &Answers,
    positions: Range<usize>,
    ends: bool,
    out: &mut Vec<u8>,
) {
    let end_stream = if ends { flag::END_STREAM } else { 0 };
    let start = begin_frame(kind::HEADERS, flag::END_HEADERS | end_stream, stream, out);
    encoder.write(&answers.fields, positions, out);
    end_frame(start, out);
}
