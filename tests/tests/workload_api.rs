//! The SPIFFE Workload API as others see it: grpcio and the SPIFFE project's Python library (`tests/judges/workload.py`) are the
//! clients, openssl judges what they got, and for `--spire-socket` a stand-in for a SPIRE agent made of the same parts is the server.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use meshring_tests::{
    binaries,
    client::Client,
    load::{self, Load},
    pki::spiffe,
    process::Process,
    proxy::Driver,
    tls::{Mesh as Sidecars, peer_authentication},
    upstream::Upstream,
    wait,
};
use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: reviews-vm
  namespace: shop
  annotations:
    meshring.io/unix-uid: \"UID\"
spec:
  address: 127.0.0.1
  serviceAccount: reviews
";

/// The interpreter that `.ci/setup gate` has put grpcio and the SPIFFE library into.
fn python() -> Option<PathBuf> {
    let test = env::current_exe().expect("the path of the running test");
    let found = test.ancestors().map(|dir| dir.join("judges/bin/python")).find(|python| python.is_file());
    let found = found.filter(|python| {
        Command::new(python).args(["-c", "import grpc, spiffe"]).stderr(Stdio::null()).status().unwrap().success()
    });
    if found.is_none() {
        binaries::tool_is_missing("no grpcio and spiffe for Python; `.ci/setup gate` installs them");
    }
    found
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

struct Mesh {
    control: Process,
    dir: TempDir,
    python: PathBuf,
}

impl Mesh {
    /// Control with a workload that is annotated with `uid`, and these arguments.
    fn start(python: PathBuf, uid: u32, arguments: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        // Other users get as far as the socket, and no further.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        fs::write(dir.path().join("config/w.yaml"), CONFIG.replace("UID", &uid.to_string())).unwrap();
        let mut command = Command::new(binaries::path("meshring"));
        command.arg("control").arg("--config").arg(dir.path().join("config"));
        command.arg("--run-dir").arg(dir.path().join("run"));
        command.arg("--workload-api").arg(dir.path().join("api.sock"));
        command.args(arguments).env_remove("MESHRING_RUN_DIR");
        let control = Process::start("meshring control", &mut command);
        let mesh = Self { control, dir, python };
        wait::until("the Workload API's socket", || mesh.socket().exists().then_some(()));
        mesh
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn judge(&self, arguments: &[&str]) -> Vec<Value> {
        let mut command = judge(&self.python, arguments);
        let output = command.output().unwrap();
        let lines = lines(&output);
        assert!(output.status.success(), "{lines:?} {}", String::from_utf8_lossy(&output.stderr));
        lines
    }
}

fn judge(python: &Path, arguments: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("judges/workload.py");
    let mut command = Command::new(python);
    command.arg(script).args(arguments).stdin(Stdio::null());
    command
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// openssl takes the chain of a message, as a strict client and as a strict server would.
fn verify(dir: &Path, number: usize) {
    let file = |name: &str| dir.join(format!("{number}-{name}.pem"));
    for purpose in ["sslclient", "sslserver"] {
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]).arg(file("bundle"));
        if fs::metadata(file("intermediates")).unwrap().len() > 0 {
            command.arg("-untrusted").arg(file("intermediates"));
        }
        let output = command.arg(file("leaf")).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{purpose}: {}", String::from_utf8_lossy(&said));
    }
}

fn codes(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["code"].as_str().unwrap()).collect()
}

#[test]
fn a_foreign_client_gets_an_identity_and_sees_it_rotate() {
    let Some(python) = python() else { return };
    let mesh = Mesh::start(python, own_uid(), &["--svid-lifetime", "10s"]);
    let (socket, dir) = (mesh.socket(), mesh.dir.path().join("got"));
    fs::create_dir(&dir).unwrap();
    let seen = mesh.judge(&["watch", socket.to_str().unwrap(), dir.to_str().unwrap(), "2"]);
    assert_eq!(seen.len(), 2, "{seen:?}");
    for (number, message) in seen.iter().enumerate() {
        assert_eq!(message["ids"], serde_json::json!(["spiffe://cluster.local/ns/shop/sa/reviews"]));
        assert_eq!(message["key_fits"], true);
        if number == 1 {
            // The first one may have expired while this machine was busy.
            verify(&dir, number);
        }
    }
    assert_ne!(seen[0]["serial"], seen[1]["serial"]);
}

#[test]
fn the_spiffe_library_understands_certificates_and_tokens() {
    let Some(python) = python() else { return };
    let flag = format!("{}=shop/ratings", own_uid());
    let mesh = Mesh::start(python, own_uid(), &["--workload-uid", &flag]);
    let seen = mesh.judge(&["library", mesh.socket().to_str().unwrap(), "till"]).remove(0);
    // The flag's identity is the default, the annotation's comes behind it.
    let ratings = "spiffe://cluster.local/ns/shop/sa/ratings";
    assert_eq!(seen["id"], ratings, "{seen}");
    assert_eq!(seen["roots"], 1);
    assert!(seen["chain"].as_u64().unwrap() >= 1);
    assert_eq!(seen["tokens"], serde_json::json!([ratings, "spiffe://cluster.local/ns/shop/sa/reviews"]));
    assert_eq!((&seen["own"], &seen["judged"]), (&Value::from(ratings), &Value::from(ratings)));
    assert!(seen["foreign"].as_str().unwrap().contains("another audience"), "{seen}");
}

#[test]
fn users_without_a_binding_are_denied_even_root_and_our_own() {
    let Some(python) = python() else { return };
    let mesh = Mesh::start(python, 54321, &[]);
    let socket = mesh.socket();
    let denied = mesh.judge(&["status", socket.to_str().unwrap(), "true"]);
    assert_eq!(codes(&denied), ["PERMISSION_DENIED"; 5], "{denied:?}");
    assert!(denied[0]["details"].as_str().unwrap().contains(&format!("user id {}", own_uid())));
    if own_uid() != 0 {
        println!("skipped: only root can become somebody else");
        return;
    }
    let other = mesh.judge(&["--uid", "54322", "status", socket.to_str().unwrap(), "true"]);
    assert_eq!(codes(&other), ["PERMISSION_DENIED"; 5], "{other:?}");
    let bound = mesh.judge(&["--uid", "54321", "status", socket.to_str().unwrap(), "true"]);
    assert_eq!(codes(&bound), ["OK", "OK", "OK", "OK", "INVALID_ARGUMENT"], "{bound:?}");

    // The configuration changes, and with it who is who.
    fs::write(mesh.dir.path().join("config/w.yaml"), CONFIG.replace("UID", "54322")).unwrap();
    wait::until("the other user's binding", || {
        let other = mesh.judge(&["--uid", "54322", "status", socket.to_str().unwrap(), "true"]);
        (codes(&other)[0] == "OK").then_some(())
    });
    let before = mesh.judge(&["--uid", "54321", "status", socket.to_str().unwrap(), "true"]);
    assert_eq!(codes(&before), ["PERMISSION_DENIED"; 5], "{before:?}");
}

#[test]
fn without_the_security_header_nothing_is_told() {
    let Some(python) = python() else { return };
    let mesh = Mesh::start(python, own_uid(), &[]);
    for header in ["", "false", "TRUE"] {
        let refused = mesh.judge(&["status", mesh.socket().to_str().unwrap(), header]);
        assert_eq!(codes(&refused), ["INVALID_ARGUMENT"; 5], "{header}: {refused:?}");
        assert!(refused[0]["details"].as_str().unwrap().contains("workload.spiffe.io"), "{refused:?}");
    }
}

/// A stand-in for a SPIRE agent, which serves these identities.
fn agent(python: &Path, socket: &str, life_s: &str, ids: [&str; 2]) -> Process {
    let mut agent = Process::start("agent", &mut judge(python, &["agent", socket, life_s, ids[0], ids[1]]));
    agent.wait_for_line("serves");
    agent
}

/// grpcio -> our server -> our client -> an agent of grpcio. The agent signs; we hand on.
#[test]
fn identities_of_an_external_agent_reach_applications_and_outlive_it() {
    let Some(python) = python() else { return };
    let dir = TempDir::new().unwrap();
    let agent_socket = dir.path().join("agent.sock");
    let agent_socket = agent_socket.to_str().unwrap();
    let ids = ["spiffe://cluster.local/ns/shop/sa/reviews", "spiffe://cluster.local/ns/shop/sa/ratings"];
    let start = || agent(&python, agent_socket, "600", ids);
    let mut agent = start();
    let mut mesh = Mesh::start(python.clone(), own_uid(), &["--spire-socket", agent_socket]);
    mesh.control.wait_for_line("2 identities");
    let got = mesh.dir.path().join("got");
    fs::create_dir(&got).unwrap();
    let watch =
        |mesh: &Mesh| mesh.judge(&["watch", mesh.socket().to_str().unwrap(), got.to_str().unwrap(), "1"]).remove(0);
    let first = watch(&mesh);
    assert_eq!(first["ids"], serde_json::json!([ids[0]]), "only what the user is bound to");
    verify(&got, 0);

    agent.kill();
    mesh.control.wait_for_line("stays in use");
    assert_eq!(watch(&mesh)["serial"], first["serial"], "the last good one is not in use");

    fs::remove_file(agent_socket).unwrap_or_default();
    let _agent = start();
    wait::until("the new agent's certificate", || (watch(&mesh)["serial"] != first["serial"]).then_some(()));
    verify(&got, 0);
}

/// Serial numbers of the two sidecars' certificates, installed and not, by service account.
fn serials(sidecars: &Sidecars) -> [Option<String>; 2] {
    let certs = sidecars.control.api("/v1/certs");
    ["client", "reviews"].map(|account| {
        let mut identities = certs["identities"].as_array().unwrap().iter();
        let item = identities.find(|item| item["identity"] == spiffe(account) && item["state"] == "installed")?;
        item["serial"].as_str().map(str::to_owned)
    })
}

/// Two real sidecars whose identities are SPIRE's: mutual TLS between them, while the agent replaces every certificate, and after it has
/// come back with another root.
#[test]
fn sidecars_speak_mutual_tls_on_identities_of_an_external_agent_that_rotates_them() {
    let Some(python) = python() else { return };
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("agent.sock");
    let socket = socket.to_str().unwrap();
    let (client, reviews) = (spiffe("client"), spiffe("reviews"));
    let start = |life_s: &str| agent(&python, socket, life_s, [&client, &reviews]);
    let mut first = start("12");
    let application = Upstream::echoing();
    let mode = peer_authentication("STRICT", "");
    let files = [("mode.yaml", mode.as_str())];
    let sidecars = Sidecars::self_signed(Driver::Auto, &[application.address()], &files, &["--spire-socket", socket]);
    // The client's certificate as the application hears of it: whose it is, and its hash.
    let caller = |client: &mut Client| -> String {
        let text = client.get("reviews", "/").expect(200).text();
        let element = text.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: ")).unwrap().to_owned();
        assert!(element.starts_with(&format!("By={reviews};Hash=")), "{element}");
        assert!(element.ends_with(&format!("URI={}", spiffe("client"))), "{element}");
        element
    };
    let before = caller(&mut sidecars.client.connect());
    // Strangers, plain text or with a certificate of somebody else, have no way in.
    Client::connect(sidecars.inbound()).get("reviews", "/").expect(403);
    let stranger = sidecars.caller(&meshring_tests::pki::Leaf::workload("client"));
    stranger.refused(sidecars.inbound());

    // What the sidecars use is what the agent has issued, not control.
    let old = serials(&sidecars);
    for serial in &old {
        let serial = serial.as_deref().unwrap();
        wait::until("the agent's word", || first.line(&format!("\"serial\": \"{}\"", serial.trim_start_matches('0'))));
    }
    let load = Load::start(
        sidecars.client.outbound(),
        4,
        meshring_tests::client::request("GET", "reviews", "/", &[]),
        load::is_ok,
    );
    load.pass(100);
    let replaced = |old: &[Option<String>; 2]| {
        let now = serials(&sidecars);
        now.iter().zip(old).all(|(now, old)| now.is_some() && now != old).then_some(now)
    };
    wait::until("a second certificate of each", || replaced(&old));
    load.pass(100);
    assert!(load.finish() > 200);
    // The connections of before have gone on; a sidecar that starts now begins with what is new.
    let late = sidecars.control.proxy("default/client").start();
    wait::until("its certificate", || {
        let certs = sidecars.control.api("/v1/certs");
        let installed = certs["identities"].as_array()?.iter().filter(|item| item["state"] == "installed").count();
        (installed == 3).then_some(())
    });
    assert_ne!(caller(&mut late.connect()), before, "the certificate has not changed");
    drop(late);

    // Another root: nothing that the first one has signed is good any more.
    let old = serials(&sidecars);
    first.kill();
    fs::remove_file(socket).unwrap_or_default();
    let second = start("600");
    let new = wait::until("certificates of the new root", || replaced(&old));
    for serial in &new {
        let serial = serial.as_deref().unwrap().trim_start_matches('0');
        wait::until("the new agent's word", || second.line(&format!("\"serial\": \"{serial}\"")));
    }
    let late = sidecars.control.proxy("default/client").start();
    wait::until("a request between certificates of the new root", || {
        (late.connect().get("reviews", "/").status == 200).then_some(())
    });
    caller(&mut late.connect());
}
