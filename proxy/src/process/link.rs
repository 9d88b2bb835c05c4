//! The proxy's end of the link to control.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use meshring_core::{
    id::Generation,
    identity::Material,
    limits::{LINK_RECONNECT_MS, MATERIAL_BYTES_MAX},
    link::{
        Hello, SOCKET_NAME, ToControl, ToProxy,
        channel::{LinkError, receive, send},
    },
    snapshot::{Refused, Snapshot, page::PageReader, region::read_sealed},
    table::lookup::Viewpoint,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::{
    tls::materials::Materials,
    worker::generation::{Generations, Prepared},
};

/// What a message of control changes for the main thread.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Follow this page.
    Page(Arc<PageReader>),
    /// Something can be committed, or already is.
    Prepared,
    /// Control wants the listening sockets.
    Offer,
}

/// The link, connected or not.
#[derive(Debug)]
pub(crate) struct Link {
    path: PathBuf,
    hello: Hello,
    stats: OwnedFd,
    generations: Arc<Generations>,
    materials: Arc<Materials>,
    socket: Option<OwnedFd>,
    next_attempt: Instant,
    /// Whether the absence of control was logged already.
    missed: bool,
    /// Whether the control of this connection has asked for listening sockets.
    asked: bool,
}

impl Link {
    pub(crate) fn new(
        run_dir: &Path,
        hello: Hello,
        stats: OwnedFd,
        generations: Arc<Generations>,
        materials: Arc<Materials>,
    ) -> Self {
        let path = run_dir.join(SOCKET_NAME);
        Self {
            path,
            hello,
            stats,
            generations,
            materials,
            socket: None,
            next_attempt: Instant::now(),
            missed: false,
            asked: false,
        }
    }

    /// For polling.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    /// Makes sure that there is a connection, if control is there. Returns whether there is one.
    pub(crate) fn connect(&mut self) -> bool {
        if self.socket.is_some() {
            return true;
        }
        if Instant::now() < self.next_attempt {
            return false;
        }
        self.next_attempt = Instant::now() + Duration::from_millis(LINK_RECONNECT_MS);
        match self.try_connect() {
            Ok(socket) => {
                self.socket = Some(socket);
                self.asked = false;
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.missed, true) {
                    tracing::warn!(socket = %self.path.display(), %error, "control is not there; going on without it");
                }
                false
            }
        }
    }

    fn try_connect(&self) -> Result<OwnedFd, LinkError> {
        let error = |errno: rustix::io::Errno| LinkError::Io(errno.into());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(error)?;
        let address = SocketAddrUnix::new(&self.path).map_err(error)?;
        connect(&socket, &address).map_err(error)?;
        send(&socket, &ToControl::Hello(self.hello.clone()), &[self.stats.as_fd()])?;
        Ok(socket)
    }

    /// What runs here now; control hears it at the next connection.
    pub(crate) fn running(&mut self, generation: Generation, checksum: u64) {
        self.hello.generation = generation;
        self.hello.checksum = checksum;
    }

    /// Keeps a proved snapshot under this workload's viewpoint.
    pub(crate) fn adopt(&mut self, snapshot: Snapshot) {
        let viewpoint = Viewpoint::resolve(snapshot.table(), &self.hello.namespace, &self.hello.workload);
        if self.hello.generation == Generation(0) {
            self.running(snapshot.generation(), snapshot.checksum());
        }
        self.generations.add(Arc::new(Prepared::new(snapshot, viewpoint)));
    }

    /// Handles all messages that are there.
    pub(crate) fn read(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some(socket) = &self.socket {
            match receive::<ToProxy>(socket) {
                Ok((message, fds)) => outcomes.extend(self.handle(message, fds)),
                Err(error) if error.would_block() => break,
                Err(error) => {
                    tracing::warn!(%error, "the link to control broke; going on without it");
                    self.missed = true;
                    self.socket = None;
                }
            }
        }
        outcomes
    }

    fn handle(&mut self, message: ToProxy, fds: Vec<OwnedFd>) -> Option<Outcome> {
        match message {
            ToProxy::Welcome { active } => {
                let page = fds.first().map(PageReader::open)?;
                // Only now: a bare connection may still end in the backlog of a control that is dying.
                if std::mem::take(&mut self.missed) {
                    tracing::info!("control is back");
                }
                tracing::debug!(%active, "welcomed by control");
                match page {
                    Ok(page) => return Some(Outcome::Page(Arc::new(page))),
                    Err(error) => tracing::error!(%error, "control's page is unusable"),
                }
            }
            ToProxy::Rejected { reason } => {
                tracing::error!(reason, "control rejects this proxy");
                self.socket = None;
                // Nothing will change within milliseconds.
                self.next_attempt = Instant::now() + Duration::from_secs(5);
            }
            ToProxy::Prepare { generation } => {
                let answer = match self.prepare(generation, fds.first()) {
                    Ok(()) => ToControl::Prepared { generation },
                    Err(error) => {
                        tracing::error!(%generation, %error, "snapshot refused; the running generation goes on");
                        ToControl::Refused { generation, reason: error.to_string() }
                    }
                };
                let prepared = matches!(answer, ToControl::Prepared { .. });
                self.answer(&answer);
                return prepared.then_some(Outcome::Prepared);
            }
            ToProxy::Material { name } => {
                let answer = match self.install(&name, fds.first()) {
                    Ok(not_after_s) => ToControl::Installed { name, not_after_s },
                    Err(reason) => {
                        tracing::error!(name, reason, "credential refused; what is in use goes on");
                        ToControl::NotInstalled { name, reason }
                    }
                };
                self.answer(&answer);
            }
            ToProxy::OfferListeners => {
                self.asked = true;
                return Some(Outcome::Offer);
            }
            ToProxy::Forget { names } => self.materials.forget(&names),
            ToProxy::NoIdentity { reason } => {
                tracing::error!(reason, "control gives this workload no identity: no mutual TLS until it does");
            }
            ToProxy::Retire { below } => {
                self.generations.retire(below, self.hello.generation);
            }
        }
        None
    }

    /// Takes a credential out of its memfd. Returns the end of its validity in seconds since 1970.
    fn install(&self, name: &str, fd: Option<&OwnedFd>) -> Result<u64, String> {
        let fd = fd.ok_or("the message carried no descriptor")?;
        let bytes = read_sealed(fd, MATERIAL_BYTES_MAX).map_err(|error| error.to_string())?;
        let material = Material::decode(&bytes).map_err(|error| error.to_string())?;
        if material.name != name {
            return Err("it has another name than was announced".into());
        }
        let credential = self.materials.install(&material)?;
        match &credential.identity {
            Some(identity) => tracing::info!(%identity, not_after_s = credential.not_after_s, "identity installed"),
            None => tracing::info!(name, not_after_s = credential.not_after_s, "credential installed"),
        }
        Ok(credential.not_after_s)
    }

    fn prepare(&mut self, announced: Generation, fd: Option<&OwnedFd>) -> Result<(), PrepareError> {
        let snapshot = Snapshot::open(fd.ok_or(PrepareError::NoDescriptor)?)?;
        let actual = snapshot.generation();
        if actual != announced {
            return Err(Refused::Generation { actual, announced }.into());
        }
        match self.generations.find(announced) {
            // Told again after a reconnect: what is mapped stays mapped.
            Some(known) if known.snapshot.checksum() == snapshot.checksum() => {}
            Some(_) => return Err(PrepareError::NumberTaken(announced)),
            None => self.adopt(snapshot),
        }
        Ok(())
    }

    /// Whether this connection's control wants listening sockets.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Gives control a listening socket.
    pub(crate) fn offer(&mut self, listening: BorrowedFd<'_>) {
        self.send(&ToControl::Listener, &[listening]);
    }

    fn answer(&mut self, message: &ToControl) {
        self.send(message, &[]);
    }

    fn send(&mut self, message: &ToControl, fds: &[BorrowedFd<'_>]) {
        if let Some(socket) = &self.socket
            && let Err(error) = send(socket, message, fds)
        {
            tracing::warn!(%error, "cannot answer control");
            self.socket = None;
        }
    }
}

/// Why a snapshot was not prepared.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error("the message carried no descriptor")]
    NoDescriptor,
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("generation {0} is another configuration here: control must number on")]
    NumberTaken(Generation),
}
