use proptest::prelude::*;

use super::super::http2::{Pseudo, Upgraded, request_from_text, request_to_text, response_from_text, response_to_text};
use super::super::{
    BodyFraming, Bounds, ConnectionOption, Fields, Method, NoEdits, RequestHead, RequestOut, ResponseOut, request,
    request_head, response, response_head,
};
use super::parsed;

type Lines = Vec<(Vec<u8>, Vec<u8>)>;

/// Names that mean something, names that do not, and what is none.
fn names() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "host",
        "cookie",
        "cookie",
        "te",
        "expect",
        "content-length",
        "trailer",
        "http2-settings",
        "authorization",
        "x-forwarded-for",
        "sec-websocket-key",
        "sec-websocket-accept",
        "date",
        "via",
        "connection",
        "upgrade",
        "X-a",
        ":path",
        "",
        "content_length",
        "transfer-encoding",
        "max-forwards",
    ];
    prop_oneof![
        4 => "[a-z][a-z0-9!#$%&'*+.^_`|~-]{0,20}".prop_map(String::into_bytes),
        4 => prop::sample::select(known.to_vec()).prop_map(|name| name.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ]
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "([!-~]([ -~\t]{0,30}[!-~])?)?".prop_map(String::into_bytes),
        3 => prop::sample::select(vec!["a", "0", "5", "trailers", "100-continue", "a:80"]).prop_map(|value| value.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
        1 => Just(b"a\r\nb: c".to_vec()),
    ]
}

fn lines() -> impl Strategy<Value = Lines> {
    // Mostly what is acceptable.
    let usual = ("x-[a-z]{1,8}", "([!-~]([ -~]{0,10}[!-~])?)?");
    let usual = usual.prop_map(|(name, value): (String, String)| (name.into_bytes(), value.into_bytes()));
    prop_oneof![
        4 => prop::collection::vec(usual, 0..8),
        2 => prop::collection::vec((names(), values()), 0..3),
        1 => prop::collection::vec((names(), values()), 0..6),
    ]
}

/// A pseudo field that may be missing or strange.
fn part(usual: &'static str) -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        20 => usual.prop_map(|text| Some(text.into_bytes())),
        2 => Just(None),
        1 => values().prop_map(Some),
    ]
}

fn pairs(lines: &Lines) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    lines.iter().map(|(name, value)| (&name[..], &value[..]))
}

/// The fields that a message is to have in the end: without those that its text derives anew, cookies in one.
fn kept(lines: &Lines, left_out: &[&str]) -> Lines {
    let crumbs: Vec<_> = pairs(lines).filter(|(name, value)| *name == b"cookie" && !value.is_empty()).collect();
    let mut cookie = Some(crumbs.iter().map(|(_, value)| *value).collect::<Vec<_>>().join(&b"; "[..]));
    let mut out = Lines::new();
    for (name, value) in lines {
        let value = match &name[..] {
            name if left_out.iter().any(|out| out.as_bytes() == name) => continue,
            b"cookie" => match cookie.take() {
                Some(cookie) => cookie,
                None => continue,
            },
            _ => value.clone(),
        };
        out.push((name.clone(), value));
    }
    out
}

fn owned<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, left_out: &[&str]) -> Lines {
    let is_left_out = |name: &[u8]| left_out.iter().any(|out| out.as_bytes().eq_ignore_ascii_case(name));
    fields.filter(|(name, _)| !is_left_out(name)).map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

/// What is written is one head, whose lines are those that were meant.
fn expect_one_head(text: &[u8], lines_max: usize) {
    assert!(text.ends_with(b"\r\n\r\n"));
    let ends = text.iter().filter(|&&b| b == b'\n').count();
    assert_eq!(text.windows(2).filter(|end| end == b"\r\n").count(), ends);
    assert_eq!(text.iter().filter(|&&b| b == b'\r').count(), ends);
    assert!(ends <= lines_max, "{ends} lines in {:?}", String::from_utf8_lossy(text));
    assert_eq!(text.windows(4).filter(|end| end == b"\r\n\r\n").count(), 1);
}

/// A request goes to HTTP/1.1 and back.
fn expect_same_request(pseudo: &Pseudo<'_>, lines: &Lines, ended: bool, text: &[u8]) {
    let mut fields = Fields::new();
    let head = match request::parse(text, &mut fields, Bounds::NEXT_HOP) {
        Err(_) => return,
        Ok(head) => head.expect("a whole head"),
    };
    assert_eq!(head.len, text.len());
    let is_plain_connect = pseudo.method == b"CONNECT" && pseudo.protocol.is_none();
    let method = if pseudo.protocol.is_some() { b"GET" } else { pseudo.method };
    assert_eq!(head.method_name.of(text), method);
    let host = pairs(lines).find(|(name, _)| *name == b"host").map(|(_, value)| value);
    let authority = pseudo.authority.or(host).expect("an authority");
    assert_eq!(head.authority_full.of(text), authority);
    assert_eq!(head.https, pseudo.scheme == Some(b"https"));
    assert_eq!(head.upgrade.map(|upgrade| upgrade.of(text)), pseudo.protocol);
    match (ended, head.framing) {
        (true, framing) => assert!(!framing.has_body()),
        (false, BodyFraming::None) => assert!(method == b"CONNECT" || pseudo.protocol.is_some()),
        (false, _) => {}
    }
    let derived = ["host", "content-length", "transfer-encoding", "connection", "upgrade", "sec-websocket-key"];
    let all = fields.iter().map(|field| (field.name.of(text), field.value.of(text)));
    assert_eq!(owned(all, &derived), kept(lines, &derived));

    let out = written(text, &head, &fields);
    let again = request_from_text(&out).expect("one of ours");
    assert_eq!((again.len, again.method), (out.len(), pseudo.method));
    assert_eq!((again.authority, again.protocol, again.framing), (authority, pseudo.protocol, head.framing));
    assert_eq!(again.path, pseudo.path.filter(|_| !is_plain_connect));
    let mut derived = vec!["host", "content-length", "te", "http2-settings", "sec-websocket-key"];
    if !head.expect_continue {
        derived.push("expect");
    }
    assert_eq!(owned(again.fields(), &derived), kept(lines, &derived));
    assert_eq!(again.fields().any(|field| field == (b"te", b"trailers")), pairs(lines).any(|(name, _)| name == b"te"));
    let length = again.fields().find(|(name, _)| *name == b"content-length").map(|(_, value)| value);
    let is_length =
        |length: &[u8]| matches!(head.framing, BodyFraming::Length(number) if number.to_string().as_bytes() == length);
    assert!(length.is_none_or(is_length));
}

fn written(text: &[u8], head: &RequestHead, fields: &Fields) -> Vec<u8> {
    let mut out = Vec::new();
    let connection = if head.upgrade.is_some() { ConnectionOption::Upgrade } else { ConnectionOption::Implied };
    request_head(&mut out, text, head, fields, &RequestOut { connection, ..RequestOut::new(head, &NoEdits) });
    out
}

proptest! {
    #[test]
    fn a_request_that_is_translated_is_refused_or_parses_to_the_same_and_comes_back(
        method in prop_oneof![
            6 => prop::sample::select(vec!["GET", "POST", "PUT", "OPTIONS", "CONNECT", "HEAD"]).prop_map(|name| name.as_bytes().to_vec()),
            1 => values(),
        ],
        scheme in part("https?"),
        authority in part("[a-z]{1,5}(\\.[a-z]{1,5})?(:[1-9][0-9]{0,3})?"),
        path in part("(/[a-zA-Z0-9._~;%-]{0,8}){1,4}([?][a-z=&\\\\/?]{0,12})?|[*]"),
        protocol in prop_oneof![4 => Just(None), 1 => part("websocket|[a-z]{1,9}(/[0-9])?")],
        lines in lines(), ended: bool, is_connect_alone: bool,
    ) {
        let mut pseudo = Pseudo {
            method: &method,
            scheme: scheme.as_deref(),
            authority: authority.as_deref(),
            path: path.as_deref(),
            protocol: protocol.as_deref().filter(|_| method == b"CONNECT"),
        };
        if is_connect_alone && method == b"CONNECT" && pseudo.protocol.is_none() {
            (pseudo.scheme, pseudo.path) = (None, None);
        }
        let mut text = Vec::new();
        if request_to_text(&mut text, &pseudo, pairs(&lines), ended, [7; 16]).is_ok() {
            // The request line, Host, framing or three lines for an upgrade, and the empty line.
            expect_one_head(&text, lines.len() + 6);
            expect_same_request(&pseudo, &lines, ended, &text);
        } else {
            prop_assert!(text.is_empty());
        }
    }

    #[test]
    fn a_response_that_is_translated_is_refused_or_parses_to_the_same_and_comes_back(
        status in prop_oneof![8 => 200_u16..600, 1 => 100_u16..200, 1 => any::<u16>()],
        method in prop::sample::select(vec![Method::Get, Method::Head, Method::Connect]),
        lines in lines(), ended: bool, tunnel: bool,
    ) {
        let tunnel = (tunnel && method == Method::Get)
            .then_some(Upgraded { protocol: b"websocket", accept: Some(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") });
        let mut text = Vec::new();
        let Ok(framing) = response_to_text(&mut text, status, pairs(&lines), ended, method, tunnel) else {
            prop_assert!(text.is_empty());
            return Ok(());
        };
        expect_one_head(&text, lines.len() + 5);
        let mut fields = Fields::new();
        let head = match response::parse(&text, &mut fields, method, Bounds::NEXT_HOP) {
            Err(_) => return Ok(()),
            Ok(head) => head.expect("a whole head"),
        };
        let is_upgraded = tunnel.is_some() && (200..300).contains(&status);
        prop_assert_eq!((head.len, head.framing), (text.len(), framing));
        prop_assert_eq!(head.status, if is_upgraded { 101 } else { status });
        prop_assert_eq!(head.upgrade.is_some(), is_upgraded);

        let mut out = Vec::new();
        let connection = if is_upgraded { ConnectionOption::Upgrade } else { ConnectionOption::Implied };
        response_head(&mut out, &text, &head, &fields, &ResponseOut { connection, ..ResponseOut::new(&head, &NoEdits) });
        let again = response_from_text(&out, method).expect("one of ours");
        prop_assert_eq!((again.len, again.framing), (out.len(), framing));
        prop_assert_eq!(again.status, if is_upgraded { 200 } else { status });
        prop_assert_eq!(again.is_tunnel, is_upgraded || head.is_tunnel(method));
        let mut derived = vec!["content-length", "http2-settings"];
        if is_upgraded {
            derived.push("sec-websocket-accept");
        }
        prop_assert_eq!(owned(again.fields(), &derived), owned(pairs(&lines), &derived));
    }

    #[test]
    fn what_parses_and_is_written_is_always_one_of_ours(lines in lines(), target in "(/[a-z0-9.]{0,8}){1,3}([?][a-z=&]{0,12})?", upgrade: bool) {
        let mut bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n").into_bytes();
        for (name, value) in lines.iter().filter(|(name, value)| name.is_ascii() && !name.is_empty() && !value.contains(&b'\n')) {
            bytes.extend_from_slice(&[name, &b": "[..], value, b"\r\n"].concat());
        }
        bytes.extend_from_slice(if upgrade { b"Connection: upgrade\r\nUpgrade: a\r\n\r\n" } else { b"\r\n" });
        let mut fields = Fields::new();
        if !matches!(request::parse(&bytes, &mut fields, Bounds::NEXT_HOP), Ok(Some(head)) if head.len == bytes.len()) {
            return Ok(());
        }
        let (head, fields) = parsed(&bytes);
        let out = written(&bytes, &head, &fields);
        let again = request_from_text(&out).expect("one of ours");
        prop_assert_eq!((again.len, again.framing.has_body()), (out.len(), head.framing.has_body()));
        prop_assert_eq!(again.protocol.is_some(), head.upgrade.is_some() && !head.framing.has_body());
        prop_assert!(again.protocol.is_some() || again.framing == head.framing);
    }
}
