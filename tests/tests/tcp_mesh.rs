//! Connections of bytes between two sidecars: mutual TLS, who may come in, what is counted, what real programs make of it, and that
//! no change of the configuration ends one.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::Write as _,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use meshring_tests::{
    binaries,
    bytes::Mesh,
    client::Client,
    control::Control,
    on_both_drivers,
    pki::{Authority, Leaf},
    process::Process,
    proxy::Driver,
    tls::peer_authentication,
    tunnel::{Application, Ends, expect_reset},
    wait,
};

on_both_drivers! {
    two_sidecars_speak_mutual_tls_and_count
    a_connection_is_judged_as_one
    tls_that_is_for_the_application_is_passed_on
    openssl_speaks_to_the_server_that_its_server_name_means
    connections_outlive_every_change_and_new_ones_follow_it
}

fn two_sidecars_speak_mutual_tls_and_count(driver: Driver) {
    let application = Application::start();
    let mode = peer_authentication("STRICT", "");
    let mesh = Mesh::start(driver, application.address(), "tcp", &[("mode.yaml", &mode)]);
    let mut ends = Ends { client: Client::connect(mesh.service()), upstream: application.accept() };
    ends.upstream.send("220 ready");
    assert_eq!(ends.client.bytes(9), b"220 ready");
    ends.expect_open();
    // Plain text does not come in.
    expect_reset(Client::connect(mesh.server.inbound()[0]).send("plain"));
    let count = |name: &str, proxy: &str, cluster: &str| {
        let name = format!("meshring_cluster_tcp_{name}_total");
        mesh.control.find_metric(&name, &format!("{proxy}\",")).filter(|_| !cluster.is_empty())
    };
    wait::until("both sides to have counted", || {
        let is_counted = |proxy| {
            count("connections_opened", proxy, "db") == Some(1)
                && count("sent_bytes", proxy, "db") == Some(13)
                && count("received_bytes", proxy, "db") == Some(2)
                && count("connections_closed", proxy, "db") == Some(0)
        };
        (is_counted("default/client") && is_counted("default/db")).then_some(())
    });
    drop(ends);
    wait::until("the end to be counted", || {
        (count("connections_closed", "default/client", "db") == Some(1)).then_some(())
    });
    let top = mesh.control.meshring(&["top", "--once", "--interval", "10ms"]);
    assert!(top.expect(0).stdout.contains("outbound|5432||db.default.svc.cluster.local"), "{}", top.stdout);
    let explained = mesh.control.meshring(&["explain", "--from", "default/client", "--tcp", "db:5432"]);
    for part in [
        "100 % to outbound|5432||db.default.svc.cluster.local",
        "speaks bytes",
        "auto_mtls",
        "caller cluster.local/ns/default/sa/client",
    ] {
        assert!(explained.expect(0).stdout.contains(part), "{part}: {}", explained.stdout);
    }
}

fn policy(action: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: db, namespace: default}}\nspec:\n  selector: \
         {{matchLabels: {{app: db}}}}\n  action: {action}\n  rules: {rules}\n"
    )
}

fn a_connection_is_judged_as_one(driver: Driver) {
    let application = Application::start();
    let mode = peer_authentication("STRICT", "");
    let mesh = Mesh::start(driver, application.address(), "tcp", &[("mode.yaml", &mode)]);
    let client = "cluster.local/ns/default/sa/client";
    for (action, rules, is_allowed) in [
        ("ALLOW", format!("[{{from: [{{source: {{principals: [{client}]}}}}]}}]"), true),
        ("ALLOW", "[{from: [{source: {principals: [cluster.local/ns/default/sa/other]}}]}]".into(), false),
        // Nothing of HTTP is known: a rule about it lets nobody in, and keeps out whoever its other parts are about.
        ("ALLOW", "[{to: [{operation: {methods: [GET]}}]}]".into(), false),
        (
            "DENY",
            format!("[{{from: [{{source: {{principals: [{client}]}}}}], to: [{{operation: {{paths: [/x]}}}}]}}]"),
            false,
        ),
        ("DENY", "[{from: [{source: {principals: [cluster.local/ns/default/sa/other]}}]}]".into(), true),
    ] {
        mesh.change("policy.yaml", &policy(action, &rules));
        let mut connection = Client::connect(mesh.service());
        if is_allowed {
            Ends { client: connection, upstream: application.accept() }.expect_open();
        } else {
            expect_reset(&mut connection);
        }
        let explained =
            mesh.control.meshring(&["explain", "--from", "default/client", "--tcp", "db:5432", "-o", "json"]);
        let decision = explained.expect(0).json()["access"][0]["decision"].as_str().unwrap().to_owned();
        assert_eq!(decision == "allowed", is_allowed, "{action} {rules}: {decision}");
    }
    assert!(application.try_accept().is_none());
}

/// `openssl s_server` that answers each line with the line turned round.
fn openssl_server(dir: &std::path::Path, name: &str) -> (Process, std::net::SocketAddr) {
    let authority = Authority::new(name);
    let (certificate, key) = authority.issue(&Leaf::server(&[name])).write(dir, name);
    let reserved = meshring_tests::ports::Reserved::new();
    let address = reserved.address();
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-rev", "-accept", &address.to_string()]);
    command.arg("-cert").arg(certificate).arg("-key").arg(key);
    let server = Process::start(name, &mut command);
    wait::until("openssl to listen", || Client::try_connect(address).ok());
    (server, address)
}

/// What `openssl s_client` makes of a connection: the answer to `name`, turned round.
fn openssl_client(to: std::net::SocketAddr, name: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-ign_eof", "-connect", &to.to_string(), "-servername", name]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // The server ends the connection at this word.
    child.stdin.take().unwrap().write_all(b"hello\nCLOSE\n").unwrap();
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
}

fn tls_that_is_for_the_application_is_passed_on(driver: Driver) {
    if !binaries::is_installed("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_server, address) = openssl_server(dir.path(), "db.example.com");
    let mesh = Mesh::start(driver, address, "tls", &[]);
    // From sidecar to sidecar it is TLS in mutual TLS; from elsewhere it is not for the sidecar.
    for to in [mesh.service(), mesh.server.inbound()[0]] {
        assert_eq!(openssl_client(to, "db.example.com"), "olleh\n", "{to}");
    }
}

fn openssl_speaks_to_the_server_that_its_server_name_means(driver: Driver) {
    if !binaries::is_installed("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_one, one) = openssl_server(dir.path(), "one.example.com");
    let other = Application::start();
    let site = |name: &str, host: &str, to: std::net::SocketAddr| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  hosts: [\"{host}\"]\n  \
             ports: [{{name: tls, number: 443, protocol: TLS}}]\n  resolution: STATIC\n  endpoints: [{{address: {}, ports: {{tls: {}}}}}]\n---\n",
            to.ip(),
            to.port()
        )
    };
    let rules = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: sites}
spec:
  hosts: [\"*.example.com\"]
  tls:
  - match: [{port: 443, sniHosts: [\"*.other.example.com\"]}]
    route: [{destination: {host: other.org}}]
";
    let files = [
        &site("one", "one.example.com", one),
        &site("other", "other.org", other.address()),
        &site("any", "*.example.com", one),
        rules,
    ];
    let files = files.map(|text| text as &str).concat();
    // `one` has no rule of its own: it has the wildcard's, none of which is for it.
    let control = Control::start(&[("sites.yaml", &files)]);
    let client = control.proxy("default/client").driver(driver).outbound_for("*:443").start();
    control.wait_for_proxies(1);
    let to = client.services()[0];
    assert_eq!(openssl_client(to, "one.example.com"), "");
    wait::until("the reason", || client.process.line("the server name \"one.example.com\""));
    let explained =
        control.meshring(&["explain", "--from", "default/client", "--tcp", "*:443", "--sni", "one.example.com"]);
    assert!(
        explained.expect(0).stdout.contains("wants sniHosts *.other.example.com, but the server name is"),
        "{}",
        explained.stdout
    );
    let before = control.generation();
    control.write(
        "sites.yaml",
        &files.replace(
            "*.other.example.com\"]",
            "*.other.example.com\", nowhere.example.com]}, {port: 444, sniHosts: [one.example.com]",
        ),
    );
    wait::until("the change", || (control.generation() > before).then_some(()));
    control.wait_for_proxies(1);
    let (sender, name) = (openssl_client as fn(_, _) -> _, "x.other.example.com");
    thread::scope(|scope| {
        scope.spawn(move || sender(to, name));
        let mut upstream = other.accept();
        let hello = upstream.bytes(5);
        assert_eq!(hello[..2], [22, 3], "the ClientHello, untouched");
    });
    // Without any rule for TLS the names of the services are enough.
    let before = control.generation();
    control
        .write("sites.yaml", files.split("apiVersion: networking.istio.io/v1\nkind: VirtualService").next().unwrap());
    wait::until("the change", || (control.generation() > before).then_some(()));
    control.wait_for_proxies(1);
    assert_eq!(openssl_client(to, "one.example.com"), "olleh\n");
    assert_eq!(openssl_client(to, "two.example.com"), "olleh\n");
    assert_eq!(openssl_client(to, "example.net"), "");
}

/// A server that answers each byte with its own mark.
fn marking(application: Application, mark: u8, is_answered: &AtomicBool) {
    thread::scope(|scope| {
        while is_answered.load(Ordering::Relaxed) {
            let Some(mut connection) = application.try_accept() else {
                thread::park_timeout(std::time::Duration::from_millis(1));
                continue;
            };
            scope.spawn(move || {
                use std::io::Read as _;
                let mut byte = [0];
                let stream = connection.stream_mut();
                while let Ok(1) = stream.read(&mut byte) {
                    if stream.write_all(&[mark]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn connections_outlive_every_change_and_new_ones_follow_it(driver: Driver) {
    const CHANGES: usize = 40;
    let (v1, v2) = (Application::start(), Application::start());
    let endpoint = |version: &str, at: &Application| {
        let address = at.address();
        format!(
            "  - {{address: {}, ports: {{tcp: {}}}, labels: {{version: {version}}}}}\n",
            address.ip(),
            address.port()
        )
    };
    let service = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: db}}\nspec:\n  hosts: [db.default.svc.cluster.local]\n  \
         location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{{number: 5432, name: tcp}}]\n  endpoints:\n{}{}---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: db}}\nspec:\n  host: db\n  subsets:\n  \
         - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v2, labels: {{version: v2}}}}\n",
        endpoint("v1", &v1),
        endpoint("v2", &v2)
    );
    let to = |subset: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: db}}\nspec:\n  hosts: [db]\n  tcp:\n  - route: \
             [{{destination: {{host: db, subset: {subset}}}}}]\n"
        )
    };
    let control = Control::start(&[("service.yaml", &service), ("rules.yaml", &to("v1"))]);
    let proxy = control.proxy("default/client").driver(driver).outbound_for("db:5432").start();
    control.wait_for_proxies(1);
    let (is_over, exchanges) = (AtomicBool::new(false), AtomicU32::new(0));
    let is_answered = AtomicBool::new(true);
    let address = proxy.services()[0];
    let ask = |client: &mut Client| {
        client.send("?");
        client.bytes(1)[0]
    };
    thread::scope(|scope| {
        scope.spawn(|| marking(v1, b'1', &is_answered));
        scope.spawn(|| marking(v2, b'2', &is_answered));
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    // Each stays with the version that it was connected to, however often that changes for new ones.
                    let mut kept = Client::connect(address);
                    let own = ask(&mut kept);
                    while !is_over.load(Ordering::Relaxed) {
                        assert_eq!(ask(&mut kept), own);
                        assert!(matches!(ask(&mut Client::connect(address)), b'1' | b'2'));
                        exchanges.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for change in 0..CHANGES {
            let subset = ["v2", "v1"][change % 2];
            let file = control.file("rules.yaml", &to(subset));
            control.meshring(&["apply", "-f", &file]).expect(0);
            assert_eq!(ask(&mut Client::connect(address)), subset.as_bytes()[1], "after change {change}");
        }
        is_over.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.join().expect("no connection was lost");
        }
        is_answered.store(false, Ordering::Relaxed);
    });
    println!("{} exchanges during {CHANGES} changes", exchanges.load(Ordering::Relaxed));
}
