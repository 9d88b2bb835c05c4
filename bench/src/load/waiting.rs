//! Waiting for sockets and for the time of the next request, and opening connections.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::report::Failure;
use crate::limits::SWEEP_INTERVAL;
use crate::poller::{Event, Poller};
use crate::tls;

/// A poller, the timer of the next request, and the interval at which deadlines are checked.
pub(super) struct Waiting {
    pub(super) poller: Poller,
    /// What the poller's timer is set to.
    armed: Option<Instant>,
    next_sweep: Instant,
}

impl Waiting {
    pub(super) fn new() -> anyhow::Result<Self> {
        let poller = Poller::new().context("cannot create an epoll set")?;
        Ok(Self { poller, armed: None, next_sweep: Instant::now() + SWEEP_INTERVAL })
    }

    /// Waits for events, or until `wake`.
    pub(super) fn wait(&mut self, events: &mut Vec<Event>, wake: Option<Instant>) -> anyhow::Result<()> {
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
        self.poller.wait(events, Some(timeout)).context("cannot wait for events")
    }

    /// Whether deadlines are to be checked now.
    pub(super) fn take_sweep(&mut self, now: Instant) -> bool {
        let due = now >= self.next_sweep;
        if due {
            self.next_sweep = now + SWEEP_INTERVAL;
        }
        due
    }
}

/// What kind of failure ended an open connection.
pub(super) fn kind_of(error: &io::Error) -> Failure {
    match error.kind() {
        _ if tls::is_tls_error(error) => Failure::Tls,
        // The end of the connection without the end of TLS.
        ErrorKind::UnexpectedEof => Failure::ClosedEarly,
        _ => Failure::Reset,
    }
}

/// A socket that connects without blocking.
pub(super) fn start_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}
