//! HTTP/1.1 and HTTP/2 on either side of the proxy, in plain text and with TLS, with clients and servers that others wrote.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    alone,
    binaries::is_installed,
    checklist::Sidecar,
    client::Client,
    frames::{self, block, code, headers},
    generate::{assert_same_bytes, body},
    h2::{self, Connection, get},
    h2_application::{Application, Hop, bilingual},
    on_both_drivers,
    peers::{self, Server},
    pki::Leaf,
    ports::Reserved,
    process::Process,
    proxy::{Driver, Proxy},
    table::{World, rule},
    tls::{Mesh, peer_authentication},
    upstream::Upstream,
    wait,
};
use tempfile::TempDir;

on_both_drivers! {
    what_is_spoken_upstream_is_what_the_table_says
    requests_of_many_clients_share_connections
    no_connection_has_more_streams_than_its_server_takes
    curl_uploads_and_downloads_byte_exact_in_any_mix
    nghttpd_is_a_fine_upstream
    h2load_sees_no_failures
    hyper_h2_finds_no_fault_at_either_end
    trailers_and_interim_responses_pass_in_any_mix
    resets_pass_in_both_directions
    a_response_that_breaks_the_rules_is_502
}

/// `echo` is these servers, spoken to in this version.
fn table(address: SocketAddr, protocol: UpstreamProtocol) -> Vec<u8> {
    let mut world = World::new();
    let cluster = world.cluster("echo", &[address]);
    world.protocol(cluster, protocol);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(action)]);
    world.snapshot()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// The version that the server was asked in: by a client of HTTP/1.1, and by one of HTTP/2.
#[track_caller]
fn spoken(address: SocketAddr, authority: &str) -> [String; 2] {
    let first = Client::connect(address).get(authority, "/");
    let second = Connection::connect(address).get(authority, "/");
    [first.expect(200).fields.value("x-spoken"), second.expect(200).fields.value("x-spoken")]
        .map(|version| version.unwrap_or_default().to_owned())
}

fn what_is_spoken_upstream_is_what_the_table_says(driver: Driver) {
    let application = bilingual();
    for (protocol, expected) in [
        (UpstreamProtocol::Http1, ["HTTP/1.1", "HTTP/1.1"]),
        (UpstreamProtocol::Http2, ["HTTP/2", "HTTP/2"]),
        (UpstreamProtocol::Downstream, ["HTTP/1.1", "HTTP/2"]),
    ] {
        let snapshot = table(application.address(), protocol);
        let proxy = Proxy::alone_with(&snapshot, |builder| builder.driver(driver).inbound(application.address()));
        assert_eq!(spoken(proxy.outbound(), "echo"), expected, "{protocol:?}");
        // Nobody has said what this application speaks.
        assert_eq!(spoken(proxy.inbound()[0], "echo"), ["HTTP/1.1", "HTTP/2"]);
    }
}

fn requests_of_many_clients_share_connections(driver: Driver) {
    const REQUESTS: usize = 60;
    // Answers none of them before all are here.
    let upstream = Upstream::scripted(|peer| {
        let Some(mut connection) = Connection::accept(peer.stream(), &h2::Opening::default()) else { return };
        let mut waiting = Vec::new();
        while let Some((stream, _)) = connection.next_request() {
            waiting.push(stream);
            if waiting.len() == REQUESTS {
                for stream in waiting.drain(..) {
                    connection.send(headers(stream, block(&[(":status", "200")]), true));
                }
            }
        }
    });
    let proxy = Proxy::alone(&table(upstream.address(), UpstreamProtocol::Http2), driver);
    let mut second: Vec<_> = (0..2).map(|_| Connection::connect(proxy.outbound())).collect();
    let mut first: Vec<_> = (0..20).map(|_| proxy.connect()).collect();
    let streams: Vec<_> = second
        .iter_mut()
        .map(|client| (0..20).map(|_| client.request(&get("echo", "/"), true)).collect::<Vec<_>>())
        .collect();
    for client in &mut first {
        client.send("GET / HTTP/1.1\r\nhost: echo\r\n\r\n");
    }
    for (client, streams) in second.iter_mut().zip(streams) {
        for stream in streams {
            client.response(stream).expect(200);
        }
    }
    for client in &mut first {
        client.response().expect(200);
    }
    assert_eq!(upstream.connections(), 1, "one worker has one connection to an endpoint");
}

fn no_connection_has_more_streams_than_its_server_takes(driver: Driver) {
    const REQUESTS: usize = 8;
    const STREAMS: usize = 2;
    let arrived = Arc::<AtomicUsize>::default();
    let come = Arc::clone(&arrived);
    let upstream = Upstream::scripted(move |peer| {
        let opening = h2::Opening::default().with(frames::MAX_CONCURRENT_STREAMS, STREAMS as u32);
        let Some(mut connection) = Connection::accept(peer.stream(), &opening) else { return };
        let mut waiting = Vec::new();
        while let Some((stream, message)) = connection.next_request() {
            if message.fields.value(":path") != Some("/first") {
                come.fetch_add(1, Ordering::SeqCst);
                waiting.push(stream);
                if waiting.len() < STREAMS {
                    continue;
                }
                // Reads no more before all are here: one beyond what it takes would never be counted.
                wait::until("all requests", || (come.load(Ordering::SeqCst) == REQUESTS).then_some(()));
            } else {
                waiting.push(stream);
            }
            for stream in waiting.drain(..) {
                connection.send(headers(stream, block(&[(":status", "200")]), true));
            }
        }
    });
    let proxy = Proxy::alone(&table(upstream.address(), UpstreamProtocol::Http2), driver);
    let mut client = Connection::connect(proxy.outbound());
    // From here on it knows how many the server takes.
    client.get("echo", "/first").expect(200);
    let streams: Vec<_> = (0..REQUESTS).map(|_| client.request(&get("echo", "/"), true)).collect();
    for stream in streams {
        client.response(stream).expect(200);
    }
    assert_eq!(upstream.connections(), REQUESTS / STREAMS);
}

fn curl_uploads_and_downloads_byte_exact_in_any_mix(driver: Driver) {
    if !is_installed("curl") {
        return;
    }
    let application = bilingual();
    let data = body(4, 3_000_000);
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let proxy = Proxy::alone(&table(application.address(), protocol), driver);
        let (up, down) = (proxy.dir().join("up"), proxy.dir().join("down"));
        fs::write(&up, &data).unwrap();
        let url = format!("http://{}/file", proxy.outbound());
        for (version, shown) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
            let paths = ["-T", up.to_str().unwrap(), "-o", down.to_str().unwrap(), &url, &url, "-o", "/dev/null"];
            let arguments =
                ["-sS", "--fail", "--max-time", "20", "-H", "host: echo", "-w", "%{http_version}\n", version];
            let output = run("curl", &[&arguments[..], &paths[..5]].concat());
            assert!(output.status.success(), "{protocol:?} {version}: {}", text(&output.stderr));
            assert_eq!(text(&output.stdout), format!("{shown}\n"), "{protocol:?}");
            assert_same_bytes(&fs::read(&down).unwrap(), &data);
            // An upload of unknown length.
            let chunked = ["-H", "transfer-encoding: chunked", "-H", "expect:"];
            let extra: &[&str] = if version == "--http1.1" { &chunked } else { &[] };
            let output = run("curl", &[&arguments[..], extra, &paths[..5]].concat());
            assert!(output.status.success(), "{protocol:?} {version}: {}", text(&output.stderr));
            assert_same_bytes(&fs::read(&down).unwrap(), &data);
        }
    }
}

/// nghttpd that serves a directory in plain text.
fn nghttpd(dir: &Path, arguments: &[&str]) -> (Process, SocketAddr) {
    let reserved = Reserved::new();
    let address = reserved.address();
    drop(reserved);
    let mut command = Command::new("nghttpd");
    command.args(["--no-tls", "-d"]).arg(dir).args(arguments).args(["-a", "127.0.0.1", &address.port().to_string()]);
    let process = Process::start("nghttpd", &mut command);
    wait::until("nghttpd", || TcpStream::connect(address).ok());
    (process, address)
}

fn nghttpd_is_a_fine_upstream(driver: Driver) {
    if !is_installed("nghttpd") || !is_installed("nghttp") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let data = body(5, 1_500_000);
    fs::write(dir.path().join("file"), &data).unwrap();
    let (_server, address) = nghttpd(dir.path(), &["--trailer", "x-end: here"]);
    let proxy = Proxy::alone(&table(address, UpstreamProtocol::Http2), driver);
    for _ in 0..3 {
        let response = proxy.connect().get("echo", "/file");
        assert_same_bytes(&response.expect(200).body, &data);
        proxy.connect().get("echo", "/missing").expect(404);
    }
    let mut client = Connection::connect(proxy.outbound());
    let streams: Vec<_> = (0..10).map(|_| client.request(&get("echo", "/file"), true)).collect();
    for stream in streams {
        let response = client.response(stream);
        assert_same_bytes(&response.expect(200).body, &data);
        assert_eq!(response.trailers.value("x-end"), Some("here"));
    }
    let url = format!("http://{}/file", proxy.outbound());
    let output = run("nghttp", &["-nv", "-H", ":authority: echo", "-m", "5", &url]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches(":status: 200").count(), 5, "{said}");
    assert_eq!(said.matches("x-end: here").count(), 5, "{said}");
}

fn h2load_sees_no_failures(driver: Driver) {
    if !is_installed("h2load") {
        return;
    }
    let _alone = alone();
    let application = bilingual();
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let proxy = Proxy::alone(&table(application.address(), protocol), driver);
        let connect_to = format!("--connect-to={}", proxy.outbound());
        for version in [&[][..], &["--h1"]] {
            let arguments = ["-n", "4000", "-c", "8", "-m", "20", &connect_to, "http://echo/"];
            let said = text(&run("h2load", &[version, &arguments].concat()).stdout);
            let all = "4000 total, 4000 started, 4000 done, 4000 succeeded, 0 failed, 0 errored, 0 timeout";
            assert!(said.contains(all) && said.contains("4000 2xx"), "{protocol:?} {version:?}: {said}");
        }
    }
}

fn hyper_h2_finds_no_fault_at_either_end(driver: Driver) {
    let Some(python) = peers::python() else { return };
    let server = Server::start(&python, "h2_peer.py", &[]);
    let proxy = Proxy::alone(&table(server.address, UpstreamProtocol::Http2), driver);
    for (streams, size) in [("1", "3000000"), ("50", "100000"), ("400", "0"), ("300", "1")] {
        let arguments = [&proxy.outbound().to_string(), "echo", streams, size];
        let seen = peers::run(&python, "h2_peer.py", &arguments);
        assert_eq!(seen, [serde_json::json!({"good": streams.parse::<u32>().unwrap()})], "{streams} of {size}");
    }
    assert!(server.told("violation").is_empty(), "{:?}", server.told("violation"));
    assert!(server.told("reset").is_empty(), "{:?}", server.told("reset"));
}

fn trailers_and_interim_responses_pass_in_any_mix(driver: Driver) {
    let second = Application::answering(|connection, stream, message| {
        let hints = block(&[(":status", "103"), ("link", "</style.css>")]);
        connection.send(headers(stream, hints, false));
        let sent = message.trailers.value("x-sent").unwrap_or("none");
        connection.send(headers(stream, block(&[(":status", "200"), ("x-got", sent)]), false));
        connection.send(frames::data(stream, "body", false));
        connection.send(headers(stream, block(&[("x-end", "here"), ("content-length", "4")]), true));
    });
    let first = Upstream::scripted(|peer| {
        while let Some(request) = peer.request() {
            let sent = request.trailers.value("x-sent").unwrap_or("none");
            peer.send("HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n");
            peer.send(format!("HTTP/1.1 200 OK\r\nx-got: {sent}\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n"));
            peer.send("0\r\nx-end: here\r\ncontent-length: 4\r\n\r\n");
        }
    });
    for (address, protocol) in [(second.address(), UpstreamProtocol::Http2), (first.address(), UpstreamProtocol::Http1)]
    {
        let proxy = Proxy::alone(&table(address, protocol), driver);
        let mut client = Connection::connect(proxy.outbound());
        let fields = [&h2::request("POST", "echo", "/")[..], &[("te", "trailers")]].concat();
        let stream = client.request(&fields, false);
        client.body(stream, b"up", false);
        client.send(headers(stream, block(&[("x-sent", "trailer")]), true));
        let response = client.response(stream);
        assert_eq!(response.expect(200).fields.value("x-got"), Some("trailer"), "{protocol:?}");
        assert_eq!(response.interim.len(), 1, "{protocol:?}: {response:?}");
        assert_eq!(response.interim[0].value("link"), Some("</style.css>"));
        assert_eq!(response.trailers.value("x-end"), Some("here"), "{protocol:?}: {response:?}");
        assert!(!response.trailers.has("content-length"), "{protocol:?}: {response:?}");

        let mut client = proxy.connect();
        client.send(
            "POST / HTTP/1.1\r\nhost: echo\r\nte: trailers\r\nconnection: te\r\ntransfer-encoding: chunked\r\n\r\n",
        );
        client.send("2\r\nup\r\n0\r\nx-sent: trailer\r\n\r\n");
        assert!(client.head().line.starts_with("HTTP/1.1 103 "), "{protocol:?}");
        let response = client.response();
        assert_eq!(response.expect(200).fields.value("x-got"), Some("trailer"), "{protocol:?}");
        assert_eq!(
            (response.text().as_str(), response.trailers.value("x-end")),
            ("body", Some("here")),
            "{protocol:?}"
        );
    }
}

fn resets_pass_in_both_directions(driver: Driver) {
    // Requests that say so are held or broken off.
    let application =
        Application::answering(|connection, stream, message| match message.fields.value(":path").unwrap_or_default() {
            "/held" => {}
            "/broken" => {
                connection.send(headers(stream, block(&[(":status", "200"), ("content-length", "9")]), false));
                connection.send(frames::data(stream, "part", false));
                connection.send(frames::reset(stream, code::INTERNAL_ERROR));
            }
            "/refused" => {
                connection.send(frames::reset(stream, code::INTERNAL_ERROR));
            }
            _ => {
                connection.send(headers(stream, block(&[(":status", "200")]), true));
            }
        });
    let hop = Hop::before(driver, application);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        let stream = client.request(&h2::request("POST", "echo", "/broken"), true);
        let answer = client.response(stream);
        // What came just before a reset may be lost with it.
        assert!(!answer.ended && b"part".starts_with(&answer.body), "passed off as whole: {answer:?}");
        assert_eq!(answer.reset, Some(code::INTERNAL_ERROR), "{answer:?}");
        let stream = client.request(&h2::request("POST", "echo", "/refused"), true);
        assert_eq!(client.response(stream).status(), 502);
        // The client gives up, before and after the end of its request.
        let before = hop.application.received().len();
        let stream = client.request(&h2::request("POST", "echo", "/given-up"), false);
        client.body(stream, b"some", false);
        client.settle();
        client.send(frames::reset(stream, code::CANCEL));
        let given_up = hop.application.wait_for(before + 1).pop().unwrap();
        assert!(!given_up.ended, "passed off as whole: {given_up:?}");
        assert_eq!(given_up.reset, Some(code::CANCEL), "{given_up:?}");
        client.get("echo", "/behind").expect(200);
    }
    assert!(hop.application.upstream.connections() <= 2, "a reset stream costs its connection");
    // With HTTP/1.1 before it, a response that breaks off has no end.
    let mut client = hop.proxy.connect();
    client.send("GET /broken HTTP/1.1\r\nhost: echo\r\n\r\n");
    assert!(client.try_response("GET").is_err());
}

fn a_response_that_breaks_the_rules_is_502(driver: Driver) {
    let application = Application::answering(|connection, stream, message| {
        let ok = (":status", "200");
        let path = message.fields.value(":path").unwrap_or_default();
        let (fields, body): (&[(&str, &str)], &str) = match path {
            "/upper" => (&[ok, ("X-Upper", "v")], ""),
            "/connection" => (&[ok, ("connection", "close")], ""),
            "/chunked" => (&[ok, ("transfer-encoding", "chunked")], ""),
            "/upgrade" => (&[ok, ("upgrade", "h2c")], ""),
            "/status-missing" => (&[("x-a", "v")], ""),
            "/status-twice" => (&[ok, ok], ""),
            "/status-late" => (&[("x-a", "v"), ok], ""),
            "/status-long" => (&[(":status", "2000")], ""),
            "/status-101" => (&[(":status", "101")], ""),
            "/crlf" => (&[ok, ("x-a", "b\r\nx-c: d")], ""),
            "/nul" => (&[ok, ("x-a", "b\0c")], ""),
            "/empty" => (&[ok, ("", "b")], ""),
            "/lengths" => (&[ok, ("content-length", "3"), ("content-length", "4")], "four"),
            "/length" => (&[ok, ("content-length", "+4")], "four"),
            _ => (&[ok], ""),
        };
        connection.send(headers(stream, block(fields), body.is_empty()));
        if !body.is_empty() {
            let _ = connection.try_send(frames::data(stream, body, true));
        }
    });
    let hop = Hop::before(driver, application);
    let paths = "/upper /connection /chunked /upgrade /status-missing /status-twice /status-late /status-long \
                 /status-101 /crlf /nul /empty /lengths /length";
    let mut client = hop.connect();
    for path in paths.split_whitespace() {
        let response = client.get("echo", path);
        assert_eq!((response.status(), response.ended), (502, true), "{path}: {response:?}");
        assert_eq!(hop.proxy.connect().get("echo", path).status, 502, "{path}");
        client.get("echo", "/behind").expect(200);
    }
}

// ---- TLS ----------------------------------------------------------------------------------------------------------

fn service(name: &str, address: SocketAddr, port: &str) -> String {
    let (ip, number) = (address.ip(), address.port());
    let (port_name, protocol) = port.split_once(' ').unwrap();
    let protocol = if protocol.is_empty() { String::new() } else { format!(", protocol: {protocol}") };
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9090, name: {port_name}{protocol}}}]
  endpoints:
  - address: {ip}
    ports: {{{port_name}: {number}}}
    labels: {{app: reviews, security.istio.io/tlsMode: istio}}
    serviceAccount: reviews
"
    )
}

#[test]
fn port_names_decide_what_two_sidecars_with_mutual_tls_speak() {
    let application = bilingual();
    let strict = peer_authentication("STRICT", "");
    let mesh = Mesh::start(Driver::Auto, &[application.address()], &[("mode.yaml", &strict)]);
    let inbound = mesh.inbound();
    let cases = [
        ("first", "http HTTP", ["HTTP/1.1", "HTTP/1.1"]),
        ("second", "http2 HTTP2", ["HTTP/2", "HTTP/2"]),
        ("third", "grpc-any GRPC", ["HTTP/2", "HTTP/2"]),
    ];
    let all: String = cases.iter().map(|(name, port, _)| service(name, inbound, port)).collect();
    mesh.change("mixes.yaml", &all);
    for (name, port, expected) in cases {
        assert_eq!(spoken(mesh.client.outbound(), &format!("{name}:9090")), expected, "{port}");
    }
}

#[test]
fn a_client_with_tls_chooses_its_version_by_alpn() {
    if !is_installed("curl") || !is_installed("openssl") {
        return;
    }
    let application = bilingual();
    let strict = peer_authentication("STRICT", "");
    let mesh = Mesh::start(Driver::Auto, &[application.address()], &[("mode.yaml", &strict)]);
    let dir = TempDir::new().unwrap();
    let (certificate, key) = mesh.authority.issue(&Leaf::workload("visitor")).write(dir.path(), "visitor");
    let data = body(7, 2_000_000);
    let (up, down) = (dir.path().join("up"), dir.path().join("down"));
    fs::write(&up, &data).unwrap();
    let url = format!("https://{}/file", mesh.inbound());
    for (version, shown) in [("--http1.1", "1.1"), ("--http2", "2"), ("--no-alpn", "1.1")] {
        let files = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
        let paths = ["-T", up.to_str().unwrap(), "-o", down.to_str().unwrap(), "-w", "%{http_version}", &url];
        let arguments = ["-sS", "--insecure", "--fail", "--max-time", "20", "-H", "host: reviews", version];
        let output = run("curl", &[&arguments[..], &files, &paths].concat());
        assert!(output.status.success(), "{version}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), shown, "{version}");
        assert_same_bytes(&fs::read(&down).unwrap(), &data);
    }
}

#[test]
fn an_application_of_http_1_is_never_asked_in_http_2() {
    // A server of HTTP/1.1 that is told apart from a proxy's error by its words.
    let sidecar = Sidecar::configured(
        Driver::Auto,
        Upstream::saying("only HTTP/1.1"),
        |builder| builder,
        |world, cluster| world.protocol(cluster, UpstreamProtocol::Http1),
    );
    let mut client = Connection::connect(sidecar.outbound());
    for _ in 0..3 {
        assert_eq!(client.get("echo", "/").expect(200).text(), "only HTTP/1.1");
    }
    assert_eq!(sidecar.upstream.connections(), 1);
}
