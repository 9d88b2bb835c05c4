use super::super::body::{BodyDecoder, CHUNK_END, Event, LAST_CHUNK, chunk_header, encode_chunk};
use super::super::{BodyFraming, ChunkError};

/// What a body decodes to: its data, its trailers, and how many bytes it takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) data: Vec<u8>,
    pub(super) trailers: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) len: usize,
}

/// Decodes input that arrives in pieces of the sizes given (the last one repeats).
pub(super) fn decode(framing: BodyFraming, input: &[u8], pieces: &[usize]) -> Result<Decoded, ChunkError> {
    let mut decoder = BodyDecoder::new(framing);
    let (mut decoded, mut arrived, mut piece) = (Decoded::default(), 0, 0);
    loop {
        let pending = &input[decoded.len..arrived];
        let step = decoder.decode(pending)?;
        match step.event {
            Event::Data(range) => decoded.data.extend_from_slice(&pending[range]),
            Event::Trailer { name, value } => {
                decoded.trailers.push((pending[name].to_vec(), pending[value].to_vec()));
            }
            Event::End => {
                assert!(decoder.is_done());
                decoded.len += step.consumed;
                return Ok(decoded);
            }
            Event::NeedInput if arrived == input.len() => {
                decoder.end_of_stream()?;
                return Ok(decoded);
            }
            Event::NeedInput => {
                let size = pieces[piece.min(pieces.len() - 1)].max(1);
                piece += 1;
                arrived = (arrived + size).min(input.len());
            }
        }
        decoded.len += step.consumed;
    }
}

fn chunked(input: &[u8]) -> Result<Decoded, ChunkError> {
    let whole = decode(BodyFraming::Chunked, input, &[usize::MAX >> 1]);
    for size in [1, 2, 3, 7] {
        assert_eq!(decode(BodyFraming::Chunked, input, &[size]), whole, "in pieces of {size}");
    }
    whole
}

#[test]
fn chunks_are_joined_and_the_end_is_exact() {
    let body = b"5\r\nhello\r\n1\r\n \r\n0005\r\nworld\r\n0\r\n\r\n";
    let decoded = chunked(&[&body[..], b"GET /"].concat()).expect("a good body");
    assert_eq!(decoded.data, b"hello world");
    assert_eq!(decoded.len, body.len());
}

#[test]
fn item_18_a_chunk_size_is_1_to_16_hexadecimal_digits() {
    for size in
        ["0x5", "+5", "-5", " 5", "5 ", "5_0", "", "g", "00000000000000005", "fffffffffffffffff", "5\t", "\"5\""]
    {
        assert_eq!(chunked(format!("{size}\r\nhello\r\n0\r\n\r\n").as_bytes()), Err(ChunkError::Size), "{size:?}");
    }
    assert_eq!(chunked(b"0000000000000005\r\nhello\r\n0\r\n\r\n").expect("16 digits").data, b"hello");
    assert_eq!(chunked(b"ffffffffffffffff\r\nhello"), Err(ChunkError::Truncated));
    assert_eq!(chunked(b"A\r\n0123456789\r\n00\r\n\r\n").expect("upper case").data, b"0123456789");
}

#[test]
fn item_19_chunk_extensions_are_accepted_and_stripped() {
    let decoded = chunked(b"5;a=b\r\nhello\r\n0;c=\"d e\"\r\n\r\n").expect("a good body");
    assert_eq!(decoded.data, b"hello");
}

#[test]
fn item_20_control_characters_in_extensions_are_refused() {
    for extension in ["a\nb", "a\rb", "a\0b", "\n", "a=\"\x01\"", "\x7f"] {
        let body = format!("5;{extension}\r\nhello\r\n0\r\n\r\n");
        assert_eq!(chunked(body.as_bytes()), Err(ChunkError::Extension), "{extension:?}");
    }
    assert_eq!(chunked(b"5\nhello\r\n0\r\n\r\n"), Err(ChunkError::Size));
    assert_eq!(chunked(b"5\r\rhello\r\n0\r\n\r\n"), Err(ChunkError::Size));
}

#[test]
fn item_21_extensions_are_bounded_over_the_whole_message() {
    let one = |len: usize| format!("1;{}\r\nx\r\n", "e".repeat(len - 1));
    let body = one(4096) + "0\r\n\r\n";
    assert_eq!(chunked(body.as_bytes()).expect("at the bound").data, b"x");
    let body = one(4097) + "0\r\n\r\n";
    assert_eq!(chunked(body.as_bytes()), Err(ChunkError::ExtensionTooLarge));
    let body = one(64).repeat(65) + "0\r\n\r\n";
    assert_eq!(chunked(body.as_bytes()), Err(ChunkError::ExtensionTooLarge));
}

#[test]
fn item_22_chunk_data_must_be_followed_by_crlf() {
    for end in ["", "\n", "\r", "x\r\n", " \r\n"] {
        assert_eq!(chunked(format!("5\r\nhello{end}0\r\n\r\n").as_bytes()), Err(ChunkError::DataEnd), "{end:?}");
    }
}

#[test]
fn item_23_the_last_chunk_ends_in_crlf_too() {
    assert_eq!(chunked(b"0\n\n"), Err(ChunkError::Size));
    assert_eq!(chunked(b"0\r\n\n"), Err(ChunkError::Trailer));
}

#[test]
fn item_24_trailers_that_decide_about_anything_are_dropped() {
    let body = b"0\r\nContent-Length: 5\r\nX-Sum: \t1 \r\nTransfer-Encoding: chunked\r\nHost: b\r\nauthorization: x\r\n\
                 Content_Length: 1\r\nX-Forwarded-Prefix: /\r\ncache-control: no\r\ngrpc-status:0\r\nEmpty:\r\n\r\nrest";
    let decoded = chunked(body).expect("a good body");
    let expected: [(&[u8], &[u8]); 3] = [(b"X-Sum", b"1"), (b"grpc-status", b"0"), (b"Empty", b"")];
    assert!(decoded.trailers.iter().map(|(name, value)| (&name[..], &value[..])).eq(expected));
    assert_eq!(decoded.len, body.len() - 4);
}

#[test]
fn trailers_are_as_strict_and_as_bounded_as_headers() {
    for line in ["x : y", " x: y", "x", ": y", "x: a\0", "x: a\rb", "x\u{e9}: y", "x: y\r\n z"] {
        assert_eq!(chunked(format!("0\r\n{line}\r\n\r\n").as_bytes()), Err(ChunkError::Trailer), "{line:?}");
    }
    assert_eq!(chunked(b"0\r\nx: y\n\r\n"), Err(ChunkError::Trailer));
    let many = |count: usize| format!("0\r\n{}\r\n", "x: y\r\n".repeat(count));
    assert_eq!(chunked(many(32).as_bytes()).expect("at the bound").trailers.len(), 32);
    assert_eq!(chunked(many(33).as_bytes()), Err(ChunkError::TrailerTooLarge));
    let long = format!("0\r\nx: {}\r\n\r\n", "y".repeat(9000));
    assert_eq!(chunked(long.as_bytes()), Err(ChunkError::TrailerTooLarge));
}

#[test]
fn item_25_an_end_in_mid_body_is_an_error_and_no_end() {
    let body = b"5\r\nhello\r\n0\r\nx: y\r\n\r\n";
    for end in 0..body.len() {
        assert_eq!(chunked(&body[..end]), Err(ChunkError::Truncated), "{end}");
    }
    assert_eq!(decode(BodyFraming::Length(5), b"hell", &[9]), Err(ChunkError::Truncated));
}

#[test]
fn item_62_a_truncated_body_stays_truncated() {
    for (framing, part) in [(BodyFraming::Chunked, &b"5\r\nhel"[..]), (BodyFraming::Length(5), b"hel")] {
        let mut decoder = BodyDecoder::new(framing);
        let step = decoder.decode(part).expect("nothing is wrong with it");
        assert!(step.consumed <= part.len() && !matches!(step.event, Event::End));
        for _ in 0..2 {
            assert_eq!(decoder.end_of_stream(), Err(ChunkError::Truncated), "{framing:?}");
            assert!(!decoder.is_done(), "{framing:?}");
        }
    }
}

#[test]
fn item_65_an_end_behind_a_whole_message_is_none_of_it() {
    for (framing, body) in [
        (BodyFraming::Chunked, &b"4\r\nbody\r\n0\r\n\r\n"[..]),
        (BodyFraming::Length(4), b"body"),
        (BodyFraming::None, b""),
    ] {
        let mut decoder = BodyDecoder::new(framing);
        let mut rest = body;
        while !decoder.is_done() {
            rest = &rest[decoder.decode(rest).expect("a good body").consumed..];
        }
        assert_eq!((decoder.end_of_stream(), rest), (Ok(()), &b""[..]), "{framing:?}");
    }
}

#[test]
fn content_length_and_until_close_bodies() {
    let decoded = decode(BodyFraming::Length(5), b"hello world", &[3]).expect("a good body");
    assert_eq!((&decoded.data[..], decoded.len), (&b"hello"[..], 5));
    let decoded = decode(BodyFraming::UntilClose, b"hello world", &[3]).expect("a good body");
    assert_eq!(decoded.data, b"hello world");
    for framing in [BodyFraming::None, BodyFraming::Length(0)] {
        assert!(BodyDecoder::new(framing).is_done());
        assert_eq!(decode(framing, b"GET /", &[9]).expect("no body").len, 0);
    }
}

#[test]
fn bytes_that_were_relayed_elsewhere_are_counted() {
    let mut decoder = BodyDecoder::new(BodyFraming::Length(10));
    decoder.skip(4);
    assert_eq!((decoder.remaining(), decoder.is_done()), (Some(6), false));
    decoder.skip(6);
    assert_eq!((decoder.remaining(), decoder.is_done()), (Some(0), true));
}

#[test]
fn chunk_headers_are_hexadecimal_without_leading_zeros() {
    for len in [1, 9, 10, 15, 16, 255, 256, 65_535, 16_384, u64::MAX] {
        assert_eq!(chunk_header(len).as_bytes(), format!("{len:x}\r\n").as_bytes());
    }
    let mut out = Vec::new();
    encode_chunk(&mut out, b"hello");
    encode_chunk(&mut out, b"");
    out.extend_from_slice(LAST_CHUNK);
    assert_eq!(out, b"5\r\nhello\r\n0\r\n\r\n");
    assert!(out.windows(2).any(|pair| pair == CHUNK_END));
}
