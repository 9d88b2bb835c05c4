//! Certificates that change all the time, a root that is replaced, and control that is away for longer than they live.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use meshring_tests::{
    alone,
    client::{Client, request},
    generate::body,
    load::{DRILL_PER_S, Paced, assert_loaded},
    proxy::{Driver, Proxy},
    tls::{Mesh, SECOND_OVER_HTTP2, peer_authentication},
    upstream::{Upstream, ok, response},
    wait,
};

/// The shortest life that control takes; rotation comes at half of it.
const LIFE: Duration = Duration::from_secs(10);

/// The application is two services.
fn start(application: &Upstream) -> Mesh {
    let mode = peer_authentication("STRICT", "");
    let files = [("mode.yaml", mode.as_str()), ("second.yaml", SECOND_OVER_HTTP2)];
    Mesh::self_signed(Driver::Auto, &[application.address(); 2], &files, &["--svid-lifetime", "10s"])
}

/// What control tells of a process's certificate.
struct Told {
    pid: u64,
    /// Of what it was sent last.
    serial: String,
    root: String,
    /// It says that it uses what it was sent last.
    is_installed: bool,
}

fn identities(mesh: &Mesh) -> Vec<Told> {
    let certs = mesh.control.api("/v1/certs");
    let list = certs["identities"].as_array().unwrap();
    let told = list.iter().filter_map(|item| {
        let text = |field: &str| Some(item[field].as_str()?.to_owned());
        let is_installed = item["state"] == "installed";
        Some(Told { pid: item["pid"].as_u64()?, serial: text("serial")?, root: text("root")?, is_installed })
    });
    told.collect()
}

/// The roots that processes go by.
fn roots(told: &[Told]) -> BTreeSet<String> {
    told.iter().filter(|each| each.is_installed).map(|each| each.root.clone()).collect()
}

/// What a client's sidecar shows on new connections, by what the application hears of it.
struct Witness {
    proxy: Proxy,
    client: Client,
    asked: Instant,
    /// What was issued last, when that was seen, and the longest round of looks since then.
    issued: (String, Instant, Duration),
    is_installed: bool,
    /// Which certificate, by its hash, was shown while which one was installed.
    shown: BTreeMap<String, String>,
}

impl Witness {
    fn new(proxy: Proxy) -> Self {
        let (client, now) = (proxy.connect(), Instant::now());
        let issued = (String::new(), now, Duration::ZERO);
        Self { proxy, client, asked: now, issued, is_installed: false, shown: BTreeMap::new() }
    }

    fn pid(&self) -> u64 {
        self.proxy.process.pid().into()
    }

    /// Asks on a new connection, if the last one is too old by now. `round`: how long the last round of looks took.
    fn look(&mut self, mesh: &Mesh, told: &[Told], round: Duration) {
        let Some(told) = told.iter().find(|told| told.pid == self.pid()) else { return };
        if told.serial != self.issued.0 {
            self.issued = (told.serial.clone(), Instant::now(), round);
            self.is_installed = false;
        }
        self.issued.2 = self.issued.2.max(round);
        if !self.is_installed {
            let (_, since, longest) = self.issued;
            let (late, late_max) = (since.elapsed(), IN_USE_WITHIN + longest * ROUNDS);
            assert!(late < late_max, "a new certificate is not in use after {late:?}; a round takes {longest:?}");
            self.is_installed = told.is_installed;
        }
        if self.asked.elapsed() < REUSE {
            return;
        }
        self.client.send(request("POST", "reviews", "/", &[("content-length", "0")]));
        let text = self.client.response().expect(200).text();
        self.asked = Instant::now();
        let (_, rest) = text.split_once(";Hash=").unwrap_or_else(|| panic!("no certificate in {text}"));
        let hash = rest.split(';').next().unwrap().to_owned();
        // It was in use before the connection was made, and there is no newer one yet.
        let is_last = |last: &Told| (last.pid, &last.serial) == (told.pid, &told.serial);
        if self.is_installed && identities(mesh).iter().any(is_last) {
            let installed = self.shown.entry(hash).or_insert_with(|| told.serial.clone());
            assert_eq!(*installed, told.serial, "another certificate than the one that is in use");
        }
    }
}

/// A POST goes on a connection that was in use within the last second, or on a new one.
const REUSE: Duration = Duration::from_millis(1_100);
/// A new certificate is in use, on a machine that has time for it; one that has not takes as long for a round of looks (which asks
/// control, and now and then each witness), and gets this many of them.
const IN_USE_WITHIN: Duration = Duration::from_secs(1);
const ROUNDS: u32 = 10;
/// What the rotations may take: below the length of the load.
const ROTATING: Duration = Duration::from_secs(200);
/// Sidecars that carry the load, beside the one of the application.
const LOADED: usize = 15;
const WITNESSES: usize = 4;
/// Of the responses to the load.
const BODY_BYTES: usize = 4_000;
const ROTATIONS: usize = 100;

#[test]
fn a_hundred_rotations_and_a_new_root_under_load_fail_no_request() {
    let _alone = alone();
    let expected = body(1, BODY_BYTES);
    let loaded_with = expected.clone();
    let application = Upstream::answering(move |request| match request.method() {
        "GET" => response(200, &[], &loaded_with),
        _ => ok(request.fields.value("x-forwarded-client-cert").unwrap_or_default()),
    });
    let mesh = start(&application);
    let client = || mesh.control.proxy("default/client").start();
    // Each has a certificate of its own, and rotates it while requests go through.
    let loaded: Vec<Proxy> = (1..LOADED).map(|_| client()).collect();
    let mut witnesses: Vec<Witness> = (0..WITNESSES).map(|_| Witness::new(client())).collect();
    mesh.wait_for_identities(1 + LOADED + WITNESSES);
    let outbound = loaded.iter().map(Proxy::outbound).chain([mesh.client.outbound()]);
    let per_second = DRILL_PER_S / LOADED as u32;
    let load = |address| Paced::expecting(address, "reviews", &expected, per_second, &["--connections", "2"]);
    let loads: Vec<Paced> = outbound.map(load).collect();
    wait::until("the load", || (mesh.server_metric("downstream_requests_total") >= 100).then_some(()));
    let handshakes = mesh.server_metric("downstream_tls_handshakes_total");
    let old = roots(&identities(&mesh));
    assert_eq!(old.len(), 1, "{old:?}");
    mesh.control.meshring(&["certs", "rotate-root"]).expect(0);

    let without_load: BTreeSet<u64> = witnesses.iter().map(Witness::pid).collect();
    let is_under_load = |told: &&Told| told.is_installed && !without_load.contains(&told.pid);
    let mut seen = BTreeSet::new();
    let (mut first, mut begun, mut longest) = (None, Instant::now(), Duration::ZERO);
    wait::until_within(ROTATING, "100 rotations under load and the new root everywhere", || {
        let round = begun.elapsed();
        longest = longest.max(round);
        begun = Instant::now();
        let told = identities(&mesh);
        seen.extend(told.iter().filter(is_under_load).map(|told| (told.pid, told.serial.clone())));
        let first = *first.get_or_insert(seen.len());
        for witness in &mut witnesses {
            witness.look(&mesh, &told, round);
        }
        (seen.len() >= first + ROTATIONS && roots(&told).is_disjoint(&old)).then_some(())
    });
    let figures: Vec<(u64, f64)> = loads.into_iter().map(Paced::finish).collect();
    let (requests, per_second) = figures.iter().fold((0, 0.0), |sum, each| (sum.0 + each.0, sum.1 + each.1));
    let server = seen.iter().filter(|(pid, _)| *pid == u64::from(mesh.server.process.pid())).count() - 1;
    println!("{} rotations, {server} of the server, the longest round {longest:?}", seen.len() - first.unwrap());
    assert_loaded((requests, per_second));
    let shown: usize = witnesses.iter().map(|witness| witness.shown.len()).sum();
    assert!(shown >= 2 * WITNESSES, "only {shown} certificates of {WITNESSES} witnesses");
    let new_handshakes = mesh.server_metric("downstream_tls_handshakes_total") - handshakes;
    assert!(new_handshakes >= shown as i64, "only {new_handshakes} handshakes");
    assert_eq!(mesh.server_metric("downstream_tls_refused_total"), 0);
    assert_eq!(mesh.control.metric("meshring_upstream_tls_failures_total", ""), 0);
    let status = mesh.control.api("/v1/certs");
    assert!(status["identities"].as_array().unwrap().iter().all(|item| item["state"] != "refused"), "{status}");
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn an_outage_of_control_beyond_the_life_of_certificates_heals_by_itself() {
    let _alone = alone();
    let expected = body(1, BODY_BYTES);
    let whole = response(200, &[], &expected);
    let application = Upstream::answering(move |_| whole.clone());
    let mut mesh = start(&application);
    // One that has no connection to the server when certificates have expired.
    let late = mesh.control.proxy("default/client").start();
    mesh.wait_for_identities(3);
    // Over one connection of each protocol, which are never idle: they would be closed as such.
    let load = |service, per_second, arguments: &[&str]| {
        let arguments = [&["--connections", "1"], arguments].concat();
        Paced::expecting(mesh.client.outbound(), service, &expected, per_second, &arguments)
    };
    let early =
        [load("reviews", DRILL_PER_S / 4, &[]), load("second", DRILL_PER_S * 3 / 4, &["--h2", "--streams", "8"])];
    let requests = mesh.server_metric("downstream_requests_total");
    mesh.wait_for_metric_above("downstream_requests_total", requests + 100);
    mesh.control.process.kill();
    // Nobody issues any more: what has been installed by now is the last, and lasts a whole life at the most.
    let last_ends_s = unix_s(SystemTime::now()) + LIFE.as_secs();
    let response = wait::until_within(LIFE * 3, "the end of the certificates", || {
        // A certificate is good to the end of the second that it names (RFC 5280 section 4.1.2.5).
        (unix_s(SystemTime::now()) > last_ends_s).then(|| late.connect().get("reviews", "/"))
    });
    // A new connection is refused and says why, also in the log.
    assert!(
        response.expect(503).text().contains("expired") || response.text().contains("no_identity"),
        "{}",
        response.text()
    );
    wait::until("the reason in the log", || {
        late.process.line("code=\"tls.").or_else(|| late.process.line("no_identity"))
    });
    mesh.control.restart();
    wait::until("the mesh to heal", || (late.connect().get("reviews", "/").status == 200).then_some(()));
    mesh.wait_for_identities(3);
    mesh.get("reviews", "/").expect(200);
    // The established ones have not noticed.
    let [old, new] = early.map(Paced::finish);
    assert_loaded((old.0 + new.0, old.1 + new.1));
}
