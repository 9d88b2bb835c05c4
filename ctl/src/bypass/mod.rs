//! A bypass of TCP between the two ends of a connection on this host, for the connections of registered proxies.
//!
//! Two BPF programs (`programs`) are written by an assembler (`assembler`) and loaded by bpf(2) (`sys`); nothing is
//! pinned. ARCHITECTURE.md, "The bypass", says what the kernel guarantees and what an application sees.

mod assembler;
mod cgroup;
mod layout;
mod maps;
mod offsets;
mod pressure;
mod probe;
mod process_number;
mod programs;
mod sys;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use meshring_core::limits::{BYPASS_PROXIES_MAX, BYPASS_SOCKETS_MAX};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

pub use self::{cgroup::CgroupError, layout::End};
use self::{
    layout::{counter, flow, listener_key, process, put, settings},
    maps::Maps,
    offsets::{Offsets, OffsetsError},
    probe::ProbeError,
    sys::{LoadError, Program, ProgramType},
};

/// Name of the program at a cgroup's sockets; by it one control process knows another one's.
const SOCK_OPS_NAME: &str = "meshring_ops";
const SK_MSG_NAME: &str = "meshring_msg";

/// The bypass cannot be installed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct InstallError(#[from] Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(
        "cgroup {}: another sock_ops program holds it ({name:?}, id {id}): what that does with sockets could undo what the bypass does", path.display()
    )]
    Held { path: PathBuf, name: String, id: u32 },
    #[error("cgroup {}: {what}", path.display())]
    Attach { path: PathBuf, what: String },
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Offsets(#[from] OffsetsError),
    #[error("{0}")]
    Map(String),
    #[error("program {0}: {1}")]
    Program(&'static str, #[source] LoadError),
}

/// A process or its sockets cannot be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// No more slots.
    #[error("{BYPASS_PROXIES_MAX} proxies are registered already")]
    Full,
    /// It is no TCP socket that listens.
    #[error("not a TCP socket that listens")]
    NoListener,
    /// The process has gone, or is not ours to look into.
    #[error("process {0}: {1}")]
    Process(u32, io::Error),
    /// The kernel refuses.
    #[error("{0}")]
    Kernel(#[from] io::Error),
}

/// What is missing, in words, for an error of bpf(2).
fn refusal(what: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            format!("{what}: not permitted: the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed")
        }
        Some(libc::ENOSYS) => format!("{what}: the kernel has no bpf(2)"),
        Some(libc::EINVAL) => {
            format!("{what}: the kernel does not know it (CONFIG_BPF_STREAM_PARSER, CONFIG_CGROUP_BPF; Linux 6.13)")
        }
        _ => format!("{what}: {error}"),
    }
}

/// Registered proxies are told apart by these; 0 is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u32);

/// By path, since the installation.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Connections of which both ends were captured.
    pub connections_bypass: u64,
    /// Connections of the proxy that were not.
    pub connections_tcp: u64,
    /// Bytes that went from end to end directly.
    pub bytes_bypass: u64,
    /// Bytes that TCP has carried, in connections that have ended.
    pub bytes_tcp: u64,
    /// Directions that went over to TCP for good: a slow reader, or a port that was switched off.
    pub switched: u64,
    /// Connections that found no room in a map, and stayed on TCP.
    pub full: u64,
}

/// What is registered of one proxy.
#[derive(Debug, Default)]
struct Registered {
    process: Option<u32>,
    listeners: Vec<(u64, SocketAddr)>,
}

/// One installation: programs on a cgroup until it is dropped. What is captured by then goes on until it is closed:
/// the kernel keeps program and maps for as long as a socket is in them.
#[derive(Debug)]
pub struct Bypass {
    maps: Maps,
    /// Both programs, the one at the cgroup first.
    programs: [Program; 2],
    link: Option<OwnedFd>,
    cgroup: PathBuf,
    settings: Vec<u8>,
    registered: BTreeMap<Slot, Registered>,
    last_slot: u32,
}

impl Bypass {
    /// Installs on a cgroup, by default the root of the hierarchy.
    pub fn install(cgroup: Option<&Path>) -> Result<Self, InstallError> {
        Ok(Self::install_sized(cgroup, BYPASS_SOCKETS_MAX)?)
    }

    /// Likewise with room for so many sockets.
    pub fn install_with_room(cgroup: Option<&Path>, sockets_max: u32) -> Result<Self, InstallError> {
        Ok(Self::install_sized(cgroup, sockets_max)?)
    }

    fn install_sized(cgroup: Option<&Path>, sockets_max: u32) -> Result<Self, Cause> {
        let (cgroup, directory) = cgroup::open(cgroup)?;
        probe::probe()?;
        let offsets = Offsets::of_this_kernel()?;
        let maps = Maps::create(sockets_max).map_err(|(name, error)| Cause::Map(refusal(name, &error)))?;
        let load =
            |name, kind, code: Vec<u64>| Program::load(name, kind, &code).map_err(|error| Cause::Program(name, error));
        let sk_msg = load(SK_MSG_NAME, ProgramType::SkMsg, programs::sk_msg(&maps, &offsets))?;
        let sockops = load(SOCK_OPS_NAME, ProgramType::SockOps, programs::sockops(&maps, &offsets))?;
        let attach = |error: io::Error| Cause::Attach { path: cgroup.clone(), what: refusal("cannot attach", &error) };
        for (id, name) in sys::sock_ops_of(directory.as_fd()).map_err(attach)? {
            if name != SOCK_OPS_NAME {
                return Err(Cause::Held { path: cgroup, name, id });
            }
        }
        sk_msg.attach_to_sockets(&maps.sockets).map_err(attach)?;
        let link = sockops.attach_to_cgroup(directory.as_fd()).map_err(attach)?;
        let settings = vec![0; settings::BYTES];
        let programs = [sockops, sk_msg];
        Ok(Self { maps, programs, link: Some(link), cgroup, settings, registered: BTreeMap::new(), last_slot: 0 })
    }

    /// Registers a proxy's process: what it connects from now on is ours.
    pub fn register(&mut self, pid: u32) -> Result<Slot, RegisterError> {
        // Not the one that was free last: connections of its former owner may still count there.
        let slots = (self.last_slot + 1..BYPASS_PROXIES_MAX).chain(1..=self.last_slot);
        let slot = slots.map(Slot).find(|slot| !self.registered.contains_key(slot));
        let slot = slot.ok_or(RegisterError::Full)?;
        let start = started_at(pid).map_err(|error| RegisterError::Process(pid, error))?;
        let mut value = [0; process::BYTES as usize];
        put(&mut value, process::START, &start.to_ne_bytes());
        put(&mut value, process::SLOT, &slot.0.to_ne_bytes());
        self.maps.counters.update(&slot.0.to_ne_bytes(), &vec![0; self.maps.counters.value_bytes()])?;
        self.maps.processes.update(&pid.to_ne_bytes(), &value)?;
        self.last_slot = slot.0;
        self.registered.insert(slot, Registered { process: Some(pid), listeners: Vec::new() });
        Ok(slot)
    }

    /// Registers a socket that a proxy listens on: what it accepts from now on is ours. The mark is the socket's own, so
    /// that no other process can have it, whatever address it listens on.
    pub fn add_listener(&mut self, slot: Slot, listener: BorrowedFd<'_>) -> Result<SocketAddr, RegisterError> {
        let listens = |option| -> Result<bool, RegisterError> {
            Ok(sys::socket_option(listener, libc::SOL_SOCKET, option, 4)?.first().is_some_and(|&byte| byte != 0))
        };
        let protocol = sys::socket_option(listener, libc::SOL_SOCKET, libc::SO_PROTOCOL, 4)?;
        if !listens(libc::SO_ACCEPTCONN)? || protocol.first().map(|&byte| i32::from(byte)) != Some(libc::IPPROTO_TCP) {
            return Err(RegisterError::NoListener);
        }
        let address: SocketAddr = rustix::net::getsockname(listener)
            .map_err(io::Error::from)?
            .try_into()
            .map_err(|_| RegisterError::NoListener)?;
        let cookie = sys::socket_option(listener, libc::SOL_SOCKET, SO_NETNS_COOKIE, 8)?;
        let cookie = u64::from_ne_bytes(cookie.try_into().map_err(|_| RegisterError::NoListener)?);
        let registered = self.registered.get_mut(&slot).ok_or(RegisterError::NoListener)?;
        let mut value = [0; flow::BYTES as usize];
        put(&mut value, flow::OWNER, &slot.0.to_ne_bytes());
        put(&mut value, flow::UNCOUNTED, &flow::UNCOUNTED_ACCEPTED.to_ne_bytes());
        self.maps.flows.update(&std::os::fd::AsRawFd::as_raw_fd(&listener).to_ne_bytes(), &value)?;
        if !registered.listeners.contains(&(cookie, address)) {
            self.maps.listeners.update(&listener_key(cookie, address), &slot.0.to_ne_bytes())?;
            registered.listeners.push((cookie, address));
        }
        Ok(address)
    }

    /// Registers a process that knows nothing of control, with the sockets that it listens on now. Needs the right to
    /// look into it, as debuggers do (ptrace(2)).
    pub fn register_foreign(&mut self, pid: u32) -> Result<(Slot, Vec<SocketAddr>), RegisterError> {
        let gone = |error: io::Error| RegisterError::Process(pid, error);
        let number =
            i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| gone(io::ErrorKind::NotFound.into()))?;
        let process = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| gone(errno.into()))?;
        let slot = self.register(pid)?;
        let mut addresses = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(gone)? {
            let Some(fd) = entry.map_err(gone)?.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // One that was closed meanwhile, or is no socket that listens, is none for us.
            if let Ok(socket) = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())
                && let Ok(address) = self.add_listener(slot, socket.as_fd())
            {
                addresses.push(address);
            }
        }
        Ok((slot, addresses))
    }

    /// Forgets a proxy. Its captured connections go on until they are closed.
    pub fn unregister(&mut self, slot: Slot) {
        let Some(registered) = self.registered.remove(&slot) else { return };
        let others: Vec<_> = self.registered.values().flat_map(|other| &other.listeners).collect();
        // What cannot be taken out is a hint without a socket behind it, which captures nothing.
        if let Some(pid) = registered.process
            && !self.registered.values().any(|other| other.process == Some(pid))
        {
            let _ = self.maps.processes.delete(&pid.to_ne_bytes());
        }
        for listener in &registered.listeners {
            if !others.contains(&listener) {
                let _ = self.maps.listeners.delete(&listener_key(listener.0, listener.1));
            }
        }
    }

    /// Switches a port off or on: of connections that were made to it, directions go over to TCP with their next
    /// message; new ones are not captured.
    pub fn set_port(&mut self, port: u16, is_on: bool) -> io::Result<()> {
        self.settings[settings::PORTS + usize::from(port)] = u8::from(!is_on);
        self.maps.settings.update(&0_u32.to_ne_bytes(), &self.settings)
    }

    /// Ports that are switched off.
    #[must_use]
    pub fn ports_off(&self) -> Vec<u16> {
        let ports = &self.settings[settings::PORTS..];
        (0..=u16::MAX).filter(|&port| ports[usize::from(port)] != 0).collect()
    }

    /// Captures nothing more; each direction of what is captured goes over to TCP with its next message.
    pub fn drain(&mut self) -> io::Result<()> {
        self.link = None;
        self.settings[settings::DRAIN] = 1;
        self.maps.settings.update(&0_u32.to_ne_bytes(), &self.settings)
    }

    /// Captures nothing, and lets directions go over to TCP, while the kernel is short of memory for TCP: what finds none in
    /// the queue of a reader is an error for the writer (ENOMEM), where TCP would let it wait.
    pub fn heed_pressure(&mut self) -> io::Result<()> {
        self.set_pressed(pressure::is_near())
    }

    /// Whether the kernel is short of memory now: see [`heed_pressure`](Self::heed_pressure).
    pub fn set_pressed(&mut self, is_pressed: bool) -> io::Result<()> {
        if self.is_pressed() == is_pressed {
            return Ok(());
        }
        self.settings[settings::PRESSED] = u8::from(is_pressed);
        self.maps.settings.update(&0_u32.to_ne_bytes(), &self.settings)
    }

    /// Whether nothing goes around TCP for now, since the kernel is short of memory for it.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.settings[settings::PRESSED] != 0
    }

    /// What a proxy's connections did.
    pub fn counters(&self, slot: Slot) -> io::Result<Counters> {
        let values = self.maps.counters.lookup(&slot.0.to_ne_bytes())?.unwrap_or_default();
        let sum = |at: i16| {
            let of_cpu = |cpu: &[u8]| cpu.get(at as usize..)?.first_chunk().copied().map(u64::from_ne_bytes);
            values.chunks_exact(counter::BYTES as usize).filter_map(of_cpu).fold(0, u64::wrapping_add)
        };
        Ok(Counters {
            connections_bypass: sum(counter::CONNECTIONS_BYPASS),
            connections_tcp: sum(counter::CONNECTIONS_TCP),
            bytes_bypass: sum(counter::BYTES_BYPASS),
            bytes_tcp: sum(counter::BYTES_TCP),
            switched: sum(counter::SWITCHED),
            full: sum(counter::FULL),
        })
    }

    /// At most so many captured sockets.
    pub fn ends(&self, at_most: usize) -> io::Result<Vec<End>> {
        Ok(self.maps.sockets.keys(at_most)?.iter().filter_map(|key| layout::end_of(key)).collect())
    }

    /// Programs: name, the kernel's number, instructions.
    #[must_use]
    pub fn programs(&self) -> Vec<(&'static str, u32, usize)> {
        self.programs.iter().map(|program| (program.name, program.id, program.instructions)).collect()
    }

    /// Maps: name, most entries, and entries now where those can be told: looking takes a system call for each.
    pub fn maps(&self, with_entries: bool) -> io::Result<Vec<(&'static str, u32, Option<usize>)>> {
        let shown = |map: &&sys::Map| {
            let entries = if with_entries { map.entries()? } else { None };
            Ok((map.spec.name, map.spec.entries_max, entries))
        };
        self.maps.all().iter().map(shown).collect()
    }

    /// Where it is installed.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h), since Linux 5.14.
const SO_NETNS_COOKIE: i32 = 71;

/// Ticks from boot to a process's start: field 22 of /proc/PID/stat (proc_pid_stat(5)).
fn started_at(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in field 2 may have spaces and brackets.
    let behind = text.rsplit(')').next().unwrap_or_default();
    let field = behind.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::other("not understood"))
}

#[cfg(test)]
mod tests;
