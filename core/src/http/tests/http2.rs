use super::super::http2::hpack::Decoder;
use super::super::http2::{
    Malformed, PREFACE, Pseudo, Refused, Upgraded, begins_preface, encode_field, is_trailer, request_from_text,
    request_to_text, response_from_text, response_to_text, trailers_to_text,
};
use super::super::{BodyFraming, Bounds, Fields, Method, NoEdits, Refusal, RequestOut, request, request_head};
use super::{FIRST_HOP, parsed, refused, responded_to};
use crate::limits::{HEAD_FIELDS_MAX, NEXT_HOP_HEAD_FIELDS_MAX, TARGET_BYTES_MAX};

type Lines<'a> = &'a [(&'a str, &'a str)];

const GET: Pseudo<'static> =
    Pseudo { method: b"GET", scheme: Some(b"http"), authority: Some(b"a"), path: Some(b"/"), protocol: None };
const POST: Pseudo<'static> = Pseudo { method: b"POST", ..GET };
const CONNECT: Pseudo<'static> =
    Pseudo { method: b"CONNECT", scheme: None, authority: Some(b"a:1"), path: None, protocol: None };
const WEBSOCKET: Pseudo<'static> =
    Pseudo { method: b"CONNECT", path: Some(b"/chat?b"), protocol: Some(b"websocket"), ..GET };

/// The key of the example in RFC 6455 section 1.3.
const KEY: [u8; 16] = *b"the sample nonce";
const KEY_TEXT: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn bytes<'a>(lines: Lines<'a>) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone {
    lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()))
}

fn translated(pseudo: &Pseudo<'_>, lines: Lines<'_>, ended: bool) -> Result<String, Refused> {
    let mut out = b"before".to_vec();
    let result = request_to_text(&mut out, pseudo, bytes(lines), ended, KEY);
    let text = String::from_utf8(out).expect("text");
    let text = text.strip_prefix("before").expect("what was there").to_owned();
    assert!(result.is_ok() || text.is_empty(), "{text:?} was written of what is refused");
    result.map(|_| text)
}

/// The text of a request without a body.
fn text(pseudo: &Pseudo<'_>, lines: Lines<'_>) -> String {
    translated(pseudo, lines, true).expect("an acceptable request")
}

#[track_caller]
fn malformed(pseudo: &Pseudo<'_>, lines: Lines<'_>) -> Malformed {
    for ended in [true, false] {
        assert!(matches!(translated(pseudo, lines, ended), Err(Refused::Malformed(_))), "{pseudo:?} {lines:?}");
    }
    match translated(pseudo, lines, true) {
        Err(Refused::Malformed(malformed)) => malformed,
        other => panic!("{pseudo:?} {lines:?}: {other:?}"),
    }
}

/// What the parser says about the text.
fn refused_text(pseudo: &Pseudo<'_>, lines: Lines<'_>) -> Refusal {
    refused(text(pseudo, lines).as_bytes())
}

#[test]
fn a_request_becomes_the_head_that_http_1_1_has_for_it() {
    let lines = [("accept", "*/*"), ("te", "trailers"), ("x-a", "")];
    assert_eq!(text(&GET, &lines), "GET / HTTP/1.1\r\nhost: a\r\naccept: */*\r\nte: trailers\r\nx-a: \r\n\r\n");
    assert_eq!(
        translated(&POST, &[("expect", "100-continue")], false).expect("acceptable"),
        "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let with_length = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n";
    assert_eq!(translated(&POST, &[("content-length", "5")], false).expect("acceptable"), with_length);
    // Servers of HTTP/1.1 wait for a length where the method has a body.
    for (method, line) in [("POST", "content-length: 0\r\n"), ("PUT", "content-length: 0\r\n"), ("DELETE", "")] {
        let pseudo = Pseudo { method: method.as_bytes(), ..GET };
        assert_eq!(text(&pseudo, &[]), format!("{method} / HTTP/1.1\r\nhost: a\r\n{line}\r\n"));
    }
    let options = Pseudo { method: b"OPTIONS", path: Some(b"*"), ..GET };
    assert_eq!(text(&options, &[]), "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
}

#[test]
fn https_survives_as_absolute_form_and_goes_upstream_in_origin_form() {
    for (method, path, sent, seen) in
        [("GET", "/a?b=c", "/a?b=c", "/a"), ("OPTIONS", "*", "*", "/"), ("GET", "//a/../b", "//a/../b", "//a/../b")]
    {
        let pseudo = Pseudo {
            method: method.as_bytes(),
            scheme: Some(b"https"),
            authority: Some(b"A.b:8443"),
            path: Some(path.as_bytes()),
            protocol: None,
        };
        let text = text(&pseudo, &[("x", "y")]);
        let (head, fields) = parsed(text.as_bytes());
        assert!(head.https && head.len == text.len());
        assert_eq!(head.authority_full.of(text.as_bytes()), b"A.b:8443");
        assert_eq!(head.path_of(text.as_bytes()), seen.as_bytes());
        let taken = request_from_text(text.as_bytes()).unwrap();
        assert_eq!((taken.path, taken.authority), (Some(path.as_bytes()), &b"A.b:8443"[..]));
        let mut out = Vec::new();
        request_head(&mut out, text.as_bytes(), &head, &fields, &RequestOut::new(&head, &NoEdits));
        let expected = format!("{method} {sent} HTTP/1.1\r\nhost: A.b:8443\r\nx: y\r\n\r\n");
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
    let plain = text(&GET, &[]);
    assert!(!parsed(plain.as_bytes()).0.https);
    // What stands before the path counts, as in any absolute target.
    let path = format!("/{}", "a".repeat(TARGET_BYTES_MAX - "https://a/".len()));
    let long = Pseudo { scheme: Some(b"https"), path: Some(path.as_bytes()), ..GET };
    parsed(text(&long, &[]).as_bytes());
}

#[test]
fn item_68_an_upper_case_name_is_malformed() {
    assert_eq!(malformed(&GET, &[("X-a", "b")]), Malformed::UppercaseName);
    assert_eq!(malformed(&GET, &[("x-A", "b")]), Malformed::UppercaseName);
    assert_eq!(Malformed::UppercaseName.code(), "http2.uppercase_name");
}

#[test]
fn item_69_pseudo_fields_are_complete_and_nowhere_else() {
    for name in [":path", ":x", ":", ":status"] {
        assert_eq!(malformed(&GET, &[("a", "b"), (name, "/")]), Malformed::PseudoField, "{name}");
        assert_eq!(trailers_to_text(&mut Vec::new(), bytes(&[(name, "/")])), Err(Malformed::PseudoField));
        assert!(!is_trailer(name.as_bytes()), "{name}");
    }
    for pseudo in [
        Pseudo { method: b"", ..GET },
        Pseudo { scheme: None, ..GET },
        Pseudo { path: None, ..GET },
        Pseudo { authority: None, ..GET },
        Pseudo { scheme: None, ..WEBSOCKET },
        Pseudo { path: None, ..WEBSOCKET },
        Pseudo { authority: None, ..CONNECT },
    ] {
        assert_eq!(malformed(&pseudo, &[]), Malformed::MissingPseudo, "{pseudo:?}");
    }
    // Only a CONNECT that is not extended has neither scheme nor path, and its authority is never Host's.
    assert_eq!(malformed(&Pseudo { authority: None, ..CONNECT }, &[("host", "a:1")]), Malformed::MissingPseudo);
    assert_eq!(malformed(&Pseudo { path: Some(b"/"), ..CONNECT }, &[]), Malformed::BadConnect);
    assert_eq!(malformed(&Pseudo { scheme: Some(b"http"), ..CONNECT }, &[]), Malformed::BadConnect);
    assert_eq!(malformed(&Pseudo { protocol: Some(b"websocket"), ..GET }, &[]), Malformed::BadConnect);
    for method in ["GE T", "GET\r\n", "G:", "\u{e9}"] {
        assert_eq!(malformed(&Pseudo { method: method.as_bytes(), ..GET }, &[]), Malformed::BadMethod, "{method}");
    }
}

#[test]
fn item_70_a_path_that_is_empty_or_without_slash_is_malformed() {
    for path in ["", "a", "?a", "*", "http://a/", " /", "/a b", "/a\r\nb: c", "/\t", "/\x7f", "/a HTTP/1.1"] {
        assert_eq!(malformed(&Pseudo { path: Some(path.as_bytes()), ..GET }, &[]), Malformed::BadPath, "{path:?}");
    }
    let options = Pseudo { method: b"OPTIONS", path: Some(b"**"), ..GET };
    assert_eq!(malformed(&options, &[]), Malformed::BadPath);
    // The rest is the parser's, as in HTTP/1.1.
    let path = |path| Pseudo { path: Some(path), ..GET };
    assert_eq!(refused_text(&path(b"/a#b"), &[]), Refusal::TargetFragment);
    assert_eq!(refused_text(&path(b"/%00"), &[]), Refusal::TargetNul);
    assert_eq!(refused_text(&path("/\u{e9}".as_bytes()), &[]), Refusal::TargetNotAscii);
    let long = format!("/{}", "a".repeat(TARGET_BYTES_MAX));
    assert_eq!(refused_text(&path(long.as_bytes()), &[]), Refusal::TargetTooLong);
}

#[test]
fn item_71_what_would_end_a_line_or_vanish_from_it_is_malformed() {
    for value in ["a\rb", "a\nb", "a\0b", "a\r\nhost: b", " a", "a ", "\ta", "a\t", " ", "\r\n"] {
        assert_eq!(malformed(&GET, &[("x", value)]), Malformed::BadValue, "{value:?}");
        assert_eq!(malformed(&GET, &[("cookie", "a"), ("cookie", value)]), Malformed::BadValue, "{value:?}");
    }
    for name in ["", "a b", "a:", "a\r", "a\r\nb", "\u{e9}", "a\0", "(a)", " a"] {
        assert_eq!(malformed(&GET, &[(name, "x")]), Malformed::BadName, "{name:?}");
    }
    for authority in ["", "a\r\nx: y", "a b", "a\0", " a", "a/\tb"] {
        let pseudo = Pseudo { authority: Some(authority.as_bytes()), ..GET };
        assert_eq!(malformed(&pseudo, &[]), Malformed::BadAuthority, "{authority:?}");
    }
    for value in ["a\x01b", "a\x7f", "\x1b[m"] {
        assert_eq!(malformed(&GET, &[("x", value)]), Malformed::BadValue, "{value:?}");
    }
    assert_eq!(text(&GET, &[("x", "a \t b")]), "GET / HTTP/1.1\r\nhost: a\r\nx: a \t b\r\n\r\n");
}

#[test]
fn item_72_fields_about_a_connection_are_malformed() {
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        assert_eq!(malformed(&GET, &[(name, "close")]), Malformed::ConnectionField, "{name}");
        assert_eq!(malformed(&GET, &[(name, "")]), Malformed::ConnectionField, "{name}");
        assert_eq!(malformed(&WEBSOCKET, &[(name, "websocket")]), Malformed::ConnectionField, "{name}");
        assert_eq!(to_client(200, &[(name, "chunked")], false, Method::Get), Err(Malformed::ConnectionField), "{name}");
    }
}

#[test]
fn item_73_te_is_trailers_or_malformed() {
    for value in ["gzip", "trailers, gzip", "trailers;q=1", "", "trailers,"] {
        assert_eq!(malformed(&GET, &[("te", value)]), Malformed::Te, "{value:?}");
    }
    assert!(parsed(text(&GET, &[("te", "trailers")]).as_bytes()).0.te_trailers);
    assert_eq!(to_client(200, &[("te", "trailers")], false, Method::Get), Err(Malformed::Te));
}

#[test]
fn item_74_host_unlike_authority_is_malformed() {
    for host in ["b", "", "a:8080", "a:443", "a.", "a, a", "b@a"] {
        assert_eq!(malformed(&GET, &[("host", host)]), Malformed::HostMismatch, "{host:?}");
    }
    assert_eq!(malformed(&GET, &[("host", "a"), ("host", "a")]), Malformed::HostMismatch);
    // RFC 9113 section 8.3.1: normalised by the scheme; what goes on is `:authority`, once.
    for host in ["a", "A", "a:80"] {
        assert_eq!(text(&GET, &[("host", host), ("x", "y")]), "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n", "{host}");
    }
    let without = Pseudo { authority: None, ..GET };
    assert_eq!(text(&without, &[("x", "y"), ("host", "b:1")]), "GET / HTTP/1.1\r\nhost: b:1\r\nx: y\r\n\r\n");
    // What is no authority is named by the parser.
    for (authority, scheme) in [("u@a", "http"), ("u@a", "https"), ("a/b", "http"), ("a/b", "https"), ("a,b", "http")] {
        let scheme = Some(scheme.as_bytes());
        let pseudo = Pseudo { authority: Some(authority.as_bytes()), scheme, ..GET };
        assert_eq!(refused_text(&pseudo, &[]), Refusal::BadAuthority, "{authority:?}");
    }
}

#[test]
fn item_75_a_scheme_that_is_not_http_is_400() {
    for scheme in ["http://x/?", "", "ftp", "https ", "http:", "\r\n"] {
        let pseudo = Pseudo { scheme: Some(scheme.as_bytes()), ..GET };
        let refused = translated(&pseudo, &[], true).expect_err("a strange scheme");
        assert_eq!(refused, Refused::Status(Refusal::SchemeUnsupported), "{scheme:?}");
        assert_eq!((Refusal::SchemeUnsupported.status(), refused.code()), (400, "http2.scheme_unsupported"));
    }
}

#[test]
fn item_76_a_length_that_cannot_be_true_is_malformed() {
    for value in ["1", "5", "18446744073709551615"] {
        let refused = translated(&POST, &[("content-length", value)], true).expect_err("a body that never comes");
        assert_eq!(refused, Refused::Malformed(Malformed::LengthMismatch), "{value}");
        assert_eq!(to_client(200, &[("content-length", value)], true, Method::Get), Err(Malformed::LengthMismatch));
    }
    for value in ["", "+5", "-0", "0x5", "5, 5", "18446744073709551616"] {
        assert_eq!(malformed(&POST, &[("content-length", value)]), Malformed::BadLength, "{value:?}");
        assert_eq!(to_client(200, &[("content-length", value)], false, Method::Get), Err(Malformed::BadLength));
    }
    assert_eq!(malformed(&POST, &[("content-length", "0"), ("content-length", "0")]), Malformed::BadLength);
    let zero = translated(&POST, &[("content-length", "0")], true).expect("acceptable");
    assert_eq!(parsed(zero.as_bytes()).0.framing, BodyFraming::Length(0));
}

#[test]
fn item_77_cookie_crumbs_are_joined_and_each_counts() {
    let lines = [("cookie", "a=b"), ("x", "y"), ("cookie", ""), ("cookie", "c=d"), ("cookie", "e")];
    assert_eq!(text(&GET, &lines), "GET / HTTP/1.1\r\nhost: a\r\ncookie: a=b; c=d; e\r\nx: y\r\n\r\n");
    assert_eq!(text(&GET, &[("cookie", "")]), "GET / HTTP/1.1\r\nhost: a\r\ncookie: \r\n\r\n");

    let crumbs = |count| vec![("cookie", "a=b"); count];
    let whole = text(&GET, &crumbs(HEAD_FIELDS_MAX));
    assert_eq!(parsed(whole.as_bytes()).1.len(), 2);
    for count in [HEAD_FIELDS_MAX + 1, 1_000] {
        assert_eq!(translated(&GET, &crumbs(count), true), Err(Refused::Status(Refusal::TooManyFields)), "{count}");
    }
    let mixed = [vec![("x", "y"); HEAD_FIELDS_MAX - 1], crumbs(2)].concat();
    assert_eq!(translated(&GET, &mixed, true), Err(Refused::Status(Refusal::TooManyFields)));
    // From another sidecar, which sends a cookie in one, as many fields come as a hop may add.
    let next_hop = [vec![("x", "y"); NEXT_HOP_HEAD_FIELDS_MAX - 2], crumbs(1)].concat();
    let next_hop = text(&GET, &next_hop);
    assert!(matches!(request::parse(next_hop.as_bytes(), &mut Fields::new(), Bounds::NEXT_HOP), Ok(Some(_))));
    assert_eq!(refused(next_hop.as_bytes()), Refusal::TooManyFields);
    let too_many = vec![("x", "y"); NEXT_HOP_HEAD_FIELDS_MAX + 1];
    assert_eq!(translated(&GET, &too_many, true), Err(Refused::Status(Refusal::TooManyFields)));
}

#[test]
fn connect_names_its_authority_and_has_no_body() {
    for ended in [true, false] {
        let text = translated(&CONNECT, &[("host", "a:1"), ("x", "y")], ended).expect("acceptable");
        assert_eq!(text, "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nx: y\r\n\r\n");
    }
    assert_eq!(refused_text(&Pseudo { authority: Some(b"a"), ..CONNECT }, &[]), Refusal::BadTarget);
    let with_body = translated(&CONNECT, &[("content-length", "5")], false).expect("acceptable so far");
    assert_eq!(refused(with_body.as_bytes()), Refusal::ConnectWithBody);
}

#[test]
fn an_extended_connect_becomes_an_upgrade() {
    let text = translated(&WEBSOCKET, &[("sec-websocket-version", "13"), ("content-length", "0")], false);
    let text = text.expect("acceptable");
    assert_eq!(
        text,
        format!(
            "GET /chat?b HTTP/1.1\r\nhost: a\r\nsec-websocket-version: 13\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-key: {KEY_TEXT}\r\n\r\n"
        )
    );
    let (head, _) = parsed(text.as_bytes());
    assert_eq!(head.upgrade.map(|upgrade| upgrade.of(text.as_bytes())), Some(&b"websocket"[..]));
    assert_eq!((head.method, head.framing), (Method::Get, BodyFraming::None));

    let with_key = translated(&WEBSOCKET, &[("sec-websocket-key", "mine")], false).expect("acceptable");
    assert_eq!(with_key.matches("sec-websocket-key").count(), 1);
    let other = Pseudo { protocol: Some(b"connect-udp/1"), ..WEBSOCKET };
    assert!(!translated(&other, &[], false).expect("acceptable").contains("sec-websocket-key"));
    for protocol in ["", "h2c", "H2C", "a, b", "a b", "a\r\nb: c", "/", "a/b/c"] {
        let pseudo = Pseudo { protocol: Some(protocol.as_bytes()), ..WEBSOCKET };
        assert_eq!(malformed(&pseudo, &[]), Malformed::BadProtocol, "{protocol:?}");
    }
    let with_body = translated(&WEBSOCKET, &[("content-length", "5")], false);
    assert_eq!(with_body, Err(Refused::Status(Refusal::ConnectWithBody)));
}

fn to_client(status: u16, lines: Lines<'_>, ended: bool, method: Method) -> Result<(String, BodyFraming), Malformed> {
    to_client_of(status, lines, ended, method, None)
}

fn to_client_of(
    status: u16,
    lines: Lines<'_>,
    ended: bool,
    method: Method,
    tunnel: Option<Upgraded<'_>>,
) -> Result<(String, BodyFraming), Malformed> {
    let mut out = Vec::new();
    let framing = response_to_text(&mut out, status, bytes(lines), ended, method, tunnel);
    assert!(framing.is_ok() || out.is_empty());
    let framing = framing?;
    // What is announced is what the parser finds.
    let (head, _) = responded_to(method, &out);
    assert_eq!((head.len, head.framing), (out.len(), framing));
    Ok((String::from_utf8(out).expect("text"), framing))
}

#[test]
fn a_response_announces_how_its_body_ends() {
    let chunked = ("HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(), BodyFraming::Chunked);
    for ended in [true, false] {
        assert_eq!(to_client(200, &[("a", "b")], ended, Method::Get), Ok(chunked.clone()));
    }
    let with_length = "HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\n".to_owned();
    let length = [("content-length", "5")];
    assert_eq!(to_client(404, &length, false, Method::Get), Ok((with_length, BodyFraming::Length(5))));
    for (status, method, ended) in
        [(200, Method::Head, true), (200, Method::Head, false), (304, Method::Get, true), (304, Method::Get, false)]
    {
        let (text, framing) = to_client(status, &length, ended, method).expect("acceptable");
        assert_eq!((text.contains("\r\ncontent-length: 5\r\n"), framing), (true, BodyFraming::None));
        assert!(!to_client(status, &[], ended, method).expect("acceptable").0.contains("chunked"));
    }
    for (status, method) in [(204, Method::Get), (103, Method::Get), (200, Method::Connect)] {
        let (text, framing) = to_client(status, &length, false, method).expect("acceptable");
        assert_eq!((text.contains("content-length") || text.contains("chunked"), framing), (false, BodyFraming::None));
    }
}

#[test]
fn a_response_that_cannot_be_is_malformed() {
    for status in [0, 99, 101, 600, 999] {
        assert_eq!(to_client(status, &[], false, Method::Get), Err(Malformed::BadStatus), "{status}");
    }
    assert_eq!(to_client(103, &[], true, Method::Get), Err(Malformed::InterimEnd));
    assert_eq!(to_client(200, &[(":status", "200")], false, Method::Get), Err(Malformed::PseudoField));
    assert_eq!(to_client(200, &[("A", "b")], false, Method::Get), Err(Malformed::UppercaseName));
    assert_eq!(to_client(200, &[("a", "b\r\nc: d")], false, Method::Get), Err(Malformed::BadValue));
}

#[test]
fn the_answer_to_an_extended_connect_is_a_101() {
    let tunnel = Some(Upgraded { protocol: b"websocket", accept: Some(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") });
    let lines = [("sec-websocket-accept", "not ours"), ("content-length", "5"), ("a", "b")];
    let (text, framing) = to_client_of(200, &lines, false, Method::Get, tunnel).expect("acceptable");
    assert_eq!(
        text,
        "HTTP/1.1 101 Switching Protocols\r\na: b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    assert_eq!(framing, BodyFraming::None);
    // Refused: a response as any other.
    let (text, framing) = to_client_of(403, &[], false, Method::Get, tunnel).expect("acceptable");
    assert_eq!((text.starts_with("HTTP/1.1 403 "), framing), (true, BodyFraming::Chunked));
}

#[test]
fn a_request_that_we_wrote_is_taken_apart_for_http_2() {
    let text = b"POST /a?b HTTP/1.1\r\nHost: c:1\r\nX-A: b\r\nte: trailers\r\nconnection: te\r\ncontent-length: 5\r\n\r\n12345";
    let head = request_from_text(text).expect("one of ours");
    assert_eq!((head.len, head.method, head.path), (text.len() - 5, &b"POST"[..], Some(&b"/a?b"[..])));
    assert_eq!((head.authority, head.protocol, head.framing), (&b"c:1"[..], None, BodyFraming::Length(5)));
    let fields: Vec<_> = head.fields().collect();
    assert_eq!(fields, [(&b"X-A"[..], &b"b"[..]), (b"te", b"trailers"), (b"content-length", b"5")]);

    let head = request_from_text(b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n").expect("one of ours");
    assert_eq!((head.method, head.path, head.authority), (&b"CONNECT"[..], None, &b"a:1"[..]));
    let head = request_from_text(b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").expect("one of ours");
    assert_eq!(head.path, Some(&b"*"[..]));
    for len in 0..text.len() - 5 {
        assert!(request_from_text(&text[..len]).is_none(), "{len}");
    }
    for strange in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
    ] {
        assert!(request_from_text(strange.as_bytes()).is_none(), "{strange:?}");
    }
}

#[test]
fn an_upgrade_that_we_wrote_becomes_an_extended_connect() {
    let text = |method: &str, lines: &str| format!("{method} /a HTTP/1.1\r\nhost: b\r\n{lines}\r\n");
    let lines =
        "sec-websocket-key: x\r\nSec-WebSocket-Version: 13\r\nconnection: upgrade, te\r\nupgrade: websocket\r\n";
    let upgrade = text("GET", lines);
    let head = request_from_text(upgrade.as_bytes()).expect("one of ours");
    assert_eq!((head.method, head.protocol), (&b"CONNECT"[..], Some(&b"websocket"[..])));
    assert_eq!((head.path, head.websocket_key()), (Some(&b"/a"[..]), Some(&b"x"[..])));
    assert_eq!(head.fields().collect::<Vec<_>>(), [(&b"Sec-WebSocket-Version"[..], &b"13"[..])]);
    // RFC 8441 has no place for a body, or for another method: the upgrade is what is left out.
    for ignored in [
        text("POST", lines),
        text("GET", &format!("content-length: 1\r\n{lines}")),
        text("GET", "upgrade: websocket\r\n"),
        text("GET", "connection: upgrade\r\nupgrade: h2c\r\n"),
    ] {
        let head = request_from_text(ignored.as_bytes()).expect("one of ours");
        assert_eq!((head.method == b"CONNECT", head.protocol), (false, None), "{ignored:?}");
        assert!(!head.fields().any(|(name, _)| matches!(name, b"upgrade" | b"connection")), "{ignored:?}");
    }
}

#[test]
fn a_response_that_we_wrote_is_taken_apart_for_http_2() {
    let text =
        b"HTTP/1.1 200 OK\r\nA: b\r\nkeep-alive: timeout=5\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let head = response_from_text(text, Method::Get).expect("one of ours");
    assert_eq!((head.len, head.status, head.framing), (text.len(), 200, BodyFraming::Chunked));
    assert_eq!((head.is_tunnel, head.is_interim()), (false, false));
    assert_eq!(head.fields().collect::<Vec<_>>(), [(&b"A"[..], &b"b"[..])]);
    for len in 0..text.len() {
        assert!(response_from_text(&text[..len], Method::Get).is_none(), "{len}");
    }

    let of = |status: u16, method| {
        let text = format!("HTTP/1.1 {status} X\r\ncontent-length: 5\r\n\r\n");
        let head = response_from_text(text.as_bytes(), method).expect("one of ours");
        (head.status, head.framing, head.is_tunnel, head.fields().count())
    };
    assert_eq!(of(200, Method::Get), (200, BodyFraming::Length(5), false, 1));
    assert_eq!(of(200, Method::Head), (200, BodyFraming::None, false, 1));
    assert_eq!(of(304, Method::Get), (304, BodyFraming::None, false, 1));
    assert_eq!(of(204, Method::Get), (204, BodyFraming::None, false, 0));
    assert_eq!(of(103, Method::Get), (103, BodyFraming::None, false, 0));
    assert_eq!(of(200, Method::Connect), (200, BodyFraming::None, true, 0));
    assert_eq!(of(403, Method::Connect), (403, BodyFraming::Length(5), false, 1));
    // Host means nothing in a response.
    assert!(response_from_text(b"HTTP/1.1 200 OK\r\nhost: a\r\nhost: b\r\n\r\n", Method::Get).is_some());
    let text = b"HTTP/1.1 200 \r\nconnection: close\r\n\r\n";
    assert_eq!(response_from_text(text, Method::Get).map(|head| head.framing), Some(BodyFraming::UntilClose));

    let text = b"HTTP/1.1 101 X\r\nsec-websocket-accept: x\r\nsec-websocket-protocol: y\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let head = response_from_text(text, Method::Get).expect("one of ours");
    assert_eq!((head.status, head.is_tunnel, head.is_interim()), (200, true, false));
    assert_eq!(head.fields().collect::<Vec<_>>(), [(&b"sec-websocket-protocol"[..], &b"y"[..])]);
    for strange in
        ["HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 099 X\r\n\r\n", "HTTP/1.1 20\r\n\r\n"]
    {
        assert!(response_from_text(strange.as_bytes(), Method::Get).is_none(), "{strange:?}");
    }
}

#[test]
fn trailers_become_lines_without_what_must_not_come_there() {
    let mut out = Vec::new();
    let lines = [("grpc-status", "0"), ("host", "a"), ("content-length", "1"), ("grpc-message", "")];
    trailers_to_text(&mut out, bytes(&lines)).expect("acceptable");
    assert_eq!(out, b"grpc-status: 0\r\ngrpc-message: \r\n");
    assert!(is_trailer(b"grpc-status") && !is_trailer(b"authorization") && !is_trailer(b"connection"));
    assert!(!is_trailer(b"") && !is_trailer(b"a b"));
    for (name, value) in [("transfer-encoding", "chunked"), ("X", "y"), ("x", "y\r\nz: a")] {
        assert!(trailers_to_text(&mut Vec::new(), bytes(&[(name, value)])).is_err(), "{name}");
    }
}

#[test]
fn the_preface_is_known_from_its_first_byte_on() {
    assert!(!begins_preface(b""));
    for len in 1..=PREFACE.len() {
        assert!(begins_preface(&PREFACE[..len]), "{len}");
    }
    assert!(begins_preface(&[PREFACE, b"\0\0\0\x04\0"].concat()));
    for other in ["GET / HTTP/1.1\r\n", "PUT", "PRI * HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSN", "\r\n"] {
        assert!(!begins_preface(other.as_bytes()), "{other:?}");
    }
    // The parser knows nothing of it: from its first line on it is a request in another version.
    let line = b"PRI * HTTP/2.0\r\n".len();
    for len in 1..=PREFACE.len() {
        let expected = if len < line { Ok(None) } else { Err(Refusal::VersionUnsupported) };
        assert_eq!(request::parse(&PREFACE[..len], &mut Fields::new(), FIRST_HOP), expected, "{len}");
    }
    assert_eq!(Refusal::VersionUnsupported.status(), 505);
}

#[test]
fn all_fields_of_a_head_go_on_however_many_and_however_long_they_are() {
    for (count, bytes) in [(0, 1), (15, 1), (16, 1), (17, 1), (100, 1), (3, 70_000)] {
        let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
        let value = "v".repeat(bytes);
        let names: Vec<_> = (0..count).map(|i| format!("X-{i}")).collect();
        names.iter().for_each(|name| text.extend_from_slice(format!("{name}: {value}\r\n").as_bytes()));
        text.extend_from_slice(b"Content-Length: 3\r\n\r\nabc");
        let head = response_from_text(&text, Method::Get).unwrap();
        assert_eq!((head.len, head.framing), (text.len() - 3, BodyFraming::Length(3)));
        let sent = names.iter().map(|name| (name.as_bytes(), value.as_bytes()));
        let sent: Vec<_> = sent.chain([(&b"Content-Length"[..], &b"3"[..])]).collect();
        assert_eq!(head.fields().collect::<Vec<_>>(), sent);
    }
}

#[test]
fn names_of_any_length_are_sent_in_lower_case() {
    for (len, letters) in (1..100).flat_map(|len| [(len, b"X-Ab9_Z"), (len, b"x-ab9_z")]) {
        let name: Vec<u8> = letters.iter().copied().cycle().take(len).collect();
        let mut block = Vec::new();
        encode_field(&mut block, &name, b"A value");
        let mut seen = Vec::new();
        let keep = |name: &[u8], value: &[u8], _| seen.push((name.to_vec(), value.to_vec()));
        Decoder::new(4_096).decode(&block, &mut Vec::new(), 1_000, keep).expect("a block of ours");
        assert_eq!(seen, [(name.to_ascii_lowercase(), b"A value".to_vec())]);
    }
}
