//! Requests without pause over keep-alive connections while something else happens. Every response is judged.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use aws_lc_rs::digest::{SHA256, digest};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    binaries,
    client::{Client, Response},
    process::Process,
    wait,
};

/// Failures that are kept with their words; the others are only counted.
const FAILURES_KEPT: usize = 20;

#[derive(Debug, Default)]
struct Counts {
    stop: AtomicBool,
    responses: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Counts {
    fn fail(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < FAILURES_KEPT {
            failures.push(what);
        }
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Sends `request` over so many connections until it is finished. `judge` says what is wrong with a response.
    #[must_use]
    pub fn start(
        address: SocketAddr,
        connections: usize,
        request: Vec<u8>,
        judge: impl Fn(&Response) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        let counts = Arc::<Counts>::default();
        let (request, judge) = (Arc::new(request), Arc::new(judge));
        let threads = (0..connections).map(|_| {
            let (counts, request, judge) = (Arc::clone(&counts), Arc::clone(&request), Arc::clone(&judge));
            thread::spawn(move || {
                while !counts.stop.load(Ordering::Relaxed) {
                    match Client::try_connect(address) {
                        Ok(mut client) => run(&counts, &mut client, &request, &*judge),
                        Err(error) => counts.fail(format!("cannot connect: {error}")),
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { counts, threads }
    }

    /// Responses so far.
    #[must_use]
    pub fn responses(&self) -> u64 {
        self.counts.responses.load(Ordering::Relaxed)
    }

    /// Waits for `count` further responses.
    pub fn pass(&self, count: u64) {
        let goal = self.responses() + count;
        wait::until(&format!("{count} responses under load"), || (self.responses() >= goal).then_some(()));
    }

    /// Ends the load after the requests that are in flight, and asserts that none has failed. Returns the number of responses.
    ///
    /// # Panics
    /// With what went wrong first, if anything did.
    #[track_caller]
    pub fn finish(mut self) -> u64 {
        self.counts.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a thread of the load");
        }
        let failed = self.counts.failed.load(Ordering::Relaxed);
        let failures = self.counts.failures.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
        assert_eq!(failed, 0, "of {} requests:\n{failures}", self.responses() + failed);
        self.responses()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
    }
}

fn run(counts: &Counts, client: &mut Client, request: &[u8], judge: &dyn Fn(&Response) -> Result<(), String>) {
    while !counts.stop.load(Ordering::Relaxed) {
        let answered = client.try_send(request).map_err(Into::into).and_then(|()| client.try_response("GET"));
        match answered {
            Ok(response) => {
                if let Err(what) = judge(&response) {
                    counts.fail(what);
                }
                counts.responses.fetch_add(1, Ordering::Relaxed);
                if response.fields.value("connection") == Some("close") {
                    return;
                }
            }
            Err(error) => {
                counts.fail(format!("{error:#}"));
                return;
            }
        }
    }
}

/// Passes a 200 and shows the body of everything else.
pub fn is_ok(response: &Response) -> Result<(), String> {
    if response.status == 200 { Ok(()) } else { Err(format!("{}: {}", response.status, response.text())) }
}

/// Passes a 200 with this body only.
pub fn is_exactly(body: Vec<u8>) -> impl Fn(&Response) -> Result<(), String> + Send + Sync + 'static {
    move |response| match is_ok(response) {
        Ok(()) if response.body != body => Err(format!("another body, of {} bytes", response.body.len())),
        result => result,
    }
}

/// The hash of a body, for `meshring-bench load --body-sha256`.
#[must_use]
pub fn sha256(body: &[u8]) -> String {
    digest(&SHA256, body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What FAULTS.md has for a load while a fault is on, and some more.
pub const DRILL_PER_S: u32 = 1_200;

/// Tells how much of that load there was, and that there was any. How fast it gets through is the machine's business: one that is busy
/// with something else does not get to all of it, and what counts is that what was sent did not fail.
///
/// # Panics
/// When it was next to nothing.
#[track_caller]
pub fn assert_loaded((requests, per_second): (u64, f64)) {
    println!("{requests} requests, {per_second:.0}/s");
    assert!(requests >= 500, "only {requests} requests, {per_second:.0}/s");
}

/// GET requests at a constant rate, whatever becomes of the ones before, by `meshring-bench load`.
#[derive(Debug)]
pub struct Paced {
    process: Process,
    /// Every body is compared with the expected one.
    is_checked: bool,
}

impl Paced {
    /// Sends so many requests per second until it is finished: five minutes at the most. `arguments`: further ones of the program.
    #[must_use]
    pub fn start(url: &str, per_second: u32, arguments: &[&str]) -> Self {
        let mut command = Command::new(binaries::path("meshring-bench"));
        // A request's time counts from when it was due, and on a machine that is too slow for the rate they are late by more and more:
        // that is no failure.
        command.args(["load", url, "--duration", "300s", "--timeout", "60s"]);
        command.args(["--rate", &per_second.to_string(), "--output", "json"]);
        let is_checked = arguments.contains(&"--body-sha256");
        Self { process: Process::start(&format!("meshring-bench load {url}"), command.args(arguments)), is_checked }
    }

    /// As [`to_service`](Self::to_service), with further arguments: every answer must be a 2xx with exactly this body, by its hash.
    #[must_use]
    pub fn expecting(outbound: SocketAddr, service: &str, body: &[u8], per_second: u32, arguments: &[&str]) -> Self {
        let (host, hash) = (format!("host: {service}"), sha256(body));
        let ours = ["--header", &host, "--body-sha256", &hash];
        Self::start(&format!("http://{outbound}/"), per_second, &[&ours[..], arguments].concat())
    }

    /// Likewise to a service of the mesh, over so many connections.
    #[must_use]
    pub fn to_service(outbound: SocketAddr, service: &str, connections: usize, per_second: u32) -> Self {
        let (host, connections) = (format!("host: {service}"), connections.to_string());
        Self::start(&format!("http://{outbound}/"), per_second, &["--header", &host, "--connections", &connections])
    }

    /// Ends the load and asserts that no request has failed that was sent: the rate tells of the others. Returns requests, and
    /// requests per second.
    ///
    /// # Panics
    /// With the whole report, if any has.
    #[track_caller]
    pub fn finish(mut self) -> (u64, f64) {
        // It may have ended by itself.
        if self.process.try_exit().is_none() {
            self.process.signal(Signal::INT);
        }
        let status = self.process.wait_for_exit();
        // What it has written last may still be on its way.
        let report =
            wait::until("the report of the load", || serde_json::from_str::<Value>(&self.process.output()).ok());
        let failed = report["failed"].as_u64().zip(report["failures"]["unsent"].as_u64());
        let figures = report["requests"].as_u64().zip(report["requests_per_s"].as_f64());
        // A failure is another status than 2xx, too.
        let is_clean = report["statuses"]["3xx"] == 0 && report["bodies_checked"] == self.is_checked;
        match (failed, figures) {
            (Some((failed, unsent)), Some(figures)) if failed == unsent && is_clean => figures,
            _ => panic!("{status}: {report:#}"),
        }
    }
}
