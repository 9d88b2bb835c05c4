//! The proxies that are connected, and the two phases of a publication: every proxy has the generation, then every
//! worker is told.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock},
    time::{Duration, Instant},
};

use meshring_core::{
    clock,
    id::Generation,
    limits::{GENERATIONS_RETAINED, RETAINED_BYTES_MAX},
    link::{Hello, ToProxy, channel},
    snapshot::{Encoded, Refused, Snapshot, page::PageWriter},
    stats::StatsPage,
};

/// Prepares that a proxy may leave unanswered before it gets no more: each holds a descriptor in flight, and the kernel
/// bounds those per user (`ETOOMANYREFS`), so one stopped proxy must not use them up for all.
const PREPARES_OUTSTANDING_MAX: usize = 8;

/// A generation that can be active: content that proxies can be given at any time.
#[derive(Debug)]
pub struct Retained {
    /// Its number.
    pub generation: Generation,
    /// Of its content.
    pub checksum: u64,
    /// Size of the snapshot in bytes.
    pub bytes: usize,
    fd: OwnedFd,
    snapshot: OnceLock<Arc<Snapshot>>,
}

impl Retained {
    /// Seals an encoded table under a number.
    pub fn seal(encoded: &Encoded, generation: Generation) -> io::Result<Arc<Self>> {
        let fd = encoded.seal(generation)?;
        let (checksum, bytes) = (encoded.checksum(), encoded.len());
        Ok(Arc::new(Self { generation, checksum, bytes, fd, snapshot: OnceLock::new() }))
    }

    /// From a stored file; proved like any foreign snapshot.
    pub fn from_bytes(bytes: &[u8]) -> Result<Arc<Self>, Refused> {
        let fd = meshring_core::snapshot::region::sealed("meshring-snapshot", &[bytes]).map_err(Refused::File)?;
        let snapshot = Snapshot::open(&fd)?;
        let (generation, checksum) = (snapshot.generation(), snapshot.checksum());
        let snapshot = OnceLock::from(Arc::new(snapshot));
        Ok(Arc::new(Self { generation, checksum, bytes: bytes.len(), fd, snapshot }))
    }

    /// The snapshot as a proxy sees it; mapped at the first use, since publishing does not need it.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, Refused> {
        if let Some(snapshot) = self.snapshot.get() {
            return Ok(Arc::clone(snapshot));
        }
        let snapshot = Arc::new(Snapshot::open(&self.fd)?);
        Ok(Arc::clone(self.snapshot.get_or_init(|| snapshot)))
    }

    /// The whole file, to be stored.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes];
        let mut at = 0;
        while at < bytes.len() {
            match rustix::io::pread(&self.fd, &mut bytes[at..], at as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => at += n,
            }
        }
        Ok(bytes)
    }
}

/// Identifies a connection of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyId(u64);

/// A proxy's answer to a `Prepare`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has been asked.
    Awaited,
    /// It can run it.
    Prepared,
    /// It cannot, and says why.
    Refused(String),
}

/// One connected proxy, as others see it.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// What it said about itself.
    pub hello: Arc<Hello>,
    /// Its statistics.
    pub stats: Arc<StatsPage>,
    /// When it connected, in milliseconds since the Unix epoch.
    pub connected_at_ms: u64,
    /// The generation that it did not answer for in time; it is not waited for until it has caught up.
    pub stale: Option<Generation>,
    answers: BTreeMap<Generation, Answer>,
    link: Arc<OwnedFd>,
}

impl Proxy {
    /// `default/productpage-v1 (pid 123)`.
    #[must_use]
    pub fn title(&self) -> String {
        let Hello { namespace, workload, pid, .. } = &*self.hello;
        format!("{namespace}/{workload} (pid {pid})")
    }

    /// Why it refused a generation, if it did.
    #[must_use]
    pub fn refusal(&self, generation: Generation) -> Option<&str> {
        match self.answers.get(&generation) {
            Some(Answer::Refused(reason)) => Some(reason),
            _ => None,
        }
    }

    /// What each worker runs.
    #[must_use]
    pub fn worker_generations(&self) -> Vec<Generation> {
        (0..self.workers()).map(|worker| self.stats.acknowledged(worker)).collect()
    }

    /// Workers that count: the page's size says how many there is room for, the greeting how many there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.stats.workers().min(self.hello.workers as usize)
    }

    fn outstanding(&self) -> usize {
        self.answers.values().filter(|answer| **answer == Answer::Awaited).count()
    }

    /// Sends a generation unless it was sent before or too many are unanswered.
    fn prepare(&mut self, retained: &Retained) {
        if self.answers.contains_key(&retained.generation) || self.outstanding() >= PREPARES_OUTSTANDING_MAX {
            return;
        }
        let message = ToProxy::Prepare { generation: retained.generation };
        match channel::send(&self.link, &message, &[retained.fd.as_fd()]) {
            Ok(()) => {
                self.answers.insert(retained.generation, Answer::Awaited);
            }
            // It is asked again when it answers something, or when it connects again.
            Err(error) if error.would_block() => {}
            Err(error) => self.hang_up(&error),
        }
    }

    fn tell(&self, message: &ToProxy, fds: &[std::os::fd::BorrowedFd<'_>]) {
        if let Err(error) = channel::send(&self.link, message, fds)
            && !error.would_block()
        {
            self.hang_up(&error);
        }
    }

    /// Its thread sees the end of the connection and takes it off the list.
    fn hang_up(&self, error: &channel::LinkError) {
        tracing::warn!("proxy {}: link: {error}", self.title());
        let _ = rustix::net::shutdown(&self.link, rustix::net::Shutdown::Both);
    }
}

/// What came of a message to one proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Done,
    /// The proxy does not read its link now.
    Later,
    /// The proxy has gone, or is cut off for an error.
    Gone,
}

/// What came of the first phase.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Proxies that have the generation.
    pub ready: usize,
    /// Proxies that refuse it, with their reasons.
    pub refused: Vec<(String, String)>,
    /// Proxies that have not answered in time.
    pub stale: Vec<String>,
}

/// How far the active generation has come.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Proxies that count.
    pub proxies: usize,
    /// Workers of them.
    pub workers: usize,
    /// Workers that run the generation.
    pub workers_current: usize,
    /// Those that do not: `default/productpage-v1 (pid 123): worker 1 runs generation 4`.
    pub missing: Vec<String>,
}

impl Acknowledgement {
    /// Whether every worker that counts runs the generation.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.workers_current == self.workers
    }
}

#[derive(Debug, Default)]
struct Inner {
    proxies: BTreeMap<ProxyId, Proxy>,
    next: u64,
    /// In the order of publication; at most [`GENERATIONS_RETAINED`] and [`RETAINED_BYTES_MAX`], besides one that is being prepared.
    retained: Vec<Arc<Retained>>,
}

/// Is told which generation is about to be committed, before any worker can run it.
pub type BeforeCommit = dyn Fn(Generation) + Send + Sync;

/// All connected proxies and the page that they watch.
pub struct Fleet {
    inner: Mutex<Inner>,
    changed: Condvar,
    page: PageWriter,
    before_commit: OnceLock<Box<BeforeCommit>>,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").field("inner", &self.inner).field("page", &self.page).finish_non_exhaustive()
    }
}

impl Fleet {
    /// Without proxies; `active` is what the page says until the first commit.
    pub fn new(active: Generation) -> io::Result<Self> {
        let page = PageWriter::create(active)?;
        Ok(Self { inner: Mutex::default(), changed: Condvar::new(), page, before_commit: OnceLock::new() })
    }

    /// Sets who is told before each commit; once, at the start.
    pub fn before_commit(&self, told: Box<BeforeCommit>) {
        // A second one would be a bug of ours that changes nothing for the first.
        let _ = self.before_commit.set(told);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The active generation.
    #[must_use]
    pub fn active(&self) -> Generation {
        self.page.active()
    }

    /// The content of the active generation, where this process has it.
    #[must_use]
    pub fn active_content(&self) -> Option<Arc<Retained>> {
        self.retained_as(self.active())
    }

    /// The content of a generation, where it is still retained.
    #[must_use]
    pub fn retained_as(&self, generation: Generation) -> Option<Arc<Retained>> {
        self.lock().retained.iter().find(|retained| retained.generation == generation).cloned()
    }

    /// Numbers that can be rolled back to, the active one included, oldest first.
    #[must_use]
    pub fn retained(&self) -> Vec<Generation> {
        self.lock().retained.iter().map(|retained| retained.generation).collect()
    }

    /// Connected proxies in the order of their connection.
    #[must_use]
    pub fn proxies(&self) -> Vec<Proxy> {
        self.lock().proxies.values().cloned().collect()
    }

    /// Takes a proxy in: welcomes it and sends it the active generation, then the other retained ones.
    pub fn attach(&self, link: Arc<OwnedFd>, hello: Hello, stats: StatsPage) -> ProxyId {
        let mut inner = self.lock();
        let id = ProxyId(inner.next);
        inner.next += 1;
        let mut proxy = Proxy {
            hello: Arc::new(hello),
            stats: Arc::new(stats),
            connected_at_ms: clock::unix_ms(),
            stale: None,
            answers: BTreeMap::new(),
            link,
        };
        let active = self.active();
        proxy.tell(&ToProxy::Welcome { active }, &[self.page.fd().as_fd()]);
        let mut content = inner.retained.clone();
        content.sort_by_key(|retained| (retained.generation != active, std::cmp::Reverse(retained.generation)));
        content.iter().for_each(|retained| proxy.prepare(retained));
        inner.proxies.insert(id, proxy);
        self.changed.notify_all();
        id
    }

    /// Sends a message to one proxy.
    pub fn send(&self, id: ProxyId, message: &ToProxy, fds: &[std::os::fd::BorrowedFd<'_>]) -> Sent {
        let inner = self.lock();
        let Some(proxy) = inner.proxies.get(&id) else { return Sent::Gone };
        match channel::send(&proxy.link, message, fds) {
            Ok(()) => Sent::Done,
            Err(error) if error.would_block() => Sent::Later,
            Err(error) => {
                proxy.hang_up(&error);
                Sent::Gone
            }
        }
    }

    /// Whether every worker of a proxy runs a generation.
    #[must_use]
    pub fn runs(&self, id: ProxyId, generation: Generation) -> bool {
        let inner = self.lock();
        inner.proxies.get(&id).is_some_and(|proxy| proxy.worker_generations().iter().all(|&runs| runs == generation))
    }

    /// Takes a proxy off the list.
    pub fn detach(&self, id: ProxyId) -> Option<Proxy> {
        let proxy = self.lock().proxies.remove(&id);
        self.changed.notify_all();
        proxy
    }

    /// Notes what a proxy has answered, and sends it what it has missed.
    pub fn answered(&self, id: ProxyId, generation: Generation, answer: Answer) {
        let mut inner = self.lock();
        let active = self.active();
        let inner = &mut *inner;
        let Some(proxy) = inner.proxies.get_mut(&id) else { return };
        if let Answer::Refused(reason) = &answer {
            tracing::warn!("proxy {} refuses generation {generation}: {reason}", proxy.title());
        }
        proxy.answers.insert(generation, answer);
        if proxy.stale.is_some() && proxy.answers.get(&active) == Some(&Answer::Prepared) {
            tracing::info!("proxy {} answers again and has generation {active}", proxy.title());
            proxy.stale = None;
        }
        // Newest first: what it missed while it was silent matters less than what is active.
        for retained in inner.retained.iter().rev() {
            proxy.prepare(retained);
        }
        self.changed.notify_all();
    }

    /// First phase: sends a generation to every proxy and waits until each has answered, or until `timeout`. Proxies
    /// that were stale before are asked but not waited for.
    pub fn prepare(&self, content: &Arc<Retained>, timeout: Duration) -> Prepared {
        let generation = content.generation;
        let deadline = Instant::now() + timeout;
        let mut inner = self.lock();
        inner.retained.push(Arc::clone(content));
        inner.proxies.values_mut().for_each(|proxy| proxy.prepare(content));
        let waiting = |proxy: &Proxy| {
            proxy.stale.is_none() && matches!(proxy.answers.get(&generation), None | Some(Answer::Awaited))
        };
        while inner.proxies.values().any(waiting) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inner = match self.changed.wait_timeout(inner, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        let mut outcome = Prepared::default();
        for proxy in inner.proxies.values_mut() {
            match proxy.answers.get(&generation) {
                Some(Answer::Prepared) => outcome.ready += 1,
                Some(Answer::Refused(reason)) => outcome.refused.push((proxy.title(), reason.clone())),
                None | Some(Answer::Awaited) => {
                    proxy.stale.get_or_insert(generation);
                    outcome.stale.push(proxy.title());
                }
            }
        }
        outcome
    }

    /// Takes a prepared generation back that will not be committed.
    pub fn withdraw(&self, generation: Generation) {
        self.lock().retained.retain(|retained| retained.generation != generation);
    }

    /// Second phase: every worker's next request runs on it. Generations beyond the bound are retired.
    pub fn commit(&self, generation: Generation) {
        if let Some(told) = self.before_commit.get() {
            told(generation);
        }
        let mut inner = self.lock();
        self.page.commit(generation);
        let (mut count, mut bytes) = (inner.retained.len(), inner.retained.iter().map(|r| r.bytes).sum::<usize>());
        inner.retained.retain(|retained| {
            let excess = count > GENERATIONS_RETAINED || (bytes > RETAINED_BYTES_MAX && count > 2);
            let drop = excess && retained.generation != generation;
            if drop {
                count -= 1;
                bytes -= retained.bytes;
            }
            !drop
        });
        Self::retire(&mut inner);
    }

    /// Keeps the content of one generation only: the others were published by a control process whose numbers cannot
    /// be trusted any more.
    pub fn keep_only(&self, generation: Generation) {
        let mut inner = self.lock();
        inner.retained.retain(|retained| retained.generation == generation);
        Self::retire(&mut inner);
    }

    /// Retains a content without publishing it: it is what the number stands for already.
    pub fn restore(&self, content: Arc<Retained>) {
        let mut inner = self.lock();
        inner.proxies.values_mut().for_each(|proxy| proxy.prepare(&content));
        inner.retained.push(content);
        inner.retained.sort_by_key(|retained| retained.generation);
    }

    fn retire(inner: &mut Inner) {
        let Some(below) = inner.retained.iter().map(|retained| retained.generation).min() else { return };
        for proxy in inner.proxies.values_mut() {
            let before = proxy.answers.len();
            proxy.answers = proxy.answers.split_off(&below);
            if proxy.answers.len() < before {
                proxy.tell(&ToProxy::Retire { below }, &[]);
            }
        }
    }

    /// How far a generation has come; `all` counts stale proxies too.
    #[must_use]
    pub fn acknowledgement(&self, generation: Generation, all: bool) -> Acknowledgement {
        let inner = self.lock();
        let active = self.active();
        let mut sum = Acknowledgement::default();
        for proxy in inner.proxies.values().filter(|proxy| all || proxy.stale.is_none()) {
            sum.proxies += 1;
            for (worker, runs) in proxy.worker_generations().into_iter().enumerate() {
                sum.workers += 1;
                // A later publication has overtaken this one: who runs the later one has left the earlier behind.
                if runs == generation || runs == active {
                    sum.workers_current += 1;
                } else {
                    sum.missing.push(match (runs, proxy.refusal(generation)) {
                        (_, Some(reason)) => format!("{}: refuses it: {reason}", proxy.title()),
                        (Generation(0), _) => format!("{}: worker {worker} has no configuration yet", proxy.title()),
                        _ => format!("{}: worker {worker} runs generation {runs}", proxy.title()),
                    });
                }
            }
        }
        sum
    }

    /// Waits until every worker that counts runs a generation, or until `timeout`.
    #[must_use]
    pub fn wait_acknowledged(&self, generation: Generation, all: bool, timeout: Duration) -> Acknowledgement {
        let begin = Instant::now();
        loop {
            let sum = self.acknowledgement(generation, all);
            let elapsed = begin.elapsed();
            if sum.complete() || elapsed >= timeout {
                return sum;
            }
            // Workers take tens of microseconds; a sleep would cost more than the answer, so the first millisecond
            // only makes way for whoever is ready to run.
            match elapsed.as_millis() {
                0 => std::thread::yield_now(),
                1..10 => std::thread::sleep(Duration::from_micros(50)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}
