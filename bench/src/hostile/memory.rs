//! More buffered bytes than there is memory (fault 11): 503 instead of the kernel's OOM killer.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::attack::Attack;
use super::cgroup::MemoryGroup;
use super::report::Report;
use super::site::{Attacked, NORMAL, Site};
use super::{HostileArgs, demand_files};
use crate::mesh::ProxyStart;
use crate::process::usage;

/// Of an unfinished request head: below the largest that is accepted, so that the proxy has to keep it.
const HEAD_BYTES: usize = 50_000;

/// Nothing where a cgroup is not to be had; says why.
pub(super) fn run(args: &HostileArgs, interrupted: &AtomicBool) -> anyhow::Result<Option<Report>> {
    let connections = args.connections();
    let group = match MemoryGroup::new(args.memory_mib * 1024 * 1024) {
        Ok(group) => group,
        Err(error) => {
            writeln!(std::io::stderr(), "memory: skipped, since a memory cgroup is not to be had here: {error:#}")?;
            return Ok(None);
        }
    };
    demand_files(connections as u64 + 1024)?;
    let join = format!("echo $$ >{} && exec \"$@\"", group.procs().display());
    let wrapper = ["sh".to_owned(), "-c".to_owned(), join, "sh".to_owned()];
    let start = ProxyStart { wrapper: wrapper.map(Into::into).into(), ..ProxyStart::default() };
    let mut site = Site::start(args, &Attacked::None, &start, interrupted)?;
    site.load(Duration::from_secs(1), |_| Ok(()))?;

    let mut begin = format!("GET / HTTP/1.1\r\nhost: {NORMAL}\r\nx-large: ").into_bytes();
    begin.resize(HEAD_BYTES, b'x');
    let mut attack = Attack { address: site.address, connections, begin, trickle: None, reads: true }.start();
    let mut opened = 0;
    let phase = site.load(args.duration, |_| {
        opened = attack.opened()?;
        Ok(())
    });
    // Where the proxy was killed, everything else fails for that reason.
    let ended = attack.stop();
    let kills = group.oom_kills()?;
    let mut report = Report::new(args.drill, connections);
    report.tell("hostile connections opened", opened as f64, "connections");
    report.at_most("processes killed for want of memory", kills as f64, "processes", 0.0);
    report.tell("memory of the group at most", group.peak_bytes().map_or(f64::NAN, |bytes| bytes as f64), "bytes");
    if kills > 0 {
        return Ok(Some(report));
    }
    let (phase, ended) = (phase?, ended?);
    let overloaded = ended.iter().filter(|ended| ended.status == Some(503)).count() as f64;
    let load = &phase.load;
    report.tell("resident memory of the proxy at most", phase.memory_max.rss as f64, "bytes");
    report.tell("resident memory of the proxy afterwards", usage::memory(site.pid)?.rss as f64, "bytes");
    // Otherwise there was enough for all, and nothing was tried.
    let turned_away = overloaded + load.statuses.server_error as f64;
    report.at_least("answered 503", turned_away, "requests", 1.0);
    report.tell("others' requests", load.requests as f64, "requests");
    report.tell("others' requests answered 503", load.statuses.server_error as f64, "requests");
    report.at_most("others' requests without an answer", load.failures.total() as f64, "requests", 0.0);
    report.tell("others' p99", load.latency_us.p99, "us");
    // Before the group, which cannot go while the proxy is in it.
    drop(site);
    drop(group);
    Ok(Some(report))
}
