//! Items 68 to 76 of the HTTP checklist: requests over HTTP/2 that are malformed. Their streams end, their connections go on, and
//! no upstream hears of them.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    checklist::Sidecar,
    client::request as request_http1,
    frames::{self, block, code, field},
    h2::{Connection, get, request},
    h2_application::Hop,
    on_both_drivers,
    proxy::Driver,
    upstream::{Upstream, ok},
    wire::FieldLines,
};

on_both_drivers! {
    cve_2026_42926_a_body_is_never_taken_for_frames
    item_68_upper_case_in_a_name_ends_the_stream
    item_69_pseudo_fields_stand_once_and_first
    item_69_pseudo_fields_in_trailers_go_no_further
    item_70_a_path_begins_with_a_slash
    item_71_bytes_that_no_field_may_have_end_the_stream
    item_72_fields_of_an_http_1_connection_end_the_stream
    item_73_te_is_trailers_or_ends_the_stream
    item_74_host_and_authority_are_one
    item_75_a_scheme_that_is_none_is_400
    item_76_a_length_that_the_frames_belie_ends_the_stream
    item_76_the_upstream_of_a_belied_length_is_never_told_an_end
}

/// A GET with further fields behind it.
fn get_with(fields: &[(&str, &str)]) -> Vec<u8> {
    [block(&get("echo", "/bad")), block(fields)].concat()
}

/// A GET with a further field of any bytes.
fn get_with_bytes(name: &[u8], value: &[u8]) -> Vec<u8> {
    [block(&get("echo", "/bad")), field(name, value)].concat()
}

fn item_68_upper_case_in_a_name_ends_the_stream(driver: Driver) {
    let hop = Hop::new(driver);
    for name in ["X-Upper", "x-uppeR", "Host", "Cookie", "X"] {
        hop.breaks(&get_with(&[(name, "v")]), name);
    }
    // In trailers: the request is on its way by then, and is broken off.
    let mut client = hop.connect();
    let stream = client.request(&request("POST", "echo", "/"), false);
    client.send(frames::data(stream, "body", false));
    client.send(frames::headers(stream, block(&[("X-Upper", "v")]), true));
    while client.message(stream).reset.is_none() && client.pump() {}
    assert!(!client.message(stream).ended, "{client:?}");
    hop.connect().get("echo", "/behind").expect(200);
    let whole = hop.application.received().iter().filter(|message| message.ended && !message.body.is_empty()).count();
    assert_eq!(whole, 0, "passed off as whole");
}

fn item_69_pseudo_fields_stand_once_and_first(driver: Driver) {
    let hop = Hop::new(driver);
    let whole = get("echo", "/bad");
    for at in 0..whole.len() {
        let twice = [&whole[..], &whole[at..=at]].concat();
        hop.resets(&block(&twice), &format!("{} twice", whole[at].0));
        // Without authority there would have to be a Host.
        let missing: Vec<_> = whole.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, field)| *field).collect();
        hop.resets(&block(&missing), &format!("{} missing", whole[at].0));
    }
    for (name, value) in [(":foo", "x"), (":status", "200"), (":", "x"), (":Path", "/"), (":protocol", "websocket")] {
        hop.breaks(&get_with(&[(name, value)]), name);
        let first = [&[(name, value)][..], &whole].concat();
        hop.breaks(&block(&first), &format!("{name} first"));
    }
    let late = [&whole[..3], &[("x-a", "1"), whole[3]]].concat();
    hop.resets(&block(&late), ":path behind x-a");
}

fn item_69_pseudo_fields_in_trailers_go_no_further(driver: Driver) {
    let hop = Hop::new(driver);
    for trailer in [(":path", "/"), (":status", "200"), (":authority", "other"), (":foo", "x")] {
        let mut client = hop.connect();
        let stream = client.request(&request("POST", "echo", "/bad"), false);
        client.send(frames::data(stream, "body", false));
        client.send(frames::headers(stream, block(&[trailer, ("x-sent", "trailer")]), true));
        // Those that are known by name the library drops without a word, with others it ends the connection.
        while !client.message(stream).ended && client.message(stream).reset.is_none() && client.pump() {}
        hop.connect().get("echo", "/behind").expect(200);
    }
    for message in hop.application.received() {
        assert!(message.trailers.0.iter().all(|(name, _)| name == "x-sent"), "{message:?}");
    }
}

fn item_70_a_path_begins_with_a_slash(driver: Driver) {
    let hop = Hop::new(driver);
    for path in ["", "a", "a/b", "?q", "*", "http://echo/", "echo:80", " /", "/ ", "/a b", "/\u{7f}"] {
        hop.resets(&block(&get("echo", path)), &format!("{path:?}"));
    }
    hop.resets(&block(&request("OPTIONS", "echo", "")), "an empty path of OPTIONS");
    let mut client = hop.connect();
    let stream = client.request(&request("OPTIONS", "echo", "*"), true);
    assert_eq!(client.response(stream).expect(200).fields.value("x-path"), Some("*"));
}

fn item_71_bytes_that_no_field_may_have_end_the_stream(driver: Driver) {
    let hop = Hop::new(driver);
    for value in [&b"a\rb"[..], b"a\nb", b"a\0b", b"a\r\nx-b: 1", b" a", b"a ", b"\ta", b"a\t", b"\0", b"\n"] {
        hop.breaks(&get_with_bytes(b"x-a", value), &format!("the value {}", value.escape_ascii()));
    }
    for value in [&b"a\x7f"[..], b"a\x01", b"\x0b"] {
        hop.breaks(&get_with_bytes(b"x-a", value), &format!("the value {}", value.escape_ascii()));
    }
    for name in
        [&b""[..], b" ", b"a b", b"a:b", b"a\0", b"a\rb", b"a\nb", b"a\r\nb", b"a\x7f", b"\x80", b"a(b", b"a\x85"]
    {
        hop.breaks(&get_with_bytes(name, b"v"), &format!("the name {}", name.escape_ascii()));
    }
    for (name, value) in [
        (":path", &b"/a\r\nhost: b"[..]),
        (":path", b"/a\0b"),
        (":authority", b"echo\r\nx: y"),
        (":authority", b"echo "),
        (":method", b"GE T"),
        (":method", b"GET\r\n"),
    ] {
        let fields = get("echo", "/bad").map(
            |(known, usual)| {
                if known == name { field(known, value) } else { field(known, usual) }
            },
        );
        hop.breaks(&fields.concat(), &format!("{name} {}", value.escape_ascii()));
    }
}

fn item_72_fields_of_an_http_1_connection_end_the_stream(driver: Driver) {
    let hop = Hop::new(driver);
    for (name, value) in [
        ("connection", "close"),
        ("connection", "x-a"),
        ("connection", ""),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "websocket"),
        ("upgrade", "h2c"),
    ] {
        hop.resets(&get_with(&[(name, value)]), &format!("{name}: {value}"));
    }
}

fn item_73_te_is_trailers_or_ends_the_stream(driver: Driver) {
    let hop = Hop::new(driver);
    for value in ["gzip", "trailers, gzip", "gzip, trailers", "deflate", "chunked", ""] {
        hop.resets(&get_with(&[("te", value)]), &format!("te: {value}"));
    }
    let mut client = hop.connect();
    let stream = client.request(&[&get("echo", "/")[..], &[("te", "trailers")]].concat(), true);
    client.response(stream).expect(200);
    assert_eq!(hop.application.received().last().unwrap().fields.value("te"), Some("trailers"));
}

fn item_74_host_and_authority_are_one(driver: Driver) {
    let hop = Hop::new(driver);
    for host in ["other", "echo:81", "echo.", "echo2", "", "ech"] {
        hop.resets(&get_with(&[("host", host)]), &format!("host: {host}"));
    }
    hop.resets(&get_with(&[("host", "echo"), ("host", "echo")]), "two Hosts");
    hop.resets(&get_with(&[("host", "echo"), ("host", "other")]), "two Hosts that differ");
    let mut client = hop.connect();
    let stream = client.request(&[&get("echo", "/same")[..], &[("host", "echo")]].concat(), true);
    client.response(stream).expect(200);
    let only_host = [(":method", "GET"), (":scheme", "http"), (":path", "/host"), ("host", "echo")];
    let stream = client.request(&only_host, true);
    client.response(stream).expect(200);
    for message in hop.application.received().iter().filter(|m| m.fields.value(":path") != Some("/behind")) {
        assert_eq!(message.fields.value(":authority"), Some("echo"), "{message:?}");
        assert!(!message.fields.has("host"), "{message:?}");
    }
}

fn item_75_a_scheme_that_is_none_is_400(driver: Driver) {
    let hop = Hop::new(driver);
    for scheme in ["http://x/?", "ftp", "http:", "httpx", "", "ht tp", "http\r\n"] {
        let fields = [(":method", "GET"), (":scheme", scheme), (":authority", "echo"), (":path", "/bad")];
        hop.rejects(&block(&fields), &format!("{scheme:?}"));
    }
}

/// Requests whose frames belie their length, by name: what follows a head that is not the last frame. The first three have all
/// that was announced before they lie: to whoever forwards as it comes they are whole by then.
fn belied(stream: u32) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let trailers = frames::headers(stream, block(&[("x-end", "here")]), true);
    let in_two = [frames::data(stream, "123", false), frames::data(stream, "4", true)].concat();
    let then_empty = [frames::data(stream, "four", false), frames::data(stream, "", true)].concat();
    vec![
        ("some where there is none", "0", frames::data(stream, "four", true)),
        ("more, in two frames", "3", in_two),
        ("nothing, then more", "3", [frames::data(stream, "123", false), frames::data(stream, "45", false)].concat()),
        ("more", "3", frames::data(stream, "four", true)),
        ("more, no end", "3", frames::data(stream, "four", false)),
        ("less", "5", frames::data(stream, "four", true)),
        ("less, then an empty frame", "5", then_empty),
        ("none", "5", frames::data(stream, "", true)),
        ("less, then trailers", "5", [&frames::data(stream, "four", false)[..], &trailers].concat()),
        ("only trailers", "5", trailers),
    ]
}

fn item_76_a_length_that_the_frames_belie_ends_the_stream(driver: Driver) {
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        for at in 0..belied(0).len() {
            let stream = client.new_stream();
            let (what, length, frames) = belied(stream).swap_remove(at);
            let head = block(&[&request("POST", "echo", "/bad")[..], &[("content-length", length)]].concat());
            client.send([frames::headers(stream, head, false), frames].concat());
            let answer = client.response(stream);
            assert_eq!((answer.reset, answer.fields.0.len()), (Some(code::PROTOCOL_ERROR), 0), "{what}: {answer:?}");
        }
        client.get("echo", "/behind").expect(200);
    }
    for length in ["1", "5"] {
        let mut client = hop.connect();
        let head = block(&[&request("POST", "echo", "/bad")[..], &[("content-length", length)]].concat());
        let stream = client.new_stream();
        client.send(frames::headers(stream, head, true));
        client.response(stream).expect_reset(code::PROTOCOL_ERROR);
    }
    for lengths in
        [&["4", "4"][..], &["4", "5"], &["4, 4"], &["+4"], &["-0"], &["0x4"], &[""], &["18446744073709551616"]]
    {
        let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
        hop.resets(&[block(&request("POST", "echo", "/bad")), block(&fields)].concat(), &format!("{lengths:?}"));
    }
    for message in hop.application.received().iter().filter(|message| message.ended) {
        let path = message.fields.value(":path");
        assert!(path == Some("/behind") || may_seem_whole(&message.fields, &message.body), "{message:?}");
    }
}

/// The first three of [`belied`], as far as they were announced.
fn may_seem_whole(fields: &FieldLines, body: &[u8]) -> bool {
    matches!((fields.value("content-length"), body), (Some("0"), b"") | (Some("3"), b"123"))
}

fn item_76_the_upstream_of_a_belied_length_is_never_told_an_end(driver: Driver) {
    let upstream = Upstream::answering(|request| ok(request.target()));
    let sidecar = Sidecar::configured(
        driver,
        upstream,
        |builder| builder,
        |world, cluster| {
            world.protocol(cluster, UpstreamProtocol::Http1);
        },
    );
    for at in 0..belied(0).len() {
        let mut client = Connection::connect(sidecar.outbound());
        let stream = client.new_stream();
        let (what, length, frames) = belied(stream).swap_remove(at);
        let head = block(&[&request("POST", "echo", "/bad")[..], &[("content-length", length)]].concat());
        client.send([frames::headers(stream, head, false), frames].concat());
        let answer = client.response(stream);
        assert_eq!((answer.reset, answer.fields.0.len()), (Some(code::PROTOCOL_ERROR), 0), "{what}: {answer:?}");
        client.get("echo", "/behind").expect(200);
    }
    for request in sidecar.upstream.received() {
        assert!(request.target() == "/behind" || may_seem_whole(&request.fields, &request.body), "{request:?}");
        // What lied about its length leaves nothing behind that another request could be mixed up with.
        assert!(matches!(request.line.as_str(), "GET /behind HTTP/1.1" | "POST /bad HTTP/1.1"), "{request:?}");
    }
}

fn cve_2026_42926_a_body_is_never_taken_for_frames(driver: Driver) {
    let hop = Hop::new(driver);
    let smuggled = block(&[(":method", "GET"), (":scheme", "http"), (":authority", "echo"), (":path", "/smuggled")]);
    // Frames that end the request's own stream, and begin another; behind enough bytes to be first in a frame of the proxy's, too.
    let frames =
        [frames::data(1, "", true), frames::headers(3, smuggled, true), frames::settings(&[]), frames::reset(1, 8)]
            .concat();
    for body in [frames.clone(), [&vec![b'x'; 16_384][..], &frames].concat(), frames.repeat(2_000)] {
        let length = body.len().to_string();
        let head = request_http1("POST", "echo", "/", &[("content-length", &length)]);
        let chunks = [format!("{length:x}\r\n", length = body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        let chunked_head = request_http1("POST", "echo", "/", &[("transfer-encoding", "chunked")]);
        for message in [[&head[..], &body].concat(), [&chunked_head[..], &chunks].concat()] {
            let mut client = hop.proxy.connect();
            assert!(client.send(message).response().expect(200).body == body);
        }
        let mut client = hop.connect();
        let stream = client.request(&request("POST", "echo", "/"), false);
        client.body(stream, &body, true);
        assert!(client.response(stream).body == body);
    }
    for message in hop.application.received() {
        assert_eq!(message.fields.value(":path"), Some("/"));
        assert!(message.ended && message.reset.is_none());
    }
    assert_eq!(hop.application.received().len(), 9);
}
