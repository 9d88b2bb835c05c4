//! Keeps the [bypass](crate::bypass) and the connected proxies together: who is registered in it, and what is shown.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use meshring_core::link::{Hello, ToProxy};
use serde::{Deserialize, Serialize};

use super::fleet::{Fleet, ProxyId};
use crate::bypass::{Bypass, Counters, InstallError, RegisterError, Slot};

/// Sockets that are listed.
const SOCKETS_LISTED_MAX: usize = 1000;

/// Between two looks at the kernel's memory: at most 64 KiB per connection can be added in that time.
const PRESSURE_PERIOD_MS: u64 = 100;

/// `--bypass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Mode {
    /// Plain TCP, unless `meshring bypass install` says otherwise.
    #[default]
    Off,
    /// Where kernel and capabilities allow; else plain TCP, and a line that says why.
    Auto,
    /// Or control does not start.
    On,
}

/// What was asked for when control was started.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Whether.
    pub mode: Mode,
    /// Where; by default the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
}

/// A connected proxy that knows of the bypass.
#[derive(Debug)]
struct Member {
    hello: Arc<Hello>,
    pid: u32,
    slot: Option<Slot>,
    listeners: Vec<SocketAddr>,
}

#[derive(Debug, Default)]
struct Inner {
    installed: Option<Bypass>,
    /// Taken back, but some captured sockets live on.
    leaving: Vec<Bypass>,
    members: BTreeMap<ProxyId, Member>,
    /// Why it is not installed though it was asked for.
    refusal: Option<String>,
}

/// The bypass of this control process.
#[derive(Debug)]
pub struct Manager {
    fleet: Arc<Fleet>,
    inner: Mutex<Inner>,
}

/// A call that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum BypassError {
    /// See [`InstallError`].
    #[error("no bypass: {0}; plain TCP is used")]
    Install(#[from] InstallError),
    /// It is there.
    #[error("the bypass is installed already, on cgroup {}: `meshring bypass remove` first", .0.display())]
    Installed(PathBuf),
    /// It is not there.
    #[error("the bypass is not installed")]
    NotInstalled,
    /// The kernel refuses.
    #[error("bypass: {0}")]
    Kernel(#[from] io::Error),
}

/// What there is to see, as the API shows it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The cgroup, while it is installed.
    pub cgroup: Option<String>,
    /// Why it is not installed though it was asked for.
    pub refusal: Option<String>,
    /// It is installed, and takes nothing for now: the kernel is short of memory for TCP.
    pub is_pressed: bool,
    /// The programs.
    pub programs: Vec<ShownProgram>,
    /// The maps.
    pub maps: Vec<ShownMap>,
    /// Ports that are switched off.
    pub ports_off: Vec<u16>,
    /// Registered proxies.
    pub proxies: Vec<ShownProxy>,
    /// Captured sockets, the first of them: `127.0.0.1:40000 -> 127.0.0.1:15001`.
    pub sockets: Vec<String>,
    /// Sockets that an installation that was taken back still holds, until they are closed.
    pub leaving: usize,
}

/// A program in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownProgram {
    /// As `bpftool prog` shows it.
    pub name: String,
    /// The kernel's number.
    pub id: u32,
    /// Its length.
    pub instructions: usize,
}

/// A map in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownMap {
    /// As `bpftool map` shows it.
    pub name: String,
    /// 0 where the kernel sets the bound.
    pub entries_max: u32,
    /// Entries now, where sockets are listed, too, and the map has keys to go through.
    pub entries: Option<usize>,
}

/// A registered proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownProxy {
    /// `default/productpage-v1`.
    pub proxy: String,
    /// Its process.
    pub pid: u32,
    /// Listening sockets that it has registered.
    pub listeners: Vec<String>,
    /// By path.
    pub counters: Counters,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.cgroup, &self.refusal) {
            (Some(cgroup), _) => writeln!(f, "installed on cgroup {cgroup}")?,
            (None, Some(refusal)) => writeln!(f, "not installed: {refusal}")?,
            (None, None) => writeln!(f, "not installed")?,
        }
        if self.leaving > 0 {
            writeln!(f, "{} sockets of an installation that was removed are still open, on TCP", self.leaving)?;
        }
        if self.is_pressed {
            writeln!(f, "the kernel is short of memory for TCP: nothing goes around it for now")?;
        }
        for ShownProgram { name, id, instructions } in &self.programs {
            writeln!(f, "program  {name:<16} id {id}, {instructions} instructions")?;
        }
        for ShownMap { name, entries_max, entries } in &self.maps {
            let room = match (entries_max, entries) {
                (0, _) => "in the sockets".to_owned(),
                (room, Some(entries)) => format!("{entries} entries, room for {room}"),
                (room, None) => format!("room for {room}"),
            };
            writeln!(f, "map      {name:<16} {room}")?;
        }
        for port in &self.ports_off {
            writeln!(f, "port     {port} is switched off")?;
        }
        for ShownProxy { proxy, pid, listeners, counters } in &self.proxies {
            writeln!(f, "proxy    {proxy} (pid {pid}) listens on {}", listeners.join(", "))?;
            let Counters { connections_bypass, connections_tcp, bytes_bypass, bytes_tcp, switched, full } = counters;
            writeln!(f, "         bypass: {connections_bypass} connections, {bytes_bypass} bytes")?;
            writeln!(f, "         tcp:    {connections_tcp} connections, {bytes_tcp} bytes in those that have ended")?;
            writeln!(f, "         {switched} directions went over to TCP, {full} connections found no room")?;
        }
        self.sockets.iter().try_for_each(|socket| writeln!(f, "socket   {socket}"))
    }
}

impl Manager {
    /// Installs it if that is wanted; an error only where it must be.
    pub fn start(fleet: Arc<Fleet>, settings: &Settings) -> Result<Self, InstallError> {
        let mut inner = Inner::default();
        if settings.mode != Mode::Off {
            match Bypass::install(settings.cgroup.as_deref()) {
                Ok(bypass) => {
                    announce(&bypass);
                    inner.installed = Some(bypass);
                }
                Err(error) if settings.mode == Mode::On => return Err(error),
                Err(error) => {
                    tracing::warn!("no bypass: {error}; plain TCP is used");
                    inner.refusal = Some(error.to_string());
                }
            }
        }
        Ok(Self { fleet, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A proxy has connected; `pid` is what the kernel says of its end of the link.
    pub fn attached(&self, id: ProxyId, hello: Arc<Hello>, pid: u32) {
        if !hello.bypass {
            return;
        }
        let mut inner = self.lock();
        inner.members.insert(id, Member { hello, pid, slot: None, listeners: Vec::new() });
        if inner.installed.is_some() {
            self.fleet.send(id, &ToProxy::OfferListeners, &[]);
        }
    }

    /// A proxy has sent listening sockets.
    pub fn offered(&self, id: ProxyId, sockets: &[OwnedFd]) {
        let mut inner = self.lock();
        let Inner { installed: Some(bypass), members, .. } = &mut *inner else { return };
        let Some(member) = members.get_mut(&id) else { return };
        for socket in sockets {
            match register(bypass, member, socket) {
                Ok(address) if !member.listeners.contains(&address) => member.listeners.push(address),
                Ok(_) => {}
                Err(error) => {
                    let Hello { namespace, workload, .. } = &*member.hello;
                    tracing::warn!("no bypass for proxy {namespace}/{workload} (pid {}): {error}", member.pid);
                }
            }
        }
    }

    /// A proxy has gone.
    pub fn detached(&self, id: ProxyId) {
        let mut inner = self.lock();
        if let Some(slot) = inner.members.remove(&id).and_then(|member| member.slot)
            && let Some(bypass) = &mut inner.installed
        {
            bypass.unregister(slot);
        }
    }

    /// Installs it now.
    pub fn install(&self, cgroup: Option<PathBuf>) -> Result<(), BypassError> {
        let mut inner = self.lock();
        if let Some(bypass) = &inner.installed {
            return Err(BypassError::Installed(bypass.cgroup().to_owned()));
        }
        let bypass = Bypass::install(cgroup.as_deref())?;
        announce(&bypass);
        inner.installed = Some(bypass);
        inner.refusal = None;
        for id in inner.members.keys() {
            self.fleet.send(*id, &ToProxy::OfferListeners, &[]);
        }
        Ok(())
    }

    /// Looks at the kernel's memory for as long as the process lives.
    pub fn serve(&self) {
        loop {
            std::thread::sleep(Duration::from_millis(PRESSURE_PERIOD_MS));
            if let Some(bypass) = &mut self.lock().installed
                && let Err(error) = bypass.heed_pressure()
            {
                tracing::warn!("bypass: {error}");
            }
        }
    }

    /// Captures nothing more; what is captured goes over to TCP, without a byte lost.
    pub fn remove(&self) -> Result<(), BypassError> {
        let mut inner = self.lock();
        let mut bypass = inner.installed.take().ok_or(BypassError::NotInstalled)?;
        for member in inner.members.values_mut() {
            member.slot = None;
            member.listeners.clear();
        }
        let drained = bypass.drain();
        inner.leaving.push(bypass);
        tracing::info!("bypass removed: what it holds goes over to TCP");
        Ok(drained?)
    }

    /// Switches a port off or on.
    pub fn set_port(&self, port: u16, is_on: bool) -> Result<(), BypassError> {
        let mut inner = self.lock();
        let bypass = inner.installed.as_mut().ok_or(BypassError::NotInstalled)?;
        Ok(bypass.set_port(port, is_on)?)
    }

    /// What there is to see. `with_sockets`: those, too.
    pub fn show(&self, with_sockets: bool) -> Result<Shown, BypassError> {
        let mut inner = self.lock();
        let held = |bypass: &Bypass| bypass.ends(SOCKETS_LISTED_MAX).map_or(0, |ends| ends.len());
        inner.leaving.retain(|bypass| held(bypass) > 0);
        let mut shown =
            Shown { refusal: inner.refusal.clone(), leaving: inner.leaving.iter().map(held).sum(), ..Shown::default() };
        let Some(bypass) = &inner.installed else { return Ok(shown) };
        shown.cgroup = Some(bypass.cgroup().display().to_string());
        let program =
            |(name, id, instructions): (&str, u32, usize)| ShownProgram { name: name.into(), id, instructions };
        shown.programs = bypass.programs().into_iter().map(program).collect();
        let map = |(name, entries_max, entries): (&str, u32, _)| ShownMap { name: name.into(), entries_max, entries };
        shown.maps = bypass.maps(with_sockets)?.into_iter().map(map).collect();
        shown.ports_off = bypass.ports_off();
        shown.is_pressed = bypass.is_pressed();
        for member in inner.members.values() {
            let Some(slot) = member.slot else { continue };
            shown.proxies.push(ShownProxy {
                proxy: format!("{}/{}", member.hello.namespace, member.hello.workload),
                pid: member.pid,
                listeners: member.listeners.iter().map(ToString::to_string).collect(),
                counters: bypass.counters(slot)?,
            });
        }
        if with_sockets {
            let mut ends = bypass.ends(SOCKETS_LISTED_MAX)?;
            ends.sort_unstable();
            shown.sockets = ends.iter().map(|end| format!("{} -> {}", end.local, end.remote)).collect();
        }
        Ok(shown)
    }

    /// Which way a connection from a local application to `workload`'s proxy takes, or why none is known.
    #[must_use]
    pub fn path_to_proxy(&self, namespace: &str, workload: &str) -> String {
        let inner = self.lock();
        let Some(bypass) = &inner.installed else { return "tcp: the bypass is not installed".into() };
        let of = |member: &&Member| member.hello.namespace == namespace && member.hello.workload == workload;
        let Some(member) = inner.members.values().find(of) else {
            return format!("tcp: no proxy of {namespace}/{workload} is connected");
        };
        let Some(slot) = member.slot else { return "tcp: its proxy is not registered".into() };
        let counters = bypass.counters(slot).unwrap_or_default();
        let off: Vec<_> = bypass.ports_off();
        let is_off = member.listeners.iter().all(|address| off.contains(&address.port()));
        let path = match (bypass.is_pressed(), is_off) {
            (true, _) => "tcp: the kernel is short of memory for it",
            (false, true) => "tcp: its ports are switched off",
            (false, false) => "bypass, from the same host",
        };
        let Counters { connections_bypass, connections_tcp, .. } = counters;
        format!("{path} (so far {connections_bypass} connections by bypass, {connections_tcp} by tcp)")
    }

    /// Which way a proxy's connection to an endpoint takes.
    #[must_use]
    pub fn path_to_endpoint(&self, endpoint: SocketAddr) -> &'static str {
        let inner = self.lock();
        match &inner.installed {
            Some(bypass) if bypass.is_pressed() => "tcp, the kernel is short of memory for it",
            Some(bypass) if bypass.ports_off().contains(&endpoint.port()) => "tcp, its port is switched off",
            Some(_) if endpoint.ip().to_canonical().is_loopback() => "bypass",
            Some(_) if is_own_address(endpoint) => "bypass",
            _ => "tcp",
        }
    }
}

/// Whether an address is one of this host, in the namespace of control: then it can be bound.
fn is_own_address(address: SocketAddr) -> bool {
    std::net::UdpSocket::bind((address.ip(), 0)).is_ok()
}

fn register(bypass: &mut Bypass, member: &mut Member, socket: &OwnedFd) -> Result<SocketAddr, RegisterError> {
    use std::os::fd::AsFd as _;
    let slot = match member.slot {
        Some(slot) => slot,
        None => *member.slot.insert(bypass.register(member.pid)?),
    };
    bypass.add_listener(slot, socket.as_fd())
}

fn announce(bypass: &Bypass) {
    tracing::info!(
        "bypass: local connections of registered proxies in cgroup {} go around TCP",
        bypass.cgroup().display()
    );
    // `PROC_PID_INIT_INO` (include/linux/proc_ns.h).
    let is_initial = std::fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name.as_os_str() == "pid:[4026531836]");
    if !is_initial {
        tracing::warn!(
            "bypass: control runs in a PID namespace of its own and does not know processes by the kernel's numbers: what \
             proxies connect stays on TCP, what they accept does not"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bypass_that_takes_nothing_for_now_says_why() {
        let shown = |is_pressed| Shown { cgroup: Some("/c".into()), is_pressed, ..Shown::default() }.to_string();
        assert_eq!(shown(false), "installed on cgroup /c\n");
        assert_eq!(
            shown(true),
            "installed on cgroup /c\nthe kernel is short of memory for TCP: nothing goes around it for now\n"
        );
    }
}
