//! A crash leaves no private key behind.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{fs, os::unix::process::ExitStatusExt as _, path::Path, process::Command};

use meshring_tests::{
    binaries,
    pki::{Authority, Leaf, spiffe},
    process::Process,
    proxy::Driver,
    tls::Mesh,
    upstream::Upstream,
};
use rustix::process::Signal;
use tempfile::TempDir;

/// What runs with cores allowed, in a directory of its own.
fn allowing_cores(dir: &Path) -> [String; 4] {
    let script = "ulimit -c unlimited && cd \"$0\" && exec \"$@\"";
    ["sh".into(), "-c".into(), script.into(), dir.to_str().unwrap().into()]
}

/// Lets a process crash. Whether it has left a core, and what is in its directory.
fn crash(process: &mut Process, dir: &Path) -> (bool, Vec<u8>) {
    process.signal(Signal::ABORT);
    let status = process.wait_for_exit();
    assert_eq!(status.signal(), Some(6), "{status}");
    let files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let core = files.iter().flat_map(|path| fs::read(path).unwrap()).collect();
    (status.core_dumped(), core)
}

/// The limits of a process for cores, soft and hard.
fn limits(process: &Process) -> Vec<String> {
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    line.split_ascii_whitespace().take(2).map(str::to_owned).collect()
}

/// Where cores go to a program, or nowhere at all, there is nothing to be seen in a directory.
fn cores_are_files() -> bool {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let is_file = !pattern.trim().is_empty() && !pattern.contains(['|', '@', '/']);
    if !is_file {
        println!("skipped: core_pattern is {pattern:?}");
    }
    is_file
}

/// A sidecar with an identity and connections crashes.
fn crashed_proxy(arguments: &[&str]) -> (Vec<String>, bool, Vec<u8>) {
    let application = Upstream::saying("here");
    let dir = TempDir::new().unwrap();
    let wrapper = allowing_cores(dir.path());
    let mut mesh = Mesh::configured(Driver::Auto, &[application.address()], &[], |server| {
        server.wrapper(wrapper).arguments(arguments)
    });
    assert_eq!(mesh.get("reviews", "/").expect(200).text(), "here");
    let limits = limits(&mesh.server.process);
    let (dumped, core) = crash(&mut mesh.server.process, dir.path());
    (limits, dumped, core)
}

#[test]
fn a_proxy_that_crashes_leaves_no_core() {
    let (limits, dumped, core) = crashed_proxy(&[]);
    assert_eq!(limits, ["1", "1"]);
    assert!(!dumped && core.is_empty(), "{dumped}, {} bytes", core.len());
}

/// What every private key for P-256 begins with as PKCS #8 (RFC 5208, RFC 5915): 36 bytes, then the key.
fn head_of_keys() -> Vec<u8> {
    let (_, key) = Authority::new("any").issue(&Leaf::workload("any")).certified();
    let head = key.secret_der()[..36].to_vec();
    assert!(head.starts_with(b"\x30\x81") && head.ends_with(b"\x04\x20"), "{head:?}");
    head
}

fn holds(core: &[u8], needle: &[u8]) -> bool {
    core.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_core_of_a_proxy_that_is_wanted_is_without_the_key_as_control_has_sent_it() {
    let (limits, dumped, core) = crashed_proxy(&["--core-dumps"]);
    assert_eq!(limits, ["unlimited", "unlimited"]);
    if cores_are_files() {
        assert!(dumped && core.starts_with(b"\x7fELF"), "{dumped}, {} bytes", core.len());
        // The memory is in there, its certificate for one.
        assert!(holds(&core, spiffe("reviews").as_bytes()));
        assert!(!holds(&core, &head_of_keys()), "a private key in PKCS #8");
    }
}

/// Control with an authority that it has made itself, or has read.
struct Control {
    process: Process,
    dir: TempDir,
    cores: TempDir,
}

impl Control {
    fn start(arguments: &[&str]) -> Self {
        let mut control = Self {
            process: Process::start("nothing", &mut Command::new("true")),
            dir: TempDir::new().unwrap(),
            cores: TempDir::new().unwrap(),
        };
        fs::create_dir(control.dir.path().join("config")).unwrap();
        control.begin(arguments);
        control
    }

    fn begin(&mut self, arguments: &[&str]) {
        let wrapper = allowing_cores(self.cores.path());
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).arg(binaries::path("meshring")).arg("control");
        command.arg("--config").arg(self.dir.path().join("config"));
        command.arg("--run-dir").arg(self.dir.path().join("run")).args(arguments).env_remove("MESHRING_RUN_DIR");
        self.process = Process::start("meshring control", &mut command);
        self.process.wait_for_line("control serves");
    }
}

#[test]
fn a_control_that_crashes_leaves_no_core() {
    let mut control = Control::start(&[]);
    assert_eq!(limits(&control.process), ["1", "1"]);
    let (dumped, core) = crash(&mut control.process, control.cores.path());
    assert!(!dumped && core.is_empty(), "{dumped}, {} bytes", core.len());
}

/// What we hold of keys is on pages that are left out; what the library has made of them is not ours.
#[test]
fn a_core_that_is_wanted_is_without_our_copies_of_the_authoritys_keys() {
    if !cores_are_files() {
        return;
    }
    let mut control = Control::start(&["--core-dumps"]);
    let stored = fs::read_to_string(control.dir.path().join("run/ca/authority.json")).unwrap();
    let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
    let keys = [&stored["roots"][0], &stored["intermediate"]].map(|signer| signer["key"].as_str().unwrap().to_owned());
    let certificate = stored["intermediate"]["certificate"].as_str().unwrap().lines().nth(2).unwrap().to_owned();
    for start in ["made", "read"] {
        if start == "read" {
            fs::remove_dir_all(control.cores.path()).and_then(|()| fs::create_dir(control.cores.path())).unwrap();
            control.begin(&["--core-dumps"]);
        }
        let (dumped, core) = crash(&mut control.process, control.cores.path());
        assert!(dumped && core.starts_with(b"\x7fELF"), "{dumped}, {} bytes", core.len());
        let holds = |needle: &[u8]| holds(&core, needle);
        // The search would find something: what stands beside the keys in the same file is there.
        assert!(holds(certificate.as_bytes()), "{start}");
        for key in &keys {
            let der: Vec<u8> = key
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
            assert_eq!(der[..36], head_of_keys(), "another form of keys");
            assert!(!holds(key.as_bytes()), "the digits of a key that was {start}");
            // Not by the head alone: jsonwebtoken keeps the key that signs JWT-SVIDs in this form.
            assert!(!holds(&der[..60]), "a key that was {start}");
        }
    }
}

/// A key of the operator's own, in a file.
#[test]
fn an_operators_key_is_not_in_a_core_as_it_was_read() {
    if !cores_are_files() {
        return;
    }
    let authority = Authority::new("operator");
    let dir = TempDir::new().unwrap();
    let (certificate, key) = authority.write(dir.path(), "ca");
    let [certificate, key] = [&certificate, &key].map(|path| path.to_str().unwrap());
    let mut control = Control::start(&["--core-dumps", "--ca-cert", certificate, "--ca-key", key]);
    let (dumped, core) = crash(&mut control.process, control.cores.path());
    assert!(dumped && core.starts_with(b"\x7fELF"), "{dumped}, {} bytes", core.len());
    let pem = fs::read_to_string(key).unwrap();
    for line in pem.lines().filter(|line| !line.starts_with('-')) {
        assert!(!holds(&core, line.as_bytes()), "a line of the key's file");
    }
}
