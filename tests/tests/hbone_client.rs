//! HBONE as a client: what a workload says that it takes tunnels is reached through them (label `networking.istio.io/tunnel: http`).
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use meshring_core::limits::{ATTEMPTS_MAX, HOT_STREAMS_MAX};
use meshring_tests::{
    client::{Client, request},
    control::Control,
    frames::{self, code},
    h2::{self, Connection, Message, Opening},
    h2_application,
    load::{Load, is_ok},
    on_both_drivers,
    pki::{Authority, Leaf},
    ports::hbone_address,
    proxy::{Driver, Proxy},
    tls::peer_authentication,
    tunnel::{Application, Ends, expect_reset},
    upstream::{Upstream, response},
    wait,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::aws_lc_rs};
use tempfile::TempDir;

/// What a read or write may take before it fails the test.
const PATIENCE: Duration = Duration::from_secs(20);

on_both_drivers! {
    requests_of_both_versions_and_bytes_go_through_one_connection
    many_tunnels_at_a_time_are_told_apart
    a_tunnel_that_is_refused_is_said_to_be
    item_55_length_and_encoding_on_the_answer_to_connect_end_no_tunnel
    without_a_server_of_tunnels_nothing_goes_out
    explain_says_that_it_is_a_tunnel
    responses_that_come_late_come_through_their_tunnels
    an_authorizer_behind_a_tunnel_is_asked
}

/// A workload that takes tunnels, one that calls it, and control.
struct Mesh {
    control: Control,
    client: Proxy,
    server: Proxy,
    http1: Upstream,
    http2: h2_application::Application,
    bytes: Application,
}

fn workloads(address: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app, namespace: default}}
spec: {{address: {ip}, labels: {{app: proxy}}, serviceAccount: app}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: default}}
spec: {{address: 127.0.0.1, labels: {{app: client}}, serviceAccount: client}}
",
        ip = address.ip()
    )
}

/// The service `app` on the ports of the workload for HTTP/1.1, HTTP/2 and bytes.
fn application(address: SocketAddr, ports: [u16; 3]) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: app, namespace: default}}
spec:
  hosts: [app.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http}}, {{number: 81, name: http2}}, {{number: 5432, name: tcp}}]
  workloadSelector: {{labels: {{app: app}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app-ports, namespace: default}}
spec:
  address: {ip}
  ports: {{http: {}, http2: {}, tcp: {}}}
  labels: {{app: app, networking.istio.io/tunnel: http}}
  serviceAccount: app
",
        ports[0],
        ports[1],
        ports[2],
        ip = address.ip()
    )
}

/// Mutual TLS is all that comes in.
fn strict() -> String {
    peer_authentication("STRICT", "")
}

fn wait_for_identities(control: &Control, count: usize) {
    wait::until("installed certificates", || {
        let certs = control.api("/v1/certs");
        let identities = certs["identities"].as_array()?;
        (identities.iter().filter(|item| item["state"] == "installed").count() >= count).then_some(())
    });
}

/// Says which request it has got, and sends its body back.
fn answering() -> Upstream {
    Upstream::answering(|request| response(200, &[("x-line", &request.line)], &request.body))
}

impl Mesh {
    fn start(driver: Driver, test: u8, has_server: bool) -> Self {
        Self::before(driver, test, has_server, answering())
    }

    /// Before an application of one's own for HTTP/1.1.
    fn before(driver: Driver, test: u8, has_server: bool, http1: Upstream) -> Self {
        let address = hbone_address(test, driver);
        let (http2, bytes) = (h2_application::Application::echoing(), Application::start());
        let dir = TempDir::new().unwrap();
        let config = dir.path().join("config");
        fs::create_dir(&config).unwrap();
        let ports = [http1.address(), http2.address(), bytes.address()].map(|address| address.port());
        let (workloads, service, mode) = (workloads(address), application(address, ports), strict());
        for (name, text) in [("workloads.yaml", &workloads), ("app.yaml", &service), ("mode.yaml", &mode)] {
            fs::write(config.join(name), text).unwrap();
        }
        let control = Control::start_in(dir, "config");
        let server = control.proxy("default/app").driver(driver);
        let server = if has_server { server.hbone_at(address) } else { server };
        let server = [http1.address(), http2.address(), bytes.address()]
            .into_iter()
            .fold(server, |server, application| server.inbound(application))
            .start();
        let client = control.proxy("default/client").driver(driver).outbound_for("app:5432").start();
        control.wait_for_proxies(2);
        wait_for_identities(&control, 2);
        Self { control, client, server, http1, http2, bytes }
    }

    fn of_server(&self, name: &str) -> i64 {
        self.control.metric(&format!("meshring_{name}"), "default/app")
    }

    fn stream(&self) -> Ends {
        let client = Client::connect(self.client.services()[0]);
        Ends { client, upstream: self.bytes.accept() }
    }
}

fn requests_of_both_versions_and_bytes_go_through_one_connection(driver: Driver) {
    let mesh = Mesh::start(driver, 0, true);
    let mut client = mesh.client.connect();
    for path in ["/one", "/two", "/three"] {
        let response = client.get("app", path);
        assert_eq!(response.expect(200).fields.value("x-line"), Some(&*format!("GET {path} HTTP/1.1")));
        // What comes out of the tunnel is HTTP/1.1.
        assert_eq!(response.fields.value("via"), Some("1.1 meshring"));
    }
    // A tunnel is kept like a connection.
    assert_eq!(mesh.http1.connections(), 1);
    drop(client);
    let large = vec![b'x'; 3_000_000];
    let head = request("POST", "app", "/large", &[("content-length", "3000000")]);
    let mut sender = mesh.client.connect();
    let echoed = sender.send([head, large.clone()].concat()).response();
    assert!(echoed.expect(200).body == large, "{} bytes", echoed.body.len());
    for path in ["/four", "/five"] {
        sender.get("app:81", path).expect(200);
    }
    assert_eq!(mesh.http2.connections_used(), [0, 0]);
    let mut ends = mesh.stream();
    ends.upstream.send("220 ready");
    assert_eq!(ends.client.bytes(9), b"220 ready");
    ends.expect_open();
    ends.client.send("the end").finish_sending();
    assert_eq!(ends.upstream.rest().unwrap(), b"the end");
    ends.upstream.send("and the answer").finish_sending();
    assert_eq!(ends.client.rest().unwrap(), b"and the answer");
    wait::until("the server to have counted", || (mesh.of_server("tunnels_total") >= 3).then_some(()));
    assert_eq!(mesh.of_server("downstream_tls_handshakes_total"), 1);
    assert_eq!(mesh.of_server("downstream_tls_refused_total"), 0);
}

fn many_tunnels_at_a_time_are_told_apart(driver: Driver) {
    // More than streams that one connection has.
    const TUNNELS: usize = 130;
    let mesh = Mesh::start(driver, 1, true);
    let load = Load::start(mesh.client.outbound(), 8, request("GET", "app", "/load", &[]), is_ok);
    let mut all: Vec<Ends> = (0..TUNNELS).map(|_| mesh.stream()).collect();
    thread::scope(|scope| {
        for (number, ends) in all.iter_mut().enumerate() {
            scope.spawn(move || {
                let text = format!("tunnel {number}").repeat(10_000);
                ends.client.send(&text);
                assert_eq!(ends.upstream.bytes(text.len()), text.as_bytes());
                ends.upstream.send(&text);
                assert_eq!(ends.client.bytes(text.len()), text.as_bytes());
            });
        }
    });
    load.pass(500);
    load.finish();
    assert_eq!(mesh.of_server("downstream_tls_handshakes_total"), 2);
    drop(all);
    wait::until("the tunnels to end", || (mesh.of_server("tunnels_active") <= 8).then_some(()));
}

fn a_tunnel_that_is_refused_is_said_to_be(driver: Driver) {
    let mesh = Mesh::start(driver, 2, true);
    let before = mesh.control.generation();
    mesh.control.write(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: app, namespace: default}\nspec:\n  action: \
         DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]\n",
    );
    wait::until("the policy", || (mesh.control.generation() > before).then_some(()));
    mesh.control.wait_for_proxies(2);
    let response = mesh.client.connect().get("app", "/");
    let text = response.expect(503).text();
    assert!(text.contains("was refused with 403"), "{text}");
    expect_reset(&mut Client::connect(mesh.client.services()[0]));
    wait::until("a line in the log", || mesh.client.process.line("tcp.connect_failed"));
    assert_eq!(mesh.http1.connections(), 0);
    assert!(mesh.bytes.try_accept().is_none());
}

/// A server of tunnels in the test's hand, with a certificate of the mesh.
struct Server {
    listener: TcpListener,
    config: Arc<ServerConfig>,
}

/// Its side of a connection.
type Served = Connection<StreamOwned<ServerConnection, TcpStream>>;

impl Server {
    fn start(address: SocketAddr, authority: &Authority) -> Self {
        let (chain, key) = authority.issue(&Leaf::workload("app")).certified();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { listener: TcpListener::bind(address).unwrap(), config: Arc::new(config) }
    }

    /// The next connection.
    fn accept(&self) -> Served {
        let (stream, _) = self.listener.accept().unwrap();
        for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            set(&stream, Some(PATIENCE)).unwrap();
        }
        let tls = ServerConnection::new(Arc::clone(&self.config)).unwrap();
        Connection::server(StreamOwned::new(tls, stream), &Opening::default()).unwrap()
    }
}

/// The stream of the next CONNECT.
fn next_tunnel(served: &mut Served, seen: &mut Vec<u32>) -> u32 {
    let is_connect = |message: &Message| message.fields.value(":method") == Some("CONNECT");
    served.accept_stream(seen, is_connect).unwrap().0
}

fn item_55_length_and_encoding_on_the_answer_to_connect_end_no_tunnel(driver: Driver) {
    let address = hbone_address(5, driver);
    let dir = TempDir::new().unwrap();
    let authority = Authority::new("operator");
    let (certificate, key) = authority.write(dir.path(), "operator");
    let config = dir.path().join("config");
    fs::create_dir(&config).unwrap();
    // Nothing goes to the applications but what comes out of tunnels, and the tunnels end in this test.
    let files = [
        ("workloads.yaml", workloads(address)),
        ("app.yaml", application(address, [1, 1, 1])),
        ("mode.yaml", strict()),
    ];
    for (name, text) in &files {
        fs::write(config.join(name), text).unwrap();
    }
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let control = Control::start_with_arguments(dir, "config", &["--ca-cert", certificate, "--ca-key", key]);
    let client = control.proxy("default/client").driver(driver).outbound_for("app:5432").start();
    control.wait_for_proxies(1);
    wait_for_identities(&control, 1);
    let server = Server::start(address, &authority);
    let address = client.services()[0];

    let mut bytes = Client::connect(address);
    let mut served = server.accept();
    let mut seen = Vec::new();
    for lengths in [&["0"][..], &["2"], &["1000000"], &["2", "3"], &["2, 2"], &["-1"], &[""]] {
        let stream = next_tunnel(&mut served, &mut seen);
        let fields = lengths.iter().map(|length| ("content-length", *length));
        let block: Vec<_> = std::iter::once((":status", "200")).chain(fields).collect();
        served.send(frames::headers(stream, frames::block(&block), false));
        // More than any of the lengths but one, and less than that.
        let (up, down) = ([b'u'; 40_000], [b'd'; 50_000]);
        bytes.send(up).finish_sending();
        served.wait("all that was sent", |served| served.message(stream).ended.then_some(()));
        assert!(served.message(stream).body == up, "{lengths:?}: {} bytes", served.message(stream).body.len());
        assert!(served.offer(stream, &down, true), "{lengths:?}");
        assert!(bytes.rest().unwrap() == down, "{lengths:?}");
        bytes = Client::connect(address);
    }
    // A coding is no field of HTTP/2 (RFC 9113 section 8.2.2): without a tunnel nothing has gone out.
    bytes.send("secret");
    for _ in 0..ATTEMPTS_MAX {
        let stream = next_tunnel(&mut served, &mut seen);
        let head = frames::block(&[(":status", "200"), ("transfer-encoding", "chunked")]);
        served.send(frames::headers(stream, head, false));
        served.wait("the end of the stream", |served| served.message(stream).reset);
        assert!(served.message(stream).body.is_empty());
    }
    expect_reset(&mut bytes);

    // The length of the request in the tunnel is one of its own.
    let mut http = client.connect();
    http.send(request("GET", "app", "/", &[]));
    let stream = next_tunnel(&mut served, &mut seen);
    served.send(frames::headers(stream, frames::block(&[(":status", "200"), ("content-length", "3")]), false));
    served.wait("a request", |served| served.message(stream).body.ends_with(b"\r\n\r\n").then_some(()));
    served.offer(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world", false);
    assert_eq!(http.response().expect(200).text(), "hello world");
}

fn without_a_server_of_tunnels_nothing_goes_out(driver: Driver) {
    let mesh = Mesh::start(driver, 3, false);
    let response = mesh.client.connect().get("app", "/");
    let text = response.expect(503).text();
    assert!(text.contains(&format!("the tunnel through {}", hbone_address(3, driver))), "{text}");
    expect_reset(&mut Client::connect(mesh.client.services()[0]));
    assert_eq!(mesh.http1.connections(), 0, "in plain text");
}

fn explain_says_that_it_is_a_tunnel(driver: Driver) {
    let mesh = Mesh::start(driver, 4, true);
    for question in [["--url", "http://app/"], ["--tcp", "app:5432"]] {
        let arguments = [&["explain", "--from", "default/client"][..], &question].concat();
        let explained = mesh.control.meshring(&arguments);
        for part in ["connection hbone", "networking.istio.io/tunnel=http", "15008", "judged as a connection"] {
            assert!(explained.expect(0).stdout.contains(part), "{part}: {}", explained.stdout);
        }
    }
    assert!(mesh.server.process.line("panicked").is_none());
}

/// Streams that wait for their responses without anything in hand (more of them than may have it), each for a tunnel of its own.
fn responses_that_come_late_come_through_their_tunnels(driver: Driver) {
    const STREAMS: usize = HOT_STREAMS_MAX + 20;
    let (may_answer, arrived) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let (may, come) = (Arc::clone(&may_answer), Arc::clone(&arrived));
    let upstream = Upstream::answering(move |request| {
        come.fetch_add(1, Ordering::SeqCst);
        wait::until("the word to answer", || may.load(Ordering::SeqCst).then_some(()));
        response(200, &[], request.target().as_bytes())
    });
    let mesh = Mesh::before(driver, 5, true, upstream);
    let mut client = Connection::connect(mesh.client.outbound());
    let paths: Vec<String> = (0..STREAMS).map(|number| format!("/late/{number}")).collect();
    let streams: Vec<u32> = paths.iter().map(|path| client.request(&h2::get("app", path), true)).collect();
    wait::until("all requests at the application", || (arrived.load(Ordering::SeqCst) == STREAMS).then_some(()));
    let wait_for_tunnels = |count: usize| {
        wait::until("the tunnels", || (mesh.of_server("tunnels_active") == count as i64).then_some(()));
    };
    wait_for_tunnels(STREAMS);
    // Some are not wanted any more: their tunnels end, and nobody else's.
    let (given_up, kept) = streams.split_at(10);
    for stream in given_up {
        client.send(frames::reset(*stream, code::CANCEL));
    }
    wait_for_tunnels(kept.len());
    may_answer.store(true, Ordering::SeqCst);
    for (stream, path) in kept.iter().zip(&paths[given_up.len()..]) {
        assert_eq!(client.response(*stream).expect(200).text(), *path);
    }
    assert_eq!(mesh.of_server("downstream_tls_handshakes_total"), 1);
}

/// The check of an external authorizer goes to its workload as any request does: through a tunnel.
fn an_authorizer_behind_a_tunnel_is_asked(driver: Driver) {
    let address = hbone_address(6, driver);
    let authorizer = Upstream::answering(|request| match request.fields.value("x-key") {
        Some("good") => response(200, &[], b""),
        _ => response(401, &[], b"no key"),
    });
    let application = answering();
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("config");
    fs::create_dir(&config).unwrap();
    let text = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: gate, namespace: default}}
spec:
  hosts: [gate.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9000, name: http}}]
  workloadSelector: {{labels: {{app: gate}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: gate-ports, namespace: default}}
spec:
  address: {ip}
  ports: {{http: {port}}}
  labels: {{app: gate, networking.istio.io/tunnel: http}}
  serviceAccount: gate
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: gate, namespace: default}}
spec: {{address: {ip}, labels: {{app: proxy}}, serviceAccount: gate}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app, namespace: default}}
spec: {{address: 127.0.0.1, labels: {{app: app}}, serviceAccount: app}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    extensionProviders:
    - name: gatekeeper
      envoyExtAuthzHttp:
        service: gate.default.svc.cluster.local
        port: 9000
        timeout: 20s
        includeRequestHeadersInCheck: [x-key]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: ask, namespace: default}}
spec:
  selector: {{matchLabels: {{app: app}}}}
  action: CUSTOM
  provider: {{name: gatekeeper}}
  rules: [{{to: [{{operation: {{paths: [\"/checked*\"]}}}}]}}]
",
        ip = address.ip(),
        port = authorizer.address().port(),
    );
    fs::write(config.join("all.yaml"), text).unwrap();
    let control = Control::start_in(dir, "config");
    let gate = control.proxy("default/gate").driver(driver).hbone_at(address).inbound(authorizer.address()).start();
    let app = control.proxy("default/app").driver(driver).inbound(application.address()).start();
    control.wait_for_proxies(2);
    wait_for_identities(&control, 2);
    let mut client = Client::connect(app.inbound()[0]);
    client.get_with("app", "/checked", &[("x-key", "good")]).expect(200);
    assert_eq!(client.get("app", "/checked").expect(401).text(), "no key");
    client.get("app", "/free").expect(200);
    assert_eq!((authorizer.received().len(), application.received().len()), (2, 2));
    wait::until("the tunnel to be counted", || {
        (control.metric("meshring_tunnels_total", "default/gate") >= 1).then_some(())
    });
    // Without the tunnel there is no way to it, and no way past it.
    drop(gate);
    client.get_with("app", "/checked", &[("x-key", "good")]).expect(403);
    assert_eq!(application.received().len(), 2);
}
