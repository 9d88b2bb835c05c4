//! One thread per proxy: greets it, then listens to its answers until it hangs up.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use meshring_core::{
    id::Generation,
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
    fleet::{Answer, Fleet, ProxyId},
    permission,
};

/// From a proxy's connection to its greeting, in milliseconds: it sends that at once, so a second is plenty.
const HELLO_MS_MAX: u64 = 5_000;

/// Is asked, before a proxy is taken in, what its running generation means for the numbers of this control process.
pub type Recognise = dyn Fn(Generation, u64) + Send + Sync;

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
pub fn serve(listener: OwnedFd, fleet: Arc<Fleet>, recognise: Arc<Recognise>) {
    loop {
        match accept_with(&listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => {
                let (fleet, recognise) = (Arc::clone(&fleet), Arc::clone(&recognise));
                let spawned = std::thread::Builder::new()
                    .name("link".into())
                    .spawn(move || connection(&Arc::new(socket), &fleet, &*recognise));
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

fn connection(socket: &Arc<OwnedFd>, fleet: &Fleet, recognise: &Recognise) {
    let id = match greet(socket, fleet, recognise) {
        Ok(id) => id,
        Err(LinkEnd::Rejected(reason)) => {
            tracing::warn!("link: proxy rejected: {reason}");
            // The peer may be gone already; then there is nobody to tell.
            let _ = channel::send(socket, &ToProxy::Rejected { reason }, &[]);
            return;
        }
        Err(error) => return tracing::warn!("link: {error}"),
    };
    let end = listen(socket, fleet, id);
    if let Some(proxy) = fleet.detach(id) {
        match end {
            LinkEnd::Link(LinkError::Closed) => tracing::info!("proxy {} has gone", proxy.title()),
            error => tracing::warn!("proxy {} is cut off: {error}", proxy.title()),
        }
    }
}

fn greet(socket: &Arc<OwnedFd>, fleet: &Fleet, recognise: &Recognise) -> Result<ProxyId, LinkEnd> {
    let peer = socket_peercred(socket)?;
    permission::check(peer.uid.as_raw()).map_err(|denied| LinkEnd::Rejected(denied.to_string()))?;
    let deadline = Instant::now() + Duration::from_millis(HELLO_MS_MAX);
    let (message, fds) = receive(socket, Some(deadline))?;
    let ToControl::Hello(hello) = message else {
        return Err(LinkEnd::Rejected("the first message must be a greeting (hello)".into()));
    };
    let stats = examine(&hello, &fds).map_err(LinkEnd::Rejected)?;
    recognise(hello.generation, hello.checksum);
    let Hello { namespace, workload, pid, workers, driver, generation, .. } = &hello;
    tracing::info!(
        "proxy {namespace}/{workload} (pid {pid}) is here: {workers}, {driver}, {runs}",
        workers = if *workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") },
        runs = if generation.0 == 0 { "no generation yet".to_owned() } else { format!("runs generation {generation}") },
    );
    Ok(fleet.attach(Arc::clone(socket), hello, stats))
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

fn listen(socket: &OwnedFd, fleet: &Fleet, id: ProxyId) -> LinkEnd {
    loop {
        match receive(socket, None) {
            Ok((ToControl::Prepared { generation }, _)) => fleet.answered(id, generation, Answer::Prepared),
            Ok((ToControl::Refused { generation, reason }, _)) => {
                fleet.answered(id, generation, Answer::Refused(reason));
            }
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
