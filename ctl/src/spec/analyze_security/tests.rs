//! What is told about policies that do not do what they seem to.

use crate::{
    diagnostic::{Severity, has_errors},
    source::{Cache, SourceFile, read_files},
    spec::World,
};

fn resource(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn access(name: &str, namespace: &str, spec: &str) -> String {
    resource("AuthorizationPolicy", name, namespace, spec)
}

fn peer(namespace: &str, mode: &str) -> String {
    resource("PeerAuthentication", "peer", namespace, &format!("{{mtls: {{mode: {mode}}}}}"))
}

fn jwt(name: &str, namespace: &str, selector: &str) -> String {
    let rules = "jwtRules: [{issuer: a.test, jwksUri: 'https://a.test/keys'}]";
    resource("RequestAuthentication", name, namespace, &format!("{{{selector}{rules}}}"))
}

fn pod(name: &str, namespace: &str, app: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\nspec: \
         {{serviceAccountName: x}}\nstatus: {{podIP: 10.0.0.1}}\n"
    )
}

/// `CODE RESOURCE: MESSAGE` of those with this code.
fn said(code: &str, text: &str) -> Vec<String> {
    told(code, text).into_iter().map(|(_, said)| said).collect()
}

fn told(code: &str, text: &str) -> Vec<(Severity, String)> {
    let reading = read_files(&[SourceFile { path: "mesh.yaml".into(), text: text.into() }], &mut Cache::default());
    assert!(!has_errors(&reading.diagnostics), "{:?}", reading.diagnostics);
    let (world, diagnostics) = World::assemble(reading.resources);
    assert!(!has_errors(&diagnostics), "{diagnostics:?}");
    let told = world.analyze();
    let those = told.into_iter().filter(|told| told.code.as_str() == code);
    those.map(|told| (told.severity, told.to_string())).collect()
}

const WEB: &str = "selector: {matchLabels: {app: web}}, ";

#[test]
fn a_selector_that_selects_no_known_workload_is_told_of() {
    for kind in ["AuthorizationPolicy", "RequestAuthentication", "PeerAuthentication"] {
        let policy = resource(kind, "a", "shop", "{selector: {matchLabels: {app: web}}}");
        let found = told("MR0514", &(pod("web", "else", "web") + &pod("db", "shop", "db") + &policy));
        let [(Severity::Info, text)] = &found[..] else { panic!("{kind}: {found:?}") };
        assert!(text.contains("no Pod or WorkloadEntry of namespace shop has app=web"), "{text}");
        assert_eq!(said("MR0514", &(pod("web", "shop", "web") + &policy)), [""; 0], "{kind}");
        assert_eq!(said("MR0514", &resource(kind, "a", "shop", "{}")), [""; 0], "{kind}: without a selector");
    }
    let of_mesh = access("a", "istio-system", "{selector: {matchLabels: {app: web}}}");
    assert_eq!(said("MR0514", &(pod("web", "else", "web") + &of_mesh)), [""; 0]);
    assert_eq!(said("MR0514", &of_mesh).len(), 1);
}

#[test]
fn conditions_on_tokens_need_a_request_authentication() {
    let pods = pod("web", "shop", "web") + &pod("db", "shop", "db");
    let policy = |action: &str, rule: &str| access("a", "shop", &format!("{{{WEB}action: {action}, rules: [{rule}]}}"));
    let principals = "{from: [{source: {requestPrincipals: ['*']}}]}";
    let claim = "{when: [{key: 'request.auth.claims[groups]', values: [admin]}]}";
    let negated = "{from: [{source: {notRequestPrincipals: ['*']}}]}";
    for (action, rule, expected) in [
        ("ALLOW", principals, "nobody is allowed by it"),
        ("ALLOW", claim, "nobody is allowed by it"),
        ("DENY", claim, "nobody is denied by it"),
        ("DENY", negated, "denies those with a token, too"),
    ] {
        let text = pods.clone() + &policy(action, rule);
        let found = said("MR0515", &text);
        assert!(found.len() == 1 && found[0].contains(expected), "{action} {rule}: {found:?}");
        assert!(found[0].starts_with("mesh.yaml:") && found[0].contains("spec.rules[0]"), "{found:?}");
        for taker in [jwt("j", "shop", WEB), jwt("j", "shop", ""), jwt("j", "istio-system", WEB)] {
            assert_eq!(said("MR0515", &(text.clone() + &taker)), [""; 0], "{taker}");
        }
        let db = "selector: {matchLabels: {app: db}}, ";
        for other in [jwt("j", "shop", db), jwt("j", "else", ""), resource("RequestAuthentication", "j", "shop", "{}")]
        {
            assert_eq!(said("MR0515", &(text.clone() + &other)).len(), 1, "{other}");
        }
    }
    assert_eq!(said("MR0515", &(pods.clone() + &policy("AUDIT", principals))), [""; 0]);
    assert_eq!(said("MR0515", &(pods + &policy("ALLOW", "{to: [{operation: {methods: [GET]}}]}"))), [""; 0]);
}

#[test]
fn a_denied_identity_needs_mutual_tls() {
    let web = pod("web", "shop", "web");
    let deny = |sources: &str| access("a", "shop", &format!("{{action: DENY, rules: [{{from: [{sources}]}}]}}"));
    let evil = "{source: {principals: [cluster.local/ns/x/sa/y]}}";
    for source in [evil, "{source: {namespaces: [x]}}", "{source: {serviceAccounts: [x/y]}}"] {
        let text = web.clone() + &deny(source);
        let found = said("MR0516", &text);
        assert!(
            found.len() == 1 && found[0].contains("shop/web takes them (PeerAuthentication PERMISSIVE)"),
            "{found:?}"
        );
        assert_eq!(said("MR0516", &(text.clone() + &peer("shop", "DISABLE"))).len(), 1);
        assert_eq!(said("MR0516", &(text.clone() + &peer("shop", "STRICT"))), [""; 0]);
        assert_eq!(said("MR0516", &(text + &peer("istio-system", "STRICT"))), [""; 0]);
    }
    let port = resource(
        "PeerAuthentication",
        "peer",
        "shop",
        &format!("{{{WEB}mtls: {{mode: STRICT}}, portLevelMtls: {{80: {{mode: DISABLE}}}}}}"),
    );
    let found = said("MR0516", &(web.clone() + &deny(evil) + &port));
    assert!(found.len() == 1 && found[0].contains("at port 80 (PeerAuthentication DISABLE)"), "{found:?}");
    // What the hint says silences it, and so does an allow list of identities.
    let nobodies = "{source: {notPrincipals: ['*']}}";
    assert_eq!(said("MR0516", &(web.clone() + &deny(&format!("{evil}, {nobodies}")))), [""; 0]);
    let allow = |rule: &str| web.clone() + &deny(evil) + &access("b", "shop", &format!("{{rules: [{rule}]}}"));
    assert_eq!(said("MR0516", &allow("{from: [{source: {namespaces: [shop]}}]}")), [""; 0]);
    assert_eq!(said("MR0516", &allow("{to: [{operation: {methods: [GET]}}]}")).len(), 1);
    assert_eq!(said("MR0516", &(web + &deny("{source: {notPrincipals: [x]}}"))), [""; 0]);
}

#[test]
fn custom_policies_need_one_provider_that_is_there() {
    let config = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                  extensionProviders:\n    - {name: one, envoyExtAuthzHttp: {service: a.test, port: 80}}\n    \
                  - {name: two, envoyExtAuthzHttp: {service: a.test, port: 80}}\n";
    let custom = |name: &str, namespace: &str, provider: &str| {
        let spec = format!("{{{WEB}action: CUSTOM, provider: {{name: {provider}}}, rules: [{{}}]}}");
        access(name, namespace, &spec)
    };
    let mesh = config.to_owned() + &pod("web-1", "shop", "web") + &pod("web-2", "shop", "web");
    let text = mesh.clone() + &custom("a", "shop", "nobody");
    let line = text.lines().position(|line| line.contains("CUSTOM")).unwrap() + 1;
    let found = told("MR0517", &text);
    let [(Severity::Error, said_of)] = &found[..] else { panic!("{found:?}") };
    assert!(said_of.starts_with(&format!("mesh.yaml:{line}:")), "{said_of}");
    assert!(said_of.contains("no extensionProvider `nobody`") && said_of.contains("that it selects is denied"));
    assert_eq!(said("MR0517", &(mesh.clone() + &custom("a", "shop", "one"))), [""; 0]);

    let one = mesh + &custom("a", "shop", "one");
    assert_eq!(said("MR0518", &(one.clone() + &custom("b", "shop", "one"))), [""; 0]);
    assert_eq!(said("MR0518", &(one.clone() + &custom("b", "else", "two"))), [""; 0]);
    for namespace in ["shop", "istio-system"] {
        let found = told("MR0518", &(one.clone() + &custom("b", namespace, "two")));
        let [(Severity::Error, text)] = &found[..] else { panic!("{found:?}") };
        assert!(text.contains("AuthorizationPolicy shop/a at mesh.yaml:"), "{text}");
        assert!(text.contains("for shop/web-1 and 1 more: every request to it is denied"), "{text}");
    }
    let tried =
        custom("b", "shop", "two").replace("metadata: {", "metadata: {annotations: {istio.io/dry-run: 'true'}, ");
    assert_eq!(said("MR0518", &(one + &tried)), [""; 0]);
}

fn entry(address: &str, account: &str, more: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: web, namespace: shop}}\nspec:\n  hosts: \
         [web.test]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{{number: 80, name: http, targetPort: 8080}}]\n  \
         endpoints:\n  - {{address: {address}, serviceAccount: {account}{more}}}\n"
    )
}

fn workload(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: \
         {{{spec}}}\n"
    )
}

#[test]
fn an_endpoint_with_another_identity_than_the_workload_there_is_told_of_with_both_places() {
    let one = |text: &str| {
        let found = told("MR0519", text);
        let [(Severity::Warning, text)] = &found[..] else { panic!("{found:?}") };
        text.clone()
    };
    let none = |text: &str| assert_eq!(said("MR0519", text), [""; 0], "{text}");
    let web = entry("10.0.0.7", "web", "");
    let at_7 = |namespace: &str, more: &str| workload("w", namespace, &format!("address: 10.0.0.7{more}"));
    let text = one(&(web.clone() + &at_7("shop", ", serviceAccount: other")));
    assert!(text.starts_with("mesh.yaml:11:5: ") && text.contains("ServiceEntry shop/web"), "{text}");
    assert!(text.contains("spec.endpoints[0].serviceAccount: 10.0.0.7:8080 has the identity shop/web here"), "{text}");
    assert!(text.contains("shop/other by WorkloadEntry shop/w at mesh.yaml:13:1: callers will refuse"), "{text}");
    // The namespace is half of an identity.
    assert!(one(&(web.clone() + &at_7("else", ", serviceAccount: web"))).contains("that of else/web by"));
    none(&(web.clone() + &at_7("shop", ", serviceAccount: web")));
    // Its proxy may say who it is.
    none(&(web.clone() + &at_7("shop", "")));
    // Another one at the same address is the one, or has that port.
    none(
        &(web.clone()
            + &at_7("shop", ", serviceAccount: other")
            + &workload("x", "shop", "address: 10.0.0.7, serviceAccount: web")),
    );
    none(&(web.clone() + &at_7("shop", ", serviceAccount: other, ports: {http: 9090}")));
    assert!(one(&(web.clone() + &at_7("shop", ", serviceAccount: other, ports: {http: 8080}"))).contains("shop/other"));
    none(
        &(entry("10.0.0.7", "web", ", ports: {http: 1}")
            + &at_7("shop", ", serviceAccount: other, ports: {http: 8080}")),
    );
    none(&(web + &workload("w", "shop", "address: 10.0.0.8, serviceAccount: other")));
    // Pods have an account in any case.
    assert!(one(&(entry("10.0.0.1", "web", "") + &pod("p", "shop", "web"))).contains("shop/x by Pod shop/p at"));
    none(&(entry("10.0.0.1", "x", "") + &pod("p", "shop", "web")));

    // A slice that gives a Pod another one's address.
    let slice = |address: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, namespace: shop, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: \
             [{{addresses: [{address}], targetRef: {{kind: Pod, name: p}}}}]\n"
        )
    };
    let both = pod("p", "shop", "web") + &at_7("shop", ", serviceAccount: other");
    let text = one(&(both.clone() + &slice("10.0.0.7")));
    assert!(text.contains("EndpointSlice shop/s") && text.contains("10.0.0.7:8080 has the identity shop/x"), "{text}");
    none(&(both + &slice("10.0.0.1")));
}
