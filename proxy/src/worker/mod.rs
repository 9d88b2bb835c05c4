//! A worker: one pinned thread with its own ring, listeners, buffers, pools and balancer state. It shares nothing with
//! other workers but its mailbox. Only this folder names the runtime.

mod allocator;
pub(crate) mod buffers;
pub(crate) mod bypass;
pub(crate) mod congestion;
pub(crate) mod conn;
pub(crate) mod deadlines;
pub(crate) mod driver;
pub(crate) mod futures;
pub(crate) mod generation;
pub(crate) mod http2;
pub(crate) mod interrupt;
pub(crate) mod join;
pub(crate) mod ktls;
pub(crate) mod limits;
pub(crate) mod mailbox;
mod pace;
mod readiness;
mod refusals;
pub(crate) mod secure;
pub(crate) mod splice;
mod tasks;
mod turns;

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    fmt,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::net::UnixStream as StdUnixStream,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use meshring_core::{
    clock::monotonic_ns,
    limits::{
        BUFFER_BYTES, CONNECTS_IN_A_ROW_MAX, GREETERS_MAX, HOT_IDLE_CONNECTIONS_MAX, HOT_STREAMS_MAX,
        SCRATCHES_POOLED_MAX,
    },
    snapshot::page::PageReader,
    stats::{Counter, WorkerSlots},
};

pub(crate) use self::tasks::{accept_loop, guarded, turn_away};
use self::{
    buffers::Buffers,
    conn::Conn,
    deadlines::Deadlines,
    driver::Driver,
    futures::FuturePool,
    generation::{Current, Generations, KnownClusters, Prepared},
    http2::Origin,
    ktls::Probe,
    limits::Limits,
    mailbox::{Mailboxes, Message},
    pace::Pace,
    refusals::RefusalLog,
    tasks::StreamTasks,
    turns::Turns,
};
use crate::{
    accept::{self, Direction, Listener},
    balance::Random,
    config::Tuning,
    policy::request_id::RequestIds,
    request::Scratch,
    respond::date::Clock,
    tls::materials::Materials,
    upstream::Endpoints,
};

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
    pub(crate) tuning: Tuning,
    pub(crate) limits: Limits,
    pub(crate) materials: Arc<Materials>,
    /// What the kernel does of TLS, where it is to do it.
    pub(crate) ktls: Option<Arc<Probe>>,
    /// Set by the process while its memory control group is nearly full.
    pub(crate) memory_pressure: Arc<AtomicBool>,
}

/// What the stages of a request reach through their worker.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) stats: WorkerSlots,
    pub(crate) limits: Limits,
    pub(crate) buffers: Rc<Buffers>,
    /// Where the futures of requests are.
    pub(crate) futures: FuturePool,
    pub(crate) deadlines: Rc<Deadlines>,
    pub(crate) current: Current,
    pub(crate) clusters: KnownClusters,
    pub(crate) endpoints: Endpoints,
    pub(crate) random: Random,
    pub(crate) date: Clock,
    pub(crate) request_ids: RequestIds,
    pub(crate) tuning: Tuning,
    pub(crate) materials: Arc<Materials>,
    pub(crate) ktls: Option<Arc<Probe>>,
    pub(crate) hot_idle: Places,
    /// For streams that wait for a response with all in hand.
    pub(crate) hot_streams: Places,
    /// Likewise, for as long as it takes: for what is asked of a connection that has been prompt, see [`Conn::is_prompt`](conn::Conn::is_prompt).
    pub(crate) prompt_streams: Places,
    /// For connections to upstreams.
    pub(crate) connects: Pace,
    pub(crate) turns: Turns,
    /// Where servers have spoken first.
    pub(crate) greeters: Greeters,
    /// Connections beyond the limit that are being told so.
    pub(crate) turned_away: Cell<usize>,
    pub(crate) mailboxes: Arc<Mailboxes>,
    pub(crate) listeners: Vec<Rc<Listener>>,
    /// Second descriptors of the listening sockets, to shut them when draining.
    sockets: RefCell<Vec<StdTcpListener>>,
    #[expect(clippy::vec_box, reason = "they are handed out and taken back with each request, and are large to move")]
    scratches: RefCell<Vec<Box<Scratch>>>,
    stream_tasks: StreamTasks,
    /// What decoding of HTTP/2 needs.
    http2_scratch: RefCell<meshring_core::http::http2::Scratch>,
    draining: Cell<bool>,
    memory_pressure: Arc<AtomicBool>,
    refusals: RefusalLog,
    /// What the gauge says, see [`Worker::gauge_buffers`].
    buffer_bytes_shown: Cell<u64>,
}

/// Places for those that wait with a buffer in hand: connections for a request, or for the rest of its head, and streams for a
/// response.
#[derive(Debug)]
pub(crate) struct Places {
    count: Cell<usize>,
    count_max: usize,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a Places);

impl Places {
    /// A quarter of the byte budget at most: waiting must not keep requests from being served.
    fn new(count_max: usize, buffer_bytes_max: usize) -> Self {
        let count_max = count_max.min(buffer_bytes_max / BUFFER_BYTES / 4);
        Self { count: Cell::new(0), count_max }
    }

    /// A place, while there is one.
    pub(crate) fn enter(&self) -> Option<Place<'_>> {
        (self.count.get() < self.count_max).then(|| {
            self.count.set(self.count.get() + 1);
            Place(self)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
    }
}

/// What connections were for whose servers have spoken first: the listener, and the address that their clients meant.
#[derive(Debug, Default)]
pub(crate) struct Greeters(RefCell<HashSet<(usize, Option<SocketAddr>)>>);

impl Greeters {
    pub(crate) fn has(&self, of: (usize, Option<SocketAddr>)) -> bool {
        self.0.borrow().contains(&of)
    }

    pub(crate) fn note(&self, of: (usize, Option<SocketAddr>), has_greeted: bool) {
        let mut known = self.0.borrow_mut();
        if !has_greeted {
            known.remove(&of);
            return;
        }
        if known.len() >= GREETERS_MAX {
            // Whoever is forgotten is met again.
            known.clear();
        }
        known.insert(of);
    }
}

impl Worker {
    /// Field tables for one connection.
    pub(crate) fn take_scratch(&self) -> Box<Scratch> {
        self.scratches.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives them back.
    pub(crate) fn give_scratch(&self, scratch: Box<Scratch>) {
        let mut scratches = self.scratches.borrow_mut();
        if scratches.len() < SCRATCHES_POOLED_MAX {
            scratches.push(scratch);
        }
    }

    /// Whether connections end after their current request.
    pub(crate) fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether new requests are to be refused: the byte budget is used up, or the process' memory is nearly so.
    pub(crate) fn overloaded(&self) -> bool {
        // Relaxed: a flag alone, nothing is published with it.
        self.buffers.used_bytes() >= self.limits.buffer_bytes_max || self.memory_pressure.load(Ordering::Relaxed)
    }

    /// Whether there is no memory for more of those requests either that have begun: what they send may be a quarter more than the budget.
    pub(crate) fn crowded(&self) -> bool {
        let bytes_max = self.limits.buffer_bytes_max;
        self.buffers.used_bytes() >= bytes_max.saturating_add(bytes_max / 4)
            || self.memory_pressure.load(Ordering::Relaxed)
    }

    /// One line about something refused, at most one per second, worker and code; the next one says how many came
    /// between. `reason` must have passed no byte of a peer that is not escaped.
    pub(crate) fn log_refusal(&self, code: &'static str, peer: Option<SocketAddr>, reason: &dyn fmt::Display) {
        self.log(code, None, || peer, "refused", reason);
    }

    /// Likewise about what came over a client's connection, which has one line of each code.
    pub(crate) fn log_refused(&self, code: &'static str, conn: &Conn, reason: &dyn fmt::Display) {
        self.log(code, Some(&conn.told().refused), || conn.peer(), "refused", reason);
    }

    /// Likewise of a stream that is none.
    pub(crate) fn log_refused_stream(&self, code: &'static str, origin: &Origin, reason: &dyn fmt::Display) {
        self.log(code, Some(&origin.told.refused), || origin.peer, "refused", reason);
    }

    /// A request of a client that failed without its fault: one line of each code for its connection, until a response comes
    /// through again.
    pub(crate) fn log_fault(&self, code: &'static str, conn: &Conn, reason: &dyn fmt::Display) {
        self.log(code, Some(&conn.told().faults), || conn.peer(), "failed", reason);
    }

    fn log(
        &self,
        code: &'static str,
        told: Option<&Cell<u64>>,
        peer: impl FnOnce() -> Option<SocketAddr>,
        what: &str,
        reason: &dyn fmt::Display,
    ) {
        if let Some(unlogged) = self.refusals.due(code, monotonic_ns(), told) {
            let peer = peer().map_or_else(|| "gone".to_owned(), |peer| peer.to_string());
            tracing::info!(code, peer, unlogged, "{what}: {reason}");
        }
    }

    /// Brings the gauge of buffer bytes up to date; on the tick, not with each buffer.
    fn gauge_buffers(&self) {
        let now = self.buffers.used_bytes() as u64;
        let shown = self.buffer_bytes_shown.replace(now);
        self.stats.add(Counter::BufferBytes, now.wrapping_sub(shown));
    }

    fn handle(&self, message: Message) -> Option<accept::Accepted> {
        match message {
            Message::Connection(accepted) => return Some(accepted),
            Message::Refresh => self.current.refresh(),
            Message::Page(page) => self.current.follow(page),
            Message::Drain => {
                self.draining.set(true);
                self.stop_listening();
                self.deadlines.expire_idle();
                self.endpoints.close_idle();
            }
        }
        None
    }

    /// Nobody new: a pending accept ends, and clients go to another listener of the address, if any.
    fn stop_listening(&self) {
        let Ok(mut sockets) = self.sockets.try_borrow_mut() else { return };
        for socket in sockets.drain(..) {
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Read);
        }
    }

    /// Closes the door and ends every connection; for a worker that dies.
    fn end_all(&self) {
        self.stop_listening();
        self.deadlines.end_all();
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
        .map(|(index, (socket, address, direction))| {
            let service =
                start.tuning.services.iter().find(|(of, _)| *of == address).map(|(_, service)| service.clone());
            (socket, Rc::new(Listener::new(index, address, direction).with_service(service)))
        })
        .unzip();
    let seconds = sockets.iter().map(StdTcpListener::try_clone).collect::<Result<_, _>>()?;
    let worker = Worker {
        index: start.index,
        current: Current::new(start.page, start.generations, start.first, start.stats.clone()),
        clusters: KnownClusters::new(start.stats.clone()),
        stats: start.stats,
        limits: start.limits,
        buffers: Rc::default(),
        deadlines: Rc::default(),
        endpoints: Endpoints::new(start.limits.pool),
        date: Clock::default(),
        request_ids: RequestIds::default(),
        tuning: start.tuning,
        materials: start.materials,
        ktls: start.ktls,
        random: Random::new(monotonic_ns() ^ (start.index as u64) << 32),
        hot_idle: Places::new(HOT_IDLE_CONNECTIONS_MAX, start.limits.buffer_bytes_max),
        hot_streams: Places::new(HOT_STREAMS_MAX, start.limits.buffer_bytes_max),
        // They may keep them for long, and have three each: the request, what is read, and the record that it comes in.
        prompt_streams: Places::new(HOT_STREAMS_MAX, start.limits.buffer_bytes_max / 3),
        connects: Pace::new(CONNECTS_IN_A_ROW_MAX),
        turns: Turns::default(),
        greeters: Greeters::default(),
        turned_away: Cell::new(0),
        mailboxes: start.mailboxes,
        listeners,
        sockets: RefCell::new(seconds),
        scratches: RefCell::default(),
        futures: FuturePool::default(),
        stream_tasks: StreamTasks::default(),
        http2_scratch: RefCell::default(),
        draining: Cell::new(false),
        memory_pressure: start.memory_pressure,
        refusals: RefusalLog::default(),
        buffer_bytes_shown: Cell::new(0),
    };
    Ok((Rc::new(worker), sockets, start.wakeups))
}

/// A worker without listeners, for tests that drive one of its stages by hand on the calling thread's runtime.
#[cfg(test)]
pub(crate) fn for_test(start: Start) -> Rc<Worker> {
    build(start).expect("a worker").0
}

/// Lets the other tasks of the calling thread's runtime run for so long.
#[cfg(test)]
pub(crate) async fn pause(duration: std::time::Duration) {
    monoio::time::sleep(duration).await;
}
