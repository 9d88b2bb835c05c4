//! Smuggling: whatever core accepts, it must write so that another parser reads the very same message, and finds the
//! next message exactly where core put it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::{
    BodyFraming, Fields, Method, NoEdits, RequestHead, RequestOut, ResponseOut, TargetForm, encode_chunk, request,
    request_head, response, response_head,
};
use meshring_fuzz::{
    bodies::{Decoded, decode},
    reference::{self, Field, Framing, Head},
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
    let Ok(Some(head)) = request::parse(data, &mut fields) else { return };
    let received = data.strip_prefix(b"\r\n").unwrap_or(data);
    let received = Head::request(received).expect("a request that core accepts");
    assert_eq!(received.request_framing(), Ok(framing(head.framing)), "framing as received");
    let rest = &data[head.len..];
    let body = match head.framing {
        BodyFraming::None => Some(Decoded::default()),
        how => agreed_body(rest, how),
    };

    let mut out = Vec::new();
    request_head(&mut out, data, &head, &fields, &RequestOut::new(&head, &NoEdits));
    let head_len = out.len();
    if let Some(body) = &body {
        write_body(&mut out, head.framing, body);
        out.extend_from_slice(NEXT);
    }

    let written = Head::request(&out).expect("a request");
    assert_eq!(written.len, head_len, "the head ends elsewhere");
    assert_eq!(written.start, [head.method_name.of(data).to_vec(), target(data, &head), b"HTTP/1.1".to_vec()]);
    assert_eq!(written.values("host"), [head.authority_full.of(data)]);
    assert_eq!(written.request_framing(), Ok(framing(head.framing)), "framing as written");
    assert_eq!(written.end_to_end(), received.end_to_end());
    let expects = written.values("expect");
    assert_eq!(!expects.is_empty(), head.expect_continue);
    assert_eq!(written.values("te").is_empty(), !head.te_trailers);
    for name in ["te", "connection", "upgrade", "keep-alive", "proxy-connection", "http2-settings"] {
        assert!(written.values(name).len() <= usize::from(head.te_trailers), "{name} goes on");
    }
    if head.te_trailers {
        assert!(written.fields.contains(&ours("te")));
    }
    if let Some(body) = &body {
        check_body(&out[head_len..], framing(head.framing), body);
    }
}

/// The target for the next hop, put together independently of the writer.
fn target(data: &[u8], head: &RequestHead) -> Vec<u8> {
    if head.form != TargetForm::Absolute {
        return head.target.of(data).to_vec();
    }
    let target = head.target.of(data);
    let after_scheme = target.windows(3).position(|w| w == b"://").expect("a scheme") + 3;
    let end =
        target[after_scheme..].iter().position(|b| b"/?".contains(b)).map_or(target.len(), |at| after_scheme + at);
    match &target[end..] {
        [] if head.method == Method::Options => b"*".to_vec(),
        [] => b"/".to_vec(),
        rest @ [b'?', ..] => [b"/", rest].concat(),
        rest => rest.to_vec(),
    }
}

fn relayed(data: &[u8], method: Method, name: &str) {
    let mut fields = Fields::new();
    let Ok(Some(head)) = response::parse(data, &mut fields, method) else { return };
    let received = Head::response(data).expect("a response that core accepts");
    assert_eq!(received.response_framing(name), Ok(framing(head.framing)), "framing as received");
    let body = match head.framing {
        BodyFraming::None => Some(Decoded::default()),
        how => agreed_body(&data[head.len..], how),
    };

    let mut out = Vec::new();
    response_head(&mut out, data, &head, &fields, &ResponseOut::new(&head, &NoEdits));
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
        list.retain(|field| !field.0.eq_ignore_ascii_case(b"connection"));
        list
    };
    assert_eq!(end_to_end(&written), end_to_end(&received));
    let closes = written.values("connection") == [b"close"];
    assert_eq!(closes, head.framing == BodyFraming::UntilClose);
    if let Some(body) = &body {
        check_body(&out[head_len..], framing(head.framing), body);
    }
}
