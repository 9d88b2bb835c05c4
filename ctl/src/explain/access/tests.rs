use meshring_core::{
    id::Generation,
    snapshot::{reader::Snapshot, writer},
};

use crate::{
    api::types::ExplainRequest,
    compile::{NoDns, compile},
    diagnostic,
    explain::{Explanation, Question, explain},
    source::{Cache, SourceFile, read_files},
    spec::World,
};

const SHOP: &str = "apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-1, labels: {app: reviews, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: reviews}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: page, labels: {app: page}}
spec: {serviceAccountName: shop}
status: {podIP: 10.0.0.9}
";

fn ask_at(text: &str, path: &str, headers: &[&str]) -> Explanation {
    let file = SourceFile { path: "mesh.yaml".into(), text: text.into() };
    let reading = read_files(&[file], &mut Cache::default());
    assert!(!diagnostic::has_errors(&reading.diagnostics), "{:?}", reading.diagnostics);
    let (world, _) = World::assemble(reading.resources);
    let table = compile(&world, &NoDns).unwrap();
    let snapshot = Snapshot::from_bytes(&writer::encode(&table).unwrap().to_bytes(Generation(1))).unwrap();
    let headers = headers.iter().map(ToString::to_string).collect();
    let request = ExplainRequest {
        from: "default/page".into(),
        url: format!("http://reviews{path}"),
        tcp: None,
        sni: None,
        method: None,
        headers,
    };
    explain(&snapshot, &world, &Question::parse(&request).unwrap())
}

fn ask(more: &str) -> Explanation {
    ask_at(&format!("{SHOP}{more}"), "/", &[])
}

fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!("---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

#[test]
fn without_policies_the_connection_is_mutual_and_everybody_may_come() {
    let explanation = ask("");
    let [access] = &explanation.access[..] else { panic!("{explanation:?}") };
    assert_eq!((access.decision.as_str(), access.mtls_mode.as_str()), ("allowed", "PERMISSIVE"));
    assert_eq!(access.connection.secured, "auto_mtls");
    assert_eq!(access.source.as_deref(), Some("cluster.local/ns/default/sa/shop"));
    assert_eq!(access.connection.sni.as_deref(), Some("outbound_.80_._.reviews.default.svc.cluster.local"));
    assert_eq!(access.workloads, ["default/reviews-1"]);
}

#[test]
fn the_rule_that_decides_has_its_line_and_others_say_which_part_failed() {
    let allow = policy(
        "AuthorizationPolicy",
        "a",
        "\n  rules:\n  - from: [{source: {principals: ['x/*']}}]\n  - to: [{operation: {methods: [POST]}}]\n  - when: [{key: 'request.headers[v]', values: ['1']}]\n  - from: [{source: {serviceAccounts: [shop]}}]",
    );
    let explanation = ask(&allow);
    let [access] = &explanation.access[..] else { panic!("{explanation:?}") };
    let failed: Vec<_> = access.policies[0].rules.iter().map(|rule| rule.failed.as_deref()).collect();
    assert_eq!(failed, [Some("from"), Some("to"), Some("when[0]"), None]);
    let by = access.by.as_ref().unwrap();
    let line = SHOP.lines().count() + 10;
    assert_eq!((by.rule.as_str(), &by.place), ("rules[3]", &format!("mesh.yaml:{line}")));
    let text = explanation.to_string();
    assert!(text.contains("allowed by rules[3] of AuthorizationPolicy default/a (mesh.yaml:"), "{text}");

    let only_post = policy("AuthorizationPolicy", "a", "{rules: [{to: [{operation: {methods: [POST]}}]}]}");
    assert_eq!(ask(&only_post).access[0].decision, "denied_by_default");
    let deny = policy("AuthorizationPolicy", "b", "{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}");
    // Rules do not see the parameters of a path.
    let denied = ask_at(&format!("{SHOP}{deny}"), "/admin;x=1", &[]);
    assert_eq!(denied.access[0].decision, "denied");
    assert!(denied.access[0].summary.contains("AuthorizationPolicy default/b"), "{denied}");
}

#[test]
fn strict_refuses_plain_text_and_a_plain_caller_has_no_identity() {
    let off = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\n\
               spec: {host: reviews, trafficPolicy: {tls: {mode: DISABLE}}}\n";
    let strict = policy("PeerAuthentication", "p", "{mtls: {mode: STRICT}}");
    let refused = ask(&format!("{off}{strict}"));
    let access = &refused.access[0];
    assert_eq!((access.decision.as_str(), access.connection.secured.as_str()), ("refused", "plain"));
    assert!(access.mtls_origin.as_ref().unwrap().starts_with("PeerAuthentication default/p (mesh.yaml:"));
    assert!(access.connection.because.contains("DestinationRule default/r (mesh.yaml:"), "{refused}");
    let allow = policy("AuthorizationPolicy", "a", "{rules: [{from: [{source: {principals: ['*']}}]}]}");
    let plain = ask(&format!("{off}{allow}"));
    assert_eq!(plain.access[0].source, None);
    assert_eq!(plain.access[0].decision, "denied_by_default");
    assert_eq!(ask(&allow).access[0].decision, "allowed");
}

#[test]
fn a_token_is_not_verified_and_said_so() {
    let jwt = policy("RequestAuthentication", "j", "{jwtRules: [{issuer: me, jwksUri: 'https://me.example/keys'}]}");
    let allow = policy("AuthorizationPolicy", "a", "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}");
    let explanation = ask_at(&format!("{SHOP}{jwt}{allow}"), "/", &["authorization: Bearer x.y.z"]);
    let access = &explanation.access[0];
    assert_eq!(access.decision, "denied_by_default");
    assert!(access.notes.iter().any(|note| note.contains("not verified") && note.contains("me")), "{explanation}");
}

#[test]
fn a_slice_names_the_pod_whose_policies_count() {
    let slice = "---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-1, labels: {app: reviews}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-x, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: reviews-1}}]
";
    let deny =
        policy("AuthorizationPolicy", "d", "{selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{}]}");
    let explanation = ask_at(&format!("{slice}{deny}"), "/", &[]);
    let access = &explanation.access[0];
    assert_eq!(
        (access.workloads.as_slice(), access.decision.as_str()),
        (&["default/reviews-1".to_owned()][..], "denied")
    );
}

#[test]
fn the_protocol_that_is_spoken_is_told_with_what_decides_it() {
    let spoken = |more: &str| {
        let explanation = ask(more);
        let [destination] = &explanation.destinations[..] else { panic!("{explanation:?}") };
        assert!(explanation.to_string().contains(&format!(" speaks {}\n", destination.spoken)), "{explanation}");
        destination.spoken.to_string()
    };
    assert_eq!(spoken(""), "HTTP/1.1: the port is HTTP (`http`)");
    let rule = |http: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews}}\nspec: {{host: reviews, \
             trafficPolicy: {{connectionPool: {{http: {{{http}}}}}}}}}\n"
        )
    };
    let because = "h2UpgradePolicy of DestinationRule default/reviews (mesh.yaml:18:1)";
    assert_eq!(
        spoken(&rule("h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 9")),
        format!("HTTP/2, at most 9 streams on a connection: {because}")
    );
}
