//! Items 32 to 35, 37 to 39 and 41 of the HTTP checklist: the target, names that are spelt twice, bounds, pipelines.
//! (Item 36, the path, has a file of its own.)
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::limits::{
    HEAD_BYTES_MAX, HEAD_FIELDS_MAX, NEXT_HOP_HEAD_BYTES_MAX, NEXT_HOP_HEAD_FIELDS_MAX, TARGET_BYTES_MAX,
};
use meshring_tests::{
    checklist::{Chain, Shown, Sidecar, expect_bytes, expect_refusal, with, with_own_lines},
    client::Client,
    on_both_drivers,
    proxy::Driver,
};

on_both_drivers! {
    item_32_the_authority_of_an_absolute_target_is_routed_and_sent
    item_32_a_malformed_absolute_target_is_refused
    item_33_the_asterisk_is_for_options_only
    item_34_a_fragment_is_refused
    item_35_bytes_that_servers_read_in_two_ways_are_refused
    item_35_other_bytes_are_forwarded_as_they_are
    item_37_underscore_twins_are_refused
    item_38_a_target_over_8_kib_is_414
    item_39_a_head_over_60_kib_or_100_fields_is_431
    item_39_a_head_at_the_bounds_gets_through_two_sidecars
    item_41_pipelined_requests_are_answered_in_order
    item_41_a_malformed_request_in_a_pipeline_is_the_last_one
}

fn item_32_the_authority_of_an_absolute_target_is_routed_and_sent(driver: Driver) {
    let forms = [
        ("GET http://echo/x?y=1 HTTP/1.1\r\nhost: ping\r\nx: 1\r\n", "GET /x?y=1 HTTP/1.1\r\nhost: echo\r\nx: 1\r\n"),
        (
            "GET http://echo/x HTTP/1.1\r\nx: 1\r\nHost: ping\r\ny: 2\r\n",
            "GET /x HTTP/1.1\r\nhost: echo\r\nx: 1\r\ny: 2\r\n",
        ),
        ("GET http://echo:80/x HTTP/1.1\r\nhost: ping\r\n", "GET /x HTTP/1.1\r\nhost: echo:80\r\n"),
        ("GET http://ECHO/x HTTP/1.1\r\nhost: echo\r\n", "GET /x HTTP/1.1\r\nhost: ECHO\r\n"),
        ("GET HTTP://echo/x HTTP/1.1\r\nhost: ping\r\n", "GET /x HTTP/1.1\r\nhost: echo\r\n"),
        ("GET http://echo HTTP/1.1\r\nhost: ping\r\n", "GET / HTTP/1.1\r\nhost: echo\r\n"),
        ("GET http://echo?q HTTP/1.1\r\nhost: ping\r\n", "GET /?q HTTP/1.1\r\nhost: echo\r\n"),
        ("GET http://echo/x? HTTP/1.1\r\nhost: ping\r\n", "GET /x? HTTP/1.1\r\nhost: echo\r\n"),
        ("GET http://echo/http://ping/ HTTP/1.1\r\nhost: ping\r\n", "GET /http:/ping/ HTTP/1.1\r\nhost: echo\r\n"),
    ];
    let (sidecar, chain) = (Sidecar::new(driver), Chain::new(driver));
    for (sent, expected) in forms {
        sidecar.forwards(format!("{sent}\r\n"), format!("{expected}\r\n"));
        chain.forwards(format!("{sent}\r\n"), format!("{expected}\r\n"));
    }
    // The other way round the upstream of Host sees nothing.
    let mut client = sidecar.proxy.connect();
    let response = client.send("GET http://ping/ HTTP/1.1\r\nhost: echo\r\n\r\n").response();
    assert_eq!(response.expect(200).text(), "pong");
    assert_eq!(sidecar.received(), b"");
}

fn item_32_a_malformed_absolute_target_is_refused(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for (target, code) in [
        ("http://", "http1.bad_target"),
        ("http:///x", "http1.bad_authority"),
        ("http://u@echo/", "http1.bad_authority"),
        ("http://u:p@echo/", "http1.bad_authority"),
        ("http://echo:x/", "http1.bad_authority"),
        ("http://echo:/", "http1.bad_authority"),
        ("http://echo,ping/", "http1.bad_authority"),
        ("http://%65cho/", "http1.bad_authority"),
        ("http://[::1/", "http1.bad_authority"),
        ("http://echo\\ping/", "http1.target_backslash"),
        ("http://ping\\@echo/", "http1.target_backslash"),
        ("http:echo/", "http1.bad_target"),
        ("http:/echo/", "http1.bad_target"),
        ("ftp://echo/", "http1.bad_target"),
        ("ws://echo/", "http1.bad_target"),
        ("javascript:x", "http1.bad_target"),
        ("echo", "http1.bad_target"),
        ("echo:80", "http1.bad_target"),
        ("a/b", "http1.bad_target"),
        ("?q", "http1.bad_target"),
    ] {
        sidecar.refuses(format!("GET {target} HTTP/1.1\r\nhost: echo\r\n\r\n"), 400, code);
    }
    sidecar.refuses_in_pieces("GET http://u@echo/ HTTP/1.1\r\nhost: echo\r\n\r\n", 400, "http1.bad_authority");
    sidecar.expect_untouched();
}

fn item_33_the_asterisk_is_for_options_only(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "PATCH", "PURGE", "options"] {
        sidecar.refuses(format!("{method} * HTTP/1.1\r\nhost: echo\r\n\r\n"), 400, "http1.asterisk_not_options");
    }
    for target in ["**", "*/x", "*?q", "*#f"] {
        let code = if target == "*#f" { "http1.target_fragment" } else { "http1.bad_target" };
        sidecar.refuses(format!("OPTIONS {target} HTTP/1.1\r\nhost: echo\r\n\r\n"), 400, code);
    }
    sidecar.refuses_in_pieces("GET * HTTP/1.1\r\nhost: echo\r\n\r\n", 400, "http1.asterisk_not_options");
    sidecar.expect_untouched();

    let (sidecar, chain) = (Sidecar::new(driver), Chain::new(driver));
    let asterisk = "OPTIONS * HTTP/1.1\r\nhost: echo\r\n\r\n";
    for sent in [asterisk, "OPTIONS http://echo HTTP/1.1\r\nhost: ping\r\n\r\n"] {
        sidecar.forwards(sent, asterisk);
        chain.forwards(sent, asterisk);
    }
    let slash = "OPTIONS / HTTP/1.1\r\nhost: echo\r\n\r\n";
    sidecar.forwards("OPTIONS http://echo/ HTTP/1.1\r\nhost: ping\r\n\r\n", slash);
}

/// Asserts that each target is refused with its code.
#[track_caller]
fn refused_targets(driver: Driver, targets: &[(&[u8], &str)]) {
    let sidecar = Sidecar::new(driver);
    let request = |target: &[u8]| [b"GET ", target, b" HTTP/1.1\r\nhost: echo\r\n\r\n"].concat();
    for (target, code) in targets {
        sidecar.refuses(request(target), 400, code);
    }
    sidecar.refuses_in_pieces(request(targets[0].0), 400, targets[0].1);
    sidecar.expect_untouched();
}

fn item_34_a_fragment_is_refused(driver: Driver) {
    let targets = [
        "/a#b",
        "/#",
        "/a?b#c",
        "/a?#",
        "/a?b\\#c",
        "http://echo/a#b",
        "http://echo#b",
        "http://echo?#",
        "/#/../admin",
    ];
    refused_targets(driver, &targets.map(|target| (target.as_bytes(), "http1.target_fragment")));
}

fn item_35_bytes_that_servers_read_in_two_ways_are_refused(driver: Driver) {
    let mut targets: Vec<(&[u8], &str)> = vec![
        (b"/a%00b", "http1.target_nul"),
        (b"/%00", "http1.target_nul"),
        (b"/admin%00.html", "http1.target_nul"),
        (b"http://echo/%00", "http1.target_nul"),
        (b"/a\\b", "http1.target_backslash"),
        (b"/\\..\\admin", "http1.target_backslash"),
        (b"/..\\admin", "http1.target_backslash"),
        (b"http://echo/a\\b", "http1.target_backslash"),
        (b"/%c0%ae%c0%ae/admin", "http1.target_overlong_utf8"),
        (b"/%C0%AF", "http1.target_overlong_utf8"),
        (b"/%c1%9c", "http1.target_overlong_utf8"),
        (b"/%e0%80%af", "http1.target_overlong_utf8"),
        (b"/%e0%9f%bf", "http1.target_overlong_utf8"),
        (b"/%f0%80%80%af", "http1.target_overlong_utf8"),
        (b"/%f0%8f%bf%bf", "http1.target_overlong_utf8"),
        (b"/%f8%80%80%80%af", "http1.target_overlong_utf8"),
        (b"/%fc%80%80%80%80%af", "http1.target_overlong_utf8"),
        (b"/%fe", "http1.target_overlong_utf8"),
        (b"/%ff", "http1.target_overlong_utf8"),
        (b"/%", "http1.target_bad_escape"),
        (b"/%4", "http1.target_bad_escape"),
        (b"/%zz", "http1.target_bad_escape"),
        (b"/%2", "http1.target_bad_escape"),
        (b"/%u002e%u002e/", "http1.target_bad_escape"),
        (b"/%%32%65", "http1.target_bad_escape"),
        (b"/%+2e", "http1.target_bad_escape"),
        (b"/% 2e", "http1.bad_request_line"),
    ];
    let raw: Vec<_> = (0x80..=0xff_u8).map(|byte| [b'/', byte]).collect();
    targets.extend(raw.iter().map(|target| (&target[..], "http1.target_not_ascii")));
    let raw: Vec<_> = (0x80..=0xff_u8).step_by(16).map(|byte| [b'/', b'?', byte]).collect();
    targets.extend(raw.iter().map(|target| (&target[..], "http1.target_not_ascii")));
    let controls: Vec<_> =
        (0x01..0x20_u8).chain([0x7f]).filter(|byte| !b"\t\r\n".contains(byte)).map(|b| [b'/', b]).collect();
    targets.extend(controls.iter().map(|target| (&target[..], "http1.target_not_ascii")));
    refused_targets(driver, &targets);
}

fn item_35_other_bytes_are_forwarded_as_they_are(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for target in [
        "/caf%C3%A9",
        "/%E0%A4%A4",
        "/%F0%9F%98%80",
        "/a?x=\\&y=%00&z=%c0%ae",
        "/a?x?y//../%2f",
        "/a|b^c`{}\"<>",
        "/a:b@c!$&'()*+,=",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: echo\r\n\r\n");
        sidecar.forwards(&request, &request);
    }
}

fn item_37_underscore_twins_are_refused(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let names = [
        "Content_Length",
        "content_length",
        "CONTENT_LENGTH",
        "Transfer_Encoding",
        "X_Forwarded_For",
        "X-Forwarded_For",
        "x_forwarded-for",
        "X_Forwarded_Proto",
        "X_Forwarded_Host",
        "X_Forwarded_Port",
        "X_Forwarded_Client_Cert",
        "X_Forwarded_Prefix",
        "x-forwarded_user",
        "X_Envoy_Internal",
        "X-Envoy_Original-Path",
        "Keep_Alive",
        "Proxy_Connection",
        "Max_Forwards",
        "HTTP2_Settings",
    ];
    for name in names {
        sidecar.refuses(with(format!("{name}: 1\r\n")), 400, "http1.underscore_twin");
    }
    sidecar.refuses(with("Content-Length: 5\r\nContent_Length: 0\r\n"), 400, "http1.underscore_twin");
    sidecar.refuses_in_pieces(with("Content_Length: 5\r\n"), 400, "http1.underscore_twin");
    sidecar.expect_untouched();

    // An underscore by itself is no crime.
    let lines = with("user_id: 1\r\nx_real_name: 2\r\ncontent_lengt: 3\r\n_: 4\r\n");
    Sidecar::new(driver).forwards(&lines, &lines);
}

fn item_38_a_target_over_8_kib_is_414(driver: Driver) {
    let request = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: echo\r\n\r\n");
    let path = |len: usize| format!("/{}", "a".repeat(len - 1));
    let query = |len: usize| format!("/?{}", "a".repeat(len - 2));
    let absolute = |len: usize| format!("http://echo/{}", "a".repeat(len - 12));
    let sidecar = Sidecar::new(driver);
    for target in [path, query, absolute].map(|make| make as fn(usize) -> String) {
        for len in [TARGET_BYTES_MAX + 1, 2 * TARGET_BYTES_MAX, HEAD_BYTES_MAX, 70_000] {
            sidecar.refuses(request(&target(len)), 414, "http1.target_too_long");
        }
    }
    // Without an end in sight nobody waits for it.
    for listener in [sidecar.outbound(), sidecar.inbound()] {
        let mut client = Client::connect(listener);
        let begun = format!("GET {}", path(TARGET_BYTES_MAX + 100));
        client.send(&begun);
        expect_refusal(&mut client, begun.as_bytes(), 414, "http1.target_too_long");
    }
    sidecar.expect_untouched();

    let (sidecar, chain) = (Sidecar::new(driver), Chain::new(driver));
    for target in [path(TARGET_BYTES_MAX), query(TARGET_BYTES_MAX)] {
        sidecar.forwards(request(&target), request(&target));
        chain.forwards(request(&target), request(&target));
    }
    let expected = request(&path(TARGET_BYTES_MAX - 11));
    sidecar.forwards(request(&absolute(TARGET_BYTES_MAX)), expected);
}

/// A request of exactly so many fields, Host included.
fn of_fields(count: usize) -> Vec<u8> {
    with((1..count).map(|number| format!("x-{number}: {number}\r\n")).collect::<String>())
}

/// A request whose head takes exactly so many bytes.
fn of_bytes(len: usize) -> Vec<u8> {
    let line = "a".repeat(len - with("x: \r\n").len());
    with(format!("x: {line}\r\n"))
}

fn item_39_a_head_over_60_kib_or_100_fields_is_431(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let (too_many, too_large) = ("http1.too_many_fields", "http1.head_too_large");
    sidecar.refuses_at(sidecar.outbound(), &of_fields(HEAD_FIELDS_MAX + 1), 431, too_many);
    sidecar.refuses_at(sidecar.outbound(), &of_bytes(HEAD_BYTES_MAX + 1), 431, too_large);
    // What comes from another sidecar may have that sidecar's fields beside the application's.
    sidecar.refuses_at(sidecar.inbound(), &of_fields(NEXT_HOP_HEAD_FIELDS_MAX + 1), 431, too_many);
    sidecar.refuses_at(sidecar.inbound(), &of_bytes(NEXT_HOP_HEAD_BYTES_MAX + 1), 431, too_large);
    sidecar.refuses(of_fields(10 * HEAD_FIELDS_MAX), 431, too_many);
    sidecar.refuses(of_bytes(3 * HEAD_BYTES_MAX / 2), 431, too_large);
    let many_small = with("a:b\r\n".repeat(HEAD_BYTES_MAX / 5));
    sidecar.refuses(&many_small, 431, too_many);
    // Without an end in sight.
    for listener in [sidecar.outbound(), sidecar.inbound()] {
        let mut client = Client::connect(listener);
        let begun = &of_bytes(70_000)[..69_000];
        client.send(begun);
        expect_refusal(&mut client, begun, 431, too_large);
    }
    sidecar.expect_untouched();
}

fn item_39_a_head_at_the_bounds_gets_through_two_sidecars(driver: Driver) {
    let (sidecar, chain) = (Sidecar::new(driver), Chain::new(driver));
    for request in [of_fields(HEAD_FIELDS_MAX), of_bytes(HEAD_BYTES_MAX)] {
        sidecar.forwards(&request, &request);
        chain.forwards(&request, &request);
    }
    // Both bounds at once, and fields that each hop adds to.
    let lines: String = (2..HEAD_FIELDS_MAX).map(|number| format!("x-{number}: {number}\r\n")).collect();
    let fill = "a".repeat(HEAD_BYTES_MAX - with(&lines).len() - "fill: \r\n".len());
    let request = with(format!("{lines}fill: {fill}\r\n"));
    assert_eq!(request.len(), HEAD_BYTES_MAX);
    chain.forwards(&request, &request);
}

fn item_41_pipelined_requests_are_answered_in_order(driver: Driver) {
    let requests = [
        "GET /1 HTTP/1.1\r\nhost: echo\r\n\r\n",
        "POST /2 HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST /3 HTTP/1.1\r\nhost: echo\r\ncontent-length: 5\r\n\r\nhello",
        "GET /4 HTTP/1.1\r\nhost: echo\r\n\r\n",
    ];
    let sidecar = Sidecar::new(driver);
    let pipeline = requests.concat();
    let expected: Vec<u8> = requests.iter().flat_map(|request| with_own_lines(request.as_bytes())).collect();
    for cut in (0..pipeline.len()).step_by(3).chain([pipeline.len() - 1]) {
        let mut client = sidecar.proxy.connect();
        client.send(&pipeline[..cut]);
        sidecar.settle();
        client.send(&pipeline[cut..]);
        for target in ["/1", "/2", "/3", "/4"] {
            assert_eq!(client.response().expect(200).text(), target, "cut at {cut}");
        }
        let received = sidecar.received();
        // A body that comes in two pieces goes out in two chunks.
        if !pipeline[..cut].ends_with(|byte: char| "helo".contains(byte)) {
            expect_bytes(&received, &expected, pipeline.as_bytes());
        }
    }
    sidecar.upstream.expect_reuse();
}

fn item_41_a_malformed_request_in_a_pipeline_is_the_last_one(driver: Driver) {
    let first = "GET /1 HTTP/1.1\r\nhost: echo\r\n\r\n";
    let third = "GET /3 HTTP/1.1\r\nhost: echo\r\n\r\n";
    let sidecar = Sidecar::new(driver);
    for (malformed, code) in [
        ("GET /2 HTTP/1.1\r\nhost : echo\r\n\r\n", "http1.space_before_colon"),
        ("GET /2 HTTP/1.1\nhost: echo\n\n", "http1.bare_lf"),
        (
            "POST /2 HTTP/1.1\r\nhost: echo\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "http1.length_with_encoding",
        ),
        ("POST /2 HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n+0\r\n\r\n", "http1.chunk_size"),
        ("GET /2 HTTP/1.1\r\n\r\n", "http1.no_host"),
    ] {
        let pipeline = [first, malformed, third].concat();
        let mut client = sidecar.proxy.connect();
        client.send(&pipeline);
        assert_eq!(client.response().expect(200).text(), "/1", "{}", Shown(pipeline.as_bytes()));
        expect_refusal(&mut client, pipeline.as_bytes(), 400, code);
        expect_bytes(&sidecar.received(), &with_own_lines(first.as_bytes()), pipeline.as_bytes());
    }
}
