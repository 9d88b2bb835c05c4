//! Starts the workers, and another one in the place of one that died.

use std::{
    net::SocketAddr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use meshring_core::{
    limits::ADDRESS_WAIT_MS_MAX,
    snapshot::page::PageReader,
    stats::{Counter, StatsPage},
};

use super::{Event, Events};
use crate::{
    accept,
    config::{Config, describe},
    tls::materials::Materials,
    worker::{self, Start, driver::Driver, generation::Generations, ktls::Probe, limits::Limits, mailbox::Mailboxes},
};

/// Bound sockets, per worker and listener.
pub(crate) type Sockets = Vec<Vec<OwnedFd>>;

/// Binds every address once per worker, so that a mistake ends the start and not a worker.
pub(crate) fn bind_all(config: &Config, workers: usize) -> anyhow::Result<Sockets> {
    for (address, direction) in config.listeners() {
        wait_until_free(address).with_context(|| format!("cannot listen: {}", describe(address, direction)))?;
    }
    (0..workers).map(|_| bind_one(config)).collect()
}

/// A killed predecessor's ring keeps its listening sockets for a moment after the process has gone.
fn wait_until_free(address: SocketAddr) -> std::io::Result<()> {
    let deadline = Instant::now() + Duration::from_millis(ADDRESS_WAIT_MS_MAX);
    loop {
        match accept::check_free(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn bind_one(config: &Config) -> anyhow::Result<Vec<OwnedFd>> {
    config
        .listeners()
        .into_iter()
        .map(|(address, direction)| {
            accept::bind_address(address).with_context(|| format!("cannot listen: {}", describe(address, direction)))
        })
        .collect()
}

/// The workers of this process.
pub(crate) struct Supervisor {
    config: Config,
    driver: Driver,
    stats: Arc<StatsPage>,
    generations: Arc<Generations>,
    events: Events,
    mailboxes: Arc<Mailboxes>,
    cpus: Vec<usize>,
    workers: usize,
    /// Second descriptors of the listening sockets, per worker. Those of a worker that has ended are shut, and replaced.
    listening: Vec<Vec<OwnedFd>>,
    limits: Limits,
    materials: Arc<Materials>,
    ktls: Option<Arc<Probe>>,
    memory_pressure: Arc<AtomicBool>,
}

impl Supervisor {
    /// Starts one worker per set of sockets.
    #[expect(clippy::too_many_arguments, reason = "what the main thread has prepared, once")]
    pub(crate) fn start(
        config: &Config,
        driver: Driver,
        stats: &Arc<StatsPage>,
        generations: &Arc<Generations>,
        events: Events,
        page: &Arc<PageReader>,
        sockets: Sockets,
        limits: Limits,
        materials: Arc<Materials>,
        ktls: Option<Arc<Probe>>,
        memory_pressure: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let (mailboxes, wakeups) = Mailboxes::new(sockets.len()).context("cannot create mailboxes")?;
        let mut supervisor = Self {
            config: config.clone(),
            driver,
            stats: Arc::clone(stats),
            generations: Arc::clone(generations),
            events,
            mailboxes: Arc::new(mailboxes),
            cpus: allowed_cpus(),
            workers: sockets.len(),
            listening: Vec::new(),
            limits,
            materials,
            ktls,
            memory_pressure,
        };
        for (index, (bound, wakeups)) in sockets.into_iter().zip(wakeups).enumerate() {
            let listening = supervisor.spawn(index, bound, wakeups, page)?;
            supervisor.listening.push(listening);
        }
        Ok(supervisor)
    }

    /// Number of workers.
    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// How to reach them.
    pub(crate) fn mailboxes(&self) -> &Arc<Mailboxes> {
        &self.mailboxes
    }

    /// The sockets that workers listen on.
    pub(crate) fn listening(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listening.iter().flatten().map(AsFd::as_fd)
    }

    /// Starts another worker in the place of a dead one.
    pub(crate) fn replace(&mut self, index: usize, page: &Arc<PageReader>) -> anyhow::Result<()> {
        let slots = self.stats.worker(index);
        // Its connections are gone, and nobody else counts them down.
        for gauge in [Counter::ConnectionsActive, Counter::BufferBytes] {
            slots.subtract(gauge, self.stats.counter(index, gauge));
        }
        let wakeups = self.mailboxes.renew(index)?;
        // The dead one's go first: a descriptor of ours would keep its address taken.
        self.listening[index].clear();
        self.listening[index] = self.spawn(index, bind_one(&self.config)?, wakeups, page)?;
        Ok(())
    }

    fn spawn(
        &self,
        index: usize,
        bound: Vec<OwnedFd>,
        wakeups: UnixStream,
        page: &Arc<PageReader>,
    ) -> anyhow::Result<Vec<OwnedFd>> {
        let active = page.active().load();
        let first = self.generations.find(active).or_else(|| self.generations.newest()).context("no generation")?;
        let listeners: Vec<_> = bound
            .into_iter()
            .zip(self.config.listeners())
            .map(|(bound, (address, direction))| {
                let socket = accept::listening(bound)
                    .with_context(|| format!("cannot listen: {}", describe(address, direction)))?;
                Ok((socket, address, direction))
            })
            .collect::<anyhow::Result<_>>()?;
        let second = |socket: &std::net::TcpListener| Ok(socket.as_fd().try_clone_to_owned()?);
        let listening = listeners.iter().map(|(socket, ..)| second(socket)).collect::<anyhow::Result<_>>()?;
        let start = Start {
            index,
            cpu: (self.cpus.len() > 1 || self.workers == 1)
                .then(|| self.cpus.get(index % self.cpus.len().max(1)).copied())
                .flatten(),
            driver: self.driver.clone(),
            stats: self.stats.worker(index),
            mailboxes: Arc::clone(&self.mailboxes),
            wakeups,
            page: Arc::clone(page),
            generations: Arc::clone(&self.generations),
            first,
            listeners,
            tuning: self.config.tuning.clone(),
            limits: self.limits,
            materials: Arc::clone(&self.materials),
            ktls: self.ktls.clone(),
            memory_pressure: Arc::clone(&self.memory_pressure),
        };
        let events = self.events.clone();
        let body = move || {
            let result = catch_unwind(AssertUnwindSafe(|| worker::run(start)));
            let result = match result {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err("it panicked".to_owned()),
            };
            events.send(Event::WorkerEnded(index, result));
        };
        std::thread::Builder::new().name(format!("worker-{index}")).spawn(body).context("cannot start a worker")?;
        Ok(listening)
    }
}

/// The CPUs that this process may use, in order.
fn allowed_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
