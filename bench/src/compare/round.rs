//! The measurement of one contender in one round.

use std::ffi::OsString;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use super::CompareArgs;
use super::contender::{Contender, Running};
use super::launch::Site;
use super::progress::Progress;
use super::protocol::Protocol;
use crate::limits::GENERATOR_OVERRUN_MAX;
use crate::load::report::LoadReport;
use crate::process::usage::{self, Memory};
use crate::process::{Process, Spawn};
use crate::tls::TlsArgs;

/// A request that is not answered by then failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One load and what it cost the proxy.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Phase {
    /// CPU time of all the proxy's processes and threads, per answer.
    pub(super) cpu_us_per_request: f64,
    /// CPU time by the time that passed: 1 is the whole of its core.
    pub(super) core_share: f64,
    pub(super) load: LoadReport,
}

/// One contender in one round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measurement {
    /// After the first answer, before any load.
    pub(super) memory_idle: Memory,
    /// In the middle of the closed loop.
    pub(super) memory_loaded: Memory,
    /// As fast as the proxy answers.
    pub(super) closed: Phase,
    /// The same constant rate for all contenders.
    pub(super) open: Option<Phase>,
}

/// Starts the contender, warms it up, measures it, ends it.
pub(super) fn measure(
    contender: &Contender,
    args: &CompareArgs,
    site: &Site<'_>,
    progress: &Progress,
    round: u32,
) -> anyhow::Result<Measurement> {
    let name = contender.name;
    let step = |what: &str| progress.step(&format!("round {round} of {}: {name}, {what}", args.rounds));
    step("start and warm-up");
    let mut running = contender.start(site)?;
    let memory_idle = memory(running.pids())?;
    let warm_up = Load { args, site, rate: None, duration: args.warm_up };
    warm_up.run(&mut running, |_| Ok(()))?;

    step("closed loop");
    let mut memory_loaded = None;
    let middle = Instant::now() + args.duration / 2;
    let closed = Load { args, site, rate: None, duration: args.duration }.run(&mut running, |pids| {
        if memory_loaded.is_none() && Instant::now() >= middle {
            memory_loaded = Some(memory(pids)?);
        }
        Ok(())
    })?;
    let memory_loaded = memory_loaded.context("the closed loop ended before half of its time")?;

    let open = match args.constant_rate() {
        None => None,
        Some(rate) => {
            step("constant rate");
            Some(Load { args, site, rate: Some(rate), duration: args.duration }.run(&mut running, |_| Ok(()))?)
        }
    };
    Ok(Measurement { memory_idle, memory_loaded, closed, open })
}

/// One run of the generator.
struct Load<'a> {
    args: &'a CompareArgs,
    site: &'a Site<'a>,
    rate: Option<f64>,
    duration: Duration,
}

impl Load<'_> {
    /// Runs the generator in a process of its own; `during` is called with the proxy's PIDs now and then.
    fn run(
        &self,
        running: &mut Running,
        mut during: impl FnMut(&[u32]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Phase> {
        let pids = running.pids().to_vec();
        let own = std::env::current_exe().context("cannot find this program's own file")?;
        let cpu_before = cpu_time(&pids)?;
        let started = Instant::now();
        let mut generator = Process::spawn(&Spawn {
            name: "load",
            program: &own,
            arguments: self.arguments(running),
            core: Some(self.site.load_core),
            log_dir: &self.site.dir,
            take_stdout: true,
        })?;
        let time_max = self.duration + TIMEOUT + GENERATOR_OVERRUN_MAX;
        generator.wait(time_max, self.site.interrupted, || {
            running.check_alive()?;
            during(&pids)
        })?;
        let (cpu, elapsed) = (cpu_time(&pids)?.saturating_sub(cpu_before), started.elapsed());
        let printed = generator.read_to_end()?;
        let load: LoadReport = serde_json::from_str(&printed)
            .with_context(|| format!("the generator gave no report; {}", generator.quote_log()))?;
        let answers = load.statuses.total();
        if answers == 0 {
            bail!("no request was answered; {}", load.first_failure.unwrap_or_default());
        }
        Ok(Phase {
            cpu_us_per_request: cpu.as_secs_f64() * 1e6 / answers as f64,
            core_share: cpu.as_secs_f64() / elapsed.as_secs_f64(),
            load,
        })
    }

    fn arguments(&self, running: &Running) -> Vec<OsString> {
        let protocol = self.args.protocol;
        let tls = protocol.generator_tls(self.site.certificates);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let nanos = |duration: Duration| format!("{}ns", duration.as_nanos());
        let mut arguments = vec![
            "load".to_owned(),
            format!("{scheme}://{}{}", running.address, protocol.path()),
            "--header".to_owned(),
            format!("host: {}", protocol.host()),
            "--connections".to_owned(),
            self.args.connections().to_string(),
            "--duration".to_owned(),
            nanos(self.duration),
            "--timeout".to_owned(),
            nanos(TIMEOUT),
            "--output".to_owned(),
            "json".to_owned(),
        ];
        if let Some(rate) = self.rate {
            arguments.extend(["--rate".to_owned(), rate.to_string()]);
        }
        if protocol.is_http2() {
            arguments.extend(["--h2".to_owned(), "--streams".to_owned(), self.args.streams().to_string()]);
        }
        if protocol == Protocol::Grpc {
            arguments.extend(["--grpc".to_owned(), "--body-bytes".to_owned(), self.args.body_bytes.to_string()]);
        }
        if protocol.new_connections() {
            arguments.push("--new-connections".to_owned());
        }
        let tls = tls.as_ref().map(TlsArgs::to_arguments).unwrap_or_default();
        arguments.into_iter().map(OsString::from).chain(tls).collect()
    }
}

/// CPU time of all of them.
fn cpu_time(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| usage::cpu_time(*pid)).sum()
}

/// Memory of all of them.
fn memory(pids: &[u32]) -> anyhow::Result<Memory> {
    let mut total = Memory::default();
    for pid in pids {
        total += usage::memory(*pid)?;
    }
    Ok(total)
}

/// Whether interrupted children are to blame: an interrupt reaches them too, and then it is what to report.
pub(super) fn prefer_interrupt<T>(result: anyhow::Result<T>, interrupted: &AtomicBool) -> anyhow::Result<T> {
    crate::process::check_interrupted(interrupted)?;
    result
}
