//! TLS with programs that others wrote: openssl and curl as clients of a sidecar, openssl as the server that one calls.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use meshring_tests::{
    binaries::is_installed,
    generate::{assert_same_bytes, body},
    on_both_drivers,
    openssl::Session,
    pki::{Authority, Leaf, secret, spiffe},
    ports::Reserved,
    proxy::Driver,
    tls::{Mesh, peer_authentication},
    upstream::{Upstream, response},
    wait,
};
use tempfile::TempDir;

on_both_drivers! {
    curl_talks_to_a_sidecar_and_bytes_are_exact
    openssl_resumes_sessions
    openssl_changes_keys_in_the_middle_of_a_connection
}

/// A mesh that takes mutual TLS only, and files of a client of it.
struct Foreign {
    mesh: Mesh,
    dir: TempDir,
    certificate: PathBuf,
    key: PathBuf,
    root: PathBuf,
}

fn foreign(driver: Driver, application: &Upstream, files: &[(&str, &str)]) -> Foreign {
    let strict = peer_authentication("STRICT", "");
    let files = [&[("mode.yaml", strict.as_str())], files].concat();
    let mesh = Mesh::start(driver, &[application.address()], &files);
    let dir = TempDir::new().unwrap();
    let (certificate, key) = mesh.authority.issue(&Leaf::workload("visitor")).write(dir.path(), "visitor");
    let (root, _) = mesh.authority.write(dir.path(), "root");
    Foreign { mesh, dir, certificate, key, root }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Foreign {
    fn curl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("curl");
        // An SVID has no DNS name: curl is told not to look for one. What openssl thinks of the chain is asked below.
        command.args(["-sS", "--insecure", "--max-time", "20", "-H", "host: reviews"]);
        command.arg("--cert").arg(&self.certificate).arg("--key").arg(&self.key).args(arguments);
        command.output().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.mesh.inbound())
    }

    fn s_client(&self, arguments: &[&str]) -> Session {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &self.mesh.inbound().to_string(), "-cert"]).arg(&self.certificate);
        command.arg("-key").arg(&self.key).arg("-CAfile").arg(&self.root).args(["-verify_return_error"]);
        Session::start(command.args(arguments))
    }
}

fn have(programs: &[&str]) -> bool {
    programs.iter().all(|program| is_installed(program))
}

fn curl_talks_to_a_sidecar_and_bytes_are_exact(driver: Driver) {
    if !have(&["curl", "openssl"]) {
        return;
    }
    let application = Upstream::answering(|request| response(200, &[("x-line", &request.line)], &request.body));
    let foreign = foreign(driver, &application, &[]);
    let data = body(7, 3_000_000);
    let (up, down) = (foreign.dir.path().join("up"), foreign.dir.path().join("down"));
    fs::write(&up, &data).unwrap();
    for coding in ["content-length: 3000000", "transfer-encoding: chunked"] {
        let paths = [up.to_str().unwrap(), "-o", down.to_str().unwrap(), &foreign.url("/file")];
        let arguments = [&["--fail", "--tlsv1.3", "-H", coding, "-T"], &paths[..]].concat();
        let output = foreign.curl(&arguments);
        assert!(output.status.success(), "{coding}: {}", text(&output.stderr));
        assert_same_bytes(&fs::read(&down).unwrap(), &data);
    }
    // Two requests on one connection.
    let output = foreign.curl(&["-w", "%{num_connects}", &foreign.url("/1"), &foreign.url("/2")]);
    assert_eq!(text(&output.stdout), "10", "{}", text(&output.stderr));
    // Without a certificate: the alert is certificate_required.
    let output = Command::new("curl").args(["-sS", "--insecure", "--max-time", "20", &foreign.url("/")]).output();
    let said = text(&output.unwrap().stderr);
    assert!(said.contains("certificate required"), "{said}");
}

/// Runs one request over `openssl s_client`, and returns what it says about the session.
fn one_request(foreign: &Foreign, arguments: &[&str]) -> String {
    one_request_until(foreign, arguments, "HTTP/1.1 200")
}

/// Likewise, and waits for what is in the answer.
fn one_request_until(foreign: &Foreign, arguments: &[&str], answer: &str) -> String {
    let mut session = foreign.s_client(arguments);
    session.say("GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n");
    session.wait_for("HTTP/1.1 200", 1);
    session.wait_for("SSL-Session:", 1);
    session.wait_for(answer, 1)
}

fn mesh_config(least: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         meshMTLS: {{minProtocolVersion: {least}}}\n"
    )
}

fn openssl_resumes_sessions(driver: Driver) {
    if !have(&["openssl"]) {
        return;
    }
    let application = Upstream::echoing();
    let foreign = foreign(driver, &application, &[("mesh.yaml", &mesh_config("TLSV1_2"))]);
    let (other, other_key) = foreign.mesh.authority.issue(&Leaf::workload("other")).write(foreign.dir.path(), "other");
    let session = foreign.dir.path().join("session");
    let file = session.to_str().unwrap();
    for (version, shown) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let _ = fs::remove_file(&session);
        let resumed = foreign.mesh.server_metric("downstream_tls_resumed_total");
        // The chain is what openssl's strictest reading of RFC 5280 takes.
        let first = one_request(&foreign, &[version, "-x509_strict", "-ign_eof", "-sess_out", file]);
        assert!(first.contains(shown) && first.contains("Verification: OK"), "{first}");
        assert!(first.contains("New, "), "{first}");
        wait::until("the session's file", || fs::metadata(&session).ok().filter(|file| file.len() > 0));
        let second = one_request(&foreign, &[version, "-ign_eof", "-sess_in", file]);
        assert!(second.contains("Reused, "), "{version}: not resumed: {second}");
        let resumed = foreign.mesh.wait_for_metric_above("downstream_tls_resumed_total", resumed);
        // For another name it is no session.
        let named = one_request(&foreign, &[version, "-ign_eof", "-sess_in", file, "-servername", "other.example"]);
        assert!(named.contains("New, "), "{version}: resumed for another name: {named}");
        assert_eq!(foreign.mesh.server_metric("downstream_tls_resumed_total"), resumed);
        // Whoever resumes it is who it was made with, and nobody else, whatever certificate it has now.
        let as_other = ["-ign_eof", "-cert", other.to_str().unwrap(), "-key", other_key.to_str().unwrap()];
        let borrowed = one_request_until(&foreign, &[&[version, "-sess_in", file], &as_other[..]].concat(), "URI=");
        assert!(borrowed.contains("Reused, "), "{version}: {borrowed}");
        assert!(borrowed.contains(&format!("URI={}\n", spiffe("visitor"))), "{version}: {borrowed}");
        let own = one_request_until(&foreign, &[&[version], &as_other[..]].concat(), "URI=");
        assert!(own.contains(&format!("URI={}\n", spiffe("other"))), "{version}: {own}");
    }
    // 1.1 and older are not spoken, whatever openssl is made to offer.
    let old = foreign.s_client(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    old.wait_for("alert", 1);
}

fn openssl_changes_keys_in_the_middle_of_a_connection(driver: Driver) {
    if !have(&["openssl"]) {
        return;
    }
    let application = Upstream::echoing();
    let foreign = foreign(driver, &application, &[]);
    let mut session = foreign.s_client(&["-tls1_3"]);
    let mut answers = 0;
    // `K` changes both directions' keys, `k` our sending ones only.
    for command in ["", "k\n", "K\n", "K\n", "k\n"] {
        session.say(command);
        if !command.is_empty() {
            session.wait_for("KEYUPDATE", answers);
        }
        session.say(&format!("GET /{answers} HTTP/1.1\r\nhost: reviews\r\n\r\n"));
        answers += 1;
        session.wait_for("HTTP/1.1 200", answers);
    }
    let text = session.output();
    assert!(text.contains(&format!("URI={}", spiffe("visitor"))), "{text}");
    assert_eq!(application.received().len(), 5);
}

#[test]
fn the_group_and_the_version_are_what_both_sides_like_best() {
    if !have(&["openssl"]) {
        return;
    }
    let application = Upstream::saying("here");
    let foreign = foreign(Driver::Auto, &application, &[]);
    let said = one_request(&foreign, &["-ign_eof"]);
    assert!(said.contains("TLSv1.3"), "{said}");
    let groups = Command::new("openssl").args(["list", "-kem-algorithms"]).output().unwrap();
    if text(&groups.stdout).contains("X25519MLKEM768") {
        assert!(said.contains("X25519MLKEM768"), "{said}");
    } else {
        println!("skipped: this openssl has no X25519MLKEM768");
        assert!(said.contains("X25519"), "{said}");
    }
    // TLS 1.2 between workloads is for those whose MeshConfig does not forbid it.
    assert!(one_request(&foreign, &["-ign_eof", "-tls1_2"]).contains("TLSv1.2"));
    foreign.mesh.change("mesh.yaml", &mesh_config("TLSV1_3"));
    let old = foreign.s_client(&["-tls1_2"]);
    old.wait_for("alert protocol version", 1);
}

// ---- openssl as the server ----------------------------------------------------------------------------------------

fn outside(address: SocketAddr, tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: outside, namespace: default}}
spec:
  hosts: [outside.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
  - address: {}
    ports: {{http: {}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: outside, namespace: default}}
spec:
  host: outside.example.com
  trafficPolicy:
    tls: {{{tls}}}
",
        address.ip(),
        address.port()
    )
}

#[test]
fn a_sidecar_is_a_client_of_an_openssl_server_and_checks_its_name() {
    if !have(&["openssl"]) {
        return;
    }
    let application = Upstream::saying("here");
    let foreign = foreign(Driver::Auto, &application, &[]);
    let dir = foreign.dir.path();
    let outsider = Authority::new("outside");
    let (certificate, key) =
        outsider.issue(&Leaf::server(&["outside.example.com", "other.example.com"])).write(dir, "s");
    let (root, _) = outsider.write(dir, "outside");
    let root = root.display();
    let address = free_address();
    let mut server = server_at(address, &certificate, &key, &["-www"]);
    let failures = || foreign.mesh.control.metric("meshring_upstream_tls_failures_total", "default/client");

    foreign.mesh.change("outside.yaml", &outside(address, &format!("mode: SIMPLE, caCertificates: {root}")));
    let page = foreign.mesh.get("outside.example.com", "/");
    assert!(page.expect(200).text().contains("TLSv1.3"), "{}", page.text());
    assert_eq!(failures(), 0);

    // The name that is asked for is not in the certificate, or is not the one that the rule wants.
    for tls in [
        format!("mode: SIMPLE, caCertificates: {root}, sni: wrong.example.com"),
        format!("mode: SIMPLE, caCertificates: {root}, subjectAltNames: [wrong.example.com]"),
    ] {
        foreign.mesh.change("outside.yaml", &outside(address, &tls));
        let before = failures();
        let response = foreign.mesh.get("outside.example.com", "/");
        let text = response.expect(503).text();
        assert!(text.contains("tls.certificate_wrong"), "{tls}: {text}");
        wait::until("the count of failures", || (failures() > before).then_some(()));
    }
    for tls in [
        format!("mode: SIMPLE, caCertificates: {root}, sni: other.example.com"),
        format!("mode: SIMPLE, caCertificates: {root}, subjectAltNames: [other.example.com]"),
    ] {
        foreign.mesh.change("outside.yaml", &outside(address, &tls));
        foreign.mesh.get("outside.example.com", "/").expect(200);
    }
    // Another authority.
    let mesh_root = foreign.root.display();
    foreign.mesh.change("outside.yaml", &outside(address, &format!("mode: SIMPLE, caCertificates: {mesh_root}")));
    let text = foreign.mesh.get("outside.example.com", "/").expect(503).text();
    assert!(text.contains("tls.certificate_unknown_issuer"), "{text}");
    server.kill();
}

#[test]
fn a_sidecar_shows_its_certificate_to_an_openssl_server_that_wants_one() {
    if !have(&["openssl"]) {
        return;
    }
    let application = Upstream::saying("here");
    let foreign = foreign(Driver::Auto, &application, &[]);
    let dir = foreign.dir.path();
    let outsider = Authority::new("outside");
    let (certificate, key) = outsider.issue(&Leaf::server(&["outside.example.com"])).write(dir, "s");
    let (own, own_key) = outsider.issue(&Leaf::server(&["customer.example.com"])).write(dir, "c");
    let (root, _) = outsider.write(dir, "outside");
    let address = free_address();
    let ca = root.to_str().unwrap();
    let _server =
        server_at(address, &certificate, &key, &["-www", "-Verify", "2", "-verify_return_error", "-CAfile", ca]);

    let mutual = |certificate: &Path, key: &Path| {
        let (certificate, key) = (certificate.display(), key.display());
        outside(
            address,
            &format!("mode: MUTUAL, clientCertificate: {certificate}, privateKey: {key}, caCertificates: {ca}"),
        )
    };
    foreign.mesh.change("outside.yaml", &mutual(&own, &own_key));
    let page = foreign.mesh.get("outside.example.com", "/");
    assert!(page.expect(200).text().contains("TLSv1.3"), "{}", page.text());

    // Without one: the server's alert is told, not a mere end of the connection.
    foreign.mesh.change("outside.yaml", &outside(address, &format!("mode: SIMPLE, caCertificates: {ca}")));
    let failed = foreign.mesh.get("outside.example.com", "/");
    assert!(failed.status == 503 || failed.status == 502, "{} {}", failed.status, failed.text());
    foreign.mesh.change("outside.yaml", &mutual(&own, &own_key));
    foreign.mesh.get("outside.example.com", "/").expect(200);

    // A key that does not fit comes into the files: the pair from before stays in use.
    fs::write(&own_key, fs::read(&key).unwrap()).unwrap();
    wait::until("the outdated credential", || {
        let certs = foreign.mesh.control.api("/v1/certs");
        let outdated = certs["credentials"].as_array()?.iter().any(|item| item["state"] == "outdated");
        outdated.then_some(())
    });
    foreign.mesh.get("outside.example.com", "/").expect(200);
}

#[test]
fn a_certificate_for_others_can_come_from_a_secret_and_theirs_go_unverified() {
    if !have(&["openssl"]) {
        return;
    }
    let application = Upstream::saying("here");
    let foreign = foreign(Driver::Auto, &application, &[]);
    let dir = foreign.dir.path();
    let outsider = Authority::new("outside");
    let (certificate, key) = outsider.issue(&Leaf::server(&["outside.example.com"])).write(dir, "s");
    let (root, _) = outsider.write(dir, "outside");
    let ca = root.to_str().unwrap();
    let address = free_address();
    let server =
        server_at(address, &certificate, &key, &["-www", "-Verify", "2", "-verify_return_error", "-CAfile", ca]);
    let own = outsider.issue(&Leaf::server(&["customer.example.com"]));
    let rule = outside(address, "mode: MUTUAL, credentialName: own");
    let with = |secret: &str| rule.clone() + secret;

    // Until the Secret is there, nothing goes out.
    foreign.mesh.change("outside.yaml", &rule);
    let missing = foreign.mesh.get("outside.example.com", "/");
    assert!(missing.expect(503).text().contains("tls.no_credential"), "{}", missing.text());
    let get = |what: &str| {
        wait::until(what, || {
            let response = foreign.mesh.get("outside.example.com", "/");
            response.text().contains("TLSv1.3").then_some(())
        });
    };
    foreign.mesh.control.write("outside.yaml", &with(&secret("own", &own, Some(&outsider))));
    get("the credential");
    // What the server shows is verified by the Secret's root.
    let strangers = Authority::new("strangers");
    foreign.mesh.control.write("outside.yaml", &with(&secret("own", &own, Some(&strangers))));
    wait::until("the other root", || {
        let response = foreign.mesh.get("outside.example.com", "/");
        response.text().contains("tls.certificate_unknown_issuer").then_some(())
    });
    drop(server);

    // A name and a root that nobody here knows.
    let (certificate, key) = strangers.issue(&Leaf::server(&["other.example.com"])).write(dir, "other");
    let address = free_address();
    let _server = server_at(address, &certificate, &key, &["-www"]);
    for (tls, status) in [
        (format!("mode: SIMPLE, caCertificates: {ca}"), 503),
        ("mode: SIMPLE".to_owned(), 503),
        ("mode: SIMPLE, insecureSkipVerify: true".to_owned(), 200),
        ("mode: SIMPLE, insecureSkipVerify: true, sni: outside.example.com".to_owned(), 200),
    ] {
        foreign.mesh.change("outside.yaml", &outside(address, &tls));
        let response = foreign.mesh.get("outside.example.com", "/");
        assert_eq!(response.status, status, "{tls}: {}", response.text());
        assert!(status == 200 || response.text().contains("tls.certificate_"), "{tls}: {}", response.text());
    }
}

/// An address that was free a moment ago: openssl takes ports that nobody holds only.
fn free_address() -> SocketAddr {
    Reserved::new().address()
}

/// On an address that somebody else may have taken in the meantime: then the test fails with openssl's words.
fn server_at(address: SocketAddr, certificate: &Path, key: &Path, arguments: &[&str]) -> Session {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", &address.to_string(), "-cert"]).arg(certificate);
    command.arg("-key").arg(key).args(arguments);
    let session = Session::start(&mut command);
    session.wait_for("ACCEPT", 1);
    session
}
