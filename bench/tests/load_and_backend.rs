//! The generator and the backend, as users run them, against each other.
#![expect(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_meshring-bench");

/// A running backend, ended when it is dropped.
struct Backend {
    child: Child,
    address: String,
}

impl Backend {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(BINARY)
            .args(["backend", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        Self { child, address }
    }

    fn load(&self, arguments: &[&str]) -> (Output, Value) {
        let output = Command::new(BINARY)
            .args(["load", &format!("http://{}/", self.address), "-o", "json"])
            .args(arguments)
            .output()
            .unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap();
        (output, report)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_request_of_the_closed_loop_is_answered_and_counted() {
    let backend = Backend::start(&["--body-bytes", "1000"]);
    let (output, report) = backend.load(&["--connections", "16", "--requests", "5000", "--duration", "60s"]);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["requests"], 5000);
    assert_eq!(report["statuses"]["2xx"], 5000);
    assert_eq!(report["failed"], 0);
    assert!(report["bytes_received"].as_u64().unwrap() > 5_000_000);
    let latency = |name: &str| report["latency_us"][name].as_f64().unwrap();
    assert!(latency("p50") > 0.0 && latency("p50") <= latency("p99") && latency("p99") <= latency("max"), "{report}");
}

#[test]
fn the_open_loop_sends_rate_times_duration_requests() {
    let backend = Backend::start(&[]);
    let (output, report) = backend.load(&["--connections", "8", "--rate", "1000", "--duration", "500ms"]);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["requests"], 500);
    assert_eq!(report["statuses"]["2xx"], 500);
    let elapsed = report["elapsed_s"].as_f64().unwrap();
    assert!((0.49..5.0).contains(&elapsed), "{report}");
}

#[test]
fn request_bodies_and_head_requests_are_handled() {
    let backend = Backend::start(&[]);
    for arguments in [&["--body-bytes", "300000"][..], &["--method", "HEAD"]] {
        let (output, report) =
            backend.load(&[arguments, &["--connections", "4", "--requests", "100", "--duration", "60s"]].concat());
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert_eq!(report["statuses"]["2xx"], 100, "{report}");
    }
}

#[test]
fn a_dead_server_fails_the_load_and_wrong_usage_is_told_from_it() {
    let mut backend = Backend::start(&[]);
    backend.child.kill().unwrap();
    backend.child.wait().unwrap();
    let (output, report) = backend.load(&["--connections", "2", "--requests", "4", "--duration", "10s"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report["failures"]["connect"], 4);

    for arguments in [&["load"][..], &["load", "https://a/"], &["load", "http://a/", "--rate", "0"]] {
        let output = Command::new(BINARY).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_backend_answers_pipelined_requests_in_order_and_ends_the_connection_when_asked() {
    let backend = Backend::start(&["--body-bytes", "3"]);
    let mut stream = TcpStream::connect(&backend.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
        .write_all(
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n\
              POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n\
              HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        )
        .unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let plain = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nxxx";
    let last = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 3\r\n\r\n";
    assert_eq!(answers, format!("{plain}{plain}{last}"));
}

#[test]
fn the_backend_refuses_what_is_not_http() {
    let backend = Backend::start(&[]);
    let mut stream = TcpStream::connect(&backend.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"\x16\x03\x01 hello\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn idle_connections_are_opened_kept_and_measured() {
    let backend = Backend::start(&[]);
    let output = Command::new(BINARY)
        .args(["idle", &format!("http://{}/", backend.address), "--connections", "200", "--settle", "100ms"])
        .args(["--pid", &backend.child.id().to_string(), "-o", "json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["connections"], &report["lost"]), (&200.into(), &0.into()));
    assert!(report["after"]["rss"].as_u64().unwrap() > 0);
}
