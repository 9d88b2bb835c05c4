//! Control may die at any moment: traffic does not notice, and its return changes nothing that it did not mean to change.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::path::PathBuf;

use meshring_core::snapshot::Snapshot;
use meshring_tests::{
    alone,
    client::{Response, request},
    control::{Control, shop, split},
    load::{Load, is_ok},
    proxy::Proxy,
    upstream::Upstream,
    wait,
};

const SWAPS: &str = "meshring_generation_swaps_total";

fn mesh() -> (Control, [Upstream; 2]) {
    let upstreams = [Upstream::saying("v1"), Upstream::saying("v2")];
    let shop = shop(upstreams[0].address(), upstreams[1].address());
    (Control::start(&[("shop.yaml", &shop), ("reviews.yaml", &split(50, 50))]), upstreams)
}

fn debug_request() -> Vec<u8> {
    request("GET", "reviews", "/", &[("x-meshring-debug", "1")])
}

fn generation_of(response: &Response) -> u64 {
    response.expect(200).fields.value("x-meshring-generation").unwrap().parse().unwrap()
}

fn served_by(proxy: &Proxy) -> u64 {
    generation_of(&proxy.connect().send(debug_request()).response())
}

/// Waits until a proxy without control could start from this generation.
fn wait_until_stored(control: &Control, workload: &str, generation: u64) {
    let file: PathBuf = control.run_dir().join("state").join(workload.replace('/', ".")).join("last-good.snapshot");
    wait::until("the last good snapshot on disk", || {
        Snapshot::load(&file).ok().filter(|snapshot| snapshot.generation().0 == generation).map(drop)
    });
}

#[test]
fn killing_control_under_load_fails_no_request_and_its_return_swaps_nothing() {
    let _alone = alone();
    let (mut control, _upstreams) = mesh();
    let proxy = control.proxy("default/client").workers(2).start();
    control.wait_for_proxies(1);
    let generation = control.generation();
    let load = Load::start(proxy.outbound(), 4, debug_request(), move |response| {
        is_ok(response)?;
        match generation_of(response) {
            same if same == generation => Ok(()),
            other => Err(format!("generation {other} instead of {generation}")),
        }
    });
    load.pass(500);
    let swaps = control.metric(SWAPS, "default/client");
    for _ in 0..3 {
        // SIGKILL, in the middle of whatever it does.
        control.process.kill();
        load.pass(500);
        control.restart();
        control.wait_for_proxies(1);
        assert_eq!(control.generation(), generation);
        load.pass(500);
        assert_eq!(control.metric(SWAPS, "default/client"), swaps, "the return of control is no change");
    }
    load.finish();
}

#[test]
fn a_control_that_returns_to_other_files_publishes_them_as_a_newer_generation() {
    let (mut control, _upstreams) = mesh();
    let proxy = control.proxy("default/client").start();
    control.wait_for_proxies(1);
    let before = served_by(&proxy);
    control.process.kill();
    control.write("reviews.yaml", &split(0, 100));
    control.restart();
    control.wait_for_proxies(1);
    assert!(control.generation() > before, "generation {} after {before}", control.generation());
    assert_eq!(served_by(&proxy), control.generation());
    let mut client = proxy.connect();
    for _ in 0..20 {
        assert_eq!(client.get("reviews", "/").expect(200).text(), "v2");
    }
}

#[test]
fn resources_from_apply_survive_a_restart_of_control() {
    let (mut control, _upstreams) = mesh();
    let proxy = control.proxy("default/client").start();
    let file = control.file("all-v1.yaml", &split(100, 0));
    control.meshring(&["apply", "-f", &file]).expect(0);
    let generation = served_by(&proxy);
    control.process.kill();
    control.restart();
    control.wait_for_proxies(1);
    assert_eq!((control.generation(), served_by(&proxy)), (generation, generation));
    assert_eq!(control.api("/v1/status")["applied_resources"], 1);
}

#[test]
fn a_proxy_that_starts_without_control_serves_the_last_generation_and_rejoins() {
    let (mut control, _upstreams) = mesh();
    let mut proxy = control.proxy("default/client").start();
    let file = control.file("all-v1.yaml", &split(100, 0));
    control.meshring(&["apply", "-f", &file]).expect(0);
    let generation = served_by(&proxy);
    wait_until_stored(&control, "default/client", generation);

    control.process.kill();
    proxy.restart();
    assert_eq!(served_by(&proxy), generation);
    assert_eq!(proxy.connect().get("reviews", "/").expect(200).text(), "v1");

    control.restart();
    control.wait_for_proxies(1);
    assert_eq!(served_by(&proxy), generation);
    let file = control.file("all-v2.yaml", &split(0, 100));
    control.meshring(&["apply", "-f", &file]).expect(0);
    assert_eq!(proxy.connect().get("reviews", "/").expect(200).text(), "v2");
    assert_eq!(served_by(&proxy), control.generation());
}

#[test]
fn a_clean_end_of_control_says_what_goes_on() {
    let (mut control, _upstreams) = mesh();
    let proxy = control.proxy("default/client").start();
    control.process.signal(rustix::process::Signal::TERM);
    assert_eq!(control.process.wait_for_exit().code(), Some(0));
    control.process.wait_for_line("proxies go on with generation");
    proxy.connect().get("reviews", "/").expect(200);
    let refused = control.meshring(&["get"]);
    assert!(refused.expect(1).stderr.contains("control is not running"), "{refused:?}");
}

#[test]
fn a_proxy_that_comes_before_control_opens_its_listeners_when_there_is_a_configuration() {
    let upstream = Upstream::saying("v1");
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::create_dir_all(dir.path().join("config")).unwrap();
    let shop = shop(upstream.address(), upstream.address());
    std::fs::write(dir.path().join("config/shop.yaml"), shop).unwrap();
    let builder = meshring_tests::proxy::ProxyBuilder::new(&dir.path().join("run"));
    let mut early = builder.spawn();
    early.wait_for_line("no configuration yet");
    let control = Control::start_in(dir, "config");
    early.wait_for_line("ready: ");
    control.wait_for_proxies(1);
}
