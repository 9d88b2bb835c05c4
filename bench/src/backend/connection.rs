//! One connection of the backend: what it speaks, and its output.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};

use crate::http::{RequestDecoder, RequestEvent};
use crate::http2::PREFACE;
use crate::http2::server::{Answers, Server};
use crate::limits::{BACKEND_COPIED_BYTES_MAX, BACKEND_OUTPUT_BYTES_MAX};
use crate::poller::{Interest, Poller, Token};
use crate::tls::Socket;

/// The responses, encoded once.
pub(super) struct Responses {
    whole: Vec<u8>,
    head_bytes: usize,
    whole_then_close: Vec<u8>,
    head_bytes_then_close: usize,
    http2: Answers,
}

impl Responses {
    pub(super) fn new(body_bytes: usize) -> Self {
        let encode = |extra: &str| {
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{extra}content-length: {body_bytes}\r\n\r\n");
            let head_bytes = head.len();
            let mut whole = head.into_bytes();
            whole.resize(head_bytes + body_bytes, b'x');
            (whole, head_bytes)
        };
        let (whole, head_bytes) = encode("");
        let (whole_then_close, head_bytes_then_close) = encode("connection: close\r\n");
        Self { whole, head_bytes, whole_then_close, head_bytes_then_close, http2: Answers::new(body_bytes) }
    }

    fn answer(&self, is_head: bool, keep_alive: bool) -> &[u8] {
        let (whole, head_bytes) = if keep_alive {
            (&self.whole, self.head_bytes)
        } else {
            (&self.whole_then_close, self.head_bytes_then_close)
        };
        if is_head { &whole[..head_bytes] } else { whole }
    }
}

const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What the client speaks.
enum Protocol {
    /// So far what HTTP/2 begins with: this many bytes of it.
    Unknown(usize),
    Http1(RequestDecoder),
    /// A request that is never answered: what comes after it is not read as requests.
    Held,
    Http2(Box<Server>),
}

/// What is to be sent behind the output.
enum Piece {
    /// A large response, of which no connection has a copy: thousands that nobody reads would cost more than what they are to try.
    Answer { keep_alive: bool },
    /// What follows such.
    Own(Vec<u8>),
}

pub(super) struct Connection {
    socket: Socket,
    turn: u32,
    protocol: Protocol,
    /// Responses that the socket did not take yet; the first `sent` bytes of them are gone.
    output: Vec<u8>,
    sent: usize,
    /// After the output; of the first one, if it is an answer, so many bytes are gone.
    pieces: VecDeque<Piece>,
    answered: usize,
    interest: Interest,
    /// After the output the connection ends.
    closing: bool,
}

impl Connection {
    pub(super) fn new(socket: Socket, turn: u32) -> Self {
        Self {
            socket,
            turn,
            protocol: Protocol::Unknown(0),
            output: Vec::new(),
            sent: 0,
            pieces: VecDeque::new(),
            answered: 0,
            interest: Interest::Read,
            closing: false,
        }
    }

    /// Which use of its slot it is.
    pub(super) fn turn(&self) -> u32 {
        self.turn
    }

    /// Reads and answers; false once the connection is of no more use.
    pub(super) fn receive(&mut self, responses: &Responses, buffer: &mut [u8]) -> bool {
        while !self.closing && self.unsent(responses) < BACKEND_OUTPUT_BYTES_MAX {
            let count = match self.socket.read(buffer) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            };
            self.answer(responses, &buffer[..count]);
            if !self.flush(responses) {
                return false;
            }
            if count < buffer.len() {
                break;
            }
        }
        true
    }

    /// Appends the responses to all requests that end in `bytes`.
    fn answer(&mut self, responses: &Responses, bytes: &[u8]) {
        match &mut self.protocol {
            Protocol::Unknown(begun) => {
                let begun = *begun;
                self.find_out(begun, responses, bytes);
            }
            Protocol::Http1(_) => self.answer_http1(responses, bytes),
            Protocol::Held => {}
            Protocol::Http2(server) => {
                self.closing = server.receive(bytes, &responses.http2, &mut self.output).is_err();
            }
        }
    }

    /// HTTP/2 if it begins with its preface, HTTP/1.1 if not. No method begins with more than its first byte.
    fn find_out(&mut self, begun: usize, responses: &Responses, bytes: &[u8]) {
        let more = &PREFACE[begun..][..bytes.len().min(PREFACE.len() - begun)];
        if !bytes.starts_with(more) {
            self.protocol = Protocol::Http1(RequestDecoder::default());
            self.answer_http1(responses, &PREFACE[..begun]);
            self.answer_http1(responses, bytes);
        } else if begun + more.len() < PREFACE.len() {
            self.protocol = Protocol::Unknown(begun + more.len());
        } else {
            let mut server = Server::new(&responses.http2, &mut self.output);
            self.closing = server.receive(&bytes[more.len()..], &responses.http2, &mut self.output).is_err();
            self.protocol = Protocol::Http2(Box::new(server));
        }
    }

    fn answer_http1(&mut self, responses: &Responses, mut bytes: &[u8]) {
        while !self.closing {
            let Protocol::Http1(decoder) = &mut self.protocol else { return };
            match decoder.next(bytes) {
                Ok((_, RequestEvent::NeedMore)) => return,
                Ok((used, RequestEvent::ExpectsContinue)) => {
                    bytes = &bytes[used..];
                    self.append(CONTINUE);
                }
                Ok((_, RequestEvent::Complete(request))) if request.is_held => self.protocol = Protocol::Held,
                Ok((used, RequestEvent::Complete(request))) => {
                    bytes = &bytes[used..];
                    self.closing = !request.keep_alive;
                    let answer = responses.answer(request.is_head, request.keep_alive);
                    if answer.len() > BACKEND_COPIED_BYTES_MAX {
                        self.pieces.push_back(Piece::Answer { keep_alive: request.keep_alive });
                    } else {
                        self.append(answer);
                    }
                }
                Err(_) => {
                    self.append(BAD_REQUEST);
                    self.closing = true;
                }
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        match self.pieces.back_mut() {
            None => self.output.extend_from_slice(bytes),
            Some(Piece::Own(own)) => own.extend_from_slice(bytes),
            Some(Piece::Answer { .. }) => self.pieces.push_back(Piece::Own(bytes.to_vec())),
        }
    }

    /// Bytes that are still to be sent.
    fn unsent(&self, responses: &Responses) -> usize {
        let len = |piece: &Piece| match piece {
            Piece::Answer { keep_alive } => responses.answer(false, *keep_alive).len(),
            Piece::Own(own) => own.len(),
        };
        self.output.len() - self.sent + self.pieces.iter().map(len).sum::<usize>() - self.answered
    }

    /// Sends what the socket takes; false once the connection is of no more use.
    pub(super) fn flush(&mut self, responses: &Responses) -> bool {
        loop {
            if self.sent == self.output.len() {
                self.output.clear();
                self.sent = 0;
                if let Some(Piece::Own(own)) = self.pieces.pop_front_if(|piece| matches!(piece, Piece::Own(_))) {
                    self.output = own;
                }
                if let (Protocol::Http2(server), false) = (&mut self.protocol, self.closing) {
                    server.write_waiting(&responses.http2, &mut self.output);
                }
            }
            let step = match (&self.output[self.sent..], self.pieces.front()) {
                ([], Some(Piece::Answer { keep_alive })) => {
                    let answer = responses.answer(false, *keep_alive);
                    self.socket.write(&answer[self.answered..]).map(|count| {
                        self.answered += count;
                        if self.answered == answer.len() {
                            self.answered = 0;
                            self.pieces.pop_front();
                        }
                    })
                }
                ([], _) if !self.socket.has_output() => break,
                ([], _) => self.socket.flush(),
                (left, _) => self.socket.write(left).map(|count| self.sent += count),
            };
            match step {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        if self.closing {
            self.socket.close();
        }
        !self.closing
    }

    pub(super) fn update_interest(&mut self, responses: &Responses, poller: &Poller, token: Token) -> bool {
        let unsent = self.unsent(responses);
        let wanted = match unsent {
            0 if !self.socket.has_output() => Interest::Read,
            _ if self.closing || unsent >= BACKEND_OUTPUT_BYTES_MAX => Interest::Write,
            _ => Interest::ReadWrite,
        };
        if wanted == self.interest {
            return true;
        }
        self.interest = wanted;
        poller.modify(&self.socket, token, wanted).is_ok()
    }
}
