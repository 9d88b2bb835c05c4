//! What the log says of what is refused and of what fails: a stable short code, one line for a connection and code, and not
//! more than one a second.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::time::{Duration, Instant};

use meshring_tests::{
    checklist::Sidecar,
    client::{Client, request},
    frames::{PING, block, data, frame, headers},
    h2::Connection,
    h2_application::{Application, Hop},
    on_both_drivers,
    ports::Reserved,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::{Upstream, ok},
    wait,
};

on_both_drivers! {
    upstream_answers_that_are_none_are_named_by_their_codes
    upstream_answers_over_http_2_that_are_none_are_named_by_their_codes
    a_connection_of_http_2_that_breaks_the_rules_is_named_by_its_code
    upstreams_that_are_not_there_are_named_by_their_codes
    requests_that_lead_nowhere_are_named_by_their_codes
    a_connection_with_many_refusals_has_one_line
    streams_share_the_line_of_their_connection
    each_outage_has_a_line
    what_has_no_line_is_counted_in_the_next_one
}

/// How long a code has no second line, and a little more.
const INTERVAL: Duration = Duration::from_millis(1_100);

/// The lines about a code.
fn lines(proxy: &Proxy, code: &str) -> Vec<String> {
    let code = format!("code=\"{code}\"");
    proxy.process.output().lines().filter(|line| line.contains(&code)).map(str::to_owned).collect()
}

/// How many a line says came without one before it.
fn unlogged(line: &str) -> u64 {
    let (_, rest) = line.split_once("unlogged=").unwrap();
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

/// Waits until there are so many lines about a code.
fn wait_for_lines(proxy: &Proxy, code: &str, count: usize) -> Vec<String> {
    wait::until(&format!("{count} lines about {code}"), || {
        let lines = lines(proxy, code);
        (lines.len() >= count).then_some(lines)
    })
}

/// Asks again and again, for longer than a code has no second line. Gives the number of requests.
fn ask_for_a_while(mut ask: impl FnMut()) -> u64 {
    let started = Instant::now();
    let mut asked = 0;
    while started.elapsed() < 2 * INTERVAL {
        ask();
        asked += 1;
    }
    asked
}

fn upstream_answers_that_are_none_are_named_by_their_codes(driver: Driver) {
    let answers = [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            "upstream_http1.length_with_encoding",
        ),
        ("HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n", "upstream_http1.obs_fold"),
        ("HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n", "upstream_http1.nul"),
        ("HTTP/1.1 101 Fine\r\nupgrade: x\r\n\r\n", "upstream_http1.unsolicited_upgrade"),
        ("", "upstream.no_response"),
        ("HTTP/1.1 200 O", "upstream.cut_head"),
        // These break off behind their head.
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n+5\r\n", "upstream_http1.chunk_size"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloworld", "upstream_http1.chunk_data_end"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx y\r\n\r\n", "upstream_http1.trailer"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello", "upstream_http1.truncated_body"),
    ];
    let upstream = Upstream::scripted(move |peer| {
        let Some(request) = peer.request() else { return };
        peer.send(answers[request.target()[1..].parse::<usize>().unwrap()].0);
    });
    let sidecar = Sidecar::before(driver, upstream);
    for (number, (answer, code)) in answers.iter().enumerate() {
        let mut client = sidecar.proxy.connect();
        client.send(request("GET", "echo", &format!("/{number}"), &[]));
        if let Ok(response) = client.try_response("GET") {
            let text = response.expect(502).text();
            assert!(text.starts_with(&format!("meshring: Bad Gateway ({code}): ")), "{answer:?}: {text}");
        }
        let line = wait_for_lines(&sidecar.proxy, code, 1).remove(0);
        assert!(line.contains(&sidecar.upstream.address().to_string()), "{line}");
        assert!(line.contains(&format!("peer=\"{}\"", client.stream().local_addr().unwrap())), "{line}");
    }
}

fn upstream_answers_over_http_2_that_are_none_are_named_by_their_codes(driver: Driver) {
    let application = Application::answering(|connection, stream, message| {
        let ok = (":status", "200");
        let (fields, rest): (&[(&str, &str)], Vec<u8>) = match message.fields.value(":path").unwrap_or_default() {
            "/uppercase_name" => (&[ok, ("X-A", "v")], Vec::new()),
            "/te" => (&[ok, ("te", "trailers")], Vec::new()),
            "/bad_status" => (&[(":status", "700")], Vec::new()),
            // The head may have been passed on when this comes.
            _ => (&[ok, ("content-length", "3")], data(stream, "four", true)),
        };
        let _ = connection.try_send([headers(stream, block(fields), rest.is_empty()), rest].concat());
    });
    let hop = Hop::before(driver, application);
    let address = hop.application.address().to_string();
    for name in ["uppercase_name", "te", "bad_status", "length_mismatch"] {
        let (path, code) = (format!("/{name}"), format!("upstream_http2.{name}"));
        let mut client = hop.proxy.connect();
        client.send(request("GET", "echo", &path, &[]));
        if let Ok(response) = client.try_response("GET") {
            let text = response.expect(502).text();
            assert!(text.starts_with(&format!("meshring: Bad Gateway ({code}): {address}: ")), "{text}");
        }
        let line = wait_for_lines(&hop.proxy, &code, 1).remove(0);
        assert!(line.contains(&format!("peer=\"{}\"", client.stream().local_addr().unwrap())), "{line}");
        assert!(line.contains(&address), "{line}");
    }
    for unnamed in ["upstream.no_response", "upstream.reset"] {
        assert!(lines(&hop.proxy, unnamed).is_empty(), "{}", hop.proxy.process.output());
    }
}

fn a_connection_of_http_2_that_breaks_the_rules_is_named_by_its_code(driver: Driver) {
    let application = Application::answering(|connection, _, _| {
        let _ = connection.try_send(frame(PING, 0, 0, b"short"));
    });
    let hop = Hop::before(driver, application);
    let response = hop.proxy.connect().get("echo", "/");
    let text = response.expect(502).text();
    assert!(text.contains("(upstream_http2.connection): ") && text.contains("FRAME_SIZE_ERROR"), "{text}");
    wait_for_lines(&hop.proxy, "upstream_http2.connection", 1);
}

fn upstreams_that_are_not_there_are_named_by_their_codes(driver: Driver) {
    let refusing = Reserved::new();
    let mut world = World::new();
    for (name, endpoints) in [("empty", &[][..]), ("gone", &[refusing.address()])] {
        let cluster = world.cluster(name, endpoints);
        let action = world.forward(&[(cluster, 1)]);
        world.host(name, vec![rule(action)]);
    }
    let proxy = Proxy::alone(&world.snapshot(), driver);
    let mut client = proxy.connect();
    for (host, code) in [("empty", "no_endpoint"), ("gone", "connect_failed")] {
        let text = client.get(host, "/").expect(503).text();
        assert!(text.contains(&format!("({code})")), "{text}");
        wait_for_lines(&proxy, code, 1);
    }
    assert!(lines(&proxy, "connect_failed")[0].contains(&refusing.address().to_string()));
}

fn requests_that_lead_nowhere_are_named_by_their_codes(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    sidecar.proxy.connect().get("nobody", "/").expect(404);
    let line = wait_for_lines(&sidecar.proxy, "no_route", 1).remove(0);
    assert!(line.contains("nobody"), "{line}");
    sidecar.proxy.connect().send("CONNECT echo:80 HTTP/1.1\r\nhost: echo:80\r\n\r\n").response().expect(405);
    wait_for_lines(&sidecar.proxy, "connect_not_configured", 1);
}

fn a_connection_with_many_refusals_has_one_line(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let mut client = sidecar.proxy.connect();
    let refused = ask_for_a_while(|| drop(client.get("nobody", "/").expect(404).text()));
    // What is good in between does not make it new.
    client.get("echo", "/").expect(200);
    client.get("nobody", "/").expect(404);
    let mut other = sidecar.proxy.connect();
    other.get("nobody", "/").expect(404);
    let lines = wait_for_lines(&sidecar.proxy, "no_route", 2);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert_eq!((unlogged(&lines[0]), unlogged(&lines[1])), (0, refused), "{lines:#?}");
    for (line, client) in lines.iter().zip([&client, &other]) {
        assert!(line.contains(&format!("peer=\"{}\"", client.stream().local_addr().unwrap())), "{line}");
    }
}

fn streams_share_the_line_of_their_connection(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let mut client = Connection::connect(sidecar.outbound());
    let refused = ask_for_a_while(|| drop(client.get("nobody", "/").expect(404).text()));
    Connection::connect(sidecar.outbound()).get("nobody", "/").expect(404);
    let lines = wait_for_lines(&sidecar.proxy, "no_route", 2);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert_eq!((unlogged(&lines[0]), unlogged(&lines[1])), (0, refused - 1), "{lines:#?}");
}

fn each_outage_has_a_line(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        while let Some(request) = peer.request() {
            if request.target() == "/bad" {
                return;
            }
            peer.send(ok("good"));
        }
    });
    let sidecar = Sidecar::before(driver, upstream);
    let mut client = sidecar.proxy.connect();
    let failed = ask_for_a_while(|| {
        drop(client.send(request("POST", "echo", "/bad", &[("content-length", "0")])).response().expect(502).text())
    });
    assert_eq!(wait_for_lines(&sidecar.proxy, "upstream.no_response", 1).len(), 1);
    client.get("echo", "/good").expect(200);
    client.send(request("POST", "echo", "/bad", &[("content-length", "0")])).response().expect(502);
    let lines = wait_for_lines(&sidecar.proxy, "upstream.no_response", 2);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert_eq!((unlogged(&lines[0]), unlogged(&lines[1])), (0, failed - 1), "{lines:#?}");
}

fn what_has_no_line_is_counted_in_the_next_one(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    let mut peers = Vec::new();
    // Many connections, each refused once.
    let lines = wait::until("three lines", || {
        for _ in 0..10 {
            let mut client = Client::connect(sidecar.outbound());
            peers.push(format!("peer=\"{}\"", client.stream().local_addr().unwrap()));
            client.get("nobody", "/").expect(404);
        }
        let lines = lines(&sidecar.proxy, "no_route");
        (lines.len() >= 3).then_some(lines)
    });
    assert_eq!(unlogged(&lines[0]), 0, "{lines:#?}");
    let mut accounted = 0;
    for line in &lines {
        accounted += usize::try_from(unlogged(line)).unwrap() + 1;
        assert!(line.contains(&peers[accounted - 1]), "the line of refusal {accounted}: {line}");
    }
    assert!(accounted > 2 * lines.len(), "{accounted} refusals in {} lines", lines.len());
}
