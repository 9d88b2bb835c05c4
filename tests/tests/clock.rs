//! A clock that jumps by years while the mesh runs. It belongs to the whole machine: this test runs in the virtual ones of
//! `.ci/vm`, with MESHRING_MAY_SET_CLOCK=1.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    env,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use meshring_tests::{
    client::{Client, request},
    load::{self, Load},
    proxy::Driver,
    tls::{Mesh, peer_authentication},
    upstream::{Received, Upstream, ok},
    wait,
};
use rustix::time::{ClockId, Timespec, clock_settime};

const YEAR_S: i64 = 365 * 24 * 3_600;
/// How far from the right time the clock is, one state after the other.
const JUMPS_YEARS: [i64; 4] = [10, 0, -10, 0];
/// Five looks of control.
const SETTLED: Duration = Duration::from_secs(1);
const PROXIES: i64 = 3;

/// The machine's clock, which is right again in the end.
struct WallClock {
    began: (SystemTime, Instant),
}

impl WallClock {
    fn jump(&self, years: i64) {
        let right = self.began.0 + self.began.1.elapsed();
        let since = right.duration_since(UNIX_EPOCH).unwrap();
        let tv_sec = i64::try_from(since.as_secs()).unwrap() + years * YEAR_S;
        clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: since.subsec_nanos().into() }).unwrap();
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        self.jump(0);
    }
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
        ok("here")
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

#[test]
fn a_clock_that_jumps_ten_years_fires_no_deadline_and_starts_no_storm() {
    if env::var_os("MESHRING_MAY_SET_CLOCK").is_none() {
        println!("skipped: the clock is not this test's to set; `.ci/vm` runs it in a machine of its own");
        return;
    }
    let held = Arc::<Held>::default();
    let answers = Arc::clone(&held);
    let application = Upstream::answering(move |request| answers.answer(request));
    let strict = peer_authentication("STRICT", "");
    let mut mesh = Mesh::self_signed(Driver::Auto, &[application.address()], &[("mode.yaml", &strict)], &[]);
    // Without a load: each request that is held here takes a connection, and the next one needs a handshake.
    let mut other = mesh.control.proxy("default/client").start();
    mesh.wait_for_identities(3);
    let load = Load::start(mesh.client.outbound(), 2, request("GET", "reviews", "/", &[]), load::is_ok);
    let mut idle = mesh.client.connect();
    idle.get("reviews", "/").expect(200);
    let issued = || mesh.control.metric("meshring_certificates_issued_total", "");
    let arrived = || application.received().iter().filter(|request| request.target() == "/held").count();

    let clock = WallClock { began: (SystemTime::now(), Instant::now()) };
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
        load.pass(20);
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
    println!("{} requests beside", load.finish());
    for name in TIMEOUTS {
        assert_eq!(mesh.control.metric(name, ""), 0, "{name}");
    }
    let processes = [&mut mesh.client.process, &mut mesh.server.process, &mut other.process, &mut mesh.control.process];
    for process in processes {
        assert_eq!(process.try_exit(), None, "{}", process.output());
        assert_eq!(process.line("panicked"), None, "{}", process.output());
    }
}
