//! A mesh of the real binaries: one control process and its proxies, on loopback, in a folder that goes away.

pub(crate) mod api;
pub(crate) mod log;

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use tempfile::TempDir;

use self::api::{Api, Files};
use crate::limits::READY_POLL_INTERVAL;
use crate::process::{Process, Spawn, check_interrupted};

/// Name of control's process, and of its log.
const CONTROL: &str = "meshring-control";

/// meshring's programs.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) control: PathBuf,
    pub(crate) proxy: PathBuf,
}

impl Binaries {
    /// Beside this program, or in PATH.
    pub(crate) fn find() -> anyhow::Result<Self> {
        Ok(Self { control: find("meshring")?, proxy: find("meshring-proxy")? })
    }
}

fn find(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let beside = own.parent().map(Path::to_path_buf);
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .with_context(|| {
            format!(
                "there is no {name} beside {} or in PATH. Build it with `cargo build --release -p meshring-ctl -p \
                 meshring-proxy -p meshring-bench` and run target/release/meshring-bench",
                own.display()
            )
        })
}

/// A loopback port that nobody listens on now.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The command line of control.
pub(crate) fn control_arguments(config: &Path, run_dir: &Path) -> Vec<OsString> {
    vec!["control".into(), "--config".into(), config.into(), "--run-dir".into(), run_dir.into()]
}

/// The command line of a proxy with one worker, without its listeners.
pub(crate) fn proxy_arguments(run_dir: &Path, state_dir: &Path, workload: &str) -> Vec<OsString> {
    vec![
        "--run-dir".into(),
        run_dir.into(),
        "--state-dir".into(),
        state_dir.into(),
        "--workload".into(),
        workload.into(),
        "--workers".into(),
        "1".into(),
    ]
}

/// The two-subset example, without its VirtualService; both subsets end at one port.
pub(crate) fn reviews(backend_port: u16) -> String {
    include_str!("../peers/reviews.yaml").replace("{{BACKEND_PORT}}", &backend_port.to_string())
}

/// The VirtualService of the two-subset example, with `weight_v2` percent for v2.
pub(crate) fn reviews_split(weight_v2: u32) -> String {
    let weight_v1 = 100 - weight_v2;
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata:\n\
         \u{20} name: reviews\n\
         \u{20} namespace: default\n\
         spec:\n\
         \u{20} hosts: [reviews]\n\
         \u{20} http:\n\
         \u{20} - route:\n\
         \u{20}   - destination: {{host: reviews, subset: v2}}\n\
         \u{20}     weight: {weight_v2}\n\
         \u{20}   - destination: {{host: reviews, subset: v1}}\n\
         \u{20}     weight: {weight_v1}\n"
    )
}

/// Where the run directory is made.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct RunParent {
    /// Folder for the temporary run directory [default: /dev/shm, as /run is in memory too; else the temporary folder]
    #[arg(long, value_name = "DIR")]
    run_parent: Option<PathBuf>,
}

impl RunParent {
    pub(crate) fn path(&self) -> PathBuf {
        let memory = PathBuf::from("/dev/shm");
        let default = || if memory.is_dir() { memory } else { std::env::temp_dir() };
        self.run_parent.clone().unwrap_or_else(default)
    }
}

/// How a proxy is started, where that is not as always.
#[derive(Debug, Default)]
pub(crate) struct ProxyStart {
    /// A command that changes the circumstances and then executes the rest of its arguments.
    pub(crate) wrapper: Vec<OsString>,
    /// Further arguments.
    pub(crate) arguments: Vec<OsString>,
    /// Where it runs; none: wherever the kernel puts it.
    pub(crate) core: Option<usize>,
}

/// What `GET /v1/proxies` says of each; only what is needed here.
#[derive(Debug, Deserialize)]
struct ProxyItem {
    state: String,
}

/// Control and its proxies; dropping it ends them.
pub(crate) struct Mesh<'a> {
    // Before the folder: fields are dropped in this order.
    proxies: Vec<Process>,
    control: Option<Process>,
    binaries: Binaries,
    interrupted: &'a AtomicBool,
    /// Run directory and states of the proxies.
    run: TempDir,
    /// Configuration and logs.
    dir: TempDir,
}

impl<'a> Mesh<'a> {
    /// The folders, and nothing that runs yet; the run directory is made in `run_parent`.
    pub(crate) fn new(run_parent: &Path, interrupted: &'a AtomicBool) -> anyhow::Result<Self> {
        let binaries = Binaries::find()?;
        let run = tempfile::tempdir_in(run_parent)
            .with_context(|| format!("cannot create a temporary folder in {}", run_parent.display()))?;
        let dir = tempfile::tempdir().context("cannot create a temporary folder")?;
        let mesh = Self { proxies: Vec::new(), control: None, binaries, interrupted, run, dir };
        for dir in [mesh.config_dir(), mesh.run_dir()] {
            fs::create_dir_all(dir)?;
        }
        Ok(mesh)
    }

    /// For logs.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What control reads.
    pub(crate) fn config_dir(&self) -> PathBuf {
        self.dir().join("config")
    }

    fn run_dir(&self) -> PathBuf {
        self.run.path().join("run")
    }

    /// Where proxy `index` keeps its last good snapshot.
    pub(crate) fn state_dir(&self, index: usize) -> PathBuf {
        self.run.path().join(format!("state-{index}"))
    }

    /// Starts control.
    pub(crate) fn start_control(&mut self) -> anyhow::Result<()> {
        let arguments = control_arguments(&self.config_dir(), &self.run_dir());
        self.control = Some(Process::spawn(&Spawn {
            name: CONTROL,
            program: &self.binaries.control,
            arguments,
            core: None,
            log_dir: self.dir(),
            take_stdout: false,
        })?);
        Ok(())
    }

    /// Ends control; proxies go on.
    pub(crate) fn stop_control(&mut self) {
        self.control = None;
    }

    /// Ends the proxies.
    pub(crate) fn stop_proxies(&mut self) {
        self.proxies.clear();
    }

    /// Starts proxy `index`; gives its address and the monotonic time of its exec.
    pub(crate) fn start_proxy(&mut self, index: usize) -> anyhow::Result<(SocketAddr, Duration)> {
        self.start_proxy_with(index, &ProxyStart::default())
    }

    /// As [`Self::start_proxy`], in other circumstances.
    pub(crate) fn start_proxy_with(
        &mut self,
        index: usize,
        start: &ProxyStart,
    ) -> anyhow::Result<(SocketAddr, Duration)> {
        let address = free_address()?;
        let workload = format!("default/bench-{index}");
        let mut arguments = proxy_arguments(&self.run_dir(), &self.state_dir(index), &workload);
        arguments.extend(["--outbound".into(), address.to_string().into()]);
        arguments.extend(start.arguments.iter().cloned());
        let proxy = self.binaries.proxy.clone();
        let program = match start.wrapper.split_first() {
            None => proxy,
            Some((program, words)) => {
                let words = words.iter().cloned().chain([proxy.into_os_string()]);
                arguments.splice(0..0, words);
                program.into()
            }
        };
        let (process, executed) = Process::spawn_timed(&Spawn {
            name: &format!("meshring-proxy-{index}"),
            program: &program,
            arguments,
            core: start.core,
            log_dir: self.dir(),
            take_stdout: true,
        })?;
        self.proxies.push(process);
        Ok((address, executed))
    }

    /// Process of the proxy that was started last.
    pub(crate) fn proxy_pid(&self) -> anyhow::Result<u32> {
        Ok(self.proxies.last().context("no proxy runs")?.pid())
    }

    /// Process of control.
    pub(crate) fn control_pid(&self) -> anyhow::Result<u32> {
        Ok(self.control.as_ref().context("control does not run")?.pid())
    }

    /// What control has logged so far.
    pub(crate) fn control_log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.dir().join(format!("{CONTROL}.log")))?)
    }

    /// Fails if one of the processes has ended, or the user has interrupted the command.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        check_interrupted(self.interrupted)?;
        self.control.iter_mut().chain(&mut self.proxies).try_for_each(Process::check_alive)
    }

    /// Looks again and again until `ready` gives something; `what` is for the message when it does not in time.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        time_max: Duration,
        mut ready: impl FnMut(&mut Self) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + time_max;
        loop {
            if let Some(value) = ready(self)? {
                return Ok(value);
            }
            self.check_alive()?;
            if Instant::now() >= deadline {
                let logs: Vec<String> =
                    self.control.iter().chain(self.proxies.last()).map(Process::quote_log).collect();
                bail!("{what}: not within {} s; {}", time_max.as_secs(), logs.join("; "));
            }
            thread::sleep(READY_POLL_INTERVAL);
        }
    }

    /// A connection to control's API, once it listens.
    pub(crate) fn api(&mut self, time_max: Duration) -> anyhow::Result<Api> {
        self.wait_for("control's API", time_max, |mesh| Ok(Api::open(&mesh.run_dir(), time_max).ok()))
    }

    /// Returns once every proxy runs the active generation.
    pub(crate) fn wait_until_current(&mut self, api: &mut Api, time_max: Duration) -> anyhow::Result<()> {
        self.wait_for("proxies with the active generation", time_max, |mesh| {
            let items: Vec<ProxyItem> = api.get("/v1/proxies")?;
            let current = items.iter().filter(|item| item.state == "current").count();
            Ok((current == mesh.proxies.len()).then_some(()))
        })
    }

    /// As `meshring apply` does it: one call, answered when every worker has acknowledged.
    pub(crate) fn apply(&self, api: &mut Api, files: &Files<'_>) -> anyhow::Result<api::Answered> {
        check_interrupted(self.interrupted)?;
        api.apply(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_the_split_sum_to_100() {
        for weight in [1, 50, 99] {
            let text = reviews_split(weight);
            let weights = text.lines().filter_map(|line| line.trim().strip_prefix("weight: "));
            assert_eq!(weights.map(|weight| weight.parse::<u32>().unwrap()).sum::<u32>(), 100);
            assert!(text.contains(&format!("subset: v2}}\n      weight: {weight}\n")), "{text}");
        }
    }

    #[test]
    fn no_placeholder_is_left_in_the_example() {
        let text = reviews(8080);
        assert!(!text.contains("{{"), "{text}");
        assert_eq!(text.matches("8080").count(), 3);
    }
}
