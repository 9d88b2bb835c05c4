//! CPU time and memory of processes, from /proc.

use std::fs;
use std::iter;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

/// What /proc/PID/stat says (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system time of all threads, of ended ones too, in clock ticks. The kernel scales the two so that
    /// their sum is the exact run time.
    cpu_ticks: u64,
    /// Clock ticks from boot to its start; with the PID it names a process.
    started_ticks: u64,
    zombie: bool,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name, in parentheses, may hold spaces and parentheses.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(1)?).ok()?,
            cpu_ticks: number(11)? + number(12)?,
            started_ticks: number(19)?,
            zombie: fields.first() == Some(&"Z"),
        })
    }
}

/// A process that is told from a later one with the same PID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descendant {
    pid: u32,
    started_ticks: u64,
}

impl Descendant {
    pub(super) fn is_same(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.started_ticks == self.started_ticks && !stat.zombie)
    }

    /// Kills it, unless it is gone.
    pub(super) fn kill_if_same(self) {
        if let (true, Some(pid)) = (self.is_same(), Pid::from_raw(self.pid as i32)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Children, grandchildren and so on.
pub(crate) fn descendants(pid: u32) -> Vec<Descendant> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let all: Vec<(u32, Stat)> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Stat::read(pid)?)))
        .collect();
    let mut parents = vec![pid];
    let mut found = Vec::new();
    while let Some(parent) = parents.pop() {
        for (pid, stat) in all.iter().filter(|(_, stat)| stat.parent == parent) {
            parents.push(*pid);
            found.push(Descendant { pid: *pid, started_ticks: stat.started_ticks });
        }
    }
    found
}

/// CPU time of a process and its descendants so far, all threads, to one clock tick (mostly 10 ms).
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let own = Stat::read(pid).with_context(|| format!("there is no process {pid}"))?;
    let others = descendants(pid).into_iter().filter_map(|child| Some(Stat::read(child.pid)?.cpu_ticks));
    let ticks: u64 = iter::once(own.cpu_ticks).chain(others).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Open file descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> anyhow::Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?.count())
}

/// Memory of processes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// Resident pages; those that two of the processes share count twice.
    pub(crate) rss: u64,
    /// Resident pages, each divided by the number of processes that share it.
    pub(crate) pss: u64,
    /// Resident pages of the process' own: heap, stacks; no files.
    pub(crate) anonymous: u64,
}

impl std::ops::AddAssign for Memory {
    fn add_assign(&mut self, more: Self) {
        self.rss += more.rss;
        self.pss += more.pss;
        self.anonymous += more.anonymous;
    }
}

/// Memory of a process and its descendants.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let mut total = memory_of(pid)?;
    // A child may end between the listing and the reading.
    for more in descendants(pid).into_iter().filter_map(|child| memory_of(child.pid).ok()) {
        total += more;
    }
    Ok(total)
}

fn memory_of(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    match (field_bytes(&rollup, "Rss:"), field_bytes(&rollup, "Pss:"), field_bytes(&rollup, "Anonymous:")) {
        (Some(rss), Some(pss), Some(anonymous)) => Ok(Memory { rss, pss, anonymous }),
        _ => bail!("{path} has no Rss, Pss or Anonymous"),
    }
}

/// Makes [`peak_rss`] count from now on.
pub(crate) fn reset_peak(pid: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    // proc(5): 5 resets the peak of the resident set.
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

/// The most resident pages of a process at any time, in bytes.
pub(crate) fn peak_rss(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    field_bytes(&status, "VmHWM:").with_context(|| format!("{path} has no VmHWM"))
}

/// The value of a line such as "Rss:     123 kB".
fn field_bytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "12 (a) b (c)) S 7 12 12 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 99 1 2";
        let expected = Stat { parent: 7, cpu_ticks: 300, started_ticks: 99, zombie: false };
        assert_eq!(Stat::parse(stat), Some(expected));
        assert_eq!(Stat::parse("12 (a) S 7"), None);
    }

    #[test]
    fn sizes_are_read_in_bytes() {
        let text = "00400000-7ff [rollup]\nRss:    1234 kB\nPss:     567 kB\nPss_Anon: 1 kB\n";
        assert_eq!(field_bytes(text, "Rss:"), Some(1234 * 1024));
        assert_eq!(field_bytes(text, "Pss:"), Some(567 * 1024));
        assert_eq!(field_bytes(text, "Swap:"), None);
    }

    #[test]
    fn cpu_time_grows_with_work_and_memory_is_there() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        let mut value = 1_u64;
        while cpu_time(pid).unwrap() < before + Duration::from_millis(50) {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
        assert_ne!(value, 1);
        let memory = memory(pid).unwrap();
        assert!(memory.pss > 100 * 1024 && memory.pss <= memory.rss, "{memory:?}");
    }
}
