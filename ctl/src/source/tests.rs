use std::fs;

use meshring_core::{
    id::Generation,
    snapshot::{reader::Snapshot, writer},
};
use proptest::prelude::*;

use super::*;
use crate::compile::{NoDns, compile};
use crate::diagnostic::Severity;
use crate::spec::{
    Body, Kind, World,
    value::{ExportTo, LoadBalancer, Protocol},
    virtual_service::{Action, StringMatch, UriRewrite, VirtualService},
};

mod mistakes;
mod security;

/// The user's example, as it was given to us.
const REVIEWS: &str = include_str!("istio/testdata/reviews-80-20.yaml");

fn file(path: &str, text: &str) -> SourceFile {
    SourceFile { path: path.into(), text: text.into() }
}

fn read(path: &str, text: &str) -> Reading {
    read_files(&[file(path, text)], &mut Cache::default())
}

/// Resources of a text in which nothing is wrong.
fn resources(path: &str, text: &str) -> Vec<Resource> {
    let reading = read(path, text);
    assert_eq!(reading.diagnostics, [], "{}", reading.diagnostics[0]);
    reading.resources
}

fn virtual_service(resource: &Resource) -> &VirtualService {
    match &resource.body {
        Body::VirtualService(service) => service,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_users_example_reads_unchanged() {
    let resources = resources("reviews-80-20.yaml", REVIEWS);
    let [resource] = &resources[..] else { panic!("{resources:?}") };
    assert_eq!(resource.key.to_string(), "VirtualService default/reviews");
    let service = virtual_service(resource);
    assert_eq!(service.hosts[0].host.to_string(), "reviews.default.svc.cluster.local");
    assert!(service.mesh);
    let Action::Route(destinations) = &service.http[0].action else { panic!("{:?}", service.http[0].action) };
    let weights: Vec<_> = destinations
        .iter()
        .map(|destination| (destination.host.as_str(), destination.subset.as_deref(), destination.weight))
        .collect();
    let host = "reviews.default.svc.cluster.local";
    assert_eq!(weights, [(host, Some("v2"), 80), (host, Some("v1"), 20)]);
    assert_eq!((service.http[0].at, destinations[1].at), (Position::new(10, 5), Position::new(15, 7)));
    assert_eq!(resource.raw.document(), REVIEWS);
}

#[test]
fn all_versions_of_the_api_read_the_same() {
    let bodies: Vec<_> = ["v1", "v1beta1", "v1alpha3"]
        .iter()
        .map(|version| resources("a.yaml", &REVIEWS.replace("v1alpha3", version)).remove(0).body)
        .collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]));
}

#[test]
fn every_honoured_field_of_a_rule_is_read() {
    let text = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all, namespace: shop}
spec:
  hosts: [reviews, "*.example.com"]
  gateways: [mesh]
  exportTo: [".", other]
  http:
  - name: first
    match:
    - name: m
      uri: {prefix: /api}
      ignoreUriCase: true
      scheme: {exact: http}
      method: {regex: GET|HEAD}
      authority: {exact: "reviews:80"}
      headers: {X-User: {exact: jason}, x-any: {}}
      withoutHeaders: {x-not: {prefix: a}}
      queryParams: {q: {regex: "[0-9]+"}}
      port: 9080
      sourceLabels: {app: web}
      sourceNamespace: front
    timeout: 1.5s
    headers:
      request: {set: {":authority": a.b}, add: {X-A: "1"}, remove: [x-b]}
      response: {add: {x-c: ""}}
    rewrite: {uriRegexRewrite: {match: /api/(.*), rewrite: '/\1'}}
    route:
    - destination: {host: reviews.shop.svc.cluster.local, subset: v1, port: {number: 9080}}
      weight: 100
      headers: {response: {set: {x-d: e}}}
  - redirect: {uri: /new, authority: b.c, scheme: https, redirectCode: 308, derivePort: FROM_REQUEST_PORT}
    match: [{uri: {exact: /old}}]
  - directResponse: {status: 418, body: {bytes: dGVh}}
"#;
    let resources = resources("all.yaml", text);
    let service = virtual_service(&resources[0]);
    assert_eq!(service.hosts[0].host.to_string(), "reviews.shop.svc.cluster.local");
    assert!(matches!(&service.export_to, ExportTo::Namespaces(list) if list.len() == 2));
    let rule = &service.http[0];
    let matched = &rule.matches[0];
    assert_eq!(matched.uri, Some(StringMatch::Prefix("/api".into())));
    assert_eq!(matched.headers[0].0.as_str(), "x-user");
    assert_eq!(matched.headers[1].1, StringMatch::Present);
    assert!(matched.ignore_uri_case && matched.port.is_some() && !matched.source_labels.is_empty());
    assert_eq!(matched.source_namespace.as_ref().unwrap().as_str(), "front");
    assert_eq!(rule.timeout.unwrap().as_millis(), 1500);
    assert_eq!(rule.headers.request.set[0].0.as_str(), "host");
    assert!(matches!(rule.rewrite.as_ref().unwrap().uri, Some(UriRewrite::Regex { .. })));
    let Action::Redirect(redirect) = &service.http[1].action else { panic!() };
    assert_eq!((redirect.code, redirect.scheme.as_deref()), (308, Some("https")));
    let Action::DirectResponse(response) = &service.http[2].action else { panic!() };
    assert_eq!((response.status, &*response.body), (418, &b"tea"[..]));
}

#[test]
fn rules_for_connections_are_read() {
    let text = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all, namespace: shop}
spec:
  hosts: [db, "*.example.com"]
  tls:
  - match:
    - {sniHosts: [One.example.com, "*.deep.example.com"], port: 443, gateways: [mesh]}
    - {sniHosts: [a.example.com], gateways: [edge]}
    route: [{destination: {host: db, subset: v1}}]
  - match: [{sniHosts: [b.example.com], gateways: [edge]}]
    route: [{destination: {host: db}}]
  tcp:
  - match: [{destinationSubnets: [10.0.0.0/8, 10.1.2.3, "fd00::/7"], sourceLabels: {app: web}, sourceNamespace: front}]
    route: [{destination: {host: db, port: {number: 5432}}, weight: 10}, {destination: {host: old}, weight: 90}]
  - route: [{destination: {host: db}}]
"#;
    let reading = read("all.yaml", text);
    assert_eq!(reading.diagnostics.len(), 2, "what is for gateways is said to be ignored: {:?}", reading.diagnostics);
    let service = virtual_service(&reading.resources[0]);
    let [tls] = &service.tls[..] else { panic!("{:?}", service.tls) };
    let names: Vec<_> = tls.matches[0].sni_hosts.iter().map(ToString::to_string).collect();
    assert_eq!((tls.matches.len(), names), (1, vec!["one.example.com".to_owned(), "*.deep.example.com".to_owned()]));
    let [first, last] = &service.tcp[..] else { panic!("{:?}", service.tcp) };
    let subnets: Vec<_> = first.matches[0].destination_subnets.iter().map(|cidr| cidr.bits).collect();
    assert_eq!((subnets, first.route.len(), first.route[1].weight), (vec![8, 32, 7], 2, 90));
    assert!(last.is_match_all() && !first.is_match_all() && service.http.is_empty());
}

#[test]
fn mistakes_in_rules_for_connections_are_named() {
    for (rules, expected) in [
        ("tls: [{route: [{destination: {host: a}}]}]", "spec.tls[0].match"),
        ("tls: [{match: [{port: 1}], route: [{destination: {host: a}}]}]", "spec.tls[0].match[0].sniHosts"),
        (
            "tls: [{match: [{sniHosts: [b.org]}], route: [{destination: {host: a}}]}]",
            "spec.tls[0].match[0].sniHosts[0]",
        ),
        ("tcp: [{match: [{sniHosts: [a.org]}], route: [{destination: {host: a}}]}]", "spec.tcp[0].match[0].sniHosts"),
        (
            "tcp: [{match: [{destinationSubnets: [10.0.0.0/33]}], route: [{destination: {host: a}}]}]",
            "destinationSubnets[0]",
        ),
        ("tcp: [{match: [{port: 70000}], route: [{destination: {host: a}}]}]", "spec.tcp[0].match[0].port"),
        ("tcp: [{match: []}]", "spec.tcp[0].route"),
        ("tcp: [{route: [{destination: {host: a}, headers: {}}]}]", "spec.tcp[0].route[0].headers"),
        ("tcp: [{route: [{destination: {host: a}, weight: -1}]}]", "spec.tcp[0].route[0].weight"),
        ("tcp: [{timeout: 1s, route: [{destination: {host: a}}]}]", "spec.tcp[0].timeout"),
    ] {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x}}\nspec:\n  hosts: [a.org]\n  {rules}\n"
        );
        let reading = read("x.yaml", &text);
        let errors: Vec<_> = reading.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
        let [error] = &errors[..] else { panic!("{rules}: {errors:?}") };
        let field = error.field.as_deref().unwrap();
        assert!(field.ends_with(expected) || field.contains(expected), "{rules}: {error}");
    }
}

#[test]
fn json_and_yaml_say_the_same() {
    let yaml = resources("a.yaml", REVIEWS).remove(0);
    let json = serde_json::to_string_pretty(&yaml.raw.to_json().unwrap()).unwrap();
    // Another object right after it, as `kubectl` prints them.
    let both = resources("a.json", &format!("{json}\n{}", json.replace("\"reviews\"", "\"ratings\"")));
    assert_eq!(both.len(), 2);
    let (a, b) = (virtual_service(&yaml), virtual_service(&both[0]));
    assert_eq!((&a.hosts[0].host, a.http.len()), (&b.hosts[0].host, b.http.len()));
    assert_eq!(both[1].key.name.as_str(), "ratings");
    assert_eq!(both[0].raw.document(), format!("{json}\n"));
    assert_eq!(both[1].place.at.line, json.lines().count() as u32 + 1);
    assert_eq!(resources("stdin", &json).len(), 1, "without an extension the text tells");
}

#[test]
fn the_items_of_a_list_are_resources_with_their_own_text() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec:\n    ports:\n    \
                - port: 80\n# b\n- {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {ports: [{port: 81}]}}\n";
    let resources = resources("list.yaml", text);
    let names: Vec<_> = resources.iter().map(|resource| resource.key.to_string()).collect();
    assert_eq!(names, ["Service default/a", "Service default/b"]);
    assert!(
        resources[0]
            .raw
            .document()
            .starts_with("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: 80\n")
    );
    let again = self::resources("a.yaml", &resources[1].raw.document());
    assert!(again[0].means_the_same_as(&resources[1]));
    let json = r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
        "spec": {"ports": [{"port": 80}]}}]}"#;
    let one = self::resources("list.json", json);
    assert!(one[0].raw.document().starts_with("{\"apiVersion\": \"v1\", \"kind\": \"Service\""));
    assert!(one[0].raw.document().ends_with("}]}}\n"));
}

#[test]
fn services_entries_and_rules_are_read() {
    let text = r#"
apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata: {name: ext}
spec:
  hosts: [api.example.com]
  addresses: [10.1.2.3]
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, targetPort: 8080}]
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{address: 192.0.2.1, ports: {http: 8081}, labels: {zone: a}, weight: 3}, {address: "2001:db8::1"}]
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: ext}
spec:
  host: api.example.com
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    portLevelSettings: [{port: {number: 443}, loadBalancer: {simple: RANDOM}}]
  subsets: [{name: a, labels: {zone: a}, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}]
"#;
    let resources = resources("a.yaml", text);
    let (world, diagnostics) = World::assemble(resources);
    assert_eq!(diagnostics, []);
    let service = world.registry().service_for("api.example.com", None).unwrap();
    assert_eq!(service.ports[0].protocol, Protocol::Tls);
    let endpoints: Vec<_> =
        service.endpoints.iter().map(|e| (e.address.to_string(), e.targets.to_vec(), e.weight)).collect();
    assert_eq!(endpoints, [("192.0.2.1".into(), vec![443, 8081], 3), ("2001:db8::1".into(), vec![443, 8080], 1)]);
    let rule = world.destination_rules().rule_for(&service.host, &service.namespace, None).unwrap();
    let subset = rule.subset("a").unwrap();
    let chosen = [rule.load_balancer(80, None), rule.load_balancer(443, None), rule.load_balancer(80, Some(subset))];
    assert_eq!(chosen, [LoadBalancer::RoundRobin, LoadBalancer::Random, LoadBalancer::Passthrough]);
}

#[test]
fn endpoints_take_the_labels_of_their_pod_over_those_of_their_slice() {
    let text = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: http, port: 80}], clusterIP: None}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {version: v2, app: web}}
spec: {serviceAccountName: web, containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.0.1, phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web, version: v1, track: old}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: web-1}, zone: a, nodeName: n, conditions: {ready: true, serving: true}}
- {addresses: [10.0.0.2]}
- {addresses: [10.0.0.3], conditions: {ready: false}}
"#;
    let (world, _) = World::assemble(resources("a.yaml", text));
    let service = &world.registry().services()[0];
    let labels: Vec<_> = service.endpoints.iter().map(|endpoint| endpoint.labels.value("version")).collect();
    assert_eq!(labels, [Some("v2"), Some("v1")]);
    assert_eq!(service.endpoints[0].labels.value("track"), Some("old"));
    assert_eq!(service.not_ready, 1);
    assert_eq!(*service.endpoints[0].targets, [8080]);
}

#[test]
fn unchanged_documents_are_not_read_again() {
    let mut cache = Cache::default();
    let body = |reading: &Reading, index: usize| match &reading.resources[index].body {
        Body::VirtualService(service) => Arc::as_ptr(service),
        other => panic!("{other:?}"),
    };
    let second = REVIEWS.replace("name: reviews", "name: second").replace("- reviews", "- second");
    let text = format!("{REVIEWS}---\n{second}");
    let first = read_files(&[file("a.yaml", &text), file("b.yaml", "")], &mut cache);
    let changed = text.replace("weight: 20", "weight: 21");
    let only_second = format!("{REVIEWS}---\n{}", &changed[REVIEWS.len() + 4..]);
    let again = read_files(&[file("b.yaml", ""), file("a.yaml", &only_second)], &mut cache);
    assert_eq!(body(&first, 0), body(&again, 0), "the document before the change is the very same");
    assert_ne!(body(&first, 1), body(&again, 1));
    assert_eq!(again.resources[0].raw.document(), REVIEWS);
    assert!(again.resources[1].raw.document().contains("weight: 21"));
    assert_eq!(again.diagnostics.len(), 1, "the weights of 101 are told");
    let same = read_files(&[file("a.yaml", &only_second)], &mut cache);
    assert_eq!(same.diagnostics, again.diagnostics, "what is wrong with an unchanged document is told again");
}

#[test]
fn many_threads_read_what_one_reads() {
    let document = |index: usize| REVIEWS.replace("name: reviews", &format!("name: r{index}"));
    let text: Vec<_> = (0..6_000).map(document).collect();
    let text = text.join("---\n");
    assert!(text.len() > PARALLEL_BYTES_MIN);
    let resources = resources("a.yaml", &text);
    let names: Vec<_> = resources.iter().map(|resource| resource.key.name.to_string()).collect();
    assert_eq!(names, (0..6_000).map(|index| format!("r{index}")).collect::<Vec<_>>());
    assert_eq!(resources[5_999].place.at.line, text.lines().count() as u32 - 16);
}

#[test]
fn a_broken_document_does_not_hide_the_others() {
    let reading = read("a.yaml", &format!("a: [\n---\n{REVIEWS}---\nb: {{\n"));
    assert_eq!(reading.resources.len(), 1);
    let lines: Vec<_> = reading.diagnostics.iter().map(|diagnostic| diagnostic.place.at.line).collect();
    assert_eq!(lines.len(), 2, "{:?}", reading.diagnostics);
}

#[test]
fn files_are_found_in_order_without_hidden_ones() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &[u8]| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for path in ["b/z.yaml", "b/a.yml", "a.json", "c.YAML", "README.md", ".git/x.yaml", "b/.hidden.yaml"] {
        write(path, b"{}");
    }
    std::os::unix::fs::symlink(root.path().join("b"), root.path().join("link")).unwrap();
    std::os::unix::fs::symlink(root.path(), root.path().join("b/loop")).unwrap();
    let (_, diagnostics) = discover(&[root.path().to_path_buf()]);
    assert!(
        diagnostics[0].to_string().contains("b/loop: error[MR0101]: is a symbolic link to a directory that it lies in")
    );
    fs::remove_file(root.path().join("b/loop")).unwrap();
    let (files, diagnostics) = discover(&[root.path().to_path_buf()]);
    assert_eq!(diagnostics, []);
    let prefix = format!("{}/", root.path().display());
    let names: Vec<_> = files.iter().map(|file| file.path.strip_prefix(&*prefix).unwrap()).collect();
    assert_eq!(names, ["a.json", "b/a.yml", "b/z.yaml", "c.YAML", "link/a.yml", "link/z.yaml"]);
    write("bad.yaml", b"a: 1\nb: \xff\n");
    let (_, diagnostics) = discover(&[root.path().join("bad.yaml"), root.path().join("none.yaml")]);
    assert!(diagnostics[0].to_string().ends_with(
        "bad.yaml:2:4: error[MR0101]: is not UTF-8: byte 8 is no part of a character; save the file in UTF-8"
    ));
    assert!(diagnostics[1].to_string().contains("none.yaml: error[MR0101]: cannot be read: No such file"));
    let (files, diagnostics) = discover(&[root.path().join(".git/x.yaml")]);
    assert_eq!((files.len(), diagnostics.len()), (1, 0), "a hidden file is read where it is named");
}

#[test]
fn kinds_are_named_as_kubectl_users_type_them() {
    for kind in Kind::ALL {
        assert_eq!(Kind::parse(kind.as_str()), Some(kind));
        assert_eq!(
            Kind::parse(&format!("{kind}s").to_lowercase().replace("entrys", "entries").replace("policys", "policies")),
            Some(kind)
        );
    }
    assert_eq!(Kind::parse("vs"), Some(Kind::VirtualService));
    assert_eq!(Kind::parse("sidecar"), None);
}

/// Text made of what YAML and our resources are made of: more of it gets past the first check than of random bytes.
fn fragments() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        Just("apiVersion: networking.istio.io/v1\n".to_owned()),
        Just("kind: VirtualService\n".to_owned()),
        Just("metadata: {name: a}\n".to_owned()),
        Just("spec:\n".to_owned()),
        Just("  hosts: [a]\n".to_owned()),
        Just("  http:\n  - route:\n    - destination: {host: a}\n".to_owned()),
        Just("---\n".to_owned()),
        Just("- ".to_owned()),
        Just("  ".to_owned()),
        Just("&a ".to_owned()),
        Just("*a".to_owned()),
        Just("<<: ".to_owned()),
        Just("|\n".to_owned()),
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just("? ".to_owned()),
        Just("!!str ".to_owned()),
        Just("\"".to_owned()),
        Just("'".to_owned()),
        Just(": ".to_owned()),
        Just("#".to_owned()),
        Just("%YAML 1.2\n".to_owned()),
        Just("\n".to_owned()),
        "[ -~äß\u{2028}\t]{0,4}",
    ];
    prop::collection::vec(fragment, 0..40).prop_map(|parts| parts.concat())
}

fn never_panics(path: &str, text: &str) {
    let reading = read(path, text);
    // YAML takes a lone carriage return for a line break.
    let lines = text.matches(['\n', '\r']).count() as u32 + 2;
    for diagnostic in &reading.diagnostics {
        assert!(diagnostic.place.at.line <= lines, "{diagnostic} is beyond the end of the file");
    }
    for resource in &reading.resources {
        resource.raw.document();
    }
    let (world, _) = World::assemble(reading.resources);
    world.analyze();
    // Whatever is accepted can be compiled, and the proxies' own validation takes it.
    let table = compile(&world, &NoDns).unwrap();
    Snapshot::from_bytes(&writer::encode(&table).unwrap().to_bytes(Generation(1))).unwrap();
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes);
        never_panics("a.yaml", &text);
        never_panics("a.json", &text);
    }

    #[test]
    fn no_yaml_makes_the_reader_panic(text in fragments()) {
        never_panics("a.yaml", &text);
        never_panics("a.json", &text);
        never_panics("-", &text);
    }

    #[test]
    fn no_damage_to_an_example_makes_the_reader_panic(at in 0..REVIEWS.len(), remove in 0..20_usize, insert in "[ -~\n]{0,5}") {
        let mut text = REVIEWS.to_owned();
        text.replace_range(at..(at + remove).min(REVIEWS.len()), &insert);
        never_panics("a.yaml", &text);
    }
}
