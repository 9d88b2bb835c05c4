//! A clock that jumps by years while the mesh runs. It belongs to the whole machine, so it is set in the virtual ones of `.ci/vm` only,
//! with MESHRING_MAY_SET_CLOCK=1. Those are too slow for much of a load: with it, the programs see a clock of their own
//! (`clock/wall_clock.c`), which lacks nothing but the timers that the kernel would end by the wall clock. We have none.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    env,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    process::Command,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use meshring_tests::{
    client::{Client, request},
    generate::body,
    load::{self, DRILL_PER_S, Load, Paced},
    proxy::Driver,
    tls::{Mesh, SECOND_OVER_HTTP2, peer_authentication},
    upstream::{Received, Upstream, ok, response},
    wait,
};
use rustix::time::{ClockId, Timespec, clock_settime};
use tempfile::TempDir;

const YEAR_S: i64 = 365 * 24 * 3_600;
/// How far from the right time the clock is, one state after the other.
const JUMPS_YEARS: [i64; 4] = [10, 0, -10, 0];
/// Five looks of control.
const SETTLED: Duration = Duration::from_secs(1);
const PROXIES: i64 = 3;
/// Of most responses.
const BODY_BYTES: usize = 2_000;

/// A wall clock that is a test's to set.
enum WallClock {
    /// The machine's, which is right again in the end.
    Machine { began: (SystemTime, Instant) },
    /// That of this process and its children: how far ahead it is, in seconds.
    Own { ahead_s: File },
}

impl WallClock {
    fn jump(&self, years: i64) {
        match self {
            Self::Machine { began } => {
                let right = began.0 + began.1.elapsed();
                let since = right.duration_since(UNIX_EPOCH).unwrap();
                let tv_sec = i64::try_from(since.as_secs()).unwrap() + years * YEAR_S;
                clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: since.subsec_nanos().into() }).unwrap();
            }
            Self::Own { ahead_s } => ahead_s.write_all_at(&(years * YEAR_S).to_ne_bytes(), 0).unwrap(),
        }
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        self.jump(0);
    }
}

/// What goes on beside, between the sidecars on one connection: it needs no handshake at a time at which there may be none.
enum Beside {
    /// As fast as a few are answered.
    Some(Load),
    /// As FAULTS.md wants it.
    Drill(Paced),
}

/// Requests that an application keeps until it is told to answer them.
#[derive(Default)]
struct Held {
    released: Mutex<bool>,
    told: Condvar,
}

impl Held {
    fn answer(&self, request: &Received) -> Vec<u8> {
        if request.target() == "/held" {
            let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
            drop(self.told.wait_while(released, |released| !*released).unwrap_or_else(PoisonError::into_inner));
        }
        match request.target() {
            "/" => response(200, &[], &body(1, BODY_BYTES)),
            _ => ok("here"),
        }
    }

    fn release(&self) {
        *self.released.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }
}

/// Counters that only grow when somebody has run out of time.
const TIMEOUTS: [&str; 3] = [
    "meshring_downstream_head_timeouts_total",
    "meshring_downstream_body_timeouts_total",
    "meshring_upstream_timeouts_total",
];

const MAY_SET_CLOCK: &str = "MESHRING_MAY_SET_CLOCK";
const OWN_CLOCK: &str = "MESHRING_WALL_CLOCK";

#[test]
fn a_clock_that_jumps_ten_years_fires_no_deadline_and_starts_no_storm() {
    if env::var_os(MAY_SET_CLOCK).is_none() {
        println!("skipped: the clock is not this test's to set; `.ci/vm` runs it in a machine of its own");
        return;
    }
    jump_ten_years(WallClock::Machine { began: (SystemTime::now(), Instant::now()) }, |mesh, body| {
        Beside::Some(Load::start(mesh.client.outbound(), 2, request("GET", "second", "/", &[]), load::is_exactly(body)))
    });
}

const DRILL: &str = "a_clock_that_jumps_ten_years_fails_no_request_of_a_thousand_a_second";

#[test]
fn a_clock_that_jumps_ten_years_fails_no_request_of_a_thousand_a_second() {
    if env::var_os(MAY_SET_CLOCK).is_some() {
        println!("skipped: too slow for a load");
        return;
    }
    if let Some(path) = env::var_os(OWN_CLOCK) {
        let ahead_s = File::options().write(true).open(path).unwrap();
        let arguments = ["--h2", "--connections", "1", "--streams", "8"];
        return jump_ten_years(WallClock::Own { ahead_s }, |mesh, body| {
            let load = Paced::expecting(mesh.client.outbound(), "second", &body, DRILL_PER_S, &arguments);
            mesh.wait_for_metric_above("downstream_requests_total", 500);
            Beside::Drill(load)
        });
    }
    // This test once more, with a clock that it may set.
    let dir = TempDir::new().unwrap();
    let [source, library, clock] = ["wall_clock.c", "wall_clock.so", "clock"].map(|name| dir.path().join(name));
    fs::write(&source, include_str!("clock/wall_clock.c")).unwrap();
    fs::write(&clock, 0_i64.to_ne_bytes()).unwrap();
    let compiled =
        Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(compiled.success(), "{compiled}");
    let mut drill = Command::new(env::current_exe().unwrap());
    drill.args(["--exact", DRILL, "--nocapture"]).env("LD_PRELOAD", &library).env(OWN_CLOCK, &clock);
    let output = drill.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{}", output.status);
}

fn jump_ten_years(clock: WallClock, load: impl FnOnce(&Mesh, Vec<u8>) -> Beside) {
    let held = Arc::<Held>::default();
    let answers = Arc::clone(&held);
    let application = Upstream::answering(move |request| answers.answer(request));
    let strict = peer_authentication("STRICT", "");
    let files = [("mode.yaml", strict.as_str()), ("second.yaml", SECOND_OVER_HTTP2)];
    let mut mesh = Mesh::self_signed(Driver::Auto, &[application.address(); 2], &files, &[]);
    // Without a load: each request that is held here takes a connection, and the next one needs a handshake.
    let mut other = mesh.control.proxy("default/client").start();
    mesh.wait_for_identities(3);
    let load = load(&mesh, body(1, BODY_BYTES));
    let mut idle = mesh.client.connect();
    idle.get("reviews", "/").expect(200);
    let issued = || mesh.control.metric("meshring_certificates_issued_total", "");
    let arrived = || application.received().iter().filter(|request| request.target() == "/held").count();

    let mut waiting = Vec::new();
    for (round, years) in JUMPS_YEARS.into_iter().enumerate() {
        let so_far = (issued(), mesh.server_metric("downstream_tls_handshakes_total"));
        let mut half = mesh.client.connect();
        half.send("GET /half HTTP/1.1\r\n");
        clock.jump(years);
        let jumped = Instant::now();
        // What was half said, and who has been silent for what looks like years.
        half.send("host: reviews\r\n\r\n").response().expect(200);
        idle.get("reviews", "/").expect(200);
        // Handshakes need certificates for the new time.
        let address = other.outbound();
        waiting.push(thread::spawn(move || {
            wait::until("a connection between certificates of the new time", || {
                let mut client = Client::connect(address);
                // Held for longer than a test waits otherwise.
                client.stream().set_read_timeout(None).unwrap();
                let response = client.get("reviews", "/held");
                if response.status != 200 {
                    println!("after {:?}: {} {}", jumped.elapsed(), response.status, response.text().trim_end());
                }
                (response.status == 200).then_some(response)
            })
        }));
        wait::until("a request over a new connection", || (arrived() > round).then_some(()));
        println!("{years} years: new connections after {:?}", jumped.elapsed());
        assert!(mesh.server_metric("downstream_tls_handshakes_total") > so_far.1);
        match &load {
            Beside::Some(load) => load.pass(20),
            Beside::Drill(_) => {
                mesh.wait_for_metric_above(
                    "downstream_requests_total",
                    mesh.server_metric("downstream_requests_total") + i64::from(DRILL_PER_S),
                );
            }
        }
        let generation = mesh.control.generation();
        mesh.control.write("mode.yaml", &peer_authentication(["STRICT", "PERMISSIVE"][(round + 1) % 2], ""));
        wait::until("the next generation", || (mesh.control.generation() > generation).then_some(()));
        mesh.control.wait_for_proxies(3);
        let certificates = wait::until_still(SETTLED, "control to be at rest", issued) - so_far.0;
        // One for the new time, and no more: the root that it needs, if another one, was there before.
        assert_eq!(certificates, PROXIES, "{years} years");
    }
    held.release();
    for thread in waiting {
        assert_eq!(thread.join().unwrap().text(), "here");
    }
    match load {
        Beside::Some(load) => println!("{} requests beside", load.finish()),
        Beside::Drill(load) => load::assert_loaded(load.finish()),
    }
    for name in TIMEOUTS {
        assert_eq!(mesh.control.metric(name, ""), 0, "{name}");
    }
    let processes = [&mut mesh.client.process, &mut mesh.server.process, &mut other.process, &mut mesh.control.process];
    for process in processes {
        assert_eq!(process.try_exit(), None, "{}", process.output());
        assert_eq!(process.line("panicked"), None, "{}", process.output());
    }
}
