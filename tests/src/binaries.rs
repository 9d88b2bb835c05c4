//! Where the programs under test are: beside the test executables, in the same target directory and profile.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The path of `meshring-proxy`, `meshring` or `meshring-bench`.
///
/// # Panics
/// When it was not built, or before the last change of a source file: the test would prove something about yesterday.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the path of the running test");
    // target/PROFILE/deps/TEST-HASH
    let profile = test.parent().and_then(|deps| deps.parent()).expect("a test lives in target/PROFILE/deps");
    let path = profile.join(name);
    assert!(path.exists(), "{} does not exist; run: cargo build --workspace", path.display());
    // Once per test executable: who edits a file while tests run knows what they prove.
    static CHECKED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    if !checked.contains(&path) {
        if let Some(source) = newer_source(&path) {
            panic!("{} is older than {}; run: cargo build --workspace", path.display(), source.display());
        }
        checked.insert(path.clone());
    }
    path
}

/// A source file that has changed since a program was built, by the list that cargo keeps beside the program.
fn newer_source(program: &Path) -> Option<PathBuf> {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let built = modified(program)?;
    let list = fs::read_to_string(program.with_extension("d")).ok()?;
    let (_, sources) = list.split_once(": ")?;
    // Spaces in paths are escaped by a backslash.
    let sources = sources.trim_end().replace("\\ ", "\0");
    sources
        .split(' ')
        .map(|source| PathBuf::from(source.replace('\0', " ")))
        .find(|source| modified(source).is_some_and(|changed| changed > built))
}

/// Whether a program of the system can be run; tests of foreign clients say so and end when it is not installed, see
/// [`tool_is_missing`].
#[must_use]
#[track_caller]
pub fn is_installed(program: &str) -> bool {
    let found = env::var_os("PATH").is_some_and(|dirs| env::split_paths(&dirs).any(|dir| dir.join(program).is_file()));
    if !found {
        tool_is_missing(&format!("{program} is not installed (apt-get install {program})"));
    }
    found
}

/// Says that a test ends early, since a tool that it asks is not installed. Not for what the kernel or the machine cannot do.
///
/// # Panics
/// With `MESHRING_TOOLS=required`, which the gate sets: there a test that ends early has proved nothing.
#[track_caller]
pub fn tool_is_missing(what: &str) {
    let are_required = env::var_os("MESHRING_TOOLS").is_some_and(|value| value == "required");
    assert!(!are_required, "{what}, and MESHRING_TOOLS=required");
    println!("skipped: {what}");
}
