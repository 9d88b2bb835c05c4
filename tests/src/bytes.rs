//! A mesh of two sidecars with mutual TLS between them, over which a service is reached that does not speak HTTP.

use std::{fs, net::SocketAddr};

use tempfile::TempDir;

use crate::{
    control::Control,
    proxy::{Driver, Proxy},
    wait,
};

/// Control, the proxy of `default/client` with a listener for `db:5432`, and the one of `default/db` before its application.
#[derive(Debug)]
pub struct Mesh {
    /// Control.
    pub control: Control,
    /// Of `default/client`.
    pub client: Proxy,
    /// Of `default/db`.
    pub server: Proxy,
}

/// Who the proxies are.
const WORKLOADS: &str = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db, namespace: default}
spec: {address: 127.0.0.1, labels: {app: db}, serviceAccount: db}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client, namespace: default}
spec: {address: 127.0.0.2, labels: {app: client}, serviceAccount: client}
";

/// The service, whose endpoint is the server's inbound listener.
fn service(port_name: &str, inbound: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: db, namespace: default}}
spec:
  hosts: [db.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 5432, name: {port_name}}}]
  endpoints:
  - address: {ip}
    ports: {{{port_name}: {port}}}
    labels: {{app: db, security.istio.io/tlsMode: istio}}
    serviceAccount: db
",
        ip = inbound.ip(),
        port = inbound.port(),
    )
}

impl Mesh {
    /// Before an application that listens on an address. `port_name` says what the service speaks.
    #[must_use]
    pub fn start(driver: Driver, application: SocketAddr, port_name: &str, files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().expect("a directory");
        let config = dir.path().join("config");
        fs::create_dir(&config).expect("a directory");
        for (name, text) in files.iter().chain(&[("workloads.yaml", WORKLOADS)]) {
            fs::write(config.join(name), text).expect("a file");
        }
        let control = Control::start_in(dir, "config");
        let server = control.proxy("default/db").driver(driver).inbound(application).start();
        let client = control.proxy("default/client").driver(driver).outbound_for("db:5432").start();
        control.wait_for_proxies(2);
        let mesh = Self { control, client, server };
        mesh.change("db.yaml", &service(port_name, mesh.server.inbound()[0]));
        wait::until("2 installed certificates", || {
            let certs = mesh.control.api("/v1/certs");
            let identities = certs["identities"].as_array()?;
            (identities.iter().filter(|item| item["state"] == "installed").count() >= 2).then_some(())
        });
        mesh
    }

    /// Where applications reach the service.
    #[must_use]
    pub fn service(&self) -> SocketAddr {
        self.client.services()[0]
    }

    /// Writes a configuration file and waits until every proxy goes by it.
    pub fn change(&self, name: &str, text: &str) {
        let before = self.control.generation();
        self.control.write(name, text);
        wait::until(&format!("the generation with the new {name}"), || {
            (self.control.generation() > before).then_some(())
        });
        self.control.wait_for_proxies(2);
    }
}
