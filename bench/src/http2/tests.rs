use std::time::Instant;

use super::client::{Client, Ended, Request, StreamError};
use super::frame::{Frame, FrameReader};
use super::server::{Answers, Server};
use super::*;

fn request(body_bytes: usize) -> Request {
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "a")];
    Request::new(&fields, vec![b'x'; body_bytes], false)
}

fn grpc(message_bytes: usize) -> Request {
    let mut body = vec![0];
    body.extend((message_bytes as u32).to_be_bytes());
    body.resize(5 + message_bytes, b'm');
    let path = "/echo.Echo/Unary";
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "a"),
        ("content-type", "application/grpc"),
    ];
    Request::new(&fields, body, true)
}

/// A client and a server without sockets between them.
struct Pair {
    client: Client,
    request: Request,
    to_server: Vec<u8>,
    server: Server,
    answers: Answers,
    to_client: Vec<u8>,
    ended: Vec<Ended>,
}

impl Pair {
    fn new(request: Request, answer_bytes: usize) -> Self {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        let client = Client::new(&request, &mut to_server);
        to_server.drain(..PREFACE.len());
        let answers = Answers::new(answer_bytes);
        let server = Server::new(&answers, &mut to_client);
        let mut pair = Self { client, request, to_server, server, answers, to_client, ended: Vec::new() };
        pair.exchange(usize::MAX);
        pair
    }

    /// Carries bytes in pieces, until neither side has anything to say.
    fn exchange(&mut self, piece_bytes: usize) {
        while !self.to_server.is_empty() || !self.to_client.is_empty() {
            let bytes = std::mem::take(&mut self.to_server);
            for piece in bytes.chunks(piece_bytes.min(bytes.len().max(1))) {
                self.server.receive(piece, &self.answers, &mut self.to_client).unwrap();
            }
            self.server.write_waiting(&self.answers, &mut self.to_client);
            let bytes = std::mem::take(&mut self.to_client);
            for piece in bytes.chunks(piece_bytes.min(bytes.len().max(1))) {
                self.client.receive(piece, &self.request, &mut self.ended, &mut self.to_server).unwrap();
            }
            self.client.write_bodies(&self.request, &mut self.to_server);
        }
    }

    fn send(&mut self) {
        self.client.send(&self.request, Instant::now(), &mut self.to_server);
    }
}

#[test]
fn requests_are_answered_whatever_the_pieces_in_which_they_come() {
    for (request_bytes, answer_bytes) in [(0, 100), (10, 0), (100_000, 3), (3_000_000, 2_500_000)] {
        for piece_bytes in [1_000_000, 4_093, 1] {
            if piece_bytes == 1 && request_bytes > 10 {
                continue;
            }
            let mut pair = Pair::new(request(request_bytes), answer_bytes);
            for _ in 0..3 {
                for _ in 0..4 {
                    pair.send();
                }
                pair.exchange(piece_bytes);
            }
            let outcomes: Vec<_> = pair.ended.iter().map(|ended| ended.outcome).collect();
            assert_eq!(outcomes, [Ok(200); 12], "{request_bytes} {answer_bytes} {piece_bytes}");
            assert_eq!(pair.client.open(), 0);
        }
    }
}

#[test]
fn grpc_messages_come_back_whole() {
    for message_bytes in [0, 100, 2_000_000] {
        let mut pair = Pair::new(grpc(message_bytes), 7);
        for _ in 0..5 {
            pair.send();
        }
        pair.exchange(10_000);
        let outcomes: Vec<_> = pair.ended.iter().map(|ended| ended.outcome).collect();
        assert_eq!(outcomes, [Ok(200); 5], "{message_bytes}");
    }
}

/// A client whose server is the test; its settings have come.
struct Alone {
    client: Client,
    request: Request,
    sent: Vec<u8>,
    ended: Vec<Ended>,
}

fn bytes_of(frames: &[(u8, u8, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, flags, stream, payload) in frames {
        write_frame(*kind, *flags, *stream, payload, &mut bytes);
    }
    bytes
}

impl Alone {
    fn new(request: Request, settings: &[u8], streams: usize) -> Self {
        let mut sent = Vec::new();
        let client = Client::new(&request, &mut sent);
        let mut alone = Self { client, request, sent, ended: Vec::new() };
        alone.receive(&[(kind::SETTINGS, 0, 0, settings)]).unwrap();
        alone.sent.clear();
        for _ in 0..streams {
            alone.client.send(&alone.request, Instant::now(), &mut alone.sent);
        }
        alone
    }

    fn receive(&mut self, frames: &[(u8, u8, u32, &[u8])]) -> Result<(), ConnectionError> {
        self.client.receive(&bytes_of(frames), &self.request, &mut self.ended, &mut self.sent)
    }

    fn outcomes(&self) -> Vec<Result<u16, StreamError>> {
        self.ended.iter().map(|ended| ended.outcome).collect()
    }

    /// Type, stream and length of what was sent since the last call.
    fn take_sent(&mut self) -> Vec<(u8, u32, usize)> {
        let mut frames = Vec::new();
        let mut each = |frame: Frame<'_>| {
            frames.push((frame.kind, frame.stream, frame.payload.len()));
            Ok(())
        };
        FrameReader::default().feed(&std::mem::take(&mut self.sent), &mut each).unwrap();
        frames
    }
}

/// `:status: 200`, from the static table.
const OK: &[u8] = &[0x88];
const END: u8 = flag::END_STREAM;
const WHOLE: u8 = flag::END_HEADERS;

#[test]
fn bodies_stay_within_the_windows_of_the_stream_and_of_the_connection() {
    let small_window = [0, 4, 0, 0, 0x27, 0x10];
    let mut alone = Alone::new(request(50_000), &small_window, 8);
    let data = |sent: &[(u8, u32, usize)]| -> Vec<(u32, usize)> {
        sent.iter().filter(|frame| frame.0 == kind::DATA).map(|frame| (frame.1, frame.2)).collect()
    };
    // Six streams have their window, the seventh what is left of the connection's 65,535 bytes.
    let expected: Vec<_> = [1, 3, 5, 7, 9, 11].map(|id| (id, 10_000)).into_iter().chain([(13, 5_535)]).collect();
    assert_eq!(data(&alone.take_sent()), expected);
    alone.receive(&[(kind::WINDOW_UPDATE, 0, 1, &40_000_u32.to_be_bytes())]).unwrap();
    assert_eq!(data(&alone.take_sent()), []);
    alone.receive(&[(kind::WINDOW_UPDATE, 0, 0, &20_000_u32.to_be_bytes())]).unwrap();
    // Frames of 16,384 bytes at most; the rest of the connection's window.
    assert_eq!(data(&alone.take_sent()), [(1, 16_384), (1, 3_616)]);
    // A smaller window setting takes back what has been given; a larger one gives more.
    alone
        .receive(&[
            (kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]),
            (kind::WINDOW_UPDATE, 0, 0, &100_000_u32.to_be_bytes()),
        ])
        .unwrap();
    assert_eq!(data(&alone.take_sent()), [(1, 10_000)]);
    alone.receive(&[(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0x27, 0x11])]).unwrap();
    assert_eq!(
        data(&alone.take_sent()),
        [(1, 10_000), (3, 1), (5, 1), (7, 1), (9, 1), (11, 1), (13, 4_466), (15, 10_001)]
    );
    let overflow = i32::MAX.to_be_bytes();
    assert_eq!(alone.receive(&[(kind::WINDOW_UPDATE, 0, 0, &overflow)]), Err(ConnectionError::FlowControl));
}

#[test]
fn data_is_given_back_to_the_windows() {
    let mut alone = Alone::new(request(0), &[], 1);
    alone.receive(&[(kind::HEADERS, WHOLE, 1, OK)]).unwrap();
    alone.take_sent();
    let (piece, mut received) = ([0; 16_000], 0);
    let (mut of_stream, mut of_connection) = (0, 0);
    while received < 20_000_000 {
        alone.receive(&[(kind::DATA, 0, 1, &piece)]).unwrap();
        received += piece.len();
        let mut each = |frame: Frame<'_>| {
            let given = frame.number(0)?;
            if frame.stream == 0 {
                of_connection += given
            } else {
                of_stream += given
            }
            Ok(())
        };
        FrameReader::default().feed(&std::mem::take(&mut alone.sent), &mut each).unwrap();
        assert!(received < (STREAM_WINDOW_BYTES + of_stream) as usize);
        assert!(received < (CONNECTION_WINDOW_BYTES + of_connection) as usize);
    }
}

#[test]
fn pings_and_settings_are_acknowledged_and_padding_and_continuations_understood() {
    let mut alone = Alone::new(request(0), &[], 1);
    alone.take_sent();
    alone
        .receive(&[(kind::PING, 0, 0, b"12345678"), (kind::SETTINGS, 0, 0, &[]), (kind::SETTINGS, flag::ACK, 0, &[])])
        .unwrap();
    assert_eq!(alone.take_sent(), [(kind::PING, 0, 8), (kind::SETTINGS, 0, 0)]);
    // 103, and then the answer in three pieces, with padding and priority.
    let early_hints = b"\x08\x03103";
    let padded = [&[2, 0, 0, 0, 0, 9][..], OK, &[0, 0]].concat();
    alone
        .receive(&[
            (kind::HEADERS, WHOLE, 1, early_hints),
            (kind::HEADERS, flag::PADDED | flag::PRIORITY, 1, &padded),
            (kind::CONTINUATION, 0, 1, b"\x0f\x0d"),
            (kind::CONTINUATION, WHOLE, 1, b"\x012"),
            (kind::DATA, END | flag::PADDED, 1, b"\x03ab\0\0\0"),
        ])
        .unwrap();
    assert_eq!(alone.outcomes(), [Ok(200)]);
}

#[test]
fn every_way_in_which_a_stream_fails_is_told_apart() {
    let mut alone = Alone::new(request(0), &[], 6);
    let length_1 = b"\x88\x0f\x0d\x011";
    alone
        .receive(&[
            (kind::RST_STREAM, 0, 1, &7_u32.to_be_bytes()),
            (kind::RST_STREAM, 0, 3, &2_u32.to_be_bytes()),
            (kind::HEADERS, WHOLE, 5, length_1),
            (kind::DATA, END, 5, b"ab"),
            (kind::DATA, END, 7, b"ab"),
            (kind::GOAWAY, 0, 0, &[0, 0, 0, 9, 0, 0, 0, 0]),
            (kind::HEADERS, WHOLE | END, 9, OK),
        ])
        .unwrap();
    assert_eq!(
        alone.outcomes(),
        [
            Err(StreamError::Refused),
            Err(StreamError::Reset(2)),
            Err(StreamError::Malformed("a body of another length than its content-length")),
            Err(StreamError::Malformed("data before the answer's head")),
            Err(StreamError::GoneAway),
            Ok(200),
        ]
    );
    assert!(alone.client.is_ending() && !alone.client.can_send());
}

#[test]
fn a_grpc_answer_needs_its_status_and_its_message() {
    let status = |status: u8| [b"\0\x0bgrpc-status\x01", &[status][..]].concat();
    let (ok, unavailable) = (status(b'0'), [OK, &status(b'9')].concat());
    let no_status = Err(StreamError::Malformed("a gRPC answer without a grpc-status"));
    for (frames, outcome) in [
        (
            &[
                (kind::HEADERS, WHOLE, 1, OK),
                (kind::DATA, 0, 1, &[0, 0, 0, 0, 1, 9]),
                (kind::HEADERS, WHOLE | END, 1, &ok),
            ][..],
            Ok(200),
        ),
        (&[(kind::HEADERS, WHOLE, 1, OK), (kind::DATA, END, 1, &[0, 0, 0, 0, 1, 9])], no_status),
        (&[(kind::HEADERS, WHOLE | END, 1, &unavailable)], Err(StreamError::Grpc(9))),
        (&[(kind::HEADERS, WHOLE | END, 1, &[OK, &ok].concat())], Err(StreamError::Malformed("no whole gRPC message"))),
        // 404 is counted as that.
        (&[(kind::HEADERS, WHOLE | END, 1, &[0x8d])], Ok(404)),
    ] {
        let mut alone = Alone::new(grpc(1), &[], 1);
        alone.receive(frames).unwrap();
        assert_eq!(alone.outcomes(), [outcome]);
    }
}

#[test]
fn what_is_no_http2_ends_the_connection() {
    for frames in [
        &[(kind::HEADERS, 0, 1, OK), (kind::DATA, 0, 1, &b""[..])][..],
        &[(kind::CONTINUATION, WHOLE, 1, OK)],
        &[(kind::HEADERS, WHOLE, 1, &[0xff])],
        &[(kind::HEADERS, WHOLE | flag::PADDED, 1, &[9, 1])],
        &[(kind::DATA, 0, 3, b"")],
        &[(kind::DATA, 0, 0, b"")],
        &[(kind::PUSH_PROMISE, WHOLE, 1, b"\0\0\0\x02")],
        &[(kind::SETTINGS, 0, 0, b"1")],
        &[(kind::PING, 0, 0, b"1")],
        &[(kind::WINDOW_UPDATE, 0, 0, b"1")],
    ] {
        assert!(Alone::new(request(0), &[], 1).receive(frames).is_err(), "{frames:?}");
    }
    let mut fresh = Alone::new(request(0), &[], 0);
    fresh.client = Client::new(&fresh.request, &mut fresh.sent);
    assert!(fresh.receive(&[(kind::PING, 0, 0, b"12345678")]).is_err());
    // An HTTP/1.1 server.
    let text = b"HTTP/1.1 400 Bad Request\r\n\r\n";
    assert!(matches!(
        fresh.client.receive(text, &fresh.request, &mut fresh.ended, &mut fresh.sent),
        Err(ConnectionError::FrameSize(_))
    ));
}

#[test]
fn the_server_says_goodbye_to_what_is_no_http2_and_never_answers_what_it_holds() {
    let answers = Answers::new(1);
    let mut out = Vec::new();
    let mut server = Server::new(&answers, &mut out);
    out.clear();
    // GET /hold, END_STREAM.
    let held = bytes_of(&[(kind::HEADERS, WHOLE | END, 1, b"\x82\x86\x04\x05/hold")]);
    server.receive(&held, &answers, &mut out).unwrap();
    assert!(out.is_empty(), "{out:?}");
    assert!(server.receive(&bytes_of(&[(kind::HEADERS, WHOLE, 2, b"\x82")]), &answers, &mut out).is_err());
    assert_eq!(out[3], kind::GOAWAY);
}
