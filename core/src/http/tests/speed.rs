//! A measurement rather than a test: `cargo test -p meshring-core --release -- --ignored --nocapture speed`.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use super::super::{Fields, Method, NoEdits, RequestOut, ResponseOut, request, request_head, response, response_head};
use super::FIRST_HOP;

const REQUEST: &[u8] = b"GET /api/v1/reviews/0?page=2 HTTP/1.1\r\nHost: reviews.default.svc.cluster.local:9080\r\n\
    User-Agent: python-requests/2.31.0\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n\
    X-Request-Id: 4b1f3c2a-90cb-4f0e-8a55-2f2f7c1e9d10\r\nCookie: session=0123456789abcdef; theme=dark\r\n\
    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nend-user: jason\r\nX-Trace: on\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer: gunicorn/20.1\r\n\
    Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 100\r\nCache-Control: no-cache\r\nX-Upstream-Time: 3\r\n\r\n";

/// Nanoseconds of one call: the best of many rounds, since other work on the machine only ever adds.
fn nanos(mut work: impl FnMut()) -> f64 {
    const CALLS: u32 = 20_000;
    let round = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| work());
        start.elapsed()
    };
    let best = (0..30).map(|_| round(&mut work)).min().unwrap_or(Duration::ZERO);
    best.as_nanos() as f64 / f64::from(CALLS)
}

#[test]
#[ignore = "a measurement; meaningful in release builds only"]
#[allow(clippy::print_stderr)]
fn speed_of_parse_and_serialise() {
    let mut fields = Fields::new();
    let bare = nanos(|| {
        let mut raw = [const { MaybeUninit::uninit() }; 100];
        let mut request = httparse::Request::new(&mut []);
        black_box(request.parse_with_uninit_headers(black_box(REQUEST), &mut raw)).expect("parses");
        black_box(request.headers.len());
    });
    let parse = nanos(|| {
        black_box(request::parse(black_box(REQUEST), &mut fields, FIRST_HOP)).expect("acceptable");
    });
    let head = request::parse(REQUEST, &mut fields, FIRST_HOP).expect("acceptable").expect("whole");
    let mut out = Vec::with_capacity(4096);
    let write = nanos(|| {
        out.clear();
        request_head(&mut out, black_box(REQUEST), &head, &fields, &RequestOut::new(&head, &NoEdits));
        black_box(&out);
    });
    let response_parse = nanos(|| {
        black_box(response::parse(black_box(RESPONSE), &mut fields, Method::Get, FIRST_HOP)).expect("acceptable");
    });
    let head = response::parse(RESPONSE, &mut fields, Method::Get, FIRST_HOP).expect("acceptable").expect("whole");
    let response_write = nanos(|| {
        out.clear();
        response_head(&mut out, black_box(RESPONSE), &head, &fields, &ResponseOut::new(&head, &NoEdits));
        black_box(&out);
    });
    eprintln!(
        "request of 10 fields, {} bytes: bare httparse {bare:.0} ns, parse {parse:.0} ns, write {write:.0} ns",
        REQUEST.len()
    );
    eprintln!(
        "response of 6 fields, {} bytes: parse {response_parse:.0} ns, write {response_write:.0} ns",
        RESPONSE.len()
    );
}
