//! Items 42 to 49 of the HTTP checklist: what belongs to one hop stays on that hop, what a proxy says about a hop cannot be
//! forged or taken away.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::net::SocketAddr;

use meshring_core::table::model::Settings;
use meshring_tests::{
    checklist::{Chain, Shown, Sidecar, expect_bytes, with, with_lines},
    client::{Client, Response},
    on_both_drivers,
    proxy::{Driver, ProxyBuilder},
    upstream::{Upstream, ok},
};

on_both_drivers! {
    item_42_fields_of_one_hop_do_not_reach_the_upstream
    item_42_fields_of_one_hop_do_not_reach_the_client
    item_43_connection_cannot_nominate_what_decides
    item_44_only_te_trailers_survives
    item_45_via_is_appended_to_requests
    item_45_via_is_appended_to_responses
    item_46_what_a_trusted_peer_says_is_kept_and_added_to
    item_46_what_an_untrusted_peer_says_is_replaced
    item_46_trust_comes_from_the_listener_the_table_or_the_command_line
    item_46_request_ids_are_made_where_they_are_missing
    item_47_max_forwards_0_is_answered_here
    item_47_max_forwards_is_counted_down
    item_48_date_is_added_where_it_is_missing
    item_49_our_own_version_is_sent_in_both_directions
}

fn item_42_fields_of_one_hop_do_not_reach_the_upstream(driver: Driver) {
    let (sidecar, chain) = (Sidecar::new(driver), Chain::new(driver));
    for (sent, kept) in [
        (
            "Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABkAAQAAP__\r\nX-Hop: 1\r\nX-End: 2\r\nx-hop: 3\r\n",
            "X-End: 2\r\n",
        ),
        (
            "a: 1\r\nConnection: x-hop,,\t, x-other ,\r\nX-HOP: 1\r\nb: 2\r\nx-Other: 3\r\nc: 4\r\n",
            "a: 1\r\nb: 2\r\nc: 4\r\n",
        ),
        (
            "x-hop: 1\r\nconnection: a\r\nx-end: 2\r\nConnection: b\r\nCONNECTION: x-hop\r\na: 1\r\nb: 2\r\n",
            "x-end: 2\r\n",
        ),
        ("connection: keep-alive\r\nconnection: keep-alive\r\n", ""),
        ("connection:\r\nx: 1\r\n", "x: 1\r\n"),
        ("proxy-connection: close\r\nx: 1\r\n", "x: 1\r\n"),
        ("Upgrade: websocket\r\nx: 1\r\n", "x: 1\r\n"),
        // Names that only look like them.
        (
            "connections: x\r\nkeep-alives: 1\r\nx-connection: x\r\nx: 1\r\n",
            "connections: x\r\nkeep-alives: 1\r\nx-connection: x\r\nx: 1\r\n",
        ),
    ] {
        sidecar.forwards(with(sent), with(kept));
        chain.forwards(with(sent), with(kept));
    }
    // Nor do they change what our own connections do.
    let closing = sidecar.forwards(with("connection: close, x-hop\r\nx-hop: 1\r\n"), with(""));
    assert_eq!(closing.fields.value("connection"), Some("close"));
    sidecar.forwards(with(""), with(""));
    assert_eq!(sidecar.upstream.connections(), 1);
}

/// The exact bytes that a client gets as an answer to `GET / HTTP/1.1` and `connection: close`.
fn answer(address: SocketAddr, version: &str) -> Vec<u8> {
    let mut client = Client::connect(address);
    client.send(format!("GET / {version}\r\nhost: echo\r\nconnection: close\r\n\r\n"));
    client.rest().unwrap()
}

/// Asserts that an answer of the upstream reaches a client as exactly these bytes.
#[track_caller]
fn expect_answer(driver: Driver, sent: &str, expected: &str) {
    let answer_of_upstream = sent.to_owned();
    let upstream = Upstream::scripted(move |peer| {
        while peer.request().is_some() {
            peer.send(&answer_of_upstream);
        }
    });
    let sidecar = Sidecar::before(driver, upstream);
    for listener in [sidecar.outbound(), sidecar.inbound()] {
        expect_bytes(&answer(listener, "HTTP/1.1"), expected.as_bytes(), sent.as_bytes());
    }
}

/// A date that no test runs at.
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn item_42_fields_of_one_hop_do_not_reach_the_client(driver: Driver) {
    let date = format!("Date: {DATE}\r\n");
    for (sent, kept) in [
        (
            "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-End: 2\r\nx-hop: 3\r\n",
            "X-End: 2\r\n",
        ),
        ("a: 1\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: x\r\nb: 2\r\n", "a: 1\r\nb: 2\r\n"),
        ("Set-Cookie: a\r\nconnection: x\r\nset-cookie: b\r\nX: 1\r\n", "Set-Cookie: a\r\nset-cookie: b\r\n"),
    ] {
        expect_answer(
            driver,
            &format!("HTTP/1.1 200 Fine\r\n{date}{sent}Content-Length: 4\r\n\r\nbody"),
            &format!(
                "HTTP/1.1 200 Fine\r\n{date}{kept}connection: close\r\ncontent-length: 4\r\nvia: 1.1 meshring\r\n\r\nbody"
            ),
        );
    }
}

fn item_43_connection_cannot_nominate_what_decides(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "AUTHORIZATION",
        "Cookie",
        "Expect",
        // What proxies write, ours among them.
        "X-Forwarded-For",
        "x-forwarded-proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Client-Cert",
        "X-Forwarded-Prefix",
        "x-forwarded-anything",
        "Forwarded",
        "Via",
        "X-Request-Id",
        "Max-Forwards",
        "X-Envoy-Internal",
        "x-envoy-original-path",
        // In another spelling.
        "X_Forwarded_For",
        "Content_Length",
    ] {
        let value = if name.eq_ignore_ascii_case("content-length") { "0" } else { "x" };
        for option in [
            name.to_owned(),
            format!("close, {name}"),
            format!("{name}, keep-alive"),
            format!("x,\t{},", name.to_uppercase()),
        ] {
            let field = if ["content-length", "x-forwarded-for"].iter().any(|n| name.eq_ignore_ascii_case(n)) {
                format!("{name}: {value}\r\n")
            } else {
                String::new()
            };
            sidecar.refuses(with(format!("{field}connection: {option}\r\n")), 400, "http1.nominated_field");
        }
        sidecar.refuses(
            with(format!("connection: close\r\nx: 1\r\nConnection: {name}\r\n")),
            400,
            "http1.nominated_field",
        );
    }
    for option in ["a b", "\"host\"", "host;q=1", "ho/st", "@", "close x", "h\u{f6}st"] {
        sidecar.refuses(with(format!("connection: {option}\r\n")), 400, "http1.bad_connection");
    }
    sidecar.refuses(
        with(format!("connection: {}\r\n", vec!["x"; 33].join(","))),
        400,
        "http1.too_many_connection_options",
    );
    sidecar.refuses(with("connection: x, x, x\r\n".repeat(11)), 400, "http1.too_many_connection_options");
    sidecar.refuses_in_pieces(with("connection: x-forwarded-for\r\n"), 400, "http1.nominated_field");
    sidecar.expect_untouched();
}

fn item_44_only_te_trailers_survives(driver: Driver) {
    let (sidecar, chain) = (Sidecar::new(driver), Chain::new(driver));
    let (with_te, without) = ("x: 1\r\nte: trailers\r\nconnection: te\r\n", "x: 1\r\n");
    for (sent, kept) in [
        ("TE: trailers\r\nConnection: TE\r\nx: 1\r\n", with_te),
        ("TE: Trailers\r\nx: 1\r\n", with_te),
        ("TE: gzip, trailers\r\nConnection: TE\r\nx: 1\r\n", with_te),
        ("TE: trailers, deflate;q=0.5\r\nConnection: te\r\nx: 1\r\n", with_te),
        ("TE: gzip\r\nTE: trailers\r\nConnection: TE, x-hop\r\nx-hop: 1\r\nx: 1\r\n", with_te),
        ("TE: gzip\r\nConnection: TE\r\nx: 1\r\n", without),
        ("TE: trailers;q=0.5\r\nConnection: TE\r\nx: 1\r\n", without),
        ("TE: xtrailers, trailersx\r\nx: 1\r\n", without),
        ("TE: chunked\r\nConnection: TE\r\nx: 1\r\n", without),
        ("TE:\r\nConnection: TE\r\nx: 1\r\n", without),
    ] {
        sidecar.forwards(with(sent), with(kept));
        chain.forwards(with(sent), with(kept));
    }
}

/// The request without the lines that this hop adds, and those lines.
fn sent_through(sidecar: &Sidecar, listener: SocketAddr, request: &str) -> (Response, String) {
    let (response, received) = sidecar.exchange(listener, request);
    response.expect(200);
    (response, String::from_utf8(received).unwrap())
}

fn item_45_via_is_appended_to_requests(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let others = "x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-request-id: UUID\r\n\r\n";
    for (sent, seen) in [
        ("GET / HTTP/1.1\r\nhost: echo\r\n", "via: 1.1 meshring\r\n"),
        ("GET / HTTP/1.0\r\nhost: echo\r\n", "via: 1.0 meshring\r\n"),
        ("GET / HTTP/1.1\r\nhost: echo\r\nVia: 1.0 a, 1.1 b (c)\r\n", "Via: 1.0 a, 1.1 b (c)\r\nvia: 1.1 meshring\r\n"),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nvia: 1.1 a\r\nvia: 1.1 b\r\n",
            "via: 1.1 a\r\nvia: 1.1 b\r\nvia: 1.1 meshring\r\n",
        ),
        ("GET / HTTP/1.1\r\nhost: echo\r\nvia: 1.1 meshring\r\n", "via: 1.1 meshring\r\nvia: 1.1 meshring\r\n"),
    ] {
        for listener in [sidecar.outbound(), sidecar.inbound()] {
            let (_, received) = sent_through(&sidecar, listener, &format!("{sent}\r\n"));
            let expected = format!("GET / HTTP/1.1\r\nhost: echo\r\n{seen}{others}");
            expect_bytes(received.as_bytes(), expected.as_bytes(), sent.as_bytes());
        }
    }
}

fn item_45_via_is_appended_to_responses(driver: Driver) {
    let date = format!("Date: {DATE}\r\n");
    for (version, received, via) in [
        ("HTTP/1.1", "", "via: 1.1 meshring\r\n"),
        ("HTTP/1.0", "", "via: 1.0 meshring\r\n"),
        ("HTTP/1.1", "Via: 1.1 a\r\n", "via: 1.1 meshring\r\n"),
    ] {
        expect_answer(
            driver,
            &format!("{version} 200 Fine\r\n{date}{received}Content-Length: 4\r\n\r\nbody"),
            &format!("HTTP/1.1 200 Fine\r\n{date}{received}connection: close\r\ncontent-length: 4\r\n{via}\r\nbody"),
        );
    }
    // Each hop adds its own.
    let chain = Chain::before(
        driver,
        Upstream::answering(|_| format!("HTTP/1.1 200 Fine\r\nDate: {DATE}\r\nContent-Length: 0\r\n\r\n")),
    );
    let expected = format!(
        "HTTP/1.1 200 Fine\r\n{date}via: 1.1 meshring\r\nconnection: close\r\ncontent-length: 0\r\nvia: 1.1 meshring\r\n\r\n"
    );
    expect_bytes(&answer(chain.first.outbound(), "HTTP/1.1"), expected.as_bytes(), b"");
}

/// Everything that a client could say about where its request comes from.
const CLAIMS: &str = "a: 1\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: claimed\r\n\
    X-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /claimed\r\nX-Forwarded-Client-Cert: By=claimed\r\nX-Envoy-Internal: true\r\n\
    x-envoy-external-address: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\nX-Request-Id: claimed\r\nx-forwarded-for: 2.2.2.2,3.3.3.3\r\n\
    forwarded: for=2.2.2.2;proto=https\r\nb: 2\r\n";

/// What arrives of them where they are believed: all but the client's certificate, which a proxy alone can have seen.
const KEPT: &str = "a: 1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: claimed\r\nX-Forwarded-Port: 1\r\n\
    X-Forwarded-Prefix: /claimed\r\nX-Envoy-Internal: true\r\n\
    x-envoy-external-address: 1.1.1.1\r\nX-Request-Id: claimed\r\nb: 2\r\nvia: 1.1 meshring\r\n\
    x-forwarded-for: 1.1.1.1, 2.2.2.2,3.3.3.3, 127.0.0.1\r\n\
    forwarded: for=1.1.1.1, for=2.2.2.2;proto=https, for=127.0.0.1;host=\"echo\";proto=http\r\n";

/// What arrives in their place where they are not.
fn replaced(listener: SocketAddr) -> String {
    format!(
        "a: 1\r\nb: 2\r\nvia: 1.1 meshring\r\nx-forwarded-for: 1.1.1.1, 2.2.2.2,3.3.3.3, 127.0.0.1\r\n\
         x-forwarded-proto: http\r\nx-forwarded-host: echo\r\nx-forwarded-port: {}\r\n\
         forwarded: for=127.0.0.1;host=\"echo\";proto=http\r\nx-request-id: UUID\r\n",
        listener.port()
    )
}

#[track_caller]
fn expect_trust(sidecar: &Sidecar, listener: SocketAddr, is_trusted: bool) {
    let lines = if is_trusted { KEPT.to_owned() } else { replaced(listener) };
    let sent = with(CLAIMS);
    let (_, received) = sidecar.exchange(listener, &sent);
    expect_bytes(&received, &with_lines(&with(""), &lines), &sent);
}

fn item_46_what_a_trusted_peer_says_is_kept_and_added_to(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    expect_trust(&sidecar, sidecar.outbound(), true);
    // One line, whatever there was.
    for (sent, joined) in [
        ("", "127.0.0.1"),
        ("X-Forwarded-For: 1.1.1.1\r\n", "1.1.1.1, 127.0.0.1"),
        ("X-Forwarded-For:\r\n", "127.0.0.1"),
        ("X-Forwarded-For: 1.1.1.1\r\nx-forwarded-for:\r\nX-FORWARDED-FOR: unknown\r\n", "1.1.1.1, unknown, 127.0.0.1"),
    ] {
        let (_, received) = sidecar.exchange(sidecar.outbound(), with(sent));
        let lines = format!(
            "via: 1.1 meshring\r\nx-forwarded-for: {joined}\r\nx-forwarded-proto: http\r\nx-request-id: UUID\r\n"
        );
        expect_bytes(&received, &with_lines(&with(""), &lines), sent.as_bytes());
    }
}

fn item_46_what_an_untrusted_peer_says_is_replaced(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    expect_trust(&sidecar, sidecar.inbound(), false);
    // Ids that would break a log line or a list, from anyone.
    let chain = Chain::new(driver);
    let response = chain.first.connect().send(with(CLAIMS)).response();
    response.expect(200);
    let received = String::from_utf8(chain.second.received()).unwrap();
    assert!(received.contains("\r\nx-forwarded-for: 1.1.1.1, 2.2.2.2,3.3.3.3, 127.0.0.1, 127.0.0.1\r\n"), "{received}");
    assert!(received.contains("\r\nforwarded: for=127.0.0.1;host=\"echo\";proto=http\r\n"), "{received}");
    for forged in ["claimed", "Internal", "https", "external"] {
        assert!(!received.contains(forged), "{forged}: {received}");
    }
}

fn item_46_trust_comes_from_the_listener_the_table_or_the_command_line(driver: Driver) {
    let sidecar = |hops: Option<&str>, in_table: u8| {
        let configure = |builder: ProxyBuilder| match hops {
            Some(hops) => builder.arguments(&["--trusted-hops", hops]),
            None => builder,
        };
        Sidecar::configured(driver, Upstream::answering(|_| ok("")), configure, |world, _| {
            world.settings(Settings { trusted_hops: in_table, ..Settings::default() });
        })
    };
    for (command_line, in_table, outbound, inbound) in [
        (None, 0, true, false),
        (None, 1, true, true),
        (Some("0"), 0, false, false),
        (Some("0"), 1, false, false),
        (Some("1"), 0, true, true),
        (Some("2"), 0, true, true),
    ] {
        let sidecar = sidecar(command_line, in_table);
        expect_trust(&sidecar, sidecar.outbound(), outbound);
        expect_trust(&sidecar, sidecar.inbound(), inbound);
    }
}

fn item_46_request_ids_are_made_where_they_are_missing(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let id = |lines: &str| {
        let mut client = sidecar.proxy.connect();
        client.send(with(lines)).response().expect(200);
        let bytes = sidecar.upstream.take_bytes().concat();
        let head = String::from_utf8(bytes).unwrap();
        let ids: Vec<_> = head
            .lines()
            .filter_map(|line| line.to_ascii_lowercase().strip_prefix("x-request-id: ").map(str::to_owned))
            .collect();
        assert_eq!(ids.len(), 1, "{head}");
        ids[0].clone()
    };
    let (first, second) = (id(""), id(""));
    assert_ne!(first, second);
    assert_eq!(id("X-Request-Id: of-the-application_1.2:3/4\r\n"), "of-the-application_1.2:3/4");
    for odd in ["", "a,b", "a\"b", "a\\b", "a b", "\u{e9}", &"x".repeat(129)] {
        let made = id(&format!("x-request-id: {odd}\r\n"));
        assert_eq!(made.len(), 36, "{odd:?} was kept as {made:?}");
    }
    assert_eq!(id("x-request-id: a\r\nx-request-id: b\r\n").len(), 36);

    // Where they are disabled, nothing is made and nothing is taken.
    let disabled = Sidecar::configured(
        driver,
        Upstream::answering(|_| ok("")),
        |builder| builder,
        |world, _| {
            world.settings(Settings { request_id: false, ..Settings::default() });
        },
    );
    for lines in ["", "x-request-id: mine\r\n"] {
        let (_, received) = disabled.exchange(disabled.outbound(), with(lines));
        let own = "via: 1.1 meshring\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\n";
        expect_bytes(&received, &with_lines(&with(lines), own), lines.as_bytes());
    }
}

fn item_47_max_forwards_0_is_answered_here(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for method in ["OPTIONS", "TRACE"] {
        for lines in ["Max-Forwards: 0\r\n", "max-forwards: 000\r\n", "MAX-FORWARDS:\t0 \r\n"] {
            for listener in [sidecar.outbound(), sidecar.inbound()] {
                let request = format!("{method} / HTTP/1.1\r\nhost: echo\r\n{lines}cookie: secret\r\n\r\n");
                let mut client = Client::connect(listener);
                let response = client.send(&request).response();
                assert!([200, 204, 405].contains(&response.status), "{method} {lines}: {response:?}");
                // RFC 9110 section 9.3.8: what is sent back must not hold credentials.
                assert!(!response.text().contains("secret"), "{response:?}");
            }
        }
        for value in ["", "-1", "+1", "0x0", "1.0", "a", "1, 2", "1 2"] {
            let request = format!("{method} / HTTP/1.1\r\nhost: echo\r\nmax-forwards: {value}\r\n\r\n");
            sidecar.refuses(request, 400, "http1.bad_max_forwards");
        }
        let twice = format!("{method} / HTTP/1.1\r\nhost: echo\r\nmax-forwards: 1\r\nmax-forwards: 0\r\n\r\n");
        sidecar.refuses(twice, 400, "http1.bad_max_forwards");
    }
    sidecar.expect_untouched();

    // The first hop counts down to 0, the second one answers.
    let chain = Chain::new(driver);
    let response = chain.first.connect().send("OPTIONS / HTTP/1.1\r\nhost: echo\r\nmax-forwards: 1\r\n\r\n").response();
    assert!([200, 204].contains(&response.status), "{response:?}");
    chain.second.upstream.catch_up();
    assert_eq!(chain.second.upstream.connections(), 0);
}

fn item_47_max_forwards_is_counted_down(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let own = "via: 1.1 meshring\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-request-id: UUID\r\n";
    for method in ["OPTIONS", "TRACE"] {
        for (sent, seen) in [
            ("1", "0"),
            ("10", "9"),
            ("007", "6"),
            ("4294967296", "4294967294"),
            ("99999999999999999999", "4294967294"),
        ] {
            let head = format!("{method} /x HTTP/1.1\r\nhost: echo\r\n");
            let request = format!("{head}Max-Forwards: {sent}\r\nx: 1\r\n\r\n");
            let (response, received) = sidecar.exchange(sidecar.outbound(), &request);
            response.expect(200);
            let expected = format!("{head}x: 1\r\n{own}max-forwards: {seen}\r\n\r\n");
            expect_bytes(&received, expected.as_bytes(), request.as_bytes());
        }
    }
    // For other methods it means nothing (RFC 9110 section 7.6.2).
    for value in ["0", "5", "x"] {
        let request = with(format!("Max-Forwards: {value}\r\n"));
        sidecar.forwards(&request, &request);
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, and within so many seconds of now.
#[track_caller]
fn expect_current_date(date: &str) {
    let shape: String = date
        .chars()
        .map(|c| match c {
            'A'..='Z' => 'A',
            'a'..='z' => 'a',
            '0'..='9' => '0',
            other => other,
        })
        .collect();
    assert_eq!(shape, "Aaa, 00 Aaa 0000 00:00:00 AAA", "{date}");
    assert!(date.ends_with(" GMT"), "{date}");
    assert_ne!(date, DATE);
}

fn item_48_date_is_added_where_it_is_missing(driver: Driver) {
    let (without, dated) = (
        "HTTP/1.1 200 Fine\r\nContent-Length: 0\r\n\r\n",
        format!("HTTP/1.1 200 Fine\r\nDATE: {DATE}\r\nContent-Length: 0\r\n\r\n"),
    );
    let upstream = Upstream::answering(move |request| match request.target() {
        "/without" => without.to_owned(),
        "/nominated" => dated.replace("DATE", "connection: date\r\ndate"),
        _ => dated.clone(),
    });
    let sidecar = Sidecar::before(driver, upstream);
    for listener in [sidecar.outbound(), sidecar.inbound()] {
        let mut client = Client::connect(listener);
        for _ in 0..2 {
            expect_current_date(client.get("echo", "/without").expect(200).fields.value("date").unwrap());
            assert_eq!(client.get("echo", "/dated").expect(200).fields.value("date"), Some(DATE));
            expect_current_date(client.get("echo", "/nominated").expect(200).fields.value("date").unwrap());
        }
    }
    // Responses of our own have one, too: an answer by rule, an unknown host, a refusal.
    let mut client = sidecar.proxy.connect();
    for (host, target, status) in [("ping", "/", 200), ("nobody", "/", 404), ("echo", "/%00", 400)] {
        expect_current_date(client.get(host, target).expect(status).fields.value("date").unwrap());
    }
}

fn item_49_our_own_version_is_sent_in_both_directions(driver: Driver) {
    let sidecar = Sidecar::before(
        driver,
        Upstream::answering(|request| {
            let version = if request.target() == "/old" { "HTTP/1.0" } else { "HTTP/1.1" };
            format!("{version} 200 Fine\r\nContent-Length: 2\r\nconnection: keep-alive\r\n\r\nok")
        }),
    );
    for target in ["/old", "/new"] {
        for version in ["HTTP/1.0", "HTTP/1.1"] {
            for listener in [sidecar.outbound(), sidecar.inbound()] {
                let mut client = Client::connect(listener);
                client.send(format!("GET {target} {version}\r\nhost: echo\r\nconnection: close\r\n\r\n"));
                let answer = client.rest().unwrap();
                assert!(
                    answer.starts_with(b"HTTP/1.1 200 Fine\r\n") && answer.ends_with(b"\r\n\r\nok"),
                    "{}",
                    Shown(&answer)
                );
                let received = sidecar.received();
                let line = format!("GET {target} HTTP/1.1\r\nhost: echo\r\n");
                assert!(received.starts_with(line.as_bytes()), "{}", Shown(&received));
            }
        }
    }
}
