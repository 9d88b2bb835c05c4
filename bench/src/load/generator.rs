//! The generator's event loop. Each connection carries one request at a time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::LoadArgs;
use super::report::{Failure, Failures, LoadReport, Mode, Statuses, TlsReport};
use super::schedule::Schedule;
use super::target::encode_request;
use crate::http::{Answer, ResponseDecoder};
use crate::limits::{EVENTS_PER_WAIT_MAX, READ_BUFFER_BYTES, RECONNECT_PAUSE, SWEEP_INTERVAL};
use crate::poller::{Event, Interest, Poller, Token};
use crate::stats::Latencies;
use crate::tls::{self, Socket};

/// Sends the load that the arguments describe. Ends early, with the report so far, once `interrupted` is set.
pub(super) fn run(args: &LoadArgs, interrupted: &AtomicBool) -> anyhow::Result<LoadReport> {
    let address = args.url.resolve()?;
    crate::process::raise_file_limit();
    let mut generator = Generator::new(args, address)?;
    generator.establish(interrupted)?;
    let start = Instant::now();
    generator.pace = match args.rate {
        Some(rate) => Pace::Open(Schedule::new(start, rate, args.duration, args.requests)),
        None => {
            Pace::Closed { end: start + args.duration, left: args.requests.map_or(u64::MAX, std::num::NonZeroU64::get) }
        }
    };
    generator.run(interrupted)?;
    Ok(generator.report(args, start))
}

/// When requests are sent.
enum Pace {
    /// Connections are being opened; no requests yet.
    NotStarted,
    Open(Schedule),
    Closed {
        end: Instant,
        left: u64,
    },
}

impl Pace {
    /// Takes the next request that is to be sent now; gives its intended send time.
    fn take_due(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Self::NotStarted => None,
            Self::Open(schedule) => schedule.take_due(now),
            Self::Closed { end, left } => {
                let due = now < *end && *left > 0;
                *left -= u64::from(due);
                due.then_some(now)
            }
        }
    }

    fn exhausted(&self, now: Instant) -> bool {
        match self {
            Self::NotStarted => true,
            Self::Open(schedule) => schedule.next_at().is_none(),
            Self::Closed { end, left } => now >= *end || *left == 0,
        }
    }

    fn stop(&mut self) {
        match self {
            Self::NotStarted => {}
            Self::Open(schedule) => schedule.stop(),
            Self::Closed { left, .. } => *left = 0,
        }
    }
}

const UNSENT: &str = "all connections were busy";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Connecting,
    Handshaking,
    Idle,
    /// Part of the request did not fit into the socket buffer.
    Sending,
    Awaiting,
}

struct Connection {
    /// How to speak TLS on it.
    tls: Option<tls::Client>,
    socket: Option<Socket>,
    state: State,
    /// What the poller watches the socket for.
    interest: Interest,
    /// Counts the streams of this slot, to tell events of an earlier one.
    turn: u32,
    decoder: ResponseDecoder,
    /// Request bytes sent, or taken by TLS to be sent.
    sent: usize,
    /// Intended send time of the request that this connection carries.
    intended: Option<Instant>,
    deadline: Instant,
}

impl Connection {
    fn watch(&mut self, poller: &Poller, slot: u32, wanted: Interest) -> io::Result<()> {
        let Some(socket) = self.socket.as_ref().filter(|_| self.interest != wanted) else { return Ok(()) };
        poller.modify(socket, Token { slot, turn: self.turn }, wanted)?;
        self.interest = wanted;
        Ok(())
    }
}

struct Generator {
    address: SocketAddr,
    request: Vec<u8>,
    timeout: Duration,
    new_connections: bool,
    pace: Pace,
    poller: Poller,
    connections: Vec<Connection>,
    /// Connections that can take a request: idle ones, and closed ones, which it opens again.
    free: VecDeque<u32>,
    /// Failed connections of the closed loop, and when they are free again.
    resting: VecDeque<(Instant, u32)>,
    in_flight: usize,
    connecting: usize,
    buffer: Box<[u8]>,
    statuses: Statuses,
    failures: Failures,
    first_failure: Option<String>,
    latencies: Latencies,
    bytes_received: u64,
    /// None without TLS.
    tls: Option<TlsReport>,
    last_end: Option<Instant>,
    /// What the poller's timer is set to.
    armed: Option<Instant>,
    next_sweep: Instant,
}

impl Generator {
    fn new(args: &LoadArgs, address: SocketAddr) -> anyhow::Result<Self> {
        let now = Instant::now();
        let to_head = args.method.as_ref().is_some_and(super::target::Method::is_head);
        let tls = args.url.tls(&args.tls)?;
        let tls_report = tls.is_some().then(TlsReport::default);
        let tls_of_one = || match &tls {
            Some(tls) if args.resume => Some(tls.with_memory()),
            tls => tls.clone(),
        };
        let connections = (0..args.connections)
            .map(|_| Connection {
                tls: tls_of_one(),
                socket: None,
                state: State::Closed,
                interest: Interest::Nothing,
                turn: 0,
                decoder: ResponseDecoder::new(to_head),
                sent: 0,
                intended: None,
                deadline: now,
            })
            .collect();
        Ok(Self {
            address,
            request: encode_request(
                &args.url,
                args.method.as_ref(),
                &args.headers,
                args.body_bytes,
                args.new_connections,
            ),
            timeout: args.timeout,
            new_connections: args.new_connections,
            pace: Pace::NotStarted,
            poller: Poller::new().context("cannot create an epoll set")?,
            connections,
            free: VecDeque::with_capacity(args.connections),
            resting: VecDeque::new(),
            in_flight: 0,
            connecting: 0,
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
            statuses: Statuses::default(),
            failures: Failures::default(),
            first_failure: None,
            latencies: Latencies::new()?,
            bytes_received: 0,
            tls: tls_report,
            last_end: None,
            armed: None,
            next_sweep: now + SWEEP_INTERVAL,
        })
    }

    /// Opens all connections before the clock starts. Those that fail are tried again by the requests that they get.
    fn establish(&mut self, interrupted: &AtomicBool) -> anyhow::Result<()> {
        if self.new_connections {
            // Opening them is part of each request. The first key costs the seeding of the random numbers, tens of
            // milliseconds, in which the requests of an open loop would wait: that is no cost of the server.
            if let Some(tls) = self.connections.first().and_then(|connection| connection.tls.as_ref()) {
                drop(tls.connection().context("cannot begin a TLS handshake")?);
            }
            self.free.extend(0..self.connections.len() as u32);
            return Ok(());
        }
        let now = Instant::now();
        for slot in 0..self.connections.len() as u32 {
            self.open(slot, now);
        }
        let mut events = Vec::with_capacity(EVENTS_PER_WAIT_MAX);
        while self.connecting > 0 && !interrupted.load(Ordering::Relaxed) {
            self.turn(&mut events, None)?;
        }
        Ok(())
    }

    fn run(&mut self, interrupted: &AtomicBool) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_PER_WAIT_MAX);
        loop {
            if interrupted.load(Ordering::Relaxed) {
                self.pace.stop();
            }
            let now = Instant::now();
            self.dispatch(now);
            if self.in_flight == 0 && self.pace.exhausted(now) {
                return Ok(());
            }
            // The timer is of use only if a connection can take the request when its time comes.
            let wake = match &self.pace {
                Pace::Open(schedule) if !self.free.is_empty() => schedule.next_at(),
                _ => None,
            };
            self.turn(&mut events, wake)?;
        }
    }

    /// Waits for events, or until `wake`, and handles what has come, deadlines included.
    fn turn(&mut self, events: &mut Vec<Event>, wake: Option<Instant>) -> anyhow::Result<()> {
        let mut timeout = SWEEP_INTERVAL;
        if let Some(wake) = wake {
            let after = wake.saturating_duration_since(Instant::now());
            if after.is_zero() {
                timeout = Duration::ZERO;
            } else if after < SWEEP_INTERVAL && self.armed != Some(wake) {
                self.poller.wake_after(after).context("cannot set a timer")?;
                self.armed = Some(wake);
            }
        }
        self.poller.wait(events, Some(timeout)).context("cannot wait for events")?;
        for event in events.iter() {
            self.handle(*event);
        }
        let now = Instant::now();
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP_INTERVAL;
            self.sweep(now);
        }
        Ok(())
    }

    /// Sends what is due, as long as connections are free.
    fn dispatch(&mut self, now: Instant) {
        while !self.free.is_empty() {
            let Some(intended) = self.pace.take_due(now) else { return };
            if intended + self.timeout <= now {
                self.count_failure(Failure::Unsent, &UNSENT, now);
            } else if let Some(slot) = self.free.pop_front() {
                self.assign(slot, intended, now);
            }
        }
    }

    fn assign(&mut self, slot: u32, intended: Instant, now: Instant) {
        self.in_flight += 1;
        let connection = &mut self.connections[slot as usize];
        connection.intended = Some(intended);
        connection.deadline = intended + self.timeout;
        connection.sent = 0;
        connection.decoder.reset();
        if connection.state == State::Closed {
            self.open(slot, now);
        } else {
            self.send(slot);
        }
    }

    /// Starts to connect.
    fn open(&mut self, slot: u32, now: Instant) {
        let connection = &mut self.connections[slot as usize];
        connection.turn = connection.turn.wrapping_add(1);
        if connection.intended.is_none() {
            connection.deadline = now + self.timeout;
        }
        let token = Token { slot, turn: connection.turn };
        match start_connect(self.address).and_then(|stream| {
            self.poller.add(&stream, token, Interest::Write)?;
            match &connection.tls {
                None => Ok(Socket::plain(stream)),
                Some(tls) => Ok(Socket::secure(stream, tls.connection()?)),
            }
        }) {
            Ok(socket) => {
                connection.socket = Some(socket);
                connection.interest = Interest::Write;
                connection.state = State::Connecting;
                self.connecting += 1;
            }
            Err(error) => self.fail(slot, Failure::Connect, &error),
        }
    }

    fn handle(&mut self, event: Event) {
        let slot = event.token.slot;
        let connection = &self.connections[slot as usize];
        if connection.turn != event.token.turn {
            return;
        }
        match connection.state {
            State::Closed => {}
            State::Connecting => self.connected(slot),
            State::Handshaking => self.handshake(slot),
            State::Sending if event.writable && !event.readable => self.send(slot),
            State::Idle | State::Sending | State::Awaiting => self.receive(slot),
        }
    }

    /// The connection is open, or was refused.
    fn connected(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        let Some(socket) = &connection.socket else { return };
        let opened = match socket.stream().take_error() {
            Ok(None) => {
                socket.stream().set_nodelay(true).and_then(|()| connection.watch(&self.poller, slot, Interest::Read))
            }
            Ok(Some(error)) | Err(error) => Err(error),
        };
        match opened {
            Err(error) => self.fail(slot, Failure::Connect, &error),
            Ok(()) if connection.tls.is_none() => self.established(slot),
            Ok(()) => {
                connection.state = State::Handshaking;
                self.handshake(slot);
            }
        }
    }

    /// Takes the TLS handshake as far as it goes.
    fn handshake(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        let Some(socket) = &mut connection.socket else { return };
        let done = socket.handshake();
        let blocked = matches!(done, Ok(false)) && socket.has_output();
        let wanted = if blocked { Interest::ReadWrite } else { Interest::Read };
        let done = done.and_then(|done| connection.watch(&self.poller, slot, wanted).map(|()| done));
        match done {
            Ok(false) => {}
            Ok(true) => {
                self.count_handshake(slot);
                self.established(slot);
            }
            // Whatever ends a handshake: a server that does not want to speak TLS just closes.
            Err(error) => self.fail(slot, Failure::Tls, &error),
        }
    }

    fn count_handshake(&mut self, slot: u32) {
        let (Some(report), Some(socket)) = (&mut self.tls, &self.connections[slot as usize].socket) else { return };
        match socket.is_resumed() {
            true => report.resumed_handshakes += 1,
            false => {
                report.full_handshakes += 1;
                if report.negotiated.is_none() {
                    report.negotiated = socket.negotiated();
                }
            }
        }
    }

    /// The connection can carry requests, and one may wait for it.
    fn established(&mut self, slot: u32) {
        self.connecting -= 1;
        let connection = &mut self.connections[slot as usize];
        if connection.intended.is_some() {
            return self.send(slot);
        }
        connection.state = State::Idle;
        self.free.push_back(slot);
        // The end of a handshake; should it not go out now, it does with the first request.
        if let Some(socket) = &mut connection.socket {
            let _ = socket.flush();
        }
    }

    /// Sends what is left of the request.
    fn send(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        let Some(socket) = &mut connection.socket else { return };
        let result = loop {
            let step = match &self.request[connection.sent..] {
                [] => socket.flush(),
                left => socket.write(left).map(|count| connection.sent += count),
            };
            match step {
                Ok(()) if connection.sent < self.request.len() || socket.has_output() => {}
                Ok(()) => {
                    connection.state = State::Awaiting;
                    break connection.watch(&self.poller, slot, Interest::Read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    connection.state = State::Sending;
                    break connection.watch(&self.poller, slot, Interest::ReadWrite);
                }
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = result {
            self.fail(slot, Failure::Reset, &error);
        }
    }

    /// Reads what has come.
    fn receive(&mut self, slot: u32) {
        loop {
            let connection = &mut self.connections[slot as usize];
            let Some(socket) = &mut connection.socket else { return };
            let count = match socket.read(&mut self.buffer) {
                Ok(0) => return self.ended(slot),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.fail(slot, kind_of(&error), &error),
            };
            self.bytes_received += count as u64;
            if connection.intended.is_none() {
                return self.fail(slot, Failure::Malformed, &"bytes on an idle connection");
            }
            match connection.decoder.feed(&self.buffer[..count]) {
                Ok(Some(answer)) => return self.finish(slot, answer),
                // A read that did not fill the buffer emptied the socket; epoll tells when there is more.
                Ok(None) if count < self.buffer.len() => return,
                Ok(None) => {}
                Err(error) => return self.fail(slot, Failure::Malformed, &error),
            }
        }
    }

    /// The server ended the connection.
    fn ended(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        if connection.intended.is_none() {
            // An idle connection may end at any time; it stays in `free` and is opened again when it is needed.
            connection.socket = None;
            connection.state = State::Closed;
            return;
        }
        match connection.decoder.end() {
            Some(answer) => self.finish(slot, answer),
            None if connection.decoder.started() => self.fail(slot, Failure::ClosedEarly, &"closed within the answer"),
            None => self.fail(slot, Failure::ClosedEarly, &"closed without an answer"),
        }
    }

    /// Counts an answer and sends the next request, if one is due.
    fn finish(&mut self, slot: u32, answer: Answer) {
        let now = Instant::now();
        let connection = &mut self.connections[slot as usize];
        if let Some(intended) = connection.intended.take() {
            self.latencies.record(now.saturating_duration_since(intended));
            self.statuses.count(answer.status);
            self.in_flight -= 1;
            self.last_end = Some(now);
        }
        if answer.keep_alive && connection.state == State::Awaiting {
            connection.state = State::Idle;
        } else {
            if let Some(mut socket) = connection.socket.take() {
                socket.close();
            }
            connection.state = State::Closed;
        }
        self.free.push_back(slot);
        self.dispatch(now);
    }

    /// Ends a connection; counts a failure if it carried a request.
    fn fail(&mut self, slot: u32, failure: Failure, reason: &dyn std::fmt::Display) {
        let now = Instant::now();
        let connection = &mut self.connections[slot as usize];
        if matches!(connection.state, State::Connecting | State::Handshaking) {
            self.connecting -= 1;
        }
        let was_free = connection.state == State::Idle && connection.intended.is_none();
        connection.socket = None;
        connection.state = State::Closed;
        if connection.intended.take().is_some() {
            self.in_flight -= 1;
            self.count_failure(failure, reason, now);
        } else if failure == Failure::Malformed {
            self.count_failure(failure, reason, now);
        }
        match self.pace {
            // A free connection stays in the queue of free ones.
            _ if was_free => {}
            Pace::Closed { .. } => self.resting.push_back((now + RECONNECT_PAUSE, slot)),
            Pace::Open(_) | Pace::NotStarted => self.free.push_back(slot),
        }
    }

    fn count_failure(&mut self, failure: Failure, reason: &dyn std::fmt::Display, now: Instant) {
        self.failures.count(failure);
        self.last_end = Some(now);
        if self.first_failure.is_none() {
            self.first_failure = Some(format!("{failure:?}: {reason}"));
        }
    }

    /// Ends what is past its deadline.
    fn sweep(&mut self, now: Instant) {
        while self.resting.front().is_some_and(|(until, _)| *until <= now) {
            self.free.extend(self.resting.pop_front().map(|(_, slot)| slot));
        }
        for slot in 0..self.connections.len() {
            let connection = &self.connections[slot];
            let opening = matches!(connection.state, State::Connecting | State::Handshaking);
            let busy = connection.intended.is_some() || opening;
            if busy && connection.deadline <= now {
                let reason = match connection.state {
                    State::Connecting => "not connected in time",
                    State::Handshaking => "no TLS handshake in time",
                    _ if connection.decoder.started() => "answer not whole in time",
                    _ => "no answer in time",
                };
                self.fail(slot as u32, Failure::Timeout, &reason);
            }
        }
        if let Some(expired) = now.checked_sub(self.timeout) {
            while let Pace::Open(schedule) = &mut self.pace {
                if schedule.take_due(expired).is_none() {
                    break;
                }
                self.count_failure(Failure::Unsent, &UNSENT, now);
            }
        }
    }

    fn report(&self, args: &LoadArgs, start: Instant) -> LoadReport {
        let elapsed_s = self.last_end.unwrap_or(start).saturating_duration_since(start).as_secs_f64();
        let answers = self.statuses.total();
        LoadReport {
            url: args.url.to_string(),
            mode: if args.rate.is_some() { Mode::OpenLoop } else { Mode::ClosedLoop },
            rate: args.rate.map(super::schedule::Rate::per_second),
            connections: args.connections,
            elapsed_s,
            requests: answers + self.failures.total(),
            failed: LoadReport::failed_of(&self.statuses, &self.failures),
            requests_per_s: if elapsed_s > 0.0 { answers as f64 / elapsed_s } else { 0.0 },
            bytes_received: self.bytes_received,
            statuses: self.statuses,
            failures: self.failures,
            latency_us: self.latencies.summary(),
            tls: self.tls.clone(),
            first_failure: self.first_failure.clone(),
        }
    }
}

/// What kind of failure ended an open connection.
fn kind_of(error: &io::Error) -> Failure {
    match error.kind() {
        _ if tls::is_tls_error(error) => Failure::Tls,
        // The end of the connection without the end of TLS.
        ErrorKind::UnexpectedEof => Failure::ClosedEarly,
        _ => Failure::Reset,
    }
}

/// A socket that connects without blocking.
fn start_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}
