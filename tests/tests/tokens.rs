//! RequestAuthentication with tokens that somebody else has signed: PyJWT and Python's cryptography (`tests/judges/tokens.py`).
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use meshring_tests::{
    binaries::tool_is_missing,
    client::{Client, Response, request},
    proxy::Driver,
    tls::Mesh,
    upstream::{Upstream, ok},
    wait,
};
use serde_json::Value;

const REFUSED: &str = "jwt_refused_total";

/// The interpreter that `.ci/setup gate` has put PyJWT and cryptography into.
fn python() -> Option<PathBuf> {
    let test = env::current_exe().expect("the path of the running test");
    let found = test.ancestors().map(|dir| dir.join("judges/bin/python")).find(|python| python.is_file());
    let found = found.filter(|python| {
        Command::new(python).args(["-c", "import jwt, cryptography"]).stderr(Stdio::null()).status().unwrap().success()
    });
    if found.is_none() {
        tool_is_missing("no PyJWT for Python; `.ci/setup gate` installs it");
    }
    found
}

/// Key sets and tokens of a new issuer: `jwks`, `other_jwks` (of the same issuer, after a change of keys), `good` (tokens by
/// algorithm), `bad` (tokens by what is wrong with them) and `rotated` (a token of the second set).
fn issuer() -> Option<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("judges/tokens.py");
    let output = Command::new(python()?).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// RequestAuthentication of `reviews`, and a policy by which `/admin` takes a claim, `/any` any token.
fn authentication(keys: &str, more: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: jwt, namespace: default}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  jwtRules:
  - issuer: https://issuer.example.com
    audiences: [shop]
    {keys}
    {more}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: claims, namespace: default}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  rules:
  - to: [{{operation: {{paths: [\"/free*\"]}}}}]
  - to: [{{operation: {{paths: [/any]}}}}]
    from: [{{source: {{requestPrincipals: [\"https://issuer.example.com/*\"]}}}}]
  - to: [{{operation: {{paths: [/admin]}}}}]
    when: [{{key: \"request.auth.claims[groups]\", values: [admin]}}]
  - to: [{{operation: {{paths: [/gold]}}}}]
    when: [{{key: \"request.auth.claims[plan][level]\", values: [gold]}}]
  - to: [{{operation: {{paths: [/silver]}}}}]
    when: [{{key: \"request.auth.claims[plan][level]\", values: [silver]}}]
  - to: [{{operation: {{paths: [/audience]}}}}]
    when: [{{key: request.auth.audiences, values: [other]}}]
  - to: [{{operation: {{paths: [/no-audience]}}}}]
    when: [{{key: request.auth.audiences, notValues: [other]}}]
  - to: [{{operation: {{paths: [/presenter]}}}}]
    when: [{{key: request.auth.presenter, values: [\"app-*\"]}}]
  - to: [{{operation: {{paths: [/subject]}}}}]
    when: [{{key: request.auth.principal, values: [\"*/jason\"]}}]
  - to: [{{operation: {{paths: [/anonymous]}}}}]
    from: [{{source: {{notRequestPrincipals: [\"*\"]}}}}]
"
    )
}

fn inline(jwks: &Value) -> String {
    format!("jwks: '{jwks}'")
}

fn ask(client: &mut Client, target: &str, token: Option<&Value>) -> Response {
    let bearer = token.map(|token| format!("Bearer {}", token.as_str().unwrap()));
    let fields: Vec<(&str, &str)> = bearer.iter().map(|value| ("authorization", value.as_str())).collect();
    client.send(request("GET", "reviews", target, &fields)).response()
}

#[test]
fn good_tokens_of_every_algorithm_pass_and_claims_decide() {
    let Some(issuer) = issuer() else { return };
    let application = Upstream::echoing();
    let more = "forwardOriginalToken: false\n    outputClaimToHeaders: [{header: x-sub, claim: sub}]\n    \
                outputPayloadToHeader: x-payload";
    let mesh = Mesh::start(Driver::Auto, &[application.address()], &[]);
    mesh.change("jwt.yaml", &authentication(&inline(&issuer["jwks"]), more));
    let mut client = mesh.client.connect();
    // Without a token: what no rule asks one for.
    ask(&mut client, "/free", None).expect(200);
    ask(&mut client, "/anonymous", None).expect(200);
    for target in ["/any", "/audience", "/presenter", "/subject"] {
        ask(&mut client, target, None).expect(403);
    }
    for (algorithm, token) in issuer["good"].as_object().unwrap() {
        for (target, status) in [
            ("/any", 200),
            ("/admin", 200),
            ("/gold", 200),
            ("/silver", 403),
            ("/other", 403),
            ("/audience", 200),
            ("/no-audience", 403),
            ("/presenter", 200),
            ("/subject", 200),
            ("/anonymous", 403),
        ] {
            let response = ask(&mut client, target, Some(token));
            assert_eq!(response.status, status, "{algorithm} {target}: {}", response.text());
            if status == 200 {
                let text = response.text();
                assert!(text.contains("\nx-sub: jason\n") && text.contains("\nx-payload: ey"), "{text}");
                assert!(!text.contains("\nauthorization:"), "{algorithm}: the token went on: {text}");
            }
        }
    }
    // What a client says the claims were is not believed.
    let forged = client.get_with("reviews", "/free", &[("x-sub", "admin"), ("x-payload", "e30")]);
    assert!(!forged.expect(200).text().contains("x-sub: admin"), "{}", forged.text());
    assert_eq!(mesh.server_metric(REFUSED), 0);

    // Kept where it is asked for, found where it is said to be.
    let more =
        "forwardOriginalToken: true\n    fromHeaders: [{name: x-token, prefix: \"Token \"}]\n    fromParams: [t]";
    mesh.change("jwt.yaml", &authentication(&inline(&issuer["jwks"]), more));
    let token = issuer["good"]["ES256"].as_str().unwrap();
    let header = client.get_with("reviews", "/any", &[("x-token", &format!("Token {token}"))]);
    assert!(header.expect(200).text().contains("\nx-token: Token ey"), "{}", header.text());
    client.get("reviews", &format!("/any?a=b&t={token}")).expect(200);
    // Elsewhere it is no token.
    ask(&mut client, "/any", Some(&issuer["good"]["ES256"])).expect(403);
}

#[test]
fn bad_tokens_of_every_kind_get_a_401_a_challenge_a_count_and_a_line_without_the_token() {
    let Some(issuer) = issuer() else { return };
    let application = Upstream::echoing();
    let mesh = Mesh::start(Driver::Auto, &[application.address()], &[]);
    mesh.change("jwt.yaml", &authentication(&inline(&issuer["jwks"]), ""));
    let mut client = mesh.client.connect();
    let mut bearers = Vec::new();
    for (what, token) in issuer["bad"].as_object().unwrap() {
        let before = mesh.server_metric(REFUSED);
        // Also where no token is asked for.
        let response = ask(&mut client, "/free", Some(token));
        // Envoy answers 403 to a token for another audience (RFC 6750 section 3.1 would have 401, too).
        let status = if what == "audience" { 403 } else { 401 };
        assert_eq!(response.status, status, "{what}: {}", response.text());
        let challenge = response.fields.value("www-authenticate").unwrap_or_default();
        assert!(challenge.starts_with("Bearer realm=") && challenge.contains("invalid_token"), "{what}: {challenge}");
        assert!(response.text().contains("(jwt."), "{what}: {}", response.text());
        mesh.wait_for_metric_above(REFUSED, before);
        bearers.push(token.as_str().unwrap().to_owned());
    }
    for code in ["jwt.expired", "jwt.signature", "jwt.alg", "jwt.issuer"] {
        mesh.wait_for_log(&[code]);
    }
    let log = mesh.server.process.output();
    for token in bearers.iter().filter_map(|token| token.rsplit('.').next()).filter(|part| part.len() > 20) {
        assert!(!log.contains(token), "a token is in the log");
    }
    assert_eq!(application.received().len(), 0);
    ask(&mut client, "/any", Some(&issuer["good"]["RS256"])).expect(200);
}

#[test]
fn keys_come_from_a_server_and_its_new_keys_are_taken() {
    let Some(issuer) = issuer() else { return };
    let application = Upstream::echoing();
    let current = Arc::new(Mutex::new(issuer["jwks"].to_string()));
    let shown = Arc::clone(&current);
    let server = Upstream::answering(move |_| ok(&shown.lock().unwrap()));
    let mesh = Mesh::start(Driver::Auto, &[application.address()], &[]);
    let uri = |query: &str| format!("jwksUri: \"http://{}/keys{query}\"", server.address());
    mesh.change("jwt.yaml", &authentication(&uri(""), ""));
    let mut client = mesh.client.connect();
    wait::until("the fetched keys", || {
        (ask(&mut client, "/any", Some(&issuer["good"]["RS256"])).status == 200).then_some(())
    });
    ask(&mut client, "/any", Some(&issuer["rotated"])).expect(401);
    *current.lock().unwrap() = issuer["other_jwks"].to_string();
    // Another address is fetched at once; the regular look comes after minutes.
    mesh.change("jwt.yaml", &authentication(&uri("?new"), ""));
    wait::until("the new keys", || (ask(&mut client, "/any", Some(&issuer["rotated"])).status == 200).then_some(()));
    ask(&mut client, "/any", Some(&issuer["good"]["RS256"])).expect(401);
}

/// What issuers do every few weeks: new keys at the same address, and nobody changes a configuration.
#[test]
fn keys_that_change_at_their_address_are_taken_at_the_next_look() {
    let Some(issuer) = issuer() else { return };
    let application = Upstream::echoing();
    let current = Arc::new(Mutex::new(ok(&issuer["jwks"].to_string())));
    let shown = Arc::clone(&current);
    let server = Upstream::answering(move |_| shown.lock().unwrap().clone());
    let keys = format!("jwksUri: \"http://{}/keys\"", server.address());
    let files = authentication(&keys, "");
    let mesh = Mesh::self_signed(
        Driver::Auto,
        &[application.address()],
        &[("jwt.yaml", files.as_str())],
        &["--jwks-refresh", "1s"],
    );
    let (old, new) = (&issuer["good"]["RS256"], &issuer["rotated"]);
    let mut client = mesh.client.connect();
    ask(&mut client, "/any", Some(old)).expect(200);
    ask(&mut client, "/any", Some(new)).expect(401);

    // It is asked again and again, and the same answer makes no generation.
    let (asked, generation) = (server.received().len(), mesh.control.generation());
    wait::until("two more looks", || (server.received().len() >= asked + 2).then_some(()));
    assert_eq!(mesh.control.generation(), generation);

    *current.lock().unwrap() = ok(&issuer["other_jwks"].to_string());
    wait::until("the new keys", || (ask(&mut client, "/any", Some(new)).status == 200).then_some(()));
    ask(&mut client, "/any", Some(old)).expect(401);

    // An issuer that is out of order takes nothing away.
    *current.lock().unwrap() = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".into();
    wait::until("the failed look", || mesh.control.process.line("the last good one goes on"));
    ask(&mut client, "/any", Some(new)).expect(200);
    ask(&mut client, "/any", Some(old)).expect(401);
    assert!(mesh.control.generation() > generation);
}
