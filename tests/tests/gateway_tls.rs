//! Gateways: TLS that a proxy ends for clients from outside, by server name.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use meshring_tests::{
    alone,
    binaries::is_installed,
    client::Client,
    control::Control,
    generate::body,
    load::{DRILL_PER_S, Paced, assert_loaded, sha256},
    on_both_drivers,
    pki::{Authority, Issued, Leaf, secret},
    proxy::{Driver, Proxy},
    tls::{Caller, expect_alert},
    upstream::{Upstream, response},
    wait,
};
use rcgen::DnType;
use rustls::{AlertDescription, HandshakeKind};
use tempfile::TempDir;

on_both_drivers! {
    a_gateway_shows_the_certificate_of_the_name_that_is_asked_for
    a_mutual_gateway_wants_a_certificate_of_its_own_roots
    access_rules_hold_at_a_gateway_with_tls_and_without
    rules_see_the_scheme_and_the_port_of_a_gateway_with_tls_and_without
    a_gateway_tells_of_its_clients_certificates_what_the_mesh_wants
    cve_2025_23419_a_session_of_one_host_opens_no_other
    a_mutual_gateway_can_want_names_and_an_optional_one_nothing
    a_gateway_for_the_mesh_shows_its_identity_and_wants_one
    h2load_sees_no_failures_over_tls
}

/// A mesh whose only proxy is a gateway before one application.
struct Edge {
    control: Control,
    gateway: Proxy,
    /// Signs for hosts that everybody knows.
    authority: Arc<Authority>,
    /// Signs for workloads of the mesh.
    operator: Arc<Authority>,
    application: Upstream,
}

const GATEWAY: &str = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: edge, namespace: default}
spec:
  address: 127.0.0.1
  labels: {istio: ingressgateway}
";

fn server(port: u16, name: &str, host: &str, tls: &str) -> String {
    format!(
        "  - port: {{number: {port}, name: {name}, protocol: HTTPS}}\n    hosts: [\"{host}\"]\n    tls: {{{tls}}}\n"
    )
}

fn gateway(servers: &[String]) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: default}}\nspec:\n  \
         selector: {{istio: ingressgateway}}\n  servers:\n{}",
        servers.concat()
    )
}

/// Services of these hosts, each answered by the application.
fn services(application: SocketAddr, hosts: &[&str]) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: shop, namespace: \
         default}}\nspec:\n  hosts: [{}]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  ports: [{{number: 80, name: \
         http, protocol: HTTP}}]\n  endpoints:\n  - address: {}\n    ports: {{http: {}}}\n",
        hosts.join(", "),
        application.ip(),
        application.port()
    )
}

impl Edge {
    fn start(driver: Driver) -> Self {
        Self::before(Upstream::echoing(), driver)
    }

    fn before(application: Upstream, driver: Driver) -> Self {
        let hosts = ["shop.example.com", "pay.example.com", "a.wild.example.com"];
        let services = services(application.address(), &hosts);
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        for (name, text) in [("edge.yaml", GATEWAY), ("services.yaml", &services)] {
            fs::write(dir.path().join("config").join(name), text).unwrap();
        }
        let operator = Authority::new("operator");
        let (certificate, key) = operator.write(dir.path(), "operator");
        let arguments = ["--ca-cert", certificate.to_str().unwrap(), "--ca-key", key.to_str().unwrap()];
        let control = Control::start_with_arguments(dir, "config", &arguments);
        let gateway = control.proxy("default/edge").driver(driver).start();
        control.wait_for_proxies(1);
        Self { control, gateway, authority: Authority::new("public"), operator, application }
    }

    /// Publishes a Gateway with its Secrets, and waits until the credentials are there.
    fn publish(&self, text: &str, credentials: usize) {
        let before = self.control.generation();
        self.control.write("gateway.yaml", text);
        wait::until("the gateway", || (self.control.generation() > before).then_some(()));
        self.control.wait_for_proxies(1);
        wait::until("its credentials", || {
            let certs = self.control.api("/v1/certs");
            let list = certs["credentials"].as_array()?;
            (list.iter().filter(|item| item["state"] == "ok" && item["installed"] == 1).count() == credentials)
                .then_some(())
        });
    }

    fn port(&self) -> u16 {
        self.gateway.outbound().port()
    }

    fn caller(&self, name: &str) -> Caller {
        Caller::new(&self.authority, None).asking_for(name)
    }
}

/// The subject names of the certificate that a server shows.
fn shown(client: &mut Client<meshring_tests::tls::Stream>) -> Vec<u8> {
    client.stream_mut().conn.peer_certificates().unwrap()[0].to_vec()
}

fn a_gateway_shows_the_certificate_of_the_name_that_is_asked_for(driver: Driver) {
    let edge = Edge::start(driver);
    let port = edge.port();
    let issued: Vec<Issued> = [["shop.example.com"], ["pay.example.com"], ["*.wild.example.com"]]
        .iter()
        .map(|names| edge.authority.issue(&Leaf::server(names)))
        .collect();
    let servers = [
        server(port, "shop", "shop.example.com", "mode: SIMPLE, credentialName: shop"),
        server(port, "pay", "pay.example.com", "mode: SIMPLE, credentialName: pay"),
        server(port, "wild", "*.wild.example.com", "mode: SIMPLE, credentialName: wild"),
    ];
    let secrets = ["shop", "pay", "wild"].iter().zip(&issued).map(|(name, issued)| secret(name, issued, None));
    let secrets: String = secrets.collect();
    edge.publish(&(gateway(&servers) + &secrets), 3);
    for (name, issued) in ["shop.example.com", "pay.example.com", "a.wild.example.com"].iter().zip(&issued) {
        let mut client = edge.caller(name).connect(edge.gateway.outbound());
        assert_eq!(shown(&mut client), issued.chain[0], "{name}");
        let text = client.get(name, "/").expect(200).text();
        assert!(text.contains("\nx-forwarded-proto: https\n"), "{text}");
    }
    let before = edge.control.metric("meshring_downstream_tls_refused_total", "");
    let refused = edge.caller("unknown.example.com").refused(edge.gateway.outbound());
    expect_alert(&refused, AlertDescription::UnrecognisedName);
    wait::until("its count", || {
        (edge.control.metric("meshring_downstream_tls_refused_total", "") > before).then_some(())
    });
    wait::until("its line in the log", || edge.gateway.process.line("tls.unknown_name"));

    let mut plain = edge.gateway.connect();
    let response = plain.get("shop.example.com", "/");
    assert!(response.expect(400).text().contains("(tls_required)"), "{}", response.text());

    // A new certificate for a name: the next connection sees it, an open one goes on.
    let mut open = edge.caller("shop.example.com").connect(edge.gateway.outbound());
    open.get("shop.example.com", "/").expect(200);
    let newer = edge.authority.issue(&Leaf::server(&["shop.example.com"]));
    let secrets = secret("shop", &newer, None) + &secret("pay", &issued[1], None) + &secret("wild", &issued[2], None);
    edge.control.write("gateway.yaml", &(gateway(&servers) + &secrets));
    wait::until("the new certificate", || {
        let mut client = edge.caller("shop.example.com").connect(edge.gateway.outbound());
        (shown(&mut client) == newer.chain[0]).then_some(())
    });
    open.get("shop.example.com", "/").expect(200);
    let log = edge.gateway.process.output() + &edge.control.process.output();
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

fn a_mutual_gateway_wants_a_certificate_of_its_own_roots(driver: Driver) {
    let edge = Edge::start(driver);
    let customers = Authority::new("customers");
    let issued = edge.authority.issue(&Leaf::server(&["shop.example.com"]));
    let servers = [server(edge.port(), "shop", "shop.example.com", "mode: MUTUAL, credentialName: shop")];
    edge.publish(&(gateway(&servers) + &secret("shop", &issued, Some(&customers))), 1);
    let address = edge.gateway.outbound();
    let call = |identity: Option<&Issued>| Caller::new(&edge.authority, identity).asking_for("shop.example.com");
    expect_alert(&call(None).refused(address), AlertDescription::CertificateRequired);
    let stranger = Authority::new("strangers").issue(&Leaf::server(&["customer-7"]));
    expect_alert(&call(Some(&stranger)).refused(address), AlertDescription::UnknownCA);
    let customer = customers.issue(&Leaf::server(&["customer-7"]));
    call(Some(&customer)).connect(address).get("shop.example.com", "/").expect(200);
}

fn access_rules_hold_at_a_gateway_with_tls_and_without(driver: Driver) {
    let edge = Edge::start(driver);
    let issued = edge.authority.issue(&Leaf::server(&["shop.example.com"]));
    let deny = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: edge, namespace: \
                default}\nspec:\n  selector: {matchLabels: {istio: ingressgateway}}\n  action: DENY\n  rules:\n  - to: \
                [{operation: {paths: [\"/admin*\"]}}]\n    from: [{source: {ipBlocks: [127.0.0.1]}}]\n";
    let plain = format!("  - port: {{number: {}, name: http, protocol: HTTP}}\n    hosts: [\"*\"]\n", edge.port());
    edge.publish(&(gateway(&[plain]) + deny), 0);
    let mut client = edge.gateway.connect();
    client.get("shop.example.com", "/").expect(200);
    client.get("shop.example.com", "/%61dmin").expect(403);
    client.get("shop.example.com", "/").expect(200);

    let servers = [server(edge.port(), "shop", "shop.example.com", "mode: SIMPLE, credentialName: shop")];
    edge.publish(&(gateway(&servers) + &secret("shop", &issued, None) + deny), 1);
    let mut client = edge.caller("shop.example.com").connect(edge.gateway.outbound());
    client.get("shop.example.com", "/").expect(200);
    client.get("shop.example.com", "/admin/x").expect(403);
}

fn rules_see_the_scheme_and_the_port_of_a_gateway_with_tls_and_without(driver: Driver) {
    let edge = Edge::start(driver);
    let issued = edge.authority.issue(&Leaf::server(&["shop.example.com"]));
    let rules = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: shop, namespace: \
                 default}\nspec:\n  hosts: [shop.example.com]\n  http:\n  - match: [{uri: {prefix: /moved}}]\n    redirect: \
                 {uri: /there, derivePort: FROM_REQUEST_PORT}\n  - match: [{scheme: {exact: https}}]\n    directResponse: \
                 {status: 200, body: {string: secured}}\n  - match: [{scheme: {exact: http}}]\n    directResponse: \
                 {status: 200, body: {string: plain}}\n";
    let port = edge.port();
    let plain = format!("  - port: {{number: {port}, name: http, protocol: HTTP}}\n    hosts: [\"*\"]\n");
    edge.publish(&(gateway(&[plain]) + rules), 0);
    let mut client = edge.gateway.connect();
    assert_eq!(client.get("shop.example.com", "/").expect(200).text(), "plain");
    let moved = client.get("shop.example.com", "/moved");
    let location = format!("http://shop.example.com:{port}/there");
    assert_eq!(moved.expect(301).fields.value("location"), Some(&*location));

    let servers = [server(port, "shop", "shop.example.com", "mode: SIMPLE, credentialName: shop")];
    edge.publish(&(gateway(&servers) + &secret("shop", &issued, None) + rules), 1);
    let mut client = edge.caller("shop.example.com").connect(edge.gateway.outbound());
    assert_eq!(client.get("shop.example.com", "/").expect(200).text(), "secured");
    // Whatever a client says of it.
    let claimed = client.get_with("shop.example.com", "/", &[("x-forwarded-proto", "http")]);
    assert_eq!(claimed.expect(200).text(), "secured");
    let moved = client.get("shop.example.com", "/moved");
    let location = format!("https://shop.example.com:{port}/there");
    assert_eq!(moved.expect(301).fields.value("location"), Some(&*location));
}

fn a_gateway_tells_of_its_clients_certificates_what_the_mesh_wants(driver: Driver) {
    let edge = Edge::start(driver);
    let customers = Authority::new("customers");
    let issued = edge.authority.issue(&Leaf::server(&["shop.example.com"]));
    let servers = [server(edge.port(), "shop", "shop.example.com", "mode: MUTUAL, credentialName: shop")];
    edge.publish(&(gateway(&servers) + &secret("shop", &issued, Some(&customers))), 1);
    let customer = customers.issue(&Leaf {
        subject: vec![(DnType::CountryName, "DE".into()), (DnType::CommonName, "customer \"7\"".into())],
        ..Leaf::server(&["customer-7"])
    });
    let caller = Caller::new(&edge.authority, Some(&customer)).asking_for("shop.example.com");
    let mut client = caller.connect(edge.gateway.outbound());
    let mut told = || {
        let lie = [("x-forwarded-client-cert", "By=spiffe://x;Hash=ab")];
        let text = client.get_with("shop.example.com", "/", &lie).expect(200).text();
        let lines: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("x-forwarded-client-cert: ").map(str::to_owned)).collect();
        lines.join("|")
    };
    let encode = |byte| match byte {
        '\n' => "%0A".to_owned(),
        ' ' => "%20".to_owned(),
        '+' => "%2B".to_owned(),
        '/' => "%2F".to_owned(),
        '=' => "%3D".to_owned(),
        byte => byte.to_string(),
    };
    let pem: String = customer.chain_pem.replace("\r\n", "\n").chars().map(encode).collect();
    let hash = customer.sha256();
    let ours = format!(r#"Hash={hash};Cert="{pem}";Subject="CN=customer \"7\",C=DE";URI=;DNS=customer-7"#);
    let theirs = "By=spiffe://x;Hash=ab";
    // Istio's default at gateways.
    assert_eq!(told(), ours);
    for (how, expected) in [
        ("SANITIZE", String::new()),
        ("APPEND_FORWARD", format!("{theirs}, {ours}")),
        ("FORWARD_ONLY", theirs.to_owned()),
        ("SANITIZE_SET", ours),
        ("ALWAYS_FORWARD_ONLY", theirs.to_owned()),
    ] {
        let mesh = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |-\n    \
             defaultConfig: {{gatewayTopology: {{forwardClientCertDetails: {how}}}}}\n"
        );
        edge.control.write("mesh.yaml", &mesh);
        wait::until(how, || (told() == expected).then_some(()));
    }
}

fn cve_2025_23419_a_session_of_one_host_opens_no_other(driver: Driver) {
    let edge = Edge::start(driver);
    let customers = Authority::new("customers");
    let hosts = ["shop.example.com", "pay.example.com", "a.wild.example.com"];
    let issued = edge.authority.issue(&Leaf::server(&hosts));
    let servers = [
        server(
            edge.port(),
            "shop",
            "shop.example.com",
            "mode: SIMPLE, credentialName: shop, minProtocolVersion: TLSV1_2",
        ),
        server(edge.port(), "pay", "pay.example.com", "mode: MUTUAL, credentialName: pay, minProtocolVersion: TLSV1_2"),
    ];
    let secrets = secret("shop", &issued, None) + &secret("pay", &issued, Some(&customers));
    edge.publish(&(gateway(&servers) + &secrets), 2);
    let address = edge.gateway.outbound();
    let metric = || edge.control.metric("meshring_downstream_tls_resumed_total", "default/edge");
    for (version, caller) in
        [("TLS 1.3", Caller::new(&edge.authority, None)), ("TLS 1.2", Caller::old(&edge.authority, None))]
    {
        let caller = caller.mixing_sessions().asking_for("shop.example.com");
        // On a session of its own first, then on one that is resumed: Host names the host that wants a certificate.
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let resumed = metric();
            let mut client = caller.connect(address);
            client.get("shop.example.com", "/").expect(200);
            let kind = client.stream_mut().conn.handshake_kind();
            assert_eq!(kind == Some(HandshakeKind::Resumed), expected == HandshakeKind::Resumed, "{version}: {kind:?}");
            if expected == HandshakeKind::Resumed {
                wait::until("the count of resumed sessions", || (metric() > resumed).then_some(()));
            }
            let before = edge.application.received().len();
            let text = client.get("pay.example.com", "/").expect(421).text();
            assert!(text.contains("(misdirected)"), "{version}: {text}");
            client.expect_end();
            for host in ["PAY.example.com.", "a.wild.example.com", "pay.example.com:443"] {
                caller.connect(address).get(host, "/").expect(421);
            }
            assert_eq!(edge.application.received().len(), before, "{version}");
        }
        // Its ticket is shown for the other name: the certificate is asked for all the same.
        caller.connect(address).get("shop.example.com", "/").expect(200);
        let other = caller.asking_for("pay.example.com");
        expect_alert(&other.refused(address), AlertDescription::CertificateRequired);
    }
    wait::until("the reason", || edge.gateway.process.line("misdirected"));
    // With the certificate, and only then.
    let customer = customers.issue(&Leaf::server(&["customer-7"]));
    let mut client = Caller::new(&edge.authority, Some(&customer)).asking_for("pay.example.com").connect(address);
    client.get("pay.example.com", "/").expect(200);
    client.get("shop.example.com", "/").expect(421);
}

fn a_mutual_gateway_can_want_names_and_an_optional_one_nothing(driver: Driver) {
    let edge = Edge::start(driver);
    let customers = Authority::new("customers");
    let issued = edge.authority.issue(&Leaf::server(&["shop.example.com", "pay.example.com"]));
    let servers = [
        server(edge.port(), "shop", "shop.example.com", "mode: OPTIONAL_MUTUAL, credentialName: shop"),
        server(
            edge.port(),
            "pay",
            "pay.example.com",
            "mode: MUTUAL, credentialName: pay, subjectAltNames: [customer-7]",
        ),
    ];
    let secrets = ["shop", "pay"].map(|name| secret(name, &issued, Some(&customers))).concat();
    edge.publish(&(gateway(&servers) + &secrets), 2);
    let address = edge.gateway.outbound();
    let call = |name, identity: Option<&Issued>| Caller::new(&edge.authority, identity).asking_for(name);
    let stranger = Authority::new("strangers").issue(&Leaf::server(&["customer-7"]));
    let seventh = customers.issue(&Leaf::server(&["customer-7"]));
    let eighth = customers.issue(&Leaf::server(&["customer-8"]));

    // No certificate is none, and a wrong one is wrong all the same.
    let caller = |identity| call("shop.example.com", identity).connect(address).get("shop.example.com", "/");
    for identity in [None, Some(&seventh), Some(&eighth)] {
        caller(identity).expect(200);
    }
    expect_alert(&call("shop.example.com", Some(&stranger)).refused(address), AlertDescription::UnknownCA);

    call("pay.example.com", Some(&seventh)).connect(address).get("pay.example.com", "/").expect(200);
    let refused = call("pay.example.com", Some(&eighth)).refused(address);
    expect_alert(&refused, AlertDescription::CertificateUnknown);
    wait::until("the reason", || edge.gateway.process.line("tls.certificate_wrong_identity"));
    expect_alert(&call("pay.example.com", None).refused(address), AlertDescription::CertificateRequired);
    expect_alert(&call("pay.example.com", Some(&stranger)).refused(address), AlertDescription::UnknownCA);
}

fn a_gateway_for_the_mesh_shows_its_identity_and_wants_one(driver: Driver) {
    let edge = Edge::start(driver);
    let servers = [server(edge.port(), "shop", "shop.example.com", "mode: ISTIO_MUTUAL")];
    edge.publish(&gateway(&servers), 0);
    let address = edge.gateway.outbound();
    let call = |identity: Option<&Issued>| Caller::new(&edge.operator, identity).asking_for("shop.example.com");
    let workload = edge.operator.issue(&Leaf::workload("visitor"));
    // The caller believes the mesh's root only.
    call(Some(&workload)).connect(address).get("shop.example.com", "/").expect(200);

    expect_alert(&call(None).refused(address), AlertDescription::CertificateRequired);
    let public = edge.authority.issue(&Leaf::workload("visitor"));
    expect_alert(&call(Some(&public)).refused(address), AlertDescription::UnknownCA);
    let foreign = edge.operator.issue(&Leaf::uri("spiffe://foreign.example/ns/default/sa/visitor"));
    expect_alert(&call(Some(&foreign)).refused(address), AlertDescription::UnknownCA);
    let nameless = edge.operator.issue(&Leaf::server(&["visitor.example.com"]));
    call(Some(&nameless)).refused(address);
}

fn h2load_sees_no_failures_over_tls(driver: Driver) {
    if !is_installed("h2load") {
        return;
    }
    let _alone = alone();
    let edge = Edge::start(driver);
    let issued = edge.authority.issue(&Leaf::server(&["shop.example.com"]));
    let servers = [server(edge.port(), "shop", "shop.example.com", "mode: SIMPLE, credentialName: shop")];
    edge.publish(&(gateway(&servers) + &secret("shop", &issued, None)), 1);
    let handshakes = || edge.control.metric("meshring_downstream_tls_handshakes_total", "");
    for (offer, chosen) in [("h2", "h2"), ("http/1.1", "http/1.1"), ("h2,http/1.1", "h2")] {
        let before = handshakes();
        let output = Command::new("h2load")
            .args(["-n", "4000", "-c", "8", "-m", "20", "--npn-list", offer])
            .arg(format!("--connect-to={}", edge.gateway.outbound()))
            .arg("https://shop.example.com/")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let all = "4000 total, 4000 started, 4000 done, 4000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(said.contains(all) && said.contains("4000 2xx"), "{offer}: {said}");
        assert!(said.contains("TLS Protocol: TLSv1.3"), "{said}");
        assert!(said.contains(&format!("Application protocol: {chosen}\n")), "{offer}: {said}");
        wait::until("a handshake per connection", || (handshakes() == before + 8).then_some(()));
    }
}

/// curl, for a name that resolves to the gateway.
fn curl(edge: &Edge, ca: &Path, name: &str) -> Output {
    let address = edge.gateway.outbound();
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "--cacert"]).arg(ca);
    command.arg("--resolve").arg(format!("{name}:{}:{}", address.port(), address.ip()));
    command.arg(format!("https://{name}:{}/", address.port())).output().unwrap()
}

#[test]
fn curl_believes_a_gateway_for_the_right_name_and_root_only() {
    if !is_installed("curl") {
        return;
    }
    let edge = Edge::start(Driver::Auto);
    let dir = TempDir::new().unwrap();
    let (ca, _) = edge.authority.write(dir.path(), "public");
    let (other, _) = Authority::new("other").write(dir.path(), "other");
    let (certificate, key) = edge.authority.issue(&Leaf::server(&["shop.example.com"])).write(dir.path(), "shop");
    // Files in place of a Secret.
    let files = format!("mode: SIMPLE, serverCertificate: {}, privateKey: {}", certificate.display(), key.display());
    let servers = [
        server(edge.port(), "shop", "shop.example.com", &files),
        server(edge.port(), "pay", "pay.example.com", &files),
    ];
    edge.publish(&gateway(&servers), 1);
    let good = curl(&edge, &ca, "shop.example.com");
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    // A name that the certificate is not for, a root that has not signed it, a name that no Gateway has.
    for (ca, name, code) in
        [(&ca, "pay.example.com", 60), (&other, "shop.example.com", 60), (&ca, "no.example.com", 35)]
    {
        let bad = curl(&edge, ca, name);
        assert_eq!(bad.status.code(), Some(code), "{name}: {}", String::from_utf8_lossy(&bad.stderr));
    }
    assert!(fs::metadata(&key).is_ok());
}

/// What happens to the files of a certificate and its key while a gateway uses them.
const CHANGES_OF_FILES: usize = 20;

#[test]
fn files_that_change_under_load_are_in_use_within_a_second_and_fail_no_request() {
    let _alone = alone();
    let expected = body(1, 4_000);
    let whole = response(200, &[], &expected);
    let edge = Edge::before(Upstream::answering(move |_| whole.clone()), Driver::Auto);
    let dir = TempDir::new().unwrap();
    let (ca, _) = edge.authority.write(dir.path(), "public");
    let leaf = Leaf::server(&["shop.example.com"]);
    let mut current = edge.authority.issue(&leaf);
    let (certificate, key) = current.write(dir.path(), "shop");
    let tls = format!("mode: SIMPLE, serverCertificate: {}, privateKey: {}", certificate.display(), key.display());
    edge.publish(&gateway(&[server(edge.port(), "shop", "shop.example.com", &tls)]), 1);
    let shown_now = || shown(&mut edge.caller("shop.example.com").connect(edge.gateway.outbound()));
    let url = format!("https://{}/", edge.gateway.outbound());
    let hash = sha256(&expected);
    let load = |per_second, more: &[&str]| {
        let host = "host: shop.example.com";
        let known = ["--ca", ca.to_str().unwrap(), "--sni", "shop.example.com", "--header", host, "--connections", "4"];
        Paced::start(&url, per_second, &[&known[..], &["--body-sha256", hash.as_str()], more].concat())
    };
    // Most over connections that stay, some with a handshake each.
    let loads = [load(DRILL_PER_S, &[]), load(50, &["--new-connections"])];
    wait::until("the load", || (edge.control.metric("meshring_downstream_requests_total", "") > 500).then_some(()));

    let mut latencies = Vec::new();
    for round in 0..CHANGES_OF_FILES {
        let next = edge.authority.issue(&leaf);
        if round % 5 == 0 {
            // A key that does not fit: refused, and the pair from before stays in use.
            fs::write(&key, &next.key_pem).unwrap();
            let state = |state: &'static str| {
                wait::until(state, || {
                    let certs = edge.control.api("/v1/certs");
                    certs["credentials"].as_array()?.iter().any(|item| item["state"] == state).then_some(())
                });
            };
            state("outdated");
            assert_eq!(shown_now(), current.chain[0]);
            fs::write(&key, &current.key_pem).unwrap();
            state("ok");
        }
        let changed = Instant::now();
        let _ = next.write(dir.path(), "shop");
        current = next;
        wait::until("the new certificate", || (shown_now() == current.chain[0]).then_some(()));
        latencies.push(changed.elapsed());
    }
    latencies.sort();
    let (median, slowest) = (latencies[CHANGES_OF_FILES / 2], latencies[CHANGES_OF_FILES - 1]);
    let figures = loads.map(Paced::finish);
    println!("{figures:?} requests and per second; in use after {median:?}, at the most {slowest:?}");
    assert_loaded(figures[0]);
    assert!(figures[1].0 >= 50, "{figures:?}");
    // A loaded machine may lose a moment here and there.
    assert!(median < Duration::from_secs(1), "{latencies:?}");
    wait::until("the line that tells of it", || edge.control.process.line("the last good one stays in use"));
}
