//! What control reads, applies, deletes, refuses and explains.

mod common;

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::CommandExt,
    },
};

use common::{FakeProxy, Node, SHOP, split, texts, until};

#[test]
fn changes_by_rename_and_by_symlink_swap_are_followed() {
    let node = Node::new(&[("shop.yaml", SHOP)]);
    // As Kubernetes mounts a ConfigMap: a file is a link into a hidden directory that is itself switched by a link.
    for (version, v2) in [("..1", 80), ("..2", 50)] {
        fs::create_dir(node.config().join(version)).unwrap();
        fs::write(node.config().join(version).join("split.yaml"), split(v2)).unwrap();
    }
    symlink("..1", node.config().join("..data")).unwrap();
    symlink("..data/split.yaml", node.config().join("split.yaml")).unwrap();
    let mut node = node;
    node.start();
    let proxy = FakeProxy::connect(&node, "p");
    until("it runs generation 1", || proxy.runs() == [1, 1]);

    symlink("..2", node.config().join("..new")).unwrap();
    fs::rename(node.config().join("..new"), node.config().join("..data")).unwrap();
    until("the switched link is followed", || proxy.runs() == [2, 2]);
    assert!(node.ok(&["get", "vs", "reviews", "-o", "yaml"]).contains("weight: 50"));

    fs::remove_file(node.config().join("split.yaml")).unwrap();
    until("a removed file is followed", || proxy.runs() == [3, 3]);
    node.write("split.yaml", &split(10));
    until("a renamed file is followed", || proxy.runs() == [4, 4]);
    let history = node.ok(&["history"]);
    assert!(history.contains("deleted VirtualService default/reviews"), "{history}");
}

#[test]
fn an_invalid_file_set_is_refused_as_a_whole_and_repaired_live() {
    let node = Node::started(&[("shop.yaml", SHOP), ("split.yaml", &split(80))]);
    let proxy = FakeProxy::connect(&node, "p");
    until("it runs generation 1", || proxy.runs() == [1, 1]);
    // One file is better now and one is broken: neither takes effect.
    node.write("split.yaml", &split(50));
    node.write("broken.yaml", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: x\nspec:\n  hosts: [x]\n  htttp: []\n");
    until("the problem is shown", || node.status()["valid"] == false);
    let place = format!("{}:7:3", node.config().join("broken.yaml").display());
    let said = node.ok(&["get", "status"]);
    assert!(said.contains("NOT IN EFFECT") && said.contains(&place) && said.contains("htttp"), "{said}");
    let said = node.refused(&["wait", "--applied"]);
    assert!(said.contains(&place), "{said}");
    assert!(node.log().contains(&place), "{}", node.log());
    assert_eq!((proxy.runs(), node.generation()), (vec![1, 1], 1));
    // What is applied still works over the last good set.
    node.file("split.yaml", &split(70));
    node.ok(&["apply", "-f", "split.yaml"]);
    assert_eq!(proxy.runs(), [2, 2]);
    fs::remove_file(node.config().join("broken.yaml")).unwrap();
    until("it is valid again", || node.status()["valid"] == true);
}

#[test]
fn errors_at_the_start_keep_what_runs_until_they_are_repaired() {
    let mut node = Node::started(&[("shop.yaml", SHOP)]);
    node.kill();
    node.write("broken.yaml", "kind: [\n");
    node.start();
    assert_eq!((node.generation(), node.status()["valid"].as_bool()), (1, Some(false)));
    node.file("split.yaml", &split(80));
    let said = node.refused(&["apply", "-f", "split.yaml"]);
    assert!(said.contains("broken.yaml:") && said.contains("repair them first"), "{said}");
    let proxy = FakeProxy::connect(&node, "p");
    fs::remove_file(node.config().join("broken.yaml")).unwrap();
    until("the same generation is back", || proxy.runs() == [1, 1]);
    until("it is shown as valid", || node.status()["valid"] == true);
}

#[test]
fn a_directory_that_becomes_empty_is_taken_for_an_accident() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    fs::remove_file(node.config().join("shop.yaml")).unwrap();
    let said = node.refused(&["wait", "--applied"]);
    assert!(said.contains("no resource is left"), "{said}");
    assert_eq!(node.generation(), 1);
}

#[test]
fn what_is_applied_overrides_the_files_until_it_is_deleted() {
    let node = Node::started(&[("shop.yaml", SHOP), ("split.yaml", &split(80))]);
    let place = format!("{}:1", node.config().join("split.yaml").display());
    node.file(
        "mine.yaml",
        &format!(
            "# mine\n{}---\n{}",
            split(10),
            split(20).replace("name: reviews", "name: extra").replace("- reviews", "- extra")
        ),
    );
    let said = node.ok(&["apply", "-f", "mine.yaml"]);
    assert!(said.contains("VirtualService default/extra created"), "{said}");
    assert!(said.contains("VirtualService default/reviews configured"), "{said}");
    let said = node.ok(&["get", "vs", "-n", "default"]);
    assert!(said.contains("applied from mine.yaml:2") && said.contains("applied from mine.yaml:"), "{said}");
    // The files change below it without effect on it.
    node.write("split.yaml", &split(60));
    node.ok(&["wait", "--applied"]);
    assert!(node.ok(&["get", "vs", "reviews", "-o", "yaml"]).contains("weight: 10"));

    let said = node.ok(&["delete", "-f", "mine.yaml"]);
    assert!(said.contains("VirtualService default/extra deleted"), "{said}");
    assert!(said.contains(&format!("VirtualService default/reviews restored: {place} is in effect again")), "{said}");
    assert!(node.ok(&["get", "vs", "reviews", "-o", "yaml"]).contains("weight: 60"));
    assert_eq!(node.json(&["get", "vs", "reviews", "-o", "json"])["metadata"]["name"], "reviews");

    let said = node.refused(&["delete", "-f", "mine.yaml"]);
    assert!(said.contains("is not from `meshring apply`") && said.contains(&place), "{said}");
    node.file("other.yaml", &split(1).replace("name: reviews", "name: nobody"));
    assert!(node.refused(&["delete", "-f", "other.yaml"]).contains("VirtualService default/nobody does not exist"));
    assert!(node.refused(&["get", "vs", "nobody"]).contains("no vs named nobody"));
}

#[test]
fn what_the_log_leaves_out_is_counted() {
    // A file tells ten times of one field, and then how often more.
    let rule = |file: usize, index: usize| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r-{file}-{index}}}\nspec: {{hosts: \
             [r-{file}-{index}.example.com], http: [{{fault: {{}}, directResponse: {{status: 200}}}}]}}\n"
        )
    };
    let files: Vec<(String, String)> =
        (0..13).map(|file| (format!("{file}.yaml"), (0..10).map(|index| rule(file, index)).collect())).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let node = Node::started(&files);
    let told = || node.log().matches("spec.http[0].fault: ").count();
    until("the log", || told() == 100 && node.log().contains("and 30 more about this configuration"));
    assert_eq!(node.json(&["get", "status", "-o", "json"])["warnings"].as_array().unwrap().len(), 130);
    let said = node.cli(&["analyze", "-f", node.config().to_str().unwrap()]);
    let (stdout, stderr) = texts(&said);
    assert_eq!((stdout + &stderr).matches("spec.http[0].fault: ").count(), 130);
}

#[test]
fn invalid_input_of_apply_is_refused_with_its_place() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    node.file("bad.yaml", &split(80).replace("weight: 80", "weight: -1"));
    let said = node.refused(&["apply", "-f", "bad.yaml"]);
    assert!(said.contains("bad.yaml:2") && said.contains("spec.http[1].route[0].weight"), "{said}");
    node.file("twice.yaml", &format!("{}---\n{}", split(80), split(50)));
    let said = node.refused(&["apply", "-f", "twice.yaml"]);
    assert!(said.contains("error[MR0204]"), "{said}");
    assert!(node.refused(&["apply", "-f", "missing.yaml"]).contains("missing.yaml"));
    assert_eq!(node.generation(), 1);
    assert_eq!(node.cli(&["apply"]).status.code(), Some(2));
    assert_eq!(node.cli(&["get", "vs", "-o", "xml"]).status.code(), Some(2));
}

#[test]
fn explain_tells_the_rule_and_why_the_earlier_ones_do_not_match() {
    let node = Node::started(&[("shop.yaml", SHOP), ("split.yaml", &split(80))]);
    let file = node.config().join("split.yaml");
    let said = node.ok(&["explain", "--from", "default/productpage-v1", "--url", "http://reviews/x"]);
    for wanted in [
        "80 % to outbound|9080|v2|reviews.default.svc.cluster.local, 20 % to outbound|9080|v1|reviews.default.svc.cluster.local".to_owned(),
        format!("rule http[1] at {}:17", file.display()),
        "reviews.default.svc.cluster.local (found)".to_owned(),
        format!("match[0] at {}:10: wants headers[end-user] exact \"jason\", but the request has no such header", file.display()),
        "10.0.0.2:8002".to_owned(),
        "LEAST_REQUEST".to_owned(),
    ] {
        assert!(said.contains(&wanted), "missing: {wanted}\n{said}");
    }
    let arguments =
        ["explain", "--from", "default/a", "--url", "http://reviews:9080/", "-H", "End-User: jason", "-o", "json"];
    let told = node.json(&arguments);
    assert_eq!((told["outcome"].as_str(), told["rule"]["rule"].as_str()), (Some("forward"), Some("http[0]")));
    assert_eq!(told["destinations"][0]["percent"], 100.0);
    let said = node.ok(&["explain", "--from", "default/a", "--url", "http://reviwes/"]);
    assert!(said.contains("404") && said.contains("did you mean  reviews.default.svc.cluster.local"), "{said}");
    let said = node.ok(&["explain", "--from", "default/a", "--url", "http://reviews:81/"]);
    assert!(said.contains("not on port 81"), "{said}");
    assert!(node.refused(&["explain", "--from", "a", "--url", "http://reviews/"]).contains("NAMESPACE/NAME"));
}

/// Everything that a rule can do besides splitting.
const RULES: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: rules
spec:
  hosts: ['*.shop.test']
  http:
  - name: old
    match:
    - uri: {prefix: /old}
      queryParams: {debug: {exact: 'yes'}}
    - uri: {regex: '/v[0-9]+/old'}
      method: {exact: POST}
    redirect: {uri: /new, redirectCode: 308}
  - match:
    - uri: {exact: /closed}
    directResponse: {status: 503, body: {string: closed}}
  - match:
    - uri: {prefix: /api/}
      sourceLabels: {app: web}
    - uri: {prefix: /api/}
      port: 9081
    - uri: {prefix: /api/}
      withoutHeaders: {x-internal: {}}
    rewrite: {uri: /, authority: reviews.internal}
    timeout: 2s
    headers:
      request: {set: {x-shop: 'yes'}, remove: [x-debug]}
    route:
    - destination: {host: reviews}
      headers:
        response: {add: {x-from: reviews}}
";

#[test]
fn explain_tells_everything_that_a_rule_does() {
    let node = Node::started(&[("shop.yaml", SHOP), ("rules.yaml", RULES)]);
    let explain = |url: &str, more: &[&str]| {
        let arguments = ["explain", "--from", "default/a", "--url", url, "-o", "json"];
        node.json(&[&arguments[..], more].concat())
    };
    let told = explain("http://a.shop.test/old/x?debug=yes", &[]);
    assert_eq!((&told["outcome"], &told["rule"]["name"]), (&"redirect".into(), &"old".into()));
    assert_eq!(told["rule"]["answer"], "a redirect 308 to path /new");
    assert_eq!(told["virtual_host"]["domain"], "*.shop.test");
    let names: Vec<_> = told["resolution"].as_array().unwrap().iter().map(|step| step["name"].clone()).collect();
    assert_eq!(names, ["a.shop.test", "*.shop.test"]);

    let told = explain("http://a.shop.test/closed", &["--method", "POST"]);
    assert_eq!(told["rule"]["answer"], "status 503 and a body of 6 bytes");
    let failed = &told["skipped"][0]["alternatives"];
    assert_eq!(failed[0]["actual"], "the path is \"/closed\"");
    assert_eq!(failed[1]["expected"], "uri regex \"^(?:/v[0-9]+/old)$\"");

    let told = explain("http://a.shop.test/api/x", &[]);
    let rule = &told["rule"];
    assert_eq!(rule["timeout_ms"], 2000);
    assert_eq!(rule["rewrite"], serde_json::json!(["path /api/x becomes /x", "Host becomes reviews.internal"]));
    assert_eq!(rule["request_headers"], serde_json::json!(["remove x-debug", "set x-shop: yes"]));
    assert_eq!(told["destinations"][0]["response_headers"], serde_json::json!(["add x-from: reviews"]));
    assert!(rule["because"].as_str().unwrap().starts_with("match[2] at "), "{rule}");

    let told = explain("http://a.shop.test/api/x", &["-H", "X-Internal: 1"]);
    assert_eq!(told["outcome"], "no_rule");
    let failed = &told["skipped"][2]["alternatives"];
    assert_eq!(failed[0]["actual"], "no Pod or WorkloadEntry says which labels default/a has");
    assert_eq!(failed[1]["expected"], "port 9081");
    assert_eq!(failed[2]["actual"], "its value is \"1\"");
    let said = node.ok(&["explain", "--from", "default/a", "--url", "http://a.shop.test/api/x"]);
    for line in ["rewrite       path /api/x becomes /x", "timeout       2000 ms", "request       set x-shop: yes"] {
        assert!(said.lines().any(|candidate| candidate == line), "missing: {line}\n{said}");
    }
}

#[test]
fn a_second_control_on_the_same_run_directory_is_refused() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    let config = node.config();
    let said = node.refused(&["control", "--config", config.to_str().unwrap()]);
    assert!(said.contains("another control process (pid ") && said.contains("--run-dir"), "{said}");
    assert_eq!(node.generation(), 1);
}

#[test]
fn without_control_one_line_says_how_to_start_it() {
    let node = Node::new(&[]);
    let said = node.refused(&["get", "vs"]);
    let socket = node.run_dir().join("control.sock");
    assert!(said.contains(socket.to_str().unwrap()) && said.contains("meshring control --config"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn other_users_are_told_that_they_may_not_talk_to_control() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root can become another user; the rule itself has a test of its own.
    }
    let node = Node::started(&[("shop.yaml", SHOP)]);
    // Somebody has widened the directory: the sockets themselves must hold.
    for (path, mode) in [(node.path(""), 0o755), (node.run_dir(), 0o755), (node.run_dir().join("control.sock"), 0o777)]
    {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let program = node.path("meshring");
    // Not `fs::copy`: another test may fork while our descriptor is open for writing, and until that child has started its
    // own program the kernel refuses to run this one (ETXTBSY).
    let copied = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_meshring")).arg(&program).status().unwrap();
    assert!(copied.success());
    let mut command = std::process::Command::new(program);
    command.args(["get", "vs", "--run-dir"]).arg(node.run_dir()).uid(65534).current_dir("/");
    let output = command.output().unwrap();
    let (_, said) = texts(&output);
    assert!(said.contains("user id 65534 may not talk to this control process"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn metrics_are_declared_and_count_per_proxy_worker_and_cluster() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    let proxy = FakeProxy::connect(&node, "p");
    until("it runs generation 1", || proxy.runs() == [1, 1]);
    let slots = proxy.stats().worker(1);
    slots.add(meshring_core::stats::Counter::Requests, 5);
    slots.duration(300);
    let cluster = proxy.stats().cluster_slot("outbound|9080|v1|reviews.default.svc.cluster.local");
    slots.cluster(cluster, meshring_core::stats::ClusterCounter::Requests, 4);
    slots.grpc(cluster, meshring_core::stats::GrpcStatus::new(14));
    slots.grpc(cluster, meshring_core::stats::GrpcStatus::UNKNOWN);
    let client = meshring_ctl::api::client::Client::new(&node.run_dir());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let body = runtime.block_on(client.call(hyper::Method::GET, "/metrics", bytes::Bytes::new())).unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let labels = format!("proxy=\"default/p\",pid=\"{}\"", std::process::id());
    for wanted in [
        "# TYPE meshring_downstream_requests_total counter\n".to_owned(),
        format!("meshring_downstream_requests_total{{{labels},worker=\"1\"}} 5\n"),
        format!("meshring_worker_generation{{{labels},worker=\"0\"}} 1\n"),
        format!(
            "meshring_cluster_requests_total{{{labels},cluster=\"outbound|9080|v1|reviews.default.svc.cluster.local\"}} 4\n"
        ),
        format!(
            "meshring_cluster_grpc_responses_total{{{labels},cluster=\"outbound|9080|v1|reviews.default.svc.cluster.local\",grpc_response_status=\"14\"}} 1\n"
        ),
        ",grpc_response_status=\"unknown\"} 1\n".to_owned(),
        format!("meshring_request_duration_seconds_count{{{labels}}} 1\n"),
        "meshring_generation_active 1\n".to_owned(),
    ] {
        assert!(text.contains(&wanted), "missing: {wanted}\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        assert!(text.contains(&format!("# TYPE {name} ")) || text.contains(&format!("# TYPE {family} ")), "{line}");
    }
    let top = node.json(&["top", "--once", "--interval", "10ms", "-o", "json"]);
    assert_eq!(top["proxies"][0]["proxy"], "default/p");
}

#[test]
fn analyze_needs_no_control() {
    let node = Node::new(&[]);
    node.file("shop.yaml", SHOP);
    node.file("split.yaml", &split(80));
    let said = node.ok(&["analyze", "-f", "shop.yaml", "split.yaml"]);
    assert!(said.contains("5 resources in 2 files: 0 errors, 0 warnings"), "{said}");
    node.file("split.yaml", &split(80).replace("subset: v1", "subset: v9"));
    let said = node.ok(&["analyze", "-f", "shop.yaml", "-f", "split.yaml"]);
    assert!(said.contains("split.yaml:2") && said.contains("v9") && said.contains("1 warning"), "{said}");
    node.file("split.yaml", "a: [");
    let output = node.cli(&["analyze", "-f", "split.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).0.contains("split.yaml:"));
}
