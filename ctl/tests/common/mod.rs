//! A real control process, and proxies that speak the link protocol without any data plane.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failure here is the failure of a test")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this module")]

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use meshring_core::{
    id::Generation,
    identity::Material,
    link::{Hello, PROTOCOL, SOCKET_NAME, ToControl, ToProxy, channel},
    snapshot::{Snapshot, layout::LAYOUT, page::PageReader},
    stats::StatsPage,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;

/// What a slow machine may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds, and says which one did not.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The services that rules refer to.
pub const SHOP: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: reviews
spec:
  ports:
  - name: http
    port: 9080
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: reviews-v1
  labels:
    kubernetes.io/service-name: reviews
    version: v1
addressType: IPv4
ports:
- name: http
  port: 8001
endpoints:
- addresses: [10.0.0.1]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: reviews-v2
  labels:
    kubernetes.io/service-name: reviews
    version: v2
addressType: IPv4
ports:
- name: http
  port: 8002
endpoints:
- addresses: [10.0.0.2]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: reviews
spec:
  host: reviews
  subsets:
  - name: v1
    labels: {version: v1}
  - name: v2
    labels: {version: v2}
";

/// A VirtualService that sends `v2` percent to v2 and the rest to v1.
pub fn split(v2: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata:\n\
         \u{20} name: reviews\n\
         spec:\n\
         \u{20} hosts:\n\
         \u{20} - reviews\n\
         \u{20} http:\n\
         \u{20} - match:\n\
         \u{20}   - headers:\n\
         \u{20}       end-user:\n\
         \u{20}         exact: jason\n\
         \u{20}   route:\n\
         \u{20}   - destination:\n\
         \u{20}       host: reviews\n\
         \u{20}       subset: v2\n\
         \u{20} - route:\n\
         \u{20}   - destination:\n\
         \u{20}       host: reviews\n\
         \u{20}       subset: v2\n\
         \u{20}     weight: {v2}\n\
         \u{20}   - destination:\n\
         \u{20}       host: reviews\n\
         \u{20}       subset: v1\n\
         \u{20}     weight: {}\n",
        100 - v2
    )
}

/// A directory with configuration, a run directory, and the control process that serves it.
pub struct Node {
    dir: tempfile::TempDir,
    child: Option<Child>,
    /// Further arguments of `meshring control`.
    pub flags: Vec<String>,
}

impl Node {
    /// Files in the configuration directory, by name; not started yet.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        let node = Self { dir, child: None, flags: Vec::new() };
        for (name, text) in files {
            node.write(name, text);
        }
        node
    }

    /// The same, started.
    pub fn started(files: &[(&str, &str)]) -> Self {
        let mut node = Self::new(files);
        node.start();
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("config")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// Replaces a configuration file by rename, as editors and Git do.
    pub fn write(&self, name: &str, text: &str) {
        let temporary = self.config().join(format!(".{name}.tmp"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.config().join(name)).unwrap();
    }

    /// Starts control and waits until it answers.
    pub fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("control.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_meshring"))
            .args(["control", "--config"])
            .arg(self.config())
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(&self.flags)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        until("control answers", || self.cli(&["get", "status"]).status.success());
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("control.log")).unwrap_or_default()
    }

    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshring"));
        command.args(arguments).arg("--run-dir").arg(self.run_dir()).current_dir(self.dir.path());
        command
    }

    /// Runs a command that must succeed; what it prints on stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{arguments:?}: {stdout}{stderr}\n{}", self.log());
        stdout
    }

    /// Runs a command that must be refused with status 1; what it prints on stderr.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stdout}{stderr}");
        stderr
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    pub fn status(&self) -> Value {
        self.json(&["get", "status", "-o", "json"])
    }

    pub fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().unwrap()
    }

    /// Writes a file beside the configuration, to be applied by its relative name.
    pub fn file(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of control:\n{}", self.log());
        }
    }
}

pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// How a fake proxy answers a `Prepare`.
#[derive(Clone, PartialEq)]
pub enum Manner {
    Accept,
    Refuse(&'static str),
    Silent,
}

struct Inner {
    socket: OwnedFd,
    stats: Arc<StatsPage>,
    prepared: Mutex<Vec<(Generation, u64)>>,
    unanswered: Mutex<Vec<Generation>>,
    swaps: Mutex<Vec<Generation>>,
    manner: Mutex<Manner>,
    rejected: Mutex<Option<String>>,
    given: Mutex<Given>,
    gone: AtomicBool,
}

/// What a fake proxy was given beside the tables.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// In the order of their arrival.
    pub materials: Vec<Material>,
    pub forgotten: Vec<String>,
    pub denied: Option<String>,
    /// Set: it takes none, and says this.
    pub refuse: Option<&'static str>,
}

impl Given {
    /// The last one of a name.
    pub fn last(&self, name: &str) -> Option<&Material> {
        self.materials.iter().rev().find(|material| material.name == name)
    }
}

/// Proves and acknowledges generations like a proxy, and carries no traffic.
pub struct FakeProxy {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

impl FakeProxy {
    pub fn connect(node: &Node, workload: &str) -> Self {
        Self::with(node, workload, Manner::Accept, |_| {})
    }

    /// `adjust` may change the greeting.
    pub fn with(node: &Node, workload: &str, manner: Manner, adjust: impl FnOnce(&mut Hello)) -> Self {
        let mut hello = Hello {
            protocol: PROTOCOL,
            layout: LAYOUT,
            pid: std::process::id(),
            namespace: "default".into(),
            workload: workload.into(),
            workers: 2,
            driver: "none".into(),
            listeners: vec!["outbound 127.0.0.1:15001".into()],
            generation: Generation(0),
            checksum: 0,
            service_account: None,
            bypass: false,
            join_token: None,
        };
        adjust(&mut hello);
        let socket = dial(&node.run_dir().join(SOCKET_NAME));
        let (fd, stats) = StatsPage::create(hello.workers as usize).unwrap();
        for worker in 0..stats.workers() {
            stats.worker(worker).acknowledge(hello.generation);
        }
        let prepared = if hello.generation.0 > 0 { vec![(hello.generation, hello.checksum)] } else { Vec::new() };
        channel::send(&socket, &ToControl::Hello(hello), &[std::os::fd::AsFd::as_fd(&fd)]).unwrap();
        let inner = Arc::new(Inner {
            socket,
            stats,
            prepared: Mutex::new(prepared),
            unanswered: Mutex::default(),
            swaps: Mutex::default(),
            manner: Mutex::new(manner),
            rejected: Mutex::default(),
            given: Mutex::default(),
            gone: AtomicBool::new(false),
        });
        let reading = Arc::clone(&inner);
        let threads = vec![std::thread::spawn(move || read(&reading))];
        Self { inner, threads }
    }

    /// What each worker runs.
    pub fn runs(&self) -> Vec<u64> {
        let stats = &self.inner.stats;
        (0..stats.workers()).map(|worker| stats.acknowledged(worker).0).collect()
    }

    /// Generations that it has proved, each with its checksum.
    pub fn prepared(&self) -> Vec<(u64, u64)> {
        self.inner.prepared.lock().unwrap().iter().map(|(generation, checksum)| (generation.0, *checksum)).collect()
    }

    /// Adoptions of another generation, in their order.
    pub fn swaps(&self) -> Vec<u64> {
        self.inner.swaps.lock().unwrap().iter().map(|generation| generation.0).collect()
    }

    pub fn rejected(&self) -> Option<String> {
        self.inner.rejected.lock().unwrap().clone()
    }

    pub fn given(&self) -> Given {
        self.inner.given.lock().unwrap().clone()
    }

    /// From now on it takes no material (or takes them again).
    pub fn refuse_materials(&self, reason: Option<&'static str>) {
        self.inner.given.lock().unwrap().refuse = reason;
    }

    pub fn stats(&self) -> &Arc<StatsPage> {
        &self.inner.stats
    }

    /// From now on; what was left unanswered is answered.
    pub fn behave(&self, manner: Manner) {
        *self.inner.manner.lock().unwrap() = manner;
        for generation in std::mem::take(&mut *self.inner.unanswered.lock().unwrap()) {
            channel::send(&self.inner.socket, &ToControl::Prepared { generation }, &[]).unwrap();
        }
    }
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.inner.gone.store(true, Ordering::Relaxed);
        let _ = rustix::net::shutdown(&self.inner.socket, rustix::net::Shutdown::Both);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn dial(path: &Path) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

fn read(inner: &Arc<Inner>) {
    let mut watcher = None;
    while let Ok((message, fds)) = channel::receive::<ToProxy>(&inner.socket) {
        match message {
            ToProxy::Welcome { .. } => {
                let page = PageReader::open(&fds[0]).unwrap();
                let inner = Arc::clone(inner);
                watcher = Some(std::thread::spawn(move || watch(&inner, &page)));
            }
            ToProxy::Rejected { reason } => *inner.rejected.lock().unwrap() = Some(reason),
            ToProxy::Prepare { generation } => {
                let manner = inner.manner.lock().unwrap().clone();
                let answer = match manner {
                    Manner::Silent => {
                        inner.unanswered.lock().unwrap().push(generation);
                        prove(inner, generation, &fds[0]);
                        continue;
                    }
                    Manner::Refuse(reason) => ToControl::Refused { generation, reason: reason.into() },
                    Manner::Accept => {
                        prove(inner, generation, &fds[0]);
                        ToControl::Prepared { generation }
                    }
                };
                if channel::send(&inner.socket, &answer, &[]).is_err() {
                    break;
                }
            }
            ToProxy::Material { name } => {
                if !take(inner, &name, &fds[0]) {
                    break;
                }
            }
            // It has said that it does not know the bypass.
            ToProxy::OfferListeners => panic!("nobody has offered a bypass"),
            ToProxy::Forget { names } => inner.given.lock().unwrap().forgotten.extend(names),
            ToProxy::NoIdentity { reason } => inner.given.lock().unwrap().denied = Some(reason),
            ToProxy::Retire { below } => inner.prepared.lock().unwrap().retain(|(generation, _)| *generation >= below),
        }
    }
    inner.gone.store(true, Ordering::Relaxed);
    if let Some(watcher) = watcher {
        watcher.join().unwrap();
    }
}

/// Reads a material as a proxy does; whether the link is alive.
fn take(inner: &Inner, name: &str, fd: &OwnedFd) -> bool {
    let seals = rustix::fs::fcntl_get_seals(fd).unwrap();
    assert!(seals.contains(meshring_core::snapshot::region::SEALS_IMMUTABLE), "not sealed: {seals:?}");
    let mut bytes = vec![0; rustix::fs::fstat(fd).unwrap().st_size as usize];
    assert_eq!(rustix::io::pread(fd, &mut bytes, 0).unwrap(), bytes.len());
    let material = Material::decode(&bytes).unwrap();
    assert_eq!(material.name, name);
    let mut given = inner.given.lock().unwrap();
    let answer = match given.refuse {
        Some(reason) => ToControl::NotInstalled { name: name.to_owned(), reason: reason.into() },
        None => ToControl::Installed { name: name.to_owned(), not_after_s: material.not_after_s },
    };
    given.materials.push(material);
    drop(given);
    channel::send(&inner.socket, &answer, &[]).is_ok()
}

fn prove(inner: &Inner, generation: Generation, fd: &OwnedFd) {
    let snapshot = Snapshot::open(fd).unwrap();
    assert_eq!(snapshot.generation(), generation);
    let mut prepared = inner.prepared.lock().unwrap();
    let known = prepared.iter().find(|(known, _)| *known == generation);
    assert!(known.is_none_or(|(_, checksum)| *checksum == snapshot.checksum()), "{generation} has two contents");
    prepared.push((generation, snapshot.checksum()));
}

/// What the workers do: follow the active generation where it is prepared.
fn watch(inner: &Inner, page: &PageReader) {
    while !inner.gone.load(Ordering::Relaxed) {
        let changes = page.changes();
        let active = page.active().load();
        let silent = *inner.manner.lock().unwrap() == Manner::Silent;
        let prepared = inner.prepared.lock().unwrap().iter().any(|(generation, _)| *generation == active);
        if prepared && !silent && inner.stats.acknowledged(0) != active {
            inner.swaps.lock().unwrap().push(active);
            for worker in 0..inner.stats.workers() {
                inner.stats.worker(worker).acknowledge(active);
            }
        }
        page.wait(changes, Duration::from_millis(5));
    }
}
