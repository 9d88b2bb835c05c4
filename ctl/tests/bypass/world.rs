//! A process that is proxy and application at once, in a cgroup of its own, and its connections.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use meshring_ctl::bypass::{Bypass, Counters, Slot};

/// A process is in one cgroup at a time.
static ALONE: Mutex<()> = Mutex::new(());
/// What no wait of these tests reaches unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// While it lives, no test moves this process.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This process in a cgroup of its own, with a bypass on it.
pub(crate) struct World {
    pub(crate) bypass: Bypass,
    pub(crate) slot: Slot,
    pub(crate) cgroup: PathBuf,
    root: PathBuf,
    /// The registered process, where that is not this one.
    proxy: Option<Child>,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    pub(crate) fn new() -> Option<Self> {
        Self::with_room(4096)
    }

    pub(crate) fn with_room(sockets_max: u32) -> Option<Self> {
        let alone = alone();
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
        let Some(root) = root.into_iter().find(|root| root.join("cgroup.procs").exists()) else {
            println!("skipped: cgroup v2 is not mounted");
            return None;
        };
        let cgroup = root.join(format!("meshring-ctl-tests-{}", std::process::id()));
        if let Err(error) = std::fs::create_dir(&cgroup) {
            println!("skipped: {}: {error}", cgroup.display());
            return None;
        }
        std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("moved");
        match Bypass::install_with_room(Some(&cgroup), sockets_max) {
            Ok(mut bypass) => {
                let slot = bypass.register(std::process::id()).expect("registered");
                Some(Self { bypass, slot, cgroup, root, proxy: None, _alone: alone })
            }
            Err(error) => {
                println!("skipped: {error}");
                leave(&root, &cgroup);
                None
            }
        }
    }

    /// This process is an application only: what it connects is captured for the sake of a listener alone.
    pub(crate) fn unregistered() -> Option<Self> {
        let mut world = Self::new()?;
        let proxy = Command::new("sleep").arg("1000").spawn().expect("started");
        world.bypass.unregister(world.slot);
        world.slot = world.bypass.register(proxy.id()).expect("registered");
        world.proxy = Some(proxy);
        Some(world)
    }

    pub(crate) fn listener(&mut self, address: &str) -> TcpListener {
        let listener = TcpListener::bind(address).expect("bound");
        self.bypass.add_listener(self.slot, listener.as_fd()).expect("added");
        listener
    }

    pub(crate) fn counters(&self) -> Counters {
        self.bypass.counters(self.slot).expect("counted")
    }
}

fn leave(root: &Path, cgroup: &Path) {
    std::fs::write(root.join("cgroup.procs"), std::process::id().to_string()).expect("moved back");
    let _ = std::fs::remove_dir(cgroup);
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut proxy) = self.proxy.take() {
            // It has nothing to lose.
            let _ = proxy.kill();
            let _ = proxy.wait();
        }
        leave(&self.root, &self.cgroup);
    }
}

/// Where a listener of any address is reached.
pub(crate) fn reach(listener: &TcpListener) -> SocketAddr {
    let mut address = listener.local_addr().expect("an address");
    if address.ip().is_unspecified() {
        address.set_ip("127.0.0.1".parse().expect("an address"));
    }
    address
}

pub(crate) fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(reach(listener)).expect("connected");
    let (server, _) = listener.accept().expect("accepted");
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket.set_write_timeout(Some(PATIENCE)).expect("set");
    }
    (client, server)
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::yield_now();
    }
}
