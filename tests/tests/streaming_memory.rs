//! Bodies that are much larger than the proxy's memory go through it, up and down, in any mix of versions: the peak of its memory
//! does not know how long they are. `MESHRING_TEST_STREAM_BYTES=1073741824` streams a gibibyte each time.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{env, fs, net::SocketAddr, process::Command};

use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    binaries::is_installed,
    frames::{block, headers},
    h2::{Connection, Opening},
    on_both_drivers,
    process::Process,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::{Peer, Upstream},
};
use tempfile::TempDir;

on_both_drivers! {
    a_long_body_takes_no_more_memory_than_a_short_one
}

/// What is there once is there after a transfer of this size.
const WARM_UP_BYTES: u64 = 4 << 20;
/// Buffers, windows and sockets of one transfer are there after the first one; a body that was kept would be tens of megabytes.
const GROWTH_KIB_MAX: u64 = 2 * 1024;

/// How long bodies are.
fn length() -> u64 {
    env::var("MESHRING_TEST_STREAM_BYTES").map_or(64 << 20, |bytes| bytes.parse().expect("a number of bytes"))
}

/// A server of either version. `GET /N` gets N bytes; of any other request the body is counted, and the count sent back.
fn server() -> Upstream {
    Upstream::scripted(|peer| {
        let mut begin = [0; 3];
        if peer.stream().peek(&mut begin).is_ok_and(|count| begin[..count] == *b"PRI") {
            http2(peer);
        } else {
            while http1(peer) {}
        }
    })
}

const PIECE: [u8; 16 * 1024] = [b'x'; 16 * 1024];

fn http1(peer: &mut Peer) -> bool {
    let Some(head) = peer.head() else { return false };
    let mut words = head.line.split(' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    if let (Some("GET"), Ok(len)) = (method, target.trim_start_matches('/').parse::<u64>()) {
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n"));
        let mut left = len;
        while left > 0 {
            let count = left.min(PIECE.len() as u64);
            if !peer.send(&PIECE[..count as usize]) {
                return false;
            }
            left -= count;
        }
        return true;
    }
    // What has come with the head is the beginning of it.
    let len: u64 = head.fields.value("content-length").expect("a length").parse().unwrap();
    let mut count = 0;
    while count < len {
        match peer.some() {
            bytes if bytes.is_empty() => return false,
            bytes => count += bytes.len() as u64,
        }
    }
    let count = count.to_string();
    peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{count}", count.len()))
}

fn http2(peer: &mut Peer) {
    let Some(mut connection) = Connection::accept(peer.stream(), &Opening::default()) else { return };
    let mut seen = Vec::new();
    while let Some((stream, message)) = connection.accept_stream(&mut seen, |message| !message.fields.0.is_empty()) {
        let wanted = message.fields.value(":path").unwrap_or_default().trim_start_matches('/').parse::<u64>();
        connection.send(headers(stream, block(&[(":status", "200")]), false));
        if let (Some("GET"), Ok(len)) = (message.fields.value(":method"), wanted) {
            let mut left = len;
            while left > 0 {
                let count = left.min(PIECE.len() as u64);
                left -= count;
                if !connection.offer(stream, &PIECE[..count as usize], left == 0) {
                    return;
                }
            }
            continue;
        }
        let Some(count) = connection.count_body(stream) else { return };
        connection.offer(stream, count.to_string().as_bytes(), true);
    }
}

/// Forgets the peak of a process's memory, and asks for it, in KiB.
fn forget_peak(process: &Process) {
    fs::write(format!("/proc/{}/clear_refs", process.pid()), "5").unwrap();
}

fn peak_kib(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn curl(address: SocketAddr, path: &str, arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args([
            "-sS",
            "--max-time",
            "900",
            "-H",
            "host: echo",
            "-H",
            "expect:",
            "-w",
            "%{http_version} %{size_download}",
        ])
        .args(arguments)
        .arg(format!("http://{address}{path}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn a_long_body_takes_no_more_memory_than_a_short_one(driver: Driver) {
    if !is_installed("curl") {
        return;
    }
    let server = server();
    let dir = TempDir::new().unwrap();
    let file = |len: u64| {
        let path = dir.path().join(len.to_string());
        // Nothing is on the disk.
        fs::File::create(&path).unwrap().set_len(len).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (len, short) = (length(), WARM_UP_BYTES);
    let mixes = [("--http2-prior-knowledge", UpstreamProtocol::Http1), ("--http1.1", UpstreamProtocol::Http2)];
    for (version, protocol) in mixes.into_iter().chain([("--http2-prior-knowledge", UpstreamProtocol::Http2)]) {
        let mut world = World::new();
        let cluster = world.cluster("echo", &[server.address()]);
        world.protocol(cluster, protocol);
        let action = world.forward(&[(cluster, 1)]);
        world.host("echo", vec![rule(action)]);
        let proxy = Proxy::alone(&world.snapshot(), driver);
        let spoken = if version == "--http1.1" { "1.1" } else { "2" };
        let run = |len: u64| {
            forget_peak(&proxy.process);
            let down = curl(proxy.outbound(), &format!("/{len}"), &[version, "-o", "/dev/null"]);
            assert_eq!(down, format!("{spoken} {len}"));
            let down_kib = peak_kib(&proxy.process);
            forget_peak(&proxy.process);
            let up = curl(proxy.outbound(), "/up", &[version, "-T", &file(len)]);
            let digits = len.to_string().len();
            assert_eq!(up, format!("{len}{spoken} {digits}"));
            (down_kib, peak_kib(&proxy.process))
        };
        let (before, after) = (run(short), run(len));
        println!("{version} to {protocol:?}: peak {before:?} KiB with {short} bytes down and up, {after:?} with {len}");
        for (before, after) in [(before.0, after.0), (before.1, after.1)] {
            assert!(after <= before + GROWTH_KIB_MAX, "{before} to {after} KiB");
        }
    }
}
