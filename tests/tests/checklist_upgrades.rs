//! Items 50 to 56 of the HTTP checklist: expectations, interim responses, upgrades and tunnels.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::table::model::{Condition, StringMatch};
use meshring_tests::{
    checklist::{BEHIND, Chain, Shown, Sidecar, contains, expect_bytes, expect_refusal, saying, with, with_own_lines},
    client::{Client, request},
    on_both_drivers,
    proxy::Driver,
    table::{rule, rule_if},
    upstream::{Upstream, ok},
    wait,
};

on_both_drivers! {
    item_50_expectations_other_than_100_continue_are_417
    item_50_an_expectation_that_means_nothing_is_not_forwarded
    item_51_a_client_that_expects_100_gets_exactly_one
    item_51_a_body_that_comes_unasked_needs_no_100
    item_51_an_unsolicited_100_is_no_response
    item_51_a_final_response_instead_of_100_is_the_answer
    item_52_early_hints_are_relayed_and_kept_from_http_1_0
    item_53_an_unsolicited_101_is_502
    item_53_a_101_to_another_protocol_than_the_one_asked_for_is_502
    item_54_bytes_behind_an_upgrade_are_a_request_of_their_own
    item_54_bytes_behind_a_refused_websocket_go_nowhere
    item_54_bytes_behind_a_connect_go_nowhere
    item_55_connect_is_405
    item_55_connect_is_405_for_every_port_that_is_not_configured
    item_56_h2c_and_its_settings_are_stripped
    cve_2026_2833_an_upgrade_opens_no_tunnel
    cve_2026_2835_and_2026_73548_transfer_encoding_on_http_1_0_is_refused
}

const POST: &str = "POST / HTTP/1.1\r\nhost: echo\r\n";

fn item_50_expectations_other_than_100_continue_are_417(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for value in [
        "y",
        "100-continue, y",
        "100-continue;q=1",
        "100 continue",
        "100-continu",
        "200-ok",
        "\"100-continue\"",
        "",
        "x100-continue",
        "100-continue,100-continue",
    ] {
        let request = with(format!("expect: {value}\r\ncontent-length: 0\r\n"));
        sidecar.refuses(request, 417, "http1.expectation_unsupported");
    }
    for lines in ["expect: 100-continue\r\nEXPECT: y\r\n", "Expect: y\r\nexpect: 100-continue\r\n"] {
        sidecar.refuses(with(lines), 417, "http1.expectation_unsupported");
    }
    sidecar.refuses(with("expect: 100-continue\0\r\n"), 400, "http1.nul");
    sidecar.refuses(with("expect: \x0b100-continue\r\n"), 400, "http1.bad_field_value");
    sidecar.refuses(with("expect:\r\n 100-continue\r\n"), 400, "http1.obs_fold");
    sidecar.refuses_in_pieces(with("expect: y\r\n"), 417, "http1.expectation_unsupported");
    sidecar.expect_untouched();
}

fn item_50_an_expectation_that_means_nothing_is_not_forwarded(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    // Without a body there is nothing to continue with, and HTTP/1.0 knows no 100.
    let get = "GET / HTTP/1.1\r\nhost: echo\r\n";
    sidecar.forwards(format!("{get}expect: 100-continue\r\n\r\n"), format!("{get}\r\n"));
    let (response, received) = sidecar.exchange(
        sidecar.outbound(),
        "POST / HTTP/1.0\r\nhost: echo\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nok",
    );
    response.expect(200);
    assert!(!contains(&received, b"expect"), "{}", Shown(&received));
}

fn item_51_a_client_that_expects_100_gets_exactly_one(driver: Driver) {
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
    for interim in [CONTINUE.to_owned(), CONTINUE.repeat(2), "HTTP/1.1 100 Go On\r\nx: y\r\n\r\n".into()] {
        let upstream = Upstream::scripted(move |peer| {
            while let Some(head) = peer.head() {
                peer.send(&interim);
                let body = peer.body(&head).unwrap();
                peer.send(ok(&String::from_utf8_lossy(&body)));
            }
        });
        let chain = Chain::before(driver, upstream);
        for address in [chain.second.outbound(), chain.second.inbound(), chain.first.outbound()] {
            for (length, body) in
                [("content-length: 5", "hello"), ("transfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")]
            {
                let mut client = Client::connect(address);
                client.send(format!("{POST}Expect: 100-Continue\r\n{length}\r\n\r\n"));
                assert!(client.head().line.starts_with("HTTP/1.1 100 "));
                let received = chain.second.received();
                let line = b"\r\nExpect: 100-Continue\r\n";
                assert!(contains(&received, line) && received.ends_with(b"\r\n\r\n"), "{}", Shown(&received));
                // `response` fails on a second interim response.
                assert_eq!(client.send(body).response().expect(200).text(), "hello");
                assert_eq!(chain.second.received(), body.as_bytes());
            }
        }
        assert_eq!(chain.second.upstream.connections(), 1);
    }
}

fn item_51_a_body_that_comes_unasked_needs_no_100(driver: Driver) {
    // An upstream that knows nothing of 100: the client does not wait for ever (RFC 9110 section 10.1.1), and is told nothing that
    // the upstream has not said.
    let upstream = Upstream::answering(|request| ok(&String::from_utf8_lossy(&request.body)));
    let chain = Chain::before(driver, upstream);
    for address in [chain.second.outbound(), chain.second.inbound(), chain.first.outbound()] {
        let mut client = Client::connect(address);
        for (length, body) in
            [("content-length: 5", "hello"), ("transfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")]
        {
            client.send(format!("{POST}expect: 100-continue\r\n{length}\r\n\r\n"));
            wait::until("the head upstream", || {
                contains(&chain.second.received(), b"expect: 100-continue").then_some(())
            });
            // `response` fails on an interim response.
            assert_eq!(client.send(body).response().expect(200).text(), "hello");
        }
    }
}

fn item_51_an_unsolicited_100_is_no_response(driver: Driver) {
    let upstream =
        Upstream::answering(|request| [b"HTTP/1.1 100 Continue\r\n\r\n".repeat(3), ok(request.target())].concat());
    let chain = Chain::before(driver, upstream);
    for address in [chain.second.outbound(), chain.second.inbound(), chain.first.outbound()] {
        let mut client = Client::connect(address);
        for target in ["/1", "/2"] {
            // Clients discard the first one (RFC 9110 section 15.2.1); the others end here.
            client.send(request("GET", "echo", target, &[]));
            assert!(client.head().line.starts_with("HTTP/1.1 100 "));
            assert_eq!(client.response().expect(200).text(), target);
        }
        let mut old = Client::connect(address);
        assert_eq!(old.send("GET /3 HTTP/1.0\r\nhost: echo\r\n\r\n").response().expect(200).text(), "/3");
    }
}

fn item_51_a_final_response_instead_of_100_is_the_answer(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.head();
        peer.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno");
        peer.wait_for_end();
    });
    let sidecar = Sidecar::before(driver, upstream);
    let mut client = sidecar.proxy.connect();
    client.send(format!("{POST}expect: 100-continue\r\ncontent-length: 5\r\n\r\n"));
    let response = client.response();
    assert_eq!(response.expect(417).text(), "no");
    // Whether the body still comes is not ours to know; a request that is hidden in it is none.
    assert_eq!(response.fields.value("connection"), Some("close"));
    assert!(client.try_send(BEHIND).is_ok());
    client.expect_end();
    sidecar.upstream.wait_until_all_ended();
    assert!(!contains(&sidecar.received(), b"/behind"));
    assert_eq!(sidecar.upstream.connections(), 1);
}

fn item_52_early_hints_are_relayed_and_kept_from_http_1_0(driver: Driver) {
    let upstream = Upstream::answering(|_| {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nConnection: x\r\nx: 1\r\n\r\n";
        [hints.repeat(2).as_bytes(), b"HTTP/1.1 102 Processing\r\n\r\n", &ok("page")].concat()
    });
    let chain = Chain::before(driver, upstream);
    for address in [chain.second.outbound(), chain.second.inbound(), chain.first.outbound()] {
        let mut client = Client::connect(address);
        for _ in 0..2 {
            client.send("GET / HTTP/1.1\r\nhost: echo\r\n\r\n");
            for _ in 0..2 {
                let hint = client.head();
                assert_eq!(hint.line, "HTTP/1.1 103 Early Hints");
                assert_eq!(hint.fields.value("link"), Some("</style.css>; rel=preload"));
                for name in ["content-length", "transfer-encoding", "connection", "x"] {
                    assert!(!hint.fields.has(name), "{name}: {hint:?}");
                }
            }
            assert_eq!(client.head().line, "HTTP/1.1 102 Processing");
            assert_eq!(client.response().expect(200).text(), "page");
        }
        // `response` fails on an interim response.
        let mut old = Client::connect(address);
        assert_eq!(old.send("GET / HTTP/1.0\r\nhost: echo\r\n\r\n").response().expect(200).text(), "page");
        old.expect_end();
    }
}

fn item_53_an_unsolicited_101_is_502(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: evil\r\n\r\nsmuggled");
        peer.wait_for_end();
    });
    let sidecar = Sidecar::before(driver, upstream);
    let mut sent = 0;
    for listener in [sidecar.outbound(), sidecar.inbound()] {
        let mut client = Client::connect(listener);
        for lines in ["", "connection: upgrade\r\nupgrade: h2c\r\n", "upgrade: evil\r\n"] {
            let response = client.send(format!("GET / HTTP/1.1\r\nhost: echo\r\n{lines}\r\n")).response();
            assert!(response.expect(502).text().contains("switched protocols"), "{}", response.text());
            sent += 1;
            // What speaks another protocol now is not used again.
            sidecar.upstream.wait_until_all_ended();
            assert_eq!(sidecar.upstream.connections(), sent);
        }
        let mut old = Client::connect(listener);
        old.send("GET / HTTP/1.0\r\nhost: echo\r\n\r\n").response().expect(502);
        old.expect_end();
        sent += 1;
    }
}

const WEBSOCKET: &str = "connection: upgrade\r\nupgrade: websocket\r\n";

fn item_53_a_101_to_another_protocol_than_the_one_asked_for_is_502(driver: Driver) {
    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\n";
    let answers = [
        format!("{SWITCH}connection: upgrade\r\nupgrade: h2c\r\n\r\nsmuggled"),
        format!("{SWITCH}connection: upgrade\r\nupgrade: websocket, h2c\r\n\r\nsmuggled"),
        format!("{SWITCH}connection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket\r\n\r\nsmuggled"),
        format!("{SWITCH}connection: upgrade\r\n\r\nsmuggled"),
        format!("{SWITCH}upgrade: websocket\r\n\r\nsmuggled"),
        format!("HTTP/1.0 101 Switching Protocols\r\n{WEBSOCKET}\r\nsmuggled"),
    ];
    let next = std::sync::atomic::AtomicUsize::new(0);
    let count = 2 * answers.len();
    let upstream = Upstream::scripted(move |peer| {
        peer.request();
        let at = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        peer.send(&answers[at % answers.len()]);
        peer.wait_for_end();
    });
    let sidecar = Sidecar::before(driver, upstream);
    for listener in [sidecar.outbound(), sidecar.inbound()] {
        for _ in 0..count / 2 {
            let mut client = Client::connect(listener);
            let response = client.send(format!("GET / HTTP/1.1\r\nhost: echo\r\n{WEBSOCKET}\r\n")).response();
            assert!(response.expect(502).text().contains("switched protocols"), "{}", response.text());
            sidecar.upstream.wait_until_all_ended();
        }
    }
    assert_eq!(sidecar.upstream.connections(), count);
}

/// A sidecar that denies `/admin`.
fn guarded(driver: Driver) -> Sidecar {
    Sidecar::configured(
        driver,
        Upstream::answering(|request| ok(request.target())),
        |builder| builder,
        |world, cluster| {
            let forward = world.forward(&[(cluster, 1)]);
            let admin = vec![Condition::Uri(StringMatch::Prefix("/admin".into()))];
            world.host("guarded", vec![rule_if(admin, saying("denied")), rule(forward)]);
        },
    )
}

fn item_54_bytes_behind_an_upgrade_are_a_request_of_their_own(driver: Driver) {
    let sidecar = guarded(driver);
    let head = "GET /chat HTTP/1.1\r\nhost: guarded\r\n";
    let hidden = "GET /admin HTTP/1.1\r\nhost: guarded\r\n\r\n";
    for upgrade in [
        "connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: upgrade\r\nupgrade: TLS/1.0\r\n",
    ] {
        let request = format!("{head}{upgrade}\r\n{hidden}");
        let mut client = sidecar.proxy.connect();
        client.send(&request);
        assert_eq!(client.response().expect(200).text(), "/chat");
        assert_eq!(client.response().expect(200).text(), "denied");
        expect_bytes(&sidecar.received(), &with_own_lines(format!("{head}\r\n").as_bytes()), request.as_bytes());

        // What is no request is refused as any other.
        let request = format!("{head}{upgrade}\r\n\u{82}\u{5}hello");
        let mut client = sidecar.proxy.connect();
        client.send(&request);
        assert_eq!(client.response().expect(200).text(), "/chat");
        expect_refusal(&mut client, request.as_bytes(), 400, "http1.bad_method");
        assert!(!contains(&sidecar.received(), b"hello"));
    }
    assert_eq!(sidecar.upstream.connections(), 1);
}

/// They were meant for the tunnel, and the upstream has refused that: they are no request, they go nowhere, and the connection ends.
fn item_54_bytes_behind_a_refused_websocket_go_nowhere(driver: Driver) {
    let sidecar = guarded(driver);
    let head = "GET /chat HTTP/1.1\r\nhost: guarded\r\nsec-websocket-version: 13\r\n";
    for hidden in [
        "GET /admin HTTP/1.1\r\nhost: guarded\r\n\r\n",
        "GET /other HTTP/1.1\r\nhost: guarded\r\n\r\n",
        "\u{82}\u{5}hello",
        "G",
    ] {
        let request = format!("{head}{WEBSOCKET}\r\n{hidden}");
        let mut client = sidecar.proxy.connect();
        client.send(&request);
        let response = client.response();
        assert_eq!(response.expect(200).text(), "/chat");
        assert_eq!(response.fields.value("connection"), Some("close"));
        client.expect_end();
        let expected = with_own_lines(format!("{head}{WEBSOCKET}\r\n").as_bytes());
        expect_bytes(&sidecar.received(), &expected, request.as_bytes());
    }
    // Without any the connection goes on.
    let mut client = sidecar.proxy.connect();
    for _ in 0..2 {
        assert_eq!(client.send(format!("{head}{WEBSOCKET}\r\n")).response().expect(200).text(), "/chat");
        assert_eq!(client.get("guarded", "/admin").expect(200).text(), "denied");
    }
    sidecar.upstream.expect_reuse();
}

fn item_54_bytes_behind_a_connect_go_nowhere(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for request in
        ["CONNECT echo:80 HTTP/1.1\r\nhost: echo:80\r\n\r\n", "CONNECT echo:80 HTTP/1.0\r\nhost: echo:80\r\n\r\n"]
    {
        // Whether the client sends them at once or after a while: a tunnel that was not opened carries nothing.
        for waits in [false, true] {
            for listener in [sidecar.outbound(), sidecar.inbound()] {
                let mut client = Client::connect(listener);
                client.send(request);
                if waits {
                    sidecar.settle();
                }
                // The connection may be closed by now.
                let _ = client.try_send(BEHIND);
                expect_refusal(&mut client, request.as_bytes(), 405, "connect_not_configured");
            }
        }
    }
    sidecar.expect_untouched();
}

fn item_55_connect_is_405(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for target in ["echo:80", "ping:443", "nobody.example.com:443", "127.0.0.1:22", "[::1]:80"] {
        sidecar.refuses(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n"), 405, "connect_not_configured");
    }
    let allowed = sidecar.proxy.connect().send("CONNECT echo:80 HTTP/1.1\r\nhost: echo\r\n\r\n").response();
    assert!(allowed.fields.has("allow"), "RFC 9110 section 15.5.6: {allowed:?}");
    for (target, code) in [
        ("echo", "http1.bad_target"),
        ("/", "http1.bad_target"),
        ("*", "http1.bad_target"),
        ("http://echo:80/", "http1.bad_target"),
        ("echo:80/x", "http1.bad_target"),
        ("u@echo:80", "http1.bad_target"),
        ("echo:", "http1.bad_target"),
        ("echo:99999", "http1.bad_target"),
        (":80", "http1.bad_target"),
    ] {
        sidecar.refuses(format!("CONNECT {target} HTTP/1.1\r\nhost: echo\r\n\r\n"), 400, code);
    }
    for body in ["content-length: 5\r\n", "transfer-encoding: chunked\r\n"] {
        let request = format!("CONNECT echo:80 HTTP/1.1\r\nhost: echo\r\n{body}\r\nhello");
        sidecar.refuses(request, 400, "http1.connect_with_body");
    }
    sidecar.expect_untouched();
}

fn item_55_connect_is_405_for_every_port_that_is_not_configured(driver: Driver) {
    let sidecar = Sidecar::configured(
        driver,
        Upstream::answering(|request| ok(request.target())),
        |builder| builder.arguments(&["--connect-ports", "443,8443"]),
        |_, _| (),
    );
    for target in ["echo:80", "echo:444", "127.0.0.1:22", "[::1]:1"] {
        sidecar.refuses(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n"), 405, "connect_not_configured");
    }
    // Where the mesh comes in, there is no way on.
    let request = "CONNECT echo:443 HTTP/1.1\r\nhost: echo:443\r\n\r\n";
    sidecar.refuses_at(sidecar.inbound(), request.as_bytes(), 405, "connect_not_configured");
    sidecar.expect_untouched();
}

fn item_56_h2c_and_its_settings_are_stripped(driver: Driver) {
    let (sidecar, chain) = (Sidecar::new(driver), Chain::new(driver));
    for lines in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: upgrade\r\nUpgrade: H2C\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        "http2-settings: AAMAAABkAAQAAP__\r\n",
    ] {
        sidecar.forwards(with(format!("{lines}x: 1\r\n")), with("x: 1\r\n"));
        chain.forwards(with(format!("{lines}x: 1\r\n")), with("x: 1\r\n"));
    }
    // The preface that such a client sends next is refused.
    let request = [&with("connection: upgrade\r\nupgrade: h2c\r\n"), &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]].concat();
    let mut client = sidecar.proxy.connect();
    client.send(&request).response().expect(200);
    expect_refusal(&mut client, &request, 505, "http1.version_unsupported");
}

fn cve_2026_2833_an_upgrade_opens_no_tunnel(driver: Driver) {
    // A proxy that takes the request for the switch itself passes what follows on unread.
    let sidecar = guarded(driver);
    for upgrade in
        ["connection: upgrade\r\nupgrade: x\r\n", "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 0\r\n"]
    {
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            let mut client = sidecar.proxy.connect();
            client.send(format!(
                "GET / {version}\r\nhost: guarded\r\n{upgrade}\r\nGET /admin HTTP/1.1\r\nhost: guarded\r\n\r\n"
            ));
            assert_eq!(client.response().expect(200).text(), "/");
            if version == "HTTP/1.1" {
                assert_eq!(client.response().expect(200).text(), "denied");
            } else {
                client.expect_end();
            }
            let received = sidecar.received();
            assert!(!contains(&received, b"admin") && !contains(&received, b"upgrade"), "{}", Shown(&received));
        }
    }
}

fn cve_2026_2835_and_2026_73548_transfer_encoding_on_http_1_0_is_refused(driver: Driver) {
    // One proxy reads chunks where the next one reads a length, or until the end.
    let sidecar = guarded(driver);
    let hidden = "0\r\n\r\nGET /admin HTTP/1.1\r\nhost: guarded\r\n\r\n";
    for lines in ["transfer-encoding: chunked\r\n", "connection: keep-alive\r\ntransfer-encoding: chunked\r\n"] {
        let request = format!("POST / HTTP/1.0\r\nhost: guarded\r\n{lines}\r\n{hidden}");
        sidecar.refuses(&request, 400, "http1.encoding_on_http10");
        sidecar.refuses_in_pieces(&request, 400, "http1.encoding_on_http10");
    }
    let both =
        format!("POST / HTTP/1.0\r\nhost: guarded\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n{hidden}");
    sidecar.refuses(both, 400, "http1.length_with_encoding");
    sidecar.expect_untouched();
}
