//! Istio and Kubernetes YAML as users write it, from file to response.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::time::Instant;

use meshring_tests::{
    client::{Client, request},
    control::{Control, reviews, shop},
    proxy::Proxy,
    upstream::{Received, Upstream, response},
};

/// Answers with its name and, in fields, what it received.
fn witness(name: &'static str) -> Upstream {
    Upstream::answering(move |request: &Received| {
        let host = request.fields.value("host").unwrap_or_default().to_owned();
        let tag = request.fields.all("x-tag").join("+");
        response(200, &[("x-line", &request.line), ("x-host", &host), ("x-tag-seen", &tag)], name.as_bytes())
    })
}

struct Mesh {
    control: Control,
    proxy: Proxy,
    _upstreams: [Upstream; 2],
    silent: Option<Upstream>,
}

/// Who the proxy `default/client` is.
const CLIENT: &str = "apiVersion: v1
kind: Pod
metadata:
  name: client
  labels:
    app: client
    tier: web
spec: {}
";

impl Mesh {
    /// With the shop, one more resource file, and the rules of `reviews`.
    fn start(http: &str) -> Self {
        let upstreams = [witness("v1"), witness("v2")];
        let shop = shop(upstreams[0].address(), upstreams[1].address());
        let files = [("shop.yaml", shop.as_str()), ("client.yaml", CLIENT), ("reviews.yaml", &reviews(http))];
        let control = Control::start(&files);
        let proxy = control.proxy("default/client").start();
        control.wait_for_proxies(1);
        let status = control.api("/v1/status");
        assert_eq!((&status["valid"], &status["warnings"]), (&true.into(), &serde_json::json!([])), "{status}");
        Self { control, proxy, _upstreams: upstreams, silent: None }
    }

    fn connect(&self) -> Client {
        self.proxy.connect()
    }
}

/// A rule that answers with a fixed body where it matches.
fn says(name: &str, conditions: &str) -> String {
    let conditions: String = conditions.lines().map(|line| format!("    {line}\n")).collect();
    format!("- match:\n  - {}  directResponse:\n    status: 200\n    body:\n      string: {name}\n", &conditions[4..])
}

const TO_V1: &str = "  route:\n  - destination:\n      host: reviews\n      subset: v1\n";

#[test]
fn every_kind_of_match_decides() {
    let rules = [
        says("exact", "uri:\n  exact: /exact"),
        says("regex", "uri:\n  regex: \"/item/[0-9]+\""),
        says("any-case", "uri:\n  prefix: /Case\nignoreUriCase: true"),
        says("method", "method:\n  exact: PUT"),
        says("authority", "authority:\n  prefix: reviews.default.svc.cluster.local"),
        says("scheme", "uri:\n  prefix: /scheme\nscheme:\n  exact: https"),
        says("plain", "uri:\n  prefix: /plain\nscheme:\n  exact: http"),
        says("header", "headers:\n  end-user:\n    exact: jason"),
        says("header-regex", "headers:\n  user-agent:\n    regex: \".*Firefox.*\""),
        says("present", "headers:\n  x-present: {}"),
        says("without", "uri:\n  prefix: /without\nwithoutHeaders:\n  x-bad:\n    exact: \"1\""),
        says("query", "queryParams:\n  page:\n    exact: \"2\""),
        says("port", "uri:\n  prefix: /port\nport: 9080"),
        says("no-port", "uri:\n  prefix: /port\nport: 81"),
        says("labels", "uri:\n  prefix: /labels\nsourceLabels:\n  app: client\n  tier: web"),
        says("other-labels", "uri:\n  prefix: /labels\nsourceLabels:\n  app: server"),
        says("other-namespace", "uri:\n  prefix: /namespace\nsourceNamespace: elsewhere"),
        says("namespace", "uri:\n  prefix: /namespace\nsourceNamespace: default"),
        // Alternatives: one of two is enough; conditions: all are needed.
        "- match:\n  - uri:\n      exact: /a\n  - uri:\n      exact: /b\n    headers:\n      x-b:\n        exact: \"1\"\n  \
         directResponse:\n    status: 200\n    body:\n      string: either\n"
            .to_owned(),
        format!("-{}", &TO_V1[1..]),
    ];
    let mesh = Mesh::start(&rules.concat());
    let mut client = mesh.connect();
    let mut check = |method: &str, host: &str, target: &str, fields: &[(&str, &str)], expected: &str| {
        let response = client.send(request(method, host, target, fields)).response();
        assert_eq!(response.expect(200).text(), expected, "{method} {host} {target} {fields:?}");
    };
    for (target, expected) in [
        ("/exact", "exact"),
        ("/exact/not", "v1"),
        ("/item/7", "regex"),
        ("/item/7/x", "v1"),
        ("/cAsE/x", "any-case"),
        ("/scheme", "v1"),
        ("/plain", "plain"),
        ("/without", "without"),
        ("/?page=2", "query"),
        ("/?page=22", "v1"),
        ("/port", "port"),
        ("/labels", "labels"),
        ("/namespace", "namespace"),
        ("/a", "either"),
        ("/b", "v1"),
        ("/", "v1"),
    ] {
        check("GET", "reviews", target, &[], expected);
    }
    // As Istio's sidecars: what ended the TLS before us says so, and we believe the application beside us.
    check("GET", "reviews", "/scheme", &[("x-forwarded-proto", "https")], "scheme");
    check("GET", "reviews", "/plain", &[("x-forwarded-proto", "https")], "v1");
    check("PUT", "reviews", "/", &[("content-length", "0")], "method");
    check("GET", "reviews.default.svc.cluster.local", "/", &[], "authority");
    check("GET", "reviews", "/", &[("End-User", "jason")], "header");
    check("GET", "reviews", "/", &[("end-user", "jasons")], "v1");
    check("GET", "reviews", "/", &[("user-agent", "Mozilla Firefox/99")], "header-regex");
    check("GET", "reviews", "/", &[("x-present", "anything")], "present");
    check("GET", "reviews", "/without", &[("x-bad", "1")], "v1");
    check("GET", "reviews", "/b", &[("x-b", "1")], "either");
}

#[test]
fn round_robin_takes_turns() {
    let upstreams = [witness("v1"), witness("v2")];
    let shop = shop(upstreams[0].address(), upstreams[1].address());
    let subsets = "spec:\n  host: reviews\n";
    let balanced = "spec:\n  host: reviews\n  trafficPolicy:\n    loadBalancer:\n      simple: ROUND_ROBIN\n";
    assert!(shop.contains(subsets));
    let control = Control::start(&[("shop.yaml", &shop.replace(subsets, balanced))]);
    let proxy = control.proxy("default/client").start();
    control.wait_for_proxies(1);
    let mut client = proxy.connect();
    let answers: Vec<String> = (0..60).map(|_| client.get("reviews", "/").expect(200).text()).collect();
    assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
}

#[test]
fn headers_rewrites_redirects_and_timeouts_are_honoured() {
    let rules = format!(
        "- match:\n  - uri:\n      prefix: /headers\n  headers:\n    request:\n      set:\n        x-tag: rule\n      remove:\n      - x-secret\n    \
         response:\n      add:\n        x-added: rule\n{TO_V1}    headers:\n      response:\n        set:\n          x-line: hidden\n\
         - match:\n  - uri:\n      prefix: /ratings/v1/\n  rewrite:\n    uri: /\n    authority: ratings.example.com\n{TO_V1}\
         - match:\n  - uri:\n      prefix: /user/\n  rewrite:\n    uriRegexRewrite:\n      match: /user/([a-z]+)/(.*)\n      rewrite: /\\2/of/\\1\n{TO_V1}\
         - match:\n  - uri:\n      exact: /moved\n  redirect:\n    uri: /here\n    authority: www.example.com\n    redirectCode: 302\n\
         - match:\n  - uri:\n      exact: /default\n  redirect:\n    uri: /to\n    scheme: https\n    derivePort: FROM_PROTOCOL_DEFAULT\n    redirectCode: 307\n\
         - match:\n  - uri:\n      exact: /kept\n  redirect:\n    scheme: https\n    derivePort: FROM_REQUEST_PORT\n    redirectCode: 308\n\
         - match:\n  - uri:\n      exact: /fixed\n  redirect:\n    port: 8443\n\
         - match:\n  - uri:\n      exact: /gone\n  directResponse:\n    status: 410\n    body:\n      string: gone\n\
         - match:\n  - uri:\n      exact: /slow\n  timeout: 0.3s\n  route:\n  - destination:\n      host: silent\n\
         -{}",
        &TO_V1[1..]
    );
    let mesh = Mesh::start_with_silent(&rules);
    let mut client = mesh.connect();
    let response = client.get_with("reviews", "/headers", &[("x-tag", "client"), ("x-secret", "1")]);
    let fields = &response.expect(200).fields;
    assert_eq!(fields.value("x-tag-seen"), Some("rule"));
    assert_eq!((fields.value("x-added"), fields.value("x-line")), (Some("rule"), Some("hidden")));
    for (target, line, host) in [
        ("/ratings/v1/7?a=b", "GET /7?a=b HTTP/1.1", "ratings.example.com"),
        ("/user/ann/pictures/1", "GET /pictures/1/of/ann HTTP/1.1", "reviews"),
        ("/other", "GET /other HTTP/1.1", "reviews"),
    ] {
        let response = client.get("reviews", target);
        let fields = &response.expect(200).fields;
        assert_eq!((fields.value("x-line"), fields.value("x-host")), (Some(line), Some(host)), "{target}");
    }
    let moved = client.get("reviews", "/moved");
    assert_eq!(moved.expect(302).fields.value("location"), Some("http://www.example.com/here"));
    for (target, status, location) in [
        ("/default", 307, "https://reviews/to"),
        ("/kept?a=b", 308, "https://reviews:9080/kept?a=b"),
        ("/fixed", 301, "http://reviews:8443/fixed"),
    ] {
        let response = client.get("reviews:9080", target);
        assert_eq!(response.expect(status).fields.value("location"), Some(location), "{target}");
    }
    // The port that Host leaves out is the service's.
    let kept = client.get("reviews", "/kept");
    assert_eq!(kept.expect(308).fields.value("location"), Some("https://reviews:9080/kept"));
    let encrypted = client.get_with("reviews", "/fixed", &[("x-forwarded-proto", "https")]);
    assert_eq!(encrypted.expect(301).fields.value("location"), Some("https://reviews:8443/fixed"));
    assert_eq!(client.get("reviews", "/gone").expect(410).text(), "gone");
    let started = Instant::now();
    client.get("reviews", "/slow").expect(504);
    assert!(started.elapsed().as_millis() >= 270, "{:?}", started.elapsed());
}

impl Mesh {
    /// As [`start`](Self::start), with a service `silent` that never answers.
    fn start_with_silent(http: &str) -> Self {
        let silent = Upstream::scripted(|peer| {
            peer.request();
            peer.wait_for_end();
        });
        let address = silent.address();
        let entry = format!(
            "apiVersion: networking.istio.io/v1beta1\nkind: ServiceEntry\nmetadata:\n  name: silent\nspec:\n  hosts:\n  - silent.default.svc.cluster.local\n  \
             resolution: STATIC\n  ports:\n  - name: http\n    number: 80\n    protocol: HTTP\n  endpoints:\n  - address: {}\n    ports:\n      http: {}\n",
            address.ip(),
            address.port()
        );
        let mut mesh = Self::start("- directResponse:\n    status: 200\n");
        mesh.control.write("silent.yaml", &entry);
        mesh.control.write("reviews.yaml", &reviews(http));
        mesh.control.meshring(&["wait", "--applied"]).expect(0);
        mesh.silent = Some(silent);
        mesh
    }
}

/// Pods of a Service on addresses of their own, as a cluster has them; all of 127/8 is loopback.
#[test]
fn services_with_endpoint_slices_workload_entries_and_all_api_versions_are_read() {
    let [one, two, three] = ["127.0.0.11:0", "127.0.0.12:0", "127.0.0.13:0"]
        .map(|address| Upstream::on(address, |_| response(200, &[], b"here")));
    let slice = |name: &str, upstream: &Upstream| {
        format!(
            r#"{{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {{"name": "{name}", "labels": {{"kubernetes.io/service-name": "plain"}}}},
                "addressType": "IPv4", "ports": [{{"name": "http", "port": {}}}], "endpoints": [{{"addresses": ["{}"], "conditions": {{"ready": {}}}}}]}}"#,
            upstream.address().port(),
            upstream.address().ip(),
            name != "unready"
        )
    };
    let service =
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: plain\nspec:\n  ports:\n  - name: http\n    port: 80\n";
    let workload = format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: WorkloadEntry\nmetadata:\n  name: vm\nspec:\n  address: {}\n  ports:\n    http: {}\n  labels:\n    app: vm\n\
         ---\napiVersion: networking.istio.io/v1beta1\nkind: ServiceEntry\nmetadata:\n  name: vm\nspec:\n  hosts:\n  - vm.example.com\n  resolution: STATIC\n  \
         ports:\n  - name: http\n    number: 80\n    protocol: HTTP\n  workloadSelector:\n    labels:\n      app: vm\n",
        three.address().ip(),
        three.address().port()
    );
    let control = Control::start(&[
        ("service.yaml", service),
        ("ready.json", &slice("ready", &one)),
        ("unready.json", &slice("unready", &two)),
        ("vm.yml", &workload),
    ]);
    let proxy = control.proxy("default/client").start();
    control.wait_for_proxies(1);
    let mut client = proxy.connect();
    for _ in 0..10 {
        client.get("plain", "/").expect(200);
        client.get("vm.example.com", "/").expect(200);
    }
    assert_eq!([&one, &two, &three].map(|upstream| upstream.received().len()), [10, 0, 10]);
}

#[test]
fn export_to_hides_a_service_from_other_namespaces() {
    let upstream = Upstream::saying("hello");
    let entry = |name: &str, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {name}\n  namespace: team\nspec:\n  hosts:\n  - {name}.example.com\n  \
             exportTo: [\"{export}\"]\n  resolution: STATIC\n  ports:\n  - name: http\n    number: 80\n    protocol: HTTP\n  endpoints:\n  - address: {}\n    \
             ports:\n      http: {}\n---\n",
            upstream.address().ip(),
            upstream.address().port()
        )
    };
    let files = [entry("open", "*"), entry("own", "."), entry("named", "default")].concat();
    let control = Control::start(&[("team.yaml", &files)]);
    let proxies = ["default/client", "team/client", "other/client"].map(|workload| control.proxy(workload).start());
    control.wait_for_proxies(3);
    let statuses = proxies.each_ref().map(|proxy| {
        let mut client = proxy.connect();
        ["open", "own", "named"].map(|name| client.get(&format!("{name}.example.com"), "/").status)
    });
    assert_eq!(statuses, [[200, 404, 200], [200, 200, 404], [200, 404, 404]]);
}

#[test]
fn export_to_hides_rules_from_other_namespaces() {
    let upstream = Upstream::saying("hello");
    let entry = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: open, namespace: team}}
spec:
  hosts: [open.example.com]
  resolution: STATIC
  ports: [{{name: http, number: 80, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}, labels: {{version: v1}}}}]
---
",
        upstream.address().ip(),
        upstream.address().port()
    );
    // A rule of the service's namespace for that namespace alone; everybody else's rule goes to a subset.
    let rules = |subset_export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: own, namespace: team}}
spec:
  hosts: [open.example.com]
  exportTo: [\".\"]
  http: [{{directResponse: {{status: 418}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: all, namespace: default}}
spec:
  hosts: [open.example.com]
  exportTo: [default]
  http: [{{route: [{{destination: {{host: open.example.com, subset: v1}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: open, namespace: team}}
spec:
  host: open.example.com
  exportTo: [{subset_export}]
  subsets: [{{name: v1, labels: {{version: v1}}}}]
"
        )
    };
    let control = Control::start(&[("team.yaml", &(entry + &rules("\".\"")))]);
    let proxies = ["default/client", "team/client", "other/client"].map(|workload| control.proxy(workload).start());
    control.wait_for_proxies(3);
    let statuses = || proxies.each_ref().map(|proxy| proxy.connect().get("open.example.com", "/").status);
    // `default` has the rule for its subset, but not the subset; `other` has neither rule.
    assert_eq!(statuses(), [503, 418, 200]);
    let exported = control.file("exported.yaml", rules("\"*\"").rsplit("---\n").next().unwrap());
    control.meshring(&["apply", "-f", &exported]).expect(0);
    assert_eq!(statuses(), [200, 418, 200]);
}
