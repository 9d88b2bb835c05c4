use super::*;

const OK: Answer = Answer { status: 200, keep_alive: true };

/// Responses with the method's HEAD flag and what they decode to.
fn responses() -> Vec<(&'static str, bool, &'static [u8], Answer)> {
    vec![
        ("content-length", false, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nserver: x\r\n\r\nhello", OK),
        ("empty body", false, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", OK),
        (
            "chunked",
            false,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=1\r\n0123456789\r\n0\r\n\r\n",
            OK,
        ),
        (
            "chunked with trailers",
            false,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nchecksum: 1\r\nb: 2\r\n\r\n",
            OK,
        ),
        ("HEAD", true, b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", OK),
        ("204", false, b"HTTP/1.1 204 No Content\r\n\r\n", Answer { status: 204, keep_alive: true }),
        ("304", false, b"HTTP/1.1 304 x\r\ncontent-length: 9\r\n\r\n", Answer { status: 304, keep_alive: true }),
        (
            "interim responses first",
            false,
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx",
            OK,
        ),
        (
            "connection: close",
            false,
            b"HTTP/1.1 503 Busy\r\nconnection: foo, Close\r\ncontent-length: 2\r\n\r\nno",
            Answer { status: 503, keep_alive: false },
        ),
        (
            "version 1.0",
            false,
            b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nno",
            Answer { status: 200, keep_alive: false },
        ),
    ]
}

#[test]
fn a_response_decodes_the_same_when_split_at_every_byte() {
    for (name, to_head, bytes, expected) in responses() {
        for split in 0..=bytes.len() {
            let mut decoder = ResponseDecoder::new(to_head);
            let first = decoder.feed(&bytes[..split]).unwrap();
            let answer = if split == bytes.len() {
                first
            } else {
                assert_eq!(first, None, "{name}: complete after {split} bytes");
                decoder.feed(&bytes[split..]).unwrap()
            };
            assert_eq!(answer, Some(expected), "{name}: split after {split} bytes");
        }
    }
}

#[test]
fn a_response_decodes_the_same_byte_by_byte_and_after_a_reset() {
    for (name, to_head, bytes, expected) in responses() {
        let mut decoder = ResponseDecoder::new(to_head);
        for turn in 0..2 {
            let mut answers = bytes.chunks(1).map(|byte| decoder.feed(byte).unwrap()).collect::<Vec<_>>();
            assert_eq!(answers.pop(), Some(Some(expected)), "{name}: turn {turn}");
            assert!(answers.iter().all(Option::is_none), "{name}: turn {turn}");
            decoder.reset();
        }
    }
}

#[test]
fn only_a_body_without_length_may_end_with_the_connection() {
    let mut decoder = ResponseDecoder::new(false);
    assert_eq!(decoder.feed(b"HTTP/1.1 200 OK\r\n\r\nsome bytes").unwrap(), None);
    assert_eq!(decoder.end(), Some(Answer { status: 200, keep_alive: false }));

    for cut in [&b"HTTP/1.1 200 OK\r\n"[..], b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", b""] {
        let mut decoder = ResponseDecoder::new(false);
        assert_eq!(decoder.feed(cut).unwrap(), None);
        assert_eq!(decoder.end(), None);
    }
}

#[test]
fn malformed_responses_are_refused() {
    let cases: [(&[u8], DecodeError); 8] = [
        (b"SSH-2.0-OpenSSH\r\n\r\n", BadResponse::Version.into()),
        (b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n", BadResponse::BadLength.into()),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", BadResponse::RepeatedLength.into()),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", BadResponse::BadLength.into()),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", BadResponse::BadEncoding.into()),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz", ChunkError::Size.into()),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n", ChunkError::DataEnd.into()),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", DecodeError::Unsolicited),
    ];
    for (bytes, expected) in cases {
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(ResponseDecoder::new(false).feed(bytes), Err(expected), "{text}");
    }
}

#[test]
fn an_endless_head_or_trailer_is_refused() {
    let mut decoder = ResponseDecoder::new(false);
    let mut result = decoder.feed(b"HTTP/1.1 200 OK\r\nx: ");
    for _ in 0..=BOUNDS.head_bytes / 1024 {
        result = result.and_then(|_| decoder.feed(&[b'a'; 1024]));
    }
    assert_eq!(result, Err(BadResponse::HeadTooLarge.into()));

    let mut decoder = ResponseDecoder::new(false);
    let mut result = decoder.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ");
    for _ in 0..=BOUNDS.head_bytes / 1024 {
        result = result.and_then(|_| decoder.feed(&[b'a'; 1024]));
    }
    assert_eq!(result, Err(ChunkError::TrailerTooLarge.into()));
}

/// All events of a stream of requests that comes in the given pieces.
fn request_events<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<RequestEvent> {
    let mut decoder = RequestDecoder::default();
    let mut events = Vec::new();
    for mut piece in pieces {
        loop {
            let (used, event) = decoder.next(piece).unwrap();
            piece = &piece[used..];
            if event == RequestEvent::NeedMore {
                break;
            }
            events.push(event);
        }
    }
    events
}

#[test]
fn pipelined_requests_with_bodies_decode_the_same_when_split_at_every_byte() {
    let bytes: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n\
        POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc\
        POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
        HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let plain = RequestEvent::Complete(Request { keep_alive: true, is_head: false, is_held: false });
    let expected =
        vec![plain, plain, plain, RequestEvent::Complete(Request { keep_alive: false, is_head: true, is_held: false })];
    for split in 0..=bytes.len() {
        let (first, second) = bytes.split_at(split);
        assert_eq!(request_events([first, second].into_iter()), expected, "split after {split} bytes");
    }
    assert_eq!(request_events(bytes.chunks(1)), expected);
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_to_go_on_once() {
    let head: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n";
    let complete = RequestEvent::Complete(Request { keep_alive: true, is_head: false, is_held: false });
    assert_eq!(request_events([head, b"abc"].into_iter()), vec![RequestEvent::ExpectsContinue, complete]);
    let whole = [head, b"abc"].concat();
    assert_eq!(request_events([&whole[..]].into_iter()), vec![complete], "the body came unasked");
}
