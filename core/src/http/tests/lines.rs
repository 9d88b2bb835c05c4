//! Our reading of field lines against httparse's: what both accept they read alike, and what only one accepts is what our
//! rules forbid.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::kind::{Class, classify};
use super::super::{BadResponse, Fields, Method, Refusal, request, response};
use super::{FIRST_HOP, parsed, refused};

/// Names and values.
type Lines = Vec<(Vec<u8>, Vec<u8>)>;

/// What httparse says of a request: length and fields, that bytes are missing, or that it is none.
fn by_httparse(bytes: &[u8]) -> Result<Option<(usize, Lines)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    let status = request.parse(bytes)?;
    let lines = request.headers.iter().map(|header| (header.name.as_bytes().to_vec(), header.value.to_vec()));
    Ok(match status {
        httparse::Status::Complete(len) => Some((len, lines.collect())),
        httparse::Status::Partial => None,
    })
}

fn lines_of(bytes: &[u8], fields: &Fields) -> Lines {
    fields.iter().map(|field| (field.name.of(bytes).to_vec(), field.value.of(bytes).to_vec())).collect()
}

/// Whether a line ends in LF alone, as httparse allows.
fn has_bare_lf(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().any(|(i, &b)| b == b'\n' && (i == 0 || bytes[i - 1] != b'\r'))
}

/// Refusals of what the lines say, which httparse does not look at. Those of how they are spelled are not among them.
fn is_about_meaning(refusal: Refusal) -> bool {
    !matches!(
        refusal,
        Refusal::BareLf
            | Refusal::BareCr
            | Refusal::Nul
            | Refusal::ObsFold
            | Refusal::SpaceBeforeColon
            | Refusal::SpaceBeforeFirstField
            | Refusal::NoColon
            | Refusal::EmptyFieldName
            | Refusal::BadFieldName
            | Refusal::BadFieldValue
            | Refusal::TooManyFields
            | Refusal::Malformed
    )
}

/// Names of all lengths around the two looks of eight bytes, known ones, and such as have other token characters.
fn names() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "TE",
        "Via",
        "Accept",
        "Cookie",
        "X-Request-Id",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "Proxy-Connection",
        "X-Forwarded-Proto",
        "X-Forwarded-Client-Cert",
        "X-Envoy-Attempt-Count",
        "Content_Length",
        "x-forwarded-client_cert",
    ]);
    prop_oneof![
        known.prop_map(|name| name.as_bytes().to_vec()),
        "[a-zA-Z0-9-]{1,40}".prop_map(String::into_bytes),
        "[!#$%&'*+.^_`|~a-z0-9-]{1,20}".prop_map(String::into_bytes),
    ]
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![8 => 0x20..=0x7e_u8, 1 => Just(b'\t'), 1 => 0x80..=0xff_u8];
    prop::collection::vec(byte, 0..50)
}

/// A head of such lines, white space around the values included.
fn heads() -> impl Strategy<Value = Vec<u8>> {
    let line = (names(), "[ \t]{0,3}", values())
        .prop_map(|(name, blanks, value)| [&name[..], b":", blanks.as_bytes(), &value, b"\r\n"].concat());
    prop::collection::vec(line, 0..8)
        .prop_map(|lines| [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], &lines.concat(), b"\r\n"].concat())
}

/// A change of one byte: put in, left out or replaced.
pub(super) fn mutations() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    let byte = prop_oneof![prop::sample::select(b"\r\n\t :\0\x7f\x80_-".to_vec()), any::<u8>()];
    prop::collection::vec((any::<Index>(), 0..3_u8, byte), 0..4)
}

pub(super) fn mutated(mut bytes: Vec<u8>, mutations: &[(Index, u8, u8)], from: usize) -> Vec<u8> {
    for (at, how, byte) in mutations {
        if bytes.len() <= from {
            break;
        }
        let at = from + at.index(bytes.len() - from);
        match how {
            0 => bytes[at] = *byte,
            1 => bytes.insert(at, *byte),
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

/// What must hold of a request whose first line is sound.
fn agrees(bytes: &[u8]) -> Result<(), TestCaseError> {
    let mut fields = Fields::new();
    let ours = request::parse(bytes, &mut fields, FIRST_HOP);
    let theirs = by_httparse(bytes);
    match (ours, theirs) {
        (Ok(Some(head)), Ok(Some((len, lines)))) => {
            prop_assert_eq!(head.len, len);
            prop_assert_eq!(lines_of(bytes, &fields), lines);
            for field in fields.iter() {
                let name = field.name.of(bytes);
                prop_assert_eq!(classify(name), Class::Kind(field.kind), "{}", String::from_utf8_lossy(name));
            }
        }
        (Ok(Some(_)), theirs) => prop_assert!(false, "httparse says {theirs:?}"),
        // We wait for what says what is wrong with a line, until it ends.
        (Ok(None), Err(_)) => {
            let ended = request::parse(&[bytes, b"\r\n\r\n"].concat(), &mut fields, FIRST_HOP);
            prop_assert!(ended.is_err_and(|refusal| !is_about_meaning(refusal)), "{ended:?}");
        }
        (Ok(None), theirs) => prop_assert_eq!(theirs, Ok(None)),
        // A head that httparse accepts, or the beginning of one, has a bare LF if we mind how it is spelled.
        (Err(refusal), Ok(Some((len, _)))) => {
            prop_assert!(is_about_meaning(refusal) || has_bare_lf(&bytes[..len]), "{refusal:?}");
        }
        (Err(refusal), Ok(None)) => prop_assert!(has_bare_lf(bytes), "{refusal:?}"),
        (Err(refusal), Err(_)) => prop_assert!(!is_about_meaning(refusal), "{refusal:?}"),
    }
    Ok(())
}

/// Up to the last byte of `GET / HTTP/1.1 CR LF`.
const REQUEST_LINE_BYTES: usize = 16;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_sound_section_is_read_as_httparse_reads_it(bytes in heads()) {
        let mut fields = Fields::new();
        let (len, lines) = by_httparse(&bytes).expect("sound").expect("whole");
        match request::parse(&bytes, &mut fields, FIRST_HOP) {
            Ok(Some(head)) => {
                prop_assert_eq!(head.len, len);
                prop_assert_eq!(lines_of(&bytes, &fields), lines);
            }
            Err(refusal) => prop_assert!(is_about_meaning(refusal), "{refusal:?}"),
            Ok(None) => prop_assert!(false, "not whole"),
        }
    }

    #[test]
    fn a_mutated_section_gets_the_verdict_of_httparse_and_our_rules(
        bytes in heads(), mutations in mutations(), cut in prop::option::of(any::<Index>()), body in values(),
    ) {
        let mut bytes = mutated(bytes, &mutations, REQUEST_LINE_BYTES);
        bytes.extend_from_slice(&body);
        if let Some(cut) = cut {
            let len = REQUEST_LINE_BYTES + cut.index(bytes.len() - REQUEST_LINE_BYTES);
            bytes.truncate(len);
        }
        agrees(&bytes)?;
    }

    #[test]
    fn any_bytes_after_a_request_line_get_the_verdict_of_httparse_and_our_rules(
        section in prop::collection::vec(prop::sample::select(b"\r\n\r\n\t :aB-_!\0\x7f\xe9".to_vec()), 0..24),
    ) {
        agrees(&[b"GET / HTTP/1.1\r\n", &section[..]].concat())?;
        agrees(&[b"GET / HTTP/1.1\r\nHost: a\r\n", &section[..], b"\r\n\r\n"].concat())?;
    }

    #[test]
    fn a_mutated_head_is_accepted_only_as_httparse_reads_it(bytes in heads(), mutations in mutations()) {
        let bytes = mutated(bytes, &mutations, 0);
        let mut fields = Fields::new();
        if let Ok(Some(head)) = request::parse(&bytes, &mut fields, FIRST_HOP) {
            let mut headers = [httparse::EMPTY_HEADER; 100];
            let mut request = httparse::Request::new(&mut headers);
            prop_assert_eq!(request.parse(&bytes), Ok(httparse::Status::Complete(head.len)));
            prop_assert_eq!(request.method.map(str::as_bytes), Some(head.method_name.of(&bytes)));
            prop_assert_eq!(request.path.map(str::as_bytes), Some(head.target.of(&bytes)));
            let lines: Lines = request.headers.iter().map(|line| (line.name.into(), line.value.into())).collect();
            prop_assert_eq!(lines_of(&bytes, &fields), lines);
        }
    }

    #[test]
    fn a_mutated_response_is_accepted_only_as_httparse_reads_it(
        bytes in heads(), status in "[0-9]{3}|200", reason in "( [ -~\t]{0,20})?", mutations in mutations(),
    ) {
        let bytes = [b"HTTP/1.1 ", status.as_bytes(), reason.as_bytes(), b"\r\n", &bytes[REQUEST_LINE_BYTES..]].concat();
        agrees_on_response(&mutated(bytes, &mutations, 0))?;
    }
}

#[test]
fn a_line_that_is_wrong_and_goes_on_is_waited_for() {
    agrees_on_response(b"HTTP/1.1 000\r\nHost: a\r\n\x80\x80").unwrap();
    agrees(b"GET / HTTP/1.1\r\nHost: a\r\n\x80\x80").unwrap();
}

fn agrees_on_response(bytes: &[u8]) -> Result<(), TestCaseError> {
    let mut fields = Fields::new();
    let ours = response::parse(bytes, &mut fields, Method::Get, FIRST_HOP);
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut response = httparse::Response::new(&mut headers);
    let theirs = response.parse(bytes);
    match ours {
        Ok(Some(head)) => {
            prop_assert_eq!(theirs, Ok(httparse::Status::Complete(head.len)));
            prop_assert_eq!(response.code, Some(head.status));
            // Of a reason in Latin-1 httparse tells nothing.
            let has_latin = head.reason.of(bytes).iter().any(|&b| b >= 0x80);
            prop_assert!(has_latin || response.reason.map(str::as_bytes) == Some(head.reason.of(bytes)));
            let lines: Lines = response.headers.iter().map(|line| (line.name.into(), line.value.into())).collect();
            prop_assert_eq!(lines_of(bytes, &fields), lines);
        }
        // As with requests.
        Ok(None) if theirs.is_err() => {
            let ended = response::parse(&[bytes, b"\r\n\r\n"].concat(), &mut fields, Method::Get, FIRST_HOP);
            prop_assert!(ended.is_err_and(|refusal| !is_about_framing(refusal)), "{ended:?}");
        }
        Ok(None) => prop_assert_eq!(theirs, Ok(httparse::Status::Partial)),
        // httparse passes over empty lines before the status line.
        Err(_) if bytes.starts_with(b"\r\n") => {}
        Err(refusal) => match theirs {
            Ok(httparse::Status::Complete(len)) => {
                prop_assert!(is_about_framing(refusal) || has_bare_lf(&bytes[..len]), "{refusal:?}");
            }
            Ok(httparse::Status::Partial) => prop_assert!(has_bare_lf(bytes), "{refusal:?}"),
            Err(_) => prop_assert!(!is_about_framing(refusal), "{refusal:?}"),
        },
    }
    Ok(())
}

/// Refusals of responses that httparse has no reason for.
fn is_about_framing(refusal: BadResponse) -> bool {
    matches!(
        refusal,
        BadResponse::Status
            | BadResponse::LengthWithEncoding
            | BadResponse::RepeatedLength
            | BadResponse::BadLength
            | BadResponse::BadEncoding
            | BadResponse::BadConnection
    )
}

#[test]
fn each_byte_in_a_name_of_each_length_is_judged_as_a_token_character() {
    for len in 1..40 {
        for at in 0..len {
            for byte in 0..=255_u8 {
                let mut name = vec![b'a'; len];
                name[at] = byte;
                let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\n", &name[..], b": v\r\n\r\n"].concat();
                let said = request::parse(&bytes, &mut Fields::new(), FIRST_HOP);
                // A colon ends the name sooner; what follows it may stand in a value.
                let is_good = super::super::kind::TOKEN[usize::from(byte)] || (byte == b':' && at > 0);
                assert_eq!(matches!(said, Ok(Some(_))), is_good, "{byte:#x} at {at} of {len}");
            }
        }
    }
}

#[test]
fn each_byte_in_a_value_of_each_length_is_judged_as_a_value_byte() {
    for len in 1..40 {
        for at in 0..len {
            for byte in 0..=255_u8 {
                let mut value = vec![b'v'; len];
                value[at] = byte;
                let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &value[..], b"\r\n\r\n"].concat();
                let said = request::parse(&bytes, &mut Fields::new(), FIRST_HOP);
                let is_good = byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
                assert_eq!(matches!(said, Ok(Some(_))), is_good, "{byte:#x} at {at} of {len}");
            }
        }
    }
}

#[test]
fn names_may_begin_with_any_token_character() {
    for name in ["!", "#a", "_", "~x-request-id", "!#$%&'*+-.^_`|~", "-", "'abcdefghijklmnopqrstuvwxyz"] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: v\r\n\r\n").into_bytes();
        let (_, fields) = parsed(&bytes);
        assert_eq!(lines_of(&bytes, &fields)[1], (name.as_bytes().to_vec(), b"v".to_vec()));
    }
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: a\r\n(: v\r\n\r\n"), Refusal::BadFieldName);
}
