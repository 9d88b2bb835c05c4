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

/// What every process has installed, by its number: one of the strings that control tells.
fn strings(mesh: &Mesh, field: &str) -> BTreeSet<(u64, String)> {
    let certs = mesh.control.api("/v1/certs");
    let list = certs["identities"].as_array().unwrap();
    let pair = |item: &serde_json::Value| Some((item["pid"].as_u64()?, item[field].as_str()?.to_owned()));
    list.iter().filter(|item| item["state"] == "installed").filter_map(pair).collect()
}

/// The serial number of what every process was sent last, by its number.
fn issued(mesh: &Mesh) -> BTreeMap<u64, String> {
    let certs = mesh.control.api("/v1/certs");
    let list = certs["identities"].as_array().unwrap();
    list.iter().filter_map(|item| Some((item["pid"].as_u64()?, item["serial"].as_str()?.to_owned()))).collect()
}

/// From when on a client's sidecar shows a new certificate on new connections, by what the application hears of it.
struct Witness {
    proxy: Proxy,
    client: Client,
    asked: Instant,
    /// What was issued last, and when that was seen.
    serial: (String, Instant),
    /// Which certificate, by its hash, was shown while which one was the last that was issued.
    shown: BTreeMap<String, String>,
}

impl Witness {
    fn new(proxy: Proxy) -> Self {
        let (client, now) = (proxy.connect(), Instant::now());
        Self { proxy, client, asked: now, serial: (String::new(), now), shown: BTreeMap::new() }
    }

    fn pid(&self) -> u64 {
        self.proxy.process.pid().into()
    }

    /// Asks on a new connection, if the last one is too old by now. `serial`: of what was issued last.
    fn look(&mut self, serial: Option<&String>) {
        if let Some(serial) = serial.filter(|serial| **serial != self.serial.0) {
            self.serial = (serial.clone(), Instant::now());
        }
        if self.asked.elapsed() < REUSE {
            return;
        }
        let is_due = self.serial.1.elapsed() >= IN_USE_WITHIN;
        self.client.send(request("POST", "reviews", "/", &[("content-length", "0")]));
        let text = self.client.response().expect(200).text();
        self.asked = Instant::now();
        let (_, rest) = text.split_once(";Hash=").unwrap_or_else(|| panic!("no certificate in {text}"));
        let hash = rest.split(';').next().unwrap().to_owned();
        if is_due {
            let issued = self.shown.entry(hash).or_insert_with(|| self.serial.0.clone());
            assert_eq!(*issued, self.serial.0, "an old certificate, {:?} after the new one", self.serial.1.elapsed());
        }
    }
}

/// A POST goes on a connection that was in use within the last second, or on a new one.
const REUSE: Duration = Duration::from_millis(1_100);
const IN_USE_WITHIN: Duration = Duration::from_secs(1);
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
    let roots: BTreeSet<String> = strings(&mesh, "root").into_iter().map(|(_, root)| root).collect();
    assert_eq!(roots.len(), 1, "{roots:?}");
    mesh.control.meshring(&["certs", "rotate-root"]).expect(0);

    let without_load: BTreeSet<u64> = witnesses.iter().map(Witness::pid).collect();
    let under_load = || strings(&mesh, "serial").into_iter().filter(|(pid, _)| !without_load.contains(pid));
    let first = under_load().count();
    let mut seen = BTreeSet::new();
    wait::until_within(Duration::from_secs(55), "100 rotations under load and the new root everywhere", || {
        seen.extend(under_load());
        let serials = issued(&mesh);
        for witness in &mut witnesses {
            witness.look(serials.get(&witness.pid()));
        }
        let now: BTreeSet<String> = strings(&mesh, "root").into_iter().map(|(_, root)| root).collect();
        (seen.len() >= first + ROTATIONS && now.is_disjoint(&roots)).then_some(())
    });
    let figures: Vec<(u64, f64)> = loads.into_iter().map(Paced::finish).collect();
    let (requests, per_second) = figures.iter().fold((0, 0.0), |sum, each| (sum.0 + each.0, sum.1 + each.1));
    let server = seen.iter().filter(|(pid, _)| *pid == u64::from(mesh.server.process.pid())).count() - 1;
    println!("{} rotations, {server} of the server", seen.len() - first);
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
