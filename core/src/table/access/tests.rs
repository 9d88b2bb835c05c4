//! What a policy means, and that the index finds what a scan of all rules finds.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::{
    id::Generation,
    snapshot::{Refused, Snapshot, encode},
    table::{Table, TableBuilder, security::InboundPolicy},
};

#[derive(Debug, Clone)]
struct Request {
    principal: Option<String>,
    ip: IpAddr,
    host: String,
    method: &'static str,
    path: String,
    port: u16,
    headers: Vec<(String, String)>,
    claims: Vec<(String, Vec<String>)>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            principal: Some("cluster.local/ns/a/sa/b".into()),
            ip: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
            host: "shop.example.com".into(),
            method: "GET",
            path: "/api/v1/items".into(),
            port: 8080,
            headers: Vec::new(),
            claims: Vec::new(),
        }
    }
}

impl AccessView for Request {
    fn principal(&self) -> Option<&[u8]> {
        self.principal.as_deref().map(str::as_bytes)
    }
    fn sni(&self) -> Option<&[u8]> {
        None
    }
    fn peer_ip(&self) -> IpAddr {
        self.ip
    }
    fn remote_ip(&self) -> IpAddr {
        self.ip
    }
    fn destination_ip(&self) -> IpAddr {
        self.ip
    }
    fn port(&self) -> u16 {
        self.port
    }
    fn host(&self) -> &[u8] {
        self.host.as_bytes()
    }
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.headers.iter().find(|(known, _)| known == name).is_some_and(|(_, value)| predicate(value.as_bytes()))
    }
    fn request_principal(&self) -> Option<&[u8]> {
        None
    }
    fn claim<'p>(&self, path: impl Iterator<Item = &'p str> + Clone, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let path = path.collect::<Vec<_>>().join(".");
        let values = self.claims.iter().find(|(known, _)| *known == path).map(|(_, values)| values);
        values.into_iter().flatten().any(|value| predicate(value.as_bytes()))
    }
}

#[derive(Default, Debug, PartialEq)]
struct Heard {
    observed: Vec<(u32, u32)>,
    allowed: Option<(u32, u32)>,
}

impl AccessObserver for Heard {
    fn observed(&mut self, policy: u32, rule: u32) {
        self.observed.push((policy, rule));
    }
    fn allowed_by(&mut self, policy: u32, rule: u32) {
        self.allowed = Some((policy, rule));
    }
}

fn condition(attribute: Attribute, values: Vec<AccessValue>, not_values: Vec<AccessValue>) -> AccessCondition {
    AccessCondition { attribute, values, not_values }
}

fn when(attribute: Attribute, value: AccessValue) -> AccessRule {
    AccessRule { when: vec![condition(attribute, vec![value], vec![])], ..AccessRule::default() }
}

fn unless(path: &str) -> AccessRule {
    AccessRule { when: vec![condition(Attribute::Path, vec![], vec![exact(path)])], ..AccessRule::default() }
}

fn exact(text: &str) -> AccessValue {
    AccessValue::Exact(text.into())
}

fn policy(action: PolicyAction, rules: Vec<AccessRule>) -> AuthorizationPolicy {
    AuthorizationPolicy { origin: crate::id::OriginId(0), action, dry_run: false, rules }
}

/// The policies, in this order, hold for inbound policy 0.
fn table(policies: Vec<AuthorizationPolicy>) -> Table {
    let mut builder = TableBuilder::new("cluster.local");
    let origin = builder.origin("AuthorizationPolicy default/test");
    let authorization: Vec<u32> =
        policies.into_iter().map(|policy| builder.authorization(AuthorizationPolicy { origin, ..policy })).collect();
    builder.inbound_policy(InboundPolicy { authorization, ..InboundPolicy::default() });
    builder.finish().expect("a table")
}

fn opened(table: &Table) -> Result<Snapshot, Refused> {
    Snapshot::from_bytes(&encode(table).expect("an archive").to_bytes(Generation(1)))
}

fn decide(policies: Vec<AuthorizationPolicy>, request: &Request) -> Decision {
    let snapshot = opened(&table(policies)).expect("a sound table");
    snapshot.table().access(Some(0), Stage::First, request, &mut Unheard)
}

fn decide_connection(policies: Vec<AuthorizationPolicy>, request: &Request) -> Decision {
    let snapshot = opened(&table(policies)).expect("a sound table");
    snapshot.table().connection_access(Some(0), request, &mut Unheard)
}

/// Each rule in order, as Istio describes it, without index.
fn reference(snapshot: &Snapshot, request: &Request) -> (Decision, Heard) {
    let table = snapshot.table();
    let (mut deny, mut allow, mut allows) = (None, None, false);
    let mut heard = Heard::default();
    for (position, policy) in table.authorization.iter().enumerate() {
        let enforced = !policy.dry_run;
        let hit = policy.rules.iter().position(|rule| rule.failure(request).is_none());
        let hit = hit.map(|rule| (position as u32, rule as u32));
        match policy.action {
            ArchivedPolicyAction::Deny if enforced => deny = deny.or(hit),
            ArchivedPolicyAction::Allow if enforced => {
                allows = true;
                allow = allow.or(hit);
            }
            _ => heard.observed.extend(hit),
        }
    }
    let decision = match (deny, allow) {
        (Some((policy, rule)), _) => Decision::Denied { policy, rule },
        (None, None) if allows => Decision::DeniedByDefault,
        (None, allow) => {
            heard.allowed = allow;
            Decision::Allowed
        }
    };
    (decision, heard)
}

#[test]
fn actions_decide_in_istios_order() {
    let all = || vec![AccessRule::default()];
    let request = Request::default();
    assert_eq!(decide(vec![], &request), Decision::Allowed, "nothing selects the workload");
    assert_eq!(decide(vec![policy(PolicyAction::Allow, vec![])], &request), Decision::DeniedByDefault, "spec: {{}}");
    assert_eq!(decide(vec![policy(PolicyAction::Allow, all())], &request), Decision::Allowed, "rules: [{{}}]");
    assert_eq!(decide(vec![policy(PolicyAction::Deny, vec![])], &request), Decision::Allowed, "no rule denies nothing");
    assert_eq!(decide(vec![policy(PolicyAction::Audit, all())], &request), Decision::Allowed);
    let denied = decide(vec![policy(PolicyAction::Deny, all()), policy(PolicyAction::Allow, all())], &request);
    assert_eq!(denied, Decision::Denied { policy: 0, rule: 0 });
    let dry = AuthorizationPolicy { dry_run: true, ..policy(PolicyAction::Deny, all()) };
    assert_eq!(decide(vec![dry], &request), Decision::Allowed);
    let dry = AuthorizationPolicy { dry_run: true, ..policy(PolicyAction::Allow, vec![]) };
    assert_eq!(decide(vec![dry], &request), Decision::Allowed, "a dry run of ALLOW denies nobody");
}

#[test]
fn a_rule_about_http_never_allows_a_connection_and_denies_more_of_them() {
    let request = Request::default();
    let source = |text: &str| condition(Attribute::Namespace, vec![exact(text)], vec![]);
    let http = [
        condition(Attribute::Path, vec![exact("/api/v1/items")], vec![]),
        condition(Attribute::Method, vec![], vec![exact("POST")]),
        condition(Attribute::Host, vec![AccessValue::Present], vec![]),
        condition(Attribute::Header("x".into()), vec![], vec![exact("y")]),
        condition(Attribute::Claim(vec!["c".into()]), vec![], vec![exact("y")]),
        condition(Attribute::RequestPrincipal, vec![], vec![exact("y")]),
    ];
    for about_http in http {
        let rule = |namespace: &str, is_when: bool| {
            let term = |conditions| vec![AccessTerm { conditions }];
            let (to, when) =
                if is_when { (vec![], vec![about_http.clone()]) } else { (term(vec![about_http.clone()]), vec![]) };
            AccessRule { line: 1, from: term(vec![source(namespace)]), to, when }
        };
        for is_when in [false, true] {
            let allow = vec![policy(PolicyAction::Allow, vec![rule("a", is_when)])];
            assert_eq!(decide(allow.clone(), &request), Decision::Allowed, "{about_http:?}");
            assert_eq!(decide_connection(allow, &request), Decision::DeniedByDefault, "{about_http:?}");
            let deny = |namespace| vec![policy(PolicyAction::Deny, vec![rule(namespace, is_when)])];
            assert_eq!(
                decide_connection(deny("a"), &request),
                Decision::Denied { policy: 0, rule: 0 },
                "{about_http:?}"
            );
            assert_eq!(decide_connection(deny("b"), &request), Decision::Allowed, "{about_http:?}");
        }
    }
    // One alternative about HTTP spoils the whole rule, but not the next one.
    let alternatives = vec![
        AccessTerm { conditions: vec![condition(Attribute::Port, vec![AccessValue::Port(8080)], vec![])] },
        AccessTerm { conditions: vec![condition(Attribute::Path, vec![exact("/")], vec![])] },
    ];
    let mixed = AccessRule { to: alternatives, ..AccessRule::default() };
    let allow = |rules| vec![policy(PolicyAction::Allow, rules)];
    assert_eq!(decide_connection(allow(vec![mixed.clone()]), &request), Decision::DeniedByDefault);
    let port = when(Attribute::Port, AccessValue::Port(8080));
    assert_eq!(decide_connection(allow(vec![mixed, port]), &request), Decision::Allowed);
}

#[test]
fn what_a_request_lacks_matches_no_value() {
    let plain = Request { principal: None, ..Request::default() };
    let anybody = || AccessValue::Present;
    let not =
        AccessRule { when: vec![condition(Attribute::Principal, vec![], vec![anybody()])], ..AccessRule::default() };
    assert_eq!(
        decide(vec![policy(PolicyAction::Deny, vec![when(Attribute::Principal, anybody())])], &plain),
        Decision::Allowed
    );
    assert_eq!(decide(vec![policy(PolicyAction::Deny, vec![not])], &plain), Decision::Denied { policy: 0, rule: 0 });
    for odd in ["cluster.local/ns/a", "cluster.local/x/a/sa/b", "cluster.local/ns/a/sa/b/c", ""] {
        let odd = Request { principal: Some(odd.into()), ..Request::default() };
        let allow = policy(PolicyAction::Allow, vec![when(Attribute::Namespace, exact("a"))]);
        assert_eq!(decide(vec![allow], &odd), Decision::DeniedByDefault, "{odd:?}");
    }
}

#[test]
fn each_attribute_and_value_is_compared_as_istio_does() {
    let mut request = Request::default();
    request.headers.push(("x-empty".into(), String::new()));
    request.claims.push(("groups.inner".into(), vec!["dev".into(), "ops".into()]));
    let block = |ip: [u8; 4], length: u8| AccessValue::Block {
        address: Ipv4Addr::from(ip).to_ipv6_mapped().octets(),
        length: 96 + length,
    };
    let template = |parts: &[TemplatePart]| AccessValue::Template(parts.to_vec());
    let text = |text: &str| TemplatePart::Text(text.into());
    let claim = || Attribute::Claim(vec!["groups".into(), "inner".into()]);
    let prefix = |text: &str| AccessValue::Prefix(text.into());
    let suffix = |text: &str| AccessValue::Suffix(text.into());
    let cases = [
        (Attribute::Principal, exact("cluster.local/ns/a/sa/b"), true),
        (Attribute::Principal, prefix("cluster.local/ns/"), true),
        (Attribute::Principal, suffix("/sa/c"), false),
        (Attribute::TrustDomain, exact("cluster.local"), true),
        (Attribute::Namespace, exact("a"), true),
        (Attribute::ServiceAccount, exact("a/b"), true),
        (Attribute::ServiceAccount, exact("a/bc"), false),
        (Attribute::Host, exact("SHOP.example.com"), true),
        (Attribute::Host, suffix(".EXAMPLE.com"), true),
        (Attribute::Host, exact("shop.example.com:80"), false),
        (Attribute::Method, exact("get"), false),
        (Attribute::Path, exact("/API/v1/items"), false),
        (Attribute::Path, prefix("/api/v1/items/"), false),
        (Attribute::Path, template(&[text("/api/"), TemplatePart::Segment, text("/items")]), true),
        (Attribute::Path, template(&[text("/api/"), TemplatePart::Segment]), false),
        (Attribute::Path, template(&[text("/api/"), TemplatePart::Rest]), true),
        (Attribute::Path, template(&[text("/api/"), TemplatePart::Rest, text("s")]), true),
        (Attribute::Path, template(&[text("/api/v1/items"), TemplatePart::Segment]), false),
        (Attribute::SourceIp, block([10, 1, 0, 0], 16), true),
        (Attribute::SourceIp, block([10, 1, 2, 3], 32), true),
        (Attribute::SourceIp, block([10, 1, 2, 2], 32), false),
        (Attribute::SourceIp, AccessValue::Block { address: [0; 16], length: 0 }, true),
        (Attribute::Port, AccessValue::Port(8080), true),
        (Attribute::Header("x-empty".into()), AccessValue::Present, true),
        (Attribute::Header("x-none".into()), AccessValue::Present, false),
        (Attribute::Sni, AccessValue::Present, false),
        (claim(), exact("ops"), true),
        (claim(), exact("de"), false),
    ];
    for (attribute, value, wanted) in cases {
        let shown = format!("{attribute:?} {value:?}");
        let found = decide(vec![policy(PolicyAction::Allow, vec![when(attribute, value)])], &request);
        assert_eq!(found == Decision::Allowed, wanted, "{shown}");
    }
}

#[test]
fn an_authorizer_is_asked_first_and_once() {
    let mut built = table(vec![
        policy(PolicyAction::Custom(0), vec![when(Attribute::Path, exact("/api/v1/items"))]),
        policy(PolicyAction::Deny, vec![when(Attribute::Method, exact("GET"))]),
    ]);
    let refused = opened(&built).expect_err("the authorizer is not there").to_string();
    assert!(refused.contains("external authorizer 0 of 0"), "{refused}");
    built.clusters.clear();
    let mut builder = TableBuilder::new("cluster.local");
    let origin = builder.origin("test");
    let cluster = builder.cluster(
        "authorizer",
        crate::table::model::BalancePolicy::Random,
        crate::table::model::ClusterKind::Static,
        crate::table::build::ClusterEndpoints::Selection(&[]),
    );
    builder.ext_authz(ExtAuthz {
        name: "a".into(),
        cluster,
        authority: "authorizer".into(),
        path_prefix: String::new(),
        timeout_ms: 1,
        fail_open: false,
        status_on_error: 403,
        request_headers: vec![],
        additional_headers: vec![],
        headers_to_upstream: vec![],
        headers_to_downstream: vec![],
        headers_on_deny: vec![],
    });
    let authorization =
        built.authorization.drain(..).map(|policy| builder.authorization(AuthorizationPolicy { origin, ..policy }));
    let authorization = authorization.collect();
    builder.inbound_policy(InboundPolicy { authorization, ..InboundPolicy::default() });
    let snapshot = opened(&builder.finish().expect("a table")).expect("sound");
    let ask = |stage| snapshot.table().access(Some(0), stage, &Request::default(), &mut Unheard);
    assert_eq!(ask(Stage::First), Decision::Ask { ext_authz: 0, policy: 0, rule: 0 });
    assert_eq!(ask(Stage::AfterCustom), Decision::Denied { policy: 1, rule: 0 });
    // Of a connection there is nothing to ask about: whoever decides is told all the same.
    let connection = snapshot.table().connection_access(Some(0), &Request::default(), &mut Unheard);
    assert_eq!(connection, Decision::Ask { ext_authz: 0, policy: 0, rule: 0 });
}

#[test]
fn an_index_that_hides_a_rule_is_refused() {
    let sound = || {
        table(vec![
            policy(PolicyAction::Deny, vec![when(Attribute::Path, exact("/a")), AccessRule::default(), unless("/b")]),
            policy(PolicyAction::Allow, vec![]),
        ])
    };
    type Break = fn(&mut Table);
    let breaks: [(&str, Break); 20] = [
        ("a rule is left out", |t| t.access_indexes[0].rules[0] = t.access_indexes[0].rules[1]),
        ("the residue is out of bounds", |t| t.access_indexes[0].residue = 9),
        ("a policy has no group", |t| t.access_indexes[0].groups.clear()),
        ("the group of policy 0 is not its own", |t| t.access_indexes[0].groups[0] = 2),
        ("rules are not in order", |t| t.access_indexes[0].rules.swap(0, 1)),
        ("the attribute of a negation is out of bounds", |t| t.access_indexes[0].negations[0].attribute = 9),
        ("what a negation rules out is out of bounds", |t| t.access_indexes[0].negations[0].count = 9),
        ("the negations of a key are out of bounds", |t| t.access_indexes[0].negated.keys[0].count = 9),
        ("a rule that is ruled out is out of bounds", |t| t.access_indexes[0].ruled_out[0].first = 9),
        ("a rule is ruled out by what it may see", |t| t.access_indexes[0].ruled_out[0].first = 0),
        ("a rule is ruled out by what it may see", |t| t.access_indexes[0].negations[0].value = exact("/c")),
        ("rules are ruled out again and again", |t| {
            let index = &mut t.access_indexes[0];
            let range = index.ruled_out[0];
            index.ruled_out.push(range);
            index.negations[0].count = 2;
        }),
        ("an ALLOW policy is hidden", |t| t.access_indexes[0].allows = false),
        ("an index that is not its own", |t| t.access_index_of.clear()),
        ("an index that is not its own", |t| t.access_index_of[0] = 7),
        ("a policy is out of bounds", |t| t.access_indexes[0].policies[0] = 9),
        ("not a power of two", |t| t.access_indexes[0].filed.buckets.clear()),
        ("no bucket is empty", |t| t.access_indexes[0].filed.buckets.fill(1)),
        ("the rules of a key are out of bounds", |t| t.access_indexes[0].filed.keys[0].count = 9),
        ("is out of bounds", |t| t.access_indexes[0].rules[0].rule = 9),
    ];
    assert!(opened(&sound()).is_ok());
    for (wanted, break_it) in breaks {
        let mut table = sound();
        break_it(&mut table);
        let refused = opened(&table).expect_err(wanted).to_string();
        assert!(refused.contains(wanted), "{refused}");
    }
}

#[test]
fn of_very_many_rules_each_counts() {
    let count = crate::limits::ACCESS_RULED_OUT_MAX as u32 + 100;
    for hit in [0, 64, count - 101, count - 100, count - 1] {
        let rules = (0..count).map(|at| unless(if at == hit { "/b" } else { "/a" })).collect();
        let request = Request { path: "/a".into(), ..Request::default() };
        assert_eq!(
            decide(vec![policy(PolicyAction::Deny, rules)], &request),
            Decision::Denied { policy: 0, rule: hit }
        );
    }
}

fn any_value() -> impl Strategy<Value = AccessValue> {
    prop_oneof![
        3 => "[ab/]{0,3}".prop_map(AccessValue::Exact),
        2 => "[ab/]{0,3}".prop_map(AccessValue::Prefix),
        2 => "[aB/]{0,3}".prop_map(AccessValue::Suffix),
        1 => Just(AccessValue::Present),
        1 => ("[/ab]{0,2}", any::<bool>(), prop::option::of("[/ab]{0,2}")).prop_map(|(text, rest, end)| {
            let mut parts = vec![TemplatePart::Text(text), if rest { TemplatePart::Rest } else { TemplatePart::Segment }];
            parts.extend(end.map(TemplatePart::Text));
            AccessValue::Template(parts)
        }),
    ]
}

fn either(attribute: Attribute, value: AccessValue, is_negated: bool) -> AccessCondition {
    let (values, not_values) = if is_negated { (vec![], vec![value]) } else { (vec![value], vec![]) };
    condition(attribute, values, not_values)
}

fn any_condition() -> impl Strategy<Value = AccessCondition> {
    let attribute = prop_oneof![
        Just(Attribute::Principal),
        Just(Attribute::Namespace),
        Just(Attribute::ServiceAccount),
        Just(Attribute::Host),
        Just(Attribute::Path),
        "[xy]".prop_map(Attribute::Header),
        Just(Attribute::Claim(vec!["c".into()])),
    ];
    let values = || prop::collection::vec(any_value(), 0..3);
    let text = (attribute, values(), values())
        .prop_map(|(attribute, values, not_values)| condition(attribute, values, not_values));
    let block = (any::<[bool; 2]>(), 96..=128_u8).prop_map(|(ends, length)| {
        let address = Ipv4Addr::new(10, 1, 2, 2 + u8::from(ends[0])).to_ipv6_mapped().octets();
        either(Attribute::SourceIp, AccessValue::Block { address, length }, ends[0] ^ ends[1])
    });
    let port = (8080..8082_u16, any::<bool>())
        .prop_map(|(port, is_negated)| either(Attribute::Port, AccessValue::Port(port), is_negated));
    prop_oneof![6 => text, 1 => block, 1 => port]
}

fn any_rule() -> impl Strategy<Value = AccessRule> {
    let term = || prop::collection::vec(any_condition(), 1..3).prop_map(|conditions| AccessTerm { conditions });
    let terms = || prop::collection::vec(term(), 0..3);
    (terms(), terms(), prop::collection::vec(any_condition(), 0..2)).prop_map(|(from, to, when)| AccessRule {
        line: 1,
        from,
        to,
        when,
    })
}

fn any_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![Just(PolicyAction::Allow), Just(PolicyAction::Deny), Just(PolicyAction::Audit)];
    (action, any::<bool>(), any::<bool>(), prop::collection::vec(any_rule(), 0..6))
        .prop_map(|(action, a, b, rules)| AuthorizationPolicy { dry_run: a && b, ..policy(action, rules) })
}

fn any_request() -> impl Strategy<Value = Request> {
    let principal = prop::option::of(prop_oneof![
        ("[ab]{1,2}", "[ab]{1,2}").prop_map(|(namespace, name)| format!("a/ns/{namespace}/sa/{name}")),
        "[ab/]{0,4}"
    ]);
    let headers = prop::collection::vec(("[xy]".prop_map(String::from), "[ab/]{0,3}".prop_map(String::from)), 0..2);
    let claims = prop::collection::vec("[ab/]{0,3}".prop_map(String::from), 0..3);
    (principal, 0..4_u8, "[aAbB/]{0,4}", "[ab/]{0,4}", 8080..8082_u16, headers, claims).prop_map(
        |(principal, ip, host, path, port, headers, claims)| Request {
            principal,
            ip: IpAddr::V4(Ipv4Addr::new(10, 1, 2, ip)),
            host,
            path,
            port,
            headers,
            claims: vec![("c".into(), claims)],
            ..Request::default()
        },
    )
}

proptest! {
    #[test]
    fn a_connection_is_judged_as_a_request_where_no_rule_is_about_http(
        policies in prop::collection::vec(any_policy(), 0..6),
        request in any_request(),
    ) {
        let is_http = |condition: &AccessCondition| {
            matches!(condition.attribute, Attribute::Host | Attribute::Path | Attribute::Header(_) | Attribute::Claim(_))
        };
        let mut policies = policies;
        for rule in policies.iter_mut().flat_map(|policy| policy.rules.iter_mut()) {
            rule.when.retain(|condition| !is_http(condition));
            for terms in [&mut rule.from, &mut rule.to] {
                terms.iter_mut().for_each(|term| term.conditions.retain(|condition| !is_http(condition)));
            }
        }
        let snapshot = opened(&table(policies)).expect("a sound table");
        let mut heard = Heard::default();
        let decision = snapshot.table().connection_access(Some(0), &request, &mut heard);
        let (wanted, mut told) = reference(&snapshot, &request);
        prop_assert_eq!(decision, wanted);
        heard.observed.sort_unstable();
        told.observed.sort_unstable();
        prop_assert_eq!((heard.observed, heard.allowed), (told.observed, told.allowed));
    }

    #[test]
    fn the_index_finds_what_a_scan_finds(
        policies in prop::collection::vec(any_policy(), 0..6),
        requests in prop::collection::vec(any_request(), 1..12),
    ) {
        let snapshot = opened(&table(policies)).expect("a sound table");
        for request in &requests {
            let mut heard = Heard::default();
            let decision = snapshot.table().access(Some(0), Stage::First, request, &mut heard);
            let (wanted, mut told) = reference(&snapshot, request);
            prop_assert_eq!(decision, wanted, "{:?}", request);
            // Which rule of a policy that is not enforced is told first, and in which order policies are, is open.
            let policies = |heard: &mut Heard| {
                let mut list: Vec<u32> = heard.observed.iter().map(|(policy, _)| *policy).collect();
                list.sort_unstable();
                (list, heard.allowed)
            };
            prop_assert_eq!(policies(&mut heard), policies(&mut told));
        }
    }
}
