//! The demo's processes, addresses and files.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{Failure, REVIEWS_80_20, START_MAX, refused};
use crate::api::{
    certs::Certs,
    client::Client,
    types::{ProxyItem, Status},
};

/// Lines of a log that are shown when something goes wrong.
const LOG_LINES: usize = 12;
/// A process that has not ended by then is killed.
const END_MAX: Duration = Duration::from_secs(3);

struct Running {
    title: &'static str,
    what: &'static str,
    address: Option<SocketAddr>,
    child: Child,
}

struct Addresses {
    productpage: SocketAddr,
    outbound: SocketAddr,
    inbound: [SocketAddr; 2],
    reviews: [SocketAddr; 2],
}

/// Everything that the demo has started; it goes away with the value, in the order of a clean end with [`Mesh::end`].
pub(super) struct Mesh {
    dir: TempDir,
    meshring: PathBuf,
    proxy: PathBuf,
    addresses: Addresses,
    processes: Vec<Running>,
    client: Client,
}

/// The two versions of `reviews` are on addresses of their own, as Pods in a cluster are; all of 127/8 is loopback.
const REVIEWS_V1: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const REVIEWS_V2: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// Ports that are free now. All are held until all are chosen, so that they differ.
fn free_addresses<const N: usize>(hosts: [Ipv4Addr; N]) -> std::io::Result<[SocketAddr; N]> {
    let mut listeners = Vec::with_capacity(N);
    let mut addresses = hosts.map(|host| SocketAddr::from((host, 0)));
    for address in &mut addresses {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(addresses)
}

impl Mesh {
    pub(super) fn new() -> Result<Self, Failure> {
        let meshring = std::env::current_exe().map_err(refused)?;
        let proxy = meshring.with_file_name("meshring-proxy");
        if !proxy.is_file() {
            return Err(refused(format!(
                "{} is not there: the demo needs it beside {}; build both with `cargo build --release --bins`",
                proxy.display(),
                meshring.display()
            )));
        }
        let dir = tempfile::Builder::new().prefix("meshring-demo-").tempdir().map_err(refused)?;
        let [productpage, outbound, inbound_v1, inbound_v2, v1, v2] =
            free_addresses([Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, REVIEWS_V1, REVIEWS_V2, REVIEWS_V1, REVIEWS_V2])
                .map_err(refused)?;
        let addresses = Addresses { productpage, outbound, inbound: [inbound_v1, inbound_v2], reviews: [v1, v2] };
        let client = Client::new(&dir.path().join("run"));
        Ok(Self { dir, meshring, proxy, addresses, processes: Vec::new(), client })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn run_dir(&self) -> &Path {
        self.client.run_dir()
    }

    pub(super) fn productpage(&self) -> SocketAddr {
        self.addresses.productpage
    }

    pub(super) fn fifty_path(&self) -> PathBuf {
        self.dir.path().join("reviews-50-50.yaml")
    }

    pub(super) fn half_and_half(&self) -> String {
        REVIEWS_80_20
            .replace("80% of the traffic to reviews v2, 20% to v1", "half of the traffic to each version")
            .replace("weight: 80", "weight: 50")
            .replace("weight: 20", "weight: 50")
    }

    /// How to call this program again: by its name where that is enough.
    pub(super) fn own_name(&self) -> String {
        let short =
            std::env::current_dir().ok().and_then(|dir| self.meshring.strip_prefix(dir).ok().map(Path::to_owned));
        match short {
            Some(path) if path.components().count() > 1 => path.display().to_string(),
            Some(path) => format!("./{}", path.display()),
            None => self.meshring.display().to_string(),
        }
    }

    pub(super) async fn start(&mut self) -> Result<(), Failure> {
        let (config, fifty) = (self.dir.path().join("config"), self.half_and_half());
        fs::create_dir(&config).map_err(refused)?;
        fs::write(config.join("shop.yaml"), self.shop()).map_err(refused)?;
        fs::write(self.fifty_path(), fifty).map_err(refused)?;
        let own = self.meshring.clone();
        let Addresses { productpage, outbound, inbound, reviews } = self.addresses;

        let sample = |name: &str, listen: SocketAddr| {
            let mut command = Command::new(&own);
            command.args(["sample", "--name", name, "--listen", &listen.to_string()]);
            command
        };
        for (title, version, listen) in [("reviews v1", "v1", reviews[0]), ("reviews v2", "v2", reviews[1])] {
            self.spawn(title, "sample service", Some(listen), sample(version, listen))?;
        }
        let mut page = sample("productpage", productpage);
        page.args(["--reviews", &outbound.to_string()]);
        self.spawn("productpage", "sample service", Some(productpage), page)?;

        let run_dir = self.run_dir().to_owned();
        let mut control = Command::new(&own);
        control.arg("control").arg("--config").arg(&config).arg("--run-dir").arg(&run_dir);
        self.spawn("control", "reads the files, tells the sidecars", None, control)?;

        let proxy = |workload: &str| {
            let mut command = Command::new(&self.proxy);
            command.arg("--run-dir").arg(&run_dir).args(["--workload", workload, "--workers", "1"]);
            command
        };
        let mut of_page = proxy("default/productpage-v1");
        of_page.args(["--outbound", &outbound.to_string()]);
        let mut of_reviews = proxy("default/reviews");
        of_reviews.args(["--service-account", "reviews"]);
        for (inbound, application) in inbound.iter().zip(&reviews) {
            of_reviews.args(["--inbound", &format!("{inbound}={application}")]);
        }
        self.spawn("sidecar A", "carries the calls of productpage", Some(outbound), of_page)?;
        self.spawn("sidecar B", "carries the calls to reviews", Some(inbound[0]), of_reviews)?;
        self.wait_until_up().await
    }

    fn spawn(
        &mut self,
        title: &'static str,
        what: &'static str,
        address: Option<SocketAddr>,
        mut command: Command,
    ) -> Result<(), Failure> {
        let log = File::create(self.log_path(title)).map_err(refused)?;
        command
            .env_remove("MESHRING_RUN_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|error| refused(format!("{title}: {error}")))?;
        self.processes.push(Running { title, what, address, child });
        Ok(())
    }

    fn log_path(&self, title: &str) -> PathBuf {
        self.dir.path().join(format!("{}.log", title.replace(' ', "-")))
    }

    async fn wait_until_up(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START_MAX;
        loop {
            self.check_children()?;
            let proxies = self.client.get::<Vec<ProxyItem>>("/v1/proxies").await.unwrap_or_default();
            let current = proxies.iter().filter(|proxy| proxy.state == "current").count();
            let mut listening = 0;
            for process in &self.processes {
                if let Some(address) = process.address {
                    listening += usize::from(tokio::net::TcpStream::connect(address).await.is_ok());
                }
            }
            let certs = self.client.get::<Certs>("/v1/certs").await;
            let known = certs.map_or(0, |certs| {
                certs.certificates.identities.iter().filter(|identity| identity.state == "installed").count()
            });
            if current == 2 && listening == 5 && known == 2 {
                return Ok(());
            }
            if Instant::now() > deadline {
                let status = self.client.get::<Status>("/v1/status").await;
                let status = status.map_or_else(
                    |error| error.to_string(),
                    |status| format!("control has generation {}", status.generation),
                );
                return Err(refused(format!(
                    "not up after {} s: {current} of 2 sidecars are ready, {known} of 2 have an identity, {listening} of 5 \
                     addresses answer, {status}",
                    START_MAX.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn check_children(&mut self) -> Result<(), Failure> {
        for process in &mut self.processes {
            if let Ok(Some(status)) = process.child.try_wait() {
                return Err(refused(format!("{} has ended unexpectedly ({status})", process.title)));
            }
        }
        Ok(())
    }

    /// Returns when a process ends that should not; until then everything is well.
    pub(super) async fn watch_children(&mut self) -> Result<(), Failure> {
        loop {
            self.check_children()?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(super) fn topology(&self) -> String {
        let Addresses { productpage, outbound, inbound, reviews } = &self.addresses;
        let port = |address: &SocketAddr| format!(":{}", address.port());
        let mut text = format!(
            "     you --> productpage --> sidecar A --+--> sidecar B --> reviews v1\n\
             \u{20}            {:<6}          {:<6}     |    {:<6}        {:<6}\n\
             \u{20}                                        +--> sidecar B --> reviews v2\n\
             \u{20}                                             {:<6}        {:<6}\n\n",
            port(productpage),
            port(outbound),
            port(&inbound[0]),
            port(&reviews[0]),
            port(&inbound[1]),
            port(&reviews[1]),
        );
        for process in &self.processes {
            let pid = process.child.id().map(|pid| format!("pid {pid}")).unwrap_or_default();
            let address = process.address.map(|address| address.to_string()).unwrap_or_default();
            text.push_str(&format!("     {:<12} {pid:<12} {address:<16} {}\n", process.title, process.what));
        }
        text + "\n"
    }

    /// The last words of every process beside a failure: the demo's directory is about to go away.
    pub(super) fn with_logs(&mut self, failure: &Failure) -> Failure {
        let mut text = failure.to_string();
        for title in self.processes.iter().map(|process| process.title) {
            let log = fs::read_to_string(self.log_path(title)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                text.push_str(&format!("\n  {title}: {line}"));
            }
        }
        Failure::Refused(text)
    }

    /// Ends every process, clients before servers, and waits for it.
    pub(super) async fn end(mut self) {
        let order = ["productpage", "sidecar A", "sidecar B", "reviews v1", "reviews v2", "control"];
        for title in order {
            let Some(process) = self.processes.iter_mut().find(|process| process.title == title) else { continue };
            if let Some(pid) = process.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::TERM);
            }
            if tokio::time::timeout(END_MAX, process.child.wait()).await.is_err() {
                let _ = process.child.kill().await;
            }
        }
    }

    /// The shop as Kubernetes and Istio know it, with the ports of this run.
    fn shop(&self) -> String {
        let [v1, v2] = self.addresses.inbound;
        // The label says that it has a sidecar that speaks mutual TLS, the service account who it is.
        let pod = |name: &str, account: &str| {
            format!(
                "---\n\
                 apiVersion: v1\n\
                 kind: Pod\n\
                 metadata:\n\
                 \u{20} name: {name}\n\
                 \u{20} labels:\n\
                 \u{20}   security.istio.io/tlsMode: istio\n\
                 spec:\n\
                 \u{20} serviceAccountName: {account}\n"
            )
        };
        let slice = |version: &str, inbound: SocketAddr| {
            let (address, port) = (inbound.ip(), inbound.port());
            format!(
                "---\n\
                 apiVersion: discovery.k8s.io/v1\n\
                 kind: EndpointSlice\n\
                 metadata:\n\
                 \u{20} name: reviews-{version}\n\
                 \u{20} labels:\n\
                 \u{20}   kubernetes.io/service-name: reviews\n\
                 \u{20}   version: {version}\n\
                 addressType: IPv4\n\
                 ports:\n\
                 - name: http\n\
                 \u{20} port: {port}\n\
                 endpoints:\n\
                 - addresses:\n\
                 \u{20} - {address}\n\
                 \u{20} targetRef: {{kind: Pod, name: reviews-{version}}}\n{}",
                pod(&format!("reviews-{version}"), "reviews")
            )
        };
        format!(
            "# The shop: where the two versions of `reviews` are reached, and what the names v1 and v2 mean.\n\
             apiVersion: v1\n\
             kind: Service\n\
             metadata:\n\
             \u{20} name: reviews\n\
             spec:\n\
             \u{20} ports:\n\
             \u{20} - name: http\n\
             \u{20}   port: 9080\n\
             {}{}{}\
             ---\n\
             apiVersion: networking.istio.io/v1\n\
             kind: DestinationRule\n\
             metadata:\n\
             \u{20} name: reviews\n\
             spec:\n\
             \u{20} host: reviews\n\
             \u{20} subsets:\n\
             \u{20} - name: v1\n\
             \u{20}   labels:\n\
             \u{20}     version: v1\n\
             \u{20} - name: v2\n\
             \u{20}   labels:\n\
             \u{20}     version: v2\n",
            slice("v1", v1),
            slice("v2", v2),
            pod("productpage-v1", "productpage")
        )
    }
}
