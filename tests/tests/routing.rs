//! What rules say is what happens: matches, weights, header edits, rewrites, redirects, direct responses.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::table::model::{
    Action, Condition, DestinationHeaders, DirectResponse, HeaderOp, Redirect, RedirectPort, RegexRewrite, Rewrite,
    Route, RouteOptions, StringMatch,
};
use meshring_tests::{
    generate::assert_share,
    proxy::{Driver, Proxy},
    table::{World, redirect, rewriting, rule, rule_if, rule_with},
    upstream::Upstream,
};

/// A table in which each condition leads to an answer of its own name, and everything else to `none`.
fn answers(conditions: impl FnOnce(&mut World) -> Vec<(&'static str, Vec<Condition>)>) -> Proxy {
    let mut world = World::new();
    world.workload("client", &[("app", "client"), ("version", "v1")]);
    let mut routes: Vec<Route> =
        conditions(&mut world).into_iter().map(|(name, conditions)| rule_if(conditions, say(name))).collect();
    routes.push(rule(say("none")));
    world.host("echo", routes);
    Proxy::alone(&world.snapshot(), Driver::Auto)
}

fn say(text: &str) -> Action {
    Action::DirectResponse(Box::new(DirectResponse { status: 200, body: text.into() }))
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.into())
}

#[test]
fn uri_conditions_look_at_the_path_without_query() {
    let proxy = answers(|world| {
        let digits = world.regex("/item/[0-9]+");
        vec![
            ("exact", vec![Condition::Uri(exact("/exact"))]),
            ("regex", vec![Condition::Uri(StringMatch::Regex(digits))]),
            ("ignore-case", vec![Condition::Uri(StringMatch::PrefixIgnoreCase("/CaSe".into()))]),
            ("prefix", vec![Condition::Uri(prefix("/pre"))]),
        ]
    });
    let mut client = proxy.connect();
    for (target, expected) in [
        ("/exact", "exact"),
        ("/exact?q=1", "exact"),
        ("/exact/", "none"),
        ("/Exact", "none"),
        ("/item/12", "regex"),
        ("/item/12x", "none"),
        ("/x/item/12", "none"),
        ("/case/a", "ignore-case"),
        ("/CASE", "ignore-case"),
        ("/prefix", "prefix"),
        ("/pr", "none"),
        ("/", "none"),
    ] {
        assert_eq!(client.get("echo", target).expect(200).text(), expected, "{target}");
    }
}

#[test]
fn conditions_on_method_authority_headers_query_and_source() {
    let proxy = answers(|world| {
        let namespace = world.namespace("default");
        let elsewhere = world.namespace("elsewhere");
        let value = world.regex("v[0-9]");
        let header = |name: &str, value| Condition::Header { name: name.into(), value };
        let label = |key: &str, value: &str| Condition::SourceLabel { key: key.into(), value: value.into() };
        vec![
            ("method", vec![Condition::Method(exact("DELETE"))]),
            ("authority", vec![Condition::Authority(exact("echo.default:80"))]),
            ("query", vec![Condition::Query { name: "user".into(), value: exact("jason") }]),
            ("two", vec![header("x-a", exact("1")), header("x-b", prefix("2"))]),
            ("regex", vec![header("x-version", StringMatch::Regex(value))]),
            ("present", vec![header("x-any", StringMatch::Present)]),
            (
                "without",
                vec![
                    Condition::Uri(prefix("/without")),
                    Condition::WithoutHeader { name: "x-bad".into(), value: StringMatch::Present },
                ],
            ),
            ("elsewhere", vec![Condition::Uri(prefix("/ns")), Condition::SourceNamespace(elsewhere)]),
            ("namespace", vec![Condition::Uri(prefix("/ns")), Condition::SourceNamespace(namespace)]),
            ("wrong-label", vec![Condition::Uri(prefix("/label")), label("app", "client"), label("version", "v2")]),
            ("label", vec![Condition::Uri(prefix("/label")), label("app", "client"), label("version", "v1")]),
        ]
    });
    let mut client = proxy.connect();
    let mut ask = |target: &str, fields: &[(&str, &str)], expected: &str| {
        assert_eq!(client.get_with("echo", target, fields).expect(200).text(), expected, "{target} {fields:?}");
    };
    ask("/?a=b&user=jason", &[], "query");
    ask("/?user=jasons", &[], "none");
    ask("/?xuser=jason", &[], "none");
    ask("/", &[("X-A", "1"), ("X-B", "22")], "two");
    ask("/", &[("x-a", "1")], "none");
    ask("/", &[("x-version", "v3")], "regex");
    ask("/", &[("x-version", "v33")], "none");
    ask("/", &[("x-any", "")], "present");
    ask("/without", &[], "without");
    ask("/without", &[("x-bad", "1")], "none");
    ask("/ns", &[], "namespace");
    ask("/label", &[], "label");
    let mut client = proxy.connect();
    assert_eq!(client.get("echo.default:80", "/").expect(200).text(), "authority");
    assert_eq!(client.get("ECHO.default.svc.cluster.local", "/").expect(200).text(), "none");
    let delete = b"DELETE / HTTP/1.1\r\nhost: echo\r\n\r\n";
    assert_eq!(client.send(delete).response().expect(200).text(), "method");
}

#[test]
fn weights_are_kept_over_ten_thousand_requests() {
    let (first, second, never) = (Upstream::saying("1"), Upstream::saying("2"), Upstream::saying("never"));
    let mut world = World::new();
    let clusters = [&first, &second, &never].map(|upstream| world.cluster("split", &[upstream.address()]));
    let action = world.forward(&[(clusters[0], 3), (clusters[2], 0), (clusters[1], 1)]);
    world.host("split", vec![rule(action)]);
    let proxy = Proxy::alone(&world.snapshot(), Driver::Auto);
    const CLIENTS: u64 = 4;
    const EACH: u64 = 2_500;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = proxy.connect();
            std::thread::spawn(move || {
                (0..EACH).filter(|_| client.get("split", "/").expect(200).text() == "1").count() as u64
            })
        })
        .collect();
    let hits: u64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert_share(hits, CLIENTS * EACH, 0.75);
    assert_eq!(never.connections(), 0);
}

fn op(kind: &str, name: &str, value: &str) -> HeaderOp {
    let (name, value) = (name.to_owned(), value.to_owned());
    match kind {
        "remove" => HeaderOp::Remove { name },
        "set" => HeaderOp::Set { name, value },
        _ => HeaderOp::Add { name, value },
    }
}

#[test]
fn headers_are_edited_on_both_ways_by_destination_and_rule() {
    let upstream = Upstream::answering(|request| {
        let fields =
            [("x-up", "1"), ("x-up", "2"), ("x-drop", "upstream"), ("x-set", "upstream"), ("x-keep", "upstream")];
        let mut text = String::new();
        request.fields.0.iter().for_each(|(name, value)| text += &format!("{name}: {value}\n"));
        meshring_tests::upstream::response(200, &fields, text.as_bytes())
    });
    let mut world = World::new();
    let cluster = world.cluster("echo", &[upstream.address()]);
    let action = world.forward_with(
        cluster,
        DestinationHeaders {
            request: vec![
                op("remove", "x-secret", ""),
                op("set", "x-both", "destination"),
                op("add", "x-list", "destination"),
            ],
            response: vec![
                op("remove", "x-drop", ""),
                op("set", "x-both", "destination"),
                op("add", "x-up", "destination"),
            ],
        },
    );
    let options = RouteOptions {
        request_headers: vec![op("set", "x-both", "rule"), op("add", "x-list", "rule")],
        response_headers: vec![op("set", "x-both", "rule"), op("set", "x-set", "rule"), op("add", "x-up", "rule")],
        rewrite: None,
    };
    world.host("echo", vec![rule_with(options, action)]);
    let proxy = Proxy::alone(&world.snapshot(), Driver::Auto);
    let mut client = proxy.connect();
    for _ in 0..2 {
        let sent =
            [("X-Secret", "1"), ("x-secret", "2"), ("X-Both", "client"), ("x-list", "client"), ("x-keep", "client")];
        let response = client.get_with("echo", "/", &sent);
        let received = upstream.received();
        let up = &received.last().unwrap().fields;
        assert!(!up.has("x-secret"), "{up:?}");
        assert_eq!(up.all("x-both"), ["rule"]);
        assert_eq!(up.all("x-list"), ["client", "destination", "rule"]);
        assert_eq!(up.all("x-keep"), ["client"]);
        let down = &response.expect(200).fields;
        assert!(!down.has("x-drop"), "{down:?}");
        assert_eq!(down.all("x-both"), ["rule"]);
        assert_eq!(down.all("x-set"), ["rule"]);
        assert_eq!(down.all("x-up"), ["1", "2", "destination", "rule"]);
        assert_eq!(down.all("x-keep"), ["upstream"]);
    }
}

#[test]
fn rewrites_change_what_the_upstream_sees() {
    let upstream = Upstream::echoing();
    let mut world = World::new();
    let cluster = world.cluster("echo", &[upstream.address()]);
    let pattern = world.regex_anywhere("^/v([0-9]+)/(.*)$");
    let mut routes = Vec::new();
    let mut add = |world: &mut World, uri: StringMatch, rewrite: Rewrite| {
        let action = world.forward(&[(cluster, 1)]);
        routes
            .push(Route { options: Some(Box::new(rewriting(rewrite))), ..rule_if(vec![Condition::Uri(uri)], action) });
    };
    let uri = |text: &str| Rewrite { uri: Some(text.into()), ..Rewrite::default() };
    add(&mut world, prefix("/api/"), uri("/"));
    add(&mut world, prefix("/old"), uri("/new"));
    add(&mut world, exact("/exact"), uri("/other"));
    let regex = Some(RegexRewrite { pattern, replacement: "/${2}/version/${1}".into() });
    add(&mut world, prefix("/v"), Rewrite { regex, ..Rewrite::default() });
    let authority = Some("elsewhere.example.com".into());
    add(&mut world, prefix("/"), Rewrite { authority, ..Rewrite::default() });
    let set_host =
        RouteOptions { request_headers: vec![op("set", "host", "set.example.com")], ..RouteOptions::default() };
    let action = world.forward(&[(cluster, 1)]);
    world.host("sethost", vec![rule_with(set_host, action)]);
    world.host("echo", routes);
    let proxy = Proxy::alone(&world.snapshot(), Driver::Auto);
    let mut client = proxy.connect();
    for (target, line, host) in [
        ("/api/items?q=1", "GET /items?q=1 HTTP/1.1", "echo"),
        ("/api/", "GET / HTTP/1.1", "echo"),
        ("/old/page", "GET /new/page HTTP/1.1", "echo"),
        ("/oldest", "GET /newest HTTP/1.1", "echo"),
        ("/exact?a", "GET /other?a HTTP/1.1", "echo"),
        ("/v12/a/b", "GET /a/b/version/12 HTTP/1.1", "echo"),
        ("/untouched", "GET /untouched HTTP/1.1", "elsewhere.example.com"),
    ] {
        client.get("echo", target).expect(200);
        let received = upstream.received();
        let last = received.last().unwrap();
        assert_eq!((last.line.as_str(), last.fields.value("host")), (line, Some(host)), "{target}");
    }
    client.get("sethost", "/").expect(200);
    assert_eq!(upstream.received().last().unwrap().fields.value("host"), Some("set.example.com"));
}

#[test]
fn redirects_say_where_to_go() {
    let mut world = World::new();
    let mut routes = Vec::new();
    let mut add = |uri: &str, redirect: Redirect| {
        routes.push(rule_if(vec![Condition::Uri(prefix(uri))], Action::Redirect(Box::new(redirect))));
    };
    add("/moved", Redirect { uri: Some("/here".into()), ..redirect(301) });
    add("/host", Redirect { authority: Some("other.example.com".into()), ..redirect(302) });
    add("/tls", Redirect { scheme: Some("https".into()), ..redirect(308) });
    add("/port", Redirect { port: RedirectPort::Fixed(8443), scheme: Some("https".into()), ..redirect(307) });
    world.host("echo", routes);
    let proxy = Proxy::alone(&world.snapshot(), Driver::Auto);
    let mut client = proxy.connect();
    for (host, target, status, location) in [
        ("echo", "/moved?q=1", 301, "http://echo/here?q=1"),
        ("echo:9080", "/moved", 301, "http://echo:9080/here"),
        ("echo", "/host/a", 302, "http://other.example.com/host/a"),
        ("echo:80", "/tls", 308, "https://echo/tls"),
        ("echo", "/port/x", 307, "https://echo:8443/port/x"),
    ] {
        let response = client.get(host, target);
        assert_eq!(response.expect(status).fields.value("location"), Some(location), "{host} {target}");
        assert_eq!(response.fields.value("content-length"), Some("0"));
    }
}

#[test]
fn direct_responses_come_with_status_body_and_the_rules_headers() {
    let mut world = World::new();
    let options = RouteOptions { response_headers: vec![op("set", "x-from", "mesh")], ..RouteOptions::default() };
    let teapot = Action::DirectResponse(Box::new(DirectResponse { status: 418, body: b"short and stout".to_vec() }));
    world.host("teapot", vec![rule_with(options, teapot)]);
    let proxy = Proxy::alone(&world.snapshot(), Driver::Auto);
    let mut client = proxy.connect();
    for _ in 0..2 {
        let response = client.get("teapot", "/");
        assert_eq!(response.expect(418).text(), "short and stout");
        assert_eq!(response.fields.value("x-from"), Some("mesh"));
    }
    // A body that nobody reads is skipped, not taken for the next request.
    let post = "POST / HTTP/1.1\r\nhost: teapot\r\ncontent-length: 4\r\n\r\nbody";
    client.send(post).response().expect(418);
    client.get("teapot", "/").expect(418);
}
