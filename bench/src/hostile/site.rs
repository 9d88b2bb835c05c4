//! Where a drill takes place: a backend, control, one proxy with one worker, and the normal load.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};

use super::give_way::give_way_of;
use crate::limits::{GENERATOR_OVERRUN_MAX, READY_MAX};
use crate::load::report::LoadReport;
use crate::mesh::api::Api;
use crate::mesh::{Mesh, ProxyStart};
use crate::process::usage::{self, Memory};
use crate::process::{Process, Spawn};
use crate::stats::Spread;
use crate::{backend, client};

/// The service of the normal load.
pub(super) const NORMAL: &str = "echo";
/// The service that the attack is about, where it needs one of its own.
pub(super) const ATTACKED: &str = "attacked";
/// What it is answered with.
const NORMAL_BODY_BYTES: usize = 100;
/// Connections of the normal load.
pub(super) const NORMAL_CONNECTIONS: usize = 16;

/// A mesh that serves.
pub(super) struct Site<'a> {
    pub(super) mesh: Mesh<'a>,
    /// Where the mesh is reached.
    pub(super) address: SocketAddr,
    /// Of the proxy.
    pub(super) pid: u32,
    /// Of further proxies on the same core, where one has too few descriptors for an attack: address and process.
    others: Vec<(SocketAddr, u32)>,
    rate: f64,
    api: Api,
    interrupted: &'a AtomicBool,
    /// That of the normal load, and that of [`ATTACKED`] where it is a process.
    backends: Vec<Process>,
}

/// The upstream of [`ATTACKED`].
pub(super) enum Attacked {
    /// None is needed.
    None,
    /// A backend whose responses have so many bytes.
    Bytes(usize),
    /// One that the drill runs itself.
    At(SocketAddr),
}

/// A normal load, and what the proxy used meanwhile.
pub(super) struct Phase {
    pub(super) load: LoadReport,
    duration: Duration,
    /// The most resident bytes of all proxies together: at any time since the phase before.
    pub(super) rss_max: u64,
    /// Of one core.
    pub(super) cpu_share: f64,
}

impl<'a> Site<'a> {
    pub(super) fn start(
        args: &super::HostileArgs,
        attacked: &Attacked,
        start: &ProxyStart,
        interrupted: &'a AtomicBool,
    ) -> anyhow::Result<Self> {
        let mut mesh = Mesh::new(&args.run_parent.path(), interrupted)?;
        let (backend, normal) = backend::start(None, NORMAL_BODY_BYTES, mesh.dir())?;
        let mut backends = vec![backend];
        let mut config = service(NORMAL, normal);
        match *attacked {
            Attacked::None => {}
            Attacked::At(address) => config += &format!("---\n{}", service(ATTACKED, address)),
            Attacked::Bytes(bytes) => {
                let (backend, address) = backend::start(None, bytes, mesh.dir())?;
                backends.push(backend);
                config += &format!("---\n{}", service(ATTACKED, address));
            }
        }
        fs::write(mesh.config_dir().join("mesh.yaml"), config)?;
        mesh.start_control()?;
        let mut api = mesh.api(READY_MAX)?;
        let (address, _) = mesh.start_proxy_with(0, start)?;
        mesh.wait_until_current(&mut api, READY_MAX)?;
        mesh.wait_for("a first answer", READY_MAX, |_| Ok(is_served(address).then_some(())))?;
        let pid = mesh.proxy_pid()?;
        let others = Vec::new();
        Ok(Self { mesh, address, pid, others, rate: args.rate, api, interrupted, backends })
    }

    /// Lets the upstream of [`ATTACKED`] do what the attack makes it do when nobody else wants the core that it shares.
    pub(super) fn let_attacked_give_way(&self) {
        self.backends.iter().skip(1).for_each(give_way_of);
    }

    /// One more proxy, for a part of the attack.
    pub(super) fn start_another(&mut self, start: &ProxyStart) -> anyhow::Result<()> {
        let (address, _) = self.mesh.start_proxy_with(1 + self.others.len(), start)?;
        self.mesh.wait_until_current(&mut self.api, READY_MAX)?;
        self.mesh.wait_for("a first answer", READY_MAX, |_| Ok(is_served(address).then_some(())))?;
        self.others.push((address, self.mesh.proxy_pid()?));
        Ok(())
    }

    /// Where the attack goes, in turn.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        [self.address].into_iter().chain(self.others.iter().map(|(address, _)| *address)).collect()
    }

    /// Memory of all proxies.
    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let mut sum = usage::memory(self.pid)?;
        for (_, pid) in &self.others {
            sum += usage::memory(*pid)?;
        }
        Ok(sum)
    }

    /// The most that was resident since this was asked last. The kernel counts it: adding up the pages of a large process again and
    /// again takes as much of the machine as an attack.
    fn rss_max(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for pid in [self.pid].into_iter().chain(self.others.iter().map(|(_, pid)| *pid)) {
            sum += usage::peak_rss(pid)?;
            usage::reset_peak(pid)?;
        }
        Ok(sum)
    }

    /// Requests and connections that were refused so far since something was used up.
    pub(super) fn turned_away(&mut self) -> anyhow::Result<f64> {
        let requests = self.api.counter("meshring_downstream_requests_overload_total")?;
        Ok(requests + self.api.counter("meshring_downstream_connections_refused_total")?)
    }

    /// The normal load for so long; `during` is called now and then.
    pub(super) fn load(
        &mut self,
        duration: Duration,
        mut during: impl FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Phase> {
        let own = std::env::current_exe().context("cannot find this program's own file")?;
        let (cpu_before, begun) = (usage::cpu_time(self.pid)?, Instant::now());
        let mut generator = Process::spawn(&Spawn {
            name: "load",
            program: &own,
            arguments: self.arguments(duration),
            core: None,
            log_dir: self.mesh.dir(),
            take_stdout: true,
        })?;
        let interrupted = self.interrupted;
        generator.wait(duration + 2 * GENERATOR_OVERRUN_MAX, interrupted, || {
            self.mesh.check_alive()?;
            during(self)
        })?;
        let cpu = usage::cpu_time(self.pid)?.saturating_sub(cpu_before);
        let printed = generator.read_to_end()?;
        let load = serde_json::from_str(&printed)
            .with_context(|| format!("the generator gave no report; {}", generator.quote_log()))?;
        let cpu_share = cpu.as_secs_f64() / begun.elapsed().as_secs_f64();
        Ok(Phase { load, duration, rss_max: self.rss_max()?, cpu_share })
    }

    fn arguments(&self, duration: Duration) -> Vec<OsString> {
        [
            "load".to_owned(),
            format!("http://{}/", self.address),
            "--header".to_owned(),
            format!("host: {NORMAL}"),
            "--connections".to_owned(),
            NORMAL_CONNECTIONS.to_string(),
            "--rate".to_owned(),
            self.rate.to_string(),
            "--body-sha256".to_owned(),
            body_sha256(NORMAL_BODY_BYTES),
            "--duration".to_owned(),
            format!("{}ns", duration.as_nanos()),
            "--output".to_owned(),
            "json".to_owned(),
        ]
        .map(OsString::from)
        .into()
    }
}

impl Phase {
    /// Requests with an answer, or a failure.
    pub(super) fn requests_per_s(&self) -> f64 {
        self.load.requests as f64 / self.duration.as_secs_f64()
    }
}

/// Of the body that the backend answers with, in hexadecimal.
fn body_sha256(bytes: usize) -> String {
    let hash = digest(&SHA256, &vec![b'x'; bytes]);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a new connection is served.
pub(super) fn is_served(address: SocketAddr) -> bool {
    let request = format!("GET / HTTP/1.1\r\nhost: {NORMAL}\r\nconnection: close\r\n\r\n");
    client::open(address, Duration::from_secs(2))
        .and_then(|stream| client::exchange(&stream, request.as_bytes()))
        .is_ok_and(|answer| answer.status == 200)
}

/// A service with one endpoint.
fn service(name: &str, address: SocketAddr) -> String {
    let text = include_str!("../peers/mesh.yaml");
    text.replace("echo", name).replace("{{BACKEND_PORT}}", &address.port().to_string())
}

/// p99 of a typical second, in microseconds: the median over all seconds of all phases. What the machine does to a few seconds is not
/// the attack's; a phase below a second counts as one.
pub(super) fn p99_us(phases: &[Phase]) -> f64 {
    median(phases.iter().flat_map(|Phase { load, .. }| {
        match load.p99_of_each_second_us.as_slice() {
            [] => std::slice::from_ref(&load.latency_us.p99),
            seconds => seconds,
        }
        .iter()
        .copied()
    }))
}

/// The median; not a number without any.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(values).map_or(f64::NAN, |spread| spread.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_names_only_itself() {
        let text = service("attacked", "127.0.0.1:8080".parse().unwrap());
        assert!(!text.contains("echo") && !text.contains("{{"), "{text}");
        assert_eq!((text.matches("8080").count(), text.matches("name: attacked").count()), (2, 4), "{text}");
    }
}
