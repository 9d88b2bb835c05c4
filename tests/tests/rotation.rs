//! Certificates that change all the time, a root that is replaced, and control that is away for longer than they live.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use meshring_tests::{
    alone,
    client::{Client, request},
    load::{self, Load},
    proxy::{Driver, Proxy},
    tls::{Mesh, peer_authentication},
    upstream::Upstream,
    wait,
};

/// The shortest life that control takes; rotation comes at half of it.
const LIFE: Duration = Duration::from_secs(10);

fn start(application: &Upstream) -> Mesh {
    let mode = peer_authentication("STRICT", "");
    let arguments = ["--svid-lifetime", "10s"];
    Mesh::self_signed(Driver::Auto, &[application.address()], &[("mode.yaml", &mode)], &arguments)
}

fn strings(mesh: &Mesh, field: &str) -> BTreeSet<(u64, String)> {
    let certs = mesh.control.api("/v1/certs");
    let list = certs["identities"].as_array().unwrap();
    let pair = |item: &serde_json::Value| Some((item["pid"].as_u64()?, item[field].as_str()?.to_owned()));
    list.iter().filter(|item| item["state"] == "installed").filter_map(pair).collect()
}

/// A request that goes out on a connection of its own where the last one is older than a second: a POST.
fn post(client: &mut Client) -> u16 {
    client.send(request("POST", "reviews", "/", &[("content-length", "0")])).response().status
}

#[test]
fn a_hundred_rotations_and_a_new_root_under_load_fail_no_request() {
    let _alone = alone();
    let application = Upstream::saying("here");
    let mesh = start(&application);
    // Each has a certificate of its own.
    let others: Vec<Proxy> = (0..22).map(|_| mesh.control.proxy("default/client").start()).collect();
    mesh.wait_for_identities(24);
    let mut clients: Vec<Client> = others.iter().map(Proxy::connect).collect();
    let load = Load::start(mesh.client.outbound(), 4, request("GET", "reviews", "/", &[]), load::is_ok);
    load.pass(100);
    let handshakes = mesh.server_metric("downstream_tls_handshakes_total");
    let roots: BTreeSet<String> = strings(&mesh, "root").into_iter().map(|(_, root)| root).collect();
    assert_eq!(roots.len(), 1, "{roots:?}");
    mesh.control.meshring(&["certs", "rotate-root"]).expect(0);

    let first = strings(&mesh, "serial");
    let mut seen = first.clone();
    let mut next = 0;
    wait::until_within(Duration::from_secs(60), "100 rotations and the new root everywhere", || {
        seen.extend(strings(&mesh, "serial"));
        // One new handshake between certificates of any age.
        let client = next % clients.len();
        assert_eq!(post(&mut clients[client]), 200);
        next += 1;
        let now: BTreeSet<String> = strings(&mesh, "root").into_iter().map(|(_, root)| root).collect();
        (seen.len() >= first.len() + 100 && now.is_disjoint(&roots)).then_some(())
    });
    assert!(load.finish() > 100);
    let new_handshakes = mesh.server_metric("downstream_tls_handshakes_total") - handshakes;
    assert!(new_handshakes >= 22, "only {new_handshakes} handshakes");
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
    let application = Upstream::saying("here");
    let mut mesh = start(&application);
    // One that has no connection to the server when certificates have expired.
    let late = mesh.control.proxy("default/client").start();
    mesh.wait_for_identities(3);
    let mut early = mesh.client.connect();
    early.get("reviews", "/").expect(200);
    mesh.control.process.kill();
    // Nobody issues any more: what has been installed by now is the last, and lasts a whole life at the most.
    let last_ends_s = unix_s(SystemTime::now()) + LIFE.as_secs();
    let response = wait::until_within(LIFE * 3, "the end of the certificates", || {
        // Keeps its connection in use, or it would be closed as idle.
        early.get("reviews", "/").expect(200);
        // A certificate is good to the end of the second that it names (RFC 5280 section 4.1.2.5).
        (unix_s(SystemTime::now()) > last_ends_s).then(|| late.connect().get("reviews", "/"))
    });
    // A new connection is refused and says why, an established one goes on.
    assert!(
        response.expect(503).text().contains("expired") || response.text().contains("no_identity"),
        "{}",
        response.text()
    );
    early.get("reviews", "/").expect(200);
    mesh.control.restart();
    wait::until("the mesh to heal", || (late.connect().get("reviews", "/").status == 200).then_some(()));
    mesh.wait_for_identities(3);
    mesh.get("reviews", "/").expect(200);
    early.get("reviews", "/").expect(200);
}
