//! An upgrade to WebSocket goes through when the upstream accepts it, and not a byte of it before.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    env,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use meshring_tests::{
    binaries::tool_is_missing,
    checklist::{Sidecar, contains, expect_bytes, own_lines, with_lines},
    client::{Client, request},
    on_both_drivers,
    proxy::Driver,
    tls::{Mesh, peer_authentication},
    tunnel::{Application, Ends, HANDSHAKE, SWITCH, Way},
    upstream::{Upstream, response},
};

on_both_drivers! {
    a_handshake_goes_through_byte_by_byte
    item_54_bytes_behind_the_handshake_wait_for_the_101
    bytes_behind_the_101_reach_the_client
    interim_responses_come_before_the_101
    a_refused_handshake_is_answered_as_any_request
    a_handshake_is_sent_once
    a_tunnel_carries_no_other_requests
    the_library_websockets_talks_through_two_sidecars
}

/// The handshake as it leaves the first sidecar.
fn forwarded() -> Vec<u8> {
    let (start, rest) = HANDSHAKE.split_once("Connection: Upgrade\r\nUpgrade: websocket\r\n").unwrap();
    let keys = rest.strip_suffix("\r\n").unwrap();
    let head = format!("{start}{keys}connection: upgrade\r\nupgrade: websocket\r\n\r\n");
    with_lines(head.as_bytes(), &own_lines())
}

/// And the answer as it reaches the client.
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
    connection: upgrade\r\nupgrade: websocket\r\nvia: 1.1 meshring\r\n\r\n";

/// An upstream that accepts every upgrade and sends back what comes.
fn accepting() -> Upstream {
    Upstream::scripted(|peer| {
        peer.head();
        peer.send(SWITCH);
        loop {
            let bytes = peer.some();
            if bytes.is_empty() || !peer.send(bytes) {
                return;
            }
        }
    })
}

/// A sidecar that knows the upstream as `reviews`, too.
fn sidecar(driver: Driver, upstream: Upstream) -> Sidecar {
    Sidecar::configured(
        driver,
        upstream,
        |builder| builder,
        |world, cluster| {
            let forward = world.forward(&[(cluster, 1)]);
            world.host("reviews", vec![meshring_tests::table::rule(forward)]);
        },
    )
}

fn a_handshake_goes_through_byte_by_byte(driver: Driver) {
    let sidecar = sidecar(driver, accepting());
    let mut client = sidecar.proxy.connect();
    client.send(HANDSHAKE);
    let answer = client.bytes(SWITCHED.len());
    expect_bytes(&answer, SWITCHED.as_bytes(), HANDSHAKE.as_bytes());
    client.send("frames");
    assert_eq!(client.bytes(6), b"frames");
    expect_bytes(&sidecar.received(), &[&forwarded()[..], b"frames"].concat(), HANDSHAKE.as_bytes());
    client.finish_sending();
    client.expect_end();

    // On its last hop, too, and however it is spelled.
    let handshake = HANDSHAKE
        .replace("Connection: Upgrade", "CONNECTION: keep-alive, UPGRADE")
        .replace(": websocket", ":WebSocket ");
    for address in [sidecar.outbound(), sidecar.inbound()] {
        let mut client = Client::connect(address);
        client.send(&handshake);
        assert_eq!(client.head().line, "HTTP/1.1 101 Switching Protocols");
        assert_eq!(client.send("frames").bytes(6), b"frames");
        assert!(contains(&sidecar.received(), b"\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n"));
    }
}

fn item_54_bytes_behind_the_handshake_wait_for_the_101(driver: Driver) {
    let application = Application::start();
    for way in Way::upgrades(driver, &application) {
        let mut client = way.first().connect();
        client.send(format!("{HANDSHAKE}GET /admin HTTP/1.1\r\nhost: reviews\r\n\r\n"));
        let mut upstream = application.accept();
        upstream.head();
        client.send("and more");
        // An interim response that comes back proves that what was sent before it would have come, too.
        upstream.send("HTTP/1.1 103 Early Hints\r\n\r\n");
        assert_eq!(client.head().line, "HTTP/1.1 103 Early Hints");
        upstream.stream().set_nonblocking(true).unwrap();
        let peeked = upstream.stream().peek(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(peeked, Err(std::io::ErrorKind::WouldBlock), "bytes before the 101");
        upstream.stream().set_nonblocking(false).unwrap();
        upstream.send(SWITCH);
        assert_eq!(client.head().line, "HTTP/1.1 101 Switching Protocols");
        let held = b"GET /admin HTTP/1.1\r\nhost: reviews\r\n\r\nand more";
        assert_eq!(upstream.bytes(held.len()), held);
        Ends { client, upstream }.expect_open();
    }
}

fn bytes_behind_the_101_reach_the_client(driver: Driver) {
    let application = Application::start();
    for way in Way::upgrades(driver, &application) {
        let mut client = way.first().connect();
        client.send(HANDSHAKE);
        let mut upstream = application.accept();
        upstream.head();
        upstream.send(format!("{SWITCH}HTTP/1.1 200 OK\r\n\r\n")).finish_sending();
        assert_eq!(client.head().line, "HTTP/1.1 101 Switching Protocols");
        assert_eq!(client.rest().unwrap(), b"HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(client.send("up").stream().peer_addr().unwrap(), way.first().outbound());
        assert_eq!(upstream.bytes(2), b"up");
    }
}

fn interim_responses_come_before_the_101(driver: Driver) {
    let application = Application::start();
    let way = Way::one(driver, &application, |builder| builder);
    let mut client = way.first().connect();
    client.send(HANDSHAKE);
    let mut upstream = application.accept();
    upstream.head();
    upstream.send(format!("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{SWITCH}frames"));
    assert_eq!(client.head().line, "HTTP/1.1 103 Early Hints");
    assert_eq!(client.head().line, "HTTP/1.1 101 Switching Protocols");
    assert_eq!(client.bytes(6), b"frames");
}

fn a_refused_handshake_is_answered_as_any_request(driver: Driver) {
    let upstream = Upstream::answering(|request| {
        let status = if request.target() == "/chat" { 403 } else { 200 };
        response(status, &[("x", "y")], b"the answer")
    });
    let sidecar = sidecar(driver, upstream);
    for address in [sidecar.outbound(), sidecar.inbound()] {
        let mut client = Client::connect(address);
        for _ in 0..2 {
            let answer = client.send(HANDSHAKE).response();
            assert_eq!(answer.expect(403).text(), "the answer");
            assert!(!answer.fields.has("connection") && !answer.fields.has("upgrade"), "{answer:?}");
            client.get("reviews", "/").expect(200);
        }
    }
    // Nobody has changed his protocol: all of it went over one connection.
    sidecar.upstream.expect_reuse();
}

fn a_handshake_is_sent_once(driver: Driver) {
    // It is gone with the connection that took it, even if that was a pooled one.
    let sidecar = sidecar(
        driver,
        Upstream::scripted(|peer| {
            if peer.request().is_some_and(|request| request.target() == "/first") {
                peer.send(response(200, &[], b""));
                peer.request();
            }
        }),
    );
    let mut client = sidecar.proxy.connect();
    client.get("reviews", "/first").expect(200);
    client.send(HANDSHAKE).response().expect(502);
    assert_eq!(sidecar.upstream.received().len(), 2);
}

fn a_tunnel_carries_no_other_requests(driver: Driver) {
    let sidecar = sidecar(driver, accepting());
    let mut client = sidecar.proxy.connect();
    client.send(HANDSHAKE);
    client.head();
    let other = request("GET", "reviews", "/other", &[]);
    assert_eq!(client.send(&other).bytes(other.len()), other, "it is no request in a tunnel");
    // While it is open and when it has ended, others get connections of their own.
    for opened in 2..4 {
        let mut another = sidecar.proxy.connect();
        another.send(HANDSHAKE);
        another.head();
        assert_eq!(sidecar.upstream.connections(), opened);
        client.finish_sending();
        client.expect_end();
        client = another;
    }
}

/// A server of the library `websockets`, until it is dropped.
struct Library {
    child: Child,
    address: SocketAddr,
    // Its end is the server's.
    _stdin: ChildStdin,
}

impl Library {
    /// `None` where it is not installed.
    fn serve() -> Option<Self> {
        let mut child = script()?.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap()));
        let stdin = child.stdin.take().unwrap();
        Some(Self { child, address, _stdin: stdin })
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `tests/judges/websocket.py` with the interpreter of `.ci/setup gate`.
fn script() -> Option<Command> {
    let test = env::current_exe().expect("the path of the running test");
    let found: Option<PathBuf> =
        test.ancestors().map(|dir| dir.join("judges/bin/python")).find(|python| python.is_file());
    if found.is_none() {
        tool_is_missing("no judges; `.ci/setup gate` installs them");
    }
    let mut command = Command::new(found?);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("judges/websocket.py"));
    Some(command)
}

fn the_library_websockets_talks_through_two_sidecars(driver: Driver) {
    let (Some(server), Some(mut talk)) = (Library::serve(), script()) else { return };
    let mode = peer_authentication("STRICT", "");
    let mesh = Mesh::start(driver, &[server.address], &[("mode.yaml", &mode)]);
    let port = mesh.client.outbound().port().to_string();
    let output = talk.args(["talk", "reviews", &port]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "done\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(mesh.server_metric("downstream_tls_handshakes_total") > 0);
    assert_eq!(mesh.server_metric("tunnels_total"), 1);
}
