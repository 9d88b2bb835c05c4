//! More connections than file descriptors (fault 8): the proxy must neither spin nor forget those that it has.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::attack::Attack;
use super::report::Report;
use super::site::{Attacked, NORMAL_CONNECTIONS, Site, is_served};
use super::{HostileArgs, demand_files};
use crate::limits::{CHILD_POLL_INTERVAL, HOSTILE_CONNECT_MAX};
use crate::mesh::ProxyStart;
use crate::process::{check_interrupted, usage};

/// CPU that being out of descriptors may cost, of one core.
const CPU_SHARE_MAX: f64 = 0.2;
/// From the end of the attack to the next connection that is served.
const RECOVERY_MAX: Duration = Duration::from_secs(1);
/// Descriptors of the proxy beside those of connections: its rings, its link, its listeners.
const OWN_DESCRIPTORS: usize = 40;

pub(super) fn run(args: &HostileArgs, interrupted: &AtomicBool) -> anyhow::Result<Report> {
    let connections = args.connections();
    demand_files(connections as u64 + 256)?;
    // The normal load has two each; half of the attack fits beside it.
    let limit = OWN_DESCRIPTORS + 4 * NORMAL_CONNECTIONS + connections / 2;
    let wrapper = ["prlimit".to_owned(), format!("--nofile={limit}:{limit}"), "--".to_owned()];
    let start = ProxyStart { wrapper: wrapper.map(Into::into).into(), ..ProxyStart::default() };
    let mut site = Site::start(args, &Attacked::None, &start, interrupted)?;

    let quiet = site.load(args.duration, |_| Ok(()))?;
    // The load's connections are there before the attack, and stay.
    let mut attack = None;
    let begun = Instant::now();
    let address = site.address;
    let mut at_limit: Option<(Instant, Duration)> = None;
    let mut cpu_share = f64::NAN;
    let mut descriptors_max = 0;
    let under_attack = site.load(args.duration + Duration::from_secs(2), |site| {
        if begun.elapsed() < Duration::from_secs(1) {
            return Ok(());
        }
        let attack = attack.get_or_insert_with(|| {
            Attack { addresses: vec![address], connections, begin: Vec::new(), trickle: None, reads: true }.start()
        });
        descriptors_max = descriptors_max.max(usage::descriptors(site.pid)?);
        match at_limit {
            None if attack.opened()? == connections => at_limit = Some((Instant::now(), usage::cpu_time(site.pid)?)),
            None => {}
            // Until the end: the last look counts.
            Some((since, cpu)) if since.elapsed() > Duration::from_millis(500) => {
                let used = usage::cpu_time(site.pid)?.saturating_sub(cpu);
                cpu_share = used.as_secs_f64() / since.elapsed().as_secs_f64();
            }
            Some(_) => {}
        }
        Ok(())
    })?;
    let Some(attack) = attack else { bail!("the load ended before the attack began") };
    drop(attack.stop()?);
    let freed = Instant::now();
    while !is_served(address) && freed.elapsed() < HOSTILE_CONNECT_MAX {
        check_interrupted(interrupted)?;
        thread::sleep(CHILD_POLL_INTERVAL);
    }
    let recovery = freed.elapsed();
    site.mesh.check_alive()?;

    let mut report = Report::new(args.drill, connections);
    report.tell("limit of open files", limit as f64, "descriptors");
    // Otherwise nothing was tried. The proxy keeps some in reserve.
    report.at_least("most open files", descriptors_max as f64, "descriptors", limit as f64 * 0.75);
    report.tell("CPU under the normal load alone", quiet.cpu_share, "cores");
    report.at_most("further CPU at the limit", cpu_share - quiet.cpu_share, "cores", CPU_SHARE_MAX);
    report.at_most(
        "from the end of the attack to a served connection",
        recovery.as_secs_f64(),
        "s",
        RECOVERY_MAX.as_secs_f64(),
    );
    report.others(args, &[&under_attack]);
    report.tell("others' p99 without the attack", quiet.load.latency_us.p99, "us");
    report.tell("others' p99 at the limit", under_attack.load.latency_us.p99, "us");
    Ok(report)
}
