//! Certificates as operators and proxies meet them: a real control process, its command line, and fake proxies.

#![allow(clippy::unwrap_used, reason = "a failure here is the failure of a test")]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use common::{FakeProxy, Manner, Node, until};
use meshring_core::{
    identity::{Material, OWN},
    link::JoinToken,
};
use serde_json::Value;

const WORKLOADS: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1}
spec: {address: 10.0.0.1, serviceAccount: reviews}
";

fn node(flags: &[&str]) -> Node {
    let mut node = Node::new(&[("workloads.yaml", WORKLOADS)]);
    node.flags = flags.iter().map(ToString::to_string).collect();
    node.start();
    node
}

fn certs(node: &Node) -> Value {
    node.json(&["certs", "-o", "json"])
}

fn identity<'a>(certs: &'a Value, workload: &str) -> &'a Value {
    let items = certs["identities"].as_array().unwrap();
    items.iter().find(|item| item["workload"] == workload).unwrap_or(&Value::Null)
}

fn own(proxy: &FakeProxy) -> Material {
    proxy.given().last(OWN).unwrap().clone()
}

fn installed(node: &Node, workload: &str) {
    until("the identity is installed", || identity(&certs(node), workload)["state"] == "installed");
}

fn openssl(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
    let (stdout, stderr) = common::texts(&output);
    (output.status.success(), stdout + &stderr)
}

fn pem(ders: &[Vec<u8>]) -> String {
    ders.iter().map(|der| meshring_ctl::ca::pem::of_certificate(der)).collect()
}

/// Whether `verifier` takes `peer`, as OpenSSL sees it. Whatever the time is: certificates of 10 s are looked at later.
fn trusts(verifier: &Material, peer: &Material) -> bool {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("roots"), pem(&verifier.bundles[0].roots)).unwrap();
    fs::write(dir.path().join("leaf"), pem(&peer.chain[..1])).unwrap();
    fs::write(dir.path().join("above"), pem(&peer.chain)).unwrap();
    openssl(
        dir.path(),
        &["verify", "-x509_strict", "-no_check_time", "-CAfile", "roots", "-untrusted", "above", "leaf"],
    )
    .0
}

#[test]
fn a_proxy_gets_its_identity_and_the_command_line_tells_it() {
    let node = node(&[]);
    let proxy = FakeProxy::connect(&node, "reviews-v1");
    installed(&node, "reviews-v1");
    let material = own(&proxy);
    assert_eq!((material.chain.len(), material.bundles.len()), (2, 1));
    assert_eq!(material.bundles[0].trust_domain, "cluster.local");
    assert!(trusts(&material, &material));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("leaf"), pem(&material.chain[..1])).unwrap();
    let (_, text) = openssl(dir.path(), &["x509", "-in", "leaf", "-noout", "-text", "-serial"]);
    assert!(text.contains("URI:spiffe://cluster.local/ns/default/sa/reviews\n"), "{text}");
    let all = certs(&node);
    let item = identity(&all, "reviews-v1");
    let serial = item["serial"].as_str().unwrap().to_uppercase();
    assert!(text.contains(&format!("serial={serial}")), "{serial}: {text}");
    assert_eq!(item["identity"], "spiffe://cluster.local/ns/default/sa/reviews");
    assert_eq!(item["not_after_s"].as_u64().unwrap(), material.not_after_s);
    let root = all["authority"].as_array().unwrap().iter().find(|item| item["role"] == "root").unwrap();
    assert_eq!(item["root"], root["fingerprint"]);
    // For people, and for tools that need the roots.
    let table = node.ok(&["certs"]);
    for expected in ["trust domain cluster.local", "no root is being replaced", "default/reviews-v1", "installed"] {
        assert!(table.contains(expected), "{expected}\n{table}");
    }
    let id = item["identity"].as_str().unwrap();
    for command in [&["proxies"][..], &["proxies", "-o", "json"], &["top", "--once", "--interval", "10ms"]] {
        let shown = node.ok(command);
        assert!(shown.contains(id), "{command:?}: {shown}");
    }
    assert_eq!(node.ok(&["certs", "bundle"]), pem(&material.bundles[0].roots));
    assert!(!all.to_string().contains("PRIVATE") && !node.log().contains("PRIVATE"));
    let metrics = metrics(&node);
    let labels = format!(
        "{{proxy=\"default/reviews-v1\",pid=\"{}\",spiffe_id=\"{}\"}}",
        std::process::id(),
        item["identity"].as_str().unwrap()
    );
    assert!(labels.contains("spiffe://cluster.local/ns/default/sa/"), "{labels}");
    let value = |name: &str| {
        let line =
            metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.trim().parse::<i64>().unwrap()
    };
    let left_s = value(&format!("meshring_certificate_expiry_seconds{labels}"));
    assert!((86_300..=86_400).contains(&left_s), "{left_s}");
    assert_eq!(value(&format!("meshring_proxy_identity_installed{labels}")), 1);
    assert_eq!(value("meshring_certificates_issued_total "), 1);
    assert_eq!(value("meshring_certificate_rotations_total "), 0);
    assert_eq!(value("meshring_certificate_issue_failures_total "), 0);
    assert!(metrics.contains("meshring_ca_certificate_expiry_seconds{role=\"root\",state=\"issuing\""), "{metrics}");
}

fn metrics(node: &Node) -> String {
    use std::io::{Read as _, Write as _};
    let mut socket = std::os::unix::net::UnixStream::connect(node.run_dir().join("control.sock")).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn no_key_is_on_the_disk_but_the_authoritys_own_which_others_cannot_read() {
    let node = node(&[]);
    let proxies: Vec<_> = (0..3).map(|n| FakeProxy::connect(&node, &format!("w{n}"))).collect();
    (0..3).for_each(|n| installed(&node, &format!("w{n}")));
    let mut files = Vec::new();
    walk(&node.run_dir(), &mut files);
    assert!(files.iter().any(|path| path.ends_with("ca/authority.json")), "{files:?}");
    for path in &files {
        let Ok(content) = fs::read(path) else { continue };
        for proxy in &proxies {
            let key = own(proxy).key;
            // The private number itself: 32 bytes behind a fixed head of 36 in this form of PKCS #8.
            let secret = &key[36..68];
            let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            let text = String::from_utf8_lossy(&content).to_lowercase();
            assert!(!content.windows(32).any(|window| window == secret), "{}", path.display());
            assert!(!text.contains(&hex), "{}", path.display());
        }
        if path.starts_with(node.run_dir().join("ca")) {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
    }
}

fn walk(dir: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            walk(&entry.path(), files);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
}

#[test]
fn identities_are_rotated_at_half_life_and_overlap() {
    let node = node(&["--svid-lifetime", "10s"]);
    let proxy = FakeProxy::connect(&node, "reviews-v1");
    let begin = Instant::now();
    until("three certificates", || proxy.given().materials.len() >= 3);
    assert!(begin.elapsed() >= Duration::from_secs(7), "too early: {:?}", begin.elapsed());
    let given = proxy.given().materials;
    for pair in given.windows(2) {
        let [earlier, later] = pair else { unreachable!() };
        assert_ne!(earlier.key, later.key, "the key is replaced, too");
        assert!((2..=8).contains(&(later.not_after_s - earlier.not_after_s)), "{given:?}");
        assert_eq!(earlier.bundles, later.bundles);
    }
}

#[test]
fn a_refused_identity_is_tried_again_and_told() {
    let node = node(&[]);
    let proxy = FakeProxy::connect(&node, "reviews-v1");
    installed(&node, "reviews-v1");
    proxy.refuse_materials(Some("out of memory"));
    node.ok(&["certs", "rotate-root"]);
    until("the refusal is told", || identity(&certs(&node), "reviews-v1")["state"] == "refused");
    let text = node.ok(&["certs"]);
    assert!(
        text.contains("out of memory") && text.contains("it will issue when these have it: default/reviews-v1"),
        "{text}"
    );
    proxy.refuse_materials(None);
    installed(&node, "reviews-v1");
}

#[test]
fn a_root_is_replaced_in_steps_that_no_proxy_is_lost_in() {
    let mut node = node(&["--svid-lifetime", "10s"]);
    let proxies = [FakeProxy::connect(&node, "a"), FakeProxy::connect(&node, "b")];
    ["a", "b"].iter().for_each(|name| installed(&node, name));
    let old = own(&proxies[0]);
    // One that does not take the new bundle holds the switch up.
    proxies[1].refuse_materials(Some("busy"));
    node.ok(&["certs", "rotate-root"]);
    let both = |proxy: &FakeProxy| own(proxy).bundles[0].roots.len() == 2;
    until("the first has both roots", || both(&proxies[0]));
    let refused = node.refused(&["certs", "rotate-root"]);
    assert!(refused.contains("already"), "{refused}");
    assert!(trusts(&old, &own(&proxies[0])), "the old root issues until everybody has the new one");
    assert_eq!(certs(&node)["rotation"]["step"], "prepared");
    // Control goes down in the middle of it; proxies come back to its successor.
    drop(proxies);
    node.kill();
    node.start();
    assert_eq!(certs(&node)["rotation"]["step"], "prepared");
    let proxies = [FakeProxy::connect(&node, "a"), FakeProxy::connect(&node, "b")];
    until("the new root issues", || certs(&node)["rotation"]["step"] == "draining");
    let switched = |proxy: &FakeProxy| proxy.given().last(OWN).is_some_and(|has| !trusts(&old, has));
    until("both have a certificate of it", || proxies.iter().all(switched));
    assert!(trusts(&own(&proxies[0]), &old), "the old root is trusted as long as it is in use");
    until("the old root leaves", || certs(&node)["rotation"]["step"] == "steady");
    until("at the proxies, too", || proxies.iter().all(|proxy| own(proxy).bundles[0].roots.len() == 1));
    assert!(!trusts(&own(&proxies[0]), &old));
    assert!(trusts(&own(&proxies[0]), &own(&proxies[1])));
    let never_apart = proxies.iter().flat_map(|proxy| proxy.given().materials);
    assert!(never_apart.into_iter().all(|material| trusts(&material, &material)));
}

#[test]
fn a_restarted_control_gives_a_certificate_of_the_same_root() {
    let mut node = node(&[]);
    let proxy = FakeProxy::connect(&node, "reviews-v1");
    installed(&node, "reviews-v1");
    let before = own(&proxy);
    drop(proxy);
    node.kill();
    node.start();
    let proxy = FakeProxy::connect(&node, "reviews-v1");
    installed(&node, "reviews-v1");
    assert_eq!(own(&proxy).bundles, before.bundles);
    assert!(trusts(&before, &own(&proxy)));
}

#[test]
fn who_may_not_have_an_identity_gets_its_tables_and_the_reason() {
    let node = node(&[]);
    let connect = |workload: &str, account: Option<&str>, token: Option<String>| {
        FakeProxy::with(&node, workload, Manner::Accept, |hello| {
            hello.service_account = account.map(str::to_owned);
            hello.join_token = token.map(JoinToken);
        })
    };
    let denied = |proxy: &FakeProxy, reason: &str| {
        until("it is denied", || proxy.given().denied.is_some());
        let given = proxy.given();
        assert!(given.denied.as_ref().unwrap().contains(reason), "{given:?}");
        assert!(given.materials.is_empty());
        until("it has its tables", || proxy.runs() == [1, 1]);
    };
    let liar = connect("reviews-v1", Some("admin"), None);
    denied(&liar, "the configuration says reviews");
    let state = certs(&node);
    assert_eq!(identity(&state, "reviews-v1")["state"], "denied", "{state}");
    drop(liar);
    denied(&connect("other", None, Some("guess".into())), "unknown");
    let token = node.ok(&["certs", "token", "--for", "default/reviews"]);
    assert!(!node.log().contains(token.trim()) && !certs(&node).to_string().contains(token.trim()));
    denied(&connect("other", None, Some(token.clone())), "is for service account default/reviews");
    // For the right one it is good, again and again.
    for _ in 0..2 {
        let proxy = connect("reviews-v1", None, Some(token.clone()));
        installed(&node, "reviews-v1");
        drop(proxy);
    }
    let listed = certs(&node)["tokens"][0].clone();
    assert_eq!((listed["account"].as_str(), listed["uid"].as_u64().is_some()), (Some("default/reviews"), true));
    node.ok(&["certs", "token", "--revoke", listed["id"].as_str().unwrap()]);
    denied(&connect("reviews-v1", None, Some(token)), "unknown");
    for (arguments, reason) in [
        (["certs", "token", "--for", "default"].as_slice(), "NAMESPACE/SERVICE-ACCOUNT"),
        (&["certs", "token", "--for", "a/b/c"], "cannot be an identity"),
        (&["certs", "token", "--for", "a/b", "--ttl", "60d"], "seconds"),
        (&["certs", "token", "--revoke", "00000000"], "there is no join token"),
    ] {
        let said = node.refused(arguments);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    // What the configuration learns later counts at once.
    let later = connect("late", Some("one"), None);
    until("it has an identity", || later.given().last(OWN).is_some());
    node.write(
        "late.yaml",
        &WORKLOADS.replace("reviews-v1", "late").replace("serviceAccount: reviews", "serviceAccount: two"),
    );
    until("it is told", || later.given().denied.is_some());
}

#[test]
fn an_unusable_ca_stops_the_start_with_the_file_and_the_reason() {
    let node = Node::new(&[("workloads.yaml", WORKLOADS)]);
    let (dir, config, run) = (node.path(""), node.config(), node.run_dir());
    let make = |name: &str| {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"];
        let subject = format!("/O=Example/CN={name}");
        let arguments: Vec<&str> = new
            .into_iter()
            .chain(["-keyout", &key, "-out", &certificate, "-subj", &subject])
            // RFC 5280 asks for it, OpenSSL leaves it out of its own accord and refuses it with -x509_strict.
            .chain(["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
            .collect();
        assert!(openssl(&dir, &arguments).0);
    };
    make("one");
    make("two");
    let start = |certificate: &str, key: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshring"));
        command.arg("control").arg("--config").arg(&config).arg("--run-dir").arg(&run);
        command.arg("--ca-cert").arg(dir.join(certificate)).arg("--ca-key").arg(dir.join(key));
        common::texts(&command.output().unwrap()).1
    };
    let said = start("one.pem", "two.key");
    assert!(said.contains("two.key: the key does not belong to the certificate"), "{said}");
    let said = start("none.pem", "two.key");
    assert!(said.contains("none.pem: No such file"), "{said}");
    let mut node = node;
    node.flags = ["--ca-cert", "one.pem", "--ca-key", "one.key"]
        .map(|flag| if flag.starts_with("--") { flag.to_owned() } else { dir.join(flag).display().to_string() })
        .to_vec();
    node.start();
    let proxy = FakeProxy::connect(&node, "reviews-v1");
    installed(&node, "reviews-v1");
    assert_eq!(pem(&own(&proxy).bundles[0].roots), fs::read_to_string(dir.join("one.pem")).unwrap());
    assert!(trusts(&own(&proxy), &own(&proxy)));
    let said = node.refused(&["certs", "rotate-root"]);
    assert!(said.contains("--ca-chain"), "{said}");
    assert!(!run.join("ca/authority.json").exists());
}

#[test]
fn credentials_of_the_table_reach_the_proxies_change_with_their_files_and_are_forgotten() {
    let node = Node::new(&[("shop.yaml", common::SHOP)]);
    let dir = node.path("");
    let make = |name: &str| {
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"];
        let subject = format!("/CN={name}");
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let arguments: Vec<&str> =
            new.into_iter().chain(["-keyout", &key, "-out", &certificate, "-subj", &subject]).collect();
        assert!(openssl(&dir, &arguments).0);
    };
    ["one", "two"].iter().for_each(|name| make(name));
    let put = |from: &str, to: &str| {
        fs::copy(dir.join(from), dir.join(".new")).unwrap();
        fs::rename(dir.join(".new"), dir.join(to)).unwrap();
    };
    put("one.pem", "tls.crt");
    put("one.key", "tls.key");
    let path = |name: &str| dir.join(name).display().to_string();
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews}}\nspec:\n  host: reviews\n  \
         trafficPolicy:\n    tls:\n      mode: MUTUAL\n      clientCertificate: {}\n      privateKey: {}\n      caCertificates: {}\n  \
         subsets:\n  - name: v1\n    labels: {{version: v1}}\n  - name: v2\n    labels: {{version: v2}}\n",
        path("tls.crt"),
        path("tls.key"),
        path("one.pem")
    );
    let plain = common::SHOP;
    let with = format!("{}---\n{rule}", plain.split("---\napiVersion: networking").next().unwrap());
    node.write("shop.yaml", &with);
    let mut node = node;
    node.start();
    let name = format!("file:{}:{}:{}", path("tls.crt"), path("tls.key"), path("one.pem"));
    let proxy = FakeProxy::connect(&node, "reviews-v1");
    until("the credential is there", || proxy.given().last(&name).is_some());
    let leaf = |proxy: &FakeProxy| pem(&proxy.given().last(&name).unwrap().chain);
    let text = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
    assert_eq!(leaf(&proxy), text("one.pem"));
    let item = || certs(&node)["credentials"][0].clone();
    until("it is installed", || item()["installed"] == 1);
    // Half of a change is no change.
    put("two.pem", "tls.crt");
    until("the mismatch is told", || item()["state"] == "outdated");
    let told = node.ok(&["certs"]);
    assert!(told.contains("tls.key: the key does not belong to the certificate"), "{told}");
    assert_eq!(leaf(&proxy), text("one.pem"));
    put("two.key", "tls.key");
    until("the new one is there", || leaf(&proxy) == text("two.pem"));
    until("all is well", || item()["state"] == "ok" && item()["installed"] == 1);
    // A proxy that comes later gets it, too.
    let second = FakeProxy::connect(&node, "other");
    until("the second has it", || second.given().last(&name).is_some());
    node.write("shop.yaml", plain);
    until("it is forgotten", || proxy.given().forgotten == [name.clone()]);
    until("it is not listed", || certs(&node)["credentials"].as_array().unwrap().is_empty());
}
