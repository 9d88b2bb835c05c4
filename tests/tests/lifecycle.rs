//! How a proxy starts, what it says about itself, how it adapts to what the machine allows, and how it ends.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{fs, sync::Mutex, sync::mpsc};

use meshring_tests::{
    binaries,
    client::{Client, request},
    on_both_drivers,
    process::Process,
    proxy::{Driver, Proxy, ProxyBuilder},
    table::World,
    upstream::{Upstream, ok},
    wait,
};
use rustix::process::Signal;

on_both_drivers! {
    a_proxy_told_to_end_completes_what_is_in_flight
    an_idle_proxy_ends_at_once_and_with_success
    the_log_names_the_driver
}

fn a_proxy_told_to_end_completes_what_is_in_flight(driver: Driver) {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let upstream = Upstream::scripted(move |peer| {
        while let Some(request) = peer.request() {
            if request.target() != "/slow" {
                peer.send(ok("quick"));
                continue;
            }
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n");
            released.lock().unwrap().recv().unwrap();
            peer.send("6\r\nsecond\r\n0\r\n\r\n");
        }
    });
    let mut proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut idle = proxy.connect();
    idle.get("echo", "/quick").expect(200);
    let mut slow = proxy.connect();
    slow.send(request("GET", "echo", "/slow", &[]));
    let _ = upstream.wait_for(2);
    proxy.process.signal(Signal::TERM);
    proxy.process.wait_for_line("draining");
    // Nobody new, and who has nothing in flight is let go.
    idle.expect_end();
    wait::until("the listener to close", || Client::try_connect(proxy.outbound()).is_err().then_some(()));
    assert!(proxy.process.try_exit().is_none(), "ended with a request in flight");
    release.send(()).unwrap();
    assert_eq!(slow.response().expect(200).text(), "firstsecond");
    slow.expect_end();
    assert_eq!(proxy.process.wait_for_exit().code(), Some(0));
}

fn an_idle_proxy_ends_at_once_and_with_success(driver: Driver) {
    let upstream = Upstream::saying("hello");
    for signal in [Signal::TERM, Signal::INT] {
        let mut proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
        // One that waits for its next request, one that has never sent any.
        let (mut used, mut unused) = (proxy.connect(), proxy.connect());
        used.get("echo", "/").expect(200);
        proxy.process.signal(signal);
        assert_eq!(proxy.process.wait_for_exit().code(), Some(0));
        used.expect_end();
        unused.expect_end();
    }
}

fn the_log_names_the_driver(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let mut proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let line = proxy.process.wait_for_line("I/O driver: ");
    let expected = if driver == Driver::Uring { "io_uring (" } else { "epoll" };
    assert!(line.contains(&format!("I/O driver: {expected}")) && line.contains("workers=1"), "{line}");
    let line = proxy.process.wait_for_line("ready: ");
    assert!(line.contains(&format!("outbound {}", proxy.outbound())) && line.contains("default/client"), "{line}");
}

#[test]
fn each_worker_is_pinned_to_a_cpu_of_its_own() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    if cpus < 2 {
        println!("skipped: one CPU");
        return;
    }
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| builder.workers(2));
    let pinned = wait::until("two pinned workers", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", proxy.process.pid())).unwrap();
        let mut cpus: Vec<String> = tasks
            .flatten()
            .filter_map(|task| {
                let status = fs::read_to_string(task.path().join("status")).ok()?;
                let value = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
                value("Name:")?.starts_with("worker-").then(|| value("Cpus_allowed_list:"))?
            })
            .filter(|list| !list.contains(['-', ',']))
            .collect();
        cpus.sort();
        (cpus.len() == 2).then_some(cpus)
    });
    assert_ne!(pinned[0], pinned[1]);
}

#[test]
fn a_low_memlock_limit_leads_to_a_smaller_ring_or_epoll_and_is_reported() {
    if !Driver::Uring.is_available() || !binaries::is_installed("prlimit") || !binaries::is_installed("setpriv") {
        return;
    }
    let upstream = Upstream::saying("hello");
    // Root is exempt from the limit by CAP_IPC_LOCK.
    let mut wrapper = vec!["prlimit", "--memlock=65536:65536"];
    if rustix::process::geteuid().is_root() {
        wrapper.splice(0..0, ["setpriv", "--bounding-set=-ipc_lock"]);
    }
    let snapshot = World::with_echo(upstream.address());
    let mut proxy = Proxy::alone_with(&snapshot, |builder| builder.wrapper(wrapper));
    let line = proxy.process.wait_for_line("I/O driver: ");
    let reduced = line.contains("io_uring (256 entries") || line.contains("I/O driver: epoll");
    assert!(
        reduced && line.contains("a ring of 1024 entries: the memlock limit is too low for it (ulimit -l)"),
        "{line}"
    );
    let mut client = proxy.connect();
    for _ in 0..100 {
        client.get("echo", "/").expect(200);
    }
}

/// Answers io_uring_setup with EPERM and executes the rest of the arguments, as under a container runtime's profile.
/// BPF: load the system call number; is it 425? then ERRNO|EPERM, else ALLOW.
const WITHOUT_IO_URING: &str = r#"
import ctypes, os, struct, sys
program = struct.pack("HBBIHBBIHBBIHBBI", 0x20,0,0,0, 0x15,0,1,425, 0x06,0,0,0x00050001, 0x06,0,0,0x7fff0000)
buffer = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(filter)), 0, 0) == 0, "PR_SET_SECCOMP"
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn where_io_uring_is_refused_epoll_serves_and_the_log_says_why() {
    if !binaries::is_installed("python3") {
        return;
    }
    let upstream = Upstream::saying("hello");
    let snapshot = World::with_echo(upstream.address());
    let wrapper = ["python3", "-c", WITHOUT_IO_URING];
    let mut proxy = Proxy::alone_with(&snapshot, |builder| builder.wrapper(wrapper).driver(Driver::Auto));
    let line = proxy.process.wait_for_line("I/O driver: ");
    assert!(line.contains("I/O driver: epoll; io_uring: ") && line.contains("seccomp"), "{line}");
    proxy.connect().get("echo", "/").expect(200);

    // Who demands io_uring is told what may forbid it, and what to do.
    let dir = tempfile::TempDir::new().unwrap();
    let mut process = ProxyBuilder::new(dir.path()).wrapper(wrapper).driver(Driver::Uring).spawn();
    let line = process.wait_for_line("io_uring is not available");
    for cause in ["seccomp", "kernel.io_uring_disabled", "memlock", "--driver auto"] {
        assert!(line.contains(cause), "{cause}: {line}");
    }
    assert_eq!(process.wait_for_exit().code(), Some(1));
}

#[test]
fn mistakes_on_the_command_line_are_told_from_refusals() {
    let start = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binaries::path("meshring-proxy"));
        let mut process = Process::start("meshring-proxy", command.args(arguments));
        let status = process.wait_for_exit();
        (status.code(), process)
    };
    for arguments in
        [&[][..], &["--workload=reviews"], &["--workload=a/b", "--workers=0"], &["--workload=a/b", "--nonsense"]]
    {
        assert_eq!(start(arguments).0, Some(2), "{arguments:?}");
    }
    let (code, mut process) = start(&["--workload=a/b", "--run-dir=/nonexistent"]);
    assert_eq!(code, Some(1));
    process.wait_for_line("--outbound");
}

#[test]
fn an_address_of_somebody_else_is_refused_with_its_name() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::TempDir::new().unwrap();
    let mut command = std::process::Command::new(binaries::path("meshring-proxy"));
    command.args(["--workload=a/b", "--outbound", &address, "--run-dir"]).arg(dir.path());
    let mut process = Process::start("meshring-proxy", &mut command);
    let line = process.wait_for_line("cannot listen");
    assert!(line.contains(&address) && line.contains("in use"), "{line}");
    assert_eq!(process.wait_for_exit().code(), Some(1));
}
