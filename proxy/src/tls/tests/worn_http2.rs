//! Connections of HTTP/2 whose key is worn and has no successor: they end by GOAWAY, and no stream is lost to it.

use std::{
    cell::Cell,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    rc::Rc,
    thread,
    time::Duration,
};

use meshring_core::{http::http2::PREFACE, limits::BUFFER_BYTES};

use super::{
    joined,
    worn::{RECORDS_MAX, ROUNDS, limits, without_new_keys},
};
use crate::{
    accept::{Direction, Listener},
    parse::Begin,
    request::{self, End},
    testing::{
        on_each_driver_within,
        peer::{Peer, Received, Town, Version},
    },
    worker::{
        Worker,
        buffers::Input,
        conn::{Conn, write_all},
        http2::{client, server},
    },
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A frame that has come.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// The other side of a connection of HTTP/2.
struct Speaker<'a> {
    peer: &'a mut Peer,
    unread: Vec<u8>,
    /// Last stream and code of each GOAWAY.
    goaways: Vec<(u32, u32)>,
    /// How the connection ended.
    end: Option<Received>,
}

impl<'a> Speaker<'a> {
    fn new(peer: &'a mut Peer, greeting: &[u8]) -> Self {
        peer.send(greeting);
        Self { peer, unread: Vec::new(), goaways: Vec::new(), end: None }
    }

    fn fill(&mut self) {
        let wanted = self.unread.len() + 1;
        match self.peer.exchange(b"", wanted, &mut self.unread) {
            Received::All => {}
            how => self.end = Some(how),
        }
    }

    fn skip(&mut self, bytes: &[u8]) {
        while self.unread.len() < bytes.len() {
            self.fill();
        }
        assert_eq!(self.unread.drain(..bytes.len()).as_slice(), bytes);
    }

    /// The next frame of a stream; those of the connection are answered. `None`: it has ended.
    fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some((&[a, b, c, kind, flags, s1, s2, s3, s4], rest)) = self.unread.split_first_chunk::<9>() {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                let Some(payload) = rest.get(..length).map(<[u8]>::to_vec) else { break };
                self.unread.drain(..9 + length);
                let frame = Frame { kind, flags, stream: u32::from_be_bytes([s1, s2, s3, s4]), payload };
                match frame.kind {
                    SETTINGS | PING if flags & ACK == 0 => {
                        let payload = if kind == PING { &frame.payload[..] } else { &[] };
                        self.peer.send(&self::frame(kind, ACK, 0, payload));
                    }
                    GOAWAY => {
                        let number = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
                        self.goaways.push((number(0), number(4)));
                    }
                    DATA | HEADERS => return Some(frame),
                    _ => {}
                }
                // The one who asks looks at what it has been told, too.
                if kind == GOAWAY {
                    return Some(frame);
                }
            }
            if self.end.is_some() {
                assert!(self.unread.is_empty(), "in the middle of a frame: {:?}", self.unread);
                return None;
            }
            self.fill();
        }
    }
}

/// Answers each request, and knows no HTTP/2. A connection that is tried with that is in nobody's way.
fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut request) = (stream.unwrap(), [0; 4096]);
            thread::spawn(move || {
                // What is asked here comes in one piece.
                while let Ok(len @ 1..) = stream.read(&mut request) {
                    if !request[..len].starts_with(b"GET ") {
                        return;
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
                }
            });
        }
    });
    address
}

/// One request after the other, until the server has said GOAWAY; then all that comes.
fn requests(peer: &mut Peer) -> (usize, Vec<(u32, u32)>, Option<Received>) {
    let mut client = Speaker::new(peer, &[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    let mut answers = 0;
    while answers < ROUNDS && client.goaways.is_empty() {
        let stream = 1 + 2 * answers as u32;
        // GET http://echo/, in HPACK.
        let head = [&[0x82, 0x86, 0x84, 0x01, 4][..], b"echo"].concat();
        client.peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
        let mut body = Vec::new();
        loop {
            let frame = client.next().unwrap_or_else(|| panic!("no answer on stream {stream}: {:?}", client.goaways));
            if frame.kind == DATA {
                body.extend_from_slice(&frame.payload);
            }
            if frame.kind == HEADERS {
                assert_eq!(frame.payload[0], 0x88, "status 200");
            }
            if frame.ends_stream() {
                assert_eq!(frame.stream, stream);
                break;
            }
        }
        assert_eq!(body, b"hello");
        answers += 1;
    }
    if client.goaways.is_empty() {
        client.peer.finish_sending();
    }
    while client.next().is_some() {}
    (answers, client.goaways, client.end)
}

#[test]
fn a_worn_key_ends_its_http2_connection_by_goaway_and_no_stream_is_lost_to_it() {
    let application = application();
    on_each_driver_within(limits(), async |worker: Rc<Worker>| {
        let town = Town::new();
        for version in [Version::Tls12, Version::Tls13] {
            let (mut conn, client) = town.client_speaking(&worker, Some(version), requests).await;
            let listener = Rc::new(Listener::new(0, application, Direction::Inbound { application }));
            // The handshake may have read its beginning, too: then the socket has nothing more to be waited for.
            let first = loop {
                match request::serve(&worker, &mut conn, &listener, Begin::Readable, &mut true).await {
                    End::Http2(first) => break first,
                    End::Idle => conn.readable().await.unwrap(),
                    other => panic!("{version:?}: {other:?}"),
                }
            };
            server::serve(&worker, &mut conn, &listener, first).await;
            drop(conn);
            let (answers, goaways, how) = joined(client).await;
            assert_eq!(how, Some(Received::End), "{version:?}: {goaways:?}");
            if without_new_keys().contains(&version) {
                // That it will end, and then with which stream.
                let last = 2 * answers as u32 - 1;
                assert_eq!(goaways, [(i32::MAX as u32, 0), (last, 0)], "{version:?}: after {answers} answers");
                assert!((1..=2 * RECORDS_MAX as usize).contains(&answers), "{version:?}: {answers}");
            } else {
                assert_eq!(answers, ROUNDS, "{version:?}");
            }
        }
    });
}

/// Answers every request.
fn answers(peer: &mut Peer) -> (usize, Vec<(u32, u32)>, Option<Received>) {
    let mut server = Speaker::new(peer, &frame(SETTINGS, 0, 0, &[]));
    server.skip(PREFACE);
    let mut answers = 0;
    while let Some(frame) = server.next() {
        if frame.ends_stream() {
            let head = self::frame(HEADERS, END_HEADERS, frame.stream, &[0x88]);
            server.peer.send(&[head, self::frame(DATA, END_STREAM, frame.stream, b"hello")].concat());
            answers += 1;
        }
    }
    (answers, server.goaways, server.end)
}

/// Sends a request on a stream and reads the response to its end.
async fn ask(worker: &Worker, conn: &mut Conn) {
    let mut out = worker.buffers.take();
    out.extend_from_slice(b"GET / HTTP/1.1\r\nhost: echo\r\n\r\n");
    write_all(&mut conn.write, &mut out).await.unwrap();
    let mut input = Input::new(worker.buffers.lazy());
    let mut response = Vec::new();
    loop {
        conn.readable().await.unwrap();
        match input.fill_now(&conn.read, BUFFER_BYTES, BUFFER_BYTES) {
            Ok(0) => break,
            Ok(_) => {
                response.extend_from_slice(input.unread());
                input.clear();
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    let text = String::from_utf8(response).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("hello"), "{text}");
}

#[test]
fn nothing_new_goes_on_an_upstream_connection_of_http2_whose_key_is_worn() {
    on_each_driver_within(limits(), async |worker: Rc<Worker>| {
        let town = Town::new();
        for version in without_new_keys() {
            let (lease, upstream) = town.upstream_speaking(&worker, Some(version), answers).await;
            let shared = client::start(&worker, lease.conn);
            let mut asked = 0;
            let waiting = shared.stream(0, &Cell::new(usize::MAX)).unwrap();
            while shared.is_open() {
                let mut conn = Conn::of_stream(shared.stream(0, &Cell::new(usize::MAX)).unwrap(), &worker.deadlines);
                ask(&worker, &mut conn).await;
                asked += 1;
                assert!(asked <= RECORDS_MAX, "{version:?}: it does not wear out");
            }
            // Who has a stream uses it still: so a request that was to go out is not lost.
            ask(&worker, &mut Conn::of_stream(waiting, &worker.deadlines)).await;
            drop(shared);
            // It ends on a task of its own.
            while !upstream.is_finished() {
                crate::worker::pause(Duration::from_millis(1)).await;
            }
            let (answers, goaways, how) = joined(upstream).await;
            assert_eq!((answers as u64, how), (asked + 1, Some(Received::End)), "{version:?}");
            assert!(goaways.iter().all(|(_, code)| *code == 0), "{version:?}: {goaways:?}");
        }
    });
}
