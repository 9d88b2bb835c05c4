//! What ARCHITECTURE.md says of the sources, and the compiler does not check.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Path below the root, and text without comments of every source file of these packages.
fn sources(packages: &[&str]) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for package in packages {
        for folder in ["src", "tests", "benches", "fuzz_targets", "examples"] {
            let dir = root().join(package).join(folder);
            if dir.is_dir() {
                collect(&dir, &mut files);
            }
        }
    }
    assert!(!files.is_empty());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        (path.strip_prefix(root()).unwrap().display().to_string(), code.collect::<Vec<_>>().join("\n"))
    };
    files.into_iter().map(read).collect()
}

fn that_hold(packages: &[&str], word: &str) -> Vec<String> {
    sources(packages).into_iter().filter(|(_, code)| code.contains(word)).map(|(path, _)| path).collect()
}

#[test]
fn only_the_worker_names_the_runtime() {
    let named = that_hold(&["core", "proxy", "ctl"], "monoio");
    let elsewhere: Vec<_> = named.iter().filter(|path| !path.starts_with("proxy/src/worker/")).collect();
    assert!(elsewhere.is_empty() && !named.is_empty(), "{elsewhere:?}");
}

#[test]
fn proxy_and_control_do_not_import_each_other_and_core_neither() {
    for (package, others) in [
        ("core", ["meshring_proxy", "meshring_ctl", "meshring-proxy =", "meshring-ctl ="].as_slice()),
        ("proxy", &["meshring_ctl", "meshring-ctl"]),
        ("ctl", &["meshring_proxy", "meshring-proxy ="]),
    ] {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        for other in others {
            assert!(!manifest.contains(&format!("\n{other}")), "{package} depends on {other}");
            assert_eq!(that_hold(&[package], &format!("{other}::")), [""; 0], "{other} in {package}");
        }
    }
}

#[test]
fn unsafe_code_is_only_where_architecture_says() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = architecture.split_once("## Unsafe code").expect("the section");
    let table = section.split("\n## ").next().unwrap();
    // A folder stands for what is in it.
    let listed: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .collect();
    let written = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
    let uses = |code: &str| written.iter().any(|form| code.contains(form));
    let packages = ["core", "proxy", "ctl", "bench", "fuzz"];
    let unlisted: Vec<String> = sources(&packages)
        .into_iter()
        .filter(|(path, code)| uses(code) && !listed.iter().any(|listed| path.starts_with(listed)))
        .map(|(path, _)| path)
        .collect();
    assert!(unlisted.is_empty(), "not in ARCHITECTURE.md: {unlisted:?}");
    for listed in listed {
        assert!(root().join(listed).exists(), "{listed} is gone");
    }
}

#[test]
fn all_packages_have_the_lints_of_the_workspace() {
    for package in ["core", "proxy", "ctl", "bench", "tests"] {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{package}");
    }
    // A workspace of its own, so it has a copy.
    let lints = |file: &str, table: &str| {
        let manifest = fs::read_to_string(root().join(file)).unwrap();
        let (_, rest) =
            manifest.split_once(&format!("\n[{table}]\n")).unwrap_or_else(|| panic!("{file}: no [{table}]"));
        let body = rest.split("\n[").next().unwrap();
        body.lines().filter(|line| line.contains('=')).map(str::to_owned).collect::<Vec<_>>()
    };
    for tool in ["rust", "clippy"] {
        let (all, fuzz) = (
            lints("Cargo.toml", &format!("workspace.lints.{tool}")),
            lints("fuzz/Cargo.toml", &format!("lints.{tool}")),
        );
        assert_eq!(fuzz, all, "{tool}");
    }
}
