//! A million Host values (fault 31): nothing may be remembered of a name that only a client knows.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::HostileArgs;
use super::report::Report;
use super::site::{Attacked, Site};
use crate::client;
use crate::mesh::ProxyStart;
use crate::process::usage;

/// Growth of proxy and control together.
const GROWTH_BYTES_MAX: f64 = 10.0 * 1024.0 * 1024.0;

pub(super) fn run(args: &HostileArgs, interrupted: &AtomicBool) -> anyhow::Result<Report> {
    let mut site = Site::start(args, &Attacked::None, &ProxyStart::default(), interrupted)?;
    // What is set up once does not count.
    site.load(Duration::from_secs(1), |_| Ok(()))?;
    send(site.address, args.connections(), 1_000, interrupted)?;
    let control = site.mesh.control_pid()?;
    let memory = |pid| anyhow::Ok(usage::memory(pid)?.rss as f64);
    let before = memory(site.pid)? + memory(control)?;
    let address = site.address;
    let requests = args.requests.get();
    let (answers, load) = thread::scope(|scope| {
        let sender = scope.spawn(|| send(address, args.connections(), requests, interrupted));
        let load = site.load(args.duration, |_| Ok(()));
        let answers = sender.join().map_err(|_| anyhow!("the sender of requests panicked"))?;
        anyhow::Ok((answers?, load?))
    })?;
    let after = memory(site.pid)? + memory(control)?;
    let mut report = Report::new(args.drill, args.connections());
    report.tell("requests, each with a Host of its own", requests as f64, "requests");
    report.at_least("answered 404", answers as f64, "requests", requests as f64);
    report.at_most("growth of proxy and control", after - before, "bytes", GROWTH_BYTES_MAX);
    report.others(args, &[&load]);
    report.tell("others' p99", load.load.latency_us.p99, "us");
    Ok(report)
}

/// Sends requests, each with another Host; gives the number of those that were answered 404.
fn send(address: SocketAddr, connections: usize, requests: u64, interrupted: &AtomicBool) -> anyhow::Result<u64> {
    let next = AtomicU64::new(0);
    let refused = AtomicU64::new(0);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let stream = client::open(address, Duration::from_secs(5))?;
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= requests || interrupted.load(Ordering::Relaxed) {
                            return anyhow::Ok(());
                        }
                        let request = format!("GET / HTTP/1.1\r\nhost: h{number}.example.com\r\n\r\n");
                        let answer = client::exchange(&stream, request.as_bytes())
                            .with_context(|| format!("request {number}"))?;
                        refused.fetch_add(u64::from(answer.status == 404), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        senders.into_iter().try_for_each(|sender| sender.join().map_err(|_| anyhow!("a sender panicked"))?)
    })?;
    Ok(refused.into_inner())
}
