//! Smuggling: whatever core accepts, and whatever it writes of it, other parsers must read as the very same message, and find
//! the next message exactly where core put it. The other parsers are httparse and hyper's server and client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::{
    BodyFraming, Bounds, Fields, Method, NoEdits, PathNormalization, RequestHead, RequestOut, ResponseHead,
    ResponseOut, TargetForm, Via, encode_chunk,
    forwarding::{Hop, new_request_id, request_lines},
    request, request_head, response, response_head,
};
use meshring_fuzz::{
    bodies::{Decoded, decode},
    judge::{Answered, Content, Field, Head, Message, Next, answered, requests},
    uri,
};

/// What follows on the connection: the other parser must find it untouched.
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n";
/// The same behind a response.
const NEXT_RESPONSE: &[u8] = b"HTTP/1.1 299 Next\r\nContent-Length: 4\r\n\r\nnext";
/// The largest length that hyper takes.
const JUDGED_LENGTH_MAX: u64 = u64::MAX - 2;

fuzz_target!(|data: &[u8]| {
    if data.starts_with(b"HTTP/") {
        for (method, name) in [(Method::Get, "GET"), (Method::Head, "HEAD"), (Method::Connect, "CONNECT")] {
            relayed(data, method, name);
        }
    } else {
        forwarded(data);
    }
});

/// The body as core reads it; `None` if it is broken or does not end in the input, which ends the test of it.
fn whole_body(bytes: &[u8], how: BodyFraming) -> Option<Decoded> {
    if how == BodyFraming::None {
        return Some(Decoded::default());
    }
    decode(how, bytes, &[bytes.len().max(1)]).ok().filter(|decoded| decoded.whole)
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

/// The length that hyper sees announced.
fn length(framing: BodyFraming) -> Option<u64> {
    match framing {
        BodyFraming::None => Some(0),
        BodyFraming::Length(length) => Some(length),
        BodyFraming::Chunked | BodyFraming::UntilClose => None,
    }
}

/// Trailers in an order that does not depend on that of the names.
fn by_name(trailers: &[Field]) -> Vec<Field> {
    let mut list: Vec<Field> =
        trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

/// What hyper says of a message: the fields that httparse has found, the framing, and the body if core has one. Of a message as
/// it was received, the trailers that core drops may be there.
fn check_message(judged: &Message, head: &Head, framing: BodyFraming, body: Option<&Decoded>, is_received: bool) {
    assert!(head.is_same(&judged.fields), "{:?} {:?}", head.fields, judged.fields);
    assert_eq!(judged.length, length(framing), "framing");
    let Some(body) = body else { return };
    let Content { data, trailers } = judged.content.as_ref().expect("a body that core accepts");
    assert_eq!(*data, body.data);
    let (judged, ours) = (by_name(trailers), by_name(&body.trailers));
    if is_received {
        assert!(ours.iter().all(|trailer| judged.contains(trailer)));
    } else {
        assert_eq!(judged, ours);
    }
}

/// Reads a request, and the one behind it where this one is whole.
fn judge_request(bytes: &[u8], head: &Head, framing: BodyFraming, body: Option<&Decoded>, is_received: bool) {
    let is_judged = length(framing).is_none_or(|length| length <= JUDGED_LENGTH_MAX);
    // The http crate has no Uri with `^` in its path, and other characters that RFC 3986 does not have.
    let target = str::from_utf8(&head.start[1]).expect("ASCII");
    let is_uri = target.parse::<hyper::Uri>().is_ok();
    if !is_judged || (!is_uri && head.start[0] == b"CONNECT") {
        return;
    }
    let shown = if is_uri { target } else { "/" };
    let [before, behind] = [&head.start[0], &head.start[2]].map(|part| String::from_utf8_lossy(part).into_owned());
    let line_len = before.len() + target.len() + behind.len() + 2;
    let bytes = [before.as_bytes(), b" ", shown.as_bytes(), b" ", behind.as_bytes(), &bytes[line_len..]].concat();
    let judged = requests(&bytes);
    let first = judged.first().expect("a request that core accepts");
    assert_eq!(first.start[0], before);
    assert_eq!(first.start[2], behind);
    if !is_received {
        assert_eq!(first.start[1], shown);
    }
    check_message(first, head, framing, body, is_received);
    if body.is_some() {
        let next: Vec<&str> = judged[1..].iter().map(|next| next.start[1].as_str()).collect();
        assert!(next == ["/next"] || (is_received && next.is_empty()), "the next message is not where it was put");
        assert!(!next.is_empty() || !is_persistent(head, &head.start[2]), "the next message is not found");
    }
}

/// Whether a head of this version leaves its connection open.
fn is_persistent(head: &Head, version: &[u8]) -> bool {
    let values = head.values("connection");
    let mut options = values.iter().flat_map(|value| value.split(|&b| b == b',')).map(<[u8]>::trim_ascii);
    version == b"HTTP/1.1" && !options.any(|option| option.eq_ignore_ascii_case(b"close"))
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
    let start = if data.starts_with(b"\r\n") { 2 } else { 0 };
    let received = Head::request(&data[start..]).expect("a request that core accepts");
    assert_eq!(start + received.len, head.len, "the head ends elsewhere");
    let body = whole_body(&data[head.len..], head.framing);
    let message = match &body {
        Some(body) => [&data[start..head.len + body.len], NEXT].concat(),
        None => data[start..].to_vec(),
    };
    judge_request(&message, &received, head.framing, body.as_ref(), true);
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
        judge_request(&out, &written, head.framing, body.as_ref(), false);
    }
}

/// The fields as written, against those received.
fn check_fields(data: &[u8], head: &RequestHead, received: &Head, written: &Head, is_trusted: bool) {
    assert_eq!(written.values("host"), [head.authority_full.of(data)]);
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

/// Reads a response, and the one behind it on its connection where this one is whole.
fn judge_response(
    bytes: &[u8],
    (method, name): (Method, &str),
    head: &Head,
    ours: &ResponseHead,
    body: Option<&Decoded>,
    is_received: bool,
) {
    if length(ours.framing).is_some_and(|length| length > JUDGED_LENGTH_MAX) {
        return;
    }
    let is_tunnel = ours.is_switching() || ours.is_tunnel(method);
    // For hyper a 204 to CONNECT begins no tunnel, against RFC 9110 section 9.3.6.
    if ours.is_tunnel(method) && ours.status == 204 {
        return;
    }
    let next = if is_tunnel || ours.is_interim() {
        Next::AtOnce(NEXT_RESPONSE)
    } else if body.is_none() || ours.framing == BodyFraming::UntilClose || !is_persistent(head, &head.start[0]) {
        Next::Close
    } else {
        Next::Answer(NEXT_RESPONSE)
    };
    let Answered { interim, response, tunnelled, next: second } = answered(name, bytes, next);
    let response = response.expect("a response that core accepts");
    if ours.is_interim() {
        let [(status, fields)] = &interim[..] else { panic!("{} interim responses", interim.len()) };
        assert!(*status == ours.status && head.is_same(fields));
        assert_eq!(response.start[1], "299");
        return;
    }
    assert!(interim.is_empty());
    assert_eq!(response.start[1], ours.status.to_string());
    check_message(&response, head, ours.framing, body, is_received);
    assert_eq!(tunnelled.as_deref(), is_tunnel.then_some(NEXT_RESPONSE));
    if let Next::Answer(_) = next {
        let second = second.expect("the next response is not where it was put");
        assert_eq!(second.start[1], "299");
        assert_eq!(second.content.expect("a body").data, b"next");
    }
}

fn relayed(data: &[u8], method: Method, name: &str) {
    let mut fields = Fields::new();
    let Ok(Some(head)) = response::parse(data, &mut fields, method, Bounds::FIRST_HOP) else { return };
    let received = Head::response(data).expect("a response that core accepts");
    assert_eq!(received.len, head.len, "the head ends elsewhere");
    let body = whole_body(&data[head.len..], head.framing);
    let message = body.as_ref().map_or(data, |body| &data[..head.len + body.len]);
    judge_response(message, (method, name), &received, &head, body.as_ref(), true);

    let mut out = Vec::new();
    let how = ResponseOut { via: Via::Http1, ..ResponseOut::new(&head, &NoEdits) };
    response_head(&mut out, data, &head, &fields, &how);
    let head_len = out.len();
    if let Some(body) = &body {
        write_body(&mut out, head.framing, body);
    }

    let written = Head::response(&out).expect("a response");
    assert_eq!(written.len, head_len, "the head ends elsewhere");
    assert_eq!(written.start[0], b"HTTP/1.1");
    assert_eq!(written.start[1], head.status.to_string().into_bytes());
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
    judge_response(&out, (method, name), &written, &head, body.as_ref(), false);
}
