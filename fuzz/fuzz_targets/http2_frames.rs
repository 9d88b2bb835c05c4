//! Frames of the other side of an HTTP/2 connection, whatever they are and in whatever pieces, against both sides of the engine:
//! nothing panics or goes on forever, what it answers is whole frames, every request that the frames make is text that the strict
//! parser judges, every message that ends is whole text, and when nobody has a stream any more nothing is left of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::{
    Bounds, Fields, NoEdits, RequestOut,
    body::BodyDecoder,
    chunked::Event as BodyEvent,
    head::{BodyFraming, Method},
    http2::{
        Code, Engine, Event, PREFACE, Piece, Role, Room, Scratch, StreamKey, begins_preface, encode_field,
        hpack::{encode, encode_status},
        request_from_text,
    },
    request, request_head, response,
};

fuzz_target!(|data: &[u8]| {
    // In pieces of so many bytes.
    let [piece, frames @ ..] = data else { return };
    let piece = usize::from(*piece) * 16 + 1;
    let input = [PREFACE, frames].concat();
    assert!(begins_preface(&input));
    Side::new(Role::Server, piece).run(&input);
    Side::new(Role::Client, piece).run(frames);
});

/// What a request is answered with.
const BODY: &[u8] = &[7; 20_000];

/// One side of a connection.
struct Side {
    role: Role,
    engine: Engine<()>,
    scratch: Scratch,
    out: Vec<u8>,
    piece: usize,
    streams: Vec<Stream>,
}

struct Stream {
    key: StreamKey,
    text: Vec<u8>,
    /// Of one whose text is judged when it has ended.
    is_judged: bool,
    written: usize,
}

impl Side {
    fn new(role: Role, piece: usize) -> Self {
        let mut out = Vec::new();
        let engine = Engine::new(role, &mut out);
        let mut side = Self { role, engine, scratch: Scratch::default(), out, piece, streams: Vec::new() };
        if role == Role::Client {
            side.out.drain(..PREFACE.len());
            for (method, name) in [(Method::Get, "GET"), (Method::Head, "HEAD"), (Method::Connect, "CONNECT")] {
                side.open(method, name.as_bytes());
            }
        }
        side
    }

    fn open(&mut self, method: Method, name: &[u8]) {
        let opened = self.engine.open((), method, None, method != Method::Connect, &mut self.out, |out| {
            encode(out, b":method", name, false);
            encode(out, b":authority", b"echo", false);
        });
        let key = opened.expect("a new connection takes streams");
        self.streams.push(Stream { key, text: Vec::new(), is_judged: true, written: BODY.len() });
    }

    fn run(mut self, input: &[u8]) {
        let mut at = 0;
        while at < input.len() {
            let end = (at + self.piece).min(input.len());
            match self.engine.receive(&input[at..end], &mut self.scratch, &mut self.out) {
                Ok(taken) => {
                    assert!(taken > 0 || self.out.len() >= 16_384, "nothing is taken, although there is room");
                    at += taken;
                }
                Err(error) => {
                    assert_ne!(error.code, Code::NO_ERROR);
                    self.engine.fail(error, &mut self.out);
                    at = input.len();
                }
            }
            self.events();
            self.streams_go_on();
            self.written();
        }
        // What is there whole is answered behind the end of the other side, as far as windows go.
        self.engine.end(&mut self.out);
        self.events();
        self.streams_go_on();
        self.written();
        self.engine.lose();
        self.streams_go_on();
        for stream in std::mem::take(&mut self.streams) {
            self.engine.release(stream.key, &mut self.out);
        }
        self.written();
        assert!(self.engine.is_idle());
        assert_eq!(self.engine.waiting_bytes(), 0);
    }

    fn events(&mut self) {
        while let Some(event) = self.engine.next_event() {
            let Event::Opened(opening) = event else { continue };
            assert_eq!(self.role, Role::Server);
            if let (Ok(shape), Ok(Piece::Bytes(text))) = (opening.shape, self.engine.piece(opening.key)) {
                judge_request(text, shape.framing);
            }
            let is_judged = opening.shape.is_ok_and(|shape| !shape.is_extended && shape.method != Method::Connect);
            self.streams.push(Stream { key: opening.key, text: Vec::new(), is_judged, written: 0 });
            self.engine.section(opening.key, true, false, &mut self.out, |out| {
                encode_status(out, 200);
                encode_field(out, b"Content-Type", b"text/plain");
            });
        }
    }

    fn streams_go_on(&mut self) {
        let Self { role, engine, out, streams, .. } = self;
        streams.retain_mut(|stream| {
            let ended = stream.read(engine, out);
            if ended == Some(true) && stream.is_judged {
                judge_whole(*role, &stream.text);
            }
            while stream.written < BODY.len()
                && let Room::Bytes(room) = engine.room(stream.key, out)
            {
                let end = (stream.written + room).min(BODY.len());
                engine.data(stream.key, &BODY[stream.written..end], end == BODY.len(), out);
                stream.written = end;
            }
            if ended.is_some() {
                engine.release(stream.key, out);
            }
            ended.is_none()
        });
    }

    /// What is to be written is whole frames.
    fn written(&mut self) {
        let mut rest = &self.out[..];
        while !rest.is_empty() {
            let len = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            assert!(len <= 16_384);
            rest = &rest[9 + len..];
        }
        self.out.clear();
        self.engine.wake_queued(usize::MAX);
    }
}

impl Stream {
    /// Reads on: whether it has ended, and whether well.
    fn read(&mut self, engine: &mut Engine<()>, out: &mut Vec<u8>) -> Option<bool> {
        loop {
            let count = match engine.piece(self.key) {
                Ok(Piece::Bytes(bytes)) => {
                    assert!(!bytes.is_empty());
                    self.text.extend_from_slice(bytes);
                    bytes.len()
                }
                Ok(Piece::Wait) => return None,
                Ok(Piece::End) => return Some(true),
                Err(_) => return Some(false),
            };
            engine.consume(self.key, count, out);
        }
    }
}

/// As the proxy does it.
fn judge_request(text: &[u8], framing: BodyFraming) {
    assert_eq!(text.windows(4).filter(|end| end == b"\r\n\r\n").count(), 1);
    let mut fields = Fields::new();
    let Ok(head) = request::parse(text, &mut fields, Bounds::FIRST_HOP) else { return };
    let head = head.expect("a whole head");
    assert_eq!(head.len, text.len());
    if matches!(framing, BodyFraming::Length(_) | BodyFraming::Chunked) {
        assert_eq!(head.framing, framing);
    }
    let mut out = Vec::new();
    request_head(&mut out, text, &head, &fields, &RequestOut::new(&head, &NoEdits));
    assert!(request_from_text(&out).is_some_and(|again| again.len == out.len()));
}

/// A message that has ended is whole, or refused.
fn judge_whole(role: Role, text: &[u8]) {
    let mut fields = Fields::new();
    let mut rest = text;
    let framing = match role {
        Role::Server => match request::parse(rest, &mut fields, Bounds::FIRST_HOP) {
            Ok(head) => {
                let head = head.expect("a whole head");
                rest = &rest[head.len..];
                head.framing
            }
            Err(_) => return,
        },
        Role::Client => return judge_response(rest),
    };
    read_to_end(framing, rest);
}

fn judge_response(text: &[u8]) {
    let mut rest = text;
    loop {
        let mut fields = Fields::new();
        // Of a request whose response may have a body: those to HEAD and CONNECT are judged as far as their heads.
        let Ok(head) = response::parse(rest, &mut fields, Method::Head, Bounds::FIRST_HOP) else { return };
        let head = head.expect("a whole head");
        rest = &rest[head.len..];
        if head.status >= 200 {
            return;
        }
    }
}

fn read_to_end(framing: BodyFraming, text: &[u8]) {
    let mut decoder = BodyDecoder::new(framing);
    let mut at = 0;
    while !decoder.is_done() {
        let step = decoder.decode(&text[at..]).expect("text of our own");
        at += step.consumed;
        assert!(step.consumed > 0 || step.event == BodyEvent::End, "a message that has ended is not whole");
    }
    assert_eq!(at, text.len());
}
