//! The two phases of a publication, seen by a proxy that is none: one that refuses keeps a generation from being active.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::Command,
    thread::{self, JoinHandle},
};

use meshring_core::{
    id::Generation,
    link::{
        Hello, PROTOCOL, SOCKET_NAME, ToControl, ToProxy,
        channel::{receive, send},
    },
    snapshot::{Snapshot, layout::LAYOUT},
    stats::StatsPage,
};
use meshring_tests::{
    binaries,
    control::{Control, shop, split},
    upstream::Upstream,
    wait,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

fn dial(run_dir: &Path) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(run_dir.join(SOCKET_NAME)).unwrap()).unwrap();
    socket
}

fn hello(layout: u64, protocol: u32) -> ToControl {
    ToControl::Hello(Hello {
        protocol,
        layout,
        pid: std::process::id(),
        namespace: "default".into(),
        workload: "stubborn".into(),
        workers: 1,
        driver: "none".into(),
        listeners: Vec::new(),
        generation: Generation(0),
        checksum: 0,
        service_account: None,
        bypass: false,
        join_token: None,
    })
}

/// Answers each snapshot until control closes; refuses those above `accepted`.
fn stubborn(run_dir: &Path, accepted: u64) -> JoinHandle<Vec<u64>> {
    let socket = dial(run_dir);
    let (stats_fd, stats) = StatsPage::create(1).unwrap();
    send(&socket, &hello(LAYOUT, PROTOCOL), &[stats_fd.as_fd()]).unwrap();
    thread::spawn(move || {
        let mut offered = Vec::new();
        while let Ok((message, fds)) = receive::<ToProxy>(&socket) {
            let ToProxy::Prepare { generation } = message else { continue };
            // What comes is whole and sound, and is what was announced.
            assert_eq!(Snapshot::open(&fds[0]).unwrap().generation(), generation);
            offered.push(generation.0);
            let answer = if generation.0 <= accepted {
                stats.worker(0).acknowledge(generation);
                ToControl::Prepared { generation }
            } else {
                ToControl::Refused { generation, reason: "it has too many corners".into() }
            };
            if send(&socket, &answer, &[]).is_err() {
                break;
            }
        }
        offered
    })
}

#[test]
fn a_generation_that_a_proxy_refuses_is_not_committed_and_the_refusal_is_passed_on() {
    let upstream = Upstream::saying("hello");
    let mut control = Control::start(&[("shop.yaml", &shop(upstream.address(), upstream.address()))]);
    let proxy = control.proxy("default/client").start();
    control.wait_for_proxies(1);
    let generation = control.generation();
    let refusing = stubborn(&control.run_dir(), generation);
    control.wait_for_proxies(2);

    let file = control.file("reviews.yaml", &split(80, 20));
    let refused = control.meshring(&["apply", "-f", &file]);
    let stderr = &refused.expect(1).stderr;
    assert!(stderr.contains("default/stubborn") && stderr.contains("it has too many corners"), "{stderr}");
    assert_eq!(control.generation(), generation);
    let response = proxy.connect().get_with("reviews", "/", &[("x-meshring-debug", "1")]);
    assert_eq!(response.expect(200).fields.value("x-meshring-generation"), Some(generation.to_string().as_str()));
    control.process.kill();
    let offered = refusing.join().unwrap();
    assert!(offered.len() >= 2 && offered[0] == generation, "{offered:?}");
}

#[test]
fn a_proxy_of_another_build_is_rejected_with_the_reason() {
    let control = Control::start(&[]);
    for message in [hello(LAYOUT ^ 1, PROTOCOL), hello(LAYOUT, PROTOCOL + 1)] {
        let socket = dial(&control.run_dir());
        let (stats_fd, _stats) = StatsPage::create(1).unwrap();
        send(&socket, &message, &[stats_fd.as_fd()]).unwrap();
        let (answer, _) = receive::<ToProxy>(&socket).unwrap();
        assert!(matches!(&answer, ToProxy::Rejected { reason } if !reason.is_empty()), "{answer:?}");
    }
    assert_eq!(control.api("/v1/status")["proxies"], 0);
}

#[test]
fn nonsense_on_the_link_costs_only_its_connection() {
    let upstream = Upstream::saying("hello");
    let mut control = Control::start(&[("shop.yaml", &shop(upstream.address(), upstream.address()))]);
    let proxy = control.proxy("default/client").start();
    control.wait_for_proxies(1);
    for nonsense in [&b"{"[..], b"{\"type\":\"hello\"}", b"\0\0\0", &[b'x'; 60_000]] {
        let socket = dial(&control.run_dir());
        rustix::net::send(&socket, nonsense, rustix::net::SendFlags::NOSIGNAL).unwrap();
        let answer = receive::<ToProxy>(&socket);
        assert!(!matches!(answer, Ok((ToProxy::Welcome { .. }, _))), "{answer:?}");
    }
    assert!(control.process.try_exit().is_none());
    let file = control.file("reviews.yaml", &split(80, 20));
    control.meshring(&["apply", "-f", &file]).expect(0);
    proxy.connect().get("reviews", "/").expect(200);
}

/// The file system keeps others out by the mode of the socket; here it is opened to them on purpose.
#[test]
fn the_api_refuses_other_users_by_their_credentials() {
    use std::os::unix::fs::PermissionsExt as _;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become somebody else");
        return;
    }
    if !binaries::is_installed("curl") || !binaries::is_installed("setpriv") {
        return;
    }
    let control = Control::start(&[]);
    let socket = control.run_dir().join("control.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    for path in [control.dir(), &socket] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let ask = |wrapper: &[&str]| {
        let mut words = wrapper.to_vec();
        words.extend(["curl", "-sS", "--max-time", "10", "-w", "%{http_code}", "--unix-socket"]);
        let mut command = Command::new(words[0]);
        let output = command.args(&words[1..]).arg(&socket).arg("http://control/v1/status").output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(ask(&["env"]).ends_with("200"));
    let denied = ask(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    assert!(denied.ends_with("403") && !denied.contains("generation"), "{denied}");
    wait::until("the log to name the stranger", || control.process.line("65534"));
}
