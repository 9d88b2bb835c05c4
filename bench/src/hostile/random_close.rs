//! An upstream that closes idle connections at random and says so to nobody (fault 30): its clients must not notice, and
//! nothing that may have been processed is sent twice.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::HostileArgs;
use super::report::Report;
use super::site::{ATTACKED, Attacked, Site};
use crate::client;
use crate::http::ResponseDecoder;
use crate::mesh::ProxyStart;

/// One connection in so many is closed after a response.
const CLOSED_ONE_IN: u64 = 50;
/// The longest idle time before such a close, in microseconds: the next request may be under way already.
const IDLE_US_MAX: u64 = 2_000;

/// What the upstream has executed, by the number of the request.
#[derive(Debug)]
struct Executed {
    times: Vec<AtomicU8>,
    closed: AtomicU64,
}

/// What the clients have seen.
#[derive(Debug, Default)]
struct Seen {
    gets_failed: AtomicU64,
    posts_failed: AtomicU64,
    /// POSTs that met a closing connection and were answered 502 instead of being sent again (RFC 9110 section 9.2.2).
    posts_not_repeated: AtomicU64,
}

pub(super) fn run(args: &HostileArgs, interrupted: &AtomicBool) -> anyhow::Result<Report> {
    let requests = args.requests.get();
    let executed =
        Arc::new(Executed { times: (0..requests).map(|_| AtomicU8::new(0)).collect(), closed: AtomicU64::new(0) });
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    let upstream = listener.local_addr()?;
    let shared = Arc::clone(&executed);
    // Lives as long as the process.
    thread::spawn(move || serve(&listener, &shared));
    let mut site = Site::start(args, &Attacked::At(upstream), &ProxyStart::default(), interrupted)?;
    let seen = Seen::default();
    let address = site.address;
    let next = AtomicU64::new(0);
    let load = thread::scope(|scope| {
        let clients: Vec<_> = (0..args.connections())
            .map(|_| scope.spawn(|| send(address, requests, &next, &seen, interrupted)))
            .collect();
        let load = site.load(args.duration, |_| Ok(()))?;
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)?;
        anyhow::Ok(load)
    })?;

    let mut report = Report::new(args.drill, args.connections());
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let times = |number: usize| executed.times[number].load(Ordering::Relaxed);
    let posts = (0..requests as usize).filter(|number| is_post(*number as u64));
    let twice = posts.filter(|&number| times(number) > 1).count();
    let never = (0..requests as usize).filter(|&number| times(number) == 0).count() as f64;
    report.tell("requests", requests as f64, "requests");
    report.at_least("connections closed by the upstream while idle", count(&executed.closed), "connections", 1.0);
    report.at_most("POSTs executed twice", twice as f64, "requests", 0.0);
    report.at_most("GETs that failed", count(&seen.gets_failed), "requests", 0.0);
    report.at_most("POSTs that failed for a reason of ours", count(&seen.posts_failed), "requests", 0.0);
    let not_repeated = count(&seen.posts_not_repeated);
    report.tell("POSTs that met a closing connection and were not repeated", not_repeated, "requests");
    report.at_most("requests never executed beside those", never - not_repeated, "requests", 0.0);
    report.others(args, &[&load]);
    report.tell("others' p99", load.load.latency_us.p99, "us");
    Ok(report)
}

/// Each other request is a POST.
fn is_post(number: u64) -> bool {
    number % 2 == 1
}

/// Sends requests until all have been sent.
fn send(
    address: SocketAddr,
    requests: u64,
    next: &AtomicU64,
    seen: &Seen,
    interrupted: &AtomicBool,
) -> anyhow::Result<()> {
    let mut stream = client::open(address, Duration::from_secs(10))?;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= requests || interrupted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let request = if is_post(number) {
            format!("POST /{number} HTTP/1.1\r\nhost: {ATTACKED}\r\ncontent-length: 4\r\n\r\npaid")
        } else {
            format!("GET /{number} HTTP/1.1\r\nhost: {ATTACKED}\r\n\r\n")
        };
        let outcome = exchange(&mut stream, request.as_bytes());
        let (answered, keep_alive) = match &outcome {
            Ok((response, keep_alive)) => (Some(response.as_slice()), *keep_alive),
            Err(_) => (None, false),
        };
        let failed = match answered {
            Some(response) if response.starts_with(b"HTTP/1.1 200 ") && response.ends_with(b"\r\n\r\nok") => None,
            Some(response) if is_post(number) && is_not_repeated(response) => Some(&seen.posts_not_repeated),
            _ if is_post(number) => Some(&seen.posts_failed),
            _ => Some(&seen.gets_failed),
        };
        if let Some(counter) = failed {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if !keep_alive {
            stream = client::open(address, Duration::from_secs(10))?;
        }
    }
}

/// The proxy's words for a connection that was closed under a request.
fn is_not_repeated(response: &[u8]) -> bool {
    let text = String::from_utf8_lossy(response);
    text.starts_with("HTTP/1.1 502 ") && text.contains("closed the connection before it sent a response")
}

/// One request, and all of its response.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> io::Result<(Vec<u8>, bool)> {
    stream.write_all(request)?;
    let mut decoder = ResponseDecoder::new(false);
    let (mut response, mut space) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut space)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        response.extend_from_slice(&space[..count]);
        let fed = decoder.feed(&space[..count]).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        if let Some(answer) = fed {
            return Ok((response, answer.keep_alive));
        }
    }
}

fn serve(listener: &TcpListener, executed: &Arc<Executed>) {
    for (number, stream) in (1_u64..).zip(listener.incoming()) {
        let Ok(stream) = stream else { continue };
        let executed = Arc::clone(executed);
        thread::spawn(move || {
            // How a connection ends is the drill's subject, not an error.
            let _ = serve_one(&stream, &executed, number);
        });
    }
}

/// Answers requests, and ends the connection at a random time between two.
fn serve_one(stream: &TcpStream, executed: &Executed, seed: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    for answered in 0_u64.. {
        // Waiting for a next request is what may end at random; a request that has begun is read and answered.
        let closes = answered > 0 && random(&mut state).is_multiple_of(CLOSED_ONE_IN);
        let idle = Duration::from_micros(1 + random(&mut state) % IDLE_US_MAX);
        if closes && reader.buffer().is_empty() && !is_readable_within(stream, idle)? {
            executed.closed.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let Some(number) = read_request(&mut reader)? else { return Ok(()) };
        if let Some(times) = executed.times.get(number) {
            times.fetch_add(1, Ordering::Relaxed);
        }
        writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
    }
    Ok(())
}

/// A socket's read timeout would be rounded up to the kernel's tick, which is longer than most idle times.
fn is_readable_within(stream: &TcpStream, time: Duration) -> io::Result<bool> {
    let time = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    Ok(poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&time))? > 0)
}

/// Reads one request, its body included; gives the number that is its path.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<usize>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let number = line.split(' ').nth(1).and_then(|path| path.strip_prefix('/')?.parse().ok());
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
    io::copy(&mut reader.take(length), &mut io::sink())?;
    // A request without a number is none of ours.
    Ok(Some(number.unwrap_or(usize::MAX)))
}

/// The next of a sequence that looks random (SplitMix64).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_by_their_numbers_and_bodies_are_read() {
        let wire = b"GET /7 HTTP/1.1\r\nhost: a\r\n\r\nPOST /8 HTTP/1.1\r\nContent-Length: 4\r\n\r\npaidGET / HTTP/1.1\r\n\r\n";
        let mut reader = &wire[..];
        let numbers: Vec<_> = std::iter::from_fn(|| read_request(&mut reader).unwrap()).collect();
        assert_eq!(numbers, [7, 8, usize::MAX]);
    }

    #[test]
    fn only_the_refusal_to_repeat_is_told_from_failures_of_ours() {
        let words = "meshring: Bad Gateway (upstream): 127.0.0.1:1: the upstream closed the connection before it sent a response";
        assert!(is_not_repeated(format!("HTTP/1.1 502 Bad Gateway\r\n\r\n{words}").as_bytes()));
        assert!(!is_not_repeated(format!("HTTP/1.1 503 Service Unavailable\r\n\r\n{words}").as_bytes()));
        assert!(!is_not_repeated(b"HTTP/1.1 502 Bad Gateway\r\n\r\nmeshring: Bad Gateway (upstream): reset"));
    }
}
