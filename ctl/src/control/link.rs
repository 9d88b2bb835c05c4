//! One thread per proxy: greets it, then listens to its answers until it hangs up.
//!
//! A foreign unix user is let in only with a right to a workload ([`admission`]); control's own user and root always.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use meshring_core::{
    id::Generation,
    limits::{FOREIGN_GREETINGS_MAX, FOREIGN_GREETINGS_PER_USER_MAX},
    link::{
        Hello, PROTOCOL, ToControl, ToProxy,
        channel::{self, LinkError},
    },
    snapshot::layout::LAYOUT,
    stats::StatsPage,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SocketFlags, accept_with, sockopt::socket_peercred},
};

use super::{
    admission::{self, Grant},
    bypass::Manager,
    fleet::{Answer, Fleet, ProxyId},
    materials::Materials,
    permission,
};
use crate::{ca::tokens::Tokens, spec::World};

/// From a proxy's connection to its greeting, in milliseconds: it sends that at once, so a second is plenty.
const HELLO_MS_MAX: u64 = 5_000;

/// Is asked, before a proxy is taken in, what its running generation means for the numbers of this control process.
pub type Recognise = dyn Fn(Generation, u64) + Send + Sync;

/// What every connection needs.
pub struct Shared {
    /// The connected proxies.
    pub fleet: Arc<Fleet>,
    /// What they are given beside the tables.
    pub materials: Arc<Materials>,
    /// Whose connections may go around TCP.
    pub bypass: Arc<Manager>,
    /// What foreign users prove themselves by.
    pub tokens: Arc<Tokens>,
    /// What is in effect.
    pub world: Box<dyn Fn() -> Arc<World> + Send + Sync>,
    /// See [`Recognise`].
    pub recognise: Box<Recognise>,
    /// Greetings of foreign users that are awaited.
    pub greeting: Greetings,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{0}")]
    Rejected(String),
    #[error("no greeting within {HELLO_MS_MAX} ms")]
    Silent,
    #[error("greets twice")]
    SecondHello,
    #[error("poll: {0}")]
    Poll(#[from] rustix::io::Errno),
}

/// Accepts proxies for as long as the process lives.
pub fn serve(listener: OwnedFd, shared: Arc<Shared>) {
    loop {
        match accept_with(&listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => {
                let shared = Arc::clone(&shared);
                let spawned = std::thread::Builder::new()
                    .name("link".into())
                    .spawn(move || connection(&Arc::new(socket), &shared));
                if let Err(error) = spawned {
                    tracing::error!("link: no thread for a proxy: {error}; it will try again");
                }
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(errno) => {
                // Out of descriptors or memory: proxies keep trying, so a pause loses nothing.
                tracing::error!("link: accept: {errno}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn connection(socket: &Arc<OwnedFd>, shared: &Shared) {
    let id = match greet(socket, shared) {
        Ok(id) => id,
        Err(LinkEnd::Rejected(reason)) => {
            shared.greeting.warn(&format!("proxy rejected: {reason}"));
            // The peer may be gone already; then there is nobody to tell.
            let _ = channel::send(socket, &ToProxy::Rejected { reason }, &[]);
            return;
        }
        Err(error) => return shared.greeting.warn(&error.to_string()),
    };
    let end = listen(socket, shared, id);
    shared.materials.detached(id);
    shared.bypass.detached(id);
    if let Some(proxy) = shared.fleet.detach(id) {
        match end {
            LinkEnd::Link(LinkError::Closed) => tracing::info!("proxy {} has gone", proxy.title()),
            error => tracing::warn!("proxy {} is cut off: {error}", proxy.title()),
        }
    }
}

fn greet(socket: &Arc<OwnedFd>, shared: &Shared) -> Result<ProxyId, LinkEnd> {
    let (hello, stats, grant) = introduce(socket, shared)?;
    (shared.recognise)(hello.generation, hello.checksum);
    let Hello { namespace, workload, pid, workers, driver, generation, .. } = &hello;
    tracing::info!(
        "proxy {namespace}/{workload} (pid {pid}) is here: {workers}, {driver}, {runs}",
        workers = if *workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") },
        runs = if generation.0 == 0 { "no generation yet".to_owned() } else { format!("runs generation {generation}") },
    );
    let shown = Arc::new(hello.clone());
    let id = shared.fleet.attach(Arc::clone(socket), hello, stats);
    // The number that the greeting names may be of another namespace.
    if let Ok(credentials) = socket_peercred(socket) {
        shared.bypass.attached(id, Arc::clone(&shown), credentials.pid.as_raw_nonzero().get().unsigned_abs());
    }
    shared.materials.attached(id, shown, grant);
    Ok(id)
}

/// Who it is, and what it may have.
fn introduce(socket: &Arc<OwnedFd>, shared: &Shared) -> Result<(Hello, StatsPage, Grant), LinkEnd> {
    let uid = socket_peercred(socket)?.uid.as_raw();
    let foreign = permission::check(uid).err();
    let _turn = match &foreign {
        Some(denied) => {
            let turn = Turn::take(&shared.greeting, uid);
            let busy = || LinkEnd::Rejected(format!("{denied}; too many of its connections say nothing yet"));
            Some(turn.ok_or_else(busy)?)
        }
        None => None,
    };
    let deadline = Instant::now() + Duration::from_millis(HELLO_MS_MAX);
    let (message, fds) = receive(socket, Some(deadline))?;
    let ToControl::Hello(mut hello) = message else {
        return Err(LinkEnd::Rejected("the first message must be a greeting (hello)".into()));
    };
    let world = (shared.world)();
    let grant = admission::admit(uid, &hello, &shared.tokens, &world).map_err(LinkEnd::Rejected)?;
    // It has served; what is kept for as long as the connection lives must not hold it.
    hello.join_token = None;
    let stats = examine(&hello, &fds).map_err(LinkEnd::Rejected)?;
    Ok((hello, stats, grant))
}

/// Of greetings: anybody on this machine can connect.
#[derive(Debug, Default)]
pub struct Greetings {
    /// How many of each foreign user are awaited; users without any are not in it.
    awaited: Mutex<BTreeMap<u32, usize>>,
    lines: Mutex<Lines>,
}

/// What was logged within the second that began then.
#[derive(Debug, Default)]
struct Lines {
    begun: Option<Instant>,
    written: u32,
    left_out: u32,
}

/// Lines about failed greetings in a second: a stranger that tries again and again must not fill the log.
const LINES_PER_SECOND_MAX: u32 = 10;

impl Lines {
    /// Whether there is room for one more, and how many there was none for before.
    fn take(&mut self, now: Instant) -> Option<u32> {
        if self.begun.is_none_or(|begun| now.duration_since(begun) >= Duration::from_secs(1)) {
            (self.begun, self.written) = (Some(now), 0);
        }
        if self.written >= LINES_PER_SECOND_MAX {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Greetings {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs why a connection ends before its proxy is taken in, if there is room.
    fn warn(&self, reason: &str) {
        let room = self.lines.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        match room {
            None => {}
            Some(0) => tracing::warn!("link: {reason}"),
            Some(left_out) => tracing::warn!("link: {reason} ({left_out} more lines like this were left out)"),
        }
    }
}

/// One of the few greetings of foreign users that are read at a time.
struct Turn<'a>(&'a Greetings, u32);

impl<'a> Turn<'a> {
    fn take(greetings: &'a Greetings, uid: u32) -> Option<Self> {
        let mut awaited = greetings.lock();
        let is_full = awaited.values().sum::<usize>() >= FOREIGN_GREETINGS_MAX;
        let own = awaited.get(&uid).copied().unwrap_or(0);
        if is_full || own >= FOREIGN_GREETINGS_PER_USER_MAX {
            return None;
        }
        awaited.insert(uid, own + 1);
        Some(Self(greetings, uid))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut awaited = self.0.lock();
        match awaited.get(&self.1).copied() {
            Some(own @ 2..) => drop(awaited.insert(self.1, own - 1)),
            _ => drop(awaited.remove(&self.1)),
        }
    }
}

fn examine(hello: &Hello, fds: &[OwnedFd]) -> Result<StatsPage, String> {
    if hello.protocol != PROTOCOL {
        return Err(format!(
            "the proxy speaks version {} of the link protocol, control version {PROTOCOL}: install both from one release",
            hello.protocol
        ));
    }
    if hello.layout != LAYOUT {
        return Err(format!(
            "the proxy reads snapshots of layout {:016x}, control writes {LAYOUT:016x}: install both from one release",
            hello.layout
        ));
    }
    let [stats] = fds else {
        return Err(format!("a greeting carries one descriptor, the statistics page; this one has {}", fds.len()));
    };
    StatsPage::open(stats).map_err(|error| format!("statistics page: {error}"))
}

fn listen(socket: &OwnedFd, shared: &Shared, id: ProxyId) -> LinkEnd {
    let Shared { fleet, materials, .. } = shared;
    loop {
        match receive(socket, None) {
            Ok((ToControl::Prepared { generation }, _)) => fleet.answered(id, generation, Answer::Prepared),
            Ok((ToControl::Refused { generation, reason }, _)) => {
                fleet.answered(id, generation, Answer::Refused(reason));
            }
            Ok((ToControl::Installed { name, .. }, _)) => materials.installed(id, &name),
            Ok((ToControl::NotInstalled { name, reason }, _)) => materials.refused(id, &name, reason),
            Ok((ToControl::Listener, sockets)) => shared.bypass.offered(id, &sockets),
            Ok((ToControl::Hello(_), _)) => return LinkEnd::SecondHello,
            Err(error) => return error,
        }
    }
}

/// The next message. The socket is non-blocking, so that a stopped proxy never blocks a sender.
fn receive(socket: impl AsFd, deadline: Option<Instant>) -> Result<(ToControl, Vec<OwnedFd>), LinkEnd> {
    loop {
        let timeout = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            Some(left) if left.is_zero() => return Err(LinkEnd::Silent),
            Some(left) => Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }),
            None => None,
        };
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        match channel::receive(&socket) {
            Err(error) if error.would_block() => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_that_comes_again_and_again_fills_no_log() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        let written = (0..1_000).filter(|_| lines.take(now).is_some()).count();
        assert_eq!(written, LINES_PER_SECOND_MAX as usize);
        assert_eq!(lines.take(now + Duration::from_secs(1)), Some(1_000 - LINES_PER_SECOND_MAX));
        assert_eq!(lines.take(now + Duration::from_secs(1)), Some(0));
    }

    #[test]
    fn a_user_that_says_nothing_keeps_no_other_out() {
        let greetings = Greetings::default();
        let mut turns: Vec<_> = (0..FOREIGN_GREETINGS_PER_USER_MAX).map_while(|_| Turn::take(&greetings, 1)).collect();
        assert_eq!(turns.len(), FOREIGN_GREETINGS_PER_USER_MAX);
        assert!(Turn::take(&greetings, 1).is_none());
        assert!(Turn::take(&greetings, 2).is_some());
        turns.pop();
        assert!(Turn::take(&greetings, 1).is_some());

        let others: Vec<_> = (2..).map_while(|uid| Turn::take(&greetings, uid)).collect();
        assert_eq!(turns.len() + others.len(), FOREIGN_GREETINGS_MAX);
        drop((turns, others));
        assert!(greetings.lock().is_empty());
    }
}
