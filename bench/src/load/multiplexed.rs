//! The generator's event loop for HTTP/2. Each connection carries a number of requests at a time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::LoadArgs;
use super::pace::Pace;
use super::report::{Failure, LoadReport};
use super::tally::{Tally, UNSENT};
use super::target::http2_request;
use super::waiting::{Waiting, kind_of, start_connect};
use crate::body_check::BodyCheck;
use crate::http2::client::{Client, Ended, Request, StreamError};
use crate::limits::{EVENTS_PER_WAIT_MAX, READ_BUFFER_BYTES, RECONNECT_PAUSE};
use crate::poller::{Event, Interest, Poller, Token};
use crate::tls::{self, Socket};

/// Sends the load that the arguments describe. Ends early, with the report so far, once `interrupted` is set.
pub(super) fn run(args: &LoadArgs, interrupted: &AtomicBool) -> anyhow::Result<LoadReport> {
    let address = args.url.resolve()?;
    crate::process::raise_file_limit();
    let mut generator = Generator::new(args, address)?;
    generator.establish(args.streams, interrupted)?;
    let start = Instant::now();
    generator.pace = Pace::starting(args, start);
    generator.run(interrupted)?;
    Ok(generator.tally.report(args, start))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Connecting,
    Handshaking,
    /// The server's settings have not come.
    Settling,
    Open,
}

struct Connection {
    socket: Option<Socket>,
    state: State,
    /// What the poller watches the socket for.
    interest: Interest,
    /// Counts the sockets of this slot, to tell events of an earlier one.
    turn: u32,
    /// From [`State::Settling`] on.
    http2: Option<Client>,
    /// What is to be sent; the first `sent` bytes of it are gone.
    output: Vec<u8>,
    sent: usize,
    /// Intended send times of requests that cannot be sent yet.
    queue: VecDeque<Instant>,
    /// When it has to be open.
    deadline: Instant,
}

impl Connection {
    fn new(now: Instant) -> Self {
        Self {
            socket: None,
            state: State::Closed,
            interest: Interest::Nothing,
            turn: 0,
            http2: None,
            output: Vec::new(),
            sent: 0,
            queue: VecDeque::new(),
            deadline: now,
        }
    }

    fn is_opening(&self) -> bool {
        matches!(self.state, State::Connecting | State::Handshaking | State::Settling)
    }

    fn watch(&mut self, poller: &Poller, slot: u32, wanted: Interest) -> io::Result<()> {
        let Some(socket) = self.socket.as_ref().filter(|_| self.interest != wanted) else { return Ok(()) };
        poller.modify(socket, Token { slot, turn: self.turn }, wanted)?;
        self.interest = wanted;
        Ok(())
    }

    /// Sends what the socket takes; false if something is left.
    fn flush(&mut self, request: &Request) -> io::Result<bool> {
        let (Some(socket), Some(http2)) = (&mut self.socket, &mut self.http2) else { return Ok(true) };
        loop {
            if self.sent == self.output.len() {
                self.output.clear();
                self.sent = 0;
                http2.write_bodies(request, &mut self.output);
            }
            let step = match &self.output[self.sent..] {
                [] if !socket.has_output() => return Ok(true),
                [] => socket.flush(),
                left => socket.write(left).map(|count| self.sent += count),
            };
            match step {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends requests that have waited, as long as the server takes more.
    fn serve_queue(&mut self, request: &Request) {
        let Some(http2) = self.http2.as_mut().filter(|_| self.state == State::Open) else { return };
        while http2.can_send() {
            let Some(intended) = self.queue.pop_front() else { return };
            http2.send(request, intended, &mut self.output);
        }
    }

    /// Forgets the socket; gives the intended send times of the requests that are lost with it.
    fn reset(&mut self) -> Vec<Instant> {
        self.socket = None;
        self.state = State::Closed;
        self.output.clear();
        self.sent = 0;
        self.http2.take().map(|mut http2| http2.abandon().collect()).unwrap_or_default()
    }
}

struct Generator {
    address: SocketAddr,
    tls: Option<tls::Client>,
    request: Request,
    timeout: Duration,
    pace: Pace,
    waiting: Waiting,
    connections: Vec<Connection>,
    /// Connections that can take a request: each as often as it can take one.
    free: VecDeque<u32>,
    /// After failures in the closed loop: connections, and when they are free again.
    resting: VecDeque<(Instant, u32)>,
    /// Connections that may have something to send.
    dirty: Vec<u32>,
    in_flight: usize,
    opening: usize,
    buffer: Box<[u8]>,
    ended: Vec<Ended>,
    tally: Tally,
}

impl Generator {
    fn new(args: &LoadArgs, address: SocketAddr) -> anyhow::Result<Self> {
        let now = Instant::now();
        let tls = args.url.tls(&args.tls, tls::Alpn::Http2)?;
        let tally = Tally::new(tls.is_some())?;
        Ok(Self {
            address,
            tls,
            request: http2_request(&args.url, args.method.as_ref(), &args.headers, args.body_bytes, args.grpc)?
                .checking(args.body_sha256.map(BodyCheck::new)),
            timeout: args.timeout,
            pace: Pace::NotStarted,
            waiting: Waiting::new()?,
            connections: (0..args.connections).map(|_| Connection::new(now)).collect(),
            free: VecDeque::with_capacity(args.connections * args.streams),
            resting: VecDeque::new(),
            dirty: Vec::new(),
            in_flight: 0,
            opening: 0,
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
            ended: Vec::new(),
            tally,
        })
    }

    /// Opens all connections before the clock starts. Those that fail are tried again by the requests that they get.
    fn establish(&mut self, streams: usize, interrupted: &AtomicBool) -> anyhow::Result<()> {
        let now = Instant::now();
        for slot in 0..self.connections.len() as u32 {
            self.open(slot, now);
        }
        let mut events = Vec::with_capacity(EVENTS_PER_WAIT_MAX);
        while self.opening > 0 && !interrupted.load(Ordering::Relaxed) {
            self.turn(&mut events, None)?;
        }
        // Failures so far had no requests.
        self.resting.clear();
        self.free.clear();
        // In turns, so that all connections carry the same load.
        for nth in 0..streams {
            let has_room = |connection: &&Connection| connection.http2.as_ref().is_none_or(|it| nth < it.streams_max());
            let slots = (0..).zip(&self.connections).filter(|(_, connection)| has_room(connection));
            self.free.extend(slots.map(|(slot, _)| slot));
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
            self.flush_dirty();
            if self.in_flight == 0 && self.pace.exhausted(now) {
                return Ok(());
            }
            let wake = if self.free.is_empty() { None } else { self.pace.next_at() };
            self.turn(&mut events, wake)?;
        }
    }

    /// Waits for events, or until `wake`, and handles what has come, deadlines included.
    fn turn(&mut self, events: &mut Vec<Event>, wake: Option<Instant>) -> anyhow::Result<()> {
        self.waiting.wait(events, wake)?;
        for event in events.iter() {
            self.handle(*event);
            self.flush_dirty();
        }
        let now = Instant::now();
        if self.waiting.take_sweep(now) {
            self.sweep(now);
            self.flush_dirty();
        }
        Ok(())
    }

    /// Sends what is due, as long as streams are free.
    fn dispatch(&mut self, now: Instant) {
        while !self.free.is_empty() {
            let Some(intended) = self.pace.take_due(now) else { return };
            if intended + self.timeout <= now {
                self.tally.count_failure(Failure::Unsent, &UNSENT, now);
            } else if let Some(slot) = self.free.pop_front() {
                self.assign(slot, intended, now);
            }
        }
    }

    fn assign(&mut self, slot: u32, intended: Instant, now: Instant) {
        self.in_flight += 1;
        let connection = &mut self.connections[slot as usize];
        connection.queue.push_back(intended);
        match connection.state {
            State::Closed => self.open(slot, now),
            State::Open => {
                connection.serve_queue(&self.request);
                self.dirty.push(slot);
            }
            State::Connecting | State::Handshaking | State::Settling => {}
        }
    }

    /// Starts to connect.
    fn open(&mut self, slot: u32, now: Instant) {
        let connection = &mut self.connections[slot as usize];
        connection.turn = connection.turn.wrapping_add(1);
        connection.deadline = connection.queue.front().map_or(now, |intended| *intended) + self.timeout;
        connection.state = State::Connecting;
        self.opening += 1;
        let token = Token { slot, turn: connection.turn };
        match start_connect(self.address).and_then(|stream| {
            self.waiting.poller.add(&stream, token, Interest::Write)?;
            match &self.tls {
                None => Ok(Socket::plain(stream)),
                Some(tls) => Ok(Socket::secure(stream, tls.connection()?)),
            }
        }) {
            Ok(socket) => {
                connection.socket = Some(socket);
                connection.interest = Interest::Write;
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
            State::Settling | State::Open => {
                if event.writable {
                    self.dirty.push(slot);
                }
                if event.readable {
                    self.receive(slot);
                }
            }
        }
    }

    /// The connection is open, or was refused.
    fn connected(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        let Some(socket) = &connection.socket else { return };
        let opened = match socket.stream().take_error() {
            Ok(None) => socket.stream().set_nodelay(true),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        match opened {
            Err(error) => self.fail(slot, Failure::Connect, &error),
            Ok(()) if self.tls.is_none() => self.greet(slot),
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
        let speaks = socket.speaks_http2();
        if let Ok(true) = done {
            self.tally.count_handshake(socket);
        }
        match done.and_then(|done| connection.watch(&self.waiting.poller, slot, wanted).map(|()| done)) {
            Ok(false) => {}
            Ok(true) if speaks => self.greet(slot),
            Ok(true) => self.fail(slot, Failure::Tls, &"the server does not choose h2 by ALPN"),
            // Whatever ends a handshake: a server that does not want to speak TLS just closes.
            Err(error) => self.fail(slot, Failure::Tls, &error),
        }
    }

    fn greet(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        connection.http2 = Some(Client::new(&self.request, &mut connection.output));
        connection.state = State::Settling;
        self.dirty.push(slot);
    }

    /// Reads what has come.
    fn receive(&mut self, slot: u32) {
        loop {
            let connection = &mut self.connections[slot as usize];
            let (Some(socket), Some(http2)) = (&mut connection.socket, &mut connection.http2) else { return };
            let count = match socket.read(&mut self.buffer) {
                Ok(0) => return self.closed(slot),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.fail(slot, kind_of(&error), &error),
            };
            self.tally.bytes_received += count as u64;
            let bytes = &self.buffer[..count];
            let taken = http2.receive(bytes, &self.request, &mut self.ended, &mut connection.output);
            if connection.state == State::Settling && http2.is_settled() {
                connection.state = State::Open;
                self.opening -= 1;
            }
            self.dirty.push(slot);
            self.count_ended(slot);
            if let Err(error) = taken {
                return self.fail(slot, Failure::Malformed, &error);
            }
            self.proceed(slot);
            // A read that did not fill the buffer emptied the socket; epoll tells when there is more.
            if count < self.buffer.len() {
                return;
            }
        }
    }

    /// Counts streams that have ended.
    fn count_ended(&mut self, slot: u32) {
        let now = Instant::now();
        let mut failed = 0;
        for Ended { since, outcome } in self.ended.drain(..) {
            self.in_flight -= 1;
            let failure = match outcome {
                Ok(status) => {
                    self.tally.count_answer(status, since, now);
                    self.free.push_back(slot);
                    continue;
                }
                Err(StreamError::Reset(_)) => Failure::StreamReset,
                Err(StreamError::Refused) => Failure::StreamRefused,
                Err(StreamError::GoneAway) => Failure::GoneAway,
                Err(StreamError::Malformed(_)) => Failure::Malformed,
                Err(StreamError::Grpc(_)) => Failure::Grpc,
                Err(StreamError::WrongBody) => Failure::WrongBody,
            };
            failed += 1;
            if let Err(error) = outcome {
                self.tally.count_failure(failure, &error, now);
            }
        }
        self.release(slot, failed, now);
    }

    /// Sends what is due, on a new connection if the server takes no more on this one.
    fn proceed(&mut self, slot: u32) {
        let now = Instant::now();
        let connection = &mut self.connections[slot as usize];
        if connection.http2.as_ref().is_some_and(|http2| http2.is_ending() && http2.open() == 0) {
            if let Some(mut socket) = connection.socket.take() {
                socket.close();
            }
            self.reopen(slot, now);
        } else {
            connection.serve_queue(&self.request);
        }
        self.dispatch(now);
    }

    /// An open connection has ended without a loss.
    fn reopen(&mut self, slot: u32, now: Instant) {
        let connection = &mut self.connections[slot as usize];
        connection.reset();
        // Otherwise it is opened again when it is needed.
        if !connection.queue.is_empty() {
            self.open(slot, now);
        }
    }

    /// The server ended the connection.
    fn closed(&mut self, slot: u32) {
        let connection = &self.connections[slot as usize];
        if connection.state == State::Open && connection.http2.as_ref().is_some_and(|http2| http2.open() == 0) {
            return self.reopen(slot, Instant::now());
        }
        self.fail(slot, Failure::ClosedEarly, &"closed without an answer");
    }

    fn flush_dirty(&mut self) {
        while let Some(slot) = self.dirty.pop() {
            let connection = &mut self.connections[slot as usize];
            if !matches!(connection.state, State::Settling | State::Open) {
                continue;
            }
            let result = connection.flush(&self.request).and_then(|done| {
                let wanted = if done { Interest::Read } else { Interest::ReadWrite };
                connection.watch(&self.waiting.poller, slot, wanted)
            });
            if let Err(error) = result {
                self.fail(slot, kind_of(&error), &error);
            }
        }
    }

    /// Ends a connection; counts a failure for each request that it carried.
    fn fail(&mut self, slot: u32, failure: Failure, reason: &dyn std::fmt::Display) {
        let now = Instant::now();
        let connection = &mut self.connections[slot as usize];
        if connection.is_opening() {
            self.opening -= 1;
        }
        let mut lost = connection.reset().len();
        lost += connection.queue.drain(..).count();
        self.in_flight -= lost;
        // What is malformed is told even if no request was hurt.
        let told = if failure == Failure::Malformed { lost.max(1) } else { lost };
        for _ in 0..told {
            self.tally.count_failure(failure, reason, now);
        }
        self.release(slot, lost, now);
    }

    /// Gives the places of failed requests to others, in the closed loop after a rest.
    fn release(&mut self, slot: u32, count: usize, now: Instant) {
        for _ in 0..count {
            match self.pace {
                Pace::Closed { .. } => self.resting.push_back((now + RECONNECT_PAUSE, slot)),
                Pace::Open(_) | Pace::NotStarted => self.free.push_back(slot),
            }
        }
    }

    /// Ends what is past its deadline.
    fn sweep(&mut self, now: Instant) {
        while self.resting.front().is_some_and(|(until, _)| *until <= now) {
            self.free.extend(self.resting.pop_front().map(|(_, slot)| slot));
        }
        for slot in 0..self.connections.len() as u32 {
            let connection = &self.connections[slot as usize];
            if connection.is_opening() && connection.deadline <= now {
                let reason = match connection.state {
                    State::Connecting => "not connected in time",
                    State::Handshaking => "no TLS handshake in time",
                    _ => "no settings in time",
                };
                self.fail(slot, Failure::Timeout, &reason);
            } else {
                self.expire(slot, now);
            }
        }
        if let Some(expired) = now.checked_sub(self.timeout) {
            while let Pace::Open(schedule) = &mut self.pace {
                if schedule.take_due(expired).is_none() {
                    break;
                }
                self.tally.count_failure(Failure::Unsent, &UNSENT, now);
            }
        }
    }

    /// Ends the requests of one connection that are past their deadline.
    fn expire(&mut self, slot: u32, now: Instant) {
        let Some(since_max) = now.checked_sub(self.timeout) else { return };
        let connection = &mut self.connections[slot as usize];
        if let Some(http2) = &mut connection.http2 {
            http2.expire(since_max, &self.request, &mut self.ended, &mut connection.output);
        }
        let mut count = self.ended.drain(..).count();
        while connection.queue.front().is_some_and(|intended| *intended <= since_max) {
            connection.queue.pop_front();
            count += 1;
        }
        if count == 0 {
            return;
        }
        self.in_flight -= count;
        for _ in 0..count {
            self.tally.count_failure(Failure::Timeout, &"no answer in time", now);
        }
        self.release(slot, count, now);
        self.dirty.push(slot);
        // What was let in by it, or has waited for the rest of a connection that ends.
        self.proceed(slot);
    }
}

#[cfg(test)]
mod tests;
