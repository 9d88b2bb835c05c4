//! Attacks that took other proxies down, each as it was: request smuggling, rules that were got around, lines that were
//! injected into logs. (Those that work by the spelling of a path are with item 36.)
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::table::model::{Action, Condition, DirectResponse, StringMatch};
use meshring_tests::{
    checklist::{BEHIND, Shown, Sidecar, chunked, contains, expect_bytes, expect_refusal, saying, with, with_lines},
    client::Client,
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::{World, rule, rule_if},
    upstream::{Upstream, ok},
    wait,
};

on_both_drivers! {
    cve_2023_40225_an_empty_content_length_is_refused
    cve_2025_32094_options_with_a_folded_expect_is_refused
    cve_2025_55315_and_2025_22871_lines_of_a_chunked_body_end_in_crlf
    cve_2023_39326_chunk_extensions_are_bounded
    cve_2021_40346_long_names_overflow_nothing
    cve_2023_25725_an_empty_name_hides_nothing
    cve_2025_4366_a_body_that_nobody_reads_is_no_request
    cve_2021_32777_and_2026_26308_a_second_line_of_a_field_does_not_get_around_a_rule
    cve_2026_73552_bytes_beyond_ascii_do_not_get_around_a_regular_expression
    cve_2022_31813_and_2024_45410_and_2021_32813_and_2026_26365_connection_takes_no_forwarding_field_away
    cve_2024_45806_internal_fields_cannot_be_spoofed
    cve_2024_45808_nothing_is_injected_into_the_log
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: echo\r\n\r\n";

fn cve_2023_40225_an_empty_content_length_is_refused(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for lines in
        ["content-length:\r\n", "content-length: \r\n", "Content-Length:\t \t\r\n", "content-length:\r\nx: y\r\n"]
    {
        sidecar.refuses(format!("POST / HTTP/1.1\r\nhost: echo\r\n{lines}\r\n{SMUGGLED}"), 400, "http1.bad_length");
    }
    let twice = format!(
        "POST / HTTP/1.1\r\nhost: echo\r\ncontent-length:\r\ncontent-length: {}\r\n\r\n{SMUGGLED}",
        SMUGGLED.len()
    );
    sidecar.refuses(twice, 400, "http1.repeated_length");
    sidecar.refuses_in_pieces(with("content-length:\r\n"), 400, "http1.bad_length");
    sidecar.expect_untouched();
}

fn cve_2025_32094_options_with_a_folded_expect_is_refused(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let head = "OPTIONS / HTTP/1.1\r\nhost: echo\r\n";
    for (lines, code) in [
        ("Expect:\r\n 100-continue\r\nContent-Length: 39\r\n", "http1.obs_fold"),
        ("Expect: 100-continue\r\n \r\nContent-Length: 39\r\n", "http1.obs_fold"),
        ("Expect:\r\n\t100-continue\r\nContent-Length: 39\r\n", "http1.obs_fold"),
        ("Content-Length: 39\r\nExpect:\r\n 100-continue\r\n", "http1.obs_fold"),
        ("Expect : 100-continue\r\nContent-Length: 39\r\n", "http1.space_before_colon"),
    ] {
        sidecar.refuses(format!("{head}{lines}\r\n{SMUGGLED}"), 400, code);
    }
    // Without the fold the body is a body, for OPTIONS as for anybody.
    sidecar.expect_untouched();
    let sidecar = Sidecar::new(driver);
    let request = format!("{head}Expect: 100-continue\r\ncontent-length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len());
    sidecar.forwards(&request, &request);
    assert_eq!(sidecar.upstream.received().len(), 1);
}

fn cve_2025_55315_and_2025_22871_lines_of_a_chunked_body_end_in_crlf(driver: Driver) {
    let bodies = [
        // An extension that ends in LF: the chunk is where the next line begins, or where the one after begins.
        format!("2;\nxx\r\n2d\r\n0\r\n\r\n{SMUGGLED}0\r\n\r\n"),
        format!("1;\nA\r\n0\r\n\r\n{SMUGGLED}"),
        format!("1;a\rb\nA\r\n0\r\n\r\n{SMUGGLED}"),
        format!("1;\r\rA\r\n0\r\n\r\n{SMUGGLED}"),
        format!("5\nhello\r\n0\r\n\r\n{SMUGGLED}"),
        format!("5\r\nhello\n0\r\n\r\n{SMUGGLED}"),
        format!("5\rhello\r\n0\r\n\r\n{SMUGGLED}"),
        format!("0\n\r\n{SMUGGLED}"),
        format!("0;\n\n{SMUGGLED}"),
    ];
    let codes = [
        "http1.chunk_extension",
        "http1.chunk_extension",
        "http1.chunk_extension",
        "http1.chunk_extension",
        "http1.chunk_size",
        "http1.chunk_data_end",
        "http1.chunk_size",
        "http1.chunk_size",
        "http1.chunk_extension",
    ];
    let sidecar = Sidecar::new(driver);
    for (body, code) in bodies.iter().zip(codes) {
        sidecar.refuses(chunked(body), 400, code);
    }
    sidecar.expect_untouched();
    let sidecar = Sidecar::new(driver);
    for body in &bodies {
        sidecar.aborts_in_pieces(chunked(body));
    }
}

fn cve_2023_39326_chunk_extensions_are_bounded(driver: Driver) {
    // One byte of body for each 200 bytes on the wire: reading it to the end costs the proxy without bound.
    let chunk = format!("1;{}\r\nx\r\n", "e".repeat(200));
    let sidecar = Sidecar::new(driver);
    sidecar.refuses(chunked(chunk.repeat(50) + "0\r\n\r\n"), 400, "http1.chunk_extension_too_large");
    sidecar.expect_untouched();

    // Without end in sight: the connection goes long before the attacker is tired of it.
    let sidecar = Sidecar::new(driver);
    let mut client = sidecar.proxy.connect();
    client.send(chunked(""));
    let mut sent = 0;
    while sent < 200 && client.try_send(&chunk).is_ok() {
        sent += 1;
        sidecar.settle();
    }
    expect_refusal(&mut client, b"extensions without end", 400, "http1.chunk_extension_too_large");
    sidecar.upstream.wait_until_all_ended();
    let received = sidecar.received();
    assert!(!contains(&received, b"\r\n0\r\n\r\n") && !contains(&received, b"e;"), "{}", Shown(&received));
    assert!(received.iter().filter(|&&byte| byte == b'x').count() < 100, "{}", Shown(&received));
}

fn cve_2021_40346_long_names_overflow_nothing(driver: Driver) {
    // The length of a name in 8 bits, of a value in 20: 0x100 + 14 is the length of `content-length`, 0x110 + 17.
    let sidecar = Sidecar::new(driver);
    let smuggled = SMUGGLED.len();
    for len in [255, 256, 256 + 14, 256 + 15, 512 + 14, 4096 + 14, 8192, 16_384 + 14, 32_768 + 14] {
        for (name, value) in [("content-length", "0".to_owned()), ("transfer-encoding", "chunked".to_owned())] {
            let name = format!("{name}{}", "a".repeat(len - name.len()));
            let request = format!(
                "POST / HTTP/1.1\r\nhost: echo\r\n{name}: {value}\r\ncontent-length: {smuggled}\r\n\r\n{SMUGGLED}"
            );
            sidecar.forwards(&request, &request);
        }
    }
    for len in [65_535, 65_536, 65_536 + 14, 65_536 + 17] {
        let name = format!("content-length{}", "a".repeat(len - 14));
        sidecar.refuses(with(format!("{name}: 0\r\ncontent-length: {smuggled}\r\n")), 431, "http1.head_too_large");
    }
    assert!(
        sidecar.upstream.received().iter().all(|request| request.target() == "/" && request.body.len() == smuggled)
    );
}

fn cve_2023_25725_an_empty_name_hides_nothing(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for lines in [
        ":\r\ncontent-length: 39\r\n",
        ": x\r\nhost: ping\r\n",
        "content-length: 39\r\n:\r\n",
        ":content-length: 0\r\n",
        "transfer-encoding: chunked\r\n: x\r\n",
    ] {
        sidecar.refuses(
            format!("POST / HTTP/1.1\r\nhost: echo\r\n{lines}\r\n{SMUGGLED}"),
            400,
            "http1.empty_field_name",
        );
    }
    sidecar.refuses_in_pieces(with(": x\r\n"), 400, "http1.empty_field_name");
    sidecar.expect_untouched();
}

fn cve_2025_4366_a_body_that_nobody_reads_is_no_request(driver: Driver) {
    // Whatever is answered without asking an upstream: by rule, for want of a route or an endpoint, or by refusal.
    let upstream = Upstream::answering(|request| ok(request.target()));
    let sidecar = Sidecar::configured(
        driver,
        upstream,
        |builder| builder,
        |world, _| {
            let teapot =
                Action::DirectResponse(Box::new(DirectResponse { status: 418, body: b"short and stout".to_vec() }));
            world.host("teapot", vec![rule(teapot)]);
            let cluster = world.cluster("empty", &[]);
            let action = world.forward(&[(cluster, 1)]);
            world.host("empty", vec![rule(action)]);
        },
    );
    let length = SMUGGLED.len();
    for (host, status) in [("teapot", 418), ("nobody", 404), ("empty", 503)] {
        let by_length = |length: usize| format!("POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n");
        let in_chunks = format!("POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
        for (head, body) in [
            (by_length(length), SMUGGLED.to_owned()),
            (by_length(length + 100), SMUGGLED.to_owned()),
            (by_length(1_000_000), SMUGGLED.repeat(100)),
            (in_chunks.clone(), format!("{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n")),
            (in_chunks.clone(), format!("{:x}\r\n{SMUGGLED}", length + 100)),
            (in_chunks, format!("{SMUGGLED}0\r\n\r\n")),
        ] {
            for waits in [false, true] {
                let mut client = sidecar.proxy.connect();
                if waits {
                    client.send(&head);
                    sidecar.settle();
                    let _ = client.try_send(&body);
                } else {
                    client.send([head.as_bytes(), body.as_bytes()].concat());
                }
                let response = client.response();
                // Chunks that are none may be noticed first.
                let is_malformed = body.starts_with("GET") && head.contains("chunked");
                assert!(response.status == status || (is_malformed && response.status == 400), "{}", response.text());
                // Either the body was skipped and the next request is the next request, or the connection ends.
                if response.fields.has("connection") {
                    client.expect_end();
                } else {
                    client.send(BEHIND);
                    assert_eq!(client.response().expect(200).text(), "/behind");
                }
            }
        }
    }
    assert!(!contains(&sidecar.received(), b"/smuggled"));
    assert!(sidecar.upstream.received().iter().all(|request| request.target() == "/behind"));
}

/// A table in which conditions on a field lead to `matched` and everything else to `other`.
fn field_rule(driver: Driver, condition: impl FnOnce(&mut World) -> Condition) -> Proxy {
    let mut world = World::new();
    let condition = condition(&mut world);
    world.host("echo", vec![rule_if(vec![condition], saying("matched")), rule(saying("other"))]);
    Proxy::alone(&world.snapshot(), driver)
}

#[track_caller]
fn expect_match(proxy: &Proxy, lines: &[u8], expected: &str) {
    let request = [b"GET / HTTP/1.1\r\nhost: echo\r\n", lines, b"\r\n"].concat();
    assert_eq!(proxy.connect().send(&request).response().expect(200).text(), expected, "{}", Shown(&request));
}

fn header(value: StringMatch) -> Condition {
    Condition::Header { name: "x-role".into(), value }
}

fn without_header(value: StringMatch) -> Condition {
    Condition::WithoutHeader { name: "x-role".into(), value }
}

fn cve_2021_32777_and_2026_26308_a_second_line_of_a_field_does_not_get_around_a_rule(driver: Driver) {
    // A rule sees all the lines as one list, as the service behind it does.
    let exact = field_rule(driver, |_| header(StringMatch::Exact("user".into())));
    expect_match(&exact, b"x-role: user\r\n", "matched");
    for lines in [
        "x-role: user\r\nx-role: admin\r\n",
        "x-role: admin\r\nx-role: user\r\n",
        "x-role: user\r\nX-ROLE: admin\r\n",
        "x-role: user\r\na: b\r\nx-role:\r\n",
        "x-role:\r\nx-role: user\r\n",
        "x-role: user, admin\r\n",
    ] {
        expect_match(&exact, lines.as_bytes(), "other");
    }
    let prefix = field_rule(driver, |_| header(StringMatch::Prefix("admin".into())));
    expect_match(&prefix, b"x-role: admin\r\nx-role: user\r\n", "matched");
    let regex = field_rule(driver, |world| header(StringMatch::Regex(world.regex(".*admin.*"))));
    for lines in
        ["x-role: user\r\nx-role: admin\r\n", "x-role: admin\r\nx-role: user\r\n", "x-role:\r\nx-role: x-admin-x\r\n"]
    {
        expect_match(&regex, lines.as_bytes(), "matched");
    }
    let absent = field_rule(driver, |_| without_header(StringMatch::Present));
    expect_match(&absent, b"", "matched");
    for lines in ["x-role:\r\n", "x-role:\r\nx-role: admin\r\n", "X-Role: admin\r\n"] {
        expect_match(&absent, lines.as_bytes(), "other");
    }
    let not_admin = field_rule(driver, |world| without_header(StringMatch::Regex(world.regex(".*admin.*"))));
    expect_match(&not_admin, b"x-role: user\r\nx-role: admin\r\n", "other");
}

fn cve_2026_73552_bytes_beyond_ascii_do_not_get_around_a_regular_expression(driver: Driver) {
    let lines = |value: &[u8]| [b"x-role: ", value, b"\r\n"].concat();
    let anywhere = field_rule(driver, |world| header(StringMatch::Regex(world.regex(".*admin.*"))));
    let negated = field_rule(driver, |world| header(StringMatch::Regex(world.regex("[^a]*admin[^a]*"))));
    let any_byte = field_rule(driver, |world| header(StringMatch::Regex(world.regex("x.admin"))));
    for byte in 0x80..=0xff_u8 {
        for value in [&[byte, b'x'][..], &[b'x', byte], &[byte, byte], &[0xc3, byte]] {
            for whole in [[value, b"admin"].concat(), [b"admin", value].concat(), [value, b"admin", value].concat()] {
                if byte % 16 == 0 || byte == 0xff || byte == 0x85 {
                    expect_match(&anywhere, &lines(&whole), "matched");
                    expect_match(&negated, &lines(&whole), "matched");
                }
            }
        }
        // A byte is a byte: no decoder takes two of them for one, or one for none.
        expect_match(&any_byte, &lines(&[b"x", &[byte][..], b"admin"].concat()), "matched");
    }
    expect_match(&any_byte, &lines(b"x\xc3\xa9admin"), "other");
    let not_admin = field_rule(driver, |world| without_header(StringMatch::Regex(world.regex(".*admin.*"))));
    expect_match(&not_admin, &lines(b"\xffadmin\xfe"), "other");
}

fn cve_2022_31813_and_2024_45410_and_2021_32813_and_2026_26365_connection_takes_no_forwarding_field_away(
    driver: Driver,
) {
    let sidecar = Sidecar::new(driver);
    for name in [
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Port",
        "X-Forwarded-Server",
        "X-Forwarded-Client-Cert",
        "Forwarded",
        "Via",
        "X-Request-Id",
        "x-envoy-internal",
    ] {
        for connection in
            [format!("close, {name}"), format!("{name}, close"), format!("keep-alive,{name}"), name.to_lowercase()]
        {
            let lines = format!("{name}: 127.0.0.1\r\nconnection: {connection}\r\n");
            sidecar.refuses(with(lines), 400, "http1.nominated_field");
        }
    }
    sidecar.expect_untouched();
    // What it may nominate takes nothing of ours away.
    let sidecar = Sidecar::new(driver);
    sidecar.forwards(with("connection: close, x-real-ip\r\nx-real-ip: 1.1.1.1\r\n"), with(""));
}

fn cve_2024_45806_internal_fields_cannot_be_spoofed(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let names = [
        "X-Envoy-Internal",
        "x-envoy-external-address",
        "x-envoy-original-path",
        "X-Envoy-Retry-On",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-decorator-operation",
        "x-envoy-peer-metadata",
        "X-Forwarded-Client-Cert",
        "X-Forwarded-User",
        "X-Forwarded-Prefix",
    ];
    for name in names {
        let (response, received) = sidecar.exchange(sidecar.inbound(), with(format!("{name}: true\r\nx-mine: 1\r\n")));
        response.expect(200);
        let own =
            "via: 1.1 meshring\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-request-id: UUID\r\n";
        expect_bytes(&received, &with_lines(&with("x-mine: 1\r\n"), own), name.as_bytes());
    }
    // Nor in the spelling that a service behind us takes for the same.
    for name in ["X_Envoy_Internal", "x_envoy-original-path", "X_Forwarded_Client_Cert", "x-forwarded_user"] {
        sidecar.refuses_at(sidecar.inbound(), &with(format!("{name}: true\r\n")), 400, "http1.underscore_twin");
    }
}

fn cve_2024_45808_nothing_is_injected_into_the_log(driver: Driver) {
    const MARK: &str = "2026-01-01T00:00:00.000000Z  INFO injected";
    let evil_response = format!("HTTP/1.1 200 \u{1b}[31m{MARK}\r\nx: \u{1b}[31m\r\n\r\n");
    let upstream = Upstream::answering(move |request| match request.target() {
        "/evil" => evil_response.clone().into_bytes(),
        target => ok(target),
    });
    let sidecar =
        Sidecar::configured(driver, upstream, |builder| builder.wrapper(["env", "MESHRING_LOG=trace"]), |_, _| ());
    let escaped = MARK.replace(' ', "%20");
    for (request, status) in [
        (format!("GET /%0d%0a{escaped} HTTP/1.1\r\nhost: echo\r\n\r\n"), 200),
        (format!("GET /?%0d%0a{escaped} HTTP/1.1\r\nhost: echo\r\nuser-agent: %0d%0a{MARK}\r\n\r\n"), 200),
        (format!("GET /a\r{escaped} HTTP/1.1\r\nhost: echo\r\n\r\n"), 400),
        (format!("GET /\u{1b}[31m{escaped} HTTP/1.1\r\nhost: echo\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nhost: echo\r\nuser-agent: a\n{MARK}\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nhost: echo\r\nuser-agent: a\r{MARK}\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nhost: echo\r\nuser-agent: \u{1b}[31m{MARK}\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nhost: echo\r\nx-request-id: a\u{1b}{MARK}\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nhost: echo\r\nx-request-id: \u{85}{MARK}\r\n\r\n"), 200),
        (format!("GET / HTTP/1.1\r\nhost: echo%0d%0a{escaped}\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nhost: echo\r\n\n{MARK}: a\r\n\r\n"), 400),
        (format!("G\u{1b}[2J / HTTP/1.1\r\nhost: echo\r\nx: {MARK}\r\n\r\n"), 400),
        ("GET / HTTP/1.1\r\nhost: nobody\r\n\r\n".to_owned(), 404),
        ("GET /evil HTTP/1.1\r\nhost: echo\r\n\r\n".to_owned(), 502),
    ] {
        for listener in [sidecar.outbound(), sidecar.inbound()] {
            let mut client = Client::connect(listener);
            let response = client.send(&request).response();
            // An inbound listener knows no hosts.
            let expected = if status == 404 && listener == sidecar.inbound() { 200 } else { status };
            assert_eq!(response.status, expected, "{}: {}", Shown(request.as_bytes()), response.text());
        }
    }
    // Each refusal is named by a code of ours, and no line is anybody else's.
    for code in ["http1.bare_lf", "http1.bare_cr", "http1.bad_field_value"] {
        wait::until(code, || sidecar.proxy.process.line(code));
    }
    let log = sidecar.proxy.process.output();
    for line in log.lines() {
        assert!(!line.starts_with(MARK), "injected: {line}");
        assert!(!line.chars().any(|c| c.is_control()), "a control character: {line:?}");
    }
}
