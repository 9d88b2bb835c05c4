use proptest::prelude::*;

use super::super::body::encode_chunk;
use super::super::{
    BodyDecoder, BodyFraming, Event, Fields, HeadScanner, LAST_CHUNK, Method, NoEdits, RequestOut, ResponseOut,
    request, request_head, response, response_head,
};
use super::bodies::decode;
use super::{parsed, responded};

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
fn pairs(buf: &[u8], fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pair = |field: &super::super::Field| (field.name.of(buf).to_vec(), field.value.of(buf).to_vec());
    fields.iter().map(pair).filter(|(name, _)| !name.eq_ignore_ascii_case(b"content-length")).collect()
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
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_request_that_is_written_parses_to_the_same(
        method in "[A-Z]{1,9}", path in "(/[a-zA-Z0-9._~-]{0,8}){1,4}", query in prop::option::of("[a-z=&\\\\]{0,12}"),
        host in "[a-zA-Z0-9.-]{1,20}(:[1-9][0-9]{0,3})?", length in prop::option::of(any::<u64>()), lines in lines(),
    ) {
        prop_assume!(method != "CONNECT");
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let length = length.map(|length| format!("Content-Length: {length}\r\n")).unwrap_or_default();
        let bytes = format!("{method} {path}{query} HTTP/1.1\r\nHost: {host}\r\n{length}{}\r\n", section(&lines));
        let (head, fields) = parsed(bytes.as_bytes());
        prop_assert_eq!(head.len, bytes.len());
        let mut out = Vec::new();
        request_head(&mut out, bytes.as_bytes(), &head, &fields, &RequestOut::new(&head, &NoEdits));
        let (again, fields_again) = parsed(&out);
        prop_assert_eq!(again.len, out.len());
        prop_assert_eq!(again.target.of(&out), head.target.of(bytes.as_bytes()));
        prop_assert_eq!(again.authority_full.of(&out), host.as_bytes());
        prop_assert_eq!((again.method, again.port, again.framing), (head.method, head.port, head.framing));
        prop_assert_eq!(pairs(&out, &fields_again), pairs(bytes.as_bytes(), &fields));
    }

    #[test]
    fn a_response_that_is_written_parses_to_the_same(
        status in 200_u16..600, reason in "[A-Za-z]([ -~]{0,20}[!-~])?", length in any::<u64>(), lines in lines(),
    ) {
        let bytes = format!("HTTP/1.1 {status} {reason}\r\n{}Content-Length: {length}\r\n\r\n", section(&lines));
        let (head, fields) = responded(bytes.as_bytes());
        let mut out = Vec::new();
        response_head(&mut out, bytes.as_bytes(), &head, &fields, &ResponseOut::new(&head, &NoEdits));
        let (again, fields_again) = responded(&out);
        prop_assert_eq!(again.reason.of(&out), reason.as_bytes());
        prop_assert_eq!((again.status, again.framing), (status, head.framing));
        prop_assert_eq!(pairs(&out, &fields_again), pairs(bytes.as_bytes(), &fields));
    }

    #[test]
    fn a_prefix_of_a_good_head_asks_for_more(lines in lines(), cut in any::<prop::sample::Index>()) {
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", section(&lines));
        let end = cut.index(bytes.len());
        prop_assert_eq!(request::parse(&bytes.as_bytes()[..end], &mut Fields::new()), Ok(None));
        let bytes = format!("HTTP/1.1 200 OK\r\n{}\r\n", section(&lines));
        let end = cut.index(bytes.len());
        prop_assert_eq!(response::parse(&bytes.as_bytes()[..end], &mut Fields::new(), Method::Get), Ok(None));
    }

    #[test]
    fn the_scanner_never_misses_what_the_parser_would_say(
        bytes in nearly_http(), pieces in prop::collection::vec(1_usize..9, 1..30),
    ) {
        // What a parser that sees everything at once says must also be said when the bytes come in pieces.
        let mut fields = Fields::new();
        let whole = request::parse(&bytes, &mut fields);
        let (mut scanner, mut end, mut said) = (HeadScanner::default(), 0, Ok(None));
        for size in pieces.iter().cycle() {
            end = (end + size).min(bytes.len());
            if scanner.ready(&bytes[..end]) {
                said = request::parse(&bytes[..end], &mut fields);
                if said != Ok(None) {
                    break;
                }
            }
            if end == bytes.len() {
                break;
            }
        }
        // A head that is complete, or ends in a bare LF, is found; a refusal may name another rule of the same bytes.
        match whole {
            Ok(Some(_)) => prop_assert_eq!(said, whole),
            Err(_) if bytes.windows(4).any(|end| end == b"\r\n\r\n") => prop_assert!(said.is_err()),
            _ => prop_assert!(!matches!(said, Ok(Some(_)))),
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
        if let Ok(Some(head)) = request::parse(&bytes, &mut fields) {
            request_head(&mut out, &bytes, &head, &fields, &RequestOut::new(&head, &NoEdits));
            prop_assert!(request::parse(&out, &mut fields).expect("what we write is acceptable").is_some());
        }
        for method in [Method::Get, Method::Head, Method::Connect] {
            if let Ok(Some(head)) = response::parse(&bytes, &mut fields, method) {
                out.clear();
                response_head(&mut out, &bytes, &head, &fields, &ResponseOut::new(&head, &NoEdits));
                prop_assert!(response::parse(&out, &mut fields, method).expect("what we write is acceptable").is_some());
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
