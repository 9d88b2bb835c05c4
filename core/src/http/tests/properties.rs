use proptest::prelude::*;

use super::super::body::encode_chunk;
use super::super::{
    BodyDecoder, BodyFraming, ChunkError, Event, FieldKind, Fields, HeadScanner, LAST_CHUNK, Method, NoEdits, Refusal,
    RequestHead, RequestOut, ResponseOut, request, request_head, response, response_head,
};
use super::bodies::decode;
use super::lines::{mutated, mutations};
use super::{FIRST_HOP, parsed, responded_to};

/// Names that are not about this hop, values that are trimmed.
fn lines() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = "[xX]-[a-zA-Z0-9!#$%&'*+.^_`|~-]{0,20}".prop_filter("about this hop or a twin", |name| {
        !name.to_ascii_lowercase().starts_with("x-forwarded") && !name.to_ascii_lowercase().starts_with("x-request")
    });
    prop::collection::vec((name, "([!-~]([ -~\t]{0,30}[!-~])?)?"), 0..20)
}

fn section(lines: &[(String, String)]) -> String {
    lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

/// The fields as bytes, but for what the writer derives anew.
fn pairs(buf: &[u8], fields: &Fields) -> Lines {
    let pair = |field: &super::super::Field| (field.name.of(buf).to_vec(), field.value.of(buf).to_vec());
    let derived = [FieldKind::Host, FieldKind::Connection, FieldKind::ContentLength, FieldKind::TransferEncoding];
    fields.iter().filter(|field| !derived.contains(&field.kind)).map(pair).collect()
}

/// Targets in three forms.
fn targets() -> impl Strategy<Value = String> {
    prop_oneof![
        "(/[a-zA-Z0-9._~;-]{0,8}){1,4}([?][a-z=&\\\\/?]{0,12})?",
        "https?://[a-z.]{1,9}(:[1-9][0-9]{0,3})?(/[a-z0-9.]{0,8}){0,3}([?][a-z=&]{0,12})?",
        Just("*".to_owned()),
    ]
}

fn framings() -> impl Strategy<Value = BodyFraming> {
    prop_oneof![Just(BodyFraming::None), any::<u64>().prop_map(BodyFraming::Length), Just(BodyFraming::Chunked)]
}

/// The line that announces a body.
fn announced(framing: BodyFraming) -> String {
    match framing {
        BodyFraming::None | BodyFraming::UntilClose => String::new(),
        BodyFraming::Length(length) => format!("Content-Length: {length}\r\n"),
        BodyFraming::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
    }
}

/// Names and values.
type Lines = Vec<(Vec<u8>, Vec<u8>)>;

/// One request as a connection sees it.
#[derive(Debug, PartialEq)]
struct Exchange {
    /// Method, target and fields, or why there is none.
    head: Result<(Vec<u8>, Vec<u8>, Lines), Refusal>,
    body: Vec<u8>,
    trailers: Lines,
    /// `None` if the input ends in its middle.
    end: Option<Result<(), ChunkError>>,
}

/// All that a connection sees of input that comes in pieces of these sizes (the last one repeats), up to what is refused
/// or not whole.
fn events(input: &[u8], pieces: &[usize]) -> Vec<Exchange> {
    let (mut exchanges, mut consumed, mut arrived) = (Vec::new(), 0, 0);
    let mut sizes = pieces.iter().chain(std::iter::repeat(pieces.last().expect("a size")));
    let mut read = move |arrived: &mut usize| {
        let before = *arrived;
        *arrived = (before + sizes.next().expect("endless")).min(input.len());
        *arrived > before
    };
    let mut fields = Fields::new();
    loop {
        let mut scanner = HeadScanner::default();
        let head = loop {
            let pending = &input[consumed..arrived];
            match if scanner.ready(pending, FIRST_HOP) {
                request::parse(pending, &mut fields, FIRST_HOP)
            } else {
                Ok(None)
            } {
                Ok(None) if !read(&mut arrived) => return exchanges,
                Ok(None) => {}
                Ok(Some(head)) => break head,
                Err(refusal) => {
                    exchanges.push(Exchange { head: Err(refusal), body: Vec::new(), trailers: Vec::new(), end: None });
                    return exchanges;
                }
            }
        };
        let buf = &input[consumed..];
        let parts = (head.method_name.of(buf).to_vec(), head.target.of(buf).to_vec(), pairs(buf, &fields));
        consumed += head.len;
        let mut exchange = Exchange { head: Ok(parts), body: Vec::new(), trailers: Vec::new(), end: None };
        let mut decoder = BodyDecoder::new(head.framing);
        while exchange.end.is_none() {
            let pending = &input[consumed..arrived];
            let step = match decoder.decode(pending) {
                Ok(step) => step,
                Err(error) => {
                    exchange.end = Some(Err(error));
                    break;
                }
            };
            consumed += step.consumed;
            match step.event {
                Event::Data(range) => exchange.body.extend_from_slice(&pending[range]),
                Event::Trailer { name, value } => {
                    exchange.trailers.push((pending[name].to_vec(), pending[value].to_vec()))
                }
                Event::End => exchange.end = Some(Ok(())),
                Event::NeedInput => {
                    if !read(&mut arrived) {
                        break;
                    }
                }
            }
        }
        let is_over = !matches!(exchange.end, Some(Ok(())));
        exchanges.push(exchange);
        if is_over {
            return exchanges;
        }
    }
}

/// All that a client of an upstream sees of a response that comes in pieces of these sizes (the last one repeats): status, reason
/// and fields, data, trailers and the end, or the code of what is wrong. `None` where the input ends too early.
fn response_events(input: &[u8], pieces: &[usize], method: Method) -> Option<Result<Answer, &'static str>> {
    let mut sizes = pieces.iter().chain(std::iter::repeat(pieces.last().expect("a size")));
    let (mut fields, mut arrived) = (Fields::new(), 0);
    let head = loop {
        match response::parse(&input[..arrived], &mut fields, method, FIRST_HOP) {
            Ok(Some(head)) => break head,
            Ok(None) if arrived == input.len() => return None,
            Ok(None) => arrived = (arrived + sizes.next().expect("endless")).min(input.len()),
            Err(bad) => return Some(Err(bad.code())),
        }
    };
    let mut answer = Answer {
        status: head.status,
        reason: head.reason.of(input).to_vec(),
        lines: pairs(input, &fields),
        framing: head.framing,
        keep_alive: head.keep_alive,
        body: Vec::new(),
        trailers: Vec::new(),
        end: None,
    };
    let (mut consumed, mut decoder) = (head.len, BodyDecoder::new(head.framing));
    loop {
        let pending = &input[consumed..arrived];
        let step = match decoder.decode(pending) {
            Ok(step) => step,
            Err(error) => return Some(Err(error.upstream_code())),
        };
        consumed += step.consumed;
        match step.event {
            Event::Data(range) => answer.body.extend_from_slice(&pending[range]),
            Event::Trailer { name, value } => answer.trailers.push((pending[name].to_vec(), pending[value].to_vec())),
            Event::End => {
                answer.end = Some(consumed);
                return Some(Ok(answer));
            }
            Event::NeedInput if arrived == input.len() => return Some(Ok(answer)),
            Event::NeedInput => arrived = (arrived + sizes.next().expect("endless")).min(input.len()),
        }
    }
}

/// A response as the proxy sees it.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    reason: Vec<u8>,
    lines: Lines,
    framing: BodyFraming,
    keep_alive: bool,
    body: Vec<u8>,
    trailers: Lines,
    /// How many bytes it is, once it is whole.
    end: Option<usize>,
}

/// Pieces of heads that break rules, so that random input gets past the first byte.
fn nearly_http() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"GET / HTTP/1.1\r\n".to_vec()),
        Just(b"POST http://b:80/x?y HTTP/1.0\r\n".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Just(b"Host: a\r\n".to_vec()),
        Just(b"Connection: close, x, te\r\n".to_vec()),
        Just(b"Content-Length: 5\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"5;x\r\nhello\r\n".to_vec()),
        Just(b"0\r\n".to_vec()),
        Just(b"X: y\n".to_vec()),
        Just(b"Expect: y\r\n".to_vec()),
        Just(b"Transfer-Encoding: gzip\r\n".to_vec()),
        Just(b"GET / HTTP/9.9\r\n".to_vec()),
        Just(b"X : y\r\n".to_vec()),
        Just(b"no colon\r\n".to_vec()),
        Just(b"GET /a b HTTP/1.1\r\n".to_vec()),
        Just(b"GET / HTTQ/1.1\r\n".to_vec()),
        Just(b"HTTP/1.1 20".to_vec()),
        Just(vec![b'a'; 300]),
        Just(vec![b'/'; 8200]),
        Just(b"X: a\rb\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_request_that_is_written_parses_to_the_same(
        method in "[A-Z]{1,9}", target in targets(), host in "[a-zA-Z0-9.-]{1,20}(:[1-9][0-9]{0,3})?",
        framing in framings(), is_old: bool, lines in lines(),
    ) {
        let is_old = is_old && framing != BodyFraming::Chunked;
        let method = match &target[..] {
            "*" => "OPTIONS",
            _ if method == "CONNECT" => "GET",
            _ => &method,
        };
        let version = if is_old { "1.0" } else { "1.1" };
        let framing = announced(framing);
        let bytes = format!("{method} {target} HTTP/{version}\r\nHost: {host}\r\n{framing}{}\r\n", section(&lines));
        let (head, fields) = parsed(bytes.as_bytes());
        prop_assert_eq!(head.len, bytes.len());
        let mut out = Vec::new();
        request_head(&mut out, bytes.as_bytes(), &head, &fields, &RequestOut::new(&head, &NoEdits));
        let (again, fields_again) = parsed(&out);
        prop_assert_eq!(again.len, out.len());
        prop_assert_eq!(again.method_name.of(&out), method.as_bytes());
        let query = |head: &RequestHead, buf: &[u8]| head.query.map(|query| query.of(buf).to_vec());
        if method == "OPTIONS" && target.starts_with("http") && head.path.is_empty() && head.query.is_none() {
            prop_assert_eq!(again.target.of(&out), b"*");
        } else {
            prop_assert_eq!(again.path_of(&out), head.path_of(bytes.as_bytes()));
            prop_assert_eq!(query(&again, &out), query(&head, bytes.as_bytes()));
        }
        prop_assert_eq!(again.authority_full.of(&out), head.authority_full.of(bytes.as_bytes()));
        prop_assert_eq!((again.method, again.port, again.framing), (head.method, head.port, head.framing));
        prop_assert_eq!(pairs(&out, &fields_again), pairs(bytes.as_bytes(), &fields));
    }

    #[test]
    fn a_response_that_is_written_parses_to_the_same(
        status in 100_u16..600, reason in "[A-Za-z]([ -~]{0,20}[!-~])?", framing in framings(), lines in lines(),
        method in prop::sample::select(vec![Method::Get, Method::Head, Method::Connect]),
    ) {
        let framing = announced(framing);
        let bytes = format!("HTTP/1.1 {status} {reason}\r\n{}{framing}\r\n", section(&lines));
        let (head, fields) = responded_to(method, bytes.as_bytes());
        prop_assert_eq!(head.len, bytes.len());
        let mut out = Vec::new();
        response_head(&mut out, bytes.as_bytes(), &head, &fields, &ResponseOut::new(&head, &NoEdits));
        let (again, fields_again) = responded_to(method, &out);
        prop_assert_eq!(again.len, out.len());
        prop_assert_eq!(again.reason.of(&out), reason.as_bytes());
        prop_assert_eq!((again.status, again.framing), (status, head.framing));
        prop_assert_eq!(again.announced_length, head.announced_length);
        prop_assert_eq!(pairs(&out, &fields_again), pairs(bytes.as_bytes(), &fields));
    }

    #[test]
    fn every_split_of_pipelined_requests_gives_the_same_events(
        messages in prop::collection::vec((targets(), framings(), lines(), prop::collection::vec(any::<u8>(), 0..60)), 1..4),
        rest in nearly_http(), pieces in prop::collection::vec(1_usize..40, 1..20),
    ) {
        let mut bytes = Vec::new();
        for (target, framing, lines, body) in &messages {
            let framing = if *framing == BodyFraming::Chunked { *framing } else { BodyFraming::Length(body.len() as u64) };
            let method = if target == "*" { "OPTIONS" } else { "POST" };
            let head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{}{}\r\n", announced(framing), section(lines));
            bytes.extend_from_slice(head.as_bytes());
            if framing == BodyFraming::Chunked {
                body.chunks(7).for_each(|chunk| encode_chunk(&mut bytes, chunk));
                bytes.extend_from_slice(LAST_CHUNK);
            } else {
                bytes.extend_from_slice(body);
            }
        }
        let good = bytes.len();
        bytes.extend_from_slice(&rest);
        // Whatever has begun ends: of a head that does not, more is waited for where its end may tell more.
        bytes.extend_from_slice(&b"\r\n\r\n".repeat(8));
        let whole = events(&bytes, &[bytes.len()]);
        prop_assert!(whole[..messages.len()].iter().all(|exchange| exchange.end == Some(Ok(()))), "of {good} bytes");
        // What follows is refused for the same reason, too.
        prop_assert_eq!(events(&bytes, &pieces), whole);
    }

    #[test]
    fn every_split_of_a_response_gives_the_same_events(
        status in 100_u16..600, framing in framings(), lines in lines(), body in prop::collection::vec(any::<u8>(), 0..60),
        rest in nearly_http(), pieces in prop::collection::vec(1_usize..40, 1..20),
        method in prop::sample::select(vec![Method::Get, Method::Head, Method::Connect]),
    ) {
        let framing = match framing {
            BodyFraming::Length(_) => BodyFraming::Length(body.len() as u64),
            other => other,
        };
        let mut bytes = format!("HTTP/1.1 {status} Fine\r\n{}{}\r\n", announced(framing), section(&lines)).into_bytes();
        if framing == BodyFraming::Chunked {
            body.chunks(7).for_each(|chunk| encode_chunk(&mut bytes, chunk));
            bytes.extend_from_slice(LAST_CHUNK);
        } else {
            bytes.extend_from_slice(&body);
        }
        bytes.extend_from_slice(&rest);
        let whole = response_events(&bytes, &[bytes.len()], method);
        prop_assert!(matches!(whole, Some(Ok(_))), "{whole:?}");
        prop_assert_eq!(response_events(&bytes, &pieces, method), whole);
    }

    #[test]
    fn every_split_of_what_is_nearly_a_response_gives_the_same_verdict(
        status in 100_u16..600, bytes in nearly_http(), pieces in prop::collection::vec(1_usize..9, 1..20),
    ) {
        for bytes in [bytes.clone(), [format!("HTTP/1.1 {status} Fine\r\n").as_bytes(), &bytes].concat()] {
            let whole = response_events(&bytes, &[bytes.len().max(1)], Method::Get);
            prop_assert_eq!(response_events(&bytes, &pieces, Method::Get), whole);
        }
    }

    #[test]
    fn once_something_is_wrong_it_stays_what_it_was(bytes in nearly_http(), mutations in mutations()) {
        let bytes = mutated(bytes, &mutations, 0);
        let (mut request, mut response, mut fields) = (Ok(None), Ok(None), Fields::new());
        for end in 1..=bytes.len() {
            let said = request::parse(&bytes[..end], &mut fields, FIRST_HOP);
            prop_assert!(request == Ok(None) || said == request, "{said:?} after {request:?} at {end}");
            request = said;
            let said = response::parse(&bytes[..end], &mut fields, Method::Get, FIRST_HOP);
            prop_assert!(response == Ok(None) || said == response, "{said:?} after {response:?} at {end}");
            response = said;
        }
    }

    #[test]
    fn a_prefix_of_a_good_head_asks_for_more(lines in lines(), cut in any::<prop::sample::Index>()) {
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", section(&lines));
        let end = cut.index(bytes.len());
        prop_assert_eq!(request::parse(&bytes.as_bytes()[..end], &mut Fields::new(), FIRST_HOP), Ok(None));
        let bytes = format!("HTTP/1.1 200 OK\r\n{}\r\n", section(&lines));
        let end = cut.index(bytes.len());
        prop_assert_eq!(response::parse(&bytes.as_bytes()[..end], &mut Fields::new(), Method::Get, FIRST_HOP), Ok(None));
    }

    #[test]
    fn the_scanner_never_misses_what_the_parser_would_say(
        bytes in nearly_http(), pieces in prop::collection::vec(1_usize..9, 1..30),
    ) {
        // What a parser that sees everything at once says must also be said when the bytes come in pieces.
        let mut fields = Fields::new();
        let whole = request::parse(&bytes, &mut fields, FIRST_HOP);
        let (mut scanner, mut end, mut said) = (HeadScanner::default(), 0, Ok(None));
        for size in pieces.iter().cycle() {
            end = (end + size).min(bytes.len());
            if scanner.ready(&bytes[..end], FIRST_HOP) {
                said = request::parse(&bytes[..end], &mut fields, FIRST_HOP);
                if said != Ok(None) {
                    break;
                }
            }
            if end == bytes.len() {
                break;
            }
        }
        // A head that is complete, or ends in a bare LF, is found; what is refused is refused for one reason, at some time.
        match whole {
            Ok(Some(_)) => prop_assert_eq!(said, whole),
            Err(_) if bytes.windows(4).any(|end| end == b"\r\n\r\n") => prop_assert_eq!(said, whole),
            Err(_) => prop_assert!(said == Ok(None) || said == whole),
            Ok(None) => prop_assert_eq!(said, Ok(None)),
        }
    }

    #[test]
    fn every_split_of_a_chunked_body_gives_the_same_events(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
        trailers in lines(), rest in prop::collection::vec(any::<u8>(), 0..20),
        pieces in prop::collection::vec(1_usize..20, 1..20),
    ) {
        let mut bytes = Vec::new();
        for chunk in &chunks {
            encode_chunk(&mut bytes, chunk);
        }
        bytes.extend_from_slice(&LAST_CHUNK[..3]);
        bytes.extend_from_slice(section(&trailers).as_bytes());
        bytes.extend_from_slice(b"\r\n");
        let len = bytes.len();
        bytes.extend_from_slice(&rest);
        let whole = decode(BodyFraming::Chunked, &bytes, &[bytes.len()]).expect("a good body");
        prop_assert_eq!(&whole.data, &chunks.concat());
        prop_assert_eq!(whole.trailers.len(), trailers.len());
        prop_assert_eq!(whole.len, len);
        prop_assert_eq!(decode(BodyFraming::Chunked, &bytes, &pieces).expect("a good body"), whole);
    }

    #[test]
    fn every_split_of_any_bytes_gives_the_same_verdict(
        bytes in nearly_http(), pieces in prop::collection::vec(1_usize..9, 1..20),
    ) {
        let whole = decode(BodyFraming::Chunked, &bytes, &[bytes.len().max(1)]);
        prop_assert_eq!(decode(BodyFraming::Chunked, &bytes, &pieces), whole);
    }

    #[test]
    fn no_bytes_make_the_codec_panic(bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..300), nearly_http()]) {
        let mut fields = Fields::new();
        let mut out = Vec::new();
        if let Ok(Some(head)) = request::parse(&bytes, &mut fields, FIRST_HOP) {
            request_head(&mut out, &bytes, &head, &fields, &RequestOut::new(&head, &NoEdits));
            prop_assert!(request::parse(&out, &mut fields, FIRST_HOP).expect("what we write is acceptable").is_some());
        }
        for method in [Method::Get, Method::Head, Method::Connect] {
            if let Ok(Some(head)) = response::parse(&bytes, &mut fields, method, FIRST_HOP) {
                out.clear();
                response_head(&mut out, &bytes, &head, &fields, &ResponseOut::new(&head, &NoEdits));
                prop_assert!(response::parse(&out, &mut fields, method, FIRST_HOP).expect("what we write is acceptable").is_some());
            }
        }
        let mut decoder = BodyDecoder::new(BodyFraming::Chunked);
        let mut rest = &bytes[..];
        while let Ok(step) = decoder.decode(rest) {
            rest = &rest[step.consumed..];
            if matches!(step.event, Event::NeedInput | Event::End) {
                break;
            }
        }
    }
}
