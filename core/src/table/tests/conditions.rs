//! Which rule of a virtual host a request meets.

use super::{
    super::lookup::{Observer, UriMatch},
    *,
};
use crate::{id::RouteId, table::model::ArchivedCondition};

/// One virtual host whose rule `hit` has these alternatives, before a rule `miss` that takes the rest.
fn ruled(alternatives: Vec<Vec<Condition>>, patterns: &[&str]) -> Snapshot {
    let mut builder = TableBuilder::new("cluster.local");
    let namespace = builder.namespace("default");
    builder.namespace("other");
    builder.workload(namespace, "client", vec![("app".into(), "web".into()), ("version".into(), "v1".into())]);
    for pattern in patterns {
        builder.regex(pattern);
    }
    let origin = builder.origin("test");
    let routes = vec![rule("hit", origin, alternatives, answer(200)), rule("miss", origin, Vec::new(), answer(404))];
    builder.virtual_host(VirtualHostInput { domain: "a".into(), scope: None, port: 80, origin, routes });
    finished(builder)
}

fn hits(snapshot: &Snapshot, request: &Request) -> bool {
    let name = matched(snapshot, &default_viewpoint(snapshot), request, Some(80));
    name.expect("a rule takes every request") == "hit"
}

/// A condition against paths that meet it and paths that do not.
fn uri(expected: StringMatch, yes: &[&str], no: &[&str]) {
    let table = ruled(vec![vec![Condition::Uri(expected.clone())]], &[&anchored("/v[0-9]+"), &anchored("/a|/b")]);
    for path in yes {
        assert!(hits(&table, &Request::get(path)), "{path} should match {expected:?}");
    }
    for path in no {
        assert!(!hits(&table, &Request::get(path)), "{path} should not match {expected:?}");
    }
}

#[test]
fn uri_is_the_path_without_query() {
    uri(exact("/a"), &["/a", "/a?b=c"], &["/A", "/a/", "/ab", "/", "/b?/a"]);
    uri(prefix("/a"), &["/a", "/a/b", "/ab", "/a?x"], &["/A", "/", "/b/a"]);
    uri(prefix("/"), &["/", "/a"], &["*"]);
    uri(StringMatch::ExactIgnoreCase("/Ab".into()), &["/aB", "/AB"], &["/abc", "/a"]);
    uri(StringMatch::PrefixIgnoreCase("/Ab".into()), &["/aB", "/ABc"], &["/a", "/cab"]);
    uri(StringMatch::Regex(crate::id::RegexId(0)), &["/v1", "/v42"], &["/v", "/v1/", "x/v1", "/v1\n"]);
    uri(StringMatch::Regex(crate::id::RegexId(1)), &["/a", "/b"], &["/ab", "/a/b", "/aa"]);
    uri(StringMatch::Present, &["/", "/x"], &[]);
}

#[test]
fn scheme_method_and_authority_are_compared_as_sent() {
    let table = ruled(vec![vec![Condition::Method(exact("POST"))]], &[]);
    assert!(hits(&table, &Request { method: "POST", ..Request::get("/") }));
    assert!(!hits(&table, &Request { method: "post", ..Request::get("/") }));
    let table = ruled(vec![vec![Condition::Scheme(exact("https"))]], &[]);
    assert!(hits(&table, &Request { scheme: "https", ..Request::get("/") }));
    assert!(!hits(&table, &Request::get("/")));
    let table = ruled(vec![vec![Condition::Authority(prefix("a:80"))]], &[]);
    assert!(hits(&table, &Request { authority: "a:80".into(), ..Request::get("/") }));
    assert!(hits(&table, &Request { authority: "a:8080".into(), ..Request::get("/") }));
    assert!(!hits(&table, &Request::get("/")));
}

#[test]
fn a_header_condition_holds_for_the_value_that_the_caller_presents() {
    // Whether several lines of one name are one joined value (as Envoy has it) or several is the caller's matter.
    let table = ruled(vec![vec![Condition::Header { name: "end-user".into(), value: exact("jason") }]], &[]);
    assert!(hits(&table, &Request::get("/").header("end-user", "jason")));
    assert!(hits(&table, &Request::get("/").header("end-user", "x").header("end-user", "jason")));
    assert!(!hits(&table, &Request::get("/").header("end-user", "x,jason")));
    assert!(!hits(&table, &Request::get("/").header("end-user", "Jason")));
    assert!(!hits(&table, &Request::get("/").header("user", "jason")));
    assert!(!hits(&table, &Request::get("/")));
    let table = ruled(vec![vec![Condition::Header { name: "x".into(), value: StringMatch::Present }]], &[]);
    assert!(hits(&table, &Request::get("/").header("x", "")));
    assert!(!hits(&table, &Request::get("/").header("y", "")));
}

#[test]
fn a_without_header_condition_is_the_negation() {
    let table = ruled(vec![vec![Condition::WithoutHeader { name: "x".into(), value: exact("1") }]], &[]);
    assert!(hits(&table, &Request::get("/")));
    assert!(hits(&table, &Request::get("/").header("x", "2")));
    assert!(!hits(&table, &Request::get("/").header("x", "1")));
    let table = ruled(vec![vec![Condition::WithoutHeader { name: "x".into(), value: StringMatch::Present }]], &[]);
    assert!(hits(&table, &Request::get("/")));
    assert!(!hits(&table, &Request::get("/").header("x", "")));
}

#[test]
fn a_query_condition_looks_at_the_first_parameter_of_its_name() {
    let table = ruled(vec![vec![Condition::Query { name: "v".into(), value: exact("1") }]], &[]);
    for path in ["/?v=1", "/?a=b&v=1", "/?v=1&v=2", "/?&v=1&"] {
        assert!(hits(&table, &Request::get(path)), "{path}");
    }
    for path in ["/", "/?", "/?v", "/?v=", "/?v=11", "/?v=2&v=1", "/?V=1", "/?xv=1", "/?v=%31", "/v=1"] {
        assert!(!hits(&table, &Request::get(path)), "{path}");
    }
    let table = ruled(vec![vec![Condition::Query { name: "v".into(), value: StringMatch::Present }]], &[]);
    assert!(hits(&table, &Request::get("/?v")));
    assert!(hits(&table, &Request::get("/?v=x=y")));
    assert!(!hits(&table, &Request::get("/?w")));
    let table = ruled(vec![vec![Condition::Query { name: "v".into(), value: exact("") }]], &[]);
    assert!(hits(&table, &Request::get("/?v")));
    assert!(hits(&table, &Request::get("/?v=")));
}

#[test]
fn a_port_condition_is_about_the_port_that_was_asked_for() {
    let table = ruled(vec![vec![Condition::Port(8080)]], &[]);
    let viewpoint = default_viewpoint(&table);
    let name = |port| matched(&table, &viewpoint, &Request::get("/"), port);
    assert_eq!(name(Some(8080)).as_deref(), Some("hit"));
    assert_eq!(name(Some(80)).as_deref(), Some("miss"));
    // Without one, the virtual host's own.
    assert_eq!(name(None).as_deref(), Some("miss"));
    let table = ruled(vec![vec![Condition::Port(80)]], &[]);
    assert_eq!(matched(&table, &default_viewpoint(&table), &Request::get("/"), None).as_deref(), Some("hit"));
}

#[test]
fn source_conditions_are_about_the_workload_beside_the_proxy() {
    let label = |value: &str| Condition::SourceLabel { key: "app".into(), value: value.into() };
    let seen = |table: &Snapshot, namespace, name| {
        let viewpoint = Viewpoint::resolve(table.table(), namespace, name);
        matched(table, &viewpoint, &Request::get("/"), Some(80)).as_deref() == Some("hit")
    };
    let table = ruled(vec![vec![label("web")]], &[]);
    assert!(seen(&table, "default", "client"));
    assert!(!seen(&table, "default", "unknown"));
    assert!(!seen(&table, "other", "client"));
    let version = Condition::SourceLabel { key: "version".into(), value: "v1".into() };
    assert!(seen(&ruled(vec![vec![label("web"), version]], &[]), "default", "client"));
    assert!(!seen(&ruled(vec![vec![label("api")]], &[]), "default", "client"));
    let table = ruled(vec![vec![Condition::SourceNamespace(NamespaceId(1))]], &[]);
    assert!(seen(&table, "other", "any"));
    assert!(!seen(&table, "default", "client"));
    assert!(!seen(&table, "third", "any"));
}

#[test]
fn all_conditions_of_an_alternative_must_hold_and_one_alternative_is_enough() {
    let conditions = |path: &str, method: &str| vec![Condition::Uri(exact(path)), Condition::Method(exact(method))];
    let table = ruled(vec![conditions("/a", "GET"), conditions("/b", "POST")], &[]);
    let hit = |method, path| hits(&table, &Request { method, ..Request::get(path) });
    assert!(hit("GET", "/a") && hit("POST", "/b"));
    assert!(!hit("POST", "/a") && !hit("GET", "/b"));
    assert!(hits(&ruled(vec![Vec::new()], &[]), &Request::get("/x")), "an alternative without conditions always holds");
}

#[test]
fn the_first_rule_that_matches_is_taken_and_none_is_an_answer_too() {
    let mut builder = TableBuilder::new("cluster.local");
    let origin = builder.origin("test");
    let rules = ["/a/b", "/a", "/a/b/c"];
    let routes = rules.map(|p| rule(p, origin, vec![vec![Condition::Uri(prefix(p))]], answer(200))).to_vec();
    builder.virtual_host(VirtualHostInput { domain: "a".into(), scope: None, port: 80, origin, routes });
    let table = finished(builder);
    let name = |path| matched(&table, &Viewpoint::default(), &Request::get(path), Some(80));
    assert_eq!(name("/a/b/c").as_deref(), Some("/a/b"));
    assert_eq!(name("/a/c").as_deref(), Some("/a"));
    assert_eq!(name("/b"), None);
}

#[test]
fn what_a_uri_condition_matched_is_what_a_rewrite_replaces() {
    let matched = |expected: Option<StringMatch>, path: &str| {
        let conditions = expected.map(Condition::Uri).into_iter().collect();
        let table = ruled(vec![conditions], &[&anchored(".*")]);
        let viewpoint = Viewpoint::default();
        let request = Request::get(path);
        let found = table.table().route(table.regexes(), &viewpoint, VirtualHostId(0), &request, Some(80), &mut Silent);
        found.expect("a match").uri
    };
    assert_eq!(matched(Some(prefix("/a")), "/a/b"), UriMatch::Prefix(2));
    assert_eq!(matched(Some(StringMatch::PrefixIgnoreCase("/A/".into())), "/a/b"), UriMatch::Prefix(3));
    assert_eq!(matched(Some(exact("/a")), "/a"), UriMatch::Whole);
    assert_eq!(matched(Some(StringMatch::Regex(crate::id::RegexId(0))), "/a"), UriMatch::Whole);
    assert_eq!(matched(None, "/a"), UriMatch::None);
}

#[test]
fn an_observer_hears_why_each_earlier_rule_did_not_match() {
    #[derive(Default)]
    struct Failures(Vec<(u32, usize, &'static str)>);
    impl Observer for Failures {
        fn failed(&mut self, route: RouteId, alternative: usize, condition: &ArchivedCondition) {
            let kind = match condition {
                ArchivedCondition::Uri(_) => "uri",
                ArchivedCondition::Method(_) => "method",
                _ => "other",
            };
            self.0.push((route.0, alternative, kind));
        }
    }
    let alternatives = vec![
        vec![Condition::Method(exact("POST")), Condition::Uri(exact("/x"))],
        vec![Condition::Method(exact("GET")), Condition::Uri(exact("/x"))],
    ];
    let table = ruled(alternatives, &[]);
    let mut failures = Failures::default();
    let request = Request::get("/y");
    let selected = table
        .table()
        .route(table.regexes(), &Viewpoint::default(), VirtualHostId(0), &request, Some(80), &mut failures)
        .expect("the second rule takes it");
    assert_eq!((selected.route, selected.rule.name.as_str()), (RouteId(1), "miss"));
    assert_eq!(failures.0, [(0, 0, "method"), (0, 1, "uri")]);
}
