//! The forwarding rules as scripts for varnishtest (`tests/vtc`), which anybody can read and run: client and server are its
//! own, written by people who test another proxy with them.
//!
//! A script gets the proxy's address as `${proxy}`, and listens on `${upstream}`, where every host is routed to. A line
//! `# proxy: ARGUMENTS` gives the proxy further arguments.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use meshring_tests::{
    binaries, on_both_drivers,
    ports::Reserved,
    process::Process,
    proxy::{Driver, Proxy},
    table::{World, rule},
    wait,
};

/// What one script may take, in seconds; they take less than one.
const SCRIPT_SECONDS_MAX: u32 = 15;

on_both_drivers! {
    the_scripts_of_varnishtest_pass
    a_script_that_expects_something_else_fails
}

fn script_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vtc")
}

/// The arguments for the proxy that a script asks for.
fn proxy_arguments(script: &str) -> Vec<&str> {
    script.lines().filter_map(|line| line.strip_prefix("# proxy:")).flat_map(str::split_whitespace).collect()
}

/// Runs a script against a proxy of its own; what varnishtest says where it fails.
fn run(script: &Path, driver: Driver) -> Result<(), String> {
    let text = fs::read_to_string(script).unwrap();
    let upstream = Reserved::new();
    let mut world = World::new();
    let cluster = world.cluster("upstream", &[upstream.address()]);
    let action = world.forward(&[(cluster, 1)]);
    world.host("*", vec![rule(action)]);
    let proxy =
        Proxy::alone_with(&world.snapshot(), |builder| builder.driver(driver).arguments(&proxy_arguments(&text)));
    let mut command = Command::new("varnishtest");
    // Its temporary files go where ours go, and away with them.
    command.env("TMPDIR", proxy.dir()).args(["-t", &SCRIPT_SECONDS_MAX.to_string()]);
    command.arg("-D").arg(format!("proxy={}", proxy.outbound()));
    command.arg("-D").arg(format!("upstream={}", upstream.address())).arg(script);
    let mut varnishtest = Process::start("varnishtest", &mut command);
    let status = varnishtest.wait_for_exit();
    if status.success() {
        return Ok(());
    }
    // The collecting threads may still be at its last lines.
    let what = "the last lines of varnishtest";
    Err(wait::until_still(std::time::Duration::from_millis(100), what, || varnishtest.output()))
}

fn the_scripts_of_varnishtest_pass(driver: Driver) {
    if !binaries::is_installed("varnishtest") {
        return;
    }
    let mut scripts: Vec<_> = fs::read_dir(script_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    let failures: Vec<_> = scripts
        .iter()
        .filter_map(|script| Some(format!("==== {}\n{}", script.display(), run(script, driver).err()?)))
        .collect();
    assert!(failures.is_empty(), "{} of {} scripts fail\n{}", failures.len(), scripts.len(), failures.join("\n"));
}

/// A runner that saw no failure would prove nothing.
fn a_script_that_expects_something_else_fails(driver: Driver) {
    if !binaries::is_installed("varnishtest") {
        return;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let script = dir.path().join("wrong.vtc");
    fs::write(
        &script,
        "varnishtest \"expects what does not happen\"\n\
         server s1 -listen \"${upstream}\" {\n rxreq\n txresp\n} -start\n\
         client c1 -connect \"${proxy}\" {\n txreq\n rxresp\n expect resp.status == 299\n} -run\n",
    )
    .unwrap();
    let output = run(&script, driver).unwrap_err();
    assert!(output.contains("resp.status") && output.contains("299"), "{output}");
}
