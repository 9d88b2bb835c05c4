use super::super::{BadResponse, BodyDecoder, BodyFraming, CONTINUE, Fields, Method, Version, response};
use super::{FIRST_HOP, responded, responded_to};

fn bad(bytes: &[u8]) -> BadResponse {
    match response::parse(bytes, &mut Fields::new(), Method::Get, FIRST_HOP) {
        Err(bad) => bad,
        other => panic!("{:?} was accepted: {other:?}", String::from_utf8_lossy(bytes)),
    }
}

#[test]
fn item_57_a_response_to_head_has_no_body_and_keeps_its_length() {
    let (head, _) = responded_to(Method::Head, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n");
    assert_eq!((head.framing, head.announced_length, head.keep_alive), (BodyFraming::None, Some(7), true));
    let (head, _) = responded_to(Method::Head, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!((head.framing, head.announced_length, head.keep_alive), (BodyFraming::None, None, true));
}

#[test]
fn item_58_204_and_304_have_no_body() {
    let (head, _) = responded(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!((head.framing, head.keep_alive), (BodyFraming::None, true));
    let (head, _) = responded(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n");
    assert_eq!((head.framing, head.announced_length), (BodyFraming::None, Some(9)));
}

#[test]
fn item_59_ambiguous_framing_is_a_bad_gateway() {
    for (lines, error) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", BadResponse::LengthWithEncoding),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", BadResponse::RepeatedLength),
        ("Content-Length: 5, 6\r\n", BadResponse::BadLength),
        ("Content-Length:\r\n", BadResponse::BadLength),
        ("Transfer-Encoding: gzip\r\n", BadResponse::BadEncoding),
        ("Transfer-Encoding: chunked, gzip\r\n", BadResponse::BadEncoding),
    ] {
        assert_eq!(bad(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes()), error, "{lines:?}");
    }
    assert_eq!(bad(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), BadResponse::BadEncoding);
}

#[test]
fn item_61_obs_fold_nul_and_bare_lf_are_a_bad_gateway() {
    assert_eq!(bad(b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n"), BadResponse::ObsFold);
    assert_eq!(bad(b"HTTP/1.1 200 OK\r\n X: a\r\n\r\n"), BadResponse::ObsFold);
    assert_eq!(bad(b"HTTP/1.1 200 OK\r\nX: a\0\r\n\r\n"), BadResponse::Nul);
    assert_eq!(bad(b"HTTP/1.1 200 O\0K\r\n\r\n"), BadResponse::Nul);
    assert_eq!(bad(b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n"), BadResponse::BareCr);
    assert_eq!(bad(b"HTTP/1.1 200 OK\r\nX a\r\n\r\n"), BadResponse::FieldLine);
    for bytes in
        ["HTTP/1.1 200 OK\nX: a\r\n\r\n", "HTTP/1.1 200 OK\r\nX: a\n\r\n", "HTTP/1.1 200\n\r\n", "HTTP/1.1 200 OK\n\n"]
    {
        assert_eq!(bad(bytes.as_bytes()), BadResponse::BareLf, "{bytes:?}");
    }
    for bytes in ["\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1  200 OK\r\n\r\n"] {
        assert_eq!(bad(bytes.as_bytes()), BadResponse::StatusLine, "{bytes:?}");
    }
    assert_eq!(bad(b"HTTP/1.1 600 X\r\n\r\n"), BadResponse::Status);
    assert_eq!(bad(b"HTTP/1.1 099 X\r\n\r\n"), BadResponse::Status);
    assert_eq!(bad(b"HTTP/2.0 200 OK\r\n\r\n"), BadResponse::Version);
    assert_eq!(bad(b"ICY 200 OK\r\n\r\n"), BadResponse::Version);
    assert_eq!(bad(format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(62_000)).as_bytes()), BadResponse::HeadTooLarge);
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
    assert_eq!(bad(many.as_bytes()), BadResponse::TooManyFields);
}

#[test]
fn framing_and_persistence_of_ordinary_responses() {
    let (head, _) = responded(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!((head.framing, head.keep_alive, head.status), (BodyFraming::Length(3), true, 200));
    let (head, _) = responded(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
    assert_eq!((head.framing, head.keep_alive), (BodyFraming::Chunked, false));
    let (head, _) = responded(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!((head.framing, head.keep_alive), (BodyFraming::UntilClose, false));
    let (head, _) = responded(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n");
    assert_eq!((head.version, head.keep_alive), (Version::Http10, false));
    let (head, _) = responded(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\n");
    assert!(head.keep_alive);
    // Names with underscores fool nobody on the way back.
    responded(b"HTTP/1.1 200 OK\r\nContent_Length: 3\r\n\r\n");
}

#[test]
fn a_server_says_how_long_it_keeps_a_connection() {
    for (lines, seconds) in [
        ("Keep-Alive: timeout=5, max=100\r\n", Some(5)),
        ("Keep-Alive: max=100,Timeout = 007\r\n", Some(7)),
        ("Keep-Alive: timeout=5\r\nkeep-alive: timeout=3\r\n", Some(3)),
        ("Keep-Alive: timeout=0\r\n", Some(0)),
        ("Keep-Alive: timeout=99999999999999999999\r\n", Some(u32::MAX)),
        ("Keep-Alive: timeout=-5\r\n", None),
        ("Keep-Alive: timeout=\r\n", None),
        ("Keep-Alive: timeout\r\n", None),
        ("Keep-Alive: xtimeout=5\r\n", None),
        ("Keep-Alive:\r\n", None),
        ("", None),
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n");
        assert_eq!(responded(bytes.as_bytes()).0.keep_alive_timeout_s, seconds, "{lines:?}");
    }
}

#[test]
fn item_51_a_100_is_a_head_of_its_own() {
    let (head, _) = responded(CONTINUE);
    assert_eq!((head.status, head.is_interim(), head.len), (100, true, CONTINUE.len()));
    assert_eq!((head.framing, head.keep_alive), (BodyFraming::None, true));
}

#[test]
fn item_53_a_101_that_nobody_asked_for_names_no_protocol() {
    let (head, _) = responded(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n");
    assert!(head.is_switching() && head.upgrade.is_none());
    let (head, _) = responded(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n");
    assert!(head.is_switching() && head.upgrade.is_none());
    // Nor does one of a version that has none, or one that names two.
    for (version, protocols) in
        [("1.0", "Upgrade: websocket\r\n"), ("1.1", "Upgrade: websocket\r\nUpgrade: websocket\r\n")]
    {
        let bytes = format!("HTTP/{version} 101 Switching Protocols\r\nConnection: upgrade\r\n{protocols}\r\n");
        let (head, _) = responded(bytes.as_bytes());
        assert!(head.is_switching() && head.upgrade.is_none(), "{bytes}");
    }
}

#[test]
fn item_54_what_follows_a_101_or_a_tunnel_is_no_part_of_its_head() {
    let tunnelled = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let (head, _) = responded_to(Method::Connect, tunnelled);
    assert!(head.is_tunnel(Method::Connect));
    assert_eq!(&tunnelled[head.len..], b"hello");
    let switched = b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: a\r\nContent-Length: 5\r\n\r\n\x81\0";
    let (head, _) = responded(switched);
    assert_eq!((head.framing, &switched[head.len..]), (BodyFraming::None, &b"\x81\0"[..]));
}

#[test]
fn item_58_bytes_behind_204_and_304_are_left_over() {
    for start in ["204 No Content", "304 Not Modified"] {
        let bytes = format!("HTTP/1.1 {start}\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
        let (head, _) = responded(bytes.as_bytes());
        assert!(BodyDecoder::new(head.framing).is_done());
        assert!(bytes[head.len..].starts_with("HTTP/1.1 200"), "they belong to nobody");
    }
}

#[test]
fn item_60_bytes_behind_a_whole_response_are_left_over() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n";
    let (head, _) = responded(bytes);
    let mut decoder = BodyDecoder::new(head.framing);
    let step = decoder.decode(&bytes[head.len..]).expect("a good body");
    assert_eq!((step.consumed, decoder.is_done()), (2, true), "what follows belongs to nobody");
}

#[test]
fn item_52_a_103_is_a_head_of_its_own() {
    let bytes = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let (head, _) = responded(bytes);
    assert!(head.is_interim());
    assert_eq!((head.framing, head.keep_alive), (BodyFraming::None, true));
    let (head, _) = responded(&bytes[head.len..]);
    assert_eq!((head.status, head.is_interim()), (200, false));

    let bytes = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (head, _) = responded(bytes);
    assert!(head.is_switching() && !head.is_interim());
    assert_eq!(head.upgrade.expect("a protocol").of(bytes), b"websocket");
}

#[test]
fn item_55_length_and_encoding_of_a_connect_2xx_are_ignored() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (head, _) = responded_to(Method::Connect, bytes);
    assert!(head.is_tunnel(Method::Connect));
    assert_eq!((head.framing, head.announced_length), (BodyFraming::None, None));
    let (head, _) = responded_to(Method::Connect, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(head.framing, BodyFraming::Length(5));
}

#[test]
fn reasons_may_be_empty_missing_or_in_latin_1() {
    for (line, reason) in [
        (&b"HTTP/1.1 200 Fine by me"[..], &b"Fine by me"[..]),
        (b"HTTP/1.1 200 ", b""),
        (b"HTTP/1.1 200", b""),
        (b"HTTP/1.1 200 d\xe9j\xe0", b"d\xe9j\xe0"),
    ] {
        for rest in [&b"\r\n\r\n"[..], b"\r\nX: y\r\n\r\n"] {
            let bytes = [line, rest].concat();
            let (head, _) = responded(&bytes);
            assert_eq!(head.reason.of(&bytes), reason);
            assert_eq!(head.len, bytes.len());
        }
    }
}

#[test]
fn item_43_a_response_may_not_nominate_its_framing() {
    assert_eq!(
        bad(b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\n"),
        BadResponse::BadConnection
    );
}
