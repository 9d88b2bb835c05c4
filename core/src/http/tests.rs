//! Tests of the codec, named after the promises and the items of the list of HTTP rules that they keep.

mod attacks;
mod bodies;
mod forwarding;
mod grpc;
mod heads;
mod http2;
mod http2_properties;
mod lines;
mod paths;
mod properties;
mod requests;
mod responses;
mod serialized;
mod speed;

use super::{Bounds, Fields, Method, Refusal, RequestHead, ResponseHead, request, response};

const FIRST_HOP: Bounds = Bounds::FIRST_HOP;

/// Parses a whole request and returns head and fields.
fn parsed(bytes: &[u8]) -> (RequestHead, Box<Fields>) {
    let mut fields = Fields::new();
    let head = request::parse(bytes, &mut fields, FIRST_HOP).expect("an acceptable request").expect("a whole request");
    (head, fields)
}

/// Why a request is refused.
fn refused(bytes: &[u8]) -> Refusal {
    let mut fields = Fields::new();
    match request::parse(bytes, &mut fields, FIRST_HOP) {
        Err(refusal) => refusal,
        other => panic!("{:?} was not refused: {other:?}", String::from_utf8_lossy(bytes)),
    }
}

/// A request for `/` with Host and these lines more.
fn with(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
}

/// Parses a whole response to GET.
fn responded(bytes: &[u8]) -> (ResponseHead, Box<Fields>) {
    responded_to(Method::Get, bytes)
}

fn responded_to(method: Method, bytes: &[u8]) -> (ResponseHead, Box<Fields>) {
    let mut fields = Fields::new();
    let head =
        response::parse(bytes, &mut fields, method, FIRST_HOP).expect("an acceptable response").expect("a whole one");
    (head, fields)
}
