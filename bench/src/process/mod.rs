//! Child processes: pinned to a core, logged to a file, and never left behind.

pub(crate) mod usage;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getrlimit, kill_process, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::limits::{CHILD_POLL_INTERVAL, LOG_LINES_QUOTED_MAX, STOP_GRACE};

/// Asks for SIGTERM when its parent dies, and becomes another program; on one core, if told so.
#[derive(Debug, clap::Args)]
pub(crate) struct PinnedArgs {
    #[arg(long)]
    core: Option<usize>,
    /// Print the monotonic clock, in nanoseconds, just before the other program starts
    #[arg(long)]
    tell_time: bool,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// Raises the soft limit of open files to the hard limit; gives the limit from now on, if there is one.
pub(crate) fn raise_file_limit() -> Option<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Raising the soft limit is always allowed; should it fail, the old one holds and is told below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current
}

/// As [`raise_file_limit`], and beyond the hard limit as far as root may; gives the limit from now on, if there is one.
pub(crate) fn raise_file_limit_to(count: u64) -> Option<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if maximum.is_some_and(|maximum| maximum < count) {
        // Root alone may; what is not granted is told below.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum: Some(count) });
    }
    raise_file_limit()
}

/// Runs the hidden command; returns only if it fails.
pub(crate) fn exec_pinned(args: &PinnedArgs) -> anyhow::Error {
    let [program, arguments @ ..] = args.program.as_slice() else { return anyhow::anyhow!("no program") };
    // Proxies size their tables by it, and so all get the same.
    raise_file_limit();
    let pinned = args.core.map_or(Ok(()), pin_to);
    if let Err(error) = pinned.and_then(|()| Ok(set_parent_process_death_signal(Some(Signal::TERM))?)) {
        return error;
    }
    if args.tell_time
        && let Err(error) = writeln!(std::io::stdout(), "{}", monotonic().as_nanos())
    {
        return error.into();
    }
    let error = Command::new(program).args(arguments).exec();
    anyhow::Error::new(error).context(format!("cannot run {}", program.display()))
}

/// The monotonic clock, which is the same in all processes.
pub(crate) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Restricts this thread, and the processes that it starts from now on, to one core.
pub(crate) fn pin_to(core: usize) -> anyhow::Result<()> {
    if core >= CpuSet::MAX_CPU {
        bail!("there is no core {core}");
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).with_context(|| format!("cannot use core {core}"))
}

/// Ends with an error once the user has interrupted the command.
pub(crate) fn check_interrupted(interrupted: &AtomicBool) -> anyhow::Result<()> {
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// How a process is started.
pub(crate) struct Spawn<'a> {
    /// For messages, and the name of the log.
    pub(crate) name: &'a str,
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    /// None: wherever the kernel puts it.
    pub(crate) core: Option<usize>,
    /// Folder for the log of stderr (and of stdout, unless it is taken).
    pub(crate) log_dir: &'a Path,
    /// Whether stdout goes to a pipe of ours.
    pub(crate) take_stdout: bool,
}

/// A running child; dropping it ends it and the processes that it started.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    stopped: bool,
}

impl Process {
    pub(crate) fn spawn(spawn: &Spawn<'_>) -> anyhow::Result<Self> {
        Self::spawn_with(spawn, false)
    }

    /// As [`Self::spawn`], and gives the [`monotonic`] time just before the program was executed.
    pub(crate) fn spawn_timed(spawn: &Spawn<'_>) -> anyhow::Result<(Self, Duration)> {
        let mut process = Self::spawn_with(spawn, true)?;
        let line = process.read_line()?;
        let Ok(nanos) = line.parse() else { bail!("{} did not start; {}", process.name, process.quote_log()) };
        Ok((process, Duration::from_nanos(nanos)))
    }

    fn spawn_with(spawn: &Spawn<'_>, tell_time: bool) -> anyhow::Result<Self> {
        let Spawn { name, program, arguments, core, log_dir, take_stdout } = spawn;
        let log = log_dir.join(format!("{name}.log"));
        let log_file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let stdout = if *take_stdout || tell_time { Stdio::piped() } else { log_file.try_clone()?.into() };
        let own = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(own);
        command.arg("pinned");
        if let Some(core) = core {
            command.arg("--core").arg(core.to_string());
        }
        if tell_time {
            command.arg("--tell-time");
        }
        let child = command
            .arg("--")
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log_file)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", program.display()))?;
        Ok(Self { name: (*name).to_owned(), child, log, stopped: false })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of the taken stdout; empty at its end.
    pub(crate) fn read_line(&mut self) -> anyhow::Result<String> {
        let stdout = self.child.stdout.as_mut().context("stdout was not taken")?;
        let mut line = String::new();
        BufReader::with_capacity(1, stdout).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// All of the taken stdout that is still to come.
    pub(crate) fn read_to_end(&mut self) -> anyhow::Result<String> {
        let stdout = self.child.stdout.take().context("stdout was not taken")?;
        Ok(std::io::read_to_string(stdout)?)
    }

    /// The status, if the process has ended.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        self.stopped |= status.is_some();
        Ok(status)
    }

    /// Fails, quoting the log, if the process has ended.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}); {}", self.name, self.quote_log()),
        }
    }

    /// Waits for the end; between looks `idle` may do something else.
    pub(crate) fn wait(
        &mut self,
        time_max: Duration,
        interrupted: &AtomicBool,
        mut idle: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + time_max;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            check_interrupted(interrupted)?;
            if Instant::now() >= deadline {
                bail!("{} did not end within {} s; {}", self.name, time_max.as_secs(), self.quote_log());
            }
            idle()?;
            thread::sleep(CHILD_POLL_INTERVAL);
        }
    }

    /// The end of the log, for an error message.
    pub(crate) fn quote_log(&self) -> String {
        let log = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return "it logged nothing".to_owned();
        }
        let last = &lines[lines.len().saturating_sub(LOG_LINES_QUOTED_MAX)..];
        format!("its log ends with:\n  {}", last.join("\n  "))
    }

    /// Ends the process and its children: SIGTERM, then SIGKILL after a grace.
    pub(crate) fn stop(&mut self) {
        let children = usage::descendants(self.pid());
        if !self.stopped {
            if let Some(pid) = Pid::from_raw(self.pid() as i32) {
                // It may be gone already.
                let _ = kill_process(pid, Signal::TERM);
            }
            let deadline = Instant::now() + STOP_GRACE;
            while !self.stopped && Instant::now() < deadline {
                thread::sleep(CHILD_POLL_INTERVAL);
                self.stopped |= !matches!(self.child.try_wait(), Ok(None));
            }
            if !self.stopped {
                let _ = self.child.kill();
                let _ = self.child.wait();
                self.stopped = true;
            }
        }
        for child in children {
            child.kill_if_same();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_and_its_children_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        // Unit tests are not the bench binary, so the child is made by hand.
        let child =
            Command::new("sh").args(["-c", "sleep 1000 & echo started; wait"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut process = Process { name: "sh".to_owned(), child, log: dir.path().join("sh.log"), stopped: false };
        assert_eq!(process.read_line().unwrap(), "started");
        let pid = process.pid();
        let children = usage::descendants(pid);
        assert_eq!(children.len(), 1);
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        let deadline = Instant::now() + STOP_GRACE;
        while children[0].is_same() {
            assert!(Instant::now() < deadline, "the child of the dropped process still runs");
            thread::yield_now();
        }
    }
}
