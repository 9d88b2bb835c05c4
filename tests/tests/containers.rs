//! In a container, which has numbers of its own for its processes, the bypass goes around TCP at both ends of a proxy: here in a PID
//! namespace of the test's own. Skipped, with the reason, where kernel or privilege are missing.

use std::{env, process::Command};

use meshring_tests::{
    bypass::{Cgroup, counter},
    control::{shop, split},
    upstream::Upstream,
    wait,
};

/// Says that this is the process inside of the namespace.
const INSIDE: &str = "MESHRING_TEST_CONTAINED";

#[test]
fn with_numbers_of_its_own_for_processes_both_ends_go_around_tcp() {
    const NAME: &str = "with_numbers_of_its_own_for_processes_both_ends_go_around_tcp";
    if env::var_os(INSIDE).is_some() {
        return both_ends();
    }
    let namespace = ["--pid", "--fork", "--kill-child", "--mount-proc", "--"];
    match Command::new("unshare").args(namespace).arg("true").output() {
        Ok(output) if output.status.success() => {}
        other => {
            println!("skipped: a PID namespace cannot be had: {other:?}");
            return;
        }
    }
    let inside = Command::new("unshare")
        .args(namespace)
        .arg(env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inside.stdout);
    println!("{said}");
    assert!(inside.status.success() && said.contains("1 passed"), "{}", String::from_utf8_lossy(&inside.stderr));
}

fn both_ends() {
    let Some(cgroup) = Cgroup::enter() else { return };
    let application = Upstream::saying("ok");
    let (shop, split) = (shop(application.address(), application.address()), split(50, 50));
    let control = cgroup.control("on", &[("shop.yaml", &shop), ("reviews.yaml", &split)]);
    let proxy = control.proxy("default/client").start();
    let connections = || counter(&control, "default/client", "connections_bypass");
    wait::until("the proxy to be registered", connections);
    let mut client = proxy.connect();
    client.get("reviews", "/").expect(200);
    assert_eq!(connections(), Some(2), "the client's, and that to the application");
}
