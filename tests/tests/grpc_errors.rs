//! What a gRPC client is told is something that it understands: its deadline holds, and how its calls end is counted.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::table::model::{Action, ClusterKind, DirectResponse, Route};
use meshring_tests::{
    client::{Client, Response},
    control::{Control, reviews, shop},
    ports::Reserved,
    proxy::{Driver, Proxy},
    table::{World, redirect, rule},
    tls::{Mesh, peer_authentication},
    upstream::{Received, Upstream, response},
    wait,
};

const GRPC: (&str, &str) = ("content-type", "application/grpc");

/// Sends a call with one empty message.
fn call(client: &mut Client, host: &str, path: &str, fields: &[(&str, &str)]) -> Response {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\nte: trailers\r\ncontent-length: 5\r\n{fields}\r\n");
    client.send([head.as_bytes(), &[0; 5]].concat()).response()
}

/// Its status and its message, where it is a response of nothing but trailers.
#[track_caller]
fn trailers_only(response: &Response) -> (&str, &str) {
    response.expect(200);
    let field = |name: &str| response.fields.value(name).unwrap_or_else(|| panic!("no {name} in {response:?}"));
    assert_eq!((field("content-type"), field("content-length")), ("application/grpc", "0"), "{response:?}");
    assert_eq!(response.fields.all("content-type").len(), 1, "{response:?}");
    (field("grpc-status"), field("grpc-message"))
}

/// Answers a call with an empty message and this status.
fn serving(status: &'static str) -> Upstream {
    Upstream::answering(move |_: &Received| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n5\r\n\0\0\0\0\0\r\n0\r\ngrpc-status: \
             {status}\r\n\r\n"
        )
    })
}

/// Reads requests and answers none.
fn silent() -> Upstream {
    Upstream::scripted(|peer| while peer.request().is_some() {})
}

#[test]
fn our_refusals_are_trailers_only_for_grpc_and_text_for_others() {
    let closing = Upstream::scripted(|peer| drop(peer.request()));
    let mut world = World::new();
    let empty = world.cluster("empty", &[]);
    let refusing = Reserved::new();
    let gone = world.cluster("gone", &[refusing.address()]);
    let closing_cluster = world.cluster("closing", &[closing.address()]);
    let nowhere = world.cluster_without("nowhere", ClusterKind::NoSuchService);
    for (host, cluster) in [("empty", empty), ("gone", gone), ("closing", closing_cluster), ("nowhere", nowhere)] {
        let action = world.forward(&[(cluster, 1)]);
        world.host(host, vec![rule(action)]);
    }
    let proxy = Proxy::alone(&world.snapshot(), Driver::Auto);
    for (host, status, code, grpc) in [
        ("unknown", 404, "no_route", "12"),
        ("empty", 503, "no_endpoint", "14"),
        ("nowhere", 503, "no_endpoint", "14"),
        ("gone", 503, "connect_failed", "14"),
        ("closing", 502, "upstream.no_response", "14"),
    ] {
        let called = call(&mut proxy.connect(), host, "/pkg.Svc/Method", &[GRPC]);
        let (found, message) = trailers_only(&called);
        assert_eq!(found, grpc, "{host}: {message}");
        assert!(message.starts_with("meshring: ") && message.contains(&format!("({code})")), "{message}");
        let plain = call(&mut proxy.connect(), host, "/pkg.Svc/Method", &[("content-type", "application/grpc-web")]);
        assert!(plain.expect(status).text().contains(code), "{plain:?}");
        assert!(!plain.fields.has("grpc-status"), "{plain:?}");
    }
    // A path that is refused, a method that is: whatever the reason is.
    let mut client = proxy.connect();
    assert_eq!(trailers_only(&call(&mut client, "empty", "/%2e%2e/x", &[GRPC])).0, "13");
}

#[test]
fn what_a_rule_answers_is_answered_to_grpc_too() {
    let mut world = World::new();
    let direct = Action::DirectResponse(Box::new(DirectResponse { status: 418, body: b"tea".to_vec() }));
    world.host("direct", vec![rule(direct)]);
    world.host("moved", vec![rule(Action::Redirect(Box::new(redirect(307))))]);
    let proxy = Proxy::alone(&world.snapshot(), Driver::Auto);
    let mut client = proxy.connect();
    assert_eq!(call(&mut client, "direct", "/", &[GRPC]).expect(418).text(), "tea");
    assert!(!call(&mut client, "moved", "/", &[GRPC]).expect(307).fields.has("grpc-status"));
}

#[test]
fn the_lesser_of_rule_and_client_is_the_deadline_and_the_upstream_is_told_what_is_left() {
    let (upstream, silent) = (serving("0"), silent());
    let mut world = World::new();
    for (name, address) in [("echo", upstream.address()), ("silent", silent.address())] {
        let cluster = world.cluster(name, &[address]);
        let action = world.forward(&[(cluster, 1)]);
        world.host(name, vec![rule(action)]);
        let action = world.forward(&[(cluster, 1)]);
        world.host(&format!("{name}-ruled"), vec![Route { timeout_ms: 30_000, ..rule(action) }]);
        let action = world.forward(&[(cluster, 1)]);
        world.host(&format!("{name}-short"), vec![Route { timeout_ms: 200, ..rule(action) }]);
    }
    let proxy = Proxy::alone(&world.snapshot(), Driver::Auto);
    let mut client = proxy.connect();
    let mut told = |host: &str, sent: &[&str]| -> Vec<String> {
        let fields: Vec<_> = std::iter::once(GRPC).chain(sent.iter().map(|value| ("grpc-timeout", *value))).collect();
        call(&mut client, host, "/pkg.Svc/Method", &fields).expect(200);
        let last = upstream.received().pop().unwrap();
        last.fields.all("grpc-timeout").into_iter().map(str::to_owned).collect()
    };
    let left_ms = |told: &[String]| {
        let [told] = told else { panic!("{told:?}") };
        told.strip_suffix('m').unwrap().parse::<u64>().unwrap()
    };
    // Nothing has changed, or less than what can be told apart.
    assert!(told("echo", &[]).is_empty());
    assert!(
        matches!(told("echo", &["10S"]).as_slice(), [one] if one == "10S" || one.starts_with("99") && one.ends_with('m'))
    );
    assert!((29_000..=30_000).contains(&left_ms(&told("echo-ruled", &[]))));
    assert!((29_000..=30_000).contains(&left_ms(&told("echo-ruled", &["1H"]))));
    // Bad syntax goes on as it is.
    assert_eq!(told("echo", &["soon"]), ["soon"]);
    assert_eq!(told("echo-ruled", &["1S", "2S"]), ["1S", "2S"]);
    for (host, sent) in [("silent", "200m"), ("silent-ruled", "200000u"), ("silent-short", "1M"), ("silent-short", "x")]
    {
        let called = call(&mut proxy.connect(), host, "/pkg.Svc/Method", &[GRPC, ("grpc-timeout", sent)]);
        let (status, message) = trailers_only(&called);
        assert_eq!(status, "4", "{host} {sent}: {message}");
    }
    let before = upstream.received().len();
    let called = call(&mut proxy.connect(), "echo", "/", &[GRPC, ("grpc-timeout", "0S")]);
    assert_eq!(trailers_only(&called).0, "4");
    assert_eq!(upstream.received().len(), before, "nobody waits for it");
    // Of another request the field says nothing.
    let plain = call(&mut proxy.connect(), "echo", "/", &[("grpc-timeout", "0S")]);
    plain.expect(200);
}

#[test]
fn a_denied_call_is_permission_denied() {
    let application = serving("0");
    let deny = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: default}\nspec:\n  selector: \
                {matchLabels: {app: reviews}}\n  action: DENY\n  rules:\n  - to: [{operation: {paths: [\"/pkg.Svc/Secret\"]}}]\n";
    let mode = peer_authentication("PERMISSIVE", "");
    let mesh = Mesh::start(Driver::Auto, &[application.address()], &[("mode.yaml", &mode), ("deny.yaml", deny)]);
    let mut client = mesh.client.connect();
    let denied = call(&mut client, "reviews", "/pkg.Svc/Secret", &[GRPC]);
    assert_eq!(trailers_only(&denied), ("7", "meshring: Forbidden (access_denied): RBAC: access denied"));
    let allowed = call(&mut client, "reviews", "/pkg.Svc/Open", &[GRPC]);
    assert_eq!(allowed.expect(200).trailers.value("grpc-status"), Some("0"));
}

#[test]
fn paths_route_methods_and_services_and_calls_are_counted_by_their_status() {
    let at_once = Upstream::answering(|_: &Received| response(200, &[GRPC, ("grpc-status", "5")], b""));
    let after_a_message = serving("16");
    let shop = shop(at_once.address(), after_a_message.address());
    let rules = "  - match: [{uri: {exact: /pkg.Svc/Method}}, {uri: {prefix: /pkg.Whole/}}]\n    \
                 route: [{destination: {host: reviews, subset: v2}}]\n  \
                 - route: [{destination: {host: reviews, subset: v1}}]\n";
    let control = Control::start(&[("shop.yaml", &shop), ("reviews.yaml", &reviews(rules))]);
    let proxy = control.proxy("default/client").start();
    control.wait_for_proxies(1);
    let mut client = proxy.connect();
    let routed = call(&mut client, "reviews", "/pkg.Svc/Method", &[GRPC]);
    assert_eq!(routed.expect(200).trailers.value("grpc-status"), Some("16"));
    for path in ["/pkg.Svc/Methods", "/pkg.Svc/method"] {
        assert_eq!(call(&mut client, "reviews", path, &[GRPC]).fields.value("grpc-status"), Some("5"));
    }
    for path in ["/pkg.Whole/Method", "/pkg.Whole/Other"] {
        assert_eq!(call(&mut client, "reviews", path, &[GRPC]).trailers.value("grpc-status"), Some("16"));
    }
    assert_eq!(call(&mut client, "reviews", "/pkg.Wholes/Method", &[GRPC]).fields.value("grpc-status"), Some("5"));
    call(&mut client, "reviews", "/", &[]).expect(200);
    let count = |cluster: &str, status: &str| {
        // Labels stand in this order.
        let labels = format!(
            "cluster=\"outbound|9080|{cluster}|reviews.default.svc.cluster.local\",grpc_response_status=\"{status}\""
        );
        control.find_metric("meshring_cluster_grpc_responses_total", &labels)
    };
    wait::until("the calls to be counted", || (count("v1", "5") == Some(3)).then_some(()));
    wait::until("the others, too", || (count("v2", "16") == Some(3)).then_some(()));
    assert_eq!(
        control.metric("meshring_cluster_grpc_responses_total", ""),
        6,
        "a request that is no call does not count"
    );
}
