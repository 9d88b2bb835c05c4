//! What holds for the whole mesh: read, shown, compared, explained; and the API's errors about what it is sent.
#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it calls")]

mod common;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use common::Node;
use serde_json::Value;

const SHOP: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [shop.test]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.0.0.1}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.test]
  http:
  - name: admin
    match: [{uri: {prefix: /admin}}]
    directResponse: {status: 403}
  - name: api
    match: [{uri: {prefix: /api}}]
    rewrite: {uri: /}
    route: [{destination: {host: shop.test}}]
  - name: rest
    route: [{destination: {host: shop.test}}]
"#;

fn mesh(normalization: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\n  namespace: istio-system\ndata:\n  mesh: |-\n    \
         pathNormalization:\n      normalization: {normalization}\n    defaultConfig:\n      gatewayTopology:\n        \
         numTrustedProxies: 1\n"
    )
}

fn explain(node: &Node, path: &str) -> Value {
    let url = format!("http://shop.test{path}");
    node.json(&["explain", "--from", "default/a", "--url", &url, "-o", "json"])
}

fn rule(node: &Node, path: &str) -> String {
    let told = explain(node, path);
    told["rule"]["name"].as_str().or_else(|| told["refusal"]["code"].as_str()).unwrap_or_default().to_owned()
}

#[test]
fn explain_sees_the_path_as_a_proxy_does() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    for (path, expected) in [
        ("/", "rest"),
        ("/admin", "admin"),
        ("/x/..//%61dmin", "admin"),
        ("/x%2f..%2fadmin", "admin"),
        ("/admin;x=1", "admin"),
        ("/x/../../admin", "http1.path_escapes_root"),
        ("/x/..;y/admin", "http1.path_parameters"),
        ("/x%00", "http1.target_nul"),
        ("/x\\admin", "http1.target_backslash"),
    ] {
        assert_eq!(rule(&node, path), expected, "{path}");
    }
    let told = explain(&node, "/x/../api;v=1//b;c?d=//e");
    let path = |name: &str| told["path"][name].as_str().unwrap().to_owned();
    assert_eq!(path("sent"), "/x/../api;v=1//b;c");
    assert_eq!(path("normalized"), "/api;v=1/b;c");
    assert_eq!(path("matched"), "/api/b");
    assert_eq!(told["rule"]["rewrite"], serde_json::json!(["path /api;v=1/b;c becomes /b;c"]));
    let told = explain(&node, "/api../secret");
    assert_eq!(told["refusal"]["code"], "http1.path_escapes_root", "the rewrite makes /../secret of it: {told}");
    assert_eq!((told["outcome"].as_str(), told["rule"]["name"].as_str()), (Some("refused"), Some("api")));
    let said = node.ok(&["explain", "--from", "default/a", "--url", "http://shop.test//admin;a"]);
    for line in [
        "mesh          paths DECODE_AND_MERGE_SLASHES, trusted hops 0, request ids added\n",
        "path          //admin;a is normalised to /admin;a\n",
        "path          rules are matched on /admin, without parameters\n",
    ] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    let said = node.ok(&["explain", "--from", "default/a", "--url", "http://shop.test/.."]);
    assert!(
        said.contains("=> 400 http1.path_escapes_root: ") && said.contains("nothing goes to an upstream"),
        "{said}"
    );
    assert!(!said.contains("looked for"), "{said}");
}

#[test]
fn a_mesh_config_map_is_a_resource_like_any_other() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    let level = || node.status()["mesh"]["path_normalization"].as_str().unwrap().to_owned();
    assert_eq!(level(), "DECODE_AND_MERGE_SLASHES");
    assert_eq!(rule(&node, "//admin"), "admin");

    node.file("mesh.yaml", &mesh("BASE"));
    let file = node.path("mesh.yaml");
    let file = file.to_str().unwrap();
    let said = node.ok(&["diff", "-f", file]);
    assert!(said.contains("+      normalization: BASE"), "{said}");
    let said = node.ok(&["apply", "-f", file]);
    assert!(said.contains("ConfigMap istio-system/istio created"), "{said}");
    assert_eq!(level(), "BASE");
    assert_eq!(rule(&node, "//admin"), "rest", "slashes are not merged at BASE");
    assert_eq!(rule(&node, "/x/../admin"), "admin");
    let said = node.ok(&["get", "cm"]);
    assert!(said.contains("ConfigMap") && said.contains(&format!("applied from {file}:1")), "{said}");
    assert_eq!(node.ok(&["get", "cm", "istio", "-o", "yaml"]), mesh("BASE"));
    let said = node.ok(&["get", "status"]);
    assert!(said.contains("mesh           paths BASE, trusted hops 1, request ids added\n"), "{said}");
    assert!(node.ok(&["diff", "-f", file]).is_empty());

    // What is wrong is told with its place in the block, and changes nothing.
    node.file("mesh.yaml", &mesh("MERGE_SLASHES").replace("numTrustedProxies", "numTrustedProxy"));
    let said = node.refused(&["apply", "-f", file]);
    let place = "mesh.yaml:12:9: error[MR0301]";
    assert!(said.contains(place) && said.contains("did you mean `numTrustedProxies`?"), "{said}");
    assert!(node.cli(&["analyze", "-f", file]).status.code() == Some(1));
    assert_eq!(level(), "BASE");

    // A second one is refused with both places.
    let operator = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  meshConfig: {}\n";
    node.file("operator.yaml", operator);
    let said = node.refused(&["apply", "-f", node.path("operator.yaml").to_str().unwrap()]);
    assert!(said.contains("operator.yaml:1:1: error[MR0511]") && said.contains("mesh.yaml:1:1"), "{said}");

    let said = node.ok(&["rollback"]);
    assert!(said.contains("generation 1"), "{said}");
    assert_eq!(rule(&node, "//admin"), "admin", "the settings are the generation's");
    node.ok(&["rollback", "--to", "2"]);
    node.file("mesh.yaml", &mesh("BASE"));
    node.ok(&["delete", "-f", file]);
    assert_eq!(level(), "DECODE_AND_MERGE_SLASHES");
}

/// Status and JSON of an answer.
fn call(node: &Node, request: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(node.run_dir().join("control.sock")).unwrap();
    let head =
        format!("{request} HTTP/1.1\r\nhost: control\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    // At once: a call may be answered before its body is read.
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    (status, serde_json::from_str(body).unwrap())
}

#[test]
fn a_call_that_is_not_understood_gets_our_error_with_place_and_reason() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    for (request, body, status, wanted) in [
        ("POST /v1/explain", "{\"from\": ", 400, "the body is not JSON: line 1, column 9: EOF while parsing a value"),
        ("POST /v1/explain", "", 400, "the body is not JSON: line 1, column 0: EOF"),
        (
            "POST /v1/explain",
            "{\"url\": \"a\"}",
            400,
            "the body is not what this call takes: line 1, column 12: missing field `from`",
        ),
        (
            "POST /v1/apply",
            "{\n\"files\": 1}",
            400,
            "line 2, column 10: invalid type: integer `1`, expected a sequence",
        ),
        ("POST /v1/rollback", "{\"to\": \"x\"}", 400, "line 1, column 10: invalid type: string \"x\", expected u64"),
        ("POST /v1/apply?wait=maybe", "{\"files\": []}", 400, "query \"wait=maybe\": "),
        ("GET /v1/applied?timeout_ms=-1", "", 400, "query \"timeout_ms=-1\": "),
        ("GET /v1/apply", "", 405, "this call has another method"),
        ("POST /v1/status", "", 405, "this call has another method"),
        ("GET /v1/nothing", "", 404, "no such call"),
    ] {
        let (actual, told) = call(&node, request, body);
        let error = told["error"].as_str().unwrap();
        assert!(error.contains(wanted), "{request} {body}: {error}");
        assert_eq!(actual, status, "{request} {body}");
    }
    // Whatever its Content-Type says, a good one is taken.
    let (status, told) = call(&node, "POST /v1/explain", "{\"from\": \"default/a\", \"url\": \"http://shop.test/\"}");
    assert_eq!((status, told["outcome"].as_str()), (200, Some("forward")));
}
