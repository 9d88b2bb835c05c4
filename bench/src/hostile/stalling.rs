//! Peers that stall in the middle of a message (faults 14 and 15): what each costs, when it is let go, and what others notice.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::attack::{self, Attack, Ended};
use super::report::Report;
use super::site::{ATTACKED, Attacked, NORMAL, Phase, Site, p99_us};
use super::{Drill, HostileArgs, demand_files, separate_cores};
use crate::backend;
use crate::limits::{CHILD_POLL_INTERVAL, HOSTILE_OPEN_EACH_MAX, HOSTILE_OPEN_MAX};
use crate::mesh::ProxyStart;
use crate::process::{check_interrupted, raise_file_limit_to};

/// Between two bytes of a slow sender, as slowloris has it: rarely, so that what is measured is not the work of reading them.
const TRICKLE_INTERVAL: Duration = Duration::from_secs(5);
/// A slow sender is let go this close to its deadline.
const DEADLINE_TOLERANCE_S: f64 = 1.0;
/// User memory of a connection that has sent part of a head.
const HEAD_BYTES_EACH_MAX: f64 = 4.0 * 1024.0;
/// User memory of a connection with a body or response under way: a buffer of 16 KiB per direction.
const BODY_BYTES_EACH_MAX: f64 = 32.0 * 1024.0;
/// More than the sockets of a connection hold, so that the response stalls.
const RESPONSE_BYTES: usize = 8 * 1024 * 1024;

/// Of the decoy's responses to senders.
const DECOY_BYTES: usize = 100;

/// Open files of a process beside those of connections.
const FILES_BESIDE: u64 = 1024;

/// The generator's start and end beside its load.
const LOAD_START_MAX: Duration = Duration::from_secs(2);

/// Until when all connections must be open.
pub(super) fn open_max(connections: usize) -> Duration {
    HOSTILE_OPEN_MAX + HOSTILE_OPEN_EACH_MAX * u32::try_from(connections).unwrap_or(u32::MAX)
}

/// Of the drill, what differs.
struct Plan {
    begin: String,
    trickle: Option<(&'static [u8], Duration)>,
    bytes_each_max: f64,
    /// After which the proxy ends a connection; none for readers.
    deadline: Option<Duration>,
    /// What the decoy answers with, in bytes.
    decoy_bytes: usize,
    arguments: Vec<String>,
}

impl Plan {
    fn of(drill: Drill, connections: usize, duration: Duration) -> Self {
        // All connections are there during all of the load.
        let deadline = open_max(connections) + duration + LOAD_START_MAX;
        let seconds = format!("{}ms", deadline.as_millis());
        match drill {
            Drill::SlowBody => Self {
                begin: format!("POST / HTTP/1.1\r\nhost: {NORMAL}\r\ncontent-length: 1000000\r\n\r\n"),
                trickle: Some((b"b", TRICKLE_INTERVAL)),
                bytes_each_max: BODY_BYTES_EACH_MAX,
                deadline: Some(deadline),
                decoy_bytes: DECOY_BYTES,
                arguments: ["--min-body-rate", "1000", "--body-grace", &seconds].map(str::to_owned).into(),
            },
            Drill::ZeroWindow => Self {
                begin: format!("GET / HTTP/1.1\r\nhost: {ATTACKED}\r\n\r\n"),
                trickle: None,
                bytes_each_max: BODY_BYTES_EACH_MAX,
                deadline: None,
                decoy_bytes: RESPONSE_BYTES,
                arguments: Vec::new(),
            },
            _ => Self {
                begin: format!("GET / HTTP/1.1\r\nhost: {NORMAL}\r\nx-slow: "),
                trickle: Some((b"h", TRICKLE_INTERVAL)),
                bytes_each_max: HEAD_BYTES_EACH_MAX,
                deadline: Some(deadline),
                decoy_bytes: DECOY_BYTES,
                arguments: ["--head-timeout", &seconds].map(str::to_owned).into(),
            },
        }
    }
}

/// The normal load, by what went on beside it.
#[derive(Default)]
struct Phases {
    quiet: Vec<Phase>,
    /// An attack on the decoy.
    beside: Vec<Phase>,
    /// An attack that had just begun; only where it settles.
    early: Vec<Phase>,
    under_attack: Vec<Phase>,
}

impl Phases {
    fn attacked(&self) -> impl Iterator<Item = &Phase> {
        self.early.iter().chain(&self.under_attack)
    }
}

pub(super) fn run(args: &HostileArgs, interrupted: &AtomicBool) -> anyhow::Result<Report> {
    let connections = args.connections();
    demand_files(connections as u64 + FILES_BESIDE)?;
    // A proxy has two for each, where more than a part of a head has come. What is beyond the limit of one is another one's.
    let files = connections as u64 * if args.drill == Drill::Slowloris { 1 } else { 2 };
    let limit = raise_file_limit_to(files + FILES_BESIDE).unwrap_or(u64::MAX);
    let proxies = files.div_ceil(limit - FILES_BESIDE);
    let plan = Plan::of(args.drill, connections, args.duration);
    let attacked = if args.drill == Drill::ZeroWindow { Attacked::Bytes(RESPONSE_BYTES) } else { Attacked::None };
    let arguments = plan.arguments.iter().map(Into::into).collect();
    let core = separate_cores()?;
    let start = ProxyStart { arguments, core: Some(core), ..ProxyStart::default() };
    let mut site = Site::start(args, &attacked, &start, interrupted)?;
    for _ in 1..proxies {
        site.start_another(&start)?;
    }
    // Attackers and load share a machine: what the attack costs the load when it means somebody else is not the proxy's doing. A
    // plain server on the proxy's core is somebody else.
    let (_decoy, decoy) = backend::start(Some(core), plan.decoy_bytes, site.mesh.dir())?;

    // What is set up once is no cost of a connection.
    site.load(Duration::from_secs(1), |_| Ok(()))?;
    let before = site.memory()?;
    let mut phases = Phases::default();
    let mut ended = Vec::new();
    for _ in 0..args.rounds {
        phases.quiet.push(site.load(args.duration, |_| Ok(()))?);
        // It is no proxy, and may take its time.
        let mut attack = opened(&plan, vec![decoy], connections, 2 * open_max(connections), interrupted)?;
        phases.beside.push(site.load(args.duration, |_| Ok(()))?);
        attack.opened()?;
        attack.stop()?;
        ended.append(&mut round(&mut site, args, &plan, &mut phases, interrupted)?);
    }

    let mut report = Report::new(args.drill, connections);
    if proxies > 1 {
        report.tell("proxies that share the connections, for want of descriptors", proxies as f64, "proxies");
    }
    tell_others(&mut report, args, &phases);
    let rss_max = phases.attacked().map(|phase| phase.rss_max).max().unwrap_or_default();
    let bytes_each = rss_max.saturating_sub(before.rss) as f64 / connections as f64;
    report.at_most("user memory of each hostile connection", bytes_each, "bytes", plan.bytes_each_max);
    if let Some(deadline) = plan.deadline {
        tell_ends(&mut report, &ended, deadline, connections * args.rounds);
    }
    Ok(report)
}

/// What others noticed.
fn tell_others(report: &mut Report, args: &HostileArgs, phases: &Phases) {
    let Phases { quiet, beside, early, under_attack } = phases;
    let attacked: Vec<&Phase> = phases.attacked().collect();
    let requests = attacked.iter().map(|phase| phase.load.requests).sum::<u64>() as f64;
    let failed = quiet.iter().map(|phase| phase.load.failed).sum::<u64>() as f64;
    report.tell("others' requests under attack", requests, "requests");
    report.at_most("others' failures without the attack", failed, "requests", 0.0);
    report.others(args, &attacked);
    report.tell("others' p99 without the attack", p99_us(quiet), "us");
    report.tell("others' p99 under attack", p99_us(under_attack), "us");
    report.at_most("ratio of the two", p99_us(under_attack) / p99_us(quiet), "", args.p99_ratio_max);
    let mut first = under_attack;
    if !early.is_empty() {
        first = early;
        report.tell("others' p99 when the attack had just begun", p99_us(early), "us");
    }
    report.tell("others' p99 when the attack on another server had just begun", p99_us(beside), "us");
    report.tell("ratio of the two", p99_us(first) / p99_us(beside), "");
}

/// An attack all of whose connections are open, after so long at most.
fn opened(
    plan: &Plan,
    addresses: Vec<SocketAddr>,
    connections: usize,
    within: Duration,
    interrupted: &AtomicBool,
) -> anyhow::Result<attack::Running> {
    let mut attack = Attack {
        addresses,
        connections,
        begin: plan.begin.clone().into_bytes(),
        trickle: plan.trickle,
        reads: plan.deadline.is_some(),
    }
    .start();
    let begun = Instant::now();
    while attack.opened()? < connections {
        check_interrupted(interrupted)?;
        if begun.elapsed() > within {
            bail!("only {} hostile connections within {within:?}", attack.opened()?);
        }
        thread::sleep(CHILD_POLL_INTERVAL);
    }
    Ok(attack)
}

/// One attack with the normal load in the middle of it; how its connections ended.
fn round(
    site: &mut Site<'_>,
    args: &HostileArgs,
    plan: &Plan,
    phases: &mut Phases,
    interrupted: &AtomicBool,
) -> anyhow::Result<Vec<Ended>> {
    let connections = args.connections();
    let attack = opened(plan, site.addresses(), connections, open_max(connections), interrupted)?;
    if plan.deadline.is_none() {
        phases.early.push(site.load(args.duration, |_| Ok(()))?);
        // The kernel asks after closed windows at intervals that double up to two minutes, and does so in bursts, at both ends of
        // each connection, all of which are on this machine. That is the attack's beginning.
        let settled = Instant::now() + args.settle.saturating_sub(args.duration);
        while Instant::now() < settled {
            check_interrupted(interrupted)?;
            thread::sleep(CHILD_POLL_INTERVAL);
        }
    }
    phases.under_attack.push(site.load(args.duration, |_| Ok(()))?);
    let give_up = Instant::now() + plan.deadline.unwrap_or_default() + Duration::from_secs(2);
    while plan.deadline.is_some() && attack.ended() < connections && Instant::now() < give_up {
        check_interrupted(interrupted)?;
        thread::sleep(CHILD_POLL_INTERVAL);
    }
    attack.stop()
}

/// When, compared with the deadline, the connections were ended.
fn tell_ends(report: &mut Report, ended: &[Ended], deadline: Duration, all: usize) {
    report.at_least("ended by the proxy", ended.len() as f64, "connections", all as f64);
    let off = |ended: &Ended| ended.after.as_secs_f64() - deadline.as_secs_f64();
    let earliest = ended.iter().map(off).fold(f64::NAN, f64::min);
    let latest = ended.iter().map(off).fold(f64::NAN, f64::max);
    report.between("earliest end after the deadline", earliest, "s", -DEADLINE_TOLERANCE_S, DEADLINE_TOLERANCE_S);
    report.between("latest end after the deadline", latest, "s", -DEADLINE_TOLERANCE_S, DEADLINE_TOLERANCE_S);
    let of_status = |status| ended.iter().filter(|ended| ended.status == status).count() as f64;
    report.at_least("answered 408 first", of_status(Some(408)), "connections", all as f64);
    report.tell("ended without an answer", of_status(None), "connections");
}
