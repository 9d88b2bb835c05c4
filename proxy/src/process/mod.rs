//! The main thread: it talks to control, keeps the generations, supervises the workers and answers signals. No request
//! ever waits for it.

mod image;
mod link;
mod resources;
mod state;
mod supervisor;
mod watcher;

use std::{
    io::Read as _,
    os::unix::net::UnixStream,
    sync::{Arc, atomic::AtomicBool, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use meshring_core::{
    id::Generation,
    limits::{DRAIN_MS_MAX, FIRST_GENERATION_WAIT_MS_MAX, LAST_GOOD_STORE_INTERVAL_MS, LINK_RECONNECT_MS},
    link::{Hello, PROTOCOL},
    snapshot::{layout::LAYOUT, page::PageReader, page::PageWriter},
    stats::StatsPage,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    low_level::pipe,
};

use self::{
    link::{Link, Outcome},
    resources::Memory,
    state::StateDir,
    supervisor::Supervisor,
    watcher::Watcher,
};
use crate::{
    config::{Config, KtlsChoice, describe},
    tls::materials::Materials,
    worker::{
        bypass, driver,
        generation::Generations,
        ktls::{Probe, probe},
        limits::Limits,
        mailbox::Message,
    },
};

/// What other threads tell the main thread.
#[derive(Debug)]
pub(crate) enum Event {
    /// Another generation may be active.
    Committed,
    /// A worker's thread has ended.
    WorkerEnded(usize, Result<(), String>),
}

/// Events with a byte on a socket pair, so that one `poll` sees everything.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    sender: mpsc::Sender<Event>,
    bell: Arc<UnixStream>,
}

impl Events {
    /// Tells the main thread.
    pub(crate) fn send(&self, event: Event) {
        use std::io::Write as _;
        // Both fail only when the main thread is gone, and then nobody is left to tell.
        let _ = self.sender.send(event);
        let _ = (&*self.bell).write(&[1]);
    }
}

/// Runs the proxy until it is told to end.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    if config.listeners().is_empty() {
        bail!("nothing to listen on: give --outbound ADDR, --inbound ADDR=APP_ADDR, or both");
    }
    let descriptors = resources::raise_descriptor_limit();
    let driver = driver::probe(config.driver)?;
    let workers = worker_count(&config)?;
    let memory = Memory::of_this_process();
    let limits = resources::limits(&config.tuning, workers, descriptors, &memory);
    tracing::info!(workers, "I/O driver: {driver}");
    let sockets = supervisor::bind_all(&config, workers)?;
    let (bell_in, bell) = UnixStream::pair()?;
    bell_in.set_nonblocking(true)?;
    bell.set_nonblocking(true)?;
    let (sender, receiver) = mpsc::channel();
    let events = Events { sender, bell: Arc::new(bell) };
    let ktls = kernel_tls(config.ktls)?;
    let mut main = Main::new(config, driver, workers, events, ktls)?;
    main.find_first_generation()?;
    let mut supervisor = main.start_workers(sockets, limits, resources::watch(&memory))?;
    main.serve(&mut supervisor, &bell_in, &receiver)
}

/// Asks the kernel what it does of TLS, unless that is not wanted.
fn kernel_tls(choice: KtlsChoice) -> anyhow::Result<Option<Arc<Probe>>> {
    if choice == KtlsChoice::Off {
        tracing::info!("TLS records in userspace: --ktls off");
        return Ok(None);
    }
    let probe = probe();
    tracing::info!("{probe}");
    match probe.is_present() {
        true => Ok(Some(Arc::new(probe))),
        false if choice == KtlsChoice::On => bail!("--ktls on: {probe}"),
        false => Ok(None),
    }
}

fn worker_count(config: &Config) -> anyhow::Result<usize> {
    match config.workers {
        Some(count) => Ok(count as usize),
        None => Ok(std::thread::available_parallelism().context("cannot tell how many CPUs may be used")?.get()),
    }
}

struct Main {
    config: Config,
    driver: driver::Driver,
    stats: Arc<StatsPage>,
    generations: Arc<Generations>,
    materials: Arc<Materials>,
    ktls: Option<Arc<Probe>>,
    events: Events,
    link: Link,
    /// The page that workers follow: control's, or our own while there is none.
    page: Option<Arc<PageReader>>,
    /// Keeps our own page writable; dropped with the process.
    own_page: Option<PageWriter>,
    watcher: Option<Watcher>,
    state: StateDir,
    stored: (Generation, Instant),
    store_due: bool,
    /// Control wants the listening sockets and has not got them yet.
    offer_due: bool,
    announced: Generation,
    signals: UnixStream,
}

impl Main {
    fn new(
        config: Config,
        driver: driver::Driver,
        workers: usize,
        events: Events,
        ktls: Option<Arc<Probe>>,
    ) -> anyhow::Result<Self> {
        let (stats_fd, stats) = StatsPage::create(workers).context("cannot create the statistics page")?;
        let (signals, signal_writer) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        signal_writer.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT] {
            pipe::register(signal, signal_writer.try_clone()?).context("cannot register a signal handler")?;
        }
        let hello = Hello {
            protocol: PROTOCOL,
            layout: LAYOUT,
            pid: std::process::id(),
            namespace: config.workload.namespace.clone(),
            workload: config.workload.name.clone(),
            workers: workers as u32,
            driver: driver.to_string(),
            listeners: config
                .listeners()
                .into_iter()
                .map(|(address, direction)| describe(address, direction))
                .collect(),
            generation: Generation(0),
            checksum: 0,
            service_account: config.service_account.clone(),
            bypass: true,
            join_token: config.read_join_token()?,
        };
        let generations = Arc::<Generations>::default();
        let materials = Arc::<Materials>::default();
        let link = Link::new(&config.run_dir, hello, stats_fd, Arc::clone(&generations), Arc::clone(&materials));
        let state = StateDir::new(config.state_dir());
        Ok(Self {
            config,
            driver,
            stats,
            generations,
            materials,
            ktls,
            events,
            link,
            page: None,
            own_page: None,
            watcher: None,
            state,
            stored: (Generation(0), Instant::now()),
            store_due: false,
            offer_due: false,
            announced: Generation(0),
            signals,
        })
    }

    /// The generation that is active and prepared here.
    fn active(&self) -> Option<Generation> {
        let active = self.page.as_ref()?.active().load();
        self.generations.find(active).map(|_| active)
    }

    /// From control if it is there, else from the state directory; waits for control when there is neither.
    fn find_first_generation(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_millis(FIRST_GENERATION_WAIT_MS_MAX);
        while self.link.connect() && self.active().is_none() && Instant::now() < deadline {
            self.wait_for_link(deadline.saturating_duration_since(Instant::now()));
        }
        if self.active().is_some() {
            return Ok(());
        }
        if let Some(snapshot) = self.state.load() {
            let generation = snapshot.generation();
            tracing::info!(%generation, "starting from the last good snapshot: control has not given another one yet");
            self.link.adopt(snapshot);
            let own = PageWriter::create(generation).context("cannot create a page")?;
            self.page = Some(Arc::new(PageReader::open(own.fd()).context("cannot map our own page")?));
            self.own_page = Some(own);
            return Ok(());
        }
        tracing::warn!(
            run_dir = %self.config.run_dir.display(),
            "no configuration yet: waiting for `meshring control --run-dir {}` before opening any listener",
            self.config.run_dir.display()
        );
        while self.active().is_none() {
            self.link.connect();
            self.wait_for_link(Duration::from_millis(LINK_RECONNECT_MS));
            if self.stop_requested() {
                bail!("told to end before there was any configuration");
            }
        }
        Ok(())
    }

    fn stop_requested(&self) -> bool {
        let mut byte = [0; 16];
        matches!((&self.signals).read(&mut byte), Ok(count) if count > 0)
    }

    fn wait_for_link(&mut self, timeout: Duration) {
        let timeout = timespec(timeout.min(Duration::from_millis(LINK_RECONNECT_MS)));
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(socket) = self.link.socket() {
            fds.push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
        }
        let _ = poll(&mut fds, Some(&timeout));
        self.read_link();
    }

    fn start_workers(
        &mut self,
        sockets: supervisor::Sockets,
        limits: Limits,
        memory_pressure: Arc<AtomicBool>,
    ) -> anyhow::Result<Supervisor> {
        let page = self.page.clone().context("no page")?;
        let supervisor = Supervisor::start(
            &self.config,
            self.driver.clone(),
            &self.stats,
            &self.generations,
            self.events.clone(),
            &page,
            sockets,
            limits,
            Arc::clone(&self.materials),
            self.ktls.clone(),
            memory_pressure,
        )?;
        self.watch(&supervisor, page);
        let listeners: Vec<_> = self.config.listeners().into_iter().map(|(a, d)| describe(a, d)).collect();
        tracing::info!(
            workload = %format_args!("{}/{}", self.config.workload.namespace, self.config.workload.name),
            "ready: {}",
            listeners.join(", ")
        );
        image::forget_start();
        Ok(supervisor)
    }

    fn watch(&mut self, supervisor: &Supervisor, page: Arc<PageReader>) {
        self.watcher = Some(Watcher::start(page, Arc::clone(supervisor.mailboxes()), self.events.clone()));
    }

    fn serve(
        &mut self,
        supervisor: &mut Supervisor,
        bell: &UnixStream,
        receiver: &mpsc::Receiver<Event>,
    ) -> anyhow::Result<()> {
        loop {
            self.offer_if_due(supervisor);
            self.link.connect();
            let timeout = if self.link.socket().is_some() && !self.store_due {
                Duration::from_secs(10)
            } else {
                Duration::from_millis(LINK_RECONNECT_MS)
            };
            let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
            if let Some(socket) = self.link.socket() {
                fds.push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
            }
            let _ = poll(&mut fds, Some(&timespec(timeout)));
            drop(fds);
            if self.stop_requested() {
                return self.drain(supervisor, receiver);
            }
            let mut sink = [0; 256];
            let _ = (&*bell).read(&mut sink);
            while let Ok(event) = receiver.try_recv() {
                match event {
                    Event::Committed => self.committed(),
                    Event::WorkerEnded(worker, result) => self.replace(supervisor, worker, result)?,
                }
            }
            if self.read_link()
                && let Some(page) = self.page.clone()
            {
                supervisor.mailboxes().send_all(|| Message::Page(Arc::clone(&page)));
                self.watch(supervisor, page);
            }
            self.store_if_due();
        }
    }

    /// Gives control the listening sockets, if it has asked: see [`bypass`].
    fn offer_if_due(&mut self, supervisor: &Supervisor) {
        if std::mem::take(&mut self.offer_due) {
            bypass::offer();
            supervisor.listening().for_each(|socket| self.link.offer(socket));
        }
    }

    /// Handles what control has sent. True: there is a new page.
    fn read_link(&mut self) -> bool {
        let mut followed = false;
        for outcome in self.link.read() {
            match outcome {
                Outcome::Page(page) => {
                    self.page = Some(page);
                    followed = true;
                }
                Outcome::Offer => self.offer_due = true,
                Outcome::Prepared => {
                    // It may be active already: a proxy that connects late, or was too slow.
                    if let Some(watcher) = &self.watcher {
                        watcher.refresh_workers();
                    }
                    self.committed();
                }
            }
        }
        followed
    }

    /// Another generation may be active: say so, remember it.
    fn committed(&mut self) {
        let Some(active) = self.active() else { return };
        if active != self.announced {
            self.announced = active;
            if let Some(prepared) = self.generations.find(active) {
                self.link.running(active, prepared.snapshot.checksum());
            }
            tracing::debug!(generation = %active, "generation is active");
        }
        self.store_due = active != self.stored.0;
    }

    fn store_if_due(&mut self) {
        let (stored, at) = self.stored;
        if !self.store_due || (stored.0 != 0 && at.elapsed() < Duration::from_millis(LAST_GOOD_STORE_INTERVAL_MS)) {
            return;
        }
        self.store_due = false;
        let Some(prepared) = self.active().and_then(|active| self.generations.find(active)) else { return };
        self.stored = (prepared.snapshot.generation(), Instant::now());
        self.state.store(&prepared.snapshot);
    }

    fn replace(
        &mut self,
        supervisor: &mut Supervisor,
        worker: usize,
        result: Result<(), String>,
    ) -> anyhow::Result<()> {
        let reason = result.err().unwrap_or_else(|| "it returned".into());
        tracing::error!(worker, reason, "a worker has ended: its connections are lost; starting another one");
        let page = self.page.clone().context("no page")?;
        supervisor.replace(worker, &page).context("cannot replace a worker")?;
        self.offer_due = self.link.is_asked();
        Ok(())
    }

    fn drain(&mut self, supervisor: &mut Supervisor, receiver: &mpsc::Receiver<Event>) -> anyhow::Result<()> {
        tracing::info!("draining: no new connections; requests in flight have {DRAIN_MS_MAX} ms");
        supervisor.mailboxes().send_all(|| Message::Drain);
        let deadline = Instant::now() + Duration::from_millis(DRAIN_MS_MAX);
        let mut left = supervisor.workers();
        while left > 0 && Instant::now() < deadline {
            match receiver.recv_timeout(Duration::from_millis(50)) {
                Ok(Event::WorkerEnded(..)) => left -= 1,
                Ok(Event::Committed) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if self.stop_requested() {
                tracing::warn!("told to end a second time: not waiting any longer");
                break;
            }
        }
        tracing::info!(workers_left = left, "ended");
        Ok(())
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}
