//! Independent judges: whatever we forward, parsers that others wrote must read as the very same message and as exactly one,
//! and what they refuse must not have been forwarded. The judges are h11 and llhttp (`tests/judges/judge.py`).
//!
//! Messages are generated from a seed, which is printed and which `JUDGES_SEED` sets; every second one is then damaged. The
//! corpora of the fuzz targets come on top.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
};

use meshring_core::http::{
    BodyDecoder, BodyFraming, Bounds, Event, Fields, LAST_CHUNK, Method, NoEdits, RequestOut, ResponseOut, Via,
    encode_chunk, request, request_head, response, response_head, serialize,
};
use meshring_tests::{
    alone,
    binaries::tool_is_missing,
    generate::Random,
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::Upstream,
};
use serde_json::Value;

/// Messages of each kind that go through the codec.
const MESSAGES: usize = 6_000;
/// Messages of each kind that go through a running proxy, on each driver.
const MESSAGES_PROXIED: usize = 200;

on_both_drivers! {
    a_proxy_forwards_requests_that_the_judges_read_as_one
    a_proxy_forwards_responses_that_the_judges_read_as_one
}

// ---- the judges ---------------------------------------------------------------------------------------------------

/// The subprocess that holds the parsers.
struct Judges {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// A name and a value.
type Field = (String, String);

/// A message as somebody has understood it. Text is Latin-1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Message {
    /// Method and target, or the status.
    start: Vec<String>,
    /// Those that concern more than one connection, without framing; names in lower case.
    fields: Vec<Field>,
    body: String,
    trailers: Vec<Field>,
}

/// What a judge says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// One message, and nothing behind it.
    One(Message),
    /// Bytes are left behind the message, or another one begins.
    More(String),
    /// The message does not end.
    Incomplete,
    Refused(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Response,
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// The interpreter that `.ci/setup gate` has put the judges into.
fn python() -> Option<PathBuf> {
    let test = env::current_exe().expect("the path of the running test");
    let found = test.ancestors().map(|dir| dir.join("judges/bin/python")).find(|python| python.is_file());
    if found.is_none() {
        tool_is_missing("no judges; `.ci/setup gate` installs them");
    }
    found
}

impl Judges {
    fn start() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("judges/judge.py");
        let mut command = Command::new(python()?);
        let mut child = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Some(Self { child, stdin, stdout })
    }

    fn ask(&mut self, judge: &str, kind: Kind, method: &str, wire: &[u8]) -> Verdict {
        let kind = if kind == Kind::Request { "request" } else { "response" };
        self.stdin.write_all(format!("{judge} {kind} {method} {}\n", wire.len()).as_bytes()).unwrap();
        self.stdin.write_all(wire).unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{judge}: {error}: {line:?}"));
        if let Some(error) = said["error"].as_str() {
            return Verdict::Refused(error.to_owned());
        }
        if said["incomplete"] == true {
            return Verdict::Incomplete;
        }
        let message = Message {
            start: match kind {
                "request" => vec![string(&said["method"]), string(&said["target"])],
                _ => vec![said["status"].to_string()],
            },
            fields: end_to_end(said["fields"].as_array().unwrap().iter().map(field).collect()),
            body: string(&said["body"]),
            trailers: said["trailers"].as_array().unwrap().iter().map(field).collect(),
        };
        match said["rest"].as_str() {
            Some("") => Verdict::One(message),
            rest => Verdict::More(rest.unwrap_or_default().to_owned()),
        }
    }
}

impl Drop for Judges {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn string(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

fn field(pair: &Value) -> Field {
    (string(&pair[0]), string(&pair[1]).trim_matches([' ', '\t']).to_owned())
}

/// Framing and connection fields are each hop's own; the body that they lead to is compared instead. What a hop adds on
/// its own is left out, too.
fn end_to_end(mut fields: Vec<Field>) -> Vec<Field> {
    const OF_ONE_HOP: [&str; 14] = [
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "http2-settings",
        "expect",
        "via",
        "date",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-request-id",
    ];
    fields.retain(|(name, _)| !OF_ONE_HOP.contains(&name.as_str()));
    // The order of different names means nothing, and Host may move; that of equal names does, and a stable sort keeps it.
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

// ---- what we make of a message ------------------------------------------------------------------------------------

/// What the codec makes of the bytes of one message.
enum Relayed {
    /// It goes on, as these bytes; what we understood.
    Forwarded(Vec<u8>, Message),
    /// Its head goes on, but the body breaks off or is malformed: both connections are ended, and nobody may take it for
    /// whole.
    BrokenOff,
    /// Nothing of it goes on.
    Refused,
}

/// Decodes a body and encodes it anew, as the relay does.
fn relay_body(mut input: &[u8], framing: BodyFraming, out: &mut Vec<u8>, message: &mut Message) -> bool {
    let mut decoder = BodyDecoder::new(framing);
    let is_chunked = framing == BodyFraming::Chunked;
    let (mut data, mut trailers) = (Vec::new(), Vec::new());
    while !decoder.is_done() {
        let Ok(step) = decoder.decode(input) else { return false };
        match step.event {
            Event::Data(range) if is_chunked => {
                encode_chunk(out, &input[range.clone()]);
                data.extend_from_slice(&input[range]);
            }
            Event::Data(range) => {
                out.extend_from_slice(&input[range.clone()]);
                data.extend_from_slice(&input[range]);
            }
            Event::Trailer { name, value } => {
                message
                    .trailers
                    .push((latin1(&input[name.clone()]).to_ascii_lowercase(), latin1(&input[value.clone()])));
                serialize::field(&mut trailers, &input[name], &input[value]);
            }
            Event::NeedInput if decoder.end_of_stream().is_err() => return false,
            Event::NeedInput => break,
            Event::End => {}
        }
        input = &input[step.consumed..];
    }
    message.body = latin1(&data);
    if is_chunked && trailers.is_empty() {
        out.extend_from_slice(LAST_CHUNK);
    } else if is_chunked {
        out.extend_from_slice(b"0\r\n");
        out.extend_from_slice(&trailers);
        out.extend_from_slice(b"\r\n");
    }
    true
}

fn understood(wire: &[u8], fields: &Fields, start: Vec<String>) -> Message {
    let all = fields.iter().enumerate().filter(|(index, _)| !fields.is_hop_by_hop(*index));
    let named = all.map(|(_, f)| (latin1(f.name.of(wire)).to_ascii_lowercase(), latin1(f.value.of(wire))));
    Message { start, fields: end_to_end(named.collect()), ..Message::default() }
}

fn relay_request(wire: &[u8]) -> Relayed {
    let mut fields = Fields::new();
    let Ok(Some(head)) = request::parse(wire, &mut fields, Bounds::FIRST_HOP) else { return Relayed::Refused };
    // CONNECT is answered here.
    if head.method == Method::Connect {
        return Relayed::Refused;
    }
    let mut out = Vec::new();
    let how = RequestOut { via: Via::Http1, ..RequestOut::new(&head, &NoEdits) };
    request_head(&mut out, wire, &head, &fields, &how);
    let written = String::from_utf8_lossy(&out).into_owned();
    let target = written.split(' ').nth(1).unwrap().to_owned();
    let mut message = understood(wire, &fields, vec![latin1(head.method_name.of(wire)), target]);
    for (name, value) in &mut message.fields {
        // The target in absolute form decides (RFC 9112 section 3.2.2).
        if name == "host" {
            *value = latin1(head.authority_full.of(wire));
        }
    }
    if message.fields.iter().all(|(name, _)| name != "host") && !head.authority_full.is_empty() {
        message.fields.push(("host".into(), latin1(head.authority_full.of(wire))));
        message.fields = end_to_end(message.fields);
    }
    match relay_body(&wire[head.len..], head.framing, &mut out, &mut message) {
        true => Relayed::Forwarded(out, message),
        false => Relayed::BrokenOff,
    }
}

fn relay_response(wire: &[u8], method: &str) -> Relayed {
    let mut fields = Fields::new();
    let mut rest = wire;
    let mut out = Vec::new();
    loop {
        let parsed = response::parse(rest, &mut fields, Method::named(method.as_bytes()), Bounds::FIRST_HOP);
        let Ok(Some(head)) = parsed else { return Relayed::Refused };
        if head.is_switching() {
            return Relayed::Refused;
        }
        let how = ResponseOut { via: Via::Http1, ..ResponseOut::new(&head, &NoEdits) };
        response_head(&mut out, rest, &head, &fields, &how);
        if head.is_interim() {
            rest = &rest[head.len..];
            continue;
        }
        let mut message = understood(rest, &fields, vec![head.status.to_string()]);
        return match relay_body(&rest[head.len..], head.framing, &mut out, &mut message) {
            true => Relayed::Forwarded(out, message),
            false => Relayed::BrokenOff,
        };
    }
}

// ---- generated messages -------------------------------------------------------------------------------------------

fn pick<'a, T: ?Sized>(random: &mut Random, list: &[&'a T]) -> &'a T {
    list[random.below(list.len())]
}

fn text_of(random: &mut Random, alphabet: &[u8], len_max: usize) -> Vec<u8> {
    (0..=random.below(len_max)).map(|_| alphabet[random.below(alphabet.len())]).collect()
}

const VALUE_BYTES: &[u8] = b"abcXYZ019 ,;=\"'()/:?@[]{}<>!#$%&*+-.^_`|~\t\x80\xff";
const NAME_BYTES: &[u8] = b"abcxyzABC019-!#$%&'*+.^`|~";

/// Fields that mean nothing to a proxy, in any spelling that is legal.
fn other_fields(random: &mut Random, out: &mut Vec<u8>) {
    for _ in 0..random.below(6) {
        out.extend_from_slice(b"x-");
        out.extend(text_of(random, NAME_BYTES, 10));
        out.extend_from_slice(pick(random, &[&b":"[..], b": ", b":\t", b":   "]));
        let value = text_of(random, VALUE_BYTES, 40);
        out.extend_from_slice(value.trim_ascii());
        out.extend_from_slice(pick(random, &[&b"\r\n"[..], b" \r\n", b"\t\r\n"]));
    }
}

/// Fields of one hop, which must not go on.
fn hop_fields(random: &mut Random, out: &mut Vec<u8>) {
    match random.below(6) {
        0 => out.extend_from_slice(b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"),
        1 => out.extend_from_slice(b"connection: close\r\n"),
        2 => out.extend_from_slice(b"TE: trailers, deflate\r\nConnection: TE\r\n"),
        _ => {}
    }
}

fn chunked_body(random: &mut Random, out: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let data = text_of(random, b"0123456789abcdef\r\n", 60);
        let size = match random.below(3) {
            0 => format!("{:X}", data.len()),
            1 => format!("000{:x}", data.len()),
            _ => format!("{:x}", data.len()),
        };
        out.extend_from_slice(size.as_bytes());
        out.extend_from_slice(pick(random, &[&b""[..], b"", b";a=b", b";a", b";a=\"b;c\""]));
        out.extend_from_slice(b"\r\n");
        out.extend(data);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n");
    if random.below(3) == 0 {
        out.extend_from_slice(b"X-Sum: abc\r\nx-more:1\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn length_body(random: &mut Random, out: &mut Vec<u8>) {
    let data = text_of(random, b"0123456789abcdef\r\n", 60);
    out.extend_from_slice(pick(random, &[&b"Content-Length: "[..], b"content-length:", b"CONTENT-LENGTH:\t"]));
    out.extend_from_slice(format!("{}\r\n\r\n", data.len()).as_bytes());
    out.extend(data);
}

fn framed_body(random: &mut Random, out: &mut Vec<u8>) {
    if random.below(2) == 0 {
        return length_body(random, out);
    }
    out.extend_from_slice(pick(random, &[&b"Transfer-Encoding: chunked"[..], b"transfer-encoding:Chunked"]));
    out.extend_from_slice(b"\r\n\r\n");
    chunked_body(random, out);
}

/// A request that is in order.
fn sound_request(random: &mut Random) -> Vec<u8> {
    let method = pick(random, &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]);
    let target = pick(
        random,
        &[
            "/",
            "/a/b?c=d",
            "/a?",
            "/?x=/../y",
            "/~a;v=1/b",
            "/%41%2f%20",
            "http://echo/abs?q",
            "http://echo:80",
            "/a:b@c!$&'()*+,;=",
        ],
    );
    let mut out = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    other_fields(random, &mut out);
    out.extend_from_slice(pick(random, &[&b"Host: echo\r\n"[..], b"host:echo\r\n", b"HOST: echo:80 \r\n"]));
    hop_fields(random, &mut out);
    other_fields(random, &mut out);
    if matches!(method, "POST" | "PUT" | "PATCH") {
        framed_body(random, &mut out);
    } else {
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// A response that is in order, and the method that it answers.
fn sound_response(random: &mut Random) -> (&'static str, Vec<u8>) {
    let method = pick(random, &["GET", "GET", "POST", "HEAD"]);
    let mut out = Vec::new();
    if random.below(8) == 0 {
        out.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    }
    let status = pick(
        random,
        &["200 OK", "201 ", "204 No Content", "304 Not Modified", "404 Not Found", "500 \x20Odd \tReason", "299 x"],
    );
    out.extend_from_slice(format!("HTTP/1.1 {status}\r\n").as_bytes());
    other_fields(random, &mut out);
    hop_fields(random, &mut out);
    other_fields(random, &mut out);
    let bodiless = method == "HEAD" || status.starts_with("204") || status.starts_with("304");
    match random.below(4) {
        _ if bodiless => out.extend_from_slice(b"\r\n"),
        0 => out.extend_from_slice(b"Connection: close\r\n\r\nuntil the end"),
        _ => framed_body(random, &mut out),
    }
    (method, out)
}

/// Changes a message in one to three places with what has made parsers disagree before.
fn damage(random: &mut Random, wire: &mut Vec<u8>) {
    const PIECES: [&[u8]; 34] = [
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b"\t",
        b" ",
        b"\x0b",
        b"\x0c",
        b"\x7f",
        b"\x80",
        b"\xff",
        b":",
        b",",
        b";",
        b"_",
        b"+",
        b"-",
        b"0x",
        b"1",
        b"#",
        b"\\",
        b"%00",
        b"\r\n ",
        b"\r\nContent-Length: 3",
        b"\r\nContent-Length: 3, 3",
        b"\r\nTransfer-Encoding: chunked",
        b"\r\nTransfer-Encoding: identity",
        b"\r\nTransfer-Encoding:\x0bchunked",
        b"\r\nHost: other",
        b"\r\nConnection: content-length",
        b"\r\nX-Fold: a\r\n b",
        b"\r\nX : y",
        b"\r\n: y",
        b"HTTP/1.0",
    ];
    for _ in 0..=random.below(3) {
        let at = random.below(wire.len().max(1));
        match random.below(4) {
            // At the end of a line, where most of the pieces mean something.
            0 => {
                let ends: Vec<_> =
                    wire.windows(2).enumerate().filter(|(_, w)| *w == b"\r\n").map(|(at, _)| at).collect();
                let at = if ends.is_empty() { at } else { ends[random.below(ends.len())] };
                wire.splice(at..at, pick(random, &PIECES).iter().copied());
            }
            1 => drop(wire.splice(at..at, pick(random, &PIECES).iter().copied())),
            2 => drop(wire.drain(at..(at + 1 + random.below(3)).min(wire.len()))),
            _ => wire[at] = pick(random, &PIECES)[0],
        }
        if wire.is_empty() {
            return;
        }
    }
}

fn seed() -> u64 {
    let seed = env::var("JUDGES_SEED").ok().map_or(0x6d65_7368, |text| text.parse().expect("JUDGES_SEED is a number"));
    println!("JUDGES_SEED={seed}");
    seed
}

/// The seeds of a fuzz target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{}", dir.display());
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

// ---- the promises -------------------------------------------------------------------------------------------------

const JUDGES: [&str; 2] = ["h11", "llhttp"];

/// What llhttp, which is for servers and browsers, does on purpose differently.
fn beyond_llhttp(message: &Message) -> bool {
    // It knows a fixed list of methods.
    const METHODS: [&str; 10] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "SEARCH"];
    message.start.len() == 2 && !METHODS.contains(&message.start[0].as_str())
}

/// Each judge must read what we forward as what we understood.
fn check_forwarded(judges: &mut Judges, kind: Kind, method: &str, received: &[u8], sent: &[u8], message: &Message) {
    for judge in JUDGES {
        // llhttp is not told which request a response answers, and takes what an interim response precedes for two.
        let unknowable = kind == Kind::Response && (method == "HEAD" || sent.starts_with(b"HTTP/1.1 1"));
        if judge == "llhttp" && (unknowable || beyond_llhttp(message)) {
            continue;
        }
        let verdict = judges.ask(judge, kind, method, sent);
        assert_eq!(
            verdict,
            Verdict::One(message.clone()),
            "{judge}\nreceived: {:?}\nsent: {:?}",
            latin1(received),
            latin1(sent)
        );
    }
}

/// What h11 refuses is refused by us, but for the places where the RFC lets a recipient choose, and ours is a sound choice.
fn is_known_difference(error: &str, received: &[u8]) -> bool {
    // RFC 9112 section 2.2: an empty line before a request is ignored.
    if received.starts_with(b"\r\n") && error.contains("no request line received") {
        return true;
    }
    if !error.contains("Transfer-Encoding") && !error.contains("Content-Length") {
        return false;
    }
    let text = latin1(received).to_ascii_lowercase();
    let names_framing = |part: &str| part.contains("\ntransfer-encoding:") || part.contains("\ncontent-length:");
    let (mut head, mut behind) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    // RFC 9110 sections 6.4.1 and 8.6: an interim response has no body, whatever it says. We drop that, h11 reads it.
    while head.starts_with("http/1.1 1") {
        if names_framing(head) {
            return true;
        }
        (head, behind) = behind.split_once("\r\n\r\n").unwrap_or((behind, ""));
    }
    // Section 6.5.1: framing fields in a trailer section mean nothing. We drop them, h11 reads them.
    let behind = format!("\n{behind}");
    behind.rfind("\n0").is_some_and(|at| names_framing(&behind[at..]))
}

#[derive(Debug, Default)]
struct Tally {
    forwarded: usize,
    broken_off: usize,
    refused: usize,
}

fn judge_codec(judges: &mut Judges, kind: Kind, method: &str, wire: &[u8], tally: &mut Tally) {
    let relayed = if kind == Kind::Request { relay_request(wire) } else { relay_response(wire, method) };
    match relayed {
        Relayed::Forwarded(sent, message) => {
            tally.forwarded += 1;
            check_forwarded(judges, kind, method, wire, &sent, &message);
            if let Verdict::Refused(error) = judges.ask("h11", kind, method, wire) {
                assert!(is_known_difference(&error, wire), "h11: {error}\nreceived: {:?}", latin1(wire));
            }
        }
        Relayed::BrokenOff => tally.broken_off += 1,
        Relayed::Refused => tally.refused += 1,
    }
}

#[test]
fn the_judges_read_every_request_that_the_codec_forwards_as_we_do() {
    let Some(mut judges) = Judges::start() else { return };
    let mut random = Random::new(seed());
    let mut tally = Tally::default();
    for number in 0..MESSAGES {
        let mut wire = sound_request(&mut random);
        if number % 2 == 0 {
            assert!(matches!(relay_request(&wire), Relayed::Forwarded(..)), "in order: {:?}", latin1(&wire));
        } else {
            damage(&mut random, &mut wire);
        }
        judge_codec(&mut judges, Kind::Request, "GET", &wire, &mut tally);
    }
    for wire in corpus("request_codec").iter().chain(&corpus("forward_differential")) {
        judge_codec(&mut judges, Kind::Request, "GET", wire, &mut tally);
    }
    println!("{tally:?}");
    assert!(tally.forwarded > MESSAGES / 2 && tally.refused > MESSAGES / 10, "{tally:?}");
}

#[test]
fn the_judges_read_every_response_that_the_codec_forwards_as_we_do() {
    let Some(mut judges) = Judges::start() else { return };
    let mut random = Random::new(seed());
    let mut tally = Tally::default();
    for number in 0..MESSAGES {
        let (method, mut wire) = sound_response(&mut random);
        if number % 2 == 0 {
            assert!(matches!(relay_response(&wire, method), Relayed::Forwarded(..)), "in order: {:?}", latin1(&wire));
        } else {
            damage(&mut random, &mut wire);
        }
        judge_codec(&mut judges, Kind::Response, method, &wire, &mut tally);
    }
    for wire in corpus("response_codec").iter().chain(&corpus("forward_differential")) {
        for method in ["GET", "HEAD"] {
            judge_codec(&mut judges, Kind::Response, method, wire, &mut tally);
        }
    }
    println!("{tally:?}");
    assert!(tally.forwarded > MESSAGES / 2 && tally.refused > MESSAGES / 10, "{tally:?}");
}

/// A proxy before an upstream, to which every host leads.
fn proxy_before(upstream: &Upstream, driver: Driver) -> Proxy {
    let mut world = World::new();
    let cluster = world.cluster("upstream", &[upstream.address()]);
    let action = world.forward(&[(cluster, 1)]);
    world.host("*", vec![rule(action)]);
    Proxy::alone(&world.snapshot(), driver)
}

fn a_proxy_forwards_requests_that_the_judges_read_as_one(driver: Driver) {
    let Some(mut judges) = Judges::start() else { return };
    let _alone = alone();
    // Everything that comes on a connection, up to its end.
    let recorded = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    let record = Arc::clone(&recorded);
    let upstream = Upstream::scripted(move |peer| {
        let mut wire = Vec::new();
        loop {
            let some = peer.some();
            if some.is_empty() {
                break;
            }
            wire.extend(some);
            if is_whole_request(&wire) {
                peer.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                peer.wait_for_end();
                break;
            }
        }
        record.lock().unwrap().push(wire);
    });
    let proxy = proxy_before(&upstream, driver);
    let mut random = Random::new(seed());
    let mut forwarded = 0;
    for number in 0..MESSAGES_PROXIED {
        let mut wire = sound_request(&mut random);
        if number % 2 == 1 {
            damage(&mut random, &mut wire);
        }
        let mut client = proxy.connect();
        // It may be refused before all of it is sent.
        let _ = client.try_send(&wire);
        let _ = client.stream().shutdown(std::net::Shutdown::Write);
        let response = client.rest().unwrap_or_default();
        if response.starts_with(b"HTTP/1.1 200 ") {
            forwarded += 1;
        }
    }
    drop(proxy);
    drop(upstream);
    let recorded = meshring_tests::wait::until("the end of every upstream connection", || {
        let recorded = recorded.lock().unwrap();
        // Those that the client broke off are among them, and may be there first.
        let whole = recorded.iter().filter(|wire| is_whole_request(wire)).count();
        (whole >= forwarded).then(|| recorded.clone())
    });
    let mut whole = 0;
    for wire in &recorded {
        let verdicts = JUDGES.map(|judge| judges.ask(judge, Kind::Request, "GET", wire));
        match &verdicts[0] {
            Verdict::One(message) => {
                whole += 1;
                // Both see the same; llhttp knows fewer methods.
                assert!(verdicts[0] == verdicts[1] || beyond_llhttp(message), "{verdicts:?}\nsent: {:?}", latin1(wire));
            }
            // The client broke off in mid-body.
            Verdict::Incomplete => {}
            verdict => panic!("{verdict:?}\nsent: {:?}", latin1(wire)),
        }
    }
    assert!(whole >= forwarded && forwarded > MESSAGES_PROXIED / 2, "{forwarded} answered, {whole} whole");
}

/// By a third reading: as many bytes as our own codec takes for the message.
fn is_whole_request(wire: &[u8]) -> bool {
    matches!(relay_request(wire), Relayed::Forwarded(..))
}

fn a_proxy_forwards_responses_that_the_judges_read_as_one(driver: Driver) {
    let Some(mut judges) = Judges::start() else { return };
    let _alone = alone();
    let answer = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&answer);
    let upstream = Upstream::scripted(move |peer| {
        if peer.request().is_some() {
            let answer: Vec<u8> = shared.lock().unwrap().clone();
            peer.send(answer);
        }
    });
    let proxy = proxy_before(&upstream, driver);
    let mut random = Random::new(seed());
    let (mut relayed, mut refused) = (0, 0);
    for number in 0..MESSAGES_PROXIED {
        let (method, mut wire) = sound_response(&mut random);
        if number % 2 == 1 {
            damage(&mut random, &mut wire);
        }
        answer.lock().unwrap().clone_from(&wire);
        let mut client = proxy.connect();
        // A POST is never sent twice, so that the answer is this one.
        client.send(format!("{method} / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"));
        // A response that breaks off resets the connection: then nobody takes it for whole.
        let Ok(response) = client.rest() else { continue };
        let verdict = judges.ask("h11", Kind::Response, method, &response);
        let Verdict::One(message) = &verdict else {
            panic!("{verdict:?}\nreceived: {:?}\nsent: {:?}", latin1(&wire), latin1(&response));
        };
        if message.start == ["502"] {
            refused += 1;
            continue;
        }
        relayed += 1;
        let Relayed::Forwarded(_, expected) = relay_response(&wire, method) else {
            panic!("the codec does not forward {:?}\nsent: {:?}", latin1(&wire), latin1(&response));
        };
        assert_eq!(*message, expected, "received: {:?}\nsent: {:?}", latin1(&wire), latin1(&response));
    }
    assert!(relayed > MESSAGES_PROXIED / 2 && refused > 0, "{relayed} relayed, {refused} refused");
}
