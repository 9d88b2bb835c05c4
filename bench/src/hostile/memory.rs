//! More buffered bytes than there is memory (fault 11): 503 instead of the kernel's OOM killer. Three floods, one after the other,
//! against one proxy: heads that do not end, bodies whose upstream cannot be reached, and such bodies in streams of HTTP/2.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with};

use super::attack::Attack;
use super::cgroup::MemoryGroup;
use super::floods::script::{headers, post};
use super::report::Report;
use super::site::{ATTACKED, Attacked, NORMAL, Phase, Site, median};
use super::stalling::open_max;
use super::{HostileArgs, demand_files};
use crate::http2::PREFACE;
use crate::http2::frame::{kind, write_frame};
use crate::load::report::LoadReport;
use crate::mesh::ProxyStart;
use crate::process::usage;

/// Of an unfinished request head: below the largest that is accepted, so that the proxy has to keep it.
const HEAD_BYTES: usize = 50_000;
/// Of a body whose upstream takes none of it: more than one buffer of the proxy holds.
const BODY_BYTES: usize = 48 * 1024;
/// Streams of an HTTP/2 connection, and what each sends, together less than the window of a connection before anything was
/// said of it (RFC 9113 section 6.9.2).
const STREAMS: usize = 4;
const STREAM_BYTES: usize = 16_000;

/// Floods of so many requests: how many connections there are, and what every one of them sends.
fn floods(requests: usize) -> [(&'static str, usize, Vec<u8>); 3] {
    let mut heads = format!("GET / HTTP/1.1\r\nhost: {NORMAL}\r\nx-large: ").into_bytes();
    heads.resize(HEAD_BYTES, b'x');
    let mut bodies = format!("POST / HTTP/1.1\r\nhost: {ATTACKED}\r\ncontent-length: 1000000000\r\n\r\n").into_bytes();
    bodies.resize(bodies.len() + BODY_BYTES, b'x');
    let mut streams = PREFACE.to_vec();
    write_frame(kind::SETTINGS, 0, 0, &[], &mut streams);
    for stream in (1..).step_by(2).take(STREAMS) {
        headers(stream, &post(ATTACKED), false, &mut streams);
        write_frame(kind::DATA, 0, stream, &[b'x'; STREAM_BYTES], &mut streams);
    }
    [
        ("heads", requests, heads),
        ("bodies", requests, bodies),
        ("streams of HTTP/2 with bodies", requests.div_ceil(STREAMS), streams),
    ]
}

/// An upstream that takes no connections: its queue has room for one. What is sent to it waits in the proxy, where others would have it
/// in their sockets, until the proxy gives up.
fn unreachable() -> anyhow::Result<(OwnedFd, SocketAddr)> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    listen(&socket, 0)?;
    let address = SocketAddr::try_from(getsockname(&socket)?).context("no address of the Internet")?;
    Ok((socket, address))
}

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
    let (_listener, unreachable) = unreachable()?;
    let mut site = Site::start(args, &Attacked::At(unreachable), &start, interrupted)?;
    site.load(Duration::from_secs(1), |_| Ok(()))?;

    let mut report = Report::new(args.drill, connections);
    for (name, connections, begin) in floods(connections) {
        report.begin_group(name);
        flood(args, &mut site, &group, (connections, begin), &mut report)?;
        if !report.passed {
            break;
        }
    }
    // Before the group, which cannot go while the proxy is in it.
    drop(site);
    drop(group);
    Ok(Some(report))
}

/// One flood while the normal load goes on.
fn flood(
    args: &HostileArgs,
    site: &mut Site<'_>,
    group: &MemoryGroup,
    (connections, begin): (usize, Vec<u8>),
    report: &mut Report,
) -> anyhow::Result<()> {
    let turned_away_before = site.turned_away()?;
    let mut attack = Attack { addresses: vec![site.address], connections, begin, trickle: None, reads: true }.start();
    let give_up = Instant::now() + open_max(connections);
    let mut phases = Vec::new();
    let outcome = loop {
        let opened = attack.opened();
        let is_last = opened.as_ref().map_or(true, |opened| *opened == connections || Instant::now() > give_up);
        match opened.and_then(|_| site.load(args.duration, |_| Ok(()))) {
            Ok(phase) => phases.push(phase),
            Err(error) => break Err(error),
        }
        // All of them are there during all of the last one.
        if is_last {
            break attack.opened();
        }
    };
    // Where the proxy was killed, everything else fails for that reason.
    let ended = attack.stop();
    let kills = group.oom_kills()?;
    report.at_most("processes killed for want of memory", kills as f64, "processes", 0.0);
    report.tell("memory of the group at most", group.peak_bytes().map_or(f64::NAN, |bytes| bytes as f64), "bytes");
    if kills > 0 {
        return Ok(());
    }
    report.at_least("hostile connections opened", outcome? as f64, "connections", connections as f64);
    drop(ended?);
    let resident = phases.iter().map(|phase| phase.rss_max).max().unwrap_or_default();
    report.tell("resident memory of the proxy at most", resident as f64, "bytes");
    report.tell("resident memory of the proxy afterwards", usage::memory(site.pid)?.rss as f64, "bytes");
    // Otherwise there was enough for all, and nothing was tried.
    let turned_away = site.turned_away()? - turned_away_before;
    report.at_least("answered 503, or turned away", turned_away, "requests", 1.0);
    let least = phases.iter().map(Phase::requests_per_s).fold(f64::INFINITY, f64::min);
    report.at_least("others' requests a second", least, "", args.rate_least());
    let sum = |count: fn(&LoadReport) -> u64| phases.iter().map(|phase| count(&phase.load)).sum::<u64>() as f64;
    report.tell("others' requests answered 503", sum(|load| load.statuses.server_error), "requests");
    let unanswered = sum(|load| load.failures.total());
    report.at_most("others' requests without an answer, or with another body", unanswered, "requests", 0.0);
    report.tell("others' p99", median(phases.iter().map(|phase| phase.load.latency_us.p99)), "us");
    Ok(())
}
