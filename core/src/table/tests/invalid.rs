//! A table that breaks one rule is refused as a whole, whoever wrote it, and the reason names array and position.

use super::*;
use crate::{
    id::RegexId,
    limits::DIRECT_RESPONSE_BODY_BYTES_MAX,
    table::{
        model::{ENDPOINT_V6, HeavyWeight, Settings, Workload},
        protocol::PROTOCOLS_NONE,
    },
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

fn heavy(endpoint: u32, weight: u32) -> HeavyWeight {
    HeavyWeight { endpoint: crate::id::EndpointId(endpoint), weight }
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
    ("domains[2]: virtual host for scope 1, port 9080 is out of order", |t| t.virtual_hosts[2..4].reverse()),
    ("domains[2]: virtual host for scope 4294967295, port 80 is out of order", |t| {
        t.virtual_hosts[2].scope = u32::MAX;
        (t.virtual_hosts[2].port, t.virtual_hosts[3].port) = (0, 80);
    }),
    ("domains[2]: virtual host for scope 4294967295, port 80 is out of order", |t| {
        t.virtual_hosts[2].scope = u32::MAX;
        (t.virtual_hosts[2].port, t.virtual_hosts[3].port) = (80, 80);
    }),
    ("destinations[1]: header name \"X-Upper\"", |t| {
        let headers = t.destinations[1].headers.as_mut().expect("edits");
        headers.request = vec![HeaderOp::Remove { name: "X-Upper".into() }];
    }),
    ("destinations[1]: x \"a\\r\\nb: c\" contains '\\r'", |t| {
        let headers = t.destinations[1].headers.as_mut().expect("edits");
        headers.response = vec![HeaderOp::Set { name: "x".into(), value: "a\r\nb: c".into() }];
    }),
    ("destinations[1]: host \"a b\" contains ' '", |t| {
        let headers = t.destinations[1].headers.as_mut().expect("edits");
        headers.request = vec![HeaderOp::Set { name: "host".into(), value: "a b".into() }];
    }),
    ("header name \"\"", |t| options(t).request_headers = vec![HeaderOp::Remove { name: String::new() }]),
    ("header name \"a b\"", |t| {
        options(t).request_headers = vec![HeaderOp::Add { name: "a b".into(), value: String::new() }];
    }),
    ("header name \"a:\"", |t| {
        options(t).response_headers = vec![HeaderOp::Add { name: "a:".into(), value: String::new() }];
    }),
    ("x \"\\0\" contains '\\0'", |t| {
        options(t).response_headers = vec![HeaderOp::Add { name: "x".into(), value: "\0".into() }];
    }),
    ("header name \"host\" cannot be removed", |t| {
        options(t).request_headers = vec![HeaderOp::Remove { name: "host".into() }];
    }),
    ("host \"\" is empty", |t| {
        options(t).request_headers = vec![HeaderOp::Set { name: "host".into(), value: String::new() }];
    }),
    ("header name \"transfer-encoding\" is a field of the connection or of the framing", |t| {
        options(t).request_headers = vec![HeaderOp::Set { name: "transfer-encoding".into(), value: "chunked".into() }];
    }),
    ("header name \"content_length\" is a field of the connection or of the framing", |t| {
        options(t).response_headers = vec![HeaderOp::Add { name: "content_length".into(), value: "0".into() }];
    }),
    ("rewrite.uri \"/\\r\\nHost: evil\" contains '\\r'", |t| rewrite(t).uri = Some("/\r\nHost: evil".into())),
    ("rewrite.uri \"/a b\" contains ' '", |t| rewrite(t).uri = Some("/a b".into())),
    ("rewrite.uri \"/é\" contains a character that is not ASCII", |t| rewrite(t).uri = Some("/é".into())),
    ("rewrite.uri \"/a#b\" is no request target: the request target has a fragment", |t| {
        rewrite(t).uri = Some("/a#b".into());
    }),
    ("rewrite.uri \"/%2\" is no request target", |t| rewrite(t).uri = Some("/%2".into())),
    ("rewrite.authority \"a\\n\" contains '\\n'", |t| rewrite(t).authority = Some("a\n".into())),
    ("rewrite.authority \"a b\" contains ' '", |t| rewrite(t).authority = Some("a b".into())),
    ("rewrite.authority \"u@a\" is neither HOST nor HOST:PORT", |t| rewrite(t).authority = Some("u@a".into())),
    ("rewrite.uriRegexRewrite \"\\u{7f}\" contains '\\u{7f}'", |t| {
        rewrite(t).regex.as_mut().expect("a regex").replacement = "\u{7f}".into();
    }),
    ("rewrite.uriRegexRewrite \"/ ${1}\" contains ' '", |t| {
        rewrite(t).regex.as_mut().expect("a regex").replacement = "/ ${1}".into();
    }),
    ("rewrite.uriRegexRewrite \"/#${1}\" contains '#'", |t| {
        rewrite(t).regex.as_mut().expect("a regex").replacement = "/#${1}".into();
    }),
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
    ("redirect.uri \"/\\r\\n\\r\\n<html>\" contains '\\r'", |t| redirect(t).uri = Some("/\r\n\r\n<html>".into())),
    ("redirect.uri \"/a b\" contains ' '", |t| redirect(t).uri = Some("/a b".into())),
    ("redirect.uri \".evil.example\" does not begin with a slash", |t| redirect(t).uri = Some(".evil.example".into())),
    ("redirect.authority \"a\\0\" contains '\\0'", |t| redirect(t).authority = Some("a\0".into())),
    ("redirect.authority \"a/b\" is neither HOST nor HOST:PORT", |t| redirect(t).authority = Some("a/b".into())),
    ("redirect.scheme \"\\n\" is no scheme", |t| redirect(t).scheme = Some("\n".into())),
    ("redirect.scheme \"ht tp\" contains ' '", |t| redirect(t).scheme = Some("ht tp".into())),
    ("direct response status 101", |t| direct(t).status = 101),
    ("direct response status 600", |t| direct(t).status = 600),
    ("direct response of 1048577 bytes", |t| direct(t).body = vec![0; DIRECT_RESPONSE_BODY_BYTES_MAX + 1]),
    ("clusters[0]: endpoints 0 to 5 of 4", |t| t.clusters[0].count = 5),
    ("clusters[1]: endpoints", |t| t.clusters[1].first = 2),
    ("clusters[2]: endpoints 4294967295", |t| (t.clusters[2].first, t.clusters[2].count) = (u32::MAX, 1)),
    ("members[1]: endpoint 4 of 4", |t| t.members[1] = 4),
    ("endpoints[3]: IPv6 address 1 of 1", |t| t.endpoints[3].address = 1),
    ("endpoints[0]: IPv6 address", |t| t.endpoints[0].family_and_weight |= ENDPOINT_V6),
    ("endpoints[2]: weight is 0", |t| t.endpoints[2].family_and_weight = 0),
    ("heavy_weights[0]: endpoint 4 of 4", |t| t.heavy_weights.push(heavy(4, 40_000))),
    ("heavy_weights[0]: endpoint 0 has a weight of its own", |t| t.heavy_weights.push(heavy(0, 40_000))),
    ("heavy_weights[0]: weight 8191 is not heavy", |t| {
        t.endpoints[0].family_and_weight = 0;
        t.heavy_weights.push(heavy(0, 8_191));
    }),
    ("heavy_weights[1]: endpoint 0 is out of order", |t| {
        t.endpoints[0].family_and_weight = 0;
        t.heavy_weights = vec![heavy(0, 40_000), heavy(0, 40_000)];
    }),
    ("endpoints[1]: port is 0", |t| t.endpoints[1].port = 0),
    ("settings[0]: 33 trusted hops are more than 32", |t| t.settings.trusted_hops = 33),
    ("workloads[1]: namespace 2 of 2", |t| {
        t.workloads.push(Workload {
            namespace: NamespaceId(2),
            name: "x".into(),
            labels: Vec::new(),
            policy: POLICY_NONE,
            protocols: PROTOCOLS_NONE,
        });
    }),
    ("workloads[0]: application's ports 1 of 1", |t| t.workloads[0].protocols = 1),
    ("application_ports[0]: ports are out of order", |t| t.application_ports[0].reverse()),
    ("application_ports[0]: ports are out of order", |t| t.application_ports[0][1].0 = 8080),
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
        ("a query in a rewrite", |t| rewrite(t).uri = Some("/a?b=c".into())),
        ("a rewrite without its slash", |t| rewrite(t).uri = Some("a%20b".into())),
        ("an escape that a group completes", |t| {
            rewrite(t).regex.as_mut().expect("a regex").replacement = "/%${1}".into();
        }),
        ("a fragment in a redirect", |t| redirect(t).uri = Some("/a?b#c".into())),
        ("an IPv6 address with port as authority", |t| redirect(t).authority = Some("[::1]:8443".into())),
        ("a framing field that is removed: it is the proxy's own anyway", |t| {
            options(t).response_headers = vec![HeaderOp::Remove { name: "transfer-encoding".into() }];
        }),
        ("a heavy weight", |t| {
            t.endpoints[3].family_and_weight = ENDPOINT_V6;
            t.heavy_weights.push(heavy(3, u32::MAX));
        }),
        ("the most trusted hops", |t| t.settings = Settings { trusted_hops: 32, ..t.settings }),
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
