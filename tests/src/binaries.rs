//! Where the programs under test are: beside the test executables, in the same target directory and profile.

use std::{env, path::PathBuf};

/// The path of `meshring-proxy`, `meshring` or `meshring-bench`.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the path of the running test");
    // target/PROFILE/deps/TEST-HASH
    let profile = test.parent().and_then(|deps| deps.parent()).expect("a test lives in target/PROFILE/deps");
    let path = profile.join(name);
    assert!(path.exists(), "{} does not exist; run: cargo build --workspace", path.display());
    path
}

/// Whether a program of the system can be run; tests of foreign clients say so and end when it is not installed.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    let found = env::var_os("PATH").is_some_and(|dirs| env::split_paths(&dirs).any(|dir| dir.join(program).is_file()));
    if !found {
        println!("skipped: {program} is not installed (apt-get install {program})");
    }
    found
}
