//! Mutual TLS between two sidecars, and what PeerAuthentication makes of those who come otherwise.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_tests::{
    alone,
    client::{Client, request},
    load::{self, Load},
    on_both_drivers,
    pki::{Leaf, spiffe},
    proxy::Driver,
    tls::{Caller, Mesh, expect_alert, peer_authentication},
    upstream::{Upstream, ok, response},
    wait,
};
use rcgen::DnType;
use rustls::AlertDescription;

on_both_drivers! {
    an_application_learns_who_calls
    statistics_say_which_tls_ran
    statistics_say_who_has_spoken_to_whom
    strict_takes_mutual_tls_only
    permissive_takes_both_and_disable_plain_text_only
    a_port_can_have_a_mode_of_its_own
    a_destination_rule_says_how_whatever_the_other_side_is_said_to_speak
    a_mode_that_changes_under_load_fails_no_client_with_a_certificate
}

const HANDSHAKES: &str = "downstream_tls_handshakes_total";
const REFUSED: &str = "downstream_tls_refused_total";
const REQUIRED: &str = "downstream_tls_required_total";

fn mode(mode: &str) -> String {
    peer_authentication(mode, "")
}

/// The value of a field in what an echoing application says.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn an_application_learns_who_calls(driver: Driver) {
    let application = Upstream::echoing();
    let mesh = Mesh::start(driver, &[application.address()], &[("mode.yaml", &mode("STRICT"))]);
    let mut client = mesh.client.connect();
    let handshakes = mesh.server_metric(HANDSHAKES);
    for _ in 0..3 {
        // What the application beside the client says about itself goes on, and ours comes behind it as with Istio; it
        // is the last element that the server's sidecar vouches for.
        let text = client.get("reviews", "/who").expect(200).text();
        let element = field(&text, "x-forwarded-client-cert").unwrap_or_else(|| panic!("no certificate in {text}"));
        let hash = element
            .strip_prefix(&format!("By={};Hash=", spiffe("reviews")))
            .and_then(|rest| rest.strip_suffix(&format!(";Subject=\"\";URI={}", spiffe("client"))))
            .unwrap_or_else(|| panic!("{element}"));
        assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hash}");
    }
    // One connection between the sidecars serves them all.
    mesh.wait_for_metric_above(HANDSHAKES, handshakes);
    assert_eq!(mesh.server_metric(HANDSHAKES), handshakes + 1);
    assert_eq!(mesh.server_metric(REFUSED), 0);

    // A client with a certificate beside the mesh: the hash is that of its certificate.
    let issued = mesh.authority.issue(&Leaf::workload("visitor"));
    let text = Caller::new(&mesh.authority, Some(&issued)).connect(mesh.inbound()).get("reviews", "/").text();
    let element = field(&text, "x-forwarded-client-cert").unwrap();
    assert!(element.ends_with(&format!("URI={}", spiffe("visitor"))), "{element}");

    // What else a certificate says is told as Istio has it, behind what the client says.
    let issued = mesh.authority.issue(&Leaf {
        dns: vec!["visitor.example.com".into(), "guest.example.com".into()],
        subject: vec![(DnType::OrganizationName, "Visits, Inc.".into()), (DnType::CommonName, "visitor".into())],
        ..Leaf::workload("visitor")
    });
    let mut client = Caller::new(&mesh.authority, Some(&issued)).connect(mesh.inbound());
    let text = client.get_with("reviews", "/", &[("x-forwarded-client-cert", "Hash=ab")]).expect(200).text();
    let element = field(&text, "x-forwarded-client-cert").unwrap();
    let (hash, names) = (issued.sha256(), "DNS=visitor.example.com;DNS=guest.example.com");
    let (by, uri) = (spiffe("reviews"), spiffe("visitor"));
    let ours = format!("By={by};Hash={hash};Subject=\"CN=visitor,O=Visits\\, Inc.\";URI={uri};{names}");
    assert_eq!(element, format!("Hash=ab, {ours}"));
}

/// Handshakes of a listener or with a cluster: those of the kernel's TLS, and of ours.
fn ran(mesh: &Mesh, metric: &str, of: &str) -> [i64; 2] {
    ["kernel", "userspace"].map(|records| {
        mesh.control.metric(&format!("meshring_{metric}_tls_handshakes_total"), &format!("{of},records=\"{records}\""))
    })
}

fn statistics_say_which_tls_ran(driver: Driver) {
    let applications = [Upstream::saying("first"), Upstream::saying("second")];
    let addresses = [applications[0].address(), applications[1].address()];
    let strict = mode("STRICT");
    let files = [("mode.yaml", strict.as_str())];
    let mesh = Mesh::configured(driver, &addresses, &files, |server| server.arguments(&["--ktls", "off"]));
    mesh.get("reviews", "/").expect(200);
    mesh.get("second", "/").expect(200);
    let caller = mesh.caller(&Leaf::workload("visitor"));
    for _ in 0..2 {
        caller.connect(mesh.inbound()).get("reviews", "/").expect(200);
    }
    Caller::new(&mesh.authority, None).refused(mesh.inbound());

    let listener = |index: usize| {
        let inbound = mesh.server.inbound()[index];
        format!("listener=\"inbound {inbound}={}\"", addresses[index])
    };
    // Counted behind the client's last word, which may be here before.
    wait::until("the handshakes of the first listener", || {
        (ran(&mesh, "listener", &listener(0)) == [0, 3]).then_some(())
    });
    assert_eq!(ran(&mesh, "listener", &listener(1)), [0, 1]);
    let count = |name: &str, of: &str| mesh.control.metric(&format!("meshring_listener_tls_{name}_total"), of);
    wait::until("the refusal", || (count("refused", &listener(0)) == 1).then_some(()));
    assert_eq!((count("resumed", &listener(0)), count("resumed", &listener(1))), (1, 0));
    // The other end, which may have kernel TLS.
    let cluster = "cluster=\"outbound|9080||reviews.default.svc.cluster.local\"";
    assert_eq!(ran(&mesh, "cluster", cluster).iter().sum::<i64>(), 1);
    let shown = mesh.control.meshring(&["top", "--once", "--interval", "10ms"]).expect(0).stdout.clone();
    let line = shown.lines().find(|line| line.contains(&format!("inbound {}", mesh.inbound())));
    let line = line.unwrap_or_else(|| panic!("{shown}"));
    let figures: Vec<_> = line.split_whitespace().rev().take(3).collect();
    assert_eq!(figures, ["1", "3", "0"], "resumed, userspace, kernel in {line}");
}

fn statistics_say_who_has_spoken_to_whom(driver: Driver) {
    let application = Upstream::answering(|request| match request.target() {
        "/" => ok("here"),
        _ => response(404, &[], b"nothing"),
    });
    let mesh = Mesh::start(driver, &[application.address()], &[("mode.yaml", &mode("PERMISSIVE"))]);
    let mut client = mesh.client.connect();
    for _ in 0..3 {
        client.get("reviews", "/").expect(200);
    }
    let mut visitor = mesh.caller(&Leaf::workload("visitor")).connect(mesh.inbound());
    visitor.get("reviews", "/").expect(200);
    visitor.get("reviews", "/missing").expect(404);
    // Who proves nothing is counted for nobody.
    Client::connect(mesh.inbound()).get("reviews", "/").expect(200);
    let count = |name: &str, of: [&str; 3], more: &str| {
        let [reporter, source, destination] = of;
        let labels = format!(
            "reporter=\"{reporter}\",source_principal=\"{}\",destination_principal=\"{}\"{more}",
            spiffe(source),
            spiffe(destination)
        );
        mesh.control.find_metric(&format!("meshring_principal_{name}_total"), &labels)
    };
    // Counted when the response is out, which the client may have before.
    wait::until("the last response", || {
        let of = |source, class| count("responses", ["destination", source, "reviews"], class);
        (of("client", ",class=\"2xx\"") == Some(3) && of("visitor", ",class=\"4xx\"") == Some(1)).then_some(())
    });
    assert_eq!(count("responses", ["destination", "visitor", "reviews"], ",class=\"2xx\""), Some(1));
    assert_eq!(count("requests", ["destination", "client", "reviews"], ""), Some(3));
    assert_eq!(count("requests", ["destination", "visitor", "reviews"], ""), Some(2));
    assert_eq!(mesh.control.metric("meshring_principal_requests_total", "reporter=\"destination\""), 5);
    assert_eq!(count("requests", ["source", "client", "reviews"], ""), Some(3));
    // Both ends of the one connection between the sidecars tell of it.
    assert_eq!(count("connections", ["destination", "client", "reviews"], ""), Some(1));
    assert_eq!(count("connections", ["source", "client", "reviews"], ""), Some(1));
    assert_eq!(count("connections", ["destination", "visitor", "reviews"], ""), Some(1));
}

fn strict_takes_mutual_tls_only(driver: Driver) {
    let application = Upstream::saying("here");
    let mesh = Mesh::start(driver, &[application.address()], &[("mode.yaml", &mode("STRICT"))]);
    assert_eq!(mesh.get("reviews", "/").expect(200).text(), "here");

    let before = mesh.server_metric(REQUIRED);
    let response = Client::connect(mesh.inbound()).get("reviews", "/");
    assert!(response.expect(403).text().contains("(tls_required)"), "{}", response.text());
    mesh.wait_for_metric_above(REQUIRED, before);
    mesh.wait_for_log(&["tls_required"]);
    // A service without the label is spoken to in plain text.
    mesh.get("plain-reviews", "/").expect(403);

    let refused = Caller::new(&mesh.authority, None).refused(mesh.inbound());
    expect_alert(&refused, AlertDescription::CertificateRequired);
    assert_eq!(application.received().len(), 1, "a refused request has reached the application");
}

fn permissive_takes_both_and_disable_plain_text_only(driver: Driver) {
    let application = Upstream::echoing();
    let mesh = Mesh::start(driver, &[application.address()], &[("mode.yaml", &mode("PERMISSIVE"))]);
    let text = mesh.get("reviews", "/").expect(200).text();
    assert!(field(&text, "x-forwarded-client-cert").is_some(), "not mutual TLS although both can: {text}");
    // What a plain client says about certificates is not believed.
    let lie = [("x-forwarded-client-cert", "By=spiffe://x;URI=spiffe://cluster.local/ns/default/sa/admin")];
    let text = Client::connect(mesh.inbound()).get_with("reviews", "/", &lie).expect(200).text();
    assert_eq!(field(&text, "x-forwarded-client-cert"), None, "{text}");
    let text = mesh.get("plain-reviews", "/").expect(200).text();
    assert_eq!(field(&text, "x-forwarded-client-cert"), None, "{text}");

    mesh.change("mode.yaml", &mode("DISABLE"));
    let refused = mesh.server_metric(REFUSED);
    expect_alert(&mesh.caller(&Leaf::workload("client")).refused(mesh.inbound()), AlertDescription::HandshakeFailure);
    mesh.wait_for_metric_above(REFUSED, refused);
    mesh.wait_for_log(&["tls.not_expected"]);
    Client::connect(mesh.inbound()).get("reviews", "/").expect(200);
}

fn a_port_can_have_a_mode_of_its_own(driver: Driver) {
    let applications = [Upstream::saying("first"), Upstream::saying("second")];
    let addresses = [applications[0].address(), applications[1].address()];
    let mesh = Mesh::start(driver, &addresses, &[]);
    let ports = |second: &str| {
        let selector = "  selector: {matchLabels: {app: reviews}}\n";
        let port = format!("  portLevelMtls: {{{}: {{mode: {second}}}}}\n", addresses[1].port());
        peer_authentication("STRICT", &(selector.to_owned() + &port))
    };
    mesh.change("mode.yaml", &ports("DISABLE"));
    let [first, second] = mesh.server.inbound()[..] else { panic!("two listeners") };
    Client::connect(first).get("reviews", "/").expect(403);
    assert_eq!(Client::connect(second).get("second", "/").expect(200).text(), "second");
    expect_alert(&mesh.caller(&Leaf::workload("client")).refused(second), AlertDescription::HandshakeFailure);
    assert_eq!(mesh.caller(&Leaf::workload("client")).connect(first).get("reviews", "/").expect(200).text(), "first");

    mesh.change("mode.yaml", &ports("PERMISSIVE"));
    assert_eq!(Client::connect(second).get("second", "/").expect(200).text(), "second");
    assert_eq!(mesh.get("second", "/").expect(200).text(), "second");
    Client::connect(first).get("reviews", "/").expect(403);
}

/// DestinationRules for services of [`Mesh`], with their `tls`.
fn destination_rules(rules: &[(&str, &str)]) -> String {
    let rule = |(host, tls): &(&str, &str)| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {host}, namespace: \
             default}}\nspec:\n  host: {host}\n  trafficPolicy: {{tls: {{{tls}}}}}\n"
        )
    };
    rules.iter().map(rule).collect()
}

fn a_destination_rule_says_how_whatever_the_other_side_is_said_to_speak(driver: Driver) {
    let application = Upstream::echoing();
    let mesh = Mesh::start(driver, &[application.address()], &[("mode.yaml", &mode("PERMISSIVE"))]);
    let caller = |host: &str| {
        let text = mesh.get(host, "/").expect(200).text();
        field(&text, "x-forwarded-client-cert").map(str::to_owned)
    };
    assert!(caller("reviews").is_some() && caller("plain-reviews").is_none());
    // `reviews` has a sidecar by its label, `plain-reviews`, which is the same one, has none.
    let swapped = [("reviews", "mode: DISABLE"), ("plain-reviews", "mode: ISTIO_MUTUAL")];
    mesh.change("rules.yaml", &destination_rules(&swapped));
    assert_eq!(caller("reviews"), None);
    let uri = format!(";URI={}", spiffe("client"));
    assert!(caller("plain-reviews").is_some_and(|element| element.ends_with(&uri)));
    mesh.change("mode.yaml", &mode("STRICT"));
    assert!(mesh.get("reviews", "/").expect(403).text().contains("(tls_required)"));
    assert!(caller("plain-reviews").is_some_and(|element| element.ends_with(&uri)));

    // Whom it wants to meet there.
    let (right, wrong) = (spiffe("reviews"), spiffe("another"));
    let named = |name: &str| format!("mode: ISTIO_MUTUAL, subjectAltNames: ['{name}']");
    mesh.change("rules.yaml", &destination_rules(&[("reviews", &named(&right)), ("plain-reviews", &named(&wrong))]));
    assert!(caller("reviews").is_some_and(|element| element.ends_with(&uri)));
    let seen = application.received().len();
    let refused = mesh.get("plain-reviews", "/");
    assert!(refused.expect(503).text().contains("tls.certificate_wrong_identity"), "{}", refused.text());
    assert_eq!(application.received().len(), seen);
}

fn a_mode_that_changes_under_load_fails_no_client_with_a_certificate(driver: Driver) {
    let _alone = alone();
    let application = Upstream::saying("here");
    let mesh = Mesh::start(driver, &[application.address()], &[("mode.yaml", &mode("PERMISSIVE"))]);
    let mut plain = Client::connect(mesh.inbound());
    plain.get("reviews", "/").expect(200);
    let mut mutual = mesh.caller(&Leaf::workload("visitor")).connect(mesh.inbound());
    let load = Load::start(mesh.client.outbound(), 8, request("GET", "reviews", "/", &[]), load::is_ok);
    load.pass(200);
    mesh.change("mode.yaml", &mode("STRICT"));
    // A connection from before is no way around the new rule.
    let response = plain.get("reviews", "/");
    assert!(response.expect(403).text().contains("(tls_required)"));
    plain.expect_end();
    mutual.get("reviews", "/").expect(200);
    load.pass(200);
    mesh.change("mode.yaml", &mode("PERMISSIVE"));
    load.pass(200);
    Client::connect(mesh.inbound()).get("reviews", "/").expect(200);
    assert!(load.finish() > 600);
    wait::until("no request in flight", || (mesh.server_metric("downstream_tls_refused_total") == 0).then_some(()));
}
