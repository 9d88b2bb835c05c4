use std::net::IpAddr;

use meshring_core::{
    id::Generation,
    snapshot::{reader::Snapshot, writer},
    table::{
        lookup::{NoRoute, RequestView, Selected, Silent, UriMatch, Viewpoint},
        model::{
            ArchivedAction, ArchivedClusterKind, ArchivedHeaderOp, ForwardClientCertificate, PathNormalization,
            Settings,
        },
    },
};

use super::*;
use crate::{
    diagnostic,
    source::{Cache, SourceFile, read_files},
    spec::Hostname,
};

mod access;
mod balance;
mod protocol;
mod security;
mod stream;

/// A compiled world that can be asked as a proxy asks it.
struct Mesh(Snapshot);

struct Request<'r> {
    method: &'r str,
    path: &'r str,
    query: Option<&'r str>,
    headers: Vec<(&'r str, &'r str)>,
}

impl RequestView for Request<'_> {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn scheme(&self) -> &[u8] {
        b"http"
    }
    fn authority(&self) -> &[u8] {
        b"host"
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn query(&self) -> Option<&[u8]> {
        self.query.map(str::as_bytes)
    }
    fn any_header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.headers.iter().any(|(known, value)| *known == name && predicate(value.as_bytes()))
    }
}

fn get(path: &str) -> Request<'_> {
    Request { method: "GET", path, query: None, headers: Vec::new() }
}

fn world(text: &str) -> World {
    let file = SourceFile { path: "mesh.yaml".into(), text: text.into() };
    let reading = read_files(&[file], &mut Cache::default());
    assert!(!diagnostic::has_errors(&reading.diagnostics), "{:?}", reading.diagnostics);
    let (world, diagnostics) = World::assemble(reading.resources);
    assert!(!diagnostic::has_errors(&diagnostics), "{diagnostics:?}");
    world
}

fn encoded(text: &str, dns: &dyn Resolve) -> Vec<u8> {
    let table = compile(&world(text), dns).unwrap();
    writer::encode(&table).unwrap().to_bytes(Generation(1))
}

impl Mesh {
    fn new(text: &str) -> Self {
        Self::with_dns(text, &NoDns)
    }

    /// The snapshot's reader validates every index on the way.
    fn with_dns(text: &str, dns: &dyn Resolve) -> Self {
        Self(Snapshot::from_bytes(&encoded(text, dns)).unwrap())
    }

    fn route(&self, from: &str, host: &str, request: &Request<'_>) -> Result<Selected<'_>, NoRoute> {
        let (namespace, name) = from.split_once('/').unwrap();
        let viewpoint = Viewpoint::resolve(self.0.table(), namespace, name);
        let (name, port) = match host.split_once(':') {
            Some((name, port)) => (name, Some(port.parse().unwrap())),
            None => (host, None),
        };
        let found = self.0.table().virtual_host(&viewpoint, name.as_bytes(), port, &mut Silent)?;
        self.0.table().route(self.0.regexes(), &viewpoint, found, request, port, &mut Silent)
    }

    /// `CLUSTER=WEIGHT[ENDPOINT ...]` for each destination of the route that is taken, or what else happens.
    fn ask(&self, from: &str, host: &str, request: &Request<'_>) -> String {
        let table = self.0.table();
        let selected = match self.route(from, host, request) {
            Ok(selected) => selected,
            Err(error) => return error.to_string(),
        };
        match &selected.rule.action {
            ArchivedAction::Forward { first, count, .. } => {
                let first = first.to_native() as usize;
                let destinations = &table.destinations[first..first + count.to_native() as usize];
                let texts: Vec<_> = destinations
                    .iter()
                    .map(|destination| {
                        let cluster = &table.clusters[destination.cluster.0.to_native() as usize];
                        let kind = match cluster.kind {
                            ArchivedClusterKind::Static => String::new(),
                            ref other => format!("!{other:?}"),
                        };
                        let addresses: Vec<_> = (0..cluster.count.to_native())
                            .map(|position| table.address(table.endpoint_of(cluster, position)).to_string())
                            .collect();
                        let name = cluster.name.trim_start_matches("outbound|").trim_end_matches(".svc.cluster.local");
                        format!("{name}={}{kind}[{}]", destination.weight.to_native(), addresses.join(" "))
                    })
                    .collect();
                texts.join(" ")
            }
            ArchivedAction::Redirect(redirect) => format!("redirect {}", redirect.status),
            ArchivedAction::DirectResponse(response) => format!("response {}", response.status),
        }
    }

    fn get(&self, from: &str, host: &str) -> String {
        self.ask(from, host, &get("/"))
    }
}

/// A Service with one EndpointSlice for each version; addresses count up from `first`.
fn service(name: &str, namespace: &str, versions: &[&str], first: u8) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{ports: [{{name: http, port: \
         9080}}]}}\n"
    );
    for (index, version) in versions.iter().enumerate() {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{version}, namespace: {namespace}, \
             labels: {{kubernetes.io/service-name: {name}, version: {version}}}}}\naddressType: IPv4\nports: [{{name: http, port: \
             80}}]\nendpoints: [{{addresses: [10.0.0.{}]}}]\n",
            first as usize + index
        );
    }
    text
}

fn istio(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const SUBSETS: &str =
    "{host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}";

#[test]
fn the_users_example_splits_80_to_20() {
    let text = include_str!("../source/istio/testdata/reviews-80-20.yaml").to_owned()
        + &service("reviews", "default", &["v1", "v2"], 1)
        + &istio("DestinationRule", "reviews", "default", SUBSETS);
    let mesh = Mesh::new(&text);
    let expected = "9080|v2|reviews.default=80[10.0.0.2:80] 9080|v1|reviews.default=20[10.0.0.1:80]";
    for host in ["reviews", "reviews:9080", "reviews.default", "reviews.default.svc.cluster.local:9080"] {
        assert_eq!(mesh.get("default/productpage", host), expected, "{host}");
    }
    assert_eq!(mesh.get("default/productpage", "reviews:81"), "the host is known, but not on port 81");
    assert_eq!(mesh.get("other/x", "reviews"), "no service, ServiceEntry or VirtualService has this host");
    let selected = mesh.route("default/productpage", "reviews", &get("/")).unwrap();
    assert_eq!(selected.rule.line.to_native(), 10);
    assert_eq!(mesh.0.table().origin((&selected.rule.origin).into()), "VirtualService default/reviews (mesh.yaml:2)");
}

#[test]
fn a_service_without_rules_gets_its_own_traffic() {
    let mesh = Mesh::new(&service("reviews", "prod", &["v1", "v2"], 1));
    assert_eq!(mesh.get("default/x", "reviews.prod"), "9080||reviews.prod=1[10.0.0.1:80 10.0.0.2:80]");
}

#[test]
fn what_does_not_exist_has_a_cluster_that_says_so() {
    let rule = |host: &str, destination: &str| {
        let route = format!("{{hosts: [{host}], http: [{{route: [{{destination: {destination}}}]}}]}}");
        istio("VirtualService", host, "default", &route)
    };
    let text = service("reviews", "default", &["v1"], 1)
        + &istio("DestinationRule", "reviews", "default", SUBSETS)
        + &rule("a.b", "{host: nowhere}")
        + &rule("c.d", "{host: reviews, subset: v9}")
        + &rule("e.f", "{host: reviews, port: {number: 81}}")
        + &rule("g.h", "{host: reviews, subset: v2}")
        + &rule("i.j", "{host: reviews, subset: v1}");
    let mesh = Mesh::new(&text);
    assert_eq!(mesh.get("default/x", "a.b"), "0||nowhere.default=100!NoSuchService[]");
    assert_eq!(mesh.get("default/x", "c.d"), "9080|v9|reviews.default=100!NoSuchSubset[]");
    assert_eq!(mesh.get("default/x", "e.f"), "81||reviews.default=100!NoSuchPort[]");
    assert_eq!(mesh.get("default/x", "g.h"), "9080|v2|reviews.default=100[]");
    assert_eq!(mesh.get("default/x", "i.j:8080"), "9080|v1|reviews.default=100[10.0.0.1:80]", "its only port is meant");
}

#[test]
fn short_names_are_of_the_rules_namespace() {
    let text = service("reviews", "default", &["v1"], 1)
        + &service("reviews", "prod", &["v1"], 11)
        + &istio(
            "VirtualService",
            "shop",
            "prod",
            "{hosts: [shop.example.com], http: [{route: [{destination: {host: reviews}}]}]}",
        );
    let mesh = Mesh::new(&text);
    assert_eq!(mesh.get("default/x", "shop.example.com"), "9080||reviews.prod=100[10.0.0.11:80]");
}

#[test]
fn the_most_specific_host_wins() {
    let response = |name: &str, host: &str, status: u16| {
        istio(
            "VirtualService",
            name,
            "default",
            &format!("{{hosts: ['{host}'], http: [{{directResponse: {{status: {status}}}}}]}}"),
        )
    };
    let text = service("reviews", "default", &["v1"], 1)
        + &response("a", "*.example.com", 201)
        + &response("b", "*.api.example.com", 202)
        + &response("c", "x.api.example.com", 203)
        + &response("d", "*.default.svc.cluster.local", 204);
    let mesh = Mesh::new(&text);
    let cases = [
        ("www.example.com", "response 201"),
        ("y.api.example.com", "response 202"),
        ("x.api.example.com", "response 203"),
        ("reviews", "response 204"),
        ("example.com", "no service, ServiceEntry or VirtualService has this host"),
    ];
    for (host, expected) in cases {
        assert_eq!(mesh.get("default/x", host), expected, "{host}");
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = r#"
  hosts: [reviews]
  http:
  - match: [{headers: {x-user: {exact: jason}}, uri: {prefix: /api}}, {queryParams: {debug: {regex: "1|true"}}}]
    directResponse: {status: 201}
  - match: [{method: {exact: POST}, withoutHeaders: {x-ok: {}}}]
    directResponse: {status: 202}
  - match: [{sourceLabels: {app: web}}, {sourceNamespace: front}]
    directResponse: {status: 203}
  - match: [{uri: {exact: /OLD}, ignoreUriCase: true}]
    redirect: {uri: /new, redirectCode: 307}
  - route: [{destination: {host: reviews}}]
"#;
    let text = service("reviews", "default", &["v1"], 1)
        + &istio("VirtualService", "reviews", "default", rules)
        + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nstatus: {podIP: 10.9.9.9}\n";
    let mesh = Mesh::new(&text);
    let service = "9080||reviews.default=100[10.0.0.1:80]";
    let user = |path| Request { headers: vec![("x-user", "jason")], ..get(path) };
    let cases = [
        ("default/a", user("/api/x"), "response 201"),
        ("default/a", user("/x"), service),
        ("default/a", Request { query: Some("a=b&debug=true"), ..get("/") }, "response 201"),
        ("default/a", Request { query: Some("debug=true2"), ..get("/") }, service),
        ("default/a", Request { method: "POST", ..get("/") }, "response 202"),
        ("default/a", Request { method: "POST", headers: vec![("x-ok", "")], ..get("/") }, service),
        ("default/web", get("/"), "response 203"),
        ("default/a", get("/old"), "redirect 307"),
    ];
    for (index, (from, request, expected)) in cases.iter().enumerate() {
        assert_eq!(mesh.ask(from, "reviews", request), *expected, "case {index}");
    }
    assert_eq!(mesh.ask("front/a", "reviews.default", &get("/")), "response 203");
    assert_eq!(mesh.route("default/a", "reviews", &user("/api/x")).unwrap().uri, UriMatch::Prefix(4));
}

#[test]
fn a_private_rule_is_seen_in_its_own_namespace_only() {
    let response = |name: &str, namespace: &str, export: &str, status: u16| {
        let spec = format!(
            "{{hosts: [reviews.default.svc.cluster.local], exportTo: ['{export}'], http: [{{directResponse: {{status: {status}}}}}]}}"
        );
        istio("VirtualService", name, namespace, &spec)
    };
    let text = service("reviews", "default", &["v1"], 1)
        + &response("private", "a", ".", 201)
        + &response("listed", "x", "b", 202)
        + &response("nobody", "x", "~", 203);
    let mesh = Mesh::new(&text);
    let cases = [("a/x", "response 201"), ("b/x", "response 202"), ("x/x", "9080||reviews.default=1[10.0.0.1:80]")];
    for (from, expected) in cases {
        assert_eq!(mesh.get(from, "reviews.default"), expected, "{from}");
    }
}

#[test]
fn a_service_that_is_not_exported_is_not_seen() {
    let text = service("reviews", "default", &["v1"], 1).replace(
        "{name: reviews, namespace: default}",
        "{name: reviews, annotations: {networking.istio.io/exportTo: 'default,b'}}",
    );
    let mesh = Mesh::new(&text);
    let seen = "9080||reviews.default=1[10.0.0.1:80]";
    let cases =
        [("default/x", seen), ("b/x", seen), ("c/x", "no service, ServiceEntry or VirtualService has this host")];
    for (from, expected) in cases {
        assert_eq!(mesh.get(from, "reviews.default"), expected, "{from}");
    }
}

#[test]
fn destination_rules_apply_from_the_clients_then_the_services_then_the_root_namespace() {
    let rule = |namespace: &str, subset: &str, labels: &str, export: &str| {
        let spec = format!(
            "{{host: reviews.default.svc.cluster.local, exportTo: ['{export}'], subsets: [{{name: {subset}, labels: {{version: {labels}}}}}]}}"
        );
        istio("DestinationRule", "reviews", namespace, &spec)
    };
    let vs = "{hosts: [reviews.default.svc.cluster.local], http: [{route: [{destination: {host: reviews.default.svc.cluster.local, \
              subset: s}}]}]}";
    let base = service("reviews", "default", &["v1", "v2", "v3"], 1) + &istio("VirtualService", "reviews", "x", vs);
    let root = base.clone() + &rule("istio-system", "s", "v3", "*");
    assert_eq!(Mesh::new(&root).get("x/x", "reviews.default"), "9080|s|reviews.default=100[10.0.0.3:80]");
    let all = root.clone() + &rule("default", "s", "v1", "*") + &rule("client", "s", "v2", "*");
    let mesh = Mesh::new(&all);
    let cases = [("client/x", 2), ("default/x", 1), ("x/x", 1), ("istio-system/x", 1)];
    for (from, address) in cases {
        let expected = format!("9080|s|reviews.default=100[10.0.0.{address}:80]");
        assert_eq!(mesh.get(from, "reviews.default"), expected, "{from}");
    }
    let private = Mesh::new(&(root + &rule("default", "s", "v1", ".")));
    assert_eq!(private.get("default/x", "reviews.default"), "9080|s|reviews.default=100[10.0.0.1:80]");
    assert_eq!(private.get("x/x", "reviews.default"), "9080|s|reviews.default=100[10.0.0.3:80]");
}

#[test]
fn subsets_of_two_rules_are_merged() {
    let text = service("reviews", "default", &["v1", "v2"], 1)
        + &istio("DestinationRule", "a", "default", "{host: reviews, subsets: [{name: v1, labels: {version: v1}}]}")
        + &istio("DestinationRule", "b", "default", "{host: reviews, subsets: [{name: v2, labels: {version: v2}}]}")
        + &istio(
            "VirtualService",
            "reviews",
            "default",
            "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}, weight: 1}, {destination: {host: reviews, \
             subset: v2}, weight: 3}]}]}",
        );
    let expected = "9080|v1|reviews.default=1[10.0.0.1:80] 9080|v2|reviews.default=3[10.0.0.2:80]";
    assert_eq!(Mesh::new(&text).get("default/x", "reviews"), expected);
}

#[test]
fn names_of_service_entries_are_resolved() {
    let dns = DnsTable(
        [("api.example.com", vec!["192.0.2.2", "192.0.2.1"]), ("db.example.com", vec!["192.0.2.9"])]
            .into_iter()
            .map(|(name, addresses)| {
                let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
                (Hostname::parse(name).unwrap(), addresses)
            })
            .collect(),
    );
    let entry = |host: &str, rest: &str| {
        let name = host.replace('*', "any").to_lowercase();
        let spec = format!("{{hosts: ['{host}'], ports: [{{number: 80, name: http, protocol: HTTP}}], {rest}}}");
        istio("ServiceEntry", &name, "default", &spec)
    };
    let text = entry("api.example.com", "resolution: DNS")
        + &entry("x.example.com", "resolution: DNS, endpoints: [{address: db.example.com, ports: {http: 81}}]")
        + &entry("*.wild.com", "resolution: NONE")
        + "---\napiVersion: v1\nkind: Service\nmetadata: {name: ext}\nspec: {type: ExternalName, externalName: db.example.com, ports: \
           [{port: 80}]}\n";
    let names: Vec<_> = world(&text).registry().dns_names().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["api.example.com", "db.example.com"]);
    let mesh = Mesh::with_dns(&text, &dns);
    assert_eq!(mesh.get("default/x", "api.example.com"), "80||api.example.com=1[192.0.2.1:80 192.0.2.2:80]");
    assert_eq!(mesh.get("default/x", "x.example.com"), "80||x.example.com=1[192.0.2.9:81]");
    assert_eq!(mesh.get("default/x", "a.wild.com"), "80||*.wild.com=1!OriginalDestination[]");
    assert_eq!(mesh.get("default/x", "ext"), "80||ext.default=1[192.0.2.9:80]");
}

#[test]
fn workload_entries_are_selected_by_label() {
    let text = istio(
        "ServiceEntry",
        "vm",
        "default",
        "{hosts: [vm.internal], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}], resolution: STATIC, \
         workloadSelector: {labels: {app: vm}}}",
    ) + &istio("WorkloadEntry", "vm-1", "default", "{address: 10.1.0.1, labels: {app: vm, version: v1}}")
        + &istio(
            "WorkloadEntry",
            "vm-2",
            "default",
            "{address: 10.1.0.2, labels: {app: vm, version: v2}, ports: {http: 9090}, weight: 5}",
        )
        + &istio("WorkloadEntry", "vm-3", "other", "{address: 10.1.0.3, labels: {app: vm}}")
        + &istio(
            "DestinationRule",
            "vm",
            "default",
            "{host: vm.internal, subsets: [{name: v2, labels: {version: v2}}]}",
        )
        + &istio(
            "VirtualService",
            "vm",
            "default",
            "{hosts: [vm.internal], http: [{match: [{uri: {prefix: /2}}], route: [{destination: {host: vm.internal, subset: v2}}]}, \
             {route: [{destination: {host: vm.internal}}]}]}",
        );
    let mesh = Mesh::new(&text);
    assert_eq!(mesh.get("default/x", "vm.internal"), "80||vm.internal=100[10.1.0.1:8080 10.1.0.2:9090]");
    assert_eq!(mesh.ask("default/x", "vm.internal", &get("/2")), "80|v2|vm.internal=100[10.1.0.2:9090]");
}

#[test]
fn the_same_input_gives_the_same_bytes_in_any_order() {
    let parts = [
        service("reviews", "default", &["v1", "v2"], 1),
        service("ratings", "default", &["v1"], 11),
        service("details", "prod", &["v1", "v2", "v3"], 21),
        istio("DestinationRule", "reviews", "default", SUBSETS),
        istio(
            "DestinationRule",
            "details",
            "client",
            "{host: details.prod.svc.cluster.local, subsets: [{name: v1, labels: {version: v1}}]}",
        ),
    ];
    let forward = world(&parts.concat());
    let mut reversed: Vec<_> = forward.resources().to_vec();
    reversed.reverse();
    let (reversed, _) = World::assemble(reversed);
    let bytes = |world: &World| writer::encode(&compile(world, &NoDns).unwrap()).unwrap().to_bytes(Generation(1));
    assert!(bytes(&forward) == bytes(&reversed));
    assert!(bytes(&forward) == bytes(&forward));
}

fn config_map(name: &str, mesh: &str) -> String {
    let mesh: String = mesh.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system}}\ndata:\n  mesh: |\n{mesh}"
    )
}

#[test]
fn the_mesh_config_becomes_the_settings_of_the_table() {
    let settings = |text: &str| Mesh::new(text).0.table().settings();
    let level = |path_normalization| Settings { path_normalization, ..Settings::default() };
    assert_eq!(settings(""), Settings::default());
    assert_eq!(settings(&config_map("istio", "trustDomain: cluster.local")), Settings::default());
    for (written, expected) in [
        ("NONE", PathNormalization::None),
        ("DEFAULT", PathNormalization::Base),
        ("BASE", PathNormalization::Base),
        ("MERGE_SLASHES", PathNormalization::MergeSlashes),
        ("DECODE_AND_MERGE_SLASHES", PathNormalization::DecodeAndMergeSlashes),
    ] {
        let text = format!("pathNormalization:\n  normalization: {written}");
        assert_eq!(settings(&config_map("istio", &text)), level(expected), "{written}");
        assert_eq!(settings(&config_map("istio-1-27", &text)), level(expected), "the only revision");
    }
    let proxy = "defaultConfig: {gatewayTopology: {numTrustedProxies: 2}, proxyHeaders: {requestId: {disabled: true}}}";
    let expected = Settings { trusted_hops: 2, request_id: false, ..Settings::default() };
    assert_eq!(settings(&config_map("istio", proxy)), expected);
    for how in ForwardClientCertificate::ALL {
        let text = format!("defaultConfig: {{gatewayTopology: {{forwardClientCertDetails: {}}}}}", how.as_str());
        let expected = Settings { gateway_client_certificate: how, ..Settings::default() };
        assert_eq!(settings(&config_map("istio", &text)), expected, "{how:?}");
    }
    let undefined = "defaultConfig: {gatewayTopology: {forwardClientCertDetails: UNDEFINED}}";
    assert_eq!(settings(&config_map("istio", undefined)), Settings::default());
    let operator =
        format!("apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec: {{meshConfig: {{{proxy}}}}}\n");
    assert_eq!(settings(&operator), expected);
    let explicit =
        "defaultConfig: {gatewayTopology: {numTrustedProxies: 0}, proxyHeaders: {requestId: {disabled: false}}}";
    assert_eq!(settings(&config_map("istio", explicit)), Settings::default());
    // The default revision wins over another one.
    let both = config_map("istio-canary", proxy) + &config_map("istio", "pathNormalization: {normalization: NONE}");
    assert_eq!(settings(&both), level(PathNormalization::None));
}

#[test]
fn endpoint_weights_of_32_bits_keep_their_shares() {
    let entry = |weights: [u32; 3]| {
        let [a, b, c] = weights;
        istio(
            "ServiceEntry",
            "ext",
            "default",
            &format!(
                "{{hosts: [ext.test], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: STATIC, endpoints: \
                 [{{address: 10.0.0.1, weight: {a}}}, {{address: 10.0.0.2, weight: {b}}}, {{address: 10.0.0.3, weight: {c}}}]}}"
            ),
        )
    };
    let compiled = |weights| {
        let mesh = Mesh::new(&entry(weights));
        [0, 1, 2].map(|index| mesh.0.table().weight(meshring_core::id::EndpointId(index)))
    };
    assert_eq!(compiled([1, 40_000, 2_000_000_000]), [1, 40_000, 2_000_000_000]);
    // Together more than 32 bits: halved, and never to nothing.
    assert_eq!(compiled([1, u32::MAX, 1 << 30]), [1, u32::MAX >> 1, 1 << 29]);
}

#[test]
fn an_authority_that_is_added_is_set() {
    let text = service("reviews", "default", &["v1"], 1)
        + &istio(
            "VirtualService",
            "reviews",
            "default",
            "{hosts: [reviews], http: [{headers: {request: {add: {Host: b.test}}}, route: [{destination: {host: reviews}}]}]}",
        );
    let mesh = Mesh::new(&text);
    let selected = mesh.route("default/x", "reviews", &get("/")).unwrap();
    let edits = &selected.rule.options.as_ref().unwrap().request_headers;
    let [ArchivedHeaderOp::Set { name, value }] = &edits[..] else { panic!("{edits:?}") };
    assert_eq!((name.as_str(), value.as_str()), ("host", "b.test"));
}
