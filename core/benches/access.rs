//! What AuthorizationPolicies cost per request: nanoseconds per decision for 0 to 1,000 rules of the usual shapes, all in one
//! policy and in a policy each. `cargo bench -p meshring-core --bench access`; without `--bench` each case runs once.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use meshring_core::{
    id::Generation,
    snapshot::{Snapshot, encode},
    table::{
        TableBuilder,
        access::{
            AccessCondition, AccessRule, AccessTerm, AccessValue, AccessView, Attribute, AuthorizationPolicy, Decision,
            PolicyAction, Stage, TemplatePart, Unheard,
        },
        security::InboundPolicy,
    },
};

struct Request;

impl AccessView for Request {
    fn principal(&self) -> Option<&[u8]> {
        Some(b"cluster.local/ns/shop/sa/client-500")
    }
    fn sni(&self) -> Option<&[u8]> {
        None
    }
    fn peer_ip(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 1, 244, 7))
    }
    fn remote_ip(&self) -> IpAddr {
        self.peer_ip()
    }
    fn destination_ip(&self) -> IpAddr {
        self.peer_ip()
    }
    fn port(&self) -> u16 {
        8080
    }
    fn host(&self) -> &[u8] {
        b"tenant-500.example.com"
    }
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn path(&self) -> &[u8] {
        b"/api/v1/items-500/details"
    }
    fn header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        name == "x-tenant" && predicate(b"tenant-500")
    }
    fn request_principal(&self) -> Option<&[u8]> {
        None
    }
    fn claim<'p>(&self, _: impl Iterator<Item = &'p str> + Clone, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

fn condition(attribute: Attribute, value: AccessValue) -> AccessCondition {
    AccessCondition { attribute, values: vec![value], not_values: Vec::new() }
}

fn term(conditions: Vec<AccessCondition>) -> Vec<AccessTerm> {
    vec![AccessTerm { conditions }]
}

type Shape = (&'static str, fn(u32) -> AccessRule);

/// The request matches rule 500 of each.
const SHAPES: [Shape; 10] = [
    ("principal, path, method", |number| AccessRule {
        from: term(vec![condition(
            Attribute::Principal,
            AccessValue::Exact(format!("cluster.local/ns/shop/sa/client-{number}")),
        )]),
        to: term(vec![
            condition(Attribute::Path, AccessValue::Prefix(format!("/api/v1/items-{number}/"))),
            condition(Attribute::Method, AccessValue::Exact("GET".into())),
        ]),
        ..AccessRule::default()
    }),
    ("path prefix", |number| AccessRule {
        to: term(vec![condition(Attribute::Path, AccessValue::Prefix(format!("/api/v1/items-{number}/")))]),
        ..AccessRule::default()
    }),
    ("host", |number| AccessRule {
        to: term(vec![condition(Attribute::Host, AccessValue::Exact(format!("tenant-{number}.example.com")))]),
        ..AccessRule::default()
    }),
    ("ipBlocks", |number| AccessRule {
        from: term(vec![condition(
            Attribute::SourceIp,
            AccessValue::Block {
                address: Ipv4Addr::new(10, (number / 256) as u8, number as u8, 0).to_ipv6_mapped().octets(),
                length: 96 + 24,
            },
        )]),
        ..AccessRule::default()
    }),
    ("header", |number| AccessRule {
        when: vec![condition(Attribute::Header("x-tenant".into()), AccessValue::Exact(format!("tenant-{number}")))],
        ..AccessRule::default()
    }),
    ("path template", |number| AccessRule {
        to: term(vec![condition(
            Attribute::Path,
            AccessValue::Template(vec![
                TemplatePart::Text("/api/".into()),
                TemplatePart::Segment,
                TemplatePart::Text(format!("/items-{number}/details")),
            ]),
        )]),
        ..AccessRule::default()
    }),
    // Nothing to file a rule by but what it must not see.
    ("notPaths, the same in each", |number| not_paths(if number == 500 { "/x" } else { "/api" }.into(), None)),
    ("notPaths, others in each", |number| {
        not_paths(if number == 500 { "/x" } else { "/api" }.into(), Some(format!("/of-{number}")))
    }),
    // Or what all of them ask for.
    ("one principal, notPaths", |number| AccessRule {
        from: term(vec![condition(
            Attribute::Principal,
            AccessValue::Exact("cluster.local/ns/shop/sa/client-500".into()),
        )]),
        ..not_paths(if number == 500 { "/x" } else { "/api" }.into(), None)
    }),
    // All from the 500th on match.
    ("any principal", |number| AccessRule {
        from: term(vec![AccessCondition {
            attribute: Attribute::Principal,
            values: vec![AccessValue::Present],
            not_values: if number < 500 { vec![AccessValue::Present] } else { Vec::new() },
        }]),
        ..AccessRule::default()
    }),
];

fn not_paths(prefix: String, other: Option<String>) -> AccessRule {
    let not_values = std::iter::once(prefix).chain(other).map(AccessValue::Prefix).collect();
    let condition = AccessCondition { attribute: Attribute::Path, values: Vec::new(), not_values };
    AccessRule { to: term(vec![condition]), ..AccessRule::default() }
}

fn snapshot(rules: u32, one_policy: bool, rule: fn(u32) -> AccessRule) -> Snapshot {
    let mut builder = TableBuilder::new("cluster.local");
    let origin = builder.origin("AuthorizationPolicy shop/bench");
    let rules: Vec<AccessRule> = (0..rules).map(rule).collect();
    let lists: Vec<Vec<AccessRule>> =
        if one_policy { vec![rules] } else { rules.into_iter().map(|r| vec![r]).collect() };
    let policy = |rules| AuthorizationPolicy { origin, action: PolicyAction::Deny, dry_run: false, rules };
    let authorization = lists.into_iter().map(|rules| builder.authorization(policy(rules))).collect();
    builder.inbound_policy(InboundPolicy { authorization, ..InboundPolicy::default() });
    let table = builder.finish().expect("a table");
    Snapshot::from_bytes(&encode(&table).expect("an archive").to_bytes(Generation(1))).expect("a sound table")
}

fn main() {
    let timed = std::env::args().any(|argument| argument == "--bench");
    for (name, rule) in SHAPES {
        for (count, one_policy) in [(0, true), (10, true), (100, true), (1000, true), (1000, false)] {
            let snapshot = snapshot(count, one_policy, rule);
            let decide = || snapshot.table().access(Some(0), Stage::First, black_box(&Request), &mut Unheard);
            assert_eq!(decide() == Decision::Allowed, count <= 500, "{name}, {count} rules");
            if timed {
                let (repeats, runs) = (20_000_u32, 7);
                let run = || {
                    let start = Instant::now();
                    (0..repeats).for_each(|_| _ = black_box(decide()));
                    start.elapsed().as_nanos() as f64 / f64::from(repeats)
                };
                let least = (0..runs).map(|_| run()).fold(f64::INFINITY, f64::min);
                let policies = if one_policy { "one policy" } else { "a policy each" };
                println!("{name:<26} {count:>5} rules, {policies:<14} {least:>10.1} ns");
            }
        }
    }
}
