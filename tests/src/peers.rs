//! The programs `tests/judges/*_peer.*`: HTTP/2, gRPC and WebSocket with libraries that others wrote, in Python and for Node.js.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

use crate::{binaries::tool_is_missing, process::Process, wait};

/// The interpreter that `.ci/setup gate` has put the libraries into; tests of foreign peers end early without it.
#[must_use]
pub fn python() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| interpreter("python", &["-c", "import grpc, grpc_health, h2, websockets"]));
    if found.is_none() {
        tool_is_missing("no grpcio, h2 and websockets for Python; `.ci/setup gate` installs them");
    }
    found.clone()
}

/// Likewise the Node.js that `.ci/setup gate` has installed, with the package `ws`.
#[must_use]
pub fn node() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| interpreter("node", &["-e", "require('ws')"]));
    if found.is_none() {
        tool_is_missing("no Node.js with ws; `.ci/setup gate` installs them");
    }
    found.clone()
}

/// The Envoy that `.ci/setup gate` has put beside them.
#[must_use]
pub fn envoy() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| interpreter("envoy", &["--version"]));
    if found.is_none() {
        tool_is_missing("no Envoy; `.ci/setup gate` installs it");
    }
    found.clone()
}

/// One that can do what a test needs.
fn interpreter(name: &str, probe: &[&str]) -> Option<PathBuf> {
    let test = env::current_exe().expect("the path of the running test");
    let found = test.ancestors().map(|dir| dir.join("judges/bin").join(name)).find(|program| program.is_file())?;
    let mut command = bare(&found);
    command.args(probe).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success()).then_some(found)
}

/// An interpreter that finds its packages.
fn bare(interpreter: &Path) -> Command {
    let mut command = Command::new(interpreter);
    // JUDGES/bin/node, which looks for packages beside its script; Python knows by itself.
    if let Some(judges) = interpreter.ancestors().nth(2) {
        command.env("NODE_PATH", judges.join("node_modules"));
    }
    command
}

fn command(interpreter: &Path, script: &str, arguments: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("judges").join(script);
    let mut command = bare(interpreter);
    command.arg(script).args(arguments);
    command
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts `SCRIPT server ARGUMENTS`.
    ///
    /// # Panics
    /// When it does not say where it listens.
    #[must_use]
    pub fn start(interpreter: &Path, script: &str, arguments: &[&str]) -> Self {
        let mut command = command(interpreter, script, &[&["server"], arguments].concat());
        let mut process = Process::start(script, &mut command);
        let line: Value = serde_json::from_str(&process.wait_for_line("\"port\"")).expect("JSON");
        let port = line["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
        Self { process, address: ([127, 0, 0, 1], port).into() }
    }

    /// What it has told so far that has this key.
    #[must_use]
    pub fn told(&self, key: &str) -> Vec<Value> {
        let lines = self.process.output();
        let values = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        values.filter(|value| value.get(key).is_some()).collect()
    }

    /// Waits until it has told so many lines that have this value.
    pub fn wait_for(&self, key: &str, value: &str, count: usize) -> Vec<Value> {
        wait::until(&format!("{count} times {key} {value:?}"), || {
            let told: Vec<_> = self.told(key).into_iter().filter(|line| line[key] == value).collect();
            (told.len() >= count).then_some(told)
        })
    }
}

/// Starts a client: `SCRIPT client ARGUMENTS`.
#[must_use]
pub fn client(interpreter: &Path, script: &str, arguments: &[&str]) -> Command {
    command(interpreter, script, &[&["client"], arguments].concat())
}

/// Runs a client to its end and returns what it has told.
///
/// # Panics
/// When it fails.
#[must_use]
#[track_caller]
pub fn run(interpreter: &Path, script: &str, arguments: &[&str]) -> Vec<Value> {
    run_role(interpreter, script, "client", arguments)
}

/// Likewise what plays another role: `SCRIPT ROLE ARGUMENTS`.
///
/// # Panics
/// When it fails.
#[must_use]
#[track_caller]
pub fn run_role(interpreter: &Path, script: &str, role: &str, arguments: &[&str]) -> Vec<Value> {
    let mut command = command(interpreter, script, &[&[role], arguments].concat());
    let output = command.stdin(Stdio::null()).output().expect("a running interpreter");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments:?}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
