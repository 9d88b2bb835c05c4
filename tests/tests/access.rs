//! AuthorizationPolicy from its YAML to the response: each action, each kind of condition, and external authorizers.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::net::SocketAddr;

use meshring_tests::{
    client::{Client, Response, request},
    pki::{Leaf, spiffe},
    ports::Reserved,
    proxy::Driver,
    tls::{Mesh, peer_authentication},
    upstream::{Received, Upstream, ok, response},
    wait,
};

const DENIED: &str = "access_denied_total";
const OBSERVED: &str = "access_observed_total";

/// AuthorizationPolicy for `reviews`; `spec` is YAML of its spec, not indented.
fn policy(name: &str, annotations: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: \
         default\n  annotations: {{{annotations}}}\nspec:\n  selector: {{matchLabels: {{app: reviews}}}}\n{spec}"
    )
}

fn allow(rules: &str) -> String {
    policy("allow", "", &format!("action: ALLOW\nrules:\n{rules}"))
}

fn start(application: &Upstream, policies: &str) -> Mesh {
    let strict = peer_authentication("PERMISSIVE", "");
    Mesh::start(Driver::Auto, &[application.address()], &[("mode.yaml", &strict), ("policies.yaml", policies)])
}

#[track_caller]
fn expect_denied(response: &Response) {
    assert_eq!(response.expect(403).text(), "meshring: Forbidden (access_denied): RBAC: access denied\n");
}

#[test]
fn allow_lets_pass_whom_a_rule_names_and_nobody_else() {
    let application = Upstream::saying("here");
    let rules = "- from: [{source: {principals: [\"cluster.local/ns/default/sa/client\"]}}]\n  to: [{operation: \
                 {methods: [GET], paths: [\"/ok*\"]}}]\n";
    let mesh = start(&application, &allow(rules));
    let mut client = mesh.client.connect();
    let before = mesh.server_metric(DENIED);
    client.get("reviews", "/ok/1").expect(200);
    // A refusal does not cost the connection.
    expect_denied(&client.get("reviews", "/other"));
    expect_denied(&client.send(request("POST", "reviews", "/ok", &[("content-length", "0")])).response());
    client.get("reviews", "/ok").expect(200);
    // Spelled otherwise, it is the same path.
    expect_denied(&client.get("reviews", "/ok/../other"));
    expect_denied(&mesh.caller(&Leaf::workload("stranger")).connect(mesh.inbound()).get("reviews", "/ok"));
    expect_denied(&Client::connect(mesh.inbound()).get("reviews", "/ok"));
    wait::until("the count of denials", || (mesh.server_metric(DENIED) == before + 5).then_some(()));
    // The log says who and why, one line per kind of refusal and while.
    mesh.wait_for_log(&["no rule of the ALLOW policies matches"]);
    assert_eq!(application.received().len(), 2);
}

#[test]
fn deny_comes_before_allow_and_names_file_and_line_in_the_log() {
    let application = Upstream::saying("here");
    let deny = policy("deny", "", "action: DENY\nrules:\n- to: [{operation: {paths: [\"/admin*\"]}}]\n");
    let mesh = start(&application, &(allow("- {}\n") + &deny));
    let mut client = mesh.client.connect();
    client.get("reviews", "/").expect(200);
    expect_denied(&client.get("reviews", "/admin"));
    expect_denied(&client.get("reviews", "//admin"));
    expect_denied(&client.get("reviews", "/%61dmin;x=1"));
    let line = mesh.wait_for_log(&["access_denied"]);
    assert!(line.contains("policies.yaml") && line.contains(&spiffe("client")), "{line}");
}

/// Item 36 of the HTTP checklist, where the rules are those of an AuthorizationPolicy and the request comes straight to the inbound
/// port: whatever is let through to a path is what the application sees.
#[test]
fn item_36_every_spelling_gets_the_verdict_of_its_path() {
    let application = Upstream::answering(|request| ok(request.target()));
    let deny = "action: DENY\nrules:\n- to: [{operation: {paths: [\"/admin\", \"/admin/*\", \"/deep/only\"]}}]\n";
    let only = "- to: [{operation: {paths: [\"/open\", \"/open/*\"]}}]\n";
    let denied = [
        "/admin",
        "/admin/",
        "/admin/x",
        "/a/../admin",
        "/a/%2e%2e/admin",
        "/a/%2E%2E/admin",
        "/a/.%2e/admin",
        "/./admin",
        "/%2e/admin",
        "/%61dmin",
        "/admi%6E",
        "//admin",
        "///admin",
        "/.//admin",
        "http://reviews//admin",
        "/admin%2f",
        "/admin%2fx",
        "/%2fadmin",
        "/%2Fadmin",
        "/%5cadmin",
        "/a%2f..%2fadmin",
        "/a%5c..%5cadmin",
        "/a%2f%2e%2e%2fadmin",
        "/x/..%2fadmin",
        "/admin;x",
        "/admin;",
        "/admin;x=1/y",
        "/a/../admin;x",
        "/admi%6e;x?q",
        "//admin;x",
        "/deep;v=1/only",
        "/deep;v=1/only;w",
        "/admin?a=/open",
        "/open/../admin",
        "/open/%2e%2e/admin",
        "/open%2f..%2fadmin",
        "http://reviews/admin",
    ];
    let refused = [
        ("/../admin", "http1.path_escapes_root"),
        ("/%2e%2e/admin", "http1.path_escapes_root"),
        ("/..%2fadmin", "http1.path_escapes_root"),
        ("/a/..;x/admin", "http1.path_parameters"),
        ("/..;/admin", "http1.path_parameters"),
        ("/.;x/admin", "http1.path_parameters"),
        ("/a/..%3bx/admin", "http1.path_parameters"),
        ("/admin%00", "http1.target_nul"),
        ("/x\\..\\admin", "http1.target_backslash"),
        ("/%c0%afadmin", "http1.target_overlong_utf8"),
    ];
    // What is let through, and as what the application sees it.
    let passed = [
        ("/open", "/open"),
        ("//open", "/open"),
        ("/open/./x", "/open/x"),
        ("/admin/../open/x", "/open/x"),
        ("/admin%2f..%2fopen", "/open"),
        ("/%6fpen/%78", "/open/x"),
        ("/open;v=1/x", "/open;v=1/x"),
        ("/open/%252e%252e/admin", "/open/%252e%252e/admin"),
        ("/open?x=/../admin", "/open?x=/../admin"),
    ];
    // One of them alone, and both.
    for (policies, is_open) in
        [(policy("deny", "", deny), true), (allow(only), false), (policy("deny", "", deny) + &allow(only), false)]
    {
        let mesh = start(&application, &policies);
        let before = application.received().len();
        let mut client = Client::connect(mesh.inbound());
        for target in denied {
            expect_denied(&client.get("reviews", target));
        }
        for (target, code) in refused {
            let response = Client::connect(mesh.inbound()).get("reviews", target);
            assert!(response.expect(400).text().contains(code), "{target}: {}", response.text());
        }
        assert_eq!(application.received().len(), before);
        for (target, seen) in passed {
            assert_eq!(client.get("reviews", target).expect(200).text(), seen, "{target}");
        }
        // No dot segments, and not the path of any rule.
        for target in ["/x", "/administrator", "/.admin", "/a../admin", "/deep/only/x"] {
            let response = client.get("reviews", target);
            if is_open { assert_eq!(response.expect(200).text(), target) } else { expect_denied(&response) }
        }
    }
}

#[test]
fn audit_and_dry_run_are_counted_and_let_pass() {
    let application = Upstream::saying("here");
    let audit = policy("audit", "", "action: AUDIT\nrules:\n- to: [{operation: {paths: [\"/audited\"]}}]\n");
    let dry = "\"istio.io/dry-run\": \"true\"";
    let dry = policy("dry", dry, "action: DENY\nrules:\n- to: [{operation: {paths: [\"/dry\"]}}]\n");
    let mesh = start(&application, &(audit + &dry));
    let before = mesh.server_metric(OBSERVED);
    mesh.get("reviews", "/audited").expect(200);
    let seen = mesh.wait_for_metric_above(OBSERVED, before);
    mesh.get("reviews", "/dry").expect(200);
    mesh.wait_for_metric_above(OBSERVED, seen);
    mesh.get("reviews", "/").expect(200);
    assert_eq!(mesh.server_metric(DENIED), 0);
    mesh.wait_for_log(&["not enforced (AUDIT or dry run)"]);
}

/// One request: who asks (`None`: in plain text), method, host, target, fields.
type Question<'a> = (Option<&'a str>, &'a str, &'a str, &'a str, &'a [(&'a str, &'a str)]);

#[test]
fn every_kind_of_condition_decides() {
    let application = Upstream::saying("here");
    let mesh = start(&application, &allow("- {}\n"));
    let port = application.address().port().to_string();
    let own: &[(&str, &str)] = &[];
    let me = Some("client");
    let get = |who, target| (who, "GET", "reviews", target, own);
    // The rule, whom it lets pass, whom it does not.
    let cases: Vec<(String, Vec<Question<'_>>, Vec<Question<'_>>)> = vec![
        (
            "- from: [{source: {principals: [\"*/sa/client\"]}}]".into(),
            vec![get(me, "/")],
            vec![get(Some("other"), "/"), get(None, "/")],
        ),
        (
            "- from: [{source: {notPrincipals: [\"cluster.local/ns/default/sa/client\"]}}]".into(),
            vec![get(Some("other"), "/"), get(None, "/")],
            vec![get(me, "/")],
        ),
        ("- from: [{source: {namespaces: [default]}}]".into(), vec![get(me, "/")], vec![get(None, "/")]),
        ("- from: [{source: {namespaces: [elsewhere]}}]".into(), vec![], vec![get(me, "/")]),
        ("- from: [{source: {ipBlocks: [127.0.0.0/8]}}]".into(), vec![get(me, "/"), get(None, "/")], vec![]),
        ("- from: [{source: {notIpBlocks: [127.0.0.1]}}]".into(), vec![], vec![get(me, "/"), get(None, "/")]),
        (
            "- to: [{operation: {methods: [POST, PUT]}}]".into(),
            vec![(me, "PUT", "reviews", "/", &[("content-length", "0")])],
            vec![get(me, "/")],
        ),
        (
            "- to: [{operation: {paths: [/exact, \"*.html\", \"/item/{*}/x\"]}}]".into(),
            vec![get(me, "/exact"), get(me, "/a/b.html"), get(me, "/item/7/x?y")],
            vec![get(me, "/exact/not"), get(me, "/item/7/8/x"), get(me, "/html")],
        ),
        (
            "- to: [{operation: {hosts: [\"*.example.com\"]}}]".into(),
            vec![(me, "GET", "a.example.com", "/", own), (me, "GET", "A.EXAMPLE.COM", "/", own)],
            vec![get(me, "/"), (me, "GET", "example.org", "/", own)],
        ),
        (format!("- to: [{{operation: {{ports: [\"{port}\"]}}}}]"), vec![get(me, "/")], vec![]),
        ("- to: [{operation: {notPorts: [\"1\"], notMethods: [GET]}}]".into(), vec![], vec![get(me, "/")]),
        (
            "- when: [{key: \"request.headers[x-team]\", values: [\"blue*\"], notValues: [blue-0]}]".into(),
            vec![(me, "GET", "reviews", "/", &[("X-Team", "blue-1")])],
            vec![get(me, "/"), (me, "GET", "reviews", "/", &[("x-team", "blue-0")])],
        ),
        (
            "- when: [{key: connection.sni, values: [\"reviews*\"]}]".into(),
            vec![get(me, "/")],
            vec![get(None, "/")],
        ),
        (
            "- from: [{source: {serviceAccounts: [default/client]}}]".into(),
            vec![get(me, "/")],
            vec![get(Some("other"), "/"), get(None, "/")],
        ),
        (
            "- from: [{source: {notServiceAccounts: [default/client]}}]".into(),
            vec![get(Some("other"), "/"), get(None, "/")],
            vec![get(me, "/")],
        ),
        ("- from: [{source: {notNamespaces: [default]}}]".into(), vec![get(None, "/")], vec![get(me, "/")]),
        ("- from: [{source: {trustDomains: [cluster.local]}}]".into(), vec![get(me, "/")], vec![get(None, "/")]),
        ("- from: [{source: {notTrustDomains: [cluster.local]}}]".into(), vec![get(None, "/")], vec![get(me, "/")]),
        ("- from: [{source: {remoteIpBlocks: [127.0.0.0/8]}}]".into(), vec![get(me, "/"), get(None, "/")], vec![]),
        ("- from: [{source: {notRemoteIpBlocks: [127.0.0.1]}}]".into(), vec![], vec![get(me, "/"), get(None, "/")]),
        (
            "- to: [{operation: {notHosts: [\"*.example.com\"], notPaths: [/shut]}}]".into(),
            vec![get(me, "/"), (me, "GET", "example.org", "/open", own)],
            vec![(me, "GET", "A.example.com", "/", own), get(me, "/shut")],
        ),
        ("- when: [{key: destination.ip, values: [127.0.0.1]}]".into(), vec![get(me, "/")], vec![]),
        ("- when: [{key: destination.ip, notValues: [127.0.0.0/8]}]".into(), vec![], vec![get(me, "/")]),
        (format!("- when: [{{key: destination.port, values: [\"{port}\"]}}]"), vec![get(me, "/")], vec![]),
        ("- when: [{key: source.namespace, values: [default]}]".into(), vec![get(me, "/")], vec![get(None, "/")]),
        (
            "- when: [{key: source.principal, notValues: [\"*\"]}]".into(),
            vec![get(None, "/")],
            vec![get(me, "/"), get(Some("other"), "/")],
        ),
        ("- when: [{key: remote.ip, values: [127.0.0.1]}]".into(), vec![get(me, "/")], vec![]),
        (
            "- from: [{source: {principals: [\"*\"]}}]\n  to: [{operation: {methods: [GET]}}]\n  when: [{key: source.ip, \
             values: [127.0.0.1]}]\n- to: [{operation: {paths: [/public]}}]"
                .into(),
            vec![get(me, "/"), get(None, "/public")],
            vec![get(None, "/"), (me, "DELETE", "reviews", "/", &[("content-length", "0")])],
        ),
    ];
    for (rules, passes, fails) in cases {
        mesh.change("policies.yaml", &allow(&format!("{rules}\n")));
        for (question, status) in passes.iter().map(|q| (q, 200)).chain(fails.iter().map(|q| (q, 403))) {
            let got = ask(&mesh, question);
            assert_eq!(got, status, "{rules}\n{question:?}");
        }
    }
}

/// Past the client's sidecar, so that hosts need not be known there.
fn ask(mesh: &Mesh, &(who, method, host, target, fields): &Question<'_>) -> u16 {
    let bytes = request(method, host, target, fields);
    match who {
        None => Client::connect(mesh.inbound()).send(bytes).response().status,
        Some(account) => mesh.caller(&Leaf::workload(account)).connect(mesh.inbound()).send(bytes).response().status,
    }
}

#[test]
fn the_remote_address_is_the_client_of_the_trusted_hops() {
    let application = Upstream::saying("here");
    let rules = "- from: [{source: {remoteIpBlocks: [203.0.113.0/24], notRemoteIpBlocks: [203.0.113.7]}}]\n";
    let policies = allow(rules);
    let mesh = Mesh::configured(Driver::Auto, &[application.address()], &[("policies.yaml", &policies)], |server| {
        server.arguments(&["--trusted-hops", "1"])
    });
    let ask = |fields: &[(&str, &str)]| {
        Client::connect(mesh.inbound()).send(request("GET", "reviews", "/", fields)).response().status
    };
    // By the list's end: what the client itself has written before it is not believed.
    for (list, status) in [
        ("203.0.113.9", 200),
        ("198.51.100.1, 203.0.113.9", 200),
        ("203.0.113.9, 198.51.100.1", 403),
        ("203.0.113.7", 403),
        ("::ffff:203.0.113.9", 200),
        ("nonsense", 403),
    ] {
        assert_eq!(ask(&[("x-forwarded-for", list)]), status, "{list}");
    }
    assert_eq!(ask(&[]), 403);
}

#[test]
fn explain_names_the_policy_that_decides_with_file_and_line() {
    let application = Upstream::saying("here");
    let deny = policy("deny", "", "action: DENY\nrules:\n- to: [{operation: {paths: [\"/admin*\"]}}]\n");
    let mesh = start(&application, &(allow("- to: [{operation: {methods: [GET]}}]\n") + &deny));
    // Several workloads have this machine's address: which one has the endpoint is told by its port.
    // Each keeps the service account that the mesh has given it: with another one it would get a new certificate,
    // and its callers would refuse it.
    let workload = |name: &str, port: u16| {
        let app = name.trim_end_matches("-v1");
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
             address: 127.0.0.1\n  ports: {{http: {port}}}\n  labels: {{app: {app}}}\n  serviceAccount: {app}\n"
        )
    };
    let workloads = workload("client", 1) + &workload("reviews-v1", mesh.inbound().port());
    mesh.control.write("workloads.yaml", &workloads);
    let ask = |url: &str, more: &[&str]| {
        let all = [&["explain", "--from", "default/client", "--url", url][..], more].concat();
        mesh.control.meshring(&all).expect(0).stdout.clone()
    };
    wait::until("the workloads", || ask("http://reviews/", &[]).contains("at default/reviews-v1").then_some(()));
    for (url, more, status, parts) in [
        ("http://reviews/admin/x", &[][..], 403, ["AuthorizationPolicy default/deny", "policies.yaml:24"]),
        ("http://reviews/", &[], 200, ["AuthorizationPolicy default/allow", "policies.yaml:12"]),
        ("http://reviews/", &["-X", "POST"], 403, ["AuthorizationPolicy default/allow", "policies.yaml:12"]),
    ] {
        let text = ask(url, more);
        for part in parts {
            assert!(text.contains(part), "{url} {more:?}: {part} is missing in\n{text}");
        }
        // What it says is what happens.
        let method = more.last().unwrap_or(&"GET");
        let target = url.trim_start_matches("http://reviews");
        let response =
            mesh.client.connect().send(request(method, "reviews", target, &[("content-length", "0")])).response();
        assert_eq!(response.status, status, "{url} {more:?}");
    }
}

#[test]
fn a_change_takes_effect_with_the_next_request_of_an_open_connection() {
    let application = Upstream::saying("here");
    let mesh = start(&application, &allow("- {}\n"));
    let mut through_sidecar = mesh.client.connect();
    let mut mutual = mesh.caller(&Leaf::workload("client")).connect(mesh.inbound());
    let mut plain = Client::connect(mesh.inbound());
    for (rules, status) in
        [("- {}\n", 200), ("- to: [{operation: {paths: [/other]}}]\n", 403), ("- {}\n# again\n", 200)]
    {
        if status != 200 || rules.contains("again") {
            mesh.change("policies.yaml", &allow(rules));
        }
        through_sidecar.get("reviews", "/").expect(status);
        mutual.get("reviews", "/").expect(status);
        plain.get("reviews", "/").expect(status);
    }
    // An ALLOW policy without rules: nobody.
    mesh.change("policies.yaml", &policy("nobody", "", "{}\n").replace("  {}\n", ""));
    expect_denied(&through_sidecar.get("reviews", "/"));
}

// ---- CUSTOM -------------------------------------------------------------------------------------------------------

/// MeshConfig with an authorizer at an address, and a policy that asks it about everything below `/checked`.
fn external(more: &str) -> String {
    let policy = policy(
        "ask",
        "",
        "action: CUSTOM\nprovider: {name: gatekeeper}\nrules:\n- to: [{operation: {paths: [\"/checked*\"]}}]\n",
    );
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    extensionProviders:
    - name: gatekeeper
      envoyExtAuthzHttp:
        service: gatekeeper.default.svc.cluster.local
        port: 9000
        timeout: 5s
        includeRequestHeadersInCheck: [x-key]
        includeAdditionalHeadersInCheck: {{x-mesh: \"yes\"}}
        headersToUpstreamOnAllow: [x-user]
        headersToDownstreamOnAllow: [x-seen]
        headersToDownstreamOnDeny: [x-why, content-type]
        {more}
{policy}"
    )
}

fn authorizer_service(address: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: gatekeeper, namespace: default}}
spec:
  hosts: [gatekeeper.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9000, name: http, protocol: HTTP}}]
  endpoints:
  - address: {}
    ports: {{http: {}}}
",
        address.ip(),
        address.port()
    )
}

fn gatekeeper() -> Upstream {
    Upstream::answering(|request: &Received| match request.fields.value("x-key") {
        Some("good") => response(200, &[("x-user", "jason"), ("x-seen", "1"), ("x-inner", "no")], b""),
        Some("down") => response(503, &[], b""),
        _ => response(
            401,
            &[("x-why", "no key"), ("content-type", "application/json"), ("x-inner", "no")],
            br#"{"error":"no key"}"#,
        ),
    })
}

#[test]
fn an_external_authorizer_decides_adds_fields_and_answers_in_its_own_words() {
    let (application, authorizer) = (Upstream::echoing(), gatekeeper());
    let mesh = start(&application, &allow("- to: [{operation: {notPaths: [/checked/never]}}]\n"));
    mesh.change("gatekeeper.yaml", &authorizer_service(authorizer.address()));
    mesh.change("external.yaml", &external("failOpen: false"));
    let mut client = mesh.client.connect();

    // What no rule names is not asked about.
    client.get("reviews", "/free").expect(200);
    assert_eq!(authorizer.received().len(), 0);

    let fields = [("x-key", "good"), ("x-user", "forged"), ("x-other", "1")];
    let passed = client.get_with("reviews", "/checked/a?b=c", &fields);
    let text = passed.expect(200).text();
    assert!(text.contains("\nx-user: jason\n") && !text.contains("forged") && !text.contains("x-inner"), "{text}");
    assert_eq!((passed.fields.value("x-seen"), passed.fields.value("x-inner")), (Some("1"), None));
    let check = authorizer.wait_for(1).remove(0);
    assert_eq!((check.method(), check.target()), ("GET", "/checked/a?b=c"));
    assert_eq!((check.fields.value("x-key"), check.fields.value("x-mesh")), (Some("good"), Some("yes")));
    assert!(!check.fields.has("x-other"), "{check:?}");

    let denied = client.get("reviews", "/checked/a");
    assert_eq!(denied.expect(401).text(), r#"{"error":"no key"}"#);
    assert_eq!(denied.fields.value("x-why"), Some("no key"));
    assert_eq!(denied.fields.value("content-type"), Some("application/json"));
    assert!(!denied.fields.has("x-inner"), "{denied:?}");

    // Its yes is not the last word.
    expect_denied(&client.get_with("reviews", "/checked/never", &[("x-key", "good")]));
    // A failure of its own is no answer for the client.
    client.get_with("reviews", "/checked/a", &[("x-key", "down")]).expect(403);
    mesh.wait_for_log(&["ext_authz_failed"]);
    // A body goes to the application, not to the authorizer.
    let post = b"POST /checked/b HTTP/1.1\r\nhost: reviews\r\nx-key: good\r\ncontent-length: 5\r\n\r\nhello";
    client.send(post).response().expect(200);
    assert_eq!(application.received().last().unwrap().body, b"hello");
    assert!(authorizer.received().iter().all(|check| check.body.is_empty()));
}

#[test]
fn an_authorizer_that_is_not_there_closes_or_opens_as_configured() {
    let application = Upstream::saying("here");
    let nobody = Reserved::new();
    let mesh = start(&application, &allow("- {}\n"));
    mesh.change("gatekeeper.yaml", &authorizer_service(nobody.address()));
    mesh.change("external.yaml", &external("failOpen: false"));
    mesh.get("reviews", "/checked").expect(403);
    assert_eq!(application.received().len(), 0);
    mesh.change("external.yaml", &external("statusOnError: \"503\""));
    mesh.get("reviews", "/checked").expect(503);
    mesh.change("external.yaml", &external("failOpen: true"));
    mesh.get("reviews", "/checked").expect(200);
    mesh.wait_for_log(&["ext_authz_failed_open"]);
    // A policy whose provider nobody has defined lets nobody pass, also where no rule of it matches: as with Istio.
    mesh.change("external.yaml", &external("failOpen: true").replace("name: gatekeeper}", "name: unknown}"));
    mesh.get("reviews", "/checked").expect(403);
    mesh.get("reviews", "/free").expect(403);
}
