use super::*;
use crate::{
    compile::{NoDns, compile},
    source::{Cache, Reading, SourceFile, read_files},
    spec::{Body, Labels, World},
};
use meshring_core::table::access::PolicyAction;

fn read(spec: &str) -> Reading {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n{spec}"
    );
    read_files(&[SourceFile { path: "p.yaml".into(), text: text.into() }], &mut Cache::default())
}

fn policy(spec: &str) -> AuthorizationPolicy {
    let reading = read(spec);
    assert_eq!(reading.diagnostics, [], "{}", reading.diagnostics[0]);
    match &reading.resources[0].body {
        Body::AuthorizationPolicy(policy) => (**policy).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_field_is_read_with_its_line() {
    let policy = policy(
        "  selector: {matchLabels: {app: web}}\n  action: DENY\n  rules:\n  - from:\n    - source:\n        principals: \
         [\"cluster.local/ns/a/sa/b\", \"*/sa/c\", \"x/*\", \"*\"]\n        notNamespaces: [dev]\n        serviceAccounts: [b, a/c]\n        \
         ipBlocks: [10.1.0.0/16, \"::1\"]\n    to:\n    - operation:\n        ports: [\"8080\"]\n        paths: [\"/a/{*}/b\", \
         \"/c/{**}\"]\n    when:\n    - key: request.headers[X-User]\n      values: [jason]\n    - key: request.auth.claims[a][b]\n      \
         notValues: [c]\n",
    );
    let web = Labels::new(vec![("app".into(), "web".into())]);
    assert_eq!((policy.action, policy.scope), (Action::Deny, Scope::Selector(web)));
    let rule = &policy.rules[0];
    assert_eq!(rule.line, 8);
    let text = |text: &str| TemplatePart::Text(text.into());
    let exact = |text: &str| AccessValue::Exact(text.into());
    let [from] = &rule.from[..] else { panic!("{rule:?}") };
    assert_eq!(
        from.conditions[0].values,
        [
            exact("cluster.local/ns/a/sa/b"),
            AccessValue::Suffix("/sa/c".into()),
            AccessValue::Prefix("x/".into()),
            AccessValue::Present
        ]
    );
    assert_eq!(
        (&from.conditions[1].attribute, &from.conditions[1].not_values),
        (&Attribute::Namespace, &vec![exact("dev")])
    );
    assert_eq!(from.conditions[2].values, [exact("shop/b"), exact("a/c")]);
    let lengths: Vec<u8> = from.conditions[3]
        .values
        .iter()
        .map(|value| if let AccessValue::Block { length, .. } = value { *length } else { panic!("{value:?}") })
        .collect();
    assert_eq!(lengths, [112, 128]);
    let paths = &rule.to[0].conditions[1].values;
    assert_eq!(paths[0], AccessValue::Template(vec![text("/a/"), TemplatePart::Segment, text("/b")]));
    assert_eq!(paths[1], AccessValue::Template(vec![text("/c/"), TemplatePart::Rest]));
    assert_eq!(rule.when[0].attribute, Attribute::Header("x-user".into()));
    assert_eq!(rule.when[1].attribute, Attribute::Claim(vec!["a".into(), "b".into()]));
}

#[test]
fn what_is_wrong_names_line_and_field() {
    for (spec, wanted) in [
        ("  action: REFUSE\n", "spec.action: `REFUSE` is not an action"),
        ("  action: CUSTOM\n  rules: [{}]\n", "spec.provider.name: is missing"),
        ("  provider: {name: a}\n", "spec.provider: is for CUSTOM only"),
        ("  rules: [{from: []}]\n", "spec.rules[0].from: is empty"),
        ("  rules: [{from: [{source: {}}]}]\n", "spec.rules[0].from[0].source: is empty"),
        ("  rules: [{to: [{}]}]\n", "spec.rules[0].to[0].operation: is missing"),
        ("  rules: [{from: [{source: {principal: [a]}}]}]\n", "unknown field `principal`"),
        ("  rules: [{to: [{operation: {ports: [\"0\"]}}]}]\n", "spec.rules[0].to[0].operation.ports[0]"),
        ("  rules: [{to: [{operation: {methods: [\"\"]}}]}]\n", "methods[0]: is empty"),
        ("  rules: [{to: [{operation: {paths: [\"/a{*}\"]}}]}]\n", "in a part of a segment"),
        ("  rules: [{to: [{operation: {paths: [\"/{**}/{*}\"]}}]}]\n", "an operator behind {**}"),
        ("  rules: [{to: [{operation: {paths: [\"/{*}/*\"]}}]}]\n", "outside of {*} and {**}"),
        ("  rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]\n", "`10.0.0.0/33` is not an address block"),
        ("  rules: [{from: [{source: {serviceAccounts: [\"a/*\"]}}]}]\n", "is not a service account"),
        ("  rules: [{when: [{key: source.port, values: [a]}]}]\n", "`source.port` is not a key of a condition"),
        ("  rules: [{when: [{key: \"request.headers[a b]\", values: [a]}]}]\n", "is not a key of a condition"),
        ("  rules: [{when: [{key: source.ip}]}]\n", "values: is missing"),
    ] {
        let reading = read(spec);
        let told: Vec<String> = reading.diagnostics.iter().map(ToString::to_string).collect();
        assert!(reading.resources.is_empty() && told.iter().any(|told| told.contains(wanted)), "{spec}: {told:?}");
        assert!(told.iter().all(|told| told.starts_with("p.yaml:")), "{told:?}");
    }
}

#[test]
fn what_is_not_honoured_opens_no_door() {
    let when = "  rules: [{when: [{key: experimental.envoy.filters.a, values: [b]}]}]\n";
    for (action, rules) in [("ALLOW", 0), ("DENY", 1), ("AUDIT", 0)] {
        let reading = read(&format!("  action: {action}\n{when}"));
        assert!(reading.diagnostics[0].to_string().contains("MR0603"), "{}", reading.diagnostics[0]);
        let Body::AuthorizationPolicy(policy) = &reading.resources[0].body else { panic!() };
        assert_eq!(policy.rules.len(), rules, "{action}");
    }
}

const GATEWAY_API: &str = "group: gateway.networking.k8s.io";

#[test]
fn targets_are_read_and_those_without_workloads_here_are_told() {
    let gateway = format!("{{{GATEWAY_API}, kind: Gateway, name: edge}}");
    for spec in [format!("targetRefs: [{gateway}]"), format!("targetRef: {gateway}")] {
        assert_eq!(policy(&format!("  {spec}\n")).scope, Scope::Gateways(vec!["edge".into()]), "{spec}");
    }
    assert_eq!(policy("  targetRefs: []\n").scope, Scope::default());
    for (target, wanted) in [
        ("kind: Service, name: a", "waypoint"),
        ("group: networking.istio.io, kind: ServiceEntry, name: a", "waypoint"),
        ("group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint", "waypoint"),
        ("group: networking.istio.io, kind: Gateway, name: a", "`selector` with the labels that the Gateway selects"),
    ] {
        let reading = read(&format!("  targetRefs:\n  - {gateway}\n  - {{{target}}}\n"));
        let [told] = &reading.diagnostics[..] else { panic!("{target}: {:?}", reading.diagnostics) };
        let text = format!("{told} {:?}", told.hint);
        assert!(text.starts_with("p.yaml:7:") && text.contains("spec.targetRefs[1]"), "{text}");
        assert!(text.contains("MR0603") && text.contains("guards nothing") && text.contains(wanted), "{text}");
        let Body::AuthorizationPolicy(policy) = &reading.resources[0].body else { panic!() };
        assert_eq!(policy.scope, Scope::Gateways(vec!["edge".into()]), "{target}");
    }
    for (spec, wanted) in [
        ("targetRefs: [{kind: Gateway, name: a}]", "`Gateway` of group ``"),
        ("targetRefs: [{group: apps, kind: Deployment, name: a}]", "`Deployment` of group `apps`"),
        ("targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway}]", "spec.targetRefs[0].name"),
        ("targetRefs: [{group: gateway.networking.k8s.io, name: a}]", "spec.targetRefs[0].kind"),
        ("targetRef: {kind: Service, name: a, namespace: b}", "spec.targetRef.namespace"),
        (
            "targetRefs: [{kind: Service, name: a}]\n  selector: {matchLabels: {a: b}}",
            "both `selector` and `targetRefs`",
        ),
        (
            "targetRefs: [{kind: Service, name: a}]\n  targetRef: {kind: Service, name: b}",
            "both `targetRefs` and `targetRef`",
        ),
    ] {
        let reading = read(&format!("  {spec}\n"));
        let told = reading.diagnostics.iter().filter(|diagnostic| diagnostic.is_error());
        let told: Vec<_> = told.map(ToString::to_string).collect();
        assert!(reading.resources.is_empty() && told.iter().any(|told| told.contains(wanted)), "{spec}: {told:?}");
    }
}

/// Actions of the policies in the table, and which of them each workload has.
fn compiled(text: &str) -> (Vec<(PolicyAction, bool)>, Vec<Vec<u32>>) {
    let reading = read_files(&[SourceFile { path: "p.yaml".into(), text: text.into() }], &mut Cache::default());
    let (world, _) = World::assemble(reading.resources);
    let table = compile(&world, &NoDns).expect("a table");
    let of = |position: u32| table.inbound_policies.get(position as usize).map(|policy| policy.authorization.clone());
    let lists = table.workloads.iter().map(|workload| of(workload.policy).unwrap_or_default());
    let lists = lists.chain([of(table.mesh_policy).unwrap_or_default()]).collect();
    (table.authorization.iter().map(|policy| (policy.action, policy.dry_run)).collect(), lists)
}

const WORKLOADS: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: web, namespace: shop, labels: \
    {app: web}}\nspec: {address: 10.0.0.1, labels: {app: web}}\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
    metadata: {name: zzz, namespace: shop}\nspec: {address: 10.0.0.2}\n";

fn resource(namespace: &str, name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}, \
         annotations: {{{annotations}}}}}\nspec: {spec}\n"
    )
}

#[test]
fn each_workload_has_what_selects_it_in_istios_order() {
    let text = [
        WORKLOADS,
        &resource("shop", "a-allow", "", "{}"),
        &resource("shop", "b-deny", "", "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}"),
        &resource("istio-system", "mesh", "istio.io/dry-run: \"true\"", "{action: AUDIT, rules: [{}]}"),
        &resource("other", "foreign", "", "{action: DENY, rules: [{}]}"),
    ]
    .concat();
    let (policies, lists) = compiled(&text);
    let position = |wanted| policies.iter().position(|policy| *policy == wanted).unwrap() as u32;
    let allow = position((PolicyAction::Allow, false));
    let audit = position((PolicyAction::Audit, true));
    assert_eq!(lists[0].len(), 3, "{lists:?}");
    assert_eq!(policies[lists[0][0] as usize].0, PolicyAction::Deny);
    assert_eq!(lists[0][1..], [allow, audit]);
    assert_eq!(lists[1..], [vec![allow, audit], vec![audit]]);
}

#[test]
fn a_policy_for_a_gateway_is_for_its_workloads_in_the_same_namespace() {
    let workload = |namespace: &str, name: &str, gateway: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: \
             {namespace}}}\nspec: {{address: 10.0.0.1, labels: {{app: {name}, \
             gateway.networking.k8s.io/gateway-name: {gateway}}}}}\n"
        )
    };
    let targets = |names: [&str; 2]| {
        let [a, b] = names.map(|name| format!("{{{GATEWAY_API}, kind: Gateway, name: {name}}}"));
        format!("{{targetRefs: [{a}, {b}], action: DENY, rules: [{{}}]}}")
    };
    let text = [
        workload("istio-system", "a-root", "edge"),
        workload("shop", "b-edge", "edge"),
        workload("shop", "c-inner", "inner"),
        workload("shop", "d-other", "other"),
        resource("shop", "edges", "", &targets(["edge", "inner"])),
        // From the root namespace it goes no further than from any other.
        resource("istio-system", "root", "", &targets(["edge", "none"])),
        // What is for a waypoint is for nobody.
        resource("shop", "service", "", "{targetRefs: [{kind: Service, name: web}], action: DENY, rules: [{}]}"),
        // One without targets goes by labels, here as elsewhere.
        resource("shop", "inner", "", "{selector: {matchLabels: {app: c-inner}}}"),
    ]
    .concat();
    let (policies, lists) = compiled(&text);
    let actions = |list: &Vec<u32>| list.iter().map(|&position| policies[position as usize].0).collect::<Vec<_>>();
    let (deny, allow) = (PolicyAction::Deny, PolicyAction::Allow);
    let lists: Vec<_> = lists.iter().map(actions).collect();
    assert_eq!(lists, [vec![deny], vec![deny], vec![deny, allow], vec![], vec![]]);
}

#[test]
fn an_authorizer_that_is_not_there_denies() {
    let custom = "{action: CUSTOM, provider: {name: none}, rules: [{to: [{operation: {paths: [/a]}}]}]}";
    let (policies, lists) = compiled(&[WORKLOADS, &resource("shop", "a", "", custom)].concat());
    assert_eq!((policies, &lists[0][..]), (vec![(PolicyAction::Deny, false)], &[0][..]));
}
