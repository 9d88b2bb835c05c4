//! A few connections that flood, one after the other at a constant rate, on one thread: each sends its script until it is ended.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::time::{ClockId, clock_gettime};

use super::super::attack::connected;
use super::script::{Flood, STILL_ON};
use crate::hostile::give_way;
use crate::http2::frame::{FrameReader, flag, kind};
use crate::limits::{EVENTS_PER_WAIT_MAX, FLOOD_WRITE_BYTES};
use crate::poller::{Interest, Poller, Token};

/// How often what is due is looked at.
const TICK: Duration = Duration::from_millis(5);

/// The least that is waited for.
const SHORTEST: Duration = Duration::from_micros(50);

/// When a connection is due, by its number from 0, in seconds. At regular times all of them would be in step with the normal load, and
/// meet a request each, or none.
fn due_s(number: usize, rate: f64) -> f64 {
    // The golden ratio: the parts behind the point of its multiples are spread evenly, however many they are.
    let off = (number as f64 * 0.618_033_988_75).fract();
    (number as f64 + off) / rate
}

/// What is to be done.
#[derive(Debug, Clone)]
pub(super) struct Attack {
    pub(super) flood: Flood,
    pub(super) address: SocketAddr,
    /// Most at a time.
    pub(super) connections: usize,
    /// Connections per second.
    pub(super) rate: f64,
}

/// How a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By the proxy, with this code of its last GOAWAY.
    Goaway(u32),
    /// By the proxy, without one that could be read.
    Cut,
    /// All was sent, and it was of use still: it was closed here, and another one opened.
    Survived,
    /// It was still open when the attack was over.
    Open,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) ends: Vec<End>,
    /// Bytes that the kernel has taken.
    pub(super) sent: u64,
    /// RST_STREAM frames of the proxy.
    pub(super) resets: u64,
    /// Of the attacker's thread.
    pub(super) cpu: Duration,
    pub(super) elapsed: Duration,
}

#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    /// All connections are there and have said all.
    is_complete: AtomicBool,
}

/// An attack that is going on.
pub(super) struct Running {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<anyhow::Result<Outcome>>>,
}

impl Attack {
    pub(super) fn start(self) -> Running {
        let progress = Arc::<Progress>::default();
        let shared = Arc::clone(&progress);
        let thread = std::thread::spawn(move || Attacker::new(self)?.run(&shared));
        Running { progress, thread: Some(thread) }
    }
}

impl Running {
    /// Fails if the attack has.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join()?;
        }
        Ok(())
    }

    /// Whether as many connections as may be are open and have said all.
    pub(super) fn is_complete(&self) -> bool {
        self.progress.is_complete.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> anyhow::Result<Outcome> {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<Outcome> {
        let thread = self.thread.take().context("the attack is over")?;
        thread.join().map_err(|_| anyhow!("the attack panicked"))?
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::Relaxed);
    }
}

struct Connection {
    stream: TcpStream,
    /// Written by the script, and from where on not sent yet.
    pending: Vec<u8>,
    pending_from: usize,
    round: u32,
    has_response: bool,
    reader: FrameReader,
    /// Code of the last GOAWAY.
    goaway: Option<u32>,
    is_still_on: bool,
    is_broken: bool,
}

struct Attacker {
    attack: Attack,
    poller: Poller,
    /// A slot per connection at a time, and which connection that is.
    slots: Vec<(u32, Option<Connection>)>,
    opened: usize,
    outcome: Outcome,
}

impl Attacker {
    fn new(attack: Attack) -> anyhow::Result<Self> {
        let poller = Poller::new().context("cannot create an epoll set")?;
        let slots = (0..attack.connections).map(|_| (0, None)).collect();
        Ok(Self { attack, poller, slots, opened: 0, outcome: Outcome::default() })
    }

    fn run(mut self, progress: &Progress) -> anyhow::Result<Outcome> {
        give_way();
        let begun = Instant::now();
        let mut events = Vec::with_capacity(EVENTS_PER_WAIT_MAX);
        while !progress.stop.load(Ordering::Relaxed) {
            // Places that are taken when a connection is due let it wait, and the rate is lower.
            let elapsed_s = begun.elapsed().as_secs_f64();
            let due = (elapsed_s * self.attack.rate) as usize + 1;
            let free = self.slots.iter().position(|(_, connection)| connection.is_none());
            if let (Some(slot), true) = (free, due_s(self.opened, self.attack.rate) <= elapsed_s) {
                self.open(slot)?;
            } else if free.is_none() {
                self.opened = self.opened.max(due.saturating_sub(self.slots.len()));
            }
            let mut wait = TICK;
            if self.slots.iter().any(|(_, connection)| connection.is_none()) {
                let left_s = due_s(self.opened, self.attack.rate) - begun.elapsed().as_secs_f64();
                wait = Duration::from_secs_f64(left_s.clamp(SHORTEST.as_secs_f64(), TICK.as_secs_f64()));
            }
            self.poller.wake_after(wait)?;
            self.poller.wait(&mut events, Some(TICK))?;
            for event in &events {
                let slot = event.token.slot as usize;
                let (turn, Some(connection)) = &mut self.slots[slot] else { continue };
                if *turn != event.token.turn {
                    continue;
                }
                let was_silent = connection.is_silent(self.attack.flood);
                if event.readable {
                    connection.receive(&mut self.outcome.resets);
                }
                if event.writable && !connection.is_broken {
                    connection.send(self.attack.flood, &mut self.outcome.sent);
                }
                let is_silent = connection.is_silent(self.attack.flood);
                if is_silent != was_silent {
                    self.poller.modify(&connection.stream, event.token, interest(self.attack.flood, is_silent))?;
                }
                if let Some(end) = connection.end() {
                    self.outcome.ends.push(end);
                    self.slots[slot].1 = None;
                }
            }
            let has_said_all =
                |slot: &(u32, Option<Connection>)| slot.1.as_ref().is_some_and(|it| it.has_said_all(self.attack.flood));
            progress.is_complete.store(self.slots.iter().all(has_said_all), Ordering::Relaxed);
        }
        self.outcome.elapsed = begun.elapsed();
        let left = self.slots.iter().filter(|(_, connection)| connection.is_some()).count();
        self.outcome.ends.extend(std::iter::repeat_n(End::Open, left));
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        self.outcome.cpu = Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec.unsigned_abs() as u32);
        Ok(self.outcome)
    }

    fn open(&mut self, slot: usize) -> anyhow::Result<()> {
        let Attack { flood, address, .. } = self.attack;
        let stream = connected(address, self.opened, flood.reads())
            .with_context(|| format!("hostile connection {}", self.opened + 1))?;
        self.opened += 1;
        let (turn, place) = &mut self.slots[slot];
        *turn += 1;
        self.poller.add(&stream, Token { slot: slot as u32, turn: *turn }, interest(flood, false))?;
        let mut pending = Vec::new();
        flood.write_beginning(&mut pending);
        *place = Some(Connection {
            stream,
            pending,
            pending_from: 0,
            round: 0,
            has_response: false,
            reader: FrameReader::default(),
            goaway: None,
            is_still_on: false,
            is_broken: false,
        });
        Ok(())
    }
}

fn interest(flood: Flood, is_silent: bool) -> Interest {
    match (flood.reads(), is_silent) {
        (true, false) => Interest::ReadWrite,
        (true, true) => Interest::Read,
        (false, false) => Interest::Write,
        (false, true) => Interest::Nothing,
    }
}

impl Connection {
    /// In how many rounds it has said what it may say now.
    fn rounds(&self, flood: Flood) -> u32 {
        if flood.waits_for_response() && !self.has_response { 1 } else { flood.rounds() }
    }

    fn has_said_all(&self, flood: Flood) -> bool {
        self.pending.is_empty() && self.round == flood.rounds()
    }

    /// Nothing is to be said, for now or at all.
    fn is_silent(&self, flood: Flood) -> bool {
        self.pending.is_empty() && self.round == self.rounds(flood)
    }

    /// One write, so that the connections take turns.
    fn send(&mut self, flood: Flood, sent: &mut u64) {
        while self.pending.len() - self.pending_from < FLOOD_WRITE_BYTES && self.round < self.rounds(flood) {
            flood.write(self.round, &mut self.pending);
            self.round += 1;
            if self.round == flood.rounds() {
                flood.write_end(&mut self.pending);
            }
        }
        match self.stream.write(&self.pending[self.pending_from..]) {
            Ok(count) => {
                *sent += count as u64;
                self.pending_from += count;
                if self.pending_from == self.pending.len() {
                    self.pending.clear();
                    self.pending_from = 0;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // What was said before may be there to be read.
            Err(_) => {
                self.receive(&mut 0);
                self.is_broken = true;
            }
        }
    }

    fn receive(&mut self, resets: &mut u64) {
        let mut space = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut space) {
                Ok(0) => break,
                Ok(count) => {
                    let (goaway, is_still_on) = (&mut self.goaway, &mut self.is_still_on);
                    let has_response = &mut self.has_response;
                    let read = self.reader.feed(&space[..count], |frame| {
                        match frame.kind {
                            kind::GOAWAY => *goaway = Some(frame.number(4)?),
                            kind::RST_STREAM => *resets += 1,
                            kind::HEADERS => *has_response = true,
                            kind::PING if frame.has(flag::ACK) => *is_still_on |= frame.payload == STILL_ON,
                            _ => {}
                        }
                        Ok(())
                    });
                    if read.is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.is_broken = true;
    }

    fn end(&self) -> Option<End> {
        match (self.is_broken, self.goaway) {
            (true, Some(code)) => Some(End::Goaway(code)),
            (true, None) => Some(End::Cut),
            (false, _) => self.is_still_on.then_some(End::Survived),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::http2::frame::write_frame;

    #[test]
    fn an_attacker_comes_back_and_notes_how_each_of_its_connections_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut running = Attack { flood: Flood::HpackBomb, address, connections: 1, rate: 1000.0 }.start();
        let mut answers = Vec::new();
        for code in [11_u32, 1] {
            let mut answer = Vec::new();
            write_frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 1], &mut answer);
            write_frame(kind::GOAWAY, 0, 0, &[[0; 4], code.to_be_bytes()].concat(), &mut answer);
            answers.push((answer, true));
        }
        let mut pong = Vec::new();
        write_frame(kind::PING, flag::ACK, 0, STILL_ON, &mut pong);
        answers.push((pong, false));
        for (answer, closes) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            // All of the script, so that the end is no reset, which would take the answer along.
            let mut script = Vec::new();
            Flood::HpackBomb.write_beginning(&mut script);
            (0..Flood::HpackBomb.rounds()).for_each(|round| Flood::HpackBomb.write(round, &mut script));
            Flood::HpackBomb.write_end(&mut script);
            let mut read = vec![0; script.len()];
            stream.read_exact(&mut read).unwrap();
            assert!(read == script);
            stream.write_all(&answer).unwrap();
            if !closes {
                assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it is closed by the attacker");
            }
        }
        let (_stream, _) = listener.accept().unwrap();
        running.check().unwrap();
        let outcome = running.stop().unwrap();
        assert_eq!(outcome.ends, [End::Goaway(11), End::Goaway(1), End::Survived, End::Open]);
        assert_eq!(outcome.resets, 2);
    }
}
