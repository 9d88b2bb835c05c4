//! Requests whose connections go around TCP: the same bytes, and no failure while the bypass comes and goes. Skipped, with
//! the reason, where kernel or privilege are missing.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{net::SocketAddr, process::Command};

use meshring_tests::{
    alone, binaries,
    bypass::{Cgroup, counter},
    client::request,
    control::{Control, meshring, shop, split},
    generate::{Random, assert_same_bytes, body, pieces},
    load::{Load, is_ok},
    on_both_drivers,
    process::Process,
    proxy::{Driver, Proxy},
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
    an_application_or_a_proxy_that_is_killed_is_noticed_at_once
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
    assert_eq!(needed.wait_for_exit().code(), Some(1), "{}", needed.output());
    assert!(needed.output().contains("--bypass on: a map of sockets: not permitted"), "{}", needed.output());
    let wrong = meshring(&["control", "--config", "x", "--bypass", "perhaps"]);
    assert!(wrong.expect(2).stderr.contains("[possible values: off, auto, on]"), "{}", wrong.stderr);
}
