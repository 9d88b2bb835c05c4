//! Many connections that stall, on one thread: each sends something, then next to nothing, and notes how it was ended.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use super::give_way;
use crate::limits::{EVENTS_PER_WAIT_MAX, HOSTILE_CONNECT_MAX, HOSTILE_CONNECTING_MAX, HOSTILE_PORTS_PER_ADDRESS};
use crate::poller::{Interest, Poller, Token};

/// How long is waited at most, and between two looks at whether to stop.
const WAIT_MAX: Duration = Duration::from_millis(20);
/// Part of the interval between the first trickles of two connections that follow each other: the golden ratio's fraction, with
/// which any number of them is spread evenly. In step they would be a pulse, and whoever meets it waits for all of it.
const TRICKLE_SPREAD: f64 = 0.618_033_988_749_895;

/// What every connection of an attack does.
#[derive(Debug, Clone)]
pub(super) struct Attack {
    /// Connections go to them in turn.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) connections: usize,
    /// Sent first.
    pub(super) begin: Vec<u8>,
    /// Sent again and again after that, at this interval.
    pub(super) trickle: Option<(&'static [u8], Duration)>,
    /// Whether what comes is read; else the receive window is as small as it gets.
    pub(super) reads: bool,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    /// From its first byte.
    pub(super) after: Duration,
    /// Of the response that came before the end.
    pub(super) status: Option<u16>,
}

#[derive(Debug, Default)]
struct Progress {
    opened: AtomicUsize,
    ended: AtomicUsize,
    stop: AtomicBool,
}

/// An attack that is going on.
pub(super) struct Running {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<anyhow::Result<Vec<Ended>>>>,
}

impl Attack {
    pub(super) fn start(self) -> Running {
        let progress = Arc::<Progress>::default();
        let shared = Arc::clone(&progress);
        let thread = std::thread::spawn(move || Attacker::new(self, shared)?.run());
        Running { progress, thread: Some(thread) }
    }
}

impl Running {
    /// Connections opened so far; an error if the attack has failed.
    pub(super) fn opened(&mut self) -> anyhow::Result<usize> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) && !self.is_over() {
            self.join()?;
        }
        Ok(self.progress.opened.load(Ordering::Relaxed))
    }

    /// Connections that were ended by the other side so far.
    pub(super) fn ended(&self) -> usize {
        self.progress.ended.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.progress.stop.load(Ordering::Relaxed)
    }

    /// Ends it; how the connections ended that had been ended by the other side.
    pub(super) fn stop(mut self) -> anyhow::Result<Vec<Ended>> {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<Vec<Ended>> {
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
    stream: Option<TcpStream>,
    /// Whether it is more than a SYN.
    is_open: bool,
    /// Something has come that will not be read.
    is_left: bool,
    begun: Instant,
    sent: usize,
    status: Option<u16>,
}

struct Attacker {
    attack: Attack,
    /// Its own part of the addresses that connections come from.
    origin: u8,
    progress: Arc<Progress>,
    poller: Poller,
    connections: Vec<Connection>,
    /// Of them, those that are not open yet.
    connecting: usize,
    /// When which of them trickles next.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    ended: Vec<Ended>,
}

impl Attacker {
    fn new(attack: Attack, progress: Arc<Progress>) -> anyhow::Result<Self> {
        let poller = Poller::new().context("cannot create an epoll set")?;
        Ok(Self {
            attack,
            origin: ATTACKS.fetch_add(1, Ordering::Relaxed),
            progress,
            poller,
            connections: Vec::new(),
            connecting: 0,
            due: BinaryHeap::new(),
            ended: Vec::new(),
        })
    }

    fn run(mut self) -> anyhow::Result<Vec<Ended>> {
        let mut has_given_way = false;
        let mut events = Vec::with_capacity(EVENTS_PER_WAIT_MAX);
        while !self.progress.stop.load(Ordering::Relaxed) {
            // Those that are open go on while others are being opened.
            let until = Instant::now() + WAIT_MAX;
            while self.may_open() && Instant::now() < until {
                self.open()?;
            }
            // With the least of shares it would take as long as anybody else on the machine wants.
            if !has_given_way && self.progress.opened.load(Ordering::Relaxed) == self.attack.connections {
                has_given_way = true;
                give_way();
            }
            self.poller.wait(&mut events, Some(if self.may_open() { Duration::ZERO } else { self.idle() }))?;
            for event in &events {
                let slot = event.token.slot as usize;
                if !self.connections[slot].is_open {
                    self.opened(slot)?;
                } else if event.writable {
                    self.flush(slot);
                }
                if event.readable && self.attack.reads {
                    self.receive(slot);
                } else if event.readable {
                    self.left(slot)?;
                }
            }
            self.trickle();
        }
        Ok(self.ended)
    }

    fn may_open(&self) -> bool {
        self.connections.len() < self.attack.connections && self.connecting < HOSTILE_CONNECTING_MAX
    }

    /// Begins to connect. One whose SYN is dropped, since the other side's queue is full, must not hold up those behind it.
    fn open(&mut self) -> anyhow::Result<()> {
        let slot = self.connections.len();
        let address = self.attack.addresses[slot % self.attack.addresses.len()];
        let stream = begun(address, (self.origin, slot), self.attack.reads).with_context(|| self.name(slot))?;
        self.poller.add(&stream, Token { slot: slot as u32, turn: 0 }, Interest::Write)?;
        let connection = Connection {
            stream: Some(stream),
            is_open: false,
            is_left: false,
            begun: Instant::now(),
            sent: 0,
            status: None,
        };
        self.connections.push(connection);
        self.connecting += 1;
        Ok(())
    }

    fn name(&self, slot: usize) -> String {
        format!("hostile connection {} of {}", slot + 1, self.attack.connections)
    }

    /// It is connected, or will not be.
    fn opened(&mut self, slot: usize) -> anyhow::Result<()> {
        let Some(stream) = &self.connections[slot].stream else { return Ok(()) };
        match stream.take_error()? {
            None => stream.set_nodelay(true)?,
            // It was open, and is not any more: reading tells.
            Some(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Some(error) => return Err(error).with_context(|| self.name(slot)),
        }
        self.connecting -= 1;
        let now = Instant::now();
        let connection = &mut self.connections[slot];
        (connection.is_open, connection.begun) = (true, now);
        if let Some((_, interval)) = self.attack.trickle {
            let first = interval.mul_f64((slot as f64 * TRICKLE_SPREAD).fract());
            self.due.push(Reverse((now + first, slot)));
        }
        self.flush(slot);
        if self.attack.reads {
            self.progress.opened.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Something has come that will never be read: from now on it stalls the other side. A refusal would not.
    fn left(&mut self, slot: usize) -> anyhow::Result<()> {
        let connection = &self.connections[slot];
        let Some(stream) = &connection.stream else { return Ok(()) };
        if connection.is_left {
            // It waits for nothing: this is its end.
            bail!("{} was ended by the proxy", self.name(slot));
        }
        let mut space = [0; 16];
        let count = stream.peek(&mut space).with_context(|| self.name(slot))?;
        if status(&space[..count]) != Some(200) {
            bail!("{} was answered with {:?}", self.name(slot), String::from_utf8_lossy(&space[..count]));
        }
        self.poller.modify(stream, Token { slot: slot as u32, turn: 0 }, Interest::Nothing)?;
        self.connections[slot].is_left = true;
        self.progress.opened.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sends what is left of the beginning.
    fn flush(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        let Some(stream) = &mut connection.stream else { return };
        let token = Token { slot: slot as u32, turn: 0 };
        while connection.sent < self.attack.begin.len() {
            match stream.write(&self.attack.begin[connection.sent..]) {
                Ok(count) => connection.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ = self.poller.modify(&*stream, token, Interest::ReadWrite);
                    return;
                }
                // Reading tells how it ended.
                Err(_) => connection.sent = self.attack.begin.len(),
            }
        }
        let _ = self.poller.modify(&*stream, token, Interest::Read);
    }

    /// Until something is due.
    fn idle(&self) -> Duration {
        let next = self.due.peek().map(|Reverse((at, _))| at.saturating_duration_since(Instant::now()));
        next.map_or(WAIT_MAX, |next| next.min(WAIT_MAX))
    }

    fn trickle(&mut self) {
        let Some((bytes, interval)) = self.attack.trickle else { return };
        let now = Instant::now();
        while let Some(&Reverse((at, slot))) = self.due.peek()
            && at <= now
        {
            self.due.pop();
            let connection = &mut self.connections[slot];
            if let Some(stream) = &mut connection.stream {
                if connection.sent >= self.attack.begin.len() {
                    // Reading tells how it ended.
                    let _ = stream.write(bytes);
                }
                self.due.push(Reverse((at + interval, slot)));
            }
        }
    }

    fn receive(&mut self, slot: usize) {
        let mut space = [0; 4096];
        let connection = &mut self.connections[slot];
        let Some(stream) = &mut connection.stream else { return };
        loop {
            match stream.read(&mut space) {
                Ok(count @ 1..) => connection.status = connection.status.or_else(|| status(&space[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => break,
            }
        }
        connection.stream = None;
        self.ended.push(Ended { after: connection.begun.elapsed(), status: connection.status });
        self.progress.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// Of a response's first bytes.
fn status(bytes: &[u8]) -> Option<u16> {
    std::str::from_utf8(bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?).ok()?.parse().ok()
}

/// Attacks of this process so far. Each comes from addresses of its own: the ports of the one before are taken for a minute still, and
/// where few are left the kernel takes longer and longer to find one.
static ATTACKS: AtomicU8 = AtomicU8::new(1);

/// A connection from an address that still has ports: each has some ten thousand of them towards one peer.
pub(super) fn connected(address: SocketAddr, number: usize, reads: bool) -> io::Result<TcpStream> {
    let socket = bound(address, (0, number), reads, SocketFlags::CLOEXEC)?;
    // Bounds connecting, too, should the other side's queue be full.
    sockopt::set_socket_timeout(socket.as_fd(), sockopt::Timeout::Send, Some(HOSTILE_CONNECT_MAX))?;
    connect(socket.as_fd(), &address)?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// As [`connected`], without waiting for it: writable means connected, or that it failed.
fn begun(address: SocketAddr, number: (u8, usize), reads: bool) -> io::Result<TcpStream> {
    let socket = bound(address, number, reads, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match connect(socket.as_fd(), &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

/// `number`: of the attack, and of the connection in it.
fn bound(address: SocketAddr, number: (u8, usize), reads: bool, flags: SocketFlags) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    if address.ip().is_loopback() {
        let of_process = 1 + (std::process::id() % 250) as u8;
        let from = Ipv4Addr::new(127, of_process, number.0, 1 + (number.1 / HOSTILE_PORTS_PER_ADDRESS) as u8);
        bind(socket.as_fd(), &SocketAddr::from((from, 0)))?;
    }
    if !reads {
        // Before connecting, so that the window is never larger.
        sockopt::set_socket_recv_buffer_size(socket.as_fd(), 4096)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_attack_notes_when_and_with_which_status_its_connections_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let attack = Attack {
            addresses: vec![address],
            connections: 2,
            begin: b"GET / HTTP/1.1\r\n".to_vec(),
            trickle: Some((b"x", Duration::from_millis(1))),
            reads: true,
        };
        let mut running = attack.start();
        for status in ["408", "503"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 20];
            // The beginning and some of what trickles.
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"GET / HTTP/1.1\r\nxxxx");
            stream.write_all(format!("HTTP/1.1 {status} x\r\n\r\n").as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
        while running.ended() < 2 {
            assert!(running.opened().unwrap() <= 2);
            std::thread::yield_now();
        }
        let mut statuses: Vec<_> = running.stop().unwrap().into_iter().map(|ended| ended.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [Some(408), Some(503)]);
    }
}
