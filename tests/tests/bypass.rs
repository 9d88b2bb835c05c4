//! Requests whose connections go around TCP: the same bytes, and no failure while the bypass comes and goes. Skipped, with
//! the reason, where kernel or privilege are missing.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    thread,
};

use meshring_tests::{
    alone, binaries,
    bypass::{Cgroup, counter},
    client::{Client, request},
    control::{Control, meshring, shop, split},
    generate::{Random, assert_same_bytes, body, pieces},
    load::{Load, is_ok},
    on_both_drivers,
    process::Process,
    proxy::{Driver, Proxy},
    tunnel::{Application, Ends},
    upstream::{Upstream, response},
    wait,
};

const FILES: [&str; 2] = ["shop.yaml", "reviews.yaml"];

fn start(cgroup: &Cgroup, mode: &str, application: SocketAddr) -> Control {
    let (shop, split) = (shop(application, application), split(50, 50));
    cgroup.control(mode, &[(FILES[0], &shop), (FILES[1], &split)])
}

fn wait_until_registered(control: &Control, workload: &str) {
    wait::until("the proxy to be registered", || counter(control, workload, "connections_bypass"));
}

/// What the application gets and gives back: the body, turned round.
fn turning() -> Upstream {
    Upstream::answering(|received| {
        let mut body = received.body.clone();
        body.reverse();
        response(200, &[], &body)
    })
}

fn bodies_arrive_whole_in_every_size(driver: Driver) {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = turning();
    let control = start(&cgroup, "on", application.address());
    let proxy = control.proxy("default/client").driver(driver).start();
    wait_until_registered(&control, "default/client");
    let mut random = Random::new(6);
    for size in [0, 1, 100, 16_383, 16_384, 65_537, 300_000, 1 << 20, 5 << 20] {
        // A connection for each, and one more request on it: small again after large.
        let mut client = proxy.connect();
        for (size, longest) in [(size, 1 << 20), (10, 1), (3_000, 40)] {
            let mut body = body(size as u64, size);
            client.send(request("POST", "reviews", "/", &[("content-length", &size.to_string())]));
            for piece in pieces(&mut random, &body, longest) {
                client.send(piece);
            }
            body.reverse();
            assert_same_bytes(&client.response().expect(200).body, &body);
        }
    }
    assert!(counter(&control, "default/client", "connections_bypass").unwrap() >= 10);
    assert!(counter(&control, "default/client", "bytes_bypass").unwrap() > 100_000);
}

/// A service that does not speak HTTP, for `outbound_for("db:5432")`.
fn stream(application: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: db, namespace: default}}
spec:
  hosts: [db.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 5432, name: tcp}}]
  endpoints:
  - address: {}
    ports: {{tcp: {}}}
",
        application.ip(),
        application.port()
    )
}

/// A proxy before an application that does not speak HTTP, registered.
fn stream_proxy(control: &Control, driver: Driver) -> Proxy {
    let proxy = control.proxy("default/client").driver(driver).outbound_for("db:5432").start();
    wait_until_registered(control, "default/client");
    proxy
}

/// Writes in pieces of 1 byte to 1 MiB, as many small ones as large ones, and ends its direction if that is wanted.
fn send_pieces(mut stream: &TcpStream, mut bytes: &[u8], seed: u64, is_ended: bool) {
    let mut random = Random::new(seed);
    while !bytes.is_empty() {
        let bits = random.below(21);
        let size = (1 + random.below(1 << bits)).min(bytes.len());
        stream.write_all(&bytes[..size]).unwrap();
        bytes = &bytes[size..];
    }
    if is_ended {
        stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// One read. Who waits in a blocking one may be woken for nothing (ARCHITECTURE.md, "The bypass"), here when the thread that
/// writes gets room.
fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> usize {
    let result = wait::until("bytes, or the end", || match stream.read(buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        result => Some(result),
    });
    result.unwrap()
}

/// Reads so many bytes.
fn receive(stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut at = 0;
    while at < len {
        let count = read(stream, &mut bytes[at..]);
        assert!(count > 0, "the end, behind {at} of {len} bytes");
        at += count;
    }
    bytes
}

fn connections_of_bytes_go_both_ways_at_once_and_each_half_ends_for_itself(driver: Driver) {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = Application::start();
    let control = cgroup.control("on", &[("db.yaml", &stream(application.address()))]);
    let proxy = stream_proxy(&control, driver);
    let open = || Ends { client: Client::connect(proxy.services()[0]), upstream: application.accept() };
    for client_ends_first in [true, false] {
        let (up, down) = (body(1, 5 << 20), body(2, 3 << 20));
        let mut ends = open();
        // Small at first, so that both directions begin in the bypass.
        ends.expect_open();
        let (client, upstream) = (ends.client.stream(), ends.upstream.stream());
        let (from_upstream, from_client) = thread::scope(|scope| {
            scope.spawn(|| send_pieces(client, &up, 3, client_ends_first));
            scope.spawn(|| send_pieces(upstream, &down, 4, !client_ends_first));
            let reader = scope.spawn(|| receive(client, down.len()));
            let from_client = receive(upstream, up.len());
            (reader.join().unwrap(), from_client)
        });
        assert_same_bytes(&from_client, &up);
        assert_same_bytes(&from_upstream, &down);
        // One half has ended, behind all that; the other one goes on, until it ends, too.
        let (first, mut second) = if client_ends_first { (client, upstream) } else { (upstream, client) };
        assert_eq!(read(second, &mut [0]), 0);
        for _ in 0..3 {
            second.write_all(b"still here").unwrap();
            assert_eq!(receive(first, 10), b"still here");
        }
        second.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read(first, &mut [0]), 0);
    }
    // Both at once, with something before the end.
    let mut ends = open();
    ends.client.send("up").finish_sending();
    ends.upstream.send("down").finish_sending();
    assert_eq!(ends.upstream.rest().unwrap(), b"up");
    assert_eq!(ends.client.rest().unwrap(), b"down");
    let count = |name: &str| counter(&control, "default/client", name).unwrap();
    assert_eq!((count("connections_bypass"), count("connections_tcp")), (6, 0));
    assert!(count("bytes_bypass") > 100 && count("switched") > 0);
    // What is large would be spliced from socket to socket, which looks past the queue of the bypass.
    let spliced = || control.metric("meshring_spliced_bytes_total", "default/client");
    assert_eq!(spliced(), 0);
}

fn what_is_large_is_spliced_only_where_no_bypass_was_offered(driver: Driver) {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = Application::start();
    let control = cgroup.control("off", &[("db.yaml", &stream(application.address()))]);
    let proxy = control.proxy("default/client").driver(driver).outbound_for("db:5432").start();
    control.wait_for_proxies(1);
    let transfer = || {
        let ends = Ends { client: Client::connect(proxy.services()[0]), upstream: application.accept() };
        let bytes = body(5, 8 << 20);
        let (client, upstream) = (ends.client.stream(), ends.upstream.stream());
        let received = thread::scope(|scope| {
            scope.spawn(|| (&*client).write_all(&bytes).unwrap());
            receive(upstream, bytes.len())
        });
        assert_same_bytes(&received, &bytes);
        // Behind these all of it is counted.
        let mut ends = ends;
        ends.expect_open();
        ends.expect_open();
        ends
    };
    let spliced = || control.metric("meshring_spliced_bytes_total", "default/client");
    // The same transfer by TCP: so what follows can fail.
    let before = transfer();
    let by_tcp = wait::until("spliced bytes", || Some(spliced()).filter(|&bytes| bytes > 0));
    drop(before);
    let path = cgroup.path().display().to_string();
    control.meshring(&["bypass", "install", "--cgroup", &path]).expect(0);
    wait_until_registered(&control, "default/client");
    let _after = transfer();
    assert_eq!(counter(&control, "default/client", "connections_bypass"), Some(2));
    assert_eq!(spliced(), by_tcp, "spliced, though it was captured");
}

fn an_application_or_a_proxy_that_is_killed_is_noticed_at_once(driver: Driver) {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = Upstream::answering(|received| match received.target() {
        "/never" => Vec::new(),
        _ => response(200, &[], b"ok"),
    });
    let control = start(&cgroup, "on", application.address());
    let mut proxy = control.proxy("default/client").driver(driver).start();
    wait_until_registered(&control, "default/client");
    let mut client = proxy.connect();
    client.get("reviews", "/").expect(200);
    // A process of its own, so that it can be killed; it is in the middle of a request and in the bypass.
    let before = counter(&control, "default/client", "connections_bypass").unwrap();
    let script = format!(
        "import socket,time\ns=socket.create_connection(('127.0.0.1',{}))\ns.sendall(b'GET / HTTP/1.1\\r\\nhost: reviews\\r\\n')\nprint('sent',flush=True)\ntime.sleep(1000)",
        proxy.outbound().port()
    );
    let mut other = Process::start("client", Command::new("python3").args(["-c", &script]));
    other.wait_for_line("sent");
    wait::until("its connection", || {
        (counter(&control, "default/client", "connections_bypass").unwrap() > before).then_some(())
    });
    let active = || control.metric("meshring_downstream_connections_active", "default/client");
    wait::until("both connections", || (active() == 2).then_some(()));
    other.kill();
    wait::until("its connection to be gone", || (active() == 1).then_some(()));
    client.get("reviews", "/").expect(200);
    // Now the proxy, while the client waits.
    client.send(request("GET", "reviews", "/", &[]));
    client.response().expect(200);
    proxy.process.kill();
    client.expect_end();
    proxy.restart();
    wait_until_registered(&control, "default/client");
    proxy.connect().get("reviews", "/").expect(200);
}

fn an_application_that_serves_and_is_killed_is_noticed_at_once(driver: Driver) {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let script = "import socket,time\nl=socket.create_server(('127.0.0.1',0))\nprint('port',l.getsockname()[1],flush=True)\n\
                  s,_=l.accept()\ns.recv(100)\ns.sendall(b'half of it')\ntime.sleep(1000)";
    let mut application = Process::start("application", Command::new("python3").args(["-c", script]));
    let port: u16 = application.wait_for_line("port ").rsplit(' ').next().unwrap().trim().parse().unwrap();
    let control = cgroup.control("on", &[("db.yaml", &stream(SocketAddr::from(([127, 0, 0, 1], port))))]);
    let proxy = stream_proxy(&control, driver);
    let mut client = Client::connect(proxy.services()[0]);
    client.send("question");
    assert_eq!(client.bytes(10), b"half of it");
    assert_eq!(counter(&control, "default/client", "connections_bypass"), Some(2));
    application.kill();
    client.expect_end();
    // And nobody is there for the next one.
    let client = Client::connect(proxy.services()[0]);
    let outcome = wait::until("the reset", || match client.stream().read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        result => Some(result.map_err(|error| error.kind())),
    });
    assert_eq!(outcome, Err(ErrorKind::ConnectionReset));
}

fn installing_and_removing_under_load_fails_no_request(driver: Driver) {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = Upstream::saying("ok");
    let control = start(&cgroup, "off", application.address());
    let proxy = control.proxy("default/client").driver(driver).start();
    control.wait_for_proxies(1);
    let load = Load::start(proxy.outbound(), 3, request("GET", "reviews", "/", &[]), is_ok);
    // These come anew again and again, so that each change finds old and new ones.
    let closing = request("GET", "reviews", "/", &[("connection", "close")]);
    let short = Load::start(proxy.outbound(), 2, closing, is_ok);
    load.pass(100);
    let path = cgroup.path().display().to_string();
    for _ in 0..4 {
        control.meshring(&["bypass", "install", "--cgroup", &path]).expect(0);
        wait_until_registered(&control, "default/client");
        let used = || counter(&control, "default/client", "bytes_bypass").filter(|&bytes| bytes > 10_000);
        wait::until("traffic around TCP", used);
        load.pass(200);
        short.pass(50);
        control.meshring(&["bypass", "remove"]).expect(0);
        load.pass(200);
        short.pass(50);
    }
    load.finish();
    short.finish();
    // With it go the connections that it keeps.
    drop(proxy);
    wait::until("what was removed to be gone", || (control.api("/v1/bypass")["leaving"] == 0).then_some(()));
}

on_both_drivers! {
    bodies_arrive_whole_in_every_size
    connections_of_bytes_go_both_ways_at_once_and_each_half_ends_for_itself
    what_is_large_is_spliced_only_where_no_bypass_was_offered
    an_application_or_a_proxy_that_is_killed_is_noticed_at_once
    an_application_that_serves_and_is_killed_is_noticed_at_once
    installing_and_removing_under_load_fails_no_request
}

#[test]
fn killing_control_under_load_fails_no_request_and_leaves_nothing_behind() {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = Upstream::saying("ok");
    let mut control = start(&cgroup, "on", application.address());
    let proxy = control.proxy("default/client").workers(2).start();
    wait_until_registered(&control, "default/client");
    let load = Load::start(proxy.outbound(), 3, request("GET", "reviews", "/", &[]), is_ok);
    let closing = request("GET", "reviews", "/", &[("connection", "close")]);
    let short = Load::start(proxy.outbound(), 2, closing, is_ok);
    for _ in 0..3 {
        load.pass(300);
        control.process.kill();
        load.pass(300);
        short.pass(50);
        control.restart();
        // It finds nothing of its predecessor's in its way, and captures anew.
        wait_until_registered(&control, "default/client");
        let used = || counter(&control, "default/client", "bytes_bypass").filter(|&bytes| bytes > 1_000);
        wait::until("traffic around TCP", used);
    }
    load.finish();
    short.finish();
}

#[test]
fn two_controls_with_a_proxy_each_share_a_cgroup() {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = turning();
    let far = start(&cgroup, "on", application.address());
    let inbound = far.proxy("default/reviews").inbound(application.address()).start();
    let near = start(&cgroup, "on", inbound.inbound()[0]);
    let outbound = near.proxy("default/client").start();
    wait_until_registered(&far, "default/reviews");
    wait_until_registered(&near, "default/client");
    let mut client = outbound.connect();
    for size in [1, 1000, 100_000, 1000] {
        let body: Vec<u8> = (0..size).map(|at: u32| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        client.send(request("POST", "reviews", "/", &[("content-length", &size.to_string())])).send(&body);
        let mut expected = body;
        expected.reverse();
        assert!(client.response().expect(200).body == expected, "{size}");
    }
    // From the client to the one, between the two, and from the other to the application.
    assert!(counter(&near, "default/client", "bytes_bypass").unwrap() > 1000);
    assert!(counter(&far, "default/reviews", "bytes_bypass").unwrap() > 1000);
}

#[test]
fn ipv6_goes_around_tcp_too() {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = Upstream::on("[::1]:0", |_| response(200, &[], b"six"));
    let control = start(&cgroup, "on", application.address());
    let proxy = control.proxy("default/client").start();
    wait_until_registered(&control, "default/client");
    let mut client = proxy.connect();
    client.get("reviews", "/").expect(200);
    let one = counter(&control, "default/client", "connections_bypass").unwrap();
    assert_eq!(one, 2, "the client's, and that to [::1]");
}

#[test]
fn what_happens_can_be_seen_and_switched_off_for_a_port() {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = Upstream::saying("ok");
    let control = start(&cgroup, "on", application.address());
    let proxy = control.proxy("default/client").start();
    wait_until_registered(&control, "default/client");
    let mut client = proxy.connect();
    client.get("reviews", "/").expect(200);
    let shown = control.meshring(&["bypass", "show"]);
    for part in ["installed on cgroup", "meshring_ops", "mesh_sockets", "default/client", "2 connections", "socket "] {
        assert!(shown.expect(0).stdout.contains(part), "{part}: {}", shown.stdout);
    }
    // Both ends of both connections; the offers were taken; and the proxy.
    for (map, entries) in [("mesh_sockets", 4), ("mesh_pairs", 0), ("mesh_processes", 1)] {
        let line = shown.stdout.lines().find(|line| line.contains(map)).unwrap();
        assert!(line.contains(&format!(" {entries} entries, room for ")), "{line}");
    }
    let explained = control.meshring(&["explain", "--from", "default/client", "--url", "http://reviews/"]);
    let explained = &explained.expect(0).stdout;
    assert!(explained.contains("application to proxy: bypass"), "{explained}");
    assert!(explained.contains(&format!("proxy to {}: bypass", application.address())), "{explained}");
    let metric = |path: &str| control.metric("meshring_path_connections_total", &format!("path=\"{path}\""));
    assert_eq!((metric("bypass"), metric("tcp")), (2, 0));

    let port = proxy.outbound().port().to_string();
    control.meshring(&["bypass", "off", "--port", &port]).expect(0);
    let before = counter(&control, "default/client", "bytes_bypass").unwrap();
    // On the connection that was captured, and on a new one; the one to the application goes around still.
    client.get("reviews", "/").expect(200);
    proxy.connect().get("reviews", "/").expect(200);
    let explained = control.meshring(&["explain", "--from", "default/client", "--url", "http://reviews/"]);
    assert!(explained.expect(0).stdout.contains("application to proxy: tcp: its ports are switched off"));
    assert!(counter(&control, "default/client", "switched").unwrap() >= 1);
    assert!(counter(&control, "default/client", "bytes_bypass").unwrap() > before);
    wait::until("the connection by TCP to be counted", || (metric("tcp") == 1).then_some(()));
    control.meshring(&["bypass", "on", "--port", &port]).expect(0);
    control.meshring(&["bypass", "remove"]).expect(0);
    let again = control.meshring(&["bypass", "remove"]);
    assert!(again.expect(1).stderr.contains("not installed"), "{}", again.stderr);
    client.get("reviews", "/").expect(200);
}

#[test]
fn what_cannot_be_is_said_in_one_line_and_plain_tcp_goes_on() {
    let _alone = alone();
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = Upstream::saying("ok");
    let control = start(&cgroup, "off", application.address());
    let proxy: Proxy = control.proxy("default/client").start();
    control.wait_for_proxies(1);
    let refused = control.meshring(&["bypass", "install", "--cgroup", "/sys/fs/cgroup/there-is-none"]);
    let line = &refused.expect(1).stderr;
    assert!(line.contains("there-is-none") && line.contains("No such file") && line.contains("plain TCP"), "{line}");
    proxy.connect().get("reviews", "/").expect(200);
    // Without the capabilities.
    let dir = tempfile::TempDir::new().unwrap();
    let config = dir.path().join("config");
    std::fs::create_dir(&config).unwrap();
    let unprivileged = |mode: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-bpf,-sys_admin,-perfmon", "--inh-caps=-bpf,-sys_admin,-perfmon"]);
        command.arg(binaries::path("meshring")).arg("control").arg("--config").arg(&config);
        command.arg("--run-dir").arg(dir.path().join("run")).args(["--bypass", mode]);
        Process::start("control", command.arg("--bypass-cgroup").arg(cgroup.path()))
    };
    let mut optional = unprivileged("auto");
    let line = optional.wait_for_line("no bypass");
    assert!(line.contains("CAP_BPF") && line.contains("plain TCP"), "{line}");
    optional.wait_for_line("control serves");
    optional.kill();
    let mut needed = unprivileged("on");
    needed.wait_for_line("--bypass on: a map of sockets: not permitted");
    assert_eq!(needed.wait_for_exit().code(), Some(1), "{}", needed.output());
    let wrong = meshring(&["control", "--config", "x", "--bypass", "perhaps"]);
    assert!(wrong.expect(2).stderr.contains("[possible values: off, auto, on]"), "{}", wrong.stderr);
}
