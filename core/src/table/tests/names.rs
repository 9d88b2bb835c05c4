//! How a Host value finds its virtual host: Istio's rules for names, namespaces and ports.

use super::{super::lookup::Observer, *};

const REVIEWS: &str = "reviews.default.svc.cluster.local|all|9080";

fn bookinfo() -> Snapshot {
    let mut builder = TableBuilder::new("cluster.local");
    builder.namespace("default");
    builder.namespace("other");
    host(&mut builder, "reviews.default.svc.cluster.local", None, 9080);
    host(&mut builder, "reviews.other.svc.cluster.local", None, 9080);
    host(&mut builder, "httpbin.org", None, 80);
    finished(builder)
}

#[test]
fn a_short_name_means_the_service_in_the_clients_namespace() {
    let table = bookinfo();
    assert_eq!(found(&table, "default", "reviews", Some(9080)).as_deref(), Ok(REVIEWS));
    let other = "reviews.other.svc.cluster.local|all|9080";
    assert_eq!(found(&table, "other", "reviews", Some(9080)).as_deref(), Ok(other));
    assert_eq!(found(&table, "third", "reviews", Some(9080)), Err(NoRoute::UnknownHost));
}

#[test]
fn every_kubernetes_form_of_a_name_means_the_same_service() {
    let table = bookinfo();
    for name in [
        "reviews",
        "reviews.default",
        "reviews.default.svc",
        "reviews.default.svc.cluster.local",
        "reviews.default.svc.cluster.local.",
        "reviews.default.",
        "Reviews.DEFAULT.svc.Cluster.Local",
        "REVIEWS",
    ] {
        assert_eq!(found(&table, "default", name, Some(9080)).as_deref(), Ok(REVIEWS), "{name}");
    }
    for name in ["reviews.default.svc.cluster", "reviews.default.cluster.local", "review", "reviews..", "", ".", "svc"]
    {
        assert_eq!(found(&table, "default", name, Some(9080)), Err(NoRoute::UnknownHost), "{name}");
    }
}

#[test]
fn a_name_with_two_labels_reaches_another_namespace() {
    let table = bookinfo();
    let other = "reviews.other.svc.cluster.local|all|9080";
    assert_eq!(found(&table, "default", "reviews.other", Some(9080)).as_deref(), Ok(other));
}

#[test]
fn a_name_as_it_is_wins_over_its_kubernetes_expansion() {
    let mut builder = TableBuilder::new("cluster.local");
    host(&mut builder, "a.b", None, 80);
    host(&mut builder, "a.b.svc.cluster.local", None, 80);
    assert_eq!(found(&finished(builder), "default", "a.b", Some(80)).as_deref(), Ok("a.b|all|80"));
}

#[test]
fn the_cluster_domain_is_configurable() {
    let mut builder = TableBuilder::new("Mesh.Internal");
    host(&mut builder, "a.default.svc.mesh.internal", None, 80);
    let table = finished(builder);
    let expected = "a.default.svc.mesh.internal|all|80";
    assert_eq!(found(&table, "default", "a", Some(80)).as_deref(), Ok(expected));
    assert_eq!(found(&table, "default", "a.default.svc.cluster.local", Some(80)), Err(NoRoute::UnknownHost));
}

#[test]
fn the_most_specific_wildcard_wins_and_the_catch_all_comes_last() {
    let mut builder = TableBuilder::new("cluster.local");
    for domain in ["*.com", "*.example.com", "*.a.example.com", "www.example.com", "*"] {
        host(&mut builder, domain, None, 80);
    }
    let table = finished(builder);
    for (name, expected) in [
        ("www.example.com", "www.example.com"),
        ("WWW.Example.Com.", "www.example.com"),
        ("x.example.com", ".example.com"),
        ("x.a.example.com", ".a.example.com"),
        ("y.x.a.example.com", ".a.example.com"),
        ("a.example.com", ".example.com"),
        ("example.com", ".com"),
        ("com", "*"),
        ("reviews", "*"),
        ("10.0.0.1", "*"),
        ("[::1]", "*"),
    ] {
        assert_eq!(found(&table, "default", name, Some(80)), Ok(format!("{expected}|all|80")), "{name}");
    }
}

#[test]
fn a_service_wins_over_a_wildcard_that_covers_its_short_name() {
    let mut builder = TableBuilder::new("cluster.local");
    host(&mut builder, "reviews.default.svc.cluster.local", None, 80);
    host(&mut builder, "*.default", None, 80);
    host(&mut builder, "*", None, 80);
    let table = finished(builder);
    for name in ["reviews", "reviews.default"] {
        let expected = "reviews.default.svc.cluster.local|all|80";
        assert_eq!(found(&table, "default", name, Some(80)).as_deref(), Ok(expected), "{name}");
    }
    assert_eq!(found(&table, "default", "ratings.default", Some(80)).as_deref(), Ok(".default|all|80"));
}

#[test]
fn a_narrower_scope_wins_and_is_invisible_elsewhere() {
    let mut builder = TableBuilder::new("cluster.local");
    let (a, b) = (builder.namespace("a"), builder.namespace("b"));
    host(&mut builder, "x", None, 80);
    host(&mut builder, "x", Some(b), 80);
    host(&mut builder, "x", Some(a), 80);
    host(&mut builder, "private", Some(a), 80);
    let table = finished(builder);
    assert_eq!(found(&table, "a", "x", Some(80)).as_deref(), Ok("x|a|80"));
    assert_eq!(found(&table, "b", "x", Some(80)).as_deref(), Ok("x|b|80"));
    assert_eq!(found(&table, "c", "x", Some(80)).as_deref(), Ok("x|all|80"));
    assert_eq!(found(&table, "a", "private", Some(80)).as_deref(), Ok("private|a|80"));
    assert_eq!(found(&table, "b", "private", Some(80)), Err(NoRoute::UnknownHost));
}

#[test]
fn an_invisible_exact_name_leaves_the_wildcard_to_answer() {
    let mut builder = TableBuilder::new("cluster.local");
    let a = builder.namespace("a");
    host(&mut builder, "www.example.com", Some(a), 80);
    host(&mut builder, "*.example.com", None, 80);
    let table = finished(builder);
    assert_eq!(found(&table, "b", "www.example.com", Some(80)).as_deref(), Ok(".example.com|all|80"));
}

#[test]
fn the_port_that_is_asked_for_decides_between_virtual_hosts() {
    let mut builder = TableBuilder::new("cluster.local");
    for port in [80, 8080, 9080] {
        host(&mut builder, "x", None, port);
    }
    let table = finished(builder);
    for port in [80, 8080, 9080] {
        assert_eq!(found(&table, "default", "x", Some(port)), Ok(format!("x|all|{port}")));
    }
    assert_eq!(found(&table, "default", "x", Some(81)), Err(NoRoute::UnknownPort(81)));
    assert_eq!(found(&table, "default", "y", Some(81)), Err(NoRoute::UnknownHost));
}

#[test]
fn without_a_port_80_is_meant_or_else_the_services_first_port() {
    let mut builder = TableBuilder::new("cluster.local");
    for (domain, port) in [("with80", 9080), ("with80", 80), ("without80", 9080), ("without80", 8080), ("any", 0)] {
        host(&mut builder, domain, None, port);
    }
    let table = finished(builder);
    assert_eq!(found(&table, "default", "with80", None).as_deref(), Ok("with80|all|80"));
    assert_eq!(found(&table, "default", "without80", None).as_deref(), Ok("without80|all|8080"));
    assert_eq!(found(&table, "default", "any", None).as_deref(), Ok("any|all|0"));
}

#[test]
fn a_virtual_host_for_any_port_serves_every_port() {
    let mut builder = TableBuilder::new("cluster.local");
    host(&mut builder, "x", None, 0);
    let table = finished(builder);
    for port in [1, 80, 65535] {
        assert_eq!(found(&table, "default", "x", Some(port)).as_deref(), Ok("x|all|0"));
    }
}

#[test]
fn the_exact_port_wins_over_any_port_in_the_same_scope() {
    let mut builder = TableBuilder::new("cluster.local");
    let a = builder.namespace("a");
    for port in [0, 80, 9080] {
        host(&mut builder, "x", None, port);
    }
    host(&mut builder, "y", Some(a), 0);
    host(&mut builder, "y", None, 80);
    let table = finished(builder);
    for (port, expected) in [(Some(80), 80), (Some(9080), 9080), (Some(81), 0), (None, 80)] {
        assert_eq!(found(&table, "default", "x", port), Ok(format!("x|all|{expected}")), "{port:?}");
    }
    assert_eq!(found(&table, "a", "y", Some(80)).as_deref(), Ok("y|a|0"), "the narrower scope comes before the port");
}

#[test]
fn a_wrong_port_in_the_own_scope_falls_back_to_the_scope_of_all() {
    let mut builder = TableBuilder::new("cluster.local");
    let a = builder.namespace("a");
    host(&mut builder, "x", Some(a), 80);
    host(&mut builder, "x", None, 9080);
    let table = finished(builder);
    assert_eq!(found(&table, "a", "x", Some(9080)).as_deref(), Ok("x|all|9080"));
    assert_eq!(found(&table, "b", "x", Some(80)), Err(NoRoute::UnknownPort(80)));
}

#[test]
fn a_host_of_any_length_is_looked_up_or_unknown() {
    let longest = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
    assert_eq!(longest.len(), 253);
    let mut builder = TableBuilder::new("cluster.local");
    host(&mut builder, &longest, None, 80);
    host(&mut builder, "*", None, 80);
    let table = finished(builder);
    assert_eq!(found(&table, "default", &longest, Some(80)), Ok(format!("{longest}|all|80")));
    assert_eq!(found(&table, "default", &"e".repeat(253), Some(80)).as_deref(), Ok("*|all|80"));
    assert_eq!(found(&table, "default", &"e".repeat(254), Some(80)), Err(NoRoute::UnknownHost));
}

#[test]
fn an_empty_table_knows_no_host() {
    let table = finished(TableBuilder::new("cluster.local"));
    assert_eq!(found(&table, "default", "x", Some(80)), Err(NoRoute::UnknownHost));
    assert_eq!(Viewpoint::resolve(table.table(), "default", "x").namespace_id, None);
}

#[test]
fn a_viewpoint_has_the_labels_of_its_workload_alone() {
    let mut builder = TableBuilder::new("cluster.local");
    let (a, b) = (builder.namespace("a"), builder.namespace("b"));
    builder.workload(b, "web", vec![("z".into(), "1".into()), ("app".into(), "b-web".into())]);
    builder.workload(a, "web", vec![("app".into(), "a-web".into())]);
    let table = finished(builder);
    let labels = |namespace, name| Viewpoint::resolve(table.table(), namespace, name).labels;
    assert_eq!(labels("a", "web"), [("app".to_owned(), "a-web".to_owned())]);
    assert_eq!(labels("b", "web"), [("app".to_owned(), "b-web".to_owned()), ("z".to_owned(), "1".to_owned())]);
    assert_eq!(labels("a", "db"), []);
    assert_eq!(labels("c", "web"), []);
}

#[test]
fn an_observer_hears_each_name_that_is_tried_in_order() {
    #[derive(Default)]
    struct Names(Vec<(String, bool)>);
    impl Observer for Names {
        fn domain(&mut self, name: &[u8], found: bool) {
            self.0.push((String::from_utf8_lossy(name).into_owned(), found));
        }
    }
    let mut builder = TableBuilder::new("cluster.local");
    host(&mut builder, "*.c", None, 80);
    let table = finished(builder);
    let mut names = Names::default();
    let viewpoint = default_viewpoint(&table);
    assert!(table.table().virtual_host(&viewpoint, b"a.b.c", Some(80), &mut names).is_ok());
    let heard: Vec<_> = names.0.iter().map(|(name, found)| (name.as_str(), *found)).collect();
    assert_eq!(heard, [("a.b.c", false), (".b.c", false), (".c", true)]);
}
