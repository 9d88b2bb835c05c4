//! gRPC through the mesh: calls of grpcio's client arrive at grpcio's server as if nothing were between them.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use meshring_core::table::model::{ClusterKind, Route, UpstreamProtocol};
use meshring_tests::{
    control::{self, files},
    frames::{self, block},
    h2::{Connection, Message, request},
    h2_application::Application,
    on_both_drivers,
    peers::{self, Server},
    ports::Reserved,
    proxy::{Driver, Proxy},
    table::{World, rule},
    tls::{Mesh, peer_authentication},
};
use serde_json::{Value, json};

on_both_drivers! {
    calls_of_all_kinds_arrive_whole
    statuses_and_their_details_come_back
    a_deadline_is_known_to_both_ends
    a_cancelled_call_ends_at_the_server
    health_checks_are_answered_by_the_server
    calls_of_one_connection_go_to_every_endpoint
    item_83_our_errors_are_trailers_only
    a_deadline_that_passes_is_told_by_the_proxy
}

/// One proxy before a server, as `echo`.
struct Hop {
    python: PathBuf,
    server: Server,
    proxy: Proxy,
}

fn hop(driver: Driver) -> Option<Hop> {
    let python = peers::python()?;
    let server = Server::start(&python, "grpc_peer.py", &[]);
    let proxy = Proxy::alone(&table(&[server.address]), driver);
    Some(Hop { python, server, proxy })
}

fn table(servers: &[SocketAddr]) -> Vec<u8> {
    let mut world = World::new();
    let cluster = world.cluster("echo", servers);
    world.protocol(cluster, UpstreamProtocol::Http2);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(action)]);
    world.snapshot()
}

impl Hop {
    fn run(&self, case: &str) -> Vec<Value> {
        peers::run(&self.python, "grpc_peer.py", &[&self.proxy.outbound().to_string(), "echo", case])
    }
}

/// Unary calls up to 4 MiB with binary metadata, and the three kinds of streams.
fn expect_whole(run: impl Fn(&str) -> Vec<Value>) {
    for seen in run("unary") {
        for what in ["same", "binary", "end", "hashed"] {
            assert_eq!(seen[what], true, "{what}: {seen}");
        }
        assert_eq!(seen["text"], "plain", "{seen}");
    }
    for case in ["upload", "download", "chat", "many"] {
        assert_eq!(run(case), [json!({"same": true})], "{case}");
    }
}

fn calls_of_all_kinds_arrive_whole(driver: Driver) {
    let Some(hop) = hop(driver) else { return };
    expect_whole(|case| hop.run(case));
}

fn statuses_and_their_details_come_back(driver: Driver) {
    let Some(hop) = hop(driver) else { return };
    let seen = hop.run("status");
    assert_eq!(seen.len(), 16, "{seen:?}");
    for status in seen {
        assert_eq!(status["code"], status["wanted"], "{status}");
        assert_eq!(status["details"], "Größe: 100 % \n zu groß", "{status}");
        assert_eq!(status["end"], true, "{status}");
    }
}

fn a_deadline_is_known_to_both_ends(driver: Driver) {
    let Some(hop) = hop(driver) else { return };
    let seen = hop.run("deadline").remove(0);
    assert_eq!(seen["code"], "DEADLINE_EXCEEDED", "{seen}");
    let seconds = seen["seconds"].as_f64().unwrap();
    assert!((3.5..20.0).contains(&seconds), "{seen}");
    let began = hop.server.wait_for("event", "slow began", 1).remove(0);
    let remaining = began["remaining"].as_f64().unwrap();
    // gRPC's C core rounds what it sends up to ten milliseconds.
    assert!((0.0..=4.02).contains(&remaining), "the server was given {remaining} s");
    hop.server.wait_for("event", "slow ended", 1);
}

fn a_cancelled_call_ends_at_the_server(driver: Driver) {
    let Some(hop) = hop(driver) else { return };
    let seen = hop.run("cancel");
    assert_eq!(seen[..3], [json!({"code": "CANCELLED"}), json!({"code": "CANCELLED"}), json!({"code": "CANCELLED"})]);
    assert_eq!(seen[3], json!({"after": true}), "the connection is of use no more");
    hop.server.wait_for("event", "chat ended", 3);
}

fn health_checks_are_answered_by_the_server(driver: Driver) {
    let Some(hop) = hop(driver) else { return };
    let seen = hop.run("health");
    let statuses: Vec<_> = seen.iter().map(|line| line["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["SERVING", "SERVING", "NOT_SERVING", "NOT_FOUND", "SERVING"], "{seen:?}");
}

fn calls_of_one_connection_go_to_every_endpoint(driver: Driver) {
    let applications = [grpc_application(), grpc_application(), grpc_application()];
    let addresses: Vec<_> = applications.iter().map(Application::address).collect();
    let proxy = Proxy::alone(&table(&addresses), driver);
    let mut client = Connection::connect(proxy.outbound());
    for _ in 0..30 {
        call(&mut client, "echo", &[]).expect(200);
    }
    let counts: Vec<_> = applications.iter().map(|application| application.received().len()).collect();
    assert_eq!(counts, [10, 10, 10], "round robin counts calls, not connections");
    assert!(applications.iter().all(|application| application.upstream.connections() == 1));
}

/// Says OK to each call.
fn grpc_application() -> Application {
    Application::answering(|connection, stream, _| {
        let head = block(&[(":status", "200"), ("content-type", "application/grpc")]);
        connection.send(frames::headers(stream, head, false));
        connection.body(stream, &[0; 5], false);
        connection.send(frames::headers(stream, block(&[("grpc-status", "0")]), true));
    })
}

/// One unary call by hand.
fn call(client: &mut Connection<std::net::TcpStream>, authority: &str, fields: &[(&str, &str)]) -> Message {
    let own = [("content-type", "application/grpc"), ("te", "trailers")];
    let stream = client.request(&[&request("POST", authority, "/judge.Echo/Unary")[..], &own, fields].concat(), false);
    client.body(stream, &[0; 5], true);
    client.response(stream)
}

/// Asserts a response in one HEADERS frame with this status.
#[track_caller]
fn expect_trailers_only(answer: &Message, status: &str) {
    answer.expect(200);
    assert_eq!((answer.frames, answer.trailers.0.len()), (0, 0), "not one HEADERS frame: {answer:?}");
    assert_eq!(answer.fields.value("grpc-status"), Some(status), "{answer:?}");
    assert_eq!(answer.fields.value("content-type"), Some("application/grpc"), "{answer:?}");
    let message = answer.fields.value("grpc-message").unwrap_or_default();
    assert!(message.starts_with("meshring") && message.is_ascii(), "{answer:?}");
}

fn item_83_our_errors_are_trailers_only(driver: Driver) {
    let nobody = Reserved::new();
    let mut world = World::new();
    let gone = world.cluster("gone", &[nobody.address()]);
    let none = world.cluster_without("none", ClusterKind::Static);
    for (name, cluster) in [("gone", gone), ("none", none)] {
        world.protocol(cluster, UpstreamProtocol::Http2);
        let action = world.forward(&[(cluster, 1)]);
        world.host(name, vec![rule(action)]);
    }
    let proxy = Proxy::alone(&world.snapshot(), driver);
    let mut client = Connection::connect(proxy.outbound());
    for (authority, status) in [("gone", "14"), ("none", "14"), ("unheard-of", "12")] {
        expect_trailers_only(&call(&mut client, authority, &[]), status);
    }
    // Not to others.
    assert_eq!(client.get("gone", "/").status(), 503);
    let web = [("content-type", "application/grpc-web")];
    let stream = client.request(&[&request("POST", "gone", "/")[..], &web].concat(), true);
    assert_eq!(client.response(stream).status(), 503);
    let Some(python) = peers::python() else { return };
    for (authority, expected) in [("gone", "UNAVAILABLE"), ("none", "UNAVAILABLE"), ("unheard-of", "UNIMPLEMENTED")] {
        let seen = peers::run(&python, "grpc_peer.py", &[&proxy.outbound().to_string(), authority, "plain"]);
        assert_eq!(seen[0]["code"], expected, "{seen:?}");
        assert!(seen[0]["details"].as_str().unwrap().starts_with("meshring"), "{seen:?}");
    }
}

fn a_deadline_that_passes_is_told_by_the_proxy(driver: Driver) {
    // Never answers, so that only the proxy can.
    let application = Application::answering(|_, _, _| ());
    let mut world = World::new();
    let cluster = world.cluster("echo", &[application.address()]);
    world.protocol(cluster, UpstreamProtocol::Http2);
    for (host, timeout_ms) in [("echo", 0), ("short", 300)] {
        let action = world.forward(&[(cluster, 1)]);
        world.host(host, vec![Route { timeout_ms, ..rule(action) }]);
    }
    let proxy = Proxy::alone(&world.snapshot(), driver);
    let mut client = Connection::connect(proxy.outbound());
    expect_trailers_only(&call(&mut client, "echo", &[("grpc-timeout", "300m")]), "4");
    expect_trailers_only(&call(&mut client, "short", &[("grpc-timeout", "1H")]), "4");
    expect_trailers_only(&call(&mut client, "short", &[]), "4");
    let received = application.wait_for(3);
    let given = received[0].fields.value("grpc-timeout").unwrap();
    let (digits, unit) = given.split_at(given.len() - 1);
    let ms: f64 = digits.parse().unwrap();
    let ms = ms
        * match unit {
            "m" => 1.0,
            "u" => 1e-3,
            "n" => 1e-6,
            _ => panic!("{given}"),
        };
    assert!(ms > 0.0 && ms <= 300.0, "{given}");
}

// ---- the whole mesh -----------------------------------------------------------------------------------------------

/// A gRPC service whose endpoint is an inbound listener with mutual TLS.
fn service(address: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: judge, namespace: default}}
spec:
  hosts: [judge.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9090, name: grpc, protocol: GRPC}}]
  endpoints:
  - address: {}
    ports: {{grpc: {}}}
    labels: {{app: reviews, security.istio.io/tlsMode: istio}}
    serviceAccount: reviews
",
        address.ip(),
        address.port()
    )
}

fn mesh(server: &Server) -> Mesh {
    let strict = peer_authentication("STRICT", "");
    let mesh = Mesh::start(Driver::Auto, &[server.address], &[("mode.yaml", &strict)]);
    mesh.change("judge.yaml", &service(mesh.inbound()));
    mesh
}

#[test]
fn calls_of_all_kinds_arrive_whole_through_two_sidecars_with_mutual_tls() {
    let Some(python) = peers::python() else { return };
    let server = Server::start(&python, "grpc_peer.py", &[]);
    let mesh = mesh(&server);
    let address = mesh.client.outbound().to_string();
    let run = |case: &str| peers::run(&python, "grpc_peer.py", &[&address, "judge:9090", case]);
    expect_whole(run);
    assert!(run("status").iter().all(|status| status["code"] == status["wanted"]));
    assert_eq!(run("deadline")[0]["code"], "DEADLINE_EXCEEDED");
    run("cancel");
    server.wait_for("event", "chat ended", 4);
    assert_eq!(run("health")[4]["status"], "SERVING");

    // What the server's sidecar refuses is a status of gRPC, too.
    mesh.change(
        "deny.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: default}\n\
         spec:\n  selector: {matchLabels: {app: reviews}}\n  action: DENY\n  rules:\n  - to:\n    - operation: \
         {paths: [/judge.Echo/Unary]}\n",
    );
    assert_eq!(run("plain")[0]["code"], "PERMISSION_DENIED");
    assert_eq!(run("download"), [json!({"same": true})]);
}

/// A stream that stays open for as long as its input does.
struct Held {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Held {
    fn open(python: &std::path::Path, address: &str, authority: &str) -> Self {
        let mut command = peers::client(python, "grpc_peer.py", &[address, authority, "hold"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn told(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    #[track_caller]
    fn exchange(&mut self, words: &str) {
        writeln!(self.input.as_mut().unwrap(), "{words}").unwrap();
        assert_eq!(self.told(), json!({"echo": words}));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_long_stream_lives_through_a_thousand_changes_of_the_configuration() {
    let Some(python) = peers::python() else { return };
    let server = Server::start(&python, "grpc_peer.py", &[]);
    let mesh = mesh(&server);
    let mut held = Held::open(&python, &mesh.client.outbound().to_string(), "judge:9090");
    held.exchange("before");
    let mut api = mesh.control.connect().unwrap();
    let mut swap = |path: &str, body: &Value| {
        let answer = control::call(&mut api, "POST", path, Some(body)).unwrap();
        let outcome: Value = serde_json::from_slice(&answer.expect(200).body).unwrap();
        outcome["generation"].as_u64().unwrap()
    };
    let (mut before, mut swaps) = (mesh.control.generation(), 0);
    // Many more generations than are retained, and each of them several times: back and forth is what costs least.
    while swaps < 1_000 {
        let other = service(mesh.inbound()).replace("judge", &format!("other-{swaps}"));
        let now = swap("/v1/apply?wait=true", &files("other.yaml", &other));
        for to in [before, now].repeat(10) {
            assert_eq!(swap("/v1/rollback?wait=true", &json!({ "to": to })), to);
        }
        (before, swaps) = (now, swaps + 21);
        held.exchange(&format!("after {swaps} changes"));
    }
    mesh.change("judge.yaml", "");
    held.exchange("without a route");
    held.input = None;
    assert_eq!(held.told(), json!({"code": "OK"}));
    let refused = peers::run(&python, "grpc_peer.py", &[&mesh.client.outbound().to_string(), "judge:9090", "plain"]);
    assert_eq!(refused[0]["code"], "UNIMPLEMENTED", "{refused:?}");
}
