//! Connections that the kernel redirects to the outbound listener go where their clients meant them to: in a network namespace of the
//! test's own, with nftables. Skipped, with the reason, where that cannot be had.
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

#[test]
fn what_is_redirected_goes_where_its_client_meant_it() {
    const NAME: &str = "what_is_redirected_goes_where_its_client_meant_it";
    if env::var_os(INSIDE).is_some() {
        for driver in [Driver::Auto, Driver::Epoll] {
            intercepted(driver);
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
        .args(["--exact", NAME, "--nocapture"])
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
    let _ = Command::new("sh").args(["-c", PREPARE]).output();
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
    let _ = Command::new("nft").args(["delete", "table", "ip", "intercept"]).output();
    assert!(load(&ruleset(proxy.outbound().port())));

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
