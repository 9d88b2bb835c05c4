//! Readiness of many sockets on one thread: epoll, and a timer finer than epoll's milliseconds.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::limits::EVENTS_PER_WAIT_MAX;

/// What a socket waits for. A peer's close and errors are always reported, as readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    ReadWrite,
    /// Errors only: the backend has enough unsent output, or no file descriptor to accept with.
    Nothing,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Self::Read => epoll::EventFlags::IN,
            Self::Write => epoll::EventFlags::OUT,
            Self::ReadWrite => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            Self::Nothing => epoll::EventFlags::empty(),
        }
    }
}

/// Which socket an event is for: a slot, and which use of that slot, as a batch of events may outlive a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) slot: u32,
    pub(crate) turn: u32,
}

/// A socket is ready, or broken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) token: Token,
    /// Also set when the connection ended or failed: reading tells which.
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

const TIMER: u64 = u64::MAX;

/// A level-triggered epoll set with one timer.
pub(crate) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    raw: Vec<epoll::Event>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // Edge-triggered, so an expired timer needs no read: setting it again is enough.
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Self { epoll, timer, raw: Vec::with_capacity(EVENTS_PER_WAIT_MAX) })
    }

    pub(crate) fn add(&self, socket: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, data_of(token), interest.flags())?)
    }

    pub(crate) fn modify(&self, socket: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, data_of(token), interest.flags())?)
    }

    /// Makes a wait that starts within `after` end when it has passed.
    pub(crate) fn wake_after(&self, after: Duration) -> io::Result<()> {
        // A zero value would disarm the timer.
        let after = after.max(Duration::from_nanos(1));
        let it_value = Timespec { tv_sec: after.as_secs() as i64, tv_nsec: after.subsec_nanos().into() };
        let value = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }

    /// Waits for events, the timer, a signal or the timeout (of millisecond resolution; none: for ever).
    pub(crate) fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        self.raw.clear();
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() });
        match epoll::wait(&self.epoll, spare_capacity(&mut self.raw), timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let broken = epoll::EventFlags::HUP | epoll::EventFlags::ERR | epoll::EventFlags::RDHUP;
        for event in &self.raw {
            let (flags, data) = (event.flags, event.data.u64());
            if data == TIMER {
                continue;
            }
            events.push(Event {
                token: Token { slot: data as u32, turn: (data >> 32) as u32 },
                readable: flags.intersects(epoll::EventFlags::IN | broken),
                writable: flags.contains(epoll::EventFlags::OUT),
            });
        }
        Ok(())
    }
}

fn data_of(token: Token) -> epoll::EventData {
    epoll::EventData::new_u64(u64::from(token.turn) << 32 | u64::from(token.slot))
}
