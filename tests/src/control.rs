//! `meshring control` as a child process, the command line against it, and its API.

use std::{
    fs,
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::ensure;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{binaries, client::Client, process::Process, proxy::ProxyBuilder, wait};

/// A control process with a configuration directory and a run directory of its own.
#[derive(Debug)]
pub struct Control {
    /// The process.
    pub process: Process,
    dir: TempDir,
    config: PathBuf,
    arguments: Vec<String>,
}

/// What a command has printed and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit status; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Asserts the exit status, showing what was printed where it is another one.
    ///
    /// # Panics
    /// When it is another one.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {self:?}"),
        }
    }
}

/// Runs `meshring` with arguments and waits for its end.
#[must_use]
pub fn meshring(arguments: &[&str]) -> Ran {
    let mut command = Command::new(binaries::path("meshring"));
    command.args(arguments).env_remove("MESHRING_RUN_DIR").env("NO_COLOR", "1").stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

impl Control {
    /// Starts one whose configuration directory holds these files.
    #[must_use]
    pub fn start(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().expect("a directory");
        let config = dir.path().join("config");
        fs::create_dir(&config).expect("a directory");
        for (name, text) in files {
            fs::write(config.join(name), text).expect("a file");
        }
        Self::start_in(dir, "config")
    }

    /// Starts one in a prepared directory; `config` is the name of the configuration in it.
    #[must_use]
    pub fn start_in(dir: TempDir, config: &str) -> Self {
        Self::start_with_arguments(dir, config, &[])
    }

    /// As [`start_in`](Self::start_in), with further arguments.
    #[must_use]
    pub fn start_with_arguments(dir: TempDir, config: &str, arguments: &[&str]) -> Self {
        let config = dir.path().join(config);
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let process = Self::spawn(&config, dir.path(), &arguments);
        let mut control = Self { process, dir, config, arguments };
        control.wait_until_ready();
        control
    }

    fn spawn(config: &Path, dir: &Path, arguments: &[String]) -> Process {
        let mut command = Command::new(binaries::path("meshring"));
        command.arg("control").arg("--config").arg(config).arg("--run-dir").arg(dir.join("run"));
        command.args(arguments).env_remove("MESHRING_RUN_DIR");
        Process::start("meshring control", &mut command)
    }

    fn wait_until_ready(&mut self) {
        self.process.wait_for_line("control serves");
        wait::until("the API of control", || self.try_api("GET", "/v1/status", None).ok());
    }

    /// Starts it again after it was ended, with the same directories.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = Self::spawn(&self.config, self.dir.path(), &self.arguments);
        self.wait_until_ready();
    }

    /// Where proxies and commands find it.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The directory that holds configuration and run directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a configuration file as editors and `git checkout` do: beside it, then renamed over it.
    pub fn write(&self, name: &str, text: &str) {
        let (new, path) = (self.dir.path().join("new"), self.config.join(name));
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).expect("a configuration file");
    }

    /// Puts a file for `meshring apply -f` outside of the watched directory.
    #[must_use]
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("a file");
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// A proxy of this mesh, to be configured and started.
    #[must_use]
    pub fn proxy(&self, workload: &str) -> ProxyBuilder {
        ProxyBuilder::new(&self.run_dir()).workload(workload)
    }

    /// Runs a command against it.
    #[must_use]
    pub fn meshring(&self, arguments: &[&str]) -> Ran {
        let run_dir = self.run_dir();
        let run_dir = run_dir.to_str().expect("a path in UTF-8");
        meshring(&[arguments, &["--run-dir", run_dir]].concat())
    }

    /// A connection to its API.
    pub fn connect(&self) -> std::io::Result<Client<UnixStream>> {
        Client::connect_unix(&self.run_dir().join("control.sock"))
    }

    fn try_api(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let response = call(&mut self.connect()?, method, path, body)?;
        ensure!(response.status == 200, "{method} {path}: {} {}", response.status, response.text());
        Ok(serde_json::from_slice(&response.body)?)
    }

    /// `GET` of a JSON document.
    ///
    /// # Panics
    /// When there is no answer of status 200.
    #[must_use]
    #[track_caller]
    pub fn api(&self, path: &str) -> Value {
        match self.try_api("GET", path, None) {
            Ok(value) => value,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// The active generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.api("/v1/status")["generation"].as_u64().expect("a generation")
    }

    /// Waits until so many proxies run the active generation on every worker.
    pub fn wait_for_proxies(&self, count: u64) {
        wait::until(&format!("{count} current proxies"), || {
            let status = self.try_api("GET", "/v1/status", None).ok()?;
            (status["proxies"] == count && status["proxies_current"] == count).then_some(())
        });
    }

    /// The sum of a metric over the series whose labels contain `labels`.
    ///
    /// # Panics
    /// When there is no such series.
    #[must_use]
    pub fn metric(&self, name: &str, labels: &str) -> i64 {
        self.find_metric(name, labels).unwrap_or_else(|| panic!("no series of {name} with {labels}"))
    }

    /// As [`metric`](Self::metric), for series that may not be there yet.
    #[must_use]
    pub fn find_metric(&self, name: &str, labels: &str) -> Option<i64> {
        let mut client = self.connect().expect("the API of control");
        let response = call(&mut client, "GET", "/metrics", None).expect("metrics");
        let text = response.expect(200).text();
        let values: Vec<i64> = text
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(labels))
            .map(|(_, value)| value.parse().expect("a number"))
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

/// One call over a connection to the API.
pub fn call(
    client: &mut Client<UnixStream>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<crate::client::Response> {
    let body = body.map(ToString::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: control\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.try_send(head + &body)?;
    client.try_response(method)
}

/// The body of `POST /v1/apply` for one file.
#[must_use]
pub fn files(path: &str, text: &str) -> Value {
    json!({ "files": [{ "path": path, "text": text }] })
}

/// A service `reviews` on port 9080 whose versions v1 and v2 are one address each, and the subsets of those names: what a
/// user of the example has in the cluster already. A ServiceEntry, since endpoints of Pods may not share an IP address.
#[must_use]
pub fn shop(v1: SocketAddr, v2: SocketAddr) -> String {
    let endpoint = |version: &str, address: SocketAddr| {
        let (ip, port) = (address.ip(), address.port());
        format!("  - address: {ip}\n    ports:\n      http: {port}\n    labels:\n      version: {version}\n")
    };
    let service = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: reviews
spec:
  hosts:
  - reviews.default.svc.cluster.local
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - name: http
    number: 9080
    protocol: HTTP
  endpoints:
";
    let rule = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: reviews
spec:
  host: reviews
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
";
    [service, &endpoint("v1", v1), &endpoint("v2", v2), rule].concat()
}

/// A VirtualService `reviews` with these rules (YAML of `spec.http`, not indented).
#[must_use]
pub fn reviews(http: &str) -> String {
    let http: String = http.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: reviews\nspec:\n  hosts:\n  - \
         reviews\n  http:\n{http}"
    )
}

/// A rule that splits `reviews` by weight.
#[must_use]
pub fn split(v1: u32, v2: u32) -> String {
    reviews(&format!(
        "- route:\n  - destination:\n      host: reviews\n      subset: v1\n    weight: {v1}\n  - destination:\n      \
         host: reviews\n      subset: v2\n    weight: {v2}\n"
    ))
}
