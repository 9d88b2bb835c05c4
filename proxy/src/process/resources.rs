//! What this process may use: open files and memory, as the kernel limits them, shared out among the workers.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use meshring_core::limits::{
    BUDGET_BYTES_MAX, BUDGET_BYTES_MIN, CONNECTION_COST_BYTES, CONNECTIONS_PER_WORKER_LOW, CONNECTIONS_PER_WORKER_MAX,
    DESCRIPTORS_RESERVED_PERCENT, MEMORY_PRESSURE_INTERVAL_MS, MEMORY_PRESSURE_INTERVAL_MS_MIN,
    MEMORY_PRESSURE_PERCENT, MEMORY_SHARE_DIVISOR,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    config::Tuning,
    worker::limits::{Limits, PoolLimits},
};

/// Two descriptors per request in flight: the soft limit of 1,024 that many systems start with is for `select`. Returns
/// the limit that holds now.
pub(super) fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files to {:?}", limit.maximum);
        }
    }
    // No limit is none that could ever be met.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The workers' limits.
pub(super) fn limits(tuning: &Tuning, workers: usize, descriptors: u64, memory: &Memory) -> Limits {
    let connections = default_connections(descriptors, memory, workers);
    if tuning.connections_max.is_none() && connections < CONNECTIONS_PER_WORKER_LOW {
        tracing::warn!(
            "open files are limited to {descriptors} (ulimit -n), memory to {memory}: at most {connections} connections per worker"
        );
    }
    let limits = Limits {
        head_ms_max: tuning.head_timeout.0,
        body_rate_min: tuning.min_body_rate,
        body_grace_ms: tuning.body_grace.0,
        request_body_bytes_max: tuning.request_body_max.unwrap_or(u64::MAX),
        idle_ms_max: tuning.idle_timeout.0,
        connect_ms_max: tuning.connect_timeout.0,
        response_ms_max: tuning.response_timeout.0,
        pool: PoolLimits { idle_ms_max: tuning.upstream_idle_timeout.0, idle_max: tuning.upstream_idle_max as usize },
        tunnel_idle_ms_max: tuning.tunnel_idle_timeout.0,
        buffer_bytes_max: tuning.buffer_bytes_max.unwrap_or_else(|| default_budget(memory, workers)),
        connections_max: tuning.connections_max.map_or(connections, |count| count as usize),
        ..Limits::default()
    };
    tracing::debug!(?limits, %memory, "limits per worker");
    limits
}

fn default_connections(descriptors: u64, memory: &Memory, workers: usize) -> usize {
    let by_descriptors = descriptors - descriptors / 100 * DESCRIPTORS_RESERVED_PERCENT;
    let by_memory = match memory.cgroup {
        Some(_) => memory.bytes / MEMORY_SHARE_DIVISOR / CONNECTION_COST_BYTES,
        None => u64::MAX,
    };
    let each = usize::try_from(by_descriptors.min(by_memory)).unwrap_or(usize::MAX) / workers;
    each.clamp(1, CONNECTIONS_PER_WORKER_MAX)
}

fn default_budget(memory: &Memory, workers: usize) -> usize {
    let share = memory.bytes / MEMORY_SHARE_DIVISOR / workers as u64;
    usize::try_from(share).unwrap_or(usize::MAX).clamp(BUDGET_BYTES_MIN, BUDGET_BYTES_MAX)
}

/// The memory that this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Memory {
    bytes: u64,
    /// The control group that sets the limit; `None` where it is the machine's memory.
    cgroup: Option<Cgroup>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Cgroup {
    dir: PathBuf,
    files: &'static Files,
}

/// The files of a hierarchy of control groups.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: cached pages of files, which the kernel takes back before it kills.
    reclaimable: &'static str,
}

const V1: Files = Files {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file ",
};
const V2: Files =
    Files { root: "/sys/fs/cgroup", limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file " };

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whose = if self.cgroup.is_some() { "control group" } else { "machine" };
        write!(f, "{} MiB ({whose})", self.bytes >> 20)
    }
}

fn number(path: &Path) -> Option<u64> {
    // `max` is no number, and no limit.
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of a line `NAME VALUE` of a file, where `name` ends in what separates the two.
fn line_value(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

impl Memory {
    /// Of this process: the least limit of its control group and those above, or the machine's memory.
    pub(super) fn of_this_process() -> Self {
        let machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let machine = line_value(&machine, "MemTotal:").map_or(u64::MAX, |kib| kib.saturating_mul(1024));
        Self::among(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), Path::new("/"), machine)
    }

    /// `groups` is what /proc/self/cgroup says, `root` where the file system begins.
    fn among(groups: &str, root: &Path, machine: u64) -> Self {
        let mut least = Self { bytes: machine, cgroup: None };
        for line in groups.lines() {
            // `HIERARCHY:CONTROLLERS:PATH`; the one hierarchy of version 2 is `0::PATH`.
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let files = match controllers {
                "" => &V2,
                controllers if controllers.split(',').any(|controller| controller == "memory") => &V1,
                _ => continue,
            };
            // In a container the path may be that of the host, of which nothing is mounted but the end: what is not there
            // limits nothing here.
            let top = root.join(files.root.trim_start_matches('/'));
            let dir = top.join(path.trim_start_matches('/'));
            for dir in dir.ancestors().take_while(|dir| dir.starts_with(&top)) {
                if let Some(bytes) = number(&dir.join(files.limit)).filter(|&bytes| bytes < least.bytes) {
                    least = Self { bytes, cgroup: Some(Cgroup { dir: dir.to_owned(), files }) };
                }
            }
        }
        least
    }
}

impl Cgroup {
    /// Bytes that the kernel could not take back at once, sockets included.
    fn used_bytes(&self) -> Option<u64> {
        let usage = number(&self.dir.join(self.files.usage))?;
        let stat = fs::read_to_string(self.dir.join("memory.stat")).ok()?;
        Some(usage.saturating_sub(line_value(&stat, self.files.reclaimable).unwrap_or(0)))
    }

    fn is_nearly_full(&self, limit: u64) -> bool {
        // What cannot be read any more limits nothing that we could tell.
        self.used_bytes().is_some_and(|used| used >= limit / 100 * MEMORY_PRESSURE_PERCENT)
    }
}

/// Watches the control group, if there is one, on a thread of its own that ends with the process: the byte budget knows
/// of our buffers, but not of what the kernel holds for slow readers. The flag says that new requests are to be refused.
pub(super) fn watch(memory: &Memory) -> Arc<AtomicBool> {
    let pressure = Arc::new(AtomicBool::new(false));
    let Some(cgroup) = memory.cgroup.clone() else { return pressure };
    let (limit, flag) = (memory.bytes, Arc::clone(&pressure));
    // A gigabyte a second must not fill what is left between two looks: of 256 MiB that takes 38 ms.
    let left_ms = limit / 100 * (100 - MEMORY_PRESSURE_PERCENT) / 1_000_000;
    let interval =
        Duration::from_millis((left_ms / 2).clamp(MEMORY_PRESSURE_INTERVAL_MS_MIN, MEMORY_PRESSURE_INTERVAL_MS));
    let follow = move || {
        loop {
            let is_nearly_full = cgroup.is_nearly_full(limit);
            if flag.swap(is_nearly_full, Ordering::Relaxed) != is_nearly_full {
                let what = if is_nearly_full { "nearly full: new requests get 503" } else { "no longer nearly full" };
                tracing::warn!(limit_mib = limit >> 20, "the memory control group is {what}");
            }
            std::thread::sleep(interval);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("memory".into()).stack_size(64 * 1024).spawn(follow) {
        tracing::warn!(%error, "cannot start the thread that watches the memory control group");
    }
    pressure
}

#[cfg(test)]
mod tests;
