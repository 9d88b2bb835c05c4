//! Programs that others wrote, and our own load generator, on both sides of the proxy.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    process::{Command, Output},
};

use meshring_tests::{
    alone, binaries,
    generate::{assert_same_bytes, body},
    on_both_drivers,
    process::Process,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, response},
};

on_both_drivers! {
    curl_uploads_and_downloads_byte_exact
    wrk_sees_no_errors
    the_load_generator_sees_no_failures
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `meshring-bench backend`.
fn backend() -> (Process, std::net::SocketAddr) {
    let mut process =
        Process::start("meshring-bench backend", Command::new(binaries::path("meshring-bench")).arg("backend"));
    let line = process.wait_for_line("listening on ");
    let address = line.trim_start_matches("listening on ").parse().expect("an address");
    (process, address)
}

fn curl_uploads_and_downloads_byte_exact(driver: Driver) {
    if !binaries::is_installed("curl") {
        return;
    }
    // What is uploaded comes back.
    let upstream = Upstream::answering(|request| response(200, &[], &request.body));
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let data = body(4, 3_000_000);
    let (up, down) = (proxy.dir().join("up"), proxy.dir().join("down"));
    fs::write(&up, &data).unwrap();
    let url = format!("http://{}/file", proxy.outbound());
    for coding in ["content-length: 3000000", "transfer-encoding: chunked"] {
        // curl adds `expect: 100-continue` to a body of this size; the upstream never says 100, and curl goes on.
        let arguments = ["-sS", "--fail", "--max-time", "20", "-H", "host: echo", "-H", coding, "-T"];
        let paths = [up.to_str().unwrap(), "-o", down.to_str().unwrap(), &url];
        let output = run("curl", &[&arguments[..], &paths].concat());
        assert!(output.status.success(), "{coding}: {}", String::from_utf8_lossy(&output.stderr));
        assert_same_bytes(&fs::read(&down).unwrap(), &data);
    }
    let output = run("curl", &["-sSI", "-H", "host: echo", &url]);
    assert!(stdout(&output).starts_with("HTTP/1.1 200 "), "{output:?}");
}

fn wrk_sees_no_errors(driver: Driver) {
    if !binaries::is_installed("wrk") {
        return;
    }
    let _alone = alone();
    let (_backend, address) = backend();
    let proxy = Proxy::alone(&World::with_echo(address), driver);
    let url = format!("http://{}/", proxy.outbound());
    let text = stdout(&run("wrk", &["-t1", "-c32", "-d1s", "-H", "Host: echo", &url]));
    assert!(text.contains("requests in"), "{text}");
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    let requests: f64 = text.lines().find_map(|l| l.strip_prefix("Requests/sec:")).unwrap().trim().parse().unwrap();
    assert!(requests > 100.0, "{text}");
}

fn the_load_generator_sees_no_failures(driver: Driver) {
    let _alone = alone();
    let (_backend, address) = backend();
    let proxy = Proxy::alone(&World::with_echo(address), driver);
    let url = format!("http://{}/", proxy.outbound());
    let bench = binaries::path("meshring-bench");
    let arguments = ["load", &url, "-H", "host: echo", "-o", "json", "--connections", "32", "--requests", "5000"];
    let output = run(bench.to_str().unwrap(), &[&arguments[..], &["--duration", "60s"]].concat());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!((&report["statuses"]["2xx"], &report["failed"]), (&5000.into(), &0.into()), "{report}");
}

#[test]
fn a_server_of_the_python_library_is_a_fine_upstream() {
    if !binaries::is_installed("python3") {
        return;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let data = body(5, 1_500_000);
    fs::write(dir.path().join("file"), &data).unwrap();
    // HTTP/1.0 as it is by default, then HTTP/1.1 with keep-alive.
    for protocol in ["HTTP/1.0", "HTTP/1.1"] {
        let script = format!(
            "import http.server as s; h = s.SimpleHTTPRequestHandler; h.protocol_version = '{protocol}'\n\
             server = s.ThreadingHTTPServer(('127.0.0.1', 0), h); print('port', server.server_port, flush=True)\n\
             server.serve_forever()"
        );
        let mut command = Command::new("python3");
        let mut server = Process::start("python3", command.args(["-c", &script]).current_dir(dir.path()));
        let line = server.wait_for_line("port ");
        let port: u16 = line.trim_start_matches("port ").parse().unwrap();
        let proxy = Proxy::alone(&World::with_echo(([127, 0, 0, 1], port).into()), Driver::Auto);
        let mut client = proxy.connect();
        for _ in 0..3 {
            assert_same_bytes(&client.get("echo", "/file").expect(200).body, &data);
            client.get("echo", "/missing").expect(404);
        }
    }
}
