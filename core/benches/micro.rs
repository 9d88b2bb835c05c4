//! Micro-benchmarks of what a request and a generation cost in core: parse, look up, adopt.
//!
//! - `cargo bench -p meshring-core` times each operation,
//! - `.ci/instructions` counts instructions under callgrind, which no other load on the machine changes,
//! - without an argument each operation runs once, so that `cargo test --benches` notices what broke.
//!
//! Under callgrind, `measured` is the function to count in (`--toggle-collect=*measured*`).

use std::{hint::black_box, mem::MaybeUninit, net::SocketAddr, os::fd::OwnedFd, time::Instant};

use meshring_core::{
    http::{
        Bounds, Fields, HeadScanner, Method, NoEdits, RequestOut, ResponseOut, http2::hpack, request, request_head,
        response, response_head,
    },
    id::Generation,
    limits::HEAD_FIELDS_MAX,
    snapshot::{Snapshot, encode},
    table::{
        TableBuilder,
        build::{ClusterEndpoints, VirtualHostInput},
        lookup::{RequestView, Silent, Viewpoint},
        model::{BalancePolicy, ClusterKind, Condition, Match, Route, StringMatch},
    },
};

/// A browser's request through a gateway: 13 fields.
const REQUEST: &[u8] = b"GET /productpage/reviews?u=normal&lang=en HTTP/1.1\r\n\
    Host: reviews.default.svc.cluster.local:9080\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Cookie: session=2f1c6b0e; theme=dark; _ga=GA1.2.1234567890.1234567890\r\n\
    X-Forwarded-For: 203.0.113.7\r\n\
    X-Forwarded-Proto: https\r\n\
    X-Request-Id: 6b3f2f4e-6f0c-4f19-9a55-0c9c9a6e1b7d\r\n\
    Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
    Cache-Control: no-cache\r\n\
    Connection: keep-alive\r\n\
    End-User: jason\r\n\
    \r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
    Content-Type: application/json\r\n\
    Content-Length: 100\r\n\
    Server: reviews\r\n\
    Cache-Control: max-age=60\r\n\
    Set-Cookie: a=b; Path=/; HttpOnly\r\n\
    Vary: Accept-Encoding\r\n\
    \r\n";

/// The same, for HTTP/2.
const RESPONSE_FIELDS: [(&str, &str); 7] = [
    ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
    ("content-type", "application/json"),
    ("content-length", "100"),
    ("server", "reviews"),
    ("cache-control", "max-age=60"),
    ("set-cookie", "a=b; Path=/; HttpOnly"),
    ("vary", "Accept-Encoding"),
];

struct Request;

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn scheme(&self) -> &[u8] {
        b"http"
    }
    fn authority(&self) -> &[u8] {
        b"reviews"
    }
    fn path(&self) -> &[u8] {
        b"/productpage/reviews"
    }
    fn query(&self) -> Option<&[u8]> {
        Some(b"u=normal")
    }
    fn any_header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        name == "end-user" && predicate(b"jason")
    }
}

/// So many services, each with a rule on a header, a rule on a prefix, and a rule for the rest, and ten endpoints.
fn mesh(services: u32) -> OwnedFd {
    let mut builder = TableBuilder::new("cluster.local");
    let namespaces: Vec<_> = (0..100).map(|namespace| builder.namespace(&format!("ns-{namespace}"))).collect();
    builder.workload(namespaces[0], "client", Vec::new());
    for service in 0..services {
        let domain = format!("svc-{service}.ns-{}.svc.cluster.local", service % 100);
        let address = |pod: u32| SocketAddr::from(((0x0a00_0000 + service * 10 + pod).to_be_bytes(), 8080));
        let (first, count) = builder.endpoints((0..10).map(|pod| (address(pod), 1)));
        let endpoints = ClusterEndpoints::Range { first, count };
        let cluster = builder.cluster(&domain, BalancePolicy::LeastRequest, ClusterKind::Static, endpoints);
        let origin = builder.origin(&domain);
        let action = builder.forward([(cluster, 1, None)]).expect("a weight");
        let rule = |conditions: Vec<Condition>| Route {
            name: String::new(),
            origin,
            rule: 0,
            line: 1,
            matches: vec![Match { name: String::new(), line: 1, conditions }],
            action: action.clone(),
            timeout_ms: 0,
            options: None,
        };
        let tester = StringMatch::Exact("tester".into());
        let routes = vec![
            rule(vec![Condition::Header { name: "end-user".into(), value: tester }]),
            rule(vec![Condition::Uri(StringMatch::Prefix("/admin".into()))]),
            rule(Vec::new()),
        ];
        builder.virtual_host(VirtualHostInput { domain, scope: None, port: 8080, origin, routes });
    }
    let table = builder.finish().expect("a sound table");
    encode(&table).expect("an archive").seal(Generation(1)).expect("a memfd")
}

/// One operation; called with a counter, so that no call equals the one before.
type Operation = Box<dyn FnMut(usize)>;

fn parse_request() -> Operation {
    let mut fields = Fields::new();
    Box::new(move |_| {
        let mut scanner = HeadScanner::default();
        assert!(scanner.ready(black_box(REQUEST), Bounds::FIRST_HOP));
        black_box(request::parse(black_box(REQUEST), &mut fields, Bounds::FIRST_HOP)).expect("acceptable");
    })
}

/// What [`parse_request`] is compared with: the same bytes through httparse and nothing else.
fn httparse_alone() -> Operation {
    Box::new(move |_| {
        let mut fields = [const { MaybeUninit::uninit() }; HEAD_FIELDS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let status = request.parse_with_uninit_headers(black_box(REQUEST), &mut fields).expect("acceptable");
        black_box((status, request.method, request.path, request.version, request.headers.len()));
    })
}

fn write_request() -> Operation {
    let mut fields = Fields::new();
    let head = request::parse(REQUEST, &mut fields, Bounds::FIRST_HOP).expect("acceptable").expect("whole");
    let mut out = Vec::with_capacity(4096);
    Box::new(move |_| {
        out.clear();
        request_head(&mut out, black_box(REQUEST), &head, &fields, &RequestOut::new(&head, &NoEdits));
        black_box(&out);
    })
}

fn parse_response() -> Operation {
    let mut fields = Fields::new();
    Box::new(move |_| {
        black_box(response::parse(black_box(RESPONSE), &mut fields, Method::Get, Bounds::FIRST_HOP))
            .expect("acceptable");
    })
}

fn write_response() -> Operation {
    let mut fields = Fields::new();
    let head =
        response::parse(RESPONSE, &mut fields, Method::Get, Bounds::FIRST_HOP).expect("acceptable").expect("whole");
    let mut out = Vec::with_capacity(4096);
    Box::new(move |_| {
        out.clear();
        response_head(&mut out, black_box(RESPONSE), &head, &fields, &ResponseOut::new(&head, &NoEdits));
        black_box(&out);
    })
}

/// What a gRPC client sends beside `:method` and `:scheme`, which the static table has.
const GRPC_FIELDS: [(&str, &str); 6] = [
    (":path", "/reviews.v1.Reviews/ListReviews"),
    (":authority", "reviews.default.svc.cluster.local:9080"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.76.0"),
    ("te", "trailers"),
    ("grpc-accept-encoding", "gzip"),
];

/// The first request of a connection, whose fields enter the table as literals in the Huffman code.
fn hpack_first_block() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in GRPC_FIELDS {
        match hpack::find_static(name.as_bytes(), b"") {
            Some(hpack::Static::Field(index) | hpack::Static::Name(index)) => {
                hpack::encode_integer(&mut block, 0x40, 6, index);
            }
            None => {
                block.push(0x40);
                hpack::encode_string(&mut block, name.as_bytes());
            }
        }
        hpack::encode_string(&mut block, value.as_bytes());
    }
    block
}

fn hpack_decoding(first: &[u8], block: Vec<u8>) -> Operation {
    let (mut decoder, mut work) = (hpack::Decoder::new(4096), Vec::new());
    decoder.decode(first, &mut work, usize::MAX, |_, _, _| ()).expect("acceptable");
    Box::new(move |_| {
        let mut octets = 0;
        let field = |name: &[u8], value: &[u8], _| octets += black_box(name).len() + black_box(value).len();
        decoder.decode(black_box(&block), &mut work, usize::MAX, field).expect("acceptable");
        black_box(octets);
    })
}

/// A later one: eight octets.
fn hpack_decode() -> Operation {
    hpack_decoding(&hpack_first_block(), vec![0x83, 0x86, 0xc3, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe])
}

fn hpack_first() -> Operation {
    hpack_decoding(&[], hpack_first_block())
}

/// A value of 1,000 octets in the Huffman code.
fn hpack_long() -> Operation {
    let value = "/productpage/reviews?user=normal&lang=en-GB&page=2".repeat(20);
    let mut block = vec![0x04];
    hpack::encode_string(&mut block, value.as_bytes());
    hpack_decoding(&[], block)
}

fn hpack_encode() -> Operation {
    let mut out = Vec::with_capacity(4096);
    Box::new(move |_| {
        out.clear();
        hpack::encode_status(&mut out, black_box(200));
        for (name, value) in black_box(RESPONSE_FIELDS) {
            hpack::encode(&mut out, name.as_bytes(), value.as_bytes(), false);
        }
        black_box(&out);
    })
}

/// Host value to rule, among so many services; the names asked for are spread over all of them.
fn look_up(services: usize) -> Operation {
    let snapshot = Snapshot::open(mesh(services as u32)).expect("a sound snapshot");
    let viewpoint = Viewpoint::resolve(snapshot.table(), "ns-0", "client");
    let names: Vec<String> = (0..1000)
        .map(|i| i * 7919 % services)
        .map(|service| format!("svc-{service}.ns-{}.svc.cluster.local", service % 100))
        .collect();
    Box::new(move |n| {
        let table = snapshot.table();
        let name = black_box(names[n % names.len()].as_bytes());
        let host = table.virtual_host(&viewpoint, name, Some(8080), &mut Silent).expect("a known name");
        let found = table.route(snapshot.regexes(), &viewpoint, host, &Request, Some(8080), &mut Silent);
        black_box(found).expect("a rule for the rest");
    })
}

/// What a proxy does before it answers `prepared`, and what it gives back when the generation retires.
fn adopt(services: u32) -> Operation {
    let fd = mesh(services);
    Box::new(move |_| drop(black_box(Snapshot::open(black_box(&fd))).expect("a sound snapshot")))
}

/// Name, rounds under callgrind, and how to set the operation up.
type Entry = (&'static str, usize, fn() -> Operation);

const OPERATIONS: &[Entry] = &[
    ("httparse_alone", 1000, httparse_alone),
    ("request_parse", 1000, parse_request),
    ("request_write", 1000, write_request),
    ("response_parse", 1000, parse_response),
    ("response_write", 1000, write_response),
    ("hpack_decode", 1000, hpack_decode),
    ("hpack_first", 1000, hpack_first),
    ("hpack_long", 1000, hpack_long),
    ("hpack_encode", 1000, hpack_encode),
    ("lookup_10", 1000, || look_up(10)),
    ("lookup_100000", 1000, || look_up(100_000)),
    ("adopt_10", 10, || adopt(10)),
    ("adopt_100000", 1, || adopt(100_000)),
];

/// Where instructions are counted.
#[inline(never)]
fn measured(operation: &mut Operation, rounds: usize) {
    for round in 0..rounds {
        operation(round);
    }
}

/// Nanoseconds per round of each operation: they take turns in short runs for half a second, and the shortest run counts,
/// since whatever else the machine does only ever adds.
fn timed(operations: &mut [Operation]) -> Vec<f64> {
    let nanoseconds = |operation: &mut Operation, rounds| {
        let begun = Instant::now();
        measured(operation, rounds);
        begun.elapsed().as_nanos() as f64 / rounds as f64
    };
    // A run takes about a tenth of a millisecond, or one round.
    let rounds: Vec<usize> =
        operations.iter_mut().map(|operation| (1e5 / nanoseconds(operation, 1)) as usize + 1).collect();
    let mut least = vec![f64::INFINITY; operations.len()];
    let begun = Instant::now();
    while begun.elapsed().as_millis() < 500 {
        for ((operation, &rounds), least) in operations.iter_mut().zip(&rounds).zip(&mut least) {
            *least = least.min(nanoseconds(operation, rounds));
        }
    }
    least
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--list-operations"] => OPERATIONS.iter().for_each(|(name, rounds, _)| println!("{name} {rounds}")),
        ["--count", wanted] => {
            let found = OPERATIONS.iter().find(|(name, ..)| *name == wanted);
            let (_, rounds, set_up) = found.unwrap_or_else(|| panic!("no operation {wanted:?}"));
            let mut operation = set_up();
            measured(&mut operation, *rounds);
        }
        _ if arguments.contains(&"--bench") => {
            for (name, _, set_up) in OPERATIONS {
                println!("{name:>16}  {:>12.0} ns", timed(&mut [set_up()])[0]);
            }
            let pair = timed(&mut [httparse_alone(), parse_request()]);
            println!("parsing a request takes {:.2} times as long as httparse alone", pair[1] / pair[0]);
        }
        _ => OPERATIONS.iter().filter(|(name, ..)| !name.ends_with("100000")).for_each(|(_, _, set_up)| set_up()(0)),
    }
}
