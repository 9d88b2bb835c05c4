//! Smuggling: whatever core accepts, it must write so that another parser reads the very same message, and finds the
//! next message exactly where core put it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::{
    BodyFraming, Bounds, Fields, Method, NoEdits, PathNormalization, RequestHead, RequestOut, ResponseOut, TargetForm,
    Via, encode_chunk,
    forwarding::{Hop, new_request_id, request_lines},
    request, request_head, response, response_head,
};
use meshring_fuzz::{
    bodies::{Decoded, decode},
    reference::{self, Field, Framing, Head},
    uri,
};

/// What follows on the connection: the other parser must find it untouched.
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n";

fuzz_target!(|data: &[u8]| {
    if data.starts_with(b"HTTP/") {
        for (method, name) in [(Method::Get, "GET"), (Method::Head, "HEAD"), (Method::Connect, "CONNECT")] {
            relayed(data, method, name);
        }
    } else {
        forwarded(data);
    }
});

fn framing(framing: BodyFraming) -> Framing {
    match framing {
        BodyFraming::None => Framing::None,
        BodyFraming::Length(length) => Framing::Length(length),
        BodyFraming::Chunked => Framing::Chunked,
        BodyFraming::UntilClose => Framing::UntilClose,
    }
}

/// The body as both read it; `None` if it is broken or does not end in the input, which ends the test of it.
fn agreed_body(bytes: &[u8], how: BodyFraming) -> Option<Decoded> {
    let decoded = decode(how, bytes, &[bytes.len().max(1)]).ok().filter(|decoded| decoded.whole)?;
    let (data, trailers, rest) = reference::body(bytes, framing(how)).expect("a body that core accepts");
    assert_eq!(decoded.data, data);
    assert_eq!(decoded.len, bytes.len() - rest.len(), "the body ends elsewhere");
    assert!(decoded.trailers.iter().all(|trailer| trailers.contains(trailer)));
    Some(decoded)
}

fn write_body(out: &mut Vec<u8>, how: BodyFraming, body: &Decoded) {
    if how != BodyFraming::Chunked {
        out.extend_from_slice(&body.data);
        return;
    }
    encode_chunk(out, &body.data);
    out.extend_from_slice(b"0\r\n");
    for (name, value) in &body.trailers {
        meshring_core::http::serialize::field(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads the body that was written and the message after it.
fn check_body(bytes: &[u8], how: Framing, body: &Decoded) {
    let (data, trailers, rest) = reference::body(bytes, how).expect("a body");
    assert_eq!(data, body.data);
    assert_eq!(trailers, body.trailers);
    let rest = if how == Framing::UntilClose { b"" } else { rest };
    assert_eq!(rest, if how == Framing::UntilClose { b"" } else { NEXT }, "the next message is not where it was put");
}

fn ours(name: &str) -> Field {
    match name {
        "te" => (b"te".to_vec(), b"trailers".to_vec()),
        _ => (b"connection".to_vec(), name.as_bytes().to_vec()),
    }
}

fn forwarded(data: &[u8]) {
    let mut fields = Fields::new();
    let Ok(Some(head)) = request::parse(data, &mut fields, Bounds::FIRST_HOP) else { return };
    let received = data.strip_prefix(b"\r\n").unwrap_or(data);
    let received = Head::request(received).expect("a request that core accepts");
    assert_eq!(received.request_framing(), Ok(framing(head.framing)), "framing as received");
    let rest = &data[head.len..];
    let body = match head.framing {
        BodyFraming::None => Some(Decoded::default()),
        how => agreed_body(rest, how),
    };
    for (is_trusted, level) in [(true, PathNormalization::Base), (false, PathNormalization::DecodeAndMergeSlashes)] {
        let mut scratch = Vec::new();
        let normal = head.normalized_path(data, level, &mut scratch).ok();
        assert_eq!(normal.map(<[u8]>::to_vec), expected_path(data, &head, level), "{level:?}");
        let Some(path) = normal else { continue };
        let hop = Hop {
            peer: [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
            is_https: true,
            port: 15001,
            is_trusted,
            new_request_id: Some(new_request_id([7; 16])),
            is_host_rewritten: false,
            via: Via::Http1,
        };
        let mut lines = Vec::new();
        let drop = request_lines(&mut lines, data, &head, &fields, &hop, &NoEdits);
        let changed = (path != head.path_of(data)).then_some([path, b""]);
        let how =
            RequestOut { path: changed, drop, via: Via::Http1, extra: &lines, ..RequestOut::new(&head, &NoEdits) };
        let mut out = Vec::new();
        request_head(&mut out, data, &head, &fields, &how);
        let head_len = out.len();
        if let Some(body) = &body {
            write_body(&mut out, head.framing, body);
            out.extend_from_slice(NEXT);
        }
        // The next hop must not refuse what this one has accepted.
        let again = request::parse(&out, &mut Fields::new(), Bounds::NEXT_HOP).expect("acceptable").expect("whole");
        assert_eq!(again.len, head_len);

        let written = Head::request(&out).expect("a request");
        assert_eq!(written.len, head_len, "the head ends elsewhere");
        assert_eq!(
            written.start,
            [head.method_name.of(data).to_vec(), target(data, &head, path), b"HTTP/1.1".to_vec()]
        );
        check_fields(data, &head, &received, &written, is_trusted);
        if let Some(body) = &body {
            check_body(&out[head_len..], framing(head.framing), body);
        }
    }
}

/// The fields as written, against those received.
fn check_fields(data: &[u8], head: &RequestHead, received: &Head, written: &Head, is_trusted: bool) {
    assert_eq!(written.values("host"), [head.authority_full.of(data)]);
    assert_eq!(written.request_framing(), Ok(framing(head.framing)), "framing as written");
    let is_about_hops = |field: &Field| {
        let name = field.0.to_ascii_lowercase();
        let exact: [&[u8]; 4] = [b"via", b"forwarded", b"x-request-id", b"max-forwards"];
        exact.contains(&&name[..]) || name.starts_with(b"x-forwarded-") || name.starts_with(b"x-envoy-")
    };
    let others = |head: &Head| head.end_to_end().into_iter().filter(|field| !is_about_hops(field)).collect::<Vec<_>>();
    assert_eq!(others(written), others(received));
    check_forwarding(data, head, received, written, is_trusted);
    let expects = written.values("expect");
    assert_eq!(!expects.is_empty(), head.expect_continue);
    assert_eq!(written.values("te").is_empty(), !head.te_trailers);
    for name in ["te", "connection", "upgrade", "keep-alive", "proxy-connection", "http2-settings"] {
        assert!(written.values(name).len() <= usize::from(head.te_trailers), "{name} goes on");
    }
    if head.te_trailers {
        assert!(written.fields.contains(&ours("te")));
    }
}

/// What a hop says about itself, and what it lets others say.
fn check_forwarding(data: &[u8], head: &RequestHead, received: &Head, written: &Head, is_trusted: bool) {
    let version = if received.start[2] == b"HTTP/1.0" { &b"1.0 meshring"[..] } else { b"1.1 meshring" };
    assert_eq!(written.values("via"), [&received.values("via")[..], &[version]].concat());
    let chain = received.values("x-forwarded-for").into_iter().filter(|value| !value.is_empty());
    let chain: Vec<&[u8]> = chain.chain([&b"2001:db8::1"[..]]).collect();
    assert_eq!(written.values("x-forwarded-for"), [&chain.join(&b", "[..])[..]]);

    let host = head.authority_full.of(data);
    let is_absent = |name| received.values(name).is_empty();
    let own = |name, value| if is_absent(name) { Vec::new() } else { vec![value] };
    if is_trusted {
        let kept = ["x-forwarded-host", "x-forwarded-port", "x-forwarded-client-cert"];
        assert!(kept.iter().all(|name| written.values(name) == received.values(name)));
    } else {
        assert_eq!(written.values("x-forwarded-host"), own("x-forwarded-host", host));
        assert_eq!(written.values("x-forwarded-port"), own("x-forwarded-port", b"15001"));
        let ours = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"];
        for (name, _) in &written.fields {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            assert!(!name.starts_with("x-envoy-"), "{name} of a stranger goes on");
            assert!(!name.starts_with("x-forwarded-") || ours.contains(&&name[..]), "{name} of a stranger goes on");
        }
    }
    if is_trusted && !is_absent("x-forwarded-proto") {
        assert_eq!(written.values("x-forwarded-proto"), received.values("x-forwarded-proto"));
    } else {
        assert_eq!(written.values("x-forwarded-proto"), [b"https"]);
    }
    let element = [&b"for=\"[2001:db8::1]\";host=\""[..], host, b"\";proto=https"].concat();
    let forwarded = written.values("forwarded");
    assert_eq!(forwarded.len(), usize::from(!is_absent("forwarded")));
    assert!(forwarded.iter().all(|value| value.ends_with(&element) && (is_trusted || *value == element)));
    assert_eq!(written.values("x-request-id").len(), 1);
}

/// The normal path, by other means than core's.
fn expected_path(data: &[u8], head: &RequestHead, level: PathNormalization) -> Option<Vec<u8>> {
    let path = head.path_of(data);
    match head.form {
        TargetForm::Asterisk | TargetForm::Authority => Some(path.to_vec()),
        _ => uri::normalized(std::str::from_utf8(path).expect("ASCII"), level).map(String::into_bytes),
    }
}

/// The target for the next hop with this path, put together independently of the writer.
fn target(data: &[u8], head: &RequestHead, path: &[u8]) -> Vec<u8> {
    let received = head.target.of(data);
    if matches!(head.form, TargetForm::Asterisk | TargetForm::Authority) {
        return received.to_vec();
    }
    let query = received.iter().position(|&b| b == b'?').map_or(&b""[..], |at| &received[at..]);
    let is_bare = received.iter().filter(|&&b| b == b'/').count() == 2 && head.form == TargetForm::Absolute;
    if is_bare && query.is_empty() && head.method == Method::Options {
        return b"*".to_vec();
    }
    [path, query].concat()
}

fn relayed(data: &[u8], method: Method, name: &str) {
    let mut fields = Fields::new();
    let Ok(Some(head)) = response::parse(data, &mut fields, method, Bounds::FIRST_HOP) else { return };
    let received = Head::response(data).expect("a response that core accepts");
    assert_eq!(received.response_framing(name), Ok(framing(head.framing)), "framing as received");
    let body = match head.framing {
        BodyFraming::None => Some(Decoded::default()),
        how => agreed_body(&data[head.len..], how),
    };

    let mut out = Vec::new();
    let how = ResponseOut { via: Via::Http1, ..ResponseOut::new(&head, &NoEdits) };
    response_head(&mut out, data, &head, &fields, &how);
    let head_len = out.len();
    if let Some(body) = &body {
        write_body(&mut out, head.framing, body);
        if head.framing != BodyFraming::UntilClose {
            out.extend_from_slice(NEXT);
        }
    }

    let written = Head::response(&out).expect("a response");
    assert_eq!(written.len, head_len, "the head ends elsewhere");
    assert_eq!(written.start[0], b"HTTP/1.1");
    assert_eq!(written.start[1], head.status.to_string().into_bytes());
    assert_eq!(written.response_framing(name), Ok(framing(head.framing)), "framing as written");
    let end_to_end = |head: &Head| {
        let mut list = head.end_to_end();
        // Host and Expect mean nothing in a response.
        list.retain(|field| !field.0.eq_ignore_ascii_case(b"connection") && !field.0.eq_ignore_ascii_case(b"via"));
        list
    };
    assert_eq!(end_to_end(&written), end_to_end(&received));
    assert_eq!(written.values("via").len(), received.values("via").len() + 1);
    let closes = written.values("connection") == [b"close"];
    assert_eq!(closes, head.framing == BodyFraming::UntilClose);
    if let Some(body) = &body {
        check_body(&out[head_len..], framing(head.framing), body);
    }
}
