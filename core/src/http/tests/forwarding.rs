use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::super::forwarding::{
    ClientCertificate, Hop, client_address, client_certificate_line, kept_request_id, new_request_id, request_lines,
};
use super::super::serialize::Via;
use super::super::{
    Bounds, FieldKind, Fields, HeaderEdits, KindSet, NoEdits, Refusal, RequestOut, ResponseOut, request, request_head,
    response_head, serialize,
};
use super::{FIRST_HOP, parsed, refused, responded, with};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));

const STRANGER: Hop = Hop {
    peer: PEER,
    is_https: false,
    port: 15001,
    is_trusted: false,
    new_request_id: None,
    is_host_rewritten: false,
    via: Via::Http1,
};
const FRIEND: Hop = Hop { is_trusted: true, ..STRANGER };

/// The request as it goes on to the next hop, without its first line.
fn forwarded_with<E: HeaderEdits>(bytes: &[u8], hop: &Hop, edits: &E) -> String {
    let (head, fields) = parsed(bytes);
    let mut lines = Vec::new();
    let drop = request_lines(&mut lines, bytes, &head, &fields, hop, edits);
    let how = RequestOut { drop, via: Via::Http1, extra: &lines, ..RequestOut::new(&head, edits) };
    let mut out = Vec::new();
    request_head(&mut out, bytes, &head, &fields, &how);
    let out = String::from_utf8(out).expect("ASCII");
    out.split_once("\r\n").expect("a first line").1.to_owned()
}

/// What is written below Host for a request with these lines.
fn forwarded(lines: &str, hop: &Hop) -> String {
    let out = forwarded_with(&with(lines), hop, &NoEdits);
    out.strip_prefix("Host: a\r\n").expect("Host").trim_end().replace("\r\n", "\n")
}

#[test]
fn item_45_via_is_appended_with_the_received_version() {
    assert!(forwarded("Via: 1.0 edge\r\n", &STRANGER).starts_with("Via: 1.0 edge\nvia: 1.1 meshring\n"));
    let old = forwarded_with(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", &STRANGER, &NoEdits);
    assert!(old.contains("\r\nvia: 1.0 meshring\r\n"), "{old}");
    for (version, line) in [("1.1", "via: 1.1 meshring\r\n"), ("1.0", "via: 1.0 meshring\r\n")] {
        let bytes = format!("HTTP/{version} 200 OK\r\nVia: 2 x\r\nContent-Length: 0\r\n\r\n").into_bytes();
        let (head, fields) = responded(&bytes);
        let mut out = Vec::new();
        response_head(
            &mut out,
            &bytes,
            &head,
            &fields,
            &ResponseOut { via: Via::Http1, ..ResponseOut::new(&head, &NoEdits) },
        );
        let expected = format!("HTTP/1.1 200 OK\r\nVia: 2 x\r\ncontent-length: 0\r\n{line}\r\n");
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}

#[test]
fn item_46_a_plain_request_says_where_it_came_from() {
    assert_eq!(forwarded("", &STRANGER), "via: 1.1 meshring\nx-forwarded-for: 10.1.2.3\nx-forwarded-proto: http");
    let https = Hop { is_https: true, ..FRIEND };
    assert_eq!(forwarded("", &https), "via: 1.1 meshring\nx-forwarded-for: 10.1.2.3\nx-forwarded-proto: https");
    for (peer, text) in [("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::1"), ("0.0.0.0", "0.0.0.0")] {
        let hop = Hop { peer: peer.parse().expect("an address"), ..STRANGER };
        assert!(forwarded("", &hop).contains(&format!("x-forwarded-for: {text}\n")), "{peer}");
    }
    let longest = Hop { peer: "1111:2222:3333:4444:5555:6666:7777:8888".parse().expect("an address"), ..STRANGER };
    assert!(forwarded("", &longest).contains("x-forwarded-for: 1111:2222:3333:4444:5555:6666:7777:8888\n"));
}

#[test]
fn item_46_forwarded_for_is_joined_and_untrusted_claims_are_replaced() {
    let lines = "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n\
                 x-forwarded-for:\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Client-Cert: By=x\r\nX-Forwarded-Prefix: /p\r\n\
                 X-Forwarded-: x\r\nX-Envoy-Internal: true\r\nx-envoy-: x\r\nx-forwarded-for: 2.2.2.2\r\nX-Other: 1\r\n";
    assert_eq!(
        forwarded(lines, &STRANGER),
        "X-Other: 1\nvia: 1.1 meshring\nx-forwarded-for: 1.1.1.1, 2.2.2.2, 10.1.2.3\nx-forwarded-proto: http\n\
         x-forwarded-host: a\nx-forwarded-port: 15001\nforwarded: for=10.1.2.3;host=\"a\";proto=http"
    );
    assert_eq!(
        forwarded(lines, &FRIEND),
        "X-Forwarded-Proto: https\nX-Forwarded-Host: evil\nX-Forwarded-Port: 1\nX-Forwarded-Client-Cert: By=x\n\
         X-Forwarded-Prefix: /p\nX-Forwarded-: x\nX-Envoy-Internal: true\nx-envoy-: x\nX-Other: 1\nvia: 1.1 meshring\n\
         x-forwarded-for: 1.1.1.1, 2.2.2.2, 10.1.2.3\nforwarded: for=6.6.6.6, for=10.1.2.3;host=\"a\";proto=http"
    );
}

#[test]
fn the_host_that_the_client_asked_for_is_kept_where_host_is_rewritten() {
    let hop = Hop { is_host_rewritten: true, ..STRANGER };
    assert!(forwarded("", &hop).ends_with("\nx-forwarded-host: a"));
    let hop = Hop { is_host_rewritten: true, ..FRIEND };
    assert!(forwarded("", &hop).ends_with("\nx-forwarded-host: a"));
    assert!(!forwarded("X-Forwarded-Host: b\r\n", &hop).contains("x-forwarded-host: a"));
    let absolute = b"GET http://b:81/ HTTP/1.1\r\nHost: a\r\n\r\n";
    let hop = Hop { is_host_rewritten: true, ..STRANGER };
    assert!(forwarded_with(absolute, &hop, &NoEdits).contains("\r\nx-forwarded-host: b:81\r\n"));
}

#[test]
fn elements_of_forwarded_are_quoted_and_cannot_be_swallowed() {
    let hop = Hop { peer: "2001:db8::1".parse().expect("an address"), is_https: true, ..FRIEND };
    let ours = "for=\"[2001:db8::1]\";host=\"a\";proto=https";
    for (received, written) in [
        ("Forwarded: for=1.1.1.1\r\nforwarded: for=\"[::1]:1\"\r\n", format!("for=1.1.1.1, for=\"[::1]:1\", {ours}")),
        // An open quotation, an escaped quotation mark, and one that only looks open.
        ("Forwarded: for=\"1.1.1.1\r\n", ours.to_owned()),
        ("Forwarded: for=\"a\\\"\r\n", ours.to_owned()),
        ("Forwarded: for=\"a\\\\\"\r\n", format!("for=\"a\\\\\", {ours}")),
        ("Forwarded:\r\n", ours.to_owned()),
    ] {
        let out = forwarded(received, &hop);
        assert_eq!(out.lines().last(), Some(&*format!("forwarded: {written}")), "{received}");
    }
    assert!(!forwarded("", &hop).contains("forwarded: "), "nobody asked for it");
}

#[test]
fn a_request_id_is_kept_from_the_trusted_and_made_for_all_others() {
    let id = new_request_id([0xff; 16]);
    assert_eq!(&id, b"ffffffff-ffff-4fff-bfff-ffffffffffff");
    assert_eq!(
        &new_request_id(*b"\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"),
        b"00010203-0405-4607-8809-0a0b0c0d0e0f"
    );
    let ids = |lines: &str, hop: &Hop| -> Vec<String> {
        let out = forwarded(lines, hop);
        let ids = out
            .lines()
            .filter_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("x-request-id")));
        ids.map(|(_, id)| id.to_owned()).collect()
    };
    let (friend, stranger) = (Hop { new_request_id: Some(id), ..FRIEND }, Hop { new_request_id: Some(id), ..STRANGER });
    let fresh = std::str::from_utf8(&id).expect("ASCII");
    assert_eq!(ids("", &friend), [fresh]);
    assert_eq!(ids("X-Request-Id: mine\r\n", &friend), ["mine"]);
    assert_eq!(ids("X-Request-Id: mine\r\n", &stranger), [fresh]);
    let long = format!("X-Request-Id: {}\r\n", "a".repeat(129));
    for odd in [
        "X-Request-Id:\r\n",
        "X-Request-Id: a\r\nX-Request-Id: a\r\n",
        "X-Request-Id: a b\r\n",
        "X-Request-Id: \"\r\n",
        &long,
    ] {
        assert_eq!(ids(odd, &friend), [fresh], "{odd:?}");
    }
    // Disabled: nothing is made, and nothing is taken away.
    assert_eq!(ids("", &FRIEND), [""; 0]);
    assert_eq!(ids("X-Request-Id: mine\r\n", &STRANGER), ["mine"]);
    let bytes = with("X-Request-Id: mine\r\n");
    let (_, fields) = parsed(&bytes);
    assert_eq!(kept_request_id(&bytes, &fields, true), Some(&b"mine"[..]));
    assert_eq!(kept_request_id(&bytes, &fields, false), None);
}

#[test]
fn item_47_max_forwards_counts_down_for_trace_and_options() {
    let hops = |method: &str, line: &str| {
        let bytes = format!("{method} / HTTP/1.1\r\nHost: a\r\n{line}\r\n");
        (parsed(bytes.as_bytes()).0.max_forwards, forwarded_with(bytes.as_bytes(), &STRANGER, &NoEdits))
    };
    for method in ["TRACE", "OPTIONS"] {
        assert_eq!(hops(method, "Max-Forwards: 0\r\n").0, Some(0));
        let (received, out) = hops(method, "Max-Forwards: 010\r\n");
        assert_eq!(received, Some(10));
        assert!(out.contains("\r\nmax-forwards: 9\r\n") && !out.contains("Max-Forwards"), "{out}");
        let (received, out) = hops(method, "Max-Forwards: 99999999999999999999\r\n");
        assert_eq!(received, Some(u32::MAX));
        assert!(out.contains("\r\nmax-forwards: 4294967294\r\n"), "{out}");
        assert_eq!(hops(method, "").0, None);
        for line in [
            "Max-Forwards:",
            "Max-Forwards: -1",
            "Max-Forwards: 1, 2",
            "Max-Forwards: +1",
            "Max-Forwards: 1\r\nmax-forwards: 1",
        ] {
            let bytes = format!("{method} / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
            assert_eq!(refused(bytes.as_bytes()), Refusal::BadMaxForwards, "{line}");
        }
    }
    let (received, out) = hops("GET", "Max-Forwards: x\r\n");
    assert_eq!(received, None);
    assert!(out.contains("\r\nMax-Forwards: x\r\n"), "{out}");
}

/// Removes `x-forwarded-proto`, sets `via`.
struct Edits;

impl HeaderEdits for Edits {
    fn is_empty(&self) -> bool {
        false
    }

    fn removes(&self, name: &[u8]) -> bool {
        name.eq_ignore_ascii_case(b"x-forwarded-proto") || name.eq_ignore_ascii_case(b"via") || name == b"date"
    }

    fn append(&self, out: &mut Vec<u8>) {
        serialize::field(out, b"via", b"1.1 configured");
    }
}

#[test]
fn the_edits_of_a_route_come_last() {
    let out = forwarded_with(&with("X-Forwarded-Proto: ftp\r\nVia: x\r\n"), &STRANGER, &Edits);
    assert_eq!(out, "Host: a\r\nvia: 1.1 configured\r\nx-forwarded-for: 10.1.2.3\r\n\r\n");
    let bytes = b"HTTP/1.1 204 No Content\r\n\r\n";
    let (head, fields) = responded(bytes);
    let mut out = Vec::new();
    let how = ResponseOut { via: Via::Http1, date: Some(b"now"), ..ResponseOut::new(&head, &Edits) };
    response_head(&mut out, bytes, &head, &fields, &how);
    assert_eq!(String::from_utf8_lossy(&out), "HTTP/1.1 204 No Content\r\nvia: 1.1 configured\r\n\r\n");
}

#[test]
fn the_client_is_where_the_trusted_hops_point_to() {
    let client = |lines: &str, hops: u8| {
        let bytes = with(lines);
        client_address(&bytes, &parsed(&bytes).1, "::ffff:10.1.2.3".parse().expect("an address"), hops).to_string()
    };
    let chain = "X-Forwarded-For: 203.0.113.128, 203.0.113.10\r\nA: b\r\nx-forwarded-for: ,203.0.113.1 ,\r\n";
    // The example of Envoy's documentation, with two hops.
    for (hops, address) in [
        (0, "10.1.2.3"),
        (1, "203.0.113.1"),
        (2, "203.0.113.10"),
        (3, "203.0.113.128"),
        (4, "10.1.2.3"),
        (255, "10.1.2.3"),
    ] {
        assert_eq!(client(chain, hops), address, "{hops} hops");
    }
    for (text, address) in [
        ("192.0.2.1:80", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", "10.1.2.3"),
        ("192.0.2.256", "10.1.2.3"),
        ("192.0.2.1 x", "10.1.2.3"),
        ("[192.0.2.1]", "10.1.2.3"),
        ("\u{e9}", "10.1.2.3"),
    ] {
        assert_eq!(client(&format!("X-Forwarded-For: {text}\r\n"), 1), address, "{text}");
    }
    assert_eq!(client("", 1), "10.1.2.3");
}

#[test]
fn nothing_that_a_client_sends_becomes_a_line_of_its_own() {
    // Whatever stands in the fields that are repeated, each line that is written has the name of one of ours.
    for value in ["1.1.1.1, \"", "a;b=\"c\"", "\u{80}\u{ff}", "%0d%0aX: y", "\\r\\nX: y"] {
        let lines = format!("X-Forwarded-For: {value}\r\nForwarded: {value}\r\nX-Request-Id: {value}\r\n");
        let bytes = with(&lines);
        let (head, fields) = parsed(&bytes);
        for hop in [STRANGER, FRIEND] {
            let hop = Hop { new_request_id: Some(new_request_id([7; 16])), is_host_rewritten: true, ..hop };
            let mut out = Vec::new();
            request_lines(&mut out, &bytes, &head, &fields, &hop, &NoEdits);
            let names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-request-id"];
            let lines: Vec<&[u8]> = out.strip_suffix(b"\r\n").expect("whole lines").split(|&b| b == b'\n').collect();
            assert!(lines.iter().all(|line| names.iter().any(|name| line.starts_with(format!("{name}: ").as_bytes()))));
            assert!(lines.len() <= names.len());
        }
    }
}

/// The request after a hop that adds everything that a hop can add.
fn after_a_hop(bytes: &[u8], bounds: Bounds, hop: &Hop) -> Vec<u8> {
    let mut fields = Fields::new();
    let head = request::parse(bytes, &mut fields, bounds).expect("acceptable").expect("whole");
    let mut lines = Vec::new();
    let drop = request_lines(&mut lines, bytes, &head, &fields, hop, &NoEdits);
    let longest = format!("{}:65535", "b".repeat(254));
    let authority = hop.is_host_rewritten.then_some(longest.as_bytes());
    let how = RequestOut {
        drop,
        via: Via::Http1,
        extra: &lines,
        authority,
        connection: serialize::ConnectionOption::Close,
        ..RequestOut::new(&head, &NoEdits)
    };
    let mut out = Vec::new();
    request_head(&mut out, bytes, &head, &fields, &how);
    out
}

/// A request with exactly so many fields and bytes, which needs as many changes on its way as possible.
fn extreme_request(count: usize, bytes: usize, first: &[&str], filler: &str) -> Vec<u8> {
    let mut lines: Vec<String> = first.iter().map(|&line| line.to_owned()).collect();
    lines.resize(count - 1, filler.to_owned());
    let sized = |value: usize| {
        let value = "v".repeat(value);
        format!("{}\r\nx:{value}\r\n\r\n", lines.join("\r\n"))
    };
    let missing = bytes - sized(0).len();
    sized(missing).into_bytes()
}

#[test]
fn a_request_at_the_bounds_of_the_first_hop_passes_the_next_one() {
    let host = format!("{}:65535", "a".repeat(254));
    let targets = [
        format!("POST / HTTP/1.1\r\nHost:{host}"),
        format!("POST http://{host} HTTP/1.0"),
        format!("OPTIONS http://{host} HTTP/1.1\r\nHost:a"),
    ];
    let hop = Hop {
        peer: "1111:2222:3333:4444:5555:6666:7777:8888".parse().expect("an address"),
        is_https: true,
        port: 65535,
        is_trusted: false,
        new_request_id: Some(new_request_id([0; 16])),
        is_host_rewritten: true,
        via: Via::Http1,
    };
    let forwarding =
        ["forwarded:x", "x-forwarded-port:1", "x-forwarded-host:b", "max-forwards:9999999999", "te:trailers"];
    let framings = ["transfer-encoding:chunked", "content-length:18446744073709551615", "x:y"];
    for target in &targets {
        for framing in framings.iter().filter(|framing| !target.contains("1.0") || !framing.starts_with('t')) {
            for is_trusted in [false, true] {
                let hop = Hop { is_trusted, ..hop };
                let mut first = vec![target.as_str(), framing];
                first.extend(forwarding);
                // A line of the request line's string may hold two lines, one of them Host.
                let lines_in_first = target.matches("\r\n").count();
                let count = 101 - lines_in_first;
                let bytes = extreme_request(count, 60 * 1024, &first, "y:");
                let (head, fields) = parsed(&bytes);
                assert_eq!((head.len, fields.len()), (60 * 1024, 100), "{target}");
                let written = after_a_hop(&bytes, FIRST_HOP, &hop);
                let mut fields = Fields::new();
                let again =
                    request::parse(&written, &mut fields, Bounds::NEXT_HOP).expect("acceptable").expect("whole");
                assert_eq!(again.len, written.len());
                let (grown, more) = (written.len() - bytes.len(), fields.len() - 100);
                assert!(grown <= 1100 && more <= 12, "{grown} bytes and {more} fields more");
            }
        }
    }
}

#[test]
fn a_response_at_the_bounds_of_the_first_hop_passes_the_next_one() {
    for start in ["HTTP/1.0 431", "HTTP/1.1 431 "] {
        let bytes = extreme_request(101, 60 * 1024, &[start], "y:");
        let (head, fields) = responded(&bytes);
        assert_eq!((head.len, fields.len()), (60 * 1024, 100));
        let date = Some(&b"Thu, 01 Jan 1970 00:00:00 GMT"[..]);
        let mut out = Vec::new();
        let how = ResponseOut { via: Via::Http1, date, ..ResponseOut::new(&head, &NoEdits) };
        response_head(&mut out, &bytes, &head, &fields, &how);
        let mut fields = Fields::new();
        let again = super::response::parse(&out, &mut fields, super::Method::Get, Bounds::NEXT_HOP);
        assert_eq!(again.expect("acceptable").expect("whole").len, out.len());
        assert!(
            super::response::parse(&out, &mut fields, super::Method::Get, FIRST_HOP).is_err(),
            "the next hop needs more"
        );
    }
}

#[test]
fn the_bounds_of_the_next_hop_are_bounds() {
    let bytes = extreme_request(102, 1000, &["GET / HTTP/1.1\r\nHost: a"], "y: z");
    assert_eq!(refused(&bytes), Refusal::TooManyFields);
    let mut fields = Fields::new();
    assert!(request::parse(&bytes, &mut fields, Bounds::NEXT_HOP).is_ok_and(|head| head.is_some()));
    let bytes = extreme_request(117, 1000, &["GET / HTTP/1.1\r\nHost: a"], "y: z");
    assert_eq!(request::parse(&bytes, &mut fields, Bounds::NEXT_HOP), Err(Refusal::TooManyFields));
    let bytes = extreme_request(5, 62 * 1024, &["GET / HTTP/1.1\r\nHost: a"], "y: z");
    assert!(request::parse(&bytes, &mut fields, Bounds::NEXT_HOP).is_ok_and(|head| head.is_some()));
    let bytes = extreme_request(5, 62 * 1024 + 1, &["GET / HTTP/1.1\r\nHost: a"], "y: z");
    assert_eq!(request::parse(&bytes, &mut fields, Bounds::NEXT_HOP), Err(Refusal::HeadTooLarge));
}

/// Requests that are large in one way or another, with forwarding fields in any number and order.
fn large_requests() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        prop::sample::select(vec![
            "x-forwarded-for",
            "forwarded",
            "x-forwarded-proto",
            "via",
            "x-envoy-a",
            "x-request-id",
            "te",
            "x"
        ])
        .prop_flat_map(|name| ("[a-z]{0,8}", prop::sample::select(vec![":", ": ", ":\t"]))
            .prop_map(move |(value, colon)| format!("{name}{colon}{value}\r\n"))),
    ];
    (prop::collection::vec(line, 60..99), 0_usize..60_000).prop_map(|(lines, padding)| {
        let lines = lines.concat();
        let room = 60 * 1024 - lines.len() - "GET / HTTP/1.1\r\nhost:a\r\nz:\r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nhost:a\r\n{lines}z:{}\r\n\r\n", "z".repeat(padding.max(59_000).min(room)))
            .into_bytes()
    })
}

proptest! {
    #[test]
    fn what_the_first_hop_accepts_the_next_one_accepts(bytes in large_requests(), is_trusted: bool, is_https: bool) {
        let new_request_id = Some(new_request_id([1; 16]));
        let hop = Hop { is_trusted, is_https, new_request_id, is_host_rewritten: true, ..STRANGER };
        let written = after_a_hop(&bytes, FIRST_HOP, &hop);
        let mut fields = Fields::new();
        let again = request::parse(&written, &mut fields, Bounds::NEXT_HOP);
        prop_assert!(again.is_ok_and(|head| head.is_some_and(|head| head.len == written.len())));
    }
}

#[test]
fn kinds_that_are_dropped_are_those_that_are_written_or_not_for_strangers() {
    let bytes = with("");
    let (head, fields) = parsed(&bytes);
    let drop = request_lines(&mut Vec::new(), &bytes, &head, &fields, &FRIEND, &NoEdits);
    assert_eq!(drop, KindSet::of(&[super::super::FieldKind::XForwardedFor, super::super::FieldKind::XForwardedProto]));
}

#[test]
fn a_client_certificate_is_appended_to_what_peers_have_said_of_theirs() {
    let ours = b"By=spiffe://a/b;Hash=00;Subject=\"\";URI=spiffe://a/c";
    let written = |received: &str, certificate: ClientCertificate<'_>| {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{received}\r\n");
        let mut fields = Fields::new();
        request::parse(head.as_bytes(), &mut fields, Bounds::FIRST_HOP).unwrap().unwrap();
        let mut out = Vec::new();
        let drop = client_certificate_line(&mut out, head.as_bytes(), &fields, certificate, &NoEdits);
        assert!(drop.contains(FieldKind::XForwardedClientCert));
        String::from_utf8(out).unwrap()
    };
    let line = |received: &str| written(received, ClientCertificate::Appended(ours));
    let ours = String::from_utf8_lossy(ours);
    assert_eq!(line(""), format!("x-forwarded-client-cert: {ours}\r\n"));
    let theirs = "By=spiffe://a/x;URI=spiffe://a/y";
    let received = format!("X-Forwarded-Client-Cert: {theirs}\r\n");
    assert_eq!(line(&received), format!("x-forwarded-client-cert: {theirs}, {ours}\r\n"));
    // An open quotation would swallow ours.
    let open = "X-Forwarded-Client-Cert: Subject=\"a;URI=spiffe://a/y\r\n";
    assert_eq!(line(open), format!("x-forwarded-client-cert: {ours}\r\n"));
    // What a gateway may be told to do.
    assert_eq!(written(&received, ClientCertificate::Removed), "");
    let only_ours = written(&received, ClientCertificate::Set(ours.as_bytes()));
    assert_eq!(only_ours, format!("x-forwarded-client-cert: {ours}\r\n"));
    assert_eq!(
        written(&received, ClientCertificate::Received),
        received.to_ascii_lowercase().replace("by=", "By=").replace("uri=", "URI=")
    );
    assert_eq!(written("", ClientCertificate::Received), "");
}

#[test]
fn each_number_of_an_address_is_written_as_the_standard_library_writes_it() {
    for n in 0..=255 {
        let peer = Ipv4Addr::new(n, 255 - n, n / 10, n % 100);
        let hop = Hop { peer: peer.into(), ..STRANGER };
        assert!(forwarded("", &hop).contains(&format!("x-forwarded-for: {peer}\n")), "{peer}");
    }
}
