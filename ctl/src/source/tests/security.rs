//! PeerAuthentication, TLS settings, Gateway, Secret and the security fields of MeshConfig: what is read, and what is said
//! about the rest.

use super::*;
use crate::spec::{gateway::ServerMode, mesh_config::ExtAuthzHttp, secret::HIDDEN};

/// `LINE FIELD: MESSAGE` for each thing that is said, with `!` before errors.
fn said(text: &str) -> Vec<String> {
    let line = |diagnostic: &Diagnostic| {
        let mark = if diagnostic.severity == crate::diagnostic::Severity::Error { "!" } else { "" };
        let field = diagnostic.field.as_deref().unwrap_or_default();
        format!("{mark}{} {field}: {}", diagnostic.place.at.line, diagnostic.message)
    };
    read("a.yaml", text).diagnostics.iter().map(line).collect()
}

/// That one thing is said, and that it has these parts.
fn told(text: &str, parts: &[&str]) {
    let said = said(text);
    assert!(
        said.len() == 1 && parts.iter().all(|part| said[0].contains(part)),
        "{said:#?}\nshould be {parts:?}\n{text}"
    );
}

fn peer(spec: &str) -> String {
    format!("apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {{name: a}}\nspec: {spec}\n")
}

fn rule(tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a}}\nspec: {{host: a.test, trafficPolicy: {{tls: \
         {{{tls}}}}}}}\n"
    )
}

fn gateway(server: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: Gateway\nmetadata: {{name: a}}\nspec: {{selector: {{a: b}}, servers: \
         [{{{server}}}]}}\n"
    )
}

fn server(tls: &str) -> String {
    gateway(&format!("port: {{number: 443, name: https, protocol: HTTPS}}, hosts: ['*'], tls: {{{tls}}}"))
}

fn secret(rest: &str) -> String {
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\n{rest}\n")
}

fn mesh(config: &str) -> String {
    let config: String = config.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n{config}"
    )
}

#[test]
fn peer_authentications_are_checked_as_in_istio() {
    for spec in [
        "{}",
        "{mtls: {mode: STRICT}}",
        "{mtls: {}}",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: DISABLE}, 81: {}, 82: null}}",
    ] {
        assert_eq!(said(&peer(spec)), [""; 0], "{spec}");
    }
    assert_eq!(resources("a.yaml", &peer("").replace("spec:", "")).len(), 1, "a spec is not needed");
    for (spec, parts) in [
        ("{mtls: {mode: strict}}", ["!4 spec.mtls.mode", "`strict` is not a mode"]),
        ("{mtls: {mode: 1}}", ["!4 spec.mtls.mode", "is the number 1"]),
        ("{mtls: {modes: STRICT}}", ["!4 spec.mtls.modes", "unknown field"]),
        ("{mutual: {}}", ["!4 spec.mutual", "unknown field"]),
        ("{portLevelMtls: {80: {mode: STRICT}}}", ["!4 spec.portLevelMtls", "there is no selector"]),
        ("{selector: {matchLabels: {}}, portLevelMtls: {80: {}}}", ["!4 spec.portLevelMtls", "there is no selector"]),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {}}", ["!4 spec.portLevelMtls", "is empty"]),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {}}}", ["!4 spec.portLevelMtls.0", "1 to 65535"]),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {}}}", ["!4 spec.portLevelMtls.http", "not a port"]),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {}, '080': {}}}",
            ["!4 spec.portLevelMtls.080", "listed twice"],
        ),
    ] {
        told(&peer(spec), &parts);
    }
}

#[test]
fn tls_of_clients_is_checked_as_in_istio() {
    for tls in [
        "mode: DISABLE",
        "mode: SIMPLE",
        "mode: SIMPLE, caCertificates: /ca.pem, sni: a.test, subjectAltNames: [a.test]",
        "mode: SIMPLE, credentialName: roots",
        "mode: SIMPLE, insecureSkipVerify: true",
        "mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem, caCertificates: system",
        "mode: MUTUAL, credentialName: 'kubernetes://own', insecureSkipVerify: true",
        "mode: ISTIO_MUTUAL",
    ] {
        assert_eq!(said(&rule(tls)), [""; 0], "{tls}");
    }
    for (tls, parts) in [
        ("mode: TLS", ["!4 spec.trafficPolicy.tls.mode", "`TLS` is not a mode"]),
        ("mode: MUTUAL, privateKey: /k", ["!4 spec.trafficPolicy.tls.clientCertificate", "is missing"]),
        ("mode: MUTUAL, clientCertificate: /c", ["!4 spec.trafficPolicy.tls.privateKey", "is missing"]),
        ("mode: SIMPLE, caCertificates: ca.pem", ["!4 spec.trafficPolicy.tls.caCertificates", "absolute"]),
        ("mode: SIMPLE, caCertificates: '/a:b'", ["!4 spec.trafficPolicy.tls.caCertificates", "colon"]),
        ("mode: SIMPLE, credentialName: other/ca", ["!4 spec.trafficPolicy.tls.credentialName", "not honoured"]),
        ("mode: SIMPLE, credentialName: 'configmap://x'", ["!4 spec.trafficPolicy.tls.credentialName", "not honoured"]),
        ("mode: SIMPLE, credentialName: a, caCertificates: /a", ["!4 spec.trafficPolicy.tls.credentialName", "beside"]),
        ("mode: SIMPLE, sni: 'a b'", ["!4 spec.trafficPolicy.tls.sni", "not a host name"]),
        ("mode: SIMPLE, subjectAltNames: ['']", ["!4 spec.trafficPolicy.tls.subjectAltNames[0]", "empty"]),
        (
            "mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]",
            ["!4 spec.trafficPolicy.tls.insecureSkipVerify", "nothing is verified"],
        ),
        (
            "mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /ca, insecureSkipVerify: true",
            ["!4 spec.trafficPolicy.tls.insecureSkipVerify", "nothing is verified"],
        ),
        ("mode: SIMPLE, caCrl: /crl", ["4 spec.trafficPolicy.tls.caCrl", "not yet honoured"]),
        ("mode: SIMPLE, clientCertificate: /c", ["4 spec.trafficPolicy.tls.clientCertificate", "no effect"]),
        ("mode: ISTIO_MUTUAL, privateKey: /c", ["4 spec.trafficPolicy.tls:", "no effect"]),
        ("mode: ISTIO_MUTUAL, insecureSkipVerify: true", ["4 spec.trafficPolicy.tls.insecureSkipVerify", "no effect"]),
    ] {
        told(&rule(tls), &parts);
    }
}

#[test]
fn gateways_are_checked_as_in_istio() {
    for tls in [
        "mode: SIMPLE, credentialName: a",
        "mode: SIMPLE, serverCertificate: /c, privateKey: /k, httpsRedirect: false",
        "mode: MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /ca, minProtocolVersion: TLSV1_2",
        "mode: OPTIONAL_MUTUAL, credentialName: a, subjectAltNames: [a]",
        "mode: ISTIO_MUTUAL",
    ] {
        assert_eq!(said(&server(tls)), [""; 0], "{tls}");
    }
    for (tls, parts) in [
        ("mode: SIMPLE", vec!["!4 spec.servers[0].tls.serverCertificate", "!4 spec.servers[0].tls.privateKey"]),
        ("mode: SIMPLE, privateKey: /k", vec!["!4 spec.servers[0].tls.serverCertificate: is missing"]),
        (
            "mode: MUTUAL, serverCertificate: /c, privateKey: /k",
            vec!["!4 spec.servers[0].tls.caCertificates: is missing"],
        ),
        ("mode: ISTIO_MUTUAL, credentialName: a", vec!["!4 spec.servers[0].tls: ISTIO_MUTUAL shows"]),
        (
            "mode: MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: system",
            vec!["!4 spec.servers[0].tls.caCertificates: `system` is not an absolute path"],
        ),
        ("mode: PASSTHROUGH", vec!["4 spec.servers[0].tls.mode: PASSTHROUGH is not yet honoured"]),
        ("mode: AUTO_PASSTHROUGH", vec!["4 spec.servers[0].tls.mode: AUTO_PASSTHROUGH is not yet honoured"]),
        ("mode: simple", vec!["!4 spec.servers[0].tls.mode: `simple` is not a mode"]),
        ("mode: ISTIO_MUTUAL, cipherSuites: [A]", vec!["4 spec.servers[0].tls.cipherSuites: known to Istio"]),
        ("mode: ISTIO_MUTUAL, httpsRedirect: true", vec!["4 spec.servers[0].tls.httpsRedirect: known to Istio"]),
        (
            "mode: ISTIO_MUTUAL, minProtocolVersion: TLSV1_0",
            vec!["4 spec.servers[0].tls.minProtocolVersion: TLSV1_0 is"],
        ),
        (
            "mode: ISTIO_MUTUAL, minProtocolVersion: 1.3",
            vec!["!4 spec.servers[0].tls.minProtocolVersion: is the number"],
        ),
    ] {
        let said = said(&server(tls));
        assert!(
            said.len() == parts.len() && said.iter().zip(&parts).all(|(said, part)| said.starts_with(part)),
            "{said:#?}"
        );
    }
    for (server, parts) in [
        ("port: {number: 80, name: tcp, protocol: TCP}, hosts: ['*']", ["4 spec.servers[0]: has no TLS", ""]),
        (
            "port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true}",
            ["4 spec.servers[0].tls.httpsRedirect", "not yet honoured"],
        ),
        (
            "port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {mode: ISTIO_MUTUAL}",
            ["!4 spec.servers[0].tls:", "neither HTTPS nor TLS"],
        ),
        ("port: {number: 443, name: x, protocol: HTTPS}, hosts: ['*']", ["!4 spec.servers[0].tls:", "is missing"]),
        (
            "port: {number: 443, name: x, protocol: HTTPS}, hosts: [a], tls: {mode: ISTIO_MUTUAL}",
            ["!4 spec.servers[0].hosts[0]", "short name"],
        ),
        (
            "port: {number: 443, name: x, protocol: HTTPS}, hosts: ['./a.test'], tls: {mode: ISTIO_MUTUAL}",
            ["4 spec.servers[0].hosts[0]", "namespace `.` is not yet honoured"],
        ),
        ("hosts: ['*'], tls: {mode: ISTIO_MUTUAL}", ["!4 spec.servers[0].port:", "is missing"]),
        (
            "port: {number: 443, name: x, protocol: HTTPS}, bind: 1.2.3.4, hosts: ['*'], tls: {mode: ISTIO_MUTUAL}",
            ["4 spec.servers[0].bind", "not yet honoured"],
        ),
    ] {
        told(&gateway(server), &parts);
    }
    told(&server("mode: ISTIO_MUTUAL").replace("selector: {a: b}, ", ""), &["4 spec.selector", "no effect"]);
    let kept = resources("a.yaml", &server("mode: OPTIONAL_MUTUAL, credentialName: a"));
    let Body::Gateway(gateway) = &kept[0].body else { panic!("{kept:?}") };
    assert_eq!((gateway.servers[0].mode, gateway.plain_ports.len()), (ServerMode::OptionalMutual, 0));
    let plain = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}\nspec: {selector: {a: b}, servers: [{port: \
                 {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n";
    let Body::Gateway(gateway) = &resources("a.yaml", plain)[0].body else { panic!("a gateway") };
    assert_eq!((gateway.servers.len(), gateway.plain_ports[0].number()), (0, 80));
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nTUVTSFJJTkc=\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nU0VDUkVUU0VDUkVU\n-----END PRIVATE KEY-----\n";
/// Of `KEY`, in base64.
const KEY_BASE64: &str =
    "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tClUwVkRVa1ZVVTBWRFVrVlUKLS0tLS1FTkQgUFJJVkFURSBLRVktLS0tLQo=";

fn block(key: &str, text: &str) -> String {
    format!("  {key}: |\n{}", text.lines().map(|line| format!("    {line}\n")).collect::<String>())
}

#[test]
fn secrets_hold_certificates_by_istios_names() {
    let text = secret(&format!(
        "type: kubernetes.io/tls\ndata:\n  tls.key: {KEY_BASE64}\nstringData:\n{}",
        block("tls.crt", CERTIFICATE)
    )) + "---\n"
        + &secret(&format!(
            "type: Opaque\nstringData:\n{}{}{}",
            block("cert", CERTIFICATE),
            block("key", KEY),
            block("cacert", "own")
        ))
        .replace("name: a", "name: b")
        + "---\n"
        + &secret(&format!("stringData:\n{}", block("ca.crt", CERTIFICATE))).replace("name: a", "name: b-cacert")
        + "---\n"
        + &secret("stringData: {password: hunter2}").replace("name: a", "name: database")
        + "---\n"
        + &secret("data: {key: aGVsbG8=}").replace("name: a", "name: a-key")
        + "---\n"
        + &secret("type: kubernetes.io/service-account-token\ndata: {ca.crt: aGVsbG8=}")
            .replace("name: a", "name: token");
    let reading = read("a.yaml", &text);
    let codes: Vec<_> = reading.diagnostics.iter().map(|diagnostic| diagnostic.code.as_str()).collect();
    // `own` is no PEM; the others have nothing to do with traffic.
    assert_eq!(codes, ["MR0404", "MR0205", "MR0205", "MR0205"], "{:?}", reading.diagnostics);
    let (world, _) = World::assemble(reading.resources);
    let names: Vec<_> = world.secrets().keys().map(String::as_str).collect();
    assert_eq!(names, ["default/a", "default/b", "default/b-cacert"]);
    let (a, b) = (&world.secrets()["default/a"], &world.secrets()["default/b"]);
    assert_eq!((a.certificate(), a.key(), a.ca()), (Some(CERTIFICATE.as_bytes()), Some(KEY.as_bytes()), None));
    assert_eq!((b.certificate(), b.key()), (Some(CERTIFICATE.as_bytes()), Some(KEY.as_bytes())));
    assert_eq!(b.ca(), Some(CERTIFICATE.as_bytes()), "those of NAME-cacert win");
}

#[test]
fn bad_secrets_are_told_of_without_their_values() {
    for (rest, parts) in [
        (
            "type: kubernetes.io/tls\ndata: {tls.crt: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t}",
            ["!1 data[\"tls.key\"]", "is missing"],
        ),
        ("data: {tls.crt: '+~hunter2~+'}", ["!4 data[\"tls.crt\"]", "is not base64"]),
        ("data: {tls.crt: 712345}", ["!4 data[\"tls.crt\"]", "must be a string"]),
        ("stringData: {ca.crt: [hunter2]}", ["!4 stringData[\"ca.crt\"]", "must be a string"]),
        ("stringData: {tls.crt: hunter2}", ["4 stringData[\"tls.crt\"]", "no certificate in PEM"]),
    ] {
        told(&secret(rest), &parts);
        for text in read("a.yaml", &secret(rest)).diagnostics {
            let text = format!("{text} {text:?}");
            assert!(!text.contains("hunter2") && !text.contains("712345"), "{text}");
        }
    }
}

#[test]
fn the_values_of_a_secret_are_never_shown() {
    let annotated = format!(
        "metadata:\n  name: a\n  labels: {{app: web}}\n  annotations:\n    kubectl.kubernetes.io/last-applied-configuration: \
         '{{\"data\": {{\"tls.key\": \"{KEY_BASE64}\"}}}}'\n"
    );
    let text = secret(&format!(
        "type: kubernetes.io/tls\ndata:\n  tls.key: {KEY_BASE64}\nstringData:\n{}",
        block("tls.crt", CERTIFICATE)
    ))
    .replace("metadata: {name: a}\n", &annotated);
    let resources = resources("a.yaml", &text);
    let resource = &resources[0];
    let shown = resource.raw.document();
    let expected = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\n  labels:\n    app: web\ntype: kubernetes.io/tls\ndata:\n  tls.key: \
         {HIDDEN}\nstringData:\n  tls.crt: {HIDDEN}\n"
    );
    assert_eq!(shown, expected);
    assert_eq!(to_json(&shown, false).unwrap(), resource.raw.to_json().unwrap());
    let diff = crate::apply::change::unified(None, resource);
    let body = serde_json::to_string(&resource.body).unwrap();
    let (world, _) = World::assemble(resources.clone());
    for shown in [shown, diff, body, format!("{resource:?}"), format!("{world:?}"), format!("{:?}", world.secrets())] {
        assert!(shown.contains(HIDDEN) || !shown.is_empty());
        for secret in ["U0VDUkVU", &KEY_BASE64[40..60], "SECRET", "TUVTSFJJTkc"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
    // As JSON, and as an item of a list.
    let json = format!(
        r#"{{"apiVersion": "v1", "kind": "List", "items": [{{"apiVersion": "v1", "kind": "Secret", "metadata": {{"name": "a"}}, "data": {{"tls.crt": "{KEY_BASE64}"}}}}]}}"#
    );
    let item = read("a.json", &json).resources.remove(0);
    assert!(!item.raw.document().contains("LS0t") && item.raw.document().contains(HIDDEN), "{}", item.raw.document());
}

#[test]
fn yaml_that_stands_for_a_secret_reads_as_what_it_is() {
    let odd = serde_json::json!({"a: b": "1e3", "no": "", "c": {"true": "x y", "e": 1.5, "empty": {}, "n": "- a"}});
    assert_eq!(to_json(&crate::spec::secret::yaml(&odd), false).unwrap(), odd);
}

#[test]
fn security_fields_of_the_mesh_are_read() {
    assert_eq!(
        said(&mesh("trustDomain: td.example\nenableAutoMtls: true\nmeshMTLS: {minProtocolVersion: TLS_AUTO}")),
        [""; 0]
    );
    for (config, parts) in [
        ("trustDomain: 'spiffe://x'", ["!6 data.mesh.trustDomain", "`spiffe://x`"]),
        ("trustDomainAliases: [Upper]", ["!6 data.mesh.trustDomainAliases[0]", "`Upper`"]),
        ("rootNamespace: A", ["!6 data.mesh.rootNamespace", "DNS-1123"]),
        ("enableAutoMtls: 'yes'", ["!6 data.mesh.enableAutoMtls", "must be a boolean"]),
        ("meshMTLS: {minProtocolVersion: TLSV1_1}", ["!6 data.mesh.meshMTLS.minProtocolVersion", "not a version"]),
        ("meshMTLS: {ecdhCurves: [P-256]}", ["6 data.mesh.meshMTLS.ecdhCurves", "not yet honoured"]),
        (
            "extensionProviders: [{name: a, zipkin: {}}]",
            ["6 data.mesh.extensionProviders[0].zipkin", "not yet honoured"],
        ),
        (
            "extensionProviders: [{name: a, envoyExtAuthzGrpc: {service: a, port: 1}}]",
            ["6 data.mesh.extensionProviders[0].envoyExtAuthzGrpc", "not yet honoured"],
        ),
        ("extensionProviders: [{zipkin2: {}, name: a}]", ["!6 data.mesh.extensionProviders[0].zipkin2", "unknown"]),
        (
            "extensionProviders: [{envoyExtAuthzHttp: {service: a.b, port: 1}}]",
            ["!6 data.mesh.extensionProviders[0].name", "is missing"],
        ),
        (
            "extensionProviders: [{name: a, envoyExtAuthzHttp: {service: a.b}}]",
            ["!6 data.mesh.extensionProviders[0].envoyExtAuthzHttp.port", "is missing"],
        ),
        (
            "extensionProviders: [{name: a, envoyExtAuthzHttp: {port: 1}}]",
            ["!6 data.mesh.extensionProviders[0].envoyExtAuthzHttp.service", "is missing"],
        ),
    ] {
        told(&mesh(config), &parts);
    }
    let provider = |rest: &str| {
        mesh(&format!("extensionProviders: [{{name: a, envoyExtAuthzHttp: {{service: a.b, port: 1, {rest}}}}}]"))
    };
    for (rest, parts) in [
        ("timeout: 5", ["!6", "timeout: is the number 5"]),
        ("pathPrefix: check", ["!6", "not the beginning of a path"]),
        ("pathPrefix: '/a b'", ["!6", "not the beginning of a path"]),
        ("statusOnError: '99'", ["!6", "`99` is not a status"]),
        ("failOpen: maybe", ["!6", "must be a boolean"]),
        ("includeRequestHeadersInCheck: ['a b']", ["!6", "not a header name"]),
        ("includeRequestHeadersInCheck: ['*-suffix']", ["6", "a suffix is not yet honoured"]),
        ("includeAdditionalHeadersInCheck: {Connection: close}", ["!6", "the proxy's own"]),
        ("includeAdditionalHeadersInCheck: {host: a}", ["!6", "cannot be changed"]),
        ("includeRequestBodyInCheck: {maxRequestBytes: 1}", ["6", "not yet honoured"]),
        ("includeHeadersInCheck: [a]", ["6", "is deprecated"]),
    ] {
        told(&provider(rest), &parts);
    }
    let twice = "extensionProviders: [{name: a, prometheus: {}}, {name: a, sds: {}}]";
    assert!(said(&mesh(twice)).iter().any(|said| said.contains("for the second time")));
    let all = provider("includeRequestHeadersInCheck: ['*', X-A], includeHeadersInCheck: [b]");
    let kept = read("a.yaml", &all).resources.remove(0);
    let Body::ConfigMap(config) = &kept.body else { panic!("{kept:?}") };
    let ExtAuthzHttp { request_headers, timeout, status_on_error, .. } = &config.ext_authz[0];
    let request_headers: Vec<_> = request_headers.iter().map(|name| &**name).collect();
    assert_eq!((request_headers, timeout.as_secs(), *status_on_error), (vec!["*", "x-a"], 600, 403));
}

/// Something of everything.
const ALL: &str = r#"apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: a, namespace: edge}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: a, namespace: edge}
spec:
  selector: {app: web}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ["*/a.test", "*.b.test"]
    tls: {mode: MUTUAL, credentialName: own, subjectAltNames: [x], minProtocolVersion: TLSV1_3}
---
apiVersion: v1
kind: Secret
metadata: {name: own, namespace: edge}
data: {tls.crt: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t, tls.key: LS0t}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: edge, labels: {app: web, security.istio.io/tlsMode: istio}}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: edge}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8081}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: edge}
spec:
  host: web
  trafficPolicy:
    tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /a, sni: a.test}
    portLevelSettings: [{port: {number: 81}, tls: {mode: ISTIO_MUTUAL}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomain: a.test
    trustDomainAliases: [b.test]
    meshMTLS: {minProtocolVersion: TLSV1_3}
    extensionProviders: [{name: x, envoyExtAuthzHttp: {service: edge/web.edge.svc.cluster.local, port: 80, pathPrefix: /p}}]
"#;

#[test]
fn something_of_everything_is_read_without_a_word() {
    let reading = read("a.yaml", ALL);
    // Only that the key is no key.
    assert_eq!(reading.diagnostics.len(), 1, "{:?}", reading.diagnostics);
    let (world, told) = World::assemble(reading.resources);
    assert_eq!((told.len(), world.resources().len()), (0, 7), "{told:?}");
    let table = compile(&world, &NoDns).unwrap();
    assert_eq!((table.ext_authz.len(), table.inbound_policies.len(), table.cluster_tls.len()), (1, 1, 1));
    assert_eq!(table.trust_domains, ["a.test", "b.test"]);
}

proptest! {
    #[test]
    fn no_damage_to_security_resources_makes_the_reader_panic(
        at in 0..ALL.len(), remove in 0..20_usize, insert in "[ -~\n]{0,5}",
    ) {
        let mut text = ALL.to_owned();
        text.replace_range(at..(at + remove).min(ALL.len()), &insert);
        never_panics("a.yaml", &text);
    }
}

#[test]
fn annotations_and_labels_of_istio_that_would_change_what_is_guarded_are_told() {
    let pod = |metadata: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n{metadata}spec: {{containers: []}}\nstatus: {{podIP: 10.0.0.1}}\n"
        )
    };
    let annotated = |name: &str, value: &str| pod(&format!("  annotations:\n    {name}: \"{value}\"\n"));
    for (name, value) in [
        ("proxy.istio.io/config", "{gatewayTopology: {numTrustedProxies: 2}}"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "8080"),
        ("sidecar.istio.io/interceptionMode", "TPROXY"),
    ] {
        told(&annotated(name, value), &["6 ", &format!("metadata.annotations[\"{name}\"]: "), "not yet honoured"]);
    }
    told(
        &pod("  labels: {istio.io/use-waypoint: edge}\n"),
        &["5 metadata.labels[\"istio.io/use-waypoint\"]: ", "not yet honoured"],
    );
    for silent in [
        annotated("sidecar.istio.io/status", "{}"),
        annotated("sidecar.istio.io/interceptionMode", "REDIRECT"),
        annotated("traffic.sidecar.istio.io/includeInboundPorts", "*"),
        pod("  labels: {istio.io/use-waypoint: none}\n"),
    ] {
        assert_eq!(said(&silent), [""; 0], "{silent}");
    }
}
