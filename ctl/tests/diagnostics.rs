//! Every kind of bad input is answered with a place, a field and what to write instead.
//!
//! Each file in `data/bad` and `data/analyze` ends with the diagnostics that it must give, after `#> `. With
//! `MESHRING_BLESS=1` in the environment the expectations are written anew, to be read before they are committed.
#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it calls")]

use std::{collections::HashMap, fs, path::Path};

use meshring_ctl::{
    diagnostic::{self, Severity},
    source::{Cache, SourceFile, read_files},
    spec::World,
};

fn diagnostics(path: &str, text: &str) -> (Vec<String>, Option<Severity>) {
    let file = SourceFile { path: path.into(), text: text.into() };
    let mut reading = read_files(&[file], &mut Cache::default());
    let (world, more) = World::assemble(reading.resources);
    reading.diagnostics.extend(more);
    if !diagnostic::has_errors(&reading.diagnostics) {
        reading.diagnostics.extend(world.analyze());
    }
    diagnostic::sort(&mut reading.diagnostics);
    let worst = reading.diagnostics.iter().map(|diagnostic| diagnostic.severity).max();
    (reading.diagnostics.iter().map(ToString::to_string).collect(), worst)
}

/// Checks all files of a directory; returns the worst severity of each.
fn check(directory: &str) -> HashMap<String, Option<Severity>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(directory);
    let mut wrong = String::new();
    let mut severities = HashMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let input: String = text.split_inclusive('\n').take_while(|line| !line.starts_with("#> ")).collect();
        let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#> ")).collect();
        let (actual, worst) = diagnostics(name, &input);
        if std::env::var_os("MESHRING_BLESS").is_some() {
            let lines: String = actual.iter().map(|line| format!("#> {line}\n")).collect();
            fs::write(&path, input + &lines).unwrap();
        } else if actual != expected {
            wrong += &format!(
                "{name}:\n  expected\n    {}\n  got\n    {}\n",
                expected.join("\n    "),
                actual.join("\n    ")
            );
        }
        severities.insert(name.trim_end_matches(".yaml").to_owned(), worst);
    }
    assert!(wrong.is_empty(), "{wrong}");
    severities
}

#[test]
fn bad_input_is_answered_with_place_field_and_remedy() {
    let severities = check("bad");
    assert!(severities.len() > 50, "the files are there");
    for (name, worst) in &severities {
        assert!(worst.is_some(), "{name} says nothing");
    }
    let accepted = [
        "weights_sum",
        "fields_not_honoured",
        "unreachable",
        "duplicate_match",
        "kinds_not_honoured",
        "service_not_honoured",
        "workload_not_honoured",
        "http_rules_not_honoured",
        "destination_rule_not_honoured",
    ];
    for name in accepted {
        assert_eq!(severities[name], Some(Severity::Warning), "{name} must not refuse the files");
    }
}

#[test]
fn dangling_references_are_warnings() {
    for (name, worst) in check("analyze") {
        let expected = (name != "nothing_wrong").then_some(Severity::Warning);
        assert_eq!(worst, expected, "{name}");
    }
}
