//! PeerAuthentication, TLS of DestinationRules, automatic mutual TLS, gateways, MeshConfig: which one counts.

use meshring_core::table::{
    model::{ArchivedTable, DEFAULT_TRUST_DOMAIN, Reach},
    security::{ArchivedClusterTls, ArchivedClusterTlsMode, ArchivedInboundPolicy, MtlsMode, POLICY_NONE, TLS_NONE},
};

use super::*;

pub(super) fn security(kind: &str, name: &str, namespace: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {rest}\n"
    )
}

fn peer(name: &str, namespace: &str, rest: &str) -> String {
    security("PeerAuthentication", name, namespace, rest)
}

pub(super) fn pod(name: &str, namespace: &str, labels: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec: \
         {{serviceAccountName: sa-{name}}}\nstatus: {{podIP: {address}}}\n"
    )
}

fn policy<'t>(mesh: &'t Mesh, workload: &str) -> Option<&'t ArchivedInboundPolicy> {
    let (namespace, name) = workload.split_once('/').unwrap();
    let position = Viewpoint::resolve(mesh.0.table(), namespace, name).policy?;
    Some(&mesh.0.table().inbound_policies[position])
}

/// `MODE PORT=MODE ... by RESOURCE`, or nothing where there is no policy.
fn mtls(mesh: &Mesh, workload: &str) -> String {
    let Some(policy) = policy(mesh, workload) else { return String::new() };
    let mut text = MtlsMode::from(policy.mtls).as_str().to_owned();
    for port in policy.port_mtls.iter() {
        text += &format!(" {}={}", port.0, MtlsMode::from(port.1).as_str());
    }
    if let Some(origin) = policy.mtls_origin.as_ref() {
        let origin = mesh.0.table().origin(origin.into());
        text += &format!(" by {}", origin.split(" (").next().unwrap().trim_start_matches("PeerAuthentication "));
    }
    text
}

fn bytes(text: &str) -> Vec<u8> {
    encoded(text, &NoDns)
}

/// The only cluster of that name.
fn tls<'t>(table: &'t ArchivedTable, cluster: &str) -> Option<&'t ArchivedClusterTls> {
    let cluster = table.clusters.iter().find(|known| known.name.as_str() == cluster).unwrap();
    let position = cluster.tls.to_native();
    (position != TLS_NONE).then(|| &table.cluster_tls[position as usize])
}

fn names(tls: &ArchivedClusterTls) -> Vec<&str> {
    tls.subject_alt_names.iter().map(|name| name.as_str()).collect()
}

/// How the endpoints of the table are reached.
fn reached(mesh: &Mesh) -> Vec<Reach> {
    mesh.0.table().endpoints.iter().map(|endpoint| endpoint.reach()).collect()
}

/// Which of them speak mutual TLS on their own ports.
fn speaking(mesh: &Mesh) -> Vec<bool> {
    reached(mesh).into_iter().map(|reach| reach == Reach::Mtls).collect()
}

const SIDECAR: &str = "app: web, security.istio.io/tlsMode: istio";
const WEB: &str = "outbound|80||web.default.svc.cluster.local";

/// A Service `web` with a selector and Pods with sidecars.
fn web(pods: &[(&str, &str)]) -> String {
    let mut text = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{name: http, port: \
                    80, targetPort: 8080}]}\n"
        .to_owned();
    for (index, (name, labels)) in pods.iter().enumerate() {
        text += &pod(name, "default", labels, &format!("10.0.0.{}", index + 1));
    }
    text
}

#[test]
fn without_a_security_resource_the_table_has_no_policy() {
    let text = web(&[("a", "app: web"), ("b", "app: web")]);
    let mesh = Mesh::new(&text);
    let table = mesh.0.table();
    assert!(table.inbound_policies.is_empty() && table.namespace_policies.is_empty() && table.cluster_tls.is_empty());
    assert_eq!(table.mesh_policy.to_native(), POLICY_NONE);
    assert!(table.workloads.iter().all(|workload| workload.policy.to_native() == POLICY_NONE));
    assert!(table.clusters.iter().all(|cluster| cluster.tls.to_native() == TLS_NONE));
    assert_eq!(table.trust_domains[0].as_str(), DEFAULT_TRUST_DOMAIN);
    // One that says nothing is as good as none, but for its namespace's name.
    let silent = Mesh::new(&(text + &peer("silent", "default", "{mtls: {mode: UNSET}}")));
    assert!(silent.0.table().inbound_policies.is_empty());
}

#[test]
fn the_narrower_peer_authentication_wins_and_unset_inherits() {
    let text = pod("web", "shop", "app: web", "10.0.0.1")
        + &pod("db", "shop", "app: db", "10.0.0.2")
        + &pod("other", "else", "app: web", "10.0.0.3")
        + &peer("mesh", "istio-system", "{mtls: {mode: STRICT}}")
        + &peer("shop", "shop", "{mtls: {mode: PERMISSIVE}}")
        + &peer(
            "web",
            "shop",
            "{selector: {matchLabels: {app: web}}, mtls: {mode: UNSET}, portLevelMtls: {8080: {mode: DISABLE}, 9090: {mode: UNSET}, \
             '70': {mode: STRICT}}}",
        );
    let mesh = Mesh::new(&text);
    for (workload, expected) in [
        ("shop/web", "PERMISSIVE 70=STRICT 8080=DISABLE by shop/web"),
        ("shop/db", "PERMISSIVE by shop/shop"),
        ("shop/unlisted", "PERMISSIVE by shop/shop"),
        ("else/other", "STRICT by istio-system/mesh"),
        ("else/unlisted", "STRICT by istio-system/mesh"),
        ("nowhere/x", "STRICT by istio-system/mesh"),
        ("istio-system/x", "STRICT by istio-system/mesh"),
    ] {
        assert_eq!(mtls(&mesh, workload), expected, "{workload}");
    }
}

#[test]
fn the_oldest_peer_authentication_wins_then_the_first_by_name() {
    let dated = |name: &str, created: &str, mode: &str| {
        peer(name, "shop", &format!("{{mtls: {{mode: {mode}}}}}"))
            .replace("namespace: shop", &format!("namespace: shop, creationTimestamp: '{created}'"))
    };
    let text = dated("a", "2026-02-01T00:00:00Z", "DISABLE") + &dated("b", "2026-01-01T00:00:00Z", "STRICT");
    assert_eq!(mtls(&Mesh::new(&text), "shop/x"), "STRICT by shop/b");
    let text = dated("b", "2026-01-01T00:00:00Z", "DISABLE") + &dated("a", "2026-01-01T00:00:00Z", "STRICT");
    assert_eq!(mtls(&Mesh::new(&text), "shop/x"), "STRICT by shop/a");
    let file = SourceFile { path: "mesh.yaml".into(), text: text.as_str().into() };
    let (_, diagnostics) = World::assemble(read_files(&[file], &mut Cache::default()).resources);
    let text = diagnostics[0].to_string();
    assert!(text.contains("MR0512") && text.contains("PeerAuthentication shop/a at mesh.yaml:7:1"), "{text}");
    assert!(text.starts_with("mesh.yaml:2:1: warning"), "{text}");
}

#[test]
fn a_selector_in_the_root_namespace_has_no_effect() {
    let text = peer("x", "istio-system", "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}")
        + &pod("web", "istio-system", "app: web", "10.0.0.1");
    assert_eq!(mtls(&Mesh::new(&text), "istio-system/web"), "");
    // Another root namespace, and the one of the installation is one like others.
    let moved =
        text + &config_map("istio", "rootNamespace: config") + &peer("mesh", "config", "{mtls: {mode: DISABLE}}");
    let mesh = Mesh::new(&moved);
    assert_eq!(mtls(&mesh, "istio-system/web"), "STRICT by istio-system/x");
    assert_eq!(mtls(&mesh, "default/x"), "DISABLE by config/mesh");
}

#[test]
fn endpoints_with_sidecars_get_mutual_tls_by_themselves() {
    let text = web(&[("a", SIDECAR), ("b", "app: web"), ("c", SIDECAR)]);
    let mesh = Mesh::new(&text);
    assert_eq!(speaking(&mesh), [true, false, true]);
    let found = tls(mesh.0.table(), WEB).unwrap();
    assert!(matches!(found.mode, ArchivedClusterTlsMode::AutoMutual));
    let id = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
    assert_eq!(names(found), [id("sa-a"), id("sa-c")], "what has no sidecar shows no identity");
    assert_eq!((found.sni.as_str(), found.material.as_str()), ("", ""));
    // Turned off for the mesh, for a port, for the service's clients.
    let off = Mesh::new(&(text.clone() + &config_map("istio", "enableAutoMtls: false")));
    assert_eq!((speaking(&off), tls(off.0.table(), WEB).is_none()), (vec![false; 3], true));
    let port = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}";
    let off = Mesh::new(&(text.clone() + &peer("web", "default", port)));
    assert_eq!((speaking(&off), tls(off.0.table(), WEB).is_none()), (vec![false; 3], true));
    let other = port.replace("8080", "80");
    let on = Mesh::new(&(text.clone() + &peer("web", "default", &other)));
    assert_eq!(speaking(&on), [true, false, true], "the port is the workload's, not the service's");
    let rule = istio("DestinationRule", "web", "default", "{host: web, trafficPolicy: {tls: {mode: DISABLE}}}");
    let off = Mesh::new(&(text + &rule));
    assert!(tls(off.0.table(), WEB).is_none());
}

#[test]
fn endpoints_that_take_tunnels_are_reached_through_them() {
    const BOTH: &str = "app: web, security.istio.io/tlsMode: istio, networking.istio.io/tunnel: http";
    const TUNNEL: &str = "app: web, networking.istio.io/tunnel: http";
    let text = web(&[("a", TUNNEL), ("b", BOTH), ("c", SIDECAR), ("d", "app: web, networking.istio.io/tunnel: http3")]);
    let mesh = Mesh::new(&text);
    assert_eq!(reached(&mesh), [Reach::Hbone, Reach::Hbone, Reach::Mtls, Reach::Plain]);
    let found = tls(mesh.0.table(), WEB).unwrap();
    assert!(matches!(found.mode, ArchivedClusterTlsMode::AutoMutual));
    let ids = ["a", "b", "c"].map(|pod| format!("spiffe://cluster.local/ns/default/sa/sa-{pod}"));
    assert_eq!(names(found), ids);
    let off = Mesh::new(&(text.clone() + &config_map("istio", "enableAutoMtls: false")));
    assert_eq!(reached(&off), [Reach::Plain; 4]);
    let port = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}";
    let off = Mesh::new(&(text + &peer("web", "default", port)));
    assert_eq!(reached(&off), [Reach::Plain; 4]);
}

#[test]
fn service_entries_are_of_the_mesh_only_where_they_say_so() {
    let entry = |location: &str, rest: &str| {
        let spec = format!(
            "{{hosts: [vm.test], location: {location}, ports: [{{number: 80, name: http}}], resolution: STATIC, endpoints: [{{address: \
             10.0.0.1, labels: {{security.istio.io/tlsMode: istio}}, serviceAccount: vm}}, {{address: 10.0.0.2{rest}}}]}}"
        );
        istio("ServiceEntry", "vm", "default", &spec)
    };
    let cluster = "outbound|80||vm.test";
    let outside = Mesh::new(&entry("MESH_EXTERNAL", ""));
    assert_eq!((speaking(&outside), tls(outside.0.table(), cluster).is_none()), (vec![false; 2], true));
    let inside = Mesh::new(&entry("MESH_INTERNAL", ""));
    assert_eq!(speaking(&inside), [true, false]);
    assert_eq!(names(tls(inside.0.table(), cluster).unwrap()), ["spiffe://cluster.local/ns/default/sa/vm"]);
    let unknown = Mesh::new(&entry("MESH_INTERNAL", ", labels: {security.istio.io/tlsMode: istio}"));
    assert!(names(tls(unknown.0.table(), cluster).unwrap()).is_empty(), "any identity, since one is not known");
    let given = entry("MESH_INTERNAL", ", labels: {security.istio.io/tlsMode: istio}")
        .replace("hosts: [vm.test]", "hosts: [vm.test], subjectAltNames: ['spiffe://a/b']");
    let given = Mesh::new(&(given + &config_map("istio", "trustDomain: b.test\ntrustDomainAliases: [a.test, b.test]")));
    let expected = ["spiffe://a.test/ns/default/sa/vm", "spiffe://a/b", "spiffe://b.test/ns/default/sa/vm"];
    assert_eq!(names(tls(given.0.table(), cluster).unwrap()), expected);
    let domains: Vec<_> = given.0.table().trust_domains.iter().map(|domain| domain.as_str()).collect();
    assert_eq!(domains, ["b.test", "a.test"]);
}

#[test]
fn more_accounts_than_can_be_compared_mean_any_identity() {
    let names_of = |count: usize| {
        let pods: Vec<_> = (0..count).map(|index| format!("p{index}")).collect();
        let text = web(&pods.iter().map(|name| (name.as_str(), SIDECAR)).collect::<Vec<_>>());
        let mesh = Mesh::new(&text);
        names(tls(mesh.0.table(), WEB).unwrap()).len()
    };
    assert_eq!((names_of(64), names_of(65)), (64, 0));
}

#[test]
fn tls_of_port_subset_and_rule_are_merged_as_in_istio() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: http-a, port: 80}, {name: http-b, port: \
                   81}, {name: http-c, port: 82}]}\n";
    let sni = |name: &str| format!("tls: {{mode: SIMPLE, sni: {name}.test}}");
    let rule = format!(
        "{{host: web, trafficPolicy: {{{}, portLevelSettings: [{{port: {{number: 81}}, {}}}, {{port: {{number: 82}}, loadBalancer: \
         {{simple: RANDOM}}}}]}}, subsets: [{{name: own, trafficPolicy: {{{}, portLevelSettings: [{{port: {{number: 81}}, {}}}]}}}}, {{name: \
         none}}, {{name: port, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, loadBalancer: {{simple: RANDOM}}}}]}}}}]}}",
        sni("rule"),
        sni("rule-81"),
        sni("subset"),
        sni("subset-81"),
    );
    let routes: Vec<String> = ["own", "none", "port"]
        .iter()
        .flat_map(|subset| [80, 81, 82].map(|port| (subset, port)))
        .map(|(subset, port)| {
            format!("{{destination: {{host: web, subset: {subset}, port: {{number: {port}}}}}, weight: 1}}")
        })
        .collect();
    let split = format!("{{hosts: [split.test], http: [{{route: [{}]}}]}}", routes.join(", "));
    let mesh = Mesh::new(
        &(service.to_owned()
            + &istio("DestinationRule", "web", "default", &rule)
            + &istio("VirtualService", "split", "default", &split)),
    );
    let found = |port: u16, subset: &str| {
        let name = format!("outbound|{port}|{subset}|web.default.svc.cluster.local");
        tls(mesh.0.table(), &name).map_or("-", |tls| tls.sni.as_str())
    };
    let table: Vec<_> = ["", "own", "none", "port"].map(|subset| [80, 81, 82].map(|port| found(port, subset))).into();
    let expected = [
        ["rule.test", "rule-81.test", "-"],
        ["subset.test", "subset-81.test", "subset.test"],
        ["rule.test", "rule-81.test", "-"],
        ["-", "rule-81.test", "-"],
    ];
    assert_eq!(table, expected);
    // The same setting again is stored once.
    assert_eq!(mesh.0.table().cluster_tls.len(), 4);
}

#[test]
fn modes_name_their_materials_and_identities() {
    let entry = istio(
        "ServiceEntry",
        "ext",
        "default",
        "{hosts: [ext.test], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.0.0.1}], subjectAltNames: \
         [ext.test, www.ext.test]}",
    );
    let with = |settings: &str| {
        let rule = format!("{{host: ext.test, trafficPolicy: {{tls: {{{settings}}}}}}}");
        let mesh = Mesh::new(&(entry.clone() + &istio("DestinationRule", "ext", "client", &rule)));
        let table = mesh.0.table();
        let position = table.clusters.iter().position(|cluster| cluster.tls.to_native() != TLS_NONE);
        position.map(|_| {
            let tls = &table.cluster_tls[0];
            let skip = if tls.insecure_skip_verify { " skip" } else { "" };
            format!("{:?} {} {:?} {:?}{skip}", tls.mode, tls.material, tls.sni.as_str(), names(tls))
        })
    };
    for (settings, expected) in [
        ("mode: DISABLE", None),
        ("", None),
        ("mode: SIMPLE", Some(r#"Simple  "" ["ext.test", "www.ext.test"]"#)),
        ("mode: SIMPLE, caCertificates: system, sni: A.test", Some(r#"Simple  "a.test" ["ext.test", "www.ext.test"]"#)),
        ("mode: SIMPLE, insecureSkipVerify: true", Some(r#"Simple  "" [] skip"#)),
        ("mode: SIMPLE, caCertificates: /ca.pem, subjectAltNames: [x]", Some(r#"Simple file:::/ca.pem "" ["x"]"#)),
        (
            "mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem, subjectAltNames: [x]",
            Some(r#"Mutual file:/c.pem:/k.pem: "" ["x"]"#),
        ),
        ("mode: MUTUAL, credentialName: own, subjectAltNames: [x]", Some(r#"Mutual secret:client/own "" ["x"]"#)),
        ("mode: ISTIO_MUTUAL", Some(r#"IstioMutual  "" ["ext.test", "www.ext.test"]"#)),
        ("mode: ISTIO_MUTUAL, subjectAltNames: [x]", Some(r#"IstioMutual  "" ["x"]"#)),
    ] {
        assert_eq!(with(settings).as_deref().map(|text| text.trim_start_matches("Archived")), expected, "{settings}");
    }
}

#[test]
fn a_gateway_ends_tls_at_the_workloads_that_it_selects() {
    let gateway = |name: &str, spec: &str| istio("Gateway", name, "config", spec);
    let text = pod("ingress", "edge", "istio: ingress", "10.0.0.1")
        + &pod("web", "edge", "app: web", "10.0.0.2")
        + &gateway(
            "a",
            "{selector: {istio: ingress}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: [Shop.test, \
             'edge/*.shop.test'], tls: {mode: SIMPLE, credentialName: shop}}, {port: {number: 8443, name: m, protocol: HTTPS}, hosts: \
             ['*'], tls: {mode: MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /ca, subjectAltNames: [x], \
             minProtocolVersion: TLSV1_3}}, {port: {number: 8080, name: h, protocol: HTTP}, hosts: ['*']}, {port: {number: 80, name: r, \
             protocol: HTTP2}, hosts: ['*'], tls: {httpsRedirect: true}}, {port: {number: 6379, name: t, protocol: TCP}, hosts: ['*']}]}",
        )
        + &gateway(
            "plain",
            "{selector: {istio: plain}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}",
        )
        + &pod("plain", "edge", "istio: plain", "10.0.0.3")
        + &gateway(
            "b",
            "{selector: {istio: ingress}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.test, b.test], tls: \
             {mode: ISTIO_MUTUAL}}]}",
        )
        + &gateway(
            "nobody",
            "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: ISTIO_MUTUAL}}]}",
        );
    let mesh = Mesh::new(&text);
    assert!(policy(&mesh, "edge/web").is_none() && policy(&mesh, "edge/unlisted").is_none());
    let plain_ports =
        |name| policy(&mesh, name).unwrap().plain_gateway_ports.iter().map(|port| port.to_native()).collect::<Vec<_>>();
    assert_eq!((plain_ports("edge/ingress"), plain_ports("edge/plain")), (vec![80, 8080], vec![80]));
    let servers: Vec<String> = policy(&mesh, "edge/ingress")
        .unwrap()
        .gateways
        .iter()
        .map(|server| {
            let hosts: Vec<_> = server.hosts.iter().map(|host| host.as_str()).collect();
            let names: Vec<_> = server.subject_alt_names.iter().map(|name| name.as_str()).collect();
            let origin = mesh.0.table().origin((&server.origin).into());
            let origin = origin.split(" (").next().unwrap().to_owned();
            format!(
                "{} {hosts:?} {:?} {} {names:?} {} {origin}",
                server.port, server.mode, server.material, server.tls12
            )
        })
        .collect();
    assert_eq!(
        servers,
        [
            r#"443 ["shop.test", ".shop.test"] Simple secret:edge/shop [] true Gateway config/a"#,
            r#"8443 ["*"] Mutual file:/c:/k:/ca ["x"] false Gateway config/a"#,
            r#"443 ["b.test"] IstioMutual  [] true Gateway config/b"#,
        ]
    );
}

#[test]
fn external_authorizers_are_in_the_table() {
    let providers = "extensionProviders:\n- name: http\n  envoyExtAuthzHttp:\n    service: auth/authz.auth.svc.cluster.local\n    port: \
                     8000\n    pathPrefix: /check\n    failOpen: true\n    statusOnError: '503'\n    timeout: 0.5s\n    \
                     includeRequestHeadersInCheck: [Cookie, 'X-Auth-*']\n    includeAdditionalHeadersInCheck: {x-from: mesh}\n    \
                     headersToUpstreamOnAllow: [authorization]\n    headersToDownstreamOnAllow: [set-cookie]\n    \
                     headersToDownstreamOnDeny: [content-type]\n- name: missing\n  envoyExtAuthzHttp: {service: nowhere.test, port: 80}\n- \
                     name: zipkin\n  zipkin: {service: z, port: 9411}";
    let text = service("authz", "auth", &["v1"], 1).replace("9080", "8000") + &config_map("istio", providers);
    let mesh = Mesh::new(&text);
    let table = mesh.0.table();
    let [http, missing] = &table.ext_authz[..] else { panic!("{:?}", table.ext_authz) };
    let cluster = |authz: &meshring_core::table::access::ArchivedExtAuthz| {
        let cluster = &table.clusters[authz.cluster.0.to_native() as usize];
        format!("{} {:?} {}", cluster.name, cluster.kind, cluster.count)
    };
    assert_eq!(cluster(http), "outbound|8000||authz.auth.svc.cluster.local Static 1");
    assert_eq!(cluster(missing), "outbound|80||nowhere.test NoSuchService 0");
    assert_eq!((http.path_prefix.as_str(), http.fail_open, http.status_on_error.to_native()), ("/check", true, 503));
    assert_eq!((http.timeout_ms.to_native(), missing.timeout_ms.to_native()), (500, 600_000));
    assert_eq!((missing.fail_open, missing.status_on_error.to_native()), (false, 403));
    fn list<'t>(names: impl IntoIterator<Item = &'t (impl ToString + 't)>) -> Vec<String> {
        names.into_iter().map(ToString::to_string).collect()
    }
    assert_eq!(list(http.request_headers.iter()), ["cookie", "x-auth-*"]);
    assert_eq!((http.additional_headers[0].0.as_str(), http.additional_headers[0].1.as_str()), ("x-from", "mesh"));
    assert_eq!(list(http.headers_to_upstream.iter()), ["authorization"]);
    assert_eq!(list(http.headers_to_downstream.iter()), ["set-cookie"]);
    assert_eq!(list(http.headers_on_deny.iter()), ["content-type"]);
    let world = world(&text);
    let mut builder = TableBuilder::new(CLUSTER_DOMAIN);
    let providers = Providers::new(&world, &mut builder, &mut Clusters::new(&world, &NoDns));
    assert_eq!(["http", "missing", "zipkin"].map(|name| providers.position(name)), [Some(0), Some(1), None]);
}

#[test]
fn the_mesh_may_demand_tls_1_3() {
    let tls12 = |text: &str| Mesh::new(text).0.table().settings().mesh_tls12;
    assert!(tls12("") && tls12(&config_map("istio", "meshMTLS: {minProtocolVersion: TLSV1_2}")));
    assert!(!tls12(&config_map("istio", "meshMTLS: {minProtocolVersion: TLSV1_3}")));
}

#[test]
fn the_order_of_resources_does_not_change_the_bytes() {
    let parts = [
        web(&[("a", SIDECAR), ("b", SIDECAR)]),
        peer("z", "default", "{mtls: {mode: STRICT}}"),
        peer("a", "istio-system", "{mtls: {mode: STRICT}}"),
        peer("web", "default", "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: DISABLE}}}"),
        istio("DestinationRule", "web", "default", "{host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}"),
    ];
    let reversed: String = parts.iter().rev().cloned().collect();
    // Lines are part of the table: one file for each.
    let files = |texts: &[String]| -> Vec<SourceFile> {
        texts
            .iter()
            .map(|text| {
                let position = parts.iter().position(|part| part == text).unwrap();
                SourceFile { path: format!("{position}.yaml").into(), text: text.as_str().into() }
            })
            .collect()
    };
    assert_ne!(reversed, parts.concat());
    let compiled = |texts: &[String]| {
        let (world, _) = World::assemble(read_files(&files(texts), &mut Cache::default()).resources);
        writer::encode(&compile(&world, &NoDns).unwrap()).unwrap().to_bytes(Generation(1))
    };
    let mut backwards = parts.to_vec();
    backwards.reverse();
    assert!(compiled(&parts) == compiled(&backwards));
    assert!(bytes(&parts.concat()) == bytes(&parts.concat()));
}

#[test]
fn references_that_lead_nowhere_are_told_of() {
    let said = |text: &str| -> Vec<String> {
        let told = world(text).analyze();
        told.iter()
            .filter(|told| told.severity == crate::diagnostic::Severity::Warning)
            .map(|told| format!("{} {}: {}", told.code, told.resource.as_deref().unwrap_or_default(), told.message))
            .collect()
    };
    let pem = "-----BEGIN CERTIFICATE-----\\n-----BEGIN PRIVATE KEY-----";
    let secret = |name: &str, keys: &str| {
        let data: Vec<_> = keys.split(' ').map(|key| format!("{key}: \"{pem}\"")).collect();
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: edge}}\nstringData: {{{}}}\n",
            data.join(", ")
        )
    };
    let gateway = istio(
        "Gateway",
        "a",
        "config",
        "{selector: {istio: ingress}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: MUTUAL, \
         credentialName: shop}}]}",
    );
    let ingress = pod("ingress", "edge", "istio: ingress", "10.0.0.1");
    let of_gateway = |rest: &str| said(&(gateway.clone() + rest));
    assert_eq!(
        of_gateway(""),
        ["MR0514 Gateway config/a: selects no workload: no Pod or WorkloadEntry has istio=ingress"]
    );
    let missing = "MR0513 Gateway config/a: Secret edge/shop";
    for (keys, expected) in [
        (None, "is not there"),
        (Some("ca.crt"), "has no certificate with its key"),
        (Some("tls.crt tls.key"), "has no roots"),
        (Some("tls.crt tls.key ca.crt"), ""),
    ] {
        let said = of_gateway(&(ingress.clone() + &keys.map(|keys| secret("shop", keys)).unwrap_or_default()));
        let fits = |said: &String| said.starts_with(missing) && said.contains(expected) && !expected.is_empty();
        assert!(said.iter().all(fits) && said.len() == usize::from(!expected.is_empty()), "{keys:?}: {said:?}");
    }
    let roots = secret("shop", "tls.crt tls.key") + &secret("shop-cacert", "ca.crt");
    assert_eq!(of_gateway(&(ingress.clone() + &roots)), [""; 0]);

    let rule = |mode: &str| {
        let spec = format!("{{host: web, trafficPolicy: {{tls: {{mode: {mode}, credentialName: own}}}}}}");
        said(
            &(service("web", "edge", &["v1"], 1)
                + &istio("DestinationRule", "web", "edge", &spec)
                + &secret("own", "ca.crt")),
        )
    };
    assert_eq!(rule("SIMPLE"), [""; 0]);
    let expected =
        "MR0513 DestinationRule edge/web: Secret edge/own has no certificate with its key: such connections fail";
    assert_eq!(rule("MUTUAL"), [expected]);

    let provider = |host: &str, port: u16| {
        let text = format!("extensionProviders: [{{name: x, envoyExtAuthzHttp: {{service: {host}, port: {port}}}}}]");
        said(&(service("authz", "auth", &["v1"], 1) + &config_map("istio", &text)))
    };
    assert_eq!(provider("authz.auth.svc.cluster.local", 9080), [""; 0]);
    let expected =
        "MR0504 ConfigMap istio-system/istio: Service auth/authz has no port 1: the authorizer `x` cannot be asked";
    assert_eq!(provider("authz.auth.svc.cluster.local", 1), [expected]);
    let expected = "MR0501 ConfigMap istio-system/istio: no Service or ServiceEntry defines `nowhere.test`: the authorizer `x` cannot be asked";
    assert_eq!(provider("nowhere.test", 1), [expected]);

    let two = peer("a", "edge", "{selector: {matchLabels: {istio: ingress}}, mtls: {mode: STRICT}}")
        + &peer("b", "edge", "{selector: {matchLabels: {app: x}}, mtls: {mode: DISABLE}}");
    assert_eq!(said(&(ingress + &two)), [""; 0]);
    let both = said(&(pod("both", "edge", "istio: ingress, app: x", "10.0.0.2") + &two));
    assert!(both.len() == 1 && both[0].starts_with("MR0512 PeerAuthentication edge/b"), "{both:?}");
    assert!(both[0].contains("selects the workload edge/both too and wins there"), "{both:?}");
}

#[test]
fn a_policy_holds_what_selects_the_workload_its_namespace_and_the_mesh() {
    let text = pod("web", "shop", "app: web", "10.0.0.1")
        + &pod("db", "shop", "app: db", "10.0.0.2")
        + &security(
            "AuthorizationPolicy",
            "mesh",
            "istio-system",
            "{action: DENY, rules: [{to: [{operation: {paths: [/m]}}]}]}",
        )
        + &security("AuthorizationPolicy", "all", "shop", "{rules: [{to: [{operation: {paths: [/a]}}]}]}")
        + &security(
            "AuthorizationPolicy",
            "web",
            "shop",
            "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {paths: [/w]}}]}]}",
        )
        + &security(
            "RequestAuthentication",
            "web",
            "shop",
            "{jwtRules: [{issuer: i.test, jwksUri: 'https://i.test/keys'}]}",
        );
    let mesh = Mesh::new(&text);
    let table = mesh.0.table();
    let holds = |workload: &str| {
        let Some(policy) = policy(&mesh, workload) else { return (Vec::new(), 0) };
        let origin = |position: u32| {
            let origin = table.origin((&table.authorization[position as usize].origin).into());
            origin.split(" (").next().unwrap().trim_start_matches("AuthorizationPolicy ").to_owned()
        };
        let policies: Vec<_> = policy.authorization.iter().map(|position| origin(position.to_native())).collect();
        (policies, policy.jwt_rules.len())
    };
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (workload, policies, issuers) in [
        ("shop/web", &["istio-system/mesh", "shop/web", "shop/all"][..], 1),
        ("shop/db", &["istio-system/mesh", "shop/all"], 1),
        ("shop/unlisted", &["istio-system/mesh", "shop/all"], 1),
        ("else/unlisted", &["istio-system/mesh"], 0),
    ] {
        assert_eq!(holds(workload), (owned(policies), issuers), "{workload}");
    }
}
