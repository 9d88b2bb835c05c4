use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use super::super::report::LoadReport;
use super::super::tests::load;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// An answer with this status and nothing else.
fn answer(stream: u32, status: &str) -> Vec<u8> {
    frame(HEADERS, 0x5, stream, &[b"\x08\x03", status.as_bytes()].concat())
}

/// A server that sends what `answers` gives for the streams of each request, and ends the connection when that gives nothing.
/// Its settings are the given ones; the number of the connection comes first.
fn server(
    settings: &'static [u8],
    answers: impl Fn(usize, u32) -> Option<Vec<u8>> + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let answers = answers.clone();
            thread::spawn(move || serve(stream.unwrap(), settings, |stream| answers(index, stream)));
        }
    });
    address
}

fn serve(mut socket: TcpStream, settings: &[u8], answers: impl Fn(u32) -> Option<Vec<u8>>) -> Option<()> {
    socket.write_all(&frame(SETTINGS, 0, 0, settings)).ok()?;
    socket.read_exact(&mut [0; 24]).ok()?;
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).ok()?;
        let [l0, l1, l2, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        socket.read_exact(&mut payload).ok()?;
        if kind == HEADERS {
            socket.write_all(&answers(u32::from_be_bytes(stream))?).ok()?;
        }
    }
}

fn load_http2(address: SocketAddr, arguments: &str) -> LoadReport {
    load(address, &format!("--h2 --duration 10s {arguments}"))
}

#[test]
fn statuses_are_counted_over_http2_as_over_http1() {
    for (status, failed) in [("204", 0), ("301", 0), ("404", 10), ("503", 10)] {
        let address = server(&[], move |_, stream| Some(answer(stream, status)));
        let report = load_http2(address, "--connections 2 --streams 2 --requests 10");
        assert_eq!((report.statuses.total(), report.failed), (10, failed), "{report}");
    }
}

#[test]
fn resets_and_refusals_fail_their_stream_alone() {
    let address = server(&[], |_, stream| {
        Some(match stream % 6 {
            1 => frame(RST_STREAM, 0, stream, &[0, 0, 0, 7]),
            3 => frame(RST_STREAM, 0, stream, &[0, 0, 0, 2]),
            _ => answer(stream, "200"),
        })
    });
    let report = load_http2(address, "--connections 1 --streams 3 --requests 30");
    assert_eq!((report.failures.streams_refused, report.failures.stream_resets), (10, 10), "{report}");
    assert_eq!((report.statuses.successful, report.failed), (10, 20), "{report}");
}

#[test]
fn streams_that_a_server_goes_away_from_fail_and_the_next_ones_get_a_connection() {
    // Each connection takes three streams and names the second one as the last.
    let address = server(&[], |_, stream| {
        Some(match stream {
            1 | 3 => Vec::new(),
            5 => [frame(GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]), answer(1, "200"), answer(3, "200")].concat(),
            _ => return None,
        })
    });
    let report = load_http2(address, "--connections 1 --streams 3 --requests 9");
    assert_eq!((report.failures.gone_away, report.statuses.successful), (3, 6), "{report}");
    assert_eq!(report.failed, 3, "{report}");
}

#[test]
fn a_connection_that_ends_fails_all_of_its_streams() {
    let address = server(&[], |_, stream| (stream < 7).then(Vec::new));
    let report = load_http2(address, "--connections 1 --streams 4 --requests 8");
    assert_eq!((report.failures.closed_early + report.failures.resets, report.failed), (8, 8), "{report}");
}

#[test]
fn a_server_that_allows_few_streams_gets_no_more() {
    let few = &[0, 3, 0, 0, 0, 2];
    let address = server(few, |_, stream| {
        // The first two are answered together: with a third one open the server would be wronged.
        Some(match stream {
            1 => Vec::new(),
            3 => [answer(1, "200"), answer(3, "200")].concat(),
            _ => answer(stream, "200"),
        })
    });
    let report = load_http2(address, "--connections 1 --streams 50 --requests 20");
    assert_eq!((report.statuses.successful, report.failed), (20, 0), "{report}");
}

#[test]
fn a_malformed_answer_ends_its_stream_and_broken_frames_the_connection() {
    let address = server(&[], |index, stream| {
        Some(match index {
            0 => frame(DATA, 1, stream, b"x"),
            _ => frame(99, 0, 0, &[0; 20_000]),
        })
    });
    let report = load_http2(address, "--connections 2 --streams 1 --requests 6");
    assert_eq!((report.failures.malformed, report.failed), (6, 6), "{report}");
}

#[test]
fn silent_streams_end_in_timeouts_and_those_that_find_none_are_unsent() {
    let address = server(&[], |_, _| Some(Vec::new()));
    let report = load_http2(address, "--connections 1 --streams 2 --requests 4 --timeout 100ms");
    assert_eq!((report.failures.timeouts, report.failed), (4, 4), "{report}");
    let address = server(&[], |_, _| Some(Vec::new()));
    let report = load(address, "--h2 --connections 1 --streams 2 --rate 1000 --duration 100ms --timeout 200ms");
    assert_eq!((report.requests, report.failed), (100, 100), "{report}");
    assert!(report.failures.unsent > 0 && report.failures.timeouts > 0, "{report}");
}

#[test]
fn a_refused_connection_fails_the_requests_that_it_was_to_carry() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for arguments in ["--requests 5", "--requests 5 --rate 1000"] {
        let report = load_http2(address, &format!("--connections 2 --streams 3 {arguments}"));
        assert_eq!((report.failures.connect, report.failed), (5, 5), "{report}");
    }
}
