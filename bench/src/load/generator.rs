//! The generator's event loop. Each connection carries one request at a time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::LoadArgs;
use super::pace::Pace;
use super::report::{Failure, LoadReport};
use super::tally::{Tally, UNSENT, WRONG_BODY};
use super::target::encode_request;
use super::waiting::{Waiting, kind_of, start_connect};
use crate::body_check::BodyCheck;
use crate::http::{Answer, ResponseDecoder};
use crate::limits::{EVENTS_PER_WAIT_MAX, READ_BUFFER_BYTES, RECONNECT_PAUSE};
use crate::poller::{Event, Interest, Poller, Token};
use crate::tls::{self, Socket};

/// Sends the load that the arguments describe. Ends early, with the report so far, once `interrupted` is set.
pub(super) fn run(args: &LoadArgs, interrupted: &AtomicBool) -> anyhow::Result<LoadReport> {
    let address = args.url.resolve()?;
    crate::process::raise_file_limit();
    let mut generator = Generator::new(args, address)?;
    generator.establish(interrupted)?;
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
    waiting: Waiting,
    connections: Vec<Connection>,
    /// Connections that can take a request: idle ones, and closed ones, which it opens again.
    free: VecDeque<u32>,
    /// Failed connections of the closed loop, and when they are free again.
    resting: VecDeque<(Instant, u32)>,
    in_flight: usize,
    connecting: usize,
    buffer: Box<[u8]>,
    tally: Tally,
}

impl Generator {
    fn new(args: &LoadArgs, address: SocketAddr) -> anyhow::Result<Self> {
        let now = Instant::now();
        let to_head = args.method.as_ref().is_some_and(super::target::Method::is_head);
        let tls = args.url.tls(&args.tls, tls::Alpn::Http1)?;
        let tally = Tally::new(tls.is_some())?;
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
                decoder: ResponseDecoder::new(to_head).checking(args.body_sha256.map(BodyCheck::new)),
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
            waiting: Waiting::new()?,
            connections,
            free: VecDeque::with_capacity(args.connections),
            resting: VecDeque::new(),
            in_flight: 0,
            connecting: 0,
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
            tally,
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
            let wake = if self.free.is_empty() { None } else { self.pace.next_at() };
            self.turn(&mut events, wake)?;
        }
    }

    /// Waits for events, or until `wake`, and handles what has come, deadlines included.
    fn turn(&mut self, events: &mut Vec<Event>, wake: Option<Instant>) -> anyhow::Result<()> {
        self.waiting.wait(events, wake)?;
        for event in events.iter() {
            self.handle(*event);
        }
        let now = Instant::now();
        if self.waiting.take_sweep(now) {
            self.sweep(now);
        }
        Ok(())
    }

    /// Sends what is due, as long as connections are free.
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
            self.waiting.poller.add(&stream, token, Interest::Write)?;
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
            Ok(None) => socket
                .stream()
                .set_nodelay(true)
                .and_then(|()| connection.watch(&self.waiting.poller, slot, Interest::Read)),
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
        if let Ok(true) = done {
            self.tally.count_handshake(socket);
        }
        let done = done.and_then(|done| connection.watch(&self.waiting.poller, slot, wanted).map(|()| done));
        match done {
            Ok(false) => {}
            Ok(true) => self.established(slot),
            // Whatever ends a handshake: a server that does not want to speak TLS just closes.
            Err(error) => self.fail(slot, Failure::Tls, &error),
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
                    break connection.watch(&self.waiting.poller, slot, Interest::Read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    connection.state = State::Sending;
                    break connection.watch(&self.waiting.poller, slot, Interest::ReadWrite);
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
            self.tally.bytes_received += count as u64;
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
            match connection.decoder.is_right(answer) {
                Some(false) => self.tally.count_failure(Failure::WrongBody, &WRONG_BODY, now),
                _ => self.tally.count_answer(answer.status, intended, now),
            }
            self.in_flight -= 1;
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
            self.tally.count_failure(failure, reason, now);
        } else if failure == Failure::Malformed {
            self.tally.count_failure(failure, reason, now);
        }
        match self.pace {
            // A free connection stays in the queue of free ones.
            _ if was_free => {}
            Pace::Closed { .. } => self.resting.push_back((now + RECONNECT_PAUSE, slot)),
            Pace::Open(_) | Pace::NotStarted => self.free.push_back(slot),
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
                self.tally.count_failure(Failure::Unsent, &UNSENT, now);
            }
        }
    }
}
