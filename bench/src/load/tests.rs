use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Wrapper {
    #[command(flatten)]
    args: LoadArgs,
}

/// Runs a load with the given arguments against a server.
pub(super) fn load(address: std::net::SocketAddr, arguments: &str) -> LoadReport {
    let url = format!("http://{address}/");
    let words = ["load", &url].into_iter().chain(arguments.split_whitespace());
    let args = Wrapper::try_parse_from(words).unwrap().args;
    let report = generate(&args, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.statuses.total() + report.failures.total(), report.requests, "{report}");
    report
}

/// A server that handles one connection after the other with `serve`, which gets the connection's number.
fn server(serve: impl Fn(usize, std::net::TcpStream) + Send + 'static) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            serve(index, stream.unwrap());
        }
    });
    address
}

/// Reads one request without a body; false at the end of the connection.
fn read_request(mut stream: &std::net::TcpStream) -> bool {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => request.extend_from_slice(&buffer[..count]),
            _ => return false,
        }
    }
    true
}

fn answer_all(mut stream: &std::net::TcpStream, answer: &[u8]) {
    while read_request(stream) {
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

#[test]
fn statuses_are_counted_by_class_and_4xx_and_5xx_fail() {
    for (status, failed) in [(204_u16, false), (301, false), (404, true), (503, true)] {
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
        let address = server(move |_, stream| answer_all(&stream, answer.as_bytes()));
        let report = load(address, "--connections 1 --requests 10 --duration 10s");
        let counts = [
            report.statuses.successful,
            report.statuses.redirection,
            report.statuses.client_error,
            report.statuses.server_error,
        ];
        assert_eq!(counts[usize::from(status / 100 - 2)], 10, "{report}");
        assert_eq!(report.failed, if failed { 10 } else { 0 }, "{report}");
    }
}

#[test]
fn a_refused_connection_is_a_connect_failure_in_both_loops() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for arguments in ["--requests 3", "--requests 3 --rate 1000"] {
        let report = load(address, &format!("--connections 2 --duration 5s {arguments}"));
        assert_eq!((report.failures.connect, report.failed), (3, 3), "{report}");
        assert!(report.first_failure.unwrap().contains("refused"));
    }
}

#[test]
fn an_answer_cut_short_is_closed_early() {
    let address = server(|_, mut stream| {
        if read_request(&stream) {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
        }
    });
    let report = load(address, "--connections 1 --requests 3 --duration 10s");
    assert_eq!((report.failures.closed_early, report.failed), (3, 3), "{report}");
}

#[test]
fn an_answer_that_is_not_http_is_malformed() {
    let address = server(|_, stream| answer_all(&stream, b"+PONG\r\n\r\n"));
    let report = load(address, "--connections 1 --requests 2 --duration 10s");
    assert_eq!((report.failures.malformed, report.failed), (2, 2), "{report}");
}

#[test]
fn a_connection_that_the_server_resets_counts_as_reset_or_closed_early() {
    let address = server(|_, stream| {
        // Closing with unread input makes the kernel send RST.
        let mut byte = [0];
        let _ = (&stream).read(&mut byte);
    });
    let report = load(address, "--connections 1 --requests 3 --duration 10s");
    assert_eq!(report.failures.resets + report.failures.closed_early, 3, "{report}");
    assert_eq!(report.failed, 3, "{report}");
}

#[test]
fn connection_close_opens_a_new_connection_and_fails_nothing() {
    let address = server(|_, mut stream| {
        if read_request(&stream) {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").unwrap();
        }
    });
    let report = load(address, "--connections 1 --requests 20 --duration 10s");
    assert_eq!((report.statuses.successful, report.failed), (20, 0), "{report}");
}

#[test]
fn a_silent_server_ends_in_timeouts_not_in_a_hang() {
    let address = server(|_, stream| while read_request(&stream) {});
    let report = load(address, "--connections 1 --requests 2 --duration 10s --timeout 100ms");
    assert_eq!((report.failures.timeouts, report.failed), (2, 2), "{report}");
}

#[test]
fn requests_of_the_open_loop_that_find_no_connection_are_unsent() {
    let address = server(|_, stream| while read_request(&stream) {});
    // One connection, which waits 200 ms for each request; 100 requests in the first 100 ms.
    let report = load(address, "--connections 1 --rate 1000 --duration 100ms --timeout 200ms");
    assert_eq!(report.requests, 100, "{report}");
    assert_eq!(report.failed, 100, "{report}");
    assert!(report.failures.unsent > 0 && report.failures.timeouts > 0, "{report}");
}

#[test]
fn the_open_loop_counts_latency_from_the_intended_send_time() {
    let stall = Duration::from_millis(300);
    let address = server(move |_, mut stream| {
        let mut first = true;
        while read_request(&stream) {
            if std::mem::take(&mut first) {
                thread::sleep(stall);
            }
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
                return;
            }
        }
    });
    // All 100 requests are meant for the time of the stall, so the median of their latencies is about half of it.
    let report = load(address, "--connections 1 --rate 1000 --duration 100ms");
    assert_eq!((report.statuses.successful, report.failed), (100, 0), "{report}");
    assert!(report.latency_us.p50 > 200_000.0, "{report}");
}
