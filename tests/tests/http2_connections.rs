//! Items 77 to 81 of the HTTP checklist: what an HTTP/2 connection as a whole goes by, such as tables, windows and lists.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::{
    limits::{
        HEAD_BYTES_MAX, HEAD_FIELDS_MAX, HTTP2_HEADER_FIELDS_ENDURED, HTTP2_HEADER_LIST_BYTES_ENDURED,
        HTTP2_STREAMS_MAX,
    },
    table::model::UpstreamProtocol,
};
use meshring_tests::{
    checklist::Sidecar,
    frames::{
        self, CONTINUATION, DATA, ENABLE_CONNECT_PROTOCOL, ENABLE_PUSH, END_HEADERS, HEADERS, INITIAL_WINDOW_SIZE,
        MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE, PING, PUSH_PROMISE, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, block, code, field, headers,
    },
    generate::{assert_same_bytes, body},
    h2::{Connection, Message, Opening, get, request},
    h2_application::{Application, Hop},
    on_both_drivers,
    proxy::Driver,
    upstream::{Upstream, ok},
    wait,
};

on_both_drivers! {
    item_77_cookie_crumbs_are_joined_and_each_counts
    item_78_trailers_without_an_end_are_an_error
    item_79_header_blocks_that_cannot_be_read_end_the_connection
    item_80_windows_that_overflow_are_flow_control_errors
    item_80_credit_comes_back_for_reset_streams_and_padding
    many_small_messages_are_no_flood
    item_81_never_indexed_fields_stay_so
    the_settings_are_what_the_proxy_can_keep
    pings_and_settings_are_acknowledged
    a_header_list_of_60_kib_is_forwarded_and_more_is_431
    a_header_list_beyond_all_bounds_ends_the_connection
    frames_that_no_client_may_send_end_the_connection
    what_is_unknown_is_ignored
    a_half_written_preface_is_no_request
    more_streams_than_are_allowed_are_refused
}

fn item_77_cookie_crumbs_are_joined_and_each_counts(driver: Driver) {
    let hop = Hop::new(driver);
    let mut client = hop.connect();
    let crumbs = [("cookie", "a=1"), ("x-a", "between"), ("cookie", "b=2"), ("cookie", "c=\"3; 4\"")];
    let stream = client.request(&[&get("echo", "/")[..], &crumbs].concat(), true);
    client.response(stream).expect(200);
    let received = hop.application.received().pop().unwrap();
    assert_eq!(received.fields.all("cookie").join("; "), "a=1; b=2; c=\"3; 4\"");

    let upstream = Upstream::answering(|request| ok(request.fields.value("cookie").unwrap_or("none")));
    let sidecar = Sidecar::configured(
        driver,
        upstream,
        |builder| builder,
        |world, cluster| {
            world.protocol(cluster, UpstreamProtocol::Http1);
        },
    );
    let mut client = Connection::connect(sidecar.outbound());
    let stream = client.request(&[&get("echo", "/")[..], &crumbs].concat(), true);
    assert_eq!(client.response(stream).expect(200).text(), "a=1; b=2; c=\"3; 4\"");

    // As many crumbs as there may be fields would be one field of HTTP/1.1, and many more a cheap way to a large one.
    let many = vec![("cookie", "a=1"); HEAD_FIELDS_MAX + 10];
    hop.refuses(&[block(&get("echo", "/bad")), block(&many)].concat(), 431, "many crumbs");
}

fn item_78_trailers_without_an_end_are_an_error(driver: Driver) {
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        let stream = client.request(&request("POST", "echo", "/bad"), false);
        client.send(frames::data(stream, "body", false));
        client.send(frames::headers(stream, block(&[("x-end", "no")]), false));
        client.wait("an error", |connection| {
            let answer = connection.message(stream);
            assert!(!answer.ended, "taken for an end: {answer:?}");
            let is_told = answer.reset == Some(code::PROTOCOL_ERROR);
            (is_told || connection.goaways.last().is_some_and(|(_, why)| *why == code::PROTOCOL_ERROR)).then_some(())
        });
    }
    assert!(hop.application.received().iter().all(|message| !message.ended), "passed off as whole");
}

fn item_79_header_blocks_that_cannot_be_read_end_the_connection(driver: Driver) {
    let hop = Hop::new(driver);
    let known = block(&get("echo", "/bad"));
    for (what, bytes) in [
        ("index 0", vec![0x80]),
        ("an index beyond the tables", vec![0xff, 0x40]),
        ("a name beyond the tables", [vec![0x0f, 0x70], frames::string("v")].concat()),
        ("an integer without an end", vec![0xff; 12]),
        ("a string beyond the block", vec![0x00, 0x7f, 0x05, b'a']),
        ("a bad Huffman code", vec![0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00]),
        ("Huffman padding of zeros", vec![0x00, 0x81, 0x00, 0x00]),
        ("a table update beyond what was agreed", vec![0x3f, 0xe1, 0xff, 0x03]),
    ] {
        let stream = |bytes: &[u8]| frames::headers(1, bytes, true);
        hop.ends(stream(&[&bytes[..], &known].concat()), code::COMPRESSION_ERROR, what);
        if !what.starts_with("a table update") {
            hop.ends(stream(&[&known[..], &bytes].concat()), code::COMPRESSION_ERROR, &format!("{what}, last"));
        }
    }
    hop.ends(
        frames::headers(1, [&known[..], &[0x20]].concat(), true),
        code::COMPRESSION_ERROR,
        "a table update in the middle of a block",
    );
}

fn item_80_windows_that_overflow_are_flow_control_errors(driver: Driver) {
    const MOST: u32 = 0x7fff_ffff;
    let hop = Hop::new(driver);
    hop.ends(frames::window_update(0, MOST), code::FLOW_CONTROL_ERROR, "the connection's window");
    let head = frames::headers(1, block(&request("POST", "echo", "/behind")), false);
    let large = frames::settings(&[(INITIAL_WINDOW_SIZE, 0x8000_0000)]);
    hop.ends(large, code::FLOW_CONTROL_ERROR, "an initial window of 2^31");
    for listener in hop.listeners() {
        let mut client = Connection::connect_with(listener, &Opening::narrow());
        client.send(&head).send(frames::window_update(1, MOST));
        assert_eq!(client.response(1).reset, Some(code::FLOW_CONTROL_ERROR), "a stream's window");
        let mut client = Connection::connect_with(listener, &Opening::narrow());
        client.send(&head).send(frames::window_update(1, 0));
        client.wait("an error for an increment of 0", |connection| {
            let of_stream = connection.message(1).reset == Some(code::PROTOCOL_ERROR);
            (of_stream || connection.goaways.iter().any(|(_, why)| *why == code::PROTOCOL_ERROR)).then_some(())
        });
    }
    // More than the proxy has given credit for, where nobody takes what is sent.
    let hop = Hop::before(driver, Application::opening(Opening::narrow(), |_, _, _| ()));
    let mut client = hop.connect();
    let stream = client.request(&request("POST", "echo", "/too-much"), false);
    let _ = client.fill(stream);
    // Some credit may come late: what the application's window has taken.
    let _ = client.try_send(frames::data(stream, vec![0; 16_384], false).repeat(100));
    client.wait("an error", |connection| {
        let of_stream = connection.message(stream).reset == Some(code::FLOW_CONTROL_ERROR);
        let of_all = connection.goaways.iter().any(|(_, why)| *why == code::FLOW_CONTROL_ERROR);
        (of_stream || of_all).then_some(())
    });
}

fn item_80_credit_comes_back_for_reset_streams_and_padding(driver: Driver) {
    // 4 MiB, of which padding is 200 KB: more than a stream's or a connection's window by itself.
    const PADDED_FRAMES: usize = 1_000;
    let piece = body(9, 4_000);
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        let stream = client.request(&request("POST", "echo", "/padded"), false);
        for _ in 0..PADDED_FRAMES {
            client.padded(stream, &piece, 255);
        }
        client.body(stream, b"", true);
        assert_eq!(client.response(stream).expect(200).body.len(), PADDED_FRAMES * piece.len());
        // Bodies that nobody waits for, 3 MiB of them, in few streams: many would be a flood.
        let data = body(8, 60_000);
        for _ in 0..50 {
            let stream = client.request(&request("POST", "echo", "/reset"), false);
            client.body(stream, &data, false);
            client.send(frames::reset(stream, code::CANCEL));
            client.settle();
        }
        let stream = client.request(&request("POST", "echo", "/last"), false);
        client.body(stream, &data, true);
        assert_same_bytes(&client.response(stream).expect(200).body, &data);
    }
}

fn many_small_messages_are_no_flood(driver: Driver) {
    const MESSAGES: usize = 20_000;
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        let stream = client.request(&request("POST", "echo", "/small"), false);
        for _ in 0..MESSAGES {
            client.body(stream, b"ten bytes.", false);
        }
        client.body(stream, b"", true);
        assert_eq!(client.response(stream).expect(200).body.len(), 10 * MESSAGES);
    }
}

fn item_81_never_indexed_fields_stay_so(driver: Driver) {
    let application = Application::answering(|connection, stream, message| {
        let secret = frames::never_indexed("set-cookie", "secret=1");
        let head = [field(":status", "200"), secret, field("x-count", message.never_indexed.to_string())].concat();
        connection.send(frames::headers(stream, head, true));
    });
    let hop = Hop::before(driver, application);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        for (secrets, expected) in [(vec!["x-secret", "authorization"], 2), (vec!["x-secret"], 1)] {
            let secret: Vec<u8> = secrets.iter().flat_map(|name| frames::never_indexed(name, "dont-tell")).collect();
            let stream = client.new_stream();
            client.send(frames::headers(stream, [block(&get("echo", "/")), secret].concat(), true));
            let response = client.response(stream);
            let counted: usize = response.expect(200).fields.value("x-count").unwrap().parse().unwrap();
            assert!(counted >= expected, "{secrets:?}: {counted} of them stayed so");
            assert!(response.never_indexed >= 1, "of the response: {response:?}");
        }
    }
}

fn the_settings_are_what_the_proxy_can_keep(driver: Driver) {
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        client.settle();
        let value = |id| client.settings.iter().rev().find(|(known, _)| *known == id).map(|(_, value)| *value);
        let list = value(MAX_HEADER_LIST_SIZE).expect("a bound of header lists");
        assert!((60 * 1024..=72 * 1024).contains(&list), "{list}");
        let streams = value(MAX_CONCURRENT_STREAMS).expect("a bound of streams");
        assert!((100..=1_000).contains(&streams), "{streams}");
        assert!(value(MAX_FRAME_SIZE).is_none_or(|size| size == 16_384), "frames that no buffer of ours holds");
        assert!(value(ENABLE_PUSH).is_none_or(|push| push == 0));
        assert_eq!(value(ENABLE_CONNECT_PROTOCOL), Some(1), "RFC 8441");
    }
    let received = hop.connect().get("echo", "/");
    received.expect(200);
}

fn pings_and_settings_are_acknowledged(driver: Driver) {
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        client.send(frames::ping(*b"12345678")).send(frames::settings(&[(INITIAL_WINDOW_SIZE, 70_000)]));
        client.wait("both", |c| (c.pongs == [*b"12345678"] && c.settings_acks == 2).then_some(()));
        // An acknowledgement of a PING that nobody has sent is not answered, nor an error.
        client.send(frames::frame(PING, frames::ACK, 0, b"87654321"));
        client.get("echo", "/").expect(200);
        assert_eq!(client.pongs.len(), 1);
    }
}

/// A header block of `len` bytes of values, in frames of the size that is always allowed.
fn large_request(stream: u32, len: usize) -> Vec<u8> {
    let value = "v".repeat(6_000);
    let mut head = block(&get("echo", "/large"));
    for at in 0..len / value.len() {
        head.extend(field(format!("x-{at}"), &value));
    }
    head.extend(field("x-last", "v".repeat(len % value.len())));
    let mut pieces = head.chunks(16_384).peekable();
    let mut out = frames::frame(HEADERS, 1, stream, pieces.next().unwrap());
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        out.extend(frames::frame(CONTINUATION, flags, stream, piece));
    }
    out
}

fn a_header_list_of_60_kib_is_forwarded_and_more_is_431(driver: Driver) {
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        let stream = client.new_stream();
        client.send(large_request(stream, HEAD_BYTES_MAX - 1024));
        client.response(stream).expect(200);
        let got = hop.application.received().pop().unwrap();
        let bytes: usize = got.fields.0.iter().filter(|(name, _)| name.starts_with("x-")).map(|(_, v)| v.len()).sum();
        assert!(bytes >= HEAD_BYTES_MAX - 1024, "{bytes}");
        let before = hop.application.received().len();
        for len in [HEAD_BYTES_MAX + 4096, 100_000] {
            let stream = client.new_stream();
            client.send(large_request(stream, len));
            let answer = client.response(stream);
            assert_eq!(answer.status(), 431, "{len}: {answer:?}");
        }
        client.get("echo", "/behind").expect(200);
        assert_eq!(hop.application.received().len(), before + 1);
    }
}

/// An octet of each field is enough where the table has the rest, and three where it is nothing.
fn a_header_list_beyond_all_bounds_ends_the_connection(driver: Driver) {
    let hop = Hop::new(driver);
    let entry = frames::indexed("x-bomb", "b".repeat(3_968 - "x-bomb".len()));
    // Of the entry 4,000 octets each; what else a request has is far below them.
    let large = |octets: usize| [entry.clone(), vec![0xbe; octets / 4_000 - 1]].concat();
    let many = |count: usize| [0, 1, b'x', 0].repeat(count);
    for (fields, is_endured) in [
        (large(HTTP2_HEADER_LIST_BYTES_ENDURED), true),
        (large(HTTP2_HEADER_LIST_BYTES_ENDURED + 4_000), false),
        (many(HTTP2_HEADER_FIELDS_ENDURED), true),
        (many(HTTP2_HEADER_FIELDS_ENDURED + 1), false),
    ] {
        let mut client = Connection::connect(hop.listeners()[0]);
        let stream = client.new_stream();
        client.send(headers(stream, [block(&get("echo", "/bad")), fields].concat(), true));
        if is_endured {
            client.response(stream).expect(431);
            client.get("echo", "/behind").expect(200);
        } else {
            assert_eq!(client.end(), Some(code::ENHANCE_YOUR_CALM));
        }
    }
    assert_eq!(hop.application.received().len(), 2);
}

fn frames_that_no_client_may_send_end_the_connection(driver: Driver) {
    let hop = Hop::new(driver);
    let head = block(&get("echo", "/bad"));
    let open = frames::frame(HEADERS, 1, 1, &head);
    let upload = frames::headers(1, block(&request("POST", "echo", "/bad")), false);
    let long = vec![0; 16_385];
    for (what, bytes, expected) in [
        ("DATA of stream 0", frames::data(0, "x", true), code::PROTOCOL_ERROR),
        ("DATA of an idle stream", frames::data(1, "x", true), code::PROTOCOL_ERROR),
        ("HEADERS of an even stream", frames::headers(2, &head, true), code::PROTOCOL_ERROR),
        ("HEADERS of stream 0", frames::headers(0, &head, true), code::PROTOCOL_ERROR),
        ("DATA within a header block", [&open[..], &frames::data(1, "x", false)].concat(), code::PROTOCOL_ERROR),
        ("PING within a header block", [&open[..], &frames::ping([0; 8])].concat(), code::PROTOCOL_ERROR),
        (
            "CONTINUATION of another stream",
            [&open[..], &frames::frame(CONTINUATION, END_HEADERS, 3, [])].concat(),
            code::PROTOCOL_ERROR,
        ),
        ("CONTINUATION of nothing", frames::frame(CONTINUATION, END_HEADERS, 1, &head), code::PROTOCOL_ERROR),
        (
            "a push",
            frames::frame(PUSH_PROMISE, END_HEADERS, 1, [&[0, 0, 0, 2], &head[..]].concat()),
            code::PROTOCOL_ERROR,
        ),
        ("RST_STREAM of an idle stream", frames::reset(1, 0), code::PROTOCOL_ERROR),
        ("RST_STREAM of stream 0", frames::reset(0, 0), code::PROTOCOL_ERROR),
        ("WINDOW_UPDATE of an idle stream", frames::window_update(1, 1), code::PROTOCOL_ERROR),
        ("a push enabled by 2", frames::settings(&[(ENABLE_PUSH, 2)]), code::PROTOCOL_ERROR),
        ("frames of 1 byte at most", frames::settings(&[(MAX_FRAME_SIZE, 1)]), code::PROTOCOL_ERROR),
        ("SETTINGS of a stream", frames::frame(SETTINGS, 0, 1, []), code::PROTOCOL_ERROR),
        ("GOAWAY of a stream", frames::frame(frames::GOAWAY, 0, 1, [0; 8]), code::PROTOCOL_ERROR),
        ("SETTINGS of 5 bytes", frames::frame(SETTINGS, 0, 0, [0; 5]), code::FRAME_SIZE_ERROR),
        ("an acknowledgement with settings", frames::frame(SETTINGS, 1, 0, [0; 6]), code::FRAME_SIZE_ERROR),
        ("PING of 7 bytes", frames::frame(PING, 0, 0, [0; 7]), code::FRAME_SIZE_ERROR),
        (
            "RST_STREAM of 3 bytes",
            [&upload[..], &frames::frame(RST_STREAM, 0, 1, [0; 3])].concat(),
            code::FRAME_SIZE_ERROR,
        ),
        ("WINDOW_UPDATE of 3 bytes", frames::frame(WINDOW_UPDATE, 0, 0, [0; 3]), code::FRAME_SIZE_ERROR),
        ("HEADERS of over 16 KiB", frames::frame(HEADERS, 5, 1, &long), code::FRAME_SIZE_ERROR),
        (
            "a smaller stream",
            [frames::headers(3, block(&get("echo", "/behind")), true), frames::headers(1, &head, true)].concat(),
            code::PROTOCOL_ERROR,
        ),
        (
            "padding longer than its frame",
            frames::frame(HEADERS, END_HEADERS | frames::PADDED | 1, 1, [255, 0]),
            code::PROTOCOL_ERROR,
        ),
    ] {
        if what == "a smaller stream" {
            for listener in hop.listeners() {
                let mut client = Connection::connect(listener);
                let _ = client.try_send(&bytes);
                assert_eq!(client.end(), Some(expected), "{what}: {client:?}");
            }
            continue;
        }
        let is_upload = bytes.starts_with(&upload);
        for listener in hop.listeners() {
            let before = hop.application.received().len();
            let mut client = Connection::connect(listener);
            let _ = client.try_send(&bytes);
            assert_eq!(client.end(), Some(expected), "{what}: {client:?}");
            Connection::connect(listener).get("echo", "/behind").expect(200);
            let whole = hop.application.received()[before..].iter().filter(|message| message.ended).count();
            assert_eq!(whole, 1, "{what}: passed on (upload: {is_upload})");
        }
    }
    let mut client = hop.connect();
    let stream = client.request(&request("POST", "echo", "/too-long"), false);
    let _ = client.try_send(frames::frame(DATA, 0, stream, &long));
    client.expect_end(code::FRAME_SIZE_ERROR);
}

fn what_is_unknown_is_ignored(driver: Driver) {
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        // A frame, a setting, a flag and an error code of which nobody knows (RFC 9113 sections 4.1, 5.5, 6.5.2, 7).
        client.send(frames::frame(0xfa, 0xff, 0, b"what?")).send(frames::frame(0xfb, 0, 7, b"what?"));
        client.send(frames::settings(&[(0xfafa, 0xffff_ffff)]));
        client.send(frames::frame(frames::PRIORITY, 0, 9, [0, 0, 0, 0, 15]));
        client.send(frames::frame(PING, 0xfe, 0, b"any flag"));
        let stream = client.request(&request("POST", "echo", "/"), false);
        client.send(frames::reset(stream, 0xfafa_fafa));
        client.get("echo", "/behind").expect(200);
        assert_eq!(client.pongs, [*b"any flag"]);
    }
}

fn a_half_written_preface_is_no_request(driver: Driver) {
    use std::io::Write as _;
    let hop = Hop::new(driver);
    // In pieces it is a preface all the same.
    for cut in [1, 3, 14, 16, 18, 23] {
        let mut stream = std::net::TcpStream::connect(hop.proxy.outbound()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&frames::PREFACE[..cut]).unwrap();
        // The answer to another client is behind what the worker has read of this one.
        hop.connect().get("echo", "/meanwhile").expect(200);
        stream.write_all(&frames::PREFACE[cut..]).unwrap();
        let mut client = Connection::resumed(stream, &Opening::default());
        client.get("echo", "/whole").expect(200);
    }
    // What only begins like one is HTTP/1.1, and refused as that.
    for bytes in ["PRI / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\nhost: echo\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"]
    {
        let mut client = hop.proxy.connect();
        client.send(bytes);
        let status = client.response().status;
        assert!(matches!(status, 400 | 404 | 505), "{bytes:?}: {status}");
    }
}

/// What httpwg cannot see where each request is answered before the next one comes.
fn more_streams_than_are_allowed_are_refused(driver: Driver) {
    let hop = Hop::before(driver, Application::answering(|_, _, _| ()));
    let mut client = hop.connect();
    let held: Vec<u32> = (0..HTTP2_STREAMS_MAX).map(|_| client.request(&get("echo", "/held"), true)).collect();
    for _ in 0..3 {
        let beyond = client.request(&get("echo", "/beyond"), true);
        client.response(beyond).expect_reset(code::REFUSED_STREAM);
    }
    let has_come = |path: &str, count: usize| {
        let of = |message: &Message| message.fields.value(":path") == Some(path);
        hop.application.received().iter().filter(|message| of(message)).count() == count
    };
    wait::until("those that are allowed", || has_come("/held", held.len()).then_some(()));
    client.send(frames::reset(held[50], code::CANCEL));
    let after = client.request(&get("echo", "/after"), true);
    wait::until("one in the place of another", || has_come("/after", 1).then_some(()));
    assert!(has_come("/beyond", 0) && client.message(after).reset.is_none());
}
