//! The completion scripts, in the shells that they are for. A shell that this machine does not have is left out, and said so.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::process::Command;

use meshring_tests::control::meshring;

/// What the shell prints, without its user's start-up files, of a script in which `SOURCE` is the file of completions; `None` without
/// such a shell.
fn run(shell: &str, arguments: &[&str], script: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("completions");
    std::fs::write(&path, &meshring(&["completions", shell]).expect(0).stdout).unwrap();
    let script = script.replace("SOURCE", &path.display().to_string());
    let mut command = Command::new(shell);
    command.args(arguments).arg(script).env("HOME", dir.path()).env("XDG_CONFIG_HOME", dir.path());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            println!("completions of {shell} were not tried: {error}");
            return None;
        }
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{shell}: {}: {stderr}", output.status);
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn bash_completes_a_command_an_option_and_a_value() {
    let complete = "source SOURCE\ncomplete() { COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)); _meshring meshring \"${@: -1}\" \"${@: -2:1}\"; \
                    echo \"${COMPREPLY[@]}\"; }\ncomplete meshring roll\ncomplete meshring rollback --t\ncomplete meshring get -o j";
    if let Some(printed) = run("bash", &["--norc", "--noprofile", "-c"], complete) {
        assert_eq!(printed, "rollback\n--to\njson\n");
    }
}

#[test]
fn zsh_takes_the_script_and_knows_whom_it_completes() {
    // Completion itself needs a terminal: this is that all of it can be read, and is registered for the program.
    let script = "autoload -Uz compinit && compinit -u -D && source SOURCE && print $_comps[meshring] $+functions[_meshring_commands]";
    if let Some(printed) = run("zsh", &["-f", "-c"], script) {
        assert_eq!(printed, "_meshring 1\n");
    }
}

#[test]
fn fish_completes_a_command_an_option_and_a_value() {
    let complete = "source SOURCE\ncomplete -C 'meshring roll'\ncomplete -C 'meshring rollback --t'\ncomplete -C 'meshring get -o j'";
    if let Some(printed) = run("fish", &["--no-config", "-c"], complete) {
        let words: Vec<_> = printed.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect();
        assert_eq!(words, ["rollback", "--to", "json"]);
    }
}

#[test]
fn elvish_and_powershell_have_scripts_with_all_commands_and_a_shell_without_one_is_told_so() {
    // Elvish knows the variable that its script sets at a terminal only, and Debian has no PowerShell.
    for shell in ["elvish", "powershell"] {
        let ran = meshring(&["completions", shell]);
        let script = &ran.expect(0).stdout;
        assert!(
            ["apply", "rollback", "explain", "completions"].iter().all(|command| script.contains(command)),
            "{shell}"
        );
    }
    assert!(meshring(&["completions", "tcsh"]).expect(2).stderr.contains("possible values: bash, elvish, fish"));
}
