//! Which endpoint of a cluster serves a request.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::sync::{Mutex, mpsc};

use meshring_core::table::model::{BalancePolicy, ClusterKind};
use meshring_tests::{
    client::request,
    generate::assert_share,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::{Upstream, ok},
};

/// A proxy whose host `echo` is one cluster of these endpoints.
fn proxy(policy: BalancePolicy, endpoints: &[(&Upstream, u16)]) -> Proxy {
    let mut world = World::new();
    let endpoints: Vec<_> = endpoints.iter().map(|(upstream, weight)| (upstream.address(), *weight)).collect();
    let cluster = world.balanced("echo", policy, &endpoints);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(action)]);
    Proxy::alone(&world.snapshot(), Driver::Auto)
}

fn requests(upstreams: &[Upstream]) -> Vec<usize> {
    upstreams.iter().map(|upstream| upstream.received().len()).collect()
}

#[test]
fn round_robin_takes_turns() {
    let upstreams = [Upstream::saying("a"), Upstream::saying("b"), Upstream::saying("c")];
    let proxy = proxy(BalancePolicy::RoundRobin, &[(&upstreams[0], 1), (&upstreams[1], 1), (&upstreams[2], 1)]);
    let mut client = proxy.connect();
    for _ in 0..99 {
        client.get("echo", "/").expect(200);
    }
    assert_eq!(requests(&upstreams), [33, 33, 33]);
}

#[test]
fn random_heeds_the_weights_of_endpoints() {
    let upstreams = [Upstream::saying("a"), Upstream::saying("b")];
    let proxy = proxy(BalancePolicy::Random, &[(&upstreams[0], 1), (&upstreams[1], 3)]);
    let mut client = proxy.connect();
    for _ in 0..4_000 {
        client.get("echo", "/").expect(200);
    }
    assert_share(requests(&upstreams)[1] as u64, 4_000, 0.75);
}

#[test]
fn least_request_passes_over_the_endpoint_that_is_busy() {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let first = Upstream::answering(move |request| {
        if request.target() == "/slow" {
            released.lock().unwrap().recv().unwrap();
        }
        ok("first")
    });
    let second = Upstream::answering(|request| {
        // Sends the slow one away: only the first is to be busy.
        if request.target() == "/slow" {
            b"HTTP/1.1 409 Wrong One\r\ncontent-length: 0\r\n\r\n".to_vec()
        } else {
            ok("second")
        }
    });
    let proxy = proxy(BalancePolicy::LeastRequest, &[(&first, 1), (&second, 1)]);
    let mut slow = proxy.connect();
    loop {
        slow.send(request("GET", "echo", "/slow", &[]));
        // Either it hangs at the first, or the second has answered at once.
        let busy = || first.received().iter().any(|request| request.target() == "/slow");
        let before = second.received().len();
        let landed = meshring_tests::wait::until("the slow request to land", || {
            if busy() { Some(true) } else { (second.received().len() > before).then_some(false) }
        });
        if landed {
            break;
        }
        slow.response().expect(409);
    }
    let mut client = proxy.connect();
    for _ in 0..50 {
        assert_eq!(client.get("echo", "/").expect(200).text(), "second");
    }
    release.send(()).unwrap();
    slow.response().expect(200);
    // Idle again, it gets its share.
    let shared = (0..200).filter(|_| client.get("echo", "/").expect(200).text() == "first").count();
    assert!(shared > 50, "{shared} of 200");
}

#[test]
fn passthrough_goes_to_the_address_that_the_client_meant() {
    let upstream = Upstream::echoing();
    let mut world = World::new();
    let cluster = world.cluster_without("anything", ClusterKind::OriginalDestination);
    let action = world.forward(&[(cluster, 1)]);
    world.host("*", vec![rule(action)]);
    let proxy = Proxy::alone(&world.snapshot(), Driver::Auto);
    let mut client = proxy.connect();
    let host = upstream.address().to_string();
    let text = client.get(&host, "/x").expect(200).text();
    assert!(text.contains(&format!("host: {host}\n")), "{text}");
    // A name is no address, and nothing intercepted the connection.
    let text = client.get("name.example.com", "/").expect(503).text();
    assert!(text.contains("was not intercepted"), "{text}");
}
