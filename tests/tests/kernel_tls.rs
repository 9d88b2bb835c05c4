//! A mesh whose TLS records the kernel seals and opens (`--ktls on`). This machine's kernel may have no kernel TLS: `.ci/vm`
//! runs these tests in kernels that do, with MESHRING_EXPECT_KTLS=1; here proxies seal their records themselves.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{env, fs, process::Command};

use meshring_tests::{
    alone,
    binaries::is_installed,
    client::request,
    generate::{assert_same_bytes, body},
    load::{DRILL_PER_S, Paced, assert_loaded, sha256},
    on_both_drivers,
    openssl::Session,
    pki::{Leaf, spiffe},
    process::Process,
    proxy::{Driver, ProxyBuilder},
    tls::{Mesh, peer_authentication},
    upstream::{Received, Upstream, response},
    wait,
};
use tempfile::TempDir;

on_both_drivers! {
    two_sidecars_leave_their_records_to_the_kernel
    keys_change_under_load_and_every_byte_is_right_whoever_seals_them
}

/// Far above what is relayed before splicing begins.
const LARGE_BYTES: usize = 3_000_000;

/// A proxy with `--ktls CHOICE`, once it has said what the kernel does of TLS.
fn asked(choice: &str) -> (Process, String, TempDir) {
    let dir = TempDir::new().unwrap();
    let mut process = ProxyBuilder::new(dir.path()).arguments(&["--ktls", choice]).spawn();
    let line = process.wait_for_line(" kernel TLS: ");
    (process, line, dir)
}

/// Whether the kernel's TLS takes new keys; `None` where it has no TLS.
fn keys_can_be_updated() -> Option<bool> {
    let (_process, line, _dir) = asked("auto");
    let answers = [("keys can be updated", true), ("keys cannot be updated", false)];
    let answer = answers.iter().find(|(words, _)| line.contains(words)).map(|(_, can)| *can);
    assert!(answer.is_some() || env::var_os("MESHRING_EXPECT_KTLS").is_none(), "{line}");
    if answer.is_none() {
        println!("skipped: {line}");
    }
    answer
}

/// `/LENGTH` is answered with so many bytes; who asks is told in a field, and what was sent comes back behind it.
fn answer(request: &Received) -> Vec<u8> {
    let len = request.target().trim_start_matches('/').parse().unwrap_or(0);
    let caller = request.fields.value("x-forwarded-client-cert").unwrap_or_default();
    response(200, &[("x-caller", caller)], &[body(len as u64, len), request.body.clone()].concat())
}

fn start(driver: Driver, application: &Upstream, choice: &str) -> Mesh {
    let strict = peer_authentication("STRICT", "");
    Mesh::alike(driver, &[application.address()], &[("mode.yaml", &strict)], |proxy| {
        proxy.arguments(&["--ktls", choice])
    })
}

/// Handshakes after which the records are the kernel's, and ours.
fn ran(mesh: &Mesh, metric: &str, of: &str) -> [i64; 2] {
    ["kernel", "userspace"].map(|records| {
        mesh.control.metric(&format!("meshring_{metric}_tls_handshakes_total"), &format!("{of},records=\"{records}\""))
    })
}

fn two_sidecars_leave_their_records_to_the_kernel(driver: Driver) {
    if keys_can_be_updated().is_none() {
        return;
    }
    let application = Upstream::answering(answer);
    let mesh = start(driver, &application, "on");
    let mut client = mesh.client.connect();
    let small = client.get("reviews", "/5");
    assert_same_bytes(&small.expect(200).body, &body(5, 5));
    let caller = small.fields.value("x-caller").unwrap();
    assert!(caller.ends_with(&format!("URI={}", spiffe("client"))), "{caller}");

    // Down, and up and down.
    let large = client.get("reviews", &format!("/{LARGE_BYTES}"));
    assert_same_bytes(&large.expect(200).body, &body(LARGE_BYTES as u64, LARGE_BYTES));
    let data = body(7, LARGE_BYTES);
    let length = LARGE_BYTES.to_string();
    client.send(request("POST", "reviews", "/0", &[("content-length", &length)])).send(&data);
    assert_same_bytes(&client.response().expect(200).body, &data);
    // All but the beginning of each, on both sides.
    for workload in ["default/reviews-v1", "default/client"] {
        let spliced = mesh.control.metric("meshring_spliced_bytes_total", workload);
        assert!(spliced as usize > LARGE_BYTES / 2 * 5, "{workload}: {spliced} bytes of three times {LARGE_BYTES}");
    }
    // And the connection goes on.
    assert_same_bytes(&client.get("reviews", "/6").expect(200).body, &body(6, 6));

    let listener = format!("listener=\"inbound {}={}\"", mesh.inbound(), application.address());
    let cluster = "cluster=\"outbound|9080||reviews.default.svc.cluster.local\"";
    wait::until("the statistics of the listener", || (ran(&mesh, "listener", &listener)[0] > 0).then_some(()));
    let (accepted, made) = (ran(&mesh, "listener", &listener), ran(&mesh, "cluster", cluster));
    assert!(accepted[1] == 0 && made[0] > 0 && made[1] == 0, "[kernel, userspace]: {accepted:?}, {made:?}");
    let shown = mesh.control.meshring(&["top", "--once", "--interval", "10ms"]).expect(0).stdout.clone();
    let line = shown.lines().find(|line| line.contains(&format!("inbound {}", mesh.inbound())));
    let figures: Vec<_> = line.unwrap_or_else(|| panic!("{shown}")).split_whitespace().rev().skip(1).take(2).collect();
    assert_eq!(figures, ["0".to_owned(), accepted[0].to_string()], "userspace, kernel in {shown}");
}

/// Of the responses to the load: two records.
const LOAD_BODY_BYTES: usize = 20_000;

/// Drill 29: without kernel TLS, and with one that takes no new keys.
fn keys_change_under_load_and_every_byte_is_right_whoever_seals_them(driver: Driver) {
    if !is_installed("openssl") {
        return;
    }
    let _alone = alone();
    let kernel = keys_can_be_updated();
    // Userspace takes them anyway.
    let can_update = kernel.unwrap_or(true);
    let application = Upstream::answering(answer);
    let choice = if kernel.is_some() { "on" } else { "auto" };
    let mesh = start(driver, &application, choice);
    let expected = body(LOAD_BODY_BYTES as u64, LOAD_BODY_BYTES);
    let target = format!("/{LOAD_BODY_BYTES}");
    // What is emulated is too slow for a load: there requests come between the changes of keys.
    let load = kernel.is_none().then(|| {
        let url = format!("http://{}{target}", mesh.client.outbound());
        let hash = sha256(&expected);
        let arguments = ["--header", "host: reviews", "--connections", "8", "--body-sha256", &hash];
        let load = Paced::start(&url, DRILL_PER_S, &arguments);
        mesh.wait_for_metric_above("downstream_requests_total", 20);
        load
    });
    let mut client = mesh.client.connect();
    let mut ask = || assert_same_bytes(&client.get("reviews", &target).expect(200).body, &expected);
    ask();
    let dir = TempDir::new().unwrap();
    let (certificate, key) = mesh.authority.issue(&Leaf::workload("visitor")).write(dir.path(), "visitor");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-tls1_3", "-connect", &mesh.inbound().to_string()]);
    let (root, _) = mesh.authority.write(dir.path(), "root");
    command.arg("-cert").arg(&certificate).arg("-key").arg(&key).arg("-CAfile").arg(&root);
    let mut session = Session::start(&mut command);
    let mut answers = 0;
    // `K` changes both directions' keys, `k` those of what it sends only.
    let commands: &[&str] = if can_update { &["", "k\n", "K\n", "K\n", "k\n"] } else { &[""] };
    for command in commands {
        session.say(command);
        if !command.is_empty() {
            session.wait_for("KEYUPDATE", answers);
        }
        session.say("GET /0 HTTP/1.1\r\nhost: reviews\r\n\r\n");
        answers += 1;
        session.wait_for("HTTP/1.1 200", answers);
        ask();
    }
    if !can_update {
        // Nothing behind the new key can be read: the connection ends as TLS connections should, and nothing else does.
        session.say("K\n");
        let said = session.wait_for("closed", 1);
        assert!(session.wait_for_exit().success() && !said.contains("alert") && !said.contains("error:"), "{said}");
        mesh.get("reviews", "/5").expect(200);
    }
    ask();
    if let Some(load) = load {
        mesh.wait_for_metric_above(
            "downstream_requests_total",
            mesh.server_metric("downstream_requests_total") + 1_000,
        );
        assert_loaded(load.finish());
    }
    let listener = format!("listener=\"inbound {}={}\"", mesh.inbound(), application.address());
    let mut accepted = ran(&mesh, "listener", &listener);
    if kernel.is_none() {
        accepted.reverse();
    }
    assert!(accepted[0] > 0 && accepted[1] == 0, "those who were to seal, and the others: {accepted:?}");
}

#[test]
fn ktls_on_is_refused_by_name_and_reason_where_the_kernel_has_none() {
    let (mut proxy, said, _dir) = asked("on");
    // Another witness than the proxy's own probe, which has loaded the module if it can be.
    let protocols = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap_or_default();
    if protocols.split_whitespace().any(|name| name == "tls") {
        assert!(said.contains("TLS 1.3 AES"), "{said}");
        assert_eq!(proxy.try_exit(), None, "{}", proxy.output());
        return;
    }
    assert_eq!(proxy.wait_for_exit().code(), Some(1), "{}", proxy.output());
    let why = proxy.wait_for_line("--ktls on: kernel TLS: ");
    let reasons =
        ["tls module not loaded (ENOENT)", "refused, by a seccomp profile or a sandbox", "none of the ciphers"];
    assert!(reasons.iter().any(|reason| why.contains(reason)), "{why}");
    // Nobody has to have it.
    let (mut proxy, said, _dir) = asked("auto");
    assert!(reasons.iter().any(|reason| said.contains(reason)), "{said}");
    assert_eq!(proxy.try_exit(), None, "{}", proxy.output());
}
