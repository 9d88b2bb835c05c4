//! The generator and the backend, as users run them, against each other.
#![expect(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
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
    /// With a certificate for localhost and 127.0.0.1 that is its own root; gives its file.
    fn start_tls(dir: &Path) -> (Self, String) {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let own = rcgen::generate_simple_self_signed(names).unwrap();
        let file = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let cert = file("cert.pem", own.cert.pem());
        let key = file("key.pem", own.signing_key.serialize_pem());
        (Self::start(&["--tls-cert", &cert, "--tls-key", &key]), cert)
    }

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
        self.load_with("http", arguments)
    }

    fn load_with(&self, scheme: &str, arguments: &[&str]) -> (Output, Value) {
        let output = Command::new(BINARY)
            .args(["load", &format!("{scheme}://{}/", self.address), "-o", "json"])
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
fn large_responses_come_in_order_with_what_is_asked_for_between_them() {
    const BODY: usize = 3_000_000;
    let backend = Backend::start(&["--body-bytes", &BODY.to_string()]);
    let mut stream = TcpStream::connect(&backend.address).unwrap();
    let ask = |method: &str, more: &str| format!("{method} / HTTP/1.1\r\nhost: a\r\n{more}\r\n");
    let requests =
        [ask("HEAD", ""), ask("GET", ""), ask("HEAD", ""), ask("GET", ""), ask("GET", "connection: close\r\n")];
    stream.write_all(requests.concat().as_bytes()).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    let head = |more: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{more}content-length: {BODY}\r\n\r\n").into_bytes()
    };
    let body = vec![b'x'; BODY];
    let (kept, last) = (head(""), head("connection: close\r\n"));
    let expected = [&kept[..], &kept, &body, &kept, &kept, &body, &last, &body].concat();
    assert!(received == expected, "{} bytes, {} expected", received.len(), expected.len());
}

#[test]
fn every_body_is_compared_with_the_expected_hash() {
    let backend = Backend::start(&["--body-bytes", "100000"]);
    let sha256 = |body: &[u8]| -> String {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let mut changed = vec![b'x'; 100_000];
    changed[70_000] = b'y';
    for protocol in [&[][..], &["--h2", "--streams", "4"]] {
        for (hash, wrong) in [(sha256(&[b'x'; 100_000]), 0), (sha256(&[b'x'; 99_999]), 200), (sha256(&changed), 200)] {
            let arguments = ["--connections", "4", "--requests", "200", "--duration", "60s", "--body-sha256", &hash];
            let (output, report) = backend.load(&[&arguments[..], protocol].concat());
            assert_eq!(output.status.code(), Some(i32::from(wrong > 0)), "{report}");
            assert_eq!(report["bodies_checked"], true);
            assert_eq!(report["requests"], 200, "{report}");
            assert_eq!(
                (&report["failed"], &report["failures"]["wrong_bodies"]),
                (&wrong.into(), &wrong.into()),
                "{report}"
            );
        }
    }
    let (_, report) = backend.load(&["--connections", "1", "--requests", "1"]);
    assert_eq!(report["bodies_checked"], false);
}

#[test]
fn a_dead_server_fails_the_load_and_wrong_usage_is_told_from_it() {
    let mut backend = Backend::start(&[]);
    backend.child.kill().unwrap();
    backend.child.wait().unwrap();
    let (output, report) = backend.load(&["--connections", "2", "--requests", "4", "--duration", "10s"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report["failures"]["connect"], 4);

    for arguments in [
        &["load"][..],
        &["load", "ftp://a/"],
        &["load", "https://a/"],
        &["load", "https://a/", "--insecure", "--resume"],
        &["load", "http://a/", "--rate", "0"],
        &["load", "http://a/", "--body-sha256", "abcd"],
        &["load", "http://a/", "--method", "HEAD", "--body-sha256", &"0".repeat(64)],
    ] {
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

#[test]
fn requests_over_tls_share_the_handshakes_of_their_connections() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, ca) = Backend::start_tls(dir.path());
    for (version, shown) in [("1.2", "TLSv1_2"), ("1.3", "TLSv1_3")] {
        let arguments =
            ["--ca", &ca, "--tls", version, "--connections", "8", "--requests", "2000", "--duration", "60s"];
        let (output, report) = backend.load_with("https", &arguments);
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert_eq!((&report["statuses"]["2xx"], &report["failed"]), (&2000.into(), &0.into()), "{report}");
        assert_eq!(report["tls"]["full_handshakes"], 8, "{report}");
        assert_eq!(report["tls"]["negotiated"]["version"], shown, "{report}");
        assert_eq!(report["tls"]["negotiated"]["group"], "X25519", "{report}");
    }
}

#[test]
fn bodies_of_many_records_pass_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, ca) = Backend::start_tls(dir.path());
    let arguments =
        ["--ca", &ca, "--body-bytes", "3000000", "--connections", "4", "--requests", "20", "--duration", "60s"];
    let (output, report) = backend.load_with("https", &arguments);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["statuses"]["2xx"], 20, "{report}");
}

#[test]
fn new_connections_make_a_handshake_each_and_resume_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, ca) = Backend::start_tls(dir.path());
    let arguments = ["--ca", &ca, "--new-connections", "--connections", "4", "--requests", "200", "--duration", "60s"];
    for (more, full, resumed) in [(&[][..], 200, 0), (&["--resume"], 4, 196), (&["--rate", "1000"], 200, 0)] {
        let (output, report) = backend.load_with("https", &[&arguments, more].concat());
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert_eq!(report["statuses"]["2xx"], 200, "{report}");
        assert_eq!(report["tls"]["full_handshakes"], full, "{report}");
        assert_eq!(report["tls"]["resumed_handshakes"], resumed, "{report}");
    }
    let plain = Backend::start(&[]);
    let (output, report) = plain.load(&["--new-connections", "--connections", "4", "--requests", "200"]);
    assert_eq!((output.status.code(), &report["statuses"]["2xx"]), (Some(0), &200.into()), "{report}");
    assert!(report.get("tls").is_none(), "{report}");
}

#[test]
fn tls_that_is_not_trusted_or_not_there_fails_as_tls_or_early_end() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, ca) = Backend::start_tls(dir.path());
    let few = ["--connections", "2", "--requests", "4", "--duration", "30s"];
    for more in [&["--ca", &ca, "--sni", "other.test"][..], &["--insecure", "--cert", &ca, "--key", &ca]] {
        let output = Command::new(BINARY)
            .args(["load", &format!("https://{}/", backend.address)])
            .args([&few[..], more].concat())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{more:?}: {output:?}");
    }
    let (_, report) = backend.load_with("https", &[&few[..], &["--ca", &ca, "--sni", "other.test"]].concat());
    assert_eq!((&report["failures"]["tls"], &report["failed"]), (&4.into(), &4.into()), "{report}");
    let (output, report) = backend.load_with("https", &[&few[..], &["--insecure", "--sni", "other.test"]].concat());
    assert_eq!(output.status.code(), Some(0), "{report}");
    // The server answers plain HTTP with 400, which is no TLS; or TLS with an alert.
    let plain = Backend::start(&[]);
    let (_, report) = plain.load_with("https", &[&few[..], &["--insecure"]].concat());
    assert_eq!((&report["failures"]["tls"], &report["failed"]), (&4.into(), &4.into()), "{report}");
    let (_, report) = backend.load(&few);
    assert_eq!(report["failed"], 4, "{report}");
}

#[test]
fn idle_tls_connections_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, ca) = Backend::start_tls(dir.path());
    let output = Command::new(BINARY)
        .args([
            "idle",
            &format!("https://{}/", backend.address),
            "--ca",
            &ca,
            "--connections",
            "50",
            "--settle",
            "10ms",
        ])
        .args(["--pid", &backend.child.id().to_string(), "-o", "json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["connections"], &report["lost"]), (&50.into(), &0.into()));
}

#[test]
fn requests_over_http2_share_the_connections_in_streams() {
    let backend = Backend::start(&["--body-bytes", "1000"]);
    let few = ["--h2", "--connections", "4", "--streams", "8", "--duration", "60s"];
    let (output, report) = backend.load(&[&few[..], &["--requests", "5000"]].concat());
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!((&report["statuses"]["2xx"], &report["failed"]), (&5000.into(), &0.into()), "{report}");
    assert_eq!(report["streams"], 8);
    assert!(report["bytes_received"].as_u64().unwrap() > 5_000_000);

    let open_loop = ["--h2", "--connections", "2", "--streams", "4", "--rate", "1000", "--duration", "500ms"];
    let (output, report) = backend.load(&open_loop);
    assert_eq!((output.status.code(), &report["statuses"]["2xx"]), (Some(0), &500.into()), "{report}");

    let (output, report) = backend.load(&[&few[..], &["--requests", "100", "--method", "HEAD"]].concat());
    assert_eq!((output.status.code(), &report["statuses"]["2xx"]), (Some(0), &100.into()), "{report}");
}

#[test]
fn grpc_calls_are_answered_with_their_message() {
    let backend = Backend::start(&[]);
    // An empty message; one; one that does not fit into a frame; one that does not fit into a window.
    for bytes in ["0", "100", "20000", "3000000"] {
        let arguments = ["--grpc", "--connections", "2", "--streams", "3", "--requests", "60", "--duration", "60s"];
        let (output, report) = backend.load(&[&arguments[..], &["--body-bytes", bytes]].concat());
        assert_eq!(output.status.code(), Some(0), "{bytes}: {report}");
        assert_eq!(report["statuses"]["2xx"], 60, "{bytes}: {report}");
    }
    // One more byte than gRPC takes by default.
    let too_long = ["--grpc", "--connections", "1", "--requests", "2", "--body-bytes", "4194304"];
    let (output, report) = backend.load(&too_long);
    assert_eq!((output.status.code(), &report["failures"]["grpc"]), (Some(1), &2.into()), "{report}");
}

#[test]
fn bodies_larger_than_the_windows_pass_in_both_directions_over_http2() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::start(&["--body-bytes", "5000000"]);
    let arguments = ["--h2", "--body-bytes", "3000000", "--connections", "2", "--streams", "4", "--requests", "40"];
    let (output, report) = backend.load(&arguments);
    assert_eq!((output.status.code(), &report["statuses"]["2xx"]), (Some(0), &40.into()), "{report}");
    let (backend, ca) = Backend::start_tls(dir.path());
    let (output, report) = backend.load_with("https", &[&arguments[..], &["--ca", &ca]].concat());
    assert_eq!((output.status.code(), &report["statuses"]["2xx"]), (Some(0), &40.into()), "{report}");
    assert_eq!(report["tls"]["full_handshakes"], 2, "{report}");
}

#[test]
fn requests_that_are_held_back_time_out_and_spare_their_connections() {
    let backend = Backend::start(&[]);
    for arguments in [&["--h2", "--streams", "2"][..], &[]] {
        let output = Command::new(BINARY)
            .args(["load", &format!("http://{}/hold/x", backend.address), "-o", "json"])
            .args(["--connections", "1", "--requests", "4", "--timeout", "100ms"])
            .args(arguments)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), &report["failures"]["timeouts"]), (Some(1), &4.into()), "{report}");
    }
}

#[test]
fn streams_need_http2_and_http2_needs_a_server_that_speaks_it() {
    for arguments in [&["--streams", "2"][..], &["--h2", "--new-connections"], &["--grpc", "--method", "PUT"]] {
        let output = Command::new(BINARY).args(["load", "http://127.0.0.1:1/"]).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut preface = [0; 24];
            let _ = stream.read_exact(&mut preface);
            let _ = stream.write_all(b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let output = Command::new(BINARY)
        .args(["load", &format!("http://{address}/"), "-o", "json", "--h2", "--connections", "1", "--requests", "2"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report["failures"]["malformed"].as_u64() >= Some(2), "{report}");
}

#[test]
fn idle_streams_are_opened_held_and_measured() {
    let backend = Backend::start(&[]);
    let idle = |path: &str| {
        Command::new(BINARY)
            .args(["idle", &format!("http://{}{path}", backend.address), "--h2", "--streams", "300"])
            .args(["--connections", "5", "--settle", "10ms", "--pid", &backend.child.id().to_string(), "-o", "json"])
            .output()
            .unwrap()
    };
    let output = idle("/hold/x");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["streams"], &report["lost"]), (&300.into(), &0.into()), "{report}");
    assert!(report["bytes_per_stream"].is_number(), "{report}");
    // What is answered is not idle.
    let output = idle("/");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("instead of being held back"), "{output:?}");
}
