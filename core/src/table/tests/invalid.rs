//! A table that breaks one rule is refused as a whole, whoever wrote it, and the reason names array and position.

use super::*;
use crate::{
    id::{ClusterId, RegexId},
    limits::DIRECT_RESPONSE_BODY_BYTES_MAX,
    table::model::Workload,
};

type Break = fn(&mut Table);

fn options(table: &mut Table) -> &mut RouteOptions {
    table.routes.iter_mut().find_map(|r| r.options.as_deref_mut()).expect("a route with options")
}

fn rewrite(table: &mut Table) -> &mut Rewrite {
    options(table).rewrite.as_mut().expect("a rewrite")
}

fn conditions(table: &mut Table) -> &mut Vec<Condition> {
    &mut table.routes.iter_mut().find(|r| r.name == "all").expect("the rule `all`").matches[0].conditions
}

fn forward(table: &mut Table) -> (&mut u32, &mut u32, &mut u32) {
    match &mut table.routes.iter_mut().find(|r| r.name == "all").expect("the rule `all`").action {
        Action::Forward { first, count, weight_sum } => (first, count, weight_sum),
        other => panic!("{other:?}"),
    }
}

fn redirect(table: &mut Table) -> &mut Redirect {
    let redirects = table.routes.iter_mut().filter_map(|r| match &mut r.action {
        Action::Redirect(redirect) => Some(&mut **redirect),
        _ => None,
    });
    redirects.last().expect("a redirect")
}

fn direct(table: &mut Table) -> &mut DirectResponse {
    let direct = table.routes.iter_mut().filter_map(|r| match &mut r.action {
        Action::DirectResponse(response) => Some(&mut **response),
        _ => None,
    });
    direct.last().expect("a direct response")
}

/// What is broken, and what the refusal must say.
const BROKEN: &[(&str, Break)] = &[
    ("buckets[7]: size is not a power of two", |t| t.buckets = vec![0; 7]),
    ("buckets[0]: size is not a power of two", |t| t.buckets.clear()),
    ("no bucket is empty", |t| t.buckets.iter_mut().for_each(|b| *b = 1)),
    ("buckets[0]: domain 4 of 4", |t| t.buckets[0] = t.domains.len() as u32 + 1),
    ("domains[0]: virtual hosts 4 to 5 of 4", |t| t.domains[0].first = 4),
    ("domains[1]: virtual hosts", |t| t.domains[1].count = 5),
    ("domains[2]: virtual hosts 4294967295 to 8589934590 of 4", |t| {
        (t.domains[2].first, t.domains[2].count) = (u32::MAX, u32::MAX);
    }),
    ("virtual_hosts[0]: namespace 2 of 2", |t| t.virtual_hosts[0].scope = 2),
    ("virtual_hosts[3]: origin 99", |t| t.virtual_hosts[3].origin = OriginId(99)),
    ("virtual_hosts[1]: routes", |t| t.virtual_hosts[1].count = 99),
    ("virtual_hosts[1]: routes 4294967295", |t| t.virtual_hosts[1].first = u32::MAX),
    ("origin 99", |t| t.routes[0].origin = OriginId(99)),
    ("destinations 4294967295", |t| *forward(t).0 = u32::MAX),
    ("destinations 0 to 99 of 4", |t| *forward(t).1 = 99),
    ("weights sum to 100, declared 101", |t| *forward(t).2 = 101),
    ("weights sum to 0, declared 0", |t| (*forward(t).1, *forward(t).2) = (0, 0)),
    ("weights sum to 4294967395, declared 99", |t| {
        *forward(t).2 = 99;
        t.destinations[2].weight = u32::MAX;
    }),
    ("destinations[3]: cluster 3 of 3", |t| t.destinations[3].cluster = ClusterId(3)),
    ("destinations[1]: header name \"X-Upper\"", |t| {
        let headers = t.destinations[1].headers.as_mut().expect("edits");
        headers.request = vec![HeaderOp::Remove { name: "X-Upper".into() }];
    }),
    ("destinations[1]: control byte in x: \"a\\r\\nb: c\"", |t| {
        let headers = t.destinations[1].headers.as_mut().expect("edits");
        headers.response = vec![HeaderOp::Set { name: "x".into(), value: "a\r\nb: c".into() }];
    }),
    ("header name \"\"", |t| options(t).request_headers = vec![HeaderOp::Remove { name: String::new() }]),
    ("header name \"a b\"", |t| {
        options(t).request_headers = vec![HeaderOp::Add { name: "a b".into(), value: String::new() }];
    }),
    ("header name \"a:\"", |t| {
        options(t).response_headers = vec![HeaderOp::Add { name: "a:".into(), value: String::new() }];
    }),
    ("control byte in x: \"\\0\"", |t| {
        options(t).response_headers = vec![HeaderOp::Add { name: "x".into(), value: "\0".into() }];
    }),
    ("control byte in rewrite", |t| rewrite(t).uri = Some("/\r\nHost: evil".into())),
    ("control byte in rewrite", |t| rewrite(t).authority = Some("a\n".into())),
    ("control byte in rewrite", |t| rewrite(t).regex.as_mut().expect("a regex").replacement = "\u{7f}".into()),
    ("regex 1 of 1", |t| rewrite(t).regex.as_mut().expect("a regex").pattern = RegexId(1)),
    ("regex 1 of 1", |t| conditions(t)[0] = Condition::Uri(StringMatch::Regex(RegexId(1)))),
    ("regex 1 of 1", |t| conditions(t)[1] = Condition::Scheme(StringMatch::Regex(RegexId(1)))),
    ("regex 1 of 1", |t| conditions(t)[2] = Condition::Method(StringMatch::Regex(RegexId(1)))),
    ("regex 1 of 1", |t| conditions(t)[3] = Condition::Authority(StringMatch::Regex(RegexId(1)))),
    ("regex 9 of 1", |t| {
        conditions(t)[4] = Condition::Header { name: "x".into(), value: StringMatch::Regex(RegexId(9)) };
    }),
    ("regex 9 of 1", |t| {
        conditions(t)[5] = Condition::WithoutHeader { name: "x".into(), value: StringMatch::Regex(RegexId(9)) };
    }),
    ("regex 9 of 1", |t| {
        conditions(t)[6] = Condition::Query { name: "x".into(), value: StringMatch::Regex(RegexId(9)) };
    }),
    ("namespace 2 of 2", |t| conditions(t)[8] = Condition::SourceNamespace(NamespaceId(2))),
    ("redirect status 200", |t| redirect(t).status = 200),
    ("redirect status 304", |t| redirect(t).status = 304),
    ("control byte in redirect", |t| redirect(t).uri = Some("/\r\n\r\n<html>".into())),
    ("control byte in redirect", |t| redirect(t).authority = Some("a\0".into())),
    ("control byte in redirect", |t| redirect(t).scheme = Some("\n".into())),
    ("direct response status 101", |t| direct(t).status = 101),
    ("direct response status 600", |t| direct(t).status = 600),
    ("direct response of 1048577 bytes", |t| direct(t).body = vec![0; DIRECT_RESPONSE_BODY_BYTES_MAX + 1]),
    ("clusters[0]: endpoints 0 to 5 of 4", |t| t.clusters[0].count = 5),
    ("clusters[1]: endpoints", |t| t.clusters[1].first = 2),
    ("clusters[2]: endpoints 4294967295", |t| (t.clusters[2].first, t.clusters[2].count) = (u32::MAX, 1)),
    ("members[1]: endpoint 4 of 4", |t| t.members[1] = 4),
    ("endpoints[3]: IPv6 address 1 of 1", |t| t.endpoints[3].address = 1),
    ("endpoints[0]: IPv6 address", |t| t.endpoints[0].v6 = true),
    ("endpoints[2]: weight is 0", |t| t.endpoints[2].weight = 0),
    ("endpoints[1]: port is 0", |t| t.endpoints[1].port = 0),
    ("workloads[1]: namespace 2 of 2", |t| {
        t.workloads.push(Workload { namespace: NamespaceId(2), name: "x".into(), labels: Vec::new() });
    }),
];

#[test]
fn a_table_that_uses_every_type_is_sound() {
    let table = everything();
    let snapshot = published(&table);
    assert_eq!(rkyv::deserialize::<Table, rkyv::rancor::Error>(snapshot.table()).expect("memory"), table);
}

#[test]
fn each_kind_of_bad_index_weight_and_text_is_refused() {
    for (expected, break_it) in BROKEN {
        let mut table = everything();
        break_it(&mut table);
        match opened(&table) {
            Err(Refused::Meaning(invalid)) => {
                let message = invalid.to_string();
                assert!(message.contains(expected), "expected {expected:?}, got {message:?}");
            }
            Err(other) => panic!("{expected:?}: refused for another reason: {other}"),
            Ok(_) => panic!("{expected:?} was accepted"),
        }
    }
}

#[test]
fn what_looks_odd_but_is_harmless_is_accepted() {
    let accepted: &[(&str, Break)] = &[
        ("a domain without virtual hosts", |t| t.domains[0].count = 0),
        ("a cluster whose empty range ends at the end", |t| t.clusters[2].first = t.endpoints.len() as u32),
        ("a tab in a value", |t| {
            options(t).request_headers = vec![HeaderOp::Add { name: "x".into(), value: "a\tb".into() }];
        }),
        ("UTF-8 in a value", |t| {
            options(t).request_headers = vec![HeaderOp::Add { name: "x".into(), value: "é".into() }];
        }),
        ("one destination more", |t| {
            t.destinations.push(to(0));
        }),
    ];
    for (what, change) in accepted {
        let mut table = everything();
        change(&mut table);
        if let Err(refused) = opened(&table) {
            panic!("{what}: {refused}");
        }
    }
}

#[test]
fn a_pattern_that_does_not_compile_is_refused_with_its_text() {
    for pattern in ["(", "(a{1000}){1000}"] {
        let mut table = everything();
        table.regexes[0] = pattern.into();
        match opened(&table) {
            Err(Refused::Regex(error)) => assert_eq!(error.pattern, pattern),
            other => panic!("{pattern}: {other:?}"),
        }
    }
}
