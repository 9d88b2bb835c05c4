//! Proxies that run as other users than control: who is let in, by what, and what they cannot see.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
};

use meshring_tests::{
    binaries,
    control::{Control, shop},
    proxy::ProxyBuilder,
    upstream::Upstream,
    wait,
};
use tempfile::TempDir;

/// The user of `default/app`.
const APP: u32 = 54_321;
/// A user about whom the configuration says nothing.
const STRANGER: u32 = 54_322;

const WORKLOADS: &str = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: app, namespace: default, annotations: {meshring.io/unix-uid: \"54321\"}}
spec: {address: 127.0.0.1, serviceAccount: app}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: other, namespace: default}
spec: {address: 127.0.0.1, serviceAccount: other}
";

/// Control with both workloads and a service, in a directory that others can pass through; `None` where this test is not root.
fn control(upstream: &Upstream) -> Option<Control> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become somebody else");
        return None;
    }
    if !binaries::is_installed("setpriv") {
        return None;
    }
    let shop = shop(upstream.address(), upstream.address());
    let control = Control::start(&[("workloads.yaml", WORKLOADS), ("shop.yaml", &shop)]);
    fs::set_permissions(control.dir(), fs::Permissions::from_mode(0o711)).unwrap();
    Some(control)
}

/// Runs a command as another user. The program is opened before: its path may be one that this user cannot reach.
fn as_user(uid: u32) -> [String; 4] {
    let user = format!("--reuid={uid} --regid={uid} --clear-groups");
    let script = format!("exec 9<\"$1\" && shift && exec setpriv {user} /proc/self/fd/9 \"$@\"");
    ["sh".into(), "-c".into(), script, "sh".into()]
}

/// A directory of a user's own.
fn home(uid: u32) -> TempDir {
    let dir = TempDir::new().unwrap();
    chown(dir.path(), Some(uid), Some(uid)).unwrap();
    dir
}

/// A file of a user's own, which nobody else can read.
fn private_file(dir: &Path, uid: u32, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    chown(&path, Some(uid), Some(uid)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn proxy(control: &Control, workload: &str, uid: u32, home: &TempDir) -> ProxyBuilder {
    control.proxy(workload).wrapper(as_user(uid)).state_dir(&home.path().join("state"))
}

/// The SPIFFE ids of the proxies whose certificate is installed.
fn identities(control: &Control) -> Vec<String> {
    let certs = control.api("/v1/certs");
    let installed = certs["identities"].as_array().unwrap().iter().filter(|item| item["state"] == "installed");
    installed.map(|item| item["identity"].as_str().unwrap().to_owned()).collect()
}

fn wait_for_identity(control: &Control, id: &str) {
    wait::until(&format!("the certificate of {id}"), || {
        identities(control).contains(&format!("spiffe://cluster.local/ns/default/sa/{id}")).then_some(())
    });
}

#[test]
fn a_proxy_of_the_workloads_user_is_admitted_and_serves() {
    let upstream = Upstream::saying("here");
    let Some(control) = control(&upstream) else { return };
    let home = home(APP);
    let mut proxy = proxy(&control, "default/app", APP, &home).start();
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.process.pid())).unwrap();
    assert!(status.contains(&format!("Uid:\t{APP}\t{APP}\t{APP}\t{APP}")), "{status}");
    control.wait_for_proxies(1);
    wait_for_identity(&control, "app");
    assert_eq!(proxy.connect().get("reviews", "/").expect(200).text(), "here");

    // It is told of changes, and of a control that comes back.
    let before = control.generation();
    control.write("shop.yaml", &shop(upstream.address(), upstream.address()).replace("9080", "9081"));
    wait::until("another generation", || (control.generation() > before).then_some(()));
    control.wait_for_proxies(1);
    let mut control = control;
    control.restart();
    control.wait_for_proxies(1);
    wait_for_identity(&control, "app");
    assert!(home.path().join("state/last-good.snapshot").exists());
    assert!(proxy.process.try_exit().is_none());
}

#[test]
fn a_proxy_of_another_user_is_refused_and_told_what_it_lacks() {
    let upstream = Upstream::saying("here");
    let Some(control) = control(&upstream) else { return };
    let home = home(STRANGER);
    for workload in ["default/app", "default/other", "default/unlisted"] {
        let mut proxy = proxy(&control, workload, STRANGER, &home).spawn();
        let line = proxy.wait_for_line("control rejects this proxy");
        for part in [&STRANGER.to_string(), &format!("annotate {workload} with meshring.io/unix-uid"), "--join-token"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    assert_eq!(control.api("/v1/status")["proxies"], 0);
    wait::until("the log to name the stranger", || control.process.line("proxy rejected: user id 54322"));
    // Nor may the workload's user speak for another one.
    let mut proxy = proxy(&control, "default/other", APP, &home).spawn();
    proxy.wait_for_line("control rejects this proxy");
    assert_eq!(identities(&control), [""; 0]);
}

#[test]
fn a_join_token_admits_the_first_user_that_comes_with_it_and_no_other() {
    let upstream = Upstream::saying("here");
    let Some(control) = control(&upstream) else { return };
    let token = control.meshring(&["certs", "token", "--for", "default/other"]).expect(0).stdout.clone();
    let (first, second) = (home(STRANGER), home(STRANGER + 1));
    let file = private_file(first.path(), STRANGER, "token", &token);
    let builder = proxy(&control, "default/other", STRANGER, &first);
    let mut admitted = builder.arguments(&["--join-token", &file]).start();
    control.wait_for_proxies(1);
    wait_for_identity(&control, "other");
    assert_eq!(admitted.connect().get("reviews", "/").expect(200).text(), "here");

    let file = private_file(second.path(), STRANGER + 1, "token", &token);
    let builder = proxy(&control, "default/other", STRANGER + 1, &second).arguments(&["--join-token", &file]);
    let line = builder.spawn().wait_for_line("control rejects this proxy");
    assert!(line.contains("was used by user id 54322 before"), "{line}");
    // It is for its service account only.
    let file = private_file(first.path(), STRANGER, "again", &token);
    let builder = proxy(&control, "default/app", STRANGER, &first).arguments(&["--join-token", &file]);
    let line = builder.spawn().wait_for_line("control rejects this proxy");
    assert!(line.contains("is for service account default/other"), "{line}");

    // Its owner may come again.
    admitted.restart();
    control.wait_for_proxies(1);
    wait_for_identity(&control, "other");
}

/// Everything below a directory.
fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        }
        found.push(path);
    }
}

#[test]
fn others_reach_the_link_and_the_workload_api_in_the_run_directory_and_read_nothing() {
    let upstream = Upstream::saying("here");
    let Some(control) = control(&upstream) else { return };
    // Everything that there can be: what was applied, tokens, the last good snapshot of a proxy of control's own user.
    let file = control.file("more.yaml", &WORKLOADS.replace("app", "more"));
    control.meshring(&["apply", "-f", &file]).expect(0);
    control.meshring(&["certs", "token", "--for", "default/other"]).expect(0);
    let proxy = control.proxy("default/other").start();
    control.wait_for_proxies(1);
    let run_dir = control.run_dir();
    let stored = run_dir.join("state/default.other/last-good.snapshot");
    wait::until("the last good snapshot", || stored.exists().then_some(()));
    drop(proxy);
    let mut found = Vec::new();
    walk(&run_dir, &mut found);
    let named = |name: &str| found.iter().any(|path| path.ends_with(name));
    for name in ["applied.json", "authority.json", "tokens.json", "lock", "control.sock"] {
        assert!(named(name), "{name} in {found:?}");
    }
    let stranger = |program: &str, path: &Path| {
        let mut command = Command::new("setpriv");
        let user = [format!("--reuid={STRANGER}"), format!("--regid={STRANGER}"), "--clear-groups".into()];
        command.args(user).arg(program).arg(path).output().unwrap().status.success()
    };
    assert!(stranger("stat", &run_dir.join("link.sock")), "the way to the link is closed");
    assert!(!stranger("ls", &run_dir));
    let mut open = Vec::new();
    for path in &found {
        let metadata = fs::metadata(path).unwrap();
        if metadata.file_type().is_socket() {
            // Who may write to a socket may connect to it (unix(7)).
            open.extend((metadata.permissions().mode() & 0o006 != 0).then(|| path.file_name().unwrap().to_owned()));
        } else if metadata.is_file() {
            assert!(!stranger("cat", path), "{} can be read", path.display());
            assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", path.display());
        }
    }
    open.sort();
    assert_eq!(open, ["link.sock", "workload-api.sock"]);
}

/// Without a directory of its own a foreign proxy serves all the same, and says what it lacks.
#[test]
fn a_foreign_proxy_without_a_state_directory_is_told_of_the_flag() {
    let upstream = Upstream::saying("here");
    let Some(control) = control(&upstream) else { return };
    let mut proxy = control.proxy("default/app").wrapper(as_user(APP)).start();
    control.wait_for_proxies(1);
    let line = proxy.process.wait_for_line("cannot store the last good snapshot");
    assert!(line.contains("--state-dir"), "{line}");
    proxy.connect().get("reviews", "/").expect(200);
}
