//! Floods of HTTP/2: what a few connections that send what costs most, and come back when they are ended, cost the proxy and
//! everybody else. The proxy has a core for itself: on a shared one others' latencies would tell of the attacker's own work.

mod attacker;
pub(super) mod script;

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::ValueEnum;

use self::attacker::{Attack, End, Outcome, Running};
pub(super) use self::script::Flood;
use self::script::Meant;
use super::report::Report;
use super::site::{Attacked, Phase, Site, median, p99_us};
use super::{HostileArgs, separate_cores};
use crate::limits::{FLOOD_QUIET, FLOOD_SETTLED_MAX};
use crate::mesh::ProxyStart;
use crate::process::{check_interrupted, usage};

/// User memory of the proxy over what attackers have sent.
const MEMORY_RATIO_MAX: f64 = 100.0;
/// What any traffic costs the first time, in bytes: buffers of the worker's pool, and what the allocator keeps.
const MEMORY_FREE_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
/// CPU time of the proxy over the attackers'.
const CPU_RATIO_MAX: f64 = 100.0;
/// Responses of which the proxy cannot hold most. Larger ones would be the backend's work, beside what is measured.
const RESPONSE_BYTES: usize = 256 * 1024;
/// User memory of a stream whose response stalls, in bytes: a buffer, and the connection upstream. The request for it has some twenty
/// bytes, so that no multiple of them bounds it; streams of a connection and bytes of a worker have bounds of their own.
const STALLED_BYTES_EACH_MAX: f64 = 32.0 * 1024.0;

/// The codes of GOAWAY that a proxy may give a reason to attackers with (RFC 9113, section 7), and their figures.
const CODES: [(u32, &str); 9] = [
    (0, "ended with NO_ERROR"),
    (1, "ended with PROTOCOL_ERROR"),
    (2, "ended with INTERNAL_ERROR"),
    (3, "ended with FLOW_CONTROL_ERROR"),
    (5, "ended with STREAM_CLOSED"),
    (6, "ended with FRAME_SIZE_ERROR"),
    (7, "ended with REFUSED_STREAM"),
    (9, "ended with COMPRESSION_ERROR"),
    (11, "ended with ENHANCE_YOUR_CALM"),
];

pub(super) fn run(args: &HostileArgs, interrupted: &AtomicBool) -> anyhow::Result<Report> {
    let core = separate_cores()?;
    let floods = if args.flood.is_empty() { Flood::value_variants() } else { &args.flood };
    let mut report = Report::new(args.drill, args.connections());
    for &flood in floods {
        let name = flood.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        report.begin_group(&name);
        drill(args, flood, core, interrupted, &mut report)?;
    }
    Ok(report)
}

/// One flood against a mesh of its own, whose memory nothing else has grown.
fn drill(
    args: &HostileArgs,
    flood: Flood,
    core: usize,
    interrupted: &AtomicBool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let start = ProxyStart { core: Some(core), ..ProxyStart::default() };
    let mut site = Site::start(args, &Attacked::Bytes(RESPONSE_BYTES), &start, interrupted)?;
    if flood.meant() == Meant::PutUpWith {
        // What it does beside them is no work of the proxy. An attack that lives on its responses needs it to be prompt.
        site.let_attacked_give_way();
    }
    // What is set up once is no cost of an attack.
    site.load(args.duration.min(Duration::from_secs(1)), |_| Ok(()))?;
    let before = usage::memory(site.pid)?.rss;
    let (mut quiet, mut under_attack, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        quiet.push(site.load(args.duration, |_| Ok(()))?);
        let attack = Attack { flood, address: site.address, connections: args.connections(), rate: args.attack_rate };
        let mut running = attack.start();
        if flood.meant() == Meant::Stalled {
            settle(&mut running, site.pid, interrupted)?;
        }
        under_attack.push(site.load(args.duration, |_| running.check())?);
        outcomes.push(running.stop()?);
    }
    let rss_max = quiet.iter().chain(&under_attack).map(|phase| phase.rss_max).max().unwrap_or_default();
    let grown = rss_max.saturating_sub(before) as f64;
    tell_ends(report, flood, &outcomes);
    tell_others(report, args, &quiet, &under_attack);
    tell_costs(report, &quiet, &under_attack, &outcomes);
    let sent = outcomes.iter().map(|outcome| outcome.sent).sum::<u64>() as f64;
    report.tell("memory of the proxy grown by", grown, "bytes");
    report.tell("growth over bytes sent", grown / sent, "");
    let beyond = (grown - MEMORY_FREE_BYTES).max(0.0);
    if flood.meant() == Meant::Stalled {
        let streams = f64::from(flood.rounds()) * args.connections() as f64;
        report.at_most("growth beyond 4 MiB per stalled stream", beyond / streams, "bytes", STALLED_BYTES_EACH_MAX);
    } else {
        report.at_most("growth beyond 4 MiB over bytes sent", beyond / sent, "", MEMORY_RATIO_MAX);
    }
    Ok(())
}

/// Returns once attackers that stall have sent all, and the proxy has done with that: what others notice of the stall is asked for, not
/// of the load that so many responses are first.
fn settle(running: &mut Running, pid: u32, interrupted: &AtomicBool) -> anyhow::Result<()> {
    let deadline = Instant::now() + FLOOD_SETTLED_MAX;
    let mut before = None;
    loop {
        running.check()?;
        check_interrupted(interrupted)?;
        let used = usage::cpu_time(pid)?;
        if running.is_complete() && before == Some(used) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the proxy was still busy with stalled connections after {} s", FLOOD_SETTLED_MAX.as_secs());
        }
        before = Some(used);
        thread::sleep(FLOOD_QUIET);
    }
}

/// How the attacking connections were ended.
fn tell_ends(report: &mut Report, flood: Flood, outcomes: &[Outcome]) {
    let count = |is: &dyn Fn(End) -> bool| {
        outcomes.iter().flat_map(|outcome| &outcome.ends).filter(|end| is(**end)).count() as f64
    };
    let open = count(&|end| end == End::Open);
    let over = count(&|end| end != End::Open);
    let ended = count(&|end| matches!(end, End::Goaway(_) | End::Cut));
    match flood.meant() {
        Meant::Ended => {
            report.at_least("attacking connections that are over", over, "connections", 1.0);
            report.at_least("of those, ended by the proxy", ended / over, "", 1.0);
        }
        Meant::PutUpWith => report.at_least("attacking connections that are over", over, "connections", 1.0),
        Meant::Stalled => report.at_least("attacking connections", over + open, "connections", 1.0),
    }
    for (code, name) in CODES {
        let of_code = count(&|end| end == End::Goaway(code));
        if of_code > 0.0 {
            report.tell(name, of_code, "connections");
        }
    }
    let known = |code| CODES.iter().any(|(known, _)| *known == code);
    for (name, number) in [
        ("ended with another code", count(&|end| matches!(end, End::Goaway(code) if !known(code)))),
        ("ended without a GOAWAY that could be read", count(&|end| end == End::Cut)),
        ("put up with to the end", count(&|end| end == End::Survived)),
        ("open at the end", open),
        ("resets of streams", outcomes.iter().map(|outcome| outcome.resets).sum::<u64>() as f64),
    ] {
        if number > 0.0 {
            report.tell(name, number, if name == "resets of streams" { "streams" } else { "connections" });
        }
    }
}

fn tell_others(report: &mut Report, args: &HostileArgs, quiet: &[Phase], under_attack: &[Phase]) {
    let failed = |phases: &[Phase]| phases.iter().map(|phase| phase.load.failed).sum::<u64>() as f64;
    let requests = under_attack.iter().map(|phase| phase.load.requests).sum::<u64>() as f64;
    report.tell("others' requests under attack", requests, "requests");
    report.at_most("others' failures without the attack", failed(quiet), "requests", 0.0);
    report.others(args, &under_attack.iter().collect::<Vec<_>>());
    report.tell("others' p99 without the attack", p99_us(quiet), "us");
    report.tell("others' p99 under attack", p99_us(under_attack), "us");
    report.at_most("ratio of the two", p99_us(under_attack) / p99_us(quiet), "", args.p99_ratio_max);
}

fn tell_costs(report: &mut Report, quiet: &[Phase], under_attack: &[Phase], outcomes: &[Outcome]) {
    let share = |phases: &[Phase]| median(phases.iter().map(|phase| phase.cpu_share));
    let attackers = median(outcomes.iter().map(|outcome| outcome.cpu.as_secs_f64() / outcome.elapsed.as_secs_f64()));
    report.tell("proxy's CPU without the attack", 100.0 * share(quiet), "% of a core");
    report.tell("proxy's CPU under attack", 100.0 * share(under_attack), "% of a core");
    report.tell("attackers' CPU", 100.0 * attackers, "% of a core");
    let more = (share(under_attack) - share(quiet)).max(0.0);
    report.at_most("CPU that the attack costs over the attackers'", more / attackers, "", CPU_RATIO_MAX);
    let sent = outcomes.iter().map(|outcome| outcome.sent).sum::<u64>() as f64;
    report.tell("sent by attackers", sent, "bytes");
}
