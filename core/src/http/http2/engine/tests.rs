mod turns;

use std::cell::Cell;
use std::rc::Rc;

use super::super::frame::{FRAME_HEADER_BYTES, FrameHeader, kind};
use super::super::hpack::{encode, encode_status};
use super::super::{Code, Fault};
use super::*;
use crate::http::head::BodyFraming;
use crate::limits::{HTTP2_PREMATURE_RESETS_MAX, HTTP2_STREAM_WINDOW_BYTES};

/// Both sides of a connection.
struct Pair {
    server: Engine<()>,
    client: Engine<()>,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    scratch: Scratch,
}

impl Pair {
    fn new() -> Self {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        let server = Engine::new(Role::Server, &mut to_client);
        let client = Engine::new(Role::Client, &mut to_server);
        let mut pair = Self { server, client, to_server, to_client, scratch: Scratch::default() };
        pair.exchange();
        pair
    }

    /// Moves bytes until nothing is left to move.
    fn exchange(&mut self) {
        while !(self.to_server.is_empty() && self.to_client.is_empty()) {
            let bytes = std::mem::take(&mut self.to_server);
            receive(&mut self.server, &bytes, &mut self.scratch, &mut self.to_client).unwrap();
            let bytes = std::mem::take(&mut self.to_client);
            receive(&mut self.client, &bytes, &mut self.scratch, &mut self.to_server).unwrap();
        }
    }

    fn request(&mut self, method: &str, ends: bool, fields: &[(&str, &str)]) -> StreamKey {
        let all = [(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "echo")];
        let opened = self.client.open((), Method::named(method.as_bytes()), None, ends, &mut self.to_server, |out| {
            all.iter().chain(fields).for_each(|(name, value)| encode(out, name.as_bytes(), value.as_bytes(), false));
        });
        self.exchange();
        opened.unwrap()
    }

    fn opened(&mut self) -> Opening {
        match self.server.next_event() {
            Some(Event::Opened(opening)) => opening,
            other => panic!("{other:?} instead of a request"),
        }
    }

    /// All that the server can read of a stream, given on as if it had been read.
    fn read(&mut self, key: StreamKey) -> Result<String, Fault> {
        read(&mut self.server, key, &mut self.to_client)
    }
}

fn receive(
    engine: &mut Engine<()>,
    bytes: &[u8],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<(), ConnectionError> {
    let mut at = 0;
    while at < bytes.len() {
        // As if it had been written meanwhile.
        let mut said = Vec::new();
        at += engine.receive(&bytes[at..], scratch, &mut said)?;
        out.append(&mut said);
    }
    Ok(())
}

fn read(engine: &mut Engine<()>, key: StreamKey, out: &mut Vec<u8>) -> Result<String, Fault> {
    let mut text = Vec::new();
    while let Piece::Bytes(bytes) = engine.piece(key)? {
        let count = bytes.len();
        text.extend_from_slice(bytes);
        engine.consume(key, count, out);
    }
    Ok(String::from_utf8(text).unwrap())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    FrameHeader { len: payload.len(), kind, flags, stream }.write(&mut out);
    out.extend_from_slice(payload);
    out
}

/// A server to which a client has said hello, and then `frames`.
fn after(frames: &[u8]) -> (Engine<()>, Vec<u8>, Result<(), ConnectionError>) {
    let mut out = Vec::new();
    let mut server = Engine::new(Role::Server, &mut out);
    let hello = [PREFACE, &frame(kind::SETTINGS, 0, 0, b"")].concat();
    let mut scratch = Scratch::default();
    receive(&mut server, &hello, &mut scratch, &mut out).unwrap();
    out.clear();
    let result = receive(&mut server, frames, &mut scratch, &mut out);
    (server, out, result)
}

fn get(stream: u32, flags: u8) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "echo")] {
        encode(&mut block, name.as_bytes(), value.as_bytes(), false);
    }
    frame(kind::HEADERS, flags, stream, &block)
}

#[test]
fn a_request_and_its_response_are_text_on_both_sides() {
    let mut pair = Pair::new();
    let key = pair.request("POST", false, &[("x-a", "1")]);
    pair.client.data(key, b"hello", false, &mut pair.to_server);
    pair.client.data(key, b" world", false, &mut pair.to_server);
    pair.client.section(key, true, true, &mut pair.to_server, |out| encode(out, b"x-end", b"here", false));
    pair.exchange();
    let opening = pair.opened();
    assert_eq!(opening.shape.unwrap().framing, BodyFraming::Chunked);
    let text = pair.read(opening.key).unwrap();
    let expected = "POST / HTTP/1.1\r\nhost: echo\r\nx-a: 1\r\ntransfer-encoding: chunked\r\n\r\n\
                    b\r\nhello world\r\n0\r\nx-end: here\r\n\r\n";
    assert_eq!(text, expected);
    assert_eq!(pair.server.piece(opening.key), Ok(Piece::End));

    pair.server.section(opening.key, true, false, &mut pair.to_client, |out| {
        encode_status(out, 200);
        encode(out, b"content-length", b"2", false);
    });
    pair.server.data(opening.key, b"ok", true, &mut pair.to_client);
    pair.server.release(opening.key, &mut pair.to_client);
    pair.exchange();
    let text = read(&mut pair.client, key, &mut pair.to_server).unwrap();
    assert_eq!(text, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert_eq!(pair.client.piece(key), Ok(Piece::End));
    pair.client.release(key, &mut pair.to_server);
    assert!(pair.to_server.is_empty(), "a stream that is done is not reset");
    assert!(pair.client.is_idle() && pair.server.is_idle());
    assert_eq!((pair.client.waiting_bytes(), pair.server.waiting_bytes()), (0, 0));
}

#[test]
fn a_message_whose_length_is_belied_never_looks_whole() {
    let mut pair = Pair::new();
    let key = pair.request("POST", false, &[("content-length", "3")]);
    pair.client.data(key, b"abc", false, &mut pair.to_server);
    pair.exchange();
    let opening = pair.opened();
    assert!(pair.read(opening.key).unwrap().ends_with("\r\n\r\nab"), "the last byte waits for END_STREAM");
    pair.client.data(key, b"d", true, &mut pair.to_server);
    pair.exchange();
    let fault = pair.read(opening.key).unwrap_err();
    assert!(matches!(fault, Fault::Broken(Code::PROTOCOL_ERROR, _)), "{fault}");
    assert!(matches!(pair.client.fault(key), Some(Fault::Reset(Code::PROTOCOL_ERROR))));
}

#[test]
fn who_reads_slowly_bounds_who_sends() {
    let mut pair = Pair::new();
    let key = pair.request("POST", false, &[]);
    let opening = pair.opened();
    let mut sent = 0;
    while let Room::Bytes(room) = pair.client.room(key, &pair.to_server) {
        pair.client.data(key, &vec![1; room], false, &mut pair.to_server);
        sent += room;
        pair.exchange();
    }
    assert_eq!(sent, HTTP2_STREAM_WINDOW_BYTES as usize);
    assert!(pair.server.waiting_bytes() >= sent);
    let _ = pair.read(opening.key).unwrap();
    pair.exchange();
    assert!(matches!(pair.client.room(key, &pair.to_server), Room::Bytes(_)), "what was read may be sent again");
}

#[test]
fn a_connection_window_is_given_back_also_where_nobody_reads() {
    let mut pair = Pair::new();
    // Far more than one window of the connection, on streams that are reset with what they hold.
    for _ in 0..200 {
        let key = pair.request("POST", false, &[]);
        let opening = pair.opened();
        while let Room::Bytes(room) = pair.client.room(key, &pair.to_server) {
            pair.client.data(key, &vec![1; room], false, &mut pair.to_server);
            pair.exchange();
        }
        pair.server.release(opening.key, &mut pair.to_client);
        pair.exchange();
        pair.client.release(key, &mut pair.to_server);
        pair.exchange();
    }
    assert_eq!(pair.server.waiting_bytes(), 0);
}

#[test]
fn a_server_that_leaves_takes_what_is_on_its_way_and_then_no_more() {
    let mut pair = Pair::new();
    pair.server.leave(&mut pair.to_client);
    let crossing = pair.client.open((), Method::Get, None, true, &mut pair.to_server, |out| {
        for (name, value) in [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "echo")] {
            encode(out, name.as_bytes(), value.as_bytes(), false);
        }
    });
    pair.exchange();
    let opening = pair.opened();
    assert_eq!(pair.client.fault(crossing.unwrap()), None);
    assert!(!pair.client.is_open() && !pair.server.is_done());
    pair.server.release(opening.key, &mut pair.to_client);
    assert!(pair.server.is_done());
}

#[test]
fn what_a_goaway_leaves_out_was_not_processed() {
    let mut pair = Pair::new();
    let (first, second) = (pair.request("POST", true, &[]), pair.request("POST", true, &[]));
    let goaway = frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
    receive(&mut pair.client, &goaway, &mut pair.scratch, &mut pair.to_server).unwrap();
    assert_eq!(pair.client.fault(first), None);
    assert!(pair.client.fault(second).unwrap().is_unprocessed());
    pair.client.lose();
    assert_eq!(pair.client.fault(first), Some(Fault::Lost));
}

#[test]
fn any_split_of_the_bytes_means_the_same() {
    let padded = [&[3][..], b"abc", &[0; 3]].concat();
    let bytes = [
        PREFACE,
        &frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 9]),
        &get(1, 0x4),
        &frame(kind::DATA, 0x8, 1, &padded),
        &frame(kind::PING, 0, 0, &[9; 8]),
        &frame(kind::DATA, 0x1, 1, b"end"),
    ]
    .concat();
    for size in 1..bytes.len() {
        let mut out = Vec::new();
        let mut server: Engine<()> = Engine::new(Role::Server, &mut out);
        let mut scratch = Scratch::default();
        for part in bytes.chunks(size) {
            receive(&mut server, part, &mut scratch, &mut out).unwrap();
        }
        let Some(Event::Opened(opening)) = server.next_event() else { panic!("no request in pieces of {size}") };
        let text = read(&mut server, opening.key, &mut out).unwrap();
        assert!(text.ends_with("6\r\nabcend\r\n0\r\n\r\n"), "{text}");
        assert!(out.windows(8).any(|window| window == [9; 8]), "the PING is answered");
    }
}

#[test]
fn errors_have_the_codes_of_rfc_9113() {
    let ends = 0x5;
    let cases: [(&str, Vec<u8>, Code); 14] = [
        ("an unknown index", frame(kind::HEADERS, ends, 1, &[0xff, 0x7f]), Code::COMPRESSION_ERROR),
        ("a frame that is too large", frame(kind::DATA, 0, 1, &[0; 16_385]), Code::FRAME_SIZE_ERROR),
        ("SETTINGS of 5 bytes", frame(kind::SETTINGS, 0, 0, &[0; 5]), Code::FRAME_SIZE_ERROR),
        ("PING of 7 bytes", frame(kind::PING, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
        ("RST_STREAM of 3 bytes", [get(1, 4), frame(kind::RST_STREAM, 0, 1, &[0; 3])].concat(), Code::FRAME_SIZE_ERROR),
        ("PRIORITY of 4 bytes", frame(kind::PRIORITY, 0, 1, &[0; 4]), Code::FRAME_SIZE_ERROR),
        ("a window above 2^31-1", frame(kind::SETTINGS, 0, 0, &[0, 4, 255, 255, 255, 255]), Code::FLOW_CONTROL_ERROR),
        (
            "a connection's window that overflows",
            frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
            Code::FLOW_CONTROL_ERROR,
        ),
        ("PUSH_PROMISE", frame(kind::PUSH_PROMISE, 4, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        ("DATA of a stream that nobody has opened", frame(kind::DATA, 0, 1, b"x"), Code::PROTOCOL_ERROR),
        ("an even stream", get(2, ends), Code::PROTOCOL_ERROR),
        ("a stream that was passed over", [get(5, ends), get(3, ends)].concat(), Code::PROTOCOL_ERROR),
        (
            "HEADERS behind RST_STREAM",
            [get(1, 4), frame(kind::RST_STREAM, 0, 1, &[0; 4]), get(1, ends)].concat(),
            Code::STREAM_CLOSED,
        ),
        (
            "endless CONTINUATION",
            {
                let mut bytes = get(1, 0);
                (0..70).for_each(|_| bytes.extend(frame(kind::CONTINUATION, 0, 1, b"")));
                bytes
            },
            Code::ENHANCE_YOUR_CALM,
        ),
    ];
    for (what, bytes, code) in cases {
        let (_, _, result) = after(&bytes);
        assert_eq!(result.expect_err(what).code, code, "{what}");
    }
}

#[test]
fn errors_of_a_stream_end_it_alone() {
    let resets = |out: &[u8], stream: u32, code: Code| {
        let reset = [frame(kind::RST_STREAM, 0, stream, &code.0.to_be_bytes())].concat();
        out.windows(FRAME_HEADER_BYTES + 4).any(|window| window == reset)
    };
    let upper = {
        let mut block = Vec::new();
        encode(&mut block, b":method", b"GET", false);
        block.extend_from_slice(b"\x00\x01X\x01y");
        frame(kind::HEADERS, 5, 1, &block)
    };
    let cases: [(&str, Vec<u8>, Code); 5] = [
        ("an upper-case name", upper, Code::PROTOCOL_ERROR),
        ("DATA behind END_STREAM", [get(1, 5), frame(kind::DATA, 0, 1, b"x")].concat(), Code::STREAM_CLOSED),
        ("HEADERS behind END_STREAM", [get(1, 5), get(1, 5)].concat(), Code::STREAM_CLOSED),
        (
            "a window that overflows",
            [get(1, 5), frame(kind::WINDOW_UPDATE, 0, 1, &[0x7f, 255, 255, 255])].concat(),
            Code::FLOW_CONTROL_ERROR,
        ),
        (
            "trailers that go on",
            [get(1, 4), frame(kind::HEADERS, 4, 1, b"\x00\x01x\x01y")].concat(),
            Code::PROTOCOL_ERROR,
        ),
    ];
    for (what, bytes, code) in cases {
        let (server, out, result) = after(&[bytes, get(3, 5)].concat());
        assert_eq!(result, Ok(()), "{what}");
        assert!(resets(&out, 1, code), "{what}");
        assert!(server.streams.find(3).is_some(), "{what}: the next stream is taken");
    }
}

#[test]
fn a_tunnel_takes_nothing_but_data() {
    let mut pair = Pair::new();
    let opened = pair.client.open((), Method::Connect, None, false, &mut pair.to_server, |out| {
        encode(out, b":method", b"CONNECT", false);
        encode(out, b":authority", b"echo:443", false);
    });
    let key = opened.unwrap();
    pair.exchange();
    let opening = pair.opened();
    pair.client.data(key, b"up", false, &mut pair.to_server);
    pair.client.section(key, true, true, &mut pair.to_server, |out| encode(out, b"x-end", b"here", false));
    pair.exchange();
    let fault = loop {
        match pair.read(opening.key) {
            Ok(text) => assert!(text.ends_with("up"), "{text}"),
            Err(fault) => break fault,
        }
    };
    assert!(matches!(fault, Fault::Broken(Code::PROTOCOL_ERROR, _)), "{fault}");
}

#[test]
fn requests_that_are_taken_back_at_once_end_their_connection() {
    let (mut server, mut out, _) = after(b"");
    let mut scratch = Scratch::default();
    for count in 1.. {
        let stream = 2 * count - 1;
        let bytes = [get(stream, 5), frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
        let result = receive(&mut server, &bytes, &mut scratch, &mut out);
        if let Err(error) = result {
            assert_eq!((error.code, u64::from(count)), (Code::ENHANCE_YOUR_CALM, HTTP2_PREMATURE_RESETS_MAX + 1));
            return;
        }
        let Some(Event::Opened(opening)) = server.next_event() else { panic!("no request") };
        assert!(server.is_cancelled(opening.key));
        server.release(opening.key, &mut out);
    }
}

#[test]
fn where_there_is_no_memory_a_request_that_nobody_reads_ends() {
    let mut pair = Pair::new();
    let open = |pair: &mut Pair| (pair.request("POST", false, &[]), pair.opened().key);
    let (read, unread) = (open(&mut pair), open(&mut pair));
    pair.server.crowd(true);
    for (ours, theirs) in [read, unread] {
        pair.client.data(ours, &[b'x'; 1_000], false, &mut pair.to_server);
        pair.exchange();
        assert_eq!(pair.server.fault(theirs), None, "one frame has room");
    }
    while pair.read(read.1).is_ok_and(|text| !text.is_empty()) {}
    for (ours, _) in [read, unread] {
        pair.client.data(ours, &[b'x'; 1_000], false, &mut pair.to_server);
    }
    pair.exchange();
    assert_eq!(pair.server.fault(read.1), None);
    assert_eq!(pair.server.fault(unread.1), Some(Fault::Given(Code::ENHANCE_YOUR_CALM)));
    assert_eq!(pair.client.fault(unread.0), Some(Fault::Reset(Code::ENHANCE_YOUR_CALM)));
    assert_eq!(pair.server.next_event(), Some(Event::Crowded));
    assert!(pair.server.waiting_bytes() < 4_000, "{} bytes", pair.server.waiting_bytes());
    // Late data of it are no error, and there is room again for others.
    pair.server.crowd(false);
    pair.client.data(read.0, &[b'x'; 1_000], true, &mut pair.to_server);
    pair.exchange();
    assert_eq!((pair.server.fault(read.1), pair.server.has_failed()), (None, false));
}

#[test]
fn a_smaller_table_is_acknowledged_in_the_next_block() {
    let mut pair = Pair::new();
    let smaller = frame(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]);
    receive(&mut pair.client, &smaller, &mut pair.scratch, &mut pair.to_server).unwrap();
    pair.to_server.clear();
    let opened =
        pair.client.open((), Method::Get, None, true, &mut pair.to_server, |out| encode(out, b"x", b"y", false));
    assert!(opened.is_ok());
    assert_eq!(pair.to_server[FRAME_HEADER_BYTES], 0x20);
}

#[test]
fn large_heads_go_out_in_several_frames() {
    let mut pair = Pair::new();
    let value = "v".repeat(15_000);
    pair.request("GET", true, &[("x-1", &value), ("x-2", &value), ("x-3", &value)]);
    let opening = pair.opened();
    assert_eq!(pair.read(opening.key).unwrap().matches(&value).count(), 3);
}

/// Counts how often it was woken.
#[derive(Debug, Default)]
struct Woken(Rc<Cell<usize>>);

impl Wake for Woken {
    fn wake(&self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn a_head_that_waits_for_room_is_woken_also_where_the_window_of_the_connection_is_spent() {
    let mut out = Vec::new();
    let mut server: Engine<Woken> = Engine::new(Role::Server, &mut out);
    // A stream's window is larger than the connection's.
    let settings = frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 2, 0, 0]);
    let hello = [PREFACE, &settings, &get(1, 5), &get(3, 5)].concat();
    let mut scratch = Scratch::default();
    assert_eq!(server.receive(&hello, &mut scratch, &mut out), Ok(hello.len()));
    let mut next = || match server.next_event() {
        Some(Event::Opened(opening)) => opening.key,
        other => panic!("{other:?}"),
    };
    let (first, second) = (next(), next());
    server.section(first, true, false, &mut out, |out| encode_status(out, 200));
    loop {
        match server.room(first, &out) {
            Room::Bytes(room) => server.data(first, &vec![0; room], false, &mut out),
            // It is written.
            Room::Wait if server.send_window > 0 => out.clear(),
            _ => break,
        }
    }
    // So much is to be written that a head has to wait.
    out.resize(2 * BUFFER_BYTES, 0);
    assert!(!server.head_room(second, &out));
    let before = server.waiter(second).unwrap().0.get();
    out.clear();
    server.wake_queued(usize::MAX);
    assert!(server.waiter(second).unwrap().0.get() > before, "HEADERS need no window (RFC 9113 section 6.9)");
}

#[test]
fn frames_of_a_stream_that_came_behind_the_last_goaway_are_ignored() {
    for late in [
        frame(kind::DATA, 0x1, 3, b"abc"),
        frame(kind::RST_STREAM, 0, 3, &[0, 0, 0, 8]),
        frame(kind::WINDOW_UPDATE, 0, 3, &[0, 0, 0, 8]),
        frame(kind::HEADERS, 0x5, 3, b"\x00\x01x\x01y"),
    ] {
        let (mut server, mut out, _) = after(&get(1, 5));
        server.leave(&mut out);
        // The client has begun the next request before it saw GOAWAY, and writes it behind the answer to the PING.
        let bytes = [frame(kind::PING, 0x1, 0, &LEAVING), get(3, 4), late].concat();
        let result = receive(&mut server, &bytes, &mut Scratch::default(), &mut out);
        assert_eq!(result, Ok(()), "the first request is still being answered (RFC 9113 section 6.8)");
    }
}

#[test]
fn who_gives_credit_for_every_page_that_it_reads_is_no_flood() {
    // What Go's net/http does: both windows are refreshed with each read of 4 KiB, and that is what its buffered readers read.
    let mut pair = Pair::new();
    let key = pair.request("POST", false, &[]);
    for round in 0..5_000 {
        pair.client.data(key, &[1; 16_384], false, &mut pair.to_server);
        pair.to_server.clear();
        for _ in 0..4 {
            for stream in [0, key.id] {
                let update = frame(kind::WINDOW_UPDATE, 0, stream, &4_096_u32.to_be_bytes());
                let result = pair.client.receive(&update, &mut pair.scratch, &mut pair.to_server);
                assert!(result.is_ok(), "after {} MB: {result:?}", round * 16_384 / 1_000_000);
            }
        }
    }
}

#[test]
fn both_sides_that_send_much_read_nevertheless() {
    const PIPE_BYTES: usize = 128 * 1024;
    const STREAMS: usize = 20;

    /// As the task of a connection, with a socket that takes so much.
    struct End {
        engine: Engine<()>,
        out: Vec<u8>,
        writing: Vec<u8>,
        input: Vec<u8>,
        keys: Vec<StreamKey>,
        read: usize,
    }

    impl End {
        fn turn(&mut self, from: &mut Vec<u8>, to: &mut Vec<u8>, scratch: &mut Scratch) {
            if self.input.is_empty() {
                let count = from.len().min(BUFFER_BYTES);
                self.input.extend(from.drain(..count));
            }
            let taken = self.engine.receive(&self.input, scratch, &mut self.out).unwrap();
            self.input.drain(..taken);
            while let Some(event) = self.engine.next_event() {
                let Event::Opened(opening) = event else { panic!("{event:?}") };
                self.engine.section(opening.key, true, false, &mut self.out, |out| encode_status(out, 200));
                self.keys.push(opening.key);
            }
            for key in self.keys.clone() {
                while let Piece::Bytes(bytes) = self.engine.piece(key).unwrap() {
                    let count = bytes.len();
                    self.engine.consume(key, count, &mut self.out);
                    self.read += count;
                }
                while let Room::Bytes(room) = self.engine.room(key, &self.out) {
                    self.engine.data(key, &vec![0; room], false, &mut self.out);
                }
            }
            self.keys.rotate_left(1);
            if self.writing.is_empty() {
                std::mem::swap(&mut self.writing, &mut self.out);
                self.engine.wake_queued(usize::MAX);
            }
            let count = self.writing.len().min(PIPE_BYTES - to.len());
            to.extend(self.writing.drain(..count));
        }
    }

    let mut pair = Pair::new();
    let keys: Vec<_> = (0..STREAMS).map(|_| pair.request("POST", false, &[])).collect();
    let Pair { server, client, mut scratch, .. } = pair;
    let end = |engine, keys| End { engine, out: vec![], writing: vec![], input: vec![], keys, read: 0 };
    let (mut client, mut server) = (end(client, keys), end(server, vec![]));
    let (mut up, mut down) = (Vec::new(), Vec::new());
    // Both begin to send before anything has arrived.
    for _ in 0..20 {
        client.turn(&mut Vec::new(), &mut up, &mut scratch);
        server.turn(&mut Vec::new(), &mut down, &mut scratch);
    }
    for round in 0..50 {
        let had = (server.read, client.read);
        for _ in 0..20 {
            client.turn(&mut down, &mut up, &mut scratch);
            server.turn(&mut up, &mut down, &mut scratch);
        }
        assert!(server.read > had.0 && client.read > had.1, "nothing moves any more after {round} rounds");
    }
}

#[test]
fn a_tunnel_that_is_reset_behind_its_end_does_not_look_whole() {
    let mut block = Vec::new();
    for (name, value) in [(":method", "CONNECT"), (":authority", "echo:1")] {
        encode(&mut block, name.as_bytes(), value.as_bytes(), false);
    }
    let bytes = [
        frame(kind::HEADERS, 4, 1, &block),
        frame(kind::DATA, 0x1, 1, b"half of it"),
        frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]),
    ]
    .concat();
    let (mut server, ..) = after(&bytes);
    let Some(Event::Opened(opening)) = server.next_event() else { panic!("no request") };
    assert!(matches!(server.piece(opening.key), Err(Fault::Reset(_))), "what was not read is gone");
}

#[test]
fn padding_is_given_back_also_where_nothing_else_comes() {
    let (mut server, mut out, _) = after(&get(1, 4));
    let padding = [&[255][..], &[0; 255]].concat();
    let mut scratch = Scratch::default();
    let mut window = i64::from(HTTP2_STREAM_WINDOW_BYTES);
    for _ in 0..1_000 {
        let mut said = Vec::new();
        receive(&mut server, &frame(kind::DATA, 0x8, 1, &padding), &mut scratch, &mut said).unwrap();
        window -= 256;
        if said.windows(9).any(|frame| frame[3] == kind::WINDOW_UPDATE && frame[8] == 1) {
            window = i64::from(HTTP2_STREAM_WINDOW_BYTES);
        }
        assert!(window > 0, "nobody gives this window back");
        out.clear();
    }
}

#[test]
fn a_stream_waits_in_the_queue_once() {
    let (mut pair, mut full) = (Pair::new(), Vec::new());
    full.resize(BUFFER_BYTES, 0);
    let key = pair.request("POST", false, &[]);
    for _ in 0..100 {
        assert_eq!(pair.client.room(key, &full), Room::Wait);
        // Woken for another reason: by an answer, or by its own window.
        assert!(matches!(pair.client.room(key, &[]), Room::Bytes(_)));
    }
    assert!(pair.client.streams.queue.len() <= 1, "{} times", pair.client.streams.queue.len());
}

#[test]
fn a_head_that_goes_on_counts_as_memory() {
    let bytes = [frame(kind::HEADERS, 0, 1, &[0; 16_000]), frame(kind::CONTINUATION, 0, 1, &[0; 16_000])].concat();
    let (server, ..) = after(&bytes);
    assert!(server.waiting_bytes() >= 32_000, "{}", server.waiting_bytes());
}

#[test]
fn requests_that_are_refused_do_not_make_up_for_those_that_are_taken_back() {
    let (mut server, mut out, _) = after(b"");
    let mut scratch = Scratch::default();
    let mut taken = 0;
    for burst in 0..10_u32 {
        // More than there is room for: most of them are refused, since nobody has released those before.
        let bytes = (0..1_000)
            .map(|at| 2 * (1_000 * burst + at) + 1)
            .flat_map(|stream| [get(stream, 5), frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat());
        if let Err(error) = receive(&mut server, &bytes.collect::<Vec<_>>(), &mut scratch, &mut out) {
            assert_eq!(error.code, Code::ENHANCE_YOUR_CALM);
            assert!(taken <= HTTP2_PREMATURE_RESETS_MAX, "{taken} were taken");
            return;
        }
        while let Some(Event::Opened(opening)) = server.next_event() {
            taken += 1;
            server.release(opening.key, &mut out);
        }
    }
    panic!("{taken} requests were taken back");
}

#[test]
fn requests_that_time_out_are_no_rapid_reset() {
    let (mut server, mut out, _) = after(b"");
    let mut scratch = Scratch::default();
    for count in 1..=HTTP2_PREMATURE_RESETS_MAX as u32 + 1 {
        let stream = 2 * count - 1;
        receive(&mut server, &get(stream, 5), &mut scratch, &mut out).unwrap();
        let Some(Event::Opened(opening)) = server.next_event() else { panic!("no request") };
        // A minute passes: nothing answers.
        server.forgive();
        server.forgive();
        let reset = frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        assert_eq!(receive(&mut server, &reset, &mut scratch, &mut out), Ok(()), "request {count}");
        server.release(opening.key, &mut out);
    }
}

#[test]
fn who_ends_its_direction_is_answered_what_it_has_asked_for_whole() {
    let mut pair = Pair::new();
    let asked = pair.request("GET", true, &[]);
    let whole = pair.opened().key;
    pair.request("POST", false, &[]);
    let begun = pair.opened().key;
    pair.server.end(&mut pair.to_client);
    assert!(pair.server.has_ended() && !pair.server.is_done());
    assert!(pair.server.is_cancelled(begun) && !pair.server.is_cancelled(whole));
    pair.server.section(whole, true, false, &mut pair.to_client, |out| encode_status(out, 200));
    assert!(matches!(pair.server.room(whole, &pair.to_client), Room::Bytes(_)));
    pair.server.data(whole, b"answer", true, &mut pair.to_client);
    for key in [whole, begun] {
        pair.server.release(key, &mut pair.to_client);
    }
    assert!(pair.server.is_done());
    let bytes = std::mem::take(&mut pair.to_client);
    receive(&mut pair.client, &bytes, &mut pair.scratch, &mut pair.to_server).unwrap();
    let answer = read(&mut pair.client, asked, &mut pair.to_server).unwrap();
    assert!(answer.contains("answer"), "{answer}");
}

#[test]
fn who_ends_its_direction_gets_no_more_than_its_windows_take() {
    let mut pair = Pair::new();
    pair.request("GET", true, &[]);
    let key = pair.opened().key;
    pair.server.section(key, true, false, &mut pair.to_client, |out| encode_status(out, 200));
    pair.server.end(&mut pair.to_client);
    let mut sent = 0;
    while let Room::Bytes(room) = pair.server.room(key, &[]) {
        pair.server.data(key, &vec![0; room], false, &mut pair.to_client);
        sent += room;
    }
    assert_eq!(sent, HTTP2_STREAM_WINDOW_BYTES as usize);
    assert_eq!(pair.server.room(key, &[]), Room::Gone);
    assert!(pair.server.is_cancelled(key));
}

#[test]
fn an_end_with_nothing_asked_for_is_the_end() {
    let mut pair = Pair::new();
    pair.server.end(&mut pair.to_client);
    assert!(pair.server.has_failed() && pair.to_client.is_empty());
}

#[test]
fn many_frames_are_taken_in_turns() {
    let mut out = Vec::new();
    let mut server = Engine::<()>::new(Role::Server, &mut out);
    let pings = frame(kind::PING, 0, 0, b"12345678").repeat(900);
    let bytes = [PREFACE, &frame(kind::SETTINGS, 0, 0, b""), &pings].concat();
    let (mut at, mut turns) = (0, 0);
    while at < bytes.len() {
        let taken = server.receive(&bytes[at..], &mut Scratch::default(), &mut out).unwrap();
        assert!(taken > 0 && taken <= bytes.len() / 10, "{taken} of {} bytes", bytes.len());
        (at, turns) = (at + taken, turns + 1);
        out.clear();
    }
    assert!(turns > 10);
}

#[test]
fn many_requests_are_taken_in_turns() {
    let mut out = Vec::new();
    let mut server = Engine::<()>::new(Role::Server, &mut out);
    let requests: Vec<u8> = (0..80).flat_map(|number| get(2 * number + 1, 5)).collect();
    let bytes = [PREFACE, &frame(kind::SETTINGS, 0, 0, b""), &requests].concat();
    let (mut at, mut requests) = (0, Vec::new());
    while at < bytes.len() {
        at += server.receive(&bytes[at..], &mut Scratch::default(), &mut out).unwrap();
        requests.push(std::iter::from_fn(|| server.next_event()).count());
    }
    assert_eq!(requests.iter().sum::<usize>(), 80);
    assert!(requests.iter().all(|&count| count <= 16), "{requests:?}");
}
