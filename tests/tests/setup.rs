//! The two commands of the README do their own set-up, Rust included: `.ci/setup` on a machine that has none, or only an old one. What it
//! fetches is played here; what it asks for, and where it puts it, is what counts.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// What the script needs besides Rust and curl. Nothing else is in its PATH.
const PROGRAMS: [&str; 12] =
    ["bash", "cat", "cc", "chmod", "cut", "dirname", "head", "mkdir", "mktemp", "rm", "sh", "sort"];

/// rustup's own installer, as far as the script goes: notes its arguments, and puts a Rust where the real one would.
const INSTALLER: &str = r#"#!/bin/sh
echo "$@" >"$HOME/installer-arguments"
mkdir -p "$CARGO_HOME/bin"
for program in rustc cargo; do
  printf '#!/bin/sh\necho %s 1.95.0 of rustup\n' "$program" >"$CARGO_HOME/bin/$program"
  chmod +x "$CARGO_HOME/bin/$program"
done
"#;

/// A machine: its PATH, and the home of its user.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(machine.path("bin")).unwrap();
        for program in PROGRAMS {
            let found = ["/usr/bin", "/bin", "/usr/local/bin"].map(|dir| Path::new(dir).join(program));
            let found = found.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{program} is not installed"));
            symlink(found, machine.path("bin").join(program)).unwrap();
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// With a program of this text in PATH.
    fn with(self, program: &str, text: &str) -> Self {
        let path = self.path("bin").join(program);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// With Rust of that version in PATH, as a distribution has it.
    fn with_rust(self, version: &str) -> Self {
        self.with("rustc", &format!("#!/bin/sh\necho rustc {version}\n"))
            .with("cargo", &format!("#!/bin/sh\necho cargo {version}\n"))
    }

    /// With a curl that finds the installer; it fails if anything else is asked for.
    fn online(self) -> Self {
        fs::write(self.path("installer"), INSTALLER).unwrap();
        let installer = self.path("installer");
        let curl = format!(
            "#!/bin/sh\ncase \"$*\" in *' https://sh.rustup.rs -o '*) ;; *) echo \"asked for $*\" >&2; exit 3 ;; esac\n\
             for last; do :; done\ncat {} >\"$last\"\n",
            installer.display()
        );
        self.with("curl", &curl)
    }

    fn run(&self, script: &str) -> Output {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        Command::new("/bin/bash")
            .args(["-c", script])
            .current_dir(root)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.dir.path())
            .env("CARGO_HOME", self.path("cargo"))
            .env("RUSTUP_HOME", self.path("rustup"))
            .output()
            .unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn without_rust_the_pinned_one_is_installed_by_rustup_and_it_says_where() {
    let machine = Machine::new().online();
    let output = machine.run(".ci/setup demo");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    let places = format!("to {} and {}", machine.path("rustup").display(), machine.path("cargo").display());
    assert!(stdout.contains("https://sh.rustup.rs") && stdout.contains(&places), "{stdout}");
    let arguments = fs::read_to_string(machine.path("installer-arguments")).unwrap();
    assert_eq!(arguments, "-y --no-modify-path --default-toolchain 1.95.0 --profile minimal\n");
    // The next time it is there, although no shell has been told.
    let again = machine.run(".ci/setup demo && . .ci/rust && use_rust && rustc --version");
    assert_eq!(text(&again.stdout), "rustc 1.95.0 of rustup\n", "{}", text(&again.stderr));
}

#[test]
fn a_distributions_old_rust_is_left_alone_and_does_not_hide_the_new_one() {
    let machine = Machine::new().online().with_rust("1.63.0");
    let output = machine.run(".ci/setup demo && . .ci/rust && use_rust && rustc --version");
    let stdout = text(&output.stdout);
    assert!(
        output.status.success() && stdout.ends_with("rustc 1.95.0 of rustup\n"),
        "{stdout}{}",
        text(&output.stderr)
    );
}

#[test]
fn an_old_rust_of_rustups_gets_a_newer_one_beside_it() {
    let rustup = r#"#!/bin/sh
case "$1" in
  run) shift 2; test -e "$RUSTUP_HOME/1.95.0" && echo "$1 1.95.0 of rustup" ;;
  toolchain) echo "$@" >"$HOME/rustup-arguments"; mkdir -p "$RUSTUP_HOME/1.95.0" ;;
  *) exit 1 ;;
esac
"#;
    let machine = Machine::new().with_rust("1.80.1").with("rustup", rustup);
    let output = machine.run(".ci/setup demo && . .ci/rust && use_rust && echo \"$RUSTUP_TOOLCHAIN\"");
    let stdout = text(&output.stdout);
    assert!(output.status.success() && stdout.ends_with("\n1.95.0\n"), "{stdout}{}", text(&output.stderr));
    let arguments = fs::read_to_string(machine.path("rustup-arguments")).unwrap();
    assert_eq!(arguments, "toolchain install 1.95.0 --no-self-update --profile minimal\n");
}

#[test]
fn a_recent_rust_is_taken_as_it_is() {
    let machine = Machine::new().with_rust("1.100.0").with("curl", "#!/bin/sh\nexit 9\n");
    let output = machine.run(".ci/setup demo");
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn where_it_cannot_be_fetched_the_message_says_why_and_what_to_do() {
    let curl = "#!/bin/sh\necho 'curl: (6) Could not resolve host: sh.rustup.rs' >&2\nexit 6\n";
    let machine = Machine::new().with("curl", curl);
    let output = machine.run(".ci/setup demo");
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    let reason = stderr.find("Could not resolve host").unwrap();
    let advice = stderr.find("Get 1.95 or later in another way").unwrap();
    assert!(reason < advice && stderr.contains("run this again"), "{stderr}");
}

#[test]
fn an_installer_that_fails_is_told_of_likewise() {
    let machine = Machine::new().online();
    fs::write(machine.path("installer"), "echo 'error: no space left on device' >&2\nexit 1\n").unwrap();
    let output = machine.run(".ci/setup demo");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("no space left") && stderr.contains("Get 1.95 or later in another way"), "{stderr}");
}
