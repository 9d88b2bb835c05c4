//! A worker: one pinned thread with its own ring, listeners, buffers, pools and balancer state. It shares nothing with
//! other workers but its mailbox. Only this folder names the runtime.

pub(crate) mod buffers;
pub(crate) mod conn;
pub(crate) mod deadlines;
pub(crate) mod driver;
pub(crate) mod generation;
pub(crate) mod join;
pub(crate) mod mailbox;
mod readiness;
mod tasks;

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::net::UnixStream as StdUnixStream,
    rc::Rc,
    sync::Arc,
};

use meshring_core::{
    clock::monotonic_ns,
    snapshot::page::PageReader,
    stats::{Counter, WorkerSlots},
};

pub(crate) use self::tasks::{accept_loop, guarded};
use self::{
    buffers::Buffers,
    deadlines::Deadlines,
    driver::Driver,
    generation::{Current, Generations, KnownClusters, Prepared},
    mailbox::{Mailboxes, Message},
};
use crate::{
    accept::{self, Direction, Listener},
    balance::Random,
    request::Scratch,
    upstream::Endpoints,
};

/// Field tables that a worker keeps for reuse: one per connection that is in the middle of something.
const SCRATCHES_POOLED_MAX: usize = 64;
/// Between two log lines about refused requests of one worker, in nanoseconds: an attacker must not fill the disk.
const REFUSAL_LOG_INTERVAL_NS: u64 = 1_000_000_000;

/// What a worker is started with.
pub(crate) struct Start {
    pub(crate) index: usize,
    pub(crate) cpu: Option<usize>,
    pub(crate) driver: Driver,
    pub(crate) stats: WorkerSlots,
    pub(crate) mailboxes: Arc<Mailboxes>,
    /// The reading end of the mailbox's wake-up.
    pub(crate) wakeups: StdUnixStream,
    pub(crate) page: Arc<PageReader>,
    pub(crate) generations: Arc<Generations>,
    pub(crate) first: Arc<Prepared>,
    pub(crate) listeners: Vec<(StdTcpListener, SocketAddr, Direction)>,
}

/// What the stages of a request reach through their worker.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) stats: WorkerSlots,
    pub(crate) buffers: Buffers,
    pub(crate) deadlines: Rc<Deadlines>,
    pub(crate) current: Current,
    pub(crate) clusters: KnownClusters,
    pub(crate) endpoints: Endpoints,
    pub(crate) random: Random,
    pub(crate) hot_idle: HotIdle,
    pub(crate) mailboxes: Arc<Mailboxes>,
    pub(crate) listeners: Vec<Rc<Listener>>,
    /// Second descriptors of the listening sockets, to shut them when draining.
    sockets: RefCell<Vec<StdTcpListener>>,
    scratches: RefCell<Vec<Scratch>>,
    draining: Cell<bool>,
    refusal_logged_ns: Cell<u64>,
    refusals_unlogged: Cell<u64>,
}

/// Counts connections that wait for their next request with a buffer in hand.
#[derive(Debug, Default)]
pub(crate) struct HotIdle(Cell<usize>);

/// One of them.
#[derive(Debug)]
pub(crate) struct HotIdleGuard<'a>(&'a HotIdle);

impl HotIdle {
    /// A place, while there are fewer than `limit`.
    pub(crate) fn enter(&self, limit: usize) -> Option<HotIdleGuard<'_>> {
        (self.0.get() < limit).then(|| {
            self.0.set(self.0.get() + 1);
            HotIdleGuard(self)
        })
    }
}

impl Drop for HotIdleGuard<'_> {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

impl Worker {
    /// Field tables for one connection.
    pub(crate) fn take_scratch(&self) -> Scratch {
        self.scratches.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives them back.
    pub(crate) fn give_scratch(&self, scratch: Scratch) {
        let mut scratches = self.scratches.borrow_mut();
        if scratches.len() < SCRATCHES_POOLED_MAX {
            scratches.push(scratch);
        }
    }

    /// Whether connections end after their current request.
    pub(crate) fn draining(&self) -> bool {
        self.draining.get()
    }

    /// One line about a refused request, at most one per second and worker; the next one says how many came between.
    pub(crate) fn log_refusal(&self, code: &str, reason: &dyn fmt::Display) {
        let now = monotonic_ns();
        if now.saturating_sub(self.refusal_logged_ns.get()) < REFUSAL_LOG_INTERVAL_NS {
            self.refusals_unlogged.set(self.refusals_unlogged.get() + 1);
            return;
        }
        self.refusal_logged_ns.set(now);
        let unlogged = self.refusals_unlogged.take();
        tracing::info!(code, unlogged, "request refused: {reason}");
    }

    fn handle(&self, message: Message) -> Option<accept::Accepted> {
        match message {
            Message::Connection(accepted) => return Some(accepted),
            Message::Refresh => self.current.refresh(),
            Message::Page(page) => self.current.follow(page),
            Message::Drain => {
                self.draining.set(true);
                for socket in self.sockets.borrow_mut().drain(..) {
                    // Nobody new: a pending accept ends, and clients go to another listener of the address, if any.
                    let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Read);
                }
                self.deadlines.expire_idle();
                self.endpoints.close_idle();
            }
        }
        None
    }

    /// Whether a drained worker has nothing left to do.
    fn drained(&self) -> bool {
        self.draining() && self.stats.page().counter(self.index, Counter::ConnectionsActive) == 0
    }
}

/// Runs a worker on the calling thread until it has drained.
pub(crate) fn run(start: Start) -> std::io::Result<()> {
    if let Some(cpu) = start.cpu {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        // Pinning is an optimisation: a container may forbid it.
        if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
            tracing::warn!(worker = start.index, cpu, %error, "cannot pin the worker to its CPU");
        }
    }
    let driver = start.driver.clone();
    driver.run(|| tasks::main(start))?
}

fn build(start: Start) -> std::io::Result<(Rc<Worker>, Vec<StdTcpListener>, StdUnixStream)> {
    let (sockets, listeners): (Vec<_>, Vec<_>) = start
        .listeners
        .into_iter()
        .enumerate()
        .map(|(index, (socket, address, direction))| (socket, Rc::new(Listener::new(index, address, direction))))
        .unzip();
    let seconds = sockets.iter().map(StdTcpListener::try_clone).collect::<Result<_, _>>()?;
    let worker = Worker {
        index: start.index,
        current: Current::new(start.page, start.generations, start.first, start.stats.clone()),
        clusters: KnownClusters::new(start.stats.clone()),
        stats: start.stats,
        buffers: Buffers::default(),
        deadlines: Rc::default(),
        endpoints: Endpoints::default(),
        random: Random::new(monotonic_ns() ^ (start.index as u64) << 32),
        hot_idle: HotIdle::default(),
        mailboxes: start.mailboxes,
        listeners,
        sockets: RefCell::new(seconds),
        scratches: RefCell::default(),
        draining: Cell::new(false),
        refusal_logged_ns: Cell::new(0),
        refusals_unlogged: Cell::new(0),
    };
    Ok((Rc::new(worker), sockets, start.wakeups))
}
