//! The programs of `tests/judges/*_peer.py`: HTTP/2, gRPC and WebSocket with libraries that others wrote.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

use crate::{process::Process, wait};

/// The interpreter that `.ci/setup gate` has put the libraries into; tests of foreign peers end early without it.
#[must_use]
pub fn python() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let test = env::current_exe().expect("the path of the running test");
        let found = test.ancestors().map(|dir| dir.join("judges/bin/python")).find(|python| python.is_file());
        found.filter(|python| {
            let mut command = Command::new(python);
            command.args(["-c", "import grpc, grpc_health, h2, websockets"]).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        })
    });
    if found.is_none() {
        println!("skipped: no grpcio, h2 and websockets for Python; `.ci/setup gate` installs them");
    }
    found.clone()
}

fn command(python: &Path, script: &str, arguments: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("judges").join(script);
    let mut command = Command::new(python);
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
    pub fn start(python: &Path, script: &str, arguments: &[&str]) -> Self {
        let mut command = command(python, script, &[&["server"], arguments].concat());
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
pub fn client(python: &Path, script: &str, arguments: &[&str]) -> Command {
    command(python, script, &[&["client"], arguments].concat())
}

/// Runs a client to its end and returns what it has told.
///
/// # Panics
/// When it fails.
#[must_use]
#[track_caller]
pub fn run(python: &Path, script: &str, arguments: &[&str]) -> Vec<Value> {
    let output = client(python, script, arguments).stdin(Stdio::null()).output().expect("a running interpreter");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments:?}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
