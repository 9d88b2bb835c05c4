//! Connections that the kernel redirects to the outbound listener go where their clients meant them to, and rules see the port that they
//! meant: in a network namespace of each test's own, with nftables. Skipped, with the reason, where that cannot be had.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    env,
    io::Write as _,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    process::{Command, Stdio},
};

use meshring_core::table::{
    model::{ClusterKind, UpstreamProtocol},
    tcp::TcpProtocol,
};
use meshring_tests::{
    client::Client,
    control::Control,
    frames::code,
    h2::{Connection, Opening},
    proxy::{Driver, Proxy},
    table::{World, rule},
    tunnel::{Application, Ends},
    upstream::{Upstream, response},
};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

/// Says that this is the process inside of the namespace.
const INSIDE: &str = "MESHRING_TEST_INTERCEPTED";
/// What clients mean, and the address that they come from: only what comes from there is redirected, not what the proxy sends on.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);

/// What makes the namespace a host with these addresses. It has no way out, so that they are nobody else's.
const PREPARE: &str = "ip link set lo up && ip addr add 10.9.9.9/32 dev lo && ip addr add 10.9.9.1/32 dev lo";

fn ruleset(port: u16) -> String {
    format!(
        "table ip intercept {{\nchain output {{\ntype nat hook output priority -100\nip saddr {CLIENT} ip daddr {SERVER} \
         tcp dport {{80, 81, 5432}} redirect to :{port}\n}}\n}}\n"
    )
}

fn load(ruleset: &str) -> bool {
    let Ok(mut nft) = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn() else { return false };
    nft.stdin.take().unwrap().write_all(ruleset.as_bytes()).unwrap();
    nft.wait().unwrap().success()
}

/// Redirects to a listener from now on.
fn redirect_to(proxy: &Proxy) {
    let _ = Command::new("nft").args(["delete", "table", "ip", "intercept"]).output();
    assert!(load(&ruleset(proxy.outbound().port())));
}

#[test]
fn what_is_redirected_goes_where_its_client_meant_it() {
    in_a_namespace("what_is_redirected_goes_where_its_client_meant_it", intercepted);
}

#[test]
fn rules_see_the_port_that_a_client_meant() {
    in_a_namespace("rules_see_the_port_that_a_client_meant", by_port);
}

/// Runs a test, which has that name, in a namespace.
fn in_a_namespace(name: &str, test: fn(Driver)) {
    if env::var_os(INSIDE).is_some() {
        for driver in [Driver::Auto, Driver::Epoll] {
            let _ = Command::new("sh").args(["-c", PREPARE]).output();
            test(driver);
        }
        return;
    }
    let probe = format!("{PREPARE} && printf '%s' '{}' | nft -f -", ruleset(1));
    match Command::new("unshare").args(["--net", "sh", "-c", &probe]).output() {
        Ok(output) if output.status.success() => {}
        other => {
            println!("skipped: a network namespace with nftables cannot be had: {other:?}");
            return;
        }
    }
    let inside = Command::new("unshare")
        .args(["--net", "--"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inside.stdout);
    assert!(inside.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&inside.stderr));
}

/// A connection from the client's address.
fn dial(port: u16) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(CLIENT, 0)).unwrap();
    connect(&socket, &SocketAddrV4::new(SERVER, port)).unwrap();
    TcpStream::from(socket)
}

fn intercepted(driver: Driver) {
    let saying = |port: &'static str| {
        Upstream::on(&format!("{SERVER}:{port}"), move |request| {
            response(200, &[("x-port", port), ("x-host", request.fields.value("host").unwrap_or_default())], b"")
        })
    };
    let (first, second, db) = (saying("80"), saying("81"), Application::start());
    let mut world = World::new();
    let anything = world.cluster_without("anything", ClusterKind::OriginalDestination);
    world.protocol(anything, UpstreamProtocol::Http1);
    let action = world.forward(&[(anything, 1)]);
    world.host("*", vec![rule(action)]);
    let cluster = world.cluster("db", &[db.address()]);
    let route = world.stream_rule(Vec::new(), &[(cluster, 1)]);
    world.stream("db", 5432, TcpProtocol::Tcp, &[SERVER.into()], vec![route]);
    let proxy = Proxy::alone(&world.snapshot(), driver);
    redirect_to(&proxy);

    // By the address, whatever the name.
    for (port, expected) in [(80, "80"), (81, "81")] {
        let answer = Client::over(dial(port)).get("name.example.com", "/");
        assert_eq!(answer.expect(200).fields.value("x-port"), Some(expected));
        assert_eq!(answer.fields.value("x-host"), Some("name.example.com"));
        assert!(answer.fields.has("via"), "it went around the proxy: {answer:?}");
        // Streams of HTTP/2 know what their connection was for.
        let mut client = Connection::client(dial(port), &Opening::default());
        for path in ["/one", "/two"] {
            let answer = client.get("name.example.com", path);
            assert_eq!(answer.expect(200).fields.value("x-port"), Some(expected));
        }
        client.send(meshring_tests::frames::goaway(0, code::NO_ERROR));
    }
    assert_eq!((first.received().len(), second.received().len()), (3, 3));

    let mut ends = Ends { client: Client::over(dial(5432)), upstream: db.accept() };
    ends.upstream.send("220 ready");
    assert_eq!(ends.client.bytes(9), b"220 ready");
    ends.expect_open();
}

/// A service of two ports, with rules for each, and one that redirects to the port of the request.
const SHOP: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: http-admin, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {prefix: /moved}}]
    redirect: {uri: /there, derivePort: FROM_REQUEST_PORT}
  - match: [{port: 81}]
    directResponse: {status: 200, body: {string: admin}}
  - match: [{port: 80}]
    directResponse: {status: 200, body: {string: shop}}
";

fn by_port(driver: Driver) {
    let control = Control::start(&[("shop.yaml", SHOP)]);
    let proxy = control.proxy("default/client").driver(driver).start();
    control.wait_for_proxies(1);
    redirect_to(&proxy);
    for (port, host, expected, location) in [
        (80, "shop", "shop", "http://shop/there"),
        (81, "shop", "admin", "http://shop:81/there"),
        // Who names a port means it.
        (80, "shop:81", "admin", "http://shop:81/there"),
        (81, "shop:80", "shop", "http://shop/there"),
        // A port of a pod, say: Host tells the service, which has no such port.
        (5432, "shop", "shop", "http://shop:5432/there"),
    ] {
        let mut client = Client::over(dial(port));
        // More than one request: the connection remembers.
        for _ in 0..2 {
            assert_eq!(client.get(host, "/").expect(200).text(), expected, "{host} on {port}");
            let moved = client.get(host, "/moved");
            assert_eq!(moved.expect(301).fields.value("location"), Some(location), "{host} on {port}");
        }
        let mut client = Connection::client(dial(port), &Opening::default());
        assert_eq!(client.get(host, "/").expect(200).text(), expected, "{host} on {port} over HTTP/2");
        let moved = client.get(host, "/moved");
        assert_eq!(moved.expect(301).fields.value("location"), Some(location), "{host} on {port} over HTTP/2");
        client.send(meshring_tests::frames::goaway(0, code::NO_ERROR));
    }
    // Who comes to the listener itself has met none but the service's.
    let mut client = proxy.connect();
    assert_eq!(client.get("shop", "/").expect(200).text(), "shop");
    assert_eq!(client.get("shop", "/moved").expect(301).fields.value("location"), Some("http://shop/there"));
}
