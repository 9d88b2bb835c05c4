//! Items 18 to 25 and 40 of the HTTP checklist: where a body ends is never in doubt, and a body without an end is never
//! passed off as whole.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::limits::CHUNK_EXTENSION_BYTES_MAX;
use meshring_tests::{
    checklist::{BEHIND, Chain, Shown, Sidecar, chunked, contains, expect_bytes, expect_refusal, with, with_own_lines},
    client::Client,
    on_both_drivers,
    proxy::Driver,
    upstream::{Upstream, ok},
    wait,
};
use rustix::net::sockopt;

on_both_drivers! {
    item_18_a_chunk_size_that_is_not_1_to_16_hexadecimal_digits_is_refused
    item_18_a_plain_chunk_size_is_written_anew
    item_19_chunk_extensions_are_accepted_and_stripped
    item_20_control_characters_in_a_chunk_extension_are_refused
    item_21_chunk_extensions_are_bounded_over_the_whole_message
    item_22_chunk_data_that_is_not_followed_by_crlf_is_refused
    item_23_a_last_chunk_that_ends_in_a_bare_lf_is_refused
    item_24_trailer_fields_that_decide_about_anything_are_dropped
    item_25_a_client_that_ends_in_mid_body_aborts_the_upstream
    item_40_a_body_over_the_configured_limit_is_413
}

/// Asserts that each chunked body is refused before anything of it is forwarded, and that where its beginning was
/// forwarded before it broke it gets no end.
#[track_caller]
fn refused_bodies<B: AsRef<[u8]>>(driver: Driver, bodies: &[(B, &str)]) {
    let sidecar = Sidecar::new(driver);
    for (body, code) in bodies {
        sidecar.refuses(chunked(body), 400, code);
    }
    sidecar.expect_untouched();
    // Those two connections are pooled: another sidecar for a clean account of the broken ones.
    let sidecar = Sidecar::new(driver);
    for (body, _) in bodies.iter().filter(|(body, _)| body.as_ref().len() < 100) {
        sidecar.aborts_in_pieces(chunked(body));
    }
}

fn item_18_a_chunk_size_that_is_not_1_to_16_hexadecimal_digits_is_refused(driver: Driver) {
    let sizes: [&[u8]; 28] = [
        b"0x5",
        b"0X5",
        b"+5",
        b"-5",
        b" 5",
        b"\t5",
        b"5 ",
        b"5\t",
        b"5 ;a",
        b"5_0",
        b"5.",
        b"5,5",
        b"5h",
        b"g",
        b"",
        b" ",
        b";a",
        b"\"5\"",
        b"%35",
        b"5\x0b",
        b"\x0c5",
        b"5\x85",
        b"\xef\xbc\x95",
        b"5\0",
        b"00000000000000005",
        b"10000000000000005",
        b"fffffffffffffffff",
        b"00000000000000000",
    ];
    let bodies = sizes.map(|size| ([size, b"\r\nhello\r\n0\r\n\r\n"].concat(), "http1.chunk_size"));
    refused_bodies(driver, &bodies);
    // A broken size behind a chunk that nothing is wrong with, too.
    let later = sizes.map(|size| ([b"5\r\nhello\r\n", size, b"\r\nhello\r\n0\r\n\r\n"].concat(), "http1.chunk_size"));
    refused_bodies(driver, &later[..3]);
}

fn item_18_a_plain_chunk_size_is_written_anew(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for size in ["A", "a", "0A", "000000000000000A"] {
        sidecar
            .forwards(chunked(format!("{size}\r\n0123456789\r\n00\r\n\r\n")), chunked("a\r\n0123456789\r\n0\r\n\r\n"));
    }
}

fn item_19_chunk_extensions_are_accepted_and_stripped(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for (extension, last) in [
        (";a=b", ""),
        (";a", ";b"),
        (";a=\"b c\"", ";c=\"d;e\""),
        (";", ";;;"),
        ("; a = b ; c", "; \t"),
        (";a=\"\\\"\"", ";x=\u{e9}"),
        (";0\t", ";transfer-encoding: chunked"),
    ] {
        sidecar.forwards(
            chunked(format!("5{extension}\r\nhello\r\n1{last}\r\n!\r\n0{last}\r\n\r\n")),
            chunked("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"),
        );
    }
}

fn item_20_control_characters_in_a_chunk_extension_are_refused(driver: Driver) {
    let mut bodies: Vec<_> = [
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;\nhello\r\n0\r\n\r\n",
        "5;a\n\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a\r\r\nhello\r\n0\r\n\r\n",
        "5;\r\rhello\r\n0\r\n\r\n",
        "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
        "5;a\0b\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5;\x7f\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0;\n\r\n",
        "5\r\nhello\r\n0;a\0\r\n\r\n",
        // What one parser takes for an extension is a chunk of 0x33 bytes for one that ends lines at LF.
        "2;\nxx\r\n33\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: echo\r\n\r\n",
    ]
    .map(|body| (body.to_owned(), "http1.chunk_extension"))
    .into();
    for control in (0x01..=0x1f_u8).filter(|byte| !b"\t\r\n".contains(byte)).map(char::from) {
        bodies.push((format!("5;a{control}\r\nhello\r\n0\r\n\r\n"), "http1.chunk_extension"));
    }
    bodies.push(("5\nhello\r\n0\r\n\r\n".into(), "http1.chunk_size"));
    bodies.push(("5\r\rhello\r\n0\r\n\r\n".into(), "http1.chunk_size"));
    bodies.push(("5\rhello\r\n0\r\n\r\n".into(), "http1.chunk_size"));
    refused_bodies(driver, &bodies);
}

fn item_21_chunk_extensions_are_bounded_over_the_whole_message(driver: Driver) {
    let chunk = |extension_bytes: usize| format!("1;{}\r\nx\r\n", "e".repeat(extension_bytes - 1));
    let many = |chunks: usize| chunk(64).repeat(chunks) + "0\r\n\r\n";
    let last = |extension_bytes: usize| format!("1\r\nx\r\n0;{}\r\n\r\n", "e".repeat(extension_bytes - 1));
    let sidecar = Sidecar::new(driver);
    let one = chunked("1\r\nx\r\n0\r\n\r\n");
    sidecar.forwards(chunked(chunk(CHUNK_EXTENSION_BYTES_MAX) + "0\r\n\r\n"), &one);
    sidecar.forwards(chunked(last(CHUNK_EXTENSION_BYTES_MAX)), &one);
    let count = CHUNK_EXTENSION_BYTES_MAX / 64;
    sidecar.forwards(chunked(many(count)), chunked("1\r\nx\r\n".repeat(count) + "0\r\n\r\n"));
    // The count begins anew with each message.
    let mut client = sidecar.proxy.connect();
    for _ in 0..2 {
        client.send(chunked(many(count))).response().expect(200);
    }

    let sidecar = Sidecar::new(driver);
    for body in [
        chunk(CHUNK_EXTENSION_BYTES_MAX + 1) + "0\r\n\r\n",
        last(CHUNK_EXTENSION_BYTES_MAX + 1),
        many(count + 1),
        format!("1;{}", "e".repeat(2 * CHUNK_EXTENSION_BYTES_MAX)),
    ] {
        sidecar.refuses(chunked(body), 400, "http1.chunk_extension_too_large");
    }
    sidecar.expect_untouched();
}

fn item_22_chunk_data_that_is_not_followed_by_crlf_is_refused(driver: Driver) {
    let ends = ["", "\n", "\r", "x\r\n", " \r\n", "\t\r\n", "\n\r\n", "\r\r\n", "\r \n", "\0\r\n", "!\n"];
    let bodies = ends.map(|end| (format!("5\r\nhello{end}0\r\n\r\n"), "http1.chunk_data_end"));
    refused_bodies(driver, &bodies);
}

fn item_23_a_last_chunk_that_ends_in_a_bare_lf_is_refused(driver: Driver) {
    refused_bodies(
        driver,
        &[
            ("0\n\n", "http1.chunk_size"),
            ("0\n\r\n", "http1.chunk_size"),
            ("0\r\r\n", "http1.chunk_size"),
            ("0 \r\n\r\n", "http1.chunk_size"),
            ("0\r\n\n", "http1.trailer"),
            ("0\r\n\r\r\n", "http1.trailer"),
            ("0\r\n \r\n\r\n", "http1.trailer"),
            ("0\r\nx: y\n\r\n", "http1.trailer"),
            ("0\r\nx: y\r\n\n", "http1.trailer"),
            ("0\r\nx: a\rb\r\n\r\n", "http1.trailer"),
            ("0\r\nx: a\0\r\n\r\n", "http1.trailer"),
            ("0\r\nx : y\r\n\r\n", "http1.trailer"),
            ("0\r\nx: y\r\n z\r\n\r\n", "http1.trailer"),
            ("0\r\n: y\r\n\r\n", "http1.trailer"),
            ("0\r\nnocolon\r\n\r\n", "http1.trailer"),
            ("5\r\nhello\r\n0\n\n", "http1.chunk_size"),
            ("5\r\nhello\r\n0\r\n\n", "http1.trailer"),
        ],
    );
}

fn item_24_trailer_fields_that_decide_about_anything_are_dropped(driver: Driver) {
    let trailers = "Content-Length: 5\r\nX-Sum: \t1 \r\nTransfer-Encoding: chunked\r\nHost: ping\r\nAUTHORIZATION: x\r\n\
                    Content_Length: 1\r\nx-forwarded-for: 9.9.9.9\r\nX-Forwarded-Prefix: /\r\nConnection: close\r\nCookie: a\r\n\
                    Set-Cookie: a\r\nExpect: 100-continue\r\nUpgrade: h2c\r\nTE: gzip\r\nTrailer: x\r\nVia: 1.1 x\r\n\
                    Max-Forwards: 0\r\nX-Request-Id: x\r\nForwarded: for=x\r\nContent-Type: x\r\ncontent-encoding: gzip\r\n\
                    Cache-Control: no\r\nLocation: /\r\nRange: x\r\nproxy-authorization: x\r\nkeep-alive: x\r\n\
                    x-forwarded-client-cert: x\r\nif-match: x\r\ngrpc-status:0\r\nEmpty:\r\n";
    let kept = "X-Sum: 1\r\ngrpc-status: 0\r\nEmpty: \r\n";
    let sent = chunked(format!("5\r\nhello\r\n0\r\n{trailers}\r\n"));
    let expected = chunked(format!("5\r\nhello\r\n0\r\n{kept}\r\n"));

    let sidecar = Sidecar::new(driver);
    sidecar.forwards(&sent, &expected);
    Chain::new(driver).forwards(&sent, &expected);
    // Whatever the pieces in which they come.
    let mut client = sidecar.proxy.connect();
    for byte in &sent {
        client.send([*byte]);
    }
    client.response().expect(200);
    let received = sidecar.received();
    // Chunks may be cut where reads were: what counts is what they hold.
    assert!(received.ends_with(format!("0\r\n{kept}\r\n").as_bytes()), "{}", Shown(&received));
    assert!(!contains(&received, b"Host: ping") && !contains(&received, b"5\r\nX-Sum"), "{}", Shown(&received));

    // On the way back the same.
    let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{trailers}\r\n");
    let sidecar = Sidecar::before(driver, Upstream::answering(move |_| answer.clone()));
    let mut client = sidecar.proxy.connect();
    client.send("GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n");
    let received = client.rest().unwrap();
    let body = format!("\r\n\r\n5\r\nhello\r\n0\r\n{kept}\r\n");
    assert!(received.ends_with(body.as_bytes()), "{}", Shown(&received));
}

fn item_25_a_client_that_ends_in_mid_body_aborts_the_upstream(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let mut connections = 0;
    for (head, part, seen) in [
        ("content-length: 10\r\n", "hello", "hello"),
        ("content-length: 10\r\n", "", ""),
        ("transfer-encoding: chunked\r\n", "", ""),
        ("transfer-encoding: chunked\r\n", "5\r\nhel", "3\r\nhel\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello", "5\r\nhello\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n", "5\r\nhello\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0", "5\r\nhello\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n", "5\r\nhello\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\nx: y\r\n", "5\r\nhello\r\n0\r\nx: y\r\n"),
    ] {
        for resets in [false, true] {
            let mut client = sidecar.proxy.connect();
            let request = [&with(head), part.as_bytes()].concat();
            client.send(&request);
            // The upstream has the head: what happens now happens in mid-body.
            wait::until("the request at the upstream", || (sidecar.upstream.connections() > connections).then_some(()));
            sidecar.settle();
            connections += 1;
            if resets {
                sockopt::set_socket_linger(client.stream(), Some(std::time::Duration::ZERO)).unwrap();
                drop(client);
            } else {
                client.finish_sending();
                expect_refusal(&mut client, &request, 400, "http1.truncated_body");
            }
            // It ends, so it is in no pool.
            sidecar.upstream.wait_until_all_ended();
            expect_bytes(&sidecar.received(), &[&with_own_lines(&with(head)), seen.as_bytes()].concat(), &request);
        }
    }
    assert_eq!(sidecar.upstream.received().len(), 0, "none of them was whole");
    sidecar.forwards(BEHIND, BEHIND);
    assert_eq!(sidecar.upstream.connections(), connections + 1);
}

fn item_40_a_body_over_the_configured_limit_is_413(driver: Driver) {
    let upstream = Upstream::answering(|request| ok(request.target()));
    let sidecar =
        Sidecar::configured(driver, upstream, |builder| builder.arguments(&["--request-body-max", "1000"]), |_, _| ());
    let sized = |len: usize| [&with(format!("content-length: {len}\r\n")), &vec![b'x'; len][..]].concat();
    let in_chunks = |len: usize, each: usize| {
        let chunk = format!("{each:x}\r\n{}\r\n", "x".repeat(each));
        chunked(chunk.repeat(len / each) + "0\r\n\r\n")
    };
    for request in [sized(1001), sized(5_000), in_chunks(1001, 1001), in_chunks(1001, 1), in_chunks(2_000, 100)] {
        sidecar.refuses(&request, 413, "http1.body_too_large");
    }
    // Announced, but not sent: nobody waits for it.
    for length in ["1001", "1000000", "18446744073709551615"] {
        for listener in [sidecar.outbound(), sidecar.inbound()] {
            let request = with(format!("content-length: {length}\r\n"));
            let mut client = Client::connect(listener);
            client.send(&request);
            expect_refusal(&mut client, &request, 413, "http1.body_too_large");
        }
    }
    sidecar.expect_untouched();

    // At the limit it is forwarded, message after message.
    let mut client = sidecar.proxy.connect();
    for request in [sized(1000), in_chunks(1000, 1000), in_chunks(1000, 1), sized(1000)] {
        client.send(&request).response().expect(200);
        assert_eq!(sidecar.upstream.received().last().unwrap().body.len(), 1000);
    }
    // Beyond it when the upstream has the beginning already: its connection breaks off and is not used again.
    let whole = sidecar.upstream.received().len();
    let _ = sidecar.received();
    let mut client = sidecar.proxy.connect();
    let request = in_chunks(2_000, 100);
    client.send(&request[..500]);
    let mut received = Vec::new();
    wait::until("the request at the upstream", || {
        received.extend(sidecar.received());
        (!received.is_empty()).then_some(())
    });
    client.send(&request[500..]);
    expect_refusal(&mut client, &request, 413, "http1.body_too_large");
    sidecar.upstream.wait_until_all_ended();
    received.extend(sidecar.received());
    assert!(!contains(&received, b"\r\n0\r\n\r\n"), "{}", Shown(&received));
    assert_eq!(sidecar.upstream.received().len(), whole, "a body over the limit was passed off as whole");
    sidecar.forwards(BEHIND, BEHIND);
}
